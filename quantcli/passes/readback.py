"""What an output cost where parameters were rounded, measured on the bytes that were written, as its reader decodes
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from quantcli.layouts.writer import named
from quantcli.models import View, open_model
from quantcli.naming import of_checkpoint
from quantcli.passes import compare
from quantcli.passes.outputs import Outgoing

if TYPE_CHECKING:
    from quantcli.metrics import Metrics


def measure(
    wanted: Sequence[str], homes: Mapping[str, str], against: Mapping[str, View], model: Outgoing, *, threads: int
) -> dict[str, Metrics | None]:
    """Errors of some tensors against others of their names; homes: the files that were written, by tensor. Tensors
    that nothing reads back as quantized are left out."""
    if model.to is None or not named(model.to).read_back:
        return {}
    with ExitStack() as stack:
        read = dict[str, View]()
        for path in dict.fromkeys(homes[name] for name in wanted):
            opened = stack.enter_context(open_model(path, model.conversion.config))
            read |= {**of_checkpoint(opened), **opened}
        pairs = {n: (against[n], read[n]) for n in wanted if n in read and read[n].scheme is not None}
        return dict(zip(pairs, compare.measure(pairs, threads=threads, progress=None)))
