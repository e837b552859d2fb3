"""What is wrong with a quantized model as a whole: its headers, and the names, types and shapes of its tensors."""

from __future__ import annotations

from quantcli.errors import printable
from quantcli.layouts.native.model import Model, Tensor
from quantcli.passes import folder_checks
from quantcli.passes.findings import MISSING, Findings


def headers(model: Model, found: Findings) -> None:
    """Whether every header is as it was written, and every file has one of ours."""
    source = model.source
    documents = iter(model.documents)
    for name, shard in source.shards.items():
        place = f"{printable(name)}: " if name else ""
        if not shard.documents:
            found.add("", "structure", f"{place}it has no quantcli header")
            continue
        intact = next(documents).intact
        if intact is None:
            found.unchecked.append("the header has no digest of its own")
        elif not intact:
            found.add("", "structure", f"{place}the header was changed after it was written")
    if source.folder is not None:
        for problem in folder_checks.faults(source, source.folder, model.entries):
            found.add("", "structure", problem)


def names_and_shapes(model: Model, original: Model, found: Findings) -> None:
    """Whether names, types and shapes are those of the original."""
    for name, tensor in model.items():
        if name not in original:
            found.add(name, "source", "it is not in the original")
        elif not alike(tensor, original[name]):
            info, here = original[name].stored.info, tensor.stored.info
            there = f"{info.dtype} {list(info.shape)}"
            found.add(name, "source", f"it is {there} in the original, not {here.dtype} {list(here.shape)}")
    for name in original:
        if name not in model:
            found.add(name, "source", MISSING)


def alike(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same type and shape."""
    info, here = other.stored.info, tensor.stored.info
    return (info.dtype, info.shape) == (here.dtype, here.shape)
