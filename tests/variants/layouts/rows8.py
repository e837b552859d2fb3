"""Rows of 8 bits: signed codes and a scale for each row, one after the other.

A weight X.weight [out, in] is stored as

    X.row_codes    I8    [out, in]   codes q from -127 to 127
    X.row_scales   F32   [out]

and is q * scale. `quantization_config` of config.json says quant_method rows8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from quantcli.layouts.accepts import Accepts
from quantcli.layouts.config import section, text
from quantcli.layouts.pieces import bands, facts, not_a_matrix, plain, words
from quantcli.layouts.reader import Found, Read, Reader
from quantcli.layouts.stored import floats, matrix, part, wrong
from quantcli.layouts.writer import Beside, Codes, Conversion, Job, Weight, Write, Writer
from quantcli.patterns import module_of
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan


def _found(infos: Mapping[str, TensorInfo], module: str) -> Found:
    name = f"{module}.weight"
    codes = part(infos, f"{module}.row_codes", name, ("I8",))
    scales = part(infos, f"{module}.row_scales", name, ("F32",))
    rows, cols = matrix(codes, name)
    if scales.shape != (rows,):
        raise wrong(name, f"{rows} rows and scales {list(scales.shape)}")

    def decode(read: Read, first: int, last: int) -> Any:
        q = read(codes.name, first * cols, (last - first) * cols).view(np.int8).reshape(-1, cols)
        return q.astype(np.float32) * floats(read, scales, name, first, last - first)[:, None]

    return Found(name=name, shape=codes.shape, scheme="w8c", bits=8, parts=(codes, scales), unit=1, decode=decode)


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """What is stored as codes of rows."""
    if text(section(config, "quantization_config"), "quant_method") not in (None, "rows8"):
        return []
    return [_found(infos, name.removesuffix(".row_codes")) for name in infos if name.endswith(".row_codes")]


def _job(weight: Weight) -> Job:
    _, layout = facts(weight)
    module = module_of(weight.info.name)
    codes = TensorInfo(f"{module}.row_codes", "I8", weight.info.shape)
    scales = TensorInfo(f"{module}.row_scales", "F32", (layout.rows,))

    def piece(span: TileSpan, made: Codes, write: Write) -> bool:
        unsigned = words(made, span, layout, 8)[:, : span.cols]
        write(0, span.row * layout.cols + span.col, np.ascontiguousarray(unsigned ^ np.uint8(128)))
        write(1, span.row * 4, np.broadcast_to(made.params(span).scale, (span.rows, 1)).astype("<f4"))
        return True

    return Job(outputs=(codes, scales), pieces=lambda: (partial(piece, span) for span in bands(layout, 8, 1 << 62)))


def convert(tensors: Sequence[Weight], beside: Beside) -> Conversion:
    """The model with rows of codes."""
    return Conversion(
        job=lambda t: plain(t.info) if t.scheme is None else _job(t),
        config={"quantization_config": {"quant_method": "rows8"}},
    )


READS = Reader(summary="Rows of 8 bits: codes and a scale for each row", find=find)

WRITES = Writer(
    summary="Rows of 8 bits: codes and a scale for each row, for programs that multiply int8",
    keeps="all but matrices named *.weight",
    accepts=Accepts(bits=(8,), granularities=("channel", "tensor"), symmetric=(True,)),
    shape=not_a_matrix,
    convert=convert,
    usual={"bits": 8, "granularity": "channel"},
)
