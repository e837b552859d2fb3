"""Tokenizers of whole pieces with scores (Unigram), as T5 and XLM-RoBERTa have them, in llama.cpp's keys.

llama.cpp finds the pieces with the highest sum of scores as the tokenizers library does, after a table of replacements
that SentencePiece made (precompiled_charsmap). It takes runs of spaces for one, and none at either end.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from quantcli.errors import DataError, printable

SPACE = "\u2581"
"""What stands for a space in pieces."""

UNKNOWN_BYTES = "llama.cpp reads what has no token as unknown, where the tokenizer falls back to bytes"
ENDS = "llama.cpp drops spaces at the end of a text"

_U8, _ARRAY = 0, 9


class OtherwiseError(Exception):
    """The tokenizer cannot be expressed in llama.cpp's keys."""


def charsmap(raw: bytes) -> bytes:
    """The table of replacements as the value of a key."""
    return struct.pack("<IIQ", _ARRAY, _U8, len(raw)) + raw


def scores(model: Mapping[str, Any], size: int) -> list[tuple[str, float]]:
    """Pieces and scores by id. Raises DataError for a malformed vocabulary, OtherwiseError for too large a one."""
    vocab = model.get("vocab")
    found = list[tuple[str, float]]()
    for entry in vocab if isinstance(vocab, list) else [None]:
        piece, score = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if not isinstance(piece, str) or isinstance(score, bool) or not isinstance(score, (int, float)):
            raise DataError("it is not a list of pieces and scores", place=["tokenizer.json", "vocab"])
        found.append((piece, float(score)))
    if len(found) > size:
        raise OtherwiseError(f"token id {len(found) - 1} is beyond the {size} rows of the embedding")
    return found


def spaces(steps: Sequence[Mapping[str, Any]], normal: Sequence[Mapping[str, Any]]) -> tuple[bytes, str]:
    """The table of replacements, and what llama.cpp does differently, of the steps before pieces are looked for.

    Raises OtherwiseError for steps that it does not have, DataError for a table that is none.
    """
    table, strips = b"", False
    for step in normal:
        kind, pattern = step.get("type"), step.get("pattern")
        if kind == "Precompiled" and not table:
            table = _decoded(step.get("precompiled_charsmap"))
        elif kind == "Strip" and step.get("strip_right") is True:
            strips = True
        elif kind == "Replace" and pattern in ({"Regex": " {2,}"}, {"String": "  "}) and step.get("content") in _ONE:
            pass  # runs of spaces count as one in any case
        else:
            raise OtherwiseError(f"it normalizes text in a way that is not supported ({printable(str(kind), 40)})")
    words = bool(steps) and steps[0].get("type") == "WhitespaceSplit"
    last = steps[1:] if words else steps
    if len(last) != 1 or last[0].get("type") != "Metaspace" or last[0].get("replacement") != SPACE:
        raise OtherwiseError("its way of treating spaces is not supported")
    scheme = last[0].get("prepend_scheme", "always" if last[0].get("add_prefix_space", True) else "never")
    if scheme == "never":
        raise OtherwiseError("it adds no space before text, where llama.cpp does for such tokenizers")
    return table, "" if words or strips else ENDS


_ONE = (" ", SPACE)


def _decoded(text: Any) -> bytes:
    try:
        found = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        found = b""
    if len(found) < 4 or int.from_bytes(found[:4], "little") > len(found) - 4:
        raise DataError("it is not a table of replacements", place=["tokenizer.json", "precompiled_charsmap"])
    return found
