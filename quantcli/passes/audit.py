"""Whether a quantized model is one of a given base, with what speaks for it and what against it, tensor by tensor."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median

import numpy as np

from quantcli.errors import DataError
from quantcli.metrics import NOTHING, Metrics
from quantcli.models import BLOCK, View, runs_of
from quantcli.passes import audit_gains, compare
from quantcli.passes.audit_codes import MOST_BITS
from quantcli.passes.audit_kept import CHANGED, WAYS, kind_of, same, twins
from quantcli.passes.audit_method import ROUNDED, UNEXPLAINED, method_of, other_scales, preserves_sums, related
from quantcli.passes.audit_places import Places, Sums, most_db, places_of, run_of, sums_of
from quantcli.passes.audit_sample import STRAY, Sampled, sampled
from quantcli.passes.tiles import Progress, Visit, begun, walk

WORSE = 6.0
"""Most dB that a tensor may lie below what min-max or our search leaves at its format: error feedback trades up to
about 4 of the weights' SQNR for that of outputs."""

OUTLYING, OUTLYING_DB, FEWEST = 6.0, 1.5, 4
"""How many robust standard deviations, and dB, a tensor may lie below others of its kind, and how many of these there
must be."""

LEAST_SPREAD = 0.1
"""dB: the robust standard deviation of a kind counts as this much at least."""

SAME_FACTOR = 0.05
"""How far weights may be from those of the base as a whole, beyond what quantizing shrinks them by."""

PRUNED = 0.25
"""Share of weights that are 0 without need, from which on weights were left out: pruning half of them to codes of 4
bits leaves 0.3, as these are the smallest, and error feedback at 2 bits makes 0.1."""

FEW_CODES = 0.5
"""Share of the codes that rounding the base gives of which more must occur in a sample: whole numbers, 2 to 8 bits."""

