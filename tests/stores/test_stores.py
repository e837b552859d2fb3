"""What is read from files, and how damaged ones are refused: safetensors, .npy, .npz and checkpoint folders."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from making import BF16, NUMPY_OF, environment, npy_bytes, raw_file, raw_npy, raw_tensors, save, zip_bytes

from quantcli import DataError, QuantcliError
from quantcli.layouts.native import model as reading
from quantcli.stores import open_source, strided

# ---- reading helpers --------------------------------------------------------------------------------------------


def bytes_of(path: Path, name: str, start: int = 0, size: int | None = None) -> bytes:
    source = open_source(str(path))
    try:
        info = next(i for i in source.infos() if i.name == name)
        buffer = bytearray(info.nbytes - start if size is None else size)
        source.read(name, start, memoryview(buffer))
        return bytes(buffer)
    finally:
        source.close()


def refused(path: Path, *, error: type[QuantcliError] = DataError) -> str:
    """The one line that refuses a file, which begins with its name."""
    with pytest.raises(QuantcliError) as caught:
        source = open_source(str(path))
        try:
            for info in source.infos():
                source.read(info.name, 0, memoryview(bytearray(info.nbytes)))
        finally:
            source.close()
    line = str(caught.value)
    assert isinstance(caught.value, error), line
    assert line.startswith(str(path)), line
    assert line.isprintable(), line
    assert len(line) < 600, line
    assert "allow_pickle" not in line and "unsafe" not in line, line
    return line


# ---- safetensors ------------------------------------------------------------------------------------------------

EVERY_DTYPE = {
    name: np.random.default_rng(i).integers(0, 256, 12 * dtype.itemsize, dtype=np.uint8).view(dtype).reshape(3, 4)
    if name != "BOOL"
    else np.random.default_rng(i).integers(0, 2, (3, 4)).astype(bool)
    for i, (name, dtype) in enumerate(NUMPY_OF.items())
}


def test_every_dtype_the_library_writes(tmp_path: Path) -> None:
    path = save(tmp_path / "all.safetensors", EVERY_DTYPE, {"format": "pt", "by": "someone"})
    source = open_source(str(path))
    assert source.metadata == {"format": "pt", "by": "someone"}
    found = {info.name: info for info in source.infos()}
    assert set(found) == set(EVERY_DTYPE)
    for name, array in EVERY_DTYPE.items():
        assert (found[name].dtype, found[name].shape, found[name].nbytes) == (name, (3, 4), array.nbytes)
        assert bytes_of(path, name) == array.tobytes()
        assert bytes_of(path, name, array.itemsize, 2 * array.itemsize) == array.reshape(-1)[1:3].tobytes()
    source.close()


def test_values_as_numpy_sees_them(tmp_path: Path) -> None:
    path = save(tmp_path / "all.safetensors", EVERY_DTYPE)
    with reading.open(str(path)) as model:
        for name, array in EVERY_DTYPE.items():
            if name in ("F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"):
                with pytest.raises(DataError, match=f"numpy has no {name}"):
                    model[name].numpy()
            elif name in ("BF16", "F8_E4M3", "F8_E5M2"):
                np.testing.assert_array_equal(model[name].numpy(), array.astype(np.float32))
            else:
                np.testing.assert_array_equal(model[name].numpy(), array)


def test_shapes_of_every_kind(tmp_path: Path) -> None:
    shapes = [(), (0,), (1,), (3, 0, 2), (2, 3, 4, 5), (1, 1, 1, 1, 1, 1)]
    tensors = {f"t{i}": np.ones(shape, np.float32) for i, shape in enumerate(shapes)}
    path = save(tmp_path / "shapes.safetensors", tensors)
    source = open_source(str(path))
    assert {i.name: i.shape for i in source.infos()} == {f"t{i}": shape for i, shape in enumerate(shapes)}
    source.close()


def test_types_of_less_than_a_byte(tmp_path: Path) -> None:
    data = np.arange(4, dtype=np.uint8)
    spec = safetensors.TensorSpec(dtype="float4_e2m1fn_x2", shape=[4], data_ptr=data.ctypes.data, data_len=4)
    path = tmp_path / "f4.safetensors"
    path.write_bytes(safetensors.serialize({"a": spec}, None))
    source = open_source(str(path))
    info = source.infos()[0]
    assert (info.dtype, info.shape, info.nbytes) == ("F4", (8,), 4)
    source.close()


def test_what_the_library_accepts_and_people_write(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    headers: list[dict[str, Any]] = [
        {"a": entry, "__metadata__": None}, {"": entry}, {"na\x00me\n": entry}, {"a": {**entry, "shape": []}},
        {"a": {"data_offsets": [0, 4], "shape": [1], "dtype": "F32"}},
    ]  # fmt: skip
    for i, header in enumerate(headers):
        path = tmp_path / f"{i}.safetensors"
        path.write_bytes(raw_file(header, b"\0\0\x80?"))
        assert len(safetensors.deserialize(path.read_bytes())) == 1
        source = open_source(str(path))
        assert len(source.infos()) == 1 and source.metadata == {}
        source.close()


def _entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "seven bytes": b"1234567",
    "text": b"this is not a model at all, it is some text",
    "zeros": bytes(100),
    "no header": raw_file(b"", b""),
    "an empty header": raw_file({}),
    "only metadata": raw_file({"__metadata__": {"a": "b"}}),
    "header beyond the end": raw_file(_entry(), bytes(8), length=10**6),
    "header of 101 MB": raw_file(_entry(), bytes(8), length=101_000_000),
    "header of 2^64-1": raw_file(_entry(), bytes(8), length=2**64 - 1),
    "header of 2^63": raw_file(_entry(), bytes(8), length=2**63),
    "a list": raw_file(b"[1, 2]  "),
    "a number": raw_file(b"42      "),
    "broken JSON": raw_file(b'{"a": {"dtype": "F32"', bytes(8)),
    "leading spaces": raw_file(b"  " + json.dumps(_entry()).encode(), bytes(8)),
    "byte order mark": raw_file(b"\xef\xbb\xbf" + json.dumps(_entry()).encode(), bytes(8)),
    "not UTF-8": raw_file(b'{"a\xff": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "UTF-16": raw_file(json.dumps(_entry()).encode("utf-16"), bytes(8)),
    "lone surrogate": raw_file(b'{"a\\ud800": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "NaN": raw_file(b'{"a": {"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)),
    "infinity": raw_file(b'{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,Infinity]}}', bytes(8)),
    "deep": raw_file(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "deep objects": raw_file(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a number of 5000 digits": raw_file(b'{"a": {"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}',
                                        bytes(8)),
    "duplicate tensor": raw_file(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                                 b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "duplicate field": raw_file(b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "duplicate metadata": raw_file(b'{"__metadata__":{"a":"1","a":"2"},'
                                   b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "metadata of numbers": raw_file({"__metadata__": {"a": 1}, **_entry()}, bytes(8)),
    "metadata of a list": raw_file({"__metadata__": ["a"], **_entry()}, bytes(8)),
    "metadata of text": raw_file({"__metadata__": "a", **_entry()}, bytes(8)),
    "nested metadata": raw_file({"__metadata__": {"a": {"b": "c"}}, **_entry()}, bytes(8)),
    "unknown dtype": raw_file(_entry(dtype="F33"), bytes(8)),
    "dtype of another case": raw_file(_entry(dtype="f32"), bytes(8)),
    "dtype of a number": raw_file(_entry(dtype=32), bytes(8)),
    "dtype of a list": raw_file(_entry(dtype=["F32"]), bytes(8)),
    "no dtype": raw_file({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "no shape": raw_file({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "no offsets": raw_file({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "an entry of a list": raw_file({"a": [1, 2]}, bytes(8)),
    "an entry of null": raw_file({"a": None}, bytes(8)),
    "unknown field": raw_file(_entry(note="x"), bytes(8)),
    "negative dimension": raw_file(_entry(shape=[-2]), bytes(8)),
    "two negative dimensions": raw_file(_entry(shape=[-1, -2]), bytes(8)),
    "boolean dimension": raw_file(_entry(shape=[True, 2]), bytes(8)),
    "float dimension": raw_file(_entry(shape=[2.0]), bytes(8)),
    "text dimension": raw_file(_entry(shape=["2"]), bytes(8)),
    "shape of a number": raw_file(_entry(shape=2), bytes(8)),
    "null dimension": raw_file(_entry(shape=[None]), bytes(8)),
    "a product beyond 2^64": raw_file(_entry(shape=[2**62, 2**62]), bytes(8)),
    "4 TiB": raw_file(_entry(shape=[2**40], data_offsets=[0, 2**42]), bytes(8)),
    "negative offset": raw_file(_entry(data_offsets=[-8, 0]), bytes(8)),
    "boolean offset": raw_file(_entry(data_offsets=[False, 8]), bytes(8)),
    "float offset": raw_file(_entry(data_offsets=[0.0, 8.0]), bytes(8)),
    "three offsets": raw_file(_entry(data_offsets=[0, 8, 8]), bytes(8)),
    "one offset": raw_file(_entry(data_offsets=[0]), bytes(8)),
    "offsets the wrong way round": raw_file(_entry(data_offsets=[8, 0]), bytes(8)),
    "offsets of another size": raw_file(_entry(data_offsets=[0, 4]), bytes(4)),
    "offsets beyond the end": raw_file(_entry(data_offsets=[8, 16]), bytes(8)),
    "half a byte": raw_file({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, bytes(2)),
    "cut short": raw_file(_entry(), bytes(7)),
    "trailing bytes": raw_file(_entry(), bytes(9)),
    "a hole before": raw_file(_entry(data_offsets=[4, 12]), bytes(12)),
    "a hole between": raw_file({**_entry(), "b": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}}, bytes(20)),
    "an overlap": raw_file({**_entry(), "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
    "the same bytes twice": raw_file({**_entry(), "b": _entry()["a"]}, bytes(8)),
    "a pickle": pickle.dumps({"a": 1}, 4),
    "a GGUF file": b"GGUF" + bytes(100),
    "a zip": zip_bytes([("a", b"b")]),
    "a .npy": npy_bytes(np.ones(4)),
    "a web page": b"<!DOCTYPE html><html>Not found</html>",
    "TensorFlow Lite": bytes.fromhex("1c00000054464c3314002000") + bytes(64),  # as basic-pitch's nmp.tflite begins
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(64),
    "OpenVINO": b'<?xml version="1.0"?>\n<net name="Model0" version="11">\n</net>\n',
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 12345\n",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_safetensors_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(HOSTILE[name])
    refused(path)


@pytest.mark.parametrize("length", [640, 1152, 0x048020, 0x0209, 0x045080, 66176, 8 * 1024])
def test_a_header_of_any_length_is_a_header(length: int, tmp_path: Path) -> None:
    """Files begin with the length of their header: 640 is 80 02 and 1152 is 80 04, as a pickle begins."""
    text = json.dumps(_entry()).encode().ljust(length)
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_file(text, bytes(8)))
    assert len(safetensors.deserialize(path.read_bytes())) == 1
    assert bytes_of(path, "a") == bytes(8)


@pytest.mark.parametrize(("name", "words"), [
    ("a GGUF file", "GGUF"), ("a pickle", "pickle"), ("a .npy", ".npy"), ("a zip", "zip"), ("a web page", "web page"),
    ("TensorFlow Lite", "convert the model to ONNX"), ("HDF5", "HDF5 file of Keras or TensorFlow, which is not read"),
    ("OpenVINO", "the graph of an OpenVINO model, which is not read; convert the model to ONNX"),
    ("a Git LFS pointer", "git lfs pull"), ("cut short", "cut short"), ("trailing bytes", "belong to no tensor"),
    ("duplicate tensor", "duplicate key 'a'"), ("an overlap", "overlaps"), ("a hole between", "hole"),
    ("unknown dtype", "unknown dtype 'F33'"), ("only metadata", "holds no tensors"),
])  # fmt: skip
def test_refusals_say_what_is_wrong(name: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(HOSTILE[name])
    assert words in refused(path)


@pytest.mark.parametrize("name", ["a.gguf", "a.onnx", "a.npy", "a.npz", "a.pt", "a.safetensors"])
def test_a_pointer_of_git_lfs_is_named_under_any_name(name: str, tmp_path: Path) -> None:
    """As the specification of Git LFS has it: what a clone without its files holds in the place of each."""
    (tmp_path / name).write_bytes(HOSTILE["a Git LFS pointer"])
    assert "fetch the file with 'git lfs pull'" in refused(tmp_path / name)


@given(data=st.data())
def test_no_damage_is_overlooked(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The reader is stricter than the safetensors library: what the library refuses is refused, and what we read
    without a refusal the library reads to the same bytes."""
    whole = bytearray(raw_tensors({"a": ("F32", (2, 3), bytes(24)), "b": ("U8", (5,), b"12345")}, {"k": "v"}))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    path.write_bytes(whole)
    try:
        source = open_source(str(path))
    except QuantcliError as error:
        assert str(error).isprintable()
        return
    theirs = dict(safetensors.deserialize(bytes(whole)))
    assert {i.name for i in source.infos()} == set(theirs)
    for info in source.infos():
        buffer = bytearray(info.nbytes)
        source.read(info.name, 0, memoryview(buffer))
        assert bytes(buffer) == theirs[info.name]["data"]
    source.close()


