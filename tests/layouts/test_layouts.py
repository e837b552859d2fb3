"""Every layout that is written and read: what every command makes of it, any part of a weight, and damaged parts.

The layouts are those that are registered; what is known of single ones is in the tests of these.
"""

from __future__ import annotations

from pathlib import Path

import conformance
import numpy as np
import pytest
from making import load, metadata_of, one_line, raw_tensors, run, save, to
from strategies import gaussian

from quantcli import registry
from quantcli.layouts.writer import named
from quantcli.models import open_model
from quantcli.tensors.info import TensorInfo

READ = registry.names("layouts", "READS")
TARGETS = [name for name in registry.names("layouts", "WRITES") if name in READ]
IN_SAFETENSORS = [name for name in TARGETS if not named(name).extension]

WEIGHTS = {"a.weight": gaussian(64, 256), "b.weight": gaussian(256, 128, seed=1)}
MODEL = {**WEIGHTS, "kept.weight": gaussian(64, 128, seed=2), "a.bias": gaussian(64), "ids": np.arange(6)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.safetensors, and a file of each target made from it."""
    place = tmp_path_factory.mktemp("layouts")
    save(place / "model.safetensors", MODEL)
    for target in TARGETS:
        words = [*to(target), *scheme_of(target), "--exclude", "kept.weight", "--exclude", "*.bias", "-q"]
        ran = run("quantize", place / "model.safetensors", *words, "-o", file_of(place, target))
        assert ran.code == 0, ran.err
    return place


def scheme_of(target: str) -> list[str]:
    return conformance.options_of(conformance.schemes_of_target(target)[0])


def file_of(folder: Path, target: str) -> Path:
    return folder / f"{target}{named(target).extension or '.safetensors'}"


def decoded(path: Path) -> dict[str, np.ndarray]:
    with open_model(str(path)) as model:
        return {name: view.read(0, view.info.numel).reshape(view.info.shape) for name, view in model.quantized.items()}


@pytest.mark.parametrize("target", TARGETS)
def test_every_command_reads_it(target: str, folder: Path, tmp_path: Path) -> None:
    source, path = folder / "model.safetensors", file_of(folder, target)
    values = decoded(path)
    assert values.keys() == WEIGHTS.keys()
    for name, array in WEIGHTS.items():
        error = np.square(array - values[name]).sum(dtype=np.float64)
        assert error < 0.5 * np.square(array, dtype=np.float64).sum() and values[name].shape == array.shape
    found = run("report", path, "--json").json
    assert {t["name"] for t in found["tensors"] if t["disposition"] == "quantized"} == WEIGHTS.keys()
    against = run("report", path, "--against", source, "--json").json
    measured = {t["name"]: t["mse"] for t in against["tensors"] if t["disposition"] == "quantized"}
    for name, array in WEIGHTS.items():
        mse = np.square(array.astype(np.float64) - values[name]).mean()
        assert measured[name] == pytest.approx(mse, rel=1e-6)
    assert run("compare", source, path).code == 0
    assert run("verify", path).code == 0
    assert run("verify", path, "--source", source).code == 0
    back = tmp_path / "back.safetensors"
    assert run("dequantize", path, "-o", back, "--dtype", "float32", "-q").code == 0
    for name, array in values.items():
        np.testing.assert_array_equal(load(back)[name].array, array)


PUBLISHED = ("fp8-blocks", "modelopt")
"""Targets whose first scheme is one that models are published in: it is decoded without being asked for."""


@pytest.mark.parametrize("target", PUBLISHED)
def test_a_published_layout_is_taken_for_what_it_is(target: str, folder: Path, tmp_path: Path) -> None:
    ran = run("quantize", file_of(folder, target), "-o", tmp_path / "out.safetensors", "--json")
    before = {t["name"]: t["source_scheme"] for t in ran.json["tensors"] if t["source_scheme"]}
    assert ran.code == 0 and before.keys() == WEIGHTS.keys(), ran.err


@pytest.mark.parametrize("target", [target for target in TARGETS if target not in PUBLISHED])
def test_it_is_known_to_be_quantized(target: str, folder: Path, tmp_path: Path) -> None:
    path = file_of(folder, target)
    assert run("inspect", path, "--json").json["quantized"]
    for words in (["quantize", path, "-o", tmp_path / "out"], ["plan", path, "--target-bpw", "5"], ["sweep", path]):
        assert "quantized already" in one_line(run(*words), 1)
    if target in IN_SAFETENSORS:  # the tensors alone tell it
        bare = tmp_path / "bare.safetensors"
        bare.write_bytes(raw_tensors({n: (t.dtype, t.shape, t.data) for n, t in load(path).items()}))
        line = one_line(run("quantize", bare, "-o", tmp_path / "out"), 1)
        assert "quantized already" in line or "put the model's config.json beside the file" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", TARGETS)
def test_any_run_of_weights_is_decoded_the_same(target: str, folder: Path) -> None:
    path = file_of(folder, target)
    whole = decoded(path)
    with open_model(str(path)) as model:
        for name, values in whole.items():
            flat, size = values.ravel(), values.size
            for first, last in ((0, 1), (size - 1, size), (5, 300), (255, 257), (size // 3, size - 7)):
                np.testing.assert_array_equal(model[name].read(first, last), flat[first:last])


@pytest.mark.parametrize("target", IN_SAFETENSORS)
def test_a_missing_part_never_gives_other_values(target: str, folder: Path, tmp_path: Path) -> None:
    """It is an error, or not needed, or with the codes the weight is gone."""
    path, damaged = file_of(folder, target), tmp_path / "damaged.safetensors"
    tensors, metadata, whole = load(path), metadata_of(path), decoded(path)
    for part in tensors.keys() - MODEL.keys():
        left = {n: (t.dtype, t.shape, t.data) for n, t in tensors.items() if n != part}
        damaged.write_bytes(raw_tensors(left, metadata))
        ran = run("report", damaged, "--json")
        if ran.code:
            one_line(ran, 2)
            continue
        values = decoded(damaged)
        assert values.keys() <= whole.keys(), part
        for name, array in values.items():
            np.testing.assert_array_equal(array, whole[name])


@pytest.mark.parametrize("name", READ)
def test_float_models_have_nothing_of_it(name: str) -> None:
    reader = registry.get("layouts", name, "READS")
    infos = {n: TensorInfo(n, "I64" if a.dtype.kind == "i" else "F32", a.shape) for n, a in MODEL.items()}
    assert reader.summary and reader.find(infos, {}, None) == reader.find({}, {}, None) == []
