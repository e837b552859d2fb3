"""Charts and small drawings as inline SVG.

Positions are percentages of the drawing, so that a chart takes any width and its text keeps its size. Callers escape
texts; this module writes them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantcli.passes.examine import Histogram

DENSE = 300
"""Number of marks above which they are drawn small."""

SIZES = {"": 4.5, "s": 2.7}
"""Half the width of a mark, by the end of its id."""

BAND = 12.0
"""Percent of the height reserved for exact tensors, whose SQNR is infinite."""

TICKED = 64
"""Number of levels up to which each is a line across the histogram; more are drawn short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An axis from low to high. ticks: labelled values; lines: values of thin lines without a label."""

    low: float
    high: float
    title: str
    ticks: Sequence[tuple[float, str]]
    lines: Sequence[float] = ()

    def share(self, value: float) -> float:
        """The position of a value, 0 to 1."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A tensor in a chart; y is None where it is exact. text: escaped, shown on hover."""

    x: float
    y: float | None
    shape: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A straight line between two points, drawn in the style of its class."""

    kind: str
    start: tuple[float, float]
    end: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Marks and lines over two axes; label: escaped, for screen readers."""

    label: str
    x: Axis
    y: Axis
    marks: Sequence[Mark]
    lines: Sequence[Line] = field(default_factory=list)

    def svg(self) -> str:
        """The drawing."""
        band = BAND if any(m.y is None for m in self.marks) else 0.0
        size = "s" if len(self.marks) > DENSE else ""
        parts = [*self._x_ticks(), *self._y_ticks(band)]
        parts += [self._line(line, band) for line in self.lines]
        marks = "\n".join(
            f'<use href="#{m.shape}{size}" x="{self._across(m.x)}" y="{self._down(m.y, band)}">'
            f"<title>{m.text}</title></use>"
            for m in self.marks
        )
        return (
            f'<svg class="plot" role="img" aria-label="{self.label}">\n'
            + "\n".join(parts)
            + f'\n<g class="marks">\n{marks}\n</g>\n</svg>'
        )

    def _across(self, value: float) -> str:
        return _percent(100 * self.x.share(value))

    def _down(self, value: float | None, band: float) -> str:
        if value is None:
            return _percent(band / 4)
        return _percent(band + (100 - band) * (1 - self.y.share(value)))

    def _x_ticks(self) -> list[str]:
        found = [f'<line class="grid" x1="{at}" x2="{at}" y2="100%"/>' for at in map(self._across, self.x.lines)]
        found.append('<line class="axis" y1="100%" x2="100%" y2="100%"/>')
        for value, text in self.x.ticks:
            found.append(f'<text class="below" x="{self._across(value)}" y="100%" dy="18">{text}</text>')
        found.append(f'<text class="below title" x="50%" y="100%" dy="38">{self.x.title}</text>')
        return found

    def _y_ticks(self, band: float) -> list[str]:
        found = []
        for value, text in self.y.ticks:
            at = self._down(value, band)
            found.append(f'<line class="grid" y1="{at}" x2="100%" y2="{at}"/>')
            found.append(f'<text class="left" y="{at}" dx="-8" dy="4">{text}</text>')
        if band:
            found.append(f'<text class="left" y="{self._down(None, band)}" dx="-8" dy="4">exact</text>')
        found.append(f'<text class="left title" dx="-8" dy="-12">{self.y.title}</text>')
        return found

    def _line(self, line: Line, band: float) -> str:
        (x1, y1), (x2, y2) = line.start, line.end
        return (
            f'<line class="{line.kind}" x1="{self._across(x1)}" y1="{self._down(y1, band)}" '
            f'x2="{self._across(x2)}" y2="{self._down(y2, band)}"/>'
        )


