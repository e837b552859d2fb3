"""Write files of tests/golden/decoded with hqq 0.2.8, torchao 0.18.0, optimum-quanto 0.2.7 and nvidia-modelopt 0.47.0,
those of them that can be imported: weights as each stores them, and the tensor it makes of them under `expected`, in
its own dtype. Run by hand, in an environment for the first three and one for the last.

    python tests/peers/write_decoded_others.py
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from write_decoded import CHANCE, save

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def layer(rows: int, cols: int, dtype: torch.dtype = torch.float32) -> nn.Linear:
    found = nn.Linear(cols, rows, bias=False, dtype=dtype)
    found.weight = nn.Parameter(torch.randn((rows, cols), generator=CHANCE).to(dtype), requires_grad=False)
    return found


def hqq() -> None:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    for bits, axis, name in [(8, 1, "f16"), (4, 1, "bf16"), (4, 0, "f16"), (3, 1, "f16"), (3, 0, "bf16"), (2, 1, "f16"),
                             (1, 1, "f16"), (4, 1, "f32")]:  # fmt: skip
        config = BaseQuantizeConfig(nbits=bits, group_size=16, axis=axis)
        made = HQQLinear(layer(24, 48), config, compute_dtype=DTYPES[name], device="cpu")
        parts = {f"m.{key}": value for key, value in made.state_dict().items()}
        save(f"hqq-{bits}-axis{axis}-{name}", parts, made.dequantize(), {})


def torchao() -> None:
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        MappingType,
        quantize_,
    )
    from torchao.quantization.granularity import PerGroup

    four: dict[str, Any] = {"weight_dtype": torch.int4, "granularity": PerGroup(32)}
    for kind, config in [("float8", Float8WeightOnlyConfig()), ("int8", Int8WeightOnlyConfig(version=2)),
                         ("int4", IntxWeightOnlyConfig(**four)),
                         ("int4-asym", IntxWeightOnlyConfig(**four, mapping_type=MappingType.ASYMMETRIC))]:  # fmt: skip
        for name in ("bf16", "f16"):
            model = nn.Sequential(layer(20, 96, DTYPES[name]))
            quantize_(model, config)
            parts, _ = flatten_tensor_state_dict(model.state_dict())
            said = {"torch_dtype": str(DTYPES[name])[6:]} if kind in ("float8", "int8") else {}
            save(f"torchao-{kind}-{name}", parts, model[0].weight.dequantize(), said)


def torchao_packed() -> None:
    """Int4Tensor, quantized and packed by functions of mslk that run on a processor. The product of torchao
    does not, and no function decodes it: q * scale + zero point, as `int4_row_quantize_zp` made them."""
    from mslk.quantize.shuffle import int4_row_quantize_zp, pack_int4
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int4Tensor

    for name in ("bf16", "f16"):
        weight = layer(20, 96).weight.data.to(DTYPES[name])
        codes, scale, zero = int4_row_quantize_zp(weight, 32)
        scale, zero = scale.to(DTYPES[name]), zero.to(DTYPES[name])
        made = Int4Tensor(pack_int4(codes), scale, zero, [1, 32], weight.shape)
        parts, _ = flatten_tensor_state_dict({"m.weight": made})
        each = [values.float().t().repeat_interleave(32, dim=1) for values in (scale, zero)]
        expected = codes.float() * each[0] + each[1]
        assert (expected - weight).abs().max() < each[0].max()
        save(f"torchao-packed-{name}", parts, expected, {})


def quanto() -> None:
    from optimum.quanto import freeze, qfloat8, qfloat8_e5m2, qint8, quantize

    for kind, weights in [("int8", qint8), ("float8", qfloat8), ("float8-e5m2", qfloat8_e5m2)]:
        for name in ("bf16", "f16"):
            model = nn.Sequential(layer(20, 40, DTYPES[name]))
            quantize(model, weights=weights)
            freeze(model)
            save(f"quanto-{kind}-{name}", dict(model.state_dict()), model[0].weight.dequantize(), {})


def quanto_packed() -> None:
    """4 and 2 bits in groups of 128, 96, 64 and 32, and of whole rows, an odd number of them too. What tells the shape:
    a bias, hidden_size and the name, or nothing but the groups."""
    from optimum.quanto import freeze, qint2, qint4, quantize

    for weights, (rows, cols), name, told in [
        (qint4, (24, 256), "f16", "bias"),
        (qint4, (14, 192), "f32", "q_proj"),
        (qint4, (21, 80), "bf16", ""),
        (qint2, (24, 160), "f16", "down_proj"),
        (qint2, (14, 320), "bf16", "bias"),
        (qint4, (20, 160), "bf16", "k_proj"),
    ]:
        own = layer(rows, cols, DTYPES[name])
        if told == "bias":
            own.bias = nn.Parameter(torch.zeros(rows, dtype=DTYPES[name]))
        model = nn.ModuleDict({told if told.endswith("proj") else "m": own})
        quantize(model, weights=weights)
        freeze(model)
        [module] = model.values()
        parts = {key: value for key, value in model.state_dict().items() if "put_scale" not in key}
        config = {"hidden_size": rows if told == "down_proj" else cols} if told.endswith("proj") else {}
        bits = 4 if weights is qint4 else 2
        save(f"quanto-int{bits}-{rows}x{cols}-{name}", parts, module.weight.dequantize(), config)


def modelopt() -> None:
    """Whole models of transformers, as ModelOpt exports them; one layer of each."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from modelopt.torch.quantization.qtensor import FP8QTensor, MXFP4QTensor, MXFP8QTensor, NVFP4QTensor
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    key = "model.layers.0.self_attn.k_proj."
    for name, recipe in [("nvfp4", mtq.NVFP4_DEFAULT_CFG), ("mxfp8", mtq.MXFP8_DEFAULT_CFG),
                         ("mxfp4", mtq.W4A8_MXFP4_FP8_CFG), ("fp8", mtq.FP8_DEFAULT_CFG),
                         ("fp8-channel", mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG)]:  # fmt: skip
        torch.manual_seed(0)
        config = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                             num_key_value_heads=1, vocab_size=64, architectures=["LlamaForCausalLM"])  # fmt: skip
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        model = mtq.quantize(model, recipe, lambda own: own(torch.randint(0, 64, (2, 16))))
        with TemporaryDirectory() as folder:
            export_hf_checkpoint(model, export_dir=folder)
            held = load_file(Path(folder) / "model.safetensors")
        parts = {k: v for k, v in held.items() if k.startswith(key)}
        codes, scale = parts[f"{key}weight"], parts[f"{key}weight_scale"]
        cols = codes.shape[1] * (2 if codes.dtype == torch.uint8 else 1)
        tool = {"nvfp4": NVFP4QTensor, "mxfp8": MXFP8QTensor, "mxfp4": MXFP4QTensor}.get(name, FP8QTensor)
        dtype = torch.float32 if name.startswith("fp8") else torch.bfloat16
        own: dict[str, Any] = {"scale": scale[:, None] if name == "fp8-channel" else scale}
        if name in ("nvfp4", "mxfp4"):
            own["block_sizes"] = {-1: 16 if name == "nvfp4" else 32}
        if name == "nvfp4":
            own["double_scale"] = parts[f"{key}weight_scale_2"]
        expected = tool(torch.Size((codes.shape[0], cols)), torch.bfloat16, codes).dequantize(dtype, **own)
        save(f"modelopt-{name}", parts, expected, {"dtype": "bfloat16"})


