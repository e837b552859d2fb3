"""The tensors of a GGUF, or of a model of mlx-lm, as they are in the checkpoint it was made from.

Their names, the order of rows, and what was added to norms.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.errors import DataError, printable
from quantcli.layouts.config import json_beside
from quantcli.layouts.held import in_order
from quantcli.layouts.reader import not_moved
from quantcli.models import BLOCK, Model, View, runs_of
from quantcli.tensors.rows import runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats
    from quantcli.layouts.gguf.family import Family
    from quantcli.layouts.gguf.rows import Order
    from quantcli.layouts.reader import Held
    from quantcli.stores import Source
    from quantcli.tensors.info import TensorInfo

_MODULE = re.compile(r"(?:blk\.([0-9]{1,6})\.)?(\w+)\.(?:weight|bias)")


def of_checkpoint(model: Model) -> Mapping[str, View]:
    """The tensors of a model under the names of the checkpoint it was made from: for a GGUF of a known architecture,
    with its rows back in order; as they are for anything else, and for one whose matrices have other shapes there. For
    what mlx-lm changed: as before that."""
    if model.source.kind != "gguf":
        return of_mlx(model)
    family = family_of(model)
    return model if family is None or family.rebuilt is not None else renamed(model, family)


def of_mlx(model: Model) -> Mapping[str, View]:
    """The tensors of a model as they were before mlx-lm changed some of them, when it first loaded it; the model where
    it did not."""
    from quantcli.layouts.mlx import converted

    convolutions = [name for name in model if converted.CONVOLUTION.search(name) and _turned(model[name])]
    if not convolutions:
        return model
    views = dict(model)
    config = json_beside(model.source.beside, "config.json") or {}
    raised = config.get("model_type") in converted.RAISED
    for name, view in views.items():
        if name in convolutions:
            channels, width, one = view.info.shape
            views[name] = _plain(view, replace(view.info, shape=(channels, one, width)))
        elif raised and view.scheme is None and converted.NORM.search(name) and len(view.info.shape) == 1:
            views[name] = _lowered(view, 1.0)
    return views


def _turned(view: View) -> bool:
    """Whether a convolution is [channels, width, 1]."""
    from quantcli.layouts.mlx import converted

    return view.scheme is None and converted.done_before([view.info])


def _plain(view: View, info: TensorInfo) -> View:
    """A tensor in another shape."""
    return replace(view, info=info, stored=None, made_of=view.parts, held=not_moved)


def family_of(model: Model) -> Family | None:
    """The family of a GGUF whose names can be mapped to a checkpoint's; None for anything else."""
    if model.source.kind != "gguf":
        return None
    from quantcli.layouts.gguf.families import of_architecture

    architecture, words = (str(model.source.keys.get(k)) for k in ("general.architecture", "tokenizer.ggml.model"))
    return of_architecture(architecture, words)


def renamed(model: Model, family: Family) -> dict[str, View]:
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

    def held() -> Held | str:
        found = view.held()
        return found if isinstance(found, str) else in_order(found, places, unit)

    step = max(BLOCK // (unit * cols), 1) * unit * cols
    blocks, own = runs_of(rows * cols, step), view.parts
    return replace(view, blocks=blocks, read=read, stored=None, made_of=own, encoded=None, step=step, held=held)


def _lowered(view: View, by: float) -> View:
    """A tensor whose elements are smaller by a number."""

    def read(first: int, last: int) -> Floats:
        found: Floats = view.read(first, last) - np.float32(by)
        return found

    return replace(view, read=read, stored=None, made_of=view.parts, encoded=None, held=not_moved)
