"""Components of diffusers as the models that ComfyUI loads: other names, and matrices put together.

Only what is certain is mapped: classes whose tensors are those of the original under other names, or runs of rows of
them. U-Nets keep the names of diffusers, which ComfyUI knows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from quantcli.errors import DataError, UsageError, printable
from quantcli.stores.stacked import Matrix, Rebuilt
from quantcli.tensors.info import TensorInfo

Names = tuple[tuple[str, str], ...]
"""Expressions for names of diffusers, and the names of the original."""

_DOUBLE, _SINGLE = r"transformer_blocks\.(\d+)\.", r"single_transformer_blocks\.(\d+)\."
_TEXT, _IMAGE = r"double_blocks.\1.txt_", r"double_blocks.\1.img_"

_FLUX: Names = (
    (r"context_embedder", "txt_in"),
    (r"x_embedder", "img_in"),
    (r"time_text_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"time_text_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
    (r"time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
    (r"time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
    (r"time_text_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
    (r"time_text_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
    (r"proj_out", "final_layer.linear"),
    (_DOUBLE + r"norm1\.linear", _IMAGE + "mod.lin"),
    (_DOUBLE + r"norm1_context\.linear", _TEXT + "mod.lin"),
    (_DOUBLE + r"attn\.to_out\.0", _IMAGE + "attn.proj"),
    (_DOUBLE + r"attn\.to_add_out", _TEXT + "attn.proj"),
    (_DOUBLE + r"ff\.net\.0\.proj", _IMAGE + "mlp.0"),
    (_DOUBLE + r"ff\.net\.2", _IMAGE + "mlp.2"),
    (_DOUBLE + r"ff_context\.net\.0\.proj", _TEXT + "mlp.0"),
    (_DOUBLE + r"ff_context\.net\.2", _TEXT + "mlp.2"),
    (_SINGLE + r"norm\.linear", r"single_blocks.\1.modulation.lin"),
    (_SINGLE + r"proj_out", r"single_blocks.\1.linear2"),
)
_FLUX_VECTORS: Names = (
    (_DOUBLE + r"attn\.norm_q\.weight", _IMAGE + "attn.norm.query_norm.scale"),
    (_DOUBLE + r"attn\.norm_k\.weight", _IMAGE + "attn.norm.key_norm.scale"),
    (_DOUBLE + r"attn\.norm_added_q\.weight", _TEXT + "attn.norm.query_norm.scale"),
    (_DOUBLE + r"attn\.norm_added_k\.weight", _TEXT + "attn.norm.key_norm.scale"),
    (_SINGLE + r"attn\.norm_q\.weight", r"single_blocks.\1.norm.query_norm.scale"),
    (_SINGLE + r"attn\.norm_k\.weight", r"single_blocks.\1.norm.key_norm.scale"),
)
_FLUX_JOINED: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (_DOUBLE, ("attn.to_q", "attn.to_k", "attn.to_v"), _IMAGE + "attn.qkv"),
    (_DOUBLE, ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), _TEXT + "attn.qkv"),
    (_SINGLE, ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), r"single_blocks.\1.linear1"),
)
"""Modules whose rows lie one below the other in a module of the original: their layer, their names there in order, and
that module."""

_WAN: Names = (
    (r"patch_embedding", "patch_embedding"),
    (r"condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"condition_embedder\.time_proj", "time_projection.1"),
    (r"condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
    (r"condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
    (r"proj_out", "head.head"),
    (r"blocks\.(\d+)\.norm2", r"blocks.\1.norm3"),
    (r"blocks\.(\d+)\.ffn\.net\.0\.proj", r"blocks.\1.ffn.0"),
    (r"blocks\.(\d+)\.ffn\.net\.2", r"blocks.\1.ffn.2"),
    *(
        (rf"blocks\.(\d+)\.attn{number}\.{theirs}", rf"blocks.\1.{own}.{ours}")
        for number, own in ((1, "self_attn"), (2, "cross_attn"))
        for theirs, ours in (
            *(("to_q", "q"), ("to_k", "k"), ("to_v", "v"), (r"to_out\.0", "o"), ("norm_q", "norm_q")),
            *(("norm_k", "norm_k"), ("add_k_proj", "k_img"), ("add_v_proj", "v_img"), ("norm_added_k", "norm_k_img")),
        )
    ),
)
_WAN_TABLES: Names = (
    (r"scale_shift_table", "head.modulation"),
    (r"blocks\.(\d+)\.scale_shift_table", r"blocks.\1.modulation"),
)


def part(info: TensorInfo, rows: int | None = None, first: int = 0) -> Matrix:
    """Rows of a tensor, all of them where no number is given, as one matrix."""
    cols = math.prod(info.shape[1:]) if len(info.shape) > 1 else 1
    count = info.numel // max(cols, 1) if rows is None else rows
    return Matrix(name=info.name, rows=count, cols=cols, first=first * cols)


def _same(info: TensorInfo, modules: Names, tensors: Names) -> Rebuilt:
    """A tensor under its name in the original. Raises DataError for one that is not known."""
    module, _, end = info.name.rpartition(".")
    own = f".{end}" if end in ("weight", "bias") else None
    named = [(re.fullmatch(e, info.name), becomes) for e, becomes in tensors]
    named += [(re.fullmatch(e, module), becomes + own) for e, becomes in modules if own]
    found = next((match.expand(becomes) for match, becomes in named if match), None)
    if found is None:
        hint = "pass the single file of the model that ComfyUI loads"
        raise DataError("the model of ComfyUI has no such tensor", place=[printable(info.name)], hint=hint)
    return Rebuilt(found, info.shape, (part(info),))


def _swapped(info: TensorInfo, name: str) -> Rebuilt:
    """A tensor with the halves of its rows exchanged: diffusers has the scale before the shift."""
    half, odd = divmod(info.shape[0] if info.shape else 1, 2)
    if odd:
        raise DataError("its rows have no halves", place=[printable(info.name)])
    return Rebuilt(name, info.shape, (part(info, half, half), part(info, half)))


def _joined(name: str, parts: Sequence[TensorInfo]) -> Rebuilt:
    """A tensor of the rows of several, in runs of as many rows as the shortest has. Raises DataError where these are of
    several dtypes or do not fit."""
    rows = min(info.shape[0] if info.shape else 0 for info in parts) or 1
    for info in parts:
        if info.dtype != parts[0].dtype or info.shape[1:] != parts[0].shape[1:] or info.shape[0] % rows:
            problem = f"it does not fit {printable(parts[0].name)}, with which ComfyUI has it in one tensor"
            raise DataError(problem, place=[printable(info.name)])
    runs = tuple(part(info, rows, first) for info in parts for first in range(0, info.shape[0], rows))
    return Rebuilt(name, (sum(info.shape[0] for info in parts), *parts[0].shape[1:]), runs)


def _home(name: str) -> tuple[str, int, int] | None:
    """The tensor of a Flux that one of diffusers is a part of, its place there and the number of parts; None for one
    that is whole."""
    module, _, end = name.rpartition(".")
    for layer, parts, home in _FLUX_JOINED:
        match = re.match(layer, module)
        if match and end in ("weight", "bias") and module[match.end() :] in parts:
            return f"{match.expand(home)}.{end}", parts.index(module[match.end() :]), len(parts)
    return None


def _flux(infos: Sequence[TensorInfo]) -> Iterator[tuple[str, Rebuilt | None]]:
    """What becomes of each tensor of a Flux."""
    joined: dict[str, dict[int, TensorInfo]] = {}
    for info in infos:
        home = _home(info.name)
        if home is not None:
            joined.setdefault(home[0], {})[home[1]] = info
            if len(joined[home[0]]) == home[2]:
                parts = [info for _, info in sorted(joined.pop(home[0]).items())]
                yield parts[0].name, _joined(home[0], parts)
                yield from ((other.name, None) for other in parts[1:])
        elif info.name.startswith("norm_out.linear."):
            yield info.name, _swapped(info, f"final_layer.adaLN_modulation.1.{info.name.rpartition('.')[2]}")
        else:
            yield info.name, _same(info, _FLUX, _FLUX_VECTORS)
    for name, found in joined.items():
        first = printable(next(iter(found.values())).name)
        raise DataError(f"{first} is there, but not all that is in one tensor with it", place=[name])


def _wan(infos: Sequence[TensorInfo]) -> Iterator[tuple[str, Rebuilt | None]]:
    """What becomes of each tensor of a Wan."""
    return ((info.name, _same(info, _WAN, _WAN_TABLES)) for info in infos)


_MAPPED: Mapping[str, Callable[[Sequence[TensorInfo]], Iterator[tuple[str, Rebuilt | None]]]] = {
    "FluxTransformer2DModel": _flux,
    "WanTransformer3DModel": _wan,
}
_NAMED_ALIKE = ("UNet2DConditionModel", "QwenImageTransformer2DModel")
"""Classes of diffusers whose names ComfyUI knows."""


def original(infos: Sequence[TensorInfo], config: Mapping[str, Any]) -> dict[str, Rebuilt | None] | None:
    """What becomes of every tensor of a component of diffusers as ComfyUI has it, None for one that is in another;
    nothing for models that keep their names. Raises UsageError for other classes, and DataError for tensors that they
    do not have."""
    name = config.get("_class_name")
    if name in _NAMED_ALIKE:
        return None
    if not isinstance(name, str) or name not in _MAPPED:
        known = ", ".join([*_MAPPED, *_NAMED_ALIKE])
        hint = f"pass the single file of the model that ComfyUI loads; of diffusers {known} are mapped"
        problem = f"{printable(str(name), 60)} of diffusers is not mapped to the names of ComfyUI"
        raise UsageError(problem, place=["config.json", "--to gguf"], hint=hint)
    return dict(_MAPPED[name](infos))
