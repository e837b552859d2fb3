"""All that is asked of one run, as one typed record: from the command line or from Python, through to the pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from quantcli import registry
from quantcli.architectures import Architecture
from quantcli.asking import candidates, second_order
from quantcli.errors import QuantcliError, UsageError
from quantcli.experts import arranged, loadable
from quantcli.layouts.config import json_beside, stated
from quantcli.layouts.native.write import check_scheme
from quantcli.layouts.writer import named
from quantcli.planning import inputs, kinds
from quantcli.planning.keeping import embeddings_alone
from quantcli.planning.named import instead
from quantcli.planning.recipe import NATIVE, SETTINGS, Recipe
from quantcli.planning.recipe_keys import BATCH_NORM, HELP, IMPORTANCE, NO_MOMENTS, STATISTICS
from quantcli.planning.request import Request
from quantcli.stores import Source

if TYPE_CHECKING:
    from quantcli.planning.statistics import InputStatistics

USUAL = "compressed-tensors"
"""The target of folders that transformers loads, where none is asked for."""

NO_LOADER, ALONE = "no loader would know what the folder holds", "--to native for quantcli alone"
"""What is wrong with a folder that only quantcli could read, and how to ask for it all the same."""

LOADED = ("bnb-nf4",)
"""Other targets that transformers loads by itself."""

GGUF, MLX = "gguf", "mlx"
"""Targets of other programs, which take experts that those of the usual target do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A request that is independent of the model: schemes, rules and ties of a recipe, which tensors, what is written.

    to: a target, `native`, or None to leave it to the source. max_shard_size: bytes. importance, statistics: the path
    of a file, None for the one the recipe names. memory: bytes that what is factored of one layer may take. digest,
    on_nonfinite: one of `recipe.SETTINGS`.
    """

    recipe: Recipe
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    keep_defaults: bool = True
    keep_embeddings: bool | None = None
    to: str | None = None
    container: bool = False
    max_shard_size: int | None = None
    importance: str | None = None
    statistics: str | None = None
    allow_unweighted: bool = False
    memory: int | None = None
    activation_scales: str | None = None
    digest: str = SETTINGS["digest"][0]
    on_nonfinite: str = SETTINGS["on_nonfinite"][0]
    from_recipe: frozenset[str] = frozenset()
    """Keys that the recipe set and no option did."""

    @property
    def statistics_path(self) -> str | None:
        """The file of importances or statistics: the one that was asked for, else the one that the recipe names."""
        return self.importance or self.statistics or (self.recipe.importance or self.recipe.statistics or (None,))[0]

    @property
    def settings(self) -> dict[str, str]:
        """What else changes the bytes of a file, beside what a request holds, by the keys of recipes."""
        found = {"on_nonfinite": self.on_nonfinite, "digest": self.digest}
        return {**found, "to": NATIVE} if self.to == NATIVE else found


def made(
    recipe: Recipe,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep_defaults: bool = True,
    keep_embeddings: bool | None = None,
    to: str | None = None,
    inferred: str | None = None,
    container: bool = False,
    max_shard_size: float | None = None,
    importance: str | None = None,
    statistics: str | None = None,
    allow_unweighted: bool = False,
    memory: float | None = None,
    activation_scales: str | None = None,
    digest: str | None = None,
    on_nonfinite: str | None = None,
) -> Order:
    """What is given, and of the rest what the recipe says; inferred: the target where neither names one. Raises
    UsageError for what contradicts itself."""
    said: dict[str, Any] = dict(recipe.options)
    typed = {"include": include, "exclude": exclude, "container": container}
    limit = max_shard_size if max_shard_size is not None else said.get("max_shard_size")
    if limit is not None and limit < 1:
        raise UsageError("0 bytes are not a shard size", place=["--max-shard-size"])
    if importance is not None and statistics is not None:
        problem = "statistics say how much each column counts"
        raise UsageError(problem, place=["--importance"], hint="leave out one of --importance and --statistics")
    if memory is not None and statistics is None and recipe.statistics is None:
        problem = "only the second moments of --statistics take memory that can be limited"
        raise UsageError(problem, place=["--memory"], hint="leave it out, or give --statistics FILE")
    found = Order(
        recipe=recipe,
        include=tuple(include or said.get("include", ())),
        exclude=tuple(exclude or said.get("exclude", ())),
        keep_defaults=keep_defaults and said.get("keep_defaults", True),
        keep_embeddings=keep_embeddings if keep_embeddings is not None else said.get("keep_embeddings"),
        to=to or said.get("to") or inferred,
        container=container or said.get("container", False),
        max_shard_size=None if limit is None else int(limit),
        importance=importance,
        statistics=statistics,
        allow_unweighted=allow_unweighted or said.get("allow_unweighted", False),
        memory=None if memory is None else int(memory),
        activation_scales=activation_scales,
        digest=digest or said.get("digest") or SETTINGS["digest"][0],
        on_nonfinite=on_nonfinite or said.get("on_nonfinite") or SETTINGS["on_nonfinite"][0],
        from_recipe=frozenset(name for name, value in typed.items() if name in said and not value),
    )
    if found.container and found.to in (None, NATIVE):
        by_key = "container" in found.from_recipe
        place, hint = ("recipe: container", "add the key to") if by_key else ("--container", "use it with --to")
        raise UsageError("only other tools' layouts have containers", place=[place], hint=hint)
    return found


def named_by(output: str | None) -> str | None:
    """The target that the extension of an output stands for; None where it stands for none.

    >>> named_by("out/model.GGUF"), named_by("model.mlx"), named_by("model.safetensors")
    ('gguf', 'mlx', None)
    """
    found = os.path.splitext(os.path.basename(os.path.normpath(output or "")))[1][1:].lower()
    return found if found in registry.names("layouts", "WRITES") else None


def with_usual(fields: Mapping[str, Any], to: str | None) -> dict[str, Any]:
    """Fields of a scheme, and of what they leave open what is usual for a target; None for the native layout.

    >>> with_usual({"bits": 8}, "gguf"), with_usual({"group_size": 64}, "gguf")
    ({'bits': 8, 'group_size': 32}, {'group_size': 64})
    """
    found = dict(fields)
    if to in (None, NATIVE):
        return found
    assert to is not None
    if ":" in to:
        codes = [name for name in fields if name not in ("options",) and (name, fields[name]) != ("calibration", "mse")]
        if codes:
            plain = to.partition(":")[0]
            hint = f"leave it out; --override names the types of some tensors, --to {plain} takes schemes"
            raise UsageError(f"{to} gives every tensor a type of its own", place=[codes[0]], hint=hint)
        return {**found, **named(to).usual}  # for the rules of --override, which start from these fields
    export = named(to)
    if not fields.keys() - {"bits", "options"}:
        found = {**export.by_bits.get(fields.get("bits", 0), {}), **found}
    usual = export.usual
    if usual.get("format") not in (None, found.get("format", usual.get("format"))):
        return found  # what is usual for another format does not suit this one
    for name, value in usual.items():
        if name == "granularity":
            is_open = not {"granularity", "group_size", "axis"} & found.keys()
        elif name == "group_size":
            is_open = "group_size" not in found and fields.get("granularity", "group") == "group"
        else:
            is_open = name not in found
        if is_open:
            found[name] = value
    return found


class Aimed(NamedTuple):
    """A source with its experts arranged for what is written: a target, or None for the native layout. note: what there
    is to say of the target where none was asked for."""

    source: Source
    to: str | None
    note: str


def aimed(source: Source, asked: Order, *, folder: bool) -> Aimed:
    """A source as the target of what is written needs it. folder: whether that is a checkpoint folder.

    Where no target is asked for, a folder that transformers loads is written so that it still does. Raises DataError
    for a config.json that cannot be read, UsageError where no loader would know what such a folder holds.
    """
    if asked.to in (None, NATIVE):
        _check_native(asked)
    if asked.to is not None:
        to = None if asked.to == NATIVE else asked.to
        return Aimed(loadable(source, to, container=asked.container), to, "")
    model = _architecture(source) if folder else None
    note = _unsuited(source, asked, model) if model is not None else ""
    if model is not None and not note:
        usual = loadable(source, USUAL)
        _check_experts(source, usual)
        return Aimed(usual, USUAL, "")
    return Aimed(arranged(source, None), None, note)


def _check_native(asked: Order) -> None:
    """Raise UsageError for a scheme that quantcli's own layout does not have."""
    for scheme in asked.recipe.schemes:
        check_scheme(scheme)


