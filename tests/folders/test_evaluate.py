"""report --like and --eval-command: another model as the baseline, and the user's own evaluation as a gate."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from making import ROOT, environment, measured, one_line, run, save, to
from remote_parts import serving
from strategies import gaussian

import quantcli
from quantcli.folders import command as commands

SAMPLES = ROOT / "sample_models"
DIGITS = SAMPLES / "digits.safetensors"
EVALUATE = f"{sys.executable} {SAMPLES / 'evaluate.py'}"
SCHEMA = json.loads(
    (Path(quantcli.__file__).parent / "reports" / "renderings" / "report.schema.json").read_text(encoding="utf-8")
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    for bits in (3, 4, 8):
        assert run("quantize", DIGITS, "--bits", bits, "-o", f"d{bits}.safetensors", "-q").code == 0
    return tmp_path


def test_another_model_is_a_baseline_like_its_report(place: Path) -> None:
    """The same document as with --baseline and the report of that model, but for its name."""
    assert run("report", "d4.safetensors", "-o", "json=base.json", "-q").code == 0
    words = ["report", "d3.safetensors", "--max-regression", "0.5", "--json"]
    one, other = run(*words, "--baseline", "base.json"), run(*words, "--like", "d4.safetensors")
    assert one.code == other.code == 1
    documents = [
        {**r.json, "summary": None, "comparison": {**r.json["comparison"], "baseline": ""}} for r in (one, other)
    ]
    assert documents[0] == documents[1]
    assert run("report", "d8.safetensors", "--like", "d4.safetensors", "--max-regression", "0").code == 0


def test_another_model_may_be_a_url_in_the_configuration_too(place: Path) -> None:
    words = ["report", "--max-regression", "0.5", "--json"]
    known = run(*words, "d3.safetensors", "--like", "d4.safetensors")
    with serving(place) as served:
        (place / "folder").mkdir()
        entry = f"file: {served.url}/d3.safetensors, like: {served.url}/d4.safetensors"
        (place / "folder" / "q.yaml").write_text(f"models: [{{{entry}}}]\n")
        for ran in (
            run(*words, "d3.safetensors", "--like", f"{served.url}/d4.safetensors"),
            run(*words, "--config", "folder/q.yaml"),
        ):
            assert ran.code == known.code == 1, ran
            assert ran.json["comparison"]["changes"] == known.json["comparison"]["changes"] != []
            assert served.url in ran.json["comparison"]["baseline"]
        (place / "folder" / "q.yaml").write_text("models: [{file: a, statistics: 'https://h/a'}]\n")
        line = one_line(run(*words, "--config", "folder/q.yaml"), 2)
        assert "models[0]: statistics: https://h/a: this must be a file on this machine, not a URL" in line


def test_a_model_of_another_layout_is_measured_against_the_original(place: Path) -> None:
    source = save(
        place / "a.safetensors", {"x.weight": gaussian(128, 256, seed=1), "y.weight": gaussian(128, 256, seed=2)}
    )
    assert run("quantize", source, "--bits", 4, "-o", "w4.safetensors", "-q").code == 0
    assert run("quantize", source, *to("gguf"), "-o", "w4.gguf", "-q").code == 0
    words = ["report", "w4.safetensors", "--like", "w4.gguf", "--max-regression", "3"]
    assert run(*words, "--against", source).code == 0
    ran = run(*words)  # which stores no errors
    assert ran.code == 1 and "not measured" in ran.out


def test_models_of_the_configuration_may_have_one(place: Path) -> None:
    text = "models:\n  - {file: d3.safetensors, like: d4.safetensors, gates: {max_regression: 0.5}}\n"
    Path("quantcli.yaml").write_text(text)
    ran = run("report")
    assert ran.code == 1 and "max-regression failed" in ran.err
    Path("quantcli.yaml").write_text(text.replace("like: d4", "baseline: x.json, like: d4"))
    assert "two things to compare with" in one_line(run("report"), 2)
    line = one_line(run("report", "d3.safetensors", "--like", "d4.safetensors", "--baseline", "d4.json"), 2)
    assert "two things to compare with" in line


def test_the_figure_is_that_of_the_dequantized_model(place: Path) -> None:
    """What the sample model's own script says of the quantized file itself."""
    said = subprocess.run([*EVALUATE.split(), "d3.safetensors"], capture_output=True, text=True, check=True).stdout
    figure = float(said.split("accuracy ")[1].split()[0])
    words = ["report", "d3.safetensors", "--eval-command", EVALUATE, "--eval-pattern", r"accuracy ([\d.]+)"]
    ran = run(*words, "--min-eval", figure + 0.01, "--max-eval", 1, "--json")
    assert ran.code == 1 and ran.json["evaluation"] == figure
    assert [(g["gate"], g["passed"]) for g in ran.json["gates"]] == [("min_eval", False), ("max_eval", True)]
    jsonschema.validate(ran.json, SCHEMA)
    assert f"gate min-eval failed: {figure:.6g}, limit {figure + 0.01:.6g}" in ran.err
    assert "evaluation" not in run("report", "d3.safetensors", "--json").json
    assert list((place / "temporary").iterdir()) == []