def _percent(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") + "%"


def axis(low: float, high: float, title: str, *, least: float, about: int = 5) -> Axis:
    """An axis at least `least` wide that ends at round values, with about so many labels.

    >>> [text for _, text in axis(20.1, 21.4, "dB", least=1.0).ticks]
    ['20.0', '20.5', '21.0', '21.5']
    """
    spare = max(least - (high - low), 0.0) / 2
    low, high = low - spare, high + spare
    step = _step((high - low) / about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = [(i * step, f"{i * step:.{digits}f}") for i in range(first, last + 1)]
    return Axis(low=first * step, high=last * step, title=title, ticks=ticks)


def _step(raw: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is not below `raw`."""
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(power * f for f in (1.0, 2.0, 5.0, 10.0) if power * f >= raw * (1 - 1e-9))


def _polygon(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points) + "z"


def _regular(corners: int, size: float, turn: float = 0.0, inner: float = 1.0) -> str:
    """A regular polygon; a star where every other corner is nearer to the centre."""
    angles = [2 * math.pi * (i / corners) + math.radians(turn - 90) for i in range(corners)]
    radii = [size * (inner if i % 2 else 1.0) for i in range(corners)]
    return _polygon([(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles)])


def _cross(size: float, turn: float) -> str:
    """A plus, turned by so many degrees."""
    thin, c, s = size * 0.36, math.cos(math.radians(turn)), math.sin(math.radians(turn))
    corner = [(-thin, -size), (thin, -size), (thin, -thin)]
    points = [p for q in range(4) for p in (_turned(x, y, q) for x, y in corner)]
    return _polygon([(x * c - y * s, x * s + y * c) for x, y in points])


def _turned(x: float, y: float, quarters: int) -> tuple[float, float]:
    for _ in range(quarters):
        x, y = -y, x
    return x, y


def _disc(size: float) -> str:
    return f"M{-size:.2f} 0a{size:.2f} {size:.2f} 0 1 0 {2 * size:.2f} 0a{size:.2f} {size:.2f} 0 1 0 {-2 * size:.2f} 0z"


def shape(bits: int | None) -> str:
    """The id of the mark for a bit width: one shape for each up to 8 bits, and one for all others."""
    return f"m{bits}" if bits is not None and 1 <= bits <= 8 else "m0"


def _outline(bits: int, size: float) -> str:
    """The outline of the mark for a bit width, all of about the same area."""
    if bits == 4:
        return _disc(0.95 * size)
    if bits in (1, 7):
        return _cross(1.1 * size, 45.0 if bits == 1 else 0.0)
    corners, turn, inner, scale = {
        0: (6, 0.0, 1.0, 1.05),
        2: (3, 180.0, 1.0, 1.25),
        3: (3, 0.0, 1.0, 1.25),
        5: (10, 0.0, 0.45, 1.35),
        6: (4, 0.0, 1.0, 1.2),
        8: (4, 45.0, 1.0, 1.2),
    }[bits]
    return _regular(corners, scale * size, turn, inner)


def definitions() -> str:
    """Marks and hatching that all drawings of a page share."""
    marks = "".join(
        f'<path id="m{bits}{end}" class="mark m{bits}" d="{_outline(bits, size)}"/>'
        for end, size in SIZES.items()
        for bits in range(9)
    )
    hatch = (
        '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse">'
        '<path class="clipped" d="M0 0h6v6h-6z"/><path class="hatching" d="M-1 1l2-2M0 6l6-6M5 7l2-2"/></pattern>'
    )
    return f'<svg class="definitions" width="0" height="0" aria-hidden="true"><defs>{marks}{hatch}</defs></svg>'


def key(mark: str) -> str:
    """A mark for a legend."""
    return f'<svg class="key" width="16" height="16" aria-hidden="true"><use href="#{mark}" x="8" y="8"/></svg>'


def line_key(kind: str) -> str:
    """A piece of a line for a legend."""
    return (
        f'<svg class="key" width="28" height="16" aria-hidden="true">'
        f'<line class="{kind}" x1="1" x2="27" y1="8" y2="8"/></svg>'
    )


def split_bar(share: float) -> str:
    """A bar whose left part, this share of it, is hatched."""
    width = _percent(100 * min(max(share, 0.0), 1.0))
    return f'<svg class="bar" aria-hidden="true"><rect width="{width}"/></svg>'


def histogram(found: Histogram) -> str:
    """The weights as an outline over the levels of their grid; empty where there is nothing to draw."""
    top, bins = max(found.counts, default=0), len(found.counts)
    if top <= 0 or not found.low < found.high:
        return ""
    heights = "".join(f"V{100 - 100 * n / top:.4g}h1" for n in found.counts)
    places = [bins * (level - found.low) / (found.high - found.low) for level in found.levels]
    start = 0 if len(places) <= TICKED else 90
    grid = "".join(f"M{x:.5g} {start}V100" for x in places if 0 <= x <= bins)
    return (
        f'<svg class="histogram" viewBox="0 0 {bins} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="histogram of the weights over {len(found.levels)} levels">'
        f'<path class="counts" d="M0 100{heights}V100z"/><path class="levels" d="{grid}"/></svg>'
    )
