"""Statistics of what the columns of a weight are multiplied by, from a file by name: how much their errors count.

A file of means and second moments (moments.py), or of the diagonals of these alone: mean squared activations, or other
importances, in .safetensors, .npy or .npz, or an importance matrix of llama.cpp. An entry belongs to the tensor of its
name, or to the one whose module it names; llama.cpp's names are translated. It has a number for each column of a row,
or, for a convolution, one for each input channel.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from quantcli.architectures.experts import EXPERT
from quantcli.dtypes import DTYPES, floats
from quantcli.errors import UsageError, printable
from quantcli.layouts.config import stated
from quantcli.layouts.writer import named
from quantcli.patterns import module_of, near_misses
from quantcli.planning.recipe_keys import BATCH_NORM, IMPORTANCE, STATISTICS
from quantcli.planning.stacks import Found, Known, find, known
from quantcli.stores import Source, open_source
from quantcli.tensors.decided import Columns, Factors
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import Grouping, rows_of_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.planning.moments import Entry
    from quantcli.planning.nearby import Nearby

    Array = NDArray[np.float64]

_GPT2 = re.compile(r"(?:.*\.)?h\.\d+\.(?:attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
"""Matrices of GPT-2's blocks."""

TIED = ("lm_head", "language_model.lm_head", "model.lm_head")
"""Names of output heads that may be the embedding once more: then a model has modules, and so statistics, of these
names, and no tensor."""

MOST = 1 << 28
"""Bytes of importances that are read at most: those of a model of a trillion weights have some 50 MB."""


