"""Why a tensor is kept by what it is: its dtype, its shape and its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from quantcli.architectures import EMBEDDING
from quantcli.dtypes import DTYPES
from quantcli.patterns import module_of
from quantcli.tensors.info import TensorInfo

SMALL = 1024
"""Tensors of fewer elements are kept: their codes would save next to nothing."""

MAX_DIMENSIONS = 64

REASONS = {
    "default": "the scheme of the command line",
    "rule": "a rule of the recipe",
    "embedding-only": "an embedding, and the model has no other weights",
    "runtime": "an embedding or output head, quantized as the target's own tools do",
    "not-float": "integers and booleans pass through; --as-float reads those of .npy and .npz files as signals",
    "unsupported-dtype": "a float type that is not quantized",
    "unsupported-shape": "more dimensions than numpy has",
    "empty": "no elements",
    "scalar": "a single number without dimensions",
    "excluded": "matched --exclude or a keep rule",
    "preset": "the preset for such models keeps it; the note says why",
    "not-included": "matched no --include",
    "norm": "keep-list: normalization",
    "bias": "keep-list: bias",
    "router": "keep-list: router or gate",
    "embedding": "keep-list: embedding",
    "lm-head": "keep-list: output head",
    "one-dimensional": "keep-list: one dimension",
    "small": f"keep-list: fewer than {SMALL} elements",
    "target": "the target of --to does not store its shape, or its loader loads no quantized weight there",
    "component": "a part of a pipeline that is kept whole",
    "experts": "stacked experts whose axes or order of rows cannot be determined",
    "nonfinite": "NaN or infinite values, left alone on request",
}
"""Every reason code and what it means."""

TABLES = ("embedding", "lm-head")
"""Reasons to keep what a target's own tools may quantize."""

FREE = ("default", "embedding-only", "runtime")
"""Reasons of tensors with the default scheme, for which a budget may choose another one."""

VECTORS = ("norm", "bias", "one-dimensional")
"""Reasons to keep what a rule must name to quantize."""

_NAMES = [
    ("norm", re.compile(r"(?:^|[._])(?:\w*norm\w*|bn\d*|ln(?:\d+|_\w+)?)(?:[._]|$)", re.IGNORECASE)),
    ("bias", re.compile(r"(?:^|[._])bias(?:es)?(?:[._]|$)", re.IGNORECASE)),
    (
        "router",
        re.compile(
            r"(?:^|\.)(?:\w*router\w*(?:\.layer)?|(?!ffn_)(?:\w+_)?gate|gating|ffn_gate_inp(?:_shexp)?)(?:\.weight)?$",
            re.IGNORECASE,
        ),
    ),
    ("lm-head", re.compile(r"(?:^|\.)(?:lm_head|embed_out)(?:\.weight)?$|^output\.weight$", re.IGNORECASE)),
    ("embedding", EMBEDDING),
]

NAMED = tuple(reason for reason, _ in _NAMES)
"""Reasons that lie in the name of a tensor."""


def _last_module(name: str) -> str:
    return module_of(name).rpartition(".")[2] or name


def why_kept(info: TensorInfo, *, keep_defaults: bool = True, keep_embeddings: bool = False) -> str | None:
    """The reason that lies in the tensor alone, if there is one. keep_embeddings: whether those stay even without the
    keep-list."""
    dtype = DTYPES[info.dtype]
    if not dtype.quantizable:
        return "unsupported-dtype" if dtype.is_float else "not-float"
    if info.numel == 0:
        return "empty"
    if not info.shape:
        return "scalar"
    if len(info.shape) > MAX_DIMENSIONS:
        return "unsupported-shape"
    if keep_defaults or keep_embeddings:
        for reason, expression in _NAMES:
            if not keep_defaults and reason not in TABLES:
                continue
            # A matrix counts as a norm's only if it is the norm's own: norm1.linear.weight is a layer like others.
            name = info.name[-1024:] if reason != "norm" or len(info.shape) == 1 else _last_module(info.name[-1024:])
            if expression.search(name):
                return reason
    if len(info.shape) == 1:
        return "one-dimensional"
    return "small" if keep_defaults and info.numel < SMALL else None


def embeddings_alone(infos: Sequence[TensorInfo], reasons: Mapping[str, str | None] | None = None) -> bool:
    """Whether the only weights among these tensors are embeddings, as in a static embedding model. reasons: the results
    of `why_kept`, by name, where they are known."""
    known = {info.name: why_kept(info) for info in infos} if reasons is None else reasons
    found = {reason for info in infos if (reason := known[info.name]) != "embedding" or len(info.shape) > 1}
    return "embedding" in found and not {None, "lm-head", "router"} & found
