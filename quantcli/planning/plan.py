"""The plan: for every tensor a scheme, or a stated reason to be left alone. Everything refusable is refused here."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quantcli.asking import plainly_rounded, second_order, weighs
from quantcli.dtypes import DTYPES
from quantcli.each import Each
from quantcli.errors import DataError, UsageError, printable
from quantcli.kernels.feedback import triangle_bytes
from quantcli.layouts.native import parts as native
from quantcli.patterns import compiled, marked, names_it, near_misses, tied
from quantcli.planning import targets
from quantcli.planning.convolutions import with_sums_kept
from quantcli.planning.entry import quantized
from quantcli.planning.inputs import with_scales
from quantcli.planning.keeping import embeddings_alone, why_kept
from quantcli.planning.reasons import ALL, NAMED, TABLES, VECTORS, which
from quantcli.planning.recipe_keys import HELP, IMPORTANCE, NO_MOMENTS, STATISTICS
from quantcli.planning.request import Request, Rule
from quantcli.stores import signals
from quantcli.tensors.decided import Columns, Decided, Kept, Quantized
from quantcli.tensors.decisions import Decisions
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.planning.statistics import InputStatistics

UNWEIGHTED = {key: f"no {key} given" for key in (IMPORTANCE, STATISTICS)}
"""The notes of a tensor that a file of importances or statistics has no entry for."""


class NothingToQuantizeError(DataError):
    """All tensors of a model are kept."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a model: one entry for every tensor, in source order, and the request it follows."""

    tensors: Decisions
    request: Request | None = None

    def amended(self, changes: Mapping[str, Decided]) -> Plan:
        """This plan with some tensors planned again."""
        return replace(self, tensors=self.tensors.amended(changes))


def _weighted(tensor: Decided, statistics: InputStatistics | None, request: Request) -> Decided:
    """The plan of a tensor with what is known of its inputs. Raises UsageError where it cannot be used."""
    if tensor.scheme is None or statistics is None:
        return tensor
    columns = statistics.of(tensor.info, tensor.grouping)
    if statistics.lacking(tensor.info):
        _check_unweighted(tensor, statistics, request)
    if columns is None:
        note = "; ".join(n for n in (tensor.note, UNWEIGHTED[statistics.key]) if n)
        return replace(tensor, scheme=plainly_rounded(tensor.scheme), note=note)
    place = [printable(tensor.info.name), f"--{statistics.key}"]
    if tensor.scheme.rotation:
        raise UsageError("its columns are rotated, which importances are not", place=place, hint="leave it out")
    if columns.correlated and (tensor.scheme.second_order or not request.rounding_given):
        check_memory(columns, request.memory, place)
        note = "; ".join(n for n in (tensor.note, _unseen(columns)) if n)
        return replace(tensor, scheme=second_order(tensor.scheme), columns=columns, note=note)
    if tensor.scheme.second_order:
        raise UsageError(NO_MOMENTS, place=place, hint=HELP)
    if tensor.grouping.shared is not None or tensor.grouping.two_pass:
        problem = "importance needs scales per row or group: with one scale per column or tensor it has no effect"
        raise UsageError(problem, place=place, hint="use groups, or channels of axis 0")
    if not weighs(tensor.scheme):
        problem = f"{tensor.scheme.calibration} does not weigh errors"
        raise UsageError(problem, place=place, hint="use --calibration mse")
    return replace(tensor, columns=columns)


def _unseen(columns: Columns) -> str:
    """The note of a tensor some of whose experts no sample reached."""
    counts = () if columns.experts is None else columns.experts.counts
    unseen = sum(not count for count in counts)
    return f"no samples of {unseen} of {len(counts)} experts" if unseen else ""


def check_memory(columns: Columns, limit: int | None, place: Sequence[str]) -> None:
    """Raise UsageError where the second moments of a layer need more memory than they may take."""
    needed = triangle_bytes(len(columns.values))
    if limit is not None and columns.full and needed > limit:
        problem = f"the second moments of {len(columns.values)} inputs need {needed} bytes, more than --memory {limit}"
        hint = "give more, leave the layer out with --exclude, or collect means and mean squares alone"
        raise UsageError(problem, place=place, hint=hint)


def _check_unweighted(tensor: Quantized, statistics: InputStatistics, request: Request) -> None:
    """Raise UsageError where a tensor may not be quantized without statistics."""
    if not statistics.strict or request.allow_unweighted or why_kept(tensor.info) in TABLES:
        return
    hint = "--allow-unweighted quantizes such tensors as if all inputs were alike, --exclude leaves them as they are"
    place = [statistics.path, printable(tensor.info.name)]
    raise UsageError("the file has no statistics of this layer", place=place, hint=hint)


