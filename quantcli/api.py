"""Calls on whole models, for Python: what the commands do, without a terminal. They give reports."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from inspect import signature
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from quantcli.asking import Scheme, given, with_keywords
from quantcli.errors import UsageError
from quantcli.floats import Reading
from quantcli.folders import components, job, prepare, shares
from quantcli.matching import Pair, paired, under_one_name
from quantcli.models import Model, open_model
from quantcli.passes import compare as comparing
from quantcli.passes.tiles import default_threads
from quantcli.planning import recipe as recipes
from quantcli.planning.order import Order, made, named_by, with_usual
from quantcli.reports import build, compared
from quantcli.reports.joined import Reported, report_of
from quantcli.stores import destinations, need_file, signals
from quantcli.stores.destinations import writable
from quantcli.stores.pipelines import others
from quantcli.stores.places import local, pinned

if TYPE_CHECKING:
    from quantcli.passes.batches import Crew
    from quantcli.passes.tiles import Progress
    from quantcli.reports.run import RunReport

    Path = str | PathLike[str]

P = ParamSpec("P")
R = TypeVar("R")


def compare(
    before: Path,
    after: Path,
    *,
    as_float: bool = False,
    variant: str | None = None,
    threads: int = 0,
    progress: Progress | None = None,
    crew: Crew | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> RunReport:
    """What `after` costs against `before`, tensor by tensor: errors of the decoded weights, bytes of the files.

    Both are files, checkpoint folders or pipelines: float, quantcli's own, or another tool's that quantcli decodes.
    as_float: whether the integers of `before`, a .npy or .npz file, are read as a signal, as by `quantize_file`.
    variant: which weights of folders to take, where they have several. threads: 0 for one on each processor. progress:
    called with the bytes done so far; crew: the workers that measure, None for threads of this process; say: called
    with how tensors found each other where their names differ, and with what was left out of a file or could not be
    measured.

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
    began, paths = time.perf_counter(), (pinned(fspath(before)), pinned(fspath(after)))
    if paths == ("-", "-"):
        raise UsageError("both models are standard input", place=["-"], hint="name a file for one of them")
    for line in others(paths[1]):
        say(line)
    found = {}
    for pair in paired(*paths, variant):
        member = pair.after or pair.before
        assert member is not None
        with contextlib.ExitStack() as stack:
            sides = [
                stack.enter_context(open_model(m.path, as_float=as_float and m is pair.before, variant=m.variant))
                for m in (pair.before, pair.after)
                if m is not None
            ]
            one = _compared(
                sides,
                pair,
                paths[0],
                as_float=as_float,
                threads=threads or default_threads(),
                progress=progress,
                crew=crew,
                say=say,
            )
            found[pair.name] = build.as_component(one, member.component)
    return report_of(found, command="compare", source=paths[0], output=paths[1], seconds=time.perf_counter() - began)


