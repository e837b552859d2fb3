"""The vocabulary of a model in llama.cpp's keys, from tokenizer.json or tokenizer.model, and tokenizer_config.json.

byte-level BPE                      tokenizer.ggml.model gpt2, with merges, where llama.cpp splits text the same way
BPE that falls back to bytes        tokenizer.ggml.model llama, with scores in the order of the merges
WordPiece of lower case (BERT)      tokenizer.ggml.model bert
Unigram (T5, XLM-RoBERTa)           tokenizer.ggml.model t5, with the table that normalizes text
a model of SentencePiece            llama for BPE, t5 for Unigram, where there is no tokenizer.json
anything else                       is refused; without a tokenizer.json no_vocab: the model runs on token ids
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quantcli.errors import DataError, printable
from quantcli.layouts.config import json_beside
from quantcli.layouts.gguf import sentencepiece, unigram
from quantcli.layouts.gguf.splitting import split_name
from quantcli.layouts.gguf.unigram import OtherwiseError
from quantcli.layouts.writer import Beside

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"
_COMPOSED = "llama.cpp does not compose characters (NFC) before it splits text"
_SPACES = "llama.cpp adds a space before text that already begins with one, or that follows a special token"


_NO_SPACES_LEFT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
"""A step of Gemma's, which splits at spaces after all of them have been replaced."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The keys of a GGUF that hold its vocabulary; `obstacle` says why there is none, and `note` what llama.cpp
    tokenizes differently."""

    keys: Mapping[str, Any]
    obstacle: str = ""
    note: str = ""


_NONE = {"tokenizer.ggml.model": "no_vocab"}
"""The keys of a model that runs on token ids only."""

Made = tuple[dict[str, Any], dict[str, int], str]
"""Keys of a vocabulary, ids by token, and what llama.cpp tokenizes differently."""

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", *sentencepiece.NAMES)
"""The files beside the weights that are read."""


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError("it is not an object", place=["tokenizer.json", what])
    return value


def _steps(value: Any, inner: str) -> list[dict[str, Any]]:
    """A step of the tokenizer, or the steps of a sequence; none when it is null."""
    if value is None:
        return []
    step = _object(value, inner)
    if step.get("type") != "Sequence":
        return [step]
    steps = step.get(inner)
    if not isinstance(steps, list) or not all(isinstance(s, dict) for s in steps):
        raise DataError("it is not a list of steps", place=["tokenizer.json", inner])
    return steps


def _is(step: Mapping[str, Any], **fields: Any) -> bool:
    return all(step.get(key) == value for key, value in fields.items())


def _splitting(tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> tuple[str, str]:
    """llama.cpp's name of the way byte-level text is split, and what it does differently. Raises OtherwiseError."""
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    normal = _steps(tokenizer.get("normalizer"), "normalizers")
    if not any(_is(step, type="ByteLevel", add_prefix_space=False) for step in steps):
        raise OtherwiseError("its tokens are not byte-level")
    if any(step.get("type") != "NFC" for step in normal):
        raise OtherwiseError(f"it normalizes text first ({printable(str(normal[0].get('type')), 40)})")
    name = split_name(steps, whole=bool(model.get("ignore_merges")))
    if not name:
        raise OtherwiseError("it splits text by a pattern that is not supported")
    return name, _COMPOSED if normal and name != "qwen2" else ""


def _prefix(tokenizer: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a space is added before text, where tokens mark spaces as SentencePiece does, and what llama.cpp does
    differently. Raises OtherwiseError."""
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    normal = _steps(tokenizer.get("normalizer"), "normalizers")
    if not normal and len(steps) == 1 and _is(steps[0], type="Metaspace", replacement=_SPACE):
        scheme = steps[0].get("prepend_scheme", "always" if steps[0].get("add_prefix_space", True) else "never")
        return scheme != "never", _SPACES if scheme != "never" else ""
    replaces = [s for s in normal if _is(s, type="Replace", pattern={"String": " "}, content=_SPACE)]
    before = [s for s in normal if _is(s, type="Prepend", prepend=_SPACE)]
    if steps == [_NO_SPACES_LEFT]:
        steps = []
    if steps or len(replaces) != 1 or len(before) + 1 != len(normal) or len(before) > 1:
        raise OtherwiseError("its way of treating spaces is not supported")
    return bool(before), ""


def _words(
    tokenizer: Mapping[str, Any], model: Mapping[str, Any], size: int
) -> tuple[list[str], list[int], dict[str, int]]:
    """Tokens by id with their types, and ids by token. Raises DataError for a malformed vocabulary."""
    numbers = dict(_object(model.get("vocab"), "vocab"))
    added = tokenizer.get("added_tokens") or []
    kinds: dict[str, int] = {}
    for token in added if isinstance(added, list) else [added]:
        token = _object(token, "added_tokens")
        word, number = token.get("content"), token.get("id")
        if not isinstance(word, str) or numbers.setdefault(word, number) != number:
            raise DataError("a token has two ids, or no text", place=["tokenizer.json", "added_tokens"])
        kinds[word] = CONTROL if token.get("special") is True else USER
    words: list[str | None] = [None] * size
    for word, number in numbers.items():
        if type(number) is not int or number < 0:
            problem = "its id is not a whole number of 0 or more"
            raise DataError(problem, place=["tokenizer.json", "vocab", printable(word)])
        if number >= size:
            raise OtherwiseError(f"token id {number} is beyond the {size} rows of the embedding")
        if words[number] is not None:
            raise DataError(f"two tokens have the id {number}", place=["tokenizer.json", "vocab", printable(word)])
        words[number] = word
    types = [UNUSED if word is None else kinds.get(word, NORMAL) for word in words]
    return [f"[PAD{i}]" if word is None else word for i, word in enumerate(words)], types, numbers


def _merges(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The merged pairs in order. Raises DataError for malformed merges."""
    merges = model.get("merges")
    for merge in merges if isinstance(merges, list) else [None]:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(p, str) and p for p in pair):
            raise DataError("it is not a list of pairs", place=["tokenizer.json", "merges"])
        yield pair[0], pair[1]


