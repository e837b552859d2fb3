"""Models whose codes can be moved to another layout: those of quantcli, and those of other tools that have such codes.

Of another tool's file the parameters are looked at first: which zero points there are decides which targets can store
the codes. MXFP4 is NVFP4 too where its scales allow that. What no other layout has (blocks with scales of scales, other
small floats, groups that are not runs of columns) is named, and can be decoded and quantized again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from quantcli.asking import Scheme, changed
from quantcli.errors import DataError, QuantcliError, UsageError, printable
from quantcli.experts import loadable
from quantcli.floats import decoded, named_for
from quantcli.layouts.as_nvfp4 import alone, nvfp4, tensor_scale
from quantcli.layouts.config import json_beside, model_dtype
from quantcli.layouts.held import OFFSETS, Moved, every, joined, offsets_of, scheme_of
from quantcli.layouts.held_floats import FLOATING, input_scale, stored_by
from quantcli.layouts.native.document import StoredKept
from quantcli.layouts.native.model import Model as Native
from quantcli.layouts.native.model import Tensor
from quantcli.layouts.reader import Held, is_published
from quantcli.layouts.writer import Codes, Raw, named
from quantcli.models import Model, View, left_out, view_of
from quantcli.scheme import STATIC
from quantcli.stores.derived import Derived
from quantcli.tensors.decided import Decided, Kept, Quantized
from quantcli.tensors.fused import partners
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import TileSpan, grouping_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.kernels import Floats
    from quantcli.metrics import Metrics
    from quantcli.stores import Source

MOVED, PLAIN = "moved", "plain"
"""Why tensors of another tool's file are quantized and kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """A tensor on its way into another layout.

    decided: what it is there, of a weight whose codes cannot be moved what is nearest to it. codes: what a writer
    takes. view: the tensor as floats. scheme: as its file has it, None for floats. obstacle: why no layout can have its
    codes. metrics: what its file says the codes cost.
    """

    decided: Decided
    codes: Codes | Raw
    view: View
    scheme: str | None
    bytes_in: int
    obstacle: str = ""
    metrics: Metrics | None = None


class Movable(Mapping[str, Moving]):
    """The tensors of a model by the names they are moved under. source: where they are; notes: what there is to say of
    them, for people."""

    def __init__(self, source: Source, tensors: Mapping[str, Moving], notes: tuple[str, ...] = ()) -> None:
        self.source, self._tensors, self.notes = source, tensors, notes

    def __getitem__(self, name: str) -> Moving:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


MXFP4, NVFP4, ALONE = (
    Scheme(format="fp4", group_size=size, scale_dtype=dtype)
    for size, dtype in ((32, "float8_e8m0"), (16, "float8_e4m3"), (16, "float8_e4m3_alone"))
)
AS = {"MXFP4A16": MXFP4, "NVFP4A16": NVFP4}
"""What codes of MXFP4 can be moved as."""


def movable(model: Model, to: str, *, container: bool = False, scheme: str | None = None) -> Movable:
    """A model as it can be moved to a target, experts arranged as that needs them. container: whether the target is to
    hold the tensors alone. scheme: what codes of MXFP4 become, a key of AS; what the target has, where it is None.
    Raises DataError for a model that holds no codes, and as reading it does, UsageError for a scheme where there are no
    codes of MXFP4."""
    if not model.is_native and not model.quantized:
        raise DataError("it holds no quantized tensor", place=[model.path], hint="use quantize --to")
    try:
        notes = list[str]()
        views = model if model.is_native else named_for(model, to, notes.append)
        floats = decoded(model.source, views, moved=True)
        source = loadable(floats, to, container=container)
        stored = model.is_native and not source.arranged
        found = _native(model.stored) if stored else _found(model.source, views, floats, source, notes, to)
        return _for_runtime(_of_nvfp4(_of_mxfp4(found, to, scheme), to), to)
    except QuantcliError as error:
        raise (error if error.place[:1] == [model.path] else error.within(model.path)) from None


def _native(model: Native) -> Movable:
    """The tensors of quantcli's own file, with all there is to know of them."""
    tensors = {
        name: Moving(
            decided=tensor.stored.decided,
            codes=tensor,
            view=view_of(tensor),
            scheme=tensor.scheme.name if tensor.scheme is not None else None,
            bytes_in=tensor.stored.bytes_out,
            metrics=tensor.stored.metrics,
        )
        for name, tensor in model.items()
    }
    return Movable(model.source, tensors)


