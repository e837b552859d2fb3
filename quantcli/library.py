"""The library of native kernels: where it is, and which of its variants this processor runs.

It stands apart from the kernels because their arguments are numpy's arrays: `quantcli --version` does not wait for it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from typing import TYPE_CHECKING, NamedTuple

from quantcli.errors import UsageError

if TYPE_CHECKING:
    import ctypes

FORCE = "QUANTCLI_KERNELS"
"""The environment variable that forces a set of kernels: `native`, `numpy` or a variant of the native ones."""

VARIANTS = {"base": 0, "v2": 2, "v3": 3, "v4": 4}
"""The variants of the kernels, and the level from which a processor runs each, as the library reports it."""

LIMITS = (512, 24, 64, 2047)
"""Limits of the searches: candidate scales, places of an end of the range, trial scales, and how much a column may
count. common.h has the same numbers with the reasons; a library built with others is refused."""

INTERFACE = 0x53398C3D
"""Stands for the functions of the library and the structures they take, as common.h has it: a library that was built
from sources with others would crash Python. tests/kernels/test_interface.py says what it has to be."""


class Library(NamedTuple):
    """The functions of the library, and the variant to use of them."""

    functions: ctypes.CDLL
    variant: str


def find() -> Library | None:
    """The library, and its fastest variant or the forced one; None where numpy does its work.

    Raises UsageError for a forced set of kernels that is unknown or does not run here, and for a library that was built
    from another version of quantcli.
    """
    wanted = os.environ.get(FORCE, "")
    if wanted not in ("", "native", "numpy", *VARIANTS):
        hint = f"use native, numpy, {', '.join(VARIANTS)}"
        raise UsageError(f"{wanted!r} is not a set of kernels", place=[FORCE], hint=hint)
    functions = None if wanted == "numpy" else opened()
    if functions is None:
        if wanted not in ("", "numpy"):
            hint = "install with a C++ compiler available, or use numpy"
            raise UsageError("the native kernels are not built for this machine", place=[FORCE], hint=hint)
        return None
    runs = runnable(functions)
    if wanted in VARIANTS and wanted not in runs:
        problem = f"this processor does not run the variant {wanted} of the native kernels"
        raise UsageError(problem, place=[FORCE], hint=f"use {', '.join(runs)}")
    return Library(functions, wanted if wanted in VARIANTS else runs[-1])


def name() -> str:
    """The name of the kernels in use: `native-v3`, say, or `numpy`. Raises UsageError as `find` does."""
    found = find()
    return "numpy" if found is None else f"native-{found.variant}"


def runnable(functions: ctypes.CDLL) -> list[str]:
    """The variants that this processor runs, of those that were built, the fastest last."""
    level = functions.qk_cpu_level()
    return [variant for variant, needs in VARIANTS.items() if needs <= level and is_built(functions, variant)]


def is_built(functions: ctypes.CDLL, variant: str) -> bool:
    """Whether the library has a variant: on Windows it has fewer, and on processors other than x86-64 one."""
    return hasattr(functions, f"qk_{variant}_encode")


def of_another_version() -> UsageError:
    """The error about a library that was built from another version: with numpy in its place all would be slow."""
    problem = "the native kernels were built from another version of quantcli"
    again = "install quantcli again (pip install . in its sources)"
    return UsageError(problem, hint=f"{again}, or set {FORCE}=numpy, which is several times slower")


def opened() -> ctypes.CDLL | None:
    """The library, where it was built and loads. Raises UsageError where it is of another version."""
    import ctypes

    spec = importlib.util.find_spec("quantcli.kernels")
    for folder in spec.submodule_search_locations or () if spec is not None else ():  # two in an editable install
        for file in ("_kernels.so", "_kernels.dylib", "_kernels.dll"):
            path = os.path.join(folder, file)
            if os.path.isfile(path):
                try:
                    functions = ctypes.CDLL(path)
                except OSError:  # built for another machine
                    return None
                limits, interface = (ctypes.c_int32 * len(LIMITS))(), None
                with contextlib.suppress(AttributeError):  # of one that was built before there were these
                    functions.qk_limits(limits)
                    interface = functions.qk_interface()
                if tuple(limits) != LIMITS or interface != INTERFACE:
                    raise of_another_version()
                return functions
    return None
