"""Codes of other numbers of levels than powers of two, stored as digits at their real rate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import one_line, run_process, save

import quantcli
from quantcli.kernels import row_bytes
from quantcli.tensors.digits import digits_of, pack, unpack


def by_hand(numbers: list[int], levels: int, count: int, size: int) -> bytes:
    """The bytes of codes of one row, with Python's whole numbers."""
    found = b""
    for first in range(0, len(numbers), count):
        value = sum(code * levels**place for place, code in enumerate(numbers[first : first + count]))
        found += value.to_bytes(size, "little")
    return found


@settings(deadline=None)
@given(st.integers(2, 256), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_codes_come_back_from_fewer_bytes_than_the_stream(levels: int, cols: int, seed: int) -> None:
    """`docs/file-format.md`: n codes are the digits of a number in k bytes, where that is shorter than the stream."""
    bits = (levels - 1).bit_length()
    digits = digits_of(levels, bits, cols)
    if digits is None:
        return
    codes = np.random.default_rng(seed).integers(0, levels, (3, cols), np.uint8)
    packed = pack(codes, digits)
    assert packed.nbytes < 3 * row_bytes(cols, bits) and digits.levels**digits.count <= 256**digits.size
    assert packed[1].tobytes() == by_hand(codes[1].tolist(), levels, digits.count, digits.size)
    assert np.array_equal(unpack(packed, cols, digits), codes)


@pytest.mark.parametrize(
    ("levels", "bits", "most"), [(3, 2, 1.61), (5, 3, 2.36), (6, 3, 2.67), (9, 4, 3.2), (12, 4, 3.64)]
)
def test_the_rate_is_near_the_logarithm(levels: int, bits: int, most: float) -> None:
    digits = digits_of(levels, bits, 4096)
    assert digits is not None
    assert math.log2(levels) <= digits.row_bytes(4096) * 8 / 4096 <= most + 0.01


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models: a matrix, a convolution, an odd number of columns and a row of two tiles; and two of these."""
    made = tmp_path_factory.mktemp("digits")
    draw = np.random.default_rng(3).standard_normal
    shapes = {"m.weight": (96, 256), "conv.weight": (8, 16, 3, 3), "odd.weight": (24, 131), "long.weight": (1, 1100000)}
    weights = {name: draw(shape).astype(np.float32) for name, shape in shapes.items()}
    save(made / "a.safetensors", weights)
    save(made / "b.safetensors", {name: weights[name] for name in ("m.weight", "odd.weight")})
    return made


@pytest.mark.parametrize(("levels", "size"), [(3, "48"), (12, "-1"), (6, "0")])
def test_files_verify_with_any_kernels_and_threads(folder: Path, levels: int, size: str) -> None:
    """README: the same bytes at any number of threads, with native kernels or numpy; reports are right"""
    files = []
    for kernels, threads in (("native", "1"), ("numpy", "2")):
        out = f"{kernels}-{levels}{size}.safetensors"
        options = [
            "--levels",
            str(levels),
            "--group-size",
            size,
            "--effort",
            "fast",
            "--threads",
            threads,
            "-q",
            "--force",
        ]
        ran = run_process("quantize", "a.safetensors", *options, "-o", out, cwd=folder, QUANTCLI_KERNELS=kernels)
        assert ran.code == 0, ran.err
        files.append((folder / out).read_bytes())
    assert files[0] == files[1]
    ran = run_process("verify", out, "--source", "a.safetensors", cwd=folder)
    assert ran.code == 0, ran.err
    with quantcli.open(str(folder / out)) as model:
        stored = {name: tensor.stored.bytes_out for name, tensor in model.items()}
    assert stored["long.weight"] * 8 / 1100000 < math.log2(levels) + (0.35 if size == "48" else 0.09)


def test_damage_is_found(folder: Path) -> None:
    """A byte above 3^5 - 1 is no five codes, and digits behind a row are 0."""
    run_process("quantize", "b.safetensors", "--levels", "3", "-o", "d.safetensors", "-q", "--force", cwd=folder)
    raw = bytearray((folder / "d.safetensors").read_bytes())
    with quantcli.open(str(folder / "d.safetensors")) as model:
        (packed,) = [i for i in model.source.infos() if i.name == "odd.weight_packed"]
        assert packed.dtype == "U8" and packed.shape == (24, 27)
        held = model["odd.weight"].digits(next(model["odd.weight"].stored.grouping.tiles()))  # type: ignore[union-attr]
    at = bytes(raw).index(held.tobytes())
    for place, byte, word in ((at, 250, "beyond their digits"), (at + 26, 3, "digits after the codes")):
        (folder / "bad.safetensors").write_bytes(raw[:place] + bytes([byte]) + raw[place + 1 :])
        ran = run_process("verify", "bad.safetensors", cwd=folder)
        assert ran.code == 1 and word in ran.err, ran.err


def test_codes_in_memory_and_from_a_file_are_the_same(folder: Path) -> None:
    with quantcli.open(str(folder / "b.safetensors")) as model:
        weights: Any = model["odd.weight"].numpy()
    made = quantcli.quantize(weights, levels=3, format="codebook", group_size=32)
    assert made.codes.max() == 2 and made.scheme.levels == 3


def test_sweep_and_plan_choose_among_levels(folder: Path) -> None:
    ran = run_process("sweep", "b.safetensors", "--levels", "3,6", "--bits", "2", "--include", "m.weight", cwd=folder)
    assert ran.code == 0 and "codebook-3levels-g128" in ran.out and "w2g128" in ran.out, ran.err
    options = ["--levels", "3", "--bits", "4", "--include", "m.weight", "--include", "odd.weight"]
    ran = run_process("plan", "b.safetensors", *options, "--min-sqnr", "7", cwd=folder)
    assert ran.code == 0 and "codebook-3levels-g" in ran.out, ran.err


def test_memory_needs_statistics(folder: Path) -> None:
    ran = run_process("quantize", "b.safetensors", "--memory", "1GiB", "-o", "no.safetensors", cwd=folder)
    assert "--memory: only the second moments of --statistics" in one_line(ran, 2)
    assert not (folder / "no.safetensors").exists()
