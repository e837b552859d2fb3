"""`quantcli sweep`: Measure many settings on one model."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from quantcli.cli import _asking, _help, _sources, options
from quantcli.errors import QuantcliError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quantcli.floats import Reading
    from quantcli.folders.components import Chosen
    from quantcli.passes.sweep import Measured
    from quantcli.planning.plan import Plan
    from quantcli.planning.request import Request
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
    as measured. Of a pipeline each setting is that of all its components together.
    """
    from quantcli.folders import components
    from quantcli.folders.output import size_of
    from quantcli.planning import kinds
    from quantcli.reports import swept
    from quantcli.stores import need_file
    from quantcli.stores.pipelines import prefixed

    file = options.document_file(output, swept.SweepReport, [src, *reading.loras])
    with _asking.naming_options({"bits": bits, "calibration": calibration, "symmetric": symmetric}):
        schemes = _schemes(bits, group_size, calibration, symmetric)
    selected |= {"recipe": None, "override": (), "to": "native"}
    order = _asking.order(selected, _asking.asked_recipe(selected, {}))
    with components.opened(src, order, reading, output=None, say=console.inform) as found:
        for one in found.models.values():
            need_file(one.source, "sweeping")
        chosen, requests = components.requested(found, options.warn)
        console.inform(*chosen.warnings, *chosen.notes)
        _sources.inform_of(chosen, console)
        for name, request in requests.items():
            console.inform(*(prefixed(name, line) for line in kinds.said(request)))
        began = time.perf_counter()
        measured = _measured(chosen, requests, schemes, options.thread_count(threads), console)
        sizes = [
            chosen.kept_bytes + sum(size_of(chosen.models[name].source, one[i].plan) for name, one in measured.items())
            for i in range(len(schemes))
        ]
        report = swept.report_of(
            schemes,
            measured,
            sizes,
            kept=[info for source, _ in chosen.kept.values() if source is not None for info in source.infos()],
            source=src,
            bytes_in=sum(f.size for one in chosen.models.values() for f in one.source.files()) + chosen.kept_bytes,
            seconds=time.perf_counter() - began,
            plot=plot,
        )
    options.show(report, console, show_all=True, file=file)


def _measured(
    chosen: Chosen, requests: Mapping[str, Request], schemes: Sequence[Scheme], threads: int, console: options.Console
) -> dict[str, list[Measured]]:
    """What every scheme costs on each model."""
    from quantcli.passes import sweep
    from quantcli.planning import plan
    from quantcli.stores.pipelines import prefixed

    plans: dict[str, list[Plan]] = {}
    for name, one in chosen.models.items():
        plans[name] = []
        for scheme in schemes:
            try:
                plans[name].append(plan.make(one.source.infos(), replace(requests[name], scheme=scheme)))
            except QuantcliError as error:
                raise error.within(one.source.path if name else chosen.src, scheme.name) from None
    found = {}
    for name, own in plans.items():
        with console.bar(prefixed(name, "sweeping")) as bar:
            found[name] = sweep.measure(chosen.models[name].source, own, threads=threads, progress=bar)
    return found


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
