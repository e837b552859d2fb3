"""Files of torch.save made byte by byte, true or not, without torch."""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from making import GOLDEN_FILES, zip_bytes

GOLDEN = GOLDEN_FILES / "torch"
"""Written by torch.save; see tests/peers/write_torch.py."""

MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Name:
    """A name a pickle refers to."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """A call of a name, or of what is not one."""

    function: Any
    args: Any


@dataclass(frozen=True)
class Made:
    """An object of a class, with attributes."""

    kind: Name
    state: Any


@dataclass(frozen=True)
class Outside:
    """A value that is kept elsewhere under an id."""

    id: Any


@dataclass
class Raw:
    """Instructions as they are."""

    code: bytes = field(default=b"")


ORDERED = Call(Name("collections", "OrderedDict"), ())
REBUILD = Name("torch._utils", "_rebuild_tensor_v2")


def _body(value: Any) -> bytes:
    match value:
        case Raw():
            return value.code
        case Name():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            return _body(value.function) + _body(value.args) + b"R"
        case Made():
            return _body(value.kind) + b")\x81" + _body(value.state) + b"b"
        case Outside():
            return _body(value.id) + b"Q"
        case dict():
            return b"}(" + b"".join(_body(k) + _body(v) for k, v in value.items()) + b"u"
        case list():
            return b"](" + b"".join(map(_body, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(_body, value)) + b"t"
        case str():  # not kept in the memo, in which pickles of Python's own that lie within count from 0
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    return pickle.dumps(value, 2)[2:-1]


def pickled(value: Any) -> bytes:
    """A pickle of protocol 2 of a value of the kinds above."""
    return b"\x80\x02" + _body(value) + b"."


def storage(key: str = "0", numel: int = 6, kind: str = "Float", *more: Any) -> Outside:
    """A storage as tensors refer to it."""
    return Outside(("storage", Name("torch", f"{kind}Storage"), key, "cpu", numel, *more))


def tensor(
    shape: tuple[int, ...] = (2, 3), strides: tuple[int, ...] = (3, 1), offset: int = 0, held: Any = None, *more: Any
) -> Call:
    """A tensor of a storage, of six floats where none is given."""
    return Call(REBUILD, (storage() if held is None else held, offset, shape, strides, False, ORDERED, *more))


SIX = np.arange(6, dtype="<f4").tobytes()


def archive(value: Any, members: dict[str, bytes] | None = None) -> bytes:
    """A zip archive of torch.save around a value, or around the pickle that is given; with one storage of six floats
    unless others are given."""
    code = value if isinstance(value, bytes) else pickled(value)
    held = {"data/0": SIX} if members is None else members
    return zip_bytes([(f"a/{name}", data) for name, data in {"data.pkl": code, "version": b"3\n", **held}.items()])


def legacy(value: Any, storages: dict[str, bytes] | None = None, *, little: bool = True, size: int = 4) -> bytes:
    """A file of torch.save before version 1.6; size: bytes of an element."""
    held = {"0": SIX} if storages is None else storages
    code = value if isinstance(value, bytes) else pickled(value)
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    start = b"".join(map(pickled, (MAGIC, 1001, system))) + code + pickled(list(held))
    return start + b"".join(struct.pack("<q", len(data) // size) + data for data in held.values())
