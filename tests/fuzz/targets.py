"""What is fuzzed: every file that quantcli reads, the commands that read it, and what may come of them.

A command may do its work, or refuse in one line. A finding is anything else: an error that is not a QuantcliError, a
warning, an exit code 0 with an output that does not load. See run.py for limits of time and memory.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from fuzz import roundtrip
from fuzz.mutate import Mutator, as_json, as_safetensors, as_zip, damaged, sealed
from gguf_parts import architecture, raw_gguf, raw_key, text
from gguf_parts import f32 as gguf_f32
from making import GOLDEN_FILES, ROOT, load, npy_bytes, save, zip_bytes
from strategies import gaussian

from quantcli.cli import _run, _usage
from quantcli.errors import QuantcliError

LARGEST = 40_000
"""Bytes of a seed at most: larger ones take long, and little of them is looked at."""

LAYER = "model.layers.0.mlp.up_proj.weight"


@dataclass(frozen=True, slots=True)
class Target:
    """A file that is fuzzed."""

    file: str
    """Its name; the folder of the work is the current one."""
    how: Mutator
    """What changes it."""
    seeds: Callable[[], Iterable[bytes]]
    commands: tuple[str, ...]
    """Command lines; what they write is called `out` and something."""
    beside: Callable[[], None] = lambda: None
    """Writes what else the commands read."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What went wrong."""

    name: str
    """The kind of error and its place in the code, the same for all inputs that meet it."""
    details: str


def files(*patterns: str) -> list[bytes]:
    """Files below tests/golden that are small enough for a seed."""
    found = sorted(p for pattern in patterns for p in GOLDEN_FILES.glob(pattern) if p.is_file())
    return [p.read_bytes() for p in found if p.stat().st_size <= LARGEST]