def _unsuited(source: Source, asked: Order, model: Architecture) -> str:
    """Why a model that is to stay loadable is not written for the usual target; empty where it may be."""
    if model.library == "diffusers":
        own = "written in quantcli's own layout, which diffusers refuses to load; it loads --to bnb-nf4"
        return f"{own}, and what `quantcli dequantize` makes of this"
    if embeddings_alone(source.infos()):
        own = "written in quantcli's own layout, which only quantcli reads"
        return f"{own}: loaders of {USUAL} take no quantized embeddings; `quantcli dequantize` makes floats of it"
    _check_loadable(source, asked)
    return ""


def _check_loadable(source: Source, asked: Order) -> None:
    """Raise UsageError for a scheme with which loaders would not know what a folder holds."""
    accepts = named(USUAL).accepts
    for scheme in (c for s in asked.recipe.schemes for c in candidates(s)):
        if (why := accepts.obstacle(scheme)) is not None:
            other = next((to for to in LOADED if named(to).accepts.obstacle(scheme) is None), None)
            found = instead(scheme, accepts)
            ways = [f"--to {other}"] if other is not None else [found] if found else []
            hint = f"use {', or '.join([*ways, ALONE])}"
            raise UsageError(f"{NO_LOADER}: {USUAL} cannot store {why} ({scheme.name})", place=[source.path], hint=hint)


