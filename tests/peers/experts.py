"""Models with experts, stored in every arrangement there is, in the clients that load them quantized.

Random models are stored as transformers saves them, and once more with experts stacked as it holds them. What comes
out of a quantized folder in a client has to be what comes out, in the same client, of the weights that quantcli
decodes, put back by numpy into the arrangement of the original: a gate taken for an up, or a matrix that is transposed,
shows there.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from models import Weights, answered, quantcli, script, talk
from safetensors.numpy import load_file, save_file

from quantcli.models import open_model
from quantcli.naming import of_checkpoint

PLAIN = ["mixtral", "qwen2-moe", "qwen3-moe", "qwen3-next", "glm4-moe", "deepseek-v3", "qwen3-5-moe", "dbrx"]
STACKED = ["mixtral", "qwen3-moe", "glm4-moe", "deepseek-v3", "qwen3-5-moe"]
CLIENTS = {
    "transformers": ("compressed-tensors", [m for m in PLAIN if m != "dbrx"]),
    "mlx": ("mlx", [m for m in PLAIN if m != "qwen3-5-moe"]),
    "llamacpp-floats": ("gguf", ["mixtral", "qwen2-moe", "qwen3-moe"]),
}
"""The target of a client, and the models that it has in these classes."""
APART = 3e-8
"""How far from 1 the cosine may be."""
KINDS = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "v1": "up", "down_proj": "down", "w2": "down"}
_MLP = re.compile(r"\.(?:block_sparse_moe|mlp)\.")


def parts(found: Weights) -> dict[tuple[str, str, int], np.ndarray]:
    """Every expert's matrix (out, in) by layer, part and number, whatever arrangement it is in."""
    each = {}
    for name, values in found.items():
        match = re.fullmatch(r"(.*\.\d+)\.(?:\w+\.)*(?:experts|switch_mlp)\.(?:mlp\.)?(?:(\d+)\.)?(\w+)\.weight", name)
        if match and match[3] in KINDS:
            stack = values[None] if match[2] else values
            for number, matrix in enumerate(stack, int(match[2] or 0)):
                each[match[1], KINDS[match[3]], number] = matrix
    return each


