"""Vectors whose scales columns of codes have: AWQ and SmoothQuant divide a norm by what they multiply the columns of
the layers behind it with.

A vector proves its own gains: where the codes of a layer are the nearest ones for the weights of the base times these,
the layer was made with them. Where no codes do, as of error feedback, gains that were fitted to the columns of a layer
are compared with those of the vector.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quantcli.models import View
from quantcli.passes.audit_method import ROUNDED
from quantcli.passes.audit_sample import Sampled, sampled

EXACT, EXACT_BITS, SUMS_KEPT = 0.99, 4, 0.5
"""Share of nearest codes, of so many bits at most, that the gains of a vector leave where it is what was divided:
bfloat16 moves 0.8 % of them; a change of 1 %, of the whole or of its numbers each, 1.3 % and more of 4 bits. Share of
rows whose errors add up to less than a step from which on rounding moved codes for that: a third of rows of 64 do by
chance."""

MOST = 64
"""Layers that are tried for a vector: those of its own block, whose experts may be more, have its name in common."""

LOOSE = 0.2
"""How much of the spread of a vector's gains may be left beside those that were fitted."""

Gains = NDArray[np.float64]


@dataclass(slots=True)
class Explained:
    """What vectors explain. layers: samples of those that were made with the gains of a vector; vectors: those whose
    gains columns have, each with what is wrong with it, or nothing."""

    layers: dict[str, Sampled] = field(default_factory=dict)
    vectors: dict[str, str] = field(default_factory=dict)


def explained(
    vectors: Iterable[str], samples: Mapping[str, Sampled], before: Mapping[str, View], after: Mapping[str, View]
) -> Explained:
    """What vectors that are not those of the base explain of the layers that samples are of."""
    found, fitted = Explained(), _by_columns(samples)
    unexplained = {name for name, sample in samples.items() if _is_unexplained(sample)}
    near = _by_prefix(unexplained, after)
    for name in vectors:
        if len(after[name].info.shape) != 1 or not before[name].numeric:
            continue
        x, y = (view.read(0, view.info.numel).astype(np.float64) for view in (before[name], after[name]))
        if not _comparable(x, y):
            continue
        made = _made_with(_gains(x, y), near, name, found, before, after)
        if made:
            found.layers |= made
            found.vectors[name] = _wrong(made, after)
        elif any(_inverse(x, y, gains) for gains in fitted[len(x)]):
            found.vectors[name] = ""
    return found


def _is_unexplained(sample: Sampled) -> bool:
    """Whether codes are not the nearest ones for the weights as they are in the base."""
    return sample.gained_db is not None or (sample.nearest is not None and sample.nearest < ROUNDED)


def _by_columns(samples: Mapping[str, Sampled]) -> defaultdict[int, list[Gains]]:
    """The gains that were fitted to columns, by how many these are."""
    found: defaultdict[int, list[Gains]] = defaultdict(list)
    for sample in samples.values():
        if sample.gains is not None:
            found[len(sample.gains)].append(sample.gains)
    return found


# ---- layers made with the gains of a vector -------------------------------------------------------------------------


def _prefixes(name: str) -> list[str]:
    """The modules that a tensor is in, the innermost first.

    >>> _prefixes("model.layers.0.norm.weight")
    ['model.layers.0.norm', 'model.layers.0', 'model.layers', 'model', '']
    """
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, -1, -1)]


def _by_prefix(names: Iterable[str], after: Mapping[str, View]) -> Mapping[tuple[str, int], list[str]]:
    """Layers by the modules that they are in, and by their columns."""
    found: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    for name in sorted(names):
        for prefix in _prefixes(name):
            found[prefix, after[name].info.shape[-1]].append(name)
    return found


def _made_with(
    gains: Gains,
    near: Mapping[tuple[str, int], list[str]],
    vector: str,
    known: Explained,
    before: Mapping[str, View],
    after: Mapping[str, View],
) -> dict[str, Sampled]:
    """Samples of the layers that were made with some gains, of the innermost module that has any."""
    tried = set[str](known.layers)
    for prefix in _prefixes(vector):
        layers = [name for name in near.get((prefix, len(gains)), ()) if name not in tried]
        if len(tried - known.layers.keys()) + len(layers) > MOST:
            break
        tried.update(layers)
        samples = {name: sampled(before[name], after[name], gains) for name in layers}
        made = {name: sample for name, sample in samples.items() if (sample.nearest or 0) >= ROUNDED}
        if made:
            return made
    return {}


def _wrong(samples: Mapping[str, Sampled], after: Mapping[str, View]) -> str:
    """That a vector is not quite the one that layers were made with; empty where it may be."""
    exact, weights = 0.0, 0
    for name, sample in samples.items():
        if sample.nearest is None or sample.scheme is None or sample.scheme.bits > EXACT_BITS:
            continue
        if (sample.balanced or 0) < SUMS_KEPT:
            exact, weights = exact + sample.nearest * after[name].info.numel, weights + after[name].info.numel
    if exact >= EXACT * weights:
        return ""
    return "its scales are nearly those of the layers behind it, but not quite: it was changed a little"


# ---- gains that were fitted -----------------------------------------------------------------------------------------


def _comparable(x: Gains, y: Gains) -> bool:
    """Whether a vector may be another one divided by gains: nearly all of its numbers tell them."""
    return np.array_equal(np.sign(x), np.sign(y)) and int(np.count_nonzero(x)) >= max(8, 0.9 * len(x))


def _gains(x: Gains, y: Gains) -> Gains:
    """What columns are multiplied with where a vector became another."""
    return np.divide(x, y, out=np.ones_like(x), where=y != 0)


def _inverse(x: Gains, y: Gains, gains: Gains) -> bool:
    """Whether the ratio of two vectors is the inverse of some gains, up to a factor."""
    known = (x != 0) & (gains > 0)
    if known.sum() < max(8, 0.9 * len(x)):
        return False
    ratio, inverse = np.log(y[known] / x[known]), -np.log(gains[known])
    return float(np.std(ratio - inverse)) < LOOSE * float(np.std(ratio))
