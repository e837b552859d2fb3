"""Statistics of layer inputs: what they change in a file, against sums of numpy; and files of them that are wrong."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import one_line, run, run_process, save
from safetensors.numpy import load_file, save_file
from strategies import gaussian

from quantcli.tensors import second_order

FORMAT = {"quantcli_statistics": "1"}
LAYERS = {
    "layers.0.attn.q_proj.weight": (48, 96),
    "layers.0.mlp.down_proj.weight": (64, 160),
    "conv.weight": (40, 16, 3, 3),
}


def inputs(cols: int, seed: int, samples: int = 600) -> np.ndarray:
    """Inputs that go together, and whose means are not 0."""
    chance = np.random.default_rng(seed)
    few = chance.standard_normal((samples, 12)) @ chance.standard_normal((12, cols))
    found: np.ndarray = few + 0.4 * chance.standard_normal((samples, cols)) + chance.standard_normal(cols)
    return found


def columns_of(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[1:]))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    weights = {name: gaussian(*shape, seed=i) for i, (name, shape) in enumerate(LAYERS.items())}
    weights["norm.weight"] = gaussian(96, seed=9)
    full: dict[str, np.ndarray] = {}
    for i, (name, shape) in enumerate(LAYERS.items()):
        x = inputs(columns_of(shape), i)
        key = name.removesuffix(".weight") if i == 1 else name
        full[f"{key}.second"] = (x.T @ x / len(x)).astype(np.float32)
        full[f"{key}.mean"] = x.mean(axis=0).astype(np.float32)
        full[f"{key}.count"] = np.array(len(x))
    write("full.safetensors", full)
    write("vectors.safetensors", {k: v.diagonal().copy() if v.ndim == 2 else v for k, v in full.items()})
    return save(tmp_path / "model.safetensors", weights)


def write(path: str, entries: dict[str, np.ndarray]) -> None:
    save_file(entries, path, metadata=FORMAT)


def costs(decoded: str, statistics: str = "full.safetensors") -> dict[str, tuple[float, float]]:
    """tr(E H E^T) and tr(W H W^T) of every layer, from the definition."""
    known, found = load_file(statistics), {}
    original, after = load_file("model.safetensors"), load_file(decoded)
    for name, shape in LAYERS.items():
        h = known.get(f"{name}.second", known.get(f"{name.removesuffix('.weight')}.second"))
        assert h is not None
        h = h.astype(np.float64)
        if h.ndim == 1:
            mean = known.get(f"{name}.mean", known.get(f"{name.removesuffix('.weight')}.mean"))
            assert mean is not None
            m = mean.astype(np.float64)
            spread = np.sqrt(np.maximum(h - m * m, 0))
            h = np.outer(m, m) + np.outer(spread, spread) * alike(shape[2:], len(m))
        w, q = (v[name].reshape(shape[0], -1).astype(np.float64) for v in (original, after))
        found[name] = tuple(float(np.einsum("ri,ij,rj->", e, h, e)) for e in (w - q, w))
    return found  # type: ignore[return-value]


def alike(kernel: tuple[int, ...], cols: int) -> np.ndarray:
    """How columns go together whose vectors are known: places of a kernel by half for each step between them."""
    places = list(itertools.product(*map(range, kernel)))
    taps = len(places)
    found = np.eye(cols)
    for i, j in itertools.product(range(cols), repeat=2):
        if i // taps == j // taps:
            a, b = places[i % taps], places[j % taps]
            found[i, j] = 0.5 ** sum(abs(x - y) for x, y in zip(a, b))
    return found


def quantized(*arguments: Any, name: str = "a") -> dict[str, Any]:
    """The report of quantize; the file is decoded to NAME.d."""
    out = f"{name}.safetensors"
    ran = run("quantize", "model.safetensors", *arguments, "-o", out, "--force", "--json")
    assert ran.code == 0, ran
    assert run("dequantize", out, "-o", f"{name}.d", "--force", "-q").code == 0
    found: dict[str, Any] = json.loads(ran.out)
    return found


SCHEMES = [
    ["--bits", 4], ["--bits", 3, "--group-size", 32], ["--bits", 2, "--asymmetric"],
    ["--bits", 4, "--zero-point", "float", "--asymmetric"], ["--bits", 3, "--group-size", -1],
    ["--bits", 4, "--group-size", 0], ["--type", "nf4"], ["--type", "fp4"],
    ["--type", "fp8-e4m3", "--group-size", -1], ["--type", "codebook", "--bits", 3], ["--scheme", "NVFP4A16"],
    ["--type", "codebook", "--bits", 3, "--group-size", -1], ["--bits", 4, "--group-size", 17], ["--bits", 1],
    ["--bits", 4, "--granularity", "block", "--group-size", 16], ["--bits", 4, "--granularity", "channel", "--axis", 1],
    ["--bits", 4, "--calibration", "minmax"], ["--bits", 12], ["--type", "midrise", "--bits", 3],
]  # fmt: skip


@pytest.mark.parametrize("kind", ["full", "vectors"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: " ".join(map(str, s)))
def test_no_layer_is_worse_and_what_is_reported_is_what_is_lost(model: Path, scheme: list[Any], kind: str) -> None:
    plain = quantized(*scheme, "--no-default-keep", "--exclude", "norm*", name="plain")
    assert plain["summary"]["weighted"] == 0 and plain["summary"]["output"] is None
    report = quantized(
        *scheme, "--no-default-keep", "--exclude", "norm*", "--statistics", f"{kind}.safetensors", name="better"
    )
    before, after = (costs(f"{name}.d", f"{kind}.safetensors") for name in ("plain", "better"))
    assert report["summary"]["weighted"] == 3
    assert report["summary"]["bytes_out"] <= plain["summary"]["bytes_out"] + 1500  # of the header
    for tensor in report["tensors"]:
        if tensor["name"] not in LAYERS:
            continue
        error, power = after[tensor["name"]]
        assert tensor["rounding"] == "second-order"
        assert tensor["output"]["error"] == pytest.approx(error, rel=2e-4, abs=1e-9 * power)
        assert tensor["output"]["power"] == pytest.approx(power, rel=1e-4)
        assert error <= tensor["output"]["plain_error"] * (1 + 1e-4)
        assert error <= before[tensor["name"]][0] * (1 + 1e-4)
    total = [sum(v[0] for v in found.values()) for found in (after, before)]
    assert total[0] < (0.75 if kind == "full" else 0.98) * total[1]


def test_the_same_bytes_on_any_threads_and_kernels_and_again_from_the_recipe(model: Path) -> None:
    arguments = ["--bits", "3", "--group-size", "32", "--statistics", "full.safetensors", "-q"]
    os.mkdir("sub")
    ran = run("quantize", model, *arguments, "--save-recipe", "sub/r.yaml", "-o", "a", "--threads", 1)
    assert ran.code == 0 and ran.err == "", ran
    assert "statistics:" in Path("sub/r.yaml").read_text()
    ran = run_process("quantize", model, *arguments, "-o", "b", "--threads", 7, QUANTCLI_KERNELS="numpy")
    assert ran.code == 0, ran
    ran = run("quantize", model, "--recipe", "sub/r.yaml", "-o", "c", "-q")
    assert ran.code == 0, ran
    assert Path("a").read_bytes() == Path("b").read_bytes() == Path("c").read_bytes()


def test_layers_with_the_same_inputs_have_the_codes_they_have_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """q, k and v follow each other and are factored once, though o lies between them in the file"""
    monkeypatch.chdir(tmp_path)
    names = [f"layers.{i}.attn.{kind}_proj.weight" for i in range(2) for kind in "koqv"]
    weights = {name: gaussian(40, 96, seed=i) for i, name in enumerate(names)}
    save(tmp_path / "model.safetensors", weights)
    moments: dict[str, np.ndarray] = {}
    for name in names:
        x = inputs(96, int(name[7]) + 2 * ("o_proj" in name))
        moments |= {f"{name}.second": (x.T @ x / len(x)).astype(np.float32), f"{name}.count": np.array(len(x))}
    write("all.safetensors", moments)
    counts = list[int]()
    monkeypatch.setattr(second_order, "_factored", _counted(second_order._factored, counts))
    assert run("quantize", "model.safetensors", "--statistics", "all.safetensors", "-o", "a", "--threads", 1).code == 0
    assert len(counts) == 4
    assert run("dequantize", "a", "-o", "a.d", "-q").code == 0
    together = load_file("a.d")
    for name in names:
        save(tmp_path / "one.safetensors", {name: weights[name]})
        write("one.stats.safetensors", {k: v for k, v in moments.items() if k.startswith(name)})
        ran = run("quantize", "one.safetensors", "--statistics", "one.stats.safetensors", "-o", "b", "--force")
        assert ran.code == 0, ran
        assert run("dequantize", "b", "-o", "b.d", "-q", "--force").code == 0
        assert np.array_equal(load_file("b.d")[name], together[name])


def _counted(function: Any, counts: list[int]) -> Any:
    def counting(*arguments: Any) -> Any:
        counts.append(1)
        return function(*arguments)

    return counting


def test_verify_finds_the_codes_again(model: Path) -> None:
    assert run("quantize", model, "--bits", 4, "--statistics", "full.safetensors", "-o", "a", "-q").code == 0
    ran = run("verify", "a", "--source", model, "--statistics", "full.safetensors")
    assert ran.code == 0 and "not recomputed" not in ran.out, ran
    ran = run("verify", "a", "--source", model)
    assert ran.code == 0 and "not recomputed without --statistics" in ran.out + ran.err, ran
    ran = run("verify", "a", "--source", model, "--statistics", "vectors.safetensors")
    assert ran.code == 1 and "other statistics" in ran.out, ran
    assert run("report", "a").code == 0
    ran = run("report", "a", "--min-output-sqnr", 60)
    assert ran.code == 1 and "min-output-sqnr" in ran.out


def test_other_layouts_hold_the_same_codes(model: Path) -> None:
    for to, scheme in (("gptq", ["--bits", 4, "--group-size", 32]), ("gguf", ["--bits", 4, "--group-size", 32])):
        arguments = (
            [*scheme, "--to", to, "--container", "--exclude", "conv*"]
            if to == "gguf"
            else [*scheme, "--exclude", "conv*"]
        )
        lost = []
        for extra in ([], ["--statistics", "full.safetensors"]):
            ran = run("quantize", model, *arguments, *extra, "-o", "x", "--force", "-q")
            assert ran.code == 0, ran
            assert run("dequantize", "x", "-o", "x.d", "--force", "-q").code == 0
            lost.append(sum(e for e, _ in costs("x.d").values()))
        assert lost[1] < 0.6 * lost[0], (to, lost)


def test_sweep_shows_what_quantize_reports_of_outputs(model: Path) -> None:
    arguments = ["--group-size", "32,160", "--statistics", "full.safetensors"]
    ran = run("sweep", model, "--bits", "2,4", *arguments, "--plot", "-o", "page.html")
    assert ran.code == 0 and "output dB" in ran.out and "dB of outputs" in ran.out, ran
    assert "output dB" in Path("page.html").read_text()
    points = json.loads(run("sweep", model, "--bits", "2,4", *arguments, "--json").out)["points"]
    for point in points:
        own = quantized("--bits", point["bits"], "--group-size", point["group_size"], *arguments[2:])
        assert point["output_sqnr_db"] == own["summary"]["output"]["sqnr_db"]
        assert point["sqnr_db"] == own["summary"]["sqnr_db"]
    plain = json.loads(run("sweep", model, "--bits", "4", "--json").out)["points"]
    assert plain[0]["output_sqnr_db"] is None and "output dB" not in run("sweep", model, "--bits", "4").out


def test_plan_loses_least_of_outputs_of_all_choices(model: Path) -> None:
    """All 27 choices of three layers, by what quantize reports of each."""
    known = ["--statistics", "full.safetensors"]
    own: dict[tuple[str, int], tuple[int, float, float]] = {}
    for bits in (2, 3, 4):
        for tensor in quantized("--bits", bits, "--group-size", 32, *known)["tensors"]:
            if tensor["name"] in LAYERS:
                own[tensor["name"], bits] = tensor["bytes_out"], tensor["output"]["error"], tensor["output"]["sqnr_db"]
    choices = list(itertools.product((2, 3, 4), repeat=len(LAYERS)))

    def sums(chosen: tuple[int, ...]) -> tuple[float, float]:
        parts = [own[name, bits] for name, bits in zip(LAYERS, chosen)]
        return sum(p[0] for p in parts), sum(p[1] for p in parts)

    options = [model, "--bits", "2,3,4", "--group-size", "32", *known, "--no-ties"]
    for size in (11000, 12000):
        ran = run("plan", *options, "--target-size", size, "--weighting", "absolute", "--json")
        assert ran.code == 0, ran
        found = json.loads(ran.out)
        widths = {t["name"]: t["bits"] for t in found["tensors"]}
        nbytes, cost = sums(tuple(widths[name] for name in LAYERS))
        assert found["cost"] == pytest.approx(cost, rel=1e-9)
        assert cost == min(sums(c)[1] for c in choices if sums(c)[0] <= nbytes)
        assert len(set(widths.values())) > 1
    for least in (12, 16):
        ran = run("plan", *options, "--min-output-sqnr", least, "-o", "least.yaml", "--json")
        assert ran.code == 0, ran
        for tensor in json.loads(ran.out)["tensors"]:
            enough = [bits for bits in (2, 3, 4) if own[tensor["name"], bits][2] >= least]
            assert tensor["bits"] == enough[0]
            assert tensor["output_sqnr_db"] == own[tensor["name"], enough[0]][2]
        assert run("quantize", model, "--recipe", "least.yaml", "-o", "l", "--force", "-q").code == 0
        assert run("report", "l", "--min-output-sqnr", least).code == 0
    line = one_line(run("plan", *options, "--min-output-sqnr", 90), 2)
    assert "cannot reach the target" in line and "dB" in line
    line = one_line(run("plan", model, "--min-output-sqnr", 10), 2)
    assert "give --statistics FILE" in line


def test_plan_counts_what_outputs_lose(model: Path) -> None:
    ran = run("plan", model, "--target-bpw", 4, "--statistics", "full.safetensors", "-o", "r.yaml")
    assert ran.code == 0, ran
    assert "second-order" in Path("r.yaml").read_text()
    assert run("quantize", model, "--recipe", "r.yaml", "-o", "b", "-q").code == 0


def test_importances_are_mean_squares_alone(model: Path) -> None:
    report = quantized("--bits", 4, "--importance", "full.safetensors")
    assert report["summary"]["weighted"] == 3 and report["summary"]["output"] is None
    assert {t["rounding"] for t in report["tensors"] if t["name"] in LAYERS} == {"sum-preserving"}
    ran = run("quantize", model, "--importance", "full.safetensors", "--statistics", "full.safetensors", "-o", "x")
    assert "leave out one" in one_line(ran, 2)


def test_layers_without_statistics(model: Path) -> None:
    known = {k: v for k, v in load_file("full.safetensors").items() if not k.startswith("conv")}
    write("some.safetensors", known)
    ran = run("quantize", model, "--statistics", "some.safetensors", "-o", "x")
    assert "conv.weight: the file has no statistics of this layer" in one_line(ran, 2) and not os.path.exists("x")
    report = quantized("--statistics", "some.safetensors", "--allow-unweighted")
    assert report["summary"]["weighted"] == 2
    assert any("conv.weight" in line for line in report["warnings"])


def test_inputs_that_are_all_0(model: Path) -> None:
    known = load_file("full.safetensors")
    write(
        "dead.safetensors",
        {k: v if not k.startswith("conv") or k.endswith("count") else v * 0 for k, v in known.items()},
    )
    report = quantized("--statistics", "dead.safetensors")
    conv = next(t for t in report["tensors"] if t["name"] == "conv.weight")
    assert conv["rounding"] == "sum-preserving" and "all 0" in conv["note"] and not conv["weighted"]


def test_channels_of_a_convolution(model: Path) -> None:
    known = load_file("full.safetensors")
    x = inputs(16, 5)
    known |= {
        "conv.weight.second": (x.T @ x / len(x)).astype(np.float32),
        "conv.weight.mean": x.mean(0).astype(np.float32),
    }
    write("channels.safetensors", known)
    report = quantized("--bits", 3, "--statistics", "channels.safetensors")
    m = np.repeat(known["conv.weight.mean"].astype(np.float64), 9)
    h = np.outer(m, m)
    for tap in range(9):
        h[tap::9, tap::9] = known["conv.weight.second"]
    error = (
        (load_file("model.safetensors")["conv.weight"] - load_file("a.d")["conv.weight"]).reshape(40, -1).astype(float)
    )
    conv = next(t for t in report["tensors"] if t["name"] == "conv.weight")
    assert conv["output"]["error"] == pytest.approx(float(np.einsum("ri,ij,rj->", error, h, error)), rel=1e-4)
    assert conv["output"]["error"] < 0.9 * conv["output"]["plain_error"]


def test_a_folder_of_files(model: Path) -> None:
    known = load_file("full.safetensors")
    os.mkdir("many")
    for name in ("conv", "layers"):
        write(f"many/{name}.safetensors", {k: v for k, v in known.items() if k.startswith(name)})
    quantized("--statistics", "many", name="a")
    quantized("--statistics", "full.safetensors", name="b")
    assert load_file("a.d")["conv.weight"].tobytes() == load_file("b.d")["conv.weight"].tobytes()


def changed(key: str, change: Any) -> dict[str, np.ndarray]:
    found = dict(load_file("full.safetensors"))
    name = next(k for k in found if k.startswith("conv") and k.endswith(key))
    found[name] = change(found[name].copy())
    return found


def _set(at: Any, value: float) -> Any:
    def change(v: np.ndarray) -> np.ndarray:
        v[at] = value
        return v

    return change


@pytest.mark.parametrize(("key", "change", "says"), [
    ("second", lambda v: v[:-1, :-1].copy(), "means of shape"),
    ("second", lambda v: v[:-1].copy(), "(C,) or (C, C)"),
    ("second", lambda v: v.astype(np.int32), "I32 is not a float type"),
    ("second", _set((3, 3), np.nan), "input 3 is nan"),
    ("second", _set((3, 5), np.nan), "is not finite"),
    ("second", _set((3, 5), 1e9), "beyond their mean squares"),
    ("second", lambda v: np.triu(v), "not symmetric"),
    ("second", lambda v: 2 * np.diag(v.diagonal()) - v, "not positive semi-definite"),
    ("second", _set((3, 3), -1.0), "not a number of 0 or more"),
    ("second", lambda v: v - v.diagonal().max() * np.eye(len(v), dtype=v.dtype), "not a number of 0 or more"),
    ("mean", lambda v: v * 100, "below the square of its mean"),
    ("mean", _set(2, np.inf), "not finite"),
    ("count", lambda v: np.array(0), "a count of 0"),
    ("count", lambda v: np.array(-3.0), "a count of -3"),
    ("count", lambda v: np.ones(5), "a count is one number"),
])  # fmt: skip
def test_wrong_statistics_are_refused_in_one_line(model: Path, key: str, change: Any, says: str) -> None:
    write("wrong.safetensors", changed(key, change))
    ran = run("quantize", model, "--statistics", "wrong.safetensors", "-o", "x")
    assert says in one_line(ran, ran.code) and ran.code in (1, 2) and not os.path.exists("x")
    assert sorted(os.listdir()) == ["full.safetensors", "model.safetensors", "vectors.safetensors", "wrong.safetensors"]


COMMANDS = [["quantize", "-o", "x"], ["quantize", "--dry-run"], ["plan", "--target-bpw", 4, "-o", "x"], ["sweep"]]


@pytest.mark.parametrize("source", ["model.safetensors", "folder"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(map(str, c)))
def test_wrong_statistics_are_found_before_a_weight_is_read(
    model: Path, command: list[Any], source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command, one file and a folder, of the model and of the statistics."""
    for name in ("folder", "many"):
        os.mkdir(name)
    shutil.copy(model, "folder/model.safetensors")
    before = sorted(os.listdir())
    known = load_file("full.safetensors")
    without = {k: v for k, v in known.items() if not k.startswith("conv")}
    wrong: list[tuple[dict[str, np.ndarray], list[Any], str]] = [
        (changed("second", np.triu), [], "not symmetric"),
        (changed("second", _set((0, 5), np.nan)), [], "is not finite"),
        (changed("second", _set((5, 143), np.nan)), [], "not symmetric"),
        (changed("second", _set((143, 7), 1e9)), [], "beyond their mean squares"),
        (changed("count", lambda v: np.array(0)), [], "a count of 0"),
        (without, [], "conv.weight: the file has no statistics of this layer"),
        ({**known, "no.second": np.ones(4), "no.count": np.ones(1)}, [], "'no' names no tensor of the model"),
        ({f"other.{k}": v for k, v in known.items()}, [], "names no tensor of the model"),
        (known, ["--memory", "100kB"], "need 393216 bytes, more than --memory 100000"),
    ]
    for entries, options, says in wrong:
        for place, path in (("wrong.safetensors", "wrong.safetensors"), ("many", "many/part.safetensors")):
            write(path, entries)
            with monkeypatch.context() as patched:
                patched.setattr("quantcli.passes.write.walk", None)  # a pass over weights would fail
                patched.setattr("quantcli.passes.sweep.run", None)
                ran = run(command[0], source, *command[1:], "--statistics", place, *options)
            assert says in one_line(ran, ran.code) and ran.code in (1, 2), (says, ran)
            os.remove(path)
    assert sorted(os.listdir()) == before
    write("many/part.safetensors", known)
    ran = run(command[0], source, *command[1:], "--statistics", "many", "--memory", "1MiB", "-q")
    assert ran.code == 0, ran


