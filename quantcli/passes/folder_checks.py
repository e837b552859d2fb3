"""Whether index and configuration of a quantized folder agree with its weights."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from quantcli import architectures
from quantcli.architectures import UNNAMED
from quantcli.errors import printable
from quantcli.layouts.native.entries import decisions
from quantcli.layouts.native.stored import StoredTensor
from quantcli.passes.configuration import quantization_config
from quantcli.stores import Source, places
from quantcli.stores.homes import without_map
from quantcli.stores.places import read_small
from quantcli.strict import strict_json

CONFIG = "config.json"
_MOST = 100_000_000
"""Most bytes of a configuration."""


def faults(source: Source, folder: str, stored: Sequence[StoredTensor]) -> list[str]:
    """Entries of index and configuration of a quantized folder that differ from its files."""
    found = []
    if source.index:
        said = without_map(source.index).get("metadata")
        true = {
            "total_size": sum(info.nbytes for info in source.infos()),
            "total_parameters": sum(t.info.numel for t in stored),
        }
        for name, value in true.items():
            if isinstance(said, dict) and name in said and said[name] != value:
                shown = printable(repr(said[name]), 40)
                found.append(f"{os.path.basename(source.index)}: {name} is {shown}, not {value}")
    config = os.path.join(folder, CONFIG)
    content = strict_json(read_small(config, _MOST), config) if places.is_file(config) else None
    says = content.get("quantization_config") if isinstance(content, dict) else None
    if isinstance(content, dict) and (says is None or isinstance(says, dict)):
        wanted, _ = quantization_config(decisions(stored), architectures.of(content) or UNNAMED)
        if wanted is None and says is not None and says.get("quant_method") == "compressed-tensors":
            found.append(f"{CONFIG}: quantization_config names compressed-tensors, which does not support this")
        for name, value in (wanted or {}).items():
            if _in_any_order((says or {}).get(name)) != _in_any_order(value):
                found.append(f"{CONFIG}: {name} of quantization_config differs from the files")
    return found


def _in_any_order(value: Any) -> Any:
    """What a configuration says, with names sorted, and groups by what they hold: files need not have their tensors in
    the order in which the source had them.

    >>> _in_any_order({"group_0": {"targets": ["b", "a"]}, "group_1": {"targets": ["a"]}})
    [{'targets': ['a', 'b']}, {'targets': ['a']}]
    """
    if isinstance(value, list):
        return sorted(value) if all(isinstance(item, str) for item in value) else value
    if not isinstance(value, dict):
        return value
    found = {key: _in_any_order(item) for key, item in value.items()}
    numbered = found and all(re.fullmatch(r"group_\d+", str(key)) for key in found)
    return sorted(found.values(), key=repr) if numbered else dict(sorted(found.items()))
