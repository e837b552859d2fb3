"""Train the digit classifier on scikit-learn's digits and write digits.safetensors, its accuracy and its test images.

Everything is seeded, and on one thread, because BLAS adds in another order on two; scikit-learn is needed only for the
data and the split. About ten seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from digits_model import EPSILON, SHAPES, Array, accuracy, convolve, pool, windows
from safetensors.numpy import save_file
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

HERE = Path(__file__).resolve().parent
EPOCHS, BATCH, RATE, DECAY, SEED = 60, 64, 2e-3, 1e-3, 0


def initial(rng: np.random.Generator) -> dict[str, Array]:
    """Parameters before training: He initialization, an identity norm."""
    p = {}
    for name, shape in SHAPES.items():
        if len(shape) > 1:
            p[name] = (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
        else:
            ones = name in ("norm.weight", "norm.running_var")
            p[name] = np.ones(shape, np.float32) if ones else np.zeros(shape, np.float32)
    return p


def spread_windows(columns: Array, shape: tuple[int, ...]) -> Array:
    """The transpose of `windows`: gradients of neighbourhoods back onto images."""
    n, c, h, w = shape
    parts = columns.reshape(n, h, w, c, 9).transpose(0, 3, 1, 2, 4)
    padded = np.zeros((n, c, h + 2, w + 2), columns.dtype)
    for k in range(9):
        padded[:, :, k // 3 : k // 3 + h, k % 3 : k % 3 + w] += parts[..., k]
    return padded[:, :, 1:-1, 1:-1]


def gradients(p: dict[str, Array], images: Array, labels: Array) -> dict[str, Array]:
    """Gradients of the mean cross entropy; updates the running statistics of the norm in `p`."""
    n = len(images)
    x0 = (images[:, None] / 16).astype(np.float32)
    w1 = windows(x0)
    a1 = np.maximum(convolve(w1, p["conv1.weight"], p["conv1.bias"]), 0)
    w2 = windows(a1)
    c2 = convolve(w2, p["conv2.weight"], p["conv2.bias"])
    mean, var = c2.mean(axis=(0, 2, 3)), c2.var(axis=(0, 2, 3))
    p["norm.running_mean"] += 0.1 * (mean - p["norm.running_mean"])
    p["norm.running_var"] += 0.1 * (var - p["norm.running_var"])
    ch = (slice(None), None, None)
    deviation = 1 / np.sqrt(var + EPSILON)
    normed = (c2 - mean[ch]) * deviation[ch]
    a2 = np.maximum(normed * p["norm.weight"][ch] + p["norm.bias"][ch], 0)
    pooled = pool(a2)
    flat = pooled.reshape(n, -1)
    h1 = np.maximum(flat @ p["fc1.weight"].T + p["fc1.bias"], 0)
    scores = h1 @ p["fc2.weight"].T + p["fc2.bias"]
    share = np.exp(scores - scores.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    g: dict[str, Array] = {}
    d = share
    d[np.arange(n), labels] -= 1
    d /= n
    g["fc2.weight"], g["fc2.bias"] = d.T @ h1, d.sum(axis=0)
    d = (d @ p["fc2.weight"]) * (h1 > 0)
    g["fc1.weight"], g["fc1.bias"] = d.T @ flat, d.sum(axis=0)
    d = (d @ p["fc1.weight"]).reshape(pooled.shape)
    blocks = a2.reshape(n, 32, 4, 2, 4, 2)
    d = ((blocks == pooled[:, :, :, None, :, None]) * d[:, :, :, None, :, None]).reshape(a2.shape) * (a2 > 0)
    g["norm.weight"], g["norm.bias"] = (d * normed).sum(axis=(0, 2, 3)), d.sum(axis=(0, 2, 3))
    size = n * 64
    d = d * p["norm.weight"][ch]
    d = deviation[ch] / size * (size * d - d.sum(axis=(0, 2, 3))[ch] - normed * (d * normed).sum(axis=(0, 2, 3))[ch])
    rows = d.transpose(0, 2, 3, 1).reshape(-1, 32)
    g["conv2.weight"] = (rows.T @ w2.reshape(-1, 144)).reshape(SHAPES["conv2.weight"])
    g["conv2.bias"] = rows.sum(axis=0)
    d = spread_windows((rows @ p["conv2.weight"].reshape(32, -1)).reshape(w2.shape), a1.shape) * (a1 > 0)
    rows = d.transpose(0, 2, 3, 1).reshape(-1, 16)
    g["conv1.weight"] = (rows.T @ w1.reshape(-1, 9)).reshape(SHAPES["conv1.weight"])
    g["conv1.bias"] = rows.sum(axis=0)
    return g


def shifted(images: Array, rng: np.random.Generator) -> Array:
    """The images moved by up to one pixel, so that the net sees more than 1,257 of them."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    dx, dy = rng.integers(0, 3, (2, len(images)))
    return np.stack([padded[i, dx[i] : dx[i] + 8, dy[i] : dy[i] + 8] for i in range(len(images))])


def descend(
    p: dict[str, Array],
    images: Array,
    labels: Array,
    rng: np.random.Generator,
    found: Callable[[dict[str, Array], Array, Array], dict[str, Array]],
    *,
    epochs: int,
    rate: float,
    decay: float,
) -> dict[str, Array]:
    """Parameters after training with Adam and a cosine schedule; found(p, images, labels): the gradients of a batch."""
    first = {k: np.zeros_like(v) for k, v in p.items()}
    second = {k: np.zeros_like(v) for k, v in p.items()}
    steps, step = epochs * (len(images) // BATCH), 0
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for start in range(0, len(images) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            step += 1
            now = rate * 0.5 * (1 + np.cos(np.pi * step / steps))
            for name, gradient in found(p, shifted(images[batch], rng), labels[batch]).items():
                first[name] += 0.1 * (gradient - first[name])
                second[name] += 0.001 * (gradient * gradient - second[name])
                update = first[name] / (1 - 0.9**step) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
                lost = decay if p[name].ndim > 1 else 0.0
                p[name] -= (now * (update + lost * p[name])).astype(np.float32)
    return p


def train(images: Array, labels: Array) -> dict[str, Array]:
    """Parameters after training from the start."""
    rng = np.random.default_rng(SEED)
    return descend(initial(rng), images, labels, rng, gradients, epochs=EPOCHS, rate=RATE, decay=DECAY)


def main() -> None:
    data = load_digits()
    split = train_test_split(
        data.images.astype(np.uint8), data.target, test_size=540, random_state=SEED, stratify=data.target
    )
    images, test_images, labels, test_labels = split
    with threadpool_limits(1):
        p = train(images.astype(np.float32), labels)
    right, count = accuracy(p, test_images, test_labels)
    save_file(
        {k: np.ascontiguousarray(v, np.float32) for k, v in p.items()}, HERE / "digits.safetensors", {"format": "pt"}
    )
    np.savez_compressed(HERE / "digits_test.npz", images=test_images, labels=test_labels.astype(np.uint8))
    facts = {
        "model": "digits",
        "test_accuracy": right / count,
        "right": right,
        "test_images": count,
        "training_images": len(images),
        "parameters": sum(v.size for v in p.values()),
        "epochs": EPOCHS,
        "batch": BATCH,
        "learning_rate": RATE,
        "weight_decay": DECAY,
        "seed": SEED,
    }
    (HERE / "digits.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"test accuracy {right / count:.4f} ({right} of {count})")


if __name__ == "__main__":
    main()
