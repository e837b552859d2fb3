"""What `quantcli audit` makes of a model that other tools quantized: beside its base, and beside one of which two
matrices are exchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models import answered, command, script
from safetensors.numpy import load_file, save_file

EXCHANGED = ("encoder.layer.1.attention.self.query.weight", "encoder.layer.4.attention.self.query.weight")


def run(pythons: dict[str, Any], work: Path) -> tuple[list[str], int]:
    """The table, and how many of its rows are not as they should be."""
    python, base, other = pythons["current"], work / "base", work / "other"
    work.mkdir(parents=True)
    answered(script(python, "hf_packaged.py", "minilm", base))
    other.mkdir()
    tensors = load_file(base / "model.safetensors")
    first, second = EXCHANGED
    tensors[first], tensors[second] = tensors[second], tensors[first]
    save_file(tensors, other / "model.safetensors")
    (other / "config.json").write_text((base / "config.json").read_text())
    said = answered(script(python, "audits_client.py", base, work / "made"))
    lines = [
        "| made by | tensors | scheme | method | verdict | two exchanged |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    wrong = 0
    for name in said.splitlines():
        found, doctored = (_audited(work / "made" / name, against) for against in (base, other))
        [method] = found["methods"] if len(found["methods"]) == 1 else [found["methods"][0]]
        named = {t["name"] for t in doctored["tensors"] if t["problems"]}
        good = found["consistent"] and named == set(EXCHANGED) and len(found["methods"]) == 1
        wrong += not good
        cells = [name.removesuffix(".gguf"), str(method["tensors"]), method["scheme"], method["method"]]
        cells += ["consistent" if found["consistent"] else "not", "both named" if named == set(EXCHANGED) else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines, wrong


def _audited(path: Path, base: Path) -> dict[str, Any]:
    done = command("audit", path, "--source", base, "--json")
    if done.returncode not in (0, 1):
        answered(done)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
