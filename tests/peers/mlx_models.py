"""Models of every type that mlx-lm and transformers have in common, quantized and loaded by mlx-lm.

Random models are saved by transformers as its users save them, and quantized to 8 bits. What comes out in mlx-lm has to
be near to what comes out of the float model in transformers: a key of config.json that is missing, a tensor under
another name or a matrix the wrong way round shows there.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models import answered, quantcli, script

CLOSE = 0.998
"""Cosine of what comes out, that 8 bits leave."""
FARTHER = {"ernie4_5_moe": 0.97}
"""The same of a model that mlx-lm computes otherwise: it chooses experts without the bias of their scores."""
REFUSED = {
    "bailing_hybrid": "missing 1 required positional argument: 'group_norm_size'",
    "hunyuan_v1_moe": "Model type hunyuan_v1_moe not supported",
    "kimi_linear": "missing 2 required positional arguments: 'rope_theta' and 'linear_attn_config'",
    "llama4_text": r"parameters not in model: .*\.experts\.",
    "longcat_flash": r"parameters not in model: model\.layers\.0\.mlp\.experts\.",
    "mimo_v2_flash": "missing 10 required positional arguments",
    "minicpm3, not stretched": "'NoneType' object has no attribute 'get'",
    "minimax": "missing 1 required positional argument: 'shared_intermediate_size'",
}
"""What mlx-lm does not load, and in which words it says so."""


def row(name: str, report: Mapping[str, Any], answer: Mapping[str, Any]) -> tuple[str, bool]:
    """The row of a model, and whether it is wrong."""
    expected, share = REFUSED.get(name, ""), f"{report['summary']['coverage']:.0%}"
    if "refused" in answer:
        wrong = not (expected and re.search(expected, answer["refused"]))
        return f"| {name} | {share} | no: {answer['refused'][:100].replace('|', '/')} |", wrong
    (cosine,) = answer["cosines"]
    wrong = not (cosine >= FARTHER.get(name, CLOSE) and answer["finite"]) or bool(expected)
    return f"| {name} | {share} | {1 - cosine:.0e} |", wrong


def run(pythons: Mapping[str, Path], work: Path) -> tuple[list[str], int]:
    """The table, and how many of its rows are not as they should be."""
    python, models = pythons["current"], work / "models"
    names = json.loads(answered(script(python, "hf_mlx.py", models)).splitlines()[-1])
    reports, jobs = [], list[dict[str, Any]]()
    for i, name in enumerate(names):
        options = ["--bits", "8", "--to", "mlx", "-o", work / str(i), "--json", "-q"]
        reports.append(json.loads(quantcli("quantize", models / name, *options)))
        jobs.append({"model": str(work / str(i)), "beside": [str(models / name)], "loader": "mlx", "options": {},
                     "floats": "words"})  # fmt: skip
    (work / "jobs.json").write_text(json.dumps(jobs))
    said = answered(script(python, "load_zoo.py", work / "jobs.json")).splitlines()
    lines, failed = ["| model_type | quantized | from the float model |", "| --- | ---: | --- |"], 0
    for name, report, answer in zip(names, reports, map(json.loads, said), strict=True):
        line, wrong = row(name, report, answer)
        lines.append(line)
        failed += wrong
        print(f"{'FAILED' if wrong else 'ok':6s} {line}", file=sys.stderr, flush=True)
    return lines, failed