def modelopt_int4() -> None:
    """Integers of 4 bits as ModelOpt's export packs them, without and with scales of inputs, and of experts. Nothing
    in it decodes them: codes times scales, which are what its own simulation gives but for the last bit."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export.quant_utils import get_weight_scaling_factor, pack_int4_in_uint8

    config = {"quant_cfg": [{"quantizer_name": "*", "enable": False},
                            {"quantizer_name": "*weight_quantizer", "enable": True,
                             "cfg": {"num_bits": 4, "block_sizes": {-1: 16}}}], "algorithm": "max"}  # fmt: skip

    def decoded(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        groups = weight.reshape(*scale.shape, -1)
        return ((groups / scale[..., None]).round() * scale[..., None] + 0.0).reshape(weight.shape)

    for name, (rows, cols) in [("plain", (26, 48)), ("inputs", (14, 64))]:
        [module] = mtq.quantize(nn.Sequential(layer(rows, cols)), config, lambda own: None)
        weight, scale = module.weight.data, get_weight_scaling_factor(module)
        parts = {"m.weight": pack_int4_in_uint8(weight, scale, 16), "m.weight_scale": scale}
        expected = decoded(weight, scale)
        torch.testing.assert_close(module.weight_quantizer(weight).detach(), expected, rtol=1e-6, atol=0)
        if name == "inputs":
            parts["m.pre_quant_scale"] = torch.exp(torch.randn(cols, generator=CHANCE) / 2)
            expected = expected * parts["m.pre_quant_scale"]
        save(f"modelopt-int4-{name}", parts, expected, {})
    stack = torch.stack([layer(6, 32).weight.data for _ in range(3)])
    scale = stack.reshape(3, 6, 2, 16).abs().amax(-1) / 7
    parts = {"m.weight": pack_int4_in_uint8(stack, scale, 16), "m.weight_scale": scale}
    save("modelopt-int4-experts", parts, decoded(stack, scale), {})


def modelopt_blocks() -> None:
    """FP8 in blocks, whose scales ModelOpt's own export leaves in four dimensions."""
    from modelopt.torch.quantization.qtensor import FP8QTensor

    blocks = {-1: 16, -2: 16}
    made, scale = FP8QTensor.quantize(layer(32, 48).weight.data, block_sizes=blocks)
    expected = made.dequantize(torch.float32, scale=scale, block_sizes=blocks)
    codes = {"m.weight": made._quantized_data, "m.weight_scale": scale[:, None, :, None]}
    save("modelopt-fp8-blocks", codes, expected, {"dtype": "bfloat16"})


if __name__ == "__main__":
    for package, write in [
        ("hqq", hqq),
        ("torchao", torchao),
        ("mslk", torchao_packed),
        ("optimum", quanto),
        ("optimum", quanto_packed),
        ("modelopt", modelopt),
        ("modelopt", modelopt_blocks),
        ("modelopt", modelopt_int4),
    ]:
        if find_spec(package):
            write()
