"""How transformers loads the tensors of a checkpoint, by the model type that its config.json names.

A configuration that quantizes Linear layers by their class applies only to modules of that class: packed weights of
an embedding, of GPT-2's Conv1D or of a router are initialized at random with no more than a line in a report, and a
head that shares the embedding's tensor must be named though the file does not have it. Names in files are not always
those of modules. `table.json` has these facts, written from transformers itself by
tests/peers/write_architectures.py, `diffusers.json` those of the models of diffusers, which name their class in
config.json (tests/peers/write_diffusers.py); for model types they do not list, names decide.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

_PROJECTS = r"(?!unembed)\w*embed\w*(?:proj|mapping|mlp|linear|dense|to_hidden)"
EMBEDDING = re.compile(
    rf"(?:^|\.)(?!patch|{_PROJECTS})(?:\w*embed\w*|\w*embd|wte|wpe|shared)(?:\.weight)?$", re.IGNORECASE
)
"""Names of embeddings; not of layers that project what an embedding gave, as ALBERT's `embedding_hidden_mapping_in` and
ELECTRA's `embeddings_project`. No embedding of a model in `table.json` is named so; an `unembedding_projection` is a
head."""

DIRECT, INITIALIZED = "read", "initialized"
"""Kinds of Linear layers whose weight is read, undecoded, by the code around them: when the model runs, or only while
it is loaded."""

EXPERTS, CHANGED, UNLOADABLE = "experts", "changed", "unloadable"
"""Kinds of matrices that are stacked with those of other experts, or split or merged, when loaded; and of those that
transformers cannot prepare for packed weights: it then loads no packed weights anywhere in the model."""


_LAYER = re.compile(r"((?:model\.)?(?:language_model\.)?(?:model\.)?layers\.(\d{1,6}))\.")
_DRAFT = re.compile(r"(?:^|\.)mtp(?:_\w+)?\.")


@dataclass(frozen=True, slots=True)
class Rename:
    """A change of the names of tensors in files.

    scope, base: prefixes of the names it applies to, the second optional. pattern: an expression with a group g0, g1,
    .. around every alternative. becomes: what replaces the match, \\1 being what the first group in it matched. kind:
    EXPERTS, CHANGED or UNLOADABLE for tensors that are not loaded as they are; their names stay.
    """

    scope: str
    base: str
    pattern: re.Pattern[str]
    becomes: str
    kind: str

    def match(self, name: str) -> tuple[str, re.Match[str]] | None:
        """The prefix before a match in a name, and the match; None where there is no match."""
        scope = self.scope if self.scope != "." else ""
        for prefix in (self.base + scope, scope) if self.scope else ("",):
            if name.startswith(prefix):
                found = self.pattern.search(name.removeprefix(prefix))
                return (prefix, found) if found else None
        return None

    def applied(self, name: str) -> str:
        """A name after this change."""
        found = self.match(name)
        if found is None:
            return name
        prefix, match = found
        group = next(g for g, text in match.groupdict().items() if text is not None)
        inner = match.re.groupindex[group] + 1
        becomes = self.becomes.replace(r"\1", match[inner]) if r"\1" in self.becomes else self.becomes
        return prefix + name.removeprefix(prefix).replace(match[0], becomes, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A model type. known: whether the table lists it. library: the one whose model it is, transformers or diffusers.

    prefix: what names of the base model begin with, in models that have more than that. other: kinds of modules that
    hold a matrix but are not plain Linear layers, or DIRECT or INITIALIZED, by name without prefix and with # for
    numbers. shared: Linear layers that may share the tensor of another module, and their names in files. float32:
    modules that are never quantized while a model is loaded. renames: how names in files become those of modules.
    tied: whether config.json says that head and embedding are one tensor; None where it does not say. layers: how many
    it says the model has. bare: whether names in the file are without the prefix.
    """

    model_type: str
    known: bool
    library: str = "transformers"
    prefix: str = ""
    other: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=lambda: {"lm_head": "lm_head"})
    float32: tuple[str, ...] = ()
    renames: tuple[Rename, ...] = ()
    tied: bool | None = None
    layers: int | None = None
    bare: bool = False
    _holders: dict[str, str | None] = field(default_factory=dict, compare=False, repr=False)

    @property
    def takes_packed(self) -> bool:
        """Whether transformers loads packed weights into this type of model at all."""
        return all(rename.kind != UNLOADABLE for rename in self.renames)

    def module(self, name: str) -> str:
        """The module in the model of a module in the file.

        >>> of({"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}).module("embed_out")
        'lm_head'
        """
        found = f"{name}.weight"
        for rename in self.renames:
            if not rename.kind:
                found = rename.applied(found)
        return found.removesuffix(".weight")

    def holder(self, name: str) -> str | None:
        """The kind of module in the model for the matrix of one in the file: a class, DIRECT, INITIALIZED, EXPERTS,
        CHANGED or UNLOADABLE; None for a plain Linear layer.

        >>> of({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}).holder("h.0.attn.c_attn")
        'Conv1D'
        >>> of({"model_type": "llama"}).holder("model.layers.3.mlp.up_proj") is None
        True
        """
        if not self.known or self.drafts(name):
            return "Embedding" if EMBEDDING.search(name) else None
        one = numberless(name).replace("#", "0")  # one entry stands for all layers of its kind
        if one not in self._holders:
            self._holders[one] = self._holder(one)
        return self._holders[one]

    def _holder(self, name: str) -> str | None:
        module = self.module(name)
        for rename in self.renames:
            if rename.kind and rename.match(f"{module}.weight"):
                return rename.kind
        return self.other.get(numberless(module.removeprefix(self.prefix)))

    def behind(self, name: str) -> str | None:
        """The layer behind the last one of the model that has a module or tensor; None for all others.

        >>> of({"model_type": "deepseek_v3", "num_hidden_layers": 61}).behind("model.layers.61.eh_proj.weight")
        'model.layers.61'
        """
        found = _LAYER.match(name) if self.layers is not None else None
        return found[1] if found and self.layers is not None and int(found[2]) >= self.layers else None

    def drafts(self, name: str) -> bool:
        """Whether a module or tensor predicts further tokens: transformers does not load it.

        >>> of({"model_type": "qwen3_next"}).drafts("mtp.layers.0.mlp.up_proj")
        True
        """
        return _DRAFT.search(name) is not None or self.behind(name) is not None

    def names(self, name: str) -> list[str]:
        """The names of a module: in the file, and in the model where that differs."""
        module = self.module(name)
        return list(dict.fromkeys([name, module, *([self.prefix + module] if self.bare else [])]))

    def of_file(self, modules: Iterable[str]) -> Architecture:
        """This architecture for a file with these modules, which may lack the prefix of the base model.

        >>> of({"model_type": "deepseek_v4"}).of_file(["layers.0.attn.wo_b"]).names("layers.0.attn.wo_b")
        ['layers.0.attn.wo_b', 'layers.0.self_attn.o_b_proj', 'model.layers.0.self_attn.o_b_proj']
        """
        bare = self.known and bool(self.prefix) and not any(name.startswith(self.prefix) for name in modules)
        return replace(self, bare=bare) if bare else self

    def heads(self, modules: Iterable[str]) -> list[str]:
        """Names of the Linear layers that share a tensor with these modules of the file instead of having their own.

        >>> of({"model_type": "whisper"}).heads(["model.decoder.embed_tokens"])
        ['proj_out']
        """
        wanted = {name for pair in self.shared.items() for name in pair}
        called = (name for module in modules for name in self.names(module))
        present = {own for name in called for own in (name, name.removeprefix(self.prefix)) if own in wanted}
        absent = {m: f for m, f in self.shared.items() if not {m, f} & present}
        return list(dict.fromkeys(name for pair in absent.items() for name in pair))


