"""The Llama family as llama.cpp expects it: keys from config.json, tensor names, order of rows.

    LlamaForCausalLM, MistralForCausalLM   architecture llama; the rows of q and k are reordered
    MixtralForCausalLM                     the same, with experts
    Qwen2ForCausalLM, Qwen3ForCausalLM     architectures qwen2 and qwen3
    Qwen2MoeForCausalLM, Qwen3Moe..        architectures qwen2moe and qwen3moe

llama.cpp rotates neighbouring rows of a head where the checkpoint rotates a row with the one half a head later, so
for `llama` the rows of a head go 0, D/2, 1, D/2 + 1, ...; whole rows, so quantized ones too. Tensors of one dimension
and routers are F32; all experts of a layer are in one tensor, which the source has stacked. Without a separate output
head there is no output.weight: token_embd.weight serves for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.errors import DataError, UsageError, printable
from quantcli.layouts.gguf.names import ARCHITECTURES, gguf_name
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MixtralForCausalLM": "llama",
    "Qwen2MoeForCausalLM": "qwen2moe",
    "Qwen3MoeForCausalLM": "qwen3moe",
}
"""llama.cpp's architecture of each class of transformers."""

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
"""general.file_type: the type of most matrices of a file."""

MAX_LAYERS = 10_000

_SCALED_BY = ("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings")
_FREQUENCIES = "rope_freqs.weight"
_ROUTERS = (".mlp.gate.weight", ".mlp.shared_expert_gate.weight")
_USELESS = ".rotary_emb.inv_freq"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTensor:
    """A tensor of the GGUF. source: its name in the checkpoint. shape: in both. heads: number of heads whose rows
    `turned` reorders, 0 where rows stay. float32: whether llama.cpp takes it as F32 only."""

    name: str
    source: str
    shape: tuple[int, ...]
    heads: int
    float32: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaModel:
    """A model as llama.cpp loads it. keys: those of the architecture. tensors: in the checkpoint's order. made: F32
    tensors that are computed. vocabulary: number of its tokens. notes: what llama.cpp does differently, a line each."""

    architecture: str
    keys: Mapping[str, Any]
    tensors: tuple[ModelTensor, ...]
    made: Mapping[str, Floats]
    vocabulary: int
    notes: tuple[str, ...]


def _refuse(problem: str, *place: str) -> DataError:
    return DataError(problem, place=["config.json", *place])


