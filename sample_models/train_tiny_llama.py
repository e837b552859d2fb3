"""Train the tiny Llama on sums in English and write tiny-llama/, a sharded bfloat16 checkpoint, and its held-out loss.

Plain numpy, everything seeded; about two minutes on one core. Held out are the sentences the training text lacks.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from llama_model import (
    CONFIG,
    HELD_OUT,
    Array,
    Graph,
    Node,
    codes,
    drawn,
    forward,
    held_out_loss,
    loss,
    never_drawn,
    shapes,
)

HERE = Path(__file__).resolve().parent
STEPS, BATCH, LENGTH, RATE, SEED = 2500, 24, 96, 4e-3, 0


def to_bfloat16(values: Array) -> Array:
    """Bits of the nearest bfloat16, ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def from_bfloat16(bits: Array) -> Array:
    """float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def train(tokens: Array) -> dict[str, Array]:
    """Weights after training with Adam, warm-up and a cosine schedule."""
    rng = np.random.default_rng(SEED)
    weights = {
        k: (rng.standard_normal(s) / np.sqrt(s[-1])).astype(np.float32) if len(s) > 1 else np.ones(s, np.float32)
        for k, s in shapes().items()
    }
    weights["model.embed_tokens.weight"] *= np.float32(2)
    first, second = ({k: np.zeros_like(v) for k, v in weights.items()} for _ in range(2))
    for step in range(1, STEPS + 1):
        starts = rng.integers(0, len(tokens) - LENGTH - 1, BATCH)[:, None] + np.arange(LENGTH)
        p = {k: Node(v) for k, v in weights.items()}
        graph = Graph()
        value, grad = loss(forward(graph, p, tokens[starts]).value, tokens[starts + 1])
        graph.backward(grad.astype(np.float32))
        rate = RATE * min(step / 100, 0.5 * (1 + np.cos(np.pi * step / STEPS)) + 0.01)
        for name, weight in weights.items():
            g = p[name].grad
            assert g is not None
            first[name] += np.float32(0.1) * (g - first[name])
            second[name] += np.float32(0.02) * (g * g - second[name])
            update = first[name] / (1 - 0.9**step) / (np.sqrt(second[name] / (1 - 0.98**step)) + 1e-8)
            decay = 0.05 if weight.ndim > 1 else 0.0
            weight -= (rate * (update + decay * weight)).astype(np.float32)
        if step % 250 == 0:
            print(f"step {step}: {value:.4f} nats per byte")
    return weights


def write_shard(path: Path, tensors: dict[str, Array]) -> int:
    """Write bfloat16 tensors as safetensors; bytes of the tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, bits in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [at, at + bits.nbytes]}
        at += bits.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(t.tobytes() for t in tensors.values()))
    return at


def main() -> None:
    lines = drawn(seed=1, count=60_000)
    held_out = never_drawn(lines, seed=2)
    HELD_OUT.write_text("\n".join(held_out) + "\n", encoding="ascii")
    weights = {name: to_bfloat16(w) for name, w in train(codes(lines)).items()}
    folder = HERE / "tiny-llama"
    folder.mkdir(exist_ok=True)
    second = [n for n in weights if n.startswith(("model.layers.1.", "model.norm", "lm_head"))]
    shards = {
        "model-00001-of-00002.safetensors": [n for n in weights if n not in second],
        "model-00002-of-00002.safetensors": second,
    }
    total = sum(write_shard(folder / shard, {n: weights[n] for n in names}) for shard, names in shards.items())
    index = {"metadata": {"total_size": total}, "weight_map": {n: s for s, names in shards.items() for n in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    counts = np.bincount(codes(lines), minlength=128) + 1
    unigram = float(-np.log(counts / counts.sum())[codes(held_out)].mean())
    facts = {
        "model": "tiny-llama",
        "held_out_loss": held_out_loss({k: from_bfloat16(v) for k, v in weights.items()}),
        "unigram_loss": unigram,
        "unit": "nats per byte",
        "training_sentences": len(lines),
        "held_out_sentences": len(held_out),
        "parameters": sum(v.size for v in weights.values()),
        "steps": STEPS,
        "batch": BATCH,
        "length": LENGTH,
        "learning_rate": RATE,
        "seed": SEED,
    }
    (HERE / "tiny-llama.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"held-out loss {facts['held_out_loss']:.4f} nats per byte (unigram {unigram:.4f})")


if __name__ == "__main__":
    main()
