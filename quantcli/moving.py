"""Models whose codes can be moved to another layout: those of quantcli, and those of other tools that have such codes.

Of another tool's file the parameters are looked at first: which zero points there are decides which targets can store
the codes. MXFP4 is NVFP4 too where its scales allow that. Super-blocks and tables of levels go where the target has the
same. What cannot be moved (other small floats, groups that are not runs of columns) is named, and can be decoded and
quantized again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from quantcli.asking import Scheme, changed
from quantcli.errors import DataError, QuantcliError, UsageError
from quantcli.experts import loadable
from quantcli.floats import decoded, left_out, named_for
from quantcli.layouts.config import json_beside, model_dtype
from quantcli.layouts.held import OFFSETS, TOGETHER, Moved, every, joined, offsets_of, scheme_of
from quantcli.layouts.held_floats import input_scale, stored_by
from quantcli.layouts.native.entries import infos_of
from quantcli.layouts.native.model import Model as Native
from quantcli.layouts.native.model import Tensor
from quantcli.layouts.native.stored import StoredKept
from quantcli.layouts.reader import FLOATING, Held, is_published
from quantcli.layouts.writer import Codes, Raw, named
from quantcli.models import Model, View, view_of
from quantcli.moving_fp4 import MXFP4, NVFP4, of_mxfp4, of_nvfp4
from quantcli.moving_records import Movable, Moving
from quantcli.scheme import STATIC, scale_dtype_name
from quantcli.scheme import Scheme as Resolved
from quantcli.stores.compact import Made
from quantcli.stores.derived import Derived, Outline
from quantcli.tensors.decided import Kept, Quantized
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import grouping_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.stores import Source
    from quantcli.stores.source import Unsplit

MOVED, PLAIN = "moved", "plain"
"""Why tensors of another tool's file are quantized and kept."""


def movable(model: Model, to: str, *, container: bool = False, scheme: str | None = None) -> Movable:
    """A model as it can be moved to a target, experts arranged as that needs them. container: whether the target is to
    hold the tensors alone. scheme: what codes of MXFP4 become, a key of AS; what the target has, where it is None.
    Raises DataError for a model that holds no codes, and as reading it does, UsageError for a scheme where there are no
    codes of MXFP4."""
    if not model.is_native and not model.quantized:
        raise DataError("it holds no quantized tensor", place=[model.path], hint="use quantize --to")
    try:
        found = _native(model.stored, to, container=container) if model.is_native else None
        if found is None:
            notes = list[str]()
            views = model if model.is_native else named_for(model, to, notes.append)
            floats = decoded(model.source, views, moved=True)
            source = loadable(floats, to, container=container)
            found = _found(model.source, views, floats, source, notes, to)
        return _for_runtime(of_nvfp4(of_mxfp4(found, to, scheme), to), to)
    except QuantcliError as error:
        raise (error if error.place[:1] == [model.path] else error.within(model.path)) from None


def _native(model: Native, to: str, *, container: bool) -> Movable | None:
    """The tensors of quantcli's own file, with all there is to know of them; None where the target needs them in
    another arrangement. Raises UsageError and DataError as `loadable` does."""
    plain = Outline(model.source, infos_of(model.entries))
    return Movable(model.source, Made(model, _moving)) if loadable(plain, to, container=container) is plain else None


