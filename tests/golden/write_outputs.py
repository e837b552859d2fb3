"""Record what some commands write on the sample models, as SHA-256: `make golden` runs this, test_outputs compares.

A change of the code that is meant to keep what users get is done when these are the same. Where an output is meant to
change, list it with its reason in CHANGELOG.md and run `make golden`, which tells what changed.

Every file that a command writes counts, by its name; of what it prints JSON, names, recipes and CSV count. Of JSON what
differs from run to run (seconds) and what is text for people (warnings, notes) is left out, and numbers are rounded to
nine digits, for figures are not promised to the last one on every machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

GOLDEN = Path(__file__).resolve().parent
OUTPUTS = GOLDEN / "outputs.json"
sys.path.append(str(GOLDEN.parent))

from golden.models import weights  # noqa: E402
from golden.write_native import inside, sha256  # noqa: E402
from making import ROOT, run, save  # noqa: E402

import quantcli  # noqa: E402

SAMPLES = ROOT / "sample_models"

Outputs = dict[str, dict[str, Any]]
"""Of every command line: digests of its outputs, and its exit code where it failed."""

COMMANDS = """
# quantize a file: schemes
quantize digits.safetensors
quantize digits.safetensors --bits 4 --group-size 64 --save-recipe saved.yaml
quantize digits.safetensors --recipe saved.yaml -o again.safetensors
quantize digits.safetensors --bits 8 --group-size -1
quantize digits.safetensors --bits 3 --group-size 0 --asymmetric --no-default-keep
quantize digits.safetensors --bits 2 --group-size 32 --asymmetric --zero-point float
quantize digits.safetensors --bits 5 --granularity channel --axis 1
quantize digits.safetensors --bits 1 --group-size 16
quantize digits.safetensors --bits 12 --group-size 64 --scale-dtype float32
quantize digits.safetensors --bits 4 --calibration minmax --digest sha256 -o minmax.safetensors
quantize digits.safetensors --bits 4 --calibration mse --mse-norm 2.4 --effort best -o norm.safetensors
quantize digits.safetensors --bits 3 --calibration mse --effort exact -o exact.safetensors
quantize digits.safetensors --bits 8 --group-size 0 --percentile 99.9 -o percentile.safetensors
quantize digits.safetensors --bits 4 --group-size 0 --calibration entropy --digest none -o entropy.safetensors
quantize digits.safetensors --bits 4 --calibration signed-extreme --rounding sum-preserving -o signed.safetensors
quantize digits.safetensors --bits 4 --group-size 64 --calibration auto -o auto.safetensors
quantize digits.safetensors --type nf4 --group-size 64
quantize digits.safetensors --type fp4 --group-size 32
quantize digits.safetensors --type fp8-e4m3 --group-size -1
quantize digits.safetensors --type fp8-e5m2 --group-size 0
quantize digits.safetensors --type mu-law --bits 6
quantize digits.safetensors --type a-law --bits 6
quantize digits.safetensors --type midrise --bits 4 --group-size 0
quantize digits.safetensors --type codebook --bits 4 --group-size 32
quantize digits.safetensors --levels 5 --group-size -1
quantize digits.safetensors --type codebook --bits 3 --group-size 0
quantize digits.safetensors --codebook levels.txt -o given.safetensors
quantize digits.safetensors --override conv*:bits=8,granularity=channel --override fc2.*:keep --exclude conv1.weight
quantize digits.safetensors --recipe cnn
quantize digits.safetensors --importance importance.safetensors --bits 3 --group-size 64 -o weighed.safetensors
quantize digits.safetensors --target-size 27kB --save-recipe target.yaml -o target.safetensors
quantize digits.safetensors --target-bpw 4.6 -o bpw.safetensors
quantize digits.safetensors --bits 4 --group-size 64 --dry-run --json
quantize digits-qat.safetensors --bits 2 --group-size 64 --json
quantize tiny-llama/model-00001-of-00002.safetensors --group-size 64 -o shard.safetensors

