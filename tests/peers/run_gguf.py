"""Run GGUFs of quantize --to and export in llama.cpp and compare what they say with transformers.

    python tests/peers/run_gguf.py --torch .venv-peers/bin/python --llama .venv-llama/bin/python [CASE...]

The second environment needs llama-cpp-python. For every model and kind of GGUF: llama.cpp's logits are compared with
those of transformers for the checkpoint, which tells the price of the type, and with those for the weights that
quantcli decodes from the GGUF, which have to be the same when llama.cpp decodes them too; and so are the words either
goes on with, the best one each time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from quantcli import comparing, naming, reading

HERE = Path(__file__).resolve().parent
TINY = HERE.parent.parent / "sample_models" / "tiny-llama"
FAMILIES = ["llama", "llama-larger", "llama-tied", "llama3", "llama-linear", "llama-bias", "llama-heads", "mistral",
            "qwen2", "qwen2-yarn", "qwen3"]  # fmt: skip
DTYPES = {"llama": "float16", "llama-tied": "bfloat16", "qwen2": "bfloat16", "llama-bias": "float16"}
"""Of checkpoints that are not float32; tiny-llama is bfloat16."""
WORDS = [f"words:{kind}" for kind in ("llama-bpe", "dbrx", "qwen2", "tekken", "gpt-2", "smollm", "spaces", "metaspace",
                                      "bare")]
"""Kinds of tokenizers that hf_words.py makes."""
KINDS = {
    "kept": ["--bits", "8", "--include", "*.0.mlp.down_proj"],
    "Q4_0": ["--bits", "4", "--group-size", "64"],
    "Q4_1": ["--bits", "4", "--asymmetric"],
    "Q5_0": ["--bits", "5"],
    "Q5_1": ["--bits", "5", "--group-size", "64", "--asymmetric"],
    "Q8_0": ["--bits", "8", "--group-size", "-1"],
    "mixed": ["--bits", "5", "--no-default-keep", "--override", "*.down_proj:bits=8", "--override",
              "*.v_proj:bits=4,symmetric=false"],
}  # fmt: skip
"""What quantize is told; `kept` leaves all but one matrix in the dtype of the checkpoint."""
SAME = 1e-5
"""How far the logits of the same weights may be apart, as a share of their standard deviation."""
RUNS = 1e-1
"""The same where llama.cpp runs the file as it is: it rounds what goes into a matrix, to 16 bits beside F16 and BF16
and to 8 beside blocks, and a rounding that goes the other way grows from layer to layer."""
FIRST = 8
"""So many words must be the same when tiny-llama, which has learned something, is run as it is."""


def quantcli(*words: object) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "quantcli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write(folder: Path, path: Path, options: list[str]) -> list[str]:
    """Write a checkpoint as a GGUF, both ways; what is said of it."""
    report = json.loads(quantcli("quantize", folder, *options, "--to", "gguf", "-o", path, "--json"))
    native, again = path.with_suffix(".native"), path.with_suffix(".again")
    sizes = [] if "--group-size" in options else ["--group-size", "32"]
    quantcli("quantize", folder, *options, *sizes, "--scale-dtype", "float16", "-o", native)
    quantcli("export", native, "--to", "gguf", "-o", again)
    assert path.read_bytes() == again.read_bytes()
    return list(report["warnings"])


def decoded(path: Path, folder: Path, into: Path) -> None:
    """A checkpoint of what a GGUF decodes to."""
    into.mkdir()
    shutil.copy(folder / "config.json", into)
    with reading.open(str(path)) as a, reading.open(str(folder)) as b:
        ours, _, _ = naming.under_one_name(a, comparing.views(a, str(path)), b, comparing.views(b, str(folder)))
        held = {name: v.read(0, v.info.numel).reshape(v.info.shape).copy() for name, v in ours.items() if name in b}
    save_file(held, into / "model.safetensors", {"format": "pt"})


def python(environment: Path, script: str, *arguments: object) -> str:
    """What a script prints in another environment."""
    done = subprocess.run([environment, HERE / script, *map(str, arguments)], capture_output=True, text=True,
                          check=False, env={**os.environ, "PYTHONPATH": "", "TRANSFORMERS_VERBOSITY": "error"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Root of the mean square of a difference, as a share of the standard deviation of the first."""
    return float(np.sqrt(np.mean((a.astype(float) - b) ** 2)) / a.std())


