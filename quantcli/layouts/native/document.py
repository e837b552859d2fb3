"""The native format: compressed-tensors' `pack-quantized` names and bit stream, plus one JSON header key.

For a tensor X (shape [rows, cols] or more) of b bits the file holds

    X_packed      I32  [rows.., ceil(cols*b/32)]   codes, low one first; u = q + 2^(b-1) when symmetric
    X_scale       F32, F16, BF16 or F8_E4M3                [rows.., groups]; [rows, 1] per channel and per tensor
    X_zero_point  I32  [ceil(rows*b/32), groups]   asymmetric: zero points, the stream running down each column
    X_offset      as X_scale                       asymmetric with a float offset
    X_codebook    F32  [2^b]                       format `codebook`: the levels by code. Learned per channel they are
                                                   [rows.., 2^b] in the scale's dtype; then, and when learned for the
                                                   tensor, there is no X_scale
    X_shape       I64  [dimensions]                the shape of X

and `__metadata__["quantcli"]` a JSON document: version, tool, tile and digest rule, the schemes, the recipe (what was
asked for: numbers of schemes, rules, who is left alone), and for every tensor its reason and, when quantized, scheme,
dtype and error sums. Its first key is `check`, the XXH3-128 of length and JSON of the whole header with 32 zeros in
its own place. Decoding a tensor that compressed-tensors can express needs nothing from that document.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from quantcli import __version__
from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, QuantcliError, VersionError, printable
from quantcli.kernels import row_bytes
from quantcli.metrics import Metrics
from quantcli.scheme import Scheme
from quantcli.stores.seal import UNSEALED
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import Layout, layout
from quantcli.tensors.settle import levels_dtype

if TYPE_CHECKING:
    from quantcli.planning.plan import Plan, TensorPlan

T = TypeVar("T")

KEY = "quantcli"
VERSION = 1
_WIDEST = 1.7976931348623157e308
"""No float prints longer: it holds the place of the sums that are known only at the end."""

DIGEST_SIZES = {"xxh3": 32, "sha256": 64, "none": 0}
"""Digest kinds and the hexadecimal digits of each."""


def zero_shape(plan: Layout) -> tuple[int, int]:
    """(rows, groups) of a tensor's zero points as a matrix."""
    if plan.shared == "columns":
        return 1, math.prod(plan.scale_shape)
    return plan.rows, plan.groups


def parts(scheme: Scheme) -> list[str]:
    """What a tensor of this scheme is stored as, in file order: the ends of the names.

    >>> parts(Scheme(bits=4, symmetric=False))
    ['packed', 'scale', 'zero_point', 'shape']
    """
    found = ["packed"]
    if scheme.family != "learned" or scheme.shares_levels:
        found.append("scale")
    if not scheme.symmetric:
        found.append("offset" if scheme.zero_point == "float" else "zero_point")
    if scheme.format == "codebook":
        found.append("codebook")
    return [*found, "shape"]


