"""Reading ComfyUI's weights, by their descriptions or by the names of their scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.errors import printable
from quantcli.kernels import QuantParams
from quantcli.layouts.bytewise import CODES, Bytewise, decode, held
from quantcli.layouts.comfyui import swizzled
from quantcli.layouts.comfyui.types import INT8, rotation_of
from quantcli.layouts.config import section, text, whole
from quantcli.layouts.reader import COMFYUI, Found, Read
from quantcli.layouts.stored import FLOATS, by_group, filled_up, floats, matrix, part, scheme_name, wrong
from quantcli.layouts.transposed import ParamBands, params_of
from quantcli.strict import strict_json
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Floats

DESCRIPTION = ".comfy_quant"
LIMIT = 1 << 16
"""Limit of the bytes of a description; usual ones have some 30."""

BYTEWISE = {INT8: "I8", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
"""Formats with one byte per weight, and the dtype of the bytes."""

HARMLESS = ("format", "group_size", "orig_dtype", "orig_shape", "per_row", "full_precision_matrix_mult")
"""Keys of a description that do not change how its weights are decoded."""

ROTATED = ("convrot", "convrot_groupsize", "params")
"""Keys about rotated columns, of which `params` may hold the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Nibbles:
    name: str
    cols: int
    group: int
    codes: TensorInfo
    scale: TensorInfo
    zeros: TensorInfo


def _described(infos: Mapping[str, TensorInfo], path: str, layers: Mapping[str, Any], read: Read | None) -> Any:
    """The description of a module by its own tensor, else by the header; they must not contradict each other."""
    own = infos.get(f"{path}{DESCRIPTION}")
    if own is None:
        return layers[path]
    if own.dtype != "U8" or own.nbytes > LIMIT:
        raise wrong(own.name, f"{own.dtype} of {own.nbytes} bytes is not a description of a module")
    if read is None:
        raise wrong(f"{path}.weight", "its description is in a tensor whose data is not available")
    found = strict_json(read(own.name, 0, own.nbytes).tobytes(), printable(own.name))
    if path in layers and layers[path] != found:
        raise wrong(own.name, f"it contradicts {COMFYUI} in the header")
    return found


def _format(name: str, description: Any) -> str:
    """The format a description names. Raises DataError for an unknown format or further keys."""
    if not isinstance(description, dict):
        raise wrong(name, "its description is not an object")
    kind = text(description, "format")
    known = (*HARMLESS, *ROTATED) if kind == INT8 else (*HARMLESS, "convrot_groupsize")
    more = [key for key, value in description.items() if key not in known and value]
    if kind == INT8 and isinstance(own := description.get("params"), dict):
        more += [key for key, value in own.items() if key not in (*HARMLESS, *ROTATED[:2]) and value]
    if kind is None or kind not in (*BYTEWISE, *swizzled.FORMATS, "awq_w4a16"):
        raise wrong(name, f"ComfyUI format {kind} is not supported")
    if more:
        raise wrong(name, f"{kind} with {printable(more[0], 40)} is not supported")
    return kind


def _bytewise(
    infos: Mapping[str, TensorInfo], name: str, dtype: str, scale_name: str, rotation: int | None = None
) -> Found:
    codes = part(infos, name, name, (dtype,) if dtype == "I8" else (dtype, "U8"))
    scale = part(infos, scale_name, name, FLOATS)
    rows = codes.shape[0] if codes.shape else 0
    if len(codes.shape) < 2 or (scale.numel != 1 and (scale.shape not in ((rows,), (rows, 1)) or len(codes.shape) > 2)):
        raise wrong(name, f"scales {list(scale.shape)} do not match codes {list(codes.shape)}")
    granularity = "channel" if scale.numel > 1 or len(scale.shape) == 2 else "tensor"
    cols = codes.shape[-1]
    if rotation is not None and (cols % rotation or len(codes.shape) > 2):
        raise wrong(name, f"{rotation} of its columns are rotated together, of {list(codes.shape)}")
    stored = Bytewise(name=name, cols=cols, height=1, width=cols, codes=replace(codes, dtype=dtype), scale=scale)
    turned = "" if rotation is None else f"-rot{rotation}"
    return Found(
        name=name,
        shape=codes.shape,
        scheme=scheme_name(8, granularity).replace("w8", CODES[dtype], 1) + turned,
        bits=8,
        parts=(codes, scale),
        decode=partial(decode, stored) if rotation is None else partial(_decode_rotated, stored, rotation),
        held=partial(held, stored) if rotation is None else _not_moved,
    )


def _not_moved(read: Read) -> str:
    """Why codes of rotated columns are not moved."""
    return "its columns are rotated, which no other layout has"


