"""One report on all the models that a path names: on the only one, or on the components of a pipeline together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat

from quantcli.errors import printable
from quantcli.metrics import Metrics
from quantcli.reports.gathered import Counted, Equal, Glance, Totals, named, told_of
from quantcli.reports.records import Comparison, ComponentReport, TensorReport, loss_first
from quantcli.reports.run import RunReport
from quantcli.stores.pipelines import prefixed, within


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Reported:
    """What is reported of one model. metrics: of each tensor, None where it was not measured; empty where none was.
    floats: whether each is in floating point before and after; empty where none is. kind: the class that loads it, of a
    component; kept: why nothing of it is quantized, empty where something is."""

    tensors: Sequence[TensorReport]
    metrics: Sequence[Metrics | None] = ()
    floats: Sequence[int] = b""
    bytes_in: int
    bytes_out: int
    warnings: Sequence[str] = ()
    comparison: Comparison | None = None
    kind: str = ""
    kept: str = ""

    def counted(self) -> Iterator[tuple[TensorReport, Metrics | None, bool]]:
        """Each tensor with its errors, and whether it is in floating point before and after."""
        others = chain(self.metrics, repeat(None)), chain(self.floats, repeat(0))
        return ((t, metrics, bool(floating)) for t, metrics, floating in zip(self.tensors, *others))


def report_of(
    found: Mapping[str, Reported], *, command: str, source: str, output: str | None, seconds: float | None
) -> RunReport:
    """The report on models by their names, one under an empty name or components of a pipeline."""
    alone = found.get("") if len(found) == 1 else None
    tensors: Sequence[TensorReport]
    if alone is not None:
        tensors, comparison = alone.tensors, alone.comparison
    else:
        tensors = [replace(t, name=within(name, t.name)) for name, one in found.items() for t in one.tensors]
        comparison = _compared({name: one.comparison for name, one in found.items()})
    totals, counted, equal, glance = Totals(), Counted(), Equal(), Glance()
    for t, metrics, floating in chain.from_iterable(one.counted() for one in found.values()):
        counted.add(t, metrics, floating=floating)
        for seen in (totals, equal, glance):
            seen.add(t)
    return RunReport(
        command=command,
        source=source,
        output=output,
        tensors=tensors,
        comparison=comparison,
        warnings=[
            *_alone(comparison, source, output or ""),
            *(prefixed(name, line) for name, one in found.items() for line in one.warnings),
        ],
        equal=equal.found(*told_of(tensors)),
        summary=totals.summary(
            counted.found,
            bytes_in=sum(one.bytes_in for one in found.values()),
            bytes_out=sum(one.bytes_out for one in found.values()),
            seconds=seconds,
        ),
        components=[component(name, one) for name, one in found.items() if name and one.tensors],
        glance=glance,
    )


def component(name: str, one: Reported) -> ComponentReport:
    """The report on one model of a pipeline as a whole."""
    totals, counted = Totals(), Counted()
    for t, metrics, floating in one.counted():
        totals.add(t)
        counted.add(t, metrics, floating=floating)
    s = totals.summary(counted.found, bytes_in=one.bytes_in, bytes_out=one.bytes_out, seconds=None)
    return ComponentReport(
        name=name,
        kind=one.kind,
        kept=one.kept,
        tensors=s.tensors,
        quantized=sum(t.disposition == "quantized" for t in one.tensors),
        parameters=s.parameters,
        coverage=s.coverage,
        bits_per_weight=s.bits_per_weight,
        sqnr_db=s.sqnr_db,
        exact=s.exact,
        bytes_in=s.bytes_in,
        bytes_out=s.bytes_out,
    )


def _compared(found: Mapping[str, Comparison | None]) -> Comparison | None:
    """What changed in all models together."""
    known = {name: one for name, one in found.items() if one is not None}
    if not known:
        return None
    changes = [replace(c, tensor=within(name, c.tensor)) for name, one in known.items() for c in one.changes]
    return Comparison(
        baseline=next(iter(known.values())).baseline,
        changes=sorted(changes, key=loss_first),
        new=[within(name, n) for name, one in known.items() for n in one.new],
        vanished=[within(name, n) for name, one in known.items() for n in one.vanished],
    )


def _alone(found: Comparison | None, source: str, output: str) -> list[str]:
    """The warnings about tensors that only one of two models has."""
    if found is None:
        return []
    sides = ((output, found.new), (source, found.vanished))
    return [
        line for path, names in sides for line in named(f"only in {printable(path, 200)}", list(map(printable, names)))
    ]
