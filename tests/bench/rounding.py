"""Models that are run with their weights quantized, with and without statistics of inputs, beside other programs.

    python tests/bench/rounding.py [--model resnet=FOLDER] [--model silero=FOLDER] [--only llama,minilm] [--write]

Models are those of evaluated.py: the sample Llama, MiniLM and SmolLM2 from packages of the peers' environment, and
those that are named. Statistics are collected by the script that `quantcli help statistics` has. A figure is a mean
over samples that no statistics are of: for minilm the cosine of embeddings, for silero the distance of probabilities,
for others the divergence from the float model in nats. Bits per weight are of the quantized weights, with scales.

Other programs encode the same matrices (encoders.py); llama.cpp's types with importances of ones, and with the mean
squares of the same statistics. --write puts what was measured into models.json, beside what other models have there,
and all of it into RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from bench import write
from encoders import METHODS as PEERS
from peers import python_of
from quality import encoded, floats
from safetensors.numpy import load_file, save_file

Row = dict[str, Any]
"""A method on a model: model, program, method, given (what it knew of inputs), bits and figure."""

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

SCHEMES = {"int g64": "--group-size 64", "codebook g32": "--type codebook --group-size 32"}

STORED = HERE / "models.json"

TYPES = ("IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_K")
BESIDE = {
    **{f"llama.cpp {kind}": True for kind in TYPES},
    **dict.fromkeys(("HQQ 2 bits g64", "HQQ 3 bits g64", "HQQ 4 bits g64", "bitsandbytes NF4 g64, nested"), False),
    **dict.fromkeys(("MLX affine 3 bits g64", "MLX affine 4 bits g64", "ModelOpt NVFP4"), False),
}
"""Methods of other programs, and whether importances say anything to them."""

PACKAGED = {"minilm": "minilm", "llm": "smollm2"}
"""Models that packages hold, and their names in hf_packaged.py."""

ORDER = ("minilm", "resnet", "silero", "llama", "llm")
"""Of the models in tables."""

GREATER = ("minilm",)
"""Models whose figure is better when it is greater."""


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}


def script(python: str, *words: object) -> str:
    """What evaluated.py prints."""
    command = [python, "-I", str(HERE / "evaluated.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
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


class Figures:
    """What becomes of a model with the weights of a file, one file after another; the float model is run once."""

    def __init__(self, python: str, name: str, folder: Path) -> None:
        self._command = [python, "-I", str(HERE / "evaluated.py"), "measure", name, str(folder)]
        self._process: subprocess.Popen[str] | None = None

    def of(self, path: Path) -> dict[str, float]:
        """The figures of a file."""
        if self._process is None:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True, env=environment())
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self._command)} ended with {self._process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()


Key = tuple[str, str, str]
"""Program, method and what it was given."""


def own(
    folder: Path,
    statistics: dict[str, Path],
    work: Path,
    methods: Mapping[str, str],
    given: Mapping[str, str],
    known: set[Key],
) -> Iterator[Row]:
    """Quantized by every method, its title and options, with what is given, but for those that are known: what it is,
    its bits, and the decoded file."""
    out = work / "decoded.safetensors"
    for method, options in methods.items():
        codes = work / f"codes.{'gguf' if 'gguf' in options else 'safetensors'}"
        for title, more in given.items():
            if ("quantcli", method, title) in known:
                continue
            more = re.sub("VECTORS|MATRICES", lambda m: str(statistics[m[0]]), more)
            words = [*options.split(), *more.split(), "--threads", 1, "-o", codes, "--force"]
            done = quantcli("quantize", weights_of(folder), *words, "--json", "-q")
            if done.returncode:
                print(f"{method} {title}: {done.stderr.strip()}", file=sys.stderr)
                continue
            tensors = quantized(done.stdout)
            quantcli("dequantize", codes, "--dtype", "float32", "-o", out, "--force", "-q").check_returncode()
            yield {
                "program": "quantcli", "method": method, "given": title, "floats": out,
                "bits": 8 * sum(t["bytes_out"] for t in tensors) / sum(int(np.prod(t["shape"])) for t in tensors),
            }  # fmt: skip


def quantized(report: str) -> list[Row]:
    """The quantized tensors of a report."""
    return [t for t in json.loads(report)["tensors"] if t["disposition"] == "quantized"]


def others(
    name: str, folder: Path, vectors: Path, work: Path, peers: Path, known: set[Key], beside: Mapping[str, bool]
) -> Iterator[Row]:
    """The same for methods of other programs, on the same matrices. beside: as BESIDE."""
    planned = quantcli("quantize", weights_of(folder), "--bits", 4, "--group-size", 64, "--dry-run", "--json", "-q")
    planned.check_returncode()
    tensors = floats(weights_of(folder), {t["name"] for t in quantized(planned.stdout)})
    weights, seen = {key: value.reshape(len(value), -1) for key, value in tensors.items()}, load_file(vectors)
    second = {key: seen.get(f"{key.removesuffix('.weight')}.second") for key in weights}
    importance = {key: v for key, v in second.items() if v is not None and v.shape == weights[key].shape[1:]}
    np.savez(work / "weights.npz", **weights)
    np.savez(work / "importance.npz", **importance)
    count, shapes = sum(w.size for w in weights.values()), {key: value.shape for key, value in tensors.items()}
    del tensors, weights
    for method, weighs in beside.items():
        peer, python = PEERS[method], python_of(peers, PEERS[method].environment)
        if python is None:
            print(f"{peer.environment}: not made; {method} is left out", file=sys.stderr)
            continue
        for given in ("without", "importances") if weighs else ("without",):
            short = method.removeprefix(f"{peer.program} ")
            if (peer.program, short, given) in known:
                continue
            order: dict[str, Any] = {"sources": {name: str(work / "weights.npz")}, "methods": [method]}
            order |= {"importance": str(work / "importance.npz")} if given == "importances" else {}
            (found,) = encoded(python, {**order, "decoded": str(work), "prefix": "peer-"}, work)
            path = Path(found["decoded"])
            out = path.with_suffix(".safetensors")
            save_file({key: v.reshape(shapes[key]) for key, v in np.load(path).items()}, out)
            path.unlink()
            bits = 8 * found["bytes"] / count
            yield {"program": peer.program, "method": short, "given": given, "floats": out, "bits": bits}


def measured(
    name: str, folder: Path, work: Path, peers: Path, widths: tuple[str, ...], known: set[Key]
) -> Iterator[Row]:
    """The rows of a model but for those that are known, with figures, each as soon as it is measured."""
    python = python_of(peers, "current")
    assert python is not None, f"{peers}/current is not made"
    statistics, figures = observed(name, folder, work, python), Figures(python, name, folder)
    methods = {f"{scheme}, {bits} bits": f"--bits {bits} {o}" for scheme, o in SCHEMES.items() for bits in widths}
    given = METHODS | (OF_NETS if name == "resnet" else {})
    for row in chain(
        own(folder, statistics, work, methods, given, known),
        others(name, folder, statistics["VECTORS"], work, peers, known, BESIDE),
    ):
        kept = {k: row[k] for k in ("program", "method", "given", "bits")}
        yield {"model": name, **kept, "figure": figures.of(row["floats"])["figure"]}
        row["floats"].unlink()
    figures.close()


GOALS = {
    ("minilm", 3): 0.950, ("minilm", 4): 0.986, ("resnet", 3): 0.10, ("resnet", 4): 0.028, ("silero", 4): 0.010,
}  # fmt: skip
"""What int g64 with matrices was to reach, by model and bits."""

LOWER = 0.65
"""What it was to leave of the divergence of the sample Llama: 35 % less."""

THIRD = 1 / 3
"""The part of the gain that vectors were to bring."""


# ---- tables ---------------------------------------------------------------------------------------------------------


def own_table(rows: list[Row]) -> Iterator[str]:
    titles = [*METHODS, *OF_NETS]
    yield "| model | scheme | bits/w | " + " | ".join(titles) + " |"
    yield "| --- " * (3 + len(titles)) + "|"
    cells: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row["program"] == "quantcli":
            cells.setdefault((row["model"], row["method"]), {})[row["given"]] = row
    for (model, method), found in cells.items():
        said = [f"{found[t]['figure']:.4g}" if t in found else "-" for t in titles]
        yield f"| {model} | {method} | {found['without']['bits']:.2f} | {' | '.join(said)} |"


def peer_table(rows: list[Row]) -> Iterator[str]:
    """Beside other programs: quantcli's best of no more bits, with matrices, and without any statistics."""
    yield "| model | program | method | bits/w | ones | importances | quantcli without | quantcli matrices |"
    yield "| --- " * 8 + "|"
    models: dict[str, dict[tuple[str, str], dict[str, Row]]] = {}
    for row in rows:
        if row["program"] != "quantcli":
            models.setdefault(row["model"], {}).setdefault((row["program"], row["method"]), {})[row["given"]] = row
    for model, methods in models.items():
        choose = max if model in GREATER else min
        for (program, method), found in sorted(methods.items(), key=lambda one: one[1]["without"]["bits"]):
            bits, said = found["without"]["bits"], []
            for given in ("without", "matrices"):
                at_most = [r["figure"] for r in rows if r["model"] == model and r["program"] == "quantcli"
                           and r["given"] == given and r["bits"] <= bits + 0.03]  # fmt: skip
                said.append(choose(at_most, default=None))
            theirs = [found[g]["figure"] if g in found else None for g in ("without", "importances")]
            cells = [told(f, pair, choose) for f, pair in zip([*theirs, *said], [said[0], said[1], None, None])]
            yield f"| {model} | {program} | {method} | {bits:.2f} | {' | '.join(cells)} |"


