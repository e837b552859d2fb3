"""How byte-level tokenizers split text before their merges, by llama.cpp's names (tokenizer.ggml.pre).

That is code in llama.cpp, chosen by a name; here the name is found by the exact steps in tokenizer.json: with similar
ones the model would run, but split text wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASH = _TAIL.replace(r"[\r\n]*", r"[\r\n/]*", 1)
_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_CASES = rf"{_BEFORE}{_UPPER}*{_LOWER}+%s|{_BEFORE}{_UPPER}+{_LOWER}*%s|"
_DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_IDEOGRAPHS = "[一-龥\u0800-一가-\ud7ff]+"

BYTES, GPT2, DIGIT, DIGITS = "bytes", "gpt2", "each digit", "digits"

KNOWN: Mapping[tuple[str, ...], tuple[str, str]] = {
    (GPT2,): ("gpt-2", "gpt-2"),
    (DIGIT, GPT2): ("smollm", ""),
    ("Punctuation Contiguous", GPT2, DIGITS, "[0-9][0-9][0-9]"): ("falcon", ""),
    (_WORDS + r"\p{N}{1,3}|" + _TAIL, BYTES): ("dbrx", "llama-bpe"),
    (_WORDS + r"\p{N}|" + _TAIL, BYTES): ("qwen2", ""),
    (_WORDS + r"\p{N}{1}|" + _TAIL.replace(r"\p{N}]+[\r\n]*", r"\p{N}\r\n]+", 1), BYTES): ("seed-coder", ""),
    (
        _WORDS.replace(r"\p{L}+|", r"[\p{L}\p{M}]+|") + r"\p{N}|" + _TAIL.replace(r"\p{L}\p{N}", r"\p{L}\p{M}\p{N}"),
        BYTES,
    ): ("qwen35", ""),
    (_CASES % ("", "") + r"\p{N}|" + _SLASH, BYTES): ("", "tekken"),
    (_CASES % (_CONTRACTED + "?", _CONTRACTED + "?") + r"\p{N}{1,3}|" + _SLASH, BYTES): ("gpt-4o", "gpt-4o"),
    (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK, BYTES): ("deepseek-v3", ""),
    ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _IDEOGRAPHS, DIGIT, BYTES): ("deepseek-coder", ""),
    ("[\r\n]", r"\s?[A-Za-z..]+", r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", _IDEOGRAPHS, DIGIT, BYTES): (
        "deepseek-llm",
        "",
    ),
}
"""llama.cpp's names by the steps; the second where a piece that is a token itself skips the merges; empty for none."""


def _described(step: Mapping[str, Any]) -> str:
    """A step in a word, or its pattern; empty for a step that is not known."""
    kind = step.get("type")
    if kind == "ByteLevel" and step.get("add_prefix_space") is False:
        return GPT2 if step.get("use_regex", True) is not False else BYTES
    if kind == "Digits":
        return DIGIT if step.get("individual_digits") is True else DIGITS
    if kind == "Punctuation":
        return f"Punctuation {step.get('behavior', 'Isolated')}"
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if kind != "Split" or not isinstance(regex, str) or step.get("behavior") != "Isolated" or step.get("invert"):
        return ""
    return r"\s?[A-Za-z..]+" if regex.startswith(r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ") else regex  # too long a list of letters


def split_name(steps: Sequence[Mapping[str, Any]], *, whole: bool) -> str:
    """llama.cpp's name of the way text is split; empty where it has none. whole: whether a piece that is a token itself
    skips the merges.

    >>> split_name([{"type": "ByteLevel", "add_prefix_space": False}], whole=False)
    'gpt-2'
    """
    return KNOWN.get(tuple(map(_described, steps)), ("", ""))[whole]
