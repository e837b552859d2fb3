"""Files in, files out: what is stored equals what the array API gives, whatever the threads, tiles and kernels."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from making import (
    BF16,
    NUMPY_OF,
    digest,
    digest_by_definition,
    header_of,
    left_behind,
    load,
    metadata_of,
    one_line,
    run,
    run_process,
    save,
)
from strategies import AWKWARD, gaussian

import quantcli
from quantcli import DataError, QuantcliError, Scheme
from quantcli.kernels import native
from quantcli.passes import outputs
from quantcli.passes import quantize as pipeline
from quantcli.planning import plan
from quantcli.planning.request import Request
from quantcli.stores import open_source, strided
from quantcli.tensors import api, rows

ZOO: dict[str, np.ndarray] = {
    "layers.0.q.weight": gaussian(40, 100, seed=1),
    "layers.0.k.weight": gaussian(64, 96, seed=2).astype(BF16),
    "layers.0.v.weight": gaussian(33, 70, seed=3).astype(np.float16),
    "layers.0.o.weight": gaussian(50, 64, seed=4).astype(np.float64),
    "conv.weight": gaussian(16, 8, 3, 3, seed=6),
    "cube.weight": gaussian(4, 12, 32, seed=7).astype(BF16),
    "wide.weight": gaussian(3, 5000, seed=8).astype(BF16),
    "widest.weight": gaussian(1, 4001, seed=9),
    "tall.weight": gaussian(3000, 3, seed=10),
    "column.weight": gaussian(2000, 1, seed=11),
    "zeros.weight": np.zeros((32, 64), np.float32),
    "constant.weight": np.full((32, 64), -0.3, np.float32),
    "outlier.weight": np.concatenate([np.full((1, 64), 300.0, np.float32), gaussian(31, 64, scale=0.01)]),
    "norm.weight": gaussian(64).astype(BF16),
    "norm.bias": np.array([np.nan, np.inf, 1.0], np.float32),
    "embed_tokens.weight": gaussian(50, 64).astype(BF16),
    "position_ids": np.arange(512, dtype=np.int64)[None],
    "mask": np.array([[True, False], [False, True]]),
    "empty": np.zeros((0, 5), np.float32),
    "scalar": np.array(2.5, np.float32),
    "small": gaussian(3, 5),
    "complex": np.ones((40, 40), np.complex64),
    "odd bytes": np.arange(3, dtype=np.uint8),
}
SCALES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
QUANTIZED = [name for name in ZOO if name.endswith("weight") and not name.startswith(("norm", "embed", "column"))]

SCHEMES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "w4g128": (["--bits", "4"], {"bits": 4}),
    "w3g32": (["--bits", "3", "--group-size", "32"], {"bits": 3, "group_size": 32}),
    "w8c": (["--bits", "8", "--group-size", "-1"], {"bits": 8, "granularity": "channel"}),
    "w5t": (["--bits", "5", "--group-size", "0"], {"bits": 5, "granularity": "tensor"}),
    "w4g32-asym": (["--group-size", "32", "--asymmetric"], {"bits": 4, "group_size": 32, "symmetric": False}),
    "w7t-asym": (
        ["--bits", "7", "--granularity", "tensor", "--asymmetric"],
        {"bits": 7, "granularity": "tensor", "symmetric": False},
    ),
    "w6c1-asym": (
        ["--bits", "6", "--granularity", "channel", "--axis", "1", "--asymmetric"],
        {"bits": 6, "granularity": "channel", "axis": 1, "symmetric": False},
    ),
    "w2g16-float": (
        ["--bits", "2", "--group-size", "16", "--asymmetric", "--zero-point", "float"],
        {"bits": 2, "group_size": 16, "symmetric": False, "zero_point": "float"},
    ),
    "w4g64-extreme": (
        ["--group-size", "64", "--calibration", "signed-extreme"],
        {"bits": 4, "group_size": 64, "calibration": "signed-extreme"},
    ),
    "w1g64": (["--bits", "1", "--group-size", "64"], {"bits": 1, "group_size": 64}),
    "w1c1": (
        ["--bits", "1", "--granularity", "channel", "--axis", "-1"],
        {"bits": 1, "granularity": "channel", "axis": -1},
    ),
    "w12g7": (["--bits", "12", "--group-size", "7"], {"bits": 12, "group_size": 7}),
    "w16c-bf16": (
        ["--bits", "16", "--group-size", "-1", "--scale-dtype", "bfloat16"],
        {"bits": 16, "granularity": "channel", "scale_dtype": "bfloat16"},
    ),
}


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    return save(tmp_path / "zoo.safetensors", ZOO, {"format": "np", "author": "someone"})


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tiles of every tensor, rows in pieces, and tensors in two passes."""
    monkeypatch.setattr(rows, "TILE", 640)
    monkeypatch.setattr(api, "TILE", 640)


