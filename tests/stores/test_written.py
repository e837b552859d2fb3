"""A written safetensors file is read again before it takes its name: what passes, and what is noticed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from quantcli.errors import DataError
from quantcli.stores.safetensors import FileLayout, Texts, lay_out
from quantcli.stores.safetensors_check import check
from quantcli.tensors.info import TensorInfo

NAMES = ("a", 'q"uote]},"b', "back\\slash", "ünïcode", "tab\there", "x" * 200_000, "")
METADATA = {"format": "pt", "empty": "", "escapes": '"\\\n\u2028' * 400_000}


def written(path: Path, names: Sequence[str], metadata: Texts) -> FileLayout:
    """A file of tensors of several dtypes and shapes."""
    kinds = (("F32", (2, 3)), ("BF16", ()), ("U8", (0, 5)), ("I64", (7,)))
    places = lay_out([TensorInfo(name, *kinds[n % 4]) for n, name in enumerate(names)], metadata)
    whole = bytearray(places.size)
    for at, piece in places.header(metadata):
        whole[at : at + len(piece)] = piece
    path.write_bytes(whole)
    return places


@pytest.mark.parametrize("metadata", [METADATA, {"format": "pt"}, {}])
def test_what_the_library_reads_passes(tmp_path: Path, metadata: Mapping[str, str]) -> None:
    """Long texts and names, escapes and pieces of a text make no difference."""
    path = tmp_path / "a.safetensors"
    places = written(path, NAMES, metadata)
    places.check(str(path), "a.safetensors")
    with safe_open(path, "np") as file:
        assert set(file.keys()) == set(NAMES) and (file.metadata() or {}) == metadata
    halves = {key: (text[:1], text[1:]) for key, text in metadata.items()}
    assert b"".join(piece for _, piece in places.header(halves)) == path.read_bytes()[: places.header_size]


def test_a_file_of_the_library_passes(tmp_path: Path) -> None:
    save_file({"a": np.ones((2, 3), np.float32)}, tmp_path / "a.safetensors", {"format": "pt"})
    ours = lay_out([TensorInfo("a", "F32", (2, 3))], {"format": "pt"})
    ours.check(str(tmp_path / "a.safetensors"), "a")


def test_every_tensor_is_where_it_was_to_be(tmp_path: Path) -> None:
    """However its name is spelt in the header; places are those that were demanded, not just any that follow."""
    path = tmp_path / "a.safetensors"
    save_file(
        {"a": np.ones((2, 3), np.float32), "z": np.ones(1, np.float32)}, path, {"format": "some"}
    )  # which makes it add blanks
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    whole = path.read_bytes().replace(b'"z"', b'"\\u007a"').replace(b" " * 5, b"", 1)
    assert len(whole) == path.stat().st_size
    path.write_bytes(whole)
    kinds = [("a", ("F32", (2, 3))), ("z", ("F32", (1,)))]
    check(str(path), "a", [(*kind, at) for kind, at in zip(kinds, (header, header + 24))], header)
    for places in ((header, header + 20), (header + 4, header + 24)):
        with pytest.raises(DataError, match="is not in its place"):
            check(str(path), "a", [(*kind, at) for kind, at in zip(kinds, places)], header)


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """A change of bytes that are there."""

    def change(whole: bytes) -> bytes:
        assert len(old) == len(new) and old in whole
        return whole.replace(old, new, 1)

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda whole: b"\1" + whole[1:], "its header has another length"),
        (lambda whole: whole[:-1], "bytes instead of"),
        (lambda whole: whole + b"\0", "bytes instead of"),
        (lambda whole: whole[:20], "metadata"),
        (lambda whole: b"", "its header has another length"),
        (replaced(b'"format":"pt"', b'"format": 12 '), "metadata"),
        (replaced(b'"format":"pt"', b'"format":"\\x"'), "metadata"),
        (replaced(b'"format":"pt"', b'"format":"\n\n"'), "metadata"),
        (replaced(b'"aa"', b'"ab"'), "is not in its place"),
        (replaced(b'"F32"', b'"I32"'), "aa has another dtype or shape"),
        (replaced(b'"F32"', b'"F99"'), "aa is not in its place"),
        (replaced(b"[2,3]", b"[3,2]"), "aa has another dtype or shape"),
        (replaced(b"[2,3]", b"[2,,]"), "is not valid"),
        (replaced(b"56,80]", b"55,79]"), "aa is not in its place"),
        (replaced(b"]}}", b"]}]"), "does not end behind"),
        (replaced(b"]}} ", b"]}}x"), "does not end behind"),
    ],
)
def test_what_is_noticed(tmp_path: Path, change: Callable[[bytes], bytes], problem: str) -> None:
    path = tmp_path / "a.safetensors"
    places = written(path, ("aa", "bb", "cc", "dd"), {"format": "pt"})
    places.check(str(path), "a")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=problem):
        places.check(str(path), "a")
