"""Patterns of tensor names as values of options, which shells complete from the source."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


_PLAIN = re.compile(r"[\w./:+][\w./:+-]*", re.ASCII)
"""Names that mean nothing else to a shell, which takes what is offered as if it had been typed, and to a glob."""


class Pattern(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A glob, or a regular expression after re:; shells complete it to names of the source's tensors and modules."""

    name = "pattern"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem, split_arg_string

        from quantcli.patterns import module_of
        from quantcli.stores import open_source
        from quantcli.stores.pipelines import members, within

        # Behind an option whose value is still missing, click has not told the arguments from the options.
        words = split_arg_string(os.environ.get("COMP_WORDS", ""))[2:]
        src = ctx.params.get("src") or next((w for w in words if os.path.exists(os.path.expanduser(w))), None)
        if not isinstance(src, str):
            return []
        tensors = list[str]()
        try:
            for member in members(os.path.expanduser(src)):
                with contextlib.closing(open_source(member.path)) as source:
                    tensors += [within(member.name, info.name) for info in source.infos()]
        except Exception:  # what cannot be read has no names
            return []
        names = dict.fromkeys([*tensors, *map(module_of, tensors)])
        return [CompletionItem(n) for n in names if n.startswith(incomplete) and _PLAIN.fullmatch(n)]
