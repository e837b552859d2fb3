"""Checkpoint folders: an index, its shards, and all their tensors as one model.

The shards are safetensors files, or files of torch.save where a folder has none of those.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from quantcli.errors import DataError, UsageError, listed, printable
from quantcli.stores import foreign, places
from quantcli.stores.compact import Joined
from quantcli.stores.files import InputFile
from quantcli.stores.homes import Homes, from_index
from quantcli.stores.places import leads_outside, read_small
from quantcli.stores.safetensors import SafetensorsFile
from quantcli.stores.source import HeaderDocument, Source
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INDEX = "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of the files of torch.save."""
_ENDING = r"(?:safetensors|bin|pt|pth|ckpt)"
_INDEX = re.compile(r".*\.safetensors\.index(?:\.\w+)?\.json")
_PICKLED_INDEX = re.compile(r".*\.bin\.index(?:\.\w+)?\.json")
_USUAL = re.compile(r"(?:diffusion_)?pytorch_model\b.*")
"""Names under which transformers and diffusers save pickles."""
TRAINING = re.compile(r"(?:training_args\.bin|(?:optimizer|scheduler|scaler|rng_state)\w*\.(?:pt|pth|bin))")
"""Names of what trainers save beside a model."""
_NUMBERED = re.compile(rf"(.*)-(\d{{5}})-of-(\d{{5}})\.({_ENDING})")
_SMALL = 1 << 26
"""Largest size in bytes of a configuration, a vocabulary or a model card."""

_MISTRAL = "consolidated"
_VARIANT = r"(?:fp|bf|int)\d+\w*|(?:non_)?ema"
"""What diffusers and transformers write into names for weights in another precision, or without averaging."""

_NUMBER = r"-\d{5}-of-\d{5}"


class _Name(NamedTuple):
    """What the name of a weight file or an index tells: what it has in common with those of the same weights, and the
    variant, empty where it is none."""

    stem: str
    variant: str


def _listed(folder: str, extension: str | tuple[str, ...]) -> list[str]:
    """File names of a folder with this ending, or one of these, without hidden ones."""
    return sorted(n for n in places.names(folder) if n.endswith(extension) and not n.startswith("."))


def _is_pickled(folder: str) -> bool:
    """Whether a folder has no safetensors file, and no index of such: if any weights, then pickles."""
    return not _listed(folder, ".safetensors") and not any(_INDEX.fullmatch(n) for n in _listed(folder, ".json"))


def _weights(folder: str) -> list[str]:
    """File names of the weights of a folder: pickles only where there is nothing else, and of those the usual ones
    where there are any."""
    if not _is_pickled(folder):
        return _listed(folder, ".safetensors")
    names = [n for n in _listed(folder, _PICKLED) if not TRAINING.fullmatch(n)]
    names = [n for n in names if not places.exists(os.path.join(folder, f"{os.path.splitext(n)[0]}.xml"))]  # OpenVINO
    return [n for n in names if _USUAL.fullmatch(n)] or names


def has_weights(folder: str) -> bool:
    """Whether a folder itself holds files of weights."""
    return bool(_weights(folder))


def _parsed(name: str, variant: str | None = None) -> _Name:
    """What a name tells. variant: one that is asked for, which may have any name.

    >>> _parsed("model-00001-of-00002.safetensors"), _parsed("model.safetensors.index.fp16.json")
    (_Name(stem='model', variant=''), _Name(stem='model', variant='fp16'))
    """
    known = f"{re.escape(variant)}|{_VARIANT}" if variant else _VARIANT
    expression = rf"(.+?)(?:{_NUMBER})?(?:\.({known}))?(?:{_NUMBER})?\.{_ENDING}(?:\.index(?:\.({known}))?\.json)?"
    match = re.fullmatch(expression, name)
    return _Name(match[1], match[2] or match[3] or "") if match else _Name(name, "")


def without_variant(name: str) -> str:
    """The name of a weight file or an index as loaders look for it when they are not asked for a variant.

    >>> without_variant("model.fp16-00001-of-00002.safetensors"), without_variant("model.safetensors.index.fp16.json")
    ('model-00001-of-00002.safetensors', 'model.safetensors.index.json')
    """
    number, ending = re.search(_NUMBER, name), re.search(rf"\.{_ENDING}(?=\.index|$)", name)
    stem, variant = _parsed(name)
    if not variant or ending is None:
        return name
    index = ".index.json" if name.endswith(".json") else ""
    return f"{stem}{number[0] if number else ''}{ending[0]}{index}"


