"""`quantcli dequantize`: Turn a quantized file or folder back into floats."""

from __future__ import annotations

import os
import time
from functools import partial

import click

from quantcli.cli import _help, _naming, _sources, options
from quantcli.dtypes import LONG_NAMES


@_help.command(
    "dequantize",
    examples=(
        ("quantcli dequantize model-w4g128.safetensors -o floats.safetensors", "original names and dtypes"),
        ("quantcli dequantize model-awq -o model-bf16 --dtype bfloat16", "another tool's folder"),
    ),
)
@options.source
@options.output
@_help.option(
    "--dtype",
    type=click.Choice(sorted(LONG_NAMES)),
    help="Float type of the decoded tensors.",
    show_default="the original one of each, float32 where the file does not store it",
    group="Common",
)
@_sources.variant
@options.threads
@options.console
def command(
    src: str,
    output: str | None,
    force: bool,
    private: bool,
    dtype: str | None,
    variant: str | None,
    threads: int | None,
    console: options.Console,
) -> None:
    """Write SRC's tensors under their original names, shapes and dtypes, decoded to what every reader gets.

    SRC is a file or folder of quantcli, or in a layout that `quantcli help targets` lists. A folder gives a folder with
    its config.json and what else lies beside the weights, unless a .safetensors file is named. A pipeline gives a
    pipeline, each component decoded.
    """
    from quantcli.folders import components, evaluate
    from quantcli.folders.job import kept_sources
    from quantcli.reports.dequantized import DequantizeReport
    from quantcli.stores import places

    began = time.perf_counter()
    _naming.check_model(output, None)
    with (
        options.standard_output(output, console) as named,
        components.quantized(src, variant, "dequantizing") as found,
    ):
        if found.home:
            components.check_one_file(None, output)
        home = evaluate.home_of(found)
        target = named or _default_output(src, home)
        size, warnings = evaluate.write_floats(
            found,
            target,
            folder=home is not None and not target.lower().endswith(".safetensors"),
            force=force,
            private=private,
            dtype=LONG_NAMES[dtype] if dtype else None,
            threads=options.thread_count(threads),
            bar=partial(console.bar, os.path.basename(target)),
            say=console.inform,
        )
        _naming.tell_remains(places.real(target), console.inform)
        whole = kept_sources(found.kept).values()
        report = DequantizeReport(
            source=src,
            output=target,
            tensors=sum(map(len, found.models.values())) + sum(len(source.infos()) for source in whole),
            decoded=sum(model.codes for model in found.models.values()),
            bytes_out=size + found.kept_bytes,
            seconds=time.perf_counter() - began,
            warnings=warnings,
        )
    if output != "-":
        options.show(report, console)


def _default_output(src: str, home: str | None) -> str:
    """The name of the output beside SRC. home: the folder of its models, None for a file."""
    from quantcli.stores import places

    if home is not None:
        return f"{os.path.normpath(places.to_write(home))}-dequantized"
    stem = os.path.splitext(os.path.normpath(places.to_write(src)))[0] if src != "-" else "model"
    return f"{stem}-dequantized.safetensors"


PROVIDES = command
