"""The command line: exit codes, one-line errors, documents, and what happens when the world goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import (
    BF16,
    command,
    environment,
    left_behind,
    load,
    one_line,
    raw_file,
    raw_tensors,
    run,
    run_process,
    save,
    sparse_model,
)
from strategies import gaussian

from quantcli import interrupts, library, registry
from quantcli.cli import _bar
from quantcli.kernels import numpy_kernels

COMMANDS = [name for name in registry.names("cli") if name != "options"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model.safetensors", {
        "layers.0.up.weight": gaussian(64, 128, seed=1), "layers.0.down.weight": gaussian(128, 64, seed=2).astype(BF16),
        "norm.weight": gaussian(64), "embed.weight": gaussian(40, 64), "ids": np.arange(7)})  # fmt: skip


# ---- help and versions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(name: str, flag: str) -> None:
    ran = run(name, flag)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"Usage: quantcli {name}")


def test_the_program_by_itself() -> None:
    for arguments in ((), ("--help",), ("-h",)):
        ran = run(*arguments)
        assert (ran.code, ran.err) == (0, "")
        assert all(name in ran.out for name in COMMANDS)
    assert run("--version").out.startswith("quantcli 0")


def test_as_a_module() -> None:
    ran = run_process("--version", QUANTCLI_KERNELS="numpy")
    assert (ran.code, ran.err) == (0, "") and "(numpy kernels)" in ran.out


def test_a_long_job_with_slow_kernels_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = model.with_name("out.safetensors")
    monkeypatch.setenv("QUANTCLI_KERNELS", "numpy")
    monkeypatch.setitem(sys.modules, "quantcli.kernels.numpy_kernels", numpy_kernels)
    line = "quantcli: QUANTCLI_KERNELS=numpy: about 5 times slower; see 'quantcli help install'\n"
    assert line not in run("quantize", model, "-o", out, "--force").err
    monkeypatch.setattr(_bar.Bar, "LONG", 0.0)
    assert line in run("quantize", model, "-o", out, "--force").err
    assert line not in run("quantize", model, "-o", out, "--force", "-q").err
    monkeypatch.delenv("QUANTCLI_KERNELS")
    monkeypatch.setattr(library, "opened", lambda: None)
    assert "quantcli: no native kernels: about 5 times slower" in run("quantize", model, "-o", out, "--force").err


def test_the_option_that_was_typed_is_named(model: Path) -> None:
    """An error about a scheme names the option that asked for it, or the key and line of a recipe that did."""
    Path(model.parent / "r.yaml").write_text("default:\n  bits: 0\n")
    recipe = str(model.parent / "r.yaml")
    for words, start in (
        ("--bits 0", "--bits: 0 is not a whole number from 1 to 16"),
        ("--levels 1", "--levels: 1 is not"),
        ("--axis 99 --granularity channel", "--axis: 99 is not"),
        ("--mse-norm 99", "--mse-norm: 99 is not a number"),
        ("--percentile 200", "--percentile: 200 is not a number from 50 to 100"),
        ("--percentile 99 --bits 1", "--percentile: percentile is not for one symmetric bit"),
        ("--scale-dtype float8_e4m3", "--scale-dtype: "),
        ("--calibration mean-abs", "--calibration: "),
        ("--type nf4 --bits 8", "--bits: nf4 has 4 bits"),
        ("--type nf4 --asymmetric", "--asymmetric: nf4 is"),
        ("--grid restricted --asymmetric", "--grid: "),
        ("--rounding sum-preserving --bits 1", "--rounding: "),
        ("--calibration minmax --effort best", "--effort: minmax has no such option"),
        ("--calibration auto --effort best", "--effort: auto takes no options"),
        ("--recipe llm --bits 0", "--bits: 0 is not"),
        (f"--recipe {recipe} --bits 99", "--bits: 99 is not"),
        (f"--recipe {recipe}", f"{recipe}: line 2, column 3: default: bits: 0 is not"),
        ("--override *.up:bits=0", "--override *.up:bits=0: bits: 0 is not"),
    ):
        assert one_line(run("quantize", model, *words.split()), 2).startswith(start), words
    for name, words, start in (
        ("sweep", "--bits 0", "--bits: 0 is not"),
        ("sweep", "--calibration mean-abs", "--calibration: mean-abs"),
        ("plan", "--target-bpw 5 --bits 4,99", "--bits: 99 is not"),
        ("plan", "--target-bpw 5 --calibration mean-abs", "--calibration: mean-abs"),
        ("plan", f"--target-bpw 5 --recipe {recipe}", f"{recipe}: line 2, column 3: default: bits: 0"),
    ):
        assert one_line(run(name, model, *words.split()), 2).startswith(start), (name, words)


def test_choices_stand_in_one_clean_line() -> None:
    line = one_line(run("export", "x.safetensors"), 2)
    assert line.startswith("missing option '--to'. Choose from: awq, bnb-nf4, comfyui, ") and "\\" not in line
    for option in ("--to", "--calibration", "--type"):
        line = one_line(run("quantize", "x.safetensors", option, "y"), 2)
        assert line.startswith(f"invalid value for '{option}': 'y' is not one of '") and "\\" not in line
    assert one_line(run("quantize", "x.safetensors", "--to"), 2) == "option '--to' requires an argument"


def test_outputs_are_named_by_their_recipe(model: Path) -> None:
    """Two recipes for one model do not write to one name."""
    (model.parent / "my.recipe.yaml").write_text("default: {bits: 5}")
    for recipe, stem in (("llm", "model-llm"), ("cnn", "model-cnn"), ("my.recipe.yaml", "model-my.recipe")):
        path = recipe if "." not in recipe else model.parent / recipe
        assert run("quantize", model, "--recipe", path, "-q").code == 0
        assert (model.parent / f"{stem}.safetensors").is_file()
    assert run("quantize", model, "--recipe", "llm", "--to", "gguf", "--container", "-q").code == 0
    assert (model.parent / "model-llm.gguf").is_file()


# ---- bad requests -----------------------------------------------------------------------------------------------

BAD_REQUESTS: list[tuple[list[str], str]] = [
    (["quantise"], "did you mean 'quantize'?"),
    (["frobnicate"], "no command 'frobnicate'"),
    (["--frobnicate"], "no such option"),
    (["quantize"], "missing argument 'SRC'"),
    (["quantize", "MODEL", "extra"], "unexpected extra argument"),
    (["quantize", "MODEL", "--frobnicate"], "no such option"),
    (["quantize", "MODEL", "--bits"], "--bits"),
    (["quantize", "MODEL", "--bits", "four"], "--bits"),
    (["quantize", "MODEL", "--bits", "0"], "--bits: 0"),
    (["quantize", "MODEL", "--bits", "17"], "--bits: 17"),
    (["quantize", "MODEL", "--bits", "-4"], "--bits: -4"),
    (["quantize", "MODEL", "--bits", "4.5"], "--bits"),
    (["quantize", "MODEL", "--group-size", "-2"], "--group-size: -2"),
    (["quantize", "MODEL", "--group-size", "0", "--granularity", "channel"], "0 means tensor, not channel"),
    (["quantize", "MODEL", "--group-size", "32", "--granularity", "tensor"], "--group-size: only"),
    (["quantize", "MODEL", "--granularity", "row"], "--granularity"),
    (["quantize", "MODEL", "--axis", "1"], "--axis: an axis needs --granularity channel"),
    (["quantize", "MODEL", "--axis", "1", "--group-size", "32"], "axis"),
    (["quantize", "MODEL", "--axis", "7", "--granularity", "channel"], "a tensor of 2 dimensions has no axis 7"),
    (["quantize", "MODEL", "--zero-point", "float"], "--zero-point: "),
    (["quantize", "MODEL", "--grid", "restricted", "--asymmetric"], "grid"),
    (["quantize", "MODEL", "--calibration", "psychic"], "--calibration"),
    (["quantize", "MODEL", "--calibration", "mean-abs"], "calibration"),
    (["quantize", "MODEL", "--calibration", "signed-extreme", "--asymmetric"], "calibration"),
    (["quantize", "MODEL", "--type", "nf5"], "--type"),
    (["quantize", "MODEL", "--scale-dtype", "float64"], "--scale-dtype"),
    (["quantize", "MODEL", "--threads", "0"], "--threads"),
    (["quantize", "MODEL", "--threads", "many"], "--threads"),
    (["quantize", "MODEL", "--digest", "md5"], "--digest"),
    (["quantize", "MODEL", "--on-nonfinite", "zero"], "--on-nonfinite"),
    (["quantize", "MODEL", "--color", "mauve"], "--color"),
    (["quantize", "MODEL", "--include", "*.upp"], "--include: '*.upp' matches no tensor; near it: "),
    (["quantize", "MODEL", "--exclude", "*.upp"], "--exclude: '*.upp' matches no tensor"),
    (["quantize", "MODEL", "--include", "re:("], "is not a regular expression"),
    (["quantize", "MODEL", "--include", "re:(a+)+"], "use a simpler expression"),
    (["quantize", "MODEL", "--include", ""], "--include"),
    (["quantize", "MODEL", "-o", ""], "empty file name"),
    (["quantize", "MODEL", "-o", "-", "--json"], "standard output is for the file"),
    (["quantize", "-"], "the output needs a name"),
    (["quantize", ""], "empty file name"),
    (["quantize", "MODEL", "-o", "MODEL"], "same file"),
    (["dequantize", "MODEL", "--dtype", "int8"], "--dtype"),
    (["report"], "no file to report on; name one, or list models in quantcli.yaml"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), BAD_REQUESTS, ids=[" ".join(a) for a, _ in BAD_REQUESTS])
def test_requests_that_cannot_be_meant(arguments: list[str], words: str, model: Path) -> None:
    """Exit code 2, one line, and nothing written."""
    line = one_line(run(*(str(model) if a == "MODEL" else a for a in arguments)), 2)
    assert words.lower() in line.lower()
    assert os.listdir(model.parent) == ["model.safetensors"]


BAD_FILES: list[tuple[str, bytes | None, str]] = [
    ("missing.safetensors", None, "no such file or directory"),
    ("text.safetensors", b"hello, this is no model", "not a safetensors file"),
    ("empty.safetensors", b"", "a file of 0 bytes"),
    ("pickle.bin", b"\x80\x04\x95" + bytes(50), "pickle"),
    ("model.gguf", b"GGUF" + bytes(50), "GGUF"),
    ("model.eqx", b"\x93NUMPY\x01\x00v\x00{", "a NumPy array, whose name must end in .npy, or several"),
    ("model.npy", b"hello", "not a NumPy array file"),
    ("model.npz", b"hello", "not a .npz file"),
    ("model.json", b"{}", "no weight_map"),
    ("nan.safetensors", raw_tensors({"w": ("F32", (64, 64), b"\xff" * 16384)}), "4096 NaN or infinite"),
    ("ints.safetensors", raw_tensors({"w": ("I32", (64, 64), bytes(16384))}), "nothing to quantize"),
    ("evil\x1b[2J\nname.safetensors", b"hello", "\\x1b[2J\\n"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "words"), BAD_FILES, ids=[repr(n) for n, _, _ in BAD_FILES])
def test_files_that_cannot_be_quantized(name: str, data: bytes | None, words: str, tmp_path: Path) -> None:
    """Exit code 1; `report` says 2 for whatever kept it from measuring."""
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    assert words in one_line(run("quantize", path), 1)
    assert os.listdir(tmp_path) == ([name] if data is not None else [])
    one_line(run("dequantize", path), 1)
    one_line(run("report", path), 2)
    one_line(run("report", save(tmp_path / "m.safetensors", {"a": np.ones(3)}), "--against", path), 2)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    ran = run_process("quantize", tmp_path / "missing", "--debug")
    assert ran.code != 0 and "Traceback" in ran.err and "no such file" in ran.err


def test_a_bug_is_said_to_be_one(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantcli.planning import plan

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr(plan, "make", broken)
    ran = run("quantize", model)
    assert ran.code == 70 and ran.out == ""
    assert ran.err == "quantcli: internal error, please report it: ZeroDivisionError: oh\\nno; --debug shows where\n"
    monkeypatch.setattr(plan, "make", lambda *_: (_ for _ in ()).throw(MemoryError))
    assert "not enough memory" in one_line(run("quantize", model), 1)


# ---- documents --------------------------------------------------------------------------------------------------

SUMMARY = {
    "parameters", "coverage", "bits_per_weight", "mse", "nmse", "sqnr_db", "bytes_in", "bytes_out", "ratio", "seconds",
}  # fmt: skip
TENSOR = {
    "name", "dtype", "shape", "disposition", "reason", "bits", "granularity", "group_size", "symmetric", "calibration",
    "mse", "nmse", "sqnr_db", "max_abs_error", "clipped_fraction", "bits_per_weight", "bytes_in", "bytes_out",
}  # fmt: skip


def check_document(document: Any) -> None:
    assert document["schema_version"] == 1
    assert set(document["summary"]) >= SUMMARY
    for tensor in document["tensors"]:
        assert set(tensor) >= TENSOR
        assert tensor["disposition"] in ("quantized", "kept")
        quantized = tensor["disposition"] == "quantized"
        for key in ("bits", "granularity", "symmetric", "calibration", "mse", "max_abs_error", "clipped_fraction"):
            assert (tensor[key] is not None) == quantized, key
    summary = document["summary"]
    assert summary["parameters"] == sum(int(np.prod(t["shape"])) for t in document["tensors"])


def test_documents_of_quantize_and_report(model: Path) -> None:
    out = model.parent / "out.safetensors"
    ran = run("quantize", model, "-o", out, "--json")
    assert (ran.code, ran.err) == (0, "")
    check_document(ran.json)
    assert ran.json["output"] == str(out) and ran.json["source"] == str(model)
    summary = ran.json["summary"]
    assert summary["bytes_in"] == model.stat().st_size and summary["bytes_out"] == out.stat().st_size
    assert summary["coverage"] == pytest.approx(2 * 8192 / (2 * 8192 + 64 + 2560 + 7))
    assert isinstance(summary["seconds"], float) and summary["seconds"] > 0
    for arguments in ((), ("--against", model)):
        report = run("report", out, "--json", *arguments)
        assert (report.code, report.err) == (0, "")
        check_document(report.json)


def test_the_document_of_dequantize(model: Path) -> None:
    out, back = model.parent / "out.safetensors", model.parent / "back.safetensors"
    run("quantize", model, "-o", out)
    found = run("dequantize", out, "-o", back, "--json").json
    assert (found["schema_version"], found["tensors"], found["decoded"]) == (1, 5, 2)
    assert found["bytes_out"] == back.stat().st_size


def test_exact_tensors_have_no_ratio(tmp_path: Path) -> None:
    """JSON has no infinity: an exact reconstruction gives `sqnr_db: null` plus `exact: true`"""
    tensors = {"zeros": np.zeros((64, 64), np.float32), "ones": np.ones((64, 64), np.float32)}
    source = save(tmp_path / "m.safetensors", tensors)
    document = run("quantize", source, "-o", tmp_path / "out.safetensors", "--scale-dtype", "float32", "--json").json
    assert document["tensors"][0]["sqnr_db"] is None and document["tensors"][0]["exact"] is True
    assert document["tensors"][0]["nmse"] == 0
    assert document["summary"]["parameters"] == 8192


def test_results_on_stdout_and_nothing_on_stderr(model: Path) -> None:
    ran = run("quantize", model)
    assert ran.err == ""
    assert "parameters quantized" in ran.out and "layers.0.up.weight" in ran.out
    assert "\x1b" not in ran.out, "no colour when not on a terminal"
    assert run("quantize", model, "-q", "--force").out == ""
    assert "\x1b[" in run("quantize", model, "--force", "--color", "always").out


# ---- dry runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--bits", "3", "--group-size", "32", "--asymmetric"], ["--digest", "none"],
                                   ["--digest", "sha256", "--group-size", "0"], ["--bits", "1"], ["--no-default-keep"],
                                   ["--granularity", "channel", "--axis", "1"]], ids=" ".join)  # fmt: skip
def test_a_dry_run_tells_the_exact_size(flags: list[str], model: Path) -> None:
    """exact sizes, read no weights, write nothing"""
    planned = run("quantize", model, "--dry-run", "--json", *flags)
    assert planned.code == 0 and os.listdir(model.parent) == ["model.safetensors"]
    out = model.parent / "out.safetensors"
    done = run("quantize", model, "-o", out, "--json", *flags).json
    assert planned.json["summary"]["bytes_out"] == out.stat().st_size == done["summary"]["bytes_out"]
    for before, after in zip(planned.json["tensors"], done["tensors"], strict=True):
        for key in ("name", "disposition", "reason", "bytes_in", "bytes_out", "bits_per_weight", "scheme"):
            assert before[key] == after[key]
        assert before["mse"] is None
    assert planned.json["summary"]["sqnr_db"] is None


def test_a_dry_run_reads_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "nan.safetensors"
    path.write_bytes(raw_tensors({"w": ("F32", (64, 64), np.full(4096, np.nan, "<f4").tobytes())}))
    assert run("quantize", path, "--dry-run").code == 0
    # Half a terabyte of holes: it would take minutes to read.
    header = raw_file({"w": {"dtype": "F32", "shape": [1 << 20, 1 << 17], "data_offsets": [0, 1 << 39]}})
    path.write_bytes(header)
    try:
        os.truncate(path, len(header) + (1 << 39))
    except OSError:
        pytest.skip("the file system takes no large sparse files")
    began = time.perf_counter()
    ran = run("quantize", path, "--dry-run", "--json")
    assert ran.code == 0 and time.perf_counter() - began < 5
    assert ran.json["summary"]["parameters"] == 1 << 37
    assert os.listdir(tmp_path) == ["nan.safetensors"]


# ---- hostile names ----------------------------------------------------------------------------------------------

EVIL = [
    "a\x1b[2Jcleared", "b\nquantcli: error: all lost", "c[bold red]markup[/]", "d\u202egnp.exe", "e\x00nul", "f\x9b31m",
    "g\r overwritten", "[/x]", "h" * 5000, "../../etc/passwd", "\u200bzero width", "%s %d {}", "--force",
]  # fmt: skip


def test_names_are_data(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw_tensors({name: ("F32", (40, 40), gaussian(40, 40).tobytes()) for name in EVIL}))
    out = tmp_path / "out.safetensors"
    for arguments in (
        ("quantize", path, "-o", out),
        ("quantize", path, "--dry-run"),
        ("report", out),
        ("report", out, "--against", path),
    ):
        ran = run(*arguments, "--all")
        assert ran.code == 0, ran
        assert all(line.isprintable() for line in ran.out.splitlines()), ran.out
        assert "\x1b" not in ran.out and "[bold red]markup[/]" in ran.out and "\\x1b[2Jcleared" in ran.out
        fresh = ["-o", tmp_path / "o2.safetensors", "--force"] if arguments[0] == "quantize" else []
        coloured = run(*arguments[:2], *fresh, "--all", "--color", "always")
        assert coloured.code == 0 and "[bold red]markup[/]" in coloured.out
        assert "\x1b[2J" not in coloured.out and "\x9b" not in coloured.out and "\u202e" not in coloured.out
    document = run("report", out, "--json")
    assert document.out.isascii()
    assert {t["name"] for t in document.json["tensors"]} == set(EVIL)
    assert run("dequantize", out, "-o", tmp_path / "back.safetensors").code == 0
    assert set(load(tmp_path / "back.safetensors")) == set(EVIL)


@pytest.mark.parametrize("name", [n for n in EVIL if len(n) < 100])
def test_names_in_errors_are_escaped(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw_tensors({name: ("F32", (40, 40), np.full(1600, np.nan, "<f4").tobytes())}))
    assert "1600 NaN" in one_line(run("quantize", path), 1)
    one_line(run("quantize", path, "--include", "nothing like it"), 2)


def test_ascii_terminals(model: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", {"gewicht.größe.重量": gaussian(64, 64)})
    ran = run_process(
        "quantize", path, "-o", tmp_path / "out.safetensors", LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0"
    )
    assert ran.code == 0, ran
    assert "gewicht" in ran.out and ran.out.isascii()


# ---- streams that are closed, full or gone ----------------------------------------------------------------------


def shell(line: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A shell command line in which "$@" is the command."""
    return subprocess.run(["sh", "-c", line, "sh", *command(*arguments)], capture_output=True, text=True,
                          env=environment(), timeout=60, check=False)  # fmt: skip


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_harm_nothing(closed: str, model: Path) -> None:
    """descriptor 1 is not reused for the data file"""
    out = model.parent / "out.safetensors"
    expected = model.parent / "expected.safetensors"
    assert run("quantize", model, "-o", expected).code == 0
    done = shell(f'"$@" {closed}', "quantize", model, "-o", out)
    assert done.returncode in ((0, 1) if ">&-" in closed.replace("2>&-", "") else (0,)), done
    assert "Traceback" not in done.stderr
    assert out.read_bytes() == expected.read_bytes()
    bad = shell(f'"$@" {closed}', "quantize", model.parent / "missing")
    assert bad.returncode == 1 and "Traceback" not in bad.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_full_stdout_is_an_error(flags: list[str], model: Path) -> None:
    """full stdout fails the run when output was asked for, never harms the file"""
    out = model.parent / "out.safetensors"
    done = shell('"$@" > /dev/full', "quantize", model, "-o", out, *flags)
    assert done.returncode == 1
    assert done.stderr == "quantcli: standard output: no space left on device\n"
    assert "layers.0.up.weight_packed" in load(out)
    assert left_behind(model.parent) == []
    assert shell('"$@" > /dev/full', "report", out, *flags).returncode == 2
    assert shell('"$@" > /dev/full', "--help").returncode == 1
    assert shell('"$@" > /dev/full', "quantize", model, "-q", "--force").returncode == 0
    assert shell('"$@" 2> /dev/full', "quantize", model, "--force").returncode == 0


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_closed_pipe_is_quiet(flags: list[str], tmp_path: Path) -> None:
    """`| head -1`: silent, at once; exit status 141 or -13"""
    many = save(tmp_path / "m.safetensors", {f"layer.{i}.weight": np.ones((2, 2), np.float32) for i in range(5000)})
    process = subprocess.Popen(
        command("quantize", many, "-o", tmp_path / "out.safetensors", "--all", *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) in (-signal.SIGPIPE, 141)
    assert errors == b""
    assert len(load(tmp_path / "out.safetensors")) == 15000


# ---- signals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", interrupts.SIGNALS, ids=lambda s: s.name)
@pytest.mark.parametrize("threads", [1, 2])
def test_signals_leave_nothing_behind(threads: int, number: signal.Signals, tmp_path: Path) -> None:
    """Removed on any error and signal that can be caught; signals by re-raising them."""
    source = sparse_model(tmp_path / "m.safetensors", 1.5)
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    # sha256 and numpy are slow: the signal arrives while there is still much to do.
    flags = ["--force", "--threads", threads, "--digest", "sha256"]
    # Under nohup, where a test may run, SIGHUP is ignored: the tool respects that, so the child starts afresh.
    process = subprocess.Popen(
        command("quantize", source, "-o", out, *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(QUANTCLI_KERNELS="numpy"),
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    give_up = time.monotonic() + 20
    while not left_behind(tmp_path):
        assert process.poll() is None and time.monotonic() < give_up
        time.sleep(0.005)
    time.sleep(0.05)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=30)
    assert process.returncode == -number, errors
    assert (printed, errors) == (b"", b"")
    assert left_behind(tmp_path) == [] and out.read_text() == "precious"


def test_a_run_after_a_kill_is_not_in_the_way(model: Path) -> None:
    """at most one recognisable temporary file after SIGKILL, and a second run succeeds and removes it"""
    (model.parent / ".out.safetensors.quantcli-1234-0badf00d.tmp").write_text("left by a killed run")
    out = model.parent / "out.safetensors"
    assert run("quantize", model, "-o", out).code == 0
    assert left_behind(model.parent) == []
