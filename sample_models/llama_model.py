"""A tiny Llama: RMS norms, rotary embeddings in halves, grouped key and value heads, SwiGLU; in plain numpy.

The forward pass is written once, over the operations of `Graph`, which training differentiates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

HELD_OUT = Path(__file__).resolve().parent / "tiny-llama-held-out.txt"
"""The sentences that training never drew, one per line, as `train_tiny_llama.py` wrote them."""

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def words(n: int) -> str:
    """A number from 0 to 199 in words.

    >>> words(142)
    'one hundred forty two'
    """
    if n >= 100:
        return "one hundred" + (f" {words(n - 100)}" if n > 100 else "")
    if n < 20:
        return _ONES[n]
    return _TENS[n // 10] + (f" {_ONES[n % 10]}" if n % 10 else "")


def sentence(a: int, b: int, minus: bool) -> str:
    """A sum in English.

    >>> sentence(42, 7, minus=False)
    'forty two plus seven is forty nine.'
    """
    if minus:
        return f"{words(a)} minus {words(b)} is {words(a - b)}."
    return f"{words(a)} plus {words(b)} is {words(a + b)}."


def codes(lines: list[str]) -> Array:
    """Lines as ASCII codes."""
    return np.frombuffer("\n".join(lines).encode("ascii"), np.uint8).astype(np.int64)


def drawn(seed: int, count: int) -> list[str]:
    """Random sums of two numbers below 100; there are 15,050, so that two long draws share most of theirs."""
    rng = np.random.default_rng(seed)
    return [sentence(a, b, bool(a >= b and rng.integers(2))) for a, b in rng.integers(0, 100, (count, 2)).tolist()]


def never_drawn(lines: list[str], seed: int) -> list[str]:
    """All the sums that are not among `lines`, shuffled: a second draw would repeat what training saw."""
    seen = set(lines)
    every = [
        sentence(a, b, minus) for minus in (False, True) for a in range(100) for b in range(a + 1 if minus else 100)
    ]
    rest = [line for line in every if line not in seen]
    return [rest[i] for i in np.random.default_rng(seed).permutation(len(rest))]


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, in the order of the model."""
    h, m, v = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    kv = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, h)}
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        found |= {
            layer + "input_layernorm.weight": (h,),
            layer + "self_attn.q_proj.weight": (h, h),
            layer + "self_attn.k_proj.weight": (kv, h),
            layer + "self_attn.v_proj.weight": (kv, h),
            layer + "self_attn.o_proj.weight": (h, h),
            layer + "post_attention_layernorm.weight": (h,),
            layer + "mlp.gate_proj.weight": (m, h),
            layer + "mlp.up_proj.weight": (m, h),
            layer + "mlp.down_proj.weight": (h, m),
        }
    return found | {"model.norm.weight": (h,), "lm_head.weight": (v, h)}


class Node:
    """A value in the graph, its gradient, and how to pass that on."""

    __slots__ = ("back", "grad", "value")

    def __init__(self, value: Array, back: Callable[[Array], None] | None = None) -> None:
        self.value, self.back = value, back
        self.grad: Array | None = None

    def take(self, grad: Array) -> None:
        """Add to the gradient."""
        self.grad = grad if self.grad is None else self.grad + grad


