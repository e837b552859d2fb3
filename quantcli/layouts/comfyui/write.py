"""Writing ComfyUI's weights and their descriptions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import scales
from quantcli.architectures import EMBEDDING, EXPERTS, UNNAMED, Architecture
from quantcli.errors import UsageError
from quantcli.layouts import whole_bytes
from quantcli.layouts.comfyui.swizzled import TILE_COLS, TILE_ROWS
from quantcli.layouts.comfyui.types import INT8, described
from quantcli.layouts.config import architecture
from quantcli.layouts.loaders import ignored, modules, not_linear
from quantcli.layouts.pieces import (
    bands,
    facts,
    not_a_matrix,
    or_copied,
    params,
    put_columns,
    quantized,
    rounded,
    with_bytes,
    with_number,
    words,
)
from quantcli.layouts.reader import COMFYUI
from quantcli.layouts.whole_bytes import Places
from quantcli.layouts.writer import Beside, Codes, Conversion, Job, Piece, Weight, Write
from quantcli.patterns import module_of
from quantcli.scales import Store
from quantcli.scheme import Scheme
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import Grouping, TileSpan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes

UNITS = {"e4m3": 16, "e8m0": 32}
"""What columns are filled up to a multiple of, and what rows are a multiple of, by how scales are stored."""

WIDEST = 1 << 16
"""Columns of a weight of which a piece holds whole rows."""

_PREFIX = re.compile(
    r"(?:model\.)?diffusion_model\.|(?:text_encoders|conditioner\.embedders)\.[^.]+\.|cond_stage_model\."
)
"""What the names of one model begin with in a file that holds several."""


# ---- what can be stored ---------------------------------------------------------------------------------------------


def shape(weight: Weight) -> str | None:
    """Why a weight cannot be stored. Columns are filled up; so could rows be, but ComfyUI then adds the bias of a layer
    to more outputs than it has, which fails."""
    unit = UNITS.get(facts(weight)[0].storage)
    if unit is not None and EMBEDDING.search(weight.info.name):
        return "ComfyUI takes embeddings with a scale per tensor or row only"
    why = not_a_matrix(weight, short=unit is not None)
    if why is None and unit is not None and weight.info.shape[0] % unit:
        return f"its {weight.info.shape[0]} rows are not a multiple of {unit}"
    return why


def module(weight: Weight, model: Architecture) -> str | None:
    """Why transformers does not load a quantized weight in this module of a model type that it supports."""
    if not model.takes_packed:
        return "transformers cannot prepare this type of model for such weights"
    if model.holder(module_of(weight.info.name)) == EXPERTS:
        return "transformers stacks experts while it loads them, which takes packed weights"
    return not_linear(weight, model)


# ---- one weight -----------------------------------------------------------------------------------------------------


def _filled(weight: Weight) -> int:
    """How many columns a weight has once they are filled up."""
    unit, cols = UNITS.get(facts(weight)[0].storage, 1), weight.info.shape[-1]
    return -(-cols // unit) * unit


def description(weight: Weight) -> dict[str, Any]:
    """What ComfyUI is told of a weight."""
    return described(facts(weight)[0], weight.info.shape, filled=_filled(weight) != weight.info.shape[-1])


def _job(weight: Weight, *, older: bool, apart: bool) -> Job:
    """The work that stores a weight. apart: whether its description is a tensor."""
    scheme, name = facts(weight)[0], weight.info.name
    if scheme.storage in UNITS:
        job = _in_tiles(weight)
    elif scheme.format == "int":
        job = _signed(weight)
    else:
        codes = TensorInfo(name, f"F8_{scheme.format.removeprefix('fp8-').upper()}", weight.info.shape)
        scale = TensorInfo(f"{module_of(name)}.scale_weight" if older else f"{name}_scale", "F32", ())
        job = whole_bytes.job(weight, Places(codes=codes, scale=scale, store="F32"))
    if (measured := weight.input_scale) is not None:
        job = with_number(job, TensorInfo(f"{module_of(name)}.input_scale", "F32", ()), measured)
    if apart:
        text = json.dumps(description(weight)).encode()
        job = with_bytes(job, TensorInfo(f"{module_of(name)}.comfy_quant", "U8", (len(text),)), text)
    return job


def _signed(weight: Weight) -> Job:
    """The work that stores signed bytes with a scale for every row."""
    scheme, plan = facts(weight)
    name = weight.info.name
    outputs = (TensorInfo(name, "I8", weight.info.shape), TensorInfo(f"{name}_scale", "F32", (plan.rows, 1)))

    def piece(span: TileSpan, codes: Codes, write: Write) -> bool:
        signed = words(codes, span, plan, 8)[:, : span.cols] ^ np.uint8(128)
        write(0, span.row * plan.cols + span.col, np.ascontiguousarray(signed))
        stored, exact = rounded(params(codes, span, plan, scheme)[0], "F32", name)
        if span.col == 0:
            write(1, span.row * 4, stored)
        return exact

    def pieces() -> Iterator[Piece]:
        for span in bands(plan, 8, plan.cols):
            yield partial(piece, span)

    return Job(outputs=outputs, pieces=pieces)


# ---- scales in tiles ------------------------------------------------------------------------------------------------


def _in_tiles(weight: Weight) -> Job:
    """The work that stores a weight whose scales lie in tiles, filled up to whole ones."""
    scheme, plan = facts(weight)
    name, cols, four = weight.info.name, _filled(weight), scheme.bits == 4
    codes = TensorInfo(name, "U8" if four else "F8_E4M3", (plan.rows, cols // 2 if four else cols))
    tiles = -(-plan.rows // TILE_ROWS), -(-(cols // plan.group) // TILE_COLS)
    scale = TensorInfo(f"{name}_scale", "F8_E4M3" if four else "U8", (tiles[0] * TILE_ROWS, tiles[1] * TILE_COLS))
    overall = (TensorInfo(f"{name}_scale_2", "F32", ()),) if four else ()

    def pieces() -> Iterator[Piece]:
        size = plan.cols + 1 if plan.cols <= WIDEST else TILE_COLS * plan.group
        for span in bands(plan, scheme.bits, size, unit=TILE_ROWS):
            yield partial(_tiled, scheme, plan, codes.shape[1], tiles[1], span)

    return Job(outputs=(codes, scale, *overall), pieces=pieces)


def _tiled(scheme: Scheme, plan: Grouping, width: int, across: int, span: TileSpan, codes: Codes, write: Write) -> bool:
    """Codes and scales of whole tiles, the last of which are filled up. width: bytes of a row of codes; across: tiles
    that lie beside each other."""
    packed = words(codes, span, plan, scheme.bits)[:, : -(-span.cols * scheme.bits // 8)]
    if scheme.bits == 4:
        packed = packed << np.uint8(4) | packed >> np.uint8(4)
    at = span.row, span.col * scheme.bits // 8
    missing = width - at[1] - packed.shape[1] if span.col + span.cols == plan.cols else 0
    put_columns(write, 0, np.pad(packed, ((0, 0), (0, missing))), at, width)
    store = Store("F8_E4M3" if scheme.bits == 4 else "U8", codes.overall())
    stored = np.ascontiguousarray(scales.of(scheme).stored(codes.scales(span)[0], store))
    first = span.row // TILE_ROWS, span.col // (TILE_COLS * plan.group)
    for row, line in enumerate(in_tiles(stored.view(np.uint8))):
        write(1, ((first[0] + row) * across + first[1]) * TILE_ROWS * TILE_COLS, line)
    if scheme.bits == 4 and span.row == span.col == 0:
        write(2, 0, np.array([codes.overall()], "<f4"))
    return True


def in_tiles(values: Bytes) -> NDArray[np.uint8]:
    """A matrix of bytes filled up with zeros and cut into tiles of 128 rows and 4 columns: a line of tiles, each of 512
    bytes, for every 128 rows."""
    rows, cols = values.shape
    down, across = -(-rows // TILE_ROWS), -(-cols // TILE_COLS)
    whole = np.zeros((down * TILE_ROWS, across * TILE_COLS), np.uint8)
    whole[:rows, :cols] = values
    found = whole.reshape(down, 4, TILE_ROWS // 4, across, TILE_COLS).transpose(0, 3, 2, 1, 4)
    return np.ascontiguousarray(found).reshape(down, across * TILE_ROWS * TILE_COLS)


# ---- a model --------------------------------------------------------------------------------------------------------


def convert(tensors: Sequence[Weight], beside: Beside, *, older: bool = False) -> Conversion:
    """The model as ComfyUI stores it; older: as scaled FP8, without descriptions. Raises UsageError for a model whose
    experts stay in floating point beside it."""
    model = architecture(beside)
    if any(model.holder(name) == EXPERTS for name in modules(tensors, quantized=False)):
        problem = "transformers loads no experts in floating point beside int8 weights"
        raise UsageError(problem, hint="use another target")
    weights = {w.info.name: w for w in quantized(tensors)}
    both = model is not UNNAMED and all(description(w) == {"format": INT8} for w in weights.values())
    job = or_copied(partial(_job, older=older, apart=not (older or both)))
    if older:
        return _marked(job, weights)

    def header(held: Sequence[str]) -> dict[str, str]:
        among = set(held)
        layers = {module_of(name): description(w) for name, w in weights.items() if name in among}
        return {COMFYUI: json.dumps({"format_version": "1.0", "layers": layers})}

    if not both:
        alone = [] if model is UNNAMED else ["only ComfyUI loads these weights: config.json cannot describe them"]
        return Conversion(job=job, stem=module_of, header=header, notes=[NAMES, *alone])
    config = {"quantization_config": _settings(tensors, model)}
    return Conversion(job=job, stem=module_of, config=config, header=header, notes=[
        NAMES, "compressed-tensors loads the same file as int-quantized; vLLM does not without activations in int8",
    ])  # fmt: skip


NAMES = "ComfyUI looks for its own names of modules, as in the files it loads in floating point"


def _marked(job: Callable[[Weight], Job], weights: Iterable[str]) -> Conversion:
    """The model with a mark for every model in the file that has weights of scaled FP8. weights: their names."""
    firsts: dict[str, str] = {}
    for name in weights:
        match = _PREFIX.match(name)
        firsts.setdefault(match[0] if match else "", name)
    marks = {name: TensorInfo(f"{prefix}scaled_fp8", "F8_E4M3", (0,)) for prefix, name in firsts.items()}

    def marked(tensor: Weight) -> Job:
        found, mark = job(tensor), marks.get(tensor.info.name)
        return found if mark is None else replace(found, outputs=(*found.outputs, mark))

    return Conversion(job=marked, stem=lambda name: "" if name in marks else module_of(name), notes=[NAMES])


def _settings(tensors: Sequence[Weight], model: Architecture) -> dict[str, Any]:
    """What config.json says of signed bytes with a scale per row, for compressed-tensors."""
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    group = {"targets": ["Linear"], "format": "int-quantized", "weights": {**weights, "group_size": None}}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ignored(tensors, model),
        "config_groups": {"group_0": {**group, "input_activations": None, "output_activations": None}},
    }
