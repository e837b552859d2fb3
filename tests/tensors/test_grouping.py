"""Blocks, strips of channels and samples of a grouping, and the largest shapes that are supported."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quantcli import Scheme, UsageError
from quantcli.scheme import MAX_GROUP
from quantcli.tensors import rows
from quantcli.tensors.rows import Grouping, grouping_of

AXIS_1: dict[str, Any] = {"granularity": "channel", "axis": 1}


def plain(height: int, width: int, group: int) -> Grouping:
    return Grouping(height, width, group, None, (height,), (height, -(-width // group)))


@pytest.mark.parametrize(("shape", "side", "scale_shape", "height", "group"), [
    ((256, 384), 128, (2, 3), 128, 128), ((257, 385), 128, (3, 4), 128, 128), ((5, 7), 128, (1, 1), 128, 7),
    ((256, 1), 128, (2, 1), 128, 1), ((4, 256, 256), 128, (4, 2, 2), 128, 128),
    ((4, 100, 300), 128, (4, 1, 3), 100, 128),
    ((4, 128, 7), 128, (4, 1, 1), 128, 7), ((4, 100, 1), 128, (4, 1, 1), 100, 1),
])  # fmt: skip
def test_blocks(shape: tuple[int, ...], side: int, scale_shape: tuple[int, ...], height: int, group: int) -> None:
    """A scale for each block of side x side, smaller ones at the ends; a stack of matrices has its own for each."""
    found = grouping_of(shape, Scheme(format="fp8-e4m3", granularity="block", group_size=side))
    assert (found.scale_shape, found.height, found.group) == (scale_shape, height, group)
    assert (found.rows, found.cols) == (math.prod(shape[:-1]), shape[-1])


def test_the_largest_that_is_supported() -> None:
    blocks = Scheme(format="fp8-e4m3", granularity="block", group_size=128)
    assert grouping_of((128, 1 << 16), blocks).scales == 512
    assert grouping_of((2, 1 << 22), Scheme(bits=4, calibration="minmax", **AXIS_1)).scales == 1 << 22
    assert grouping_of((2, 2 * MAX_GROUP), Scheme(bits=4, group_size=MAX_GROUP)).groups == 2
    assert grouping_of((1 << 20, 4, 2), Scheme(bits=4, calibration="mse", **AXIS_1)).scale_shape == (1, 4, 1)
    for shape, scheme, problem in (
        ((128, (1 << 16) + 1), blocks, "blocks of 128 rows of 65537 weights"),
        ((2, 200, 64), blocks, "blocks of 128 rows would cross matrices of 200 rows"),
        ((2, (1 << 22) + 1), Scheme(bits=4, calibration="minmax", **AXIS_1), "with 4194305 weights behind axis 0"),
        ((2, 2 * MAX_GROUP + 2), Scheme(bits=4, group_size=MAX_GROUP + 1), "do not cover a row"),
        (
            (1 << 20, 4, 4),
            Scheme(bits=4, calibration="mse", **AXIS_1),
            "does not support 4194304 weights in each channel",
        ),
    ):
        with pytest.raises(UsageError, match=problem):
            grouping_of(shape, scheme)


@given(st.integers(1, 5), st.integers(1, 400), st.integers(1, 200), st.sampled_from([64, 100]))
@example(2, 64, 64, 64)
@example(2, 65, 65, 64)
def test_two_passes_where_a_group_lies_in_several_tiles(height: int, width: int, group: int, tile: int) -> None:
    """Whether parameters depend on more than one tile: by looking at every weight."""
    found = plain(height, width, min(group, width))
    before, rows.TILE = rows.TILE, tile
    try:
        tiles: dict[tuple[int, int], set[int]] = {}
        for number, span in enumerate(found.tiles()):
            for row in range(span.row, span.row + span.rows):
                for col in range(span.col, span.col + span.cols):
                    tiles.setdefault((row, col // found.group), set()).add(number)
        assert found.two_pass == any(len(own) > 1 for own in tiles.values())
    finally:
        rows.TILE = before
    assert Grouping(height, width, width, "tensor", (height,), (height, 1)).two_pass


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 5), st.integers(1, 300))
def test_strips_are_whole_channels(outputs: int, channels: int, inner: int, weights: int) -> None:
    """Every channel once, all rows of each, and no more weights than asked for unless one channel has more."""
    scheme = Scheme(bits=4, calibration="minmax", **AXIS_1)
    found = list(grouping_of((outputs, channels, inner), scheme).strips(weights))
    each = outputs * inner
    assert [c for s in found for c in range(s.col, s.col + s.cols)] == list(range(channels))
    assert all((s.row, s.rows) == (0, outputs) and s.cols * each <= max(weights, each) for s in found)
    assert all((s.cols + 1) * each > weights for s in found[:-1]), "as many channels as fit"


@given(
    st.integers(1, 2000), st.integers(1, 5000), st.integers(1, 70), st.sampled_from([(1024, 8), (4096, 4), (512, 2)])
)
def test_a_sample_is_spread_evenly(height: int, width: int, group: int, size: tuple[int, int]) -> None:
    """A sample of about this many weights, spread evenly over the tensor; all of a small one."""
    weights, pieces = size
    plan = plain(height, width, min(group, width))
    found = list(plan.sample(weights, pieces))
    if height * width <= 2 * weights:
        assert found == list(plan.tiles())
        return
    assert len(found) == pieces
    assert all(s.row >= 0 and s.row + s.rows <= height and s.col >= 0 and s.col + s.cols <= width for s in found)
    unit = math.lcm(32, plan.group)
    assert all(s.col % unit == 0 for s in found), "a piece begins a word and a group"
    taken = sum(s.rows * s.cols for s in found)
    assert taken <= max(weights, pieces * unit)
    assert taken > weights / 2 or (width < 2 * unit and taken == pieces * width) or any(s.cols == width for s in found)
    assert (found[0].row, found[0].col) == (0, 0) and found[-1].row + found[-1].rows == height
    assert found[-1].col + found[-1].cols > width - unit
    for values, step in (([s.row for s in found], 1), ([s.col for s in found], unit)):
        ideal = [values[-1] * k / (pieces - 1) for k in range(pieces)]
        assert all(abs(value - wanted) <= step for value, wanted in zip(values, ideal))


def test_levels_are_learned_from_a_quarter_of_a_million_weights() -> None:
    """of a large tensor, whatever its size: neither so few that the levels of its tail are guessed, nor more time"""
    for height, width in ((4096, 4096), (1, 1 << 24), (1 << 24, 1)):
        taken = sum(s.rows * s.cols for s in plain(height, width, min(64, width)).sample())
        assert 200_000 < taken <= 1 << 18


def test_a_sample_of_all_at_the_limit() -> None:
    """up to twice as many weights as asked for are all taken"""
    assert list(plain(2, 1024, 32).sample(1024, 8)) == list(plain(2, 1024, 32).tiles())
    assert len(list(plain(1, 2049, 32).sample(1024, 8))) == 8


def test_sets_of_weights_that_share_parameters() -> None:
    """One for a tensor, though its scale is stored for every row; else one for each scale."""
    whole, groups = Scheme(bits=4, granularity="tensor"), Scheme(bits=4, group_size=32)
    assert (grouping_of((6, 64), whole).sets, grouping_of((6, 64), whole).scales) == (1, 6)
    assert grouping_of((6, 64), groups).sets == 12
