"""Runs an ONNX model on samples, and writes what the inputs of its weights are like.

The model is run by onnxruntime with these inputs as more outputs. Where the sums of all layers, or the values of a run,
take more memory than may be used, the samples are run several times, for some layers each; sums of those that are done
wait in a temporary file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from quantcli.errors import DataError, UsageError, printable
from quantcli.layouts.onnx.exposed import Exposed, exposed
from quantcli.layouts.onnx.taps import Tap, tapped
from quantcli.passes.feeds import Declared, Feeds, feeds
from quantcli.passes.moments import Moments, rows_of
from quantcli.passes.tiles import Progress, begun
from quantcli.planning.moments import KEY, VERSION
from quantcli.stores.files import OutputFile
from quantcli.stores.safetensors import lay_out
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.stores import Source
    from quantcli.stores.onnx_graph import Graph

METADATA = {KEY: VERSION}

MASK = "attention_mask"
"""The name of an input that says which tokens are there: the others are not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What was observed: columns of each weight by name, of how many rows; why others have nothing, runs over the
    samples, and whether an attention mask was heeded."""

    columns: Mapping[str, int]
    rows: Mapping[str, int]
    without: Mapping[str, str]
    samples: int
    runs: int
    masked: bool
    bytes_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """How to observe. full: matrices of second moments, not squares alone; memory: bytes for sums and values; batch:
    samples of a run; threads; force: whether the output may be replaced."""

    full: bool = True
    memory: int = 1 << 30
    batch: int = 8
    threads: int = 1
    force: bool = False


def runtime() -> Any:
    """The module onnxruntime. Raises UsageError where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        hint = "pip install 'quantcli[onnx]'"
        raise UsageError(f"onnxruntime cannot be imported: {printable(str(error), 200)}", hint=hint) from None
    return onnxruntime


def observe(source: Source, inputs: Source, path: str, request: Request, progress: Progress | None = None) -> Observed:
    """Write the statistics of the weights of a model to `path`. Raises QuantcliError."""
    ort = runtime()
    if source.graph is None:
        raise UsageError("only ONNX models can be run", place=[source.path], hint="quantcli help statistics")
    found = tapped(source.graph, source.infos())
    model = exposed(source.graph, found.taps)
    without = dict(found.without)
    hidden = "its inputs are inside a node other than If and Loop"
    without |= {t.weight: hidden for t in found.taps if t not in model.values}
    if not model.values:
        raise DataError("no node multiplies a weight with inputs", place=[source.path])
    session = _session(ort, model, source.path, request.threads)
    declared = [Declared(name=i.name, type=i.type, shape=_open(i.shape)) for i in session.get_inputs()]
    run = _Run(session, source.graph, model, feeds(inputs, declared), request, source.path)
    with tempfile.TemporaryFile() as spool:
        done = _Spool(spool)
        groups = run.groups([name for name in dict.fromkeys(t.weight for t in model.values) if name not in without])
        advance = begun(progress, run.feeds.samples * len(groups))
        for names in groups:
            for name, sums in run.sums(names, advance).items():
                if sums.count:
                    done.add(name, sums)
                else:
                    without[name] = "no samples came to it"
        if not done.columns:
            raise DataError("no samples came to any weight", place=[source.path])
        size = done.write(path, force=request.force)
    return Observed(
        columns=done.columns,
        rows=done.rows,
        without=without,
        samples=run.feeds.samples,
        runs=len(groups),
        masked=run.masked,
        bytes_out=size,
    )


def _open(shape: Sequence[Any]) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in shape)