def _compared(
    models: Sequence[Model],
    pair: Pair,
    source: str,
    *,
    as_float: bool,
    threads: int,
    progress: Progress | None,
    crew: Crew | None,
    say: Callable[[str], None],
) -> Reported:
    """What is reported of one model against another, or of one that the other side does not have. models: those there
    are of the pair."""
    for model in models:
        need_file(model.source, "comparing")
        model.stored.check_headers()
        for line in model.source.warnings:
            say(f"{model.path}: {line}")
    if len(models) < 2:
        [alone] = models
        new, vanished = ([], list(alone)) if pair.after is None else (list(alone), [])
        sizes = (alone.file_bytes, 0) if pair.after is None else (0, alone.file_bytes)
        return compared.of_pairs({}, (), (new, vanished), source=source, bytes_in=sizes[0], bytes_out=sizes[1])
    a, b = models
    ours, theirs, note = under_one_name(a, b)
    if note:
        say(note)
    if signals.may_hold(a.source) and any(info.dtype in signals.DIVISORS for info in a.source.infos()):
        say(f"{a.path}: its integers are not measured: {signals.OPTION} reads them as a signal")
    pairs = comparing.pairs_of(ours, theirs, b.path)
    assert pair.before is not None and pair.after is not None
    opening = comparing.opening_of(pair.before, pair.after, as_float=as_float)
    sources = (a.source, b.source)
    metrics = comparing.measure(pairs, sources, threads=threads, progress=progress, crew=crew, opening=opening)
    others = pairs.new, pairs.vanished
    return compared.of_pairs(pairs, metrics, others, source=source, bytes_in=a.file_bytes, bytes_out=b.file_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What may be asked of one model: the keywords of `quantize_file` and `plan`, and in `scheme` those of `Scheme`."""

    recipe: Path | None = None
    to: str | None = None
    container: bool = False
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    keep_defaults: bool = True
    keep_embeddings: bool | None = None
    importance: Path | None = None
    statistics: Path | None = None
    allow_unweighted: bool = False
    memory: int | None = None
    max_shard_size: int | None = None
    digest: str | None = None
    on_nonfinite: str | None = None
    source_layout: str = "auto"
    requantize: bool = False
    as_float: bool = False
    variant: str | None = None
    lora: Sequence[Path] = ()
    adapter: bool = False
    scheme: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> Asked:
        """What these keywords ask. Raises TypeError for one there is not."""
        own = {f.name for f in fields(cls)} - {"scheme"}
        scheme = {name: value for name, value in keywords.items() if name not in own}
        return cls(**{name: value for name, value in keywords.items() if name in own}, scheme=scheme)

    def order(self, dst: str | None) -> Order:
        """The order it makes; dst: the output, whose name may tell the target. Raises UsageError for what contradicts
        itself, TypeError for a keyword that makes no scheme."""
        inferred, recipe = named_by(dst), _path(self.recipe)
        asked = dict(self.scheme) if recipe is not None else with_usual(self.scheme, self.to or inferred)
        given(None, asked)  # refuses keywords that are not those of a scheme
        return made(
            recipes.load(recipe, asked),
            include=self.include,
            exclude=self.exclude,
            keep_defaults=self.keep_defaults,
            keep_embeddings=self.keep_embeddings,
            to=self.to,
            inferred=inferred,
            container=self.container,
            max_shard_size=self.max_shard_size,
            importance=_path(self.importance),
            statistics=_path(self.statistics),
            allow_unweighted=self.allow_unweighted,
            memory=self.memory,
            digest=self.digest,
            on_nonfinite=self.on_nonfinite,
        )

    @property
    def reading(self) -> Reading:
        """How the source is read."""
        return Reading(
            layout=self.source_layout,
            requantize=self.requantize,
            variant=self.variant,
            loras=tuple(fspath(path) for path in self.lora),
            adapter=self.adapter,
            as_float=self.as_float,
        )


def _path(path: Path | None) -> str | None:
    return None if path is None else local(fspath(path))


def _takes_asked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, its signature with all that may be asked for **asked."""
    own = [p for p in signature(Asked).parameters.values() if p.name != "scheme"]
    return with_keywords(function, [*own, *signature(Scheme).parameters.values()])


@_takes_asked
def quantize_file(
    src: Path,
    dst: Path | None = None,
    *,
    force: bool = False,
    private: bool = False,
    resume: bool = False,
    part: tuple[int, int] | str | None = None,
    threads: int = 0,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
    **asked: Any,
) -> RunReport:
    """Quantize a file or checkpoint folder as `quantcli quantize` does; the report on it.

    dst: the file or folder to write; without it the name beside `src` that tells the scheme, which the report has.
    force: whether an existing output is replaced; private, resume: as the options. part: which of so many parts to do,
    as in (3, 16), or as the option names it, such as `auto`; `merge` joins them. threads: 0 for one on each processor.
    progress: called with the bytes done so far; say: called with what the command says on standard error.

    Asked may be, by keyword, recipe: a file or a preset; to: the target, such as `gguf`, which the extension of `dst`
    may tell; container, include, exclude, keep_defaults, keep_embeddings, importance, statistics, allow_unweighted,
    memory and max_shard_size (bytes), digest, on_nonfinite, source_layout, requantize, variant, lora (paths), adapter,
    as_float: as the options of the command, None for what it does without them; and all that makes a `Scheme`.

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
    share = None
    if part is not None:
        named = part if isinstance(part, str) else "/".join(map(str, part))
        share = shares.asked(named, os.environ, fspath(src), None if dst is None else fspath(dst), resume=resume)
    how = prepare.Writing(force=force, private=private, resume=resume, share=share)
    with _ready(Asked.of(asked), src, dst, how, say=say) as ready:
        return _told(ready, lambda: ready.run(threads=threads or default_threads(), progress=progress), say)


@_takes_asked
def merge(
    src: Path,
    dst: Path,
    *,
    force: bool = False,
    threads: int = 0,
    say: Callable[[str], None] = lambda text: None,
    **asked: Any,
) -> RunReport:
    """Make `dst` of its parts, which `quantize_file` or `quantcli quantize --part` has made; the report on all of it.

    src, and the keywords: as the parts had them. force: whether an existing output is replaced; threads, say: as of
    `quantize_file`. Weights are not read again; the parts are removed.

    Raises DataError where parts are missing, damaged or made from another source, UsageError where one was asked for
    something else, and what `quantize_file` raises.

    >>> import os, tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     src, dst = (os.path.join(folder, name) for name in ("a.npz", "a.safetensors"))
    ...     np.savez(src, a=np.ones((32, 128), np.float32), b=np.ones((32, 128), np.float32))
    ...     for number in (1, 2):
    ...         _ = quantize_file(src, dst, part=(number, 2), bits=8)
    ...     merge(src, dst, bits=8).summary.tensors
    2
    """
    destinations.check_parts(fspath(dst))
    with _ready(Asked.of(asked), src, dst, prepare.Writing(force=force), say=say) as ready:
        return _told(ready, lambda: ready.merge(threads=threads or default_threads()), say)


def _told(ready: job.Job, run: Callable[[], job.Outcome], say: Callable[[str], None]) -> RunReport:
    """The report on a run that is carried out. say: called with what there is to say of it before, and after."""
    for line in ready.notes:
        say(line)
    done = run()
    for line in done.notes:
        say(line)
    return done.report


@_takes_asked
def plan(src: Path, *, say: Callable[[str], None] = lambda text: None, **asked: Any) -> RunReport:
    """What `quantize_file` would do with every tensor, and the exact bytes of its output; no weight is read.

    The keywords are those of `quantize_file`, and raise what they do there.

    >>> import os, tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(os.path.join(folder, "a.npy"), np.zeros((32, 128), np.float32))
    ...     plan(os.path.join(folder, "a.npy"), bits=4).tensors[0].bytes_out
    2128
    """
    with _ready(Asked.of(asked), src, None, prepare.Writing(dry_run=True), say=say) as ready:
        return ready.planned()


@contextlib.contextmanager
def _ready(
    asked: Asked,
    src: Path,
    dst: Path | None,
    how: prepare.Writing,
    *,
    say: Callable[[str], None],
) -> Iterator[job.Job]:
    """The run that is asked for, ready to begin. how: without the files that are read beside the source."""
    path, named = pinned(fspath(src)), _path(asked.recipe)
    name = None if dst is None else writable(fspath(dst))
    order = asked.order(name)
    with components.opened(path, order, asked.reading, output=name, say=say) as found:
        chosen, requests = components.requested(found, say)
        label = job.label(next(iter(requests.values())), named)
        target, folder = prepare.place(chosen, order, name, label)
        read = [named] if named is not None else []
        how = replace(how, read=read)
        yield prepare.ready(chosen, requests, order, target, how, shown=target, folder=folder)
