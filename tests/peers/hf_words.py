"""Make tokenizers of the kinds that are known, and what the tokenizers library reads in some texts.

python hf_words.py KIND FOLDER TEXTS.json      writes FOLDER/tokenizer.json and more, and the texts with their words
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).resolve().parent
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERNS = {
    "llama-bpe": WORDS + r"\p{N}{1,3}|" + TAIL,
    "dbrx": WORDS + r"\p{N}{1,3}|" + TAIL,
    "qwen2": WORDS + r"\p{N}|" + TAIL,
    "tekken": rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}|"
              r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}  # fmt: skip
TEXTS = [
    "Hello world", " two  spaces   three", "", "a", "I'm sure they'll say WE'VE 12345 things; won't they?",
    "def f(x):\n\treturn x**2  # comment\n\n\n", "Füße über Straßen, naïve café", "日本語のテキスト and English",
    "emoji 😀🎉 and more", "tabs\t\tand\r\nlines\n", "x=1234567890.5e-3", "camelCaseWordsInHERE", "<s>special</s> text",
    "trailing space ", "(parens) [brackets] {braces} <|end|>done", "ABC/def\\ghi//jkl/\n",
]  # fmt: skip


def corpus() -> list[str]:
    root = HERE.parent.parent
    return [p.read_text() for p in sorted(root.glob("quantcli/**/*.py"))] + TEXTS * 3


def byte_level(kind: str) -> Tokenizer:
    made = Tokenizer(models.BPE(ignore_merges=kind in ("llama-bpe", "tekken")))
    if kind == "gpt-2":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif kind == "smollm":
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    else:
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PATTERNS[kind]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if kind == "qwen2":
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<s>", "</s>", "<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    return made


def falling_back(kind: str) -> Tokenizer:
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bare = kind == "bare"
    made.normalizer = normalizers.Sequence(
        [*([] if bare else [normalizers.Prepend("▁")]), normalizers.Replace(" ", "▁")]
    )
    made.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=1500, limit_alphabet=100, show_progress=False, max_token_length=12,
        special_tokens=["<unk>", "<s>", "</s>", "<|end|>", *(f"<0x{i:02X}>" for i in range(256))]))  # fmt: skip
    if kind == "metaspace":
        made.normalizer = None
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    return made


def main() -> None:
    kind, folder, texts = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    made = byte_level(kind) if kind in (*PATTERNS, "gpt-2", "smollm") else falling_back(kind)
    made.add_tokens([AddedToken("[user]", special=False, normalized=False)])
    begin = kind in ("llama-bpe", "spaces", "metaspace")
    if begin:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
        )
    made.save(str(folder / "tokenizer.json"))
    if kind in ("spaces", "metaspace", "bare"):  # the bytes are no special tokens in what is found in the wild
        document = json.loads((folder / "tokenizer.json").read_text())
        document["added_tokens"] = [t for t in document["added_tokens"] if not t["content"].startswith("<0x")]
        (folder / "tokenizer.json").write_text(json.dumps(document))
        made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    Path(texts).write_text(json.dumps([[text, made.encode(text).ids] for text in TEXTS]))


if __name__ == "__main__":
    main()
