"""Tensors beside a weight that its values do not need: scales of activations and of caches, and marks of a layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from quantcli.patterns import module_of
from quantcli.tensors.info import TensorInfo

OF_MODULE = (
    "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point", "act_scale",
    "activation_scale", "activation_zero_point", "scale_input", "qscale_act", "k_scale", "v_scale", "kv_scale",
)  # fmt: skip
"""Names in the module of a weight, of compressed-tensors, AutoFP8, ModelOpt, transformers, ComfyUI, Mistral, quanto."""

OF_WEIGHT = ("_input_scale", "_activation_scale", "_output_scale")
"""Endings after the name of a weight without a module of its own, such as those of all experts of a layer."""

OF_CACHE = ("k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale", "k_zero_point", "v_zero_point")
"""Names in the module of the attention, around those of its weights."""

MARKS = ("scaled_fp8",)
"""Names of tensors that say that a model is quantized, of ComfyUI: they hold up to two numbers that mean nothing."""

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8", "I32")


def _around(weights: Iterable[str]) -> dict[str, int]:
    """The number of the first weight inside every module."""
    inside: dict[str, int] = {}
    for number, weight in enumerate(weights):
        module = module_of(weight)
        while module:
            inside.setdefault(module, number)
            module = module.rpartition(".")[0]
    return inside


def of(weights: list[str], infos: Mapping[str, TensorInfo]) -> list[list[TensorInfo]]:
    """Those among some tensors that belong to each of the weights of these names."""
    names = {n for n, info in infos.items() if info.dtype in FLOATS and len(info.shape) < 2} if weights else set()
    found = []
    for weight in weights:
        module = module_of(weight)
        beside = [f"{module}.{n}" for n in OF_MODULE if module] + [f"{weight}{n}" for n in OF_WEIGHT]
        found.append([n for n in beside if n in names])
        names.difference_update(found[-1])
    around = _around(weights) if names else {}
    for name in sorted(names):
        module, last = module_of(name), name.rpartition(".")[2]
        if last in OF_CACHE and module in around:
            found[around[module]].append(name)
        elif last in MARKS and infos[name].numel <= 2:
            found[0].append(name)
    return [[infos[name] for name in own] for own in found]