def quantize(source: Path, *flags: object, name: str = "out.safetensors", code: int = 0) -> Path:
    out = source.parent / name
    ran = run("quantize", source, "-o", out, *flags)
    assert ran.code == code, ran
    return out


def stream(words: np.ndarray, count: int, bits: int) -> np.ndarray:
    """Codes of rows of 32-bit words, by numpy's bit unpacking."""
    flat = np.ascontiguousarray(words).view(np.uint8)
    unpacked = np.unpackbits(flat, axis=-1, bitorder="little")[..., : count * bits]
    found: np.ndarray = (unpacked.reshape(*words.shape[:-1], count, bits).astype(np.int64) << np.arange(bits)).sum(-1)
    return found


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("threads", [1, 3])
def test_files_hold_what_the_array_api_gives(threads: int, name: str, zoo: Path, small_tiles: None) -> None:
    """the same input and scheme give the same bytes: codes, scales and zero points, tile by tile or whole"""
    flags, fields = SCHEMES[name]
    out = quantize(zoo, *flags, "--threads", threads)
    stored = load(out)
    with quantcli.open(str(out)) as model:
        assert set(model) == set(ZOO)
        for tensor in QUANTIZED:
            array = ZOO[tensor]
            expected = quantcli.quantize(array, Scheme(**fields))
            bits, shape = fields["bits"], array.shape
            found = model[tensor].quantized()
            np.testing.assert_array_equal(found.codes, expected.codes, tensor)
            np.testing.assert_array_equal(found.scale, expected.scale, tensor)
            np.testing.assert_array_equal(model[tensor].numpy(), expected.dequantize())
            assert model[tensor].scheme == Scheme(**fields)

            # The same from the bytes, without any of our readers.
            lead = expected.grouping.lead
            codes = stream(stored[f"{tensor}_packed"].array, expected.grouping.cols, bits)
            assert stored[f"{tensor}_packed"].shape[:-1] == lead
            offset = np.int64(0 if not expected.scheme.symmetric else 1 << (bits - 1))
            binary = bits == 1 and expected.scheme.symmetric
            wanted = expected.codes > 0 if binary else expected.codes + offset
            np.testing.assert_array_equal(codes.reshape(shape), wanted)
            scale = stored[f"{tensor}_scale"]
            assert expected.scheme.scale_dtype is not None
            assert scale.dtype == SCALES[expected.scheme.scale_dtype]
            np.testing.assert_array_equal(scale.array.astype(np.float32), expected.scale)
            assert stored[f"{tensor}_shape"].array.tolist() == list(shape)
            if fields.get("zero_point") == "float":
                np.testing.assert_array_equal(stored[f"{tensor}_offset"].array.astype(np.float32), expected.zero_point)
            elif not expected.scheme.symmetric:
                assert expected.zero_point is not None
                words = stored[f"{tensor}_zero_point"].array
                matrix = expected.zero_point.reshape(-1, words.shape[1])
                np.testing.assert_array_equal(stream(words.T, matrix.shape[0], bits).T, matrix)


@pytest.mark.parametrize("name", SCHEMES)
def test_reported_errors_are_those_of_the_array_api(name: str, zoo: Path, small_tiles: None) -> None:
    """what is reported is what a reader of the file will get"""
    flags, fields = SCHEMES[name]
    out = zoo.parent / "out.safetensors"
    written = run("quantize", zoo, "-o", out, *flags, "--threads", 3, "--json").json
    read = run("report", out, "--json").json
    again = run("report", out, "--against", zoo, "--json").json
    for document in (written, read, again):
        by_name = {t["name"]: t for t in document["tensors"]}
        assert set(by_name) == set(ZOO)
        for tensor in QUANTIZED:
            array = ZOO[tensor]
            expected = quantcli.quantize(array, Scheme(**fields)).metrics(array)
            found = by_name[tensor]
            for key in ("mse", "max_abs_error", "clipped_fraction", "nmse", "sqnr_db"):
                assert found[key] == getattr(expected, key), (tensor, key)
    for key in ("parameters", "coverage", "bits_per_weight", "mse", "nmse", "sqnr_db", "bytes_in", "bytes_out"):
        assert written["summary"][key] == read["summary"][key] == again["summary"][key], key


