"""The inputs that the weights of a graph are multiplied with: which values they are, and how rows are made of them.

A weight is followed to the nodes that multiply with it, as `roles` does. Each such node is a tap: a row of its input
is what one output is summed over, in the order of the weight's own columns, so that the second moments of the rows are
those that errors of the weight are weighed with:

    MatMul, Gemm               rows of the other matrix
    Conv                       patches of the input under the kernel, zeros at its edges included, of all groups
    LSTM, GRU, RNN: W          the inputs of every step
    LSTM, GRU, RNN: R          the states before every step; for GRU as if no gate came between
    com.microsoft.Attention    the inputs

Weights that rows are looked up from have no such input; those of ConvTranspose have their inputs along the first axis,
and their rows are of outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quantcli.layouts.onnx.roles import LOOKING, Use, Uses, roles

if TYPE_CHECKING:
    from quantcli.stores.onnx_graph import Call, Graph
    from quantcli.tensors.info import TensorInfo

Kind = Literal["rows", "columns", "patches", "steps", "states"]

FLOATS = ("F32", "F16")
"""Dtypes of weights whose inputs are observed."""

_PRODUCTS = ("MatMul", "Gemm", "com.microsoft.FusedMatMul", "com.microsoft.FusedGemm")
_CONVOLUTIONS = ("Conv", "com.microsoft.FusedConv")
_RECURRENT = ("LSTM", "GRU", "RNN")

_KEEPING_COLUMNS = ("Identity", "Cast", "Unsqueeze", "Squeeze", "Slice", "Split", "Concat")
"""Operators that, where the last axis has as many columns behind them as before, put rows elsewhere alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """A node that multiplies a weight with inputs.

    weight: its name. place: of the node. kind: how rows are made of the values. values: the names of the
    inputs as the node has them; for states the outputs of all steps, empty where the node does not give them, and the
    states at the start, where there are such. columns: values of a row. first: whether the columns are those of the
    weight's first axis, as in a matrix that is stored [in, out]. kernel: the extent of patches along each axis.
    """

    weight: str
    place: int
    kind: Kind
    values: tuple[str, ...]
    columns: int
    first: bool = False
    kernel: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Tapped:
    """The taps of a graph in the order of its weights, and why other weights have none."""

    taps: tuple[Tap, ...]
    without: Mapping[str, str]


def tapped(graph: Graph, infos: Sequence[TensorInfo]) -> Tapped:
    """What is to be observed of a model."""
    uses, known = Uses(graph), roles(graph)
    found, without = list[Tap](), dict[str, str]()
    for info in infos:
        if info.name not in known or known[info.name].why or len(info.shape) < 2:
            continue
        own = list[Tap]()
        if info.dtype not in FLOATS:
            without[info.name] = f"{info.dtype} is not observed"
            continue
        uses.reset()
        seen = set[tuple[int, int]]()
        for use in uses.of(info.name):
            if (use.place, use.at) in seen or graph.calls[use.place].operator in LOOKING:
                continue
            seen.add((use.place, use.at))
            made = _tap(graph, info, use)
            if isinstance(made, str):
                without[info.name] = made
            else:
                own.append(made)
        if info.name not in without and len({(tap.columns, tap.first) for tap in own}) > 1:
            without[info.name] = "nodes take it in different forms"
        if info.name not in without:
            found += own
    return Tapped(tuple(found), without)


def _tap(graph: Graph, info: TensorInfo, use: Use) -> Tap | str:
    """The tap of a node that a weight comes to, or why it has none."""
    call = graph.calls[use.place]
    way = [graph.calls[place].operator for place in use.way]
    if call.in_function or any(graph.calls[place].in_function for place in use.way):
        return "it is in a function"
    if call.operator == "Gather":
        return "rows are looked up from it"
    made = _of_operator(call, info, use)
    if made is None:
        return f"inputs of {call.operator} are not observed"
    kind, values, columns, first = made
    kept = columns in (info.shape[-1], math.prod(info.shape[1:])) and set(way) <= set(_KEEPING_COLUMNS)
    kernel = (call.lists.get("kernel_shape") or (() if use.changed else info.shape[2:])) if kind == "patches" else ()
    if (use.changed and (first or not kept)) or (kind == "patches" and not kernel):
        return f"{', '.join(dict.fromkeys(way))} may change its columns"
    return Tap(
        weight=info.name,
        place=use.place,
        kind=kind,
        values=values,
        columns=columns,
        first=first,
        kernel=tuple(kernel),
    )


def _of_operator(call: Call, info: TensorInfo, use: Use) -> tuple[Kind, tuple[str, ...], int, bool] | None:
    """Kind, values, columns and `first` of the tap of a node that takes a weight; None where it has none."""
    shape, at = info.shape, use.at
    if call.operator in _PRODUCTS and at in (0, 1) and len(shape) == 2 and call.takes[1 - at] and not use.changed:
        turned = use.turned != bool(call.numbers.get("transB" if at else "transA", 0))
        first = turned != bool(at)  # of A [M, K] the columns are summed over, of B [K, N] the rows
        return ("rows" if at else "columns"), (call.takes[1 - at],), shape[0] if first else shape[1], first
    if call.operator in _CONVOLUTIONS and at == 1 and not use.turned:
        return "patches", (call.takes[0],), math.prod(shape[1:]), False
    if call.operator in _RECURRENT and at == 1 and not use.turned:
        return "steps", (call.takes[0],), shape[-1], False
    if call.operator in _RECURRENT and at == 2 and not use.turned and not _padded(call):
        initial = call.takes[5] if len(call.takes) > 5 else ""
        return "states", (call.makes[0] if call.makes else "", initial), shape[-1], False
    if call.operator == "com.microsoft.Attention" and at == 1 and not use.turned and len(shape) == 2:
        return "rows", (call.takes[0],), shape[0], True
    return None


def _padded(call: Call) -> bool:
    """Whether sequences end before the last step."""
    return len(call.takes) > 4 and bool(call.takes[4])
