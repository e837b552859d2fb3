"""What is run: the schemes and the clients of each target, and what a client refuses.

Every cell of the tables in RESULTS.md is a target, a scheme and a client of these lists. A client that refuses has to
do so in the words given here: when it learns to load a file, or stops for another reason, the run fails.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from environments import pinned


@dataclass(frozen=True, slots=True)
class Case:
    """A target and a scheme, as options of quantcli."""

    target: str
    flags: str

    def option(self, name: str) -> str:
        """The value of an option; empty where it is not given."""
        words = [*self.flags.split(), ""]
        return words[words.index(f"--{name}") + 1] if f"--{name}" in words else ""

    @property
    def scheme(self) -> str:
        """The options in words.

        >>> Case("mlx", "--bits 4 --group-size 32 --asymmetric").scheme
        '4 bits, groups of 32, asymmetric'
        """
        group = self.option("group-size")
        first = f"{self.option('bits')} bits" if self.option("bits") else self.option("type")
        said = [first, {"-1": "channel", "0": "tensor"}.get(group, f"groups of {group}")]
        if "--asymmetric" in self.flags:
            said.append("float offset" if self.option("zero-point") == "float" else "asymmetric")
        if self.option("override"):
            own = self.option("override").removeprefix("*.")
            said.append(re.sub(r":(?:format=int,)?bits=(\d+).*", r" \1 bits", own))
        return ", ".join(said)


def always(case: Case) -> bool:
    return True


def odd(case: Case) -> bool:
    """Widths that do not divide a word, whose packing changed with compressed-tensors 0.18."""
    return case.option("bits") in ("3", "5", "6", "7")


def asymmetric(case: Case) -> bool:
    return "--asymmetric" in case.flags


def mixed(case: Case) -> bool:
    return bool(case.option("override"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A client of a target.

    function: of clients.py. title: head of its column, with versions of packages in braces. rounds: it multiplies in
    the dtype of the scales, so that its weights are ours rounded to that. apart: how far they may be from that, as a
    share of the largest of a tensor. decibels: how far the SQNR it sees may be from the report. refuses: what it
    refuses, and in which words.
    """

    function: str
    title: str
    environment: str = "current"
    rounds: bool = False
    apart: float = 0.0
    decibels: float = 0.001
    refuses: tuple[tuple[Callable[[Case], bool], str], ...] = ()
    fast: bool = False

    @property
    def head(self) -> str:
        """The title with versions."""
        return re.sub("{(.*?)}", lambda found: pinned(self.environment)[found[1]], self.title)

    def refusal(self, case: Case) -> str:
        """The words in which it refuses a case; empty when it loads it."""
        return next((words for applies, words in self.refuses if applies(case)), "")


OLD_PACKING = (odd, "size mismatch for weight_packed")
GPTQMODEL = Client(function="gptqmodel", title="gptqmodel {gptqmodel}", environment="gptqmodel", rounds=True)

CLIENTS = {
    "compressed-tensors": [
        Client(function="converter", title="compressed-tensors {compressed-tensors}", rounds=True, fast=True),
        Client(function="transformers", title="transformers {transformers}",
               refuses=((asymmetric, r"weight_zero_point \| MISMATCH"),)),
        Client(function="transformers-dequantize", title="transformers {transformers}, `dequantize=True`", rounds=True,
               refuses=((mixed, "must be divisble by the given group_size"),)),
        Client(function="transformers", title="transformers {transformers}, compressed-tensors {compressed-tensors}",
               environment="older",
               refuses=(OLD_PACKING, (asymmetric, "unexpected_keys: .*weight_zero_point"))),
        Client(function="transformers-decompress", title="the same, `run_compressed=False`", environment="older",
               refuses=(OLD_PACKING, (asymmetric, "The size of tensor a .* must match the size of tensor b"))),
    ],
    "mlx": [
        Client(function="mlx", title="mlx {mlx}", fast=True),
        Client(function="mlx-lm", title="mlx-lm {mlx-lm}"),
    ],
    "gguf": [
        Client(function="gguf", title="gguf {gguf}", fast=True),
        Client(function="llamacpp", title="llama-cpp-python {llama-cpp-python}", environment="llamacpp"),
        Client(function="transformers-gguf", title="transformers {transformers}, gguf_file"),
    ],
    "awq": [
        Client(function="converter-awq", title="compressed-tensors {compressed-tensors}, AutoAWQConverter",
               rounds=True, fast=True),
        # MLX has -zero * scale, rounded to float16, where AWQ has zero points.
        Client(function="mlx-lm", title="mlx-lm {mlx-lm}", apart=2.0**-11, decibels=0.005),
        GPTQMODEL,
    ],
    "gptq": [
        GPTQMODEL,
        Client(function="mlx-lm", title="mlx-lm {mlx-lm}", refuses=((always, "g_idx|Only bits=. is supported"),)),
    ],
    "onnx": [Client(function="onnxruntime", title="onnxruntime {onnxruntime}", fast=True)],
    "comfyui": [
        Client(function="comfy-kitchen", title="comfy-kitchen {comfy-kitchen}"),
        Client(function="transformers", title="transformers {transformers}"),
        Client(function="transformers-dequantize", title="transformers {transformers}, `dequantize=True`"),
    ],
    "bnb-nf4": [
        Client(function="bitsandbytes", title="bitsandbytes {bitsandbytes}"),
        # It rounds levels and products to bfloat16, the dtype of the original.
        Client(function="transformers", title="transformers {transformers}", apart=2.0**-8, decibels=0.02),
    ],
}  # fmt: skip
"""In the order of the tables and of their columns."""

