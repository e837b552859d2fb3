"""Experts among the tensors of a model: where each expert's matrices are, whatever form they are stored in.

Gate, up and down of the experts of a layer are stored

    one by one    X.experts.N.gate_proj.weight [I, H], up_proj [I, H], down_proj [H, I]; or w1, w3 and w2
    stacked       X.experts.gate_up_proj [E, 2I, H], X.experts.down_proj [E, H, I]      gate above up
    transposed    X.experts.gate_up_proj [E, H, 2I], X.experts.down_proj [E, I, H]      Llama 4, Aria: gate beside up
                                                              gpt-oss: their columns alternate; a bias beside each
    flat          X.experts.mlp.w1, v1, w2, all [E * I, H]                              DBRX: down is transposed
    apart         X.experts.gate_proj.weight [E, I, H], up_proj [E, I, H], down_proj [E, H, I]; a bias beside each
                  X.switch_mlp.gate_proj.weight and so on, X.experts.switch_glu of Gemma 4           MLX
    linear        X.input_linear.weight [E, 2I, H], X.output_linear.weight [E, H, I]    Granite: gate above up

Experts of Nemotron-H have no gate: they are stored one by one, and in MLX as X.switch_mlp.fc1 and fc2.

Shapes of both tensors tell stacked from transposed; which columns are the gate's only the type of model can tell, so
that it must be one whose code is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from quantcli.architectures import Architecture
from quantcli.stores.stacked import Matrix
from quantcli.tensors.info import TensorInfo

GATE, UP, DOWN = "gate", "up", "down"

TRANSPOSED = {"llama4", "llama4_text", "gpt_oss", "aria", "aria_text", "openai_privacy_filter"}
"""Types of models whose stacked experts are [E, in, out]."""

EITHER = {"qwen3_vl_moe", "qwen3_vl_moe_text"}
"""Types whose stacked experts transformers loads in both orientations."""

ALTERNATING = {"gpt_oss"}
"""Types where columns of gate and up alternate."""

ONE_BY_ONE = ("gate_proj", "up_proj", "down_proj")
MIXTRAL = ("w1", "w3", "w2")
FLAT = ("w1", "v1", "w2")
UNGATED = ("", "fc1", "fc2")
"""Words for gate, up and down of most models, of Mixtral, of DBRX and of MLX's experts without gates."""

