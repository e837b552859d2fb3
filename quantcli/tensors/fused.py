"""Which weights a runtime joins into one matrix, so that they must have one scheme, and one scale of the tensor."""

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
def _group(module: str) -> tuple[str, ...]:
    return next((group for group in FUSED if module in group), (module,))


def is_fused(name: str) -> bool:
    """Whether a weight of this name may be joined with others.

    >>> is_fused("l.0.k_proj.weight"), is_fused("l.0.o_proj.weight")
    (True, False)
    """
    return len(_group(module_of(name).rpartition(".")[2])) > 1


def together(name: str, names: Container[str]) -> tuple[str, ...]:
    """The names of the weights, among these, that are joined with one of this name, itself among them, in the order in
    which their rows come.

    >>> together("l.0.k_proj.weight", {"l.0.k_proj.weight", "l.0.q_proj.weight", "l.0.o_proj.weight"})
    ('l.0.q_proj.weight', 'l.0.k_proj.weight')
    """
    module = module_of(name)
    stem, dot, own = module.rpartition(".")
    found = (f"{stem}{dot}{other}{name[len(module) :]}" for other in _group(own))
    return tuple(n for n in found if n == name or n in names)


def partners(name: str, names: Container[str]) -> tuple[str, ...]:
    """The same without itself.

    >>> partners("l.0.q_proj.weight", {"l.0.k_proj.weight", "l.0.o_proj.weight", "l.1.v_proj.weight"})
    ('l.0.k_proj.weight',)
    """
    return tuple(n for n in together(name, names) if n != name)
