"""Language models of 4 and 8 bits that are run: perplexity and divergence from the float model, beside other programs.

    python tests/bench/perplexity.py [--peers .venv-peers] [--only llama] [--further] [--write | --again]

Models are the sample Llama, and SmolLM2-135M from a package of the peers' environment with its inputs in another order,
which changes nothing of what it computes (see `scattered`). All programs quantize the same matrices, those of the
blocks; everything runs in float32 with what they decode to. Statistics and importances are of text of which the figures
are not (evaluated.py). GPTQModel calibrates itself on that text. --write puts what was measured into perplexity.json,
and the table into RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from bench import write
from peers import python_of
from quality import floats, save
from rounding import METHODS, Figures, Key, Row, environment, observed, others, own, quantcli

HERE = Path(__file__).resolve().parent
STORED = HERE / "perplexity.json"
LLAMA = HERE.parent.parent / "sample_models" / "tiny-llama"
sys.path.append(str(HERE.parent / "peers"))
from words import with_words  # noqa: E402

OURS = {
    "int g128": "--bits 4 --group-size 128",
    "int g64": "--bits 4 --group-size 64",
    "int g32": "--bits 4 --group-size 32",
    "int g64, zero points": "--bits 4 --group-size 64 --asymmetric",
    "int g32, zero points": "--bits 4 --group-size 32 --asymmetric",
    "codebook g64": "--bits 4 --type codebook --group-size 64",
    "codebook g32": "--bits 4 --type codebook --group-size 32",
    "NF4 g64": "--type nf4 --group-size 64",
    "GGUF IQ4_NL": "--scheme IQ4_NL --to gguf --container",
    "GGUF Q4_0": "--scheme Q4_0 --to gguf --container",
    "GGUF Q8_0": "--scheme Q8_0 --to gguf --container",
}
"""Methods of quantcli, and their options. No Q4_K: super-blocks have 256 columns, the models' rows 64, 192 and 576."""

BESIDE = {
    **{f"llama.cpp {kind}": True for kind in ("IQ4_XS", "IQ4_NL", "Q4_0", "Q4_K", "Q8_0")},
    **dict.fromkeys(("MLX affine 4 bits g64", "MLX affine 4 bits g32", "HQQ 4 bits g64"), False),
    **dict.fromkeys(("bitsandbytes NF4 g64", "bitsandbytes NF4 g64, nested"), False),
}
"""Methods of other programs, and whether importances say anything to them."""

GPTQ = {"4 bits g64": (4, 64, "plain"), "4 bits g64, desc_act": (4, 64, "desc_act")}
"""What GPTQModel is asked for: bits, inputs of a group and their order."""

PLAIN = {"llama": ("GGUF Q8_0",), "smollm2": ("GGUF Q8_0", "GGUF IQ4_NL")}
"""Methods of quantcli that have rows without statistics alone: there is little to win with 8 bits, and IQ4_NL with
vectors took more than three minutes of processor time for SmolLM2."""

KINDS = {"llama": "llama", "smollm2": "llm"}
"""Models, and their names in evaluated.py."""


# ---- models ---------------------------------------------------------------------------------------------------------


def scattered(folder: Path, out: Path) -> None:
    """The same function of words by other matrices: the columns of all of them in an order at random.

    SmolLM2 is in its package as codes of 4 bits for groups of 32 columns (Q4_1). Formats of the same groups would find
    these codes again. Here a group has columns of many groups of the file. Inputs of all blocks are put in one order,
    those of `down_proj` in one of each layer, those of `o_proj` within heads.
    """
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    every = floats(folder, _names(folder))
    rng = np.random.default_rng(0)
    size = config["hidden_size"] // config["num_attention_heads"]
    width, inner, head = (rng.permutation(n) for n in (config["hidden_size"], config["intermediate_size"], size))
    heads = {n: (np.arange(n)[:, None] * size + head).ravel() for n in (
        config["num_attention_heads"], config["num_key_value_heads"])}  # fmt: skip
    for name, w in every.items():
        kind = name.split(".")[-2]
        if kind in ("o_proj", "down_proj"):
            w = w[width][:, heads[config["num_attention_heads"]] if kind == "o_proj" else inner]
        else:
            w = w[..., width]
            if kind in ("gate_proj", "up_proj"):
                w = w[inner]
            elif kind == "v_proj":
                w = w[heads[config["num_key_value_heads"]]]
        every[name] = np.ascontiguousarray(w)
    save(out / "model.safetensors", every)


def _names(folder: Path) -> set[str]:
    """The tensors of a folder."""
    found = set[str]()
    for path in folder.glob("*.safetensors"):
        raw = path.read_bytes()
        found |= json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]).keys()
    return found - {"__metadata__"}


def model_of(name: str, work: Path, peers: Path) -> Path:
    """The folder of a model with its tokenizer."""
    if name == "llama":
        return with_words(work / "model")
    packaged = HERE.parent / "peers" / "hf_packaged.py"
    subprocess.run([str(python_of(peers, "current")), packaged, name, work / "packaged"], check=True)
    scattered(work / "packaged", work / "model")
    return work / "model"


# ---- rows -----------------------------------------------------------------------------------------------------------


