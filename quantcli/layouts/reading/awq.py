"""AWQ, its GEMM layout: 4-bit codes across the rows, eight columns of the model's output to a word, in its own order.

A weight [out, in] with groups of g along in, where 8 divides out, is stored turned, as

    X.qweight  I32                [in, out/8]     codes u
    X.qzeros   I32                [in/g, out/8]   zero points z, from 0 to 15
    X.scales   F16, BF16 or F32   [in/g, out]

and is (u - z) * scale, here in float32. Nibble j of word c, the lowest first, belongs to output 8c + 0, 2, 4, 6, 1, 3,
5, 7 for j from 0 to 7: outputs 0 to 7 with the codes 0 to 7 are the word 0x75316420. Every call reads all of the
codes, piece by piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.layouts.reading import ForeignLayout, Found, Read
from quantcli.layouts.reading._parts import (
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
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats

SHIFTS = np.array([0, 16, 4, 20, 8, 24, 12, 28], np.uint32)
"""Where the nibbles of outputs 0 to 7 begin."""


@dataclass(frozen=True, slots=True)
class _Stored:
    name: str
    rows: int
    cols: int
    group: int
    label: int | str
    codes: TensorInfo
    zeros: TensorInfo
    scales: TensorInfo


def _check_variant(name: str, settings: Mapping[str, Any]) -> None:
    if text(settings, "quant_method") != "awq":
        return
    version = text(settings, "version") or text(settings, "checkpoint_format") or "gemm"
    if version != "gemm":
        raise wrong(name, f"AWQ's version {version} is not known here")
    bits = whole(settings, "bits", 1, 16)
    if bits not in (None, 4):
        raise wrong(name, f"AWQ of {bits} bits is not known here")


def _stored(infos: Mapping[str, TensorInfo], name: str, settings: Mapping[str, Any]) -> _Stored:
    stem = name.removesuffix(".weight")
    _check_variant(name, settings)
    codes = part(infos, f"{stem}.qweight", name, ("I32",))
    zeros = part(infos, f"{stem}.qzeros", name, ("I32",))
    scales = part(infos, f"{stem}.scales", name, FLOATS)
    (cols, words), (groups, rows) = matrix(codes, name), matrix(scales, name)
    if words * 8 != rows or matrix(zeros, name) != (groups, words) or cols % groups:
        shapes = ", ".join(str(list(i.shape)) for i in (codes, zeros, scales))
        raise wrong(name, f"codes, zero points and scales do not go together: {shapes}")
    label = grouping(group_size(settings, name, groups, cols), groups, cols)
    return _Stored(name, rows, cols, cols // groups, label, codes, zeros, scales)


def _nibbles(words: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Codes (rows, 8 * words) of words (rows, words), in the order of the outputs."""
    codes = np.empty((*words.shape, 8), np.uint8)
    for column, shift in enumerate(SHIFTS):
        codes[:, :, column] = (words >> shift) & np.uint32(15)
    return codes.reshape(len(words), words.shape[1] * 8)


def _decode(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    start, end = first // 8, -(-last // 8)
    own = slice(first - start * 8, last - start * 8)
    scale = float_columns(read, stored.scales, stored.name, first, last)
    zero = _nibbles(columns(read, stored.zeros, start, end))[:, own].T.astype(np.float32)
    out = np.empty((last - first, stored.cols), np.float32)
    for row, words in strips(read, stored.codes, start, end):
        group = np.arange(row, row + len(words)) // stored.group
        piece = out[:, row : row + len(words)]
        np.subtract(_nibbles(words)[:, own].T, zero[:, group], out=piece)
        with np.errstate(over="ignore"):
            piece *= scale[:, group]
    return out


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """What is stored as eight output columns to a word."""
    settings = section(config, "quantization_config")
    method, found = text(settings, "quant_method"), []
    for stem in [n.removesuffix(".qweight") for n in infos if n.endswith(".qweight")]:
        if not across_outputs(infos, stem, method):
            continue
        stored = _stored(infos, f"{stem}.weight", settings)
        found.append(
            Found(
                name=stored.name,
                shape=(stored.rows, stored.cols),
                scheme=scheme_name(4, stored.label, "" if settings.get("zero_point") is False else "int"),
                bits=4,
                parts=(stored.codes, stored.zeros, stored.scales),
                unit=block_rows(stored.cols),
                decode=partial(_decode, stored),
            )
        )
    return found


PROVIDES = ForeignLayout(summary="AWQ (GEMM): qweight, qzeros and scales of 4 bits", find=find)
