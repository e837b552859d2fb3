"""Models that are quantized already, as the floats that are quantized again."""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from making import BF16, command, environment, load, one_line, run, save
from strategies import gaussian

from quantcli import QuantcliError, quantize_file
from quantcli.floats import Reading, float_source
from quantcli.stores import open_source
from quantcli.stores.derived import Derived, unchanged

BLOCK = 32
NAMES = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(4)]


def as_blocks(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and what DeepSeek's own kernel makes of them: the product in float32, rounded once."""
    rows, cols = weights.shape
    blocks = weights.reshape(rows // BLOCK, BLOCK, cols // BLOCK, BLOCK)
    scale = (np.abs(blocks).max(axis=(1, 3)) / 448).astype(np.float32)
    spread = np.kron(scale, np.ones((BLOCK, BLOCK), np.float32))
    codes = (weights / spread).astype(ml_dtypes.float8_e4m3fn)
    return codes, scale, (codes.astype(np.float32) * spread).astype(BF16)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A model of four weights in FP8 blocks, of which the scales of every second one are in another shard, and the
    floats it stands for."""
    fp8, floats = tmp_path / "fp8", tmp_path / "floats"
    fp8.mkdir()
    floats.mkdir()
    config: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
    stated = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    (fp8 / "config.json").write_text(json.dumps({**config, "quantization_config": stated}))
    (floats / "config.json").write_text(json.dumps(config))
    homes: dict[str, str] = {}
    shards: list[dict[str, np.ndarray]] = [{"model.norm.weight": np.ones(64, BF16)}, {}, {}]
    plain: list[dict[str, np.ndarray]] = [dict(shards[0]), {}, {}]
    for n, name in enumerate(NAMES):
        codes, scale, decoded = as_blocks(gaussian(64, 96, seed=n))
        shards[n // 2][name], plain[n // 2][name] = codes, decoded
        shards[n // 2 + n % 2][f"{name}_scale_inv"] = scale
    for folder, files in ((fp8, shards), (floats, plain)):
        homes.clear()
        for n, tensors in enumerate(files):
            if tensors:
                save(folder / f"model-{n + 1:05d}-of-00003.safetensors", tensors)
                homes.update(dict.fromkeys(tensors, f"model-{n + 1:05d}-of-00003.safetensors"))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    return fp8, floats


def tensors_of(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """All tensors of a folder."""
    return {n: (t.dtype, t.shape, t.data) for path in folder.glob("*.safetensors") for n, t in load(path).items()}


@pytest.mark.parametrize("target", ["compressed-tensors", "native", "mlx", "gptq"])
@pytest.mark.parametrize("more", [[], ["--max-shard-size", "3kB"], ["--threads", "3"], ["--calibration", "minmax"]])
def test_the_result_is_that_of_the_decoded_model(
    target: str, more: list[str], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    found = []
    for folder in folders:
        out = tmp_path / f"{folder.name}-out"
        ran = run("quantize", folder, "--bits", 8, "--group-size", 32, "--to", target, *more, "-o", out, "--json")
        assert ran.code == 0, ran.err
        report = ran.json
        errors = {t["name"]: (t["mse"], t["scheme"]) for t in report["tensors"]}
        found.append((tensors_of(out), errors, json.loads((out / "config.json").read_text()), report["decoded_from"]))
    assert found[0][:3] == found[1][:3]
    assert [f[3] for f in found] == ["FP8 blocks of 32x32 (4 tensors, decoded to bfloat16)", ""]


def test_shards_are_those_of_the_source_in_bytes(folders: tuple[Path, Path]) -> None:
    """Shares add up to the source, so that documents of files that are cut otherwise do too."""
    with float_source(str(folders[0]), Reading(), say=print) as source:
        assert [i.name for i in source.infos() if i.name in NAMES] == NAMES
        whole = sum(f.size for f in source.files())
        assert sum(shard.share for shard in source.shards.values()) == whole
        headers = sum(s.read(0, 8)[0] + (s.read(0, 8)[1] << 8) + 8 for s in source.files())
        assert sum(source.stored_bytes()) == whole - headers


def test_it_resumes(folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantcli.folders import write
    from quantcli.passes import quantize

    out, expected = tmp_path / "out", tmp_path / "expected"
    assert run("quantize", folders[0], "--bits", 4, "--group-size", 32, "-o", expected).code == 0
    made, calls = quantize.write_part, list[int]()

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if calls:
            raise QuantcliError("stopped")
        calls.append(1)
        return made(*arguments, **options)

    monkeypatch.setattr(write, "write_part", interrupted)
    assert run("quantize", folders[0], "--bits", 4, "--group-size", 32, "-o", out).code != 0
    monkeypatch.undo()
    ran = run("quantize", folders[0], "--bits", 4, "--group-size", 32, "-o", out, "--resume")
    assert ran.code == 0 and "resumed after 1 finished file" in ran.err
    assert tensors_of(out) == tensors_of(expected)


def test_plan_and_sweep_measure_the_decoded_weights(folders: tuple[Path, Path]) -> None:
    for words in (
        ["sweep", "--bits", "4", "--group-size", "32"],
        ["plan", "--target-bpw", "6", "--group-size", "32"],
    ):
        documents = []
        for folder in folders:
            ran = run(words[0], folder, *words[1:], "--json")
            assert ran.code == 0, ran.err
            documents.append(re.findall(r'"(?:\w*sqnr_db|bytes_out|scheme)": [^,}]*', json.dumps(ran.json)))
        assert documents[0] == documents[1] and len(documents[0]) > 3


def test_codes_of_integers_are_decoded_on_request(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """The report has both errors: that of the new codes, and what the old ones had cost where their file says."""
    once, twice = tmp_path / "w8.safetensors", tmp_path / "w4.safetensors"
    first = run("quantize", folders[1], "--bits", 8, "--to", "native", "--group-size", 32, "-o", once, "--json").json
    line = one_line(run("quantize", once, "--bits", 4, "-o", twice), 1)
    assert (
        "this model is quantized already, quantcli: w8g32 (4 tensors, decoded to bfloat16)" in line
        and "--requantize" in line
    )
    ran = run("quantize", once, "--bits", 4, "--group-size", 32, "-o", twice, "--requantize", "--json")
    assert ran.code == 0, ran.err
    before = {t["name"]: t["sqnr_db"] for t in first["tensors"]}
    for tensor in ran.json["tensors"]:
        if tensor["name"] in NAMES:
            assert tensor["source_scheme"] == "w8g32" and tensor["source_sqnr_db"] == before[tensor["name"]] > 40
            assert 15 < tensor["sqnr_db"] < 25
    report = quantize_file(once, tmp_path / "api.safetensors", bits=4, group_size=32, requantize=True)
    assert report.decoded_from and (tmp_path / "api.safetensors").read_bytes() == twice.read_bytes()
    unknown = "what its codes had cost is not stored"
    words = ["--bits", 4, "--group-size", 32, "--requantize", "--dry-run"]
    assert unknown not in run("quantize", once, *words).out
    assert unknown not in run("quantize", folders[1], *words).out
    awq = tmp_path / "awq.safetensors"  # which holds no errors
    assert run("quantize", folders[1], "--bits", 4, "--group-size", 32, "--to", "awq", "-o", awq, "-q").code == 0
    assert unknown in run("quantize", awq, *words).out


def test_pipes_of_codes_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out, shard = tmp_path / "x.safetensors", (folders[0] / "model-00001-of-00003.safetensors").read_bytes()
    words = command("quantize", "-", "-o", out)
    ran = subprocess.run(words, input=shard, capture_output=True, env=environment())
    assert ran.returncode == 1 and b"decoding must seek, and standard input is a pipe" in ran.stderr
    assert not out.exists()


def test_a_wrapper_passes_on_what_a_pipe_frees(tmp_path: Path) -> None:
    """Else the whole of a pipe stays in memory."""
    passed: list[tuple[str, int, int]] = []
    with closing(open_source(str(save(tmp_path / "m.safetensors", {"a": np.ones((4, 4), np.float32)})))) as source:
        source.passed = lambda *call: passed.append(call)  # type: ignore[method-assign]
        Derived(source, [unchanged(source, source.infos()[0], "b")]).passed("b", 0, 64)
    assert passed == [("a", 0, 64)]
    own = {name for name in vars(Derived) if not name.startswith("_")}
    assert {"read", "read_runs", "passed", "release", "files", "inputs", "beside", "shards", "close"} <= own


def test_an_export_is_read_beside_the_config_of_its_model(tmp_path: Path) -> None:
    """Its header says what that leaves open."""
    source = save(tmp_path / "m.safetensors", {"a.weight": gaussian(64, 64)})
    out = tmp_path / "q.safetensors"
    assert run("quantize", source, "--to", "gptq", "--group-size", 32, "-o", out, "-q").code == 0
    alone = run("dequantize", out, "-o", tmp_path / "alone.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    beside = run("dequantize", out, "-o", tmp_path / "beside.safetensors")
    assert alone.code == beside.code == 0, beside.err
    assert load(tmp_path / "alone.safetensors") == load(tmp_path / "beside.safetensors")


def test_a_broken_config_beside_a_single_file_is_not_read(tmp_path: Path) -> None:
    codes, scale, _ = as_blocks(gaussian(64, 96))
    source = save(tmp_path / "m.safetensors", {"a.weight": codes, "a.weight_scale_inv": scale})
    (tmp_path / "config.json").write_text("{")
    assert run("quantize", source, "-o", tmp_path / "out.safetensors", "--group-size", 32).code == 0