def _whole(config: Mapping[str, Any], key: str, default: Any = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value < 1 << 31:
        problem = "is missing" if value is None else f"{printable(repr(value), 40)} is not a whole number of 1 or more"
        raise _refuse(problem, key)
    return value


def _number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        problem = "is missing" if value is None else f"{printable(repr(value), 40)} is not a number above 0"
        raise _refuse(problem, key)
    return float(value)


@dataclass(frozen=True, slots=True)
class _Experts:
    """Experts of every layer: how many there are and are used, rows of each, and of the shared one, 0 without."""

    count: int
    used: int
    inner: int
    shared: int


@dataclass(frozen=True, slots=True)
class _Sizes:
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    words: int
    experts: _Experts | None


def _sizes(config: Mapping[str, Any], architecture: str) -> _Sizes:
    hidden, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
    layers = _whole(config, "num_hidden_layers")
    if layers > MAX_LAYERS:
        raise _refuse(f"{layers} layers are too many, up to {MAX_LAYERS} are supported", "num_hidden_layers")
    default = heads if architecture == "llama" else None
    kv_heads = _whole(config, "num_key_value_heads", default)
    if config.get("head_dim") is None and hidden % heads:
        raise _refuse(f"{hidden} is not a multiple of the {heads} heads", "hidden_size")
    head = _whole(config, "head_dim", hidden // heads)
    if head % 2:
        raise _refuse(f"heads of {head} rows cannot be rotated", "head_dim")
    inner, words = _whole(config, "intermediate_size"), _whole(config, "vocab_size")
    return _Sizes(hidden, inner, layers, heads, kv_heads, head, words, _experts(config, architecture, inner))


def _experts(config: Mapping[str, Any], architecture: str, inner: int) -> _Experts | None:
    """The experts of a model; None where it has none."""
    if not architecture.endswith("moe"):
        if config.get("num_local_experts") is None:
            return None
        return _Experts(_whole(config, "num_local_experts"), _whole(config, "num_experts_per_tok", 2), inner, 0)
    for key, fine in (("decoder_sparse_step", (None, 1)), ("mlp_only_layers", (None, []))):
        if config.get(key) not in fine:
            raise _refuse("llama.cpp supports such models only with experts in all layers", key)
    normed = architecture == "qwen3moe"
    if bool(config.get("norm_topk_prob", False)) != normed:
        problem = f"llama.cpp {'always adds' if normed else 'never adds'} the weights of chosen experts up to 1"
        raise _refuse(problem, "norm_topk_prob")
    shared = 0 if normed else _whole(config, "shared_expert_intermediate_size")
    own = _whole(config, "moe_intermediate_size")
    count = "num_experts" if "num_experts" in config else "num_local_experts"  # transformers 5 saves the latter
    return _Experts(_whole(config, count), _whole(config, "num_experts_per_tok"), own, shared)


def _rope(config: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Base of the rotary embedding and how it is scaled: transformers 5 writes rope_parameters, earlier ones
    rope_theta and rope_scaling."""
    found: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if value is not None and not isinstance(value, dict):
            raise _refuse("it is not an object", key)
        found |= value or {}
    base = _number({**config, **found}, "rope_theta", 10000.0)
    return base, found


def _scaling(architecture: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a scaled rotary embedding."""
    kind = found.get("rope_type", found.get("type", "default"))
    if kind in ("default", "llama3"):
        return {}
    if kind not in ("linear", "yarn"):
        raise _refuse(f"{printable(repr(kind), 40)} is not supported; supported: linear, llama3, yarn", "rope_scaling")
    extra = [key for key, value in found.items() if key not in _SCALED_BY and value is not None]
    if extra:
        raise _refuse(f"{kind} with {printable(extra[0], 40)} is not supported", "rope_scaling")
    keys: dict[str, Any] = {"scaling.type": kind, "scaling.factor": _number(found, "factor")}
    if kind == "yarn":
        keys["scaling.original_context_length"] = _whole(found, "original_max_position_embeddings")
    return {f"{architecture}.rope.{key}": value for key, value in keys.items()}


def _frequencies(config: Mapping[str, Any], base: float, found: Mapping[str, Any], head: int) -> Floats | None:
    """The divisor of every frequency with Llama 3's scaling (head / 2,); None without.

    Long waves are stretched by the factor, short ones stay, those between are blended by their length.
    """
    if found.get("rope_type", found.get("type")) != "llama3":
        return None
    factor = _number(found, "factor")
    low, high = _number(found, "low_freq_factor", 1.0), _number(found, "high_freq_factor", 4.0)
    length = _number(found, "original_max_position_embeddings", config.get("original_max_position_embeddings", 8192))
    if high <= low:
        raise _refuse("high_freq_factor is not above low_freq_factor", "rope_scaling")
    divisors = []
    for i in range(0, head, 2):
        wave = 2 * math.pi * base ** (i / head)
        part = min(max((length / wave - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - part) / factor + part))
    return np.array(divisors, np.float32)


def _keys(config: Mapping[str, Any], architecture: str, sizes: _Sizes) -> dict[str, Any]:
    base, found = _rope(config)
    own = {
        "vocab_size": sizes.words,
        "context_length": _whole(config, "max_position_embeddings"),
        "embedding_length": sizes.hidden,
        "block_count": sizes.layers,
        "feed_forward_length": sizes.inner,
        "attention.head_count": sizes.heads,
        "attention.head_count_kv": sizes.kv_heads,
        "attention.key_length": sizes.head,
        "attention.value_length": sizes.head,
        "attention.layer_norm_rms_epsilon": _number(config, "rms_norm_eps", 1e-6),
        "rope.dimension_count": sizes.head,
        "rope.freq_base": base,
    }
    if sizes.experts is not None:
        own |= {"expert_count": sizes.experts.count, "expert_used_count": sizes.experts.used}
        if architecture != "llama":
            own["expert_feed_forward_length"] = sizes.experts.inner
        if sizes.experts.shared:
            own["expert_shared_feed_forward_length"] = sizes.experts.shared
    return {f"{architecture}.{key}": value for key, value in own.items()} | _scaling(architecture, found)


def _shapes(architecture: str, sizes: _Sizes, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of the required tensors, by their names in the checkpoint."""
    hidden, inner = sizes.hidden, sizes.inner
    q, kv = sizes.heads * sizes.head, sizes.kv_heads * sizes.head
    layer = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, q),
        "post_attention_layernorm.weight": (hidden,),
    }
    experts = sizes.experts
    if experts is None:
        layer |= _matrices("mlp", hidden, inner)
    else:
        layer["mlp.gate.weight"] = (experts.count, hidden)
        each = _matrices("mlp.experts", hidden, experts.inner)
        layer |= {name: (experts.count, *shape) for name, shape in each.items()}
    if experts is not None and experts.shared:
        layer |= _matrices("mlp.shared_expert", hidden, experts.shared)
        layer["mlp.shared_expert_gate.weight"] = (1, hidden)
    if architecture in ("qwen2", "qwen2moe"):
        layer |= {f"self_attn.{n}_proj.bias": (rows,) for n, rows in (("q", q), ("k", kv), ("v", kv))}
    if architecture in ("qwen3", "qwen3moe"):
        layer |= {f"self_attn.{n}_norm.weight": (sizes.head,) for n in "qk"}
    whole = {"model.embed_tokens.weight": (sizes.words, hidden), "model.norm.weight": (hidden,)}
    if not tied:
        whole["lm_head.weight"] = (sizes.words, hidden)
    return whole | {f"model.layers.{i}.{n}": shape for i in range(sizes.layers) for n, shape in layer.items()}


def _matrices(place: str, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    """Shapes of gate, up and down."""
    shapes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    return {f"{place}.{which}_proj.weight": shape for which, shape in shapes.items()}


def _optional(architecture: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the optional biases: llama.cpp adds them where it finds them."""
    if architecture != "llama":
        return {}
    return {
        f"{n.removesuffix('weight')}bias": s[:1] for n, s in shapes.items() if "_proj." in n and ".experts." not in n
    }


def _tensors(
    infos: Sequence[TensorInfo], architecture: str, sizes: _Sizes, *, tied: bool
) -> tuple[tuple[ModelTensor, ...], list[str]]:
    """The tensors of the GGUF, and the names of those left out."""
    needed = _shapes(architecture, sizes, tied=tied)
    known = needed | _optional(architecture, needed)
    present = {info.name for info in infos}
    missing = [name for name in needed if name not in present]
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]} is missing{more}")
    found, left = [], []
    for info in infos:
        if info.name.endswith(_USELESS) or (tied and info.name == "lm_head.weight"):
            left.append(info.name)
            continue
        name = gguf_name(info.name)
        if info.name not in known or name is None:
            raise DataError(f"{architecture} of llama.cpp has no such tensor", place=[printable(info.name)])
        if info.shape != known[info.name]:
            raise DataError(
                f"it is {list(info.shape)}, but {list(known[info.name])} by config.json", place=[printable(info.name)]
            )
        heads = 0
        if ARCHITECTURES[architecture] and (".q_proj." in info.name or ".k_proj." in info.name):
            heads = sizes.heads if ".q_proj." in info.name else sizes.kv_heads
        found.append(
            ModelTensor(
                name=name,
                source=info.name,
                shape=info.shape,
                heads=heads,
                float32=len(info.shape) < 2 or info.name.endswith(_ROUTERS),
            )
        )
    return tuple(found), left


def architecture_of(config: Mapping[str, Any]) -> str:
    """llama.cpp's architecture of a model. Raises UsageError for other models, with a list of those supported."""
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    if not isinstance(name, str) or name not in FAMILIES:
        what = f"{printable(name, 60)} is" if isinstance(name, str) else "models without architectures are"
        problem = f"{what} not supported by --to gguf"
        raise UsageError(problem, place=["config.json"], hint=f"supported: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def llama_model(config: Mapping[str, Any], infos: Sequence[TensorInfo]) -> LlamaModel:
    """The model of the config.json and the tensors of a checkpoint.

    Raises UsageError for another family, DataError for a model of the family that llama.cpp would run differently or
    not at all, and where tensors and config.json do not match.
    """
    architecture = architecture_of(config)
    sizes = _sizes(config, architecture)
    for key, fine in (("hidden_act", (None, "silu")), ("partial_rotary_factor", (None, 1, 1.0))):
        if config.get(key) not in fine:
            raise _refuse(f"llama.cpp does not support {printable(repr(config[key]), 40)}", key)
    tied = config.get("tie_word_embeddings") is True
    base, scaled = _rope(config)
    divisors = _frequencies(config, base, scaled, sizes.head)
    tensors, left = _tensors(infos, architecture, sizes, tied=tied)
    notes = []
    if left:
        notes.append(
            f"{left[0]}{f' and {len(left) - 1} more' if len(left) > 1 else ''} left out: llama.cpp does not use it"
        )
    window = config.get("sliding_window")
    if window is not None and config.get("use_sliding_window", architecture == "llama"):
        notes.append(f"llama.cpp attends to all tokens, not only the {printable(str(window), 20)} of sliding_window")
    return LlamaModel(
        architecture=architecture,
        keys=_keys(config, architecture, sizes),
        tensors=tensors,
        made={} if divisors is None else {_FREQUENCIES: divisors},
        vocabulary=sizes.words,
        notes=tuple(notes),
    )


def turned(rows: int, heads: int) -> NDArray[np.intp]:
    """The row of the checkpoint for every row of llama.cpp's q or k.

    >>> turned(8, 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    order: NDArray[np.intp] = np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    return order
