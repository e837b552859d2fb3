"""Documents of commands that measure nothing against limits: what -o writes, and what each rendering can show."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import ROOT, one_line, run, save, strict_json

import quantcli
from quantcli import registry
from quantcli.reports import gates
from quantcli.reports.dequantized import DequantizeReport
from quantcli.reports.documents import Display
from quantcli.reports.exported import ExportReport
from quantcli.reports.gates import Gates
from quantcli.reports.inspected import InspectReport
from quantcli.reports.planned import PlanReport
from quantcli.reports.renderings import able
from quantcli.reports.run import RunReport, RunReports
from quantcli.reports.swept import SweepReport
from quantcli.reports.verified import VerifyReport

DIGITS = ROOT / "sample_models" / "digits.safetensors"
HOSTILE = "w\x1b[2J<script>alert(1)</script>|`*_[x](y)\"'=1,\u202e"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model whose names are hostile, quantized, and the same with another original."""
    monkeypatch.chdir(tmp_path)
    weights = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    save(Path("h.safetensors"), {HOSTILE: weights, "fine": weights, "b": weights[0]})
    save(Path("other.safetensors"), {HOSTILE: weights, "fine": 2 * weights, "b": weights[0]})
    assert run("quantize", "h.safetensors", "-o", "q.safetensors", "--group-size", "64", "-q").code == 0
    return tmp_path


COMMANDS = {
    "inspect": (["inspect", "q.safetensors", "--stats"], 0),
    "verify": (["verify", "q.safetensors", "--source", "other.safetensors"], 1),
    "sweep": (["sweep", "h.safetensors", "--bits", "3,4", "--group-size", "64"], 0),
}


def as_shown(text: str) -> list[str]:
    """The lines of a table without times, and without histograms, which are in ASCII where a terminal needs that."""
    return [re.sub(r"(?<= %)  .*|\s+\d\.\d\d$|, \d\.\d\d s", "", line) for line in text.splitlines()]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_document_is_written_as_its_name_says(name: str, place: Path) -> None:
    """The file holds what is printed, whatever the command prints and however it ends."""
    words, code = COMMANDS[name]
    printed = run(*words, "--json", "-o", "d.json")
    document = strict_json(Path("d.json").read_text())
    assert printed.code == code
    assert document == strict_json(printed.out) and document["command"] == name
    head = "file," if name == "verify" else "source,"
    begins = {"d.csv": head, "d.html": "<!DOCTYPE html>", "d.HTM": "<!DOCTYPE html>", "d.txt": "", "d.md": ""}
    for file, start in begins.items():
        ran = run(*words, "-q", "-o", file)
        assert ran.code == code and ran.out == ""
        assert Path(file).read_text(encoding="utf-8").startswith(start)
    assert as_shown(Path("d.txt").read_text(encoding="utf-8")) == as_shown(run(*words).out)
    for file in ("d.xml", "d.pdf", "d"):
        line = one_line(run(*words, "-o", file), 2)
        assert line.endswith("end it in .csv, .htm, .html, .json, .md, .txt") and not Path(file).exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_an_input_is_not_replaced(name: str, place: Path) -> None:
    words, _ = COMMANDS[name]
    read = [word for word in words if word.endswith(".safetensors")]
    before = {path: Path(path).read_bytes() for path in read}
    for path in read:
        assert "output and input are the same file" in one_line(run(*words, "-o", path), 2)
    assert {path: Path(path).read_bytes() for path in read} == before


def test_rows_are_the_figures_of_the_document(place: Path) -> None:
    columns = {"inspect": ("tensors", "name"), "verify": ("findings", "problem"), "sweep": ("points", "scheme")}
    for name, (key, column) in columns.items():
        words, _ = COMMANDS[name]
        run(*words, "-o", "d.csv")
        rows = list(csv.DictReader(Path("d.csv").read_text().splitlines()))
        found = json.loads(run(*words, "--json").out)[key]
        assert len(rows) == len(found) > 0
        for row, entry in zip(rows, found):
            assert row[column] == entry[column] or entry[column] == HOSTILE
            for figure in ("parameters", "bytes", "count", "index", "bits", "sqnr_db", "mean"):
                value = (entry | entry.get("stats", {})).get(figure)
                if figure in row and not isinstance(value, list):
                    assert row[figure] == ("" if value is None else str(value))


@pytest.mark.parametrize("name", COMMANDS)
def test_names_are_no_markup(name: str, place: Path) -> None:
    words, _ = COMMANDS[name]
    for file in ("d.md", "d.html", "d.csv", "d.txt"):
        run(*words, "-o", file)
        text = Path(file).read_text(encoding="utf-8")
        assert "\x1b" not in text and "\u202e" not in text, file
        assert "<script>alert" not in text or file in ("d.csv", "d.txt"), file
    markdown = Path("d.md").read_text(encoding="utf-8")
    for line in markdown.splitlines():
        if line.startswith("| "):
            cells = len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", line)))
            assert cells == len(re.findall(r"(?<!\\)\|", next(x for x in markdown.splitlines() if x.startswith("| "))))


