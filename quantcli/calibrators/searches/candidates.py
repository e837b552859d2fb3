"""Candidate scales of the fast search for the least squared error, by bits, group size and effort.

A candidate only serves to find codes, to which the scale is then refit, so few suffice where the error is smooth; with
8 bits and few weights it is jagged, and more candidates help. The tables were made against the exact optimum of normal,
Laplace, Student (4 degrees) and uniform weights and of normal ones with an outlier of 20 deviations (affine: of
absolute normal ones as well): `default` stays within 0.1 dB of it, `best` within 0.03 dB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantcli.kernels.table import MOST_CANDIDATES, MOST_ENDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZES = (24, 48, 96, 192, 768, 2048, 8192)
"""Largest group of each column of the tables below; larger groups use the last column."""

WIDER = 0.5
Table = dict[str, dict[int, list[tuple[int, int, int]]]]

SYMMETRIC: Table = {
    "default": {
        2: [(34, 77, 4), (32, 70, 4), (28, 70, 5), (22, 60, 6),
            (16, 58, 6), (6, 55, 7), (4, 58, 10), (3, 58, 12)],
        3: [(63, 93, 4), (62, 90, 4), (55, 90, 5), (48, 90, 8),
            (40, 88, 7), (14, 82, 10), (9, 82, 11), (6, 82, 13)],
        4: [(77, 110, 8), (77, 102, 8), (76, 100, 8), (75, 96, 8),
            (68, 96, 8), (40, 95, 10), (13, 92, 14), (8, 95, 18)],
        5: [(89, 118, 12), (89, 108, 10), (88, 104, 10), (86, 100, 8),
            (82, 100, 10), (68, 98, 10), (32, 101, 22), (12, 99, 26)],
        6: [(92, 118, 20), (92, 110, 18), (92, 105, 14), (92, 102, 12),
            (91, 101, 10), (86, 101, 10), (72, 102, 16), (16, 100, 32)],
        7: [(96, 118, 32), (97, 111, 24), (97, 107, 20), (96, 103, 12),
            (96, 103, 12), (92, 102, 10), (85, 102, 14), (30, 101, 28)],
        8: [(97, 122, 64), (97, 111, 56), (97, 107, 32), (97, 103, 22),
            (96, 103, 18), (95, 103, 14), (93, 103, 14), (45, 102, 28)],
        9: [(99, 102, 12)] * 8,
    },
    "best": {
        2: [(32, 80, 7), (30, 76, 8), (24, 72, 10), (18, 70, 12),
            (12, 66, 14), (5, 58, 16), (3, 58, 18), (2, 60, 22)],
        3: [(60, 100, 9), (58, 96, 10), (52, 94, 12), (44, 93, 14),
            (34, 93, 18), (13, 86, 22), (7, 86, 26), (5, 86, 28)],
        4: [(76, 118, 12), (75, 110, 12), (74, 103, 12), (68, 100, 14),
            (55, 99, 18), (36, 99, 22), (11, 98, 28), (7, 98, 34)],
        5: [(88, 124, 20), (88, 118, 20), (87, 107, 18), (82, 105, 18),
            (78, 101, 20), (62, 101, 26), (35, 101, 34), (11, 101, 52)],
        6: [(91, 130, 36), (91, 118, 34), (91, 107, 30), (91, 105, 26),
            (88, 104, 24), (80, 102, 24), (60, 102, 36), (14, 102, 72)],
        7: [(96, 132, 60), (96, 117, 56), (96, 111, 44), (96, 107, 34),
            (95, 104, 30), (90, 103, 28), (80, 103, 36), (25, 103, 80)],
        8: [(97, 136, 120), (97, 126, 120), (97, 118, 96), (96, 109, 88),
            (97, 106, 60), (95, 104, 32), (88, 103, 40), (40, 103, 80)],
        9: [(99, 102, 24)] * 8,
    },
}  # fmt: skip
"""Effort -> bits -> least and largest candidate, in percent of the scale that puts the largest weight on the highest
code, and how many."""

AFFINE: Table = {
    "default": {
        1: [(40, 85, 3), (30, 85, 3), (30, 85, 4), (20, 85, 4),
            (15, 85, 4), (4, 85, 5), (3, 85, 6), (2, 85, 8)],
        2: [(55, 105, 5), (55, 105, 5), (50, 100, 5), (45, 95, 5),
            (15, 85, 8), (12, 82, 8), (8, 82, 9), (5, 80, 10)],
        3: [(70, 115, 8), (70, 112, 7), (68, 104, 6), (65, 102, 6),
            (45, 97, 7), (28, 96, 9), (14, 95, 12), (8, 95, 16)],
        4: [(84, 125, 11), (84, 116, 9), (84, 108, 7), (82, 106, 7),
            (72, 101, 7), (45, 100, 10), (24, 100, 14), (14, 100, 20)],
        5: [(92, 135, 18), (92, 116, 14), (92, 110, 10), (91, 105, 8),
            (88, 101, 7), (78, 101, 8), (55, 101, 10), (30, 101, 18)],
        6: [(97, 140, 40), (97, 114, 20), (97, 108, 13), (96, 105, 10),
            (94, 103, 8), (92, 102, 8), (84, 102, 10), (60, 101, 18)],
        7: [(98, 130, 56), (98, 116, 36), (98, 108, 26), (98, 105, 16),
            (97, 103, 10), (96, 102, 8), (92, 102, 10), (80, 102, 18)],
        8: [(98, 135, 110), (98, 120, 88), (98, 110, 48), (98, 106, 28),
            (98, 103, 14), (98, 102, 10), (96, 102, 10), (88, 102, 20)],
        9: [(99, 102, 12)] * 8,
    },
    "best": {
        1: [(30, 90, 5), (25, 90, 5), (20, 90, 6), (18, 90, 6),
            (8, 95, 7), (4, 90, 8), (3, 85, 9), (2, 85, 12)],
        2: [(50, 160, 12), (50, 120, 9), (45, 110, 9), (40, 100, 10),
            (14, 90, 16), (10, 85, 16), (6, 82, 18), (4, 82, 20)],
        3: [(66, 135, 14), (66, 120, 12), (62, 112, 12), (60, 104, 11),
            (40, 102, 15), (15, 100, 26), (10, 98, 26), (6, 98, 32)],
        4: [(82, 135, 20), (82, 118, 17), (82, 110, 14), (80, 108, 14),
            (70, 106, 16), (40, 102, 24), (20, 110, 32), (12, 104, 48)],
        5: [(91, 140, 34), (91, 122, 26), (91, 114, 20), (90, 108, 18),
            (86, 103, 16), (72, 104, 22), (50, 104, 34), (24, 103, 64)],
        6: [(95, 150, 64), (95, 126, 44), (96, 114, 32), (96, 108, 26),
            (93, 104, 18), (90, 103, 18), (80, 103, 26), (50, 103, 60)],
        7: [(97, 140, 110), (97, 122, 80), (97, 113, 60), (97, 107, 44),
            (96, 104, 28), (95, 103, 20), (90, 103, 28), (70, 103, 60)],
        8: [(97, 140, 260), (97, 128, 240), (98, 118, 170), (98, 110, 110),
            (98, 105, 52), (97, 103, 32), (95, 103, 32), (85, 103, 64)],
        9: [(99, 102, 24)] * 8,
    },
}  # fmt: skip
"""Candidates for schemes with zero points, in percent of the scale that spans the range."""

OFFSETS: dict[int, list[tuple[float, float, int]]] = {
    1: [(5, 80, 4), (20, 90, 4), (20, 90, 5), (20, 80, 5), (5, 70, 5), (5, 70, 5), (2, 70, 5), (2, 70, 6)],
    2: [(50, 110, 5), (50, 110, 6), (40, 90, 6), (30, 80, 6), (20, 80, 9), (10, 80, 9), (5, 80, 10), (5, 80, 10)],
    3: [(60, 115, 8), (60, 107, 8), (50, 107, 9), (50, 100, 8), (40, 95, 8), (20, 85, 11), (10, 80, 10), (10, 80, 10)],
    4: [(80, 120, 9), (80, 115, 8), (75, 110, 9), (75, 104, 9), (70, 104, 10), (50, 104, 8), (40, 104, 9),
        (20, 90, 10)],
    5: [(93, 120, 9), (90, 115, 9), (93, 111, 8), (90, 107, 8), (80, 100, 8), (80, 100, 8), (60, 103, 9),
        (40, 107, 10)],
    6: [(95, 120, 10), (97, 115, 10), (97, 106, 9), (97, 106, 8), (95, 103, 8), (90, 100, 8), (85, 100, 9),
        (70, 103, 10)],
    7: [(96, 115, 11), (99, 110, 10), (98.5, 107, 10), (98.5, 105, 9), (98.5, 102, 8), (96, 101, 8), (95, 100, 9),
        (85, 101, 10)],
    8: [(98.5, 115, 12), (99, 107, 9), (99.5, 105, 10), (99.5, 103, 9), (99.5, 102, 8), (98.5, 101, 8), (98.5, 100, 8),
        (96, 100, 10)],
    9: [(99.5, 102, 6)] * 8,
}  # fmt: skip
"""For float offsets: bits -> least and largest place of an end of the range, in percent of the way from the mean to
where it is, and how many. Lower and upper ends are combined, so counts are squared. Against the best of a dense grid,
`default` loses 0.1 dB at most up to 6 bits (mostly 0.02) and at 8 bits in groups of 128 or more, and 0.3 dB at 8 bits
in groups of 16, where it gains 2.4 dB on min-max."""


def ratios(bits: int, n: int, effort: str, *, affine: bool = False, weighted: bool = False) -> NDArray[np.float64]:
    """Candidate scales for groups of n weights, smallest first. weighted: whether some weights count more than others,
    so that the largest may have weight 0: three times as many, over a wider range.

    >>> ratios(4, 128, "fast").round(2).tolist()
    [0.78, 0.85, 0.92]
    """
    rows = (AFFINE if affine else SYMMETRIC)["best" if effort == "best" else "default"]
    low, high, count = rows[min(bits, 9)][int(np.searchsorted(SIZES, n))]
    start = low * (WIDER if weighted else 1)
    if weighted:
        count = min(3 * count, MOST_CANDIDATES)
    place = np.arange(count) / max(count - 1, 1)
    if effort == "fast":  # the middles of three parts or more: the ends of the range serve few groups
        count = max(3, (count + 1) // 3)
        place = (np.arange(count) + 0.5) / count
    return _spaced(start / 100, high / 100, place)


def ends(bits: int, n: int, effort: str, *, weighted: bool = False) -> NDArray[np.float64]:
    """Where the ends of candidate ranges lie between the mean of n weights (0) and the range they have (1).

    >>> ends(4, 128, "fast").round(2).tolist()
    [0.75, 0.82, 0.89, 0.96, 1.04]
    """
    low, high, count = OFFSETS[min(bits, 9)][int(np.searchsorted(SIZES, n))]
    if n <= 8 and bits <= 4:  # hardly more weights than codes: lines through most of them lie far from the range
        low, high, count = 30, 130, 12
    if effort in ("best", "exact"):  # a little wider
        low, high = low - (100 - low) / 5, high + max(high - 100, 0) / 5
    count = {"fast": (count + 1) // 2, "default": count, "best": 2 * count, "exact": MOST_ENDS}[effort]
    if weighted:
        low, count = low * (WIDER if bits <= 4 else 0.75), min(11 * count // 5, MOST_ENDS)
    return _spaced(max(low, 1) / 100, high / 100, np.arange(count) / max(count - 1, 1))


def _spaced(low: float, high: float, place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Candidates from low to high, nearly logarithmic by fourth roots, which are the same on every machine; pow is
    not."""
    least, most = np.sqrt(np.sqrt([low, high]))
    root = least + (most - least) * place
    found: NDArray[np.float64] = root * root * (root * root)
    return found
