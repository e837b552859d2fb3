"""The script of `quantcli help statistics` in torch, onnxruntime in `quantcli observe`, and what statistics bring.

A torch model is run by tests/bench/evaluated.py with the script as the topic has it. Of a random ONNX model the inputs
that onnxruntime shows are those that torch computes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from models import answered, quantcli, script
from words import MODEL

BENCH = Path(__file__).resolve().parent.parent / "bench"
SCHEMES = ["--bits 3 --group-size 64", "--bits 4 --group-size 64"]


def run(pythons: dict[str, Any], work: Path) -> tuple[list[str], int]:
    """The table, and how many of its rows are not as they should be."""
    sys.path.insert(0, str(BENCH))
    import rounding

    python = pythons["current"]
    work.mkdir(parents=True)
    answered(script(python, "hf_packaged.py", "minilm", work / "minilm"))
    lines = ["| model | scheme | figure | without | vectors | matrices |", "| --- | --- | --- | --- | --- | --- |"]
    wrong = 0
    for name, folder, figure in (("minilm", work / "minilm", "cosine"), ("llama", MODEL, "divergence")):
        own = work / f"{name}-statistics"
        own.mkdir()
        statistics = rounding.observed(name, folder, own, str(python))
        ways = {
            "": [],
            "VECTORS": ["--statistics", statistics["VECTORS"]],
            "MATRICES": ["--statistics", statistics["MATRICES"]],
        }
        for scheme in SCHEMES:
            made = []
            for way, more in ways.items():
                codes, floats = own / f"{way}codes.safetensors", own / f"{way}floats.safetensors"
                quantcli("quantize", rounding.weights_of(folder), *scheme.split(), *more, "-o", codes, "--force", "-q")
                quantcli("dequantize", codes, "--dtype", "float32", "-o", floats, "--force", "-q")
                made.append(floats)
            figures = rounding.Figures(str(python), name, folder)
            cells = {way: figures.of(path)["figure"] for way, path in zip(ways, made)}
            figures.close()
            better = cells["MATRICES"] > cells[""] if figure == "cosine" else cells["MATRICES"] < cells[""]
            wrong += not better
            shown = " | ".join(f"{cells[way]:.4g}" for way in ("", "VECTORS", "MATRICES"))
            lines.append(f"| {name} | {scheme} | {figure} | {shown} |")
    said = answered(script(python, "observing_client.py", sys.executable, work))
    said += answered(script(python, "observing_experts.py", own / "observe.py", work / "experts"))
    wrong += said.count("differs")
    lines += [
        "",
        *said.splitlines(),
        "",
        "| experts | target | output dB without | with |",
        "| --- | --- | --- | --- |",
    ]
    for name in ("qwen3_moe", "gpt_oss"):
        for to, bits in (("mlx", 3), ("native", 3), ("gguf --container", 4)):
            model, out = work / "experts" / name, work / "experts" / f"{name}.{to.split()[0]}"
            more = ["--bits", bits, "--group-size", 32, "--statistics", f"{model}.safetensors", "--exclude", "*embed*"]
            said = quantcli("quantize", model, "--to", *to.split(), *more, "-o", out, "--force", "-q", "--json")
            found = json.loads(said)["summary"]["output"]
            wrong += not found["sqnr_db"] > found["plain_sqnr_db"] + 2
            lines.append(f"| {name} | {to}, {bits} bits | {found['plain_sqnr_db']:.2f} | {found['sqnr_db']:.2f} |")
    return lines, wrong
