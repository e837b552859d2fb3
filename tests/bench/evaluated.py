"""Models that are run: their statistics, and what other weights do to what comes out. Needs torch and transformers.

    python evaluated.py observe NAME FOLDER SCRIPT.py OUT.safetensors [--vectors]
    python evaluated.py measure NAME FOLDER

NAME is one of MODELS, FOLDER its checkpoint; SCRIPT.py defines `observe`, as `quantcli help statistics` has it.
`measure` takes paths from standard input, one a line, of safetensors files with floats under the names of the
checkpoint; for each it prints a line of JSON with the figure, and of language models with the perplexity too. Samples
for statistics are other ones than for figures.
"""

from __future__ import annotations

import json
import math
import re
import sys
import wave
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch import nn

SAMPLES = Path(__file__).resolve().parent.parent.parent / "sample_models"
SENTENCES = 64
"""For statistics; four times as many for figures."""

torch.manual_seed(0)


@dataclass(frozen=True)
class Model:
    """A model with its samples. observed, measured: batches of arguments; outputs: what is compared of a batch, one row
    each; figure: a number from the rows of the float model and of another one; speaks: whether rows are the logits of
    the word after each of `input_ids`."""

    module: nn.Module
    observed: list[dict[str, Any]]
    measured: list[dict[str, Any]]
    outputs: Callable[[nn.Module, dict[str, Any]], torch.Tensor]
    figure: Callable[[torch.Tensor, torch.Tensor], float]
    speaks: bool = False


def divergence(before: torch.Tensor, after: torch.Tensor) -> float:
    """The mean Kullback-Leibler divergence of distributions from those of the float model, in nats."""
    total = 0.0
    for x, y in zip(before.split(512), after.split(512)):  # in float64 all rows of a vocabulary would take gigabytes
        a, b = F.log_softmax(x.double(), -1), F.log_softmax(y.double(), -1)
        total += float((a.exp() * (a - b)).sum())
    return total / len(before)


def cosine(before: torch.Tensor, after: torch.Tensor) -> float:
    return float(F.cosine_similarity(before.double(), after.double(), dim=-1).mean())


def distance(before: torch.Tensor, after: torch.Tensor) -> float:
    return float((before.double() - after.double()).abs().mean())


def perplexity(batches: list[dict[str, Any]], logits: torch.Tensor) -> float:
    """What a language model makes of words beside those before them; the first word of a row has none before it."""
    behind = torch.cat([F.pad(b["input_ids"][:, 1:], (0, 1), value=-100).flatten() for b in batches])
    parts = zip(logits.split(512), behind.split(512))
    total = sum(float(F.cross_entropy(x.double(), y, ignore_index=-100, reduction="sum")) for x, y in parts)
    return math.exp(total / int((behind >= 0).sum()))


def sentences() -> list[str]:
    """English sentences: those of Python's own help topics."""
    from pydoc_data.topics import topics

    found = list[str]()
    for name in sorted(topics):
        text = re.sub(r"\s+", " ", " ".join(p for p in topics[name].split("\n\n") if not p.startswith((" ", "*"))))
        found += [s for s in re.split(r"(?<=[a-z]\.) (?=[A-Z])", text) if 40 < len(s) < 300 and s.count("*") < 3]
    order = np.random.default_rng(0).permutation(len(found))
    return [found[i] for i in order]


# ---- models -------------------------------------------------------------------------------------------------------


