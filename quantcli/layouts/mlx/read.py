"""Reading MLX's weights: whole numbers with scales and biases, and small floats with one-byte scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from quantcli import kernels
from quantcli.errors import DataError, printable
from quantcli.kernels import OFFSET, CodeGrid, QuantParams
from quantcli.layouts.config import CONFIG_HINT, section, text, whole
from quantcli.layouts.reader import Found, Held, Read
from quantcli.layouts.small import held, scales, small_floats
from quantcli.layouts.stored import FLOATS, floats, part, scheme_name, wrong
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Bytes, Floats

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
"""Bits and groups of the mode `affine`."""

SMALL = {"mxfp4": (4, 32, "F8_E8M0"), "mxfp8": (8, 32, "F8_E8M0"), "nvfp4": (4, 16, "F8_E4M3")}
"""Modes of small floats: bits, columns of a group, and what its scale is."""


@dataclass(frozen=True, slots=True)
class _Stored:
    name: str
    bits: int
    group: int
    cols: int
    codes: TensorInfo
    scales: TensorInfo
    biases: TensorInfo


class _Config:
    """What config.json says of modules."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        whole = section(config, "quantization") or section(config, "quantization_config")
        self._modules = whole if text(whole, "quant_method") in (None, "metal") else {}
        self._general = {key: value for key, value in self._modules.items() if not isinstance(value, dict)}

    def settings(self, name: str, path: str) -> dict[str, Any]:
        """The settings of a module."""
        own = self._modules.get(path)
        if own is False:
            raise wrong(name, "it is quantized, but config.json says it is not")
        if own is None or own is True:
            return self._general
        if not isinstance(own, dict):
            raise DataError("it is not an object", place=["config.json", printable(path)])
        return {"mode": "affine", **own}  # mlx takes nothing from the others: mlx-lm's gpt-oss has 8 bits beside MXFP4


def _bits_and_group(name: str, settings: Mapping[str, Any], width: int, groups: int) -> tuple[int, int]:
    bits, group = whole(settings, "bits", 1, 8), whole(settings, "group_size", 1, 1 << 20)
    if bits is not None and bits not in BITS:
        raise wrong(name, f"{bits} bits are not supported")
    fitting = [
        (b, g)
        for b in (BITS if bits is None else (bits,))
        for g in (GROUPS if group is None else (group,))
        if width * 32 == groups * g * b
    ]
    if not fitting:
        expected = f" of {bits} bits" if bits else ""
        expected += f" in groups of {group}" if group else ""
        raise wrong(name, f"{width} words and {groups} scales in a row do not hold codes{expected}")
    if len(fitting) > 1:
        choices = " or ".join(f"{b} bits in groups of {g}" for b, g in fitting)
        raise wrong(name, f"the shapes fit {choices}", CONFIG_HINT)
    return fitting[0]


def _stored(infos: Mapping[str, TensorInfo], name: str, config: _Config) -> _Stored:
    stem = name.removesuffix(".weight")
    settings, scales = config.settings(name, stem), f"{stem}.scales"
    biases = next((n for n in (f"{stem}.biases", f"{stem}.qbiases") if n in infos), f"{stem}.biases")
    mode = text(settings, "mode") or "affine"
    if mode != "affine":
        raise wrong(name, f"MLX mode {mode} is not supported")
    codes = part(infos, name, name, ("U32",))
    scale = part(infos, scales, name, FLOATS)
    bias = part(infos, biases, name, FLOATS)
    if len(codes.shape) < 2 or scale.shape[:-1] != codes.shape[:-1] or bias.shape != scale.shape:
        shapes = ", ".join(str(list(i.shape)) for i in (codes, scale, bias))
        raise wrong(name, f"codes, scales and biases do not match: {shapes}")
    bits, group = _bits_and_group(name, settings, codes.shape[-1], scale.shape[-1])
    return _Stored(name, bits, group, group * scale.shape[-1], codes, scale, bias)


def _packed(stored: _Stored, read: Read, first: int, last: int) -> Bytes:
    size = stored.codes.shape[-1] * 4
    return read(stored.codes.name, first * size, (last - first) * size)


def _params(stored: _Stored, read: Read, first: int, last: int) -> tuple[Floats, Floats]:
    """Scales and biases (last - first, groups)."""
    rows, groups = last - first, stored.cols // stored.group
    scale, bias = (
        floats(read, info, stored.name, first * groups, rows * groups).reshape(rows, groups)
        for info in (stored.scales, stored.biases)
    )
    return scale, bias


