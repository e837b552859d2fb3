"""ONNX: weights that nodes of a graph decode, MatMulNBits and DequantizeLinear.

MatMulNBits (com.microsoft), a weight of b bits [N, K] in blocks of B along K; b is 2, 4 or 8, its attributes are K, N,
bits and block_size:

    B            U8                            [N, ceil(K/B), B*b/8]   codes u, low bits first; a row fills whole blocks
    scales       F32, F16 or BF16              [N, ceil(K/B)]
    zero_points  U8                            [N, ceil(ceil(K/B)*b/8)]   the stream of each row; 2^(b-1) where left out
                 or the dtype of the scales    [N, ceil(K/B)]             one to a number
    g_idx        is refused

and is (u - zero point) * scale; [N, K] is [out, in]; the node multiplies with its transpose. All but B may
also be flat.

DequantizeLinear, a weight x of any shape, axis (1 where left out) and block_size (0):

    x              I8, U8, I16, U16, I32, 8-bit floats, or 2 or 4 bits packed over the whole tensor, low bits first
    x_scale        F32, F16 or BF16    [] for the tensor; [D] for each index of an axis of D; the shape of x with
                                       ceil(D/block_size) for D
    x_zero_point   the dtype of x      the shape of x_scale; 0 where left out

and is (x - zero point) * scale. A weight has the name and the shape of the initializer, so a matrix that was transposed
for a MatMul stays transposed. All products here are float32.

GatherBlockQuantized (com.microsoft), a table [rows, K] in blocks of block_size along K, of `bits`:

    data         U8  [rows, K*b/8]                 codes as in MatMulNBits, rows without padding; or 4-bit integers
    scales       F32 or F16  [rows, ceil(K/B)]
    zero_points  U8  [rows, ceil(ceil(K/B)*b/8)]

Reading (read, read_blocks, read_linear, read_integer): nodes on activations, or on a single number, are ignored. Codes
that nodes compute with, as onnxruntime's dynamic and static quantizers write them, are decoded too. A weight has the
name of its codes without _quantized, _Q4 and the like.

Writing (rewrite): the model of the source again, message by message (model), with other nodes (nodes) for what takes a
weight. A weight X becomes the initializers X_quantized, X_scale (of X's dtype) and, where it is not symmetric,
X_zero_point; which nodes take them depends on what takes X (roles):

    MatMul, or Gemm with alpha 1, on X as right-hand matrix    MatMulNBits in its place, and Add for a bias
    Gather of rows of X                                        GatherBlockQuantized in its place
    both                                                       both, of the same codes
    anything else that multiplies with X                       DequantizeLinear in front, along axis 0: of rows of codes
                                                               that are channels, or groups, which a Reshape joins to X

DequantizeLinear is ONNX's where the model's version of that has the types, else com.microsoft's, so that no version
changes. From 2 GiB on, which protobuf cannot hold, tensors are in a second file with `.data` after its name.

With --container (write) one file with a MatMulNBits node for every weight. A weight X becomes the initializers X,
X_scale (F32) and X_zero_point (U8), and the node goes from its own input `module.input` [rows, K] to an output
`module.output` [rows, N]. The nodes are not a model; kept tensors are initializers that no node uses.
"""

from __future__ import annotations

from quantcli.layouts.accepts import Accepts
from quantcli.layouts.onnx import rewrite
from quantcli.layouts.onnx.read import find
from quantcli.layouts.onnx.read_blocks import BITS
from quantcli.layouts.onnx.write import container, convert, shape
from quantcli.layouts.reader import Reader
from quantcli.layouts.writer import Runtime, Writer

READS = Reader(summary="ONNX: MatMulNBits, DequantizeLinear, and codes that nodes compute with", find=find)

WRITES = Writer(
    summary="ONNX: the model with MatMulNBits, GatherBlockQuantized and DequantizeLinear, for onnxruntime",
    keeps="what the graph does not multiply with, F64; of --container all but matrices",
    accepts=Accepts(bits=BITS, groups=(16,)),
    shape=shape,
    convert=convert,
    container=container,
    again=rewrite.again,
    tables=lambda info, kind, scheme, model: scheme,
    read_back=False,
    extension=".onnx",
    two_files=True,
    runtimes=(
        Runtime(
            name="onnxruntime",
            command="quantize MODEL.onnx --bits 4 -o OUT.onnx",
            limits="of .onnx files. Convolutions and LSTM get 8 bits. Only onnxruntime has the operators",
        ),
    ),
)
