"""Text encoders as single files for ComfyUI (t5xxl_fp16.safetensors): the config.json that their tensors stand for.

ComfyUI-GGUF loads T5 under llama.cpp's names, and has a tokenizer of its own for it, but none for UMT5 (Wan), which it
makes of the file's. It loads no CLIP from a GGUF.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from quantcli.errors import UsageError
from quantcli.tensors.info import TensorInfo

_BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
_FIRST = "encoder.block.0.layer.{}"
_CLIP = ("text_model.encoder.layers.0.self_attn.q_proj.weight", "transformer.resblocks.0.attn.in_proj_weight")
_IMAGES = re.compile(r"(?<!res)blocks")
"""What names of a model of pictures have, which may hold text encoders too; `resblocks` are those of CLIP itself."""

_UMT5 = "ComfyUI-GGUF loads UMT5 only with the tokenizer in the file"

NOTE = "ComfyUI-GGUF has a tokenizer of T5; llama.cpp wants that of the model in the file: name its folder for it"


def config_of(infos: Sequence[TensorInfo]) -> dict[str, Any] | None:
    """What config.json would say of the encoder of a T5 with these tensors; None for any other model.

    Raises UsageError for UMT5 and CLIP, which ComfyUI-GGUF does not load so.
    """
    shapes = {info.name: info.shape for info in infos}
    if any(name.endswith(_CLIP) for name in shapes) and not any(_IMAGES.search(name) for name in shapes):
        hint = "ComfyUI loads CLIP from safetensors: quantize it with --to comfyui, or leave it as it is"
        raise UsageError("ComfyUI-GGUF and llama.cpp load no CLIP text encoder from a GGUF", hint=hint)
    queries, feed = (shapes.get(_FIRST.format(n)) for n in ("0.SelfAttention.q.weight", "1.DenseReluDense.wo.weight"))
    table, bias = shapes.get("shared.weight", shapes.get("encoder.embed_tokens.weight")), shapes.get(_BIAS.format(0))
    if any(shape is None or len(shape) != 2 for shape in (queries, feed, table, bias)):
        return None
    if _BIAS.format(1) in shapes:
        hint = "name the folder of the text encoder, with its config.json and spiece.model"
        raise UsageError(_UMT5, hint=hint)
    return _sizes(shapes, queries or (), feed or (), table or (), bias or ())


def without_vocabulary(config: Mapping[str, Any]) -> list[str]:
    """Notes on a file without a vocabulary of the model of this config.json."""
    if config.get("model_type") != "umt5":
        return []
    return [f"{_UMT5}, so it does not load this one: put spiece.model beside config.json"]


def _sizes(
    shapes: Mapping[str, tuple[int, ...]],
    queries: tuple[int, ...],
    feed: tuple[int, ...],
    table: tuple[int, ...],
    bias: tuple[int, ...],
) -> dict[str, Any]:
    """The same by the shapes of the matrix of queries, the last of a feed-forward network, the embedding, the bias."""
    layers = sum(name.startswith("encoder.block.") and name.endswith(".SelfAttention.q.weight") for name in shapes)
    gated = _FIRST.format("1.DenseReluDense.wi_0.weight") in shapes
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_model": queries[1],
        "d_ff": feed[1],
        "d_kv": queries[0] // max(bias[1], 1),
        "num_heads": bias[1],
        "num_layers": layers,
        "relative_attention_num_buckets": bias[0],
        "vocab_size": table[0],
        "feed_forward_proj": "gated-gelu" if gated else "relu",
    }
