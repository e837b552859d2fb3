"""`quantize --to`: a native file in a hidden folder beside the output, then exported: there is one way of doing it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quantcli.cli import options
from quantcli.errors import QuantcliError, UsageError

if TYPE_CHECKING:
    from quantcli.folders.sidefiles import SideFiles
    from quantcli.layouts.native.document import Result
    from quantcli.layouts.writing import Conversion
    from quantcli.passes.export import OneFile, Written
    from quantcli.passes.quantize import Options
    from quantcli.planning.plan import Plan, Request
    from quantcli.reports.records import RunReport
    from quantcli.stores import Source
    from quantcli.stores.workspace import Workspace

Names = tuple[str, str, str]
"""Source and output as they are shown, and the output's real path."""


def target(source: Source, name: str, output: str | None, asked: str | None, *, container: bool) -> Target:
    """Where to export. output: the path to write to; asked: as it was given; container: whether as a container of
    tensors.

    Raises UsageError for a pipe, whose weights could not be compared with what was written.
    """
    from quantcli.passes import export as exporting
    from quantcli.stores import need_file

    need_file(source, "--to")
    exporting.check_standard_output(name, asked)
    return Target(name, exporting.as_folder(source, name, output), container)


@dataclass(slots=True)
class Target:
    """A target by name, whether the output is a folder, whether a container of tensors is asked for, and what a plan
    becomes there, once one is taken: notes are what its loader will and will not do."""

    name: str
    folder: bool
    container: bool
    notes: Sequence[str] = ()
    conversion: Conversion | None = None

    def suited(self, request: Request) -> Request:
        """A request with scales as the target stores them, so that the codes are made for those."""
        from quantcli.layouts.writing import named

        export = named(self.name)
        rules = tuple(replace(r, scheme=export.suited(r.scheme) if r.scheme else None) for r in request.rules)
        return replace(request, scheme=export.suited(request.scheme), rules=rules, to=self.name)

    def beside(self, src: str, scheme: str) -> str:
        """The name beside SRC that tells the scheme and the target."""
        from quantcli.cli.export import beside

        return beside(src, scheme, self.name)

    def destination(self, source: Source, output: str, force: bool) -> str:
        """The real path of the output, or the reason why it may not be written."""
        from quantcli.passes import export as exporting

        return exporting.check_output(source, self.name, output, folder=self.folder, force=force)

    def take(self, source: Source, planned: Plan) -> None:
        """A plan that the target can store as a whole. Raises UsageError where it cannot."""
        from quantcli.passes import export as exporting

        self._refuse_graph(source)
        tensors = exporting.as_stored(planned.tensors)
        self.conversion = exporting.convert(tensors, self.name, exporting.beside(source), container=self.container)
        self.notes = exporting.notes(self.conversion, config=exporting.has_config(source, folder=self.folder))

    def _refuse_graph(self, source: Source) -> None:
        """Raise UsageError for an ONNX model that was to stay one."""
        from quantcli.stores.onnx import OnnxFile

        if self.name == "onnx" and isinstance(source, OnnxFile) and not self.container:
            hint = "leave out --to for its weights in a .safetensors file; --container writes MatMulNBits nodes alone"
            raise UsageError(
                "quantizing the graph of an ONNX model is not supported yet", place=["--to onnx"], hint=hint
            )

    def say_notes(self) -> None:
        """Say them."""
        for line in self.notes:
            options.say(line)

    def with_notes(self, report: RunReport) -> RunReport:
        """A report that says them too, for who reads it as a document."""
        return replace(report, warnings=[*self.notes, *report.warnings])

    def is_native(self, folder: bool) -> bool:
        """Whether the native output, a folder or not, is what the target wants: then there is nothing to export."""
        from quantcli.layouts.writing import named

        return named(self.name).keeps_document and folder == self.folder

    def dry_run(self, source: Source, planned: Plan, names: Names) -> RunReport:
        """The report on a plan, with the bytes of all files but side files."""
        assert self.conversion is not None
        size = sum(f.size for f in self._files(source, planned, names))
        return _report(source, planned, None, "plan", names, self.conversion, size, None)

    def _files(self, source: Source, planned: Plan, names: Names) -> Sequence[OneFile]:
        """The files of the output as they are planned."""
        from quantcli.passes import export as exporting

        assert self.conversion is not None
        base = None if self.folder else os.path.basename(names[2])
        return exporting.files(source, planned.tensors, self.name, self.conversion, base)

    def write(
        self, source: Source, planned: Plan, names: Names, run: Options, side: SideFiles
    ) -> tuple[RunReport, list[str], list[str]]:
        """Quantize and export; the report on it, its errors those of the exported weights, what else there is to tell,
        and what must be told."""
        from quantcli.layouts.native import model as reading
        from quantcli.models import view_of
        from quantcli.passes import export as exporting
        from quantcli.stores.files import check_space
        from quantcli.stores.workspace import Workspace

        began = time.perf_counter()
        beside = exporting.beside(source)
        native = sum(tensor.bytes_out for tensor in planned.tensors)
        check_space(names[2], native + sum(f.size for f in self._files(source, planned, names)) + side.size, names[0])
        with contextlib.ExitStack() as stack:
            workspace = stack.enter_context(Workspace(names[2], force=run.force))
            lost = workspace.found is not None
            path, made, results = _native(source, planned, workspace, run, side)
            model = stack.enter_context(reading.open(path))
            stored = [t.stored for t in model.values()]
            found = exporting.convert(stored, self.name, beside, container=self.container)
            written = exporting.write(
                exporting.Order(
                    shown=names[0],
                    source=model.source,
                    tensors=dict(model),
                    found=found,
                    target=self.name,
                    path=names[2],
                    folder=self.folder,
                    force=run.force,
                    side=side,
                    beside=beside,
                    threads=run.threads,
                    progress=run.progress,
                    against={name: view_of(tensor) for name, tensor in reading.Model(source).items()},
                    workspace=workspace,
                )
            )
        seconds = time.perf_counter() - began
        exported = _with_errors(results, written)
        report = _report(source, made, exported, "quantize", names, found, written.size, seconds)
        said = [f"copied {', '.join(written.copied)}"] if written.copied else []
        notes = ["what an interrupted run with other options had finished for this output was removed"] if lost else []
        return report, said, notes


