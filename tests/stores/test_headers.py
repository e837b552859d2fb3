"""Where the tensors of a safetensors file are put."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from random import Random
from typing import cast
from unittest import mock

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from making import NUMPY_OF

from quantcli import memory
from quantcli.errors import DataError
from quantcli.stores import seal
from quantcli.stores import text as stores_text
from quantcli.stores.compact import Names
from quantcli.stores.files import InputFile
from quantcli.stores.safetensors import SafetensorsFile, lay_out
from quantcli.stores.safetensors_header import METADATA, parsed
from quantcli.tensors.info import TensorInfo

DTYPES = sorted(set(NUMPY_OF) - {"C64"})
INFOS = st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), min_size=1, max_size=12)


@given(INFOS)
def test_every_tensor_is_aligned_and_follows_the_one_before(drawn: list[tuple[str, list[int]]]) -> None:
    """Wider elements go first, so that every tensor is aligned when the file is mapped; equal ones keep their order."""
    infos = [TensorInfo(f"t{n}", dtype, tuple(shape)) for n, (dtype, shape) in enumerate(drawn)]
    found = lay_out(infos, {"a": "text"})
    assert found.header_size % 8 == 0
    at = found.header_size
    for info in found.infos:
        assert found.offsets[info.name] == at and at % NUMPY_OF[info.dtype].itemsize == 0
        at += NUMPY_OF[info.dtype].itemsize * math.prod(info.shape)
    assert found.size == at
    places = [(-NUMPY_OF[i.dtype].itemsize, infos.index(i)) for i in found.infos]
    assert places == sorted(places) and len(places) == len(infos)


def test_a_tensor_with_the_name_of_the_metadata() -> None:
    with pytest.raises(DataError, match="cannot hold a tensor of this name"):
        lay_out([TensorInfo(METADATA, "F32", (1,))], {})


class Watched(InputFile):
    """A file that remembers what is read of it, and what is given up."""

    def __init__(self, path: Path, *, once: bool = False) -> None:
        super().__init__(str(path))
        self.once, self.reads, self.released = once, list[tuple[int, int]](), list[tuple[int, int]]()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads.append((offset, len(buffer)))
        super().read_into(offset, buffer)

    def passed(self, offset: int, size: int) -> None:
        self.released.append((offset, size))


def stored(folder: Path, metadata: dict[str, str] | None = None) -> Path:
    """Tensors a, b, c of 4 bytes beside each other, then one of 8 bytes, and d."""
    path, header, at = folder / "a.safetensors", {METADATA: metadata or {}}, 0
    entries: dict[str, object] = dict(header)
    for name, size in (("a", 4), ("b", 4), ("c", 4), ("wide", 8), ("d", 4)):
        entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).replace('"quantcli": ', '"quantcli":').encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(range(at)))
    return path


def test_tensors_that_lie_side_by_side_are_read_at_once(tmp_path: Path) -> None:
    source = SafetensorsFile(file := Watched(stored(tmp_path)))
    for names, reads in ((["a", "b", "c", "d"], [(0, 12), (20, 4)]), (["d", "a", "b"], [(20, 4), (0, 8)]),
                         (["b"], [(4, 4)]), ([], []), (["a", "c"], [(0, 4), (8, 4)])):  # fmt: skip
        file.reads.clear()
        source.read_each(names, memoryview(buffer := bytearray(4 * len(names))))
        assert file.reads == [(source.data + at, size) for at, size in reads]
        assert list(buffer) == [b for at, size in reads for b in range(at, at + size)]
    source.close()


def test_runs_of_a_tensor_and_what_was_read_of_it(tmp_path: Path) -> None:
    source = SafetensorsFile(file := Watched(stored(tmp_path)))
    assert file.released == [(0, source.data)]
    runs = np.zeros((2, 2), np.uint8)
    source.read_runs("wide", 1, 4, runs)
    assert runs.tolist() == [[13, 14], [17, 18]]
    source.passed("wide", 2, 5)
    assert file.released[1:] == [(source.data + 14, 5)]
    source.close()


def test_a_pipe_is_asked_for_no_more_than_its_header(tmp_path: Path) -> None:
    """What is read ahead of a pipe is not there to be read again: first the length, then just the header."""
    source = SafetensorsFile(file := Watched(stored(tmp_path), once=True))
    assert file.reads == [(0, 8), (8, source.data - 8)]
    source.close()


def test_tensors_by_name_are_those_of_the_header(tmp_path: Path) -> None:
    """A mapping says of every name whether it holds it, which `get` and `in` rely on."""
    source = SafetensorsFile(InputFile(str(stored(tmp_path, {}))))
    found = source.named()
    assert all(name in found and found[name].name == name for name in found) and len(found) == len(list(found)) > 0
    assert "none" not in found and found.get("none") is None
    source.close()


def test_only_our_files_have_a_document(tmp_path: Path) -> None:
    for metadata, documents in (({}, []), ({"format": "pt"}, []), ({"quantcli": "{}"}, ["{}"])):
        source = SafetensorsFile(InputFile(str(stored(tmp_path, metadata))))
        assert [d.text for d in source.documents] == documents
        assert [d.seal for d in source.documents] == [None] * len(documents)  # no seal, so nothing is known
        source.close()


@pytest.mark.parametrize("length", [100_000_001, 1 << 62, 2000])
def test_a_header_that_is_too_long_or_cut_short(length: int, tmp_path: Path) -> None:
    """A sparse file holds all of a header that is too long."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with path.open("r+b") as file:
        file.truncate(100_000_100 if length == 100_000_001 else 100)
    with pytest.raises(DataError, match=f"its header claims {length} bytes"):
        SafetensorsFile(InputFile(str(path)))


