"""What a target changes in a plan: schemes of its own, and weights that it does not store or its loader not take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from quantcli.architectures import UNNAMED, Architecture
from quantcli.asking import candidates
from quantcli.errors import UsageError
from quantcli.layouts.writer import Again, Writer, named, refusal
from quantcli.planning.entry import changed, quantized
from quantcli.planning.named import instead
from quantcli.planning.reasons import REASONS, SMALL, TABLES
from quantcli.planning.request import Request
from quantcli.scheme import Scheme
from quantcli.tensors.decided import Decided, Kept, Quantized
from quantcli.tensors.fused import partners
from quantcli.tensors.info import TensorInfo


def suited(request: Request, say: Callable[[str], None]) -> Request:
    """A request with scales as its target stores them, so that the codes are made for those. say: called where what
    a scheme says of inputs does not count."""
    if request.to is None:
        return request
    export = named(request.to)
    schemes = [s for s in (request.scheme, *(r.scheme for r in request.rules)) if s is not None]
    if any(export.ignores_inputs(s) and export.accepts.obstacle(export.suited(s)) is None for s in schemes):
        say(f"{request.to} has schemes of weights alone: its programs decide how they compute with inputs")
    rules = tuple(replace(r, scheme=export.suited(r.scheme) if r.scheme else None) for r in request.rules)
    scheme = export.suited(request.scheme) if export.base is None else export.base(request.scheme)
    return replace(request, scheme=scheme, rules=rules)


def as_its_tools(infos: Sequence[TensorInfo], reasons: Sequence[str | None], request: Request) -> dict[str, Quantized]:
    """Embeddings and output heads that are quantized: as the tools of the target do it, or because that is asked.
    reasons: to keep each tensor, where there are any."""
    found = dict[str, Quantized]()
    if request.keep_embeddings is True:
        return found
    export = named(request.to) if request.to is not None and not request.container else None
    model = request.architecture or UNNAMED
    heads = "lm-head" in reasons
    for info, reason in zip(infos, reasons):
        if reason not in TABLES or len(info.shape) < 2 or info.numel < SMALL:
            continue
        kind = "tied" if reason == "embedding" and (model.tied or not heads) else str(reason)
        table = _table(info, kind, export, request, model) if export is not None else None
        if table is not None:
            found[info.name] = table
        elif request.keep_embeddings is False:
            found[info.name] = quantized(info, request.scheme, "default")
    return found


def _table(info: TensorInfo, kind: str, export: Writer, request: Request, model: Architecture) -> Quantized | None:
    """An embedding or output head as the tools of a target quantize it in a model of this scheme; None where they do
    not, or where the target does not store it."""
    asked, again = request.scheme, request.again
    scheme = export.tables(info, kind, asked, model)
    if scheme is None:
        return None
    note = "" if scheme == asked else f"{scheme.bits} bits, as its tools do"
    try:
        table = in_place(quantized(info, scheme, "runtime", note=note), export, again)
    except UsageError:
        return None
    return table if export.unstored(table, model, again) is None else None


def unsplit(tensor: Decided, request: Request) -> Decided:
    """The plan of a tensor, kept where it holds experts that cannot be arranged for the target."""
    found = request.unsplit.get(tensor.info.name)
    if found is None or tensor.scheme is None:
        return tensor
    if not found.by_loader:
        return Kept(info=tensor.info, reason="experts", note=found.why)
    return Kept(info=tensor.info, reason="target", note=f"{request.to} cannot store it: {found.why}")


def in_place(tensor: Quantized, export: Writer, again: Again | None) -> Quantized:
    """The plan of a tensor with the nearest scheme that its target has for its rows, or that it can have in its place
    in a model that is written again."""
    if export.fitting is not None:
        return changed(tensor, *export.fitting(tensor.grouping.cols, tensor.scheme))
    if again is not None and again.suited is not None:
        return changed(tensor, *again.suited(tensor.info, tensor.scheme, tensor.reason == "rule"))
    return tensor


def nearest(scheme: Scheme, export: Writer) -> str:
    """The way out for a scheme that a target does not store; empty where there is none."""
    if export.nearest is not None:
        return export.nearest(scheme)
    found = instead(scheme, export.accepts)
    return f"use {found}, the nearest that it stores" if found else ""


def stored_by(tensor: Decided, target: str, request: Request) -> Decided:
    """The plan of a tensor, kept where the target cannot store its shape or its loader takes no quantized weight in its
    place in the model. Raises UsageError where it cannot store the scheme."""
    if tensor.scheme is None:
        return tensor
    export = named(target)
    for scheme in candidates(tensor.scheme):
        if (why := export.accepts.obstacle(scheme)) is not None:
            raise refusal(tensor.info.name, scheme, why, target, nearest(scheme, export))
    tensor = in_place(tensor, export, request.again)
    why = export.unstored(tensor, request.architecture or UNNAMED, request.again)
    return tensor if why is None else Kept(info=tensor.info, reason="target", note=f"{target} cannot store it: {why}")


CHOSEN = ("excluded", "not-included")
"""Reasons of weights that are kept because that was asked for."""


def joined(tensors: Sequence[Decided], request: Request) -> Iterable[Decided]:
    """The plan of all tensors, one after another, those kept too that the runtimes of the target join with one that is
    kept for its shape or its place. One that is kept because that was asked for is left to be refused."""
    export = named(request.to) if request.to is not None and not request.container else None
    if export is None or not export.joins:
        return tensors
    kept = {t.info.name for t in tensors if t.scheme is None and t.reason not in CHOSEN and len(t.info.shape) > 1}

    def alone(tensor: Decided) -> Decided:
        other = partners(tensor.info.name, kept) if tensor.scheme is not None else ()
        note = f"vLLM and SGLang join it with {other[0]}, which is kept" if other else ""
        return Kept(info=tensor.info, reason="target", note=note) if other else tensor

    return map(alone, tensors) if kept else tensors


def mixed(tensors: Sequence[Decided], request: Request) -> Iterable[Decided]:
    """The plan of all tensors, one after another, with the types that the kind of file gives them, where nothing else
    is asked."""
    export = named(request.to) if request.to is not None and not request.container else None
    if export is None or export.mix is None:
        return tensors
    model, weighted = request.architecture or UNNAMED, request.statistics is not None
    schemes = export.mix([t.info for t in tensors], request.scheme, model, weighted)

    def of_its_type(tensor: Decided) -> Decided:
        scheme = schemes.get(tensor.info.name)
        if tensor.scheme is None or not REASONS[tensor.reason].free or scheme is None:
            return tensor
        note = f"{scheme.name} in {request.to}" if scheme != request.scheme else ""
        return quantized(tensor.info, scheme, tensor.reason, note=note)

    return map(of_its_type, tensors)
