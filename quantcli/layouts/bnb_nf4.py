"""bitsandbytes: 4-bit levels in blocks of the flat weight, or signed bytes with the largest magnitude of every row.

NF4 and FP4, for a weight X of n elements in blocks of g:

    X                                 U8  [ceil(n/2), 1]   codes in C order, the first of two in the high bits; the same
                                                           bytes may be called F16, BF16 or F32
    X.absmax                          F32 [ceil(n/g)]      U8 where it is nested: codes of nested_quant_map
    X.quant_map                       F32 [16]             the levels
    X.quant_state.bitsandbytes__nf4   U8  [length]         JSON: quant_type, blocksize, dtype, shape; or __fp4
    X.nested_absmax                   F32 [blocks]         absmax is nested_quant_map[code] * nested_absmax + offset
    X.nested_quant_map                F32 [256]            for nested_blocksize codes; it and nested_offset: in the JSON

and is level * absmax, here in float32; the library rounds it to the JSON's dtype. It takes the levels from its own
tables, whatever quant_map says: a different quant_map is refused, because the library would not decode with it.
nested_quant_map is taken as it stands. A block may end inside a row, a row inside a byte. Codes 0, 15, 7, 8 are the
bytes `0f 78`.

int8, for a weight X.weight [out, in]:

    X.weight         I8   [out, in]   q
    X.SCB            F32  [out]       the largest magnitude of each row
    X.weight_format  U8   []          0 for rows one after the other; older files have other orders, or leave it out

and is q * SCB / 127, the division a product with float32's 1/127, as the library has it.

Writing: NF4 that is not nested, of weights of the format nf4 whose groups are blocks: absmax is the native scale, for
the largest level is 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.architectures import EXPERTS, INITIALIZED, Architecture
from quantcli.dtypes import LONG_NAMES
from quantcli.errors import DataError, printable
from quantcli.formats import fixed_codebook
from quantcli.formats.nf4 import LEVELS as NF4
from quantcli.layouts.config import architecture
from quantcli.layouts.loaders import ignored, not_linear, refuse_skipped, skips, unknown
from quantcli.layouts.pieces import (
    bands,
    facts,
    finer,
    not_a_matrix,
    params,
    plain,
    quantized,
    repeated,
    rounded,
    words,
)
from quantcli.layouts.reader import Found, Read, Reader
from quantcli.layouts.stored import FLOATS, floats, part, scheme_name, wrong
from quantcli.layouts.writer import Accepts, Beside, Codes, Conversion, Job, Piece, Weight, Write, Writer
from quantcli.patterns import module_of
from quantcli.strict import strict_json
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan

if TYPE_CHECKING:
    from quantcli.kernels import Floats

STATE = ".quant_state.bitsandbytes__"
"""The part between the name of a weight and its type in the name of its description."""


# ---- reading ---------------------------------------------------------------------------------------------------------


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


def _decode(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    cols, block = stored.shape[-1], stored.block
    begin, end = first * cols, last * cols
    packed = read(stored.codes.name, begin // 2, -(-end // 2) - begin // 2)
    pairs = np.empty((len(packed), 2), np.uint8)
    pairs[:, 0], pairs[:, 1] = packed >> np.uint8(4), packed & np.uint8(15)
    codes = pairs.ravel()[begin % 2 : begin % 2 + end - begin]
    largest = _largest(stored, read, begin // block, -(-end // block))
    out: Floats = TABLES[stored.kind][codes]
    out *= np.repeat(largest, block)[begin % block :][: len(out)]
    return out.reshape(last - first, cols)


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
        unit=1,
        decode=partial(_decode, stored),
        dtype=stored.dtype,
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
        unit=1,
        decode=partial(_decode_bytes, name, codes, largest, order),
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


# ---- writing ---------------------------------------------------------------------------------------------------------


BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)

_DTYPES = {short: long for long, short in LONG_NAMES.items() if short != "F64"}


def shape(weight: Weight) -> str | None:
    """Why bitsandbytes cannot store a weight: its blocks must not run from one row into the next."""
    why = not_a_matrix(weight)
    if why is None and finer(facts(weight)[1].group, BLOCKS) is None:
        return f"rows of {facts(weight)[1].cols} are not a multiple of 64"
    return why


def module(weight: Weight, model: Architecture) -> str | None:
    """Why transformers or diffusers does not load a quantized weight in this module."""
    own = module_of(weight.info.name)
    name, kind = model.module(own), model.holder(own)
    if kind == EXPERTS:
        return "transformers stacks experts while it loads them, which takes floating-point weights"
    if any(skips(model)(kept, name) for kept in model.float32):
        return f"{model.library} never quantizes this layer of such a model"
    return None if kind == INITIALIZED else not_linear(weight, model)


def _job(weight: Weight) -> Job:
    scheme, plan = facts(weight)
    name, block = weight.info.name, finer(plan.group, BLOCKS)
    assert block is not None
    state = {
        "quant_type": "nf4",
        "blocksize": block,
        "dtype": _DTYPES.get(weight.info.dtype, "float32"),
        "shape": list(weight.info.shape),
    }
    described = np.frombuffer(json.dumps(state).encode(), np.uint8)
    outputs = (
        TensorInfo(name, "U8", (weight.info.numel // 2, 1)),
        TensorInfo(f"{name}.absmax", "F32", (weight.info.numel // block,)),
        TensorInfo(f"{name}.quant_map", "F32", (16,)),
        TensorInfo(f"{name}{STATE}nf4", "U8", (described.size,)),
    )

    def piece(span: TileSpan, codes: Codes, write: Write) -> bool:
        packed = words(codes, span, plan, 4)
        at = span.row * plan.cols + span.col
        write(0, at // 2, (packed >> np.uint8(4)) | (packed << np.uint8(4)))
        stored, exact = rounded(params(codes, span, plan, scheme)[0], "F32", name)
        write(1, at // block * 4, np.ascontiguousarray(repeated(stored, span, plan, block)))
        return exact

    def describe(codes: Codes, write: Write) -> bool:
        write(2, 0, np.ascontiguousarray(fixed_codebook(scheme).levels[0], "<f4"))
        write(3, 0, described)
        return True

    def pieces() -> Iterator[Piece]:
        yield describe
        for span in bands(plan, 4, block):
            yield partial(piece, span)

    return Job(outputs=outputs, pieces=pieces)


def convert(tensors: Sequence[Weight], beside: Beside) -> Conversion:
    """The model as bitsandbytes stores it."""
    dtypes = {w.info.dtype for w in quantized(tensors)}
    model = architecture(beside)
    kept = ignored(tensors, model, linear=True)
    refuse_skipped(tensors, kept, skips(model))
    settings = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": _DTYPES.get(dtypes.pop(), "float32") if len(dtypes) == 1 else "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": kept,
    }
    return Conversion(
        jobs={t.info.name: plain(t.info) if t.scheme is None else _job(t) for t in tensors},
        config={"quantization_config": settings},
        header=lambda names: {"format": "pt"},
        notes=[
            "bitsandbytes decodes with its own NF4 levels, whatever quant_map says; they are the native ones",
            *unknown(model),
        ],
    )


# ---- the layout ------------------------------------------------------------------------------------------------------


READS = Reader(summary="bitsandbytes: NF4, FP4 and int8, absmax nested or not", find=find)

WRITES = Writer(
    summary="bitsandbytes NF4: packed codes, absmax and quant_state, for transformers and diffusers",
    keeps="rows that are not a multiple of 64, all but matrices named *.weight",
    accepts=Accepts(formats=("nf4",), bits=(4,), groups=(64,)),
    shape=shape,
    convert=convert,
    module=module,
    usual={"format": "nf4", "group_size": 64},
)
