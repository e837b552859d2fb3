"""Models of many architectures, quantized by the defaults and loaded as their users load them.

Random models of transformers, and two real ones that are inside Python packages, are quantized for each target. Every
loader has to find all of its keys, and what comes out is compared with what comes out of the float model, which tells
what the quantization costs, and of the weights that `quantcli dequantize` makes of the same folder, which has to be the
same: a weight that was left random, or was decoded in another way, shows there. Where the command refuses a model, and
where a loader does, it has to do so in the words given here.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decoding import shortened
from environments import pinned
from models import answered, command, quantcli, script
from words import give_words

RANDOM = ["llama-tied", "qwen3-tied", "gemma2", "gemma3", "phi3", "qwen2-moe", "qwen3-moe", "gpt-neox", "gpt2", "t5",
          "whisper", "bert", "vit", "clip", "mamba"]  # fmt: skip
PACKAGED = ["minilm", "smollm2"]
MODELS = [*RANDOM, *PACKAGED, *(f"minilm --recipe {preset}" for preset in ("llm", "embedding", "cnn", "diffusion"))]
"""What is quantized: a model, and a preset where it is not by the defaults."""

FLAGS = {"bnb-nf4": ["--type", "nf4", "--group-size", "64"]}
"""What quantize is told for a target that does not have integers in groups of 32."""
CLOSE = 0.97
"""Cosine to the float model that 4 bits in groups of 32 leave."""
COARSER = {"minilm --recipe llm": 0.95}
"""The same where groups are of 128."""
LIGHT = 0.01
"""The share of the parameters that is named where it is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """How the folders of a target are loaded.

    function and options: of load_zoo.py. title: head of its column, with versions of packages in braces. apart: how
    far from 1 the cosine to the weights that quantcli decodes may be. models: those it is asked for. refuses: the
    models it does not load, and in which words.
    """

    title: str
    environment: str = "current"
    function: str = "transformers"
    options: Mapping[str, Any] = field(default_factory=dict)
    apart: float = 1e-8
    models: Sequence[str] = tuple(MODELS)
    refuses: Mapping[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """The title with versions."""
        return re.sub("{(.*?)}", lambda found: pinned(self.environment)[found[1]], self.title)


def compressed(option: str, value: bool) -> dict[str, Any]:
    """Options of from_pretrained that give another configuration of compressed-tensors."""
    return {"config": ["CompressedTensorsConfig", {option: value}]}


DEFAULTS = [model for model in MODELS if "--recipe" not in model]
FEW = ["llama-tied", "qwen3-tied"]
GPTQMODEL = Loader(title="gptqmodel {gptqmodel}", environment="gptqmodel", function="gptqmodel", apart=1e-5, models=FEW)
OUTSIDE = {"clip": "object has no attribute 'weight'"}
"""It reads the weights of its projections outside their layers while it loads them, which newer versions do not."""
LOADERS = {
    "compressed-tensors": [
        Loader(title="transformers {transformers}"),
        # Weights are rounded to the dtype of the scales.
        Loader(title="the same, `dequantize=True`", options=compressed("dequantize", True), apart=1e-5),
        Loader(title="transformers {transformers}, compressed-tensors {compressed-tensors}", environment="older",
               refuses=OUTSIDE),
        Loader(title="the same, `run_compressed=False`", environment="older",
               options=compressed("run_compressed", False), refuses=OUTSIDE),
    ],
    # It multiplies in bfloat16 on processors that do.
    "bnb-nf4": [Loader(title="transformers {transformers}, bitsandbytes {bitsandbytes}", apart=5e-4, models=DEFAULTS)],
    "awq": [GPTQMODEL],
    "gptq": [GPTQMODEL],
}  # fmt: skip
ENVIRONMENTS = sorted({loader.environment for loaders in LOADERS.values() for loader in loaders})
REFUSED = {
    ("t5", "compressed-tensors"): "nothing to quantize.*transformers reads this weight while it loads the model",
    ("gpt2", "compressed-tensors"): "nothing to quantize.*transformers holds it in Conv1D",
    ("gpt2", "bnb-nf4"): "nothing to quantize.*transformers holds it in Conv1D",
}
"""What the command refuses to quantize for a target, and in which words."""


@dataclass(frozen=True, slots=True)
class Made:
    """A quantized folder, what it is compared with, and the shares of the parameters that are quantized, and kept by
    reason; or why there is none."""

    model: str
    target: str
    path: Path
    beside: tuple[Path, ...] = ()
    share: float = 0.0
    kept: Mapping[str, float] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """The cosine to the float model, or a word for why there is none and a note; and what is wrong with that."""

    said: str
    note: str = ""
    wrong: str = ""


# ---- models -----------------------------------------------------------------------------------------------------


def make_all(python: Path, work: Path) -> None:
    """The folders of all float models."""
    answered(script(python, "hf_zoo.py", work, *RANDOM))
    for name in FEW:
        give_words(work / name)  # gptqmodel wants words
    for name in PACKAGED:
        answered(script(python, "hf_packaged.py", name, work / name))


def shares(tensors: Sequence[Mapping[str, Any]]) -> tuple[float, dict[str, float]]:
    """The share of the parameters that is quantized, and the shares that are kept, by reason."""
    sizes = Counter[str]()
    for tensor in tensors:
        count = 1
        for size in tensor["shape"]:
            count *= size
        sizes[tensor["reason"] if tensor["disposition"] == "kept" else ""] += count
    found = {reason: size / sizes.total() for reason, size in sizes.most_common()}
    return found.pop("", 0.0), found


def decoded(path: Path, original: Path, into: Path) -> Path:
    """A folder of what `quantcli dequantize` makes of a folder, in float32, with what lies beside the original."""
    shutil.copytree(original, into, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    quantcli("dequantize", path, "--dtype", "float32", "-o", into / "model.safetensors", "-q")
    return into


def quantize(model: str, target: str, models: Path, place: Path) -> Made:
    """Quantize a model for a target, and decode that again."""
    name, _, preset = model.partition(" --recipe ")
    flags = ["--recipe", preset] if preset else FLAGS.get(target, ["--group-size", "32"])
    original, path = models / name, place / "quantized"
    done = command("quantize", original, *flags, "--to", target, "-o", path, "--json", "-q")
    if done.returncode == 1 or done.returncode == 2:
        return Made(model, target, path, why=done.stderr.strip().replace(str(original), "MODEL"))
    report = json.loads(answered(done))
    beside = (original, decoded(path, original, place / "decoded"))
    return Made(model, target, path, beside, *shares(report["tensors"]))


# ---- loaders ----------------------------------------------------------------------------------------------------


def ask(asked: Sequence[tuple[Made, Loader]], python: Path | str, place: Path) -> list[dict[str, Any]]:
    """What the loaders of one environment answer, all in one process."""
    if isinstance(python, str):
        return [{"refused": f"not installed: {python}"} for _ in asked]
    jobs = [{"model": str(made.path), "beside": [str(path) for path in made.beside], "loader": loader.function,
             "options": loader.options} for made, loader in asked]  # fmt: skip
    place.write_text(json.dumps(jobs))
    done = script(python, "load_zoo.py", place)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    died = (done.stderr.strip().splitlines() or [""])[-1]
    return [*said, *[{"refused": f"it ended with {done.returncode}: {died}"}] * (len(asked) - len(said))]


def judge(made: Made, loader: Loader, answer: Mapping[str, Any]) -> Cell:
    """The cell of a loader's answer."""
    expected = loader.refuses.get(made.model, "")
    if "refused" in answer:
        why = shortened(answer["refused"], made.path)
        return Cell("no", why, "" if expected and re.search(expected, answer["refused"]) else why)
    close, same = answer["cosines"]
    least = COARSER.get(made.model, CLOSE)
    wrong = [] if answer["finite"] else ["what comes out is not finite"]
    wrong += [] if close >= least else [f"cosine {close:.4f} to the float model"]  # also where it is NaN
    wrong += [] if 1 - same <= loader.apart else [f"cosine 1 - {1 - same:.1e} to the weights that quantcli decodes"]
    wrong += [f"it was expected to refuse with {expected!r}"] if expected else []
    return Cell(f"{close:.4f}", wrong="; ".join(wrong))


def refusal(made: Made) -> Cell:
    """The cell of a model that the command refused, or should have."""
    expected = REFUSED.get((made.model, made.target), "")
    return Cell("refused", made.why, "" if expected and re.search(expected, made.why) else made.why)


# ---- tables -----------------------------------------------------------------------------------------------------


def table(target: str, made: Sequence[Made], cells: Mapping[tuple[str, str, str], Cell],
          notes: list[str]) -> list[str]:  # fmt: skip
    """A target's rows in markdown; why something was refused is a note below the tables."""
    heads = [loader.head for loader in LOADERS[target]]
    lines = [f"| {target} | quantized | kept | {' | '.join(heads)} |", f"| --- | ---: | --- |{' ---: |' * len(heads)}"]
    for m in made:
        row = []
        for head in heads:
            cell = cells.get((m.model, target, head), Cell("-"))
            if cell.note and cell.note not in notes:
                notes.append(cell.note)
            row.append(f"{cell.said} ({notes.index(cell.note) + 1})" if cell.note else cell.said)
        kept = ", ".join(f"{reason} {share:.0%}" for reason, share in m.kept.items() if share >= LIGHT)
        lines.append(f"| {m.model} | {m.share:.0%} | {kept} | {' | '.join(row)} |")
    return lines


def run(pythons: Mapping[str, Path | str], work: Path) -> tuple[list[str], int]:
    """The tables, and how many of their cells are not as they should be."""
    models = work / "models"
    assert isinstance(pythons["current"], Path)
    make_all(pythons["current"], models)
    made = []
    for target, loaders in LOADERS.items():
        for model in [model for model in MODELS if any(model in loader.models for loader in loaders)]:
            place = work / target / model.replace(" --recipe ", "-")
            place.mkdir(parents=True)
            made.append(quantize(model, target, models, place))
    pairs = [(m, loader) for m in made for loader in LOADERS[m.target] if m.model in loader.models]
    cells: dict[tuple[str, str, str], Cell] = {}
    for m, loader in pairs:
        if m.why:
            cells[m.model, m.target, loader.head] = refusal(m)
    for environment in dict.fromkeys(loader.environment for _, loader in pairs):
        asked = [(m, loader) for m, loader in pairs if not m.why and loader.environment == environment]
        for (m, loader), answer in zip(asked, ask(asked, pythons[environment], work / f"{environment}.json")):
            cells[m.model, m.target, loader.head] = judge(m, loader, answer)
    for key, cell in cells.items():
        print(f"{'FAILED' if cell.wrong else 'ok':6s} {', '.join(key)}: {cell.wrong or cell.note or cell.said}",
              file=sys.stderr, flush=True)  # fmt: skip
    lines, notes = [], list[str]()
    for target in LOADERS:
        lines += [*table(target, [m for m in made if m.target == target], cells, notes), ""]
    return [*lines, *(f"{i}. {note}" for i, note in enumerate(notes, 1))], sum(bool(c.wrong) for c in cells.values())
