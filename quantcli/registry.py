"""Find the variants that live one per file in a package: a variant exists because its file exists.

A variant's module offers `PROVIDES`; its name is the file's, with dashes for underscores. Names are read from the
folder, so that `--help` can list them without importing numpy.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any


@cache
def names(package: str) -> tuple[str, ...]:
    """Names of the variants in `quantcli.<package>`, sorted.

    >>> "minmax" in names("calibrators")
    True
    """
    module = importlib.import_module(f"quantcli.{package}")
    found = (m.name for m in pkgutil.iter_modules(module.__path__))
    return tuple(sorted(name.replace("_", "-") for name in found if not name.startswith("_")))


@cache
def get(package: str, name: str) -> Any:
    """What the variant's module provides. Raises KeyError when there is none of that name."""
    if name not in names(package):
        raise KeyError(name)
    return importlib.import_module(f"quantcli.{package}.{name.replace('-', '_')}").PROVIDES
