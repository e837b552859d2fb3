"""Schemes by the names that the field has for them, such as W4A16 or FP8_DYNAMIC: weights, and inputs of their layers.

The names and what they stand for are those of compressed-tensors' presets, and so of llm-compressor's, and the types of
GGUF and of ComfyUI.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from quantcli import asking
from quantcli.errors import UsageError, printable
from quantcli.layouts.accepts import Accepts
from quantcli.scheme import ONE_BYTE, STATIC, Scheme

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


@lru_cache(maxsize=1)
def usual_names() -> tuple[str, ...]:
    """The usual names; W2A8 to W7A8 and W2A16_ASYM to W8A16_ASYM stand for schemes too."""
    return (*(f"W{bits}A16" for bits in range(2, 9)), "W4A16_ASYM", "W4A8", *_NAMED, *_types())


@lru_cache(maxsize=1)
def _types_of() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """Types of GGUF and ComfyUI by target, as far as no other name has their words."""
    from quantcli.layouts.comfyui.types import FIELDS as OF_COMFYUI  # packages that most runs do without
    from quantcli.layouts.gguf.types import FIELDS as OF_GGUF

    found = {"comfyui": {name.upper(): fields for name, fields in OF_COMFYUI.items()}, "gguf": OF_GGUF}
    return {to: {name: own[name] for name in own if name not in _NAMED} for to, own in found.items()}


@lru_cache(maxsize=1)
def _types() -> Mapping[str, Mapping[str, Any]]:
    """The same of both."""
    return {name: fields for own in _types_of().values() for name, fields in own.items()}


def canonical(name: str) -> str:
    """A name of a scheme as the lists of them have it.

    >>> canonical("fp8-dynamic")
    'FP8_DYNAMIC'
    """
    return name.upper().replace("-", "_")


def fields(name: str) -> dict[str, Any] | None:
    """The fields that a name stands for; None for other words.

    >>> fields("w4a16-asym")["symmetric"], fields("FP8_DYNAMIC")["granularity"], fields("W4")
    (False, 'channel', None)
    """
    name = canonical(name)
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
        found = fields(name)
        if found is not None:
            return found
    if isinstance(name, str) and (kind := _kind_of_file(name)) is not None:
        problem = f"{printable(repr(name), 60)} is a type of files, not of tensors"
        raise UsageError(problem, place=[place], hint=f"write --to {kind}")
    import difflib

    close = difflib.get_close_matches(str(name).upper(), usual_names(), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else "such as W4A16, W8A8, FP8_DYNAMIC or NVFP4A16"
    raise UsageError(f"{printable(repr(name), 60)} is not a scheme", place=[place], hint=hint)


def _kind_of_file(name: str) -> str | None:
    """The target that a name of a type of files stands for, TARGET:KIND; None for other words."""
    from quantcli.layouts.comfyui.types import KINDS  # packages that most runs do without
    from quantcli.layouts.gguf.mixes import FILE_TYPES

    kinds = {**{kind: f"comfyui:{kind}" for kind in KINDS}, **{kind: f"gguf:{kind}" for kind in FILE_TYPES}}
    return {canonical(kind): target for kind, target in kinds.items()}.get(canonical(name))


def instead(scheme: Scheme, accepts: Accepts) -> str:
    """How to ask for the scheme that is nearest to another one among those that a target stores: by name where one
    stands for the same codes, else by options; empty where there is none.

    >>> from quantcli.layouts.writer import named as writer
    >>> instead(asking.Scheme(**fields("W8A8")), writer("gptq").accepts)
    '--scheme W8A16'
    >>> instead(asking.Scheme(bits=4, group_size=48), writer("awq").accepts)
    '--scheme W4A16'
    >>> instead(asking.Scheme(bits=8), writer("modelopt").accepts)
    '--scheme MXFP8A16'
    >>> instead(_scheme("MXFP4"), writer("fp8-blocks").accepts)
    '--scheme FP8_BLOCK'
    """
    nearest = accepts.nearest(scheme)
    for like in (scheme, nearest):
        for name in sorted(usual_names(), key=lambda name: (name in _types(), -_alike(like, name))):
            if _alike(like, name) and accepts.obstacle(_scheme(name)) is None:
                return f"--scheme {name}"
    for name in usual_names():
        if (
            accepts.obstacle(own := _scheme(name)) is None
            and own.name == nearest.name
            and own.activations not in STATIC
        ):
            return f"--scheme {name}"
    return spelled(nearest) if accepts.obstacle(nearest) is None else ""


def stored_by(target: str) -> list[str]:
    """The names whose schemes a target stores, of types of GGUF and ComfyUI its own; not those that say more of inputs
    than it stores.

    >>> stored_by("mlx")[-4:], stored_by("fp8-blocks")
    (['MXFP4A16', 'MXFP4', 'NVFP4A16', 'NVFP4'], ['FP8_BLOCK'])
    """
    from quantcli.layouts.writer import named as writer

    export, own = writer(target), _types_of().get(target, {})
    names = [name for name in usual_names() if name in own or name not in _types()]
    schemes = {name: _scheme(name) for name in names}
    return [
        name
        for name, scheme in schemes.items()
        if not export.ignores_inputs(scheme) and export.accepts.obstacle(export.suited(scheme)) is None
    ]


def listed(names: Sequence[str]) -> list[str]:
    """Names of schemes for readers, those that differ in the bits of weights alone in one.

    >>> listed(["W2A16", "W3A16", "W4A16", "W8A16", "W4A8", "FP8"])
    ['W2A16 to W4A16', 'W8A16', 'W4A8', 'FP8']
    """
    runs = list[list[str]]()
    for name in names:
        last = runs[-1][-1] if runs else ""
        following = re.sub(r"(?<=^W)\d(?=A16$)", lambda bits: str(int(bits[0]) + 1), last)
        if name == following != last:
            runs[-1].append(name)
        else:
            runs.append([name])
    return [found for run in runs for found in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else run)]


@lru_cache(maxsize=64)
def _scheme(name: str) -> Scheme:
    return asking.Scheme(**(fields(name) or {}))


def _alike(scheme: Scheme, name: str) -> int:
    """How much a scheme has in common with the one of a name; 0 where the codes are others, or inputs are quantized
    otherwise."""
    own = _scheme(name)
    same = (own.format, own.bits, own.symmetric) == (scheme.format, scheme.bits, scheme.symmetric)
    if own.activations in STATIC or not same or own.activations[:3] not in ("non", scheme.activations[:3]):
        return 0
    return (
        1
        + 8 * (own.activations != "none")
        + 4 * (own.storage == scheme.storage)
        + 2 * (own.granularity == scheme.granularity)
        + (own.group_size == scheme.group_size)
    )


def spelled(scheme: Scheme) -> str:
    """The options that ask for a scheme, those left out that follow from the rest.

    >>> spelled(asking.Scheme(bits=8, granularity="channel")), spelled(asking.Scheme(format="nf4", group_size=64))
    ('--bits 8 --group-size -1', '--type nf4 --group-size 64')
    """
    size = {"channel": -1, "tensor": 0}.get(scheme.granularity, scheme.group_size)
    words = [f"--bits {scheme.bits}"] if scheme.format == "int" else [f"--type {scheme.format}"]
    words += ["--granularity block"] if scheme.granularity == "block" else []
    words += [f"--group-size {size}"]
    words += [] if scheme.symmetric else ["--asymmetric"]
    words += ["--zero-point float"] if not scheme.symmetric and scheme.zero_point == "float" else []
    words += [f"--scale-dtype {name}" for name, storage in ONE_BYTE.items() if storage == scheme.storage]
    return " ".join(words)