def _with_errors(results: dict[str, Result], written: Written) -> dict[str, Result]:
    """Results with the errors of exported weights where parameters were rounded; what is clipped stays so."""
    found = dict(results)
    for name, metrics in written.metrics.items():
        before = results[name].metrics
        if metrics is not None and before is not None:
            found[name] = replace(results[name], metrics=replace(metrics, clipped=before.clipped))
    return found


def _report(
    source: Source,
    planned: Plan,
    results: dict[str, Result] | None,
    command: str,
    names: Names,
    found: Conversion,
    bytes_out: int,
    seconds: float | None,
) -> RunReport:
    """The report on a plan whose tensors are stored as the target has them."""
    from quantcli.reports import build

    jobs = found.jobs
    tensors = [replace(t, outputs=jobs[t.info.name].outputs if t.info.name in jobs else ()) for t in planned.tensors]
    return build.of_plan(
        tensors,
        results,
        command=command,
        source=names[0],
        output=names[1],
        bytes_in=sum(f.size for f in source.files()),
        bytes_out=bytes_out,
        seconds=seconds,
        request=planned.request,
    )


def _native(
    source: Source, planned: Plan, workspace: Workspace, run: Options, side: SideFiles
) -> tuple[str, Plan, dict[str, Result]]:
    """Write a native file, or folder of a folder, into a workspace: its path, the final plan and the results."""
    from quantcli.folders import checkpoints
    from quantcli.passes import quantize
    from quantcli.passes.requantize import NATIVE_FILE
    from quantcli.stores.checkpoint import Checkpoint

    workspace.clear()
    own = replace(run, force=False)
    path = os.path.join(workspace.folder, NATIVE_FILE)
    try:
        if not isinstance(source, Checkpoint):
            file = quantize.write(source, planned, source.metadata, path, own)
            return path, file.plan, dict(file.results)
        path = os.path.splitext(path)[0]
        folder = checkpoints.write(source, planned, path, own, side=side, bare=True)
        return path, folder.plan, dict(folder.results)
    except QuantcliError as error:  # nobody but us knows of the native one
        error.place = [workspace.path if p.startswith(path) else p for p in error.place]
        raise
