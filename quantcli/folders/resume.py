"""What an interrupted run on a checkpoint folder has finished, and whether a new run may continue it.

The journal records the request (tool, recipe, digest, shards of the source) and, for every finished file, the digest of
its bytes and the result of each of its tensors. A file is reused when its bytes have that digest, the tensors of the
source still have theirs, and its header is the one that this run would write.

It is lines of JSON: the first has the request and what was finished when the run began, each further one a file that it
has finished. A line that was cut short by a power failure counts for nothing, and neither does what follows it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from quantcli import __version__
from quantcli.asking import Scheme
from quantcli.errors import DataError, UsageError, printable
from quantcli.layouts.native.document import Result
from quantcli.metrics import Metrics
from quantcli.passes.digests import digests
from quantcli.passes.outputs import OneFile
from quantcli.passes.quantize import Options
from quantcli.passes.tiles import COPY, once, walk
from quantcli.planning.entry import UNTOLD, with_float32_scales, without_statistics
from quantcli.planning.plan import Plan
from quantcli.stores import destinations, places
from quantcli.stores.files import InputFile
from quantcli.tensors.decided import Decided, Kept
from quantcli.tensors.digest import Digested
from quantcli.tensors.second_order import Output

if TYPE_CHECKING:
    from quantcli.stores import Source
    from quantcli.stores.destinations import OutputFolder, Part


@dataclass(frozen=True, slots=True)
class Made:
    """The outcome of a tensor: what was finally decided for it, and its result."""

    tensor: Decided
    result: Result


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished file: how many tensors of the source it accounts for, the digest of its bytes, and the outcome of each
    tensor in it. size: of the file, of which a part of a run has written only what these tensors take (see places)."""

    tensors: int
    digest: str
    made: Mapping[str, Mapping[str, Any]]
    size: int = 0


@dataclass(frozen=True, slots=True)
class Journal:
    """The request, and the finished files by name."""

    asked: Mapping[str, Any]
    finished: dict[str, Finished]

    def as_bytes(self) -> bytes:
        """A line of the journal."""
        done = {name: [f.tensors, f.digest, f.made, f.size] for name, f in self.finished.items()}
        return json.dumps({"asked": self.asked, "finished": done}).encode() + b"\n"


class Ledger:
    """What of the models of a folder is finished: by an interrupted run (earlier) and by this one (done), by the name
    of each file in the folder. notes: what there is to say of it. forget: whether what is in the journal need not be
    known any more, as of a folder of one model, of which all files are made again or none: 600 bytes a tensor."""

    def __init__(
        self,
        out: OutputFolder,
        asked: Mapping[str, Any],
        *,
        resumed: bool,
        hint: str = "leave out --resume",
        forget: bool = False,
    ) -> None:
        """Start a folder with the finished files of an interrupted run, where it is to be resumed. Raises UsageError
        where that run was asked for something else; hint: how to start over then."""
        self.out, self.asked, self._forget = out, asked, forget
        self.done: dict[str, Finished] = {}
        self._recorded = False
        self.earlier, self.notes = _begun(out, asked, resumed, hint)
        out.begin(list(self.earlier))

    @property
    def size(self) -> int:
        """Bytes of the files that an interrupted run has finished."""
        if not self.earlier:
            return 0
        there = destinations.sizes(self.out.temp)
        return sum(there.get(name, 0) for name in self.earlier)

    def restart(self, part: Part) -> None:
        """Declare that all files of a part are made again."""
        self.done = {name: f for name, f in self.done.items() if os.path.dirname(name) != part.name}
        self._recorded = False

    def take_over(self, files: Mapping[str, Finished]) -> None:
        """Count files of the interrupted run, which its journal has, as files of this one."""
        for name in files:
            self.out.finished(name)
        self.done |= files

    def record(self, files: Mapping[str, Finished]) -> None:
        """Record files that this run has finished. The journal is written anew only once: to do it after each of 200
        files of 34,000 tensors took 25 s."""
        for name in files:
            self.out.finished(name)
        self.done |= files
        if self._recorded:
            self.out.record(Journal({}, dict(files)).as_bytes(), more=True)
        else:
            self.out.record(Journal(self.asked, {**self.done, **self.earlier}).as_bytes())
        self._recorded = True
        if self._forget:
            self.done = {}


