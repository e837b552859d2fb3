"""Freeze what ComfyUI-GGUF makes of models of pictures: python write_images.py COMFYUI COMFYUI_GGUF OUT.json

COMFYUI, COMFYUI_GGUF: checkouts of both. Small checkpoints with the names that its convert.py knows become GGUFs there;
their architectures, types, shapes and keys are written, and where ComfyUI and diffusers have the rows of the tensors of
a Flux and a Wan of diffusers.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import save_file

SHAPES: dict[str, tuple[str, dict[str, list[int]]]] = {
    "flux": ("BF16", {
        "double_blocks.0.img_attn.proj.weight": [256, 256], "double_blocks.0.img_attn.proj.bias": [256],
        "double_blocks.0.img_attn.norm.query_norm.scale": [128], "img_in.weight": [256, 64],
        "final_layer.linear.weight": [64, 256], "single_blocks.0.linear2.weight": [256, 1280], "tiny.weight": [16, 32],
    }),
    "wan": ("BF16", {
        "blocks.0.self_attn.norm_q.weight": [256], "text_embedding.2.weight": [256, 256],
        "head.modulation": [1, 2, 256],
        "blocks.0.modulation": [1, 6, 256], "blocks.0.ffn.2.weight": [256, 512], "head.head.weight": [64, 256],
    }),
    "sdxl": ("F16", {
        "input_blocks.3.0.op.weight": [32, 32, 3, 3], "input_blocks.6.0.op.weight": [64, 64, 3, 3],
        "output_blocks.2.2.conv.weight": [64, 64, 3, 3], "output_blocks.5.2.conv.weight": [32, 32, 3, 3],
        "input_blocks.0.0.weight": [32, 4, 3, 3], "out.2.weight": [4, 32, 3, 3], "label_emb.0.0.weight": [128, 320],
        "middle_block.1.proj_in.weight": [64, 64], "middle_block.1.transformer_blocks.0.attn2.to_v.weight": [64, 100],
        "middle_block.1.transformer_blocks.0.ff.net.2.weight": [64, 256], "middle_block.0.in_layers.0.weight": [64],
    }),
}  # fmt: skip
"""Dtype, names and shapes of checkpoints."""
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
WIDTH = 4
"""Columns of a Flux; rows of its parts are as many."""


def converted(name: str, dtype: str, shapes: dict[str, list[int]], work: Path) -> dict[str, Any]:
    """What convert.py makes of a checkpoint."""
    import convert

    torch.manual_seed(0)
    save_file({k: torch.randn(v).to(DTYPES[dtype]) for k, v in shapes.items()}, work / "a.safetensors")
    convert.convert_file(str(work / "a.safetensors"), str(work / "a.gguf"), interact=False, overwrite=True)
    made = gguf.GGUFReader(work / "a.gguf")
    keys = {k: f.contents() for k, f in made.fields.items() if k.startswith("comfy.")}
    assert made.fields["general.architecture"].contents() == name
    tensors = {t.name: [t.tensor_type.name, [int(n) for n in t.shape[::-1]]] for t in made.tensors}
    return {"dtype": dtype, "shapes": shapes, "tensors": tensors, "keys": keys}


def rows_of_flux() -> dict[str, Any]:
    """The rows of the tensors of a small Flux of diffusers in the tensors that ComfyUI has."""
    import comfy.utils

    named = comfy.utils.flux_to_diffusers({"depth": 1, "depth_single_blocks": 1, "hidden_size": WIDTH})
    found: dict[str, list[Any]] = {}
    for theirs, ours in named.items():
        if isinstance(ours, str):
            found.setdefault(ours, []).append([theirs, 0])
        elif len(ours) > 2:
            found.setdefault(ours[0], []).append([theirs, "swapped"])
        else:
            found.setdefault(ours[0], []).append([theirs, ours[1][1]])
    return {name: sorted(parts, key=lambda p: (p[1] == "swapped", p[1])) for name, parts in found.items()
            if not name.startswith("pos_embed")}  # fmt: skip


def names_of_wan() -> dict[str, str]:
    """The names that diffusers gives the tensors of a Wan."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    block = [f"{a}.{m}.{e}" for a in ("self_attn", "cross_attn") for m in "qkvo" for e in ("weight", "bias")]
    block += [f"{a}.norm_{m}.weight" for a in ("self_attn", "cross_attn") for m in "qk"]
    block += ["cross_attn.k_img.weight", "cross_attn.v_img.bias", "cross_attn.norm_k_img.weight", "norm3.weight",
              "ffn.0.weight", "ffn.2.bias", "modulation"]  # fmt: skip
    names = [f"blocks.0.{name}" for name in block] + ["patch_embedding.weight", "time_embedding.0.weight",
             "time_embedding.2.bias", "text_embedding.0.weight", "text_embedding.2.weight", "time_projection.1.weight",
             "img_emb.proj.0.weight", "img_emb.proj.1.weight", "img_emb.proj.3.bias", "img_emb.proj.4.bias",
             "head.modulation", "head.head.weight"]  # fmt: skip
    found = {}
    for name in names:
        [theirs] = convert_wan_transformer_to_diffusers({name: torch.zeros(2, 1, 1, 1)})
        found[name] = theirs
    return found


def main() -> None:
    comfyui, comfyui_gguf, out = sys.argv[1:]
    sys.path[:0] = [comfyui, f"{comfyui_gguf}/tools"]
    with tempfile.TemporaryDirectory() as work:
        made = {name: converted(name, *case, Path(work)) for name, case in SHAPES.items()}
    sys.argv = [sys.argv[0], "--cpu"]
    told = {"converted": made, "flux": rows_of_flux(), "wan": names_of_wan()}
    Path(out).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
