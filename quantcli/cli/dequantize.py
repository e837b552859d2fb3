"""`quantcli dequantize`: Turn a quantized file or folder back into floats."""

from __future__ import annotations

import functools
import os
import time
from typing import TYPE_CHECKING

import click

from quantcli.cli import _help, _naming, options
from quantcli.dtypes import LONG_NAMES
from quantcli.errors import DataError

if TYPE_CHECKING:
    from quantcli.stores import Source


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
@options.threads
@options.console
def command(
    src: str,
    output: str | None,
    force: bool,
    dtype: str | None,
    threads: int | None,
    console: options.Console,
) -> None:
    """Write SRC's tensors under their original names, shapes and dtypes, decoded to what every reader gets.

    SRC is a file or folder of quantcli, or in a layout that `quantcli help targets` lists. A folder gives a folder with
    its config.json and what else lies beside the weights, unless a .safetensors file is named.
    """
    from quantcli.folders import dequantize, sidefiles
    from quantcli.models import left_out, open_model
    from quantcli.passes import decode as decoding
    from quantcli.passes.export import check_output
    from quantcli.reports.dequantized import DequantizeReport
    from quantcli.stores import need_file

    began = time.perf_counter()
    _naming.check_model(output, None)
    with options.standard_output(output, console) as named, open_model(src) as model:
        need_file(model.source, "dequantizing")
        decoded = len(model.quantized)
        if not decoded:
            raise DataError("it holds no quantized tensor", place=[src])
        source = model.source
        target = named or _default_output(src, source)
        folder = None if target.lower().endswith(".safetensors") else source.folder
        real = check_output(source, target, folder=folder is not None, force=force)
        side = sidefiles.of(source, real, folder=folder is not None)
        decode = functools.partial(dequantize.write, side=side) if folder is not None else decoding.write
        warnings = [*source.warnings, *left_out(model.values()), *side.warnings()]
        console.inform(*warnings)
        with console.bar(os.path.basename(target)) as bar:
            size = decode(
                model,
                model,
                real,
                dtype=LONG_NAMES[dtype] if dtype else None,
                force=force,
                threads=options.thread_count(threads),
                progress=bar,
            )
        report = DequantizeReport(
            source=src,
            output=target,
            tensors=len(model),
            decoded=decoded,
            bytes_out=size,
            seconds=time.perf_counter() - began,
            warnings=warnings,
        )
    if output != "-":
        options.show(report, console)


def _default_output(src: str, source: Source) -> str:
    """The name of the output beside SRC."""
    if source.folder is not None:
        return f"{os.path.normpath(source.folder)}-dequantized"
    stem = os.path.splitext(os.path.normpath(src))[0] if src != "-" else "model"
    return f"{stem}-dequantized.safetensors"


PROVIDES = command
