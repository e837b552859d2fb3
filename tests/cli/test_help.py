"""Help: options in groups, examples that hold, topics with tables made from the code, and nothing that is not text."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import documents
import pytest
import write_manual
import write_tables
from making import ROOT, environment, on_a_terminal, run, run_process

from quantcli import registry
from quantcli.cli import _help, cli, help

COMMANDS = [name for name in registry.names("cli") if name != "options"]


def command_of(name: str) -> _help.Command:
    found = cli.get_command(click.Context(cli), name)
    assert isinstance(found, _help.Command)
    return found


def sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """The headings of a help text, each with the lines below it."""
    for part in re.split(r"\n\n(?=\S)", text.strip("\n"))[1:]:
        heading, *lines = part.splitlines()
        yield heading, lines


# ---- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_one_group(name: str) -> None:
    command = command_of(name)
    visible = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    assert all(isinstance(p, _help.Option) for p in visible)
    shown = dict(sections(run(name, "--help").out))
    groups = [group for group in _help.GROUPS if f"{group}:" in shown]
    lines = [line for group in groups for line in shown[f"{group}:"]]
    for option in visible:
        named = [line for line in lines if re.match(rf"  (?:-\w, |--[\w-]+ / )?{option.opts[-1]}\b(?!-)", line)]
        assert len(named) == 1, (option.opts, named)
    assert [h for h in shown if h.removesuffix(":") in _help.GROUPS] == [f"{group}:" for group in groups]
    assert any(line.startswith("  -h, --help") for line in shown["Run:"])


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_the_terminal(name: str, columns: int) -> None:
    printed = on_a_terminal(*([name] if name else []), "-h", columns=columns, NO_COLOR="1")
    assert "\x1b" not in printed
    assert max(map(len, printed.splitlines())) <= min(columns, 100)
    assert not [line for line in printed.splitlines() if re.search(r"\w-$", line)]


def test_choices_have_a_word_each() -> None:
    text = run("quantize", "--help").out
    for package, offer in (("formats", None), ("calibrators", None), ("layouts", "WRITES")):
        for name in registry.names(package, offer):
            assert re.search(rf"^    {name} +\w", text, re.MULTILINE), name
            assert registry.summary(package, name, offer)
    for package in ("reports.renderings", "cli"):
        assert all(registry.summary(package, name) for name in registry.names(package))
    for name in registry.names("layouts", "WRITES"):  # TITLE: WHAT, for the programs that load it
        assert re.fullmatch(r"[^:]+: .+ for .+", registry.headline("layouts", name, "WRITES"))


def test_defaults_are_shown() -> None:
    text = " ".join(run("quantize", "--help").out.split())
    for option, default in (("--bits", "4"), ("--calibration", "mse"), ("--type", "int"), ("--digest", "xxh3")):
        assert re.search(rf"{option} [^\[]*(?:\[[a-z0-9|]+\][^\[]*)?\[default: {default}", text), option


def test_help_is_coloured_on_a_terminal_only() -> None:
    assert "\x1b[1mExamples:\x1b[0m" in on_a_terminal("quantize", "-h")
    assert "\x1b" not in on_a_terminal("quantize", "-h", NO_COLOR="1")
    assert "\x1b" not in run("quantize", "-h").out + run("-h").out + run("help").out
    assert "\x1b" in run_process("quantize", "-h", FORCE_COLOR="1").out


# ---- examples ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_hold(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two to four, shown before the options, and each a command line that quantcli takes."""
    examples = command_of(name).examples
    assert 2 <= len(examples) <= 4
    text = run(name, "--help").out
    assert next(heading for heading, _ in sections(text)) == "Examples:"
    for line, why in examples:
        assert line in text and why in text
        words = shlex.split(re.sub(r'^eval "\$\((.*)\)"$', r"\1", line).partition(" > ")[0])
        assert words[0] == "quantcli"
        if "--list" in words:
            continue
        monkeypatch.chdir(tmp_path)
        with click.Context(cli, info_name="quantcli") as ctx:
            command_of(words[1]).make_context(words[1], words[2:], parent=ctx)


