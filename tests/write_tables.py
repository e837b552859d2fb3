"""Write the tables of README.md and of the topics of `quantcli help` from the code: `make docs`.

A table stands between two lines of a Markdown file, which this script finds and keeps:

    <!-- generated: NAME -->
    <!-- end -->

NAME is one of TABLES, or `options COMMAND`. The pages of the manual are written too (see write_manual), and completion
scripts where they are missing. A test checks that all is up to date.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import wrap

import click
import write_manual

import quantcli
from quantcli import front, registry
from quantcli.cli import EXIT_CODES, JUDGES, _gating, _help, cli
from quantcli.layouts.gguf.families import families
from quantcli.layouts.gguf.images.models import IMAGE_MODELS
from quantcli.layouts.writer import named
from quantcli.planning import recipe_keys
from quantcli.planning.named import listed, stored_by
from quantcli.planning.reasons import LEFT_OUT, REASONS
from quantcli.reports import gates

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(quantcli.__file__).parent
DOCUMENTS = (ROOT / "README.md", *sorted((PACKAGE / "docs").glob("*.md")))
"""What is read, on a screen or in a browser."""

BLOCK = re.compile(r"(<!-- generated: (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

FAMILIES = {"int": "integers", "midrise": "mid-rise", "levels": "fixed levels", "learned": "learned codebooks"}
"""The families of formats by which calibrations go."""

UNITS = {
    "DB": "dB",
    "MSE": "squared error",
    "BITS": "bits per weight",
    "SIZE": "bytes",
    "SHARE": "share",
    "FIGURE": "its own",
}
"""What the limits of gates are counted in, by what their options take."""


def escaped(text: str) -> str:
    """A text whose stars are stars in Markdown too."""
    return text.replace("*", "\\*")


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n" for cells in lines)


def coded(names: Sequence[str]) -> str:
    """Names in one cell, as code; `none` where there are none.

    >>> coded(["W2A16 to W8A16", "FP8"])
    '`W2A16` to `W8A16`, `FP8`'
    """
    return ", ".join(f"`{name.replace(' to ', '` to `') if name[0] != '-' else name}`" for name in names) or "none"


def methods() -> str:
    """The calibrations, and what they are for."""
    rows = []
    for name in registry.names("calibrators"):
        found = registry.get("calibrators", name)
        suits = [FAMILIES[family] for family in found.families] if not found.binary else ["one symmetric bit"]
        suits += [] if found.affine or found.binary else ["symmetric only"]
        options = ", ".join(f"{key} ({option.default})" for key, option in found.options.items())
        weighs = "yes" if found.weighs else ""
        rows.append([f"`{name}`", registry.summary("calibrators", name), ", ".join(suits), options, weighs])
    rows.append(["`auto`", "the best of these, tensor by tensor", "", "", ""])
    return table(["`--calibration`", "what it takes", "suits", "options (default)", "`--importance`"], rows)


def formats() -> str:
    """The number formats."""
    rows = []
    for name in registry.names("formats"):
        found = registry.get("formats", name)
        low, high, usual = found.bits
        bits = str(low) if low == high else f"{low} to {high} ({usual})"
        offsets = " or ".join(found.zero_points) or "no"
        rows.append([f"`{name}`", registry.summary("formats", name), bits, offsets, f"`{found.calibration}`"])
    return table(["`--type`", "values", "bits (default)", "zero points", "calibration"], rows)


def targets() -> str:
    """The targets of quantize --to and export --to."""
    rows = []
    for name in registry.names("layouts", "WRITES"):
        export = named(name)
        output = f"{export.extension} file" if export.extension else "folder or file"
        loaded = registry.purpose("layouts", name, "WRITES")
        schemes = coded(listed(stored_by(name)))
        rows.append([f"`{name}`", loaded, output, export.accepts.describe(), schemes, escaped(export.keeps)])
    return table(["`--to`", "loaded by", "writes", "accepts", "by `--scheme`", "keeps in floating point"], rows)


FIRST = ("compressed-tensors", "gguf", "mlx", "onnx", "comfyui", "bnb-nf4")
"""Targets that most look for: their runtimes stand above the others."""


def runtimes() -> str:
    """The programs that load quantized models, and the command that makes one for each."""
    names = registry.names("layouts", "WRITES")
    rows = []
    for name in sorted(names, key=lambda n: (FIRST.index(n) if n in FIRST else len(FIRST), n)):
        for runtime in named(name).runtimes:
            others = f", or {coded(runtime.others)}" if runtime.others else ""
            command = f"`quantcli {runtime.command}`{others}"
            rows.append([runtime.name, command, runtime.limits])
    own = "every scheme there is; [python](quantcli/docs/python.md), [the file format](quantcli/docs/file-format.md)"
    rows.append(["your own code", "`quantcli quantize MODEL --to native`", own])
    return table(["runtime", "command", "limits"], rows)


def comfyui() -> str:
    """The kinds of files for ComfyUI."""
    from quantcli.layouts.comfyui.types import KINDS, scheme_of

    rows = [[f"`comfyui:{name}`", f"`{scheme_of(kind.type).name}`", kind.summary] for name, kind in KINDS.items()]
    return table(["`--to`", "scheme", "what it is"], rows)


def file_types() -> str:
    """The file types of GGUF."""
    from quantcli.layouts.gguf.mixes import FILE_TYPES

    return table(
        ["`--to`", "most tensors", "size of a large model"],
        [[f"`gguf:{name}`", f"`{kind.base}`", kind.summary] for name, kind in FILE_TYPES.items()],
    )


def image_models() -> str:
    """The models for ComfyUI that --to gguf writes."""
    found = sorted(IMAGE_MODELS, key=lambda model: model.architecture)
    rows = [[f"`{m.architecture}`", m.title, ", ".join(f"`{part}`" for part in m.floats)] for m in found]
    return table(["`general.architecture`", "models", "in floating point: names with"], rows)


def architectures() -> str:
    """The architectures of llama.cpp that --to gguf writes."""
    modules = registry.names("layouts.gguf.families", "FAMILY")
    models = {
        registry.get("layouts.gguf.families", module, "FAMILY").classes: registry.headline(
            "layouts.gguf.families", module
        )
        for module in modules
    }
    rows = []
    for family in families():
        classes = ", ".join(f"`{name}`" for name in family.classes)
        rows.append([f"`{family.architecture}`", models[family.classes].partition(":")[0], classes])
    return table(["architecture", "models", "classes of transformers"], rows)


def layouts_read() -> str:
    """The layouts of other tools that are decoded."""
    rows = []
    for name in registry.names("layouts", "READS"):
        tool, _, what = registry.headline("layouts", name, "READS").partition(": ")
        rows.append([tool, what])
    return table(["layout", "what is decoded"], rows)


def reasons() -> str:
    """Why a tensor was quantized or kept."""
    became = {True: "quantized", False: "kept"}
    rows = [
        [f"`{r.name}`", "left out" if r.name == LEFT_OUT else became[r.quantized], r.says] for r in REASONS.values()
    ]
    return table(["reason", "the tensor is", "because"], rows)


def options(name: str) -> str:
    """The options of a command, group by group."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, name
    ctx = click.Context(command, info_name=name, help_option_names=list(front.NAMES))
    rows = []
    for group, found in _help.grouped(command, ctx).items():
        rows.append([f"**{group}**", "", ""])
        for option in found:
            record = option.get_help_record(ctx)
            if record is None or not isinstance(option, _help.Option):
                continue
            kind = getattr(option.type, "kind", option.type)
            names = kind.choices if isinstance(kind, click.Choice) else ()
            choices = f" One of {', '.join(f'`{name}`' for name in names)}." if names else ""
            left = re.sub(r"\[[^\[\]=]+\]$", "NAME", record[0])
            default = "required" if option.required else option.default_text
            rows.append([f"`{left}`", default, f"{escaped(option.help or '')}{choices}"])
    return table(["option", "default", "meaning"], rows)


