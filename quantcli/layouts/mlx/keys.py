"""What mlx-lm's models read of config.json, and what it is called in the files of transformers 5.

Since version 5 transformers saves some settings under other names: the angles of rotary embeddings are in one place,
`rope_parameters`, and some counts have the name of the class instead of that of the published models. mlx-lm does not
load such folders, or, where it has a default of its own, computes something else. So keys are added here, from values
that say the same; those for which there are none are listed. `table.json` has what mlx-lm's models read, written from
its code by tests/peers/write_mlx_models.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Values = Mapping[str, Any]

FULL, SLIDING = "full_attention", "sliding_attention"
"""Types of layers that may have rotary embeddings of their own."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "num_experts": ("num_local_experts",),
    "num_local_experts": ("num_experts",),
    "num_experts_per_tok": ("num_experts_per_token",),
    "n_group": ("num_expert_group",),
    "max_position_embeddings": ("model_max_length",),
    "sliding_window_pattern": ("_sliding_window_pattern",),
    "sliding_window_size": ("sliding_window",),
    "layernorm_epsilon": ("rms_norm_eps",),
    "block_dim": ("hidden_size",),
}
"""Other names of settings."""

OF_TYPES: Mapping[str, Values] = {
    "apertus": {"mlp_bias": False, "post_norm": False, "qk_norm": True},
    "glm_moe_dsa": {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1},
    "minimax_m2": {"shared_intermediate_size": 0},
    "longcat_flash": {
        "attention_method": "MLA",
        "zero_expert_type": "identity",
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
    },
    "qwen3_vl_moe_text": {"norm_topk_prob": True},
}
"""Settings that the models of a type have in transformers' code, where they cannot be chosen."""


ALWAYS: Mapping[str, tuple[str, ...]] = {"minicpm3": ("rope_scaling",)}
"""Settings that the models of a type read as if they were always there, although they have a default."""

ABOVE = frozenset(("vocab_size",))
"""Settings of the text that some types (Gemma 3 and 4) read outside of its object alone."""

OF_TEXT = {"qwen3_5_text": "qwen3_5", "qwen3_5_moe_text": "qwen3_5_moe"}
"""Types of models that read text only, and those that mlx-lm has them in, with all settings in one object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """What mlx-lm finds in a config.json. added: keys for it, whole objects for those inside one, and `names`, what
    these are called. missing: keys without which it does not load the model. known: whether it has such models."""

    added: dict[str, Any]
    names: tuple[str, ...]
    missing: tuple[str, ...]
    known: bool


@cache
def _facts() -> Any:
    return json.loads(Path(__file__).with_name("table.json").read_text("ascii"))


def version() -> str:
    """The version of mlx-lm that the facts are of."""
    return str(_facts()["mlx_lm"])


def completed(config: Values) -> Completed:
    """The keys of a config.json that mlx-lm needs and that follow from the others."""
    kind = config.get("model_type")
    kind = kind if isinstance(kind, str) else ""
    row = _facts()["types"].get(OF_TEXT.get(kind, kind))
    if row is None:
        return Completed(added={}, names=(), missing=(), known=False)
    if kind in OF_TEXT:
        found = {"model_type": OF_TEXT[kind], **_added(config, row["text"])}
        return Completed(added=found, names=tuple(found), missing=(), known=True)
    found = _added(config, row)
    added, names = dict(found), list(found)
    missing = [key for key in row["needs"] if key not in config and key not in found]
    missing += [key for key in ALWAYS.get(kind, ()) if config.get(key) is None and found.get(key) is None]
    text = config.get("text_config")
    if "text" in row and isinstance(text, dict):
        outer = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
        own = _added({**outer, **text}, row["text"])
        own |= {key: value for key, value in outer.items() if text.get(key) != value and key in _all(row["text"])}
        missing += [f"text_config.{key}" for key in row["text"]["needs"] if key not in text and key not in own]
        above = {key: text[key] for key in ABOVE & _all(row) if key in text and key not in config}
        added |= above
        names += above
        if own:
            added["text_config"] = {**text, **own}
            names += [f"text_config.{key}" for key in own]
    return Completed(added=added, names=tuple(names), missing=tuple(missing), known=True)


def _all(row: Mapping[str, Sequence[str]]) -> set[str]:
    return {*row["needs"], *row["reads"]}


def _added(values: Values, row: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The keys that a model reads, and that are under another name here."""
    read, needed = _all(row), set(row["needs"])
    rotary = {key: value for key, value in _rotary(values).items() if key in read and values.get(key) is None}
    found = {key: value for key, value in rotary.items() if value is not None or key in needed - values.keys()}
    if "partial_rotary_factor" in needed - values.keys() - found.keys() and "rope_parameters" in values:
        found["partial_rotary_factor"] = 1.0
    for key in sorted(read - values.keys() - found.keys()):
        other = next((other for other in ALIASES.get(key, ()) if values.get(other) is not None), None)
        if other is not None:
            found[key] = values[other]
    for key in sorted(read & _COMPUTED.keys() - values.keys() - found.keys()):
        value = _COMPUTED[key](values)
        if value is not None and (key in needed or key not in _USUAL):
            found[key] = value
    own = OF_TYPES.get(str(values.get("model_type")), {})
    found |= {key: value for key, value in own.items() if key in read and key not in values}
    return {**found, **_replaced(values)}


