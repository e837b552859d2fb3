"""A checkpoint folder back to floats: its weights in one file, and what lies beside them without the quantization."""

from __future__ import annotations

import os
from collections.abc import Mapping

from quantcli.folders import card
from quantcli.folders.sidefiles import CARD, CONFIG, SideFiles
from quantcli.layouts.config import json_beside, without_quantization
from quantcli.models import Model, View
from quantcli.passes import decode, outputs
from quantcli.passes.tiles import Progress
from quantcli.stores.folder import OutputFolder, json_bytes

_DIFFUSERS = "diffusion_pytorch_model.safetensors"


def write(
    model: Model,
    views: Mapping[str, View],
    path: str,
    *,
    side: SideFiles,
    dtype: str | None,
    force: bool,
    threads: int,
    progress: Progress | None,
) -> int:
    """Write the tensors of a checkpoint folder to one file in a folder at `path`, with the files beside its weights and
    a config.json that tells of no quantization; the bytes of the weights. Raises QuantcliError."""
    source = model.source
    config = json_beside(source.beside, CONFIG)
    told = card.beside(source.folder, side)
    original = card.original(told) if told is not None else None
    with OutputFolder(path, force=force) as out:
        out.begin(())
        side.copy_to(out)
        place = os.path.join(out.temp, _name(model))
        size = decode.write(model, views, place, dtype=dtype, force=True, threads=threads, progress=progress)
        if config is not None:
            out.write(CONFIG, json_bytes(without_quantization(config)))
        if original is not None:
            out.write(CARD, original)
        out.publish()
    return size


def _name(model: Model) -> str:
    """The name that the model's loader looks for."""
    named = any(name.startswith(_DIFFUSERS.removesuffix(".safetensors")) for name in model.source.shards)
    return _DIFFUSERS if named else outputs.NAME