def alike(a: np.ndarray, b: np.ndarray) -> int:
    """How many words are the same until one is not."""
    return int(np.append(np.flatnonzero(a != b), len(a))[0])


def check(name: str, folder: Path, kind: str, work: Path, torch: Path, llama: Path) -> bool:
    path, reference, weights = work / f"{kind}.gguf", work / "reference.npy", work / f"{kind}-weights"
    write(folder, path, KINDS[kind])
    if not reference.exists():
        python(torch, "hf_model.py", "logits", folder, reference)
    python(llama, "read_gguf.py", path, work / "runs.npz", work / "exact.npz")
    decoded(path, folder, weights)
    for what in ("logits", "generate"):
        python(torch, "hf_model.py", what, weights, work / f"{what}.npy")
    original, same, words = (np.load(work / f"{n}.npy") for n in ("reference", "logits", "generate"))
    runs, exact = (np.load(work / f"{n}.npz") for n in ("runs", "exact"))
    least, left = apart(same, exact["logits"]), apart(same, runs["logits"])
    first, own = alike(words, runs["words"]), alike(words, exact["words"])
    ok = least <= SAME and left <= RUNS and own == len(words) and (name != "tiny-llama" or first >= FIRST)
    agree = float(np.mean(runs["logits"].argmax(1) == original.argmax(1)))
    text = repr("".join(map(chr, runs["words"]))) if name == "tiny-llama" else ""
    print(f"{'ok' if ok else 'FAILED':6s} {name:13s} {kind:5s}: to its own weights {least:.1e}, as it runs {left:.1e}; "
          f"to the checkpoint {apart(original, runs['logits']):.1e}, same best word {100 * agree:.0f} %; goes on alike "
          f"for {own} and {first} of {len(words)} words {text}", flush=True)
    return ok


def check_words(kind: str, work: Path, torch: Path, llama: Path) -> bool:
    """Whether llama.cpp reads texts as the tokenizers library does, the vocabulary being ours."""
    texts, path, folder = work / "texts.json", work / "words.gguf", work / "model"
    python(torch, "hf_model.py", "make", "words", folder, "float16")
    python(torch, "hf_words.py", kind, folder, texts)
    notes = write(folder, path, ["--bits", "8"])
    wrong = json.loads(python(llama, "read_gguf_words.py", path, texts).splitlines()[-1])
    said = [text for text, _, _ in wrong if notes and re.search("^ |> ", text)]
    ok = len(said) == len(wrong) and not any("no words" in note for note in notes)
    count = len(json.loads(texts.read_text()))
    print(f"{'ok' if ok else 'FAILED':6s} words of {kind}: {count - len(wrong)} of {count} texts are read the same ",
          *notes, flush=True)
    return ok


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", type=Path, default=Path(".venv-peers/bin/python"))
    parser.add_argument("--llama", type=Path, default=Path(".venv-llama/bin/python"))
    parser.add_argument("cases", nargs="*", default=["tiny-llama", *FAMILIES, *WORDS])
    chosen = parser.parse_args()
    failed = 0
    for name in chosen.cases:
        with tempfile.TemporaryDirectory() as place:
            work = Path(place)
            if name in WORDS:
                failed += not check_words(name.removeprefix("words:"), work, chosen.torch, chosen.llama)
                continue
            folder = TINY if name == "tiny-llama" else work / "model"
            if folder != TINY:
                python(chosen.torch, "hf_model.py", "make", name, folder, DTYPES.get(name, "float32"))
            kinds = list(KINDS) if name in ("tiny-llama", "llama-larger") else ["kept", "Q8_0", "mixed"]
            failed += sum(not check(name, folder, kind, work, chosen.torch, chosen.llama) for kind in kinds)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
