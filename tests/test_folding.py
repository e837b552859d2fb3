"""Adapters that are folded into a model: the numbers of PEFT's merge_and_unload, and what is refused."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import contents
from making import ROOT, load, one_line, run, save
from strategies import gaussian

from quantcli import folding
from quantcli.dtypes import to_float32
from quantcli.folding import folded
from quantcli.stores import Source, open_source

GOLDEN = ROOT / "tests" / "golden" / "lora"
MERGED = ("plain", "bfloat16", "rslora", "patterns", "embedding", "saved", "conv1d", "bias")


def values(source: Source, name: str, *, step: int = 0) -> np.ndarray:
    """A tensor as it is read: at once, or in so many bytes at a time."""
    info = next(i for i in source.infos() if i.name == name)
    raw = np.empty(info.nbytes, np.uint8)
    for start in range(0, info.nbytes, step or max(info.nbytes, 1)):
        part = raw[start : start + (step or info.nbytes)]
        source.read(name, start, part.data)
    return to_float32(raw, info.dtype).reshape(info.shape)


@pytest.mark.parametrize("case", MERGED)
@pytest.mark.parametrize("step", [0, 52, 4096])
def test_what_merge_and_unload_gives(case: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """to the last places of float32, or of bfloat16, to which PEFT rounds twice; nothing else is changed"""
    monkeypatch.setattr(folding, "BLOCK", 64)
    wanted = load(GOLDEN / case / "changed.safetensors")
    with ExitStack() as stack:
        base = stack.enter_context(closing(open_source(str(GOLDEN / case / "base"))))
        found = folded(stack, base, str(GOLDEN / case / "adapter"))
        assert set(found.notes) == set(wanted)
        for info in base.infos():
            before, after = values(base, info.name), values(found, info.name, step=step)
            if info.name not in wanted:
                np.testing.assert_array_equal(before, after)
                continue
            true = to_float32(np.frombuffer(wanted[info.name].data, np.uint8), wanted[info.name].dtype)
            rtol, atol = (2.0**-7, 1e-3) if info.dtype == "BF16" else (1e-5, 1e-7)
            np.testing.assert_allclose(after.ravel(), true, rtol=rtol, atol=atol)
            assert not np.array_equal(before, after)


def merged(folder: Path, base: Path, adapter: Path) -> dict[str, np.ndarray]:
    """A model of float32 with an adapter of PEFT folded in, by numpy's own product."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    found = {n: to_float32(np.frombuffer(t.data, np.uint8), t.dtype).reshape(t.shape) for n, t in load(base).items()}
    factors = {n: to_float32(np.frombuffer(t.data, np.uint8), t.dtype).reshape(t.shape).astype(np.float64)
               for n, t in load(adapter / "adapter_model.safetensors").items()}  # fmt: skip
    for name in factors:
        if ".lora_A." in name:
            product = factors[name.replace("_A.", "_B.")] @ factors[name]
            module = name.removeprefix("base_model.model.").partition(".lora_A")[0]
            scale = config["lora_alpha"] / config["r"]
            found[f"{module}.weight"] = (found[f"{module}.weight"] + scale * product).astype(np.float32)
    return found


def test_quantized_as_the_merged_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """one command gives what merging and quantizing gives, at any number of threads, and says what was changed"""
    monkeypatch.chdir(tmp_path)
    base, adapter = GOLDEN / "plain" / "base", GOLDEN / "plain" / "adapter"
    words = ["--bits", "8", "--group-size", "8", "--no-default-keep", "--to", "native"]
    ran = run("quantize", base, "--lora", adapter, "-o", "out", *words, "--json")
    assert ran.code == 0, ran.err
    assert "folded into 6 of 21 tensors" in ran.err
    notes = {t["name"]: t["note"] for t in ran.json["tensors"] if t["note"]}
    assert set(notes) == set(load(GOLDEN / "plain" / "changed.safetensors"))
    assert set(notes.values()) == {"adapter folded in, rank 4, times 2"}
    shutil.copytree(base, "merged")
    save(Path("merged/model.safetensors"), merged(tmp_path, base / "model.safetensors", adapter))
    run("quantize", "merged", "-o", "other", *words, "-q")
    compared = run("compare", "other", "out", "--json").json
    assert compared["summary"]["sqnr_db"] is None or compared["summary"]["sqnr_db"] > 60
    run("quantize", base, "--lora", adapter, "-o", "again", *words, "--threads", "1", "-q")
    assert contents(Path("again")) == contents(Path("out"))
    one = ["quantize", base / "model.safetensors", "--lora", adapter / "adapter_model.safetensors", *words]
    assert run(*one, "-o", "one.safetensors", "-q").code == 0