def test_a_folder_is_evaluated_as_a_folder(place: Path) -> None:
    assert run("quantize", SAMPLES / "tiny-llama", "--group-size", 64, "-o", "w4", "-q").code == 0
    (place / "count.py").write_text(
        "import json, os, sys\nconfig = json.load(open(os.path.join(sys.argv[1], 'config.json')))\n"
        "assert 'quantization_config' not in config\nprint(sorted(os.listdir(sys.argv[1])), config['hidden_size'])"
    )
    ran = run("report", "w4", "--eval-command", f"{sys.executable} count.py {{}}", "--max-eval", "64")
    assert ran.code == 0 and "passed  max-eval 64: 64" in ran.out


@pytest.mark.parametrize(("printed", "pattern", "figure"), [
    ("1 2 3", None, 3.0),
    ("loss=0.25", None, 0.25),
    ('{"acc": [7, 0.5]}', None, 0.5),
    ("loss 5,", None, 5.0),
    ("a 7\nacc: -1.5e-3\n\n", None, -0.0015),
    ("epoch 1 acc 0.5\nepoch 2 acc 0.75 of 9", r"acc (\S+)", 0.75),
])  # fmt: skip
def test_where_the_figure_is(printed: str, pattern: str | None, figure: float, place: Path) -> None:
    (place / "say.py").write_text(f"print({printed!r})")
    more = ["--eval-pattern", pattern] if pattern else []
    ran = run("report", "d4.safetensors", "--eval-command", f"{sys.executable} say.py", *more, "--json")
    assert ran.json["evaluation"] == figure


def test_commands_that_give_no_figure(place: Path) -> None:
    (place / "look.py").write_text(
        "import os, sys\nassert os.path.getsize(sys.argv[2]) > 100000\nprint(sys.argv[1], 5)"
    )
    ran = run("report", "d4.safetensors", "--eval-command", f"{sys.executable} look.py x {{}}", "--json")
    assert ran.code == 0 and ran.json["evaluation"] == 5
    for command, said in (
        ("false", "exit code 1"),
        ("no-such-program x", "no such program"),
        ("true", "it printed nothing"),
        ("echo a {}x", "no such number"),
        ("echo accuracy 0,95", "no such number, and last: accuracy 0,95 "),
        ("echo 2 1,234.5 {}", "have its last line end in the figure, or give --eval-pattern"),
        ("", "an empty command"),
        ("'", "not a command"),
    ):
        assert said in one_line(run("report", "d4.safetensors", "--eval-command", command), 2), command
    assert "--eval-command" in one_line(run("report", "d4.safetensors", "--min-eval", "1"), 2)
    for pattern in ("(", "a", "(a)(b)"):
        one_line(run("report", "d4.safetensors", "--eval-command", "echo 1", "--eval-pattern", pattern), 2)
    assert run("compare", DIGITS, "d4.safetensors", "--min-eval", "1").code == 2  # which has no such option
    assert list((place / "temporary").iterdir()) == []


def wait_for(path: Path) -> None:
    """Wait until another process has made a file."""
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_only_the_end_of_much_output_is_held(place: Path) -> None:
    """100 MB of lines, of which an anchored pattern must not take half a one: within 24 MiB more than for a line."""
    (place / "say.py").write_text(
        "import sys\nfor _ in range(100):\n    sys.stdout.write(('accuracy 7 ' + 'x' * 989 + '\\n') * 1000)\n"
        "print('accuracy 0.5')\n"
    )
    (place / "short.py").write_text("print('accuracy 0.5')\n")
    words = ["report", "d4.safetensors", "-q", "--eval-pattern", r"^accuracy (\S+)$", "--max-eval", "0.5"]
    used = [measured(*words, "--eval-command", f"{sys.executable} {name}")[1] for name in ("short.py", "say.py")]
    assert used[1] < used[0] + 24


def test_a_program_that_is_not_there_is_refused_before_anything_is_read(place: Path) -> None:
    """The model is not even there."""
    line = one_line(run("report", "none.safetensors", "--eval-command", "no-such-program {}"), 2)
    assert "--eval-command: no-such-program: no such program" in line


def test_the_model_of_a_killed_run_goes_with_the_next(place: Path) -> None:
    """And that of a run that still evaluates does not."""
    room = place / "room"
    room.mkdir()
    words = [sys.executable, "-m", "quantcli", "report", "d4.safetensors", "-q", "--eval-command"]
    (place / "wait.py").write_text("import sys, time\nopen('started', 'w').close()\ntime.sleep(60)\nprint(1)\n")
    runs = []
    for _ in range(2):
        runs.append(subprocess.Popen([*words, f"{sys.executable} wait.py"], env=environment(TMPDIR=str(room))))
        wait_for(place / "started")
        (place / "started").unlink()
    killed, alive = runs
    assert len(list(room.iterdir())) == 2
    killed.kill()
    killed.wait()
    assert subprocess.run([*words, "echo 1"], env=environment(TMPDIR=str(room)), check=False).returncode == 0
    assert [[f.name for f in left.iterdir()] for left in room.iterdir()] == [["d4.safetensors"]]
    alive.terminate()
    alive.wait()
    assert list(room.iterdir()) == []