# ---- of other tools -----------------------------------------------------------------------------------------------


class _Plain:
    """The bytes of tensors that are kept."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def read_bytes(self, name: str, start: int, size: int) -> NDArray[np.uint8]:
        buffer = np.empty(size, np.uint8)
        self._source.read(name, start, buffer.data)
        return buffer


def _found(
    stored: Source, views: Mapping[str, View], floats: Source, source: Source, notes: Sequence[str], to: str
) -> Movable:
    """The tensors of another tool's file. stored: as it is stored; floats: all decoded; source: the same with experts
    arranged. notes: on their names."""
    held = {name: _held(view) for name, view in views.items() if view.scheme is not None}
    making = _Making(
        stored=stored,
        source=source if source.arranged else floats,
        before=source if isinstance(source, Derived) and source.arranged else None,
        views=views,
        held=held,
        offsets=_offsets(held, views),
        dtype=model_dtype(json_beside(source.beside, "config.json") or {}, "F32"),
        to=to,
    )
    tensors = {info.name: making.tensor(info) for info in making.source.infos()}
    moved = {name for name, tensor in tensors.items() if tensor.decided.input_scale is not None}
    beside = left_out(view for name, view in views.items() if name not in moved)
    said = [*notes, *([source.arranged] if source.arranged else []), *beside]
    return Movable(making.source, tensors, tuple(said))


def _held(view: View) -> Held | str:
    """The codes of a quantized tensor, or why they are not moved."""
    if view.stored is not None:
        return _of_native(view.stored)
    return view.held()


def _of_native(tensor: Tensor) -> Held | str:
    """The codes of a tensor that quantcli quantized."""
    scheme, plan = tensor.stored.scheme, tensor.stored.grouping
    assert scheme is not None and plan is not None
    moved = (scheme.family == "int" and not scheme.binary) or scheme.format in FLOATING
    if not moved or plan.cols != tensor.shape[-1] or plan.shared == "columns":
        return f"experts of {scheme.name} are not arranged"
    floating = scheme.format in FLOATING
    where: int | str = plan.group if scheme.granularity in ("group", "block") else "channel"

    def rows(first: int, last: int) -> TileSpan:
        return TileSpan(first, last - first, 0, plan.cols)

    def params(first: int, last: int) -> tuple[Floats, Floats | None]:
        scale, zero = tensor.scales(rows(first, last))
        if plan.height > 1:  # of the blocks that these are rows of
            scale = scale[np.arange(first, last) // plan.height - first // plan.height]
        return (np.broadcast_to(scale, (last - first, plan.groups)) if floating else scale), zero

    return Held(
        format=scheme.format,
        bits=scheme.bits,
        group="tensor" if floating and scheme.granularity == "tensor" else where,
        height=plan.height,
        offsets="" if scheme.symmetric else scheme.zero_point,
        scale_dtype=tensor.stored.scale_dtype,
        overall=tensor.overall(),
        activations=scheme.activations,
        packed=lambda first, last: tensor.packed(rows(first, last)),
        params=params,
    )


def _offsets(held: Mapping[str, Held | str], views: Mapping[str, View]) -> dict[tuple[int, str], str]:
    """What codes have as offsets in this model, by their bits and what their layout has: all of one kind have the same,
    so that a model stays of one scheme."""
    known: dict[tuple[int, str], str] = {}
    for name, codes in held.items():
        if not isinstance(codes, str):
            key, shape = (codes.bits, codes.offsets), views[name].info.shape
            known[key] = offsets_of(codes, math.prod(shape[:-1]), shape[-1], known.get(key, OFFSETS[0]))
    return known


@dataclass(frozen=True, slots=True, kw_only=True)
class _Making:
    """What tensors are made of.

    stored: as they are stored; source: of their floats. before: the same where experts were arranged, which tells of
    what; views, held: by the names before. offsets: by bits and what the layout has. dtype: of what is decoded to stay
    in floating point, where its layout tells none. to: the target.
    """

    stored: Source
    source: Source
    before: Derived | None
    views: Mapping[str, View]
    held: Mapping[str, Held | str]
    offsets: Mapping[tuple[int, str], str]
    dtype: str
    to: str

    def tensor(self, info: TensorInfo) -> Moving:
        """A tensor of the source."""
        made = self.before.computed(info.name) if self.before is not None else None
        runs = made.runs if made is not None else ((info.name, 0, info.numel),)
        views = [self.views[part] for part in (made.parts if made is not None else (info.name,))]
        whole = len(views) == 1 and views[0].info.shape == info.shape and _is_all_of(views[0], runs)
        view = views[0] if whole else view_of(Tensor(self.source, StoredKept(info=info, reason=PLAIN)))
        coded = [v for v in views if v.scheme is not None]
        if not coded:
            kept = Kept(info=info, reason=PLAIN)
            return Moving(decided=kept, codes=_Plain(self.source), view=view, scheme=None, bytes_in=info.nbytes)
        held = self._held(info, runs, made.columns if made is not None else (), views)
        floating = whole and isinstance(held, Held) and held.format in FLOATING
        measured = input_scale(self.stored, views[0].parts, views[0].unused) if floating else None
        found = held if isinstance(held, str) else self._codes(info, held, measured)
        why = found if isinstance(found, str) else ""
        weight, codes = self._nearest(info, coded[0]) if isinstance(found, str) else found
        view = replace(view, info=weight.info, scheme=coded[0].scheme, parts=(info,), stored=None)
        stored = sum(v.bytes_out for v in coded)
        share = stored * info.numel // sum(v.info.numel for v in coded)
        return Moving(decided=weight, codes=codes, view=view, scheme=coded[0].scheme, bytes_in=share, obstacle=why)

    def _held(
        self,
        info: TensorInfo,
        runs: Sequence[tuple[str, int, int]],
        columns: Sequence[tuple[str, int, int, int]],
        views: Sequence[View],
    ) -> Held | str:
        """The codes of a tensor, put together where experts were arranged."""
        found, cols = list[tuple[Held, int, int]](), info.shape[-1]
        if not runs:
            return self._exchanged(columns)
        for name, first, count in runs:
            held = self.held.get(name, "parts of it are in floating point")
            if isinstance(held, str):
                return held
            if held.turned:
                return "its groups are not runs of its rows"
            if self.views[name].info.shape[-1] != cols or first % cols:
                return "its rows are parts of rows"
            found.append((held, first // cols, count // cols))
        alone = len(views) == 1 and _is_all_of(views[0], runs)
        return found[0][0] if alone else _together(found)

    def _exchanged(self, columns: Sequence[tuple[str, int, int, int]]) -> Held | str:
        """The codes of a tensor of transposed parts of others, which must be stored transposed."""
        found = list[tuple[Held, int, int]]()
        for name, first, count, step in columns:
            held = self.held.get(name, "parts of it are in floating point")
            if isinstance(held, str):
                return held
            if not held.turned:
                break
            found.append((replace(every(held, first, step), turned=False), 0, count))
        if not found or len(found) < len(columns):
            return "its experts are stored transposed"
        return _together(found)

    def _codes(self, info: TensorInfo, held: Held, measured: float | None) -> tuple[Quantized, Codes] | str:
        """A weight whose codes can be moved; or why they cannot. measured: the scale of its inputs."""
        try:
            if held.activations in STATIC or measured is not None:
                kind = "none" if measured is None else "nvfp4" if held.format == "fp4" else "fp8-static"
                held = replace(held, activations=kind)
            found = [(held, scheme_of(held, self.offsets[held.bits, held.offsets]))]
            floating = held.format in FLOATING and found[0][1].name not in (MXFP4.name, NVFP4.name)
            if floating:
                found, why = stored_by(named(self.to).accepts, held, found[0][1], info.shape)
                if not found:
                    return why
            held, scheme = found[0]
            plan = grouping_of(info.shape, scheme)
        except UsageError as error:
            return error.problem
        if plan.cols != info.shape[-1]:
            return f"every row has a scale, in a tensor of {len(info.shape)} dimensions"
        own = replace(info, dtype=held.scale_dtype) if held.format == "int" else info
        weight = Quantized(info=own, reason=MOVED, scheme=scheme, grouping=plan, scale_dtype=held.scale_dtype)
        if scheme.activations in STATIC:
            weight = replace(weight, input_scale=measured)
        return weight, Moved(held, scheme, plan)

    def _nearest(self, info: TensorInfo, view: View) -> tuple[Quantized, Raw]:
        """What is nearest to a weight whose codes cannot be moved."""
        size = _GROUP.search(view.scheme or "")
        whole = is_published(view.scheme or "")
        group = int(size[1]) if size else 128 if whole else 32
        scheme = Scheme(bits=min(view.bits or 8, 8), group_size=max(1, min(group, info.shape[-1])))
        own = replace(info, dtype=view.info.dtype if whole else self.dtype)
        plan = grouping_of(info.shape, scheme)
        scales = own.dtype if own.dtype == "BF16" else "F16"
        weight = Quantized(info=own, reason=MOVED, scheme=scheme, grouping=plan, scale_dtype=scales)
        return weight, _Plain(self.source)


def _is_all_of(view: View, runs: Sequence[tuple[str, int, int]]) -> bool:
    """Whether these runs of a tensor's elements are all of them, in their order."""
    ends = [0, *(first + count for _, first, count in runs)]
    return ends[-1] == view.info.numel and all(first == end for (_, first, _), end in zip(runs, ends))


