"""An output as a whole, a file or a folder: what it will take, and how it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from quantcli.errors import DataError, UsageError
from quantcli.folders import cut
from quantcli.folders.move import Moved
from quantcli.folders.move import move as into_folder
from quantcli.folders.sidefiles import SideFiles
from quantcli.layouts.native import parts
from quantcli.layouts.writer import named
from quantcli.passes import outputs
from quantcli.passes.outputs import Outgoing
from quantcli.planning.plan import Plan
from quantcli.stores import Source

if TYPE_CHECKING:
    from quantcli.passes.export import Export


def size_of(source: Source, plan: Plan) -> int:
    """Bytes of all files of weights a plan leads to, exactly: of a folder of them, where the source is one and the
    target is not a file of its own. Raises UsageError and DataError for what the target does not store."""
    model = outputs.planned(plan, source, digest="xxh3")
    folder = source.folder is not None and (model.to is None or not named(model.to).extension)
    return size_of_model(source, model, folder=folder)


def size_of_model(source: Source, model: Outgoing, *, folder: bool, base: str = "model") -> int:
    """Bytes of all files of weights of a model; base: the name of a file."""
    if folder:
        limit = model.request.max_shard_size if model.request is not None else None
        return cut.planned_size(source, model, limit)
    return sum(f.size for f in outputs.files(model, outputs.whole(source, model, base), source.path))


def nbytes_of(source: Source, plan: Plan) -> Callable[[str], int]:
    """Bytes of each tensor in the output of a plan, by name; in the native layout where the target does not store all
    of them together."""
    model = outputs.planned(plan, source, digest="none")
    try:
        model.conversion  # noqa: B018 - found out here
    except (UsageError, DataError):
        own = {t.info.name: parts.nbytes(t) for t in plan.tensors}
        return own.__getitem__
    return model.nbytes


def move(
    exports: Mapping[str, Export], path: str, *, home: str | None, folder: bool, force: bool, side: SideFiles
) -> dict[str, Moved]:
    """Write models in another layout into a file or folder at its real path. exports: by name, a single one under an
    empty name; home: the folder they are in. Raises QuantcliError."""
    if not folder:
        from quantcli.passes.export import to_file

        return {"": Moved(*to_file(exports[""], path, force=force))}
    return into_folder(exports, path, side, home=home, force=force)
