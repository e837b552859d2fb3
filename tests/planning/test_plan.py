"""What is quantized, what is kept and why, and what is refused before the first weight is read."""

from __future__ import annotations

from typing import Any

import pytest

from quantcli import DataError, Scheme, UsageError
from quantcli.layouts.native.parts import nbytes, outputs
from quantcli.planning.plan import Plan, make
from quantcli.planning.reasons import REASONS
from quantcli.planning.request import Request, Rule
from quantcli.tensors.info import TensorInfo

SCHEME = Scheme(bits=4)
MATRIX = (256, 256)


def plan_of(tensors: dict[str, Any], **request: Any) -> Plan:
    """The plan for tensors given as name -> shape (F32) or (dtype, shape)."""
    infos = [
        TensorInfo(name, *(("F32", value) if not value or isinstance(value[0], int) else value))
        for name, value in tensors.items()
    ]
    return make(infos, Request(**{"scheme": SCHEME, **request}))


def reasons(plan: Plan) -> dict[str, str]:
    assert all(t.reason in REASONS for t in plan.tensors)
    assert all((t.scheme is None) == (t.disposition == "kept") for t in plan.tensors)
    return {t.info.name: t.reason for t in plan.tensors}


REAL: list[tuple[str, tuple[int, ...], str]] = [
    # Llama and its relatives
    ("model.embed_tokens.weight", MATRIX, "embedding"),
    ("model.layers.0.self_attn.q_proj.weight", MATRIX, "default"),
    ("model.layers.0.self_attn.q_proj.bias", (256,), "bias"),
    ("model.layers.0.self_attn.q_norm.weight", (256,), "norm"),
    ("model.layers.0.mlp.gate_proj.weight", MATRIX, "default"),
    ("model.layers.0.mlp.gate_up_proj.weight", MATRIX, "default"),
    ("model.layers.0.mlp.down_proj.weight", MATRIX, "default"),
    ("model.layers.0.input_layernorm.weight", (256,), "norm"),
    ("model.layers.0.post_attention_layernorm.weight", (256,), "norm"),
    ("model.norm.weight", (256,), "norm"),
    ("norms.weight", MATRIX, "norm"),
    ("normalization.weight", MATRIX, "norm"),
    ("layer_normalized.weight", MATRIX, "norm"),
    ("normal.weight", MATRIX, "default"),
    ("decoder.normals.weight", MATRIX, "default"),
    ("normal_head.weight", MATRIX, "default"),
    ("lm_head.weight", MATRIX, "lm-head"),
    ("tok_embeddings.weight", MATRIX, "embedding"),
    ("output.weight", MATRIX, "lm-head"),
    ("layers.0.attention.wq.weight", MATRIX, "default"),
    ("layers.0.feed_forward.w1.weight", MATRIX, "default"),
    ("layers.0.attention_norm.weight", (256,), "norm"),
    # mixtures of experts
    ("model.layers.0.block_sparse_moe.gate.weight", (8, 256), "router"),
    ("model.layers.0.block_sparse_moe.experts.3.w1.weight", MATRIX, "default"),
    ("model.layers.0.mlp.gate.weight", (64, 256), "router"),
    ("model.layers.0.mlp.shared_expert_gate.weight", (8, 256), "router"),
    ("model.layers.0.mlp.experts.0.gate_proj.weight", MATRIX, "default"),
    ("model.layers.0.mlp.router.weight", (8, 256), "router"),
    ("model.layers.0.feed_forward.router.weight", (8, 256), "router"),
    # GPT-2 and other decoders
    ("transformer.wte.weight", MATRIX, "embedding"),
    ("wte.weight", MATRIX, "embedding"),
    ("wpe.weight", MATRIX, "embedding"),
    ("h.0.ln_1.weight", (256,), "norm"),
    ("ln_f.weight", (256,), "norm"),
    ("h.0.attn.c_attn.weight", (256, 768), "default"),
    ("h.0.mlp.c_fc.bias", (1024,), "bias"),
    ("gpt_neox.embed_in.weight", MATRIX, "embedding"),
    ("embed_out.weight", MATRIX, "lm-head"),
    ("cls.predictions.decoder.weight", MATRIX, "lm-head"),  # BERT, and below RoBERTa, T5Gemma, ALBERT and others
    ("cls.predictions.transform.dense.weight", MATRIX, "default"),
    ("lm_head.decoder.weight", MATRIX, "lm-head"),
    ("lm_head.dense.weight", MATRIX, "default"),
    ("lm_head.out_proj.weight", MATRIX, "lm-head"),
    ("predictions.decoder.weight", MATRIX, "lm-head"),
    ("entity_predictions.decoder.weight", MATRIX, "lm-head"),
    ("generator_lm_head.weight", MATRIX, "lm-head"),
    ("vocab_projector.weight", MATRIX, "lm-head"),
    ("pred_layer.proj.weight", MATRIX, "lm-head"),
    ("decoder.layers.0.fc1.weight", MATRIX, "default"),
    ("gpt_neox.layers.0.attention.query_key_value.weight", MATRIX, "default"),
    ("transformer.word_embeddings_layernorm.weight", (256,), "norm"),
    ("transformer.word_embeddings.weight", MATRIX, "embedding"),
    # BERT, MiniLM, T5
    ("embeddings.word_embeddings.weight", (30522, 384), "embedding"),
    ("embeddings.position_embeddings.weight", (512, 384), "embedding"),
    ("embeddings.token_type_embeddings.weight", (2, 768), "embedding"),
    ("embeddings.LayerNorm.weight", (384,), "norm"),
    ("embeddings.LayerNorm.bias", (384,), "norm"),
    ("encoder.layer.0.attention.self.query.weight", (384, 384), "default"),
    ("encoder.layer.0.attention.self.query.bias", (384,), "bias"),
    ("encoder.layer.0.attention.output.dense.weight", (384, 384), "default"),
    ("encoder.layer.0.attention.output.LayerNorm.weight", (384,), "norm"),
    ("encoder.layer.0.output.dense.weight", (384, 1536), "default"),
    ("pooler.dense.weight", (384, 384), "default"),
    ("encoder.block.0.layer.0.layer_norm.weight", (512,), "norm"),
    # convolutional networks
    ("conv1.weight", (64, 3, 7, 7), "default"),
    ("bn1.weight", (64,), "norm"),
    ("bn1.running_mean", (64,), "norm"),
    ("layer1.0.conv1.weight", (64, 64, 3, 3), "default"),
    ("layer1.0.bn2.bias", (64,), "norm"),
    ("layer2.0.downsample.1.weight", (128,), "one-dimensional"),
    ("fc.weight", (1000, 512), "default"),
    ("fc.bias", (1000,), "bias"),
    ("features.0.weight", (8, 3, 3, 3), "small"),
    # vision and speech transformers
    ("patch_embed.proj.weight", (192, 3, 16, 16), "default"),
    ("embeddings.patch_embeddings.projection.weight", (768, 3, 16, 16), "default"),
    ("vision_model.embeddings.patch_embedding.weight", (768, 3, 16, 16), "default"),
    ("pos_embed", (1, 197, 192), "embedding"),
    ("vision_model.embeddings.position_embedding.weight", (577, 1024), "embedding"),
    ("blocks.0.norm1.weight", (192,), "norm"),
    ("blocks.0.attn.qkv.weight", (576, 192), "default"),
    ("model.encoder.embed_positions.weight", (1500, 384), "embedding"),
    ("cls_token", (1, 1, 192), "small"),
]


