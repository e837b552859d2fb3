"""Small tensors that are decoded together are what each is by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from making import BF16, header_of, load, one_line, run, save
from strategies import gaussian

import quantcli
from quantcli.layouts.native import alike

SCHEMES = (
    "--bits 4", "--bits 8 --group-size -1", "--bits 4 --asymmetric", "--type nf4 --group-size 64",
    "--bits 4 --group-size 0", "--type fp8-e4m3 --group-size 32", "--bits 3 --group-size 48",
    "--type codebook --bits 3 --group-size 64",
)  # fmt: skip


def model(folder: Path) -> Path:
    """Runs of tensors of one shape, between others, of several dtypes."""
    tensors = {}
    for i in range(40):
        shape = (8, 128) if i < 25 else (16, 192) if i < 35 else (4, 3, 32)
        tensors[f"layers.{i}.up_proj.weight"] = gaussian(*shape, seed=i).astype(BF16 if i % 11 else np.float32)
    tensors["layers.3.up_proj.weight"][2] = 0
    tensors["norm.weight"] = gaussian(64)
    return save(folder / "m.safetensors", tensors)


@pytest.mark.parametrize("flags", SCHEMES)
def test_together_or_one_by_one(flags: str, tmp_path: Path) -> None:
    """ "What is reported is what a reader of the file gets": the same floats as of each tensor that is opened alone."""
    path, threads = tmp_path / "q.safetensors", ("1", "2")
    assert run("quantize", model(tmp_path), *flags.split(), "--no-default-keep", "-q", "-o", path).code == 0
    files = [tmp_path / f"floats-{count}.safetensors" for count in threads]
    for count, file in zip(threads, files):
        assert run("dequantize", path, "-q", "-o", file, "--threads", count).code == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    found = load(files[0])
    with quantcli.open(str(path)) as stored:
        assert set(found) == set(stored)
        for name, tensor in stored.items():
            assert (found[name].dtype, tuple(found[name].shape)) == (tensor.dtype, tensor.shape)
            wanted = np.asarray(tensor.numpy()).astype(BF16 if tensor.dtype == "BF16" else np.float32)
            assert found[name].data == wanted.tobytes(), name


def test_which_are_decoded_together(tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"
    run("quantize", model(tmp_path), "--bits", "4", "--no-default-keep", "--exclude", "norm*", "-q", "-o", path)
    with quantcli.open(str(path)) as stored:
        runs = [[tensor.name for tensor in some] for some in alike.runs(stored.values())]
        assert [name for some in runs for name in some] == list(stored)
        assert max(map(len, runs)) > 10 and all(len({stored[name].shape for name in some}) == 1 for some in runs)
    assert ["norm.weight"] in runs


def test_a_scale_that_is_not_finite_is_told_by_its_tensor(tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"
    run("quantize", model(tmp_path), "--bits", "4", "--no-default-keep", "-q", "-o", path)
    raw, name = bytearray(path.read_bytes()), "layers.7.up_proj.weight"
    begin, end = header_of(path)[f"{name}_scale"]["data_offsets"]
    data = 8 + int.from_bytes(raw[:8], "little")
    raw[data + begin : data + end] = b"\xff" * (end - begin)
    path.write_bytes(raw)
    line = one_line(run("dequantize", path, "-o", tmp_path / "f.safetensors"), 1)
    assert f"{name}: a stored scale is not finite" in line
