"""Native kernels against numpy, and both against brute force."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_parts import KINDS, NATIVE, TABLES, float_of, needs_native, per_weight, tile_of, tried, variants
from making import BF16 as BFLOAT16

from quantcli import kernels, library
from quantcli.errors import UsageError
from quantcli.kernels import (
    BF16,
    BINARY,
    F16,
    F32,
    INTEGER,
    OFFSET,
    BlockField,
    CodeGrid,
    Grids,
    Kernels,
    Kind,
    QuantParams,
    Sums,
    Tile,
    row_bytes,
)
from quantcli.kernels.codebook import codebook
from quantcli.kernels.numpy_kernels import NumpyKernels
from quantcli.passes import diagnose

SHAPES = [  # rows, cols, group
    (1, 1, 1), (1, 7, 7), (3, 32, 32), (4, 100, 32), (4, 100, 100), (2, 255, 64), (2, 256, 64),
    (2, 257, 64), (3, 300, 300), (2, 1000, 128), (2, 1000, 96), (3, 777, 777), (2, 600, 33), (7, 64, 1), (3, 300, 1),
    (1, 5000, 4096), (513, 3, 3), (9, 8, 3), (40, 33, 16), (9, 96, 16), (5, 1280, 256), (1, 70001, 70001),
]  # fmt: skip
ONE_COLUMN = [(5, 1, 1), (64, 1, 1), (1000, 1, 1), (5000, 1, 1)]


def awkward_values(rows: int, cols: int, seed: int) -> np.ndarray:
    """Weights with exact ties, subnormals, zeros of both signs and huge values among them."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, cols)) * 10.0 ** rng.integers(-3, 3)
    flat = values.reshape(-1)
    special = [0.0, -0.0, 0.5, 1.5, -2.5, 2.5, 1e-40, -3e-42, 1e38, -1e38, 2.0**-126, 65504.0, 6e-8, 3.5]
    picked = rng.integers(0, flat.size, min(flat.size, 14))
    flat[picked] = special[: picked.size]
    return values


