"""MLX: codes along the rows, and for every group of a row a scale, and a bias where they are integers.

In the mode `affine` a weight of b bits [out, in] (or more leading dimensions) with groups of g, where g divides in, is
stored as

    X.weight   U32                [out, in*b/32]   codes u from 0 to 2^b-1 in b bits each, low bits first, across words
    X.scales   F16, BF16 or F32   [out, in/g]
    X.biases   as the scales      [out, in/g]      `qbiases` where transformers wrote it for Metal

and is scale * u + bias, here in float32. b is 2, 3, 4, 5, 6 or 8. With 4 bits the codes 0 to 7 are the bytes
`10 32 54 76`. Shapes give only b*g = 32*words/groups, so that 4 bits in groups of 64 look like 8 bits in groups of 32:
config.json tells, under `quantization` or `quantization_config`, for all modules and for single ones by name.

In the modes of small floats it is

    X.weight   U32   [out, in*b/32]   mxfp4, nvfp4: E2M1, the first of a word in its low bits; mxfp8: E4M3
    X.scales   U8    [out, in/g]      mxfp4, mxfp8: E8M0, g is 32; nvfp4: E4M3, g is 16

and is float * scale. These are told by words/groups: 4, 2 and 8; config.json must not say something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.errors import DataError, printable
from quantcli.kernels import OFFSET, CodeGrid, QuantParams
from quantcli.layouts.reading import ForeignLayout, Found, Read
from quantcli.layouts.reading._parts import (
    CONFIG_HINT,
    FLOATS,
    floats,
    part,
    scheme_name,
    section,
    small_floats,
    small_scales,
    text,
    whole,
    wrong,
)
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Floats

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
SMALL = {"mxfp4": (4, 32, "e8m0"), "mxfp8": (8, 32, "e8m0"), "nvfp4": (4, 16, "e4m3")}
"""Modes of small floats: bits, columns of a group, and what its scale is."""


@dataclass(frozen=True, slots=True)
class _Stored:
    name: str
    bits: int
    group: int
    cols: int
    words: TensorInfo
    scales: TensorInfo
    biases: TensorInfo


def _settings(config: Mapping[str, Any], name: str, module: str) -> dict[str, Any]:
    """What config.json says of a module."""
    general = section(config, "quantization") or section(config, "quantization_config")
    if text(general, "quant_method") not in (None, "metal"):
        return {}
    own = general.get(module)
    if own is False:
        raise wrong(name, "it is quantized, and config.json says it is not")
    if own is None or own is True:
        return general
    if not isinstance(own, dict):
        raise DataError("it is not an object", place=["config.json", printable(module)])
    return {**general, **own}


def _bits_and_group(name: str, settings: Mapping[str, Any], words: int, groups: int) -> tuple[int, int]:
    bits, group = whole(settings, "bits", 1, 8), whole(settings, "group_size", 1, 1 << 20)
    if bits is not None and bits not in BITS:
        raise wrong(name, f"{bits} bits are not known here")
    fitting = [
        (b, g)
        for b in (BITS if bits is None else (bits,))
        for g in (GROUPS if group is None else (group,))
        if words * 32 == groups * g * b
    ]
    if not fitting:
        said = f" of {bits} bits" if bits else ""
        said += f" in groups of {group}" if group else ""
        raise wrong(name, f"{words} words and {groups} scales in a row are no codes{said}")
    if len(fitting) > 1:
        choices = " or ".join(f"{b} bits in groups of {g}" for b, g in fitting)
        raise wrong(name, f"the shapes fit {choices}", CONFIG_HINT)
    return fitting[0]


def _stored(infos: Mapping[str, TensorInfo], name: str, config: Mapping[str, Any]) -> _Stored:
    module = name.removesuffix(".weight")
    settings, scales = _settings(config, name, module), f"{module}.scales"
    biases = next((n for n in (f"{module}.biases", f"{module}.qbiases") if n in infos), f"{module}.biases")
    mode = text(settings, "mode") or "affine"
    if mode != "affine":
        raise wrong(name, f"MLX's mode {mode} is not known here")
    words = part(infos, name, name, ("U32",))
    scale = part(infos, scales, name, FLOATS)
    bias = part(infos, biases, name, FLOATS)
    if len(words.shape) < 2 or scale.shape[:-1] != words.shape[:-1] or bias.shape != scale.shape:
        shapes = ", ".join(str(list(i.shape)) for i in (words, scale, bias))
        raise wrong(name, f"codes, scales and biases do not go together: {shapes}")
    bits, group = _bits_and_group(name, settings, words.shape[-1], scale.shape[-1])
    return _Stored(name, bits, group, group * scale.shape[-1], words, scale, bias)


def _decode(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    rows, groups = last - first, stored.cols // stored.group
    size = stored.words.shape[-1] * 4
    packed = read(stored.words.name, first * size, rows * size)
    scale, bias = (
        floats(read, info, stored.name, first * groups, rows * groups).reshape(rows, groups)
        for info in (stored.scales, stored.biases)
    )
    grid = CodeGrid(mode=OFFSET, bits=stored.bits, umin=0, umax=(1 << stored.bits) - 1)
    return kernels.load().decode(packed, (rows, stored.cols), stored.group, QuantParams(scale, bias), grid)


def _small(infos: Mapping[str, TensorInfo], name: str, config: Mapping[str, Any]) -> Found:
    """A weight of small floats."""
    module = name.removesuffix(".weight")
    settings = _settings(config, name, module)
    words, scale = part(infos, name, name, ("U32",)), part(infos, f"{module}.scales", name, ("U8",))
    for other in ("biases", "qbiases", "global_scale"):
        if f"{module}.{other}" in infos:
            raise wrong(name, f"{other} beside scales of a byte are not known here")
    fitting = [
        (mode, own)
        for mode, own in SMALL.items()
        if len(words.shape) > 1
        and words.shape[:-1] == scale.shape[:-1]
        and words.shape[-1] * 32 == scale.shape[-1] * own[0] * own[1]
    ]
    if not fitting:
        raise wrong(name, f"codes {list(words.shape)} and scales {list(scale.shape)} of a byte are in no mode of MLX")
    mode, (bits, group, kind) = fitting[0]
    stated = text(settings, "mode") or mode, whole(settings, "bits", 1, 8), whole(settings, "group_size", 1, 1 << 20)
    if stated[0] != mode or stated[1] not in (None, bits) or stated[2] not in (None, group):
        said = ", ".join(str(value) for value in stated if value is not None)
        raise wrong(name, f"its shapes are those of {mode}, and config.json says {said}")
    return Found(
        name=name,
        shape=(*words.shape[:-1], scale.shape[-1] * group),
        scheme=mode,
        bits=bits,
        parts=(words, scale),
        unit=1,
        decode=partial(_decode_small, name, words, scale, (bits, group, kind)),
    )


def _decode_small(
    name: str, words: TensorInfo, scale: TensorInfo, mode: tuple[int, int, str], read: Read, first: int, last: int
) -> Floats:
    bits, group, kind = mode
    rows, groups, size = last - first, scale.shape[-1], words.shape[-1] * 4
    out = small_floats(read(words.name, first * size, rows * size), bits).reshape(rows, groups, group)
    with np.errstate(over="ignore", invalid="ignore"):
        out *= small_scales(read, scale, kind, name, first * groups, rows * groups).reshape(rows, groups, 1)
    return out.reshape(rows, groups * group)


def _affine(infos: Mapping[str, TensorInfo], name: str, config: Mapping[str, Any]) -> Found:
    stored = _stored(infos, name, config)
    return Found(
        name=name,
        shape=(*stored.words.shape[:-1], stored.cols),
        scheme=scheme_name(stored.bits, stored.group, "float"),
        bits=stored.bits,
        parts=(stored.words, stored.scales, stored.biases),
        unit=1,
        decode=partial(_decode, stored),
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """What is stored as codes of 32-bit words with scales beside them, and biases where those are floats."""
    found = []
    for name, info in infos.items():
        module = name.removesuffix(".weight")
        if info.dtype != "U32" or module == name or not {f"{module}.scales", f"{module}.biases"} & infos.keys():
            continue
        scale = infos.get(f"{module}.scales")
        small = scale is not None and scale.dtype == "U8"
        found.append((_small if small else _affine)(infos, name, config))
    return found


PROVIDES = ForeignLayout(summary="MLX: affine, mxfp4, mxfp8 and nvfp4", find=find)
