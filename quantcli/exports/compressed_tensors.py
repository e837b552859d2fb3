"""compressed-tensors: the quantization_config that makes a checkpoint folder loadable.

The native file already holds that library's `pack-quantized` tensors; only the configuration is missing. A model
that the layout cannot express (convolutions, short groups, float offsets, names without `.weight`, other bit widths)
gets none: a folder that claims it all the same would load with random weights and only a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantcli.patterns import module_of
from quantcli.plan import TensorPlan


def obstacle(tensor: TensorPlan) -> str | None:
    """Why the layout cannot express a quantized tensor; None when it can."""
    scheme, plan = tensor.scheme, tensor.layout
    assert scheme is not None and plan is not None
    if not tensor.info.name.endswith(".weight"):
        return "its name does not end in .weight"
    if len(tensor.info.shape) != 2:
        return f"it has {len(tensor.info.shape)} dimensions"
    if scheme.format != "int":
        return f"the format {scheme.format}"
    if not 2 <= scheme.bits <= 8:
        return f"{scheme.bits} bits"
    if scheme.zero_point == "float":
        return "float offsets"
    if plan.shared == "columns":
        return "one scale per column"
    if plan.shared is None and plan.short_group and scheme.granularity == "group":
        return f"a short last group of {plan.short_group}"
    return None


def _weights(tensor: TensorPlan) -> dict[str, Any]:
    scheme, plan = tensor.scheme, tensor.layout
    assert scheme is not None and plan is not None
    grouped = scheme.granularity == "group" and plan.groups > 1
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "group" if grouped else "channel",
        "group_size": plan.group if grouped else None,
        "dynamic": False,
    }


def quantization_config(tensors: Sequence[TensorPlan]) -> tuple[dict[str, Any] | None, str]:
    """The quantization_config of a model, and the reason why there is none.

    One scheme targets every Linear but the ignored ones; several name their modules, more bits first, because a
    loader that takes the first for all then fails loudly instead of decoding wrongly.
    """
    quantized = [t for t in tensors if t.scheme is not None]
    for tensor in quantized:
        why = obstacle(tensor)
        if why is not None:
            return None, f"{tensor.info.name}: {why}"
    groups: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for tensor in quantized:
        weights = _weights(tensor)
        groups.setdefault(repr(weights), (weights, []))[1].append(module_of(tensor.info.name))
    ordered = sorted(groups.values(), key=lambda g: -g[0]["num_bits"])
    config = {
        f"group_{i}": {
            "targets": ["Linear"] if len(ordered) == 1 else modules,
            "format": "pack-quantized",
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
        }
        for i, (weights, modules) in enumerate(ordered)
    }
    ignore = [
        module_of(t.info.name)
        for t in tensors
        if t.scheme is None and t.info.name.endswith(".weight") and len(t.info.shape) == 2
    ]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ignore,
        "config_groups": config,
    }, ""
