"""File types of llama.cpp: the type of each tensor of a model, as llama-quantize mixes them.

The values of attention, the second matrix of a feed-forward network, in some of the layers, and the output have more
bits than the rest, because models suffer most from errors there. An embedding that is the output too is stored as one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantcli.layouts.gguf.families import families
from quantcli.layouts.gguf.family import Family
from quantcli.layouts.gguf.model import text_name
from quantcli.layouts.gguf.names import gguf_name
from quantcli.tensors.info import TensorInfo


@dataclass(frozen=True, slots=True)
class FileType:
    """A file type: the type of most tensors, the number of general.file_type, and what it is for, for users."""

    base: str
    number: int
    summary: str


FILE_TYPES: Mapping[str, FileType] = {
    "Q2_K": FileType("Q2_K", 10, "3.0 bits per weight"),
    "Q3_K_S": FileType("Q3_K", 11, "3.5 bits"),
    "Q3_K_M": FileType("Q3_K", 12, "3.9 bits"),
    "Q3_K_L": FileType("Q3_K", 13, "4.2 bits"),
    "IQ4_XS": FileType("IQ4_XS", 30, "4.3 bits"),
    "IQ4_NL": FileType("IQ4_NL", 25, "4.5 bits"),
    "Q4_0": FileType("Q4_0", 2, "4.5 bits, for old programs"),
    "Q4_1": FileType("Q4_1", 3, "5.0 bits, for old programs"),
    "Q4_K_S": FileType("Q4_K", 14, "4.6 bits"),
    "Q4_K_M": FileType("Q4_K", 15, "4.9 bits, the usual choice"),
    "Q5_0": FileType("Q5_0", 8, "5.5 bits, for old programs"),
    "Q5_1": FileType("Q5_1", 9, "6.0 bits, for old programs"),
    "Q5_K_S": FileType("Q5_K", 16, "5.5 bits"),
    "Q5_K_M": FileType("Q5_K", 17, "5.7 bits"),
    "Q6_K": FileType("Q6_K", 18, "6.6 bits"),
    "Q8_0": FileType("Q8_0", 7, "8.5 bits"),
    "MXFP4_MOE": FileType("MXFP4", 38, "experts in MXFP4, the rest in Q8_0"),
}
"""The file types by llama.cpp's names, with about the size they give a model of some billions of weights."""

_LAYER = re.compile(r"blk\.(\d+)\.")
_IN_A_LAYER = re.compile(r"\.(?:0|[1-9][0-9]{0,5})\.")
_VALUES = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")
_EXPERTS = re.compile(r"blk\.\d+\.ffn_(?:gate|up|down|gate_up)_exps\.weight")
_FALCON = {
    "Q3_K_M": ("Q5_K", "Q4_K", "Q3_K"),
    "Q3_K_L": ("Q4_K", "Q4_K", "Q4_K"),
    "Q4_K_S": ("Q4_K", "Q4_K", "Q4_K"),
    "Q4_K_M": ("Q6_K", "Q5_K", "Q4_K"),
}
"""Second matrices of a Falcon: in the first sixteenth of the layers, in those with more bits, and elsewhere."""

LARGE = 80
"""Layers of a model of 70 billion weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """What a mix depends on: how many tensors there are of values and of second matrices, queries per key, experts of a
    layer, layers, whether the embedding is the output too, whether importances are given, and whether it is a Falcon,
    for which llama.cpp makes exceptions."""

    values: int
    downs: int
    sharing: int
    experts: int
    layers: int
    tied: bool
    weighted: bool
    falcon: bool


def _named(infos: Sequence[TensorInfo]) -> tuple[str, dict[str, TensorInfo]]:
    """llama.cpp's architecture, as far as names tell it, and the tensors by its names; those of a GGUF keep theirs."""
    texts = [text_name(info.name) for info in infos]
    family = _family_of(texts)
    names = {gguf_name(text, family): info for text, info in zip(texts, infos)}
    best = {name: info for name, info in names.items() if name is not None}
    known = {info.name for info in best.values()}
    return family.architecture, {**{info.name: info for info in infos if info.name not in known}, **best}


def _family_of(names: Sequence[str]) -> Family:
    """The family that has names of its own for most of these tensors. It has one for a tensor of a layer where it has
    one for that of another, so that it is asked once for all layers."""
    counts = Counter(_IN_A_LAYER.sub(".#.", name, count=1) for name in names)
    first = {_IN_A_LAYER.sub(".#.", name, count=1): name for name in reversed(names)}

    def known(family: Family) -> int:
        own = dict[str, int]()
        for alike, count in counts.items():
            name = gguf_name(first[alike], family)
            if name is not None:
                own[name] = max(count, own.get(name, 0))
        return sum(own.values())

    return max(families(), key=known)