def _byte_level(tokenizer: Mapping[str, Any], model: Mapping[str, Any], size: int) -> Made:
    pre, note = _splitting(tokenizer, model)
    words, types, numbers = _words(tokenizer, model, size)
    merges = [f"{a} {b}" for a, b in _merges(model)]
    if not merges or any(merge.count(" ") > 1 for merge in merges):
        raise OtherwiseError("its merges cannot be stored for llama.cpp")
    keys: dict[str, Any] = {"model": "gpt2", "pre": pre, "tokens": words, "token_type": types}
    return keys | {"merges": merges}, numbers, note


def _falling_back(tokenizer: Mapping[str, Any], model: Mapping[str, Any], size: int) -> Made:
    """Keys with scores: llama.cpp merges the pair whose token has the highest score, here the one that is merged
    first."""
    prefix, note = _prefix(tokenizer)
    words, types, numbers = _words(tokenizer, model, size)
    if not all(f"<0x{byte:02X}>" in numbers for byte in range(256)):
        raise OtherwiseError("not every byte has a token")
    ranks: dict[str, int] = {}
    for rank, (a, b) in enumerate(_merges(model)):
        ranks.setdefault(a + b, rank)
    scores = [-float(ranks.get(word, len(ranks))) for word in words]
    unknown = model.get("unk_token")
    for i, word in enumerate(words):
        if _BYTE.fullmatch(word):
            types[i] = BYTE
        elif word == unknown:
            types[i] = UNKNOWN
        if types[i] not in (NORMAL, UNUSED):
            scores[i] = 0.0
    keys: dict[str, Any] = {"model": "llama", "pre": "default", "tokens": words, "scores": scores}
    return keys | {"token_type": types, "add_space_prefix": prefix}, numbers, note


def _word_pieces(tokenizer: Mapping[str, Any], model: Mapping[str, Any], size: int) -> Made:
    """Keys of WordPiece: pieces that begin a word have a mark there, instead of those that go on. Raises
    OtherwiseError."""
    normal = _steps(tokenizer.get("normalizer"), "normalizers")
    if len(normal) != 1 or not _is(normal[0], type="BertNormalizer", lowercase=True, handle_chinese_chars=True):
        raise OtherwiseError("it keeps upper case, or normalizes text otherwise than BERT")
    if normal[0].get("strip_accents") is False:
        raise OtherwiseError("it keeps accents, which llama.cpp strips")
    if not _is(model, continuing_subword_prefix="##"):
        raise OtherwiseError("its pieces that go on are not marked by ##")
    words, types, numbers = _words(tokenizer, model, size)
    marked = [
        word if kind in (CONTROL, UNUSED) else word[2:] if word.startswith("##") else _SPACE + word
        for word, kind in zip(words, types)
    ]
    keys: dict[str, Any] = {"model": "bert", "pre": "default", "tokens": marked, "token_type": types}
    for name, token in (
        ("bos", "[CLS]"),
        ("eos", "[SEP]"),
        ("cls", "[CLS]"),
        ("seperator", "[SEP]"),
        ("mask", "[MASK]"),
    ):
        if token in numbers:
            keys[f"{name}_token_id"] = numbers[token]
    around = _begins(tokenizer, end=False) == "[CLS]"
    return keys | {"add_bos_token": around, "add_eos_token": False, "add_sep_token": around}, numbers, ""


def _pieces(tokenizer: Mapping[str, Any], model: Mapping[str, Any], size: int) -> Made:
    """Keys of Unigram. Raises OtherwiseError."""
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    table, note = unigram.spaces(steps, _steps(tokenizer.get("normalizer"), "normalizers"))
    found = unigram.scores(model, size)
    words, types, numbers = _words(tokenizer, {"vocab": {piece: i for i, (piece, _) in enumerate(found)}}, size)
    unknown = model.get("unk_id")
    if type(unknown) is not int or not 0 <= unknown < len(found):
        raise OtherwiseError("it has no token for what is unknown")
    types[unknown] = UNKNOWN
    keys: dict[str, Any] = {"model": "t5", "pre": "default", "tokens": words, "token_type": types}
    keys["scores"] = [score for _, score in found] + [0.0] * (size - len(found))
    keys |= {"add_space_prefix": True, "remove_extra_whitespaces": True, "unknown_token_id": unknown}
    for name, token in (("mask", "<mask>"), ("seperator", "</s>"), ("cls", "<s>")):
        if token in numbers and types[numbers[token]] == CONTROL:
            keys[f"{name}_token_id"] = numbers[token]
    keys |= {"precompiled_charsmap": unigram.charsmap(table)} if table else {}
    return keys, numbers, unigram.UNKNOWN_BYTES if model.get("byte_fallback") is True else note


