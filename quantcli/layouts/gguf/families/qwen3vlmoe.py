"""Qwen 3 VL with experts, the part that reads text."""

from __future__ import annotations

from dataclasses import replace

from quantcli.layouts.gguf.families import qwen3moe
from quantcli.layouts.gguf.families._parts import DENSE, EXPERTS, HEAD_NORMS, OUTER
from quantcli.layouts.gguf.families._positions import levels, sections
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    plain, own = sections(config)
    found = qwen3moe.parts(Config({"norm_topk_prob": True, **plain.values}))
    return replace(found, keys={**found.keys, **own, **levels(config)})


FAMILY = Family(
    architecture="qwen3vlmoe",
    classes=("Qwen3VLMoeForConditionalGeneration",),
    parts=parts,
    modules=OUTER,
    layer={**DENSE, **EXPERTS, **HEAD_NORMS},
)
