"""Vocabularies of pieces with scores, and of models of SentencePiece, in llama.cpp's keys. tests/peers compares what
llama.cpp reads with them, id by id."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from quantcli.errors import DataError
from quantcli.layouts.gguf.vocabulary import vocabulary

TABLE = (8).to_bytes(4, "little") + bytes(8) + b"a\0"
WORDS = {"type": "WhitespaceSplit"}
SPACES = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}
TABLED = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(TABLE).decode()}
PIECES = [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["\u2581", -2.5], ["\u2581hi", -1.25]]


def tokenizer(**changes: Any) -> dict[str, Any]:
    special = [{"id": i, "content": c, "special": True} for i, c in enumerate(["<s>", "<pad>", "</s>", "<unk>"])]
    ends = [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}]
    return {
        "model": {"type": "Unigram", "unk_id": 3, "vocab": PIECES, "byte_fallback": False},
        "added_tokens": [*special, {"id": 6, "content": "<mask>", "special": True}],
        "normalizer": TABLED,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [WORDS, SPACES]},
        "post_processor": {"type": "TemplateProcessing", "single": ends},
        **changes,
    }


def read(folder: Path, files: dict[str, Any], size: int = 8) -> Any:
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(raw)
    return vocabulary(lambda n: (folder / n).read_bytes() if (folder / n).exists() else None, {}, size)


def test_pieces_with_scores(tmp_path: Path) -> None:
    settings = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    found = read(tmp_path, {"tokenizer.json": tokenizer(), "tokenizer_config.json": settings})
    assert found.obstacle == found.note == ""
    keys = {name.removeprefix("tokenizer.ggml."): value for name, value in found.keys.items()}
    assert keys == {
        "model": "t5",
        "pre": "default",
        "tokens": ["<s>", "<pad>", "</s>", "<unk>", "\u2581", "\u2581hi", "<mask>", "[PAD7]"],
        "token_type": [3, 3, 3, 2, 1, 1, 3, 5],
        "scores": [0.0, 0.0, 0.0, 0.0, -2.5, -1.25, 0.0, 0.0],
        "add_space_prefix": True,
        "remove_extra_whitespaces": True,
        "precompiled_charsmap": struct.pack("<IIQ", 9, 0, len(TABLE)) + TABLE,
        "bos_token_id": 0, "padding_token_id": 1, "eos_token_id": 2, "unknown_token_id": 3, "mask_token_id": 6,
        "cls_token_id": 0, "seperator_token_id": 2, "add_bos_token": True, "add_eos_token": True,
    }  # fmt: skip


def test_spaces_at_the_end_of_a_text(tmp_path: Path) -> None:
    assert "drops spaces at the end" in read(tmp_path, {"tokenizer.json": tokenizer(pre_tokenizer=SPACES)}).note
    stripped = {"type": "Sequence", "normalizers": [TABLED, {"type": "Strip", "strip_left": False, "strip_right": True},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}]}  # fmt: skip
    assert read(tmp_path, {"tokenizer.json": tokenizer(pre_tokenizer=SPACES, normalizer=stripped)}).note == ""
    bytes_too = {**tokenizer()["model"], "byte_fallback": True}
    assert "reads what has no token as unknown" in read(tmp_path, {"tokenizer.json": tokenizer(model=bytes_too)}).note


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "it normalizes text in a way that is not supported (Lowercase)"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "its way of treating spaces is not supported"),
        ({"pre_tokenizer": {**SPACES, "prepend_scheme": "never"}}, "it adds no space before text"),
        ({"model": {"type": "Unigram", "unk_id": None, "vocab": PIECES}}, "it has no token for what is unknown"),
        ({"model": {"type": "Unigram", "unk_id": 3, "vocab": PIECES * 2}}, "token id 11 is beyond the 8 rows"),
        ({"model": {"type": "WordLevel", "vocab": {}}}, "its model is WordLevel, not BPE, WordPiece or Unigram"),
    ],
)
def test_pieces_that_llama_cpp_does_not_find(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    assert why in read(tmp_path, {"tokenizer.json": tokenizer(**change)}).obstacle


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model": {"type": "Unigram", "unk_id": 3, "vocab": [["a"]]}}, "vocab: it is not a list of pieces and scores"),
        ({"normalizer": {**TABLED, "precompiled_charsmap": "!"}}, "precompiled_charsmap: it is not a table"),
    ],
)
def test_pieces_that_are_malformed(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=why):
        read(tmp_path, {"tokenizer.json": tokenizer(**change)})


# ---- models of SentencePiece ------------------------------------------------------------------------------------


def field(number: int, value: int | float | str | bytes) -> bytes:
    """A field of a protobuf message; numbers below 128."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    raw = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    found = bytearray()
    while value >= 128:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def sentencepiece(kind: int, **training: int) -> bytes:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *(
        (f"<0x{i:02X}>", 0.0, 6) for i in range(256 if kind == 2 else 0)), ("\u2581hi", -1.5, 1)]  # fmt: skip
    told = {3: kind, 35: int(kind == 2), 43: -1, **{int(n[1:]): v for n, v in training.items()}}
    return b"".join(
        [
            *(field(1, field(1, text) + field(2, score) + field(3, of)) for text, score, of in pieces),
            field(2, b"".join(field(n, v) for n, v in told.items())),
            field(3, field(2, TABLE) + field(3, 0) + field(4, 1)),
        ]
    )


