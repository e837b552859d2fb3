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
    """A target, a scheme as options of quantcli, and the model that is quantized: one of decoding.MODELS.

    A kind of the target (`--to gguf:Q4_K_M`) and the name of a scheme stand among the options.
    """

    target: str
    flags: str
    model: str = "tiny-llama"

    @property
    def measured(self) -> bool:
        """Whether the scheme takes scales of inputs, of `--activation-scales`."""
        return self.option("scheme") in ("FP8", "NVFP4")

    @property
    def to(self) -> str:
        """What --to says."""
        return self.option("to") or self.target

    def option(self, name: str) -> str:
        """The value of an option; empty where it is not given."""
        words = [*self.flags.split(), ""]
        return words[words.index(f"--{name}") + 1] if f"--{name}" in words else ""

    @property
    def scheme(self) -> str:
        """The options in words.

        >>> Case("mlx", "--bits 4 --group-size 32 --asymmetric").scheme
        '4 bits, groups of 32, asymmetric'
        >>> Case("gguf", "--to gguf:Q4_K_M", "flux").scheme
        'Q4_K_M, flux'
        """
        if named(self):
            return f"{self.option('scheme') or self.to.partition(':')[2] or self.target}, {self.model}"
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


def never(case: Case) -> bool:
    return False


def odd(case: Case) -> bool:
    """Widths that do not divide a word, whose packing changed with compressed-tensors 0.18."""
    return case.option("bits") in ("3", "5", "6", "7") or case.option("scheme") in ("W3A16", "W5A16", "W6A16", "W7A16")


def asymmetric(case: Case) -> bool:
    return "--asymmetric" in case.flags or case.option("scheme").endswith("_ASYM")


def mixed(case: Case) -> bool:
    return bool(case.option("override"))


def a_language(case: Case) -> bool:
    """Not one of the models of pictures, which are single files."""
    return case.model not in PICTURES


def named(case: Case) -> bool:
    """A scheme by its name, or a kind of the target."""
    return case.model != "tiny-llama"


def unnamed(case: Case) -> bool:
    return not named(case)


def rows_of_bytes(case: Case) -> bool:
    """int8 with a scale per row, in a folder: compressed-tensors reads the same file."""
    return case.option("bits") == "8"


def scheme(*names: str) -> Callable[[Case], bool]:
    """Whether a case has one of these schemes by name."""
    return lambda case: case.option("scheme") in names


def small_floats(case: Case) -> bool:
    """Floats whose scales are a byte, which compressed-tensors decodes to bfloat16 whatever is asked for."""
    return case.option("scheme").startswith(("NVFP4", "MXFP4", "MXFP8"))


