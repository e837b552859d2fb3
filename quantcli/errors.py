"""Errors for users: the problem, the place (outermost first) and the way out, in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_LOG_COMMAND = re.compile(r"##(?=\[|vso\[)")
"""Text that the logs of GitHub Actions and Azure Pipelines treat as a command anywhere in a line."""


def printable(text: str, limit: int = 512) -> str:
    """`text` fit for a terminal: control and invisible characters as backslash escapes, cut to `limit` characters
    before they are escaped.

    Names in model files are data; they must not be able to clear a screen, fake a second message or give a command to
    a log reader.

    >>> printable("a\\x1b[2Jb"), printable("##[debug]")
    ('a\\\\x1b[2Jb', '#\\\\x23[debug]')
    """
    if len(text) > limit:
        tail = f"... ({len(text)} characters)"
        text = text[: limit - len(tail)] + tail
    if not text.isprintable():
        text = "".join(c if c.isprintable() else _escaped(c) for c in text)
    return _LOG_COMMAND.sub(r"#\\x23", text) if "##" in text else text


def listed(items: Sequence[str], shown: int = 3) -> str:
    """The first few of many things for a message, and how many more there are.

    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more


def printable_line(text: str, limit: int = 100_000) -> str:
    """A whole line fit for a terminal and for a log: `printable`, and not a command of GitHub Actions, which are lines
    that begin with two colons, behind blanks too.

    Reference: GitHub, Workflow commands for GitHub Actions.

    >>> printable_line(" ::error::a")
    ' \\\\x3a:error::a'
    """
    text = printable(text, limit)
    bare = text.lstrip()
    return f"{text[: len(text) - len(bare)]}\\x3a{bare[1:]}" if bare.startswith("::") else text


def _escaped(character: str) -> str:
    if "\ud800" <= character <= "\udfff":  # half a surrogate pair: a byte of a file name that is not UTF-8
        return f"\\u{ord(character):04x}"
    return character.encode("unicode_escape").decode()


class QuantcliError(Exception):
    """An operation that failed on these files: exit code 1.

    `place` leads from the file to the detail; each layer adds the one fact it knows at the front with `within`.
    """

    exit_code = 1

    def __init__(self, problem: str, *, place: Iterable[str] = (), hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.place = [str(p) for p in place]
        self.hint = hint

    def within(self, *place: str) -> QuantcliError:
        """This error, its place lengthened at the front."""
        self.place[:0] = [str(p) for p in place]
        return self

    def __str__(self) -> str:
        line = ": ".join([*self.place, self.problem])
        return printable(line + (f"; {self.hint}" if self.hint else ""), 4000)


class DataError(QuantcliError):
    """A file with invalid or unsupported content."""


class VersionError(DataError):
    """A file in a version of the native format that this quantcli does not know; it need not be damaged."""


class UsageError(QuantcliError):
    """An invalid request: exit code 2."""

    exit_code = 2


def os_error(error: OSError, path: object) -> QuantcliError:
    """The QuantcliError for an operation that the system refused, and its place."""
    reason = error.strerror or str(error) or type(error).__name__
    return QuantcliError(reason[:1].lower() + reason[1:], place=[str(path)])
