"""Files of models that are not read, or not under their names: told by first bytes or by name."""

from __future__ import annotations

import os
from collections.abc import Sequence

from quantcli.errors import DataError, listed, printable
from quantcli.stores.files import InputFile

_PICKLES = "; a checkpoint of PyTorch is read from a file with its own ending, such as .pt or .bin"
_CONVERT = "; convert the model to ONNX, or save it as safetensors"
_POINTER, _FETCH = b"version https://git-lfs", "this is a Git LFS pointer; fetch the file with 'git lfs pull'"
_POINTER_LIMIT = 1024
"""Bytes: pointers of Git LFS are smaller, by its specification."""
_MAGIC = [
    (0, b"GGUF", "this is a GGUF file"),
    (0, b"\x93NUMPY", "this is a NumPy array, whose name must end in .npy, or several in a row, which are not read"),
    (0, b"PK\x03\x04", f"this is a zip archive (of torch.save or .npz), not safetensors{_PICKLES}"),
    (0, _POINTER, _FETCH),
    (0, b"\x80\x02", f"this is a Python pickle, not safetensors{_PICKLES}"),
    (0, b"\x80\x04", f"this is a Python pickle, not safetensors{_PICKLES}"),
    (0, b"<!DOCTYPE", "this is a web page"),
    (0, b"<html", "this is a web page"),
    (0, b"<?xml", f"this is XML, as the graph of an OpenVINO model, which is not read{_CONVERT}"),
    (4, b"TFL3", f"this is a TensorFlow Lite model, which is not read{_CONVERT}"),
    (0, b"\x89HDF\r\n", f"this is an HDF5 file of Keras or TensorFlow, which is not read{_CONVERT}"),
]
_NAMES = {
    ".eqx": "Equinox",
    ".h5": "Keras or TensorFlow",
    ".keras": "Keras",
    ".mlmodel": "Core ML",
    ".mlpackage": "Core ML",
    ".msgpack": "Flax",
    ".pb": "TensorFlow",
    ".tflite": "TensorFlow Lite",
    ".xml": "OpenVINO",
}
_READ = (".gguf", ".npy", ".npz", ".onnx")


def told_by_bytes(start: bytes) -> str | None:
    """What a file is that begins like this, and what to do; None where that is not known.

    >>> told_by_bytes(b"GGUF" + bytes(4))
    'this is a GGUF file'
    """
    text = start.lstrip()
    return next((what for at, magic, what in _MAGIC if (start if at else text).startswith(magic, at)), None)


def check_fetched(file: InputFile) -> None:
    """Raise DataError for a file that Git LFS has not fetched: a few lines of text in its place, whatever its name."""
    if len(_POINTER) <= file.size < _POINTER_LIMIT and file.read(0, len(_POINTER)) == _POINTER:
        raise DataError(_FETCH, place=[file.path])


def told_by_name(path: str, called: str = "this") -> str | None:
    """What a file or folder is whose name ends like this, and what to do; None where that is not known. called: what
    the sentence calls it."""
    program = _NAMES.get(os.path.splitext(path.rstrip("/"))[1].lower())
    return None if program is None else f"{called} is a model of {program}, which is not read{_CONVERT}"


def among(folder: str, names: Sequence[str]) -> str | None:
    """The hint for a folder with such files and no others that hold weights; None where none of them does.

    >>> among("model", ["config.json", "model.onnx"])
    'name a file: model.onnx'
    >>> among("model", ["flax_model.msgpack"])
    'flax_model.msgpack is a model of Flax, which is not read; convert the model to ONNX, or save it as safetensors'
    """
    found = sorted(n for n in names if n.lower().endswith(_READ))
    if found:
        return f"name a file: {listed([printable(n, 200) for n in found], 4)}"
    told = (told_by_name(name, printable(name, 200)) for name in sorted(names))
    return next(filter(None, told), None) or told_by_name(folder, "the folder")
