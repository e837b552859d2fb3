"""The commands of README and topics, run as written: how is told in documents.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import documents
import pytest
from making import ROOT

from quantcli import registry

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "quantcli" / "docs").glob("*.md"))]
TEXT = "".join(page.read_text(encoding="utf-8") for page in PAGES)


def blocks(language: str, text: str = TEXT) -> list[str]:
    """The fenced blocks of a language."""
    return [block.text for block in documents.blocks(text, language)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands(page: Path, tmp_path: Path) -> None:
    documents.run(page.read_text(encoding="utf-8"), tmp_path)


def test_the_readme_is_short() -> None:
    assert README.stat().st_size <= 12_000


def test_the_demo_needs_the_package_alone(tmp_path: Path) -> None:
    """`make demo` in a fresh checkout installs no tools for tests, and quantizes a language model first."""
    command = ["make", "--dry-run", "demo", f"VENV={tmp_path}"]
    steps = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "install --editable .\n" in steps and "[dev]" not in steps
    runs = [line for line in steps.splitlines() if "/quantcli " in line]
    assert "quantize sample_models/tiny-llama " in runs[0]


def test_the_recipe(tmp_path: Path) -> None:
    """The recipe of the topic on the sample checkpoint: rules in order, kept layers kept for their reason."""
    (recipe,) = [block for block in blocks("yaml") if block.startswith("default:")]
    (tmp_path / "recipe.yaml").write_text(recipe)
    command = [sys.executable, "-m", "quantcli", "quantize", str(ROOT / "sample_models" / "tiny-llama")]
    options = ["--recipe", "recipe.yaml", "-o", "out", "--all"]
    run = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=60)
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
    return folder, {
        **kept,
        "PATH": f"{folder / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "SKBUILD_WHEEL_CMAKE": "false",  # to compile the kernels takes more than a minute; numpy gives the same bytes
    }


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
        run = subprocess.run(
            ["bash", "-e", "-c", step], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert run.returncode == 0, (step, run.stderr)
        printed.append(run.stdout)
    page = (folder / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "All 3 gates passed" in page
    if kind == "github":
        assert "::notice title=quantcli::" in printed[-2]
        assert (folder / "summary.md").read_text().startswith("### ✅ quantcli: 3 of 3 gates passed")
    else:
        assert 'failures="0"' in (folder / "report.xml").read_text()
    # What is installed brings the topics along.
    topic = subprocess.run(["quantcli", "help", "targets"], cwd=folder, env=environment, capture_output=True, text=True)
    assert topic.stdout.startswith("# ") and topic.returncode == 0
    # The same with a model that is not good enough: the step that gates fails, and names the tensor.
    quantize, gate = [s for s in steps_of(kind) if s.startswith("quantcli")]
    worse = quantize.replace("--bits 4", "--bits 3") + " --force"
    subprocess.run(["bash", "-e", "-c", worse], cwd=folder, env=environment, capture_output=True, check=True)
    run = subprocess.run(["bash", "-e", "-c", gate], cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and "gate min-tensor-sqnr failed: conv2.weight: " in run.stderr


def test_every_option_named_is_one() -> None:
    """An option that README or a topic names exists."""
    own = re.sub(
        r"^.*(?:sbatch|dask (?:scheduler|worker)).*$", "", TEXT, flags=re.MULTILINE | re.IGNORECASE
    )  # of other programs
    words = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", own))
    text = "--version"
    for name in registry.commands():
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
