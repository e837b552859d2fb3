"""A plugin of pytest that `sanitized.py` runs: the kernels come from the library that QUANTCLI_LIBRARY names, and every
array they get is copied to where it lies directly behind a page that cannot be touched (QUANTCLI_GUARDS=behind),
directly before one (`before`), or behind one at the worst address that an array may have (`odd`): weights of tiles and
bytes, such as packed codes, at an odd one, others one element behind the page, which no vector is aligned to.

What a kernel reads or writes one byte beyond an array ends the process. An array that cannot be written to must come
back as it went.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from typing import Any

import numpy as np

from quantcli import library
from quantcli.kernels import native, records

PLACE = os.environ.get("QUANTCLI_GUARDS", "")

_PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_mine = threading.local()


class Guarded:
    """A copy of an array between two pages that cannot be touched."""

    def __init__(self, array: np.ndarray, *, away: int = 0) -> None:
        self.array, size = array, array.nbytes
        pages = -(-(size + away) // _PAGE)
        self.map = mmap.mmap(-1, (pages + 2) * _PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        room = pages * _PAGE
        inside = room - size if PLACE == "before" else away
        self.at = start + _PAGE + inside
        ctypes.memmove(self.at, array.ctypes.data, size)
        self.before = b"" if array.flags.writeable else array.tobytes()
        for page in (start, start + _PAGE + room):
            assert _libc.mprotect(page, _PAGE, 0) == 0

    def give_back(self) -> None:
        """Put what a kernel wrote into the array."""
        if self.array.flags.writeable:
            ctypes.memmove(self.array.ctypes.data, self.at, self.array.nbytes)
        else:
            assert ctypes.string_at(self.at, self.array.nbytes) == self.before, "an argument was written to"


def _guarded(array: np.ndarray, *, away: int = 0) -> int:
    held: list[Guarded] = _mine.__dict__.setdefault("held", [])
    for known in held:  # an array that is given twice is one array
        if known.array.ctypes.data == array.ctypes.data and known.array.nbytes == array.nbytes:
            return known.at
    held.append(Guarded(array, away=away))
    return held[-1].at


def address(array: np.ndarray | None) -> int | None:
    if array is None:
        return None
    assert array.flags.c_contiguous or array.flags.f_contiguous
    return _guarded(array, away=array.itemsize if PLACE == "odd" else 0) if array.nbytes else array.ctypes.data


def tile_record(tile: Any) -> records.TileRecord:
    weights = tile.weights
    at = _guarded(weights, away=int(PLACE == "odd")) if weights.nbytes else address(weights)
    return records.TileRecord(at, tile.rows, tile.cols, tile.group, tile.kind)


def _call(self: native.NativeKernels, name: str, *arguments: Any) -> Any:
    try:
        return getattr(self, f"_{name}")(*arguments)
    finally:
        held: list[Guarded] = _mine.__dict__.pop("held", [])
        for guarded in held:
            guarded.give_back()


def pytest_configure() -> None:
    """Have the kernels come from that library, and guard what they are given; pytest calls it of a plugin."""
    setattr(library, "opened", lambda: ctypes.CDLL(os.environ["QUANTCLI_LIBRARY"]))  # noqa: B010 (types are others)
    if PLACE:
        setattr(records, "address", address)  # noqa: B010
        setattr(native, "address", address)  # noqa: B010
        setattr(native, "tile_record", tile_record)  # noqa: B010
        setattr(native.NativeKernels, "_call", _call)  # noqa: B010
