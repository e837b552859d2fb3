"""Importances of columns: what they change, against brute force and an independent sum; files that do not fit."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import one_line, run, run_process, save
from safetensors.numpy import load_file
from strategies import gaussian

from quantcli import Scheme, kernels
from quantcli.calibrators import mse
from quantcli.calibrators.searches import breakpoints
from quantcli.calibrators.searches import importance as whole
from quantcli.kernels import F32, Tile


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    chance = np.random.default_rng(5)
    weights = {
        "model.layers.0.self_attn.q_proj.weight": gaussian(64, 96, seed=1),
        "model.layers.0.mlp.down_proj.weight": gaussian(96, 160, seed=2),
        "conv.weight": gaussian(24, 16, 3, 3, seed=3),
        "other.weight": gaussian(48, 64, seed=4),
        "model.norm.weight": gaussian(96, seed=5),
    }
    save(tmp_path / "imp.safetensors", {
        "model.layers.0.self_attn.q_proj.weight": (chance.standard_normal(96) ** 8).astype(np.float32),
        "model.layers.0.mlp.down_proj": (chance.standard_normal(160) ** 8).astype(np.float32),
        "conv.weight": (chance.standard_normal(16) ** 4).astype(np.float32),
    })  # fmt: skip
    return save(tmp_path / "model.safetensors", weights)


def columns(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The importance of every weight of a tensor of the model."""
    entries = load_file("imp.safetensors")
    found = entries.get(name, entries.get(name.removesuffix(".weight"), np.ones(shape[-1], np.float32)))
    if len(shape) == 4:
        return np.broadcast_to(found[None, :, None, None], shape).astype(np.float64)
    return np.broadcast_to(found, shape).astype(np.float64)


def weighted(name: str, original: np.ndarray, decoded: np.ndarray) -> float:
    return float((columns(name, original.shape) * (original.astype(np.float64) - decoded) ** 2).sum())


# ---- the search ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_search_stays_near_the_best_weighted_error(bits: int, symmetric: bool) -> None:
    """the search stays near the least error there is, also where columns count differently"""
    weights = gaussian(200, 64, seed=bits)
    importance = np.random.default_rng(bits).standard_normal(64) ** 2
    tile = Tile(weights.ravel(), F32, 200, 64, 64, importance)
    counts = whole.counts(tile)
    assert counts is not None
    times = np.broadcast_to(counts.astype(float), weights.shape)

    def lost(effort: str) -> float:
        scheme = Scheme(
            bits=bits, symmetric=symmetric, granularity="channel", calibration="mse", options={"effort": effort}
        )
        ideal = mse.local(kernels.load(), tile, scheme)
        assert ideal is not None
        top = (1 << bits) - 1
        if ideal.zero is not None:
            zero = np.rint(np.clip(ideal.zero, 0, top))
            codes = np.clip(np.rint(weights / ideal.scale) + zero, 0, top) - zero
        else:
            codes = np.clip(np.rint(weights / ideal.scale), -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        return float((times * (weights - codes * ideal.scale) ** 2).sum())

    best, found = lost("exact"), lost("default")
    plain = Tile(weights.ravel(), F32, 200, 64, 64)
    assert best <= found * (1 + 1e-9) and 10 * np.log10(found / best) < 0.2
    unweighted = mse.local(kernels.load(), plain, Scheme(bits=bits, granularity="channel", calibration="mse"))
    if symmetric and bits < 8 and unweighted is not None:
        codes = np.clip(np.rint(weights / unweighted.scale), -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        assert found < 0.97 * (times * (weights - codes * unweighted.scale) ** 2).sum()


@settings(max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=3, max_size=12), st.integers(2, 4), st.integers(0, 999))
def test_counting_twice_is_being_there_twice(times: list[int], bits: int, seed: int) -> None:
    """an importance of k is k columns of the same weights"""
    weights = gaussian(4, len(times), seed=seed).astype(np.float64)
    top = float((1 << (bits - 1)) - 1)
    low, high = np.full(4, -top), np.full(4, top)
    ours = breakpoints.exact(weights, low, high, np.broadcast_to(np.array(times, float), weights.shape))
    theirs = breakpoints.exact(np.repeat(weights, times, axis=1), low, high)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-9)


# ---- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [[], ["--asymmetric"], ["--type", "nf4", "--calibration", "mse"],
                                   ["--group-size", "-1"], ["--effort", "best"]])  # fmt: skip
