"""The model card of a quantized checkpoint: how it was made, what it lost, what was kept, how to load it.

The front matter of the original card stays as it is, and its text follows below the new one: nothing of it is lost.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantcli import __version__
from quantcli import terminal as t
from quantcli.errors import UsageError
from quantcli.folders.sidefiles import CARD, SideFiles
from quantcli.planning import recipe_writing
from quantcli.planning.plan import Plan
from quantcli.planning.reasons import REASONS
from quantcli.reports import markup
from quantcli.reports.gathered import Glance
from quantcli.reports.run import RunReport, equal_line
from quantcli.stores import places
from quantcli.stores.places import read_small

if TYPE_CHECKING:
    from quantcli.scheme import Scheme

AGAIN = "`quantcli quantize --recipe` with this recipe makes the same files again from the same weights:"
"""The line before the recipe."""

WORST = 10

_LIMIT = 1 << 26
"""Most bytes of a model card."""

OWN_LAYOUT = (
    "This is quantcli's own layout, which diffusers refuses by the quant_method in config.json. `quantcli dequantize` "
    "makes floating-point weights of it, and the Python package quantcli reads it."
)
"""How a native model of diffusers is loaded."""


def beside(folder: str | None, side: SideFiles) -> bytes | None:
    """The model card in a folder; None where there is none, and where it is left out."""
    path = os.path.join(folder or "", CARD)
    if folder is None or side.leaves_out(CARD) or not places.exists(path):
        return None
    return read_small(path, _LIMIT)


def hub_name(folder: str) -> str | None:
    """The name of a model on the Hugging Face hub or in its cache, such as `org/name`; None elsewhere.

    >>> hub_name("/cache/models--org--name/snapshots/0123abcd")
    'org/name'
    >>> hub_name("hf://org/name@v1")
    'org/name'
    """
    if folder.startswith("hf://"):
        return "/".join(folder.partition("@")[0].split("/")[2:4])
    parts = os.path.realpath(folder).split(os.sep)
    for place in range(len(parts) - 2):
        match = re.fullmatch(r"models--([\w.-]+?)--([\w.-]+)", parts[place])
        if match and parts[place + 1] == "snapshots":
            return f"{match[1]}/{match[2]}"
    return None


def words(scheme: Scheme) -> str:
    """A scheme in words.

    >>> from quantcli import Scheme
    >>> words(Scheme(bits=4))
    '4-bit integers, symmetric, in groups of 128, by mse with sum-preserving rounding'
    """
    many = {"tensor": "one scale per tensor", "channel": f"one scale per channel (axis {scheme.axis})"}
    learned = f"{scheme.level_count} learned levels" if not scheme.codebook else f"{len(scheme.codebook)} given levels"
    kind = {"int": f"{scheme.bits}-bit integers", "codebook": learned}.get(scheme.format, scheme.format)
    zero = (
        "symmetric"
        if scheme.symmetric
        else f"asymmetric ({'zero points' if scheme.zero_point == 'int' else 'offsets'})"
    )
    rounding = " with sum-preserving rounding" if scheme.preserves_sums else ""
    many["block"] = f"in blocks of {scheme.group_size} x {scheme.group_size}"
    where = many.get(scheme.granularity, f"in groups of {scheme.group_size}")
    parts = [
        kind,
        *([zero] if scheme.family in ("int", "midrise") else []),
        where,
        f"by {scheme.calibration}{rounding}",
    ]
    return ", ".join(parts)


def card(
    report: RunReport,
    plan: Plan,
    *,
    settings: Mapping[str, str],
    obstacle: str,
    origin: str | None,
    side: SideFiles,
    original: bytes | None,
    loading: Sequence[str] | None = None,
) -> bytes:
    """The card, as bytes: the original one, whatever its encoding, is part of it.

    obstacle: why loaders do not take it, empty where they do. origin: the name of the model on the hub,
    where that is known. side: the files beside the weights. loading: what there is to know of loaders, None for what
    holds for transformers.
    """
    front, text = _front_matter(original or b"")
    if origin is not None and not re.search(rb"(?m)^base_model\s*:", front):
        front += f"base_model: {origin}\n".encode()
    sections = [
        [f"# {origin.rpartition('/')[2] if origin else 'Checkpoint'}, quantized", "", *_overview(report)],
        _how(report, plan, settings),
        _losses(report),
        _kept(report),
        _beside(side),
        _loading(plan, obstacle) if loading is None else ["## Loading it", "", *loading],
    ]
    own = "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"
    head = b"---\n" + front + b"---\n\n" if front else b""
    rest = b"\n# Original model card\n\n" + text.lstrip(b"\r\n") if text.strip() else b""
    return head + own.encode("utf-8", "backslashreplace") + rest


def _front_matter(card: bytes) -> tuple[bytes, bytes]:
    """The lines of a card's front matter and the text behind it; a card without any is all text.

    >>> _front_matter(b"---\\nlicense: mit\\n---\\n# Name\\n")
    (b'license: mit\\n', b'# Name\\n')
    """
    lines = card.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)
    if not lines or lines[0].rstrip() != b"---":
        return b"", card
    for number, line in enumerate(lines[1:], 1):
        if line.rstrip() == b"---":
            front = b"".join(lines[1:number])
            return front, b"".join(lines[number + 1 :])
    return b"", card


def _overview(report: RunReport) -> list[str]:
    s = report.summary
    rows = [
        ("parameters", f"{t.count(s.parameters)} in {s.tensors:,} tensors"),
        ("quantized", f"{100 * s.coverage:.1f} % of the parameters, {s.quantized:,} tensors"),
        ("size", f"{t.size(s.bytes_in)} -> {t.size(s.bytes_out)}, {t.change(s.bytes_in, s.bytes_out)}"),
        ("bits per weight", f"{s.bits_per_weight:.3f}, everything counted"),
        ("SQNR of the quantized weights", t.decibels(s.sqnr_db, s.exact) + ("" if s.exact else " dB")),
    ]
    return ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]


def _how(report: RunReport, plan: Plan, settings: Mapping[str, str]) -> list[str]:
    counts: dict[str, int] = {}
    for tensor, count in plan.tensors.alike():
        if tensor.scheme is not None:
            said = words(tensor.scheme)
            counts[said] = counts.get(said, 0) + count
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    lines = [
        "## How it was made",
        "",
        f"With quantcli {__version__}. The digest of each tensor's original weights is in the",
    ]
    lines += ["header of its file, with its errors.", ""]
    lines += [f"- {said}: {n} tensor{'' if n == 1 else 's'}" for said, n in ordered[:WORST]]
    lines += [f"- and {len(ordered) - WORST} more schemes"] if len(ordered) > WORST else []
    if plan.request is None:
        return lines
    lines += ["", AGAIN, ""]
    try:
        text = recipe_writing.dump(plan.request, settings)
    except UsageError:
        return [*lines[:-2], "", "The recipe is long: `quantcli inspect --recipe` prints it from the files."]
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return [*lines, f"{fence}yaml", text.rstrip("\n"), fence]


def recipe_in(text: str) -> str | None:
    """The recipe in the text of a model card; None where it has none.

    >>> recipe_in(f"# A\\n\\n{AGAIN}\\n\\n```yaml\\ndefault: {{bits: 4}}\\n```\\n")
    'default: {bits: 4}\\n'
    """
    found = re.search(rf"^{re.escape(AGAIN)}\n\n(`{{3,}})yaml\n(.*?\n)\1$", text, re.MULTILINE | re.DOTALL)
    return found[2] if found is not None else None


def _losses(report: RunReport) -> list[str]:
    glance = report.glance or Glance.at(report.tensors)
    worst = [r for number in glance.worst_first(WORST) if not (r := report.tensors[number]).kept]
    lines = ["## What it lost", ""]
    lines += [
        "SQNR is the power of the weights over that of the errors; a bit more is worth 6 dB. The worst tensors:",
        "",
    ]
    lines += ["| tensor | shape | scheme | SQNR dB | max error | clipped |", "| --- | --- | --- | ---: | ---: | ---: |"]
    for r in worst:
        clipped = "-" if r.clipped_fraction is None else f"{100 * r.clipped_fraction:.2g} %"
        cells = [markup.code(r.name), t.shape(r.shape), r.scheme or "", t.decibels(r.sqnr_db, r.exact)]
        lines.append(f"| {' | '.join(cells)} | {t.number(r.max_abs_error)} | {clipped} |")
    return lines


@dataclass(slots=True)
class _Kept:
    """Tensors that are kept for one reason: the name of the first, how many they are, and their bytes."""

    first: str
    count: int = 0
    size: int = 0


def _kept(report: RunReport) -> list[str]:
    kept: dict[str, _Kept] = {}
    for r in report.tensors if len(report.tensors) > report.summary.quantized else ():
        if r.kept:
            found = kept.setdefault(r.reason, _Kept(r.name))
            found.count, found.size = found.count + 1, found.size + r.bytes_in
    equal = equal_line(report)
    lines = ["## What was kept as it was", ""] if kept else []
    if kept:
        lines += ["| reason | tensors | bytes | meaning | such as |", "| --- | ---: | ---: | --- | --- |"]
    for reason, found in sorted(kept.items(), key=lambda item: (-item[1].count, item[0])):
        says = REASONS[reason].says if reason in REASONS else ""
        lines.append(f"| {reason} | {found.count} | {t.size(found.size)} | {says} | {markup.code(found.first)} |")
    if equal is not None:
        lines += [*([""] if kept else []), markup.text(equal[0].upper() + equal[1:]) + "."]
    return lines


def _beside(side: SideFiles) -> list[str]:
    """The files that were left out, and the weights that were copied as they are."""
    lines = [
        f"- {markup.code(file.name)} ({t.size(file.size)}): {markup.text(what)}"
        for what, files in side.groups()
        for file in files
    ]
    return ["## Files beside the weights", "", *lines] if lines else []


def _loading(plan: Plan, obstacle: str) -> list[str]:
    """What loaders need to know, as measured with transformers 5.23 and 4.57 and compressed-tensors 0.13 to 0.20."""
    lines = ["## Loading it", ""]
    if obstacle:
        return [
            *lines,
            f"transformers and vLLM do not: compressed-tensors cannot express {markup.text(obstacle)}.",
            "`quantcli dequantize` makes floating-point weights of this folder, the Python package quantcli reads it.",
        ]
    schemes = list(dict.fromkeys(tensor.scheme for tensor, _ in plan.tensors.alike() if tensor.scheme is not None))
    lines += ["transformers loads this folder with the package compressed-tensors: `from_pretrained(FOLDER)`."]
    notes: Sequence[tuple[bool, str]] = [
        (
            any(not s.symmetric for s in schemes),
            "With zero points compressed-tensors 0.18 or newer needs "
            "`quantization_config=CompressedTensorsConfig(dequantize=True)`.",
        ),
        (
            any(s.bits not in (2, 4, 8) for s in schemes),
            "Widths other than 2, 4 and 8 bits need compressed-tensors 0.18 or newer.",
        ),
        (
            len({(s.bits, s.symmetric, s.group_size) for s in schemes}) > 1,
            "There are several schemes: do not ask transformers 5 for `dequantize=True`, which takes one for all.",
        ),
    ]
    return [*lines, *[f"- {note}" for wanted, note in notes if wanted]]


def original(card: bytes) -> bytes | None:
    """The original card inside a card that quantcli wrote, None where there was none; any other card as it is."""
    front, text = _front_matter(card)
    if b"## How it was made\n\nWith quantcli " not in text:
        return card
    start = re.search(rb"(?m)^# Original model card\n+", text)
    if start is None:
        return None
    return (b"---\n" + front + b"---\n\n" if front else b"") + text[start.end() :]


def exported(card: bytes, target: str, summary: str, notes: Sequence[str]) -> bytes:
    """A card that quantcli wrote, with how another tool loads the same weights; any other card as it is."""
    start = re.search(rb"(?m)^## Loading it\n", card)
    if start is None:
        return card
    end = re.search(rb"(?m)^# Original model card\n", card)
    lines = [
        "## Loading it",
        "",
        f"Exported for {target}: {markup.text(summary)}.",
        *(f"- {markup.text(note)}" for note in notes),
    ]
    text = "\n".join(lines).encode("utf-8", "backslashreplace") + b"\n"
    return card[: start.start()] + text + (b"\n" + card[end.start() :] if end else b"")
