"""Digests against their definition."""

from __future__ import annotations

import hashlib
import itertools
import random

import pytest
from making import CHUNK, digest_by_definition

from quantcli.tensors import digest


def in_pieces(data: bytes, cuts: list[int], seed: int) -> str:
    """The digest from pieces that arrive in any order, none of which is read again."""

    def read(start: int, buffer: memoryview) -> None:
        raise AssertionError("read again")

    chunks = digest.Chunks(len(data))
    edges = [0, *cuts, len(data)]
    pieces = list(itertools.pairwise(edges))
    random.Random(seed).shuffle(pieces)
    for start, end in pieces:
        chunks.add(start, memoryview(data)[start:end])
    chunks.complete(read)
    return chunks.hexdigest()


@pytest.mark.parametrize("size", [0, 1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 12345])
def test_the_digest_does_not_depend_on_the_cuts(size: int) -> None:
    data = random.Random(size).randbytes(size)
    expected = digest_by_definition(data)
    random_cuts = sorted(random.Random(1).randrange(size + 1) for _ in range(9))
    for seed, cuts in enumerate([[], [size // 2], list(range(CHUNK, size, CHUNK)), list(range(100_000, size, 100_000)),
                                 list(range(700_000, size, 700_000)), random_cuts]):  # fmt: skip
        assert in_pieces(data, cuts, seed) == expected, cuts


def test_what_was_not_seen_is_read() -> None:
    data = random.Random(0).randbytes(3 * CHUNK + 5)

    def read(start: int, buffer: memoryview) -> None:
        buffer[:] = data[start : start + len(buffer)]

    chunks = digest.Chunks(len(data))
    chunks.add(CHUNK // 2, memoryview(data)[CHUNK // 2 : 2 * CHUNK + 1])
    chunks.complete(read)
    assert chunks.hexdigest() == digest_by_definition(data)


def test_a_constant_that_files_depend_on() -> None:
    """Digests in files must stay readable: this is the published XXH3-128 of no bytes at all."""
    assert digest_by_definition(b"") == "99aa06d3014798d86001c324468d497f"
    assert in_pieces(b"", [], 0) == "99aa06d3014798d86001c324468d497f"
    assert digest.CHUNK == CHUNK


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (5 << 20) + 17])
def test_sha256_is_hashlibs(size: int) -> None:
    data = random.Random(size).randbytes(size)

    def read(start: int, buffer: memoryview) -> None:
        buffer[:] = data[start : start + len(buffer)]

    assert digest.sha256(size, read) == hashlib.sha256(data).hexdigest()