def others(case: Case) -> bool:
    return not small_floats(case)


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A client of a target.

    function: of clients.py. title: head of its column, with versions of packages in braces. rounds: it multiplies in
    the dtype of the scales, so that its weights are ours rounded to that. apart: how far they may be from that, as a
    share of the largest of a tensor. decibels: how far the SQNR it sees may be from the report. refuses: what it
    refuses, and in which words. asked: the cases that it is asked for. bytewise: those where it rounds the inputs of
    layers to bytes, and with them the identity that is sent through, so that its weights are known to 2^-7 alone.
    """

    function: str
    title: str
    environment: str = "current"
    rounds: bool = False
    apart: float = 0.0
    decibels: float = 0.001
    refuses: tuple[tuple[Callable[[Case], bool], str], ...] = ()
    asked: Callable[[Case], bool] = always
    bytewise: Callable[[Case], bool] = never
    fast: bool = False

    @property
    def head(self) -> str:
        """The title with versions."""
        return re.sub("{(.*?)}", lambda found: pinned(self.environment)[found[1]], self.title)

    def refusal(self, case: Case) -> str:
        """The words in which it refuses a case; empty when it loads it."""
        return next((words for applies, words in self.refuses if applies(case)), "")


PICTURES = ("flux", "wan", "sdxl")
"""Models of pictures, whose GGUFs are for ComfyUI-GGUF."""
BYTES = scheme("W8A8", "W4A8")
OLD_PACKING = (odd, "size mismatch for weight_packed")
OLD_NAMES = (
    (scheme("FP8_BLOCK"), r"is not divisible by block_height"),
    (scheme("NVFP4A16", "NVFP4", "MXFP4A16", "MXFP4"), r"unexpected_keys: .*weight_scale|Dynamo failed to run FX node"),
    (scheme("MXFP8A16", "MXFP8"), "Unable to find mxfp8-quantized"),
)
"""What compressed-tensors 0.13 does not have."""
GPTQMODEL = Client(function="gptqmodel", title="gptqmodel {gptqmodel}", environment="gptqmodel", rounds=True)

CLIENTS = {
    "compressed-tensors": [
        Client(function="converter", title="compressed-tensors {compressed-tensors}", rounds=True, fast=True,
               asked=unnamed),
        Client(function="compressor", title="compressed-tensors {compressed-tensors}, a weight alone", asked=named,
               rounds=True),
        Client(function="transformers", title="transformers {transformers}", asked=others, bytewise=BYTES,
               refuses=((asymmetric, r"weight_zero_point \| MISMATCH"),)),
        Client(function="transformers-auto", title="transformers {transformers}, bfloat16", asked=small_floats),
        Client(function="transformers-dequantize", title="transformers {transformers}, `dequantize=True`", rounds=True,
               refuses=((mixed, "must be divisble by the given group_size"),)),
        Client(function="transformers", title="transformers {transformers}, compressed-tensors {compressed-tensors}",
               environment="older", bytewise=BYTES,
               refuses=(OLD_PACKING, *OLD_NAMES, (asymmetric, "unexpected_keys: .*weight_zero_point"))),
        Client(function="transformers-decompress", title="the same, `run_compressed=False`", environment="older",
               bytewise=BYTES,
               refuses=(OLD_PACKING, *OLD_NAMES, (asymmetric, "size of tensor a .* must match the size of tensor b"))),
    ],
    "mlx": [
        Client(function="mlx", title="mlx {mlx}", fast=True),
        Client(function="mlx-lm", title="mlx-lm {mlx-lm}"),
    ],
    "gguf": [
        Client(function="gguf", title="gguf {gguf}", fast=True),
        Client(function="llamacpp", title="llama-cpp-python {llama-cpp-python}", environment="llamacpp",
               asked=a_language),
        Client(function="transformers-gguf", title="transformers {transformers}, gguf_file", asked=a_language),
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
        Client(function="comfy-kitchen", title="comfy-kitchen {comfy-kitchen}", environment="comfyui"),
        Client(function="transformers", title="transformers {transformers}", asked=rows_of_bytes),
        Client(function="transformers-dequantize", title="transformers {transformers}, `dequantize=True`",
               asked=rows_of_bytes),
    ],
    "fp8-blocks": [
        Client(function="converter-fp8", title="compressed-tensors {compressed-tensors}, FP8BlockDequantizer"),
        # It multiplies in the dtype of the original, bfloat16.
        Client(function="transformers-auto", title="transformers {transformers}", apart=2.0**-8, decibels=0.1),
    ],
    "modelopt": [
        Client(function="modelopt", title="nvidia-modelopt {nvidia-modelopt}", environment="modelopt"),
        Client(function="converter-modelopt", title="compressed-tensors {compressed-tensors}, ModelOptNvfp4Converter",
               asked=scheme("NVFP4A16", "NVFP4")),
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
        "--bits 3 --group-size 32",
        "--bits 5 --group-size -1",
        "--bits 5 --group-size 64",
        "--bits 5 --group-size 32 --asymmetric",
        "--bits 6 --group-size 0",
        "--bits 6 --group-size 64",
        "--bits 8 --group-size 64",
        "--bits 8 --group-size -1",
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
        "--bits 8 --group-size 64",
        "--bits 8 --group-size -1",
        "--bits 3 --group-size 32 --asymmetric",
        "--bits 4 --group-size 32 --asymmetric",
        "--bits 8 --group-size 64 --asymmetric",
    ],
    "onnx": [
        "--bits 2 --group-size 16",
        "--bits 2 --group-size 16 --asymmetric",
        "--bits 4 --group-size 32",
        "--bits 4 --group-size 64 --asymmetric",
        "--bits 8 --group-size 32",
        "--bits 8 --group-size -1",
        "--bits 8 --group-size -1 --asymmetric",
        "--bits 8 --group-size 0",
    ],
    "comfyui": ["--bits 8 --group-size -1", "--bits 8 --group-size 0"],
    "fp8-blocks": [],
    "modelopt": [],
    "bnb-nf4": ["--type nf4 --group-size 64", "--type nf4 --group-size -1"],
}
FILE_TYPES = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M", "Q5_0",
              "Q5_1", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "MXFP4_MOE")  # fmt: skip
KINDS = ("float8_tensorwise", "fp8_scaled", "int8_tensorwise", "int8_convrot", "mxfp8", "nvfp4")
NAMES = ("W2A16", "W3A16", "W4A16", "W4A16_ASYM", "W5A16", "W6A16", "W7A16", "W8A16", "W8A8", "W4A8", "W4AFP8",
         "FP8_DYNAMIC", "FP8_BLOCK", "FLOAT8_TENSORWISE", "FP8", "NVFP4A16", "NVFP4", "MXFP4A16", "MXFP4", "MXFP8A16",
         "MXFP8")  # fmt: skip
NAMED = {
    "compressed-tensors": [*((f"--scheme {name}", "llama") for name in NAMES)],
    "gguf": [
        *((f"--to gguf:{kind}", "llama") for kind in FILE_TYPES),
        ("--scheme MXFP4", "llama"),
        ("--to gguf:Q4_K_M", "flux"),
        ("--to gguf:Q5_K_S", "wan"),
        ("--to gguf:Q4_K_M", "sdxl"),
        ("--to gguf:Q8_0", "sdxl"),
    ],
    "comfyui": [(f"--to comfyui:{kind}", model) for model in ("flux", "llama") for kind in KINDS],
    "fp8-blocks": [("", "llama")],
    "modelopt": [(f"--scheme {name}", "llama") for name in ("NVFP4A16", "NVFP4", "FP8_DYNAMIC", "FP8", "MXFP8")],
}
"""Schemes by name and kinds of a target, and the models that are quantized: their rows are of whole super-blocks."""

CASES = [
    case
    for target in CLIENTS
    for case in [
        *(Case(target, flags) for flags in SCHEMES[target]),
        *(Case(target, flags, model) for flags, model in NAMED.get(target, [])),
    ]
]
