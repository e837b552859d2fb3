"""How tensors are laid out as rows, and rows cut into tiles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantcli import Scheme, UsageError
from quantcli.tensors import rows as grouping
from quantcli.tensors.digits import digits_of
from quantcli.tensors.rows import Grouping, grouping_of

CHANNEL, TENSOR = {"granularity": "channel"}, {"granularity": "tensor"}


@pytest.mark.parametrize(("shape", "fields", "rows", "cols", "group", "scale_shape", "short"), [
    ((64, 256), {}, 64, 256, 128, (64, 2), 0),
    ((64, 100), {}, 64, 100, 100, (64, 1), 0),
    ((64, 100), {"group_size": 32}, 64, 100, 32, (64, 4), 4),
    ((64, 256), CHANNEL, 64, 256, 256, (64, 1), 0),
    ((64, 256), {**CHANNEL, "axis": 1}, 64, 256, 1, (1, 256), 0),
    ((64, 256), {**CHANNEL, "axis": -1}, 64, 256, 1, (1, 256), 0),
    ((64, 256), {**CHANNEL, "axis": -2}, 64, 256, 256, (64, 1), 0),
    ((64, 256), TENSOR, 64, 256, 256, (64, 1), 0),
    ((7, 1), CHANNEL, 7, 1, 1, (7, 1), 0),
    ((64, 16, 3, 3), {}, 64, 144, 128, (64, 2), 16),
    ((64, 16, 3, 3), {"group_size": 9}, 64 * 16, 9, 9, (64, 16, 1), 0),
    ((64, 16, 3, 3), {"group_size": 3}, 64 * 16 * 3, 3, 3, (64, 16, 3, 1), 0),
    ((64, 16, 3, 3), CHANNEL, 64, 144, 144, (64, 1), 0),
    ((64, 16, 3, 3), {**CHANNEL, "axis": 1}, 64, 144, 1, (1, 16, 1, 1), 0),
    ((8, 32, 128), {}, 256, 128, 128, (8, 32, 1), 0),
    ((8, 32, 128), CHANNEL, 8, 4096, 4096, (8, 1), 0),
    ((8, 32, 128), TENSOR, 8, 4096, 4096, (8, 1), 0),
    ((300,), {}, 1, 300, 128, (1, 3), 44),
    ((300,), CHANNEL, 1, 300, 300, (1, 1), 0),
    ((), {}, 1, 1, 1, (1, 1), 0),
    ((7, 1), {}, 7, 1, 1, (7, 1), 0),
])  # fmt: skip
def test_layouts(
    shape: tuple[int, ...],
    fields: dict[str, Any],
    rows: int,
    cols: int,
    group: int,
    scale_shape: tuple[int, ...],
    short: int,
) -> None:
    found = grouping_of(shape, Scheme(bits=4, **fields))
    assert (found.rows, found.cols, found.group, found.scale_shape, found.short_group) == \
        (rows, cols, group, scale_shape, short)  # fmt: skip
    assert found.scales == math.prod(scale_shape)
    assert found.packed_shape(4) == (*found.lead, (cols * 4 + 31) // 32)
    assert math.prod(found.lead) == rows


@pytest.mark.parametrize(("shape", "fields", "message"), [
    ((4, 4), {**CHANNEL, "axis": 2}, "a tensor of 2 dimensions has no axis 2"),
    ((4, 4), {**CHANNEL, "axis": -3}, "a tensor of 2 dimensions has no axis -3"),
    ((4,), {**CHANNEL, "axis": 1}, "a tensor of 1 dimension has no axis 1"),
    ((2, 1 << 23), {**CHANNEL, "axis": 1}, "axis 1 is not supported with"),
    ((2, 1 << 20), {"group_size": 20000}, "groups of 20000 do not cover"),
])  # fmt: skip
def test_what_a_shape_forbids(shape: tuple[int, ...], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        grouping_of(shape, Scheme(bits=4, **fields))


def test_a_group_of_any_size_may_cover_a_row() -> None:
    assert grouping_of((2, 20000), Scheme(bits=4, group_size=20000)).groups == 1
    assert grouping_of((2, 20000), Scheme(bits=4, group_size=1 << 40)).groups == 1


def check_tiles(found: Grouping) -> None:
    """Tiles cover every weight exactly once, in file order; those that do not begin a row begin a 32-bit word of every
    bit width and a group."""
    at = 0
    for span in found.tiles():
        assert span.rows > 0 and span.cols > 0
        assert span.row * found.cols + span.col == at, "tiles follow one another"
        assert span.rows == 1 or (span.col, span.cols) == (0, found.cols), "a tile is whole rows or part of one"
        assert span.col % 32 == 0
        assert found.group >= found.cols or span.col % found.group == 0
        assert found.digits is None or span.col % found.digits.count == 0, "a tile begins a number of digits"
        at += span.rows * span.cols
    assert at == found.rows * found.cols


@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (1000, 700), (2, grouping.TILE), (2, grouping.TILE + 1),
                                   (3, 2 * grouping.TILE + 77), (grouping.TILE + 5, 1), (5_000_000,)])  # fmt: skip
@pytest.mark.parametrize("fields", [{}, {"group_size": 100}, {"group_size": 1}, {"group_size": 16383}, CHANNEL, TENSOR])
def test_tiles_cover_every_weight_once(shape: tuple[int, ...], fields: dict[str, Any]) -> None:
    check_tiles(grouping_of(shape, Scheme(bits=4, **fields)))


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.integers(1, 200),
    st.sampled_from([64, 100, 1000]),
    st.sampled_from(["group", "channel", "tensor"]),
)
def test_small_tiles_cover_every_weight_once(shape: list[int], group: int, tile: int, granularity: str) -> None:
    fields = {"group_size": group} if granularity == "group" else {"granularity": granularity}
    before = grouping.TILE
    grouping.TILE = tile
    try:
        check_tiles(grouping_of(tuple(shape), Scheme(bits=4, **fields)))
    finally:
        grouping.TILE = before


@given(st.integers(1, 4), st.integers(1, 3000), st.integers(1, 200), st.sampled_from([3, 5, 6, 7, 12]))
def test_tiles_of_digits_begin_a_number(rows: int, cols: int, group: int, levels: int) -> None:
    """as well as a word: codes of a tile are packed by themselves, also where the kernels take them as words"""
    before, grouping.TILE = grouping.TILE, 100
    try:
        scheme = Scheme(format="codebook", levels=levels, group_size=group)
        found = grouping_of((rows, cols), scheme)
        check_tiles(found)
    finally:
        grouping.TILE = before
    assert (found.digits is None) == (digits_of(levels, scheme.bits, cols) is None)


@pytest.mark.parametrize("levels", [3, 12])
def test_codes_of_digits_take_their_real_rate(levels: int) -> None:
    """`help file-format`: a row of 3 levels takes 1.6 bits a code, of 12 levels 3.64, those of 4 and 16 two and four"""
    rates = {3: 1.6, 12: 40 / 11}
    found = grouping_of((6, 880), Scheme(format="codebook", levels=levels, group_size=80))
    assert found.packed_shape(4) == (6, 880 * rates[levels] / 8)
    assert grouping_of((6, 880), Scheme(bits=4, group_size=80)).digits is None
    assert grouping_of((6, 880), Scheme(format="codebook", levels=levels + levels // 3, group_size=80)).digits is None


def test_tiles_are_bounded() -> None:
    """A run takes less than 72 MiB (README.md), of which a tile of 2^20 weights is 4 MiB, in float32, for each of the
    arrays that a thread holds at once."""
    for shape in ((100_000, 300), (3, 5_000_000), (1_000_000, 1)):
        for fields in ({}, {"group_size": 16383}, CHANNEL, TENSOR):
            spans = grouping_of(shape, Scheme(bits=4, **fields)).tiles()
            assert max(s.rows * s.cols for s in spans) <= 1 << 20


def test_channels_recur_along_a_row() -> None:
    for shape, axis in (((2, 3, 4, 5), 1), ((2, 3, 4, 5), 2), ((2, 3, 4, 5), 3), ((2, 3, 4, 5), -1), ((6, 7), 1)):
        numbers = np.broadcast_to(
            np.arange(shape[axis]).reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))]), shape
        )
        outer, channels, inner = grouping.column_repeats(shape, axis)
        row = np.broadcast_to(np.arange(channels)[None, :, None], (outer, channels, inner)).reshape(-1)
        np.testing.assert_array_equal(numbers.reshape(shape[0], -1)[0], row)


def test_learned_levels_are_of_rows() -> None:
    scheme = Scheme(format="codebook", bits=3, granularity="channel", axis=1)
    with pytest.raises(UsageError, match="learned levels are not supported for channels of axis 1"):
        grouping_of((64, 96), scheme)
    by_rows = Scheme(format="codebook", bits=3, granularity="channel", axis=-2)
    assert grouping_of((64, 96), by_rows).scale_shape == (64, 1)


@pytest.mark.parametrize(("shape", "stacked", "rows", "cols"), [
    ((8, 64, 32), True, 512, 32), ((64, 32), True, 64, 32), ((32,), True, 1, 32), ((), True, 1, 1),
    ((64, 16, 3, 3), False, 64, 144), ((64, 32), False, 64, 32), ((32,), False, 1, 32), ((), False, 1, 1),
])  # fmt: skip
def test_rows_that_multiply_inputs(shape: tuple[int, ...], stacked: bool, rows: int, cols: int) -> None:
    """A row is what one output takes of all inputs, in each expert, and has one scale."""
    found = grouping.rows_of_inputs(shape, stacked=stacked)
    assert (found.rows, found.cols, found.group) == (rows, cols, cols)
    assert math.prod(found.scale_shape) == rows and found.scale_shape[-1] == 1
