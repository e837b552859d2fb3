"""The weights of compressed-tensors among some tensors, with their bits and groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from quantcli.errors import printable
from quantcli.layouts import bytewise
from quantcli.layouts.compressed_tensors.decode import Stored, decode_packed, held, regrouped, stated_shape, words_of
from quantcli.layouts.config import CONFIG_HINT, whole
from quantcli.layouts.groups import Stated
from quantcli.layouts.reader import Found, Held, Read
from quantcli.layouts.stored import FLOATS, part, scheme_name, small_float_weight, wrong
from quantcli.patterns import module_of
from quantcli.tensors.info import TensorInfo

BITS = range(2, 9)
PLAIN = {"I8": "int", "F8_E4M3": "fp8-e4m3", "F8_E5M2": "fp8-e5m2"}
"""Dtypes of codes one to a byte, and the formats they are."""


def _packings(cols: int, words: int) -> list[tuple[int, bool]]:
    """Bits, and whether codes cross words, that give this number of words to a row; packings that cross come first."""
    return [(b, dense) for dense in (True, False) for b in BITS if words_of(cols, b, dense) == words]


def _columns(name: str, words: int, groups: int, settings: list[dict[str, Any]]) -> int:
    """Columns by config.json, where the shape cannot be read: as many as the groups have, or else as many as the words
    hold."""
    found = set()
    for own in settings:
        bits, size = whole(own, "num_bits", 1, 16), whole(own, "group_size", -1, 1 << 30)
        if own["strategy"] == "group" and size is not None and size > 0:
            found.add(size * groups)
        elif bits is not None:
            found.add(words * 32 // bits)
    if len(found) != 1:
        raise wrong(name, "its shapes do not give the number of columns", CONFIG_HINT)
    return found.pop()


def _agrees(own: Mapping[str, Any], bits: int, cols: int, groups: int) -> bool:
    """Whether the figures of config.json, where it has any, agree with the shapes."""
    stated, size = whole(own, "num_bits", 1, 16), whole(own, "group_size", -1, 1 << 30)
    if stated is not None and stated != bits:
        return False
    if own["strategy"] in ("channel", "tensor"):
        return groups == 1
    return own["strategy"] != "group" or size is None or size < 1 or size * groups == cols


def _granularity(name: str, lead: tuple[int, ...], scale: TensorInfo, settings: list[dict[str, Any]]) -> str:
    """The granularity of the scales; blocks are left to a caller that knows their size."""
    if scale.numel == 1 and (len(scale.shape) < 2 or math.prod(lead) > 1):
        return "tensor"
    if scale.shape == lead and len(lead) == 1:
        return "channel"
    if scale.shape[:-1] != lead or len(scale.shape) != len(lead) + 1:
        raise wrong(name, f"scales {list(scale.shape)} do not match {list(lead)} rows")
    strategies = {own["strategy"] for own in settings}
    return "channel" if scale.shape[-1] == 1 and strategies != {"group"} else "group"


def _zero(infos: Mapping[str, TensorInfo], name: str, settings: list[dict[str, Any]]) -> TensorInfo | None:
    """The zero points. Raises DataError when config.json says there are some but they are missing."""
    if f"{name}_zero_point" in infos:
        return part(infos, f"{name}_zero_point", name, ("I32", "I8"))
    if settings and all(own.get("symmetric") is False for own in settings):
        raise wrong(name, f"{name}_zero_point is missing")
    return None


def _check_zero(stored: Stored) -> None:
    zero = stored.zero
    if zero is None or (zero.dtype == "I8" and zero.shape == stored.scale.shape):
        return
    packed = (words_of(stored.rows, stored.bits, stored.dense), stored.groups)
    if stored.granularity == "tensor" or zero.dtype != "I32" or zero.shape != packed:
        raise wrong(stored.name, f"zero points {zero.dtype} {list(zero.shape)} do not match the scales")


def _one_bits(
    name: str, words: int, cols: int, groups: int, settings: list[dict[str, Any]], *, older: bool
) -> tuple[int, bool]:
    """Bits of a code and whether codes cross words."""
    fitting = _packings(cols, words)
    agreed = [f for f in fitting if any(_agrees(own, f[0], cols, groups) for own in settings)] if settings else fitting
    if not agreed:
        what = "is not what config.json says" if fitting else "fits no bit width"
        raise wrong(name, f"{words} words and {groups} scales for {cols} columns: that {what}")
    usual = [(bits, dense) for bits, dense in agreed if dense is (not older or 32 % bits == 0)] or agreed
    if len({bits for bits, _ in usual}) > 1:
        raise wrong(name, f"{words} words for {cols} columns fit several bit widths", CONFIG_HINT)
    return usual[0]


def _packed(infos: Mapping[str, TensorInfo], name: str, config: Stated, read: Read | None) -> Stored:
    settings = config.settings(name)
    for other in ("offset", "codebook", "global_scale"):
        if f"{name}_{other}" in infos:
            raise wrong(name, f"a {other} beside packed codes is not supported")
    codes, scale = part(infos, f"{name}_packed", name, ("I32",)), part(infos, f"{name}_scale", name, FLOATS)
    if len(codes.shape) < 2:
        raise wrong(name, f"codes have {len(codes.shape)} dimension")
    stated = part(infos, f"{name}_shape", name, ("I64", "I32")) if f"{name}_shape" in infos else None
    lead, words = codes.shape[:-1], codes.shape[-1]
    granularity = _granularity(name, lead, scale, settings)
    groups = 1 if granularity == "tensor" else scale.shape[-1]
    if stated is not None and read is not None:
        shape = stated_shape(stated, name, codes, read)
    else:
        shape = (*lead, _columns(name, words, groups, settings))
    cols = shape[-1]
    bits, dense = _one_bits(name, words, cols, groups, settings, older=config.older)
    if cols % groups:
        raise wrong(name, f"{cols} columns do not divide into {groups} groups of one size")
    index = part(infos, f"{name}_g_idx", name, ("I32", "I64")) if f"{name}_g_idx" in infos else None
    if index is not None and index.shape != (cols,):
        raise wrong(name, f"g_idx {list(index.shape)} does not match {cols} columns")
    stored = Stored(
        name=name,
        shape=shape,
        rows=math.prod(lead),
        cols=cols,
        bits=bits,
        granularity=granularity,
        group=cols // groups,
        codes=codes,
        scale=scale,
        zero=_zero(infos, name, settings),
        index=index,
        stated=stated,
        checked=stated is None or read is not None,
        dense=dense,
    )
    _check_zero(stored)
    return stored


def _block(name: str, info: TensorInfo, scale: TensorInfo, settings: list[dict[str, Any]]) -> tuple[int, int] | None:
    """Height and width of the blocks that share a scale, where config.json states blocks, or, of 8-bit floats, where
    rows share scales: ModelOpt says nothing of their size."""
    blocks = [own.get("block_structure") for own in settings if own["strategy"] == "block"]
    if not blocks:
        return None if settings or info.dtype == "I8" else _quotient(info, scale)
    if not isinstance(blocks[0], list) or [type(n) for n in blocks[0]] != [int, int] or min(blocks[0]) < 1:
        raise wrong(name, "config.json does not say how large its blocks are")
    height, width = blocks[0]
    rows, cols = info.shape if len(info.shape) == 2 else (0, 0)
    if scale.shape != (-(-rows // height), -(-cols // width)):
        raise wrong(name, f"scales {list(scale.shape)} do not match blocks of {height} x {width}")
    return height, width


def _quotient(info: TensorInfo, scale: TensorInfo) -> tuple[int, int] | None:
    """Height and width of blocks by the shapes, which must divide; None where each row has scales of its own. ModelOpt
    stores the scales of blocks as [down, 1, across, 1] too."""
    shape = scale.shape[::2] if len(scale.shape) == 4 and scale.shape[1] == scale.shape[3] == 1 else scale.shape
    if len(info.shape) != 2 or len(shape) != 2 or scale.numel == 1 or shape[0] == info.shape[0]:
        return None
    (rows, cols), (down, across) = info.shape, shape
    return None if rows % down or cols % across else (rows // down, cols // across)


def _plain(infos: Mapping[str, TensorInfo], name: str, config: Stated) -> Stored:
    info, settings = part(infos, name, name, tuple(PLAIN)), config.settings(name)
    if (smoothed := f"{module_of(name)}.pre_quant_scale") in infos:
        raise wrong(name, f"{printable(smoothed)} beside it, with which inputs are multiplied, is not supported")
    scale = part(infos, f"{name}_scale", name, FLOATS)
    if len(info.shape) < 2:
        raise wrong(name, f"codes have {len(info.shape)} dimension")
    block = _block(name, info, scale, settings)
    lead, cols = info.shape[:-1], info.shape[-1]
    granularity = "block" if block else _granularity(name, lead, scale, settings)
    groups = 1 if granularity == "tensor" or scale.shape == lead else scale.shape[-1]
    if block is None and cols % groups:
        raise wrong(name, f"{cols} columns do not divide into {groups} groups of one size")
    widths = {n for own in settings if (n := whole(own, "num_bits", 1, 8)) is not None}
    bits = widths.pop() if len(widths) == 1 and info.dtype == "I8" else 8
    if settings and not any(_agrees({**own, "num_bits": None}, bits, cols, groups) for own in settings):
        raise wrong(name, f"{groups} scales for {cols} columns contradict config.json")
    zero = _zero(infos, name, settings) if info.dtype == "I8" else None
    if info.dtype != "I8" and f"{name}_zero_point" in infos:
        raise wrong(name, "zero points beside 8-bit floats are not supported")
    if zero is not None and (zero.dtype != "I8" or zero.shape != scale.shape or block):
        raise wrong(name, f"zero points {zero.dtype} {list(zero.shape)} do not match the scales")
    height, group = block or (1, cols // groups)
    return Stored(
        name=name,
        shape=info.shape,
        rows=math.prod(lead),
        cols=cols,
        bits=bits,
        granularity=granularity,
        group=group,
        codes=info,
        scale=scale,
        zero=zero,
        height=height,
    )


def _scheme(stored: Stored) -> str:
    kind = PLAIN.get(stored.codes.dtype, "int")
    if stored.granularity == "block":
        where: str = f"b{stored.height}x{stored.group}"
        return (f"w{stored.bits}" if kind == "int" else kind) + where
    group = stored.group if stored.granularity == "group" else stored.granularity
    name = scheme_name(stored.bits, group, "" if stored.zero is None else "int")
    return name if kind == "int" else name.replace(f"w{stored.bits}", kind, 1)


def _refuse(infos: Mapping[str, TensorInfo], name: str) -> None:
    """Raise DataError for other layouts under the same names."""
    codes, scale = infos[f"{name}_packed"], infos.get(f"{name}_scale")
    if name in infos:
        raise wrong(name, "it is stored both packed and unpacked")
    if codes.dtype == "U8":
        scales = f" with {scale.dtype} scales" if scale else ""
        raise wrong(name, f"packed bytes{scales} are not supported")


def _bytes(stored: Stored) -> bytewise.Bytewise:
    height = stored.rows if stored.granularity == "tensor" else stored.height
    return bytewise.Bytewise(
        name=stored.name, cols=stored.cols, height=height, width=stored.group, codes=stored.codes, scale=stored.scale,
        zero=stored.zero, bits=stored.bits if stored.bits > 1 else 8,
    )  # fmt: skip


def _held(stored: Stored, activations: str, read: Read, *, packed: bool) -> Held | str:
    """The codes, and how inputs are quantized."""
    found = held(stored, read) if packed else bytewise.held(_bytes(stored), read)
    if isinstance(found, str):
        return found
    if stored.granularity == "block":  # of which there may be one alone
        found = replace(found, group=stored.group, height=stored.height)
    return replace(found, activations=activations)


def _found(stored: Stored, activations: str, *, packed: bool) -> Found:
    parts = (stored.codes, stored.scale, stored.zero, stored.index, stored.stated)
    return Found(
        name=stored.name,
        shape=stored.shape,
        scheme=_scheme(stored),
        bits=stored.bits,
        parts=tuple(p for p in parts if p is not None),
        decode=partial(decode_packed, stored) if packed else partial(bytewise.decode, _bytes(stored)),
        dtype=stored.scale.dtype,
        held=partial(_held, stored, activations, packed=packed),
        regrouped=partial(regrouped, stored),
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights that are stored as packed integers with a scale, or as bytes with one."""
    found, stated = [], Stated(config)
    for full in infos:
        name = full.removesuffix("_packed")
        scale = infos.get(f"{name}_scale")
        if small_float_weight(infos, full):
            continue
        if name != full and (name.endswith(".weight") or scale is not None):
            _refuse(infos, name)
            found.append(_found(_packed(infos, name, stated, read), stated.inputs(name), packed=True))
        elif infos[full].dtype in PLAIN and f"{full}_scale" in infos and f"{full}_packed" not in infos:
            found.append(_found(_plain(infos, full, stated), stated.inputs(full), packed=False))
    return found
