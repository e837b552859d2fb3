"""The record of one tensor to quantize: what its shape and its scheme decide."""

from __future__ import annotations

from dataclasses import replace

from quantcli.asking import plainly_rounded
from quantcli.errors import QuantcliError, printable
from quantcli.scheme import Scheme
from quantcli.tensors.decided import Columns, Quantized
from quantcli.tensors.info import TensorInfo
from quantcli.tensors.rows import Grouping, grouping_of
from quantcli.tensors.settle import default_scale_dtype

WIDER = "float32 scales"
"""How the note of a tensor begins whose scales did not fit the narrower dtype."""


UNTOLD = "statistics of inputs that are all 0"
"""The note of a tensor whose statistics say nothing: it is quantized as without any."""


def quantized(
    info: TensorInfo,
    scheme: Scheme,
    reason: str,
    scale_dtype: str | None = None,
    note: str = "",
    columns: Columns | None = None,
) -> Quantized:
    """The record of a tensor to quantize, all that its shape decides in it. Raises UsageError for what its shape
    forbids."""
    try:
        plan = grouping_of(info.shape, scheme)
    except QuantcliError as error:
        raise error.within(printable(info.name)) from None
    dtype = scale_dtype or default_scale_dtype(scheme, info.dtype)
    notes = [note] if note else []
    if plan.short_group and plan.shared is None:
        notes.append(_short(plan))
    return Quantized(
        info=info,
        reason=reason,
        scheme=scheme,
        grouping=plan,
        scale_dtype=dtype,
        note="; ".join(notes),
        columns=columns,
    )


def _short(plan: Grouping) -> str:
    """The note of a tensor whose groups do not end with its rows."""
    return f"short last group of {plan.short_group}"


def changed(tensor: Quantized, scheme: Scheme, note: str) -> Quantized:
    """The record of a tensor with another scheme, and a note on why; the same one where the scheme is."""
    if scheme == tensor.scheme:
        return tensor
    own = [n for n in (*tensor.note.split("; "), note) if n and n != _short(tensor.grouping)]
    return quantized(tensor.info, scheme, tensor.reason, note="; ".join(own), columns=tensor.columns)


def with_float32_scales(tensor: Quantized) -> Quantized:
    """The record of a tensor whose scales turned out not to fit the narrower dtype."""
    note = f"{WIDER}: {tensor.scale_dtype} would not hold them"
    found = quantized(tensor.info, tensor.scheme, tensor.reason, "F32", note, tensor.columns)
    return replace(found, input_scale=tensor.input_scale)


def without_statistics(tensor: Quantized) -> Quantized:
    """The record of a tensor whose statistics turned out to say nothing."""
    note = "; ".join(n for n in (tensor.note, UNTOLD) if n)
    return replace(tensor, scheme=plainly_rounded(tensor.scheme), columns=None, note=note)
