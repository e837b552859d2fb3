"""What audits do with paths: models opened and matched by the names of their tensors, and the outcomes put together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from quantcli.dtypes import DTYPES, to_float32
from quantcli.errors import DataError, printable
from quantcli.layouts import companions, evidence
from quantcli.layouts.groups import Stated
from quantcli.layouts.reader import SMALL_FLOATS
from quantcli.matching import Pair, paired, under_one_name, without_left_out
from quantcli.models import Model, View, open_model
from quantcli.passes.audit import EXTRA, Audited, audit
from quantcli.passes.audit_method import UNRELATED
from quantcli.passes.tiles import Progress
from quantcli.stores import need_file
from quantcli.stores.pipelines import prefixing, within
from quantcli.tensors.info import TensorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedFile:
    """An audit of a file or folder. layout: what stores its codes, in words; notes: how tensors were matched."""

    layout: str
    tensors: tuple[Audited, ...]
    notes: tuple[str, ...]


def audit_path(path: str, source: str, *, variant: str | None, threads: int, progress: Progress | None) -> AuditedFile:
    """What every tensor of a quantized model at a path is, beside those of the base at another one.

    Raises QuantcliError for what cannot be read, DataError where nothing is quantized or nothing matches.
    """
    found, layouts, notes = list[Audited](), dict[str, None](), list[str]()
    for pair in paired(source, path, variant):
        if pair.after is None or pair.before is None:
            where = source if pair.after is None else path
            raise DataError(f"{printable(pair.name)} is only in {where}", place=[path])
        with open_model(pair.after.path, variant=pair.after.variant) as model:
            need_file(model.source, "auditing")
            if model.is_native:
                model.stored.check_headers()
            with open_model(pair.before.path, variant=pair.before.variant) as base:
                need_file(base.source, "auditing")
                tensors, layout = _audited(base, model, pair, notes, threads, progress)
        found += [replace(t, name=within(pair.name, t.name)) for t in tensors]
        layouts[layout] = None
    if not any(t.sample is not None or t.scheme in SMALL_FLOATS for t in found):
        raise DataError("it holds no quantized tensor", place=[path], hint="inspect shows any file, compare two models")
    return AuditedFile(layout="; ".join(filter(None, layouts)), tensors=tuple(found), notes=tuple(notes))


def _audited(
    base: Model, model: Model, pair: Pair, notes: list[str], threads: int, progress: Progress | None
) -> tuple[list[Audited], str]:
    """The tensors of one model, and its layout in words."""
    say = prefixing(pair.name, notes.append)
    before, after, note = under_one_name(base, model)
    before, left = without_left_out(before, after, base, model)
    for line in filter(None, (note, left, *model.source.warnings, *base.source.warnings)):
        say(line)
    own = {n for n, view in after.items() if view.scheme is not None}
    arranged = {n for n in after if n not in model and model.quantized} if not own else set()
    try:
        tensors = audit(before, after, own | arranged, threads=threads, progress=progress)
    except DataError as error:
        raise error.within(model.path) from None
    _check_rotated(model, tensors)
    infos = model.source.named()
    tensors = [_with_scales_of_inputs(t, model, after, infos) for t in tensors]
    if model.source.graph is not None:
        scales = model.source.graph.parameters
        tensors = [_excused(t) if t.name in scales else t for t in tensors]
    if model.is_native:
        return tensors, "quantcli's own"
    seen = evidence.found_in(model.source, evidence.beside(model.path)) if model.quantized else None
    return tensors, str(seen) if seen is not None else ""


def _with_scales_of_inputs(
    tensor: Audited, model: Model, after: Mapping[str, View], infos: Mapping[str, TensorInfo]
) -> Audited:
    """A tensor; named where a scale of activations beside it, which decoding does without, is no positive number."""
    wrong = []
    for name in after[tensor.name].unused if tensor.name in after else ():
        info = infos[name]
        if name.rpartition(".")[2] in companions.MARKS or not DTYPES[info.dtype].is_float:
            continue
        raw = np.empty(info.nbytes, np.uint8)
        model.source.read(name, 0, raw.data)
        values = to_float32(raw, info.dtype)
        if not (np.isfinite(values) & (values > 0)).all():
            wrong.append(f"{printable(name)} is not a positive number")
    return replace(tensor, problems=(*tensor.problems, *wrong)) if wrong else tensor


def _check_rotated(model: Model, tensors: list[Audited]) -> None:
    """Raise DataError where tensors are none of the base and the configuration says that weights were rotated."""
    if any(t.method == UNRELATED for t in tensors) and Stated(evidence.beside(model.path)).transforms:
        problem = "its weights were rotated (transform_config in config.json): audit compares them with no base"
        raise DataError(problem, place=[model.path])


def _excused(tensor: Audited) -> Audited:
    """A tensor of a graph that is a scale or zero point of what the model computes, which no base has."""
    if tensor.became != EXTRA or math.prod(tensor.shape) > 1:
        return tensor
    return replace(tensor, problems=(), note="it says how the model's inputs or results are quantized")
