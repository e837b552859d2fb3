"""What messages name: the value that was typed, the key or the option, the limit, the permission that is missing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from making import one_line, run, save
from strategies import gaussian


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return save(tmp_path / "m.safetensors", {"a.up": gaussian(64, 128, seed=1), "b.up": gaussian(64, 128, seed=2)})


@pytest.mark.parametrize("arguments", [["quantize", "m.safetensors", "--to", "a_wq"], ["export", "m.safetensors"]])
def test_choices_are_on_one_line_and_a_wrong_one_is_shown_as_typed(model: Path, arguments: list[str]) -> None:
    line = one_line(run(*arguments), 2)
    assert "\\t" not in line and "\t" not in line and "awq" in line
    assert "--to" not in arguments or "'a_wq'" in line


@pytest.mark.parametrize(("yaml", "key"), [
    ("default: {bits: 4, group_size: x}", "default: group_size: "),
    ("default: {bits: 4, scale_dtype: x}", "default: scale_dtype: "),
    ("default: {bits: 4, symmetric: false, zero_point: x}", "default: zero_point: "),
    ("default: {bits: 4}\nexclude: ['zz*']", "recipe: exclude: "),
    ("default: {bits: 4}\ninclude: ['zz*']", "recipe: include: "),
    ("default: {bits: 4}\ncontainer: true", "recipe: container: "),
])  # fmt: skip
def test_an_error_in_a_recipe_names_its_key(model: Path, yaml: str, key: str) -> None:
    Path("r.yaml").write_text(yaml)
    line = one_line(run("quantize", "m.safetensors", "--recipe", "r.yaml"), 2)
    assert key in line and "--" not in line.replace("--to", "")


@pytest.mark.parametrize("option", [["--group-size", "-5"], ["--exclude", "zz*"], ["--container"]])
def test_an_error_on_the_command_line_names_the_option(model: Path, option: list[str]) -> None:
    assert f"{option[0]}: " in one_line(run("quantize", "m.safetensors", *option), 2)


def test_many_tensors_are_counted_after_the_first_three(tmp_path: Path) -> None:
    for name, columns in (("a", 64), ("b", 128)):
        save(tmp_path / f"{name}.safetensors", {f"t{i:02}": np.zeros((8, columns), np.float32) for i in range(33)})
    line = one_line(run("compare", tmp_path / "a.safetensors", tmp_path / "b.safetensors"), 2)
    assert "33 tensors differ in shape: t00 is [8, 64] and [8, 128], t01 " in line
    assert "and 30 more" in line and "t03" not in line


def test_a_folder_without_write_permission(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert one_line(run("quantize", "m.safetensors", "-o", "q.safetensors"), 1).endswith(": permission denied")


@pytest.mark.parametrize(("gate", "limit"), [("--min-sqnr", "60.00 dB"), ("--max-size", "5 bytes")])
def test_a_failed_gate_names_its_limit(model: Path, gate: str, limit: str) -> None:
    assert run("quantize", "m.safetensors", "-o", "q.safetensors").code == 0
    assert one_line(run("report", "q.safetensors", "-q", gate, limit.split()[0]), 1).endswith(f", limit {limit}")
    annotated = run("report", "q.safetensors", gate, limit.split()[0], "--format", "github").out
    assert f", limit {limit}" in annotated.splitlines()[0]
