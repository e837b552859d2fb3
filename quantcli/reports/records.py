"""The report on a quantized model: what was done, and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any

from quantcli.errors import printable
from quantcli.metrics import NOTHING, Metrics
from quantcli.notebook import table
from quantcli.reports.documents import SCHEMA_VERSION, plain
from quantcli.scheme import Scheme
from quantcli.tensors.info import TensorInfo
from quantcli.terminal import decibels, size

if TYPE_CHECKING:
    from quantcli.passes.examine import Examined, Histogram
    from quantcli.theory.bounds import Theory


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """One tensor. Errors are None for kept tensors (and where nothing was measured); `sqnr_db` is None and `exact`
    True when every weight is decoded to itself, for JSON has no infinity. source_scheme: of the codes that were decoded
    to make it; source_sqnr_db: what these had cost, where their file says."""

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
    source_scheme: str | None = None
    source_sqnr_db: float | None = None


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


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RunReport:
    """A report on one output; passed: whether all gates were, None without gates. equal: names of tensors whose
    original weights are the same, byte for byte, the largest first. decoded_from: the layout of the source, where it is
    quantized already. arranged: what was done to experts that are stored in another arrangement than the target's."""

    command: str
    source: str
    output: str | None
    decoded_from: str = ""
    arranged: str = ""
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
        return {"schema_version": SCHEMA_VERSION, **plain(self)}

    def __repr__(self) -> str:
        s = self.summary
        figures = f"{s.tensors} tensors, {s.quantized} quantized, {decibels(s.sqnr_db, s.exact)} dB"
        return f"RunReport({self.command} {printable(self.name)!r}: {figures}, {size(s.bytes_out)})"

    def _repr_html_(self) -> str:
        rows = (
            (t.name, "x".join(map(str, t.shape)), t.scheme or t.reason, decibels(t.sqnr_db, t.exact), size(t.bytes_out))
            for t in self.tensors
        )
        return f"<p>{escape(repr(self))}</p>{table(('tensor', 'shape', 'scheme', 'SQNR dB', 'bytes'), rows)}"


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
        group_size=(scheme.group_size or None) if scheme else None,
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
