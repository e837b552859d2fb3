"""`quantcli sweep`: Measure many settings on one model."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli import _asking, _help, _naming, _sources, options
from quantcli.errors import QuantcliError

if TYPE_CHECKING:
    from quantcli.passes.sweep import Sweep
    from quantcli.planning.plan import Request
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
@_sources.source_layout
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
@_help.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=str),
    default=None,
    help="Write what its extension says: .html a page, .csv or .json the figures.",
    group="Common",
)
@options.threads
@options.talk
def command(
    src: str,
    source_layout: str,
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
    from quantcli.stores import need_file

    kind = ""
    if output is not None:
        options.check_outputs([output], [src])
        kind = _naming.document(output, _naming.SWEEPS)
    with _asking.naming_options({"bits": bits, "calibration": calibration, "symmetric": symmetric}):
        schemes = _schemes(bits, group_size, calibration, symmetric)
    with _sources.float_source(src, source_layout, talk) as source:
        need_file(source, "sweeping")
        plans = []
        for scheme in schemes:
            try:
                plans.append(plan.make(source.infos(), _request(scheme, selected)))
            except QuantcliError as error:
                raise error.within(src, scheme.name) from None
        with talk.bar("sweeping") as bar:
            found = sweep.sweep(
                source,
                schemes,
                plans,
                lambda p: size_of(source, p),
                shown=src,
                threads=options.thread_count(threads),
                progress=bar,
            )
    if output is not None:
        from quantcli.reports import sweeps

        text = io.StringIO()
        sweeps.WRITERS.get(kind, sweeps.render)(found, text)
        options.replace_file(output, text.getvalue(), [src])
    if talk.json:
        options.print_json(found.as_dict())
    elif not talk.quiet:
        _print(found, talk, plot)


def _request(scheme: Scheme, selected: Mapping[str, Any]) -> Request:
    """A scheme for the tensors selected."""
    from quantcli.planning.plan import Request

    return Request(
        scheme=scheme,
        include=selected["include"],
        exclude=selected["exclude"],
        keep_defaults=not selected["no_default_keep"],
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


def _print(found: Sweep, talk: options.Talk, plot: bool) -> None:
    from quantcli import terminal as t
    from quantcli.errors import printable

    colour = talk.coloured
    t.line(
        f"{printable(found.source, 200)}: {len(found.points)} settings on {t.count(found.parameters)} parameters, "
        f"{t.size(found.bytes_in)}, {found.seconds:.2f} s",
        sys.stdout,
    )
    sys.stdout.write("\n")
    table = t.Table(
        [
            t.Column("scheme"),
            t.Column("calibration"),
            t.Column("SQNR dB", right=True),
            t.Column("bits/w", right=True),
            t.Column("bytes", right=True),
            t.Column("", from_width=40),
            t.Column("worst dB", right=True, from_width=80),
            t.Column("worst tensor", from_width=110),
            t.Column("s", right=True, from_width=60),
        ]
    )
    for p in found.points:
        table.add(
            p.scheme,
            p.calibration,
            t.decibels(p.sqnr_db, p.sqnr_db is None),
            f"{p.bits_per_weight:.3f}",
            t.size(p.bytes_out),
            "*" if p.pareto else "",
            t.decibels(p.worst_sqnr_db, p.worst_sqnr_db is None),
            p.worst_tensor,
            f"{p.seconds:.2f}",
            style="bold" if p.pareto else "",
        )
    t.show(table, sys.stdout, colour=colour)
    if found.slopes:
        sys.stdout.write(f"\na bit is worth {found.law_db_per_bit:.2f} dB by the law; measured:\n")
        for s in found.slopes:
            sys.stdout.write(f"{s.db_per_bit:.2f} dB from {s.low_bits} to {s.high_bits} bits, {s.series}\n")
    if plot:
        marks = [
            (p.bits_per_weight, p.sqnr_db, "*" if p.pareto else "o") for p in found.points if p.sqnr_db is not None
        ]
        sys.stdout.write("\n")
        t.plot(marks, sys.stdout, across="bits per weight", up="dB")
    sys.stdout.flush()


PROVIDES = command
