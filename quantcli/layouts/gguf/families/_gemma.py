"""What the generations of Gemma have in common."""

from __future__ import annotations

from quantcli.layouts.gguf.families._limits import head_tied
from quantcli.layouts.gguf.families._parts import ATTENTION, GATED, Sizes, norms
from quantcli.layouts.gguf.family import Shapes
from quantcli.layouts.gguf.settings import Config, refuse

ACTIVATION = "gelu_pytorch_tanh"

LAYER = {
    **ATTENTION,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    **GATED,
}
"""Names of Gemma 2 and 3."""


def gemma_sizes(config: Config) -> Sizes:
    """The sizes of a Gemma, whose heads have 256 rows where it does not say. Raises DataError where the output head is
    a tensor of its own."""
    return head_tied(config, head=256)


def between(s: Sizes) -> Shapes:
    """The norms of a layer of Gemma 2 and 3 behind its first."""
    return norms(s.hidden, "post_attention_norm", "ffn_norm", "post_ffw_norm")


def check_scale(config: Config, s: Sizes, odd: int) -> None:
    """Raise DataError where llama.cpp would scale scores of attention differently. odd: the number of layers of the
    size for which it divides by the share of a head in the hidden size."""
    wanted = s.hidden // s.heads if s.layers == odd else s.head
    found = config.get("query_pre_attn_scalar", wanted)
    if found != wanted:
        raise refuse(f"llama.cpp would take {wanted}, not {found}", "query_pre_attn_scalar")