def _decode_rotated(stored: Bytewise, rotation: int, read: Read, first: int, last: int) -> Floats:
    """Codes rotated back, which whole numbers are without an error, times the scale of their row."""
    shape = (last - first, stored.cols)
    out = read(stored.codes.name, first * shape[1], shape[0] * shape[1]).view(np.int8).astype(np.float32)
    kernels.load().rotate(out, rotation)
    one = stored.scale.numel == 1
    scale = floats(read, stored.scale, stored.name, *((0, 1) if one else (first, shape[0])))
    rows: Floats = out.reshape(shape)
    with np.errstate(over="ignore"):
        rows *= scale[:, None]
    return rows


def _nibbles(infos: Mapping[str, TensorInfo], name: str, description: Mapping[str, Any], bands: ParamBands) -> Found:
    codes = part(infos, name, name, ("I8", "U8"))
    scale, zeros = (part(infos, f"{name}_{which}", name, FLOATS) for which in ("scale", "zeros"))
    (rows, held), (groups, outputs) = matrix(codes, name), matrix(scale, name)
    if outputs != rows or zeros.shape != scale.shape or held * 2 % groups:
        shapes = ", ".join(str(list(i.shape)) for i in (codes, scale, zeros))
        raise wrong(name, f"codes, scales and zeros do not match: {shapes}")
    cols = held * 2
    if whole(description, "group_size", 1, 1 << 30) not in (None, cols // groups):
        raise wrong(
            name, f"{groups} groups of {cols} columns, but its description says groups of {description['group_size']}"
        )
    stored = _Nibbles(name=name, cols=cols, group=cols // groups, codes=codes, scale=scale, zeros=zeros)
    return Found(
        name=name,
        shape=(rows, cols),
        scheme=scheme_name(4, "channel" if groups == 1 else stored.group, "float"),
        bits=4,
        parts=(codes, scale, zeros),
        decode=partial(_decode_nibbles, stored, bands),
    )


def _decode_nibbles(stored: _Nibbles, bands: ParamBands, read: Read, first: int, last: int) -> Floats:
    shape, held = (last - first, stored.cols), stored.cols // 2
    packed = filled_up(read(stored.codes.name, first * held, shape[0] * held), shape, 4)
    scale, zeros = params_of(bands, read, (stored.scale, stored.zeros), stored.name, first, last)
    out = by_group(packed, shape, 4, QuantParams(scale, np.full_like(scale, 8)), stored.group)
    with np.errstate(over="ignore", invalid="ignore"):
        grouped = out.reshape(shape[0], -1, stored.group)
        grouped += zeros[:, :, None]
    return out


def _found(infos: Mapping[str, TensorInfo], path: str, description: Any, bands: ParamBands) -> Found:
    name = f"{path}.weight"
    kind = _format(name, description)
    if kind in swizzled.FORMATS:
        found = swizzled.find(infos, name, kind, description)
    elif kind == "awq_w4a16":
        found = _nibbles(infos, name, description, bands)
    else:
        rotation = rotation_of(description) if kind == INT8 else None
        if isinstance(rotation, str):
            raise wrong(name, rotation)
        found = _bytewise(infos, name, BYTEWISE[kind], f"{name}_scale", rotation)
    if f"{path}.pre_quant_scale" in infos:
        raise wrong(name, f"{printable(path)}.pre_quant_scale beside it is not supported")
    own = infos.get(f"{path}{DESCRIPTION}")
    return found if own is None else replace(found, parts=(*found.parts, own))


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights that ComfyUI's descriptions name, and 8-bit floats with a scale_weight beside them."""
    layers = section(config, COMFYUI)
    described = [name.removesuffix(DESCRIPTION) for name in infos if name.endswith(DESCRIPTION)]
    paths, bands = list(dict.fromkeys([*described, *layers])), ParamBands()
    found = [_found(infos, path, _described(infos, path, layers, read), bands) for path in paths]
    known = {weight.name for weight in found}
    for name, info in infos.items():
        if name in known or name.removesuffix(".weight") == name:
            continue
        older = f"{name.removesuffix('.weight')}.scale_weight"
        if info.dtype in ("I8", "U8") and f"{name}_zeros" in infos:
            raise wrong(
                name,
                "zeros beside its codes without a description of their format",
                f"the description belongs under {COMFYUI} in the header",
            )
        if info.dtype in ("F8_E4M3", "F8_E5M2") and older in infos:
            if infos[older].numel != 1:
                raise wrong(name, f"scales {list(infos[older].shape)} are not supported")
            found.append(_bytewise(infos, name, info.dtype, older))
    return found
