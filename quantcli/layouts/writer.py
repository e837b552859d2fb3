"""The interface of writing a layout: the conversion of the tensors of a model whose schemes it accepts.

A writer moves codes, scales and zero points to where another tool looks for them; it never quantizes. It handles
arrays, names and shapes, not files: the pass over a file is `quantcli.passes.export`. It may leave tensors out of its
conversion, rename, permute or cast them: a target may be a container format (`files`) with additional tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from quantcli import registry
from quantcli.architectures import Architecture
from quantcli.architectures.experts import Experts, Naming
from quantcli.errors import UsageError, printable
from quantcli.layouts.accepts import Accepts
from quantcli.scheme import AUTO, PUBLISHED, Scheme
from quantcli.stores.stacked import Rebuilt
from quantcli.tensors.decided import Decided
from quantcli.tensors.info import Endings, TensorInfo, alone, bytes_of
from quantcli.tensors.rows import TileSpan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats, QuantParams
    from quantcli.stores import Source


KEY = "quantcli_export"
"""The key of the metadata under which an exported file records what made it, what it was made from (see origins) and
the keys its loader needs in config.json, which a single file does not have beside it."""


Weight = Decided
"""A tensor as decided: kept, or quantized with a scheme."""

_INSTEAD = " instead of "
"""What the notes of weights have in them that are stored otherwise than was asked for."""


class Codes(Protocol):
    """The codes of a weight, made or read piece by piece. A tile is computed once for each piece of work that needs
    it."""

    def packed(self, span: TileSpan) -> Bytes:
        """Codes of a tile, rows of 32-bit words."""

    def params(self, span: TileSpan) -> QuantParams:
        """Scales and zero points of a tile as the kernels take them."""

    def scales(self, span: TileSpan) -> tuple[Floats, Floats | None]:
        """Scales and zero points of the groups that the native layout stores scales for: (rows, groups), (1, channels)
        where the columns share them, or (blocks, groups) of the blocks that a tile has rows of."""

    def overall(self) -> float:
        """The scale of the tensor, which those of `scales` contain; 1 where none is stored."""

    def levels(self, span: TileSpan) -> Floats:
        """The levels (tables, 2^b) of codes of a codebook."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Alike:
    """Tensors of one shape and scheme whose codes are in memory: how many, their packed codes (count * rows, bytes),
    and their parameters (count * rows, groups)."""

    count: int
    packed: Bytes
    params: QuantParams


Together = Callable[[Alike], "Sequence[NDArray[np.uint8]]"]
"""The bytes (count, size) of each output of tensors that are written at once."""


class Raw(Protocol):
    """The bytes of a kept tensor."""

    def read_bytes(self, name: str, start: int, size: int) -> NDArray[np.uint8]:
        """A block of them. The array may be used until the next call in the same thread."""


Write = Callable[[int, int, Any], None]
"""A function that writes bytes: the index of the output, the offset in it, an array or buffer."""

Piece = Callable[[Any, Write], bool]
"""A part of a conversion, of the Codes of a quantized tensor or the Raw bytes of a kept one; returns whether what it
wrote decodes exactly to what it read."""


