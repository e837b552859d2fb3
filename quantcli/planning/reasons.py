"""Reasons to quantize a tensor or to keep it: what each says, and what would change it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from quantcli.architectures import EMBEDDING
from quantcli.tensors.info import TensorInfo

SMALL = 1024
"""Tensors of fewer elements are kept: their codes would save next to nothing."""

LEFT_OUT = "left-out"
"""The reason of a tensor that the output does not hold, whatever was planned for it."""

OVERRIDE, ALL, TABLES_TOO = "--override", "--no-default-keep", "--no-keep-embeddings"
"""Options that quantize what is kept otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """A reason by its name in reports, and what it says.

    quantized: whether such tensors are; free: with a scheme in whose place a budget may choose another one. named: what
    to look for in the name of a tensor. ways: options with which a tensor of two dimensions would be quantized.

    vector: whether a rule must name such a tensor to quantize it. light: kept only beside weights that count for more.
    wanted: asked for, or for tensors that are no weights, so no warning tells how much they take. expected: it needs no
    explanation, because everybody keeps such tensors, or they are no weights.
    """

    name: str
    says: str
    quantized: bool = False
    free: bool = False
    named: re.Pattern[str] | None = None
    ways: tuple[str, ...] = ()
    vector: bool = False
    light: bool = False
    wanted: bool = False
    expected: bool = False


def _expression(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE)


_ALL = (
    Reason(name="default", says="the scheme of the command line", quantized=True, free=True),
    Reason(name="rule", says="a rule of the recipe", quantized=True),
    Reason(name="embedding-only", says="an embedding, and the model has no other weights", quantized=True, free=True),
    Reason(
        name="runtime",
        says="an embedding or output head, quantized as the target's own tools do",
        quantized=True,
        free=True,
    ),
    Reason(
        name="not-float",
        says="integers and booleans pass through; --as-float reads those of .npy and .npz files as signals",
        wanted=True,
        expected=True,
    ),
    Reason(name="unsupported-dtype", says="a float type that is not quantized", wanted=True),
    Reason(name="unsupported-shape", says="more dimensions than numpy has"),
    Reason(name="empty", says="no elements", wanted=True, expected=True),
    Reason(name="scalar", says="a single number without dimensions", expected=True),
    Reason(name="excluded", says="matched --exclude or a keep rule", wanted=True),
    Reason(name="preset", says="the preset for such models keeps it; the note says why", ways=(OVERRIDE, ALL)),
    Reason(name="not-included", says="matched no --include", wanted=True),
    Reason(
        name="norm",
        says="keep-list: normalization",
        named=_expression(r"(?:^|[._])(?:\w*norm(?!als?(?:[\W_]|$))\w*|bn\d*|ln(?:\d+|_\w+)?)(?:[._]|$)"),
        ways=(ALL,),
        vector=True,
        expected=True,
    ),
    Reason(
        name="bias",
        says="keep-list: bias",
        named=_expression(r"(?:^|[._])bias(?:es)?(?:[._]|$)"),
        ways=(ALL,),
        vector=True,
        expected=True,
    ),
    Reason(
        name="router",
        says="keep-list: router or gate",
        named=_expression(
            r"(?:^|\.)(?:\w*router\w*(?:\.layer)?|(?!ffn_)(?:\w+_)?gate|gating|ffn_gate_inp(?:_shexp)?)(?:\.weight)?$"
        ),
        ways=(OVERRIDE, ALL),
    ),
    Reason(
        name="lm-head",
        says="keep-list: output head",
        named=_expression(
            r"(?:^|\.)(?:lm_head(?:\.(?:decoder|out_proj))?|embed_out|(?:\w+_)?predictions\.decoder|generator_lm_head"
            r"|vocab_projector|pred_layer\.proj)(?:\.weight)?$|^output\.weight$"
        ),
        ways=(OVERRIDE, TABLES_TOO, ALL),
    ),
    Reason(
        name="embedding",
        says="keep-list: embedding",
        named=EMBEDDING,
        ways=(OVERRIDE, TABLES_TOO, ALL),
    ),
    Reason(
        name="one-dimensional", says="keep-list: one dimension, or a column of single weights", vector=True, light=True
    ),
    Reason(name="small", says=f"keep-list: fewer than {SMALL} elements", ways=(ALL,), light=True),
    Reason(
        name="target",
        says="the target of --to does not store its shape, or its loader loads no quantized weight there",
    ),
    Reason(name="component", says="a part of a pipeline that is kept whole"),
    Reason(name="experts", says="stacked experts whose axes or order of rows cannot be determined"),
    Reason(name=LEFT_OUT, says="not in the output, because what the target is for does not use it", wanted=True),
    Reason(name="nonfinite", says="NaN or infinite values, left alone on request", wanted=True),
    Reason(name="moved", says="the codes of another tool's file, as export moved them", quantized=True),
    Reason(name="plain", says="in floating point in the file that export took the codes from", wanted=True),
)

REASONS = {reason.name: reason for reason in _ALL}
"""Every reason by its name."""


def which(test: Callable[[Reason], object]) -> frozenset[str]:
    """The names of reasons for which a test holds.

    >>> sorted(which(lambda reason: reason.light))
    ['one-dimensional', 'small']
    """
    return frozenset(reason.name for reason in _ALL if test(reason))


def is_left_out(info: TensorInfo, bytes_out: int) -> bool:
    """Whether an output that has so many bytes of a tensor does not hold it."""
    return not bytes_out and info.nbytes > 0


TABLES = which(lambda reason: TABLES_TOO in reason.ways)
"""Reasons to keep what a target's own tools may quantize: embeddings and output heads."""

VECTORS = which(lambda reason: reason.vector)
"""Reasons to keep what a rule must name to quantize."""

NAMED = which(lambda reason: reason.named is not None)
"""Reasons that lie in the name of a tensor."""