def _printed(command: str) -> bytes:
    """What a command prints that must succeed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        _run(command.split())
    return printed.getvalue().encode()


def _model() -> None:
    values = {LAYER: gaussian(16, 64), "model.layers.0.mlp.down_proj.weight": gaussian(64, 32, seed=1),
              "conv.weight": gaussian(8, 4, 3, 3, seed=2), "norm.weight": gaussian(64, seed=3)}  # fmt: skip
    save(Path("model.safetensors"), values)


def _quantized() -> None:
    _model()
    _printed("quantize model.safetensors -o q.safetensors --no-default-keep -q --force --group-size 32")


def _shards() -> None:
    Path("m").mkdir(exist_ok=True)
    for path in (GOLDEN_FILES / "gguf" / "model").iterdir():
        shutil.copy(path, "m")
    source = load(Path("m/model.safetensors"))
    Path("m/model.safetensors").unlink()
    arrays, names = {k: v.array for k, v in source.items()}, sorted(source)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        save(Path(f"m/model-0000{number}-of-00002.safetensors"), {name: arrays[name] for name in part})
    where = {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(names)}
    index = {"metadata": {"total_size": sum(len(v.data) for v in source.values())}, "weight_map": where}
    Path("m/model.safetensors.index.json").write_text(json.dumps(index))


def _folder() -> None:
    shutil.copytree(GOLDEN_FILES / "gguf" / "model", "m", dirs_exist_ok=True)


def _adapter() -> None:
    shutil.copytree(GOLDEN_FILES / "lora" / "plain", "lora", dirs_exist_ok=True)


def _report() -> bytes:
    """A JSON report, which is what a baseline is."""
    _quantized()
    return _printed("report q.safetensors --json")


def _imatrix() -> list[bytes]:
    kind = raw_key("general.type", 8, text("imatrix"))
    names = ("blk.0.ffn_up.weight", "blk.0.ffn_down.weight")
    tensors = [gguf_f32(f"{name}.in_sum2", np.abs(gaussian(1, n)) * 64) for name, n in zip(names, (64, 32))]
    tensors += [gguf_f32(f"{name}.counts", np.full((1, 1), 64.0)) for name in names]
    return [raw_gguf([kind], tensors)]


def _legacy() -> list[bytes]:
    def entry(name: str, cols: int) -> bytes:
        numbers = np.array([4, cols], "<i4").tobytes() + np.ones(cols, "<f4").tobytes()
        return len(name).to_bytes(4, "little") + name.encode() + numbers

    entries = entry("blk.0.ffn_up.weight", 64) + entry("blk.0.ffn_down.weight", 32)
    return [(2).to_bytes(4, "little") + entries + tail for tail in (b"", np.array([512, 4], "<i4").tobytes() + b"text")]


def _statistics() -> list[bytes]:
    found = []
    for full in (False, True):
        entries: dict[str, np.ndarray] = {}
        for name, cols in ((LAYER, 64), ("model.layers.0.mlp.down_proj", 32), ("conv.weight", 36)):
            x = gaussian(99, cols, seed=5)
            second = x.T @ x / 99
            entries |= {f"{name}.second": second if full else second.diagonal().copy(), f"{name}.count": np.array(99),
                        f"{name}.mean": x.mean(axis=0)}  # fmt: skip
        found.append(save(Path("seed.safetensors"), entries, {"quantcli_statistics": "1"}).read_bytes())
    return found


def _importances() -> list[bytes]:
    entries = {LAYER: np.abs(gaussian(64)), "model.layers.0.mlp.down_proj": np.ones(32), "conv.weight": np.ones(4)}
    return [save(Path("seed.safetensors"), entries).read_bytes()]


def _arrays() -> list[bytes]:
    kinds = ["<f4", ">f4", "<f2", "<f8", "<i4", "?", "<c8"]
    arrays = [gaussian(8, 36).astype(kind) for kind in kinds]
    return [npy_bytes(a) for a in [*arrays, np.asfortranarray(gaussian(8, 36)), gaussian(4, 3, 3, 3), gaussian(40)[0]]]


def _archives() -> list[bytes]:
    some = _arrays()
    members = [(f"{n}.weight.npy", a) for n, a in zip("abcdefgh", some)]
    return [zip_bytes(members[:3]), zip_bytes(members), zip_bytes([("w.npy", some[0])], 8)]


def _recipes() -> list[bytes]:
    from golden.models import RECIPE

    presets = [p.read_bytes() for p in sorted((ROOT / "quantcli" / "planning" / "presets").glob("*.yaml"))]
    scheme = "default: {scheme: FP8_DYNAMIC}\nto: compressed-tensors\nrules:\n  - {match: '*', keep: true}\n"
    more = "default: {bits: 4, format: codebook, codebook: [-1, 0, 1], calibration: mse, options: {norm: 2.4}}\n"
    return [*presets, RECIPE.encode(), scheme.encode(), more.encode(), b"default: {bits: 4}\n"]


def _gates() -> list[bytes]:
    return [
        b"gates: {min_sqnr: 20, max_bpw: 6, max_size: 30kB, min_coverage: 95%}\nfiles: [q.safetensors]\n",
        b"models:\n  - file: q.safetensors\n    against: model.safetensors\n    gates: {min_sqnr: 2}\n",
        b"file: q.safetensors\nlike: q.safetensors\nbaseline: b.json\ngates:\n  max_regression: 1\n  max_mse: 1e-3\n",
        b"output: {json: out.json, html: out.html}\nfiles: ['*.safetensors']\nagainst: model.safetensors\n",
    ]


def _configs() -> list[bytes]:
    found = files("gguf/model/config.json", "native/*/folder*/config.json", "lora/*/base/config.json")
    sample = json.loads((ROOT / "sample_models" / "tiny-llama" / "config.json").read_text())
    groups = {"g": {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True},
                    "targets": ["Linear"]}}  # fmt: skip
    for method in (
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups, "ignore": ["a"]},
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True},
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
        {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}, {"quant_method": "mxfp4"},
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1}}},
    ):  # fmt: skip
        found.append(json.dumps(sample | {"quantization_config": method}).encode())
    found.append(json.dumps(sample | {"quantization": {"group_size": 64, "bits": 4}}).encode())
    return found


TARGETS = {
    "safetensors": Target("x.safetensors", as_safetensors, lambda: files("layouts/*4*", "exports/*", "named/*"),
        ("inspect x.safetensors --stats", "quantize x.safetensors -o out.safetensors --group-size 16 -q",
         "dequantize x.safetensors -o outd.safetensors -q")),
    "layouts": Target("x.safetensors", as_safetensors, lambda: files("layouts/*", "decoded/*"),
        ("inspect x.safetensors", "dequantize x.safetensors -o out.safetensors -q", "verify x.safetensors",
         "export x.safetensors --to native -o oute.safetensors -q",
         "quantize x.safetensors --requantize -o outq.safetensors --group-size 16 -q")),
    "npy": Target("x.npy", damaged, _arrays,
        ("inspect x.npy --stats", "quantize x.npy -o out.safetensors --group-size 16 --no-default-keep -q")),
    "npz": Target("x.npz", as_zip, _archives,
        ("inspect x.npz --stats", "quantize x.npz -o out.safetensors --group-size 16 --no-default-keep -q")),
    "index": Target("m/model.safetensors.index.json", as_json,
        lambda: [Path("m/model.safetensors.index.json").read_bytes()],
        ("inspect m", "quantize m -o out --force -q --group-size 32", "quantize m --to gguf -o out.gguf -q"), _shards),
    "config": Target("m/config.json", as_json, _configs,
        ("inspect m", "quantize m -o out -q --group-size 32 --force", "quantize m --to gguf -o out.gguf -q",
         "quantize m --to mlx -o outm -q --group-size 32 --force", "quantize m --to bnb-nf4 -o outb -q --force",
         "quantize m --target-bpw 6 --dry-run -q"), _folder),
    "tokenizer": Target("m/tokenizer.json", as_json, lambda: files("gguf/model/tokenizer.json"),
        ("quantize m --to gguf -o out.gguf -q",), _folder),
    "lora": Target("lora/adapter/adapter_config.json", as_json, lambda: files("lora/*/adapter/adapter_config.json"),
        ("quantize lora/base --lora lora/adapter -o out -q --group-size 16 --force",), _adapter),
    "adapter": Target("lora/adapter/adapter_model.safetensors", as_safetensors,
        lambda: files("lora/*/adapter/adapter_model.safetensors"),
        ("quantize lora/base --lora lora/adapter -o out -q --group-size 16 --force",), _adapter),
    "recipe": Target("r.yaml", damaged, _recipes,
        ("quantize model.safetensors --recipe r.yaml -o out.safetensors -q",
         "quantize model.safetensors --recipe r.yaml --dry-run"), _model),
    "gates": Target("quantcli.yaml", damaged, _gates,
        ("report --config quantcli.yaml", "report q.safetensors"), _quantized),
    "baseline": Target("b.json", as_json, lambda: [_report()],
        ("report q.safetensors --baseline b.json --max-regression 1 --format markdown",), _quantized),
    "statistics": Target("s.safetensors", as_safetensors, _statistics,
        ("quantize model.safetensors --statistics s.safetensors -o out.safetensors -q --group-size 32",
         "quantize model.safetensors --importance s.safetensors -o outi.safetensors -q --group-size 32"), _model),
    "importances": Target("i.safetensors", as_safetensors, _importances,
        ("quantize model.safetensors --importance i.safetensors -o out.safetensors -q --bits 3",), _model),
    "imatrix": Target("i.gguf", damaged, _imatrix,
        ("quantize model.safetensors --importance i.gguf -o out.safetensors -q --bits 3",), _model),
    "imatrix-dat": Target("i.dat", damaged, _legacy,
        ("quantize model.safetensors --importance i.dat -o out.safetensors -q --bits 3",), _model),
    "gguf": Target("x.gguf", damaged,
        lambda: [*files("gguf/*.gguf"), raw_gguf(architecture(), [gguf_f32("blk.0.attn_q.weight", gaussian(32, 64))])],
        ("inspect x.gguf --stats", "dequantize x.gguf -o out.safetensors -q",
         "quantize x.gguf --requantize -o outq.gguf -q", "export x.gguf --to native -o oute.safetensors -q")),
    "onnx": Target("x.onnx", damaged, lambda: files("onnx/*.onnx"),
        ("inspect x.onnx --stats", "quantize x.onnx -o out.onnx -q --group-size 32 --requantize",
         "dequantize x.onnx -o outd.safetensors -q")),
    "torch": Target("x.pt", as_zip, lambda: files("torch/*.pt", "torch/*.ckpt"),
        ("inspect x.pt --stats", "quantize x.pt -o out.safetensors --group-size 16 --no-default-keep -q")),
    "native": Target("x.safetensors", sealed,
        lambda: files("native/0.3*/*.safetensors", "native/0.1.0/*g32*.safetensors"),
        ("inspect x.safetensors --stats", "inspect x.safetensors --recipe", "report x.safetensors --theory",
         "verify x.safetensors", "dequantize x.safetensors -o out.safetensors -q",
         "export x.safetensors --to compressed-tensors -o oute.safetensors -q", "compare x.safetensors x.safetensors")),
    "roundtrip": Target("case", damaged, roundtrip.seeds, ()),
    "statement": Target("s.json", as_json, lambda: [_statement()],
        ("verify q.safetensors --statement s.json",), _quantized),
}  # fmt: skip


def _statement() -> bytes:
    _quantized()
    _printed("attest q.safetensors --source model.safetensors -o s.json")
    return Path("s.json").read_bytes()


def outcome(words: list[str]) -> int | Finding:
    """The exit code of a command, or what went wrong. Warnings are errors: a user would see them."""
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            warnings.simplefilter("error")
            _run(words)
    except click.exceptions.Exit as done:
        return done.exit_code
    except SystemExit as done:
        return int(done.code or 0)
    except QuantcliError as error:
        return error.exit_code if str(error).isprintable() else Finding("control-characters", repr(str(error)))
    except click.ClickException as error:
        return 2 if _usage(error).isprintable() else Finding("control-characters", _usage(error))
    except OSError as error:
        return 1 if error.filename else _found(error, words)
    except Exception as error:
        return _found(error, words)
    unprintable = [c for c in printed.getvalue() if c != "\n" and not c.isprintable()]
    return Finding("control-characters-printed", repr(printed.getvalue())) if unprintable else 0


def _found(error: BaseException, words: list[str]) -> Finding:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/quantcli/" in f.filename]
    at = f"{Path(frames[-1].filename).stem}.{frames[-1].name}" if frames else "nowhere"
    return Finding(f"{type(error).__name__}-{at}", " ".join(words) + "\n" + "".join(traceback.format_exception(error)))


def _loads(words: list[str]) -> Finding | None:
    """What is wrong with an output: readers of the format itself, and our own, must take it."""
    out = Path(words[words.index("-o") + 1])
    try:
        for path in [out] if out.suffix == ".safetensors" else out.glob("*.safetensors"):
            load(path)
    except Exception as error:
        return Finding(f"unreadable-{words[0]}", f"{' '.join(words)}\n{error}")
    code = outcome(["inspect", str(out)])
    return None if code == 0 else Finding(f"not-read-again-{words[0]}", f"{' '.join(words)}\n{code}")


def _round_trip(data: bytes) -> Finding | None:
    """What goes wrong with an array and a scheme."""
    array, words = roundtrip.save_case(data)
    took = outcome(words)
    if isinstance(took, Finding):
        return took
    wrong = roundtrip.wrong(array, Path("out.safetensors")) if took == 0 else None
    return None if wrong is None else Finding("round-trip-" + wrong.split()[0], f"{' '.join(words)}\n{wrong}")


def trial(target: Target, data: bytes) -> Finding | None:
    """What goes wrong with an input; None when nothing does."""
    if not target.commands:
        return _round_trip(data)
    Path(target.file).write_bytes(data)
    for command in target.commands:
        words = command.split()
        took = outcome(words if words[0] == "inspect" else [*words, "--threads", "1"])
        if isinstance(took, Finding):
            return took
        if took == 0 and "-o" in words and (wrong := _loads(words)) is not None:
            return wrong
        if "-o" in words:
            out = Path(words[words.index("-o") + 1])
            shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    return None