Beside = Callable[[str], "bytes | None"]
"""The files beside the weights of the source: a small file's bytes by its name, None where it is missing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Job:
    """The conversion of one tensor: the tensors that hold it, and the pieces of work that write them, in any order on
    any thread. Together they write every byte once. kind: their type in the container, where dtypes do not tell.
    together: where many tensors of the same shape and scheme may be written at once, what each output holds of all."""

    outputs: tuple[TensorInfo, ...]
    pieces: Callable[[], Iterator[Piece]]
    kind: str = ""
    together: Together | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all outputs."""
        return sum([output.nbytes for output in self.outputs])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Conversion:
    """The conversion of a model.

    job(tensor): the work on a tensor, made when it is asked for: of many small tensors it takes more memory than all
    else. holds(name): whether there is such work on a tensor, by its original name. config: keys for config.json.
    beside: further small files of a folder, by name. header(names): for safetensors, the metadata of a file that holds
    these tensors. files(base, text, limit): for a container format, its files, the one that refers to the others first;
    base is the name of the output, limit the most bytes of a file, for targets with shards, and text goes into its
    metadata under KEY. stem(name): where the parts of a tensor are stored under names that begin as its own does, that
    beginning, or nothing for a tensor that is an exception; tensors whose names go on alike, of one dtype, shape and
    scheme, have parts of the same endings, dtypes and shapes. notes: limits of the loaders, for the user; in_folder:
    what they want of a folder into which a single file is put.
    """

    job: Callable[[Weight], Job]
    holds: Callable[[str], bool] = lambda name: True
    config: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, bytes] = field(default_factory=dict)
    header: Callable[[Sequence[str]], Mapping[str, str]] = lambda names: {}
    files: Callable[[str, str, int | None], Sequence[ContainerFile]] | None = None
    stem: Callable[[str], str] | None = None
    notes: Sequence[str] = ()
    in_folder: Sequence[str] = ()
    _endings: dict[Hashable, Endings] = field(default_factory=dict, init=False)

    def stored(self, tensor: Weight) -> Sequence[tuple[str, Endings]]:
        """The tensors that hold one, by what their names begin with, and how they end."""
        begin = "" if self.stem is None else self.stem(tensor.info.name)
        if not begin:
            return [(output.name, alone(output.dtype, output.shape)) for output in self.job(tensor).outputs]
        info, rest = tensor.info, tensor.info.name[len(begin) :]
        plan = tensor.grouping, tensor.scale_dtype, tensor.input_scale is None
        key = rest, info.dtype, info.shape, tensor.scheme, plan
        found = self._endings.get(key)
        if found is None:
            outputs = self.job(tensor).outputs
            assert all(output.name.startswith(begin) for output in outputs), f"{info.name}: other names than {begin}"
            found = tuple((output.name[len(begin) :], (output.dtype, output.shape)) for output in outputs)
            self._endings[key] = found
        return [(begin, found)]

    def nbytes(self, tensor: Weight) -> int:
        """Bytes of the tensors that hold one."""
        return sum(bytes_of(own) for _, own in self.stored(tensor))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ContainerFile:
    """A file of another container before it is written: its name, its size, the place of every output in it, and the
    bytes between them."""

    name: str
    size: int
    offsets: Mapping[str, int]
    pieces: Sequence[tuple[int, bytes]]


def as_stored(layer: Experts, types: Sequence[str], model: Architecture) -> None:
    """Nothing: experts stay as they are stored."""


def had_instead(tensors: Sequence[Weight]) -> list[str]:
    """What weights have instead of what was asked for, by their notes: a line for each, with their number."""
    parts = Counter(part for t in tensors if t.scheme is not None for part in t.note.split("; ") if _INSTEAD in part)
    return [f"{count} {'tensors' if count > 1 else 'tensor'}: {part}" for part, count in parts.items()]


def not_again(source: Source) -> None:
    """Nothing: the target makes every file anew."""


