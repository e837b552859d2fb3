"""The interface of reading a layout: the weights stored in it, each with how to decode it.

A layout is known by the names, dtypes and shapes of the tensors a weight is stored as; config.json decides what those
leave open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from quantcli import registry
from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, printable
from quantcli.layouts import companions
from quantcli.layouts.regrouped import Regrouped
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quantcli.kernels import BlockScales, Bytes, Floats


class Read(Protocol):
    """Reads stored tensors."""

    def __call__(self, name: str, start: int, size: int, count: int = 1, step: int = 0) -> NDArray[np.uint8]:
        """The bytes of a tensor from `start` on; with a count, so many runs of this size, the first bytes of which are
        `step` apart, one after another."""


OWN = ("gguf", "onnx")
"""Layouts, and kinds of stores, of files that state their layout themselves: no other layout is looked for in them,
whatever the names."""


WHOLE = ("U8", "I8", "U16", "I16", "U32", "I32")
"""Dtypes of codes that are whole numbers; I64 is left to indices."""

SMALL_FLOATS = tuple(d.name for d in DTYPES.values() if d.is_float and d.bits <= 8)

CODES = (*WHOLE, *SMALL_FLOATS)
"""Dtypes one of which every layout has among the parts of a weight."""

COMFYUI = "_quantization_metadata"
"""The key of a header under which ComfyUI describes modules; its reader gets it beside config.json."""

TORCHAO = "torchao.bits"
"""The key beside config.json under which torchao's reader gets the bits of weights by name, as their records in headers
say."""


PUBLISHED = ("fp8-", "mxfp", "nvfp", "MXFP4")
"""How the schemes begin in which models are published: 8-bit floats, and small floats with one-byte scales, MXFP4 in
GGUF too."""


def is_published(scheme: str) -> bool:
    """Whether a scheme is one of a format in which models are published, whose weights are what their library decodes;
    loaders of other codes compute with these."""
    return scheme.startswith(PUBLISHED)


FLOATING = ("fp4", "fp8-e4m3", "fp8-e5m2")
"""Formats of floats that several layouts have."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Held:
    """The codes of a weight, in a form that other layouts may store as it is.

    format: of the codes, as in `Scheme`: `int` for whole numbers, `fp4` for E2M1. bits: of a code. group: columns that
    share parameters, or `channel` for a row, or of floats `tensor`; height: rows that do, of blocks. offsets: what a
    code u stands for, in float32: `` is (u - 2^(b-1)) * scale, `int` (u - zero) * scale with a code as the zero,
    `float` u * scale + zero; of other formats it is ``, and a code stands for its level times the scale. scale_dtype:
    of the stored scales, F8_E8M0 for powers of two, `super-blocks` where those of a super-block are stored together.
    overall: the scale of the tensor, which scales contain; 1 where none is stored. activations: how the file says that
    inputs are quantized, as in `Scheme`. turned: whether rows are the columns of the weight, where that is what is
    stored transposed. exact: whether these numbers are just what the layout's own library decodes codes to; False where
    it rounds on the way, with float offsets unless they all turn out to be whole zeros times scales. dtype: of the
    weight, where that is not the dtype of its scales. packed(first, last): the codes of some rows, each in whole 32-bit
    words, the low one first. blocks(first, last): their scales in super-blocks, as they are stored; None where there
    are none. params(first, last): their scales and zeros (rows, groups), no zeros for ``. All raise DataError as
    decoding does.
    """

    bits: int
    group: int | str
    offsets: str
    scale_dtype: str
    packed: Callable[[int, int], Bytes]
    params: Callable[[int, int], tuple[Floats, Floats | None]]
    format: str = "int"
    height: int = 1
    overall: float = 1.0
    activations: str = "none"
    turned: bool = False
    exact: bool = True
    dtype: str | None = None
    blocks: Callable[[int, int], BlockScales] | None = None

    @property
    def kind(self) -> tuple[object, ...]:
        """What weights have in common whose rows can be put together."""
        where = self.group, self.height, self.turned
        return self.format, self.bits, *where, self.offsets, self.scale_dtype, self.overall, self.activations


