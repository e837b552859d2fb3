"""Calls on whole models, for Python: what the commands do, without a terminal. They give reports."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from quantcli.asking import given
from quantcli.errors import UsageError
from quantcli.experts import arranged
from quantcli.floats import Reading, float_source
from quantcli.folders import job, pipeline
from quantcli.matching import under_one_name
from quantcli.models import open_model
from quantcli.passes import compare as comparing
from quantcli.passes.tiles import default_threads
from quantcli.planning import recipe as recipes
from quantcli.planning.order import Order, named_by, order, target_of, with_usual
from quantcli.reports import build
from quantcli.stores import need_file, pipelines, signals

if TYPE_CHECKING:
    from quantcli.passes.tiles import Progress
    from quantcli.reports.run import RunReport

    Path = str | PathLike[str]


def compare(
    before: Path,
    after: Path,
    *,
    as_float: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> RunReport:
    """What `after` costs against `before`, tensor by tensor: errors of the decoded weights, bytes of the files.

    Both are files or checkpoint folders: float, quantcli's own, or another tool's that quantcli decodes. as_float:
    whether the integers of `before`, a .npy or .npz file, are read as a signal, as by `quantize_file`. threads: 0 for
    one on each processor. progress: called with the bytes done so far; say: called with how tensors found each other
    where their names differ, and with what was left out of a file or could not be measured.

    Raises QuantcliError for what cannot be read, DataError where shapes differ or no tensor is in both.

    >>> import os, tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a, b = (os.path.join(folder, name) for name in ("a.npz", "b.npz"))
    ...     np.savez(a, weight=np.array([[1.0, 2.0]]))
    ...     np.savez(b, weight=np.array([[1.0, 2.5]]))
    ...     compare(a, b).tensors[0].mse
    0.125
    """
    began, paths = time.perf_counter(), (fspath(before), fspath(after))
    if paths == ("-", "-"):
        raise UsageError("both models are standard input", place=["-"], hint="name a file for one of them")
    with open_model(paths[0], as_float=as_float) as a, open_model(paths[1]) as b:
        for model in (a, b):
            need_file(model.source, "comparing")
            model.stored.check_headers()
            for line in model.source.warnings:
                say(f"{model.path}: {line}")
        ours, theirs, note = under_one_name(a, b)
        if note:
            say(note)
        if signals.may_hold(a.source) and any(info.dtype in signals.DIVISORS for info in a.source.infos()):
            say(f"{paths[0]}: its integers are not measured: {signals.OPTION} reads them as a signal")
        pairs, new, vanished = comparing.pairs_of(ours, theirs, paths[1])
        found = comparing.measure(pairs, threads=threads or default_threads(), progress=progress)
        return build.of_pairs(
            pairs,
            found,
            (new, vanished),
            source=paths[0],
            output=paths[1],
            bytes_in=a.file_bytes,
            bytes_out=b.file_bytes,
            seconds=time.perf_counter() - began,
        )


def quantize_file(
    src: Path,
    dst: Path | None = None,
    *,
    recipe: Path | None = None,
    to: str | None = None,
    container: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep_defaults: bool = True,
    keep_embeddings: bool | None = None,
    importance: Path | None = None,
    max_shard_size: int | None = None,
    digest: str | None = None,
    on_nonfinite: str | None = None,
    source_layout: str = "auto",
    requantize: bool = False,
    as_float: bool = False,
    variant: str | None = None,
    lora: Sequence[Path] = (),
    adapter: bool = False,
    force: bool = False,
    resume: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
    **scheme: Any,
) -> RunReport:
    """Quantize a file or checkpoint folder as `quantcli quantize` does; the report on it.

    dst: the file or folder to write; without it the name beside `src` that tells the scheme, which the report has.
    recipe: a file or a preset. to: the target, such as `gguf`, which the extension of `dst` may tell; container,
    include, exclude, keep_defaults, keep_embeddings, importance, max_shard_size (bytes), digest, on_nonfinite,
    source_layout, requantize, variant, lora (paths), adapter, as_float, resume: as the options of the command, None for
    what it does without them. force: whether an existing output is replaced. threads: 0 for one on each processor.
    progress: called with the bytes done so far; say: called with what the command says on standard error. Further
    keywords are those of `Scheme`.

    Raises UsageError for what contradicts itself or is not supported, DataError for what the weights forbid,
    QuantcliError for what cannot be read or written, and TypeError for a keyword there is not.

    >>> import os, tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     src, dst = (os.path.join(folder, name) for name in ("a.npy", "a.safetensors"))
    ...     np.save(src, np.linspace(-1, 1, 4096, dtype=np.float32).reshape(32, 128))
    ...     report = quantize_file(src, dst, bits=8)
    ...     report.tensors[0].scheme, os.path.exists(dst)
    ('w8g128', True)
    """
    asked = _order(
        recipe,
        scheme,
        dst,
        to=to,
        container=container,
        include=include,
        exclude=exclude,
        keep_defaults=keep_defaults,
        keep_embeddings=keep_embeddings,
        importance=fspath(importance) if importance is not None else None,
        max_shard_size=max_shard_size,
        digest=digest,
        on_nonfinite=on_nonfinite,
    )
    reading = _reading(source_layout, requantize, variant, lora, adapter, as_float)
    with _ready(asked, src, dst, recipe, reading=reading, force=force, resume=resume, say=say) as ready:
        for line in ready.notes:
            say(line)
        report, written = ready.run(threads=threads or default_threads(), progress=progress)
        for line in written.notes:
            say(line)
        return report


def plan(
    src: Path,
    *,
    recipe: Path | None = None,
    to: str | None = None,
    container: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep_defaults: bool = True,
    keep_embeddings: bool | None = None,
    max_shard_size: int | None = None,
    source_layout: str = "auto",
    requantize: bool = False,
    as_float: bool = False,
    variant: str | None = None,
    lora: Sequence[Path] = (),
    adapter: bool = False,
    say: Callable[[str], None] = lambda text: None,
    **scheme: Any,
) -> RunReport:
    """What `quantize_file` would do with every tensor, and the exact bytes of its output; no weight is read.

    The keywords are those of `quantize_file`, and raise what they do there.

    >>> import os, tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(os.path.join(folder, "a.npy"), np.zeros((32, 128), np.float32))
    ...     plan(os.path.join(folder, "a.npy"), bits=4).tensors[0].bytes_out
    2128
    """
    asked = _order(
        recipe,
        scheme,
        to=to,
        container=container,
        include=include,
        exclude=exclude,
        keep_defaults=keep_defaults,
        keep_embeddings=keep_embeddings,
        max_shard_size=max_shard_size,
    )
    reading = _reading(source_layout, requantize, variant, lora, adapter, as_float)
    with _ready(asked, src, None, recipe, reading=reading, dry_run=True, say=say) as ready:
        return ready.planned()


def _reading(
    layout: str, requantize: bool, variant: str | None, lora: Sequence[Path], adapter: bool, as_float: bool
) -> Reading:
    return Reading(
        layout=layout,
        requantize=requantize,
        variant=variant,
        loras=tuple(fspath(path) for path in lora),
        adapter=adapter,
        as_float=as_float,
    )


def _order(recipe: Path | None, scheme: dict[str, Any], dst: Path | None = None, **asked: Any) -> Order:
    """The order that keywords make; dst: the output, whose name may tell the target. Raises UsageError for those
    that make no scheme."""
    inferred = named_by(None if dst is None else fspath(dst))
    fields = scheme if recipe is not None else with_usual(scheme, asked["to"] or inferred)
    given(None, fields)  # refuses keywords that are not those of a scheme
    return order(recipes.load(None if recipe is None else fspath(recipe), fields), inferred=inferred, **asked)


@contextlib.contextmanager
def _ready(
    asked: Order,
    src: Path,
    dst: Path | None,
    recipe: Path | None,
    *,
    reading: Reading,
    force: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None],
) -> Iterator[job.Job | pipeline.PipelineJob]:
    """The run that is asked for, ready to begin."""
    path = fspath(src)
    name = None if dst is None else fspath(dst)
    named = fspath(recipe) if recipe is not None else None
    if pipelines.folder_of(path):
        with pipeline.prepared(
            path,
            asked,
            name,
            recipe_name=named,
            reading=reading,
            force=force,
            resume=resume,
            dry_run=dry_run,
            say=say,
        ) as ready:
            yield ready
        return
    with float_source(path, reading, say=say) as source:
        to, why = target_of(source, asked, folder=job.as_folder(source, name or "", None))
        if why:
            say(why)
        source = arranged(source, to, container=asked.container)
        if to is not None:
            job.check_target(source, to, name, container=asked.container)
        request = job.request(source, asked, to, warn=say)
        target, folder = job.place(source, path, asked, request, name, named)
        yield job.prepare(
            source,
            path,
            asked,
            request,
            target,
            shown=target,
            folder=folder,
            force=force,
            resume=resume,
            dry_run=dry_run,
            read=[named] if named is not None else [],
        )