@pytest.mark.parametrize("name", SCHEMES)
def test_the_number_of_threads_changes_nothing(name: str, zoo: Path, small_tiles: None) -> None:
    """Threads 1, 2, 7: identical bytes."""
    outs = [quantize(zoo, *SCHEMES[name][0], "--threads", n, name=f"out{n}.safetensors") for n in (1, 2, 7)]
    assert len({digest(out) for out in outs}) == 1


@pytest.mark.skipif(native.find() is None, reason="the native kernels are not built (no _kernels library)")
@pytest.mark.parametrize("name", SCHEMES)
def test_the_kernels_change_nothing(name: str, zoo: Path) -> None:
    """with or without the native kernels"""
    outs = []
    for kernels in ("native", "numpy"):
        out = zoo.parent / f"{kernels}.safetensors"
        ran = run_process("quantize", zoo, "-o", out, *SCHEMES[name][0], QUANTCLI_KERNELS=kernels)
        assert ran.code == 0, ran
        outs.append(out)
    left, right = (load(out) for out in outs)
    assert [name for name in left if left[name] != right[name]] == []
    assert header_of(outs[0]) == header_of(outs[1])
    assert digest(outs[0]) == digest(outs[1])


def test_rows_wider_than_a_tile(tmp_path: Path) -> None:
    """Real tiles, not patched ones: rows of more than half a million weights."""
    array = gaussian(2, 600_100, seed=3)
    source = save(tmp_path / "wide.safetensors", {"wide": array})
    for flags, fields in (
        ([], {}),
        (["--group-size", "100"], {"group_size": 100}),
        (["--group-size", "-1", "--asymmetric"], {"granularity": "channel", "symmetric": False}),
        (["--group-size", "0"], {"granularity": "tensor"}),
        (["--granularity", "channel", "--axis", "1"], {"granularity": "channel", "axis": 1}),
    ):
        out = quantize(source, *flags, "--force")
        with quantcli.open(str(out)) as model:
            found, expected = model["wide"].quantized(), quantcli.quantize(array, Scheme(bits=4, **fields))
            np.testing.assert_array_equal(found.codes, expected.codes)
            np.testing.assert_array_equal(found.scale, expected.scale)
        report = run("report", out, "--against", source, "--json").json
        assert report["tensors"][0]["mse"] == expected.metrics(array).mse


# ---- the file itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMES)
def test_kept_tensors_are_the_same_bytes(name: str, zoo: Path) -> None:
    """pass through bit-exact, as bytes, NaN included"""
    before, after = load(zoo), load(quantize(zoo, *SCHEMES[name][0]))
    for tensor in set(ZOO) - set(QUANTIZED):
        assert after[tensor] == before[tensor], tensor
    for tensor in QUANTIZED:
        assert tensor not in after


@pytest.mark.parametrize("name", SCHEMES)
def test_data_is_aligned_and_contiguous(name: str, zoo: Path) -> None:
    out = quantize(zoo, *SCHEMES[name][0])
    header = header_of(out)
    length = int.from_bytes(out.read_bytes()[:8], "little")
    assert length % 8 == 0
    entries = sorted((e["data_offsets"], e["dtype"]) for n, e in header.items() if n != "__metadata__")
    at = 0
    for (begin, end), dtype in entries:
        assert begin == at, "a hole"
        assert (8 + length + begin) % NUMPY_OF[dtype].itemsize == 0 or begin == end
        at = end
    assert 8 + length + at == out.stat().st_size


def test_metadata_is_kept(zoo: Path) -> None:
    found = metadata_of(quantize(zoo))
    assert {k: v for k, v in found.items() if k != "quantcli"} == {"format": "np", "author": "someone"}
    assert set(found) == {"format", "author", "quantcli"}


