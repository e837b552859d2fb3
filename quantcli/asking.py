"""Scheme requests, which may leave fields open, and the schemes they are resolved to, for options and recipes alike."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, ParamSpec, TypeVar, cast

from quantcli import registry
from quantcli import scheme as record
from quantcli.errors import QuantcliError, UsageError
from quantcli.scheme import (
    AUTO,
    GRANULARITIES,
    MAX_BITS,
    MAX_LEVELS,
    ROUNDINGS,
    SCALE_DTYPES,
    Family,
    Granularity,
)

if TYPE_CHECKING:
    from quantcli.calibrators import Calibrator
    from quantcli.formats import Format

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeRequest:
    """A request for a scheme: the keywords of `Scheme` as fields; None leaves a field to follow from the rest.

    >>> request = SchemeRequest(bits=4)
    >>> request.calibration, request.decided().calibration
    (None, 'mse')
    """

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

    @classmethod
    def of(cls, asked: Mapping[str, Any], place: str) -> SchemeRequest:
        """A request from plain values by field name. Raises UsageError, with the place, for invalid values."""
        return cls(**_checked(asked, place))

    def decided(self) -> Scheme:
        """The scheme that this request is resolved to. Raises UsageError for a contradiction."""
        return Scheme(**{name: getattr(self, name) for name in FIELDS})

    def with_rule(self, own: Mapping[str, Any], place: str) -> SchemeRequest:
        """This request overridden by the fields of a rule of a recipe; fields that no longer apply are left out.

        Raises UsageError, with the place, for invalid values.
        """
        moot: set[str] = set()
        if "granularity" in own or "group_size" in own:
            moot |= {"granularity", "group_size", "axis"}
        if "format" in own and own["format"] != self.format:
            moot |= {"bits", "levels", "codebook", "rounding", "scale_dtype", "grid", "calibration", "options"}
            moot |= {"symmetric", "zero_point"}
        if "calibration" in own:
            moot |= {"options", "grid"}
        if "symmetric" in own:
            moot |= {"grid", "zero_point"}
        kept = {name: getattr(self, name) for name in FIELDS if name not in moot}
        return SchemeRequest(**{**kept, **_checked(own, place)})


FIELDS = tuple(f.name for f in fields(SchemeRequest))
"""Names of the fields of a request, as in recipes."""


def _checked(asked: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The fields for a request. Raises UsageError for spellings only the command line has, and for empty values."""
    size, codebook = asked.get("group_size"), asked.get("codebook")
    if type(size) is int and size in (-1, 0):
        raise UsageError(f"group_size {size}", place=[place], hint="write granularity: channel or tensor")
    for key in ("bits", "format", "granularity", "symmetric", "zero_point"):
        if key in asked and asked[key] is None:
            raise UsageError("it has no value", place=[place, key])
    return {**asked, "codebook": tuple(codebook)} if isinstance(codebook, list) else dict(asked)


def decided_at(asked: SchemeRequest, place: str) -> Scheme:
    """The scheme that a request in a recipe is resolved to. Raises UsageError, with the place, for a contradiction."""
    try:
        return asked.decided()
    except QuantcliError as error:
        raise error.within(place) from None
    except TypeError:
        raise UsageError("a value has the wrong type", place=[place]) from None


class Scheme(record.Scheme):
    """How a tensor is quantized: the scheme of these keywords, with every field decided. None leaves a field to follow
    from the rest.

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
        remains in every weight and adds up over a row, so it must be requested.
    calibration, options
        A calibrator by name, or `auto` for the best of several, tensor by tensor; and its options. Default: `mse` for
        integers, `mean-abs` for one symmetric bit, `lloyd-max` for learned codebooks, `minmax` for the rest.
    rounding
        `nearest`, or `sum-preserving`: some codes are moved by one so that the errors of a row add up to about 0.
        Default: sum-preserving for integers of 2 to 8 bits with the default calibration, nearest with a calibration
        given by name.
    levels, codebook
        For the format `codebook`: how many levels to learn (default 2^bits), or the levels, ascending.
    scale_dtype
        `float32`, `float16`, `bfloat16`, or None: the weight's own dtype if that has 16 bits, else float16 unless
        it would overflow or lose precision, then float32; above 8 bits always float32. Codebooks learned for groups
        may have `float8_e4m3`, which is their default.

    Raises UsageError for an invalid combination.

    >>> Scheme(bits=4)  # doctest: +NORMALIZE_WHITESPACE
    Scheme(bits=4, format='int', granularity='group', group_size=128, axis=0, symmetric=True, grid='full',
           zero_point='int', calibration='mse', rounding='sum-preserving')
    >>> Scheme(bits=8, granularity="channel", symmetric=False).name, Scheme(format="nf4", group_size=64).name
    ('w8c-asym', 'nf4g64')
    """

    __slots__ = ()

    def __init__(
        self,
        *,
        bits: int | None = None,
        format: str = "int",
        granularity: Granularity = "group",
        group_size: int | None = None,
        axis: int = 0,
        symmetric: bool = True,
        grid: Literal["restricted", "full"] | None = None,
        zero_point: Literal["int", "float"] = "int",
        calibration: str | None = None,
        options: Mapping[str, Any] = MappingProxyType({}),
        rounding: str | None = None,
        levels: int | None = None,
        codebook: Sequence[float] | None = None,
        scale_dtype: str | None = None,
    ) -> None:
        asked = SchemeRequest(
            bits=bits,
            format=format,
            granularity=granularity,
            group_size=group_size,
            axis=axis,
            symmetric=symmetric,
            grid=grid,
            zero_point=zero_point,
            calibration=calibration,
            options=options,
            rounding=rounding,
            levels=levels,
            codebook=codebook,
            scale_dtype=scale_dtype,
        )
        super().__init__(**_fields(asked))


