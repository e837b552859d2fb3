"""Whether a quantized model is one of a given base, with what speaks for it and what against it, tensor by tensor."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from quantcli.dtypes import DTYPES, from_float32, to_float32
from quantcli.errors import DataError
from quantcli.models import BLOCK, View
from quantcli.passes import compare
from quantcli.passes.audit_sample import Sampled, sampled
from quantcli.passes.tiles import Progress, Visit, begun, walk

if TYPE_CHECKING:
    from quantcli.kernels import Floats
    from quantcli.metrics import Metrics

RELATED = 0.6
"""Least cosine between the weights and what they became: one bit leaves 0.8 of normal weights, unrelated ones 0."""

WORSE = 6.0
"""Most dB that a tensor may lie below what min-max or our search leaves at its format: error feedback trades up to
about 4 of the weights' SQNR for that of outputs."""

OUTLYING, OUTLYING_DB, FEWEST = 6.0, 1.5, 4
"""How many robust standard deviations, and dB, a tensor may lie below others of its kind, and how many of these there
must be."""

LEAST_SPREAD = 0.1
"""dB: the robust standard deviation of a kind counts as this much at least."""

ROUNDED, MIN_MAX_DB = 0.9, 0.2
"""Least share of nearest codes of a method that rounds to the nearest, and how near to min-max is min-max. Rounding
that preserves sums moves 2 to 4 % of the codes, error feedback a third or more of them."""

OTHER_SCALES = 0.98
"""Share of groups that have the scale of min-max, where the SQNR is that of min-max: below, scales are of other
weights."""

FEW_CODES = 0.5
"""Share of the codes of whole numbers, up to 8 bits, that must occur in a sample."""

EQUAL, CAST, SCALED, CHANGED = "equal", "cast", "scaled", "changed"
QUANTIZED, MISSING, EXTRA, SHARED = "quantized", "missing", "extra", "shared"
"""What a tensor is: kept bit by bit; kept, rounded to another dtype; kept, but for gains that columns of codes have
too; changed. Quantized. Only in the base, only in the file; stored once where the base has it twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """What a tensor turned out to be. scheme: as the file has it, dtype of one that is kept. method: how its codes were
    made, as far as these tell. metrics: of all its weights, where values differ. shortfall: dB below the reference of
    its format on the same rows; score: how many robust standard deviations it lies below its kind. problems: why it
    does not fit the base; note: what else there is to say."""

    name: str
    became: str
    scheme: str
    shape: tuple[int, ...]
    metrics: Metrics | None = None
    sample: Sampled | None = None
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
    nonfinite: set[str] = field(default_factory=set)


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
    differing = [n for n in both if n in coded or found.kept[n][0] == CHANGED]
    pairs = {n: (before[n], after[n]) for n in differing}
    metrics = compare.measure(pairs, threads=threads, progress=progress)
    tensors = [_of_kept(n, after[n], found.kept[n], metrics.get(n)) for n in both if n not in coded]
    tensors += [_of_codes(n, after[n], found, metrics.get(n)) for n in quantized]
    known = {t.name: t for t in _scored(_explained(tensors, before, after))}
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
    """How kept tensors compare, and samples of quantized ones."""
    found, advance = _Found(), begun(progress, sum(after[n].info.nbytes for n in names))

    def visit(name: str) -> Visit:
        a, b = before[name], after[name]
        if name in quantized:
            [found.samples[name], *finite] = yield [partial(sampled, a, b), *(partial(seen, b, *r) for r in b.blocks)]
            if not all(finite):
                found.nonfinite.add(name)
            return
        same = yield [partial(_same, a, b, *run) for run in _runs(b)]
        advance(b.info.nbytes)
        ways = (way for way in _CASTS if all(way in one for one in same))
        found.kept[name] = _kind(a, b, next(ways, CHANGED))

    def seen(view: View, first: int, last: int) -> bool:
        advance(view.info.nbytes * (last - first) // max(view.info.numel, 1))
        return bool(np.isfinite(view.read(first, last)).all())

    walk((visit(name) for name in names), threads=threads)
    return found


_CASTS = (EQUAL, CAST, "F16", "BF16")
"""Ways in which a kept tensor may be the one of the base, the closest first."""


def _runs(view: View) -> Sequence[tuple[int, int]]:
    return [(at, min(at + BLOCK, view.info.numel)) for at in range(0, view.info.numel, BLOCK)]


def _same(a: View, b: View, first: int, last: int) -> tuple[str, ...]:
    """In which ways a run of a kept tensor is that of the base."""
    if a.info.dtype == b.info.dtype and a.stored is not None and b.stored is not None and a.scheme is None:
        size = DTYPES[b.info.dtype].bits
        at, count = first * size // 8, (last - first) * size // 8
        x, y = (v.stored.read_bytes(v.stored.name, at, count) for v in (a, b) if v.stored is not None)
        if np.array_equal(x, y):
            return _CASTS
    if not (a.numeric and b.numeric):
        return _CASTS if compare.measure({"": (a, b)}, threads=1, progress=None)[""] else ()
    values, wanted = a.rounded(first, last), b.read(first, last)
    found = [EQUAL] if _alike(values, wanted) else []
    for kind, dtype in ((CAST, b.info.dtype), ("F16", "F16"), ("BF16", "BF16")):
        if found or _alike(_through(values, dtype), wanted):
            found.append(kind)
    return tuple(found)


def _alike(x: Floats, y: Floats) -> bool:
    return bool(np.array_equal(x, y, equal_nan=True))


def _through(values: Floats, dtype: str) -> Floats:
    """Values rounded to a dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        return to_float32(from_float32(values, dtype).view(np.uint8).reshape(-1), dtype)


