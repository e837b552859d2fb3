"""What plan and quantize share: a budget, and the plan that keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from quantcli.cli import _asking, _help, options
from quantcli.cli._gating import Target, limits
from quantcli.cli._reach import Unit, unit_of, way_out, what_takes_the_room
from quantcli.errors import UsageError

if TYPE_CHECKING:
    from quantcli.folders.components import Chosen
    from quantcli.passes.batches import Crew
    from quantcli.passes.budget import Planned
    from quantcli.passes.menus import Subject
    from quantcli.planning.order import Order
    from quantcli.planning.plan import Plan
    from quantcli.planning.request import Request
    from quantcli.scheme import Scheme


KEEP = 16
"""The bits that stand for a tensor as it is."""

BITS, GROUP_SIZES = [2, 3, 4, 5, 6, 8, KEEP], [64, 128]
"""What a plan chooses from by default."""


def _listed(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


TARGETS = (
    ("target_size", "SIZE", "Most bytes the file may have, such as 3.9GB."),
    ("target_bpw", "BITS", "Most bits per weight, everything counted."),
    ("min_sqnr", "DB", "The smallest file of at least this SQNR over all quantized weights."),
    ("max_nmse", "E", "The smallest file of at most this squared error over power."),
    ("min_output_sqnr", "DB", "The smallest file in which no layer's output has less, as --statistics predict it."),
)


WITH_A_TARGET = (
    *("target_size", "target_bpw", "recipe", "override", "importance", "statistics", "allow_unweighted", "memory"),
    *("save_recipe", "include", "exclude", "no_default_keep", "keep_embeddings", "max_shard_size", "on_nonfinite"),
    *("digest", "to", "container"),
)
"""Options that are allowed with a target; a plan chooses the rest itself."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Budget:
    """What a plan must keep, and what it may choose from. target: one of TARGETS; value: what was typed for it.
    scheme: fields that all choices have; bits: None for the format's own, KEEP for a tensor as it is. menu: the
    choices, where the target has types of its own; names: schemes to choose from by name, beside the others; levels:
    those of learned codebooks, too."""

    target: str
    value: Any
    bits: tuple[int | None, ...]
    group_sizes: tuple[int, ...]
    scheme: Mapping[str, Any] = field(default_factory=dict)
    menu: tuple[Mapping[str, Any], ...] = ()
    names: tuple[str, ...] = ()
    calibrations: tuple[str, ...] = ()
    levels: tuple[int, ...] = ()
    ties: bool = True
    uniform: bool = False
    weighting: str = "balanced"


def of_plan(asked: Mapping[str, Any], order: Order) -> Budget:
    """The budget that options of plan make; what they leave open is usual for the target. Raises UsageError where there
    is not just one thing to keep within."""
    targets = [name for name, _, _ in TARGETS if asked.get(name) is not None]
    if len(targets) != 1:
        names = [_asking.option_name(name) for name, _, _ in TARGETS]
        raise UsageError("one target is needed", hint=f"give {', '.join(names[:-1])} or {names[-1]}")
    if asked["uniform_groups"] and targets[0] not in ("target_size", "target_bpw"):
        raise UsageError("one scheme is found for a size only", place=["--uniform-groups"], hint="give --target-size")
    typed = {"bits": asked["bits"], "group_sizes": asked["group_size"]}
    lists: dict[str, Any] = {name: tuple(values) for name, values in typed.items() if values is not None}
    if asked["scheme"] is not None:
        lists["names"] = tuple(asked["scheme"])
        lists.setdefault("bits", (KEEP,))
    return Budget(
        target=targets[0],
        value=asked[targets[0]],
        **{**usual(order.to), **lists, **({"menu": ()} if lists else {})},
        calibrations=tuple(asked["calibration"] or ()),
        levels=tuple(asked["levels"] or ()),
        ties=not asked["no_ties"],
        uniform=asked["uniform_groups"],
        weighting=asked["weighting"],
    )


def of_quantize(asked: Mapping[str, Any], order: Order) -> Budget | None:
    """The budget of quantize; None where it has none. Raises UsageError for options of what a plan chooses itself."""
    targets = [name for name in ("target_size", "target_bpw") if asked[name] is not None]
    if not targets:
        return None
    chosen = [name for name, value in asked.items() if name not in WITH_A_TARGET and value not in (None, ())]
    if chosen:
        option = _asking.option_name(chosen[0], asked[chosen[0]])
        raise UsageError("a size target chooses this itself", place=[option], hint=_without(option))
    if len(targets) > 1:
        raise UsageError("one target is needed", hint="give --target-size or --target-bpw")
    return Budget(target=targets[0], value=asked[targets[0]], **usual(order.to))