def test_the_weighted_error_falls(extra: list[str], model: Path) -> None:
    for name, importance in (("a", []), ("b", ["--importance", "imp.safetensors"])):
        arguments = ["--calibration", "mse"] if "nf4" not in extra else []
        assert run("quantize", model, "--bits", 4, *extra, *arguments, *importance, "-o", name, "-q").code == 0
        assert run("dequantize", name, "-o", f"{name}.d", "-q").code == 0
    original, plain, better = (load_file(p) for p in ("model.safetensors", "a.d", "b.d"))
    gained = []
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        gained.append(weighted(name, original[name], better[name]) / weighted(name, original[name], plain[name]))
    assert max(gained) < 1 and np.mean(gained) < 0.95
    np.testing.assert_array_equal(plain["other.weight"], better["other.weight"])


def test_the_same_bytes_on_any_threads_and_kernels_and_again_from_the_recipe(model: Path) -> None:
    arguments = ["--bits", "3", "--group-size", "32", "--importance", "imp.safetensors", "-q"]
    os.mkdir("sub")
    ran = run("quantize", model, *arguments, "--save-recipe", "sub/r.yaml", "-o", "a", "--threads", 1)
    assert ran.code == 0 and ran.err == "", ran
    ran = run_process("quantize", model, *arguments, "-o", "b", "--threads", 7, QUANTCLI_KERNELS="numpy")
    assert ran.code == 0, ran
    assert run("quantize", model, "--recipe", "sub/r.yaml", "-o", "c", "-q").code == 0
    first = Path("a").read_bytes()
    assert first == Path("b").read_bytes() == Path("c").read_bytes()
    header = json.loads(json.loads(first[8 : 8 + struct.unpack("<Q", first[:8])[0]])["__metadata__"]["quantcli"])
    tensors = header["tensors"]
    assert {n for n, t in tensors.items() if "importance" in t} == {
        "conv.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"}  # fmt: skip
    entries = load_file("imp.safetensors")
    save(Path("imp.safetensors"), {name: values * 2 for name, values in entries.items()})
    ran = run("quantize", model, "--recipe", "sub/r.yaml", "-o", "d", "-q")
    assert "not the importances the recipe was made with" in one_line(ran, 2) and not os.path.exists("d")


def test_tensors_without_an_entry_are_told(model: Path) -> None:
    ran = run("quantize", model, "--importance", "imp.safetensors", "-o", "a")
    assert ran.code == 0 and "no importance given, all columns count the same: other.weight" in ran.err
    save(Path("more.safetensors"), {**load_file("imp.safetensors"), "nobody": np.ones(4, np.float32)})
    assert "nobody belongs to no tensor" in run("quantize", model, "--importance", "more.safetensors", "-o", "b").err


@pytest.mark.parametrize(("entries", "arguments", "words"), [
    ({"other.weight": np.ones(63)}, [], "63 importances for 64 columns"),
    ({"conv.weight": np.ones(15)}, [], "15 importances for 144 columns or 16 input channels"),
    ({"other.weight": np.full(64, np.nan)}, [], "importance nan at 0"),
    ({"other.weight": np.full(64, -1.0)}, [], "importance -1 at 0"),
    ({"other.weight": np.full(64, np.inf)}, [], "importance inf at 0"),
    ({"somebody": np.ones(64)}, [], "names no tensor of the model"),
    ({"other.weight": np.ones(64, np.int32)}, [], "not a float type"),
    ({"other.weight": np.ones(64)}, ["--calibration", "minmax"], "minmax does not weigh errors"),
    ({"other.weight": np.ones(64)}, ["--calibration", "auto"], "auto does not weigh errors"),
    ({"other.weight": np.ones(64)}, ["--group-size", "0"], "importance needs scales per row or group"),
])  # fmt: skip
def test_importances_that_cannot_be(entries: dict[str, Any], arguments: list[str], words: str, model: Path) -> None:
    """importance of the wrong shape: one line, exit 2, nothing written"""
    save(Path("wrong.safetensors"), entries)
    before = sorted(os.listdir())
    for command in (["quantize", model, "-o", "out", *arguments], ["plan", model, "--target-bpw", "8"]):
        if command[0] == "plan" and arguments:
            continue
        assert words in one_line(run(*command, "--importance", "wrong.safetensors"), 2)
    assert sorted(os.listdir()) == before


