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

Reading (read): nodes on activations, or on a single number, are ignored. Writing (write): with --container one file
with a MatMulNBits node for every weight, as onnxruntime runs it. A weight X becomes the initializers X, X_scale (F32)
and, where it is not symmetric, X_zero_point (U8), and the node goes from its own input `module.input` [rows, K] to an
output `module.output` [rows, N]. B is the largest of 16 to 256 that divides the groups; rows may end inside a block.
The nodes are not a model: they are the weights in the form in which a graph uses them. Kept tensors are initializers
that no node uses. From 2 GiB on, which protobuf cannot hold, the tensors are in a second file with `.data` after its
name.
"""

from __future__ import annotations

from quantcli.layouts.onnx import rewrite
from quantcli.layouts.onnx.read import find
from quantcli.layouts.onnx.read_blocks import BITS
from quantcli.layouts.onnx.write import container, convert, shape
from quantcli.layouts.reader import Reader
from quantcli.layouts.writer import Accepts, InGraph, Writer

READS = Reader(summary="ONNX: MatMulNBits and DequantizeLinear of initializers", find=find)

WRITES = Writer(
    summary="ONNX: a MatMulNBits node of com.microsoft for every weight, for onnxruntime",
    keeps="rows with a short last group of a size it does not have, all but matrices",
    accepts=Accepts(bits=BITS, groups=(16,)),
    shape=shape,
    convert=convert,
    container=container,
    in_graph=InGraph(
        matrices=rewrite.matrices, suited=rewrite.suited, obstacle=rewrite.obstacle, convert=rewrite.convert
    ),
    tables=lambda info, kind, scheme, model: scheme,
    read_back=False,
    extension=".onnx",
    two_files=True,
)
