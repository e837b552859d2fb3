"""The decision for a tensor: kept as it is, or quantized. Two records, so that neither has fields of the
other; `scheme` tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from quantcli.errors import DataError
from quantcli.scheme import Scheme
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import Grouping

if TYPE_CHECKING:
    from numpy.typing import NDArray

SLACK = 1e-4
"""How far stored moments may be off, relative to what they are compared with: sums over many samples in float32,
divided and rounded again."""

TINY = 1e-9
"""What is nothing, relative to the mean square of the inputs: a number this small comes of rounding."""


def beyond_squares(moment: float, row: int, column: int, place: Sequence[str]) -> DataError:
    """The error about a moment that no inputs with such mean squares have."""
    problem = f"the moment {moment:g} of inputs {row} and {column} is beyond their mean squares"
    return DataError(problem, place=place, hint="they are means of x x^T, not divided by deviations")


def not_symmetric(row: int, place: Sequence[str]) -> DataError:
    """The error about a matrix with a row that is not its column."""
    return DataError(f"the second moments are not symmetric: row {row} is not its column", place=place)


class SecondMoments(Protocol):
    """The mean of x x^T over the inputs x of a layer."""

    @property
    def place(self) -> list[str]:
        """Where it is stored, for errors."""

    def rows(self, first: int, last: int) -> NDArray[np.float64]:
        """Rows [first, last) of it. Raises DataError for a number that is not finite."""


class ByExpert(Protocol):
    """What is known of the inputs of each expert in one tensor."""

    @property
    def counts(self) -> Sequence[float]:
        """The samples of each, 0 for one that no sample reached."""

    @property
    def correlated(self) -> bool:
        """Whether it says how inputs go together."""

    @property
    def full(self) -> bool:
        """Whether there are second moments of all pairs of inputs."""

    def of(self, expert: int) -> Columns:
        """What is known of one expert's inputs. Raises DataError for a number that is not finite."""


@dataclass(slots=True)
class Factors:
    """What was factored last of a file of statistics, for the next layer, which may have the same inputs: the digest of
    its columns, those of the rows of its moments, and how it is rounded."""

    last: tuple[str, list[str], Any] | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """What is known of the inputs that meet the columns of a tensor's rows: their mean squares (cols,), or other
    importances, and a digest of it all; their means (cols,) and second moments, where there are any; and the number of
    samples, infinite where that is not known. experts: of a tensor of several experts, as many rows each, what is known
    of each; the mean squares are then those of all samples together. factors: what was factored last of the same file.
    """

    values: NDArray[np.float64]
    digest: str
    mean: NDArray[np.float64] | None = None
    matrix: SecondMoments | None = None
    count: float = np.inf
    experts: ByExpert | None = None
    factors: Factors | None = None

    @property
    def correlated(self) -> bool:
        """Whether it says how inputs go together, so that an error can be made good in other columns."""
        if self.experts is not None:
            return self.experts.correlated
        return self.mean is not None or self.matrix is not None

    @property
    def full(self) -> bool:
        """Whether second moments of all pairs of inputs are to be factored."""
        return self.matrix is not None or (self.experts is not None and self.experts.full)

    @property
    def weights(self) -> NDArray[np.float64]:
        """How much the error of each column counts in the search of scales: its mean square and that of all columns.
        The latter stands for what the samples did not show. Without it, weights on inputs that were 0 in all samples
        are rounded to anything: Silero VAD's error at 4 bits in groups of 64 was 0.810 instead of 0.0191.

        >>> Columns(np.array([0.0, 1.0, 5.0]), "").weights.tolist()
        [2.0, 3.0, 7.0]
        """
        return self.values + float(self.values.mean())

    @property
    def typical(self) -> float:
        """The median, or, where more than half of the columns count nothing, the mean."""
        return float(np.median(self.values)) or float(self.values.mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A kept tensor, and why it is kept. reason: a key of `planning.reasons.REASONS`."""

    info: TensorInfo
    reason: str
    note: str = ""
    disposition: ClassVar[str] = "kept"
    scheme: ClassVar[None] = None
    grouping: ClassVar[None] = None
    scale_dtype: ClassVar[str] = ""
    columns: ClassVar[None] = None
    input_scale: ClassVar[None] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A tensor that is quantized: its scheme, the rows that are packed, and the safetensors dtype of its scales.

    columns: what is known of the inputs that meet its columns, where errors are weighted. input_scale: the measured
    scale of the inputs of its layer.
    """

    info: TensorInfo
    reason: str
    scheme: Scheme
    grouping: Grouping
    scale_dtype: str
    note: str = ""
    columns: Columns | None = None
    input_scale: float | None = None
    disposition: ClassVar[str] = "quantized"


Decided = Kept | Quantized
