"""Reports on plans, on stored files, and on what other tools wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from quantcli import registry
from quantcli.errors import printable
from quantcli.layouts import writer
from quantcli.layouts.native.document import Result
from quantcli.layouts.native.stored import StoredTensor
from quantcli.metrics import NOTHING, Metrics
from quantcli.planning.entry import WIDER
from quantcli.planning.plan import UNWEIGHTED
from quantcli.planning.reasons import LEFT_OUT, is_left_out
from quantcli.planning.request import Request
from quantcli.planning.unquantized import mostly_kept, of_another_kind, sized
from quantcli.reports.joined import Reported, equal, named
from quantcli.reports.records import (
    Change,
    Comparison,
    OutputReport,
    TensorReport,
    loss_first,
    summarize,
    tensor_report,
)
from quantcli.reports.run import RunReport
from quantcli.stores.pipelines import prefixed, within
from quantcli.tensors.decided import Decided
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.layouts.origins import Origin
    from quantcli.models import View
    from quantcli.passes.examine import Examined
    from quantcli.scheme import Scheme
    from quantcli.stores import Source
    from quantcli.stores.pipelines import Component
    from quantcli.tensors.second_order import Output


def of_plan(
    plan: Sequence[Decided],
    results: Mapping[str, Result] | None,
    nbytes: Callable[[str], int],
    *,
    command: str,
    source: str,
    output: str | None,
    bytes_in: int,
    bytes_out: int,
    seconds: float | None,
    request: Request | None = None,
) -> RunReport:
    """The report on a plan, carried out (with results) or not. nbytes: of a tensor in the output, by name. request:
    what it follows, where that is known."""
    planned, unquantized = _of_decisions(plan, nbytes, request)
    nothing, known = Result(None, None), results or {}
    tensors, whole = list[TensorReport](), NOTHING
    for t in plan:
        r = known.get(t.info.name, nothing)
        tensors.append(_planned(t, r, nbytes(t.info.name)))
        whole = whole if r.metrics is None else whole + r.metrics
    warnings = [
        *named(
            "float32 scales, because float16 would not hold them", [t.name for t in tensors if t.note.startswith(WIDER)]
        ),
        *named(
            "left in floating point, because they hold NaN or infinity",
            [t.name for t in tensors if t.reason == "nonfinite"],
        ),
        *planned,
        *_beaten(tensors),
        *unquantized,
    ]
    measured = None if whole is NOTHING else whole
    return RunReport(
        command=command,
        source=source,
        output=output,
        tensors=tensors,
        warnings=warnings,
        equal=equal(tensors),
        summary=summarize(tensors, measured, bytes_in=bytes_in, bytes_out=bytes_out, seconds=seconds),
    )


def _of_decisions(
    plan: Sequence[Decided], nbytes: Callable[[str], int], request: Request | None
) -> tuple[list[str], list[str]]:
    """The warnings about what a plan does to tensors, and about what it leaves in floating point or does not."""
    entries = [t for t in sized(plan, nbytes) if not is_left_out(t.info, t.bytes_out)]
    left = [*of_another_kind(entries), *mostly_kept(entries, request)]
    return [*unweighted(plan), *_offset_warning(plan, request), *_cautions(plan)], left


def _planned(t: Decided, r: Result, bytes_out: int) -> TensorReport:
    """The report of one tensor of a plan."""
    gone = is_left_out(t.info, bytes_out)
    return tensor_report(
        t.info,
        None if gone else r.scheme or t.scheme,
        reason=LEFT_OUT if gone else t.reason,
        note=t.note,
        scale_dtype="" if gone else t.scale_dtype,
        bytes_out=bytes_out,
        metrics=r.metrics,
        minmax_sse=r.minmax_sse,
        digest=r.digest,
        weighted=t.columns is not None,
        output=None if gone else r.output,
    )


def with_source(report: RunReport, source: Source, component: str = "") -> RunReport:
    """A report that also says what tensors are decoded from, what that had cost, how experts were arranged, and what
    else was done to tensors before they were quantized. component: of a pipeline, where the source is one; the report
    has its tensors under this name."""
    earlier = {within(component, name): found for name, found in source.earlier.items()}
    notes = {within(component, name): line for name, line in source.notes.items()}

    def recorded(tensor: TensorReport) -> TensorReport:
        if tensor.name in notes:
            tensor = replace(tensor, note="; ".join(line for line in (notes[tensor.name], tensor.note) if line))
        found = earlier.get(tensor.name)
        if found is None:
            return tensor
        sqnr = found.metrics.sqnr_db if found.metrics is not None else None
        return replace(tensor, source_scheme=found.scheme, source_sqnr_db=sqnr)

    def joined(before: str, line: str) -> str:
        return "; ".join(part for part in (before, prefixed(component, line) if line else "") if part)

    return replace(
        report,
        tensors=[recorded(t) for t in report.tensors] if earlier or notes else report.tensors,
        decoded_from=joined(report.decoded_from, source.decoded_from),
        arranged=joined(report.arranged, source.arranged),
    )


def unweighted(plan: Sequence[Decided]) -> list[str]:
    """The warning about tensors that a file of importances or statistics says nothing of, if there are any."""
    found = [(note, [t.info.name for t in plan if note in t.note]) for note in UNWEIGHTED.values()]
    return [line for note, names in found for line in named(f"{note}, all columns count the same", names)]


def _offset_warning(plan: Sequence[Decided], request: Request | None) -> list[str]:
    if request is not None and request.to is not None and writer.named(request.to).offsets_only:
        return []
    own = [t.scheme for t in plan if t.scheme is not None and t.scheme.storage != "super-blocks"]  # which has no others
    if any(scheme.zero_point == "float" for scheme in own):
        return ["float offsets: 0 is not representable, and the constant error adds up over a row"]
    return []


def _cautions(plan: Sequence[Decided]) -> list[str]:
    """What is doubtful about a method for the size of a tensor's groups."""
    found: dict[str, list[str]] = {}
    for t in plan:
        if t.scheme is not None and t.scheme.calibration != "auto":
            doubt = _doubt(t.scheme, t.info.numel // t.grouping.sets)
            if doubt is not None:
                found.setdefault(doubt, []).append(printable(t.info.name))
    return [line for doubt, names in found.items() for line in named(doubt, names)]


@lru_cache(maxsize=256)
def _doubt(scheme: Scheme, count: int) -> str | None:
    """What is doubtful about a scheme for groups of so many weights."""
    caution = registry.get("calibrators", scheme.calibration).caution
    return caution(scheme, count) if caution is not None else None


def _beaten(tensors: Sequence[TensorReport]) -> list[str]:
    """Tensors on which min-max would have cost less, with both figures."""
    lines = []
    for t in tensors:
        if t.minmax_sqnr_db is not None and (t.sqnr_db is not None and t.sqnr_db < t.minmax_sqnr_db - 5e-5):
            method = f"{t.calibration}{' with sum-preserving rounding' if t.rounding == 'sum-preserving' else ''}"
            lines.append(
                f"{printable(t.name)}: {method} is worse than min-max, {t.sqnr_db:.2f} dB instead of "
                f"{t.minmax_sqnr_db:.2f} dB"
            )
    return lines


def of_stored(
    stored: Sequence[StoredTensor],
    metrics: Sequence[Metrics | None],
    *,
    what: str = "the output",
    bytes_in: int,
    bytes_out: int,
    examined: Sequence[Examined | None] | None = None,
    outputs: Mapping[str, Output] | None = None,
) -> Reported:
    """What is reported of a model that quantcli quantized. what: what its files are, in words. outputs: what errors
    cost in the outputs of layers, by tensor, where that was measured; None where the files are asked."""
    tensors = [
        tensor_report(
            s.info,
            s.scheme,
            reason=s.reason,
            note=s.note,
            scale_dtype=s.scale_dtype,
            bytes_out=s.bytes_out,
            metrics=m,
            minmax_sse=s.minmax_sse,
            digest=s.digest,
            examined=e,
            weighted=s.statistics is not None,
            output=s.cost if outputs is None else outputs.get(s.info.name),
        )
        for s, m, e in zip(stored, metrics, examined or [None] * len(stored))
    ]
    return Reported(
        tensors=tensors,
        metrics={s.info.name: m for s, m in zip(stored, metrics)},
        warnings=[*_beaten(tensors), *mostly_kept(stored, what=what)],
        bytes_in=bytes_in,
        bytes_out=bytes_out,
    )


def of_pairs(
    pairs: Mapping[str, tuple[View, View]],
    metrics: Mapping[str, Metrics | None],
    alone: tuple[list[str], list[str]],
    *,
    source: str,
    bytes_in: int,
    bytes_out: int,
) -> Reported:
    """What is reported of a model against another one: a tensor that is not floating point but differs, or float but
    not the same, is `changed`, one that is the same `kept`. alone: names only in the second, and only in the first."""
    return Reported(
        tensors=[_pair_report(a, b, metrics[name]) for name, (a, b) in pairs.items()],
        metrics=metrics,
        floats={name for name, (a, b) in pairs.items() if a.scheme is None and b.scheme is None},
        comparison=_between(pairs, alone, source),
        bytes_in=bytes_in,
        bytes_out=bytes_out,
    )


def of_views(
    views: Mapping[str, View],
    metrics: Mapping[str, Metrics | None] | None,
    *,
    bytes_in: int | None,
    bytes_out: int,
    origin: Origin | None = None,
    outputs: Mapping[str, Output] | None = None,
) -> Reported:
    """What is reported of a model that another tool quantized, measured against its original or (None) not. bytes_in:
    of the original, where there is one. origin: what the file records of it. outputs: what errors cost in the outputs
    of layers, by tensor, where that was measured."""
    recorded = origin.tensors if origin is not None else {}
    if bytes_in is None and origin is not None:
        bytes_in = origin.nbytes
    tensors = [
        _as_recorded(
            _pair_report(None, view, metrics[name]) if metrics is not None else _view_report(view, None, exact=True),
            recorded.get(name),
        )
        for name, view in views.items()
    ]
    costs = outputs or {}
    tensors = [replace(t, output=OutputReport.of(costs[t.name])) if t.name in costs else t for t in tensors]
    decoded = sum(view.info.nbytes for view in views.values())
    unknown = "the file does not record the size of its source, so it is compared with float32"
    return Reported(
        tensors=tensors,
        metrics=metrics or {},
        floats={name for name, view in views.items() if view.scheme is None},
        warnings=[unknown] if bytes_in is None else [],
        bytes_in=decoded if bytes_in is None else bytes_in,
        bytes_out=bytes_out,
    )


def as_component(one: Reported, component: Component | None, why: str | None = None) -> Reported:
    """What is reported of a model as a component of a pipeline. why: it is kept whole where nothing of it is quantized;
    None where nobody has decided on that."""
    one = replace(one, kind=component.kind if component is not None else "")
    if why is None or component is None or any(t.disposition == "quantized" for t in one.tensors):
        return one
    why = why or "nothing in it is quantized"
    kept = [replace(t, reason="component", note=why) if t.kept else t for t in one.tensors]
    return replace(one, tensors=kept, kept=why)


def _as_recorded(tensor: TensorReport, recorded: tuple[str, str] | None) -> TensorReport:
    """The report on a tensor with the dtype it had in the original, and why it was quantized or kept, where known."""
    if recorded is None:
        return tensor
    dtype, reason = recorded
    bytes_in = TensorInfo(tensor.name, dtype, tuple(tensor.shape)).nbytes
    same = tensor.disposition != "changed"
    return replace(tensor, dtype=dtype, bytes_in=bytes_in, reason=reason if same else tensor.reason)


def _pair_report(a: View | None, b: View, m: Metrics | None) -> TensorReport:
    found = _view_report(b, m, exact=m is not None and m.exact)
    return found if a is None or a.scheme == b.scheme else replace(found, note=f"was {a.scheme or a.info.dtype}")


def _view_report(view: View, m: Metrics | None, *, exact: bool) -> TensorReport:
    """The report on a tensor as it is decoded; exact: whether it is what it is measured against, if at all."""
    disposition = "quantized" if view.scheme else "kept" if exact else "changed"
    plain = tensor_report(
        view.info,
        view.stored.scheme if view.stored is not None else None,
        reason="" if view.scheme else "as-stored" if m is None and exact else "same" if exact else "differs",
        note="",
        scale_dtype="",
        bytes_out=view.bytes_out,
        metrics=m,
        minmax_sse=None,
        digest=None,
    )
    return replace(
        plain,
        disposition=disposition,
        exact=(exact and disposition == "kept") or (m is not None and m.exact),
        scheme=view.scheme,
        bits=view.bits,
        clipped_fraction=None if disposition == "kept" or m is None or not m.clipped else m.clipped_fraction,
    )


def _between(pairs: Mapping[str, tuple[View, View]], alone: tuple[list[str], list[str]], name: str) -> Comparison:
    """What changed from the first to the second by what their files say of themselves, where both say something."""

    def recorded(view: View) -> tuple[float | None, bool]:
        found = view.stored.stored.metrics if view.stored is not None else None
        return found.sqnr_db if found is not None else None, view.scheme is None or bool(found and found.exact)

    changes = []
    for a, b in pairs.values():
        (before, was_exact), (after, is_exact) = recorded(a), recorded(b)
        silent = (before is None and not was_exact) or (after is None and not is_exact)
        if silent or (a.scheme == b.scheme and before == after):
            continue
        changes.append(
            Change(
                tensor=b.info.name,
                before_db=before,
                before_exact=was_exact,
                after_db=after,
                after_exact=is_exact,
                delta_db=after - before if before is not None and after is not None else None,
                before=a.scheme or a.info.dtype,
                after=b.scheme or b.info.dtype,
            )
        )
    return Comparison(baseline=name, changes=sorted(changes, key=loss_first), new=alone[0], vanished=alone[1])