def _without(option: str) -> str:
    """What to do in place of an option of what a size target chooses."""
    if option in ("--bits", "--group-size", "--calibration"):
        return f"leave it out, or quantize with the recipe of quantcli plan, which chooses among values of {option}"
    return "leave out one of them; --override gives some tensors a scheme that stays"


def usual(to: str | None) -> dict[str, Any]:
    """What quantize chooses from for a target: all widths, in the format and the groups that are usual for it."""
    found: dict[str, Any] = {"bits": tuple(BITS), "group_sizes": tuple(GROUP_SIZES)}
    if to in (None, "native"):
        return found
    from quantcli.layouts.writer import named

    export = named(str(to))
    if ":" in str(to):
        name, _, kind = str(to).partition(":")
        hint = f"use --to {name}, or leave the size out"
        raise UsageError(f"{kind} decides the types of all tensors itself", place=[f"--to {to}"], hint=hint)
    if export.menu:
        found["menu"] = export.menu
    fields = export.usual
    if "format" in fields:
        found |= {"scheme": {"format": fields["format"]}, "bits": (None, KEEP)}
    if "group_size" in fields:
        found["group_sizes"] = (fields["group_size"],)
    elif fields.get("granularity") == "channel":
        found["group_sizes"] = (-1,)
    return found


budget = _help.options(
    limits(TARGETS, "Common", Target),
    _asking.names("Schemes to choose from by name, such as FP8_DYNAMIC,NVFP4A16,W4A16; --bits adds others"),
    options.numbers(
        "--bits",
        None,
        "Bit widths to choose from; 16 keeps a tensor as it is.",
        group="Search",
        shown=f"{_listed(BITS)}; of a --to with one format, that of its own; with --scheme 16",
    ),
    options.numbers(
        "--group-size",
        None,
        "Group sizes to choose from; -1 per channel, 0 per tensor.",
        group="Search",
        shown=f"{_listed(GROUP_SIZES)}; --to mlx, bnb-nf4: 64; gguf: 32; comfyui: -1",
    ),
    _asking.calibrations("Calibrations to choose from, rounded to nearest."),
    _asking.level_counts,
    _asking.selection,
    _help.option(
        "--no-ties", is_flag=True, help="Let tensors that runtimes fuse have schemes of their own.", group="Search"
    ),
    _asking.recipe,
    _asking.statistics,
    _help.option(
        "--uniform-groups",
        is_flag=True,
        help="One scheme for all that is quantized, as one config group of compressed-tensors can store.",
        group="Search",
    ),
    _help.option(
        "--weighting",
        metavar="NAME|FILE",
        default="balanced",
        show_default=True,
        help="What adds up: each tensor's squared error over its power (relative), that times its size to the "
        "power of 5/8 (balanced), the error as it is (absolute), or relative times factors by pattern in a YAML FILE.",
        group="Search",
    ),
)
"""What a plan must keep, and what it may choose from."""


def _with_experts_tied(request: Request, first: Plan) -> Request:
    """A request that gives all experts of a model one scheme, where loaders of the target take no other."""
    from quantcli.architectures import EXPERTS
    from quantcli.layouts.writer import named
    from quantcli.patterns import module_of

    model = request.architecture
    tied = named(request.to).tied if request.to is not None else None
    if tied is None or model is None:
        return request
    experts = any(t.scheme is not None and model.holder(module_of(t.info.name)) == EXPERTS for t in first.tensors)
    return replace(request, ties=(*request.ties, tied)) if experts else request