def _together(parts: Sequence[tuple[Held, int, int]]) -> Held | str:
    """The codes of rows of several weights, where these are of one scheme."""
    if len({held.kind for held, _, _ in parts}) > 1:
        return "its parts are of several schemes"
    if any(row % held.height or rows % held.height for held, row, rows in parts):
        return "its parts end within blocks"
    return joined(parts)


_GROUP = re.compile(r"g([1-9][0-9]{0,3})(?![0-9])")
"""The size of groups in the name of a scheme."""


# ---- inputs ---------------------------------------------------------------------------------------------------------


def _for_runtime(model: Movable, to: str) -> Movable:
    """A model whose weights do not say how inputs are quantized where the target has no words for that."""
    accepts, tensors, left = named(to).accepts, dict(model), set[str]()
    for name, tensor in model.items():
        scheme = tensor.decided.scheme
        if scheme is None or scheme.activations == "none" or tensor.obstacle or accepts.obstacle(scheme) is None:
            continue
        plain = changed(scheme, activations="none")
        if accepts.obstacle(plain) is None:
            assert isinstance(tensor.decided, Quantized)
            tensors[name] = replace(tensor, decided=replace(tensor.decided, scheme=plain, input_scale=None))
            left.add(scheme.activations)
    if not left:
        return model
    said = f"{to} does not say how inputs are quantized ({', '.join(sorted(left))}): that is left out"
    return Movable(model.source, tensors, (*model.notes, said))


