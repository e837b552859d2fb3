"""What can go wrong for a user: a problem, the place (outermost first) and the way out, in one line."""

from __future__ import annotations

from collections.abc import Iterable


def printable(text: str, limit: int = 512) -> str:
    """`text` fit for a terminal: control and invisible characters as backslash escapes, cut to `limit` characters
    before they are escaped.

    Names in model files are data; they must not be able to clear a screen or fake a second message.

    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    if len(text) > limit:
        tail = f"... ({len(text)} characters)"
        text = text[: limit - len(tail)] + tail
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if "\ud800" <= character <= "\udfff":  # half a surrogate pair: a byte of a file name that is not UTF-8
        return f"\\u{ord(character):04x}"
    return character.encode("unicode_escape").decode()


class QuantcliError(Exception):
    """Something that could not be done with these files: exit code 1.

    `place` leads from the file to the detail; each layer puts the one fact it knows in front with `within`.
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
    """A file that is not what it should be."""


class UsageError(QuantcliError):
    """A request that cannot be meant: exit code 2."""

    exit_code = 2


def os_error(error: OSError, path: object) -> QuantcliError:
    """The QuantcliError that tells what the system refused and where."""
    reason = error.strerror or str(error) or type(error).__name__
    return QuantcliError(reason[:1].lower() + reason[1:], place=[str(path)])
