"""A checkpoint folder or a pipeline back to floats: the weights of each model in one file, and what lies beside them
without the quantization."""

from __future__ import annotations

import os
from collections.abc import Mapping

from quantcli.folders import card
from quantcli.folders.sidefiles import CARD, CONFIG, SideFiles
from quantcli.layouts.config import architecture, json_beside, without_quantization
from quantcli.layouts.loaders import decoded_experts
from quantcli.models import Model
from quantcli.passes import decode, outputs
from quantcli.passes.tiles import Progress
from quantcli.stores import destinations
from quantcli.stores.destinations import Part
from quantcli.stores.folder import json_bytes
from quantcli.stores.pipelines import prefixed

_DIFFUSERS = "diffusion_pytorch_model.safetensors"


def write(
    models: Mapping[str, Model],
    path: str,
    *,
    home: str | None,
    side: SideFiles,
    dtype: str | None,
    force: bool,
    threads: int,
    progress: Progress | None,
) -> int:
    """Write the tensors of each model to one file in its part of a folder at `path`, with the files beside the weights
    and a config.json that tells of no quantization; the bytes of the weights. models: by their subfolders, a single one
    under an empty name; home: the folder they are in. Raises QuantcliError."""
    told = card.beside(home, side)
    original = card.original(told) if told is not None else None
    size = 0
    with destinations.output_folder(path, force=force) as out:
        out.begin(())
        side.copy_to(out)
        for name, model in models.items():
            part = Part.of(out, name)
            place = os.path.join(part.temp, _name(model))
            size += decode.write(
                model, place, dtype=dtype, force=True, threads=threads, progress=progress, within=part.temp
            )
            out.finished(part.named(_name(model)))
            config = json_beside(model.source.beside, CONFIG)
            if config is not None:
                part.write(CONFIG, json_bytes(without_quantization(config)))
        if original is not None:
            out.write(CARD, original)
        out.publish()
    return size


def notes(models: Mapping[str, Model]) -> list[str]:
    """What there is to say of the folder before it is written: what loaders do not take."""
    return [
        prefixed(name, line)
        for name, model in models.items()
        for line in decoded_experts(model, architecture(model.source.beside))
    ]


def _name(model: Model) -> str:
    """The name that the model's loader looks for."""
    named = any(name.startswith(_DIFFUSERS.removesuffix(".safetensors")) for name in model.source.shards)
    return _DIFFUSERS if named else outputs.NAME
