"""The document of a native file as it is read: checked against the tensors that the file holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from sys import intern
from typing import Any, ClassVar, TypeVar

from quantcli import asking
from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, QuantcliError, VersionError, printable
from quantcli.layouts.native.document import DIGEST_SIZES, VERSION
from quantcli.layouts.native.parts import endings_of, nbytes, outputs, parts
from quantcli.metrics import Metrics
from quantcli.scheme import Scheme, scale_dtype_name
from quantcli.tensors.decided import Kept, Quantized
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import Grouping, grouping_of
from quantcli.tensors.second_order import Output

T = TypeVar("T")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredQuantized:
    """A quantized tensor of a native file: where it came from, what was done to it and what that cost.

    statistics: the digest of the importances, or statistics, its columns had. digest: of the original's bytes. cost:
    what its errors cost in the output of the layer, as those predict it.
    """

    info: TensorInfo
    reason: str
    scheme: Scheme
    grouping: Grouping
    scale_dtype: str
    metrics: Metrics
    minmax_sse: float | None
    digest: str | None
    note: str
    statistics: str | None
    cost: Output | None = None

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
        return outputs(self.decided)

    @property
    def bytes_out(self) -> int:
        """Bytes of all tensors that hold it."""
        return nbytes(self.decided)

    def output(self, part: str) -> TensorInfo:
        """One of the tensors that hold it: `packed`, `scale` and so on."""
        return self.outputs[parts(self.scheme).index(part)]


StoredTensor = StoredKept | StoredQuantized


@dataclass(frozen=True, slots=True)
class Document:
    """The parsed header document of a native file. recipe: the request, as `recipe.request_of` takes it; None where the
    file does not hold it."""

    tool: str
    digest: str
    source_bytes: int
    tensors: tuple[StoredTensor, ...]
    recipe: Mapping[str, Any] | None
    schemes: tuple[Scheme, ...]
    intact: bool | None
    """Whether the header is as it was written, by its own digest; None when it has none, as early versions wrote it."""


def parse(text: str, infos: Sequence[TensorInfo], seal: bool | None) -> Document:
    """The document of a file that holds these tensors, checked against them. seal: whether the digest of the header
    matches (see seal.py). Raises DataError, VersionError for an unchanged header of an unknown version."""
    from quantcli.strict import strict_json

    held = _Held(infos)
    whole = strict_json(text.encode(), "quantcli header")
    try:
        whole = _of_type(whole, dict, "document")
        version = _field(whole, "version", int)
        if not 1 <= version <= VERSION:  # before anything else: another version may arrange the document differently
            shown = printable(str(version), 20)
            raise (DataError if seal is False else VersionError)(
                f"format version {shown} is unknown, this quantcli reads versions up to {VERSION}",
                hint="use a newer quantcli",
            )
        kind = _field(whole, "digest", str)
        if kind not in DIGEST_SIZES:
            raise DataError(f"unknown digest {printable(kind, 40)}")
        schemes = [_scheme(_of_type(values, dict, "scheme")) for values in _field(whole, "schemes", list)]
        tensors = [
            _parse_tensor(name, entry, schemes, held, DIGEST_SIZES[kind])
            for name, entry in _field(whole, "tensors", dict).items()
        ]
        tool, source_bytes = _field(whole, "tool", str), _field(whole, "source_bytes", int)
        recipe = _field(whole, "recipe", dict) if "recipe" in whole else None
    except QuantcliError as error:
        kept = VersionError if isinstance(error, VersionError) else DataError
        raise kept(error.problem, place=["quantcli header", *error.place], hint=error.hint) from None
    extra = held.used.find(0)
    if extra >= 0:
        raise DataError("the quantcli header does not list this tensor", place=[printable(infos[extra].name)])
    tensors = [tensor for _, tensor in sorted(zip(held.first, tensors), key=itemgetter(0))]
    known = whole.keys() <= KEYS - {"check"}
    return Document(
        tool, kind, source_bytes, tuple(tensors), recipe, tuple(schemes), seal if seal is not None or known else False
    )


class _Held:
    """The tensors of a file. used: a byte for each, 1 where it holds one of the document; first: of each of these, in
    the order of the document, the first that holds it."""

    def __init__(self, infos: Sequence[TensorInfo]) -> None:
        self._infos, self._order = infos, {info.name: number for number, info in enumerate(infos)}
        self.used, self.first = bytearray(len(infos)), list[int]()
        self._shapes = dict[tuple[int, ...], tuple[int, ...]]()

    def get(self, name: str) -> TensorInfo | None:
        """A tensor by its name; None where there is none."""
        number = self._order.get(name)
        return None if number is None else self._infos[number]

    def take(self, names: Sequence[str]) -> list[TensorInfo | None]:
        """The tensors that hold one, which are used; None where there is none."""
        numbers = [self._order.get(name) for name in names]
        known = [number for number in numbers if number is not None]
        for number in known:
            self.used[number] = 1
        self.first.append(min(known, default=0))
        return [None if number is None else self._infos[number] for number in numbers]

    def shape(self, dims: Sequence[Any]) -> tuple[int, ...]:
        """A shape of the document, checked; one for all tensors that have it. Raises DataError."""
        found = tuple([_of_type(n, int, "dimension") for n in dims])
        return self._shapes.setdefault(found, found)


KEYS = {"check", "version", "tool", "digest", "source_bytes", "schemes", "recipe", "tensors"}
"""The keys of a document."""

_LIMIT = 2.0**1000
"""Upper limit of the numbers of a document, which keeps comparisons fast."""

_KINDS = {dict: "an object", list: "a list", str: "text", int: "a whole number of 0 or more", float: "0 or more"}


def _of_type(value: Any, kind: type[T], what: str) -> T:
    """A value of a document, checked: JSON may hold anything. Raises DataError."""
    if kind is float and type(value) is int and value < _LIMIT:
        value = float(value)
    if type(value) is not kind or (isinstance(value, (int, float)) and not 0 <= value < _LIMIT):
        raise DataError(f"{what} is {printable(repr(value), 40)}, not {_KINDS[kind]}")
    return value


def _field(values: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """A field of a document, checked. Raises DataError."""
    if key not in values:
        raise DataError(f"{key} is missing")
    return _of_type(values[key], kind, key)


def _scheme(values: dict[str, Any]) -> Scheme:
    """A stored scheme. Raises UsageError for an invalid combination, DataError for values of the wrong type."""
    if "codebook" in values:
        values = {**values, "codebook": tuple(_field(values, "codebook", list))}
    try:
        return asking.Scheme(**values)
    except TypeError:
        raise DataError("a scheme has an unknown key or an invalid value") from None


def _parse_tensor(name: str, entry: Any, schemes: list[Scheme], held: _Held, digits: int) -> StoredTensor:
    try:
        return _checked(name, _of_type(entry, dict, "entry"), schemes, held, digits)
    except QuantcliError as error:
        raise error.within(printable(name)) from None


def _checked(name: str, entry: dict[str, Any], schemes: list[Scheme], held: _Held, digits: int) -> StoredTensor:
    reason = intern(_field(entry, "reason", str))  # one text for many tensors
    note, weighed, digest = (_field(entry, k, str) if k in entry else None for k in ("note", "importance", "digest"))
    if digest is not None and (len(digest) != digits or digest.strip("0123456789abcdef")):
        raise DataError(f"digest is {printable(repr(digest), 40)}, not {digits} hexadecimal digits")
    if "scheme" not in entry:
        kept = held.take([name])[0]
        if kept is None:
            raise DataError("the file does not hold it")
        return StoredKept(info=kept, reason=reason, note=note or "", digest=digest)
    dtype, shape, index = _field(entry, "dtype", str), _field(entry, "shape", list), _field(entry, "scheme", int)
    if dtype not in DTYPES:
        raise DataError(f"unknown dtype {printable(dtype, 40)}")
    if index >= len(schemes):
        raise DataError(f"scheme is {index}, but there are only {len(schemes)}")
    scheme = schemes[index]
    info = TensorInfo(name, DTYPES[dtype].name, held.shape(shape))
    if scheme.calibration == "auto":
        raise DataError("auto is not the scheme of a tensor")
    plan, scale_dtype = _grouped(info, scheme, held)
    wanted = endings_of(len(info.shape), scheme, plan, scale_dtype)
    for (ending, kind), output in zip(wanted, held.take([name + ending for ending, _ in wanted])):
        if output is None or (output.dtype, output.shape) != kind:
            raise DataError(f"{printable(name + ending)} is missing or not {kind[0]} {list(kind[1])}")
    sse, power, largest = (_field(entry, k, float) for k in ("sse", "power", "max_abs_error"))
    metrics = Metrics(sse, power, info.numel, largest, _field(entry, "clipped", int))
    if (why := metrics.contradiction) is not None:
        raise DataError(why)
    minmax = _field(entry, "minmax_sse", float) if "minmax_sse" in entry else None
    return StoredQuantized(
        info=info,
        reason=reason,
        scheme=scheme,
        grouping=plan,
        scale_dtype=scale_dtype,
        metrics=metrics,
        minmax_sse=minmax,
        digest=digest,
        note=note or "",
        statistics=weighed,
        cost=_output(entry),
    )


def _grouped(info: TensorInfo, scheme: Scheme, held: _Held) -> tuple[Grouping, str]:
    """How a tensor is grouped, and the dtype of its scales, by what the file holds of it."""
    plan, name = grouping_of(info.shape, scheme), info.name
    if plan.digits is not None:
        packed = held.get(f"{name}_packed")
        if packed is None or packed.dtype == "I32":
            plan = replace(plan, digits=None)  # as versions of the format before 4 store them
    if scheme.storage != "plain":
        return plan, scale_dtype_name(scheme.scale_dtype)
    scale = held.get(f"{name}_scale" if "scale" in parts(scheme) else f"{name}_codebook")
    known = ("F32", "F16", "BF16", *(["F8_E4M3"] if scheme.shares_levels else []))
    return plan, scale.dtype if scale is not None and scale.dtype in known else "F32"


def _output(entry: dict[str, Any]) -> Output | None:
    """What errors cost in the output of a layer, where an entry tells. Raises DataError for what they cannot."""
    names = ("output_error", "output_plain", "output_power")
    if not any(name in entry for name in names):
        return None
    error, plain, power = (_field(entry, name, float) for name in names)
    if not (0 <= error <= plain and power >= 0):
        raise DataError("what its errors cost in the output contradicts itself")
    return Output(error, plain, power)
