"""Checkpoint folders: an index, its shards, and all their tensors as one model."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantcli.errors import DataError, printable
from quantcli.stores.files import InputFile, leads_outside, read_small
from quantcli.stores.safetensors import SafetensorsFile
from quantcli.stores.source import HeaderDocument, Source
from quantcli.strict import strict_json
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INDEX = "model.safetensors.index.json"
_NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")
_SMALL = 1 << 26
"""Largest size in bytes of a configuration, a vocabulary or a model card."""

_MISTRAL = "consolidated"
_VARIANT = re.compile(r"(?:fp|bf|int)\d+\w*|(?:non_)?ema")
"""Suffixes of diffusers and transformers before the extension for weights in another precision, or without
averaging."""


def _shard_name(name: object, index: str) -> str:
    if not isinstance(name, str) or not name or name in (".", "..") or re.search(r"[/\\\0]", name):
        raise DataError(
            f"shard name {printable(repr(name), 120)} is not a plain file name in its folder", place=[index]
        )
    return name


def _from_index(index: str) -> dict[str, str]:
    """The weight map of an index: tensor name -> shard file."""
    document = strict_json(read_small(index, 100_000_000), index)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError("it has no weight_map of tensor names to shard files", place=[index])
    return {tensor: _shard_name(shard, index) for tensor, shard in weight_map.items()}


def _listed(folder: str, extension: str) -> list[str]:
    """File names of a folder with this ending, without hidden ones."""
    try:
        return sorted(n for n in os.listdir(folder) if n.endswith(extension) and not n.startswith("."))
    except OSError as error:
        raise DataError(error.strerror or str(error), place=[folder]) from None


def _stem(name: str) -> str:
    """A weight file's or an index's name without number and extension.

    >>> _stem("model-00001-of-00002.safetensors"), _stem("model.fp16.safetensors.index.json")
    ('model', 'model.fp16')
    """
    numbered = _NUMBERED.fullmatch(name)
    return numbered[1] if numbered else name.removesuffix(".index.json").removesuffix(".safetensors")


def _copies(names: Sequence[str]) -> dict[str, str]:
    """The weight files, or indexes, that duplicate the weights of others among these, each with an explanation."""
    stems = {_stem(name) for name in names}
    found = {}
    for name in names:
        stem = _stem(name)
        base, dot, variant = stem.rpartition(".")
        if stem == _MISTRAL and len(stems) > 1:
            found[name] = "the same weights under Mistral's names"
        elif dot and base in stems and _VARIANT.fullmatch(variant):
            found[name] = f"a variant of {base}.safetensors"
    return found


def _index_of(folder: str) -> str:
    """The index of a folder; empty where there is none. Raises DataError where there are several."""
    names = _listed(folder, ".safetensors.index.json")
    if INDEX in names:
        return INDEX
    copies = _copies([*_listed(folder, ".safetensors"), *names])
    names = [n for n in names if n not in copies]
    if len(names) > 1:
        raise DataError(f"several indexes: {_named(names)}", place=[folder], hint="name one of them")
    return names[0] if names else ""


def _named(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(n, 200) for n in names[:most]) + more


def _without_index(folder: str) -> list[str]:
    """The .safetensors files of a folder without an index that clearly form one model: a single file, or all shards of
    one numbering."""
    names = _listed(folder, ".safetensors")
    if not names:
        raise DataError("no .safetensors file and no index in this folder", place=[folder], hint=_elsewhere(folder))
    copies = _copies(names)
    names = [name for name in names if name not in copies]
    sets = {match.group(1, 3) if (match := _NUMBERED.fullmatch(name)) else name for name in names}
    if len(sets) > 1:
        hint = "name one of them, or move the others away"
        raise DataError(f"several files that are not shards of one model: {_named(names)}", place=[folder], hint=hint)
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match:
            stem, _, count = match.groups()
            if int(count) > 100_000:
                raise DataError(f"{count} shards", place=[folder, name])
            missing = [n for i in range(int(count)) if (n := f"{stem}-{i + 1:05d}-of-{count}.safetensors") not in names]
            if missing:
                raise DataError(f"shard {missing[0]} is missing", place=[folder])
    return names


def _elsewhere(folder: str) -> str | None:
    """The hint for a folder without weights: subfolders that hold some, as in a pipeline of several models, or the
    format its weights should be saved in."""
    with os.scandir(folder) as entries:
        below = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    found = [name for name in below if _listed(os.path.join(folder, name), ".safetensors")]
    if found:
        return f"there are some in {_named(found)}: name one of these folders"
    pickled = [name for ending in (".bin", ".pt", ".pth") for name in _listed(folder, ending)]
    if pickled:
        how = "save the model as safetensors first, as save_pretrained of transformers does"
        return f"{_named(pickled)} may be a Python pickle, which is never loaded: {how}"
    return None


def _more(names: Sequence[str]) -> str:
    """The end of a message about the first of these names, where the problem applies to more of them."""
    return f"; the same holds for {_named(names[1:], 3)}" if len(names) > 1 else ""


class Checkpoint(Source):
    """A folder of shards (or the path of its index) as one source. aside: weight files of the folder that are not part
    of the model, and why."""

    kind = "safetensors"
    folder: str

    def __init__(self, path: str) -> None:
        self.path = path
        if os.path.isdir(path):
            self.folder, name = path, _index_of(path)
            index = os.path.join(path, name) if name else ""
        else:
            self.folder, index = os.path.dirname(path) or ".", path
        self.index = index
        weight_map = _from_index(index) if index else None
        names = sorted(set(weight_map.values())) if weight_map else _without_index(self.folder)
        self.aside = self._others(names)
        self._shards: dict[str, SafetensorsFile] = {}
        self._home: dict[str, SafetensorsFile] = {}
        for name in names:
            if not os.path.lexists(os.path.join(self.folder, name)):
                raise DataError("no such file, though the index names it", place=[index, name])
            shard = SafetensorsFile(InputFile(os.path.join(self.folder, name), hold=False))
            self._shards[name] = shard
            for info in shard.infos():
                if info.name in self._home:
                    raise DataError(
                        f"it is in two shards, {os.path.basename(self._home[info.name].path)} and {name}",
                        place=[path, printable(info.name)],
                    )
                self._home[info.name] = shard
        if weight_map is not None:
            self._check(weight_map)
        self.metadata: dict[str, str] = {}
        for shard in self.shards.values():
            self.metadata.update(shard.metadata)

    @property
    def shards(self) -> dict[str, SafetensorsFile]:
        """Its files by name."""
        return self._shards

    def _others(self, names: Sequence[str]) -> dict[str, str]:
        """Weight files of the folder that are not part of the model, and why."""
        found = _listed(self.folder, ".safetensors") + _listed(self.folder, ".safetensors.index.json")
        copies = _copies(found)
        unlisted = f"not named by {printable(os.path.basename(self.index), 120)}"
        ours = {*names, os.path.basename(self.index)}
        return {name: copies.get(name, unlisted) for name in found if name not in ours}

    def _check(self, weight_map: dict[str, str]) -> None:
        missing = []
        for tensor, shard in weight_map.items():
            home = self._home.get(tensor)
            if home is None or os.path.basename(home.path) != shard:
                missing.append((tensor, shard))
        if missing:
            tensor, shard = missing[0]
            raise DataError(
                f"the index puts it in {printable(shard)}, which does not hold it{_more([t for t, _ in missing])}",
                place=[self.index, printable(tensor)],
            )
        unlisted = [name for name in self._home if name not in weight_map]
        if unlisted:
            raise DataError(
                f"it is in a shard, but the index does not list it{_more(unlisted)}",
                place=[self.index, printable(unlisted[0])],
            )

    def beside(self, name: str) -> bytes | None:
        """A small file of the folder; None when there is none. Raises DataError for a link that leads out of it."""
        path = os.path.join(self.folder, name)
        if not os.path.lexists(path):
            return None
        if leads_outside(self.folder, name):
            raise DataError("this is a link that leads out of its folder", place=[path])
        return read_small(path, _SMALL)

    @property
    def documents(self) -> list[HeaderDocument]:
        """The quantcli documents of the shards, each with the tensors of its shard."""
        return [document for shard in self.shards.values() for document in shard.documents]

    def infos(self) -> Sequence[TensorInfo]:
        return [info for shard in self.shards.values() for info in shard.infos()]

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        self._home[name].read(name, start, buffer)

    def read_runs(self, name: str, start: int, step: int, runs: NDArray[np.uint8]) -> None:
        self._home[name].read_runs(name, start, step, runs)

    def files(self) -> Sequence[InputFile]:
        return [shard.file for shard in self.shards.values()]

    def check_unchanged(self) -> None:
        for shard in self.shards.values():
            shard.check_unchanged()

    def close(self) -> None:
        for shard in self.shards.values():
            shard.close()
