"""Errors measured again: stored codes against the original weights, with the sums the writer made."""

from __future__ import annotations

from functools import partial

import numpy as np

from quantcli import kernels
from quantcli import metrics as metric
from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, listed, printable
from quantcli.formats import code_grid
from quantcli.kernels import Sums
from quantcli.layouts import evidence
from quantcli.layouts.native.model import Model, Tensor
from quantcli.metrics import Metrics
from quantcli.passes.tiles import COPY, Progress, Visit, begun, walk
from quantcli.stores import signals
from quantcli.tensors.digest import Digested, kind_of
from quantcli.tensors.rows import TileSpan
from quantcli.tensors.tiles import as_tile


def against(
    model: Model, original: Model, *, threads: int, check_digests: bool, progress: Progress | None
) -> list[Metrics | None]:
    """Metrics of every tensor of a quantized model against the original one; None for kept tensors.

    Raises DataError when a tensor is missing in either, has another shape, or (with check_digests) was made from
    other weights: a report against the wrong original would look like a bad quantization.
    """
    _check(model, original, known=check_digests and all(t.stored.digest is not None for t in model.values()))
    advance = begun(progress, sum(t.stored.info.nbytes for t in model.values()))
    digests: dict[str, str | None] = {}
    metrics: dict[str, Metrics] = {}

    def visit(name: str) -> Visit:
        stored, nbytes = model[name].stored, original[name].stored.info.nbytes
        kind = kind_of(stored.digest) if check_digests else "none"
        weights = Digested(partial(original.source.read, name), nbytes, kind)
        if stored.grouping is None:
            yield weights.alone(COPY, advance)
        else:
            reads = weights.apart()
            spans = list(stored.grouping.tiles())
            sums = yield [*reads, *(partial(measure, name, weights, span) for span in spans)]
            metrics[name] = metric.total(sums[len(reads) :])
        digests[name] = weights.found()

    def measure(name: str, weights: Digested, span: TileSpan) -> tuple[Sums, int]:
        tensor = model[name]
        scheme, plan = tensor.stored.scheme, tensor.stored.grouping
        assert scheme is not None and plan is not None
        dtype = original[name].dtype
        size = DTYPES[dtype].bits // 8
        raw = np.empty(span.rows * span.cols * size, np.uint8)
        weights.fill((span.row * plan.cols + span.col) * size, raw.data)
        tile = as_tile(raw, dtype, span, plan.group)
        found = kernels.load().measure(tile, tensor.params(span), code_grid(scheme), tensor.packed(span))
        advance(len(raw))
        return found, span.rows * span.cols

    walk((visit(name) for name in model), threads=threads)
    for name, tensor in model.items():
        if digests[name] is not None:
            _same_digest(tensor, digests[name], original)
    original.source.check_unchanged()
    return [metrics.get(name) for name in model]


def _check(model: Model, original: Model, *, known: bool) -> None:
    """Raise DataError with all that does not match: nothing is measured then. known: whether digests tell that these
    are the weights the model was made from; others that are quantized are not floats to measure against."""
    if original.source.decoded_from and not known:
        raise DataError(
            f"the original is quantized itself: {original.source.decoded_from}",
            place=[original.source.path],
            hint="name the floats it was made from, or use compare",
        )
    seen = None if known else evidence.found_in(original.source, evidence.beside(original.source.path))
    if seen is not None and seen.certain:
        raise DataError(
            f"the original is quantized itself ({seen})",
            place=[original.source.path],
            hint="name the floats it was made from, or use compare",
        )
    found = []
    for name, tensor in model.items():
        if name not in original:
            found.append(f"{printable(name)} is not in the original")
        elif original[name].shape != tensor.shape:
            found.append(f"{printable(name)} is {list(tensor.shape)}, and {list(original[name].shape)} in the original")
        elif tensor.scheme is not None and not DTYPES[original[name].dtype].quantizable:
            found.append(f"{printable(name)} is {original[name].dtype} in the original")
    found += [f"{printable(name)} is only in the original" for name in original if name not in model]
    if found:
        whole = signals.may_hold(original.source) and any(t.dtype in signals.DIVISORS for t in original.values())
        raise DataError(
            f"{len(found)} tensor{'s do' if len(found) > 1 else ' does'} not match: {listed(found)}",
            place=[model.source.path, original.source.path],
            hint=f"{signals.OPTION} reads the integers of the original as a signal" if whole else None,
        )


def _itself(original: Model) -> str:
    decoded = original.source.decoded_from
    return f"; the original is quantized itself: {decoded}" if decoded else ""


def _same_digest(tensor: Tensor, found: str | None, original: Model) -> None:
    if tensor.stored.digest != found:
        raise DataError(
            f"these are not the weights the file was made from (digests differ){_itself(original)}",
            place=[original.source.path, printable(tensor.name)],
            hint="use --ignore-digest to measure anyway",
        )
