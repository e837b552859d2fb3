"""Runs in a peers' environment: what comes out of quantized folders, loaded as their users load them.

    python load_zoo.py JOBS.json

JOBS is a list of {"model", "beside", "loader", "options", "floats"}: a folder; folders of floats to compare it with; a
loader of LOADERS, and its options; the loader of the floats, transformers unless it is given. For each a line of JSON
is printed: {"cosines", "finite"} with the cosine of what comes out and what comes out of each of the other folders, or
{"refused": "Error: words"} in the client's own words. A key that is missing, unexpected or of another size is a
refusal: transformers only warns of it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).parent))  # behind all packages
from clients import Log, OnlyAWarningError, gptqmodel_load, words


def inputs(config: Any) -> dict[str, torch.Tensor]:
    """What to put into a model: words, sound or an image, the same into all of a kind."""
    torch.manual_seed(1)
    text = config.get_text_config(decoder=True)
    found: dict[str, torch.Tensor] = {}
    if config.model_type == "whisper":
        found["input_features"] = torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions)
    elif hasattr(text, "vocab_size"):
        found["input_ids"] = torch.randint(3, text.vocab_size, (2, 24))
    if config.is_encoder_decoder:
        found["decoder_input_ids"] = torch.randint(3, text.vocab_size, (2, 16))
    seen = getattr(config, "vision_config", config)
    if hasattr(seen, "image_size"):
        found["pixel_values"] = torch.randn(2, seen.num_channels, seen.image_size, seen.image_size)
    return found


@torch.no_grad()
def outputs(model: Any) -> list[torch.Tensor]:
    """What comes out of a model: logits, hidden states, or embeddings of words and images."""
    if isinstance(model, list):
        return model
    out = model.eval()(**inputs(model.config))
    named = ("logits", "last_hidden_state", "text_embeds", "image_embeds")
    return [out[name].double().flatten() for name in named if name in out]


def transformers(folder: str, **options: Any) -> Any:
    """from_pretrained of the class that the configuration names; config: a class and options of a configuration."""
    import transformers as library

    if "config" in options:
        name, settings = options.pop("config")
        options["quantization_config"] = getattr(library, name)(**settings)
    kind = getattr(library, json.loads((Path(folder) / "config.json").read_text())["architectures"][0])
    model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    for what, keys in info.items():
        if keys:
            raise OnlyAWarningError(f"{what}: {min(map(str, keys))}, {len(keys)} in all")
    return model


def gptqmodel(folder: str) -> Any:
    return gptqmodel_load(Path(folder), torch.float16)


def mlx(folder: str) -> list[torch.Tensor]:
    """What comes out of the model in mlx-lm, which needs no tokenizer for it."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, config = load_model(Path(folder))
    model.set_dtype(mx.float32)
    said = model(mx.array(some_words(config).numpy())).astype(mx.float32)
    return [torch.tensor(np.array(said)).double().flatten()]


def some_words(config: dict[str, Any]) -> torch.Tensor:
    """Two rows of words of a vocabulary."""
    size = int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size", 512))
    return (torch.arange(48).reshape(2, 24) * 37 + 11) % size


@torch.no_grad()
def words_alone(folder: str) -> list[torch.Tensor]:
    """Logits of transformers for the words that mlx-lm is given."""
    config = json.loads((Path(folder) / "config.json").read_text())
    return [transformers(folder).eval()(input_ids=some_words(config)).logits.double().flatten()]


LOADERS: dict[str, Callable[..., Any]] = {
    "transformers": transformers, "words": words_alone, "gptqmodel": gptqmodel, "mlx": mlx,
}  # fmt: skip


@cache
def floats(folder: str, loader: str) -> list[torch.Tensor]:
    return outputs(LOADERS[loader](folder))


def cosine(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """The least of all outputs."""
    assert len(a) == len(b) > 0
    return min(float(torch.nn.functional.cosine_similarity(x, y, 0)) for x, y in zip(a, b))


def answer(job: dict[str, Any]) -> dict[str, Any]:
    log = Log()
    logging.getLogger("transformers").addHandler(log)
    try:
        found = outputs(LOADERS[job["loader"]](job["model"], **job["options"]))
        loader = job.get("floats", "transformers")
        finite = all(bool(torch.isfinite(values).all()) for values in found)
        said = {
            "cosines": [cosine(floats(other, loader), found) for other in job["beside"]],
            "finite": finite,
        }
    except Exception as error:
        said = {"refused": words(error, log.lines)}
    logging.getLogger("transformers").removeHandler(log)
    return said


def main() -> None:
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what clients print on standard output is no answer
    for job in json.loads(Path(sys.argv[1]).read_text()):
        print(json.dumps(answer(job)), file=answers, flush=True)


if __name__ == "__main__":
    main()
