"""Where tensors come from and go to. Stores know bytes, names and shapes; they know no arithmetic."""

from __future__ import annotations

import os

from quantcli.stores.source import HeaderDocument, Source, is_stream, need_file

__all__ = ["HeaderDocument", "Source", "is_stream", "need_file", "open_source"]


def open_source(path: str) -> Source:
    """The source a path names: a folder or its index.json, .npy, .npz, .onnx, a GGUF by how it begins, or else a
    safetensors file, - for the one that standard input holds.

    Raises QuantcliError for what is missing, unreadable, damaged or of another kind.
    """
    from quantcli.stores.checkpoint import Checkpoint
    from quantcli.stores.files import InputFile
    from quantcli.stores.gguf import GgufFile, is_gguf
    from quantcli.stores.npy import NpyFile, NpzFile
    from quantcli.stores.onnx import OnnxFile
    from quantcli.stores.safetensors import SafetensorsFile

    if path == "-":
        from quantcli.stores.standard import open_input

        return SafetensorsFile(open_input())
    lower = os.fsdecode(path).lower()
    if os.path.isdir(path) or lower.endswith(".json"):
        return Checkpoint(path)
    if lower.endswith(".npy"):
        return NpyFile(path)
    if lower.endswith(".npz"):
        return NpzFile(path)
    file = InputFile(path)
    if lower.endswith(".onnx"):
        return OnnxFile(file)
    return GgufFile(file) if lower.endswith(".gguf") or is_gguf(file) else SafetensorsFile(file)
