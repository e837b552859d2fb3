"""GGUF files: what the gguf package wrote is read bit for bit, damage is refused, and they are compared with what they
were made from."""

from __future__ import annotations

import json
import math
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_parts import ARRAY, F32, STRING, U32, Tensor, architecture, f32, raw_gguf, raw_info, raw_key, text, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from making import BF16, GOLDEN_FILES, ROOT, load, one_line, run, save

from quantcli.errors import DataError, QuantcliError
from quantcli.layouts import reader as reading
from quantcli.layouts.gguf.families import of_architecture
from quantcli.layouts.gguf.names import gguf_name, hf_name, imatrix_name
from quantcli.planning.imatrix import importances
from quantcli.stores import open_source
from quantcli.stores.gguf import GgufFile
from quantcli.stores.gguf_types import TYPES

GOLDEN = GOLDEN_FILES / "gguf"
"""Written by peers/write_layouts_gguf.py."""
TINY = ROOT / "sample_models" / "tiny-llama"


# ---- files byte by byte -----------------------------------------------------------------------------------------


def opened(path: Path, content: bytes) -> GgufFile:
    path.write_bytes(content)
    source = open_source(str(path))
    assert isinstance(source, GgufFile)
    return source


def read_all(source: GgufFile, name: str) -> bytes:
    buffer = bytearray(next(i for i in source.infos() if i.name == name).nbytes)
    source.read(name, 0, memoryview(buffer))
    return bytes(buffer)


# ---- what the gguf package wrote --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blocks() -> Any:
    source = open_source(str(GOLDEN / "blocks.gguf"))
    yield source
    source.close()


def test_keys_are_plain_values(blocks: GgufFile) -> None:
    assert dict(blocks.keys) == {
        "general.architecture": "none",
        "some.words": ["a", "", "\u00e9"],
        "some.numbers": [1, -2, 3],
        "some.truth": True,
        "some.fraction": 0.5,
    }
    assert blocks.metadata["some.words"] == "3 x str" and blocks.metadata["some.truth"] == "true"
    assert blocks.version == 3 and blocks.documents == []


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("f2", "F16"), ("f4", "F32"), ("f8", "F64"), ("i1", "I8"), ("i2", "I16"), ("i4", "I32"), ("i8", "I64")],
)
def test_numbers_keep_their_type_and_their_dimensions_in_c_order(blocks: GgufFile, name: str, dtype: str) -> None:
    info = next(i for i in blocks.infos() if i.name == f"plain.{name}")
    assert (info.dtype, info.shape) == (dtype, (1, 2, 3))
    assert read_all(blocks, info.name) == np.arange(-3, 3).astype(f"<{name}").tobytes()


def found_in(source: GgufFile) -> dict[str, reading.Found]:
    infos = {i.name: i for i in source.infos()}
    return {f.name: f for f in reading.find(infos, {"gguf": source.blocks})}


def reader(source: GgufFile) -> reading.Read:
    def read(name: str, start: int, size: int, count: int = 1, step: int = 0) -> np.ndarray:
        assert count == 1
        buffer = np.empty(size, np.uint8)
        source.read(name, start, buffer.data)
        return buffer

    return read


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
                                  "IQ4_NL", "IQ4_XS", "MXFP4", "TQ1_0", "TQ2_0"])  # fmt: skip
def test_blocks_are_decoded_bit_for_bit(blocks: GgufFile, kind: str) -> None:
    found = {name: f for name, f in found_in(blocks).items() if name.endswith(f".{kind}")}
    assert len(found) == (1 if kind.endswith("K") or kind[:2] in ("IQ", "TQ") else 2)
    for name, weight in found.items():
        assert weight.scheme == kind and blocks.blocks[name].type.name == kind
        expected = np.frombuffer(read_all(blocks, f"{name}.expected"), "<u4").reshape(weight.shape)
        for first, last in [(0, 3), (0, 1), (1, 3), (2, 3)]:
            decoded = weight.decode(reader(blocks), first, last)
            assert decoded.dtype == np.float32
            np.testing.assert_array_equal(decoded.view("<u4"), expected[first:last])


