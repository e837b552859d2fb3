"""Digests of the bytes of tensors, as they are recorded of what was quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from quantcli.passes.tiles import COPY, Visit, walk
from quantcli.tensors.digest import Digested

if TYPE_CHECKING:
    from quantcli.stores import Source


def digests(
    source: Source,
    wanted: Mapping[str, tuple[int, str]],
    *,
    threads: int,
    advance: Callable[[int], None] = lambda nbytes: None,
) -> dict[str, str | None]:
    """The digest of each tensor. wanted: the bytes of each, and the kind of its digest; advance: called with the bytes
    that are done."""
    found = dict[str, str | None]()

    def visit(name: str, nbytes: int, kind: str) -> Visit:
        whole = Digested(partial(source.read, name), nbytes, kind)
        yield whole.alone(COPY, advance)
        found[name] = whole.found()

    walk((visit(name, *how) for name, how in wanted.items()), threads=threads)
    return found