@pytest.mark.parametrize(("name", "shape", "reason"), REAL, ids=[name for name, _, _ in REAL])
def test_real_names(name: str, shape: tuple[int, ...], reason: str) -> None:
    """1-D, norms, biases, routers and gates, embeddings, output heads and what is small are kept; the rest is
    quantized."""
    plan = plan_of({name: shape, "somewhere.else.proj.weight": MATRIX})
    assert reasons(plan)[name] == reason


STATIC: list[dict[str, Any]] = [
    {"embedding.weight": (32000, 256)},  # WordLlama
    {"embeddings": (3000, 256), "weights": (3000,), "mapping": ("I64", (3000,))},  # model2vec
    {"0.embedding.weight": (500, 64), "0.norm.weight": (64,), "0.norm.bias": (64,), "scale": (), "tiny": (3, 3)},
]


@pytest.mark.parametrize("tensors", STATIC, ids=lambda t: next(iter(t)))
def test_embeddings_are_quantized_where_they_are_all_there_is(tensors: dict[str, Any]) -> None:
    table, *rest = tensors
    plan = plan_of(tensors)
    assert reasons(plan)[table] == "embedding-only" and plan.tensors[0].scheme == SCHEME
    assert all(t.scheme is None for t in plan.tensors[1:])
    for other in ("layers.0.proj.weight", "lm_head.weight", "gate.weight"):
        if other == "layers.0.proj.weight":
            assert reasons(plan_of({**tensors, other: MATRIX}))[table] == "embedding"
        else:
            with pytest.raises(DataError, match="nothing to quantize"):
                plan_of({**tensors, other: MATRIX})
    with pytest.raises(DataError, match="nothing to quantize"):
        plan_of({"class_embedding": (2048,), **dict.fromkeys(rest, (8,))})
    with pytest.raises(DataError, match="nothing to quantize"):
        plan_of(tensors, exclude=(table,))