def _stored_by(name: str, to: str | None, schemes: list[Scheme]) -> tuple[list[Scheme], bool, str]:
    """The schemes the target of a model stores, with scales as it stores them, whether one model may mix them, and the
    line about those that are left out. Raises UsageError where it stores none."""
    if to is None:
        from quantcli.layouts.native.write import check_scheme

        for scheme in schemes:
            check_scheme(scheme, "--scheme")
        return schemes, True, ""
    from quantcli.layouts.writer import named
    from quantcli.planning.targets import nearest
    from quantcli.stores.pipelines import prefixed

    export = named(to)
    stored = [s for s in schemes if export.accepts.obstacle(s) is None]
    left = [s.name for s in schemes if s not in stored]
    if not stored:
        hint = nearest(schemes[0], export) or f"it stores {export.accepts.describe()}"
        raise UsageError(f"{to} stores none of {', '.join(left)}", place=["--to"], hint=hint)
    line = prefixed(name, f"{to} does not store {', '.join(left)}: not among the choices") if left else ""
    return [export.suited(s) for s in stored], export.mixes, line


def _where(size: int) -> dict[str, Any]:
    """Scheme fields of a group size."""
    return _asking.granularity(None, size, None)


def _schemes(order: Order, budget: Budget) -> list[Scheme]:
    """The schemes to choose from. Raises UsageError where there are none."""
    sizes, counts = budget.group_sizes, budget.levels
    asked = {"bits": budget.bits, "group_size": sizes, "calibration": budget.calibrations, "levels": counts}
    methods: list[dict[str, Any]] = [{"calibration": name} for name in budget.calibrations] or [{}]
    called = [_asking.named_scheme(name) for name in budget.names]
    with _asking.naming_options(asked):
        schemes = [
            order.recipe.scheme({**budget.scheme, **({"bits": bits} if bits else {}), **_where(size), **method})
            for method in methods
            for size in sizes
            for bits in budget.bits
            if bits != KEEP and not budget.menu
        ]
        schemes += [
            order.recipe.scheme({**fields, **method}) for method in methods for fields in (*budget.menu, *called)
        ]
        learned = {"format": "codebook"}
        schemes += [order.recipe.scheme({**learned, "levels": n, **_where(s)}) for s in sizes for n in counts]
    if not schemes:
        raise UsageError("there is nothing to choose from", place=["--bits"], hint="name widths below 16")
    return schemes


def _subject(
    name: str, chosen: Chosen, request: Request, schemes: Sequence[Scheme], mixed: bool, console: options.Console
) -> Subject:
    """A model that schemes are chosen for."""
    from quantcli.folders import output as outputs
    from quantcli.passes.menus import Subject
    from quantcli.planning.plan import make
    from quantcli.reports.cautions import unweighted

    source = chosen.models[name].source
    first = make(source.infos(), request)
    request = _with_experts_tied(request, first)
    for line in () if console.quiet else unweighted(first.tensors):
        options.warn(line)

    def size_of(plan: Plan) -> int:
        assert plan.request is not None
        sized = replace(plan.request, max_shard_size=request.max_shard_size)
        return outputs.size_of(source, replace(plan, request=sized))

    return Subject(
        name=name,
        source=source,
        request=request,
        schemes=tuple(schemes),
        mixed=mixed,
        named=bool(chosen.members[name].why_kept),
        size_of=size_of,
        nbytes_of=partial(outputs.nbytes_of, source),
        again=chosen.again(name),
    )


def _subjects(
    found: Chosen, order: Order, budget: Budget, console: options.Console
) -> tuple[Chosen, tuple[Subject, ...], list[str]]:
    """All models that a path names, those that schemes are chosen for, and the lines about schemes left out."""
    from quantcli.folders import components
    from quantcli.stores import need_file

    schemes = _schemes(order, budget)
    for one in found.models.values():
        need_file(one.source, "planning")
    stored = {name: _stored_by(name, one.to, schemes) for name, one in found.models.items()}
    rounded: dict[str, Any] = {"convolution_sums": False} if budget.calibrations else {}
    chosen, requests = components.requested(
        found, options.warn, lambda name, request: replace(request, scheme=stored[name][0][0], **rounded)
    )
    subjects = [_subject(name, chosen, request, *stored[name][:2], console) for name, request in requests.items()]
    return chosen, tuple(subjects), [line for _, _, line in stored.values() if line]