def given(scheme: record.Scheme | None, asked: Mapping[str, Any]) -> record.Scheme:
    """The given scheme or, in its place, the one of these keywords. Raises UsageError for both."""
    if scheme is None:
        return Scheme(**asked)
    if asked:
        raise UsageError("a scheme is given already", place=[next(iter(asked))], hint="give a scheme or its keywords")
    return scheme


def takes_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """The function, its signature with the keywords of `Scheme` for **asked: what help shows and Tab completes."""
    own = inspect.signature(function)
    fixed = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    keywords = inspect.signature(Scheme).parameters.values()
    function.__signature__ = own.replace(parameters=[*fixed, *keywords])  # type: ignore[attr-defined]
    return function


def changed(scheme: record.Scheme, **asked: Any) -> Scheme:
    """A scheme with some fields replaced; None leaves a field open again.

    >>> changed(Scheme(bits=4), group_size=32).name
    'w4g32'
    """
    return SchemeRequest(**{**scheme.as_dict(), **asked}).decided()


# ---- derived from a scheme -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def candidates(scheme: record.Scheme) -> tuple[record.Scheme, ...]:
    """The schemes `auto` chooses from, min-max first; any other scheme is its only candidate."""
    if scheme.calibration != AUTO:
        return (scheme,)
    suited = [n for n in registry.names("calibrators") if n != "minmax" and _suits(n, scheme)]
    return tuple(changed(scheme, calibration=n, grid=None) for n in ["minmax", *suited] if _calibrator(n).auto)


@functools.lru_cache(maxsize=256)
def rival(scheme: record.Scheme) -> Scheme | None:
    """The min-max scheme of the same size, to compare with; None when the scheme is that one itself."""
    if scheme.calibration == "minmax" or scheme.binary:
        return None
    if scheme.family != "learned":
        return changed(scheme, calibration="minmax", options={}, grid=None, rounding="nearest")
    if scheme.bits == 1 or scheme.level_count < 1 << scheme.bits:
        return None
    size = scheme.group_size or None
    return Scheme(
        bits=scheme.bits, granularity=scheme.granularity, group_size=size, axis=scheme.axis, calibration="minmax"
    )


def sees_channels_whole(scheme: record.Scheme) -> bool:
    """Whether channels of an axis other than the first must be read one by one."""
    return any(not _calibrator(c.calibration).gather.columns for c in candidates(scheme))


def weighs(scheme: record.Scheme) -> bool:
    """Whether its parameters depend on the importance of columns."""
    return all(_calibrator(c.calibration).weighs for c in candidates(scheme))


# ---- how each field is decided ----------------------------------------------------------------------------------


def _fields(asked: SchemeRequest) -> dict[str, Any]:
    """The fields of the scheme that a request is resolved to."""
    what = _codes(asked)
    group_size = _group_size(asked)
    _check_axis(asked)
    _check_zero_point(asked, what.form, what.name)
    rounding = _rounding(asked, what)
    _check_scale_dtype(asked, shares_levels=what.family == "learned" and asked.granularity == "group")
    calibration, options = _calibration(asked, what)
    calibrator = _calibrator(calibration) if calibration != AUTO else None
    usual = calibrator.grid if calibrator is not None else "full"
    found: dict[str, Any] = {
        "format": what.name,
        "family": what.family,
        "label": _label(what),
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
    }
    if calibrator is not None:
        _check_method(record.Scheme(**found), calibrator, one_grid=what.one_grid)
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


def _calibrator(name: str) -> Calibrator:
    return cast("Calibrator", registry.get("calibrators", name))


