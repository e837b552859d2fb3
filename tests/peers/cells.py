"""What is run: which clients read which target, in which schemes, and what they refuse.

Every cell of the table in RESULTS.md is a scheme, a target and a client of these lists. A client that refuses has to do
so in the words given here: when it learns to load a file, or stops for another reason, the run fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

EXACT, SINGLE = 0.0, 1e-6
"""How far a client's weights may be from ours, as a share of the largest of the tensor: not at all, or by the last bits
of float32, where a product and a sum are rounded in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """title: head of its column, with versions of packages in braces. apart: one of the limits above. rounds: it
    multiplies in the dtype of the scales, so that its weights are ours rounded to that."""

    title: str
    environment: str = "current"
    apart: float = EXACT
    rounds: bool = False
    fast: bool = False


CLIENTS = {
    "converter": Client(title="compressed-tensors {compressed-tensors}, converter", rounds=True, fast=True),
    "converter-awq": Client(title="compressed-tensors {compressed-tensors}, AutoAWQConverter", rounds=True, fast=True),
    "transformers": Client(title="transformers {transformers}"),
    "transformers-dequantize": Client(title="transformers {transformers}, dequantize=True", rounds=True),
    "older-transformers": Client(title="transformers {transformers}, compressed-tensors {compressed-tensors}",
                                 environment="older"),
    "older-transformers-decompress": Client(title="the same, run_compressed=False", environment="older"),
    "transformers-gguf": Client(title="transformers {transformers}, gguf_file"),
    "mlx": Client(title="mlx {mlx}", fast=True),
    "mlx-lm": Client(title="mlx-lm {mlx-lm}"),
    "gguf": Client(title="gguf {gguf}", fast=True),
    "llamacpp": Client(title="llama-cpp-python {llama-cpp-python}", environment="llamacpp"),
    "onnxruntime": Client(title="onnxruntime {onnxruntime}", fast=True),
    "bitsandbytes": Client(title="bitsandbytes {bitsandbytes}"),
    "comfy-kitchen": Client(title="comfy-kitchen {comfy-kitchen}"),
    "gptqmodel": Client(title="gptqmodel {gptqmodel}", environment="gptqmodel"),
}  # fmt: skip

READERS = {
    "compressed-tensors": ("converter", "transformers", "transformers-dequantize", "older-transformers",
                           "older-transformers-decompress"),
    "mlx": ("mlx", "mlx-lm"),
    "gguf": ("gguf", "llamacpp", "transformers-gguf"),
    "awq": ("converter-awq", "mlx-lm", "gptqmodel"),
    "gptq": ("gptqmodel", "mlx-lm"),
    "onnx": ("onnxruntime",),
    "comfyui": ("comfy-kitchen", "transformers", "transformers-dequantize"),
    "bnb-nf4": ("bitsandbytes", "transformers"),
}  # fmt: skip
"""The clients of each target, in the order of the columns."""


@dataclass(frozen=True, slots=True)
class Case:
    """A target and a scheme, as options of quantcli; and, by client, what it says when it refuses."""

    target: str
    flags: str
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def scheme(self) -> str:
        """The options in words."""
        return described(self.flags.split())


GROUPS = {"-1": "channel", "0": "tensor"}


def described(flags: list[str]) -> str:
    """A scheme as the rows of the table name it.

    >>> described("--bits 4 --group-size 32 --asymmetric".split())
    '4 bits, groups of 32, asymmetric'
    """
    given = dict(zip(flags, [*flags[1:], ""]))
    group = given["--group-size"]
    first = given["--type"] if "--type" in given else f"{given['--bits']} bits"
    said = [first, GROUPS.get(group, f"groups of {group}")]
    if "--asymmetric" in given:
        said.append("float offset" if given.get("--zero-point") == "float" else "asymmetric")
    if "--override" in given:
        said.append(given["--override"].replace(":bits=", " ") + " bits")
    return ", ".join(said)


CASES = [
    Case("compressed-tensors", "--bits 2 --group-size 32"),
    Case("compressed-tensors", "--bits 3 --group-size 64"),
    Case("compressed-tensors", "--bits 4 --group-size 32"),
    Case("compressed-tensors", "--bits 4 --group-size 64"),
    Case("compressed-tensors", "--bits 4 --group-size -1"),
    Case("compressed-tensors", "--bits 4 --group-size 0"),
    Case("compressed-tensors", "--bits 5 --group-size 64"),
    Case("compressed-tensors", "--bits 6 --group-size 32"),
    Case("compressed-tensors", "--bits 7 --group-size -1"),
    Case("compressed-tensors", "--bits 8 --group-size 64"),
    Case("compressed-tensors", "--bits 8 --group-size -1"),
    Case("compressed-tensors", "--bits 2 --group-size 32 --asymmetric"),
    Case("compressed-tensors", "--bits 4 --group-size 32 --asymmetric"),
    Case("compressed-tensors", "--bits 4 --group-size -1 --asymmetric"),
    Case("compressed-tensors", "--bits 6 --group-size -1 --asymmetric"),
    Case("compressed-tensors", "--bits 8 --group-size 64 --asymmetric"),
    Case("compressed-tensors", "--bits 4 --group-size 64 --override *.down_proj:bits=8"),
    Case("mlx", "--bits 2 --group-size 32"),
    Case("mlx", "--bits 3 --group-size 64 --asymmetric"),
    Case("mlx", "--bits 4 --group-size 64"),
    Case("mlx", "--bits 4 --group-size 32 --asymmetric"),
    Case("mlx", "--bits 4 --group-size 32 --asymmetric --zero-point float"),
    Case("mlx", "--bits 5 --group-size -1"),
    Case("mlx", "--bits 6 --group-size 0"),
    Case("mlx", "--bits 8 --group-size 64"),
    Case("mlx", "--bits 4 --group-size 64 --override *.down_proj:bits=8"),
    Case("awq", "--bits 4 --group-size 64"),
    Case("awq", "--bits 4 --group-size 32 --asymmetric"),
    Case("awq", "--bits 4 --group-size -1 --asymmetric"),
    Case("gptq", "--bits 2 --group-size 32"),
    Case("gptq", "--bits 3 --group-size 64"),
    Case("gptq", "--bits 4 --group-size 64"),
    Case("gptq", "--bits 4 --group-size -1"),
    Case("gptq", "--bits 8 --group-size -1"),
    Case("gptq", "--bits 3 --group-size 32 --asymmetric"),
    Case("gptq", "--bits 4 --group-size 32 --asymmetric"),
    Case("gptq", "--bits 8 --group-size 64 --asymmetric"),
    Case("onnx", "--bits 2 --group-size 16 --asymmetric"),
    Case("onnx", "--bits 4 --group-size 32"),
    Case("onnx", "--bits 4 --group-size 64 --asymmetric"),
    Case("onnx", "--bits 8 --group-size -1 --asymmetric"),
    Case("onnx", "--bits 8 --group-size 0"),
    Case("comfyui", "--bits 8 --group-size -1"),
    Case("comfyui", "--bits 8 --group-size 0"),
    Case("bnb-nf4", "--type nf4 --group-size 64"),
    Case("bnb-nf4", "--type nf4 --group-size -1"),
]
