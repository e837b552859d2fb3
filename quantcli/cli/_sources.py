"""Models to quantize, and how they are read: as floats, decoded where they are quantized already."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import click

from quantcli.cli import _help, options
from quantcli.cli._help import F

if TYPE_CHECKING:
    from quantcli.floats import Reading
    from quantcli.folders.components import Chosen


def _as_float(text: str) -> Callable[[F], F]:
    return _help.option("--as-float", is_flag=True, help=text, group="Selection")


original_as_float = _as_float(
    "Read the integers of an original in .npy or .npz as the signal that quantize --as-float read."
)
"""--as-float of commands that measure."""

variant = _help.option(
    "--variant",
    metavar="NAME",
    default=None,
    help="Which weights of a folder to take where it has several, such as fp16 for model.fp16.safetensors.",
    show_default="those without a variant",
    group="Selection",
)
"""--variant, which commands on one model hand to its folder, and those on two to each that has it."""

_OPTIONS = _help.options(
    _help.option(
        "--source-layout",
        type=click.Choice(["auto", "plain"]),
        default="auto",
        show_default=True,
        help="What the tensors of SRC are: auto decodes a model that is quantized already, and refuses 8-bit floats "
        "without scales; plain takes every tensor as what its dtype says, such as weights cast to 8-bit floats.",
        group="Selection",
    ),
    _help.option(
        "--requantize",
        is_flag=True,
        help="Decode the codes of a model that is quantized already and quantize it again, which adds a second error. "
        "8-bit and 4-bit float formats that models are published in are always decoded.",
        group="Selection",
    ),
    variant,
    _help.option(
        "--lora",
        metavar="PATH",
        multiple=True,
        type=_help.MODEL,
        help="Fold this adapter into the weights first: a folder of PEFT or a .safetensors file.",
        group="Selection",
    ),
    _help.option(
        "--adapter",
        is_flag=True,
        help="SRC is an adapter (LoRA): quantize its factors themselves.",
        group="Selection",
    ),
    _as_float("Read the integers of a .npy or .npz file as a signal: audio as [-1, 1), pixels as [0, 1]."),
)


def reading(command: F) -> F:
    """--source-layout, --requantize, --variant, --lora, --adapter and --as-float, as `reading`."""

    @functools.wraps(command)
    def with_reading(*arguments: Any, **asked: Any) -> Any:
        how = reading_of(asked)
        return command(*arguments, reading=how, **{n: v for n, v in asked.items() if n not in _READING})

    return cast(F, _OPTIONS(with_reading))


_READING = ("source_layout", "lora", "requantize", "variant", "adapter", "as_float")
"""The parameters that say how a source is read."""


def reading_of(asked: Mapping[str, Any]) -> Reading:
    """How a source is read, of the parameters of a command."""
    from quantcli.floats import Reading

    own = {name: asked[name] for name in ("requantize", "variant", "adapter", "as_float")}
    return Reading(layout=asked["source_layout"], loras=asked["lora"], **own)


def inform_of(found: Chosen, console: options.Console) -> None:
    """Print what the weights of models are decoded from, and how experts are arranged, for documents that do not say
    it."""
    from quantcli.stores.pipelines import prefixed

    for name, one in found.models.items():
        if one.source.decoded_from:
            console.inform(prefixed(name, f"source: {one.source.decoded_from}"))
        if one.source.arranged:
            console.inform(prefixed(name, one.source.arranged))
