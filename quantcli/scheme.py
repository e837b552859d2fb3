"""The scheme of one tensor: its codes, its granularity, and how the parameters are found."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Literal

from quantcli.dtypes import LONG_NAMES

Granularity = Literal["tensor", "channel", "group", "block"]
Family = Literal["int", "midrise", "levels", "learned"]
GRANULARITIES = ("tensor", "channel", "group", "block")
ONE_BYTE = {"float8_e4m3": "e4m3", "float8_e4m3_alone": "e4m3-alone", "float8_e8m0": "e8m0"}
"""Dtypes of scales of one byte, and the variant of `scales` that stores them."""
IN_SUPER_BLOCKS = "super-blocks"
"""The dtype of scales that GGUF's types store together, and the variant of `scales` that does."""
SCALE_DTYPES = ("float32", "float16", "bfloat16", *ONE_BYTE, IN_SUPER_BLOCKS)
ACTIVATIONS = ("none", "int8", "fp8", "fp8-group", "mxfp8", "mxfp4", "fp8-static", "nvfp4")
STATIC = {"fp8-static": "FP8_DYNAMIC", "nvfp4": "NVFP4A16"}
"""Kinds of activations whose scales are measured on data, and the nearest schemes by name that need none."""
SECOND_ORDER = "second-order"
ROUNDINGS = ("nearest", "sum-preserving", SECOND_ORDER)
AUTO = "auto"
"""As calibration: the best of several, for each tensor. As scale dtype: the one that suits the tensor."""
PUBLISHED = {
    ("fp4", "e8m0", "group", 32): "mxfp4",
    ("fp8-e4m3", "e8m0", "group", 32): "mxfp8",
    ("fp4", "e4m3", "group", 16): "nvfp4",
    ("fp4", "e4m3-alone", "group", 16): "nvfp4",
}
"""Names of the formats that a number format, a storage of scales and groups of a size make."""
SUPER_BLOCKS = {
    ("int", 2, False): ("q2_k", 16),
    ("int", 3, True): ("q3_k", 16),
    ("int", 4, False): ("q4_k", 32),
    ("int", 5, False): ("q5_k", 32),
    ("int", 6, True): ("q6_k", 16),
    ("iq4", 4, True): ("iq4_xs", 32),
}
"""Codes whose scales may be in super-blocks, by format, bits and whether they are symmetric: ggml's name, and the size
of the groups."""
MAX_BITS = 16
MAX_GROUP = 16384
"""Largest group that may end inside a row: a tile holds whole groups of whole words."""
MAX_BLOCK = 1024
"""Most rows and columns of a block: a tile holds whole rows of blocks."""
MAX_LEVELS = 256
ROTATIONS = (0, 4, 16, 64, 256, 1024)
"""Columns that are rotated together before they are rounded, 0 for none: sizes of regular Hadamard matrices."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Scheme:
    """A number format, its granularity and how its parameters are found, with every field decided.

    All layers read this record; `asking.Scheme`, the public name, makes one from a request. Fields are the keywords
    documented there, none of them open, and beyond those:

    family
        The kind of codes, which calibrators depend on: `int`, `midrise`, `levels` (fixed ones) or `learned`.
    label
        The start of its name: `w4`, `nf4`, `midrise-6`.
    group_size
        Weights of a group; of blocks their rows and columns. 0 for other granularities.
    options, given
        All options of the calibrator, and the names of those that were requested.
    levels
        How many levels are learned where fewer than the codes were requested, else 0; `level_count` covers both.
    codebook
        The given levels, ascending; empty where none were given.
    scale_dtype
        `auto` where the weights of the tensor decide.
    activations
        How a runtime quantizes the inputs of the layer as they come, for layouts that say so: one of ACTIVATIONS.
    rotation
        Columns that are rotated together before they are rounded, one of ROTATIONS; decoding rotates them back.
    """

    format: str
    family: Family
    label: str
    bits: int
    granularity: Granularity
    group_size: int
    axis: int
    symmetric: bool
    grid: Literal["restricted", "full"]
    zero_point: Literal["int", "float"]
    calibration: str
    options: Mapping[str, Any] = field(hash=False)
    given: tuple[str, ...]
    rounding: str
    levels: int
    codebook: tuple[float, ...]
    scale_dtype: str
    activations: str
    rotation: int

    def __hash__(self) -> int:
        # Tables of what many tensors have in common are looked into some times for each of them, most often with the
        # same few schemes: what tells most of these apart is enough.
        return hash((self.label, self.granularity, self.group_size, self.calibration, self.scale_dtype))

    @property
    def binary(self) -> bool:
        """Whether a code is the sign of a weight."""
        return self.family == "int" and self.bits == 1 and self.symmetric

    @property
    def shares_levels(self) -> bool:
        """Whether learned levels are shared by all groups of the tensor, each of which has a separate scale."""
        return self.family == "learned" and self.granularity == "group"

    @property
    def storage(self) -> str:
        """How scales are stored: a variant of `scales`. Those of learned levels are plain floats, even E4M3."""
        if self.scale_dtype == IN_SUPER_BLOCKS:
            return IN_SUPER_BLOCKS
        return "plain" if self.shares_levels else ONE_BYTE.get(self.scale_dtype, "plain")

    @property
    def level_count(self) -> int:
        """Levels of a codebook, learned or given; of other formats how many codes there are."""
        return self.levels or len(self.codebook) or 1 << self.bits

    @property
    def preserves_sums(self) -> bool:
        """Whether rounding keeps the sum of a row."""
        return self.rounding == "sum-preserving"

    @property
    def second_order(self) -> bool:
        """Whether the error of a column is made good in those behind it, as the inputs of the layer go together."""
        return self.rounding == SECOND_ORDER

    @property
    def name(self) -> str:
        """A short name for file names and tables, such as `w4g128`."""
        where = {"tensor": "t", "channel": "c" if self.axis == 0 else f"c{self.axis}"}
        kind = "" if self.symmetric else "-asym" if self.zero_point == "int" else "-float"
        size = self.group_size
        if self.storage == IN_SUPER_BLOCKS:
            return SUPER_BLOCKS[self.format, self.bits, self.symmetric][0]
        published = PUBLISHED.get((self.format, self.storage, self.granularity, size))
        if published is not None:
            return published
        where["block"] = f"b{size}x{size}"
        stored = "" if self.storage == "plain" else f"-{self.storage}"
        turned = f"-rot{self.rotation}" if self.rotation else ""
        return f"{self.label}{where.get(self.granularity, f'g{size}')}{kind}{stored}{turned}"

    def with_scale_dtype(self, scale_dtype: str) -> Scheme:
        """This scheme with the scale dtype settled."""
        found = copy(self)
        object.__setattr__(found, "scale_dtype", scale_dtype)
        return found

    def of_weights(self) -> Scheme:
        """This scheme with inputs in floating point."""
        found = copy(self)
        object.__setattr__(found, "activations", "none")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values from which `asking.Scheme(**values)` makes this scheme again, as native files store them."""
        grouped, automatic = bool(self.group_size), self.calibration == AUTO  # which chooses the grid
        return {
            "bits": self.bits,
            "format": self.format,
            "granularity": self.granularity,
            **({"group_size": self.group_size} if grouped else {}),
            "axis": self.axis,
            "symmetric": self.symmetric,
            **({} if automatic else {"grid": self.grid}),
            "zero_point": self.zero_point,
            "calibration": self.calibration,
            **({"options": {name: self.options[name] for name in self.given}} if self.given else {}),
            "rounding": self.rounding,
            **({"levels": self.levels} if self.levels else {}),
            **({"codebook": self.codebook} if self.codebook else {}),
            **({} if self.scale_dtype == AUTO else {"scale_dtype": self.scale_dtype}),
            **({} if self.activations == "none" else {"activations": self.activations}),
            **({"rotation": self.rotation} if self.rotation else {}),
        }

    def __repr__(self) -> str:
        return f"Scheme({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"

    def _repr_html_(self) -> str:
        from quantcli.notebook import table

        return table((self.name, ""), self.as_dict().items())


_SCALE_DTYPES = {
    **LONG_NAMES,
    "float8_e4m3": "F8_E4M3",
    "float8_e4m3_alone": "F8_E4M3",
    "float8_e8m0": "F8_E8M0",
    IN_SUPER_BLOCKS: "F16",
}


def scale_dtype_name(name: str) -> str:
    """The safetensors dtype of a scale dtype.

    >>> scale_dtype_name("bfloat16")
    'BF16'
    """
    return _SCALE_DTYPES[name]


def scale_dtype_of(name: str) -> str:
    """The scale dtype of a safetensors dtype.

    >>> scale_dtype_of("BF16")
    'bfloat16'
    """
    return next(long for long, short in _SCALE_DTYPES.items() if short == name)
