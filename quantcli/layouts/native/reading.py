"""The document of a native file as it is read: checked against the tensors that the file holds."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from sys import intern
from typing import Any, TypeVar

from quantcli import asking
from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, QuantcliError, VersionError, printable
from quantcli.layouts.native.document import DIGEST_SIZES, VERSION, Result
from quantcli.layouts.native.entries import Document, Entries
from quantcli.layouts.native.parts import endings_of, parts
from quantcli.layouts.native.stored import Shared
from quantcli.metrics import Metrics
from quantcli.scheme import Scheme, scale_dtype_name
from quantcli.stores.compact import Tensors
from quantcli.strict import strict_items, strict_json
from quantcli.tensors.info import Endings, bytes_of
from quantcli.tensors.rows import Grouping, grouping_of
from quantcli.tensors.second_order import Output

T = TypeVar("T")


def parse(text: str, infos: Tensors, seal: bool | None) -> Document:
    """The document of a file that holds these tensors, checked against them. seal: whether the digest of the header
    matches (see seal.py). Raises DataError, VersionError for an unchanged header of an unknown version."""
    head, _, behind = text.partition(_TENSORS)
    if text.isascii() and "\\u" not in text and behind:
        try:  # as it is written: one tensor after another
            return _parsed(*_in_turn(text, head), infos, seal)
        except (QuantcliError, ValueError):
            pass  # what is wrong is told of the whole
    whole = strict_json(text.encode(), "quantcli header")
    try:
        whole = _of_type(whole, dict, "document")
        entries = whole.get("tensors")
        return _parsed(whole, entries.items() if isinstance(entries, dict) else (), infos, seal)
    except QuantcliError as error:
        kept = VersionError if isinstance(error, VersionError) else DataError
        raise kept(error.problem, place=["quantcli header", *error.place], hint=error.hint) from None


_TENSORS, _BEHIND = '"tensors":{', '},"tool":"'


def _in_turn(text: str, head: str) -> tuple[dict[str, Any], Iterator[tuple[str, Any]]]:
    """A document as quantcli writes it, its map of tensors empty, and the items of that in turn. head: what is before
    that map. Raises DataError or ValueError where it is another one."""
    last = text.rfind(_BEHIND)
    before, behind = (
        strict_json(part.encode(), "") for part in (f"{head.removesuffix(',')}}}", f"{{{text[last + 2 :]}")
    )
    if {"tensors", *before} & behind.keys() or "tensors" in before:
        raise ValueError("a key occurs twice")
    return {**before, "tensors": {}, **behind}, strict_items(text, len(head) + len(_TENSORS), last)


def _parsed(whole: dict[str, Any], entries: Iterable[tuple[str, Any]], infos: Tensors, seal: bool | None) -> Document:
    """The document. whole: its values; entries: of its tensors. Raises DataError and VersionError."""
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
    _field(whole, "tensors", dict)
    held = _Held(infos, schemes, DIGEST_SIZES[kind])
    for name, entry in entries:
        held.add(name, entry)
    tool, source_bytes = _field(whole, "tool", str), _field(whole, "source_bytes", int)
    recipe = _field(whole, "recipe", dict) if "recipe" in whole else None
    extra = held.used.find(0)
    if extra >= 0:
        raise DataError("the quantcli header does not list this tensor", place=[printable(infos[extra].name)])
    held.tensors.sort(held.first)
    known = whole.keys() <= KEYS - {"check"}
    return Document(
        tool, kind, source_bytes, held.tensors, recipe, tuple(schemes), seal if seal is not None or known else False
    )


class _Held:
    """The tensors of a file, as its document is read. used: a byte for each, 1 where it holds one of the document;
    tensors: those of the document; first: of each of these, as they were added, the first that holds it."""

    def __init__(self, infos: Tensors, schemes: Sequence[Scheme], digits: int) -> None:
        self._infos, self._schemes, self._digits = infos, schemes, digits
        self.used, self.first, self.tensors = bytearray(len(infos)), array("I"), Entries(infos)
        self._next = dict[str, int]()  # where a tensor with this ending may well be: behind the one before
        self._alike, self._known = dict[_Said, Shared](), dict[tuple[_Said, str, bool], Shared]()

    def add(self, name: str, entry: Any) -> None:
        """Add a tensor by its entry in the document, checked. Raises DataError."""
        try:
            self._add(name, _of_type(entry, dict, "entry"))
        except QuantcliError as error:
            raise error.within(printable(name)) from None

    def _add(self, name: str, entry: dict[str, Any]) -> None:
        reason = intern(_field(entry, "reason", str))  # one text for many tensors
        note, weighed, digest = (_field(entry, k, str) if k in entry else None for k in _TEXTS)
        if digest is not None and (len(digest) != self._digits or digest.strip("0123456789abcdef")):
            raise DataError(f"digest is {printable(repr(digest), 40)}, not {self._digits} hexadecimal digits")
        if "scheme" not in entry:
            number = self._number(name, "")
            if number < 0:
                raise DataError("the file does not hold it")
            self._take([number])
            self.tensors.add(number, (reason, note or ""), Result(None, digest))
            return
        dtype, shape, index = _field(entry, "dtype", str), _field(entry, "shape", list), _field(entry, "scheme", int)
        dims = tuple([_of_type(n, int, "dimension") for n in shape])
        shared, place = self._of_all(name, (reason, note or "", weighed, dtype, index, dims))
        sse, power, largest = [_number(entry, key) for key in _SUMS]
        metrics = Metrics(sse, power, math.prod(dims), largest, _field(entry, "clipped", int))
        if (why := metrics.contradiction) is not None:
            raise DataError(why)
        minmax = _number(entry, "minmax_sse") if "minmax_sse" in entry else None
        self.tensors.add(place, shared, Result(metrics, digest, None, minmax, _output(entry)))

    def _of_all(self, name: str, said: _Said) -> tuple[Shared, int]:
        """What a tensor has in common with others of which the document says the same, and the number of the first of
        those that hold it, which are used."""
        shared = self._alike.get(said)
        place = -1 if shared is None else self._hold(name, shared.endings)
        if shared is None or place < 0:
            shared = self._alike[said] = self._made(name, said)
            place = self._hold(name, shared.endings)
        if place < 0:
            for ending, kind in shared.endings:
                number = self._number(name, ending)
                if number < 0 or self._infos.kind(number) != kind:
                    raise DataError(f"{printable(name + ending)} is missing or not {kind[0]} {list(kind[1])}")
        return shared, place

    def _made(self, name: str, said: _Said) -> Shared:
        reason, note, weighed, dtype, index, dims = said
        if dtype not in DTYPES:
            raise DataError(f"unknown dtype {printable(dtype, 40)}")
        if index >= len(self._schemes):
            raise DataError(f"scheme is {index}, but there are only {len(self._schemes)}")
        scheme = self._schemes[index]
        if scheme.calibration == "auto":
            raise DataError("auto is not the scheme of a tensor")
        plan, scale_dtype = self._grouped(name, dims, scheme)
        endings = endings_of(len(dims), scheme, plan, scale_dtype)
        made = Shared(
            dtype=DTYPES[dtype].name,
            shape=dims,
            reason=reason,
            note=note,
            scheme=scheme,
            grouping=plan,
            scale_dtype=scale_dtype,
            statistics=weighed,
            endings=endings,
            bytes_out=bytes_of(endings),
        )
        return self._known.setdefault((said, scale_dtype, plan.digits is None), made)

    def _grouped(self, name: str, shape: tuple[int, ...], scheme: Scheme) -> tuple[Grouping, str]:
        """How a tensor is grouped, and the dtype of its scales, by what the file holds of it."""
        plan = grouping_of(shape, scheme)
        if plan.digits is not None and self._dtype(name, "_packed") in (None, "I32"):
            plan = replace(plan, digits=None)  # as versions of the format before 4 store them
        if scheme.storage != "plain":
            return plan, scale_dtype_name(scheme.scale_dtype)
        found = self._dtype(name, "_scale" if "scale" in parts(scheme) else "_codebook")
        known = ("F32", "F16", "BF16", *(["F8_E4M3"] if scheme.shares_levels else []))
        return plan, found if found in known else "F32"

    def _dtype(self, name: str, ending: str) -> str | None:
        """The dtype of one of the tensors that hold one; None where there is none."""
        number = self._number(name, ending)
        return None if number < 0 else self._infos.kind(number)[0]

    def _number(self, name: str, ending: str) -> int:
        """The number of one of the tensors that hold one; -1 where there is none."""
        return self._infos.names.find(name + ending, self._next.get(ending, -1))

    def _hold(self, name: str, endings: Endings) -> int:
        """Use the tensors that hold one, where the file has it as these: the number of the first of them; else -1."""
        numbers = []
        for ending, kind in endings:
            number = self._number(name, ending)
            if number < 0 or self._infos.kind(number) != kind:
                return -1
            numbers.append(number)
            self._next[ending] = number + 1
        self._take(numbers)
        return numbers[0]

    def _take(self, numbers: Sequence[int]) -> None:
        """Use the tensors that hold one."""
        for number in numbers:
            self.used[number] = 1
        self.first.append(min(numbers))


_Said = tuple[str, str, "str | None", str, int, tuple[int, ...]]
"""What the document says of many tensors: reason, note, statistics, dtype, scheme and shape."""

_TEXTS, _SUMS = ("note", "importance", "digest"), ("sse", "power", "max_abs_error")

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


def _number(values: Mapping[str, Any], key: str) -> float:
    """The same of a number: most are floats."""
    value = values.get(key)
    return value if type(value) is float and 0 <= value < _LIMIT else _field(values, key, float)


def _scheme(values: dict[str, Any]) -> Scheme:
    """A stored scheme. Raises UsageError for an invalid combination, DataError for values of the wrong type."""
    if "codebook" in values:
        values = {**values, "codebook": tuple(_field(values, "codebook", list))}
    try:
        return asking.Scheme(**values)
    except TypeError:
        raise DataError("a scheme has an unknown key or an invalid value") from None


_OUTPUTS = ("output_error", "output_plain", "output_power")


def _output(entry: dict[str, Any]) -> Output | None:
    """What errors cost in the output of a layer, where an entry tells. Raises DataError for what they cannot."""
    if entry.keys().isdisjoint(_OUTPUTS):
        return None
    error, plain, power = (_field(entry, name, float) for name in _OUTPUTS)
    if not (0 <= error <= plain and power >= 0):
        raise DataError("what its errors cost in the output contradicts itself")
    return Output(error, plain, power)
