"""bitsandbytes: 4-bit levels in blocks of the flat weight, or signed bytes with the largest magnitude of every row.

NF4 and FP4, for a weight X of n elements in blocks of g:

    X                                 U8  [ceil(n/2), 1]   codes in C order, the first of two in the high bits; the same
                                                           bytes may be called F16, BF16 or F32
    X.absmax                          F32 [ceil(n/g)]      U8 where it is nested: codes of nested_quant_map
    X.quant_map                       F32 [16]             the levels
    X.quant_state.bitsandbytes__nf4   U8  [length]         JSON: quant_type, blocksize, dtype, shape; or __fp4
    X.nested_absmax                   F32 [blocks]         absmax is nested_quant_map[code] * nested_absmax + offset
    X.nested_quant_map                F32 [256]            for nested_blocksize codes; it and nested_offset: in the JSON

and is level * absmax, here in float32; the library rounds it to the JSON's dtype. It takes the levels from its own
tables, whatever quant_map says: a different quant_map is refused, because the library would not decode with it.
nested_quant_map is taken as it stands. A block may end inside a row, a row inside a byte. Codes 0, 15, 7, 8 are the
bytes `0f 78`.

int8, for a weight X.weight [out, in]:

    X.weight         I8   [out, in]   q
    X.SCB            F32  [out]       the largest magnitude of each row
    X.weight_format  U8   []          0 for rows one after the other; older files have other orders, or leave it out

and is q * SCB / 127, the division a product with float32's 1/127, as the library has it.

Writing: NF4 that is not nested, of weights of the format nf4 whose groups are blocks: absmax is the native scale, for
the largest level is 1.
"""

from __future__ import annotations

from quantcli.layouts.accepts import Accepts
from quantcli.layouts.bnb_nf4.read import find
from quantcli.layouts.bnb_nf4.write import convert, module, shape
from quantcli.layouts.loaders import in_turn
from quantcli.layouts.reader import Reader
from quantcli.layouts.writer import Runtime, Writer

READS = Reader(summary="bitsandbytes: NF4, FP4 and int8, absmax nested or not", find=find)

WRITES = Writer(
    summary="bitsandbytes NF4: packed codes, absmax and quant_state, for transformers and diffusers",
    keeps="rows that are not a multiple of 64, all but matrices named *.weight",
    accepts=Accepts(formats=("nf4",), bits=(4,), groups=(64,)),
    shape=shape,
    convert=convert,
    module=module,
    experts=in_turn,
    usual={"format": "nf4", "group_size": 64},
    runtimes=(
        Runtime(
            name="transformers with bitsandbytes",
            command="quantize MODEL --to bnb-nf4",
            limits="NF4 in groups of 64",
        ),
        Runtime(
            name="diffusers",
            command="quantize PIPELINE --to bnb-nf4",
            limits="whole pipelines; its loader wants a GPU, and was read, not run. It takes no other scheme",
        ),
    ),
)
