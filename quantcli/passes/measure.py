"""Errors measured again: stored codes against the original weights, with the sums the writer made."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import numpy as np

from quantcli import kernels
from quantcli import metrics as metric
from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, printable
from quantcli.formats import code_grid
from quantcli.kernels import Sums
from quantcli.layouts import evidence
from quantcli.layouts.native.model import Model, Tensor
from quantcli.metrics import Metrics
from quantcli.passes.tiles import COPY, Crew, Progress, Task
from quantcli.tensors import digest
from quantcli.tensors.fit import as_tile
from quantcli.tensors.rows import TileSpan


def against(
    model: Model, original: Model, *, threads: int, check_digests: bool, progress: Progress | None
) -> list[Metrics | None]:
    """Metrics of every tensor of a quantized model against the original one; None for kept tensors.

    Raises DataError when a tensor is missing in either, has another shape, or (with check_digests) was made from
    other weights: a report against the wrong original would look like a bad quantization.
    """
    _check(model, original, known=check_digests and all(t.stored.digest is not None for t in model.values()))
    names = list(model)
    sums: dict[str, list[tuple[Sums, int] | None]] = {}
    chunks: dict[str, digest.Chunks] = {}
    lock = threading.Lock()
    if progress is not None:
        progress.start(sum(t.stored.info.nbytes for t in model.values()))

    def tasks() -> Iterator[Task]:
        for name in names:
            stored = model[name].stored
            if check_digests and stored.digest is not None:
                if len(stored.digest) == 64:
                    yield partial(check_sha256, name)
                else:
                    chunks[name] = digest.Chunks(original[name].stored.info.nbytes)
            if stored.layout is None:
                if name in chunks:
                    for start in range(0, stored.info.nbytes, COPY):
                        yield partial(scan, name, start)
                continue
            spans = list(stored.layout.tiles())
            sums[name] = [None] * len(spans)
            for index in range(len(spans)):
                yield partial(measure, name, index, spans)

    def read(name: str, start: int, block: memoryview) -> None:
        original.source.read(name, start, block)

    def scan(name: str, start: int) -> None:
        block = memoryview(bytearray(min(COPY, original[name].stored.info.nbytes - start)))
        read(name, start, block)
        chunks[name].add(start, block, lambda at, rest: read(name, at, rest))
        advance(len(block))

    def check_sha256(name: str) -> None:
        found = digest.sha256(original[name].stored.info.nbytes, lambda at, block: read(name, at, block))
        _same_digest(model[name], found, original)

    def measure(name: str, index: int, spans: list[TileSpan]) -> None:
        tensor, span = model[name], spans[index]
        scheme, plan = tensor.stored.scheme, tensor.stored.layout
        assert scheme is not None and plan is not None
        dtype = original[name].dtype
        size = DTYPES[dtype].bits // 8
        start = (span.row * plan.cols + span.col) * size
        raw = np.empty(span.rows * span.cols * size, np.uint8)
        read(name, start, raw.data)
        if name in chunks:
            chunks[name].add(start, raw.data, lambda at, rest: read(name, at, rest))
        tile = as_tile(raw, dtype, span, plan.group)
        params = tensor.params(span)
        found = kernels.load().measure(tile, params, code_grid(scheme), tensor.packed(span))
        with lock:
            sums[name][index] = found, span.rows * span.cols
        advance(len(raw))

    def advance(nbytes: int) -> None:
        if progress is not None:
            progress.advance(nbytes)

    Crew(tasks(), threads).run()
    for name, found in chunks.items():
        _same_digest(model[name], found.hexdigest(), original)
    original.source.check_unchanged()
    return [metric.total([s for s in sums[name] if s is not None]) if name in sums else None for name in names]


def _check(model: Model, original: Model, *, known: bool) -> None:
    """Raise DataError with all that does not match: nothing is measured then. known: whether digests tell that these
    are the weights the model was made from; others that are quantized are no floats to measure against."""
    if original.is_quantized:
        raise DataError("the original is quantized itself", place=[original.source.path])
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
            found.append(f"{printable(name)} is {list(original[name].shape)} there and {list(tensor.shape)} here")
        elif tensor.scheme is not None and not DTYPES[original[name].dtype].quantizable:
            found.append(f"{printable(name)} is {original[name].dtype} there")
    found += [f"{printable(name)} is only in the original" for name in original if name not in model]
    if found:
        raise DataError(
            f"{len(found)} tensor{'s do' if len(found) > 1 else ' does'} not match: {', '.join(found)}",
            place=[model.source.path, original.source.path],
        )


def _same_digest(tensor: Tensor, found: str, original: Model) -> None:
    if tensor.stored.digest != found:
        raise DataError(
            "these are not the weights the file was made from (digests differ)",
            place=[original.source.path, printable(tensor.name)],
            hint="use --ignore-digest to measure all the same",
        )
