"""What llama.cpp reads in texts: python read_gguf_words.py FILE TEXTS.json; prints those it reads otherwise."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llama_cpp


def main() -> None:
    path, texts = sys.argv[1:]
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    asked = (llama_cpp.llama_vocab_get_add_bos, llama_cpp.llama_vocab_get_add_eos)
    begin = any(adds(model._model.vocab) for adds in asked)
    wrong = []
    for text, expected in json.loads(Path(texts).read_text()):
        found = model.tokenize(text.encode(), add_bos=begin, special=True)
        if found != expected:
            wrong.append([text, expected, found])
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()
