"""Kept tensors beside those of a base: the same bits, the same values rounded to another dtype, or others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from quantcli.dtypes import DTYPES, from_float32, to_float32
from quantcli.models import BLOCK, View, runs_of
from quantcli.passes import compare

if TYPE_CHECKING:
    from quantcli.kernels import Floats

EQUAL, CAST, CHANGED = "equal", "cast", "changed"
"""What a kept tensor is: bit by bit that of the base; that, rounded to another dtype; another one."""

BEGINNING = 64
"""Values by which tensors are told apart before they are compared."""

WAYS = (EQUAL, CAST, "F16", "BF16")
"""Ways in which a kept tensor may be the one of the base, the closest first."""


def same(a: View, b: View, first: int, last: int) -> tuple[str, ...]:
    """In which ways a run of a kept tensor is that of the base."""
    bits = a.info.dtype == b.info.dtype and a.stored is not None and b.stored is not None and a.scheme is None
    if bits:
        size = DTYPES[b.info.dtype].bits
        at, count = first * size // 8, (last - first) * size // 8
        x, y = (v.stored.read_bytes(v.stored.name, at, count) for v in (a, b) if v.stored is not None)
        if np.array_equal(x, y):
            return WAYS
    if not (a.numeric and b.numeric):
        return WAYS if compare.measure({"": (a, b)}, threads=1, progress=None)[0] else ()
    values, wanted = a.rounded(first, last), b.read(first, last)
    found = [EQUAL] if not bits and _alike(values, wanted) else []
    for kind, dtype in ((CAST, b.info.dtype), ("F16", "F16"), ("BF16", "BF16")):
        if found or _alike(_through(values, dtype), wanted):
            found.append(kind)
    return tuple(found)


def _alike(x: Floats, y: Floats) -> bool:
    return bool(np.array_equal(x, y, equal_nan=True))


def _through(values: Floats, dtype: str) -> Floats:
    """Values rounded to a dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        return to_float32(from_float32(values, dtype).view(np.uint8).reshape(-1), dtype)


def kind_of(a: View, b: View, how: str) -> tuple[str, str]:
    """What a kept tensor is, and a note on how it was rounded."""
    if how == CHANGED or (how == EQUAL and a.info.dtype == b.info.dtype):
        return how, ""
    if how == EQUAL:
        return CAST, f"{a.info.dtype} to {b.info.dtype}, no value changed"
    if a.info.dtype == b.info.dtype and how == CAST:
        return CAST, "the same values, zeros of another sign or other NaN"
    through = f"{how}, stored as {b.info.dtype}" if how != CAST else b.info.dtype
    return CAST, f"rounded from {a.info.dtype} to {through}"


def twins(missing: Iterable[str], before: Mapping[str, View], after: Mapping[str, View]) -> dict[str, str]:
    """For tensors of the base that the file does not have: another one with the same values, that it has. Each tensor
    is looked at once: only those that begin alike are compared."""
    wanted = [name for name in missing if before[name].numeric and before[name].info.numel]
    kinds = {_kind(before[name]) for name in wanted}
    alike: defaultdict[bytes, list[str]] = defaultdict(list)
    for name, view in before.items():
        if name in after and view.numeric and _kind(view) in kinds:
            alike[_beginning(view)].append(name)
    found = {}
    for name in wanted:
        view = before[name]
        runs = runs_of(view.info.numel, BLOCK)
        for other in alike.get(_beginning(view), ()):
            if _kind(before[other]) == _kind(view) and all(EQUAL in same(view, before[other], *run) for run in runs):
                found[name] = other
                break
    return found


def _kind(view: View) -> tuple[object, ...]:
    return view.info.shape, view.info.dtype


def _beginning(view: View) -> bytes:
    """The first values of a tensor, zeros without a sign."""
    values: Floats = view.read(0, min(view.info.numel, BEGINNING)) + np.float32(0)
    return values.tobytes()
