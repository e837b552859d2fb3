"""Qwen 3 VL, the part that reads text: positions of three kinds, which are the same in text."""

from __future__ import annotations

from dataclasses import replace

from quantcli.layouts.gguf.families import qwen3
from quantcli.layouts.gguf.families._parts import DENSE, HEAD_NORMS, OUTER
from quantcli.layouts.gguf.families._positions import levels, sections
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    plain, own = sections(config)
    found = qwen3.parts(plain)
    return replace(found, keys={**found.keys, **own, **levels(config)})


FAMILY = Family(
    architecture="qwen3vl",
    classes=("Qwen3VLForConditionalGeneration",),
    parts=parts,
    modules=OUTER,
    layer={**DENSE, **HEAD_NORMS},
)
