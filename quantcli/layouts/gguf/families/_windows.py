"""What llama.cpp takes for granted of several families: layers that take turns, heads of keys, an embedding as head."""

from __future__ import annotations

from quantcli.layouts.gguf.families._parts import Sizes, sizes
from quantcli.layouts.gguf.settings import Config, refuse


def every(config: Config, s: Sizes, period: int) -> None:
    """Raise DataError where other layers than each last of `period` attend to all tokens."""
    kinds = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(s.layers)]
    if config.get("layer_types", kinds) != kinds or config.get("sliding_window_pattern", period) != period:
        raise refuse(f"llama.cpp supports such models only with each {period}th layer attending to all", "layer_types")


def as_many_keys(s: Sizes) -> None:
    """Raise DataError where there are fewer heads of keys than of queries."""
    if s.kv_heads != s.heads:
        problem = "llama.cpp supports such models only with as many heads of keys as of queries"
        raise refuse(problem, "num_key_value_heads")


def head_tied(config: Config) -> Sizes:
    """The sizes of a model of as many heads of keys as of queries, where it does not say. Raises DataError where the
    output head is a tensor of its own."""
    if config.get("tie_word_embeddings", True) is not True:
        raise refuse("llama.cpp supports such models only with the embedding as head", "tie_word_embeddings")
    return sizes(config, kv_heads=config.whole("num_attention_heads"), shared=True)
