"""Recipes that are written: the one that names every tensor's scheme, and the YAML of a request."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from quantcli.asking import SchemeRequest
from quantcli.deciding import FIELDS
from quantcli.errors import QuantcliError, UsageError
from quantcli.patterns import patterns_of
from quantcli.planning.convolutions import rounds_by_shape
from quantcli.planning.plan import make
from quantcli.planning.recipe import SETTINGS
from quantcli.planning.request import Request, Rule
from quantcli.scheme import Scheme
from quantcli.strict import LIMIT
from quantcli.tensors.info import TensorInfo


def commonest(wanted: Iterable[Scheme | None]) -> Scheme:
    """The scheme that most tensors are wanted in. Raises UsageError where all are kept."""
    counts = Counter(s for s in wanted if s is not None)
    if not counts:
        raise UsageError("nothing would be quantized")
    return max(counts, key=lambda s: (counts[s], s.name))


def resolved(
    infos: Sequence[TensorInfo],
    wanted: Mapping[str, Scheme | None],
    asked: Request,
    *,
    default: Scheme | None = None,
    named: bool = False,
) -> Request:
    """The request that gives every tensor the scheme it is wanted in: a default for all, by default the commonest one,
    rules for the rest. named: whether rules have every tensor that is quantized.

    Importances, target and sizes of files are those of the request that was asked.
    """
    default = commonest(wanted.values()) if default is None else default
    others: dict[Scheme | None, list[str]] = defaultdict(list)
    found = replace(
        asked,
        scheme=default,
        rules=tuple(rule for rule in asked.rules if rule.preset),
        include=(),
        exclude=(),
        ties=(),
        keep_defaults=True,
        from_recipe=frozenset(),
    )
    for tensor in make(infos, replace(found, statistics=None)).tensors:
        scheme = wanted.get(tensor.info.name)
        if scheme != tensor.scheme or (named and scheme is not None):
            others[scheme].append(tensor.info.name)
    rules = [Rule(p, scheme) for scheme, names in others.items() for p in patterns_of(names)]
    return replace(found, rules=(*found.rules, *rules))


def dump(request: Request, settings: Mapping[str, str] | None = None, folder: str = "") -> str:
    """The recipe of a request, as YAML that `load` reads from a file in `folder`. settings: of the order it is from,
    which are written where they are not the usual ones."""
    import yaml

    def text(value: Any) -> str:
        return str(
            yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=False)
        ).strip()

    known: list[tuple[Scheme, dict[str, Any]]] = []

    def shortest(scheme: Scheme) -> dict[str, Any]:
        found = next((fields for other, fields in known if other == scheme), None)
        if found is None:
            found = _shortest(scheme, SchemeRequest.of(default, "default"))
            known.append((scheme, found))
        return found

    default = _shortest(request.scheme, SchemeRequest())
    lines = [f"default: {text(default)}"]
    lines += ["rules:"] if request.rules else []
    for rule in request.rules:
        fields = shortest(rule.scheme) if rule.scheme is not None else {"keep": True}
        optional = {"optional": True} if rule.optional else {}
        reason = {"reason": rule.reason} if rule.reason is not None else {}
        preset = {"preset": rule.preset} if rule.preset else {}
        lines.append(f"  - {text({'match': rule.pattern, **fields, **optional, **reason, **preset})}")
    importance: dict[str, Any] | None = None
    if request.statistics is not None:
        path, digest = request.statistics.path, request.statistics.digest
        if path and not os.path.isabs(path):
            path = os.path.relpath(path, folder or ".")
        importance = {**({"file": path} if path else {}), "xxh3": digest}
    more, schemes = request.others(importance), [s for s in (request.scheme, *(r.scheme for r in request.rules)) if s]
    if request.convolution_sums is False and any(map(rounds_by_shape, schemes)):
        more["convolution_sums"] = False
    usual = {name: choices[0] for name, choices in SETTINGS.items()}
    more |= {name: value for name, value in (settings or {}).items() if value != usual.get(name)}
    lines += [text({name: value})[1:-1] for name, value in more.items()]
    found = "\n".join(lines) + "\n"
    if len(found) > LIMIT:
        raise UsageError(f"the recipe has {len(found)} bytes, more than the limit of {LIMIT}")
    return found


def _shortest(scheme: Scheme, asked: SchemeRequest) -> dict[str, Any]:
    """The fewest fields that make this scheme on top of what is asked for all."""
    # What is asked for all must be taken back where this scheme does without it.
    fields = {"scale_dtype": None, "levels": None, "codebook": None, "options": {}, **scheme.as_dict()}
    order = sorted((n for n in fields if n != "bits"), key=lambda n: (n == "group_size", -FIELDS.index(n)))
    for name in order * 2:  # some say what another one implies, once that is gone
        less = {k: v for k, v in fields.items() if k != name}
        try:
            if asked.with_rule(less, "rule").decided() == scheme:
                fields = less
        except QuantcliError:
            continue
    return fields
