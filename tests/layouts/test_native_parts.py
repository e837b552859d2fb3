"""The document of native files by itself: which version has what, what is read of it, and how little of a file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import change_header, run, save
from strategies import gaussian

import quantcli
from quantcli import DataError, Scheme, UsageError
from quantcli.layouts.native import reading
from quantcli.layouts.native.document import KEY, Result, document
from quantcli.layouts.native.held import held
from quantcli.layouts.native.parts import ENDINGS, outputs
from quantcli.layouts.native.write import check_scheme
from quantcli.metrics import Metrics
from quantcli.stores.compact import Tensors
from quantcli.tensors.decided import Decided, Kept, Quantized
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan, grouping_of
from quantcli.tensors.second_order import Output

FINE = Metrics(1.0, 100.0, 4096, 0.5, 3)


def quantized(name: str = "w", **fields: Any) -> Quantized:
    scheme, info = Scheme(**fields), TensorInfo(name, "F32", (64, 64))
    plan = grouping_of(info.shape, scheme)
    return Quantized(info=info, reason="default", scheme=scheme, grouping=plan, scale_dtype="F32", note="so it is")


@pytest.mark.parametrize(("fields", "version"), [
    ({"bits": 4}, 1), ({"bits": 4, "symmetric": False}, 1), ({"bits": 4, "rounding": "sum-preserving"}, 1),
    ({"format": "nf4", "group_size": 64}, 1), ({"format": "codebook", "bits": 3, "group_size": 32}, 1),
    ({"format": "fp8-e4m3", "granularity": "channel"}, 1),
    ({"format": "fp4", "group_size": 16, "scale_dtype": "float8_e4m3"}, 2),
    ({"format": "fp8-e4m3", "granularity": "block", "group_size": 32}, 2),
    ({"bits": 8, "granularity": "channel", "activations": "int8"}, 2),
    ({"format": "nf4", "group_size": 64, "rounding": "sum-preserving"}, 3),
    ({"bits": 4, "rounding": "second-order"}, 3),
    ({"format": "codebook", "levels": 3, "group_size": 32}, 4),
])  # fmt: skip
def test_the_first_version_that_has_a_scheme(fields: dict[str, Any], version: int) -> None:
    """by the table in `help file-format`: older readers read all that they can"""
    for tensors in ([quantized(**fields)], [quantized("a", bits=4), quantized("b", **fields)]):
        assert json.loads("".join(document(tensors, None, "none", 0)))["version"] == version
    kept = Kept(info=TensorInfo("k", "F32", (4,)), reason="norm")
    assert json.loads("".join(document([kept], None, "none", 0)))["version"] == 1


@pytest.mark.parametrize("wrong", [math.inf, math.nan])
def test_numbers_that_json_has_not_are_never_written(wrong: float) -> None:
    results = {"w": Result(Metrics(wrong, 1.0, 4096, 0.5, 0), None)}
    with pytest.raises(ValueError, match="is not JSON"):
        "".join(document([quantized(bits=4)], None, "none", 0, results))


def test_what_is_written_is_read() -> None:
    """Reasons, notes, digests and errors; in the order of the file."""
    kept = Kept(info=TensorInfo("k", "F32", (4,)), reason="norm", note="why")
    wide = quantized("a", bits=8, granularity="channel")
    tensors: list[Decided] = [quantized("z", bits=4, group_size=32), kept, wide, quantized("m", bits=4, group_size=32)]
    results = {
        "z": Result(FINE, "0" * 32, minmax_sse=2.0),
        "k": Result(None, "1" * 32),
        "a": Result(FINE, "2" * 32),
        "m": Result(FINE, "3" * 32),
    }
    text = "".join(document(tensors, None, "xxh3", 77, results))
    assert len(text) <= len("".join(document(tensors, None, "xxh3", 77)))
    infos = Tensors()
    for info in (info for tensor in tensors for info in outputs(tensor)):
        assert infos.add(info.name, (info.dtype, info.shape), 0)
    found = reading.parse(text, infos, True)
    assert [t.info.name for t in found.tensors] == ["z", "k", "a", "m"] and found.source_bytes == 77
    for tensor, read in zip(tensors, found.tensors):
        assert (read.reason, read.note, read.scheme) == (tensor.reason, tensor.note, tensor.scheme)
        assert (read.digest, read.minmax_sse) == (results[read.info.name].digest, results[read.info.name].minmax_sse)
        assert read.metrics == results[read.info.name].metrics
        assert read.bytes_out == sum(info.nbytes for info in outputs(tensor))


@settings(max_examples=60)
@given(st.data())
def test_a_document_that_is_read_in_turn_says_what_the_whole_says(data: st.DataObject) -> None:
    """Of a damaged one both say what is wrong, in the same words; one that is arranged otherwise says the same."""
    tensors: list[Decided] = [quantized(n, bits=4, group_size=32) for n in "abc"]
    tensors.append(Kept(info=TensorInfo("k", "F32", (4,)), reason="norm"))
    results = {t.info.name: Result(None if t.scheme is None else FINE, "0" * 32) for t in tensors}
    text = "".join(document(tensors, None, "xxh3", 77, results))
    infos = Tensors()
    for info in (info for tensor in tensors for info in outputs(tensor)):
        infos.add(info.name, (info.dtype, info.shape), 0)
    at, size = data.draw(st.integers(0, len(text) - 1)), data.draw(st.integers(0, 40))
    put = data.draw(
        st.sampled_from(["", " ", ",", '"', "{", "}", '"a":1,', "1e999", '"tensors":{', text[at - size : at]])
    )
    damaged = text[:at] + put + text[at + size :]

    def said(text: str) -> object:
        try:
            found = reading.parse(text, infos, True)
        except DataError as error:
            return str(error)
        return [(t.info, t.scheme, t.reason, t.metrics, t.digest) for t in found.tensors], found.schemes, found.digest

    for one in (text, damaged):
        in_turn = said(one)
        with mock.patch.object(reading, "_in_turn", side_effect=ValueError):
            assert said(one) == in_turn
    assert said(json.dumps(json.loads(text), indent=1)) == said(text)


@pytest.mark.parametrize(("key", "value", "says"), [
    ("shape", [64, -64], ": dimension is -64"), ("shape", [64, "64"], ": dimension is '64'"),
    ("sse", 2.0**1000, "not 0 or more"), ("scheme", 1, "there are only 1"), ("dtype", "F33", "unknown dtype F33"),
])  # fmt: skip
def test_fields_that_cannot_be(key: str, value: Any, says: str, tmp_path: Path) -> None:
    source, out = save(tmp_path / "m.safetensors", {"w": gaussian(64, 64)}), tmp_path / "q.safetensors"
    assert run("quantize", source, "-o", out, "-q").code == 0
    change_header(out, lambda document: document["tensors"]["w"].update({key: value}))
    with pytest.raises(DataError, match=says):
        quantcli.open(str(out))


def test_what_errors_cost_in_outputs(tmp_path: Path) -> None:
    """Second-order rounding never costs more than plain rounding, and a layer's output has no negative power."""
    source, out = save(tmp_path / "m.safetensors", {"w": gaussian(64, 64)}), tmp_path / "q.safetensors"
    assert run("quantize", source, "-o", out, "-q").code == 0
    for error, plain, fine in ((1.0, 2.0, True), (2.0, 2.0, True), (2.5, 2.0, False)):
        told = {"output_error": error, "output_plain": plain, "output_power": 9.0}
        change_header(out, lambda document, told=told: document["tensors"]["w"].update(told))  # type: ignore[misc]
        if fine:
            with quantcli.open(str(out)) as model:
                assert model["w"].stored.cost == Output(error, plain, 9.0)
            continue
        with pytest.raises(DataError, match="in the output contradicts itself"):
            quantcli.open(str(out))


