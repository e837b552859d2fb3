"""The digest that a native header holds of itself, which reveals a change of the header.

It is not a signature: somebody who changes a header on purpose can update the digest. Only a comparison with the
original weights reveals that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

UNSEALED = "0" * 32
"""The placeholder of the digest while the header is hashed."""

_PLACE = re.compile(rb'"quantcli":"\{\\"check\\":\\"([0-9a-f]{32})\\"')
"""The text before a header's own digest. Inside any other name or text these quotes would have backslashes."""
_LENGTH = len(b'"quantcli":"{\\"check\\":\\"') + 32 + len(b'\\"')


def seal(pieces: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The pieces of a header (length and JSON, and where each is) with its own digest filled in. The one with the place
    for it comes last."""
    from xxhash import xxh3_128

    hasher, held = xxh3_128(), None
    for at, piece in pieces:
        place = _PLACE.search(piece) if held is None else None
        if place is None:
            hasher.update(piece)
            yield at, piece
            continue
        before, behind = piece[: place.start(1)], piece[place.end(1) :]
        hasher.update(before + UNSEALED.encode() + behind)
        held = at, before, behind
    assert held is not None
    yield held[0], held[1] + hasher.hexdigest().encode() + held[2]


def holds(pieces: Iterable[bytes]) -> bool | None:
    """Whether a header is as it was written; None when it has no digest of its own. pieces: of it, in order: a header
    may have 100 MB."""
    from xxhash import xxh3_128

    hasher, held, rest = xxh3_128(), None, b""
    for piece in pieces:
        piece, rest = rest + piece, b""
        place = _PLACE.search(piece) if held is None else None
        if place is not None:
            held = place[1]
            piece = piece[: place.start(1)] + UNSEALED.encode() + piece[place.end(1) :]
        elif held is None:  # it may begin at the end of this one
            whole = max(len(piece) - _LENGTH + 1, 0)
            piece, rest = piece[:whole], piece[whole:]
        hasher.update(piece)
    return None if held is None else held == hasher.hexdigest().encode()