UNNAMED = Architecture(model_type="", known=False)
"""The facts for weights without a config.json that names a model."""


def numberless(name: str) -> str:
    """A name with # for its numbers.

    >>> numberless("layers.0.mlp.experts.12.up_proj")
    'layers.#.mlp.experts.#.up_proj'
    """
    return re.sub(r"(?:(?<![^.])|(?<=expert_))\d+(?![^.])", "#", name)


@cache
def _facts() -> Any:
    import json
    from pathlib import Path

    return json.loads(Path(__file__).with_name("table.json").read_text("ascii"))


@cache
def _renames(number: int) -> tuple[Rename, ...]:
    rows: Sequence[Sequence[str]] = _facts()["renames"][number]
    return tuple(
        Rename(scope, base, re.compile(pattern), becomes, kind) for scope, base, pattern, becomes, kind in rows
    )


def of(config: Mapping[str, Any]) -> Architecture | None:
    """The architecture of a checkpoint by its config.json; None where that does not name a model.

    Classes of a type may read files in different ways; an unknown class is assumed to read them as most do. A type that
    is not known, but its class, is read as that class (Kimi K2 is a DeepSeek V3): vLLM goes by the class alone.

    >>> of({"model_type": "kimi_k2", "architectures": ["DeepseekV3ForCausalLM"]}).model_type
    'deepseek_v3'
    """
    if isinstance(config.get("_class_name"), str) and "_diffusers_version" in config:
        return _of_diffusers(config["_class_name"])
    model_type, classes = config.get("model_type"), config.get("architectures")
    if not isinstance(model_type, str) and not isinstance(classes, list):
        return None
    types, first = _facts()["types"], classes[0] if isinstance(classes, list) and classes else None
    facts = types.get(model_type) if isinstance(model_type, str) else None
    if facts is None and isinstance(first, str):
        model_type, facts = next(((t, f) for t, f in types.items() if first in f["renames"]), (model_type, None))
    if facts is None:
        named_type = model_type if isinstance(model_type, str) else ""
        return Architecture(model_type=named_type, known=False, tied=_tied(config), layers=_layers(config))
    ways: Mapping[str, int | None] = facts["renames"]
    named = [c for c in classes if isinstance(c, str) and c in ways] if isinstance(classes, list) else []
    number = ways[named[0]] if named else Counter(ways.values()).most_common(1)[0][0]
    return Architecture(
        model_type=str(model_type),
        known=True,
        prefix=facts["prefix"],
        other=facts["other"],
        shared=facts["shared"],
        float32=tuple(facts["float32"]),
        renames=_renames(number) if number is not None else (),
        tied=_tied(config),
        layers=_layers(config),
    )


