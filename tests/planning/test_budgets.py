"""plan and --target-size: exact bytes, the optimum by enumeration, recipes that say it all, requests that cannot be."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from making import ROOT, one_line, run, save
from safetensors.numpy import load_file
from strategies import gaussian

from quantcli import Scheme
from quantcli.passes import menus
from quantcli.patterns import compiled, patterns_of
from quantcli.planning import recipe, recipe_writing
from quantcli.planning.plan import make
from quantcli.planning.request import Request
from quantcli.stores import open_source
from quantcli.tensors.info import TensorInfo


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    weights: dict[str, np.ndarray] = {}
    for i in range(3):
        for name, shape in (("q_proj", (64, 96)), ("k_proj", (32, 96)), ("v_proj", (32, 96)), ("down_proj", (96, 160))):
            weights[f"layers.{i}.{name}.weight"] = gaussian(*shape, seed=len(weights)) ** (1 + 2 * (i == 1))
        weights[f"layers.{i}.norm.weight"] = gaussian(96, seed=i)
    wide = gaussian(64, 96, seed=77)
    wide[5] *= 1e7  # float16 does not hold its scales
    weights["wide.weight"] = wide
    return save(tmp_path / "model.safetensors", weights)


def planned(*arguments: Any) -> dict[str, Any]:
    ran = run("plan", *arguments, "--json")
    assert ran.code == 0, ran
    found: dict[str, Any] = json.loads(ran.out)
    return found


@pytest.mark.parametrize("target", [34_672, 36_001, 40_000, 44_444, 60_000, 90_000, 150_000])
def test_the_file_is_never_a_byte_over_the_target(target: int, model: Path) -> None:
    """the finished file is never a byte over the target, and the recipe gives the same bytes"""
    found = planned(model, "--target-size", target, "-o", "r.yaml")
    assert found["bytes_out"] <= target and found["cost"] >= found["bound"] and found["gap"] <= 0.005
    assert run("quantize", model, "--recipe", "r.yaml", "-o", "a.safetensors", "-q").code == 0
    assert os.path.getsize("a.safetensors") == found["bytes_out"]
    ran = run("quantize", model, "--target-size", target, "-o", "b.safetensors", "--save-recipe", "s.yaml", "-q")
    assert ran.code == 0 and Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    assert Path("r.yaml").read_text() == Path("s.yaml").read_text()
    report = json.loads(run("report", "a.safetensors", "--json").out)
    schemes = {t["name"]: t["scheme"] for t in report["tensors"]}
    assert all(schemes[t["name"]] == t["scheme"] for t in found["tensors"])
    sqnr = {t["name"]: t["sqnr_db"] for t in report["tensors"]}
    assert all(sqnr[t["name"]] == t["sqnr_db"] for t in found["tensors"] if t["scheme"])


def test_the_rest_is_small(model: Path) -> None:
    """file size within 0.1 % below the target, where there are options enough"""
    many = {f"layers.{i}.w{j}.weight": gaussian(64, 32 * (j + 3), seed=10 * i + j) for i in range(40) for j in range(5)}
    save(Path("many.safetensors"), many)
    for target in (700_000, 800_000, 1_000_001):
        found = planned("many.safetensors", "--target-size", target)
        assert target * 0.999 <= found["bytes_out"] <= target and found["gap"] <= 0.005


def test_more_bytes_never_lose_more(model: Path) -> None:
    """no plan of a smaller file is better: a plan costs at most what one for a smaller target does, and as its header
    grows with what it says, a plan for a larger target may fit too"""
    weights = {f"layers.{i}.{n}.weight": gaussian(32, 96, seed=i) for i in range(4) for n in ("a", "b", "c")}
    save(Path("even.safetensors"), weights)
    found = [planned("even.safetensors", "--target-size", target) for target in range(17_500, 32_000, 193)]
    for number, plan in enumerate(found):
        fitting = [other["cost"] for other in found if other["bytes_out"] <= plan["target"]]
        assert plan["cost"] <= min(fitting) * 1.0001, number


def test_no_choice_is_better(model: Path) -> None:
    """every combination of a small model, from what quantize itself reports"""
    weights = {
        "a.weight": gaussian(64, 96, seed=1),
        "b.weight": gaussian(96, 160, seed=2) ** 3,
        "c.weight": gaussian(32, 64),
    }
    save(Path("small.safetensors"), weights)
    costs: dict[str, dict[str, tuple[int, float]]] = {n: {} for n in weights}
    for bits, size in itertools.product((2, 4, 8), (32, 96)):
        report = json.loads(run("quantize", "small.safetensors", "-o", "x.safetensors", "--force", "--bits", bits,
                                "--group-size", size, "--json").out)  # fmt: skip
        for t in report["tensors"]:
            costs[t["name"]][f"{bits},{size}"] = t["bytes_out"], t["nmse"]
    for name, w in weights.items():
        costs[name]["kept"] = w.nbytes, 0.0
    for target in (12_000, 16_000, 25_000):
        found = planned("small.safetensors", "--target-size", target, "--bits", "2,4,8,16", "--group-size", "32,96",
                        "--weighting", "relative")  # fmt: skip
        # Of all choices whose data is no larger than the data of the plan, none costs less.
        data = sum(costs[t["name"]][_key(t["scheme"])][0] for t in found["tensors"])
        best = min(
            sum(c[k][1] for c, k in zip(costs.values(), keys))
            for keys in itertools.product(*(c for c in costs.values()))
            if sum(c[k][0] for c, k in zip(costs.values(), keys)) <= data
        )
        assert found["cost"] == pytest.approx(best, rel=1e-6) and found["optimal"]


def _key(scheme: str | None) -> str:
    return "kept" if scheme is None else f"{scheme[1]},{scheme.split('g')[1]}"


def test_fused_tensors_get_one_scheme(model: Path) -> None:
    """q/k/v get one scheme unless --no-ties"""
    tied = {t["name"]: t for t in planned(model, "--target-size", "44kB")["tensors"]}
    for i in range(3):
        names = [f"layers.{i}.{k}_proj.weight" for k in "qkv"]
        assert len({tied[n]["scheme"] for n in names}) == 1
        assert sorted(tied[names[0]]["tied"]) == sorted(names[1:])
    free = planned(model, "--target-size", "44kB", "--no-ties")
    assert free["bytes_out"] <= 44_000
    assert not any(t["tied"] for t in free["tensors"])


def test_one_scheme_for_all(model: Path) -> None:
    """--uniform-groups restricts to what one compressed-tensors config group can store"""
    found = planned(model, "--target-size", "60kB", "--uniform-groups")
    assert len({t["scheme"] for t in found["tensors"]} - {None}) == 1 and found["bytes_out"] <= 60_000
    assert found["cost"] >= planned(model, "--target-size", "60kB")["cost"]
    costs = []
    for bits, size in itertools.product((2, 3, 4, 5, 6, 8), (64, 128)):
        ran = run("plan", model, "--target-size", "60kB", "--bits", f"{bits},16", "--group-size", size, "--json")
        costs += [json.loads(ran.out)["cost"]] if ran.code == 0 else []
    assert found["cost"] == pytest.approx(min(costs)) and len(costs) < 12


def test_weights_of_tensors(model: Path) -> None:
    """--weighting FILE: patterns and factors, the last that matches decides"""
    Path("w.yaml").write_text("'*': 1\n'*.down_proj': 1000\nwide*: 0\n")
    plain = {t["name"]: t for t in planned(model, "--target-size", "44kB", "--weighting", "relative")["tensors"]}
    found = {t["name"]: t for t in planned(model, "--target-size", "44kB", "--weighting", "w.yaml")["tensors"]}
    names = [n for n in found if "down_proj" in n]
    assert all((found[n]["bits"] or 16) > (plain[n]["bits"] or 16) for n in names)
    assert found["wide.weight"]["bits"] == 2
    for wrong in ("[1]", "'*.dwn': 2", "'*': -1", "'*': much", ""):
        Path("w.yaml").write_text(wrong)
        one_line(run("plan", model, "--target-size", "44kB", "--weighting", "w.yaml"), 2)
    one_line(run("plan", model, "--target-size", "44kB", "--weighting", "nowhere.yaml"), 1)


def test_the_same_at_every_thread_count(model: Path) -> None:
    documents = [planned(model, "--target-size", "44kB", "--threads", n) for n in (1, 2, 5)]
    assert documents[0] == documents[1] == documents[2]


def test_a_checkpoint_folder(model: Path) -> None:
    """exact bytes of all shards together"""
    llama = ROOT / "sample_models" / "tiny-llama"
    found = planned(llama, "--target-size", "100kB")
    assert run("quantize", llama, "-o", "folder", "--target-size", "100kB", "-q").code == 0
    assert sum(p.stat().st_size for p in Path("folder").glob("*.safetensors")) == found["bytes_out"] <= 100_000


def test_other_targets(model: Path) -> None:
    parameters = sum(w.size for w in load_file(model).values())
    found = planned(model, "--target-bpw", "5")
    assert found["bytes_out"] <= 5 * parameters / 8
    for db in (15, 30):
        found = planned(model, "--min-sqnr", db, "-o", "r.yaml")
        assert run("quantize", model, "--recipe", "r.yaml", "-o", "a.safetensors", "-q", "--force").code == 0
        assert json.loads(run("report", "a.safetensors", "--json").out)["summary"]["sqnr_db"] >= db
        assert planned(model, "--max-nmse", 10 ** (-db / 10))["bytes_out"] == found["bytes_out"]


def test_what_is_printed(model: Path) -> None:
    ran = run("plan", model, "--target-size", "44kB", "--explain")
    lines = ran.out.splitlines()
    assert ran.code == 0 and "% below 44000" in lines[1] and "bound" in lines[2]
    assert lines[3].startswith("best single scheme in the same bytes: ")
    assert ran.out.count("best buys:") == ran.out.count("best sales:") == 1 and " dB for +" in ran.out


@pytest.mark.parametrize(("arguments", "words"), [
    (["--target-size", "9kB"], "--target-size: 9 kB cannot be met: the smallest file these options allow has"),
    (["--target-size", "1GB"], "1 GB are enough for all of it as it is"), ([], "one target is needed"),
    (["--target-size", "1MB", "--min-sqnr", "3"], "one target is needed"), (["--target-size", "lots"], "not a number"),
    (["--min-sqnr", "500", "--bits", "4"], "these options cannot reach the target"), (["--bits", "0"], "bits"),
    (["--target-size", "44kB", "--bits", "16"], "nothing to choose from"),
    (["--target-size", "44kB", "--group-size", "-9"], "--group-size"),
    (["--target-size", "44kB", "--exclude", "nothing"], "matches no tensor"),
    (["--target-size", "44kB", "-o", "model.safetensors"], "same file"),
], ids=lambda v: " ".join(v) if isinstance(v, list) else "")  # fmt: skip
def test_what_cannot_be_planned(arguments: list[str], words: str, model: Path) -> None:
    """one line each, exit 2, nothing written"""
    if "--bits" in arguments and len(arguments) == 2:
        arguments = ["--target-size", "44kB", *arguments]
    assert words in one_line(run("plan", "model.safetensors", *arguments), 2)
    assert os.listdir() == ["model.safetensors"]


@pytest.mark.parametrize("uniform", [[], ["--uniform-groups"]])
@pytest.mark.parametrize(("option", "unit", "size"), [
    ("--target-bpw", "", None), ("--target-size", "kB", 1000), ("--target-size", "KiB", 1024),
    ("--target-size", "", 1)])  # fmt: skip
def test_a_target_out_of_reach_is_answered_in_its_unit(
    option: str, unit: str, size: int | None, uniform: list[str], model: Path
) -> None:
    """The least that can be reached may be asked for; the tensors that take the room are named with what they take."""
    held = {name: w for name, w in load_file(model).items() if name != "wide.weight"}
    save(model, {**held, "embed.weight": gaussian(32, 128, seed=9)})
    per = size or sum(v.size for v in load_file(model).values()) / 8
    name = "bits per weight" if size is None else unit or "bytes"
    line = one_line(run("plan", model, option, f"1{unit}", *uniform), 2)
    found = re.fullmatch(
        rf".*: {option}: 1 {name} cannot be met: the smallest file these options allow has at least ([0-9.]+) {name} \("
        r"kept tensors ([0-9.,]+): embed\.weight ([0-9.,]+) \(embedding\).*; quantized tensors ([0-9.,]+); "
        r"header ([0-9.,]+)\); quantize such tensors too with --no-keep-embeddings, or ask for more",
        line,
    )
    assert found, line
    least, kept, embedding, quantized, header = (float(word.replace(",", "")) for word in found.groups())
    assert embedding == pytest.approx(32 * 128 * 4 / per, rel=0.01) and kept >= embedding
    assert kept + quantized + header == pytest.approx(least, rel=0.02)
    assert run("plan", model, option, f"{least}{unit}", *uniform, "-q").code == 0
    step = 1 if unit == "" and size else 0.001
    assert run("plan", model, option, f"{least - step:.3f}{unit}", *uniform, "-q").code == 2


def test_a_target_out_of_reach_is_refused_before_weights_are_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for scales that do not fit float16, which only the weights tell."""
    with monkeypatch.context() as patched:
        patched.setattr(menus, "measure", lambda *_, **__: pytest.fail("a weight was read"))
        line = one_line(run("plan", model, "--target-size", "9kB"), 2)
    least = re.search(r"has at least ([0-9.]+) kB", line)
    assert least, line
    line = one_line(run("plan", model, "--target-size", f"{least[1]}kB"), 2)
    exact = re.search(r"has ([0-9.]+) kB", line)
    assert exact, line
    assert float(exact[1]) > float(least[1])
    assert run("plan", model, "--target-size", f"{exact[1]}kB", "-q").code == 0


