"""One ONNX file with a MatMulNBits node for every weight."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from quantcli import __version__
from quantcli.errors import DataError, UsageError, printable
from quantcli.layouts.onnx.forms import BLOCKS, block_job, block_of
from quantcli.layouts.onnx.nodes import whole
from quantcli.layouts.pieces import facts, or_copied, quantized
from quantcli.layouts.writer import KEY, Beside, ContainerFile, Conversion, Job, Weight
from quantcli.patterns import module_of
from quantcli.stores.protobuf_writer import message, number, opened, text
from quantcli.tensors.info import TensorInfo

LIMIT = (1 << 31) - (1 << 20)
"""Largest file that holds its tensors itself: protobuf reads less than 2 GiB."""

PAGE = 4096

_TYPES = {"F32": 1, "U8": 2, "I8": 3, "U16": 4, "I16": 5, "I32": 6, "I64": 7, "BOOL": 9, "F16": 10, "F64": 11,
          "U32": 12, "U64": 13, "C64": 14, "BF16": 16, "F8_E4M3": 17, "F8_E4M3FNUZ": 18, "F8_E5M2": 19,
          "F8_E5M2FNUZ": 20}  # fmt: skip
"""TensorProto's number of each supported dtype."""


def shape(weight: Weight) -> str | None:
    """Why MatMulNBits cannot store a weight: it must be a matrix, and a short last group a block cut short."""
    _, plan = facts(weight)
    if len(weight.info.shape) != 2:
        return f"it has {len(weight.info.shape)} dimension{'s' if len(weight.info.shape) != 1 else ''}"
    if plan.short_group and plan.group not in BLOCKS:
        return f"a short last group of {plan.short_group}"
    return None


def _job(weight: Weight) -> Job:
    return block_job(weight, block_of(facts(weight)[1]), "F32")


# ---- the file ---------------------------------------------------------------------------------------------------


def _value(name: str, cols: int) -> bytes:
    """ValueInfoProto of a float matrix of any number of rows."""
    dims = message(1, text(2, "rows")) + message(1, number(1, cols))
    return text(1, name) + message(2, message(1, number(1, _TYPES["F32"]) + message(2, dims)))


def _node(weight: Weight) -> tuple[bytes, bytes, bytes]:
    """A node, its input and its output, as fields of a graph."""
    scheme, plan = facts(weight)
    name = weight.info.name
    stem = module_of(name) if name.endswith(".weight") else name
    inputs = [f"{stem}.input", name, f"{name}_scale", *([] if scheme.symmetric else [f"{name}_zero_point"])]
    own = b"".join(text(1, i) for i in inputs) + text(2, f"{stem}.output") + text(3, stem) + text(4, "MatMulNBits")
    numbers = {"K": plan.cols, "N": plan.rows, "bits": scheme.bits, "block_size": block_of(plan)}
    for key, value in numbers.items():
        own += whole(key, value)
    own += text(7, "com.microsoft")
    return message(1, own), message(11, _value(inputs[0], plan.cols)), message(12, _value(f"{stem}.output", plan.rows))


def _tensor(info: TensorInfo) -> bytes:
    """TensorProto without its elements."""
    dims = b"".join(number(1, n) for n in info.shape)
    return dims + number(2, _TYPES[info.dtype]) + text(8, info.name)


def _inside(nodes: bytes, outputs: Sequence[TensorInfo], base: str, record: str) -> list[ContainerFile]:
    """One file that holds the tensors itself."""
    heads = []
    for info in outputs:
        own = _tensor(info) + opened(9, info.nbytes)
        heads.append(opened(5, len(own) + info.nbytes) + own)
    graph = len(nodes) + sum(map(len, heads)) + sum(info.nbytes for info in outputs)
    start = _model(record) + opened(7, graph) + nodes
    at, offsets, pieces = len(start), {}, [(0, start)]
    for head, info in zip(heads, outputs):
        pieces.append((at, head))
        offsets[info.name] = at + len(head)
        at += len(head) + info.nbytes
    return [ContainerFile(name=base, size=at, offsets=offsets, pieces=pieces)]


def _beside(nodes: bytes, outputs: Sequence[TensorInfo], base: str, record: str) -> list[ContainerFile]:
    """A file that refers to the tensors in a second one, each starting on a new page."""
    at, offsets, tensors = 0, {}, b""
    for info in outputs:
        at = -(-at // PAGE) * PAGE
        offsets[info.name] = at
        place = {"location": f"{base}.data", "offset": str(at), "length": str(info.nbytes)}
        external = b"".join(message(13, text(1, key) + text(2, value)) for key, value in place.items())
        tensors += message(5, _tensor(info) + external + number(14, 1))
        at += info.nbytes
    whole = _model(record) + message(7, nodes + tensors)
    return [
        ContainerFile(name=base, size=len(whole), offsets={}, pieces=[(0, whole)]),
        ContainerFile(name=f"{base}.data", size=at, offsets=offsets, pieces=[]),
    ]


def _model(record: str) -> bytes:
    """ModelProto without its graph."""
    opsets = message(8, text(1, "") + number(2, 21)) + message(8, text(1, "com.microsoft") + number(2, 1))
    metadata = message(14, text(1, KEY) + text(2, record))
    return number(1, 10) + text(2, "quantcli") + text(3, __version__) + opsets + metadata


def _files(
    weights: Sequence[Weight], outputs: Sequence[TensorInfo], base: str, record: str, limit: int | None
) -> list[ContainerFile]:
    parts = [_node(w) for w in weights]
    nodes = b"".join(own for number in range(3) for own in (part[number] for part in parts)) + text(2, "weights")
    files = _inside(nodes, outputs, base, record)
    return files if files[0].size <= LIMIT else _beside(nodes, outputs, base, record)


def convert(tensors: Sequence[Weight], beside: Beside) -> Conversion:
    """Always raises UsageError, with a hint on how to write the weights alone: there is no graph to put them in."""
    hint = "name the .onnx file of the model; --container writes a MatMulNBits node for each weight, which is no model"
    raise UsageError("the file would hold the weights without the model's graph", place=["--to onnx"], hint=hint)


def container(tensors: Sequence[Weight], beside: Beside) -> Conversion:
    """The weights as nodes, and the other tensors beside them. Raises DataError for a dtype ONNX does not have."""
    for tensor in tensors:
        if tensor.scheme is None and tensor.info.dtype not in _TYPES:
            raise DataError(f"ONNX has no {tensor.info.dtype}", place=[printable(tensor.info.name)])
    make = or_copied(_job)
    jobs = {t.info.name: make(t) for t in tensors}
    outputs = [output for job in jobs.values() for output in job.outputs]
    return Conversion(
        job=lambda t: jobs[t.info.name],
        files=partial(_files, list(quantized(tensors)), outputs),
        notes=[
            "the file holds one MatMulNBits node for each weight, not the model's graph; onnxruntime runs them",
        ],
    )
