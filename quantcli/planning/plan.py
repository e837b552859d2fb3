"""The plan: for every tensor a scheme, or a stated reason to be left alone. Everything refusable is refused here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quantcli.architectures import UNNAMED, Architecture
from quantcli.asking import candidates, weighs
from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, QuantcliError, UsageError, printable
from quantcli.layouts.native import parts as native
from quantcli.layouts.writer import Again, Writer, named, refusal
from quantcli.patterns import compiled, matching, names_it, near_misses, tied
from quantcli.planning.importance import Importance
from quantcli.planning.inputs import InputScales, with_scales
from quantcli.planning.keeping import embeddings_alone, why_kept
from quantcli.planning.reasons import ALL, NAMED, REASONS, SMALL, TABLES, VECTORS, which
from quantcli.scheme import Scheme
from quantcli.stores import Unsplit, signals
from quantcli.tensors.decided import Columns, Decided, Kept, Quantized
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import Grouping, grouping_of
from quantcli.tensors.settle import default_scale_dtype

WIDER = "float32 scales"
"""How the note of a tensor begins whose scales did not fit the narrower dtype."""

UNWEIGHTED = "no importance given"
"""The note of a tensor that a file of importances has no entry for."""


class NothingToQuantizeError(DataError):
    """All tensors of a model are kept."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern and the scheme of the tensors it matches; None keeps them. optional: whether it may match nothing.
    preset: the preset it comes from, where config.json chose that; empty for what was asked. place: where it stands.
    """

    pattern: str
    scheme: Scheme | None
    reason: str | None = None
    optional: bool = False
    preset: str = ""
    place: str = field(default="rules", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a model: the default scheme, ordered rules (the last match wins), who is left alone, the most
    bytes a file of a checkpoint folder may have (None: as many files as there were), how much the error of each column
    counts, the measured scales of inputs, expressions for tensors that must have one scheme (see patterns.tied), the
    target (see exports) that must be able to say it all, so that weights whose shape it cannot store are kept, and
    those its loader does not take where they are in a model of this architecture, whether it is to write a container of
    tensors instead of a model, and tensors of experts that the source cannot arrange as the target needs them, with the
    reason, and how the target writes the model again, where the source is in its format already. keep_embeddings:
    whether embeddings and output heads are kept; None to do as the target's own tools."""

    scheme: Scheme
    rules: tuple[Rule, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    keep_defaults: bool = True
    keep_embeddings: bool | None = None
    max_shard_size: int | None = None
    importance: Importance | None = None
    inputs: InputScales | None = None
    ties: tuple[str, ...] = ()
    to: str | None = None
    architecture: Architecture | None = None
    container: bool = False
    unsplit: Mapping[str, Unsplit] = field(default_factory=dict, compare=False)
    again: Again | None = field(default=None, compare=False)
    from_recipe: frozenset[str] = field(default=frozenset(), compare=False)
    """Keys of a recipe that set include and exclude, which errors then name instead of the options."""
    preset: str = field(default="", compare=False)
    """The preset that config.json chose, whose rules are among the others."""

    def place(self, name: str) -> str:
        """Where an error about include or exclude is: the key of the recipe, or the option."""
        return f"recipe: {name}" if name in self.from_recipe else f"--{name}"

    def as_dict(self, schemes: list[dict[str, Any]]) -> dict[str, Any]:
        """Plain values that `recipe.request_of` makes into this request again: schemes by their number in `schemes`,
        to which they are added; rules as [pattern, number or null, reason or null, whether optional, preset];
        importances by their digest; what is usual left out."""

        def number(scheme: Scheme) -> int:
            values = scheme.as_dict()
            if values not in schemes:
                schemes.append(values)
            return schemes.index(values)

        default = number(self.scheme)
        rules: list[list[Any]] = []
        for rule in self.rules:
            entry = [rule.pattern, None if rule.scheme is None else number(rule.scheme), rule.reason, rule.optional]
            more = [bool(rule.reason is not None), rule.optional, bool(rule.preset)]
            count = max((n for n, said in enumerate(more, 3) if said), default=2)
            rules.append([*entry, rule.preset][:count])
        importance = self.importance.digest if self.importance is not None else None
        return {"default": default, **({"rules": rules} if rules else {}), **self.others(importance)}

    def others(self, importance: Any) -> dict[str, Any]:
        """What is asked beside schemes and rules, in plain values by the keys of recipes; what is usual is left out.
        importance: what stands for the importances, None where there are none."""
        values = {
            "include": list(self.include),
            "exclude": list(self.exclude),
            "ties": list(self.ties),
            "importance": importance,
            "keep_defaults": self.keep_defaults,
            "keep_embeddings": self.keep_embeddings,
            "max_shard_size": self.max_shard_size,
            "to": self.to,
            "container": self.container,
        }
        usual: dict[str, Any] = {"keep_defaults": True, "container": False}
        return {
            name: value for name, value in values.items() if value not in ([], None) and value is not usual.get(name)
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a model: one entry for every tensor, in source order, and the request it follows."""

    tensors: tuple[Decided, ...]
    request: Request | None = None

    def amended(self, changes: Mapping[str, Decided]) -> Plan:
        """This plan with some tensors planned again."""
        return replace(self, tensors=tuple(changes.get(t.info.name, t) for t in self.tensors))


def quantized(
    info: TensorInfo,
    scheme: Scheme,
    reason: str,
    scale_dtype: str | None = None,
    note: str = "",
    importance: Columns | None = None,
) -> Quantized:
    """The record of a tensor to quantize, all that its shape decides in it. Raises UsageError for what its shape
    forbids."""
    try:
        plan = grouping_of(info.shape, scheme)
    except QuantcliError as error:
        raise error.within(printable(info.name)) from None
    dtype = scale_dtype or default_scale_dtype(scheme, info.dtype)
    notes = [note] if note else []
    if plan.short_group and plan.shared is None:
        notes.append(_short(plan))
    return Quantized(
        info=info,
        reason=reason,
        scheme=scheme,
        grouping=plan,
        scale_dtype=dtype,
        note="; ".join(notes),
        importance=importance,
    )


def _short(plan: Grouping) -> str:
    """The note of a tensor whose groups do not end with its rows."""
    return f"short last group of {plan.short_group}"


def _weighted(tensor: Decided, importance: Importance | None) -> Decided:
    """The plan of a tensor with the importance of its columns. Raises UsageError where they cannot be told apart."""
    if importance is None or tensor.scheme is None:
        return tensor
    columns = importance.of(tensor.info, tensor.grouping)
    if columns is None:
        return replace(tensor, note="; ".join(n for n in (tensor.note, UNWEIGHTED) if n))
    if not weighs(tensor.scheme):
        problem = f"{tensor.scheme.calibration} does not weigh errors"
        raise UsageError(problem, place=[printable(tensor.info.name), "--importance"], hint="use --calibration mse")
    return replace(tensor, importance=columns)


def with_float32_scales(tensor: Quantized) -> Quantized:
    """The record of a tensor whose scales turned out not to fit the narrower dtype."""
    note = f"{WIDER}: {tensor.scale_dtype} would not hold them"
    found = quantized(tensor.info, tensor.scheme, tensor.reason, "F32", note, tensor.importance)
    return replace(found, input_scale=tensor.input_scale)


def suited(request: Request) -> Request:
    """A request with scales as its target stores them, so that the codes are made for those."""
    if request.to is None:
        return request
    export = named(request.to)
    rules = tuple(replace(r, scheme=export.suited(r.scheme) if r.scheme else None) for r in request.rules)
    scheme = export.suited(request.scheme) if export.base is None else export.base(request.scheme)
    return replace(request, scheme=scheme, rules=rules)


def make(infos: Sequence[TensorInfo], request: Request) -> Plan:
    """The plan for these tensors.

    Vectors and small tensors are kept because they weigh nothing beside the rest, embeddings because models are most
    sensitive to them; where a file holds nothing else (an array of audio samples, a toy model, a static embedding)
    they are the weights, and are quantized. A rule for a module or for many names is not meant for the norms and biases
    among them: these it must name.

    Raises UsageError for a pattern that matches nothing and for a name the output would hold twice,
    NothingToQuantizeError when nothing is left.
    """
    names = [info.name for info in infos]
    excluded = matching(request.exclude, names, request.place("exclude"))
    included = matching(request.include, names, request.place("include")) if request.include else set(names)
    ruled = _ruled(request.rules, names)
    reasons, alone = _reasons(infos, request)
    own = _as_its_tools(infos, reasons, request)
    tensors: list[Decided] = []
    for info in infos:
        rule = ruled.get(info.name)
        reason = reasons[info.name]
        quantizable = DTYPES[info.dtype].quantizable and info.numel > 0 and bool(info.shape)
        if reason in VECTORS and rule is not None and rule.scheme is not None and not names_it(rule.pattern, info.name):
            tensors.append(Kept(info=info, reason=reason))
        elif rule is not None and quantizable:
            note = rule.reason or ""
            if rule.scheme is None:
                tensors.append(Kept(info=info, reason="preset" if rule.preset else "excluded", note=note))
            else:
                tensors.append(quantized(info, rule.scheme, "rule", note=note))
        elif info.name in excluded and quantizable:
            tensors.append(Kept(info=info, reason="excluded"))
        elif info.name not in included and quantizable:
            tensors.append(Kept(info=info, reason="not-included"))
        elif info.name in own:
            tensors.append(own[info.name])
        elif reason is not None:
            tensors.append(Kept(info=info, reason=reason))
        else:
            tensors.append(quantized(info, request.scheme, "embedding-only" if alone else "default"))
    tensors = [_unsplit(tensor, request) for tensor in tensors]
    if request.to is not None:
        tensors = _mixed(tensors, request)
        tensors = [_for_target(tensor, request.to, request) for tensor in tensors]
    tensors = with_scales(tensors, request.inputs, request.to)
    plan = Plan(tuple(_weighted(tensor, request.importance) for tensor in tensors), request)
    check(plan)
    _check_ties(plan, request.ties)
    return plan


def _mixed(tensors: Sequence[Decided], request: Request) -> list[Decided]:
    """The plan of all tensors with the types that the kind of file gives them, where nothing else is asked."""
    export = named(request.to) if request.to is not None and not request.container else None
    if export is None or export.mix is None:
        return list(tensors)
    model, weighted = request.architecture or UNNAMED, request.importance is not None
    schemes = export.mix([t.info for t in tensors], request.scheme, model, weighted)
    found = list[Decided]()
    for tensor in tensors:
        scheme = schemes.get(tensor.info.name)
        if tensor.scheme is None or not REASONS[tensor.reason].free or scheme in (None, tensor.scheme):
            found.append(tensor)
        else:
            assert scheme is not None
            found.append(quantized(tensor.info, scheme, tensor.reason, note=f"{scheme.name} in such a mix"))
    return found


def _reasons(infos: Sequence[TensorInfo], request: Request) -> tuple[dict[str, str | None], bool]:
    """By name the reason to keep a tensor that no rule is about, None to quantize it; and whether embeddings are all
    the weights there are."""
    kept_tables = request.keep_embeddings is True
    reasons = {
        info.name: why_kept(info, keep_defaults=request.keep_defaults, keep_embeddings=kept_tables) for info in infos
    }
    if request.keep_defaults and not kept_tables and embeddings_alone(infos, reasons):
        tables = {info.name for info in infos if reasons[info.name] == "embedding" and len(info.shape) > 1}
        return {name: None if name in tables else reason for name, reason in reasons.items()}, True
    if all(reason is not None for reason in reasons.values()):
        light = which(lambda reason: reason.light)
        if not any(r in NAMED for r in reasons.values()):
            reasons = {name: None if reason in light else reason for name, reason in reasons.items()}
    return reasons, False


def _as_its_tools(
    infos: Sequence[TensorInfo], reasons: Mapping[str, str | None], request: Request
) -> dict[str, Quantized]:
    """Embeddings and output heads that are quantized: as the tools of the target do it, or because that is asked."""
    found = dict[str, Quantized]()
    if request.keep_embeddings is True:
        return found
    export = named(request.to) if request.to is not None and not request.container else None
    model = request.architecture or UNNAMED
    heads = any(reason == "lm-head" for reason in reasons.values())
    for info in infos:
        reason = reasons[info.name]
        if reason not in TABLES or len(info.shape) < 2 or info.numel < SMALL:
            continue
        kind = "tied" if reason == "embedding" and (model.tied or not heads) else str(reason)
        table = _table(info, kind, export, request, model) if export is not None else None
        if table is not None:
            found[info.name] = table
        elif request.keep_embeddings is False:
            found[info.name] = quantized(info, request.scheme, "default")
    return found


def _table(info: TensorInfo, kind: str, export: Writer, request: Request, model: Architecture) -> Quantized | None:
    """An embedding or output head as the tools of a target quantize it in a model of this scheme; None where they do
    not, or where the target does not store it."""
    asked, again = request.scheme, request.again
    scheme = export.tables(info, kind, asked, model)
    if scheme is None:
        return None
    note = "" if scheme == asked else f"{scheme.bits} bits, as its tools do"
    try:
        table = in_place(quantized(info, scheme, "runtime", note=note), export, again)
    except UsageError:
        return None
    return table if export.unstored(table, model, again) is None else None


def _unsplit(tensor: Decided, request: Request) -> Decided:
    """The plan of a tensor, kept where it holds experts that cannot be arranged for the target."""
    found = request.unsplit.get(tensor.info.name)
    if found is None or tensor.scheme is None:
        return tensor
    if not found.by_loader:
        return Kept(info=tensor.info, reason="experts", note=found.why)
    return Kept(info=tensor.info, reason="target", note=f"{request.to} cannot store it: {found.why}")


def in_place(tensor: Quantized, export: Writer, again: Again | None) -> Quantized:
    """The plan of a tensor with the nearest scheme that its target has for its rows, or that it can have in its place
    in a model that is written again."""
    if export.fitting is not None:
        scheme, note = export.fitting(tensor.grouping.cols, tensor.scheme)
    elif again is not None and again.suited is not None:
        scheme, note = again.suited(tensor.info, tensor.scheme, tensor.reason == "rule")
    else:
        return tensor
    if scheme == tensor.scheme:
        return tensor
    notes = [n for n in (*tensor.note.split("; "), note) if n and n != _short(tensor.grouping)]
    return quantized(tensor.info, scheme, tensor.reason, note="; ".join(notes), importance=tensor.importance)


def _for_target(tensor: Decided, target: str, request: Request) -> Decided:
    """The plan of a tensor, kept where the target cannot store its shape or its loader takes no quantized weight in its
    place in the model. Raises UsageError where it cannot store the scheme."""
    if tensor.scheme is None:
        return tensor
    export = named(target)
    for scheme in candidates(tensor.scheme):
        if (why := export.accepts.obstacle(scheme)) is not None:
            raise refusal(tensor.info.name, tensor.scheme.name, why, target)
    tensor = in_place(tensor, export, request.again)
    why = export.unstored(tensor, request.architecture or UNNAMED, request.again)
    return tensor if why is None else Kept(info=tensor.info, reason="target", note=f"{target} cannot store it: {why}")


def _check_ties(plan: Plan, ties: Sequence[str]) -> None:
    """Raise UsageError when tensors that are tied have different schemes: the request contradicts itself. What a preset
    keeps does not count: draft layers have experts too."""
    first: dict[str, Decided] = {}
    keys = tied(ties, [t.info.name for t in plan.tensors], "ties")
    for tensor in plan.tensors:
        key = keys.get(tensor.info.name)
        if key is not None and tensor.reason != "preset":
            other = first.setdefault(key, tensor)
            if other.scheme != tensor.scheme:
                names = [t.scheme.name if t.scheme else "kept" for t in (other, tensor)]
                problem = f"{printable(other.info.name)} ({names[0]}) and {printable(tensor.info.name)} ({names[1]})"
                raise UsageError(f"{problem} are tied, but rules give them different schemes", place=["ties"])


def _ruled(rules: Sequence[Rule], names: Sequence[str]) -> dict[str, Rule]:
    found: dict[str, Rule] = {}
    for rule in rules:
        test = compiled(rule.pattern, "recipe")
        hits = [name for name in names if test(name)]
        if not hits and not rule.optional:
            raise UsageError(
                f"{rule.pattern!r} matches no tensor", place=[rule.place], hint=near_misses(rule.pattern, names)
            )
        found.update((name, rule) for name in hits)
    return found


def check(plan: Plan) -> None:
    """Raise when nothing is left to quantize or two tensors would be written under one name."""
    if not any(t.scheme is not None for t in plan.tensors):
        count: dict[str, int] = {}
        for t in plan.tensors:
            count[t.reason] = count.get(t.reason, 0) + 1
        why = ", ".join(f"{n} {reason}" for reason, n in count.items())
        listed = which(lambda reason: ALL in reason.ways) & set(count)
        unsaid = next((f"{printable(t.info.name)}: {t.note}" for t in plan.tensors if t.reason == "target"), None)
        if unsaid is not None:
            unsaid += "; --to native writes quantcli's own layout, which no such loader reads"
        hint = unsaid or (
            f"{ALL} quantizes every float tensor of two or more dimensions" if listed else "no tensor can be quantized"
        )
        if any(t.info.dtype in signals.DIVISORS for t in plan.tensors if t.reason == "not-float"):
            hint += f"; {signals.OPTION} reads the integers of a .npy or .npz file as a signal"
        raise NothingToQuantizeError(f"nothing to quantize: all tensors are kept ({why})", hint=hint)
    owner: dict[str, str] = {}
    if plan.request is not None and plan.request.again is not None:
        return  # the names stay those of the source
    for tensor in plan.tensors:
        for output in native.outputs(tensor):
            if output.name in owner:
                raise DataError(
                    f"{printable(owner[output.name])} and {printable(tensor.info.name)} would both be written as"
                    f" {printable(output.name)}",
                    hint="leave one of them out with --exclude",
                )
            owner[output.name] = tensor.info.name
