"""Gates on reports written by hand: the values on both sides of every limit, and what could not be measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from quantcli.errors import UsageError
from quantcli.reports.gates import NAMES, TENSOR_GATES, GateRule, Gates, check_rules, compare, judge, judged, parsed
from quantcli.reports.records import GateResult, OutputReport, Summary, TensorReport
from quantcli.reports.run import RunReport


def tensor(name: str, sqnr_db: float | None = 20.0, **fields: Any) -> TensorReport:
    """A tensor of 4 bits, or what `fields` say."""
    given: dict[str, Any] = {
        "dtype": "F32", "shape": [8], "disposition": "quantized", "reason": "", "note": "", "bits": 4, "format": "int",
        "granularity": "group", "group_size": 8, "axis": None, "symmetric": True, "calibration": "mse",
        "rounding": "nearest", "scale_dtype": "F16", "scheme": "w4g8", "mse": 0.5, "nmse": 0.01, "exact": False,
        "max_abs_error": 1.0, "clipped_fraction": 0.0, "minmax_sqnr_db": None, "bits_per_weight": 6.0, "bytes_in": 32,
        "bytes_out": 6, "digest": None,
    }  # fmt: skip
    return TensorReport(name=name, sqnr_db=sqnr_db, **{**given, **fields})


def kept(name: str) -> TensorReport:
    return tensor(name, None, disposition="kept", reason="small", scheme=None, mse=None, bits=None)


def exact(name: str) -> TensorReport:
    return tensor(name, None, exact=True, mse=0.0)


def report(*tensors: TensorReport, evaluation: float | None = None, **fields: Any) -> RunReport:
    given: dict[str, Any] = {
        "parameters": 100, "tensors": len(tensors), "quantized": 1, "kept": {}, "coverage": 0.75,
        "bits_per_weight": 4.5, "mse": 0.5, "nmse": 0.01, "sqnr_db": 20.0, "exact": False, "max_abs_error": 1.0,
        "clipped_fraction": 0.0, "bytes_in": 400, "bytes_out": 56, "ratio": 7.0, "seconds": None,
    }  # fmt: skip
    summary = Summary(**{**given, **fields})
    return RunReport(
        command="report", source="a", output="b", summary=summary, tensors=list(tensors), evaluation=evaluation
    )


def one(found: list[GateResult]) -> GateResult:
    assert len(found) == 1
    return found[0]


def as_baseline(*tensors: TensorReport) -> Mapping[str, Any]:
    return report(*tensors).as_dict()


def gates(name: str, limit: float) -> Gates:
    """One limit."""
    asked: dict[str, Any] = {name: limit}
    return Gates(**asked)


@pytest.mark.parametrize(("gate", "value", "passes", "fails"), [
    ("min_sqnr", 20.0, 20.0, 20.01), ("max_bpw", 4.5, 4.5, 4.49), ("max_size", 56.0, 56.0, 55.0),
    ("min_coverage", 0.75, 0.75, 0.76), ("min_eval", 3.0, 3.0, 3.01), ("max_eval", 3.0, 3.0, 2.99),
    ("min_tensor_sqnr", 20.0, 20.0, 20.01), ("max_mse", 0.5, 0.5, 0.49),
])  # fmt: skip
def test_a_limit_that_is_met_exactly_passes(gate: str, value: float, passes: float, fails: float) -> None:
    measured = report(tensor("a"), kept("norm"), evaluation=3.0)
    good = one(judge(measured, gates(gate, passes), None))
    assert (good.gate, good.limit, good.value, good.passed, good.failures) == (gate, passes, value, True, [])
    bad = one(judge(measured, gates(gate, fails), None))
    assert (bad.limit, bad.value, bad.passed) == (fails, value, False)
    assert [f.tensor for f in bad.failures] == (["a"] if gate in TENSOR_GATES else [])
    assert good.message != "nothing was measured"


@pytest.mark.parametrize("gate", ["min_sqnr", "max_bpw", "max_size", "min_coverage", "min_eval", *TENSOR_GATES[:3]])
def test_a_gate_that_measured_nothing_does_not_pass(gate: str) -> None:
    nothing = report(kept("norm"), parameters=0, sqnr_db=None)
    found = one(judge(nothing, gates(gate, 0.0), None))
    way_out = "; report measures it with --against ORIGINAL --statistics FILE" if gate == "min_output_sqnr" else ""
    assert not found.passed and found.message == f"nothing was measured{way_out}"


def test_all_weights_exact_passes_and_unmeasured_weights_do_not() -> None:
    gates = Gates(min_sqnr=90.0, min_tensor_sqnr=90.0, max_outlier_gap=0.0)
    for found in judge(report(exact("a"), sqnr_db=None, exact=True), gates, None):
        assert found.passed, found
    unknown = tensor("a", None, mse=None)
    for found in judge(report(unknown, sqnr_db=None), Gates(min_sqnr=0.0, min_tensor_sqnr=0.0, max_mse=9.0), None):
        assert not found.passed and found.value is None
        assert "measured" in found.message
    assert not one(judge(report(exact("b"), evaluation=None), Gates(min_eval=0.0), None)).passed
    assert one(judge(report(tensor("a"), parameters=1), Gates(min_sqnr=20.0), None)).passed


def test_failures_are_listed_worst_first_and_unmeasured_ones_before_them() -> None:
    tensors = [tensor("a", 12.0), tensor("b", 30.0), tensor("c", 9.0), tensor("d", None, mse=None), tensor("e", 25.0)]
    found = one(judge(report(*tensors), Gates(min_tensor_sqnr=20.0), None))
    assert [(f.tensor, f.value) for f in found.failures] == [("d", None), ("c", 9.0), ("a", 12.0)]
    assert found.value is None and found.message.startswith("d: not measured, limit 20.00 dB and 2 more")
    found = one(judge(report(*tensors[:3]), Gates(min_tensor_sqnr=20.0), None))
    assert found.value == 9.0 and found.message == "c: 9.00 dB, limit 20.00 dB and 1 more"
    assert one(judge(report(*tensors[:2]), Gates(min_tensor_sqnr=20.0), None)).message == "a: 12.00 dB, limit 20.00 dB"
    assert one(judge(report(*tensors[:2]), Gates(min_tensor_sqnr=12.0), None)).message == "12.00 dB"
    errors = [tensor("a", mse=2.0), tensor("b", mse=8.0), tensor("c", mse=0.5)]
    found = one(judge(report(*errors), Gates(max_mse=1.0), None))
    assert [f.tensor for f in found.failures] == ["b", "a"] and found.value == 8.0


def test_rules_decide_for_the_tensors_they_match() -> None:
    tensors = [tensor("a.up", 12.0), tensor("a.down", 30.0), tensor("b.up", 18.0)]
    rules = (GateRule(match="*.up", limits={"min_tensor_sqnr": 15.0}),
             GateRule(match="a.*", limits={"min_tensor_sqnr": 11.0, "max_mse": 1.0}))  # fmt: skip
    found = {g.gate: g for g in judge(report(*tensors), Gates(min_tensor_sqnr=25.0, rules=rules), None)}
    assert sorted(found) == ["max_mse", "min_tensor_sqnr"]
    assert found["min_tensor_sqnr"].passed and found["min_tensor_sqnr"].limit == 25.0
    assert found["max_mse"].passed and found["max_mse"].limit == 1.0
    found = {g.gate: g for g in judge(report(*tensors), Gates(min_tensor_sqnr=25.0, rules=rules[:1]), None)}
    assert [(f.tensor, f.limit) for f in found["min_tensor_sqnr"].failures] == [("a.up", 15.0)]
    assert judge(report(*tensors), Gates(), None) == []


def test_a_rule_must_match_in_one_of_the_reports_it_is_for() -> None:
    gates = Gates(rules=(GateRule(match="a*", limits={}), GateRule(match="b*", limits={})))
    check_rules([(report(tensor("a")), gates), (report(tensor("b")), gates)])
    with pytest.raises(UsageError, match=r"b\*"):
        check_rules([(report(tensor("a")), gates), (report(tensor("c")), gates)])


def test_gaps_to_the_median_of_tensors_with_as_many_bits() -> None:
    """10, 20, 24 dB of 4 bits have the median 20; the one of 8 bits is its own; an exact one has no gap."""
    tensors = [tensor("a", 10.0), tensor("b", 20.0), tensor("c", 24.0), tensor("d", 5.0, bits=8)]
    found = one(judge(report(*tensors), Gates(max_outlier_gap=9.9), None))
    assert [(f.tensor, f.value) for f in found.failures] == [("a", 10.0)]
    assert found.failures[0].message == "10.00 dB (10.00 dB, the median of 4 bits is 20.00 dB), limit 9.90 dB"
    assert one(judge(report(*tensors, exact("e")), Gates(max_outlier_gap=14.0), None)).passed  # median 22


def test_outputs_of_layers() -> None:
    def output(error: float, db: float | None) -> OutputReport:
        return OutputReport(error=error, plain_error=0.0, power=1.0, sqnr_db=db, plain_sqnr_db=None)

    tensors = [tensor("a", output=output(0.01, 20.0)), tensor("b", output=output(0.0, None)), tensor("c")]
    found = one(judge(report(*tensors), Gates(min_output_sqnr=20.0), None))
    assert found.passed and found.value == 20.0
    silent = tensor("d", output=output(1.0, None))
    found = one(judge(report(*tensors, silent), Gates(min_output_sqnr=20.0), None))
    assert not found.passed and [f.tensor for f in found.failures] == ["d"] and found.value is None


def test_regressions_against_a_baseline() -> None:
    was = as_baseline(tensor("a", 20.0), exact("b"), tensor("c", None), tensor("d", 20.0), tensor("e", 9.0), exact("g"))
    now = [tensor("a", 17.5), tensor("b", 40.0), tensor("c"), tensor("d", 21.0), exact("e"), exact("g"), tensor("new")]
    found = one(judge(report(*now), Gates(max_regression=2.5), was))
    assert {f.tensor: f.message for f in found.failures} == {
        "b": "exact in the baseline, now 40.00 dB, limit 2.50 dB", "c": "not measured, limit 2.50 dB"}  # fmt: skip
    found = one(judge(report(tensor("a", 17.5), exact("e")), Gates(max_regression=2.4), was))
    assert [f.value for f in found.failures] == [2.5] and found.value == 2.5
    assert one(judge(report(tensor("a", 17.5), exact("e")), Gates(max_regression=2.5), was)).passed
    assert not one(judge(report(tensor("a", None)), Gates(max_regression=2.5), was)).passed
    with pytest.raises(UsageError, match="no baseline"):
        judge(report(tensor("a")), Gates(max_regression=1.0), None)


def test_what_changed_is_sorted_by_what_was_lost() -> None:
    was = as_baseline(tensor("same"), tensor("a", 20.0), tensor("b", 20.0), exact("c"), tensor("d"), tensor("e", None),
                      tensor("f"), tensor("gone"), tensor("h", 5.0))  # fmt: skip
    now = [tensor("same"), tensor("a", 19.0), tensor("b", 11.0), tensor("c", 50.0), exact("d"), tensor("e", 3.0),
           tensor("f", scheme="w8g8"), tensor("new"), tensor("h", 6.0)]  # fmt: skip
    found = compare(now, was, "base.json")
    assert [c.tensor for c in found.changes] == ["c", "b", "a", "e", "f", "h", "d"]
    assert [c.delta_db for c in found.changes] == [None, -9.0, -1.0, None, 0.0, 1.0, None]
    assert (found.baseline, found.new, found.vanished) == ("base.json", ["new"], ["gone"])
    assert [(c.before, c.after) for c in compare([kept("f")], was, "").changes] == [("w4g8", "kept: small")]


def test_a_report_passes_when_all_of_its_gates_do() -> None:
    def passed(**limits: Any) -> bool | None:
        return judged(report(tensor("a")), Gates(**limits), None).passed

    assert passed(min_sqnr=20.0, max_bpw=4.5) is True
    assert passed(min_sqnr=20.0, max_bpw=4.0) is False
    assert passed() is None
    baseline = "base.json", as_baseline(tensor("a", 30.0))
    found = judged(report(tensor("a")), Gates(max_regression=3.0), baseline)
    assert found.passed is False and found.comparison is not None and found.comparison.baseline == "base.json"


def test_gates_over_others() -> None:
    rule, other = (GateRule(match=m, limits={}) for m in "ab")
    found = Gates(min_sqnr=1.0, rules=(rule,)).over(Gates(min_sqnr=2.0, max_bpw=0.0, rules=(other,)))
    assert found == Gates(min_sqnr=1.0, max_bpw=0.0, rules=(other, rule))
    assert Gates(min_eval=0.0).given and Gates(rules=(rule,)).given and not Gates().given


# ---- limits from text -------------------------------------------------------------------------------------------

UNITS = {
    "": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
    "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4,
}  # fmt: skip


@pytest.mark.parametrize("gate", ["max_size", "target_size", "max_shard_size", "memory"])
def test_units_of_sizes(gate: str) -> None:
    assert {unit: parsed(gate, f"3{unit}") for unit in UNITS} == {unit: 3 * size for unit, size in UNITS.items()}
    with pytest.raises(UsageError, match="unknown unit"):
        parsed(gate, "3 dB")


@pytest.mark.parametrize("gate", [name for name in NAMES if name not in ("max_size",)])
def test_units_of_other_limits(gate: str) -> None:
    decibels = gate in ("min_sqnr", "min_tensor_sqnr", "min_output_sqnr", "max_outlier_gap", "max_regression")
    assert parsed(gate, " 0.5 ") == parsed(gate, 0.5) == 0.5
    for text in ("0.5 dB", "0.5dB"):
        if decibels:
            assert parsed(gate, text) == 0.5
            continue
        with pytest.raises(UsageError, match="unknown unit"):
            parsed(gate, text)
    for text in ("0.5 kB", "0.5 B", *([] if gate == "min_coverage" else ["5%"])):
        with pytest.raises(UsageError, match="unknown unit"):
            parsed(gate, text)


@pytest.mark.parametrize("gate", NAMES)
def test_limits_below_zero(gate: str) -> None:
    """Decibels of an SQNR may be negative, and so may the figure of an evaluation; nothing else."""
    if gate in ("min_sqnr", "min_tensor_sqnr", "min_output_sqnr", "min_eval", "max_eval"):
        assert parsed(gate, "-0.5") == -0.5
    else:
        with pytest.raises(UsageError):
            parsed(gate, -0.5)
    assert parsed(gate, 0) == 0


@pytest.mark.parametrize("value", [True, False, None, [1], {}, "", "much", "1 2", "1e", "--1", ".", "nan", math.inf,
                                   "1e999", math.nan])  # fmt: skip
def test_what_is_not_a_limit(value: Any) -> None:
    for gate in NAMES:
        with pytest.raises(UsageError) as refused:
            parsed(gate, value)
        assert list(refused.value.place) == [gate]


@pytest.mark.parametrize(("text", "share"), [("95%", 0.95), ("100 %", 1.0), ("0%", 0), (1, 1), ("0", 0), ("2%", 0.02)])
def test_shares(text: Any, share: float) -> None:
    assert parsed("min_coverage", text) == share


@pytest.mark.parametrize("text", ["101%", "1.5", 2, "-1%"])
def test_what_is_not_a_share(text: Any) -> None:
    with pytest.raises(UsageError, match="not a share") as refused:
        parsed("min_coverage", text)
    assert refused.value.hint == "write 95% or 0.95"


def test_hints_name_what_may_be_written() -> None:
    for gate, hint in (("min_coverage", "write 95% or 0.95"), ("max_bpw", "write a plain number"),
                       ("max_size", "units: B, kB, KB, MB, GB, TB, KiB, MiB, GiB, TiB")):  # fmt: skip
        with pytest.raises(UsageError) as refused:
            parsed(gate, "1 parsec")
        assert refused.value.hint == hint
