"""Models under matching names: a GGUF under those of the checkpoint it was made from."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.errors import DataError, printable
from quantcli.experts import arranged, as_in
from quantcli.layouts.native import model as native
from quantcli.models import BLOCK, Model, View, runs_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats
    from quantcli.layouts.gguf.family import Family
    from quantcli.layouts.gguf.rows import Order
    from quantcli.stores import Source

_MODULE = re.compile(r"(?:blk\.([0-9]{1,6})\.)?(\w+)\.(?:weight|bias)")


def of_checkpoint(model: Model) -> Mapping[str, View]:
    """The tensors of a model under the names of the checkpoint it was made from: for a GGUF of a known architecture,
    with its rows back in order; as they are for anything else, and for one whose matrices have other shapes there."""
    family = _family(model)
    return model if family is None or family.rebuilt is not None else _renamed(model, family)


def under_one_name(a: Model, b: Model) -> tuple[Mapping[str, View], Mapping[str, View], str]:
    """The tensors of both under matching names, and a note on how they were matched; empty when they matched already.

    Names are mapped where none is in both, and one side is a GGUF of a known architecture and the other is not. Experts
    of a float model are arranged as they are in the other one.
    """
    ours, theirs, note = _under_names(a, b)
    notes = [note] if note else []
    for model, own, other in ((a, ours, theirs), (b, theirs, ours)):
        if model.source.kind == "gguf" or any(view.scheme is not None for view in own.values()):
            continue
        found = as_in(model.source, other)
        if found is None:
            continue
        notes.append(f"{model.path}: {found.arranged}")
        views = Model(native.Model(found), model.path)
        ours, theirs = (views, theirs) if model is a else (ours, views)
    return ours, theirs, "; ".join(notes)


def _under_names(a: Model, b: Model) -> tuple[Mapping[str, View], Mapping[str, View], str]:
    """The same, but for experts."""
    sides = [model.source.kind == "gguf" for model in (a, b)]
    if a.keys() & b.keys() or sides[0] == sides[1]:
        return a, b, ""
    gguf, other = (a, b) if sides[0] else (b, a)
    family = _family(gguf)
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
    views = _with_prefix(_renamed(gguf, family), floats, family)
    return (views, floats, note) if sides[0] else (floats, views, note)


def _with_prefix(views: dict[str, View], other: Mapping[str, View], family: Family) -> dict[str, View]:
    """Tensors under the names that another model has for them, which may begin with something more."""
    from quantcli.layouts.gguf.names import gguf_name, hf_names

    found = {}
    for name, view in views.items():
        ours = gguf_name(name, family)
        choices = [
            prefix + n
            for prefix in ("", *family.prefixes)
            for n in ([name] if ours is None else hf_names(ours, family))
        ]
        named = next((choice for choice in choices if choice in other), name)
        found[named] = replace(view, info=replace(view.info, name=named))
    return found


def _family(model: Model) -> Family | None:
    """The family of a GGUF whose names can be mapped to a checkpoint's; None for anything else."""
    if model.source.kind != "gguf":
        return None
    from quantcli.layouts.gguf.families import of_architecture

    return of_architecture(str(model.source.keys.get("general.architecture")))


def _renamed(model: Model, family: Family) -> dict[str, View]:
    """The tensors of a GGUF under the names of a checkpoint; those without one keep their own."""
    from quantcli.layouts.gguf.names import hf_name

    found = {}
    for name, view in model.items():
        module = _MODULE.fullmatch(name)
        order = family.orders.get(module[2]) if module else None
        if module and order is not None:
            try:
                layer = int(module[1] or 0)
                heads = _heads(model.source, family.architecture, layer, "head_count")
                view = _put_back(view, order, heads, _heads(model.source, family.architecture, layer, "head_count_kv"))
            except DataError as error:
                raise error.within(model.source.path) from None
        if family.raised and name.endswith("norm.weight"):
            view = _lowered(view, family.raised)
        new = hf_name(name, family) or name
        new = name if new in model else new
        found[new] = replace(view, info=replace(view.info, name=new))
    return found


def _heads(source: Source, architecture: str, layer: int, which: str) -> int:
    """Heads of queries, or of keys."""
    key = f"{architecture}.attention.head_count"
    value: Any = source.keys.get(key)
    if which == "head_count_kv":
        value = source.keys.get(f"{key}_kv", value)
    if isinstance(value, list):
        value = value[layer] if layer < len(value) else None
    if type(value) is not int or value < 1:
        raise DataError("it does not give the number of heads of this layer", place=[key])
    return value


def _put_back(view: View, order: Order, heads: int, kv_heads: int) -> View:
    """A tensor with its rows in the order of a checkpoint."""
    from quantcli.layouts.gguf.rows import runs

    rows = view.info.shape[0] if view.info.shape else 1
    cols = math.prod(view.info.shape[1:])
    units = order.units(heads, kv_heads)
    try:
        source = order.source(rows, heads, kv_heads)
    except ValueError:
        source = None
    if source is None or rows % (2 * units) or not rows * cols:
        raise DataError(f"{rows} rows do not divide into {units} heads", place=[printable(view.info.name)])
    places: NDArray[np.intp] = np.argsort(source, kind="stable")
    unit = rows // units

    def read(first: int, last: int) -> Floats:
        low, high = first // cols // unit * unit, -(-last // (cols * unit)) * unit
        wanted = places[low:high]
        out = np.empty((high - low, cols), np.float32)
        for row, which in runs(wanted):
            out[which] = view.read(row * cols, (row + len(which)) * cols).reshape(-1, cols)
        return out.reshape(-1)[first - low * cols : last - low * cols]

    step = max(BLOCK // (unit * cols), 1) * unit * cols
    return replace(view, blocks=runs_of(rows * cols, step), read=read, stored=None, encoded=None, step=step)


def _lowered(view: View, by: float) -> View:
    """A tensor whose elements are smaller by a number."""

    def read(first: int, last: int) -> Floats:
        found: Floats = view.read(first, last) - np.float32(by)
        return found

    return replace(view, read=read, stored=None, encoded=None)
