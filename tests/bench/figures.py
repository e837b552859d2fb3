"""What is timed: command lines on a gigabyte of weights, each beside its floor and its goal."""

from __future__ import annotations

from dataclasses import dataclass

PLAIN = "--calibration minmax"


@dataclass(frozen=True)
class Figure:
    """A run. words: after `quantcli`; MODEL, FOLDER and QUANTIZED stand for files, OUT for a fresh name. share: what
    the floor writes, as a share of what it reads. goal: how many floors it may take. everywhere: whether it is timed
    with every set of kernels. peers: those that do the same work, and how many times as fast as them it should be."""

    title: str
    words: str
    share: float
    goal: float | None = None
    everywhere: bool = False
    dtype: str = "BF16"
    peers: tuple[tuple[str, float], ...] = ()


Q4_0, Q4_K = "libllama, Q4_0 (pure)", "libllama, Q4_K (pure)"

FIGURES = (
    Figure(
        "int4 g128 min-max", f"quantize MODEL --bits 4 {PLAIN} -o OUT.safetensors", 0.258, 2.8, True,
        peers=((Q4_0, 2.3),),
    ),
    Figure(
        "int4 g128 default", "quantize MODEL --bits 4 -o OUT.safetensors", 0.258, 5, True,
        peers=((Q4_0, 1.3), (Q4_K, 20)),
    ),
    Figure("int4 g128 mse, nearest", "quantize MODEL --bits 4 --calibration mse -o OUT.safetensors", 0.258),
    Figure(
        "int4 g32 min-max", f"quantize MODEL --bits 4 --group-size 32 {PLAIN} -o OUT.safetensors", 0.281,
        peers=((Q4_0, 1.8),),
    ),
    Figure(
        "int4 g32 default", "quantize MODEL --bits 4 --group-size 32 -o OUT.safetensors", 0.281, peers=((Q4_0, 0.9),)
    ),
    Figure(
        "gguf Q4_0 min-max", f"quantize MODEL --bits 4 --to gguf --container {PLAIN} -o OUT.gguf", 0.281,
        peers=((Q4_0, 1.8),),
    ),
    Figure(
        "gguf Q4_0 default", "quantize MODEL --bits 4 --to gguf --container -o OUT.gguf", 0.281, peers=((Q4_0, 0.9),)
    ),
    Figure(
        "int8 per channel min-max", f"quantize MODEL --bits 8 --group-size -1 {PLAIN} -o OUT.safetensors", 0.5, 2.5,
        True,
    ),
    Figure("int4 affine min-max", f"quantize MODEL --bits 4 --asymmetric {PLAIN} -o OUT.safetensors", 0.26, 3.5, True),
    Figure("int4 affine default", "quantize MODEL --bits 4 --asymmetric -o OUT.safetensors", 0.26, 7, True),
    Figure(
        "int4 float offsets mse",
        "quantize MODEL --bits 4 --asymmetric --zero-point float --calibration mse -o OUT.safetensors", 0.266,
    ),
    Figure("int3 g128 default", "quantize MODEL --bits 3 -o OUT.safetensors", 0.195),
    Figure("nf4 g64", "quantize MODEL --type nf4 --group-size 64 -o OUT.safetensors", 0.266),
    Figure("FP8_DYNAMIC", "quantize MODEL --scheme FP8_DYNAMIC -o OUT.safetensors", 0.5, everywhere=True),
    Figure("MXFP4A16", "quantize MODEL --scheme MXFP4A16 -o OUT.safetensors", 0.266, everywhere=True),
    Figure("MXFP8A16", "quantize MODEL --scheme MXFP8A16 -o OUT.safetensors", 0.516),
    Figure("NVFP4A16", "quantize MODEL --scheme NVFP4A16 -o OUT.safetensors", 0.281, everywhere=True),
    Figure("codebook g64", "quantize MODEL --type codebook --group-size 64 -o OUT.safetensors", 0.258, 12, True),
    Figure("codebook per tensor", "quantize MODEL --bits 4 --group-size 0 --type codebook -o OUT.safetensors", 0.25),
    Figure(
        "int4 per tensor percentile", "quantize MODEL --bits 4 --group-size 0 --percentile 99.9 -o OUT.safetensors",
        0.25, 4.5,
    ),
    Figure(
        "int4 per tensor mse", "quantize MODEL --bits 4 --group-size 0 --calibration mse -o OUT.safetensors", 0.25, 4.5
    ),
    Figure(
        "int4 per tensor entropy",
        "quantize MODEL --bits 4 --group-size 0 --calibration entropy -o OUT.safetensors", 0.25, 4.5,
    ),
    Figure("f16 int4 g128 min-max", f"quantize MODEL --bits 4 {PLAIN} -o OUT.safetensors", 0.258, dtype="F16"),
    Figure("f32 int4 g128 min-max", f"quantize MODEL --bits 4 {PLAIN} -o OUT.safetensors", 0.129, dtype="F32"),
    Figure("f32 int4 g128 default", "quantize MODEL --bits 4 -o OUT.safetensors", 0.129, dtype="F32"),
    Figure("shards, int4 g128 default", "quantize FOLDER --bits 4 -o OUT", 0.258, 5),
    Figure("inspect --stats", "inspect MODEL --stats", 0, 6, True),
    Figure("compare", "compare MODEL QUANTIZED", 0, 8, True),
    Figure("report --against", "report QUANTIZED --against MODEL", 0, 5, True),
    Figure("dequantize", "dequantize QUANTIZED -o OUT.safetensors", 0, 6, True),
)  # fmt: skip

IN_DEFAULT_RUNS = (
    ("plan, 13 candidates", "plan MODEL --target-bpw 5", 6.0),
    ("sweep, 8 schemes", "sweep MODEL --bits 2,3,4,8 --group-size 32,128", None),
)
"""Runs whose time is told in default runs, with the goal."""

SMALL = (
    ("quantize, 1 thread", "quantize MODEL --bits 4 -o OUT.safetensors -q --threads 1"),
    ("quantize", "quantize MODEL --bits 4 -o OUT.safetensors -q"),
    ("quantize, its report as JSON", "quantize MODEL --bits 4 -o OUT.safetensors"),
    ("inspect", "inspect MODEL"),
    ("report", "report QUANTIZED"),
    ("report --against", "report QUANTIZED --against MODEL"),
    ("compare", "compare MODEL QUANTIZED"),
    ("dequantize", "dequantize QUANTIZED -o OUT.safetensors -q"),
)
"""Runs on tensors of 1,024 weights."""

PROFILED = "int4 g128 default", "quantize MODEL --bits 4 -o OUT.safetensors -q"
"""The run whose stages are timed."""

GROWTH = "quantize MODEL --bits 4 --calibration minmax -o OUT.safetensors"
"""The run on files of holes."""

MIB = 72
"""How much memory any run on large tensors may take."""
