"""The vocabulary of a model in llama.cpp's keys, from tokenizer.json and tokenizer_config.json.

    byte-level BPE                      tokenizer.ggml.model gpt2, with merges, where llama.cpp splits text the same way
    BPE that falls back to bytes        tokenizer.ggml.model llama, with scores in the order of the merges
    anything else                       no_vocab, and a line that says why: the model runs on token ids

How text is split into pieces before BPE is code in llama.cpp, chosen by a name (tokenizer.ggml.pre); here that name
is found by the exact pattern in tokenizer.json: with a similar pattern the model would run, but split text wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quantcli.errors import DataError, printable
from quantcli.layouts.config import json_beside
from quantcli.layouts.writer import Beside

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)

_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

_PATTERNS = {
    (_WORDS + r"\p{N}{1,3}|" + _TAIL, True): "llama-bpe",
    (_WORDS + r"\p{N}{1,3}|" + _TAIL, False): "dbrx",
    (_WORDS + r"\p{N}|" + _TAIL, False): "qwen2",
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
        + _TAIL.replace(r"[\r\n]*", r"[\r\n/]*", 1),
        True,
    ): "tekken",
}
"""llama.cpp's name of a pattern that splits text, and whether a piece that is a token itself skips the merges."""

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"
_SPACES = "llama.cpp adds a space before text that already begins with one, or that follows a special token"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The keys of a GGUF that hold its vocabulary; `obstacle` says why there is none, and `note` what llama.cpp
    tokenizes differently."""

    keys: Mapping[str, Any]
    obstacle: str = ""
    note: str = ""


FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""The files beside the weights that are read."""


class _OtherwiseError(Exception):
    """The tokenizer cannot be expressed in llama.cpp's keys."""


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


def _cutting(tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """llama.cpp's name of the way byte-level text is split. Raises _OtherwiseError."""
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    normal = _steps(tokenizer.get("normalizer"), "normalizers")
    whole = bool(model.get("ignore_merges"))
    if not steps or not _is(steps[-1], type="ByteLevel", add_prefix_space=False):
        raise _OtherwiseError("its tokens are not byte-level")
    if any(step.get("type") != "NFC" for step in normal):
        raise _OtherwiseError(f"it normalizes text first ({printable(str(normal[0].get('type')), 40)})")
    own_pattern = steps[-1].get("use_regex", True) is not False
    if len(steps) == 1 and own_pattern and not whole and not normal:
        return "gpt-2"
    digits = _is(steps[0], type="Digits", individual_digits=True)
    if len(steps) == 2 and digits and own_pattern and not whole and not normal:
        return "smollm"
    if len(steps) == 2 and not own_pattern and _is(steps[0], type="Split", behavior="Isolated", invert=False):
        pattern = steps[0].get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        name = _PATTERNS.get((regex, whole)) if isinstance(regex, str) else None
        if name is not None and (not normal or name == "qwen2"):
            return name
    raise _OtherwiseError("it splits text by a pattern that is not supported")


def _prefix(tokenizer: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a space is added before text, where tokens mark spaces as SentencePiece does, and what llama.cpp does
    differently. Raises _OtherwiseError."""
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    normal = _steps(tokenizer.get("normalizer"), "normalizers")
    if not normal and len(steps) == 1 and _is(steps[0], type="Metaspace", replacement=_SPACE):
        scheme = steps[0].get("prepend_scheme", "always" if steps[0].get("add_prefix_space", True) else "never")
        return scheme != "never", _SPACES if scheme != "never" else ""
    replaces = [s for s in normal if _is(s, type="Replace", pattern={"String": " "}, content=_SPACE)]
    before = [s for s in normal if _is(s, type="Prepend", prepend=_SPACE)]
    if steps or len(replaces) != 1 or len(before) + 1 != len(normal) or len(before) > 1:
        raise _OtherwiseError("its way of treating spaces is not supported")
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
            raise _OtherwiseError(f"token id {number} is beyond the {size} rows of the embedding")
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


def _byte_level(
    tokenizer: Mapping[str, Any], model: Mapping[str, Any], size: int
) -> tuple[dict[str, Any], dict[str, int]]:
    pre = _cutting(tokenizer, model)
    words, types, numbers = _words(tokenizer, model, size)
    merges = [f"{a} {b}" for a, b in _merges(model)]
    if not merges or any(merge.count(" ") > 1 for merge in merges):
        raise _OtherwiseError("its merges cannot be stored for llama.cpp")
    keys: dict[str, Any] = {"model": "gpt2", "pre": pre, "tokens": words, "token_type": types}
    return keys | {"merges": merges}, numbers


def _falling_back(
    tokenizer: Mapping[str, Any], model: Mapping[str, Any], size: int
) -> tuple[dict[str, Any], dict[str, int]]:
    """Keys with scores: llama.cpp merges the pair whose token has the highest score, here the one that is merged
    first."""
    prefix, _ = _prefix(tokenizer)
    words, types, numbers = _words(tokenizer, model, size)
    if not all(f"<0x{byte:02X}>" in numbers for byte in range(256)):
        raise _OtherwiseError("not every byte has a token")
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
    return keys | {"token_type": types, "add_space_prefix": prefix}, numbers


def _begins(tokenizer: Mapping[str, Any], end: bool) -> str | None:
    """The special token that the tokenizer adds before or after text; None where it adds none."""
    for step in _steps(tokenizer.get("post_processor"), "processors"):
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
    none = {"tokenizer.ggml.model": "no_vocab"}
    tokenizer = json_beside(beside, "tokenizer.json")
    if tokenizer is None:
        return Vocabulary(none, "there is no tokenizer.json")
    settings = json_beside(beside, "tokenizer_config.json") or {}
    try:
        model = _object(tokenizer.get("model"), "model")
        if model.get("type") != "BPE":
            raise _OtherwiseError(f"its model is {printable(str(model.get('type')), 40)}, not BPE")
        make = _falling_back if model.get("byte_fallback") is True else _byte_level
        keys, numbers = make(tokenizer, model, size)
    except _OtherwiseError as reason:
        return Vocabulary(none, f"tokenizer.json: {reason}")
    keys |= _special(tokenizer, settings, config, numbers, size)
    found = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    template = _template(beside, settings)
    if template is not None:
        found["tokenizer.chat_template"] = template
    return Vocabulary(found, note=_prefix(tokenizer)[1] if keys["model"] == "llama" else "")
