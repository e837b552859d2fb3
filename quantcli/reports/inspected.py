"""Inspections: the tensors of a model, float or quantized, and how another tool quantized it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from quantcli import terminal as t
from quantcli.each import Each
from quantcli.errors import DataError, printable
from quantcli.layouts import evidence
from quantcli.passes import statistics
from quantcli.passes.statistics import Statistics
from quantcli.passes.tiles import default_threads
from quantcli.reports.documents import IF_ANY, PEOPLE_ONLY, SCHEMA_VERSION, Display, Line, Part, outline, plain
from quantcli.reports.page import many_tensors
from quantcli.stores import is_stream, need_file
from quantcli.stores.pipelines import within

if TYPE_CHECKING:
    from quantcli.layouts.evidence import Evidence
    from quantcli.models import Model, View
    from quantcli.passes.tiles import Progress
    from quantcli.stores.pipelines import Member


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedTensor:
    """One tensor. dtype: of the original, or of what another tool stores, by its name for it, None where it is not
    known. stats: None where the values were not read, or are not numbers."""

    name: str
    dtype: str | None
    shape: list[int]
    parameters: int
    bytes: int
    disposition: str
    scheme: str | None
    bits: int | None
    stats: Statistics | None = field(default=None, metadata=IF_ANY)

    @property
    def kind(self) -> str:
        """Type and scheme in one."""
        dtype = self.dtype or ""
        return dtype if self.scheme in (None, dtype) else f"{dtype} {self.scheme}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedComponent:
    """One of the models of a pipeline. kind: the class that loads it, and its library. unread: why its tensors are not
    shown, empty where they are. tool: what quantized it, where it is quantcli's own. Other fields are those of a
    model."""

    name: str
    library: str
    kind: str
    tensors: int
    parameters: int
    bytes: int
    quantized: bool
    layout: str | None
    metadata: dict[str, str]
    unread: str
    tool: str | None = field(metadata=PEOPLE_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectReport:
    """A model, or a pipeline of several. layout: how another tool quantized it, and by what that was recognised.
    components: of a pipeline, whose tensors have names such as `unet/conv_in.weight`. tool: what quantized it, where it
    is quantcli's own; values: whether values were read."""

    source: str
    quantized: bool
    layout: str | None
    bytes: int
    metadata: dict[str, str]
    tensors: Sequence[InspectedTensor]
    components: list[InspectedComponent] = field(default_factory=list)
    parameters: int = field(metadata=PEOPLE_ONLY)
    tool: str | None = field(metadata=PEOPLE_ONLY)
    values: bool = field(metadata=PEOPLE_ONLY)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, `schema_version` first; `stats` and `components` only where there are some."""
        return cast(dict[str, Any], plain(self.outline()))

    def outline(self) -> dict[str, Any]:
        """What `as_dict` holds, with records as they are."""
        found = {"schema_version": SCHEMA_VERSION, "command": "inspect", **outline(self)}
        if not self.components:
            del found["components"]
        return found

    def rows(self) -> Iterator[Sequence[object]]:
        """A row per tensor."""
        names = [f.name for f in fields(InspectedTensor) if f.name != "stats"]
        figures = [f.name for f in fields(Statistics) if f.name != "histogram"] if self.values else []
        yield ["source", *names, *figures]
        for tensor in self.tensors:
            known = (getattr(tensor.stats, name) if tensor.stats is not None else None for name in figures)
            yield [self.source, *(getattr(tensor, name) for name in names), *known]

    def parts(self, display: Display) -> Iterator[Part]:
        """What is known of the model, then every tensor."""
        by = f", quantized by {printable(self.tool, 100)}" if self.tool is not None else ""
        sizes = f"{t.count(self.parameters)} parameters, {t.size(self.bytes)}"
        yield Line(f"{self.source}: {many_tensors(len(self.tensors))}, {sizes}{by}")
        if self.components:
            yield Line()
            yield _overview(self.components)
            for one in self.components:
                if one.layout is not None or one.unread:
                    shown = f"layout {one.layout}" if not one.unread else f"not read: {one.unread}"
                    yield Line(f"{one.name}: {printable(shown, 1000)}")
        if self.layout is not None:
            yield Line(f"layout: {printable(self.layout, 1000)}")
        if self.metadata:
            most = 100 if display.verbose else 4
            shown = ", ".join(f"{printable(k, 40)}={printable(v, 60)}" for k, v in list(self.metadata.items())[:most])
            more = len(self.metadata) - most
            yield Line(f"metadata: {shown}{f' and {more:,} more' if more > 0 else ''}")
        yield Line()
        yield self._table(display)

    def _table(self, display: Display) -> t.Table:
        columns = [
            t.Column("tensor"),
            t.Column("dtype", from_width=100 if self.values else 0),
            t.Column("shape"),
            t.Column("bytes", right=True, from_width=110 if self.values else 0),
        ]
        if self.values:
            columns += [
                t.Column("min", right=True),
                t.Column("max", right=True),
                t.Column("mean", right=True, from_width=90),
                t.Column("std", right=True),
                t.Column("outliers", right=True, from_width=120),
                t.Column("histogram"),
            ]

        def row(tensor: InspectedTensor) -> list[str]:
            values = _values(tensor.stats, display) if self.values else []
            return [*t.cells_of(tensor.name), *_kind_cells(tensor.kind, tuple(tensor.shape), tensor.bytes), *values]

        return t.Table(columns, more=Each(len(self.tensors), lambda: map(row, self.tensors)))


@lru_cache(maxsize=4096)
def _kind_cells(kind: str, shape: tuple[int, ...], nbytes: int) -> list[str]:
    """The cells on what many tensors have in common."""
    return t.cells_of("", kind, t.shape(shape), t.size(nbytes))[1:]


def _overview(found: Sequence[InspectedComponent]) -> t.Table:
    """The components of a pipeline."""
    table = t.Table(
        [
            t.Column("component"),
            t.Column("class", from_width=90),
            t.Column("tensors", right=True),
            t.Column("parameters", right=True),
            t.Column("bytes", right=True),
            t.Column("quantized by", from_width=60),
        ]
    )
    for one in found:
        by = one.tool or ("another tool" if one.quantized else "")
        table.add(one.name, one.kind, f"{one.tensors:,}", t.count(one.parameters), t.size(one.bytes), by)
    return table


def _values(found: Statistics | None, display: Display) -> list[str]:
    """The cells on a tensor's values."""
    if found is None:
        return ["-"] * 6
    outliers = "-" if found.outlier_ratio is None else f"{100 * found.outlier_ratio:.2g} %"
    bad = f" {found.nonfinite} not finite" if found.nonfinite else ""
    return [
        *(t.number(value) for value in (found.min, found.max, found.mean, found.std)),
        outliers,
        statistics.sparkline(found.histogram, ascii_only=display.ascii_only) + bad,
    ]


