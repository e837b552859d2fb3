"""The sample model and a tokenizer for it: for scripts that run in other environments too, so nothing of quantcli."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

SAMPLES = Path(__file__).resolve().parents[2] / "sample_models"
MODEL = SAMPLES / "tiny-llama"
"""It reads and writes ASCII, a letter a word."""


def letters() -> list[str]:
    """The 128 characters of ASCII as byte-level tokenizers write them: what does not print from U+0100 on."""
    odd = [i for i in range(256) if not (33 <= i <= 126 or 161 <= i <= 172 or i >= 174)]
    return [chr(256 + odd.index(i)) if i in odd else chr(i) for i in range(128)]


def with_words(folder: Path) -> Path:
    """A copy of the sample model with a tokenizer."""
    shutil.copytree(MODEL, folder)
    give_words(folder)
    return folder


def give_words(folder: Path) -> None:
    """Put a byte-level tokenizer of ASCII into the folder of a model. llama.cpp wants at least one merge: that of two
    characters that no text holds takes the place of a third one."""
    words = letters()
    merge = words[:2]
    words[127] = "".join(merge)
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": {letter: i for i, letter in enumerate(words)}, "merges": [" ".join(merge)]}  # fmt: skip
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
             "pre_tokenizer": bytewise, "post_processor": None, "decoder": bytewise, "model": model}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