def _check_experts(source: Source, usual: Source) -> None:
    """Raise UsageError for a model most of whose weights are experts that the loaders of the usual target do not take.
    usual: the source as that target needs it."""
    if 2 * sum(info.nbytes for info in source.infos() if info.name in usual.unsplit) <= source.share:
        return
    others = [f"--to {to}" for to in (GGUF, MLX) if _takes_experts(source, to)]
    hint = f"use {', '.join(others)}{' or ' if others else ''}{ALONE}"
    raise UsageError(f"{NO_LOADER}: {next(iter(usual.unsplit.values())).why}", place=[source.path], hint=hint)


def _takes_experts(source: Source, to: str) -> bool:
    """Whether the program that loads a target takes the experts of a model."""
    if to == GGUF:
        from quantcli.layouts.gguf.families import classes  # here, for it is needed for a refusal alone: 25 modules

        names = (json_beside(source.beside, "config.json") or {}).get("architectures")
        if not (isinstance(names, list) and names and isinstance(names[0], str) and names[0] in classes()):
            return False
    return not arranged(source, to).unsplit


def _architecture(source: Source) -> Architecture | None:
    """What a folder's config.json says the model is; None where it is not one of transformers."""
    try:
        return stated(source.beside)
    except QuantcliError as error:
        raise error.within(source.path) from None


def statistics_of(source: Source, asked: Order) -> tuple[InputStatistics | None, str]:
    """The importances or statistics that are named, and the warning about entries that belong to no tensor of the
    source. Raises UsageError where a rounding needs some and there are none."""
    diagonals = asked.importance is not None or (asked.statistics is None and asked.recipe.importance is not None)
    key, typed = (IMPORTANCE, asked.importance) if diagonals else (STATISTICS, asked.statistics)
    path, digest = (asked.recipe.importance if diagonals else asked.recipe.statistics) or (None, None)
    if path is None or typed is not None:
        # A recipe out of a header knows the importances it was made with by their digest alone.
        digest, path = digest if path is None else None, typed
    if path is None:
        if digest is not None:
            raise UsageError(f"the recipe was made with {key}", place=[f"--{key}"], hint="give the file")
        if any(scheme.second_order for scheme in asked.recipe.schemes):
            raise UsageError(NO_MOMENTS, place=["rounding"], hint=HELP)
        return None, ""
    from quantcli.planning.statistics import load, of_norms  # of runs with statistics alone, some milliseconds

    if path == BATCH_NORM and not diagonals:
        found = of_norms(source, digest)
        from quantcli.planning.batch_norms import assumed

        return found, assumed(len(found.entries))
    found = load(path, digest, diagonals=diagonals)
    return found, found.left_over(source.infos(), source.path)


def request_of(
    source: Source, asked: Order, to: str | None, statistics: InputStatistics | None, warn: Callable[[str], None]
) -> Request:
    """What is asked of the tensors of a source, written for a target. Where a recipe, --include or --no-default-keep
    says what is quantized, no preset does. warn: called with why a preset is not chosen that there would be."""
    again = named(to).again(source) if to is not None and not asked.container else None
    if statistics is not None and (again is None or again.matrices is None):
        from quantcli.planning.statistics import inputs_first

        statistics = replace(statistics, inputs_first=inputs_first(source))
    said = asked.recipe.given or asked.include or not asked.keep_defaults or (again is not None and again.decides)
    preset, kept, note = kinds.Chosen() if said else kinds.chosen(source)
    if note:
        warn(note)
    given = asked.recipe.asked.rounding is not None
    sums = asked.recipe.options.get("convolution_sums")
    if sums is None and (statistics is not None or asked.recipe.rounding_given):
        sums = False
    default, rules = asked.recipe.default, asked.recipe.rules
    if statistics is not None and statistics.key == STATISTICS and not given:
        default = second_order(default)
        rules = tuple(r if r.scheme is None else replace(r, scheme=second_order(r.scheme)) for r in rules)
    return Request(
        scheme=default,
        rules=(*kept, *rules),
        preset=preset,
        ties=asked.recipe.ties,
        include=asked.include,
        exclude=asked.exclude,
        keep_defaults=asked.keep_defaults,
        keep_embeddings=asked.keep_embeddings,
        max_shard_size=asked.max_shard_size,
        statistics=statistics,
        rounding_given=given,
        convolution_sums=sums,
        allow_unweighted=asked.allow_unweighted,
        memory=asked.memory,
        inputs=inputs.load(asked.activation_scales) if asked.activation_scales is not None else None,
        to=to,
        architecture=_architecture(source) if to is not None else None,
        container=asked.container,
        unsplit=source.unsplit,
        again=again,
        from_recipe=asked.from_recipe,
    )
