"""A vocabulary from the model of SentencePiece itself (tokenizer.model), for folders without a tokenizer.json.

    ModelProto      1 pieces (1 text, 2 score, 3 type)   2 how it was trained   3 how text is normalized
    training        3 kind of model (1 Unigram, 2 BPE)   24 spaces behind words   35 whether it falls back to bytes
                    40 to 43 ids of the tokens for what is unknown, for begin, end and padding
    normalizing     2 table of replacements   3 a space before text   4 runs of spaces as one

Types of pieces have the numbers of llama.cpp's types of tokens.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from quantcli.errors import DataError
from quantcli.layouts.gguf.unigram import OtherwiseError, charsmap
from quantcli.stores.protobuf import BYTES, FOUR, VARINT, Field, Wire, signed

NAMES = ("tokenizer.model", "spiece.model")
"""Files of models whose pieces have the ids of the model's tokens."""

_UNIGRAM, _BPE = 1, 2
_NORMAL, _USER, _UNUSED = 1, 4, 5
_APART = "llama.cpp splits text at user-defined pieces first, so that spaces beside them may be tokens of their own"
_SPECIAL = {40: ("unknown", 0), 41: ("bos", 1), 42: ("eos", 2), 43: ("padding", -1)}
"""Fields of ids, with the names of keys and what holds where they are missing."""

_KINDS: Mapping[int, Mapping[int, int]] = {
    1: {1: BYTES, 2: FOUR, 3: VARINT},
    2: dict.fromkeys((3, 24, 35, *_SPECIAL), VARINT),
    3: {2: BYTES, 3: VARINT, 4: VARINT},
}
"""The fields that are read, by message, each with its kind."""


class _Held:
    """A file that is in memory."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.size = raw, len(raw)

    def read(self, start: int, size: int) -> bytes:
        """A run of its bytes."""
        return self.raw[start : start + size]


@dataclass(slots=True)
class _Model:
    """What a file says; how text is normalized is usual where it says nothing."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    kind: int = _UNIGRAM
    behind: bool = False
    falls_back: bool = False
    table: bytes = b""
    prefix: bool = True
    merged: bool = True
    special: dict[str, int] = field(default_factory=dict)


def _parsed(raw: bytes) -> _Model:
    """The model of a file. Raises DataError for what is none."""
    wire, found = Wire(_Held(raw)), _Model()
    for part in wire.fields(0, len(raw)):
        if part.kind != BYTES:
            continue
        values = _values(wire, part, raw)
        if part.number == 1:
            found.pieces.append(values.get(1, b"").decode())
            found.scores.append(struct.unpack("<f", values[2])[0] if 2 in values else 0.0)
            found.types.append(values.get(3, _NORMAL))
        elif part.number == 2:
            found.kind, found.behind = values.get(3, _UNIGRAM), bool(values.get(24))
            found.falls_back = bool(values.get(35))
            found.special = {name: signed(values.get(n, usual)) for n, (name, usual) in _SPECIAL.items()}
        elif part.number == 3:
            found.table, found.prefix = values.get(2, b""), bool(values.get(3, 1))
            found.merged = bool(values.get(4, 1))
    return found


def _values(wire: Wire, message: Field, raw: bytes) -> dict[int, Any]:
    """The fields of a message that are read: whole numbers, or bytes. Raises DataError for one of another kind."""
    kinds, found = _KINDS.get(message.number, {}), dict[int, Any]()
    for part in wire.fields(message.value, message.value + message.size):
        if part.number not in kinds:
            continue
        if part.kind != kinds[part.number]:
            raise DataError(f"field {part.number} is of another kind")
        found[part.number] = part.value if part.kind == VARINT else raw[part.value : part.value + part.size]
    return found


def keys(raw: bytes, settings: Mapping[str, Any], size: int) -> tuple[dict[str, Any], dict[str, int], str]:
    """The keys of a vocabulary of `size` tokens, ids by token, and what llama.cpp does differently. settings: those of
    tokenizer_config.json, which may have more tokens.

    Raises DataError for a file that is no such model, OtherwiseError for one that llama.cpp does not run.
    """
    try:
        model = _parsed(raw)
    except (UnicodeError, DataError):
        raise DataError("it is not a model of SentencePiece") from None
    if model.kind not in (_UNIGRAM, _BPE) or model.behind or not model.pieces:
        raise OtherwiseError("its kind of SentencePiece model is not supported")
    if model.kind == _BPE and not model.falls_back:
        raise OtherwiseError("it does not fall back to bytes")
    for number, piece, special in sorted(_added(settings)):
        if number == len(model.pieces):
            model.pieces.append(piece)
            model.scores.append(0.0)
            model.types.append(3 if special else _USER)
    if len(model.pieces) > size:
        raise OtherwiseError(f"token id {len(model.pieces) - 1} is beyond the {size} rows of the embedding")
    missing = range(len(model.pieces), size)
    found: dict[str, Any] = {
        "model": "llama" if model.kind == _BPE else "t5",
        "pre": "default",
        "tokens": [*model.pieces, *(f"[PAD{i}]" for i in missing)],
        "scores": [*model.scores, *(0.0 for _ in missing)],
        "token_type": [*model.types, *(_UNUSED for _ in missing)],
        "add_space_prefix": model.prefix,
    }
    ids = model.special or dict(_SPECIAL.values())
    for name, number in ids.items():
        if 0 <= number < len(model.pieces):
            found[f"{name}_token_id"] = number
    if model.kind == _UNIGRAM:
        found["remove_extra_whitespaces"] = model.merged
        found |= {"precompiled_charsmap": charsmap(model.table)} if model.table else {}
    return found, {piece: i for i, piece in enumerate(model.pieces)}, _APART if _USER in model.types else ""


def _added(settings: Mapping[str, Any]) -> Iterator[tuple[int, str, bool]]:
    """Further tokens: their id, their text, and whether they are special."""
    added = settings.get("added_tokens_decoder")
    for number, token in added.items() if isinstance(added, dict) else ():
        text = token.get("content") if isinstance(token, dict) else None
        if number.isdecimal() and isinstance(text, str):
            yield int(number), text, token.get("special") is True