def test_names_are_escaped_in_refusals(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    name = "\x1b[2Jevil\nquantcli: all fine\u202e"
    path.write_bytes(raw_file({name: {"dtype": "F99", "shape": [], "data_offsets": [0, 4]}}, bytes(4)))
    assert "\\x1b[2Jevil\\n" in refused(path)


# ---- what is no regular file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".npy", ".npz"])
def test_missing_and_special_files(suffix: str, tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / f"missing{suffix}", error=QuantcliError)
    pipe = tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)
    assert "this is a pipe, not a regular file" in refused(pipe)
    device = tmp_path / f"device{suffix}"
    device.symlink_to("/dev/null")
    assert "this is a device" in refused(device)
    loop = tmp_path / f"loop{suffix}"
    loop.symlink_to(loop)
    refused(loop, error=QuantcliError)


def test_unreadable_files() -> None:
    """Root may read everything, so it becomes somebody else for a moment, in a folder that others may enter."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = save(Path(folder) / "model.safetensors", {"a": np.ones(2)})
        path.chmod(0)
        if user == 0:
            os.seteuid(65534)
        try:
            assert "permission denied" in refused(path, error=QuantcliError)
        finally:
            os.seteuid(user)


def test_links_are_followed(tmp_path: Path) -> None:
    """A download cache is only links."""
    save(tmp_path / "blob", {"a": np.ones((2, 2), np.float32)})
    link = tmp_path / "model.safetensors"
    link.symlink_to("blob")
    assert bytes_of(link, "a") == np.ones(4, np.float32).tobytes()


def test_a_change_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", {"a": np.ones(1000, np.float32)})
    source = open_source(str(path))
    source.check_unchanged()
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match="changed while it was read"):
        source.check_unchanged()
    os.truncate(path, 100)
    with pytest.raises(DataError, match="changed while it was read"):
        source.read("a", 0, memoryview(bytearray(4000)))
    source.close()


def test_a_change_is_noticed_with_the_time_set_back(tmp_path: Path) -> None:
    """Whoever writes into a file can set its time of modification back, but not the time of the change itself."""
    path = save(tmp_path / "model.safetensors", {"a": np.ones(1000, np.float32)})
    before = os.stat(path)
    with contextlib.closing(open_source(str(path))) as source:
        source.check_unchanged()
        while os.stat(path).st_ctime_ns == before.st_ctime_ns:  # clocks of file systems are coarse
            with path.open("r+b") as file:
                file.seek(-4, os.SEEK_END)
                file.write(b"0000")
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert os.stat(path).st_mtime_ns == before.st_mtime_ns
        with pytest.raises(DataError, match="changed while it was read"):
            source.check_unchanged()


# ---- .npy -------------------------------------------------------------------------------------------------------

ARRAYS: dict[str, np.ndarray] = {
    "c": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4)),
    "fortran matrix": np.asfortranarray(np.arange(35, dtype=np.int16).reshape(5, 7)),
    "big-endian": np.arange(10, dtype=">f4"),
    "big-endian fortran": np.asfortranarray(np.arange(12, dtype=">f8").reshape(3, 4)),
    "big-endian half": np.arange(10, dtype=">f2"),
    "big-endian integers": np.arange(10, dtype=">u8"),
    "scalar": np.array(3.5),
    "big-endian scalar": np.array(3.5, ">f4"),
    "empty": np.zeros((0, 3), np.float32),
    "empty at the end": np.zeros((3, 0), np.float64),
    "bool": np.array([True, False]),
    "bytes": np.arange(5, dtype=np.int8),
    "half": np.arange(5, dtype=np.float16),
    "one": np.ones((1, 1, 1), np.float64),
    "fortran row": np.asfortranarray(np.arange(5, dtype=np.float32).reshape(1, 5)),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("version", [None, (1, 0), (2, 0), (3, 0)], ids=str)
def test_arrays_as_numpy_writes_them(name: str, version: tuple[int, int] | None, tmp_path: Path) -> None:
    array = ARRAYS[name]
    path = tmp_path / "weights.npy"
    path.write_bytes(npy_bytes(array, version))
    source = open_source(str(path))
    info = source.infos()[0]
    source.close()
    assert (info.name, info.shape) == ("weights", array.shape)
    assert info.dtype == {v: k for k, v in NUMPY_OF.items()}[array.dtype.newbyteorder("<")]
    little = np.ascontiguousarray(np.load(path)).astype(array.dtype.newbyteorder("<"))
    assert bytes_of(path, "weights") == little.tobytes()


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("dtype", ["f4", "f2", "i8", "u1"])
@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (100, 3), (3, 100), (1, 60), (2, 2, 2, 2)])
@pytest.mark.parametrize("slab", [1, 7, 40, 1000])
def test_fortran_arrays_beyond_the_slab(
    slab: int, shape: tuple[int, ...], dtype: str, order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """read in tiles whatever their byte order and layout"""
    monkeypatch.setattr(strided, "SLAB", slab * np.dtype(dtype).itemsize)
    monkeypatch.setattr(strided, "_CALL", 16)  # else arrays this small are read in one call
    array = np.asfortranarray(np.random.default_rng(0).integers(0, 100, shape).astype(order + dtype))
    path = tmp_path / "a.npy"
    path.write_bytes(npy_bytes(array))
    expected = np.ascontiguousarray(array).astype("<" + dtype).tobytes()
    source = open_source(str(path))
    size, step = len(expected), array.itemsize
    for length in {step, 3 * step, 11 * step, size}:
        for start in range(0, size, max(step, size // 7 // step * step)):
            buffer = bytearray(min(length, size - start))
            source.read("a", start, memoryview(buffer))
            assert bytes(buffer) == expected[start : start + len(buffer)]
    source.close()


def test_a_fortran_array_without_elements(tmp_path: Path) -> None:
    """numpy calls such arrays C-ordered, but other writers do not."""
    for shape in ((0, 3), (3, 0), (2, 0, 4)):
        path = tmp_path / "a.npy"
        path.write_bytes(raw_npy(f"{{'descr': '<f4', 'fortran_order': True, 'shape': {shape}, }}\n"))
        assert np.load(path).shape == shape
        assert bytes_of(path, "a") == b""


ONE = np.ones(2, np.float32).tobytes()
HOSTILE_NPY: dict[str, bytes] = {
    "nothing": b"",
    "only magic": b"\x93NUMPY",
    "text": b"1.0 2.0 3.0\n",
    "a pickle": pickle.dumps(np.ones(3), 4),
    "version 4": b"\x93NUMPY\x04\x00" + npy_bytes(np.ones(2))[8:],
    "version 1.1": b"\x93NUMPY\x01\x01" + npy_bytes(np.ones(2))[8:],
    "objects": npy_bytes(np.array([1, None], object)),
    "structured": npy_bytes(np.zeros(2, [("a", "f4"), ("b", "i4")])),
    "complex": npy_bytes(np.ones(2, np.complex64)),
    "complex128": npy_bytes(np.ones(2, np.complex128)),
    "dates": npy_bytes(np.zeros(2, "M8[s]")),
    "text array": npy_bytes(np.array(["a", "b"])),
    "bytes array": npy_bytes(np.array([b"a", b"b"])),
    "long double": npy_bytes(np.ones(2, np.longdouble)),
    "void": npy_bytes(np.zeros(2, "V4")),
    "cut short": npy_bytes(np.ones(100))[:-1],
    "trailing": npy_bytes(np.ones(100)) + b"x",
    "header cut short": npy_bytes(np.ones(100))[:40],
    "header of 4 GB": raw_npy("{}", version=(2, 0), length=2**32 - 1),
    "header of nothing": raw_npy(""),
    "an expression": raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1+1,), }", ONE),
    "a call": raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os').getpid(),), }", ONE),
    "nested operators": raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "-" * 60000 + "2,), }", ONE),
    "hexadecimal": raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0x2,), }", ONE),
    "a huge number": raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",), }", ONE),
    "a boolean": raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 2), }", ONE),
    "a negative number": raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }", ONE),
    "a float": raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2.0,), }", ONE),
    "no tuple": raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': 2, }", ONE),
    "10^12 elements": raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }", ONE),
    "order of 1": raw_npy("{'descr': '<f4', 'fortran_order': 1, 'shape': (2,), }", ONE),
    "no shape": raw_npy("{'descr': '<f4', 'fortran_order': False, }", ONE),
    "a fourth key": raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1, }", ONE),
    "a key twice": raw_npy("{'descr': '<f4', 'descr': '<i4', 'fortran_order': False, 'shape': (2,), }", ONE),
    "a list": raw_npy("['descr', 'fortran_order', 'shape']", ONE),
    "not closed": raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)", ONE),
    "bad UTF-8": raw_npy(b"{'descr': '<f4\xff', 'fortran_order': False, 'shape': (2,), }", ONE, version=(3, 0)),
    "text of no length": raw_npy("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000000,), }"),
    "an escape": raw_npy("{'descr': '\x1b[2J', 'fortran_order': False, 'shape': (2,), }", ONE),
    "no such float": raw_npy("{'descr': '<f3', 'fortran_order': False, 'shape': (2,), }", ONE),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NPY)
def test_hostile_npy_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.npy"
    path.write_bytes(HOSTILE_NPY[name])
    line = refused(path)
    if name == "a pickle":
        assert "pickle, which is never loaded" in line


# ---- .npz -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
def test_archives_as_numpy_writes_them(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    write(path, **ARRAYS)
    source = open_source(str(path))
    assert {i.name for i in source.infos()} == set(ARRAYS)
    source.close()
    with np.load(path) as theirs:
        for name in ARRAYS:
            little = np.ascontiguousarray(theirs[name]).astype(theirs[name].dtype.newbyteorder("<"))
            assert bytes_of(path, name) == little.tobytes()


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
def test_members_can_be_read_again_after_release(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    array = np.random.default_rng(0).standard_normal((300, 50))
    write(path, a=array, b=np.asfortranarray(array))
    source = open_source(str(path))
    for name in ("a", "b", "a", "b"):
        for start in (0, 8 * 50 * 299, 8 * 77):
            buffer = bytearray(80)
            source.read(name, start, memoryview(buffer))
            assert bytes(buffer) == array.tobytes()[start : start + 80]
        source.release(name)
    source.close()


def _flip(data: bytes, marker: bytes, offset: int = 0) -> bytes:
    at = data.rindex(marker) + offset
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _encrypted() -> bytes:
    data = bytearray(zip_bytes([("a.npy", npy_bytes(np.ones(4)))]))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    return bytes(data)


def _method(number: int) -> bytes:
    data = bytearray(zip_bytes([("a.npy", npy_bytes(np.ones(4)))]))
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.index(signature) + offset] = number
    return bytes(data)


def _twice() -> bytes:
    stream = io.BytesIO()
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(stream, "w") as archive:
        for value in (1, 2):
            archive.writestr("a.npy", npy_bytes(np.full(4, value)))
    return stream.getvalue()


def _overlapping() -> bytes:
    """Two names for one member: what zip bombs are made of."""
    data = bytearray(zip_bytes([("a.npy", npy_bytes(np.ones(4))), ("b.npy", npy_bytes(np.ones(4)))]))
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = (0).to_bytes(4, "little")
    return bytes(data)


RANDOM = np.random.default_rng(0).standard_normal(20_000)
HOSTILE_NPZ: dict[str, Any] = {
    "nothing": lambda: b"",
    "text": lambda: b"PKtext",
    "an empty archive": lambda: zip_bytes([]),
    "a .npy": lambda: npy_bytes(np.ones(3)),
    "cut short": lambda: zip_bytes([("a.npy", npy_bytes(RANDOM))])[:-30],
    "cut in the middle": lambda: zip_bytes([("a.npy", npy_bytes(RANDOM))])[:5000],
    "a text member": lambda: zip_bytes([("a.npy", npy_bytes(np.ones(3))), ("readme.txt", b"hello")]),
    "a pickled member": lambda: zip_bytes([("a.npy", pickle.dumps(np.ones(3)))]),
    "an object member": lambda: zip_bytes([("a.npy", npy_bytes(np.ones(3))), ("o.npy", npy_bytes(np.array([None])))]),
    "a folder": lambda: zip_bytes([("folder/", b""), ("folder/a.npy", npy_bytes(np.ones(3)))]),
    "one name twice": _twice,
    "encrypted": _encrypted,
    "bzip2": lambda: zip_bytes([("a.npy", npy_bytes(np.ones(3)))], zipfile.ZIP_BZIP2),
    "unknown method": lambda: _method(99),
    "overlapping members": _overlapping,
    "a wrong sum, stored": lambda: _flip(zip_bytes([("a.npy", npy_bytes(RANDOM))]), RANDOM[-1:].tobytes()),
    "a wrong sum, small": lambda: _flip(zip_bytes([("a.npy", npy_bytes(RANDOM[:9]))]), RANDOM[8:9].tobytes()),
    "a wrong sum, compressed": lambda: _flip(zip_bytes([("a.npy", npy_bytes(RANDOM))], zipfile.ZIP_DEFLATED),
                                             b"PK\x01\x02", -4000),
    "a bomb": lambda: zip_bytes([("a.npy", npy_bytes(np.zeros(9 << 20)))], zipfile.ZIP_DEFLATED),
    "an array longer than its header": lambda: zip_bytes([("a.npy", npy_bytes(np.ones(3)) + b"x")]),
    "an array shorter than its header": lambda: zip_bytes([("a.npy", npy_bytes(np.ones(3))[:-1])]),
    "no array": lambda: zip_bytes([("a.npy", b"")]),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NPZ)
def test_hostile_npz_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    path.write_bytes(HOSTILE_NPZ[name]())
    refused(path)


def test_a_wrong_sum_is_said_to_be_damage(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    for name in ("a wrong sum, stored", "a wrong sum, compressed"):
        path.write_bytes(HOSTILE_NPZ[name]())
        line = refused(path)
        assert ": a: " in line and "damaged" in line


def test_member_names_are_never_paths(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    path = inner / "model.npz"
    names = ["../evil.npy", "/tmp/evil.npy", "a/../../evil.npy", "..\\evil.npy"]
    members = [(name, npy_bytes(np.full(4, i))) for i, name in enumerate(names)]
    path.write_bytes(zip_bytes(members, zipfile.ZIP_DEFLATED))
    source = open_source(str(path))
    for info in source.infos():
        source.read(info.name, 0, memoryview(bytearray(info.nbytes)))
    source.close()
    assert sorted(os.listdir(tmp_path)) == ["inner"] and os.listdir(inner) == ["model.npz"]


# ---- checkpoint folders -----------------------------------------------------------------------------------------


def checkpoint(folder: Path, weight_map: Any = None, *, shards: dict[str, list[str]] | None = None) -> Path:
    """A folder of two shards and an index."""
    shards = {"model-1.safetensors": ["a", "b"], "model-2.safetensors": ["c"]} if shards is None else shards
    folder.mkdir(exist_ok=True)
    for i, (file, names) in enumerate(shards.items()):
        tensors = {name: np.full((2, 3), ord(name[0]), np.float32) for name in names}
        save(folder / file, tensors, {"shard": str(i), "format": "pt"})
    if weight_map is None:
        weight_map = {name: file for file, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_a_checkpoint_is_one_model(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    for path in (folder, folder / "model.safetensors.index.json"):
        source = open_source(str(path))
        assert [i.name for i in source.infos()] == ["a", "b", "c"]
        assert len(source.files()) >= 2
        source.close()
        for name in "abc":
            assert bytes_of(path, name) == np.full(6, ord(name), np.float32).tobytes()


def test_a_checkpoint_without_an_index(tmp_path: Path) -> None:
    folder = checkpoint(
        tmp_path / "model", shards={"x-00001-of-00002.safetensors": ["a"], "x-00002-of-00002.safetensors": ["b"]}
    )
    (folder / "model.safetensors.index.json").unlink()
    assert bytes_of(folder, "b") == np.full(6, ord("b"), np.float32).tobytes()
    (folder / "x-00001-of-00002.safetensors").unlink()
    assert "x-00001-of-00002.safetensors is missing" in refused(folder)
    (folder / "x-00002-of-00002.safetensors").unlink()
    assert "no .safetensors file" in refused(folder)


READS_ALL = """
import resource, sys
from quantcli.stores import open_source

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
source = open_source(sys.argv[1])
for info in source.infos():
    source.read(info.name, 0, memoryview(bytearray(info.nbytes)))
