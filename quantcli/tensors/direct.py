"""Which schemes the kernels quantize in one call, from weights to stored codes, and how."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, cast

from quantcli import registry, scales
from quantcli.calibrators import Calibrator
from quantcli.formats import code_grid, fixed_codebook, reach
from quantcli.kernels import INTEGER, LEVELS, Method, Rule
from quantcli.scales import Store
from quantcli.scheme import AUTO
from quantcli.tensors.settle import smallest_scale

if TYPE_CHECKING:
    from quantcli.scheme import Scheme
    from quantcli.tensors.rows import Grouping


def rule_of(scheme: Scheme, plan: Grouping, store: Store) -> Rule | None:
    """What `kernels.quantize` needs to know; None where finding the parameters of groups takes several steps."""
    if plan.two_pass:  # groups do not lie in a tile each
        return None
    return _of_groups(scheme, plan.group, store, plan.height)


@lru_cache(maxsize=256)
def _of_groups(scheme: Scheme, group: int, store: Store, height: int) -> Rule | None:
    grid, top = code_grid(scheme), reach(scheme)
    method = cast(Calibrator, registry.get("calibrators", scheme.calibration)).finding
    known = (scheme.family, grid.mode) in (("int", INTEGER), ("levels", LEVELS))
    finding = None if method is None or not known or scheme.rotation else method(scheme, group)
    if finding is None or (height > 1 and finding.method == Method.SEARCH):  # whose candidates depend on a block's size
        return None
    effort = scheme.options["effort"] if finding.method == Method.TRIALS else None
    stored = scales.of(scheme).known(scheme, store, effort)
    if stored is None:
        return None
    requested = store.dtype == "F16" and scheme.scale_dtype != AUTO  # then small ones are taken as they are
    smallest = 2.0**-24 if requested else smallest_scale(scheme, store.dtype)
    book = fixed_codebook(scheme) if grid.mode == LEVELS else None
    return Rule(finding, grid, not scheme.symmetric, stored, smallest, scheme.preserves_sums, top, book, height)
