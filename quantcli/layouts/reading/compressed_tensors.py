"""compressed-tensors: packed integers, and integers or 8-bit floats one to a byte.

pack-quantized, for a weight X of b bits [out, in] in groups of g along in (b from 2 to 8):

    X_packed      I32                [out, ceil(in*b/32)]   codes u = q + 2^(b-1) in b bits each, low bits first, across
                                                            words; each row fills whole words
    X_scale       F16, BF16 or F32   [out, in/g]; [out, 1] per channel; [1] per tensor
    X_zero_point  I32                [ceil(out*b/32), in/g]   asymmetric: z = zero point + 2^(b-1), the stream running
                                                            down each column; I8 in the scale's shape where it is not
                                                            packed: the signed zero point, always so per tensor
    X_shape       I64                [2]                    out and in
    X_g_idx       I32                [in]                   older files: the group of every column

int-quantized, naive-quantized and float-quantized differ only in name:

    X             I8 or F8_E4M3      [out, in]              q
    X_scale       as above, or [ceil(out/h), ceil(in/w)] for blocks of h x w
    X_zero_point  I8                 in the scale's shape

The weight is (q - zero point) * scale. The library multiplies in the scale's dtype; here it is float32, which rounds
least, as for native files. Before release 0.18 words held 32 // b whole codes of 3, 5, 6 or 7 bits, and nothing in
their top bits. Such a row has more words, always so from 160 columns on; where both fit, the `version` of config.json
tells, and without it codes are taken to cross words. The codes 0 to 7 of 4 bits are the bytes `10 32 54 76`, and q from
-8 to 1 the words 0x76543210 0x00000098.

Shapes tell bits and groups wherever X_shape can be read; without it config.json must.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli import kernels
from quantcli.dtypes import to_float32
from quantcli.kernels import INTEGER, CodeGrid, QuantParams
from quantcli.layouts.reading import ForeignLayout, Found, Read
from quantcli.layouts.reading._parts import (
    CONFIG_HINT,
    FLOATS,
    floats,
    part,
    scaled,
    scheme_name,
    section,
    small_float_weight,
    text,
    whole,
    wrong,
)
from quantcli.patterns import module_of
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats

BITS = range(2, 9)
PLAIN = {"I8": "int", "F8_E4M3": "fp8-e4m3", "F8_E5M2": "fp8-e5m2"}
"""Dtypes of codes one to a byte, and the formats they are."""

KNOWN = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized", "mixed-precision", "dense")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A weight as a matrix, and its parts. granularity: `tensor`, `channel`, `group` or `block`; group: columns that
    share a scale; height: rows that do. dense: codes cross words. stated: the stored shape; checked: whether it has
    been read, or there is none."""

    name: str
    shape: tuple[int, ...]
    rows: int
    cols: int
    bits: int
    granularity: str
    group: int
    codes: TensorInfo
    scale: TensorInfo
    zero: TensorInfo | None
    index: TensorInfo | None = None
    stated: TensorInfo | None = None
    checked: bool = True
    dense: bool = True
    height: int = 1

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.cols // self.group)