def test_nothing_in_the_file_tells_where_or_when(zoo: Path, tmp_path: Path) -> None:
    """Deterministic bytes for the same input, options and version; no timestamps or paths"""
    first = quantize(zoo, name="first.safetensors")
    other = tmp_path / "elsewhere"
    other.mkdir()
    moved = other / "renamed.safetensors"
    moved.write_bytes(zoo.read_bytes())
    os.utime(moved, (1, 1))
    assert digest(first) == digest(quantize(moved, "--threads", 1))
    assert str(tmp_path) not in first.read_bytes().decode("latin-1")


@pytest.mark.parametrize("kind", ["xxh3", "sha256", "none"])
def test_digests_of_the_source(kind: str, zoo: Path, small_tiles: None) -> None:
    import hashlib

    out = zoo.parent / "out.safetensors"
    report = run("quantize", zoo, "-o", out, "--digest", kind, "--json").json
    data = {name: tensor.data for name, tensor in load(zoo).items()}
    by_kind: dict[str, Callable[[bytes], str | None]] = {
        "xxh3": digest_by_definition, "sha256": lambda b: hashlib.sha256(b).hexdigest(), "none": lambda b: None,
    }  # fmt: skip
    for tensor in report["tensors"]:
        assert tensor["digest"] == by_kind[kind](data[tensor["name"]]), tensor["name"]
    assert run("report", out, "--against", zoo).code == 0


def test_a_report_against_other_weights_is_refused(zoo: Path) -> None:
    out = quantize(zoo)
    for changed in ("layers.0.q.weight", "norm.weight"):
        tensors = {**ZOO, changed: ZOO[changed] * np.asarray(1.5, ZOO[changed].dtype)}
        other = save(zoo.parent / "other.safetensors", tensors)
        line = one_line(run("report", out, "--against", other), 2)
        assert changed in line and "digests differ" in line and "--ignore-digest" in line
        assert run("report", out, "--against", other, "--ignore-digest").code == 0
    fewer = save(zoo.parent / "fewer.safetensors", {k: v for k, v in ZOO.items() if k != "conv.weight"})
    assert "conv.weight" in one_line(run("report", out, "--against", fewer), 2)
    more = save(zoo.parent / "more.safetensors", {**ZOO, "extra": np.ones(3)})
    assert "extra" in one_line(run("report", out, "--against", more), 2)
    shape = save(zoo.parent / "shape.safetensors", {**ZOO, "conv.weight": ZOO["conv.weight"].reshape(8, 16, 3, 3)})
    assert "conv.weight" in one_line(run("report", out, "--against", shape), 2)
    assert "quantized itself" in one_line(run("report", out, "--against", out), 2)


# ---- decoding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMES)
def test_dequantized_files_hold_what_the_array_api_decodes(name: str, zoo: Path, small_tiles: None) -> None:
    flags, fields = SCHEMES[name]
    out, back = quantize(zoo, *flags), zoo.parent / "back.safetensors"
    assert run("dequantize", out, "-o", back, "--threads", 3).code == 0
    before, after = load(zoo), load(back)
    assert set(after) == set(before)
    for tensor, original in before.items():
        assert (after[tensor].dtype, after[tensor].shape) == (original.dtype, original.shape)
        if tensor not in QUANTIZED:
            assert after[tensor] == original
            continue
        decoded = quantcli.quantize(ZOO[tensor], Scheme(**fields)).dequantize()
        np.testing.assert_array_equal(
            after[tensor].array.astype(np.float32), decoded.astype(NUMPY_OF[original.dtype]).astype(np.float32), tensor
        )
    assert metadata_of(back) == {"format": "np", "author": "someone"}


