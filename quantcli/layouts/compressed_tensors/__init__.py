"""compressed-tensors: packed integers, and integers or 8-bit floats one to a byte.

pack-quantized, for a weight X of b bits [out, in] in groups of g along in (b from 2 to 8):

    X_packed      I32                [out, ceil(in*b/32)]   codes u = q + 2^(b-1) in b bits each, low bits first, across
                                                            words; each row fills whole words
    X_scale       F16, BF16 or F32   [out, in/g]; [out, 1] per channel; [1] per tensor
    X_zero_point  I32                [ceil(out*b/32), in/g]   asymmetric: z = zero point + 2^(b-1), the stream running
                                                            down each column; I8 in the scale's shape where it is not
                                                            packed: the signed zero point, always so per tensor
    X_shape       I64                [2]                    out and in
    X_g_idx       I32                [in]                   older files: the group of every column

int-quantized, naive-quantized and float-quantized differ only in name:

    X             I8 or F8_E4M3      [out, in]              q
    X_scale       as above, or [ceil(out/h), ceil(in/w)] for blocks of h x w
    X_zero_point  I8                 in the scale's shape

The weight is (q - zero point) * scale. The library multiplies in the scale's dtype; here it is float32, which rounds
least, as for native files. Before release 0.18 words held 32 // b whole codes of 3, 5, 6 or 7 bits, and nothing in
their top bits. Such a row has more words, always so from 160 columns on; where both fit, the `version` of config.json
tells, and without it codes are taken to cross words. The codes 0 to 7 of 4 bits are the bytes `10 32 54 76`, and q from
-8 to 1 the words 0x76543210 0x00000098.

Reading (read, decode): shapes tell bits and groups wherever X_shape can be read; without it config.json must. Writing
(write): the native file already holds these very tensors for whole numbers (see layouts.native.document), X_shape and
packed zero points included; only `quantization_config` in config.json is missing.
"""

from __future__ import annotations

from quantcli.layouts.compressed_tensors.read import find
from quantcli.layouts.compressed_tensors.write import ACCEPTS, EXPERT, convert, documents, module, shape
from quantcli.layouts.loaders import one_by_one
from quantcli.layouts.reader import Reader
from quantcli.layouts.writer import Runtime, Writer

READS = Reader(summary="compressed-tensors: pack-, int-, naive- and float-quantized", find=find)

WRITES = Writer(
    summary="compressed-tensors: integers, FP8, MXFP4, MXFP8 and NVFP4 with a configuration, for transformers and vLLM",
    keeps="rows with a short last group, all but matrices named *.weight",
    accepts=ACCEPTS,
    shape=shape,
    convert=convert,
    module=module,
    experts=one_by_one,
    joins=True,
    keeps_document=True,
    documents=documents,
    tied=EXPERT,
    runtimes=(
        Runtime(
            name="vLLM, SGLang, TensorRT-LLM",
            command="quantize MODEL --scheme FP8_DYNAMIC",
            others=("NVFP4A16", "W8A8", "MXFP4"),
            limits="their loaders were read, [which take what](quantcli/docs/targets.md#transformers-and-vllm); on a "
            "processor vLLM ran `W8A8`, `W4A8`, `W4A16` and `FP8_DYNAMIC`, no GPU was at hand. `FP8` and `NVFP4` take "
            "measured scales of inputs with `--activation-scales`",
        ),
        Runtime(
            name="vLLM",
            command="quantize MODEL --bits 4",
            limits="embedding and head stay. 4 bits are tested. q, k and v must have one scheme, gate and up too. "
            "Groups of 8 bits do not load on processors; 2, 3, 5, 6 and 7 need the package Humming on CUDA",
        ),
        Runtime(
            name="transformers",
            command="quantize MODEL --bits 4",
            limits="needs the package compressed-tensors. With `--asymmetric` only with `dequantize=True`",
        ),
    ),
)