def test_tables_are_whole_in_every_form(place: Path) -> None:
    """Every tensor in the page and in the Markdown."""
    for file in ("d.md", "d.html"):
        assert run("inspect", DIGITS, "-o", file, "-q").code == 0
    page, markdown = Path("d.html").read_text(), Path("d.md").read_text()
    shown = [html.unescape(re.sub("<[^>]*>", "", found)) for found in re.findall(r'<th scope="row">(.*?)</th>', page)]
    names = [t["name"] for t in json.loads(run("inspect", DIGITS, "--json").out)["tensors"]]
    assert shown == names == re.findall(r"^\| `([^`]*)`", markdown, re.MULTILINE)


def test_markdown_fits_a_comment(place: Path) -> None:
    save(Path("many.safetensors"), {f"layers.{i}.weight": np.ones((2, 2), np.float32) for i in range(3000)})
    assert run("inspect", "many.safetensors", "-o", "m.md", "-q").code == 0
    text = Path("m.md").read_text()
    rows = re.findall(r"^\| `layers", text, re.MULTILINE)
    assert len(text) < 65_536 and f"and {3000 - len(rows)} more rows, left out for the size of a comment" in text


def test_names_and_recipes_are_printed_alone(place: Path) -> None:
    for option in ("--names", "--recipe"):
        assert "printed alone" in one_line(run("inspect", "q.safetensors", option, "-o", "d.json"), 2)
        assert not Path("d.json").exists()


def test_each_rendering_says_what_it_can_show() -> None:
    every = set(registry.names("reports.renderings"))
    assert set(able(RunReports)) == every
    alike = {"html", "json", "markdown", "table"}
    for rows in (SweepReport, InspectReport, VerifyReport):
        assert set(able(rows)) == {*alike, "csv"}
    for document in (RunReport, PlanReport, ExportReport, DequantizeReport):
        assert set(able(document)) == alike


def test_a_report_by_itself_tells_its_verdict_everywhere(place: Path) -> None:
    """As lines and tables; a page and a comment of their own are for the reports of a command."""
    report = gates.judged(quantcli.compare("h.safetensors", "q.safetensors"), Gates(min_sqnr=99, max_bpw=9), None)
    for name in ("html", "markdown", "table"):
        stream = io.StringIO()
        registry.get("reports.renderings", name).render(report, stream, Display())
        lines = [re.sub("<[^>]*>", "", line).replace("\\", "") for line in stream.getvalue().splitlines()]
        assert any(re.match(r"FAILED +min-sqnr 99.00 dB: \d", line) for line in lines), name
        assert any(re.match(r"passed +max-bpw 9 bits per weight: \d", line) for line in lines), name


def test_documents_are_shown_by_what_they_offer() -> None:
    """A document that another module makes: plain values alone, then lines too."""

    @dataclass(frozen=True)
    class Plain:
        def as_dict(self) -> dict[str, Any]:
            return {"schema_version": 1}

    class Readable(Plain):
        def parts(self, display: Any) -> Any:
            return iter(())

    assert able(Plain) == ("json",) and able(Readable) == ("html", "json", "markdown", "table")


def test_what_was_done_to_the_source_is_in_every_rendering(place: Path) -> None:
    found = quantcli.plan("h.safetensors", group_size=64)
    first = dataclasses.replace(found.tensors[0], source_scheme="fp8-e4m3", source_sqnr_db=31.25)
    told = dataclasses.replace(
        found,
        tensors=[first, *found.tensors[1:]],
        decoded_from=f"FP8 {HOSTILE}",
        arranged="8 experts split",
        preset="llm",
    )
    for name, before in (("html", found), ("markdown", found), ("table", found)):
        texts = []
        for report in (before, told):
            stream = io.StringIO()
            registry.get("reports.renderings", name).render(RunReports([report]), stream, Display())
            texts.append(html.unescape(stream.getvalue()).replace("\\", "").replace("<wbr>", ""))
        for words in ("source: FP8 w", "8 experts split", "preset llm, from config.json"):
            assert words in texts[1] and words not in texts[0], name
        assert name == "table" or "<script>alert" not in stream.getvalue()
    stream = io.StringIO()
    registry.get("reports.renderings", "csv").render(RunReports([told]), stream, Display())
    row = next(csv.DictReader(io.StringIO(stream.getvalue())))
    assert (row["source_scheme"], row["source_sqnr_db"], row["preset"]) == ("fp8-e4m3", "31.25", "llm")
    assert row["decoded_from"].startswith("FP8 w") and row["arranged"] == "8 experts split"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_json_is_what_the_library_writes(values: dict[str, Any]) -> None:
    """Indented by one space, but for what a log would take for a command."""

    class Plain:
        def as_dict(self) -> dict[str, Any]:
            return values

    stream = io.StringIO()
    registry.get("reports.renderings", "json").render(Plain(), stream, Display())
    assert stream.getvalue() == json.dumps(values, indent=1).replace("##", "#\\u0023") + "\n"


def test_a_report_is_written_as_its_plain_values(place: Path) -> None:
    report = quantcli.compare("h.safetensors", "q.safetensors")
    for reports in ([report], [report, report]):
        document, stream = RunReports(reports), io.StringIO()
        registry.get("reports.renderings", "json").render(document, stream, Display())
        assert stream.getvalue() == json.dumps(document.as_dict(), indent=1).replace("##", "#\\u0023") + "\n"
