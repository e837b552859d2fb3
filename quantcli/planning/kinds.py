"""The preset that suits a model, by the config.json beside it, or where there is none by its names: what it keeps is
kept, its schemes are not used.

Where no recipe is given, a language model keeps what sees and hears and what predicts further tokens, a network of
convolutions its first layer and classifier, a diffusion model what carries time and condition; a single file with the
names that ComfyUI has for such models has a preset of its own. `--recipe` replaces that, and --no-default-keep and
--include, which say themselves what is quantized, do without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from quantcli import architectures
from quantcli.each import Each
from quantcli.errors import QuantcliError, printable
from quantcli.layouts.config import json_beside
from quantcli.patterns import compiled, module_of
from quantcli.planning.recipe import preset
from quantcli.planning.request import Rule

if TYPE_CHECKING:
    from quantcli.layouts.writer import Beside
    from quantcli.stores import Source
    from quantcli.tensors.info import TensorInfo

_SENTENCES = ("modules.json", "config_sentence_transformers.json")
"""Files of sentence-transformers."""

_WRITES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForImageTextToText")
"""How classes of models that write text are called."""

_SPEAKS = ("bark", "moonshine", "musicgen", "speech_to_text", "speecht5", "whisper")
"""Model types whose classes are called so, but which hear or sound as a whole."""

_CONVOLVES = (
    *("bit", "convnext", "convnextv2", "efficientnet", "hgnet_v2", "mobilenet_v1", "mobilenet_v2", "poolformer"),
    *("pp_lcnet", "regnet", "resnet", "textnet"),
)
"""Model types of transformers that are networks of convolutions."""

_TIMM = re.compile(
    r"(?:wide_|seresne|resne|regne|convnext|mobilenet|efficientnet|tf_efficientnet|densenet|vgg|inception)\w*"
)
"""Architectures of timm that are."""

_DIFFUSES = re.compile(r"\w*(?:UNet|Transformer)\w*")
"""Classes of diffusers that predict noise, in contrast to autoencoders and schedulers."""

_CHECKPOINT = re.compile(
    r"(?:model\.)?diffusion_model\.|(?:model\.|net\.)?(?:double_blocks\.0\.(?:img|txt)_|joint_blocks\.0\.|"
    r"input_blocks\.0\.0\.|transformer_blocks\.0\.(?:img_mod\.|attn1\.)|blocks\.0\.(?:cross_attn|adaln_modulation)|"
    r"noise_refiner\.0\.|time_projection\.1\.|double_stream_blocks\.0\.)"
)
"""How names of tensors begin in single files of diffusion models."""

LONGEST = 512
"""Characters of a name for which expressions of presets are quick."""


def preset_of(beside: Beside) -> str | None:
    """The preset for the model that the config.json beside it names; None where there is none for it.

    >>> files = {"config.json": b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'}
    >>> preset_of(files.get)
    'llm'
    """
    config = _config(beside)
    if any(beside(name) is not None for name in _SENTENCES):
        return "embedding"
    diffusers, timm, model_type = (config.get(key) for key in ("_class_name", "architecture", "model_type"))
    if isinstance(diffusers, str):
        return "diffusion" if _DIFFUSES.fullmatch(diffusers) else None
    if model_type in _CONVOLVES or (isinstance(timm, str) and _TIMM.fullmatch(timm)):
        return "cnn"
    return _by_class(config, model_type) if model_type not in _SPEAKS else None


def _by_class(config: Mapping[str, Any], model_type: Any) -> str | None:
    """The preset by the class of transformers that is named, or by those there are for the type of model."""
    known = architectures.classes(model_type) if isinstance(model_type, str) else ()
    named = config.get("architectures")
    own = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    if any(name.endswith(_WRITES) for name in own):
        return "llm"
    if own and not all(name.endswith("Model") for name in own):
        return None
    if any(name.endswith("ForMaskedLM") for name in known):
        return "embedding"
    return "llm" if any(name.endswith(_WRITES) for name in known) else None


def _config(beside: Beside) -> dict[str, Any]:
    """The config.json; empty where it is missing or damaged, which is another one's to say."""
    try:
        return json_beside(beside, "config.json") or {}
    except QuantcliError:
        return {}


class Chosen(NamedTuple):
    """The preset for a model, empty where there is none, what it keeps of it, as rules before all others, and what
    there is to say of one that is not chosen."""

    preset: str = ""
    rules: tuple[Rule, ...] = ()
    note: str = ""


def chosen(source: Source) -> Chosen:
    """The preset for a model, by what is beside it or else by its names; none for names of tensors that no model of
    transformers has."""
    infos = source.infos()
    names = Each(len(infos), lambda: (info.name for info in infos))
    name = preset_of(source.beside)
    if name is None and source.beside("config.json") is None and any(map(_CHECKPOINT.match, names)):
        name = "comfyui"
    if name is None:
        return Chosen()
    long = next((n for n in names if len(n) > LONGEST), None)
    if long is not None:
        why = f"the name {printable(long, 60)} has {len(long)} characters, more than {LONGEST}"
        return Chosen(note=f"no preset is chosen, because {why}; --recipe {name} takes that of such models")
    rules = [rule for rule in preset(name).rules if rule.scheme is None]
    if name == "llm":
        rules += _further_tokens(infos, _config(source.beside))
    kept = [rule for rule in rules if any(map(compiled(rule.pattern, name), names))]
    if name == "diffusion":
        kept = _apart(kept, names)
    return Chosen(name, tuple(replace(rule, optional=True, preset=name) for rule in kept))


def _further_tokens(infos: Iterable[TensorInfo], config: Mapping[str, Any]) -> list[Rule]:
    """A rule for layers behind the last one of the model, which predict further tokens (DeepSeek, GLM)."""
    model = architectures.of(config)
    if model is None:
        return []
    found = dict.fromkeys(layer for info in infos if (layer := model.behind(info.name)) is not None)
    return [Rule(f"re:{re.escape(layer)}\\..*", None, "predicts further tokens") for layer in list(found)[:64]]


def _apart(rules: list[Rule], names: Sequence[str]) -> list[Rule]:
    """The rules but those for a module whose name, where diffusers is told to skip it, makes it skip modules of that
    name in blocks too: Flux has a proj_out of its own and one in every block, which is a tenth of the model."""
    tests = [compiled(rule.pattern, "diffusion") for rule in rules]
    quantized = {module_of(n).rpartition(".")[2] for n in names if "." in module_of(n) and not any(t(n) for t in tests)}
    alone = [{module_of(n) for n in names if "." not in module_of(n) and test(n)} for test in tests]
    return [rule for rule, modules in zip(rules, alone) if not modules & quantized]


def about(preset: str) -> list[str]:
    """The line about a preset that was chosen; none for an empty name.

    >>> about("llm"), about("comfyui")
    (['preset llm, from config.json'], ['preset comfyui, from the names of tensors'])
    """
    where = "the names of tensors" if preset == "comfyui" else "config.json"
    return [f"preset {preset}, from {where}"] if preset else []
