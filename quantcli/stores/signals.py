"""Integers of .npy and .npz files as the signals they stand for: samples of audio, pixels of images.

Signed ones are divided by 2^(bits - 1), so that they lie in [-1, 1), unsigned ones by 2^bits - 1, so that they lie in
[0, 1]; both are then rounded to the nearest float32, which changes nothing of signed ones of up to 24 bits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.dtypes import DTYPES
from quantcli.errors import UsageError
from quantcli.stores.derived import Computed, Derived, by_elements, unchanged
from quantcli.stores.source import Source
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPTION = "--as-float"
DIVISORS = {"I8": 1 << 7, "I16": 1 << 15, "I32": 1 << 31, "U8": 0xFF, "U16": 0xFFFF, "U32": 0xFFFFFFFF}
"""What integers of each dtype are divided by."""
_KINDS = ("npy", "npz")


def may_hold(source: Source) -> bool:
    """Whether a source is a file whose integers can be a signal."""
    return source.kind in _KINDS


def as_floats(source: Source) -> Source:
    """The source with its integers scaled to float32 as they are read. Raises UsageError where there are none to scale:
    in another kind of file they are codes, positions or counts."""
    if not may_hold(source):
        problem = "only integers of .npy and .npz files are read as signals"
        raise UsageError(problem, place=[source.path, OPTION], hint="leave it out")
    infos = source.infos()
    found = Counter(info.dtype for info in infos if info.dtype in DIVISORS)
    if not found:
        problem = f"no array holds integers of {', '.join(DIVISORS)}"
        raise UsageError(problem, place=[source.path, OPTION], hint="leave it out")
    shown = ", ".join(
        f"{n} {dtype} scaled to {'[-1, 1)' if dtype[0] == 'I' else '[0, 1]'}" for dtype, n in found.items()
    )
    tensors = [_scaled(source, info) if info.dtype in DIVISORS else unchanged(source, info) for info in infos]
    return Derived(source, tensors, decoded_from=shown)


def _scaled(source: Source, info: TensorInfo) -> Computed:
    def values(first: int, last: int) -> NDArray[Any]:
        codes = np.empty(last - first, DTYPES[info.dtype].numpy)
        source.read(info.name, first * codes.itemsize, codes.view(np.uint8).data)
        return (codes / DIVISORS[info.dtype]).astype("<f4")

    return Computed(
        info=replace(info, dtype="F32"), home=info.name, fill=by_elements("F32", values), parts=(info.name,)
    )
