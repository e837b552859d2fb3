"""quantcli: quantize model weight files, and say what it cost.

The Python interface is `Scheme`, `quantize`, `dequantize`, `fake_quantize` and `open`:

>>> import numpy as np
>>> import quantcli
>>> weights = np.linspace(-1, 1, 256, dtype=np.float32).reshape(2, 128)
>>> quantized = quantcli.quantize(weights, quantcli.Scheme(bits=4, group_size=64))
>>> quantized.codes.dtype, quantized.scale.shape
(dtype('int8'), (2, 2))
>>> round(quantized.metrics(weights).sqnr_db)
26
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from quantcli.errors import DataError, QuantcliError, UsageError
    from quantcli.layouts.native.model import Model, Tensor, open
    from quantcli.scheme import Scheme
    from quantcli.tensors.api import dequantize, quantize
    from quantcli.tensors.fake import fake_quantize
    from quantcli.tensors.info import QuantizedTensor

__all__ = [
    "DataError",
    "Model",
    "QuantcliError",
    "QuantizedTensor",
    "Scheme",
    "Tensor",
    "UsageError",
    "__version__",
    "dequantize",
    "fake_quantize",
    "open",
    "quantize",
]

_HOMES = {
    "DataError": "errors",
    "QuantcliError": "errors",
    "UsageError": "errors",
    "QuantizedTensor": "tensors.info",
    "Model": "layouts.native.model",
    "Scheme": "scheme",
    "Tensor": "layouts.native.model",
    "dequantize": "tensors.api",
    "fake_quantize": "tensors.fake",
    "quantize": "tensors.api",
    "open": "layouts.native.model",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `quantcli --help` must not wait for numpy."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"quantcli.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'quantcli' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, those not imported yet too, so that dir() and Tab show them."""
    return sorted(__all__)
