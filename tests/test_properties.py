"""Round trips through real files of random tensors and schemes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import BF16, header_of, load, run, save
from strategies import schemes, weights

import quantcli
from quantcli import Scheme
from quantcli.layouts.native import document as container


@st.composite
def models(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Tensors of some dtypes and shapes, among them what is never quantized."""
    found: dict[str, np.ndarray] = {}
    for i in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from([np.float32, np.float16, BF16, np.float64]))
        found[f"{draw(st.sampled_from('abc'))}{i}.weight"] = draw(weights(dtype=dtype))
    extras: dict[str, Any] = {
        "model.norm.weight": np.ones(7, np.float32), "ids": np.arange(5), "none": np.zeros((0, 3), BF16),
        "one": np.array(1.0), "embed.weight": np.ones((9, 40), np.float16), "flag": np.array([True]),
    }  # fmt: skip
    for name in draw(st.sets(st.sampled_from(sorted(extras)))):
        found[name] = extras[name]
    names = draw(st.permutations(sorted(found)))
    return {name: found[name] for name in names}


def flags_of(scheme: Scheme) -> list[str]:
    """The command line that asks for a scheme."""
    flags = ["--bits", str(scheme.bits), "--granularity", scheme.granularity, "--calibration", scheme.calibration,
             "--rounding", scheme.rounding]  # fmt: skip
    flags += ["--symmetric"] if scheme.symmetric else ["--asymmetric", "--zero-point", scheme.zero_point]
    flags += ["--grid", scheme.grid]
    if scheme.granularity == "group":
        flags += ["--group-size", str(scheme.group_size)]
    return flags + (["--scale-dtype", scheme.scale_dtype] if scheme.scale_dtype != "auto" else [])


@given(tensors=models(), scheme=schemes(), threads=st.sampled_from([1, 2, 5]))
def test_round_trip(
    tensors: dict[str, np.ndarray], scheme: Scheme, threads: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing is skipped or substituted silently; what is reported is what a reader of the file will get."""
    folder = tmp_path_factory.mktemp("round")
    source, out, back = (folder / f"{name}.safetensors" for name in ("source", "out", "back"))
    save(source, tensors)
    ran = run("quantize", source, "-o", out, *flags_of(scheme), "--threads", threads, "--json", "--no-default-keep")
    assert ran.code == 0, ran
    report = ran.json

    # Every tensor of the source is in the report exactly once; every stored tensor belongs to exactly one of them.
    assert sorted(t["name"] for t in report["tensors"]) == sorted(tensors)
    stored = load(out)
    owners: dict[str, str] = {}
    with quantcli.open(str(out)) as model:
        assert sorted(model) == sorted(tensors)
        for name, tensor in model.items():
            for output in tensor.stored.outputs:
                assert owners.setdefault(output.name, name) == name
                assert (output.dtype, output.shape) == (stored[output.name].dtype, stored[output.name].shape)
        assert set(owners) == set(stored)

        again = run("report", out, "--against", source, "--json").json
        assert [t | {"digest": None} for t in again["tensors"]] == [
            t | {"digest": None} for t in sorted(report["tensors"], key=lambda t: list(model).index(t["name"]))
        ]
        for found in report["tensors"]:
            array, name = tensors[found["name"]], found["name"]
            assert found["shape"] == list(array.shape)
            assert found["bytes_in"] == array.nbytes
            assert found["bytes_out"] == sum(len(stored[o].data) for o, owner in owners.items() if owner == name)
            if found["disposition"] == "kept":
                assert stored[name] == load(source)[name]
                assert found["mse"] is None
                continue
            expected = quantcli.quantize(array, scheme)
            assert (
                found["scale_dtype"]
                == {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[expected.scheme.scale_dtype]
            )
            np.testing.assert_array_equal(model[name].numpy(), expected.dequantize())
            metrics = expected.metrics(array)
            assert (found["mse"], found["sqnr_db"]) == (metrics.mse, metrics.sqnr_db)
    check_summary(report, out, tensors)

    assert run("dequantize", out, "-o", back, "--dtype", "float32", "--threads", threads).code == 0
    decoded = load(back)
    assert set(decoded) == set(tensors)
    for found in report["tensors"]:
        if found["disposition"] == "quantized":
            x = tensors[found["name"]].astype(np.float32).astype(np.float64)
            error = np.abs(x - decoded[found["name"]].array)
            assert float(error.max()) == pytest.approx(found["max_abs_error"], rel=1e-6, abs=1e-45)
        else:
            assert decoded[found["name"]] == load(source)[found["name"]]


def check_summary(report: dict[str, Any], out: Path, tensors: dict[str, np.ndarray]) -> None:
    summary = report["summary"]
    parameters = sum(t.size for t in tensors.values())
    quantized = [t for t in report["tensors"] if t["disposition"] == "quantized"]
    covered = sum(int(np.prod(t["shape"])) for t in quantized)
    assert summary["parameters"] == parameters
    assert summary["coverage"] == pytest.approx(covered / parameters)
    assert summary["bytes_out"] == out.stat().st_size
    assert summary["bits_per_weight"] == pytest.approx(8 * out.stat().st_size / parameters)
    assert summary["ratio"] == pytest.approx(summary["bytes_in"] / summary["bytes_out"])
    errors = sum(t["mse"] * int(np.prod(t["shape"])) for t in quantized)
    assert summary["mse"] == pytest.approx(errors / covered, rel=1e-9)
    assert summary["quantized"] + sum(summary["kept"].values()) == summary["tensors"] == len(tensors)


@given(scheme=schemes())
def test_documents_say_what_was_done(scheme: Scheme, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`Scheme(**values)` from the header makes the scheme that was asked for."""
    import json

    folder = tmp_path_factory.mktemp("document")
    source = save(folder / "m.safetensors", {"w": np.linspace(-1, 1, 2048, dtype=np.float32).reshape(8, 256)})
    out = folder / "out.safetensors"
    assert run("quantize", source, "-o", out, *flags_of(scheme)).code == 0
    document = json.loads(header_of(out)["__metadata__"][container.KEY])
    assert [Scheme(**values) for values in document["schemes"]] == [scheme]
    assert document["tensors"]["w"]["shape"] == [8, 256]