# ---- of MXFP4 -------------------------------------------------------------------------------------------------------


def _of_mxfp4(model: Movable, to: str, asked: str | None) -> Movable:
    """A model with codes of MXFP4 as they are, or as NVFP4 where that is asked for or all that the target has."""
    held = {name: codes for name, tensor in model.items() if (codes := _codes_of(tensor, MXFP4)) is not None}
    if asked is not None and not any((t.scheme or "").lower() == MXFP4.name for t in model.values()):
        raise UsageError(f"--scheme {asked} is for weights of MXFP4, and it has none", hint="leave it out")
    accepts = named(to).accepts
    only = accepts.obstacle(MXFP4) is not None and accepts.obstacle(NVFP4) is None
    if AS.get(asked or "", NVFP4 if only else MXFP4) is MXFP4:
        return model
    known: dict[tuple[str, ...], float | str] = {}
    tensors = {name: _as_nvfp4(name, model, held, known) if name in held else t for name, t in model.items()}
    return Movable(model.source, tensors, model.notes)


def _codes_of(tensor: Moving, wanted: Scheme) -> Held | None:
    """The codes of a weight, where they are those of a scheme."""
    scheme = tensor.decided.scheme
    if scheme is None or (scheme.name, scheme.storage) != (wanted.name, wanted.storage) or tensor.obstacle:
        return None
    if isinstance(tensor.codes, Moved):
        return tensor.codes.held
    found = _of_native(tensor.codes) if isinstance(tensor.codes, Tensor) else None
    return found if isinstance(found, Held) else None


