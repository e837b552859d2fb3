"""Exports against bytes of the real tools, against the readers of these layouts, and against layouts written out
here; every target with every awkward shape, in any cut, at any number of threads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import conformance
import numpy as np
import pytest
from making import (
    BF16,
    GOLDEN_FILES,
    ROOT,
    change_header,
    digest,
    header_of,
    left_behind,
    load,
    metadata_of,
    one_line,
    raw_file,
    raw_tensors,
    run,
    save,
    sparse_model,
    to,
)
from onnx_parts import fields
from safetensors.numpy import load_file, save_file
from strategies import gaussian

import quantcli
from quantcli import Scheme, registry
from quantcli.kernels import QuantParams
from quantcli.layouts import awq, pieces
from quantcli.layouts.onnx import write as onnx
from quantcli.layouts.reader import is_published
from quantcli.layouts.writer import Codes, named
from quantcli.models import open_model
from quantcli.tensors import packing
from quantcli.tensors.decided import Quantized
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan, grouping_of

GOLDEN = GOLDEN_FILES
TARGETS = registry.names("layouts", "WRITES")
LLAMA = ROOT / "sample_models" / "tiny-llama"

SCHEMES: dict[str, list[str]] = {
    "mlx": ["w2g32", "w3g64-asym", "w4g128", "w4g32-asym", "w4g64-float", "w5c", "w6g96", "w8t", "w4g256"],
    "gptq": ["w2g32-asym", "w3g64", "w4g128", "w4g32-asym", "w8c", "w4t", "w8c-asym", "w4g48"],
    "awq": ["w4g32", "w4g16-asym", "w4c", "w4t-asym", "w4g96"],
    "onnx": ["w2g16", "w4g32-asym", "w4g48", "w8g128", "w8c-asym", "w2c-asym", "w4t", "w2g32-asym"],
    "comfyui": ["w8c", "w8t"],
    "bnb-nf4": ["nf4g64", "nf4g128", "nf4c"],
    "gguf": ["w4g32", "w4g128", "w4g64-asym", "w4g32-float", "w5g96", "w5c-asym", "w8g32", "w8c", "w8t"],
    "compressed-tensors": ["w2g32", "w3g48-asym", "w4g64", "w7c-asym", "w8t", "w4c"],
}
"""Schemes that targets take, as `Scheme.name` has them."""

DERIVED = {target: {made.name: made for made in conformance.schemes_of_target(target)} for target in TARGETS
           if target not in SCHEMES}  # fmt: skip
"""Those of other targets, from what these say that they accept."""

SCHEMES |= {target: list(schemes) for target, schemes in DERIVED.items()}

SHAPES: list[tuple[int, ...]] = [
    (64, 128), (32, 96), (40, 64), (33, 64), (8, 32), (1, 32), (64, 40), (5, 100), (4, 4, 64), (16, 8, 3, 3), (200,),
    (96, 256), (256, 16), (1, 1), (2, 8), (32, 192), (7, 331), (64, 48),
]  # fmt: skip


def flags(name: str) -> list[str]:
    """The options for a scheme by its name."""
    for schemes in DERIVED.values():
        if name in schemes:
            return conformance.options_of(schemes[name])
    first, _, kind = name.partition("-")
    end = next(i for i in range(len(first) - 1, 0, -1) if first[i] in "gct")
    what, size = first[:end], first[end:]
    found = ["--type", what] if what == "nf4" else ["--bits", what.removeprefix("w")]
    found += ["--granularity", {"c": "channel", "t": "tensor"}[size]] if size in "ct" else ["--group-size", size[1:]]
    if kind:
        found += ["--asymmetric", *(["--zero-point", "float"] if kind == "float" else [])]
    return found


def in_float16(name: str) -> list[str]:
    """The options for a scheme by its name, with scales in float16 where these are floats."""
    found = flags(name)
    return found if "--scale-dtype" in found else [*found, "--scale-dtype", "float16"]


def scheme(name: str) -> Scheme:
    """The scheme of a name."""
    for schemes in DERIVED.values():
        if name in schemes:
            return schemes[name]
    options = dict(zip(flags(name)[::2], flags(name)[1::2])) if "asym" not in name and "float" not in name else {}
    fields: dict[str, Any] = {
        "format": options.get("--type", "int"), "bits": int(options.get("--bits", 4)),
        "granularity": options.get("--granularity", "group"),
        "group_size": int(g) if (g := options.get("--group-size")) else None,
    }  # fmt: skip
    found = Scheme(**fields)
    assert options and found.name == name
    return found


def usual(target: str) -> str:
    """The scheme of most people, or one that the target takes."""
    return "w4g64" if named(target).accepts.obstacle(scheme("w4g64")) is None else SCHEMES[target][0]


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """A model of awkward shapes in three dtypes, with tensors that are never quantized."""
    weights = {
        f"m{i}.weight": gaussian(*shape, seed=i, scale=0.02).astype((np.float32, np.float16, BF16)[i % 3])
        for i, shape in enumerate(SHAPES)
    }
    return save(
        tmp_path / "model.safetensors",
        {**weights, "plain": gaussian(64, 64), "ids": np.arange(5)},
        {"format": "pt", "note": "mine"},
    )


def native_values(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a native file, decoded by quantcli: what an export must stand for."""
    with quantcli.open(str(path)) as model:
        return {name: tensor.numpy() for name, tensor in model.items()}


# ---- readers written for these tests ----------------------------------------------------------------------------


def nf4(path: Path) -> dict[str, np.ndarray]:
    """bitsandbytes by its specification: high nibble first, code[index] * absmax of the flat block."""
    tensors, found = load(path), {}
    for name in [n.removesuffix(".absmax") for n in tensors if n.endswith(".absmax")]:
        state = json.loads(tensors[f"{name}.quant_state.bitsandbytes__nf4"].data)
        assert state["quant_type"] == "nf4" and set(state) == {"quant_type", "blocksize", "dtype", "shape"}
        packed, absmax = tensors[name].array.reshape(-1), tensors[f"{name}.absmax"].array
        codes = np.stack([packed >> 4, packed & 15], 1).reshape(-1)
        levels = tensors[f"{name}.quant_map"].array
        found[name] = (levels[codes] * np.repeat(absmax, state["blocksize"])).reshape(state["shape"])
    return found


