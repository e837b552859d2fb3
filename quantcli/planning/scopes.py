"""What is asked of several models at once: which patterns of tensor names are meant for which of them.

Tensors of a pipeline are named `component/name`. A pattern whose part before the first slash matches components is for
those, as in `unet/*.to_q` or `re:text_encoder.*/.*mlp.*`; any other is for all of them. It must match a tensor of one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from quantcli.errors import UsageError
from quantcli.patterns import compiled, near_misses
from quantcli.planning.order import Order


def scoped(pattern: str, component: str, components: Sequence[str]) -> str | None:
    """A pattern as it is for the tensors of one component; None where it is for others.

    >>> scoped("unet/*.to_q", "unet", ["unet", "vae"]), scoped("re:(?:unet|vae)/conv.*", "vae", ["unet", "vae"])
    ('*.to_q', 're:conv.*')
    >>> scoped("unet/*.to_q", "vae", ["unet", "vae"]), scoped("*.to_q", "vae", ["unet", "vae"])
    (None, '*.to_q')
    """
    head = "re:" if pattern.startswith("re:") else ""
    first, slash, rest = pattern.removeprefix("re:").partition("/")
    if not slash:
        return pattern
    test = compiled(head + first, "pattern")
    if not any(test(name) for name in components):
        return pattern
    return head + rest if test(component) else None


def scope(pattern: str, component: str) -> str:
    r"""A pattern for the tensors of one component as it is for those of a pipeline.

    >>> scope("*.to_q", "unet"), scope("re:conv.*", "text_encoder.2")
    ('unet/*.to_q', 're:text_encoder\\.2/conv.*')
    """
    if pattern.startswith("re:"):
        return f"re:{re.escape(component)}/{pattern.removeprefix('re:')}"
    return f"{component}/{pattern}"


def names_one(pattern: str, component: str) -> bool:
    """Whether a pattern is for the tensors of this component, and says so."""
    return "/" in pattern and scoped(pattern, component, [component]) not in (None, pattern)


def of_components(asked: Order, tensors: Mapping[str, Sequence[str]]) -> dict[str, Order]:
    """What is asked of each component. tensors: the names of its tensors.

    Where --include has no pattern for a component its order includes nothing, and it has no place in the result. Raises
    UsageError for a pattern that matches no tensor of any.
    """
    included = _each([(p, "--include", False) for p in asked.include], tensors)
    excluded = _each([(p, "--exclude", False) for p in asked.exclude], tensors)
    ruled = _each([(r.pattern, r.place, r.optional) for r in asked.recipe.rules], tensors)
    found = {}
    for name in tensors:
        rules = tuple(replace(asked.recipe.rules[i], pattern=pattern) for i, pattern in ruled[name])
        if included[name] or not asked.include:
            found[name] = replace(
                asked,
                recipe=replace(asked.recipe, rules=rules),
                include=tuple(pattern for _, pattern in included[name]),
                exclude=tuple(pattern for _, pattern in excluded[name]),
            )
    return found


def _each(
    patterns: Sequence[tuple[str, str, bool]], tensors: Mapping[str, Sequence[str]]
) -> dict[str, list[tuple[int, str]]]:
    """For each component the patterns that match tensors of it, with their numbers. patterns: each with its place, and
    whether it may match nothing."""
    found: dict[str, list[tuple[int, str]]] = {name: [] for name in tensors}
    for number, (pattern, place, optional) in enumerate(patterns):
        matched = False
        for name, names in tensors.items():
            own = scoped(pattern, name, list(tensors))
            if own is not None and any(map(compiled(own, place), names)):
                found[name].append((number, own))
                matched = True
        if not matched and not optional:
            every = [f"{name}/{n}" for name, names in tensors.items() for n in names]
            raise UsageError(f"{pattern!r} matches no tensor", place=[place], hint=near_misses(pattern, every))
    return found
