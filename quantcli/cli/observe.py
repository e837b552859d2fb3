"""`quantcli observe`: Collect statistics of the inputs of an ONNX model's weights."""

from __future__ import annotations

import contextlib
import os
import time

import click

from quantcli.cli import _asking, _help, options
from quantcli.errors import UsageError, listed, printable


@_help.command(
    "observe",
    examples=(
        ("quantcli observe model.onnx --inputs samples.npz -o stats.safetensors", "run it on samples"),
        ("quantcli observe model.onnx --inputs samples.npz --moments diagonal", "means and mean squares alone"),
    ),
)
@options.source
@_help.option(
    "--inputs",
    required=True,
    type=_help.FILE,
    help="Samples: an .npz file with an array for each input of the model, whose first axis is samples.",
    group="Common",
)
@options.local_output
@_help.option(
    "--moments",
    type=_help.Names(full="the mean product of every two inputs of a weight", diagonal="means and mean squares alone"),
    default="full",
    show_default=True,
    help="What is collected.",
    group="Common",
)
@_help.option(
    "--batch",
    type=click.IntRange(1),
    metavar="N",
    default=8,
    show_default=True,
    help="Samples of a run, where the model takes several.",
    group="Run",
)
@_help.option(
    "--memory",
    metavar="SIZE",
    default="1GiB",
    show_default=True,
    help="What sums and values may take beside the model; with less the samples are run several times.",
    group="Run",
)
@options.threads
@options.console
def command(
    src: str,
    inputs: str,
    output: str | None,
    force: bool,
    moments: str,
    batch: int,
    memory: str,
    threads: int | None,
    console: options.Console,
) -> None:
    """Run the ONNX model SRC on samples, and write what the inputs of its weights are like: a file for --statistics.

    The inputs of MatMul, Gemm, Conv, LSTM, GRU and RNN are observed, also in the branches of If and the bodies of Loop.
    Names are those of the weights in SRC. `quantcli help statistics` tells what the file holds, and how to make one of
    a PyTorch model. It needs onnxruntime: pip install 'quantcli[onnx]'.
    """
    from quantcli.passes import observe
    from quantcli.reports.gates import parsed
    from quantcli.reports.observed import ObserveReport
    from quantcli.stores import open_source, places
    from quantcli.stores.files import check_destination

    began = time.perf_counter()
    if not inputs.lower().endswith(".npz"):
        raise UsageError("samples are arrays in an .npz file", place=["--inputs", printable(inputs)])
    target = output or f"{os.path.splitext(os.path.normpath(places.to_write(src)))[0]}-statistics.safetensors"
    with _asking.naming_options({"memory": memory}):
        room = int(parsed("memory", memory))
    observe.runtime()
    with contextlib.closing(open_source(src)) as source, contextlib.closing(open_source(inputs)) as samples:
        check_destination(target, force=force, sources=[*source.files(), *samples.files()])
        request = observe.Request(
            full=moments == "full",
            memory=room,
            batch=batch,
            threads=options.thread_count(threads),
            force=force,
        )
        with console.bar("observing") as bar:
            found = observe.observe(source, samples, target, request, bar)
    if found.masked:
        console.inform(f"{inputs}: tokens whose {observe.MASK} is 0 are not counted")
    warnings = [f"{printable(name)}: not observed: {why}" for name, why in found.without.items()]
    if warnings:
        some = [f"{printable(name, 100)} ({why})" for name, why in found.without.items()]
        plural = "s" if len(some) > 1 else ""
        console.inform(f"{len(some)} weight{plural} not observed: {listed(some, len(some) if console.verbose else 2)}")
    report = ObserveReport(
        source=src,
        inputs=inputs,
        output=target,
        weights=len(found.columns),
        samples=found.samples,
        runs=found.runs,
        columns=found.columns,
        rows=found.rows,
        without=found.without,
        bytes_out=found.bytes_out,
        seconds=time.perf_counter() - began,
        warnings=warnings,
    )
    options.show(report, console)


PROVIDES = command
