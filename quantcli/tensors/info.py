"""A tensor as it is named in a file, and a tensor in quantized form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantcli.dtypes import DTYPES
from quantcli.kernels import QuantParams
from quantcli.scheme import Scheme

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quantcli.kernels import Bytes, Floats
    from quantcli.metrics import Metrics
    from quantcli.tensors.rows import Layout


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, safetensors dtype and shape of a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return DTYPES[self.dtype].nbytes(self.numel)


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A tensor in quantized form; `dequantize` needs nothing else.

    packed holds rows of whole 32-bit words, code i of a row in bits [i*b, (i+1)*b).
    """

    info: TensorInfo
    scheme: Scheme
    layout: Layout
    params: QuantParams
    packed: Bytes

    @property
    def codes(self) -> NDArray[Any]:
        """Integers in the tensor's shape: signed for symmetric schemes (int8, or int16 above 8 bits), unsigned for
        asymmetric ones; -1 and +1 for one symmetric bit."""
        from quantcli.tensors import packing

        unsigned = packing.unpack(self.packed, self.layout.rows, self.layout.cols, self.scheme.bits)
        return packing.signed(unsigned, self.scheme).reshape(self.info.shape)

    @property
    def scale(self) -> NDArray[np.float32]:
        """Scale of every group, in the shape the file stores: (rows, groups) for a matrix."""
        return _stored(self.params.scale, self.info.shape, self.scheme, self.layout)

    @property
    def zero_point(self) -> NDArray[Any] | None:
        """Zero point of every group, unsigned integers in the scale's shape (float32 offsets when the scheme has
        `zero_point="float"`); None when symmetric."""
        import numpy as np

        if self.params.zero is None:
            return None
        zero = _stored(self.params.zero, self.info.shape, self.scheme, self.layout)
        return (
            zero if self.scheme.zero_point == "float" else zero.astype(np.uint16 if self.scheme.bits > 8 else np.uint8)
        )

    def dequantize(self) -> NDArray[np.float32]:
        """The decoded weights, float32 in the tensor's shape."""
        from quantcli.tensors.api import dequantize

        return dequantize(self)

    def metrics(self, array: NDArray[Any]) -> Metrics:
        """What decoding costs against the original weights."""
        from quantcli.tensors.api import measure

        return measure(self, array)


def _stored(params: Floats, shape: tuple[int, ...], scheme: Scheme, layout: Layout) -> Floats:
    """Group parameters in the shape a file stores them."""
    import numpy as np

    if layout.shared == "columns":
        from quantcli.tensors.rows import column_repeats

        outer, channels, inner = column_repeats(shape, scheme.axis)
        params = params.reshape(outer, channels, inner)[0, :, 0]
    elif params.shape[0] != layout.rows:
        params = np.broadcast_to(params, (layout.rows, layout.groups))
    return np.ascontiguousarray(params).reshape(layout.scale_shape)
