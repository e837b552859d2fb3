"""Digests of a tensor's bytes: a fast one that runs in parallel, and SHA-256.

`xxh3` is the XXH3-128 of the concatenated XXH3-128 digests (16 bytes each, big-endian) of consecutive chunks of
256 KiB, so that threads can take chunks in any order; `sha256` is the plain SHA-256 of the bytes. Both are of the
little-endian C-order bytes, whatever the file they came from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xxhash import xxh3_128

Read = Callable[[int, memoryview], None]
"""Fills a buffer with the bytes of a tensor from an offset on."""

CHUNK = 1 << 18


class Chunks:
    """The digests of a tensor's chunks, filled in from several threads.

    Of a chunk that blocks cut, a beginning is kept as the state of its hash until the block after it is added, and a
    block that is added before the one ahead of it as its bytes: of these there are no more than threads.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._digests = bytearray(16 * -(-nbytes // CHUNK))
        self._seen = bytearray(-(-nbytes // CHUNK))
        self._lock = threading.Lock()
        self._begun: dict[int, tuple[xxh3_128, int]] = {}
        self._ahead: dict[int, bytes] = {}

    def add(self, start: int, block: memoryview) -> None:
        """Add the `block` of bytes from `start`."""
        from xxhash import xxh3_128

        end = start + len(block)
        first = min(-(-start // CHUNK) * CHUNK, end)
        for at in range(first, end, CHUNK):
            part = block[at - start : at - start + CHUNK]
            self._continue(xxh3_128(part), at // CHUNK, at + len(part))
        if start < first:
            self._append(start, block[: first - start])

    def _append(self, start: int, part: memoryview) -> None:
        """Add bytes of a chunk that begins before them."""
        with self._lock:
            begun = self._begun.pop(start, None)
            if begun is None:
                self._ahead[start] = bytes(part)
                return
        hasher, chunk = begun
        hasher.update(part)
        self._continue(hasher, chunk, start + len(part))

    def _continue(self, hasher: xxh3_128, chunk: int, end: int) -> None:
        """Finish a chunk that is hashed up to `end`, or keep it until more of it is added."""
        with self._lock:
            while end < min((chunk + 1) * CHUNK, self.nbytes):
                part = self._ahead.pop(end, None)
                if part is None:
                    self._begun[end] = hasher, chunk
                    return
                hasher.update(part)
                end += len(part)
            self._digests[chunk * 16 : chunk * 16 + 16] = hasher.digest()
            self._seen[chunk] = 1

    def complete(self, read: Read) -> None:
        """Read and add the chunks of which a part was not added."""
        at = self._seen.find(0)
        while at >= 0:
            block = memoryview(bytearray(min(CHUNK, self.nbytes - at * CHUNK)))
            read(at * CHUNK, block)
            self.add(at * CHUNK, block)
            at = self._seen.find(0, at)

    def hexdigest(self) -> str:
        """The digest of the whole tensor, once every chunk is in."""
        from xxhash import xxh3_128

        return str(xxh3_128(bytes(self._digests)).hexdigest())


def sha256(nbytes: int, read: Read) -> str:
    """The SHA-256 of a tensor, read in order."""
    import hashlib  # OpenSSL is 3 MiB that few runs need

    hasher, buffer = hashlib.sha256(), memoryview(bytearray(min(nbytes, 1 << 20)))
    for start in range(0, nbytes, 1 << 20):
        block = buffer[: min(1 << 20, nbytes - start)]
        read(start, block)
        hasher.update(block)
    return hasher.hexdigest()


def digest_of(block: memoryview, kind: str) -> str | None:
    """The digest of a tensor whose bytes are at hand; kind: as in `kind_of`."""
    if kind == "none":
        return None
    if kind == "sha256":
        import hashlib

        return hashlib.sha256(block).hexdigest()
    digest, hexdigest = _xxh3()
    if len(block) <= CHUNK:
        return hexdigest(digest(block) if len(block) else b"")
    return hexdigest(b"".join(digest(block[at : at + CHUNK]) for at in range(0, len(block), CHUNK)))


@cache
def _xxh3() -> tuple[Callable[[Any], bytes], Callable[[bytes], str]]:
    """XXH3-128 as bytes and as text, imported once: to ask for an import takes as long as a small tensor's digest."""
    from xxhash import xxh3_128_digest, xxh3_128_hexdigest

    return xxh3_128_digest, xxh3_128_hexdigest


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
            self._chunks.add(start, block)

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
        """The digest; reads the chunks of which a part was not seen, and everything for a SHA-256 without `apart`."""
        if self._chunks is not None:
            self._chunks.complete(self._read)
            return self._chunks.hexdigest()
        if self.kind == "sha256" and self._sha256 is None:
            self._in_order()
        return self._sha256
