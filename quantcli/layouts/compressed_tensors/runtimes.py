"""What the programs that load a folder of compressed-tensors take, by their sources: vLLM, SGLang and transformers.

Read were vLLM 0.32 and SGLang 0.5.23, `compressed_tensors.py` of both, for Linear layers; what transformers 5.23 makes
of several schemes was tried.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from quantcli.errors import printable
from quantcli.layouts.compressed_tensors.formats import format_of
from quantcli.layouts.writer import Weight
from quantcli.scheme import Scheme

HUMMING = (2, 3, 5, 6, 7)
"""Bits of packed integers for which vLLM has kernels only where the package Humming is installed, on CUDA."""


def vllm(scheme: Scheme) -> bool:
    """Whether vLLM loads a Linear layer of a scheme, on some processor."""
    if scheme.family != "int":
        return scheme.storage != "plain" or scheme.granularity != "group"
    if scheme.activations == "none":
        return scheme.bits in HUMMING or scheme.symmetric or scheme.bits == 4
    if scheme.activations == "fp8":
        return scheme.bits == 4 and scheme.symmetric and scheme.granularity == "group"
    wide = scheme.bits == 8 and scheme.granularity != "group"
    return scheme.symmetric and (wide or (scheme.bits == 4 and scheme.granularity != "tensor"))


def _sglang(scheme: Scheme) -> bool:
    """The same for SGLang."""
    if scheme.family != "int":
        if scheme.storage != "plain":
            return scheme.storage == "e4m3"
        return scheme.granularity in ("tensor", "channel") or (
            scheme.granularity == "block" and scheme.activations != "none"
        )
    if scheme.activations == "none":
        return scheme.bits in (4, 8)
    return scheme.activations == "int8" and scheme.bits == 8 and scheme.symmetric and scheme.granularity != "group"


RUNTIMES = {"vLLM 0.32": vllm, "SGLang 0.5.23": _sglang}
"""The programs whose loaders were read, and whether they take a scheme."""


def unloaded(schemes: Sequence[Scheme]) -> list[str]:
    """Notes on schemes that a runtime does not load."""
    found: dict[tuple[str, ...], list[str]] = {}
    for scheme in schemes:
        names = tuple(name for name, loads in RUNTIMES.items() if not loads(scheme))
        shown = scheme.name if scheme.activations == "none" else f"{scheme.name} with inputs in {scheme.activations}"
        if names and shown not in found.setdefault(names, []):
            found[names].append(shown)
    return [
        f"{', '.join(shown)}: {'neither ' if names[1:] else ''}{' nor '.join(names)} "
        f"{'loads' if names[1:] else 'does not load'} such weights"
        for names, shown in found.items()
    ]


def mixed(schemes: Sequence[Scheme]) -> list[str]:
    """Notes on what transformers makes of several schemes: with dequantize=True it takes the first for all, which is
    right only where the weights of all are stored alike."""
    if any(not scheme.symmetric for scheme in schemes):
        return ["several schemes, some with zero points: transformers 5.23 does not load such a model"]
    alike = len({(format_of(s), s.bits, s.granularity, s.group_size) for s in schemes}) == 1
    said = "" if alike else ", but not with dequantize=True, where it takes the first for all"
    return [f"several schemes: transformers 5.23 loads them as they are{said}"]


JOINED = re.compile(r".*\b(?:q_proj|k_proj|gate_proj|w1)\.weight")
"""Weights below whose rows runtimes put those of another one."""


def unjoined(tensors: Sequence[Weight]) -> list[str]:
    """The note on weights in blocks that runtimes cannot join with others, as those end within a block."""
    found = [
        tensor.info
        for tensor in tensors
        if tensor.scheme is not None
        and tensor.scheme.granularity == "block"
        and tensor.info.shape[0] % tensor.scheme.group_size
        and JOINED.fullmatch(tensor.info.name)
    ]
    if not found:
        return []
    why = f"{printable(found[0].name, 120)} has {found[0].shape[0]} rows, not whole blocks"
    return [f"vLLM and SGLang do not load this model: they join q, k and v, and gate and up, and {why}"]
