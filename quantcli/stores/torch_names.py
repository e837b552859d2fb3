"""The names that a state dict of PyTorch refers to, and what each stands for here: a few plain records.

Tensors are a place in a storage; storages are bytes of the file that are read later. Nothing else is made of a pickle:
what training runs keep beside a model stays a record of its class.

Reference: torch/_utils.py and torch/_tensor.py of PyTorch 2.13, `_rebuild_tensor_v2` and `Tensor.__reduce_ex__`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, printable
from quantcli.stores.pickles import Function, Object, Unknown, checked_key, said
from quantcli.stores.strided import merged, span

_MOST_AXES = 64
"""Of a tensor of torch."""
_LARGEST = 1 << 62

_DTYPES = {
    "float32": "F32", "float": "F32", "float64": "F64", "double": "F64", "float16": "F16", "half": "F16",
    "bfloat16": "BF16", "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "short": "I16",
    "uint16": "U16", "int32": "I32", "int": "I32", "uint32": "U32", "int64": "I64", "long": "I64", "uint64": "U64",
    "complex64": "C64", "cfloat": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
"""torch's dtypes and those of safetensors."""
_STORAGES = {
    "Float": "F32", "Double": "F64", "Half": "F16", "BFloat16": "BF16", "Bool": "BOOL", "Byte": "U8", "Char": "I8",
    "Short": "I16", "Int": "I32", "Long": "I64", "ComplexFloat": "C64",
}  # fmt: skip
"""torch's classes of storages and the dtypes of their elements."""
UNTYPED = "U8"
"""The dtype of a storage of bytes."""

SAVE = "save its tensors with torch.save(model.state_dict(), FILE)"
_REFUSED = {
    "torch._utils._rebuild_qtensor": "quantized tensors of torch",
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch._utils._rebuild_nested_tensor": "nested tensors",
    "torch._utils._rebuild_meta_tensor_no_storage": "tensors without data, as on the meta device,",
    "torch.ComplexDoubleStorage": "complex numbers of 128 bits",
    "torch.float4_e2m1fn_x2": "4-bit floats of torch",
}


@dataclass(frozen=True, slots=True)
class Storage:
    """The bytes that tensors share: their key in the file, dtype and number of elements."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True, slots=True)
class _Class:
    """A class of storages: the dtype of their elements, U8 where it is not known."""

    dtype: str


@dataclass(frozen=True, slots=True)
class _DType:
    """A dtype of torch by safetensors' name."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tensor:
    """A tensor of a pickle: what it is, and which elements of which storage; offset and strides in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in C order."""
        return DTYPES[self.dtype].nbytes(math.prod(self.shape))


