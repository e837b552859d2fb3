"""Train the digit classifier on for a scheme: quantization-aware training in numpy with quantcli.fake_quantize.

    python sample_models/train_qat.py [--calibration METHOD] [--output FILE]

The forward pass sees the weights on the scheme's grid, the gradients found there move the float weights (straight
through the rounding, but not where a weight is clipped). Starts from digits.safetensors and writes
digits-qat.safetensors, float weights that lose little when they are quantized with the very same scheme. Seeded, and on
one thread, because BLAS adds in another order on two; about 6 seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from digits_model import Array, accuracy
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from train_digits import SEED, descend, gradients

import quantcli

HERE = Path(__file__).resolve().parent
QUANTIZED = ("conv2.weight", "fc1.weight")
"""What `quantcli quantize --bits 2 --group-size 64` quantizes; the rest is on its keep-list."""

EPOCHS, RATE = 40, 1e-3


def on_grid(p: dict[str, Array], scheme: quantcli.Scheme) -> tuple[dict[str, Array], dict[str, Array]]:
    """The parameters with quantized weights on the grid, and their gradient masks."""
    fake = {name: quantcli.fake_quantize(p[name], scheme) for name in QUANTIZED}
    return {**p, **{name: f.values for name, f in fake.items()}}, {name: f.mask for name, f in fake.items()}


def train(p: dict[str, Array], images: Array, labels: Array, scheme: quantcli.Scheme) -> dict[str, Array]:
    """Parameters after training on with quantized weights."""

    def straight_through(p: dict[str, Array], images: Array, labels: Array) -> dict[str, Array]:
        seen, masks = on_grid(p, scheme)
        return {name: g * masks.get(name, np.float32(1)) for name, g in gradients(seen, images, labels).items()}

    rng = np.random.default_rng(SEED)
    return descend(p, images, labels, rng, straight_through, epochs=EPOCHS, rate=RATE, decay=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the digit classifier on with 2-bit weights in groups of 64.")
    parser.add_argument("--calibration", help="as for quantcli quantize; the default is the tool's")
    parser.add_argument("--output", type=Path, default=HERE / "digits-qat.safetensors")
    arguments = parser.parse_args()
    named = {"calibration": arguments.calibration} if arguments.calibration else {}
    scheme = quantcli.Scheme(bits=2, group_size=64, **named)
    data = load_digits()
    images, test_images, labels, test_labels = train_test_split(
        data.images.astype(np.uint8), data.target, test_size=540, random_state=SEED, stratify=data.target
    )
    p = load_file(HERE / "digits.safetensors")
    before, count = accuracy(on_grid(p, scheme)[0], test_images, test_labels)
    with threadpool_limits(1):
        p = train(p, images.astype(np.float32), labels, scheme)
    after, _ = accuracy(on_grid(p, scheme)[0], test_images, test_labels)
    save_file(
        {k: np.ascontiguousarray(v, np.float32) for k, v in p.items()},
        arguments.output,
        {"format": "pt"},
    )
    print(f"{scheme.name}: accuracy {before / count:.4f} before, {after / count:.4f} after training with it")


if __name__ == "__main__":
    main()