def params_of(
    tile: Tile, grid: CodeGrid, *, zeros: bool, shared: bool, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales of both signs that clip some weights, and zero points or offsets."""
    rng = np.random.default_rng(seed)
    shape = (1 if shared else tile.rows, -(-tile.cols // tile.group))
    scale = rng.choice(np.array([0.5, 0.25, -0.125, 1.0, 0.3, -0.7, 1e-2, 1e36, 2.0**-126]), shape).astype(np.float32)
    if grid.mode == OFFSET:
        return scale, rng.standard_normal(shape).astype(np.float32)
    return scale, rng.integers(0, 1 << grid.bits, shape).astype(np.float32) if zeros else None


def grids(bits: int) -> list[tuple[CodeGrid, bool]]:
    """Every mode at so many bits, with and without an array of zero points."""
    top = (1 << bits) - 1
    found = [
        (CodeGrid(mode=INTEGER, bits=bits, umin=0, umax=top), True),
        (CodeGrid(mode=OFFSET, bits=bits, umin=0, umax=top), True),
    ]
    if bits > 1:
        found.append((CodeGrid(mode=INTEGER, bits=bits, umin=1, umax=top, zero=1 << (bits - 1)), False))
        found.append((CodeGrid(mode=INTEGER, bits=bits, umin=0, umax=top, zero=1 << (bits - 1)), False))
    else:
        found.append((CodeGrid(mode=BINARY, bits=1, umin=0, umax=1), False))
    return found


def encoded(
    table: Kernels, tile: Tile, scale: np.ndarray, zero: np.ndarray | None, grid: CodeGrid
) -> tuple[bytes, Sums]:
    # A wrong length would write beyond the end: the guard behind the codes must stay as it was.
    size = tile.rows * row_bytes(tile.cols, grid.bits)
    room = np.full(size + 64, 0xA5, np.uint8)
    with np.errstate(over="ignore"):  # a weight of 1e38 over a scale of 2^-126 is meant to be clipped
        sums = table.encode(tile, QuantParams(scale, zero), grid, room[:size])
    assert (room[size:] == 0xA5).all()
    return room[:size].tobytes(), sums


def bits_of(packed: bytes, tile: Tile, bits: int) -> np.ndarray:
    """Codes read with Python's big integers."""
    width = row_bytes(tile.cols, bits)
    codes = np.empty((tile.rows, tile.cols), np.int64)
    for row in range(tile.rows):
        stream = int.from_bytes(packed[row * width : (row + 1) * width], "little")
        codes[row] = [stream >> (i * bits) & ((1 << bits) - 1) for i in range(tile.cols)]
        assert stream >> (tile.cols * bits) == 0, "the padding is not zero"
    return codes


def by_hand(
    tile: Tile, scale: np.ndarray, zero: np.ndarray | None, grid: CodeGrid
) -> tuple[np.ndarray, np.ndarray, int]:
    """Codes, decoded values and number of clipped weights from the definition, one float32 operation at a time."""
    x, s = float_of(tile), per_weight(scale, tile)
    z = np.full_like(x, grid.zero) if zero is None else per_weight(zero, tile)
    if grid.mode == BINARY:
        codes = (x >= 0).astype(np.float32)
        return codes.astype(np.int64), np.where(codes == 1, s, -s), 0
    with np.errstate(over="ignore"):
        wanted = np.rint((x - z) / s) if grid.mode == OFFSET else np.rint(x / s) + z
    codes = np.clip(wanted, np.float32(grid.umin), np.float32(grid.umax))
    values = codes * s + z if grid.mode == OFFSET else (codes - z) * s
    return codes.astype(np.int64), values, int((wanted != codes).sum())


@needs_native
@pytest.mark.parametrize("kind", KINDS, ids=["bf16", "f16", "f32"])
@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("shapes", [SHAPES, ONE_COLUMN], ids=["matrices", "one-column"])
def test_native_and_numpy_give_the_same_bytes_and_sums(shapes: list[tuple[int, ...]], bits: int, kind: int) -> None:
    """Both tables give the same bytes and the same sums."""
    assert NATIVE is not None
    other = NumpyKernels()
    for number, (rows, cols, group) in enumerate(shapes):
        tile = tile_of(awkward_values(rows, cols, number), kind, group)
        for grid, zeros in grids(bits):
            for shared in (False, True):
                scale, zero = params_of(tile, grid, zeros=zeros, shared=shared, seed=number)
                context = (rows, cols, group, grid, shared)
                ours, found = encoded(NATIVE, tile, scale, zero, grid)
                theirs, expected = encoded(other, tile, scale, zero, grid)
                assert ours == theirs, context
                assert found == expected, context
                stored = np.frombuffer(ours, np.uint8)
                with np.errstate(over="ignore"):
                    assert NATIVE.measure(tile, QuantParams(scale, zero), grid, stored) == found, context
                    assert other.measure(tile, QuantParams(scale, zero), grid, stored) == found, context
                shape = (rows, cols)
                a, b = (t.decode(stored, shape, group, QuantParams(scale, zero), grid) for t in (NATIVE, other))
                assert a.tobytes() == b.tobytes(), context


@needs_native
@pytest.mark.parametrize("kind", KINDS, ids=["bf16", "f16", "f32"])
def test_native_and_numpy_see_the_same_ranges(kind: int) -> None:
    assert NATIVE is not None
    for number, (rows, cols, group) in enumerate([*SHAPES, *ONE_COLUMN]):
        tile = tile_of(awkward_values(rows, cols, number), kind, group)
        for name in ("ranges", "column_ranges"):
            ours, theirs = (getattr(table, name)(tile) for table in (NATIVE, NumpyKernels()))
            for field in ("lo", "hi", "extreme"):
                np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), f"{name} {field}")
            assert ours.finite and theirs.finite


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("bits", range(1, 17))
def test_encode_and_decode_follow_the_definition(table: Kernels, bits: int) -> None:
    """u = clip(rint(x / scale) + zero), or clip(rint((x - offset) / scale)); decoded by one multiplication and one
    addition in float32; rows of whole words, low code first, zero padding."""
    for number, (rows, cols, group) in enumerate([*SHAPES, *ONE_COLUMN]):
        if rows * cols > 2000:
            continue
        for kind in KINDS:
            tile = tile_of(awkward_values(rows, cols, number), kind, group)
            for grid, zeros in grids(bits):
                scale, zero = params_of(tile, grid, zeros=zeros, shared=number % 2 == 0, seed=number)
                packed, sums = encoded(table, tile, scale, zero, grid)
                codes, values, clipped = by_hand(tile, scale, zero, grid)
                np.testing.assert_array_equal(bits_of(packed, tile, bits), codes)
                stored, params = np.frombuffer(packed, np.uint8), QuantParams(scale, zero)
                decoded = table.decode(stored, (rows, cols), group, params, grid)
                np.testing.assert_array_equal(decoded, values)
                assert sums.clipped == clipped
                x = float_of(tile)
                error = (x - values).astype(np.float64)
                assert sums.max_abs == np.abs(error).max()
                assert sums.sse == pytest.approx(float((error**2).sum()), rel=1e-6)
                assert sums.power == pytest.approx(float((x.astype(np.float64) ** 2).sum()), rel=1e-6)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("kind", KINDS, ids=["bf16", "f16", "f32"])
