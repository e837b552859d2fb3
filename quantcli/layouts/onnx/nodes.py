"""NodeProto of the nodes that take a quantized weight, or give it back as floats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from quantcli.layouts.onnx.forms import FLOAT, INT4, UINT4, Stored
from quantcli.stores.onnx_graph import CONTRIB
from quantcli.stores.protobuf_writer import message, number, opened, text

INT64 = 7

Fresh = Callable[[str], str]
"""A function that makes a name one that nothing else in the model has."""


def fresh_among(names: Iterable[str]) -> Fresh:
    """What makes names fresh in a model that has these."""
    taken = set(names)

    def fresh(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    return fresh


def whole(name: str, value: int) -> bytes:
    """The attribute of a node that is a whole number."""
    return message(5, text(1, name) + number(3, value) + number(20, 2))


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], name: str = "", domain: str = "") -> bytes:
    """A node without attributes."""
    found = b"".join(text(1, i) for i in inputs) + b"".join(text(2, o) for o in outputs)
    found += (text(3, name) if name else b"") + text(4, operator)
    return found + (text(7, domain) if domain else b"")


def shape_constant(name: str, shape: Sequence[int]) -> bytes:
    """A Constant node with a shape."""
    raw = b"".join(n.to_bytes(8, "little") for n in shape)
    tensor = number(1, len(shape)) + number(2, INT64) + opened(9, len(raw)) + raw
    return node("Constant", [], [name]) + message(5, text(1, "value") + message(5, tensor) + number(20, 4))


def reshaped(source: str, to: str, shape: Sequence[int], fresh: Fresh) -> list[bytes]:
    """The nodes that give a tensor another shape."""
    constant = fresh(f"{to}_shape")
    return [shape_constant(constant, shape), node("Reshape", [source, constant], [to], fresh(f"{to}_Reshape"))]


def decoding(stored: Stored, parts: Sequence[str], own: str, opset: int, fresh: Fresh) -> list[bytes]:
    """The nodes that give a weight back as floats under its own name."""
    codes, scale = stored.parts[:2]
    small = codes.kind in (INT4, UINT4)
    standard = opset >= 21 or (opset >= 13 and not small and scale.kind == FLOAT)
    whole_shape = codes.shape == stored.shape
    result = own if whole_shape else fresh(f"{own}_dequantized")
    domain = "" if standard else CONTRIB
    first = node("DequantizeLinear", parts, [result], fresh(f"{own}_DequantizeLinear"), domain) + whole("axis", 0)
    return [first, *([] if whole_shape else reshaped(result, own, stored.shape, fresh))]


def product(stored: Stored, parts: Sequence[str], left: str) -> bytes:
    """MatMulNBits, without outputs and name."""
    rows, cols = stored.shape
    found = node("MatMulNBits", [left, *parts], [], domain=CONTRIB) + whole("K", cols) + whole("N", rows)
    return found + whole("bits", stored.bits) + whole("block_size", stored.block)


def lookup(stored: Stored, parts: Sequence[str], indices: str) -> bytes:
    """GatherBlockQuantized, without outputs and name."""
    found = node("GatherBlockQuantized", [parts[0], indices, *parts[1:]], [], domain=CONTRIB)
    found += whole("bits", stored.bits) + whole("block_size", stored.block)
    return found + whole("gather_axis", 0) + whole("quantize_axis", 1)
