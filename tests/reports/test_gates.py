"""Gates: what passes, what fails, what cannot be measured, and how each rendering says so."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import junitparser
import numpy as np
import pytest
import xmlschema
from hypothesis import given
from hypothesis import strategies as st
from making import GOLDEN_FILES, command, environment, one_line, run, run_process, save
from safetensors.numpy import load_file
from strategies import gaussian

import quantcli.reports.renderings
from quantcli import registry
from quantcli.errors import UsageError
from quantcli.reports import gates

PACKAGE = Path(quantcli.reports.renderings.__file__).parent
SCHEMA = json.loads((PACKAGE / "report.schema.json").read_text())
XSD = GOLDEN_FILES / "junit.xsd"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, its 4-bit version q4 and the report on that."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "model.safetensors", {
        "a.up": gaussian(64, 128, seed=1), "a.down": gaussian(64, 128, seed=2) ** 3, "b.up": gaussian(32, 64, seed=3),
        "norm": gaussian(64, seed=4)})  # fmt: skip
    assert run("quantize", "model.safetensors", "-o", "q4.safetensors", "--bits", "4").code == 0
    (tmp_path / "base.json").write_text(run("report", "q4.safetensors", "--json").out)
    return tmp_path


def document(*arguments: Any) -> dict[str, Any]:
    """What report --json prints, after a look at its schema."""
    found: dict[str, Any] = json.loads(run("report", *arguments, "--json").out)
    jsonschema.validate(found, SCHEMA)
    return found


def sqnr_of(file: str) -> dict[str, float]:
    """SQNR in dB, from the decoded weights themselves; "" for all together."""
    assert run("dequantize", file, "-o", "decoded.safetensors", "--force", "-q").code == 0
    before, after = load_file("model.safetensors"), load_file("decoded.safetensors")
    pairs = {k: (before[k].astype(float), after[k].astype(float)) for k in before if k != "norm"}
    sums = {k: (float((x**2).sum()), float(((x - y) ** 2).sum())) for k, (x, y) in pairs.items()}
    sums[""] = (sum(p for p, _ in sums.values()), sum(e for _, e in sums.values()))
    return {k: 10 * math.log10(p / e) for k, (p, e) in sums.items()}


# ---- limits -----------------------------------------------------------------------------------------------------


def test_each_gate_passes_on_one_side_and_fails_on_the_other(place: Path) -> None:
    """Exit 0 all passed, 1 a gate failed; limits a little to either side of what numpy measures."""
    sqnr = sqnr_of("q4.safetensors")
    before, after = load_file("model.safetensors"), load_file("decoded.safetensors")
    mse = {k: float(((before[k].astype(float) - after[k]) ** 2).mean()) for k in before if k != "norm"}
    tensors = [sqnr[k] for k in sqnr if k]
    size = os.path.getsize("q4.safetensors")
    parameters = sum(w.size for w in before.values())
    gap = float(np.median(tensors)) - min(tensors)
    for flag, value, low in (
        ("--min-sqnr", sqnr[""], True),
        ("--min-tensor-sqnr", min(tensors), True),
        ("--max-mse", max(mse.values()), False),
        ("--max-bpw", 8 * size / parameters, False),
        ("--max-size", size, False),
        ("--min-coverage", 1 - 64 / parameters, True),
        ("--max-outlier-gap", gap, False),
    ):
        for factor, passes in ((1 - 1e-4, low), (1 + 1e-4, not low)):
            limit = min(value * factor, 1.0) if flag == "--min-coverage" else value * factor
            ran = run("report", "q4.safetensors", flag, repr(float(limit)))
            assert ran.code == int(not passes), (flag, factor)
            assert ("gate " in ran.err) is not passes and ("FAILED" in ran.out) is not passes


def test_a_failed_gate_names_the_worst_tensor_first(place: Path) -> None:
    sqnr = sqnr_of("q4.safetensors")
    worst = sorted((k for k in sqnr if k), key=sqnr.__getitem__)
    ran = run("report", "q4.safetensors", "--min-tensor-sqnr", "40", "-q")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        f"quantcli: q4.safetensors: gate min-tensor-sqnr failed: {worst[0]}: {sqnr[worst[0]]:.2f} dB, "
        "limit 40.00 dB and 2 more\n"
    )
    (gate,) = document("q4.safetensors", "--min-tensor-sqnr", "40")["gates"]
    assert [f["tensor"] for f in gate["failures"]] == worst


def test_a_planted_regression_is_named(place: Path) -> None:
    """a planted 3 dB regression in one tensor fails the gate and the message names it"""
    weights = load_file("model.safetensors")
    noise = gaussian(64, 128, seed=9)
    power = float((weights["a.up"].astype(float) ** 2).sum())
    wanted = (
        10 ** (-(sqnr_of("q4.safetensors")["a.up"] - 3) / 10) * power
        - 10 ** (-sqnr_of("q4.safetensors")["a.up"] / 10) * power
    )
    spoilt = weights["a.up"] + noise * np.float32(math.sqrt(wanted / float((noise.astype(float) ** 2).sum())))
    save(Path("spoilt.safetensors"), {**weights, "a.up": spoilt})
    assert run("quantize", "spoilt.safetensors", "-o", "bad.safetensors", "--bits", "4", "-q").code == 0
    again = "bad.safetensors", "--against", "model.safetensors", "--ignore-digest", "--baseline", "base.json"
    ran = run("report", *again, "--max-regression", "2.5")
    assert ran.code == 1 and "gate max-regression failed: a.up: " in ran.err and "in the baseline" in ran.err
    assert run("report", *again, "--max-regression", "3.5").code == 0
    found = document(*again)["comparison"]
    assert found["changes"][0]["tensor"] == "a.up" and found["changes"][0]["delta_db"] == pytest.approx(-3, abs=0.3)


def test_the_baseline_may_hold_other_tensors(place: Path) -> None:
    """new and vanished tensors reported"""
    weights = load_file("model.safetensors")
    weights["c.up"] = weights.pop("b.up")
    save(Path("other.safetensors"), weights)
    assert run("quantize", "other.safetensors", "-o", "o4.safetensors", "-q").code == 0
    ran = run("report", "o4.safetensors", "--baseline", "base.json", "--max-regression", "0.1")
    assert ran.code == 0 and "new: c.up\n" in ran.out and "vanished: b.up\n" in ran.out
    found = document("o4.safetensors", "--baseline", "base.json")["comparison"]
    assert (found["new"], found["vanished"], found["changes"]) == (["c.up"], ["b.up"], [])


def test_what_was_exact_and_no_longer_is_fails_the_regression_gate(place: Path) -> None:
    assert run("quantize", "model.safetensors", "-o", "k.safetensors", "--exclude", "b.up", "-q").code == 0
    Path("kept.json").write_text(run("report", "k.safetensors", "--json").out)
    ran = run("report", "q4.safetensors", "--baseline", "kept.json", "--max-regression", "50")
    assert ran.code == 1 and "b.up: exact in the baseline, now " in ran.err
    assert run("report", "k.safetensors", "--baseline", "base.json", "--max-regression", "0").code == 0


def test_a_gate_that_measured_nothing_fails(place: Path) -> None:
    save(Path("ints.safetensors"), {"ids": np.arange(2000).reshape(2, 1000), "w": gaussian(64, 64)})
    assert run("quantize", "ints.safetensors", "-o", "k.safetensors", "--include", "w", "-q").code == 0
    empty = json.loads(Path("base.json").read_text())
    empty["tensors"] = []
    Path("empty.json").write_text(json.dumps(empty))
    ran = run("report", "q4.safetensors", "--baseline", "empty.json", "--max-regression", "3")
    assert ran.code == 1 and "gate max-regression failed: nothing was measured" in ran.err


@given(st.floats(0, 1e12), st.sampled_from(["", "B", "kB", "MB", "GB", "KiB", "MiB", "GiB"]))
def test_sizes(number: float, unit: str) -> None:
    """sizes such as 3.9GB or 500MiB"""
    factor = {"": 1, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit]
    assert gates.parsed("max_size", f"{number:.6f}{unit}") == pytest.approx(float(f"{number:.6f}") * factor)


@pytest.mark.parametrize(("gate", "text"), [
    ("max_size", "3.9XB"), ("max_size", "-1"), ("min_coverage", "95"), ("min_coverage", "101%"), ("min_sqnr", "20%"),
    ("min_sqnr", "inf"), ("min_sqnr", "nan"), ("min_sqnr", ""), ("max_mse", "-0.1"), ("max_bpw", "4 GB"),
    ("min_sqnr", True),
])  # fmt: skip
def test_limits_that_are_none(gate: str, text: Any) -> None:
    with pytest.raises(UsageError):
        gates.parsed(gate, text)


@pytest.mark.parametrize("arguments", [
    ["--min-sqnr", "high"], ["--max-size", "3.9XB"], ["--min-coverage", "95"], ["--max-regression", "1"],
    ["--baseline", "nowhere.json"], ["--baseline", "model.safetensors"], ["--config", "nowhere.yaml"],
    ["--format", "pdf"], ["--output", "report.pdf"], ["--output", "pdf=x"], ["--json", "--format", "csv"],
    ["--output", "json=q4.safetensors"], ["--against", "nowhere"], ["nowhere.safetensors"], ["--theory"],
], ids=" ".join)  # fmt: skip
def test_what_cannot_be_measured_is_exit_code_2(arguments: list[str], place: Path) -> None:
    """2 could not measure (as diff and grep do)"""
    before = Path("q4.safetensors").read_bytes()
    one_line(run("report", "q4.safetensors", *arguments), 2)
    assert Path("q4.safetensors").read_bytes() == before


def test_every_tensor_that_does_not_match_is_listed(place: Path) -> None:
    """tensors are matched by name, and every missing, extra or misshapen one is listed"""
    weights = load_file("model.safetensors")
    weights["extra"] = weights.pop("b.up")
    weights["a.up"] = weights["a.up"].T.copy()
    save(Path("wrong.safetensors"), weights)
    line = one_line(run("report", "q4.safetensors", "--against", "wrong.safetensors"), 2)
    assert "3 tensors do not match" in line and "b.up is not in the original" in line
    assert "a.up is [64, 128], and [128, 64] in the original" in line and "extra is only in the original" in line
    save(Path("other.safetensors"), {k: v + 1 for k, v in load_file("model.safetensors").items()})
    assert "--ignore-digest" in one_line(run("report", "q4.safetensors", "--against", "other.safetensors"), 2)


# ---- configuration ----------------------------------------------------------------------------------------------


def test_a_bare_report_measures_and_gates_what_the_configuration_lists(place: Path) -> None:
    assert run("quantize", "model.safetensors", "-o", "q8.safetensors", "--bits", "8", "-q").code == 0
    Path("quantcli.yaml").write_text(
        "gates: {min_sqnr: 15, max-size: 1MB}\n"
        "models:\n"
        "  - {file: q4.safetensors, against: model.safetensors, baseline: base.json, gates: {max_regression: 0.5}}\n"
        "  - {file: q8.safetensors, gates: {min_sqnr: 60dB}}\n"
    )
    ran = run("report", "--json")
    found = json.loads(ran.out)
    jsonschema.validate(found, SCHEMA)
    assert ran.code == 1 and found["passed"] is False
    assert [r["passed"] for r in found["reports"]] == [True, False]
    assert [g["gate"] for g in found["reports"][0]["gates"]] == ["min_sqnr", "max_size", "max_regression"]
    assert [g["limit"] for g in found["reports"][1]["gates"]] == [60, 1e6]
    assert ran.err.startswith("quantcli: q8.safetensors: gate min-sqnr failed: ")
    # A file that is named gets what the configuration says of it, and the command line's limits instead of its own.
    assert run("report", "q8.safetensors").code == 1 and run("report", "q8.safetensors", "--min-sqnr", "30").code == 0
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
    assert run("report", "--config", "../quantcli.yaml").code == 1


def test_rules_of_the_configuration(place: Path) -> None:
    """per-pattern overrides: the last rule that matches and names a gate decides"""
    sqnr = sqnr_of("q4.safetensors")
    limit = math.floor(min(sqnr["a.up"], sqnr["b.up"]))
    assert sqnr["a.down"] < limit
    rules = "gates:\n  min_tensor_sqnr: {}\n  rules:\n    - {{match: '{}', min_tensor_sqnr: {}}}\n"
    Path("quantcli.yaml").write_text(rules.format(limit, "*.down", 1))
    assert run("report", "q4.safetensors").code == 0
    Path("quantcli.yaml").write_text(rules.format(1, "re:a\\..*", limit))
    ran = run("report", "q4.safetensors")
    assert ran.code == 1 and "a.down" in ran.err and "b.up" not in ran.err
    Path("quantcli.yaml").write_text(rules.format(1, "*.dwn", limit))
    assert "quantcli.yaml: gates: rules: '*.dwn' matches no tensor; near it: " in one_line(
        run("report", "q4.safetensors"), 2
    )


def test_a_rule_must_match_in_one_of_the_models(place: Path) -> None:
    save(Path("other.safetensors"), {"c.side": gaussian(64, 128, seed=5)})
    assert run("quantize", "other.safetensors", "-o", "o4.safetensors", "--bits", "4").code == 0
    models = "models: [{file: q4.safetensors}, {file: o4.safetensors%s}]\n"
    rule = "rules: [{match: '%s', min_tensor_sqnr: %s}]"
    Path("quantcli.yaml").write_text(models % "" + "gates:\n  " + rule % ("c.*", 1))
    for files in ((), ("q4.safetensors", "o4.safetensors"), ("o4.safetensors",)):
        ran = run("report", *files)
        assert ran.code == 0 and not ran.err, files
    # The rule holds where it matches.
    Path("quantcli.yaml").write_text(models % "" + "gates:\n  " + rule % ("c.*", 90))
    ran = run("report")
    assert ran.code == 1 and "o4.safetensors: gate min-tensor-sqnr failed: c.side" in ran.err
    # One that matches in none is a mistake; where a model was not looked at, it may be meant for that one.
    Path("quantcli.yaml").write_text(models % "" + "gates:\n  " + rule % ("c.sid", 1))
    assert "'c.sid' matches no tensor; near it: " in one_line(run("report"), 2)
    ran = run("report", "q4.safetensors")
    assert ran.code == 0 and "'c.sid' matches no tensor" in ran.err and "not looked at: o4.safetensors" in ran.err
    assert not run("report", "q4.safetensors", "-q").err
    # A model's own rule is for that model.
    Path("quantcli.yaml").write_text(models % (", gates: {" + rule % ("a.up", 1) + "}"))
    assert "'a.up' matches no tensor" in one_line(run("report"), 2)
    assert "'a.up' matches no tensor" in one_line(run("report", "o4.safetensors"), 2)
    assert run("report", "q4.safetensors").code == 0


@pytest.mark.parametrize("text", [
    "", "gates: {}", "gates: [1]", "gates: {min_sqr: 1}", "gates: {min_sqnr: high}", "models: {}", "models: [{}]",
    "models: [{file: 3}]", "models: [{file: ''}]", "gates: {rules: [{min_tensor_sqnr: 3}]}",
    "gates: {rules: [{match: x}]}", "gates: {rules: [{match: x, min_sqnr: 3}]}", "gates: {min_sqnr: 1}\nx: 1", "a: *b",
    "gates: {min_sqnr: true}",
])  # fmt: skip
def test_configurations_that_are_none(text: str, place: Path) -> None:
    Path("quantcli.yaml").write_text(text)
    assert "quantcli.yaml" in one_line(run("report", "q4.safetensors"), 2)


# ---- renderings -------------------------------------------------------------------------------------------------

HOSTILE = "w\x1b[2J<script>alert(1)</script>|`*_[x](y)\"'&%0A::error::,\u202e"


@pytest.fixture
def hostile(place: Path) -> Path:
    """A file with a tensor whose name is all markup, and which fails every gate."""
    save(Path("h.safetensors"), {HOSTILE: gaussian(64, 64), "fine": gaussian(64, 64, seed=2)})
    assert run("quantize", "h.safetensors", "-o", "hq.safetensors", "-q", "--bits", "3").code == 0
    return place


GATED = ["--min-tensor-sqnr", "30", "--max-bpw", "9", "--min-sqnr", "40", "--max-size", "1kB"]


def test_junit(hostile: Path) -> None:
    """a test case per gate and per failing tensor; valid by the schema, and read by another reader"""
    ran = run("report", "hq.safetensors", "q4.safetensors", *GATED, "--format", "junit")
    assert ran.code == 1
    xmlschema.XMLSchema(str(XSD)).validate(ran.out)
    suites = list(junitparser.JUnitXml.fromstring(ran.out.encode()))
    assert [s.name for s in suites] == ["hq.safetensors", "q4.safetensors"]
    cases = list(suites[0])
    assert len(cases) == suites[0].tests == 4 + 2 and suites[0].failures == 3 + 2
    assert [c.name.split()[0] for c in cases] == ["min-sqnr", "min-tensor-sqnr", "min-tensor-sqnr:", "min-tensor-sqnr:",
                                                  "max-bpw", "max-size"]  # fmt: skip
    assert all(bool(c.result) == (not c.name.startswith("max-bpw")) for c in cases)
    assert any("alert(1)" in c.name and "\x1b" not in c.name for c in cases)
    run("report", "q4.safetensors", "-o", "junit=plain.xml", "-q")
    xmlschema.XMLSchema(str(XSD)).validate("plain.xml")


def test_csv(hostile: Path) -> None:
    ran = run("report", "hq.safetensors", "q4.safetensors", *GATED, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    reports = [document("hq.safetensors", *GATED), document("q4.safetensors", *GATED)]
    tensors = [(r["source"], t) for r in reports for t in r["tensors"]]
    assert len(rows) == len(tensors) == 6
    for row, (file, tensor) in zip(rows, tensors):
        assert row["file"] == file and row["shape"] == "x".join(map(str, tensor["shape"]))
        assert row["disposition"] == tensor["disposition"]
        assert (float(row["sqnr_db"]) if row["sqnr_db"] else None) == tensor["sqnr_db"]
        assert row["failed"] == ("min_tensor_sqnr" if tensor["disposition"] == "quantized" else "")


def test_github(hostile: Path) -> None:
    """annotations: one command a line, nothing in a name ends it"""
    ran = run("report", "hq.safetensors", *GATED, "--format", "github")
    lines = ran.out.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["::error"] * 4 + ["::notice"]
    assert all(line.count("::error") + line.count("::notice") == 1 or "%0A::error::" not in line for line in lines)
    assert "%250A" in "".join(lines) and "1 of 4 gates passed" in lines[-1]


def test_markdown(hostile: Path) -> None:
    """fits a pull-request comment: verdict first, worst tensors, details folded"""
    ran = run("report", "hq.safetensors", *GATED, "--format", "markdown")
    lines = ran.out.splitlines()
    assert lines[0] == "### ❌ quantcli: 3 of 4 gates failed"
    assert "<script>" not in re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", ran.out)  # without code spans
    assert ran.out.count("<details>") == ran.out.count("</details>") == 1
    passing = run("report", "hq.safetensors", "--max-bpw", "9", "--format", "markdown")
    assert passing.out.startswith("### ✅ quantcli: 1 of 1 gates passed")
    for block in ran.out.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(row.replace("\\|", "").split("|")) for row in rows}) <= 1


def test_a_comment_of_thousands_of_tensors_fits(place: Path) -> None:
    names = [f"layers.{i}.a.very.long.name.of.a.weight.in.a.layer" for i in range(1500)]
    save(Path("many.safetensors"), {name: gaussian(32, 32, seed=i) for i, name in enumerate(names)})
    assert run("quantize", "many.safetensors", "-o", "mq.safetensors", "-q").code == 0
    text = run("report", "mq.safetensors", "--min-sqnr", "1", "--format", "markdown").out
    assert len(text) < 65_536 and "more tensors, left out for the size of a comment" in text


def test_several_renderings_at_once(place: Path) -> None:
    """--format table --output junit=report.xml --output html=report.html"""
    ran = run("report", "q4.safetensors", "--min-sqnr", "1", "-o", "junit=r.xml", "-o", "json=r.json",
              "-o", "csv=r.csv", "-o", "markdown=r.md", "-o", "github=r.txt", "-o", "table=t.txt")  # fmt: skip
    assert ran.code == 0 and "passed  min-sqnr 1.00 dB" in ran.out
    assert json.loads(Path("r.json").read_text())["passed"] is True
    assert Path("t.txt").read_text() == ran.out
    assert run("report", "q4.safetensors", "--baseline", "r.json", "--max-regression", "0").code == 0
    assert not [name for name in os.listdir() if name.startswith(".")]


def test_the_document_has_a_schema(place: Path) -> None:
    """JSON by its schema; a document is a valid --baseline"""
    document("q4.safetensors")
    document("q4.safetensors", "--against", "model.safetensors", "--theory", *GATED, "--baseline", "base.json")
    jsonschema.validate(json.loads(run("quantize", "model.safetensors", "--dry-run", "--json").out), SCHEMA)
    assert document("q4.safetensors", "q4.safetensors")["command"] == "report"


# ---- many files -------------------------------------------------------------------------------------------------


def test_names_from_a_list(place: Path) -> None:
    """find ... -print0 | quantcli report --files0-from -"""
    Path("odd\nname.safetensors").write_bytes(Path("q4.safetensors").read_bytes())
    names = b"q4.safetensors\0odd\nname.safetensors\0"
    done = subprocess.run(
        command("report", "--files0-from", "-", "--json"), input=names, capture_output=True, env=environment()
    )
    assert done.returncode == 0
    assert [r["source"] for r in json.loads(done.stdout)["reports"]] == ["q4.safetensors", "odd\nname.safetensors"]
    Path("list").write_bytes(names)
    assert run("report", "--files0-from", "list", "-q").code == 0
    assert "nowhere" in one_line(run("report", "q4.safetensors", "nowhere.safetensors"), 2)


def test_patterns_that_no_shell_has_expanded(place: Path) -> None:
    """report accepts many files and globs"""
    Path("sub").mkdir()
    for name in ("sub/x1.safetensors", "sub/x2.safetensors"):
        Path(name).write_bytes(Path("q4.safetensors").read_bytes())
    found = document("sub/x*.safetensors", "q4.safetensors")
    assert [r["source"] for r in found["reports"]] == ["sub/x1.safetensors", "sub/x2.safetensors", "q4.safetensors"]
    assert "y*.safetensors: no file matches" in one_line(run("report", "y*.safetensors"), 2)


@pytest.mark.parametrize("rendering", [n for n in registry.names("reports.renderings") if n != "table"])
def test_documents_are_utf_8_in_every_locale(rendering: str, place: Path) -> None:
    arguments = command("report", "q4.safetensors", "--min-sqnr", "1", "--format", rendering)
    done = subprocess.run(
        arguments, capture_output=True, env=environment(PYTHONIOENCODING="ascii", LC_ALL="C"), check=True
    )
    text = done.stdout.decode("utf-8")
    assert ("✅" in text) == (rendering == "markdown") and "\\u" not in text
    table = subprocess.run(
        command("report", "q4.safetensors"),
        capture_output=True,
        check=True,
        env=environment(PYTHONIOENCODING="ascii", LC_ALL="C"),
    )
    assert table.stdout.isascii()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_large_document_comes_whole(unbuffered: str, place: Path) -> None:
    """with PYTHONUNBUFFERED a write to a pipe may take a part only"""
    save(Path("many.safetensors"), {f"layers.{i}": gaussian(32, 32, seed=i) for i in range(300)})
    assert run("quantize", "many.safetensors", "-o", "mq.safetensors", "-q").code == 0
    found = environment(PYTHONUNBUFFERED=unbuffered) if unbuffered else environment()
    done = subprocess.run(command("report", "mq.safetensors", "--json"), capture_output=True, env=found, check=True)
    assert len(json.loads(done.stdout)["tensors"]) == 300


def test_quiet_says_only_what_failed(place: Path) -> None:
    ran = run_process("report", "q4.safetensors", "-q", "--min-sqnr", "99")
    assert (ran.code, ran.out) == (1, "") and ran.err.count("\n") == 1
    ran = run_process("report", "q4.safetensors", "-q", "--min-sqnr", "9")
    assert (ran.code, ran.out, ran.err) == (0, "", "")


# ---- files to write ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "words"), [
    (["report", "q4.safetensors", "-o", "json=r", "-o", "html=r"], "r: two outputs are the same file"),
    (["report", "q4.safetensors", "-o", "json=r", "-o", "json=sub/../r"], "two outputs are the same file"),
    (["compare", "model.safetensors", "q4.safetensors", "-o", "csv=r", "-o", "html=link"], "the same file"),
    (["report", "-o", "json=r", "-o", "html=quantcli.yaml"], "quantcli.yaml: output and input are the same file"),
    (["report", "q4.safetensors", "-o", "json=quantcli.yaml"], "output and input are the same file"),
    (["report", "q4.safetensors", "--config", "g.yaml", "-o", "json=g.yaml"], "output and input are the same file"),
    (["compare", "model.safetensors", "q4.safetensors", "--config", "g.yaml", "-o", "json=g.yaml"], "the same file"),
    (["report", "q4.safetensors", "--baseline", "base.json", "-o", "json=base.json"], "output and input are the same"),
    (["report", "q4.safetensors", "--against", "model.safetensors", "-o", "json=model.safetensors"], "the same file"),
    (["report", "folder", "-o", "json=folder/m.safetensors"], "output and input are the same file"),
    (["sweep", "model.safetensors", "-o", "model.safetensors"], "output and input are the same file"),
    (["plan", "model.safetensors", "--target-bpw", "5", "-o", "model.safetensors"], "the same file"),
    (["plan", "model.safetensors", "--target-bpw", "5", "--recipe", "r.yaml", "-o", "r.yaml"], "the same file"),
    (["quantize", "model.safetensors", "-o", "new", "--save-recipe", "new"], "--save-recipe: new: this is the output"),
    (["quantize", "model.safetensors", "-o", "new", "--save-recipe", "./model.safetensors"], "the same file"),
    (["quantize", "model.safetensors", "-o", "new", "--recipe", "r.yaml", "--save-recipe", "r.yaml"], "the same file"),
    (["quantize", "model.safetensors", "--save-recipe", "model-w4g128.safetensors"], "this is the output too"),
    (["report", "q4.safetensors", "-o", "json=nowhere/r"], "no such folder"),
])  # fmt: skip
def test_outputs_that_are_one_file_or_an_input(
    arguments: list[str], words: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before anything is measured, and nothing is written."""
    Path("quantcli.yaml").write_text("gates: {min_sqnr: 1}\nmodels: [{file: q4.safetensors}]\n")
    Path("g.yaml").write_text("gates: {min_sqnr: 1}\n")
    Path("r.yaml").write_text("default: {bits: 4}\n")
    os.mkdir("sub")
    os.mkdir("folder")
    os.link("q4.safetensors", "folder/m.safetensors")
    os.symlink("r", "link")
    before = {p.name: (p.read_bytes() if p.is_file() else b"") for p in place.iterdir()}

    def measured(*_: Any, **__: Any) -> None:
        raise AssertionError("it was measured")

    for name in (
        "quantcli.passes.measure.against",
        "quantcli.passes.compare.measure",
        "quantcli.passes.sweep.measure",
        "quantcli.passes.quantize.write",
        "quantcli.reports.build.of_stored",
        "quantcli.cli._budget.planned",
    ):
        monkeypatch.setattr(name, measured)
    assert words in one_line(run(*arguments), 2)
    assert {p.name: (p.read_bytes() if p.is_file() else b"") for p in place.iterdir()} == before


def test_a_recipe_in_the_output_folder(place: Path) -> None:
    """It is written into a folder that is made only now, but over none of the files that make the model."""
    os.mkdir("folder")
    os.rename("model.safetensors", "folder/m.safetensors")
    assert run("quantize", "folder", "-o", "new", "--save-recipe", "new/r.yaml", "-q").code == 0
    assert Path("new/r.yaml").exists()
    line = one_line(run("quantize", "folder", "-o", "more", "--save-recipe", "more/m.safetensors", "-q"), 2)
    assert "a recipe would be written" in line and not Path("more").exists()
