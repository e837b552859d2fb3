"""Rotary embeddings of some families: with a factor for every frequency, and in models with vision, where some
dimensions are for a position in time, some for height, some for width. In text all three are the same."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.layouts.gguf.families._parts import scaling
from quantcli.layouts.gguf.settings import Config, Rope, refuse

if TYPE_CHECKING:
    from quantcli.kernels import Floats

WITH_FACTORS = ("longrope", "su", "yarn")

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


def with_factors(config: Config, rope: Rope, rotated: int) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Keys and tensors of a rotary embedding with a factor for each frequency, one for short and one for long text."""
    usual = config.get("original_max_position_embeddings", config.whole("max_position_embeddings"))
    length = Config(rope.values).whole("original_max_position_embeddings", usual)
    keys: dict[str, Any] = {"rope.scaling.original_context_length": length}
    if rope.kind not in WITH_FACTORS or "long_factor" not in rope.values:
        return keys | scaling(rope), {}
    made: dict[str, Floats] = {}
    for kind in ("long", "short"):
        values = rope.values.get(f"{kind}_factor")
        if (
            not isinstance(values, list)
            or len(values) != rotated // 2
            or not all(type(v) in (int, float) for v in values)
        ):
            raise refuse(f"it is not a list of {rotated // 2} numbers", "rope_scaling", f"{kind}_factor")
        made[f"rope_factors_{kind}.weight"] = np.array(values, np.float32)
    scale = config.whole("max_position_embeddings") / length
    grown = math.sqrt(1 + math.log(scale) / math.log(length)) if rope.kind != "yarn" else 0.1 * math.log(scale) + 1
    return keys | {"rope.scaling.attn_factor": grown if scale > 1 else 1.0}, made
