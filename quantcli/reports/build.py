"""Reports on plans, on stored files, and on what other tools wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING, TypeVar

from quantcli.each import Each, Remade
from quantcli.layouts.native.document import Result
from quantcli.layouts.native.stored import StoredTensor
from quantcli.metrics import Metrics, Sum
from quantcli.planning.entry import WIDER
from quantcli.planning.reasons import LEFT_OUT, SMALL, is_left_out
from quantcli.planning.request import Request
from quantcli.planning.unquantized import AnotherKind, Entry, MostlyKept
from quantcli.reports.cautions import beaten, cautions, offset_warning, unweighted
from quantcli.reports.gathered import Equal, Glance, Named, Told, Totals
from quantcli.reports.joined import Reported
from quantcli.reports.records import OutputReport, TensorReport, tensor_report
from quantcli.reports.run import RunReport
from quantcli.stores.pipelines import prefixed, within
from quantcli.tensors.decided import Decided
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.layouts.origins import Origin
    from quantcli.models import View
    from quantcli.passes.examine import Examined
    from quantcli.stores import Source
    from quantcli.stores.pipelines import Component
    from quantcli.tensors.second_order import Output


T = TypeVar("T")

HELD = 20_000
"""Tensors up to which a report holds its rows, some 10 MB: to make them each time takes 8 microseconds a row."""


def of_plan(
    plan: Sequence[Decided],
    results: Sequence[Result | None],
    nbytes: Callable[[Decided], int],
    *,
    command: str,
    source: str,
    output: str | None,
    bytes_in: int,
    bytes_out: int,
    seconds: float | None,
    request: Request | None = None,
) -> RunReport:
    """The report on a plan, carried out (with results) or not. nbytes: of a tensor in the output. request: what it
    follows, where that is known. What it says of each of many tensors is made when it is asked for."""

    def made() -> Iterator[tuple[Decided, TensorReport, Metrics | None]]:
        for tensor, result in zip(plan, results or repeat(None)):
            found = result or _NOT_WRITTEN
            yield tensor, _planned(tensor, found, nbytes(tensor)), found.metrics

    def one(number: int) -> TensorReport:
        tensor = plan[number]
        return _planned(tensor, (results[number] if results else None) or _NOT_WRITTEN, nbytes(tensor))

    def told(number: int) -> Told:
        info, result = plan[number].info, results[number] if results else None
        return info.nbytes, info.dtype, info.shape, result.digest if result is not None else None

    whole, held = _Whole(plan, request), list[TensorReport]()
    for tensor, t, metrics in made():
        whole.add(tensor, t, metrics)
        if len(plan) <= HELD:
            held.append(t)
    tensors = held or rows(len(plan), lambda: (t for _, t, _ in made()), one)
    return RunReport(
        command=command,
        source=source,
        output=output,
        tensors=tensors,
        warnings=whole.warnings(tensors),
        equal=whole.equal.found(told, lambda number: plan[number].info.name),
        summary=whole.totals.summary(
            whole.metrics.found if whole.metrics.count else None,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            seconds=seconds,
        ),
        glance=whole.glance,
    )


class _Whole:
    """What is said of all tensors of a plan together."""

    def __init__(self, plan: Sequence[Decided], request: Request | None) -> None:
        self._plan, self._request = plan, request
        self.totals, self.equal, self.metrics, self.glance = Totals(), Equal(), Sum(), Glance()
        self._wider = Named("float32 scales, because float16 would not hold them")
        self._nonfinite = Named("left in floating point, because they hold NaN or infinity")
        self._larger = Named("as large in codes as before or larger, which --exclude keeps as they are")
        self._other, self._kept, self._beaten = AnotherKind(), MostlyKept(request), list[str]()

    def add(self, tensor: Decided, t: TensorReport, metrics: Metrics | None) -> None:
        """Take in a tensor, what is reported of it, and its errors."""
        self.totals.add(t)
        self.equal.add(t)
        self.glance.add(t)
        self._beaten += beaten(t)
        if metrics is not None:
            self.metrics.add(metrics)
        if t.note.startswith(WIDER):
            self._wider.add(t.name)
        if t.reason == "nonfinite":
            self._nonfinite.add(t.name)
        if tensor.scheme is not None and t.bytes_out >= tensor.info.nbytes and tensor.info.numel >= SMALL:
            self._larger.add(t.name)
        if t.reason != LEFT_OUT:
            entry = Entry(tensor, t.bytes_out)
            self._other.add(entry)
            self._kept.add(entry)

    def warnings(self, tensors: Sequence[TensorReport]) -> list[str]:
        """The warnings about what a plan does to tensors, and about what it leaves in floating point or does not.
        tensors: what is reported of each."""
        plan = self._plan
        entries = Remade(lambda: (Entry(d, t.bytes_out) for d, t in zip(plan, tensors) if t.reason != LEFT_OUT))
        return [
            *self._wider.lines(),
            *self._nonfinite.lines(),
            *self._larger.lines(),
            *unweighted(plan),
            *offset_warning(plan, self._request),
            *cautions(plan),
            *self._beaten,
            *self._other.lines(),
            *self._kept.lines(entries),
        ]


_NOT_WRITTEN = Result(None, None)


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
        glance=None if earlier or notes else report.glance,
        decoded_from=joined(report.decoded_from, source.decoded_from),
        arranged=joined(report.arranged, source.arranged),
    )


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

    def one(number: int) -> TensorReport:
        s = stored[number]
        return _stored_report(s, metrics[number], examined[number] if examined else None, outputs)

    def made() -> Iterator[TensorReport]:
        others = zip(stored, metrics, examined or repeat(None))
        return (_stored_report(s, m, known, outputs) for s, m, known in others)

    kept, lines = MostlyKept(what=what), list[str]()
    for number, (s, m) in enumerate(zip(stored, metrics)):
        kept.add(s)
        if m is not None and (minmax := s.minmax_sse) is not None and m.sse > minmax:
            lines += beaten(one(number))
    return Reported(
        tensors=rows(len(stored), made, one),
        metrics=metrics,
        warnings=[*lines, *kept.lines(stored)],
        bytes_in=bytes_in,
        bytes_out=bytes_out,
    )


def _stored_report(
    s: StoredTensor, m: Metrics | None, examined: Examined | None, outputs: Mapping[str, Output] | None
) -> TensorReport:
    """The report on a tensor that quantcli quantized. outputs: as `of_stored` takes them."""
    known = s.result
    return tensor_report(
        s.info,
        s.scheme,
        reason=s.reason,
        note=s.note,
        scale_dtype=s.scale_dtype,
        bytes_out=s.bytes_out,
        metrics=m,
        minmax_sse=known.minmax_sse,
        digest=known.digest,
        examined=examined,
        weighted=s.statistics is not None,
        output=known.output if outputs is None else outputs.get(s.info.name),
    )


def rows(count: int, make: Callable[[], Iterable[T]], one: Callable[[int], T] | None = None) -> Sequence[T]:
    """What is reported of each tensor: of many it is made each time that it is asked for. make, one: as in `Each`."""
    return Each(count, make, one) if count > HELD else list(make())


def of_views(
    views: Mapping[str, View],
    metrics: Sequence[Metrics | None] | None,
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
            pair_report(None, view, m) if metrics is not None else _view_report(view, None, exact=True),
            recorded.get(name),
        )
        for (name, view), m in zip(views.items(), repeat(None) if metrics is None else metrics)
    ]
    costs = outputs or {}
    tensors = [replace(t, output=OutputReport.of(costs[t.name])) if t.name in costs else t for t in tensors]
    decoded = sum(view.info.nbytes for view in views.values())
    unknown = "the file does not record the size of its source, so it is compared with float32"
    return Reported(
        tensors=tensors,
        metrics=metrics or (),
        floats=bytes(view.scheme is None for view in views.values()),
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


def pair_report(a: View | None, b: View, m: Metrics | None) -> TensorReport:
    note = "" if a is None or a.scheme == b.scheme else f"was {a.scheme or a.info.dtype}"
    return _view_report(b, m, exact=m is not None and m.exact, note=note)


def _view_report(view: View, m: Metrics | None, *, exact: bool, note: str = "") -> TensorReport:
    """The report on a tensor as it is decoded; exact: whether it is what it is measured against, if at all."""
    disposition = "quantized" if view.scheme else "kept" if exact else "changed"
    otherwise = {
        "disposition": disposition,
        "exact": (exact and disposition == "kept") or (m is not None and m.exact),
        "scheme": view.scheme,
        "bits": view.bits,
        "clipped_fraction": None if disposition == "kept" or m is None or not m.clipped else m.clipped_fraction,
    }
    return tensor_report(
        view.info,
        view.stored.scheme if view.stored is not None else None,
        reason="" if view.scheme else "as-stored" if m is None and exact else "same" if exact else "differs",
        note=note,
        scale_dtype="",
        bytes_out=view.bytes_out,
        metrics=m,
        minmax_sse=None,
        digest=None,
        otherwise=otherwise,
    )
