"""Weights that runtimes join into one matrix: what is refused, because no runtime could join them."""

from __future__ import annotations

from collections.abc import Sequence

from quantcli.errors import UsageError, printable
from quantcli.layouts.writer import Weight
from quantcli.patterns import module_of
from quantcli.tensors.fused import together


def refuse_mixed(tensors: Sequence[Weight]) -> None:
    """Raise UsageError where vLLM and SGLang would join weights of several schemes, or one with a kept one."""
    by_name = {tensor.info.name: tensor for tensor in tensors if len(tensor.info.shape) > 1}
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


def _last(tensor: Weight) -> str:
    """The last word of a module's name."""
    return module_of(tensor.info.name).rpartition(".")[2]


def _scheme(tensor: Weight) -> str:
    """How the codes of a weight and its inputs are stored, by name."""
    if tensor.scheme is None:
        return "kept"
    inputs = tensor.scheme.activations
    return tensor.scheme.name + (f" with inputs in {inputs}" if inputs != "none" else "")
