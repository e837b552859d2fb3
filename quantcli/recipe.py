"""Recipes: schemes by pattern, in YAML.

    default: {bits: 4, group_size: 128}
    rules:
      - {match: "*.down_proj", bits: 8, reason: sensitive}
      - {match: "re:.*layers\\.0\\..*", keep: true}

The last rule that matches a tensor decides. A rule's scheme is the default one with its own keys on top. Beside these
a recipe may hold what are options otherwise: `include` and `exclude` (lists of patterns), `keep_defaults: false`,
`on_nonfinite`, `digest`, `max_shard_size`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantcli.errors import DataError, QuantcliError, UsageError, printable
from quantcli.patterns import compiled, patterns_of
from quantcli.plain import LIMIT, mapping, plain
from quantcli.plan import Request, Rule, make
from quantcli.scheme import Scheme
from quantcli.stores.files import read_small
from quantcli.tensors import TensorInfo

_FIELDS = (
    "bits",
    "format",
    "granularity",
    "group_size",
    "axis",
    "symmetric",
    "grid",
    "zero_point",
    "calibration",
    "options",
    "rounding",
    "levels",
    "codebook",
    "scale_dtype",
)


_SHORT = re.compile(r"W([2-8])A16(_ASYM)?")
"""Schemes as the field names them: weights of so many bits, activations as they are."""


def shorthand(name: str) -> dict[str, Any] | None:
    """The fields that a shorthand such as W4A16, W8A16 or W4A16_ASYM stands for; None for other names. As elsewhere,
    8 bits are per channel, fewer in groups of 128.

    >>> shorthand("W4A16_ASYM")
    {'bits': 4, 'group_size': 128, 'symmetric': False}
    """
    match = _SHORT.fullmatch(name)
    if match is None:
        return None
    bits = int(match[1])
    fields: dict[str, Any] = {"bits": bits, **({"granularity": "channel"} if bits == 8 else {"group_size": 128})}
    return {**fields, "symmetric": False} if match[2] else fields


def _spelt_out(value: Any, place: str) -> Any:
    """A map in which `scheme: W4A16`, or a shorthand instead of a map, is replaced by what it stands for."""
    name = value if isinstance(value, str) else value.get("scheme") if isinstance(value, dict) else None
    if name is None:
        return value
    fields = shorthand(name) if isinstance(name, str) else None
    if fields is None:
        hint = "such as W4A16, W8A16 or W4A16_ASYM"
        raise UsageError(f"{printable(repr(name), 60)} is no scheme", place=[place], hint=hint)
    if isinstance(value, str):
        return fields
    return {**fields, **{k: v for k, v in value.items() if k != "scheme"}}


SETTINGS = {"on_nonfinite": ("refuse", "keep"), "digest": ("xxh3", "sha256", "none")}
"""What else changes the bytes of a file, and the choices there are."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The default scheme, the rules in order, and what the recipe says of the options: only what it does say."""

    default: Scheme
    rules: tuple[Rule, ...]
    options: Mapping[str, Any]


def load(
    path: str | None, overrides: Mapping[str, Any] | None = None, rules: Sequence[Mapping[str, Any]] = ()
) -> Recipe:
    """The recipe in a file, or an empty one; `overrides` are fields of the default scheme that the command line asks
    for, `rules` come after those of the file.

    Raises UsageError or DataError with the line of what is wrong.
    """
    if path is None:
        return parse({"default": {}, "rules": list(rules)}, overrides or {})
    try:
        document = plain(read_small(path, LIMIT), path)
        if rules and isinstance(document, dict) and isinstance(document.get("rules", []), list):
            document = {**document, "rules": [*document.get("rules", []), *rules]}
        return parse(document, overrides or {})
    except QuantcliError as error:
        raise (error if error.place[:1] == [path] else UsageError(str(error), place=[path])) from None


