"""What a report warns of in what was decided for tensors, and in what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from quantcli import registry
from quantcli.errors import printable
from quantcli.layouts import writer
from quantcli.planning.plan import UNWEIGHTED
from quantcli.planning.request import Request
from quantcli.reports.gathered import Named, named
from quantcli.reports.records import TensorReport
from quantcli.scheme import Scheme
from quantcli.tensors.decided import Decided
from quantcli.tensors.decisions import alike


def unweighted(plan: Sequence[Decided]) -> list[str]:
    """The warning about tensors that a file of importances or statistics says nothing of, if there are any."""
    said = [note for note in UNWEIGHTED.values() if any(note in t.note for t, _ in alike(plan))]
    found = [(note, (t.info.name for t in plan if note in t.note)) for note in said]
    return [line for note, names in found for line in named(f"{note}, all columns count the same", names)]


def offset_warning(plan: Sequence[Decided], request: Request | None) -> list[str]:
    """The warning about float offsets, unless the target that was asked for has no others."""
    if request is not None and request.to is not None and writer.named(request.to).offsets_only:
        return []
    own = [t.scheme for t, _ in alike(plan) if t.scheme is not None and t.scheme.storage != "super-blocks"]
    if any(scheme.zero_point == "float" for scheme in own):
        return ["float offsets: 0 is not representable, and the constant error adds up over a row"]
    return []


def cautions(plan: Sequence[Decided]) -> list[str]:
    """What is doubtful about a method for the size of a tensor's groups."""
    if not any(_doubt_of(t) for t, _ in alike(plan)):
        return []
    found: dict[str, Named] = {}
    for t in plan:
        if (doubt := _doubt_of(t)) is not None:
            found.setdefault(doubt, Named(doubt)).add(printable(t.info.name))
    return [line for warning in found.values() for line in warning.lines()]


def _doubt_of(t: Decided) -> str | None:
    """What is doubtful about the scheme of a tensor."""
    if t.scheme is None or t.scheme.calibration == "auto":
        return None
    return _doubt(t.scheme, t.info.numel // t.grouping.sets)


@lru_cache(maxsize=256)
def _doubt(scheme: Scheme, count: int) -> str | None:
    """What is doubtful about a scheme for groups of so many weights."""
    caution = registry.get("calibrators", scheme.calibration).caution
    return caution(scheme, count) if caution is not None else None


def beaten(t: TensorReport) -> list[str]:
    """The warning about a tensor on which min-max would have cost less, with both figures."""
    if t.minmax_sqnr_db is None or t.sqnr_db is None or t.sqnr_db >= t.minmax_sqnr_db - 5e-5:
        return []
    method = f"{t.calibration}{' with sum-preserving rounding' if t.rounding == 'sum-preserving' else ''}"
    figures = f"{t.sqnr_db:.2f} dB instead of {t.minmax_sqnr_db:.2f} dB"
    way_out = "; try --rounding nearest" if t.rounding == "sum-preserving" else ""
    return [f"{printable(t.name)}: {method} is worse than min-max, {figures}{way_out}"]
