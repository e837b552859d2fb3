"""How the scales of groups are stored. One file each; the file's name is what `Scheme.storage` has.

A storage rounds scales to what a file can hold, lists the stored scales a search may choose among, and turns them into
the bytes of a file and back. What it gives are effective scales, in float32: what codes are multiplied by.

Groups whose scales are stored together (super-blocks) are searched together. Blocks are no storage, but a granularity:
their scales may be floats as well as powers of two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from quantcli import registry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import BlockScales, Choices, Floats, Kernels, StoredScales, Tile
    from quantcli.scheme import Scheme

    Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Store:
    """Where the scales of one tensor go: the safetensors dtype, and the scale of the tensor that they are multiplied
    by, 1 where there is none."""

    dtype: str
    overall: float = 1.0


EXACT = Store("F32")
"""Scales that are stored as float32."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Storage:
    """A way to store scales.

    settle(scale, scheme, store): the effective scales of those that a calibrator found, float64 (rows, groups). choices
    (scale, scheme, store, effort): those to try around the scales that clip nothing. stored(scale, store): effective
    scales as the file holds them; effective(raw, store): its bytes as float32. overall(largest, scheme): the scale of a
    tensor with this largest magnitude; None where a tensor has none. search(kernels, tile, scheme): where the scales of
    many groups are stored together, all parameters of a tile as they will be stored, scales and offsets (rows, groups)
    and their parts; None where they do not fit. The other functions are not called then, but settle. known(scheme,
    store, effort): what the kernels need to know to settle scales by themselves, and to choose among those that this
    effort tries (None: only to settle them); None where they do not know the storage.
    """

    settle: Callable[[Array, Scheme, Store], Floats]
    choices: Callable[[Array, Scheme, Store, str], Choices]
    stored: Callable[[Floats, Store], NDArray[Any]]
    effective: Callable[[NDArray[np.uint8], Store], Floats]
    overall: Callable[[float, Scheme], float] | None = None
    search: Callable[[Kernels, Tile, Scheme], tuple[Floats, Floats | None, BlockScales] | None] | None = None
    known: Callable[[Scheme, Store, str | None], StoredScales | None] = lambda scheme, store, effort: None


def of(scheme: Scheme) -> Storage:
    """The storage of the scales of a scheme."""
    return cast(Storage, registry.get("scales", scheme.storage))


def chosen(choices: Choices, best: NDArray[np.int32]) -> Array:
    """The chosen scales (rows, groups), given the place of each among its choices."""
    if choices.first is not None:
        found: Array = choices.values[choices.first + best].astype(np.float64)
        return found
    return np.take_along_axis(choices.values, best[..., None].astype(np.intp), 2)[..., 0].astype(np.float64)
