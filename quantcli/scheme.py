"""What is asked of one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from quantcli import registry
from quantcli.dtypes import LONG_NAMES
from quantcli.errors import UsageError

Granularity = Literal["tensor", "channel", "group"]
GRANULARITIES = ("tensor", "channel", "group")
SCALE_DTYPES = ("float32", "float16", "bfloat16")
MAX_BITS = 16
MAX_GROUP = 16384
"""Largest group that may end inside a row: a tile holds whole groups of whole words."""


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{value!r} is not one of {', '.join(allowed)}", place=[name])


def _whole(name: str, value: object, low: int, high: int | None) -> None:
    if type(value) is not int or value < low or (high is not None and value > high):
        bounds = f"from {low} to {high}" if high is not None else f"of {low} or more"
        raise UsageError(f"{value!r} is not a whole number {bounds}", place=[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A number format, its granularity and how its parameters are found; checked where it is made.

    bits
        1 to 16. One symmetric bit is the sign times the mean absolute value of the group.
    granularity, group_size, axis
        One scale for the tensor, for each index of `axis`, or for each run of `group_size` weights along the last
        axis. Where the last axis is shorter than a group, trailing axes are joined (a convolution's kernel).
    symmetric, grid
        Symmetric codes run over -(2^(b-1)-1) .. 2^(b-1)-1 (`restricted`) or down to -2^(b-1) (`full`). Affine codes
        run over 0 .. 2^b-1, their range widened to contain 0.
    zero_point
        `int` keeps 0 exactly representable. `float` stores the smallest value as an offset instead: a constant error
        remains in every weight and adds up over a row, so it is asked for, never chosen.
    calibration, options
        A calibrator by name (default: `minmax`, `mean-abs` for one symmetric bit) and its options.
    scale_dtype
        `float32`, `float16`, `bfloat16`, or None: the weight's own dtype if that has 16 bits, else float16 unless
        it would overflow or lose precision, then float32; above 8 bits always float32.

    Raises UsageError for a combination that has no meaning.

    >>> Scheme(bits=4).name
    'w4g128'
    >>> Scheme(bits=8, granularity="channel", symmetric=False).name
    'w8c-asym'
    """

    bits: int
    format: str = "int"
    granularity: Granularity = "group"
    group_size: int | None = None
    axis: int = 0
    symmetric: bool = True
    grid: Literal["restricted", "full"] | None = None
    zero_point: Literal["int", "float"] = "int"
    calibration: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    scale_dtype: str | None = None

    def __post_init__(self) -> None:
        _whole("bits", self.bits, 1, MAX_BITS)
        _one_of("format", self.format, registry.names("formats"))
        _one_of("granularity", self.granularity, GRANULARITIES)
        if self.granularity == "group":
            if self.group_size is None:
                object.__setattr__(self, "group_size", 128)
            _whole("group size", self.group_size, 1, None)
        elif self.group_size is not None:
            raise UsageError("only group granularity has one", place=["group size"])
        _whole("axis", self.axis, -64, 64)
        if self.axis != 0 and self.granularity != "channel":
            raise UsageError("only channel granularity has one", place=["axis"])
        if type(self.symmetric) is not bool:
            raise UsageError(f"{self.symmetric!r} is neither true nor false", place=["symmetric"])
        _one_of("zero point", self.zero_point, ("int", "float"))
        if self.symmetric and self.zero_point == "float":
            raise UsageError("a symmetric scheme has none", place=["zero point"], hint="use an asymmetric scheme")
        if self.scale_dtype is not None:
            _one_of("scale dtype", self.scale_dtype, SCALE_DTYPES)
        self._resolve_calibration()

    def _resolve_calibration(self) -> None:
        binary = self.bits == 1 and self.symmetric
        if self.calibration is None:
            object.__setattr__(self, "calibration", "mean-abs" if binary else "minmax")
        assert self.calibration is not None
        _one_of("calibration", self.calibration, registry.names("calibrators"))
        calibrator = registry.get("calibrators", self.calibration)
        if binary != calibrator.binary:
            raise UsageError(
                f"{self.calibration} is {'only ' if calibrator.binary else 'not '}for one symmetric bit",
                place=["calibration"],
                hint="leave it out to take the default",
            )
        if not self.symmetric and not calibrator.affine:
            raise UsageError(f"{self.calibration} is for symmetric schemes only", place=["calibration"])
        unknown = set(self.options) - set(calibrator.options)
        if unknown:
            raise UsageError(f"{self.calibration} has no option {sorted(unknown)[0]!r}", place=["options"])
        if self.grid is None:
            object.__setattr__(self, "grid", calibrator.grid if self.symmetric else "full")
        _one_of("grid", self.grid, ("restricted", "full"))
        if self.grid != "full" and (not self.symmetric or calibrator.grid == "full"):
            what = "an asymmetric scheme" if not self.symmetric else self.calibration
            raise UsageError(f"{what} uses the full grid", place=["grid"])

    @property
    def name(self) -> str:
        """A short name for file names and tables, such as `w4g128`."""
        where = {"tensor": "t", "channel": "c" if self.axis == 0 else f"c{self.axis}"}
        kind = "" if self.symmetric else "-asym" if self.zero_point == "int" else "-float"
        return f"w{self.bits}{where.get(self.granularity, f'g{self.group_size}')}{kind}"

    def with_scale_dtype(self, scale_dtype: str) -> Scheme:
        """This scheme with the scale dtype settled."""
        return replace(self, scale_dtype=scale_dtype)

    def as_dict(self) -> dict[str, Any]:
        """Plain values that `Scheme(**values)` makes into this scheme again."""
        return asdict(self)


def scale_dtype_name(name: str) -> str:
    """The safetensors dtype of a scale dtype.

    >>> scale_dtype_name("bfloat16")
    'BF16'
    """
    return LONG_NAMES[name]
