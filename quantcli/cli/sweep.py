"""`quantcli sweep`: Measure many settings on one model."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from quantcli.cli import _asking, _help, _sources, options
from quantcli.errors import QuantcliError

if TYPE_CHECKING:
    from quantcli.floats import Reading
    from quantcli.scheme import Scheme


@_help.command(
    "sweep",
    examples=(
        ("quantcli sweep model.safetensors", "2, 3, 4 and 8 bits"),
        ("quantcli sweep model.safetensors --bits 4 --group-size 32,64,128 --plot", "groups compared"),
        ("quantcli sweep model.safetensors --calibration minmax,mse -o sweep.html", "methods, as a page"),
    ),
)
@options.source
@_sources.reading
@options.numbers("--bits", [2, 3, 4, 8], "Bit widths.", group="Common")
@options.numbers("--group-size", [128], "Group sizes; -1 per channel, 0 per tensor.", group="Common")
@_asking.calibrations("Calibrations, rounded to nearest.")
@_asking.symmetric
@_asking.selection
@_help.option("--plot", is_flag=True, help="Draw SQNR against bits per weight in the terminal.", group="Output")
@options.document
@options.threads
@options.console
def command(
    src: str,
    reading: Reading,
    bits: list[int],
    group_size: list[int],
    calibration: list[str] | None,
    symmetric: bool | None,
    plot: bool,
    output: str | None,
    threads: int | None,
    console: options.Console,
    **selected: Any,
) -> None:
    """Measure every combination of settings on SRC and write nothing but the table.

    Each tile of the weights is read once for all settings. Bytes are those of the file quantize would write, seconds
    are of all threads together. The Pareto front is marked with *: no other setting has a higher SQNR with as few bytes
    of tensors, the text of the header not counted. Beside the table stands what a bit is worth: 6.02 dB by the law, and
    as measured.
    """
    from quantcli.folders import job
    from quantcli.folders.output import size_of
    from quantcli.passes import sweep
    from quantcli.planning import kinds, plan
    from quantcli.planning.order import aimed
    from quantcli.reports import swept
    from quantcli.stores import need_file

    file = options.document_file(output, swept.SweepReport, [src, *reading.loras])
    with _asking.naming_options({"bits": bits, "calibration": calibration, "symmetric": symmetric}):
        schemes = _schemes(bits, group_size, calibration, symmetric)
    selected |= {"recipe": None, "override": (), "to": "native"}
    order = _asking.order(selected, _asking.asked_recipe(selected, {}))
    with _sources.float_source(src, reading, console) as source:
        need_file(source, "sweeping")
        console.inform(*source.warnings)
        source = aimed(source, order, folder=False).source
        _sources.inform_of(source, console)
        request = job.request(source, order, None, warn=options.warn)
        console.inform(*kinds.said(request))
        plans = []
        for scheme in schemes:
            try:
                plans.append(plan.make(source.infos(), replace(request, scheme=scheme)))
            except QuantcliError as error:
                raise error.within(src, scheme.name) from None
        began = time.perf_counter()
        with console.bar("sweeping") as bar:
            measured = sweep.measure(source, plans, threads=options.thread_count(threads), progress=bar)
        report = swept.report_of(
            schemes,
            measured,
            lambda p: size_of(source, p),
            source=src,
            bytes_in=sum(f.size for f in source.files()),
            seconds=time.perf_counter() - began,
            plot=plot,
        )
    options.show(report, console, show_all=True, file=file)


def _schemes(bits: list[int], sizes: list[int], calibrations: list[str] | None, symmetric: bool | None) -> list[Scheme]:
    """Every combination, calibrations first."""
    from quantcli import asking

    found: list[Scheme] = []
    for calibration, size, width in itertools.product(calibrations or [""], sizes, bits):
        fields = _asking.granularity(None, size, None)
        fields |= {"calibration": calibration} if calibration else {}
        fields |= {"symmetric": symmetric} if symmetric is not None else {}
        fields |= {"format": "codebook"} if calibration == "lloyd-max" else {}
        found.append(asking.Scheme(bits=width, **fields))
    return found


PROVIDES = command
