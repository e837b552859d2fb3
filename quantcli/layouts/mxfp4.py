"""gpt-oss: experts of 4-bit floats in blocks of 32 with the exponent of a power of 2, all experts of a layer in one.

    X_blocks   U8   [experts, out, in/32, 16]   E2M1, the first of two in the low half
    X_scales   U8   [experts, out, in/32]       E8M0: exponents of 2 with a bias of 127

The weight is float * 2^(exponent - 127), which is exact. transformers holds X as [experts, in, out], and so it is here:
each row is a column of what is stored. OpenAI's own files, which call the same tensors X.blocks and X.scales, hold X as
[experts, out, in].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.layouts.config import model_dtype
from quantcli.layouts.reader import Found, Read, Reader
from quantcli.layouts.small import E8M0, powers, scales, small_floats
from quantcli.layouts.stored import columns, finite, part, wrong
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Floats

GROUP = 32
NAMES = {"_blocks": ("_scales", True), ".blocks": (".scales", False)}
"""Endings of the names of codes: those of scales, and whether the weight is what is stored transposed."""

STRIP, NARROW = 256, 16
"""Outputs decoded at once, while they are in the cache, and transposed at once: four times as fast as 64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    name: str
    codes: TensorInfo
    scale: TensorInfo

    @property
    def sides(self) -> tuple[int, int, int]:
        """Experts, outputs and inputs."""
        experts, outputs, groups, _ = self.codes.shape
        return experts, outputs, groups * GROUP


def _stored(infos: Mapping[str, TensorInfo], name: str, codes: TensorInfo, scale_name: str) -> _Stored:
    codes, scale = part(infos, codes.name, name, ("U8",)), part(infos, scale_name, name, E8M0)
    if len(codes.shape) != 4 or codes.shape[3] * 2 != GROUP or scale.shape != codes.shape[:3]:
        raise wrong(name, f"blocks {list(codes.shape)} and scales {list(scale.shape)} do not match")
    return _Stored(name=name, codes=codes, scale=scale)


def _decode(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    groups, size = stored.codes.shape[2], stored.sides[2] // 2
    scale = scales(read, stored.scale, stored.name, first * groups, (last - first) * groups).reshape(-1, groups)
    raw = read(stored.codes.name, first * size, (last - first) * size)
    return small_floats(raw, (last - first, groups * GROUP), scale, GROUP, "F4")


def _decode_turned(stored: _Stored, read: Read, first: int, last: int) -> Floats:
    _, outputs, inputs = stored.sides
    found = np.empty((last - first, outputs), np.float32)
    for expert in range(first // inputs, -(-last // inputs)):
        start = expert * inputs
        low, high = max(first, start), min(last, start + inputs)
        _put_inputs(stored, read, expert, (low - start, high - start), found[low - first : high - first])
    return found


def _put_inputs(stored: _Stored, read: Read, expert: int, span: tuple[int, int], out: Floats) -> None:
    """Put the weights of some inputs of an expert into a matrix (inputs, outputs)."""
    experts, outputs, inputs = stored.sides
    begin, end = span[0] // GROUP, -(-span[1] // GROUP)
    own = (expert * outputs, (expert + 1) * outputs)
    codes = TensorInfo(stored.codes.name, "U8", (experts * outputs, inputs // 2))
    exponents = TensorInfo(stored.scale.name, "U8", (experts * outputs, inputs // GROUP))
    scale = finite(powers(columns(read, exponents, begin, end, own)), stored.scale, stored.name)
    raw = columns(read, codes, begin * GROUP // 2, end * GROUP // 2, own)
    for at in range(0, outputs, STRIP):
        strip = slice(at, min(at + STRIP, outputs))
        shape = (strip.stop - at, (end - begin) * GROUP)
        values = small_floats(raw[strip], shape, scale[strip], GROUP, "F4")
        values = values[:, span[0] - begin * GROUP : span[1] - begin * GROUP]
        for row in range(0, len(values), NARROW):
            out[:, at + row : at + row + NARROW] = values[row : row + NARROW].T


def _found(stored: _Stored, dtype: str, *, turned: bool) -> Found:
    experts, outputs, inputs = stored.sides
    return Found(
        name=stored.name,
        shape=(experts, inputs, outputs) if turned else (experts, outputs, inputs),
        scheme="mxfp4",
        bits=4,
        parts=(stored.codes, stored.scale),
        unit=GROUP if turned else 1,
        decode=partial(_decode_turned if turned else _decode, stored),
        dtype=dtype,
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights stored as blocks with exponents beside them."""
    found, dtype = [], model_dtype(config)
    for name, info in infos.items():
        for ending, (of_scales, turned) in NAMES.items():
            stem = name.removesuffix(ending)
            if stem != name and info.dtype == "U8" and f"{stem}{of_scales}" in infos:
                found.append(_found(_stored(infos, stem, info, f"{stem}{of_scales}"), dtype, turned=turned))
    return found


READS = Reader(summary="MXFP4 of gpt-oss: blocks and scales of all experts of a layer", find=find)
