"""Qwen 2 and 2.5 VL, the part that reads text: positions of three kinds, which are the same in text."""

from __future__ import annotations

from dataclasses import replace

from quantcli.layouts.gguf.families import qwen2
from quantcli.layouts.gguf.families._parts import DENSE, OUTER
from quantcli.layouts.gguf.families._positions import sections
from quantcli.layouts.gguf.family import Family, Parts
from quantcli.layouts.gguf.settings import Config


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    plain, own = sections(config)
    found = qwen2.parts(plain)
    return replace(found, keys={**found.keys, **own})


FAMILY = Family(
    architecture="qwen2vl",
    classes=("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"),
    parts=parts,
    modules=OUTER,
    layer=DENSE,
)