def test_scales_must_be_finite(tmp_path: Path) -> None:
    infinite = struct.pack("<H", 0x7C00)
    for kind, at in [("Q4_0", 0), ("Q5_1", 2), ("Q2_K", 82), ("Q3_K", 108), ("Q6_K", 208), ("IQ4_NL", 0),
                     ("IQ4_XS", 0), ("TQ1_0", 52), ("TQ2_0", 64), ("MXFP4", 0)]:  # fmt: skip
        number, block = next((n, t) for n, t in TYPES.items() if t.name == kind)
        raw = bytearray(block.bytes)
        raw[at : at + 2] = infinite if kind != "MXFP4" else b"\xff\0"
        source = opened(tmp_path / "a.gguf", raw_gguf([], [("w", number, (1, block.weights), bytes(raw))]))
        with pytest.raises(DataError, match="w: a scale is not finite"):
            found_in(source)["w"].decode(reader(source), 0, 1)
        source.close()


def test_blocks_that_are_not_known_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(raw_gguf([], [f32("a", np.ones(3)), ("b", 22, (2, 256), bytes(164))]))
    listed = json.loads(run("inspect", path, "--json").out)
    assert [(t["name"], t["dtype"], t["shape"], t["bytes"]) for t in listed["tensors"]] == [
        ("a", "F32", [3], 12),
        ("b", "IQ2_S", [2, 256], 164),
    ]
    line = one_line(run("compare", path, path), 2)
    assert (
        line == f"{path}: b: IQ2_S blocks are not supported; supported: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, "
        "Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4, TQ1_0, TQ2_0"
    )


# ---- what is read and refused -----------------------------------------------------------------------------------


def test_version_2_another_alignment_and_no_padding_at_the_end(tmp_path: Path) -> None:
    wide = raw_key("general.alignment", U32, struct.pack("<I", 128))
    infos = [
        raw_info("a", 0, (3,), 0),
        raw_info("b", 24, (5,), 128),
        raw_info("none", 0, (0, 4), 256),
        raw_info("c", 1, (), 256),
    ]
    content = whole([wide], infos, b"A" * 12 + bytes(116) + b"12345" + bytes(123) + b"CC", version=2, alignment=128)
    source = opened(tmp_path / "named-otherwise", content)
    assert [(i.name, i.dtype, i.shape) for i in source.infos()] == [
        ("a", "F32", (3,)),
        ("b", "I8", (5,)),
        ("none", "F32", (4, 0)),
        ("c", "F16", ()),
    ]
    assert [read_all(source, n) for n in "abc"] == [b"A" * 12, b"12345", b"CC"]
    source.close()


