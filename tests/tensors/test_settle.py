"""Parameters rounded to what a file stores: limits of dtypes derived from their definitions, values by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quantcli import Scheme
from quantcli.calibrators import Ideal
from quantcli.kernels import QuantParams
from quantcli.kernels.codebook import codebook
from quantcli.scales import Store
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan, grouping_of
from quantcli.tensors.settle import (
    default_scale_dtype,
    improper,
    improper_levels,
    levels_dtype,
    part,
    settle,
    smallest_scale,
    spread,
    stored_params,
)

INT4 = Scheme(bits=4)
INT4_F16 = Scheme(bits=4, scale_dtype="float16")
ASYM = Scheme(bits=4, symmetric=False)
OFFSET = Scheme(bits=4, symmetric=False, zero_point="float")
OFFSET_F16 = Scheme(bits=4, symmetric=False, zero_point="float", scale_dtype="float16")
NF4 = Scheme(format="nf4")
LEARNED = Scheme(format="codebook", bits=2, granularity="channel")
SHARED = Scheme(format="codebook", scale_dtype="float8_e4m3")
BLOCKS = Scheme(format="iq4", scale_dtype="super-blocks")
BLOCK_OF_E8M0 = Scheme(format="fp4", group_size=32, scale_dtype="float8_e8m0")


def row(*values: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([values], np.float64)


def settled(scheme: Scheme, scale: Any, zero: Any = None, dtype: str = "F16", levels: Any = None) -> QuantParams | None:
    return settle(Ideal(scale, zero, levels), scheme, Store(dtype))


def scales_of(scheme: Scheme, *scale: float, zero: Any = None, dtype: str = "F16") -> list[float] | None:
    found = settled(scheme, row(*scale), zero, dtype)
    return None if found is None else found.scale.ravel().tolist()


def test_the_dtype_of_scales() -> None:
    dtypes = ("BF16", "F16", "F32", "F64")
    assert [default_scale_dtype(INT4, d) for d in dtypes] == ["BF16", "F16", "F16", "F16"]
    assert [default_scale_dtype(Scheme(bits=8), d) for d in dtypes] == ["BF16", "F16", "F16", "F16"]
    assert [default_scale_dtype(Scheme(bits=9), d) for d in dtypes] == ["F32"] * 4
    assert [default_scale_dtype(Scheme(bits=16, scale_dtype="bfloat16"), d) for d in dtypes] == ["BF16"] * 4
    assert default_scale_dtype(SHARED, "BF16") == "F8_E4M3"


def test_the_dtype_of_levels() -> None:
    assert levels_dtype(LEARNED, "F16") == "F16"
    assert levels_dtype(Scheme(format="codebook", bits=2, granularity="tensor"), "F16") == "F32"
    assert levels_dtype(NF4, "BF16") == levels_dtype(Scheme(format="nf4", granularity="channel"), "BF16") == "F32"


@pytest.mark.parametrize("bits", range(2, 17))
def test_the_smallest_scale(bits: int) -> None:
    """float16 has multiples of 2^-24 below 2^-14: rounding moves 2^(b-1) steps by at most a quarter of one where half
    of 2^-24 times 2^(b-1) is at most a quarter of the scale; float32 and bfloat16 are normal from 2^-126 on."""
    enough = min(2.0**-25 * 2 ** (bits - 1) * 4, 2.0**-14)
    assert smallest_scale(Scheme(bits=bits), "F16") == enough
    assert smallest_scale(Scheme(bits=bits), "BF16") == smallest_scale(Scheme(bits=bits), "F32") == 2.0**-126


def test_scales_that_are_too_small_for_float16() -> None:
    assert scales_of(INT4, 2.0**-20, 1.0) == [2.0**-20, 1.0]
    assert scales_of(INT4, 2.0**-21, 1.0) is None and scales_of(INT4, 2.0**-21) is None
    assert scales_of(INT4_F16, 2.0**-21, 1.0) == [2.0**-21, 1.0]
    assert scales_of(INT4_F16, 2.0**-26, 1.0) is None  # rounds to 0


def test_scales_below_the_normal_range_are_raised() -> None:
    for dtype in ("F32", "BF16"):
        assert scales_of(INT4, 1e-40, -1e-40, 3.0, dtype=dtype) == [2.0**-126, -(2.0**-126), 3.0]
    assert scales_of(Scheme(bits=1), 1e-40, 0.0, dtype="F32") == [np.float32(1e-40), 0.0]


def test_scales_are_rounded_to_their_dtype() -> None:
    for scheme, numpy_type in ((INT4, np.float16), (NF4, np.float16), (ASYM, np.float16)):
        zero = row(7.6, -3.0, 20.0) if scheme is ASYM else None
        found = settled(scheme, row(0.1, 1 / 3, 5.00001), zero)
        assert found is not None
        assert found.scale.tolist() == np.array([[0.1, 1 / 3, 5.00001]]).astype(numpy_type).astype(np.float32).tolist()
        assert (found.zero is None) if zero is None else found.zero is not None
        assert found.zero is None or found.zero.tolist() == [[8.0, 0.0, 15.0]]
        assert (found.codebook is not None) == (scheme is NF4)
    assert scales_of(INT4, 1 / 3, dtype="BF16") == [0.333984375]  # 171/512, by hand


def test_the_outermost_code_stays_within_float16() -> None:
    """Eight steps of 8188 are 65504, the largest float16; 8190 is halfway to 8192, eight of which are beyond it."""
    assert scales_of(INT4, -8188.0, 1.0) == [-8188.0, 1.0]
    assert scales_of(INT4, -8190.0, 1.0) == [-8188.0, 1.0]
    assert scales_of(INT4, -8200.0, 1.0) is None
    assert scales_of(NF4, 65504.0) == [65504.0] and scales_of(NF4, 65600.0) is None


def test_the_outermost_code_stays_within_wider_dtypes() -> None:
    top = 2.0**128 - 2.0**120
    assert scales_of(INT4, -top * 1.0005 / 8, dtype="BF16") == [-top / 8]
    assert scales_of(INT4, -top * 1.001 / 8, dtype="BF16") == [-top / 8]
    assert scales_of(INT4, -top * 1.002 / 8, dtype="BF16") is None
    top = 2.0**128 - 2.0**104
    assert scales_of(INT4, -top / 8, 1.0, dtype="F32") == [-top / 8, 1.0]
    assert scales_of(INT4, -top * 1.0005 / 8, 1.0, dtype="F32") is None


def test_the_outermost_code_with_zero_points() -> None:
    """Codes 0 to 15: with a zero point of 8 they reach 8 steps below it and 7 above."""
    assert scales_of(ASYM, 4400.0, zero=row(8.0)) == [4400.0]
    assert scales_of(ASYM, 4400.0, zero=row(0.0)) is None and scales_of(ASYM, 4400.0, zero=row(15.0)) is None
    assert scales_of(ASYM, 4000.0, 4000.0, zero=row(0.0, 15.0)) == [4000.0, 4000.0]


def test_the_outermost_code_with_offsets() -> None:
    """15 steps of 2000 from -40000 end at -10000; from 40000 they end at 70000."""
    assert scales_of(OFFSET, 2000.0, zero=row(-40000.0)) == [2000.0]
    assert scales_of(OFFSET, 2000.0, zero=row(40000.0)) is None
    assert scales_of(OFFSET, 8000.0, zero=row(-60000.0)) is None
    assert scales_of(OFFSET, 1.0, zero=row(-70000.0)) is None


def test_offsets_that_rounding_moves() -> None:
    """float16 has no odd numbers beyond 2048: 2049 becomes 2048, a quarter of a step of 4."""
    found = settled(OFFSET, row(4.0, 1.0), row(2049.0, 1000.0))
    assert found is not None and found.zero is not None and found.zero.tolist() == [[2048.0, 1000.0]]
    assert scales_of(OFFSET, 3.9, zero=row(2049.0)) is None
    assert scales_of(OFFSET, 1.0, 1.0, zero=row(2049.0, 0.0)) is None
    assert scales_of(OFFSET_F16, 1.0, 1.0, zero=row(2049.0, 0.0)) == [1.0, 1.0]
    assert scales_of(OFFSET, 1.0, zero=row(2.0**24 + 1), dtype="F32") == [1.0]


def test_learned_levels_are_rounded_to_the_dtype_of_scales() -> None:
    levels = np.array([[-1.0, -1 / 3, 0.1, 2.0]])
    found = settled(LEARNED, row(1.0), levels=levels)
    assert found is not None and found.codebook is not None and found.scale.tolist() == [[1.0]]
    assert found.codebook.levels.tolist() == levels.astype(np.float16).astype(np.float32).tolist()
    assert settled(LEARNED, row(1.0), levels=levels * 1e5) is None
    wide = settled(Scheme(format="codebook", bits=2, granularity="tensor"), row(1.0), levels=levels * 1e5)
    assert wide is not None and wide.codebook is not None
    assert wide.codebook.levels.tolist() == (levels * 1e5).astype(np.float32).tolist()


def test_scales_that_were_searched_stay() -> None:
    blocks: Any = object()
    found = settle(Ideal(row(0.1), row(0.3), None, blocks), BLOCKS, Store("F16"))
    assert found is not None and found.blocks is blocks and found.zero is not None
    assert (found.scale.tolist(), found.zero.tolist()) == ([[np.float32(0.1)]], [[np.float32(0.3)]])
    found = settle(Ideal(row(0.1), None, None, blocks), BLOCKS, Store("F16"))
    assert found is not None and found.zero is None
    assert settle(Ideal(row(0.1)), BLOCKS, Store("F16")) is None


# ---- stored parameters that cannot be --------------------------------------------------------------------------


def problems(scheme: Scheme, *scale: float, zero: Any = None, dtype: str = "F16") -> dict[str, list[int]]:
    given = np.array([scale], np.float32)
    at = None if zero is None else np.array([zero], np.float32)
    return {what: np.flatnonzero(where).tolist() for what, where in improper(given, at, scheme, dtype)}


def test_scales_that_settling_cannot_give() -> None:
    many = (1.0, np.nan, np.inf, 0.0, 2.0**-21, 8192.0, 8188.0, -1.0)
    wrong = {"the scale is not finite": [1, 2], "the scale is 0": [3], "the outermost code is beyond F16": [5]}
    assert problems(INT4, *many) == {**wrong, "the scale is too small": [4]}
    assert problems(INT4_F16, *many) == wrong
    assert problems(INT4, 1.0, 2.0**-127, 1e30, dtype="BF16") == {"the scale is too small": [1]}
    assert problems(Scheme(bits=4, scale_dtype="bfloat16"), 2.0**-127, dtype="BF16") == {"the scale is too small": [0]}
    assert problems(INT4, 1.0, -2.0) == {}


@pytest.mark.parametrize("scheme", [ASYM, Scheme(bits=1), Scheme(bits=4, grid="restricted")], ids=lambda s: s.name)
def test_scales_that_are_never_negative(scheme: Scheme) -> None:
    zero = (3.0, 3.0) if scheme is ASYM else None
    assert problems(scheme, 1.0, -1.0, zero=zero) == {"the scale is negative": [1]}


def test_zero_points_must_be_finite() -> None:
    found = problems(OFFSET, 1.0, 1.0, 1.0, zero=(0.0, np.nan, np.inf))
    assert found["the zero point is not finite"] == [1, 2]
    assert problems(OFFSET, 2000.0, 2000.0, zero=(-40000.0, 40000.0)) == {"the outermost code is beyond F16": [1]}


def test_scales_of_other_kinds() -> None:
    assert problems(Scheme(bits=1), 0.0, 1.0) == {} and problems(NF4, 65504.0, 1.0) == {}
    wrong = {"the scale is not finite": [1], "the scale is negative": [2], "the scale is 0": [3]}
    assert problems(BLOCK_OF_E8M0, 1.0, np.nan, -1.0, 0.0, 2.0**-127, dtype="F8_E8M0") == wrong
    assert problems(BLOCK_OF_E8M0, 1.0, dtype="F8_E8M0") == {} and problems(SHARED, 448.0, 0.0, dtype="F8_E4M3") == {}


def test_levels_that_cannot_be() -> None:
    def found(scheme: Scheme, *levels: float) -> dict[str, list[int]]:
        given = np.array([levels], np.float32)
        return {what: np.flatnonzero(where).tolist() for what, where in improper_levels(given, scheme)}

    assert found(LEARNED, -1.0, 0.0, 0.0, 2.0) == {}
    assert found(LEARNED, -1.0, 0.0, -0.5, 2.0) == {"the levels do not rise": [2]}
    assert found(LEARNED, -1.0, 0.0, 1.0, np.inf) == {"a level is not finite": [3]}
    three = Scheme(format="codebook", levels=3, granularity="channel")
    assert found(three, -1.0, 0.0, 1.0, 1.0) == {}
    assert found(three, -1.0, 0.0, 1.0, 2.0) == {"the levels do not rise": [3]}


# ---- parameters of tiles and columns ---------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "axis"), [((5, 3), 1), ((2, 3, 4), 1), ((3, 4, 2), 2), ((2, 3, 2, 2), 1)])
def test_parameters_per_channel_for_every_column(shape: tuple[int, ...], axis: int) -> None:
    """Each weight of a row meets the scale of its channel: numpy's broadcast of scales along the axis."""
    scheme = Scheme(bits=8, granularity="channel", axis=axis)
    plan = grouping_of(shape, scheme)
    scale = np.arange(1.0, shape[axis] + 1, dtype=np.float32)
    wanted = np.broadcast_to(scale.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape)
    params = QuantParams(scale.reshape(-1, 1), scale.reshape(-1, 1) + 10)
    found = spread(params, TensorInfo("w", "F32", shape), scheme, plan)
    assert plan.shared == "columns" and found.zero is not None and found.scale.shape == (1, plan.cols)
    assert np.broadcast_to(found.scale, (plan.rows, plan.cols)).ravel().tolist() == wanted.ravel().tolist()
    assert found.zero.tolist() == (found.scale + 10).tolist()
    stored = stored_params(QuantParams(found.scale.T, None), plan)
    assert stored.scale.tolist() == found.scale.tolist() and stored.zero is None