SCHEMES = {
    "compressed-tensors": [
        "--bits 2 --group-size 32",
        "--bits 3 --group-size 64",
        "--bits 4 --group-size 32",
        "--bits 4 --group-size 64",
        "--bits 4 --group-size -1",
        "--bits 4 --group-size 0",
        "--bits 5 --group-size 64",
        "--bits 6 --group-size 32",
        "--bits 7 --group-size -1",
        "--bits 8 --group-size 64",
        "--bits 8 --group-size -1",
        "--bits 2 --group-size 32 --asymmetric",
        "--bits 4 --group-size 32 --asymmetric",
        "--bits 4 --group-size -1 --asymmetric",
        "--bits 6 --group-size -1 --asymmetric",
        "--bits 8 --group-size 64 --asymmetric",
        "--bits 4 --group-size 64 --override *.down_proj:bits=8",
    ],
    "mlx": [
        "--bits 2 --group-size 32",
        "--bits 3 --group-size 64 --asymmetric",
        "--bits 4 --group-size 64",
        "--bits 4 --group-size 32 --asymmetric",
        "--bits 4 --group-size 32 --asymmetric --zero-point float",
        "--bits 5 --group-size -1",
        "--bits 6 --group-size 0",
        "--bits 8 --group-size 64",
        "--bits 4 --group-size 64 --override *.down_proj:bits=8",
        "--type fp4 --group-size 32 --scale-dtype float8_e8m0",
        "--type fp8-e4m3 --group-size 32 --scale-dtype float8_e8m0",
        "--type fp4 --group-size 16 --scale-dtype float8_e4m3_alone",
        "--type fp4 --group-size 32 --scale-dtype float8_e8m0 --override *.down_proj:format=int,bits=8,group_size=64",
    ],
    "gguf": [
        "--bits 4 --group-size 32",
        "--bits 4 --group-size 64",
        "--bits 4 --group-size 32 --asymmetric",
        "--bits 5 --group-size 32",
        "--bits 5 --group-size 64 --asymmetric",
        "--bits 8 --group-size -1",
    ],
    "awq": [
        "--bits 4 --group-size 64",
        "--bits 4 --group-size 32 --asymmetric",
        "--bits 4 --group-size -1 --asymmetric",
    ],
    "gptq": [
        "--bits 2 --group-size 32",
        "--bits 3 --group-size 64",
        "--bits 4 --group-size 64",
        "--bits 4 --group-size -1",
        "--bits 8 --group-size -1",
        "--bits 3 --group-size 32 --asymmetric",
        "--bits 4 --group-size 32 --asymmetric",
        "--bits 8 --group-size 64 --asymmetric",
    ],
    "onnx": [
        "--bits 2 --group-size 16 --asymmetric",
        "--bits 4 --group-size 32",
        "--bits 4 --group-size 64 --asymmetric",
        "--bits 8 --group-size -1 --asymmetric",
        "--bits 8 --group-size 0",
    ],
    "comfyui": ["--bits 8 --group-size -1", "--bits 8 --group-size 0"],
    "bnb-nf4": ["--type nf4 --group-size 64", "--type nf4 --group-size -1"],
}

CASES = [Case(target, flags) for target in CLIENTS for flags in SCHEMES[target]]
