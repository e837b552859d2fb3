"""What vLLM says with quantized models on a processor, beside what transformers says with the weights we decode.

SmolLM2-135M and a random Llama, both with a head that is tied to the embedding, are quantized for every target that
it loads. Its cross entropy on a text has to be that of transformers in float32; it computes in float16, so a word it
chooses has to be the one that transformers would choose, or as good as even with it.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from decoding import shortened
from models import answered, quantcli, script, talk
from talk import cross_entropy
from words import give_words
from zoo import decoded

TEXT = """A wolf and a crane once lived beside the same river. One evening the wolf ate his supper so fast that a bone
stuck in his throat, and he ran from one animal to the next and promised a rich reward to anyone who would take it out.
At last the crane put her long neck down his throat and pulled out the bone. When she asked for her reward, the wolf
only laughed. You have put your head into the mouth of a wolf, he said, and you have taken it out again in one piece.
That is reward enough."""
WORDS = 16
"""So many are generated after it."""
NATS = 0.01
"""How far the cross entropy may be from that in transformers, in nats per word."""
EVEN = 0.05
"""How far the logits of two words may be apart for float16 to turn the choice."""


@dataclass(frozen=True, slots=True)
class Run:
    """A model in a target, or with no target the float model, and the words in which vLLM refuses it."""

    model: str
    target: str = ""
    flags: str = "--bits 4 --group-size 32"
    refuses: str = ""

    @property
    def title(self) -> str:
        return f"{self.model} | {self.target} | {self.flags if self.target else ''}"


NO_KERNEL = "Failed to find a kernel that can implement the WNA16 linear layer"
LAYOUTS = ["compressed-tensors", "awq", "gptq"]
RUNS = [
    *(Run(model, target) for model in ("smollm2", "llama-tied") for target in ("", *LAYOUTS)),
    Run("llama-tied", "compressed-tensors", "--bits 4 --group-size 32 --asymmetric"),
    Run("llama-tied", "compressed-tensors", "--bits 4 --group-size -1"),
    Run("llama-tied", "compressed-tensors", "--bits 8 --group-size 32", NO_KERNEL),
    Run("llama-tied", "compressed-tensors", "--bits 3 --group-size 32", NO_KERNEL),
    Run("llama-tied", "compressed-tensors", "--bits 8 --group-size 32 --asymmetric", NO_KERNEL),
    Run("llama-tied", "compressed-tensors", "--bits 4 --group-size 32 --override *.down_proj:bits=8", NO_KERNEL),
    Run("llama-tied", "compressed-tensors", "--scheme W8A8"),
    Run("llama-tied", "compressed-tensors", "--scheme W4A8 --group-size 32"),
    Run("llama-tied", "compressed-tensors", "--scheme FP8_DYNAMIC"),
    Run("llama-tied", "modelopt", "--scheme FP8_DYNAMIC"),
    Run("llama-tied", "compressed-tensors", "--scheme NVFP4A16", "Marlin FP4 not available"),
    Run("llama-tied", "modelopt", "--scheme NVFP4A16", "Marlin FP4 not available"),
    Run("llama-tied", "compressed-tensors", "--scheme MXFP4A16", "kernel that can implement the MXFP4 linear layer"),
    Run("llama-tied", "compressed-tensors", "--scheme MXFP8A16", "kernel that can implement the MXFP8 linear layer"),
    Run("llama-tied", "compressed-tensors", "--scheme FP8_BLOCK", "64 is not divisible by weight quantization block_n"),
    Run("llama-tied", "compressed-tensors", "--scheme W4AFP8 --group-size 32", "compressed-tensors compatible scheme"),
    Run("llama-tied", "fp8-blocks", "", "CPUFp8W8A8BlockScaledMMKernel requires AMX tile support"),
    Run("llama-tied", "awq", "--bits 4 --group-size 32 --asymmetric"),
    Run("llama-tied", "gptq", "--bits 8 --group-size 32", "Marlin does not support weight_bits = uint8b128"),
    Run("llama-tied", "gptq", "--bits 4 --group-size 32 --asymmetric",
        "Unsupported quantization config: bits=4, sym=False"),
]  # fmt: skip


def prepare(run: Run, models: Path, place: Path) -> tuple[Path, Path]:
    """The folder that vLLM loads, and one of the same weights as floats."""
    original = models / run.model
    if not run.target:
        return original, original
    place.mkdir()
    quantcli("quantize", original, *shlex.split(run.flags), "--to", run.target, "-o", place / "quantized", "-q")
    return place / "quantized", decoded(place / "quantized", original, place / "decoded")


def ask(python: Path, folders: Sequence[Path], work: Path) -> list[dict[str, Any]]:
    """What vLLM says with every folder."""
    jobs = [{"model": str(folder), "text": " ".join(TEXT.split()), "words": WORDS} for folder in folders]
    (work / "vllm.json").write_text(json.dumps(jobs))
    done = script(python, "talk_vllm.py", work / "vllm.json")
    said = [json.loads(line) for line in done.stdout.splitlines()]
    died = (done.stderr.strip().splitlines() or [""])[-1]
    return [*said, *[{"refused": f"it ended with {done.returncode}: {died}"}] * (len(jobs) - len(said))]


def expected(python: Path, floats: Sequence[Path], said: Sequence[Mapping[str, Any]],
             work: Path) -> list[tuple[float, np.ndarray]]:  # fmt: skip
    """What transformers says with floats: the cross entropy of every text, and for each word that vLLM chose how far
    its logit is below that of the word that transformers would have chosen."""
    outs = [work / f"logits-{i}.npz" for i in range(len(said))]
    talk("transformers", python, [
        {"model": str(folder), "prompts": [], "words": 0, "rows": [one["row"] + one["next"]], "logits": str(out)}
        for folder, one, out in zip(floats, said, outs)], work)  # fmt: skip
    found = []
    for one, out in zip(said, outs):
        (logits,), row = np.load(out).values(), one["row"]
        chosen = logits[len(row) - 1 : -1]
        behind = chosen.max(1) - chosen[np.arange(WORDS), one["next"]]
        found.append((cross_entropy(logits[: len(row)], row), behind))
    return found


def run(pythons: Mapping[str, Path], work: Path) -> tuple[list[str], int]:
    """The table, and how many of its rows are not as they should be."""
    work.mkdir()
    models = work / "models"
    answered(script(pythons["current"], "hf_zoo.py", models, "llama-tied"))
    give_words(models / "llama-tied")
    answered(script(pythons["current"], "hf_packaged.py", "smollm2", models / "smollm2"))
    folders = [prepare(one, models, work / str(i)) for i, one in enumerate(RUNS)]
    answers = ask(pythons["vllm"], [folder for folder, _ in folders], work)
    spoke = [i for i, answer in enumerate(answers) if "refused" not in answer]
    own = expected(pythons["current"], [folders[i][1] for i in spoke], [answers[i] for i in spoke], work)
    known = dict(zip(spoke, own))
    lines = ["| model | target | options | vLLM | transformers | same words | where not |",
             "| --- | --- | --- | ---: | ---: | ---: | --- |"]  # fmt: skip
    notes, failed = list[str](), 0
    for i, (one, answer) in enumerate(zip(RUNS, answers)):
        if i not in known:
            why = shortened(answer["refused"], folders[i][0])
            notes += [] if why in notes else [why]
            wrong = not (one.refuses and re.search(one.refuses, answer["refused"]))
            lines.append(f"| {one.title} | no ({notes.index(why) + 1}) | | | |")
        else:
            nats, behind = known[i]
            wrong = not (abs(answer["nats"] - nats) <= NATS and behind.max() <= EVEN) or bool(one.refuses)
            same = f"{np.count_nonzero(behind == 0)} of {WORDS}"
            where = f"between logits less than {behind.max():.3f} apart" if behind.any() else ""
            lines.append(f"| {one.title} | {answer['nats']:.4f} | {nats:.4f} | {same} | {where} |")
        failed += wrong
        print(f"{'FAILED' if wrong else 'ok':6s} vllm, {lines[-1]}", file=sys.stderr, flush=True)
    return [*lines, "", *(f"{i}. {note}" for i, note in enumerate(notes, 1))], failed
