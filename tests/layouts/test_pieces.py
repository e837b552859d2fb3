"""Pieces of a weight that are written one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quantcli import DataError, Scheme, UsageError
from quantcli.layouts import pieces
from quantcli.layouts.pieces import BAND, SLAB, bands
from quantcli.tensors.decided import Kept, Quantized
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan, grouping_of


def weight(shape: tuple[int, ...], name: str = "m.weight", **fields: Any) -> Quantized:
    scheme = Scheme(**{"bits": 4, "group_size": 32, **fields})
    grouping = grouping_of(shape, scheme)
    return Quantized(
        info=TensorInfo(name, "F32", shape), reason="", scheme=scheme, grouping=grouping, scale_dtype="F16"
    )


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 8])
@pytest.mark.parametrize("shape", [(4096, 4096), (11008, 4096), (4096, 11008), (5000, 1000), (70, 32)])
@pytest.mark.parametrize(("unit", "slab"), [(1, False), (8, True), (32, True)])
def test_pieces_end_between_tiles(bits: int, shape: tuple[int, int], unit: int, slab: bool) -> None:
    """They cover the rows in order, whole units at a time; no two of them share a tile, which would be made twice,
    where a tile may be a unit."""
    plan = grouping_of(shape, Scheme(bits=bits, group_size=32))
    found = list(bands(plan, bits, 32, unit=unit, slab=slab))
    begins = [p.row for p in found]
    assert begins == [0, *(p.row + p.rows for p in found[:-1])] and found[-1].row + found[-1].rows == shape[0]
    assert not any(row % unit for row in begins)
    assert max(p.rows * p.cols for p in found) * bits / 8 <= 2 * (SLAB if slab else BAND)
    if unit == 1:
        assert set(begins) <= {t.row for t in plan.tiles()}


@given(
    st.integers(1, 40), st.integers(0, 7), st.integers(1, 60),
    st.sampled_from([2, 3, 4, 8]), st.sampled_from([1, 8, 32]),
    st.sampled_from([(16, 16), (32, 32), (64, 32), (48, 16), (640, 32), (10**6, 32)]), st.sampled_from([16, 300, 4096]),
)  # fmt: skip
@example(1, 0, 20, 4, 1, (640, 32), 16)
@example(1, 3, 20, 4, 8, (64, 32), 16)
def test_pieces_of_long_rows(
    height: int, missing: int, width: int, bits: int, unit: int, groups: tuple[int, int], limit: int
) -> None:
    """Every weight once; parts of rows end between words, native groups and the target's, and are as small as those
    and the limit allow. A size above that of a row keeps rows whole."""
    group, size = groups  # a group of 10^6 stands for a size above that of a row
    rows, cols = max(1, height * unit - missing), 32 * width
    size, group = size if group < 10**6 else cols + 1, min(group, cols)
    plan = grouping_of((rows, cols), Scheme(bits=bits, group_size=group))
    before = pieces.BAND
    pieces.BAND = limit
    try:
        found = list(bands(plan, bits, size, unit=unit))
    finally:
        pieces.BAND = before
    seen = np.zeros((rows, cols), np.int8)
    steps = [g for g in (size, group) if g < cols]
    for span in found:
        seen[span.row : span.row + span.rows, span.col : span.col + span.cols] += 1
        assert span.row + span.rows <= rows and span.col + span.cols <= cols
        assert span.row % unit == 0 and (span.rows % unit == 0 or span.row + span.rows == rows)
        assert span.cols == cols or not any(span.col % g for g in (32, *steps))
        step = np.lcm.reduce([32, *steps])
        least = unit * (cols if size > cols else min(step, cols)) * bits / 8
        tile = plan.tile_rows * cols * bits / 8
        assert span.rows * span.cols * bits / 8 <= max(limit, least, 2 * limit if tile <= 2 * limit else 0)
    assert (seen == 1).all()


@given(st.integers(1, 300), st.integers(1, 40), st.sampled_from([2, 3, 4, 8]), st.sampled_from([8, 32]))
def test_a_slab_in_pieces(height: int, width: int, bits: int, unit: int) -> None:
    """multiples of a unit of rows, which follow each other, of half a MiB where a unit is not more"""
    slab = TileSpan(3 * unit, height * unit, 64, 4096 * width)
    found = list(pieces.below(slab, bits, unit))
    assert [s.row for s in found] == [slab.row, *(s.row + s.rows for s in found[:-1])]
    assert found[-1].row + found[-1].rows == slab.row + slab.rows
    assert all(s.rows % unit == 0 and (s.col, s.cols) == (64, 4096 * width) for s in found)
    assert all(s.rows == unit or s.rows * s.cols * bits / 8 <= 1 << 19 for s in found)


@pytest.mark.parametrize(("made", "options", "why"), [
    (weight((8, 64)), {}, None),
    (weight((64,)), {}, "it has 1 dimension, and the target has matrices only"),
    (weight((2, 8, 64)), {}, "it has 3 dimensions, and the target has matrices only"),
    (weight((2, 8, 64)), {"most": 3}, None),
    (weight((64,)), {"most": 3}, "it has 1 dimension"),
    (weight((8, 64)), {"least": 3, "most": 3}, "it has 2 dimensions"),
    (weight((8, 64), "m.kernel"), {}, "its name does not end in .weight"),
    (weight((8, 64), ".weight"), {}, "its name does not end in .weight"),
    (weight((8, 4, 4), group_size=16), {"most": 3}, "its rows run over several axes"),
    (weight((8, 72)), {}, "a short last group of 8"), (weight((8, 72)), {"short": True}, None),
    (weight((8, 64), group_size=128), {}, None),
    (weight((8, 24), format="fp4", scale_dtype="float8_e4m3"), {}, "rows of 24, shorter than a group of 32"),
    (weight((8, 32), format="fp4", scale_dtype="float8_e4m3"), {}, None),
    (weight((8, 24), bits=None, format="fp8-e4m3", group_size=None, granularity="channel"), {}, None),
])  # fmt: skip
def test_what_is_no_weight_of_a_module(made: Quantized, options: dict[str, Any], why: str | None) -> None:
    assert pieces.not_a_matrix(made, **options) == why


def test_a_copy_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """of all bytes, and of no byte behind them"""
    monkeypatch.setattr(pieces, "COPY", 16)
    info, data = TensorInfo("kept", "U8", (37,)), np.arange(37, dtype=np.uint8)
    out = bytearray(37)

    class Source:
        def read_bytes(self, name: str, start: int, size: int) -> np.ndarray:
            assert name == "kept" and 0 < size <= 16 and start + size <= 37
            return data[start : start + size]

    def write(output: int, offset: int, raw: Any) -> None:
        assert output == 0
        out[offset : offset + len(raw)] = bytes(raw)

    job = pieces.plain(info)
    assert job.outputs == (info,)
    assert all(piece(Source(), write) for piece in job.pieces())
    assert bytes(out) == data.tobytes()


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_a_block_of_a_matrix(height: int, width: int, row: int, col: int, whole: bool) -> None:
    """is put where it belongs, and nothing else is written"""
    wide = width if whole else col + width + 2
    col = 0 if whole else col
    out = np.zeros((row + height + 1, wide), "<u4")
    block = np.arange(1, height * width + 1, dtype="<u4").reshape(height, width)
    expected = out.copy()
    expected[row : row + height, col : col + width] = block
    raw = bytearray(out.tobytes())

    def write(output: int, offset: int, values: Any) -> None:
        data = bytes(memoryview(values).cast("B"))
        assert output == 7 and offset + len(data) <= len(raw)
        raw[offset : offset + len(data)] = data

    pieces.put_columns(write, 7, block, (row, col), wide)
    np.testing.assert_array_equal(np.frombuffer(bytes(raw), "<u4").reshape(out.shape), expected)


def test_scales_in_another_dtype() -> None:
    """Exact, rounded, or refused where one would be infinite, or 0 though it was not."""
    for values, exact in (([0.5, -2.0, 0.0], True), ([0.1, 1.0, 3.0], False)):
        found, same = pieces.rounded(np.array(values, np.float32), "F16", "w")
        assert same == exact and found.tolist() == [float(np.float16(v)) for v in values]
    for value in (1e9, -1e9, 1e-9):
        with pytest.raises(DataError, match="a scale does not fit F16"):
            pieces.rounded(np.array([1.0, value], np.float32), "F16", "w")
    found, same = pieces.rounded(np.array([1.0, 1e-9], np.float32), "F16", "w", zeros=True)
    assert not same and found.tolist() == [1.0, 0.0]


@given(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1, max_size=4), st.integers(1, 8),
       st.integers(-120, 120), st.integers(0, 3))  # fmt: skip
def test_products_of_codes_and_scales(values: list[float], bits: int, power: int, spoilt: int) -> None:
    """where they are said to fit float32, each of them does: by trying all"""
    with np.errstate(over="ignore"):
        scale = (np.array(values, np.float64) * 2.0**power).astype(np.float32)
    if spoilt and np.isfinite(scale).all():
        scale[0] = np.nextafter(scale[0], np.float32(np.inf))
    codes = np.arange(1 << bits)
    with np.errstate(over="ignore"):
        exact = codes[:, None] * scale.astype(np.float64)
        fits = bool((exact.astype(np.float32) == exact).all()) and bool(np.isfinite(exact).all())
    assert not pieces.products_fit(scale, bits) or fits


def test_products_of_usual_scales() -> None:
    half = np.array([0.1, 3.7, -65504.0], np.float16).astype(np.float32)
    assert pieces.products_fit(half, 8) and not pieces.products_fit(np.array([0.1], np.float32), 8)
    assert not pieces.products_fit(np.array([1.0, 2.0**126], np.float32), 4)


def test_one_size_for_a_model() -> None:
    """a common divisor of all groups; whole rows where none has groups"""
    sizes = (16, 32, 64, 128)
    rows = weight((8, 64), granularity="channel", group_size=None)
    assert pieces.one_group([rows], sizes) == pieces.one_group([], sizes) == -1
    assert pieces.one_group([rows, weight((8, 256), group_size=64), weight((8, 96), group_size=96)], sizes) == 32
    with pytest.raises(UsageError, match="have no common size that it supports"):
        pieces.one_group([weight((8, 72), group_size=24)], sizes)
    with pytest.raises(UsageError, match=r"4 bits \(m.weight\) and 8 bits \(n.weight\) in one model"):
        pieces.same_bits([weight((8, 64)), weight((8, 64), "n.weight", bits=8)])
    kept = Kept(info=TensorInfo("k", "F32", (4,)), reason="")
    assert list(pieces.quantized([kept, rows])) == [rows]
