"""What the loaders of other tools support: which modules may be quantized, and how they are told which are not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain

from quantcli import architectures
from quantcli.architectures import CHANGED, DIRECT, EXPERTS, INITIALIZED, UNLOADABLE, UNNAMED, Architecture
from quantcli.architectures.experts import MIXTRAL, ONE_BY_ONE, SINGLE, Experts, Naming
from quantcli.errors import UsageError, printable
from quantcli.layouts.pieces import facts
from quantcli.layouts.writer import Weight
from quantcli.patterns import module_of


def not_linear(weight: Weight, model: Architecture) -> str | None:
    """Why a loader that quantizes the Linear layers of transformers does not support a quantized weight in this
    module."""
    module = module_of(weight.info.name)
    if model.tied and module in (*model.shared, *model.shared.values()):
        return "config.json ties it to the embedding (tie_word_embeddings), which is not quantized"
    kind = model.holder(module)
    if kind is None or kind == EXPERTS:
        return None
    if kind == INITIALIZED:
        return "transformers reads this weight while it loads the model, before it is decoded; --to bnb-nf4 may take it"
    if kind == DIRECT:
        return "transformers reads this weight outside its layer, where it is not decoded"
    if kind in (CHANGED, UNLOADABLE):
        return "transformers splits or merges this tensor while it loads it"
    return f"{model.library} holds it in {kind}, and quantized weights are loaded into Linear layers only"


VLLM_ONLY = {"llama4", "llama4_text", "qwen3_vl_moe", "qwen3_vl_moe_text"}
"""Types of models whose experts vLLM loads one by one, though transformers holds them stacked."""

IN_TURN = {"llama4", "llama4_text"}
"""Those of which transformers holds experts one by one too, for its quantizers of compressed-tensors and
bitsandbytes."""


def in_turn(layer: Experts, types: Sequence[str], model: Architecture) -> Naming | None:
    """How loaders that stack experts of most models want them: each by itself where they do not, else as stored."""
    return Naming(stacked=False, prefix=layer.prefix) if not layer.single and IN_TURN.intersection(types) else None


def one_by_one(layer: Experts, types: Sequence[str], model: Architecture) -> Naming | str | None:
    """How loaders that transformers and vLLM share want experts: each by itself, under the names from which these stack
    them."""
    if layer.single:
        return None
    prefix = layer.prefix
    for words in (ONE_BY_ONE, MIXTRAL):
        if model.holder(f"{prefix}.0.{words[1]}") == EXPERTS:
            block, within = prefix.removesuffix(".mlp.experts"), prefix.endswith(".mlp.experts")
            if words is MIXTRAL and within and "mixtral" in types:  # vLLM knows its published names only
                new = f"{block}.block_sparse_moe"
                return Naming(stacked=False, prefix=f"{new}.experts", words=words, home=(f"{block}.mlp", new))
            return Naming(stacked=False, prefix=prefix, words=words)
    if VLLM_ONLY.intersection(types) or not model.known:
        return Naming(stacked=False, prefix=prefix)
    return f"neither vLLM nor transformers loads the experts of {types[-1]} quantized in this layout"


def loads_experts(tensors: Sequence[Weight], model: Architecture, types: Collection[str] = VLLM_ONLY) -> list[str]:
    """A note for a model whose experts only vLLM loads. types: those of which that holds in a layout."""
    if model.model_type not in types or not any(SINGLE.fullmatch(t.info.name) for t in tensors if t.scheme):
        return []
    version = architectures.version_of("transformers")
    return [f"experts are stored one by one, as vLLM loads them: transformers {version} takes no packed experts there"]


def decoded_experts(names: Iterable[str], model: Architecture) -> list[str]:
    """A note for experts that are decoded one by one, where transformers looks for stacked floats."""
    if model.model_type not in VLLM_ONLY or not any(map(SINGLE.fullmatch, names)):
        return []
    version = architectures.version_of("transformers")
    return [
        f"experts are decoded one by one, as they are stored: transformers {version} takes those of {model.model_type} "
        "stacked alone, and would fill them at random"
    ]


def unknown(model: Architecture) -> list[str]:
    """A note for a model of unknown type."""
    if model.known or model is UNNAMED:
        return []
    key = "_class_name" if model.library == "diffusers" else "model_type"
    named = f"{key} {printable(repr(model.model_type), 60)}" if model.model_type else f"no {key}"
    return [
        f"config.json names {named}, which quantcli does not know from {model.library} "
        f"{architectures.version_of(model.library)}: every matrix is taken to be a Linear layer of the model, unless "
        "its name is that of an embedding"
    ]


def modules(tensors: Sequence[Weight], *, quantized: bool) -> Iterator[str]:
    """Modules whose matrix is quantized, or those whose matrix is kept, one after another."""
    return (
        module_of(t.info.name)
        for t in tensors
        if (t.scheme is not None) == quantized and t.info.name.endswith(".weight") and len(t.info.shape) == 2
    )


def ignored(tensors: Sequence[Weight], model: Architecture, *, linear: bool = False) -> list[str]:
    """Modules whose matrix is kept, under all their names, and Linear layers that have no tensor in the file because
    they share one. linear: only modules that may be Linear layers."""
    kept = list(modules(tensors, quantized=False))
    model = model.of_file(module_of(tensor.info.name) for tensor in tensors)
    layers = (None, DIRECT, INITIALIZED)
    if not model.known and model.library == "diffusers":  # an embedder may be a Linear layer
        linear = False
    named = [n for m in kept if not linear or model.holder(m) in layers for n in model.names(m)]
    return list(dict.fromkeys([*named, *model.heads(chain(kept, modules(tensors, quantized=True)))]))


def refuse_skipped(tensors: Sequence[Weight], kept: Sequence[str], skips: Callable[[str, str], bool]) -> None:
    """Raise UsageError where a loader that is told to skip a kept module would skip a quantized one too.
    skips(name, module): whether that name makes it skip the module."""
    for module in modules(tensors, quantized=True):
        name = next((n for n in kept if skips(n, module)), None)
        if name is not None:
            problem = f"with {printable(name, 120)} kept, its loader would not decode {printable(module, 120)} either"
            raise UsageError(problem, hint="keep both with --exclude, or quantize both")


def skips(model: Architecture) -> Callable[[str, str], bool]:
    """Whether the library of a model, told to skip a name, leaves a module as it is: a function of both."""
    return _skipped_by_diffusers if model.library == "diffusers" else skips_by_name


def _skipped_by_diffusers(name: str, module: str) -> bool:
    """Whether diffusers skips a module for this name: where it is the module's own, with or without what it is in, or
    occurs in its name before a dot.

    >>> _skipped_by_diffusers("proj_out", "blocks.0.proj_out"), _skipped_by_diffusers("blocks.0.ff", "blocks.0.ff1")
    (True, False)
    """
    return name in (module, module.rpartition(".")[2]) or f"{name}." in module


def skips_by_name(name: str, module: str) -> bool:
    """Whether transformers skips a module for this name: where the module's name begins or ends with it.

    >>> skips_by_name("lm_head", "model.lm_head"), skips_by_name("layers.1", "layers.11.up")
    (True, False)
    """
    return module.endswith(name) or module.startswith(f"{name}.")


INPUTS = 128
"""Columns of the groups in which inputs are quantized to 8-bit floats."""


def inputs_in_groups(weight: Weight) -> str | None:
    """Why no runtime multiplies a weight with inputs that are quantized in groups, where its rows are not whole
    groups."""
    scheme, plan = facts(weight)
    if scheme.activations == "fp8-group" and plan.cols % INPUTS:
        groups = f"rows of {plan.cols} are not whole groups of {INPUTS}, in which inputs are quantized"
        return f"{groups}; FP8_DYNAMIC has no such groups"
    return None