ONE = [f32("a", np.arange(8))]
HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "this is not a GGUF file"),
    "another magic": (b"GGML" + bytes(60), "this is not a GGUF file"),
    "version 1": (raw_gguf([], ONE, version=1), "GGUF of version 1 is not supported"),
    "big-endian": (raw_gguf([], ONE, version=3 << 24), "a big-endian GGUF file is not supported"),
    "2^60 tensors": (raw_gguf([], ONE, counts=(1 << 60, 0)), f"it claims {1 << 60} tensors, more than it can hold"),
    "2^63 keys": (raw_gguf([], ONE, counts=(1, 1 << 63)), f"it claims {1 << 63} keys, more than it can hold"),
    "one tensor too many": (raw_gguf([], ONE, counts=(2, 0)), "unknown type"),
    "no tensors": (raw_gguf([raw_key("k", STRING, text("v"))], []), "the file holds no tensors"),
    "a key twice": (raw_gguf([raw_key("k", U32, bytes(4))] * 2, ONE), "k: duplicate key"),
    "a kind of key": (raw_gguf([raw_key("k", 13, bytes(4))], ONE), "k: unknown kind of value 13"),
    "a kind in a list": (raw_gguf([raw_key("k", ARRAY, struct.pack("<IQ", 77, 1))], ONE),
                         "k: unknown kind of value 77"),
    "a list of lists": (raw_gguf([raw_key("k", ARRAY, struct.pack("<IQ", ARRAY, 1))], ONE), "k: an array of arrays"),
    "2^60 numbers": (raw_gguf([raw_key("k", ARRAY, struct.pack("<IQ", F32, 1 << 60))], ONE),
                     "k: it is cut short in its header"),
    "2^60 texts": (raw_gguf([raw_key("k", ARRAY, struct.pack("<IQ", STRING, 1 << 60))], ONE),
                   "k: it is cut short in its header"),
    "a text of 2^63": (raw_gguf([raw_key("k", ARRAY, struct.pack("<IQQ", STRING, 1, 1 << 63))], ONE),
                       "k: it is cut short in its header"),
    "a name of 2^62": (whole([], [struct.pack("<Q", 1 << 62) + bytes(40)], b""), "it is cut short in its header"),
    "a truth of 2": (raw_gguf([raw_key("k", 7, b"\2")], ONE), "k: a boolean of value 2"),
    "a name of bytes": (whole([], [raw_info(b"\xff\xfe", 0, (8,), 0)], bytes(32)), "a name is not valid UTF-8"),
    "alignment 0": (raw_gguf([raw_key("general.alignment", U32, bytes(4))], ONE), "is not a power of 2"),
    "alignment 24": (raw_gguf([raw_key("general.alignment", U32, b"\x18\0\0\0")], ONE), "is not a power of 2"),
    "alignment 2^31": (raw_gguf([raw_key("general.alignment", U32, b"\0\0\0\x80")], ONE), "the file is cut short"),
    "alignment text": (raw_gguf([raw_key("general.alignment", STRING, text("32"))], ONE), "is not a power of 2"),
    "a tensor twice": (whole([], [raw_info("a", 0, (8,), 0), raw_info("a", 0, (8,), 32)], bytes(64)),
                       "a: duplicate tensor"),
    "six dimensions": (raw_gguf([], [f32("a", np.ones((1, 1, 1, 1, 1, 8)))]), "a: 6 dimensions, and GGUF has up to 5"),
    "a type that is gone": (raw_gguf([], [("a", 4, (32,), bytes(20))]), "a: unknown type 4"),
    "an unknown type": (raw_gguf([], [("a", 99, (32,), bytes(20))]), "a: unknown type 99"),
    "half a block": (raw_gguf([], [("a", 2, (2, 48), bytes(54))]), "a: rows of 48 are not whole Q4_0 blocks of 32"),
    "a number of blocks": (raw_gguf([], [("a", 2, (), bytes(18))]), "a: rows of 1 are not whole Q4_0 blocks of 32"),
    "an odd offset": (whole([], [raw_info("a", 0, (8,), 4)], bytes(36)),
                      "a: it begins at 4, which is not a multiple of 32"),
    "a hole": (whole([], [raw_info("a", 0, (8,), 32)], bytes(64)), "a: its data leaves a hole before it"),
    "an overlap": (whole([], [raw_info("a", 0, (16,), 0), raw_info("b", 0, (16,), 32)], bytes(96)),
                   "b: its data overlaps the tensor before it"),
    "2^64 weights": (whole([], [raw_info("a", 0, (1 << 63, 1 << 63, 4), 0)], bytes(32)), "the file is cut short"),
    "cut short": (raw_gguf([], ONE)[:-1], "the file is cut short: 95 bytes, 96 by its header"),
    "more behind": (raw_gguf([], ONE) + b"\0", "the file is followed by bytes that belong to no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_damage_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    content, words = HOSTILE[name]
    path.write_bytes(content)
    line = one_line(run("inspect", path), 1)
    assert line.startswith(f"{path}: ") and words in line


@given(st.data())
@settings(deadline=None)
def test_no_damage_leads_further_than_a_refusal(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """No traceback for anything a user can cause: a file with some bytes changed, or its end missing, is refused in
    a line, or every tensor lies inside of it."""
    keys = [*architecture(), raw_key("list", ARRAY, struct.pack("<IQ", STRING, 2) + text("one") + text("two"))]
    tensors = [f32("a", np.arange(9)), ("b", 2, (2, 32), bytes(36)), f32("c", np.ones((2, 2)))]
    content = bytearray(raw_gguf(keys, tensors))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.sampled_from([len(content), data.draw(st.integers(8, len(content)))]))]
    content[:4] = b"GGUF"
    path = tmp_path_factory.mktemp("damaged") / "model.gguf"
    path.write_bytes(content)
    try:
        source = open_source(str(path))
    except QuantcliError as error:
        assert str(error).startswith(f"{path}: ") and str(error).isprintable()
        return
    assert isinstance(source, GgufFile)
    for info in source.infos():
        assert len(read_all(source, info.name)) == info.nbytes <= len(content)
    assert set(map(str, dict(source.keys))) == set(source.metadata)
    source.close()


