"""Inputs for fuzzing: a file changed in one to four places, so that it stays close to what a reader expects.

Changes know the envelope of a file: the header of safetensors keeps its length, members of a zip archive their
checksums, and JSON stays JSON, also the JSON inside a string of JSON. Without that nearly all inputs end at the first
check of a reader.
"""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 16, 31, 32, 33, 64, 128, 255, 256, 65536, 2**31, 2**32 - 1, 2**53 + 1, 2**63,
    2**64, 10**400, 0.5, -0.0, -1.5, 1e-320, 1e308, 1e22, "", " ", "nan", "1", "-1", "a", "..", "/", "\x00", "\x1b[2J",
    "::error::x", "\u202e", "\U0001f600", "x" * 300, "*", "re:(", "F32", "BF16", "I32", "U8", [], {}, [[]], [1, 1],
    [0, 0], [0], {"a": 1}, [None], "0" * 32,
]  # fmt: skip
"""JSON values that readers stumble over."""

_WORDS = [0, 1, 2, 3, 7, 8, 12, 16, 32, 127, 128, 255, 256, 1000, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1]
_TEXT = [
    b"null", b"true", b"-1", b"0", b"1e999", b"1e-5", b"999999999999999999999", b"0x10", b".inf", b".nan", b"[]", b"{}",
    b'""', b"[[[[", b"}", b"]", b",", b": ", b"\n", b"\r\n", b"\t", b"  ", b"- ", b"&a ", b"*a", b"!!str ", b"<<: ",
    b"\x00", b"\xff", b"\xc3\xa9", b"\xef\xbb\xbf", b"#", b"---\n", b"|\n", b"'", b'"', b"re:(a+)+$", b"re:[",
    b"**", b"?",
]  # fmt: skip


def damaged(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """Bytes with something changed, put in, left out or taken from another input."""
    if not data:
        return chance.choice(_TEXT)
    at, most = chance.randrange(len(data)), len(data)
    if chance.random() < 0.5:  # what readers look at first
        most = min(most, 512)
        at = chance.randrange(most)
    kind = chance.randrange(8)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    if kind == 2:
        size = chance.choice((1, 2, 4, 8))
        number = (chance.choice(_WORDS) * chance.choice((1, 1, -1)) + chance.randrange(-1, 2)) % (1 << 8 * size)
        return data[:at] + number.to_bytes(size, chance.choice(("little", "little", "big"))) + data[at + size :]
    if kind == 3:
        value = chance.choice((float("nan"), float("inf"), -1e30, 1e-40, 0.0, 65504.0))
        raw = struct.pack("<f", value)
        at -= at % 4
        return data[:at] + raw + data[at + 4 :]
    if kind == 4:
        return data[:at]
    if kind == 5:
        return data[:at] + data[at + chance.choice((1, 2, 4, 8, 32, 100)) :]
    if kind == 6:
        return data[:at] + chance.choice(_TEXT) + data[at + chance.choice((0, 0, 1, 4)) :]
    other = chance.choice(others)
    begin = chance.randrange(len(other) + 1)
    return data[:at] + other[begin : begin + chance.choice((4, 16, 64, 1000))] + data[at + chance.choice((0, 16, 64)) :]


def changed(value: Any, chance: random.Random, whole: Any) -> Any:
    """A JSON value with one thing in it changed. whole: where other keys and values are taken from."""
    go = chance.random() < 0.85
    if isinstance(value, dict) and value and go:
        key, kind = chance.choice(list(value)), chance.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.2:
            return {
                (chance.choice((_part(whole, chance, str), "x", "")) if k == key else k): v for k, v in value.items()
            }
        if kind < 0.25:
            return {**value, str(_part(whole, chance, str)): copy.deepcopy(chance.choice(ODD))}
        return {**value, key: changed(value[key], chance, whole)}
    if isinstance(value, list) and value and go:
        at, kind = chance.randrange(len(value)), chance.random()
        if kind < 0.1:
            return value[:at] + value[at + 1 :]
        if kind < 0.2:
            return [*value[:at], value[at], *value[at:]]
        return [*value[:at], changed(value[at], chance, whole), *value[at + 1 :]]
    if isinstance(value, str) and value[:1] in ("{", "[") and go:
        try:
            inner = json.loads(value)
        except ValueError:
            return value[: chance.randrange(len(value))]
        return json.dumps(changed(inner, chance, inner), sort_keys=True, separators=(",", ":"))
    if type(value) in (int, float) and abs(value) < 1e30 and chance.random() < 0.6:
        return chance.choice(
            (value + 1, value - 1, -value, value * 2, value // 2, value * 1000, float(value), str(value))
        )
    if chance.random() < 0.3:
        return copy.deepcopy(_part(whole, chance, object))
    return copy.deepcopy(chance.choice(ODD))


def _part(value: Any, chance: random.Random, kind: type) -> Any:
    """Something from inside a JSON value; a text, its keys included, where that is asked for."""
    while isinstance(value, (dict, list)) and value and (kind is str or chance.random() < 0.8):
        if isinstance(value, dict):
            key = chance.choice(list(value))
            if kind is str and chance.random() < 0.3:
                return key
            value = value[key]
        else:
            value = chance.choice(value)
    return value if kind is object or isinstance(value, str) else "weight"


def as_json(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """JSON with one thing changed; sometimes damaged bytes."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return damaged(data, chance, others)
    if chance.random() < 0.1:
        return damaged(data, chance, others)
    return json.dumps(changed(value, chance, value), separators=(",", ":")).encode()


def as_safetensors(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """A file whose header has changed, and its length with it; or whose bytes have."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8 or chance.random() < 0.2:
        return damaged(data, chance, others)
    header, held = data[8 : 8 + length], data[8 + length :]
    if held and chance.random() < 0.25:
        new = damaged(held, chance, [held])
        return data[: 8 + length] + (new + held[len(new) :])[: len(held)]
    header = as_json(header, chance, others)
    return len(header).to_bytes(8, "little") + header + held


def sealed(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """As `as_safetensors`, and mostly with a new digest of the header, which is refused otherwise."""
    from quantcli.stores import seal

    found = as_safetensors(data, chance, others)
    end = 8 + int.from_bytes(found[:8], "little")
    if end > len(found) or chance.random() < 0.2:
        return found
    try:
        return next(piece for _, piece in seal.seal([(0, found[:end])])) + found[end:]
    except Exception:  # the digest's own place was changed
        return found


def as_zip(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """An archive with a member changed, and right checksums; or its bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:  # zipfile has many errors for a damaged archive
        members = []
    if not members or chance.random() < 0.2:
        return damaged(data, chance, others)
    at = chance.randrange(len(members))
    name, raw = members[at]
    kind = chance.randrange(10)
    if kind == 0:
        del members[at]
    elif kind == 1:
        members.append((name, raw))
    elif kind == 2:
        members[at] = (chance.choice((members[0][0], "../x", "a" * 300, name.upper(), name + "/", "x.npy")), raw)
    else:
        members[at] = (name, damaged(raw, chance, [m for _, m in members]))
    stream = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if chance.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a name occurs twice
        for name, raw in members:
            archive.writestr(zipfile.ZipInfo(name), raw, method)
    return stream.getvalue()


Mutator = Callable[[bytes, random.Random, list[bytes]], bytes]


def mutated(data: bytes, how: Mutator, chance: random.Random, others: list[bytes]) -> bytes:
    """An input changed in one to four places."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        data = how(data, chance, others)
    return data
