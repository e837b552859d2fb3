"""A pipeline as diffusers saves it, in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from making import BF16, save
from strategies import gaussian

UNET = {
    "conv_in.weight": (64, 4, 3, 3),
    "time_embedding.linear_1.weight": (128, 64),
    "down_blocks.0.attentions.0.to_q.weight": (64, 64),
    "down_blocks.0.attentions.0.to_q.bias": (64,),
    "up_blocks.0.attentions.0.to_q.weight": (64, 64),
    "norm.weight": (64,),
}
TEXT = {
    "text_model.embeddings.token_embedding.weight": (64, 64),
    "text_model.encoder.layers.0.mlp.fc1.weight": (128, 64),
    "text_model.encoder.layers.0.mlp.fc1.bias": (128,),
}
VAE = {"decoder.conv_in.weight": (32, 4, 3, 3), "decoder.attention.to_q.weight": (64, 64)}


def weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    found = {}
    for number, (name, shape) in enumerate(shapes.items()):
        found[name] = gaussian(int(np.prod(shape)), seed=100 * seed + number).reshape(shape).astype(BF16)
    return found


def text(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def pipeline(folder: Path, variant: str = "") -> Path:
    """A pipeline as diffusers saves it, with two text encoders, one of them in shards."""
    index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.42.1"}
    index |= {"image_encoder": [None, None], "scheduler": ["diffusers", "DDIMScheduler"], "force_zeros": True}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"], "text_encoder": ["transformers", "CLIPTextModel"]}
    index |= {"text_encoder_2": ["transformers", "CLIPTextModel"]}
    text(folder / "model_index.json", index)
    text(folder / "scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"})
    text(folder / "tokenizer/vocab.json", {"a": 0})
    text(folder / "unet/config.json", {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.42.1"})
    text(folder / "vae/config.json", {"_class_name": "AutoencoderKL", "_diffusers_version": "0.42.1"})
    dot = f".{variant}" if variant else ""
    save(folder / f"unet/diffusion_pytorch_model{dot}.safetensors", weights(UNET, 1))
    save(folder / f"vae/diffusion_pytorch_model{dot}.safetensors", weights(VAE, 2))
    for seed, name in enumerate(("text_encoder", "text_encoder_2"), 3):
        config = {"model_type": "clip_text_model", "architectures": ["CLIPTextModel"]}
        text(folder / name / "config.json", config)
        if seed == 3:
            save(folder / name / f"model{dot}.safetensors", weights(TEXT, seed))
            continue
        weight_map = {}
        for number, part in enumerate(weights(TEXT, seed).items(), 1):
            file = f"model{dot}-{number:05d}-of-00003.safetensors"
            save(folder / name / file, dict([part]))
            weight_map[part[0]] = file
        ending = f"index.{variant}.json" if variant else "index.json"
        text(folder / name / f"model.safetensors.{ending}", {"metadata": {"total_size": 1}, "weight_map": weight_map})
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    return folder
