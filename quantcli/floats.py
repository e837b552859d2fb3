"""Sources to quantize: the floats of any model, decoded as they are read where it is quantized already."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from quantcli.dtypes import LONG_NAMES
from quantcli.errors import DataError, QuantcliError, UsageError, listed, printable
from quantcli.layouts import evidence
from quantcli.layouts.adapters import is_adapter
from quantcli.layouts.companions import MARKS
from quantcli.layouts.native.document import KEY
from quantcli.layouts.native.model import Model as Stored
from quantcli.layouts.reader import COMFYUI, is_published
from quantcli.layouts.writer import KEY as EXPORT_KEY
from quantcli.models import Model, View
from quantcli.stores import Earlier, Source, is_stream, open_source, signals
from quantcli.stores.derived import Computed, Derived, by_elements, unchanged

if TYPE_CHECKING:
    from numpy.typing import NDArray

GGUF, MLX, ONNX = "gguf", "mlx", "onnx"
"""Kinds of sources, and targets whose own files stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a source is read. layout: `auto`, or `plain` to read every tensor by its dtype alone. requantize: whether
    codes may be decoded to be quantized again; those of published formats always are. variant: which weights of a
    folder to take, where it has several. loras: adapters to fold in, one after the other. adapter: whether the source
    may be an adapter itself. as_float: whether integers of .npy and .npz files are read as signals. to: the target that
    is asked for, by which the tensors of a GGUF are named."""

    layout: str = "auto"
    requantize: bool = False
    variant: str | None = None
    loras: tuple[str, ...] = ()
    adapter: bool = False
    as_float: bool = False
    to: str | None = None


@contextlib.contextmanager
def float_source(src: str, reading: Reading, *, say: Callable[[str], None]) -> Iterator[Source]:
    """The source that a path names. say: called with what is noticed on the way. Raises DataError where it is quantized
    and may not be decoded, or an adapter."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(contextlib.closing(open_source(src, reading.variant)))
        if is_adapter(source):
            _check_adapter(src, reading)
        found = signals.as_floats(source) if reading.as_float else _floats_of(source, src, reading, say)
        for path in reading.loras:
            from quantcli.folding import folded

            before = found
            found = folded(stack, found, path)
            changed = [name for name in found.notes if found.notes[name] != before.notes.get(name)]
            say(f"{path}: folded into {len(changed)} of {len(found.infos())} tensors")
        yield found


def _check_adapter(src: str, reading: Reading) -> None:
    """Raise DataError for an adapter that is not to be quantized itself."""
    if reading.loras:
        raise DataError("this is an adapter itself", place=[src], hint="name the model, and this with --lora")
    if not reading.adapter:
        hint = "name its base model and this with --lora, or give --adapter to quantize its factors themselves"
        raise DataError("this is an adapter (LoRA), not a model", place=[src], hint=hint)


def _floats_of(source: Source, src: str, reading: Reading, say: Callable[[str], None]) -> Source:
    """A source as it is where its tensors are plain, else decoded."""
    try:
        config = evidence.beside(src)
    except DataError:
        if source.folder is not None:
            raise
        config = {}  # beside a single file it may belong to something else
    try:
        found = evidence.found_in(source, config)
    except DataError as error:
        raise error.within(source.path) from None
    if found is None:
        stale = evidence.out_of_date(source, config)
        if stale is not None:
            say(f"{src}: {stale}: all tensors are read as plain floats")
        return _named_for(source, Model(Stored(source), src, config), reading, say) if source.kind == GGUF else source
    if reading.layout == "plain" and not (source.documents or source.blocks):
        return source
    try:
        model = None if is_stream(source) else Model(Stored(source), src, None if source.documents else config)
        quantized = [] if model is None else list(model.quantized.values())
    except DataError as error:
        raise (error if found.certain else _unclear(source, found)) from None
    if model is None or not quantized:
        raise (_unclear(source, found) if not found.certain else _undecoded(source, found))
    model.stored.check_headers()
    codes = [view for view in quantized if view.scheme is not None and not is_published(view.scheme)]
    if codes and not reading.requantize:
        problem = f"this model is quantized already, {found.layout}: {described(codes)}"
        hint = "start from the original; --requantize decodes it, and adds a second error to that of its codes"
        raise DataError(problem, place=[source.path], hint=hint)
    return _named_for(source, model, reading, say)


def _named_for(source: Source, model: Model, reading: Reading, say: Callable[[str], None]) -> Source:
    """The tensors of a model as floats, as `named_for` names them."""
    views = named_for(model, reading.to, say)
    dtypes = _computed_in(views) if source.kind == reading.to == ONNX else None
    return decoded(source, views, dtypes) if model.quantized or views is not model else source


def named_for(model: Model, to: str | None, say: Callable[[str], None]) -> Mapping[str, View]:
    """The tensors of a model: those of a GGUF that becomes one again as they are called there, others under the names
    of the checkpoint. Raises UsageError for a target whose loaders know these, where they are not known."""
    from quantcli.naming import of_checkpoint

    source = model.source
    if to == (GGUF if source.kind == GGUF else MLX):
        return model
    views = of_checkpoint(model)
    if source.kind != GGUF:
        if views is not model:
            say(f"{source.path}: norms and convolutions as they were before mlx-lm changed them")
        return views
    kind = printable(str(source.keys.get("general.architecture")), 60)
    if views is not model:
        say(f"{source.path}: tensors of {kind} under the names and in the order of rows of a checkpoint")
    elif to not in (None, "native", "onnx") and any(name.startswith("blk.") for name in model):
        hint = "--to gguf keeps them, and what llama.cpp needs; --to native writes quantcli's own layout"
        problem = f"its tensors have llama.cpp's names for {kind}, which loaders of {to} do not know"
        raise UsageError(problem, place=[source.path, f"--to {to}"], hint=hint)
    return views


