"""Audits: whether a quantized model is one of a base, with the evidence tensor by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from quantcli import terminal as t
from quantcli.errors import printable
from quantcli.layouts.reader import SMALL_FLOATS
from quantcli.passes.audit import EXTRA, MISSING, QUANTIZED, SCALED, SHARED, Audited
from quantcli.passes.audit_kept import CAST, CHANGED, EQUAL
from quantcli.passes.audit_method import RELATED, UNCERTAIN
from quantcli.passes.audit_path import AuditedFile
from quantcli.reports.documents import PEOPLE_ONLY, Display, Line, Part, document

KEPT = {
    EQUAL: "kept, every bit as in the base",
    CAST: "kept, in another dtype",
    SCALED: "kept, but for the gains that columns of codes have",
    SHARED: "stored once where the base has them twice",
    CHANGED: "changed",
    MISSING: "missing",
    EXTRA: "not in the base",
}
"""What tensors that are not quantized turned out to be, in the order in which they are counted."""

NEAR = 0.7
"""Least cosine of weights that were trained further, and then quantized: codes of 2 bits leave 0.9 of what they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorAudit:
    """A tensor. became: quantized, or a key of KEPT. sqnr_db: of all its weights, None where none is wrong. All that
    follows is of a sample of its rows: cosine to the weights of the base; scaled_sqnr_db with rows and columns scaled,
    where that explains the tensor; minmax_sqnr_db and best_sqnr_db of min-max scales and of the best search at its
    format; nearest_share of codes that are the nearest ones, and their nearest_sqnr_db; minmax_scales_share of groups
    with the scale of their largest weight; cleanest_column_share of nearest codes in a column; beyond_share of weights
    that moved by more than a step; codes_used of codes. changed_runs: runs of all its weights that are much farther
    from the base than the others, from the index first_changed on. shortfall_db: below the lower of the two references;
    score: robust standard deviations by which that lies below others of its scheme. problems: why it does not fit."""

    name: str
    became: str
    scheme: str
    shape: list[int]
    method: str
    sqnr_db: float | None
    max_abs_error: float | None
    cosine: float | None
    scaled_sqnr_db: float | None
    minmax_sqnr_db: float | None
    best_sqnr_db: float | None
    nearest_share: float | None
    nearest_sqnr_db: float | None
    minmax_scales_share: float | None
    cleanest_column_share: float | None
    beyond_share: float | None
    codes_used: int | None
    codes: int | None
    changed_runs: int
    first_changed: list[int] | None
    bits: int | None
    group_size: int | None
    granularity: str | None
    symmetric: bool | None
    shortfall_db: float | None
    score: float | None
    problems: list[str]
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How many tensors have a scheme and were made by a method, as far as their codes tell."""

    scheme: str
    method: str
    tensors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """An audit. consistent: whether nothing speaks against the base; verdict: in a sentence. became: how many tensors
    are what."""

    file: str
    source: str
    layout: str
    consistent: bool
    verdict: str
    became: dict[str, int]
    methods: list[Method]
    tensors: list[TensorAudit]
    notes: list[str]
    shown: list[TensorAudit] = field(metadata=PEOPLE_ONLY)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, `schema_version` first."""
        return document("audit", self)

    def rows(self) -> Iterator[Sequence[object]]:
        """A row per tensor."""
        names = [f.name for f in fields(TensorAudit)]
        yield names
        for tensor in self.tensors:
            values = [getattr(tensor, name) for name in names]
            yield ["; ".join(v) if n == "problems" else v for n, v in zip(names, values)]

    def parts(self, display: Display) -> Iterator[Part]:
        """The verdict, what it rests on, and the tensors, those that do not fit first."""
        yield Line(f"{printable(self.file, 200)}: {self.verdict}", strong=True)
        if self.layout:
            yield Line(f"layout: {printable(self.layout, 1000)}")
        for method in self.methods:
            how = method.method or "method unknown"
            yield Line(f"{_tensors(method.tensors)} {printable(method.scheme, 100)}, {how}")
        for became, words in KEPT.items():
            if self.became.get(became):
                yield Line(f"{_tensors(self.became[became])} {words}")
        for note in self.notes:
            yield Line(f"note: {printable(note, 1000)}")
        bad = [tensor for tensor in self.tensors if tensor.problems]
        if bad:
            yield Line()
        for tensor in bad[: display.limit]:
            yield Line(f"{printable(tensor.name)}: {'; '.join(tensor.problems)}", passed=False)
        yield from _more(bad, display)
        yield Line()
        yield self._table(display)
        yield from _more(self.shown, display)

    def _table(self, display: Display) -> t.Table:
        right = {"SQNR dB": 0, "min-max": 100, "best": 100, "nearest": 0, "score": 0}
        columns = [t.Column("tensor"), t.Column("scheme")]
        columns += [t.Column(title, right=True, from_width=width) for title, width in right.items()]
        table = t.Table([*columns, t.Column("what it is", from_width=120)])
        for one in self.shown[: display.limit]:
            kept = one.became != QUANTIZED
            found = [t.decibels(v, False) for v in (one.minmax_sqnr_db, one.best_sqnr_db)]
            nearest = "-" if one.nearest_share is None else f"{100 * one.nearest_share:.1f} %"
            score = "-" if one.score is None else f"{one.score:.1f}"
            sqnr = t.decibels(one.sqnr_db, kept and one.became in (EQUAL, CAST) and one.sqnr_db is None)
            words = (one.method or one.note) if not kept else one.became
            words += f": {one.note}" if one.note and display.verbose and words != one.note else ""
            table.add(one.name, one.scheme, sqnr, *found, nearest, score, words, style="red" if one.problems else "")
        return table


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count:,} tensors"