def parse(document: Any, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe a document of plain values describes."""
    top = mapping(document, "recipe", ("default", "rules", *_OPTIONS))
    if not top:
        raise UsageError("the recipe is empty", hint="give it a default scheme, rules or both")
    given = mapping(_spelt_out(top.get("default", {}), "default"), "default", _FIELDS)
    asked = {**given, **overrides}
    default = _scheme(asked, "default")
    rules = top.get("rules", [])
    if not isinstance(rules, list):
        raise UsageError("it is not a list", place=["rules"])
    said = {name: _option(name, top[name]) for name in _OPTIONS if name in top}
    return Recipe(default, tuple(_rule(rule, f"rules[{i}]", asked) for i, rule in enumerate(rules)), said)


_OPTIONS = ("include", "exclude", "keep_defaults", "max_shard_size", *SETTINGS)


def _option(name: str, value: Any) -> Any:
    """The value of an option in a recipe. Raises UsageError for what it cannot be."""
    shown = printable(repr(value), 60)
    if name in ("include", "exclude"):
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise UsageError(f"{shown} is not a list of patterns", place=[name])
        return tuple(value)
    if name == "keep_defaults" and type(value) is not bool:
        raise UsageError(f"{shown} is neither true nor false", place=[name])
    if name == "max_shard_size" and (type(value) is not int or value < 1):
        raise UsageError(f"{shown} is not a number of bytes", place=[name])
    if name in SETTINGS and value not in SETTINGS[name]:
        raise UsageError(f"{shown} is not one of {', '.join(SETTINGS[name])}", place=[name])
    return value


def _rule(value: Any, place: str, asked: Mapping[str, Any]) -> Rule:
    fields = mapping(_spelt_out(value, place), place, ("match", "keep", "reason", *_FIELDS))
    pattern, keep, reason = fields.pop("match", None), fields.pop("keep", False), fields.pop("reason", None)
    if not isinstance(pattern, str):
        raise UsageError("it needs a pattern", place=[place, "match"])
    compiled(pattern, f"{place}: match")
    if type(keep) is not bool:
        raise UsageError(f"{printable(repr(keep), 60)} is neither true nor false", place=[place, "keep"])
    if reason is not None and not isinstance(reason, str):
        raise UsageError("it is not text", place=[place, "reason"])
    if keep:
        if fields:
            raise UsageError(f"a tensor that is kept has no {next(iter(fields))}", place=[place])
        return Rule(pattern, None, reason)
    return Rule(pattern, _scheme(_on_top(fields, asked), place), reason)


def _on_top(fields: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked of the default scheme with a rule's own fields on top; what these make moot is left out."""
    moot: set[str] = set()
    if "granularity" in fields or "group_size" in fields:
        moot |= {"granularity", "group_size", "axis"}
    if "format" in fields and fields["format"] != asked.get("format", "int"):
        moot |= {"bits", "levels", "codebook", "rounding", "scale_dtype", "grid", "calibration", "options", "symmetric"}
        moot |= {"zero_point"}
    if "calibration" in fields:
        moot |= {"options", "grid"}
    if "symmetric" in fields:
        moot |= {"grid", "zero_point"}
    return {**{k: v for k, v in asked.items() if k not in moot}, **fields}


def _scheme(fields: dict[str, Any], place: str) -> Scheme:
    size = fields.get("group_size")
    if type(size) is int and size in (-1, 0):  # as on the command line
        raise UsageError(f"group_size {size}", place=[place], hint="write granularity: channel or tensor")
    for key in ("bits", "format", "granularity", "symmetric", "zero_point"):
        if key in fields and fields[key] is None:
            raise UsageError("it has no value", place=[place, key])
    if isinstance(fields.get("codebook"), list):
        fields = {**fields, "codebook": tuple(fields["codebook"])}
    try:
        return Scheme(**fields)
    except QuantcliError as error:
        raise error.within(place) from None
    except TypeError:
        raise UsageError("a value is not of its kind", place=[place]) from None


def override(text: str) -> dict[str, Any]:
    """The rule that PATTERN:key=value,... or PATTERN:keep stands for. Raises UsageError where it is none.

    >>> override("*.down_proj:bits=8,group-size=32")
    {'match': '*.down_proj', 'bits': 8, 'group_size': 32}
    """
    pattern, colon, fields = text.rpartition(":")
    if not colon or not pattern or pattern == "re":
        raise UsageError(f"{printable(repr(text), 100)} is not PATTERN:bits=8,...", place=["--override"])
    rule: dict[str, Any] = {"match": pattern}
    for field in fields.split(","):
        key, equals, value = field.partition("=")
        name = key.strip().replace("-", "_")
        if not equals and (name == "keep" or shorthand(key.strip()) is not None):
            rule |= {"keep": True} if name == "keep" else {"scheme": key.strip()}
            continue
        if not equals or not name or name in rule:
            raise UsageError(f"{printable(repr(field), 100)} is not key=value, or there twice", place=["--override"])
        rule[name] = plain(value.encode("utf-8", "surrogateescape"), "--override")
    return rule


def resolved(infos: Sequence[TensorInfo], wanted: Mapping[str, Scheme | None]) -> Request:
    """The request that gives every tensor the scheme it is wanted in: the commonest one for all, rules for the rest."""
    counts = Counter(s for s in wanted.values() if s is not None)
    if not counts:
        raise UsageError("nothing would be quantized")
    default = max(counts, key=lambda s: (counts[s], s.name))
    others: dict[Scheme | None, list[str]] = defaultdict(list)
    for tensor in make(infos, Request(scheme=default)).tensors:
        scheme = wanted.get(tensor.info.name)
        if scheme != tensor.scheme:
            others[scheme].append(tensor.info.name)
    rules = [Rule(p, scheme) for scheme, names in others.items() for p in patterns_of(names)]
    return Request(scheme=default, rules=tuple(rules))


def request_of(values: Mapping[str, Any], schemes: Sequence[Scheme]) -> Request:
    """The request that `Request.as_dict` gave these plain values. Raises DataError for values it never gives."""

    def numbered(number: Any) -> Scheme:
        if type(number) is not int or not 0 <= number < len(schemes):
            raise TypeError
        return schemes[number]

    try:
        rules = []
        for pattern, number, *reason in values.get("rules", []):
            compiled(pattern, "rules")
            if len(reason) > 1 or not all(isinstance(r, str) for r in reason):
                raise TypeError
            rules.append(Rule(pattern, None if number is None else numbered(number), *reason))
        said = {name: _option(name, values[name]) for name in _OPTIONS if name in values and name not in SETTINGS}
        return Request(scheme=numbered(values["default"]), rules=tuple(rules), **said)
    except (QuantcliError, TypeError, ValueError, KeyError, AttributeError):
        raise DataError("the recipe in its header is damaged") from None


def dump(request: Request, settings: Mapping[str, str] | None = None) -> str:
    """The recipe of a request, as YAML that `load` reads; with settings (see SETTINGS) that are not the usual ones."""
    import yaml

    def text(value: Any) -> str:
        return str(
            yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=False)
        ).strip()

    known: list[tuple[Scheme, dict[str, Any]]] = []

    def shortest(scheme: Scheme) -> dict[str, Any]:
        found = next((fields for other, fields in known if other == scheme), None)
        if found is None:
            found = _shortest(scheme, default)
            known.append((scheme, found))
        return found

    default = _shortest(request.scheme, {})
    lines = [f"default: {text(default)}"]
    lines += ["rules:"] if request.rules else []
    for rule in request.rules:
        fields = shortest(rule.scheme) if rule.scheme is not None else {"keep": True}
        reason = {"reason": rule.reason} if rule.reason is not None else {}
        lines.append(f"  - {text({'match': rule.pattern, **fields, **reason})}")
    said = {name: list(getattr(request, name)) for name in ("include", "exclude") if getattr(request, name)}
    more: dict[str, Any] = {} if request.keep_defaults else {"keep_defaults": False}
    if request.max_shard_size is not None:
        more["max_shard_size"] = request.max_shard_size
    usual = {name: choices[0] for name, choices in SETTINGS.items()}
    more |= {name: value for name, value in (settings or {}).items() if value != usual[name]}
    lines += [text({name: value})[1:-1] for name, value in {**said, **more}.items()]
    found = "\n".join(lines) + "\n"
    if len(found) > LIMIT:
        raise UsageError(f"the recipe would have {len(found)} bytes, {LIMIT} are the most it may have")
    return found