def put_back(found: Weights, name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """A tensor of the original made of what was decoded."""
    if name in found and found[name].shape == shape:
        return found[name]
    layer = (re.match(r".*?\.\d+(?=\.)", name) or [""])[0]
    each, word = parts(found), name.removesuffix(".weight").rpartition(".")[2]
    numbers = range(1 + max(number for at, _, number in each if at == layer)) if "experts" in name else range(0)
    if match := re.search(r"experts\.(\d+)\.(\w+)\.weight$", name):
        return each[layer, KINDS[match[2]], int(match[1])]
    if word == "gate_up_proj":
        pairs = [(each[layer, "gate", n], each[layer, "up", n]) for n in numbers]
        if kind == "gpt_oss":
            return np.stack([np.stack([g.T, u.T], 2).reshape(g.shape[1], -1) for g, u in pairs])
        return np.stack([np.concatenate([g.T, u.T], 1) if kind == "llama4_text" else np.concatenate([g, u])
                         for g, u in pairs])  # fmt: skip
    if word == "down_proj" and "experts" in name:
        downs = [each[layer, "down", n] for n in numbers]
        return np.stack([m.T if kind in ("gpt_oss", "llama4_text") else m for m in downs])
    if kind == "dbrx" and "experts" in name:
        matrices = [each[layer, KINDS[word], n] for n in numbers]
        return np.concatenate([m.T if word == "w2" else m for m in matrices])
    other = next(key for key in found if _MLP.sub(".", key) == _MLP.sub(".", name))
    return found[other]


def restored(path: Path, original: Path, into: Path) -> Path:
    """A float32 folder of what quantcli decodes, arranged as the original. What its config.json says beside the
    quantization is what the client reads of the quantized folder, such as keys for mlx-lm."""
    kind = json.loads((original / "config.json").read_text())["model_type"]
    with open_model(str(path)) as model:
        views = of_checkpoint(model)
        found = {n: v.read(0, v.info.numel).reshape(v.info.shape).copy() for n, v in views.items()}
    wanted = load_file(original / "model.safetensors")
    weights = {name: np.ascontiguousarray(put_back(found, name, values.shape, kind)) for name, values in wanted.items()}
    shutil.copytree(original, into, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(weights, into / "model.safetensors", {"format": "pt"})
    if (path / "config.json").exists():
        said = json.loads((path / "config.json").read_text())
        plain = {key: value for key, value in said.items() if not key.startswith("quantization")}
        (into / "config.json").write_text(json.dumps(plain))
    return into


def stack(folder: Path, into: Path) -> Path:
    """The same model with the experts of each layer in two tensors, under the names that transformers has."""
    shutil.copytree(folder, into)
    weights = load_file(folder / "model.safetensors")
    each = parts(weights)
    names = {re.sub(r"\.experts\.\d+\..*", ".experts", name) for name in weights if re.search(r"\.experts\.\d", name)}
    kept = {_MLP.sub(".mlp.", n): v for n, v in weights.items() if not re.search(r"\.experts\.\d", n)}
    for name in names:
        layer = (re.match(r".*?\.\d+(?=\.)", name) or [""])[0]
        count = 1 + max(number for at, _, number in each if at == layer)
        gate, up, down = ([each[layer, part, n] for n in range(count)] for part in ("gate", "up", "down"))
        prefix = _MLP.sub(".mlp.", name)
        kept[f"{prefix}.gate_up_proj"] = np.stack([np.concatenate(pair) for pair in zip(gate, up)])
        kept[f"{prefix}.down_proj"] = np.stack(down)
    save_file(kept, into / "model.safetensors", {"format": "pt"})
    return into


def distance(client: str, pythons: Mapping[str, Path], quantized: Path, floats: Path, work: Path) -> float:
    """1 less the cosine of what comes out of two folders in a client; of llama.cpp and transformers for a GGUF."""
    if client == "llamacpp-floats":
        row = [(i * 37 + 11) % 509 for i in range(48)]
        found = []
        for which, name, path in ((client, "llamacpp", quantized), ("transformers", "current", floats)):
            out = work / f"{which}.npz"
            job = {"model": str(path), "prompts": [], "words": 0, "rows": [row], "logits": str(out)}
            talk(which, pythons[name], [job], work)
            found.append(np.load(out)["arr_0"].astype(float).ravel())
        a, b = found
        return float(1 - a @ b / np.sqrt((a @ a) * (b @ b)))
    job = {"model": str(quantized), "beside": [str(floats)], "loader": client, "options": {}, "floats": client}
    (work / "jobs.json").write_text(json.dumps([job]))
    answer = json.loads(answered(script(pythons["current"], "load_zoo.py", work / "jobs.json")).splitlines()[-1])
    if "refused" in answer:
        raise SystemExit(f"{quantized}: {answer['refused']}")
    return float(1 - answer["cosines"][0])


def run(pythons: Mapping[str, Path], work: Path) -> tuple[list[str], int]:
    """The table, and how many of its cells are not as they should be."""
    models = work / "models"
    answered(script(pythons["current"], "hf_zoo.py", models, *PLAIN))
    folders = {name: models / name for name in PLAIN}
    folders |= {f"{name}, stacked": stack(models / name, models / f"{name}-stacked") for name in STACKED}
    heads = " | ".join(f"{target}, {client}" for client, (target, _) in CLIENTS.items())
    lines, failed = [f"| model | quantized | {heads} |", "| --- | ---: |" + " ---: |" * len(CLIENTS)], 0
    for name, folder in folders.items():
        cells, share = [], 0.0
        for client, (target, known) in CLIENTS.items():
            if name.removesuffix(", stacked") not in known or (client == "mlx" and ", " in name):
                cells.append("-")
                continue
            place = work / f"{client}-{folder.name}"
            place.mkdir()
            out = place / ("model.gguf" if target == "gguf" else "quantized")
            words = ["--group-size", "32", "--to", target, "-o", out, "--json", "-q"]
            report = json.loads(quantcli("quantize", folder, "--bits", 8 if target == "gguf" else 4, *words))
            share = report["summary"]["coverage"]
            far = distance(client, pythons, out, restored(out, folder, place / "floats"), place)
            failed += far > APART
            cells.append(f"{far:.0e}")
            print(f"{'FAILED' if far > APART else 'ok':6s} experts, {name}, {client}: {far:.1e}", file=sys.stderr)
        lines.append(f"| {name} | {f'{share:.0%}' if share else '-'} | {' | '.join(cells)} |")
    return lines, failed
