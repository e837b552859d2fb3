"""Write the models of tests/golden/audits: sample_models/tiny-llama as other tools quantize it, each in its own way.

    python tests/peers/write_audits.py KIND [OUT]

KIND is a key of TOOLS.

gptq and awq need llmcompressor 0.14.0.1 with datasets, autoround and autoround-awq auto-round 0.16.1, hqq hqq
0.2.8.post1, mlx mlx 0.32.4, gptqmodel and gptqmodel-desc-act gptqmodel 7.2.0; all torch 2.13.0 and transformers 5.23.0.
autoawq needs autoawq 0.2.9, without its dependencies, and transformers 4.51.3. They run on a processor in a minute.
Inputs are the text of README.md, a letter a word.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clients import empty_torchvision
from safetensors.torch import load_file, save_file
from words import MODEL, with_words

ROOT = Path(__file__).resolve().parents[2]
LONG, SAMPLES = 128, 48
GROUP = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}


def inputs() -> list[list[int]]:
    """Words of a text: its letters, which the sample model reads."""
    text = (ROOT / "README.md").read_bytes().decode().encode("ascii", "ignore")
    return [list(text[at : at + LONG]) for at in range(0, SAMPLES * LONG, LONG)]


def base() -> dict[str, torch.Tensor]:
    """The tensors of the sample model."""
    return {name: part for path in sorted(MODEL.glob("*.safetensors")) for name, part in load_file(path).items()}


def as_folder(out: Path, tensors: dict[str, torch.Tensor], more: dict[str, Any]) -> None:
    """Write tensors and what is said of them in the sample's configuration."""
    out.mkdir(parents=True)
    save_file({name: part.contiguous() for name, part in tensors.items()}, out / "model.safetensors", {"format": "pt"})
    config = json.loads((MODEL / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, **more}))


def reads_letters(folder: str) -> tuple[Path, Any]:
    """A copy of the sample model with a tokenizer, which tools want though they are given words; and that tokenizer."""
    from transformers import PreTrainedTokenizerFast

    path = with_words(Path(folder) / "tiny")
    return path, PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))


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
    rows = inputs()
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * LONG for _ in rows]})
    recipe = [Modifier(config_groups=groups, ignore=["lm_head"])]
    with tempfile.TemporaryDirectory() as folder:
        _, words = reads_letters(folder)
        oneshot(
            model=model, processor=words, dataset=data, recipe=recipe, max_seq_length=LONG,
            num_calibration_samples=SAMPLES,
        )  # fmt: skip
    model.save_pretrained(out, save_compressed=True)


def autoround(layout: str, out: Path) -> None:
    """Learned rounding, in the layout of GPTQ or AWQ."""
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        path, words = reads_letters(folder)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        ones = torch.ones(LONG, dtype=torch.long)
        data = [{"input_ids": torch.tensor(some), "attention_mask": ones} for some in inputs()]
        loader: Any = torch.utils.data.DataLoader(data, batch_size=4)
        AutoRound(
            model, words, bits=4, group_size=32, sym=True, iters=40, nsamples=32, seqlen=LONG, batch_size=4,
            dataset=loader, device_map="cpu", enable_torch_compile=False, amp=False,
        ).quantize_and_save(str(out), format=f"auto_{layout}")  # fmt: skip


def gptqmodel(out: Path, *, sorted_groups: bool = False) -> None:
    """GPTQModel's error feedback by default: columns in the order of their inputs' power, groups as they are.
    sorted_groups: groups of columns that follow each other in that order (desc_act)."""
    empty_torchvision()
    from gptqmodel import GPTQModel, QuantizeConfig

    ones = [1] * LONG
    with tempfile.TemporaryDirectory() as folder:
        order = {"desc_act": True, "act_group_aware": False} if sorted_groups else {}
        asked = QuantizeConfig(bits=4, group_size=32, offload_to_disk=False, **order)
        model = GPTQModel.load(str(reads_letters(folder)[0]), asked, device="cpu")
        model.quantize([{"input_ids": some, "attention_mask": ones} for some in inputs()], batch_size=1)
        model.save(str(out))


def autoawq(out: Path, *, copied: bool = True) -> None:
    """AutoAWQ's scaled weights, in its own layout; not clipped, for that takes no fewer than 64 rows. copied: without
    a fault that it has on processors, where it puts weights back after a trial that are the very same: all add up."""
    from awq import AutoAWQForCausalLM

    if copied:
        torch.Tensor.cpu = lambda self, *_, **__: self.detach().clone()
    with tempfile.TemporaryDirectory() as folder:
        path, words = reads_letters(folder)
        model = AutoAWQForCausalLM.from_pretrained(str(path), device_map="cpu", torch_dtype=torch.float16)
        asked = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
        model.quantize(
            words, quant_config=asked, calib_data=inputs(), max_calib_samples=SAMPLES, max_calib_seq_len=LONG,
            apply_clip=False,
        )  # fmt: skip
        model.save_quantized(str(out))


def mlx(out: Path) -> None:
    """MLX's affine quantization of weights in float16, 6 bits."""
    import mlx.core as mx

    settings = {"bits": 6, "group_size": 64}
    found = base()
    for name in [n for n, t in found.items() if t.ndim == 2 and "layers" in n]:
        codes, *params = mx.quantize(mx.array(found[name].half().numpy()), **settings)
        found[name] = torch.from_numpy(np.array(codes).view(np.int32)).view(torch.uint32)
        stem = name.removesuffix("weight")
        found |= {stem + key: torch.from_numpy(np.array(v)) for key, v in zip(("scales", "biases"), params)}
    as_folder(out, found, {"quantization": settings})


def hqq(out: Path) -> None:
    """HQQ's search for zero points, in its own layout."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    found = base()
    for name in [n for n, t in found.items() if t.ndim == 2 and "layers" in n]:
        weight = found.pop(name)
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight.clone()
        asked = BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
        made = HQQLinear(layer, asked, compute_dtype=torch.bfloat16, device="cpu")
        found |= {name.removesuffix("weight") + key: part for key, part in made.state_dict().items()}
    method = {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1}}}
    as_folder(out, found, {"quantization_config": method})


TOOLS: dict[str, Callable[[Path], None]] = {
    "gptq": partial(llmcompressor, "gptq"),
    "awq": partial(llmcompressor, "awq"),
    "autoround": partial(autoround, "gptq"),
    "autoround-awq": partial(autoround, "awq"),
    "hqq": hqq,
    "mlx": mlx,
    "gptqmodel": gptqmodel,
    "gptqmodel-desc-act": partial(gptqmodel, sorted_groups=True),
    "autoawq": autoawq,
    "autoawq-fault": partial(autoawq, copied=False),
}


def main(kind: str, out: str = "") -> None:
    place = Path(out or ROOT / "tests" / "golden" / "audits" / kind)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        TOOLS[kind](made)
        place.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            [found] = made.rglob(name)
            shutil.copy(found, place / name)


if __name__ == "__main__":
    main(*sys.argv[1:])
