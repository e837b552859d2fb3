"""Writing weights in MLX's modes, with what mlx-lm and transformers read of config.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from quantcli.errors import listed, printable
from quantcli.kernels import row_bytes
from quantcli.layouts import whole_bytes
from quantcli.layouts.config import json_beside, without_quantization
from quantcli.layouts.mlx.converted import changed
from quantcli.layouts.mlx.keys import Completed, completed, version
from quantcli.layouts.mlx.models import WITHOUT_EXPERTS
from quantcli.layouts.mlx.read import GROUPS
from quantcli.layouts.pieces import (
    bands,
    element,
    facts,
    finer,
    not_a_matrix,
    or_copied,
    params,
    products_fit,
    quantized,
    repeated,
    rounded,
    words,
)
from quantcli.layouts.writer import Beside, Codes, Conversion, Job, Piece, Weight, Write
from quantcli.patterns import module_of
from quantcli.tensors.decisions import alike
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan


def shape(weight: Weight) -> str | None:
    """Why MLX cannot store a weight: it needs whole groups along the last axis, of integers of 32, 64 or 128."""
    scheme, plan = facts(weight)
    why = not_a_matrix(weight, most=64)
    if why is None and scheme.family == "int" and finer(plan.group, GROUPS) is None:
        return f"rows of {plan.cols} are not a multiple of 32"
    return why


def _group(weight: Weight) -> int:
    scheme, plan = facts(weight)
    found = finer(plan.group, GROUPS) if scheme.family == "int" else plan.group
    assert found is not None
    return found


def _mode(weight: Weight) -> str:
    """The mode that a weight is stored in: small floats have names of their own."""
    scheme, _ = facts(weight)
    return "affine" if scheme.family == "int" else scheme.name


def _small(weight: Weight) -> Job:
    """The work that stores a weight of small floats."""
    scheme, plan = facts(weight)
    name, lead = module_of(weight.info.name), weight.info.shape[:-1]
    codes = TensorInfo(f"{name}.weight", "U32", (*lead, plan.cols * scheme.bits // 32))
    scale = TensorInfo(f"{name}.scales", "U8", (*lead, plan.groups))
    return whole_bytes.job(weight, whole_bytes.Places(codes=codes, scale=scale, store=weight.scale_dtype))


def _job(weight: Weight) -> Job:
    return _affine(weight) if _mode(weight) == "affine" else _small(weight)


def _affine(weight: Weight) -> Job:
    """The work that stores a weight of whole numbers."""
    scheme, plan = facts(weight)
    name, group = module_of(weight.info.name), _group(weight)
    lead, groups = weight.info.shape[:-1], plan.cols // group
    outputs = (
        TensorInfo(f"{name}.weight", "U32", (*lead, plan.cols * scheme.bits // 32)),
        TensorInfo(f"{name}.scales", weight.scale_dtype, (*lead, groups)),
        TensorInfo(f"{name}.biases", weight.scale_dtype, (*lead, groups)),
    )

    def piece(span: TileSpan, codes: Codes, write: Write) -> bool:
        at = span.row * row_bytes(plan.cols, scheme.bits) + span.col * scheme.bits // 8
        write(0, at, words(codes, span, plan, scheme.bits))
        scale, zero = params(codes, span, plan, scheme)
        exact_bias = zero.astype(np.float64) if scheme.zero_point == "float" else -zero.astype(np.float64) * scale
        bias = exact_bias.astype(np.float32)
        exact = bool(np.array_equal(bias, exact_bias))
        exact &= scheme.zero_point == "float" or products_fit(scale, scheme.bits)
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


def _settings(weight: Weight) -> dict[str, Any]:
    """What config.json says of a weight."""
    return {"group_size": _group(weight), "bits": facts(weight)[0].bits, "mode": _mode(weight)}


def settings(tensors: Sequence[Weight]) -> dict[str, Any]:
    """What config.json says of a model: the settings of most weights, and under their names those of the others, in
    which older versions of mlx-lm know no mode where all are affine."""
    counts = Counter[tuple[tuple[str, Any], ...]]()
    for tensor, count in alike(tensors):
        if tensor.scheme is not None:
            counts[tuple(_settings(tensor).items())] += count
    usual = dict(counts.most_common(1)[0][0])
    each = ((module_of(w.info.name), _settings(w)) for w in quantized(tensors)) if len(counts) > 1 else ()
    others = {module: own for module, own in each if own != usual}
    if all(dict(own)["mode"] == "affine" for own in counts):
        others = {module: {"group_size": e["group_size"], "bits": e["bits"]} for module, e in others.items()}
    return {**usual, **others}


def convert(tensors: Sequence[Weight], beside: Beside) -> Conversion:
    """The model as MLX stores it."""
    found, config = settings(tensors), json_beside(beside, "config.json") or {}
    keys, own, usual = completed(without_quantization(config)), changed(tensors, config), or_copied(_job)

    def job(tensor: Weight) -> Job:
        other = own.jobs.get(tensor.info.name)
        return usual(tensor) if other is None else other

    return Conversion(
        job=job,
        holds=lambda name: name not in own.left_out,
        stem=lambda name: "" if name in own.jobs else module_of(name),
        config={**keys.added, "quantization": found, "quantization_config": found},
        header=lambda names: {"format": "mlx"},
        notes=[*_on_loading(config, keys, (t.info.name for t in tensors)), *filter(None, [own.note]), *_notes(tensors)],
        in_folder=["mlx-lm loads folders from files named model*.safetensors"],
    )


def _on_loading(config: Mapping[str, Any], keys: Completed, names: Iterable[str]) -> list[str]:
    """What there is to say of config.json, and of the names of tensors."""
    kind = config.get("model_type")
    if not keys.known:
        shown = f", and has none of {printable(repr(kind), 60)} in {version()}" if isinstance(kind, str) else ""
        return [f"mlx-lm loads folders of models whose model_type it knows{shown}"]
    notes = []
    if keys.names:
        notes.append(f"config.json: added what mlx-lm reads, from other keys: {listed(keys.names, 8)}")
    if keys.missing:
        notes.append(f"config.json: mlx-lm's models of {kind} also want {listed(keys.missing, 8)}: they will not load")
    if kind in WITHOUT_EXPERTS and any(".experts." in name for name in names):
        notes.append(f"mlx-lm's models of {kind} have no experts: it will not load")
    return notes


def _notes(tensors: Sequence[Weight]) -> list[str]:
    own = [t.scheme for t, _ in alike(tensors) if t.scheme is not None]
    if all(scheme.symmetric or scheme.zero_point == "float" for scheme in own):
        return []
    return ["MLX stores -zero * scale, rounded to the scale's dtype; symmetric weights lose nothing"]