def not_moved(read: Read | None = None) -> str:
    """Why codes are not moved that no other layout has."""
    return "such codes are not moved between layouts"


def none_regrouped(read: Read | None = None) -> None:
    """Nothing, of codes in groups that are runs, or that are no whole numbers."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Found:
    """A weight that is stored in a layout.

    name, shape: of the original. scheme: in the form of `Scheme.name`. bits: of a code. parts: the tensors that store
    it. decode(read, first, last): float32 (last - first, cols) of rows first to last, one or more; rows run along the
    last axis of the shape. Raises DataError for parameters that are not finite or name missing groups. unit: rows of
    which one is as much work as all, where it is more than one: rows are decoded in multiples of it. dtype: that of the
    tensor which the tool's own library makes of it: these values rounded to it, bit for bit; F32 where the library
    rounds in between, or has no dtype of its own. unused: parts that decoding does not need, scales of activations and
    of caches. held(read): its codes, where other layouts have such codes; a text says why they do not. turned(read,
    first, last, step): of a weight that is stored with its last two axes exchanged, every step-th row of that, from
    first to last. Raises DataError. outputs_first: of a matrix that nodes multiply with, whether its shape is [out, in]
    and not [in, out]; None where nothing tells. regrouped(read): how groups lie in it where `held` gives none, as far
    as that is known.
    """

    name: str
    shape: tuple[int, ...]
    scheme: str
    bits: int
    parts: tuple[TensorInfo, ...]
    decode: Callable[[Read, int, int], NDArray[np.float32]]
    unit: int = 1
    dtype: str = "F32"
    unused: tuple[TensorInfo, ...] = ()
    held: Callable[[Read], Held | str] = not_moved
    turned: Callable[[Read, int, int, int], NDArray[np.float32]] | None = None
    outputs_first: bool | None = None
    regrouped: Callable[[Read], Regrouped | None] = none_regrouped


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Reader:
    """The reader of a layout: a summary for users, and a function that finds its weights among tensors by name.

    find(tensors, config, read): `config` is config.json, empty when there is none; of a GGUF it is {"gguf": its
    blocks}, of an ONNX file {"onnx": its graph}. `read` gives the shapes some layouts store as a tensor; without it
    they must follow from the rest. Raises DataError for malformed, contradictory or ambiguous tensors, and for an
    unsupported variant.
    """

    summary: str
    find: Callable[[Mapping[str, TensorInfo], Mapping[str, Any], Read | None], list[Found]]


def possible(infos: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> list[str]:
    """Layouts that can store some of these tensors. Of others not even the modules are imported: most models have none
    of these dtypes."""
    names = registry.names("layouts", "READS")
    own = [name for name in names if name in OWN and set(config) == {name}]
    if own or (not config.get(COMFYUI) and not any(info.dtype in CODES for info in infos.values())):
        return own
    return [name for name in names if name not in OWN]


def find(infos: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None) -> list[Found]:
    """Every weight that is stored in some layout among these tensors, each of which belongs to one weight only.

    With `read`, shapes that a file states are read from it; without, they are derived, and checked when decoding.
    Raises DataError as the layouts do, and for a weight that is stored twice.
    """
    left, found, seen = infos, list[Found](), set[str]()
    for layout in possible(infos, config):
        for weight in registry.get("layouts", layout, "READS").find(left, config, read):
            if weight.name in seen or (weight.name in infos and weight.name not in {p.name for p in weight.parts}):
                raise DataError("it is stored in two ways", place=[printable(weight.name)])
            seen.add(weight.name)
            found.append(weight)
        claimed = {part.name for weight in found for part in weight.parts}
        left = {name: info for name, info in left.items() if name not in claimed} if claimed else left
    beside = companions.of([weight.name for weight in found], left)
    return [replace(w, parts=(*w.parts, *o), unused=tuple(o)) if o else w for w, o in zip(found, beside)]