def _decode(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    params = QuantParams(*_params(stored, read, first, last))
    shape = last - first, stored.cols
    grid = CodeGrid(mode=OFFSET, bits=stored.bits, umin=0, umax=(1 << stored.bits) - 1)
    return kernels.load().decode(_packed(stored, read, first, last), shape, stored.group, params, grid)


def _held(stored: _Stored, read: Read) -> Held:
    return Held(
        bits=stored.bits,
        group=stored.group,
        offsets="float",
        scale_dtype=stored.scales.dtype,
        packed=partial(_packed, stored, read),
        params=partial(_params, stored, read),
    )


def _small(infos: Mapping[str, TensorInfo], name: str, config: _Config) -> Found:
    """A weight of small floats."""
    stem = name.removesuffix(".weight")
    settings = config.settings(name, stem)
    codes, scale = part(infos, name, name, ("U32",)), part(infos, f"{stem}.scales", name, ("U8",))
    for other in ("biases", "qbiases", "global_scale"):
        if f"{stem}.{other}" in infos:
            raise wrong(name, f"{other} beside one-byte scales are not supported")
    fitting = [
        (mode, own)
        for mode, own in SMALL.items()
        if len(codes.shape) > 1
        and codes.shape[:-1] == scale.shape[:-1]
        and codes.shape[-1] * 32 == scale.shape[-1] * own[0] * own[1]
    ]
    if not fitting:
        raise wrong(name, f"codes {list(codes.shape)} and one-byte scales {list(scale.shape)} match no mode of MLX")
    mode, (bits, group, kind) = fitting[0]
    stated = text(settings, "mode") or mode, whole(settings, "bits", 1, 8), whole(settings, "group_size", 1, 1 << 20)
    if stated[0] != mode or stated[1] not in (None, bits) or stated[2] not in (None, group):
        values = ", ".join(str(value) for value in stated if value is not None)
        raise wrong(name, f"its shapes are those of {mode}, but config.json says {values}")
    return Found(
        name=name,
        shape=(*codes.shape[:-1], scale.shape[-1] * group),
        scheme=mode,
        bits=bits,
        parts=(codes, scale),
        decode=partial(_decode_small, name, codes, replace(scale, dtype=kind), (bits, group)),
        dtype="BF16",
        held=partial(_held_small, name, codes, replace(scale, dtype=kind), (bits, group)),
    )


def _held_small(name: str, codes: TensorInfo, scale: TensorInfo, mode: tuple[int, int], read: Read) -> Held:
    bits, group = mode
    return held(read, codes, scale, name, scale.shape[-1] * group, bits=bits)


def _decode_small(
    name: str, codes: TensorInfo, scale: TensorInfo, mode: tuple[int, int], read: Read, first: int, last: int
) -> Floats:
    bits, group = mode
    rows, groups, size = last - first, scale.shape[-1], codes.shape[-1] * 4
    own = scales(read, scale, name, first * groups, rows * groups).reshape(rows, groups)
    raw = read(codes.name, first * size, rows * size)
    return small_floats(raw, (rows, groups * group), own, group, "F4" if bits == 4 else "F8_E4M3")


def _affine(infos: Mapping[str, TensorInfo], name: str, config: _Config) -> Found:
    stored = _stored(infos, name, config)
    return Found(
        name=name,
        shape=(*stored.codes.shape[:-1], stored.cols),
        scheme=scheme_name(stored.bits, stored.group, "float"),
        bits=stored.bits,
        parts=(stored.codes, stored.scales, stored.biases),
        decode=partial(_decode, stored),
        held=partial(_held, stored),
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights stored as codes in 32-bit words with scales beside them, and biases where those are floats."""
    stems = [name.removesuffix(".weight") for name, i in infos.items() if i.dtype == "U32" and name.endswith(".weight")]
    stems = [stem for stem in stems if f"{stem}.scales" in infos or f"{stem}.biases" in infos]
    if not stems:
        return []
    found, stated = [], _Config(config)
    for stem in stems:
        scale = infos.get(f"{stem}.scales")
        small = scale is not None and scale.dtype == "U8"
        found.append((_small if small else _affine)(infos, f"{stem}.weight", stated))
    return found