def as_they_are(infos: Sequence[TensorInfo], config: Mapping[str, Any]) -> dict[str, Sequence[Rebuilt]]:
    """Nothing: all tensors are wanted in the form in which they are stored."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Again:
    """How the model of one source, which is in the format of the target already, is written again with other tensors:
    a GGUF with its own keys, an ONNX model with its own graph.

    convert(tensors): the conversion. matrices(infos): the matrices that the model multiplies with, and whether each is
    stored [out, in]; the source is to give the others transposed, so that groups run along what is summed over.
    suited(info, scheme, chosen): the nearest scheme that a tensor can have in its place, and a note on what was
    changed; chosen: whether a rule names the scheme. obstacle(weight): why a weight cannot be stored in its place. None
    for these where they are as in all models of the target. decides: whether the tool's own list says what stays in
    floating point, so that no preset does.
    """

    convert: Callable[[Sequence[Weight]], Conversion]
    matrices: Callable[[Sequence[TensorInfo]], Mapping[str, bool]] | None = None
    suited: Callable[[TensorInfo, Scheme, bool], tuple[Scheme, str]] | None = None
    obstacle: Callable[[Weight], str | None] | None = None
    decides: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Runtime:
    """A program that loads a target: the command that makes a model for it, other options that are usual, and what it
    does not load, in Markdown whose links start at the root of the repository."""

    name: str
    command: str
    others: Sequence[str] = ()
    limits: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Writer:
    """The writer of a layout that other tools load."""

    summary: str
    """A line for users, TITLE: WHAT, for the programs that load it."""
    keeps: str
    """The weights whose shape it cannot store, for users."""
    accepts: Accepts
    """The schemes it can store."""
    shape: Callable[[Weight], str | None]
    """Why it cannot store a weight of an accepted scheme, for its shape or name; None when it can."""
    convert: Callable[[Sequence[Weight], Beside], Conversion]
    """The conversion of a model whose weights it can all store. Raises UsageError for weights it cannot store together,
    and for a model whose graph or architecture it does not support."""
    container: Callable[[Sequence[Weight], Beside], Conversion] | None = None
    """The tensors alone, for targets that have such files, which nothing runs."""
    again: Callable[[Source], Again | None] = not_again
    """How it writes the model of a source again that is in its format already, in place of convert; None for other
    sources. Raises UsageError where it cannot."""
    module: Callable[[Weight, Architecture], str | None] = lambda weight, architecture: None
    """Why the loader does not support a quantized weight in this module of the model."""
    tables: Callable[[TensorInfo, str, Scheme, Architecture], Scheme | None] = lambda info, kind, scheme, model: None
    """The scheme of an embedding or output head (`embedding`, `lm-head`, or `tied` for an embedding that is the head
    too) in a model of this scheme, as the target's own tools have it; None where they keep it."""
    experts: Callable[[Experts, Sequence[str], Architecture], Naming | str | None] = as_stored
    """How its loader wants the experts of a layer, in a model of these types; None as they are stored, a text why it
    takes none that are quantized."""
    rebuilt: Callable[[Sequence[TensorInfo], Mapping[str, Any]], Mapping[str, Sequence[Rebuilt]]] = as_they_are
    """Tensors that its loader wants in another form, by name, and what takes their place; config.json is given."""
    runtimes: Sequence[Runtime] = ()
    """The programs that load it, and how to ask for their models."""
    scale_dtype: str | None = None
    """The best dtype of scales for it."""
    own_inputs: bool = False
    """Whether its runtime decides by itself how it computes with inputs, whatever a scheme says of them."""
    usual: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the scheme to use unless others are requested."""
    extension: str = ""
    """How its files end, with the dot, of a target that is never a folder."""
    shards: bool = False
    """Whether such a target may be several files, of a limited size."""
    two_files: bool = False
    """Whether it may need a second file."""
    keeps_document: bool = False
    """Whether its files are native files too,"""
    documents: Callable[[Sequence[Weight]], bool] = lambda tensors: True
    """where all these are what native files hold."""
    mixes: bool = True
    """Whether weights of one model may have several schemes."""
    joins: bool = False
    """Whether its runtimes join weights into one matrix (`tensors.fused`), which must have one scheme."""
    tied: str | None = None
    """A pattern of weights that must share one, where a model has stacked experts."""
    read_back: bool = True
    """Whether the report reads what was written, before that has its name."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Files of this target that have types of their own for every tensor, by name, and what they are for. A target may
    be asked for with one, TARGET:KIND."""
    of_kind: Callable[[str], Writer] | None = None
    """The writer of such files."""
    base: Callable[[Scheme], Scheme] | None = None
    """Of such a writer, the scheme of most tensors, searched as long as a given one."""
    mix: Callable[[Sequence[TensorInfo], Scheme, Architecture, bool], Mapping[str, Scheme]] | None = None
    """Of such a writer, the schemes of all tensors by name; whether columns are weighted is given."""
    fitting: Callable[[int, Scheme], tuple[Scheme, str]] | None = None
    """The scheme for rows of so many weights, and a note where it is another one."""
    by_bits: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Fields of the scheme for a width that the usual ones do not suit."""
    menu: tuple[Mapping[str, Any], ...] = ()
    """Schemes that a size target chooses from."""
    offsets_only: bool = False
    """Whether it stores zero points as offsets in any case, so that asymmetric types are what they are."""
    nearest: Callable[[Scheme], str] | None = None
    """How to ask for what is nearest to a scheme that it cannot store, where its types have names of their own."""

    def unstored(self, weight: Weight, model: Architecture, again: Again | None) -> str | None:
        """Why it cannot store a weight of an accepted scheme, or its loader takes none in its place; None when it does.
        again: how the model is written again, if it is."""
        if again is not None and again.obstacle is not None:
            return again.obstacle(weight)
        return self.shape(weight) or self.module(weight, model)

    def suited(self, scheme: Scheme) -> Scheme:
        """A scheme as the target stores it, where it has a name in common with what was requested: with the scale dtype
        of the target, unless another was requested; without a scale of the tensor, or what is said of inputs, where it
        has no such thing."""
        alone = any(kind.storage == "e4m3-alone" for kind in (self.accepts, *self.accepts.others))
        if scheme.storage == "e4m3" and alone:
            scheme = scheme.with_scale_dtype("float8_e4m3_alone")
        if self.own_inputs and scheme.activations != "none":
            scheme = scheme.of_weights()
        if self.scale_dtype is None or scheme.scale_dtype != AUTO or scheme.shares_levels:
            return scheme
        return scheme.with_scale_dtype(self.scale_dtype)

    def ignores_inputs(self, scheme: Scheme) -> bool:
        """Whether what a scheme says of inputs does not count here, and its name says more than the target stores; that
        of a format (MXFP4) does not, which the target calls so too."""
        return self.own_inputs and scheme.activations != "none" and scheme.name not in PUBLISHED.values()


