"""Recipes from the headers of files: what makes the same bytes again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import contents, made
from hypothesis import given, settings
from hypothesis import strategies as st
from making import change_header, metadata_of, one_line, run, save
from strategies import gaussian, schemes

import quantcli
from quantcli import Scheme
from quantcli.planning import recipe, recipe_writing
from quantcli.planning.request import Request, Rule


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    wide, odd = gaussian(64, 96, seed=3), gaussian(64, 96, seed=4)
    wide[5] *= 1e7  # float16 does not hold its scales
    tensors = {f"layers.{i}.{name}.weight": gaussian(64, 96, seed=10 * i) for i in range(3) for name in ("q", "down")}
    tensors |= {"wide.weight": wide, "embed_tokens.weight": odd, "norm.weight": gaussian(96), "ids": np.arange(9)}
    return save(tmp_path / "model.safetensors", tensors)


OPTIONS: list[list[str]] = [
    [], ["--bits", "3", "--asymmetric", "--group-size", "64"], ["--type", "nf4"], ["--calibration", "percentile"],
    ["--calibration", "auto"], ["--granularity", "channel", "--axis", "1", "--bits", "8"], ["--no-default-keep"],
    ["--include", "*.q", "--include", "re:.*down.*"], ["--exclude", "layers.1.*", "--digest", "sha256"],
    ["--type", "codebook", "--group-size", "32"], ["--rounding", "nearest", "--scale-dtype", "float32"],
    ["--calibration", "mse", "--effort", "best"], ["--grid", "restricted"], ["--levels", "5"], ["--digest", "none"],
    ["--override", "*.down:bits=8,group-size=32", "--override", "layers.1.*:keep", "--override", "wide*:W3A16"],
    ["--override", "*.down:format=nf4", "--override", "layers.2.down:format=fp8-e4m3"],
    ["--scale-dtype", "float32", "--effort", "best", "--override", "*.q:scale_dtype=null,options={}"],
    ["--override", "layers.1.*:calibration=auto", "--override", "layers.1.*:calibration=minmax"],
    ["--target-size", "44kB"], ["--recipe", "given.yaml"],
    ["--recipe", "given.yaml", "--bits", "6", "--exclude", "wide*"],
    ["--codebook", "levels.txt", "--group-size", "32"],
]  # fmt: skip
GIVEN = """\
default: {bits: 5, group_size: 32}
rules:
  - {match: "*.down", bits: 8, reason: "sensitive: \\u00e9 # and \\"quoted\\""}
  - {match: "layers.0.q", keep: true, reason: it is the first}
