"""Whether a model was made from a source, by the digests of weights that quantcli's own files record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantcli.errors import DataError, printable
from quantcli.matching import open_original, paired
from quantcli.models import Model, open_model
from quantcli.passes.digests import digests
from quantcli.passes.tiles import Progress, begun
from quantcli.stores import signals
from quantcli.tensors.digest import kind_of

if TYPE_CHECKING:
    from quantcli.stores.pipelines import Member

HINT = "name the model it was made from (of a folder with several variants, the file), or leave out --source"


def check_source(path: str, source: str, *, threads: int, progress: Progress | None = None) -> int:
    """How many tensors of a model have a digest of what they were made from; the source has all of these. 0 for what
    another tool's layout stores, which has no digests.

    Raises DataError for the first tensor that the source lacks or has other bytes of, QuantcliError for what cannot be
    read.
    """
    checked = 0
    for pair in paired(source, path):
        if pair.after is None:
            continue
        with open_model(pair.after.path, variant=pair.after.variant) as model:
            if not model.is_native:
                continue
            if pair.before is None:
                raise DataError(f"{printable(pair.name)} is not in the source", place=[source], hint=HINT)
            checked += _checked(model, pair.before, source, threads, progress)
    return checked


def _checked(model: Model, before: Member, source: str, threads: int, progress: Progress | None) -> int:
    """The number of digests in one model, all of which are those of its source."""
    known = {name: t.stored.digest for name, t in model.stored.items() if t.stored.digest is not None}
    with open_original(before.path, model.stored, as_float=_of_signal(model, before), variant=before.variant) as floats:
        original = floats.stored
        lacking = next((name for name in known if name not in original), None)
        if lacking is not None:
            raise DataError("the source has no such tensor", place=[source, printable(lacking)], hint=HINT)
        wanted = {name: (original[name].stored.info.nbytes, kind_of(digest)) for name, digest in known.items()}
        advance = begun(progress, sum(nbytes for nbytes, _ in wanted.values()))
        found = digests(original.source, wanted, threads=threads, advance=advance)
        original.source.check_unchanged()
    other = next((name for name in known if found[name] != known[name]), None)
    if other is not None:
        problem = "these are not the weights that the model was made from (digests differ)"
        raise DataError(problem, place=[source, printable(other)], hint=HINT)
    return len(known)


def _of_signal(model: Model, before: Member) -> bool:
    """Whether integers of the source were quantized as a signal."""
    with open_original(before.path, model.stored, variant=before.variant) as floats:
        return signals.may_hold(floats.source) and any(
            t.scheme is not None and name in floats.stored and floats.stored[name].dtype in signals.DIVISORS
            for name, t in model.stored.items()
        )