def test_examples_of_the_program() -> None:
    from quantcli.front import EXAMPLES

    for line, why in EXAMPLES:
        text = run("--help").out
        assert line in text and why in text
        assert line.split()[1] in COMMANDS


# ---- topics -----------------------------------------------------------------------------------------------------


def test_topics_are_listed() -> None:
    listed = dict(sections("help\n\n" + run("help").out))
    words = " ".join(" ".join(listed["Topics:"]).split())
    assert help.topics()
    for topic, tells in help.topics().items():
        assert f"{topic} {tells}" in words and tells
    assert {line.split()[0] for line in listed["Commands:"] if line[2] != " "} == set(COMMANDS)


@pytest.mark.parametrize("topic", help.topics())
def test_a_topic_is_markdown_in_a_pipe(topic: str) -> None:
    """Just as it stands in the file, but for the marks around tables."""
    printed = run("help", topic)
    source = (Path(help.DOCS) / f"{topic}.md").read_text(encoding="utf-8")
    assert printed.code == 0 and printed.err == ""
    assert printed.out.splitlines() == [
        line for line in source.splitlines() if not re.fullmatch(r"<!-- (generated: .*|end) -->", line)
    ]


@pytest.mark.parametrize("topic", help.topics())
def test_a_topic_is_laid_out_on_a_terminal(topic: str) -> None:
    source = (Path(help.DOCS) / f"{topic}.md").read_text(encoding="utf-8")
    plain = on_a_terminal("help", topic, NO_COLOR="1")
    title = source.partition("\n")[0].removeprefix("# ")
    assert plain.splitlines()[:2] == [title, "=" * len(title)]
    assert "\x1b" not in plain and "<!--" not in plain and "```" not in plain
    # what may be copied stays on one line; nothing else is wider than the terminal
    commands = {line for block in documents.blocks(source, "console", "sh", "text") for line in block.text.splitlines()}
    wide = [line for line in plain.splitlines() if len(line) > 80]
    assert not [line for line in wide if not line.startswith("    ")]
    assert all(f"    {line}".rstrip() in plain for line in commands)
    assert "\x1b[1m" in on_a_terminal("help", topic)


@pytest.mark.parametrize("arguments", [["help"], ["help", "targets"], ["help", "quantize"]])
def test_help_comes_at_once(arguments: list[str]) -> None:
    """In a pipe nothing is laid out, and nothing heavy is imported."""
    program = (
        f"import sys\nfrom quantcli.cli import main\ntry: main({arguments!r})\nexcept SystemExit: pass\n"
        "print('LOADED', sorted({'numpy', 'rich', 'yaml', 'markdown_it', 'pygments'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    assert done.stdout.endswith("LOADED []\n")


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_the_first_page_comes_without_click(arguments: list[str]) -> None:
    """It is the one that click asks for, and names the options that it knows."""
    program = (
        f"import sys\nfrom quantcli.__main__ import main\nsys.argv = ['quantcli', *{arguments!r}]\n"
        "try: main()\nexcept SystemExit: pass\nprint('LOADED', sorted({'click', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    assert done.stdout == run("--help").out + "LOADED []\n"
    with click.Context(cli, info_name="quantcli", help_option_names=["-h", "--help"]) as ctx:
        known = [option.get_help_record(ctx) for option in cli.get_params(ctx)]
    for record in known:
        assert record is not None and re.search(rf"  {record[0]} +{re.escape(record[1])}\n", done.stdout)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_the_first_page_on_a_full_device() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "quantcli", "-h"], stdout=full, stderr=subprocess.PIPE, env=environment()
        )
    assert (done.returncode, done.stderr) == (1, b"quantcli: standard output: no space left on device\n")


def test_help_of_a_command() -> None:
    assert run("help", "quantize").out == run("quantize", "--help").out


def test_an_unknown_topic_is_refused() -> None:
    ran = run("help", "targts")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "quantcli: no topic or command 'targts'; did you mean targets?\n"
    ran = run("help", "x\x1b[2J")
    assert ran.code == 2 and "\x1b" not in ran.err and "topics: " in ran.err


