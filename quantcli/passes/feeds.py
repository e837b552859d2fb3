"""The arrays of a file as inputs of an ONNX model, sample by sample or in batches.

For an input that the model declares as [d, ...], an array is

    [...]         where its first axis is samples: of any number where d is open, a multiple of d where d is a number
    [n, d, ...]   n samples, each of the input's own shape
    [d, ...]      of a fixed d, or one without axes: the same for all samples
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from quantcli.errors import UsageError, listed, printable
from quantcli.patterns import near_misses

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.stores import Source
    from quantcli.tensors.info import TensorInfo

_DTYPES = {
    "tensor(float)": ("F32", "<f4"), "tensor(double)": ("F64", "<f8"), "tensor(float16)": ("F16", "<f2"),
    "tensor(int64)": ("I64", "<i8"), "tensor(int32)": ("I32", "<i4"), "tensor(int16)": ("I16", "<i2"),
    "tensor(int8)": ("I8", "i1"), "tensor(uint8)": ("U8", "u1"), "tensor(uint16)": ("U16", "<u2"),
    "tensor(uint32)": ("U32", "<u4"), "tensor(uint64)": ("U64", "<u8"), "tensor(bool)": ("BOOL", "?"),
}  # fmt: skip
"""onnxruntime's types: the dtype of a tensor, and numpy's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """An input of a model: name, onnxruntime's name of its type, and its shape, None for an open size."""

    name: str
    type: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Array:
    """An array that feeds an input. how: whether samples are its rows, runs of `step` rows, or it is the same for all;
    samples: how many it has."""

    info: TensorInfo
    kind: str
    how: Literal["rows", "runs", "same"]
    step: int
    samples: int


@dataclass(frozen=True, slots=True)
class Feeds:
    """What a model is fed with. samples: in all; batches: whether several may go in one run."""

    source: Source
    arrays: Mapping[str, _Array]
    samples: int
    batches: bool

    def of(self, first: int, last: int) -> dict[str, NDArray[Any]]:
        """The inputs of samples [first, last); of one sample where there are no batches."""
        return {name: self._read(array, first, last) for name, array in self.arrays.items()}

    def _read(self, array: _Array, first: int, last: int) -> NDArray[Any]:
        info = array.info
        if array.how == "same":
            return self._bytes(array, 0, info.nbytes).reshape(info.shape)
        size = info.nbytes // array.samples
        count = last - first
        if array.samples == 1:
            first, last = 0, 1
        found = self._bytes(array, first * size, last * size)
        found = found.reshape(info.shape[1:] if array.how == "runs" and not array.step else (-1, *info.shape[1:]))
        return np.repeat(found, count, axis=0) if array.how == "rows" and len(found) < count else found

    def _bytes(self, array: _Array, start: int, end: int) -> NDArray[Any]:
        raw = np.empty(end - start, np.uint8)
        self.source.read(array.info.name, start, raw.data)
        return raw.view(array.kind)


def feeds(source: Source, inputs: Sequence[Declared]) -> Feeds:
    """The arrays of a source for the inputs of a model. Raises UsageError where names, types or shapes do not fit."""
    infos = {info.name: info for info in source.infos()}
    names = [one.name for one in inputs]
    for one in inputs:
        if one.name not in infos:
            problem = f"it has no array {printable(repr(one.name))}, {_described(one)} of the model"
            raise UsageError(problem, place=[source.path], hint=f"it has {listed(sorted(infos), 5)}")
    if left := [name for name in infos if name not in names]:
        problem = "it is no input of the model"
        raise UsageError(problem, place=[source.path, printable(left[0])], hint=near_misses(left[0], names))
    arrays = {}
    for one in inputs:
        try:
            arrays[one.name] = _array(one, infos[one.name])
        except UsageError as error:
            raise error.within(source.path, printable(one.name)) from None
    samples = max((array.samples for array in arrays.values()), default=1)
    for name, array in arrays.items():
        if array.samples not in (1, samples):
            problem = f"{array.samples} samples, where another input has {samples}"
            raise UsageError(problem, place=[source.path, printable(name)])
    if not samples:
        raise UsageError("no samples", place=[source.path])
    together = all(array.how == "rows" or not array.info.shape for array in arrays.values())
    return Feeds(source, arrays, samples, together)


def _array(declared: Declared, info: TensorInfo) -> _Array:
    """How an array feeds an input."""
    if declared.type not in _DTYPES:
        raise UsageError(f"inputs of {printable(declared.type, 60)} are not supported")
    dtype, kind = _DTYPES[declared.type]
    if info.dtype != dtype:
        raise UsageError(f"it is {info.dtype}, the model takes {dtype}", hint="convert it when you save it")
    shape, own = info.shape, declared.shape
    if len(shape) == len(own) and _fits(shape[1:], own[1:]):
        if not own or (own[0] is not None and shape[0] == own[0] != 1):
            return _Array(info=info, kind=kind, how="same", step=0, samples=1)
        if own[0] is None:
            return _Array(info=info, kind=kind, how="rows", step=1, samples=shape[0])
        if shape[0] % own[0] == 0:
            return _Array(info=info, kind=kind, how="runs", step=own[0], samples=shape[0] // own[0])
    if len(shape) == len(own) + 1 and _fits(shape[1:], own):
        return _Array(info=info, kind=kind, how="runs", step=0, samples=shape[0])
    problem = f"its shape {list(shape)} does not fit the model's {_sizes(own)}"
    raise UsageError(problem, hint="samples are along the first axis, or one in front of it")


def _described(declared: Declared) -> str:
    """An input in words.

    >>> _described(Declared(name="x", type="tensor(int64)", shape=(None, 6)))
    'an I64 input [any, 6]'
    """
    dtype = _DTYPES.get(declared.type, (declared.type,))[0]
    return f"{'a' if dtype[0] in 'BU' else 'an'} {printable(dtype, 60)} input {_sizes(declared.shape)}"


def _sizes(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"


def _fits(shape: Sequence[int], own: Sequence[int | None]) -> bool:
    return len(shape) == len(own) and all(b is None or a == b for a, b in zip(shape, own))
