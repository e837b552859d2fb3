"""A small convolutional digit classifier: two convolutions, a batch norm, two linear layers, in plain numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SHAPES: dict[str, tuple[int, ...]] = {
    "conv1.weight": (16, 1, 3, 3),
    "conv1.bias": (16,),
    "conv2.weight": (32, 16, 3, 3),
    "conv2.bias": (32,),
    "norm.weight": (32,),
    "norm.bias": (32,),
    "norm.running_mean": (32,),
    "norm.running_var": (32,),
    "fc1.weight": (64, 512),
    "fc1.bias": (64,),
    "fc2.weight": (10, 64),
    "fc2.bias": (10,),
}
"""Name and shape of every parameter: convolutions [out, in, height, width], linear layers [out, in]."""

EPSILON = 1e-5


def windows(images: Array) -> Array:
    """The 3x3 neighbourhoods of images (N, C, H, W), zeros outside: (N, H, W, C*9)."""
    n, c, h, w = images.shape
    padded = np.zeros((n, c, h + 2, w + 2), images.dtype)
    padded[:, :, 1:-1, 1:-1] = images
    parts = [padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    stacked: Array = np.stack(parts, axis=-1).transpose(0, 2, 3, 1, 4).reshape(n, h, w, c * 9)
    return stacked


def convolve(columns: Array, weight: Array, bias: Array) -> Array:
    """Feature maps (N, out, H, W) from `windows`."""
    out: Array = (columns @ weight.reshape(weight.shape[0], -1).T + bias).transpose(0, 3, 1, 2)
    return out


def pool(maps: Array) -> Array:
    """Largest value of each 2x2 block: (N, C, H/2, W/2)."""
    n, c, h, w = maps.shape
    largest: Array = maps.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))
    return largest


def logits(p: Mapping[str, Array], images: Array) -> Array:
    """Scores (N, 10) of images (N, 8, 8) with values 0 to 16."""
    x: Array = (images[:, None] / 16).astype(np.float32)
    x = np.maximum(convolve(windows(x), p["conv1.weight"], p["conv1.bias"]), 0)
    x = convolve(windows(x), p["conv2.weight"], p["conv2.bias"])
    channel = (slice(None), None, None)
    x = (x - p["norm.running_mean"][channel]) / np.sqrt(p["norm.running_var"][channel] + EPSILON)
    x = pool(np.maximum(x * p["norm.weight"][channel] + p["norm.bias"][channel], 0))
    x = np.maximum(x.reshape(len(x), -1) @ p["fc1.weight"].T + p["fc1.bias"], 0)
    scores: Array = x @ p["fc2.weight"].T + p["fc2.bias"]
    return scores


def accuracy(p: Mapping[str, Array], images: Array, labels: Array) -> tuple[int, int]:
    """Right answers and number of images."""
    return int((logits(p, images).argmax(axis=1) == labels).sum()), len(labels)
