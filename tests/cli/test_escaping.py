"""Names and texts from files: never markup, a command, a formula or an escape, whatever they are printed as."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from checkpoints import made
from making import Ran, change_header, run, save
from strategies import HOSTILE as NAMES
from strategies import gaussian

from quantcli.reports import markup


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """model.safetensors with such names, and q.safetensors made from it, whose header has such reasons."""
    monkeypatch.chdir(tmp_path)
    save(
        Path("model.safetensors"),
        {name: gaussian(4, 32, seed=i) for i, name in enumerate(NAMES)} | {"kept": np.arange(4, dtype=np.int32)},
    )
    save(Path("named.safetensors"), {n: gaussian(16, 128, seed=i) for i, n in enumerate(NAMES) if n})
    run("quantize", "model.safetensors", "-o", "q.safetensors", "--no-default-keep", "--group-size", "32", "-q")
    change_header(
        "q.safetensors",
        lambda d: (
            d["tensors"]["kept"].update(reason="\x1b[2J::error::\n##[error]`|<b>@octocat", note="\x1b]0;x\x07")
            or d.update(tool="\x1b[31m::error::")
        ),
    )
    return tmp_path


def is_harmless(ran: Ran) -> bool:
    """Whether a terminal and the logs of CI show what was printed and do nothing else."""
    lines = (ran.out + ran.err).split("\n")
    return all(line.isprintable() for line in lines) and not any(
        line.lstrip().startswith("::") or "##[" in line or "##vso[" in line for line in lines
    )


COMMANDS = [
    ["report", "q.safetensors", "--all"], ["report", "q.safetensors", "--json"], ["inspect", "q.safetensors"],
    ["report", "q.safetensors", "--min-tensor-sqnr", "40", "--format", "csv"], ["inspect", "model.safetensors"],
    ["report", "q.safetensors", "--min-tensor-sqnr", "40", "--format", "markdown"],
    ["report", "q.safetensors", "--min-tensor-sqnr", "40", "--format", "junit"], ["inspect", "q.safetensors", "--json"],
    ["report", "q.safetensors", "--min-tensor-sqnr", "40", "--format", "html"], ["verify", "q.safetensors", "--all"],
    ["inspect", "model.safetensors", "--names"], ["inspect", "model.safetensors", "--stats"],
    ["compare", "model.safetensors", "q.safetensors", "--all", "--max-mse", "1e-9"],
    ["quantize", "model.safetensors", "--dry-run"], ["verify", "q.safetensors", "--all", "--json"],
    ["plan", "named.safetensors", "--target-bpw", "20", "--explain", "--no-default-keep"],
    ["report", "q.safetensors", "--against", "model.safetensors", "--theory", "--all"],
    ["report", "q.safetensors", "--baseline", "b.json", "--all"], ["sweep", "model.safetensors", "--bits", "4"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("colour", ["never", "always"])
def test_a_terminal_and_a_log_only_show_names(arguments: list[str], colour: str, files: Path) -> None:
    text = run("report", "q.safetensors", "--json").out.replace('"name": "', '"name": "z')
    Path("b.json").write_text(text)
    ran = run(*arguments, "--color", colour)
    assert ran.code in (0, 1) and "internal" not in ran.err, ran
    assert is_harmless(Ran(ran.code, re.sub(r"\x1b\[[0-9;]*m", "", ran.out), ran.err)), ran
    if colour == "always":
        assert set(re.findall(r"\x1b.", ran.out)) <= {"\x1b["}


def test_reasons_are_escaped(files: Path) -> None:
    lines = run("report", "q.safetensors", "--all").out.split("\n")
    assert r"kept: 1 \x1b[2J::error::\n#\x23[error]`|<b>@octocat" in lines
    assert any(line.startswith("kept ") and r"kept: \x1b[2J" in line for line in lines)


def test_annotations_hold_names_as_data(files: Path) -> None:
    ran = run("report", "q.safetensors", "--min-tensor-sqnr", "40", "--format", "github")
    lines = ran.out.rstrip("\n").split("\n")
    assert all(re.match(r"::(error|notice|warning) title=[^:,\r\n%]*::q\.safetensors: ", line) for line in lines)
    change_header("q.safetensors", lambda d: None)
    names = {"a%0A::error::b": gaussian(4, 32)}
    save(Path("one.safetensors"), names)
    run("quantize", "one.safetensors", "-o", "o.safetensors", "--no-default-keep", "-q")
    ran = run("report", "o.safetensors", "--min-tensor-sqnr", "90", "--format", "github")
    assert "o.safetensors: a%250A::error::b: " in ran.out


def test_spreadsheets_see_no_formula(files: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run("report", "q.safetensors", "--format", "csv").out)))
    assert len(rows) == len(NAMES) + 1
    assert not any(
        cell.lstrip()[:1] in tuple("=+-@\t\r")
        for row in rows
        for key, cell in row.items()
        if cell and not re.fullmatch(r"-?[0-9.]+(e[-+]?[0-9]+)?", cell)
    )
    assert {"'=1+1", "'+a", "'-b", "'@SUM(1)", "plain.layers.0.weight"} <= {row["name"] for row in rows}
    assert all(re.fullmatch(r"-?[0-9.]+", row["sqnr_db"]) for row in rows if row["disposition"] == "quantized")


def test_the_figures_of_a_sweep_are_no_formula_or_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, shown in {" =1+1": "' =1+1", "\uff1d1+1": "'\uff1d1+1", "::error::a": r"\x3a:error::a"}.items():
        save(Path("model.safetensors"), {name: gaussian(64, 64)})
        for output in ("s.csv", "s.json"):
            assert run("sweep", "model.safetensors", "--bits", "4", "-o", output, "-q").code == 0
        row = next(csv.DictReader(Path("s.csv").read_text().splitlines()))
        assert row["worst_tensor"] == shown
    save(Path("model.safetensors"), {"##[error]a": gaussian(64, 64)})
    assert run("sweep", "model.safetensors", "--bits", "4", "-o", "s.json", "-q").code == 0
    assert "##[" not in Path("s.json").read_text()
    assert json.loads(Path("s.json").read_text())["points"][0]["worst_tensor"] == "##[error]a"


def cells(line: str) -> list[str]:
    """The cells of a row of a table: in GitHub's Markdown a bar ends one unless a backslash is before it, and a
    backslash behind a backslash is not."""
    found = re.findall(r"((?:\\.|[^|\\])*)\|", line)
    return [cell.strip() for cell in found[1:]]


CODE = re.compile(r"`[^`]+`|<code>(?:[0-9A-Za-z]|&#\d+;)*</code>")


def shown(cell: str) -> str:
    """What a reader sees of a name."""
    assert CODE.fullmatch(cell), cell
    return cell[1:-1] if cell[0] == "`" else html.unescape(cell[len("<code>") : -len("</code>")])


def test_comments_show_names_as_code(files: Path) -> None:
    text = run("report", "q.safetensors", "--format", "markdown").out
    table = text[text.index("<details>") :].split("\n")
    rows = [cells(line) for line in table if line.startswith("|")][2:]
    assert {len(row) for row in rows} == {6}
    expected = {name.encode("unicode_escape").decode() if not name.isprintable() else name for name in NAMES}
    expected = {n.replace("##[", r"#\x23[").replace("##vso[", r"#\x23vso[") for n in expected - {"\\"}}
    assert {shown(row[0]) for row in rows} >= {n for n in expected if "\\\\" not in n}
    kept = next(row for row in rows if row[0] == "`kept`")
    assert r"\<b\>`@`octocat" in kept[2] and r"\`\|" in kept[2]


def test_sentences_have_no_markup_mention_or_link() -> None:
    said = markup.text("*a* _b_ [c](d) <e> `f` g|h #1 @i @@j https://k www.l.m &amp; \\n ![o](p)")
    assert said == (
        r"\*a\* \_b\_ \[c\]\(d\) \<e\> \`f\` g\|h \#1 `@`i `@@`j https:\//k www\.l.m \&amp; \\n "
        r"\!\[o\]\(p\)"
    )


def test_a_card_shows_names_as_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = {name: gaussian(64, 64, seed=i) ** 5 for i, name in enumerate(["``", "a\\|b", "|"])}
    source = made(tmp_path / "source", shard0=weights)
    assert run("quantize", source, "-o", "out", "--no-default-keep", "--to", "native", "-q").code == 0
    rows = [cells(line) for line in Path("out/README.md").read_text().split("\n") if line.startswith("|")]
    names = {shown(row[0]) for row in rows if len(row) == 6 and CODE.fullmatch(row[0])}
    assert {"``", "a\\|b", "|"} <= names


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, attrs))


def test_pages_and_junit_hold_names_as_text(files: Path) -> None:
    more = ["--min-tensor-sqnr", "40"]
    parser = _Tags()
    parser.feed(run("report", "q.safetensors", "--format", "html", *more).out)
    assert [tag for tag, _ in parser.found].count("script") == 1 and "b" not in {tag for tag, _ in parser.found}
    assert not any(
        key.startswith("on") or "javascript:" in (value or "")
        for _, attrs in parser.found
        for key, value in attrs
        if key not in ("aria-label",)
    )
    root = ElementTree.fromstring(run("report", "q.safetensors", "--format", "junit", *more).out)
    names = [case.get("name") or "" for case in root.iter("testcase")]
    assert "min-tensor-sqnr: <script>alert(1)</script>" in names and "min-tensor-sqnr: ]]>" in names


def test_shells_are_offered_plain_names_only(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell takes what is completed as if it had been typed."""
    from click.shell_completion import shell_complete

    from quantcli.cli import cli

    offered = set()
    for begin in ("", "a", "$", "`", "p", "-", ":", "@", "["):
        monkeypatch.setenv("COMP_WORDS", f"quantcli quantize model.safetensors --include {begin}")
        monkeypatch.setenv("COMP_CWORD", "4")
        shell_complete(cli, {}, "quantcli", "_QUANTCLI_COMPLETE", "bash_complete")
        out = capsys.readouterr().out
        offered |= {line.partition(",")[2] for line in out.split("\n") if line.startswith("plain,")}
    offered = {name for name in offered if not name.startswith("--")}
    assert {"plain.layers.0.weight", "plain.layers.0", "kept", "www.example.org", "https://example.org/a"} <= offered
    assert all(re.fullmatch(r"[A-Za-z0-9_./:+-]+", name) for name in offered), offered
