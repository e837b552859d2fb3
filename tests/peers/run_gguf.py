"""Run GGUFs made of our parts in llama.cpp and compare their logits with transformers'.

    python tests/peers/run_gguf.py --torch .venv-peers/bin/python --llama .venv-llama/bin/python [CASE...]

The second environment needs llama-cpp-python. For every model and type: a checkpoint is written as a GGUF; llama.cpp's
logits are compared with those of transformers for the checkpoint, which tells the price of the type, and with those
for the weights that quantcli decodes from the GGUF, which have to be the same when llama.cpp decodes them too.
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
from quantcli.dtypes import from_float32
from quantcli.exports._gguf_blocks import block_type, encode
from quantcli.exports._llama import FILE_TYPES, LlamaModel, llama_model, turned
from quantcli.exports._vocabulary import vocabulary
from quantcli.scheme import Scheme
from quantcli.stores.files import OutputFile
from quantcli.stores.gguf_layout import GgufTensor, lay_out

HERE = Path(__file__).resolve().parent
TINY = HERE.parent.parent / "sample_models" / "tiny-llama"
FAMILIES = ["llama", "llama-larger", "llama-tied", "llama3", "llama-linear", "llama-bias", "llama-heads", "mistral",
            "qwen2", "qwen2-yarn", "qwen3"]  # fmt: skip
WORDS = [f"words:{kind}" for kind in ("llama-bpe", "dbrx", "qwen2", "tekken", "gpt-2", "smollm", "spaces", "metaspace",
                                      "bare")]
"""Kinds of tokenizers that hf_words.py makes."""
SCHEMES = {"Q4_0": Scheme(bits=4, group_size=64), "Q4_1": Scheme(bits=4, group_size=32, symmetric=False),
           "Q5_0": Scheme(bits=5, group_size=32), "Q5_1": Scheme(bits=5, group_size=64, symmetric=False),
           "Q8_0": Scheme(bits=8, granularity="channel")}  # fmt: skip
SAME = 1e-5
"""How far the logits of the same weights may be apart, as a share of their standard deviation."""
RUNS = 1e-1
"""The same where llama.cpp runs the file as it is: it rounds what goes into a matrix, to float16 beside F16 and to 8
bits beside blocks, and a rounding that goes the other way grows from layer to layer."""


def bytes_of(values: np.ndarray, kind: str) -> bytes:
    """A matrix in a type of GGUF, quantized by quantcli where that is one of blocks."""
    if kind in ("F32", "F16", "BF16"):
        return from_float32(values, kind).tobytes()
    from quantcli import quantize

    scheme = SCHEMES[kind]
    found = quantize(values, scheme)
    assert block_type(scheme) == kind
    codes = found.codes.astype(np.int16) + (1 << (scheme.bits - 1) if scheme.symmetric else 0)
    zero = None if found.zero_point is None else found.zero_point.astype(np.float32)
    return encode(scheme, codes.astype(np.uint8), found.scale, zero, found.layout.group).tobytes()


def assemble(folder: Path, path: Path, kind: str) -> LlamaModel:
    """Write a checkpoint as a GGUF whose matrices have a type."""
    config = json.loads((folder / "config.json").read_text())
    with reading.open(str(folder)) as model:
        found = llama_model(config, model.source.infos())
        words = vocabulary(str(folder), config, found.vocabulary)
        keys = {"general.architecture": found.architecture, "general.file_type": FILE_TYPES[kind],
                "general.quantization_version": 2, **found.keys, **words.keys}  # fmt: skip
        tensors = [GgufTensor(t.name, "F32" if t.float32 else kind, t.shape) for t in found.tensors]
        tensors += [GgufTensor(name, "F32", values.shape) for name, values in found.made.items()]
        places = lay_out(keys, tensors)
        with OutputFile(str(path), places.size, force=True) as out:
            out.write(0, places.header)
            for t, tensor in zip(found.tensors, tensors):
                values = model[t.source].numpy().astype(np.float32)
                if t.heads:
                    values = values[turned(len(values), t.heads)]
                raw = bytes_of(values, tensor.type)
                assert len(raw) == tensor.nbytes
                out.write(places.offsets[t.name], raw)
            for name, values in found.made.items():
                out.write(places.offsets[name], values.tobytes())
            out.sync()
            out.publish()
    return found


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


def check(name: str, folder: Path, kind: str, work: Path, torch: Path, llama: Path) -> bool:
    path, reference = work / f"{name}-{kind}.gguf", work / f"{name}.npy"
    found = assemble(folder, path, kind)
    if not reference.exists():
        python(torch, "hf_model.py", "logits", folder, reference)
    python(llama, "read_gguf.py", path, work / "runs.npy", work / "exact.npy")
    decoded(path, folder, work / f"{name}-{kind}")
    python(torch, "hf_model.py", "logits", work / f"{name}-{kind}", work / "same.npy")
    original, runs, exact, same = (np.load(work / f"{n}.npy") for n in (name, "runs", "exact", "same"))
    least, left = apart(same, exact), apart(same, runs)
    agree = float(np.mean(runs.argmax(1) == original.argmax(1)))
    ok = least <= SAME and left <= RUNS
    verdict = "ok" if ok else "FAILED"
    print(f"{verdict:6s} {name:13s} {kind}: to its own weights {least:.1e}, as it runs {left:.1e}; to the checkpoint "
          f"{apart(original, runs):.1e}, same best word {100 * agree:.0f} %", *found.notes, flush=True)
    return ok


def check_words(kind: str, work: Path, torch: Path, llama: Path) -> bool:
    """Whether llama.cpp reads texts as the tokenizers library does, the vocabulary being ours."""
    texts, path = work / "texts.json", work / "words.gguf"
    python(torch, "hf_words.py", kind, work, texts)
    found = vocabulary(str(work), {}, 1600)
    architecture = {"context_length": 16, "embedding_length": 32, "block_count": 1, "feed_forward_length": 32,
                    "attention.head_count": 1, "attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": 32}
    keys = {"general.architecture": "llama", **{f"llama.{k}": v for k, v in architecture.items()}, **found.keys}
    places = lay_out(keys, [GgufTensor("token_embd.weight", "F32", (1600, 32))])
    path.write_bytes(places.header + bytes(places.size - len(places.header)))
    wrong = json.loads(python(llama, "read_gguf_words.py", path, texts).splitlines()[-1])
    said = [text for text, _, _ in wrong if found.note and re.search("^ |> ", text)]
    ok = not found.obstacle and len(said) == len(wrong)
    count = len(json.loads(texts.read_text()))
    verdict = "ok" if ok else "FAILED"
    print(f"{verdict:6s} words of {kind}: {count - len(wrong)} of {count} texts are read the same"
          f"  {found.obstacle}{found.note}", flush=True)
    return ok


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", type=Path, default=Path(".venv-peers/bin/python"))
    parser.add_argument("--llama", type=Path, default=Path(".venv-llama/bin/python"))
    parser.add_argument("cases", nargs="*", default=["tiny-llama", *FAMILIES, *WORDS])
    chosen = parser.parse_args()
    failed = 0
    for name in chosen.cases:
        if name in WORDS:
            with tempfile.TemporaryDirectory() as place:
                failed += not check_words(name.removeprefix("words:"), Path(place), chosen.torch, chosen.llama)
            continue
        with tempfile.TemporaryDirectory() as place:
            work = Path(place)
            folder = TINY if name == "tiny-llama" else work / "model"
            if folder != TINY:
                python(chosen.torch, "hf_model.py", "make", name, folder)
            kinds = ["F32", "F16", *SCHEMES] if name in ("tiny-llama", "llama-larger") else ["F32", "Q8_0"]
            failed += sum(not check(name, folder, kind, work, chosen.torch, chosen.llama) for kind in kinds)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