def _shortest(scheme: Scheme, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The fewest fields that make this scheme on top of what is asked for all."""
    # What is asked for all must be taken back where this scheme does without it.
    fields = {"scale_dtype": None, "levels": None, "codebook": None, "options": {}, **scheme.as_dict()}
    order = sorted((n for n in fields if n != "bits"), key=lambda n: (n == "group_size", -_FIELDS.index(n)))
    for name in order * 2:  # some say what another one implies, once that is gone
        less = {k: v for k, v in fields.items() if k != name}
        try:
            if Scheme(**_on_top(less, asked)) == scheme:
                fields = less
        except QuantcliError:
            continue
    return fields


def levels(path: str) -> tuple[float, ...]:
    """The levels of a codebook in a file, ascending: numbers in text, apart by blanks or commas, or a .npy array.

    Raises UsageError where they are none.
    """
    raw = read_small(path, LIMIT)
    try:
        if raw[:6] == b"\x93NUMPY":
            import io

            import numpy as np

            found = [float(v) for v in np.load(io.BytesIO(raw), allow_pickle=False).ravel()]
        else:
            found = [float(word) for word in raw.decode("ascii").replace(",", " ").split()]
    except (ValueError, TypeError, EOFError, OverflowError):
        raise UsageError("it is not a list of numbers", place=[path]) from None
    return tuple(sorted(found))