def gguf(path: str, tensors: dict[str, np.ndarray], kind: str = "imatrix") -> None:
    """A GGUF of float32 tensors, written by its specification."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1)
    head += text("general.type") + struct.pack("<I", 8) + text(kind)
    at, body = 0, b""
    for name, values in tensors.items():
        raw = values.astype("<f4").tobytes()
        dims = struct.pack(f"<{values.ndim}Q", *values.shape[::-1])
        head += text(name) + struct.pack("<I", values.ndim) + dims + struct.pack("<IQ", 0, at)
        body += raw + b"\0" * (-len(raw) % 32)
        at = len(body)
    Path(path).write_bytes(head + b"\0" * (-len(head) % 32) + body)


def test_an_importance_matrix_of_llama_cpp(model: Path) -> None:
    entries = load_file("imp.safetensors")
    sums = {"blk.0.attn_q.weight": entries["model.layers.0.self_attn.q_proj.weight"],
            "blk.0.ffn_down.weight": entries["model.layers.0.mlp.down_proj"]}  # fmt: skip
    tensors = {}
    for name, values in sums.items():
        tensors[f"{name}.in_sum2"], tensors[f"{name}.counts"] = values[None] * 512, np.full((1, 1), 512.0)
    gguf("imatrix.gguf", tensors)
    del entries["conv.weight"]
    save(Path("same.safetensors"), entries)
    for name, importance in (("a", "imatrix.gguf"), ("b", "same.safetensors")):
        assert run("quantize", model, "--bits", 3, "--importance", importance, "-o", name, "-q").code == 0
    ours, theirs = load_file("a"), load_file("b")
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    gguf("model.gguf", tensors, "model")
    assert "not an importance matrix" in one_line(run("quantize", model, "--importance", "model.gguf", "-o", "c"), 1)


# ---- the format before GGUF: every byte by its description -------------------------------------------------------


def legacy(entries: dict[str, tuple[int, list[float]]], tail: bytes = b"") -> bytes:
    """An importance matrix as llama-imatrix wrote it until 2025: sums and the number of calls by name."""
    raw = struct.pack("<i", len(entries))
    for name, (calls, sums) in entries.items():
        raw += struct.pack("<i", len(name.encode())) + name.encode()
        raw += struct.pack(f"<ii{len(sums)}f", calls, len(sums), *sums)
    return raw + tail


TAIL = struct.pack("<ii", 512, 4) + b"text"


@pytest.mark.parametrize("tail", [b"", TAIL[:4], TAIL])
@pytest.mark.parametrize("name", ["old.dat", "OLD.IMATRIX"])
def test_an_importance_matrix_of_the_time_before_gguf(name: str, tail: bytes, model: Path) -> None:
    entries = load_file("imp.safetensors")
    q = entries["model.layers.0.self_attn.q_proj.weight"]
    down = entries["model.layers.0.mlp.down_proj"]
    sums = {"blk.0.attn_q.weight": (4, (q * 4).tolist()), "blk.0.ffn_down.weight": (0, down.tolist())}
    Path(name).write_bytes(legacy(sums, tail))
    del entries["conv.weight"]
    save(Path("same.safetensors"), entries)
    for path, importance in (("a", name), ("b", "same.safetensors")):
        assert run("quantize", model, "--bits", 3, "--importance", importance, "-o", path, "-q").code == 0
    ours, theirs = load_file("a"), load_file("b")
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)


def test_experts_follow_each_other_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    experts = [f"model.layers.0.mlp.experts.{i}.down_proj.weight" for i in range(3)]
    save(tmp_path / "model.safetensors", {name: gaussian(32, 64, seed=i) for i, name in enumerate(experts)})
    counts = np.random.default_rng(3).standard_normal((3, 64)).astype(np.float32) ** 4
    Path("old.dat").write_bytes(legacy({"blk.0.ffn_down_exps.weight": (1, counts.ravel().tolist())}))
    save(tmp_path / "same.safetensors", dict(zip(experts, counts, strict=True)))
    for path, importance in (("a", "old.dat"), ("b", "same.safetensors")):
        ran = run("quantize", "model.safetensors", "--bits", 3, "--importance", importance, "-o", path, "-q")
        assert ran.code == 0, ran
    ours, theirs = load_file("a"), load_file("b")
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)


GOOD = legacy({"other.weight": (1, [1.0] * 64)}, TAIL)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "4 bytes are to be at byte 0, of 0"),
        (struct.pack("<i", 0), "the number of entries at byte 0 is 0"),
        (struct.pack("<i", 2**31 - 1) + GOOD[4:-12], "bytes are to be at byte"),
        (GOOD[:4] + struct.pack("<i", 2**31 - 1) + GOOD[8:], "2147483647 bytes are to be at byte 8"),
        (GOOD[:4] + struct.pack("<i", -1) + GOOD[8:], "the number of bytes of a name at byte 4 is -1"),
        (GOOD[:20] + struct.pack("<ii", -1, 64) + GOOD[28:], "the number of calls at byte 20 is -1"),
        (GOOD[:24] + struct.pack("<i", 2**31 - 1) + GOOD[28:], "8589934588 bytes are to be at byte 28"),
        (GOOD[:24] + struct.pack("<i", 0) + GOOD[28:], "the number of numbers at byte 24 is 0"),
        (GOOD[:8] + b"\xff" + GOOD[9:], "the name at byte 4 is not UTF-8"),
        (GOOD + b"\0", "1 bytes follow the last entry"),
        (GOOD[:-1], "4 bytes are to be at byte"),
        (struct.pack("<i", 2) + GOOD[4:-12] + GOOD[4:], "'other.weight' is the name of two entries"),
        (legacy({"": (1, [1.0])}), "'' is the name of an entry"),
        (legacy({"other.weight": (1, [float("nan")] * 64)}), "importance nan at 0 is not a number of 0 or more"),
        (legacy({"other.weight": (1, [-1.0] * 64)}), "importance -1 at 0 is not a number of 0 or more"),
    ],
)
def test_damaged_ones_are_refused_in_one_line(raw: bytes, says: str, model: Path) -> None:
    Path("old.dat").write_bytes(raw)
    ran = run("quantize", model, "--importance", "old.dat", "-o", "a")
    assert says in one_line(ran, ran.code) and ran.code in (1, 2) and not os.path.exists("a")


# ---- damping ------------------------------------------------------------------------------------------------------


def test_weights_on_inputs_that_were_always_0_stay_what_they_are(model: Path) -> None:
    """statistics are of samples: another may use those inputs"""
    name = "model.layers.0.self_attn.q_proj.weight"
    importance = np.where(np.arange(96) % 3 == 0, 1.0, 0.0).astype(np.float32)
    save(Path("dead.safetensors"), {name: importance})
    for path, more in (("a", []), ("b", ["--importance", "dead.safetensors"])):
        assert run("quantize", model, "--bits", 3, "--group-size", 32, *more, "-o", path, "-q").code == 0
        assert run("dequantize", path, "-o", f"{path}.d", "-q").code == 0
    original, plain, weighed = (load_file(p)[name] for p in ("model.safetensors", "a.d", "b.d"))
    lost = [((v - original)[:, importance == 0] ** 2).sum() for v in (plain, weighed)]
    assert lost[1] < 1.4 * lost[0]
    used = [((v - original)[:, importance > 0] ** 2).sum() for v in (plain, weighed)]
    assert used[1] < used[0]


# ---- allocation ---------------------------------------------------------------------------------------------------


def test_a_plan_counts_columns_by_their_importance(model: Path) -> None:
    arguments = ["--target-size", "30kB", "--importance", "imp.safetensors", "--weighting", "relative"]
    ran = run("plan", model, *arguments, "--json", "-o", "r.yaml")
    assert ran.code == 0, ran
    assert run("quantize", model, "--recipe", "r.yaml", "-o", "a", "-q").code == 0
    assert os.path.getsize("a") == json.loads(ran.out)["bytes_out"] <= 30_000
    assert run("dequantize", "a", "-o", "d", "-q").code == 0
    original, decoded = load_file("model.safetensors"), load_file("d")
    cost = 0.0
    for name, weights in original.items():
        if weights.ndim > 1:
            typical = float(np.median(columns(name, weights.shape)))
            power = (weights.astype(np.float64) ** 2).sum() * typical
            cost += weighted(name, weights, decoded[name]) / power
    assert json.loads(ran.out)["cost"] == pytest.approx(cost, rel=1e-6)


def test_the_smallest_file_by_weighted_error(model: Path) -> None:
    ran = run("plan", model, "--max-nmse", "0.001", "--importance", "imp.safetensors", "-o", "r.yaml", "--json")
    assert ran.code == 0, ran
    assert run("quantize", model, "--recipe", "r.yaml", "-o", "a", "-q").code == 0
    assert run("dequantize", "a", "-o", "d", "-q").code == 0
    original, decoded = load_file("model.safetensors"), load_file("d")
    names = [n for n in original if original[n].ndim > 1]
    lost = sum(weighted(n, original[n], decoded[n]) for n in names)
    assert lost <= 0.001 * sum(weighted(n, original[n], 0 * original[n]) for n in names) * (1 + 1e-6)
