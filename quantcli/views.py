"""The tensors of any model as whoever loads it sees them: float, quantcli's own, or another tool's, decoded."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import foreign
from quantcli.dtypes import DTYPES, to_float32
from quantcli.errors import DataError
from quantcli.exports import KEY as EXPORT_KEY
from quantcli.reading import Model, Tensor
from quantcli.stores.checkpoint import Checkpoint
from quantcli.stores.files import read_small
from quantcli.stores.gguf import GgufFile
from quantcli.stores.onnx import OnnxFile
from quantcli.stores.safetensors import strict_json
from quantcli.tensors import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats

COMFYUI = "_quantization_metadata"
"""The key of a header, and of what `foreign.find` is told, under which ComfyUI describes modules."""

BLOCK = 1 << 20
"""Weights of a float tensor that are compared at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A tensor as whoever loads the file sees it.

    scheme, bits: how it is stored, None for what is stored as it is. bytes_out: what that takes. sqnr_db: what its
    file says it cost, None where it says nothing. blocks: runs of weights, first and last in C order, that are decoded
    together; read(first, last): any run as float32. parts: the tensors another tool stores it as.
    """

    info: TensorInfo
    scheme: str | None
    bits: int | None
    bytes_out: int
    stored: Tensor | None
    blocks: tuple[tuple[int, int], ...]
    read: Callable[[int, int], Floats]
    parts: tuple[TensorInfo, ...] = ()

    @property
    def numeric(self) -> bool:
        """Whether it has float values."""
        return self.scheme is not None or DTYPES[self.info.dtype].quantizable


def views_of(model: Model, path: str, config: Mapping[str, Any] | None = None) -> dict[str, View]:
    """The tensors of a model by their original names. config: what config.json says, where that is known already.

    Raises DataError for layouts that are not understood.
    """
    if model.is_quantized and config is None:
        return {name: view_of(tensor) for name, tensor in model.items()}
    infos = {name: tensor.stored.info for name, tensor in model.items()}

    def read(name: str, start: int, size: int) -> NDArray[np.uint8]:
        return model[name].read_bytes(name, start, size)

    try:
        found = foreign.find(infos, _stated(model, path, config), read)
    except DataError as error:
        raise error.within(path) from None
    parts = {part.name for weight in found for part in weight.parts}
    shown = {weight.name: _foreign(weight, read) for weight in found}
    return shown | {name: _float(tensor) for name, tensor in model.items() if name not in parts}


def _stated(model: Model, path: str, config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What says how tensors are stored: the file itself where it is a GGUF or ONNX; else the config.json that is known,
    or the one beside the file, or what an export says in its header; and what ComfyUI's headers say."""
    if isinstance(model.source, GgufFile):
        return {"gguf": model.source.blocks}
    if isinstance(model.source, OnnxFile):
        return {"onnx": model.source.graph}
    shards = model.source.shards.values() if isinstance(model.source, Checkpoint) else [model.source]
    layers = {name: said for shard in shards for name, said in _layers(shard.metadata).items()}
    found = config if config is not None else _config(path) or header_config(model.source.metadata)
    return {**found, COMFYUI: layers} if layers else found


def _layers(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a header says of modules as ComfyUI has it. Raises DataError."""
    document = strict_json(metadata.get(COMFYUI, "{}").encode("utf-8", "replace"), COMFYUI)
    found = document.get("layers", {}) if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise DataError("its layers are not an object", place=[COMFYUI])
    return found


def header_config(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """What the header of an exported file says that its loader wants in config.json. Raises DataError."""
    if EXPORT_KEY not in metadata:
        return {}
    document = strict_json(metadata[EXPORT_KEY].encode("utf-8", "replace"), EXPORT_KEY)
    found = document.get("config") if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise DataError("it has no config", place=[EXPORT_KEY])
    return found


def _config(path: str) -> Mapping[str, Any]:
    """config.json beside a model, with quantize_config.json in it where that is a file of its own."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    found: dict[str, Any] = {}
    for name in ("config.json", "quantize_config.json"):
        file = os.path.join(folder, name)
        if os.path.isfile(file):
            document = strict_json(read_small(file, 10_000_000), file)
            if not isinstance(document, dict):
                raise DataError("it is not an object", place=[file])
            if name == "config.json":
                found = document
            elif "quantization_config" not in found:
                found = {**found, "quantization_config": document}
    return found


def runs(total: int, step: int) -> tuple[tuple[int, int], ...]:
    """Runs of up to `step` weights, first and last."""
    return tuple((first, min(first + step, total)) for first in range(0, total, step))


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


def _foreign(weight: foreign.Found, parts: foreign.Read) -> View:
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
