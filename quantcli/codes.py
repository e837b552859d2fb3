"""What the codes of a scheme stand for: their grid, and the levels of formats that have some."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, cast

import numpy as np

from quantcli import registry
from quantcli.formats import Format
from quantcli.kernels import CodeGrid
from quantcli.kernels.codebook import Codebook, codebook
from quantcli.scheme import Scheme

if TYPE_CHECKING:
    from quantcli.kernels import Floats


def _format(scheme: Scheme) -> Format:
    return cast(Format, registry.get("formats", scheme.format))


def code_grid(scheme: Scheme) -> CodeGrid:
    """The codes of a scheme."""
    return _format(scheme).grid(scheme)


@lru_cache(maxsize=64)
def _named_codebook(name: str, bits: int, given: tuple[float, ...] | None) -> Codebook:
    scheme = Scheme(format=name, bits=bits, codebook=given)
    form = _format(scheme)
    assert form.levels is not None
    return codebook(form.levels(scheme)[None], ties_to_even=form.ties_to_even)


def fixed_codebook(scheme: Scheme) -> Codebook:
    """The codebook of a format whose levels are not learned."""
    return _named_codebook(scheme.format, scheme.bits, scheme.codebook)


def padded_codebook(levels: Floats, scheme: Scheme) -> Codebook:
    """The codebook of learned levels (tables, count), ascending; codes beyond them repeat the largest."""
    missing = (1 << scheme.bits) - levels.shape[1]
    return codebook(np.concatenate([levels, np.repeat(levels[:, -1:], missing, axis=1)], axis=1))
