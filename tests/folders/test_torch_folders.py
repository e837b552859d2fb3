"""Folders of pickles: the model where there is no safetensors file, and left out where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from making import load, one_line, run, save
from strategies import gaussian
from torch_parts import archive, pickled, storage, tensor

A = {"model.a.weight": gaussian(64, 128, seed=1), "model.norm.weight": gaussian(128, seed=2)}
B = {"model.b.weight": gaussian(32, 128, seed=3)}
CONFIG = {
    "config.json": b'{"model_type": "none"}',
    "tokenizer.json": b"[]",
    "training_args.bin": archive(pickled({"lr": 1}), {}),
}


def torch_file(tensors: dict[str, np.ndarray]) -> bytes:
    """A file of torch.save, each tensor in a storage of its own."""
    values, held = {}, {}
    for number, (name, array) in enumerate(tensors.items()):
        key, strides = str(number), tuple(n // array.itemsize for n in array.strides)
        values[name] = tensor(array.shape, strides, held=storage(key, array.size))
        held[f"data/{key}"] = array.tobytes()
    return archive(values, held)


def names(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()}


def folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def index_of(files: dict[str, dict[str, np.ndarray]]) -> bytes:
    homes = {name: file for file, tensors in files.items() for name in tensors}
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": homes}).encode()


SHARDS = {"pytorch_model-00001-of-00002.bin": A, "pytorch_model-00002-of-00002.bin": B}


@pytest.fixture
def many(tmp_path: Path) -> Path:
    files = {name: torch_file(tensors) for name, tensors in SHARDS.items()}
    return folder(tmp_path / "many", {**files, "pytorch_model.bin.index.json": index_of(SHARDS), **CONFIG})


@pytest.fixture
def same(tmp_path: Path) -> Path:
    """The same model in safetensors files, under the names they get."""
    path = folder(tmp_path / "same", CONFIG)
    shards = {"model-00001-of-00002.safetensors": A, "model-00002-of-00002.safetensors": B}
    for name, tensors in shards.items():
        save(path / name, tensors)
    (path / "model.safetensors.index.json").write_bytes(index_of(shards))
    return path


def test_a_folder_of_shards_is_what_the_same_folder_of_safetensors_is(many: Path, same: Path, tmp_path: Path) -> None:
    found = {}
    for source in (many, same):
        out = tmp_path / f"{source.name}-out"
        ran = run("quantize", source, "--bits", 4, "-o", out)
        assert ran.code == 0, ran
        assert "warning: left out, state of a training run: training_args.bin" in ran.err
        found[source] = {name: load(out / name) for name in names(out) if name.endswith(".safetensors")}
        assert names(out) - {"README.md"} == {
            "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
            "model.safetensors.index.json", "tokenizer.json",
        }  # fmt: skip
    assert found[many] == found[same]
    index = "model.safetensors.index.json"
    assert (tmp_path / "many-out" / index).read_bytes() == (tmp_path / "same-out" / index).read_bytes()


@pytest.mark.parametrize("target", ["mlx", "compressed-tensors"])
def test_other_targets(target: str, many: Path, tmp_path: Path) -> None:
    assert run("quantize", many, "--to", target, "-o", tmp_path / "out").code == 0
    assert {n for n in names(tmp_path / "out") if "model" in n} == {
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
    }  # fmt: skip


def test_an_index_is_named_itself(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("quantize", many / "pytorch_model.bin.index.json", "-o", out).code == 0
    assert (out / "model.safetensors.index.json").is_file()


def test_shards_of_another_size(many: Path, tmp_path: Path) -> None:
    assert run("quantize", many, "--max-shard-size", 2500, "-o", tmp_path / "out").code == 0
    assert "model-00001-of-00003.safetensors" in names(tmp_path / "out")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "anything.ckpt", "diffusion_pytorch_model.bin"])
def test_a_single_file(name: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "m", {name: torch_file(A), "optimizer.pt": b"?", "rng_state_0.pth": b"?", **CONFIG})
    assert run("quantize", source, "-o", tmp_path / "out").code == 0
    stem = name.rpartition(".")[0]
    assert f"{'model' if stem == 'pytorch_model' else stem}.safetensors" in names(tmp_path / "out")


def test_other_pickles_beside_the_usual_one_are_left_out(tmp_path: Path) -> None:
    files = {"pytorch_model.bin": torch_file(A), "extra.pt": torch_file(B), **CONFIG}
    ran = run("quantize", folder(tmp_path / "m", files), "-o", tmp_path / "out")
    assert ran.code == 0 and "left out, weights in another format: extra.pt" in ran.err, ran
    assert not (tmp_path / "out" / "extra.pt").exists()


def test_safetensors_win(tmp_path: Path) -> None:
    source = folder(tmp_path / "m", {"pytorch_model.bin": b"not read", **CONFIG})
    save(source / "model.safetensors", A)
    ran = run("quantize", source, "-o", tmp_path / "out")
    assert ran.code == 0 and "left out, weights in another format: pytorch_model.bin (8 B)" in ran.err, ran


def test_several_pickles_that_may_each_be_the_model(tmp_path: Path) -> None:
    source = folder(tmp_path / "m", {"a.pt": torch_file(A), "b.pt": torch_file(B)})
    line = one_line(run("quantize", source, "-o", tmp_path / "out"), 1)
    assert "several files that are not shards of one model: a.pt, b.pt; name one of them" in line


def test_variants(tmp_path: Path) -> None:
    files = {"pytorch_model.bin": torch_file(A), "pytorch_model.fp16.bin": torch_file(B), **CONFIG}
    source = folder(tmp_path / "m", files)
    assert "a.weight" in run("inspect", source, "--names").out
    assert run("quantize", source, "--variant", "fp16", "-o", tmp_path / "out").code == 0
    assert "model.b.weight" in run("inspect", tmp_path / "out", "--names").out
    assert "model.safetensors" in names(tmp_path / "out")


def test_a_shard_that_is_missing_or_no_pickle(many: Path, tmp_path: Path) -> None:
    shard = many / "pytorch_model-00002-of-00002.bin"
    for content, problem in (
        (b"version https://git-lfs.github.com/spec/v1\n", "this is a Git LFS pointer"),
        (b"version 4\n", "this is not a file of torch.save"),
    ):
        shard.write_bytes(content)
        assert problem in one_line(run("inspect", many), 1)
    shard.unlink()
    assert "no such file, though the index names it" in one_line(run("inspect", many), 1)
    (many / "pytorch_model.bin.index.json").unlink()
    assert "shard pytorch_model-00002-of-00002.bin is missing" in one_line(run("inspect", many), 1)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    source = folder(tmp_path / "m", CONFIG)
    line = one_line(run("inspect", source), 1)
    assert "no .safetensors file, no index and no PyTorch checkpoint in this folder" in line
    for names, way in (
        (["tf_model.h5"], "tf_model.h5 is a model of Keras or TensorFlow, which is not read; convert"),
        (["flax_model.msgpack", "b.gguf", "a.onnx"], "name a file: a.onnx, b.gguf"),
    ):
        for name in names:
            (source / name).write_bytes(b"")
        assert way in one_line(run("inspect", source), 1)


def test_notes_name_the_shard(tmp_path: Path) -> None:
    held = {"data/0": A["model.a.weight"].tobytes()}
    content = archive({"epoch": 3, "a.weight": tensor((64, 128), (128, 1), held=storage("0", 64 * 128))}, held)
    ran = run("inspect", folder(tmp_path / "m", {"pytorch_model.bin": content}))
    assert "quantcli: pytorch_model.bin: left out, not tensors: epoch (a number)\n" in ran.err