# quantize a folder
quantize tiny-llama --group-size 64
quantize tiny-llama --to native --type codebook --bits 3 --group-size 16 -o native-codebook
quantize tiny-llama --to native --bits 8 --group-size -1 -o native-w8
quantize tiny-llama --bits 4 --asymmetric --group-size 32 --max-shard-size 40kB -o cut
quantize tiny-llama --recipe llm
quantize tiny-llama --no-default-keep --bits 6 --group-size 32 -o joined.safetensors
quantize tiny-llama --target-bpw 9 --digest sha256 -o tiny-target
quantize tiny-llama --target-bpw 8 --to compressed-tensors --no-default-keep -o tiny-target-ct
quantize words --to native --group-size 32 -o words-native
quantize tiny-llama --to compressed-tensors --dry-run --json

# quantize --to
quantize digits.safetensors --to compressed-tensors --group-size 64
quantize digits.safetensors --to awq --group-size 64
quantize digits.safetensors --to gptq --group-size 64 --json
quantize digits.safetensors --to mlx --group-size 64
quantize digits.safetensors --to bnb-nf4
quantize digits.safetensors --to comfyui
quantize digits.safetensors --to onnx --container
quantize digits.safetensors --to gguf --container --json
quantize tiny-llama --to compressed-tensors --bits 8 --group-size -1 -o tiny-ct
quantize tiny-llama --to awq --group-size 32 --include *mlp* -o tiny-awq
quantize tiny-llama --to gptq --group-size 32 --max-shard-size 60kB -o tiny-gptq
quantize tiny-llama --to mlx --bits 4 --group-size 32 -o tiny-mlx
quantize tiny-llama --to bnb-nf4 -o tiny-bnb
quantize tiny-llama --to comfyui -o tiny-comfyui
quantize tiny-llama --to onnx --container --bits 8 --group-size 32 -o tiny.onnx
quantize tiny-llama --to gguf -o tiny.gguf --json
quantize tiny-llama --to gguf --bits 8 --override *down_proj:bits=5 -o tiny-mixed.gguf
quantize words --to gguf -o words.gguf
quantize words --to gguf --container --bits 5 --asymmetric --calibration minmax -o words-container.gguf

# tensors of several tiles
quantize large.safetensors -o large-default.safetensors
quantize large.safetensors --bits 8 --group-size -1 -o large-channel.safetensors
quantize large.safetensors --bits 4 --group-size 0 -o large-tensor.safetensors
quantize large.safetensors --bits 8 --group-size 0 --percentile 99.99 --asymmetric -o large-percentile.safetensors
quantize large.safetensors --bits 6 --group-size 0 --calibration entropy -o large-entropy.safetensors
quantize large.safetensors --bits 5 --granularity channel --axis 1 --asymmetric -o large-axis1.safetensors
quantize large.safetensors --bits 3 --group-size 96 --asymmetric --calibration minmax -o large-minmax.safetensors
quantize large.safetensors --type codebook --bits 4 --group-size 0 -o large-codebook.safetensors
quantize large.safetensors --type nf4 --group-size 64 --digest sha256 -o large-nf4.safetensors
quantize large.safetensors --to gguf --container -o large.gguf
quantize large.safetensors --to mlx -o large-mlx.safetensors
export large-nf4.safetensors --to bnb-nf4 -o large-bnb.safetensors
dequantize large-minmax.safetensors -o large-floats.safetensors
report large-tensor.safetensors --against large.safetensors --json
compare large-default.safetensors large.gguf --json
verify large-axis1.safetensors --source large.safetensors --json
inspect large-codebook.safetensors --stats --json

# export
export tiny-llama-w4g64 --to gguf --requantize -o exported.gguf --json
export tiny-llama-w4g64 --to mlx --json
export tiny-llama-w4g64 --to gptq
export tiny-llama-w4g64 --to compressed-tensors
export native-w8 --to comfyui
export native-w8 --to compressed-tensors -o exported-ct.safetensors
export cut --to awq --requantize -o exported-awq
export digits-w4g64.safetensors --to bnb-nf4 --requantize
export digits-nf4g64.safetensors --to bnb-nf4 --requantize -o exported-bnb.safetensors
export digits-w4g64.safetensors --to mlx --requantize -o exported-mlx.safetensors --json
export digits-w4g64.safetensors --to onnx --container --requantize

