"""Patterns for tensor names: globs, or regular expressions after `re:`; one that matches nothing is an error."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence

from quantcli.errors import UsageError, printable

_LIMIT = 400
_REPEATED_GROUP = re.compile(r"\((?:[^()\\]|\\.)*[+*|}](?:[^()\\]|\\.)*\)[+*{]")


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
    if not pattern or len(pattern) > _LIMIT:
        raise UsageError(f"a pattern of {len(pattern)} characters", place=[option], hint=f"use 1 to {_LIMIT}")
    text = pattern[3:] if pattern.startswith("re:") else fnmatch.translate(re.sub(r"\*+", "*", pattern))
    if pattern.startswith("re:") and (_REPEATED_GROUP.search(text) or len(re.findall(r"[+*}]", text)) > 6):
        raise UsageError(f"{pattern!r} repeats what repeats itself", place=[option], hint="use a simpler expression")
    try:
        expression = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"{pattern!r} is not a regular expression: {error}", place=[option]) from None
    return lambda name: bool(expression.fullmatch(name[:1024]) or expression.fullmatch(module_of(name)[:1024]))


def near_misses(pattern: str, names: Iterable[str]) -> str:
    """A hint that lists the names closest to a pattern."""
    known = sorted({n for name in names for n in (name, module_of(name)) if n})
    plain = pattern.removeprefix("re:").replace("*", "").replace("\\", "")
    close = difflib.get_close_matches(plain, known[:5000], n=3, cutoff=0.5) or [n for n in known if plain and plain in n][:3] or known[:3]
    return "near it: " + ", ".join(printable(n, 80) for n in close)


def matching(patterns: Sequence[str], names: Sequence[str], option: str) -> set[str]:
    """The names that match any of the patterns.

    Raises UsageError, listing near misses, for a pattern that matches none of them.

    >>> sorted(matching(["*.q_proj", "re:.*bias"], ["a.q_proj.weight", "a.bias", "b.weight"], "--include"))
    ['a.bias', 'a.q_proj.weight']
    """
    found: set[str] = set()
    for pattern in patterns:
        test = compiled(pattern, option)
        hits = {name for name in names if test(name)}
        if not hits:
            raise UsageError(f"{pattern!r} matches no tensor", place=[option], hint=near_misses(pattern, names))
        found |= hits
    return found
