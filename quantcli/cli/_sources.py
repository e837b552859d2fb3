"""Models to quantize: those that are quantized already, in any layout that is recognised, are refused, and adapters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from quantcli.cli import _help, options

if TYPE_CHECKING:
    from quantcli.stores import Source


source_layout = _help.option(
    "--source-layout",
    type=click.Choice(["auto", "plain"]),
    default="auto",
    show_default=True,
    help="What the tensors of SRC are: auto refuses a model that is quantized already, and 8-bit floats without "
    "scales; plain takes every tensor as what its dtype says, such as weights cast to 8-bit floats.",
    group="Selection",
)
"""--source-layout."""


@contextlib.contextmanager
def float_source(src: str, layout: str, console: options.Console) -> Iterator[Source]:
    """The source SRC names. layout: of --source-layout. Raises DataError when it is quantized, or an adapter."""
    from quantcli.floats import float_source

    with float_source(src, layout, say=console.inform) as source:
        yield source
