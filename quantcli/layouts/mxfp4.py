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
from quantcli.layouts.pieces import turned
from quantcli.layouts.reader import Found, Held, Read, Reader
from quantcli.layouts.small import E8M0, held, powers, scales, small_floats
from quantcli.layouts.stored import columns, finite, part, wrong
from quantcli.layouts.transposed import among
from quantcli.stores.latest import Latest
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.kernels import Bytes, Floats

GROUP = 32
NAMES = {"_blocks": ("_scales", True), ".blocks": (".scales", False)}
"""Endings of the names of codes: those of scales, and whether the weight is what is stored transposed."""

STRIP = 256
"""Outputs decoded at once, while they are in the cache."""

BAND = 1 << 21
"""Bytes of codes that are read at once where the weight is what is stored transposed."""

Bands = Latest[tuple["Bytes", "Floats"]]
"""Codes and scales that were read last, of all weights of a file."""


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


def _decode(stored: _Stored, read: Read, first: int, last: int, step: int = 1) -> Floats:
    """Rows of what is stored (experts * outputs, inputs), from first to last every so many."""
    groups, size = stored.codes.shape[2], stored.sides[2] // 2
    scale = scales(read, stored.scale, stored.name, first * groups, (last - first) * groups).reshape(-1, groups)
    raw = read(stored.codes.name, first * size, (last - first) * size).reshape(-1, size)[::step]
    return small_floats(np.ascontiguousarray(raw), (len(raw), groups * GROUP), scale[::step], GROUP, "F4")


def _decode_turned(stored: _Stored, bands: Bands, read: Read, first: int, last: int) -> Floats:
    _, outputs, inputs = stored.sides
    found, height = np.empty((last - first, outputs), np.float32), max(BAND // (outputs * GROUP // 2), 1) * GROUP
    done = 0
    for expert in range(first // inputs, -(-last // inputs)):
        span = max(first - expert * inputs, 0), min(last - expert * inputs, inputs)
        key, make = (stored.name, expert), partial(_inputs, stored, read, expert)
        for band, own in among(bands, key, span, inputs, height, make):
            count = own.stop - own.start
            _put_inputs(*band, (own.start, own.stop), found[done : done + count])
            done += count
    return found


def _inputs(stored: _Stored, read: Read, expert: int, first: int, last: int) -> tuple[Bytes, Floats]:
    """The codes and scales of inputs first to last of an expert, whole groups, by outputs."""
    experts, outputs, inputs = stored.sides
    own = (expert * outputs, (expert + 1) * outputs)
    codes = TensorInfo(stored.codes.name, "U8", (experts * outputs, inputs // 2))
    exponents = TensorInfo(stored.scale.name, "U8", (experts * outputs, inputs // GROUP))
    scale = finite(powers(columns(read, exponents, first // GROUP, last // GROUP, own)), stored.scale, stored.name)
    return columns(read, codes, first // 2, last // 2, own), scale


def _put_inputs(codes: Bytes, scale: Floats, span: tuple[int, int], out: Floats) -> None:
    """Put the weights of some inputs, of codes by outputs, into a matrix (inputs, outputs)."""
    begin, end = span[0] // GROUP, -(-span[1] // GROUP)
    for at in range(0, len(codes), STRIP):
        raw, own = codes[at : at + STRIP, begin * GROUP // 2 : end * GROUP // 2], scale[at : at + STRIP, begin:end]
        values = small_floats(np.ascontiguousarray(raw), (len(raw), (end - begin) * GROUP), own, GROUP, "F4")
        values = values[:, span[0] - begin * GROUP : span[1] - begin * GROUP]
        turned(values, out[:, at : at + STRIP])


def _held(stored: _Stored, exchanged: bool, read: Read) -> Held | str:
    return held(read, stored.codes, stored.scale, stored.name, stored.sides[2], turned=exchanged)


def _found(stored: _Stored, dtype: str, bands: Bands | None) -> Found:
    """bands: where the weight is what is stored transposed."""
    experts, outputs, inputs = stored.sides
    return Found(
        name=stored.name,
        shape=(experts, outputs, inputs) if bands is None else (experts, inputs, outputs),
        scheme="mxfp4",
        bits=4,
        parts=(stored.codes, stored.scale),
        unit=1 if bands is None else GROUP,
        decode=partial(_decode, stored) if bands is None else partial(_decode_turned, stored, bands),
        dtype=dtype,
        held=partial(_held, stored, bands is not None),
        turned=None if bands is None else partial(_decode, stored),
    )


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """The weights stored as blocks with exponents beside them."""
    found, dtype, bands = [], model_dtype(config), Bands()
    for name, info in infos.items():
        for ending, (of_scales, exchanged) in NAMES.items():
            stem = name.removesuffix(ending)
            if stem != name and info.dtype == "U8" and f"{stem}{of_scales}" in infos:
                stored = _stored(infos, stem, info, f"{stem}{of_scales}")
                found.append(_found(stored, dtype, bands if exchanged else None))
    return found


READS = Reader(summary="MXFP4 of gpt-oss: blocks and scales of all experts of a layer", find=find)
