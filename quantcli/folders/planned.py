"""What becomes of a model that is quantized: known before its first weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantcli.layouts.native.document import DIGEST_SIZES
from quantcli.passes import outputs
from quantcli.passes.outputs import Outgoing
from quantcli.planning import plan
from quantcli.planning.order import Order
from quantcli.planning.plan import Plan
from quantcli.planning.request import Request
from quantcli.stores import Source
from quantcli.stores.safetensors import HEADER_LIMIT, HeaderTooLargeError
from quantcli.tensors.info import TensorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What becomes of a source: the request, its plan, the model that is written, and what loaders of that will and
    will not do."""

    source: Source
    request: Request
    plan: Plan
    model: Outgoing
    notes: tuple[str, ...] = ()


_ENTRIES = len(',"":{"dtype":"U8","shape":[],"data_offsets":[0,0]}') + len(',\\"\\":{\\"reason\\":\\"\\"}')
"""Bytes of the shortest entries that a header of the native layout has of a tensor, beside its name and its digest:
those of a kept one, in the table of tensors and in quantcli's own document."""


def _check_header(infos: Sequence[TensorInfo], digest: str) -> None:
    """Raise DataError for more tensors than the header of one file can hold if all were kept, and so take least: the
    plan for a million takes 700 MiB."""
    if len(infos) * _ENTRIES > HEADER_LIMIT // 4:  # else all names are looked at for nothing
        least = sum(_ENTRIES + DIGEST_SIZES[digest] + 2 * len(info.name) for info in infos)
        if least > HEADER_LIMIT:
            raise HeaderTooLargeError.of(len(infos))


def plan_model(source: Source, order: Order, request: Request, *, folder: bool) -> Planned:
    """What becomes of a source. Raises UsageError and DataError for what cannot be done."""
    if not folder and request.to is None:
        _check_header(source.infos(), order.digest)
    found = plan.make(source.infos(), request)
    model = outputs.planned(found, source, digest=order.digest)
    notes = tuple(outputs.notes(model, folder=folder))
    return Planned(source=source, request=request, plan=found, model=model, notes=notes)
