"""A model is opened in one way, whatever the format of its files and the layout of its tensors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from making import ROOT, one_line, run, save, to

from quantcli import DataError
from quantcli.matching import under_one_name
from quantcli.models import open_model
from quantcli.stores import open_source

WEIGHTS = {"layers.0.up_proj.weight": np.linspace(-1, 1, 32 * 64, dtype=np.float32).reshape(32, 64),
           "layers.0.norm.weight": np.ones(64, np.float32)}  # fmt: skip


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return save(tmp_path / "model.safetensors", WEIGHTS)


def written(original: Path, kind: str) -> Path:
    """The model in files of a kind, or in the layout of a target."""
    path = original.with_name({"gguf": "a.gguf", "onnx": "a.onnx"}.get(kind, "a.safetensors"))
    if kind == "float":
        return original
    if kind == "npz":
        np.savez(original.with_name("a.npz"), allow_pickle=False, **WEIGHTS)
        return original.with_name("a.npz")
    if kind == "folder":
        folder = original.with_name("folder")
        folder.mkdir()
        shutil.copy(original, folder)
        return folder
    target = [] if kind == "native" else to(kind)
    assert run("quantize", original, "--bits", 8, "--group-size", 32, *target, "-o", path, "-q").code == 0
    return path


@pytest.mark.parametrize("kind", ["float", "npz", "folder", "native", "mlx", "gptq", "compressed-tensors", "gguf",
                                  "onnx"])  # fmt: skip
def test_any_model_is_floats_under_its_original_names(kind: str, original: Path) -> None:
    with open_model(str(written(original, kind))) as model:
        assert set(model) == set(WEIGHTS)
        for name, expected in WEIGHTS.items():
            view = model[name]
            assert view.info.shape == expected.shape
            found = view.read(0, view.info.numel).reshape(view.info.shape)
            np.testing.assert_allclose(found, expected, atol=2 / 127)
            middle = view.info.numel // 3
            np.testing.assert_array_equal(view.read(middle, middle + 7), found.ravel()[middle : middle + 7])
        quantized = set(model.quantized)
    assert quantized == (set() if kind in ("float", "npz", "folder") else {"layers.0.up_proj.weight"})


def test_what_is_not_understood_is_never_shown_as_floats(tmp_path: Path) -> None:
    """But it is opened: inspect shows it as it is stored."""
    codes: dict[str, np.ndarray] = {"a.weight": np.zeros((4, 4), np.int8), "a.weight_scales": np.ones(4, np.float32)}
    path = save(tmp_path / "odd.safetensors", codes)
    with open_model(str(path)) as model:
        assert set(model.stored) == set(codes)
        with pytest.raises(DataError, match="in a layout that quantcli does not decode"):
            model["a.weight"]
    assert "does not decode" in one_line(run("compare", path, path), 2)
    shown = run("inspect", path)
    assert shown.code == 0 and "a.weight_scales" in shown.out and "shown as it is stored" in shown.err


def test_names_of_llama_cpp_and_of_the_checkpoint_meet(tmp_path: Path) -> None:
    folder = ROOT / "sample_models" / "tiny-llama"
    assert run("quantize", folder, "--bits", 8, "--to", "gguf", "-o", tmp_path / "a.gguf", "-q").code == 0
    with open_model(str(folder)) as a, open_model(str(tmp_path / "a.gguf")) as b:
        before, after, note = under_one_name(a, b)
        assert "names of llama.cpp" in note and "blk.0.attn_q.weight" in b
        name = "model.layers.0.self_attn.q_proj.weight"
        numel = before[name].info.numel
        np.testing.assert_allclose(after[name].read(0, numel), before[name].read(0, numel), atol=0.01)
        assert under_one_name(b, b)[2] == ""


@pytest.mark.parametrize("kind", ["float", "npz", "folder", "gguf", "onnx"])
def test_a_store_says_what_it_has_beside_its_tensors(kind: str, original: Path) -> None:
    path = written(original, kind)
    source = open_source(str(path))
    try:
        assert source.kind == {"float": "safetensors", "folder": "safetensors"}.get(kind, kind)
        assert source.folder == (str(path) if kind == "folder" else None)
        assert (source.beside("model.safetensors") is not None) == (kind == "folder")
        assert list(source.shards) == (["model.safetensors"] if kind == "folder" else [""])
        assert bool(source.blocks) == bool(source.keys) == (kind == "gguf")
        assert (source.graph is not None) == (kind == "onnx")
        assert source.documents == [] and source.index == ""
    finally:
        source.close()
