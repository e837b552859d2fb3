"""Write the models of tests/golden/audits: sample_models/tiny-llama as other tools quantize it, each in its own way.

    python tests/peers/write_audits.py gptq|awq|autoround|hqq [OUT]

gptq and awq need llmcompressor 0.14.0.1 with datasets, autoround auto-round 0.16.1, hqq hqq 0.2.8.post1; all torch
2.13.0 and transformers 5.23.0. They run on a processor in a minute. Inputs are the text of README.md, a letter a word.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from models import MODEL, with_words
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
LONG, SAMPLES = 128, 48
GROUP = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}


def inputs() -> list[list[int]]:
    """Words of a text: its letters, which the sample model reads."""
    text = (ROOT / "README.md").read_bytes().decode().encode("ascii", "ignore")
    return [list(text[at : at + LONG]) for at in range(0, SAMPLES * LONG, LONG)]


def llmcompressor(kind: str, out: Path) -> None:
    """Error feedback (GPTQ) with symmetric codes, or scaled columns (AWQ) with zero points, in compressed-tensors."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM

    if kind == "gptq":
        from llmcompressor.modifiers.quantization import GPTQModifier as Modifier
    else:
        from llmcompressor.modifiers.awq import AWQModifier as Modifier
    torch.Tensor.pin_memory = lambda self, *_, **__: self  # AWQ calls it, and it needs an accelerator
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    groups = {"group_0": {"targets": ["Linear"], "weights": {**GROUP, "symmetric": kind == "gptq"}}}
    words = inputs()
    data = Dataset.from_dict({"input_ids": words, "attention_mask": [[1] * LONG for _ in words]})
    recipe = [Modifier(config_groups=groups, ignore=["lm_head"])]
    oneshot(model=model, dataset=data, recipe=recipe, max_seq_length=LONG, num_calibration_samples=SAMPLES)
    model.save_pretrained(out, save_compressed=True)


def autoround(out: Path) -> None:
    """Learned rounding, in GPTQ's layout."""
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        words = PreTrainedTokenizerFast(tokenizer_file=str(with_words(Path(folder) / "tiny") / "tokenizer.json"))
        model = AutoModelForCausalLM.from_pretrained(Path(folder) / "tiny", dtype=torch.float32)
        ones = torch.ones(LONG, dtype=torch.long)
        data = [{"input_ids": torch.tensor(some), "attention_mask": ones} for some in inputs()]
        loader: Any = torch.utils.data.DataLoader(data, batch_size=4)
        AutoRound(
            model, words, bits=4, group_size=32, sym=True, iters=40, nsamples=32, seqlen=LONG, batch_size=4,
            dataset=loader, device_map="cpu", enable_torch_compile=False, amp=False,
        ).quantize_and_save(str(out), format="auto_gptq")  # fmt: skip


def hqq(out: Path) -> None:
    """HQQ's search for zero points, in its own layout."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    base: dict[str, torch.Tensor] = {}
    for path in sorted(MODEL.glob("*.safetensors")):
        base |= load_file(path)
    found = dict(base)
    for name in [n for n, t in base.items() if t.ndim == 2 and "layers" in n]:
        weight = found.pop(name)
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight.clone()
        asked = BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
        made = HQQLinear(layer, asked, compute_dtype=torch.bfloat16, device="cpu")
        found |= {name.removesuffix("weight") + key: part for key, part in made.state_dict().items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: part.contiguous() for name, part in found.items()}, out / "model.safetensors", {"format": "pt"})
    method = {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1}}}
    config = json.loads((MODEL / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": method}))


def main(kind: str, out: str = "") -> None:
    place = Path(out or ROOT / "tests" / "golden" / "audits" / kind)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        hqq(made) if kind == "hqq" else autoround(made) if kind == "autoround" else llmcompressor(kind, made)
        place.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            [found] = made.rglob(name)
            shutil.copy(found, place / name)


if __name__ == "__main__":
    main(*sys.argv[1:])