def minilm(folder: Path) -> Model:
    """A sentence encoder: the mean of its tokens."""
    from transformers import AutoModel, AutoTokenizer

    module, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def batches(texts: list[str]) -> list[dict[str, Any]]:
        parts = [texts[i : i + 16] for i in range(0, len(texts), 16)]
        return [
            dict(tokenizer(part, return_tensors="pt", padding=True, truncation=True, max_length=128)) for part in parts
        ]

    def outputs(module: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        mask = batch["attention_mask"][..., None]
        return (module(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)

    texts = sentences()
    observed, measured = batches(texts[:SENTENCES]), batches(texts[SENTENCES : 5 * SENTENCES])
    return Model(module, observed, measured, outputs, cosine)


def llama(folder: Path) -> Model:
    """The sample Llama, which reads a letter a word."""
    from transformers import AutoModelForCausalLM

    sys.path.insert(0, str(SAMPLES))
    from llama_model import HELD_OUT, drawn

    def batches(text: str, rows: int) -> list[dict[str, Any]]:
        letters = np.frombuffer(text.encode()[: rows * 96], np.uint8).reshape(-1, 96).astype(np.int64)
        return [{"input_ids": torch.from_numpy(part.copy())} for part in np.array_split(letters, 4)]

    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = "\n".join(drawn(7, 400))
    held = HELD_OUT.read_text()
    observed, measured = batches(text, 64), batches(held, min(240, len(held) // 96))
    return Model(module, observed, measured, lambda m, batch: m(**batch).logits.flatten(0, 1), divergence, True)


def llm(folder: Path) -> Model:
    """A language model with its tokenizer, on English text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(" ".join(sentences()), return_tensors="pt")["input_ids"][0]
    rows = [{"input_ids": row[None]} for row in ids[: len(ids) // 128 * 128].reshape(-1, 128)]
    return Model(module, rows[:48], rows[48:64], lambda m, batch: m(**batch).logits.flatten(0, 1), divergence, True)


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int, eps: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after, eps), nn.BatchNorm2d(after, eps)
        self.stride, self.more = stride, after - before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return F.relu(made + x)


class Residual(nn.Module):
    """A residual network for pictures of 32 x 32, whose shortcuts have no weights."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        widths, eps = config["widths"], config["bn_eps"]
        self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0], eps)
        before = widths[0]
        for number, (count, width) in enumerate(zip(config["blocks"], widths)):
            blocks = list[nn.Module]()
            for i in range(count):
                blocks.append(Block(before, width, 2 if number and not i else 1, eps))
                before = width
            setattr(self, f"layer{number + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(before, config["num_classes"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def resnet(folder: Path) -> Model:
    """A classifier of the pictures of CIFAR-10: 256 for statistics, the others for figures."""
    config = json.loads((folder / "config.json").read_text())
    module = Residual(config)
    module.load_state_dict(load_file(folder / "model.safetensors"))
    (path,) = folder.glob("cifar10*.npz")
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    x = (torch.from_numpy(np.load(path)["x"]).permute(0, 3, 1, 2).float() / 255 - mean) / std
    observed = [{"x": part} for part in x[:256].split(64)]
    return Model(module.eval(), observed, [{"x": part} for part in x[256:].split(218)], lambda m, b: m(**b), divergence)


class Speech(nn.Module):
    """Silero's detector of speech at 16 kHz, over frames of 512 samples and 64 before them, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv2d(1, 258, (1, 256), (1, 128), bias=False)
        sizes = [(129, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1)]
        for i, (before, after, stride) in enumerate(sizes):
            setattr(self, f"conv{i + 1}", nn.Conv2d(before, after, (1, 3), (1, stride), (0, 1)))
        self.lstm_cell = nn.Module()
        self.lstm_cell.weight_ih, self.lstm_cell.weight_hh = nn.Linear(128, 512), nn.Linear(128, 512)
        self.final_conv = nn.Conv2d(128, 1, 1)

    def take(self, tensors: dict[str, torch.Tensor]) -> None:
        """Weights under the names of a file."""
        own = dict(self.named_parameters())
        for name, value in tensors.items():
            there = re.sub(
                "(cell.)bias_(ih|hh)", r"\1weight_\2.bias", re.sub("(cell.weight_[ih]h)$", r"\1.weight", name)
            )
            own[there].data.copy_(value.float().reshape(own[there].shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stft_conv(F.pad(x[:, None], (0, 64), mode="reflect")[:, :, None])
        x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(conv(x))
        given, h, c, found = self.lstm_cell.weight_ih(x.flatten(1)), torch.zeros(1, 128), torch.zeros(1, 128), []
        for step in given.split(1):
            i, f, g, o = (step + self.lstm_cell.weight_hh(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            found.append(h)
        return self.final_conv(F.relu(torch.cat(found))[:, :, None, None]).sigmoid().flatten()


def silero(folder: Path) -> Model:
    """A detector of speech: the first fifth of a recording for statistics, all behind it for figures."""
    module = Speech()
    module.take(load_file(folder / "model.safetensors"))
    with wave.open(str(folder / "test.wav")) as file:
        wav = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    wav = torch.from_numpy(np.concatenate([np.zeros(64, np.float32), wav]))
    frames = torch.stack([wav[i : i + 576] for i in range(0, len(wav) - 576, 512)])
    cut = len(frames) // 5
    return Model(module.eval(), [{"x": frames[:cut]}], [{"x": frames[cut:]}], lambda m, b: m(**b), distance)


MODELS: dict[str, Callable[[Path], Model]] = {
    "minilm": minilm, "llama": llama, "llm": llm, "resnet": resnet, "silero": silero,
}  # fmt: skip


# ---- commands -----------------------------------------------------------------------------------------------------


def figures(model: Model, paths: Iterable[Path]) -> Iterator[dict[str, float]]:
    """What becomes of the outputs with the weights of each file."""

    def run() -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([model.outputs(model.module, batch) for batch in model.measured])

    before = run()
    for path in paths:
        tensors = load_file(path)
        if isinstance(model.module, Speech):
            model.module.take(tensors)
        else:
            left = model.module.load_state_dict(tensors, strict=False).unexpected_keys
            assert not [name for name in left if not name.endswith("position_ids")], left
        after = run()
        spoken = {"perplexity": perplexity(model.measured, after)} if model.speaks else {}
        yield {"figure": model.figure(before, after), **spoken}


def main() -> None:
    what, name, folder, *paths = sys.argv[1:]
    torch.set_num_threads(1)
    model = MODELS[name](Path(folder))
    if what == "observe":
        offered: dict[str, Any] = {}
        exec(Path(paths[0]).read_text(encoding="utf-8"), offered)
        offered["observe"](model.module, model.observed, paths[1], full="--vectors" not in paths)
    else:
        for found in figures(model, (Path(line.rstrip("\n")) for line in sys.stdin)):
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
