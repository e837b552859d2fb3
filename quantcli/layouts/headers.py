"""What the headers of safetensors files say of how their tensors are stored, which config.json does not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from quantcli.errors import DataError, printable
from quantcli.layouts.reader import COMFYUI, TORCHAO
from quantcli.stores import Source
from quantcli.strict import strict_json

UNPACKED = "IntxUnpackedToInt8Tensor"
"""torchao's class of weights of fewer bits than the bytes that hold them."""


def told(source: Source) -> dict[str, Any]:
    """What headers say, by the key under which readers of layouts get it beside config.json. Raises DataError."""
    found = {COMFYUI: layers(source), TORCHAO: widths(source)}
    return {key: values for key, values in found.items() if values}


def layers(source: Source) -> dict[str, Any]:
    """ComfyUI's descriptions of modules in the headers of a source. Raises DataError."""
    found: dict[str, Any] = {}
    for shard in source.shards.values():
        document = strict_json(shard.metadata.get(COMFYUI, "{}").encode("utf-8", "replace"), COMFYUI)
        own = document.get("layers", {}) if isinstance(document, dict) else None
        if not isinstance(own, dict):
            raise DataError("its layers are not an object", place=[COMFYUI])
        found |= own
    return found


def widths(source: Source) -> dict[str, int]:
    """The bits of torchao's weights that have fewer than the bytes that hold them, by name. Raises DataError."""
    texts = {name: text for shard in source.shards.values() for name, text in shard.metadata.items()}
    found = {name: _width(name, text) for name, text in texts.items() if UNPACKED in text}
    return {name: bits for name, bits in found.items() if bits > 1}  # -1 and 0 are not the codes of one bit


def _width(name: str, text: str) -> int:
    """The bits of a weight by torchao's record of it, such as
    `{"_type": "IntxUnpackedToInt8Tensor", "_data": {"target_dtype": {"_data": "int4", ..}, ..}, ..}`."""
    document = strict_json(text.encode("utf-8", "replace"), printable(name))
    for key in ("_data", "target_dtype", "_data"):
        document = document.get(key) if isinstance(document, Mapping) else None
    found = re.fullmatch(r"int([1-8])", document) if isinstance(document, str) else None
    if found is None:
        raise DataError("its record by torchao has no target_dtype from int1 to int8", place=[printable(name)])
    return int(found[1])
