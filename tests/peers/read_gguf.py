"""What a GGUF says in llama.cpp: python read_gguf.py FILE RUNS.npz EXACT.npz, the logits and words of hf_model.py.

EXACT are those of the file that llama.cpp makes of this one when it turns every block back into float32: beside
blocks it rounds what goes into a matrix to 8 bits, which hides whether the blocks are right.
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp
import numpy as np

WORDS = 100
PROMPT, LENGTH = "\nfifty nine plus forty eight is", 24


def said(path: str, out: str) -> None:
    """Keys and values are kept in float32 too."""
    model = llama_cpp.Llama(path, n_ctx=WORDS + 4, n_batch=WORDS + 4, logits_all=True, verbose=False, n_threads=1,
                            type_k=0, type_v=0, flash_attn=False)
    vocabulary = model.n_vocab()
    model.eval([(i * 11 + 3) % vocabulary for i in range(WORDS)])
    logits = np.array(model.scores[:WORDS], np.float32)
    model.reset()
    model.eval([ord(letter) for letter in PROMPT])
    words: list[int] = []
    while len(words) < LENGTH:
        words.append(int(model.scores[model.n_tokens - 1].argmax()))
        model.eval(words[-1:])
    np.savez(out, logits=logits, words=words)


def main() -> None:
    path, out, exact = sys.argv[1:]
    said(path, out)
    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype, wanted.allow_requantize, wanted.nthread = 0, True, 1
    floats = f"{path}.f32"
    assert llama_cpp.llama_model_quantize(path.encode(), floats.encode(), ctypes.byref(wanted)) == 0
    said(floats, exact)


if __name__ == "__main__":
    main()
