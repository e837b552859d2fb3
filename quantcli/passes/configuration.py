"""What config.json says of a native folder: compressed-tensors where that is what it holds, else something at which
loaders stop.

Without that transformers and diffusers would fill the weights they do not find at random, with no more than a line in a
log. diffusers stops at a method that it does not know. transformers passes over such a one, and stops at none, as vLLM
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantcli.architectures import Architecture
from quantcli.layouts.compressed_tensors.write import quantization_config as of_compressed_tensors
from quantcli.layouts.writer import Weight

OWN: dict[str, Any] = {"quant_method": "quantcli"}
"""What diffusers refuses to load."""

NO_METHOD: dict[str, Any] = {"quant_method": None, "written_by": "quantcli"}
"""What transformers and vLLM refuse to load."""


def quantization_config(tensors: Sequence[Weight], model: Architecture) -> tuple[dict[str, Any] | None, str]:
    """The quantization_config with which a native model is loaded, or the reason why there is none."""
    return (OWN, "") if model.library == "diffusers" else of_compressed_tensors(tensors, model)


def refused(model: Architecture) -> dict[str, Any]:
    """What config.json gets where there is no such configuration; nothing for models that transformers does not
    know."""
    return {"quantization_config": NO_METHOD} if model.known else {}