def _tied(config: Mapping[str, Any]) -> bool | None:
    """Whether a config.json says that head and embedding are one tensor; of models of several parts, for the part that
    reads text."""
    return next((found for found in _stated(config, "tie_word_embeddings") if isinstance(found, bool)), None)


def _layers(config: Mapping[str, Any]) -> int | None:
    """The number of layers that a config.json states, likewise."""
    return next((found for found in _stated(config, "num_hidden_layers") if type(found) is int), None)


def _stated(config: Mapping[str, Any], key: str) -> list[Any]:
    """What a config.json has under a key, and what its part for text has."""
    text = config.get("text_config")
    return [values.get(key) for values in (config, text if isinstance(text, dict) else {})]


def classes(model_type: str) -> tuple[str, ...]:
    """The classes of transformers for a type of model; none for unknown types.

    >>> classes("musicgen")
    ('MusicgenForConditionalGeneration',)
    """
    return tuple(_facts()["types"].get(model_type, {}).get("renames", ()))


@cache
def _classes() -> Any:
    import json
    from pathlib import Path

    return json.loads(Path(__file__).with_name("diffusers.json").read_text("ascii"))


def _of_diffusers(name: str) -> Architecture:
    """A model of diffusers, by its class; the names in its files are those of its modules."""
    facts = _classes()["classes"].get(name)
    return Architecture(
        model_type=name,
        known=facts is not None,
        library="diffusers",
        other=facts["other"] if facts else {},
        shared={},
        float32=tuple(facts["float32"]) if facts else (),
    )


def version_of(library: str) -> str:
    """The version of a library that its facts were read from."""
    return str((_classes() if library == "diffusers" else _facts())[library])
