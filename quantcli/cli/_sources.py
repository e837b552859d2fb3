"""Models to quantize, and how they are read: as floats, decoded where they are quantized already."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import click

from quantcli.cli import _help, options
from quantcli.cli._help import F

if TYPE_CHECKING:
    from quantcli.floats import Reading
    from quantcli.stores import Source


def reading(command: F) -> F:
    """--source-layout and --requantize, as `reading`."""

    @functools.wraps(command)
    def with_reading(*arguments: Any, source_layout: str, requantize: bool, **others: Any) -> Any:
        from quantcli.floats import Reading

        return command(*arguments, reading=Reading(layout=source_layout, requantize=requantize), **others)

    found: Any = with_reading
    for option in reversed(
        (
            _help.option(
                "--source-layout",
                type=click.Choice(["auto", "plain"]),
                default="auto",
                show_default=True,
                help="What the tensors of SRC are: auto decodes a model that is quantized already, and refuses 8-bit "
                "floats without scales; plain takes every tensor as what its dtype says, such as weights cast to 8-bit "
                "floats.",
                group="Selection",
            ),
            _help.option(
                "--requantize",
                is_flag=True,
                help="Decode the codes of a model that is quantized already and quantize it again, which adds a second "
                "error. 8-bit and 4-bit float formats that models are published in are always decoded.",
                group="Selection",
            ),
        )
    ):
        found = option(found)
    return cast(F, found)


def arranged(source: Source, to: str | None, talk: options.Talk, *, container: bool = False) -> Source:
    """A source with its experts as the target needs them."""
    from quantcli import experts

    found = experts.arranged(source, to, container=container)
    if found.arranged:
        talk.say(found.arranged)
    return found


@contextlib.contextmanager
def float_source(src: str, reading: Reading, talk: options.Talk) -> Iterator[Source]:
    """The source SRC names. Raises DataError when it may not be quantized."""
    from quantcli.floats import float_source

    with float_source(src, reading, say=talk.say) as source:
        if source.decoded_from:
            talk.say(f"source: {source.decoded_from}")
        yield source
