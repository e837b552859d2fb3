"""What config.json says of a native folder: compressed-tensors where that is what it holds, else nothing.

transformers and vLLM then load it. diffusers loads no such layout, and would fill the weights it does not find at
random with no more than a line in a log: a method that it does not know makes it refuse the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantcli.architectures import Architecture
from quantcli.layouts.compressed_tensors.write import quantization_config as of_compressed_tensors
from quantcli.layouts.writer import Weight

OWN: dict[str, Any] = {"quant_method": "quantcli"}
"""What loaders refuse to load."""


def quantization_config(tensors: Sequence[Weight], model: Architecture) -> tuple[dict[str, Any] | None, str]:
    """The quantization_config of a native model, or the reason why there is none."""
    return (OWN, "") if model.library == "diffusers" else of_compressed_tensors(tensors, model)
