"""The tensors of compressed-tensors, and the quantization_config that makes a checkpoint folder loadable.

A model that the layout cannot express (convolutions, short groups, float offsets, names without `.weight`, other bit
widths) gets no configuration: with one, the folder would load with random weights and only a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from quantcli.architectures import EXPERTS, Architecture
from quantcli.errors import UsageError, printable
from quantcli.layouts.accepts import Accepts
from quantcli.layouts.compressed_tensors import runtimes
from quantcli.layouts.compressed_tensors.formats import BYTES, FLOATS, PACKED, format_of, inputs, job, weights
from quantcli.layouts.compressed_tensors.read import BITS
from quantcli.layouts.config import architecture
from quantcli.layouts.joined import unjoined
from quantcli.layouts.loaders import (
    IN_TURN,
    VLLM_ONLY,
    ignored,
    inputs_in_groups,
    loads_experts,
    modules,
    not_linear,
    unknown,
)
from quantcli.layouts.pieces import facts, not_a_matrix, quantized
from quantcli.layouts.writer import Beside, Conversion, Weight
from quantcli.patterns import module_of
from quantcli.tensors.decisions import alike

_FP8 = Accepts(
    formats=("fp8-e4m3",),
    bits=(8,),
    granularities=("channel", "block", "tensor", "group"),
    symmetric=(True,),
    activations=("none", "fp8", "fp8-group", "fp8-static"),
)
_MXFP8 = replace(_FP8, groups=(32,), granularities=("group",), storage="e8m0", activations=("none", "mxfp8"))
_MXFP4 = replace(_MXFP8, formats=("fp4",), bits=(4,), activations=("none", "mxfp4"))
_NVFP4 = replace(_MXFP4, groups=(16,), storage="e4m3", activations=("none", "nvfp4"))

ACCEPTS = Accepts(bits=tuple(BITS), activations=("none", "int8", "fp8"), others=(_FP8, _MXFP8, _MXFP4, _NVFP4))


SENTENCES = (
    "sentence-transformers encodes with this folder only when it is loaded with "
    "model_kwargs={'quantization_config': CompressedTensorsConfig(dequantize=True)}; a folder made with --to "
    "bnb-nf4 needs nothing of the kind"
)
"""What there is to know of a folder of sentence-transformers."""

EXPERT = r"re:.*\.experts\.\d+\..*"
"""The target that names stacked experts: transformers looks for their scheme in the group with this target."""


def obstacle(tensor: Weight, model: Architecture) -> str | None:
    """Why the layout cannot express a quantized tensor, or no loader supports it in this model; None when it can be
    stored."""
    return ACCEPTS.obstacle(facts(tensor)[0]) or shape(tensor) or module(tensor, model)


def shape(weight: Weight) -> str | None:
    """Why a weight of this shape or name cannot be stored."""
    return not_a_matrix(weight) or inputs_in_groups(weight)


def module(weight: Weight, model: Architecture) -> str | None:
    """Why no loader supports a quantized weight in this module."""
    if not model.takes_packed:
        return "transformers cannot prepare this type of model for packed weights"
    if model.holder(module_of(weight.info.name)) == EXPERTS and not facts(weight)[0].symmetric:
        return "stacked experts are loaded without zero points"
    return not_linear(weight, model)


def quantization_config(tensors: Sequence[Weight], model: Architecture) -> tuple[dict[str, Any] | None, str]:
    """The quantization_config of a model, or the reason why there is none.

    One scheme targets every Linear but the ignored ones; several name their modules, more bits first, because a
    loader that takes the first for all then fails loudly instead of decoding wrongly.
    """
    own = quantized(tensors)
    model = model.of_file(module_of(tensor.info.name) for tensor in tensors)
    for tensor in own:
        why = obstacle(tensor, model)
        if why is not None:
            return None, f"{tensor.info.name}: {why}"
    several = len({repr(_settings(t)) for t, _ in alike(tensors) if t.scheme is not None}) > 1
    groups: dict[str, tuple[dict[str, Any], dict[str, None]]] = {}
    for tensor in own:
        settings, name = _settings(tensor), module_of(tensor.info.name)
        names = groups.setdefault(repr(settings), (settings, {}))[1]
        if model.holder(name) == EXPERTS:
            names[EXPERT] = None
        elif several:  # else none is named
            names |= dict.fromkeys(model.names(name))
    if any(model.holder(name) == EXPERTS for name in modules(tensors, quantized=False)):
        experts = [s for s, names in groups.values() if EXPERT in names]
        return None, f"{'some experts' if experts else 'experts'} are kept, but loaders need all of them packed or none"
    if sum(EXPERT in names for _, names in groups.values()) > 1:
        return None, "experts have several schemes, but loaders take one for all"
    ordered = sorted(groups.values(), key=lambda g: -g[0]["weights"]["num_bits"])
    formats = {settings["format"] for settings, _ in ordered}
    config = {
        f"group_{i}": {
            "targets": ["Linear"] if len(ordered) == 1 else list(names),
            **settings,
            "output_activations": None,
        }
        for i, (settings, names) in enumerate(ordered)
    }
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "ignore": ignored(tensors, model),
        "config_groups": config,
    }, ""


def _settings(tensor: Weight) -> dict[str, Any]:
    """What a group of the configuration says of a weight."""
    scheme = facts(tensor)[0]
    return {"format": format_of(scheme), "weights": weights(tensor), "input_activations": inputs(scheme)}


def documents(tensors: Sequence[Weight]) -> bool:
    """Whether these are stored as native files store them."""
    return all(t.scheme is None or format_of(facts(t)[0]) == PACKED for t, _ in alike(tensors))


def convert(tensors: Sequence[Weight], beside: Beside) -> Conversion:
    """The tensors, which are those of native files where they are packed integers, and the configuration."""
    model = architecture(beside)
    found, why = quantization_config(tensors, model)
    if found is None:
        hint = "choose --group-size and rules so that all experts get one scheme, or write --to native"
        raise UsageError(why, hint=hint)
    return Conversion(
        job=job,
        stem=module_of,
        config={"quantization_config": found},
        notes=[
            *_notes(tensors, found),
            *_of_experts(tensors, model),
            *unknown(model),
            *loads_experts(tensors, model, VLLM_ONLY - IN_TURN),
            *_sentences(beside),
        ],
    )


def _notes(tensors: Sequence[Weight], found: Mapping[str, Any]) -> list[str]:
    own = [facts(t)[0] for t, _ in alike(tensors) if t.scheme is not None]
    several, notes = len(found["config_groups"]) > 1, list[str]()
    if any(not scheme.symmetric for scheme in own) and not several:
        notes.append(
            "transformers with compressed-tensors 0.18 or newer loads asymmetric weights only with "
            "quantization_config=CompressedTensorsConfig(dequantize=True)"
        )
    packed = {scheme.bits for scheme in own if format_of(scheme) == PACKED}
    if odd := sorted(packed & set(runtimes.HUMMING)):
        older = "; transformers needs compressed-tensors 0.18 or newer" if set(odd) - {2} else ""
        bits = ", ".join(map(str, odd))
        notes.append(f"{bits} bits: vLLM 0.32 loads them with the package Humming alone, on CUDA{older}")
    notes += [*runtimes.unloaded(own), *unjoined(tensors)]
    return [*notes, *(runtimes.mixed(own) if several else [])]


def _of_experts(tensors: Sequence[Weight], model: Architecture) -> list[str]:
    """A note for experts that vLLM loads, but transformers does not decode. Raises UsageError where neither does."""
    own = {facts(w)[0]: w.info for w in quantized(tensors) if model.holder(module_of(w.info.name)) == EXPERTS}
    for scheme in sorted(own, key=lambda s: (format_of(s), s.granularity, s.name)):
        form = format_of(scheme)
        whole = form == FLOATS and scheme.granularity in ("channel", "tensor")
        if form in (PACKED, "mxfp4-pack-quantized") or whole:
            continue
        shown = form if form == BYTES else scheme.name
        what = f"decodes experts in {shown} to wrong numbers" if shown == "nvfp4" else f"loads no experts in {shown}"
        if not runtimes.vllm(scheme):
            hint = "choose another scheme for experts, or write --to native for quantcli alone"
            place = [printable(own[scheme].name)]
            raise UsageError(f"transformers 5.23 {what}, nor does vLLM", place=place, hint=hint)
        return [f"transformers 5.23 {what}; vLLM does"]
    return []


def _sentences(beside: Beside) -> list[str]:
    """A note for a folder of sentence-transformers, which has modules.json."""
    return [SENTENCES] if beside("modules.json") is not None else []
