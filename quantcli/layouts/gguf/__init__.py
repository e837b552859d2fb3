"""GGUF: rows of blocks, each with its scales and codes together.

A block of 32 weights e_0 to e_31, or of 256, holds in this order (f16: float16; qs: codes of 4 bits, byte j is e_j and
above it e_{j+16}; qh: bit j is the fifth of e_j)

    Q4_0   d f16, qs[16]                        (e - 8) * d
    Q4_1   d f16, m f16, qs[16]                 e * d + m
    Q5_0   d f16, qh[4], qs[16]                 (e - 16) * d
    Q5_1   d f16, m f16, qh[4], qs[16]          e * d + m
    Q8_0   d f16, int8[32]                      e * d
    Q2_K   scales[16], qs[64], d f16, dm f16    d * sc * e - dm * m     sc, m: low and high half of a byte, for 16 each
    Q3_K   qh[32], qs[64], scales[12], d f16    d * (sc - 32) * (e - 4)
    Q4_K   d f16, dm f16, scales[12], qs[128]            d * sc * e - dm * m     for 32 each
    Q5_K   d f16, dm f16, scales[12], qh[32], qs[128]    the same
    Q6_K   ql[128], qh[64], scales int8[16], d f16       d * sc * (e - 32)       for 16 each
    IQ4_NL d f16, qs[16]                                 d * table[e]
    IQ4_XS d f16, high u16, low[4], qs[128]              d * (sc - 32) * table[e]     for 32 each, sc: 2 and 4 bits
    MXFP4  d E8M0, qs[16]                                d * e as E2M1
    TQ1_0  qs[48], qh[4], d f16                          d * (e - 1)     a byte: five e as digits of a fraction to the
                                                         base 3, of qh four
    TQ2_0  qs[64], d f16                                 d * (e - 1)

all in float32, from left to right. In the larger blocks bit fields of a run of bytes are the weights one run later:
qs of Q4_K is 32 bytes for 64 weights, of Q2_K 32 bytes for 128, and so on.

Reading (read, and parts for what a block holds): the blocks above, of any GGUF. Writing: codes as blocks of 32 (blocks)
and of 256 (super_blocks), in one file (write) with the keys, names and order of rows that llama.cpp has for a family of
models (model, families) and the vocabulary, or with those of the GGUF it is made of (rewrite).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from quantcli.architectures import Architecture
from quantcli.layouts.accepts import Accepts
from quantcli.layouts.gguf import rewrite
from quantcli.layouts.gguf.images import write as images
from quantcli.layouts.gguf.images.mixes import image_mix
from quantcli.layouts.gguf.images.models import image_model
from quantcli.layouts.gguf.mixes import FILE_TYPES, mix
from quantcli.layouts.gguf.model import rebuilt as rebuilt_text
from quantcli.layouts.gguf.read import find
from quantcli.layouts.gguf.types import FIELDS, WEIGHTS, fitting, like, nearest
from quantcli.layouts.gguf.write import container, convert, experts, shape, tables
from quantcli.layouts.reader import Reader
from quantcli.layouts.writer import Again, Runtime, Writer
from quantcli.scheme import Scheme
from quantcli.stores import Source
from quantcli.stores.stacked import Rebuilt
from quantcli.tensors.info import TensorInfo

READS = Reader(summary="GGUF blocks: Q4_0 to Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS, MXFP4, TQ1_0 and TQ2_0", find=find)


def rebuilt(infos: Sequence[TensorInfo], config: Mapping[str, Any]) -> Mapping[str, Sequence[Rebuilt]]:
    """Tensors that a loader wants in another form, and what takes their place."""
    found = images.rebuilt(infos, config)
    return rebuilt_text(infos, config) if found is None else found


def again(source: Source, *, file_type: int | None = None) -> Again | None:
    """How a model of pictures, and that of another GGUF, is written."""
    return images.again(source, file_type=file_type) or rewrite.again(source, file_type=file_type)


@cache
def _of_kind(kind: str) -> Writer:
    """The writer of a file type of llama.cpp."""
    found = FILE_TYPES[kind]

    def base(scheme: Scheme) -> Scheme:
        return like(found.base, scheme)

    def mixed(infos: Sequence[TensorInfo], scheme: Scheme, model: Architecture, weighted: bool) -> dict[str, Scheme]:
        image = image_model({info.name for info in infos})
        if image is not None:
            types = image_mix(kind, found.base, [info for info in infos if not image[0].stays_float(info.name)])
        else:
            types = mix(kind, infos, tied=bool(model.tied), weighted=weighted)
        return {name: like(own, scheme) for name, own in types.items()}

    return replace(
        WRITES,
        convert=partial(convert, file_type=found.number),
        container=partial(container, file_type=found.number),
        again=partial(again, file_type=found.number),
        base=base,
        mix=mixed,
    )


WRITES = Writer(
    summary="GGUF: weights in blocks, with keys and vocabulary in one file, for llama.cpp",
    keeps="rows that are not a multiple of 32, tensors of more than 4 dimensions",
    accepts=Accepts(
        bits=(4, 5, 8),
        groups=(WEIGHTS,),
        zero_points=("int", "float"),
        asymmetric_bits=(4, 5),
        others=(
            Accepts(formats=("int",), bits=(2, 3, 4, 5, 6), zero_points=("float",), storage="super-blocks"),
            Accepts(formats=("iq4",), bits=(4,), storage="super-blocks"),
            Accepts(formats=("iq4",), bits=(4,), groups=(WEIGHTS,), granularities=("group",)),
            Accepts(
                formats=("fp4",),
                bits=(4,),
                groups=(WEIGHTS,),
                granularities=("group",),
                storage="e8m0",
                activations=("none", "mxfp4"),
            ),
        ),
    ),
    shape=shape,
    convert=convert,
    container=container,
    again=again,
    tables=tables,
    experts=experts,
    rebuilt=rebuilt,
    scale_dtype="float16",
    usual={"group_size": WEIGHTS},
    own_inputs=True,
    extension=".gguf",
    shards=True,
    kinds={name: kind.summary for name, kind in FILE_TYPES.items()},
    of_kind=_of_kind,
    fitting=fitting,
    by_bits={bits: FIELDS[name] for bits, name in ((2, "Q2_K"), (3, "Q3_K"), (6, "Q6_K"))},
    offsets_only=True,
    nearest=nearest,
    runtimes=(
        Runtime(
            name="llama.cpp",
            command="quantize MODEL --bits 4 --to gguf",
            others=("--to gguf:Q4_K_M",),
            limits="Llama, Mistral, Qwen and Qwen-VL, Gemma, Phi, GLM, Command R, Granite, DeepSeek, gpt-oss, BERT and "
            "[others](quantcli/docs/targets.md#llamacpp). File types as llama-quantize mixes them; of the I-quants "
            "IQ4_NL and IQ4_XS alone",
        ),
        Runtime(
            name="ComfyUI-GGUF",
            command="quantize MODEL.safetensors --to gguf:Q4_K_M",
            limits="Flux, Stable Diffusion, Wan and [others](quantcli/docs/targets.md#comfyuis-ggufs), from ComfyUI's "
            "own files; of diffusers Flux, Wan, Qwen-Image and U-Nets; the text encoders T5 and UMT5",
        ),
    ),
    menu=tuple(FIELDS[name] for name in ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")),
)
