"""What is asked of one tensor."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from quantcli import registry
from quantcli.dtypes import LONG_NAMES
from quantcli.errors import UsageError

Granularity = Literal["tensor", "channel", "group"]
GRANULARITIES = ("tensor", "channel", "group")
SCALE_DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3")
ROUNDINGS = ("nearest", "sum-preserving")
MAX_BITS = 16
MAX_GROUP = 16384
"""Largest group that may end inside a row: a tile holds whole groups of whole words."""
MAX_LEVELS = 256


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

    bits, format
        1 to 16 bits for `int` (one symmetric bit is the sign times the mean absolute value of the group); other
        formats have their own range and default.
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
        A calibrator by name, or `auto` for the best of several, tensor by tensor; and its options. Default: `mse` for
        integers, `mean-abs` for one symmetric bit, `lloyd-max` for learned codebooks, `minmax` for the rest.
    rounding
        `nearest`, or `sum-preserving`: some codes are moved by one so that the errors of a row add up to about 0.
        Default: sum-preserving for integers of 2 to 8 bits with the default calibration. What is asked for by name is
        done plainly.
    levels, codebook
        For the format `codebook`: how many levels to learn (default 2^bits), or the levels, ascending.
    scale_dtype
        `float32`, `float16`, `bfloat16`, or None: the weight's own dtype if that has 16 bits, else float16 unless
        it would overflow or lose precision, then float32; above 8 bits always float32. Codebooks learned for groups
        may have `float8_e4m3`, which is their default.

    Raises UsageError for a combination that has no meaning.

    >>> Scheme(bits=4).name
    'w4g128'
    >>> Scheme(bits=8, granularity="channel", symmetric=False).name
    'w8c-asym'
    >>> Scheme(format="nf4", group_size=64).name
    'nf4g64'
    """

    bits: int = None  # type: ignore[assignment]  # left out: the format's own
    format: str = "int"
    granularity: Granularity = "group"
    group_size: int | None = None
    axis: int = 0
    symmetric: bool = True
    grid: Literal["restricted", "full"] | None = None
    zero_point: Literal["int", "float"] = "int"
    calibration: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    rounding: str = None  # type: ignore[assignment]  # left out: see above
    levels: int | None = None
    codebook: tuple[float, ...] | None = None
    scale_dtype: str | None = None

    def __post_init__(self) -> None:
        for name in ("format", "calibration"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, getattr(self, name).replace("_", "-"))
        _one_of("format", self.format, registry.names("formats"))
        self._resolve_bits()
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
        self._check_zero_point()
        plain = self.calibration is not None or self.family != "int" or not 2 <= self.bits <= 8
        rounding = ("nearest" if plain else "sum-preserving") if self.rounding is None else self.rounding
        object.__setattr__(self, "rounding", rounding)
        _one_of("rounding", self.rounding, ROUNDINGS)
        if self.rounding != "nearest" and (self.family != "int" or self._binary):
            raise UsageError(f"{self.rounding} is for integers of two bits or more", place=["rounding"])
        self._check_scale_dtype()
        self._resolve_calibration()

    def _resolve_bits(self) -> None:
        low, high, default = self._format.bits
        if self.codebook is not None:
            self._check_codebook(self.codebook)
            object.__setattr__(self, "codebook", tuple(float(v) for v in self.codebook))
        if self.levels is not None:
            _whole("levels", self.levels, 2, MAX_LEVELS)
            if self.family != "learned":
                raise UsageError("only a learned codebook has them", place=["levels"])
        count = self.levels if self.levels is not None else len(self.codebook) if self.codebook is not None else None
        needed = max(count - 1, 1).bit_length() if count is not None else None
        object.__setattr__(self, "bits", (needed or default) if self.bits is None else self.bits)
        _whole("bits", self.bits, 1, MAX_BITS)
        if not low <= self.bits <= high:
            span = f"{low} to {high}" if low < high else str(low)
            raise UsageError(f"{self.format} has {span} bits, not {self.bits}", place=["bits"])
        if needed is not None and needed > self.bits:
            raise UsageError(f"{count} levels do not fit {self.bits} bits", place=["bits"], hint=f"use {needed} bits")

    def _check_codebook(self, codebook: Any) -> None:
        if self.format != "codebook":
            raise UsageError(f"the format {self.format} has its own levels", place=["codebook"])
        if not 2 <= len(codebook) <= MAX_LEVELS:
            raise UsageError(f"{len(codebook)} levels instead of 2 to {MAX_LEVELS}", place=["codebook"])
        if not all(type(v) in (int, float) and abs(v) <= 1e30 for v in codebook):
            raise UsageError("a level is not a finite number up to 1e30", place=["codebook"])
        if any(a >= b for a, b in itertools.pairwise(codebook)):
            raise UsageError("the levels do not rise", place=["codebook"])

    def _check_zero_point(self) -> None:
        if type(self.symmetric) is not bool:
            raise UsageError(f"{self.symmetric!r} is neither true nor false", place=["symmetric"])
        _one_of("zero point", self.zero_point, ("int", "float"))
        if self.symmetric and self.zero_point == "float":
            raise UsageError("a symmetric scheme has none", place=["zero point"], hint="use an asymmetric scheme")
        kinds = self._format.zero_points
        if not self.symmetric and self.zero_point not in kinds:
            if kinds:
                raise UsageError(f"{self.format} has only {kinds[0]} offsets", place=["zero point"])
            raise UsageError(f"{self.format} is symmetric", place=["symmetric"], hint="leave --asymmetric out")

    def _check_scale_dtype(self) -> None:
        if self.scale_dtype is None:
            return
        _one_of("scale dtype", self.scale_dtype, SCALE_DTYPES)
        if self.scale_dtype == "float8_e4m3" and not self.shares_levels:
            raise UsageError("float8_e4m3 is for codebooks learned for groups", place=["scale dtype"])

    def _resolve_calibration(self) -> None:
        if self.calibration is None:
            object.__setattr__(self, "calibration", self._default_calibration())
        if self.calibration == "auto":
            if self.options:
                raise UsageError("auto takes no options", place=["options", next(iter(self.options))])
            if self.grid is not None:
                raise UsageError("auto chooses it", place=["grid"])
            if self._binary or self.family == "learned":
                raise UsageError(f"there is only {self._default_calibration()} for this format", place=["calibration"])
            object.__setattr__(self, "grid", "full")
            return
        assert self.calibration is not None
        _one_of("calibration", self.calibration, (*registry.names("calibrators"), "auto"))
        calibrator = registry.get("calibrators", self.calibration)
        if self._binary != calibrator.binary:
            raise UsageError(
                f"{self.calibration} is {'only ' if calibrator.binary else 'not '}for one symmetric bit",
                place=["calibration"],
                hint="leave it out to take the default",
            )
        if self.family not in calibrator.families:
            known = [n for n in registry.names("calibrators") if self._suits(n)]
            raise UsageError(
                f"{self.calibration} is not for {self.format}", place=["calibration"], hint=f"use {' or '.join(known)}"
            )
        if not self.symmetric and not calibrator.affine:
            raise UsageError(f"{self.calibration} is for symmetric schemes only", place=["calibration"])
        if not isinstance(self.options, Mapping):
            raise UsageError(f"{self.options!r} is not a map of names to values", place=["options"])
        for name, value in self.options.items():
            if name not in calibrator.options:
                raise UsageError(f"{self.calibration} has no such option", place=["options", name])
            calibrator.options[name].check(name, value)
        obstacle = calibrator.obstacle(self) if calibrator.obstacle is not None else None
        if obstacle is not None:
            raise UsageError(obstacle, place=["calibration"])
        self._resolve_grid(calibrator.grid)

    def _resolve_grid(self, usual: str) -> None:
        only = "full" if not self.symmetric or self.family != "int" or self._binary else None
        if self.grid is None:
            object.__setattr__(self, "grid", only or usual)
        _one_of("grid", self.grid, ("restricted", "full"))
        if self.grid != "full" and (only or self.calibration == "signed-extreme"):
            what = "an asymmetric scheme" if not self.symmetric else self.calibration if not only else self.format
            raise UsageError(f"{what} uses the full grid", place=["grid"])

    def _default_calibration(self) -> str:
        if self._binary:
            return "mean-abs"
        return self._format.calibration if self.codebook is None else "minmax"

    def _suits(self, name: str) -> bool:
        calibrator = registry.get("calibrators", name)
        return (
            self.family in calibrator.families
            and calibrator.binary == self._binary
            and (self.symmetric or calibrator.affine)
        )

    @property
    def _format(self) -> Any:
        return registry.get("formats", self.format)

    @property
    def _binary(self) -> bool:
        return self.family == "int" and self.bits == 1 and self.symmetric

    @property
    def family(self) -> str:
        """What calibrators go by: `int`, `midrise`, `levels` (fixed ones) or `learned`."""
        found: str = self._format.family
        return "levels" if self.codebook is not None else found

    @property
    def shares_levels(self) -> bool:
        """Whether levels are learned that all groups of the tensor share, each with a scale of its own."""
        return self.family == "learned" and self.granularity == "group"

    @property
    def level_count(self) -> int:
        """Levels of a learned codebook."""
        return self.levels if self.levels is not None else 1 << self.bits

    @property
    def shares_columns(self) -> bool:
        """Whether channels of another axis than the first must be seen one by one."""
        names = [c.calibration or "" for c in self.candidates]
        return any(not registry.get("calibrators", name).gather.columns for name in names)

    @property
    def weighs(self) -> bool:
        """Whether its parameters take the importance of columns into account."""
        return all(registry.get("calibrators", c.calibration or "").weighs for c in self.candidates)

    @property
    def preserves_sums(self) -> bool:
        """Whether rounding keeps the sum of a row."""
        return self.rounding == "sum-preserving"

    @property
    def reach(self) -> float:
        """What the largest weight, or for asymmetric schemes the range, is divided by for a scale that clips nothing.

        >>> Scheme(bits=4).reach, Scheme(bits=4, symmetric=False).reach, Scheme(format="fp8-e4m3").reach
        (7, 15, 448.0)
        """
        found: float = self._format.reach(self)
        return found

    @property
    def candidates(self) -> tuple[Scheme, ...]:
        """The schemes `auto` chooses from, min-max first; of any other scheme itself."""
        if self.calibration != "auto":
            return (self,)
        names = ["minmax", *(n for n in registry.names("calibrators") if n != "minmax" and self._suits(n))]
        names = [n for n in names if registry.get("calibrators", n).auto]
        return tuple(replace(self, calibration=n, grid=None) for n in names)

    @property
    def rival(self) -> Scheme | None:
        """The min-max scheme of the same size that this one should beat; None when it is that scheme."""
        if self.calibration == "minmax" or self._binary:
            return None
        if self.family != "learned":
            return replace(self, calibration="minmax", options={}, grid=None, rounding="nearest")
        if self.bits == 1 or self.level_count < 1 << self.bits:
            return None
        return Scheme(
            bits=self.bits,
            granularity=self.granularity,
            group_size=self.group_size,
            axis=self.axis,
            calibration="minmax",
        )

    def option(self, name: str) -> Any:
        """An option of the calibrator, its default where it was not given."""
        known = registry.get("calibrators", self.calibration or "").options
        return self.options.get(name, known[name].default)

    @property
    def name(self) -> str:
        """A short name for file names and tables, such as `w4g128`."""
        where = {"tensor": "t", "channel": "c" if self.axis == 0 else f"c{self.axis}"}
        kind = "" if self.symmetric else "-asym" if self.zero_point == "int" else "-float"
        low, high, _ = self._format.bits
        what = f"w{self.bits}" if self.format == "int" else self.format if low == high else f"{self.format}-{self.bits}"
        return f"{what}{where.get(self.granularity, f'g{self.group_size}')}{kind}"

    def recalibrated(self, calibration: str) -> Scheme:
        """This scheme with another calibrator at its defaults."""
        return replace(self, calibration=calibration, options={})

    def with_scale_dtype(self, scale_dtype: str) -> Scheme:
        """This scheme with the scale dtype settled."""
        return replace(self, scale_dtype=scale_dtype)

    def as_dict(self) -> dict[str, Any]:
        """Plain values that `Scheme(**values)` makes into this scheme again."""
        values = {**asdict(self), "options": dict(self.options)}
        if self.calibration == "auto":  # which chooses the grid
            del values["grid"]
        return {k: v for k, v in values.items() if v is not None and v != {}}


def scale_dtype_name(name: str) -> str:
    """The safetensors dtype of a scale dtype.

    >>> scale_dtype_name("bfloat16")
    'BF16'
    """
    return {**LONG_NAMES, "float8_e4m3": "F8_E4M3"}[name]
