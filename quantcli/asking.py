"""Scheme requests, which may leave fields open, and the schemes they are resolved to, for options and recipes alike."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, ParamSpec, TypeVar

from quantcli import registry
from quantcli import scheme as record
from quantcli.deciding import FIELDS, Asked, calibrator, decide, suits
from quantcli.errors import QuantcliError, UsageError
from quantcli.scheme import AUTO, SECOND_ORDER, Granularity

P = ParamSpec("P")
R = TypeVar("R")


class SchemeRequest(Asked):
    """A request for a scheme: the keywords of `Scheme` as fields; None leaves a field to follow from the rest.

    >>> request = SchemeRequest(bits=4)
    >>> request.calibration, request.decided().calibration
    (None, 'mse')
    """

    __slots__ = ()

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
            moot |= {"granularity", "group_size", "axis", "rotation"}
        if "format" in own and own["format"] != self.format:
            moot |= {"bits", "levels", "codebook", "rounding", "scale_dtype", "grid", "calibration", "options"}
            moot |= {"symmetric", "zero_point", "activations", "rotation"}
        if "calibration" in own:
            moot |= {"options", "grid"}
        if "symmetric" in own:
            moot |= {"grid", "zero_point", "rotation"}
        kept = {name: getattr(self, name) for name in FIELDS if name not in moot}
        return SchemeRequest(**{**kept, **_checked(own, place)})


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
        One scale for the tensor, for each index of `axis`, for each run of `group_size` weights along the last axis,
        or for each block of `group_size` rows and columns. Where the last axis is shorter than a group, trailing axes
        are joined (a convolution's kernel).
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
        given by name, and for levels; of these a model's convolutions are rounded sum-preserving (`help methods`).
        `second-order`, the default for files with statistics of the layer's inputs: the error of a column is made good
        in those that are rounded after it.
    levels, codebook
        For the format `codebook`: how many levels to learn (default 2^bits), or the levels, ascending.
    scale_dtype
        `float32`, `float16`, `bfloat16`, or None: the weight's own dtype if that has 16 bits, else float16 unless
        it would overflow or lose precision, then float32; above 8 bits always float32. 4- and 8-bit floats may have
        `float8_e8m0`, powers of two (MXFP4, MXFP8 in groups of 32), and in groups `float8_e4m3` times a float32 scale
        of the tensor (NVFP4 in groups of 16), or `float8_e4m3_alone` without that (NVFP4 of MLX); codebooks learned for
        groups `float8_e4m3`, which is their default.
    activations
        How a runtime quantizes the inputs of the layer as they come, for layouts that say so: `int8` or `fp8` per
        token, `fp8-group` in groups of 128, `mxfp8`, `mxfp4`, or `none`.
    rotation
        Of symmetric integers with a scale per row: how many columns are multiplied by a regular Hadamard matrix before
        they are rounded, 4, 16, 64, 256 or 1024, for layouts that say so (ComfyUI's ConvRot); 0 for none.

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
        activations: str = "none",
        rotation: int = 0,
    ) -> None:
        asked = Asked(
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
            activations=activations,
            rotation=rotation,
        )
        super().__init__(**decide(asked))


def given(scheme: record.Scheme | None, asked: Mapping[str, Any]) -> record.Scheme:
    """The given scheme or, in its place, the one of these keywords. Raises UsageError for both."""
    if scheme is None:
        return Scheme(**asked)
    if asked:
        raise UsageError("a scheme is given already", place=[next(iter(asked))], hint="give a scheme or its keywords")
    return scheme


def takes_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """The function, its signature with the keywords of `Scheme` for **asked: what help shows and Tab completes."""
    return with_keywords(function, inspect.signature(Scheme).parameters.values())


def with_keywords(function: Callable[P, R], keywords: Iterable[inspect.Parameter]) -> Callable[P, R]:
    """The function, its signature with these keywords for **asked."""
    own = inspect.signature(function)
    fixed = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    function.__signature__ = own.replace(parameters=[*fixed, *keywords])  # type: ignore[attr-defined]
    return function


def changed(scheme: record.Scheme, **asked: Any) -> Scheme:
    """A scheme with some fields replaced; None leaves a field open again.

    >>> changed(Scheme(bits=4), group_size=32).name
    'w4g32'
    """
    return SchemeRequest(**{**scheme.as_dict(), **asked}).decided()


@functools.lru_cache(maxsize=256)
def second_order(scheme: record.Scheme) -> record.Scheme:
    """A scheme with second-order rounding; one whose columns are rotated as it is."""
    return scheme if scheme.rotation else changed(scheme, rounding=SECOND_ORDER)


@functools.lru_cache(maxsize=256)
def plainly_rounded(scheme: record.Scheme) -> record.Scheme:
    """A scheme of second-order rounding with the rounding it has where nothing is known of a layer's inputs; any other
    one as it is.

    >>> plainly_rounded(Scheme(bits=4, rounding="second-order")).rounding
    'sum-preserving'
    """
    if not scheme.second_order:
        return scheme
    usual = changed(scheme, rounding=None, calibration=None, options={}, grid=None)
    return changed(scheme, rounding=usual.rounding if usual.calibration == scheme.calibration else "nearest")


def searched(fields: Mapping[str, Any], effort: str | None) -> Scheme:
    """The scheme of some fields of a request. effort: how long to search for its scales, None for the default."""
    options: dict[str, Any] = {} if effort is None else {"options": {"effort": effort}}
    return SchemeRequest(**fields, **options).decided()


def effort_of(scheme: record.Scheme) -> str | None:
    """How long the scales of a scheme are to be searched for; None where that is left to the default."""
    return scheme.options["effort"] if scheme.calibration == "mse" and "effort" in scheme.given else None


@functools.lru_cache(maxsize=256)
def candidates(scheme: record.Scheme) -> tuple[record.Scheme, ...]:
    """The schemes `auto` chooses from, min-max first; any other scheme is its only candidate."""
    if scheme.calibration != AUTO:
        return (scheme,)
    suited = [n for n in registry.names("calibrators") if n != "minmax" and suits(n, scheme)]
    return tuple(changed(scheme, calibration=n, grid=None) for n in ["minmax", *suited] if calibrator(n).auto)


@functools.lru_cache(maxsize=256)
def rival(scheme: record.Scheme) -> Scheme | None:
    """The min-max scheme of the same size, to compare with; None when the scheme is that one itself."""
    if scheme.calibration == "minmax" or scheme.binary or scheme.storage == "super-blocks":
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
    return any(not calibrator(c.calibration).gather.columns for c in candidates(scheme))


def weighs(scheme: record.Scheme) -> bool:
    """Whether its parameters depend on the importance of columns."""
    return all(calibrator(c.calibration).weighs for c in candidates(scheme))
