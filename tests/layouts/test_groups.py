"""How compressed-tensors' own presets describe inputs of layers, and which settings in config.json a weight has."""

from __future__ import annotations

from typing import Any

import pytest

from quantcli.errors import DataError
from quantcli.layouts.groups import INPUTS, KNOWN, Stated, activations_of

TOKEN = {"symmetric": True, "strategy": "token", "dynamic": True}
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "W8A8": ("int8", {"num_bits": 8, "type": "int", **TOKEN}),
    "FP8_DYNAMIC": ("fp8", {"num_bits": 8, "type": "float", **TOKEN}),
    "W4AFP8": ("fp8", {"num_bits": 8, "type": "float", **TOKEN}),
    "FP8": ("fp8-static", {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False,
                           "observer": "static_minmax"}),
    "FP8_BLOCK": ("fp8-group", {"num_bits": 8, "type": "float", "symmetric": True, "group_size": 128,
                                "strategy": "group", "dynamic": True}),
    "NVFP4": ("nvfp4", {"num_bits": 4, "type": "float", "symmetric": True, "group_size": 16, "dynamic": "local",
                        "strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"}),
    "MXFP4": ("mxfp4", {"num_bits": 4, "type": "float", "symmetric": True, "group_size": 32, "strategy": "group",
                        "dynamic": True, "scale_dtype": "torch.uint8"}),
    "MXFP8": ("mxfp8", {"num_bits": 8, "type": "float", "symmetric": True, "group_size": 32, "strategy": "group",
                        "dynamic": True, "scale_dtype": "torch.uint8"}),
    "W4A4": ("none", {"num_bits": 4, "type": "int", **TOKEN}),
    "W4A16": ("none", {}),
}  # fmt: skip
"""Settings of inputs as the presets of compressed-tensors 0.20 have them, and what they are called here."""


@pytest.mark.parametrize("preset", PRESETS)
def test_inputs_of_the_library(preset: str) -> None:
    name, stated = PRESETS[preset]
    assert activations_of(stated) == name
    if name == "none":
        return
    for key in stated.keys() - {"scale_dtype", "observer"}:
        assert activations_of({**stated, key: 99}) == "none", key
    assert INPUTS[name].items() <= stated.items(), "what is written is what the library writes"


def config(*groups: dict[str, Any], **whole: Any) -> dict[str, Any]:
    named = {f"group_{i}": group for i, group in enumerate(groups)}
    return {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": named, **whole}}


LINEAR = {"targets": ["Linear"], "weights": {"num_bits": 4}}
ONE = {"targets": ["a.b"], "weights": {"num_bits": 8}, "input_activations": PRESETS["W8A8"][1]}


@pytest.mark.parametrize("general", [["Linear"], ["re:.*proj"], ["a.c", "Linear"]])
def test_groups_that_name_a_module_come_before_classes(general: list[str]) -> None:
    """and patterns; module names have dots, classes have none"""
    stated = Stated(config({**LINEAR, "targets": general}, ONE))
    assert [s["num_bits"] for s in stated.settings("a.b.weight")] == [8] and stated.inputs("a.b.weight") == "int8"
    assert [s["num_bits"] for s in stated.settings("x.y.weight")] == [4] and stated.inputs("x.y.weight") == "none"


def test_a_group_of_other_modules_does_not_apply() -> None:
    assert Stated(config(ONE)).settings("x.y.weight") == [] and Stated(config(ONE)).inputs("x.y.weight") == "none"
    assert Stated({}).settings("a.b.weight") == Stated(config({"targets": "a.b"})).settings("a.b.weight") == []


def test_settings_of_other_methods_are_not_taken() -> None:
    other = config(LINEAR)
    other["quantization_config"]["quant_method"] = "gptq"
    assert Stated(other).settings("a.weight") == []
    del other["quantization_config"]["quant_method"]  # as llm-compressor once wrote it
    assert len(Stated(other).settings("a.weight")) == 1


@pytest.mark.parametrize(("version", "older"), [
    ("0.17.9", True), ("0.18.0", False), ("0.9.1", True), ("1.2", False), ("0.20.0.dev1", False), ("", False),
    (None, False),
])  # fmt: skip
def test_codes_crossed_no_words_before_018(version: str | None, older: bool) -> None:
    assert Stated(config(LINEAR, version=version)).older == older
    assert not Stated(config(LINEAR)).older


@pytest.mark.parametrize("name", KNOWN)
def test_formats_that_are_read(name: str) -> None:
    for where in ({**LINEAR, "format": name}, LINEAR):
        found = Stated(config(where, format=name)).settings("a.weight")
        assert [s["format"] for s in found] == [name]


def test_formats_that_are_not_read() -> None:
    for format_ in ("marlin-24", "xpack-quantized"):
        with pytest.raises(DataError, match=f"compressed-tensors format {format_} is not supported"):
            Stated(config({**LINEAR, "format": format_})).settings("a.weight")
    mixed = Stated(config({**LINEAR, "format": "marlin-24"}, {**LINEAR, "format": "dense"})).settings("a.weight")
    assert [s["format"] for s in mixed] == ["dense"]


def test_the_formats_of_the_library() -> None:
    """Of CompressionFormat in compressed-tensors 0.20, what is neither sparse nor microscaling."""
    quantized = {f"{kind}-quantized" for kind in ("pack", "int", "naive", "float")}
    assert set(KNOWN) == quantized | {"mixed-precision", "dense"}