def test_opening_costs_no_memory_for_a_vocabulary(tmp_path: Path) -> None:
    """Lists are passed over: 150,000 words and 2 MB of them are not held."""
    words = b"".join(text(f"word {i}") for i in range(150_000))
    keys = [
        raw_key("tokens", ARRAY, struct.pack("<IQ", STRING, 150_000) + words),
        raw_key("scores", ARRAY, struct.pack("<IQ", F32, 150_000) + bytes(600_000)),
    ]
    path = tmp_path / "model.gguf"
    path.write_bytes(raw_gguf(keys, ONE))
    tracemalloc.start()
    source = open_source(str(path))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 200_000 and peak < 4_000_000
    assert isinstance(source, GgufFile)
    assert source.keys["tokens"][::50_000] == ["word 0", "word 50000", "word 100000"]
    assert source.keys["scores"] == [0.0] * 150_000
    source.close()


# ---- names ------------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_gguf_package() -> None:
    table = json.loads((GOLDEN / "names.json").read_text())
    qwen = of_architecture("qwen3")
    assert {name: gguf_name(name, qwen) for name in table} == table
    assert {hf_name(name, qwen) for name in table.values()} == set(table)
    assert gguf_name("model.layers.12.self_attn.k_proj.bias") == "blk.12.attn_k.bias"
    for other in ("model.layers.01.mlp.up_proj.weight", "model.layers.1.mlp.up_proj", "lm_head", "lm_head.scale",
                  "model.layers.1.mlp.experts.0.up_proj.weight", "x.model.norm.weight", ""):  # fmt: skip
        assert gguf_name(other) is None and imatrix_name(other) in (None, ("blk.1.ffn_up_exps.weight", 0))
    assert imatrix_name("model.layers.0.block_sparse_moe.experts.3.w2.weight") == ("blk.0.ffn_down_exps.weight", 3)
    assert hf_name("blk.0.ffn_up_exps.weight") == "model.layers.0.mlp.experts.up_proj.weight"
    assert hf_name("rope_freqs.weight") is None


# ---- compare and inspect ----------------------------------------------------------------------------------------


def tiny() -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for path in sorted(TINY.glob("*.safetensors")):
        found |= {name: stored.array.astype(np.float32) for name, stored in load(path).items()}
    return found


def turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp has them, one by one: row 2 i + j of a head is row i of its half j."""
    head = len(weight) // heads
    out = np.empty_like(weight)
    for h in range(heads):
        for i in range(head // 2):
            for j in range(2):
                out[h * head + 2 * i + j] = weight[h * head + j * head // 2 + i]
    return out


def as_gguf(weights: dict[str, np.ndarray], *, turn: bool = True) -> list[Tensor]:
    tensors = []
    for name, weight in weights.items():
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2], 0) if turn else 0
        tensors.append(f32(str(gguf_name(name)), turned(weight, heads) if heads else weight))
    return tensors


def compared(*arguments: Any) -> tuple[dict[str, Any], str]:
    ran = run("compare", *arguments, "--json")
    assert ran.code == 0, ran
    return json.loads(ran.out), ran.err


@pytest.mark.parametrize("forward", [True, False])
def test_a_gguf_is_compared_under_the_names_of_its_checkpoint(forward: bool, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(raw_gguf(architecture(), [*as_gguf(tiny()), f32("rope_freqs.weight", np.ones(8))]))
    found, err = compared(*((TINY, path) if forward else (path, TINY)))
    assert (
        err == f"quantcli: {path}: names of llama.cpp (llama) are mapped to those of the checkpoint, "
        f"and rows of attn_q and attn_k are reordered\nquantcli: warning: only in {path}: rope_freqs.weight\n"
    )
    assert len(found["tensors"]) == 21 and all(t["exact"] for t in found["tensors"])
    assert found["comparison"]["new" if forward else "vanished"] == ["rope_freqs.weight"]
    assert "names of llama.cpp" not in run("compare", TINY, path, "-q").err


def test_mxfp4_is_decoded_and_other_blocks_when_it_is_asked_for(tmp_path: Path) -> None:
    """a format in which models are published, in a GGUF as elsewhere"""
    for kind, wanted in (("MXFP4", 0), ("Q4_0", 1)):
        number, block = next((n, t) for n, t in TYPES.items() if t.name == kind)
        raw = np.random.default_rng(4).integers(100, 120, 64 * 2 * block.bytes, np.uint8).tobytes()
        path = tmp_path / f"{kind}.gguf"
        path.write_bytes(raw_gguf(architecture(), [("blk.0.ffn_up.weight", number, (64, 2 * block.weights), raw)]))
        ran = run("quantize", path, "--group-size", "32", "-o", tmp_path / f"{kind}.safetensors")
        assert ran.code == wanted
        assert "source: MXFP4 (1 tensor, decoded to float32)" in ran.out if not wanted else "--requantize" in ran.err


def test_what_is_quantized_from_a_gguf_is_verified_against_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """its tensors have the names and the order of rows of a checkpoint, those of the original llama.cpp's"""
    monkeypatch.chdir(tmp_path)
    Path("tiny.gguf").write_bytes(raw_gguf(architecture(), as_gguf(tiny())))
    Path("other.gguf").write_bytes(raw_gguf(architecture(), as_gguf(tiny(), turn=False)))
    assert run("quantize", "tiny.gguf", "--group-size", "64", "-o", "out.safetensors", "-q").code == 0
    assert run("verify", "out.safetensors", "--source", "tiny.gguf").code == 0
    ran = run("verify", "out.safetensors", "--source", "other.gguf")
    assert ran.code == 1 and "q_proj" in ran.out and "v_proj" not in ran.out
    direct = run("report", "out.safetensors", "--json").json["summary"]["sqnr_db"]
    assert run("report", "out.safetensors", "--against", "tiny.gguf", "--json").json["summary"]["sqnr_db"] == direct


