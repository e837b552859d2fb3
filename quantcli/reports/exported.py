"""Exports: what became of each tensor on its way to another tool, and what that cost."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quantcli import terminal as t
from quantcli.errors import printable
from quantcli.metrics import NOTHING, Metrics
from quantcli.patterns import module_of
from quantcli.reports.build import rows
from quantcli.reports.documents import PEOPLE_ONLY, SCHEMA_VERSION, Display, Line, Part, document, outline
from quantcli.stores.pipelines import prefixed, within
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.moving_records import Moving
    from quantcli.passes.export import Export


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedTensor:
    """One tensor.

    disposition: `exported`, `requantized` or `decoded` (to floating point) on request, `kept`, or `left out` where the
    target has no place for it. stored: the parts it is stored as. lossless: whether it stands for just the numbers of
    the native file. native_sqnr_db: what the native file says it cost; sqnr_db: what the export cost, against the
    native weights (None where it was lossless, where only F64 was rounded, or where nothing reads the target back).
    """

    name: str
    shape: list[int]
    disposition: str
    scheme: str | None
    exported_scheme: str | None
    stored: str
    lossless: bool
    native_sqnr_db: float | None
    native_exact: bool
    sqnr_db: float | None
    max_abs_error: float | None
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """An export; sqnr_db is that of all tensors that were not lossless against their native weights. config: what the
    loader wants in config.json, of a pipeline by component. notes: what it will and will not do. warnings: files beside
    the weights that were left out, or copied unquantized, and components that are kept whole."""

    source: str
    output: str
    target: str
    tensors: Sequence[ExportedTensor]
    notes: list[str]
    warnings: list[str]
    config: dict[str, Any]
    copied: list[str]
    lossless: bool
    sqnr_db: float | None
    bytes_in: int
    bytes_out: int
    seconds: float
    counts: Mapping[tuple[str, bool], int] = field(metadata=PEOPLE_ONLY)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, `schema_version` first; all numbers finite."""
        return document("export", self)

    def outline(self) -> dict[str, Any]:
        """What `as_dict` holds, with records as they are."""
        return {"schema_version": SCHEMA_VERSION, "command": "export", **outline(self)}

    def parts(self, display: Display) -> Iterator[Part]:
        """The cost, then every tensor: what lost most first."""
        counts = Counter[str]()
        for (disposition, _), count in self.counts.items():
            counts[disposition] += count
        what = ", ".join(f"{n} {word}" for word, n in counts.most_common())
        cost = f"SQNR {t.decibels(self.sqnr_db, False)} dB where it was not lossless"
        if self.lossless or self.sqnr_db is None:
            cost = "lossless" if self.lossless else "not lossless"
        yield Line(f"{printable(self.source, 200)} -> {printable(self.output, 200)}", strong=True)
        yield Line(f"{self.target}: {what}; {cost}")
        yield Line(f"{t.size(self.bytes_in)} -> {t.size(self.bytes_out)}, {self.seconds:.2f} s")
        yield Line()
        limit = len(self.tensors) if display.limit is None else display.limit
        shown = heapq.nsmallest(
            limit, self.tensors, key=lambda r: (r.disposition == "kept", r.lossless, r.sqnr_db or 0.0)
        )
        yield _table(shown)
        if len(shown) < len(self.tensors):
            left = Counter(self.counts) - Counter((r.disposition, r.lossless) for r in shown)
            lossless = sum(count for (word, same), count in left.items() if same and word != "kept")
            kept = left["kept", True] + left["kept", False]
            yield Line(f"and {left.total()} more: {lossless} lossless, {kept} kept; --all shows them")


