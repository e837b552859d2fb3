"""`quantcli inspect`."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli import options
from quantcli.errors import printable

if TYPE_CHECKING:
    from quantcli.comparing import View
    from quantcli.reading import Model
    from quantcli.statistics import Statistics
    from quantcli.stores.gguf import Block
    from quantcli.terminal import Table


@click.command("inspect", short_help="Show what a file holds.")
@options.source
@click.option("--stats", is_flag=True, help="Read the values: range, mean, standard deviation, outliers, histogram.")
@options.talk
@click.option("--names", is_flag=True, help="Print bare names, a line each.")
@click.option("--recipe", is_flag=True, help="Print the recipe that makes a quantized file again, in YAML.")
@click.option("-0", "--null", is_flag=True, help="With --names: end each by a NUL instead, for xargs -0.")
def command(
    src: str,
    stats: bool,
    names: bool,
    recipe: bool,
    null: bool,
    as_json: bool,
    color: str,
    verbose: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Show the tensors of SRC, float or quantized: names, types, shapes, bytes, and with --stats their values.

    Outliers are the share of values farther than 4 standard deviations from the mean.
    """
    from quantcli import reading
    from quantcli.errors import UsageError
    from quantcli.stores import need_file

    if (names and (as_json or stats)) or (null and not names):
        raise UsageError("names are printed alone", place=["--names" if names else "--null"])
    if recipe and (names or as_json or stats):
        raise UsageError("a recipe is printed alone", place=["--recipe"])
    with reading.open(src) as model:
        if not stats:
            model.source.check_unchanged()  # a pipe to its end
        if recipe:
            sys.stdout.write(_recipe(src, model))
            sys.stdout.flush()
            return
        if names:
            for name in model:
                sys.stdout.write(name + "\0" if null else printable(name, 100_000) + "\n")
            sys.stdout.flush()
            return
        found: dict[str, Statistics | None] = {}
        if stats:
            from quantcli import statistics

            if model.is_quantized:
                need_file(model.source, "decoding")
            decoded = _decoded(model, src)
            for name, tensor in model.items():
                found[name] = statistics.of_view(decoded[name]) if name in decoded else statistics.of(tensor)
                model.source.passed(name, 0, tensor.stored.info.nbytes)
        if as_json:
            options.print_json(_document(src, model, found))
            return
        _print(src, model, found if stats else None, color, verbose)
    sys.stdout.flush()


def _blocks(model: Model) -> dict[str, Block]:
    """Type and shape of what a GGUF stores in blocks."""
    from quantcli.stores.gguf import GgufFile

    return model.source.blocks if isinstance(model.source, GgufFile) else {}


def _decoded(model: Model, src: str) -> dict[str, View]:
    """What a GGUF stores in blocks, decoded."""
    blocks = _blocks(model)
    if not blocks:
        return {}
    from quantcli import comparing

    return {name: view for name, view in comparing.views(model, src).items() if name in blocks}


def _recipe(src: str, model: Model) -> str:
    """The recipe in the headers of a file or folder. Raises DataError when there is none, or several."""
    from quantcli import recipe
    from quantcli.errors import DataError, QuantcliError

    try:
        said = [(d, recipe.request_of(d.recipe, d.schemes)) for d in model.documents if d.recipe is not None]
    except QuantcliError as error:
        raise error.within(src) from None
    if not said or len(said) < len(model.documents):
        raise DataError("its header holds no recipe", place=[src], hint="quantcli quantize writes one")
    document, request = said[0]
    if any(d.tool != document.tool or d.digest != document.digest or r != request for d, r in said):
        raise DataError("its files were made by several recipes", place=[src], hint="name one of them")
    keeps = any(tensor.stored.reason == "nonfinite" for tensor in model.values())
    settings = {"digest": document.digest, "on_nonfinite": "keep" if keeps else "refuse"}
    return f"# {printable(document.tool, 100)}\n{recipe.dump(request, settings)}"