def test_rows_are_put_back_in_pieces_too(tmp_path: Path) -> None:
    """Heads of 32 rows of 40,000 weights are more than is compared at a time."""
    weight = np.random.default_rng(0).standard_normal((64, 40_000)).astype(np.float32)
    name, bias = "model.layers.0.self_attn.k_proj.weight", np.arange(64, dtype=np.float32)
    a, b = tmp_path / "a.safetensors", tmp_path / "b"
    save(a, {name: weight, "model.layers.0.self_attn.k_proj.bias": bias})
    b.write_bytes(
        raw_gguf(
            architecture(), [f32("blk.0.attn_k.weight", turned(weight, 2)), f32("blk.0.attn_k.bias", turned(bias, 2))]
        )
    )
    assert all(t["exact"] for t in compared(a, b)[0]["tensors"])
    b.write_bytes(raw_gguf(architecture(kv=4), [f32("blk.0.attn_k.weight", turned(weight, 2))]))
    assert not compared(a, b)[0]["tensors"][0]["exact"]


def test_other_architectures_keep_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(raw_gguf(architecture("qwen3"), as_gguf(tiny(), turn=False)))
    found, err = compared(TINY, path)
    assert all(t["exact"] for t in found["tensors"]) and err.endswith("of the checkpoint\n")
    path.write_bytes(raw_gguf(architecture("mamba"), as_gguf(tiny(), turn=False)))
    assert one_line(run("compare", TINY, path), 2) == f"{path}: no tensor has the same name in both"


def test_names_that_meet_as_they_are_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(raw_gguf(architecture(), [f32(n, w) for n, w in tiny().items()]))
    found, err = compared(TINY, path)
    assert err == "" and all(t["exact"] for t in found["tensors"])


