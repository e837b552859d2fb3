"""Schemes by the names that the field has for them, such as W4A16 or FP8_DYNAMIC: weights, and inputs of their layers.

The names and what they stand for are those of compressed-tensors' presets, and so of llm-compressor's, and the types of
GGUF.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from quantcli.errors import UsageError, printable

_INT = re.compile(r"W([2-8])A16(_ASYM)?|W([2-7])A8")

_FP8: dict[str, Any] = {"format": "fp8-e4m3", "bits": 8, "calibration": "mse"}
_FP4: dict[str, Any] = {"format": "fp4", "bits": 4, "calibration": "mse"}
_MX = {"granularity": "group", "group_size": 32, "scale_dtype": "float8_e8m0"}
_NV = {"granularity": "group", "group_size": 16, "scale_dtype": "float8_e4m3"}
_INT8: dict[str, Any] = {"format": "int", "bits": 8, "granularity": "channel", "grid": "restricted"}

_NAMED: Mapping[str, Mapping[str, Any]] = {
    "W4AFP8": {"format": "int", "bits": 4, "granularity": "group", "group_size": 128, "activations": "fp8"},
    "W8A8": {**_INT8, "activations": "int8"},
    "INT8": {**_INT8, "activations": "int8"},
    "FP8_DYNAMIC": {**_FP8, "granularity": "channel", "activations": "fp8"},
    "FP8_BLOCK": {**_FP8, "granularity": "block", "group_size": 128, "activations": "fp8-group"},
    "MXFP8A16": {**_FP8, **_MX},
    "MXFP8": {**_FP8, **_MX, "activations": "mxfp8"},
    "MXFP4A16": {**_FP4, **_MX},
    "MXFP4": {**_FP4, **_MX, "activations": "mxfp4"},
    "NVFP4A16": {**_FP4, **_NV},
    "FP8": {**_FP8, "granularity": "tensor", "activations": "fp8-static"},
    "NVFP4": {**_FP4, **_NV, "activations": "nvfp4"},
}


def usual_names() -> tuple[str, ...]:
    """The usual names; W2A8 to W7A8 and W2A16_ASYM to W8A16_ASYM stand for schemes too."""
    return (*(f"W{bits}A16" for bits in range(2, 9)), "W4A16_ASYM", "W4A8", *_NAMED, *_types())


def _types() -> Mapping[str, Mapping[str, Any]]:
    """The types of GGUF that have no name of their own here, with their fields."""
    from quantcli.layouts.gguf.types import FIELDS  # a package that most runs do without

    return {name: own for name, own in FIELDS.items() if name not in _NAMED}


def fields(name: str) -> dict[str, Any] | None:
    """The fields that a name stands for; None for other words.

    >>> fields("W4A16_ASYM")["symmetric"], fields("FP8_DYNAMIC")["granularity"], fields("W4")
    (False, 'channel', None)
    """
    usual: dict[str, Any] = {"symmetric": True, "activations": "none"}
    match = _INT.fullmatch(name)
    if match is not None:
        own: Mapping[str, Any] = {"format": "int", "bits": int(match[1] or match[3]), "granularity": "group"}
        more = {"symmetric": False} if match[2] else {"activations": "int8"} if match[3] else {}
        return {**usual, **own, "group_size": 128, **more}
    own_fields = _NAMED.get(name) or _types().get(name)
    return {**usual, **own_fields} if own_fields is not None else None


def named(name: Any, place: str) -> dict[str, Any]:
    """The fields that a name stands for. Raises UsageError, with the place, for what is none."""
    if isinstance(name, str):
        found = fields(name.upper().replace("-", "_"))
        if found is not None:
            return found
    close = difflib.get_close_matches(str(name).upper(), usual_names(), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else "such as W4A16, W8A8, FP8_DYNAMIC or NVFP4A16"
    raise UsageError(f"{printable(repr(name), 60)} is not a scheme", place=[place], hint=hint)
