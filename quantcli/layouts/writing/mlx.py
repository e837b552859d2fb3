"""MLX affine: the native words as they are, and for every group of a row a scale and a bias.

A weight of b bits [out, in], or with more leading dimensions, becomes

    X.weight   U32                [out, in*b/32]   the native codes, word for word
    X.scales   the native dtype   [out, in/g]      repeated where the native groups are larger: rows, multiples of g
    X.biases   as the scales      [out, in/g]      -zero * scale, or a float offset as it is

where MLX has groups of 32, 64 and 128 and 2, 3, 4, 5, 6 or 8 bits. -2^(b-1) * scale is exact in every float dtype, so
symmetric weights lose nothing; with zero points the product is rounded to the scale's dtype. mlx-lm reads bits and
groups from `quantization` in config.json, for the model and for single modules; transformers looks under
`quantization_config`, so both are written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from quantcli.architectures import Architecture
from quantcli.kernels import row_bytes
from quantcli.layouts.writing import Accepts, Beside, Codes, Conversion, Export, Job, Piece, Weight, Write
from quantcli.layouts.writing._parts import (
    bands,
    element,
    facts,
    finer,
    not_a_matrix,
    params,
    plain,
    quantized,
    repeated,
    rounded,
    words,
)
from quantcli.patterns import module_of
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan

GROUPS = (32, 64, 128)


def shape(weight: Weight) -> str | None:
    """Why MLX has no such weight: it needs whole groups of 32, 64 or 128 along the last axis."""
    _, plan = facts(weight)
    why = not_a_matrix(weight, most=64)
    if why is None and finer(plan.group, GROUPS) is None:
        return f"rows of {plan.cols} are no multiple of 32"
    return why


def _group(weight: Weight) -> int:
    found = finer(facts(weight)[1].group, GROUPS)
    assert found is not None
    return found


def _job(weight: Weight) -> Job:
    scheme, plan = facts(weight)
    module, group = module_of(weight.info.name), _group(weight)
    lead, groups = weight.info.shape[:-1], plan.cols // group
    outputs = (
        TensorInfo(f"{module}.weight", "U32", (*lead, plan.cols * scheme.bits // 32)),
        TensorInfo(f"{module}.scales", weight.scale_dtype, (*lead, groups)),
        TensorInfo(f"{module}.biases", weight.scale_dtype, (*lead, groups)),
    )

    def piece(span: TileSpan, codes: Codes, write: Write) -> bool:
        at = span.row * row_bytes(plan.cols, scheme.bits) + span.col * scheme.bits // 8
        write(0, at, words(codes, span, plan, scheme.bits))
        scale, zero = params(codes, span, plan, scheme)
        exact_bias = zero.astype(np.float64) if scheme.zero_point == "float" else -zero.astype(np.float64) * scale
        bias = exact_bias.astype(np.float32)
        exact = bool(np.array_equal(bias, exact_bias))
        place = (span.row * groups + span.col // group) * element(weight.scale_dtype)
        for number, values in ((1, scale), (2, bias)):
            stored, same = rounded(values, weight.scale_dtype, weight.info.name, zeros=number == 2)
            write(number, place, repeated(stored, span, plan, group))
            exact &= same
        return exact

    def pieces() -> Iterator[Piece]:
        for span in bands(plan, scheme.bits, group):
            yield partial(piece, span)

    return Job(outputs=outputs, pieces=pieces)


def module(weight: Weight, model: Architecture) -> str | None:
    """Why mlx-lm takes no quantized weight in this place."""
    if model.holder(module_of(weight.info.name)) == "Conv1D":
        return "mlx-lm turns this matrix while it loads it, which takes floating-point weights"
    return None


def _settings(weight: Weight) -> tuple[int, int]:
    return _group(weight), facts(weight)[0].bits


def convert(tensors: Sequence[Weight], beside: Beside) -> Conversion:
    """The model as MLX stores it; what most weights have stands for all, the others are named."""
    own = {module_of(w.info.name): _settings(w) for w in quantized(tensors)}
    (group, bits), _ = Counter(own.values()).most_common(1)[0]
    whole: dict[str, Any] = {"group_size": group, "bits": bits, "mode": "affine"}
    whole |= {m: {"group_size": g, "bits": b} for m, (g, b) in own.items() if (g, b) != (group, bits)}
    return Conversion(
        jobs={t.info.name: plain(t.info) if t.scheme is None else _job(t) for t in tensors},
        config={"quantization": whole, "quantization_config": whole},
        header=lambda names: {"format": "mlx"},
        notes=_notes(tensors),
    )


def _notes(tensors: Sequence[Weight]) -> list[str]:
    notes = ["mlx-lm loads folders of models whose model_type it knows, from files named model*.safetensors"]
    rounded_biases = [w for w in quantized(tensors) if not facts(w)[0].symmetric and facts(w)[0].zero_point != "float"]
    if rounded_biases:
        notes.append("MLX stores -zero * scale, rounded to the scale's dtype; symmetric weights lose nothing")
    return notes


PROVIDES = Export(
    summary="MLX: weight, scales and biases, for mlx and mlx-lm",
    accepts=Accepts(bits=(2, 3, 4, 5, 6, 8), groups=(32,), zero_points=("int", "float")),
    shape=shape,
    convert=convert,
    module=module,
)
