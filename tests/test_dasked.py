"""Workers of Dask: the bytes and figures of one machine, whatever is killed, and one line for what cannot be done."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import contents, made
from making import ROOT, command, environment, one_line, run, save
from pipelines import pipeline
from remote_parts import s3_server, serving
from strategies import gaussian

from quantcli import dasked
from quantcli.folders import parts, spread
from quantcli.passes import batches
from quantcli.stores import destinations

pytest.importorskip("distributed")

from distributed import Client, Future, LocalCluster, Scheduler, SchedulerPlugin

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

TINY = ROOT / "sample_models" / "tiny-llama"


def cluster_of(count: int, **options: Any) -> Any:
    """A scheduler with workers that are processes, which start again when they are killed."""
    return LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=count,
        threads_per_worker=1,
        host="127.0.0.1",
        scheduler_kwargs={"dashboard": False},
        dashboard_address="127.0.0.1:0",  # that of every cluster is one and the same, and tests run side by side
        silence_logs=60,
        **options,
    )


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    with cluster_of(2) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of 150 tensors, and what quantize makes of it."""
    folder = tmp_path_factory.mktemp("models")
    before = save(folder / "a.safetensors", {f"layers.{i}.weight": gaussian(256, 256, seed=i) for i in range(150)})
    after = folder / "b.safetensors"
    assert run("quantize", before, "-o", after, "--bits", 3, "-q").code == 0
    return before, after


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pieces of work as small as such models need them."""
    monkeypatch.chdir(tmp_path)
    for module in (batches, spread):
        monkeypatch.setattr(module, "LEAST", 1 << 20)
        monkeypatch.setattr(module, "MOST", 1 << 20)


def figures(*arguments: object) -> Any:
    """A JSON document without what took time."""
    ran = run(*arguments, "--json")
    assert ran.code == 0, ran
    return json.loads(re.sub(r'"(\w*seconds)": [0-9.e-]+', r'"\1": 0', ran.out))


@contextlib.contextmanager
def killing(scheduler: str) -> Iterator[list[int]]:
    """Workers are killed, one after another, as long as the block lasts; the processes that were."""
    over, killed = threading.Event(), list[int]()

    def work() -> None:
        with Client(scheduler, set_as_default=False) as client:  # type: ignore[no-untyped-call]
            while not over.wait(0.4) and len(killed) < 2:
                with contextlib.suppress(Exception):
                    pid = next(iter(client.run(os.getpid, on_error="ignore").values()))
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "words",
    [
        ("compare", "A", "B"), ("report", "B", "--against", "A"), ("verify", "B", "--source", "A"),
        ("verify", "B"), ("sweep", "A"), ("plan", "A", "--target-bpw", "5", "--bits", "3,4,8"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_figures_are_those_of_one_machine(words: tuple[str, ...], models: tuple[Path, Path], scheduler: str) -> None:
    """the passes plan, sweep, verify, compare, report --against hand their tasks to Client"""
    named = [{"A": models[0], "B": models[1]}.get(word, word) for word in words]
    assert figures(*named, "--dask", scheduler) == figures(*named)


@pytest.mark.usefixtures("small")
def test_the_same_bytes_and_figures_while_workers_are_killed(
    models: tuple[Path, Path], scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a killed worker's share is run again"""
    for module in (batches, spread):
        monkeypatch.setattr(module, "LEAST", 1 << 18)
        monkeypatch.setattr(module, "MOST", 1 << 18)
    with killing(scheduler) as killed:
        while not killed:
            found = figures("sweep", models[0], "--bits", "2,3,4", "--dask", scheduler)
        ran = run("quantize", models[0], "-o", "out.safetensors", "--bits", 3, "-q", "--dask", scheduler)
    assert ran.code == 0 and ran.err == "", ran
    assert found == figures("sweep", models[0], "--bits", "2,3,4")
    assert Path("out.safetensors").read_bytes() == models[1].read_bytes()
    assert [p.name for p in Path().iterdir()] == ["out.safetensors"]


