"""GPTQ: codes down the columns of the turned weight, zero points along the outputs, a group for every input.

A weight of b bits [out, in] (b is 2, 3, 4 or 8) is stored turned, in G groups of inputs, as

    X.qweight  I32                [in*b/32, out]   codes u from 0 to 2^b-1; the stream of a column runs down the words
    X.qzeros   I32                [G, out*b/32]    zero points, the stream running along the outputs
    X.scales   F16, BF16 or F32   [G, out]
    X.g_idx    I32                [in]             the group of every input; left out, inputs i*g to i*g+g-1 are group i

and is (u - z) * scale, here in float32. A stream holds b bits for each value, low bits first, across words. `gptq_v2`
stores z; `gptq`, the first version, stores z-1 in b bits, so that 4-bit zero points of 8 are words 0x77777777 and
0x88888888 in the second. No tensor tells the two apart: `checkpoint_format` in config.json does, and stands for the
first where it is missing. Every call reads all of the codes, piece by piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.layouts.reading import ForeignLayout, Found, Read
from quantcli.layouts.reading._parts import (
    CONFIG_HINT,
    FLOATS,
    across_outputs,
    block_rows,
    columns,
    float_columns,
    group_size,
    grouping,
    matrix,
    part,
    scheme_name,
    section,
    strips,
    text,
    whole,
    wrong,
)
from quantcli.tensors import packing
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats

BITS = (2, 3, 4, 8)
VERSIONS = {"gptq": 1, "gptq_v2": 0}
"""What is added to a stored zero point."""


@dataclass(frozen=True, slots=True)
class _Stored:
    name: str
    bits: int
    rows: int
    cols: int
    groups: int
    size: int | None
    added: int
    codes: TensorInfo
    zeros: TensorInfo
    scales: TensorInfo
    indices: TensorInfo | None


def _added(name: str, settings: Mapping[str, Any]) -> int:
    """What is added to a stored zero point, by the version config.json states."""
    method = text(settings, "quant_method")
    if method is None:
        raise wrong(name, "GPTQ's first version and its second look the same", CONFIG_HINT)
    version = text(settings, "checkpoint_format") or text(settings, "format") or "gptq"
    if method != "gptq" or version not in VERSIONS:
        raise wrong(name, f"GPTQ as {version if method == 'gptq' else method} is not known here")
    return VERSIONS[version]


def _bits(name: str, words: int, cols: int | None, settings: Mapping[str, Any]) -> int:
    """Bits of a code: the shapes tell where the number of inputs is known, config.json must agree or tells."""
    said = whole(settings, "bits", 1, 32)
    if settings.get("dynamic") and cols is not None:
        said = None
    bits = said if cols is None else words * 32 // cols
    if bits is None:
        raise wrong(name, "without g_idx the shapes fit several widths", CONFIG_HINT)
    if bits not in BITS or (cols is not None and words * 32 != bits * cols):
        raise wrong(name, f"{words} words are no codes of {f'{bits} bits' if cols is None else f'{cols} inputs'}")
    if said not in (None, bits):
        raise wrong(name, f"its codes have {bits} bits, and config.json says {said}")
    return bits


def _stored(infos: Mapping[str, TensorInfo], name: str, settings: Mapping[str, Any]) -> _Stored:
    stem = name.removesuffix(".weight")
    codes = part(infos, f"{stem}.qweight", name, ("I32",))
    zeros = part(infos, f"{stem}.qzeros", name, ("I32",))
    scales = part(infos, f"{stem}.scales", name, FLOATS)
    indices = part(infos, f"{stem}.g_idx", name, ("I32", "I64")) if f"{stem}.g_idx" in infos else None
    (words, rows), (groups, outputs) = matrix(codes, name), matrix(scales, name)
    bits = _bits(name, words, indices.numel if indices else None, settings)
    if outputs != rows or rows * bits % 32 or matrix(zeros, name) != (groups, rows * bits // 32) or words * 32 % bits:
        shapes = ", ".join(str(list(i.shape)) for i in (codes, zeros, scales))
        raise wrong(name, f"codes, zero points and scales of {bits} bits do not go together: {shapes}")
    cols = words * 32 // bits
    size = None if settings.get("dynamic") else group_size(settings, name, groups, cols)
    if indices is None and size is None and cols % groups:
        raise wrong(name, f"{groups} groups of {cols} inputs differ in size", CONFIG_HINT)
    return _Stored(name, bits, rows, cols, groups, size, _added(name, settings), codes, zeros, scales, indices)


def _group_of(stored: _Stored, read: Read) -> NDArray[np.intp]:
    """The group of every input."""
    if stored.indices is None:
        size = stored.cols // stored.groups if stored.size is None else stored.size
        return np.arange(stored.cols) // (stored.cols if size == -1 else size)
    raw = read(stored.indices.name, 0, stored.indices.nbytes)
    found = raw.view("<i4" if stored.indices.dtype == "I32" else "<i8").astype(np.intp)
    if found.min() < 0 or found.max() >= stored.groups:
        raise wrong(stored.name, f"g_idx names a group that is not among {stored.groups}")
    return found


def _zeros(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    """Zero points (last - first, groups) of outputs first to last."""
    bits, start = stored.bits, first // 32 * 32
    count = min(-(-last // 32) * 32, stored.rows) - start
    words = np.ascontiguousarray(columns(read, stored.zeros, start * bits // 32, (start + count) * bits // 32))
    codes = packing.unpack(words.view(np.uint8), stored.groups, count, bits)[:, first - start : last - start]
    zeros = (codes.T.astype(np.uint16) + np.uint16(stored.added)) & np.uint16((1 << bits) - 1)
    return np.array(zeros, np.float32, order="C")


def _decode(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    bits, rows = stored.bits, last - first
    group, zero = _group_of(stored, read), _zeros(stored, read, first, last)
    scale = float_columns(read, stored.scales, stored.name, first, last)
    out = np.empty((rows, stored.cols), np.float32)
    for word, words in strips(read, stored.codes, first, last, bits):
        start, count = word * 32 // bits, len(words) * 32 // bits
        codes = packing.unpack(np.ascontiguousarray(words.T).view(np.uint8), rows, count, bits)
        piece, own = out[:, start : start + count], group[start : start + count]
        np.subtract(codes, zero[:, own], out=piece)
        with np.errstate(over="ignore"):
            piece *= scale[:, own]
    return out


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """What is stored as codes running down the inputs."""
    settings = section(config, "quantization_config")
    found = []
    for stem in [n.removesuffix(".qweight") for n in infos if n.endswith(".qweight")]:
        if across_outputs(infos, stem, text(settings, "quant_method")):
            continue
        stored = _stored(infos, f"{stem}.weight", settings)
        group = grouping(stored.size, stored.groups, stored.cols)
        indices = (stored.indices,) if stored.indices else ()
        found.append(
            Found(
                name=stored.name,
                shape=(stored.rows, stored.cols),
                scheme=scheme_name(stored.bits, group, "" if settings.get("sym") is True else "int"),
                bits=stored.bits,
                parts=(stored.codes, stored.zeros, stored.scales, *indices),
                unit=block_rows(stored.cols),
                decode=partial(_decode, stored),
            )
        )
    return found


PROVIDES = ForeignLayout(summary="GPTQ, both versions: qweight, qzeros, scales and g_idx", find=find)