def test_a_model_of_sentencepiece_alone(tmp_path: Path) -> None:
    settings = {"added_tokens_decoder": {"4": {"content": "<x>", "special": True}, "9": {"content": "far"}}}
    found = read(tmp_path, {"tokenizer.model": sentencepiece(1), "tokenizer_config.json": settings}, 6)
    assert found.obstacle == found.note == ""
    keys = {name.removeprefix("tokenizer.ggml."): value for name, value in found.keys.items()}
    assert keys["model"] == "t5" and keys["tokens"] == ["<unk>", "<s>", "</s>", "\u2581hi", "<x>", "[PAD5]"]
    assert keys["token_type"] == [2, 3, 3, 1, 3, 5] and keys["scores"] == [0.0, 0.0, 0.0, -1.5, 0.0, 0.0]
    assert not keys["add_space_prefix"] and keys["remove_extra_whitespaces"]
    assert keys["precompiled_charsmap"].endswith(TABLE)
    ids = {name: keys.get(f"{name}_token_id") for name in ("unknown", "bos", "eos", "padding")}
    assert ids == {"unknown": 0, "bos": 1, "eos": 2, "padding": None}
    assert not keys["add_bos_token"] and keys["add_eos_token"]


def test_one_that_falls_back_to_bytes(tmp_path: Path) -> None:
    found = read(tmp_path, {"tokenizer.model": sentencepiece(2)}, 260)
    keys = {name.removeprefix("tokenizer.ggml."): value for name, value in found.keys.items()}
    assert keys["model"] == "llama" and keys["tokens"][3] == "<0x00>" and keys["token_type"][3:5] == [6, 6]
    assert keys["add_bos_token"] and not keys["add_eos_token"] and "precompiled_charsmap" not in keys


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (sentencepiece(3), "its kind of SentencePiece model is not supported"),
        (sentencepiece(1, n24=1), "its kind of SentencePiece model is not supported"),
        (sentencepiece(2, n35=0), "it does not fall back to bytes"),
    ],
)
def test_models_of_sentencepiece_that_llama_cpp_does_not_run(raw: bytes, why: str, tmp_path: Path) -> None:
    assert why in read(tmp_path, {"tokenizer.model": raw}, 300).obstacle


def test_a_file_that_is_no_such_model(tmp_path: Path) -> None:
    kinds = [field(1, field(2, 7)), field(1, field(3, "x")), field(2, field(40, "x")), field(3, field(2, 7))]
    for raw in (b"nonsense", sentencepiece(1)[:-3], field(1, field(1, b"\xff")), *kinds):
        with pytest.raises(DataError, match=r"^tokenizer\.model: it is not a model of SentencePiece"):
            read(tmp_path, {"tokenizer.model": raw})
    with pytest.raises(DataError, match=r"^spiece\.model: it is not a model of SentencePiece"):
        (tmp_path / "tokenizer.model").unlink()
        read(tmp_path, {"spiece.model": b"nonsense"})
