"""The only loop over tensors and tiles: read, observe, settle, encode, measure, write.

A file is written in one pass. Where a tensor turns out not to be what its plan took for granted (scales that do not
fit the dtype chosen for them, NaN under `--on-nonfinite keep`) the pass goes on only to find all such tensors, the
plan is amended and the file is written anew: sizes are always known before the first byte is written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from quantcli import kernels
from quantcli import metrics as metric
from quantcli.dtypes import DTYPES, from_float32
from quantcli.errors import DataError, QuantcliError, printable
from quantcli.kernels import QuantParams, Sums, Tile, row_bytes
from quantcli.layouts.native import document as container
from quantcli.layouts.native.document import Result
from quantcli.planning.plan import Plan, TensorPlan, check, kept, with_float32_scales
from quantcli.stores import Source, is_stream, seal
from quantcli.stores.checkpoint import Part
from quantcli.stores.files import OutputFile, check_space
from quantcli.stores.safetensors import FileLayout, header_bytes, lay_out, validate
from quantcli.tensors import api, digest, packing
from quantcli.tensors.fit import Misfit, NotFinite, Trials, read_span, span_bytes
from quantcli.tensors.rows import Layout, TileSpan
from quantcli.workers import Crew, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

COPY = 1 << 22
"""Bytes of a kept tensor that are copied at a time; whole digest chunks."""


class Progress(Protocol):
    """Told how far the work is; called from several threads."""

    def start(self, total: int) -> None:
        """A pass over so many bytes begins."""

    def advance(self, nbytes: int) -> None:
        """So many bytes are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run: none of it changes the output but `digest`. part: the file is one of several of a model, and may
    turn out to hold nothing quantized."""

    threads: int
    digest: str = "xxh3"
    keep_nonfinite: bool = False
    force: bool = False
    part: bool = False
    progress: Progress | None = None


class _Buffers(threading.local):
    """A thread's buffers: pages that were touched once are three times as fast as fresh ones."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[np.uint8]] = {}

    def take(self, name: str, size: int) -> NDArray[np.uint8]:
        if name not in self._held or self._held[name].size < size:
            self._held[name] = np.empty(size, np.uint8)
        return self._held[name][:size]


_buffers = _Buffers()


@dataclass(slots=True)
class _Job:
    """A tensor under work."""

    plan: TensorPlan
    tiles: list[TileSpan] = field(default_factory=list)
    left: int = 0
    sums: list[tuple[Sums, int] | None] = field(default_factory=list)
    rival: list[float | None] = field(default_factory=list)
    trials: Trials | None = None
    unseen: int = 0
    chunks: digest.Chunks | None = None
    sha256: str | None = None
    zeros: _ZeroBands | None = None


