"""What becomes of a model that is quantized: known before its first weight is read."""

from __future__ import annotations

from dataclasses import dataclass

from quantcli.passes import outputs
from quantcli.passes.outputs import Outgoing
from quantcli.planning import plan
from quantcli.planning.order import Order
from quantcli.planning.plan import Plan
from quantcli.planning.request import Request
from quantcli.stores import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What becomes of a source: the request, its plan, the model that is written, and what loaders of that will and
    will not do."""

    source: Source
    request: Request
    plan: Plan
    model: Outgoing
    notes: tuple[str, ...] = ()


def plan_model(source: Source, order: Order, request: Request, *, folder: bool) -> Planned:
    """What becomes of a source. Raises UsageError and DataError for what cannot be done."""
    found = plan.make(source.infos(), request)
    model = outputs.planned(found, source, digest=order.digest)
    notes = tuple(outputs.notes(model, folder=folder))
    return Planned(source=source, request=request, plan=found, model=model, notes=notes)