def report_of(
    exports: Mapping[str, Export],
    rounded: Mapping[str, Set[str]],
    *,
    source: str,
    output: str,
    target: str,
    warnings: Sequence[str],
    copied: Sequence[str],
    bytes_in: int,
    bytes_out: int,
    seconds: float,
) -> ExportReport:
    """The report on models by name, a single one under an empty name. rounded: which of their tensors no longer stand
    for the same numbers; bytes_in, bytes_out: of all weights."""
    found = {name: export.outgoing.conversion for name, export in exports.items()}
    tensors = rows(
        sum(len(export.model) for export in exports.values()),
        lambda: (
            _tensor(within(name, own), moving, export, rounded[name])
            for name, export in exports.items()
            for own, moving in export.model.items()
        ),
    )
    counts = Counter((tensor.disposition, tensor.lossless) for tensor in tensors)
    errors = [m for export in exports.values() for m in export.metrics.values() if m is not None and not m.exact]
    configs = {name: dict(conversion.config) for name, conversion in found.items()}
    return ExportReport(
        source=source,
        output=output,
        target=target,
        tensors=tensors,
        notes=[prefixed(name, line) for name, conversion in found.items() for line in conversion.notes],
        warnings=list(warnings),
        config=configs.get("", configs),
        copied=list(copied),
        lossless=all(lossless for _, lossless in counts),
        sqnr_db=sum(errors, NOTHING).sqnr_db if errors else None,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        seconds=seconds,
        counts=counts,
    )


def _tensor(shown: str, moving: Moving, export: Export, rounded: Set[str]) -> ExportedTensor:
    """What became of a tensor. shown: its name, of a pipeline with that of the component."""
    name = moving.decided.info.name
    job = export.outgoing.jobs.get(name)
    outputs = job.outputs if job is not None else ()
    error: Metrics | None = export.metrics.get(name)
    final, requantized = export.outgoing.by_name[name], name in export.wanted
    disposition = "kept" if moving.scheme is None else "exported"
    if requantized:
        disposition = "decoded" if final.scheme is None else "requantized"
    if job is None:
        disposition = "left out"
    return ExportedTensor(
        name=shown,
        shape=list(moving.decided.info.shape),
        disposition=disposition,
        scheme=moving.scheme,
        exported_scheme=final.scheme.name if final.scheme else None,
        stored=(job.kind if job else "") or stored(name, outputs),
        lossless=bool(error and error.exact) if requantized else name not in rounded,
        native_sqnr_db=moving.metrics.sqnr_db if moving.metrics else None,
        native_exact=moving.scheme is None or bool(moving.metrics and moving.metrics.exact),
        sqnr_db=error.sqnr_db if error else None,
        max_abs_error=error.max_abs_error if error else None,
        bytes_in=moving.bytes_in,
        bytes_out=sum(o.nbytes for o in outputs),
    )


def stored(name: str, outputs: Sequence[TensorInfo]) -> str:
    """The parts a tensor is stored as, without the module's name.

    >>> stored("a.weight", [TensorInfo("a.qweight", "I32", (4, 8)), TensorInfo("a.scales", "F16", (1, 8))])
    'qweight I32, scales F16'
    """
    if len(outputs) == 1 and outputs[0].name == name:
        return outputs[0].dtype
    module = module_of(name)
    names = [o.name.removeprefix(f"{name}\0") for o in outputs]  # of ONNX, which has other names in the file
    shown = [own.removeprefix(f"{module}.") if module else own for own in names]
    return ", ".join(f"{own} {o.dtype}" for own, o in zip(shown, outputs))


def _loss(tensor: ExportedTensor) -> str:
    if tensor.disposition in ("kept", "left out"):
        return "-"
    return "lossless" if tensor.lossless else t.decibels(tensor.sqnr_db, False)


def _table(rows: Sequence[ExportedTensor]) -> t.Table:
    table = t.Table(
        [
            t.Column("tensor"),
            t.Column("shape", from_width=60),
            t.Column("scheme"),
            t.Column("stored as", from_width=100),
            t.Column("native dB", right=True),
            t.Column("export dB", right=True),
            t.Column("bytes", right=True, from_width=50),
        ]
    )
    for r in rows:
        became = f" -> {r.exported_scheme or 'float'}" if r.disposition in ("requantized", "decoded") else ""
        became = ", left out" if r.disposition == "left out" else became
        table.add(
            r.name,
            t.shape(r.shape),
            (r.scheme or "kept") + became,
            r.stored,
            "-" if r.scheme is None else t.decibels(r.native_sqnr_db, r.native_exact),
            _loss(r),
            t.size(r.bytes_out),
            style="dim" if r.disposition in ("kept", "left out") else "" if r.lossless else "yellow",
        )
    return table
