"""The parameters of a tensor under one scheme: passes over its tiles, then parameters tile by tile."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from quantcli import registry, scales
from quantcli.calibrators import Calibrator, Gather, Ideal, Observed, Shared, Sharing
from quantcli.calibrators.searches import ranges
from quantcli.kernels import Kernels, QuantParams, Rule, Tile
from quantcli.scales import Store
from quantcli.tensors.blocks import as_rows, by_rows
from quantcli.tensors.direct import rule_of
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import Grouping, TileSpan, column_repeats
from quantcli.tensors.settle import part, settle, spread, stored_params

if TYPE_CHECKING:
    from quantcli.scheme import Scheme


class NotFinite(Exception):  # noqa: N818 - a finding, not an error
    """A weight is NaN, infinite or beyond float32."""


class Misfit(Exception):  # noqa: N818
    """A parameter does not fit its storage dtype."""


class Fit:
    """Finds the parameters of a tensor under a scheme. Its methods may be called from several threads.

    While `spans` is not empty the tensor needs another pass: `see` every span, then `conclude`. After that
    `params` gives the parameters of any tile. Raises NotFinite and Misfit where the weights or a dtype rule it out.
    """

    def __init__(self, info: TensorInfo, scheme: Scheme, plan: Grouping, scale_dtype: str) -> None:
        self.info, self.scheme, self.plan, self.scale_dtype = info, scheme, plan, scale_dtype
        self._overall = scales.of(scheme).overall
        self._largest = np.float32(0)
        self.store = Store(scale_dtype)
        self.whole: QuantParams | None = None
        self.stored: QuantParams | None = None
        self._calibrator = cast(Calibrator, registry.get("calibrators", scheme.calibration))
        self._shared: Shared | None = None
        self._lock = threading.Lock()
        self._begin()

    @property
    def rule(self) -> Rule | None:
        """What the kernels need to know to quantize a tile in one call; None where that takes several."""
        return rule_of(self.scheme, self.plan, self.store)

    @property
    def by_strips(self) -> bool:
        """Whether the next pass reads strips of channels instead of tiles."""
        return self.plan.shared == "columns" and not self._calibrator.gather.columns

    @property
    def sampling(self) -> bool:
        """Whether the pass looks at a sample of the weights, as the next ones may."""
        return self.scheme.shares_levels and self._shared is not None and bool(self.spans)

    def _begin(self) -> None:
        self.spans: list[TileSpan] = []
        if self._overall is not None:
            self.spans = list(self.plan.tiles())
        elif self.scheme.shares_levels:
            if self._shared is None or not self._shared.done:
                self.spans = list(self.plan.tiles() if self._shared is None else self.plan.sample())
        elif self.plan.two_pass and self.whole is None:
            self.spans = list(self.plan.strips() if self.by_strips else self.plan.tiles())
        self._seen: dict[int, Any] = {}
        self._next = 0
        self._merged: Observed | None = None
        self._pooled: dict[int, list[Observed]] = {}
        self._left: dict[int, int] = {}
        for span in self.spans:
            self._left[self._set_of(span)] = self._left.get(self._set_of(span), 0) + 1
        self._ideals: dict[int, Ideal] = {}

    def _set_of(self, span: TileSpan) -> int:
        """Which set of weights that share parameters (or of strips) a span belongs to."""
        if self.by_strips:
            return span.col
        return span.row if self.plan.shared is None and not self.scheme.shares_levels else 0

    # -- a pass

    def see(self, kernels: Kernels, tile: Tile, index: int) -> None:
        """Process a span of the pass."""
        if self._overall is not None:
            found = largest(kernels, tile)
            with self._lock:
                self._largest = max(self._largest, found)
            return
        key = self._set_of(self.spans[index])
        if self.by_strips:
            ideal = self._local(kernels, replace(tile, group=max(tile.cols, 1), seen={}))
            self._ideals[key] = ideal
            return
        if self._gather is not None and not self._gather.ordered:
            self._accumulate(self._gather, kernels, tile, key)
            return
        seen = self._observed(kernels, tile)
        with self._lock:
            self._seen[index] = seen
            while self._next in self._seen:
                self._take(self._seen.pop(self._next))

    @property
    def _gather(self) -> Gather | None:
        return None if self.scheme.shares_levels else self._calibrator.gather

    def _observed(self, kernels: Kernels, tile: Tile) -> Observed:
        if self._gather is not None:
            seen = self._gather.observe(kernels, tile, cast("Sharing", self.plan.shared or "tensor"), None)
        else:
            assert self._calibrator.shared is not None
            seen = self._calibrator.shared.observe(kernels, tile, self.scheme, self._shared, self.scale_dtype)
        if seen is None:
            raise NotFinite
        return seen

    def _accumulate(self, gather: Gather, kernels: Kernels, tile: Tile, key: int) -> None:
        """Add a tile to one of the accumulators of its set, one for each thread at work on it."""
        with self._lock:
            free = self._pooled.setdefault(key, [])
            into = free.pop() if free else None
        seen = gather.observe(kernels, tile, "tensor", into)
        if seen is None:
            raise NotFinite
        with self._lock:
            free.append(seen)
            self._left[key] -= 1
            if not self._left[key]:
                found = free[0]
                for other in free[1:]:
                    found = gather.merge(found, other)
                del self._pooled[key]
                self._solve(key, found)

    def _take(self, seen: Observed) -> None:
        """Merge the statistics that come next in file order; a complete set is solved."""
        key = self._set_of(self.spans[self._next])
        self._next += 1
        merge = self._gather.merge if self._gather is not None else self._calibrator.shared.merge  # type: ignore[union-attr]
        self._merged = seen if self._merged is None else merge(self._merged, seen)
        self._left[key] -= 1
        if not self._left[key]:
            self._solve(key, self._merged)
            self._merged = None

    def _solve(self, key: int, seen: Observed) -> None:
        if self.scheme.shares_levels:
            assert self._calibrator.shared is not None
            self._shared = self._calibrator.shared.solve(seen, self.scheme, self._shared)
            return
        if self.plan.shared == "columns":
            seen = self._by_channel(seen)
        self._ideals[key] = self._calibrator.solve(seen, self.scheme)

    def _by_channel(self, seen: Observed) -> Observed:
        """The statistics of columns merged per channel."""
        shape = column_repeats(self.info.shape, self.scheme.axis)
        if "sum" in seen:
            return {k: v.reshape(shape).sum(axis=(0, 2), keepdims=True) for k, v in seen.items()}
        return ranges.fold({k: v.reshape(shape) for k, v in seen.items()}, (0, 2))

    def conclude(self) -> None:
        """End the pass: all spans have been seen."""
        if self._overall is not None:
            self.take_largest(float(self._largest))
        elif not self.scheme.shares_levels:
            params = settle(self._joined(), self.scheme, self.store)
            if params is None:
                raise Misfit
            self.stored = stored_params(params, self.plan)
            self.whole = spread(params, self.info, self.scheme, self.plan)
        self._begin()

    def take_largest(self, largest: float) -> None:
        """Settle the scale of the tensor, given the largest magnitude."""
        if self._overall is not None:
            self.store = Store(self.scale_dtype, self._overall(largest, self.scheme))
            self._overall = None
            self._begin()

    def _joined(self) -> Ideal:
        ideals = [self._ideals[key] for key in sorted(self._ideals)]
        if len(ideals) == 1 and not self.by_strips:
            return ideals[0]

        def join(arrays: list[Any]) -> Any:
            if arrays[0] is None:
                return None
            found = np.concatenate([a.reshape(-1, a.shape[-1]) for a in arrays])
            return found.reshape(1, -1, 1) if self.by_strips else found

        return Ideal(*(join([getattr(i, name) for i in ideals]) for name in ("scale", "zero", "levels")))

    # -- parameters

    def params(self, kernels: Kernels, tile: Tile, span: TileSpan) -> QuantParams:
        """The parameters of a tile."""
        if self.whole is not None:
            return part(self.whole, span, self.plan)
        found = settle(self._of_blocks(kernels, tile), self.scheme, self.store)
        if found is None:
            raise Misfit
        return replace(found, scale=by_rows(found.scale, self.plan, span.row, span.rows))

    def _of_blocks(self, kernels: Kernels, tile: Tile) -> Ideal:
        if self.plan.height == 1:
            return self._local(kernels, tile)
        found = [self._local(kernels, rows) for rows in as_rows(tile, self.plan.height)]
        return Ideal(np.concatenate([ideal.scale for ideal in found]))

    def _local(self, kernels: Kernels, tile: Tile) -> Ideal:
        calibrator = self._calibrator
        if self.scheme.shares_levels:
            assert calibrator.shared is not None and self._shared is not None
            ideal = calibrator.shared.local(kernels, tile, self.scheme, self._shared, self.scale_dtype)
        elif calibrator.local is not None:
            ideal = calibrator.local(kernels, tile, self.scheme, self.store)
        else:
            seen = calibrator.gather.observe(kernels, tile, None, None)
            ideal = None if seen is None else calibrator.solve(seen, self.scheme)
        if ideal is None:
            raise NotFinite
        return ideal


def largest(kernels: Kernels, tile: Tile) -> Any:
    """The largest magnitude of a tile. Raises NotFinite."""
    found = kernels.ranges(replace(tile, group=max(tile.cols, 1), seen={}))
    if not found.finite:
        raise NotFinite
    return np.abs(found.extreme).max(initial=np.float32(0))
