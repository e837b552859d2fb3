"""Write the models of tests/golden/audits: sample_models/tiny-llama as other tools quantize it, each in its own way.

    python tests/peers/write_audits.py KIND [OUT]

KIND is a key of TOOLS.

gptq, awq, w4a8 and mxfp4 need llmcompressor 0.14.0.1 with datasets, autoround and autoround-awq auto-round 0.16.1,
autoround-own and autoround-own-zeros auto-round 0.15.1, hqq hqq 0.2.8.post1, mlx and mlx-mxfp8 mlx 0.32.4, gptqmodel
and gptqmodel-desc-act gptqmodel 7.2.0, bitsandbytes-fp4 bitsandbytes 0.50.2, torchao torchao 0.18.0 and quanto optimum-
quanto 0.2.7, modelopt-awq nvidia-modelopt 0.47.0; all torch 2.13.0 and transformers 5.23.0. autoawq needs autoawq
0.2.9, without its dependencies, and transformers 4.51.3.
They run on a processor in a minute.
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


def as_folder(
    out: Path, tensors: dict[str, torch.Tensor], more: dict[str, Any], header: dict[str, str] | None = None
) -> None:
    """Write tensors and what is said of them in the sample's configuration, and in the header."""
    out.mkdir(parents=True)
    kept = {name: part.contiguous() for name, part in tensors.items()}
    save_file(kept, out / "model.safetensors", {"format": "pt", **(header or {})})
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


def by_name(scheme: str, out: Path) -> None:
    """Min-max scales of a scheme of compressed-tensors: a byte for codes of 4 bits (W4A8), or powers of two (MXFP4)."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    asked: dict[str, Any] = {"scheme": scheme}
    if scheme == "W4A8":  # rows of the sample are shorter than its groups of 128
        inputs = {"num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": True}
        asked = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": GROUP, "input_activations": inputs}}}
    oneshot(model=model, recipe=[QuantizationModifier(targets=["Linear"], ignore=["lm_head"], **asked)])
    model.save_pretrained(out, save_compressed=True)


def autoround(layout: str, out: Path, *, symmetric: bool = True) -> None:
    """Learned rounding, in the layout of GPTQ or AWQ, or as AutoRound's own loader reads them."""
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        path, words = reads_letters(folder)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        ones = torch.ones(LONG, dtype=torch.long)
        data = [{"input_ids": torch.tensor(some), "attention_mask": ones} for some in inputs()]
        loader: Any = torch.utils.data.DataLoader(data, batch_size=4)
        AutoRound(
            model, words, bits=4, group_size=32, sym=symmetric, iters=40, nsamples=32, seqlen=LONG, batch_size=4,
            dataset=loader, device_map="cpu", enable_torch_compile=False, amp=False,
        ).quantize_and_save(str(out), format=layout)  # fmt: skip


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


def mlx_mxfp8(out: Path) -> None:
    """MLX's MXFP8, whose scales are the least powers of two that clip nothing."""
    import mlx.core as mx

    found = base()
    for name in [n for n, t in found.items() if t.ndim == 2 and "layers" in n]:
        codes, scales = mx.quantize(mx.array(found[name].float().numpy()).astype(mx.bfloat16), mode="mxfp8")
        found[name] = torch.from_numpy(np.array(codes).view(np.int32)).view(torch.uint32)
        found[name.removesuffix("weight") + "scales"] = torch.from_numpy(np.array(scales))
    as_folder(out, found, {"quantization": {"bits": 8, "group_size": 32, "mode": "mxfp8"}})


def bitsandbytes_fp4(out: Path) -> None:
    """bitsandbytes' FP4, whose levels no other tool has."""
    from bitsandbytes.functional import quantize_4bit

    found = base()
    for name in [n for n, t in found.items() if t.ndim == 2 and "layers" in n]:
        codes, state = quantize_4bit(found[name], quant_type="fp4")
        found[name] = codes
        found |= {f"{name}.{key}": part for key, part in state.as_dict(packed=True).items()}
    method = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}
    as_folder(out, found, {"quantization_config": method})


def torchao(out: Path) -> None:
    """torchao's whole numbers of 4 bits, a byte for each, as its own functions flatten and describe them."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    quantize_(model.model, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))
    tensors, described = flatten_tensor_state_dict(model.state_dict())
    as_folder(out, tensors, {"quantization_config": {"quant_method": "torchao"}}, described)


def quanto(out: Path) -> None:
    """optimum-quanto's whole numbers of 4 bits, whose ranges are rounded to bfloat16 before they are divided."""
    from optimum.quanto import freeze, qint4, quantize
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    quantize(model, weights=qint4, exclude="lm_head")
    freeze(model)
    as_folder(out, model.state_dict(), {"quantization_config": {"quant_method": "quanto", "weights": "int4"}})


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


def modelopt_awq(out: Path) -> None:
    """ModelOpt's AWQ in groups of 32: scales of layers behind a norm are averaged, and others stay beside the layer."""
    import copy

    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    recipe = copy.deepcopy(mtq.INT4_AWQ_CFG)
    for entry in recipe["quant_cfg"]:
        if "block_sizes" in (entry.get("cfg") or {}):
            entry["cfg"]["block_sizes"][-1] = 32
    rows = torch.tensor(inputs())
    export_hf_checkpoint(mtq.quantize(model, recipe, lambda own: [own(some) for some in rows.split(8)]), export_dir=out)


TOOLS: dict[str, Callable[[Path], None]] = {
    "gptq": partial(llmcompressor, "gptq"),
    "awq": partial(llmcompressor, "awq"),
    "autoround": partial(autoround, "auto_gptq"),
    "autoround-awq": partial(autoround, "auto_awq"),
    "autoround-own": partial(autoround, "auto_round"),
    "autoround-own-zeros": partial(autoround, "auto_round", symmetric=False),
    "hqq": hqq,
    "mlx": mlx,
    "gptqmodel": gptqmodel,
    "gptqmodel-desc-act": partial(gptqmodel, sorted_groups=True),
    "w4a8": partial(by_name, "W4A8"),
    "mxfp4": partial(by_name, "MXFP4"),
    "mlx-mxfp8": mlx_mxfp8,
    "bitsandbytes-fp4": bitsandbytes_fp4,
    "torchao": torchao,
    "quanto": quanto,
    "autoawq": autoawq,
    "modelopt-awq": modelopt_awq,
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
