"""Statistics of the inputs of convolutions from the batch norms before them, without data.

What a batch norm puts out has, over the samples it was trained on, the mean `bias` and the standard deviation `weight`
in each channel. Taken as normal and clipped at 0 by a ReLU, mean and mean square of what the next convolution sees
follow; a residual block adds its shortcut before that, as if the two were independent. On ResNet-20 in 3 bits this
halves what quantizing costs.

Nothing but names and shapes tells which convolution comes next. Known are

    PconvN, PbnN, PconvM        M = N + 1, in one module P: convM sees ReLU(bnN)
    Pi, P(i+1), P(i+3)          convolution, norm and convolution of a Sequential, with a ReLU at i + 2
    layerL.B.convN              blocks of a residual network: the first convolution of each, and that of its
                                `downsample`, see the sum before; where channels were added without weights, they are
                                zeros on both sides

Networks whose norms stand before convolutions are not known, nor are other activations. Layer norms and RMS norms have
no statistics of their own, and using their weights in this way makes things worse.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quantcli.dtypes import DTYPES, floats, to_float64
from quantcli.errors import DataError, UsageError, printable
from quantcli.planning.moments import Entry
from quantcli.planning.recipe_keys import BATCH_NORM

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.stores import Source
    from quantcli.tensors.info import TensorInfo

    Array = NDArray[np.float64]

_CONV = re.compile(r"(?P<module>(?:.*\.)?)conv(?P<number>\d+)")
_BLOCK = re.compile(r"(?P<root>(?:.*\.)?)layer(?P<layer>\d+)\.(?P<block>\d+)\.")
_STEP = re.compile(r"(?P<module>.*\.)(?P<number>\d+)")
_SHORTCUTS = ("downsample", "shortcut")

_POOLED = 7
"""The kernel of first convolutions that a pooling follows, by which what comes out is not known."""


@dataclass(frozen=True, slots=True)
class Normal:
    """Values of channels: mean and variance of each."""

    mean: Array
    variance: Array

    def plus(self, other: Normal) -> Normal | None:
        """The sum with independent values, of fewer channels with zeros around them; None for more channels."""
        left = len(self.mean) - len(other.mean)
        if left < 0:
            return None
        around = (left // 2, left - left // 2)
        return Normal(self.mean + np.pad(other.mean, around), self.variance + np.pad(other.variance, around))

    def clipped(self) -> Normal:
        """What a ReLU leaves of normal values.

        >>> half = Normal(np.zeros(1), np.ones(1)).clipped()
        >>> bool(np.isclose(half.mean[0], 1 / math.sqrt(2 * math.pi))), bool(np.isclose(half.square[0], 0.5))
        (True, True)
        """
        mean, square = np.empty_like(self.mean), np.empty_like(self.mean)
        for i, (m, v) in enumerate(zip(self.mean.tolist(), self.variance.tolist())):
            s = math.sqrt(v)
            if s == 0:
                mean[i], square[i] = max(m, 0.0), max(m, 0.0) ** 2
                continue
            above, density = math.erfc(-m / s / math.sqrt(2)) / 2, math.exp(-m * m / v / 2) / math.sqrt(2 * math.pi)
            mean[i], square[i] = m * above + s * density, (m * m + v) * above + m * s * density
        mean = np.maximum(mean, 0)
        return Normal(mean, np.maximum(square - mean * mean, 0))

    @property
    def square(self) -> Array:
        """The mean square."""
        found: Array = self.mean * self.mean + self.variance
        return found


def entries(source: Source) -> dict[str, Entry]:
    """The statistics of convolutions of a source by the names of their weights. Raises UsageError where there is no
    batch norm before any, or norms stand before convolutions."""
    net = _Net(source)
    if not net.norms:
        raise UsageError(
            "the model has no batch norms", place=[source.path, BATCH_NORM], hint="name a file of statistics"
        )
    if net.is_before():
        raise UsageError("its norms stand before convolutions, which is not known", place=[source.path, BATCH_NORM])
    found = dict([*net.sequences(), *net.modules(), *net.blocks()])
    if not found:
        problem = "no convolution follows a batch norm by its name"
        raise UsageError(problem, place=[source.path, BATCH_NORM], hint="names that are known: conv1, bn1, conv2")
    return {f"{name}.weight": _entry(values, net.convolutions[name]) for name, values in found.items()}


def assumed(count: int) -> str:
    """What was assumed of so many convolutions."""
    which = "convolution by the batch norm before it" if count == 1 else "convolutions by the batch norms before them"
    return f"{BATCH_NORM}: inputs of {count} {which}, as if through a ReLU"


def _entry(values: Normal, info: TensorInfo) -> Entry:
    """The statistics of a convolution; of each of its channels alone, the mean over all. Rounded to float32, so that
    they do not depend on the mathematical library of a machine."""
    mean, square = values.mean, values.square
    if info.shape[1] == 1 < len(mean):
        mean, square = np.sqrt(np.mean(mean * mean, keepdims=True)), np.mean(square, keepdims=True)
    mean = to_float64(mean.astype(np.float32))
    return Entry(np.maximum(to_float64(square.astype(np.float32)), mean * mean), mean)


class _Net:
    """Convolutions and batch norms of a source by the names of their modules."""

    def __init__(self, source: Source) -> None:
        infos = {info.name: info for info in source.infos()}
        stems = [name.removesuffix(".weight") for name in infos if name.endswith(".weight")]
        self.convolutions = {stem: infos[f"{stem}.weight"] for stem in stems if len(infos[f"{stem}.weight"].shape) > 2}
        self.norms = {stem: found for stem in stems if (found := _norm(source, infos, stem)) is not None}

    def _numbered(self) -> Iterator[tuple[str, int, str, Normal | None, Normal | None]]:
        """Convolutions with a number in a module: its name, the number, the convolution, and the norms of the same and
        of the number before."""
        for stem in self.convolutions:
            if match := _CONV.fullmatch(stem):
                module, number = match["module"], int(match["number"])
                yield module, number, stem, self._of(module, number), self._of(module, number - 1)

    def _of(self, module: str, number: int) -> Normal | None:
        known = (self.norms.get(f"{module}{word}{number}") for word in ("bn", "norm"))
        return next((norm for norm in known if norm is not None), None)

    def is_before(self) -> bool:
        """Whether a norm has the channels that the convolution of its number takes, and not those that it gives."""
        own = [(self.convolutions[stem].shape, norm) for _, _, stem, norm, _ in self._numbered() if norm is not None]
        return any(len(norm.mean) == shape[1] != shape[0] for shape, norm in own)

    def _takes(self, stem: str, channels: int) -> bool:
        """Whether a convolution takes so many channels, all or each alone."""
        shape = self.convolutions[stem].shape
        return shape[1] == channels or (shape[1] == 1 and shape[0] % channels == 0)

    def modules(self) -> Iterator[tuple[str, Normal]]:
        """Convolutions behind a norm of their own module."""
        for _, _, stem, _, before in self._numbered():
            if before is not None and self._takes(stem, len(before.mean)):
                yield stem, before.clipped()

    def sequences(self) -> Iterator[tuple[str, Normal]]:
        """Convolutions behind convolution, norm and activation of a Sequential."""
        for stem in self.convolutions:
            if match := _STEP.fullmatch(stem):
                module, number = match["module"], int(match["number"])
                norm = self.norms.get(f"{module}{number - 2}")
                behind = f"{module}{number - 3}" in self.convolutions and f"{module}{number - 1}" not in self.norms
                if norm is not None and behind and self._takes(stem, len(norm.mean)):
                    yield stem, norm.clipped()

    def blocks(self) -> Iterator[tuple[str, Normal]]:
        """The first convolutions of the blocks of a residual network, and those of their shortcuts."""
        found = {(m["root"], int(m["layer"]), int(m["block"])) for s in self.convolutions if (m := _BLOCK.match(s))}
        state, last = None, None
        for root, layer, block in sorted(found):
            if root != last:
                last, state = root, self._first(root)
            module = f"{root}layer{layer}.{block}."
            shortcuts = [f"{module}{word}" for word in _SHORTCUTS if f"{module}{word}.0" in self.convolutions]
            for stem in (f"{module}conv1", *(f"{shortcut}.0" for shortcut in shortcuts)):
                if state is not None and stem in self.convolutions and self._takes(stem, len(state.mean)):
                    yield stem, state
            norms = [norm for number in range(1, 9) if (norm := self._of(module, number)) is not None]
            side = self.norms.get(f"{shortcuts[0]}.1") if shortcuts else state
            total = norms[-1].plus(side) if norms and side is not None else None
            state = total.clipped() if total is not None else None

    def _first(self, root: str) -> Normal | None:
        """What comes to the first block; None where it is pooled before, or not known."""
        norm, conv = self._of(root, 1), self.convolutions.get(f"{root}conv1")
        return norm.clipped() if norm is not None and conv is not None and conv.shape[-1] < _POOLED else None


def _norm(source: Source, infos: Mapping[str, TensorInfo], stem: str) -> Normal | None:
    """The outputs of a batch norm, where a module is one."""
    parts = [infos.get(f"{stem}.{part}") for part in ("weight", "bias", "running_mean", "running_var")]
    weight, bias = parts[:2]
    if weight is None or bias is None or not all(p is not None and p.shape == weight.shape for p in parts):
        return None
    if len(weight.shape) != 1 or not weight.numel or not all(DTYPES[i.dtype].quantizable for i in (weight, bias)):
        return None
    scale, mean = (_values(source, info) for info in (weight, bias))
    return Normal(mean, scale * scale)


def _values(source: Source, info: TensorInfo) -> Array:
    """The numbers of a vector. Raises DataError where one is not finite."""
    raw = np.empty(info.nbytes, np.uint8)
    source.read(info.name, 0, raw.data)
    found = floats(raw, info.dtype)
    if not np.isfinite(found).all():
        raise DataError("a number is not finite", place=[source.path, printable(info.name)])
    return found
