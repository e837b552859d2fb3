"""The pages of `man` and the completion scripts that wheels install, written from the commands by `make docs`.

They lie under `quantcli/share` as they do under the `share` of an environment or of a system.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

import quantcli
from quantcli import front, registry
from quantcli.cli import EXIT_CODES, JUDGES, _help, cli
from quantcli.cli.completion import SHELLS, script
from quantcli.cli.help import topics

SHARE = Path(quantcli.__file__).parent / "share"

SCRIPTS = {
    "bash": "bash-completion/completions/quantcli",
    "zsh": "zsh/site-functions/_quantcli",
    "fish": "fish/vendor_completions.d/quantcli.fish",
}
"""Where each shell looks for the completions of a program that is installed."""

ENVIRONMENT = {
    "QUANTCLI_KERNELS": "The kernels to use: native, numpy, or a variant such as base; see quantcli doctor.",
    "NO_COLOR": "Nothing is coloured where it is set; --color decides before.",
    "FORCE_COLOR": "What is not a terminal gets colours too.",
    "TMPDIR": "Where temporary files go.",
}


# ---- roff -------------------------------------------------------------------------------------------------------


def roff(text: str) -> str:
    """A text as roff takes it: hyphens that can be copied, and nothing that is a request or an escape.

    >>> roff("--bits 4; it's 50 % of C:\\\\")
    '\\\\-\\\\-bits 4; it\\\\(aqs 50 % of C:\\\\e'
    """
    for found, written in {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}.items():
        text = text.replace(found, written)
    return re.sub(r"^\.", r"\\&.", text, flags=re.MULTILINE)


def bold(text: str) -> str:
    """A text in bold."""
    return f"\\fB{roff(text)}\\fR"


def named(left: str) -> str:
    """An option in bold, and what it takes as it is: `-o, --output FILE`."""
    names, _, takes = left.partition(" ") if "," not in left else left.rpartition(" ")
    if not takes or takes.startswith("-"):
        return bold(left)
    return f"{bold(names)} \\fI{roff(takes)}\\fR"


def item(left: str, text: str) -> str:
    """A paragraph behind a tag."""
    return f".TP\n{left}\n{roff(text)}\n"


def described(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Options, and below each its choices, which help shows further to the right."""
    inner = False
    for left, text in rows:
        if left.startswith(" ") and not inner:
            yield ".RS\n"
        if inner and not left.startswith(" "):
            yield ".RE\n"
        inner = left.startswith(" ")
        yield item(bold(left.strip()) if inner else named(left), text)
    if inner:
        yield ".RE\n"


def examples(found: Sequence[front.Example]) -> Iterator[str]:
    """Command lines, each below what it does."""
    yield ".SH EXAMPLES\n"
    for line, why in found:
        yield f"{roff(why[:1].upper() + why[1:])}:\n.PP\n.RS 4\n.EX\n{roff(line)}\n.EE\n.RE\n.PP\n"


def exits(judging: bool) -> Iterator[str]:
    """What the exit codes mean."""
    yield ".SH EXIT STATUS\n"
    for code, texts in EXIT_CODES.items():
        yield item(bold(str(code)), f"{texts[judging][:1].upper()}{texts[judging][1:]}.")


def titled(name: str, summary: str) -> str:
    """The head of a page, which begins with its name and what it is about."""
    plain = summary[:1].lower() + summary[1:].rstrip(".")
    return (
        f'.TH "{roff(name.upper())}" 1 "" "quantcli {quantcli.__version__}" "quantcli"\n'
        f".SH NAME\n{roff(name)} \\- {roff(plain)}\n"
    )


def see_also(*pages: str) -> str:
    """Other pages."""
    return f".SH SEE ALSO\n{', '.join(f'{bold(page)}(1)' for page in pages)}\n"


# ---- pages ------------------------------------------------------------------------------------------------------


def page(name: str) -> str:
    """The page of a command."""
    command = cli.get_command(click.Context(cli), name)
    assert isinstance(command, _help.Command), name
    ctx = click.Context(command, info_name=name, help_option_names=list(front.NAMES))
    parts = [titled(f"quantcli-{name}", registry.summary("cli", name))]
    usage = " ".join(command.collect_usage_pieces(ctx))
    parts.append(f".SH SYNOPSIS\n{bold(f'quantcli {name}')} {roff(usage)}\n.SH DESCRIPTION\n")
    paragraphs = re.sub(r"\b\n(?!\n)", "\n", inspect.cleandoc(command.help or "")).split("\n\n")
    parts.append(".PP\n".join(f"{roff(' '.join(text.split()))}\n" for text in paragraphs))
    if command.examples:
        parts.extend(examples(command.examples))
    parts.append(".SH OPTIONS\n")
    for group, options in _help.grouped(command, ctx).items():
        parts.append(f".SS {roff(group)}\n")
        parts.extend(described([row for option in options for row in _help.rows(option, ctx)]))
    parts.extend(exits(name in JUDGES))
    parts.append(see_also("quantcli"))
    return "".join(parts)


def first_page() -> str:
    """The page of the program."""
    parts = [titled("quantcli", front.ABOUT.partition(",")[0])]
    parts.append(f".SH SYNOPSIS\n{bold('quantcli')} [OPTIONS] [COMMAND] [ARGS]...\n")
    parts.append(f".SH DESCRIPTION\n{roff(front.ABOUT)}\n")
    parts.extend(examples(front.EXAMPLES))
    parts.append(".SH COMMANDS\n")
    parts.extend(item(f"{bold(f'quantcli-{name}')}(1)", text) for name, text in registry.commands().items())
    parts.append(".SH OPTIONS\n")
    parts.extend(described([("--version", front.VERSION), (", ".join(front.NAMES), front.HELP)]))
    parts.append(".SH TOPICS\nEach is shown by \\fBquantcli help\\fR and its name.\n")
    parts.extend(item(bold(name), text) for name, text in topics().items())
    parts.append(".SH ENVIRONMENT\n")
    parts.extend(item(bold(name), text) for name, text in ENVIRONMENT.items())
    parts.extend(exits(judging=False))
    parts.append(f"Of {roff(', '.join(JUDGES[:-1]))} and {JUDGES[-1]}, 1 is a failed gate or check, and 2 whatever\n")
    parts.append("kept them from measuring.\n")
    parts.append(see_also(*(f"quantcli-{name}" for name in registry.commands())))
    return "".join(parts)


def manual() -> dict[Path, str]:
    """Every page by its file."""
    folder = SHARE / "man" / "man1"
    pages = {folder / f"quantcli-{name}.1": page(name) for name in registry.commands()}
    return {folder / "quantcli.1": first_page(), **pages}


def scripts() -> dict[Path, str]:
    """Every completion script by its file."""
    return {SHARE / SCRIPTS[shell]: script(shell) for shell in SHELLS}