# dequantize
dequantize digits-w4g64.safetensors --json
dequantize digits-w3t-asym.safetensors --dtype bfloat16 -o dequantized-bf16.safetensors
dequantize digits-codebook-4g32.safetensors -o dequantized-codebook.safetensors
dequantize tiny-llama-w4g64 -o dequantized-folder
dequantize cut -o dequantized-cut.safetensors
dequantize tiny-mlx -o dequantized-mlx
dequantize tiny-gptq -o dequantized-gptq
dequantize tiny-bnb -o dequantized-bnb
dequantize tiny-comfyui --dtype float16 -o dequantized-comfyui
dequantize tiny.gguf -o dequantized-gguf.safetensors
dequantize digits-w4g64-awq.safetensors -o dequantized-awq.safetensors
dequantize tiny.onnx -o dequantized-onnx.safetensors

# measure
report digits-w4g64.safetensors --json
report digits-w4g64.safetensors --against digits.safetensors --json --theory
report digits-w4g64.safetensors cut --format csv --all
report tiny-llama-w4g64 --against tiny-llama --json
report tiny.gguf --against tiny-llama --json
report digits-w4g64.safetensors --json --min-sqnr 30 --min-coverage 95% --max-size 30kB
report again.safetensors --json --config gates.yaml
compare digits.safetensors digits-w4g64.safetensors --json
compare digits-w4g64.safetensors digits-w2g32-float.safetensors --json
compare tiny-llama tiny-mlx --json
compare tiny-awq tiny-gptq --json
compare dequantized-folder tiny-llama-w4g64 --json
verify digits-w4g64.safetensors --source digits.safetensors --json
verify weighed.safetensors --source digits.safetensors --importance importance.safetensors --json
verify tiny-llama-w4g64 --source tiny-llama --json
verify cut --json
verify exported-ct.safetensors --json
verify tiny-gptq --source tiny-llama --json
plan digits.safetensors --target-size 27kB --explain --json -o plan.yaml
plan digits.safetensors --min-sqnr 25 --bits 3,4,5,6 --group-size 32,-1 --json
plan digits.safetensors --max-nmse 0.01 --weighting relative --calibration minmax --json
plan tiny-llama --target-bpw 9 --importance llama-importance.safetensors --json
plan tiny-llama --target-size 130kB --uniform-groups --weighting absolute -o uniform.yaml
sweep digits.safetensors --bits 2,3,4,8 --group-size 32,128,-1 --json
sweep digits.safetensors --bits 4 --group-size 64,0 --calibration minmax,mse,percentile,auto --asymmetric --json
sweep tiny-llama --bits 3 --group-size 64 --calibration lloyd-max --json
inspect digits.safetensors --stats --json
inspect digits-w4g64.safetensors --stats --json
inspect tiny-llama-w4g64 --json
inspect tiny-gptq --json
inspect tiny.gguf --json
inspect auto.safetensors --recipe
inspect cut --recipe
inspect tiny-mlx --names

