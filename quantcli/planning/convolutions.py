"""How convolutions in codebooks and formats of levels are rounded where nothing is asked.

Sum-preserving rounding is the default for integers. To levels it costs NF4 and FP8 a tenth to a third of their time,
and brings convolutions much, matrices nothing: `tests/bench/RESULTS.md` has what it does to five models, and to one on
which nothing had been chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from quantcli.architectures.experts import EXPERT
from quantcli.asking import changed
from quantcli.scheme import Scheme
from quantcli.tensors.decided import Decided
from quantcli.tensors.decisions import alike
from quantcli.tensors.info import TensorInfo

LONGEST = 256
"""The most places of a kernel in a tensor of three dimensions: with more it is taken for matrices that are stacked."""


def is_convolution(info: TensorInfo) -> bool:
    """Whether a tensor has the shape of a convolution: outputs, inputs, and a kernel.

    >>> is_convolution(TensorInfo("conv1", "F32", (16, 3, 3, 3))), is_convolution(TensorInfo("fc", "F32", (8, 4)))
    (True, False)
    """
    kernel = info.shape[2:]
    return bool(kernel) and (len(kernel) > 1 or prod(kernel) <= LONGEST) and not EXPERT.search(info.name)


def rounds_by_shape(scheme: Scheme) -> bool:
    """Whether a scheme leaves it to the shape of a tensor how it is rounded, where nothing is asked."""
    return scheme.family in ("levels", "learned") and scheme.rounding == "nearest" and scheme.storage != "super-blocks"


def with_sums_kept(tensors: Sequence[Decided]) -> tuple[Sequence[Decided], bool]:
    """The tensors of a plan, of which convolutions in codebooks and formats of levels keep the sums of rows; and
    whether there are such."""
    shaped = (t.scheme for t, _ in alike(tensors) if len(t.info.shape) > 2)
    if not any(scheme is not None and rounds_by_shape(scheme) for scheme in shaped):
        return tensors, False
    found, some = list[Decided](), False
    for tensor in tensors:
        if tensor.scheme is not None and rounds_by_shape(tensor.scheme) and is_convolution(tensor.info):
            tensor, some = replace(tensor, scheme=changed(tensor.scheme, rounding="sum-preserving")), True
        found.append(tensor)
    return found, some
