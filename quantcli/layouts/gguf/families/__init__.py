"""The architectures of llama.cpp: what a config.json and the tensors of a checkpoint become there, a file for each.

A family says which classes of transformers it is for, what llama.cpp calls its tensors, which keys and shapes follow
from a config.json, and what else is different in the GGUF: the order of rows, norms to which 1 is added. The facts are
those of llama.cpp's own loader and graphs; tests/peers compares the logits of each with those of transformers.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, cast

from quantcli import registry

if TYPE_CHECKING:
    from quantcli.layouts.gguf.family import Family


@cache
def families() -> tuple[Family, ...]:
    """All of them, Llama first."""
    found = [
        cast("Family", registry.get("layouts.gguf.families", name, "FAMILY"))
        for name in registry.names("layouts.gguf.families", "FAMILY")
    ]
    return tuple(sorted(found, key=lambda family: (family.architecture != "llama", family.architecture, family.words)))


def classes() -> dict[str, Family]:
    """The families by the classes of transformers that they are for."""
    return {name: family for family in families() for name in family.classes}


def of_architecture(name: str, words: str = "") -> Family | None:
    """The family of an architecture of llama.cpp with a kind of tokenizer; None for one that is not known.

    >>> of_architecture("bert", "t5").classes[0], of_architecture("bert").classes[0]
    ('RobertaModel', 'BertModel')
    """
    found = [family for family in families() if family.architecture == name]
    return next((family for family in found if words in family.words), found[0] if found else None)
