"""The models of pictures and films that ComfyUI-GGUF loads: what tells them, and what stays in floating point.

The facts are those of ComfyUI-GGUF's convert.py and of its patch for llama-quantize; for Qwen-Image, which these do not
know yet, what they say of its kin.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from quantcli.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageModel:
    """A model of pictures or films.

    architecture: general.architecture. title: for people. marks: names of tensors; where all of one row are there, it
    is this model. floats: parts of names of tensors that stay in floating point. precise: those of tensors that are F32
    where they are BF16. unused: those of tensors that are left out. reshaped: whether matrices and convolutions whose
    rows are not whole super-blocks are stored in rows of 256.
    """

    architecture: str
    title: str
    marks: tuple[tuple[str, ...], ...]
    floats: tuple[str, ...]
    precise: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    reshaped: bool = False

    def stays_float(self, name: str) -> bool:
        """Whether a tensor of this name stays in floating point."""
        return any(part in name for part in self.floats)


_FLUX = ("txt_in.", "img_in.", "time_in.", "vector_in.", "guidance_in.", "final_layer.")
_UNET = (
    *("class_embedding.", "time_embedding.", "add_embedding.", "time_embed.", "label_emb.", "conv_in.", "conv_out."),
    *("input_blocks.0.0.weight", "out.2.weight"),
)

IMAGE_MODELS = (
    ImageModel(
        architecture="qwen_image",
        title="Qwen-Image",
        marks=(("txt_norm.weight", "transformer_blocks.0.img_mlp.net.0.proj.weight"),),
        floats=("img_in.", "txt_in.", "txt_norm.", "time_text_embed.", "norm_out."),
    ),
    ImageModel(
        architecture="flux",
        title="Flux and Chroma",
        marks=(("double_blocks.0.img_attn.proj.weight",),),
        floats=_FLUX,
    ),
    ImageModel(
        architecture="sd3",
        title="Stable Diffusion 3",
        marks=(("joint_blocks.0.x_block.attn.qkv.weight",),),
        floats=("final_layer.", "time_text_embed.", "context_embedder.", "t_embedder.", "y_embedder.", "x_embedder."),
    ),
    ImageModel(
        architecture="aura",
        title="AuraFlow",
        marks=(("double_layers.3.modX.1.weight",),),
        floats=("t_embedder.", "init_x_linear.", "modF.1.weight", "cond_seq_linear.weight", "final_linear.weight"),
    ),
    ImageModel(
        architecture="hidream",
        title="HiDream",
        marks=(("caption_projection.0.linear.weight", "double_stream_blocks.0.block.ff_i.shared_experts.w3.weight"),),
        floats=(
            *("p_embedder.", "t_embedder.", "x_embedder.", "final_layer.", ".ff_i.gate.weight", "caption_projection."),
        ),
        precise=(".ff_i.gate.weight", "img_emb.emb_pos"),
    ),
    ImageModel(
        architecture="cosmos",
        title="Cosmos-Predict2",
        marks=(("blocks.0.mlp.layer1.weight", "blocks.0.adaln_modulation_cross_attn.1.weight"),),
        floats=("p_embedder.", "t_embedder.", "t_embedding_norm.", "x_embedder.", "pos_embedder.", "final_layer."),
        precise=("pos_embedder",),
        unused=("_extra_state", "accum_"),
    ),
    ImageModel(
        architecture="ltxv",
        title="LTX-Video",
        marks=(
            (
                *("adaln_single.emb.timestep_embedder.linear_2.weight", "transformer_blocks.27.scale_shift_table"),
                "caption_projection.linear_2.weight",
            ),
        ),
        floats=("adaln_single.", "caption_projection.", "patchify_proj.", "proj_out.", "scale_shift_table"),
        precise=("scale_shift_table",),
    ),
    ImageModel(
        architecture="hyvid",
        title="HunyuanVideo",
        marks=(
            (
                "double_blocks.0.img_attn_proj.weight",
                "txt_in.individual_token_refiner.blocks.1.self_attn_qkv.weight",
            ),
        ),
        floats=_FLUX,
    ),
    ImageModel(
        architecture="wan",
        title="Wan",
        marks=(("blocks.0.self_attn.norm_q.weight", "text_embedding.2.weight", "head.modulation"),),
        floats=(
            *("modulation.", "patch_embedding.", "text_embedding.", "time_projection.", "time_embedding.", "img_emb."),
            "head.",
        ),
        precise=(".modulation",),
    ),
    ImageModel(
        architecture="sdxl",
        title="Stable Diffusion XL",
        marks=(
            ("down_blocks.0.downsamplers.0.conv.weight", "add_embedding.linear_1.weight"),
            (
                *("input_blocks.3.0.op.weight", "input_blocks.6.0.op.weight"),
                *("output_blocks.2.2.conv.weight", "output_blocks.5.2.conv.weight"),
            ),
            ("label_emb.0.0.weight",),
        ),
        floats=_UNET,
        reshaped=True,
    ),
    ImageModel(
        architecture="sd1",
        title="Stable Diffusion 1 and 2",
        marks=(
            ("down_blocks.0.downsamplers.0.conv.weight",),
            (
                *("input_blocks.3.0.op.weight", "input_blocks.6.0.op.weight", "input_blocks.9.0.op.weight"),
                *("output_blocks.2.1.conv.weight", "output_blocks.5.2.conv.weight", "output_blocks.8.2.conv.weight"),
            ),
        ),
        floats=_UNET,
        reshaped=True,
    ),
    ImageModel(
        architecture="lumina2",
        title="Lumina 2",
        marks=(("cap_embedder.1.weight", "context_refiner.0.attention.qkv.weight"),),
        floats=("t_embedder.", "x_embedder.", "final_layer.", "cap_embedder.", "context_refiner.", "noise_refiner."),
    ),
)
"""The models in the order in which they are looked for: of two that share a mark the one with more of them first."""

PREFIXES = ("model.diffusion_model.", "model.", "net.", "")
"""What the names of the part that predicts noise may begin with in a file that holds other parts, too."""

_DIFFUSERS = (
    ("transformer_blocks.0.attn.norm_added_k.weight", "FluxTransformer2DModel"),
    ("transformer_blocks.0.attn.add_q_proj.weight", "SD3Transformer2DModel"),
    ("joint_transformer_blocks.3.ff_context.out_projection.weight", "AuraFlowTransformer2DModel"),
)
"""Tensors of models under the names of diffusers, which ComfyUI does not load from a GGUF."""


def image_model(names: Set[str]) -> tuple[ImageModel, str] | None:
    """The model with tensors of these names, and what they begin with there; None for any other model.

    >>> found = image_model({"net.label_emb.0.0.weight"})
    >>> found[0].architecture, found[1]
    ('sdxl', 'net.')
    """
    for prefix in PREFIXES:
        for model in IMAGE_MODELS:
            if any(all(prefix + mark in names for mark in row) for row in model.marks):
                return model, prefix
    return None


def supported() -> str:
    """The models, for hints."""
    return ", ".join(model.title for model in IMAGE_MODELS)


def check_names(names: Set[str]) -> None:
    """Raise UsageError for a model under names of diffusers that ComfyUI does not load."""
    for mark, model in _DIFFUSERS:
        if mark in names:
            hint = f"name the folder of the component, with its config.json ({model}), or the file that ComfyUI loads"
            raise UsageError("these are the names of diffusers, not those of ComfyUI", place=["--to gguf"], hint=hint)
