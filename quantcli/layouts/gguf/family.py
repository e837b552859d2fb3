"""What an architecture of llama.cpp is: names, shapes, keys and the order of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quantcli.layouts.gguf.rows import Order
from quantcli.layouts.gguf.settings import Config

if TYPE_CHECKING:
    from quantcli.kernels import Floats
    from quantcli.stores.stacked import Rebuilt
    from quantcli.tensors.info import TensorInfo

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a config.json makes of a family.

    keys: those of the architecture, without its name before them. needed, optional: shapes of the tensors, by their
    names in the GGUF. made: F32 tensors that are computed. general: keys that are not those of the architecture. tied:
    whether the embedding is the head too. vocabulary: number of its tokens. notes: what llama.cpp does differently, a
    line each.
    """

    keys: Mapping[str, Any]
    needed: Shapes
    vocabulary: int
    optional: Shapes = field(default_factory=dict)
    made: Mapping[str, Floats] = field(default_factory=dict)
    general: Mapping[str, Any] = field(default_factory=dict)
    tied: bool = False
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """An architecture of llama.cpp.

    classes: those of transformers. parts: what a config.json makes of it. layers: what the names of layers begin with
    in a checkpoint, blocks: what in llama.cpp. modules, layer: llama.cpp's names of modules, by those in the
    checkpoint, outside of layers and in them. prefixes: what may stand before all names. unused: expressions for names
    that llama.cpp does not use. orders: of rows, by llama.cpp's name of a module. raised: by how much weights of norms
    are larger in the GGUF. rebuilt: the tensors that take the place of one that is stored otherwise; None of a family
    without such tensors. words: the kinds of tokenizers of its files, where another family has its architecture, too.
    """

    architecture: str
    classes: tuple[str, ...]
    parts: Callable[[Config], Parts]
    modules: Mapping[str, str]
    layer: Mapping[str, str]
    layers: str = "model.layers"
    blocks: str = "blk"
    prefixes: tuple[str, ...] = ()
    unused: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)
    orders: Mapping[str, Order] = field(default_factory=dict)
    raised: float = 0.0
    rebuilt: Callable[[TensorInfo, Config], Sequence[Rebuilt] | None] | None = None
    words: tuple[str, ...] = ()
