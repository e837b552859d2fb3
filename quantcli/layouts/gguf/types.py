"""ggml's types of weights: the schemes that they stand for, and what takes their place where rows do not fit them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from quantcli.asking import effort_of, searched
from quantcli.kernels import SUPER
from quantcli.scheme import SUPER_BLOCKS, Scheme

WEIGHTS = 32
"""Weights of a block of the types without super-blocks."""

_FLAT: dict[str, Any] = {"format": "int", "granularity": "group", "group_size": WEIGHTS, "scale_dtype": "float16"}
_OFFSET = {"symmetric": False, "zero_point": "float"}

FIELDS: Mapping[str, Mapping[str, Any]] = {
    "Q4_0": {**_FLAT, "bits": 4},
    "Q4_1": {**_FLAT, "bits": 4, **_OFFSET},
    "Q5_0": {**_FLAT, "bits": 5},
    "Q5_1": {**_FLAT, "bits": 5, **_OFFSET},
    "Q8_0": {**_FLAT, "bits": 8},
    "IQ4_NL": {**_FLAT, "format": "iq4", "bits": 4},
    "MXFP4": {**_FLAT, "format": "fp4", "bits": 4, "scale_dtype": "float8_e8m0", "calibration": "mse"},
    **{
        name.upper(): {"format": form, "bits": bits, "granularity": "group", "group_size": size,
                       "scale_dtype": "super-blocks", **({} if symmetric else _OFFSET)}
        for (form, bits, symmetric), (name, size) in SUPER_BLOCKS.items()
    },
}  # fmt: skip
"""The fields of a scheme by type."""

NUMBERS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 11, "Q4_K": 14,
    "Q5_K": 16, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32, "MXFP4": 38,
}  # fmt: skip
"""general.file_type of a file most of whose weights are of a type."""

INSTEAD = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
"""What llama-quantize takes where rows are not whole super-blocks."""


@lru_cache(maxsize=256)
def scheme_of(kind: str, effort: str | None = None) -> Scheme:
    """The scheme of a type. effort: how long to search, None for the default.

    >>> scheme_of("Q4_K").name, scheme_of("Q8_0").name
    ('q4_k', 'w8g32')
    """
    return searched(FIELDS[kind], effort)


def like(kind: str, scheme: Scheme) -> Scheme:
    """The scheme of a type, searched as long as another one."""
    return scheme_of(kind, effort_of(scheme))


def type_of(scheme: Scheme) -> str | None:
    """ggml's type for the codes of a scheme; None where it has none."""
    if scheme.storage == "super-blocks":
        return SUPER_BLOCKS[scheme.format, scheme.bits, scheme.symmetric][0].upper()
    if scheme.format == "fp4":
        return "MXFP4" if scheme.storage == "e8m0" else None
    if scheme.storage != "plain":
        return None
    if scheme.format == "iq4":
        return "IQ4_NL"
    flat = {(4, True): "Q4_0", (4, False): "Q4_1", (5, True): "Q5_0", (5, False): "Q5_1", (8, True): "Q8_0"}
    return flat.get((scheme.bits, scheme.symmetric)) if scheme.format == "int" else None


_WIDE = {1: "Q2_K", 2: "Q2_K", 3: "Q3_K", 4: "Q4_K", 5: "Q5_K", 6: "Q6_K"}
_MIXES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "Q4_0": "Q4_K_M", "Q5_0": "Q5_K_M"}


def file_type_of(kind: str) -> str:
    """The file type of llama.cpp most of whose weights are of a type or, for Q4_0 and Q5_0, of the one that took its
    place.

    >>> file_type_of("Q3_K"), file_type_of("Q8_0")
    ('Q3_K_M', 'Q8_0')
    """
    return _MIXES.get(kind, kind)


def nearest(scheme: Scheme) -> str:
    """How to ask for the type nearest to a scheme that none has.

    >>> from quantcli import Scheme
    >>> nearest(Scheme(bits=7))
    'use --scheme Q8_0, the nearest that it stores, or --to gguf:Q8_0'
    """
    kind = _WIDE.get(scheme.bits, "Q8_0") if scheme.format == "int" else "Q8_0" if scheme.bits > 4 else "IQ4_NL"
    if scheme.format == "fp4":
        return "use --scheme MXFP4, the nearest that it stores"
    mix = "" if kind == "IQ4_NL" else f", or --to gguf:{file_type_of(kind)}"
    return f"use --scheme {kind}, the nearest that it stores{mix}"


def fitting(cols: int, scheme: Scheme) -> tuple[Scheme, str]:
    """The scheme for rows of so many weights, and a note where it is another one, as llama-quantize has it.

    >>> fitting(384, scheme_of("Q4_K"))[1], fitting(512, scheme_of("Q4_K"))[1]
    ('Q5_0 instead of Q4_K, which takes rows of a multiple of 256', '')
    """
    if scheme.storage != "super-blocks" or cols % SUPER == 0:
        return scheme, ""
    kind = type_of(scheme)
    assert kind is not None
    note = f"{INSTEAD[kind]} instead of {kind}, which takes rows of a multiple of {SUPER}"
    return like(INSTEAD[kind], scheme), note
