"""Gates: limits on what quantization may cost, and whether a report keeps them.

A gate that measured nothing does not pass, and a tensor that was not measured does not pass the gates on tensors.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any

from quantcli.errors import UsageError, printable
from quantcli.patterns import compiled, matching
from quantcli.reports.records import Change, Comparison, GateFailure, GateResult, TensorReport, shown
from quantcli.reports.run import RunReport

_EVALUATIONS = ("min_eval", "max_eval")
_SIZES = ("max_size", "target_size", "max_shard_size", "memory")
_RATIOS = ("min_sqnr", "min_tensor_sqnr", "min_output_sqnr")
_DECIBELS = (*_RATIOS, "max_outlier_gap", "max_regression")
_SIGNED = (*_RATIOS, *_EVALUATIONS)
TENSOR_GATES = ("min_tensor_sqnr", "min_output_sqnr", "max_mse", "max_outlier_gap", "max_regression")
_UNITS = {
    "": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRule:
    """Other limits for the tensors a pattern matches; the last rule that matches and names a gate decides."""

    match: str
    limits: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """Limits, None where there is none.

    min_sqnr: dB, all quantized weights together. min_tensor_sqnr: dB, every quantized tensor. min_output_sqnr: dB, the
    output of every layer that is quantized by statistics, as these predict it. max_mse: mean squared
    error of every quantized tensor. max_bpw: bits per weight of the file, everything counted. max_size: bytes of the
    file. min_coverage: share of the parameters that are quantized. max_outlier_gap: dB a tensor may lie below the
    median of those with as many bits. max_regression: dB a tensor may lose against the baseline. min_eval, max_eval:
    the figure of the user's own evaluation.
    """

    min_sqnr: float | None = None
    min_tensor_sqnr: float | None = None
    min_output_sqnr: float | None = None
    max_mse: float | None = None
    max_bpw: float | None = None
    max_size: float | None = None
    min_coverage: float | None = None
    max_outlier_gap: float | None = None
    max_regression: float | None = None
    min_eval: float | None = None
    max_eval: float | None = None
    rules: tuple[GateRule, ...] = ()

    @property
    def given(self) -> bool:
        """Whether there is a gate."""
        return any(getattr(self, name) is not None for name in NAMES) or bool(self.rules)

    def over(self, other: Gates) -> Gates:
        """These limits, and the other's where these have none; the other's rules come first."""
        mine = {name: getattr(self, name) for name in NAMES if getattr(self, name) is not None}
        return replace(other, **mine, rules=(*other.rules, *self.rules))


NAMES = tuple(f.name for f in fields(Gates) if f.name != "rules")


def parsed(name: str, value: Any) -> float:
    """The limit of a gate from text or a number: sizes such as 3.9GB or 500MiB, shares such as 95% or 0.95.

    Raises UsageError for anything else.

    >>> parsed("max_size", "3.9GB"), parsed("min_coverage", "95%"), parsed("min_sqnr", 20)
    (3900000000.0, 0.95, 20.0)
    """
    place = [name]
    match = re.fullmatch(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z%]*)\s*", str(value))
    if match is None:
        raise UsageError(f"{printable(repr(value), 60)} is not a number", place=place)
    number, unit = float(match[1]), match[2]
    if name in _SIZES and unit in _UNITS:
        number *= _UNITS[unit]
    elif name == "min_coverage" and unit == "%":
        number /= 100
    elif unit and not (unit == "dB" and name in _DECIBELS):
        raise UsageError(f"{printable(repr(value), 60)} has an unknown unit", place=place, hint=_hint(name))
    if name == "min_coverage" and not 0 <= number <= 1:
        raise UsageError(f"{printable(str(value), 60)} is not a share", place=place, hint="write 95% or 0.95")
    if not math.isfinite(number) or (number < 0 and name not in _SIGNED):
        raise UsageError(f"{printable(str(value), 60)} is out of range", place=place)
    return number


def _hint(name: str) -> str:
    if name in _SIZES:
        return f"units: {', '.join(u for u in _UNITS if u)}"
    return "write 95% or 0.95" if name == "min_coverage" else "write a plain number"


# ---- against a baseline -----------------------------------------------------------------------------------------


def compare(tensors: Sequence[TensorReport], baseline: Mapping[str, Any], name: str) -> Comparison:
    """What changed since the report in `baseline`, a document as RunReport.as_dict makes it, read from `name`."""
    before = {t["name"]: t for t in baseline["tensors"]}
    now = {t.name: t for t in tensors}
    changes = [_change(before[key], tensor) for key, tensor in now.items() if key in before]
    changes = [c for c in changes if c.before != c.after or c.before_db != c.after_db]
    return Comparison(
        baseline=name,
        changes=sorted(changes, key=lambda c: (-_loss_of(c), c.tensor)),
        new=[key for key in now if key not in before],
        vanished=[key for key in before if key not in now],
    )


def _change(before: Mapping[str, Any], after: TensorReport) -> Change:
    old, new = before["sqnr_db"], after.sqnr_db
    return Change(
        tensor=after.name,
        before_db=old,
        before_exact=before["exact"],
        after_db=new,
        after_exact=after.exact,
        delta_db=new - old if new is not None and old is not None else None,
        before=before["scheme"] or f"kept: {before['reason']}",
        after=after.scheme or f"kept: {after.reason}",
    )


def _loss_of(change: Change) -> float:
    """dB lost; infinite for what was exact."""
    if change.delta_db is not None:
        return -change.delta_db
    return math.inf if change.before_exact and not change.after_exact else -math.inf if change.after_exact else 0.0


# ---- judgement --------------------------------------------------------------------------------------------------


def judged(report: RunReport, gates: Gates, baseline: tuple[str, Mapping[str, Any]] | None) -> RunReport:
    """The report with the results of its gates and what changed since the baseline, a document and where it is from."""
    if baseline is not None:
        report = replace(report, comparison=compare(report.tensors, baseline[1], baseline[0]))
    found = judge(report, gates, baseline[1] if baseline is not None else None)
    return replace(report, gates=found, passed=all(g.passed for g in found) if found else None)


def judge(report: RunReport, gates: Gates, baseline: Mapping[str, Any] | None) -> list[GateResult]:
    """Every gate's result, in the order of the fields of Gates. A rule may match no tensor: see check_rules.

    Raises UsageError for a regression gate without a baseline.
    """
    if not gates.given:
        return []
    names = [t.name for t in report.tensors]
    rules = [(set(filter(compiled(rule.match, "gates: rules"), names)), rule.limits) for rule in gates.rules]
    found = []
    for gate in NAMES:
        limit: float | None = getattr(gates, gate)
        limits = {}
        if gate in TENSOR_GATES:
            for name in names:
                own = limit
                for hits, others in rules:
                    own = others.get(gate, own) if name in hits else own
                if own is not None:
                    limits[name] = own
        if limits or limit is not None:
            found.append(_gate(report, gate, limit, limits, baseline))
    return found


def check_rules(reports: Sequence[tuple[RunReport, Gates]]) -> None:
    """Raise UsageError for a rule that matches no tensor in any of the reports it is for."""
    names: dict[str, dict[str, None]] = defaultdict(dict)
    for report, gates in reports:
        for rule in gates.rules:
            names[rule.match] |= dict.fromkeys(t.name for t in report.tensors)
    for pattern, those in names.items():
        matching([pattern], list(those), "gates: rules")


def _gate(
    report: RunReport,
    gate: str,
    limit: float | None,
    limits: Mapping[str, float],
    baseline: Mapping[str, Any] | None,
) -> GateResult:
    s = report.summary
    if gate == "max_regression" and baseline is None:
        hint = "name a --baseline, or another model with --like"
        raise UsageError("there is no baseline to compare with", place=["max_regression"], hint=hint)
    if gate in TENSOR_GATES:
        values = _values(report, gate, baseline)
        return _on_tensors(gate, limit, {k: v for k, v in values.items() if k in limits}, limits)
    assert limit is not None
    known = {"min_sqnr": s.sqnr_db, "max_bpw": s.bits_per_weight, "max_size": float(s.bytes_out)}
    value = report.evaluation if gate in _EVALUATIONS else known.get(gate, s.coverage)
    measured = s.parameters > 0 and (value is not None or (gate == "min_sqnr" and s.exact))
    passed = measured and (value is None or (value >= limit if gate.startswith("min") else value <= limit))
    what = shown(gate, value) if measured else "nothing was measured"
    return GateResult(gate=gate, limit=limit, value=value, passed=passed, message=what)


Value = tuple[float | None, str]
"""A measured value, None for perfect, and why it is what it is; nan where nothing was measured."""


def _values(report: RunReport, gate: str, baseline: Mapping[str, Any] | None) -> dict[str, Value]:
    """The value of a gate for every tensor it is about."""
    measured = [t for t in report.tensors if not t.kept or t.mse is not None]
    if gate == "max_regression":
        assert baseline is not None
        before = {t["name"]: t for t in baseline["tensors"]}
        return {t.name: _regression(before[t.name], t) for t in report.tensors if t.name in before}
    if gate == "max_mse":
        return {t.name: (math.nan if t.mse is None else t.mse, "") for t in measured}
    if gate == "min_output_sqnr":
        outputs = {t.name: t.output for t in measured if t.output is not None}
        return {
            name: (None if o.error == 0 else -math.inf if o.sqnr_db is None else o.sqnr_db, "")
            for name, o in outputs.items()
        }
    sqnr = {t.name: math.inf if t.exact else math.nan if t.sqnr_db is None else t.sqnr_db for t in measured}
    if gate == "min_tensor_sqnr":
        return {name: (None if math.isinf(v) else v, "") for name, v in sqnr.items()}
    by_bits: dict[int | None, list[float]] = defaultdict(list)
    for t in measured:
        if not math.isnan(sqnr[t.name]):
            by_bits[t.bits].append(sqnr[t.name])
    middle = {bits: median(values) for bits, values in by_bits.items()}
    return {
        t.name: (
            0.0 if math.isinf(sqnr[t.name]) else middle.get(t.bits, math.nan) - sqnr[t.name],
            f"{sqnr[t.name]:.2f} dB, the median of {t.bits} bits is {middle.get(t.bits, math.nan):.2f} dB",
        )
        for t in measured
    }


def _regression(before: Mapping[str, Any], after: TensorReport) -> Value:
    """dB a tensor lost; nan where one of the two was not measured."""
    if after.exact:
        return 0.0, ""
    if after.sqnr_db is None:
        return math.nan, ""
    if before["exact"]:
        return math.inf, f"exact in the baseline, now {after.sqnr_db:.2f} dB"
    if before["sqnr_db"] is None:
        return math.nan, "not measured in the baseline"
    return before["sqnr_db"] - after.sqnr_db, f"{before['sqnr_db']:.2f} dB in the baseline, now {after.sqnr_db:.2f} dB"


def _on_tensors(gate: str, limit: float | None, values: Mapping[str, Value], limits: Mapping[str, float]) -> GateResult:
    low = gate.startswith("min")
    failures = []
    for name, (value, why) in values.items():
        own = limits[name]
        if value is None or (value >= own if low else value <= own):
            continue
        measured = None if math.isnan(value) or math.isinf(value) else value
        text = "not measured" if math.isnan(value) else why or shown(gate, value)
        if why and measured is not None:
            text = f"{shown(gate, value)} ({why})"
        failures.append(
            GateFailure(tensor=name, value=measured, limit=own, message=f"{text}, limit {shown(gate, own)}")
        )
    failures.sort(key=lambda f: (-math.inf if f.value is None else f.value if low else -f.value, f.tensor))
    known = [v for v, _ in values.values() if v is not None and math.isfinite(v)]
    worst = (min if low else max)(known) if known else None
    lost = any(f.value is None for f in failures)
    if not values:
        message = "nothing was measured"
        if gate == "min_output_sqnr":
            message += "; report measures it with --against ORIGINAL --statistics FILE"
    elif failures:
        more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        message = f"{printable(failures[0].tensor)}: {failures[0].message}{more}"
    else:
        message = shown(gate, worst)
    return GateResult(
        gate=gate,
        limit=limit if limit is not None else next(iter(limits.values())),
        value=None if lost else worst,
        passed=bool(values) and not failures,
        message=message,
        failures=failures,
    )