def exit_codes() -> str:
    """What the exit code means."""
    rows = [[str(code), most, judging] for code, (most, judging) in EXIT_CODES.items()]
    return table(["exit code", "most commands", ", ".join(f"`{name}`" for name in JUDGES)], rows)


def renderings() -> str:
    """The forms of a report."""
    rows = []
    for name in registry.names("reports.renderings"):
        extensions = ", ".join(f".{e}" for e in registry.get("reports.renderings", name).extensions)
        rows.append([f"`{name}`", extensions, registry.summary("reports.renderings", name)])
    return table(["`--format`", "extension for `-o`", "what it is"], rows)


def gate_limits() -> str:
    """The gates of report and compare."""
    rows = []
    for name, kind, text in (*_gating.GATES, *_gating.EVALUATIONS):
        judged = "each tensor" if name in gates.TENSOR_GATES else "the file"
        rows.append([f"`--{name.replace('_', '-')}`", UNITS[kind], judged, text])
    return table(["gate", "unit", "judges", "meaning"], rows)


def keys_of_recipes() -> str:
    """The keys of a recipe."""
    where = {"recipe": recipe_keys.RECIPE, "rule": recipe_keys.RULE, "scheme": recipe_keys.SCHEME}
    rows = [[f"`{key}`", place, *facts] for place, keys in where.items() for key, facts in keys.items()]
    return table(["key", "of a", "takes", "meaning"], rows)