def test_statistics_of_a_head_that_is_the_embedding_are_left_out_and_said(model: Path) -> None:
    """transformers has a module lm_head for it, whose inputs are observed, and the file no tensor"""
    write(
        "head.safetensors",
        {**load_file("full.safetensors"), "lm_head.second": np.ones(96), "lm_head.count": np.ones(1)},
    )
    ran = run("quantize", "model.safetensors", "--statistics", "head.safetensors", "-o", "a", "--json")
    assert ran.code == 0 and ran.json["summary"]["weighted"] == 3, ran
    assert "lm_head belongs to no tensor of model.safetensors" in ran.err


def test_other_files_are_refused_in_one_line(model: Path) -> None:
    known = load_file("full.safetensors")

    def refused(entries: dict[str, np.ndarray], metadata: dict[str, str] = FORMAT) -> str:
        save_file(entries, "wrong.safetensors", metadata=metadata)
        ran = run("quantize", model, "--statistics", "wrong.safetensors", "-o", "x")
        assert ran.code in (1, 2) and not os.path.exists("x")
        return one_line(ran, ran.code)

    assert "names no tensor of the model" in refused({f"other.{k}": v for k, v in known.items()})
    assert "names no tensor of the model" in refused({**known, "no.second": np.ones(4), "no.count": np.ones(1)})
    assert "neither NAME.mean" in refused({**known, "conv.weight.variance": np.ones(4)})
    assert "conv.weight.count is missing" in refused({k: v for k, v in known.items() if k != "conv.weight.count"})
    assert "does not say that it holds statistics" in refused(known, {"of": "another tool"})
    assert "has format 7" in refused(known, {"quantcli_statistics": "7"})
    outputs = np.eye(48, dtype=np.float32)
    turned = {**known, "layers.0.attn.q_proj.weight.second": outputs, "layers.0.attn.q_proj.weight.mean": outputs[0]}
    assert "they are of the layer's outputs" in refused(turned)
    ran = run("quantize", model, "--rounding", "second-order", "-o", "x")
    assert "give --statistics FILE" in one_line(ran, 2)
