"""What plan and quantize share: a budget, and the plan that keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from quantcli.cli import options
from quantcli.cli._gating import Limit
from quantcli.cli.options import F
from quantcli.errors import UsageError

if TYPE_CHECKING:
    from quantcli.planning import Planned
    from quantcli.stores import Source


def budget(command: F) -> F:
    """What a plan must keep, and what it may choose from."""
    given = [
        ("target_size", "SIZE", "Most bytes the file may have, such as 3.9GB."),
        ("target_bpw", "BITS", "Most bits per weight, everything counted."),
        ("min_sqnr", "DB", "The smallest file of at least this SQNR over all quantized weights."),
        ("max_nmse", "E", "The smallest file of at most this squared error over power."),
    ]
    several = [
        (
            "bits",
            options.Several(int),
            "LIST",
            "2,3,4,5,6,8,16",
            "Bit widths to choose from; 16 keeps a tensor as it is.",
        ),
        (
            "group_size",
            options.Several(int),
            "LIST",
            "64,128",
            "Group sizes to choose from; -1 per channel, 0 per tensor.",
        ),
    ]
    command = click.option(
        "--weighting",
        metavar="balanced|relative|absolute|FILE",
        default="balanced",
        show_default=True,
        help="What adds up: each tensor's squared error over its power (relative), that times the root of its size "
        "(balanced), the error as it is (absolute), or relative times factors by pattern in a YAML FILE.",
    )(command)
    command = click.option(
        "--uniform-groups",
        is_flag=True,
        help="One scheme for all that is quantized, as one config group of compressed-tensors can say.",
    )(command)
    command = click.option("--no-ties", is_flag=True, help="Let tensors that runtimes fuse have schemes of their own.")(
        command
    )
    command = click.option(
        "--include", multiple=True, type=options.Pattern(), metavar="PATTERN", help="Quantize only these."
    )(command)
    command = click.option("--exclude", multiple=True, type=options.Pattern(), metavar="PATTERN", help="Keep these.")(
        command
    )
    command = click.option(
        "--no-default-keep", is_flag=True, help="Quantize every float tensor of two or more dimensions."
    )(command)
    for name, kind, metavar, default, text in reversed(several):
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, name, type=kind, metavar=metavar, default=default, show_default=True, help=text)(
            command
        )
    for name, metavar, text in reversed(given):
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, name, type=Limit(), metavar=metavar, default=None, help=text)(command)
    return command


def planned(source: Source, src: str, asked: dict[str, Any], threads: int, quiet: bool) -> tuple[Planned, int | None]:
    """The best plan for a source, and the bytes it was to stay within."""
    from quantcli import planning
    from quantcli.plan import Request, make
    from quantcli.scheme import Scheme

    targets = [n for n in ("target_size", "target_bpw", "min_sqnr", "max_nmse") if asked[n] is not None]
    if len(targets) != 1:
        raise UsageError("one target is needed", hint="give --target-size, --target-bpw, --min-sqnr or --max-nmse")
    schemes = [
        Scheme(bits=bits, **options.granularity(None, size, None))
        for size in asked["group_size"]
        for bits in asked["bits"]
        if bits != 16
    ]
    if not schemes:
        raise UsageError("there is nothing to choose from", place=["--bits"], hint="name widths below 16")
    request = Request(
        scheme=schemes[0],
        include=asked["include"],
        exclude=asked["exclude"],
        keep_defaults=not asked["no_default_keep"],
    )
    if any(file.once for file in source.files()):
        raise UsageError("planning goes back and forth, which a pipe cannot", place=[src], hint="name a file")
    first = make(source.infos(), request)
    name, value = targets[0], float(asked[targets[0]])
    target: int | None = None
    if name in ("target_size", "target_bpw"):
        parameters = sum(info.numel for info in source.infos())
        target = int(value if name == "target_size" else value * parameters / 8)
        whole = sum(info.nbytes for info in source.infos())
        if 16 in asked["bits"] and target >= whole + options.size_of(source, first) - sum(
            t.bytes_out for t in first.tensors
        ):
            raise UsageError(f"{target} bytes hold all of it as it is", place=[src], hint="nothing needs quantizing")
    weighting: Any = "absolute" if target is None else asked["weighting"]
    if weighting not in planning.WEIGHTINGS:
        weighting = planning.factors(weighting, [info.name for info in source.infos()])
    with options.bar("planning", quiet=quiet) as progress:
        units = planning.units_of(
            source,
            request,
            schemes,
            keep=16 in asked["bits"],
            ties=not asked["no_ties"],
            weighting=weighting,
            threads=threads,
            progress=progress,
        )
    variants = planning.with_one_scheme(units) if asked["uniform_groups"] else [units]
    if target is not None:
        return planning.best_within(variants, source, request, lambda p: options.size_of(source, p), target), target
    if asked["uniform_groups"]:
        raise UsageError("one scheme is found for a size only", place=["--uniform-groups"], hint="give --target-size")
    power = sum(m.power for unit in units for m in unit.choices[0].metrics.values())
    cost = power * (10 ** (-value / 10) if name == "min_sqnr" else value)
    return planning.reaching(units, source, request, lambda p: options.size_of(source, p), cost), None