def _kind(a: View, b: View, how: str) -> tuple[str, str]:
    """What a kept tensor is, and a note on how it was rounded."""
    if how == CHANGED or (how == EQUAL and a.info.dtype == b.info.dtype):
        return how, ""
    if how == EQUAL:
        return CAST, f"{a.info.dtype} to {b.info.dtype}, no value changed"
    through = b.info.dtype if how == CAST else how
    return CAST, f"rounded from {a.info.dtype} to {through}" + (f", stored as {b.info.dtype}" * (how != CAST))


# ---- what tensors are ---------------------------------------------------------------------------------------------


def _of_kept(name: str, view: View, kept: tuple[str, str], metrics: Metrics | None) -> Audited:
    became, note = kept
    problems = ()
    if became == CHANGED:
        db = metrics.sqnr_db if metrics is not None else None
        problems = ("its values are not those of the base" + (f": {db:.1f} dB" if db is not None else ""),)
    return Audited(
        name=name,
        became=became,
        scheme=view.scheme or view.info.dtype,
        shape=view.info.shape,
        metrics=metrics,
        problems=problems,
        note=note,
    )


def _of_codes(name: str, view: View, found: _Found, metrics: Metrics | None) -> Audited:
    """What a quantized tensor is by itself."""
    sample = found.samples[name]
    references = [db for db in (sample.minmax_db, sample.best_db) if db is not None]
    own = sample.gained_db if sample.gained_db is not None else sample.sqnr_db
    shortfall = min(references) - own if references and own is not None else None
    problems = []
    if name in found.nonfinite:
        problems.append("a decoded weight is NaN or infinite")
    elif sample.cosine < RELATED:
        problems.append(f"these are other weights: the cosine to those of the base is {sample.cosine:.3f}")
    elif shortfall is not None and shortfall > WORSE:
        problems.append(f"{shortfall:.1f} dB below what this format leaves of the base")
    elif _other_scales(sample):
        share = f"{100 * (sample.largest or 0):.0f} %"
        problems.append(f"min-max scales, but {share} of them are those of the base: the weights were slightly changed")
    if sample.used is not None and sample.codes is not None and _few(sample):
        problems.append(f"only {sample.used} of {sample.codes} codes occur")
    return Audited(
        name=name,
        became=QUANTIZED,
        scheme=view.scheme or view.info.dtype,
        shape=view.info.shape,
        metrics=metrics,
        sample=sample,
        method=_method(sample),
        shortfall=shortfall,
        problems=tuple(problems),
        note=sample.why,
    )


def _few(sample: Sampled) -> bool:
    whole = sample.scheme is not None and sample.scheme.family == "int" and 2 <= sample.scheme.bits <= 8
    return whole and (sample.used or 0) <= FEW_CODES * (sample.codes or 0)


def _is_minmax(sample: Sampled) -> bool:
    own = sample.gained_db if sample.gained_db is not None else sample.nearest_db
    if own is None or sample.minmax_db is None:
        return False
    best = sample.best_db if sample.best_db is not None else math.inf
    return abs(own - sample.minmax_db) <= min(MIN_MAX_DB, abs(own - best))


def _other_scales(sample: Sampled) -> bool:
    """Whether scales are spread about those of min-max a little, as those of min-max of slightly other weights are;
    scales that were searched for lie elsewhere."""
    if sample.largest is None or sample.gained_db is not None or (sample.nearest or 0) < ROUNDED:
        return False
    return _is_minmax(sample) and 0.2 < sample.largest < OTHER_SCALES


