"""Levels of a codebook, in a file."""

from __future__ import annotations

import io

import numpy as np

from quantcli.errors import UsageError
from quantcli.stores.places import read_small
from quantcli.strict import LIMIT


def levels(path: str) -> tuple[float, ...]:
    """The levels of a codebook in a file, ascending: numbers in text, apart by blanks or commas, or a .npy array.

    Raises UsageError for anything but numbers.
    """
    raw = read_small(path, LIMIT)
    try:
        if raw[:6] == b"\x93NUMPY":
            found = [float(v) for v in np.load(io.BytesIO(raw), allow_pickle=False).ravel()]
        else:
            found = [float(word) for word in raw.decode("ascii").replace(",", " ").split()]
    except (ValueError, TypeError, EOFError, OverflowError):
        raise UsageError("it is not a list of numbers", place=[path]) from None
    return tuple(sorted(found))