def graph(path: Path) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Initializers and nodes of an ONNX file."""
    (found,) = [value for key, value in fields(path.read_bytes()) if key == 7]
    tensors, nodes = {}, []
    dtypes = {1: "<f4", 2: "u1", 7: "<i8", 10: "<f2", 16: "<u2"}
    for key, value in fields(found):
        if key == 5:
            own = [*fields(value)]
            dims = tuple(v for k, v in own if k == 1)
            kind, name = dict(own)[2], dict(own)[8].decode()
            raw = dict(own).get(9)
            if raw is None:
                place = {dict(fields(v))[1].decode(): dict(fields(v))[2].decode() for k, v in own if k == 13}
                assert dict(own)[14] == 1
                start, size = int(place["offset"]), int(place["length"])
                assert start % 4096 == 0
                raw = (path.parent / place["location"]).read_bytes()[start : start + size]
            tensors[name] = np.frombuffer(raw, dtypes[kind]).reshape(dims)
        elif key == 1:
            own = [*fields(value)]
            assert dict(own)[4] == b"MatMulNBits" and dict(own)[7] == b"com.microsoft"
            attributes = [dict(fields(v)) for k, v in own if k == 5]
            nodes.append({**{a[1].decode(): a[3] for a in attributes}, "input": [v.decode() for k, v in own if k == 1]})
    return tensors, nodes


def matmuls(path: Path) -> dict[str, np.ndarray]:
    """The weights of MatMulNBits nodes by the operator's documentation, bit by bit."""
    tensors, nodes = graph(path)
    found = {}
    for node in nodes:
        n, k, bits, block = (node[key] for key in ("N", "K", "bits", "block_size"))
        assert block >= 16 and block & (block - 1) == 0 and bits in (2, 4, 8)
        codes, scales, *zeros = (tensors[name] for name in node["input"][1:])
        blocks = -(-k // block)
        assert codes.shape == (n, blocks, block * bits // 8) and scales.shape == (n, blocks)

        def stream(values: np.ndarray, count: int, bits: int = bits) -> np.ndarray:
            ones = np.unpackbits(values.reshape(len(values), -1), axis=1, bitorder="little")[:, : count * bits]
            return ones.reshape(len(values), count, bits) @ (1 << np.arange(bits))

        u = stream(codes, blocks * block).reshape(n, blocks, block)
        assert not u.reshape(n, -1)[:, k:].any()
        z = stream(zeros[0], blocks) if zeros else np.full((n, blocks), 1 << (bits - 1))
        assert not zeros or zeros[0].shape == (n, -(-blocks * bits // 8))
        values = (u - z[:, :, None]).astype(np.float32) * scales[:, :, None]
        found[node["input"][1]] = values.reshape(n, -1)[:, :k]
    return found


def exported_values(target: str, path: Path) -> dict[str, np.ndarray]:
    """Every weight of an export, decoded by a reader that knows nothing of the exporter."""
    if target == "bnb-nf4":
        return nf4(path)
    if target == "onnx":
        return matmuls(path)

    config = None
    if target == "compressed-tensors" and "quantcli" in metadata_of(path):
        # Not as the native file it is, but as its own client sees it.
        with quantcli.open(str(path)) as model:
            config = named(target).convert([t.stored.decided for t in model.values()], lambda name: None).config
        path = strip(path)
    with open_model(str(path), config) as model:
        return {n: v.read(0, v.info.numel).reshape(v.info.shape) for n, v in model.quantized.items()}


def plain_tensors(path: Path) -> dict[str, bytes]:
    """The bytes of every tensor of a file as it stores them."""
    with quantcli.open(str(path)) as model:
        return {n: t.read_bytes(n, 0, t.stored.info.nbytes).tobytes() for n, t in model.items()}


def strip(path: Path) -> Path:
    """A file without quantcli's header document."""
    bare = path.with_name("bare.safetensors")
    bare.write_bytes(raw_tensors({n: (t.dtype, t.shape, t.data) for n, t in load(path).items()}))
    return bare


# ---- every target x every shape ---------------------------------------------------------------------------------

CASES = [(target, name) for target in TARGETS for name in SCHEMES[target]]


def fits(target: str, name: str, shape: tuple[int, ...]) -> bool | None:
    """Whether a target can store a weight of this shape, told from what is known of the targets one by one; None for
    one of which nothing is known here."""
    if target in DERIVED:
        return None
    group = int("".join(c for c in name.partition("-")[0].partition("g")[2])) if "g" in name else None
    if target == "mlx":
        if len(shape) < 2 or (len(shape) > 2 and shape[-1] < (group or 1 << 30)) or shape[-1] % 32:
            return False  # natively rows are joined where they are shorter than a group
        return shape[-1] <= (group or shape[-1]) or shape[-1] % (group or 1) == 0
    if target == "gguf":
        return shape[-1] % 32 == 0 and (len(shape) == 2 or (len(shape) > 2 and shape[-1] >= (group or 1 << 30)))
    if len(shape) != 2:
        return False
    rows, cols = shape
    whole = group is None or cols <= group or cols % group == 0
    if target == "gptq":
        return whole and rows % 32 == cols % 32 == 0
    if target == "awq":
        return whole and rows % 8 == cols % 8 == 0 and (group is None or cols >= group)
    if target == "bnb-nf4":
        return whole and cols % 64 == 0
    if target == "onnx":
        return whole or group in (16, 32, 64, 128, 256)
    return whole


@pytest.mark.parametrize(("target", "name"), CASES)
def test_awkward_shapes(target: str, name: str, shapes: Path, tmp_path: Path) -> None:
    """quantize --to stands for just what quantize alone stands for; what the target cannot store is kept, for that
    reason, bit for bit; and export says the same of the native file."""
    extension = named(target).extension or ".safetensors"
    out, native = tmp_path / f"out{extension}", tmp_path / "native.safetensors"
    options = [*in_float16(name), "--no-default-keep", "--exclude", "plain"]
    ran = run("quantize", shapes, *options, *to(target), "-o", out, "--json")
    assert ran.code == 0, ran.err
    assert not left_behind(tmp_path)
    kept = {t["name"] for t in ran.json["tensors"] if t["reason"] == "target"}
    for i, shape in enumerate(SHAPES):
        assert len(shape) < 2 or fits(target, name, shape) in (f"m{i}.weight" not in kept, None), shape
    assert all(t["note"] for t in ran.json["tensors"] if t["reason"] == "target")
    assert ran.json["summary"]["bytes_out"] == out.stat().st_size
    run("quantize", shapes, *options, *(w for n in sorted(kept) for w in ("--exclude", n)), "-o", native)
    expected, seen = native_values(native), exported_values(target, out)
    assert seen.keys() == {t["name"] for t in ran.json["tensors"] if t["disposition"] == "quantized"}
    lossy = target in ("mlx", "gguf") and name.endswith("-asym")
    for weight, values in seen.items():
        apart = 0.02 if lossy else 0.004 if is_published(name) else 0  # these are read rounded to a dtype of 16 bits
        np.testing.assert_allclose(values, expected[weight], rtol=0, atol=apart * np.abs(expected[weight]).max())
    again = tmp_path / f"again{extension}"
    ran = run("export", native, *to(target), "-o", again, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["lossless"] or lossy
    assert ran.json["bytes_out"] == again.stat().st_size
    others = (load(out) if extension == ".safetensors" else None, load(again) if extension == ".safetensors" else None)
    assert others[0] == others[1]
    stored = load(shapes)
    assert others[0] is None or metadata_of(out)["note"] == metadata_of(again)["note"] == "mine"
    if others[0] is not None:
        for weight in [*kept, "plain", "ids"]:
            assert others[0][weight] == stored[weight]
    else:
        found = {n: t.tobytes() for n, t in graph(out)[0].items()} if target == "onnx" else plain_tensors(out)
        for weight in [*kept, "plain", "ids"]:
            assert found[weight] == stored[weight].data


@pytest.mark.parametrize("target", TARGETS)
def test_any_cut_and_any_number_of_threads(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes do not depend on threads or on how the weights are cut, rows in the middle included."""
    source = save(
        tmp_path / "model.safetensors",
        {"a.weight": gaussian(64, 768), "b.weight": gaussian(96, 256, seed=1), "c.bias": gaussian(5)},
    )
    out = tmp_path / f"out.bin{named(target).extension or '.safetensors'}"
    for name in SCHEMES[target]:
        native = tmp_path / f"{name}.safetensors"
        options = [*flags(name), "--no-default-keep", "--exclude", "c.bias"]
        if False in (fits(target, name, (64, 768)), fits(target, name, (96, 256))):
            options += ["--exclude", "b.weight"]
        assert run("quantize", source, *options, "-o", native).code == 0
        digests = set()
        for threads, limit in ((1, None), (2, None), (7, 4096), (3, 300), (1, 16)):
            with monkeypatch.context() as patched:
                if limit is not None:
                    patched.setattr(pieces, "BAND", limit)
                    patched.setattr(pieces, "SLAB", limit)
                ran = run("export", native, *to(target), "-o", out, "--force",
                          "--threads", threads)  # fmt: skip
            assert ran.code == 0, ran.err
            digests.add(digest(out))
        assert len(digests) == 1, name


# ---- bytes of the real tools ------------------------------------------------------------------------------------


class Held:
    """Codes and parameters in memory, as an export reads them from a file."""

    def __init__(self, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, bits: int) -> None:
        self.codes, self.scale, self.zero, self.bits = codes, scale, zero, bits

    def packed(self, span: TileSpan) -> np.ndarray:
        rows = slice(span.row, span.row + span.rows)
        return packing.pack(self.codes[rows, span.col : span.col + span.cols], self.bits)

    def params(self, span: TileSpan) -> QuantParams:
        rows = slice(span.row, span.row + span.rows)
        assert span.col == 0
        return QuantParams(self.scale[rows], None if self.zero is None else self.zero[rows])

    def scales(self, span: TileSpan) -> tuple[np.ndarray, np.ndarray | None]:
        found = self.params(span)
        return found.scale, found.zero

    def levels(self, span: TileSpan) -> np.ndarray:
        raise AssertionError("there is no codebook")

    def overall(self) -> float:
        return 1.0

    def read_bytes(self, name: str, start: int, size: int) -> np.ndarray:
        raise AssertionError("codes are read as codes")


def written(target: str, held: Held, made: Scheme) -> dict[str, bytes]:
    """The bytes an export makes of a weight `m.weight`."""
    info = TensorInfo("m.weight", "F32", held.codes.shape)
    rows = grouping_of(info.shape, made)
    weight = Quantized(info=info, reason="default", scheme=made, grouping=rows, scale_dtype="F32")
    job = named(target).convert([weight], lambda name: None).job(weight)
    found = {o.name: bytearray(o.nbytes) for o in job.outputs}
    codes: Codes = held

    def write(number: int, offset: int, data: Any) -> None:
        raw = bytes(memoryview(data).cast("B"))
        found[job.outputs[number].name][offset : offset + len(raw)] = raw

    for piece in job.pieces():
        piece(codes, write)
    return {name: bytes(raw) for name, raw in found.items()}


def words_of(stream: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Codes (rows, count) of rows of 32-bit words."""
    ones = np.unpackbits(np.ascontiguousarray(stream).view(np.uint8), axis=1, bitorder="little")[:, : count * bits]
    return (ones.reshape(len(stream), count, bits) @ (1 << np.arange(bits))).astype(np.int64)


def golden(name: str) -> tuple[dict[str, np.ndarray], dict[str, bytes]]:
    stored = load(GOLDEN / "layouts" / f"{name}.safetensors")
    return {n: t.array for n, t in stored.items()}, {n: t.data for n, t in stored.items()}


@pytest.mark.parametrize("group", [16, 48])
def test_bytes_of_autoawq(group: int) -> None:
    """What AutoAWQ decodes to these weights is what we write for them."""
    arrays, raw = golden(f"awq-g{group}")
    scale = arrays["m.scales"].T.astype(np.float32)
    order = np.argsort(awq.ORDER)
    zero = words_of(arrays["m.qzeros"], 4, 40).reshape(-1, 5, 8)[:, :, order].reshape(-1, 40).T
    codes = np.rint(arrays["expected"] / np.repeat(scale, group, 1)).astype(np.int64) + np.repeat(zero, group, 1)
    held = Held(codes.astype(np.uint8), np.ascontiguousarray(scale), zero.astype(np.float32), 4)
    found = written("awq", held, Scheme(bits=4, group_size=16 if group == 16 else None, symmetric=False,
                                        granularity="group" if group == 16 else "channel"))  # fmt: skip
    assert found == {n: raw[n] for n in ("m.qweight", "m.qzeros", "m.scales")}


@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 32), (8, 64)])
def test_bytes_of_gptqmodel(bits: int, group: int) -> None:
    arrays, raw = golden(f"gptq-w{bits}")
    scale = np.ascontiguousarray(arrays["m.scales"].T.astype(np.float32))
    zero = words_of(arrays["m.qzeros"], bits, 32).T
    codes = np.rint(arrays["expected"] / np.repeat(scale, group, 1)).astype(np.int64) + np.repeat(zero, group, 1)
    held = Held(codes.astype(np.uint8), scale, np.ascontiguousarray(zero, np.float32), bits)
    found = written("gptq", held, Scheme(bits=bits, group_size=group, symmetric=False))
    assert found == {n: raw[n] for n in ("m.qweight", "m.qzeros", "m.scales", "m.g_idx")}


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_bytes_of_mlx(bits: int) -> None:
    arrays, raw = golden(f"mlx-w{bits}")
    scale, bias = arrays["m.scales"], arrays["m.biases"]
    codes = np.rint((arrays["expected"] - np.repeat(bias, 64, 1)) / np.repeat(scale, 64, 1)).astype(np.uint8)
    found = written("mlx", Held(codes, scale, bias, bits), Scheme(bits=bits, group_size=64, symmetric=False,
                                                                  zero_point="float"))  # fmt: skip
    assert found == {n: raw[n] for n in ("m.weight", "m.scales", "m.biases")}


def test_bytes_of_bitsandbytes(tmp_path: Path) -> None:
    """bitsandbytes makes the same four tensors of the weight."""
    stored = load(GOLDEN / "exports" / "bnb-nf4.safetensors")
    source = save(tmp_path / "m.safetensors", {"m.weight": stored["m.weight"].array})
    out = tmp_path / "out.safetensors"
    ran = run("quantize", source, "--to", "bnb-nf4", "--type", "nf4", "--group-size", 64, "--scale-dtype", "float32",
              "--no-default-keep", "-o", out)  # fmt: skip
    assert ran.code == 0, ran.err
    expected = {n.replace("expected", "m"): t for n, t in stored.items() if n.startswith("expected")}
    assert load(out) == expected


def test_words_of_the_specifications() -> None:
    """Codes written out: AWQ's 0x75316420, GPTQ's zero points of 8 as 0x77777777 and 0x88888888, NF4's 0f 78."""
    codes = np.zeros((8, 8), np.uint8)
    codes[:, 0] = np.arange(8)
    found = written("awq", Held(codes, np.ones((8, 1), np.float32), None, 4), scheme("w4c"))
    assert found["m.qweight"][:4] == (0x75316420).to_bytes(4, "little") and not any(found["m.qweight"][4:])
    assert found["m.qzeros"] == b"\x88" * 4
    held = Held(np.zeros((32, 32), np.uint8), np.ones((32, 1), np.float32), None, 4)
    assert written("gptq", held, scheme("w4g32"))["m.qzeros"] == b"\x77" * 16
    asymmetric = Scheme(bits=4, group_size=32, symmetric=False)
    held = Held(np.zeros((32, 32), np.uint8), np.ones((32, 1), np.float32), np.full((32, 1), 8, np.float32), 4)
    assert written("gptq", held, asymmetric)["m.qzeros"] == b"\x88" * 16
    row = np.array([[0, 15, 7, 8] * 16], np.uint8)
    found = written("bnb-nf4", Held(row, np.ones((1, 1), np.float32), None, 4), scheme("nf4g64"))
    assert found["m.weight"] == b"\x0f\x78" * 16


# ---- what is said -----------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(
        tmp_path / "model.safetensors",
        {"a.weight": gaussian(64, 128), "b.weight": gaussian(64, 64, seed=1), "norm.weight": gaussian(64)},
    )


REFUSED = [
    ("mlx", "w7g64", "7 bits", "2, 3, 4, 5, 6 or 8 bits"),
    ("mlx", "w4g16", "groups of 16", "groups of a multiple of 32"),
    ("gptq", "w5g64", "5 bits", "2, 3, 4 or 8 bits"),
    ("gptq", "w4g64-float", "float offsets", "symmetric or asymmetric"),
    ("awq", "w8g64", "8 bits", "int of 4 bits"),
    ("onnx", "w3g64", "3 bits", "2, 4 or 8 bits"),
    ("comfyui", "w8g64", "one scale per group", "use --to comfyui:int8_tensorwise, the nearest that it stores"),
    ("comfyui", "w8c-asym", "zero points", "the nearest that it stores, or --scheme INT8_TENSORWISE"),
    ("bnb-nf4", "w4g64", "the format int", "nf4 of 4 bits"),
    ("compressed-tensors", "nf4g64", "the format nf4", "int of 2"),
    ("gguf", "w3g64", "3 bits", "use --scheme Q3_K, the nearest that it stores, or --to gguf:Q3_K_M"),
    ("gguf", "w4g48", "groups of 48", "use --scheme Q4_K, the nearest that it stores"),
    ("gguf", "w8g64-asym", "8 bits with zero points", "use --scheme Q8_0, the nearest that it stores"),
]


@pytest.mark.parametrize(("target", "name", "why", "accepted"), REFUSED)
def test_a_scheme_the_target_cannot_say(target: str, name: str, why: str, accepted: str, model: Path,
                                        tmp_path: Path) -> None:  # fmt: skip
    asked = [*flags(name), *(["--type", "int"] if target == "bnb-nf4" else [])]
    line = one_line(run("quantize", model, *asked, *to(target)), 2)
    assert line.startswith(f"{model}: a.weight: {target} cannot store it: {why} ({name}); ")
    assert accepted in line
    native = tmp_path / "native.safetensors"
    assert run("quantize", model, *flags(name), "-o", native).code == 0
    line = one_line(run("export", native, *to(target)), 2)
    assert f"a.weight: {target} cannot store it: {why} ({name})" in line and "--requantize makes it" in line
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors", "native.safetensors"]


@pytest.mark.parametrize("target", TARGETS)
def test_requantize(target: str, tmp_path: Path) -> None:
    """Any native file goes to any target with --requantize; the report has both errors, as a reader sees them."""
    source = save(
        tmp_path / "model.safetensors",
        {
            "a.weight": gaussian(64, 128),
            "b.weight": gaussian(64, 256, seed=1),
            "conv.weight": gaussian(16, 8, 3, 3),
            "c.bias": gaussian(64),
        },
    )
    native = tmp_path / "native.safetensors"
    options = ["--bits", 7, "--group-size", 40, "--override", "b.weight:format=codebook,bits=3,group-size=32"]
    assert run("quantize", source, *options, "-o", native).code == 0
    out = tmp_path / f"out{named(target).extension or '.safetensors'}"
    ran = run("export", native, *to(target), "--requantize", "-o", out, "--json")
    assert ran.code == 0, ran.err
    assert not left_behind(tmp_path)
    found = {t["name"]: t for t in ran.json["tensors"]}
    before, after = native_values(native), exported_values(target, out)
    assert found["conv.weight"]["disposition"] == "decoded" and found["conv.weight"]["lossless"]
    assert found["c.bias"]["disposition"] == "kept"
    for name in ("a.weight", "b.weight"):
        exact = before[name].astype(np.float64)
        sqnr = 10 * np.log10((exact**2).sum() / ((exact - after[name]) ** 2).sum())
        assert found[name]["disposition"] == "requantized"
        assert found[name]["sqnr_db"] == pytest.approx(sqnr, abs=1e-3)
        assert found[name]["native_sqnr_db"] > 10
    if target == "gptq":  # whose configuration has one width: that of most weights
        assert {view.scheme for view in open_model(str(out)).values() if view.scheme} == {"w3g32"}


def test_what_rounding_scales_costs(model: Path, tmp_path: Path) -> None:
    """float32 scales become float16 ones: the SQNR of the report is that of the bytes, against the native weights; and
    quantize --to reports errors of the exported weights against the original."""
    native, out = tmp_path / "native.safetensors", tmp_path / "out.safetensors"
    run("quantize", model, "--group-size", 32, "--scale-dtype", "float32", "-o", native)
    ran = run("export", native, "--to", "gptq", "-o", out, "--json")
    before, after = native_values(native), exported_values("gptq", out)
    for tensor in ran.json["tensors"][:2]:
        exact = before[tensor["name"]].astype(np.float64)
        sqnr = 10 * np.log10((exact**2).sum() / ((exact - after[tensor["name"]]) ** 2).sum())
        assert not tensor["lossless"] and tensor["sqnr_db"] == pytest.approx(sqnr, abs=1e-6) and 60 < sqnr < 90
    assert "dB where it was not lossless" in run("export", native, "--to", "gptq", "-o", out, "--force").out
    ran = run("quantize", model, "--group-size", 32, "--scale-dtype", "float32", "--to", "gptq", "-o", out, "--force",
              "--json")  # fmt: skip
    original, after = {n: t.array for n, t in load(model).items()}, exported_values("gptq", out)
    for tensor in ran.json["tensors"][:2]:
        exact = original[tensor["name"]].astype(np.float64)
        sqnr = 10 * np.log10((exact**2).sum() / ((exact - after[tensor["name"]]) ** 2).sum())
        assert tensor["sqnr_db"] == pytest.approx(sqnr, abs=1e-6)


@pytest.mark.parametrize(("scale", "target"), [(1e-9, "gptq"), (1e9, "awq")])
def test_scales_float16_does_not_hold(scale: float, target: str, tmp_path: Path) -> None:
    source = save(tmp_path / "model.safetensors", {"a.weight": gaussian(64, 64, scale=scale)})
    native, out = tmp_path / "native.safetensors", tmp_path / "out.safetensors"
    run("quantize", source, "--scale-dtype", "float32", "--group-size", 64, "-o", native)
    line = one_line(run("export", native, *to(target), "-o", out, "-q"), 1)
    assert line.startswith(f"{native}: a.weight: a scale does not fit F16")
    line = one_line(run("quantize", source, "--scale-dtype", "float32", "--group-size", 64, *to(target), "-o", out,
                        "-q"), 1)  # fmt: skip
    assert line.startswith(f"{source}: a.weight: a scale does not fit F16")
    assert not out.exists() and not left_behind(tmp_path)


def test_notes_come_first_and_are_in_the_document(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--asymmetric", "--bits", 5, "--group-size", 64]
    ran = run("quantize", model, *options, "--to", "compressed-tensors", "-o", out, "--json")
    said = ran.err.splitlines()
    assert len(said) == 4 and "CompressedTensorsConfig(dequantize=True)" in said[0] and "0.18" in said[1]
    assert "w5g64-asym: SGLang 0.5.23 does not load such weights" in said[2]
    assert "no config.json is written" in said[3] and '"quant_method": "compressed-tensors"' in said[3]
    assert [f"quantcli: {w}" for w in ran.json["warnings"][:4]] == said
    native = tmp_path / "native.safetensors"
    run("quantize", model, "-o", native)
    ran = run("export", native, "--to", "mlx", "-o", tmp_path / "mlx.safetensors", "--json")
    assert ran.json["config"]["quantization"] == {"group_size": 128, "bits": 4, "mode": "affine",
                                                  "b": {"group_size": 64, "bits": 4}}  # fmt: skip
    assert '"quantization": {"group_size": 128' in ran.err  # what config.json would say
    ran = run("export", native, "--to", "mlx", "-o", tmp_path / "folder")
    assert "no config.json is written" in ran.err and not (tmp_path / "folder" / "config.json").exists()


def test_the_list_of_targets() -> None:
    ran = run("export", "--list")
    assert ran.code == 0 and ran.err == ""
    lines = ran.out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(TARGETS)
    assert max(map(len, lines)) <= 100
    assert "  Accepts int of 4 bits, symmetric or asymmetric, in groups of a multiple of 16, per channel" in lines[2]


def test_the_table(model: Path, tmp_path: Path) -> None:
    native = tmp_path / "native.safetensors"
    run("quantize", model, "--group-size", 64, "-o", native)
    ran = run("export", native, "--to", "awq", "-o", tmp_path / "o.safetensors", "-q")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    ran = run("export", native, "--to", "awq", "-o", tmp_path / "o.safetensors", "--force")
    lines = ran.out.splitlines()
    assert lines[0] == f"{native} -> {tmp_path / 'o.safetensors'}"
    assert lines[1] == "awq: 2 exported, 1 kept; lossless"
    assert lines[4].split() == ["tensor", "shape", "scheme", "stored", "as", "native", "dB", "export", "dB", "bytes"]
    assert lines[5].split()[:-3] == ["a.weight", "64x128", "w4g64", "qweight", "I32,", "qzeros", "I32,", "scales",
                                     "F16", lines[5].split()[-4]]  # fmt: skip
    assert lines[5].split()[-3] == "lossless" and lines[7].split()[:4] == ["norm.weight", "64", "kept", "F32"]


# ---- folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [t for t in TARGETS if not named(t).extension])
def test_folders(target: str, tmp_path: Path) -> None:
    """A checkpoint folder gives one its loader takes: shards under their names, index, config.json and side files."""
    folder = tmp_path / "in"
    folder.mkdir()
    for path in LLAMA.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "tokenizer.json").write_text("{}")
    name = usual(target)
    ran = run("quantize", folder, *in_float16(name), *to(target), "--keep-embeddings", "--json")
    assert ran.code == 0, ran.err
    out = Path(ran.json["output"])
    assert out == tmp_path / f"in-{name}-{target}" and not left_behind(tmp_path)
    names = {p.name for p in out.iterdir()}
    shards = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    more = {"hf_quant_config.json"} if target == "modelopt" else set()
    assert names == {*shards, *more, "model.safetensors.index.json", "config.json", "tokenizer.json", "README.md"}
    index = json.loads((out / "model.safetensors.index.json").read_text())
    held = {n: s for s in shards for n in load(out / s)}
    assert index["weight_map"] == held
    assert index["metadata"]["total_size"] == sum(len(t.data) for s in shards for t in load(out / s).values())
    config = json.loads((out / "config.json").read_text())
    before = json.loads((LLAMA / "config.json").read_text())
    assert {k: v for k, v in config.items() if k not in ("quantization", "quantization_config")} == before
    method = config["quantization_config"].get("quant_method", "mlx")
    assert method == {
        "bnb-nf4": "bitsandbytes", "comfyui": "compressed-tensors", "fp8-blocks": "fp8",
    }.get(target, target)  # fmt: skip
    if target == "comfyui":
        for shard in shards:
            layers = json.loads(metadata_of(out / shard)["_quantization_metadata"])["layers"]
            assert layers.keys() == {n.removesuffix(".weight_scale") for n in load(out / shard) if "_scale" in n}
    if target == "compressed-tensors":
        assert run("report", out).code == 0
    elif target != "bnb-nf4":
        assert run("compare", folder, out, "--min-sqnr", 15).code == 0
    own = ["--to", "native"] if target in (*DERIVED, "bnb-nf4") else []
    own += [w for t in ran.json["tensors"] if t["reason"] == "target" for w in ("--exclude", t["name"])]
    again = run("quantize", folder, *in_float16(name), *own, "-o", tmp_path / "native")
    assert again.code == 0
    assert run("export", tmp_path / "native", *to(target), "-o", tmp_path / "second", "--threads", 1).code == 0
    assert {n: t for s in shards for n, t in load(tmp_path / "second" / s).items()} == {
        n: t for s in shards for n, t in load(out / s).items()
    }
    assert json.loads((tmp_path / "second" / "config.json").read_text()) == config


def test_a_bare_file_to_a_folder_and_a_folder_to_a_file(model: Path, tmp_path: Path) -> None:
    native = tmp_path / "native.safetensors"
    run("quantize", model, "-o", native)
    assert run("export", native, "--to", "mlx", "-o", tmp_path / "out").code == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["model.safetensors"]  # no config.json is made up
    assert metadata_of(tmp_path / "out" / "model.safetensors")["format"] == "mlx"
    run("quantize", LLAMA, "-o", tmp_path / "folder", "--group-size", 64)
    assert run("export", tmp_path / "folder", "--to", "mlx", "-o", tmp_path / "one.safetensors").code == 0
    assert run("compare", tmp_path / "folder", tmp_path / "one.safetensors").code == 0


def test_the_digest_of_a_kept_header_is_made_anew(tmp_path: Path) -> None:
    """compressed-tensors gets a native file too, with another header; a changed header stays known as such."""
    native = tmp_path / "native"
    assert run("quantize", LLAMA, "-o", native, "--group-size", 64, "-q").code == 0
    assert run("export", native, "--to", "compressed-tensors", "-o", tmp_path / "out", "-q").code == 0
    assert run("verify", tmp_path / "out", "-q").code == 0
    change_header(next(native.glob("*.safetensors")), lambda d: d.update(source_bytes=1), seal=False)
    assert run("export", native, "--to", "compressed-tensors", "-o", tmp_path / "changed", "-q").code == 0
    assert run("verify", tmp_path / "changed", "-q").code == 1
    assert "header was changed" in one_line(run("report", tmp_path / "changed"), 2)


def test_shards_of_other_names_get_those_loaders_look_for(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    save(folder / "diffusion.safetensors", {"a.weight": gaussian(64, 64)})
    assert run("quantize", folder, "--to", "mlx", "-o", tmp_path / "out").code == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["README.md", "model.safetensors"]


# ---- ONNX -------------------------------------------------------------------------------------------------------


def test_tensors_beside_an_onnx_file(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond protobuf's limit the tensors are in a second file; a file in its place is not replaced unasked."""
    native, inside, out = (tmp_path / n for n in ("native.safetensors", "inside.onnx", "out.onnx"))
    run("quantize", model, "-o", native)
    assert run("export", native, *to("onnx"), "-o", inside).code == 0
    monkeypatch.setattr(onnx, "LIMIT", 1000)
    assert run("export", native, *to("onnx"), "-o", out).code == 0
    assert out.stat().st_size < 1500 and (tmp_path / "out.onnx.data").is_file()
    a, b = matmuls(inside), matmuls(out)
    assert all(np.array_equal(a[n], b[n]) for n in ("a.weight", "b.weight"))
    out.unlink()
    assert "out.onnx.data: the output exists" in one_line(run("export", native, *to("onnx"), "-o", out, "-q"), 2)


def test_a_dtype_onnx_has_not(tmp_path: Path) -> None:
    source, native = tmp_path / "m.safetensors", tmp_path / "n.safetensors"
    source.write_bytes(
        raw_tensors({"a.weight": ("F32", (64, 64), gaussian(64, 64).tobytes()), "e": ("F8_E8M0", (4,), b"\1\2\3\4")})
    )
    run("quantize", source, "-o", native)
    assert one_line(run("export", native, *to("onnx"), "-q"), 1).endswith("e: ONNX has no F8_E8M0")


# ---- hostile and unlucky ----------------------------------------------------------------------------------------


def test_what_is_not_native(model: Path, tmp_path: Path) -> None:
    assert (
        one_line(run("export", model, "--to", "mlx"), 1) == f"{model}: it holds no quantized tensor; use quantize --to"
    )
    one_line(run("export", tmp_path / "missing", "--to", "mlx"), 1)
    assert "no-such" in one_line(run("export", model, "--to", "no-such"), 2)
    assert "--to" in one_line(run("export", model), 2)


def test_names_that_would_collide(tmp_path: Path) -> None:
    source, native = tmp_path / "m.safetensors", tmp_path / "n.safetensors"
    save(source, {"a.weight": gaussian(64, 64), "a.scales": gaussian(3)})
    run("quantize", source, "-o", native)
    line = one_line(run("export", native, "--to", "mlx"), 1)
    assert "a.scales" in line and "would both be written as a.scales" in line
    assert "would both be written" in one_line(run("quantize", source, "--to", "mlx"), 1)


def test_existing_output(model: Path, tmp_path: Path) -> None:
    native, out = tmp_path / "native.safetensors", tmp_path / "out.safetensors"
    run("quantize", model, "-o", native)
    out.write_bytes(b"mine")
    assert (
        one_line(run("export", native, "--to", "mlx", "-o", out), 2)
        == f"{out}: the output exists; use --force to replace it"
    )
    assert one_line(run("quantize", model, "--to", "mlx", "-o", out), 2).startswith(f"{out}: the output exists")
    assert "same file" in one_line(run("export", native, "--to", "mlx", "-o", native, "--force"), 2)
    assert out.read_bytes() == b"mine"
    line = one_line(run("export", native, "--to", "mlx", "-o", tmp_path, "--force"), 2)
    assert line == f"{tmp_path}: the input is in this folder, which would be replaced"
    assert run("export", native, "--to", "mlx", "-o", out, "--force").code == 0


def test_a_damaged_scale(model: Path, tmp_path: Path) -> None:
    native = tmp_path / "native.safetensors"
    run("quantize", model, "--group-size", 64, "-o", native)
    data = bytearray(native.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little") + header_of(native)["a.weight_scale"]["data_offsets"][0]
    data[start : start + 2] = b"\x00\x7c"
    native.write_bytes(data)
    for target in ("mlx", "awq", "onnx"):
        line = one_line(run("export", native, *to(target), "-o", tmp_path / "out", "-q"), 1)
        assert line == f"{native}: a.weight: a stored scale is not finite"
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors", "native.safetensors"]


def test_several_schemes(tmp_path: Path) -> None:
    """MLX names modules that differ; GPTQ and AWQ take the common divisor of groups and refuse several widths."""
    source = save(tmp_path / "m.safetensors", {"a.weight": gaussian(64, 128), "b.weight": gaussian(64, 96, seed=1)})
    native, out = tmp_path / "n.safetensors", tmp_path / "o.safetensors"
    run("quantize", source, "--bits", 4, "--group-size", 128, "--override", "b.weight:group-size=96", "-o", native)
    for target, group in (("gptq", 32), ("awq", 32)):
        ran = run("export", native, *to(target), "-o", out, "--force", "--json")
        assert ran.json["config"]["quantization_config"]["group_size"] == group and ran.json["lossless"]
        before, after = native_values(native), exported_values(target, out)
        assert all(np.array_equal(before[n], after[n]) for n in after) and len(after) == 2
    run("quantize", source, "--bits", 4, "--override", "b.weight:bits=8,group-size=32", "-o", native, "--force")
    line = one_line(run("export", native, "--to", "gptq"), 2)
    assert "gptq cannot store them together: 4 bits (a.weight) and 8 bits (b.weight) in one model" in line


def test_gptqmodel_wants_a_tokenizer_where_there_is_none(tmp_path: Path) -> None:
    source, said = tmp_path / "in", "GPTQModel needs the tokenizer in the folder"
    shutil.copytree(LLAMA, source)
    assert said in run("quantize", source, "--to", "gptq", "-o", tmp_path / "out").err
    (source / "tokenizer_config.json").write_text("{}")
    ran = run("quantize", source, "--to", "gptq", "-o", tmp_path / "out", "--force")
    assert ran.code == 0 and said not in ran.err and "because of g_idx" in ran.err


@pytest.mark.parametrize(("cols", "group"), [(256, 128), (192, 64), (96, 32), (40, -1)])
def test_whole_rows_in_awq(cols: int, group: int, tmp_path: Path) -> None:
    """They are groups of 32, 64 or 128 where rows are multiples of that: neither mlx-lm nor compressed-tensors'
    AutoAWQConverter loads an AWQ model without groups."""
    source = save(tmp_path / "m.safetensors", {"a.weight": gaussian(64, cols)})
    run("quantize", source, "--bits", 4, "--group-size", -1, "-o", tmp_path / "n.safetensors")
    ran = run("export", tmp_path / "n.safetensors", "--to", "awq", "-o", tmp_path / "o.safetensors", "--json")
    assert ran.json["config"]["quantization_config"]["group_size"] == group and ran.json["lossless"]
    assert header_of(tmp_path / "o.safetensors")["a.scales"]["shape"] == [cols // group if group > 0 else 1, 64]


def test_dry_run_tells_the_size_to_the_byte(model: Path, tmp_path: Path) -> None:
    for target in TARGETS:
        name = usual(target)
        out = tmp_path / f"{target}{named(target).extension or '.safetensors'}"
        dry = run("quantize", model, *flags(name), *to(target), "-o", out, "--dry-run", "--json").json
        assert not out.exists()
        wet = run("quantize", model, *flags(name), *to(target), "-o", out, "--json").json
        assert dry["summary"]["bytes_out"] == wet["summary"]["bytes_out"] == out.stat().st_size
        assert [t["bytes_out"] for t in dry["tensors"]] == [t["bytes_out"] for t in wet["tensors"]]


@pytest.mark.parametrize("target", TARGETS)
def test_a_report_on_an_export_knows_its_source(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, dtypes and reasons are those quantize reported; the dry run told the size; no path is in the output."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret-folder").mkdir()
    model = save(
        tmp_path / "secret-folder" / "secret.safetensors",
        {
            "a.weight": gaussian(64, 128, seed=1).astype(BF16),
            "b.norm.weight": gaussian(128),
            "embed.weight": gaussian(40, 64, seed=2),
            "c.weight": gaussian(64, 128, seed=3),
            "d.bias": gaussian(64),
        },
    )
    contained = ["--container"] if target in ("gguf", "onnx") else []
    scheme = flags(SCHEMES[target][2 if target == "awq" else 0])
    asked = ["--to", target, *scheme, *contained, "--keep-embeddings", "-o"]
    out = tmp_path / f"out{named(target).extension or '.safetensors'}"
    planned = json.loads(run("quantize", model, *asked, out, "--dry-run", "--json").out)
    made = json.loads(run("quantize", model, *asked, out, "--json").out)
    assert planned["summary"]["bytes_out"] == made["summary"]["bytes_out"] == out.stat().st_size
    ran = run("report", out, "--json")
    found = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    for key in ("bytes_out", "kept", "coverage"):
        assert found["summary"][key] == made["summary"][key], key
    # Of tensors, not of the file: the same whatever the model was cut into.
    weights = sum(t["bytes_in"] for t in made["tensors"])
    assert found["summary"]["bytes_in"] == (made["summary"]["bytes_in"] if target == "compressed-tensors" else weights)
    facts = ("name", "dtype", "shape", "reason", "disposition", "bytes_in", "bytes_out")
    known, expected = ({t["name"]: [t[f] for f in facts] for t in r["tensors"]} for r in (found, made))
    assert known == expected and {"default", "norm", "embedding", "bias"} == {t[3] for t in known.values()}
    if found["summary"]["sqnr_db"] is None:
        assert "the file stores no errors: --against ORIGINAL measures them\n" in run("report", out).out
    again = json.loads(run("report", out, "--against", model, "--json").out)
    # What is published in small floats is read rounded to the dtype that the library decodes it to.
    published = any(is_published(t["scheme"] or "") for t in made["tensors"])
    assert again["summary"]["sqnr_db"] == pytest.approx(made["summary"]["sqnr_db"], abs=0.05 if published else 1e-6)
    assert again["summary"]["kept"] == made["summary"]["kept"]
    assert b"secret" not in out.read_bytes()
    other = save(tmp_path / "other.safetensors", load_file(model))
    assert run("quantize", other, *asked, f"x{out.suffix}", "--threads", "3", "-q").code == 0
    assert (tmp_path / f"x{out.suffix}").read_bytes() == out.read_bytes()


def test_a_report_on_an_exported_folder_knows_its_source(tmp_path: Path) -> None:
    for number, extra in enumerate(([], ["-o", tmp_path / "one.safetensors"])):
        out = extra[1] if extra else tmp_path / "gptq"
        made = json.loads(run("quantize", LLAMA, "--to", "gptq", "-o", out, "--json").out)
        found = json.loads(run("report", out, "--json").out)
        assert found["summary"]["bytes_in"] == sum(t["bytes_in"] for t in made["tensors"]), number
        assert found["summary"]["kept"] == made["summary"]["kept"] and not found["warnings"]


@pytest.mark.parametrize("told", [
    {"source_bytes": -1}, {"source_bytes": "3"}, {"source_bytes": True}, {"source_bytes": 3, "tensors": 4},
    {"source_bytes": 3, "tensors": {"F32": 4}}, {"source_bytes": 3, "tensors": {"F32": {"norm": 4}}},
    {"source_bytes": 3, "tensors": {"F32": {"norm": [4]}}}, {"source_bytes": 3, "tensors": {"F33": {"norm": ["a"]}}},
], ids=json.dumps)  # fmt: skip
def test_what_a_damaged_export_says_of_its_source(told: dict[str, Any], model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert run("quantize", model, "--to", "mlx", "-o", out, "-q").code == 0
    document = json.loads(metadata_of(out)["quantcli_export"])
    assert document["source_bytes"] > 0
    save_file(load_file(out), out, {"quantcli_export": json.dumps({**document, **told})})
    assert "quantcli_export: its record of its source is damaged" in one_line(run("report", out), 2)
    # A file of an earlier version does not say: its size is set beside that of float32.
    save_file(load_file(out), out, {"quantcli_export": json.dumps({"config": document["config"]})})
    ran = run("report", out)
    assert ran.code == 0 and "does not record the size of its source" in ran.err


def test_a_pipe_cannot_be_exported(model: Path, tmp_path: Path) -> None:
    import subprocess

    from making import command, environment

    words = " ".join(command("quantize", "-", "--to", "mlx", "-o", "x"))
    done = subprocess.run(
        ["sh", "-c", f"cat {model} | {words}"],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2 and "must seek, and standard input is a pipe" in done.stderr


def test_standard_output(model: Path, tmp_path: Path) -> None:
    import subprocess

    from making import command, environment

    native, out = tmp_path / "native.safetensors", tmp_path / "out.safetensors"
    run("quantize", model, "-o", native)
    run("export", native, "--to", "mlx", "-o", out)
    for words in (("export", native), ("quantize", model, "--group-size", 128, "--keep-embeddings")):
        done = subprocess.run(command(*words, "--to", "mlx", "-o", "-", "-q"), capture_output=True, env=environment(),
                              check=True)  # fmt: skip
        assert done.stderr == b"" and done.stdout == out.read_bytes()
        assert "onnx may take two files" in one_line(run(*words, *to("onnx"), "-o", "-"), 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    """Neither of the output nor of the native file beside it."""
    import subprocess

    from making import command, environment

    source = sparse_model(tmp_path / "m.safetensors", 1.5)
    out = tmp_path / "out"
    process = subprocess.Popen(command("quantize", source, *to("onnx"), "-o", out, "-q", "--no-default-keep"),
                               stderr=subprocess.PIPE, env=environment(QUANTCLI_KERNELS="numpy"))  # fmt: skip
    give_up = time.monotonic() + 20
    while not left_behind(tmp_path):
        assert process.poll() is None and time.monotonic() < give_up
        time.sleep(0.005)
    time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (-number, b"")
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Exporting a model of 1 GB takes some tens of MiB, turned or not."""
    import subprocess
    import sys

    from making import command, environment

    source, native = tmp_path / "m.safetensors", tmp_path / "n.safetensors"
    rows, cols = 131072, 4096
    source.write_bytes(
        raw_file({"a.weight": {"dtype": "BF16", "shape": [rows, cols], "data_offsets": [0, rows * cols * 2]}})
    )
    os.truncate(source, source.stat().st_size + rows * cols * 2)
    assert run("quantize", source, "-o", native, "-q").code == 0
    program = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:])\n"
        "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)"
    )
    for target in ("mlx", "awq", "gguf"):
        out = tmp_path / f"{target}.out"
        words = command("export", native, *to(target), "-o", out, "-q", "--threads", 2)
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True,
                              env=environment(), check=True)  # fmt: skip
        code, peak = map(int, done.stdout.split())
        assert code == 0 and peak < 90, (target, done)