def output_name(name: str) -> str:
    """The name that a weight file or an index gets when its weights are written: that of a safetensors file, without a
    variant.

    >>> output_name("pytorch_model.fp16-00001-of-00002.bin"), output_name("pytorch_model.bin.index.json")
    ('model-00001-of-00002.safetensors', 'model.safetensors.index.json')
    """
    name = without_variant(name)
    if not name.endswith(_PICKLED) and not _PICKLED_INDEX.fullmatch(name):
        return name
    return re.sub(rf"\.{_ENDING}(?=\.index|$)", ".safetensors", re.sub(r"^pytorch_model\b", "model", name))


def _copies(names: Sequence[str], variant: str | None = None) -> dict[str, str]:
    """The weight files, or indexes, that duplicate the weights of others among these, each with an explanation.
    variant: the one that is to be taken, None for the weights that are none."""
    told = {name: _parsed(name, variant) for name in names}
    asked = {n.stem for n in told.values() if n.variant == (variant or "")}
    found = {}
    for name, (stem, own) in told.items():
        if stem == _MISTRAL and any(n.stem != stem for n in told.values()):
            found[name] = "the same weights under Mistral's names"
        elif variant is None and own and stem in asked:
            found[name] = f"a variant of {stem}.safetensors" if ".safetensors" in name else f"a variant of {stem}"
        elif variant is not None and own != variant and stem in asked:
            found[name] = f"not the variant {variant}"
    return found


def variants(folder: str) -> list[str]:
    """The variants of weights in a folder."""
    names = [*_weights(folder), *_indexes(folder)]
    return sorted({found for name in names if (found := _parsed(name).variant)})


def has_variant(path: str, variant: str) -> bool:
    """Whether a path is a folder that has this variant of its weights."""
    if not places.is_folder(path):
        return False
    return any(_parsed(name, variant).variant == variant for name in [*_weights(path), *_indexes(path)])


def _check_variant(folder: str, names: Sequence[str], variant: str | None) -> None:
    """Raise UsageError where a folder does not have the variant that is asked for, DataError where there are several
    and none is asked for."""
    if variant is not None and all(_parsed(n, variant).variant != variant for n in names):
        known = ", ".join(variants(folder))
        hint = f"there is {known}" if known else "leave it out: there are no variants"
        raise UsageError("no such variant in this folder", place=[folder, f"--variant {printable(variant)}"], hint=hint)
    told = [_parsed(n) for n in names if variant is None]
    several = sorted({n.variant for n in told})
    if len(several) > 1 and all(several) and len({n.stem for n in told}) == 1:
        hint = f"choose one with --variant, such as --variant {several[0]}"
        raise DataError(
            f"several variants, and none without a suffix: {_named(sorted(names))}", place=[folder], hint=hint
        )


def _indexes(folder: str) -> list[str]:
    """File names of the indexes of a folder; of pickles only where there is nothing else."""
    wanted = _PICKLED_INDEX if _is_pickled(folder) else _INDEX
    return [name for name in _listed(folder, ".json") if wanted.fullmatch(name)]


def _index_of(folder: str, variant: str | None) -> str:
    """The index of a folder; empty where there is none. Raises DataError where there are several."""
    files, names = _weights(folder), _indexes(folder)
    copies = _copies([*files, *names], variant)
    names = [n for n in names if n not in copies]
    _check_variant(folder, [n for n in [*files, *names] if n not in copies], variant)
    if INDEX in names:
        return INDEX
    if len(names) > 1:
        raise DataError(f"several indexes: {_named(names)}", place=[folder], hint="name one of them")
    return names[0] if names else ""


def _named(names: Sequence[str], most: int = 4) -> str:
    return listed([printable(n, 200) for n in names], most)


def _without_index(folder: str, variant: str | None) -> list[str]:
    """The files of a folder without an index that clearly form one model: a single file, or all shards of one
    numbering."""
    names = _weights(folder)
    if not names:
        problem = "no .safetensors file, no index and no PyTorch checkpoint in this folder"
        raise DataError(problem, place=[folder], hint=elsewhere(folder))
    copies = _copies([*names, *_indexes(folder)], variant)
    names = [name for name in names if name not in copies]
    sets = {match.group(1, 3) if (match := _NUMBERED.fullmatch(name)) else name for name in names}
    if len(sets) > 1:
        hint = "name one of them, or move the others away"
        raise DataError(f"several files that are not shards of one model: {_named(names)}", place=[folder], hint=hint)
    held = set(names)
    for stem, count, ending in sorted({m.group(1, 3, 4) for n in names if (m := _NUMBERED.fullmatch(n))}):
        if int(count) > 100_000:
            raise DataError(f"{count} shards", place=[folder, names[0]])
        every = (f"{stem}-{i + 1:05d}-of-{count}.{ending}" for i in range(int(count)))
        missing = next((name for name in every if name not in held), None)
        if missing is not None:
            raise DataError(f"shard {missing} is missing", place=[folder])
    return names


