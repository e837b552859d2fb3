"""Measured scales of the inputs of layers, for schemes that store them: by the name of the module, from a file.

The file holds `MODULE.input_scale` (what quantized inputs are multiplied by) or `MODULE.input_global_scale` (its
inverse), one number each, as models quantized by compressed-tensors and ModelOpt do: such a model is a file of them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantcli.dtypes import DTYPES, to_float32
from quantcli.errors import UsageError, printable
from quantcli.layouts.writer import named
from quantcli.patterns import module_of
from quantcli.scheme import STATIC, Scheme
from quantcli.stores import open_source
from quantcli.tensors.decided import Decided, Quantized
from quantcli.tensors.decisions import alike
from quantcli.tensors.fused import partners

NAMES = (".input_scale", ".input_global_scale")
"""How the names of scales end, the second one being inverse."""

OPTION = "--activation-scales"

_WITH_SCALES = ("FP8", "NVFP4")
"""Names of schemes that have them."""


@dataclass(frozen=True, slots=True)
class InputScales:
    """Scales of inputs by the name of the module."""

    path: str
    values: Mapping[str, float]


def load(path: str) -> InputScales:
    """The scales in a file or folder. Raises UsageError for what is not a number above 0, and where there are none."""
    values = dict[str, float]()
    with contextlib.closing(open_source(path)) as source:
        for info in source.infos():
            end = next((end for end in NAMES if info.name.endswith(end)), None)
            if end is None:
                continue
            place = [path, printable(info.name)]
            if info.numel != 1 or not DTYPES[info.dtype].quantizable:
                raise UsageError(f"{info.dtype} {list(info.shape)} is not one float", place=place)
            raw = np.empty(info.nbytes, np.uint8)
            source.read(info.name, 0, raw.data)
            value = float(to_float32(raw, info.dtype)[0])
            if not 1e-30 < value < 1e30:
                raise UsageError(f"{value:g} is not a scale", place=place)
            values[info.name.removesuffix(end)] = value if end == NAMES[0] else 1 / value
    if not values:
        hint = "it should hold MODULE.input_scale for every layer"
        raise UsageError("it holds no scales of inputs", place=[path], hint=hint)
    return InputScales(path, values)


def without(scheme: Scheme, to: str | None) -> str:
    """How to ask for the scheme nearest to one with measured scales of inputs that has none.

    >>> from quantcli.planning.named import fields
    >>> from quantcli import Scheme
    >>> without(Scheme(**fields("FP8")), "compressed-tensors")
    'use --scheme FP8_DYNAMIC, which needs none'
    """
    export = named(to) if to is not None else None
    if export is not None and export.nearest is not None:
        return export.nearest(scheme)
    return f"use --scheme {STATIC[scheme.activations]}, which needs none"


def with_scales(tensors: Sequence[Decided], scales: InputScales | None, to: str | None) -> Sequence[Decided]:
    """Tensors with the scales of their inputs; those that a runtime joins have the largest of theirs. to: the target.
    Raises UsageError where a scheme needs one that is not there, or that the native layout would not hold, and for
    scales that no scheme needs."""
    if not any(t.scheme is not None and t.scheme.activations in STATIC for t, _ in alike(tensors)):
        if scales is None:
            return tensors
        hint = f"leave it out, or use --scheme {' or '.join(_WITH_SCALES)}"
        raise UsageError("no scheme here has measured scales of inputs", place=[OPTION], hint=hint)
    static = {t.info.name: t for t in tensors if t.scheme is not None and t.scheme.activations in STATIC}
    found = dict[str, Decided]()
    for name, tensor in static.items():
        assert isinstance(tensor, Quantized)
        own, near = module_of(name), without(tensor.scheme, to)
        if scales is None:
            problem = "its scheme has scales of inputs that are measured on data"
            hint = f"give a file of them with {OPTION}, or {near}"
            raise UsageError(problem, place=[printable(name)], hint=hint)
        if to is None:
            hint = "use --to compressed-tensors or --to modelopt"
            raise UsageError("native files do not hold scales of inputs", place=[printable(name)], hint=hint)
        if own not in scales.values:
            hint = f"keep it with --exclude, or {near}"
            raise UsageError(f"{scales.path} has no {own}{NAMES[0]}", place=[printable(name)], hint=hint)
        joined = [scales.values.get(module_of(other), 0.0) for other in partners(name, static)]
        found[name] = replace(tensor, input_scale=max(scales.values[own], *joined, -math.inf))
    return [found.get(t.info.name, t) for t in tensors]
