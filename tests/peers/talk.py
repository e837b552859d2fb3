"""Runs in a peers' environment: what a real client says with some models.

    python talk.py CLIENT JOBS.json

JOBS is a list of {"model", "prompts", "words", "rows", "logits"}; for each a line of JSON is printed: {"texts", "nats"}
with what follows each prompt, greedily, in so many words, through the client's own tokenizer, and the mean cross
entropy over rows of words. The logits of every row are put into LOGITS (.npz), unless that is null.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

EMBED = ("bert", "nomic_bert", "roberta", "xlm-roberta", "modernbert")
"""Model types that embed words and write none."""
ENCODERS, SEEING = ("t5", "mt5", "umt5"), ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Those of which the encoder alone does, and those that see too."""

Client = tuple[Callable[[str, int], str], Callable[[list[int]], np.ndarray]]
"""What follows a prompt in so many words; the logits (words, vocabulary) of a row. In float32, if they can be."""


def with_ggmls_gelu(model: Any) -> Any:
    """A model whose GELU is that of ggml's table: of float16, by the tanh formula, to float16."""
    import torch

    def rounded(values: Any) -> Any:
        return torch.nn.functional.gelu(values.half().float(), approximate="tanh").half().float()

    for module in model.modules():
        if "GELU" in type(module).__name__.upper():
            module.forward = rounded
    return model


def transformers(model: str) -> Client:
    import torch
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForTextEncoding,
        AutoTokenizer,
    )

    own = AutoConfig.from_pretrained(model).model_type
    embeds = own in (*EMBED, *ENCODERS)
    kind = AutoModel if own in EMBED else AutoModelForTextEncoding if embeds else AutoModelForCausalLM
    kind = AutoModelForImageTextToText if own in SEEING else kind
    found = kind.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    found = with_ggmls_gelu(found).eval()
    tokenizer = None  # some models have none

    def follow(prompt: str, words: int) -> str:
        nonlocal tokenizer
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
        asked = tokenizer(prompt, return_tensors="pt")
        said = found.generate(**asked, max_new_tokens=words, do_sample=False)[0, asked["input_ids"].shape[1] :]
        return str(tokenizer.decode(said))

    def logits(row: list[int]) -> np.ndarray:
        with torch.no_grad():
            said = found(torch.tensor([row]))
            return np.array((said.last_hidden_state if embeds else said.logits)[0].float())

    return follow, logits


def mlx_lm(model: str) -> Client:
    import mlx.core as mx
    import mlx_lm as library

    found, tokenizer = library.load(model)
    found.set_dtype(mx.float32)

    def follow(prompt: str, words: int) -> str:
        return str(library.generate(found, tokenizer, prompt=prompt, max_tokens=words))

    def logits(row: list[int]) -> np.ndarray:
        return np.array(found(mx.array([row]))[0].astype(mx.float32))

    return follow, logits


def llamacpp(model: str) -> Client:
    """Keys and values are kept in float32 too. Of models that embed the vectors of all words."""
    import llama_cpp

    names = ("bert", "nomic-bert", "modern-bert", "t5encoder")
    if any(f"{name}.context_length".encode() in Path(model).read_bytes()[:4096] for name in names):
        return (lambda prompt, words: ""), partial(embedded, model)
    found = llama_cpp.Llama(model, n_ctx=256, n_batch=256, logits_all=True, verbose=False, n_threads=1, type_k=0,
                            type_v=0, flash_attn=False)  # fmt: skip

    def follow(prompt: str, words: int) -> str:
        return str(found.create_completion(prompt, max_tokens=words, temperature=0.0)["choices"][0]["text"])

    def logits(row: list[int]) -> np.ndarray:
        found.reset()
        found.eval(row)
        return np.array(found.scores[: len(row)], np.float32)

    return follow, logits


def embedded(model: str, row: list[int]) -> np.ndarray:
    """What llama.cpp's last layer says of the words of a row."""
    import llama_cpp

    found = llama_cpp.Llama(model, n_ctx=256, n_batch=256, embedding=True, verbose=False, n_threads=1, pooling_type=0)
    batch = llama_cpp.llama_batch_init(len(row), 0, 1)
    batch.n_tokens = len(row)
    for i, word in enumerate(row):
        batch.token[i], batch.pos[i], batch.logits[i] = word, i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    assert llama_cpp.llama_decode(found._ctx.ctx, batch) == 0
    width = found.n_embd()
    vectors = [llama_cpp.llama_get_embeddings_ith(found._ctx.ctx, i)[:width] for i in range(len(row))]
    return np.array(vectors, np.float32)


def llamacpp_floats(model: str) -> Client:
    """The file that llama.cpp makes of this one when it turns every block back into float32."""
    import ctypes

    import llama_cpp

    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype, wanted.allow_requantize, wanted.nthread = 0, True, 1
    floats = f"{model}.floats"
    assert llama_cpp.llama_model_quantize(model.encode(), floats.encode(), ctypes.byref(wanted)) == 0
    return llamacpp(floats)


CLIENTS = {"transformers": transformers, "mlx-lm": mlx_lm, "llamacpp": llamacpp, "llamacpp-floats": llamacpp_floats}


def cross_entropy(logits: np.ndarray, row: list[int]) -> float:
    """Mean nats of every word after the first."""
    exact = logits[:-1].astype(np.float64)
    shifted = exact - exact.max(1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(row) - 1), row[1:]]))


def main() -> None:
    client, jobs = CLIENTS[sys.argv[1]], json.loads(Path(sys.argv[2]).read_text())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what clients print on standard output is no answer
    for job in jobs:
        follow, logits = client(job["model"])
        found = [logits(row) for row in job["rows"]]
        written = [(values, row) for values, row in zip(found, job["rows"]) if max(row) < values.shape[1]]
        nats = [cross_entropy(values, row) for values, row in written] or [0.0]
        texts = [follow(prompt, job["words"]) for prompt in job["prompts"]]
        print(json.dumps({"texts": texts, "nats": float(np.mean(nats))}), file=answers, flush=True)
        if job["logits"] is not None:
            np.savez(job["logits"], *found)


if __name__ == "__main__":
    main()
