"""What was done and what it cost, as one document with several renderings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from quantcli import registry
from quantcli.container import Result, StoredTensor
from quantcli.errors import printable
from quantcli.metrics import NOTHING, Metrics
from quantcli.plan import UNWEIGHTED, WIDER, TensorPlan
from quantcli.scheme import Scheme
from quantcli.tensors import TensorInfo

if TYPE_CHECKING:
    from quantcli.comparing import View
    from quantcli.examining import Examined, Histogram
    from quantcli.theory import Theory

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """One tensor. Errors are None for kept tensors (and where nothing was measured); `sqnr_db` is None and `exact`
    True when every weight is decoded to itself, for JSON has no infinity."""

    name: str
    dtype: str
    shape: list[int]
    disposition: str
    reason: str
    note: str
    bits: int | None
    format: str | None
    granularity: str | None
    group_size: int | None
    axis: int | None
    symmetric: bool | None
    calibration: str | None
    rounding: str | None
    scale_dtype: str | None
    scheme: str | None
    mse: float | None
    nmse: float | None
    sqnr_db: float | None
    exact: bool
    max_abs_error: float | None
    clipped_fraction: float | None
    minmax_sqnr_db: float | None
    bits_per_weight: float
    bytes_in: int
    bytes_out: int
    digest: str | None
    theory: Theory | None = None
    histogram: Histogram | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The whole model. mse, nmse and sqnr_db are over the quantized weights; bits_per_weight counts every byte of the
    output, headers and kept tensors included; coverage is the share of parameters quantized."""

    parameters: int
    tensors: int
    quantized: int
    kept: dict[str, int]
    coverage: float
    bits_per_weight: float
    mse: float | None
    nmse: float | None
    sqnr_db: float | None
    exact: bool
    max_abs_error: float | None
    clipped_fraction: float | None
    bytes_in: int
    bytes_out: int
    ratio: float
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateFailure:
    """A tensor that does not pass a gate. value: as measured; None where nothing was, or where an exact tensor no
    longer is one."""

    tensor: str
    value: float | None
    limit: float
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """One gate: its limit, what was measured (the worst tensor's value for gates on tensors, None where all were exact
    or nothing was measured), and the tensors that do not pass, worst first."""

    gate: str
    limit: float
    value: float | None
    passed: bool
    message: str
    failures: list[GateFailure] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Its name on the command line."""
        return self.gate.replace("_", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A tensor in the baseline and now; delta_db: None where one of the two is exact or was not measured."""

    tensor: str
    before_db: float | None
    before_exact: bool
    after_db: float | None
    after_exact: bool
    delta_db: float | None
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What changed since a baseline: tensors that lost, worst first, then those that gained; new and vanished ones.
    before and after name the scheme, or why the tensor was kept."""

    baseline: str
    changes: list[Change]
    new: list[str]
    vanished: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A report on one output; passed: whether all gates were, None without gates. equal: names of tensors whose
    original weights are the same, byte for byte, the largest first."""

    command: str
    source: str
    output: str | None
    passed: bool | None = None
    summary: Summary
    gates: list[GateResult] = field(default_factory=list)
    tensors: list[TensorReport]
    comparison: Comparison | None = None
    warnings: list[str] = field(default_factory=list)
    equal: list[list[str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The file it is about."""
        return self.output or self.source

    def as_dict(self) -> dict[str, Any]:
        """Plain values, `schema_version` first; all numbers finite."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def tensor_report(
    info: TensorInfo,
    scheme: Scheme | None,
    *,
    reason: str,
    note: str,
    scale_dtype: str,
    bytes_out: int,
    metrics: Metrics | None,
    minmax_sse: float | None,
    digest: str | None,
    examined: Examined | None = None,
) -> TensorReport:
    """The report of one tensor."""
    m = metrics
    minmax = replace(m, sse=minmax_sse).sqnr_db if m is not None and minmax_sse is not None else None
    return TensorReport(
        name=info.name,
        dtype=info.dtype,
        shape=list(info.shape),
        disposition="kept" if scheme is None else "quantized",
        reason=reason,
        note=note,
        bits=scheme.bits if scheme else None,
        format=scheme.format if scheme else None,
        granularity=scheme.granularity if scheme else None,
        group_size=scheme.group_size if scheme else None,
        axis=scheme.axis if scheme and scheme.granularity == "channel" else None,
        symmetric=scheme.symmetric if scheme else None,
        calibration=scheme.calibration if scheme else None,
        rounding=scheme.rounding if scheme else None,
        scale_dtype=scale_dtype or None,
        scheme=scheme.name if scheme else None,
        mse=m.mse if m else None,
        nmse=m.nmse if m else None,
        sqnr_db=m.sqnr_db if m else None,
        exact=scheme is None or bool(m and m.exact),
        max_abs_error=m.max_abs_error if m else None,
        clipped_fraction=m.clipped_fraction if m else None,
        minmax_sqnr_db=minmax,
        bits_per_weight=8 * bytes_out / info.numel if info.numel else 0.0,
        bytes_in=info.nbytes,
        bytes_out=bytes_out,
        digest=digest,
        theory=examined.theory if examined else None,
        histogram=examined.histogram if examined else None,
    )


def of_pairs(
    pairs: Mapping[str, tuple[View, View]],
    metrics: Mapping[str, Metrics | None],
    alone: tuple[list[str], list[str]],
    *,
    source: str,
    output: str,
    bytes_in: int,
    bytes_out: int,
    seconds: float | None,
) -> RunReport:
    """The report on one model against another: a tensor that is no float but another value, or float but not the same,
    is `changed`, one that is the same `kept`. alone: names only in the second, and only in the first."""
    tensors = [_pair_report(a, b, metrics[name]) for name, (a, b) in pairs.items()]
    counted = [metrics[t.name] for t in tensors if t.disposition != "kept"] or list(metrics.values())
    return RunReport(
        command="compare",
        source=source,
        output=output,
        tensors=tensors,
        comparison=_between(pairs, alone, source),
        warnings=[
            *_named(f"only in {printable(output, 200)}", [printable(n) for n in alone[0]]),
            *_named(f"only in {printable(source, 200)}", [printable(n) for n in alone[1]]),
        ],
        summary=summarize(tensors, counted, bytes_in=bytes_in, bytes_out=bytes_out, seconds=seconds),
    )


def of_views(
    views: Mapping[str, View],
    metrics: Mapping[str, Metrics | None] | None,
    *,
    source: str,
    output: str | None,
    bytes_in: int | None,
    bytes_out: int,
    seconds: float | None,
) -> RunReport:
    """The report on a file that another tool quantized, measured against its original or (None) not. bytes_in: of the
    original, where there is one."""
    tensors = [
        _pair_report(None, view, metrics[name]) if metrics is not None else _view_report(view, None, exact=True)
        for name, view in views.items()
    ]
    decoded = sum(view.info.nbytes for view in views.values())
    unknown = "the file does not say what it was made from, so its size stands beside that of float32"
    counted = [metrics[t.name] for t in tensors if t.disposition != "kept"] if metrics is not None else []
    return RunReport(
        command="report",
        source=source,
        output=output,
        tensors=tensors,
        warnings=[unknown] if bytes_in is None else [],
        summary=summarize(
            tensors, counted, bytes_in=decoded if bytes_in is None else bytes_in, bytes_out=bytes_out, seconds=seconds
        ),
    )


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
    """What changed from the first to the second by what their files say of themselves."""

    def told(view: View) -> tuple[float | None, bool]:
        found = view.stored.stored.metrics if view.stored is not None else None
        return found.sqnr_db if found is not None else None, view.scheme is None or bool(found and found.exact)

    changes = []
    for a, b in pairs.values():
        (before, was_exact), (after, is_exact) = told(a), told(b)
        if a.scheme == b.scheme and before == after:
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
    changes.sort(key=lambda c: (0.0 if c.delta_db is None else c.delta_db, c.tensor))
    return Comparison(baseline=name, changes=changes, new=alone[0], vanished=alone[1])


def summarize(
    tensors: Sequence[TensorReport],
    metrics: Iterable[Metrics | None],
    *,
    bytes_in: int,
    bytes_out: int,
    seconds: float | None,
) -> Summary:
    """The summary of these tensors."""
    known = [m for m in metrics if m is not None]
    whole = sum(known, NOTHING)
    sizes = [_numel(t) for t in tensors]
    parameters = sum(sizes)
    covered = sum(n for n, t in zip(sizes, tensors) if t.disposition == "quantized")
    kept = Counter(t.reason for t in tensors if t.disposition == "kept")
    return Summary(
        parameters=parameters,
        tensors=len(tensors),
        quantized=len(tensors) - sum(kept.values()),
        kept=dict(kept),
        coverage=covered / parameters if parameters else 0.0,
        bits_per_weight=8 * bytes_out / parameters if parameters else 0.0,
        mse=whole.mse if known else None,
        nmse=whole.nmse if known else None,
        sqnr_db=whole.sqnr_db if known else None,
        exact=bool(known) and whole.exact,
        max_abs_error=whole.max_abs_error if known else None,
        clipped_fraction=whole.clipped_fraction if known else None,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        ratio=bytes_in / bytes_out if bytes_out else 0.0,
        seconds=seconds,
    )


def _numel(tensor: TensorReport) -> int:
    return TensorInfo(tensor.name, tensor.dtype, tuple(tensor.shape)).numel


def of_plan(
    plan: Sequence[TensorPlan],
    results: dict[str, Result] | None,
    *,
    command: str,
    source: str,
    output: str | None,
    bytes_in: int,
    bytes_out: int,
    seconds: float | None,
) -> RunReport:
    """The report on a plan, carried out (with results) or not."""
    found = [results[t.info.name] if results else Result(None, None) for t in plan]
    metrics = [r.metrics for r in found]
    tensors = [
        tensor_report(
            t.info,
            r.scheme or t.scheme,
            reason=t.reason,
            note=t.note,
            scale_dtype=t.scale_dtype,
            bytes_out=t.bytes_out,
            metrics=m,
            minmax_sse=r.minmax_sse,
            digest=r.digest,
        )
        for t, m, r in zip(plan, metrics, found)
    ]
    warnings = [
        *_named(
            "float32 scales, for float16 would not hold them", [t.name for t in tensors if t.note.startswith(WIDER)]
        ),
        *_named(
            "left in floating point, for they hold NaN or infinity",
            [t.name for t in tensors if t.reason == "nonfinite"],
        ),
        *_named("no importance given, all columns count the same", [t.name for t in tensors if UNWEIGHTED in t.note]),
        *_offset_warning(plan),
        *_cautions(plan),
        *_beaten(tensors),
    ]
    return RunReport(
        command=command,
        source=source,
        output=output,
        tensors=tensors,
        warnings=warnings,
        equal=_equal(tensors),
        summary=summarize(tensors, metrics, bytes_in=bytes_in, bytes_out=bytes_out, seconds=seconds),
    )


def _equal(tensors: Sequence[TensorReport]) -> list[list[str]]:
    """Names of tensors of one dtype, shape and digest: tied weights, as a head that is the embedding, or copies."""
    found: dict[tuple[Any, ...], list[TensorReport]] = {}
    for t in tensors:
        if t.digest is not None and t.bytes_in:
            found.setdefault((t.digest, t.dtype, *t.shape), []).append(t)
    groups = sorted((g for g in found.values() if len(g) > 1), key=lambda g: -g[0].bytes_in)
    return [[t.name for t in g] for g in groups]


def equal_line(report: RunReport) -> str | None:
    """Which tensors are equal, in a line; None when none are."""
    if not report.equal:
        return None
    shown = []
    for names in report.equal[:3]:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        shown.append(" = ".join(printable(n, 200) for n in names[:4]) + more)
    more = f"; and {len(report.equal) - 3} more such sets" if len(report.equal) > 3 else ""
    return f"equal weights: {'; '.join(shown)}{more}"


def _named(what: str, names: list[str]) -> list[str]:
    """A warning about these tensors, the first few by name."""
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"{what}: {', '.join(names[:3])}{more}"]


