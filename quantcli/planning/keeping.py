"""Why a tensor is kept by what it is: its dtype, its shape and its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from quantcli.dtypes import DTYPES
from quantcli.patterns import module_of
from quantcli.planning.reasons import NAMED, REASONS, SMALL, TABLES, VECTORS
from quantcli.tensors.info import TensorInfo

MAX_DIMENSIONS = 64

_NAMED = [reason for reason in REASONS.values() if reason.named is not None]
"""Reasons that lie in a name, in the order in which they are looked for."""

_NUMBER = re.compile("[0-9]+")
"""What many names differ in; no reason is about a certain number."""


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
        found = _by_name(_NUMBER.sub("0", info.name[-1024:]), len(info.shape) == 1, keep_defaults)
        if found is not None:
            return found
    if len(info.shape) == 1:
        return "one-dimensional"
    if not keep_defaults:
        return None
    if info.numel < SMALL:
        return "small"
    # A column has a scale for every weight: in codes it takes more room than in floating point.
    return "one-dimensional" if info.numel == info.shape[0] else None


@lru_cache(maxsize=4096)
def _by_name(name: str, vector: bool, keep_defaults: bool) -> str | None:
    """The reason that lies in a name, if there is one. keep_defaults: else only embeddings and heads are looked for."""
    for reason in _NAMED:
        if not keep_defaults and reason.name not in TABLES:
            continue
        # A matrix counts as a norm's only if it is the norm's own: norm1.linear.weight is a layer like others.
        own = reason.name == "norm" and not vector
        if reason.named is not None and reason.named.search(_last_module(name) if own else name):
            return reason.name
    return None


def embeddings_alone(infos: Sequence[TensorInfo], reasons: Sequence[str | None] | None = None) -> bool:
    """Whether the only weights among these tensors are embeddings, as in a static embedding model. reasons: the results
    of `why_kept` for each, where they are known."""
    known = map(why_kept, infos) if reasons is None else reasons
    found = {reason for info, reason in zip(infos, known) if reason != "embedding" or len(info.shape) > 1}
    others = NAMED - VECTORS - {"embedding"}
    return "embedding" in found and not {None, *others} & found
