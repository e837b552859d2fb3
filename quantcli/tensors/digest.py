"""Digests of a tensor's bytes: a fast one that runs in parallel, and SHA-256.

`xxh3` is the XXH3-128 of the concatenated XXH3-128 digests (16 bytes each, big-endian) of consecutive chunks of
256 KiB, so that threads can take chunks in any order; `sha256` is the plain SHA-256 of the bytes. Both are of the
little-endian C-order bytes, whatever the file they came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

CHUNK = 1 << 18


class Chunks:
    """The digests of a tensor's chunks, filled in from several threads."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._digests = bytearray(16 * -(-nbytes // CHUNK))
        self._seen = bytearray(-(-nbytes // CHUNK))

    def add(self, start: int, block: memoryview, read: Callable[[int, memoryview], None]) -> None:
        """Take in the chunks that begin inside the `block` of bytes from `start`; `read` fetches what the last of
        them has beyond it."""
        from xxhash import xxh3_128

        end = start + len(block)
        for at in range(-(-start // CHUNK) * CHUNK, end, CHUNK):
            stop = min(at + CHUNK, self.nbytes)
            hasher = xxh3_128(block[at - start : stop - start])
            if stop > end:
                rest = bytearray(stop - end)
                read(end, memoryview(rest))
                hasher.update(rest)
            self._digests[at // CHUNK * 16 : at // CHUNK * 16 + 16] = hasher.digest()
            self._seen[at // CHUNK] = 1

    def complete(self, read: Callable[[int, memoryview], None]) -> None:
        """Read and take in the chunks that no block began in."""
        at = self._seen.find(0)
        while at >= 0:
            block = memoryview(bytearray(min(CHUNK, self.nbytes - at * CHUNK)))
            read(at * CHUNK, block)
            self.add(at * CHUNK, block, read)
            at = self._seen.find(0, at)

    def hexdigest(self) -> str:
        """The digest of the whole tensor, once every chunk is in."""
        from xxhash import xxh3_128

        return str(xxh3_128(bytes(self._digests)).hexdigest())


def sha256(nbytes: int, read: Callable[[int, memoryview], None]) -> str:
    """The SHA-256 of a tensor, read in order."""
    hasher, buffer = hashlib.sha256(), memoryview(bytearray(min(nbytes, 1 << 20)))
    for start in range(0, nbytes, 1 << 20):
        block = buffer[: min(1 << 20, nbytes - start)]
        read(start, block)
        hasher.update(block)
    return hasher.hexdigest()