def _document(src: str, model: Model, found: dict[str, Statistics | None]) -> dict[str, Any]:
    metadata = {k: v for k, v in model.source.metadata.items() if k != "quantcli"}
    tensors, blocks = [], _blocks(model)
    for name, tensor in model.items():
        stored, block = tensor.stored, blocks.get(name)
        entry = {
            "name": name,
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "parameters": stored.info.numel,
            "bytes": stored.bytes_out,
            "disposition": "quantized" if tensor.scheme else "kept" if model.is_quantized else "float",
            "scheme": tensor.scheme.name if tensor.scheme else None,
            "bits": tensor.scheme.bits if tensor.scheme else None,
        }
        if block is not None:
            kind = block.type.name
            entry |= {"dtype": kind, "shape": list(block.shape), "parameters": math.prod(block.shape)}
            entry |= {"disposition": "quantized", "scheme": kind}
        statistics = found.get(name)
        if statistics is not None:
            entry["stats"] = asdict(statistics)
        tensors.append(entry)
    return {
        "schema_version": 1,
        "command": "inspect",
        "source": src,
        "quantized": model.is_quantized or bool(blocks),
        "bytes": sum(f.size for f in model.source.files()),
        "metadata": metadata,
        "tensors": tensors,
    }


def _print(src: str, model: Model, found: dict[str, Statistics | None] | None, color: str, verbose: bool) -> None:
    from quantcli import terminal

    blocks = _blocks(model)
    parameters = sum(math.prod(blocks[n].shape) if n in blocks else t.stored.info.numel for n, t in model.items())
    nbytes = sum(f.size for f in model.source.files())
    kind = f", quantized by {model.documents[0].tool}" if model.documents else ""
    sizes = f"{terminal.count(parameters)} parameters, {terminal.size(nbytes)}"
    sys.stdout.write(printable(f"{src}: {len(model):,} tensors, {sizes}{kind}", 2000) + "\n")
    metadata = {k: v for k, v in model.source.metadata.items() if k != "quantcli"}
    if metadata:
        shown = ", ".join(
            f"{printable(k, 40)}={printable(v, 60)}" for k, v in list(metadata.items())[: 100 if verbose else 4]
        )
        more = len(metadata) - (100 if verbose else 4)
        sys.stdout.write(f"metadata: {shown}{f' and {more:,} more' if more > 0 else ''}\n")
    sys.stdout.write("\n")
    table = _table(model, found)
    terminal.show(table, sys.stdout, colour=terminal.wants_colour(sys.stdout, color))


def _table(model: Model, found: dict[str, Statistics | None] | None) -> Table:
    from quantcli import statistics, terminal

    values = found is not None
    columns = [
        terminal.Column("tensor"),
        terminal.Column("dtype", from_width=100 if values else 0),
        terminal.Column("shape"),
        terminal.Column("bytes", right=True, from_width=110 if values else 0),
    ]
    if values:
        columns += [
            terminal.Column("min", right=True),
            terminal.Column("max", right=True),
            terminal.Column("mean", right=True, from_width=90),
            terminal.Column("std", right=True),
            terminal.Column("outliers", right=True, from_width=120),
            terminal.Column("histogram"),
        ]
    table = terminal.Table(columns)
    ascii_only = "utf" not in (sys.stdout.encoding or "ascii").lower()
    blocks = _blocks(model)
    for name, tensor in model.items():
        kind = tensor.dtype + (f" {tensor.scheme.name}" if tensor.scheme else "")
        shape = tensor.shape
        if name in blocks:
            kind, shape = blocks[name].type.name, blocks[name].shape
        cells = [name, kind, terminal.shape(shape), terminal.size(tensor.stored.bytes_out)]
        if found is not None:
            s = found[name]
            if s is None:
                cells += ["-"] * 6
            else:
                outliers = "-" if s.outlier_ratio is None else f"{100 * s.outlier_ratio:.2g} %"
                bad = f" {s.nonfinite} not finite" if s.nonfinite else ""
                cells += [
                    *(terminal.number(v) for v in (s.min, s.max, s.mean, s.std)),
                    outliers,
                    statistics.sparkline(s.histogram, ascii_only=ascii_only) + bad,
                ]
        table.add(*cells)
    return table


PROVIDES = command
