"""What the inputs of a model's weights were observed to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quantcli import terminal as t
from quantcli.reports.documents import Display, Line, Part, document


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserveReport:
    """Statistics that were written. weights: how many have some; columns, rows: the inputs of each, and how many
    vectors of them there were; without: why others have none; runs: over all samples."""

    source: str
    inputs: str
    output: str
    weights: int
    samples: int
    runs: int
    columns: Mapping[str, int]
    rows: Mapping[str, int]
    without: Mapping[str, str]
    bytes_out: int
    seconds: float
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, `schema_version` first."""
        return document("observe", self)

    def parts(self, display: Display) -> Iterator[Part]:
        """All of it in a line, and the weights where details are asked for."""
        runs = f" in {self.runs} runs" if self.runs > 1 else ""
        what = f"inputs of {self.weights} weights, {self.samples} samples{runs}, {t.size(self.bytes_out)}"
        yield Line(f"{self.source} -> {self.output}: {what}")
        if display.verbose:
            table = t.Table([t.Column("weight"), t.Column("inputs", right=True), t.Column("vectors", right=True)])
            for name, columns in self.columns.items():
                table.add(name, str(columns), str(self.rows[name]))
            yield table