@pytest.mark.parametrize("dtype", ["BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "C64"])
def test_what_is_no_float_passes_through(dtype: str) -> None:
    plan = plan_of({"a.weight": (dtype, MATRIX), "b.weight": MATRIX}, include=("*",), keep_defaults=False)
    assert reasons(plan) == {"a.weight": "not-float", "b.weight": "default"}
    assert outputs(plan.tensors[0]) == (plan.tensors[0].info,)


@pytest.mark.parametrize("dtype", ["F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2"])
def test_other_floats_pass_through(dtype: str) -> None:
    plan = plan_of({"a.weight": (dtype, MATRIX), "b.weight": MATRIX}, include=("*",), keep_defaults=False)
    assert reasons(plan)["a.weight"] == "unsupported-dtype"


def test_nothing_and_scalars_pass_through() -> None:
    plan = plan_of({"empty": (0, 4), "scalar": (), "b.weight": MATRIX}, include=("*",), keep_defaults=False)
    assert reasons(plan) == {"empty": "empty", "scalar": "scalar", "b.weight": "default"}


def test_small_tensors_are_kept() -> None:
    plan = plan_of({"a": (31, 33), "b": (32, 32), "c": (2000,), "d": MATRIX})
    assert reasons(plan) == {"a": "small", "b": "default", "c": "one-dimensional", "d": "default"}


def test_columns_are_kept_as_vectors() -> None:
    """Every weight would have a scale of its own: 48 bits instead of 32. The phases of a spectrogram in resemble-perth
    1.0.1 are one."""
    tensors = {"a": (1025, 1), "b": (1, 1025), "c": (2048, 1, 1), "d": MATRIX, "e": (40, 1)}
    kept = {"a": "one-dimensional", "b": "default", "c": "one-dimensional", "d": "default", "e": "small"}
    assert reasons(plan_of(tensors)) == kept
    assert set(reasons(plan_of(tensors, keep_defaults=False)).values()) == {"default"}
    assert reasons(plan_of({"a": (1025, 1)})) == {"a": "default"}


@pytest.mark.parametrize(("tensors", "expected"), [
    ({"w": (100,)}, {"w": "default"}),
    ({"w": (5, 5)}, {"w": "default"}),
    ({"a": (5, 5), "b": (9,), "n": ("I64", (3,))}, {"a": "default", "b": "default", "n": "not-float"}),
    ({"a": (5, 5), "b": MATRIX}, {"a": "small", "b": "default"}),
])  # fmt: skip
def test_where_there_is_nothing_else_small_tensors_are_the_weights(
    tensors: dict[str, Any], expected: dict[str, str]
) -> None:
    """where a file holds nothing else (an array of audio samples, a toy model) they are the weights"""
    assert reasons(plan_of(tensors)) == expected


@pytest.mark.parametrize("tensors", [
    {"model.norm.weight": (256,), "a.bias": (256,)},
    {"model.embed_tokens.weight": MATRIX, "lm_head.weight": MATRIX},
    {"ids": ("I64", (4, 4))},
    {"ids": ("I64", (4, 4)), "empty": (0,)},
    {"scale": ()},
    {"w": ("F4", (4, 4))},
])  # fmt: skip
def test_nothing_left_is_an_error(tensors: dict[str, Any]) -> None:
    """Never 0 after doing nothing."""
    with pytest.raises(DataError, match="nothing to quantize: all tensors are kept") as caught:
        plan_of(tensors)
    assert "\n" not in str(caught.value)


def test_everything_excluded_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to quantize"):
        plan_of({"a": MATRIX, "b": MATRIX}, exclude=("*",))


def test_the_keep_list_can_be_turned_off() -> None:
    plan = plan_of(
        {"lm_head.weight": MATRIX, "embed.weight": MATRIX, "tiny": (2, 2), "norm.weight": (256,)}, keep_defaults=False
    )
    assert reasons(plan) == {
        "lm_head.weight": "default",
        "embed.weight": "default",
        "tiny": "default",
        "norm.weight": "one-dimensional",
    }


def test_include_and_exclude() -> None:
    tensors = {f"layers.{i}.{kind}.weight": MATRIX for i in range(2) for kind in ("up", "down")}
    plan = plan_of(tensors, include=("layers.0.*", "*.down"), exclude=("layers.1.down",))
    assert reasons(plan) == {
        "layers.0.up.weight": "default",
        "layers.0.down.weight": "default",
        "layers.1.up.weight": "not-included",
        "layers.1.down.weight": "excluded",
    }


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_without_a_match_lists_near_misses(option: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_of({"layers.0.up_proj.weight": MATRIX}, **{option: ("*.up_prj",)})
    assert str(caught.value).startswith(f"--{option}: '*.up_prj' matches no tensor; near it: ")
    assert "layers.0.up_proj" in str(caught.value)


def test_the_last_rule_decides() -> None:
    tensors = {f"layers.{i}.weight": MATRIX for i in range(3)} | {"lm_head.weight": MATRIX, "ids": ("I64", (3,))}
    eight = Scheme(bits=8, granularity="channel")
    rules = (Rule("layers.*", eight), Rule("layers.1", None), Rule("lm_head", eight), Rule("*ids", eight))
    plan = plan_of(tensors, rules=rules)
    assert reasons(plan) == {"layers.0.weight": "rule", "layers.1.weight": "excluded", "layers.2.weight": "rule",
                             "lm_head.weight": "rule", "ids": "not-float"}  # fmt: skip
    assert plan.tensors[0].scheme == eight
    with pytest.raises(UsageError, match=r"rules: 'layer\.\*' matches no tensor"):
        plan_of(tensors, rules=(Rule("layer.*", eight),))


@pytest.mark.parametrize("other", ["a.weight_packed", "a.weight_scale", "a.weight_shape"])
def test_names_that_would_collide_are_refused(other: str) -> None:
    """Produced names that already exist in the input: refuse, naming both"""
    with pytest.raises(DataError) as caught:
        plan_of({"a.weight": MATRIX, other: ("I32", (4,))})
    assert f"a.weight and {other} would both be written as {other}" in str(caught.value)


def test_only_names_that_are_written_collide() -> None:
    plan_of({"a.weight": MATRIX, "a.weight_zero_point": ("I32", (4,))})
    with pytest.raises(DataError, match=r"a\.weight_zero_point"):
        plan_of({"a.weight": MATRIX, "a.weight_zero_point": ("I32", (4,))}, scheme=Scheme(bits=4, symmetric=False))
    plan_of({"a.weight": MATRIX, "a.weight_packed": ("I32", (4,)), "b": MATRIX}, exclude=("a.weight",))


@pytest.mark.parametrize(("shape", "fields", "expected"), [
    ((64, 100), {}, {"packed": ("I32", (64, 13)), "scale": ("F16", (64, 1)), "shape": ("I64", (2,))}),
    ((64, 100), {"group_size": 32}, {"packed": ("I32", (64, 13)), "scale": ("F16", (64, 4)), "shape": ("I64", (2,))}),
    ((64, 100), {"symmetric": False, "group_size": 32}, {"packed": ("I32", (64, 13)), "scale": ("F16", (64, 4)),
                                                         "zero_point": ("I32", (8, 4)), "shape": ("I64", (2,))}),
    ((10, 64), {"symmetric": False, "group_size": 32}, {"packed": ("I32", (10, 8)), "scale": ("F16", (10, 2)),
                                                        "zero_point": ("I32", (2, 2)), "shape": ("I64", (2,))}),
    ((10, 64), {"symmetric": False, "zero_point": "float", "granularity": "tensor"},
     {"packed": ("I32", (10, 8)), "scale": ("F16", (10, 1)), "offset": ("F16", (10, 1)), "shape": ("I64", (2,))}),
    ((64, 16, 3, 3), {"granularity": "channel", "axis": 1},
     {"packed": ("I32", (64, 18)), "scale": ("F16", (1, 16, 1, 1)), "shape": ("I64", (4,))}),
])  # fmt: skip
def test_every_output_is_planned(shape: tuple[int, ...], fields: dict[str, Any], expected: dict[str, Any]) -> None:
    planned = plan_of({"w": shape}, scheme=Scheme(bits=4, **fields)).tensors[0]
    assert {o.name: (o.dtype, o.shape) for o in outputs(planned)} == {f"w_{k}": v for k, v in expected.items()}
    assert nbytes(planned) == sum(o.nbytes for o in outputs(planned))


def test_a_short_last_group_is_noted() -> None:
    planned = plan_of({"w": (64, 100)}, scheme=Scheme(bits=4, group_size=32)).tensors[0]
    assert "short last group of 4" in planned.note
    assert plan_of({"w": (64, 96)}, scheme=Scheme(bits=4, group_size=32)).tensors[0].note == ""


def test_what_a_shape_forbids_names_the_tensor() -> None:
    with pytest.raises(UsageError, match=r"^w: a tensor of 2 dimensions has no axis 3"):
        plan_of({"w": MATRIX}, scheme=Scheme(bits=4, granularity="channel", axis=3))


def test_hostile_names_are_kept_out_of_messages() -> None:
    evil = "a\x1b[2J\nquantcli: fine"
    with pytest.raises(DataError) as caught:
        plan_of({evil: MATRIX, f"{evil}_packed": ("I32", (4,))})
    assert str(caught.value).isprintable()


def test_names_of_any_length_are_planned_quickly() -> None:
    plan_of({"norm" * 100_000: MATRIX, "a_" * 100_000: MATRIX, "x.embed" * 50_000: MATRIX})


def test_rules_quantize_vectors_only_by_name() -> None:
    infos = [TensorInfo("fc1.weight", "F32", (64, 64)), TensorInfo("fc1.bias", "F32", (64,)),
             TensorInfo("lm_head.weight", "F32", (64, 64))]  # fmt: skip

    def found(pattern: str) -> list[str]:
        rules = (Rule(pattern, Scheme(bits=8)),)
        return [t.disposition for t in make(infos, Request(scheme=Scheme(bits=4), rules=rules)).tensors]

    kept, quantized = "kept", "quantized"
    assert found("fc1") == [quantized, kept, kept]
    assert found("*") == [quantized, kept, quantized]
    assert found("fc1.bias") == found(r"re:fc1\.b.*") == [quantized, quantized, kept]
