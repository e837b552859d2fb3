"""What a notebook shows: names on Tab, signatures, records in a line or a table."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from making import save
from strategies import schemes

import quantcli
from quantcli import Scheme, UsageError, notebook
from quantcli.asking import SchemeRequest
from quantcli.deciding import FIELDS
from quantcli.models import open_model
from quantcli.planning import recipe_keys

WEIGHTS = np.linspace(-1, 1, 256, dtype=np.float32).reshape(2, 128)


def test_tab_shows_the_public_names() -> None:
    assert set(quantcli.__all__) <= set(dir(quantcli))
    assert not [name for name in dir(quantcli) if name.startswith("_") and name != "__version__"]


@pytest.mark.parametrize("function", [quantcli.quantize, quantcli.fake_quantize, Scheme])
def test_signatures_name_every_keyword_of_a_scheme(function: object) -> None:
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    assert tuple(parameters)[-len(FIELDS) :] == FIELDS
    for name in FIELDS:
        found = parameters[name]
        assert found.kind is found.KEYWORD_ONLY
        assert found.default is not None or str(found.annotation).endswith("| None"), name


def test_keywords_and_requests_have_the_same_defaults() -> None:
    open_request = SchemeRequest()
    for name, parameter in inspect.signature(Scheme).parameters.items():
        assert getattr(open_request, name) == parameter.default, name


def test_recipes_have_the_keys_that_may_be_asked_for() -> None:
    assert tuple(recipe_keys.SCHEME) == FIELDS


def test_keywords_are_the_scheme_they_come_to() -> None:
    by_keywords = quantcli.quantize(WEIGHTS, bits=3, group_size=32, symmetric=False)
    by_scheme = quantcli.quantize(WEIGHTS, Scheme(bits=3, group_size=32, symmetric=False))
    assert by_keywords.scheme == by_scheme.scheme
    np.testing.assert_array_equal(by_keywords.packed, by_scheme.packed)
    fake = quantcli.fake_quantize(WEIGHTS, bits=3, group_size=32, symmetric=False)
    np.testing.assert_array_equal(fake.values, quantcli.dequantize(by_scheme))
    assert quantcli.quantize(WEIGHTS).scheme.name == "w4g128"


def test_a_scheme_and_keywords_are_refused_together() -> None:
    with pytest.raises(UsageError, match="bits: a scheme is given already"):
        quantcli.quantize(WEIGHTS, Scheme(bits=4), bits=3)
    with pytest.raises(TypeError, match="bit"):
        quantcli.quantize(WEIGHTS, bit=3)


@given(schemes())
def test_a_scheme_leaves_nothing_open_and_shows_what_makes_it(scheme: Scheme) -> None:
    assert isinstance(scheme, Scheme)
    assert all(getattr(scheme, field.name) is not None for field in dataclasses.fields(scheme))
    assert "\n" not in repr(scheme)
    assert eval(repr(scheme), {"Scheme": Scheme}) == scheme


def test_a_quantized_tensor_is_one_line_and_a_table() -> None:
    quantized = quantcli.quantize(WEIGHTS, bits=4, group_size=64)
    assert repr(quantized) == "QuantizedTensor(shape=(2, 128), dtype='F32', scheme='w4g64', calibration='mse')"
    for shown in (quantized._repr_html_(), quantized.scheme._repr_html_()):
        assert shown.startswith("<table>") and "<td>group_size</td><td>64</td>" in shown


def test_a_model_is_one_line_and_a_table_whatever_its_names(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>\n\x1b[2J"
    path = save(tmp_path / "model.safetensors", {name: WEIGHTS, "norm": np.ones(4, np.float32)})
    with quantcli.open(str(path)) as model:
        assert repr(model).endswith("model.safetensors', 2 tensors, 0 quantized)")
        for shown in (repr(model), repr(model[name])):
            assert shown.isprintable()
        for shown in (model._repr_html_(), model[name]._repr_html_()):
            assert "<script>" not in shown and "&lt;script&gt;" in shown and "\x1b" not in shown
        assert "<td>norm</td><td>(4,)</td><td>F32</td>" in model._repr_html_()


def test_a_model_in_any_layout_is_one_line_and_a_table(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", {"w<b>": WEIGHTS})
    with open_model(str(path)) as model:
        assert repr(model).endswith("model.safetensors', safetensors, 1 stored tensors)")
        assert repr(model["w<b>"]) == "View('w<b>', shape=(2, 128), dtype='F32')"
        assert "<td>w&lt;b&gt;</td><td>(2, 128)</td><td>F32</td><td></td><td>1024</td>" in model._repr_html_()


def test_tables_of_many_rows_are_cut_and_say_so() -> None:
    shown = notebook.table(("n",), [(i,) for i in range(1000)])
    assert shown.count("<tr>") == 201 and shown.endswith("<p>200 of 1000</p>")


def test_models_are_compared_into_a_report(tmp_path: Path) -> None:
    a = save(tmp_path / "a.safetensors", {"w<b>": WEIGHTS, "norm": np.ones(4, np.float32)})
    b = save(tmp_path / "b.safetensors", {"w<b>": WEIGHTS + np.float32(0.5), "norm": np.ones(4, np.float32)})
    report = quantcli.compare(a, b)
    found = {tensor.name: tensor for tensor in report.tensors}
    assert found["norm"].exact and found["w<b>"].mse == pytest.approx(0.25)
    assert repr(report).startswith("RunReport(compare ") and "\n" not in repr(report)
    assert "w&lt;b&gt;" in report._repr_html_() and "<b>" not in report._repr_html_()
    with pytest.raises(quantcli.QuantcliError, match="no tensor has the same name"):
        quantcli.compare(a, save(tmp_path / "c.safetensors", {"other": WEIGHTS}))