@pytest.mark.parametrize(
    ("name", "dtype"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16"), ("float64", "F64")]
)
def test_dequantizing_to_another_dtype(name: str, dtype: str, zoo: Path) -> None:
    out, back = quantize(zoo), zoo.parent / "back.safetensors"
    assert run("dequantize", out, "-o", back, "--dtype", name).code == 0
    after = load(back)
    for tensor in QUANTIZED:
        decoded = quantcli.quantize(ZOO[tensor], Scheme(bits=4)).dequantize()
        assert after[tensor].dtype == dtype
        assert after[tensor].data == decoded.astype(NUMPY_OF[dtype]).tobytes()
    assert after["norm.weight"] == load(zoo)["norm.weight"]


def test_decoded_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "m.safetensors", {"w": gaussian(40, 40, scale=1e6)})
    out = quantize(source)
    line = one_line(run("dequantize", out, "--dtype", "float16"), 1)
    assert "w: a decoded weight does not fit F16; use --dtype float32" in line
    assert sorted(os.listdir(tmp_path)) == ["m.safetensors", "out.safetensors"]


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_numpy_files(suffix: str, tmp_path: Path, small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strided, "SLAB", 800)  # Fortran arrays are turned around by several threads
    arrays = {
        "a": np.asfortranarray(gaussian(40, 60)),
        "b": gaussian(50, 50).astype(">f4"),
        "c": gaussian(40, 40).astype("f8"),
    }
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        arrays = {"a": arrays["a"]}
        np.save(path, arrays["a"])
    else:
        np.savez_compressed(path, allow_pickle=False, **arrays)
    out = quantize(path, "--threads", 3)
    assert run("report", out, "--against", path).code == 0
    with quantcli.open(str(out)) as model:
        for name, array in arrays.items():
            np.testing.assert_array_equal(model[name].numpy(), quantcli.quantize(array, Scheme(bits=4)).dequantize())


def test_the_default_name_tells_the_scheme(zoo: Path) -> None:
    assert run("quantize", zoo, "--bits", "8", "--group-size", "-1").code == 0
    assert (zoo.parent / "zoo-w8c.safetensors").is_file()
    assert run("dequantize", zoo.parent / "zoo-w8c.safetensors").code == 0
    assert (zoo.parent / "zoo-w8c-dequantized.safetensors").is_file()


# ---- second passes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [[], ["--group-size", "0"], ["--group-size", "-1"], ["--asymmetric"], ["--granularity", "channel", "--axis", "1"]],
    ids=str,
)
def test_scales_that_do_not_fit_become_float32(flags: list[str], tmp_path: Path, small_tiles: None) -> None:
    tensors = {
        "a": gaussian(40, 64),
        "huge": gaussian(40, 64, scale=1e8),
        "b": gaussian(40, 64, seed=2),
        "tiny": gaussian(40, 64, scale=1e-12),
        "late": np.concatenate([gaussian(39, 64), gaussian(1, 64) * 1e9]),
    }
    source = save(tmp_path / "m.safetensors", {k: v.astype(np.float32) for k, v in tensors.items()})
    out = tmp_path / "out.safetensors"
    ran = run("quantize", source, "-o", out, *flags, "--threads", 3, "--json")
    assert ran.code == 0, ran
    stored = load(out)
    expected = {name: "F32" if name in ("huge", "tiny", "late") else "F16" for name in tensors}
    assert {name: stored[f"{name}_scale"].dtype for name in tensors} == expected
    notes = {t["name"]: t["note"] for t in ran.json["tensors"]}
    assert {name for name, note in notes.items() if "float32 scales" in note} == {"huge", "tiny", "late"}
    assert "warning: float32 scales" in ran.err and all(name in ran.err for name in ("huge", "tiny", "late"))
    with quantcli.open(str(out)) as model:
        for name in tensors:
            scheme = model[name].scheme
            assert scheme is not None
            expected_tensor = quantcli.quantize(tensors[name].astype(np.float32), scheme)
            np.testing.assert_array_equal(model[name].numpy(), expected_tensor.dequantize())
    assert run("report", out, "--against", source).code == 0
    assert left_behind(tmp_path) == []


def test_explicit_float16_scales_are_not_replaced(tmp_path: Path) -> None:
    source = save(tmp_path / "m.safetensors", {"a": gaussian(40, 64), "huge": gaussian(40, 64, scale=1e8)})
    line = one_line(run("quantize", source, "--scale-dtype", "float16"), 1)
    assert "huge: a scale does not fit float16; use --scale-dtype float32" in line
    assert os.listdir(tmp_path) == ["m.safetensors"]


@pytest.mark.parametrize(
    "flags", [[], ["--group-size", "0"], ["--granularity", "channel", "--axis", "1"], ["--bits", "1"]], ids=str
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16, np.float64])
def test_what_is_not_finite_is_refused_with_its_place(
    dtype: Any, flags: list[str], tmp_path: Path, small_tiles: None
) -> None:
    """refuse, naming file, tensor, count, first flat index"""
    bad = gaussian(50, 64).astype(dtype)
    bad[20, 5] = bad[49, 63] = np.nan
    bad[33, 0] = np.inf
    source = save(tmp_path / "m.safetensors", {"good": gaussian(40, 64), "bad": bad})
    for threads in (1, 3):
        line = one_line(run("quantize", source, *flags, "--threads", threads), 1)
        assert line.startswith(f"{source}: bad: 3 NaN or infinite values, the first at flat index {20 * 64 + 5}")
        assert "--on-nonfinite keep" in line
        assert os.listdir(tmp_path) == ["m.safetensors"]


