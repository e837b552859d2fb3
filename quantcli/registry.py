"""Find the variants that live one per file in a package: a variant exists because its file exists.

A variant's module offers `PROVIDES`; its name is the file's, with dashes for underscores. Where modules may offer
several things, such as a layout that is read, written or both, a variant of one of them is a module, or a package, in
whose text a line begins with that name and an equals sign. Names are read from the folder and the text, not by
importing the package, so that `--help` can list them without importing numpy.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from functools import cache
from typing import Any


@cache
def names(package: str, offer: str | None = None) -> tuple[str, ...]:
    """Names of the variants in `quantcli.<package>`, sorted; of those that offer something, where that is named.

    >>> "minmax" in names("calibrators")
    True
    >>> "fp8-blocks" in names("layouts", "READS"), "fp8-blocks" in names("layouts", "WRITES")
    (True, False)
    """
    folder = os.path.join(os.path.dirname(__file__), *package.split("."))
    public = [m for m in pkgutil.iter_modules([folder]) if not m.name.startswith("_")]
    found = [m.name for m in public if offer is None or _offers(os.path.join(folder, m.name), m.ispkg, offer)]
    return tuple(sorted(name.replace("_", "-") for name in found))


def _offers(module: str, is_package: bool, offer: str) -> bool:
    """Whether a module, or the first file of a package, assigns to a name at its outermost level."""
    with open(os.path.join(module, "__init__.py") if is_package else f"{module}.py", "rb") as file:
        return f"\n{offer} = ".encode() in file.read()


@cache
def get(package: str, name: str, offer: str | None = None) -> Any:
    """What the variant's module provides. Raises KeyError when there is none of that name."""
    if name not in names(package, offer):
        raise KeyError(name)
    return getattr(importlib.import_module(f"quantcli.{package}.{name.replace('-', '_')}"), offer or "PROVIDES")