def _begins(tokenizer: Mapping[str, Any], end: bool) -> str | None:
    """The special token that the tokenizer adds before or after text; None where it adds none."""
    for step in _steps(tokenizer.get("post_processor"), "processors"):
        if step.get("type") in ("RobertaProcessing", "BertProcessing"):
            pair = step.get("sep" if end else "cls")
            return pair[0] if isinstance(pair, list) and pair and isinstance(pair[0], str) else None
        pieces = step.get("single")
        if step.get("type") == "TemplateProcessing" and isinstance(pieces, list) and pieces:
            special = pieces[-1 if end else 0]
            token = special.get("SpecialToken") if isinstance(special, dict) else None
            if isinstance(token, dict) and isinstance(token.get("id"), str):
                return str(token["id"])
    return None


def _special(
    tokenizer: Mapping[str, Any],
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    numbers: Mapping[str, int],
    size: int,
) -> dict[str, Any]:
    """Ids of the special tokens, and whether text begins and ends with one."""
    keys: dict[str, Any] = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = settings.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        number: Any = numbers.get(token) if isinstance(token, str) else None
        if number is None:
            number = config.get(f"{name}_token_id")
            number = number[0] if isinstance(number, list) and number else number
        if type(number) is int and 0 <= number < size:
            keys[f"{key}_token_id"] = number
    for name in ("bos", "eos"):
        setting = settings.get(f"add_{name}_token")
        token = _begins(tokenizer, end=name == "eos")
        own = token is not None and numbers.get(token) == keys.get(f"{name}_token_id")
        keys[f"add_{name}_token"] = setting if isinstance(setting, bool) else own
    return keys


def _template(beside: Beside, settings: Mapping[str, Any]) -> str | None:
    """The chat template, from a separate file or from tokenizer_config.json."""
    raw = beside("chat_template.jinja")
    if raw is not None:
        return raw.decode(errors="replace")
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def vocabulary(beside: Beside, config: Mapping[str, Any], size: int) -> Vocabulary:
    """The vocabulary of a checkpoint whose embedding has `size` rows; missing tokens are filled up.

    Raises DataError for a tokenizer.json that is malformed.
    """
    tokenizer = json_beside(beside, "tokenizer.json")
    settings = json_beside(beside, "tokenizer_config.json") or {}
    if tokenizer is None:
        return _of_sentencepiece(beside, settings, config, size)
    try:
        model = _object(tokenizer.get("model"), "model")
        kind = model.get("type")
        if kind not in ("BPE", "WordPiece", "Unigram"):
            raise OtherwiseError(f"its model is {printable(str(kind), 40)}, not BPE, WordPiece or Unigram")
        bpe = _falling_back if model.get("byte_fallback") is True else _byte_level
        make = {"WordPiece": _word_pieces, "Unigram": _pieces}.get(str(kind), bpe)
        keys, numbers, note = make(tokenizer, model, size)
    except OtherwiseError as reason:
        return Vocabulary(_NONE, f"tokenizer.json: {reason}")
    keys = (
        {**_special(tokenizer, settings, config, numbers, size), **keys}
        if kind == "WordPiece"
        else {**keys, **_special(tokenizer, settings, config, numbers, size)}
    )
    return Vocabulary(_prefixed(keys, beside, settings), note=note)


def _prefixed(keys: Mapping[str, Any], beside: Beside, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keys as the file has them, with the chat template."""
    found = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    template = _template(beside, settings)
    return found if template is None else {**found, "tokenizer.chat_template": template}


def _of_sentencepiece(beside: Beside, settings: Mapping[str, Any], config: Mapping[str, Any], size: int) -> Vocabulary:
    """The vocabulary of a model of SentencePiece, where that is beside the weights."""
    name, raw = next(((n, found) for n in sentencepiece.NAMES if (found := beside(n)) is not None), ("", b""))
    if not name:
        return Vocabulary(_NONE, "there is no tokenizer.json")
    try:
        keys, numbers, note = sentencepiece.keys(raw, settings, size)
    except OtherwiseError as reason:
        return Vocabulary(_NONE, f"{name}: {reason}")
    except DataError as error:
        raise error.within(name) from None
    keys |= _special({}, settings, config, numbers, size)
    usual = keys["model"] == "llama"
    for key, default in (("add_bos_token", usual), ("add_eos_token", not usual)):
        if not isinstance(settings.get(key), bool):
            keys[key] = default
    return Vocabulary(_prefixed(keys, beside, settings), note=note)
