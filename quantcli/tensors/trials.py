"""All candidates for a tensor, tried on its tiles; the best of them encodes it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from quantcli.asking import candidates, plainly_rounded, weighs
from quantcli.formats import code_grid
from quantcli.kernels import Kernels, Made, QuantParams, Sums, Tile, numpy_tiles, row_bytes
from quantcli.metrics import Metrics, ordered_sum, total
from quantcli.tensors import by_expert
from quantcli.tensors.blocks import by_rows
from quantcli.tensors.decided import Quantized
from quantcli.tensors.direct import rule_of
from quantcli.tensors.fit import Fit, Misfit
from quantcli.tensors.rows import TileSpan, grouping_of
from quantcli.tensors.settle import default_scale_dtype
from quantcli.tensors.tiles import rotated_back

if TYPE_CHECKING:
    from quantcli.kernels import Bytes, Rule
    from quantcli.scheme import Scheme
    from quantcli.tensors.by_expert import OfExperts
    from quantcli.tensors.second_order import SecondOrder


class Trials:
    """All candidates for a tensor: its scheme, or those of `auto`; and beside them a rival (min-max) whose error is
    only measured. Methods may be called from several threads.

    While `spans` is not empty: `see` each span, then `conclude`. Then `encode` every tile.
    """

    def __init__(self, tensor: Quantized, *, rival: Scheme | None) -> None:
        info, self.plan = tensor.info, tensor.grouping
        self.info = info
        self.columns = tensor.columns
        self._weights = None if self.columns is None else self.columns.weights
        self.second_order: SecondOrder | OfExperts | None = None
        self.fits = [Fit(info, scheme, self.plan, tensor.scale_dtype) for scheme in candidates(tensor.scheme)]
        self.rival: Fit | None = None
        if rival is not None and len(self.fits) == 1:
            self.rival = Fit(info, rival, grouping_of(info.shape, rival), default_scale_dtype(rival, info.dtype))
        self._errors: dict[int, list[Sums]] = {}
        self._totals: list[Metrics] = []
        self._begin()

    @property
    def chosen(self) -> Fit:
        """The fit that is encoded: after the last pass the best of the candidates."""
        return self.fits[0]

    def take_largest(self, largest: float) -> None:
        """Settle the scale of the tensor, given the largest magnitude of all weights that share it."""
        for fit in (*self.fits, self.rival):
            if fit is not None:
                fit.take_largest(largest)
        self._begin()

    def _begin(self) -> None:
        pending = [f for f in (*self.fits, self.rival) if f is not None and f.spans]
        self.by_strips = bool(pending) and pending[0].by_strips
        self._passing = [f for f in pending if f.by_strips == self.by_strips]
        self.spans = pending[0].spans if pending else []
        if not pending and len(self.fits) > 1:
            self.spans = list(self.plan.tiles())

    def see(self, kernels: Kernels, tile: Tile, index: int) -> None:
        """Process a span of the pass."""
        for fit in self._passing:
            fit.see(kernels, tile, index)
        if not self._passing:
            self._errors[index] = [self._error(f, kernels, tile, self.spans[index]) for f in self.fits]

    def _error(self, fit: Fit, kernels: Kernels, tile: Tile, span: TileSpan) -> Sums:
        made = self._in_one_call(fit, None, kernels, tile, None)
        if made is not None:
            return made.sums
        params = fit.params(kernels, tile, span)
        return kernels.encode(tile, params, code_grid(fit.scheme), None, preserve=fit.scheme.preserves_sums)

    def conclude(self) -> None:
        """End the pass: all spans have been seen."""
        for fit in self._passing:
            if fit is self.rival:
                with contextlib.suppress(Misfit):
                    fit.conclude()
                    continue
                self.rival = None
            else:
                fit.conclude()
        if not self._passing:
            sizes = [s.rows * s.cols for s in self.spans]
            self._totals = [
                total([(self._errors[i][k], n) for i, n in enumerate(sizes)]) for k in range(len(self.fits))
            ]
            best = min(range(len(self.fits)), key=lambda k: self._totals[k].sse)  # the first of equal ones
            self.fits = [self.fits[best]]
        self._begin()

    def encode(self, kernels: Kernels, tile: Tile, span: TileSpan, packed: Bytes | None) -> Made:
        """Write the codes of a tile; its errors, parameters, and the error of the rival. Without `packed` only squared
        errors are found."""
        if self.second_order is not None:
            return self._made_good(self.second_order, kernels, tile, span, packed)
        made = self._in_one_call(self.chosen, self.rival, kernels, tile, packed)
        if made is not None:
            return made
        params, scheme = self.params(kernels, tile, span), self.chosen.scheme
        sums = kernels.encode(tile, params, code_grid(scheme), packed, preserve=scheme.preserves_sums)
        if tile.original is not None and packed is not None:
            sums = rotated_back(kernels, tile.original, params, scheme, packed, sums.clipped)
        return Made(sums, params, self._rival_error(kernels, tile, span))

    def _made_good(
        self, how: SecondOrder | OfExperts, kernels: Kernels, tile: Tile, span: TileSpan, packed: Bytes | None
    ) -> Made:
        """What `encode` gives with second-order rounding, and what it costs in the output of the layer."""
        fit, grid = self.chosen, code_grid(self.chosen.scheme)
        room, spare = np.empty((2, span.rows, row_bytes(span.cols, grid.bits)), np.uint8)
        written = spare if packed is None else packed.reshape(room.shape)
        plain = self._plain(kernels, tile, span, room.reshape(-1))
        found, output = list[QuantParams](), by_expert.NO_COST
        for rows, own in how.parts(span, self.plan):
            part, params = by_expert.rows_of(tile, rows), by_expert.params_of(plain, rows, tile)
            given = params, room[rows].reshape(-1)
            if own is None:
                written[rows] = room[rows]
            else:
                if self.weighs_rows:
                    at = replace(span, row=span.row + rows.start, rows=part.rows)
                    params = fit.params(kernels, replace(part, importance=own.counts), at)
                params, cost = own.better(kernels, part, grid, params, given, written[rows].reshape(-1))
                output += cost
            found.append(params)
        params = by_expert.joined(found, tile.rows)
        return Made(kernels.measure(tile, params, grid, written.reshape(-1)), params, None, output)

    def _plain(self, kernels: Kernels, tile: Tile, span: TileSpan, packed: Bytes) -> QuantParams:
        """Write the codes that a tile has without statistics; their parameters."""
        fit, scheme = self.chosen, plainly_rounded(self.chosen.scheme)
        rule = None if tile.original is not None else rule_of(scheme, self.plan, fit.store)
        made = None if rule is None else self._by_rule(rule, None, kernels, tile, packed)
        if made is not None:
            return made.params
        params = fit.params(kernels, tile, span)
        kernels.encode(tile, params, code_grid(scheme), packed, preserve=scheme.preserves_sums)
        return params

    @property
    def weighs_rows(self) -> bool:
        """Whether every row has parameters of its own that depend on how much its columns count."""
        fit = self.chosen
        return weighs(fit.scheme) and fit.whole is None and self.plan.height == 1 and not fit.scheme.shares_levels

    def _in_one_call(
        self, fit: Fit, rival: Fit | None, kernels: Kernels, tile: Tile, packed: Bytes | None
    ) -> Made | None:
        """What `encode` gives, where the kernels know the scheme and find nothing out of the ordinary."""
        rule = fit.rule if self._weights is None and tile.original is None else None
        other = None if rival is None else rival.rule
        if rule is None or (rival is not None and other is None):
            return None
        return self._by_rule(rule, other, kernels, tile, packed)

    def _by_rule(
        self, rule: Rule, rival: Rule | None, kernels: Kernels, tile: Tile, packed: Bytes | None
    ) -> Made | None:
        """What `encode` gives, where the kernels find nothing out of the ordinary."""
        made = kernels.quantize(tile, rule, rival, packed)
        if made is None or rule.height == 1:
            return made
        scale = by_rows(made.params.scale, self.plan, 0, tile.rows)  # tiles begin with blocks
        return replace(made, params=replace(made.params, scale=scale))

    def params(self, kernels: Kernels, tile: Tile, span: TileSpan) -> QuantParams:
        """The parameters of a tile."""
        if self._weights is not None:
            tile = replace(tile, importance=self._weights[span.col : span.col + span.cols])
        return self.chosen.params(kernels, tile, span)

    def weighted(
        self, kernels: Kernels, tile: Tile, span: TileSpan, params: QuantParams, packed: Bytes
    ) -> tuple[float, float]:
        """Squared error and power of a tile whose codes are in `packed`, weighted by the importance of each column."""
        assert self.columns is not None
        grid = code_grid(self.chosen.scheme)
        weights = numpy_tiles.floats(tile)
        error = weights - kernels.decode(packed, weights.shape, tile.group, params, grid)
        counts = self.columns.values[span.col : span.col + span.cols]
        sums = [ordered_sum(ordered_sum(v.astype(np.float64) ** 2 * counts)) for v in (error, weights)]
        return float(sums[0]), float(sums[1])

    def _rival_error(self, kernels: Kernels, tile: Tile, span: TileSpan) -> float | None:
        """The squared error of a tile under the rival; None without one."""
        if self.rival is None:
            return None
        try:
            return self._error(self.rival, kernels, tile, span).sse
        except Misfit:
            self.rival = None
            return None

    @property
    def minmax_sse(self) -> float | None:
        """The squared error of min-max, where it was a candidate."""
        return self._totals[0].sse if self._totals else None