def test_ranges_are_brute_force_ranges(table: Kernels, kind: int) -> None:
    for number, (rows, cols, group) in enumerate([*SHAPES, *ONE_COLUMN]):
        tile = tile_of(awkward_values(rows, cols, number + 100), kind, group)
        x = float_of(tile)
        found = table.ranges(tile)
        assert found.finite
        for g in range(-(-cols // group)):
            part = x[:, g * group : (g + 1) * group]
            np.testing.assert_array_equal(found.lo[:, g], part.min(axis=1))
            np.testing.assert_array_equal(found.hi[:, g], part.max(axis=1))
            first = np.abs(part).argmax(axis=1)
            np.testing.assert_array_equal(found.extreme[:, g], part[np.arange(rows), first])
        columns = table.column_ranges(tile)
        np.testing.assert_array_equal(columns.lo, x.min(axis=0))
        np.testing.assert_array_equal(columns.hi, x.max(axis=0))
        np.testing.assert_array_equal(columns.extreme, x[np.abs(x).argmax(axis=0), np.arange(cols)])


@pytest.mark.parametrize("table", TABLES)
def test_the_first_of_two_equal_extremes_counts(table: Kernels) -> None:
    for cols in (2, 9, 40, 300, 700):
        for first, second in ((0, cols - 1), (cols // 2, cols - 1), (0, 1)):
            for sign in (1, -1):
                x = np.zeros((2, cols), np.float32)
                x[:, second], x[:, first] = -3.0 * sign, 3.0 * sign
                if first == second:
                    continue
                found = table.ranges(tile_of(x, F32, cols))
                assert (found.extreme == 3.0 * sign).all(), (cols, first, second)
    column = np.array([[2.0], [-2.0], [1.0]], np.float32)
    assert table.column_ranges(tile_of(column, F32, 1)).extreme.tolist() == [2.0]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS, ids=["bf16", "f16", "f32"])
def test_what_is_not_finite_is_seen_wherever_it_is(table: Kernels, kind: int, bad: float) -> None:
    for cols in (1, 5, 16, 31, 300):
        for at in {0, cols // 2, cols - 1}:
            x = np.ones((3, cols), np.float32)
            x[1, at] = bad
            raw = x.astype(BFLOAT16).view(np.uint16) if kind == BF16 else x.astype(np.float16).view(np.uint16) \
                if kind == F16 else x  # fmt: skip
            for group in {1, 8, cols}:
                tile = Tile(raw.reshape(-1), kind, 3, cols, group)  # type: ignore[arg-type]
                assert not table.ranges(tile).finite
                assert not table.column_ranges(tile).finite


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("kind", [BF16, F16], ids=["bf16", "f16"])
def test_all_16_bit_patterns_are_loaded_right(table: Kernels, kind: int) -> None:
    """Groups of one weight: the range of a group is the weight."""
    every = np.arange(65536, dtype=np.uint16)
    with np.errstate(invalid="ignore"):  # ARM says so of NaN that signal
        values = every.view(BFLOAT16 if kind == BF16 else np.float16).astype(np.float32)
    patterns, expected = every[np.isfinite(values)], values[np.isfinite(values)]
    found = table.ranges(Tile(patterns, kind, 1, patterns.size, 1))  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.lo[0], expected)


@needs_native
@given(data=st.data())
def test_any_tile_is_the_same_natively(data: st.DataObject) -> None:
    """Both tables give the same bytes and the same sums."""
    assert NATIVE is not None
    rows, cols = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 600))
    group = data.draw(st.one_of(st.integers(1, cols), st.just(cols), st.just(1)))
    kind: Any = data.draw(st.sampled_from(KINDS))
    grid, zeros = data.draw(st.sampled_from(grids(data.draw(st.integers(1, 16)))))
    seed = data.draw(st.integers(0, 2**31))
    tile = tile_of(awkward_values(rows, cols, seed), kind, group)
    scale, zero = params_of(tile, grid, zeros=zeros, shared=data.draw(st.booleans()), seed=seed)
    ours, theirs = encoded(NATIVE, tile, scale, zero, grid), encoded(NumpyKernels(), tile, scale, zero, grid)
    assert ours == theirs, (rows, cols, group, grid)


def test_the_table_in_use_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    load = kernels.load.__wrapped__
    monkeypatch.setenv("QUANTCLI_KERNELS", "numpy")
    assert load().name == "numpy"
    monkeypatch.setenv("QUANTCLI_KERNELS", "cuda")
    with pytest.raises(UsageError, match="'cuda' is not a set of kernels; use native, numpy, base, v2, v3, v4"):
        load()
    if NATIVE is not None:
        monkeypatch.setenv("QUANTCLI_KERNELS", "base")
        assert load().name == "native-base"
        monkeypatch.setattr(library, "runnable", lambda functions: ["base"])
        monkeypatch.setenv("QUANTCLI_KERNELS", "v3")
        with pytest.raises(UsageError, match="does not run the variant v3 of the native kernels; use base"):
            load()
    monkeypatch.setattr(library, "opened", lambda: None)
    for wanted in ("native", "base"):
        monkeypatch.setenv("QUANTCLI_KERNELS", wanted)
        with pytest.raises(UsageError, match="not built"):
            load()
    monkeypatch.delenv("QUANTCLI_KERNELS")
    assert load().name == "numpy"


@needs_native
def test_variants_that_were_not_built_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has base and v2 alone, whatever its processor runs; a library for two kinds of Mac has base alone."""
    whole, load = library.opened(), kernels.load.__wrapped__
    assert whole is not None

    class Windows:
        """The library without what is not built there."""

        def __getattr__(self, name: str) -> Any:
            if name.startswith(("qk_v3_", "qk_v4_")):
                raise AttributeError(name)
            return getattr(whole, name)

        __getitem__ = __getattr__

    monkeypatch.delenv("QUANTCLI_KERNELS", raising=False)
    monkeypatch.setattr(library, "opened", Windows)
    assert load().name == f"native-{[v for v in library.runnable(whole) if v in ('base', 'v2')][-1]}"
    told = {variant.name: variant for variant in diagnose.diagnose().variants}
    assert told["v4"].why == told["v3"].why == "not built for this system"
    assert [name for name, variant in told.items() if variant.used] == [load().name.removeprefix("native-")]


@needs_native
def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where numpy took its place without a word, all would be several times slower."""
    load, problem = kernels.load.__wrapped__, "built from another version of quantcli; install quantcli again"
    monkeypatch.setenv("QUANTCLI_KERNELS", "native")
    monkeypatch.setattr(library, "LIMITS", (0, *library.LIMITS[1:]))
    with pytest.raises(UsageError, match=problem):
        load()
    monkeypatch.undo()
    monkeypatch.setenv("QUANTCLI_KERNELS", "native")
    monkeypatch.setattr(library, "INTERFACE", library.INTERFACE ^ 1)
    with pytest.raises(UsageError, match=problem):
        load()
    monkeypatch.setattr(library, "find", lambda: library.Library(ctypes.CDLL(None), "base"))  # without any kernel
    with pytest.raises(UsageError, match=problem):
        load()


@needs_native
def test_every_variant_of_the_library_gives_the_same() -> None:
    """On any CPU: the baseline variant computes what the others compute."""
    tables = variants()
    assert len({t.name for t in tables}) == len(tables) >= 1
    for number, (rows, cols, group) in enumerate([*SHAPES, *ONE_COLUMN]):
        for kind in KINDS:
            tile = tile_of(awkward_values(rows, cols, number), kind, group)
            for bits in (1, 3, 4, 8, 11, 16):
                for grid, zeros in grids(bits):
                    scale, zero = params_of(tile, grid, zeros=zeros, shared=False, seed=number)
                    found = [encoded(t, tile, scale, zero, grid) for t in tables]
                    assert all(f == found[0] for f in found), (rows, cols, group, grid)


@needs_native
@pytest.mark.parametrize("bits", range(1, 17))
def test_every_table_packs_alike(bits: int) -> None:
    """Rows of any length, unpacked again."""
    rng = np.random.default_rng(bits)
    for rows, cols in [(1, 1), (3, 7), (2, 32), (5, 33), (4, 100), (2, 256), (3, 1000)]:
        codes = rng.integers(0, 1 << bits, (rows, cols)).astype(np.uint8 if bits <= 8 else np.uint16)
        for table in (NumpyKernels(), *variants()):
            packed = np.full((rows, row_bytes(cols, bits)), 0xA5, np.uint8)
            table.pack(codes, bits, packed)
            stream = [int.from_bytes(row.tobytes(), "little") for row in packed]
            assert stream == [sum(int(c) << (bits * i) for i, c in enumerate(row)) for row in codes]
            found = table.unpack(packed, cols, bits)
            np.testing.assert_array_equal(found, codes)
            assert found.dtype == codes.dtype


@needs_native
def test_every_table_fills_blocks_alike() -> None:
    """Fields of blocks, bit by bit: bit fields of a run of bytes are the codes one run later."""
    rng = np.random.default_rng(0)
    for bits, weights, fields in [
        (4, 32, [BlockField(2, 4, 16)]),
        (5, 32, [BlockField(0, 1, 1, shift=4), BlockField(4, 4, 16)]),
        (8, 32, [BlockField(1, 8, 32, flip=128)]),
        (3, 256, [BlockField(64, 1, 32, shift=2), BlockField(0, 2, 32)]),
        (6, 256, [BlockField(0, 4, 64), BlockField(130, 2, 32, shift=4)]),
        (2, 64, [BlockField(0, 2, 1, flip=255)]),
    ]:
        rows, cols = 3, 3 * weights
        codes = rng.integers(0, 1 << bits, (rows, cols), dtype=np.uint8)
        packed = np.empty((rows, row_bytes(cols, bits)), np.uint8)
        NumpyKernels().pack(codes, bits, packed)
        size = max(f.at + weights * f.bits // 8 for f in fields) + 3
        wanted = np.full((9, size), 0xA5, np.uint8)
        for block, own in zip(wanted, codes.reshape(9, weights)):
            for f in fields:
                block[f.at : f.at + weights * f.bits // 8] = f.flip
                for place, code in enumerate(own):
                    deep, at = place // f.run % (8 // f.bits), place // (f.run * 8 // f.bits) * f.run + place % f.run
                    block[f.at + at] ^= (int(code) >> f.shift & (1 << f.bits) - 1) << deep * f.bits
        for table in (NumpyKernels(), *variants()):
            found = np.full((9, size), 0xA5, np.uint8)
            table.fill_blocks(packed, cols, bits, fields, found)
            np.testing.assert_array_equal(found, wanted, err_msg=f"{table.name} {bits}")


# ---- searches, levels, k-means and flips: both tables, over shapes that leave something over ---------------------

ODD_SHAPES = [(4, 256, 128), (3, 100, 32), (7, 33, 5), (2, 5000, 5000), (5, 1, 1), (3, 2500, 1100), (64, 9, 9)]


def random_tile(rows: int, cols: int, group: int, kind: Kind, seed: int = 0) -> Tile:
    weights = np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)
    return tile_of(weights, kind, min(group, cols))


@needs_native
@pytest.mark.parametrize("kind", KINDS, ids=["bf16", "f16", "f32"])
@pytest.mark.parametrize(("rows", "cols", "group"), ODD_SHAPES)
def test_both_tables_search_alike(rows: int, cols: int, group: int, kind: Kind) -> None:
    assert NATIVE is not None
    tile, other = random_tile(rows, cols, group, kind), NumpyKernels()
    ranges = other.ranges(tile)
    reciprocal = np.float32(1) / np.maximum(np.abs(ranges.extreme), np.float32(1e-30))
    reciprocal[0, 0] = 0
    ratios = np.linspace(0.3, 1.05, 7).astype(np.float32)
    counts = np.random.default_rng(1).integers(0, 2048, cols).astype(np.int32)
    both, one, turned = Grids.BOTH_SIGNS, Grids.RESTRICTED, Grids.TURNED
    for top, grids in ((1, both), (7, both), (7, one), (7, turned), (127, both), (127, turned), (32767, one)):
        for importance in (None, counts):
            arguments = tile, reciprocal, None, np.float32(top) / ratios, top, grids, importance
            ours, theirs = (t.search(*arguments) for t in (NATIVE, other))
            for a, b in zip(ours, theirs):
                np.testing.assert_array_equal(a, b)
    for bits in (1, 2, 4, 8):
        top = (1 << bits) - 1
        centre = np.random.default_rng(bits).integers(0, top + 1, reciprocal.shape).astype(np.float32)
        for grids in (Grids.THREE_ZEROS, Grids.FIVE_ZEROS):
            for importance in (None, counts):
                arguments = tile, reciprocal / 2, centre, np.float32(top) / ratios, top, grids, importance
                ours, theirs = (t.search(*arguments) for t in (NATIVE, other))
                for a, b in zip(ours, theirs):
                    np.testing.assert_array_equal(a, b)


@needs_native
@pytest.mark.parametrize("count", [2, 3, 16, 20, 200])
@pytest.mark.parametrize(("rows", "cols", "group"), ODD_SHAPES)
def test_both_tables_try_levels_alike(rows: int, cols: int, group: int, count: int) -> None:
    assert NATIVE is not None
    rng, other = np.random.default_rng(count), NumpyKernels()
    book = codebook(np.sort(rng.uniform(-1, 1, count))[None])
    for kind in KINDS:
        tile = random_tile(rows, cols, group, kind)
        shape = (rows, -(-cols // tile.group), 6)
        most = np.abs(book.sorted).max()
        unit = np.abs(tile.ranges(other).extreme[..., None]) / most
        trial = (unit * rng.uniform(0.4, 2, shape) * rng.choice([-1, 1], shape)).astype(np.float32)
        found = []
        for table in (NATIVE, other):
            cross, square = np.zeros(count), np.zeros(count)
            found.append((tried(table, tile, book, trial, cross, square), cross, square))
        for a, b in zip(*found):
            np.testing.assert_array_equal(a, b)
        x, best = float_of(tile).astype(np.float64), found[0][0]
        for row, group_at in ((0, 0), (rows - 1, shape[1] - 1)):
            part = x[row, group_at * tile.group : (group_at + 1) * tile.group]
            errors = [
                float((np.abs(part[:, None] - s * book.sorted[0]).min(axis=1) ** 2).sum())
                for s in trial[row, group_at].astype(np.float64)
            ]
            if count > 16:
                assert errors[best[row, group_at]] == pytest.approx(min(errors), rel=1e-4, abs=1e-9)
                continue
            # Whole numbers: a quotient and a level are each off by half of 2^-10 of the largest level, a product too.
            off = len(part) ** 0.5 * 1.5 * 2.0**-10 * most * np.abs(trial[row, group_at]).max()
            assert errors[best[row, group_at]] ** 0.5 <= min(errors) ** 0.5 + 2 * off


@needs_native
def test_both_tables_cut_values_alike() -> None:
    assert NATIVE is not None
    rng = np.random.default_rng(0)
    for n in (2, 3, 17, 400):
        x, w = np.sort(rng.standard_normal(n)), rng.integers(1, 9, n).astype(np.float64)
        counts, firsts, seconds = (np.append(0.0, np.cumsum(v)) for v in (w, w * x, w * x * x))
        for k in range(2, min(n, 12)):
            ours, theirs = (t.kmeans(counts, firsts, seconds, k) for t in (NATIVE, NumpyKernels()))
            for c in range(1, k):
                np.testing.assert_array_equal(ours[c, c + 1 :], theirs[c, c + 1 :])


WEIGHED = st.tuples(st.floats(-1e6, 1e6), st.sampled_from([1e-300, 1e-20, 1e-9, 1.0, 7.0, 1e9, 1e17]))
"""Values and how often they occur."""


@needs_native
@given(st.lists(WEIGHED, min_size=2, max_size=60, unique_by=lambda pair: pair[0]), st.integers(2, 16))
@settings(max_examples=300)
def test_both_tables_cut_values_of_any_weight_alike(pairs: list[tuple[float, float]], k: int) -> None:
    """a value may weigh nothing beside the sum of those before it; then the cost of its cell is no number"""
    assert NATIVE is not None
    x, w = (np.array(v) for v in zip(*sorted(pairs)))
    counts, firsts, seconds = (np.append(0.0, np.cumsum(v)) for v in (w, w * x, w * x * x))
    k = min(k, len(x))
    ours, theirs = (t.kmeans(counts, firsts, seconds, k) for t in (NATIVE, NumpyKernels()))
    for c in range(1, k):
        np.testing.assert_array_equal(ours[c, c + 1 :], theirs[c, c + 1 :])


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("kind", KINDS, ids=["bf16", "f16", "f32"])
def test_histograms_count_every_weight(table: Kernels, kind: Kind) -> None:
    tile = random_tile(5, 1001, 7, kind)
    size = 1 << (20 if kind == F32 else 16)
    counts, lows = np.zeros(size, np.int64), np.zeros(size, np.int64) if kind == F32 else None
    assert table.histogram(tile, counts, lows) and table.histogram(tile, counts, lows)
    bits = tile.weights.view(np.uint32).astype(np.int64) if kind == F32 else tile.weights.astype(np.int64)
    expected = np.zeros(size, np.int64)
    np.add.at(expected, bits >> 12 if kind == F32 else bits, 2)
    np.testing.assert_array_equal(counts, expected)
    if lows is not None:
        assert int(lows.sum()) == 2 * int((bits & 0xFFF).sum())
    bad = tile_of(np.array([[1.0, np.nan]], np.float32), kind, 2)
    assert not table.histogram(bad, counts, lows)


def preserved(table: Kernels, tile: Tile, params: QuantParams, grid: CodeGrid) -> tuple[np.ndarray, Sums]:
    packed = np.zeros(tile.rows * row_bytes(tile.cols, grid.bits), np.uint8)
    with np.errstate(over="ignore"):
        sums = table.encode(tile, params, grid, packed, preserve=True)
        assert table.measure(tile, params, grid, packed) == sums
    return packed, sums


def flipping_cases(bits: int, zeros: int, tile: Tile, rng: np.random.Generator) -> tuple[QuantParams, CodeGrid]:
    shape = (tile.rows, -(-tile.cols // tile.group))
    top = (1 << bits) - 1
    sign = rng.choice([-1, 1], shape) if zeros == 0 else np.ones(shape)
    scale = (rng.uniform(0.5, 1.5, shape) * 4 / top * sign).astype(np.float32)
    zero = None if zeros == 0 else rng.integers(top // 3, top - top // 3 + 1, shape).astype(np.float32)
    if zeros == 2:
        zero = -scale * np.float32(top / 2)
    mode = OFFSET if zeros == 2 else INTEGER
    return QuantParams(scale, zero), CodeGrid(mode=mode, bits=bits, umin=0, umax=top, zero=1 << (bits - 1))


@needs_native
@pytest.mark.parametrize("zeros", [0, 1, 2], ids=["symmetric", "affine", "offset"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12])
def test_both_tables_flip_alike(bits: int, zeros: int) -> None:
    assert NATIVE is not None
    rng = np.random.default_rng(bits)
    for number, (rows, cols, group) in enumerate(ODD_SHAPES):
        for kind in KINDS:
            for rounded in (False, True):  # equal weights make equal costs
                weights = rng.standard_normal((rows, cols)).astype(np.float32) + np.float32(0.1)
                tile = tile_of(np.round(weights, 1) if rounded else weights, kind, min(group, cols))
                params, grid = flipping_cases(bits, zeros, tile, rng)
                ours, theirs = (preserved(t, tile, params, grid) for t in (NATIVE, NumpyKernels()))
                assert ours[0].tobytes() == theirs[0].tobytes() and ours[1] == theirs[1], (number, kind)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("zeros", [0, 1, 2], ids=["symmetric", "affine", "offset"])
def test_flips_bring_the_sum_of_a_row_to_0_and_are_the_cheapest(table: Kernels, zeros: int) -> None:
    """flip the fewest and cheapest codes so that each row's error sums to about zero"""
    rng = np.random.default_rng(zeros)
    for rows, cols, group in ((6, 400, 100), (40, 9, 9), (2, 3000, 128)):
        weights = rng.standard_normal((rows, cols)).astype(np.float32) * np.float32(0.6)
        tile = Tile(weights.reshape(-1), F32, rows, cols, group)
        params, grid = flipping_cases(4, zeros, tile, rng)
        plain = np.zeros(rows * row_bytes(cols, 4), np.uint8)
        before = table.encode(tile, params, grid, plain)
        packed, after = preserved(table, tile, params, grid)
        shape = rows, cols
        old, new = (table.decode(p, shape, group, params, grid).astype(np.float64) for p in (plain, packed))
        errors, left = weights - old, weights - new
        step = np.abs(per_weight(params.scale, tile)).astype(np.float64)
        moved = np.abs(new - old) > step / 2
        assert (np.abs(new - old)[moved] <= step[moved] * 1.001).all() and after.sse >= before.sse
        for row in range(rows):
            sign = np.sign(errors[row].sum())
            flipped = moved[row]
            assert (np.sign(errors[row][flipped]) == sign).all()
            cost = step[row] - 2 * np.abs(errors[row])
            codes = bits_of(packed.tobytes(), tile, 4)[row]
            free = (np.sign(errors[row]) == sign) & ~flipped & (codes > 0) & (codes < 15)
            if flipped.any() and free.any():
                assert cost[flipped].max() <= cost[free].min() + 1e-5
            if free.any():
                assert abs(left[row].sum()) <= step[row].max() / 2 + 1e-3
            assert abs(left[row].sum()) <= abs(errors[row].sum()) + 1e-6
