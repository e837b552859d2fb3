"""A model with a graph, its weights quantized: what may be, how it is stored, and the files that result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from quantcli.each import Numbered
from quantcli.errors import DataError, UsageError
from quantcli.layouts.onnx import forms
from quantcli.layouts.onnx.floating import floating
from quantcli.layouts.onnx.forms import Stored
from quantcli.layouts.onnx.model import Changes, Hole, Laid, Range, Segment, laid_out, size_of
from quantcli.layouts.onnx.roles import Role, roles
from quantcli.layouts.pieces import COPY, plain, put_columns, turned
from quantcli.layouts.writer import Again, ContainerFile, Conversion, Job, Piece, Raw, Weight, Write, had_instead
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.scheme import Scheme
    from quantcli.stores import Source
    from quantcli.stores.files import InputFile
    from quantcli.stores.onnx_graph import Graph

LIMIT = (1 << 31) - (1 << 20)
"""Largest file that holds its tensors itself: protobuf reads less than 2 GiB."""

_CHUNK = 1 << 20


def matrices(infos: Sequence[TensorInfo], graph: Graph) -> Mapping[str, bool]:
    """The matrices of a model that nodes multiply with, and whether each is stored [out, in]."""
    known = roles(graph)
    return {
        info.name: not known[info.name].turned
        for info in infos
        if len(info.shape) == 2 and info.dtype in forms.SCALES and info.name in known and known[info.name].multiplied
    }


def obstacle(weight: Weight, graph: Graph) -> str | None:
    """Why a weight cannot be stored in its place in the graph; None when it can."""
    role = roles(graph)[weight.info.name]
    return role.why or forms.obstacle(weight, role)


def suited(info: TensorInfo, scheme: Scheme, chosen: bool, graph: Graph) -> tuple[Scheme, str]:
    """The scheme nearest to another one that a tensor can have in its place, and what was changed for it."""
    role = roles(graph)[info.name]
    if role.why:
        return scheme, ""
    return forms.suited(info, scheme, role, chosen=chosen, in_function=graph.held[info.name].in_function)


# ---- the files --------------------------------------------------------------------------------------------------


class _Pieces(Numbered[tuple[int, bytes]]):
    """The bytes of a file between its tensors; long runs of the source are read when they are asked for."""

    def __init__(self, source: InputFile, parts: Sequence[tuple[int, bytes | Range]]) -> None:
        self._source, self._parts = source, parts

    def __len__(self) -> int:
        return len(self._parts)

    def at(self, number: int) -> tuple[int, bytes]:
        """Where a run begins, and its bytes."""
        offset, part = self._parts[number]
        return offset, part if isinstance(part, bytes) else self._source.read(part.begin, part.size)


def _file(name: str, segments: Sequence[Segment], source: InputFile) -> ContainerFile:
    """A file of segments."""
    at, offsets, found, run = 0, dict[str, int](), list[tuple[int, bytes | Range]](), list[bytes]()

    def flush() -> None:
        whole = b"".join(run)
        if whole:
            found.append((at - len(whole), whole))
        run.clear()

    for segment in segments:
        if isinstance(segment, bytes):
            run.append(segment)
            at += len(segment)
            continue
        flush()
        if isinstance(segment, Hole):
            offsets[segment.name] = at
        else:
            steps = range(0, segment.size, _CHUNK)
            found += [(at + s, Range(segment.begin + s, min(_CHUNK, segment.size - s))) for s in steps]
        at += segment.size
    flush()
    return ContainerFile(name=name, size=at, offsets=offsets, pieces=_Pieces(source, found))


def _files(
    graph: Graph,
    weights: Mapping[str, tuple[Stored, Role]],
    kept: Mapping[str, int],
    base: str,
    record: str,
    limit: int | None,
) -> list[ContainerFile]:
    def laid(location: str) -> Laid:
        return laid_out(graph, Changes(weights=weights, kept=kept, location=location), record)

    one = laid("")
    if size_of(one.segments) <= LIMIT:
        return [_file(base, one.segments, graph.file)]
    two = laid(f"{base}.data")
    if size_of(two.segments) > LIMIT:
        raise DataError("its graph alone, with the constants in it, takes more than the 2 GiB that protobuf reads")
    beside = ContainerFile(name=f"{base}.data", size=two.beside, offsets=two.offsets, pieces=[])
    return [_file(base, two.segments, graph.file), beside]


# ---- the whole --------------------------------------------------------------------------------------------------


def _turned_back(info: TensorInfo) -> Job:
    """A matrix that is read transposed and kept, as it is stored."""
    rows, cols = info.shape
    size = info.nbytes // max(info.numel, 1)
    height = max(1, COPY // max(cols * size, 1))

    def piece(row: int, kept: Raw, write: Write) -> bool:
        count = min(height, rows - row)
        block = kept.read_bytes(info.name, row * cols * size, count * cols * size).view(f"u{size}")
        out = np.empty((cols, count), block.dtype)
        turned(block.reshape(count, cols), out)
        put_columns(write, 0, out, (0, row), rows)
        return True

    def pieces() -> Iterator[Piece]:
        return (partial(piece, row) for row in range(0, rows, height))

    return Job(outputs=(TensorInfo(info.name, info.dtype, (cols, rows)),), pieces=pieces)


def _notes(tensors: Sequence[Weight], graph: Graph, weights: Mapping[str, tuple[Stored, Role]]) -> list[str]:
    """What weights have instead of what was asked for, and what the loaders of the file need."""
    counts: dict[str, int] = {}
    for stored, _ in weights.values():
        operators = {"blocks": ["MatMulNBits"], "rows": ["GatherBlockQuantized"], "linear": ["DequantizeLinear"]}
        for operator in operators.get(stored.form, ["MatMulNBits", "GatherBlockQuantized"]):
            counts[operator] = counts.get(operator, 0) + 1
    shown = ", ".join(f"{operator} ({count})" for operator, count in sorted(counts.items()))
    needed = f"onnxruntime runs this model, other runtimes may not: {shown}; opset {graph.opset} stays"
    return [*had_instead(tensors), needed]


def convert(tensors: Sequence[Weight], graph: Graph) -> Conversion:
    """The model with its weights quantized; nothing else in it changes. Raises DataError where no protobuf holds its
    graph."""
    known, outputs_first = roles(graph), matrices([t.info for t in tensors], graph)
    weights = {
        t.info.name: (forms.stored(t, known[t.info.name]), known[t.info.name]) for t in tensors if t.scheme is not None
    }
    jobs, kept = dict[str, Job](), dict[str, int]()
    for tensor in tensors:
        name = tensor.info.name
        if tensor.scheme is not None:
            jobs[name] = weights[name][0].job
        else:
            jobs[name] = plain(tensor.info) if outputs_first.get(name, True) else _turned_back(tensor.info)
            kept[name] = tensor.info.nbytes
    if graph.file.size + sum(o.nbytes for job in jobs.values() for o in job.outputs) > LIMIT:
        _files(graph, weights, kept, "", "", None)  # refused before a weight is read
    return Conversion(
        job=lambda t: jobs[t.info.name],
        files=partial(_files, graph, weights, kept),
        notes=_notes(tensors, graph, weights),
    )


def again(source: Source) -> Again | None:
    """How the model of a source with a graph is written again, with floats in place of codes that nodes take. Raises
    UsageError where that is not possible."""
    if source.graph is None:
        return None
    try:
        graph = floating(source.graph, tuple(source.decoded.items()))
    except UsageError as error:
        raise error.within(source.path) from None
    return Again(
        convert=partial(convert, graph=graph),
        matrices=partial(matrices, graph=graph),
        suited=partial(suited, graph=graph),
        obstacle=partial(obstacle, graph=graph),
    )
