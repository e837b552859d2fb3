"""Weights that vLLM and SGLang join into one matrix: they get one scheme, or the request is refused.

vLLM 0.32's `find_matched_target` and `should_ignore_layer` raise a ValueError where the parts of qkv_proj or
gate_up_proj have several schemes, or are ignored in part.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import one_line, run, save
from strategies import gaussian

from quantcli import Scheme, registry
from quantcli.errors import UsageError
from quantcli.layouts.joined import refuse_mixed
from quantcli.layouts.writer import named
from quantcli.planning.entry import quantized
from quantcli.tensors.decided import Decided, Kept
from quantcli.tensors.info import TensorInfo

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "sample_models" / "tiny-llama"
JOINING = ["awq", "compressed-tensors", "fp8-blocks", "gptq", "modelopt"]


def schemes(*arguments: object) -> dict[str, str | None]:
    """The scheme of every tensor by a dry run."""
    ran = run("quantize", *arguments, "--dry-run", "--json", "-q")
    assert ran.code == 0, ran
    return {t["name"]: t["scheme"] for t in json.loads(ran.out)["tensors"]}


def test_targets_whose_runtimes_join() -> None:
    assert [name for name in registry.names("layouts", "WRITES") if named(name).joins] == JOINING


@pytest.mark.parametrize(
    ("options", "place", "words"),
    [
        ("--override '*.v_proj:bits=8'", "self_attn", "q_proj is w4g64 and v_proj w8g64"),
        ("--override '*.q_proj:group_size=32'", "self_attn", "q_proj is w4g32 and k_proj w4g64"),
        ("--override '*.up_proj:symmetric=false'", "mlp", "gate_proj is w4g64 and up_proj w4g64-asym"),
        ("--override '*.up_proj:W8A8'", "mlp", "gate_proj is w4g64 and up_proj w8c with inputs in int8"),
        ("--exclude '*.k_proj'", "self_attn", "q_proj is w4g64 and k_proj kept"),
        ("--include '*.gate_proj'", "mlp", "gate_proj is w4g64 and up_proj kept"),
        ("--to gptq --exclude '*.0.mlp.gate_proj'", "mlp", "gate_proj is kept and up_proj w4g64"),
        ("--to awq --exclude '*.1.*.v_proj'", "1.self_attn", "q_proj is w4g64 and v_proj kept"),
    ],
)
def test_mixes_are_refused(options: str, place: str, words: str, tmp_path: Path) -> None:
    """in one line, which names the pattern that is about all of them; other targets take them"""
    typed = ["quantize", MODEL, "--bits", "4", "--group-size", "64", *shlex.split(options)]
    line = one_line(run(*typed, "-o", tmp_path / "out"), 2)
    assert f"{place}: {words}, but vLLM and SGLang join" in line and not list(tmp_path.iterdir())
    pattern = line.partition("'re:")[2].partition("'")[0]
    rule = ["--exclude", f"re:{pattern}"] if "--exclude" in line else ["--override", f"re:{pattern}:bits=8"]
    plain = ["quantize", MODEL, "--bits", "4", "--group-size", "64", *rule]
    assert run(*plain, "-o", tmp_path / "out", "-q").code == 0
    if "--to" not in options:
        assert run(*typed, "--to", "native", "-o", tmp_path / "native", "-q").code == 0


def test_codes_that_are_moved_are_not_mixed(tmp_path: Path) -> None:
    codes = tmp_path / "codes.safetensors"
    weights = {f"l.0.{name}.weight": gaussian(64, 64, seed=1) for name in ("q_proj", "k_proj")}
    save(tmp_path / "m.safetensors", weights)
    given = ["--bits", 4, "--group-size", 32, "--override", "*k_proj*:bits=8"]
    assert run("quantize", tmp_path / "m.safetensors", *given, "-o", codes, "-q").code == 0
    line = one_line(run("export", codes, "--to", "compressed-tensors", "-o", tmp_path / "out"), 2)
    assert "l.0: q_proj is w4g32 and k_proj w8g32, but vLLM and SGLang join q_proj and k_proj" in line
    assert run("export", codes, "--to", "mlx", "-o", tmp_path / "x.mlx", "-q").code == 0


def test_a_weight_beside_one_that_is_kept_is_kept(tmp_path: Path) -> None:
    """where nobody asked for that: 192 rows are not blocks of 128"""
    shapes = {"q_proj": (256, 256), "k_proj": (192, 256), "v_proj": (192, 256), "o_proj": (256, 256)}
    tensors = {f"l.0.{name}.weight": gaussian(*shape, seed=1) for name, shape in shapes.items()}
    path = tmp_path / "m.safetensors"
    save(path, tensors)
    found = schemes(path, "--to", "fp8-blocks")
    assert [name.split(".")[2] for name, scheme in found.items() if scheme] == ["o_proj"]
    ran = run("quantize", path, "--to", "fp8-blocks", "--dry-run", "--all")
    assert "vLLM and SGLang join it with l.0.k_proj.weight, which is kept" in ran.out
    assert schemes(path, "--to", "mlx")["l.0.q_proj.weight"] == "w4g64"


def test_blocks_that_cannot_be_joined_are_said(tmp_path: Path) -> None:
    """of fewer rows than a block, which are stored"""
    shapes = {"q_proj": (256, 256), "k_proj": (64, 256), "v_proj": (64, 256)}
    save(tmp_path / "m.safetensors", {f"l.0.{name}.weight": gaussian(*shape, seed=1) for name, shape in shapes.items()})
    ran = run("quantize", tmp_path / "m.safetensors", "--to", "fp8-blocks", "--dry-run")
    assert "they join q, k and v, and gate and up, and l.0.k_proj.weight has 64 rows" in ran.err


def test_a_size_never_leads_to_a_mix(tmp_path: Path) -> None:
    """Of none of the groups that runtimes join: those of DeepSeek and Qwen3-Next too."""
    groups = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("q_a_proj", "kv_a_proj_with_mqa"),
              ("in_proj_qkv", "in_proj_z"), ("in_proj_b", "in_proj_a"), ("query", "key", "value"))  # fmt: skip
    tensors = {
        f"l.{i}.{part}.{name}.weight": gaussian(64, 128, seed=8 * i + at) * (1 + 9 * at)
        for i in range(2) for part, group in enumerate(groups) for at, name in enumerate(group)
    }  # fmt: skip
    save(tmp_path / "m.safetensors", tensors)
    for size in range(80, 200, 20):
        found = schemes(tmp_path / "m.safetensors", "--to", "compressed-tensors", "--target-size", f"{size}kB")
        together: dict[str, set[str | None]] = {}
        for name, scheme in found.items():
            together.setdefault(name.rpartition(".")[0].rpartition(".")[0], set()).add(scheme)
        assert {len(own) for own in together.values()} == {1}
    line = one_line(run("plan", MODEL, "--target-size", "130kB", "--no-ties", "-o", tmp_path / "r.yaml"), 2)
    assert "leave it out, or plan --to native" in line


COMMANDS = [(name, runtime.command) for name in registry.names("layouts", "WRITES") for runtime in named(name).runtimes]


def test_every_target_has_a_runtime() -> None:
    assert {name for name, _ in COMMANDS} == set(registry.names("layouts", "WRITES"))


@pytest.mark.parametrize(("target", "command"), COMMANDS)
def test_commands_of_runtimes(target: str, command: str) -> None:
    """of README.md's table; pipelines and single files are tried elsewhere"""
    words = command.split()
    if words[1] == "MODEL":
        words[1] = str(MODEL)
        words += ["--group-size", "64"] if target in ("awq", "gptq") else []
        report = json.loads(run(*words, "--dry-run", "--json", "-q").out)
        assert report["summary"]["coverage"] > 0.2, command
    said = run("export", "--list").out
    assert f"quantcli {command}\n" in said


MEMBERS = ("q_proj", "k_proj", "v_proj", "o_proj")
OWN = [Scheme(bits=4, group_size=32), Scheme(bits=8, group_size=32), None]


@given(st.dictionaries(st.tuples(st.integers(0, 3), st.sampled_from(MEMBERS)), st.integers(0, 2), min_size=1))
def test_what_is_refused(drawn: dict[tuple[int, str], int]) -> None:
    """ "where vLLM and SGLang would join weights of several schemes, or one with a kept one": just then, whichever of
    the schemes most have."""
    tensors = list[Decided]()
    for (layer, word), own in drawn.items():
        info, scheme = TensorInfo(f"layers.{layer}.{word}.weight", "F32", (8, 64)), OWN[own]
        tensors.append(Kept(info=info, reason="") if scheme is None else quantized(info, scheme, "default"))
    joined = [{own for (at, word), own in drawn.items() if at == layer and word != "o_proj"} for layer in range(4)]
    if any(len(own) > 1 for own in joined):
        with pytest.raises(UsageError, match="join"):
            refuse_mixed(tensors)
    else:
        refuse_mixed(tensors)
