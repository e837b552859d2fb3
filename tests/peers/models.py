"""What the runs share: the sample model with words, quantcli's commands and decoders, scripts in other environments."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from words import give_words, with_words

from quantcli.dtypes import from_float32
from quantcli.matching import under_one_name
from quantcli.models import open_model

HERE = Path(__file__).resolve().parent
Weights = dict[str, np.ndarray]


def random_llama(pythons: Mapping[str, Any], folder: Path) -> Path:
    """A random Llama of transformers with rows of 256 and 704, in bfloat16, with a tokenizer."""
    answered(script(pythons["current"], "hf_model.py", "llama", folder, "bfloat16"))
    give_words(folder)
    return folder


def picture(name: str, path: Path) -> Path:
    """A file with names, shapes and the dtype of a model of pictures, filled with Student's t."""
    case = json.loads((HERE.parent / "golden" / "gguf" / "images.json").read_text())["converted"][name]
    shapes = {**case["shapes"], **MORE.get(name, {})}
    rng = np.random.default_rng(0)
    header, body = dict[str, Any](), b""
    for n, shape in shapes.items():
        values = from_float32((rng.standard_t(4, shape) / 50).astype(np.float32), case["dtype"]).tobytes()
        header[n] = {"dtype": case["dtype"], "shape": shape, "data_offsets": [len(body), len(body) + len(values)]}
        body += values
    said = json.dumps(header).encode()
    path = path.with_suffix(".safetensors")
    path.write_bytes(len(said).to_bytes(8, "little") + said + body)
    return path


MORE = {"flux": {"double_blocks.0.img_mlp.0.weight": (160, 320), "double_blocks.0.img_mlp.2.weight": (96, 200)}}
MODELS: dict[str, Callable[[Mapping[str, Any], Path], Path]] = {
    "tiny-llama": lambda _, folder: with_words(folder),
    "llama": random_llama,
    "flux": lambda _, path: picture("flux", path),
    "wan": lambda _, path: picture("wan", path),
    "sdxl": lambda _, path: picture("sdxl", path),
}
"""What is quantized, under the names of cells.py, and how it is made."""


def command(*words: object) -> subprocess.CompletedProcess[str]:
    """A command of quantcli, run to its end, whatever that is."""
    return subprocess.run([sys.executable, "-m", "quantcli", *map(str, words)], capture_output=True, text=True,
                          check=False)  # fmt: skip


def quantcli(*words: object) -> str:
    """What a command prints on standard output that has to succeed."""
    return answered(command(*words))


def script(python: Path, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A script of this folder, run in another environment without anything of this one. In one thread: torch takes
    eight times as long in two over models as small as these."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([python, "-I", HERE / name, *map(str, arguments)], capture_output=True, text=True,
                          check=False, env=environment)  # fmt: skip


def answered(done: subprocess.CompletedProcess[str]) -> str:
    """What a script or a command printed that has to have run to its end."""
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, done.args))}\n{done.stderr[-3000:]}")
    return done.stdout


def talk(client: str, python: Path, jobs: list[dict[str, Any]], work: Path) -> list[dict[str, Any]]:
    """What a client says in every job; see talk.py."""
    (work / "jobs.json").write_text(json.dumps(jobs))
    answers = answered(script(python, "talk.py", client, work / "jobs.json"))
    return [json.loads(line) for line in answers.splitlines()]


def weights(path: Path, original: Path, names: Iterable[str] | None = None) -> Weights:
    """What quantcli decodes, under the names of the original; of all its tensors if none are named."""
    with open_model(str(path)) as a, open_model(str(original)) as b:
        found, after, _ = under_one_name(a, b)
        wanted = [name for name in found if name in after] if names is None else names
        return {n: found[n].read(0, found[n].info.numel).reshape(found[n].info.shape).copy() for n in wanted}


def decoded(path: Path, original: Path, into: Path) -> Path:
    """A float32 checkpoint of what quantcli decodes, with what lies beside the original."""
    shutil.copytree(original, into, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    save_file(weights(path, original), into / "model.safetensors", {"format": "pt"})
    return into