@dataclass(frozen=True, slots=True)
class InputStatistics:
    """The entries of a file, and the XXH3-128 of them all. strict: whether every entry must belong to a tensor, and
    every tensor that is quantized have one, as in files of second moments. key: of a recipe, or option, that names such
    a file. inputs_first: tensors whose columns are a layer's outputs, of which statistics of inputs say nothing."""

    path: str
    entries: Mapping[str, Entry]
    digest: str
    strict: bool = False
    key: str = IMPORTANCE
    inputs_first: frozenset[str] = frozenset()
    of_experts: Known = field(init=False, compare=False, repr=False)
    factors: Factors = field(default_factory=Factors, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "of_experts", known(self.entries))

    @property
    def of_outputs(self) -> bool:
        """Whether they tell what errors cost in the output of a layer."""
        return self.key == STATISTICS

    def of(self, info: TensorInfo, plan: Grouping) -> Columns | None:
        """That of a tensor; None when there is no entry for it. Raises UsageError when the entry has another shape or
        the layout mixes columns."""
        found = self._found(info)
        if found is None:
            return None
        place = [self.path, printable(found.first)]
        if info.name in self.inputs_first:
            problem = f"{printable(info.name)} is stored (in, out): its columns are the layer's outputs, not its inputs"
            hint = "leave it out with --exclude; of an .onnx file --to onnx reads such weights transposed"
            raise UsageError(problem, place=place, hint=hint)
        if len(found.names) > 1:
            return self._of_each(found.names, info, plan)
        entry = self.entries[found.first]
        if entry.experts is None:
            return replace(self._columns(entry, found.expert, info, plan, place), factors=self.factors)
        counts, expert = entry.experts.counts, found.expert
        if expert is not None:
            if expert >= len(counts):
                raise UsageError(f"the entry has no expert {expert}: it is of {len(counts)}", place=place)
            return replace(self._columns(entry.experts.entry(expert), None, info, plan, place), factors=self.factors)
        if len(info.shape) != 3 or len(counts) != info.shape[0]:
            problem = f"the entry is of {len(counts)} experts, {printable(info.name)} is {list(info.shape)}"
            raise UsageError(problem, place=place)
        self._taps(entry.values.size, info, plan, place)
        matrices = len(entry.experts.second.shape) == 3
        experts = _ByExpert(self, info, plan, place, counts, entry.correlated, matrices, entry.experts.entry)
        return Columns(entry.values, _digest(entry.values, None, entry), None, None, entry.count, experts)

    def _of_each(self, names: Sequence[str | None], info: TensorInfo, plan: Grouping) -> Columns:
        """That of a tensor of experts that have an entry each, or none."""
        from xxhash import xxh3_64

        from quantcli.planning.moments import Entry  # here, for most runs have no such file

        total, samples, whole, place = np.zeros(plan.cols), 0.0, xxh3_64(), [self.path]
        entries = [Entry(total, total, None, 0.0) if name is None else self.entries[name] for name in names]
        for name, entry in zip(names, entries):
            if name is not None:
                place = [self.path, printable(name)]
                self._taps(entry.values.size, info, plan, place)
                count = entry.count if math.isfinite(entry.count) else 1.0
                total, samples = total + count * entry.values.reshape(-1), samples + count
            whole.update(_digest(entry.values, entry.mean, entry).encode())
        some = [entry for name, entry in zip(names, entries) if name is not None]
        correlated, matrices = (all(v) for v in ([e.correlated for e in some], [e.matrix is not None for e in some]))
        counts = tuple(entry.count for entry in entries)
        experts = _ByExpert(self, info, plan, place, counts, correlated, matrices, entries.__getitem__)
        return Columns(total / samples, str(whole.hexdigest()), None, None, samples, experts)

    def rows(self, info: TensorInfo) -> Grouping:
        """A tensor as rows of inputs, as the file counts these: of a stack of experts along the last axis."""
        found = self._found(info)
        stacked = EXPERT.search(info.name) is not None
        if found is not None and len(info.shape) == 3 and not stacked:
            entry = self.entries[found.first]
            own = entry.values.shape[-1] == info.shape[2] != info.shape[1]
            stacked = own or len(found.names) > 1 or entry.experts is not None
        return rows_of_inputs(info.shape, stacked=stacked and len(info.shape) == 3)

    def lacking(self, info: TensorInfo) -> bool:
        """Whether there is no entry for a tensor, or for one of the experts in it."""
        found = self._found(info)
        return found is None or None in found.names

    def _columns(self, entry: Entry, expert: int | None, info: TensorInfo, plan: Grouping, place: list[str]) -> Columns:
        """That of a tensor, or of one of the experts in it. expert: which one the tensor is of those in the entry."""
        values = entry.values
        if values.ndim == 1 and values.size % plan.cols == 0 and (expert is not None or len(info.shape) == 3):
            values = values.reshape(-1, plan.cols)  # of all experts, as llama.cpp once wrote them
        if expert is not None:
            if values.ndim != 2 or expert >= len(values):
                raise UsageError(f"the entry has no expert {expert}: its shape is {list(values.shape)}", place=place)
            values = values[expert]
        elif values.ndim == 2 and len(info.shape) == 3 and values.shape == (info.shape[0], plan.cols):
            values = values.mean(axis=0)  # of all experts in one tensor: columns count the same in all its rows
        taps = self._taps(values.size, info, plan, place)
        values, mean, matrix = np.repeat(values.ravel(), taps), entry.mean, entry.matrix
        if matrix is not None and taps > 1:
            matrix = replace(matrix, taps=taps, mean=mean)
        if mean is not None:
            mean = np.repeat(mean, taps)
        together = matrix if mean is None or matrix is not None else _of_places(values, mean, info, plan, place)
        return Columns(values, _digest(values, mean, entry), mean, together, entry.count)

    def _taps(self, size: int, info: TensorInfo, plan: Grouping, place: list[str]) -> int:
        """How many columns each number of an entry is for. Raises UsageError where it does not fit the tensor."""
        if size == plan.cols:
            return 1
        stack = EXPERT.search(info.name) is not None
        per_channel = len(info.shape) > 2 and math.prod(info.shape[1:]) == plan.cols and not stack
        if per_channel and size == info.shape[1]:
            return plan.cols // info.shape[1]
        what = "statistics" if self.strict else "importances"
        wanted = f"{plan.cols} columns" + (f" or {info.shape[1]} input channels" if per_channel else "")
        problem = f"{size} {what} for {wanted} of {printable(info.name)} {list(info.shape)}"
        turned = len(info.shape) == 2 and size == info.shape[0]
        hint = "they are of the layer's outputs, or the weight is stored (in, out)" if turned and self.strict else None
        if len(info.shape) > 2 and size == info.shape[-1]:
            hint = f"use a --group-size of at most {size}: rows shorter than a group are joined"
        if self.strict and len(info.shape) > 2 and math.prod(info.shape[1:]) == size:
            hint = f"use a larger --group-size: rows of {plan.cols} columns end within a channel"
        raise UsageError(problem, place=place, hint=hint)

    def _found(self, info: TensorInfo) -> Found | None:
        """The entries for a tensor."""
        from quantcli.layouts.gguf.names import imatrix_name  # here, for its package is all of GGUF: 15 ms

        for own in ((info.name, None), (module_of(info.name), None), imatrix_name(info.name)):
            if own is not None and own[0] in self.entries:
                return Found((own[0],), own[1], (own[0],))
        found = find(info.name, info.shape[0] if len(info.shape) == 3 else 0, self.of_experts)
        shared = found is not None and self.entries[found.first].values.ndim == 1
        if found is None or not shared or self.entries[found.first].experts is not None:
            return found
        return replace(found, expert=None)  # whichever it is

    def unused(self, infos: Sequence[TensorInfo]) -> list[str]:
        """Entries that belong to no tensor. Raises UsageError when none belongs to any, or each has to and is not that
        of an output head."""
        used = {name for info in infos if (found := self._found(info)) is not None for name in found.used}
        left = [name for name in self.entries if name not in used]
        tied = all(name in TIED or module_of(name) in TIED for name in left)
        if len(left) == len(self.entries) or (left and self.strict and not tied):
            names = [info.name for info in infos]
            more = ", nor does any other entry" if len(left) == len(self.entries) > 1 else ""
            problem = f"{printable(repr(left[0]), 200)} names no tensor of the model{more}"
            raise UsageError(problem, place=[self.path], hint=near_misses(left[0], names))
        return left

    def left_over(self, infos: Sequence[TensorInfo], model: str) -> str:
        """The warning about entries that belong to no tensor of a model; empty where there are none. Raises as `unused`
        does."""
        unused = self.unused(infos)
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        return f"{self.path}: {printable(unused[0], 200)}{more} belongs to no tensor of {model}" if unused else ""


