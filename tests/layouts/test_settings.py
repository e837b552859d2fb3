"""What config.json and the header of a GPTQ or AWQ model say, as GPTQModel, transformers and vLLM read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from quantcli import Scheme
from quantcli.layouts.writer import Conversion, named
from quantcli.tensors.decided import Kept, Quantized
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import grouping_of

SIZES = (16, 32, 64, 128, 256, 512, 1024)


def converted(target: str, beside: Callable[[str], Any] = lambda name: None, **fields: Any) -> Conversion:
    """A layer whose q_proj is quantized, and its o_proj and norm are kept."""
    scheme, info = Scheme(bits=fields.pop("bits", 4), **fields), TensorInfo("l.0.q_proj.weight", "F16", (64, 2048))
    plan = grouping_of(info.shape, scheme)
    return named(target).convert([
        Quantized(info=info, reason="default", scheme=scheme, grouping=plan, scale_dtype="F16"),
        Kept(info=TensorInfo("l.0.o_proj.weight", "F16", (64, 64)), reason="exclude"),
        Kept(info=TensorInfo("l.0.norm.weight", "F16", (64,)), reason="norm"),
    ], beside)  # fmt: skip


@pytest.mark.parametrize("target", ["awq", "gptq"])
@pytest.mark.parametrize("size", SIZES)
def test_settings_of_a_model(target: str, size: int) -> None:
    """Of every size of groups; the header says that tensors are those of PyTorch, without which transformers stops."""
    found = converted(target, group_size=size)
    assert list(found.header(["x"]).items()) == [("format", "pt")]
    told = found.config["quantization_config"]
    assert (told["quant_method"], told["bits"], told["group_size"]) == (target, 4, size)
    if target == "awq":
        assert (told["zero_point"], told["version"]) == (True, "gemm")
        assert told["modules_to_not_convert"] == ["l.0.o_proj", "lm_head"], "a norm is no Linear layer"
    else:
        assert (told["sym"], told["desc_act"], told["checkpoint_format"]) == (True, False, "gptq")
        assert list(told["dynamic"]) == [r"-:^l\.0\.o_proj$"] and not told["lm_head"]


@pytest.mark.parametrize(("fields", "version", "for_vllm"), [
    ({"bits": 4}, "gptq", False), ({"bits": 8}, "gptq", False), ({"bits": 3}, "gptq", True),
    ({"bits": 4, "symmetric": False}, "gptq_v2", True), ({"bits": 2, "symmetric": False}, "gptq_v2", True),
])  # fmt: skip
def test_versions_of_gptq(fields: dict[str, Any], version: str, for_vllm: bool) -> None:
    found = converted("gptq", group_size=128, **fields)
    told = found.config["quantization_config"]
    assert told["checkpoint_format"] == version and told["sym"] == (version == "gptq")
    assert ("vLLM loads only symmetric weights of 4 or 8 bits" in found.notes) == for_vllm


@pytest.mark.parametrize("beside", ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", None])
def test_a_tokenizer_that_gptqmodel_needs(beside: str | None) -> None:
    found = converted("gptq", lambda name: b"{}" if name == beside else None, group_size=128)
    assert ("GPTQModel needs the tokenizer in the folder" in found.notes) == (beside is None)
