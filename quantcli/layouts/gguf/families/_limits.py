"""What llama.cpp takes for granted of several families: which layers have a window, heads of keys, an embedding as
head."""

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


def as_wide_as_hidden(s: Sizes) -> None:
    """Raise DataError where all queries together are wider or narrower than the hidden size."""
    if s.queries != s.hidden:
        raise refuse(f"llama.cpp wants heads of {s.hidden} rows together, not {s.queries}", "head_dim")


def head_tied(config: Config, *, head: int | None = None) -> Sizes:
    """The sizes of a model of as many heads of keys as of queries, where it does not say. head: rows of a head, where
    it does not say. Raises DataError where the output head is a tensor of its own."""
    if config.get("tie_word_embeddings", True) is not True:
        raise refuse("llama.cpp supports such models only with the embedding as head", "tie_word_embeddings")
    return sizes(config, kv_heads=config.whole("num_attention_heads"), head=head, shared=True)
