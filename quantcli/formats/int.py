"""Integers: evenly spaced values, zero exactly among them.

Symmetric codes stand for (u - 2^(b-1)) * scale, affine ones for (u - zero) * scale with a whole zero, or for
u * scale + offset with a float one. One symmetric bit stands for -scale or +scale. A group of zeros has scale 1 and
codes of value 0 (scale 0 at one bit); a constant or single weight sits on the outermost code.

References: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference, 2018 (affine); Rastegari et al., XNOR-Net, 2016 (one bit). The zero point is added after rounding, as ONNX
QuantizeLinear does.
"""

from __future__ import annotations

from quantcli.formats import Format
from quantcli.kernels import BINARY, INTEGER, OFFSET, CodeGrid
from quantcli.scheme import Scheme


def grid(scheme: Scheme) -> CodeGrid:
    """Unsigned codes of an integer scheme.

    >>> from quantcli import Scheme
    >>> grid(Scheme(bits=4, grid="restricted")).umin, grid(Scheme(bits=4, grid="full")).umin
    (1, 0)
    """
    bits = scheme.bits
    top = (1 << bits) - 1
    if not scheme.symmetric:
        return CodeGrid(mode=OFFSET if scheme.zero_point == "float" else INTEGER, bits=bits, umin=0, umax=top)
    if bits == 1:
        return CodeGrid(mode=BINARY, bits=1, umin=0, umax=1)
    low = 1 if scheme.grid == "restricted" else 0
    return CodeGrid(mode=INTEGER, bits=bits, umin=low, umax=top, zero=1 << (bits - 1))


def reach(scheme: Scheme) -> float:
    """Steps from 0 to the highest code, or over the whole range."""
    return (1 << (scheme.bits - 1)) - 1 if scheme.symmetric else (1 << scheme.bits) - 1


PROVIDES = Format(
    family="int",
    grid=grid,
    reach=reach,
    bits=(1, 16, 4),
    zero_points=("int", "float"),
    calibration="mse",
)