SCALED, QUANTIZED, MISSING, EXTRA, SHARED = "scaled", "quantized", "missing", "extra", "shared"
"""What a tensor is beside what kept ones are: kept but for gains that columns of codes have too; quantized; only in the
base, only in the file; stored once where the base has it twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """What a tensor turned out to be. scheme: as the file has it, dtype of one that is kept. method: how its codes were
    made, as far as these tell. metrics: of all its weights, where values differ; places: runs of these that stand out.
    shortfall: dB below the reference of its format on the same rows; score: how many robust standard deviations it lies
    below its kind. problems: why it does not fit the base; note: what else there is to say."""

    name: str
    became: str
    scheme: str
    shape: tuple[int, ...]
    metrics: Metrics | None = None
    sample: Sampled | None = None
    places: Places | None = None
    method: str = ""
    shortfall: float | None = None
    score: float | None = None
    problems: tuple[str, ...] = ()
    note: str = ""


@dataclass(slots=True)
class _Found:
    """What the walk has found, by tensor."""

    kept: dict[str, tuple[str, str]] = field(default_factory=dict)
    samples: dict[str, Sampled] = field(default_factory=dict)
    metrics: dict[str, Metrics | None] = field(default_factory=dict)
    places: dict[str, Places | None] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


def audit(
    before: Mapping[str, View],
    after: Mapping[str, View],
    coded: set[str],
    *,
    threads: int,
    progress: Progress | None = None,
) -> list[Audited]:
    """What every tensor of a quantized model is, beside those of the base it is said to be made of. coded: names of
    those that are stored as codes, though they may be floats here (experts that were arranged).

    Raises DataError when no tensor is in both.
    """
    both = [n for n in after if n in before and after[n].info.shape == before[n].info.shape]
    if not both:
        raise DataError("no tensor has the same name and shape in the base")
    quantized = [n for n in both if n in coded]
    found = _walked(before, after, both, set(quantized), threads, progress)
    pairs = {n: (before[n], after[n]) for n, (became, _) in found.kept.items() if became == CHANGED}
    found.metrics |= zip(pairs, compare.measure(pairs, threads=threads, progress=progress))
    tensors = [_of_kept(n, after[n], found) for n in both if n not in coded]
    tensors += [_of_codes(n, after[n], found) for n in quantized]
    known = {t.name: t for t in _scored(_explained(tensors, found, before, after))}
    alone = {t.name: t for t in _alone(before, after)}
    return [known.get(n) or alone[n] for n in dict.fromkeys([*after, *before])]


# ---- one look at all tensors --------------------------------------------------------------------------------------


def _walked(
    before: Mapping[str, View],
    after: Mapping[str, View],
    names: Sequence[str],
    quantized: set[str],
    threads: int,
    progress: Progress | None,
) -> _Found:
    """How kept tensors compare; errors, places and samples of quantized ones."""
    found, advance = _Found(), begun(progress, sum(after[n].info.nbytes for n in names))

    def visit(name: str) -> Visit:
        a, b = before[name], after[name]
        if name not in quantized:
            found_in_runs = yield [partial(same, a, b, *run) for run in runs_of(b.info.numel, BLOCK)]
            advance(b.info.nbytes)
            ways = (way for way in WAYS if all(way in one for one in found_in_runs))
            found.kept[name] = kind_of(a, b, next(ways, CHANGED))
            return
        size = run_of(b.info.numel)
        parts = yield [partial(examined, a, b, size, *run) for run in compare.blocks_of(a, b)]
        fault = next((part for part in parts if isinstance(part, str)), None)
        if fault is not None:
            found.faults[name] = fault
            return
        [sample] = yield [partial(sampled, a, b)]
        found.samples[name], found.metrics[name] = sample, sum((errors for errors, _ in parts), NOTHING)
        pieces, scaled = [piece for _, sums in parts for piece in sums], sample.gained_db is not None
        found.places[name] = places_of(
            pieces, b.info.shape, bits=b.bits or MOST_BITS, scaled=scaled, **_of_one_scale(sample)
        )

    def examined(a: View, b: View, size: int, first: int, last: int) -> str | tuple[Metrics, list[Sums]]:
        advance(b.info.nbytes * (last - first) // b.info.numel)
        try:
            x, y = compare.values_of(a, b, first, last)
        except DataError as error:
            return error.problem
        if not np.isfinite(y).all():
            return "a decoded weight is NaN or infinite"
        with np.errstate(all="ignore"):  # squares of float32 may be too large
            return compare.errors_of(x, y), sums_of(x, y, size)

    walk((visit(name) for name in names), threads=threads)
    return found


# ---- what tensors are ---------------------------------------------------------------------------------------------


def _named(name: str, view: View, became: str) -> Audited:
    """A tensor with what its view tells."""
    return Audited(name=name, became=became, scheme=view.scheme or view.info.dtype, shape=view.info.shape)


def _of_kept(name: str, view: View, found: _Found) -> Audited:
    """What a kept tensor is."""
    (became, note), metrics = found.kept[name], found.metrics.get(name)
    problems: tuple[str, ...] = ()
    if became == CHANGED:
        db = metrics.sqnr_db if metrics is not None else None
        problems = ("its values are not those of the base" + (f": {db:.1f} dB" if db is not None else ""),)
    return replace(_named(name, view, became), metrics=metrics, problems=problems, note=note)


def _of_codes(name: str, view: View, found: _Found) -> Audited:
    """What a quantized tensor is by itself."""
    sample, places = found.samples.get(name), found.places.get(name)
    own = replace(_named(name, view, QUANTIZED), metrics=found.metrics.get(name), sample=sample, places=places)
    if sample is None:
        return replace(own, problems=(found.faults[name],))
    most = math.inf if sample.scheme is None else most_db(sample.scheme.bits)
    known = [sample.minmax_db, sample.best_db]
    reached = sample.gained_db if sample.gained_db is not None else sample.sqnr_db
    if preserves_sums(sample):  # at the cost of any error that flips of codes make
        reached = sample.nearest_db
    references = [min(db, most) for db in known if db is not None]
    if reached is not None and sample.nearest_db is not None and _is_clipped(sample):
        references = [min(db, max(sample.nearest_db, 0.0)) for db in references]
    shortfall = min(references) - reached if references and reached is not None else None
    wrong = _wrong(sample, references, shortfall) or str(places or "")
    problems = tuple(filter(None, (wrong, _few(sample))))
    return replace(own, method=method_of(sample), shortfall=shortfall, problems=problems, note=sample.why)


def _wrong(sample: Sampled, references: Sequence[float], shortfall: float | None) -> str:
    """Why a tensor was not made of these weights; empty where it may have been."""
    if not related(sample):
        return f"these are other weights: the cosine to those of the base is {sample.cosine:.3f}"
    if sample.zeroed > PRUNED:
        return f"{100 * sample.zeroed:.0f} % of its weights are 0, though not near it in the base: it was pruned"
    if sample.factor is not None and not _plausible(sample.factor, sample, references):
        return f"its weights are {sample.factor:.3f} times those of the base"
    if shortfall is not None and shortfall > WORSE:
        return f"{shortfall:.1f} dB below what this format leaves of the base"
    if sample.strays and sample.gained_db is None and (sample.nearest or 0) >= ROUNDED:
        count = "one weight" if sample.strays == 1 else f"{sample.strays} weights"
        return f"{count} of the sample changed by more than {STRAY} steps, where the other codes are the nearest ones"
    if sample.odd and (sample.nearest or 0) >= ROUNDED and not preserves_sums(sample):
        count = "one group" if sample.odd == 1 else f"{sample.odd} groups"
        return f"the codes of {count} of the sample are not the nearest ones for its scale, as all others are"
    if other_scales(sample):
        share = f"{100 * (sample.largest or 0):.0f} %"
        return f"min-max scales, but {share} of them are those of the base: the weights were slightly changed"
    if method_of(sample).endswith(UNEXPLAINED):
        return "neither rounding nor error feedback gives these codes: the weights were changed"
    return ""


def _of_one_scale(sample: Sampled) -> dict[str, float]:
    """How far rounding may move weights where all have one scale, which is large beside most runs of them."""
    if sample.scheme is None or sample.scheme.granularity != "tensor" or sample.top is None:
        return {}
    return {"top": sample.top, "step": (sample.step or 0.0) if preserves_sums(sample) else 0.0}


def _is_clipped(sample: Sampled) -> bool:
    """Whether codes are those that rounding gives for scales that clip, at whatever cost."""
    return sample.clipped and ((sample.nearest or 0) >= ROUNDED or preserves_sums(sample))


def _plausible(factor: float, sample: Sampled, references: Sequence[float]) -> bool:
    """Whether quantizing may have made weights so many times as large as a whole."""
    if sample.nearest_factor is not None and abs(factor - sample.nearest_factor) <= SAME_FACTOR:
        return True
    return _shrunk(references) <= factor <= 1 + SAME_FACTOR


def _shrunk(references: Sequence[float]) -> float:
    """The least factor by which quantizing may shrink weights as a whole: a best quantizer by its error relative to
    their power, which is 0.13 at 2 bits and 0.0003 at 6; half as much again for others."""
    return 1 - SAME_FACTOR - 1.5 * 10 ** (-min(references, default=6.0) / 10)


def _few(sample: Sampled) -> str:
    """That few of the codes of whole numbers occur; empty where enough do."""
    scheme = sample.scheme
    if scheme is None or scheme.family != "int" or scheme.bits < 2:
        return ""
    if sample.used is None or sample.wanted is None or sample.used > FEW_CODES * sample.wanted:
        return ""
    return f"only {sample.used} of {sample.codes} codes occur, and {sample.wanted} would by rounding the base"


# ---- what tensors are beside others -------------------------------------------------------------------------------


def _explained(
    tensors: list[Audited], found: _Found, before: Mapping[str, View], after: Mapping[str, View]
) -> list[Audited]:
    """The tensors; as scaled those among the changed ones whose gains columns of codes have, and these by what they are
    with such gains."""
    vectors = [t.name for t in tensors if t.became == CHANGED]
    why = audit_gains.explained(vectors, found.samples, before, after)
    found.samples |= why.layers

    def explained(t: Audited) -> Audited:
        if t.name in why.layers:
            return _of_codes(t.name, after[t.name], found)
        if t.name not in why.vectors:
            return t
        wrong = why.vectors[t.name]
        return replace(t, became=SCALED, problems=(wrong,) if wrong else (), note="its scales are in columns of codes")

    tensors = [explained(t) for t in tensors]
    if why.vectors:
        return tensors
    line = "its rows or columns are scaled, and no kept tensor makes up for that"
    return [
        replace(t, problems=(*t.problems, line)) if t.sample is not None and t.sample.gains is not None else t
        for t in tensors
    ]


def _scored(tensors: list[Audited]) -> list[Audited]:
    """The tensors with how far each lies below those of its scheme and method."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for t in tensors:
        if t.shortfall is not None and not t.problems:
            kinds[t.scheme].append(t.shortfall)

    usual = {scheme: _usual(those) for scheme, those in kinds.items() if len(those) >= FEWEST}

    def scored(t: Audited) -> Audited:
        if t.shortfall is None or t.scheme not in usual:
            return t
        middle, spread = usual[t.scheme]
        score = (t.shortfall - middle) / spread
        if score <= OUTLYING or t.shortfall - middle <= OUTLYING_DB:
            return replace(t, score=score)
        line = f"{t.shortfall - middle:.1f} dB below the other tensors of {t.scheme}"
        return replace(t, score=score, problems=(*t.problems, line))

    return [scored(t) for t in tensors]


def _usual(values: Sequence[float]) -> tuple[float, float]:
    """The median of some values, and how far they are from it."""
    middle = median(values)
    return middle, max(LEAST_SPREAD, 1.4826 * median(abs(v - middle) for v in values))


def _alone(before: Mapping[str, View], after: Mapping[str, View]) -> list[Audited]:
    """Tensors that are in one of the two alone, or of another shape there."""
    found, others = [], twins([name for name in before if name not in after], before, after)
    for name in dict.fromkeys([*after, *before]):
        a, b = before.get(name), after.get(name)
        view = b if b is not None else a
        assert view is not None
        became, note, problem = EXTRA, "", "it is not in the base"
        if not view.numeric:
            note, problem = "it holds no weights", ""
        if a is not None and b is not None:
            became, problem = CHANGED, f"it is {list(b.info.shape)}, and {list(a.info.shape)} in the base"
        elif a is not None:
            became, problem = MISSING, "it is missing"
            if not a.numeric:
                note, problem = "it holds no weights", ""
            if name in others:
                became, note, problem = SHARED, f"the base has the same values in {others[name]}", ""
        problems = (problem,) if problem else ()
        found.append(replace(_named(name, view, became), problems=problems, note=note))
    return found