@dataclass(frozen=True, slots=True)
class _ByExpert:
    """What is known of each expert in a tensor: `entry` gives what a file tells of one."""

    statistics: InputStatistics
    info: TensorInfo
    plan: Grouping
    place: list[str]
    counts: tuple[float, ...]
    correlated: bool
    full: bool
    entry: Callable[[int], Entry]

    def of(self, expert: int) -> Columns:
        """What is known of the inputs of one."""
        return self.statistics._columns(self.entry(expert), None, self.info, self.plan, self.place)


def _of_places(values: Array, mean: Array, info: TensorInfo, plan: Grouping, place: list[str]) -> Nearby | None:
    """How the inputs of a convolution go together, of which vectors are known; None for other layers."""
    from quantcli.planning.nearby import MOST_COLUMNS, Nearby

    kernel = info.shape[2:]
    whole = math.prod(info.shape[1:]) == plan.cols and math.prod(kernel) > 1 and not EXPERT.search(info.name)
    return Nearby(values, mean, kernel, place) if kernel and whole and plan.cols <= MOST_COLUMNS else None


def inputs_first(source: Source) -> frozenset[str]:
    """Matrices of a source whose columns are the layer's outputs: right-hand ones of products in an ONNX graph, and
    those of modules of the class Conv1D, which GPT-2 has: told by config.json, or without one by names and shapes."""
    infos = source.infos()
    again = named("onnx").again(source)
    if again is not None and again.matrices is not None:
        return frozenset(name for name, outputs_first in again.matrices(infos).items() if not outputs_first)
    model = stated(source.beside)
    if model is None:
        return _of_gpt2(infos)
    return frozenset(i.name for i in infos if len(i.shape) == 2 and model.holder(module_of(i.name)) == "Conv1D")


def _of_gpt2(infos: Sequence[TensorInfo]) -> frozenset[str]:
    """The matrices of GPT-2 where they are stored (in, out): with q, k and v side by side in c_attn, its shape is (C,
    3 C). nanoGPT has the same names for (out, in).

    >>> shapes = {"h.0.attn.c_attn.weight": (4, 12), "h.0.mlp.c_proj.weight": (16, 4), "wte.weight": (9, 4)}
    >>> sorted(_of_gpt2([TensorInfo(name, "F32", shape) for name, shape in shapes.items()]))
    ['h.0.attn.c_attn.weight', 'h.0.mlp.c_proj.weight']
    """
    found = {info.name: info.shape for info in infos if len(info.shape) == 2 and _GPT2.fullmatch(info.name)}
    joined = [shape for name, shape in found.items() if name.endswith(".c_attn.weight")]
    return frozenset(found) if joined and all(3 * rows == cols for rows, cols in joined) else frozenset()


def _digest(values: Array, mean: Array | None, entry: Entry) -> str:
    """What tells the statistics of a tensor from others; of a matrix only its diagonal is looked at."""
    from xxhash import xxh3_64

    if entry.experts is not None:
        return entry.experts.digest
    whole = xxh3_64(np.ascontiguousarray(values, "<f8").tobytes())
    if entry.matrix is not None or mean is not None:
        whole.update(f"{'matrix' if entry.matrix is not None else 'vectors'} {entry.count!r}".encode())
        whole.update(b"" if mean is None else np.ascontiguousarray(mean, "<f8").tobytes())
    return str(whole.hexdigest())


