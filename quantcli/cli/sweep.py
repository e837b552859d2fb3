"""`quantcli sweep`: Measure many settings on one model."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantcli.cli import _asking, _help, _sources, options
from quantcli.errors import QuantcliError

if TYPE_CHECKING:
    from quantcli.floats import Reading
    from quantcli.planning.plan import Request
    from quantcli.scheme import Scheme
    from quantcli.stores import Unsplit


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
@_help.option(
    "--bits",
    type=options.Several(int),
    metavar="LIST",
    default="2,3,4,8",
    show_default=True,
    help="Bit widths.",
    group="Common",
)
@_help.option(
    "--group-size",
    type=options.Several(int),
    metavar="LIST",
    default="128",
    show_default=True,
    help="Group sizes; -1 per channel, 0 per tensor.",
    group="Common",
)
@_help.option(
    "--calibration",
    type=options.Several(_asking.CALIBRATIONS),
    metavar="LIST",
    default=None,
    help="Calibrations, rounded to nearest.",
    show_default="the default of quantize",
    group="Search",
)
@_help.option(
    "--symmetric/--asymmetric",
    default=None,
    help="Codes around 0, or with a zero point.",
    show_default="symmetric",
    group="Scheme",
)
@_asking.selection
@_help.option(
    "--plot",
    is_flag=True,
    help="Draw SQNR against bits per weight in the terminal.",
    group="Output",
)
@options.document
@options.threads
@options.talk
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
    talk: options.Talk,
    **selected: Any,
) -> None:
    """Measure every combination of settings on SRC and write nothing but the table.

    Each tile of the weights is read once for all settings. Bytes are those of the file quantize would write, seconds
    are of all threads together. The Pareto front is marked with *: no other setting has a higher SQNR with as few bytes
    of tensors, the text of the header not counted. Beside the table stands what a bit is worth: 6.02 dB by the law, and
    as measured.
    """
    from quantcli.folders.output import size_of
    from quantcli.passes import sweep
    from quantcli.planning import plan
    from quantcli.reports import swept
    from quantcli.stores import need_file

    file = options.document_file(output, swept.SweepReport, [src])
    with _asking.naming_options({"bits": bits, "calibration": calibration, "symmetric": symmetric}):
        schemes = _schemes(bits, group_size, calibration, symmetric)
    with _sources.float_source(src, reading, talk) as source:
        need_file(source, "sweeping")
        source = _sources.arranged(source, None, talk)
        plans = []
        for scheme in schemes:
            try:
                plans.append(plan.make(source.infos(), _request(scheme, selected, source.unsplit)))
            except QuantcliError as error:
                raise error.within(src, scheme.name) from None
        began = time.perf_counter()
        with talk.bar("sweeping") as bar:
            measured = sweep.measure(source, plans, threads=options.thread_count(threads), progress=bar)
        report = swept.made(
            schemes,
            measured,
            lambda p: size_of(source, p),
            source=src,
            bytes_in=sum(f.size for f in source.files()),
            seconds=time.perf_counter() - began,
            plot=plot,
        )
    options.show(report, talk, show_all=True, file=file)


def _request(scheme: Scheme, selected: Mapping[str, Any], unsplit: Mapping[str, Unsplit]) -> Request:
    """A scheme for the tensors selected."""
    from quantcli.planning.plan import Request

    return Request(
        scheme=scheme,
        include=selected["include"],
        exclude=selected["exclude"],
        keep_defaults=not selected["no_default_keep"],
        unsplit=unsplit,
    )


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
