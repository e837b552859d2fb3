"""Find the variants that live one per file in a package: a variant exists because its file exists.

A variant's module offers `PROVIDES`; its name is the file's, with dashes for underscores. Names are read from the
folder, not by importing the package, so that `--help` can list them without importing numpy.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from functools import cache
from typing import Any


@cache
def names(package: str) -> tuple[str, ...]:
    """Names of the variants in `quantcli.<package>`, sorted.

    >>> "minmax" in names("calibrators")
    True
    """
    folder = os.path.join(os.path.dirname(__file__), *package.split("."))
    found = (m.name for m in pkgutil.iter_modules([folder]))
    return tuple(sorted(name.replace("_", "-") for name in found if not name.startswith("_")))


@cache
def get(package: str, name: str) -> Any:
    """What the variant's module provides. Raises KeyError when there is none of that name."""
    if name not in names(package):
        raise KeyError(name)
    return importlib.import_module(f"quantcli.{package}.{name.replace('-', '_')}").PROVIDES
