"""Two models, one made from the other or not, with their tensors under matching names; components of pipelines by the
names of their folders."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quantcli import architectures
from quantcli.architectures import UNNAMED
from quantcli.errors import UsageError, printable
from quantcli.experts import arranged, as_in, transposed
from quantcli.floats import decoded
from quantcli.layouts.config import json_beside
from quantcli.layouts.native import model as native
from quantcli.layouts.writer import named
from quantcli.models import Model, View, open_model
from quantcli.naming import family_of, of_checkpoint, renamed
from quantcli.stores.checkpoint import has_variant
from quantcli.stores.pipelines import Member, members

if TYPE_CHECKING:
    from quantcli.layouts.gguf.family import Family
    from quantcli.stores import Source


@dataclass(frozen=True, slots=True)
class Pair:
    """The models of one name at two paths; None where a path has none, or no path was named. name: empty where each
    path is one model."""

    name: str
    before: Member | None
    after: Member | None


def paired(before: str | None, after: str, variant: str | None = None) -> list[Pair]:
    """The models of two paths side by side, of pipelines those of the second first. before: None where there is but one
    path. variant: the weights to take where a path has them.

    Raises UsageError where only one path is a pipeline and where none has the variant, DataError for a pipeline without
    weights.
    """
    if before is None:
        return [Pair(member.name, None, member) for member in members(after, variant)]
    sides = [members(path) for path in (before, after)]
    has = [variant is not None and any(has_variant(m.path, variant) for m in side) for side in sides]
    if variant is not None and not any(has):
        place = [before, after, f"--variant {printable(variant)}"]
        raise UsageError("neither folder has this variant", place=place, hint="leave it out")
    ours, theirs = (
        {m.name: m for m in (members(path, variant) if own else side)}
        for path, own, side in zip((before, after), has, sides)
    )
    for path, side, other in ((before, ours, after), (after, theirs, before)):
        if "" not in side and "" in (ours | theirs):
            problem = f"this is a pipeline of several models, and {printable(other, 200)} is one model"
            raise UsageError(problem, place=[path], hint=f"name the folder of a component: {', '.join(side)}")
    return [Pair(name, ours.get(name), theirs.get(name)) for name in dict.fromkeys([*theirs, *ours])]


@contextlib.contextmanager
def open_original(
    path: str, names: Container[str], *, as_float: bool = False, variant: str | None = None
) -> Iterator[Model]:
    """The floats that a model with tensors of these names was made from: decoded where they are codes themselves, and
    with experts arranged as they are there. Where the names are those of codes and scales too, each was taken by its
    dtype. as_float: whether the integers of a .npy or .npz file are a signal. variant: which weights of a folder to
    take, where it has several."""
    with open_model(path, as_float=as_float, variant=variant) as model:
        source = model.source
        plain = not model.is_native and all(name in names for name in model.stored)
        views = _named_as(model, names)
        if views is not model or (source.kind != "gguf" and not plain and model.quantized):
            source = decoded(source, views)
        source = as_in(source, names) or source
        yield model if source is model.source else Model(native.Model(source), path, {})


def _named_as(model: Model, names: Container[str]) -> Mapping[str, View]:
    """The tensors of a model that quantcli quantized into one with these names: those of a GGUF or of mlx-lm under the
    names and in the order of a checkpoint, unless it has more of the names as it is."""
    views = of_checkpoint(model)
    if views is model or sum(name in names for name in views) < max(sum(name in names for name in model), 1):
        return model
    return views


def under_one_name(a: Model, b: Model) -> tuple[Mapping[str, View], Mapping[str, View], str]:
    """The tensors of both under matching names, and a note on how they were matched; empty when they matched already.

    Names are mapped where none is in both, and one side is a GGUF of a known architecture and the other is not. Experts
    of a model that quantcli did not quantize are arranged as they are in the other one, and the matrices of an ONNX
    model transposed.
    """
    ours, theirs, note = _under_names(a, b)
    notes = [note] if note else []
    for model in (a, b):
        own, other = (ours, theirs) if model is a else (theirs, ours)
        if model.source.kind == "gguf" or model.is_native:
            continue
        floats = decoded(model.source, model) if model.quantized else model.source
        found = as_in(floats, other) or (None if model.quantized else _turned_as(floats, own, other))
        if found is None:
            continue
        notes.append(f"{model.path}: {found.arranged}")
        views = Model(native.Model(found), model.path, {})
        ours, theirs = (views, theirs) if model is a else (ours, views)
    return ours, theirs, "; ".join(notes)


def without_left_out(
    before: Mapping[str, View], views: Mapping[str, View], original: Model, model: Model
) -> tuple[Mapping[str, View], str]:
    """The tensors of an original, under the names that `under_one_name` gave them, without those that models in the
    other's format do not hold, and a note on these; empty where there are none.

    They are all layers that predict further tokens, where the other one has none of them, and what llama.cpp does not
    use.
    """
    alone, config = before.keys() - views.keys(), json_beside(original.source.beside, "config.json") or {}
    if not alone:
        return before, ""
    drafts = (architectures.of(config) or UNNAMED).drafts
    left = set() if any(map(drafts, views)) else set(filter(drafts, alone))
    if model.source.kind == "gguf":
        from quantcli.layouts.gguf.model import unused  # here, for most models need none of it

        left |= alone & unused([view.info for view in before.values()], config)
    if not left:
        return before, ""
    more = f" and {len(left) - 1} more are" if len(left) > 1 else " is"
    note = f"{printable(min(left), 200)}{more} not in it: it has no such parts of the model"
    return {name: view for name, view in before.items() if name not in left}, f"{model.path}: {note}"


def _turned_as(source: Source, own: Mapping[str, View], other: Mapping[str, View]) -> Source | None:
    """A float model with a graph, its matrices transposed where those of the other one are; None where none is. Of a
    float model without a graph, square ones are taken to be as those are that can be told apart."""
    again = named("onnx").again(source)
    if again is None or again.matrices is None:
        return None
    mine = again.matrices([v.info for v in own.values()])
    both = [n for n in mine if n in other]
    plain = [n for n in both if not mine[n] and other[n].scheme is None]
    shapes = {n: (own[n].info.shape, other[n].info.shape) for n in plain}
    other_way = any(ours != theirs and ours == theirs[::-1] for ours, theirs in shapes.values())
    turned = {n for n in both if other[n].outputs_first not in (None, mine[n])} | set(plain if other_way else ())
    return transposed(source, turned) if turned else None


def _under_names(a: Model, b: Model) -> tuple[Mapping[str, View], Mapping[str, View], str]:
    """The same, but for experts."""
    sides = [model.source.kind == "gguf" for model in (a, b)]
    if sides[0] == sides[1] or any(name in a for name in b):
        return a, b, ""
    from quantcli.layouts.gguf.images.models import image_model  # some milliseconds

    images = [image_model(set(model)) for model in (a, b)]
    if images[0] is not None and images[1] is not None:
        ours, theirs = (_without(model, found[1]) for model, found in zip((a, b), images) if found is not None)
        return ours, theirs, ""
    gguf, other = (a, b) if sides[0] else (b, a)
    family = family_of(gguf)
    if family is None:
        return a, b, ""
    shown = " and ".join(family.orders)
    order = f", and rows of {shown} are reordered" if shown else ""
    note = f"{gguf.path}: names of llama.cpp ({family.architecture}) are mapped to those of the checkpoint{order}"
    floats: Mapping[str, View] = other
    if family.rebuilt is not None:
        found = arranged(other.source, "gguf")
        floats = Model(native.Model(found), other.path) if found.arranged else other
        note += f"; {other.path}: {found.arranged}" if found.arranged else ""
    views = _with_prefix(renamed(gguf, family), floats, family)
    return (views, floats, note) if sides[0] else (floats, views, note)


def _without(model: Model, prefix: str) -> Mapping[str, View]:
    """The tensors whose names begin with a prefix, without that."""
    if not prefix:
        return model
    found = {name.removeprefix(prefix): view for name, view in model.items() if name.startswith(prefix)}
    return {name: replace(view, info=replace(view.info, name=name)) for name, view in found.items()}


def _with_prefix(views: dict[str, View], other: Mapping[str, View], family: Family) -> dict[str, View]:
    """Tensors under the names that another model has for them, which may begin with something more; experts, which it
    may hold in another arrangement, begin as the other tensors of their layers do."""
    from quantcli.layouts.gguf.model import text_name
    from quantcli.layouts.gguf.names import gguf_name, hf_names

    theirs = {text_name(name): name for name in other}
    found, leads = dict[str, str](), dict[str, str]()
    for name in views:
        ours = gguf_name(name, family)
        choices = [
            prefix + n
            for prefix in ("", *family.prefixes)
            for n in ([name] if ours is None else hf_names(ours, family))
        ]
        choice = next((choice for choice in choices if choice in theirs), None)
        if choice is not None:
            found[name] = theirs[choice]
            leads[_lead(choice)] = _lead(theirs[choice])
    for name in views.keys() - found.keys():
        found[name] = leads.get(_lead(name), _lead(name)) + name.removeprefix(_lead(name))
    return {found[name]: replace(view, info=replace(view.info, name=found[name])) for name, view in views.items()}


def _lead(name: str) -> str:
    """What a name begins with before the layers."""
    return name.partition("layers.")[0] if "layers." in name else ""
