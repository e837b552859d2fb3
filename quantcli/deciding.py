"""How every field of a scheme is decided: what is asked counts, the rest follows, and contradictions are refused."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from quantcli import registry
from quantcli import scheme as record
from quantcli.errors import UsageError
from quantcli.scheme import (
    ACTIVATIONS,
    AUTO,
    GRANULARITIES,
    IN_SUPER_BLOCKS,
    MAX_BITS,
    MAX_BLOCK,
    MAX_LEVELS,
    ONE_BYTE,
    ROTATIONS,
    ROUNDINGS,
    SCALE_DTYPES,
    SUPER_BLOCKS,
    Family,
    Granularity,
)

if TYPE_CHECKING:
    from quantcli.calibrators import Calibrator
    from quantcli.formats import Format


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked of a scheme: the keywords of `asking.Scheme`; None leaves a field to follow from the rest."""

    bits: int | None = None
    format: str = "int"
    granularity: Granularity = "group"
    group_size: int | None = None
    axis: int = 0
    symmetric: bool = True
    grid: Literal["restricted", "full"] | None = None
    zero_point: Literal["int", "float"] = "int"
    calibration: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    rounding: str | None = None
    levels: int | None = None
    codebook: Sequence[float] | None = None
    scale_dtype: str | None = None
    activations: str = "none"
    rotation: int = 0


FIELDS = tuple(f.name for f in fields(Asked))
"""Names of the fields that may be asked, as in recipes."""


def decide(asked: Asked) -> dict[str, Any]:
    """The fields of the record of a scheme. Raises UsageError for a contradiction."""
    what = _codes(asked)
    group_size = _group_size(asked, what)
    _check_axis(asked)
    _check_zero_point(asked, what.form, what.name)
    rounding = _rounding(asked, what)
    _check_scales(asked, what)
    _one_of("activations", asked.activations, ACTIVATIONS)
    _check_rotation(asked, what)
    calibration, options = _calibration(asked, what)
    method = calibrator(calibration) if calibration != AUTO else None
    usual = method.grid if method is not None else "full"
    found: dict[str, Any] = {
        "format": what.name,
        "family": what.family,
        "label": _label(what, asked.levels or len(asked.codebook or ())),
        "bits": what.bits,
        "granularity": asked.granularity,
        "group_size": group_size,
        "axis": asked.axis,
        "symmetric": asked.symmetric,
        "grid": asked.grid if asked.grid is not None else "full" if what.one_grid else usual,
        "zero_point": asked.zero_point,
        "calibration": calibration,
        "options": options,
        "given": tuple(asked.options),
        "rounding": rounding,
        "levels": asked.levels or 0,
        "codebook": tuple(float(v) for v in asked.codebook or ()),
        "scale_dtype": asked.scale_dtype or AUTO,
        "activations": asked.activations,
        "rotation": asked.rotation,
    }
    if method is not None:
        _check_method(record.Scheme(**found), method, one_grid=what.one_grid)
    return found


class _Codes(NamedTuple):
    """The codes that a request asks for. one_grid: whether they always use the full grid."""

    name: str
    form: Format
    family: Family
    bits: int
    symmetric: bool

    @property
    def binary(self) -> bool:
        return self.family == "int" and self.bits == 1 and self.symmetric

    @property
    def one_grid(self) -> bool:
        return not self.symmetric or self.family != "int" or self.binary


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{value!r} is not one of {', '.join(allowed)}", place=[name])


def _whole(name: str, value: object, low: int, high: int | None) -> None:
    if type(value) is not int or value < low or (high is not None and value > high):
        bounds = f"from {low} to {high}" if high is not None else f"of {low} or more"
        raise UsageError(f"{value!r} is not a whole number {bounds}", place=[name])


def _dashed(name: Any) -> Any:
    return name.replace("_", "-") if isinstance(name, str) else name


def calibrator(name: str) -> Calibrator:
    """A calibrator by name."""
    return cast("Calibrator", registry.get("calibrators", name))


def _codes(asked: Asked) -> _Codes:
    """Format and bits; a codebook or a number of levels says how many are needed."""
    name = _dashed(asked.format)
    _one_of("format", name, registry.names("formats"))
    form = cast("Format", registry.get("formats", name))
    family: Family = form.family if asked.codebook is None else "levels"
    count = asked.levels
    if asked.codebook is not None:
        _check_codebook(name, asked.codebook)
        count = len(asked.codebook)
    if asked.levels is not None:
        _whole("levels", asked.levels, 2, MAX_LEVELS)
        if family != "learned":
            raise UsageError("only a learned codebook takes a number of levels", place=["levels"])
    low, high, usual = form.bits
    needed = max(count - 1, 1).bit_length() if count is not None else None
    bits = (needed or usual) if asked.bits is None else asked.bits
    _whole("bits", bits, 1, MAX_BITS)
    if not low <= bits <= high:
        span = f"{low} to {high}" if low < high else str(low)
        hint = "leave it out" if low == high else f"use {min(max(bits, low), high)}"
        raise UsageError(f"{name} has {span} bits, not {bits}", place=["bits"], hint=hint)
    if needed is not None and needed > bits:
        raise UsageError(f"{count} levels do not fit {bits} bits", place=["bits"], hint=f"use {needed} bits")
    return _Codes(name, form, family, bits, asked.symmetric)


