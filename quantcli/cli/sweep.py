"""`quantcli sweep`: Measure many settings on one model."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from quantcli.cli import _asking, _help, _sources, _workers, options
from quantcli.errors import QuantcliError, UsageError
from quantcli.scheme import IN_SUPER_BLOCKS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quantcli.floats import Reading
    from quantcli.folders.components import Chosen
    from quantcli.passes.batches import Crew
    from quantcli.passes.sweep import Measured
    from quantcli.planning.plan import Plan
    from quantcli.planning.request import Request
    from quantcli.scheme import Scheme

BITS = (2, 3, 4, 8)
"""What is compared by default."""


@_help.command(
    "sweep",
    examples=(
        ("quantcli sweep model.safetensors", "2, 3, 4 and 8 bits"),
        ("quantcli sweep model.safetensors --bits 4 --group-size 32,64,128 --plot", "groups compared"),
        ("quantcli sweep model.safetensors --calibration minmax,mse -o sweep.html", "methods, as a page"),
        ("quantcli sweep model.safetensors --scheme FP8_DYNAMIC,NVFP4A16,W4A16", "schemes by name"),
    ),
)
@options.source
@_sources.reading
@_asking.names("Schemes by name, such as FP8_DYNAMIC,NVFP4A16,W4A16; --bits adds others")
@options.numbers("--bits", None, "Bit widths.", group="Common", shown="2,3,4,8; with --scheme or --levels none")
@options.numbers(
    "--group-size",
    None,
    "Group sizes; -1 per channel, 0 per tensor.",
    group="Common",
    shown="128; of --scheme those of its own",
)
@_asking.calibrations("Calibrations, rounded to nearest.")
@_asking.level_counts
@_asking.symmetric
@_asking.selection
@_asking.statistics
@_help.option("--plot", is_flag=True, help="Draw SQNR against bits per weight in the terminal.", group="Output")
@options.document
@_workers.workers
@options.console
def command(
    src: str,
    reading: Reading,
    scheme: list[str] | None,
    bits: list[int] | None,
    group_size: list[int] | None,
    calibration: list[str] | None,
    levels: list[int] | None,
    symmetric: bool | None,
    plot: bool,
    output: str | None,
    workers: _workers.Workers,
    console: options.Console,
    **selected: Any,
) -> None:
    """Measure every combination of settings on SRC and write nothing but the table.

    Each tile of the weights is read once for all settings. Bytes are those of the file quantize would write, seconds
    are of all threads together. The Pareto front is marked with *: no other setting has a higher SQNR with as few bytes
    of tensors, the text of the header not counted; with --statistics it is the SQNR that these predict of the outputs
    of layers. Beside the table stands what a bit is worth: 6.02 dB by the law, and as measured. Of a pipeline each
    setting is that of all its components together.
    """
    from quantcli.folders import components
    from quantcli.folders.job import kept_tensors
    from quantcli.folders.output import size_of
    from quantcli.reports import swept
    from quantcli.stores import need_file

    file = options.document_file(output, swept.SweepReport, [src, *reading.loras])
    workers.check(src)
    settings = _settings(scheme, bits, group_size, calibration, levels, symmetric)
    selected |= {"recipe": None, "override": (), "to": "native"}
    order = _asking.order(selected, _asking.asked_recipe(selected, {}))
    with (
        components.opened(src, order, reading, output=None, say=console.inform) as found,
        workers.crew(console.inform) as crew,
    ):
        for one in found.models.values():
            need_file(one.source, "sweeping")
        chosen, requests = components.requested(found, options.warn)
        console.inform(*chosen.warnings, *chosen.notes)
        _sources.inform_of(chosen, console)
        began = time.perf_counter()
        measured = _measured(chosen, requests, settings, workers.count, crew, console)
        sizes = [
            chosen.kept_bytes + sum(size_of(chosen.models[name].source, one[i].plan) for name, one in measured.items())
            for i in range(len(settings))
        ]
        report = swept.report_of(
            [(one.name, one.scheme) for one in settings],
            measured,
            sizes,
            kept=[tensor.info for tensor in kept_tensors(chosen.kept)],
            source=src,
            bytes_in=sum(f.size for one in chosen.models.values() for f in one.source.files()) + chosen.kept_bytes,
            seconds=time.perf_counter() - began,
            plot=plot,
        )
    options.show(report, console, show_all=True, file=file)


class _Setting(NamedTuple):
    """A scheme to try, what it is called, and whether a rounding or calibration was asked for, also by a name that
    says one."""

    name: str
    scheme: Scheme
    rounding_given: bool


def _measured(
    chosen: Chosen,
    requests: Mapping[str, Request],
    settings: Sequence[_Setting],
    threads: int,
    crew: Crew | None,
    console: options.Console,
) -> dict[str, list[Measured]]:
    """What every scheme costs on each model."""
    from quantcli.passes import sweep
    from quantcli.planning import kinds, plan
    from quantcli.stores.pipelines import prefixed

    plans: dict[str, list[Plan]] = {}
    for name, one in chosen.models.items():
        plans[name] = []
        for setting in settings:
            sums = False if setting.rounding_given else requests[name].convolution_sums
            request = replace(requests[name], scheme=setting.scheme, convolution_sums=sums)
            try:
                plans[name].append(plan.make(one.source.infos(), request))
            except QuantcliError as error:
                raise error.within(one.source.path if name else chosen.src, setting.name) from None
    for name, request in requests.items():
        console.inform(*(prefixed(name, line) for line in kinds.about(request.preset)))
    found = {}
    for name, own in plans.items():
        with console.bar(prefixed(name, "sweeping")) as bar:
            source, again = chosen.models[name].source, chosen.again(name)
            found[name] = sweep.measure(source, own, threads=threads, progress=bar, crew=crew, again=again)
    return found


def _settings(
    names: list[str] | None,
    bits: list[int] | None,
    sizes: list[int] | None,
    calibrations: list[str] | None,
    levels: list[int] | None,
    symmetric: bool | None,
) -> list[_Setting]:
    """Every combination, calibrations first, and of these schemes by name before others."""
    from quantcli import asking
    from quantcli.planning.named import canonical
    from quantcli.planning.recipe import ROUNDED, over

    found: dict[Scheme, _Setting] = {}

    def add(fields: Mapping[str, Any], name: str = "") -> None:
        scheme = asking.Scheme(**fields)
        given = bool(calibrations) or not fields.keys().isdisjoint(ROUNDED)
        found.setdefault(scheme, _Setting(name or scheme.name, scheme, given))

    asked = {"bits": bits, "calibration": calibrations, "symmetric": symmetric, "group_size": sizes, "levels": levels}
    called = {name: _asking.named_scheme(name) for name in names or []}
    with _asking.naming_options(asked):
        for calibration in calibrations or [""]:
            own: dict[str, Any] = {"calibration": calibration} if calibration else {}
            own |= {"symmetric": symmetric} if symmetric is not None else {}
            given = [_asking.granularity(None, size, None) for size in sizes or []]
            for name, where in itertools.product(called, given or [{}]):
                add(over(over(called[name], where), own), "" if where else canonical(name))
            own |= {"format": "codebook"} if calibration == "lloyd-max" else {}
            for size, width in itertools.product(sizes or [128], bits or ([] if names or levels else BITS)):
                add({"bits": width, **_asking.granularity(None, size, None), **own})
        for size, count in itertools.product(sizes or [128], levels or []):
            add({"format": "codebook", "levels": count, **_asking.granularity(None, size, None)})
    for one, (name, *_) in found.items():
        if one.storage == IN_SUPER_BLOCKS or one.rotation:
            where, target = ("ComfyUI's layout", "comfyui") if one.rotation else ("GGUF", "gguf")
            problem = f"{name} is stored in {where} only, and sweep counts native bytes"
            hint = f"use plan --to {target}, or quantize --dry-run"
            raise UsageError(problem, place=["--scheme"], hint=hint)
    return list(found.values())


PROVIDES = command
