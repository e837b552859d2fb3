"""What llama.cpp makes of GGUFs of the Llama family: their logits beside those of transformers, and how it reads text.

Random models of every architecture and option that `--to gguf` knows are quantized in several ways. llama.cpp's logits
are compared with those of transformers for the checkpoint, which tells the price of the type, and with those for the
weights that quantcli decodes from the GGUF, which have to be the same when llama.cpp decodes them to float32 too.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from models import answered, decoded, quantcli, script, talk

from quantcli.models import open_model

FAMILIES = ["llama", "llama-larger", "llama-tied", "llama3", "llama-linear", "llama-bias", "llama-heads", "mistral",
            "qwen2", "qwen2-yarn", "qwen3"]  # fmt: skip
OTHERS = ["mixtral", "qwen2moe", "qwen3moe", "gemma", "gemma2", "gemma3", "phi3", "phi3-long", "phi4-mini",
          "smollm3", "olmo2", "olmo3", "granite", "glm4", "starcoder2", "falcon", "falcon-40b", "gpt2",
          "gptneox", "bert", "nomic", "roberta", "xlm-roberta", "modern-bert", "deepseek2", "deepseek3",
          "deepseek3-yarn", "gpt-oss", "llama4", "glm4moe", "dots1", "cohere2", "command-r", "exaone4",
          "ernie4_5", "ernie4_5moe", "hunyuan-dense", "seed-oss", "arcee", "olmoe", "stablelm", "nemotron",
          "lfm2", "lfm2moe", "minicpm3", "minicpm3-long", "granitemoe", "qwen2vl", "qwen2_5vl", "qwen3vl",
          "qwen3vlmoe", "olmo", "minimax-m2", "t5", "t5-relu", "umt5"]  # fmt: skip
"""Families of which one matrix alone is quantized, without an error."""
TABLE = (
    "gemma",
    "starcoder2",
    "falcon",
    "gpt2",
    "gptneox",
    "bert",
    "roberta",
    "xlm-roberta",
    "modern-bert",
    "t5",
    "umt5",
)
"""Those with GELU, which ggml has a table of: a value at the border of two float16s may be the next one there."""
DTYPES = {"llama": "float16", "llama-tied": "bfloat16", "qwen2": "bfloat16", "llama-bias": "float16"}
"""Of checkpoints that are not float32."""
TOKENIZERS = ["llama-bpe", "dbrx", "qwen2", "tekken", "gpt-2", "smollm", "gpt-4o", "qwen35", "deepseek-v3", "falcon",
              "seed-coder", "spaces", "metaspace", "bare", "gemma", "t5", "xlm-roberta", "unigram",
              "sentencepiece-unigram", "sentencepiece-bpe"]  # fmt: skip
"""Kinds that hf_words.py makes."""
WORDS = 100
"""So many are in the row that is read."""
OUTPUT = r"\b0\.(?:.*att.*\b(?:o_proj|out_proj|c_proj|dense|Wo)|.*SelfAttention\.o)\.weight$"
"""The matrix behind attention in the first layer."""
KINDS = {
    "kept": ["--bits", "8", "--include", "*.0.mlp.down_proj"],
    "Q4_0": ["--bits", "4", "--group-size", "64"],
    "Q4_1": ["--bits", "4", "--asymmetric"],
    "Q5_0": ["--bits", "5"],
    "Q5_1": ["--bits", "5", "--group-size", "64", "--asymmetric"],
    "Q8_0": ["--bits", "8", "--group-size", "-1"],
    "layers": ["--bits", "4", "--keep-embeddings"],
    "mixed": ["--bits", "5", "--no-default-keep", "--override", "*.down_proj:bits=8", "--override",
              "*.v_proj:bits=4,symmetric=false"],
}  # fmt: skip
"""What quantize is told; `kept` leaves all but one matrix in the dtype of the checkpoint."""
FEW = ["kept", "Q4_0", "Q8_0", "mixed"]
"""The kinds of most models; one has all."""
NEAR = 1e-3
"""How far logits may be apart that went through ggml's table of GELU."""
SAME = 1e-5
"""How far the logits of the same weights may be apart, as a share of their standard deviation."""
RUNS = 1e-1
"""The same where llama.cpp runs the file as it is: it rounds what goes into a matrix, to 16 bits beside F16 and BF16
and to 8 beside blocks, and a rounding that goes the other way grows from layer to layer."""


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Root of the mean square of a difference, as a share of the standard deviation of the first."""
    return float(np.sqrt(np.mean((a.astype(float) - b) ** 2)) / a.std())


def logits(client: str, python: Path, models: list[Path], row: list[int], work: Path) -> list[np.ndarray]:
    """The logits (words, vocabulary) of a row in every model."""
    outs = [work / f"logits-{i}.npz" for i in range(len(models))]
    jobs: list[dict[str, Any]] = [{"model": str(m), "prompts": [], "words": 0, "rows": [row], "logits": str(out)}
                                  for m, out in zip(models, outs)]  # fmt: skip
    talk(client, python, jobs, work)
    return [np.load(out)["arr_0"] for out in outs]


def check(name: str, kinds: list[str], pythons: Mapping[str, Path], work: Path) -> tuple[str, int]:
    """A row of the table, and how many of the kinds are not as they should be."""
    folder, dtype = work / "model", DTYPES.get(name, "float32")
    answered(script(pythons["current"], "hf_model.py", name, folder, dtype))
    files = [work / f"{kind}.gguf" for kind in kinds]
    for kind, path in zip(kinds, files):
        quantcli("quantize", folder, *KINDS[kind], "--to", "gguf", "-o", path, "-q")
    row = [(i * 11 + 3) % json.loads((folder / "config.json").read_text())["vocab_size"] for i in range(WORDS)]
    own = [decoded(path, folder, work / path.stem) for path in files]
    original, *same = logits("transformers", pythons["current"], [folder, *own], row, work)
    runs, exact = (logits(c, pythons["llamacpp"], files, row, work) for c in ("llamacpp", "llamacpp-floats"))
    pairs = [[apart(a, b) for a, b in zip(same, other)] for other in (exact, runs)]
    alone, whole = ([apart(original, found) for found in these] for these in (same, runs))
    wrong = 0
    for kind, least, left in zip(kinds, *pairs):
        right = least <= SAME and left <= RUNS
        wrong += not right
        print(f"{'ok' if right else 'FAILED':6s} {name}, {kind}: in float32 {least:.1e}, as it runs {left:.1e}",
              file=sys.stderr, flush=True)  # fmt: skip
    spans = [f"{min(found):.3f} to {max(found):.3f}" for found in (alone, whole)]
    return (f"| {name} | {dtype} | {', '.join(kinds)} | {max(pairs[0]):.0e} | {max(pairs[1]):.0e} | "
            f"{' | '.join(spans)} |"), wrong  # fmt: skip


def check_exact(name: str, pythons: Mapping[str, Path], work: Path) -> tuple[str, int]:
    """The same for a model of which one matrix alone is quantized, without an error."""
    folder, path = work / "model", work / "exact.gguf"
    answered(script(pythons["current"], "hf_model.py", name, folder, "float32"))
    config = json.loads((folder / "config.json").read_text())
    words = config.get("text_config", config)["vocab_size"]
    row = [max((i * 11 + 3) % words, 2) for i in range(WORDS)]  # 1 is padding in some
    with open_model(str(folder)) as model:
        chosen = next(n for n in model if re.search(OUTPUT, n))
    options = ["--bits", "8", "--include", chosen, "--to", "gguf", "-o", path, "--json", "-q"]
    report = json.loads(quantcli("quantize", folder, *options))
    exact = {t["name"] for t in report["tensors"] if t["disposition"] == "quantized" and t["max_abs_error"] == 0}
    (one,) = logits("transformers", pythons["current"], [folder], row, work)
    (other,) = logits("llamacpp-floats", pythons["llamacpp"], [path], row, work)
    least, limit = apart(one, other), NEAR if name.startswith(TABLE) else SAME
    right = least <= limit and bool(exact)
    print(f"{'ok' if right else 'FAILED':6s} {name}: in float32 {least:.1e}", file=sys.stderr, flush=True)
    return f"| {name} | {config['architectures'][0]} | {least:.0e} |", not right


def check_words(kind: str, pythons: Mapping[str, Path], work: Path) -> tuple[str, int]:
    """Whether llama.cpp reads texts as the tokenizers library does, the vocabulary being ours."""
    texts, path, folder = work / "texts.json", work / "words.gguf", work / "model"
    answered(script(pythons["current"], "hf_model.py", "words", folder, "float16"))
    answered(script(pythons["current"], "hf_words.py", kind, folder, texts))
    report = json.loads(quantcli("quantize", folder, "--bits", "8", "--to", "gguf", "-o", path, "--json", "-q"))
    notes, count = report["warnings"], len(json.loads(texts.read_text()))
    wrong = json.loads(answered(script(pythons["llamacpp"], "read_gguf_words.py", path, texts)).splitlines()[-1])
    said = [text for text, _, _ in wrong if notes and re.search("^ |> ", text)]
    ok = len(said) == len(wrong) and not any("no vocabulary" in note for note in notes)
    row = f"| {kind} | {count - len(wrong)} of {count} | {'; '.join(notes)} |"
    print(f"{'ok' if ok else 'FAILED':6s} words, {row}", file=sys.stderr, flush=True)
    return row, not ok


def run(pythons: Mapping[str, Path], work: Path) -> tuple[list[str], int]:
    """The tables, and how many of their cells are not as they should be."""
    lines, failed = [], 0
    parts = {
        "| model | dtype | gguf | in float32 | as it runs | quantization | in llama.cpp |": [
            (lambda name=name: check(name, list(KINDS) if name == "llama-larger" else FEW, pythons, work))
            for name in FAMILIES],
        "| model | class | in float32 |": [(lambda name=name: check_exact(name, pythons, work)) for name in OTHERS],
        "| tokenizer | texts read the same | said |": [
            (lambda kind=kind: check_words(kind, pythons, work)) for kind in TOKENIZERS],
    }  # fmt: skip
    for head, checks in parts.items():
        lines += [head, "| --- |" + " --- |" * (head.count("|") - 2)]
        for each in checks:
            work.mkdir()
            row, wrong = each()
            shutil.rmtree(work)
            lines.append(row)
            failed += wrong
        lines.append("")
    return lines, failed
