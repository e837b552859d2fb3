"""Make tokenizers of the kinds that are known, and what the tokenizers library reads in some texts.

python hf_words.py KIND FOLDER TEXTS.json      writes FOLDER/tokenizer.json and more, and the texts with their words
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).resolve().parent
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERNS = {
    "llama-bpe": WORDS + r"\p{N}{1,3}|" + TAIL,
    "dbrx": WORDS + r"\p{N}{1,3}|" + TAIL,
    "qwen2": WORDS + r"\p{N}|" + TAIL,
    "seed-coder": WORDS + r"\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}|"
              r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-4o": rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
              rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{{N}}{{1,3}}|"
              r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen35": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
              r"\s*[\r\n]+|\s+(?!\S)|\s+",
}  # fmt: skip
SEVERAL = {
    "deepseek-v3": [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
                    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
                    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
}  # fmt: skip
"""Patterns that are applied one after the other."""
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
    elif kind == "falcon":
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Punctuation("contiguous"),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
                pre_tokenizers.Digits(individual_digits=False),
                pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        )
    elif kind in SEVERAL:
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SEVERAL[kind]]
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
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
    bare = kind in ("bare", "gemma")
    made.normalizer = normalizers.Sequence(
        [*([] if bare else [normalizers.Prepend("▁")]), normalizers.Replace(" ", "▁")]
    )
    made.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=1500, limit_alphabet=100, show_progress=False, max_token_length=12,
        special_tokens=["<unk>", "<s>", "</s>", "<|end|>", *(f"<0x{i:02X}>" for i in range(256))]))  # fmt: skip
    if kind == "metaspace":
        made.normalizer = None
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    if kind == "gemma":
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return made


def word_pieces() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(corpus(), trainers.WordPieceTrainer(
        vocab_size=1500, show_progress=False,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))  # fmt: skip
    ends = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return made


def trained(kind: str, folder: Path) -> tuple[Any, bytes]:
    """A model of SentencePiece, and the file it is in."""
    import sentencepiece

    lines = [line for text in corpus() for line in text.splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), vocab_size=1200, minloglevel=2,
        model_type="bpe" if kind.endswith("bpe") else "unigram", byte_fallback=kind.endswith("bpe"),
        normalization_rule_name="identity" if kind.endswith("bpe") else "nmt_nfkc",
        remove_extra_whitespaces=not kind.endswith("bpe"), user_defined_symbols=["[user]"],
        hard_vocab_limit=False, num_threads=1)  # fmt: skip
    path = folder / "tokenizer.model"
    (folder / "tokenizer.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(path)), path.read_bytes()


def unigram(kind: str, folder: Path) -> Tokenizer:
    """As converters of transformers make it: of T5, of XLM-RoBERTa, whose first tokens are others, and of any other."""
    from sentencepiece import sentencepiece_model_pb2

    _, raw = trained(kind, folder)
    (folder / "tokenizer.model").unlink()
    model = sentencepiece_model_pb2.ModelProto.FromString(raw)
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    first = [("<unk>", 0.0)]
    if kind == "t5":
        first = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    elif kind == "xlm-roberta":
        first = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    last = [(token, 0.0) for token in ("<mask>", "<s>", "</s>", "<|end|>")]
    vocab = list(dict([*first, *pieces[3:], *last]).items())
    made = Tokenizer(models.Unigram(vocab, unk_id=[piece for piece, _ in vocab].index("<unk>"), byte_fallback=False))
    table = normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)
    own = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    if kind == "unigram":
        made.normalizer = normalizers.Sequence(
            [table, normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
        )
        made.pre_tokenizer = own
    else:
        made.normalizer = table
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), own])
    made.add_special_tokens(["<unk>", "<s>", "</s>", "<mask>", "<|end|>"])
    single = {"t5": "$A </s>", "xlm-roberta": "<s> $A </s>"}.get(kind)
    if single:
        ends = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
        made.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)
    return made


def pieces_alone(kind: str, folder: Path, texts: str) -> None:
    """A folder with the model of SentencePiece alone, which reads the texts."""
    made, _ = trained(kind, folder)
    begin, end = kind.endswith("bpe"), kind.endswith("unigram")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"add_bos_token": begin, "add_eos_token": end, "bos_token": "<s>", "eos_token": "</s>"})
    )
    plain = [text for text in TEXTS if "<s>" not in text]
    Path(texts).write_text(json.dumps([[t, made.encode(t, add_bos=begin, add_eos=end)] for t in plain]))


def main() -> None:
    kind, folder, texts = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if kind.startswith("sentencepiece"):
        pieces_alone(kind, folder, texts)
        return
    byte_levels = (*PATTERNS, *SEVERAL, "gpt-2", "smollm", "falcon")
    if kind in ("t5", "xlm-roberta", "unigram"):
        made = unigram(kind, folder)
    else:
        made = byte_level(kind) if kind in byte_levels else word_pieces() if kind == "bert" else falling_back(kind)
    if kind != "bert":
        made.add_tokens([AddedToken("[user]", special=False, normalized=False)])
    begin = kind in ("llama-bpe", "spaces", "metaspace")
    if begin:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
        )
    made.save(str(folder / "tokenizer.json"))
    if kind in ("spaces", "metaspace", "bare", "gemma"):  # the bytes are no special tokens in what is found in the wild
        document = json.loads((folder / "tokenizer.json").read_text())
        document["added_tokens"] = [t for t in document["added_tokens"] if not t["content"].startswith("<0x")]
        (folder / "tokenizer.json").write_text(json.dumps(document))
        made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({} if kind == "bert" else {"bos_token": "<s>", "eos_token": "</s>"})
    )
    Path(texts).write_text(json.dumps([[text, made.encode(text).ids] for text in TEXTS]))


if __name__ == "__main__":
    main()