def _settings(config: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """What config.json may say of a weight: the groups that name its module, else those that name classes or
    patterns. Raises DataError when the format is not known."""
    whole_model = section(config, "quantization_config")
    if text(whole_model, "quant_method") not in (None, "compressed-tensors"):
        return []
    groups = section(whole_model, "config_groups")
    named, general = [], []
    for key in groups:
        group = section(groups, key)
        targets = group.get("targets")
        targets = targets if isinstance(targets, list) else []
        weights = section(group, "weights")
        own = {
            **weights,
            "strategy": text(weights, "strategy"),
            "format": text(group, "format") or text(whole_model, "format"),
        }
        if module_of(name) in targets:
            named.append(own)
        elif any(isinstance(t, str) and (t.startswith("re:") or "." not in t) for t in targets):
            general.append(own)
    found = named or general
    formats = [f for own in found if (f := own["format"]) is not None]
    if formats and not any(f in KNOWN for f in formats):
        raise wrong(name, f"compressed-tensors' format {formats[0]} is not known here")
    return [own for own in found if own["format"] is None or own["format"] in KNOWN]


def _words(cols: int, bits: int, dense: bool) -> int:
    """32-bit words of one row."""
    return -(-cols * bits // 32) if dense else -(-cols // (32 // bits))


def _packings(cols: int, words: int) -> list[tuple[int, bool]]:
    """Bits, and whether codes cross words, that give so many words to a row; those that do cross come first."""
    return [(b, dense) for dense in (True, False) for b in BITS if _words(cols, b, dense) == words]


def _columns(name: str, words: int, groups: int, settings: list[dict[str, Any]]) -> int:
    """Columns by what config.json says, where the shape cannot be read: as many as the groups have, or else as many as
    there is room for."""
    found = set()
    for own in settings:
        bits, size = whole(own, "num_bits", 1, 16), whole(own, "group_size", -1, 1 << 30)
        if own["strategy"] == "group" and size is not None and size > 0:
            found.add(size * groups)
        elif bits is not None:
            found.add(words * 32 // bits)
    if len(found) != 1:
        raise wrong(name, "how many columns it has cannot be told from its shapes", CONFIG_HINT)
    return found.pop()


def _agrees(own: Mapping[str, Any], bits: int, cols: int, groups: int) -> bool:
    """Whether config.json's figures, where it gives any, are those of the shapes."""
    said, size = whole(own, "num_bits", 1, 16), whole(own, "group_size", -1, 1 << 30)
    if said is not None and said != bits:
        return False
    if own["strategy"] in ("channel", "tensor"):
        return groups == 1
    return own["strategy"] != "group" or size is None or size < 1 or size * groups == cols


def _shape(info: TensorInfo, name: str, codes: TensorInfo, read: Read) -> tuple[int, ...]:
    """The stored shape. Raises DataError when it is not one of these codes."""
    if info.numel > 64:
        raise wrong(name, f"its shape has {info.numel} dimensions")
    raw = read(info.name, 0, info.nbytes).view("<i8" if info.dtype == "I64" else "<i4")
    shape, lead = tuple(int(n) for n in raw), codes.shape[:-1]
    if len(shape) != len(codes.shape) or shape[:-1] != lead or shape[-1] < 1:
        raise wrong(name, f"its shape {list(shape)[:8]} is not one of codes {list(codes.shape)}")
    return shape


def _granularity(name: str, lead: tuple[int, ...], scale: TensorInfo, settings: list[dict[str, Any]]) -> str:
    """What shares a scale; blocks are left to who knows their size."""
    if scale.numel == 1 and len(scale.shape) < 2:
        return "tensor"
    if scale.shape[:-1] != lead or len(scale.shape) != len(lead) + 1:
        raise wrong(name, f"scales {list(scale.shape)} do not go with {list(lead)} rows")
    strategies = {own["strategy"] for own in settings}
    return "channel" if scale.shape[-1] == 1 and strategies != {"group"} else "group"


def _zero(infos: Mapping[str, TensorInfo], name: str, settings: list[dict[str, Any]]) -> TensorInfo | None:
    """The zero points. Raises DataError when config.json says there are some and there are none."""
    if f"{name}_zero_point" in infos:
        return part(infos, f"{name}_zero_point", name, ("I32", "I8"))
    if settings and all(own.get("symmetric") is False for own in settings):
        raise wrong(name, f"{name}_zero_point is missing")
    return None


def _check_zero(stored: _Stored) -> None:
    zero = stored.zero
    if zero is None or (zero.dtype == "I8" and zero.shape == stored.scale.shape):
        return
    packed = (_words(stored.rows, stored.bits, stored.dense), stored.groups)
    if stored.granularity == "tensor" or zero.dtype != "I32" or zero.shape != packed:
        raise wrong(stored.name, f"zero points {zero.dtype} {list(zero.shape)} do not go with the scales")


def _older(config: Mapping[str, Any]) -> bool:
    """Whether config.json is of a release before 0.18, whose codes did not cross words."""
    found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", text(section(config, "quantization_config"), "version") or "")
    return found is not None and (int(found[1]), int(found[2])) < (0, 18)


def _one_bits(
    name: str, words: int, cols: int, groups: int, settings: list[dict[str, Any]], *, older: bool
) -> tuple[int, bool]:
    """Bits of a code and whether codes cross words."""
    fitting = _packings(cols, words)
    agreed = [f for f in fitting if any(_agrees(own, f[0], cols, groups) for own in settings)] if settings else fitting
    if not agreed:
        what = "is not what config.json says" if fitting else "fits no width"
        raise wrong(name, f"{words} words and {groups} scales for {cols} columns: that {what}")
    usual = [(bits, dense) for bits, dense in agreed if dense is (not older or 32 % bits == 0)] or agreed
    if len({bits for bits, _ in usual}) > 1:
        raise wrong(name, f"{words} words for {cols} columns fit several widths", CONFIG_HINT)
    return usual[0]


def _packed(infos: Mapping[str, TensorInfo], name: str, config: Mapping[str, Any], read: Read | None) -> _Stored:
    settings = _settings(config, name)
    for other in ("offset", "codebook", "global_scale"):
        if f"{name}_{other}" in infos:
            raise wrong(name, f"a {other} beside packed codes is not known here")
    codes, scale = part(infos, f"{name}_packed", name, ("I32",)), part(infos, f"{name}_scale", name, FLOATS)
    if len(codes.shape) < 2:
        raise wrong(name, f"codes have {len(codes.shape)} dimension")
    stated = part(infos, f"{name}_shape", name, ("I64", "I32")) if f"{name}_shape" in infos else None
    lead, words = codes.shape[:-1], codes.shape[-1]
    granularity = _granularity(name, lead, scale, settings)
    groups = 1 if granularity == "tensor" else scale.shape[-1]
    if stated is not None and read is not None:
        shape = _shape(stated, name, codes, read)
    else:
        shape = (*lead, _columns(name, words, groups, settings))
    cols = shape[-1]
    bits, dense = _one_bits(name, words, cols, groups, settings, older=_older(config))
    if cols % groups:
        raise wrong(name, f"{cols} columns are not {groups} groups of one size")
    index = part(infos, f"{name}_g_idx", name, ("I32", "I64")) if f"{name}_g_idx" in infos else None
    if index is not None and index.shape != (cols,):
        raise wrong(name, f"g_idx {list(index.shape)} does not go with {cols} columns")
    stored = _Stored(
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
    """Height and width of the blocks that share a scale, where config.json says there are some."""
    blocks = [own.get("block_structure") for own in settings if own["strategy"] == "block"]
    if not blocks:
        return None
    if not isinstance(blocks[0], list) or [type(n) for n in blocks[0]] != [int, int] or min(blocks[0]) < 1:
        raise wrong(name, "config.json does not say how large its blocks are")
    height, width = blocks[0]
    rows, cols = info.shape if len(info.shape) == 2 else (0, 0)
    if scale.shape != (-(-rows // height), -(-cols // width)):
        raise wrong(name, f"scales {list(scale.shape)} are not those of blocks of {height} x {width}")
    return height, width


def _plain(infos: Mapping[str, TensorInfo], name: str, config: Mapping[str, Any]) -> _Stored:
    info, settings = part(infos, name, name, tuple(PLAIN)), _settings(config, name)
    scale = part(infos, f"{name}_scale", name, FLOATS)
    if len(info.shape) < 2:
        raise wrong(name, f"codes have {len(info.shape)} dimension")
    block = _block(name, info, scale, settings)
    lead, cols = info.shape[:-1], info.shape[-1]
    granularity = "block" if block else _granularity(name, lead, scale, settings)
    groups = 1 if granularity == "tensor" else scale.shape[-1]
    if block is None and cols % groups:
        raise wrong(name, f"{cols} columns are not {groups} groups of one size")
    widths = {n for own in settings if (n := whole(own, "num_bits", 1, 8)) is not None}
    bits = widths.pop() if len(widths) == 1 and info.dtype == "I8" else 8
    if settings and not any(_agrees({**own, "num_bits": None}, bits, cols, groups) for own in settings):
        raise wrong(name, f"{groups} scales for {cols} columns: that is not what config.json says")
    zero = _zero(infos, name, settings) if info.dtype == "I8" else None
    if zero is not None and (zero.dtype != "I8" or zero.shape != scale.shape or block):
        raise wrong(name, f"zero points {zero.dtype} {list(zero.shape)} do not go with the scales")
    height, group = block or (1, cols // groups)
    return _Stored(
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


def _scheme(stored: _Stored) -> str:
    kind = PLAIN.get(stored.codes.dtype, "int")
    if stored.granularity == "block":
        where: str = f"b{stored.height}x{stored.group}"
        return (f"w{stored.bits}" if kind == "int" else kind) + where
    group = stored.group if stored.granularity == "group" else stored.granularity
    name = scheme_name(stored.bits, group, "" if stored.zero is None else "int")
    return name if kind == "int" else name.replace(f"w{stored.bits}", kind, 1)


def _whole_words(words: NDArray[Any], cols: int, bits: int) -> NDArray[np.uint8]:
    """Codes (rows, cols) of words that hold 32 // bits whole codes each."""
    held = 32 // bits
    codes = np.empty((*words.shape, held), np.uint8)
    for i in range(held):
        codes[:, :, i] = (words >> np.uint32(i * bits)) & np.uint32((1 << bits) - 1)
    return codes.reshape(len(words), words.shape[1] * held)[:, :cols]


def _signed_zeros(stored: _Stored, zero: TensorInfo, read: Read, first: int, last: int) -> Floats:
    """Zero points as they are stored one to a byte (last - first, groups), or (1, 1) for the tensor."""
    start, end = (0, 1) if stored.granularity == "tensor" else (first, last)
    raw = read(zero.name, start * stored.groups, (end - start) * stored.groups)
    return raw.view(np.int8).astype(np.float32).reshape(-1, stored.groups)


def _packed_zeros(stored: _Stored, zero: TensorInfo, read: Read, first: int, last: int) -> Floats:
    """Unsigned zero points (last - first, groups) of streams that run down the columns."""
    groups, bits = stored.groups, stored.bits
    values, words = (32, bits) if stored.dense else (32 // bits, 1)
    start, stop = first // values, -(-last // values)
    begin, end = start * words, min(stop * words, zero.shape[0])
    raw = read(zero.name, begin * groups * 4, (end - begin) * groups * 4)
    columns = np.ascontiguousarray(raw.view("<u4").reshape(-1, groups))
    count = min(stop * values, stored.rows) - start * values
    codes = packing.unpack_columns(columns, count, bits) if stored.dense else _whole_words(columns.T, count, bits).T
    return np.array(codes[first - start * values : last - start * values], np.float32, order="C")


def _zeros(stored: _Stored, read: Read, first: int, last: int) -> Floats | None:
    """Zero points of unsigned codes."""
    if stored.zero is None:
        return None
    if stored.zero.dtype == "I32":
        return _packed_zeros(stored, stored.zero, read, first, last)
    zeros = _signed_zeros(stored, stored.zero, read, first, last)
    zeros += np.float32(1 << (stored.bits - 1))
    return zeros


def _scales(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    """Scales (last - first, groups), or (1, 1) for the tensor."""
    if stored.granularity == "tensor":
        return floats(read, stored.scale, stored.name, 0, 1).reshape(1, 1)
    start, end, groups = first // stored.height, -(-last // stored.height), stored.groups
    found = floats(read, stored.scale, stored.name, start * groups, (end - start) * groups).reshape(-1, groups)
    return found if stored.height == 1 else found[np.arange(first, last) // stored.height - start]


def _group_of(stored: _Stored, read: Read) -> NDArray[np.intp] | None:
    """The group of every column where columns of a group do not lie together."""
    if stored.index is None:
        return None
    raw = read(stored.index.name, 0, stored.index.nbytes)
    found = raw.view("<i4" if stored.index.dtype == "I32" else "<i8").astype(np.intp)
    if (found == -1).any():
        return None
    if found.min() < 0 or found.max() >= stored.groups:
        raise wrong(stored.name, f"g_idx names a group that is not among {stored.groups}")
    return found


def _decode_packed(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    if not stored.checked and stored.stated is not None:
        shape = _shape(stored.stated, stored.name, stored.codes, read)
        if shape != stored.shape:
            raise wrong(stored.name, f"its shape is {list(shape)[:8]}, not {list(stored.shape)}")
    rows, size, bits = last - first, stored.codes.shape[-1] * 4, stored.bits
    packed: Bytes = read(stored.codes.name, first * size, rows * size)
    scale, zero = _scales(stored, read, first, last), _zeros(stored, read, first, last)
    group_of = _group_of(stored, read)
    if not stored.dense:
        packed = packing.pack(_whole_words(packed.view("<u4").reshape(rows, size // 4), stored.cols, bits), bits)
    grid = CodeGrid(mode=INTEGER, bits=bits, umin=0, umax=(1 << bits) - 1, zero=1 << (bits - 1))
    if group_of is None:
        return kernels.load().decode(packed, (rows, stored.cols), stored.group, QuantParams(scale, zero), grid)
    out = packing.unpack(packed, rows, stored.cols, bits).astype(np.float32)
    own = np.full((1, 1), grid.zero, np.float32) if zero is None else zero
    return scaled(out, scale[:, group_of], np.broadcast_to(own, scale.shape)[:, group_of], 1)


def _decode_plain(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    rows, cols = last - first, stored.cols
    raw = read(stored.codes.name, first * cols, rows * cols)
    codes = raw.view(np.int8).astype(np.float32) if stored.codes.dtype == "I8" else to_float32(raw, stored.codes.dtype)
    out, scale = codes.reshape(rows, cols), _scales(stored, read, first, last)
    if stored.granularity != "block":
        zero = None if stored.zero is None else _signed_zeros(stored, stored.zero, read, first, last)
        return scaled(out, scale, zero, stored.group)
    with np.errstate(over="ignore"):
        for group in range(stored.groups):
            out[:, group * stored.group : (group + 1) * stored.group] *= scale[:, group : group + 1]
    return out


def _refuse(infos: Mapping[str, TensorInfo], name: str) -> None:
    """Raise DataError for layouts of other kinds under the same names."""
    codes, scale = infos[f"{name}_packed"], infos.get(f"{name}_scale")
    if name in infos:
        raise wrong(name, "it is stored packed and as it is")
    if codes.dtype == "U8":
        scales = f" with {scale.dtype} scales" if scale else ""
        raise wrong(name, f"packed bytes{scales} are not known here")


def _found(stored: _Stored, *, packed: bool) -> Found:
    parts = (stored.codes, stored.scale, stored.zero, stored.index, stored.stated)
    return Found(
        name=stored.name,
        shape=stored.shape,
        scheme=_scheme(stored),
        bits=stored.bits,
        parts=tuple(p for p in parts if p is not None),
        unit=1,
        decode=partial(_decode_packed if packed else _decode_plain, stored),
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """What is stored as packed integers with a scale, or as bytes with one."""
    found = []
    for full in infos:
        name = full.removesuffix("_packed")
        scale = infos.get(f"{name}_scale")
        if small_float_weight(infos, full):
            continue
        if name != full and (name.endswith(".weight") or scale is not None):
            _refuse(infos, name)
            found.append(_found(_packed(infos, name, config, read), packed=True))
        elif infos[full].dtype in PLAIN and f"{full}_scale" in infos and f"{full}_packed" not in infos:
            found.append(_found(_plain(infos, full, config), packed=False))
    return found


PROVIDES = ForeignLayout(summary="compressed-tensors: pack-, int-, naive- and float-quantized", find=find)