@pytest.mark.parametrize(("old", "new", "problem"), [
    (b"[12, 20]", b"[12, 16]", "its U8 elements take 8 bytes, but its offsets leave 4"),
    (b'"shape": [8]', b'"shape":[-8]', ": dimension -8 is not"), (b"[12, 20]", b"[-2, 20]", ": offset -2 is not"),
])  # fmt: skip
def test_numbers_that_cannot_be(old: bytes, new: bytes, problem: str, tmp_path: Path) -> None:
    path = stored(tmp_path)
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(DataError, match=problem):
        SafetensorsFile(InputFile(str(path)))


def test_a_header_that_no_longer_matches_its_own_digest(tmp_path: Path) -> None:
    source = SafetensorsFile(InputFile(str(stored(tmp_path, {"quantcli": '{"check":"' + "1" * 32 + '"}'}))))
    assert [d.seal for d in source.documents] == [False]
    source.close()


def read_whole(text: bytes) -> object:
    """Metadata, tensors and their places in the header with this text, or what is wrong with it."""
    try:
        metadata, tensors = parsed(lambda at, size: text[at : at + size], len(text), "a")
    except DataError as error:
        return str(error)
    return metadata, list(tensors), [begin for _, begin in tensors.kinds()]


NAMES = st.text(max_size=8) | st.sampled_from(["a", "b", "\N{LATIN SMALL LETTER E WITH ACUTE}", "\U0001f600", METADATA])


@given(
    st.dictionaries(NAMES, st.integers(0, 3), min_size=1, max_size=6),
    st.dictionaries(st.text(max_size=5), st.text(max_size=12), max_size=3),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 2, 3, 7, 64, 1 << 20]),
    st.randoms(use_true_random=False),
)
def test_headers_as_libraries_write_them_are_read_as_json_is(
    sizes: dict[str, int], metadata: dict[str, str], compact: bool, escaped: bool, piece: int, random: Random
) -> None:
    """They are read in pieces and walked through entry by entry, wherever a piece ends and whatever the order of the
    entries. With a line end behind it, all of a header is read as JSON."""
    header, at = dict[str, object](), 0
    for name, size in sizes.items():
        header[name] = {"dtype": "F32", "shape": [size, 2], "data_offsets": [at, at := at + 8 * size]}
    header.pop(METADATA, None)
    entries = list(header.items())
    random.shuffle(entries)
    header = {METADATA: metadata, **dict(entries)} if metadata else dict(entries)
    separators = (",", ":") if compact else (", ", ": ")
    try:
        text = json.dumps(header, ensure_ascii=escaped, separators=separators).encode()
    except UnicodeError:
        return
    with mock.patch.object(stores_text, "PIECE", piece):
        usual, padded = read_whole(text), read_whole(text + b" " * 5)
    assert usual == padded == read_whole(text + b"\n")