def _more(found: Sequence[object], display: Display) -> Iterator[Line]:
    """How many are not shown, if any."""
    if display.limit is not None and len(found) > display.limit:
        yield Line(f"and {len(found) - display.limit} more; --all shows them")


def report_of(file: str, source: str, found: AuditedFile) -> AuditReport:
    """The report on an audit."""
    tensors = [_tensor(one) for one in found.tensors]
    counts = Counter((one.scheme, one.method) for one in tensors if one.became == QUANTIZED)
    bad = [one for one in tensors if one.problems]
    order = sorted(tensors, key=lambda one: (not one.problems, one.became != QUANTIZED, -(one.shortfall_db or -1e9)))
    return AuditReport(
        file=file,
        source=source,
        layout=found.layout,
        consistent=not bad,
        verdict=_verdict(source, tensors, bad),
        became=dict(Counter(one.became for one in tensors)),
        methods=[Method(scheme=scheme, method=method, tensors=n) for (scheme, method), n in counts.most_common()],
        tensors=tensors,
        notes=list(found.notes),
        shown=order,
    )


def _verdict(source: str, tensors: Sequence[TensorAudit], bad: Sequence[TensorAudit]) -> str:
    """The outcome in a sentence."""
    base = printable(source, 200)
    quantized = [one for one in tensors if one.became == QUANTIZED]
    if not bad:
        cast = sum(one.became == CAST and one.scheme in SMALL_FLOATS for one in tensors)
        counts = [(len(quantized), "quantized"), (cast, "rounded to 8-bit floats")]
        made = " and ".join(f"{_tensors(n)} {words}" for n, words in counts if n) or "no tensor quantized"
        unsure = sum(one.method.endswith(UNCERTAIN) for one in quantized)
        told = f"; of {unsure:,} it is uncertain whether weights were changed a little" if unsure else ""
        return f"consistent with {base}: {made}, the others as in the base{told}"
    others = [one for one in quantized if one.cosine is not None and one.cosine < RELATED]
    if len(others) > len(quantized) / 2:
        return f"NOT of {base}: {len(others):,} of {_tensors(len(quantized))} quantized are other weights"
    verb = "does not fit" if len(bad) == 1 else "do not fit"
    near = sum(bool(one.problems) and (one.cosine or 0) >= NEAR for one in quantized)
    trained = "; most are near those of the base, as after training it further" if 2 * near > len(quantized) else ""
    return f"NOT consistent with {base}: {len(bad):,} of {_tensors(len(tensors))} {verb}{trained}"


def _tensor(one: Audited) -> TensorAudit:
    """The report on a tensor."""
    sample, metrics = one.sample, one.metrics
    scheme = sample.scheme if sample is not None else None

    def of_sample(name: str) -> Any:
        return getattr(sample, name) if sample is not None else None

    return TensorAudit(
        name=one.name,
        became=one.became,
        scheme=one.scheme,
        shape=list(one.shape),
        method=one.method,
        sqnr_db=metrics.sqnr_db if metrics is not None else None,
        max_abs_error=metrics.max_abs_error if metrics is not None else None,
        cosine=of_sample("cosine"),
        scaled_sqnr_db=of_sample("gained_db"),
        minmax_sqnr_db=of_sample("minmax_db"),
        best_sqnr_db=of_sample("best_db"),
        nearest_share=of_sample("nearest"),
        nearest_sqnr_db=of_sample("nearest_db"),
        minmax_scales_share=of_sample("largest"),
        cleanest_column_share=of_sample("cleanest"),
        beyond_share=of_sample("beyond"),
        codes_used=of_sample("used"),
        codes=of_sample("codes"),
        changed_runs=one.places.changed if one.places is not None else 0,
        first_changed=list(one.places.first) if one.places is not None else None,
        bits=scheme.bits if scheme is not None else None,
        group_size=(scheme.group_size or None) if scheme is not None else None,
        granularity=scheme.granularity if scheme is not None else None,
        symmetric=scheme.symmetric if scheme is not None else None,
        shortfall_db=one.shortfall,
        score=one.score,
        problems=list(one.problems),
        note=one.note,
    )