def joined(
    src: str, found: Mapping[str, InspectReport], members: Sequence[Member], unread: Mapping[str, str]
) -> InspectReport:
    """The report on all models of a path: the one there is, or components of a pipeline. found: by name; unread: why
    the others cannot be shown."""
    if not members[0].name:
        return found[""]
    return InspectReport(
        source=src,
        quantized=any(one.quantized for one in found.values()),
        layout=None,
        bytes=sum(one.bytes for one in found.values()),
        metadata={},
        tensors=[replace(t, name=within(name, t.name)) for name, one in found.items() for t in one.tensors],
        components=[_component(m, found.get(m.name), unread.get(m.name, "")) for m in members],
        parameters=sum(one.parameters for one in found.values()),
        tool=None,
        values=any(one.values for one in found.values()),
    )


def _component(member: Member, one: InspectReport | None, unread: str) -> InspectedComponent:
    """A component of a pipeline."""
    assert member.component is not None
    tensors: Sequence[InspectedTensor] = one.tensors if one is not None else []
    return InspectedComponent(
        name=member.name,
        library=member.component.library,
        kind=member.component.kind,
        tensors=len(tensors),
        parameters=one.parameters if one is not None else 0,
        bytes=one.bytes if one is not None else 0,
        quantized=one is not None and one.quantized,
        layout=one.layout if one is not None else None,
        metadata=one.metadata if one is not None else {},
        unread=unread,
        tool=one.tool if one is not None else None,
    )


