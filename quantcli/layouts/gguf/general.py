"""Keys of a GGUF that the files beside a model tell: its name, and how the vectors of its words become one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from quantcli.layouts.config import json_beside
from quantcli.layouts.gguf.model import GgufModel
from quantcli.layouts.writer import Beside

POOLING = "1_Pooling/config.json"
"""Where sentence-transformers says how vectors are pooled."""

_WAYS = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2, "pooling_mode_lasttoken": 3}
"""llama.cpp's numbers of the ways."""


def title(config: Mapping[str, Any], beside: Beside) -> dict[str, str]:
    """The key for the name of a model, from its config.json or the heading of its README.md; none without.

    >>> title({"_name_or_path": "someone/small-7b"}, lambda name: None)
    {'general.name': 'small-7b'}
    """
    named = config.get("_name_or_path")
    card = beside("README.md") or b""
    heading = re.search(r"^# +(\S.*?) *$", card[:20_000].decode(errors="replace"), re.MULTILINE)
    found = named.rstrip("/").rpartition("/")[2] if isinstance(named, str) else ""
    found = found or (heading[1] if heading and b"quantcli" not in card else "")  # our cards are of the output
    return {"general.name": found[:200]} if found else {}


def pooling(model: GgufModel, beside: Beside) -> dict[str, int]:
    """The key for how the vectors of all words become one of the text, of a model that embeds text; none where nothing
    says it, or in several ways."""
    if model.keys.get(f"{model.architecture}.attention.causal") is not False:
        return {}
    found = json_beside(beside, POOLING) or {}
    ways = [number for key, number in _WAYS.items() if found.get(key) is True]
    others = [key for key, value in found.items() if key.startswith("pooling_mode_") and value is True]
    return {f"{model.architecture}.pooling_type": ways[0]} if len(ways) == len(others) == 1 else {}
