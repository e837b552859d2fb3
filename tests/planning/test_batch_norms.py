"""Statistics from batch norms: those of normal values behind a ReLU, of the convolutions that names say come next."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from making import one_line, run, save

from quantcli.errors import UsageError
from quantcli.planning.batch_norms import Normal, entries
from quantcli.planning.moments import Entry
from quantcli.stores import open_source

RNG = np.random.default_rng(3)
Tensors = dict[str, np.ndarray]


def conv(name: str, *shape: int) -> Tensors:
    return {f"{name}.weight": RNG.standard_normal(shape).astype(np.float32)}


def norm(name: str, channels: int) -> Tensors:
    scale, mean = RNG.standard_normal((2, channels)).astype(np.float32)
    ones = np.ones(channels, np.float32)
    return {f"{name}.weight": scale, f"{name}.bias": mean, f"{name}.running_mean": ones, f"{name}.running_var": ones}


def found(folder: Path, *parts: Tensors) -> dict[str, Entry]:
    tensors = {name: value for part in parts for name, value in part.items()}
    with contextlib.closing(open_source(str(save(folder / "net.safetensors", tensors)))) as source:
        return entries(source)


def drawn(tensors: Tensors, name: str) -> np.ndarray:
    """Samples of what a norm puts out."""
    scale, mean = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    values: np.ndarray = mean + scale * np.random.default_rng(len(name)).standard_normal((200_000, len(scale)))
    return values


def agrees(entry: Entry, samples: np.ndarray) -> bool:
    assert entry.mean is not None and entry.matrix is None
    return np.allclose(entry.mean, samples.mean(axis=0), atol=0.02) and np.allclose(
        entry.values, (samples**2).mean(axis=0), atol=0.05
    )


def test_clipped_normal_values_have_the_moments_of_samples() -> None:
    mean, deviation = np.array([-3.0, -0.5, 0.0, 2.0, 1.0, -1.0]), np.array([1.0, 0.3, 2.0, 0.7, 0.0, 0.0])
    samples = np.maximum(mean + deviation * RNG.standard_normal((400_000, 6)), 0)
    made = Normal(mean, deviation**2).clipped()
    assert np.allclose(made.mean, samples.mean(axis=0), atol=0.01)
    assert np.allclose(made.square, (samples**2).mean(axis=0), atol=0.03)


def test_convolutions_of_a_module_and_of_a_sequence(tmp_path: Path) -> None:
    parts = [
        {**conv("a.conv1", 8, 3, 3, 3), **conv("a.conv2", 4, 8, 3, 3), **conv("a.conv3", 4, 1, 3, 3)},
        {**norm("a.bn1", 8), **norm("a.bn2", 4)},
        {
            **conv("f.0", 6, 4, 3, 3),
            **norm("f.1", 6),
            **conv("f.3", 6, 6, 1, 1),
            **norm("f.4", 6),
            **conv("f.8", 6, 6, 1, 1),
        },
    ]
    made, all_of = found(tmp_path, *parts), {k: v for p in parts for k, v in p.items()}
    assert sorted(made) == ["a.conv2.weight", "a.conv3.weight", "f.3.weight"]  # f.8 is behind something else
    assert agrees(made["a.conv2.weight"], np.maximum(drawn(all_of, "a.bn1"), 0))
    assert agrees(made["f.3.weight"], np.maximum(drawn(all_of, "f.1"), 0))
    each = np.maximum(drawn(all_of, "a.bn2"), 0)  # a kernel for each channel: the mean over all
    own = made["a.conv3.weight"]
    assert own.mean is not None and own.mean.shape == (1,)
    assert np.allclose(own.mean**2, (each.mean(axis=0) ** 2).mean(), atol=0.02)
    assert np.allclose(own.values, (each**2).mean(), atol=0.02)


def test_blocks_add_their_shortcuts(tmp_path: Path) -> None:
    """As a residual network computes it: relu(bn2 + shortcut), which is a norm, or what came in."""
    parts = [
        {**conv("conv1", 4, 3, 3, 3), **norm("bn1", 4)},
        {**conv("layer1.0.conv1", 4, 4, 3, 3), **norm("layer1.0.bn1", 4)},
        {**conv("layer1.0.conv2", 4, 4, 3, 3), **norm("layer1.0.bn2", 4)},
        {**conv("layer2.0.conv1", 6, 4, 3, 3), **norm("layer2.0.bn1", 6)},
        {**conv("layer2.0.conv2", 6, 6, 3, 3), **norm("layer2.0.bn2", 6)},
        {**conv("layer2.0.downsample.0", 6, 4, 1, 1), **norm("layer2.0.downsample.1", 6)},
        {**conv("layer2.1.conv1", 6, 6, 3, 3), **norm("layer2.1.bn1", 6)},
    ]
    made, all_of = found(tmp_path, *parts), {k: v for p in parts for k, v in p.items()}
    first = np.maximum(drawn(all_of, "bn1"), 0)
    second = np.maximum(drawn(all_of, "layer1.0.bn2") + first, 0)
    third = np.maximum(drawn(all_of, "layer2.0.bn2") + drawn(all_of, "layer2.0.downsample.1"), 0)
    assert agrees(made["layer1.0.conv1.weight"], first)
    for name, samples in (("layer2.0.conv1", second), ("layer2.0.downsample.0", second), ("layer2.1.conv1", third)):
        entry = made[f"{name}.weight"]
        assert entry.mean is not None
        assert np.allclose(entry.mean, samples.mean(axis=0), atol=0.15)  # a sum with a clipped value is not normal
        assert np.allclose(entry.values, (samples**2).mean(axis=0), rtol=0.15, atol=0.05)
    assert "conv1.weight" not in made and len(made) == 6


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no batch norms"):
        found(tmp_path, conv("conv1", 4, 3, 3, 3), {"norm1.weight": np.ones(4, np.float32)})
    with pytest.raises(UsageError, match="stand before convolutions"):
        found(
            tmp_path,
            {**norm("b.bn1", 3), **conv("b.conv1", 8, 3, 3, 3), **norm("b.bn2", 8), **conv("b.conv2", 8, 8, 3, 3)},
        )
    with pytest.raises(UsageError, match="no convolution follows a batch norm by its name"):
        found(tmp_path, norm("x", 4), conv("y", 4, 4, 3, 3))


def test_quantize_says_what_it_assumed(tmp_path: Path) -> None:
    found(tmp_path, conv("conv1", 8, 3, 3, 3), norm("bn1", 8), conv("conv2", 64, 8, 3, 3))
    known = ["--statistics", "batch-norm", "-o", tmp_path / "q.safetensors", "--force"]
    ran = run("quantize", tmp_path / "net.safetensors", "--bits", "4", "--group-size", "72", *known)
    assert "batch-norm: inputs of 1 convolution by the batch norm before it" in ran.err, ran.err
    save(tmp_path / "plain.safetensors", conv("conv1", 8, 3, 3, 3))
    assert "the model has no batch norms" in one_line(run("quantize", tmp_path / "plain.safetensors", *known), 2)
