"""Two models, one made from the other or not, with their tensors under matching names."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Mapping

from quantcli.experts import as_in
from quantcli.floats import decoded
from quantcli.layouts.native import model as native
from quantcli.models import Model, View, llama_cpp_architecture, of_checkpoint, open_model


@contextlib.contextmanager
def open_original(path: str, names: Container[str], *, as_float: bool = False) -> Iterator[Model]:
    """The floats that a model with tensors of these names was made from: decoded where they are codes themselves, and
    with experts arranged as they are there. Where the names are those of codes and scales too, each was taken by its
    dtype. as_float: whether the integers of a .npy or .npz file are a signal."""
    with open_model(path, as_float=as_float) as model:
        source = model.source
        plain = not model.is_native and all(name in names for name in model.stored)
        if source.kind != "gguf" and not plain and model.quantized:
            source = decoded(source, model)
        source = as_in(source, names) or source
        yield model if source is model.source else Model(native.Model(source), path, {})


def under_one_name(a: Model, b: Model) -> tuple[Mapping[str, View], Mapping[str, View], str]:
    """The tensors of both under matching names, and a note on how they were matched; empty when they matched already.

    Names are mapped where none is in both, and one side is a GGUF of a known architecture and the other is not. Experts
    of a model that quantcli did not quantize are arranged as they are in the other one.
    """
    ours, theirs, note = _under_names(a, b)
    notes = [note] if note else []
    for model, other in ((a, theirs), (b, ours)):
        if model.source.kind == "gguf" or model.is_native:
            continue
        found = as_in(decoded(model.source, model) if model.quantized else model.source, other)
        if found is None:
            continue
        notes.append(f"{model.path}: {found.arranged}")
        views = Model(native.Model(found), model.path, {})
        ours, theirs = (views, theirs) if model is a else (ours, views)
    return ours, theirs, "; ".join(notes)


def _under_names(a: Model, b: Model) -> tuple[Mapping[str, View], Mapping[str, View], str]:
    """The same, but for experts."""
    sides = [model.source.kind == "gguf" for model in (a, b)]
    if a.keys() & b.keys() or sides[0] == sides[1]:
        return a, b, ""
    gguf = a if sides[0] else b
    architecture = llama_cpp_architecture(gguf)
    if architecture is None:
        return a, b, ""
    from quantcli.layouts.gguf.names import ARCHITECTURES

    order = ", and rows of attn_q and attn_k are reordered" if ARCHITECTURES[architecture] else ""
    note = f"{gguf.path}: names of llama.cpp ({architecture}) are mapped to those of the checkpoint{order}"
    return (of_checkpoint(a), b, note) if sides[0] else (a, of_checkpoint(b), note)
