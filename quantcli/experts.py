"""Sources arranged as a target needs them: experts one by one, or all of one kind in one tensor; the matrices of a
graph as its products sum over them."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantcli import architectures, registry
from quantcli.architectures import UNNAMED
from quantcli.architectures.experts import (
    DOWN,
    EXPERT,
    GATE,
    UP,
    Experts,
    Naming,
    find,
    model_types,
    rows_are_outputs,
)
from quantcli.errors import DataError, UsageError, printable
from quantcli.layouts.config import json_beside
from quantcli.layouts.native import write as native
from quantcli.layouts.writer import as_stored, named
from quantcli.stores import Source, Unsplit, is_stream
from quantcli.stores.derived import Computed, Derived, unchanged
from quantcli.stores.stacked import Bands, Matrix, Rebuilt, stacked
from quantcli.tensors.info import TensorInfo


def arranged(source: Source, to: str | None, *, container: bool = False) -> Source:
    """A source as a target needs it, None for the native layout; the source itself where it already is so.

    container: whether the target is to hold the tensors alone. Raises DataError for a config.json that cannot be read,
    UsageError for a model that the target cannot write again.
    """
    again = named(to).again(source) if to is not None and not container else None
    if again is not None and again.matrices is not None:
        found = again.matrices(source.infos())
        return transposed(source, {name for name, outputs_first in found.items() if not outputs_first})
    config, infos = _config(source), source.infos()
    model = architectures.of(config) or UNNAMED
    layers, unclear = find(infos, config, model)
    naming = native.experts if to is None or container else as_stored if again is not None else named(to).experts
    types, named_layers, unsplit = model_types(config), dict[str, _Layer](), dict[str, Unsplit]()
    for layer in layers:
        wanted = naming(layer, types, model)
        if isinstance(wanted, Naming):
            if not wanted.same(layer):
                named_layers[layer.prefix] = _Layer(layer, wanted)
        elif wanted is not None:
            unsplit.update(dict.fromkeys(layer.stored, Unsplit(wanted, True)))
    by_name = source.named() if unclear else {}
    for name, why in unclear.items():
        if not (naming is native.experts and rows_are_outputs(name, by_name)):
            unsplit[name] = Unsplit(why, False)
    others = {} if to is None or container else dict(named(to).rebuilt(infos, config))
    if is_stream(source):
        named_layers, others = {}, {}
    if not named_layers and not unsplit and not others:
        return source
    tensors = _tensors(source, named_layers, others)
    said = [_described(list(named_layers.values())), _rebuilt_in_words(others)]
    shapes = {tensor.name: tensor.own for own in others.values() for tensor in own if tensor.own}
    return Derived(source, tensors, unsplit=unsplit, arranged="; ".join(filter(None, said)), shapes=shapes)


_ANY_NAMES = ("comfyui", "gguf", "mlx", "native", "onnx")
"""Targets that know the names of mlx-lm, or whose files stand for themselves."""


def loadable(source: Source, to: str | None, *, container: bool = False) -> Source:
    """A source as a target needs it, to be written for that. Raises as `arranged` does, and UsageError for tensors that
    only mlx-lm has, under names that the loaders of the target do not know."""
    found = arranged(source, to, container=container)
    if to is not None and not container and (name := only_in_mlx(found, to)) is not None:
        problem = f"{printable(name, 200)} is in mlx-lm's own arrangement, which loaders of {to} do not know"
        hint = "start from the original model, or use --to mlx or --to native"
        raise UsageError(problem, place=[source.path], hint=hint)
    return found


def only_in_mlx(source: Source, to: str) -> str | None:
    """A tensor of a source under a name that only mlx-lm has for it, where the loaders of a target know others."""
    if to.partition(":")[0] in _ANY_NAMES:
        return None
    from quantcli.layouts.mlx.models import own_name  # here, for its package is all of MLX: 8 ms

    return own_name((info.name for info in source.infos()), model_types(_config(source)))


def _config(source: Source) -> dict[str, Any]:
    """The config.json of a source; empty where it has none."""
    try:
        return json_beside(source.beside, "config.json") or {}
    except DataError as error:
        raise error.within(source.path) from None


def transposed(source: Source, names: Collection[str]) -> Source:
    """A source with some of its matrices transposed."""
    if not names:
        return source
    bands = Bands(source)

    def computed(info: TensorInfo) -> Computed:
        if info.name not in names:
            return unchanged(source, info)
        cols, rows = info.shape
        matrix = Matrix(name=info.name, rows=rows, cols=cols, width=rows)
        return stacked(bands, replace(info, shape=(rows, cols)), [matrix])

    first = min(names)
    others = len(names) - 1
    more = f" and {others} more {'matrix' if others == 1 else 'matrices'}" if others else ""
    said = f"{printable(first, 200)}{more} read transposed"
    return Derived(source, map(computed, source.infos()), arranged=said)


def as_in(source: Source, names: Container[str]) -> Source | None:
    """A source with its experts arranged as they are among these names; None where they are already, or have none."""
    infos = source.infos()
    if not any(EXPERT.search(info.name) and info.name not in names for info in infos):
        return None
    ways = {named(t).experts: t for t in registry.names("layouts", "WRITES") if named(t).experts is not as_stored}
    best, most = None, sum(info.name in names for info in infos)
    for found in (arranged(source, target) for target in (None, *ways.values())):
        count = sum(info.name in names for info in found.infos())
        if count > most:
            best, most = found, count
    return best


@dataclass(frozen=True, slots=True)
class _Layer:
    """The experts of a layer, and what becomes of them."""

    experts: Experts
    naming: Naming

    def tensors(self, infos: dict[str, TensorInfo], bands: Bands) -> Iterator[Computed]:
        """Their tensors under their new names."""
        for part, word in zip((GATE, UP, DOWN), self.naming.words):
            if self.naming.stacked:
                yield from self._named(f"{self.naming.prefix}.{word}", part, slice(None), infos, bands)
        for number in range(self.experts.count if not self.naming.stacked else 0):
            for part, word in zip((GATE, UP, DOWN), self.naming.words):
                name = f"{self.naming.prefix}.{number}.{word}"
                yield from self._named(name, part, slice(number, number + 1), infos, bands)

    def _named(
        self, name: str, part: str, which: slice, infos: dict[str, TensorInfo], bands: Bands
    ) -> Iterator[Computed]:
        for ending, held in (("weight", self.experts.weights), ("bias", self.experts.biases)):
            matrices = held.get(part, ())[which]
            if matrices:
                dtype = infos[matrices[0].name].dtype
                yield stacked(bands, TensorInfo(f"{name}.{ending}", dtype, self._shape(matrices, ending)), matrices)

    def _shape(self, matrices: tuple[Matrix, ...], ending: str) -> tuple[int, ...]:
        one = (matrices[0].rows, matrices[0].cols) if ending == "weight" else (matrices[0].rows,)
        return (len(matrices), *one) if self.naming.stacked else one


def _tensors(source: Source, layers: dict[str, _Layer], others: Mapping[str, Sequence[Rebuilt]]) -> Iterator[Computed]:
    """The tensors of a source with the experts of these layers arranged, where the first of theirs was, and with what
    takes the place of others."""
    bands, infos = Bands(source), {info.name: info for info in source.infos()}
    home = {name: layer for layer in layers.values() for name in layer.experts.stored}
    moved = dict(layer.naming.home for layer in layers.values() if layer.naming.home is not None)
    done = set[str]()
    for info in infos.values():
        layer = home.get(info.name)
        if info.name in others:
            for tensor in others[info.name]:
                yield stacked(bands, TensorInfo(tensor.name, info.dtype, tensor.shape), tensor.matrices)
        elif layer is None:
            yield unchanged(source, info, _moved(info.name, moved))
        elif layer.experts.prefix not in done:
            done.add(layer.experts.prefix)
            yield from layer.tensors(infos, bands)


def _rebuilt_in_words(others: Mapping[str, Sequence[Rebuilt]]) -> str:
    """What takes the place of tensors, in words; empty where nothing does."""
    used = {matrix.name for tensors in others.values() for tensor in tensors for matrix in tensor.matrices}
    left, order, renamed = list[str](), list[str](), list[str]()
    for name, tensors in others.items():
        if name not in used:
            left.append(name)
        elif tensors:
            same = (
                len(tensors) == 1 and not tensors[0].own and _is_whole(tensors[0].matrices) and name != tensors[0].name
            )
            becomes = " and ".join(t.name if same else f"{t.name} {list(t.shape)}" for t in tensors)
            (renamed if same else order).append(f"{name} -> {becomes}")
    said = [
        f"{len(order)} matrices arranged: {order[0]}" if order else "",
        f"{len(renamed)} tensors renamed: {renamed[0]}" if renamed else "",
        f"{len(left)} tensors of other parts left out: {left[0]}" if left else "",
    ]
    return "; ".join(printable(line, 400) for line in said if line)


def _is_whole(matrices: Sequence[Matrix]) -> bool:
    """Whether a tensor is another one as it is stored."""
    return len(matrices) == 1 and not matrices[0].transposed and not matrices[0].first


def _moved(name: str, moved: dict[str, str]) -> str:
    """The name of a tensor beside experts that get another home."""
    own = name.rpartition(".")[0]
    while own and own not in moved:
        own = own.rpartition(".")[0]
    return moved[own] + name.removeprefix(own) if own else name


def _described(layers: list[_Layer]) -> str:
    """What is done to experts, in words; empty where nothing is."""
    if not layers:
        return ""
    first = layers[0]
    experts, naming = first.experts, first.naming
    prefix = experts.prefix
    if not experts.stored[0].startswith(f"{prefix}."):
        prefix = experts.stored[0].rsplit(".", 2)[0]
    before = [name.removeprefix(f"{prefix}.") for name in experts.stored]
    what = f"{experts.count} experts of each of {len(layers)} layers" if layers[1:] else f"{experts.count} experts"
    how = "stacked" if naming.stacked and experts.single else "split" if not naming.stacked else "arranged"
    how = f"transposed and {how}" if experts.transposed else how
    shown = "N.*" if experts.single else f"{{{','.join(sorted(n for n in before if 'bias' not in n))}}}"
    words = [word for part, word in zip((GATE, UP, DOWN), naming.words) if part in experts.weights]
    word = f"{'' if naming.stacked else 'N.'}{{{','.join(words)}}}.weight"
    return printable(f"{what} {how}: {prefix}.{shown} -> {naming.prefix}.{word}", 400)
