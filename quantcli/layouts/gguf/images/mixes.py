"""The types of tensors of a model of pictures by file type, as ComfyUI-GGUF's patch for llama-quantize mixes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantcli.tensors.info import TensorInfo

_VALUES = ("attn_v.weight", ".to_v.weight", ".v.weight", ".attn.w1v.weight", ".attn.w2v.weight", "_attn.v_proj.weight")
_FUSED = ("attn_qkv.weight", "attn.qkv.weight", "attention.qkv.weight")
_DOWNS = (
    *("ffn_down", ".ffn.2.weight", ".ff.net.2.weight", ".mlp.layer2.weight", ".adaln_modulation_mlp.2.weight"),
    ".feed_forward.w2.weight",
)
_OF_FUSED = {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}
_OF_DOWNS = {
    "Q3_K_M": "Q4_K",
    "Q3_K_L": "Q5_K",
    "Q4_K_S": "Q5_K",
    "Q4_K_M": "Q6_K",
    "Q5_K_M": "Q6_K",
    "Q4_0": "Q4_1",
    "Q5_0": "Q5_1",
}
_OF_VALUES = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "Q4_K_M": "Q6_K", "Q5_K_M": "Q6_K"}
_FIRST_VALUES = {"Q3_K_M": 2, "Q4_K_S": 4}
"""How many of the first matrices of values are Q5_K."""


def image_mix(kind: str, base: str, infos: Sequence[TensorInfo]) -> Mapping[str, str]:
    """The type of every matrix by name, in a file of a type whose usual one is `base`. infos: of those that do not stay
    in floating point."""
    found, values = dict[str, str](), 0
    for info in infos:
        name, own = info.name, base
        if len(info.shape) != 2:
            continue
        if any(word in name for word in _VALUES):
            own = "Q5_K" if values < _FIRST_VALUES.get(kind, 0) else _OF_VALUES.get(kind, base)
            values += 1
        elif any(word in name for word in _FUSED):
            own = _OF_FUSED.get(kind, base)
        elif any(word in name for word in _DOWNS) or ("experts." in name and ".w2.weight" in name):
            own = _OF_DOWNS.get(kind, base)
        found[name] = own
    return found