def _begun(
    out: OutputFolder, asked: Mapping[str, Any], resumed: bool, over: str
) -> tuple[dict[str, Finished], list[str]]:
    """What of an interrupted run can be reused, and the notes about it."""
    journal = read(out.found) if out.found is not None else None
    if journal is None:
        told = ["the journal of the interrupted run is damaged, so all is written again"]
        return {}, told if out.found is not None else []
    done = f"{len(journal.finished)} finished file{'' if len(journal.finished) == 1 else 's'}"
    if not resumed:
        return {}, [f"an interrupted run had left {done}, written again now; --resume would have kept them"]
    why = difference(journal.asked, asked)
    if why is not None:
        out.hold = True
        hint = f"repeat that request, or {over} to start over"
        raise UsageError(f"the interrupted run had another request: {why}", place=[out.path], hint=hint)
    return dict(journal.finished), [f"resumed after {done} of an interrupted run"]


def asked(source: Source, plan: Plan, options: Options) -> dict[str, Any]:
    """Everything that changes the bytes a run writes, as plain values."""
    assert plan.request is not None
    schemes: list[dict[str, Any]] = []
    recipe = plan.request.as_dict(schemes)
    found = {
        "tool": f"quantcli {__version__}",
        **options.settings,
        **recipe,
        "schemes": schemes,
        "shards": list(source.shards),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def read(text: bytes) -> Journal | None:
    """The journal in these bytes; None where they are not a valid one."""
    journal, schemes = None, dict[str, Any]()
    for line in io.BytesIO(text):
        found = _line(line, schemes)
        if found is None:
            break
        if journal is None:
            journal = found
        else:
            journal.finished.update(found.finished)
    return journal


def _line(text: bytes, schemes: dict[str, Any]) -> Journal | None:
    """A line of a journal; None where it is not a valid one. schemes: those seen by now; tensors of one scheme hold
    the same record of it, for else these are half of what a large model takes in memory."""
    try:
        found = json.loads(text)
        for values in (values for f in found["finished"].values() for values in f[2].values()):
            values["scheme"] = schemes.setdefault(json.dumps(values["scheme"]), values["scheme"])
        done = {str(n): Finished(int(f[0]), str(f[1]), dict(f[2]), int(f[3])) for n, f in found["finished"].items()}
        return Journal(dict(found["asked"]), done)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first setting that two requests do not share, in words; None when they are the same.

    >>> difference({"schemes": [{"bits": 8}]}, {"schemes": [{"bits": 4}]})
    'bits of scheme 1 was 8 and is 4'
    """
    old, new = dict(_leaves("", before)), dict(_leaves("", now))
    for name in [*old, *(n for n in new if n not in old)]:
        if old.get(name) != new.get(name):
            was, now_is = (printable(str(side.get(name, "not given")), 80) for side in (old, new))
            return f"{name} was {was} and is {now_is}"
    return None


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every plain value in nested lists and maps, with its name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{key} of {name}" if name else str(key), inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(f"{name.removesuffix('s')} {number + 1}" if number or name else name, inner)
    else:
        yield name, value


def file_digest(path: str, threads: int, runs: Sequence[tuple[int, int]] | None = None) -> str:
    """The digest of a file's bytes; runs: of these alone, one after another, each by its place and size. Of a file
    behind a URL what its server tells that it has: only the server knows when it changes, and reading all of it again
    would take as long as writing it."""
    with contextlib.closing(places.opened(path)) as file:
        if places.is_url(path):
            return file.stamp.replace(path, "")
        read = file.read_into if runs is None else _Runs(file, runs).read
        whole = Digested(read, file.size if runs is None else sum(size for _, size in runs), "xxh3")
        walk([once(whole.alone(COPY))], threads=threads)
        return whole.found() or ""


class _Runs:
    """Some runs of bytes of a file as if they followed each other."""

    def __init__(self, file: InputFile, runs: Sequence[tuple[int, int]]) -> None:
        self._file, self._runs = file, runs
        self._starts = [0, *accumulate(size for _, size in runs)]

    def read(self, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from `start`."""
        done = 0
        while done < len(buffer):
            number = bisect_right(self._starts, start + done) - 1
            inside = start + done - self._starts[number]
            place, size = self._runs[number]
            step = min(size - inside, len(buffer) - done)
            self._file.read_into(place + inside, buffer[done : done + step])
            done += step


# ---- the outcome of a tensor, as plain values ---------------------------------------------------------------------


def as_values(tensor: Decided, result: Result) -> dict[str, Any]:
    """What the journal records of a tensor."""
    m = result.metrics
    return {
        "reason": tensor.reason,
        "note": tensor.note,
        "scale_dtype": tensor.scale_dtype,
        "digest": result.digest,
        "scheme": result.scheme.as_dict() if result.scheme is not None else None,
        "metrics": [m.sse, m.power, m.numel, m.max_abs_error, m.clipped] if m is not None else None,
        "minmax_sse": result.minmax_sse,
        "output": astuple(result.output) if result.output is not None else None,
    }


@lru_cache(maxsize=4096)
def _scheme_of(text: str) -> Scheme:
    """A scheme that is recorded: the same one for all tensors that have it."""
    scheme = json.loads(text)
    if "codebook" in scheme:
        scheme = {**scheme, "codebook": tuple(scheme["codebook"])}
    return Scheme(**scheme)


def result_of(values: Mapping[str, Any]) -> Result:
    """The result of a tensor that is recorded."""
    scheme, metrics = values["scheme"], values["metrics"]
    return Result(
        Metrics(*metrics) if metrics is not None else None,
        values["digest"],
        _scheme_of(json.dumps(scheme)) if scheme is not None else None,
        values["minmax_sse"],
        Output(*values["output"]) if values["output"] is not None else None,
    )


def turned_out(tensor: Decided, values: Mapping[str, Any]) -> Decided:
    """The decision for a tensor, with what the run that wrote it had to change."""
    if tensor.scheme is None:
        return tensor
    if values["scheme"] is None:
        return Kept(info=tensor.info, reason=values["reason"], note=values["note"])
    if tensor.columns is not None and UNTOLD in str(values["note"]):
        tensor = without_statistics(tensor)
    return tensor if values["scale_dtype"] == tensor.scale_dtype else with_float32_scales(tensor)


def made(finished: Finished, tensors: Mapping[str, Decided], path: str) -> dict[str, Made] | None:
    """The outcome of every tensor of a finished file; None where the journal lacks one. path: of the source. Raises
    DataError where the source no longer holds one of them."""
    gone = [name for name in finished.made if name not in tensors]
    if gone:
        raise changed(path, gone)
    try:
        return {n: Made(turned_out(tensors[n], v), result_of(v)) for n, v in finished.made.items()}
    except (KeyError, TypeError, ValueError):
        return None


def is_intact(path: str, finished: Finished, threads: int, runs: Sequence[tuple[int, int]] | None = None) -> bool:
    """Whether a finished file still has the bytes that were written. runs: where they are, if not everywhere."""
    with contextlib.suppress(Exception):  # a file that cannot be read is made again
        return file_digest(path, threads, runs) == finished.digest
    return False


def check_same(path: str, file: OneFile, found: Mapping[str, Made], source: Source, options: Options) -> None:
    """Raise DataError when the source is no longer the one a finished file was made from."""
    results = {name: m.result for name, m in found.items()}
    wrong = _changed(source, found, options)
    if not wrong:
        with contextlib.closing(places.opened(path)) as written:
            same = written.size == file.size
            same = same and all(written.read(at, len(piece)) == piece for at, piece in file.between(results))
        if same:
            return
    raise changed(source.path, wrong)


def changed(path: str, names: Sequence[str]) -> DataError:
    """The error for a source that was changed after an interrupted run read it; names: of the changed tensors."""
    return DataError(
        "the file was changed since the run that was interrupted",
        place=[path, *(printable(name) for name in names[:1])],
        hint="leave out --resume to start over",
    )


def _changed(source: Source, made: Mapping[str, Made], options: Options) -> list[str]:
    """Names of the tensors whose bytes no longer have the digests that were recorded for a finished file."""
    infos = {info.name: info for info in source.infos()}
    gone = [name for name, m in made.items() if infos.get(name) != m.tensor.info]
    if gone:
        return gone
    found = digests(source, {name: (infos[name].nbytes, options.digest) for name in made}, threads=options.threads)
    return [name for name, m in made.items() if found[name] != m.result.digest]
