"""What plan and quantize share: a budget, and the plan that keeps it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_letters
from typing import TYPE_CHECKING, Any

from quantcli.cli import _asking, _help, options
from quantcli.cli._gating import Target, limits
from quantcli.errors import UsageError, printable

if TYPE_CHECKING:
    from quantcli.passes.budget import Menu, Planned
    from quantcli.planning.order import Order
    from quantcli.planning.plan import Plan
    from quantcli.planning.request import Request
    from quantcli.scheme import Scheme
    from quantcli.stores import Source


BITS, GROUP_SIZES = [2, 3, 4, 5, 6, 8, 16], [64, 128]
"""What a plan chooses from by default."""


def _listed(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


TARGETS = (
    ("target_size", "SIZE", "Most bytes the file may have, such as 3.9GB."),
    ("target_bpw", "BITS", "Most bits per weight, everything counted."),
    ("min_sqnr", "DB", "The smallest file of at least this SQNR over all quantized weights."),
    ("max_nmse", "E", "The smallest file of at most this squared error over power."),
)


WITH_A_TARGET = (
    *("target_size", "target_bpw", "recipe", "override", "importance", "save_recipe"),
    *("include", "exclude", "no_default_keep", "keep_embeddings", "max_shard_size", "on_nonfinite", "digest"),
    *("to", "container"),
)
"""Options that are allowed with a target; a plan chooses the rest itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a plan must keep, and what it may choose from. target: one of TARGETS; value: what was typed for it.
    scheme: fields that all choices have; bits: None for the format's own, 16 to keep a tensor. menu: the choices, where
    the target has types of its own."""

    target: str
    value: Any
    bits: tuple[int | None, ...]
    group_sizes: tuple[int, ...]
    scheme: Mapping[str, Any] = field(default_factory=dict)
    menu: tuple[Mapping[str, Any], ...] = ()
    calibrations: tuple[str, ...] = ()
    ties: bool = True
    uniform: bool = False
    weighting: str = "balanced"


def of_plan(asked: Mapping[str, Any], order: Order) -> Budget:
    """The budget that options of plan make; what they leave open is usual for the target. Raises UsageError where there
    is not just one thing to keep within."""
    targets = [name for name, _, _ in TARGETS if asked.get(name) is not None]
    if len(targets) != 1:
        raise UsageError("one target is needed", hint="give --target-size, --target-bpw, --min-sqnr or --max-nmse")
    if asked["uniform_groups"] and targets[0] not in ("target_size", "target_bpw"):
        raise UsageError("one scheme is found for a size only", place=["--uniform-groups"], hint="give --target-size")
    typed = {"bits": asked["bits"], "group_sizes": asked["group_size"]}
    lists = {name: tuple(values) for name, values in typed.items() if values is not None}
    return Budget(
        target=targets[0],
        value=asked[targets[0]],
        **{**usual(order.to), **lists, **({"menu": ()} if lists else {})},
        calibrations=tuple(asked["calibration"] or ()),
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
        return (
            f"leave it out, or let quantcli plan choose among the values of its {option}, and quantize with its recipe"
        )
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
        found |= {"scheme": {"format": fields["format"]}, "bits": (None, 16)}
    if "group_size" in fields:
        found["group_sizes"] = (fields["group_size"],)
    elif fields.get("granularity") == "channel":
        found["group_sizes"] = (-1,)
    return found


budget = _help.options(
    limits(TARGETS, "Common", Target),
    options.numbers(
        "--bits",
        None,
        "Bit widths to choose from; 16 keeps a tensor as it is.",
        group="Search",
        shown=f"{_listed(BITS)}; of a --to with one format, that of its own",
    ),
    options.numbers(
        "--group-size",
        None,
        "Group sizes to choose from; -1 per channel, 0 per tensor.",
        group="Search",
        shown=f"{_listed(GROUP_SIZES)}; --to mlx, bnb-nf4: 64; gguf: 32; comfyui: -1",
    ),
    _asking.calibrations("Calibrations to choose from, rounded to nearest."),
    _asking.selection,
    _help.option(
        "--no-ties", is_flag=True, help="Let tensors that runtimes fuse have schemes of their own.", group="Search"
    ),
    _asking.recipe,
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


@dataclass(frozen=True, slots=True)
class _Unit:
    """What a target was given in: as it was asked for, bytes in one of the unit, its name, decimals of a least size."""

    asked: str
    size: float
    name: str
    decimals: int

    def text(self, nbytes: int) -> str:
        """So many bytes, for people."""
        return f"{nbytes / self.size:,.0f}" if self.size == 1 else f"{nbytes / self.size:.3g}"

    def least(self, nbytes: int) -> str:
        """The least target that holds so many bytes: rounded up, so that it may be asked for."""
        scale = 10**self.decimals
        return f"{math.ceil(nbytes / self.size * scale) / scale:.{self.decimals}f} {self.name}"


def _unit(name: str, text: str, parameters: int) -> _Unit:
    """The unit of a target that was typed so."""
    from quantcli.reports.gates import parsed

    number = text.strip().rstrip(ascii_letters).strip()
    if name == "target_bpw":
        return _Unit(f"{number} bits per weight", parameters / 8, "bits per weight", 3)
    word = text.strip()[len(number) :].strip()
    size = parsed("target_size", f"1{word}")
    return _Unit(f"{number} {word if size > 1 else 'bytes'}", size, word if size > 1 else "bytes", 3 if size > 1 else 0)


def _what_takes_the_room(least: Planned, unit: _Unit, nbytes: Callable[[str], int]) -> str:
    """Why a target is out of reach: the smallest file, and what fills it."""
    tensors = {t.info.name: (t, nbytes(t.info.name)) for t in least.plan.tensors}
    kept = sorted(((t, n) for t, n in tensors.values() if t.scheme is None), key=lambda k: (-k[1], k[0].info.name))
    of_kept, of_all = (sum(n for _, n in some) for some in (kept, tensors.values()))
    large = [(t, n) for t, n in kept[:3] if t is kept[0][0] or 10 * n >= of_kept]
    named = [f"{printable(t.info.name, 100)} {unit.text(n)} ({printable(t.reason, 40)})" for t, n in large]
    more = f" and {len(kept) - len(large)} more" if len(kept) > len(large) else ""
    filled = [f"kept tensors {unit.text(of_kept)}: {', '.join(named)}{more}"] if kept else []
    filled += [f"quantized tensors {unit.text(of_all - of_kept)}", f"header {unit.text(least.size - of_all)}"]
    # Whether float16 holds all scales of wider weights is known only once they are measured.
    open_ = not least.measured and any(
        t.scale_dtype == "F16" and t.info.dtype != "F16" for t, _ in tensors.values() if t.scheme
    )
    reached = f"the smallest file these options allow has {'at least ' if open_ else ''}{unit.least(least.size)}"
    return f"{unit.asked} cannot be met: {reached} ({'; '.join(filled)})"


def _way_out(order: Order, to: str | None, budget: Budget, least: Planned) -> str:
    """What makes the smallest file smaller, and else to ask for more."""
    from quantcli.planning.reasons import ALL, TABLES, TABLES_TOO, VECTORS, which

    ways, kept = [], {t.reason for t in least.plan.tensors if t.scheme is None}
    native = "--to native " if to is not None else ""
    if order.keep_embeddings and kept & TABLES:
        ways.append("leave out --keep-embeddings")
    elif kept & which(lambda reason: ALL in reason.ways) - TABLES - VECTORS and (native or order.keep_defaults):
        ways.append(f"quantize such tensors too with {native}{ALL}")
    elif kept & TABLES and (native or order.keep_embeddings is None):
        ways.append(f"quantize such tensors too with {native}{TABLES_TOO}")
    if min(b or 16 for b in budget.bits) > min(BITS) and not budget.scheme:
        ways.append("allow fewer --bits")
    return ", or ".join([*ways, "ask for more"])


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


def _stored_by(to: str | None, schemes: list[Scheme], console: options.Console) -> tuple[list[Scheme], bool]:
    """The schemes a target stores, with scales as it stores them, and whether one model may mix them. Raises UsageError
    where it stores none; those left out are reported."""
    if to is None:
        return schemes, True
    from quantcli.layouts.writer import named

    export = named(to)
    stored = [s for s in schemes if export.accepts.obstacle(s) is None]
    left = [s.name for s in schemes if s not in stored]
    if not stored:
        hint = f"it stores {export.accepts.describe()}"
        raise UsageError(f"{to} stores none of {', '.join(left)}", place=["--to"], hint=hint)
    if left:
        console.inform(f"{to} does not store {', '.join(left)}: not among the choices")
    return [export.suited(s) for s in stored], export.mixes


def _where(size: int) -> dict[str, Any]:
    """Scheme fields of a group size."""
    return _asking.granularity(None, size, None)


def _schemes(order: Order, budget: Budget) -> list[Scheme]:
    """The schemes to choose from. Raises UsageError where there are none."""
    asked = {"bits": budget.bits, "group_size": budget.group_sizes, "calibration": budget.calibrations}
    methods: list[dict[str, Any]] = [{"calibration": name} for name in budget.calibrations] or [{}]
    with _asking.naming_options(asked):
        schemes = [
            order.recipe.scheme({**budget.scheme, **({"bits": bits} if bits else {}), **_where(size), **method})
            for method in methods
            for size in budget.group_sizes
            for bits in budget.bits
            if bits != 16 and not budget.menu
        ]
        schemes += [order.recipe.scheme({**fields, **method}) for method in methods for fields in budget.menu]
    if not schemes:
        raise UsageError("there is nothing to choose from", place=["--bits"], hint="name widths below 16")
    return schemes


def planned(
    source: Source, src: str, order: Order, to: str | None, budget: Budget, threads: int, console: options.Console
) -> tuple[Planned, int | None]:
    """The best plan for a source, and the bytes it was to stay within."""
    from quantcli.folders import job
    from quantcli.folders import output as outputs
    from quantcli.passes import budget as planning
    from quantcli.passes.weighting import WEIGHTINGS, factors
    from quantcli.planning.plan import make
    from quantcli.reports.build import unweighted
    from quantcli.stores import need_file

    schemes = _schemes(order, budget)
    need_file(source, "planning")
    request = job.request(source, order, to, warn=options.warn)
    schemes, mixed = _stored_by(to, schemes, console)
    request = replace(request, scheme=schemes[0])
    first = make(source.infos(), request)
    request = _with_experts_tied(request, first)
    for line in () if console.quiet else unweighted(first.tensors):
        options.warn(line)

    def size_of(plan: Plan) -> int:
        """Bytes of a plan in files of the size asked for."""
        assert plan.request is not None
        sized = replace(plan.request, max_shard_size=request.max_shard_size)
        return outputs.size_of(source, replace(plan, request=sized))

    name, value = budget.target, budget.value
    target: int | None = None
    if name in ("target_size", "target_bpw"):
        parameters = sum(info.numel for info in source.infos())
        unit = _unit(name, value.text, parameters)
        target = int(value if name == "target_size" else value * parameters / 8)
        whole = sum(info.nbytes for info in source.infos())
        nbytes = outputs.nbytes_of(source, first)
        if 16 in budget.bits and target >= whole + size_of(first) - sum(nbytes(t.info.name) for t in first.tensors):
            problem = f"{unit.asked} are enough for all of it as it is"
            raise UsageError(problem, place=[src, _asking.option_name(name)], hint="quantizing is not needed")
    weighting: Any = "absolute" if target is None else budget.weighting
    if weighting not in WEIGHTINGS:
        weighting = factors(weighting, [info.name for info in source.infos()])

    def nbytes_of(plan: Plan) -> Callable[[str], int]:
        return outputs.nbytes_of(source, plan)

    def variants(menu: Menu) -> list[Menu]:
        return [menu] if mixed and not budget.uniform else planning.with_one_scheme(menu)

    menu = planning.menu_of(source, request, schemes, keep=16 in budget.bits, ties=budget.ties, nbytes_of=nbytes_of)
    try:
        if target is not None:
            planning.check_reach(variants(menu), source, request, size_of, target)
        with console.bar("planning") as progress:
            menu = planning.measured(
                menu, source, weighting=weighting, nbytes_of=nbytes_of, threads=threads, progress=progress
            )
        if target is not None:
            return planning.best_within(variants(menu), source, request, size_of, target), target
    except planning.OutOfReachError as error:
        problem = _what_takes_the_room(error.least, unit, nbytes_of(error.least.plan))
        hint = _way_out(order, to, budget, error.least)
        raise UsageError(problem, place=[src, _asking.option_name(name)], hint=hint) from None
    power = sum(u.choices[0].power for u in menu.units)
    cost = power * (10 ** (-value / 10) if name == "min_sqnr" else value)
    return planning.best_reaching(variants(menu), source, request, size_of, cost), None