def make(infos: Sequence[TensorInfo], request: Request) -> Plan:
    """The plan for these tensors.

    Vectors and small tensors are kept because they weigh nothing beside the rest, embeddings because models are most
    sensitive to them; where a file holds nothing else (an array of audio samples, a toy model, a static embedding)
    they are the weights, and are quantized. A rule for a module or for many names is not meant for the norms and biases
    among them: these it must name.

    Raises UsageError for a pattern that matches nothing and for a name the output would hold twice,
    NothingToQuantizeError when nothing is left.
    """
    names = Each(len(infos), lambda: (info.name for info in infos))
    decided = _decided(infos, names, request)
    tensors: Sequence[Decided] = Decisions(infos, (targets.unsplit(tensor, request) for tensor in decided))
    if request.to is not None:
        mixed = targets.mixed(tensors, request)
        tensors = Decisions(infos, (targets.stored_by(tensor, request.to, request) for tensor in mixed))
        tensors = Decisions(infos, targets.joined(tensors, request))
    tensors = with_scales(tensors, request.inputs, request.to)
    if request.statistics is not None:
        tensors = Decisions(infos, [_weighted(tensor, request.statistics, request) for tensor in tensors])
    if request.convolution_sums is not False:
        tensors, some = with_sums_kept(tensors)
        request = replace(request, convolution_sums=True if some else request.convolution_sums)
    plan = Plan(tensors if isinstance(tensors, Decisions) else Decisions(infos, tensors), request)
    check(plan)
    _check_ties(plan, request.ties)
    return plan


def _decided(infos: Sequence[TensorInfo], names: Sequence[str], request: Request) -> Iterator[Decided]:
    """What rules, patterns and the tensors themselves say of each, as `make` has it."""
    excluded = marked(request.exclude, names, request.place("exclude"))
    included = marked(request.include, names, request.place("include")) if request.include else None
    ruled = _ruled(request.rules, names)
    reasons, alone = _reasons(infos, request)
    own = targets.as_its_tools(infos, reasons, request)
    for number, (info, reason) in enumerate(zip(infos, reasons)):
        rule = request.rules[ruled[number] - 1] if ruled[number] else None
        quantizable = DTYPES[info.dtype].quantizable and info.numel > 0 and bool(info.shape)
        if reason in VECTORS and rule is not None and rule.scheme is not None and not names_it(rule.pattern, info.name):
            yield Kept(info=info, reason=reason)
        elif rule is not None and quantizable:
            note = rule.reason or ""
            if rule.scheme is None:
                yield Kept(info=info, reason="preset" if rule.preset else "excluded", note=note)
            else:
                yield quantized(info, rule.scheme, "rule", note=note)
        elif excluded[number] and quantizable:
            yield Kept(info=info, reason="excluded")
        elif included is not None and not included[number] and quantizable:
            yield Kept(info=info, reason="not-included")
        elif info.name in own:
            yield own[info.name]
        elif reason is not None:
            yield Kept(info=info, reason=reason)
        else:
            yield quantized(info, request.scheme, "embedding-only" if alone else "default")


def _reasons(infos: Sequence[TensorInfo], request: Request) -> tuple[list[str | None], bool]:
    """The reason to keep each tensor that no rule is about, None to quantize it; and whether embeddings are all the
    weights there are."""
    kept_tables = request.keep_embeddings is True
    reasons = [why_kept(info, keep_defaults=request.keep_defaults, keep_embeddings=kept_tables) for info in infos]
    if request.keep_defaults and not kept_tables and embeddings_alone(infos, reasons):
        tables = [reason == "embedding" and len(info.shape) > 1 for info, reason in zip(infos, reasons)]
        return [None if table else reason for table, reason in zip(tables, reasons)], True
    if None not in reasons:
        light = which(lambda reason: reason.light)
        if not NAMED & set(reasons):
            reasons = [None if reason in light else reason for reason in reasons]
    return reasons, False


def _check_ties(plan: Plan, ties: Sequence[str]) -> None:
    """Raise UsageError when tensors that are tied have different schemes: the request contradicts itself. What a preset
    keeps does not count: draft layers have experts too."""
    first: dict[str, Decided] = {}
    keys = tied(ties, [t.info.name for t in plan.tensors], "ties") if ties else {}
    for tensor in plan.tensors if keys else ():
        key = keys.get(tensor.info.name)
        if key is not None and tensor.reason != "preset":
            other = first.setdefault(key, tensor)
            if other.scheme != tensor.scheme:
                names = [t.scheme.name if t.scheme else "kept" for t in (other, tensor)]
                problem = f"{printable(other.info.name)} ({names[0]}) and {printable(tensor.info.name)} ({names[1]})"
                raise UsageError(f"{problem} are tied, but rules give them different schemes", place=["ties"])


def _ruled(rules: Sequence[Rule], names: Sequence[str]) -> array[int]:
    """The number of the last rule about each tensor, from 1 on; 0 where there is none."""
    found = array("I", bytes(4 * len(names)))
    for number, rule in enumerate(rules, 1):
        test, hit = compiled(rule.pattern, "recipe"), False
        for place, name in enumerate(names):
            if test(name):
                found[place], hit = number, True
        if not hit and not rule.optional:
            raise UsageError(
                f"{rule.pattern!r} matches no tensor", place=[rule.place], hint=near_misses(rule.pattern, names)
            )
    return found


def check(plan: Plan) -> None:
    """Raise when nothing is left to quantize or two tensors would be written under one name."""
    if not any(t.scheme is not None for t, _ in plan.tensors.alike()):
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
    if plan.request is not None and plan.request.again is not None:
        return  # the names stay those of the source
    if not any(tensor.info.name.endswith(native.ENDINGS) for tensor in plan.tensors):
        return  # names that end in nothing that a name is given cannot become the same
    owner: dict[str, str] = {}
    for tensor in plan.tensors:
        for output in native.outputs(tensor):
            if output.name in owner:
                raise DataError(
                    f"{printable(owner[output.name])} and {printable(tensor.info.name)} would both be written as"
                    f" {printable(output.name)}",
                    hint="leave one of them out with --exclude",
                )
            owner[output.name] = tensor.info.name
