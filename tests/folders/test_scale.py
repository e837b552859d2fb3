"""What `help scale` says: its job scripts, run as plain processes, and its figures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import documents
import pytest
import yaml
from checkpoints import contents
from documents import workplace
from making import ROOT, measured, raw_file, run

TOPIC = (ROOT / "quantcli" / "docs" / "scale.md").read_text(encoding="utf-8")

SBATCH = f"""#!{sys.executable}
# What sbatch does of what the topic uses: runs an array, or a command once what it depends on has succeeded.
import os, re, subprocess, sys
state, options = os.environ["STATE"], [a for a in sys.argv[1:] if a.startswith("--")]
wrapped = [o.removeprefix("--wrap=") for o in options if o.startswith("--wrap=")]
if wrapped:
    assert "--dependency=afterok:42" in options and open(state).read() == "COMPLETED", options
    sys.exit(subprocess.run(wrapped[0], shell=True).returncode)
script = sys.argv[-1]
first, last = map(int, re.search(r"^#SBATCH --array=(\\d+)-(\\d+)$", open(script).read(), re.MULTILINE).groups())
told = dict(SLURM_ARRAY_TASK_MIN=first, SLURM_ARRAY_TASK_MAX=last, SLURM_ARRAY_TASK_STEP=1)
told["SLURM_ARRAY_TASK_COUNT"] = last - first + 1
codes = []
for task in range(first, last + 1):
    known = {{n: str(v) for n, v in dict(told, SLURM_ARRAY_TASK_ID=task).items()}}
    codes.append(subprocess.run(["bash", script], env=dict(os.environ, **known)).returncode)
open(state, "w").write("FAILED" if any(codes) else "COMPLETED")
print(42)
"""


@pytest.fixture
def shared(tmp_path: Path) -> dict[str, str]:
    """A folder with a model as /shared/model, and the environment to run commands in."""
    found = workplace(tmp_path)
    os.rename(tmp_path / "sample_models" / "tiny-llama", tmp_path / "model")
    return found


def check_output(tmp_path: Path) -> None:
    ran = run("quantize", tmp_path / "model", "--bits", "4", "--group-size", "64", "-o", tmp_path / "one", "-q")
    assert ran.code == 0
    assert contents(tmp_path / "model-w4") == contents(tmp_path / "one")


def test_the_slurm_array(tmp_path: Path, shared: dict[str, str]) -> None:
    script, submit = (b.text.replace("/shared", str(tmp_path)) for b in documents.blocks(TOPIC, "bash")[:2])
    script = re.sub(r"--array=1-16", "--array=1-3", script)
    (tmp_path / "quantize.sh").write_text(script)
    (tmp_path / ".bin" / "sbatch").write_text(SBATCH)
    (tmp_path / ".bin" / "sbatch").chmod(0o755)
    environment = {**shared, "STATE": str(tmp_path / "state")}
    done = subprocess.run(["bash", "-e", "-c", submit], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    check_output(tmp_path)


def test_the_indexed_job_of_kubernetes(tmp_path: Path, shared: dict[str, str]) -> None:
    (job,) = (d for b in documents.blocks(TOPIC, "yaml") if (d := yaml.safe_load(b.text))["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    words = [word.replace("/shared", str(tmp_path)) for word in [*container["command"], *container["args"]]]
    count = job["spec"]["completions"]
    assert f"auto/{count}" in words and job["spec"]["completionMode"] == "Indexed"
    words = [word.replace(f"auto/{count}", "auto/4") for word in words]
    runs = [subprocess.Popen(words, env={**shared, "JOB_COMPLETION_INDEX": str(index)}) for index in (3, 0)]
    runs[0].kill()
    runs += [subprocess.Popen(words, env={**shared, "JOB_COMPLETION_INDEX": str(index)}) for index in (1, 2)]
    assert [process.wait(60) for process in runs[1:]] == [0, 0, 0]
    assert runs[0].wait() == -9
    assert subprocess.run(words, env={**shared, "JOB_COMPLETION_INDEX": "3"}).returncode == 0
    assert run("merge", tmp_path / "model-w4", "-q").code == 0
    check_output(tmp_path)


# ---- figures ----------------------------------------------------------------------------------------------------


def sparse_checkpoint(folder: Path, shards: int, tensors: int) -> None:
    """A checkpoint of holes, all of whose tensors are 4096 x 12288 in bfloat16: 100 MB each."""
    folder.mkdir()
    homes, size = {}, 4096 * 12288 * 2
    for number in range(shards):
        name, header = f"model-{number + 1:05d}-of-{shards:05d}.safetensors", {}
        for place in range(tensors // shards):
            expert = number * (tensors // shards) + place
            tensor = f"model.layers.{expert // 256}.mlp.experts.{expert % 256}.up_proj.weight"
            offsets = [place * size, (place + 1) * size]
            header[tensor] = {"dtype": "BF16", "shape": [4096, 12288], "data_offsets": offsets}
            homes[tensor] = name
        raw = raw_file(header)
        (folder / name).write_bytes(raw)
        os.truncate(folder / name, len(raw) + size * (tensors // shards))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def stated(pattern: str) -> float:
    """A figure of the topic."""
    found = re.search(pattern, TOPIC.replace("\n", " "))
    assert found is not None, pattern
    return float(found[1])


def test_a_terabyte_is_planned_as_the_topic_says(tmp_path: Path) -> None:
    """ "A 1 TB sparse checkpoint of 200 shards planned in a minute on one machine; driver memory under 300 MiB", and
    the constants of the formula hold."""
    tensors = 10_000
    sparse_checkpoint(tmp_path / "model", 200, tensors)
    asked = ["quantize", tmp_path / "model", "--bits", "4", "-o", tmp_path / "w4"]
    each, per_tensor = stated(r"its start: ([\d.]+) ms for each tensor"), stated(r"`quantize --part` \| ([\d.]+) \|")
    for more in (["--dry-run"], ["--part", f"77/{tensors}", "--threads", "1"]):
        seconds, memory = measured(*asked, *more, "-q", timeout=60)
        assert seconds < 1.5 + tensors * each / 1000, (more, seconds)
        assert memory < 64 + tensors * per_tensor / 1024 < 300, (more, memory)


def test_the_example_of_the_topic_is_its_formula() -> None:
    """10^12 weights at 4 bits: what is read and written, and how long it takes."""
    seconds = stated(r"the default \| ([\d.]+) s")
    written = stated(r"the default \| [\d.]+ s \| ([\d.]+) \|")
    # 4 bits and a scale of 16 bits for 128 weights
    assert written == pytest.approx((4 + 16 / 128) / 8, abs=0.005)
    assert stated(r"([\d.]+) TB written") == pytest.approx(written, abs=0.01)
    assert stated(r"it takes (\d+) minutes of one processor") == round(seconds * 1000 / 60)
    assert stated(r"Storage of 1 GB/s takes (\d+) minutes") == round((2e12 + written * 1e12) / 1e9 / 60)
    assert stated(r"machines of 1 GB/s each it is (\d+) minutes") == round((2e12 + written * 1e12) / 16e9 / 60)
