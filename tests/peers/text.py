"""End to end on text: one quantized model, generating in transformers, mlx-lm and llama.cpp.

tiny-llama is quantized once and exported three times, so that all clients have the same weights: codes and scales are
the native ones. In float32 they have to say, letter by letter, what transformers says with the weights that quantcli
decodes. llama.cpp rounds what goes into a matrix of blocks to 8 bits, so it is run twice: as it is, when it may say
something else only where the two letters are as good as even, and on the floats it makes of the blocks.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from models import decoded, quantcli, talk
from words import SAMPLES, with_words

LETTERS = 48
"""So many are generated, and have to be the same; with the prompt fewer than the 96 that the model was trained on."""
PROMPTS = 40
ROWS, ROW = 60, 96
"""Rows of the held-out text whose letters are predicted."""
FLAGS = ["--bits", "4", "--group-size", "64", "--scale-dtype", "float16"]

EVEN = 0.1
"""How far the logits of two letters may be apart for rounding to turn the choice."""
NATS = 0.001
"""How far the cross entropy in a client may be from that in transformers, in nats per letter."""
LOSS = 0.01
"""How much of it 4 bits may cost."""

ONES = "one|two|three|four|five|six|seven|eight|nine"
TEENS = "zero|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen"
NUMBER = f"(?:(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)(?: (?:{ONES}))?|{ONES}|{TEENS})"
SENTENCE = re.compile(rf"{NUMBER} (?:plus|minus) {NUMBER} is (?:one hundred(?: {NUMBER})?|{NUMBER})\.")


@dataclass(frozen=True, slots=True)
class Said:
    """What a client said after every prompt, and its cross entropy on the held-out text in nats per letter."""

    texts: list[str]
    nats: float


def asked(held_out: str) -> dict[str, Any]:
    """Sums without their results, and rows of text."""
    prompts = [f"\n{line.split(' is ')[0]} is" for line in held_out.splitlines()[:PROMPTS]]
    rows = np.frombuffer(held_out.encode()[: ROWS * ROW], np.uint8).reshape(ROWS, ROW)
    return {"prompts": prompts, "words": LETTERS, "rows": rows.tolist(), "logits": None}


def say(client: str, python: Path, model: Path, questions: dict[str, Any], work: Path) -> Said:
    """What a client says. mlx-lm leaves out the space that text begins with, so all others do, too."""
    (found,) = talk(client, python, [{"model": str(model), **questions}], work)
    return Said([text.removeprefix(" ") for text in found["texts"]], found["nats"])


def well_formed(prompts: list[str], texts: list[str]) -> tuple[int, int]:
    """How many of the sentences that were brought to an end are sums in English, and how many there are."""
    lines = [line for p, text in zip(prompts, texts) for line in f"{p} {text}".split("\n")[1:-1]]
    return sum(bool(SENTENCE.fullmatch(line)) for line in lines), len(lines)


def parted(said: Said, reference: Said) -> list[tuple[int, int]]:
    """Where texts are no longer the same: the number of the text, and of the letter."""
    found: list[tuple[int, int]] = []
    for i, (a, b) in enumerate(zip(said.texts, reference.texts)):
        places = [at for at, (x, y) in enumerate(zip(a, b)) if x != y]
        found += [(i, places[0])] if places else []
    return found


def odds(places: list[tuple[int, int]], prompts: list[str], said: Said, reference: Said, python: Path, model: Path,
         work: Path) -> float:  # fmt: skip
    """The largest difference of the logits of two letters, where one client says one and transformers the other."""
    if not places:
        return 0.0
    rows = [list(f"{prompts[i]} {reference.texts[i][:at]}".encode()) for i, at in places]
    asked = {"model": str(model), "prompts": [], "words": 0, "rows": rows, "logits": str(work / "l.npz")}
    talk("transformers", python, [asked], work)
    logits = np.load(work / "l.npz")
    pairs = [(ord(reference.texts[i][at]), ord(said.texts[i][at])) for i, at in places]
    ends = [logits[f"arr_{number}"][-1] for number in range(len(pairs))]
    return max((float(end[a] - end[b]) for end, (a, b) in zip(ends, pairs)), default=0.0)


def run(pythons: Mapping[str, Path], work: Path) -> tuple[list[str], int]:
    """The table, and how many of its rows are not as they should be."""
    work.mkdir()
    model, native = with_words(work / "tiny-llama"), work / "native"
    quantcli("quantize", model, *FLAGS, "-o", native, "-q")
    files = {"compressed-tensors": work / "ct", "mlx": work / "mlx", "gguf": work / "model.gguf"}
    for target, path in files.items():
        quantcli("export", native, "--to", target, "-o", path, "-q")
    floats = decoded(native, model, work / "floats")
    questions = asked((SAMPLES / "tiny-llama-held-out.txt").read_text())

    def row(what: str, client: str, path: Path, reference: Said | None, base: float) -> Said:
        nonlocal failed
        said = say(client, pythons["llamacpp" if "llamacpp" in client else "current"], path, questions, work)
        right, whole = well_formed(questions["prompts"], said.texts)
        wrong = not (right >= 0.95 * whole > 0 and abs(said.nats - base) <= (NATS if reference else LOSS))
        same, where = "-", ""
        if reference is not None:
            places = parted(said, reference)
            even = odds(places, questions["prompts"], said, reference, pythons["current"], floats, work)
            wrong |= not even <= EVEN or (bool(places) and client != "llamacpp")
            same = f"{PROMPTS - len(places)} of {PROMPTS}"
            first = min((at for _, at in places), default=LETTERS)
            where = f"after {first} letters or more, between logits less than {even:.3f} apart" if places else ""
        failed += wrong
        lines.append(f"| {what} | {said.nats:.4f} | {right} of {whole} | {same} | {where} |")
        print(f"{'FAILED' if wrong else 'ok':6s} text, {lines[-1]}", file=sys.stderr, flush=True)
        return said

    failed = 0
    lines = [f"| 4 bits, groups of 64, {LETTERS} letters | nats per letter | well formed | same text | where not |",
             "| --- | ---: | ---: | ---: | --- |"]  # fmt: skip
    known = json.loads((SAMPLES / "tiny-llama.json").read_text())["held_out_loss"]
    original = row("the original, transformers", "transformers", model, None, known)
    own = row("the weights quantcli decodes, transformers", "transformers", floats, None, original.nats)
    row("compressed-tensors, transformers", "transformers", files["compressed-tensors"], own, own.nats)
    row("mlx, mlx-lm", "mlx-lm", files["mlx"], own, own.nats)
    row("gguf, llama.cpp in float32", "llamacpp-floats", files["gguf"], own, own.nats)
    row("gguf, llama.cpp", "llamacpp", files["gguf"], own, own.nats)
    return lines, failed
