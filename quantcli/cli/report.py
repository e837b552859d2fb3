"""`quantcli report`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from quantcli.cli import options
from quantcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from quantcli.theory import Theory


@click.command("report", short_help="Tell what quantization cost.")
@options.source
@click.option(
    "--against",
    metavar="ORIGINAL",
    type=click.Path(path_type=str),
    default=None,
    help="Measure again, from the stored codes, against the original weights.",
)
@click.option(
    "--theory",
    is_flag=True,
    help="Beside each measured SQNR what theory says: model, best quantizers, bounds, entropy. Needs --against.",
)
@click.option("--ignore-digest", is_flag=True, help="Measure even against weights the file was not made from.")
@click.option("--all", "show_all", is_flag=True, help="Show every tensor.")
@options.threads
@options.talk
def command(
    src: str,
    against: str | None,
    theory: bool,
    ignore_digest: bool,
    show_all: bool,
    threads: int | None,
    as_json: bool,
    color: str,
    verbose: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Tell what quantization cost, tensor by tensor, from the metrics in SRC's header or against ORIGINAL."""
    from quantcli import measuring, reading, report

    began = time.perf_counter()
    if theory and against is None:
        raise UsageError("the original weights are needed", place=["--theory"], hint="name them with --against")
    known: list[Theory | None] | None = None
    with reading.open(src) as model:
        if not model.is_quantized:
            raise DataError(
                "this file was not quantized by quantcli, so there is nothing to report",
                place=[src],
                hint="quantize it first; inspect shows any file",
            )
        stored = reading.stored_tensors(model)
        metrics = [s.metrics for s in stored]
        bytes_out = sum(f.size for f in model.source.files())
        bytes_in = sum(d.source_bytes for d in model.documents)
        if against is not None:
            with reading.open(against) as original, options.bar("measuring", quiet=quiet) as bar:
                metrics = measuring.against(
                    model,
                    original,
                    threads=options.thread_count(threads),
                    check_digests=not ignore_digest,
                    progress=bar,
                )
                if theory:
                    from quantcli import examining

                    known = examining.examine(
                        model, original, metrics, threads=options.thread_count(threads), progress=bar
                    )
    found = report.of_stored(
        stored,
        metrics,
        source=against or src,
        output=src if against else None,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        seconds=time.perf_counter() - began,
        theory=known,
    )
    options.print_report(found, as_json=as_json, color=color, show_all=show_all, quiet=quiet and not as_json)


PROVIDES = command
