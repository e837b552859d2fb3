"""Two models under the same names: a GGUF of the Llama family beside the checkpoint it was made from."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.errors import DataError, printable
from quantcli.layouts.gguf.names import ARCHITECTURES, hf_name
from quantcli.layouts.native.model import Model
from quantcli.layouts.view import BLOCK, View, runs
from quantcli.stores.gguf import GgufFile

if TYPE_CHECKING:
    from quantcli.kernels import Floats

_TURNED = re.compile(r"blk\.([0-9]{1,6})\.attn_([qk])\.(?:weight|bias)")


def _heads(source: GgufFile, architecture: str, layer: int, which: str) -> int:
    """Attention heads of the rows of attn_q or attn_k."""
    key = f"{architecture}.attention.head_count"
    value: Any = source.keys.get(key)
    if which == "k":
        value = source.keys.get(f"{key}_kv", value)
    if isinstance(value, list):
        value = value[layer] if layer < len(value) else None
    if type(value) is not int or value < 1:
        raise DataError("it does not tell the heads of this layer", place=[key])
    return value


def _put_back(view: View, heads: int) -> View:
    """A tensor whose rows lie in two halves per head again, as they do in a checkpoint, and not in pairs."""
    rows = view.info.shape[0] if view.info.shape else 1
    cols = math.prod(view.info.shape[1:])
    if rows % (2 * heads) or not rows * cols:
        raise DataError(f"{rows} rows are not those of {heads} heads", place=[printable(view.info.name)])
    head = rows // heads * cols

    def read(first: int, last: int) -> Floats:
        low, high = first // head * head, -(-last // head) * head
        pairs = view.read(low, high).reshape(-1, head // cols // 2, 2, cols)
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(-1)[first - low : last - low]

    return replace(view, blocks=runs(rows * cols, max(BLOCK // head, 1) * head), read=read)


def _renamed(source: GgufFile, architecture: str, views: Mapping[str, View]) -> dict[str, View]:
    """The tensors of a GGUF under the names of a checkpoint; those without one keep their own."""
    found = {}
    for name, view in views.items():
        turned = _TURNED.fullmatch(name)
        if turned and ARCHITECTURES[architecture]:
            try:
                view = _put_back(view, _heads(source, architecture, int(turned[1]), turned[2]))
            except DataError as error:
                raise error.within(source.path) from None
        new = hf_name(name) or name
        new = name if new in views else new
        found[new] = replace(view, info=replace(view.info, name=new))
    return found


def of_checkpoint(model: Model, views: Mapping[str, View]) -> Mapping[str, View]:
    """The tensors of a model under the names of the checkpoint it was made from: of a GGUF of a known architecture,
    its rows put back; of anything else as they are."""
    source = model.source
    if not isinstance(source, GgufFile):
        return views
    architecture = str(source.keys.get("general.architecture"))
    return _renamed(source, architecture, views) if architecture in ARCHITECTURES else views


def under_one_name(
    a: Model, before: Mapping[str, View], b: Model, after: Mapping[str, View]
) -> tuple[Mapping[str, View], Mapping[str, View], str]:
    """The tensors of both, and what was done so that their names meet; empty when nothing had to be.

    Only where no name is in both as it is, and one side is a GGUF of a known architecture and the other is none.
    """
    sides = [isinstance(model.source, GgufFile) for model in (a, b)]
    if before.keys() & after.keys() or sides[0] == sides[1]:
        return before, after, ""
    source = (a if sides[0] else b).source
    assert isinstance(source, GgufFile)
    architecture = str(source.keys.get("general.architecture"))
    if architecture not in ARCHITECTURES:
        return before, after, ""
    order = ", rows of attn_q and attn_k put back" if ARCHITECTURES[architecture] else ""
    note = f"{source.path}: names of llama.cpp ({architecture}) are taken for those of the checkpoint{order}"
    if sides[0]:
        return _renamed(source, architecture, before), after, note
    return before, _renamed(source, architecture, after), note
