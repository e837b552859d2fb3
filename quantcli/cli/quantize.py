"""`quantcli quantize`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, cast

import click

from quantcli import registry
from quantcli.cli import options
from quantcli.errors import DataError, UsageError
from quantcli.scheme import GRANULARITIES, ROUNDINGS, SCALE_DTYPES

if TYPE_CHECKING:
    from quantcli.checkpoints import WrittenFolder
    from quantcli.pipeline import Options, Written
    from quantcli.plan import Plan, Request, Rule
    from quantcli.stores import Source
    from quantcli.stores.checkpoint import Checkpoint


@click.command("quantize", short_help="Quantize a model file.")
@options.source
@options.output
@click.option("--bits", type=int, default=None, help="Bits per code, 1 to 16.  [default: 4]")
@click.option(
    "--group-size",
    type=int,
    default=None,
    help="Weights along the last axis that share a scale; -1 per channel, 0 per tensor.  [default: 128]",
)
@click.option("--granularity", type=click.Choice(GRANULARITIES), default=None, help="What shares a scale.")
@click.option("--axis", type=int, default=None, help="The channel axis.  [default: 0]")
@click.option(
    "--symmetric/--asymmetric", default=None, help="Codes around 0, or with a zero point.  [default: symmetric]"
)
@click.option(
    "--grid",
    type=click.Choice(["restricted", "full"]),
    default=None,
    help="Symmetric codes without or with the lowest.",
)
@click.option(
    "--zero-point",
    type=click.Choice(["int", "float"]),
    default=None,
    help="Asymmetric: a whole zero point, or a float offset (0 is then not exact).  [default: int]",
)
@click.option(
    "--calibration",
    type=options.Names((*registry.names("calibrators"), "auto")),
    default=None,
    help="How scales are found; auto takes the best of several, tensor by tensor.  [default: mse]",
)
@click.option(
    "--effort", type=click.Choice(["fast", "default", "best", "exact"]), default=None, help="How long to search."
)
@click.option("--mse-norm", type=float, default=None, metavar="P", help="Make the error of mse |e|^P.  [default: 2]")
@click.option(
    "--percentile",
    type=float,
    default=None,
    metavar="P",
    help="Share of the weights inside the range.  [default: 99.9]",
)
@click.option(
    "--rounding",
    type=click.Choice(ROUNDINGS),
    default=None,
    help="To the nearest code, or so that the errors of a row add up to 0.  [default: sum-preserving, but nearest "
    "where a calibration is named]",
)
@click.option(
    "--type",
    "format_",
    type=options.Names(registry.names("formats")),
    default=None,
    help="Number format.  [default: int]",
)
@click.option("--levels", type=int, default=None, metavar="N", help="Levels of a learned codebook, 2 to 256.")
@click.option(
    "--codebook",
    type=click.Path(path_type=str),
    default=None,
    metavar="FILE",
    help="Levels to use: numbers in a text or .npy file.",
)
@click.option(
    "--scale-dtype",
    type=click.Choice(SCALE_DTYPES),
    default=None,
    help="How scales are stored.  [default: as 16-bit weights are, else float16 where it holds them]",
)
@click.option(
    "--include",
    multiple=True,
    metavar="PATTERN",
    help="Quantize only these: a glob, or a regular expression after re:.",
)
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Keep these as they are.")
@click.option("--no-default-keep", is_flag=True, help="Quantize every float tensor of two or more dimensions.")
@click.option(
    "--recipe", metavar="FILE", type=click.Path(path_type=str), default=None, help="Schemes by pattern, in YAML."
)
@click.option(
    "--on-nonfinite",
    type=click.Choice(["refuse", "keep"]),
    default="refuse",
    show_default=True,
    help="What to do with a tensor that holds NaN or infinity.",
)
@click.option(
    "--digest",
    type=click.Choice(["xxh3", "sha256", "none"]),
    default="xxh3",
    show_default=True,
    help="Digest of each tensor's source bytes.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan with exact sizes, read no weights, write nothing.")
@click.option("--all", "show_all", is_flag=True, help="Show every tensor.")
@options.threads
@options.talk
def command(
    src: str,
    output: str | None,
    force: bool,
    threads: int | None,
    as_json: bool,
    color: str,
    verbose: bool,
    quiet: bool,
    show_all: bool,
    dry_run: bool,
    digest: str,
    on_nonfinite: str,
    debug: bool,
    **asked: Any,
) -> None:
    """Quantize SRC: .safetensors, .npy, .npz, a checkpoint folder or its index.json.

    Writes a safetensors file, or for a checkpoint folder a folder (by default SRC's name with the scheme, beside SRC;
    name a .safetensors file to get all shards in one), and prints what it cost. Norms, biases, embeddings and small
    tensors are kept as they are; every tensor's fate and its reason are in the report.
    """
    from quantcli import pipeline, plan, report
    from quantcli.stores import open_source

    began = time.perf_counter()
    request = _request(asked)
    source = open_source(src)
    try:
        _refuse_quantized(source)
        target = output or default_output(src, request.scheme.name if not asked["recipe"] else "recipe")
        real = _destination(source, target, force) if not dry_run else target
        try:
            planned = plan.make(source.infos(), request)
        except (UsageError, DataError) as error:
            raise error.within(src) from None
        bytes_in = sum(f.size for f in source.files())
        facts: dict[str, Any] = {"source": src, "output": target, "bytes_in": bytes_in}
        if dry_run:
            found = report.of_plan(
                planned.tensors,
                None,
                command="plan",
                bytes_out=_planned_size(source, planned, target, digest),
                seconds=None,
                **facts,
            )
        else:
            count = options.thread_count(threads)
            if verbose:
                from quantcli import kernels

                options.say(f"{kernels.load().name} kernels, {count} threads")
            with options.bar(os.path.basename(target), quiet=quiet) as bar:
                run = pipeline.Options(
                    threads=count, digest=digest, keep_nonfinite=on_nonfinite == "keep", force=force, progress=bar
                )
                written, said = _write(source, planned, target, real, run)
            if verbose:
                for line in said:
                    options.say(line)
            found = report.of_plan(
                written.plan.tensors,
                dict(written.results),
                command="quantize",
                bytes_out=written.size,
                seconds=time.perf_counter() - began,
                **facts,
            )
    finally:
        source.close()
    if not quiet:
        options.say_warnings(found)
    if as_json or not quiet:
        options.print_reports([found], "json" if as_json else "table", color=color, show_all=show_all)


def _as_folder(source: Source, target: str) -> bool:
    """Whether the output is a folder: for a checkpoint folder, unless a .safetensors file is named."""
    return hasattr(source, "shards") and not target.lower().endswith(".safetensors")


def _destination(source: Source, target: str, force: bool) -> str:
    from quantcli.stores.files import check_destination
    from quantcli.stores.folder import check_folder

    if _as_folder(source, target):
        return check_folder(target, force=force, source=cast("Checkpoint", source).folder)
    return check_destination(target, force=force, sources=list(source.files()))


def _planned_size(source: Source, planned: Plan, target: str, digest: str) -> int:
    from quantcli import checkpoints, pipeline

    if _as_folder(source, target):
        return checkpoints.dry_size(cast("Checkpoint", source), planned, digest)
    return pipeline.file_layout(source, planned, source.metadata, digest).size


def _write(
    source: Source, planned: Plan, target: str, real: str, run: Options
) -> tuple[Written | WrittenFolder, list[str]]:
    """Write the output, and what there is to tell about it."""
    from quantcli import checkpoints, pipeline

    if not _as_folder(source, target):
        return pipeline.write(source, planned, source.metadata, real, run), []
    written = checkpoints.write(cast("Checkpoint", source), planned, real, run)
    said = [f"copied {', '.join(written.copied)}"] if written.copied else []
    if written.obstacle:
        said.append(f"config.json has no quantization_config, compressed-tensors cannot express {written.obstacle}")
    return written, said


def default_output(src: str, scheme: str) -> str:
    """The name beside SRC that tells the scheme.

    >>> default_output("models/model.safetensors", "w4g128"), default_output("audio.npy", "w8t")
    ('models/model-w4g128.safetensors', 'audio-w8t.safetensors')
    """
    path = os.path.normpath(src)
    if path.endswith(".index.json"):
        path = os.path.dirname(os.path.abspath(path))
    folder, base = os.path.split(path if os.path.basename(path) not in ("", ".", "..") else os.path.abspath(path))
    stem, extension = os.path.splitext(base)
    if os.path.isdir(path):
        return os.path.join(folder, f"{base}-{scheme}")
    if extension.lower() not in (".safetensors", ".npy", ".npz"):
        stem = base
    return os.path.join(folder, f"{stem}-{scheme}.safetensors")


def _refuse_quantized(source: Source) -> None:
    if source.documents:
        raise DataError(
            "this file is quantized already",
            place=[source.path],
            hint="dequantize it first, or start from the original",
        )


def _request(asked: dict[str, Any]) -> Request:
    from quantcli.plan import Request
    from quantcli.scheme import Scheme

    fields: dict[str, Any] = options.granularity(asked["granularity"], asked["group_size"], asked["axis"])
    for option, name in (
        ("bits", "bits"),
        ("symmetric", "symmetric"),
        ("grid", "grid"),
        ("zero_point", "zero_point"),
        ("calibration", "calibration"),
        ("format_", "format"),
        ("rounding", "rounding"),
        ("levels", "levels"),
        ("scale_dtype", "scale_dtype"),
    ):
        if asked[option] is not None:
            fields[name] = asked[option]
    fields |= _method(asked)
    rules: tuple[Rule, ...] = ()
    if asked["recipe"] is not None:
        from quantcli import recipe

        given = {k: v for k, v in fields.items() if (k, v) != ("granularity", "group")}
        read = recipe.load(asked["recipe"], given)
        scheme, rules = read.default, read.rules
    else:
        scheme = Scheme(**fields)
    return Request(
        scheme=scheme,
        rules=rules,
        include=asked["include"],
        exclude=asked["exclude"],
        keep_defaults=not asked["no_default_keep"],
    )


def _method(asked: dict[str, Any]) -> dict[str, Any]:
    """Scheme fields that other options imply: an option of a calibrator names it, levels make a codebook."""
    given = {
        name: asked[option]
        for option, name in (("effort", "effort"), ("mse_norm", "norm"), ("percentile", "percentile"))
        if asked[option] is not None
    }
    fields: dict[str, Any] = {"options": given} if given else {}
    if asked["calibration"] is None and ("norm" in given or "percentile" in given):
        fields["calibration"] = "mse" if "norm" in given else "percentile"
    if asked["codebook"] is not None:
        from quantcli import recipe

        fields["codebook"] = recipe.levels(asked["codebook"])
    learned = asked["levels"] is not None or asked["codebook"] is not None or asked["calibration"] == "lloyd-max"
    if asked["format_"] is None and learned:
        fields["format"] = "codebook"
    return fields


PROVIDES = command