# ---- rotary embeddings ----------------------------------------------------------------------------------------------


def _rotary(values: Values) -> dict[str, Any]:
    """Settings of rotary embeddings by the names they had before there were `rope_parameters`."""
    rope = values.get("rope_parameters")
    if not isinstance(rope, dict):
        return {}
    full, sliding = rope.get(FULL, rope), rope.get(SLIDING)
    if not isinstance(full, dict) or "rope_theta" not in full:
        return {}
    theta, share = full["rope_theta"], full.get("partial_rotary_factor")
    found = {"rope_theta": theta, "rope_scaling": _scaling(full), "rotary_emb_base": theta}
    if share is not None:
        found |= {"partial_rotary_factor": share, "rotary_pct": share}
    if "original_max_position_embeddings" in full:
        found["original_max_position_embeddings"] = full["original_max_position_embeddings"]
    if isinstance(sliding, dict) and "rope_theta" in sliding:
        found |= dict.fromkeys(("rope_local_base_freq", "swa_rope_theta", "rope_local_theta"), sliding["rope_theta"])
    return found


def _scaling(rope: Values) -> dict[str, Any] | None:
    """What stretches rotary embeddings; None where nothing does."""
    if rope.get("rope_type", rope.get("type", "default")) == "default":
        return None
    return {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}


# ---- others ---------------------------------------------------------------------------------------------------------


def _head_dim(values: Values) -> int | None:
    hidden, heads = values.get("hidden_size"), values.get("num_attention_heads")
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None


def _sparse(values: Values) -> list[bool] | None:
    """Which layers have experts."""
    kinds = values.get("mlp_layer_types")
    return [kind == "sparse" for kind in kinds] if isinstance(kinds, list) else None


def _interval(values: Values) -> int | None:
    """After how many layers the last of them attends to all that was read, where it is the same number everywhere."""
    kinds = values.get("layer_types")
    if not isinstance(kinds, list) or FULL not in kinds:
        return None
    size = kinds.index(FULL) + 1
    return size if all((kind == FULL) == (n % size == 0) for n, kind in enumerate(kinds, 1)) else None


def _rotary_dim(values: Values) -> int | None:
    """How many columns of a head are rotated."""
    size, rope = values.get("head_dim") or _head_dim(values), values.get("rope_parameters")
    share = rope.get("partial_rotary_factor", 1.0) if isinstance(rope, dict) else None
    return int(size * share) if isinstance(size, int) and isinstance(share, (int, float)) else None


_COMPUTED: Mapping[str, Callable[[Values], Any]] = {
    "full_attention_interval": _interval,
    "head_dim": _head_dim,
    "is_moe_layer": _sparse,
    "rotary_dim": _rotary_dim,
}
"""Settings that follow from others."""

_USUAL = {"head_dim"}
"""Those that most models of mlx-lm compute themselves."""

_OLD_KINDS = {"linear_attention": "mamba", FULL: "attention"}


def _replaced(values: Values) -> dict[str, Any]:
    """Settings whose values have other names."""
    kinds, size = values.get("layer_types"), _head_dim(values)
    if values.get("model_type") == "falcon_h1" and "head_dim" not in values and size is not None:
        return {"head_dim": size}
    if values.get("model_type") == "gemma4_text" and values.get("per_layer_config") == {}:
        return {"global_head_dim": values["head_dim"]} if "head_dim" in values else {}
    pattern = values.get("sliding_window_pattern")
    if values.get("model_type") == "exaone4" and type(pattern) is int and pattern > 0:
        return {"sliding_window_pattern": "L" * (pattern - 1) + "G"}
    if values.get("model_type") == "granitemoehybrid" and isinstance(kinds, list):
        old = [_OLD_KINDS.get(kind, kind) if isinstance(kind, str) else kind for kind in kinds]
        return {"layer_types": old} if old != kinds else {}
    return {}