def load(path: str, digest: str | None = None, *, diagonals: bool = False) -> InputStatistics:
    """The statistics in a file, which are to have this digest. diagonals: whether of means and second moments only the
    mean squares are used. Raises UsageError when they do not, and for what is not finite or below 0, QuantcliError for
    what cannot be read."""
    from quantcli.planning import moments

    strict = moments.is_statistics(path)
    found = moments.entries(path) if strict else {name: moments.Entry(v) for name, v in _importances(path).items()}
    if diagonals:
        found = {name: moments.Entry(entry.diagonals) for name, entry in found.items()}
    correlated = any(entry.correlated for entry in found.values())
    key = STATISTICS if correlated else IMPORTANCE
    return InputStatistics(path, found, _checked(found, digest, path, key), strict, key)


def of_norms(source: Source, digest: str | None = None) -> InputStatistics:
    """The statistics that follow from the batch norms of a source, which are to have this digest. Raises UsageError
    where there are none, or others."""
    from quantcli.planning import batch_norms

    found = batch_norms.entries(source)
    return InputStatistics(BATCH_NORM, found, _checked(found, digest, source.path, STATISTICS), False, STATISTICS)


def again(source: Source, path: str, digest: str, key: str) -> InputStatistics:
    """Statistics of a source once more, on another machine: by what is known of them here. Raises UsageError where they
    are other ones there."""
    if path == BATCH_NORM:
        found = of_norms(source, digest)
    else:
        found = load(path, digest, diagonals=key == IMPORTANCE)
    return replace(found, inputs_first=inputs_first(source))


def _checked(found: Mapping[str, Entry], digest: str | None, place: str, key: str) -> str:
    """The digest of all entries. key: of a recipe that names such a file. Raises UsageError where the digest is to be
    another one."""
    from xxhash import xxh3_128

    whole = xxh3_128()
    for name, entry in sorted(found.items()):
        values = entry.values
        whole.update(f"{name} {values.shape}".encode() + np.ascontiguousarray(values, "<f8").tobytes())
        if entry.correlated or entry.experts is not None:
            whole.update(_digest(values, entry.mean, entry).encode())
    if digest is not None and digest != whole.hexdigest():
        what = "importances" if key == IMPORTANCE else "statistics"
        raise UsageError(f"these are not the {what} the recipe was made with", place=[place])
    return str(whole.hexdigest())


def _importances(path: str) -> dict[str, Array]:
    """Importances by name. Raises UsageError for what is not finite or below 0."""
    if path.lower().endswith((".yaml", ".yml", ".json")):
        problem = "importances are numbers by column, in .safetensors, .npy, .npz, GGUF or .dat"
        hint = "a recipe is given with --recipe" if not path.lower().endswith(".json") else None
        raise UsageError(problem, place=[path], hint=hint)
    from quantcli.planning import imatrix

    entries = imatrix.legacy(path, MOST) if imatrix.is_legacy(path) else _stored(path)
    if not entries:
        raise UsageError("the file holds no importances", place=[path])
    for name, values in entries.items():
        wrong = ~(np.isfinite(values) & (values >= 0))
        if wrong.any():
            at = int(wrong.argmax())
            problem = f"importance {values.ravel()[at]:g} at {at} is not a number of 0 or more"
            raise UsageError(problem, place=[path, printable(name)])
    return entries


def _stored(path: str) -> dict[str, Array]:
    """The entries of a source: an importance matrix in GGUF, or tensors."""
    from quantcli.planning.imatrix import importances

    with contextlib.closing(open_source(path)) as source:
        total = sum(info.nbytes for info in source.infos())
        if total > MOST:
            raise UsageError(f"the importances have {total} bytes, more than the limit of {MOST}", place=[path])
        return dict(importances(source)) if source.kind == "gguf" else _tensors(source)


def _tensors(source: Source) -> dict[str, Array]:
    """The tensors of a source as entries."""
    entries: dict[str, Array] = {}
    for info in source.infos():
        if not DTYPES[info.dtype].quantizable:
            raise UsageError(f"{info.dtype} is not a float type", place=[source.path, printable(info.name)])
        buffer = np.empty(info.nbytes, np.uint8)
        source.read(info.name, 0, buffer.data)
        entries[info.name] = floats(buffer, info.dtype).reshape(info.shape)
    return entries
