"""Runs in a peers' environment: what vLLM says with some models on the processor.

    python talk_vllm.py JOBS.json

JOBS is a list of {"model", "text", "words"}; for each a line of JSON is printed: {"row", "next", "nats"} with the words
at the beginning of the text by number, so many that follow them greedily, and their mean cross entropy; or {"refused":
"Error: words"}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
"""One process, one gigabyte for keys and values, no threads bound to processors, nothing sent anywhere."""
LENGTH = 256


def words(model: str, text: str) -> list[int]:
    from transformers import AutoTokenizer

    return list(AutoTokenizer.from_pretrained(model)(text)["input_ids"])[: LENGTH // 2]


def say(model: str, text: str, count: int) -> dict[str, Any]:
    """In float16: its kernels for 4 bits do not have float32, and bfloat16 costs 0.02 nats."""
    from vllm import LLM, SamplingParams

    row = words(model, text)
    found = LLM(model, dtype="float16", enforce_eager=True, max_model_len=LENGTH, max_num_seqs=1,
                skip_tokenizer_init=True)  # fmt: skip
    asked = SamplingParams(max_tokens=count, temperature=0, prompt_logprobs=0, detokenize=False, ignore_eos=True)
    (said,) = found.generate({"prompt_token_ids": row}, asked, use_tqdm=False)
    each = [-place[word].logprob for word, place in zip(row[1:], said.prompt_logprobs[1:])]
    return {"row": row, "next": list(said.outputs[0].token_ids), "nats": sum(each) / len(each)}


def main() -> None:
    os.environ.update(SETTINGS)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints on standard output is no answer
    from vllm.distributed import cleanup_dist_env_and_memory

    for job in json.loads(Path(sys.argv[1]).read_text()):
        try:
            answer = say(job["model"], job["text"], job["words"])
        except Exception as error:
            said = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
            answer = {"refused": f"{type(error).__name__}: {said}"}
        print(json.dumps(answer), file=answers, flush=True)
        cleanup_dist_env_and_memory()


if __name__ == "__main__":
    main()
