"""Write what transformers saves of a small model of every family, and what the gguf package calls its tensors.

    /path/to/python tests/peers/write_families.py

needs transformers and gguf, and writes tests/golden/gguf/families.json: by the name of a case of hf_model.py the
config.json, the shapes of all tensors in the file, llama.cpp's architecture, and the package's names of all modules
that it knows among them. Experts and the halves of kv_b_proj are named as they are once they are in order.
"""

from __future__ import annotations

import json
import re
import struct
import tempfile
from pathlib import Path
from typing import Any

import gguf
import hf_model

OUT = Path(__file__).resolve().parent.parent / "golden" / "gguf" / "families.json"
CASES = {
    "mistral": "LLAMA", "mixtral": "LLAMA", "qwen2": "QWEN2", "qwen2moe": "QWEN2MOE", "qwen3": "QWEN3",
    "qwen3moe": "QWEN3MOE", "gemma": "GEMMA", "gemma2": "GEMMA2", "gemma3": "GEMMA3", "phi3": "PHI3",
    "smollm3": "SMOLLM3", "olmo2": "OLMO2", "olmo3": "OLMO2", "granite": "GRANITE", "glm4": "GLM4",
    "starcoder2": "STARCODER2", "falcon": "FALCON", "falcon-40b": "FALCON", "gpt2": "GPT2", "gptneox": "GPTNEOX",
    "bert": "BERT", "nomic": "NOMIC_BERT", "deepseek2": "DEEPSEEK2", "deepseek3": "DEEPSEEK2", "gpt-oss": "GPT_OSS",
    "llama4": "LLAMA4", "roberta": "BERT", "xlm-roberta": "BERT", "modern-bert": "MODERN_BERT",
    "glm4moe": "GLM4_MOE", "dots1": "DOTS1", "cohere2": "COHERE2", "command-r": "COMMAND_R", "exaone4": "EXAONE4",
    "ernie4_5": "ERNIE4_5", "ernie4_5moe": "ERNIE4_5_MOE", "hunyuan-dense": "HUNYUAN_DENSE", "seed-oss": "SEED_OSS",
    "arcee": "ARCEE", "olmoe": "OLMOE", "stablelm": "STABLELM", "nemotron": "NEMOTRON", "lfm2": "LFM2",
    "lfm2moe": "LFM2MOE", "minicpm3": "MINICPM3", "minicpm3-long": "MINICPM3",
    "granitemoe": "GRANITE_MOE", "qwen2vl": "QWEN2VL", "qwen2_5vl": "QWEN2VL", "qwen3vl": "QWEN3VL",
    "qwen3vlmoe": "QWEN3VLMOE", "olmo": "OLMO", "minimax-m2": "MINIMAXM2",
    "t5": "T5ENCODER", "t5-relu": "T5ENCODER", "umt5": "T5ENCODER",
}  # fmt: skip
IN_ORDER = {"mixtral": "mlp", "qwen2moe": "mlp", "qwen3moe": "mlp", "deepseek2": "mlp", "deepseek3": "mlp",
            "gpt-oss": "mlp", "llama4": "feed_forward", "glm4moe": "mlp", "dots1": "mlp", "ernie4_5moe": "mlp",
            "olmoe": "mlp", "granitemoe": "mlp",
            "minimax-m2": "mlp", "qwen3vlmoe": "mlp", "lfm2moe": "feed_forward"}  # fmt: skip
"""The blocks of experts."""


def shapes(folder: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        (size,) = struct.unpack("<Q", raw[:8])
        header: dict[str, Any] = json.loads(raw[8 : 8 + size])
        found |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    return found


def modules(case: str, names: list[str]) -> list[str]:
    found = {re.sub(r"\.(weight|bias)$", "", name) for name in names}
    layers = sorted({int(m[1]) for name in found if (m := re.search(r"layers\.(\d+)\.", name))})
    outer = "model.language_model.layers" if any("language_model" in name for name in names) else "model.layers"
    for layer in layers:
        if case in IN_ORDER:
            place = f"{outer}.{layer}.{IN_ORDER[case]}.experts"
            found |= {f"{place}.{n}_proj" for n in ("gate", "up", "down")}
        if case.startswith("deepseek"):
            found |= {f"model.layers.{layer}.self_attn.{n}_b_proj" for n in "kv"}
    return sorted(found)


def main() -> None:
    written = {}
    for case, architecture in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            hf_model.make(case, folder)
            found = shapes(Path(folder))
            config = json.loads((Path(folder) / "config.json").read_text())
        arch = gguf.MODEL_ARCH[architecture]
        table = gguf.get_tensor_name_map(arch, 8)
        theirs = {m: table.get_name(m.replace("language_model.", "")) for m in modules(case, list(found))}
        named = {m: n for m, n in theirs.items() if n is not None}
        written[case] = {"config": config, "shapes": found, "names": named,
                         "architecture": gguf.MODEL_ARCH_NAMES[arch]}  # fmt: skip
    OUT.write_text(json.dumps(written, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
