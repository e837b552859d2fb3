"""Runs in the peers' environment gptqmodel: a language model by GPTQModel's own error feedback, on the samples that
evaluated.py has for statistics.

    python gptq.py NAME FOLDER OUT BITS GROUP ORDER

NAME is one of evaluated.MODELS; FOLDER has its tokenizer too. ORDER is `plain`, or `desc_act`: the inputs of the most
power are rounded first, and groups are of such, not of neighbours.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path += [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "peers")]
from clients import empty_torchvision
from evaluated import MODELS


def main(name: str, folder: str, out: str, bits: str, group: str, order: str) -> None:
    torch.set_num_threads(1)
    empty_torchvision()
    from gptqmodel import GPTQModel, QuantizeConfig

    rows = [row.tolist() for batch in MODELS[name](Path(folder)).observed for row in batch["input_ids"]]
    asked = QuantizeConfig(
        bits=int(bits), group_size=int(group), desc_act=order == "desc_act", act_group_aware=order != "desc_act",
        offload_to_disk=False,
    )  # fmt: skip
    model = GPTQModel.load(folder, asked, device="cpu")
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], batch_size=1)
    model.save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
