"""Writing models of pictures and films: names as ComfyUI has them, and their shapes.

Vectors, small tensors and parameters that are no weights of a layer are F32 where they are not F16; matrices that the
table of models names stay in floating point; a tensor whose rows are not whole super-blocks is stored in rows of 256
where ComfyUI-GGUF does so, its own shape in the key comfy.gguf.orig_shape.NAME.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from quantcli.errors import DataError, printable
from quantcli.kernels import SUPER
from quantcli.layouts.gguf.blocks import block_type, obstacle
from quantcli.layouts.gguf.images.diffusers import original, part
from quantcli.layouts.gguf.images.models import ImageModel, image_model
from quantcli.layouts.gguf.tensors import Place
from quantcli.layouts.gguf.write import conversion, of_types
from quantcli.layouts.pieces import facts
from quantcli.layouts.writer import Again, Conversion, Weight
from quantcli.stores import Source
from quantcli.stores.gguf import MAX_DIMENSIONS, SHAPE
from quantcli.stores.gguf_writer import COMFYUI
from quantcli.stores.stacked import Rebuilt
from quantcli.tensors.info import TensorInfo

SMALL = 1024
"""Elements up to which ComfyUI-GGUF stores F32."""

LEAST_RESHAPED = 512
"""Elements from which on it stores rows of 256."""

_DECODED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS")
"""Types that ComfyUI-GGUF decodes itself."""

_KEPT = {"F32": "F32", "F64": "F32", "F16": "F16", "F8_E4M3": "F16", "F8_E5M2": "F16"}
"""Types of kept tensors by their dtypes, but for BF16."""


# ---- the tensors that the model has in ComfyUI ------------------------------------------------------------------


def rebuilt(infos: Sequence[TensorInfo], config: Mapping[str, Any]) -> dict[str, Sequence[Rebuilt]] | None:
    """What takes the place of tensors in the GGUF: those under other names or in other shapes, nothing for those of
    other parts of a pipeline; None for a model of another kind.

    Raises UsageError for a component of diffusers whose names are not those of ComfyUI, DataError for its tensors.
    """
    stored = {info.name: Rebuilt(info.name, info.shape, (part(info),)) for info in infos}
    tensors: Mapping[str, Rebuilt | None] = stored
    if "_class_name" in config:
        tensors = original(infos, config) or stored
    found = image_model({tensor.name for tensor in tensors.values() if tensor is not None})
    if found is None:
        return None
    model, prefix = found
    changed: dict[str, Sequence[Rebuilt]] = {}
    for name, tensor in tensors.items():
        if tensor is None or not tensor.name.startswith(prefix) or any(word in tensor.name for word in model.unused):
            changed[name] = ()
            continue
        own = _in_rows(Rebuilt(tensor.name.removeprefix(prefix), tensor.shape, tensor.matrices), model)
        if own != stored[name]:
            changed[name] = (own,)
    return changed


def _in_rows(tensor: Rebuilt, model: ImageModel) -> Rebuilt:
    """A tensor in rows of 256, where ComfyUI-GGUF stores it so."""
    numel = math.prod(tensor.shape)
    fits = len(tensor.shape) < 2 or tensor.shape[-1] % SUPER == 0
    if not model.reshaped or fits or numel < LEAST_RESHAPED or numel % SUPER:
        return tensor
    return Rebuilt(tensor.name, (numel // SUPER, SUPER), tensor.matrices, own=tensor.shape)


# ---- the file ---------------------------------------------------------------------------------------------------


def again(source: Source, *, file_type: int | None = None) -> Again | None:
    """How a model for ComfyUI is written; None for a source of another kind."""
    found = image_model({info.name for info in source.infos()})
    if found is None:
        return None
    model, _ = found
    name = source.raw_keys().get("general.name")
    return Again(
        convert=partial(_convert, model=model, shapes=source.shapes, name=name, file_type=file_type),
        obstacle=partial(_obstacle, model=model),
        decides=True,
    )


def _obstacle(weight: Weight, model: ImageModel) -> str | None:
    """Why ComfyUI-GGUF takes a weight in floating point only; None where it takes blocks."""
    name, shape = weight.info.name, weight.info.shape
    if model.stays_float(name):
        return "ComfyUI-GGUF takes it in floating point only"
    if not name.endswith(".weight"):
        return "ComfyUI loads what is no weight of a layer in floating point only"
    if len(shape) != 2:
        return f"it has {len(shape)} dimensions, and ComfyUI-GGUF takes blocks of matrices only"
    return obstacle(*facts(weight), shape)


def _kept(info: TensorInfo, model: ImageModel) -> str:
    """The type of a kept tensor. Raises DataError for a dtype that ComfyUI-GGUF does not load.

    Its layers decode what it calls a quantized type, BF16 among them; what torch's own layers load is F16 or F32.
    """
    if info.dtype == "BF16":
        layer = info.name.endswith(".weight") and len(info.shape) in (2, 4) and info.numel > SMALL
        return "BF16" if layer and not any(word in info.name for word in model.precise) else "F32"
    if info.dtype not in _KEPT:
        raise DataError(f"ComfyUI-GGUF does not load {info.dtype}", place=[printable(info.name)])
    return _KEPT[info.dtype] if len(info.shape) <= MAX_DIMENSIONS else "F32"


def _convert(
    tensors: Sequence[Weight],
    model: ImageModel,
    shapes: Mapping[str, tuple[int, ...]],
    name: bytes | None,
    file_type: int | None,
) -> Conversion:
    """The model in a file for ComfyUI. shapes: those of the tensors in the model, where they are others; name: the
    value of general.name, None for none."""
    blocks = {t.info.name: block_type(t.scheme) for t in tensors if t.scheme is not None}
    places = {
        t.info.name: Place(name=t.info.name, type=blocks.get(t.info.name) or _kept(t.info, model)) for t in tensors
    }
    notes = [f"for ComfyUI-GGUF ({model.architecture}): the model that predicts noise alone"]
    notes += of_types(tensors, file_type)
    notes += [
        f"ComfyUI-GGUF decodes {kind} with the gguf package, which is slow"
        for kind in dict.fromkeys(blocks.values())
        if kind not in _DECODED
    ]
    first = {"general.architecture": model.architecture, **({} if name is None else {"general.name": name})}
    own = {f"{SHAPE}{key}": list(shape) for key, shape in shapes.items() if key in places}
    return conversion(tensors, places, first, own, {}, notes, file_type, room=COMFYUI)
