"""Integers as the signals they stand for: audio in [-1, 1), images in [0, 1]."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from making import load, npy_bytes, one_line, run

import quantcli
from quantcli.floats import Reading, float_source

CHANCE = np.random.default_rng(0)
AUDIO = CHANCE.integers(-(1 << 15), 1 << 15, (2, 4096)).astype(np.int16)
AUDIO[0, :2] = -(1 << 15), (1 << 15) - 1
IMAGE = CHANCE.integers(0, 256, (64, 64, 3)).astype(np.uint8)

CASES = {
    "i1": (Fraction(1, 1 << 7), -1.0, 127 / 128), "i2": (Fraction(1, 1 << 15), -1.0, 32767 / 32768),
    "i4": (Fraction(1, 1 << 31), -1.0, 1.0), "u1": (Fraction(1, 255), 0.0, 1.0), "u2": (Fraction(1, 65535), 0.0, 1.0),
    "u4": (Fraction(1, (1 << 32) - 1), 0.0, 1.0),
}  # fmt: skip
"""By numpy's names: what one step is, and the values of the least and the largest integer, rounded to float32."""


def is_nearest(found: np.float32, value: Fraction) -> bool:
    """Whether no float32 is closer to an exact number."""
    around = [np.nextafter(found, np.float32(-2)), np.nextafter(found, np.float32(2))]
    return all(abs(Fraction(float(found)) - value) <= abs(Fraction(float(f)) - value) for f in around)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", CASES)
def test_every_integer_is_the_nearest_float(kind: str, order: str, tmp_path: Path) -> None:
    step, least, most = CASES[kind]
    limits = np.iinfo(kind)
    codes = CHANCE.integers(limits.min, limits.max, (3, 100), dtype=kind, endpoint=True)
    codes[0, :2] = limits.min, limits.max
    path = tmp_path / "a.npy"
    path.write_bytes(npy_bytes(np.asfortranarray(codes.astype(order + kind))))
    with float_source(str(path), Reading(as_float=True), say=print) as source:
        (info,) = source.infos()
        assert (info.name, info.dtype, info.shape) == ("a", "F32", (3, 100))
        raw = bytearray(info.nbytes)
        source.read("a", 0, memoryview(raw))
        part = bytearray(10)  # bytes from within a number to within another
        source.read("a", 7, memoryview(part))
        assert part == raw[7:17]
    values = np.frombuffer(raw, "<f4")
    assert values[:2].tolist() == [least, most]
    assert all(is_nearest(value, int(code) * step) for value, code in zip(values, codes.ravel()))


def test_audio_is_what_the_same_floats_are(tmp_path: Path) -> None:
    whole, floats, outs = tmp_path / "whole", tmp_path / "floats", []
    for folder, array in ((whole, AUDIO), (floats, (AUDIO / 32768).astype(np.float32))):
        folder.mkdir()
        np.save(folder / "audio.npy", array)
        outs.append(folder / "out.safetensors")
        option = ["--as-float"] if folder == whole else []
        ran = run("quantize", folder / "audio.npy", *option, "--bits", 8, "-o", outs[-1])
        assert ran.code == 0 and ("source: 1 I16 scaled to [-1, 1)" in ran.out) == (folder == whole), ran
    assert load(outs[0]) == load(outs[1])
    original = whole / "audio.npy"
    for command in (
        ["compare", original, outs[0], "--as-float"], ["report", outs[0], "--against", original, "--as-float"],
        ["verify", outs[0], "--source", original, "--as-float"], ["sweep", original, "--as-float", "--bits", "4"],
        ["plan", original, "--as-float", "--target-bpw", "6"],
        ["quantize", original, "--as-float", "--dry-run"],
    ):  # fmt: skip
        assert run(*command).code == 0
    measured = run("compare", original, outs[0], "--as-float", "--json").json["summary"]["sqnr_db"]
    assert measured == run("compare", floats / "audio.npy", outs[0], "--json").json["summary"]["sqnr_db"]


def test_images_in_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", allow_pickle=False, image=IMAGE, mask=IMAGE > 9, gain=np.ones((8, 128), np.float32))
    report = quantcli.quantize_file(tmp_path / "a.npz", tmp_path / "out.safetensors", as_float=True, bits=8)
    kept = {tensor.name: tensor.disposition for tensor in report.tensors}
    assert kept == {"image": "quantized", "mask": "kept", "gain": "quantized"}
    assert report.decoded_from == "1 U8 scaled to [0, 1]"
    assert quantcli.plan(tmp_path / "a.npz", as_float=True, bits=8).summary.bytes_out == report.summary.bytes_out


def test_without_the_option_it_is_named(tmp_path: Path) -> None:
    path, out = tmp_path / "audio.npy", tmp_path / "out.safetensors"
    np.save(path, AUDIO)
    for command in (["quantize", path, "-o", out], ["plan", path, "--target-bpw", "5"], ["sweep", path]):
        line = one_line(run(*command), 1)
        assert line.endswith("--as-float reads the integers of a .npy or .npz file as a signal")
    assert run("quantize", path, "--as-float", "-o", out).code == 0
    assert "--as-float reads them as a signal" in run("compare", path, out).err
    line = one_line(run("report", out, "--against", path), 2)
    assert "audio is I16 in the original; --as-float reads the integers of the original as a signal" in line


def test_where_it_does_not_belong(tmp_path: Path) -> None:
    path, out = tmp_path / "a.npy", tmp_path / "out.safetensors"
    np.save(path, AUDIO)
    assert run("quantize", path, "--as-float", "-o", out).code == 0
    line = one_line(run("quantize", out, "--as-float", "-o", tmp_path / "b.safetensors"), 2)
    assert "--as-float: only integers of .npy and .npz files are read as signals; leave it out" in line
    assert "only integers of .npy" in one_line(run("compare", out, path, "--as-float"), 2)
    np.save(path, AUDIO.astype(np.float32))
    assert "no array holds integers" in one_line(run("quantize", path, "--as-float"), 2)
    assert "name it with --against" in one_line(run("report", out, "--as-float"), 2)
    assert "name it with --source" in one_line(run("verify", out, "--as-float"), 2)