def test_auto_is_the_calibration_of_no_tensor(tmp_path: Path) -> None:
    """It is a request to choose; what was chosen is stored."""
    source, out = save(tmp_path / "m.safetensors", {"w": gaussian(64, 64)}), tmp_path / "q.safetensors"
    assert run("quantize", source, "--calibration", "auto", "-o", out, "-q").code == 0
    with quantcli.open(str(out)) as model:
        assert model["w"].scheme is not None and model["w"].scheme.calibration != "auto"

    def asked(document: dict[str, Any]) -> None:
        for scheme in document["schemes"]:
            scheme.update(calibration="auto")
            scheme.pop("grid", None)

    change_header(out, asked)
    with pytest.raises(DataError, match="auto is not the scheme of a tensor"):
        quantcli.open(str(out))


def test_names_that_parts_may_have() -> None:
    """`ENDINGS` is how it is found in time that a tensor of the model has the name of a part of another one."""
    for fields in ({"bits": 4}, {"bits": 4, "symmetric": False}, {"format": "codebook", "bits": 3, "group_size": 32},
                   {"bits": 4, "symmetric": False, "zero_point": "float"},
                   {"format": "fp4", "group_size": 16, "scale_dtype": "float8_e4m3"}):  # fmt: skip
        found = outputs(quantized(**fields))
        assert found[0].name == "w_packed" and all(info.name.endswith(ENDINGS) for info in found)


def test_zero_points_far_down(tmp_path: Path) -> None:
    """They run down columns 32 rows at a time: those of any rows are found, also behind the first 1,024."""
    source, out = save(tmp_path / "m.safetensors", {"w": gaussian(2100, 32)}), tmp_path / "q.safetensors"
    assert run("quantize", source, "--asymmetric", "--group-size", 16, "-o", out, "-q").code == 0
    with quantcli.open(str(out)) as model:
        values = model["w"].numpy()
        for row, rows in ((1023, 2), (1100, 40), (2050, 50), (2099, 1)):
            np.testing.assert_array_equal(model["w"].decoded(TileSpan(row, rows, 0, 32)), values[row : row + rows])


