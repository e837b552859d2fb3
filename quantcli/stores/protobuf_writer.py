"""The part of the protobuf wire format that a file of tensors needs: fields of numbers, of bytes and of messages."""

from __future__ import annotations


def varint(value: int) -> bytes:
    """Seven bits to a byte, the low ones first.

    >>> varint(300).hex()
    'ac02'
    """
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def number(field: int, value: int) -> bytes:
    """A field that holds a whole number of 0 or more."""
    return varint(field << 3) + varint(value)


def opened(field: int, size: int) -> bytes:
    """The start of a field of a number of bytes."""
    return varint(field << 3 | 2) + varint(size)


def message(field: int, content: bytes) -> bytes:
    """A field that holds bytes or a message."""
    return opened(field, len(content)) + content


def text(field: int, value: str) -> bytes:
    """A field that holds text."""
    return message(field, value.encode("utf-8"))
