"""What dequantizing a model has written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from quantcli import terminal as t
from quantcli.reports.documents import Display, Line, Part, document


@dataclass(frozen=True, slots=True, kw_only=True)
class DequantizeReport:
    """A model written in floating point. decoded: tensors that were quantized. warnings: files beside the weights that
    were left out, or copied as they were."""

    source: str
    output: str
    tensors: int
    decoded: int
    bytes_out: int
    seconds: float
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, `schema_version` first."""
        return document("dequantize", self)

    def parts(self, display: Display) -> Iterator[Part]:
        """All of it in a line."""
        what = f"{self.decoded} of {self.tensors} tensors decoded, {t.size(self.bytes_out)}"
        yield Line(f"{self.source} -> {self.output}: {what}")
