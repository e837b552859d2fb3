"""Tensor names of the Llama family, Hugging Face's and llama.cpp's, and those of tensors that are always floats."""

from __future__ import annotations

import re

ARCHITECTURES = {"llama": True, "qwen2": False, "qwen3": False, "qwen2moe": False, "qwen3moe": False}
"""Architectures of llama.cpp whose tensors have these names, and whether the rows of attn_q and attn_k are reordered:
the two halves of a head's rows alternate there, because llama.cpp rotates neighbours."""

_WHOLE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}

_EXPERT = {
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
    "w1": "ffn_gate_exps",
    "w3": "ffn_up_exps",
    "w2": "ffn_down_exps",
}

_NUMBER = r"(0|[1-9][0-9]{0,5})"
_HF_LAYER = re.compile(rf"model\.layers\.{_NUMBER}\.(.+)")
_HF_EXPERT = re.compile(rf"(?:mlp|block_sparse_moe)\.experts\.{_NUMBER}\.(.+)")
_GGUF_LAYER = re.compile(rf"blk\.{_NUMBER}\.(.+)")
_WHOLE_BACK = {ours: theirs for theirs, ours in _WHOLE.items()}
_LAYER_BACK = {ours: theirs for theirs, ours in reversed(_LAYER.items())}


def _ending(name: str) -> tuple[str, str]:
    """A module and the end of the name, `.weight` or `.bias`; an empty end for other names."""
    stem, dot, last = name.rpartition(".")
    return (stem, f".{last}") if dot and last in ("weight", "bias") else (name, "")


def gguf_name(name: str) -> str | None:
    """llama.cpp's name of a tensor; None where it has none, and for single experts.

    >>> gguf_name("model.layers.3.self_attn.q_proj.weight"), gguf_name("lm_head.weight"), gguf_name("visual.weight")
    ('blk.3.attn_q.weight', 'output.weight', None)
    """
    module, end = _ending(name)
    layer = _HF_LAYER.fullmatch(module)
    found = _LAYER.get(layer[2]) if layer else _WHOLE.get(module)
    if found is None or not end:
        return None
    return f"blk.{layer[1]}.{found}{end}" if layer else found + end


def hf_name(name: str) -> str | None:
    """Hugging Face's name of a tensor of llama.cpp; None where it has none.

    >>> hf_name("blk.3.attn_q.weight"), hf_name("rope_freqs.weight")
    ('model.layers.3.self_attn.q_proj.weight', None)
    """
    module, end = _ending(name)
    layer = _GGUF_LAYER.fullmatch(module)
    found = _LAYER_BACK.get(layer[2]) if layer else _WHOLE_BACK.get(module)
    if found is None or not end:
        return None
    return f"model.layers.{layer[1]}.{found}{end}" if layer else found + end


def imatrix_name(name: str) -> tuple[str, int | None] | None:
    """The name of a tensor in an importance matrix of llama.cpp, and the number of its expert; None where
    llama.cpp has no such name.

    >>> imatrix_name("model.layers.0.mlp.experts.7.up_proj.weight")
    ('blk.0.ffn_up_exps.weight', 7)
    >>> imatrix_name("model.layers.0.mlp.up_proj.weight")
    ('blk.0.ffn_up.weight', None)
    """
    module, end = _ending(name)
    layer = _HF_LAYER.fullmatch(module)
    expert = _HF_EXPERT.fullmatch(layer[2]) if layer else None
    if layer and expert and end and expert[2] in _EXPERT:
        return f"blk.{layer[1]}.{_EXPERT[expert[2]]}{end}", int(expert[1])
    found = gguf_name(name)
    return None if found is None else (found, None)


_OWN = re.compile(r"(?:blk|enc|dec|v|a|mm)\..+|[a-z_]+\.(?:weight|bias)")
"""Names of llama.cpp; those of checkpoints begin otherwise."""

_FLOAT = re.compile(
    r"""blk\.\d+\.(?:attn|ffn|ssm|time_mix|channel_mix)_\w+
    |.*(?:_norm|ffn_gate_inp|ffn_gate_inp_shexp|shortconv\.conv|attn_rel_b)\.weight
    |.*(?:altup|laurel|per_layer_model_proj|ssm_conv1d).*
    |.*time_mix_(?:first|w[012]|a[012]|v[012]|g[12]|decay_w[12]|lerp_fused)\.weight
    |(?:.+\.)?(?:position_embd|token_types|patch_embd|patch_merger|rel_pos|sam\.pos_embd|sam\.neck|sam\.net_\w*)\..+""",
    re.VERBOSE,
)
"""Names of llama.cpp's of the tensors that llama-quantize leaves as they are."""


def float_only(name: str) -> bool:
    """Whether llama.cpp takes a tensor of this name of its own in floating point only, or is small there.

    >>> float_only("blk.0.ffn_gate_inp.weight"), float_only("blk.0.ffn_gate.weight"), float_only("model.rel_pos.x")
    (True, False, False)
    """
    return _OWN.fullmatch(name) is not None and _FLOAT.fullmatch(name) is not None
