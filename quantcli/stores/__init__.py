"""Stores: the files that tensors are read from and written to. They handle bytes, names and shapes, not arithmetic."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from quantcli.errors import UsageError
from quantcli.stores import places
from quantcli.stores.source import Earlier, HeaderDocument, Source, Unsplit, is_stream, need_file

if TYPE_CHECKING:
    from quantcli.stores.files import InputFile

__all__ = ["Earlier", "HeaderDocument", "Source", "Unsplit", "is_stream", "need_file", "open_source"]


def open_source(path: str, variant: str | None = None) -> Source:
    """The source at a path or URL: a folder or its index.json, .npy, .npz, .onnx, a GGUF or a PyTorch checkpoint by its
    first bytes, or else a safetensors file; - for one on standard input. variant: which weights of a folder to take,
    where it has several.

    Raises QuantcliError for a missing, unreadable, damaged or unsupported file.
    """
    # Each store is imported where it is needed: most runs need one.
    if path == "-" and variant is None:
        from quantcli.stores.safetensors import SafetensorsFile
        from quantcli.stores.standard import open_input

        return SafetensorsFile(open_input())
    lower = places.name(os.fsdecode(path)).lower()
    if variant is not None and not places.is_folder(path):
        raise UsageError("only folders have variants", place=["--variant"], hint="leave it out")
    if places.is_folder(path) or lower.endswith(".json"):
        from quantcli.stores.checkpoint import Checkpoint

        return Checkpoint(path, variant)
    if lower.endswith((".npy", ".npz")):
        from quantcli.stores.npy import NpyFile, NpzFile

        return NpyFile(path) if lower.endswith(".npy") else NpzFile(path)
    return _by_content(places.opened(path), lower)


def _by_content(file: InputFile, name: str) -> Source:
    """The source in a file that is not an array. A pickle under the name of a safetensors file is not read: that name
    promises a file without one."""
    if name.endswith(".onnx"):
        from quantcli.stores.onnx import OnnxFile

        return OnnxFile(file)
    if name.endswith(".gguf") or (file.size >= 8 and file.read(0, 4) == b"GGUF"):
        from quantcli.stores.gguf_shards import open_gguf

        return open_gguf(file)
    if not name.endswith(".safetensors"):
        from quantcli.stores.torch_file import TorchFile, is_torch

        if is_torch(file):
            return TorchFile(file)
    from quantcli.stores.safetensors import SafetensorsFile

    return SafetensorsFile(file)
