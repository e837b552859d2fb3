"""ComfyUI's types of weights: the schemes that they stand for, how it describes them, and what takes their place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from quantcli.asking import changed, effort_of, searched
from quantcli.errors import printable
from quantcli.scheme import ROTATIONS, Scheme

INT8 = "int8_tensorwise"

_FLOAT: dict[str, Any] = {"format": "fp8-e4m3", "bits": 8, "calibration": "mse"}
_INT: dict[str, Any] = {"format": "int", "bits": 8, "granularity": "channel"}

FIELDS: Mapping[str, Mapping[str, Any]] = {
    "float8_tensorwise": {**_FLOAT, "granularity": "tensor"},
    INT8: _INT,
    "int8_convrot": {**_INT, "rotation": 256},
    "mxfp8": {**_FLOAT, "granularity": "group", "group_size": 32, "scale_dtype": "float8_e8m0"},
    "nvfp4": {
        "format": "fp4",
        "bits": 4,
        "calibration": "mse",
        "granularity": "group",
        "group_size": 16,
        "scale_dtype": "float8_e4m3",
    },
}
"""The fields of a scheme by type."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file: the type of its weights, and what it is for, for users. older: whether it is described as before
    there were descriptions of modules."""

    type: str
    summary: str
    older: bool = False


KINDS: Mapping[str, Kind] = {
    "float8_tensorwise": Kind("float8_tensorwise", "E4M3 and a scale per tensor; runs fast from Ada on"),
    "fp8_scaled": Kind("float8_tensorwise", "the same as scaled FP8, for programs from before 2026", older=True),
    INT8: Kind(INT8, "signed bytes and a scale per row; runs fast from Turing on"),
    "int8_convrot": Kind("int8_convrot", "the same for columns that are rotated 256 by 256, which tames outliers"),
    "mxfp8": Kind("mxfp8", "E4M3 and a power of two for every 32; runs fast from Blackwell on"),
    "nvfp4": Kind("nvfp4", "E2M1 and an E4M3 scale for every 16; runs fast from Blackwell on"),
}
"""The kinds of files."""


@lru_cache(maxsize=64)
def scheme_of(kind: str, effort: str | None = None) -> Scheme:
    """The scheme of a type. effort: how long to search, None for the default.

    >>> scheme_of("nvfp4").name, scheme_of("int8_convrot").name
    ('nvfp4', 'w8c-rot256')
    """
    return searched(FIELDS[kind], effort)


def like(kind: str, scheme: Scheme) -> Scheme:
    """The scheme of a type, searched as long as another one."""
    return scheme_of(kind, effort_of(scheme))


def fitting(cols: int, scheme: Scheme) -> tuple[Scheme, str]:
    """The scheme for rows of so many weights, and a note where it is another one: as many columns as divide them are
    rotated together.

    >>> fitting(960, scheme_of("int8_convrot"))[1], fitting(512, scheme_of("int8_convrot"))[1]
    ('64 columns are rotated together, because rows of 960 are not a multiple of 256', '')
    """
    size = scheme.rotation
    if not size or cols % size == 0:
        return scheme, ""
    found = max(s for s in ROTATIONS if s in (0, 16, 64) and s < size and (not s or cols % s == 0))
    why = f"because rows of {cols} are not a multiple of {size if found else 16}"
    what = f"{found} columns are rotated together" if found else "its columns are not rotated"
    return changed(scheme, rotation=found), f"{what}, {why}"


def nearest(scheme: Scheme) -> str:
    """How to ask for the type nearest to a scheme that ComfyUI does not have.

    >>> from quantcli import Scheme
    >>> nearest(Scheme(bits=4))
    'use --to comfyui:nvfp4, the nearest that it stores, or --scheme NVFP4A16'
    """
    if scheme.bits <= 4:
        kind = "nvfp4"
    elif scheme.format.startswith("fp8"):
        kind = "mxfp8" if scheme.group_size == 32 else "float8_tensorwise"
    else:
        kind = "int8_convrot" if scheme.rotation else INT8
    name = {"nvfp4": "NVFP4A16", "mxfp8": "MXFP8A16"}.get(kind, kind.upper())
    return f"use --to comfyui:{kind}, the nearest that it stores, or --scheme {name}"


_MODULATION = re.compile(
    r"\.\d+\.(?:[^0-9]*\.)?(?:\w*mod|\w*[mM]odulation|norm1(?:_context)?\.linear|norm\.linear)(?:\.|$)"
)
"""Modulation in the names of tensors of blocks."""


def mix(names: Iterable[str], scheme: Scheme) -> dict[str, Scheme]:
    """By name the schemes of weights for which 4 bits are too few: modulation, which is applied to all that goes
    through a block, and costs no time, because it is computed once for a picture."""
    if scheme.bits > 4:
        return {}
    return {name: like("float8_tensorwise", scheme) for name in names if _MODULATION.search(name[-1024:])}


def described(scheme: Scheme, shape: tuple[int, ...], *, filled: bool = False) -> dict[str, Any]:
    """The description of a weight of a scheme and a shape. filled: whether it has more columns than that."""
    if scheme.format == "int":
        turned = {"convrot": True, "convrot_groupsize": scheme.rotation} if scheme.rotation else {}
        return {"format": INT8, **turned}
    if scheme.storage == "plain":
        return {"format": {"fp8-e4m3": "float8_e4m3fn", "fp8-e5m2": "float8_e5m2"}[scheme.format]}
    return {"format": scheme.name, **({"orig_shape": list(shape)} if filled else {})}


def rotation_of(description: Mapping[str, Any]) -> int | str | None:
    """How many columns a description says are rotated together, None for none; or what is wrong with it."""
    own = description.get("params")
    nested = own if isinstance(own, dict) else {}
    if not description.get("convrot", nested.get("convrot", False)):
        return None
    size = description.get("convrot_groupsize", nested.get("convrot_groupsize", 256))
    sizes = [4**n for n in range(1, 9)]
    return (
        size if type(size) is int and size in sizes else f"{printable(repr(size), 40)} columns are not rotated together"
    )