def _moving(tensor: Tensor) -> Moving:
    """A tensor of quantcli's own file."""
    return Moving(
        decided=tensor.stored.decided,
        codes=tensor,
        view=view_of(tensor),
        scheme=tensor.scheme.name if tensor.scheme is not None else None,
        bytes_in=tensor.stored.bytes_out,
        metrics=tensor.stored.metrics,
    )


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
    held = {name: view.held() for name, view in views.items() if view.scheme is not None}
    making = _Making(
        stored=stored,
        source=source if source.arranged else floats,
        before=source if isinstance(source, Derived) and source.arranged else None,
        unsplit=source.unsplit,
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


def _offsets(held: Mapping[str, Held | str], views: Mapping[str, View]) -> dict[tuple[int, str], str]:
    """What codes have as offsets in this model, by their bits and what their layout has: all of one kind have the same,
    so that a model stays of one scheme."""
    known: dict[tuple[int, str], str] = {}
    for name, codes in held.items():
        if not isinstance(codes, str) and codes.blocks is None:
            key, shape = (codes.bits, codes.offsets), views[name].info.shape
            known[key] = offsets_of(codes, math.prod(shape[:-1]), shape[-1], known.get(key, OFFSETS[0]))
    return known


@dataclass(frozen=True, slots=True, kw_only=True)
class _Making:
    """What tensors are made of.

    stored: as they are stored; source: of their floats. before: the same where experts were arranged, which tells of
    what; unsplit: experts that were not; views, held: by the names before. offsets: by bits and what the layout has.
    dtype: of what is decoded to stay in floating point, where its layout tells none. to: the target.
    """

    stored: Source
    source: Source
    before: Derived | None
    unsplit: Mapping[str, Unsplit]
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
        view = replace(view, info=weight.info, scheme=coded[0].scheme, made_of=(info,), stored=None)
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
                refused = self.unsplit.get(info.name)
                return (
                    refused.why if refused is not None and refused.by_loader else "its groups are not runs of its rows"
                )
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
            scheme = scheme_of(held, self.offsets.get((held.bits, held.offsets), held.offsets))
            if held.format in FLOATING and scheme.name not in (MXFP4.name, NVFP4.name):
                found = stored_by(named(self.to).accepts, held, scheme, info.shape)
                if isinstance(found, str):
                    return found
                held, scheme = found
            elif held.format not in ("int", *FLOATING) or held.blocks is not None:  # NF4, IQ4 and super-blocks
                why = named(self.to).accepts.obstacle(scheme)
                if why is not None:
                    return why
            plan = grouping_of(info.shape, scheme)
        except UsageError as error:
            return error.problem
        if plan.cols != info.shape[-1]:
            return f"every row has a scale, in a tensor of {len(info.shape)} dimensions"
        scales = scale_dtype_name(scheme.scale_dtype) if held.blocks is not None else held.scale_dtype
        own = replace(info, dtype=held.dtype or scales) if held.format == "int" or held.dtype else info
        weight = Quantized(info=own, reason=MOVED, scheme=scheme, grouping=plan, scale_dtype=scales)
        if scheme.activations in STATIC:
            weight = replace(weight, input_scale=measured)
        return weight, Moved(held, scheme, plan)

    def _nearest(self, info: TensorInfo, view: View) -> tuple[Quantized, Raw]:
        """What is nearest to a weight whose codes cannot be moved."""
        size = _GROUP.search(view.scheme or "")
        whole = is_published(view.scheme or "")
        group = int(size[1]) if size else named(self.to).usual.get("group_size", 128 if whole else 32)
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
    if parts[0][0].blocks is not None:
        return TOGETHER
    if len({held.kind for held, _, _ in parts}) > 1:
        return "its parts are of several schemes"
    if any(row % held.height or rows % held.height for held, row, rows in parts):
        return "its parts end within blocks"
    return joined(parts)


_GROUP = re.compile(r"g([1-9][0-9]{0,3})(?![0-9])")
"""The size of groups in the name of a scheme."""


# ---- inputs ---------------------------------------------------------------------------------------------------------


def _for_runtime(model: Movable, to: str) -> Movable:
    """A model whose weights do not say how inputs are quantized where the target has no words for that, with a note on
    what its file said."""
    accepts, plain, left = named(to).accepts, dict[Resolved, Resolved](), set[str]()

    def of_weights(scheme: Resolved) -> Resolved:
        """The scheme that the target has for this one, but for inputs; one for all tensors of a scheme."""
        if scheme not in plain:
            wanted = changed(scheme, activations="none") if scheme.activations != "none" else scheme
            fits = accepts.obstacle(scheme) is None or accepts.obstacle(wanted) is not None
            plain[scheme] = scheme if fits else wanted
        return plain[scheme]

    def without_inputs(tensor: Moving) -> Moving:
        decided = tensor.decided
        if decided.scheme is None or tensor.obstacle or of_weights(decided.scheme) == decided.scheme:
            return tensor
        assert isinstance(decided, Quantized)
        return replace(tensor, decided=replace(decided, scheme=of_weights(decided.scheme), input_scale=None))

    for tensor in model.values():
        scheme = tensor.decided.scheme
        if scheme is None or tensor.obstacle:
            continue
        before = tensor.codes.held.activations if isinstance(tensor.codes, Moved) else scheme.activations
        if of_weights(scheme).activations != before:
            left.add(before)
    if not left:
        return model
    said = f"{to} does not say how inputs are quantized ({', '.join(sorted(left))}): that is left out"
    return Movable(model.source, Made(model, without_inputs), (*model.notes, said))
