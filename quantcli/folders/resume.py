"""What an interrupted run on a checkpoint folder has finished, and whether another one may go on with it.

The journal says what was asked for (tool, recipe, digest, shards of the source) and, of every file that is finished,
how many tensors it holds and the digest of its bytes. A file is taken over when its bytes have that digest and the
source tensors still have the digests in its header.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from quantcli import __version__
from quantcli.errors import DataError, QuantcliError, printable
from quantcli.layouts.native import document as container
from quantcli.layouts.native.document import Result, StoredTensor
from quantcli.passes.quantize import COPY, Options, Written, source_bytes
from quantcli.planning.plan import Plan, TensorPlan, kept, with_float32_scales
from quantcli.stores.files import InputFile
from quantcli.stores.safetensors import SafetensorsFile
from quantcli.tensors import digest
from quantcli.workers import Crew, Task

if TYPE_CHECKING:
    from quantcli.stores import Source
    from quantcli.stores.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Finished:
    """A file that is finished: how many tensors it is made from, and the digest of its bytes."""

    tensors: int
    digest: str


@dataclass(frozen=True, slots=True)
class Journal:
    """What was asked for, and what of it is finished, by file."""

    asked: Mapping[str, Any]
    finished: dict[str, Finished]

    def as_bytes(self) -> bytes:
        """The text of the journal."""
        done = {name: [f.tensors, f.digest] for name, f in self.finished.items()}
        return json.dumps({"asked": self.asked, "finished": done}, indent=1).encode()


def asked(source: Checkpoint, plan: Plan, options: Options) -> dict[str, Any]:
    """All that changes the bytes of a run, as plain values."""
    assert plan.request is not None
    schemes: list[dict[str, Any]] = []
    recipe = plan.request.as_dict(schemes)
    found = {
        "tool": f"quantcli {__version__}",
        "digest": options.digest,
        "on_nonfinite": "keep" if options.keep_nonfinite else "refuse",
        **recipe,
        "schemes": schemes,
        "shards": list(source.shards),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def read(text: bytes) -> Journal | None:
    """The journal in these bytes; None when they are none."""
    try:
        found = json.loads(text)
        done = {str(name): Finished(int(f[0]), str(f[1])) for name, f in found["finished"].items()}
        return Journal(dict(found["asked"]), done)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first thing that was asked for otherwise, in words; None when nothing was.

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
    """Every plain value in lists and maps, with what it is called."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{key} of {name}" if name else str(key), inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(f"{name.removesuffix('s')} {number + 1}" if number or name else name, inner)
    else:
        yield name, value


def file_digest(path: str, threads: int) -> str:
    """The digest of a file's bytes."""
    file = InputFile(path)
    chunks = digest.Chunks(file.size)

    def add(start: int) -> None:
        chunks.add(start, memoryview(file.read(start, min(COPY, file.size - start))), file.read_into)

    try:
        Crew((partial(add, start) for start in range(0, file.size, COPY)), threads).run()
    finally:
        file.close()
    return chunks.hexdigest()


def taken_over(path: str, finished: Finished, source: Source, plan: Plan, options: Options) -> Written | None:
    """What there is to know of a finished file, as if it had just been written; None when it is not what it was.

    Raises DataError when the source has been changed since.
    """
    try:
        if file_digest(path, options.threads) != finished.digest:
            return None
        with contextlib.closing(SafetensorsFile(InputFile(path))) as file:
            metadata = {k: v for k, v in file.metadata.items() if k != container.KEY}
            document = container.parse(*file.documents[0])
            size = file.file.size
    except (QuantcliError, IndexError):
        return None
    stored = {s.info.name: s for s in document.tensors}
    same = metadata == {"format": "pt", **source.metadata} and document.source_bytes == source_bytes(source)
    now, before = ({i.name: i for i in infos} for infos in (source.infos(), (s.info for s in document.tensors)))
    wrong = [name for name in {**now, **before} if now.get(name) != before.get(name)]
    wrong = wrong or _changed(source, document.tensors, options)
    if wrong or not same:
        raise DataError(
            "the file was changed since the run that was interrupted",
            place=[source.path, *(printable(name) for name in wrong[:1])],
            hint="leave out --resume to start over",
        )
    changes = {t.info.name: _turned_out(t, stored[t.info.name]) for t in plan.tensors}
    if any(t.outputs != stored[name].outputs for name, t in changes.items()):
        return None
    results = {n: Result(s.metrics, s.digest, s.scheme, s.minmax_sse) for n, s in stored.items()}
    return Written(plan.amended(changes), results, size)


def _turned_out(tensor: TensorPlan, stored: StoredTensor) -> TensorPlan:
    """The plan of a tensor as the run that was interrupted had to change it."""
    if stored.scheme is None:
        return kept(tensor.info, stored.reason, stored.note)
    return tensor if stored.scale_dtype == tensor.scale_dtype else with_float32_scales(tensor)


def _changed(source: Source, stored: Sequence[StoredTensor], options: Options) -> list[str]:
    """Names of the tensors whose bytes are not those of the digests in a file."""
    chunks: dict[str, digest.Chunks] = {}
    found: dict[str, str] = {}

    def tasks() -> Iterator[Task]:
        for tensor in stored:
            info = tensor.info
            if options.digest == "sha256":
                yield partial(whole, info.name, info.nbytes)
                continue
            chunks[info.name] = digest.Chunks(info.nbytes)
            yield from (partial(scan, info.name, at, info.nbytes) for at in range(0, info.nbytes, COPY))

    def scan(name: str, start: int, nbytes: int) -> None:
        block = memoryview(bytearray(min(COPY, nbytes - start)))
        source.read(name, start, block)
        chunks[name].add(start, block, lambda at, rest: source.read(name, at, rest))

    def whole(name: str, nbytes: int) -> None:
        found[name] = digest.sha256(nbytes, lambda at, block: source.read(name, at, block))

    Crew(tasks(), options.threads).run()
    found |= {name: c.hexdigest() for name, c in chunks.items()}
    return [t.info.name for t in stored if found[t.info.name] != t.digest]