def _label(what: _Codes, levels: int) -> str:
    """The start of the name of a scheme. levels: of a codebook, where they were asked for."""
    low, high, _ = what.form.bits
    if levels and levels != 1 << what.bits:
        return f"{what.name}-{levels}levels-"
    return f"w{what.bits}" if what.name == "int" else what.name if low == high else f"{what.name}-{what.bits}"


def _check_codebook(name: str, codebook: Any) -> None:
    if name != "codebook":
        raise UsageError(f"the format {name} has its own levels", place=["codebook"])
    if not 2 <= len(codebook) <= MAX_LEVELS:
        raise UsageError(f"{len(codebook)} levels given, but a codebook has 2 to {MAX_LEVELS}", place=["codebook"])
    if not all(type(v) in (int, float) and abs(v) <= 1e30 for v in codebook):
        raise UsageError("a level is not a finite number up to 1e30", place=["codebook"])
    if any(a >= b for a, b in itertools.pairwise(codebook)):
        raise UsageError("the levels are not in ascending order", place=["codebook"])


def _group_size(asked: Asked, what: _Codes) -> int:
    """Weights of a group; 0 where weights do not share scales by groups."""
    _one_of("granularity", asked.granularity, GRANULARITIES)
    if asked.scale_dtype == IN_SUPER_BLOCKS and asked.granularity == "group" and asked.group_size is None:
        _, size = SUPER_BLOCKS.get((what.name, what.bits, what.symmetric), ("", 32))
        return size
    if asked.granularity in ("group", "block"):
        size = 128 if asked.group_size is None else asked.group_size
        _whole("group_size", size, 1, None if asked.granularity == "group" else MAX_BLOCK)
        return size
    if asked.group_size is not None:
        raise UsageError("only groups and blocks take a group size", place=["group_size"])
    return 0


def _check_axis(asked: Asked) -> None:
    _whole("axis", asked.axis, -64, 64)
    if asked.axis != 0 and asked.granularity != "channel":
        raise UsageError("only channel granularity takes an axis", place=["axis"])


def _check_zero_point(asked: Asked, form: Format, name: str) -> None:
    if type(asked.symmetric) is not bool:
        raise UsageError(f"{asked.symmetric!r} is neither true nor false", place=["symmetric"])
    _one_of("zero_point", asked.zero_point, ("int", "float"))
    if asked.symmetric and asked.zero_point == "float":
        raise UsageError("a symmetric scheme has no zero point", place=["zero_point"], hint="use an asymmetric scheme")
    kinds = form.zero_points
    if not asked.symmetric and asked.zero_point not in kinds:
        if kinds:
            raise UsageError(f"{name} has only {kinds[0]} offsets", place=["zero_point"])
        raise UsageError(f"{name} is symmetric", place=["symmetric"], hint="leave --asymmetric out")


def _rounding(asked: Asked, what: _Codes) -> str:
    searched = asked.calibration is None and asked.scale_dtype != IN_SUPER_BLOCKS
    plain = not searched or what.family != "int" or not 2 <= what.bits <= 8
    rounding = ("nearest" if plain else "sum-preserving") if asked.rounding is None else asked.rounding
    _one_of("rounding", rounding, ROUNDINGS)
    if rounding == "sum-preserving" and what.binary:
        raise UsageError(f"{rounding} is not for one symmetric bit", place=["rounding"], hint="use nearest")
    return rounding


def _check_scales(asked: Asked, what: _Codes) -> None:
    """Raise UsageError for codes that cannot have scales of blocks, or of the dtype asked for."""
    if asked.granularity == "block" and (not what.symmetric or what.family == "learned" or what.binary):
        refused = "zero points" if not what.symmetric else "learned levels" if what.family == "learned" else "one bit"
        raise UsageError(f"{refused} are not supported for blocks", place=["granularity"], hint="use groups")
    if asked.scale_dtype is None:
        return
    _one_of("scale_dtype", asked.scale_dtype, SCALE_DTYPES)
    shares_levels = what.family == "learned" and asked.granularity == "group"
    if asked.scale_dtype == IN_SUPER_BLOCKS:
        _check_super_blocks(asked, what)
    elif asked.scale_dtype in ONE_BYTE and not (shares_levels and asked.scale_dtype == "float8_e4m3"):
        _check_one_byte(asked, what)