def _session(ort: Any, model: Exposed, path: str, threads: int) -> Any:
    """A session of the model. Raises DataError where onnxruntime refuses it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.use_deterministic_compute = True
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    folder = os.path.dirname(os.path.abspath(path))
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    try:
        return ort.InferenceSession(model.model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes of errors share no base of their own
        raise _refused(error, path) from None


def _refused(error: Exception, path: str) -> DataError:
    """What onnxruntime said, as an error."""
    text = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")
    return DataError(f"onnxruntime: {printable(text, 300)}", place=[path])


@dataclass(slots=True)
class _Run:
    """Runs of the model on its samples."""

    session: Any
    graph: Graph
    model: Exposed
    feeds: Feeds
    request: Request
    path: str

    @property
    def masked(self) -> bool:
        """Whether an attention mask says which tokens are counted."""
        return MASK in self.feeds.arrays

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        """The weights in groups whose sums and values fit into memory, measured by a first sample. Raises
        UsageError for a weight that does not fit alone."""
        sizes = self._sizes()
        found, room = list[list[str]](), 0
        for name in names:
            taps = self._taps(name)
            values = {value for tap in taps for value in self.model.values[tap] if value}
            columns = taps[0].columns
            need = 8 * (columns * columns if self.request.full else 2 * columns)
            need += self._batch() * sum(sizes[value] for value in values)
            if need > self.request.memory:
                less = ", --moments diagonal" if self.request.full else ""
                problem = f"observing it needs {need} bytes, more than --memory {self.request.memory}"
                raise UsageError(problem, place=[printable(name)], hint=f"give more, or a smaller --batch{less}")
            if not found or need > room:
                found.append([])
                room = self.request.memory
            found[-1].append(name)
            room -= need
        return found

    def _taps(self, name: str) -> list[Tap]:
        return [tap for tap in self.model.values if tap.weight == name]

    def _batch(self) -> int:
        return min(self.request.batch, self.feeds.samples) if self.feeds.batches else 1

    def _sizes(self) -> dict[str, int]:
        """Bytes that every value takes for a sample."""
        names = list({v: None for values in self.model.values.values() for v in values if v})
        return {name: value.nbytes for name, value in self._values(names, self.feeds.of(0, 1), 0).items()}

    def _values(self, names: Sequence[str], fed: Mapping[str, Any], first: int) -> dict[str, NDArray[np.float32]]:
        """Values of a run. first: the first of its samples, for errors."""
        try:
            return dict(zip(names, self.session.run(list(names), dict(fed))))
        except Exception as error:
            raise _refused(error, self.path).within(self.feeds.source.path, f"sample {first}") from None

    def sums(self, names: Sequence[str], advance: Any) -> dict[str, Moments]:
        """Sums of the inputs of some weights over all samples."""
        taps = {name: self._taps(name) for name in names}
        wanted = {v: None for own in taps.values() for tap in own for v in self.model.values[tap] if v}
        found = {name: Moments(own[0].columns, full=self.request.full) for name, own in taps.items()}
        with ThreadPoolExecutor(self.request.threads) as pool:
            for first in range(0, self.feeds.samples, self._batch()):
                last = min(first + self._batch(), self.feeds.samples)
                fed = self.feeds.of(first, last)
                values = self._values(list(wanted), fed, first)
                mask = fed[MASK] != 0 if self.masked else None

                def add(name: str, values: Any = values, mask: Any = mask) -> None:
                    for tap in taps[name]:
                        own = [values[v] if v else None for v in self.model.values[tap]]
                        if own[0] is not None and own[0].size:
                            for rows in rows_of(tap, self.graph.calls[tap.place], own, mask):
                                _check(rows, tap, name)
                                found[name].add(rows)

                for _ in pool.map(add, names):
                    pass
                self._check_finite(found, first)
                advance(last - first)
        return found

    def _check_finite(self, found: Mapping[str, Moments], first: int) -> None:
        for name, sums in found.items():
            finite = bool(np.isfinite(sums.total).all())
            if not finite or not sums.fits:
                what = "so large that float32 does not hold their squares" if finite else "not finite"
                problem = f"the inputs of {printable(name)} are {what}"
                raise DataError(problem, place=[self.feeds.source.path, f"sample {first}"])


def _check(rows: NDArray[np.float32], tap: Tap, name: str) -> None:
    if rows.shape[-1] != tap.columns:
        problem = f"inputs of {rows.shape[-1]} columns for a weight of {tap.columns}"
        raise DataError(problem, place=[printable(name)])


@dataclass(slots=True)
class _Spool:
    """Statistics that are done, one after another in a file."""

    file: IO[bytes]
    columns: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    infos: list[TensorInfo] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, sums: Moments) -> None:
        """Keep the statistics of a weight."""
        self.columns[name], self.rows[name] = sums.columns, sums.count
        count = np.array(sums.count, "<i8")
        parts = {
            "second": ("F32", sums.second, "<f4"),
            "mean": ("F32", sums.mean, "<f4"),
            "count": ("I64", count, "<i8"),
        }
        for part, (dtype, values, kind) in parts.items():
            info = TensorInfo(f"{name}.{part}", dtype, values.shape)
            self.infos.append(info)
            self.starts[info.name] = self.file.tell()
            self.file.write(np.ascontiguousarray(values, kind).tobytes())

    def write(self, path: str, *, force: bool) -> int:
        """Write the safetensors file; its bytes."""
        layout = lay_out(self.infos, METADATA)
        with OutputFile(os.path.realpath(path), layout.size, force=force) as out:
            for at, piece in layout.header(METADATA):
                out.write(at, piece)
            offsets = layout.offsets
            for info in layout.infos:
                self.file.seek(self.starts[info.name])
                for at, part in self._parts(info.nbytes):
                    out.write(offsets[info.name] + at, part)
            out.sync()
            layout.check(out.temp, path)
            out.publish()
        return layout.size

    def _parts(self, size: int) -> Iterator[tuple[int, bytes]]:
        step = 1 << 22
        for at in range(0, size, step):
            yield at, self.file.read(min(step, size - at))
