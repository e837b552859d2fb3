"""What a report holds: each tensor, the whole model, gates, and what changed since a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from quantcli.metrics import Metrics, decibels
from quantcli.planning import reasons
from quantcli.scheme import Scheme
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.second_order import Output

if TYPE_CHECKING:
    from quantcli.passes.examine import Examined, Histogram
    from quantcli.theory.bounds import Theory


LEFT_OUT = "left out"
"""The disposition of a tensor that the output does not hold."""

_OF_SCHEMES = ("bits", "format", "granularity", "symmetric", "calibration", "rounding")
_OF_METRICS = ("mse", "nmse", "sqnr_db", "max_abs_error", "clipped_fraction")
"""Fields of reports that are those of schemes and of metrics."""
_figures, _UNMEASURED = attrgetter(*_OF_METRICS), dict.fromkeys(_OF_METRICS)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputReport:
    """What errors cost in the output of a layer, as statistics of its inputs predict it: squared error, that without
    statistics (None where it is measured afterwards, from the codes alone), and power; in dB, None where one of the two
    is 0 or not known."""

    error: float
    plain_error: float | None
    power: float
    sqnr_db: float | None
    plain_sqnr_db: float | None

    @classmethod
    def of(cls, found: Output) -> OutputReport:
        """The report on such costs."""
        return cls(
            error=found.error,
            plain_error=found.plain,
            power=found.power,
            sqnr_db=found.sqnr_db,
            plain_sqnr_db=found.plain_sqnr_db,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """One tensor. Errors are None for kept tensors (and where nothing was measured); `sqnr_db` is None and `exact`
    True when every weight is decoded to itself, for JSON has no infinity. disposition: `quantized`, `kept`, or `left
    out` of the output; `changed` of floats that are compared. source_scheme: of the codes that were decoded
    to make it; source_sqnr_db: what these had cost, where their file says. weighted: whether it was quantized by what
    is known of its layer's inputs; output: what its errors cost there, if that is known."""

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
    weighted: bool = False
    output: OutputReport | None = None

    @property
    def kept(self) -> bool:
        """Whether it is not quantized: stored as it was, or left out."""
        return self.disposition in ("kept", LEFT_OUT)

    @property
    def became(self) -> str:
        """The scheme it has, or why it has none."""
        return self.scheme or (LEFT_OUT if self.disposition == LEFT_OUT else f"kept: {self.reason}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The whole output. mse, nmse and sqnr_db are over the quantized weights; bits_per_weight counts every byte of the
    output, headers and kept tensors included; coverage is the share of parameters quantized. Tensors that are left out
    of the output count in no figure. weighted: tensors that were quantized by what is known of their layers' inputs;
    output: sums over those for which costs there are known."""

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
    weighted: int = 0
    output: OutputReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentReport:
    """One of the models of a pipeline. kind: the class that loads it. kept: why nothing of it is quantized, empty where
    something is. Figures are those of Summary."""

    name: str
    kind: str
    kept: str
    tensors: int
    quantized: int
    parameters: int
    coverage: float
    bits_per_weight: float
    sqnr_db: float | None
    exact: bool
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GateFailure:
    """A tensor that does not pass a gate. value: as measured; None where nothing was, or where an exact tensor no
    longer is one."""

    tensor: str
    value: float | None
    limit: float
    message: str


def shown(gate: str, value: float | None) -> str:
    """A value of a gate for people.

    >>> shown("min_coverage", 0.951), shown("max_size", 3.9e9), shown("min_sqnr", None)
    ('95.1 %', '3900000000 bytes', 'exact')
    """
    if value is None:
        return "exact"
    if gate == "min_coverage":
        return f"{100 * value:.4g} %"
    if gate in ("min_eval", "max_eval"):
        return f"{value:.6g}"
    if gate == "max_size":
        return f"{value:.0f} bytes"
    if gate == "max_bpw":
        return f"{value:.4g} bits per weight"
    return f"{value:.3g}" if gate == "max_mse" else f"{value:.2f} dB"


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

    @property
    def shown_limit(self) -> str:
        """Its limit for people."""
        return shown(self.gate, self.limit)

    @property
    def outcome(self) -> str:
        """What it measured, and its limit; the failures of tensors name theirs already."""
        return self.message if self.failures else f"{self.message}, limit {self.shown_limit}"


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

    @property
    def lost(self) -> bool:
        """Whether it became worse."""
        return self.delta_db < 0 if self.delta_db is not None else not self.after_exact


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What changed since a baseline: tensors that lost, worst first, then those that gained; new and vanished ones.
    before and after name the scheme, or why the tensor was kept."""

    baseline: str
    changes: Sequence[Change]
    new: list[str]
    vanished: list[str]


def loss_first(change: Change) -> tuple[float, str]:
    """The order of changes: what lost most comes first."""
    return (0.0 if change.delta_db is None else change.delta_db, change.tensor)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """A file of a source folder, or a hidden folder in it. disposition: `converted`, to weights or to what describes
    them; `copied`, or `left out`. reason: why it is left out, or is copied though it holds weights."""

    name: str
    bytes: int
    disposition: str
    reason: str


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
    weighted: bool = False,
    output: Output | None = None,
    otherwise: Mapping[str, Any] | None = None,
) -> TensorReport:
    """The report of one tensor. otherwise: fields that are not what follows from the rest."""
    minmax = None if metrics is None or minmax_sse is None else decibels(minmax_sse, metrics.power)
    found = {
        "name": info.name,
        "dtype": info.dtype,
        "shape": _dims(info.shape),
        "disposition": LEFT_OUT if reason == reasons.LEFT_OUT else "kept" if scheme is None else "quantized",
        "reason": reason,
        "note": note,
        **_of_scheme(scheme),
        "scale_dtype": scale_dtype or None,
        **errors(metrics),
        "exact": scheme is None or bool(metrics and metrics.exact),
        "minmax_sqnr_db": minmax,
        "bits_per_weight": _bits(bytes_out, info.numel),
        "bytes_in": info.nbytes,
        "bytes_out": bytes_out,
        "digest": digest,
        "theory": examined.theory if examined else None,
        "histogram": examined.histogram if examined else None,
        "weighted": weighted,
        "output": None if output is None else OutputReport.of(output),
    }
    return TensorReport(**(found if otherwise is None else {**found, **otherwise}))


@lru_cache(maxsize=4096)
def _dims(shape: tuple[int, ...]) -> list[int]:
    """A shape as a list, the same one for all tensors that have it: lists of 100,000 tensors would take 9 MB."""
    return list(shape)


@lru_cache(maxsize=4096)
def _bits(nbytes: int, numel: int) -> float:
    """Bits for each weight; many tensors have as many."""
    return 8 * nbytes / numel if numel else 0.0


@lru_cache(maxsize=256)
def _of_scheme(scheme: Scheme | None) -> Mapping[str, Any]:
    """What a report has of a scheme; None where there is none."""
    return {
        **{name: getattr(scheme, name) if scheme else None for name in _OF_SCHEMES},
        "group_size": (scheme.group_size or None) if scheme else None,
        "axis": scheme.axis if scheme and scheme.granularity == "channel" else None,
        "scheme": scheme.name if scheme else None,
    }


def errors(metrics: Metrics | None) -> Mapping[str, Any]:
    """Figures that tensors and the whole model have in common; None where nothing was measured."""
    return dict(zip(_OF_METRICS, _figures(metrics))) if metrics else _UNMEASURED
