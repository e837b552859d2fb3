"""The plot of quality.py as SVG, for light and dark pages: SQNR against bits, and how far it is from the limit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from textwrap import wrap
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

Row = dict[str, Any]

LIFT = {"normal": 0.0, "laplace": 0.628, "student": 0.727}
"""Decibels of the Shannon lower bound beyond 6.02 a bit: 10 log10(2 pi e variance / 2^2h), h of the density."""

TITLES = {"normal": "Normal weights", "laplace": "Laplace weights", "student": "Student-t weights"}

SHAPES = {
    "quantcli": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "llama.cpp": "M0 -5L5 4H-5Z",
    "HQQ": "M-4 -4H4V4H-4Z",
    "MLX": "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
    "bitsandbytes": "M-4 -4L4 4M-4 4L4 -4",
    "ModelOpt": "M0 -5.5V5.5M-5.5 0H5.5",
    "comfy-kitchen": "M-5 -3H5L0 6Z",
}
"""Programs are told apart by shape too, not by colour alone."""

COLOURS = {
    "quantcli": ("#0060a8", "#6cc0ff"), "llama.cpp": ("#c04a00", "#ff9d4d"), "HQQ": ("#00795a", "#3fd6a8"),
    "MLX": ("#a8447f", "#f0a0cc"), "bitsandbytes": ("#333333", "#eeeeee"), "ModelOpt": ("#7a5c00", "#f0e442"),
    "comfy-kitchen": ("#5a3fa0", "#b9a5ff"),
}  # fmt: skip
"""On a light and on a dark page, after the palette of Okabe and Ito (2008)."""

WIDTH, LEFT, RIGHT = 960, 56, 16


class Box(NamedTuple):
    """A panel in pixels, and the least and greatest of what it shows."""

    left: float
    top: float
    width: float
    height: float
    low: float
    high: float

    def x(self, bits: float) -> float:
        return self.left + (bits - 1.75) / 7 * self.width

    def y(self, value: float) -> float:
        return self.top + (self.high - value) / (self.high - self.low) * self.height


def style() -> str:
    """Colours by theme."""

    def rules(dark: bool) -> str:
        text, line, page = ("#e6e6e6", "#4a4a4a", "#14181d") if dark else ("#1c1c1c", "#cfcfcf", "#ffffff")
        marks = "".join(f".{key(p)}{{stroke:{c[dark]};fill:{c[dark]}}}" for p, c in COLOURS.items())
        frontier = f".frontier{{stroke:{COLOURS['quantcli'][dark]};fill:none;stroke-width:2}}"
        limit = f".limit{{stroke:{text};stroke-width:1.6;stroke-dasharray:7 4;fill:none}}"
        return f".page{{fill:{page}}}text{{fill:{text}}}.grid{{stroke:{line};fill:none}}{marks}{frontier}{limit}"

    fonts = "text{font:13px system-ui,sans-serif}.small{font-size:11px}.head{font-size:15px;font-weight:600}"
    marks = ".mark{stroke-width:1.8;fill-opacity:.55}"
    return f"<style>{rules(False)}@media(prefers-color-scheme:dark){{{rules(True)}}}{fonts}{marks}</style>"


def key(program: str) -> str:
    return program.replace(".", "-")


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'


def mark(program: str, x: float, y: float) -> str:
    return f'<path class="mark {key(program)}" transform="translate({x:.1f} {y:.1f})" d="{SHAPES[program]}"/>'


def frame(box: Box, title: str, unit: str, step: int) -> Iterator[str]:
    """Grid, numbers and titles of a panel."""
    yield text(box.left, box.top - 12, title, kind="head")
    for bits in range(2, 9):
        yield f'<path class="grid" d="M{box.x(bits):.1f} {box.top:.1f}v{box.height:.1f}"/>'
        yield text(box.x(bits), box.top + box.height + 16, str(bits), "middle", "small")
    first = math.ceil(min(box.low, box.high) / step) * step
    for value in range(first, int(max(box.low, box.high)) + 1, step):
        yield f'<path class="grid" d="M{box.left:.1f} {box.y(value):.1f}h{box.width:.1f}"/>'
        yield text(box.left - 6, box.y(value) + 4, str(value), "end", "small")
    yield text(box.left + box.width / 2, box.top + box.height + 33, "bits a weight, with scales", "middle", "small")
    x, y = box.left - 38, box.top + box.height / 2
    yield f'<text class="small" text-anchor="middle" transform="translate({x:.1f} {y:.1f}) rotate(-90)">{unit}</text>'


def limit(source: str, bits: float) -> float:
    """The most decibels that any code of so many bits can have."""
    return 20 * math.log10(2) * bits + LIFT[source]


def frontier(rows: list[Row], source: str) -> list[Row]:
    """Methods of quantcli that no other one of no more bits surpasses, by bits."""
    found: list[Row] = []
    own = [r for r in rows if r["program"] == "quantcli" and 1.75 <= r["bits"][source] <= 8.75]
    for row in sorted(own, key=lambda r: (r["bits"][source], -r["db"][source])):
        if not found or row["db"][source] > found[-1]["db"][source]:
            found.append(row)
    return found


class Labels:
    """Words beside marks, where nothing else is yet."""

    def __init__(self, box: Box, points: list[tuple[float, float]]) -> None:
        self.box, self.taken = box, [(x - 5, y - 5, x + 5, y + 5) for x, y in points]

    def put(self, x: float, y: float, words: str) -> str:
        wide, places = 6.1 * len(words), list[tuple[int, float, float, str]]()
        for reach in (0, 9, 18, 27, 36):
            for dx, dy, anchor in ((9 + reach, 4, "start"), (-9 - reach, 4, "end"), (0, 19 + reach, "middle"),
                                   (0, -10 - reach, "middle"), (8, 15 + reach, "start"), (8, -7 - reach, "start"),
                                   (-8, 15 + reach, "end"), (-8, -7 - reach, "end")):  # fmt: skip
                left = x + dx - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
                area = (left, y + dy - 10, left + wide, y + dy + 3)
                hits = sum(a[0] < area[2] and area[0] < a[2] and a[1] < area[3] and area[1] < a[3] for a in self.taken)
                inside = self.box.left < area[0] and area[2] < self.box.left + self.box.width
                inside = inside and self.box.top < area[1] and area[3] < self.box.top + self.box.height
                if inside:
                    places.append((hits, x + dx, y + dy, anchor))
            if any(place[0] == 0 for place in places):
                break
        _, at, down, anchor = min(places, key=lambda place: place[0])
        left = at - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        self.taken.append((left, down - 10, left + wide, down + 3))
        return text(at, down, words, anchor, "small")


def rising(rows: list[Row], box: Box) -> Iterator[str]:
    """SQNR of normal weights against bits, below the line of the limit."""
    yield from frame(box, "Normal weights: signal to quantization noise", "SQNR, dB", 10)
    ends = [(bits, limit("normal", bits)) for bits in (1.9, 8.6)]
    yield f'<path class="limit" d="M{" L".join(f"{box.x(b):.1f} {box.y(v):.1f}" for b, v in ends)}"/>'
    yield text(box.x(5.0) - 8, box.y(limit("normal", 5.0)) - 6, "limit of any code: 6.02 dB a bit", "end")
    yield from marks(rows, box, "normal", gap=False)


def below(rows: list[Row], box: Box, source: str, named: bool) -> Iterator[str]:
    """Decibels below the limit against bits; the limit is the upper edge."""
    yield from frame(box, f"{TITLES[source]}: dB below the limit", "dB below the limit", 2)
    yield f'<path class="limit" d="M{box.left:.1f} {box.y(0):.1f}h{box.width:.1f}"/>'
    yield from marks(rows, box, source, gap=True, named=named)


def marks(rows: list[Row], box: Box, source: str, *, gap: bool, named: bool = False) -> Iterator[str]:
    def place(row: Row) -> tuple[float, float]:
        bits, db = row["bits"][source], row["db"][source]
        return box.x(bits), box.y(limit(source, bits) - db if gap else db)

    def inside(row: Row) -> bool:
        return box.top <= place(row)[1] <= box.top + box.height

    own = [row for row in frontier(rows, source) if inside(row)]
    shown = [row for row in rows if row["program"] != "quantcli" and inside(row)]
    yield f'<path class="frontier" d="M{" L".join("{:.1f} {:.1f}".format(*place(row)) for row in own)}"/>'
    for row in [*own, *shown]:
        yield mark(row["program"], *place(row))
    if named:
        labels = Labels(box, [place(row) for row in [*own, *shown]])
        for row in shown:
            if row["program"] in ("llama.cpp", "HQQ", "ModelOpt") or "NF4" in row["method"]:
                yield labels.put(*place(row), row["method"].replace(" bits ", "b "))


def legend(top: float) -> Iterator[str]:
    x = float(LEFT)
    for program in SHAPES:
        words = f"{program}, best of each size" if program == "quantcli" else program
        yield mark(program, x + 6, top - 4)
        yield text(x + 18, top, words)
        x += 18 + 7.3 * len(words) + 22


def svg(rows: list[Row]) -> str:
    """The whole picture."""
    wide, half = WIDTH - LEFT - RIGHT, (WIDTH - 2 * LEFT - 2 * RIGHT) / 2
    parts = [*legend(28)]
    parts += rising(rows, Box(LEFT, 76, wide, 280, 5, 53))
    parts += below(rows, Box(LEFT, 442, wide, 440, 8.5, -0.3), "normal", named=True)
    for number, source in enumerate(("laplace", "student")):
        left = LEFT + number * (half + LEFT + RIGHT)
        parts += below(rows, Box(left, 966, half, 280, 12.5, -0.3), source, named=False)
    peers = [r for r in rows if r["program"] != "quantcli"]
    ahead = [r for r in peers if all(o["db"]["normal"] < r["db"]["normal"] for o in frontier(rows, "normal")
                                     if o["bits"]["normal"] <= r["bits"]["normal"] + 0.01)]  # fmt: skip
    named = ", ".join(row["method"] for row in ahead) or "none"
    said = [
        "Higher is better. The blue line joins quantcli's best methods: none of its own of no more bits is better.",
        f"On normal weights {len(ahead)} of {len(peers)} methods of other programs lose less than quantcli in no more:",
        *wrap(named + ".", 120),
        "Student-t weights have 4 degrees of freedom. What is further from the limit than a panel reaches is absent.",
    ]
    parts += [text(LEFT, 1318 + 18 * i, line) for i, line in enumerate(said)]
    height = 1318 + 18 * len(said)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img"><title>Signal to quantization noise against bits a weight</title><desc>{escape(" ".join(said))}'
        f'</desc>{style()}<rect class="page" width="{WIDTH}" height="{height}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