def named(target: str) -> Writer:
    """The writer of a target, TARGET or TARGET:KIND."""
    name, _, kind = target.partition(":")
    writer = cast(Writer, registry.get("layouts", name, "WRITES"))
    return writer.of_kind(kind) if kind and writer.of_kind is not None else writer


def checked(target: str, place: str) -> str:
    """A target as it is to be called, TARGET or TARGET:KIND. Raises UsageError, with the place, where there is none."""
    name, colon, kind = target.partition(":")
    known = registry.names("layouts", "WRITES")
    if name.replace("_", "-") not in known:
        raise UsageError(
            f"{printable(repr(target), 60)} is not a target", place=[place], hint=f"use {', '.join(known)}"
        )
    name = name.replace("_", "-")
    kinds = named(name).kinds
    spelt = {own.upper(): own for own in kinds}
    if colon and kind.upper().replace("-", "_") not in spelt:
        import difflib

        near = [spelt[n] for n in difflib.get_close_matches(kind.upper(), spelt, n=1, cutoff=0.3)]
        hint = f"did you mean {near[0]}? there are {', '.join(kinds)}" if near else f"there are {', '.join(kinds)}"
        problem = f"{name} has no file type {printable(repr(kind), 40)}"
        raise UsageError(problem, place=[place], hint=hint if kinds else f"write --to {name}")
    return f"{name}:{spelt[kind.upper().replace('-', '_')]}" if colon else name


def refusal(name: str, scheme: Scheme, why: str, target: str, hint: str = "") -> UsageError:
    """The error for a weight the target cannot store; where that is for its scheme, with a list of those it can, which
    the way out takes the place of where its types have names."""
    problem, export = f"{target} cannot store it: {why} ({scheme.name})", named(target)
    if export.accepts.obstacle(scheme) is not None and (not hint or export.nearest is None):
        problem += f"; it accepts {export.accepts.describe()}"
    return UsageError(problem, place=[printable(name)], hint=hint or None)