def test_what_native_files_do_not_have() -> None:
    """Super-blocks and rotated columns are refused, with the tensor that asks for them."""
    check_scheme(Scheme(bits=4))
    q4_k = Scheme(bits=4, group_size=32, symmetric=False, zero_point="float", scale_dtype="super-blocks")
    rotated = Scheme(bits=8, granularity="channel", rotation=256)
    for scheme, words in ((q4_k, "stored in GGUF only"), (rotated, "stored in ComfyUI's layout only")):
        with pytest.raises(UsageError, match=words) as caught:
            check_scheme(scheme, "w")
        assert list(caught.value.place) == ["w"]
        with pytest.raises(UsageError, match=words) as caught:
            check_scheme(scheme)
        assert not caught.value.place


def test_digits_of_a_part_of_a_row_are_read_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three levels five are a byte: of columns 33 to 64, in one row, bytes 6 to 12."""
    source, out = save(tmp_path / "m.safetensors", {"w": gaussian(40, 161)}), tmp_path / "q.safetensors"
    assert run("quantize", source, "--levels", 3, "--group-size", 32, "-o", out, "-q").code == 0
    with quantcli.open(str(out)) as model:
        tensor, sizes = model["w"], list[int]()
        whole = tensor.digits(TileSpan(0, 40, 0, 161))
        plain = type(tensor).read_bytes

        def counted(self: Any, name: str, start: int, size: int) -> Any:
            sizes.append(size)
            return plain(self, name, start, size)

        monkeypatch.setattr(type(tensor), "read_bytes", counted)
        for span, taken, read in (
            (TileSpan(3, 1, 33, 32), (slice(3, 4), slice(6, 13)), 7),
            (TileSpan(3, 1, 0, 161), (slice(3, 4), slice(0, 33)), 33),
            (TileSpan(2, 9, 0, 161), (slice(2, 11), slice(0, 33)), 297),
            (TileSpan(5, 4, 32, 64), (slice(5, 9), slice(6, 20)), 132),
        ):  # fmt: skip
            sizes.clear()
            np.testing.assert_array_equal(tensor.digits(span), whole[taken])
            assert sizes == [read]
        monkeypatch.undo()
        values = tensor.numpy()
        np.testing.assert_array_equal(tensor.decoded(TileSpan(7, 1, 32, 64)), values[7:8, 32:96])
        shown = tensor._repr_html_()
        assert ">dtype<" in shown and "F32" in shown and "(40, 161)" in shown


@pytest.mark.parametrize(("options", "facts"), [
    (["--group-size", 32], ("int", 4, 32, 1, "")), (["--bits", 8, "--group-size", -1], ("int", 8, "channel", 1, "")),
    (["--asymmetric", "--group-size", 32], ("int", 4, 32, 1, "int")),
    (["--type", "fp8-e4m3", "--granularity", "block", "--group-size", 16], ("fp8-e4m3", 8, 16, 16, "")),
    (["--type", "fp8-e4m3", "--group-size", 0], ("fp8-e4m3", 8, "tensor", 1, "")),
    (["--bits", 4, "--group-size", 0], ("int", 4, "channel", 1, "")),
])  # fmt: skip
def test_codes_as_other_layouts_take_them(options: list[Any], facts: tuple[Any, ...], tmp_path: Path) -> None:
    """Scales for each row, also where blocks or the tensor share them, so that (u - z) scale is what is decoded."""
    arrays = {"w": gaussian(40, 96), "experts": gaussian(2, 32, 96)}
    source, out = save(tmp_path / "m.safetensors", arrays), tmp_path / "q.safetensors"
    assert run("quantize", source, *options, "-o", out, "-q", "--no-default-keep").code == 0
    with quantcli.open(str(out)) as model:
        plan = model["experts"].stored.grouping
        assert plan is not None and isinstance(held(model["experts"]), str) == (plan.cols != 96)
        found = held(model["w"])
        assert not isinstance(found, str)
        assert (found.format, found.bits, found.group, found.height, found.offsets) == facts
        first, last = 13, 37
        scale, _ = found.params(first, last)
        whole = model["w"].quantized().params.scale
        groups = whole.shape[1]
        expected = np.broadcast_to(whole, (40, groups))[first:last]
        np.testing.assert_array_equal(np.broadcast_to(scale, (last - first, groups)), expected)


def test_codes_that_other_layouts_do_not_take(tmp_path: Path) -> None:
    arrays = {"conv": gaussian(8, 4, 3, 3), "w": gaussian(40, 96)}
    source, out = save(tmp_path / "m.safetensors", arrays), tmp_path / "q.safetensors"
    for options, name in (([], "conv"), (["--type", "nf4"], "w"), (["--bits", 1], "w"),
                          (["--bits", 6, "--granularity", "channel", "--axis", 1], "w")):  # fmt: skip
        assert run("quantize", source, *options, "-o", out, "-q", "--no-default-keep", "--force").code == 0
        with quantcli.open(str(out)) as model:
            found = held(model[name])
        assert isinstance(found, str) and "are not arranged" in found


def test_the_key_of_the_document() -> None:
    assert KEY == "quantcli"
