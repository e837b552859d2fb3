"""Writes models whose codes are only moved to another layout into a folder: shard by shard, with index and config."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from quantcli.folders import card
from quantcli.folders.sidefiles import CARD, CONFIG, SideFiles
from quantcli.folders.write import WrittenFile, describe, is_bucket, with_loading
from quantcli.layouts.config import json_beside
from quantcli.passes import outputs
from quantcli.passes.completion import Completion
from quantcli.passes.outputs import Cut, OneFile
from quantcli.passes.write import Outcome
from quantcli.stores import Source, destinations
from quantcli.stores.destinations import Part
from quantcli.stores.pipelines import prefixed

if TYPE_CHECKING:
    from quantcli.passes.export import Export
    from quantcli.tensors.decided import Decided


@dataclass(frozen=True, slots=True)
class Moved:
    """What was written of a model whose codes were moved: bytes of its weights, and which tensors no longer stand for
    the same numbers."""

    size: int
    rounded: Set[str]


def move(
    exports: Mapping[str, Export], path: str, side: SideFiles, *, home: str | None, force: bool
) -> dict[str, Moved]:
    """Write models in another layout into a folder. exports: by their subfolders, a single one under an empty name;
    home: the folder they are in."""
    planned = {name: _files_of(export) for name, export in exports.items()}
    sizes = {name: sum(file.size for _, file in files) for name, files in planned.items()}
    first, original = next(iter(exports.values())), card.beside(home, side)
    room = sum(sizes.values()) + side.size
    largest = max((file.size for files in planned.values() for _, file in files), default=0)
    destinations.check_space(path, room, home or first.model.source.path, largest=lambda: largest)
    found = {}
    with destinations.output_folder(path, force=force) as out:
        out.begin(())
        side.copy_to(out)
        for name, export in exports.items():
            source, model, part = export.model.source, export.outgoing, Part.of(out, name)
            rounded = set[str]()

            def made(name: str, rounded: set[str], outcome: Outcome) -> None:
                rounded |= outcome.rounded
                out.finished(name)

            with Completion(beside=is_bucket(path)) as after:
                for shard, file in planned[name]:
                    then = partial(made, part.named(file.name), rounded)
                    export.files(shard, [file], part.temp, force=True, within=part.temp, after=after, then=then)
            files = [WrittenFile.of(file, model) for _, file in planned[name]]
            describe(source, part, model, files, json_beside(source.beside, CONFIG), model.conversion.config)
            found[name] = Moved(sizes[name], rounded)
        if original is not None:
            told = [prefixed(n, line) for n, export in exports.items() for line in export.outgoing.conversion.notes]
            out.write(CARD, with_loading(original, first.outgoing, told))
        for export in exports.values():
            export.model.source.check_unchanged()
        out.publish()
    return found


def _files_of(export: Export) -> list[tuple[Source, OneFile]]:
    """The files of a model that is moved, each with the shard it is made from: what of it is stored by the layout."""
    source, model = export.model.source, export.outgoing
    shards: Mapping[str, Source] = source.shards if source.folder is not None else {outputs.NAME: source}
    home = {info.name: name for name, shard in shards.items() for info in shard.infos()}
    own: dict[str | None, list[Decided]] = {name: [] for name in (*shards, None)}
    for tensor in filter(lambda t: model.conversion.holds(t.info.name), model.tensors):
        name = tensor.info.name
        own[home.get(name, home.get(f"{name}_packed"))].append(tensor)
    held, files = [(name, shard) for name, shard in shards.items() if own[name]], list[tuple[Source, OneFile]]()
    for number, (name, shard) in enumerate(held):
        called = outputs.loadable(name, number, len(held))
        cut = Cut(called, tuple(t.info.name for t in own[name]), shard.metadata, 0, outputs.intact(shard))
        part = replace(model, tensors=own[name], whole=model)
        files.append((shard, outputs.safetensors(part, cut, source.path)))
    return files