def _offset_warning(plan: Sequence[TensorPlan]) -> list[str]:
    if any(t.scheme is not None and t.scheme.zero_point == "float" for t in plan):
        return ["float offsets: 0 is not representable, and the constant error adds up over a row"]
    return []


def _cautions(plan: Sequence[TensorPlan]) -> list[str]:
    """What is doubtful about a method for the size of a tensor's groups."""
    found: dict[str, list[str]] = {}
    for t in plan:
        if t.scheme is not None and t.layout is not None and t.scheme.calibration != "auto":
            caution = registry.get("calibrators", t.scheme.calibration or "").caution
            said = caution(t.scheme, t.info.numel // t.layout.sets) if caution is not None else None
            if said is not None:
                found.setdefault(said, []).append(printable(t.info.name))
    return [line for said, names in found.items() for line in _named(said, names)]


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
    source: str,
    output: str | None,
    bytes_in: int,
    bytes_out: int,
    seconds: float | None,
    examined: Sequence[Examined | None] | None = None,
) -> RunReport:
    """The report on a quantized file."""
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
        )
        for s, m, e in zip(stored, metrics, examined or [None] * len(stored))
    ]
    return RunReport(
        command="report",
        source=source,
        output=output,
        tensors=tensors,
        warnings=_beaten(tensors),
        equal=_equal(tensors),
        summary=summarize(tensors, metrics, bytes_in=bytes_in, bytes_out=bytes_out, seconds=seconds),
    )
