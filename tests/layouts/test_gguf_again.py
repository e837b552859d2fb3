"""GGUFs made of GGUFs: their keys, tokenizer and names stay, whatever the architecture; their types change. To other
targets go those whose names are known, as a checkpoint has them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_parts import ARRAY, STRING, U32, Tensor, architecture, f32, raw_gguf, raw_key, text
from making import BF16, load, one_line, run
from strategies import gaussian

from quantcli.layouts.gguf.names import float_only
from quantcli.models import open_model
from quantcli.stores import open_source
from quantcli.stores.gguf import GgufFile

WORDS = raw_key(
    "tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 3) + text("a") + text("\xe4") + text(b"\xff")
)
KEYS = [
    *architecture("openelm"),
    raw_key("general.name", STRING, text("A model")),
    raw_key("general.file_type", U32, struct.pack("<I", 1)),
    raw_key("general.alignment", U32, struct.pack("<I", 32)),
    raw_key("openelm.attention.sliding_window", 10, struct.pack("<Q", 512)),
    raw_key("some.small.number", 3, struct.pack("<h", -5)),
    WORDS,
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def weights(seed: int, rows: int = 64) -> np.ndarray:
    return gaussian(rows, 64, seed=seed)


def half(name: str, values: np.ndarray) -> Tensor:
    return name, 30, values.shape, values.astype(BF16).tobytes()


TENSORS = [
    half("token_embd.weight", weights(0, 128)),
    half("blk.0.attn_q.weight", weights(1)),
    f32("blk.0.attn_norm.weight", weights(2)[0]),
    half("blk.0.ffn_gate.weight", weights(3)),
    f32("blk.0.ffn_gate_inp.weight", weights(4)),
    half("blk.0.ffn_gate_exps.weight", gaussian(2, 64, 64, seed=5)),
    f32("output_norm.weight", weights(6)[0]),
]


def model(name: str = "model.gguf", keys: list[bytes] = KEYS, tensors: list[Tensor] = TENSORS) -> Path:
    path = Path(name)
    path.write_bytes(raw_gguf(keys, tensors))
    return path


def held(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """The keys of a file as they are stored, and the types of its tensors."""
    source = open_source(str(path))
    assert isinstance(source, GgufFile)
    types = {i.name: source.blocks[i.name].type.name if i.name in source.blocks else i.dtype for i in source.infos()}
    keys = dict(source.raw_keys())
    source.close()
    return keys, types


def number(value: bytes) -> int:
    kind, found = struct.unpack("<II", value)
    assert kind == U32
    return int(found)


def test_keys_stay_byte_for_byte_and_types_change() -> None:
    before, _ = held(model())
    assert run("quantize", "model.gguf", "--bits", "4", "--to", "gguf", "-o", "out.gguf").code == 0
    keys, types = held(Path("out.gguf"))
    assert types == {
        "token_embd.weight": "Q8_0",  # the head too, as there is none
        "blk.0.attn_norm.weight": "F32",
        "blk.0.attn_q.weight": "Q4_0",
        "blk.0.ffn_gate.weight": "Q4_0",
        "blk.0.ffn_gate_exps.weight": "Q4_0",
        "blk.0.ffn_gate_inp.weight": "F32",
        "output_norm.weight": "F32",
    }
    own = {"general.file_type", "general.quantization_version", "quantcli.version", "quantcli_export"}
    assert keys.keys() - before.keys() == own - {"general.file_type"}
    assert before.keys() - keys.keys() == {"general.alignment"}
    assert all(keys[name] == before[name] for name in before.keys() & keys.keys() - own)
    assert (number(keys["general.file_type"]), number(keys["general.quantization_version"])) == (2, 2)


def test_other_options_choose_types() -> None:
    model()
    options = ["--keep-embeddings", "--override", "*.attn_q:bits=8", "--override", "*_exps:bits=4,symmetric=false"]
    assert run("quantize", "model.gguf", "--bits", "5", *options, "-o", "out.gguf").code == 0
    _, types = held(Path("out.gguf"))
    assert types["token_embd.weight"] == "BF16" and types["blk.0.attn_q.weight"] == "Q8_0"
    assert types["blk.0.ffn_gate_exps.weight"] == "Q4_1" and types["blk.0.ffn_gate.weight"] == "Q5_0"


def test_blocks_need_requantize_and_are_decoded_for_it() -> None:
    model()
    assert run("quantize", "model.gguf", "--bits", "8", "--to", "gguf", "-o", "eight.gguf").code == 0
    assert "--requantize" in one_line(run("quantize", "eight.gguf", "--bits", "4", "-o", "four.gguf"), 1)
    assert run("quantize", "eight.gguf", "--bits", "4", "--requantize", "-o", "four.gguf").code == 0
    keys, types = held(Path("four.gguf"))
    assert (
        types["blk.0.attn_q.weight"] == "Q4_0"
        and keys["tokenizer.ggml.tokens"] == held(Path("eight.gguf"))[0]["tokenizer.ggml.tokens"]
    )
    with open_model("eight.gguf") as a, open_model("four.gguf") as b:
        before, after = (m["blk.0.attn_q.weight"].read(0, 64 * 64) for m in (a, b))
    assert 0 < np.abs(before - after).max() < np.abs(before).max() / 7


def test_a_file_that_names_no_architecture_is_refused() -> None:
    model(keys=[WORDS])
    assert "general.architecture: it is missing" in one_line(run("quantize", "model.gguf", "-o", "out.gguf"), 1)
    assert run("quantize", "model.gguf", "--container", "-o", "out.gguf").code == 0


# ---- other targets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["mlx", "compressed-tensors", "awq"])
def test_names_that_are_not_known_go_to_no_other_tool(target: str) -> None:
    model()
    line = one_line(run("quantize", "model.gguf", "--to", target, "-o", "out"), 2)
    assert f"llama.cpp's names for openelm, which loaders of {target} do not know" in line and "--to gguf" in line
    assert not Path("out").exists()


def test_native_keeps_names_that_are_not_known() -> None:
    model()
    assert run("quantize", "model.gguf", "-o", "out.safetensors").code == 0
    assert "blk.0.ffn_gate.weight_packed" in load(Path("out.safetensors"))


def test_names_that_are_known_are_those_of_the_checkpoint() -> None:
    rows = np.arange(16, dtype=np.float32)[:, None] * np.ones((16, 64), np.float32)
    model(
        keys=architecture("llama", 2, 1),
        tensors=[f32("blk.0.attn_q.weight", rows), half("blk.0.ffn_up.weight", weights(1))],
    )
    done = run("quantize", "model.gguf", "--to", "mlx", "--exclude", "*q_proj*", "-o", "out.safetensors")
    assert done.code == 0 and "tensors of llama under the names" in done.err
    found = load(Path("out.safetensors"))
    assert "model.layers.0.mlp.up_proj.scales" in found
    # Of a head of 8 rows the first, third, fifth and seventh are those of its first half.
    assert found["model.layers.0.self_attn.q_proj.weight"].array[:, 0].tolist() == [
        0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]  # fmt: skip


# ---- several files ----------------------------------------------------------------------------------------------


def split(number: int, count: int, total: int) -> list[bytes]:
    fields = {"split.no": number, "split.count": count}
    own = [raw_key(name, 2, struct.pack("<H", value)) for name, value in fields.items()]
    return [*own, raw_key("split.tensors.count", 5, struct.pack("<i", total))]


def shards(groups: list[list[Tensor]], total: int | None = None) -> list[Path]:
    count = len(groups)
    total = sum(map(len, groups)) if total is None else total
    return [
        model(f"m-{i + 1:05d}-of-{count:05d}.gguf", [*(KEYS if i == 0 else []), *split(i, count, total)], group)
        for i, group in enumerate(groups)
    ]


def test_several_files_are_one_model() -> None:
    model()
    shards([[], TENSORS[:3], TENSORS[3:]])
    assert run("quantize", "m-00001-of-00003.gguf", "--bits", "4", "--to", "gguf", "-o", "a.gguf").code == 0
    assert run("quantize", "model.gguf", "--bits", "4", "--to", "gguf", "-o", "b.gguf").code == 0
    a, b = held(Path("a.gguf")), held(Path("b.gguf"))
    assert a == b and not any(name.startswith("split.") for name in a[0])
    assert Path("a.gguf").read_bytes() == Path("b.gguf").read_bytes()


def test_files_that_do_not_belong_together_are_refused() -> None:
    paths = shards([TENSORS[:3], TENSORS[3:]])
    assert f"name {paths[0]}" in one_line(run("inspect", paths[1]), 1)
    paths[1].rename("away")
    assert "m-00002-of-00002.gguf" in one_line(run("inspect", paths[0]), 1)
    shards([TENSORS[:3], TENSORS[3:]], total=99)
    assert "split.tensors.count: 99, and the files hold 7" in one_line(run("inspect", paths[0]), 1)
    shards([TENSORS[:3], TENSORS[2:]])
    assert "blk.0.attn_norm.weight: two files hold this tensor" in one_line(run("inspect", paths[0]), 1)
    model(paths[1].name, split(0, 2, 7), TENSORS[3:])
    assert "split.no: 0, and 1" in one_line(run("inspect", paths[0]), 1)


def test_tensors_that_llama_quantize_leaves() -> None:
    names = ["blk.3.ssm_a", "blk.3.ssm_conv1d.weight", "position_embd.weight", "token_types.weight",
             "blk.1.time_mix_w1.weight", "v.blk.1.attn_q_norm.weight", "v.patch_embd.weight",
             "blk.0.shortconv.conv.weight", "per_layer_model_proj.weight"]  # fmt: skip
    assert all(map(float_only, names))
    others = ["blk.1.ffn_gate.weight", "output.weight", "token_embd.weight", "blk.0.ffn_down_exps.weight",
              "blk.1.time_mix_key.weight", "model.layers.0.token_types.weight", "v.blk.0.ffn_up.weight"]  # fmt: skip
    assert not any(map(float_only, others))
