"""Models to quantize: those that are quantized already, in any layout that is recognised, are refused, and adapters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from quantcli.cli import _help, options
from quantcli.cli._help import F

if TYPE_CHECKING:
    from quantcli.stores import Source


def source_layout(command: F) -> F:
    """--source-layout."""
    return _help.option(
        "--source-layout",
        type=click.Choice(["auto", "plain"]),
        default="auto",
        show_default=True,
        help="What the tensors of SRC are: auto refuses a model that is quantized already, and 8-bit floats without "
        "scales; plain takes every tensor as what its dtype says, such as weights cast to 8-bit floats.",
        group="Selection",
    )(command)


def variant(command: F) -> F:
    """--variant."""
    return _help.option(
        "--variant",
        metavar="NAME",
        default=None,
        help="Which weights of a folder to take where it has several, such as fp16 for model.fp16.safetensors.",
        show_default="those without a variant",
        group="Selection",
    )(command)


@contextlib.contextmanager
def float_source(src: str, layout: str, talk: options.Talk, variant: str | None = None) -> Iterator[Source]:
    """The source SRC names. layout: of --source-layout; variant: of --variant. Raises DataError when it is quantized,
    or an adapter."""
    from quantcli.floats import float_source

    with float_source(src, layout, variant=variant, say=talk.say) as source:
        yield source
