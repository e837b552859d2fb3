"""`quantcli inspect`: Show what a file or folder holds."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from quantcli.cli import _help, options
from quantcli.errors import printable, printable_line

if TYPE_CHECKING:
    from quantcli.layouts.evidence import Evidence
    from quantcli.models import Model, View
    from quantcli.passes.statistics import Statistics
    from quantcli.terminal import Table


@_help.command(
    "inspect",
    examples=(
        ("quantcli inspect model.safetensors", "names, types, shapes, bytes"),
        ("quantcli inspect model.safetensors --stats", "the values too"),
        ("quantcli inspect model-w4g128.safetensors --recipe", "the recipe that made it"),
    ),
)
@options.source
@_help.option(
    "--stats",
    is_flag=True,
    help="Read the values: range, mean, standard deviation, outliers, histogram.",
    group="Common",
)
@options.talk
@_help.option(
    "--names",
    is_flag=True,
    help="Print bare names, a line each.",
    group="Common",
)
@_help.option(
    "--recipe",
    is_flag=True,
    help="Print the recipe that makes a quantized file again, in YAML.",
    group="Common",
)
@_help.option(
    "-0",
    "--null",
    is_flag=True,
    help="With --names: end each by a NUL instead, for xargs -0.",
    group="Output",
)
def command(
    src: str,
    stats: bool,
    names: bool,
    recipe: bool,
    null: bool,
    talk: options.Talk,
) -> None:
    """Show the tensors of SRC, float or quantized: names, types, shapes, bytes, and with --stats their values.

    Outliers are the share of values farther than 4 standard deviations from the mean.
    """
    from quantcli.errors import UsageError
    from quantcli.layouts.native.model import CHANGED
    from quantcli.models import open_model
    from quantcli.stores import need_file

    if (names and (talk.json or stats)) or (null and not names):
        raise UsageError("names are printed alone", place=["--names" if names else "--null"])
    if recipe and (names or talk.json or stats):
        raise UsageError("a recipe is printed alone", place=["--recipe"])
    with open_model(src) as model:
        stored = model.stored
        if recipe:
            stored.check_headers()
        elif stored.is_changed:
            options.warn(f"{src}: {CHANGED}")
        if not stats:
            model.source.check_unchanged()  # a pipe to its end
        if recipe:
            sys.stdout.write(_recipe(src, model))
            sys.stdout.flush()
            return
        if names:
            for name in stored:
                sys.stdout.write(name + "\0" if null else printable_line(name) + "\n")
            sys.stdout.flush()
            return
        rows = _rows(model)
        found: dict[str, Statistics | None] = {}
        if stats:
            from quantcli.passes import statistics
            from quantcli.passes.tiles import default_threads

            if any(row.scheme for row in rows):
                need_file(model.source, "decoding")
            decoded = _decoded(model)
            tensors = {row.name: decoded.get(row.name) or stored[row.name] for row in rows}
            found = statistics.measure(model.source, tensors, threads=default_threads())
        layout = _layout(model, src)
        if talk.json:
            options.print_json(_document(src, model, rows, found, layout))
            return
        _print(src, model, rows, found if stats else None, layout, talk)
    sys.stdout.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A tensor as it is shown. dtype: of the original, or of what another tool stores, its own word for it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    scheme: str | None
    bits: int | None

    @property
    def kind(self) -> str:
        """Type and scheme in one."""
        return self.dtype if self.scheme in (None, self.dtype) else f"{self.dtype} {self.scheme}".strip()


def _rows(model: Model) -> list[_Row]:
    """The tensors of a model, those that another tool quantized as what they stand for."""
    stored = model.stored
    if model.source.kind == "gguf":
        blocks = model.source.blocks
        known = {n: (b.type.name, b.shape) if (b := blocks.get(n)) else (t.dtype, t.shape) for n, t in stored.items()}
        return [
            _Row(
                name=n, dtype=k, shape=s, bytes=stored[n].stored.bytes_out, scheme=k if n in blocks else None, bits=None
            )
            for n, (k, s) in known.items()
        ]
    decoded = _decoded(model)
    parts = {part.name for view in decoded.values() for part in view.parts}
    theirs = [
        _Row(name=n, dtype="", shape=v.info.shape, bytes=v.bytes_out, scheme=v.scheme, bits=v.bits)
        for n, v in decoded.items()
    ]
    return theirs + [
        _Row(
            name=name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            bytes=tensor.stored.bytes_out,
            scheme=tensor.scheme.name if tensor.scheme else None,
            bits=tensor.scheme.bits if tensor.scheme else None,
        )
        for name, tensor in stored.items()
        if name not in parts
    ]


def _decoded(model: Model) -> dict[str, View]:
    """What another tool quantized, decoded; of a pipe, and of what is not understood, nothing is."""
    from quantcli.errors import DataError
    from quantcli.stores import is_stream

    if model.is_native or is_stream(model.source):
        return {}
    try:
        return model.quantized
    except DataError as error:
        options.say(f"shown as it is stored: {error}")
        return {}


def _layout(model: Model, src: str) -> Evidence | None:
    """How another tool quantized a model, as far as it is recognised; None for floats and quantcli's own files."""
    from quantcli.errors import DataError
    from quantcli.layouts import evidence

    if model.is_native:
        return None
    try:
        config = evidence.beside(src)
        found = evidence.found_in(model.source, config)
    except DataError:  # told with the tensors
        return None
    said = evidence.out_of_date(model.source, config) if found is None else None
    return evidence.Evidence(layout="plain floats", seen=said, certain=False) if said is not None else found


