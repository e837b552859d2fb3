"""Export the sample model to every target and decode it with the target's own tool.

    python tests/peers/run_exports.py --environment .venv-peers

Prints a line per scheme and target and exits with 1 when a tool fails or sees other weights than quantcli decodes.
GPTQ and AWQ have no line: their tools need a GPU or a build of their own; tests/golden/foreign has what they decode.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent.parent / "sample_models" / "tiny-llama"

EXACT, SINGLE, HALF = 0.0, 1e-6, 0.01
"""How far apart weights may be, as a share of the largest: not at all, by the last bits of float32 where a product and
a sum are rounded in another order, and by those of bfloat16 where the tool computes in it."""

CASES = [
    ("mlx", ["--bits", "2", "--group-size", "32"], SINGLE),
    ("mlx", ["--bits", "3", "--group-size", "64", "--asymmetric", "--scale-dtype", "float32"], SINGLE),
    ("mlx", ["--bits", "4", "--group-size", "64", "--override", "*.down_proj:bits=8"], SINGLE),
    ("mlx", ["--bits", "5", "--group-size", "-1"], SINGLE),
    ("mlx", ["--bits", "6", "--group-size", "0"], SINGLE),
    ("mlx", ["--bits", "4", "--group-size", "32", "--asymmetric", "--zero-point", "float"], SINGLE),
    ("onnx", ["--bits", "2", "--group-size", "16", "--asymmetric"], EXACT),
    ("onnx", ["--bits", "4", "--group-size", "32"], EXACT),
    ("onnx", ["--bits", "4", "--group-size", "128", "--asymmetric"], EXACT),
    ("onnx", ["--bits", "8", "--group-size", "-1", "--asymmetric"], EXACT),
    ("onnx", ["--bits", "8", "--group-size", "0"], EXACT),
    ("bnb-nf4", ["--type", "nf4", "--group-size", "64"], EXACT),
    ("bnb-nf4", ["--type", "nf4", "--group-size", "-1"], EXACT),
    ("comfyui", ["--bits", "8", "--group-size", "-1"], EXACT),
    ("comfyui", ["--bits", "8", "--group-size", "0"], EXACT),
    ("compressed-tensors", ["--bits", "4", "--group-size", "64"], HALF),
    ("compressed-tensors", ["--bits", "4", "--group-size", "32", "--asymmetric"], HALF),
]


def quantcli(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "quantcli", *map(str, words), "-q"], check=True)


def apart(python: Path, target: str, flags: list[str], folder: Path) -> float:
    """The largest error of any weight."""
    native, decoded = folder / "native", folder / "decoded.safetensors"
    out = folder / ("out.onnx" if target == "onnx" else "out")
    quantcli("quantize", MODEL, *flags, "-o", native)
    quantcli("dequantize", native, "--dtype", "float32", "-o", decoded)
    quantcli("export", native, "--to", target, "-o", out)
    reader = [str(python), str(HERE / "read_exports.py"), target, str(out), str(decoded)]
    done = subprocess.run(reader, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    seen = json.loads(done.stdout.splitlines()[-1])
    assert len(seen) >= 14, sorted(seen)  # transformers gives the others too
    return max(seen.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, default=Path(".venv-peers"))
    python = parser.parse_args().environment / "bin" / "python"
    failed = 0
    for target, flags, limit in CASES:
        with tempfile.TemporaryDirectory() as folder:
            error = apart(python, target, flags, Path(folder))
        failed += error > limit
        print(f"{'ok' if error <= limit else 'FAILED':6s} {target}, {' '.join(flags)}: apart {error:.1e}")
    print(f"{len(CASES) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
