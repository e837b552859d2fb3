"""What becomes of a model in the layout of another tool, and what that one cannot store."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

from quantcli.architectures import Architecture
from quantcli.errors import DataError, UsageError, printable
from quantcli.layouts.config import architecture
from quantcli.layouts.joined import refuse_mixed
from quantcli.layouts.writer import Again, Beside, Conversion, Weight, Writer, named, refusal
from quantcli.tensors.decided import Decided


def obstacle(weight: Weight, export: Writer, model: Architecture, again: Again | None = None) -> str | None:
    """Why a target cannot store a weight, or its loader takes none in its place in such a model; None when it does."""
    assert weight.scheme is not None
    return export.accepts.obstacle(weight.scheme) or export.unstored(weight, model, again)


def convert(
    tensors: Sequence[Decided],
    to: str,
    beside: Beside,
    *,
    container: bool = False,
    again: Again | None = None,
) -> Conversion:
    """What becomes of a model in a target of another tool; container: as a container of its tensors, which
    nothing runs. again: how it is written again, where it is in the format of the target already.

    Raises UsageError for what the target does not support, DataError where two tensors would be written under one
    name.
    """
    export = named(to)
    make = export.container if container else export.convert
    if make is None:
        raise UsageError(f"{to} has no containers, only models", place=["--container"], hint="leave it out")
    if not any(t.scheme is not None for t in tensors):
        raise DataError("it holds no quantized tensor to export")
    model = architecture(beside)
    for tensor in tensors:
        if tensor.scheme is not None and (why := obstacle(tensor, export, model, again)) is not None:
            raise refusal(tensor.info.name, tensor.scheme, why, to)
    try:
        if export.joins and not container:
            refuse_mixed(tensors)
        found = make(tensors, beside) if again is None else again.convert(tensors)
    except UsageError as error:
        if error.place:
            raise
        problem = f"{to} cannot store them together: {error.problem}"
        raise UsageError(problem, hint=error.hint) from None
    _check_names(found, tensors)
    return found


def _check_names(found: Conversion, tensors: Sequence[Decided]) -> None:
    """Raise DataError where two tensors would be written under one name. Of most names a hash is looked at alone: all
    those of a million tensors take 300 MB."""
    import numpy as np

    def named() -> Iterator[tuple[str, str]]:
        held = (tensor for tensor in tensors if found.holds(tensor.info.name))
        return ((begin + end, t.info.name) for t in held for begin, own in found.stored(t) for end, _ in own)

    keys = np.frombuffer(array("q", (hash(output) for output, _ in named())), np.int64)
    keys.sort()
    twice = set(keys[1:][keys[1:] == keys[:-1]].tolist())
    owner: dict[str, str] = {}
    for output, name in named() if twice else ():
        if hash(output) in twice and owner.setdefault(output, name) != name:
            both = f"{printable(owner[output])} and {printable(name)}"
            raise DataError(f"{both} would both be written as {printable(output)}")


def stored_otherwise(old: Conversion, new: Conversion, tensors: Iterable[tuple[Decided, Decided]]) -> bool:
    """Whether one conversion stores any of these tensors, as each is in it, otherwise than another one did."""
    for was, now in tensors:
        if old.holds(was.info.name):
            if not new.holds(now.info.name):
                return True
            before, after = old.job(was), new.job(now)
            if (before.outputs, before.kind) != (after.outputs, after.kind):
                return True
    return False
