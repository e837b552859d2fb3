"""Tensors that mlx-lm changes once, when it first loads a model, of Qwen3-Next; and those that it does not load.

Of Qwen3-Next it adds 1 to the weights of norms, stores convolutions [channels, width, 1] in place of
[channels, 1, width], and takes none that predict further tokens. A model whose experts are stacked it takes for one
that was changed before. Experts have to be stacked to be quantized, so all of that is done here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quantcli import architectures
from quantcli.architectures import UNNAMED
from quantcli.dtypes import from_float32, to_float32
from quantcli.errors import printable
from quantcli.layouts.pieces import plain
from quantcli.layouts.writer import Job, Raw, Weight, Write
from quantcli.tensors.info import TensorInfo

NORM = re.compile(r"(?:\.input_layernorm|\.post_attention_layernorm|model\.norm|\.q_norm|\.k_norm)\.weight$")
CONVOLUTION = re.compile(r"\.conv1d\.weight$")
RAISED = {"qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text"}
"""Types of models to whose norms mlx-lm adds 1."""

_DRAFT = re.compile(r"(?:^|\.)mtp\.")


@dataclass(frozen=True, slots=True)
class Changed:
    """jobs: of the tensors that are changed. left_out: those that are not written. note: what there is to say."""

    jobs: Mapping[str, Job]
    left_out: frozenset[str]
    note: str


def done_before(infos: Iterable[TensorInfo]) -> bool:
    """Whether the tensors of a model are those of mlx-lm, by the shape of convolutions."""
    return any(CONVOLUTION.search(i.name) and len(i.shape) == 3 and i.shape[2] == 1 < i.shape[1] for i in infos)


def changed(tensors: Sequence[Weight], config: Mapping[str, Any]) -> Changed:
    """What becomes of the tensors of a model that mlx-lm would change, or does not load: it has no layers behind the
    last one, drops those of DeepSeek V3 by the number 61, and refuses others."""
    model = architectures.of(config) or UNNAMED
    left = frozenset(t.info.name for t in tensors if model.behind(t.info.name) is not None)
    if config.get("model_type") != "qwen3_next":
        return Changed({}, left, "; ".join(_left(left)))
    tied = config.get("tie_word_embeddings") is True
    left |= {t.info.name for t in tensors if _DRAFT.search(t.info.name) or (tied and t.info.name == "lm_head.weight")}
    jobs: dict[str, Job] = {}
    if not done_before(t.info for t in tensors):
        norms = [i for i in _kept(tensors, left) if NORM.search(i.name) and len(i.shape) == 1]
        jobs = {info.name: _raised(info) for info in norms}
        jobs |= {i.name: _turned(i) for i in _kept(tensors, left) if CONVOLUTION.search(i.name) and len(i.shape) == 3}
    notes = ["1 is added to norms, and convolutions have their axes exchanged, as mlx-lm stores them"] if jobs else []
    return Changed(jobs, left, "; ".join([*notes, *_left(left)]))


def _left(names: Collection[str]) -> list[str]:
    """What there is to say of tensors that are left out."""
    if not names:
        return []
    many = f"{len(names)} tensors are" if len(names) > 1 else "1 tensor is"
    return [f"{many} left out that mlx-lm does not load, such as {printable(min(names), 200)}"]


def _kept(tensors: Sequence[Weight], left: frozenset[str]) -> list[TensorInfo]:
    return [t.info for t in tensors if t.scheme is None and t.info.name not in left]


def _raised(info: TensorInfo) -> Job:
    """The work that stores a vector with 1 added, in its dtype."""

    def piece(kept: Raw, write: Write) -> bool:
        before = to_float32(kept.read_bytes(info.name, 0, info.nbytes), info.dtype)
        found = np.ascontiguousarray(from_float32(before + np.float32(1), info.dtype))
        write(0, 0, found)
        after = to_float32(found.view(np.uint8).reshape(-1), info.dtype)
        return bool(np.array_equal(after.astype(np.float64) - 1, before.astype(np.float64)))

    return Job(outputs=(info,), pieces=lambda: iter([piece]))


def _turned(info: TensorInfo) -> Job:
    """The work that stores [channels, 1, width] as [channels, width, 1], which are the same bytes."""
    channels, one, width = info.shape
    shape = (channels, width, one) if one == 1 else info.shape
    return replace(plain(info), outputs=(replace(info, shape=shape),))
