"""optimum-quanto: a byte for each weight, or 4 or 2 bits in parts of all groups.

    X._data    I8, F8_E4M3 or F8_E5M2   [out, ..]          q
    X._scale   F32, F16 or BF16         [out, 1, ..], or a number

The weight X is q * scale in the dtype of the scales, here in float32. M.input_scale and M.output_scale of the module
are scales of activations.

Of 4 and 2 bits, in N groups of g weights, a matrix that runs from row to row:

    X._data._data   U8                 [ceil(N/n), g]   codes u: n groups in one, n is 8 / bits
    X._scale        F32, F16 or BF16   [N, 1]
    X._shift        as the scales      [N, 1]           or I8: zero points

The first groups are in the lowest bits of _data, the next in those above, and so on. The weight is u * scale - shift,
or (u - zero point) * scale, each step rounded to the dtype of the scales, as in the library. Groups are of 128, 96, 64
or 32 weights, or whole rows of up to 128, and no tensor says how long a row is: a bias beside the weight does, or
hidden_size in config.json where the name tells which side has it. Everything else is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.dtypes import rounded
from quantcli.layouts.bytewise import CODES, Bytewise, decode, held
from quantcli.layouts.config import whole
from quantcli.layouts.reader import Found, Held, Read, Reader
from quantcli.layouts.stored import FLOATS, floats, matrix, part, scheme_name, wrong
from quantcli.patterns import module_of
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Bytes, Floats

PACKED = "._data._data"

GROUPS = (128, 96, 64, 32)
"""Weights of a group of rows that are longer than the first of these."""

HIDDEN_IN = ("q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "fc1")
HIDDEN_OUT = ("o_proj", "out_proj", "down_proj", "fc2")
"""Layers of decoders whose inputs, or outputs, are as many as hidden_size says."""

TOWERS = ("text_config", "vision_config", "audio_config", "encoder", "decoder")
"""Keys of config.json of models whose parts differ in size."""


# ---- a byte for each weight -----------------------------------------------------------------------------------------


def _stored(infos: Mapping[str, TensorInfo], name: str) -> Bytewise:
    codes, scale = part(infos, f"{name}._data", name, tuple(CODES)), part(infos, f"{name}._scale", name, FLOATS)
    shape = codes.shape
    if f"{name}._shift" in infos or len(shape) < 2:
        raise wrong(name, "this is not how optimum-quanto stores bytes")
    if scale.numel != 1 and scale.shape != (shape[0], *(1 for _ in shape[1:])):
        raise wrong(name, f"scales {list(scale.shape)} do not match codes {list(shape)}")
    rows = math.prod(shape[:-1])
    height = rows if scale.numel == 1 else rows // shape[0]
    return Bytewise(name=name, cols=shape[-1], height=height, width=shape[-1], codes=codes, scale=scale)


def _found(stored: Bytewise) -> Found:
    return Found(
        name=stored.name,
        shape=stored.codes.shape,
        scheme=CODES[stored.codes.dtype] + ("t" if stored.scale.numel == 1 else "c"),
        bits=8,
        parts=(stored.codes, stored.scale),
        decode=partial(decode, stored),
        held=partial(held, stored),
        dtype=stored.scale.dtype,
    )


# ---- 4 and 2 bits ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packed:
    name: str
    cols: int
    bits: int
    group: int
    codes: TensorInfo
    scale: TensorInfo
    shift: TensorInfo

    @property
    def across(self) -> int:
        """Groups of a row."""
        return self.cols // self.group


def _cols(infos: Mapping[str, TensorInfo], name: str, weights: int, group: int, config: Mapping[str, Any]) -> int:
    """How long rows are. Raises DataError where nothing tells."""
    module = module_of(name)
    bias, last = infos.get(f"{module}.bias"), module.rpartition(".")[2]
    hidden = None if any(key in config for key in TOWERS) else whole(config, "hidden_size", 1, 1 << 30)
    cols = 0
    if bias is not None and len(bias.shape) == 1 and bias.numel and weights % bias.numel == 0:
        cols = weights // bias.numel
    elif hidden is not None and last in HIDDEN_IN:
        cols = hidden
    elif hidden is not None and last in HIDDEN_OUT and weights % hidden == 0:
        cols = weights // hidden
    elif group not in GROUPS and group < GROUPS[0]:
        cols = group
    if not cols or weights % cols or cols % group or (cols > group) != (cols > GROUPS[0]):
        problem = f"optimum-quanto stores {weights // group} groups of {group} weights, but not the shape of the matrix"
        raise wrong(name, problem, "a bias beside it, or hidden_size in config.json, would tell")
    return cols


def _packed(infos: Mapping[str, TensorInfo], name: str, config: Mapping[str, Any]) -> _Packed:
    codes = part(infos, f"{name}{PACKED}", name, ("U8",))
    scale = part(infos, f"{name}._scale", name, FLOATS)
    shift = part(infos, f"{name}._shift", name, (scale.dtype, "I8"))
    (height, group), groups = matrix(codes, name), scale.shape[0] if scale.shape else 0
    fitting = [bits for bits in (4, 2) if height == -(-groups * bits // 8)]
    if scale.shape != (groups, 1) or shift.shape != scale.shape or not fitting:
        shapes = ", ".join(str(list(i.shape)) for i in (codes, scale, shift))
        raise wrong(name, f"codes, scales and shifts do not match: {shapes}")
    if len(fitting) > 1:
        raise wrong(name, f"{groups} groups in {height} do not tell 4 bits from 2")
    cols = _cols(infos, name, groups * group, group, config)
    return _Packed(name=name, cols=cols, bits=fitting[0], group=group, codes=codes, scale=scale, shift=shift)


def _codes(stored: _Packed, read: Read, first: int, last: int) -> Bytes:
    """Codes (last - first, g) of groups."""
    height, size = stored.codes.shape
    found = np.empty((last - first, size), np.uint8)
    for number in range(first // height, -(-last // height)):
        low, high = max(first, number * height), min(last, (number + 1) * height)
        raw = read(stored.codes.name, (low - number * height) * size, (high - low) * size).reshape(-1, size)
        found[low - first : high - first] = raw >> np.uint8(number * stored.bits)
    found &= np.uint8((1 << stored.bits) - 1)
    return found


def _scale_and_shift(stored: _Packed, read: Read, first: int, last: int) -> tuple[Floats, Floats]:
    """Scales and shifts, or zero points (last - first, 1), of groups."""
    scale = floats(read, stored.scale, stored.name, first, last - first)
    if stored.shift.dtype == "I8":
        shift = read(stored.shift.name, first, last - first).view(np.int8).astype(np.float32)
    else:
        shift = floats(read, stored.shift, stored.name, first, last - first)
    return scale[:, None], shift[:, None]


def _decode(stored: _Packed, read: Read, first: int, last: int) -> Floats:
    low, high = first * stored.across, last * stored.across
    scale, shift = _scale_and_shift(stored, read, low, high)
    out: Floats = _codes(stored, read, low, high).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if stored.shift.dtype == "I8":
            out -= shift
            out *= scale
        else:
            out *= scale
            out = rounded(out, stored.scale.dtype)
            out -= shift
    return out.reshape(last - first, stored.cols)


def _held(stored: _Packed, read: Read) -> Held:
    """The codes, with -shift as offsets, or zero points."""
    whole_zeros = stored.shift.dtype == "I8"

    def packed(first: int, last: int) -> Bytes:
        codes = _codes(stored, read, first * stored.across, last * stored.across)
        return packing.pack(codes.reshape(last - first, stored.cols), stored.bits)

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        found = _scale_and_shift(stored, read, first * stored.across, last * stored.across)
        scale, shift = (values.reshape(last - first, stored.across) for values in found)
        return scale, shift if whole_zeros else -shift

    return Held(
        bits=stored.bits,
        group="channel" if stored.across == 1 else stored.group,
        offsets="int" if whole_zeros else "float",
        scale_dtype=stored.scale.dtype,
        packed=packed,
        params=params,
        exact=whole_zeros,
    )


def _found_packed(stored: _Packed) -> Found:
    where = "channel" if stored.across == 1 else stored.group
    rows = stored.scale.shape[0] // stored.across
    return Found(
        name=stored.name,
        shape=(rows, stored.cols),
        scheme=scheme_name(stored.bits, where, "int" if stored.shift.dtype == "I8" else "float"),
        bits=stored.bits,
        parts=(stored.codes, stored.scale, stored.shift),
        decode=partial(_decode, stored),
        held=partial(_held, stored),
        dtype=stored.scale.dtype,
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights stored under the names of optimum-quanto."""
    names = [
        name.removesuffix("._data")
        for name, info in infos.items()
        if name.endswith("._data") and info.dtype in CODES and f"{name.removesuffix('._data')}._scale" in infos
    ]
    packed = [
        name.removesuffix(PACKED)
        for name, info in infos.items()
        if name.endswith(PACKED) and info.dtype == "U8" and f"{name.removesuffix(PACKED)}._shift" in infos
    ]
    found = [_found(_stored(infos, name)) for name in names]
    return [*found, *(_found_packed(_packed(infos, name, config)) for name in packed)]


READS = Reader(summary="optimum-quanto: int8, float8, int4 and int2", find=find)