def test_an_output_that_is_there_is_refused_before_weights_are_read(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(menus, "measure", lambda *_, **__: pytest.fail("a weight was read"))
    for words in (["-o", "there.safetensors"], []):
        Path("there.safetensors" if words else "model-recipe.safetensors").write_bytes(b"")
        line = one_line(run("quantize", model, "--target-size", "60kB", *words), 2)
        assert "the output exists" in line


def test_a_target_leaves_no_choice(model: Path) -> None:
    for extra in (["--bits", "4"], ["--group-size", "32"], ["--type", "nf4"], ["--calibration", "mse"],
                  ["--percentile", "99"], ["--mse-norm", "3"]):  # fmt: skip
        ran = run("quantize", model, "--target-size", "44kB", *extra)
        assert "a size target chooses this itself" in one_line(ran, 2)


# ---- targets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["awq", "bnb-nf4", "compressed-tensors", "gguf", "gptq", "mlx", "native"])
@pytest.mark.parametrize("limit", [["--target-size", "120kB"], ["--min-sqnr", "20"]])
def test_a_plan_for_a_target_is_what_quantize_writes(
    target: str, limit: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same embeddings, same schemes, and the bytes to the last one."""
    monkeypatch.chdir(tmp_path)
    source, out = ROOT / "sample_models" / "tiny-llama", "out.gguf" if target == "gguf" else "out"
    found = planned(source, *limit, "--to", target, "-o", "r.yaml", "-q")
    assert f"\nto: {target}\n" in Path("r.yaml").read_text()
    ran = run("quantize", source, "--recipe", "r.yaml", "-o", out, "--json", "-q")
    assert ran.code == 0, ran.err
    assert ran.json["summary"]["bytes_out"] == found["bytes_out"]
    written = {t["name"]: t["scheme"] for t in ran.json["tensors"]}
    assert all(written[t["name"]] == t["scheme"] for t in found["tensors"])
    if limit[0] == "--target-size":
        direct = run("quantize", source, *limit, "--to", target, "-o", f"direct-{out}", "--json", "-q")
        assert {t["name"]: t["scheme"] for t in direct.json["tensors"]} == written


def test_a_plan_for_what_a_target_does_not_take_is_refused() -> None:
    source = ROOT / "sample_models" / "digits.safetensors"
    for words, why in (("onnx", "without the model's graph"), ("gguf", "--container")):
        assert why in one_line(run("plan", source, "--target-size", "27kB", "--to", words, "-q"), 2)
    ran = run("plan", source, "--target-size", "50kB", "--to", "gguf", "--container", "--bits", "4,8", "-q")
    assert ran.code == 0, ran.err


def test_a_budget_for_mlx_chooses_among_its_modes(tmp_path: Path) -> None:
    """At 5.2 bits NVFP4 has less error than integers in groups of 64; config.json has a mode for each module."""
    out = tmp_path / "out"
    source = ROOT / "sample_models" / "tiny-llama"
    ran = run("quantize", source, "--target-bpw", "5.2", "--to", "mlx", "-o", out, "--json", "-q")
    assert ran.code == 0, ran.err
    schemes = {t["scheme"] for t in ran.json["tensors"] if t["disposition"] == "quantized"}
    modes = json.loads((out / "config.json").read_text())["quantization"]
    own = {modes["mode"], *(module["mode"] for module in modes.values() if isinstance(module, dict))}
    assert "nvfp4" in schemes and any(name.endswith("g64") for name in schemes) and own == {"nvfp4", "affine"}


def test_a_budget_over_schemes_by_name(tmp_path: Path) -> None:
    """The file that the recipe makes has the bytes that were planned, and the inputs that the names stand for."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    names = [f"model.layers.{i}.mlp.{n}_proj.weight" for i in (0, 1) for n in ("gate", "up", "down")]
    save(folder / "model.safetensors", {name: gaussian(256, 256, seed=i) for i, name in enumerate(names)})
    recipe_file, out = tmp_path / "r.yaml", tmp_path / "out"
    words = ["plan", folder, "--scheme", "FP8_DYNAMIC,NVFP4A16,W4A16"]
    found = run(*words, "--target-bpw", "6.5", "-o", recipe_file, "--json")
    assert found.code == 0, found.err
    chosen = {t["scheme"] for t in found.json["tensors"]}
    assert {"fp8-e4m3c", "nvfp4"} <= chosen <= {"fp8-e4m3c", "nvfp4", "w4g128", None}
    assert run("quantize", folder, "--recipe", recipe_file, "-o", out, "-q").code == 0
    assert (out / "model.safetensors").stat().st_size == found.json["bytes_out"]
    groups = json.loads((out / "config.json").read_text())["quantization_config"]["config_groups"].values()
    inputs = {g["format"]: (g["input_activations"] or {}).get("type") for g in groups}
    assert inputs["float-quantized"] == "float" and inputs["nvfp4-pack-quantized"] is None
    ran = run(*words, "--bits", "8", "--target-bpw", "8.5", "--to", "gptq", "--json")
    assert "gptq does not store fp8-e4m3c, nvfp4: not among the choices" in ran.err
    assert {t["scheme"] for t in ran.json["tensors"]} <= {"w4g128", "w8g64", "w8g128"}
    ran = run("plan", folder, "--scheme", "NVFP4A16", "--target-bpw", "8", "--to", "awq")
    assert one_line(ran, 2).endswith("awq stores none of nvfp4; use --scheme W4A16, the nearest that it stores")
    ran = run("plan", folder, "--scheme", "FP8_DYNAMIC,W8A16", "--target-bpw", "5", "--to", "gptq")
    assert one_line(ran, 2).endswith("name smaller schemes, or ask for more")


# ---- recipes ----------------------------------------------------------------------------------------------------


def test_overrides_and_the_recipe_they_make(model: Path) -> None:
    """--override, repeatable, last wins; running the saved recipe again gives the same bytes"""
    overrides = ["--override", "*.down_proj:bits=8,group-size=32", "--override", "layers.1.*:bits=3",
                 "--override", "re:layers\\.2\\.q_proj.*:keep"]  # fmt: skip
    ran = run("quantize", model, "-o", "a.safetensors", *overrides, "--save-recipe", "r.yaml", "--json")
    schemes = {t["name"]: t["scheme"] for t in json.loads(ran.out)["tensors"]}
    assert schemes["layers.0.down_proj.weight"] == "w8g32" and schemes["layers.1.down_proj.weight"] == "w3g128"
    assert schemes["layers.2.q_proj.weight"] is None and schemes["layers.0.q_proj.weight"] == "w4g128"
    assert run("quantize", model, "-o", "b.safetensors", "--recipe", "r.yaml", "--save-recipe", "s.yaml").code == 0
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    assert Path("r.yaml").read_text() == Path("s.yaml").read_text()
    for wrong in ("bits=8", "x", "*.down_proj:bits", "*.down_proj:bts=8", "*.dwn:bits=8", "*.down_proj:bits=8,bits=4",
                  "*.down_proj:bits=eight", "*.down_proj:keep,bits=4"):  # fmt: skip
        one_line(run("quantize", model, "-o", "c.safetensors", "--override", wrong), 2)


def test_shorthands_of_the_field(model: Path) -> None:
    """scheme shorthands (W4A16, W8A16, W4A16_ASYM)"""
    Path("r.yaml").write_text(
        "default: W4A16\nrules:\n  - {match: '*.down_proj', scheme: W8A16}\n"
        "  - {match: layers.1.*, scheme: W4A16_ASYM, group_size: 32}\n"
    )
    ran = run("quantize", model, "-o", "a.safetensors", "--recipe", "r.yaml", "--override", "wide*:W3A16", "--json")
    schemes = {t["name"]: t["scheme"] for t in json.loads(ran.out)["tensors"]}
    assert schemes["layers.0.q_proj.weight"] == "w4g128" and schemes["layers.0.down_proj.weight"] == "w8g128"
    assert schemes["layers.1.down_proj.weight"] == "w4g32-asym" and schemes["wide.weight"] == "w3g128"
    for wrong in ("default: W4A4", "default: W9A16", "rules: [{match: '*', scheme: 4}]", "default: {scheme: w4}"):
        Path("r.yaml").write_text(wrong)
        assert "is not a scheme" in one_line(run("quantize", model, "-o", "c.safetensors", "--recipe", "r.yaml"), 2)


@pytest.mark.parametrize("options", [
    [], ["--bits", "3", "--asymmetric", "--group-size", "64"], ["--type", "nf4"], ["--calibration", "percentile"],
    ["--granularity", "channel", "--axis", "1", "--bits", "8"], ["--no-default-keep"], ["--include", "*.q_proj"],
    ["--type", "codebook", "--group-size", "32"], ["--rounding", "nearest", "--scale-dtype", "float32"],
    ["--calibration", "mse", "--effort", "best"], ["--grid", "restricted"], ["--type", "codebook", "--levels", "5"],
], ids=" ".join)  # fmt: skip
def test_any_request_as_a_recipe(options: list[str], model: Path) -> None:
    """--save-recipe writes the fully resolved one, and running it again gives the same bytes"""
    assert run("quantize", model, "-o", "a.safetensors", *options, "--save-recipe", "r.yaml", "-q").code == 0
    assert run("quantize", model, "-o", "b.safetensors", "--recipe", "r.yaml", "-q").code == 0
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    plain = run("quantize", model, "-o", "c.safetensors", *options, "--json")
    expected = {t["name"]: (t["scheme"], t["sqnr_db"]) for t in json.loads(plain.out)["tensors"]}
    found = json.loads(run("report", "b.safetensors", "--json").out)["tensors"]
    assert {t["name"]: (t["scheme"], t["sqnr_db"]) for t in found} == expected


NAME = st.text(st.sampled_from("a.0127*[?]x\\(|"), min_size=1, max_size=12)
NAMES = st.lists(NAME, min_size=1, max_size=8, unique=True)


@given(NAMES, st.integers(0, 255))
def test_patterns_match_their_names_and_no_others(names: list[str], which: int) -> None:
    """Patterns for just these names"""
    wanted = [n for i, n in enumerate(names) if which >> i & 1]
    patterns = patterns_of(wanted)
    exact = {n for n in names for p in patterns if compiled(p, "test")(n)}
    modules = {n for n in names if n.rpartition(".")[0] in wanted}
    assert set(wanted) <= exact <= set(wanted) | modules


def test_a_recipe_of_a_large_model_fits() -> None:
    kinds = [*(f"self_attn.{k}_proj" for k in "qkvo"), "mlp.up_proj", "mlp.down_proj"]
    chance = np.random.default_rng(0)
    wanted: dict[str, Scheme | None] = {}
    for i, kind in itertools.product(range(126), kinds):
        scheme = Scheme(bits=int(chance.integers(2, 9)), group_size=int(chance.choice([32, 128])))
        wanted[f"model.layers.{i}.{kind}.weight"] = scheme
    infos = [TensorInfo(name, "BF16", (64, 64)) for name in wanted]
    request = recipe_writing.resolved(infos, wanted, Request(scheme=Scheme()))
    text = recipe_writing.dump(request)
    assert len(text) < 1 << 16
    read = recipe.parse(yaml.safe_load(text), {})
    again = make(infos, Request(scheme=read.default, rules=read.rules))
    assert {t.info.name: t.scheme for t in again.tensors} == wanted


def test_ties_of_known_families() -> None:
    with contextlib.closing(open_source(str(ROOT / "sample_models" / "tiny-llama"))) as source:
        request = Request(scheme=Scheme(bits=4))
        plan = make(source.infos(), request)
        groups = menus._tied([t for t in plan.tensors if t.scheme is not None], [], True)
    names = [sorted(t.info.name.split(".")[-2] for t in g) for g in groups]
    assert names.count(["k_proj", "q_proj", "v_proj"]) == 2 and names.count(["gate_proj", "up_proj"]) == 2


# ---- presets, ties, rules beside a budget ---------------------------------------------------------------------------


def test_presets_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {
        "llm": {"model.layers.0.self_attn.q_proj.weight": "w4g128", "model.vision_tower.blocks.0.fc1.weight": None,
                "model.layers.0.mixer.conv1d.weight": None, "model.multi_modal_projector.linear_1.weight": None},
        "embedding": {"embeddings.word_embeddings.weight": "w8g64", "embeddings.position_embeddings.weight": None,
                      "encoder.layer.0.output.dense.weight": "w8g64"},
        "cnn": {"conv1.weight": None, "layer1.0.conv1.weight": "w8c", "fc.weight": None, "features.0.weight": None,
                "features.3.weight": "w8c", "classifier.6.weight": None},
        "comfyui": {"double_blocks.0.img_mod.lin.weight": "w8c", "time_in.in_layer.weight": None,
                    "double_stream_modulation_img.lin.weight": None, "text_embedding.0.weight": None,
                    "head.head.weight": None, "final_layer.adaLN_modulation.1.weight": None,
                    "blocks.3.cross_attn.q.weight": "w8c", "first_stage_model.decoder.mid.attn_1.q.weight": None,
                    "model.diffusion_model.img_in.weight": None,
                    "text_encoders.t5xxl.transformer.encoder.block.0.q.weight": None},
        "diffusion": {"transformer_blocks.0.attn.to_q.weight": "w8g64", "time_in.in_layer.weight": None,
                      "double_blocks.0.img_mod.lin.weight": None, "single_blocks.3.adaLN_modulation.1.weight": None,
                      "x_embedder.proj.weight": None, "final_layer.linear.weight": None},
    }  # fmt: skip
    assert recipe.presets() == sorted(names)
    for preset, wanted in names.items():
        save(tmp_path / "m.safetensors", {name: gaussian(32, 128, seed=1) for name in wanted})
        ran = run("quantize", "m.safetensors", "--recipe", preset, "--dry-run", "--json")
        assert ran.code == 0, ran
        found = {t["name"]: t["scheme"] for t in json.loads(ran.out)["tensors"]}
        assert found == wanted
    (tmp_path / "llm").write_text("default: {bits: 2}")
    ran = run("quantize", "m.safetensors", "--recipe", "./llm", "--dry-run", "--json")
    assert {t["bits"] for t in json.loads(ran.out)["tensors"]} == {2}
    ran = run("quantize", "m.safetensors", "--recipe", "embeding", "--dry-run")
    assert "did you mean embedding?" in one_line(ran, 1)


def test_ties_of_a_recipe(model: Path) -> None:
    tie = r"re:(layers\.\d)\.(?:v_proj|down_proj)"
    Path("r.yaml").write_text(f"ties: ['{tie}']\n")
    found = planned(model, "--target-size", "60kB", "--recipe", "r.yaml")
    tied = {t["name"]: t["tied"] for t in found["tensors"]}
    assert tied["layers.1.v_proj.weight"] == ["layers.1.down_proj.weight"]
    assert tied["layers.1.q_proj.weight"] == ["layers.1.k_proj.weight"]
    Path("r.yaml").write_text(f"ties: ['{tie}']\nrules: [{{match: layers.1.v_proj, bits: 8}}]\n")
    ran = run("quantize", model, "--recipe", "r.yaml", "-o", "x")
    assert "are tied, but rules give them different schemes" in one_line(ran, 2) and not os.path.exists("x")
    for text, words in (
        ("ties: ['*.v_proj']", "not a regular expression"), ("ties: [3]", "not a regular expression"),
        ("ties: x", "not a list"), ("ties: ['re:(']", "not a regular expression"), ("ties: ['re:z']", "matches no"),
    ):  # fmt: skip
        Path("r.yaml").write_text(text)
        assert words in one_line(run("plan", model, "--target-size", "60kB", "--recipe", "r.yaml"), 2)


def test_rules_decide_before_the_budget(model: Path) -> None:
    """a recipe's rules hold, and only the rest is chosen"""
    ran = run("quantize", model, "--target-size", "120kB", "--override", "layers.1.*:bits=3,group-size=32",
              "--override", "layers.2.down_proj:keep", "-o", "a", "--json")  # fmt: skip
    assert ran.code == 0, ran
    found = {t["name"]: t["scheme"] for t in json.loads(ran.out)["tensors"]}
    assert os.path.getsize("a") <= 120_000
    assert {s for n, s in found.items() if n.startswith("layers.1.") and "norm" not in n} == {"w3g32"}
    assert found["layers.2.down_proj.weight"] is None
    ran = run("plan", model, "--target-size", "60kB", "--override", "*:bits=3")
    assert "nothing is left to choose" in one_line(ran, 2)
    Path("r.yaml").write_text("default: {symmetric: false}")
    found = planned(model, "--target-size", "60kB", "--recipe", "r.yaml")
    assert all(t["scheme"] is None or "asym" in t["scheme"] for t in found["tensors"])
    found = planned(model, "--target-size", "60kB", "--calibration", "minmax,mse", "--bits", "4,8")
    assert found["optimal"]


def test_prices_around_the_plan(model: Path) -> None:
    ran = run("plan", model, "--target-size", "40kB", "--explain")
    assert ran.code == 0 and "best buys:" in ran.out and "best sales:" in ran.out
    line = next(line for line in ran.out.splitlines() if "8 bits: " in line)
    assert re.search(r"8 bits: \+\d+\.\d dB for \+[0-9.]+ kB", line)
    assert re.search(r"groups of (64|128): [-+]\d\.\d dB for [-+]0\.\d+ bits", ran.out)


@pytest.mark.parametrize(
    ("target", "stored", "size"), [("modelopt", "nvfp4", "6"), ("modelopt", "mxfp8", "9"), ("fp8-blocks", "FP8", "20")]
)
def test_targets_whose_scales_are_small_floats(target: str, stored: str, size: str, tmp_path: Path) -> None:
    """Choices are what such a target stores, and quantize makes the file that was planned."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save(folder / "model.safetensors", {f"model.layers.{i}.mlp.up_proj.weight": gaussian(256, 256) for i in (0, 1)})
    recipe_file, out = tmp_path / "r.yaml", tmp_path / "out"
    found = run("plan", folder, "--to", target, "--target-bpw", size, "-o", recipe_file, "--json")
    assert found.code == 0, found.err
    assert run("quantize", folder, "--recipe", recipe_file, "-o", out, "-q").code == 0
    assert stored in run("inspect", out).out and f"to: {target}" in recipe_file.read_text(encoding="utf-8")