@pytest.mark.parametrize("shape", [(), (0,), (8, 0), (7,)])
def test_rows_that_are_no_heads(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(raw_gguf(architecture(), [f32("blk.0.attn_k.weight", np.ones(shape))]))
    line = one_line(run("compare", TINY, path), 2)
    assert line == f"{path}: blk.0.attn_k.weight: {shape[0] if shape else 1} rows do not divide into 2 heads"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (architecture()[:1], "llama.attention.head_count: it does not give the number of heads of this layer"),
        (architecture(heads=0), "llama.attention.head_count: it does not give the number of heads of this layer"),
        (architecture(heads=3), "blk.0.attn_q.weight: 64 rows do not divide into 3 heads"),
    ],
)
def test_heads_that_make_no_sense(keys: list[bytes], words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(raw_gguf(keys, as_gguf(tiny())))
    assert one_line(run("compare", TINY, path), 2) == f"{path}: {words}"


def test_inspect_shows_what_blocks_stand_for(tmp_path: Path) -> None:
    ran = run("inspect", GOLDEN / "blocks.gguf", "--stats")
    assert ran.code == 0
    row = next(line for line in ran.out.splitlines() if line.startswith("normal.Q8_0 "))
    assert row.split()[1:3] == ["Q8_0", "3x96"] and " 30 " in row
    found = json.loads(run("inspect", GOLDEN / "blocks.gguf", "--stats", "--json").out)
    tensor = next(t for t in found["tensors"] if t["name"] == "random.Q6_K")
    other = next(t for t in found["tensors"] if t["name"] == "random.Q6_K.expected")
    assert tensor["stats"] == other["stats"] and tensor["parameters"] == other["parameters"] == 3 * 512
    assert (tensor["dtype"], tensor["scheme"], tensor["disposition"]) == ("Q6_K", "Q6_K", "quantized")
    assert found["quantized"] and found["metadata"]["some.numbers"] == "3 x i32"


def test_floats_of_a_gguf_can_be_quantized_and_blocks_not(tmp_path: Path) -> None:
    weight = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    path, out = tmp_path / "a.gguf", tmp_path / "out.safetensors"
    path.write_bytes(raw_gguf(architecture(), [("blk.0.ffn_up.weight", 30, (64, 64), weight.astype(BF16).tobytes())]))
    assert run("quantize", path, "-o", out).code == 0
    original = save(tmp_path / "a.safetensors", {"blk.0.ffn_up.weight": weight.astype(BF16)})
    assert run("quantize", original, "-o", tmp_path / "same.safetensors").code == 0
    assert (
        load(out)["model.layers.0.mlp.up_proj.weight_packed"]
        == load(tmp_path / "same.safetensors")["blk.0.ffn_up.weight_packed"]
    )
    line = one_line(run("quantize", GOLDEN / "blocks.gguf", "-o", tmp_path / "no.safetensors"), 1)
    assert "quantized already" in line and not (tmp_path / "no.safetensors").exists()


# ---- importance matrices ----------------------------------------------------------------------------------------

IMATRIX = [raw_key("general.type", STRING, text("imatrix"))]


def test_importances_are_mean_squares_by_tensor(tmp_path: Path) -> None:
    sums = np.array([[2, 4, 6], [7, 8, 9], [1, 2, 4]])
    source = opened(tmp_path / "i.gguf", raw_gguf(IMATRIX, [
        f32("blk.0.attn_q.weight.in_sum2", sums[0]), f32("blk.0.attn_q.weight.counts", np.array([4])),
        f32("blk.0.ffn_up_exps.weight.counts", np.array([[8], [0], [2]])),
        f32("blk.0.ffn_up_exps.weight.in_sum2", sums),
        f32("output.weight.in_sum2", sums[:1]), f32("output.weight.counts", np.array([[0]]))]))  # fmt: skip
    found = importances(source)
    assert {n: v.tolist() for n, v in found.items()} == {
        "blk.0.attn_q.weight": [0.5, 1.0, 1.5],
        "blk.0.ffn_up_exps.weight": [[0.25, 0.5, 0.75], [1, 1, 1], [0.5, 1, 2]],
        "output.weight": [1.0, 1.0, 1.0],
    }
    assert all(v.dtype == np.float64 for v in found.values())
    source.close()


@pytest.mark.parametrize(
    ("keys", "tensors", "words"),
    [
        ([], [f32("w.in_sum2", np.ones(3)), f32("w.counts", np.ones(1))], "is not an importance matrix; llama-imatrix"),
        (IMATRIX, [f32("w", np.ones(3))], "is not an importance matrix"),
        (IMATRIX, [f32("w.in_sum2", np.ones(3))], "w: counts is missing"),
        (IMATRIX, [f32("w.counts", np.ones(1))], "w: in_sum2 is missing"),
        (IMATRIX, [f32("w.in_sum2", np.ones(3)), f32("w.counts", np.ones(2))], "w: sums and counts differ in shape"),
        (
            IMATRIX,
            [f32("w.in_sum2", np.ones((2, 0))), f32("w.counts", np.ones(2))],
            "w: sums and counts differ in shape",
        ),
        (IMATRIX, [f32("w.in_sum2", np.ones(3)), ("w.counts", 28, (1,), bytes(8))], "w: sums and counts are not F32"),
    ],
)
def test_what_is_no_importance_matrix(keys: list[bytes], tensors: list[Tensor], words: str, tmp_path: Path) -> None:
    source = opened(tmp_path / "i.gguf", raw_gguf(keys, tensors))
    with pytest.raises(DataError, match=r"i\.gguf: ") as caught:
        importances(source)
    assert words in str(caught.value)
    source.close()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_importances_must_be_numbers(bad: float, tmp_path: Path) -> None:
    source = opened(
        tmp_path / "i.gguf", raw_gguf(IMATRIX, [f32("w.in_sum2", np.array([1, bad])), f32("w.counts", np.ones(1))])
    )
    with pytest.raises(DataError, match=r"w\.in_sum2: a number is negative or not finite"):
        importances(source)["w"]
    source.close()
