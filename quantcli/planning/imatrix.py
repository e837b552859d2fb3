"""Importance matrices of llama.cpp: how strongly every input of a weight is used, measured on text.

A GGUF of general.type `imatrix` holds for every weight NAME of llama.cpp, with E experts (1 where there are none),

    NAME.in_sum2  F32  [E, columns]   sums of squared activations
    NAME.counts   F32  [E, 1]         how many were added up

so that in_sum2 / counts is the mean square of each input column. Leading dimensions of 1 may be left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quantcli.dtypes import to_float64
from quantcli.errors import DataError, printable
from quantcli.stores import Source
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True, slots=True)
class Importances(Mapping[str, "NDArray[np.float64]"]):
    """Mean squared activations by llama.cpp's tensor name, (columns,) or (experts, columns); read when asked for.

    Where nothing was counted, as for an expert the text never needed, all columns count the same: 1. Asking raises
    DataError for numbers that are negative or not finite.
    """

    source: Source
    shapes: Mapping[str, tuple[int, int]]
    """Experts and columns of every weight."""

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        experts, cols = self.shapes[name]
        sums = self._floats(name + SUMS, experts * cols).reshape(experts, cols)
        counts = self._floats(name + COUNTS, experts).reshape(experts, 1)
        mean = np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)
        return mean if experts > 1 else mean[0]

    def _floats(self, name: str, count: int) -> NDArray[np.float64]:
        raw = np.empty(count * 4, np.uint8)
        self.source.read(name, 0, raw.data)
        values = to_float64(raw.view("<f4"))
        if not (np.isfinite(values) & (values >= 0)).all():
            raise DataError("a number is negative or not finite", place=[self.source.path, printable(name)])
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _shape(infos: Mapping[str, TensorInfo], name: str) -> tuple[int, int]:
    """Experts and columns of a weight. Raises DataError when sums and counts do not go together."""
    sums, counts = infos.get(name + SUMS), infos.get(name + COUNTS)
    if sums is None or counts is None:
        missing = SUMS if sums is None else COUNTS
        raise DataError(f"{missing[1:]} is missing", place=[printable(name)])
    if sums.dtype != "F32" or counts.dtype != "F32":
        raise DataError("sums and counts are not F32", place=[printable(name)])
    cols = sums.shape[-1] if sums.shape else 1
    experts = math.prod(sums.shape[:-1])
    if cols < 1 or experts < 1 or counts.numel != experts:
        shapes = f"{list(sums.shape)} and {list(counts.shape)}"
        raise DataError(f"sums and counts differ in shape: {shapes}", place=[printable(name)])
    return experts, cols


def importances(source: Source) -> Importances:
    """The importances of an importance matrix that is open. Raises DataError when it is something else."""
    kind = source.keys.get("general.type")
    infos = {info.name: info for info in source.infos()}
    names = dict.fromkeys(n.removesuffix(end) for n in infos for end in (SUMS, COUNTS) if n.endswith(end))
    try:
        if kind != "imatrix" or not names:
            raise DataError("this GGUF is not an importance matrix", hint="llama-imatrix makes one")
        return Importances(source, {name: _shape(infos, name) for name in names})
    except DataError as error:
        raise error.within(source.path) from None
