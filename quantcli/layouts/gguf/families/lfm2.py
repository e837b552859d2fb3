"""LFM2: short convolutions in place of attention in most layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from quantcli.layouts.gguf.families._parts import Sizes, attention, decoder, gated, head_norms, norms, sizes
from quantcli.layouts.gguf.family import Family, Parts, Shapes
from quantcli.layouts.gguf.settings import Config
from quantcli.stores.stacked import Matrix, Rebuilt
from quantcli.tensors.info import TensorInfo

CONVOLUTION = ".conv.conv.weight"


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config, s = settings(Config({**config.values, "intermediate_size": _inner(config)}))
    feed = gated(s.hidden, s.inner)
    return mixed(config, s, [feed] * s.layers)


def settings(config: Config) -> tuple[Config, Sizes]:
    """A config.json with the usual name of what norms add, and the sizes in it."""
    config.only("conv_bias", False)
    config = Config({**config.values, "rms_norm_eps": config.number("norm_eps", 1e-5)})
    return config, sizes(config, shared=config.get("tie_embedding", True) is True)


def mixed(config: Config, s: Sizes, feeds: Sequence[Shapes], keys: Mapping[str, Any] | None = None) -> Parts:
    """A decoder with a convolution or attention in each layer, and these feed-forward networks. keys: further ones."""
    full = config.get("full_attn_idxs", list(range(s.layers)))
    kinds = config.get("layer_types") or ["full_attention" if i in full else "conv" for i in range(s.layers)]
    taps = config.whole("conv_L_cache", 3)
    own: Shapes = {
        **norms(s.hidden, "attn_norm"),
        "shortconv.conv.weight": (s.hidden, taps),
        "shortconv.in_proj.weight": (3 * s.hidden, s.hidden),
        "shortconv.out_proj.weight": (s.hidden, s.hidden),
    }
    attending: Shapes = {**attention(s), **head_norms(s)}
    found = decoder(
        config,
        s,
        config.rope(base=1e6),
        [
            {**(own if kind == "conv" else attending), **norms(s.hidden, "ffn_norm"), **feed}
            for kind, feed in zip(kinds, feeds)
        ],
        keys={
            "attention.head_count_kv": [0 if kind == "conv" else s.kv_heads for kind in kinds],
            "shortconv.l_cache": taps,
            **(keys or {}),
        },
    )
    needed = {name: shape for name, shape in found.needed.items() if name != "output_norm.weight"}
    return replace(found, needed={**needed, **norms(s.hidden, "token_embd_norm")})


def _inner(config: Config) -> int:
    """Rows of the feed-forward network, of which config.json gives what they are computed from."""
    size = config.whole("block_ff_dim", config.get("intermediate_size"))
    if config.get("block_auto_adjust_ff_dim", True):
        step = config.whole("block_multiple_of", 256)
        size = math.ceil(int(config.number("block_ffn_dim_multiplier", 1.0) * int(2 * size / 3)) / step) * step
    return size


def rebuilt(info: TensorInfo, config: Config) -> list[Rebuilt] | None:
    """A convolution as a matrix; None for other tensors."""
    if not info.name.endswith(CONVOLUTION) or len(info.shape) != 3 or info.shape[1] != 1:
        return None
    rows, _, cols = info.shape
    return [Rebuilt(info.name, (rows, cols), (Matrix(name=info.name, rows=rows, cols=cols),))]


FAMILY = Family(
    architecture="lfm2",
    classes=("Lfm2ForCausalLM", "LFM2ForCausalLM"),
    parts=parts,
    modules={"model.embed_tokens": "token_embd", "model.embedding_norm": "token_embd_norm", "lm_head": "output"},
    layer={
        "operator_norm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.out_proj": "attn_output",
        "self_attn.q_layernorm": "attn_q_norm",
        "self_attn.k_layernorm": "attn_k_norm",
        "conv.conv": "shortconv.conv",
        "conv.in_proj": "shortconv.in_proj",
        "conv.out_proj": "shortconv.out_proj",
        "ffn_norm": "ffn_norm",
        "feed_forward.w1": "ffn_gate",
        "feed_forward.w3": "ffn_up",
        "feed_forward.w2": "ffn_down",
    },
    rebuilt=rebuilt,
)
