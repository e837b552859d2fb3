"""Fake quantization: weights on a scheme's grid, still floats, for training with quantization in the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantcli.asking import given, takes_keywords
from quantcli.formats import clipped, code_grid
from quantcli.tensors.api import dequantize, quantize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quantcli.scheme import Scheme


class FakeQuantized(NamedTuple):
    """values: float32, what a reader of the quantized array gets. mask: float32, the straight-through gradient: 1
    where the weight lies inside the range of its codes, 0 where it was clipped. Both in the array's shape."""

    values: NDArray[np.float32]
    mask: NDArray[np.float32]


@takes_keywords
def fake_quantize(array: NDArray[Any], scheme: Scheme | None = None, **asked: Any) -> FakeQuantized:
    """The array on the scheme's grid and its straight-through gradient mask.

    The values are those of `dequantize(quantize(array, scheme))`, to the bit. The gradient of rounding is 0 almost
    everywhere; training takes the gradient at the quantized values for that of the weights instead, except for those
    beyond the outermost code by more than half a step, which small changes leave clipped.

    array: float16, bfloat16, float32 or float64 of any shape. scheme: or, in its place, the keywords of `Scheme`.
    Raises DataError and UsageError as `quantize` does.
    Reference: Bengio, Leonard and Courville, Estimating or Propagating Gradients Through Stochastic Neurons, 2013.

    >>> fake = fake_quantize(np.array([[-1.0, 0.4, 1.0]]), bits=2, calibration="minmax")
    >>> fake.values.tolist(), fake.mask.tolist()
    ([[-1.0, 0.0, 1.0]], [[1.0, 1.0, 1.0]])
    """
    tensor = quantize(array, given(scheme, asked))
    plan, params = tensor.grouping, tensor.params
    weights = np.ascontiguousarray(array).astype(np.float32).reshape(plan.rows, plan.cols)
    with np.errstate(over="ignore"):
        beyond = clipped(weights, params, code_grid(tensor.scheme), plan.group)
    return FakeQuantized(dequantize(tensor), (~beyond).astype(np.float32).reshape(np.shape(array)))
