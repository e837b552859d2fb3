"""The largest weights of tensors that share the scale of a tensor, found once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels, scales
from quantcli.dtypes import DTYPES
from quantcli.passes.tiles import Visit
from quantcli.tensors.fit import largest
from quantcli.tensors.fused import partners
from quantcli.tensors.tiles import read_tile
from quantcli.tensors.trials import Trials

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.tensors.decided import Decided
    from quantcli.tensors.rows import TileSpan

Read = Callable[[str, int, "NDArray[np.uint8]"], None]
"""Fills an array with the bytes of a tensor, by its name, from a byte offset on."""


def sharing(name: str, tensors: Mapping[str, Decided]) -> tuple[str, ...]:
    """The tensors, this one first, that share the scale of a tensor: none where there is no such scale, or this tensor
    has it to itself."""
    scheme = tensors[name].scheme
    if scheme is None or scales.of(scheme).overall is None:
        return ()
    same = {n for n in partners(name, tensors) if (other := tensors[n].scheme) and other.storage == scheme.storage}
    return (name, *sorted(same)) if same else ()


class Largest:
    """The largest magnitudes of tensors by name, as far as they are known. Its methods may be called from several
    threads."""

    def __init__(self, tensors: Mapping[str, Decided], read: Read) -> None:
        self._tensors, self._read = tensors, read
        self._known: dict[str, float] = {}

    def tell(self, trials: Trials) -> Visit:
        """The tasks that find the largest of all weights that share a scale; then trials are told."""
        names = sharing(trials.info.name, self._tensors)
        for name in names:
            if name not in self._known:
                grouping = self._tensors[name].grouping
                assert grouping is not None
                found: list[Any] = yield [partial(self._see, name, span) for span in grouping.tiles()]
                self._known[name] = float(max(found))
        if names:
            trials.take_largest(max(self._known[name] for name in names))

    def _see(self, name: str, span: TileSpan) -> float:
        info, grouping = self._tensors[name].info, self._tensors[name].grouping
        assert grouping is not None
        raw = np.empty(span.rows * span.cols * DTYPES[info.dtype].bits // 8, np.uint8)
        tile = read_tile(info.dtype, grouping, span, partial(self._read, name), raw)
        return float(largest(kernels.load(), tile))