exclude: ["layers.2.q"]
keep_defaults: false
digest: sha256
"""


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_the_recipe_of_a_file_makes_the_same_bytes(options: list[str], model: Path) -> None:
    """prints YAML that quantize accepts and that reproduces the file byte for byte"""
    Path("given.yaml").write_text(GIVEN)
    Path("levels.txt").write_text("-1 -0.3333333 1e-5 0.1 1.25")
    assert run("quantize", model, "-o", "a.safetensors", *options, "-q").code == 0
    ran = run("inspect", "a.safetensors", "--recipe")
    assert ran.code == 0 and ran.out.startswith(f"# quantcli {quantcli.__version__}\ndefault: ")
    Path("r.yaml").write_text(ran.out)
    assert run("quantize", model, "-o", "b.safetensors", "--recipe", "r.yaml", "-q").code == 0
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    assert run("inspect", "b.safetensors", "--recipe").out == ran.out


def test_what_turned_out_on_the_way_turns_out_again(model: Path) -> None:
    """float32 scales, and tensors kept for NaN"""
    tensors = {"a": gaussian(64, 64), "b": gaussian(64, 64, seed=1)}
    tensors["b"][1, 1] = np.inf
    save(model, tensors)
    assert run("quantize", model, "-o", "a.safetensors", "--on-nonfinite", "keep", "-q").code == 0
    text = run("inspect", "a.safetensors", "--recipe").out
    assert text.endswith("on_nonfinite: keep\n")
    Path("r.yaml").write_text(text)
    assert run("quantize", model, "-o", "b.safetensors", "--recipe", "r.yaml", "-q").code == 0
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    one_line(run("quantize", model, "-o", "c.safetensors", "--recipe", "r.yaml", "--on-nonfinite", "refuse"), 1)


@pytest.mark.parametrize("options", [[], ["--max-shard-size", "30kB"]])
def test_the_recipe_of_a_folder(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = made(tmp_path / "source")
    assert run("quantize", source, "-o", "a", "--override", "*.1.mlp:bits=8", *options, "-q").code == 0
    Path("r.yaml").write_text(run("inspect", "a", "--recipe").out)
    assert run("quantize", source, "-o", "b", "--recipe", "r.yaml", "-q").code == 0
    assert contents(Path("a")) == contents(Path("b"))
    run("quantize", source, "-o", "c", "--bits", "8", *options, "-q")
    shutil.copy(min(Path("c").glob("*.safetensors")), min(Path("a").glob("*.safetensors")))
    if options:
        Path("a/model.safetensors.index.json").unlink()
    assert "several recipes" in one_line(run("inspect", "a", "--recipe"), 1) or options


@settings(max_examples=40)
@given(st.lists(schemes(), min_size=1, max_size=4), st.data())
def test_any_request_is_read_from_what_is_written_of_it(some: list[Scheme], data: st.DataObject) -> None:
    patterns = st.text(st.sampled_from("a.b*?[01] \u00e9'\"#:-"), min_size=1, max_size=10)
    rule = st.builds(Rule, patterns, st.sampled_from([*some, None]), st.none() | patterns)
    request = Request(
        scheme=some[0],
        rules=tuple(data.draw(st.lists(rule, max_size=5))),
        include=tuple(data.draw(st.lists(patterns, max_size=3))),
        exclude=tuple(data.draw(st.lists(patterns, max_size=3))),
        keep_defaults=data.draw(st.booleans()),
        max_shard_size=data.draw(st.none() | st.integers(1, 10**12)),
    )
    listed: list[dict[str, Any]] = []
    values = json.loads(json.dumps(request.as_dict(listed)))
    assert recipe.request_of(values, [Scheme(**fields) for fields in listed]) == request
    from quantcli.strict import plain

    read = recipe.parse(plain(recipe_writing.dump(request, {"digest": "none"}).encode(), "test"), {})
    usual = {"include": (), "exclude": (), "keep_defaults": True, "max_shard_size": None}
    assert {**usual, **read.options} == {**{name: getattr(request, name) for name in usual}, "digest": "none"}
    assert (read.default, read.rules) == (request.scheme, request.rules)


def test_the_header_grows_little(tmp_path: Path) -> None:
    """a hundred bytes where one scheme is for all; with rules for every tensor less than their entries"""
    tensors = {f"layers.{i}.weight": gaussian(32, 32, seed=i) for i in range(200)}
    source = save(tmp_path / "model.safetensors", tensors)
    for options, most in (([], 100), ([f"--override=layers.{i}:bits={2 + i % 7}" for i in range(200)], 200 * 40)):
        out = tmp_path / "out.safetensors"
        assert run("quantize", source, "-o", out, "--force", "-q", *options).code == 0
        document = json.loads(metadata_of(out)["quantcli"])
        said = {k: document.pop(k) for k in ("recipe", "check")}
        assert len(json.dumps(said, separators=(",", ":"))) < most


@pytest.mark.parametrize("wrong", [
    {"default": 9}, {"default": "0"}, {"default": True}, {}, {"default": 0, "rules": 5},
    {"default": 0, "rules": [["*"]]},
    {"default": 0, "rules": [["*", 0, 5]]}, {"default": 0, "rules": [["re:(", 0]]}, {"default": 0, "rules": [["*", 7]]},
    {"default": 0, "rules": [["*", 0, "a", "b"]]}, {"default": 0, "include": "x"}, {"default": 0, "keep_defaults": 1},
    {"default": 0, "max_shard_size": -1}, {"default": 0, "rules": [[None, None]]}, [], 7, "text",
])  # fmt: skip
def test_damaged_recipes(wrong: Any, model: Path) -> None:
    run("quantize", model, "-o", "a.safetensors", "-q")
    change_header("a.safetensors", lambda document: document.update(recipe=wrong))
    line = one_line(run("inspect", "a.safetensors", "--recipe"), 1)
    assert "recipe" in line and ("damaged" in line or "not an object" in line)


def test_the_recipe_of_a_changed_header(model: Path) -> None:
    run("quantize", model, "-o", "a.safetensors", "-q")
    change_header("a.safetensors", lambda document: document.update(recipe={"default": 0}), seal=False)
    assert "its quantcli header was changed after" in one_line(run("inspect", "a.safetensors", "--recipe"), 1)


def test_files_without_a_recipe(model: Path) -> None:
    assert "no recipe" in one_line(run("inspect", model, "--recipe"), 1)
    assert "printed alone" in one_line(run("inspect", model, "--recipe", "--json"), 2)


@pytest.mark.parametrize(("text", "words"), [
    ("include: '*'", "include: '*' is not a list"), ("keep_defaults: maybe", "neither true nor false"),
    ("digest: md5", "digest: 'md5' is not one of xxh3"), ("on_nonfinite: [1]", "is not one of refuse, keep"),
    ("max_shard_size: 2GB", "is not a number of bytes"), ("excluded: []", "did you mean exclude"),
])  # fmt: skip
def test_options_in_recipes_are_checked(text: str, words: str, model: Path) -> None:
    Path("r.yaml").write_text(f"default: {{bits: 4}}\n{text}\n")
    line = one_line(run("quantize", model, "-o", "a.safetensors", "--recipe", "r.yaml"), 2)
    assert words in line and line.startswith("r.yaml: ")


@pytest.mark.parametrize(("text", "line"), [
    ("default: {bits: .nan}", "r.yaml: line 1, column 11: default: bits: "),
    ("default:\n  bits: 4\n  group_size: -7", "r.yaml: line 3, column 3: default: group_size: "),
    ("default: {bits: 4}\nrules:\n  - match: a\n    bitz: 3",
     "r.yaml: line 4, column 5: rules[0]: unknown key 'bitz'; did you mean bits?"),
    ("rules:\n  - {match: a, bits: 4}\n  - {match: a, keep: true, bits: 3}",
     "r.yaml: line 3, column 5: rules[1]: a tensor that is kept has no bits"),
    ("default: {bits: 4}\nrules:\n  - {match: z9, bits: 3}",
     "r.yaml: line 3, column 5: 'z9' matches no tensor; near it: "),
    ("rulez: 3", "r.yaml: line 1, column 1: recipe: unknown key 'rulez'; did you mean rules?"),
    ("default: {bits: 4}\nties: ['re:(.*)', 3]", "r.yaml: line 2, column 19: ties[1]: "),
])  # fmt: skip
def test_errors_tell_line_and_column(text: str, line: str, model: Path) -> None:
    """validation with line and column, unknown keys and patterns without a match are errors with a suggestion"""
    (model.parent / "r.yaml").write_text(text)
    ran = run("quantize", model, "--recipe", model.parent / "r.yaml", "-o", model.parent / "x")
    assert line in one_line(ran, 2)
    assert not (model.parent / "x").exists()