def _codes(asked: SchemeRequest) -> _Codes:
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
        raise UsageError(f"{name} has {span} bits, not {bits}", place=["bits"])
    if needed is not None and needed > bits:
        raise UsageError(f"{count} levels do not fit {bits} bits", place=["bits"], hint=f"use {needed} bits")
    return _Codes(name, form, family, bits, asked.symmetric)


def _label(what: _Codes) -> str:
    low, high, _ = what.form.bits
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


def _group_size(asked: SchemeRequest) -> int:
    """Weights of a group; 0 where weights do not share scales by groups."""
    _one_of("granularity", asked.granularity, GRANULARITIES)
    if asked.granularity == "group":
        size = 128 if asked.group_size is None else asked.group_size
        _whole("group_size", size, 1, None)
        return size
    if asked.group_size is not None:
        raise UsageError("only group granularity takes a group size", place=["group_size"])
    return 0


def _check_axis(asked: SchemeRequest) -> None:
    _whole("axis", asked.axis, -64, 64)
    if asked.axis != 0 and asked.granularity != "channel":
        raise UsageError("only channel granularity takes an axis", place=["axis"])


def _check_zero_point(asked: SchemeRequest, form: Format, name: str) -> None:
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


def _rounding(asked: SchemeRequest, what: _Codes) -> str:
    plain = asked.calibration is not None or what.family != "int" or not 2 <= what.bits <= 8
    rounding = ("nearest" if plain else "sum-preserving") if asked.rounding is None else asked.rounding
    _one_of("rounding", rounding, ROUNDINGS)
    if rounding != "nearest" and (what.family != "int" or what.binary):
        raise UsageError(f"{rounding} is for integers of two bits or more", place=["rounding"])
    return rounding


def _check_scale_dtype(asked: SchemeRequest, *, shares_levels: bool) -> None:
    if asked.scale_dtype is None:
        return
    _one_of("scale_dtype", asked.scale_dtype, SCALE_DTYPES)
    if asked.scale_dtype == "float8_e4m3" and not shares_levels:
        raise UsageError("float8_e4m3 is only for codebooks learned for groups", place=["scale_dtype"])


def _calibration(asked: SchemeRequest, what: _Codes) -> tuple[str, dict[str, Any]]:
    """The calibration and all its options."""
    usual = "mean-abs" if what.binary else what.form.calibration if asked.codebook is None else "minmax"
    name = usual if asked.calibration is None else _dashed(asked.calibration)
    if name == AUTO:
        if asked.options:
            raise UsageError("auto takes no options", place=["options", next(iter(asked.options))])
        if asked.grid is not None:
            raise UsageError("calibration auto chooses the grid", place=["grid"])
        if what.binary or what.family == "learned":
            raise UsageError(f"this format supports only {usual}", place=["calibration"])
        return name, {}
    _one_of("calibration", name, (*registry.names("calibrators"), AUTO))
    calibrator = _calibrator(name)
    if what.binary != calibrator.binary:
        raise UsageError(
            f"{name} is {'only ' if calibrator.binary else 'not '}for one symmetric bit",
            place=["calibration"],
            hint="leave it out to take the default",
        )
    if what.family not in calibrator.families:
        known = [n for n in registry.names("calibrators") if _suits(n, what)]
        hint = f"use {' or '.join(known)}"
        raise UsageError(f"{name} does not support {what.name}", place=["calibration"], hint=hint)
    if not asked.symmetric and not calibrator.affine:
        raise UsageError(f"{name} is for symmetric schemes only", place=["calibration"])
    if not isinstance(asked.options, Mapping):
        raise UsageError(f"{asked.options!r} is not a map of names to values", place=["options"])
    for option, value in asked.options.items():
        if option not in calibrator.options:
            raise UsageError(f"{name} has no such option", place=["options", option])
        calibrator.options[option].check(option, value)
    return name, {n: asked.options.get(n, option.default) for n, option in calibrator.options.items()}


def _suits(name: str, what: record.Scheme | _Codes) -> bool:
    """Whether a calibrator supports these codes."""
    found = _calibrator(name)
    return what.family in found.families and found.binary == what.binary and (what.symmetric or found.affine)


def _check_method(scheme: record.Scheme, calibrator: Calibrator, *, one_grid: bool) -> None:
    obstacle = calibrator.obstacle(scheme) if calibrator.obstacle is not None else None
    if obstacle is not None:
        raise UsageError(obstacle, place=["calibration"])
    _one_of("grid", scheme.grid, ("restricted", "full"))
    name = scheme.calibration
    if scheme.grid != "full" and (one_grid or not calibrator.any_grid):
        what = "an asymmetric scheme" if not scheme.symmetric else name if not one_grid else scheme.format
        raise UsageError(f"{what} uses the full grid", place=["grid"])
