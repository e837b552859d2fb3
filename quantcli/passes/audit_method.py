"""How the codes of a tensor were made, as far as a sample of them tells."""

from __future__ import annotations

from quantcli.passes.audit_sample import Sampled

RELATED = 0.4
"""Least cosine between the weights and what they became: one bit leaves 0.8 of normal weights, ternary codes scaled by
the largest of 256 heavy-tailed ones 0.57, unrelated ones 0."""

FAINT = 0.1
"""Least cosine between weights and their nearest codes that tells them from others."""

ROUNDED, CLEAN, LEARNED = 0.95, 0.97, 1e-5
"""Least share of nearest codes of a method that rounds to the nearest: rounding that preserves sums moves up to 4 % of
the codes, error feedback a quarter or more. Least share in some column where errors are fed back: the first one has
none to make good. Most weights beyond one step where rounding up or down is learned."""

MIN_MAX_DB, SAME_DB = 1.0, 0.05
"""How far below min-max a method still is min-max: MLX moves the end of the range so that 0 is a code. How much a
search must win for the two to be told apart."""

OTHER_SCALES, NEARLY, HALF, TELLING = 0.95, 0.9, 0.5, 0.5
"""Share of groups that have the scale of min-max, where the SQNR is that of min-max: below, scales are of other
weights, if so many are near that at least; and were searched for where fewer than half are, for a search that weighs
columns may gain as little. dB that a search must win for its scales to be told from such."""

SEARCHED = 0.2
"""Least share of offsets that are not those of the range, beside scales that are: HQQ searches for offsets alone, which
moves 85 % of them by more than their dtype explains at 4 bits, and 35 % at 8."""

DIVIDING = 0.98
"""Least share of groups with the scale of MLX's rule: noise of 2 % of the weights leaves a third of it at 4 bits."""

SUMS = "rounding that preserves the sums of rows"

UNRELATED, UNEXPLAINED = "none of the base", "none of the base as it is"
"""The method of codes that were not made of these weights."""

BALANCED = 0.9
"""Least share of rows whose errors add up to less than a step where rounding preserves sums: by chance a third of rows
of 64 do."""

UNCERTAIN = "learned rounding (AutoRound), or weights that were changed a little"
"""The method of codes that do not tell which of the two it was."""


def _is_minmax(sample: Sampled) -> bool:
    """Whether scales leave what min-max does rather than what a search does."""
    own = sample.nearest_db
    if own is None or sample.minmax_db is None or own < sample.minmax_db - MIN_MAX_DB:
        return False
    if sample.about is not None and sample.about < HALF:
        return False
    best = sample.best_db
    return best is None or best - sample.minmax_db < SAME_DB or own - sample.minmax_db <= best - own


def _of_mlx(sample: Sampled) -> bool:
    """Whether scales and offsets are those of MLX's rule, which these weights alone give."""
    return (sample.dividing or 0) >= DIVIDING and (sample.shifted or 0) <= SEARCHED


def other_scales(sample: Sampled) -> bool:
    """Whether scales are spread about those of min-max a little, as those of min-max of slightly other weights are;
    scales that were searched for lie elsewhere."""
    if _of_mlx(sample) or sample.largest is None or sample.gained_db is not None or (sample.nearest or 0) < ROUNDED:
        return False
    if sample.clipped:
        return False
    telling = (
        sample.best_db is not None and sample.minmax_db is not None and sample.best_db - sample.minmax_db > TELLING
    )
    return telling and _is_minmax(sample) and (sample.about or 0) >= NEARLY and sample.largest < OTHER_SCALES


def preserves_sums(sample: Sampled) -> bool:
    """Whether codes other than the nearest ones were taken for the sums of rows."""
    rounded = sample.nearest is not None and sample.nearest < 1 and sample.beyond is not None
    return rounded and (sample.balanced or 0) >= BALANCED and (sample.beyond or 0) <= LEARNED


def related(sample: Sampled) -> bool:
    """Whether codes are of these weights, by their cosine; where their nearest codes are mostly 0, by that of these."""
    least = RELATED
    if sample.nearest_cosine is not None and sample.nearest_cosine > FAINT:
        least = min(least, 0.9 * sample.nearest_cosine)
    return sample.cosine >= least


def method_of(sample: Sampled) -> str:
    """How codes were made, as far as they tell."""
    if sample.nearest is None:
        return ""
    if not related(sample):
        return UNRELATED
    if sample.scheme is None:
        return "nearest codes" if sample.nearest == 1 else UNEXPLAINED
    first = "scaled rows and columns (AWQ), " if sample.gained_db is not None else ""
    first += "7 of 8 bits, " if sample.reduced else ""
    if sample.nearest < ROUNDED:
        return first + _moved(sample)
    if _of_mlx(sample):
        return first + "min-max scales that make 0 a code (MLX)"
    if (sample.largest or 0) >= OTHER_SCALES and (sample.shifted or 0) > SEARCHED:
        return first + "min-max scales, searched offsets (HQQ)"
    powers = sample.scheme.storage == "e8m0"  # of which a search takes many where min-max scales are too
    if _is_minmax(sample) or (sample.largest or 0) >= (DIVIDING if powers else OTHER_SCALES):
        return first + "min-max"
    return first + "searched scales"


def _moved(sample: Sampled) -> str:
    """Why codes are not the nearest ones."""
    if preserves_sums(sample):
        return SUMS
    if sample.cleanest is not None and sample.cleanest >= CLEAN:
        return "error feedback (GPTQ)"
    if sample.beyond is None:
        return "other rounding"
    if sample.beyond <= LEARNED:
        return UNCERTAIN
    return UNEXPLAINED if sample.cleanest is not None else "error feedback (GPTQ) or other rounding"
