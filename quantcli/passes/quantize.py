"""Quantize the floats of a source into one file, in any layout, in one pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, QuantcliError, printable
from quantcli.layouts.native.document import Result
from quantcli.layouts.native.model import Model
from quantcli.models import view_of
from quantcli.passes import outputs
from quantcli.passes.completion import AT_ONCE, Completion
from quantcli.passes.outputs import OneFile, Outgoing
from quantcli.passes.producing import from_floats, trials_of
from quantcli.passes.tiles import COPY, Progress
from quantcli.passes.write import Outcome, Work
from quantcli.passes.write import write as write_files
from quantcli.planning.entry import with_float32_scales, without_statistics
from quantcli.planning.plan import Plan, check
from quantcli.scheme import AUTO
from quantcli.stores import Source, destinations, is_stream, places
from quantcli.tensors import api
from quantcli.tensors.decided import Decided, Kept, Quantized
from quantcli.tensors.fit import NotFinite
from quantcli.tensors.second_order import Degenerate

if TYPE_CHECKING:
    from quantcli.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run: none of it changes the output but `digest`."""

    threads: int
    digest: str = "xxh3"
    keep_nonfinite: bool = False
    force: bool = False
    progress: Progress | None = None

    @property
    def settings(self) -> dict[str, str]:
        """What of it changes the bytes of a file, as recipes say it."""
        return {"digest": self.digest, "on_nonfinite": "keep" if self.keep_nonfinite else "refuse"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """An output that was written: the plan as it turned out, the model it leads to, what is known of each tensor in
    turn, and bytes of all its weights; for a folder why no loader of checkpoints takes it, if none does, and what else
    whoever asked for it must know."""

    plan: Plan
    model: Outgoing
    results: Sequence[Result | None]
    size: int
    obstacle: str = ""
    notes: tuple[str, ...] = ()


def write(source: Source, plan: Plan, model: Outgoing, path: str, options: Options) -> Written:
    """Quantize a source into a file at `path`, which appears only when it is complete. model: what the plan leads to.

    Raises QuantcliError for what the weights or the disk forbid.
    """
    folder, base = os.path.split(path)
    source.read_ahead()
    with ExitStack() as stack:
        own = model.to is None and not places.is_url(path)
        within = None if own else stack.enter_context(destinations.cleared(path, force=options.force))
        while True:
            held = model.part(0, len(model.tensors))
            files = outputs.files(held, outputs.whole(source, held, base), source.path)
            check_second(files, path, source, force=options.force)
            size = sum(f.size for f in files)
            most = max(f.size for f in files)
            destinations.check_space(path, size, source.path, largest=lambda: most, together=True)  # noqa: B023
            outcome = write_part(source, held, files, folder, options, within=within)
            if not outcome.amendments:
                model.forget_conversion()
                notes = (f"{len(files)} files, the first {files[0].name}",) if files[0].name != base else ()
                results = outcome.results.in_order(t.info.name for t in held.tensors)
                return Written(plan=plan, model=model, results=results, size=size, notes=notes)
            plan = plan.amended(outcome.amendments)
            check(plan)
            model = outputs.planned(plan, source, digest=options.digest)


def check_second(files: list[OneFile], path: str, source: Source, *, force: bool) -> None:
    """Raise UsageError where a file of an output beside the one that was named is in the way."""
    folder, base = os.path.split(path)
    for file in (file for file in files if file.name != base):
        destinations.check_file(os.path.join(folder, file.name), force=force, sources=list(source.files()))


def write_part(
    source: Source,
    model: Outgoing,
    files: list[OneFile],
    folder: str,
    options: Options,
    *,
    within: str | None = None,
    whole: Source | None = None,
    after: Completion = AT_ONCE,
    then: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """Quantize the tensors of some files into a folder. whole: the source of all tensors, where this one is a part.
    after, then: as passes.write.write has them.

    The results are those of the stored codes; of parameters that were rounded on their way into the layout they are
    measured on the files, before these have their names.
    """
    work = Work(
        source=source.path,
        jobs=model.jobs,
        nbytes=model.nbytes,
        produce=from_floats(source, model.by_name, options.digest, whole),
        amend=_amend_for(source, options),
        stopped=source.interrupt,
        finished=source.check_unchanged,
        inputs=None if is_stream(source) else partial(_inputs, model.by_name),
    )

    def measured(outcome: Outcome, homes: Mapping[str, str]) -> None:
        rounded = [n for n in homes if n in outcome.rounded and model.by_name[n].scheme is not None]
        if rounded:
            from quantcli.passes import readback

            originals = Model(source)
            against = {name: view_of(originals[name]) for name in rounded}
            found = readback.measure(rounded, homes, against, model, threads=options.threads)
            outcome.results.update({n: _with_errors(outcome.results[n], m) for n, m in found.items()})

    return write_files(
        files,
        work,
        folder,
        force=options.force,
        threads=options.threads,
        progress=options.progress,
        within=within,
        check=measured,
        after=after,
        then=then,
    )


def _with_errors(result: Result, metrics: Metrics | None) -> Result:
    """A result with the errors of rounded parameters; what is clipped stays so."""
    if metrics is None or result.metrics is None:
        return result
    return replace(result, metrics=replace(metrics, clipped=result.metrics.clipped))


# ---- what turns out otherwise than planned ----------------------------------------------------------------------


def _inputs(tensors: Mapping[str, Decided], name: str) -> str:
    """What tells the inputs of a tensor's layer from others, where their moments are factored."""
    columns = tensors[name].columns
    return columns.digest if columns is not None and columns.matrix is not None else ""


def _amend_for(source: Source, options: Options) -> Callable[[Decided, Exception], Decided]:
    """What a tensor becomes whose scales do not fit, or whose weights are not finite."""

    def amend(tensor: Decided, found: Exception) -> Decided:
        assert tensor.scheme is not None
        if isinstance(found, Degenerate):
            return without_statistics(tensor)
        nonfinite = isinstance(found, NotFinite)
        if is_stream(source):
            raise _from_a_stream(source, tensor, options, nonfinite=nonfinite)
        if nonfinite:
            return _nonfinite(source, tensor, options)
        return with_wider_scales(tensor, source)

    return amend


def with_wider_scales(tensor: Quantized, source: Source) -> Quantized:
    """The tensor with float32 scales, where those that were planned do not fit. Raises DataError where their dtype was
    asked for, and where they are float32 already."""
    if tensor.scheme.scale_dtype != AUTO or tensor.scale_dtype == "F32":
        raise api.scale_misfit(tensor.scheme).within(source.path, printable(tensor.info.name))
    return with_float32_scales(tensor)


def _nonfinite(source: Source, tensor: Quantized, options: Options) -> Kept:
    if options.keep_nonfinite:
        return Kept(info=tensor.info, reason="nonfinite")
    raise DataError(
        count_nonfinite(source, tensor).describe(),
        place=[source.path, printable(tensor.info.name)],
        hint="use --on-nonfinite keep to leave such tensors in floating point",
    )


def _from_a_stream(source: Source, tensor: Quantized, options: Options, *, nonfinite: bool) -> QuantcliError:
    """The error for what takes a second look at a whole file."""
    place = [source.path, printable(tensor.info.name)]
    if not nonfinite:
        hint = "use --scale-dtype float32, or name a file"
        return DataError(f"{tensor.scale_dtype} does not hold its scales", place=place, hint=hint)
    keep = options.keep_nonfinite
    hint = "name a file: from a pipe the plan cannot be changed any more" if keep else "name a file to see where"
    return DataError("it holds NaN or infinity", place=place, hint=hint)


def count_nonfinite(source: Source, tensor: Decided) -> api.NonFinite:
    """What is not finite in a whole tensor."""
    size = DTYPES[tensor.info.dtype].bits // 8
    found = api.NonFinite(0, 0, False)
    buffer = np.empty(COPY, np.uint8)
    for start in range(0, tensor.info.nbytes, COPY):
        block = buffer[: min(COPY, tensor.info.nbytes - start)]
        source.read(tensor.info.name, start, block.data)
        found += api.nonfinite(block, tensor.info.dtype, start // size)
    return found


# ---- pipes ------------------------------------------------------------------------------------------------------


def held_whole(source: Source, plan: Plan, digest_kind: str) -> list[Decided]:
    """The tensors of a stream that must be in memory whole, because they are looked at more than once."""
    if not is_stream(source):
        return []
    return [t for t in plan.tensors if digest_kind == "sha256" or (t.scheme is not None and trials_of(t).spans)]
