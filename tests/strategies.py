"""Arrays and schemes the tests ask the same questions about: a named table of awkward ones, and hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from making import BF16

from quantcli import Scheme


def gaussian(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Normal float32 weights."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def _with(array: np.ndarray, at: tuple[int, ...], value: float) -> np.ndarray:
    found: np.ndarray = array.copy()
    found[at] = value
    return found


AWKWARD: dict[str, np.ndarray] = {
    "zero": np.zeros((4, 96), np.float32),
    "negative zero": -np.zeros((2, 32), np.float32),
    "constant": np.full((3, 64), 0.7, np.float32),
    "negative constant": np.full((3, 64), -0.7, np.float32),
    "one outlier": _with(gaussian(4, 96, scale=0.01), (1, 5), 100.0),
    "one negative outlier": _with(gaussian(4, 96, scale=0.01), (1, 5), -100.0),
    "single": np.array([[0.3]], np.float32),
    "single zero": np.array([[0.0]], np.float32),
    "denormal": np.array([[1e-40, -2e-41, 0.0, 1e-45, -1e-39, 8e-39]], np.float32),
    "smallest normal": np.array([[2.0**-126, -(2.0**-126), 2.0**-125, 0.0]], np.float32),
    "huge": gaussian(3, 40, scale=1e30),
    "tiny": gaussian(3, 40, scale=1e-30),
    "ragged": gaussian(5, 100),
    "one column": gaussian(37, 1),
    "one row": gaussian(1, 300),
    "fortran order": np.asfortranarray(gaussian(12, 70)),
    "strided": gaussian(12, 140)[::2, ::2],
    "big-endian": gaussian(6, 64).astype(">f4"),
    "bfloat16": gaussian(6, 64).astype(BF16),
    "float16": gaussian(6, 64).astype(np.float16),
    "float16 largest": np.array([[65504, -65504, 1, 0, 3, -7]], np.float16),
    "float16 smallest": np.array([[6e-8, -6e-8, 0, 1.2e-7, 6e-5]], np.float16),
    "float64": np.random.default_rng(1).standard_normal((6, 64)),
    "big-endian float64": np.random.default_rng(1).standard_normal((6, 64)).astype(">f8"),
    "sparse": np.where(np.random.default_rng(2).random((8, 96)) < 0.95, 0, gaussian(8, 96)).astype(np.float32),
    "vector": gaussian(333),
    "cube": gaussian(3, 5, 48),
    "convolution": gaussian(16, 8, 3, 3),
    "pointwise convolution": gaussian(32, 16, 1, 1),
    "negative only": -np.abs(gaussian(4, 64)) - 0.5,
    "positive only": np.abs(gaussian(4, 64)) + 0.5,
    "far from zero": (gaussian(4, 64, scale=1e-3) + 1000).astype(np.float32),
    "mixed magnitudes": (gaussian(8, 64) * 10.0 ** np.arange(-12, 12, 3, dtype=np.float64)[:, None]).astype(np.float32),
    "exact halves": np.arange(-20, 20, 0.5, dtype=np.float32).reshape(2, 40),
    "scalar": np.array(0.25, np.float32),
}
"""Arrays that break what was only tried with normal weights."""


HOSTILE = [
    "::error::title", "  ::stop-commands::x", "x##[error]y", "##vso[task.complete]z", "=1+1", "+a", "-b", "@SUM(1)",
    "\tt", "\r=1", "``", "a``b`c", "`", "", " ", "a\\|b", "a|b", "\\", "<script>alert(1)</script>", "\x1b[2Jescape",
    "@octocat", "https://example.org/a", "www.example.org", "$(touch x)", "`touch x`", "a;b", "a'b", 'a"b', "&amp;",
    "[link](javascript:x)", "\u202egnp", "]]>", "a%0A::error::b", "plain.layers.0.weight", "\ud7ff\ue000", "a\nb",
]  # fmt: skip
"""Names of tensors that mean something to a terminal, a log, a spreadsheet, a page or a shell."""


KINDS: dict[str, dict[str, Any]] = {
    "restricted": {"symmetric": True, "grid": "restricted", "calibration": "minmax"},
    "full": {"symmetric": True, "grid": "full", "calibration": "minmax"},
    "signed-extreme": {"symmetric": True, "calibration": "signed-extreme"},
    "affine": {"symmetric": False, "calibration": "minmax"},
    "offset": {"symmetric": False, "zero_point": "float", "calibration": "minmax"},
    "mse": {"symmetric": True, "calibration": "mse"},
    "affine-mse": {"symmetric": False, "calibration": "mse"},
    "preserving": {"symmetric": True, "calibration": "minmax", "rounding": "sum-preserving"},
    "affine-preserving": {"symmetric": False, "calibration": "minmax", "rounding": "sum-preserving"},
}
"""Kinds of schemes of two bits or more."""

GRANULARITIES: list[dict[str, Any]] = [
    {"granularity": "tensor"}, {"granularity": "channel"}, {"group_size": 32}, {"group_size": 7}, {"group_size": 1},
]  # fmt: skip


def schemes_of(kind: str, bits: int, **fields: Any) -> Scheme:
    """A scheme of a kind."""
    return Scheme(bits=bits, **KINDS[kind], **fields)


@st.composite
def schemes(draw: st.DrawFn, *, max_bits: int = 16) -> Scheme:
    """Any valid scheme."""
    kind = draw(st.sampled_from([*KINDS, "binary"]))
    where = draw(st.sampled_from(["tensor", "channel", "group"]))
    fields: dict[str, Any] = {"granularity": where}
    if where == "group":
        fields["group_size"] = draw(st.sampled_from([1, 3, 16, 32, 64, 128]))
    if draw(st.booleans()):
        fields["scale_dtype"] = "float32"
    if kind == "binary":
        return Scheme(bits=1, **fields)
    affine = not KINDS[kind]["symmetric"]
    low = 1 if affine and "rounding" not in KINDS[kind] else 2
    return Scheme(bits=draw(st.integers(low, max_bits)), **KINDS[kind], **fields)


SHAPES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 300)),
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 40)),
    st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
)
"""Shapes of weights."""


@st.composite
def weights(draw: st.DrawFn, shape: tuple[int, ...] | None = None, dtype: Any = np.float32) -> np.ndarray:
    """Finite weights: normal ones of some magnitude, with a few arbitrary values among them."""
    shape = draw(SHAPES) if shape is None else shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    array = rng.standard_normal(shape) * 2.0 ** draw(st.integers(-20, 10))
    if draw(st.booleans()):
        array = np.where(rng.random(shape) < 0.5, 0, array)
    flat = array.reshape(-1)
    for _ in range(draw(st.integers(0, 3))):
        flat[draw(st.integers(0, flat.size - 1))] = draw(st.floats(-1000, 1000, width=32))
    return array.astype(dtype)
