"""The document of a native file: what was done to each of its tensors, with which error.

It is JSON under `__metadata__["quantcli"]`: version, tool, tile and digest rule, the schemes, the recipe (the
request: indices of schemes, rules, exclusions), and for every tensor its reason and, when quantized, scheme, dtype and
error sums. Its first key is `check`, the XXH3-128 of length and JSON of the whole header with 32 zeros in
its own place. Decoding a tensor that compressed-tensors can express needs nothing from this document. It is written
here and read in `stored`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from itertools import islice
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Protocol

from quantcli import __version__, asking
from quantcli.asking import candidates, rival
from quantcli.metrics import Metrics
from quantcli.scheme import MAX_GROUP, Scheme
from quantcli.stores.seal import UNSEALED
from quantcli.tensors.decided import Decided
from quantcli.tensors.digits import digits_of
from quantcli.tensors.second_order import Output

KEY = "quantcli"
VERSION = 4
"""The newest version of the format. 2 added scales of one byte for floats, blocks, and how inputs are quantized; 3
second-order rounding, and sum-preserving rounding to levels; 4 codes of codebooks as the digits of numbers."""
_WIDEST = 1.7976931348623157e308
"""The longest text of a float: a placeholder for the sums that are known only at the end."""

DIGEST_SIZES = {"xxh3": 32, "sha256": 64, "none": 0}
"""Digest kinds and the hexadecimal digits of each."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a written tensor: its errors when quantized, its digest, the scheme that was chosen for it, and the
    squared error min-max would have had (None where that is not compared). output: what its errors cost in the output
    of the layer, where its inputs are known."""

    metrics: Metrics | None
    digest: str | None
    scheme: Scheme | None = None
    minmax_sse: float | None = None
    output: Output | None = None


class _Schemes:
    """The schemes of a document as plain values, and where each is among them."""

    def __init__(self) -> None:
        self.values: list[dict[str, Any]] = []
        self._places: dict[Scheme, int] = {}

    def place_of(self, tensor: Decided, results: Mapping[str, Result] | None) -> int:
        """The place of the scheme of a tensor, which is added where it is missing; before there are results, one that
        has as many digits at least."""
        if tensor.scheme is None:
            return 0
        known = candidates(tensor.scheme)
        if results is not None and len(known) > 1 and (chosen := results[tensor.info.name].scheme) is not None:
            known = (chosen,)
        places = [self._place(scheme) for scheme in known]
        return len(self.values) - 1 if results is None else places[-1]

    def _place(self, scheme: Scheme) -> int:
        if scheme not in self._places:
            values = scheme.as_dict()
            if values not in self.values:
                self.values.append(values)
            self._places[scheme] = self.values.index(values)
        return self._places[scheme]


def _entry(tensor: Decided, place: int, result: Result | None, digest: str) -> str:
    """The entry of a tensor. Before it is written, the longest possible values stand for the scheme and the sums."""
    weighed = None if tensor.columns is None else tensor.columns.digest
    scheme = tensor.scheme
    dtype, shape = ("", ()) if scheme is None else (tensor.info.dtype, tensor.info.shape)
    first, note, last = _in_common(tensor.reason, tensor.note, weighed, place, dtype, shape)
    if result is None:
        body = _unwritten(scheme, first, note, last, DIGEST_SIZES[digest], tensor.info.numel)
        return f"{quoted(tensor.info.name)}:{{{body}}}"
    told = ""
    if DIGEST_SIZES[digest]:
        told = f'"digest":{"null" if result.digest is None else quoted(result.digest)},'
    if scheme is None:
        return f"{quoted(tensor.info.name)}:{{{told}{first}{note}{last}}}"
    m = result.metrics
    assert m is not None
    other = "" if result.minmax_sse is None else f'"minmax_sse":{_number(result.minmax_sse)},'
    cost = "" if result.output is None else _costs(*(_number(v) for v in astuple(result.output)))
    return (
        f'{quoted(tensor.info.name)}:{{"clipped":{m.clipped},{told}{first}"max_abs_error":{_number(m.max_abs_error)},'
        f'{other}{note}{cost}"power":{_number(m.power)},{last}"sse":{_number(m.sse)}}}'
    )


@lru_cache(maxsize=4096)
def _in_common(
    reason: str, note: str, weighed: str | None, place: int, dtype: str, shape: tuple[int, ...]
) -> tuple[str, str, str]:
    """What the entries of many tensors have in common, between what differs: keys are in order. dtype, shape: of a
    quantized tensor; weighed: the digest of its importances."""
    imported = "" if weighed is None else f'"importance":{quoted(weighed)},'
    noted, why = f'"note":{quoted(note)},' if note else "", f'"reason":{quoted(reason)}'
    if not dtype:
        return imported, noted, why
    dims = ",".join(map(str, shape))
    return f'"dtype":"{dtype}",{imported}', noted, f'{why},"scheme":{place},"shape":[{dims}],'


@lru_cache(maxsize=4096)
def _unwritten(scheme: Scheme | None, first: str, note: str, last: str, digits: int, numel: int) -> str:
    """The longest that an entry may become, between what tensors have in common."""
    told = f'"digest":{quoted("0" * digits)},' if digits else ""
    if scheme is None:
        return f"{told}{first}{note}{last}"
    other = "" if rival(scheme) is None else f'"minmax_sse":{_WIDEST},'
    cost = _costs(*(str(_WIDEST),) * 3) if scheme.second_order else ""
    largest = f'"max_abs_error":{_WIDEST},{other}{note}{cost}"power":{_WIDEST},{last}"sse":{_WIDEST}'
    return f'"clipped":{numel},{told}{first}{largest}'


def _costs(error: str, plain: str, power: str) -> str:
    """What errors cost in the output of the layer, as entries have it."""
    return f'"output_error":{error},"output_plain":{plain},"output_power":{power},'


def _number(value: float) -> str:
    """A number as JSON has it."""
    if not value < math.inf:
        raise ValueError(f"{value} is not JSON")
    return float.__repr__(float(value))


def _version(scheme: Scheme) -> int:
    """The first version of the format that has a scheme."""
    if scheme.format == "codebook" and digits_of(scheme.level_count, scheme.bits, MAX_GROUP) is not None:
        return 4
    if scheme.second_order or (scheme.preserves_sums and scheme.family != "int"):
        return 3
    older = scheme.storage == "plain" and scheme.granularity != "block" and scheme.activations == "none"
    return 1 if older else 2


class Request(Protocol):
    """The request for a model, as stored in a file."""

    def as_dict(self, schemes: list[dict[str, Any]]) -> dict[str, Any]:
        """Plain values; schemes by their index in `schemes`, to which they are added."""


def document(
    tensors: Sequence[Decided],
    request: Request | None,
    digest: str,
    source_bytes: int,
    results: Mapping[str, Result] | None = None,
) -> Iterator[str]:
    """The JSON document of a file of these tensors, in pieces; without results, one at least as long."""
    schemes = _Schemes()
    recipe = request.as_dict(schemes.values) if request is not None else None
    places = [schemes.place_of(t, results) for t in tensors]
    ordered = sorted(range(len(tensors)), key=lambda at: tensors[at].info.name)
    before = {
        "check": UNSEALED,
        "digest": digest,
        **({"recipe": recipe} if recipe is not None else {}),
        "schemes": schemes.values,
        "source_bytes": source_bytes,
    }
    after = {
        "tool": f"quantcli {__version__}",
        "version": max((_version(asking.Scheme(**values)) for values in schemes.values), default=1),
    }
    yield f'{_text(before)[:-1]},"tensors":{{'
    entries = (
        _entry(tensors[at], places[at], results[tensors[at].info.name] if results else None, digest) for at in ordered
    )
    comma = ""
    while some := ",".join(islice(entries, _AT_ONCE)):
        yield comma + some
        comma = ","
    yield f"}},{_text(after)[1:]}"


_AT_ONCE = 1024
"""Tensors whose entries are in a piece."""


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
