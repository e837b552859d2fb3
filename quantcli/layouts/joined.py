"""Weights that runtimes join into one matrix: what is refused or noted, because no runtime could join them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from quantcli.each import Remade
from quantcli.errors import UsageError, printable
from quantcli.layouts.writer import Weight
from quantcli.patterns import module_of
from quantcli.tensors.decisions import alike
from quantcli.tensors.fused import is_fused, partners, together


def refuse_mixed(tensors: Sequence[Weight]) -> None:
    """Raise UsageError where vLLM and SGLang would join weights of several schemes, or one with a kept one."""
    by_name = _beside_others(tensors)
    for name, tensor in by_name.items():
        if tensor.scheme is None:
            continue
        first, *rest = (by_name[n] for n in together(name, by_name))
        other = next((t for t in rest if _scheme(t) != _scheme(first)), None)
        if other is not None:
            words = [_last(t) for t in (first, *rest)]
            problem = (
                f"{words[0]} is {_scheme(first)} and {_last(other)} {_scheme(other)}, but vLLM and SGLang join "
                f"{', '.join(words[:-1])} and {words[-1]} into one matrix"
            )
            way = "--exclude" if None in (first.scheme, other.scheme) else "one rule for all:"
            hint = f"quantize with {way} 're:.*\\.({'|'.join(words)})\\.weight', or --to native"
            place = module_of(name).rpartition(".")[0]
            raise UsageError(problem, place=[printable(place, 120)] if place else [], hint=hint)


def _beside_others(tensors: Sequence[Weight]) -> dict[str, Weight]:
    """By their names the matrices that have another scheme than most, and those that runtimes would join with them:
    few, where all of a million tensors would take 500 MB."""
    counts = Counter[str]()
    for tensor, count in alike(tensors):
        counts[_scheme(tensor)] += count if len(tensor.info.shape) > 1 else 0
    (usual, _), *others = counts.most_common()
    if not others:
        return {}
    matrices = Remade(lambda: (t for t in tensors if len(t.info.shape) > 1))
    own = {t.info.name for t in matrices if _scheme(t) != usual and is_fused(t.info.name)}
    return {t.info.name: t for t in matrices if t.info.name in own or partners(t.info.name, own)} if own else {}


def _last(tensor: Weight) -> str:
    """The last word of a module's name."""
    return module_of(tensor.info.name).rpartition(".")[2]


def _scheme(tensor: Weight) -> str:
    """How the codes of a weight and its inputs are stored, by name."""
    if tensor.scheme is None:
        return "kept"
    inputs = tensor.scheme.activations
    return tensor.scheme.name + (f" with inputs in {inputs}" if inputs != "none" else "")


JOINED = re.compile(r".*\b(?:q_proj|k_proj|gate_proj|w1)\.weight")
"""Weights below whose rows runtimes put those of another one."""


def unjoined(tensors: Sequence[Weight]) -> list[str]:
    """The note on weights in blocks that runtimes cannot join with others, as those end within a block."""
    if not any(map(_uneven, (tensor for tensor, _ in alike(tensors)))):
        return []
    found = next((t.info for t in tensors if _uneven(t) and JOINED.fullmatch(t.info.name)), None)
    if found is None:
        return []
    why = f"{printable(found.name, 120)} has {found.shape[0]} rows, not whole blocks"
    return [f"vLLM and SGLang do not load this model: they join q, k and v, and gate and up, and {why}"]


def _uneven(tensor: Weight) -> bool:
    """Whether the last block of rows of a weight in blocks is not whole."""
    scheme = tensor.scheme
    return scheme is not None and scheme.granularity == "block" and bool(tensor.info.shape[0] % scheme.group_size)
