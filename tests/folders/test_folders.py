"""Folders as publishers make them: nothing beside the weights is lost without a word, nothing foreign is merged in, and
what cannot be done is refused before a weight is read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import left_behind, load, one_line, run, save
from strategies import gaussian

from quantcli.passes import quantize

WEIGHTS = {"encoder.query.weight": gaussian(64, 128), "encoder.norm.weight": gaussian(128)}


def folder(name: str, *, config: Any = None, **files: Any) -> Path:
    """A folder: of arrays as safetensors, of anything else as text or bytes; slashes in names make subfolders."""
    for path, content in files.items():
        place = Path(name) / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            save(place, content)
        else:
            place.write_bytes(content if isinstance(content, bytes) else content.encode())
    if config is not None:
        (Path(name) / "config.json").write_text(json.dumps(config))
    return Path(name)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(path: Path) -> set[str]:
    return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}


# ---- nested weights, and copies for others ----------------------------------------------------------------------


def sentence_transformer() -> Path:
    modules = [{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling"}, {"idx": 2, "path": "2_Dense"}]
    return folder("st", config={"model_type": "bert"}, **{
        "model.safetensors": WEIGHTS, "modules.json": json.dumps(modules), "1_Pooling/config.json": "{}",
        "2_Dense/config.json": "{}", "2_Dense/model.safetensors": {"linear.weight": gaussian(8, 128)},
        "3_Late/pytorch_model.bin": b"p" * 30, "3_Late/config.json": "{}", "2_Dense/pytorch_model.bin": b"b" * 10,
        "onnx/model.onnx": b"o" * 2000, "openvino/openvino_model.bin": b"v" * 20, "original/consolidated.00.pth": b"c",
        "pytorch_model.bin": b"x" * 1000, "tf_model.h5": b"h", "model.gguf": b"g", "flax_model.msgpack": b"f",
        "training_args.bin": b"t", "checkpoint-500/model.safetensors": b"s", "tokenizer.json": "{}",
    })  # fmt: skip


LEFT = {
    "2_Dense/pytorch_model.bin", "onnx/model.onnx", "openvino/openvino_model.bin", "original/consolidated.00.pth",
    "pytorch_model.bin", "tf_model.h5", "model.gguf", "flax_model.msgpack", "training_args.bin",
    "checkpoint-500/model.safetensors",
}  # fmt: skip


@pytest.mark.parametrize("words", [[], ["--to", "mlx", "--group-size", "64"]])
def test_every_file_is_copied_or_named(words: list[str]) -> None:
    source = sentence_transformer()
    ran = run("quantize", source, *words, "-o", "out", "--json")
    assert ran.code == 0, ran.err
    out = Path("out")
    said = " ".join(ran.json["warnings"])
    assert names(out) == names(source) - LEFT | {"README.md"}
    assert all(f"{w}\n" in ran.err for w in ran.json["warnings"])
    for name in ("2_Dense/model.safetensors", "3_Late/pytorch_model.bin"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert "copied unquantized: 2_Dense/model.safetensors (" in said and "3_Late/pytorch_model.bin (30 B)" in said
    card = (out / "README.md").read_text()
    assert all(f"- `{name}` (" in card for name in LEFT)  # a warning stops after five
    assert "weights in another format: " in said and "pytorch_model.bin (1.00 kB)" in said
    assert "weights for another loader: onnx/model.onnx (2.00 kB)" in said and "state of a training run: " in said
    dry = run("quantize", source, *words, "-o", "other", "--dry-run", "--json")
    assert [w for w in dry.json["warnings"] if "left out" in w or "copied" in w] == [
        w for w in ran.json["warnings"] if "left out" in w or "copied" in w
    ]
    assert not left_behind(Path())


def test_an_export_copies_what_the_native_folder_has() -> None:
    assert run("quantize", sentence_transformer(), "--group-size", 64, "-o", "native").code == 0
    (Path("native") / "stray.bin").write_bytes(b"1234")
    ran = run("export", "native", "--to", "mlx", "-o", "out", "--json")
    assert ran.code == 0, ran.err
    assert names(Path("out")) == names(Path("native")) - {"stray.bin"}
    assert ran.json["warnings"] == [line.removeprefix("quantcli: ") for line in ran.err.splitlines()[-2:]]
    assert "left out, weights in another format: stray.bin (4 B)" in ran.err and "2_Dense/model.safetensors" in ran.err


def test_a_side_file_of_any_size_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, and its room is looked for before a weight is read."""
    source = folder("in", **{"model.safetensors": WEIGHTS, "tokenizer.json": "{}"})
    with open(source / "images.dat", "wb") as file:
        file.truncate(70 << 20)
        file.write(b"end")
    assert run("quantize", source, "-o", "out", "-q").code == 0
    assert (Path("out") / "images.dat").stat().st_size == (source / "images.dat").stat().st_size
    few = os.statvfs(".")
    status = os.statvfs_result((few.f_bsize, 1024, few.f_blocks, 1000, 60_000, *few[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: status)
    monkeypatch.setattr(quantize, "write", lambda *_: pytest.fail("a weight was read"))
    for words in ([], ["--to", "mlx", "--group-size", "64"]):
        assert "not enough space for the " in one_line(run("quantize", source, *words, "-o", "more", "-q"), 1)
    assert sorted(os.listdir()) == ["in", "out"]


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("words", [[], ["--to", "mlx", "--group-size", "64"]])
def test_what_would_fail_late_is_refused_first(words: list[str]) -> None:
    """A part of the model outside the folder, a config.json that is not JSON, a side file that cannot be read."""
    source = sentence_transformer()
    Path("elsewhere").write_bytes(b"1")
    (source / "2_Dense" / "model.safetensors").unlink()
    (source / "2_Dense" / "model.safetensors").symlink_to("../../elsewhere")
    line = one_line(run("quantize", source, *words, "-o", "out", "-q"), 1)
    assert "2_Dense/model.safetensors: part of the model, and a link to a file outside the folder" in line
    (source / "2_Dense").rename("dense")
    (source / "2_Dense").symlink_to("../dense")
    assert "modules.json names it, and it is a link to a folder" in one_line(
        run("quantize", source, *words, "-o", "out", "-q"), 1
    )
    (source / "2_Dense").unlink()
    (source / "config.json").write_text("{")
    assert "config.json" in one_line(run("quantize", source, *words, "-o", "out", "-q"), 1)
    (source / "config.json").write_text("{}")
    os.chmod(source / "tokenizer.json", 0)
    if not os.access(source / "tokenizer.json", os.R_OK):
        assert "permission denied" in one_line(run("quantize", source, *words, "-o", "out", "-q"), 1)
    assert not Path("out").exists() and not left_behind(Path())


def test_odd_files_are_named() -> None:
    """Links to folders, links to nothing and pipes are left out and named; an earlier output is no part of a model."""
    source = folder("in", **{"model.safetensors": WEIGHTS, "assets/a.txt": "a", "tokenizer.json": "{}"})
    assert run("quantize", source, "-o", source / "w4", "-q").code == 0
    (source / "linked").symlink_to("assets")
    (source / "gone.txt").symlink_to("nothing")
    os.mkfifo(source / "pipe")
    ran = run("quantize", source, "-o", "out", "--json")
    said = " ".join(ran.json["warnings"])
    assert "links to folders: linked" in said and "not a regular file: gone.txt (0 B), pipe (0 B)" in said
    assert "already quantized: w4/model.safetensors" in said
    assert names(Path("out")) == {"README.md", "assets/a.txt", "model.safetensors", "tokenizer.json", "w4/README.md",
                                  "w4/assets/a.txt", "w4/tokenizer.json"}  # fmt: skip


# ---- which weights are the model --------------------------------------------------------------------------------

OTHERS = {"layers.0.wq.weight": gaussian(64, 128, seed=1)}


@pytest.mark.parametrize(("ours", "other", "why"), [
    ("model.safetensors", "consolidated.safetensors", "the same weights under Mistral's names"),
    ("model.safetensors", "model.fp16.safetensors", "a variant of model.safetensors"),
    ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.non_ema.safetensors", "a variant of"),
])  # fmt: skip
@pytest.mark.parametrize("output", ["out", "out.safetensors"])
def test_copies_of_the_weights_are_not_merged(ours: str, other: str, why: str, output: str) -> None:
    source = folder("in", config={"model_type": "x"}, **{ours: WEIGHTS, other: OTHERS})
    ran = run("quantize", source, "-o", output, "--json")
    assert ran.code == 0 and {t["name"] for t in ran.json["tensors"]} == set(WEIGHTS)
    assert any(why in w and f"{other} (" in w for w in ran.json["warnings"]) and why in ran.err
    assert output.endswith(".safetensors") or names(Path("out")) == {ours, "config.json", "README.md"}


def test_shards_beside_consolidated_ones() -> None:
    """With an index, what it does not name is no part of the model, and named."""
    shards = {f"model-{i}-of-00002.safetensors": {f"w{i}": gaussian(64, 64)} for i in ("00001", "00002")}
    source = folder("in", **shards, **{"consolidated.safetensors": OTHERS, "mtp.safetensors": OTHERS})
    index = {"weight_map": {f"w{i}": f"model-{i}-of-00002.safetensors" for i in ("00001", "00002")}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    ran = run("quantize", source, "-o", "out", "--json")
    assert [t["name"] for t in ran.json["tensors"]] == ["w00001", "w00002"]
    said = " ".join(ran.json["warnings"])
    assert "not named by model.safetensors.index.json: mtp.safetensors (" in said and "Mistral's names: conso" in said
    (source / "model.safetensors.index.json").unlink()
    assert "several files" in one_line(run("quantize", source, "-o", "more"), 1)  # mtp is anything
    (source / "mtp.safetensors").unlink()
    assert len(run("quantize", source, "-o", "more", "--json").json["tensors"]) == 2


@pytest.mark.parametrize("more", ["adapter_model.safetensors", "tower.safetensors", "model-00001-of-00001.safetensors"])
@pytest.mark.parametrize("command", ["quantize", "inspect", "dequantize"])
def test_files_of_several_models_are_refused(more: str, command: str) -> None:
    source = folder("in", **{"model.safetensors": WEIGHTS, more: OTHERS})
    line = one_line(run(command, source), 1)
    assert line.startswith("in: several files that are not shards of one model: ") and more in line
    assert line.endswith("; name one of them, or move the others away")
    assert os.listdir() == ["in"]


def test_several_indexes_and_pipelines() -> None:
    source = folder("in", **{"a.safetensors.index.json": "{}", "b.safetensors.index.json": "{}"})
    assert "several indexes: a.safetensors.index.json, b.saf" in one_line(run("quantize", source), 1)
    folder("pipe", **{"unet/model.safetensors": WEIGHTS, "vae/model.safetensors": WEIGHTS, "model_index.json": "{}"})
    line = one_line(run("quantize", "pipe"), 1)
    assert line == "pipe: model_index.json names no folder with weights; there are some in unet, vae: " \
        "name one of these folders"  # fmt: skip


# ---- adapters, and config.json ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("parts", [("lora_A", "lora_B"), ("lora_down", "lora_up")])
def test_adapters_are_refused(parts: tuple[str, str]) -> None:
    tensors = {f"layers.{i}.q_proj.{part}.weight": gaussian(64, 64) for i in range(2) for part in parts}
    source = folder("in", **{"adapter_model.safetensors": {**tensors, "norm.weight": gaussian(64)},
                             "adapter_config.json": "{}"})  # fmt: skip
    for path in (source, source / "adapter_model.safetensors"):
        for words in ([], ["--to", "gguf", "--container"], ["--dry-run"]):
            line = one_line(run("quantize", path, *words), 1)
            assert "this is an adapter (LoRA), not a model; name its base model and this with --lora" in line


def test_models_that_carry_adapters_are_models() -> None:
    base = "model.q_proj."
    tensors = {f"{base}base_layer.weight": gaussian(64, 128), f"{base}lora_A.speech.weight": gaussian(8, 128),
               f"{base}lora_B.speech.weight": gaussian(64, 8)}  # fmt: skip
    assert run("quantize", folder("in", **{"model.safetensors": tensors}), "-o", "out").code == 0


@pytest.mark.parametrize("target", ["native", "compressed-tensors", "mlx", "awq"])
def test_no_config_is_made_up(target: str) -> None:
    """Where the source has no config.json there is none, and a line says what a loader wants there."""
    source = folder("in", **{"model.safetensors": WEIGHTS})
    for path, out in ((source, "a"), (source / "model.safetensors", "b")):
        ran = run("quantize", path, "--group-size", 64, "--to", target, "-o", out)
        assert ran.code == 0 and (target == "native" or "no config.json is written" in ran.err)
        assert not Path(out).is_dir() or not (Path(out) / "config.json").exists()
    if target != "native":
        assert {n for n in load(Path("b") / "model.safetensors") if n.startswith("encoder.norm")}


def test_a_config_stays_what_it_is() -> None:
    config = {"model_type": "bert", "architectures": ["BertModel"], "x": np.pi}
    source = folder("in", config=config, **{"model.safetensors": WEIGHTS})
    assert run("quantize", source, "-o", "out", "-q").code == 0
    found = json.loads((Path("out") / "config.json").read_text())
    assert found.pop("quantization_config")["quant_method"] == "compressed-tensors" and found == config


def test_a_folder_is_dequantized_to_a_folder(tmp_path: Path) -> None:
    """What lies beside the weights comes along, config.json tells of no quantization, the card is the original one."""
    source = tmp_path / "m"
    source.mkdir()
    weights = {"a.weight": gaussian(64, 128), "norm.weight": gaussian(64)}
    save(source / "model.safetensors", weights)
    (source / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    (source / "tokenizer.json").write_text("{}")
    (source / "README.md").write_text("---\nlicense: mit\n---\n# My model\n")
    small, back = tmp_path / "small", tmp_path / "small-dequantized"
    assert run("quantize", source, "-o", small, "--bits", "8", "-q").code == 0
    assert run("dequantize", small, "-q").code == 0
    assert sorted(os.listdir(back)) == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert json.loads((back / "config.json").read_text()) == {"model_type": "llama", "hidden_size": 64}
    assert (back / "README.md").read_text() == "---\nlicense: mit\n---\n\n# My model\n"
    assert float(run("compare", source, back, "--json").json["summary"]["sqnr_db"]) > 35
    assert run("dequantize", small, "-o", tmp_path / "one.safetensors", "-q").code == 0
    assert (tmp_path / "one.safetensors").read_bytes() == (back / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "arguments", [["plan", "M", "--target-bpw", "8", "-o", "p.csv"], ["quantize", "M", "--save-recipe", "p.json"]]
)
def test_recipes_are_not_written_under_other_names(arguments: list[str], tmp_path: Path) -> None:
    model = save(tmp_path / "m.safetensors", {"a.weight": gaussian(64, 128)})
    words = [str(model) if a == "M" else str(tmp_path / a) if a.startswith("p.") else a for a in arguments]
    assert "a recipe would be written" in one_line(run(*words), 2)
    assert os.listdir(tmp_path) == ["m.safetensors"]


@pytest.mark.parametrize("arguments", [["plan", "M", "--target-bpw", "8"], ["sweep", "M"]])
def test_adapters_are_not_planned_or_swept(arguments: list[str], tmp_path: Path) -> None:
    names = [f"base_model.model.layers.0.q_proj.lora_{k}.weight" for k in "AB"]
    model = save(tmp_path / "adapter_model.safetensors", {name: gaussian(64, 64) for name in names})
    assert "adapter (LoRA)" in one_line(run(*[str(model) if a == "M" else a for a in arguments]), 1)


# ---- inputs are never replaced ----------------------------------------------------------------------------------


def test_a_folder_that_holds_the_input_is_not_replaced(here: Path) -> None:
    source = folder("source", config={"model_type": "bert"}, **{"model.safetensors": WEIGHTS})
    assert run("quantize", source, "-o", "source/w4", "--to", "native", "-q").code == 0
    before = sorted(path.relative_to(here) for path in here.rglob("*"))
    for words in (["dequantize", "source/w4"], ["quantize", "source/w4", "--requantize"]):
        line = one_line(run(*words, "-o", "source", "--force"), 2)
        assert "the input is in this folder, which would be replaced" in line
    assert sorted(path.relative_to(here) for path in here.rglob("*")) == before


@pytest.mark.parametrize("case", ["adapter", "importance"])
def test_what_is_read_beside_the_source_is_not_replaced(case: str, here: Path) -> None:
    source = save(here / "m.safetensors", WEIGHTS)
    save(here / "imp.safetensors", {"encoder.query.weight": np.ones(128, np.float32)})
    factors = {"encoder.query.lora_A.weight": gaussian(4, 128), "encoder.query.lora_B.weight": gaussian(64, 4)}
    save(here / "a.safetensors", {**factors, "encoder.query.alpha": np.array(4, np.float32)})
    option, name = ("--lora", "a.safetensors") if case == "adapter" else ("--importance", "imp.safetensors")
    before = (here / name).read_bytes()
    ran = run("quantize", source, option, name, "-o", name, "--force")
    assert ran.code == 2 and "output and input are the same file" in ran.err.splitlines()[-1]
    assert (here / name).read_bytes() == before


def test_a_figure_does_not_replace_the_adapter_it_is_of(here: Path) -> None:
    source = save(here / "m.safetensors", WEIGHTS)
    adapter = folder("ada", **{"adapter_model.safetensors": {
        "base_model.model.encoder.query.lora_A.weight": gaussian(4, 128),
        "base_model.model.encoder.query.lora_B.weight": gaussian(64, 4)},
        "adapter_config.json": json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["query"]}),
    })  # fmt: skip
    before = (adapter / "adapter_config.json").read_bytes()
    line = one_line(run("sweep", source, "--lora", adapter, "-o", adapter / "adapter_config.json"), 2)
    assert "output and input are the same file" in line
    assert (adapter / "adapter_config.json").read_bytes() == before
