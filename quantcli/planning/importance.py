"""How much the error of each input column of a weight counts: mean squared activations, say, from a file by name.

A .safetensors, .npy or .npz file, or llama.cpp's importance matrix (GGUF). An entry belongs to the tensor of its name,
or to the one whose module it names; llama.cpp's names are translated. It has one number per column of a row, or, for
a convolution, one per input channel.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quantcli.dtypes import DTYPES, to_float32, to_float64
from quantcli.errors import UsageError, printable
from quantcli.patterns import module_of, near_misses
from quantcli.stores import Source, open_source
from quantcli.tensors.decided import Columns
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import Grouping

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

MOST = 1 << 28
"""Bytes of importances that are read at most: those of a model of a trillion weights have some 50 MB."""


@dataclass(frozen=True, slots=True)
class Importance:
    """The entries of a file, and the XXH3-128 of them all."""

    path: str
    entries: Mapping[str, Array]
    digest: str

    def of(self, info: TensorInfo, plan: Grouping) -> Columns | None:
        """That of a tensor; None when there is no entry for it. Raises UsageError when the entry has another shape or
        the layout mixes columns."""
        found = self._entry(info.name)
        if found is None:
            return None
        name, expert = found
        values, place = self.entries[name], [self.path, printable(name)]
        if expert is not None:
            if values.ndim != 2 or expert >= len(values):
                raise UsageError(f"the entry has no expert {expert}: its shape is {list(values.shape)}", place=place)
            values = values[expert]
        elif values.ndim == 2 and len(info.shape) == 3 and values.shape == (info.shape[0], plan.cols):
            values = values.mean(axis=0)  # of all experts in one tensor: columns count the same in all its rows
        if plan.shared is not None or plan.two_pass:
            problem = "importance needs scales per row or group: with one scale per column or tensor it has no effect"
            raise UsageError(problem, place=place, hint="use groups, or channels of axis 0")
        per_channel = len(info.shape) > 2 and math.prod(info.shape[1:]) == plan.cols
        if values.size == plan.cols:
            values = values.ravel()
        elif per_channel and values.size == info.shape[1]:
            values = np.repeat(values.ravel(), plan.cols // info.shape[1])
        else:
            wanted = f"{plan.cols} columns" + (f" or {info.shape[1]} input channels" if per_channel else "")
            problem = f"{values.size} importances for {wanted} of {printable(info.name)} {list(info.shape)}"
            raise UsageError(problem, place=place)
        from xxhash import xxh3_64

        return Columns(values, xxh3_64(np.ascontiguousarray(values, "<f8").tobytes()).hexdigest())

    def _entry(self, name: str) -> tuple[str, int | None] | None:
        """The entry for a tensor, and which of the experts in it the tensor is."""
        from quantcli.layouts.gguf.names import imatrix_name  # here, for its package is all of GGUF: 15 ms

        known = [(name, None), (module_of(name), None), imatrix_name(name)]
        return next((k for k in known if k is not None and k[0] in self.entries), None)

    def unused(self, infos: Sequence[TensorInfo]) -> list[str]:
        """Entries that belong to no tensor. Raises UsageError when none belongs to any."""
        used = {found[0] for info in infos if (found := self._entry(info.name)) is not None}
        left = [name for name in self.entries if name not in used]
        if len(left) == len(self.entries):
            names = [info.name for info in infos]
            raise UsageError(
                f"{printable(repr(left[0]), 200)} names no tensor of the model, nor does any other entry",
                place=[self.path],
                hint=near_misses(left[0], names),
            )
        return left


def load(path: str, digest: str | None = None) -> Importance:
    """The importances in a file, which are to have this digest. Raises UsageError when they do not, and for what is
    not finite or below 0, QuantcliError for what cannot be read."""
    from xxhash import xxh3_128

    if path.lower().endswith((".yaml", ".yml", ".json")):
        problem = "importances are numbers by column, in .safetensors, .npy, .npz or GGUF"
        hint = "a recipe is given with --recipe" if not path.lower().endswith(".json") else None
        raise UsageError(problem, place=[path], hint=hint)
    with contextlib.closing(open_source(path)) as source:
        total = sum(info.nbytes for info in source.infos())
        if total > MOST:
            raise UsageError(f"the importances have {total} bytes, more than the limit of {MOST}", place=[path])
        if source.kind == "gguf":
            from quantcli.planning.imatrix import importances

            entries = dict(importances(source))
        else:
            entries = _tensors(source)
    if not entries:
        raise UsageError("the file holds no importances", place=[path])
    for name, values in entries.items():
        wrong = ~(np.isfinite(values) & (values >= 0))
        if wrong.any():
            at = int(wrong.argmax())
            problem = f"importance {values.ravel()[at]:g} at {at} is not a number of 0 or more"
            raise UsageError(problem, place=[path, printable(name)])
    whole = xxh3_128()
    for name, values in sorted(entries.items()):
        whole.update(f"{name} {values.shape}".encode() + np.ascontiguousarray(values, "<f8").tobytes())
    if digest is not None and digest != whole.hexdigest():
        raise UsageError("these are not the importances the recipe was made with", place=[path])
    return Importance(path, entries, str(whole.hexdigest()))


def _tensors(source: Source) -> dict[str, Array]:
    """The tensors of a source as entries."""
    entries: dict[str, Array] = {}
    for info in source.infos():
        if not DTYPES[info.dtype].quantizable:
            raise UsageError(f"{info.dtype} is not a float type", place=[source.path, printable(info.name)])
        buffer = np.empty(info.nbytes, np.uint8)
        source.read(info.name, 0, buffer.data)
        values = buffer.view("<f8") if info.dtype == "F64" else to_float32(buffer, info.dtype)
        entries[info.name] = to_float64(values).reshape(info.shape)
    return entries