def test_several_adapters_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        base = stack.enter_context(closing(open_source(str(GOLDEN / "plain" / "base"))))
        found: Source = base
        for case in ("plain", "rslora", "plain"):
            found = folded(stack, found, str(GOLDEN / case / "adapter"))
        name = "model.layers.0.mlp.down_proj.weight"
        assert found.notes[name].count("folded in") == 3
        with ExitStack() as more:
            alone = {
                case: values(folded(more, base, str(GOLDEN / case / "adapter")), name) - values(base, name)
                for case in ("plain", "rslora")
            }
        wanted = values(base, name) + 2 * alone["plain"] + alone["rslora"]
        np.testing.assert_allclose(values(found, name), wanted, rtol=1e-4, atol=1e-6)


# ---- single files -----------------------------------------------------------------------------------------------

WEIGHTS = {
    "blocks.0.attn.to_q.weight": gaussian(64, 96, seed=1),
    "blocks.0.attn.to_q.bias": gaussian(64, seed=2),
    "blocks.0.conv.weight": gaussian(32 * 16 * 9, seed=3).reshape(32, 16, 3, 3),
}
DOWN, UP = gaussian(4, 96, seed=4), gaussian(64, 4, seed=5)
ALPHA = np.array(2.0, np.float32)


@pytest.mark.parametrize(("names", "scale"), [
    ({"lora_unet_blocks_0_attn_to_q.lora_down.weight": DOWN, "lora_unet_blocks_0_attn_to_q.lora_up.weight": UP,
      "lora_unet_blocks_0_attn_to_q.alpha": ALPHA}, 0.5),
    ({"unet.blocks.0.attn.to_q.lora.down.weight": DOWN, "unet.blocks.0.attn.to_q.lora.up.weight": UP}, 1.0),
    ({"transformer.blocks.0.attn.to_q.lora_A.weight": DOWN, "transformer.blocks.0.attn.to_q.lora_B.weight": UP}, 1.0),
    ({"diffusion_model.blocks.0.attn.to_q.lora_A.weight": DOWN, "diffusion_model.blocks.0.attn.to_q.lora_B.weight": UP,
      "diffusion_model.blocks.0.attn.to_q.alpha": ALPHA}, 0.5),
    ({"blocks.0.attn.to_q.lora_A.default.weight": DOWN, "blocks.0.attn.to_q.lora_B.default.weight": UP}, 1.0),
])  # fmt: skip
def test_files_of_other_tools(names: dict[str, np.ndarray], scale: float, tmp_path: Path) -> None:
    base, adapter = save(tmp_path / "base.safetensors", WEIGHTS), save(tmp_path / "lora.safetensors", names)
    with ExitStack() as stack:
        source = stack.enter_context(closing(open_source(str(base))))
        found = folded(stack, source, str(adapter))
        wanted = WEIGHTS["blocks.0.attn.to_q.weight"] + scale * (UP.astype(np.float64) @ DOWN)
        np.testing.assert_allclose(values(found, "blocks.0.attn.to_q.weight"), wanted, rtol=1e-5, atol=1e-5)
        assert list(found.notes) == ["blocks.0.attn.to_q.weight"]


def test_convolutions(tmp_path: Path) -> None:
    down, up = gaussian(4 * 16 * 9, seed=6).reshape(4, 16, 3, 3), gaussian(32, 4, seed=7).reshape(32, 4, 1, 1)
    names = {"lora_unet_blocks_0_conv.lora_down.weight": down, "lora_unet_blocks_0_conv.lora_up.weight": up}
    base, adapter = save(tmp_path / "base.safetensors", WEIGHTS), save(tmp_path / "lora.safetensors", names)
    with ExitStack() as stack:
        source = stack.enter_context(closing(open_source(str(base))))
        after = values(folded(stack, source, str(adapter)), "blocks.0.conv.weight")
    wanted = WEIGHTS["blocks.0.conv.weight"] + np.einsum("or,rihw->oihw", up[:, :, 0, 0].astype(np.float64), down)
    np.testing.assert_allclose(after, wanted, rtol=1e-5, atol=1e-5)


# ---- refused ----------------------------------------------------------------------------------------------------

PAIR = {"blocks.0.attn.to_q.lora_A.weight": DOWN, "blocks.0.attn.to_q.lora_B.weight": UP}


