"""ONNX models out of packages, quantized with their graph, in onnxruntime.

What comes out has to be what comes out of the float model with the weights that quantcli decodes from the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models import answered, quantcli, script

SCHEMES = ["--bits 8 --group-size 32", "--bits 4 --group-size 32", "--bits 4 --asymmetric"]
FAR = 1e-3
"""How far outputs may be from those of the decoded weights, as a share of the largest: sums in another order, and
products of 8 bits that a processor may add up in halves."""


def run(pythons: dict[str, Any], work: Path) -> tuple[list[str], int]:
    """The table, and how many of its rows are not as they should be."""
    floats = work / "floats"
    floats.mkdir(parents=True)
    answered(script(pythons["onnx"], "graphs_client.py", "models", floats))
    jobs, reports = list[dict[str, str]](), list[dict[str, Any]]()
    for path in sorted(floats.glob("*.onnx")):
        for number, scheme in enumerate(SCHEMES):
            out = work / f"{path.stem}-{number}.onnx"
            said = quantcli("quantize", path, *scheme.split(), "-o", out, "--json", "-q")
            quantcli("dequantize", out, "-o", out.with_suffix(".safetensors"), "-q")
            jobs.append({"name": path.stem, "float": str(path), "quantized": str(out),
                         "decoded": str(out.with_suffix(".safetensors"))})  # fmt: skip
            smaller = path.stat().st_size + sum(f.stat().st_size for f in floats.glob(f"{path.name}.data"))
            reports.append({**json.loads(said)["summary"], "smaller": smaller / out.stat().st_size, "scheme": scheme})
    (work / "jobs.json").write_text(json.dumps(jobs))
    lines = ["| model | scheme | quantized | weights, dB | outputs, dB | from decoded weights | smaller |",
             "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    wrong, said = 0, answered(script(pythons["onnx"], "graphs_client.py", "run", work / "jobs.json"))
    for line, report in zip(said.splitlines(), reports, strict=True):
        seen = json.loads(line)
        wrong += not seen["far"] < FAR
        lines.append(
            f"| {seen['name']} | {report['scheme']} | {100 * report['coverage']:.1f} % | {report['sqnr_db']:.2f} "
            f"| {seen['outputs']:.1f} | {seen['far']:.0e} | {report['smaller']:.2f} times |"
        )
    return lines, wrong