source.check_unchanged()
source.close()
print(len(source.infos()))
"""


def test_a_checkpoint_needs_few_descriptors(tmp_path: Path) -> None:
    """In a process of its own: that of the tests has many files open."""
    folder = checkpoint(tmp_path / "model", shards={f"model-{i:03}.safetensors": [f"t{i}"] for i in range(100)})
    words = [sys.executable, "-c", READS_ALL, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment())
    assert (done.stdout, done.stderr) == ("100\n", "")


def test_shards_may_be_links(tmp_path: Path) -> None:
    """The cache of the Hugging Face hub is nothing but links, and so are folders that keep weights on another disk."""
    folder = checkpoint(tmp_path / "model")
    (folder / "model-1.safetensors").rename(folder / "blob")
    (folder / "model-1.safetensors").symlink_to("blob")
    assert bytes_of(folder, "a") == np.full(6, ord("a"), np.float32).tobytes()
    (folder / "blob").rename(tmp_path / "blob")
    for target in ("../blob", tmp_path / "blob"):
        (folder / "model-1.safetensors").unlink()
        (folder / "model-1.safetensors").symlink_to(target)
        for path in (folder, folder / "model.safetensors.index.json"):
            assert bytes_of(path, "a") == np.full(6, ord("a"), np.float32).tobytes()
    linked = tmp_path / "link"
    (folder / "model-1.safetensors").unlink()
    (tmp_path / "blob").rename(folder / "model-1.safetensors")
    linked.symlink_to(folder)
    assert bytes_of(linked, "a") == np.full(6, ord("a"), np.float32).tobytes()

    cache = tmp_path / "models--org--name"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "blobs").mkdir()
    snapshot = folder.rename(cache / "snapshots" / "0123abcd")
    for file in sorted(snapshot.iterdir()):
        blob = file.rename(cache / "blobs" / file.name[::-1])
        file.symlink_to(os.path.relpath(blob, snapshot))
    assert bytes_of(snapshot, "a") == np.full(6, ord("a"), np.float32).tobytes()


GOOD = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}


@pytest.mark.parametrize(("weight_map", "words"), [
    ({**GOOD, "c": "../model-2.safetensors"}, "not a plain file name"),
    ({**GOOD, "c": "/etc/passwd"}, "not a plain file name"),
    ({**GOOD, "c": "..\\model-2.safetensors"}, "not a plain file name"),
    ({**GOOD, "c": ".."}, "not a plain file name"),
    ({**GOOD, "c": ""}, "not a plain file name"),
    ({**GOOD, "c": "model-2\x00.safetensors"}, "not a plain file name"),
    ({**GOOD, "c": 2}, "not a plain file name"),
    ({**GOOD, "c": None}, "not a plain file name"),
    ({**GOOD, "c": ["model-2.safetensors"]}, "not a plain file name"),
    ({**GOOD, "d": "model-3.safetensors"}, "no such file"),
    ({**GOOD, "d": "model-2.safetensors"}, "which does not hold it"),
    ({**GOOD, "c": "model-1.safetensors"}, "does not hold it"),
    ({**GOOD, "d": "model-2.safetensors", "e": "model-1.safetensors"}, "; the same holds for e"),
    ({**dict.fromkeys("uvwxyz", "model-1.safetensors"), **GOOD}, "; the same holds for v, w, x and 2 more"),
    ({"a": "model-1.safetensors", "c": "model-2.safetensors"}, "the index does not list it"),
    ({"a": "model-1.safetensors", "c": "model-2.safetensors"}, "index.json: b: it is in a shard, but"),
    ({**GOOD, "d": "./model-2.safetensors"}, "not a plain file name"),
    ([["a", "model-1.safetensors"]], "no weight_map"),
    ("model-1.safetensors", "no weight_map"),
    ({}, "no weight_map"),
    (7, "no weight_map"),
])  # fmt: skip
def test_damaged_indexes(weight_map: Any, words: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", weight_map)
    for path in (folder, folder / "model.safetensors.index.json"):
        with pytest.raises(QuantcliError) as caught:
            open_source(str(path))
        line = str(caught.value)
        assert words in line and str(folder) in line and line.isprintable()


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{", b"\xff\xfe", b'{"weight_map": {"a": "x", "a": "y"}}',
                                  b"[" * 100_000, b'{"metadata": {}}', b'{"weight_map": NaN}'])  # fmt: skip
def test_indexes_that_are_none(text: bytes, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "model.safetensors.index.json").write_bytes(text)
    assert "index.json" in refused(folder)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = checkpoint(
        tmp_path / "model",
        {"a": "model-1.safetensors", "b": "model-2.safetensors"},
        shards={"model-1.safetensors": ["a"], "model-2.safetensors": ["a", "b"]},
    )
    line = refused(folder)
    assert "in two shards, model-1.safetensors and model-2.safetensors" in line and ": a: " in line


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "model-2.safetensors").write_bytes(b"garbage!" * 10)
    assert "model-2.safetensors" in refused(folder)


def test_float8_arrays_are_no_npy(tmp_path: Path) -> None:
    """ml_dtypes writes them as raw bytes of an unknown type."""
    path = tmp_path / "a.npy"
    path.write_bytes(npy_bytes(np.ones(4, ml_dtypes.float8_e5m2)))
    refused(path)
    path.write_bytes(npy_bytes(np.ones(4, BF16)))
    refused(path)
