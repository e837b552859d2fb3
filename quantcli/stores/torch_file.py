"""PyTorch checkpoints (.pt, .pth, .bin, .ckpt): what torch.save writes, as a strict source of tiles.

    since torch 1.6: a zip archive, stored without compression
    NAME/data.pkl       the pickle; tensors refer to storages by key
    NAME/data/KEY       the bytes of a storage
    NAME/byteorder      little or big; without it little

    before: one file
    five pickles        magic number, version, {little_endian, ...}, the pickle, [keys of the storages]
    for every key       i64 elements | the bytes of the storage

A pickle is a program. It is not run: `pickles` follows only the instructions that make plain values, and only the
names of a state dict (`torch_names`) stand for anything.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, printable
from quantcli.stores import state_dict, zipped
from quantcli.stores.files import InputFile
from quantcli.stores.pickles import load
from quantcli.stores.places import name as name_of
from quantcli.stores.source import Source
from quantcli.stores.strided import Strided, merged
from quantcli.stores.torch_names import SAVE, Storage, Tensor, named, storage_of
from quantcli.tensors.info import TensorInfo

PICKLE_LIMIT = 1 << 25
"""Bytes of a pickle; torch.save writes about 130 for a tensor."""
_FIRST = 1 << 20
"""Bytes of an old file that are looked at first for its pickles, which are most often far smaller."""
_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_START = re.compile(rb"\x80[\x02-\x05](?:\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_BOMB = 64 << 20

Places = dict[str, tuple[int, int]]
"""Where the bytes of each storage begin, and how many there are."""


def is_torch(file: InputFile) -> bool:
    """Whether a file begins like a zip archive or a pickle; a safetensors file begins with its length and a brace."""
    if file.size < 9:
        return False
    start = file.read(0, 9)
    return start[:4] == b"PK\x03\x04" or (_PICKLE.match(start) is not None and start[8:] != b"{")


class _Storages:
    """The storages that a pickle refers to, each checked once."""

    def __init__(self, check: Callable[[Storage], None]) -> None:
        self.seen: dict[str, Storage] = {}
        self._check = check

    def __call__(self, id: Any) -> Storage:
        storage = storage_of(id)
        known = self.seen.get(storage.key)
        if known != storage:
            if known is not None and _nbytes(known) != _nbytes(storage):
                raise DataError("it is said to have two sizes", place=[_shown(storage)])
            self._check(storage)
            self.seen[storage.key] = storage
        return storage


def _nbytes(storage: Storage) -> int:
    return storage.numel * (DTYPES[storage.dtype].bits // 8)


def _shown(storage: Storage) -> str:
    return f"storage {printable(storage.key, 60)}"


# ---- zip archives -----------------------------------------------------------------------------------------------


def _from_zip(file: InputFile) -> tuple[Any, Places, bool]:
    """The value of the pickle, the places of storages, and whether they are big-endian."""
    try:
        members = zipped.open_zip(file).infolist()
    except zipped.PROBLEMS as error:
        raise DataError(f"a zip archive that is damaged or cut short: {printable(str(error), 200)}") from None
    roots = [m.filename.removesuffix("data.pkl") for m in members if m.filename.endswith("/data.pkl")]
    if len(roots) != 1:
        raise DataError("this is a zip archive, but none that torch.save wrote: it has no data.pkl of its own")
    (root,) = roots
    if any(m.filename == f"{root}constants.pkl" for m in members):
        raise DataError("this is a TorchScript program", hint="save the model's state_dict() with torch.save")
    found = zipped.stored(file, [m for m in members if not m.filename.endswith("/")])
    places = {name.removeprefix(f"{root}data/"): p for name, p in found.items() if name.startswith(f"{root}data/")}

    def check(storage: Storage) -> None:
        if storage.key not in places:
            raise DataError("there is no such member", place=[_shown(storage)])
        size = places[storage.key][1]
        if _nbytes(storage) != size:
            raise DataError(f"its pickle says {_nbytes(storage)} bytes, and it has {size}", place=[_shown(storage)])

    begin, size = found[f"{root}data.pkl"]
    if size > PICKLE_LIMIT:
        raise DataError(f"it has {size} bytes, more than {PICKLE_LIMIT}", place=["data.pkl"])
    order = _byteorder(file, found, f"{root}byteorder")
    return load(io.BytesIO(file.read(begin, size)), named, _Storages(check), hint=SAVE), places, order == b"big"


def _byteorder(file: InputFile, members: Places, name: str) -> bytes:
    begin, size = members.get(name, (0, 0))
    order = file.read(begin, min(size, 20)) if name in members else b"little"
    if order not in (b"little", b"big"):
        raise DataError(f"unknown byte order {printable(repr(order), 40)}", place=["byteorder"])
    return order


# ---- files of torch before 1.6 ----------------------------------------------------------------------------------


def _from_legacy(file: InputFile) -> tuple[Any, Places, bool]:
    """The value of the pickle and the places of storages."""
    most = min(file.size, PICKLE_LIMIT)
    try:
        value, storages, keys, end = _pickles(file.read(0, min(most, _FIRST)))
    except DataError:
        if most <= _FIRST:
            raise
        value, storages, keys, end = _pickles(file.read(0, most))
    return value, _laid_out(file, storages, keys, end), False


def _pickles(start: bytes) -> tuple[Any, dict[str, Storage], list[str], int]:
    """The value, the storages, their keys in order, and where the pickles end."""
    stream, storages = io.BytesIO(start), _Storages(lambda storage: None)
    magic, version, system = (load(stream, _no_name, _nothing) for _ in range(3))
    if magic != _MAGIC or version != _VERSION or not isinstance(system, dict):
        raise DataError(f"unknown version {printable(repr(version), 40)} of torch.save")
    if system.get("little_endian") is not True:
        raise DataError("it was written by a big-endian machine, which is not supported")
    value = load(stream, named, storages, hint=SAVE)
    keys = load(stream, _no_name, _nothing)
    if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys) or len(set(keys)) != len(keys):
        raise DataError("the list of its storages is not one of different keys")
    return value, storages.seen, keys, stream.tell()


def _no_name(name: str) -> None:
    return None


def _nothing(id: Any) -> Any:
    raise DataError("it refers to something outside that is not a storage")


def _laid_out(file: InputFile, storages: dict[str, Storage], keys: list[str], at: int) -> Places:
    """The places of storages, one after another to the end of the file."""
    if set(keys) != set(storages):
        raise DataError("its list of storages is not that of its tensors")
    places: Places = {}
    for key in keys:
        storage = storages[key]
        if at + 8 > file.size:
            raise DataError(f"the file is cut short: {file.size} bytes", place=[_shown(storage)])
        numel = int.from_bytes(file.read(at, 8), "little", signed=True)
        size = _nbytes(storage)
        if numel != storage.numel:
            problem = f"its pickle says {storage.numel} elements, and it has {numel}"
            raise DataError(problem, place=[_shown(storage)])
        places[key] = at + 8, size
        at += 8 + size
    if at != file.size:
        problem = "cut short" if at > file.size else "followed by bytes that belong to no tensor"
        raise DataError(f"the file is {problem}: {file.size} bytes, {at} by its pickle")
    return places


# ---- the source -------------------------------------------------------------------------------------------------


class TorchFile(Source):
    """A file of torch.save as a source. warnings: where the tensors were found in it, and what is left out."""

    kind = "pytorch"

    def __init__(self, file: InputFile) -> None:
        self.path, self.file = file.path, file
        self.metadata: dict[str, str] = {}
        try:
            found, places, swapped = self._parsed()
            self.warnings = found.notes
            self._tensors = found.tensors
            self._data = {name: self._strided(t, places[t.storage.key][0], swapped) for name, t in self._items()}
        except DataError as error:
            file.close()
            raise error.within(file.path) from None
        except BaseException:
            file.close()
            raise

    def _parsed(self) -> tuple[state_dict.StateDict, Places, bool]:
        start = self.file.read(0, min(self.file.size, 64))
        if start[:2] == b"PK":
            value, places, swapped = _from_zip(self.file)
        elif _START.match(start):
            value, places, swapped = _from_legacy(self.file)
        else:
            kind = (
                "a Python pickle that torch.save did not write, which is never loaded" if _PICKLE.match(start) else ""
            )
            raise DataError(f"this is {kind or 'not a file of torch.save'}")
        stem = os.path.splitext(name_of(self.path))[0]
        name = stem.encode("utf-8", "surrogateescape").decode("utf-8", "replace") or "tensor"
        found = state_dict.find(value, name)
        total = sum(t.nbytes for t in found.tensors.values())
        if total > _BOMB and total > 100 * self.file.size:
            raise DataError(f"{self.file.size} bytes that claim to become {total}: its tensors repeat the same bytes")
        return found, places, swapped

    def _items(self) -> list[tuple[str, Tensor]]:
        return list(self._tensors.items())

    def _strided(self, tensor: Tensor, begin: int, swapped: bool) -> Strided:
        item = DTYPES[tensor.dtype].bits // 8
        dims = merged(tensor.shape, tensor.strides) if math.prod(tensor.shape) else ()
        swap = (4 if tensor.dtype == "C64" else item) if swapped and item > 1 else 0
        return Strided(self.file, begin + tensor.offset * item, item, dims, swap=swap)

    def infos(self) -> Sequence[TensorInfo]:
        return [TensorInfo(name, t.dtype, t.shape) for name, t in self._tensors.items()]

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        self._data[name].read(start, buffer)

    def release(self, name: str) -> None:
        self._data[name].release()

    def files(self) -> Sequence[InputFile]:
        return [self.file]

    def close(self) -> None:
        self.file.close()