def goal_table(rows: list[Row]) -> Iterator[str]:
    """What was aimed for with statistics, and what came of it."""
    yield "| model | int g64 | matrices: goal | matrices | met | vectors bring, of that gain | a third |"
    yield "| --- " * 7 + "|"
    found = {(r["model"], r["method"], r["given"]): r["figure"] for r in rows if r["program"] == "quantcli"}
    for model in ORDER:
        for bits in (3, 4):
            method = f"int g64, {bits} bits"
            if (model, method, "matrices") not in found:
                continue
            without, vectors, matrices = (found[model, method, given] for given in METHODS)
            goal = LOWER * without if model == "llama" else GOALS.get((model, bits))
            met = None if goal is None else matrices >= goal if model in GREATER else matrices <= goal
            part = (without - vectors) / (without - matrices)
            cells = [f"{goal:.4g}" if goal is not None else "-", f"{matrices:.4g}", yes(met)]
            yield f"| {model} | {bits} bits | {' | '.join(cells)} | {100 * part:.0f} % | {yes(part >= THIRD)} |"


def yes(met: bool | None) -> str:
    return "-" if met is None else "yes" if met else "**no**"


def told(figure: float | None, beside: float | None, choose: Any) -> str:
    """A figure, bold where it is better than what stands beside it."""
    if figure is None:
        return "-"
    wins = beside is not None and choose(figure, beside) == figure != beside
    return f"**{figure:.4g}**" if wins else f"{figure:.4g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers"), help="the folder of environments")
    parser.add_argument("--only", default="", help="names of models")
    parser.add_argument("--bits", default=",".join(WIDTHS))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--again", action="store_true", help="make the tables of models.json, and measure nothing")
    parser.add_argument("--further", action="store_true", help="measure only what models.json has not")
    asked = parser.parse_args()
    models = {"llama": str(HERE.parent.parent / "sample_models" / "tiny-llama"), "minilm": "", "llm": ""}
    models |= dict(pair.split("=", 1) for pair in asked.model)
    wanted = asked.only.split(",") if asked.only else list(models)
    stored = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else []
    for name in () if asked.again else wanted:
        known = {(r["program"], r["method"], r["given"]) for r in stored if r["model"] == name and asked.further}
        rows = [r for r in stored if r["model"] == name and asked.further]
        with tempfile.TemporaryDirectory() as place:
            work, folder = Path(place), Path(models[name])
            if not models[name]:
                folder = work / "model"
                packaged = HERE.parent / "peers" / "hf_packaged.py"
                subprocess.run([str(python_of(asked.peers, "current")), packaged, PACKAGED[name], folder], check=True)
            for row in measured(name, folder, work, asked.peers, tuple(asked.bits.split(",")), known):
                print(json.dumps(row), flush=True)
                rows.append(row)
                if asked.write:
                    keep(rows, name)
        print("\n".join([*own_table(rows), "", *peer_table(rows), ""]), flush=True)
    if asked.write:
        rows = json.loads(STORED.read_text(encoding="utf-8"))
        write(list(own_table(rows)), "bench-quality, models")
        write(list(goal_table(rows)), "bench-quality, goals of statistics")
        write(list(peer_table(rows)), "bench-quality, models of other programs")


def keep(rows: list[Row], name: str) -> None:
    """Put the rows of a model into models.json in place of its last ones."""
    stored = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else []
    found = sorted([row for row in stored if row["model"] != name] + rows, key=lambda row: ORDER.index(row["model"]))
    STORED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
