"""What GGUFs are made of: blocks of codes, the layout of a file, the Llama family and its words."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import GOLDEN_FILES, ROOT

from quantcli import Scheme, quantize
from quantcli.errors import DataError, QuantcliError, UsageError
from quantcli.layouts import reader as reading
from quantcli.layouts.gguf import blocks as of_32
from quantcli.layouts.gguf.blocks import block_type, obstacle
from quantcli.layouts.gguf.families import families
from quantcli.layouts.gguf.model import family_of, model_of
from quantcli.layouts.gguf.rows import turned
from quantcli.layouts.gguf.vocabulary import vocabulary
from quantcli.stores import open_source
from quantcli.stores.gguf import GgufFile
from quantcli.stores.gguf_types import TYPES, Block
from quantcli.stores.gguf_writer import GgufTensor, lay_out
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import grouping_of

GOLDEN = GOLDEN_FILES / "gguf"
TINY = ROOT / "sample_models" / "tiny-llama"
SCHEMES = {"Q4_0": Scheme(bits=4), "Q4_1": Scheme(bits=4, symmetric=False), "Q5_0": Scheme(bits=5),
           "Q5_1": Scheme(bits=5, symmetric=False), "Q8_0": Scheme(bits=8)}  # fmt: skip


# ---- blocks -----------------------------------------------------------------------------------------------------


def encode(scheme: Scheme, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, group: int) -> np.ndarray:
    """Blocks of unsigned codes (rows, cols)."""
    return of_32.encode(scheme, packing.pack(codes, scheme.bits), codes.shape[1], scale, zero, group)[0]


def decoded(kind: str, raw: np.ndarray, cols: int) -> np.ndarray:
    """What a reader makes of rows of blocks."""
    block = Block(next(t for t in TYPES.values() if t.name == kind), (len(raw), cols))
    info = TensorInfo("w", "U8", raw.shape)
    (found,) = reading.find({"w": info}, {"gguf": {"w": block}})

    def read(name: str, start: int, size: int, count: int = 1, step: int = 0) -> np.ndarray:
        assert count == 1
        return raw.reshape(-1)[start : start + size]

    return found.decode(read, 0, len(raw))


def taken_apart(kind: str, block: bytes) -> tuple[float, float, list[int]]:
    """d, m and the unsigned codes of a block, bit by bit."""
    (d,) = struct.unpack("<e", block[:2])
    at = 4 if kind.endswith("1") else 2
    m = struct.unpack("<e", block[2:4])[0] if at == 4 else 0.0
    if kind == "Q8_0":
        return d, m, [q + 128 for q in struct.unpack("<32b", block[2:])]
    high = int.from_bytes(block[at : at + 4], "little") if kind.startswith("Q5") else 0
    at += 4 if kind.startswith("Q5") else 0
    return d, m, [(block[at + j % 16] >> (4 * (j // 16)) & 15) | (high >> j & 1) << 4 for j in range(32)]


@pytest.mark.parametrize("kind", SCHEMES)
def test_blocks_of_the_gguf_package_are_made_again(kind: str) -> None:
    """Its codes and scales, taken apart bit by bit, give its bytes."""
    source = open_source(str(GOLDEN / "blocks.gguf"))
    assert isinstance(source, GgufFile)
    for name in (f"normal.{kind}", f"random.{kind}"):
        block = source.blocks[name]
        raw = bytearray(next(i for i in source.infos() if i.name == name).nbytes)
        source.read(name, 0, memoryview(raw))
        size = block.type.bytes
        parts = [taken_apart(kind, bytes(raw[at : at + size])) for at in range(0, len(raw), size)]
        rows, cols = block.shape
        d, m = (np.array([p[i] for p in parts], np.float32).reshape(rows, -1) for i in (0, 1))
        codes = np.array([p[2] for p in parts], np.uint8).reshape(rows, cols)
        scheme = (
            SCHEMES[kind]
            if SCHEMES[kind].symmetric
            else Scheme(bits=SCHEMES[kind].bits, symmetric=False, zero_point="float")
        )
        assert block_type(scheme) == kind
        made = encode(scheme, codes, d, m if kind.endswith("1") else None, 32)
        expected = np.frombuffer(bytes(raw), np.uint8)
        assert made.tobytes() == _without_negative_zeros(kind, expected).tobytes()
    source.close()


def _without_negative_zeros(kind: str, raw: np.ndarray) -> np.ndarray:
    """An offset of -0 is the same as 0."""
    size = next(t.bytes for t in TYPES.values() if t.name == kind)
    found: np.ndarray = raw.reshape(-1, size).copy()
    if kind.endswith("1"):
        m = found[:, 2:4].copy().view("<u2")
        found[:, 2:4] = np.where(m == 0x8000, 0, m).astype("<u2").view(np.uint8)
    return found


def test_the_worked_examples() -> None:
    """d 0.125 and the codes 0, 1, 1, 2, 2, ... of 32 equal steps from -1 to 1."""
    four = [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15, 15]
    made = encode(Scheme(bits=4), np.array([four], np.uint8), np.full((1, 1), 0.125, np.float32), None, 32)
    assert made.tobytes().hex(" ") == "00 30 80 91 91 a2 a2 b3 b3 c4 c4 d5 d5 e6 e6 f7 f7 f8"
    five = np.arange(32, dtype=np.uint8)[None]
    made = encode(Scheme(bits=5), five, np.full((1, 1), 0.0625, np.float32), None, 32)
    assert made.tobytes().hex(" ") == "00 2c 00 00 ff ff 00 11 22 33 44 55 66 77 88 99 aa bb cc dd ee ff"
    made = encode(Scheme(bits=8), (five + np.uint8(112)), np.full((1, 1), 1, np.float32), None, 32)
    assert made.tobytes() == b"\x00\x3c" + bytes(range(240, 256)) + bytes(range(16))


@given(st.data())
def test_nothing_is_quantized_again(data: st.DataObject) -> None:
    """The blocks of symmetric codes decode to code times scale exactly, of any group that blocks divide."""
    kind = data.draw(st.sampled_from(["Q4_0", "Q5_0", "Q8_0"]))
    scheme, rows = SCHEMES[kind], data.draw(st.integers(1, 5))
    group = data.draw(st.sampled_from([32, 64, 96, 128]))
    cols = 32 * data.draw(st.integers(1, 9))
    groups = -(-cols // group)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    codes = rng.integers(0, 1 << scheme.bits, (rows, cols), dtype=np.uint8)
    scale = (rng.uniform(0.001, 9, (rows, groups)) * rng.choice([-1, 1], (rows, groups))).astype(np.float16)
    found = decoded(kind, encode(scheme, codes, scale.astype(np.float32), None, group), cols)
    signed = codes.astype(np.float32) - (1 << (scheme.bits - 1))
    np.testing.assert_array_equal(found, signed * np.repeat(scale.astype(np.float32), group, 1)[:, :cols])


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1"])
@pytest.mark.parametrize("zero_point", ["int", "float"])
def test_zero_points_become_offsets_within_float16(kind: str, zero_point: Any) -> None:
    scheme = Scheme(bits=SCHEMES[kind].bits, symmetric=False, group_size=64, zero_point=zero_point)
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 1 << scheme.bits, (7, 192), dtype=np.uint8)
    scale = rng.uniform(0.01, 0.02, (7, 3)).astype(np.float16).astype(np.float32)
    zero = rng.integers(0, 1 << scheme.bits, (7, 3)).astype(np.float32)
    if zero_point == "float":
        zero = -zero * scale
    found = decoded(kind, encode(scheme, codes, scale, zero, 64), 192)
    s, z = np.repeat(scale, 64, 1), np.repeat(zero, 64, 1)
    exact = s * codes + z if zero_point == "float" else (codes - z) * s
    assert np.abs(found - exact).max() <= 2.0**-11 * 32 * 0.02


def test_one_scale_for_all_is_repeated() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (3, 64), dtype=np.uint8)
    found = decoded("Q8_0", encode(Scheme(bits=8), codes, np.full((1, 1), 0.5, np.float32), None, 64), 64)
    np.testing.assert_array_equal(found, (codes.astype(np.float32) - 128) / 2)


def test_what_quantize_gives_is_what_a_reader_of_the_blocks_gets() -> None:
    """What is reported is what a reader of the file gets, where scales are float16 already."""
    weights = np.random.default_rng(5).standard_normal((40, 256)).astype(np.float32)
    for kind, scheme in SCHEMES.items():
        found = quantize(weights, scheme)
        codes = (found.codes.astype(np.int16) + (1 << (scheme.bits - 1) if scheme.symmetric else 0)).astype(np.uint8)
        zero = None if found.zero_point is None else found.zero_point.astype(np.float32)
        raw = encode(scheme, codes, found.scale, zero, found.grouping.group)
        apart = np.abs(decoded(kind, raw, 256) - found.dequantize()).max()
        assert apart == 0 if scheme.symmetric else apart < 2e-3


@pytest.mark.parametrize(("scale", "bits", "fits"), [
    (65504, 4, True), (65519, 8, True), (65520, 4, False), (2.0**-24, 4, True), (1.4 * 2.0**-24, 4, False),
    (1.001 * 2.0**-14, 8, True), (1e-9, 4, False), (0.0, 4, True), (math.nan, 4, False), (math.inf, 4, False),
])  # fmt: skip
def test_scales_that_float16_does_not_hold_are_refused(scale: float, bits: int, fits: bool) -> None:
    arguments = Scheme(bits=bits), np.zeros((1, 32), np.uint8), np.full((1, 1), scale, np.float32), None, 32
    if fits:
        encode(*arguments)
    else:
        with pytest.raises(DataError, match="float16 cannot hold the scale"):
            encode(*arguments)


def test_offsets_that_float16_does_not_hold_are_refused() -> None:
    codes, scale = np.zeros((1, 32), np.uint8), np.full((1, 1), 0.01, np.float32)
    offset = Scheme(bits=4, symmetric=False, zero_point="float")
    encode(offset, codes, scale, np.full((1, 1), 1.0, np.float32), 32)
    for zero in (31.01, 1e6):
        with pytest.raises(DataError, match="float16 cannot hold the offset"):
            encode(offset, codes, scale, np.full((1, 1), zero, np.float32), 32)


@pytest.mark.parametrize(
    ("scheme", "shape", "why"),
    [
        (Scheme(bits=4, group_size=128), (8, 256), None),
        (Scheme(bits=4, group_size=128), (8, 160), None),  # a short last group of 32
        (Scheme(bits=5, group_size=32, symmetric=False), (2, 8, 64), None),
        (Scheme(bits=8, granularity="channel"), (8, 96), None),
        (Scheme(bits=8, granularity="tensor"), (8, 96), None),
        (Scheme(bits=4, group_size=128), (8, 100), "rows of 100; blocks are of 32"),
        (Scheme(bits=4, granularity="channel"), (8, 100), "rows of 100; blocks are of 32"),
        (Scheme(bits=4, group_size=48), (8, 96), "groups of 48; blocks are of 32"),
        (Scheme(bits=4, group_size=16), (8, 96), "groups of 16; blocks are of 32"),
        (Scheme(bits=3), (8, 128), "3 bits in plain groups; GGUF has 3 bits as Q3_K"),
        (Scheme(bits=8, symmetric=False), (8, 128), "8 bits with zero points; GGUF takes them with 4 and 5 bits"),
        (Scheme(format="nf4", bits=4), (8, 128), "the format nf4; GGUF takes codes of int, iq4 and mxfp4"),
        (Scheme(bits=4, granularity="channel", axis=1), (8, 128), "one scale per column"),
        (Scheme(bits=4, granularity="channel"), (8, 16, 3, 3), "its groups would cross row ends"),
    ],
)
def test_which_schemes_can_be_said(scheme: Scheme, shape: tuple[int, ...], why: str | None) -> None:
    assert obstacle(scheme, grouping_of(shape, scheme), shape) == why


# ---- the layout of a file ---------------------------------------------------------------------------------------


def test_a_file_of_the_gguf_package_is_made_again() -> None:
    whole = (GOLDEN / "small.gguf").read_bytes()
    keys = {"general.architecture": "llama", "llama.block_count": 2, "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.tokens": ["a", "b\u00e4", ""],
            "tokenizer.ggml.scores": [0.0, -1.0, -2.5], "tokenizer.ggml.token_type": [1, 2, 3]}  # fmt: skip
    tensors = [
        GgufTensor("token_embd.weight", "F32", (3, 5)),
        GgufTensor("blk.0.attn_q.weight", "Q4_0", (2, 32)),
        GgufTensor("output_norm.weight", "F16", (3,)),
    ]
    made = lay_out(keys, tensors)
    assert whole.startswith(made.header) and made.size == len(whole)
    assert [t.nbytes for t in tensors] == [60, 36, 6]
    embedding, norm = (made.offsets[n] for n in ("token_embd.weight", "output_norm.weight"))
    assert whole[embedding : embedding + 60] == np.arange(15, dtype="<f4").tobytes()
    assert whole[norm : norm + 6] == np.ones(3, "<f2").tobytes()


@given(st.lists(st.tuples(st.sampled_from(["F32", "F16", "Q4_0", "Q8_0", "Q6_K", "I8"]), st.integers(0, 3),
                          st.integers(1, 2)), min_size=1, max_size=6))  # fmt: skip
def test_what_is_laid_out_is_read(tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, int, int]]) -> None:
    """sizes are known before the first byte is written: the reader finds every tensor at its offset"""
    tensors = []
    for i, (kind, rows, blocks) in enumerate(drawn):
        weights = next(t.weights for t in TYPES.values() if t.name == kind)
        tensors.append(GgufTensor(f"t{i}", kind, (rows, blocks * weights)))
    made = lay_out({"general.architecture": "none"}, tensors)
    content = bytearray(made.size)
    content[: len(made.header)] = made.header
    for i, tensor in enumerate(tensors):
        at = made.offsets[tensor.name]
        assert at % 32 == 0
        content[at : at + tensor.nbytes] = bytes([i + 1]) * tensor.nbytes
    path = tmp_path_factory.mktemp("made") / "a.gguf"
    path.write_bytes(content)
    source = open_source(str(path))
    assert isinstance(source, GgufFile)
    found = {i.name: i for i in source.infos()}
    for i, tensor in enumerate(tensors):
        block = source.blocks.get(tensor.name)
        assert (block.shape if block else found[tensor.name].shape) == tensor.shape
        buffer = bytearray(found[tensor.name].nbytes)
        source.read(tensor.name, 0, memoryview(buffer))
        assert bytes(buffer) == bytes([i + 1]) * tensor.nbytes
    source.close()


@pytest.mark.parametrize(
    ("keys", "tensor", "words"),
    [
        ({"a": 1 << 32}, ("t", "F32", (1,)), "a: 4294967296 does not fit 32 bits"),
        ({"a": -1}, ("t", "F32", (1,)), "a: -1 does not fit 32 bits"),
        ({"a": [1 << 31]}, ("t", "F32", (1,)), "a: a number of a list does not fit 32 bits"),
        ({"a": 1e39}, ("t", "F32", (1,)), "a: 1e+39 does not fit 32 bits"),
        ({}, ("t" * 64, "F32", (1,)), "its name is longer than the 63 bytes llama.cpp has room for"),
        ({}, ("t", "F32", (1,) * 5), "t: 5 dimensions, and llama.cpp has up to 4"),
        ({}, ("t", "Q4_0", (64, 16)), "t: its rows are not whole Q4_0 blocks of 32"),
    ],
)
def test_what_gguf_cannot_hold(keys: dict[str, Any], tensor: tuple[str, str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(DataError) as caught:
        lay_out(keys, [GgufTensor(*tensor)])
    assert words in str(caught.value)
    with pytest.raises(DataError, match="two tensors have this name"):
        lay_out({}, [GgufTensor("t", "F32", (1,))] * 2)


# ---- the Llama family -------------------------------------------------------------------------------------------

CONFIG = json.loads((TINY / "config.json").read_text())


def tiny_infos() -> list[TensorInfo]:
    source = open_source(str(TINY))
    try:
        return list(source.infos())
    finally:
        source.close()


def test_rows_go_in_pairs() -> None:
    for rows, heads in [(64, 4), (32, 2), (96, 3)]:
        head = rows // heads
        expected = [h * head + j * head // 2 + i for h in range(heads) for i in range(head // 2) for j in range(2)]
        assert turned(rows, heads).tolist() == expected


def test_the_keys_of_a_llama() -> None:
    model = model_of(CONFIG, tiny_infos())
    assert model.architecture == "llama" and model.vocabulary == 128 and model.made == {} and model.notes == ()
    assert model.keys == {
        "llama.vocab_size": 128, "llama.context_length": 256, "llama.embedding_length": 64, "llama.block_count": 2,
        "llama.feed_forward_length": 192, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16, "llama.attention.value_length": 16,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0}  # fmt: skip
    by_name = {t.name: t for t in model.tensors}
    assert len(by_name) == 21
    assert {n: t.units for n, t in by_name.items() if t.order is not None} == {
        f"blk.{i}.attn_{n}.weight": heads for i in range(2) for n, heads in (("q", 4), ("k", 2))
    }
    assert {n for n, t in by_name.items() if t.float32} == {
        "output_norm.weight",
        *(f"blk.{i}.{n}_norm.weight" for i in range(2) for n in ("attn", "ffn")),
    }
    assert by_name["blk.1.ffn_down.weight"].source == "model.layers.1.mlp.down_proj.weight"


def test_a_tied_head_is_left_out() -> None:
    infos = tiny_infos()
    tied = {**CONFIG, "tie_word_embeddings": True}
    with_head, without = (model_of(tied, i) for i in (infos, [i for i in infos if i.name != "lm_head.weight"]))
    assert with_head.tensors == without.tensors and not any(t.name == "output.weight" for t in without.tensors)
    assert with_head.notes == ("lm_head.weight left out: llama.cpp does not use it",) and without.notes == ()


def test_scaled_rotation() -> None:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 8192}  # fmt: skip
    old = model_of({**CONFIG, "rope_theta": 500000.0, "rope_scaling": llama3}, tiny_infos())
    new = model_of({**CONFIG, "rope_parameters": {**llama3, "rope_theta": 500000.0}}, tiny_infos())
    divisors = old.made["rope_freqs.weight"]
    assert divisors.tolist() == new.made["rope_freqs.weight"].tolist() and old.keys == new.keys
    # Waves of 2 pi 500000^(i/8) words: up to 2048 they stay, beyond 8192 they are stretched by 8.
    waves = [2 * math.pi * 500000 ** (i / 8) for i in range(8)]
    assert divisors.dtype == np.float32 and len(divisors) == 8
    assert [float(d) for d, w in zip(divisors, waves) if w < 2048] == [1.0] * 4
    assert [float(d) for d, w in zip(divisors, waves) if w > 8192] == [8.0] * 3
    between = (8192 / waves[4] - 1) / 3
    assert divisors[4] == pytest.approx(1 / ((1 - between) / 8 + between))
    linear = model_of({**CONFIG, "rope_scaling": {"type": "linear", "factor": 2}}, tiny_infos())
    assert linear.keys["llama.rope.scaling.type"] == "linear" and linear.keys["llama.rope.scaling.factor"] == 2.0


def test_families_and_what_they_need() -> None:
    assert all(family_of({"architectures": [name]}) is family for family in families() for name in family.classes)
    with pytest.raises(DataError, match=r"self_attn\.q_norm\.weight is missing, and 3 more"):
        model_of({**CONFIG, "architectures": ["Qwen3ForCausalLM"]}, tiny_infos())
    norms = [TensorInfo(f"model.layers.{i}.self_attn.{n}_norm.weight", "BF16", (16,)) for i in range(2) for n in "qk"]
    qwen = model_of({**CONFIG, "architectures": ["Qwen3ForCausalLM"]}, tiny_infos() + norms)
    assert not any(t.order is not None for t in qwen.tensors) and sum(t.float32 for t in qwen.tensors) == 9
    bias = TensorInfo("model.layers.0.self_attn.q_proj.bias", "BF16", (64,))
    assert model_of(CONFIG, [*tiny_infos(), bias]).tensors[-1].units == 4
    mistral = model_of({**CONFIG, "architectures": ["MistralForCausalLM"], "sliding_window": 128}, tiny_infos())
    assert "sliding_window" in mistral.notes[0]


@pytest.mark.parametrize(("change", "words", "kind"), [
    ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not supported by --to gguf", UsageError),
    ({"architectures": None}, "config.json: models without architectures are not supported by --to gguf", UsageError),
    ({"architectures": [7]}, "config.json: models without architectures are not supported by --to gguf", UsageError),
    ({"hidden_size": None}, "config.json: hidden_size: is missing", DataError),
    ({"hidden_size": "64"}, "config.json: hidden_size: '64' is not a whole number of 1 or more", DataError),
    ({"hidden_size": True}, "config.json: hidden_size: True is not a whole number of 1 or more", DataError),
    ({"num_hidden_layers": 1 << 30}, "config.json: num_hidden_layers: 1073741824 layers", DataError),
    ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing, and 8 more", DataError),
    ({"num_hidden_layers": 1}, "model.layers.1.", DataError),
    ({"head_dim": None, "num_attention_heads": 5}, "config.json: hidden_size: 64 is not a multiple of the 5 heads",
     DataError),
    ({"head_dim": 15}, "config.json: head_dim: heads of 15 rows cannot be rotated", DataError),
    ({"rms_norm_eps": math.nan}, "config.json: rms_norm_eps: nan is not a number above 0", DataError),
    ({"vocab_size": 130}, "embed_tokens.weight: it is [128, 64], but [130, 64] by config.json", DataError),
    ({"hidden_act": "gelu"}, "config.json: hidden_act: llama.cpp does not support 'gelu'", DataError),
    ({"rope_scaling": {"type": "dynamic", "factor": 2}},
     "rope_scaling: 'dynamic' is not supported; supported: linear, llama3, yarn", DataError),
    ({"rope_scaling": {"type": "linear"}}, "config.json: factor: is missing", DataError),
    ({"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 8, "beta_fast": 3}},
     "yarn with beta_fast is not supported", DataError),
    ({"rope_scaling": 7}, "config.json: rope_scaling: it is not an object", DataError),
])  # fmt: skip
def test_models_that_llama_cpp_would_not_run(change: dict[str, Any], words: str, kind: type[QuantcliError]) -> None:
    with pytest.raises(kind) as caught:
        model_of({**CONFIG, **change}, tiny_infos())
    assert words in str(caught.value) and str(caught.value).isprintable()


def test_tensors_that_llama_cpp_has_no_name_for() -> None:
    with pytest.raises(DataError, match=r"model\.layers\.0\.self_attn\.gate\.weight: llama of llama\.cpp has no such"):
        model_of(CONFIG, [*tiny_infos(), TensorInfo("model.layers.0.self_attn.gate.weight", "F32", (4,))])
    useless = TensorInfo("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", (8,))
    assert len(model_of(CONFIG, [*tiny_infos(), useless]).tensors) == 21


# ---- words ------------------------------------------------------------------------------------------------------

BYTES = {f"<0x{i:02X}>": i + 3 for i in range(256)}
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def split(regex: str) -> dict[str, Any]:
    steps = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
        {**BYTE_LEVEL, "use_regex": False},
    ]
    return {"type": "Sequence", "pretokenizers": steps}


def byte_tokenizer(**changes: Any) -> dict[str, Any]:
    model = {
        "type": "BPE",
        "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3, "\u0120ab": 4},
        "merges": ["a b", ["\u0120", "ab"]],
        "byte_fallback": False,
    }
    return {
        "model": model,
        "added_tokens": [{"id": 5, "content": "<s>", "special": True}, {"id": 7, "content": "[x]", "special": False}],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": None,
        **changes,
    }


def piece_tokenizer(**changes: Any) -> dict[str, Any]:
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **BYTES, "\u2581": 259, "h": 260, "i": 261, "hi": 262, "\u2581hi": 263}
    model = {"type": "BPE", "vocab": vocab, "merges": ["h i", "\u2581 hi"], "byte_fallback": True, "unk_token": "<unk>"}
    special = [{"id": i, "content": c, "special": True} for i, c in enumerate(["<unk>", "<s>", "</s>"])]
    normalizer = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ],
    }
    return {"model": model, "added_tokens": special, "normalizer": normalizer, "pre_tokenizer": None, **changes}


def words_of(folder: Path, tokenizer: Any, settings: Any = None, config: Any = None, size: int = 8) -> Any:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return vocabulary(beside(folder), config or {}, size)


def beside(folder: Path) -> Any:
    """The files of a folder by name."""
    return lambda name: (folder / name).read_bytes() if (folder / name).exists() else None


def test_words_of_bytes(tmp_path: Path) -> None:
    post = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    }
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "[x]", "chat_template": "{{ x }}"}
    found = words_of(tmp_path, byte_tokenizer(post_processor=post), settings)
    assert found.obstacle == found.note == ""
    assert found.keys == {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "\u0120", "\u0120ab", "<s>", "[PAD6]", "[x]"],
        "tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 3, 5, 4],
        "tokenizer.ggml.merges": ["a b", "\u0120 ab"],
        "tokenizer.ggml.bos_token_id": 5,
        "tokenizer.ggml.eos_token_id": 7,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": "{{ x }}",
    }
    lay_out(found.keys, [GgufTensor("t", "F32", (1,))])


def falcon(behavior: str = "Contiguous") -> dict[str, Any]:
    """How Falcon splits text."""
    threes = {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False}
    steps = [{"type": "Punctuation", "behavior": behavior}, BYTE_LEVEL, {"type": "Digits"}, threes]
    return {"type": "Sequence", "pretokenizers": steps}


@pytest.mark.parametrize(
    ("pre", "normalizer", "ignore", "name"),
    [
        (split(ENGLISH + r"\p{N}{1,3}|" + TAIL), None, True, "llama-bpe"),
        (split(ENGLISH + r"\p{N}{1,3}|" + TAIL), None, False, "dbrx"),
        (split(ENGLISH + r"\p{N}|" + TAIL), {"type": "NFC"}, False, "qwen2"),
        (
            {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]},
            None,
            False,
            "smollm",
        ),
        (split(ENGLISH + r"\p{N}|" + TAIL), None, True, None),
        (split(ENGLISH + r"\p{N}{1,2}|" + TAIL), None, False, None),
        (split(ENGLISH + r"\p{N}{1,3}|" + TAIL), {"type": "NFC"}, True, "llama-bpe"),
        (falcon(), None, False, "falcon"),
        (falcon(behavior="Isolated"), None, False, None),
        (split(ENGLISH + r"\p{N}|" + TAIL), {"type": "Lowercase"}, False, None),
        ({**BYTE_LEVEL, "add_prefix_space": True}, None, False, None),
        ({"type": "Whitespace"}, None, False, None),
        (None, None, False, None),
    ],
)
def test_how_text_is_cut(pre: Any, normalizer: Any, ignore: bool, name: str | None, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(pre_tokenizer=pre, normalizer=normalizer)
    tokenizer["model"]["ignore_merges"] = ignore
    found = words_of(tmp_path, tokenizer)
    assert found.keys.get("tokenizer.ggml.pre") == name
    composed = name is not None and name != "qwen2" and normalizer is not None
    assert ("does not compose characters" in found.note) == composed
    if name is None:
        assert found.keys == {"tokenizer.ggml.model": "no_vocab"} and found.obstacle.startswith("tokenizer.json: it")


def test_words_that_fall_back_to_bytes(tmp_path: Path) -> None:
    settings = {"bos_token": "<s>", "add_bos_token": True}
    found = words_of(tmp_path, piece_tokenizer(), settings, {"eos_token_id": [2, 9]}, 266)
    keys = {k.removeprefix("tokenizer.ggml."): v for k, v in found.keys.items()}
    assert found.obstacle == "" and keys["model"] == "llama" and keys["add_space_prefix"] and keys["add_bos_token"]
    assert (keys["bos_token_id"], keys["eos_token_id"]) == (1, 2)
    assert keys["token_type"] == [2, 3, 3, *[6] * 256, 1, 1, 1, 1, 1, 5, 5]
    scores = dict(zip(keys["tokens"], keys["scores"]))
    # The pair that is merged first has the highest score of those that are made of others.
    assert scores["hi"] > scores["\u2581hi"] > scores["h"] and scores["<0x41>"] == scores["<s>"] == 0
    bare = piece_tokenizer(normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"})
    assert words_of(tmp_path, bare, size=266).keys["tokenizer.ggml.add_space_prefix"] is False
    meta = piece_tokenizer(
        normalizer=None,
        pre_tokenizer={"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False},
    )
    found = words_of(tmp_path, meta, size=266)
    assert found.keys["tokenizer.ggml.add_space_prefix"] is True and "adds a space before text" in found.note


def without_a_byte() -> dict[str, Any]:
    tokenizer = piece_tokenizer()
    del tokenizer["model"]["vocab"]["<0x41>"]
    return tokenizer


def bert(**normal: Any) -> dict[str, Any]:
    """A tokenizer of BERT's."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "cd"]
    usual = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True}
    return {
        "model": {
            "type": "WordPiece",
            "vocab": {word: i for i, word in enumerate(words)},
            "continuing_subword_prefix": "##",
            "unk_token": "[UNK]",
        },
        "added_tokens": [{"id": i, "content": word, "special": True} for i, word in enumerate(words[:5])],
        "normalizer": usual | normal,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "[SEP]"}}],
        },
    }


