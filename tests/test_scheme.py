"""Schemes: what is accepted, what is filled in, and what has no meaning."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from strategies import schemes

from quantcli import Scheme, UsageError
from quantcli.asking import candidates
from quantcli.layouts.writer import named


@given(schemes())
def test_a_scheme_is_rebuilt_from_its_own_dict(scheme: Scheme) -> None:
    """Plain values that `Scheme(**values)` makes into this scheme again."""
    assert Scheme(**scheme.as_dict()) == scheme


@given(schemes())
def test_a_scheme_survives_json(scheme: Scheme) -> None:
    import json

    assert Scheme(**json.loads(json.dumps(scheme.as_dict(), allow_nan=False))) == scheme


@pytest.mark.parametrize(("fields", "expected"), [
    ({"bits": 4}, {"granularity": "group", "group_size": 128, "grid": "full", "calibration": "mse",
                   "rounding": "sum-preserving"}),
    ({"bits": 1}, {"calibration": "mean-abs", "grid": "full"}),
    ({"bits": 1, "symmetric": False}, {"calibration": "mse", "grid": "full", "zero_point": "int",
                                       "rounding": "nearest"}),
    ({"bits": 4, "calibration": "minmax"}, {"grid": "restricted", "rounding": "nearest"}),
    ({"format": "nf4"}, {"bits": 4, "calibration": "minmax", "grid": "full", "rounding": "nearest"}),
    ({"format": "fp8_e4m3"}, {"bits": 8, "format": "fp8-e4m3"}),
    ({"format": "codebook", "levels": 5}, {"bits": 3, "calibration": "lloyd-max"}),
    ({"format": "codebook", "codebook": (-1.0, 0.0, 1.0)}, {"bits": 2, "calibration": "minmax"}),
    ({"bits": 4, "calibration": "signed-extreme"}, {"grid": "full"}),
    ({"bits": 4, "symmetric": False}, {"grid": "full", "calibration": "mse"}),
    ({"bits": 8, "granularity": "channel"}, {"group_size": 0, "axis": 0}),
    ({"bits": 8, "granularity": "tensor"}, {"group_size": 0}),
])  # fmt: skip
def test_what_is_filled_in(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    scheme = Scheme(**fields)
    assert {name: getattr(scheme, name) for name in expected} == expected


@pytest.mark.parametrize(("fields", "message"), [
    ({"bits": 0}, "bits: 0 is not a whole number from 1 to 16"),
    ({"bits": 17}, "bits: 17 is not"),
    ({"bits": 4.0}, "bits: 4.0 is not"),
    ({"bits": "4"}, "bits: '4' is not"),
    ({"bits": True}, "bits: True is not"),
    ({"bits": 4, "format": "nf5"}, "format: 'nf5' is not one of"),
    ({"bits": 4, "granularity": "row"}, "granularity: 'row' is not one of tensor, channel, group"),
    ({"bits": 4, "group_size": 0}, "group_size: 0 is not"),
    ({"bits": 4, "group_size": -1}, "group_size: -1 is not"),
    ({"bits": 4, "group_size": True}, "group_size: True is not"),
    ({"bits": 4, "granularity": "tensor", "group_size": 32}, "group_size: only groups and blocks take a group size"),
    ({"bits": 4, "granularity": "channel", "group_size": 32}, "group_size: only groups and blocks take a group size"),
    ({"bits": 4, "axis": 1}, "axis: only channel granularity takes an axis"),
    ({"bits": 4, "granularity": "channel", "axis": 65}, "axis: 65 is not"),
    ({"bits": 4, "granularity": "channel", "axis": 0.5}, "axis: 0.5 is not"),
    ({"bits": 4, "symmetric": 1}, "symmetric: 1 is neither true nor false"),
    ({"bits": 4, "symmetric": None}, "symmetric: None is neither"),
    ({"bits": 4, "zero_point": "float"}, "zero_point: a symmetric scheme has no zero point"),
    ({"bits": 4, "symmetric": False, "zero_point": "no"}, "zero_point: 'no' is not one of"),
    ({"bits": 4, "scale_dtype": "float64"}, "scale_dtype: 'float64' is not one of"),
    ({"bits": 4, "scale_dtype": "F16"}, "scale_dtype: 'F16' is not one of"),
    ({"bits": 4, "calibration": "psychic"}, "calibration: 'psychic' is not one of"),
    ({"bits": 4, "calibration": "mean-abs"}, "only for one symmetric bit"),
    ({"bits": 1, "calibration": "minmax"}, "not for one symmetric bit"),
    ({"bits": 1, "symmetric": False, "calibration": "mean-abs"}, "calibration"),
    ({"bits": 4, "symmetric": False, "calibration": "signed-extreme"}, "for symmetric schemes only"),
    ({"bits": 4, "options": {"percent": 99}}, "options: percent: mse has no such option"),
    ({"bits": 4, "options": {"effort": "heroic"}}, "effort: 'heroic' is not one of"),
    ({"bits": 4, "calibration": "percentile", "options": {"percentile": 101}}, "percentile: 101 is not a number from"),
    ({"bits": 4, "calibration": "lloyd-max"}, "calibration: lloyd-max does not support int"),
    ({"format": "codebook", "calibration": "mse"}, "calibration: mse does not support codebook"),
    ({"format": "nf4", "bits": 3}, "bits: nf4 has 4 bits, not 3"),
    ({"format": "nf4", "symmetric": False}, "symmetric: nf4 is symmetric"),
    ({"format": "midrise", "symmetric": False}, "zero_point: midrise has only float offsets"),
    ({"bits": 1, "rounding": "sum-preserving"}, "rounding: sum-preserving is not for one symmetric bit"),
    ({"bits": 4, "rounding": "up"}, "rounding: 'up' is not one of"),
    ({"bits": 4, "levels": 4}, "levels: only a learned codebook takes a number of levels"),
    ({"format": "codebook", "levels": 300}, "levels: 300 is not a whole number from 2 to 256"),
    ({"format": "codebook", "levels": 9, "bits": 3}, "bits: 9 levels do not fit 3 bits"),
    ({"format": "codebook", "codebook": (1.0,)}, "codebook: 1 levels given, but a codebook has 2 to 256"),
    ({"format": "codebook", "codebook": (1.0, 1.0)}, "codebook: the levels are not in ascending order"),
    ({"format": "codebook", "codebook": (1.0, float("inf"))}, "codebook: a level is not a finite number"),
    ({"format": "int", "codebook": (-1.0, 1.0)}, "codebook: the format int has its own levels"),
    ({"bits": 4, "scale_dtype": "float8_e4m3"}, "scale_dtype: float8_e4m3 is for 4- and 8-bit floats, not int"),
    ({"bits": 12, "options": {"effort": "exact"}}, "effort exact is for up to 8 bits"),
    ({"format": "nf4", "calibration": "mse", "options": {"effort": "exact"}}, "effort exact is for integers"),
    ({"format": "codebook", "calibration": "auto"}, "calibration: codebook has only lloyd-max; leave it out"),
    ({"bits": 1, "calibration": "auto"}, "calibration: one symmetric bit has only mean-abs; leave it out"),
    ({"bits": 4, "grid": "half"}, "grid: 'half' is not one of"),
    ({"bits": 4, "symmetric": False, "grid": "restricted"}, "grid: an asymmetric scheme uses the full grid"),
    ({"bits": 4, "calibration": "signed-extreme", "grid": "restricted"}, "grid: signed-extreme uses the full grid"),
    ({"bits": 1, "grid": "restricted"}, "grid"),
])  # fmt: skip
def test_combinations_without_a_meaning(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Scheme(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fields", [{"bits": [4]}, {"bits": 4, "calibration": ["minmax"]}, {"bits": 4, "format": 7},
                                    {"bits": 4, "granularity": {}}, {"bits": 4, "scale_dtype": 16},
                                    {"bits": 4, "zero_point": None}])  # fmt: skip
def test_values_of_the_wrong_type_are_usage_errors(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Scheme(**fields)


@pytest.mark.parametrize(("fields", "name"), [
    ({"bits": 4}, "w4g128"), ({"bits": 4, "group_size": 32}, "w4g32"), ({"bits": 8, "granularity": "channel"}, "w8c"),
    ({"bits": 8, "granularity": "channel", "axis": 1}, "w8c1"), ({"bits": 8, "granularity": "tensor"}, "w8t"),
    ({"bits": 4, "symmetric": False}, "w4g128-asym"),
    ({"bits": 3, "symmetric": False, "zero_point": "float"}, "w3g128-float"),
])  # fmt: skip
def test_short_names(fields: dict[str, Any], name: str) -> None:
    assert Scheme(**fields).name == name


def test_a_scheme_does_not_change() -> None:
    scheme = Scheme(bits=4)
    with pytest.raises(AttributeError):
        scheme.bits = 8  # type: ignore[misc]
    with pytest.raises(TypeError):
        Scheme(4)  # type: ignore[call-arg]
    settled = scheme.with_scale_dtype("float16")
    assert (settled.scale_dtype, scheme.scale_dtype) == ("float16", "auto")


def test_auto_goes_with_every_target_that_stores_integers() -> None:
    """The grid that auto chooses was taken for one that was asked for, once the target had set the scale dtype."""
    suited = named("gptq").suited(Scheme(bits=4, group_size=32, calibration="auto"))
    assert (suited.calibration, suited.scale_dtype) == ("auto", "float16")
    assert {c.scale_dtype for c in candidates(suited)} == {"float16"}