class Graph:
    """Operations on nodes, remembered in order; `backward` runs them in reverse."""

    def __init__(self) -> None:
        self.tape: list[Node] = []

    def node(self, value: Array, back: Callable[[Array], None]) -> Node:
        self.tape.append(Node(value, back))
        return self.tape[-1]

    def linear(self, x: Node, w: Node) -> Node:
        def back(g: Array) -> None:
            x.take(g @ w.value)
            w.take(g.reshape(-1, g.shape[-1]).T @ x.value.reshape(-1, x.value.shape[-1]))

        return self.node(x.value @ w.value.T, back)

    def add(self, a: Node, b: Node) -> Node:
        def back(g: Array) -> None:
            a.take(g)
            b.take(g)

        return self.node(a.value + b.value, back)

    def embed(self, w: Node, tokens: Array) -> Node:
        def back(g: Array) -> None:
            grad = np.zeros_like(w.value)
            np.add.at(grad, tokens, g)
            w.take(grad)

        return self.node(w.value[tokens], back)

    def norm(self, x: Node, w: Node) -> Node:
        r = 1 / np.sqrt((x.value**2).mean(axis=-1, keepdims=True) + CONFIG["rms_norm_eps"])
        n = x.value * r

        def back(g: Array) -> None:
            w.take((g * n).reshape(-1, n.shape[-1]).sum(axis=0))
            d = g * w.value
            x.take(r * (d - n * (d * n).mean(axis=-1, keepdims=True)))

        return self.node(n * w.value, back)

    def gated(self, gate: Node, up: Node) -> Node:
        s = 1 / (1 + np.exp(-gate.value))
        silu = gate.value * s

        def back(g: Array) -> None:
            up.take(g * silu)
            gate.take(g * up.value * (s + silu * (1 - s)))

        return self.node(silu * up.value, back)

    def attention(self, q: Node, k: Node, v: Node) -> Node:
        heads, groups, size = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]
        b, t, _ = q.value.shape
        cos, sin = rotation(t)

        def split(x: Array, n: int) -> Array:
            out: Array = x.reshape(b, t, n, size).transpose(0, 2, 1, 3)
            return out

        def join(x: Array) -> Array:
            out: Array = x.transpose(0, 2, 1, 3).reshape(b, t, -1)
            return out

        def shrink(x: Array) -> Array:
            out: Array = x.reshape(b, groups, heads // groups, t, size).sum(axis=2)
            return out

        qh = rotate(split(q.value, heads), cos, sin)
        kh = rotate(split(k.value, groups), cos, sin).repeat(heads // groups, axis=1)
        vh = split(v.value, groups).repeat(heads // groups, axis=1)
        scores = qh @ kh.transpose(0, 1, 3, 2) / np.sqrt(size).astype(np.float32)
        scores = np.where(np.tri(t, dtype=bool), scores, np.float32(-1e9))
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)

        def back(g: Array) -> None:
            gh = split(g, heads)
            v.take(join(shrink(p.transpose(0, 1, 3, 2) @ gh)))
            d = gh @ vh.transpose(0, 1, 3, 2)
            d = p * (d - (d * p).sum(axis=-1, keepdims=True)) / np.sqrt(size).astype(np.float32)
            q.take(join(rotate(d @ kh, cos, -sin)))
            k.take(join(rotate(shrink(d.transpose(0, 1, 3, 2) @ qh), cos, -sin)))

        return self.node(join(p @ vh), back)

    def backward(self, grad: Array) -> None:
        """Gradients of everything, from the gradient of the last node."""
        self.tape[-1].take(grad)
        for node in reversed(self.tape):
            if node.grad is not None and node.back is not None:
                node.back(node.grad)


def rotation(length: int) -> tuple[Array, Array]:
    """cos and sin (length, head size), the angles repeated in both halves as Hugging Face does."""
    size = CONFIG["head_dim"]
    angle = np.arange(length)[:, None] / CONFIG["rope_theta"] ** (np.arange(0, size, 2) / size)
    angle = np.concatenate([angle, angle], axis=1)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate the pairs (i, i + half)."""
    half = x.shape[-1] // 2
    turned: Array = x * cos + np.concatenate([-x[..., half:], x[..., :half]], axis=-1) * sin
    return turned


def forward(graph: Graph, p: Mapping[str, Node], tokens: Array) -> Node:
    """Scores (N, T, vocabulary) of the next byte."""
    x = graph.embed(p["model.embed_tokens.weight"], tokens)
    for i in range(CONFIG["num_hidden_layers"]):
        w = {k.removeprefix(f"model.layers.{i}.").removesuffix(".weight"): v for k, v in p.items() if f".{i}." in k}
        n = graph.norm(x, w["input_layernorm"])
        q, k, v = (graph.linear(n, w[f"self_attn.{c}_proj"]) for c in "qkv")
        x = graph.add(x, graph.linear(graph.attention(q, k, v), w["self_attn.o_proj"]))
        n = graph.norm(x, w["post_attention_layernorm"])
        gated = graph.gated(graph.linear(n, w["mlp.gate_proj"]), graph.linear(n, w["mlp.up_proj"]))
        x = graph.add(x, graph.linear(gated, w["mlp.down_proj"]))
    return graph.linear(graph.norm(x, p["model.norm.weight"]), p["lm_head.weight"])


def loss(scores: Array, targets: Array) -> tuple[float, Array]:
    """Mean cross entropy in nats per byte, and its gradient."""
    share = np.exp(scores - scores.max(axis=-1, keepdims=True))
    share /= share.sum(axis=-1, keepdims=True)
    picked = np.take_along_axis(share, targets[..., None], axis=-1)
    grad = share.copy()
    np.put_along_axis(grad, targets[..., None], picked - 1, axis=-1)
    return float(-np.log(np.maximum(picked, 1e-30)).mean(dtype=np.float64)), grad / targets.size


def held_out_loss(weights: Mapping[str, Array]) -> float:
    """Nats per byte on the sentences that training never drew."""
    tokens = codes(HELD_OUT.read_text(encoding="ascii").splitlines())
    count = (len(tokens) - 1) // 96
    rows = tokens[: count * 96].reshape(count, 96), tokens[1 : count * 96 + 1].reshape(count, 96)
    p = {k: Node(np.asarray(v, np.float32)) for k, v in weights.items()}
    return loss(forward(Graph(), p, rows[0]).value, rows[1])[0]
