"""Mean absolute value: the scale of one symmetric bit.

Of all a, sum (w - a sign(w))^2 is least at a = mean |w|. A group of zeros has scale 0 and decodes to 0.

Reference: Rastegari et al., XNOR-Net, 2016, equation 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantcli.calibrators import Calibrator, Gather, Ideal, Observed, Sharing
from quantcli.kernels import numpy_tiles
from quantcli.metrics import ordered_sum
from quantcli.scheme import Scheme

if TYPE_CHECKING:
    from quantcli.kernels import Kernels, Tile


def observe(kernels: Kernels, tile: Tile, sharing: Sharing | None, into: Observed | None = None) -> Observed | None:
    """Sum of absolute values and count of the groups, the tile or its columns."""
    weights = numpy_tiles.floats(tile)
    if not np.isfinite(weights).all():
        return None
    magnitude = np.abs(weights, dtype=np.float64)
    if sharing == "columns":
        return {"sum": ordered_sum(magnitude.T), "count": np.full(tile.cols, tile.rows)}
    if sharing == "tensor":
        return {"sum": ordered_sum(ordered_sum(magnitude)).reshape(1, 1), "count": np.full((1, 1), weights.size)}
    groups = [magnitude[:, first : first + tile.group] for first in range(0, tile.cols, tile.group)]
    counts = np.array([g.shape[1] for g in groups])
    whole = tile.cols // tile.group
    sums = np.empty((tile.rows, len(groups)))
    sums[:, :whole] = ordered_sum(magnitude[:, : whole * tile.group].reshape(tile.rows, whole, tile.group))
    if whole < len(groups):
        sums[:, -1] = ordered_sum(groups[-1])
    return {"sum": sums, "count": np.broadcast_to(counts, sums.shape)}


def merge(earlier: Observed, later: Observed) -> Observed:
    """The sums of both."""
    return {k: earlier[k] + later[k] for k in earlier}


def solve(seen: Observed, scheme: Scheme) -> Ideal:
    """The mean."""
    return Ideal(seen["sum"] / np.maximum(seen["count"], 1))


PROVIDES = Calibrator(
    gather=Gather(observe=observe, merge=merge),
    solve=solve,
    grid="full",
    binary=True,
    affine=False,
)
