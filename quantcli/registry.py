"""Find the variants that live one per file in a package: a variant exists because its file exists.

A variant's module offers `PROVIDES`; its name is the file's, with dashes for underscores, and the first line of its
docstring, `TITLE: SUMMARY.`, is its description in help and documentation. Packages beside such modules hold what they
share. Where modules may offer several things, such as a layout that is read, written or both, a variant of one of them
is a module, or a package, in whose text a line begins with that name and an equals sign, and its description is the
first argument, `summary="TITLE: SUMMARY"`. All this is read from the folders of a package (its `__path__`, to which one
may be added) and the text, not by importing modules, so that `--help` can list variants without importing numpy.
"""

from __future__ import annotations

import importlib.util
import os
import re
from functools import cache
from typing import Any


@cache
def names(package: str, offer: str | None = None) -> tuple[str, ...]:
    """Sorted names of the variants in `quantcli.<package>`; with `offer`, of those that offer it.

    >>> "minmax" in names("calibrators")
    True
    >>> "hqq" in names("layouts", "READS"), "hqq" in names("layouts", "WRITES")
    (True, False)
    """
    files = _files(package).items()
    found = [name for name, path in files if (f"\n{offer} = " in _text(package, name) if offer else _is_module(path))]
    return tuple(sorted(name.replace("_", "-") for name in found))


@cache
def _files(package: str) -> dict[str, str]:
    """The public modules and packages in a package, each with its file; for a package its `__init__.py`."""
    spec = importlib.util.find_spec(f"quantcli.{package}")
    found: dict[str, str] = {}
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        for entry in os.listdir(folder) if os.path.isdir(folder) else ():
            module, extension = os.path.splitext(entry)
            path = os.path.join(folder, entry, "__init__.py") if not extension else os.path.join(folder, entry)
            if not module.startswith("_") and (extension == ".py" or (not extension and os.path.isfile(path))):
                found.setdefault(module, path)
    return found


def _is_module(path: str) -> bool:
    return os.path.basename(path) != "__init__.py"


@cache
def _text(package: str, name: str) -> str:
    """The text of a variant's module, or of the first file of its package."""
    with open(_files(package)[name], encoding="utf-8") as file:
        return file.read()


@cache
def get(package: str, name: str, offer: str | None = None) -> Any:
    """The object that the variant's module provides. Raises KeyError for an unknown name."""
    if name not in names(package, offer):
        raise KeyError(name)
    return getattr(importlib.import_module(f"quantcli.{package}.{name.replace('-', '_')}"), offer or "PROVIDES")


def headline(package: str, name: str, offer: str | None = None) -> str:
    """The one-line description of a variant, without its full stop; empty where it has none.

    >>> headline("calibrators", "minmax")
    'Min-max: the whole range is kept, nothing is clipped'
    >>> headline("layouts", "mlx", "READS")
    'MLX: affine, mxfp4, mxfp8 and nvfp4'
    """
    pattern = r'\A"""(.+?)\.?(?:"""|\n)' if offer is None else rf'^{offer} = \w+\(\s*summary="([^"]*)"'
    found = re.search(pattern, _text(package, name.replace("-", "_")), re.MULTILINE)
    return found[1] if found is not None else ""


def summary(package: str, name: str, offer: str | None = None) -> str:
    """A variant in a few words: its headline after the title.

    >>> summary("calibrators", "minmax")
    'the whole range is kept, nothing is clipped'
    """
    title, colon, words = headline(package, name, offer).partition(": ")
    return words if colon else title


def purpose(package: str, name: str, offer: str | None = None) -> str:
    """The purpose of a variant: the words of its headline after the last `for`.

    >>> purpose("layouts", "gguf", "WRITES")
    'llama.cpp'
    """
    return headline(package, name, offer).rpartition(" for ")[2]


@cache
def commands() -> dict[str, str]:
    """The names of the commands, each with what it does.

    >>> commands()["quantize"]
    'Quantize a model file or folder'
    """
    return {name: summary("cli", name) for name in names("cli") if name != "options"}
