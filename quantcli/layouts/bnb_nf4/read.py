"""Reading bitsandbytes' weights: codes of 4 bits with their description, and signed bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.dtypes import LONG_NAMES
from quantcli.errors import DataError, printable
from quantcli.formats.nf4 import LEVELS as NF4
from quantcli.layouts.reader import Found, Held, Read
from quantcli.layouts.regrouped import Regrouped, plain
from quantcli.layouts.small import looked_up, table
from quantcli.layouts.stored import FLOATS, filled_up, floats, part, scheme_name, wrong
from quantcli.strict import strict_json
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Bytes, Floats
    from quantcli.kernels.codebook import Codebook

STATE = ".quant_state.bitsandbytes__"
"""The part between the name of a weight and its type in the name of its description."""

STORAGE = ("U8", "I8", "F16", "BF16", "F32")
"""Dtypes that codes are stored as; those other than U8 let training wrap them like the weights around them."""

STATE_LIMIT = 1 << 16
"""Limit of the bytes of the JSON; the library writes some 200."""

_FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / np.float32(12)
TABLES: Mapping[str, Floats] = {"nf4": NF4.astype(np.float32), "fp4": np.concatenate([_FP4, np.float32(0) - _FP4])}
"""Levels by code. FP4 is not E2M1: its smallest magnitude is a 192nd of the largest, and the codes do not rise."""

NAMES = {"nf4": "nf4", "fp4": "bnb-fp4"}
MAP_ERROR = 1e-6
"""How far a stored level may be from the library's, for different roundings of the division by the largest."""

