"""A checkpoint as a model of llama.cpp: its tensors matched with those of its family."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quantcli.errors import DataError, QuantcliError, UsageError, printable
from quantcli.layouts.gguf.families import classes
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.names import gguf_name, hf_name
from quantcli.layouts.gguf.settings import Config
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats
    from quantcli.stores.stacked import Rebuilt

_SAME = (
    (re.compile(r"^model\.language_model\."), "model."),
    (re.compile(r"^language_model\.(model\.|lm_head\.)"), r"\1"),
)
"""Names in models with vision or audio, and what they become in a model of text alone."""

_TOWER = re.compile(
    r"(?:model\.)?(?:vision|visual|audio|multi_modal_projector|mm_projector|embed_vision|embed_audio)\w*\..+"
)
"""Names of tensors of vision and audio towers."""

EMBEDDING = "token_embd.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTensor:
    """A tensor of the GGUF. source: its name in the checkpoint. shape: in both. order: the row of the checkpoint for
    every row, None where they stay; units: runs of rows that are best read at a time. float32: whether llama.cpp takes
    it as F32 only; raised: what is added to it."""

    name: str
    source: str
    shape: tuple[int, ...]
    float32: bool
    order: NDArray[Any] | None = field(default=None, compare=False)
    units: int = 1
    raised: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """A model as llama.cpp loads it. keys: those of the architecture. tensors: in the checkpoint's order. made: F32
    tensors that are computed. vocabulary: number of its tokens. notes: what llama.cpp does differently, a line each."""

    architecture: str
    keys: Mapping[str, Any]
    tensors: tuple[ModelTensor, ...]
    made: Mapping[str, Floats]
    vocabulary: int
    notes: tuple[str, ...]


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a model. Raises UsageError for other models, with the classes of nearest names."""
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    known = classes()
    if not isinstance(name, str) or name not in known:
        what = f"{printable(name, 60)} is" if isinstance(name, str) else "models without architectures are"
        problem = f"{what} not supported by --to gguf"
        raise UsageError(problem, place=["config.json"], hint=supported(name if isinstance(name, str) else ""))
    return known[name]


def supported(name: str = "") -> str:
    """Where the families are listed, for hints, with classes of the same model as one that is not supported.

    >>> supported("T5Model")
    'near it: T5EncoderModel, T5ForConditionalGeneration; quantcli help targets lists all that are supported'
    """
    model = re.sub(r"(?:For|Model|LMHead).*", "", name)
    near = sorted((known for known in classes() if model and known.startswith(model)), key=len)[:3]
    listed = "quantcli help targets lists all that are supported"
    return f"near it: {', '.join(near)}; {listed}" if near else listed


def _settings(config: Mapping[str, Any], infos: Sequence[TensorInfo]) -> Config:
    """The config.json of the part that reads text. Where it says otherwise than the whole whether the embedding is the
    head too, the tensors tell."""
    text = config.get("text_config")
    if not isinstance(text, dict):
        return Config(config)
    merged, key = {**config, **text}, "tie_word_embeddings"
    if config.get(key) is not text.get(key):
        merged[key] = not any(info.name.endswith("lm_head.weight") for info in infos)
    return Config(merged)


def model_of(config: Mapping[str, Any], infos: Sequence[TensorInfo]) -> GgufModel:
    """The model of the config.json and the tensors of a checkpoint.

    Raises UsageError for another family, DataError for a model of the family that llama.cpp would run differently or
    not at all, and where tensors and config.json do not match.
    """
    family = family_of(config)
    settings = _settings(config, infos)
    parts = family.parts(settings)
    drafts = _drafts(settings, family, parts)
    tensors, left = _tensors(infos, family, parts, drafts)
    notes = [_described(left)] if left else []
    if any(drafts.match(text_name(name)) for name in left):
        notes.append("layers that predict further tokens are not in this file")
    towers = [name for name in left if _TOWER.fullmatch(name)]
    if towers:
        notes.append("vision and audio towers are not in this file: llama.cpp wants them in a second one (mmproj)")
    return GgufModel(
        architecture=family.architecture,
        keys={f"{family.architecture}.{key}": value for key, value in parts.keys.items()} | dict(parts.general),
        tensors=tensors,
        made=parts.made,
        vocabulary=parts.vocabulary,
        notes=(*notes, *parts.notes),
    )


