"""Files of an output folder that are complete, and whether they are still the same when the folder gets its name.

Between the two may lie hours, in which somebody may clear away, cut short or replace what is in the hidden folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from quantcli.errors import QuantcliError
from quantcli.stores import system

_SAMPLES, _SAMPLE = 16, 1 << 16
"""Places of a file that are compared, and bytes at each."""


@dataclass(frozen=True, slots=True)
class CompleteFile:
    """A file that is complete. identity: its inode and when it was written; sample: the digest of some of its bytes."""

    size: int
    identity: tuple[int, int]
    sample: str

    @classmethod
    def of(cls, path: str) -> CompleteFile:
        """The file as it is now. Raises OSError."""
        fd = os.open(path, system.READ)
        try:
            found = os.fstat(fd)
            return cls(found.st_size, _identity(found), _sample(fd, found.st_size))
        finally:
            os.close(fd)

    def is_at(self, path: str) -> bool:
        """Whether it is still there. Where its inode or time have changed its bytes decide: file systems of networks
        and of memory cards number and date files anew when their caches are full."""
        try:
            found = os.stat(path, follow_symlinks=False)
            if found.st_size != self.size:
                return False
            return _identity(found) == self.identity or CompleteFile.of(path).sample == self.sample
        except OSError:
            return False


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_ino, found.st_mtime_ns


def _sample(fd: int, size: int) -> str:
    """The digest of bytes from the begin to the end of a file."""
    from xxhash import xxh3_128

    hasher, last = xxh3_128(), max(size - _SAMPLE, 0)
    buffer = memoryview(bytearray(_SAMPLE))
    for at in sorted({last * number // (_SAMPLES - 1) for number in range(_SAMPLES)}):
        got = system.read_at(fd, buffer, at)
        hasher.update(buffer[:got])
    return hasher.hexdigest()


def no_longer(path: str) -> QuantcliError:
    """The error for a file that somebody has removed or changed after it was finished. path: in the output."""
    problem = "the finished file was removed or changed by another process before the output was complete"
    return QuantcliError(problem, place=[path], hint="run again when nothing else touches the hidden folder beside it")
