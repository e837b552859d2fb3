"""Statistics of layer inputs in safetensors: means, second moments and counts by the name of a weight or module.

The file's format is told in docs/statistics.md. Vectors are read and checked at once, matrices by rows when a tensor
is quantized: of those the diagonal and a few rows and columns are looked at before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from quantcli.dtypes import DTYPES, floats
from quantcli.errors import DataError, UsageError, printable
from quantcli.stores import places
from quantcli.stores.safetensors import SafetensorsFile
from quantcli.tensors.decided import SLACK, TINY, beyond_squares, not_symmetric

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.tensors.info import TensorInfo

    Array = NDArray[np.float64]

KEY, VERSION = "quantcli_statistics", "1"
"""The key of a safetensors file's metadata that says it holds statistics, and the version of their format."""

MEAN, SECOND, COUNT = "mean", "second", "count"

SAMPLED = 16
"""Rows of a matrix that are looked at before anything is quantized."""

MOST_COLUMNS = 1 << 15
"""Inputs of a layer whose matrix is used at most: as a triangle of float64 it takes 4 GiB."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Second moments of all pairs of inputs (cols, cols), read by rows from where they are stored.

    taps: places of a convolution's kernel that each input channel stands for; `mean` of the channels then says how
    places go together. expert: whose it is, of a tensor of those of several.
    """

    source: SafetensorsFile
    info: TensorInfo
    taps: int = 1
    mean: Array | None = None
    expert: int = 0

    @property
    def place(self) -> list[str]:
        """Where it is, for errors."""
        own = [] if len(self.info.shape) == 2 else [f"expert {self.expert}"]
        return [self.source.path, printable(self.info.name), *own]

    @property
    def cols(self) -> int:
        """Inputs."""
        return self.info.shape[-1]

    @property
    def _first(self) -> int:
        """The number it begins with, of those in the tensor."""
        return self.expert * self.cols * self.cols

    def stored(self, first: int, last: int) -> Array:
        """Rows as they are stored, in float64. Raises DataError for a number that is not finite."""
        shape = (last - first, self.cols)
        return _numbers(self.source, self.info, self._first + first * self.cols, shape, self.place)

    def rows(self, first: int, last: int) -> Array:
        """Rows [first, last) for the columns of the weight. Raises DataError for a number that is not finite."""
        if self.taps == 1:
            return self.stored(first, last)
        taps, channels = self.taps, self.cols
        low, high = first // taps, -(-last // taps)
        own, mean = self.stored(low, high), np.zeros(channels) if self.mean is None else self.mean
        apart = mean[low:high, None] * mean  # other places: independent but for their means
        same = np.eye(taps, dtype=bool)[None, :, None, :]
        found = np.where(same, own[:, None, :, None], apart[:, None, :, None])
        return np.ascontiguousarray(found.reshape((high - low) * taps, -1)[first - low * taps : last - low * taps])

    def diagonal(self) -> Array:
        """The mean square of every stored input."""
        return self._every(0, self.cols + 1)

    def column(self, number: int) -> Array:
        """A column as it is stored."""
        return self._every(number, self.cols)

    def _every(self, start: int, stride: int) -> Array:
        """As many numbers as there are inputs, so many apart."""
        size = DTYPES[self.info.dtype].bits // 8
        raw = np.empty((self.cols, size), np.uint8)
        self.source.read_runs(self.info.name, (self._first + start) * size, stride * size, raw)
        return floats(raw.reshape(-1), self.info.dtype)

    def check(self, diagonal: Array) -> None:
        """Look at the first and last row and column and at some rows between. Raises DataError for numbers that are
        not finite, beyond the mean squares in `diagonal`, or not the same in rows and columns. Where a tensor is
        quantized by it, all of it is looked at."""
        cols = len(diagonal)
        if not diagonal.any():
            return
        picked = sorted({*range(0, cols, -(-cols // SAMPLED)), cols - 1})
        scale = 1 / np.sqrt(diagonal + TINY * diagonal.mean())
        found = np.concatenate([self.stored(row, row + 1) for row in picked])
        share = found * scale * scale[picked, None]
        beyond = np.abs(share) > 1 + SLACK
        if beyond.any():
            i, j = (int(v[0]) for v in np.nonzero(beyond))
            raise beyond_squares(float(found[i, j]), picked[i], j, self.place)
        off = np.abs(share[:, picked] - share[:, picked].T) > SLACK
        if off.any():
            raise not_symmetric(picked[int(off.any(axis=1).argmax())], self.place)
        for row, own in ((0, share[0]), (cols - 1, share[-1])):
            if not (np.abs(self.column(row) * scale * scale[row] - own) <= SLACK).all():  # NaN is not either
                raise not_symmetric(row, self.place)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a file tells of the inputs of one layer: mean squares, or importances, in any shape; means, and a matrix of
    second moments, where there are any; and how many samples these are over, infinite where that is not known. experts:
    of several experts in one tensor what is told of each; the mean squares are then those of all samples together."""

    values: Array
    mean: Array | None = None
    matrix: Matrix | None = None
    count: float = np.inf
    experts: Experts | None = None

    @property
    def correlated(self) -> bool:
        """Whether it tells how inputs go together."""
        if self.experts is not None:
            return self.experts.mean is not None or len(self.experts.second.shape) == 3
        return self.mean is not None or self.matrix is not None

    @property
    def diagonals(self) -> Array:
        """Mean squares (cols,), or of several experts (experts, cols): of one that no sample reached those of all."""
        if self.experts is None:
            return self.values
        each = [self.experts.entry(number) for number in range(len(self.experts.counts))]
        return np.stack([entry.values if entry.count else self.values for entry in each])


@dataclass(frozen=True, slots=True)
class Experts:
    """What is told of the inputs of each expert in one tensor, read when it is asked for.

    second, mean: where its moments and means are; counts: its samples, 0 for one that none reached. digest: what tells
    it all from others.
    """

    source: SafetensorsFile
    second: TensorInfo
    mean: TensorInfo | None
    counts: tuple[float, ...]
    digest: str = ""

    def entry(self, number: int) -> Entry:
        """That of one expert; of one that no sample reached all is 0."""
        cols = self.second.shape[-1]
        if not self.counts[number]:
            return Entry(np.zeros(cols), np.zeros(cols), None, 0.0)
        place = [self.source.path, printable(self.second.name), f"expert {number}"]
        matrix = Matrix(self.source, self.second, expert=number) if len(self.second.shape) == 3 else None
        first = number * cols
        if matrix is not None:
            values = matrix.diagonal()
        else:
            values = _numbers(self.source, self.second, first, (cols,), place)
        mean = None if self.mean is None else _numbers(self.source, self.mean, first, (cols,), place)
        return Entry(values, mean, matrix, self.counts[number])

    def checked(self) -> Entry:
        """The entry of all of them, each of which was looked at. Raises DataError for moments that no inputs have."""
        from xxhash import xxh3_64

        whole, total = xxh3_64(repr(self.counts).encode()), np.zeros(self.second.shape[-1])
        for number, count in enumerate(self.counts):
            if count:
                found = self.entry(number)
                _check(found.values, found.mean, [self.source.path, printable(self.second.name), f"expert {number}"])
                if found.matrix is not None:
                    found.matrix.check(found.values)
                total += count * found.values
                for values in (found.values, found.mean):
                    whole.update(b"" if values is None else np.ascontiguousarray(values, "<f8").tobytes())
        samples = sum(self.counts)
        return Entry(total / samples, None, None, samples, replace(self, digest=whole.hexdigest()))


def is_statistics(path: str) -> bool:
    """Whether a path is a folder, or a safetensors file of statistics by its metadata or by the counts in it."""
    if places.is_folder(path):
        return True
    if not path.lower().endswith(".safetensors"):
        return False
    source = SafetensorsFile(places.opened(path))
    try:
        return KEY in source.metadata or any(info.name.endswith(f".{COUNT}") for info in source.infos())
    finally:
        source.close()


def entries(path: str) -> dict[str, Entry]:
    """The entries of a file of statistics, or of a folder of such files, by name. Raises DataError for what is not in
    the format, or contradicts itself."""
    paths = [path]
    if places.is_folder(path):
        names = sorted(n for n in places.names(path) if n.endswith(".safetensors") and not n.startswith("."))
        paths = [os.path.join(path, name) for name in names]
    if not paths:
        raise UsageError("the folder has no .safetensors file of statistics", place=[path])
    found: dict[str, Entry] = {}
    for each in paths:
        source = SafetensorsFile(places.opened(each, hold=False))
        version = source.metadata.get(KEY)
        if version != VERSION:
            said = "does not say that it holds statistics" if version is None else f"has format {printable(version)}"
            raise DataError(
                f"its metadata {said}: {KEY} is to be {VERSION}", place=[each], hint="quantcli help statistics"
            )
        for name, parts in _named(source):
            if name in found:
                raise DataError("two files have statistics of it", place=[path, printable(name)])
            found[name] = _entry(source, name, parts)
    if not found:
        raise UsageError("the file holds no statistics", place=[path])
    return found


def _named(source: SafetensorsFile) -> Iterator[tuple[str, dict[str, TensorInfo]]]:
    """The parts of every entry, by its name."""
    parts: dict[str, dict[str, TensorInfo]] = {}
    for info in source.infos():
        name, dot, part = info.name.rpartition(".")
        if not dot or not name or part not in (MEAN, SECOND, COUNT):
            problem = f"it is neither NAME.{MEAN}, NAME.{SECOND} nor NAME.{COUNT}"
            raise DataError(problem, place=[source.path, printable(info.name)], hint="quantcli help statistics")
        parts.setdefault(name, {})[part] = info
    yield from parts.items()


def _entry(source: SafetensorsFile, name: str, parts: dict[str, TensorInfo]) -> Entry:
    place = [source.path, printable(name)]
    if missing := [part for part in (SECOND, COUNT) if part not in parts]:
        raise DataError(f"{name}.{missing[0]} is missing", place=[source.path])
    second, mean = parts[SECOND], parts.get(MEAN)
    counts = _counts(source, parts[COUNT])
    if not DTYPES[second.dtype].quantizable:
        raise DataError(f"{second.dtype} is not a float type", place=[source.path, printable(second.name)])
    each = len(second.shape) == 3
    if len(second.shape) == 2 and second.shape != (1, 1):
        each = second.shape[0] == len(counts)
    own = second.shape[1:] if each else second.shape
    square = len(own) == 2 and own[0] == own[1]
    if not second.numel or not (len(own) == 1 or square):
        shapes = "(C,) or (C, C), of E experts with a count each (E, C) or (E, C, C)"
        raise DataError(f"second moments are {shapes}, not {list(second.shape)}", place=place)
    if len(counts) != (second.shape[0] if each else 1):
        wanted = f"{second.shape[0]} experts have as many counts" if each else "a count is one number"
        problem = f"{wanted}, not {list(parts[COUNT].shape)} beside second moments of {list(second.shape)}"
        raise DataError(problem, place=[source.path, printable(parts[COUNT].name)])
    if not all(count > 0 for count in counts) and not (each and any(counts)):
        problem = f"a count of {min(counts):g} is not a number above 0"
        raise DataError(problem, place=[source.path, printable(parts[COUNT].name)])
    if square and own[0] > MOST_COLUMNS:
        raise DataError(
            f"a matrix of {own[0]} columns is more than the limit of {MOST_COLUMNS}",
            place=place,
            hint="give a vector of mean squares and one of means",
        )
    if mean is not None and mean.shape != (second.shape[:2] if each else second.shape[:1]):
        problem = f"means of shape {list(mean.shape)} beside second moments of {list(second.shape)}"
        raise DataError(problem, place=place)
    if each:
        return Experts(source, second, mean, tuple(counts)).checked()
    means = None if mean is None else _numbers(source, mean, 0, second.shape[:1])
    matrix = Matrix(source, second) if square else None
    values = matrix.diagonal() if matrix is not None else _numbers(source, second, 0, second.shape)
    _check(values, means, [source.path, printable(second.name)])
    if matrix is not None:
        matrix.check(values)
    return Entry(values, means, matrix, counts[0])


def _check(values: Array, mean: Array | None, place: Sequence[str]) -> None:
    """Raise DataError for mean squares that no inputs have."""
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        at = int(wrong.argmax())
        raise DataError(f"the mean square of input {at} is {values[at]:g}, not a number of 0 or more", place=place)
    if mean is not None:
        low = values < mean * mean * (1 - SLACK) - TINY * values.max()
        if low.any():
            at = int(low.argmax())
            problem = f"the mean square of input {at} is {values[at]:g}, below the square of its mean {mean[at]:g}"
            raise DataError(problem, place=place, hint="second moments are without the mean subtracted")


def _counts(source: SafetensorsFile, info: TensorInfo) -> list[float]:
    """How many samples there were, of each expert where there are several. Raises DataError for what is no count."""
    place = [source.path, printable(info.name)]
    if len(info.shape) > 1:
        raise DataError(f"a count is one number, or one for each expert, not {list(info.shape)}", place=place)
    raw = np.empty(info.nbytes, np.uint8)
    source.read(info.name, 0, raw.data)
    whole = {"I64": "<i8", "U64": "<u8", "I32": "<i4", "U32": "<u4"}.get(info.dtype)
    if whole is None and not DTYPES[info.dtype].quantizable:
        raise DataError(f"{info.dtype} is no type of a count", place=place, hint="use int64 or float32")
    found = [float(value) for value in (raw.view(whole) if whole is not None else floats(raw, info.dtype))]
    if wrong := [value for value in found if not 0 <= value < np.inf]:
        raise DataError(f"a count of {wrong[0]:g} is not a number above 0", place=place)
    return found


def _numbers(
    source: SafetensorsFile, info: TensorInfo, first: int, shape: tuple[int, ...], place: Sequence[str] = ()
) -> Array:
    """Numbers of a tensor, from the one at place `first` on, in float64. place: where they are, for errors. Raises
    DataError for what is not finite, or no float."""
    place = place or [source.path, printable(info.name)]
    if not DTYPES[info.dtype].quantizable:
        raise DataError(f"{info.dtype} is not a float type", place=place)
    size = DTYPES[info.dtype].bits // 8
    raw = np.empty(int(np.prod(shape)) * size, np.uint8)
    source.read(info.name, first * size, raw.data)
    found = floats(raw, info.dtype).reshape(shape)
    if not np.isfinite(found).all():
        at = int((~np.isfinite(found)).argmax())
        raise DataError(f"{found.ravel()[at]} at {first + at} is not finite", place=place)
    return found
