"""ComfyUI: signed bytes, 8-bit floats or packed nibbles, and for every module a description that says which.

The description of a module X is JSON, `{"format": "int8_tensorwise"}`, either in a separate tensor, X.comfy_quant
(U8), or in the header of the file under `_quantization_metadata`, `{"layers": {"X": ...}}`.

    int8_tensorwise                X.weight        I8                 [out, in]    q
                                   X.weight_scale  F32                a number for the tensor, or for every row
    float8_e4m3fn, float8_e5m2     X.weight        F8_E4M3, F8_E5M2   [out, in]    q; U8 holds the same bytes
                                   X.weight_scale  as above
    awq_w4a16                      X.weight        I8                 [out, in/2]  codes u, the low half of a byte first
                                   X.weight_scale  F32, F16 or BF16   [in/g, out]
                                   X.weight_zeros  as the scales      [in/g, out]
    nvfp4, mxfp8                   in swizzled

The weight is q * scale, or (u - 8) * scale + zeros, here in float32; g is in/g's own quotient, which `group_size` must
agree with. ConvRot: with `"convrot": true` in the description of int8_tensorwise, every `convrot_groupsize` columns of
the weight were multiplied by a regular Hadamard matrix before they were rounded (kernels/rotation.h), as ComfyUI
multiplies the inputs of the layer; the weight is what that matrix makes of q, times the scale. Older files, of scaled
FP8, hold X.scale_weight (a number) beside an 8-bit float X.weight, a tensor scaled_fp8, and no description.

Reading (read): a description with any unknown key is refused, and zeros without a description. Writing (write): all but
awq_w4a16, int8_tensorwise with a scale [out, 1] for every row and q from -128 to 127; the description both in the
header and in a tensor, for programs that do not hand on headers. The exception is a model of transformers in signed
bytes with a scale per row: compressed-tensors reads the same file as int-quantized, config.json says that, and the
header alone has descriptions, because transformers warns of tensors that it does not know.

Reference: Sarkar et al., ConvRot: Rotation-Based Plug-and-Play 4-bit Quantization for Diffusion Transformers, 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

from quantcli.architectures import Architecture
from quantcli.layouts.accepts import Accepts
from quantcli.layouts.comfyui.read import find
from quantcli.layouts.comfyui.types import FIELDS, KINDS, fitting, like, mix, nearest
from quantcli.layouts.comfyui.write import convert, module, shape
from quantcli.layouts.reader import Reader
from quantcli.layouts.writer import Runtime, Writer
from quantcli.scheme import Scheme
from quantcli.tensors.info import TensorInfo

READS = Reader(summary="ComfyUI: int8_tensorwise, ConvRot, float8, nvfp4, mxfp8 and awq_w4a16", find=find)

_INT8 = Accepts(bits=(8,), granularities=("channel", "tensor"), symmetric=(True,))
_ROTATED = replace(_INT8, granularities=("channel",), rotations=(16, 64, 256))
_FLOAT = Accepts(
    formats=("fp8-e4m3", "fp8-e5m2"),
    bits=(8,),
    granularities=("tensor",),
    symmetric=(True,),
    activations=("none", "fp8-static"),
)
_MXFP8 = Accepts(
    formats=("fp8-e4m3",),
    bits=(8,),
    groups=(32,),
    granularities=("group",),
    symmetric=(True,),
    storage="e8m0",
    activations=("none", "mxfp8"),
)
_NVFP4 = replace(_MXFP8, formats=("fp4",), bits=(4,), groups=(16,), storage="e4m3", activations=("none", "nvfp4"))


@cache
def _of_kind(name: str) -> Writer:
    """The writer of a kind of file."""
    kind = KINDS[name]
    fields: Mapping[str, object] = FIELDS[kind.type]

    def base(scheme: Scheme) -> Scheme:
        return like(kind.type, scheme)

    def mixed(infos: Sequence[TensorInfo], scheme: Scheme, model: Architecture, weighted: bool) -> dict[str, Scheme]:
        return mix([info.name for info in infos], scheme)

    made = replace(WRITES, base=base, mix=mixed, usual=fields, by_bits={}, menu=())
    return replace(made, accepts=_FLOAT, convert=partial(convert, older=True)) if kind.older else made


WRITES = Writer(
    summary="ComfyUI: int8_tensorwise, ConvRot, float8, nvfp4 and mxfp8, for ComfyUI",
    keeps="all but matrices named *.weight; as nvfp4 and mxfp8 rows that are not a multiple of 16 or 32",
    accepts=replace(_INT8, others=(_ROTATED, _FLOAT, _MXFP8, _NVFP4)),
    shape=shape,
    convert=convert,
    module=module,
    usual={"format": "int", "bits": 8, "granularity": "channel"},
    kinds={name: kind.summary for name, kind in KINDS.items()},
    of_kind=_of_kind,
    fitting=fitting,
    nearest=nearest,
    by_bits={4: FIELDS["nvfp4"]},
    menu=(FIELDS["nvfp4"], FIELDS["int8_convrot"]),
    runtimes=(
        Runtime(
            name="ComfyUI",
            command="quantize MODEL --to comfyui:int8_convrot",
            others=("comfyui:float8_tensorwise", "comfyui:nvfp4", "comfyui:mxfp8"),
            limits="[others](quantcli/docs/targets.md#comfyui) too; matrices alone, no convolutions. Its loader was "
            "run on a processor, its fast kernels not",
        ),
    ),
)
