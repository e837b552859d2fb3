"""What most families have in common: names, sizes, shapes and keys of decoders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.errors import printable
from quantcli.layouts.gguf.family import Parts, Shapes
from quantcli.layouts.gguf.rows import KEYS, QUERIES
from quantcli.layouts.gguf.settings import Config, Rope, number, refuse

if TYPE_CHECKING:
    from quantcli.kernels import Floats

ROPE_FREQUENCIES = "rope_freqs.weight"


# ---- names ------------------------------------------------------------------------------------------------------

OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
ATTENTION = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
GATED = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
DENSE = {**ATTENTION, "post_attention_layernorm": "ffn_norm", **GATED}
NORMED_BEHIND = {
    **{name: ours for name, ours in ATTENTION.items() if name != "input_layernorm"},
    **HEAD_NORMS,
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    **GATED,
}
"""Names in layers with norms behind attention and feed-forward alone, and of queries and keys."""

EXPERTS = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
SHARED = {
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
SHARED_EXPERTS = {
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
TURNED = {"attn_q": QUERIES, "attn_k": KEYS}


# ---- sizes and shapes -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a decoder; head: of queries and keys, in rows. tied: whether the embedding is the head too."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    words: int
    tied: bool

    @property
    def queries(self) -> int:
        """Rows of all queries."""
        return self.heads * self.head

    @property
    def keys(self) -> int:
        """Rows of all keys, and of all values."""
        return self.kv_heads * self.head


def sizes(config: Config, *, kv_heads: int | None = None, head: int | None = None, shared: bool = False) -> Sizes:
    """The sizes in a config.json. kv_heads, head, shared: heads of keys, rows of a head, and whether the embedding is
    the head too, where it does not say; a head is a share of the hidden size then. Raises DataError."""
    hidden, heads = config.whole("hidden_size"), config.whole("num_attention_heads")
    if config.get("head_dim", head) is None and hidden % heads:
        raise refuse(f"{hidden} is not a multiple of the {heads} heads", "hidden_size")
    found = Sizes(
        hidden=hidden,
        inner=config.whole("intermediate_size"),
        layers=config.layers(),
        heads=heads,
        kv_heads=config.whole("num_key_value_heads", kv_heads),
        head=config.whole("head_dim", head or hidden // heads),
        words=config.whole("vocab_size"),
        tied=tied(config, default=shared),
    )
    if found.head % 2:
        raise refuse(f"heads of {found.head} rows cannot be rotated", "head_dim")
    return found


def tied(config: Config, *, default: bool = False) -> bool:
    """Whether the embedding is the head too."""
    return config.get("tie_word_embeddings", default) is True


def outer(words: int, hidden: int, *, tied: bool) -> Shapes:
    """The embedding, the last norm, and the head where it is a tensor of its own."""
    head = {} if tied else {"output.weight": (words, hidden)}
    return {"token_embd.weight": (words, hidden), "output_norm.weight": (hidden,), **head}


def attention(s: Sizes) -> Shapes:
    """Attention of a layer."""
    return {
        "attn_norm.weight": (s.hidden,),
        "attn_q.weight": (s.queries, s.hidden),
        "attn_k.weight": (s.keys, s.hidden),
        "attn_v.weight": (s.keys, s.hidden),
        "attn_output.weight": (s.hidden, s.queries),
    }


def head_norms(s: Sizes) -> Shapes:
    """Norms of each query and key."""
    return {"attn_q_norm.weight": (s.head,), "attn_k_norm.weight": (s.head,)}


def gated(hidden: int, inner: int, ending: str = "", experts: tuple[int, ...] = ()) -> Shapes:
    """Gate, up and down of a layer; of all experts in one tensor each."""
    return {
        f"ffn_gate{ending}.weight": (*experts, inner, hidden),
        f"ffn_up{ending}.weight": (*experts, inner, hidden),
        f"ffn_down{ending}.weight": (*experts, hidden, inner),
    }


def routed(hidden: int, inner: int, count: int) -> Shapes:
    """The experts of a layer and their router."""
    return {"ffn_gate_inp.weight": (count, hidden), **gated(hidden, inner, "_exps", (count,))}


def ungated(hidden: int, inner: int, *, up: int = 1) -> Shapes:
    """Up and down of a layer; up: of how many matrices that of up is made, 2 where gate and up are one."""
    return {"ffn_up.weight": (up * inner, hidden), "ffn_down.weight": (hidden, inner)}


def norms(hidden: int, *names: str) -> Shapes:
    """Weights of norms."""
    return {f"{name}.weight": (hidden,) for name in names}


def normed_behind(s: Sizes, of_heads: Shapes) -> Shapes:
    """A layer with norms behind attention and feed-forward alone. of_heads: those of queries and keys."""
    return {
        **{name: shape for name, shape in attention(s).items() if name != "attn_norm.weight"},
        **of_heads,
        **norms(s.hidden, "post_attention_norm", "post_ffw_norm"),
        **gated(s.hidden, s.inner),
    }


def of_all_heads(s: Sizes) -> Shapes:
    """Norms of all queries and all keys."""
    return {"attn_q_norm.weight": (s.queries,), "attn_k_norm.weight": (s.keys,)}


def biases(shapes: Shapes, *names: str) -> Shapes:
    """A bias for each of these modules, for each row; for all where none is named."""
    chosen = names or tuple(name.removesuffix(".weight") for name in shapes)
    return {f"{name}.bias": shapes[f"{name}.weight"][: max(1, len(shapes[f"{name}.weight"]) - 1)] for name in chosen}


def matrices(layer: Shapes) -> list[str]:
    """The modules of a layer that are not norms."""
    return [name.removesuffix(".weight") for name in layer if "norm" not in name]


def layers(each: Sequence[Shapes], blocks: str = "blk") -> Shapes:
    """The tensors of layers, one after another. blocks: what their names begin with."""
    return {f"{blocks}.{i}.{name}": shape for i, layer in enumerate(each) for name, shape in layer.items()}


# ---- keys -------------------------------------------------------------------------------------------------------


def decoder_keys(config: Config, s: Sizes, rope: Rope, *, epsilon: str = "rms_norm_eps") -> dict[str, Any]:
    """The keys of most decoders."""
    rms = "rms_" if "rms" in epsilon else ""
    return {
        "vocab_size": s.words,
        "context_length": config.whole("max_position_embeddings"),
        "embedding_length": s.hidden,
        "block_count": s.layers,
        "feed_forward_length": s.inner,
        "attention.head_count": s.heads,
        "attention.head_count_kv": s.kv_heads,
        "attention.key_length": s.head,
        "attention.value_length": s.head,
        f"attention.layer_norm_{rms}epsilon": config.number(epsilon, 1e-6),
        "rope.dimension_count": int(s.head * rope.part),
        "rope.freq_base": rope.base,
    }


_SCALED_BY = ("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor")


def scaling(rope: Rope, extra: Sequence[str] = (), *, by_tensor: bool = False) -> dict[str, Any]:
    """The keys of a scaled rotary embedding. extra: further values that the family knows. by_tensor: whether llama.cpp
    loads the divisors of frequencies of this family, which Llama 3's scaling needs (see `frequencies`). Raises
    DataError for a way of scaling that llama.cpp does not know."""
    if rope.kind == "default" or (by_tensor and rope.kind == "llama3"):
        return {}
    if rope.kind not in ("linear", "yarn"):
        shown, more = printable(repr(rope.kind), 40), "llama3, " if by_tensor else ""
        raise refuse(f"{shown} is not supported; supported: linear, {more}yarn", "rope_scaling")
    values = rope.values
    other = [key for key, value in values.items() if key not in (*_SCALED_BY, *extra) and value is not None]
    if other:
        raise refuse(f"{rope.kind} with {printable(other[0], 40)} is not supported", "rope_scaling")
    keys: dict[str, Any] = {"rope.scaling.type": rope.kind, "rope.scaling.factor": number(values, "factor")}
    if rope.kind == "yarn":
        keys["rope.scaling.original_context_length"] = Config(values).whole("original_max_position_embeddings")
    return keys


def frequencies(config: Config, rope: Rope, head: int) -> dict[str, Floats]:
    """The tensor of the divisors of every frequency with Llama 3's scaling (head / 2,); none without.

    Long waves are stretched by the factor, short ones stay, those between are blended by their length.
    """
    if rope.kind != "llama3":
        return {}
    values = rope.values
    factor = number(values, "factor")
    low, high = number(values, "low_freq_factor", 1.0), number(values, "high_freq_factor", 4.0)
    usual = config.get("original_max_position_embeddings", 8192)
    length = number(values, "original_max_position_embeddings", usual)
    if high <= low:
        raise refuse("high_freq_factor is not above low_freq_factor", "rope_scaling")
    divisors = []
    for i in range(0, head, 2):
        wave = 2 * math.pi * rope.base ** (i / head)
        part = min(max((length / wave - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - part) / factor + part))
    return {ROPE_FREQUENCIES: np.array(divisors, np.float32)}


def no_window(config: Config, *, used: bool) -> list[str]:
    """The note about a window of attention that llama.cpp does not have for the family. used: whether it is, where the
    config.json does not say."""
    window = config.get("sliding_window")
    if window is None or not config.get("use_sliding_window", used):
        return []
    return [f"llama.cpp attends to all tokens, not only the {printable(str(window), 20)} of sliding_window"]


# ---- all of it --------------------------------------------------------------------------------------------------


def decoder(
    config: Config,
    s: Sizes,
    rope: Rope,
    each: Sequence[Shapes],
    *,
    outside: Shapes | None = None,
    optional: Shapes | None = None,
    keys: Mapping[str, Any] | None = None,
    epsilon: str = "rms_norm_eps",
    scaled_by: Sequence[str] = (),
    by_tensor: bool = False,
    notes: Sequence[str] = (),
) -> Parts:
    """A decoder with the usual embedding, last norm, head and keys.

    each: the tensors of each layer. outside, optional: further tensors: outside of layers, and in each layer that may
    have them. keys: further ones. epsilon: the key of the number that norms add. scaled_by, by_tensor: how the rotary
    embedding may be scaled (see `scaling`). Raises DataError.
    """
    return Parts(
        keys={
            **decoder_keys(config, s, rope, epsilon=epsilon),
            **(keys or {}),
            **scaling(rope, scaled_by, by_tensor=by_tensor),
        },
        needed={**outer(s.words, s.hidden, tied=s.tied), **(outside or {}), **layers(each)},
        optional=layers([optional or {}] * s.layers),
        made=frequencies(config, rope, s.head) if by_tensor else {},
        tied=s.tied,
        vocabulary=s.words,
        notes=notes,
    )