def test_one_set_of_a_tensor_is_repeated_for_every_row() -> None:
    plan = grouping_of((3, 8), Scheme(bits=8, granularity="tensor"))
    found = stored_params(QuantParams(np.array([[2.0]], np.float32), np.array([[5.0]], np.float32)), plan)
    assert found.scale.tolist() == [[2.0]] * 3 and found.zero is not None and found.zero.tolist() == [[5.0]] * 3
    plan = grouping_of((2, 64), Scheme(bits=8, group_size=32))
    scale = np.arange(4, dtype=np.float32).reshape(2, 2)
    assert stored_params(QuantParams(scale), plan).scale.tolist() == scale.tolist()


def test_the_parameters_of_a_tile() -> None:
    """Rows 1 and 2, columns 32 to 79: the second and the third group of 32 of 80."""
    plan = grouping_of((4, 80), Scheme(bits=4, group_size=32))
    scale = np.arange(12, dtype=np.float32).reshape(4, 3)
    book = codebook(np.arange(16.0).reshape(4, 4))
    found = part(QuantParams(scale, scale + 20, book), TileSpan(1, 2, 32, 48), plan)
    assert found.scale.tolist() == [[4.0, 5.0], [7.0, 8.0]] and found.zero is not None
    assert found.zero.tolist() == [[24.0, 25.0], [27.0, 28.0]] and found.scale.flags.c_contiguous
    assert found.codebook is not None and found.codebook.levels.tolist() == book.levels[1:3].tolist()
    first = part(QuantParams(scale, None, book), TileSpan(0, 1, 0, 32), plan)
    assert first.scale.tolist() == [[0.0]] and first.codebook is not None
    assert first.codebook.levels.tolist() == book.levels[:1].tolist()
    assert part(QuantParams(scale), TileSpan(3, 1, 0, 80), plan).codebook is None
    one = grouping_of((4, 80), Scheme(bits=4, granularity="channel"))
    assert part(QuantParams(scale[:, :1]), TileSpan(2, 2, 0, 80), one).scale.tolist() == [[6.0], [9.0]]
    whole = grouping_of((4, 80), Scheme(bits=4, granularity="tensor"))
    assert part(QuantParams(scale[:1, :1], None, book), TileSpan(2, 2, 0, 80), whole).scale.tolist() == [[0.0]]
    columns = grouping_of((4, 80), Scheme(bits=4, granularity="channel", axis=1))
    own = np.arange(80, dtype=np.float32)[None]
    assert part(QuantParams(own), TileSpan(2, 2, 16, 8), columns).scale.tolist() == [list(range(16, 24))]