def report_of(
    model: Model, src: str, *, values: bool, say: Callable[[str], None], progress: Progress | None = None
) -> InspectReport:
    """The report on a model. values: read them too; say: takes a line on why a model is shown as it is stored, and on
    what its store leaves out."""
    for line in model.source.warnings:
        say(line)
    blocks = model.source.kind == "gguf"  # shown by the names of its types, which needs no decoding
    decoded = _decoded(model, say) if values or not blocks else {}
    tensors: Sequence[InspectedTensor] = _of_gguf(model) if blocks else _of_floats_and_codes(model, decoded)
    if values:
        if decoded or any(tensor.scheme for tensor in tensors):
            need_file(model.source, "decoding")
        named = {tensor.name: decoded.get(tensor.name) or model.stored[tensor.name] for tensor in tensors}
        found = statistics.measure(model.source, named, threads=default_threads(), progress=progress)
        tensors = [replace(tensor, stats=found[tensor.name]) for tensor in tensors]
    coded, parameters, layout = False, 0, _layout(model, src)
    for tensor in tensors:
        coded, parameters = coded or bool(tensor.scheme), parameters + tensor.parameters
    documents = model.stored.documents
    return InspectReport(
        source=src,
        quantized=coded or (layout is not None and layout.certain),
        layout=str(layout) if layout is not None else None,
        bytes=model.file_bytes,
        metadata={k: v for k, v in model.source.metadata.items() if k != "quantcli"},
        tensors=tensors,
        parameters=parameters,
        tool=documents[0].tool if documents else None,
        values=values,
    )


def _decoded(model: Model, say: Callable[[str], None]) -> Mapping[str, View]:
    """What another tool quantized, decoded; of a pipe, and of what is not understood, nothing is."""
    if model.is_native or is_stream(model.source):
        return {}
    try:
        return model.quantized
    except DataError as error:
        say(f"shown as it is stored: {error}")
        return {}


def _of_gguf(model: Model) -> list[InspectedTensor]:
    """The tensors of a GGUF file by the names of its types."""
    blocks = model.source.blocks
    found = []
    for name, tensor in model.stored.items():
        block = blocks.get(name)
        kind, shape = (block.type.name, block.shape) if block is not None else (tensor.dtype, tensor.shape)
        scheme = kind if block is not None else None
        found.append(_tensor(name, kind, shape, nbytes=tensor.stored.bytes_out, scheme=scheme, bits=None))
    return found


def _of_views(decoded: Mapping[str, View]) -> list[InspectedTensor]:
    """What another tool quantized, as the tensors it stands for."""
    return [
        _tensor(name, None, view.info.shape, nbytes=view.bytes_out, scheme=view.scheme, bits=view.bits)
        for name, view in decoded.items()
    ]


def _of_floats_and_codes(model: Model, decoded: Mapping[str, View]) -> Each[InspectedTensor]:
    """What another tool quantized, then the tensors that none of it is stored in."""
    coded, parts = _of_views(decoded), {part.name for view in decoded.values() for part in view.parts}
    count = len(coded) + len(model.stored) - sum(part in model.stored for part in parts)
    return Each(count, lambda: chain(coded, _of_stored(model, parts)))


def _of_stored(model: Model, parts: Collection[str]) -> Iterator[InspectedTensor]:
    """The tensors of a model except these."""
    if not model.is_native:
        plain_ones = (info for info in model.stored.infos.values() if info.name not in parts)
        return (_tensor(i.name, i.dtype, i.shape, nbytes=i.nbytes, scheme=None, bits=None) for i in plain_ones)
    return (
        _tensor(
            name,
            tensor.dtype,
            tensor.shape,
            nbytes=tensor.stored.bytes_out,
            scheme=tensor.scheme.name if tensor.scheme else None,
            bits=tensor.scheme.bits if tensor.scheme else None,
            otherwise="kept",
        )
        for tensor in model.stored.values()
        if (name := tensor.name) not in parts
    )


def _tensor(
    name: str,
    dtype: str | None,
    shape: Sequence[int],
    *,
    nbytes: int,
    scheme: str | None,
    bits: int | None,
    otherwise: str = "float",
) -> InspectedTensor:
    """One tensor; otherwise: its disposition where it is not quantized."""
    return InspectedTensor(
        name=name,
        dtype=dtype or None,
        shape=list(shape),
        parameters=math.prod(shape),
        bytes=nbytes,
        disposition="quantized" if scheme else otherwise,
        scheme=scheme,
        bits=bits,
    )


def _layout(model: Model, src: str) -> Evidence | None:
    """How another tool quantized a model, as far as it is recognised; None for floats and quantcli's own files."""
    if model.is_native:
        return None
    try:
        config = evidence.beside(src)
        found = evidence.found_in(model.source, config)
    except DataError:  # reported with the tensors
        return None
    stale = evidence.out_of_date(model.source, config) if found is None else None
    return evidence.Evidence(layout="plain floats", seen=stale, certain=False) if stale is not None else found