def _check_rotation(asked: Asked, what: _Codes) -> None:
    """Raise UsageError for codes and granularities that have no rotated columns."""
    if type(asked.rotation) is not int or asked.rotation not in ROTATIONS:
        sizes = ", ".join(map(str, ROTATIONS))
        raise UsageError(f"{asked.rotation!r} is not one of {sizes}", place=["rotation"])
    rows = asked.granularity == "channel" and asked.axis == 0
    if asked.rotation and not (rows and what.name == "int" and what.symmetric and not what.binary):
        hint = "use granularity: channel"
        raise UsageError(
            "rotated columns are for symmetric integers with a scale per row", place=["rotation"], hint=hint
        )


def _check_one_byte(asked: Asked, what: _Codes) -> None:
    """Raise UsageError for codes whose scales are never one byte, and for granularities that these do not have."""
    if what.form.small is None:
        hint = "use --scale-dtype float16, or --type fp4, fp8-e4m3 or fp8-e5m2"
        raise UsageError(
            f"{asked.scale_dtype} is for 4- and 8-bit floats, not {what.name}", place=["scale_dtype"], hint=hint
        )
    of_groups = asked.scale_dtype != "float8_e8m0"
    if asked.axis != 0 or (of_groups and asked.granularity != "group"):
        kinds = "groups" if of_groups else "groups, rows and blocks"
        raise UsageError(
            f"{asked.scale_dtype} is for scales of {kinds}", place=["scale_dtype"], hint="use --group-size 16"
        )


def _check_super_blocks(asked: Asked, what: _Codes) -> None:
    """Raise UsageError for codes that have no super-blocks."""
    found = SUPER_BLOCKS.get((what.name, what.bits, what.symmetric))
    usual = found is not None and _group_size(asked, what) == found[1] and asked.granularity == "group"
    if not usual or (not what.symmetric and asked.zero_point != "float") or asked.calibration not in (None, "mse"):
        names = ", ".join(name.upper() for name, _ in SUPER_BLOCKS.values())
        raise UsageError("no type of GGUF has such super-blocks", place=["scale_dtype"], hint=f"use --scheme {names}")
    if asked.rounding == "sum-preserving" or asked.options.get("norm", 2) != 2:
        name = "rounding" if asked.rounding == "sum-preserving" else "norm"
        raise UsageError("super-blocks are found by their squared error, rounded to nearest", place=[name])


def _calibration(asked: Asked, what: _Codes) -> tuple[str, dict[str, Any]]:
    """The calibration and all its options."""
    usual = "mean-abs" if what.binary else what.form.calibration if asked.codebook is None else "minmax"
    if what.form.small is not None and (asked.scale_dtype in ONE_BYTE or asked.granularity == "block"):
        usual = "mse"
    name = usual if asked.calibration is None else _dashed(asked.calibration)
    if name == AUTO:
        if asked.options:
            raise UsageError("auto takes no options", place=["options", next(iter(asked.options))])
        if asked.grid is not None:
            raise UsageError("calibration auto chooses the grid", place=["grid"])
        if what.binary or what.family == "learned":
            codes = "one symmetric bit" if what.binary else what.name
            raise UsageError(f"{codes} has only {usual}", place=["calibration"], hint="leave it out")
        return name, {}
    _one_of("calibration", name, (*registry.names("calibrators"), AUTO))
    method = calibrator(name)
    if what.binary != method.binary:
        raise UsageError(
            f"{name} is {'only ' if method.binary else 'not '}for one symmetric bit",
            place=["calibration"],
            hint="leave it out to take the default",
        )
    if what.family not in method.families:
        known = [n for n in registry.names("calibrators") if suits(n, what)]
        hint = f"use {' or '.join(known)}"
        raise UsageError(f"{name} does not support {what.name}", place=["calibration"], hint=hint)
    if not asked.symmetric and not method.affine:
        raise UsageError(f"{name} is for symmetric schemes only", place=["calibration"])
    if not isinstance(asked.options, Mapping):
        raise UsageError(f"{asked.options!r} is not a map of names to values", place=["options"])
    for option, value in asked.options.items():
        if option not in method.options:
            raise UsageError(f"{name} has no such option", place=["options", option])
        method.options[option].check(option, value)
    return name, {n: asked.options.get(n, option.default) for n, option in method.options.items()}


def suits(name: str, what: record.Scheme | _Codes) -> bool:
    """Whether a calibrator supports these codes."""
    found = calibrator(name)
    return what.family in found.families and found.binary == what.binary and (what.symmetric or found.affine)


def _check_method(scheme: record.Scheme, method: Calibrator, *, one_grid: bool) -> None:
    obstacle = method.obstacle(scheme) if method.obstacle is not None else None
    if obstacle is not None:
        raise UsageError(obstacle, place=["calibration"])
    _one_of("grid", scheme.grid, ("restricted", "full"))
    name = scheme.calibration
    if scheme.grid != "full" and (one_grid or not method.any_grid):
        what = "an asymmetric scheme" if not scheme.symmetric else name if not one_grid else scheme.format
        raise UsageError(f"{what} uses the full grid", place=["grid"])