SINGLE = re.compile(r"(.*\bexperts)\.(0|[1-9][0-9]{0,5})\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
"""Names of experts that are stored one by one."""

EXPERT = re.compile(r"\b(?:experts|switch_mlp)\.")
"""What the names of all experts have in common."""

_STACKED = re.compile(r"(.*\bexperts)\.(gate_up_proj|down_proj)(_bias)?")
_FLAT = re.compile(r"(.*\bexperts\.mlp)\.(w1|v1|w2)")
_APART = re.compile(
    r"(.*\b)(?:experts\.switch_glu|experts|switch_mlp)\.(gate_proj|up_proj|down_proj|fc1|fc2)\.(weight|bias)"
)
_LINEAR = re.compile(r"(.*\.block_sparse_moe)\.(input_linear|output_linear)\.weight")
_PARTS = {word: part for words in (ONE_BY_ONE, MIXTRAL, UNGATED) for word, part in zip(words, (GATE, UP, DOWN))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The experts of a layer.

    prefix: what the names of all their tensors begin with. stored: these. weights, biases: by GATE, UP and DOWN the
    matrices (out, in) and vectors (out, 1) of each expert; there may be none for GATE. single: whether they are stored
    one by one. dtype: of all.
    """

    prefix: str
    stored: tuple[str, ...]
    weights: Mapping[str, tuple[Matrix, ...]]
    dtype: str
    biases: Mapping[str, tuple[Matrix, ...]] = field(default_factory=dict)
    single: bool = False

    @property
    def count(self) -> int:
        """Number of experts."""
        return len(self.weights[DOWN])

    @property
    def transposed(self) -> bool:
        """Whether any matrix is stored transposed."""
        return any(matrix.transposed for each in self.weights.values() for matrix in each)


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What becomes of the experts of a layer: their tensors as PREFIX.N.WORD.weight, or with stacked=True all of one
    kind in PREFIX.WORD.weight. words: for gate, up and down. home: a module whose other tensors are renamed with the
    experts, and its new name."""

    stacked: bool
    prefix: str
    words: tuple[str, str, str] = ONE_BY_ONE
    home: tuple[str, str] | None = None

    def same(self, layer: Experts) -> bool:
        """Whether the experts of a layer are stored like that already."""
        words = dict(zip((GATE, UP, DOWN), self.words))
        held = [(part, "weight") for part in layer.weights] + [(part, "bias") for part in layer.biases]
        return self.stacked and {f"{self.prefix}.{words[part]}.{end}" for part, end in held} == set(layer.stored)


def model_types(config: Mapping[str, Any]) -> list[str]:
    """The type of a model and that of its text part, which has the experts."""
    text = config.get("text_config")
    found = [config.get("model_type"), text.get("model_type") if isinstance(text, dict) else None]
    return [name for name in found if isinstance(name, str)]


def find(
    infos: Iterable[TensorInfo], config: Mapping[str, Any], model: Architecture
) -> tuple[list[Experts], dict[str, str]]:
    """The experts of every layer, and tensors of experts that cannot be taken apart, each with the reason."""
    layers, unclear = list[Experts](), dict[str, str]()
    stacks: dict[str, dict[str, TensorInfo]] = {}
    flat: dict[str, dict[str, TensorInfo]] = {}
    linear: dict[str, dict[str, TensorInfo]] = {}
    single: dict[str, dict[tuple[str, int], TensorInfo]] = {}
    apart: dict[str, dict[tuple[str, str], TensorInfo]] = {}
    for info in infos:
        if (match := SINGLE.fullmatch(info.name)) and len(info.shape) == 2:
            single.setdefault(match[1], {})[_PARTS[match[3]], int(match[2])] = info
        elif match := _STACKED.fullmatch(info.name):
            stacks.setdefault(match[1], {})[f"{match[2]}{match[3] or ''}"] = info
        elif match := _FLAT.fullmatch(info.name):
            flat.setdefault(match[1], {})[match[2]] = info
        elif (match := _LINEAR.fullmatch(info.name)) and len(info.shape) == 3:
            linear.setdefault(match[1], {})[match[2]] = info
        elif (match := _APART.fullmatch(info.name)) and len(info.shape) == (3 if match[3] == "weight" else 2):
            apart.setdefault(f"{match[1]}experts", {})[_PARTS[match[2]], match[3]] = info
    types = model_types(config)
    for prefix, held in single.items():
        layers += [found] if (found := _single(prefix, held)) else []
    for prefix, parts in apart.items():
        layers += [found] if (found := _apart(prefix, parts)) else []
    for prefix, named in linear.items():
        layers += [found] if (found := _linear(prefix, named)) else []
    for prefix, named in stacks.items():
        either = _stacked(prefix, named, types, known=model.known)
        if isinstance(either, Experts):
            layers.append(either)
        else:
            unclear.update((info.name, either) for info in named.values())
    for prefix, named in flat.items():
        either = _flat(prefix, named, config, types)
        if isinstance(either, Experts):
            layers.append(either)
        else:
            unclear.update((info.name, either) for info in named.values())
    return layers, unclear


def _single(prefix: str, held: Mapping[tuple[str, int], TensorInfo]) -> Experts | None:
    """Experts that are stored one by one; None where some are missing or differ."""
    count, kinds = len({number for _, number in held}), _kinds(part for part, _ in held)
    wanted = {part: [held.get((part, number)) for number in range(count)] for part in kinds}
    weights: dict[str, tuple[Matrix, ...]] = {}
    for part, each in wanted.items():
        infos = [info for info in each if info is not None]
        if len(infos) != count or len({(info.dtype, info.shape) for info in infos}) > 1:
            return None
        rows, cols = infos[0].shape
        weights[part] = tuple(Matrix(name=info.name, rows=rows, cols=cols) for info in infos)
    dtypes = {info.dtype for info in held.values()}
    if len(dtypes) > 1 or len(held) != len(kinds) * count:
        return None
    names = tuple(info.name for info in held.values())
    return Experts(prefix=prefix, stored=names, weights=weights, dtype=dtypes.pop(), single=True)


def _kinds(parts: Iterable[str]) -> tuple[str, ...]:
    """The matrices that experts should have, if they have these: all three, or none for the gate."""
    return (GATE, UP, DOWN) if GATE in parts else (UP, DOWN)


def _linear(prefix: str, named: Mapping[str, TensorInfo]) -> Experts | None:
    """Experts of Granite, gate above up in one tensor; None where their shapes do not match."""
    both, down = named.get("input_linear"), named.get("output_linear")
    found = orientation(both, down) if both is not None and down is not None else None
    if both is None or down is None or found is None or found[0]:
        return None
    _, inner, hidden = found
    return Experts(
        prefix=prefix,
        stored=(both.name, down.name),
        weights={**_halves(both, inner, hidden, apart=inner * hidden), DOWN: _each(down)},
        dtype=both.dtype,
    )


def _apart(prefix: str, held: Mapping[tuple[str, str], TensorInfo]) -> Experts | None:
    """Experts of which gate, up and down are a tensor each; None where one is missing or their shapes do not match."""
    kinds = _kinds(part for part, _ in held)
    weights = [held.get((part, "weight")) for part in kinds]
    infos = [info for info in weights if info is not None]
    if len(infos) < len(kinds) or len({info.dtype for info in infos}) > 1:
        return None
    (count, inner, hidden), *others, down = (info.shape for info in infos)
    if any(other != (count, inner, hidden) for other in others) or down != (count, hidden, inner):
        return None
    biases = {part: held[part, "bias"] for part in kinds if (part, "bias") in held}
    if any(bias.shape != held[part, "weight"].shape[:2] for part, bias in biases.items()):
        return None
    return Experts(
        prefix=prefix,
        stored=tuple(info.name for info in held.values()),
        weights={part: _each(held[part, "weight"]) for part in kinds},
        biases={part: _each(bias) for part, bias in biases.items()},
        dtype=infos[0].dtype,
    )


def _each(info: TensorInfo) -> tuple[Matrix, ...]:
    """The matrices of all experts in a tensor, vectors as one column."""
    count, rows, cols = (*info.shape, 1)[:3]
    return tuple(Matrix(name=info.name, rows=rows, cols=cols, first=number * rows * cols) for number in range(count))


def _halves(
    both: TensorInfo, rows: int, cols: int, *, apart: int, width: int = 0, step: int = 1
) -> dict[str, tuple[Matrix, ...]]:
    """The gates and the ups of all experts that are in one tensor. apart: elements from the first of a gate to the
    first of its up; width, step: as of a Matrix."""
    size = 2 * rows * cols
    return {
        part: tuple(
            Matrix(name=both.name, rows=rows, cols=cols, first=n * size + place * apart, width=width, step=step)
            for n in range(both.shape[0])
        )
        for place, part in enumerate((GATE, UP))
    }


def orientation(both: TensorInfo, down: TensorInfo) -> tuple[bool, int, int] | None:
    """Whether stacked experts are transposed, their inner and outer sizes; None where the shapes do not match.

    >>> orientation(TensorInfo("a", "BF16", (8, 64, 64)), TensorInfo("b", "BF16", (8, 32, 64)))
    (True, 32, 64)
    """
    if len(both.shape) != 3 or len(down.shape) != 3 or both.dtype != down.dtype or both.shape[0] != down.shape[0]:
        return None
    (_, first, second), (_, rows, cols) = both.shape, down.shape
    if first == 2 * cols and second == rows:
        return False, cols, rows
    return (True, rows, cols) if first == cols and second == 2 * rows else None


def rows_are_outputs(name: str, named: Mapping[str, TensorInfo]) -> bool:
    """Whether a tensor of stacked experts is known to be [E, out, in], by its shape and that of its other half."""
    stem = name.rpartition(".")[0]
    both, down = named.get(f"{stem}.gate_up_proj"), named.get(f"{stem}.down_proj")
    found = orientation(both, down) if both is not None and down is not None else None
    return found is not None and not found[0]


def _stacked(prefix: str, named: Mapping[str, TensorInfo], types: list[str], *, known: bool) -> Experts | str:
    """Experts that are stored in one tensor, gate and up together; or why they cannot be told apart."""
    both, down = named.get("gate_up_proj"), named.get("down_proj")
    if both is None or down is None:
        return f"{'gate_up_proj' if both is None else 'down_proj'} of these experts is missing"
    found = orientation(both, down)
    if found is None:
        return f"the shapes {list(both.shape)} and {list(down.shape)} of these experts do not match"
    transposed, inner, hidden = found
    if not known:
        return "which of its rows are the gate's cannot be told: config.json names no type of model that quantcli knows"
    if transposed != bool(TRANSPOSED.intersection(types)) and not EITHER.intersection(types):
        return f"{list(both.shape)} is not the shape of experts of {types[-1]}, so its rows cannot be told apart"
    step = 2 if ALTERNATING.intersection(types) else 1
    count, stride = both.shape[0], inner * hidden
    apart = 1 if step == 2 else inner if transposed else stride
    return _checked(
        Experts(
            prefix=prefix,
            stored=tuple(info.name for info in named.values()),
            weights={
                **_halves(both, inner, hidden, apart=apart, width=2 * inner if transposed else 0, step=step),
                DOWN: tuple(
                    Matrix(name=down.name, rows=hidden, cols=inner, first=n * stride, width=hidden if transposed else 0)
                    for n in range(count)
                ),
            },
            dtype=both.dtype,
        ),
        _biases(named, count, inner, hidden, step),
    )


def _checked(experts: Experts, biases: dict[str, tuple[Matrix, ...]] | str) -> Experts | str:
    return biases if isinstance(biases, str) else replace(experts, biases=biases)


def _biases(
    named: Mapping[str, TensorInfo], count: int, inner: int, hidden: int, step: int
) -> dict[str, tuple[Matrix, ...]] | str:
    """The biases of experts, by part; or why they cannot be told apart."""
    both, down = named.get("gate_up_proj_bias"), named.get("down_proj_bias")
    if both is None and down is None:
        return {}
    if both is None or down is None or both.shape != (count, 2 * inner) or down.shape != (count, hidden):
        return "the biases of these experts do not match their weights"
    if both.dtype != down.dtype:
        return "the biases of these experts have several dtypes"
    width, apart = (2 * inner, 1) if step == 2 else (0, inner)
    return {**_halves(both, inner, 1, apart=apart, width=width, step=step), DOWN: _each(down)}


def _flat(prefix: str, named: Mapping[str, TensorInfo], config: Mapping[str, Any], types: list[str]) -> Experts | str:
    """Experts of DBRX, one below another; or why they cannot be told apart."""
    sizes = config.get("ffn_config")
    count = sizes.get("moe_num_experts") if isinstance(sizes, dict) else None
    if "dbrx" not in types or type(count) is not int or count < 1:
        return "how many experts it holds cannot be told without the config.json of a DBRX"
    infos = [named.get(word) for word in ("w1", "v1", "w2")]
    held = [info for info in infos if info is not None and len(info.shape) == 2 and info.shape[0] % count == 0]
    if len(held) < 3 or len({(info.shape, info.dtype) for info in held}) > 1:
        return f"w1, v1 and w2 are not {count} experts of one shape"
    inner, hidden = held[0].shape[0] // count, held[0].shape[1]
    starts = [expert * inner * hidden for expert in range(count)]
    gate, up, down = (info.name for info in held)
    return Experts(
        prefix=prefix,
        stored=(gate, up, down),
        weights={
            GATE: tuple(Matrix(name=gate, rows=inner, cols=hidden, first=first) for first in starts),
            UP: tuple(Matrix(name=up, rows=inner, cols=hidden, first=first) for first in starts),
            DOWN: tuple(Matrix(name=down, rows=hidden, cols=inner, first=first, width=hidden) for first in starts),
        },
        dtype=held[0].dtype,
    )
