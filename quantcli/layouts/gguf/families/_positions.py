"""Rotary embeddings of models with vision: some dimensions are for a position in time, some for height, some for width.
In text all three are the same."""

from __future__ import annotations

from typing import Any

from quantcli.layouts.gguf.settings import Config, refuse

_KINDS = ("mrope", "default")


def sections(config: Config) -> tuple[Config, dict[str, Any]]:
    """The config.json with a plain rotary embedding, and the key that says how many of its dimensions are for each kind
    of position. Raises DataError where it does not say."""
    values = dict(config.values)
    found: Any = None
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key)
        if isinstance(rope, dict) and rope.get("mrope_section") is not None:
            found = rope["mrope_section"]
            kind = rope.get("rope_type", rope.get("type", "default"))
            plain = {name: value for name, value in rope.items() if name not in ("mrope_section", "mrope_interleaved")}
            values[key] = {**plain, **({"rope_type": "default", "type": "default"} if kind in _KINDS else {})}
    if not isinstance(found, list) or not 0 < len(found) <= 4 or not all(type(n) is int and n >= 0 for n in found):
        raise refuse("it does not say how many dimensions each kind of position has", "rope_scaling", "mrope_section")
    return Config(values), {"rope.dimension_sections": [*found, 0, 0, 0, 0][:4]}


def levels(config: Config) -> dict[str, Any]:
    """The key that says how many layers get features of pictures, in models whose vision tower gives some from several
    of its own layers (deepstack); none in other models."""
    vision = config.get("vision_config")
    found = vision.get("deepstack_visual_indexes") if isinstance(vision, dict) else None
    return {"n_deepstack_layers": len(found)} if isinstance(found, list) else {}