def test_word_pieces_are_marked_where_words_begin(tmp_path: Path) -> None:
    found = words_of(tmp_path, bert(), size=9)
    keys = {name.removeprefix("tokenizer.ggml."): value for name, value in found.keys.items()}
    assert keys["model"] == "bert" and found.obstacle == ""
    assert keys["tokens"] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u2581a", "b", "\u2581cd", "[PAD8]"]
    assert [keys[f"{n}_token_id"] for n in ("bos", "cls", "eos", "seperator", "mask")] == [2, 2, 3, 3, 4]
    assert keys["add_bos_token"] and keys["add_sep_token"] and not keys["add_eos_token"]
    for odd in ({"lowercase": False}, {"strip_accents": False}, {"type": "Lowercase"}):
        assert words_of(tmp_path, bert(**odd)).keys == {"tokenizer.ggml.model": "no_vocab"}


@pytest.mark.parametrize(
    ("tokenizer", "size", "why"),
    [
        (byte_tokenizer(model={"type": "WordLevel"}), 8, "its model is WordLevel, not BPE, WordPiece or Unigram"),
        (byte_tokenizer(), 7, "token id 7 is beyond the 7 rows of the embedding"),
        (piece_tokenizer(normalizer=None), 264, "its way of treating spaces is not supported"),
        (without_a_byte(), 264, "not every byte has a token"),
    ],
)
def test_words_llama_cpp_cannot_be_told_of(tokenizer: dict[str, Any], size: int, why: str, tmp_path: Path) -> None:
    found = words_of(tmp_path, tokenizer, size=size)
    assert found.keys == {"tokenizer.ggml.model": "no_vocab"} and found.obstacle == f"tokenizer.json: {why}"
    (tmp_path / "tokenizer.json").unlink()
    assert vocabulary(beside(tmp_path), {}, 8).obstacle == "there is no tokenizer.json"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": 7}, "tokenizer.json: model: it is not an object"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}, "b: two tokens have the id 0"),
        ({"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}}, "a: its id is not a whole number of 0 or more"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "a: its id is not a whole number of 0 or more"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}, "merges: it is not a list of pairs"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", 1]]}}, "merges: it is not a list of pairs"),
        ({"model": {"type": "BPE", "vocab": [], "merges": []}}, "vocab: it is not an object"),
        ({"added_tokens": [{"id": 1, "content": "a"}]}, "added_tokens: a token has two ids, or no text"),
        ({"added_tokens": 7}, "added_tokens: it is not an object"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": 7}}, "pretokenizers: it is not a list of steps"),
        ({"normalizer": []}, "normalizers: it is not an object"),
    ],
)
def test_a_tokenizer_that_is_malformed(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        words_of(tmp_path, byte_tokenizer(**change))
    assert words in str(caught.value)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(DataError, match=r"tokenizer\.json: it is not an object"):
        vocabulary(beside(tmp_path), {}, 8)