BY_127 = np.float32(7.874015718698502e-3)
ORDERS = {1: "col32", 2: "col_turing", 3: "col_ampere"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Nested:
    """How a nested absmax is stored as codes."""

    block: int
    offset: float
    absmax: TensorInfo
    levels: TensorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    name: str
    kind: str
    shape: tuple[int, ...]
    block: int
    codes: TensorInfo
    absmax: TensorInfo
    nested: _Nested | None
    dtype: str


def _whole(state: Mapping[str, Any], key: str, place: str) -> int:
    value = state.get(key)
    if type(value) is not int or not 1 <= value <= 1 << 20:
        raise wrong(place, f"its {key} {printable(repr(value), 40)} is not a whole number from 1 to 1048576")
    return value


def _shape(state: Mapping[str, Any], place: str) -> tuple[int, ...]:
    value = state.get("shape")
    if not isinstance(value, list) or not 1 <= len(value) <= 8 or not all(type(n) is int and n > 0 for n in value):
        raise wrong(place, f"its shape {printable(repr(value), 60)} is not valid for a weight")
    return tuple(value)


def _state(info: TensorInfo, kind: str, read: Read | None, name: str) -> dict[str, Any]:
    """The JSON that describes a weight."""
    if read is None:
        raise wrong(name, "its shape is stored in a tensor whose data is not available")
    if info.dtype != "U8" or info.nbytes > STATE_LIMIT:
        raise wrong(info.name, f"{info.dtype} of {info.nbytes} bytes is not a description of a weight")
    state = strict_json(read(info.name, 0, info.nbytes).tobytes(), printable(info.name))
    if not isinstance(state, dict) or state.get("quant_type") != kind:
        raise wrong(info.name, f"it does not describe a weight of {kind}")
    return state


def _nested(infos: Mapping[str, TensorInfo], name: str, state: Mapping[str, Any], place: str, count: int) -> _Nested:
    block = _whole(state, "nested_blocksize", place)
    offset: Any = state.get("nested_offset")
    if type(offset) not in (int, float) or not abs(offset) < 3e38:
        raise wrong(place, f"its nested_offset {printable(repr(offset), 40)} is not a float32 number")
    absmax = part(infos, f"{name}.nested_absmax", name, ("F32",))
    levels = part(infos, f"{name}.nested_quant_map", name, ("F32",))
    if absmax.numel != -(-count // block) or levels.numel != 256:
        raise wrong(name, f"nested_absmax {list(absmax.shape)} and nested_quant_map {list(levels.shape)} do not "
                          f"match {count} blocks")  # fmt: skip
    return _Nested(block=block, offset=float(offset), absmax=absmax, levels=levels)


def _check_levels(info: TensorInfo, kind: str, read: Read, name: str) -> None:
    """Raise DataError when the stored levels are not those that the library decodes with."""
    if info.numel != 16:
        raise wrong(name, f"quant_map has {info.numel} levels instead of 16")
    if not np.abs(floats(read, info, name, 0, 16) - TABLES[kind]).max() <= MAP_ERROR:
        raise wrong(
            name, f"its quant_map differs from the levels of {kind}, with which bitsandbytes decodes regardless"
        )


def _stored(infos: Mapping[str, TensorInfo], name: str, kind: str, read: Read | None) -> _Stored:
    if kind not in TABLES:
        raise wrong(name, f"bitsandbytes type {printable(kind, 40)} is not supported")
    place = f"{name}{STATE}{kind}"
    codes = part(infos, name, name, STORAGE)
    state = _state(infos[place], kind, read, name)
    assert read is not None
    shape, block = _shape(state, place), _whole(state, "blocksize", place)
    numel = math.prod(shape)
    if codes.nbytes != -(-numel // 2):
        raise wrong(name, f"{codes.nbytes} bytes of codes do not match the shape {list(shape)}")
    absmax = part(infos, f"{name}.absmax", name, ("U8",) if f"{name}.nested_absmax" in infos else (*FLOATS, "U8"))
    count = -(-numel // block)
    if absmax.numel != count:
        raise wrong(name, f"absmax {list(absmax.shape)} does not match {count} blocks")
    _check_levels(part(infos, f"{name}.quant_map", name, ("F32",)), kind, read, name)
    nested = _nested(infos, name, state, place, count) if absmax.dtype == "U8" else None
    return _Stored(
        name=name,
        kind=kind,
        shape=shape,
        block=block,
        codes=codes,
        absmax=absmax,
        nested=nested,
        dtype=LONG_NAMES.get(str(state.get("dtype")), "F32"),
    )


def _largest(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    """The largest magnitudes of blocks first to last."""
    if stored.nested is None:
        return floats(read, stored.absmax, stored.name, first, last - first)
    codes, own = read(stored.absmax.name, first, last - first), stored.nested
    start, end = first // own.block, -(-last // own.block)
    outer = floats(read, own.absmax, stored.name, start, end - start)
    levels = floats(read, own.levels, stored.name, 0, 256)
    with np.errstate(over="ignore", invalid="ignore"):
        found: Floats = levels[codes] * outer[np.arange(first, last) // own.block - start] + np.float32(own.offset)
    if not np.isfinite(found).all():
        raise wrong(stored.name, "the largest magnitude of a block is not finite")
    return found


@lru_cache(maxsize=2)
def _table(kind: str) -> Codebook:
    return table(TABLES[kind])


def _low_first(packed: Bytes) -> Bytes:
    """Codes of which the first of two is in the low bits of a byte, not in the high ones as bitsandbytes has it."""
    turned: Bytes = packed >> np.uint8(4) | packed << np.uint8(4)
    return turned


def _decode(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    cols, block = stored.shape[-1], stored.block
    begin, end = first * cols, last * cols
    packed = read(stored.codes.name, begin // 2, -(-end // 2) - begin // 2)
    if cols % block == 0 and block % 2 == 0:
        scale = _largest(stored, read, begin // block, end // block).reshape(last - first, -1)
        return looked_up(_low_first(packed), (last - first, cols), scale, block, _table(stored.kind))
    pairs = np.empty((len(packed), 2), np.uint8)
    pairs[:, 0], pairs[:, 1] = packed >> np.uint8(4), packed & np.uint8(15)
    codes = pairs.ravel()[begin % 2 : begin % 2 + end - begin]
    largest = _largest(stored, read, begin // block, -(-end // block))
    out: Floats = TABLES[stored.kind][codes]
    out *= np.repeat(largest, block)[begin % block :][: len(out)]
    return out.reshape(last - first, cols)


def _held(stored: _Stored, read: Read) -> Held | str:
    """The codes of NF4, and the largest magnitudes as scales."""
    cols, block = stored.shape[-1], stored.block
    if stored.kind != "nf4":
        return "only bitsandbytes has its FP4"
    if cols % block:
        return f"its blocks of {block} go on over the end of its rows"

    def packed(first: int, last: int) -> Bytes:
        raw = read(stored.codes.name, first * cols // 2, (last - first) * cols // 2)
        return filled_up(_low_first(raw), (last - first, cols), 4)

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        groups = cols // block
        return _largest(stored, read, first * groups, last * groups).reshape(last - first, groups), None

    return Held(
        format="nf4",
        bits=4,
        group=block,
        offsets="",
        scale_dtype="F32",
        packed=packed,
        params=params,
        dtype=stored.dtype,
    )


def _regrouped(stored: _Stored, read: Read) -> Regrouped | None:
    """Blocks as rows, of which any number follow each other, whatever the weight's own rows are; None where the last
    one is short."""
    block, count = stored.block, math.prod(stored.shape) // stored.block
    if math.prod(stored.shape) % block:
        return None
    starts = partial(_largest, stored, read)
    return Regrouped(
        shape=(count, block),
        group=block,
        bits=4,
        symmetric=True,
        single=False,
        scale_dtype="F32",
        params=lambda rows: (plain(1, starts, rows), None),
        taken=partial(plain, block),
        levels=tuple(np.unique(TABLES[stored.kind]).tolist()),
        exact_scales=stored.nested is None,
    )


def _four_bits(infos: Mapping[str, TensorInfo], key: str, read: Read | None) -> Found:
    name, _, kind = key.rpartition(STATE)
    stored = _stored(infos, name, kind, read)
    parts = [stored.codes, stored.absmax, infos[f"{name}.quant_map"], infos[key]]
    if stored.nested is not None:
        parts += [stored.nested.absmax, stored.nested.levels]
    return Found(
        name=name,
        shape=stored.shape,
        scheme=f"{NAMES[kind]}g{stored.block}" + ("-double" if stored.nested else ""),
        bits=4,
        parts=tuple(parts),
        decode=partial(_decode, stored),
        dtype=stored.dtype,
        held=partial(_held, stored),
        regrouped=partial(_regrouped, stored),
    )


def _check_order(order: TensorInfo | None, read: Read, name: str) -> None:
    """Raise DataError when rows do not lie one after the other."""
    if order is not None and (found := int(read(order.name, 0, 1)[0])):
        raise wrong(name, f"int8 of weight_format {found} ({ORDERS.get(found, 'unknown')}) is not supported",
                    "load and save it with a newer bitsandbytes")  # fmt: skip


def _decode_bytes(
    name: str, codes: TensorInfo, largest: TensorInfo, order: TensorInfo | None, read: Read, first: int, last: int
) -> Floats:
    _check_order(order, read, name)
    cols = codes.shape[1]
    out = read(codes.name, first * cols, (last - first) * cols).view(np.int8).astype(np.float32)
    scaled = out.reshape(last - first, cols)
    with np.errstate(over="ignore"):
        scaled *= floats(read, largest, name, first, last - first)[:, None]
        scaled *= BY_127
    if not np.isfinite(scaled).all():
        raise wrong(name, "a decoded weight is not finite")
    return scaled


def _held_bytes(name: str, codes: TensorInfo, largest: TensorInfo, order: TensorInfo | None, read: Read) -> Held:
    """The codes with largest / 127 as scales, which the library rounds after the product."""
    _check_order(order, read, name)
    cols = codes.shape[1]

    def packed(first: int, last: int) -> Bytes:
        raw = read(codes.name, first * cols, (last - first) * cols)
        return filled_up(raw ^ np.uint8(128), (last - first, cols), 8)

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        return floats(read, largest, name, first, last - first)[:, None] * BY_127, None

    return Held(bits=8, group="channel", offsets="", scale_dtype="F32", packed=packed, params=params, exact=False)


def _eight_bits(infos: Mapping[str, TensorInfo], stem: str, read: Read | None) -> Found:
    name = f"{stem}.weight"
    codes, largest = part(infos, name, name, ("I8",)), part(infos, f"{stem}.SCB", name, ("F32",))
    order = part(infos, f"{stem}.weight_format", name, ("U8",)) if f"{stem}.weight_format" in infos else None
    if len(codes.shape) != 2 or largest.numel != codes.shape[0] or (order is not None and order.numel != 1):
        raise wrong(name, f"SCB {list(largest.shape)} does not match codes {list(codes.shape)}")
    if read is not None:
        _check_order(order, read, name)
    return Found(
        name=name,
        shape=codes.shape,
        scheme=scheme_name(8, "channel"),
        bits=8,
        parts=(codes, largest, *((order,) if order else ())),
        decode=partial(_decode_bytes, name, codes, largest, order),
        held=partial(_held_bytes, name, codes, largest, order),
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights that bitsandbytes describes as 4 bits, and bytes with an SCB beside them."""
    found, seen = [], set[str]()
    for key in infos:
        name = key.rpartition(STATE)[0]
        if name:
            if name in seen:
                raise DataError("it is described twice", place=[printable(name)])
            seen.add(name)
            found.append(_four_bits(infos, key, read))
        stem = key.removesuffix(".SCB")
        if stem != key and f"{stem}.weight" in infos and infos[f"{stem}.weight"].dtype == "I8":
            found.append(_eight_bits(infos, stem, read))
    return found