# what is refused, and writes nothing
quantize digits.safetensors
quantize digits.safetensors --bits 17 -o refused.safetensors
quantize digits-w4g64.safetensors -o refused.safetensors
quantize digits.safetensors --to gguf -o refused.gguf
quantize tiny-llama --to onnx -o refused.onnx
quantize digits.safetensors --include nothing* -o refused.safetensors
quantize digits.safetensors --target-size 1kB -o refused.safetensors
export digits-w4g64.safetensors --to awq -o refused.safetensors
export digits.safetensors --to mlx -o refused.safetensors
dequantize digits.safetensors -o refused.safetensors
verify digits-w4g64.safetensors --source digits-qat.safetensors --json
report digits-w4g64.safetensors --against digits-qat.safetensors --json
"""
"""One after the other in one folder, so that later ones read what earlier ones have written."""

TEXT = {"seconds", "warnings", "notes", "note", "problem"}
"""Keys of JSON documents that are left out: what differs from run to run, and texts for people."""

UNTHREADED = ("inspect",)
"""Commands without --threads."""


def commands() -> Iterator[str]:
    """The command lines, in order. One that stands there twice is told apart by a blank at its end."""
    seen: set[str] = set()
    for line in COMMANDS.splitlines():
        if line and not line.startswith("#"):
            name = line
            while name in seen:
                name += " "
            seen.add(name)
            yield name


def build(folder: Path) -> None:
    """The sample models, a model with a tokenizer, and what is named beside them on the command lines."""
    for name in ("digits.safetensors", "digits-qat.safetensors"):
        shutil.copy(SAMPLES / name, folder / name)
    shutil.copytree(SAMPLES / "tiny-llama", folder / "tiny-llama")
    shutil.copytree(GOLDEN / "gguf" / "model", folder / "words")
    (folder / "levels.txt").write_text("-1 -0.55 -0.3 -0.15 -0.05 0 0.05 0.15 0.3 0.55 1\n", encoding="utf-8")
    gates = "gates:\n  min_sqnr: 18\n  rules:\n    - {match: 'conv*', min_tensor_sqnr: 19}\n"
    (folder / "gates.yaml").write_text(gates, encoding="utf-8")
    many, wide = weights(1100, 1024, salt=1).astype(ml_dtypes.bfloat16), weights(3, 360_000, salt=2)
    save(folder / "large.safetensors", {"many.weight": many, "wide.weight": wide})
    for name, columns in (("importance", {"fc1.weight": 512}), ("llama-importance", LLAMA_COLUMNS)):
        save(folder / f"{name}.safetensors", {tensor: importances(count) for tensor, count in columns.items()})


LLAMA_COLUMNS = {f"model.layers.{i}.{name}": 64 for i in (0, 1) for name in ("self_attn.q_proj", "mlp.gate_proj")}


def importances(columns: int) -> Any:
    """An importance for each column, the same everywhere."""
    return ((np.arange(columns) * 37) % 101 + 1).astype(np.float32) / np.float32(32)


def stamped(folder: Path) -> dict[str, tuple[int, int]]:
    """When every file of a folder was written, by name."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            status = path.stat()
            found[path.relative_to(folder).as_posix()] = (status.st_ino, status.st_mtime_ns)
    return found


def settled(value: Any) -> Any:
    """A JSON document without what is left out, its numbers rounded."""
    if isinstance(value, dict):
        return {k: settled(v) for k, v in value.items() if k not in TEXT}
    if isinstance(value, list):
        return [settled(v) for v in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def outcome(command: str, folder: Path, threads: int) -> dict[str, Any]:
    """What a command leads to in the working directory: its exit code unless 0, and digests of what it prints and
    writes."""
    words = command.split()
    options = [] if words[0] in UNTHREADED else ["--threads", threads]
    before = stamped(folder)
    ran = run(*words, *options)
    found: dict[str, Any] = {"exit": ran.code} if ran.code else {}
    if "--json" in words and ran.out:
        found["stdout"] = sha256(json.dumps(settled(ran.json), sort_keys=True).encode())
    elif {"--names", "csv"} & set(words) or (words[0] == "inspect" and "--recipe" in words):
        found["stdout"] = sha256(ran.out.encode())
    after = stamped(folder)
    found |= {name: sha256((folder / name).read_bytes()) for name in sorted(after) if before.get(name) != after[name]}
    return found


def record(folder: Path, threads: int) -> Outputs:
    """What every command leads to, in an empty folder."""
    build(folder)
    with inside(folder):
        return {command: outcome(command, folder, threads) for command in commands()}


def stored() -> dict[str, Any]:
    """What is recorded: the version, and outputs by command."""
    found: dict[str, Any] = json.loads(OUTPUTS.read_text(encoding="utf-8"))
    return found


def differences(old: Outputs, new: Outputs) -> list[str]:
    """A line for every command whose outcome changed, with what of it did."""
    lines = []
    for command in dict.fromkeys([*old, *new]):
        a, b = old.get(command, {}), new.get(command, {})
        changed = [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]
        if changed:
            lines.append(f"quantcli {command.rstrip()}: {', '.join(changed)}")
    return lines


def main() -> None:
    """Write the record, and print what changed; with --print only print the outcomes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--print", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = record(Path(folder), asked.threads)
    if asked.print:
        print(json.dumps(found))
        return
    old = stored() if OUTPUTS.exists() else {"outputs": {}}
    whole = {"version": quantcli.__version__, "outputs": found}
    OUTPUTS.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    changed = differences(old["outputs"], found)
    print(f"{OUTPUTS.relative_to(ROOT)}: {len(found)} commands, {len(changed)} changed", *changed, sep="\n  ")


if __name__ == "__main__":
    main()
