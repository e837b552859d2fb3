"""A GGUF in several files of a limited size, NAME-00001-of-0000N.gguf, as llama.cpp loads it.

All files say which one they are (split.no, from 0), how many there are (split.count) and how many tensors they hold
together (split.tensors.count). The first has all keys; the others leave the tokenizer out, which is most of them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quantcli.layouts.writer import ContainerFile
from quantcli.stores.gguf import ALIGNMENT
from quantcli.stores.gguf_writer import LLAMA, GgufTensor, Room, lay_out

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHORT, _WHOLE = 2, 5
"""The numbers of u16 and i32 in a key."""


def whole(
    base: str,
    keys: Mapping[str, Any],
    tensors: Sequence[GgufTensor],
    made: Mapping[str, NDArray[Any]],
    room: Room = LLAMA,
) -> ContainerFile:
    """A GGUF in one file. made: the values of tensors that are computed; room: of the program that is to load it."""
    found = lay_out(keys, tensors, room)
    values = [(found.offsets[t.name], made[t.name].tobytes()) for t in tensors if t.name in made]
    return ContainerFile(name=base, size=found.size, offsets=found.offsets, pieces=[(0, found.header), *values])


def split(
    base: str,
    keys: Mapping[str, Any],
    tensors: Sequence[GgufTensor],
    made: Mapping[str, NDArray[Any]],
    limit: int | None,
    room: Room = LLAMA,
) -> list[ContainerFile]:
    """The files of a GGUF, each of at most `limit` bytes where one tensor alone has not more; one file where it is
    within the limit. room: of the program that is to load them."""
    if limit is None or lay_out(keys, tensors, room).size <= limit:
        return [whole(base, keys, tensors, made, room)]
    later = {name: value for name, value in keys.items() if not name.startswith("tokenizer.")}
    parts = _parts(keys, later, tensors, limit)
    stem = base.removesuffix(".gguf")
    files = []
    for number, part in enumerate(parts):
        own = {
            "split.no": struct.pack("<IH", _SHORT, number),
            "split.count": struct.pack("<IH", _SHORT, len(parts)),
            "split.tensors.count": struct.pack("<Ii", _WHOLE, len(tensors)),
        }
        name = f"{stem}-{number + 1:05d}-of-{len(parts):05d}.gguf"
        files.append(whole(name, {**(later if number else keys), **own}, part, made, room))
    return files


def _parts(
    keys: Mapping[str, Any], later: Mapping[str, Any], tensors: Sequence[GgufTensor], limit: int
) -> list[list[GgufTensor]]:
    """The tensors of each file, in order."""
    spare = 4 * ALIGNMENT + 128  # for the keys about files, and for what alignment adds
    first, others = (len(lay_out(own, []).header) + spare for own in (keys, later))
    parts, held = [list[GgufTensor]()], first
    for tensor in tensors:
        size = -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT + len(tensor.name.encode()) + 8 * (len(tensor.shape) + 3)
        if parts[-1] and held + size > limit:
            parts.append([])
            held = others
        parts[-1].append(tensor)
        held += size
    return parts