def rebuilt(infos: Sequence[TensorInfo], config: Mapping[str, Any]) -> dict[str, Sequence[Rebuilt]]:
    """The tensors of a checkpoint that llama.cpp wants in another form, and what takes their place; none of a model
    that is not supported, which is refused later."""
    named = config.get("architectures")
    family = classes().get(named[0]) if isinstance(named, list) and named and isinstance(named[0], str) else None
    if family is None or family.rebuilt is None:
        return {}
    settings = _settings(config, infos)
    found = {info.name: family.rebuilt(info, settings) for info in infos}
    return {name: tensors for name, tensors in found.items() if tensors is not None}


def unused(infos: Sequence[TensorInfo], config: Mapping[str, Any]) -> frozenset[str]:
    """The names of tensors of a checkpoint that its GGUF does not hold; none of a model that is not supported."""
    try:
        held = {tensor.source for tensor in model_of(config, infos).tensors}
    except QuantcliError:
        return frozenset()
    return frozenset(info.name for info in infos if info.name not in held)


def _described(left: Sequence[str]) -> str:
    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
    return f"{printable(left[0], 120)}{more} left out: llama.cpp does not use {'them' if more else 'it'}"


def text_name(name: str) -> str:
    """The name of a tensor of the part that reads text in a model of that alone.

    >>> text_name("model.language_model.norm.weight"), text_name("language_model.model.norm.weight")
    ('model.norm.weight', 'model.norm.weight')
    """
    for pattern, becomes in _SAME:
        name = pattern.sub(becomes, name, count=1)
    return name


def _drafts(config: Config, family: Family, parts: Parts) -> re.Pattern[str]:
    """What matches the names of layers behind the last, which predict further tokens."""
    count, more = parts.keys["block_count"], config.whole("num_nextn_predict_layers", 0, least=0)
    numbers = "|".join(str(count + i) for i in range(min(more, 16)))
    return re.compile(rf"{re.escape(family.layers)}\.(?:{numbers})\." if numbers else r"(?!)")


def _tensors(
    infos: Sequence[TensorInfo], family: Family, parts: Parts, drafts: re.Pattern[str]
) -> tuple[tuple[ModelTensor, ...], list[str]]:
    """The tensors of the GGUF, and the names of those left out. drafts: what matches those of further layers."""
    known = {**parts.optional, **parts.needed}
    unused = [re.compile(expression) for expression in family.unused]
    found, left = dict[str, ModelTensor](), []
    for info in infos:
        same = text_name(info.name)
        name = gguf_name(same, family)
        useless = any(expression.fullmatch(same) for expression in unused) or _TOWER.fullmatch(same)
        twice = parts.tied and (name == "output.weight" or (name == EMBEDDING and name in found))
        if useless or twice or drafts.match(same):
            left.append(info.name)
        elif name is None or name not in known:
            raise DataError(f"{family.architecture} of llama.cpp has no such tensor", place=[printable(info.name)])
        elif info.shape != known[name]:
            problem = f"it is {list(info.shape)}, but {list(known[name])} by config.json"
            raise DataError(problem, place=[printable(info.name)])
        else:
            found[name] = _tensor(info, name, family, parts)
    _check_all(found, family, parts)
    return tuple(found.values()), left


def _check_all(found: Mapping[str, ModelTensor], family: Family, parts: Parts) -> None:
    """Raise DataError where a tensor is missing."""
    missing = [name for name in parts.needed if name not in found]
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{hf_name(missing[0], family) or missing[0]} is missing{more}")


def _tensor(info: TensorInfo, name: str, family: Family, parts: Parts) -> ModelTensor:
    module = re.sub(rf"^{re.escape(family.blocks)}\.\d+\.", "", name).rpartition(".")[0]
    heads = parts.keys.get("attention.head_count", 1)
    kv_heads = parts.keys.get("attention.head_count_kv", heads)
    order = family.orders.get(module)
    return ModelTensor(
        name=name,
        source=info.name,
        shape=info.shape,
        float32=len(info.shape) < 2 or name.endswith(FLOATS),
        order=None if order is None else order.source(info.shape[0], heads, kv_heads),
        units=1 if order is None else order.units(heads, kv_heads),
        raised=family.raised if name.endswith("norm.weight") else 0.0,
    )


FLOATS = (
    *("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight", "token_types.weight", ".bias"),
    *("_norm.weight", "attn_rel_b.weight", "shortconv.conv.weight"),
)
"""Ends of the names of tensors that llama.cpp takes as F32 only."""