@pytest.mark.parametrize(
    "flags", [[], ["--group-size", "0"], ["--granularity", "channel", "--axis", "1"], ["--bits", "1"]], ids=str
)
def test_what_is_not_finite_is_kept_on_request(flags: list[str], tmp_path: Path, small_tiles: None) -> None:
    bad = gaussian(50, 64)
    bad[20, 5] = np.nan
    tensors = {
        "good": gaussian(40, 64),
        "bad": bad,
        "huge": gaussian(40, 64, scale=1e8),
        "worse": np.full((50, 64), -np.inf, np.float32),
    }
    source = save(tmp_path / "m.safetensors", tensors)
    out = tmp_path / "out.safetensors"
    ran = run("quantize", source, "-o", out, *flags, "--on-nonfinite", "keep", "--json", "--threads", 3)
    assert ran.code == 0, ran
    reasons = {t["name"]: t["reason"] for t in ran.json["tensors"]}
    assert reasons == {"good": "default", "bad": "nonfinite", "huge": "default", "worse": "nonfinite"}
    assert "bad" in ran.err and "worse" in ran.err
    assert load(out)["bad"] == load(source)["bad"]
    assert run("report", out, "--against", source).code == 0


def test_the_first_of_several_errors_is_told(tmp_path: Path, small_tiles: None) -> None:
    """the earliest task's error is the one that is raised, whatever the threads do"""
    bad = gaussian(100, 64)
    bad[-1, -1] = np.nan
    tensors = {f"t{i:02}": bad if i % 3 == 2 else gaussian(100, 64) for i in range(20)}
    source = save(tmp_path / "m.safetensors", tensors)
    lines = {one_line(run("quantize", source, "--threads", n), 1) for n in (1, 2, 7, 7, 7, 7, 7, 7)}
    assert len(lines) == 1
    assert f"{source}: t02: 1 NaN or infinite values, the first at flat index 6399" in lines.pop()


def test_nothing_finite_at_all_is_an_error(tmp_path: Path) -> None:
    source = save(tmp_path / "m.safetensors", {"bad": np.full((50, 64), np.nan, np.float32)})
    assert "nothing to quantize" in one_line(run("quantize", source, "--on-nonfinite", "keep"), 1)
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_float64_beyond_float32_is_refused(tmp_path: Path) -> None:
    bad = np.ones((50, 64))
    bad[1, 1] = 1e300
    source = save(tmp_path / "m.safetensors", {"bad": bad})
    line = one_line(run("quantize", source), 1)
    assert "bad: 1 values beyond the range of float32, the first at flat index 65" in line


def test_masks_of_the_lowest_value(tmp_path: Path) -> None:
    """Buffers filled with the lowest bfloat16 or float32 are in real files."""
    low = np.triu(np.full((64, 64), -3.3895313892515355e38, np.float32), 1)
    source = save(tmp_path / "m.safetensors", {"w": gaussian(40, 64), "causal": low, "causal16": low.astype(BF16)})
    for flags in ([], ["--bits", "8"], ["--asymmetric"], ["--group-size", "0"], ["--calibration", "signed-extreme"]):
        ran = run("quantize", source, "-o", tmp_path / "out.safetensors", "--force", "--json", *flags)
        assert ran.code in (0, 1), ran
        if ran.code == 0:
            assert ran.json["tensors"][1]["max_abs_error"] is not None
            with quantcli.open(str(tmp_path / "out.safetensors")) as model:
                assert all(np.isfinite(t.numpy()).all() for t in model.values())


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_arrays_survive_a_file(name: str, tmp_path: Path) -> None:
    array = AWKWARD[name]
    array = array.astype(array.dtype.newbyteorder("<")) if array.dtype.byteorder == ">" else array
    source = save(tmp_path / "m.safetensors", {"w": array, "other": gaussian(40, 64)})
    for flags in (["--bits", "4"], ["--bits", "3", "--asymmetric", "--group-size", "7"]):
        out = quantize(source, *flags, "--include", "*", "--no-default-keep", "--force")
        assert run("report", out, "--against", source, "--json").json["summary"]["parameters"] == array.size + 2560


