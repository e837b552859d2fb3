"""Codes of 4-bit floats as a target has them: MXFP4 as NVFP4, and NVFP4 with and without a scale of the tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from quantcli.asking import Scheme
from quantcli.errors import UsageError, printable
from quantcli.layouts.as_nvfp4 import alone, nvfp4, tensor_scale
from quantcli.layouts.held import Moved
from quantcli.layouts.reader import Held
from quantcli.layouts.writer import named
from quantcli.moving_records import Movable, Moving
from quantcli.stores.compact import Made
from quantcli.tensors.decided import Quantized
from quantcli.tensors.fused import partners
from quantcli.tensors.rows import grouping_of

MXFP4, NVFP4, ALONE = (
    Scheme(format="fp4", group_size=size, scale_dtype=dtype)
    for size, dtype in ((32, "float8_e8m0"), (16, "float8_e4m3"), (16, "float8_e4m3_alone"))
)
AS = {"MXFP4A16": MXFP4, "NVFP4A16": NVFP4}
"""What codes of MXFP4 can be moved as."""


def of_mxfp4(model: Movable, to: str, asked: str | None) -> Movable:
    """A model with codes of MXFP4 as they are, or as NVFP4 where that is asked for or all that the target has."""
    if asked is not None and not any((t.scheme or "").lower() == MXFP4.name for t in model.values()):
        raise UsageError(f"--scheme {asked} is for weights of MXFP4, and it has none", hint="leave it out")
    accepts = named(to).accepts
    only = accepts.obstacle(MXFP4) is not None and accepts.obstacle(NVFP4) is None
    if AS.get(asked or "", NVFP4 if only else MXFP4) is MXFP4:
        return model
    held = {name: codes for name, tensor in model.items() if (codes := _codes_of(tensor, MXFP4)) is not None}
    known: dict[tuple[str, ...], float | str] = {}
    tensors = {name: _as_nvfp4(name, model, held, known) if name in held else t for name, t in model.items()}
    return Movable(model.source, tensors, model.notes)


def _codes_of(tensor: Moving, wanted: Scheme) -> Held | None:
    """The codes of a weight, where they are those of a scheme."""
    scheme = tensor.decided.scheme
    if scheme is None or (scheme.name, scheme.storage) != (wanted.name, wanted.storage) or tensor.obstacle:
        return None
    found = tensor.codes.held if isinstance(tensor.codes, Moved) else tensor.view.held()
    return found if isinstance(found, Held) else None


def _as_nvfp4(name: str, model: Movable, held: Mapping[str, Held], known: dict[tuple[str, ...], float | str]) -> Moving:
    """A weight of MXFP4 as NVFP4. known: the scales of tensors, which weights share that runtimes join."""
    tensor = model[name]
    together = tuple(sorted((name, *(n for n in partners(name, model) if model[n].scheme is not None))))
    if together not in known:
        others = [n for n in together if n not in held]
        shapes = ((n, model[n].decided.info.shape) for n in together)
        known[together] = (
            f"it shares the scale of the tensor with {printable(others[0], 200)}, which is not of MXFP4" if others
            else tensor_scale([(held[n], math.prod(shape[:-1]), shape[-1]) for n, shape in shapes])
        )  # fmt: skip
    overall, info = known[together], tensor.decided.info
    plan = grouping_of(info.shape, NVFP4)
    weight = Quantized(info=info, reason=tensor.decided.reason, scheme=NVFP4, grouping=plan, scale_dtype="F8_E4M3")
    return _with_codes(tensor, weight, overall if isinstance(overall, str) else nvfp4(held[name], overall))


def _with_codes(tensor: Moving, weight: Quantized, found: Held | str) -> Moving:
    """A tensor as another weight, with its codes or why there are none."""
    if isinstance(found, str):
        return replace(tensor, decided=weight, obstacle=found)
    return replace(tensor, decided=weight, codes=Moved(found, weight.scheme, weight.grouping))


def of_nvfp4(model: Movable, to: str) -> Movable:
    """A model with codes of NVFP4 as the target has them: with or without a scale of the tensor."""
    accepts = named(to).accepts
    with_scale, without = (accepts.obstacle(scheme) is None for scheme in (NVFP4, ALONE))
    if with_scale == without:
        return model
    before, after = (NVFP4, ALONE) if without else (ALONE, NVFP4)
    found = dict[str, Moving]()
    for name, tensor in model.items():
        held = _codes_of(tensor, before)
        if held is None:
            continue
        assert isinstance(tensor.decided, Quantized)
        shape = tensor.decided.info.shape
        codes = alone(held, math.prod(shape[:-1]), shape[-1]) if without else held
        found[name] = _with_codes(tensor, replace(tensor.decided, scheme=after), codes)
    if not found:
        return model
    return Movable(model.source, Made(model, lambda tensor: found.get(tensor.decided.info.name, tensor)), model.notes)