def _target(chosen: Chosen, budget: Budget, subjects: Sequence[Subject]) -> tuple[int | None, Unit | None]:
    """The bytes that a plan is to stay within, and the unit that was asked for; None where the error is limited. Raises
    UsageError where nothing need be quantized."""
    from quantcli.folders.job import kept_tensors
    from quantcli.planning.plan import make
    from quantcli.planning.reasons import is_left_out

    name, value = budget.target, budget.value
    if name not in ("target_size", "target_bpw"):
        return None, None
    whole, parameters = chosen.kept_bytes, sum(t.info.numel for t in kept_tensors(chosen.kept))
    for s in subjects:
        first = make(s.source.infos(), s.request)
        nbytes = s.nbytes_of(first)
        header = s.size_of(first) - sum(nbytes(t.info.name) for t in first.tensors)
        written = [t.info for t in first.tensors if not is_left_out(t.info, nbytes(t.info.name))]
        whole += header + sum(info.nbytes for info in written)
        parameters += sum(info.numel for info in written)
    unit = unit_of(name, value.text, parameters)
    target = int(value if name == "target_size" else value * parameters / 8)
    if KEEP in budget.bits and target >= whole:
        problem = f"{unit.asked} are enough for all of it as it is"
        raise UsageError(problem, place=[chosen.src, _asking.option_name(name)], hint="quantizing is not needed")
    return target, unit


def _weighting(budget: Budget, limited: bool, subjects: Sequence[Subject]) -> str | dict[str, dict[str, float]]:
    """How errors add up: by name, or from a file for each tensor of each model."""
    from quantcli.passes.weighting import WEIGHTINGS, factors
    from quantcli.stores.pipelines import within

    if limited or budget.weighting in WEIGHTINGS:
        return "absolute" if limited else budget.weighting
    names = {s.name: [info.name for info in s.source.infos()] for s in subjects}
    found = factors(budget.weighting, [within(name, n) for name, own in names.items() for n in own])
    return {name: {n: found[within(name, n)] for n in own} for name, own in names.items()}


def _fewer_bits(budget: Budget) -> str:
    """How to ask for fewer bits than were asked for; empty where there are none."""
    return "allow fewer --bits" if min(b or KEEP for b in budget.bits) > min(BITS) and not budget.scheme else ""


def planned(
    found: Chosen,
    order: Order,
    budget: Budget,
    threads: int,
    console: options.Console,
    crew: Crew | None = None,
) -> tuple[Chosen, Planned, int | None]:
    """The best plan for the models that a path names, these without components that stay as they are, and the bytes it
    was to stay within. crew: the workers that measure, None for threads here."""
    from quantcli.folders import components
    from quantcli.passes import budget as planning
    from quantcli.passes import menus

    chosen, subjects, left_out = _subjects(found, order, budget, console)
    of_outputs = budget.target == "min_output_sqnr"
    if of_outputs and not any(s.request.statistics is not None and s.request.statistics.of_outputs for s in subjects):
        problem = "only means or second moments of inputs tell what outputs lose"
        raise UsageError(problem, place=["--min-output-sqnr"], hint="give --statistics FILE, or use --min-sqnr")
    target, unit = _target(chosen, budget, subjects)
    weighting = _weighting(budget, target is None, subjects)
    offer = menus.offer_of(subjects, keep=KEEP in budget.bits, ties=budget.ties, beside=chosen.kept_bytes)
    try:
        if target is not None:
            planning.check_reach(offer.variants(uniform=budget.uniform), target)
        console.inform(*left_out)  # only now, for an error is one line
        with console.bar("planning") as progress:
            offer = menus.measured(offer, weighting=weighting, threads=threads, progress=progress, crew=crew)
        variants = offer.variants(uniform=budget.uniform)
        if target is not None:
            plan = planning.best_within(variants, target)
        elif of_outputs:
            plan = planning.best_of_outputs(variants, float(budget.value))
        else:
            power = sum(u.choices[0].power for u in offer.units)
            cost = power * (10 ** (-budget.value / 10) if budget.target == "min_sqnr" else budget.value)
            plan = planning.best_reaching(variants, cost)
    except planning.OutOfReachError as error:
        assert unit is not None
        problem = what_takes_the_room(error.least, unit, offer, chosen.kept)
        smaller = "name smaller schemes" if budget.names else _fewer_bits(budget)
        hint = way_out(chosen, order, error.least, smaller=smaller, widths=not budget.scheme)
        raise UsageError(problem, place=[chosen.src, _asking.option_name(budget.target)], hint=hint) from None
    if plan.whole:
        chosen = components.without(chosen, dict.fromkeys(plan.whole, "the budget has room for all of it"))
    return chosen, plan, target