@pytest.mark.usefixtures("small")
def test_a_result_whose_worker_ends_while_it_is_fetched(
    models: tuple[Path, Path], scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask's executor looks at the state of the work once more when it has the result. That is made by hand here: of
    every third one the worker has ended by then, as it did in one of a hundred runs whose workers were killed."""
    state, looks = vars(Future)["status"], iter(range(10**9))

    def status(future: Future[Any]) -> str:
        asked = sys._getframe(1).f_globals["__name__"] == "distributed.cfexecutor"
        found = str(state.fget(future))
        return "lost" if asked and found == "finished" and next(looks) % 3 == 0 else found

    monkeypatch.setattr(Future, "status", property(status))
    ran = run("quantize", models[0], "-o", "out.safetensors", "--bits", 3, "-q", "--dask", scheduler)
    assert ran.code == 0 and ran.err == "" and next(looks) > 10, ran
    assert Path("out.safetensors").read_bytes() == models[1].read_bytes()
    assert figures("sweep", models[0], "--bits", "3", "--dask", scheduler) == figures("sweep", models[0], "--bits", "3")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("asked", [(), ("--to", "gguf"), ("--to", "mlx")], ids=" ".join)
def test_folders_are_those_of_one_machine(
    asked: tuple[str, ...], scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "LEAST", 1 << 15)
    monkeypatch.setattr(spread, "MOST", 1 << 15)
    for out, more in (("one", ()), ("many", ("--dask", scheduler))):
        ran = run("quantize", TINY, "--group-size", 32, "-o", out, "-q", *asked, *more)
        assert ran.code == 0 and ran.err == "", ran
    one, many = ({"": p.read_bytes()} if p.is_file() else contents(p) for p in (Path("one"), Path("many")))
    assert one == many


@pytest.mark.usefixtures("small")
def test_a_scheduler_that_goes_away(models: tuple[Path, Path], scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """clear error, resumable"""
    monkeypatch.setattr(spread, "LEAST", 1 << 18)
    monkeypatch.setattr(spread, "MOST", 1 << 18)
    serving = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    serving += ["--no-dashboard", "--scheduler-file", "s.json"]
    process = subprocess.Popen(serving, env=environment(), stderr=subprocess.DEVNULL)
    try:
        while not Path("s.json").exists() or not Path("s.json").read_text().endswith("}"):
            time.sleep(0.05)
        address = json.loads(Path("s.json").read_text())["address"]
        assert "the scheduler has no workers; start some" in _refused(
            monkeypatch, "compare", *models, "--dask", address
        )
        working = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard"]
        worker = subprocess.Popen([*working, "--nthreads", "1"], env=environment(), stderr=subprocess.DEVNULL)
        try:

            def end() -> None:
                while len(parts.found(str(Path("out.safetensors").absolute()))) < 3:
                    time.sleep(0.01)
                process.kill()

            ending = threading.Thread(target=end)
            ending.start()
            ran = run("quantize", models[0], "-o", "out.safetensors", "--bits", 3, "-q", "--dask", address)
            ending.join()
        finally:
            worker.kill()
            worker.wait()
    finally:
        process.kill()
        process.wait()
    assert ran.code == 1 and "Traceback" not in ran.err, ran
    lines = ran.err.splitlines()
    assert len(lines) == 2, ran
    assert "finished parts are in" in lines[0] and "the connection to the scheduler was lost; run it again" in lines[1]
    assert not Path("out.safetensors").exists()
    ran = run("quantize", models[0], "-o", "out.safetensors", "--bits", 3, "-q", "--dask", scheduler)
    assert ran.code == 0, ran
    assert Path("out.safetensors").read_bytes() == models[1].read_bytes()


def _refused(patch: pytest.MonkeyPatch, *arguments: object) -> str:
    patch.setattr(dasked, "PATIENCE", 0.5)
    try:
        return one_line(run(*arguments), 2)
    finally:
        patch.setattr(dasked, "PATIENCE", 15)


@pytest.mark.usefixtures("small")
def test_workers_write_to_a_bucket(models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The object that one machine makes, of a source that is in the bucket too, and nothing else."""
    with s3_server() as (client, url):
        for name, value in {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        client.create_bucket(Bucket="dask")
        client.upload_file(str(models[0]), "dask", "a.safetensors")
        words = ("quantize", "s3://dask/a.safetensors", "--bits", 3, "-q", "--dask", "local:2")
        ran = run(*words, "-o", "s3://dask/b.safetensors")
        assert ran.code == 0 and ran.err == "", ran
        found = [one["Key"] for one in client.list_objects_v2(Bucket="dask")["Contents"]]
        assert found == ["a.safetensors", "b.safetensors"]
        assert client.get_object(Bucket="dask", Key="b.safetensors")["Body"].read() == models[1].read_bytes()


# ---- what is refused --------------------------------------------------------------------------------------------


def test_addresses_and_options(models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dasked, "PATIENCE", 1)
    for address, problem in (
        (
            "tcp://127.0.0.1:1",
            "--dask tcp://127.0.0.1:1: no scheduler of Dask answers; start one with dask scheduler",
        ),
        ("carrier://pigeon", "not an address of a scheduler"),
        ("somewhere", "not an address of a scheduler"),
        ("local:0", "not a number of workers from 1 to 999"),
    ):
        assert problem in one_line(run("compare", *models, "--dask", address), 2)
    local = ("--dask", "local:1")
    assert "workers cannot read standard input" in one_line(run("compare", "-", models[1], *local), 2)
    assert "nothing is measured without the original" in one_line(run("report", models[1], *local), 2)
    for more, problem in (
        (("--part", "1/2"), "one process does a part"),
        (("-o", "-"), "workers cannot write to standard output"),
        (("--target-bpw", "5"), "plan once with quantcli plan"),
    ):
        out = () if "-o" in more else ("-o", "out.safetensors")
        assert problem in one_line(run("quantize", models[0], *out, *more, *local), 2)
    assert "workers cannot read standard input" in one_line(run("quantize", "-", "-o", "out.safetensors", *local), 2)


def test_two_drivers_on_one_destination(models: tuple[Path, Path], scheduler: str, tmp_path: Path) -> None:
    """Quote: "two drivers on one destination: one line"; the first goes on, and no part is begun by the second."""
    with destinations.hidden(str(tmp_path / "out"), force=False):
        ran = run("quantize", models[0], "--bits", 4, "-o", tmp_path / "out", "--dask", scheduler)
    assert "another run is writing it; wait until it has ended" in one_line(ran, 1)
    assert list(tmp_path.iterdir()) == []


class Interrupts(SchedulerPlugin):
    """Tells all clients of work that another one gave up, in the moment in which one is connected."""

    left = 0

    def add_client(self, scheduler: Scheduler, client: str) -> None:
        if self.left:
            self.left -= 1
            message = {"op": "cancelled-keys", "keys": ["another run's"], "reason": "", "msg": ""}
            asyncio.get_running_loop().call_soon(scheduler.report, message)


def test_another_run_ends_while_this_one_connects(models: tuple[Path, Path], tmp_path: Path) -> None:
    """What a scheduler tells all clients comes with its greeting then, and Dask's client gives up."""
    with cluster_of(1) as cluster:
        plugin = Interrupts()
        cluster.scheduler.add_plugin(plugin)
        for times in (2, dasked.CONNECTIONS):
            plugin.left = times
            ran = run("compare", *models, "--dask", cluster.scheduler_address)
            assert plugin.left == 0
            assert ran.code == 0 or times > 2, ran
    assert "the scheduler is busy with other runs" in one_line(ran, 2)


def test_an_address_at_which_something_else_answers(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A web server takes the connection and answers in words that Dask reads as the length of a message."""
    monkeypatch.setattr(dasked, "PATIENCE", 1)
    with serving(tmp_path) as served:
        address = served.url.replace("http", "tcp")
        said = one_line(run("compare", *models, "--dask", address), 2)
    assert said == f"--dask {address}: no scheduler of Dask answers; start one with dask scheduler"


def test_the_extra_is_missing(models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    told = one_line(run("compare", *models, "--dask", "local:1"), 2)
    assert told == "--dask: the package distributed is not installed; pip install 'quantcli[dask]'"


def test_workers_of_another_kind(models: tuple[Path, Path], scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """versions on workers checked before the first task"""
    here = dasked.facts()
    for changed, what in ((here._replace(quantcli="9.9.9"), "quantcli"), (here._replace(python="3.99"), "Python")):
        with monkeypatch.context() as patch:
            patch.setattr(dasked, "_here", lambda found=changed: found)
            told = one_line(run("compare", *models, "--dask", scheduler), 2)
            assert re.match(r"worker tcp://127\.0\.0\.1:\d+: it has ", told) and f"it has {what} " in told
    with monkeypatch.context() as patch:
        patch.setattr(dasked, "NEED", 1 << 60)
        told = one_line(run("compare", *models, "--dask", scheduler), 2)
        assert "bytes of memory, and its work needs" in told


def test_a_worker_without_the_file(models: tuple[Path, Path], scheduler: str, tmp_path: Path) -> None:
    """A path that means another file in another process: that of its own descriptors."""
    own = save(tmp_path / "own.safetensors", {"layers.0.weight": gaussian(256, 256, seed=0)})
    with own.open("rb") as file:
        path = f"/proc/self/fd/{os.dup2(file.fileno(), 999)}"
        try:
            told = one_line(run("compare", path, models[1], "--dask", scheduler), 2)
        finally:
            os.close(999)
    assert re.match(
        r"worker \S+, process \d+: /proc/self/fd/999: no such file or directory; every worker must find the", told
    )


# ---- on this machine --------------------------------------------------------------------------------------------


def test_processes_of_its_own(models: tuple[Path, Path], tmp_path: Path) -> None:
    """--dask local:2 starts processes without a dashboard, says nothing, and leaves none behind"""
    out = tmp_path / "out.safetensors"
    words = ("quantize", models[0], "-o", out, "--bits", 3, "-q", "--dask", "local:2")
    done = subprocess.run(command(*words), capture_output=True, text=True, env=environment(), timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert out.read_bytes() == models[1].read_bytes()


def _processes(group: int) -> int:
    """How many processes a group has."""
    count = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            count += stat.read_text().rpartition(")")[2].split()[2] == str(group)
    return count


def test_ctrl_c(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Interrupted like any other run: nothing is said, nothing half-written has the name of the output, and none of the
    processes stays."""
    sizes = "16,32,48,64,96,128,192,256,-1"  # more than enough to do
    words = ("sweep", models[0], "--bits", ",".join(map(str, range(2, 9))), "--group-size", sizes, "-q")
    process = subprocess.Popen(
        command(*words, "--dask", "local:2"), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment(), start_new_session=True,
    )  # fmt: skip
    while _processes(process.pid) < 4:  # this one, what starts others, and two workers
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (-signal.SIGINT, "", "")
    with pytest.raises(ProcessLookupError):
        while True:
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def test_processes_that_end_while_they_start(models: tuple[Path, Path]) -> None:
    """They are told of at once; Dask waits for them until its time is over, which is a minute."""
    program = (
        "import multiprocessing.spawn, sys\nfrom quantcli.__main__ import main\n"
        "killed = [sys.executable, '-c', 'import os; os.kill(os.getpid(), 9)']\n"
        "multiprocessing.spawn.get_command_line = lambda **given: killed\n"
        "if __name__ == '__main__': main()"
    )
    words = [sys.executable, "-c", program, "compare", str(models[0]), str(models[1]), "--dask", "local:2"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=40, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"quantcli: --dask: [12] of 2 processes ended while they started, as they do .*; start fewer\n", done.stderr
    )


def test_nothing_of_dask_is_imported_unless_asked_for(models: tuple[Path, Path]) -> None:
    program = (
        "import sys\nfrom quantcli.__main__ import main\n"
        f"sys.argv = ['quantcli', 'compare', {str(models[0])!r}, {str(models[1])!r}, '-q']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted(n for n in sys.modules if n.split('.')[0] in ('dask', 'distributed', 'tornado', 'asyncio')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout.strip() == "[]"


def test_work_is_handed_out_fast(scheduler: str) -> None:
    """scheduler overhead under 10 ms a task"""
    with dasked.crew(scheduler) as crew:
        list(batches.hand_out(((n, os.getpid) for n in range(20)), crew))
        began = time.process_time()
        assert len(list(batches.hand_out(((n, os.getpid) for n in range(300)), crew))) == 300
        assert (time.process_time() - began) / 300 < 0.01


# ---- every kind of run ------------------------------------------------------------------------------------------


def _experts(folder: Path) -> Path:
    """A model with four experts in one layer, in the names of Qwen3."""
    folder.mkdir()
    layer, tensors = "model.layers.0.", dict[str, Any]()
    for expert in range(4):
        for name, shape in {"gate_proj": (64, 128), "up_proj": (64, 128), "down_proj": (128, 64)}.items():
            tensors[f"{layer}mlp.experts.{expert}.{name}.weight"] = gaussian(*shape, seed=expert)
    tensors[f"{layer}mlp.gate.weight"] = gaussian(4, 128)
    save(folder / "model.safetensors", tensors)
    config = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 128}
    (folder / "config.json").write_text(json.dumps(config | {"num_experts": 4, "moe_intermediate_size": 64}))
    return folder


def _moments(path: Path) -> Path:
    """Second moments for two layers of the small checkpoint."""
    entries = dict[str, Any]()
    for name, columns in (("mlp", 256), ("attention", 128)):
        inputs = gaussian(500, columns, seed=columns)
        for layer in range(4):
            entries[f"model.layers.{layer}.{name}.weight.second"] = (inputs.T @ inputs / 500).astype(np.float32)
            entries[f"model.layers.{layer}.{name}.weight.count"] = np.array(500)
    return save(path, entries, {"quantcli_statistics": "1"})


LORA = ROOT / "tests" / "golden" / "lora" / "plain"

RUNS = {
    "lora": (
        "quantize",
        LORA / "base",
        "--lora",
        LORA / "adapter",
        "--bits",
        8,
        "--group-size",
        8,
        "--no-default-keep",
    ),
    "a pipeline": ("quantize", "PIPELINE", "--group-size", 32),
    "statistics": ("quantize", "MODEL", "--group-size", 64, "--statistics", "MOMENTS"),
    "a URL": ("quantize", "URL", "--group-size", 64),
    "Q4_K_M": ("quantize", TINY, "--to", "gguf:Q4_K_M"),
    "FP8_DYNAMIC": ("quantize", TINY, "--scheme", "FP8_DYNAMIC"),
    "W8A8": ("quantize", TINY, "--scheme", "W8A8"),
    "awq": ("quantize", TINY, "--to", "awq", "--group-size", 64),
    "experts": ("quantize", "EXPERTS", "--group-size", 32),
    "experts for mlx-lm": ("quantize", "EXPERTS", "--group-size", 32, "--to", "mlx"),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("case", RUNS)
def test_every_kind_of_run_gives_the_bytes_of_one_process(
    case: str, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes from one machine, parts and Dask"""
    monkeypatch.setattr(spread, "LEAST", 1 << 15)
    monkeypatch.setattr(spread, "MOST", 1 << 15)
    with contextlib.ExitStack() as stack:
        sources = {
            "PIPELINE": lambda: pipeline(Path("pipe")),
            "MODEL": lambda: made(Path("model")),
            "MOMENTS": lambda: _moments(Path("moments.safetensors")),
            "EXPERTS": lambda: _experts(Path("experts")),
            "URL": lambda: stack.enter_context(serving(made(Path("served")))).url,
        }
        words = [sources[word]() if word in sources else word for word in RUNS[case]]  # type: ignore[no-untyped-call]
        for out, more in (("one", ()), ("many", ("--dask", scheduler))):
            ran = run(*words, "-o", out, "-q", *more)
            assert ran.code == 0 and ran.err == "", ran
    one, many = ({"": p.read_bytes()} if p.is_file() else contents(p) for p in (Path("one"), Path("many")))
    assert one == many


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("words", [("sweep", "--bits", "3,4"), ("plan", "--target-bpw", "6", "--bits", "3,4,8")])
def test_figures_with_statistics_and_of_urls_are_those_of_one_process(words: tuple[str, ...], scheduler: str) -> None:
    with serving(made(Path("served"))) as served:
        named = [words[0], served.url, *words[1:], "--statistics", _moments(Path("moments.safetensors"))]
        assert figures(*named, "--dask", scheduler) == figures(*named)


def test_dask_logs_nothing() -> None:
    """The line of an error is all that is printed: Dask's client logged a traceback where its scheduler went away."""
    program = (
        "import logging; from quantcli import dasked; dasked._quiet()\n"
        "for name in list(logging.root.manager.loggerDict): logging.getLogger(name).error('%s logs this', name)"
    )
    ran = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True)
    assert "distributed" not in ran.stderr and "tornado" not in ran.stderr and "asyncio" not in ran.stderr
