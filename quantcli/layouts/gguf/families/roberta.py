"""RoBERTa and XLM-RoBERTa for embeddings, which llama.cpp runs as BERT: positions begin behind that of padding."""

from __future__ import annotations

from dataclasses import replace

from quantcli.layouts.gguf.families import bert
from quantcli.layouts.gguf.family import Parts
from quantcli.layouts.gguf.settings import Config, refuse
from quantcli.stores.stacked import Matrix, Rebuilt
from quantcli.tensors.info import TensorInfo

POSITIONS = "embeddings.position_embeddings.weight"


def _first(config: Config) -> int:
    """The position of the first word."""
    return config.whole("pad_token_id", 1, least=0) + 1


def parts(config: Config) -> Parts:
    """What a config.json makes of it."""
    count = config.whole("max_position_embeddings") - _first(config)
    if count < 1:
        raise refuse("no positions are left behind that of padding", "max_position_embeddings")
    types = config.whole("type_vocab_size", 1)
    return bert.parts(Config({**config.values, "max_position_embeddings": count, "type_vocab_size": types}))


def rebuilt(info: TensorInfo, config: Config) -> list[Rebuilt] | None:
    """The positions of words, without those before them."""
    if not info.name.endswith(POSITIONS) or len(info.shape) != 2:
        return None
    first, (rows, cols) = _first(config), info.shape
    if rows <= first:
        return None
    matrix = Matrix(name=info.name, rows=rows - first, cols=cols, first=first * cols)
    return [Rebuilt(info.name, (rows - first, cols), (matrix,))]


FAMILY = replace(
    bert.FAMILY,
    classes=("RobertaModel", "RobertaForMaskedLM", "XLMRobertaModel", "XLMRobertaForMaskedLM"),
    parts=parts,
    prefixes=("roberta.",),
    unused=(r"(?:roberta\.)?embeddings\.(?:position_ids|token_type_ids)", r"(?:roberta\.)?pooler\..*", r"lm_head\..*"),
    rebuilt=rebuilt,
    words=("gpt2", "t5"),
)