def test_topics_are_completed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from click.shell_completion import shell_complete

    for typed, offered in (("tar", ["targets"]), ("quant", ["quantize"]), ("zz", [])):
        monkeypatch.setenv("COMP_WORDS", f"quantcli help {typed}")
        monkeypatch.setenv("COMP_CWORD", "2")
        assert shell_complete(cli, {}, "quantcli", "_QUANTCLI_COMPLETE", "bash_complete") == 0
        assert capsys.readouterr().out.split() == [f"plain,{name}" for name in offered]


# ---- what stands in the topics ----------------------------------------------------------------------------------


def test_tables_are_up_to_date() -> None:
    """`make docs` writes them."""
    assert [path.relative_to(ROOT) for path, _ in write_tables.stale()] == []


def test_pages_of_the_manual() -> None:
    """One for the program and one for each command, which groff takes without a warning, with every option."""
    pages = sorted((write_manual.SHARE / "man" / "man1").iterdir())
    assert {page.name for page in pages} == {"quantcli.1", *(f"quantcli-{name}.1" for name in COMMANDS)}
    if shutil.which("groff") is None:
        pytest.skip("no groff")
    words = ["groff", "-man", "-ww", "-Tutf8", "-P-c", "-rLL=200n"]
    shown = {page.stem: subprocess.run([*words, page], capture_output=True, text=True, check=True) for page in pages}
    assert [name for name, done in shown.items() if done.stderr] == []
    for name in COMMANDS:
        text = re.sub(".\b", "", shown[f"quantcli-{name}"].stdout)
        for option in cli.get_command(click.Context(cli), name).params:  # type: ignore[union-attr]
            if isinstance(option, click.Option) and not option.hidden:
                assert re.search(rf"^ +.*{re.escape(option.opts[-1])}\b", text, re.MULTILINE), (name, option.name)


TABLES = sorted(write_tables.TABLES.keys() - {"speed"})  # which is a sentence


@pytest.mark.parametrize("name", [*TABLES, *(f"options {name}" for name in COMMANDS)])
def test_every_table_can_be_made(name: str) -> None:
    lines = write_tables.made(name).splitlines()
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    assert len(lines) > 2 and set(cells) == {cells[0]} and lines[1].startswith("| --- |")


def test_a_table_is_written_between_its_marks() -> None:
    text = "a\n\n<!-- generated: exit-codes -->\nold\n<!-- end -->\n\nb\n"
    found = write_tables.filled(text)
    assert found.startswith("a\n\n<!-- generated: exit-codes -->\n| exit code |")
    assert found.endswith("|\n<!-- end -->\n\nb\n") and "old" not in found and "| 70 |" in found
    assert write_tables.filled(found) == found
    with pytest.raises(KeyError):
        write_tables.filled("<!-- generated: nothing -->\n<!-- end -->\n")


@pytest.mark.parametrize(("text", "wrong"), [
    ("```console\n$ quantcli --version | cut -c1-8\nquantcli\n```\n", False),
    ("```console\n$ quantcli --version\n...\n```\n", False),
    ("```console\n$ quantcli --version | cut -c1-8\nquantum\n```\n", True),
    ("```console\n$ quantcli quantize none\n```\n", True),
    ("```console\n$ quantcli quantize none\nquantcli: none: no such file or directory\n$ echo $?\n1\n```\n", False),
    ("```sh\n# a comment\nquantcli inspect \\\n  sample_models/digits.safetensors\n```\n", False),
    ("```sh\nquantcli inspect none\n```\n", True),
    ("```yaml\n# r.yaml\ndefault: {bits: 3}\n```\n\n```sh\ngrep 3 r.yaml\n```\n", False),
    ("```python\nimport quantcli\n```\n", False),
    ("```python\nraise ValueError\n```\n", True),
    ("```text\nnone of this is run\n```\n", False),
])  # fmt: skip
def test_the_rule_for_commands(text: str, wrong: bool, tmp_path: Path) -> None:
    if wrong:
        with pytest.raises(AssertionError):
            documents.run(text, tmp_path)
    else:
        documents.run(text, tmp_path)