def test_an_evaluation_may_end_what_it_started(place: Path) -> None:
    """It gets SIGTERM when quantcli does, and time to act on it."""
    (place / "wait.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (open('ended', 'w').close(), sys.exit(1)))\n"
        "open('started', 'w').close()\ntime.sleep(60)\n"
    )
    words = ["report", "d4.safetensors", "-q", "--eval-command", f"{sys.executable} wait.py"]
    running = subprocess.Popen([sys.executable, "-m", "quantcli", *words], env=environment(TMPDIR=str(place)))
    wait_for(place / "started")
    running.terminate()
    assert running.wait() == -signal.SIGTERM and (place / "ended").exists()


ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGXCPU]


def evaluating(place: Path, child: str) -> tuple[subprocess.Popen[bytes], int]:
    """A run whose evaluation has started a process of its own, and the number of that."""
    (place / "child.py").write_text(child + "import os, time\nopen('pid.new', 'w').write(str(os.getpid()))\n"
                                    "os.rename('pid.new', 'pid')\ntime.sleep(60)\n")  # fmt: skip
    (place / "parent.py").write_text("import subprocess, sys\nsubprocess.run([sys.executable, 'child.py'])\n")

    def begin() -> None:
        os.setpgrp()  # a group that is nobody's cannot be stopped
        for number in ENDING:  # some are ignored where the tests run behind nohup, or in the background of a script
            signal.signal(number, signal.SIG_DFL)

    words = ["report", "d4.safetensors", "-q", "--eval-command", f"{sys.executable} parent.py"]
    running = subprocess.Popen(
        [sys.executable, "-m", "quantcli", *words],
        env=environment(TMPDIR=str(place / "temporary")),
        preexec_fn=begin,
    )
    wait_for(place / "pid")
    return running, int((place / "pid").read_text())


def state_of(process: int) -> str:
    """The state of a process as /proc has it: T where it is stopped; empty where there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0].replace("Z", "")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def until(held: Callable[[], bool]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + 20
    while not held():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_what_an_evaluation_started_ends_with_the_run(number: signal.Signals, stubborn: bool, place: Path) -> None:
    ignoring = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stubborn else ""
    running, child = evaluating(place, ignoring)
    running.send_signal(number)
    assert running.wait(30) == -number
    until(lambda: not state_of(child))
    assert list((place / "temporary").iterdir()) == []


def test_an_evaluation_stops_and_goes_on_with_the_run(place: Path) -> None:
    """Ctrl-Z and fg."""
    running, child = evaluating(place, "")
    for _ in range(2):
        running.send_signal(signal.SIGTSTP)
        until(lambda: state_of(child) == state_of(running.pid) == "T")
        running.send_signal(signal.SIGCONT)
        until(lambda: "T" not in (state_of(child), state_of(running.pid)))
    running.terminate()
    assert running.wait(30) == -signal.SIGTERM
    until(lambda: not state_of(child))


def test_an_evaluation_has_no_terminal(place: Path) -> None:
    """It is told so, rather than waiting for ever."""
    (place / "asks.py").write_text("open('/dev/tty')\n")
    words = ["-m", "quantcli", "report", "d4.safetensors", "-q", "--eval-command", f"{sys.executable} asks.py"]
    process, terminal = pty.fork()
    if not process:
        os.execve(sys.executable, [sys.executable, *words], environment())
    said = ""
    with contextlib.suppress(OSError):  # how Linux says that the other side is closed
        while piece := os.read(terminal, 1 << 16):
            said += piece.decode()
    os.waitpid(process, 0)
    os.close(terminal)
    assert "ended with exit code 1" in said, said


def test_without_groups_of_processes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows ends a tree of processes by a program of its own."""
    asked = list[list[str]]()
    monkeypatch.setattr(commands, "HAS_GROUPS", False)
    running = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(subprocess, "run", lambda words, **_: asked.append(words))
    commands._end(running)
    assert running.wait(30) and asked == [["taskkill", "/F", "/T", "/PID", str(running.pid)]]


def test_a_percentage_is_the_number_before_the_sign(place: Path) -> None:
    words = ["report", "d4.safetensors", "-q", "--eval-command", "echo accuracy 95% #"]
    assert run(*words, "--min-eval", "95").code == 0
    assert run(*words, "--max-eval", "1").code == 1


def test_no_folder_for_what_is_temporary(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place / "none"))
    line = one_line(run("report", "d4.safetensors", "--eval-command", "echo 1"), 2)
    assert "none" in line and "no such file or directory" in line and "standard output" not in line
