"""Write tests/golden/named.json with llm-compressor 0.14: what its model-free path makes of the sample Llama, by the
name of a scheme: names, dtypes and shapes of tensors, and the quantization_config. Run by hand, where it is installed:

python tests/peers/write_named.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from llmcompressor.entrypoints.model_free import model_free_ptq
from safetensors import safe_open

TESTS = Path(__file__).parent.parent
MODEL = TESTS.parent / "sample_models" / "tiny-llama"
SCHEMES = ("FP8_DYNAMIC", "W8A8", "NVFP4A16", "MXFP4", "MXFP8A16")
IGNORED = ("lm_head", "model.embed_tokens")


def main() -> None:
    found = {}
    for scheme in SCHEMES:
        with tempfile.TemporaryDirectory() as folder:
            model_free_ptq(str(MODEL), folder, scheme=scheme, ignore=IGNORED, device="cpu")
            tensors = {}
            for path in sorted(Path(folder).glob("*.safetensors")):
                with safe_open(str(path), "pt") as file:
                    for name in file.keys():  # noqa: SIM118 - not a mapping
                        part = file.get_slice(name)
                        tensors[name] = [part.get_dtype(), list(part.get_shape())]
            config = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
            found[scheme] = {"config": config, "tensors": dict(sorted(tensors.items()))}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(made)}" for name, made in found.items())
    (TESTS / "golden" / "named.json").write_text(f"{{{lines}}}\n")


if __name__ == "__main__":
    main()