def _recipe(src: str, model: Model) -> str:
    """The recipe in the headers of a file or folder. Raises DataError when there is none, or several."""
    from quantcli.errors import DataError, QuantcliError
    from quantcli.planning import recipe

    documents = model.stored.documents
    try:
        said = [(d, recipe.request_of(d.recipe, d.schemes)) for d in documents if d.recipe is not None]
    except QuantcliError as error:
        raise error.within(src) from None
    if not said or len(said) < len(documents):
        raise DataError("its header holds no recipe", place=[src], hint="quantcli quantize writes one")
    document, request = said[0]
    if any(d.tool != document.tool or d.digest != document.digest or r != request for d, r in said):
        raise DataError("its files were made by several recipes", place=[src], hint="name one of them")
    keeps = any(tensor.stored.reason == "nonfinite" for tensor in model.stored.values())
    settings = {"digest": document.digest, "on_nonfinite": "keep" if keeps else "refuse"}
    return f"# {printable(document.tool, 100)}\n{recipe.dump(request, settings)}"


def _document(
    src: str, model: Model, rows: list[_Row], found: dict[str, Statistics | None], layout: Evidence | None
) -> dict[str, Any]:
    metadata = {k: v for k, v in model.source.metadata.items() if k != "quantcli"}
    tensors = []
    for row in rows:
        entry: dict[str, Any] = {
            "name": row.name,
            "dtype": row.dtype or None,
            "shape": list(row.shape),
            "parameters": math.prod(row.shape),
            "bytes": row.bytes,
            "disposition": "quantized" if row.scheme else "kept" if model.is_native else "float",
            "scheme": row.scheme,
            "bits": row.bits,
        }
        statistics = found.get(row.name)
        if statistics is not None:
            entry["stats"] = asdict(statistics)
        tensors.append(entry)
    return {
        "schema_version": 1,
        "command": "inspect",
        "source": src,
        "quantized": any(row.scheme for row in rows) or (layout is not None and layout.certain),
        "layout": str(layout) if layout is not None else None,
        "bytes": model.file_bytes,
        "metadata": metadata,
        "tensors": tensors,
    }


def _print(
    src: str,
    model: Model,
    rows: list[_Row],
    found: dict[str, Statistics | None] | None,
    layout: Evidence | None,
    talk: options.Talk,
) -> None:
    from quantcli import terminal

    parameters = sum(math.prod(row.shape) for row in rows)
    documents = model.stored.documents
    kind = f", quantized by {printable(documents[0].tool, 100)}" if documents else ""
    sizes = f"{terminal.count(parameters)} parameters, {terminal.size(model.file_bytes)}"
    terminal.line(f"{src}: {len(rows):,} tensors, {sizes}{kind}", sys.stdout)
    if layout is not None:
        terminal.line(f"layout: {printable(str(layout), 1000)}", sys.stdout)
    metadata = {k: v for k, v in model.source.metadata.items() if k != "quantcli"}
    if metadata:
        shown = ", ".join(
            f"{printable(k, 40)}={printable(v, 60)}" for k, v in list(metadata.items())[: 100 if talk.verbose else 4]
        )
        more = len(metadata) - (100 if talk.verbose else 4)
        terminal.line(f"metadata: {shown}{f' and {more:,} more' if more > 0 else ''}", sys.stdout)
    sys.stdout.write("\n")
    table = _table(rows, found)
    terminal.show(table, sys.stdout, colour=talk.coloured)


def _table(rows: list[_Row], found: dict[str, Statistics | None] | None) -> Table:
    from quantcli import terminal
    from quantcli.passes import statistics

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
    for row in rows:
        cells = [row.name, row.kind, terminal.shape(row.shape), terminal.size(row.bytes)]
        if found is not None:
            s = found[row.name]
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
