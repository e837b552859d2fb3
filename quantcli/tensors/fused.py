"""Which weights a runtime joins into one matrix, so that they must share the scale of the tensor."""

from __future__ import annotations

from collections.abc import Container
from functools import cache

from quantcli.patterns import module_of

FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("to_q", "to_k", "to_v"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
)
"""Modules that lie beside each other, by the last part of their names: those that vLLM and SGLang join into qkv_proj,
gate_up_proj and others, in their tables of `packed_modules_mapping`; w1 and w3 are those of experts."""


@cache
def _beside(module: str) -> tuple[str, ...]:
    return next((tuple(m for m in group if m != module) for group in FUSED if module in group), ())


def partners(name: str, names: Container[str]) -> tuple[str, ...]:
    """The names of the weights, among these, that are joined with one of this name.

    >>> partners("l.0.q_proj.weight", {"l.0.k_proj.weight", "l.0.o_proj.weight", "l.1.v_proj.weight"})
    ('l.0.k_proj.weight',)
    """
    module = module_of(name)
    stem, dot, own = module.rpartition(".")
    found = (f"{stem}{dot}{other}{name[len(module) :]}" for other in _beside(own))
    return tuple(other for other in found if other in names)
