"""Mid-rise: equal cells, read at their middle; 0 is not a value.

The range lies in 2^b equal cells. The code is floor(w / step), the value (code + 1/2) * step. A code is an index, not a
value: read back without the half step the error is 6.02 dB worse. All cells are used. With a float offset the cells
start at the smallest weight instead of lying around 0. The largest weight sits on the outer edge of the last cell.

Reference: Gersho and Gray, Vector Quantization and Signal Compression, 1992, section 5.3.
"""

from __future__ import annotations

from quantcli.formats import Format
from quantcli.kernels import INTEGER, OFFSET, CodeGrid
from quantcli.scheme import Scheme


def grid(scheme: Scheme) -> CodeGrid:
    """Unsigned codes of the cells, lowest first."""
    top = (1 << scheme.bits) - 1
    if not scheme.symmetric:
        return CodeGrid(mode=OFFSET, bits=scheme.bits, umin=0, umax=top, midrise=True)
    return CodeGrid(mode=INTEGER, bits=scheme.bits, umin=0, umax=top, zero=1 << (scheme.bits - 1), midrise=True)


def reach(scheme: Scheme) -> float:
    """Cells from 0 to the end, or over the whole range."""
    return 2.0 ** (scheme.bits - 1 if scheme.symmetric else scheme.bits)


PROVIDES = Format(
    family="midrise",
    grid=grid,
    reach=reach,
    bits=(1, 16, 8),
    zero_points=("float",),
)