@given(
    st.lists(st.sampled_from([
        '"', "{", "}", "[", "]", ",", ":", " ", "0", "1", "4", "8", "-1", "1e2", "NaN", "00", "\n", "\x7f", "\xe9",
        "\\", "\\u00e9", "\\ud83d", "\\ude00", '"a"', '"b"', '"dtype"', '"F32"', '"shape"', '"data_offsets"',
        '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}', '"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}',
        '"a":{"dtype":"U8","shape":[6],"data_offsets":[0,6]}', '"__metadata__":{"a":"b"}', "99999999999999999999",
    ]), max_size=8).map("".join), st.sampled_from([1, 5, 1 << 20]), st.booleans(),
)  # fmt: skip
def test_what_is_accepted_is_json_and_says_the_same(middle: str, piece: int, latin: bool) -> None:
    """Whatever stands in a header: when it is accepted, the libraries for JSON and for safetensors find the same
    tensors in it, each key once, and their bytes one after another."""
    text = f"{{{middle}}}".encode("latin-1" if latin else "utf-8")
    with mock.patch.object(stores_text, "PIECE", piece):
        found = read_whole(text)
    assert found == read_whole(text)
    if isinstance(found, str):
        return
    metadata, tensors, begins = cast("tuple[dict[str, str], list[TensorInfo], list[int]]", found)
    pairs = json.loads(text.decode("utf-8"), object_pairs_hook=list)
    assert len({key for key, _ in pairs}) == len(pairs)
    wanted = {key: dict(value) for key, value in pairs}
    assert metadata == wanted.pop(METADATA, {})
    assert {i.name: (i.dtype, list(i.shape), [at, at + i.nbytes]) for i, at in zip(tensors, begins)} == {
        name: (entry["dtype"], entry["shape"], entry["data_offsets"]) for name, entry in wanted.items()
    }
    assert begins == [sum(i.nbytes for i in tensors[:n]) for n in range(len(tensors))]
    data = bytes(range(sum(i.nbytes for i in tensors)))
    read = dict(safetensors.deserialize(len(text).to_bytes(8, "little") + text + data))
    assert {n: (t["shape"], bytes(t["data"])) for n, t in read.items()} == {
        i.name: (list(i.shape), data[at : at + i.nbytes]) for i, at in zip(tensors, begins)
    }


@given(st.lists(st.text(max_size=3), max_size=300), st.lists(st.text(max_size=3), max_size=20))
def test_a_table_of_names(names: list[str], others: list[str]) -> None:
    """It holds what a list without repetitions holds, and finds what a dict finds."""
    table, known = Names(), dict[str, int]()
    for name in names:
        assert table.add(name) == (name not in known)
        known.setdefault(name, len(known))
    assert list(table) == list(known) and [table[i] for i in range(len(table))] == table[:] == list(known)
    assert [table.find(name) for name in [*names, *others]] == [known.get(name, -1) for name in [*names, *others]]
    assert all((name in table) == (name in known) for name in others)


def test_places_that_no_file_has(tmp_path: Path) -> None:
    """Offsets beyond 64 bits are refused as any hole is, not by an error of Python."""
    text = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1 << 70, (1 << 70) + 1]}}).encode()
    assert read_whole(text) == "a: a: its data leaves a hole before it"


def test_a_header_that_memory_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of a million tensors, 85 MB, took 931 MiB: 12 bytes for each are asked for, but only from 16 MiB on."""
    path, free = tmp_path / "a.safetensors", [0]
    monkeypatch.setattr(memory, "available", lambda: free[0])
    for length in (1 << 24, (1 << 24) + 1):
        path.write_bytes(length.to_bytes(8, "little") + b"{" + b" " * (length - 2) + b"}")
        for free[0], problem in ((12 * length - 1, "takes 192 MiB to read"), (12 * length, "holds no tensors")):
            with pytest.raises(DataError, match=problem if length > 1 << 24 else "holds no tensors"):
                SafetensorsFile(InputFile(str(path)))


@given(st.binary(max_size=60), st.binary(max_size=60), st.lists(st.integers(1, 50), min_size=1), st.booleans())
def test_the_digest_of_a_header_that_is_read_in_pieces(
    before: bytes, behind: bytes, sizes: list[int], changed: bool
) -> None:
    """Wherever these end, in its own place too; a header that was changed is told."""
    header = before + b'"quantcli":"{\\"check\\":\\"' + seal.UNSEALED.encode() + b'\\"' + behind
    [(_, sealed)] = seal.seal([(0, header)])
    if changed:
        sealed += b" "
    ends = [0, *itertools.accumulate(itertools.chain(sizes, itertools.repeat(sizes[-1], len(sealed))))]
    assert seal.holds(sealed[a:b] for a, b in itertools.pairwise(ends)) == (not changed)
    assert seal.holds([before]) is None