class _ZeroBands:
    """Zero points on their way to the stream that runs down 32 rows at a time: b words for each group."""

    def __init__(self, plan: Layout, bits: int) -> None:
        self.rows, self.groups = container.zero_shape(plan)
        self.bits = bits
        self._bands: dict[int, NDArray[Any]] = {}
        self._left: dict[int, int] = {}
        self._lock = threading.Lock()

    def add(self, zero: NDArray[Any], row: int, group: int, write: Callable[[int, memoryview], None]) -> None:
        """Take in zero points (rows, groups) at a place; bands that are complete are written, by byte offset."""
        done = []
        with self._lock:
            for first in range(row // 32 * 32, row + zero.shape[0], 32):
                height = min(32, self.rows - first)
                band = self._bands.setdefault(first, np.zeros((height, self.groups), np.uint16))
                lo, hi = max(row, first), min(row + zero.shape[0], first + height)
                band[lo - first : hi - first, group : group + zero.shape[1]] = zero[lo - row : hi - row]
                left = self._left.get(first, height * self.groups) - (hi - lo) * zero.shape[1]
                self._left[first] = left
                if not left:
                    done.append((first, self._bands.pop(first)))
        for first, band in done:
            words = packing.pack_columns(band, self.bits)
            write(first // 32 * self.bits * self.groups * 4, np.ascontiguousarray(words).data.cast("B"))


class _Run:
    """One pass over the tensors of a plan into one file."""

    def __init__(self, source: Source, plan: Plan, places: FileLayout, out: OutputFile, options: Options) -> None:
        self.source, self.plan, self.places, self.out, self.options = source, plan, places, out, options
        self.table = kernels.load()
        self.results: dict[str, Result] = {}
        self.amendments: dict[str, TensorPlan] = {}
        self._lock = threading.Lock()

    def tasks(self) -> Iterator[Task]:
        for tensor in self.plan.tensors:
            yield from self._tensor_tasks(tensor)

    def _tensor_tasks(self, tensor: TensorPlan) -> Iterator[Task]:
        job = _Job(tensor)
        nbytes = tensor.info.nbytes
        if self.options.digest == "xxh3":
            job.chunks = digest.Chunks(nbytes)
        job.left = int(self.options.digest == "sha256")
        if tensor.layout is None:
            starts = range(0, max(nbytes, 1), COPY)
            job.left += len(starts)
            yield from (partial(self._copy, job, start) for start in starts)
        else:
            job.tiles = list(tensor.layout.tiles())
            job.left += len(job.tiles)
            job.sums = [None] * len(job.tiles)
            job.rival = [None] * len(job.tiles)
            if tensor.scheme is not None and not tensor.scheme.symmetric and tensor.scheme.zero_point == "int":
                job.zeros = _ZeroBands(tensor.layout, tensor.scheme.bits)
            job.left += 1
            yield partial(self._shape, job)
            assert tensor.scheme is not None
            job.trials = _trials(tensor)
            yield from self._work(job, job.trials)
        if self.options.digest == "sha256":
            yield partial(self._sha256, job)

    # -- pieces of work

    def _read(self, job: _Job, span: TileSpan, *, strips: bool = False) -> tuple[NDArray[np.uint8], Tile]:
        """The bytes of a span and the tile they make."""
        assert job.trials is not None
        fit = job.trials.chosen
        raw = _buffers.take("raw", span_bytes(fit, span, strips=strips))
        name = job.plan.info.name
        tile = read_span(fit, span, lambda at, part: self.source.read(name, at, part.data), raw, strips=strips)
        return raw, tile

    def _write(self, job: _Job, output: int, offset: int, data: memoryview) -> None:
        self.out.write(self.places.offsets[job.plan.outputs[output].name] + offset, data)

    def _digest(self, job: _Job, start: int, block: memoryview) -> None:
        if job.chunks is not None:
            job.chunks.add(start, block, lambda at, rest: self.source.read(job.plan.info.name, at, rest))

    def _copy(self, job: _Job, start: int) -> list[Task] | None:
        size = min(COPY, job.plan.info.nbytes - start)
        block = _buffers.take("raw", size).data
        self.source.read(job.plan.info.name, start, block)
        self._digest(job, start, block)
        self._write(job, 0, start, block)
        self._passed(job, start, size)
        return self._done(job, size)

    def _passed(self, job: _Job, start: int, size: int) -> None:
        """These bytes are done with, unless all are read once more for SHA-256."""
        if self.options.digest != "sha256":
            self.source.passed(job.plan.info.name, start, size)

    def _shape(self, job: _Job) -> list[Task] | None:
        self._write(job, -1, 0, np.array(job.plan.info.shape, "<i8").data.cast("B"))
        return self._done(job, 0)

    def _sha256(self, job: _Job) -> list[Task] | None:
        name = job.plan.info.name
        job.sha256 = digest.sha256(job.plan.info.nbytes, lambda at, block: self.source.read(name, at, block))
        return self._done(job, 0)

    def _work(self, job: _Job, trials: Trials) -> list[Task]:
        """The next things to do for a tensor: a pass over it, or its codes."""
        if trials.spans:
            job.unseen = len(trials.spans)
            return [partial(self._see, job, trials, i) for i in range(len(trials.spans))]
        if trials.chosen.stored is not None:
            self._write_params(job, trials.chosen.stored, 0, 0)
        return [partial(self._encode, job, trials, i) for i in range(len(job.tiles))]

    def _see(self, job: _Job, trials: Trials, index: int) -> list[Task] | None:
        """One span of a pass that finds parameters."""
        if job.plan.info.name in self.amendments:
            return None
        _, tile = self._read(job, trials.spans[index], strips=trials.by_strips)
        try:
            trials.see(self.table, tile, index)
            with self._lock:
                job.unseen -= 1
                if job.unseen:
                    return None
            trials.conclude()
        except (NotFinite, Misfit) as found:
            self._amend(job, found)
            return None
        return self._work(job, trials)

    def _encode(self, job: _Job, trials: Trials, index: int) -> list[Task] | None:
        scheme, plan, span = trials.chosen.scheme, job.plan.layout, job.tiles[index]
        assert plan is not None
        if job.plan.info.name in self.amendments:  # its other tiles would be searched for nothing
            return None
        raw, tile = self._read(job, span)
        packed = _buffers.take("packed", span.rows * row_bytes(span.cols, scheme.bits))
        try:
            sums, params = trials.encode(self.table, tile, span, packed)
        except (NotFinite, Misfit) as found:
            self._amend(job, found)
            return None
        if self.amendments:  # this pass only looks for further tensors to plan anew
            return self._done(job, len(raw))
        start = (span.row * plan.cols + span.col) * DTYPES[job.plan.info.dtype].bits // 8
        self._digest(job, start, raw.data)
        job.sums[index] = sums, span.rows * span.cols
        job.rival[index] = trials.rival_error(self.table, tile, span)
        at = span.row * row_bytes(plan.cols, scheme.bits) + span.col * scheme.bits // 8
        self._write(job, 0, at, packed.data)
        if trials.chosen.whole is None:
            self._write_params(job, params, span.row, span.col // plan.group)
        self._passed(job, start, len(raw))
        return self._done(job, len(raw))

    def _amend(self, job: _Job, found: Exception) -> None:
        if is_stream(self.source):
            raise self._from_a_stream(job, isinstance(found, NotFinite))
        if isinstance(found, NotFinite):
            self._nonfinite(job)
        else:
            self._misfit(job)

    def _write_params(self, job: _Job, params: QuantParams, row: int, group: int) -> None:
        assert job.plan.layout is not None and job.plan.scheme is not None
        size = DTYPES[job.plan.scale_dtype].bits // 8
        at = (row * job.plan.layout.groups + group) * size
        place = {part: i for i, part in enumerate(container.parts(job.plan.scheme))}

        def store(part: str, offset: int, values: NDArray[Any]) -> None:
            output = place[part]
            dtype = job.plan.outputs[output].dtype
            self._write(job, output, offset, np.ascontiguousarray(from_float32(values, dtype)).data.cast("B"))

        if "scale" in place:
            store("scale", at, params.scale)
        if job.zeros is not None and params.zero is not None:
            output = place["zero_point"]
            job.zeros.add(params.zero, row, group, lambda offset, data: self._write(job, output, offset, data))
        elif params.zero is not None:
            store("offset", at, params.zero)
        if "codebook" in place and params.codebook is not None:
            held = job.plan.outputs[place["codebook"]]
            width = params.codebook.levels.shape[1] * DTYPES[held.dtype].bits // 8
            if len(held.shape) > 1:
                store("codebook", row * width, params.codebook.levels)
            elif row == group == 0:
                store("codebook", 0, params.codebook.levels)

    # -- ends

    def _done(self, job: _Job, nbytes: int) -> list[Task] | None:
        if self.options.progress is not None and nbytes:
            self.options.progress.advance(nbytes)
        with self._lock:
            job.left -= 1
            if job.left or self.amendments:
                return None
        tiles = [s for s in job.sums if s is not None]
        metrics = metric.total(tiles) if job.plan.scheme is not None else None
        found = job.chunks.hexdigest() if job.chunks is not None else job.sha256
        chosen = job.trials.chosen.scheme if job.trials is not None else None
        self.results[job.plan.info.name] = Result(metrics, found, chosen, self._minmax_sse(job))
        self.source.passed(job.plan.info.name, 0, job.plan.info.nbytes)
        self.source.release(job.plan.info.name)
        return None

    @staticmethod
    def _minmax_sse(job: _Job) -> float | None:
        """The squared error that min-max would have had."""
        if job.trials is None:
            return None
        errors = [e for e in job.rival if e is not None]
        return sum(errors) if job.rival and len(errors) == len(job.rival) else job.trials.minmax_sse

    def _from_a_stream(self, job: _Job, nonfinite: bool) -> QuantcliError:
        """The error for what takes a second look at a whole file."""
        place = [self.source.path, printable(job.plan.info.name)]
        if not nonfinite:
            hint = "use --scale-dtype float32, or name a file"
            return DataError(f"{job.plan.scale_dtype} does not hold its scales", place=place, hint=hint)
        keep = self.options.keep_nonfinite
        hint = "name a file: from a pipe the plan cannot be changed any more" if keep else "name a file to see where"
        return DataError("it holds NaN or infinity", place=place, hint=hint)

    def _misfit(self, job: _Job) -> None:
        assert job.plan.scheme is not None
        if job.plan.scheme.scale_dtype is not None or job.plan.scale_dtype == "F32":
            raise api.scale_misfit(job.plan.scheme).within(self.source.path, printable(job.plan.info.name))
        with self._lock:
            self.amendments.setdefault(job.plan.info.name, with_float32_scales(job.plan))

    def _nonfinite(self, job: _Job) -> None:
        if self.options.keep_nonfinite:
            with self._lock:
                self.amendments[job.plan.info.name] = kept(job.plan.info, "nonfinite")
            return
        found = count_nonfinite(self.source, job.plan)
        raise DataError(
            found.describe(),
            place=[self.source.path, printable(job.plan.info.name)],
            hint="use --on-nonfinite keep to leave such tensors in floating point",
        )


def count_nonfinite(source: Source, tensor: TensorPlan) -> api.NonFinite:
    """What is not finite in a whole tensor."""
    size = DTYPES[tensor.info.dtype].bits // 8
    found = api.NonFinite(0, 0, False)
    buffer = np.empty(COPY, np.uint8)
    for start in range(0, tensor.info.nbytes, COPY):
        block = buffer[: min(COPY, tensor.info.nbytes - start)]
        source.read(tensor.info.name, start, block.data)
        found += api.nonfinite(block, tensor.info.dtype, start // size)
    return found


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written: the plan as it turned out, what is known of each tensor, and its size."""

    plan: Plan
    results: Mapping[str, Result]
    size: int


def file_layout(source: Source, plan: Plan, metadata: Mapping[str, str], digest_kind: str) -> FileLayout:
    """The exact layout of the file a plan leads to."""
    outputs = [output for tensor in plan.tensors for output in tensor.outputs]
    document = container.document(plan, digest_kind, source_bytes(source))
    try:
        return lay_out(outputs, {"format": "pt", **metadata, container.KEY: document})
    except DataError as error:
        raise error.within(source.path) from None


def interrupt(source: Source) -> None:
    """Let reads that wait for data fail."""
    for file in source.files():
        file.interrupt()


def held_whole(source: Source, plan: Plan, digest_kind: str) -> list[TensorPlan]:
    """The tensors of a stream that must be in memory whole, because they are looked at more than once."""
    if not is_stream(source):
        return []
    return [t for t in plan.tensors if digest_kind == "sha256" or (t.scheme is not None and _passes(t))]


def _passes(tensor: TensorPlan) -> bool:
    """Whether parameters take a pass of their own."""
    assert tensor.scheme is not None and tensor.layout is not None
    return bool(_trials(tensor).spans)


def _trials(tensor: TensorPlan) -> Trials:
    """What is tried on a tensor; min-max is no rival where it is not the plain error that counts."""
    assert tensor.scheme is not None and tensor.layout is not None
    importance = tensor.importance.values if tensor.importance else None
    rival = tensor.scheme.rival if importance is None else None
    return Trials(tensor.info, tensor.scheme, tensor.layout, tensor.scale_dtype, rival=rival, importance=importance)


def source_bytes(source: Source) -> int:
    """Bytes of the files a source is; of a part of a checkpoint, its share of them."""
    return source.share if isinstance(source, Part) else sum(file.size for file in source.files())


def write(source: Source, plan: Plan, metadata: Mapping[str, str], path: str, options: Options) -> Written:
    """Quantize a source into a safetensors file at `path`, which appears only when it is complete.

    Raises QuantcliError for what the weights or the disk forbid.
    """
    metadata = {"format": "pt", **metadata}
    while True:
        places = file_layout(source, plan, metadata, options.digest)
        check_space(path, places.size, source.path)
        with OutputFile(path, places.size, force=options.force) as out:
            if options.progress is not None:
                options.progress.start(sum(t.info.nbytes for t in plan.tensors))
            run = _Run(source, plan, places, out, options)
            Crew(run.tasks(), options.threads, lambda: interrupt(source)).run()
            if run.amendments:
                plan = plan.amended(run.amendments)
                if not options.part:
                    check(plan)
                continue
            document = container.document(plan, options.digest, source_bytes(source), run.results)
            header = header_bytes(places.entries, {**metadata, container.KEY: document}, places.header_size)
            out.write(0, seal.sealed(header))
            source.check_unchanged()
            out.sync()
            validate(out.temp, path)
            out.publish()
            return Written(plan, run.results, places.size)
