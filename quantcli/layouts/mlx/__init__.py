"""MLX: codes along the rows, and for every group of a row a scale, and a bias where they are integers.

In the mode `affine` a weight of b bits [out, in] (or more leading dimensions) with groups of g, where g divides in, is
stored as

    X.weight   U32                [out, in*b/32]   codes u from 0 to 2^b-1 in b bits each, low bits first, across words
    X.scales   F16, BF16 or F32   [out, in/g]
    X.biases   as the scales      [out, in/g]      `qbiases` where transformers wrote it for Metal

and is scale * u + bias, here in float32. b is 2, 3, 4, 5, 6 or 8. With 4 bits the codes 0 to 7 are the bytes
`10 32 54 76`. Shapes give only b*g = 32*words/groups, so that 4 bits in groups of 64 look like 8 bits in groups of 32:
config.json decides, under `quantization` or `quantization_config`, for all modules and for single ones by name.

In the modes of small floats it is

    X.weight   U32   [out, in*b/32]   mxfp4, nvfp4: E2M1, the first of a word in its low bits; mxfp8: E4M3
    X.scales   U8    [out, in/g]      mxfp4, mxfp8: E8M0, g is 32; nvfp4: E4M3, g is 16

and is float * scale. They differ in words/groups: 4, 2 and 8; config.json must not contradict that.

Writing: `affine` with the native codes word for word, scales in their native dtype, repeated where the native groups
are larger, and the bias -zero * scale, or a float offset as it is. -2^(b-1) * scale is exact in every float dtype, so
symmetric weights lose nothing; with zero points the product is rounded to the scale's dtype. Small floats with their
scales as MLX has them: nvfp4 without a scale of the tensor. mlx-lm reads bits, groups and modes from `quantization`;
transformers looks under `quantization_config`, so both are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantcli.layouts.accepts import Accepts
from quantcli.layouts.mlx.models import experts, module, rebuilt, tables
from quantcli.layouts.mlx.read import BITS, GROUPS, find
from quantcli.layouts.mlx.write import convert, shape
from quantcli.layouts.reader import Reader
from quantcli.layouts.writer import Runtime, Writer

READS = Reader(summary="MLX: affine, mxfp4, mxfp8 and nvfp4", find=find)

_MXFP4 = Accepts(formats=("fp4",), bits=(4,), granularities=("group",), groups=(32,), storage="e8m0")
_MXFP8 = replace(_MXFP4, formats=("fp8-e4m3",), bits=(8,))
_NVFP4 = replace(_MXFP4, groups=(16,), storage="e4m3-alone")

_FLOAT: dict[str, Any] = {"calibration": "mse", "granularity": "group"}
_POWERS: dict[str, Any] = {**_FLOAT, "group_size": 32, "scale_dtype": "float8_e8m0"}
_MENU: tuple[Mapping[str, Any], ...] = (
    *({"bits": bits, "group_size": 64} for bits in BITS),
    {"format": "fp4", "bits": 4, **_POWERS},
    {"format": "fp4", "bits": 4, **_FLOAT, "group_size": 16, "scale_dtype": "float8_e4m3_alone"},
    {"format": "fp8-e4m3", "bits": 8, **_POWERS},
)
"""What a size target chooses from: mlx-lm loads several modes in one model."""

WRITES = Writer(
    summary="MLX: weight, scales and biases, for mlx and mlx-lm",
    keeps="rows that are not a multiple of 32 (nvfp4: of 16), vectors, names that do not end in .weight",
    accepts=Accepts(bits=BITS, groups=GROUPS[:1], zero_points=("int", "float"), others=(_MXFP4, _MXFP8, _NVFP4)),
    shape=shape,
    convert=convert,
    module=module,
    tables=tables,
    usual={"group_size": 64},
    experts=experts,
    rebuilt=rebuilt,
    own_inputs=True,
    menu=_MENU,
    runtimes=(
        Runtime(
            name="mlx, mlx-lm",
            command="quantize MODEL --bits 4 --to mlx",
            others=("--scheme MXFP4", "--scheme MXFP8", "--scheme NVFP4A16"),
            limits="embedding and head are quantized. No 7 bits, no groups that are not a multiple of 32. [Which "
            "models load](quantcli/docs/targets.md#mlx)",
        ),
    ),
)
