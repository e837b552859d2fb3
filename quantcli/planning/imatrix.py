"""Importance matrices of llama.cpp: how strongly every input of a weight is used, measured on text.

A GGUF of general.type `imatrix` holds for every weight NAME of llama.cpp, with E experts (1 where there are none),

    NAME.in_sum2  F32  [E, columns]   sums of squared activations
    NAME.counts   F32  [E, 1]         how many were added up

so that in_sum2 / counts is the mean square of each input column. Leading dimensions of 1 may be left out.

Before that there was a format of its own, in files that end in .dat. All its numbers are little-endian:

    i32 entries, and for each   i32 length | name | i32 calls | i32 count | count F32 sums of squares
    nothing more, or            i32 calls of all | i32 length | name of the text

There sums / calls, or the sums themselves where calls is 0, are as good as mean squares. The numbers of all experts
follow each other.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quantcli.dtypes import to_float64
from quantcli.errors import DataError, printable
from quantcli.stores import Source, places
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEGACY = (".dat", ".imatrix")
"""Endings of files in the format before GGUF. Newer files of these names are GGUF."""

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


# ---- the format before GGUF ---------------------------------------------------------------------------------------


def is_legacy(path: str) -> bool:
    """Whether a file is named like one of the format before GGUF, and is no GGUF."""
    if not path.lower().endswith(LEGACY):
        return False
    file = places.opened(path)
    try:
        return file.size < 4 or file.read(0, 4) != b"GGUF"
    finally:
        file.close()


def legacy(path: str, most: int) -> dict[str, NDArray[np.float64]]:
    """Importances by llama.cpp's tensor name, from a file in the format before GGUF of at most so many bytes. Raises
    DataError for what is not in that format."""
    file = places.opened(path)
    try:
        if file.size > most:
            raise DataError(f"the file has {file.size} bytes, more than the limit of {most}")
        return _Legacy(file.read(0, file.size)).entries()
    except DataError as error:
        raise error.within(path) from None
    finally:
        file.close()


@dataclass(slots=True)
class _Legacy:
    """The bytes of a file, and how many of them are read."""

    data: bytes
    at: int = 0

    def entries(self) -> dict[str, NDArray[np.float64]]:
        """All of them, by name."""
        found: dict[str, NDArray[np.float64]] = {}
        for _ in range(self._count("entries", least=1)):
            name = self._text()
            if not name or name in found:
                raise DataError(f"{printable(repr(name), 80)} is the name of {'two entries' if name else 'an entry'}")
            calls, count = self._count("calls"), self._count("numbers", least=1)
            sums = to_float64(np.frombuffer(self._taken(4 * count), "<f4"))
            found[name] = sums / calls if calls else sums
        if self.at < len(self.data):
            self._count("calls")
        if self.at < len(self.data):
            self._text()
        if self.at < len(self.data):
            raise DataError(f"{len(self.data) - self.at} bytes follow the last entry")
        return found

    def _taken(self, size: int) -> bytes:
        """The next bytes."""
        if size > len(self.data) - self.at:
            problem = f"{size} bytes are to be at byte {self.at}, of {len(self.data)}"
            raise DataError(problem, hint="the file is cut short, or no importance matrix of llama.cpp")
        self.at += size
        return self.data[self.at - size : self.at]

    def _count(self, what: str, least: int = 0) -> int:
        """The next number, of so much."""
        found = int(struct.unpack("<i", self._taken(4))[0])
        if found < least:
            problem = f"the number of {what} at byte {self.at - 4} is {found}"
            raise DataError(problem, hint="the file is damaged, or no importance matrix of llama.cpp")
        return found

    def _text(self) -> str:
        """The next name."""
        start = self.at
        try:
            return self._taken(self._count("bytes of a name")).decode()
        except UnicodeDecodeError:
            raise DataError(f"the name at byte {start} is not UTF-8") from None