# ---- the output appears complete or not at all ------------------------------------------------------------------


class Meddler:
    """Progress that does something while the run is under way."""

    def __init__(self, action: Any) -> None:
        self.action = action

    def start(self, total: int) -> None:
        pass

    def advance(self, nbytes: int) -> None:
        action, self.action = self.action, None
        if action is not None:
            action()


def write_with(source_path: Path, out: Path, action: Any, *, force: bool = False) -> None:
    source = open_source(str(source_path))
    try:
        made = plan.make(source.infos(), Request(scheme=Scheme(bits=4)))
        options = pipeline.Options(threads=2, force=force, progress=Meddler(action))
        model = outputs.planned(made, source, digest=options.digest)
        pipeline.write(source, made, model, str(out), options)
    finally:
        source.close()


def test_a_source_that_changes_is_refused(zoo: Path, tmp_path: Path) -> None:
    """Input changed while reading: refuse"""

    def touch() -> None:
        os.utime(zoo, ns=(5, 5))

    def grow() -> None:
        with open(zoo, "ab") as file:
            file.write(b"more")

    for action in (touch, grow, lambda: os.truncate(zoo, 1000)):
        save(zoo, ZOO)
        with pytest.raises(DataError, match="changed while it was read"):
            write_with(zoo, tmp_path / "out.safetensors", action)
        assert os.listdir(tmp_path) == ["zoo.safetensors"]


