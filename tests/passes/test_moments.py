"""Rows of inputs: what a convolution or recurrent layer makes of them is what its definition makes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from quantcli.passes.moments import Moments, patches, rows_of
from quantcli.stores.onnx_graph import Call

RNG = np.random.default_rng(0)


def call(
    operator: str, lists: dict[str, Any] | None = None, words: dict[str, str] | None = None, **numbers: int
) -> Call:
    return Call(
        operator=operator, inputs=(), outputs=(), takes=(), makes=(), numbers=numbers, floats={}, lists=lists or {},
        words=words or {}, scope="", in_function=False,
    )  # fmt: skip


def convolved(
    x: np.ndarray, weight: np.ndarray, pads: list[int], strides: list[int], dilations: list[int], groups: int
) -> np.ndarray:
    """A convolution by its definition in ONNX: (samples, out, places)."""
    axes = weight.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:axes], pads[axes:])])
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations)]
    places = [range(0, n - span + 1, s) for n, span, s in zip(x.shape[2:], spans, strides)]
    outs, own = weight.shape[0] // groups, weight.shape[1]
    found = np.zeros((len(x), weight.shape[0], *map(len, places)))
    for sample, out in itertools.product(range(len(x)), range(weight.shape[0])):
        for index in itertools.product(*(range(len(p)) for p in places)):
            start = [p[i] for p, i in zip(places, index)]
            for channel in range(own):
                for tap in itertools.product(*map(range, weight.shape[2:])):
                    at = tuple(s + t * d for s, t, d in zip(start, tap, dilations))
                    found[sample, out][index] += weight[out, channel][tap] * x[sample, out // outs * own + channel][at]
    return found.reshape(len(x), weight.shape[0], -1)


CASES = [
    ((2, 3, 6, 7), (4, 3, 3, 3), [0, 0, 0, 0], [1, 1], [1, 1], 1),
    ((2, 4, 6, 7), (4, 2, 3, 2), [1, 0, 2, 1], [2, 1], [1, 2], 2),
    ((1, 3, 5, 5), (3, 1, 3, 3), [1, 1, 1, 1], [1, 2], [1, 1], 3),
    ((2, 4, 11), (6, 4, 3), [2, 1], [3], [2], 1),
    ((1, 2, 4, 5, 3), (2, 2, 2, 3, 1), [0, 1, 0, 0, 1, 1], [1, 2, 1], [1, 1, 2], 1),
]


@pytest.mark.parametrize(("shape", "kernel", "pads", "strides", "dilations", "groups"), CASES)
def test_patches_times_the_weight_are_the_convolution(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    pads: list[int],
    strides: list[int],
    dilations: list[int],
    groups: int,
) -> None:
    x, weight = RNG.standard_normal(shape).astype(np.float32), RNG.standard_normal(kernel).astype(np.float32)
    lists = {"pads": tuple(pads), "strides": tuple(strides), "dilations": tuple(dilations)}
    rows = np.concatenate([*patches(x, call("Conv", lists, group=groups), kernel[2:])])
    outs = kernel[0] // groups
    rows = rows.reshape(shape[0], groups, -1, rows.shape[-1])
    made = np.einsum("sgpc,goc->sgop", rows, weight.reshape(groups, outs, -1)).reshape(shape[0], kernel[0], -1)
    expected = convolved(x, weight, pads, strides, dilations, groups)
    assert made.shape == expected.shape and np.allclose(made, expected, atol=1e-5)


SAME = [("SAME_UPPER", 7, 4, (1, 1)), ("SAME_LOWER", 8, 4, (1, 0)), ("SAME_UPPER", 8, 4, (0, 1))]


@pytest.mark.parametrize(("auto", "size", "count", "zeros"), [*SAME, ("VALID", 8, 3, (0, 0))])
def test_pads_that_are_made_up_keep_the_size(auto: str, size: int, count: int, zeros: tuple[int, int]) -> None:
    """ONNX: the output has ceil(size / stride) places, and an odd zero is behind with SAME_UPPER."""
    x = np.arange(1, size + 1, dtype=np.float32).reshape(1, 1, size)
    rows = np.concatenate([*patches(x, call("Conv", {"strides": (2,)}, {"auto_pad": auto}), (3,))])
    assert len(rows) == count
    assert (int(rows[0, 0] == 0), int(rows[-1, -1] == 0)) == zeros


def test_states_are_those_before_every_step() -> None:
    from quantcli.layouts.onnx.taps import Tap

    tap = Tap(weight="r", place=0, kind="states", values=("y", "h"), columns=3)
    after = RNG.standard_normal((4, 2, 5, 3)).astype(np.float32)
    start = RNG.standard_normal((2, 5, 3)).astype(np.float32)
    both = call("LSTM", {}, {"direction": "bidirectional"})
    forward, backward = rows_of(tap, both, [after, start], None)
    assert (forward.reshape(4, 5, 3)[:3] == after[:3, 0]).all() and (forward.reshape(4, 5, 3)[3] == start[0]).all()
    assert (backward.reshape(4, 5, 3)[:3] == after[1:, 1]).all() and (backward.reshape(4, 5, 3)[3] == start[1]).all()
    flat = call("LSTM", {}, {"direction": "bidirectional"}, layout=1)
    again = [*rows_of(tap, flat, [after.transpose(2, 0, 1, 3), start.transpose(1, 0, 2)], None)]
    assert (again[0] == forward).all() and (again[1] == backward).all()
    (zeros,) = rows_of(tap, call("LSTM", {}, {"direction": "reverse"}), [after[:, :1], None], None)
    assert not zeros.reshape(4, 5, 3)[3].any()


def test_sums_are_those_of_all_rows_whatever_their_parts() -> None:
    rows = RNG.standard_normal((1000, 7)).astype(np.float32)
    sums, squares = Moments(7), Moments(7, full=False)
    for part in np.array_split(rows, 9):
        sums.add(part)
        squares.add(part)
    wide = rows.astype(np.float64)
    assert np.allclose(sums.second, wide.T @ wide / 1000, atol=1e-6) and np.allclose(sums.mean, wide.mean(axis=0))
    assert np.allclose(squares.second, (wide**2).mean(axis=0)) and squares.count == 1000
    assert (sums.second == sums.second.T).all()
