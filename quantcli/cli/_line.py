"""The command line of a run as other processes can repeat it, whatever their current folder.

Parts of a run are made by processes that know nothing of each other; the one that merges them asks for the same run.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import click

from quantcli.cli import _help


def repeated(ctx: click.Context, *, without: Collection[str], absolute: bool = True) -> list[str]:
    """The arguments of a command. without: parameters that are left out; absolute: whether names of files begin at the
    root, for processes that have another current folder."""
    typed = list(ctx.meta[_help.TYPED])
    values, _, order = ctx.command.make_parser(ctx).parse_args(list(typed))
    found = list[str]()
    for parameter in dict.fromkeys(order):
        name = parameter.name or ""
        if name in without:
            continue
        many = isinstance(values[name], (list, tuple))
        for value in values[name] if many else [values[name]]:
            found += _said(parameter, value, absolute)
    return found


def _said(parameter: click.Parameter, value: Any, absolute: bool) -> Iterator[str]:
    """A value as it is typed."""
    if absolute and isinstance(value, str) and parameter.type in (_help.FILE, _help.WRITTEN, _help.MODEL):
        # A recipe may be a preset's name, a source a URL.
        value = os.path.abspath(value) if os.path.exists(value) or parameter.name == "output" else value
    if not isinstance(parameter, click.Option):
        yield str(value)
        return
    longest = max(parameter.opts, key=len)
    if parameter.is_flag:
        # A flag's value is True, or a constant that stands for one of several options.
        off = parameter.secondary_opts and value is False
        yield max(parameter.secondary_opts, key=len) if off else longest
        return
    yield f"{longest}={value}"


def parsed(command: click.Command, line: Sequence[str]) -> dict[str, Any]:
    """The parameters that a command line stands for. Raises click.UsageError where it is not one."""
    with command.make_context(command.name, list(line)) as ctx:
        return dict(ctx.params)
