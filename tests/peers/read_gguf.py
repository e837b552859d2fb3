"""The logits of a GGUF, with llama.cpp: python read_gguf.py FILE OUT.npy, in the order of hf_model.py."""

from __future__ import annotations

import sys

import numpy as np
from llama_cpp import Llama

WORDS = 100


def main() -> None:
    path, out = sys.argv[1:]
    model = Llama(path, n_ctx=WORDS + 4, logits_all=True, verbose=False, n_threads=1, n_batch=WORDS + 4,
                  type_k=0, type_v=0, flash_attn=False)  # keys and values in float32 too
    vocabulary = model.n_vocab()
    model.eval([(i * 11 + 3) % vocabulary for i in range(WORDS)])
    np.save(out, np.array(model.scores[:WORDS], np.float32))


if __name__ == "__main__":
    main()
