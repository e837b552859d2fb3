"""Patterns for tensor names: globs, or regular expressions after `re:`; one that matches nothing is an error."""

from __future__ import annotations

import fnmatch
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from quantcli.errors import UsageError, printable

try:
    from re import _parser  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_parse as _parser

_LIMIT = 400
_STEPS = 10**8
"""Steps a match may take at most: about a second."""


def module_of(name: str) -> str:
    """The module a tensor belongs to: its name without the last part.

    >>> module_of("model.layers.0.mlp.weight")
    'model.layers.0.mlp'
    """
    return name.rpartition(".")[0]


def compiled(pattern: str, option: str) -> Callable[[str], bool]:
    """Whether a tensor's name or its module's name matches.

    Raises UsageError for an empty, overlong or invalid pattern, and for a repeated group that repeats or branches
    itself: on some names such expressions take longer than the age of the universe.
    """
    match = _matcher(pattern, option)
    return lambda name: match(name) is not None


def _matcher(pattern: str, option: str) -> Callable[[str], re.Match[str] | None]:
    """The match of a pattern with a tensor's name, or with its module's."""
    if not pattern or len(pattern) > _LIMIT:
        raise UsageError(f"a pattern of {len(pattern)} characters", place=[option], hint=f"use 1 to {_LIMIT}")
    if not pattern.startswith("re:"):
        glob = re.compile(fnmatch.translate(re.sub(r"\*+", "*", pattern)))
        return lambda name: glob.fullmatch(name) or glob.fullmatch(module_of(name))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of what a later Python may read otherwise
            expression = re.compile(pattern[3:])
            repeats = _repeats(_parser.parse(pattern[3:]), False)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"{pattern!r} is not a regular expression: {error}", place=[option]) from None
    if repeats is None or repeats > 4:
        raise UsageError(f"{pattern!r} repeats too much", place=[option], hint="use a simpler expression")

    def match(name: str) -> re.Match[str] | None:
        if len(name) ** repeats / math.factorial(repeats) > _STEPS:
            raise UsageError(
                f"{pattern!r} could take too long on {printable(name, 80)}", place=[option], hint="repeat less in it"
            )
        return expression.fullmatch(name) or expression.fullmatch(module_of(name))

    return match


def _repeats(parsed: Any, repeated: bool) -> int | None:
    """How many parts of an expression may match at several lengths; None when one of them, or a branch, is itself
    repeated: the number of ways to match then grows exponentially."""
    total = 0
    for operation, argument in parsed:
        name = str(operation)
        inner: list[Any] = []
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            low, high, body = argument
            if repeated:
                return None
            found = _repeats(body, high > 1)
            if found is None:
                return None
            total += found + (low != high)
            continue
        if name == "BRANCH":
            if repeated:
                return None
            inner = list(argument[1])
        elif name == "SUBPATTERN":
            inner = [argument[-1]]
        elif name in ("ASSERT", "ASSERT_NOT"):
            inner = [argument[1]]
        elif name == "ATOMIC_GROUP":
            inner = [argument]
        elif name == "GROUPREF_EXISTS":
            inner = [part for part in argument[1:] if part is not None]
        for part in inner:
            found = _repeats(part, repeated)
            if found is None:
                return None
            total += found
    return total


def near_misses(pattern: str, names: Iterable[str]) -> str:
    """A hint that lists the names closest to a pattern."""
    import difflib  # of errors alone, as everywhere

    known = sorted({n for name in names for n in (name, module_of(name)) if n})
    plain = pattern.removeprefix("re:").replace("*", "").replace("\\", "")
    close = (
        difflib.get_close_matches(plain, known[:5000], n=3, cutoff=0.5)
        or [n for n in known if plain and plain in n][:3]
        or known[:3]
    )
    return "near it: " + ", ".join(printable(n, 80) for n in close)


def marked(patterns: Sequence[str], names: Sequence[str], option: str) -> bytearray:
    """For each name 1 where it matches any of the patterns, else 0.

    Raises UsageError, listing near misses, for a pattern that matches none of them.

    >>> list(marked(["*.q_proj", "re:.*bias"], ["a.q_proj.weight", "a.bias", "b.weight"], "--include"))
    [1, 1, 0]
    """
    found = bytearray(len(names))
    for pattern in patterns:
        test, hit = compiled(pattern, option), False
        for number, name in enumerate(names):
            if test(name):
                found[number] = hit = True
        if not hit:
            raise UsageError(f"{pattern!r} matches no tensor", place=[option], hint=near_misses(pattern, names))
    return found


def matching(patterns: Sequence[str], names: Sequence[str], option: str) -> set[str]:
    """The names that match any of the patterns. Raises UsageError as `marked` does.

    >>> sorted(matching(["*.q_proj", "re:.*bias"], ["a.q_proj.weight", "a.bias", "b.weight"], "--include"))
    ['a.bias', 'a.q_proj.weight']
    """
    return {name for name, mark in zip(names, marked(patterns, names, option)) if mark}


def tied(expressions: Sequence[str], names: Sequence[str], option: str) -> dict[str, str]:
    """A key for each name that matches one of the expressions, by the first that does: names with equal keys are tied.

    Raises UsageError, listing near misses, for an expression that matches none of them.

    >>> tied([r"re:(.*)\\.(?:wq|wk)"], ["0.wq.weight", "0.wk.weight", "0.wo.weight"], "ties")
    {'0.wq.weight': '0 0', '0.wk.weight': '0 0'}
    """
    found: dict[str, str] = {}
    for number, pattern in enumerate(expressions):
        match = _matcher(pattern, option)
        hits = {name: m for name in names if (m := match(name))}
        if not hits:
            raise UsageError(f"{pattern!r} matches no tensor", place=[option], hint=near_misses(pattern, names))
        for name, m in hits.items():
            found.setdefault(name, f"{number} {m[1] if m.re.groups else ''}")
    return found


def _escaped(name: str) -> str:
    """A glob that matches only this name."""
    return re.sub(r"([*?[])", r"[\1]", name)


def names_it(pattern: str, name: str) -> bool:
    """Whether a pattern names exactly this tensor: an expression, or a glob without wildcards.

    >>> names_it("fc1.bias", "fc1.bias"), names_it("fc1", "fc1.bias"), names_it("fc*", "fc1.bias")
    (True, False, False)
    """
    return pattern.startswith("re:") or re.sub(r"\[([*?[])\]", r"\1", pattern) == name


def patterns_of(names: Sequence[str]) -> list[str]:
    """Patterns that match exactly these names: names that differ only in their first number share one.

    >>> patterns_of(["layers.0.up", "layers.3.up", "head"])
    ['re:layers\\\\.(?:0|3)\\\\.up', 'head']
    """
    series: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in names:
        match = re.search(r"(?<=\.)\d+(?=\.)", name)
        series[(name[: match.start()], name[match.end() :]) if match else (name, "")].append(match[0] if match else "")
    found = []
    for (before, after), numbers in series.items():
        if len(numbers) == 1:
            found.append(_escaped(before + numbers[0] + after))
            continue
        for first in range(0, len(numbers), 50):
            some = "|".join(numbers[first : first + 50])
            found.append(f"re:{re.escape(before)}(?:{some}){re.escape(after)}")
    return found
