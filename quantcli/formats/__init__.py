"""Number formats: what a code of so many bits stands for. One file each; the file's name is the format's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantcli.kernels import CodeGrid
    from quantcli.scheme import Scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """summary: a line for `--help`; grid: the codes of a scheme and their meaning."""

    summary: str
    grid: Callable[[Scheme], CodeGrid]