def _method(sample: Sampled) -> str:
    """How codes were made, as far as they tell."""
    if sample.nearest is None:
        return ""
    if sample.cosine < RELATED:
        return "none of the base"
    first = "scaled rows and columns (AWQ), " if sample.gained_db is not None else ""
    if sample.nearest < ROUNDED:
        return first + "error feedback (GPTQ)" if (sample.largest or 0) < 1 else first + "other rounding"
    if _is_minmax(sample) or (sample.largest or 0) >= OTHER_SCALES:
        return first + "min-max"
    return first + "searched scales"


# ---- what tensors are beside others -------------------------------------------------------------------------------


def _explained(tensors: list[Audited], before: Mapping[str, View], after: Mapping[str, View]) -> list[Audited]:
    """The tensors, those among the changed ones marked as scaled whose gains are the inverse of those that columns of
    codes have: AWQ moves scales from a layer into the norm before it."""
    gains = [t.sample.gains for t in tensors if t.sample is not None and t.sample.gains is not None]

    def explained(t: Audited) -> bool:
        if t.became != CHANGED or len(t.shape) != 1 or not before[t.name].numeric:
            return False
        x, y = (v.read(0, t.shape[0]).astype(np.float64) for v in (before[t.name], after[t.name]))
        return any(_inverse(x, y, g) for g in gains if len(g) == len(x))

    return [
        replace(t, became=SCALED, problems=(), note="its scales are in columns of codes") if explained(t) else t
        for t in tensors
    ]


def _inverse(x: np.ndarray, y: np.ndarray, gains: np.ndarray) -> bool:
    """Whether the ratio of two vectors is the inverse of some gains, up to a factor."""
    known = (x != 0) & (y / np.where(x == 0, 1, x) > 0) & (gains > 0)
    if known.sum() < max(8, 0.9 * len(x)):
        return False
    ratio, inverse = np.log(y[known] / x[known]), -np.log(gains[known])
    spread = float(np.std(ratio))
    return spread > 0 and float(np.std(ratio - inverse - np.mean(ratio - inverse))) < 0.2 * spread


def _scored(tensors: list[Audited]) -> list[Audited]:
    """The tensors with how far each lies below those of its scheme and method."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for t in tensors:
        if t.shortfall is not None and not t.problems:
            kinds[t.scheme].append(t.shortfall)

    def scored(t: Audited) -> Audited:
        others = kinds.get(t.scheme, [])
        if t.shortfall is None or len(others) < FEWEST:
            return t
        middle = median(others)
        spread = max(LEAST_SPREAD, 1.4826 * median(abs(v - middle) for v in others))
        score = (t.shortfall - middle) / spread
        if score <= OUTLYING or t.shortfall - middle <= OUTLYING_DB:
            return replace(t, score=score)
        line = f"{t.shortfall - middle:.1f} dB below the other tensors of {t.scheme}"
        return replace(t, score=score, problems=(*t.problems, line))

    return [scored(t) for t in tensors]


def _alone(before: Mapping[str, View], after: Mapping[str, View]) -> list[Audited]:
    """Tensors that are in one of the two alone, or of another shape there."""
    found = []
    for name in dict.fromkeys([*after, *before]):
        a, b = before.get(name), after.get(name)
        view = b if b is not None else a
        assert view is not None
        became, note, problem = EXTRA, "", "it is not in the base"
        if a is not None and b is not None:
            became, problem = CHANGED, f"it is {list(b.info.shape)}, and {list(a.info.shape)} in the base"
        elif a is not None:
            became, problem = MISSING, "it is missing"
            twin = _twin(a, before, after)
            if twin is not None:
                became, note, problem = SHARED, f"the base has the same values in {twin}", ""
        problems = (problem,) if problem else ()
        found.append(
            Audited(
                name=name,
                became=became,
                scheme=view.scheme or view.info.dtype,
                shape=view.info.shape,
                problems=problems,
                note=note,
            )
        )
    return found


def _twin(view: View, before: Mapping[str, View], after: Mapping[str, View]) -> str | None:
    """Another tensor of the base that has the same values, and that the file has."""
    for name, other in before.items():
        alike = name in after and other is not view and other.info.shape == view.info.shape
        if alike and other.info.dtype == view.info.dtype and view.info.numel:
            if all(EQUAL in _same(view, other, *run) for run in _runs(view)):
                return name
    return None


def methods(tensors: Sequence[Audited]) -> list[tuple[str, str, int]]:
    """Schemes and methods of the quantized tensors, each with how many have it, the most frequent first."""
    counts = Counter((t.scheme, t.method) for t in tensors if t.became == QUANTIZED)
    return [(scheme, method, n) for (scheme, method), n in counts.most_common()]