def test_an_output_that_comes_into_being_is_not_replaced(zoo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(QuantcliError, match="another process created the output"):
        write_with(zoo, out, lambda: out.write_text("somebody else's"))
    assert out.read_text() == "somebody else's"
    assert left_behind(tmp_path) == []
    write_with(zoo, out, None, force=True)
    assert len(load(out)) > len(ZOO)


def test_no_error_touches_the_destination(zoo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("precious")

    def fail(error: type[BaseException]) -> None:
        raise error

    for error in (RuntimeError, MemoryError, KeyboardInterrupt):
        with pytest.raises(error):
            write_with(zoo, out, functools.partial(fail, error), force=True)
        assert out.read_text() == "precious"
        assert left_behind(tmp_path) == []


def test_while_it_is_written_the_destination_is_as_it_was(zoo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    seen: list[Any] = []
    write_with(zoo, out, lambda: seen.append((out.exists(), len(left_behind(tmp_path)))))
    assert seen == [(False, 1)]
    assert out.exists() and left_behind(tmp_path) == []


def test_too_little_space_is_noticed_before_the_work(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_bavail=1, f_frsize=1000, f_blocks=2))
    line = one_line(run("quantize", zoo), 1)
    assert "not enough space" in line and "1000 bytes are free" in line and str(zoo) in line
    assert os.listdir(zoo.parent) == ["zoo.safetensors"]


def test_an_existing_output_is_refused_without_force(zoo: Path) -> None:
    out = zoo.parent / "out.safetensors"
    out.write_text("precious")
    line = one_line(run("quantize", zoo, "-o", out), 2)
    assert line == f"{out}: the output exists; use --force to replace it"
    assert out.read_text() == "precious"
    assert run("quantize", zoo, "-o", out, "--force").code == 0
    assert run("dequantize", out, "-o", out).code == 2


@pytest.mark.parametrize("link", ["same", "symbolic", "hard", "dotted"])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_the_output_is_never_the_input(link: str, force: list[str], zoo: Path, tmp_path: Path) -> None:
    before = digest(zoo)
    dotted = f"{tmp_path}/./../{tmp_path.name}/{zoo.name}"
    other = tmp_path / "out.safetensors"
    if link == "symbolic":
        other.symlink_to(zoo)
    elif link == "hard":
        os.link(zoo, other)
    out = {"same": zoo, "dotted": dotted}.get(link, other)
    assert "same file" in one_line(run("quantize", zoo, "-o", out, *force), 2)
    assert digest(zoo) == before


def test_outputs_that_are_no_files(zoo: Path, tmp_path: Path) -> None:
    assert "folder" in one_line(run("quantize", zoo, "-o", tmp_path, "--force"), 2)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in one_line(run("quantize", zoo, "-o", tmp_path / "pipe", "--force"), 2)
    assert "no such folder" in one_line(run("quantize", zoo, "-o", tmp_path / "no" / "out.safetensors"), 1)
    one_line(run("quantize", zoo, "-o", zoo / "out.safetensors"), 1)
    one_line(run("quantize", zoo, "-o", tmp_path / ("x" * 300)), 1)


def test_a_link_to_the_destination_stays(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    out, target = tmp_path / "out.safetensors", tmp_path / "real" / "file.safetensors"
    out.symlink_to(target)
    assert run("quantize", zoo, "-o", out).code == 0
    assert out.is_symlink() and target.is_file()
    assert run("quantize", zoo, "-o", out, "--force").code == 0
    assert out.is_symlink() and left_behind(tmp_path / "real") == []


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes(umask: int, zoo: Path) -> None:
    """mode 0666 & ~umask, old mode kept on overwrite"""
    before = os.umask(umask)
    try:
        out = quantize(zoo)
        assert out.stat().st_mode & 0o777 == 0o666 & ~umask
        out.chmod(0o604)
        quantize(zoo, "--force")
        assert out.stat().st_mode & 0o777 == 0o604
        back = zoo.parent / "back.safetensors"
        assert run("dequantize", out, "-o", back).code == 0
        assert back.stat().st_mode & 0o777 == 0o666 & ~umask
    finally:
        os.umask(before)


def test_quantized_files_are_not_quantized_again(zoo: Path) -> None:
    """never quantize scales"""
    out = quantize(zoo)
    assert "quantized already" in one_line(run("quantize", out), 1)
    assert "it holds no quantized tensor" in one_line(run("dequantize", zoo), 1)
    assert "it holds no quantized tensor" in one_line(run("report", zoo), 2)


@pytest.mark.parametrize("damage", ["scale", "packed", "document", "version", "scheme", "missing", "extra"])
def test_damaged_quantized_files(damage: str, zoo: Path) -> None:
    import json

    from making import raw_file

    out = quantize(zoo)
    header, data = header_of(out), out.read_bytes()
    data = data[8 + int.from_bytes(data[:8], "little") :]
    document = json.loads(header["__metadata__"]["quantcli"])
    entry = header["layers.0.q.weight_scale"]
    if damage == "scale":
        begin = entry["data_offsets"][0]
        data = data[:begin] + b"\x00\x7c" + data[begin + 2 :]  # an infinite float16
    elif damage == "packed":
        header["layers.0.q.weight_packed"]["shape"].reverse()
    elif damage == "document":
        header["__metadata__"]["quantcli"] = header["__metadata__"]["quantcli"][:-10]
    elif damage == "version":
        header["__metadata__"]["quantcli"] = json.dumps({**document, "version": 99})
    elif damage == "scheme":
        document["schemes"][0]["bits"] = 40
        header["__metadata__"]["quantcli"] = json.dumps(document)
    elif damage == "missing":
        del document["tensors"]["norm.weight"]
        header["__metadata__"]["quantcli"] = json.dumps(document)
    else:
        document["tensors"]["ghost"] = {"reason": "norm"}
        header["__metadata__"]["quantcli"] = json.dumps(document)
    bad = zoo.parent / "bad.safetensors"
    bad.write_bytes(raw_file(header, data))
    line = one_line(run("dequantize", bad), 1)
    assert line.startswith(str(bad))
    if damage == "scale":
        assert "layers.0.q.weight: a stored scale is not finite" in line
    else:
        one_line(run("report", bad), 2)


def test_what_codes_do_not_make_smaller_is_named(tmp_path: Path) -> None:
    """A column of 32-bit floats has 48 bits a weight at 4 bits; two rows of 1,024 have fewer than 5. Each is decoded to
    what the array API makes of it."""
    for name, shape, named in (("column", (2048, 1), True), ("rows", (2, 1024), False)):
        source = tmp_path / f"{name}.npy"
        np.save(source, gaussian(*shape))
        ran = run("quantize", source, "--bits", 4, "-o", tmp_path / f"{name}.safetensors")
        assert ran.code == 0
        with quantcli.open(str(tmp_path / f"{name}.safetensors")) as model:
            expected = quantcli.quantize(gaussian(*shape), Scheme(bits=4)).dequantize()
            np.testing.assert_array_equal(model[name].numpy(), expected)
        line = f"as large in codes as before or larger, which --exclude keeps as they are: {name}"
        assert (line in ran.err) == named
