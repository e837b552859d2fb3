"""Super-blocks: 256 weights with one float16 scale, or two, under which groups have whole scales of few bits.

As in the K types of GGUF and IQ4_XS. All scales of a super-block are chosen together, by the error of the codes they
give (see kernels/blocks.h): on normal, Laplace and t weights each type leaves less error than llama-quantize does with
an importance matrix of ones. Zero points are minima, whole numbers of few bits as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.kernels import SUPER, BlockScales, BlockType, Choices, Form, Kernels, Tile
from quantcli.scales import Storage, Store
from quantcli.scheme import SUPER_BLOCKS, Scheme

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Doubles, Floats

    Array = NDArray[np.float64]


def _row(first: float, last: float, count: int) -> tuple[float, ...]:
    """Evenly spaced numbers."""
    return tuple(first + (last - first) * k / max(count - 1, 1) for k in range(count))


_AROUND = _row(0.98, 1.02, 5)
_WIDER = _row(0.95, 1.05, 9)

TYPES: Mapping[str, BlockType] = {
    "Q2_K": BlockType(
        form=Form.AFFINE, bits=2, sub=16, low=0, high=15, deepest=15, range_bits=11,
        ratios=_row(1.0, 0.5, 4), factors=(0.9, 0.95, 1.0, 1.05), refits=3,
    ),
    "Q3_K": BlockType(
        form=Form.SIGNED, bits=3, sub=16, low=-32, high=31, range_bits=11, ratios=_row(1.2, 0.5, 12), factors=_WIDER
    ),
    "Q4_K": BlockType(
        form=Form.AFFINE, bits=4, sub=32, low=0, high=63, deepest=63, range_bits=11,
        ratios=_row(1.02, 0.78, 4), factors=_AROUND, refits=3,
    ),
    "Q5_K": BlockType(
        form=Form.AFFINE, bits=5, sub=32, low=0, high=63, deepest=63, range_bits=11,
        ratios=_row(1.01, 0.84, 4), factors=_AROUND, refits=4,
    ),
    "Q6_K": BlockType(
        form=Form.SIGNED, bits=6, sub=16, low=-128, high=127, range_bits=12, ratios=_row(1.1, 0.8, 14), factors=_WIDER
    ),
    "IQ4_XS": BlockType(
        form=Form.TABLE, bits=4, sub=32, low=-32, high=31, range_bits=13, ratios=_row(1.2, 0.6, 12), factors=_WIDER
    ),
}  # fmt: skip
"""The types of super-blocks by ggml's names, with the candidates that `default` tries."""

EFFORT = {"fast": 0.7, "default": 1.0, "best": 2.0, "exact": 2.9}
"""How many candidates each effort tries of those that `default` does."""


def type_of(scheme: Scheme) -> str:
    """ggml's name of the type of a scheme in super-blocks."""
    return SUPER_BLOCKS[scheme.format, scheme.bits, scheme.symmetric][0].upper()


def suited(name: str, effort: str) -> BlockType:
    """A type with the candidates of an effort."""
    kind = TYPES[name]
    count = min(24, max(3, round(len(kind.ratios) * EFFORT[effort])))
    rounds = 4 if EFFORT[effort] > 1 else kind.rounds
    return replace(kind, ratios=_row(kind.ratios[0], kind.ratios[-1], count), rounds=rounds)


def counts(tile: Tile, kind: BlockType) -> tuple[NDArray[np.int16], Doubles] | None:
    """How much the columns of a tile count: each in its sub-block, 256 for the one that counts most and at least 1
    where it counts at all, and each sub-block in its super-block; None when all count the same."""
    if tile.importance is None:
        return None
    grouped = tile.importance.reshape(-1, kind.sub)
    most = grouped.max(axis=1)
    share = grouped / np.where(most > 0, most, 1.0)[:, None]
    columns = np.where(share > 0, np.maximum(np.rint(share * 256), 1), 0)
    columns = np.where(most[:, None] > 0, columns, 256).astype(np.int16)
    largest = np.repeat(most.reshape(-1, SUPER // kind.sub).max(axis=1), SUPER // kind.sub)
    much = np.where(largest > 0, most / np.where(largest > 0, largest, 1.0), 1.0)
    return np.ascontiguousarray(columns.reshape(-1)), much


def search(kernels: Kernels, tile: Tile, name: str, effort: str) -> BlockScales:
    """The stored scales of a tile of whole super-blocks of finite weights with the least error of their codes."""
    kind = suited(name, effort)
    return kernels.search_blocks(tile, kind, counts(tile, kind))


def parameters(found: BlockScales, kind: BlockType) -> tuple[Floats, Floats | None]:
    """The scale, and for Form.AFFINE the offset, of every sub-block (rows, groups), as ggml computes them."""
    each = SUPER // kind.sub
    d, m = (np.repeat(v.view(np.float16).astype(np.float32), each, axis=1) for v in (found.d, found.m))
    scale: Floats = d * found.scales
    return scale, -(m * found.minima) + np.float32(0) if kind.form == Form.AFFINE else None


def chosen(kernels: Kernels, tile: Tile, scheme: Scheme) -> tuple[Floats, Floats | None, BlockScales] | None:
    """Scales and offsets (rows, groups) of a tile of finite weights as they will be stored; None where float16 does not
    hold d or m of a super-block."""
    name = type_of(scheme)
    found = search(kernels, tile, name, scheme.options["effort"])
    largest = np.abs(tile.ranges(kernels).extreme).reshape(*found.d.shape, -1).max(axis=2)
    if ((largest > 0) & (found.d == 0) & (found.m == 0)).any():
        return None
    return *parameters(found, TYPES[name]), found


def _settle(scale: Array, scheme: Scheme, store: Store) -> Floats:
    """The scales that were chosen, which are as they will be stored."""
    return scale.astype(np.float32)


def _none(*arguments: Any) -> Any:
    raise AssertionError("scales of super-blocks are chosen together, and stored in blocks of GGUF")


def _choices(scale: Array, scheme: Scheme, store: Store, effort: str) -> Choices:
    found: Choices = _none()
    return found


PROVIDES = Storage(settle=_settle, choices=_choices, stored=_none, effective=_none, search=chosen)
