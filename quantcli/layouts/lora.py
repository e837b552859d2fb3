"""LoRA: pairs of thin matrices whose product is added to a weight, as PEFT, diffusers and kohya's scripts store them.

    M.lora_A.weight [r, in]    M.lora_B.weight [out, r]      PEFT, with adapter_config.json beside; diffusers
    M.lora_embedding_A [r, n]  M.lora_embedding_B [dim, r]   PEFT, of an embedding [n, dim]
    M.lora_down.weight         M.lora_up.weight              kohya, with M.alpha; M has _ for every dot
    M.lora.down.weight         M.lora.up.weight              older diffusers
    M.base_layer.X, M.X                                      PEFT: a tensor of the model that was trained as a whole

M is the name of a module of the model, behind a prefix such as `base_model.model.` or `unet.`. A weight W of the model
becomes W + s * B A, where s is alpha / r, or alpha / sqrt(r) where `use_rslora` says so; alpha and r may differ by
module. Without a configuration or an alpha s is 1, as diffusers has it. What changes weights in another way (DoRA,
LoHa, LoKr, initializations that change the model, activated LoRA) is refused by its name.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantcli.architectures import Architecture
from quantcli.errors import DataError, printable
from quantcli.patterns import module_of, near_misses
from quantcli.tensors.info import TensorInfo

_FACTOR = re.compile(
    r"(?P<module>.+?)[._](?P<kind>lora(?:_embedding)?)[._](?P<side>A|B|down|up)(?:\.default)?(?:\.weight)?"
)
_OTHER = (
    (re.compile(r"\.(?:lora_magnitude_vector|dora_scale)(?:\.|$)"), "DoRA"),
    (re.compile(r"[._]hada_w\d"), "LoHa"),
    (re.compile(r"[._]lokr_w\d"), "LoKr"),
    (re.compile(r"\.lora_B(?:\.default)?\.bias$"), "LoRA with biases (lora_bias)"),
    (re.compile(r"\.trainable_tokens_"), "trainable tokens"),
    (re.compile(r"\.lora_mid\."), "LoCon with a Tucker core (lora_mid)"),
)

_PREFIXES = ("base_model.model.", "unet.", "transformer.", "diffusion_model.", "lora_unet_", "lora_transformer_",
             "lora_te1_", "lora_te2_", "lora_te_", "text_encoder_2.", "text_encoder.", "")  # fmt: skip

_HARMLESS = {
    *(
        "peft_type",
        "peft_version",
        "task_type",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    ),
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "modules_to_save", "bias", "use_rslora"),
    *("fan_in_fan_out", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern", "init_lora_weights"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_config", "megatron_core"),
    *("runtime_config", "qalora_group_size", "ensure_weight_tying"),
}
"""Keys of adapter_config.json that are used, or do not change what is merged."""

_INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the model as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is added to a tensor of the model: scale * left @ right, over its rows and all that is behind them.

    left, right: tensors of the adapter, [rows, r] and [r, columns], or the transposed of these where `turned`. base:
    the tensor of the adapter that replaces the model's before, empty where none does. rank: r.
    """

    left: str
    right: str
    rank: int
    scale: float
    turned: bool
    base: str = ""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter does to a model: changes by the name of the tensor, and tensors it replaces by others of its
    own."""

    changes: Mapping[str, Change]
    replaced: Mapping[str, str]


@dataclass(slots=True)
class _Pair:
    down: str = ""
    up: str = ""
    embedding: bool = False


def find(
    infos: Mapping[str, TensorInfo],
    config: Mapping[str, Any] | None,
    alphas: Callable[[str], float],
    model: Mapping[str, TensorInfo],
    architecture: Architecture,
) -> Adapter:
    """What the tensors of an adapter do to those of a model. config: adapter_config.json, None where there is none.
    alphas(name): the value of a tensor of one number.

    Raises DataError for a tensor that is not understood or belongs to none of the model, and for settings of an adapter
    that is not merged this way.
    """
    settings = _checked(config) if config is not None else None
    pairs, alpha, rest = _sorted(infos)
    names = _Names(model, architecture)
    prefix = names.prefix_of([*pairs, *(module_of(n.replace(".base_layer.", ".")) for n in rest)])
    replaced = {names.tensor(name.replace(".base_layer.", "."), prefix, name): name for name in rest}
    for name, own in replaced.items():
        if infos[own].shape != model[name].shape:
            problem = f"its shape {list(infos[own].shape)} is not that of the model's, {list(model[name].shape)}"
            raise DataError(problem, place=[printable(own)], hint="merge it with PEFT, which resizes the model")
    changes = {}
    for module, pair in pairs.items():
        if not (pair.up and pair.down):
            raise DataError("it has only one of two factors", place=[printable(module)])
        target = names.tensor(f"{module}.weight", prefix, pair.down)
        rank = infos[pair.down].shape[0] if infos[pair.down].shape else 0
        given = alphas(alpha.pop(module)) if module in alpha else None
        scale = _scale(settings, module.removeprefix(prefix), rank, given)
        fan_in = bool((settings or {}).get("fan_in_fan_out")) or names.is_turned(target)
        turned = pair.embedding or fan_in
        changes[target] = _change(infos, model[target], pair, rank, scale, turned, replaced.pop(target, ""))
    if alpha:
        raise DataError("it belongs to no pair of factors", place=[printable(next(iter(alpha.values())))])
    if not changes:
        raise DataError("it holds no pair of LoRA factors")
    return Adapter(changes, replaced)


def _sorted(infos: Iterable[str]) -> tuple[dict[str, _Pair], dict[str, str], list[str]]:
    """The factors of an adapter by module, its alphas by module, and all other tensors."""
    pairs, alpha, rest = dict[str, _Pair](), dict[str, str](), list[str]()
    for name in infos:
        for pattern, what in _OTHER:
            if pattern.search(name):
                hint = "merge it with the library that made it, and quantize that"
                raise DataError(f"this is {what}, which is not folded in", place=[printable(name)], hint=hint)
        match = _FACTOR.fullmatch(name)
        if match:
            pair = pairs.setdefault(match["module"], _Pair())
            pair.embedding = match["kind"] == "lora_embedding"
            side = "down" if match["side"] in ("A", "down") else "up"
            if getattr(pair, side):
                raise DataError("two tensors are this factor", place=[printable(name)])
            setattr(pair, side, name)
        elif name.endswith(".alpha"):
            alpha[name.removesuffix(".alpha")] = name
        else:
            rest.append(name)
    return pairs, alpha, rest


def _change(
    infos: Mapping[str, TensorInfo],
    weight: TensorInfo,
    pair: _Pair,
    rank: int,
    scale: float,
    turned: bool,
    base: str,
) -> Change:
    """What a pair of factors adds to a weight. Raises DataError where their shapes do not match it."""
    down, up = infos[pair.down], infos[pair.up]
    left, right = (down, up) if turned else (up, down)
    rows = weight.shape[0] if weight.shape else 0
    fits = rank > 0 and rows > 0 and len(up.shape) > 1 and up.shape[1] == rank and up.numel == up.shape[0] * rank
    if not fits or left.numel != rows * rank or right.numel != weight.numel // rows * rank:
        problem = f"factors of {list(up.shape)} and {list(down.shape)} do not match {list(weight.shape)}"
        raise DataError(problem, place=[printable(pair.down)])
    return Change(left=left.name, right=right.name, rank=rank, scale=scale, turned=turned, base=base)


# ---- settings ---------------------------------------------------------------------------------------------------


def _checked(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of an adapter, all of which are understood."""
    place = "adapter_config.json"
    kind = config.get("peft_type")
    hint = "merge it with PEFT, and quantize that"
    if kind != "LORA":
        raise DataError(
            f"{printable(repr(kind), 60)} adapters are not folded in", place=[place, "peft_type"], hint=hint
        )
    if config.get("init_lora_weights") not in _INITIAL:
        shown = printable(repr(config["init_lora_weights"]), 60)
        problem = f"an adapter that begins with {shown} changes the model beside its factors"
        raise DataError(problem, place=[place, "init_lora_weights"], hint=hint)
    for key, value in config.items():
        if key not in _HARMLESS and value:
            raise DataError(
                "this setting is not known to merge as LoRA does", place=[place, printable(key, 60)], hint=hint
            )
    return config


