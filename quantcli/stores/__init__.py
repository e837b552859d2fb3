"""Stores: the files that tensors are read from and written to. They handle bytes, names and shapes, not arithmetic."""

from __future__ import annotations

import os

from quantcli.stores.source import Earlier, HeaderDocument, Source, Unsplit, is_stream, need_file

__all__ = ["Earlier", "HeaderDocument", "Source", "Unsplit", "is_stream", "need_file", "open_source"]


def open_source(path: str) -> Source:
    """The source at a path: a folder or its index.json, .npy, .npz, .onnx, a GGUF by its first bytes, or else a
    safetensors file; - for one on standard input.

    Raises QuantcliError for a missing, unreadable, damaged or unsupported file.
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
