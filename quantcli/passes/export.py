"""The codes of a model as another tool loads them: moved, and quantized again only where that is asked for.

Everything is refused and every size is known before the first weight is read. Where parameters were rounded the cost
is measured on the bytes that were written, decoded as their reader decodes them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from quantcli.errors import DataError, UsageError, printable
from quantcli.layouts.held import Moved
from quantcli.layouts.native.model import Model
from quantcli.layouts.writer import named
from quantcli.models import view_of
from quantcli.passes import outputs
from quantcli.passes.completion import AT_ONCE, Completion
from quantcli.passes.outputs import OneFile, Outgoing
from quantcli.passes.producing import Producer, Taking, from_floats
from quantcli.passes.quantize import check_second
from quantcli.passes.requantize import decoded
from quantcli.passes.tiles import Progress
from quantcli.passes.write import Outcome, Work, write
from quantcli.planning.entry import quantized
from quantcli.scheme import scale_dtype_of
from quantcli.stores import Source, destinations, places
from quantcli.stores.compact import Tensors
from quantcli.stores.derived import Derived
from quantcli.tensors.decided import Decided, Kept
from quantcli.tensors.decisions import Decisions
from quantcli.tensors.fit import Misfit

if TYPE_CHECKING:
    from quantcli.metrics import Metrics
    from quantcli.moving_records import Movable, Moving
    from quantcli.scheme import Scheme
    from quantcli.tensors.info import TensorInfo

MOST_THREADS = 4
"""Moving codes is limited by memory and disk: more threads would only take slabs of their own."""


# ---- where it goes ----------------------------------------------------------------------------------------------


def check_standard_output(target: str, output: str | None) -> None:
    """Raise UsageError for a target of more than one file on standard output."""
    if output == "-" and named(target).two_files:
        raise UsageError(f"{target} may take two files", place=["stdout"], hint="name a file with -o")


def as_folder(source: Source, target: str, output: str | None) -> bool:
    """Whether the output is a folder: of a folder, and where a name without .safetensors is given."""
    if named(target).extension:
        return False
    if output is None:
        return source.folder is not None
    return not output.lower().endswith(".safetensors")


def check_output(source: Source, output: str, *, folder: bool, force: bool, read: Sequence[str] = ()) -> str:
    """The real path of the output. read: further files that the run reads. Raises UsageError or QuantcliError for the
    reason why it may not be written."""
    inputs = source.inputs()
    if folder:
        paths = [*(file.path for file in inputs), *read]
        return check_output_folder(source.folder or paths[0], output, paths, force=force)
    with ExitStack() as stack:
        others = [
            stack.enter_context(closing(places.opened(path, hold=False))) for path in read if places.is_file(path)
        ]
        return destinations.check_file(output, force=force, sources=[*inputs, *others])


def check_output_folder(source: str, output: str, paths: Sequence[str], *, force: bool) -> str:
    """The real path of a folder to write, in which none of these inputs lies. source: the input. Raises UsageError or
    QuantcliError."""
    real = destinations.check_folder(output, force=force, source=source)
    if any(places.real(path).startswith(os.path.join(real, "")) for path in paths):
        raise UsageError("the input is in this folder, which would be replaced", place=[output])
    return real


# ---- the pass ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Export:
    """A model on its way into a target. wanted: the schemes of tensors that are quantized again, None for floats."""

    model: Movable
    outgoing: Outgoing
    wanted: Mapping[str, Scheme | None]
    threads: int
    progress: Progress | None
    metrics: dict[str, Metrics | None] = field(default_factory=dict)

    @cached_property
    def floats(self) -> Derived:
        """The weights that are quantized again, decoded as they are read."""
        return decoded(self.model, self.wanted)

    def files(
        self,
        source: Source,
        files: list[OneFile],
        folder: str,
        *,
        force: bool,
        within: str | None = None,
        after: Completion = AT_ONCE,
        then: Callable[[Outcome], None] = lambda outcome: None,
    ) -> Outcome:
        """Write some files, and measure what was not moved as it was. after, then: as passes.write.write has them."""
        requantized = from_floats(self.floats, self.outgoing.by_name, "none")

        def produce(names: Sequence[str]) -> Iterator[Producer]:
            for name in names:
                if name in self.wanted:
                    yield from requantized([name])
                else:
                    yield Taking(self.outgoing.by_name[name], self.model[name].codes)

        work = Work(
            source=self.model.source.path,
            jobs=self.outgoing.jobs,
            nbytes=self.outgoing.nbytes,
            produce=produce,
            amend=partial(_unsuited, self.model.source.path),
            finished=source.check_unchanged,
        )
        return write(
            files,
            work,
            folder,
            force=force,
            threads=min(self.threads, MOST_THREADS),
            progress=self.progress,
            within=within,
            check=self._measure,
            after=after,
            then=then,
        )

    def _measure(self, outcome: Outcome, homes: Mapping[str, str]) -> None:
        """Errors of what was rounded or quantized again: of the bytes that were written where there is a reader of
        them."""
        model = self.outgoing
        rounded = outcome.rounded | {name for name in homes if not self._is_exact(name)}
        changed = [n for n in homes if n in self.wanted or (model.by_name[n].scheme is not None and n in rounded)]
        against = {name: self.model[name].view for name in changed}
        from quantcli.passes import readback

        found = readback.measure(changed, homes, against, model, threads=self.threads)
        same = {n for n, m in found.items() if m is not None and m.exact and n not in self.wanted}
        outcome.rounded = rounded - same
        again = Model(self.floats)
        left = [name for name in changed if name not in found and name not in rounded]
        floats = {n: (against[n], view_of(again[n])) for n in left if model.by_name[n].scheme is None}
        self.metrics.update(found)
        self.metrics.update({n: outcome.results[n].metrics for n in left if n not in floats})
        from quantcli.passes import compare  # of models that are moved alone, some milliseconds

        self.metrics.update(zip(floats, compare.measure(floats, threads=self.threads, progress=None)))

    def _is_exact(self, name: str) -> bool:
        """Whether the codes of a weight that is moved stand for just its numbers."""
        codes = self.model[name].codes
        return name in self.wanted or not isinstance(codes, Moved) or codes.exact


def _unsuited(path: str, tensor: Decided, found: Exception) -> Decided:
    """Raise DataError for a weight that cannot be quantized again as planned."""
    what = "its scales do not fit" if isinstance(found, Misfit) else "its weights are not finite"
    into = f" {scale_dtype_of(tensor.scale_dtype)}" if isinstance(found, Misfit) else ""
    hint = "dequantize it, and quantize what that gives with --scale-dtype float32 or --exclude"
    raise DataError(f"decoded, {what}{into}", place=[path, printable(tensor.info.name)], hint=hint)


def outgoing(model: Movable, wanted: Mapping[str, Scheme | None], target: str, *, container: bool = False) -> Outgoing:
    """The model that is written. Raises UsageError for codes that no other layout has."""
    floats = {info.name: info for info in decoded(model, wanted).infos()} if wanted else {}
    if wanted and not any(wanted.values()) and all(name in wanted for name, t in model.items() if t.scheme is not None):
        hint = "dequantize writes it in floating point"
        raise UsageError(f"{target} can store none of its weights quantized", hint=hint)
    export, infos = named(target), Tensors()

    def decided() -> Iterator[Decided]:
        for name, tensor in model.items():
            found = _decided(name, tensor, wanted, floats, target)
            infos.add(found.info.name, (found.info.dtype, found.info.shape), 0)
            yield found

    tensors = Decisions(infos, decided())
    return Outgoing(
        tensors=tensors,
        to=target,
        beside=model.source.beside,
        container=container,
        document="kept" if not wanted and export.keeps_document and export.documents(tensors) else "none",
        again=None if container else export.again(model.source),
    )


def _decided(
    name: str, tensor: Moving, wanted: Mapping[str, Scheme | None], floats: Mapping[str, TensorInfo], target: str
) -> Decided:
    """What a tensor becomes. floats: those that are quantized again. Raises UsageError for codes that no other layout
    has."""
    if name not in wanted:
        if tensor.obstacle:
            problem = f"{target} cannot store its codes ({tensor.scheme}): {tensor.obstacle}"
            raise UsageError(problem, place=[printable(name)])
        return tensor.decided
    scheme = wanted[name]
    return Kept(info=floats[name], reason="target") if scheme is None else quantized(floats[name], scheme, "target")


def to_file(export: Export, path: str, *, force: bool) -> tuple[int, set[str]]:
    """Write one file, and a second one where the target needs it: bytes of both, and which tensors no longer stand for
    the same numbers."""
    source = export.model.source
    folder, base = os.path.split(path)
    model = export.outgoing
    if source.folder is not None:  # the documents are those of the shards
        model = replace(model, document="none")
    files = outputs.files(model, outputs.whole(source, model, base), source.path)
    check_second(files, path, source, force=force)
    most = max(f.size for f in files)
    destinations.check_space(path, sum(f.size for f in files), source.path, largest=lambda: most, together=True)
    with destinations.cleared(path, force=force) as within:
        outcome = export.files(source, files, folder, force=force, within=within)
    return sum(f.size for f in files), outcome.rounded