def _scale(settings: Mapping[str, Any] | None, module: str, rank: int, alpha: float | None) -> float:
    """The factor before the product of a module's matrices."""
    if alpha is not None and not math.isfinite(alpha):
        raise DataError("its alpha is not a number", place=[printable(module)])
    if settings is None:
        return 1.0 if alpha is None else alpha / max(rank, 1)
    r = _by_pattern(settings, "rank_pattern", module, settings.get("r", 8))
    if r != rank:
        problem = f"adapter_config.json gives it the rank {printable(repr(r), 20)}, and its factors have {rank}"
        raise DataError(problem, place=[printable(module)])
    value = (
        alpha if alpha is not None else _by_pattern(settings, "alpha_pattern", module, settings.get("lora_alpha", 8))
    )
    number = _finite(value)
    if number is None:
        raise DataError(f"{printable(repr(value), 40)} is not a number", place=["adapter_config.json", "lora_alpha"])
    return number / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _finite(value: Any) -> float | None:
    """A number of JSON in float64; None for what is none there."""
    if type(value) not in (int, float) or abs(value) > sys.float_info.max:
        return None
    return None if math.isnan(value) else float(value)


def _by_pattern(settings: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    """What the first pattern that matches a module says; each stands for the end of a name, as PEFT has it."""
    patterns = settings.get(key) or {}
    if not isinstance(patterns, dict):
        raise DataError("it is not an object", place=["adapter_config.json", key])
    for pattern, value in patterns.items():
        if len(pattern) > 400:
            raise DataError(f"a pattern of {len(pattern)} characters", place=["adapter_config.json", key])
        try:
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return value
        except (re.error, RecursionError, OverflowError):
            problem = f"{printable(repr(pattern), 80)} is not a regular expression"
            raise DataError(problem, place=["adapter_config.json", key]) from None
    return default


# ---- names ------------------------------------------------------------------------------------------------------


class _Names:
    """The tensors of a model by the names that adapters have for them."""

    def __init__(self, model: Mapping[str, TensorInfo], architecture: Architecture) -> None:
        self.model, self.architecture = model, architecture
        self._known: dict[str, str] = {}
        for name in model:
            module, _, last = name.rpartition(".")
            own = architecture.module(module)
            for alias in (name, f"{own}.{last}", f"model.{name}", name.removeprefix("model.")):
                self._known.setdefault(alias, name)
        flat: dict[str, list[str]] = {}
        for name in model:
            if name.endswith(".weight"):
                flat.setdefault(module_of(name).replace(".", "_"), []).append(name)
        self._flat = {key: names[0] for key, names in flat.items() if len(names) == 1}

    def _found(self, name: str, prefix: str) -> str | None:
        if not name.startswith(prefix):
            return None
        rest = name.removeprefix(prefix)
        if prefix.startswith("lora_"):
            return self._flat.get(module_of(rest))
        return self._known.get(rest)

    def prefix_of(self, modules: Sequence[str]) -> str:
        """The prefix behind which most modules of an adapter are those of the model."""
        return max(_PREFIXES, key=lambda p: sum(self._found(f"{m}.weight", p) is not None for m in modules))

    def tensor(self, name: str, prefix: str, told: str) -> str:
        """The tensor of the model that an adapter calls so. told: the tensor of the adapter, for the error."""
        found = self._found(name, prefix)
        if found is None:
            rest = printable(name.removeprefix(prefix), 200)
            hint = near_misses(name.removeprefix(prefix), self.model)
            raise DataError(f"the model has no {rest} for it", place=[printable(told)], hint=hint)
        return found

    def is_turned(self, name: str) -> bool:
        """Whether a weight is stored with its inputs first."""
        return self.architecture.holder(module_of(name)) == "Conv1D"
