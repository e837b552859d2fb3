"""Phi 3, 3.5 and 4: queries, keys and values in one matrix, gate and up in another."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.layouts.gguf.families._parts import (
    OUTER,
    decoder_keys,
    layers,
    no_window,
    norms,
    outer,
    scaling,
    sizes,
    ungated,
)
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config, Rope, refuse

if TYPE_CHECKING:
    from quantcli.kernels import Floats

WITH_FACTORS = ("longrope", "su", "yarn")


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    config.only("hidden_act", "silu")
    s, rope = sizes(config, kv_heads=config.whole("num_attention_heads")), config.rope()
    keys, made = _scaled(config, rope, int(s.head * rope.part))
    layer = {
        **norms(s.hidden, "attn_norm", "ffn_norm"),
        "attn_qkv.weight": (s.queries + 2 * s.keys, s.hidden),
        "attn_output.weight": (s.hidden, s.queries),
        **ungated(s.hidden, s.inner, up=2),
    }
    return Parts(
        keys={**decoder_keys(config, s, rope), **keys, "attention.sliding_window": config.get("sliding_window", 0)},
        needed={**outer(s.words, s.hidden, tied=s.tied), **layers([layer] * s.layers)},
        made=made,
        tied=s.tied,
        vocabulary=s.words,
        notes=no_window(config, used=True),
    )


def _scaled(config: Config, rope: Rope, rotated: int) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Keys and tensors of a rotary embedding with a factor for each frequency, one for short and one for long text."""
    usual = config.get("original_max_position_embeddings", config.whole("max_position_embeddings"))
    length = Config(rope.values).whole("original_max_position_embeddings", usual)
    keys: dict[str, Any] = {"rope.scaling.original_context_length": length}
    if rope.kind not in WITH_FACTORS or "long_factor" not in rope.values:
        return keys | scaling(rope), {}
    made: dict[str, Floats] = {}
    for kind in ("long", "short"):
        values = rope.values.get(f"{kind}_factor")
        if (
            not isinstance(values, list)
            or len(values) != rotated // 2
            or not all(type(v) in (int, float) for v in values)
        ):
            raise refuse(f"it is not a list of {rotated // 2} numbers", "rope_scaling", f"{kind}_factor")
        made[f"rope_factors_{kind}.weight"] = np.array(values, np.float32)
    scale = config.whole("max_position_embeddings") / length
    grown = math.sqrt(1 + math.log(scale) / math.log(length)) if rope.kind != "yarn" else 0.1 * math.log(scale) + 1
    return keys | {"rope.scaling.attn_factor": grown if scale > 1 else 1.0}, made


FAMILY = Family(
    architecture="phi3",
    classes=("Phi3ForCausalLM",),
    parts=parts,
    modules=OUTER,
    layer={
        "input_layernorm": "attn_norm",
        "self_attn.qkv_proj": "attn_qkv",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    },
)
