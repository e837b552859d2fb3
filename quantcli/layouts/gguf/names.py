"""Names of tensors in checkpoints and in llama.cpp, and those of tensors that are always floats there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from quantcli.layouts.gguf.families import families
from quantcli.layouts.gguf.family import Family

_NUMBER = r"(0|[1-9][0-9]{0,5})"
_LAYER = re.compile(rf"{_NUMBER}\.(.+)")
_HF_EXPERT = re.compile(
    rf"model\.layers\.{_NUMBER}\.(?:mlp|block_sparse_moe)\.experts\.{_NUMBER}\.(\w+)(\.weight|\.bias)"
)

_EXPERT = {
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
    "w1": "ffn_gate_exps",
    "w3": "ffn_up_exps",
    "w2": "ffn_down_exps",
}


def _ending(name: str) -> tuple[str, str]:
    """A module and the end of the name, `.weight` or `.bias`; an empty end for other names."""
    stem, dot, last = name.rpartition(".")
    return (stem, f".{last}") if dot and last in ("weight", "bias") else (name, "")


def _looked_up(name: str, table: Mapping[str, str]) -> str | None:
    """The name of a tensor by that of its module, or by its own where the table has that with an ending."""
    module, end = _ending(name)
    if name in table and _ending(table[name])[1]:
        return table[name]
    return table[module] + end if module in table and end else None


def _back(name: str, table: Mapping[str, str]) -> list[str]:
    """The names that a checkpoint may have for a tensor."""
    module, end = _ending(name)
    found = [theirs for theirs, ours in table.items() if ours == name]
    return found or [theirs + end for theirs, ours in table.items() if ours == module and end]


def gguf_name(name: str, family: Family | None = None) -> str | None:
    """llama.cpp's name of a tensor of a family, Llama if none is given; None where it has none.

    >>> gguf_name("model.layers.3.self_attn.q_proj.weight"), gguf_name("lm_head.weight"), gguf_name("visual.weight")
    ('blk.3.attn_q.weight', 'output.weight', None)
    """
    family = families()[0] if family is None else family
    name = next((name.removeprefix(p) for p in family.prefixes if name.startswith(p)), name)
    layer = _LAYER.fullmatch(name.removeprefix(f"{family.layers}.")) if name.startswith(f"{family.layers}.") else None
    if layer is None:
        return _looked_up(name, family.modules)
    found = _looked_up(layer[2], family.layer)
    return None if found is None else f"{family.blocks}.{layer[1]}.{found}"


def hf_name(name: str, family: Family | None = None) -> str | None:
    """A checkpoint's name of a tensor of llama.cpp, of Llama if no family is given; None where it has none.

    >>> hf_name("blk.3.attn_q.weight"), hf_name("rope_freqs.weight")
    ('model.layers.3.self_attn.q_proj.weight', None)
    """
    return _first(hf_names(name, families()[0] if family is None else family))


def hf_names(name: str, family: Family) -> list[str]:
    """The names that a checkpoint of a family may have for a tensor of llama.cpp, the most usual first."""
    start = f"{family.blocks}."
    layer = _LAYER.fullmatch(name.removeprefix(start)) if name.startswith(start) else None
    if layer is None:
        return _back(name, family.modules)
    return [f"{family.layers}.{layer[1]}.{found}" for found in _back(layer[2], family.layer)]


def imatrix_name(name: str) -> tuple[str, int | None] | None:
    """The name of a tensor in an importance matrix of llama.cpp, and the number of its expert; None where
    llama.cpp has no such name.

    >>> imatrix_name("model.layers.0.mlp.experts.7.up_proj.weight")
    ('blk.0.ffn_up_exps.weight', 7)
    >>> imatrix_name("model.layers.0.mlp.up_proj.weight")
    ('blk.0.ffn_up.weight', None)
    """
    expert = _HF_EXPERT.fullmatch(name)
    if expert and expert[3] in _EXPERT:
        return f"blk.{expert[1]}.{_EXPERT[expert[3]]}{expert[4]}", int(expert[2])
    found = _first(gguf_name(name, family) for family in families())
    return None if found is None else (found, None)


def _first(names: Iterable[str | None]) -> str | None:
    return next((name for name in names if name is not None), None)


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