@pytest.mark.parametrize(("names", "said"), [
    ({**PAIR, "blocks.0.attn.to_q.lora_magnitude_vector": DOWN[0]}, "this is DoRA, which is not folded in"),
    ({**PAIR, "a.hada_w1_a": DOWN}, "this is LoHa"), ({**PAIR, "a.lokr_w1": DOWN}, "this is LoKr"),
    ({**PAIR, "blocks.0.attn.to_q.lora_B.bias": UP[:, 0]}, "LoRA with biases"),
    ({**PAIR, "blocks.1.attn.to_q.lora_A.weight": DOWN}, "it has only one of two factors"),
    ({**PAIR, "blocks.1.attn.to_q.lora_A.weight": DOWN, "blocks.1.attn.to_q.lora_B.weight": UP},
     "the model has no blocks.1.attn.to_q.weight for it; near it: blocks.0.attn.to_q"),
    ({**PAIR, "text_model.x.weight": DOWN}, "text_model.x.weight: the model has no text_model.x.weight for it"),
    ({**PAIR, "blocks.0.attn.to_q.bias": UP}, "its shape [64, 4] is not that of the model's, [64]"),
    ({**PAIR, "other.alpha": ALPHA}, "other.alpha: it belongs to no pair of factors"),
    ({"blocks.0.attn.to_q.lora_A.weight": UP, "blocks.0.attn.to_q.lora_B.weight": DOWN}, "do not match [64, 96]"),
    ({"blocks.0.attn.to_q.lora_A.weight": DOWN, "blocks.0.attn.to_q.lora_B.weight": UP[:, :3]}, "do not match"),
    ({"blocks.0.attn.to_q.bias": UP[:, 0]}, "it holds no pair of LoRA factors"),
    ({**PAIR, "blocks.0.attn.to_q.alpha": np.array([1.0, 2.0])}, "its alpha is not a number"),
])  # fmt: skip
def test_every_tensor_is_used_or_refused(names: dict[str, np.ndarray], said: str, tmp_path: Path) -> None:
    base, adapter = save(tmp_path / "base.safetensors", WEIGHTS), save(tmp_path / "lora.safetensors", names)
    line = one_line(run("quantize", base, "--lora", adapter, "-o", tmp_path / "out.safetensors"), 1)
    assert said in line and "lora.safetensors" in line
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(("change", "said"), [
    ({"peft_type": "LOHA"}, "'LOHA' adapters are not folded in"), ({"use_dora": True}, "use_dora"),
    ({"init_lora_weights": "pissa_niter_4"}, "an adapter that begins with 'pissa_niter_4' changes the model"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"), ({"target_parameters": ["w"]}, "target_parameters"),
    ({"something_new": 1}, "something_new: this setting is not known to merge as LoRA does"),
    ({"r": 3}, "gives it the rank 3, and its factors have 4"), ({"lora_alpha": "x"}, "'x' is not a number"),
    ({"rank_pattern": {"(": 2}}, "'(' is not a regular expression"), ({"rank_pattern": [1]}, "it is not an object"),
])  # fmt: skip
def test_settings_that_are_not_understood(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(GOLDEN / "plain" / "adapter", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **change}))
    line = one_line(run("quantize", GOLDEN / "plain" / "base", "--lora", adapter, "--dry-run"), 1)
    assert said in line and str(adapter) in line


def test_dora_of_peft_is_refused() -> None:
    ran = run("quantize", GOLDEN / "dora" / "base", "--lora", GOLDEN / "dora" / "adapter", "--dry-run")
    assert "use_dora: this setting is not known to merge as LoRA does; merge it with PEFT" in one_line(ran, 1)


def test_what_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = GOLDEN / "plain" / "adapter"
    line = one_line(run("quantize", adapter), 1)
    assert line.endswith(
        "name its base model and this with --lora, or give --adapter to quantize its factors themselves"
    )
    assert "this is an adapter itself" in one_line(run("quantize", adapter, "--lora", adapter), 1)
    ran = run("quantize", adapter, "--adapter", "--bits", "8", "--no-default-keep", "-o", "out", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["summary"]["quantized"] == 12 and Path("out/adapter_config.json").exists()


def test_a_changed_adapter_is_noticed_when_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantcli.errors import QuantcliError
    from quantcli.folders import write as folders
    from quantcli.passes import quantize as passes

    monkeypatch.chdir(tmp_path)
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    for number in (1, 2):
        save(base / f"model-{number:05d}-of-00002.safetensors", {f"blocks.{number}.to_q.weight": gaussian(64, 96)})
    pair = {f"blocks.{n}.to_q.lora_{s}.weight": x for n in (1, 2) for s, x in (("A", DOWN), ("B", UP))}
    lora = save(tmp_path / "lora.safetensors", pair)
    calls = list[Any]()

    def failing(*args: Any, **more: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            raise QuantcliError("no space left on device", place=["out"])
        return passes.write_part(*args, **more)

    monkeypatch.setattr(folders, "write_part", failing)
    words = ["quantize", base, "--lora", lora, "-o", "out"]
    assert run(*words).code == 1
    monkeypatch.setattr(folders, "write_part", passes.write_part)
    before = lora.read_bytes()
    save(lora, {**pair, "blocks.1.to_q.lora_A.weight": 2 * DOWN})
    assert "the file was changed since the run that was interrupted" in run(*words, "--resume").err
    lora.write_bytes(before)
    assert run(*words, "--resume", "-q").code == 0
    assert run("quantize", base, "--lora", lora, "-o", "whole", "-q").code == 0
    assert contents(Path("out")) == contents(Path("whole"))
