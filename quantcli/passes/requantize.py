"""Weights that a target does not store, as floats to be quantized again, and the schemes it does store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from quantcli import floats
from quantcli.asking import changed
from quantcli.errors import UsageError
from quantcli.layouts.config import architecture
from quantcli.layouts.writer import named
from quantcli.passes.converting import obstacle
from quantcli.scheme import AUTO, Scheme, scale_dtype_of
from quantcli.stores.derived import Derived
from quantcli.tensors.decided import Quantized
from quantcli.tensors.rows import grouping_of

if TYPE_CHECKING:
    from quantcli.moving_records import Movable


def decoded(model: Movable, wanted: Mapping[str, Scheme | None]) -> Derived:
    """Some weights of a model as floats, as a source. Those to be quantized are float32, others as they once were."""
    views = {name: model[name].view for name in wanted}
    exact = {name: "F32" for name, scheme in wanted.items() if scheme is not None}
    return floats.decoded(model.source, views, exact)


def nearest(stored: Quantized, target: str) -> Scheme | None:
    """The scheme of a target that is nearest to that of a weight and suits its shape; None when none does."""
    export = named(target)
    first = export.accepts.nearest(stored.scheme)
    choices = [first]
    if first.granularity == "group" and first.storage == "plain":
        choices += [changed(first, group_size=g) for g in export.accepts.smaller(first.group_size)]
        if "channel" in export.accepts.granularities:
            choices.append(changed(first, granularity="channel", group_size=None))
    for scheme in choices:
        asked = export.suited(scheme)
        floats = stored.scheme.storage == "plain" and stored.scale_dtype != "F8_E4M3"
        dtype = stored.scale_dtype if floats else stored.info.dtype  # scales of one byte reach as far as those weights
        if asked.scale_dtype == AUTO and first.family == "int" and scheme.bits <= 8 and (floats or dtype == "BF16"):
            asked = asked.with_scale_dtype(scale_dtype_of(dtype))
        if export.shape(replace(stored, scheme=asked, grouping=grouping_of(stored.info.shape, asked))) is None:
            return asked
    return None


def changes(model: Movable, target: str) -> dict[str, Scheme | None]:
    """For every weight the target cannot store, or its loader does not take, the scheme it does; None for floating
    point."""
    export, kind = named(target), architecture(model.source.beside)
    found: dict[str, Scheme | None] = {}
    for name, tensor in model.items():
        stored = tensor.decided
        if stored.scheme is not None and (tensor.obstacle or obstacle(stored, export, kind) is not None):
            unloaded = export.module(stored, kind) is not None
            found[name] = None if unloaded else nearest(stored, target)
    return found if export.mixes else found | _of_one_width(model, found, target)


def _of_one_width(model: Movable, found: Mapping[str, Scheme | None], target: str) -> dict[str, Scheme | None]:
    """The schemes of weights that have other bits than most, for a target that has one width in a model. found: the
    schemes of those that are quantized again anyway."""
    stored = {name: t.decided for name, t in model.items() if isinstance(t.decided, Quantized)}
    bits = {n: scheme.bits for n, t in stored.items() if (scheme := found.get(n, t.scheme)) is not None}
    count: Counter[int] = Counter()
    for name, width in bits.items():
        count[width] += stored[name].info.numel
    most = max(count, key=lambda width: (count[width], width), default=0)
    others = [stored[name] for name, width in bits.items() if width != most]
    same = [replace(t, scheme=changed(t.scheme, bits=most, grid=None)) for t in others]
    return {t.info.name: nearest(t, target) for t in same}


def offered(model: Movable, target: str) -> str | None:
    """What --requantize would do to the first weight the target cannot store; None when it can store all."""
    for scheme in changes(model, target).values():
        return f"--requantize makes it {scheme.name}" if scheme else "--requantize leaves it in floating point"
    return None


def refused(model: Movable, target: str, error: UsageError) -> UsageError:
    """A refusal with the way out."""
    return UsageError(error.problem, place=[model.source.path, *error.place], hint=error.hint or offered(model, target))
