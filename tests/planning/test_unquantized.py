"""What stays in floating point though it takes the room, and what is quantized though it should not be: said before and
after, with what would change it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import BF16, run, save

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 8192,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip


def weight(*shape: int) -> np.ndarray:
    return (np.random.default_rng(len(shape)).standard_normal(shape, np.float32) * 0.02).astype(BF16)


def layers(prefix: str, count: int, size: int = 256) -> dict[str, np.ndarray]:
    names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
             "mlp.up_proj", "mlp.down_proj"]  # fmt: skip
    found = {f"{prefix}.{i}.{n}.weight": weight(size, size) for i in range(count) for n in names}
    norms = ("input_layernorm", "post_attention_layernorm")
    return found | {f"{prefix}.{i}.{n}.weight": weight(size) for i in range(count) for n in norms}


def folder(name: str, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    Path(name).mkdir()
    save(Path(name) / "model.safetensors", tensors)
    (Path(name) / "config.json").write_text(json.dumps(config))
    return Path(name)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def llama() -> Path:
    tensors = {"model.embed_tokens.weight": weight(8192, 256), **layers("model.layers", 2),
               "model.norm.weight": weight(256)}  # fmt: skip
    return folder("llama", LLAMA, tensors)


def test_options_that_are_named_change_nothing_else(llama: Path) -> None:
    """A layer that predicts further tokens has the names of all others but for its number; where a pattern would reach
    more than what is kept, no rule is named."""
    drafts = layers("model.layers", 3)
    save(llama / "model.safetensors", {"model.embed_tokens.weight": weight(64, 256), **drafts})
    (llama / "config.json").write_text(json.dumps({**LLAMA, "vocab_size": 64, "num_nextn_predict_layers": 1}))
    first = run("quantize", llama, "-o", "first", "--json")
    [line] = [w for w in first.json["warnings"] if "is not quantized" in w]
    named = set(re.findall(r"--override '([^']*)'", line))
    assert named and all(n.startswith("model.layers.2.") for n in named), line
    again = run("quantize", llama, "-o", "again", "--json", *(w for n in named for w in ("--override", n)))
    changed = {t["name"] for t, before in zip(again.json["tensors"], first.json["tensors"]) if t != before}
    assert again.code == 0 and changed == {n.removesuffix(":bits=8") for n in named}

    (llama / "config.json").write_text(json.dumps({**LLAMA, "vocab_size": 64, "num_hidden_layers": 1,
                                                   "num_nextn_predict_layers": 2}))  # fmt: skip
    several = run("quantize", llama, "-o", "several", "--json")
    [line] = [w for w in several.json["warnings"] if "is not quantized" in w]
    assert "model.layers.*.mlp" in line and "--override" not in line, line


@pytest.fixture
def moe() -> Path:
    """Experts in one tensor of three dimensions, of which no loader takes integer codes."""
    shapes = {"gate_up_proj": (8, 128, 128), "down_proj": (8, 64, 128)}
    experts = {f"model.layers.{i}.mlp.experts.{n}": weight(*shape) for i in range(8) for n, shape in shapes.items()}
    attention = {f"model.layers.{i}.self_attn.q_proj.weight": weight(128, 128) for i in range(8)}
    return folder("moe", {"model_type": "gpt_oss"}, {**attention, **experts})


def about(warnings: list[str], words: str) -> str:
    (line,) = [w for w in warnings if words in w]
    return line


def test_an_embedding_that_takes_the_room(llama: Path) -> None:
    """Named with its bytes and its share, in the plan and in the report of it, and what is advised does it."""
    for words in (["--to", "native"], ["--to", "native", "--bits", "8"]):
        wet = run("quantize", llama, *words, "-o", "out", "--json")
        dry = run("quantize", llama, *words, "-o", "dry", "--dry-run", "--json")
        line = about(wet.json["warnings"], "is not quantized")
        assert line == about(dry.json["warnings"], "is not quantized")
        assert f"quantcli: warning: {line}\n" in wet.err and f"quantcli: warning: {line}\n" in dry.err
        match = re.fullmatch(r"(\d+) % of the output \(4\.\d\d MB\) is not quantized: model\.embed_tokens\.weight "
                             r"\(4\.19 MB, embedding\); use (.+)", line)  # fmt: skip
        assert match is not None, line
        summary = wet.json["summary"]
        assert int(match[1]) == pytest.approx(100 * 8192 * 256 * 2 / summary["bytes_out"], abs=2)
        advised = run("quantize", llama, *words, *shlex.split(match[2]), "-o", "less", "--force", "--json").json
        assert advised["summary"]["coverage"] > 0.99 and not [w for w in advised["warnings"] if "not quantized" in w]
        assert advised["summary"]["bytes_out"] < 0.6 * summary["bytes_out"]
        assert run("quantize", llama, *words, "-o", "out", "--force", "-q").err == ""
        for path in (Path("out"), Path("less")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_what_is_advised_has_the_bits_of_the_format(llama: Path) -> None:
    ran = run("quantize", llama, "--scheme", "NVFP4A16", "--json", "-o", "out")
    line = about(ran.json["warnings"], "not quantized")
    advice = line.split("; use ")[1].split(" (not for")[0]
    assert run("quantize", llama, "--scheme", "NVFP4A16", *shlex.split(advice), "-o", "less").code == 0


def test_the_warning_is_in_reports(llama: Path) -> None:
    """Of the stored file too, in its renderings."""
    run("quantize", llama, "--to", "native", "-o", "out", "-q")
    ran = run("report", "out", "--json", "-o", "r.md", "-o", "r.html")
    line = about(ran.json["warnings"], "is not quantized")
    assert line in ran.err and "model.embed_tokens.weight (4.19 MB, embedding)" in line
    for name in ("r.md", "r.html"):
        text = Path(name).read_text(encoding="utf-8")
        assert "is not quantized" in text.replace("\\", "")
    assert "| `model.embed_tokens.weight` | embedding | 1 | 4.19 MB |" in Path("r.md").read_text(encoding="utf-8")


def test_a_plan_gives_the_warning(llama: Path) -> None:
    ran = run("plan", llama, "--target-bpw", "13", "--json")
    line = about(ran.json["warnings"], "is not quantized")
    assert f"quantcli: warning: {line}\n" in ran.err and "model.embed_tokens.weight (4.19 MB" in line


def test_fused_experts_give_a_warning(moe: Path) -> None:
    ran = run("quantize", moe, "--to", "compressed-tensors", "-o", "out", "--json")
    line = about(ran.json["warnings"], "is not quantized")
    assert re.match(r"9\d % of the output \(3\.15 MB\) is not quantized: model\.layers\.\*\.mlp\.experts\.", line)
    why = "neither vLLM nor transformers loads the experts of gpt_oss quantized in this layout"
    assert f"(8 tensors, 2.10 MB, compressed-tensors cannot store it: {why})" in line
    assert line.endswith("; use --to native (not for loaders of compressed-tensors)")
    native = run("quantize", moe, "--group-size", 64, "--to", "native", "-o", "native", "--json").json
    assert native["summary"]["coverage"] > 0.99


def test_shapes_and_the_groups_that_fit(here: None) -> None:
    source = folder("in", {"model_type": "llama"}, layers("model.layers", 2, 544) | {"fits.weight": weight(256, 256)})
    line = about(run("quantize", source, "-o", "out", "--json").json["warnings"], "is not quantized")
    assert "a short last group of 32" in line and line.endswith("; use --group-size 32")
    assert run("quantize", source, "--group-size", 32, "-o", "out", "--force", "--json").json["warnings"] == []


@pytest.mark.parametrize("words", [["--include", "model.layers.0.*"], ["--exclude", "model.layers.*.mlp.*"],
                                   ["--override", "model.layers.0.*:keep"]])  # fmt: skip
def test_what_was_asked_for_is_no_surprise(words: list[str], here: None) -> None:
    source = folder("in", {}, layers("model.layers", 3, 512))
    assert run("quantize", source, *words, "-o", "out", "--json").json["warnings"] == []


def test_toys_are_left_in_peace(here: None) -> None:
    """A few dozen kB are not worth a word, whatever their share."""
    save(Path("toy.safetensors"), {"embed_tokens.weight": weight(250, 128), "a.weight": weight(64, 64)})
    ran = run("quantize", "toy.safetensors", "-o", "out")
    assert ran.code == 0 and ran.err == ""


# ---- towers -----------------------------------------------------------------------------------------------------


def test_quantized_towers_give_a_warning(here: None) -> None:
    tensors = {**layers("model.layers", 9), **layers("visual.blocks", 4), **layers("audio_tower.layers", 3)}
    source = folder("vl", {"model_type": "vl"}, tensors)
    ran = run("quantize", source, "-o", "out", "--json")
    line = about(ran.json["warnings"], "like the rest")
    assert line in ran.err and line.endswith("and 48 more (6.42 MB) are quantized like the rest (sees or hears); "
                                             "--recipe llm keeps them")  # fmt: skip
    kept = run("quantize", source, "--recipe", "llm", "-o", "kept", "--json").json
    assert sum(t["note"] == "sees or hears" for t in kept["tensors"]) == 7 * 9
    quiet = run("quantize", source, "--override", "visual.*:bits=8", "--override", "audio_tower.*:bits=8", "-o", "q8",
                "--json").json  # fmt: skip
    assert not [w for found in (kept, quiet) for w in found["warnings"] if "like the rest" in w]


def test_a_vision_model_is_no_language_model(here: None) -> None:
    tensors = {**layers("vision_model.encoder.layers", 5), "classifier.weight": weight(10, 256)}
    assert run("quantize", folder("vit", {}, tensors), "-o", "out", "--json").json["warnings"] == []


# ---- tables -----------------------------------------------------------------------------------------------------


def rows(ran: Any) -> list[str]:
    return [line for line in ran.out.splitlines() if "kept: " in line and not line.startswith("kept")]


def test_kept_rows_are_shown_where_a_table_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """In groups of one reason whose names differ in numbers; norms and biases go without saying."""
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("COLUMNS", "200")
    experts = {f"model.layers.{i}.mlp.experts.{e}.w{n}": weight(32, 4, 8) for i in range(4) for e in range(25)
               for n in (1, 2)}  # fmt: skip
    tensors = {**layers("model.layers", 4), **experts, "model.embed_tokens.weight": weight(64, 256)}
    source = folder("in", {"model_type": "llama"}, tensors)
    ran = run("quantize", source, "-o", "out")
    assert [row.split()[0] for row in rows(ran)] == [
        "model.layers.*.mlp.experts.*.w1",
        "model.layers.*.mlp.experts.*.w2",
        "model.embed_tokens.weight",
    ]
    assert all("100 tensors; compressed-tensors cannot store it" in row for row in rows(ran)[:2])
    assert "204.8 kB" in rows(ran)[0] and "32x4x8" in rows(ran)[0]
    assert re.search(r"and \d+ more: \d+ quantized .*, 8 kept; --all shows them", ran.out)
    assert len(ran.out.splitlines()) < 40
    assert len(rows(run("quantize", source, "-o", "out", "--force", "--all"))) == 200 + 8 + 1
