"""The tensors of any model as whoever loads it sees them: float, quantcli's own, or another tool's, decoded."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.dtypes import DTYPES, to_float32
from quantcli.errors import DataError
from quantcli.layouts import evidence
from quantcli.layouts import reader as reading
from quantcli.layouts.native.model import Model, Tensor
from quantcli.layouts.view import BLOCK, View, runs
from quantcli.stores.gguf import GgufFile
from quantcli.stores.onnx import OnnxFile
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats

def views_of(model: Model, path: str, config: Mapping[str, Any] | None = None) -> dict[str, View]:
    """The tensors of a model by their original names. config: what config.json says, where that is known already.

    Raises DataError for layouts that are not understood: what is quantized and not decoded is never shown as floats.
    """
    if model.is_quantized and config is None:
        return {name: view_of(tensor) for name, tensor in model.items()}
    infos = {name: tensor.stored.info for name, tensor in model.items()}

    def read(name: str, start: int, size: int) -> NDArray[np.uint8]:
        return model[name].read_bytes(name, start, size)

    try:
        stated = _stated(model, path, config)
        found = reading.find(infos, stated, read)
    except DataError as error:
        raise error.within(path) from None
    parts = {part.name for weight in found for part in weight.parts}
    left = {name: info for name, info in infos.items() if name not in parts}
    seen = evidence.undecoded(model.source, left, stated, others=bool(found))
    if seen is not None:
        raise DataError(
            f"it is quantized in a layout that quantcli does not decode ({seen.layout}): {seen.seen}", place=[path]
        )
    shown = {weight.name: _foreign(weight, read) for weight in found}
    return shown | {name: _float(tensor) for name, tensor in model.items() if name not in parts}


def _stated(model: Model, path: str, config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What says how tensors are stored: the file itself where it is a GGUF or ONNX; else the config.json that is known,
    or the one beside the file, or what an export says in its header; and what ComfyUI's headers say."""
    if isinstance(model.source, GgufFile):
        return {"gguf": model.source.blocks}
    if isinstance(model.source, OnnxFile):
        return {"onnx": model.source.graph}
    layers = evidence.layers(model.source)
    found = config if config is not None else evidence.beside(path) or evidence.in_header(model.source.metadata)
    return {**found, evidence.COMFYUI: layers} if layers else found


def _float(tensor: Tensor) -> View:
    info = tensor.stored.info
    size = DTYPES[info.dtype].bits // 8

    def read(first: int, last: int) -> Floats:
        return to_float32(tensor.read_bytes(info.name, first * size, (last - first) * size), info.dtype)

    return View(
        info=info,
        scheme=None,
        bits=None,
        bytes_out=info.nbytes,
        stored=tensor,
        blocks=runs(info.numel, BLOCK),
        read=read,
    )


def view_of(tensor: Tensor) -> View:
    """A tensor of a native or float file."""
    return _native(tensor) if tensor.scheme is not None else _float(tensor)


def _native(tensor: Tensor) -> View:
    stored, layout = tensor.stored, tensor.stored.layout
    assert layout is not None and stored.scheme is not None
    spans = list(layout.tiles())
    starts = [span.row * layout.cols + span.col for span in spans]
    ends = [start + span.rows * span.cols for start, span in zip(starts, spans)]

    def read(first: int, last: int) -> Floats:
        found = np.empty(last - first, np.float32)
        for at in range(bisect_right(ends, first), bisect_left(starts, last)):
            start = starts[at]
            low, high = max(start, first), min(ends[at], last)
            found[low - first : high - first] = tensor.decoded(spans[at]).ravel()[low - start : high - start]
        return found

    return View(
        info=stored.info,
        scheme=stored.scheme.name,
        bits=stored.scheme.bits,
        bytes_out=stored.bytes_out,
        stored=tensor,
        blocks=tuple(zip(starts, ends)),
        read=read,
    )


def _foreign(weight: reading.Found, parts: reading.Read) -> View:
    cols = weight.shape[-1]
    info = TensorInfo(weight.name, "F32", weight.shape)
    rows = info.numel // cols
    step = weight.unit * max(1, BLOCK // (cols * weight.unit))

    def read(first: int, last: int) -> Floats:
        low, high = first // cols // weight.unit * weight.unit, -(-last // cols)
        decoded = weight.decode(parts, low, min(-(-high // weight.unit) * weight.unit, rows)).ravel()
        return decoded[first - low * cols : last - low * cols]

    return View(
        info=info,
        scheme=weight.scheme,
        bits=weight.bits,
        bytes_out=sum(part.nbytes for part in weight.parts),
        stored=None,
        blocks=runs(info.numel, step * cols),
        read=read,
        parts=weight.parts,
    )