def outputs(info: TensorInfo, scheme: Scheme, plan: Layout, scale_dtype: str) -> list[TensorInfo]:
    """The tensors that hold `info` in quantized form."""
    zero_rows, groups = zero_shape(plan)
    tables = (
        (*plan.lead, 1 << scheme.bits) if scheme.family == "learned" and plan.shared is None else (1 << scheme.bits,)
    )
    own = {
        "packed": ("I32", plan.packed_shape(scheme.bits)),
        "scale": (scale_dtype, plan.scale_shape),
        "offset": (scale_dtype, plan.scale_shape),
        "zero_point": ("I32", (row_bytes(zero_rows, scheme.bits) // 4, groups)),
        "codebook": (levels_dtype(scheme, scale_dtype), (1 << scheme.bits,) if scheme.shares_levels else tables),
        "shape": ("I64", (len(info.shape),)),
    }
    return [TensorInfo(f"{info.name}_{part}", *own[part]) for part in parts(scheme)]


@dataclass(frozen=True, slots=True)
class Result:
    """What is known of a tensor once it is written: its errors when quantized, its digest, the scheme that was chosen
    for it, and the squared error min-max would have had (None where that is no question)."""

    metrics: Metrics | None
    digest: str | None
    scheme: Scheme | None = None
    minmax_sse: float | None = None


def _entry(tensor: TensorPlan, schemes: list[dict[str, Any]], result: Result | None, digest: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"reason": tensor.reason}
    if tensor.scheme is not None:
        # Before it is written the longest there can be stands for the scheme and the sums.
        for scheme in (result.scheme,) if result and result.scheme else tensor.scheme.candidates:
            values = scheme.as_dict()
            if values not in schemes:
                schemes.append(values)
        index = schemes.index(values) if result else len(schemes) - 1
        entry |= {"scheme": index, "dtype": tensor.info.dtype, "shape": list(tensor.info.shape)}
        m = result.metrics if result and result.metrics else Metrics(_WIDEST, _WIDEST, 0, _WIDEST, tensor.info.numel)
        entry |= {"sse": m.sse, "power": m.power, "max_abs_error": m.max_abs_error, "clipped": m.clipped}
        minmax = result.minmax_sse if result else _WIDEST
        if minmax is not None and (result or tensor.scheme.rival is not None):
            entry["minmax_sse"] = minmax
    if tensor.importance is not None:
        entry["importance"] = tensor.importance.digest
    if tensor.note:
        entry["note"] = tensor.note
    if DIGEST_SIZES[digest]:
        entry["digest"] = result.digest if result else "0" * DIGEST_SIZES[digest]
    return entry


def document(plan: Plan, digest: str, source_bytes: int, results: Mapping[str, Result] | None = None) -> str:
    """The JSON document of a file made from so many bytes; without results, one at least as long."""
    schemes: list[dict[str, Any]] = []
    recipe = plan.request.as_dict(schemes) if plan.request is not None else None
    entries = {t.info.name: _entry(t, schemes, results[t.info.name] if results else None, digest) for t in plan.tensors}
    whole = {
        "check": UNSEALED,
        "version": VERSION,
        "tool": f"quantcli {__version__}",
        "digest": digest,
        "source_bytes": source_bytes,
        "schemes": schemes,
        **({"recipe": recipe} if recipe is not None else {}),
        "tensors": entries,
    }
    return json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a native file: where it came from, what was done to it and what that cost."""

    info: TensorInfo
    reason: str
    scheme: Scheme | None
    layout: Layout | None
    scale_dtype: str
    metrics: Metrics | None
    minmax_sse: float | None
    digest: str | None
    note: str
    outputs: tuple[TensorInfo, ...]
    importance: str | None = None
    """The digest of the importances its columns had."""

    def output(self, part: str) -> TensorInfo:
        """One of the tensors that hold it: `packed`, `scale` and so on."""
        assert self.scheme is not None
        return self.outputs[parts(self.scheme).index(part)]

    @property
    def bytes_out(self) -> int:
        """Bytes of all tensors that hold it."""
        return sum(o.nbytes for o in self.outputs)


@dataclass(frozen=True, slots=True)
class Document:
    """The parsed header document of a native file. recipe: what was asked for, as `recipe.request_of` takes it; None
    where the file does not say."""

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
    holds (see seal.py). Raises DataError, VersionError for an unchanged header of a version that is not known."""
    from quantcli.stores.safetensors import strict_json

    stored = {i.name: i for i in infos}
    whole = strict_json(text.encode(), "quantcli header")
    try:
        whole = _of_type(whole, dict, "document")
        version = _field(whole, "version", int)
        if version != VERSION:  # before anything else of the document, which another version may arrange otherwise
            raise (DataError if seal is False else VersionError)(
                f"format version {printable(str(version), 20)} is unknown, this quantcli reads version {VERSION}",
                hint="use a newer quantcli",
            )
        kind = _field(whole, "digest", str)
        if kind not in DIGEST_SIZES:
            raise DataError(f"unknown digest {printable(kind, 40)}")
        schemes = [_scheme(_of_type(values, dict, "scheme")) for values in _field(whole, "schemes", list)]
        tensors = [
            _parse_tensor(name, entry, schemes, stored, DIGEST_SIZES[kind])
            for name, entry in _field(whole, "tensors", dict).items()
        ]
        tool, source_bytes = _field(whole, "tool", str), _field(whole, "source_bytes", int)
        recipe = _field(whole, "recipe", dict) if "recipe" in whole else None
    except QuantcliError as error:
        kept = VersionError if isinstance(error, VersionError) else DataError
        raise kept(error.problem, place=["quantcli header", *error.place], hint=error.hint) from None
    used = {o.name for t in tensors for o in t.outputs}
    extra = [n for n in stored if n not in used]
    if extra:
        raise DataError("the quantcli header does not list this tensor", place=[printable(extra[0])])
    order = {name: i for i, name in enumerate(stored)}
    tensors.sort(key=lambda t: min(order[o.name] for o in t.outputs))
    known = whole.keys() <= KEYS - {"check"}
    return Document(
        tool, kind, source_bytes, tuple(tensors), recipe, tuple(schemes), seal if seal is not None or known else False
    )


KEYS = {"check", "version", "tool", "digest", "source_bytes", "schemes", "recipe", "tensors"}
"""All that a document holds."""

_LIMIT = 2.0**1000
"""What numbers of a document are below; comparing with an integer of 1,000 bits takes longer."""

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
    """A stored scheme. Raises UsageError for one that has no meaning, DataError for values of other kinds."""
    if "codebook" in values:
        values = {**values, "codebook": tuple(_field(values, "codebook", list))}
    try:
        return Scheme(**values)
    except TypeError:
        raise DataError("a scheme has a key or a value that no scheme has") from None


def _parse_tensor(
    name: str, entry: Any, schemes: list[Scheme], stored: Mapping[str, TensorInfo], digits: int
) -> StoredTensor:
    try:
        return _checked(name, _of_type(entry, dict, "entry"), schemes, stored, digits)
    except QuantcliError as error:
        raise error.within(printable(name)) from None


def _checked(
    name: str, entry: dict[str, Any], schemes: list[Scheme], stored: Mapping[str, TensorInfo], digits: int
) -> StoredTensor:
    reason = _field(entry, "reason", str)
    note, weighed, digest = (_field(entry, k, str) if k in entry else None for k in ("note", "importance", "digest"))
    if digest is not None and not re.fullmatch(f"[0-9a-f]{{{digits}}}", digest):
        raise DataError(f"digest is {printable(repr(digest), 40)}, not {digits} hexadecimal digits")
    if "scheme" not in entry:
        if name not in stored:
            raise DataError("the file does not hold it")
        return StoredTensor(stored[name], reason, None, None, "", None, None, digest, note or "", (stored[name],))
    dtype, shape, index = _field(entry, "dtype", str), _field(entry, "shape", list), _field(entry, "scheme", int)
    if dtype not in DTYPES:
        raise DataError(f"unknown dtype {printable(dtype, 40)}")
    if index >= len(schemes):
        raise DataError(f"scheme is {index}, and there are only {len(schemes)}")
    info, scheme = TensorInfo(name, dtype, tuple(_of_type(n, int, "dimension") for n in shape)), schemes[index]
    if scheme.calibration == "auto":
        raise DataError("auto is not the scheme of a tensor")
    plan = layout(info.shape, scheme)
    scale = stored.get(f"{name}_scale")
    if "scale" not in parts(scheme):
        scale = stored.get(f"{name}_codebook")
    known = ("F32", "F16", "BF16", *(["F8_E4M3"] if scheme.shares_levels else []))
    scale_dtype = scale.dtype if scale is not None and scale.dtype in known else "F32"
    expected = tuple(outputs(info, scheme, plan, scale_dtype))
    for output in expected:
        if stored.get(output.name) != output:
            raise DataError(f"{printable(output.name)} is missing or not {output.dtype} {list(output.shape)}")
    sse, power, largest = (_field(entry, k, float) for k in ("sse", "power", "max_abs_error"))
    metrics = Metrics(sse, power, info.numel, largest, _field(entry, "clipped", int))
    if (why := metrics.contradiction) is not None:
        raise DataError(why)
    minmax = _field(entry, "minmax_sse", float) if "minmax_sse" in entry else None
    return StoredTensor(info, reason, scheme, plan, scale_dtype, metrics, minmax, digest, note or "", expected, weighed)
