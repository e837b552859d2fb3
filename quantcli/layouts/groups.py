"""The groups of compressed-tensors in config.json, for readers of its formats: settings of weights and of the inputs of
layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from quantcli.errors import DataError, printable
from quantcli.layouts.config import section, text
from quantcli.layouts.stored import wrong
from quantcli.patterns import module_of

INPUTS: dict[str, dict[str, Any]] = {
    "int8": {"num_bits": 8, "type": "int", "strategy": "token"},
    "fp8": {"num_bits": 8, "type": "float", "strategy": "token"},
    "fp8-group": {"num_bits": 8, "type": "float", "group_size": 128, "strategy": "group"},
    "fp8-static": {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False},
    "nvfp4": {
        "num_bits": 4,
        "type": "float",
        "group_size": 16,
        "strategy": "tensor_group",
        "dynamic": "local",
        "scale_dtype": "torch.float8_e4m3fn",
    },
    "mxfp8": {"num_bits": 8, "type": "float", "group_size": 32, "strategy": "group", "scale_dtype": "torch.uint8"},
    "mxfp4": {"num_bits": 4, "type": "float", "group_size": 32, "strategy": "group", "scale_dtype": "torch.uint8"},
}
"""How inputs of layers are quantized, by `Scheme.activations`."""

KNOWN = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized", "mixed-precision", "dense")
"""The formats that compressed_tensors reads; microscaling has its own."""


def activations_of(stated: Mapping[str, Any]) -> str:
    """How inputs are quantized, as in `Scheme`, by the settings that a configuration has for them; `none` for other
    ones.

    >>> activations_of({"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True})
    'int8'
    """
    usual = {"symmetric": True, "dynamic": True}
    for name, own in INPUTS.items():
        wanted = {**usual, **{k: v for k, v in own.items() if k != "scale_dtype"}}
        if all(stated.get(key) == value for key, value in wanted.items()):
            return name
    return "none"


class Stated:
    """What config.json says of weights."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    @cached_property
    def _whole(self) -> dict[str, Any]:
        found = section(self._config, "quantization_config")
        return found if text(found, "quant_method") in (None, "compressed-tensors") else {}

    @cached_property
    def older(self) -> bool:
        """Whether it is of a release before 0.18, whose codes did not cross words."""
        found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", text(self._whole, "version") or "")
        return found is not None and (int(found[1]), int(found[2])) < (0, 18)

    @cached_property
    def transforms(self) -> dict[str, set[str]]:
        """Rotations and other matrices that weights or inputs are multiplied with, by name, and where each is."""
        groups, found = section(self._whole, "transform_config", "config_groups"), dict[str, set[str]]()
        for key in groups:
            uses = section(groups, key).get("apply")
            places = [use.get("location") for use in uses if isinstance(use, dict)] if isinstance(uses, list) else []
            found[key] = {place for place in places if isinstance(place, str)}
        return found

    def _check_transforms(self) -> None:
        """Raise DataError where a runtime multiplies inputs or outputs of layers, which weights do without alone."""
        for key, where in self.transforms.items():
            if where & {"input", "output"}:
                raise DataError(
                    f"a runtime multiplies inputs or outputs of layers by {printable(key, 40)}, which is not supported",
                    place=["config.json", "transform_config"],
                    hint="start from the original",
                )

    @cached_property
    def _groups(self) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
        """The settings of groups that name modules, by module, and of those that name classes or patterns."""
        self._check_transforms()
        groups = section(self._whole, "config_groups")
        named, general = dict[str, list[dict[str, Any]]](), list[dict[str, Any]]()
        for key in groups:
            group = section(groups, key)
            targets, weights = group.get("targets"), section(group, "weights")
            texts = [t for t in targets if isinstance(t, str)] if isinstance(targets, list) else []
            stated = text(group, "format") or text(self._whole, "format")
            inputs = activations_of(section(group, "input_activations"))
            own = {**weights, "strategy": text(weights, "strategy"), "format": stated, "inputs": inputs}
            for target in dict.fromkeys(texts):
                named.setdefault(target, []).append(own)
            if any(t.startswith("re:") or "." not in t for t in texts):
                general.append(own)
        return named, general

    def _own(self, name: str) -> list[dict[str, Any]]:
        """The settings that apply to a weight: those of the groups that name its module, else of those that name
        classes or patterns."""
        named, general = self._groups
        return named.get(module_of(name)) or general

    def inputs(self, name: str) -> str:
        """How the inputs of a layer are quantized, as in `Scheme`; `none` where that is not clear."""
        found = {own["inputs"] for own in self._own(name)}
        return str(found.pop()) if len(found) == 1 else "none"

    def settings(self, name: str) -> list[dict[str, Any]]:
        """The settings that apply to a weight. Raises DataError for an unknown format."""
        found = self._own(name)
        formats = [f for own in found if (f := own["format"]) is not None]
        if formats and not any(f in KNOWN for f in formats):
            raise wrong(name, f"compressed-tensors format {formats[0]} is not supported")
        return [own for own in found if own["format"] is None or own["format"] in KNOWN]
