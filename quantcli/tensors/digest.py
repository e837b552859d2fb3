"""Digests of a tensor's bytes: a fast one that runs in parallel, and SHA-256.

`xxh3` is the XXH3-128 of the concatenated XXH3-128 digests (16 bytes each, big-endian) of consecutive chunks of
256 KiB, so that threads can take chunks in any order; `sha256` is the plain SHA-256 of the bytes. Both are of the
little-endian C-order bytes, whatever the file they came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

Read = Callable[[int, memoryview], None]
"""Fills a buffer with the bytes of a tensor from an offset on."""

CHUNK = 1 << 18


class Chunks:
    """The digests of a tensor's chunks, filled in from several threads."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._digests = bytearray(16 * -(-nbytes // CHUNK))
        self._seen = bytearray(-(-nbytes // CHUNK))

    def add(self, start: int, block: memoryview, read: Read) -> None:
        """Add the chunks that begin inside the `block` of bytes from `start`; `read` fetches the bytes of the last one
        that lie beyond it."""
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

    def complete(self, read: Read) -> None:
        """Read and add the chunks that do not begin in any block."""
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


def sha256(nbytes: int, read: Read) -> str:
    """The SHA-256 of a tensor, read in order."""
    hasher, buffer = hashlib.sha256(), memoryview(bytearray(min(nbytes, 1 << 20)))
    for start in range(0, nbytes, 1 << 20):
        block = buffer[: min(1 << 20, nbytes - start)]
        read(start, block)
        hasher.update(block)
    return hasher.hexdigest()


def kind_of(known: str | None) -> str:
    """The kind of a digest: `xxh3`, `sha256` or, of None, `none`."""
    return "none" if known is None else "sha256" if len(known) == 64 else "xxh3"


class Digested:
    """The digest of a tensor from the blocks that are read anyway. read: fetches bytes of it; kind: as in `kind_of`.

    Either `fill` or `see` every block and do what `apart` gives besides, or do what `alone` gives. Then `found`.
    """

    def __init__(self, read: Read, nbytes: int, kind: str) -> None:
        self.kind = kind
        self._read, self._nbytes = read, nbytes
        self._chunks = Chunks(nbytes) if kind == "xxh3" else None
        self._sha256: str | None = None

    def fill(self, start: int, block: memoryview) -> None:
        """Fill a block with bytes of the tensor, and add it."""
        self._read(start, block)
        self.see(start, block)

    def see(self, start: int, block: memoryview) -> None:
        """Add a block that was read."""
        if self._chunks is not None:
            self._chunks.add(start, block, self._read)

    def apart(self) -> list[Callable[[], None]]:
        """The extra pass of SHA-256, which reads the tensor in order."""
        return [self._in_order] if self.kind == "sha256" else []

    def alone(self, step: int, advance: Callable[[int], None] = lambda nbytes: None) -> list[Callable[[], None]]:
        """The whole pass where nothing else reads the tensor, in `step` bytes. advance: called with the bytes read."""
        starts = range(0, self._nbytes if self.kind == "xxh3" else 0, step)
        return self.apart() + [partial(self._scan, start, step, advance) for start in starts]

    def _scan(self, start: int, step: int, advance: Callable[[int], None]) -> None:
        block = memoryview(bytearray(min(step, self._nbytes - start)))
        self.fill(start, block)
        advance(len(block))

    def _in_order(self) -> None:
        self._sha256 = sha256(self._nbytes, self._read)

    def found(self) -> str | None:
        """The digest; reads the chunks that begin in no block, and everything for a SHA-256 without `apart`."""
        if self._chunks is not None:
            self._chunks.complete(self._read)
            return self._chunks.hexdigest()
        if self.kind == "sha256" and self._sha256 is None:
            self._in_order()
        return self._sha256