def _as_nvfp4(name: str, model: Movable, held: Mapping[str, Held], known: dict[tuple[str, ...], float | str]) -> Moving:
    """A weight of MXFP4 as NVFP4. known: the scales of tensors, which weights share that runtimes join."""
    tensor = model[name]
    together = tuple(sorted((name, *(n for n in partners(name, model) if model[n].scheme is not None))))
    if together not in known:
        others = [n for n in together if n not in held]
        shapes = ((n, model[n].decided.info.shape) for n in together)
        known[together] = (
            f"it shares the scale of the tensor with {printable(others[0], 200)}, which is not of MXFP4" if others
            else tensor_scale([(held[n], math.prod(shape[:-1]), shape[-1]) for n, shape in shapes])
        )  # fmt: skip
    overall, shape = known[together], tensor.decided.info.shape
    plan = grouping_of(shape, NVFP4)
    weight = Quantized(
        info=tensor.decided.info, reason=tensor.decided.reason, scheme=NVFP4, grouping=plan, scale_dtype="F8_E4M3"
    )
    if isinstance(overall, str):
        return replace(tensor, decided=weight, obstacle=overall)
    return replace(tensor, decided=weight, codes=Moved(nvfp4(held[name], overall), NVFP4, plan))


def _of_nvfp4(model: Movable, to: str) -> Movable:
    """A model with codes of NVFP4 as the target has them: with or without a scale of the tensor."""
    accepts = named(to).accepts
    with_scale, without = (accepts.obstacle(scheme) is None for scheme in (NVFP4, ALONE))
    if with_scale == without:
        return model
    before, after = (NVFP4, ALONE) if without else (ALONE, NVFP4)
    tensors = dict(model)
    for name, tensor in model.items():
        held = _codes_of(tensor, before)
        if held is None:
            continue
        assert isinstance(tensor.decided, Quantized)
        shape, plan = tensor.decided.info.shape, tensor.decided.grouping
        weight = replace(tensor.decided, scheme=after)
        found = alone(held, math.prod(shape[:-1]), shape[-1]) if without else held
        tensors[name] = (
            replace(tensor, decided=weight, obstacle=found) if isinstance(found, str)
            else replace(tensor, decided=weight, codes=Moved(found, after, plan))
        )  # fmt: skip
    return Movable(model.source, tensors, model.notes)
