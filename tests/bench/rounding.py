"""The table of roundings: models that are run with their weights quantized, with and without statistics of inputs.

    python tests/bench/rounding.py --model resnet=FOLDER --model minilm=FOLDER --torch .venv-peers/current/bin/python

Models are those of evaluated.py; the sample Llama is always among them. Statistics are collected by the script that
`quantcli help statistics` has. A figure is a mean over samples that no statistics are of: for minilm the cosine of
embeddings, for silero the distance of probabilities, for others the divergence from the float model in nats.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOPIC = HERE.parent.parent / "quantcli" / "docs" / "statistics.md"

WIDTHS = ("2", "3", "4")
METHODS = {
    "without": "",
    "vectors": "--statistics VECTORS",
    "matrices": "--statistics MATRICES",
}
"""Options of every column."""

OF_NETS = {"batch norms": "--statistics batch-norm"}
"""Those of convolutional networks besides."""

SCHEMES = {"int g64": "--group-size 64", "int g64 zero point": "--group-size 64 --asymmetric"}


def script(python: str, *words: object) -> str:
    """What evaluated.py prints."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-I", HERE / "evaluated.py", *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return done.stdout


def quantcli(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantcli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def weights_of(folder: Path) -> Path:
    """The weights of a checkpoint, where they are one file; else the folder."""
    one = folder / "model.safetensors"
    return one if one.exists() else folder


def observed(name: str, folder: Path, work: Path, python: str) -> dict[str, Path]:
    """Statistics of a model, as options name them."""
    code = re.search(r"```text\n(import torch.*?)```", TOPIC.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    (work / "observe.py").write_text(code[1], encoding="utf-8")
    found = {}
    for kind, options in {"MATRICES": [], "VECTORS": ["--vectors"]}.items():
        found[kind] = work / f"{kind.lower()}.safetensors"
        script(python, "observe", name, folder, work / "observe.py", found[kind], *options)
    return found


def figures(python: str, name: str, folder: Path, made: list[Path]) -> list[float]:
    """What becomes of a model with the weights of each file."""
    lines = script(python, "measure", name, folder, *made).splitlines()
    return [json.loads(line)["figure"] for line in lines]


def rows(name: str, folder: Path, work: Path, python: str, widths: tuple[str, ...]) -> list[list[str]]:
    """The rows of a model: its name, scheme, bits per weight, and a figure for every method; what was refused as -."""
    statistics = observed(name, folder, work, python)
    methods = METHODS | (OF_NETS if name == "resnet" else {})
    cells, found, made = dict[Path, tuple[int, str]](), list[list[str]](), list[Path]()
    for scheme, options in SCHEMES.items():
        for bits in widths:
            row = [name, f"{scheme}, {bits} bits", "", *["-"] * (len(METHODS) + len(OF_NETS))]
            for at, (method, more) in enumerate(methods.items()):
                more = re.sub("VECTORS|MATRICES", lambda m: str(statistics[m[0]]), more)
                codes, floats = work / "codes.safetensors", work / f"{len(found)}-{at}.safetensors"
                given = ["--bits", bits, *options.split(), *more.split(), "-o", codes, "--force", "--json", "-q"]
                done = quantcli("quantize", weights_of(folder), *given)
                if done.returncode:
                    print(f"{name} {bits} {method}: {done.stderr.strip()}", file=sys.stderr)
                    continue
                row[2] = f"{json.loads(done.stdout)['summary']['bits_per_weight']:.2f}"
                assert not quantcli("dequantize", codes, "--dtype", "float32", "-o", floats, "-q").returncode
                cells[floats] = (len(found), method)
                made.append(floats)
            found.append(row)
    for path, figure in zip(made, figures(python, name, folder, made), strict=True):
        number, method = cells[path]
        found[number][3 + [*METHODS, *OF_NETS].index(method)] = f"{figure:.4g}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--torch", default=".venv-peers/current/bin/python", help="the Python that has torch")
    parser.add_argument("--bits", default=",".join(WIDTHS))
    asked = parser.parse_args()
    models = dict(pair.split("=", 1) for pair in asked.model)
    models.setdefault("llama", str(HERE.parent.parent / "sample_models" / "tiny-llama"))
    print("| model | scheme | bits/w | " + " | ".join([*METHODS, *OF_NETS]) + " |")
    print("| --- " * (3 + len(METHODS) + len(OF_NETS)) + "|", flush=True)
    for name, folder in models.items():
        with tempfile.TemporaryDirectory() as work:
            for row in rows(name, Path(folder), Path(work), asked.torch, tuple(asked.bits.split(","))):
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
