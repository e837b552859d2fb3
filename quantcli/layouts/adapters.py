"""Adapters such as LoRA: files of changes to another model's weights, not models by themselves."""

from __future__ import annotations

import os
import re

from quantcli.stores import Source, places

_PART = re.compile(
    r"(?:^|[._])(?:lora_(?:A|B|up|down|embedding_[AB])|hada_w\d\w*|lokr_w\d\w*)(?:[._]|$)|lora\.(?:up|down)\."
)
"""Names of PEFT, diffusers, kohya's scripts and LyCORIS."""


def is_adapter(source: Source) -> bool:
    """Whether a source is an adapter: a file of PEFT, or mostly factors of changes to weights.

    Files that hold adapters together with the weights these belong to are models.
    """
    if (
        source.folder is not None
        and places.is_file(os.path.join(source.folder, "adapter_config.json"))
        and all(name.startswith("adapter_model") for name in source.shards)
    ):
        return True
    matrices = [info.name for info in source.infos() if len(info.shape) > 1]
    parts = sum(_PART.search(name[-1024:]) is not None for name in matrices)
    return parts > 0 and 2 * parts >= len(matrices) and not any(".base_layer." in name for name in matrices)