def gptqmodel(name: str, folder: Path, work: Path, peers: Path, known: set[Key]) -> Iterator[Row]:
    """Models that GPTQModel makes, decoded from its own files."""
    python = python_of(peers, "gptqmodel")
    if python is None:
        print("gptqmodel: not made; its methods are left out", file=sys.stderr)
        return
    for number, (method, words) in enumerate(GPTQ.items()):
        if ("GPTQModel", method, "matrices") in known:
            continue
        made, out = work / f"gptq-{number}", work / f"gptq-{number}.safetensors"
        command = [python, HERE / "gptq.py", KINDS[name], folder, made, *words]
        done = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, env=environment(), check=False, cwd=work
        )
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        found = json.loads(quantcli("inspect", made, "--json", "-q").stdout)["tensors"]
        codes = [t for t in found if t["scheme"] is not None]
        quantcli("dequantize", made, "--dtype", "float32", "-o", out, "--force", "-q").check_returncode()
        bits = 8 * sum(t["bytes"] for t in codes) / sum(int(np.prod(t["shape"])) for t in codes)
        yield {"program": "GPTQModel", "method": method, "given": "matrices", "floats": out, "bits": bits}


def measured(name: str, work: Path, peers: Path, known: set[Key]) -> Iterator[Row]:
    """The rows of a model but for those that are known, each as soon as it is measured."""
    python = python_of(peers, "current")
    assert python is not None, f"{peers}/current is not made"
    folder = model_of(name, work, peers)
    statistics, figures = observed(KINDS[name], folder, work, python), Figures(python, KINDS[name], folder)
    if ("float", "", "without") not in known:
        found = figures.of(save(work / "float.safetensors", floats(folder, _names(folder))))
        yield {"model": name, "program": "float", "method": "", "given": "without", "bits": 16.0, **found}
    plain = {k: v for k, v in OURS.items() if k in PLAIN[name]}
    ours = {k: v for k, v in OURS.items() if k not in PLAIN[name]}
    for row in chain(
        own(folder, statistics, work, plain, {"without": ""}, known),
        own(folder, statistics, work, ours, METHODS, known),
        others(name, folder, statistics["VECTORS"], work, peers, known, BESIDE),
        gptqmodel(name, folder, work, peers, known),
    ):
        kept = {k: row[k] for k in ("program", "method", "given", "bits")}
        yield {"model": name, **kept, **figures.of(row["floats"])}
        row["floats"].unlink()
    figures.close()


# ---- the table ------------------------------------------------------------------------------------------------------


def table(rows: list[Row]) -> Iterator[str]:
    """Methods by their bits. A divergence of another program is bold where that of all methods of quantcli in no more
    bits, which know as much of inputs, is larger."""
    yield "| model | program | method | bits/w | without statistics | vectors, importances | matrices |"
    yield "| --- " * 7 + "|"
    methods: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        given = "vectors" if row["given"] == "importances" else row["given"]
        methods.setdefault((row["model"], row["program"], row["method"]), {})[given] = row
    for model in KINDS:
        of_model = [(key, found) for key, found in methods.items() if key[0] == model]
        for (_, program, method), found in sorted(of_model, key=lambda one: next(iter(one[1].values()))["bits"]):
            cells = [cell(found.get(given), rows, given) for given in METHODS]
            bits = next(iter(found.values()))["bits"]
            yield f"| {model} | {program} | {method or '-'} | {bits:.2f} | {' | '.join(cells)} |"


def cell(row: Row | None, rows: list[Row], given: str) -> str:
    """Perplexity, and the divergence in thousandths of a nat."""
    if row is None:
        return "-"
    ours = [r["figure"] for r in rows if (r["model"], r["program"], r["given"]) == (row["model"], "quantcli", given)
            and r["bits"] <= row["bits"] + 0.03]  # fmt: skip
    wins = row["program"] not in ("quantcli", "float") and row["figure"] < min(ours, default=np.inf)
    said = f"{1000 * row['figure']:.4g}"
    return f"{row['perplexity']:.5g} ({f'**{said}**' if wins else said})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers"), help="the folder of environments")
    parser.add_argument("--only", default=",".join(KINDS), help="names of models")
    parser.add_argument("--further", action="store_true", help="measure only what perplexity.json has not")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--again", action="store_true", help="make the table of perplexity.json, and measure nothing")
    asked = parser.parse_args()
    stored: list[Row] = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else []
    for name in () if asked.again else asked.only.split(","):
        rows = [r for r in stored if r["model"] == name] if asked.further else []
        known = {(r["program"], r["method"], r["given"]) for r in rows}
        stored = [r for r in stored if r["model"] != name]
        with tempfile.TemporaryDirectory() as place:
            for row in measured(name, Path(place), asked.peers, known):
                print(json.dumps(row), flush=True)
                rows.append(row)
                if asked.write:
                    STORED.write_text(json.dumps(stored + rows, indent=1) + "\n", encoding="utf-8")
        stored += rows
    print("\n".join(table(stored)))
    if asked.write or asked.again:
        write(list(table(stored)), "bench-quality, language models")


if __name__ == "__main__":
    main()
