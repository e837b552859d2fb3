"""The digest that a native header holds of itself, which reveals a change of the header.

It is not a signature: somebody who changes a header on purpose can update the digest. Only a comparison with the
original weights reveals that.
"""

from __future__ import annotations

import re

UNSEALED = "0" * 32
"""The placeholder of the digest while the header is hashed."""

_PLACE = re.compile(rb'"quantcli":"\{\\"check\\":\\"([0-9a-f]{32})\\"')
"""The text before a header's own digest. Inside any other name or text these quotes would have backslashes."""


def _found(header: bytes | bytearray) -> tuple[int, bytes] | None:
    """The place of a header's own digest, and its correct value; None for headers without one."""
    from xxhash import xxh3_128

    place = _PLACE.search(header)
    if place is None:
        return None
    hasher, whole = xxh3_128(), memoryview(header)  # a header may have 100 MB: no copies
    for part in (whole[: place.start(1)], UNSEALED.encode(), whole[place.end(1) :]):
        hasher.update(part)
    return place.start(1), hasher.hexdigest().encode()


def seal(header: bytearray) -> None:
    """Fill in the digest of a header (length and JSON) in its place."""
    found = _found(header)
    assert found is not None
    at, digest = found
    header[at : at + len(digest)] = digest


def holds(header: bytes) -> bool | None:
    """Whether a header is as it was written; None when it has no digest of its own."""
    found = _found(header)
    return None if found is None else header.startswith(found[1], found[0])