def _model(shapes: Mapping[str, tuple[int, ...]], *, tied: bool, weighted: bool, falcon: bool) -> _Model:
    """What a mix depends on, of the shapes of a model by llama.cpp's names."""
    queries = next((shape[0] for name, shape in shapes.items() if name.endswith("attn_q.weight")), 0)
    values = next((shape[0] for name, shape in shapes.items() if name.endswith("attn_v.weight")), 0)
    for name, shape in shapes.items():
        if name.endswith("attn_qkv.weight"):  # queries, keys and values, one above the other
            queries, values = shape[1], max(shape[0] - shape[1], 0) // 2
    experts = [shape[0] for name, shape in shapes.items() if _EXPERTS.fullmatch(name) and len(shape) == 3]
    layers = {match[1] for name in shapes if (match := _LAYER.match(name))}
    return _Model(
        values=sum(name.endswith(_VALUES) for name in shapes),
        downs=sum("ffn_down" in name and name.endswith("weight") for name in shapes),
        sharing=queries // values if queries and values else 1,
        experts=max(experts, default=0),
        layers=len(layers),
        tied=tied or "output.weight" not in shapes,
        weighted=weighted,
        falcon=falcon,
    )


def _more(number: int, count: int) -> bool:
    """Whether a tensor, one of so many, is among those with more bits: the first and last eighth, and each third of the
    others."""
    return number < count // 8 or number >= 7 * count // 8 or (number - count // 8) % 3 == 2


def _of_values(kind: str, base: str, number: int, model: _Model) -> str:
    shared = model.sharing >= 4
    found = {
        "Q2_K": "Q4_K" if shared else "Q3_K",
        "Q3_K_M": "Q5_K" if number < 2 else "Q4_K",
        "Q3_K_L": "Q5_K",
        "IQ4_NL": "Q5_K" if shared else base,
        "IQ4_XS": "Q5_K" if shared else base,
        "Q4_K_S": "Q5_K" if number < 4 else base,
        "Q4_K_M": "Q6_K" if _more(number, model.values) else base,
        "Q5_K_M": "Q6_K" if _more(number, model.values) else base,
    }.get(kind, base)
    if model.layers == LARGE and model.sharing > 1 and found in ("Q3_K", "Q4_K"):
        found = "Q5_K"
    return "Q8_0" if model.experts == 8 else found


def _of_downs(kind: str, base: str, number: int, model: _Model) -> str:
    first, sixteenth = number < model.downs // 8, number < model.downs // 16
    if model.falcon and kind in _FALCON:
        few, some, most = _FALCON[kind]
        return few if sixteenth else some if _more(number, model.downs) else most
    return {
        "Q2_K": "Q3_K",
        "Q3_K_M": "Q5_K" if sixteenth else "Q4_K",
        "Q3_K_L": "Q5_K",
        "Q4_K_S": "Q5_K" if first else base,
        "Q4_K_M": "Q6_K" if _more(number, model.downs) else base,
        "Q5_K_M": "Q6_K" if _more(number, model.downs) else base,
        "IQ4_NL": "Q5_K" if first and not model.weighted else base,
        "IQ4_XS": "Q5_K" if first and not model.weighted else base,
        "Q4_0": "Q4_1" if first and model.weighted else base,
        "Q5_0": "Q5_1" if first and model.weighted else base,
    }.get(kind, base)


def _of_outputs(kind: str, base: str, model: _Model) -> str:
    """Of the matrices behind attention."""
    if model.falcon:
        return "Q4_K" if kind == "Q3_K_L" else base
    if model.experts == 8:
        few = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ4_XS")
        return "Q5_K" if kind in few else base
    return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(kind, base)


def mix(kind: str, infos: Sequence[TensorInfo], *, tied: bool, weighted: bool) -> dict[str, str]:
    """The type of every tensor of a model that a file type quantizes, by its name in the source. tied: whether the
    embedding is the output too; weighted: whether importances are given."""
    architecture, by_name = _named(infos)
    shapes = {name: info.shape for name, info in by_name.items() if len(info.shape) > 1}
    model = _model(shapes, tied=tied, weighted=weighted, falcon=architecture == "falcon")
    found = dict[str, str]()
    base = FILE_TYPES[kind].base
    values = downs = 0
    for name in sorted(shapes, key=_order):
        layer, own = _LAYER.match(name), base
        head = name == "output.weight" or (model.tied and name == "token_embd.weight")
        if kind == "MXFP4_MOE":
            own = "MXFP4" if _EXPERTS.fullmatch(name) else "Q8_0"
        elif head:
            own = "Q8_0" if base == "Q8_0" or model.falcon else "Q6_K"
        elif name.endswith(_VALUES):
            own, values = _of_values(kind, base, values, model), values + 1
        elif name.endswith("attn_k.weight"):
            own = "Q8_0" if model.experts == 8 else base
        elif "ffn_down" in name and name.endswith("weight"):
            number = int(layer[1]) if layer and model.experts > 1 else downs
            own, downs = _of_downs(kind, base, number, model), downs + 1
        elif name.endswith("attn_output.weight"):
            own = _of_outputs(kind, base, model)
        found[by_name[name].name] = own
    return found


def _order(name: str) -> tuple[int, str]:
    layer = _LAYER.match(name)
    return (int(layer[1]) if layer else -1, name)
