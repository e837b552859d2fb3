"""Sources to quantize: models that are quantized already, in any recognised layout, and adapters are refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from quantcli.errors import DataError
from quantcli.layouts import evidence
from quantcli.layouts.adapters import is_adapter
from quantcli.layouts.native.model import Model as Stored
from quantcli.models import Model
from quantcli.stores import Source, is_stream, open_source


@contextlib.contextmanager
def float_source(
    src: str, layout: str = "auto", *, variant: str | None = None, say: Callable[[str], None]
) -> Iterator[Source]:
    """The source that a path names. layout: `auto`, or `plain` to read every tensor by its dtype alone. variant: which
    weights of a folder to take, where it has several. Raises DataError when it is quantized, or an adapter."""
    with contextlib.closing(open_source(src, variant)) as source:
        _refuse_adapter(source, src)
        _refuse_quantized(source, src, layout, say)
        yield source


def _refuse_adapter(source: Source, src: str) -> None:
    """Raise DataError for an adapter."""
    if is_adapter(source):
        hint = "merge it into its base model first, and quantize that"
        raise DataError("this is an adapter (LoRA), not a model", place=[src], hint=hint)


def _refuse_quantized(source: Source, src: str, layout: str, say: Callable[[str], None]) -> None:
    try:
        config = evidence.beside(src)
    except DataError:
        if source.folder is not None:
            raise
        config = {}  # beside a single file it may belong to something else
    try:
        found = evidence.found_in(source, config)
    except DataError as error:
        raise error.within(source.path) from None
    if found is None:
        stale = evidence.out_of_date(source, config)
        if stale is not None:
            say(f"{src}: {stale}: all tensors are read as plain floats")
    elif layout == "auto" or source.documents or source.blocks:
        if not found.certain:
            problem = f"this looks quantized already ({found.layout}): {found.seen}"
            raise DataError(problem, place=[source.path], hint=evidence.PLAIN_HINT)
        what = f"({found.layout}): {found.seen}"
        raise DataError(f"this model is quantized already {what}", place=[source.path], hint=_way_out(source, src))


def _way_out(source: Source, src: str) -> str:
    """The hint for a quantized source: decode it where that is possible."""
    try:
        decoded = not is_stream(source) and bool(Model(Stored(source), src).quantized)
    except DataError:
        decoded = False
    if decoded:
        return "dequantize it first, or start from the original"
    return "quantcli does not decode it: start from the original"
