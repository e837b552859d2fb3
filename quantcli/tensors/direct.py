"""Which schemes the kernels quantize in one call, from weights to stored codes, and how."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, cast

from quantcli import registry
from quantcli.calibrators import Calibrator
from quantcli.formats import code_grid
from quantcli.kernels import BF16, F16, F32, INTEGER, Kind, Rule
from quantcli.scheme import AUTO
from quantcli.tensors.settle import smallest_scale

if TYPE_CHECKING:
    from quantcli.scheme import Scheme
    from quantcli.tensors.rows import Grouping

_KINDS: dict[str, Kind] = {"BF16": BF16, "F16": F16, "F32": F32}


def rule_of(scheme: Scheme, plan: Grouping, scale_dtype: str) -> Rule | None:
    """What `kernels.quantize` needs to know; None where finding the parameters of groups takes several steps."""
    if plan.two_pass or plan.height > 1:  # groups do not lie in a tile each
        return None
    return _of_groups(scheme, plan.group, scale_dtype)


@lru_cache(maxsize=256)
def _of_groups(scheme: Scheme, group: int, scale_dtype: str) -> Rule | None:
    grid = code_grid(scheme)
    method = cast(Calibrator, registry.get("calibrators", scheme.calibration)).finding
    if method is None or grid.mode != INTEGER or scheme.family != "int" or scheme.storage != "plain" or scheme.rotation:
        return None
    finding = method(scheme, group)
    if finding is None:
        return None
    requested = scale_dtype == "F16" and scheme.scale_dtype != AUTO  # then small ones are taken as they are
    smallest = 2.0**-24 if requested else smallest_scale(scheme, scale_dtype)
    return Rule(finding, grid, not scheme.symmetric, _KINDS[scale_dtype], smallest, scheme.preserves_sums)
