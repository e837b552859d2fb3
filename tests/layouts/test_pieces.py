"""Pieces of a weight that are written one by one."""

from __future__ import annotations

import pytest

from quantcli import Scheme
from quantcli.layouts.pieces import BAND, SLAB, bands
from quantcli.tensors.rows import grouping_of


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
