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

__version__ = "0.3.0.dev0"

# Not imported from typing, which takes as long as Python to start: until `main` begins, Ctrl-C ends in a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from quantcli.api import compare, merge, plan, quantize_file
    from quantcli.asking import Scheme
    from quantcli.errors import DataError, QuantcliError, UsageError
    from quantcli.layouts.native.model import Model, Tensor, open
    from quantcli.tensors.api import QuantizedTensor, dequantize, quantize
    from quantcli.tensors.fake import fake_quantize

__all__ = [
    "DataError",
    "Model",
    "QuantcliError",
    "QuantizedTensor",
    "Scheme",
    "Tensor",
    "UsageError",
    "__version__",
    "compare",
    "dequantize",
    "fake_quantize",
    "merge",
    "open",
    "plan",
    "quantize",
    "quantize_file",
]

_HOMES = {
    "DataError": "errors.DataError",
    "Model": "layouts.native.model.Model",
    "QuantcliError": "errors.QuantcliError",
    "QuantizedTensor": "tensors.api.QuantizedTensor",
    "Scheme": "asking.Scheme",
    "Tensor": "layouts.native.model.Tensor",
    "UsageError": "errors.UsageError",
    "compare": "api.compare",
    "dequantize": "tensors.api.dequantize",
    "fake_quantize": "tensors.fake.fake_quantize",
    "merge": "api.merge",
    "open": "layouts.native.model.open",
    "plan": "api.plan",
    "quantize": "tensors.api.quantize",
    "quantize_file": "api.quantize_file",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `quantcli --help` must not wait for numpy."""
    if name in _HOMES:
        import importlib

        module, _, inside = _HOMES[name].rpartition(".")
        return getattr(importlib.import_module(f"quantcli.{module}"), inside)
    raise AttributeError(f"module 'quantcli' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, those not imported yet too, so that dir() and Tab show them."""
    return sorted(__all__)
