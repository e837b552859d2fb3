"""Print the accuracy of a digit classifier, or the held-out loss of a tiny Llama, float or quantized.

    python sample_models/evaluate.py FILE [FILE ...] [--json]

FILE is anything quantcli reads: .safetensors, .npz or a checkpoint folder, quantized or not.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import quantcli

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import digits_model  # noqa: E402
import llama_model  # noqa: E402


def weights(path: str, shapes: dict[str, tuple[int, ...]], model: quantcli.Model) -> dict[str, Any]:
    """The arrays a model needs. Raises DataError for a missing or misshapen one."""
    for name, shape in shapes.items():
        if name not in model or model[name].shape != shape:
            raise quantcli.DataError(f"{name} of shape {list(shape)} is not in it", place=[path])
    return {name: model[name].numpy() for name in shapes}


def evaluate(path: str) -> dict[str, Any]:
    """What a file is worth, and what its float original was."""
    with quantcli.open(path) as model:
        if "conv1.weight" in model:
            test = np.load(HERE / "digits_test.npz")
            right, count = digits_model.accuracy(
                weights(path, digits_model.SHAPES, model), test["images"], test["labels"]
            )
            known = json.loads((HERE / "digits.json").read_text())["test_accuracy"]
            return {
                "file": path,
                "model": "digits",
                "accuracy": right / count,
                "right": right,
                "images": count,
                "float": known,
            }
        if "model.embed_tokens.weight" in model:
            found = llama_model.held_out_loss(weights(path, llama_model.shapes(), model))
            known = json.loads((HERE / "tiny-llama.json").read_text())["held_out_loss"]
            return {"file": path, "model": "tiny-llama", "loss": found, "float": known}
    raise quantcli.DataError("neither the digit classifier nor the tiny Llama", place=[path])


def line(result: dict[str, Any]) -> str:
    """A result in words."""
    name = Path(result["file"]).name
    if result["model"] == "digits":
        right = f"{result['right']} of {result['images']}"
        return f"{name}: accuracy {result['accuracy']:.4f} ({right}), float {result['float']:.4f}"
    return f"{name}: held-out loss {result['loss']:.4f} nats per byte, float {result['float']:.4f}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Accuracy or held-out loss of a sample model, float or quantized.")
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    try:
        results = [evaluate(path) for path in arguments.files]
    except quantcli.QuantcliError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 1
    print(json.dumps(results, indent=1) if arguments.json else "\n".join(map(line, results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