def _counts(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > _MOST_AXES:
        raise DataError(f"a tensor has {said(value)} as its {what}")
    if not all(type(n) is int and 0 <= n < _LARGEST for n in value):
        raise DataError(f"the {what} of a tensor is not of whole numbers of 0 or more")
    return value


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: str | None = None) -> Tensor:
    """The tensor of these arguments. Raises DataError where it does not lie in its storage."""
    if not isinstance(storage, Storage):
        raise DataError("a tensor has no storage")
    shape, strides = _counts(size, "shape"), _counts(stride, "strides")
    (begin,) = _counts((offset,), "offset")
    if len(shape) != len(strides):
        raise DataError(f"a tensor of {len(shape)} axes has {len(strides)} strides")
    dtype = dtype or storage.dtype
    item = DTYPES[dtype].bits // 8
    there = storage.numel * (DTYPES[storage.dtype].bits // 8)
    needed = (begin + span(merged(shape, strides))) * item if all(shape) else 0
    if needed > there:
        problem = f"a tensor of shape {printable(str(shape), 100)} needs {needed} bytes of a storage of {there}"
        raise DataError(problem)
    return Tensor(storage=storage, dtype=dtype, offset=begin, shape=shape, strides=strides)


def _no_hooks(hooks: Any) -> None:
    if hooks:
        raise DataError("a tensor has hooks, which are programs")


def _plain(metadata: Any) -> None:
    """Raise DataError for a tensor whose numbers are to be changed when they are read."""
    if isinstance(metadata, dict) and any(metadata.values()):
        what = ", ".join(sorted(printable(str(key), 40) for key, value in metadata.items() if value))
        raise DataError(
            f"a tensor is stored in a lazy form ({what})", hint="save it after resolve_conj().resolve_neg()"
        )
    if metadata is not None and not isinstance(metadata, dict):
        raise DataError(f"a tensor has {said(metadata)} as its metadata")


def _v1(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    return _tensor(storage, offset, size, stride)


def _v2(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, metadata: Any = None) -> Tensor:
    _no_hooks(hooks)
    _plain(metadata)
    return _tensor(storage, offset, size, stride)


def _v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Tensor:
    _no_hooks(hooks)
    _plain(metadata)
    if not isinstance(dtype, _DType):
        raise DataError(f"a tensor has {said(dtype)} as its dtype")
    return _tensor(storage, offset, size, stride, dtype.name)


def _parameter(data: Any, grad: Any, hooks: Any) -> Tensor:
    _no_hooks(hooks)
    if not isinstance(data, Tensor):
        raise DataError(f"a parameter holds {said(data)}")
    return data


def _with_state(data: Any, grad: Any, hooks: Any, state: Any) -> Tensor:
    if state:
        raise DataError("a parameter has attributes of its own", hint=SAVE)
    return _parameter(data, grad, hooks)


def _ordered(items: Any = ()) -> dict[Any, Any]:
    """The dict of an OrderedDict, which Python 2 pickles with a list of its items, and Python 3 empty, to be filled."""
    if items == ():
        return {}
    if not isinstance(items, list):
        raise DataError(f"an OrderedDict is made of {said(items)}")
    for pair in items:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(f"an OrderedDict is made of a list with {said(pair)} in it, not of pairs alone")
    made = {checked_key(key): value for key, value in items}
    items[:] = [None]  # a second dict of the same list is an error: a million of a million items would take for ever
    return made


def _size(value: Any = ()) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        raise DataError(f"a torch.Size is made of {said(value)}")
    return value


def _defaults(factory: Any = None, items: Any = ()) -> dict[Any, Any]:
    if items:
        raise DataError("a defaultdict is made of a list, which torch.save does not do")
    return {}


def _record(kind: str) -> Callable[..., Object]:
    """A function whose call leaves a record: of a class that a pickle makes by a call, of arguments of any kind."""
    return lambda *args: Object(kind, list(args))


_MADE_BY_CALL = {
    "torch.device": "torch.device",
    "numpy.dtype": "numpy.dtype",
    **{f"numpy.{core}.multiarray._reconstruct": "numpy.ndarray" for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": "a number of numpy" for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": "numpy.ndarray" for core in ("core", "_core")},
    "_codecs.encode": "bytes",
    **{f"{module}.bytes": "bytes" for module in ("builtins", "__builtin__")},
    **{f"{module}.set": "set" for module in ("builtins", "__builtin__")},
    **{f"{module}.frozenset": "frozenset" for module in ("builtins", "__builtin__")},
    **{f"pathlib.{kind}Path": f"pathlib.{kind}Path" for kind in ("Posix", "PurePosix", "Windows", "PureWindows")},
    "datetime.datetime": "datetime.datetime",
    "datetime.timedelta": "datetime.timedelta",
    "collections.deque": "collections.deque",
}
"""Functions that pickles of training runs call, and what comes of them, which is left out."""

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _defaults,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _v1,
    "torch._utils._rebuild_tensor_v2": _v2,
    "torch._utils._rebuild_tensor_v3": _v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _with_state,
    **{name: _record(kind) for name, kind in _MADE_BY_CALL.items()},
}


_KNOWN: Mapping[str, Any] = {
    **{name: Function(name, call) for name, call in _FUNCTIONS.items()},
    **{f"torch.{name}": _DType(dtype) for name, dtype in _DTYPES.items()},
    **{f"torch.{name}Storage": _Class(dtype) for name, dtype in _STORAGES.items()},
    **dict.fromkeys(("torch.UntypedStorage", "torch.storage.UntypedStorage"), _Class(UNTYPED)),
    **{name: DataError(f"{what} are not supported ({name})") for name, what in _REFUSED.items()},
}


def named(name: str) -> Any:
    """What a name of a state dict stands for; for what is not supported the DataError with the reason; None for any
    other."""
    return _KNOWN.get(name)


def storage_of(id: Any) -> Storage:
    """The storage that a pickle refers to by what torch.save calls a persistent id. Raises DataError."""
    if not isinstance(id, tuple) or len(id) not in (5, 6) or id[0] != "storage":
        raise DataError("it refers to something outside that is not a storage")
    _, kind, key, _, numel = id[:5]
    if isinstance(kind, Unknown):
        raise DataError(f"a storage is of {printable(kind.name, 200)}, which is not supported")
    if not isinstance(kind, _Class) or not isinstance(key, str):
        raise DataError("a storage has no class or no key")
    if type(numel) is not int or not 0 <= numel < _LARGEST:
        raise DataError("the size of a storage is not a whole number of 0 or more", place=[printable(key, 60)])
    if id[5:] not in ((), (None,)):
        raise DataError("a storage is a part of another, as torch wrote before version 0.4", place=[printable(key, 60)])
    return Storage(key, kind.dtype, numel)