def elsewhere(folder: str) -> str | None:
    """The hint for a folder without weights: subfolders that hold some, as in a pipeline of several models, or files of
    other kinds."""
    below = sorted(name for name in places.folders(folder) if not name.startswith("."))
    found = [name for name in below if _weights(os.path.join(folder, name))]
    if found:
        return f"there are some in {_named(found)}: name one of these folders"
    return foreign.among(folder, places.names(folder))


def _opened(path: str) -> Source:
    """One shard as a source."""
    file = places.opened(path, hold=False)
    if path.endswith(".safetensors"):
        return SafetensorsFile(file)
    from quantcli.stores.torch_file import TorchFile  # most folders have no pickles

    return TorchFile(file)


def _more(names: Sequence[str]) -> str:
    """The end of a message about the first of these names, where the problem applies to more of them."""
    return f"; the same holds for {_named(names[1:], 3)}" if len(names) > 1 else ""


class Checkpoint(Source):
    """A folder of shards (or the path of its index) as one source. aside: weight files of the folder that are not part
    of the model, and why. variant: which weights to take where there are several, such as `fp16`."""

    folder: str

    def __init__(self, path: str, variant: str | None = None) -> None:
        self.path, self.variant = path, variant
        if places.is_folder(path):
            self.folder, name = path, _index_of(path, variant)
            index = os.path.join(path, name) if name else ""
        else:
            self.folder, index = os.path.dirname(path) or ".", path
        self.index = index
        listed = from_index(index) if index else None
        names = sorted(listed.shards) if listed else _without_index(self.folder, variant)
        self.aside = self._others(names)
        self._shards: dict[str, Source] = {}
        self._home = Homes(listed)
        paths = [os.path.join(self.folder, name) for name in names]
        for name, path_of in zip(names, paths):
            if not places.exists(path_of):
                raise DataError("no such file, though the index names it", place=[index, name])
        for name, shard in zip(names, places.each(_opened, paths)):
            self._shards[name] = shard
            self._home.add(name, shard, path)
        if listed is not None:
            self._check()
        for before, after in pairwise(file for shard in self._shards.values() for file in shard.inputs()):
            before.precedes(after)
        self.kind = next(iter(self._shards.values())).kind
        self.warnings = places.unlisted(self.folder)
        self.warnings += [f"{name}: {line}" for name, shard in self._shards.items() for line in shard.warnings]
        self.metadata: dict[str, str] = {}
        for shard in self.shards.values():
            self.metadata.update(shard.metadata)

    @property
    def shards(self) -> dict[str, Source]:
        """Its files by name."""
        return self._shards

    def _others(self, names: Sequence[str]) -> dict[str, str]:
        """Weight files of the folder that are not part of the model, and why."""
        found = _weights(self.folder) + _indexes(self.folder)
        copies = _copies(found, self.variant)
        unlisted = f"not named by {printable(os.path.basename(self.index), 120)}"
        ours = {*names, os.path.basename(self.index)}
        return {name: copies.get(name, unlisted) for name in found if name not in ours}

    def _check(self) -> None:
        missing = self._home.missing()
        if missing:
            shard = missing[0][1]
            raise DataError(
                f"the index puts it in {printable(shard)}, which does not hold it{_more([t for t, _ in missing])}",
                place=[self.index, printable(missing[0][0])],
            )
        unlisted = self._home.unlisted()
        if unlisted:
            raise DataError(
                f"it is in a shard, but the index does not list it{_more(unlisted)}",
                place=[self.index, printable(unlisted[0])],
            )

    def beside(self, name: str) -> bytes | None:
        """A small file of the folder; None when there is none. Raises DataError for a link that leads out of it."""
        path = os.path.join(self.folder, name)
        if not places.exists(path):
            return None
        if leads_outside(self.folder, name):
            raise DataError("this is a link that leads out of its folder", place=[path])
        return read_small(path, _SMALL)

    @property
    def documents(self) -> list[HeaderDocument]:
        """The quantcli documents of the shards, each with the tensors of its shard."""
        return [document for shard in self.shards.values() for document in shard.documents]

    def infos(self) -> Sequence[TensorInfo]:
        return Joined([shard.infos() for shard in self.shards.values()])

    def named(self) -> Mapping[str, TensorInfo]:
        return self._home

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        self._home.shard(name).read(name, start, buffer)

    def release(self, name: str) -> None:
        self._home.shard(name).release(name)

    def read_runs(self, name: str, start: int, step: int, runs: NDArray[np.uint8]) -> None:
        self._home.shard(name).read_runs(name, start, step, runs)

    def files(self) -> Sequence[InputFile]:
        return [file for shard in self.shards.values() for file in shard.files()]

    def check_unchanged(self) -> None:
        for shard in self.shards.values():
            shard.check_unchanged()

    def close(self) -> None:
        for shard in self.shards.values():
            shard.close()