def presets() -> str:
    """The recipes that have a name; each says at its top what it is for."""
    rows = []
    for path in sorted((PACKAGE / "planning" / "presets").glob("*.yaml")):
        said = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")]
        rows.append([f"`{path.stem}`", " ".join(said)])
    return table(["`--recipe`", "what it does"], rows)


def costs() -> str:
    """What each method gives, as `make bench-quality` measured it last."""
    text = (ROOT / "tests" / "bench" / "RESULTS.md").read_text()
    return text[text.index("| method | bits/w |") :].partition("<!-- end -->")[0]


SPEED = {
    "int4 g128 min-max": "4 bits with min-max scales",
    "int4 g128 default": "4 bits by default",
    "int8 per channel min-max": "8 bits per channel",
    "codebook g64": "learned codebooks",
}
LOOKS = {
    "inspect --stats": "statistics of all weights",
    "report --against": "measuring a file again",
    "dequantize": "decoding it",
}
"""Runs of `make bench` that README tells of: those that write a quantized file, and others."""


def speed() -> str:
    """How fast the runs are, in floors, as `make bench` measured them last."""
    text = (ROOT / "tests" / "bench" / "RESULTS.md").read_text()
    found = re.search(
        r"<!-- generated: make bench -->\n[^(\n]*\((.*?) kernels\), (.*?, .*?), .*?\n(.*?)\n\n", text, re.DOTALL
    )
    if found is None:
        return "  "
    kernels, machine, rows = found.groups()
    cells = [[cell.strip() for cell in row.split("|")[1:]] for row in rows.splitlines() if row.startswith("| ")]
    floors = {row[0]: row[2] for row in cells}
    told, looks = (", ".join(f"{words} {floors[title]}" for title, words in of.items()) for of in (SPEED, LOOKS))
    said = f"In times of that floor ({machine}, {kernels} kernels, 1 GB): {told}; in times of only reading it: {looks}."
    lines = wrap(said, 118, break_on_hyphens=False)
    return "".join(f"  {line}\n" for line in lines) + "  "


TABLES: dict[str, Callable[[], str]] = {
    "methods": methods,
    "formats": formats,
    "targets": targets,
    "runtimes": runtimes,
    "file types": file_types,
    "comfyui": comfyui,
    "architectures": architectures,
    "image models": image_models,
    "layouts-read": layouts_read,
    "reasons": reasons,
    "exit-codes": exit_codes,
    "renderings": renderings,
    "gates": gate_limits,
    "recipe-keys": keys_of_recipes,
    "presets": presets,
    "costs": costs,
    "speed": speed,
}
"""What makes each table, by its name; `options COMMAND` beside them."""


def made(name: str) -> str:
    """The table of a name. Raises KeyError for a name there is none of."""
    kind, _, command = name.partition(" ")
    return options(command) if kind == "options" else TABLES[name]()


def filled(text: str) -> str:
    """A document with its tables as the code has them now."""
    return BLOCK.sub(lambda block: f"{block[1]}{made(block[2])}{block[4]}", text)


def stale() -> Iterator[tuple[Path, str]]:
    """The documents whose tables are not up to date, and pages of the manual, each with the text it should have."""
    texts = {path: filled(path.read_text(encoding="utf-8")) for path in DOCUMENTS}
    for path, after in {**texts, **write_manual.manual()}.items():
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if before != after:
            yield path, after


if __name__ == "__main__":
    for path, text in [*stale(), *((p, text) for p, text in write_manual.scripts().items() if not p.exists())]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"written: {path.relative_to(ROOT)}")