def _unclear(source: Source, found: evidence.Evidence) -> DataError:
    problem = f"this looks quantized already ({found.layout}): {found.seen}"
    return DataError(problem, place=[source.path], hint=evidence.PLAIN_HINT)


def _undecoded(source: Source, found: evidence.Evidence) -> DataError:
    problem = f"this model is quantized already ({found.layout}): {found.seen}"
    if is_stream(source):
        hint = "decoding must seek, and standard input is a pipe: name a file, or redirect one with <"
    else:
        hint = "quantcli does not decode it: start from the original"
    return DataError(problem, place=[source.path], hint=hint)


_LONG = {short: long for long, short in LONG_NAMES.items()}


def described(views: Iterable[View]) -> str:
    """The schemes of quantized tensors, and what they are decoded to, the most frequent first."""
    counts = Counter((view.scheme or "", view.info.dtype) for view in views)
    shown = [
        f"{in_words(scheme)} ({n} tensor{'s' if n > 1 else ''}, decoded to {_LONG.get(dtype, dtype)})"
        for (scheme, dtype), n in counts.most_common()
    ]
    return listed(shown)


_FP8 = re.compile(r"fp8-(e4m3|e5m2)(?:b([0-9]+x[0-9]+)|g([0-9]+)|([ct]))")


def in_words(scheme: str) -> str:
    """A scheme in which models are published in words; any other by its name.

    >>> in_words("fp8-e4m3b128x128"), in_words("fp8-e5m2c"), in_words("mxfp4"), in_words("w4g128")
    ('FP8 blocks of 128x128', 'FP8 (E5M2) per channel', 'MXFP4', 'w4g128')
    """
    found = _FP8.fullmatch(scheme)
    if found is None:
        return scheme.upper() if is_published(scheme) else scheme
    kind = "FP8" if found[1] == "e4m3" else "FP8 (E5M2)"
    if found[2] or found[3]:
        return f"{kind} blocks of {found[2]}" if found[2] else f"{kind} groups of {found[3]}"
    return f"{kind} per {'channel' if found[4] == 'c' else 'tensor'}"


# ---- a model as a source ----------------------------------------------------------------------------------------


def decoded(
    source: Source, views: Mapping[str, View], dtypes: Mapping[str, str] | None = None, *, moved: bool = False
) -> Derived:
    """Tensors of a source as floats. dtypes: of tensors that are to have another one than their own. moved: whether
    codes are moved, so that what stands beside them is not left out."""
    tensors = [_computed(source, view, (dtypes or {}).get(name)) for name, view in views.items()]
    codes = [view for view in views.values() if view.scheme is not None]
    warnings = [*source.warnings, *([] if moved else left_out(codes))]
    return Derived(
        source,
        tensors,
        metadata=plain_metadata,
        decoded={t.home: t.info for t in tensors if t.earlier is not None},
        decoded_from=described(codes),
        warnings=warnings,
    )


def _computed_in(views: Mapping[str, View]) -> dict[str, str]:
    """The dtypes in which a graph computes with decoded weights, those of their scales, where they are not float32."""
    coded = {name: view for name, view in views.items() if view.scheme is not None}
    return {name: part.dtype for name, view in coded.items() for part in view.parts if part.dtype in ("F16", "BF16")}


def _computed(source: Source, view: View, dtype: str | None) -> Computed:
    """A tensor of a source, decoded where it is stored as codes."""
    if view.scheme is None and view.stored is not None:
        return unchanged(source, view.stored.stored.info, view.info.name)
    wanted = dtype or view.info.dtype

    def values(first: int, last: int) -> NDArray[Any]:
        try:
            return view.values(first, last, wanted)
        except QuantcliError as error:
            raise error.within(source.path) from None

    cost = view.stored.stored.metrics if view.stored is not None else None
    return Computed(
        info=replace(view.info, dtype=wanted),
        home=view.parts[0].name,
        fill=by_elements(wanted, values, view.step),
        parts=tuple(part.name for part in view.parts),
        earlier=Earlier(view.scheme, cost) if view.scheme is not None else None,
        turned=view.turned if wanted == view.info.dtype else None,
    )


def plain_metadata(source: Source) -> dict[str, str]:
    """The metadata of a file without what describes its codes."""
    if source.kind == GGUF:
        return {"format": "pt"}
    kept = {k: v for k, v in source.metadata.items() if k not in (KEY, EXPORT_KEY, COMFYUI)}
    return {**kept, "format": "pt"} if kept.get("format") == "mlx" else kept


def left_out(views: Iterable[View]) -> list[str]:
    """The lines about tensors beside codes that are in no float model: scales of activations and of caches, and marks
    that say that a model is quantized."""
    names = [name for view in views for name in view.unused]
    marks = [name for name in names if name.rpartition(".")[2] in MARKS]
    scales = [name for name in names if name not in marks]
    found = {"scales of activations or caches": scales, "it marks a quantized model": marks}
    return [f"left out, {what}: {_first_of(those)}" for what, those in found.items() if those]


def _first_of(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if names[1:] else ""
    return f"{printable(names[0], 200)}{more}"
