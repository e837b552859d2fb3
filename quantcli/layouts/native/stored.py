"""What a native file says of its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from quantcli.layouts.native.document import Result
from quantcli.metrics import Metrics
from quantcli.scheme import Scheme
from quantcli.tensors.decided import Kept, Quantized
from quantcli.tensors.info import Endings, TensorInfo
from quantcli.tensors.rows import Grouping
from quantcli.tensors.second_order import Output

if TYPE_CHECKING:
    from quantcli.layouts.native.results import Results


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKept:
    """A kept tensor of a native file, and why it was kept."""

    info: TensorInfo
    reason: str
    note: str = ""
    digest: str | None = None
    scheme: ClassVar[None] = None
    grouping: ClassVar[None] = None
    scale_dtype: ClassVar[str] = ""
    metrics: ClassVar[None] = None
    minmax_sse: ClassVar[None] = None
    statistics: ClassVar[None] = None
    cost: ClassVar[None] = None

    @property
    def result(self) -> Result:
        """Its digest, where a quantized tensor has errors and costs too."""
        return Result(None, self.digest)

    @property
    def decided(self) -> Kept:
        """The decision for it."""
        return Kept(info=self.info, reason=self.reason, note=self.note)

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The tensor itself."""
        return (self.info,)

    @property
    def bytes_out(self) -> int:
        """Bytes of it."""
        return self.info.nbytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shared:
    """What many quantized tensors of a native file have in common. dtype, shape: of the original; endings: of the names
    of the tensors that hold one, with their dtypes and shapes; bytes_out: of all these."""

    dtype: str
    shape: tuple[int, ...]
    reason: str
    note: str
    scheme: Scheme
    grouping: Grouping
    scale_dtype: str
    statistics: str | None
    endings: Endings
    bytes_out: int


@dataclass(slots=True)
class StoredQuantized:
    """A quantized tensor of a native file: where it came from, what was done to it and what that cost.

    statistics: the digest of the importances, or statistics, its columns had. results, number: where its errors and its
    digest are.
    """

    info: TensorInfo
    shared: Shared
    results: Results
    number: int
    _result: Result | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def result(self) -> Result:
        """Errors, digest and costs, which are made of bytes when one of them is first asked for."""
        if self._result is None:
            self._result = self.results.at(self.number)
            assert self._result is not None
        return self._result

    @property
    def metrics(self) -> Metrics:
        """Its errors."""
        found = self.result.metrics
        assert found is not None
        return found

    @property
    def minmax_sse(self) -> float | None:
        """The squared error that min-max would have had."""
        return self.result.minmax_sse

    @property
    def digest(self) -> str | None:
        """The digest of the original's bytes."""
        return self.result.digest

    @property
    def cost(self) -> Output | None:
        """What its errors cost in the output of the layer."""
        return self.result.output

    @property
    def reason(self) -> str:
        """Why it was quantized so."""
        return self.shared.reason

    @property
    def note(self) -> str:
        """A note for people."""
        return self.shared.note

    @property
    def scheme(self) -> Scheme:
        """How it is quantized."""
        return self.shared.scheme

    @property
    def grouping(self) -> Grouping:
        """The rows that are packed."""
        return self.shared.grouping

    @property
    def scale_dtype(self) -> str:
        """The dtype of its scales."""
        return self.shared.scale_dtype

    @property
    def statistics(self) -> str | None:
        """The digest of what was known of its columns."""
        return self.shared.statistics

    @property
    def decided(self) -> Quantized:
        """The decision for it, without what is known of its columns."""
        return Quantized(
            info=self.info,
            reason=self.reason,
            scheme=self.scheme,
            grouping=self.grouping,
            scale_dtype=self.scale_dtype,
            note=self.note,
        )

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The tensors that hold it."""
        return tuple([TensorInfo(self.info.name + ending, *kind) for ending, kind in self.shared.endings])

    @property
    def bytes_out(self) -> int:
        """Bytes of all tensors that hold it."""
        return self.shared.bytes_out

    def output(self, part: str) -> TensorInfo:
        """One of the tensors that hold it: `packed`, `scale` and so on."""
        ending = f"_{part}"
        return TensorInfo(self.info.name + ending, *next(kind for own, kind in self.shared.endings if own == ending))


StoredTensor = StoredKept | StoredQuantized
