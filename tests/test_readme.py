"""The commands of README and topics, run as written, give the output shown there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "quantcli" / "docs").glob("*.md"))]
TEXT = "".join(page.read_text(encoding="utf-8") for page in PAGES)


def blocks(language: str, text: str = TEXT) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[tuple[str, str | None]]:
    """The commands of a page in order, those of console blocks with what they print."""
    found: list[tuple[str, str | None]] = []
    for language, block in re.findall(r"```(console|sh)\n(.*?)```", text, re.DOTALL):
        if language == "console":
            found += re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
        else:
            found += [(line, None) for line in block.splitlines() if line and not line.startswith("#")]
    return found


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sample models, with `quantcli` and `python` on the path."""
    shutil.copytree(ROOT / "sample_models", tmp_path / "sample_models", ignore=shutil.ignore_patterns("__pycache__"))
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, words in (("quantcli", f'"{sys.executable}" -m quantcli'), ("python", f'"{sys.executable}"')):
        (commands / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def without_times(text: str) -> str:
    return re.sub(r"\d+\.\d\d s\b", "T s", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands(page: Path, workplace: Path) -> None:
    for command, shown in commands(page.read_text(encoding="utf-8")):
        run = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, (command, run.stderr)
        if shown is not None:
            assert run.stderr == "", command
            assert without_times(run.stdout) == without_times(shown), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks(page: Path, workplace: Path) -> None:
    for block in blocks("python", page.read_text(encoding="utf-8")):
        run = subprocess.run([sys.executable, "-W", "error", "-c", block], capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr


def test_the_readme_is_short() -> None:
    assert README.stat().st_size <= 12_000


def test_the_demo_needs_the_package_alone(tmp_path: Path) -> None:
    """`make demo` in a fresh checkout installs no tools for tests, and quantizes a language model first."""
    command = ["make", "--dry-run", "demo", f"VENV={tmp_path}"]
    steps = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "install --editable .\n" in steps and "[dev]" not in steps
    runs = [line for line in steps.splitlines() if "/quantcli " in line]
    assert "quantize sample_models/tiny-llama " in runs[0]


def test_the_recipe(workplace: Path) -> None:
    """The recipe of the topic on the sample checkpoint: rules in order, kept layers kept for their reason."""
    (recipe,) = [block for block in blocks("yaml") if block.startswith("default:")]
    Path("recipe.yaml").write_text(recipe)
    command = [sys.executable, "-m", "quantcli", "quantize", "sample_models/tiny-llama", "--recipe", "recipe.yaml"]
    run = subprocess.run([*command, "-o", "out", "--all"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    rows = {line.split()[0]: line for line in run.stdout.splitlines() if line.startswith("model.layers")}
    down = rows["model.layers.1.mlp.down_proj.weight"]
    assert "w8g64" in down and "sensitive" in down
    assert "w4g64" in rows["model.layers.1.mlp.up_proj.weight"]
    assert all("kept" in line for name, line in rows.items() if ".layers.0." in name)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A clone of the project without its history, with quantcli.yaml, and an environment with a fresh Python first."""
    folder = tmp_path_factory.mktemp("ci")
    for name in ("quantcli", "sample_models"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_kernels.so"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    (config,) = [block for block in blocks("yaml") if block.startswith("gates:")]
    (folder / "quantcli.yaml").write_text(config)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return folder, {**kept, "PATH": f"{folder / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
                    "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}


def steps_of(kind: str) -> list[str]:
    """The commands of a CI snippet, in order."""
    import yaml

    found = [yaml.safe_load(block) for block in blocks("yaml")]
    if kind == "github":
        (jobs,) = [document["jobs"] for document in found if "jobs" in document]
        return [step["run"] for step in jobs["weights"]["steps"] if "run" in step]
    (job,) = [document["weights"] for document in found if "weights" in document]
    return list(job["script"])


@pytest.mark.parametrize("kind", ["github", "gitlab"])
def test_the_snippets_for_ci(kind: str, checkout: tuple[Path, dict[str, str]]) -> None:
    """GitHub Actions and GitLab CI, each run locally step by step"""
    folder, environment = checkout
    (folder / "model-w4.safetensors").unlink(missing_ok=True)
    printed = []
    for step in steps_of(kind):
        run = subprocess.run(["bash", "-e", "-c", step], cwd=folder, env=environment, capture_output=True, text=True,
                             timeout=300)
        assert run.returncode == 0, (step, run.stderr)
        printed.append(run.stdout)
    page = (folder / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "All 3 gates passed" in page
    if kind == "github":
        assert "::notice title=quantcli::" in printed[-2]
        assert (folder / "summary.md").read_text().startswith("### ✅ quantcli: 3 of 3 gates passed")
    else:
        assert 'failures="0"' in (folder / "report.xml").read_text()
    # The same with a model that is not good enough: the step that gates fails, and names the tensor.
    quantize, gate = [s for s in steps_of(kind) if s.startswith("quantcli")]
    worse = quantize.replace("--bits 4", "--bits 3") + " --force"
    subprocess.run(["bash", "-e", "-c", worse], cwd=folder, env=environment, capture_output=True, check=True)
    run = subprocess.run(["bash", "-e", "-c", gate], cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and "gate min-tensor-sqnr failed: conv2.weight: " in run.stderr


def test_every_option_named_is_one() -> None:
    """An option that README or a topic names exists."""
    words = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))
    text = "--version"
    for name in ("quantize", "dequantize", "inspect", "report", "compare", "sweep", "plan", "export", "verify"):
        command = [sys.executable, "-m", "quantcli", name, "--help"]
        text += subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert not {w for w in words if w not in text}


def test_the_sample_models_are_evaluated(tmp_path: Path) -> None:
    """The figures of the sample models can be made again, of quantized ones too."""
    out = tmp_path / "llama"
    command = [sys.executable, "-m", "quantcli", "quantize", "sample_models/tiny-llama", "--group-size", "64"]
    assert subprocess.run([*command, "-o", out], cwd=ROOT, capture_output=True, timeout=60).returncode == 0
    command = [sys.executable, "sample_models/evaluate.py", "sample_models/tiny-llama", str(out)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    losses = [float(loss) for loss in re.findall(r"held-out loss (\d\.\d+)", run.stdout)]
    assert len(losses) == 2 and losses[0] <= losses[1] < losses[0] + 0.01
