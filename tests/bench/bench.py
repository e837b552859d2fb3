"""Speed and memory of whole quantcli processes, beside the machine's own floor and peers, in one run.

    python tests/bench/bench.py [--gb 1] [--runs 5] [--kernels native,v3,base,numpy] [--write]
    python tests/bench/bench.py --peers .venv-peers [--gb 1] [--runs 3] [--write]

The floor is a program that only reads the input and writes as many bytes as the output has, with as many threads; every
figure is a ratio to it, measured in turn with it. Every run writes a new file; inputs lie in the page cache. Figures
are medians; with sets of kernels but the first and v3, which take long, those of a single run. With --peers only other
programs are timed, in turn with the runs that do the same work. --write puts the tables into RESULTS.md in place of the
last ones, and the figures of other programs into speed.json. About 12 minutes on 2 idle cores, with --peers 4, and 8 GB
in --folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import peers
import stages
from figures import FIGURES, GROWTH, IN_DEFAULT_RUNS, MIB, PROFILED, SMALL, Figure
from timing import ENVIRONMENT, Timed, alternately, floor, timed, write_folder, write_model

RESULTS, STORED = (Path(__file__).with_name(name) for name in ("RESULTS.md", "speed.json"))
END = "<!-- end -->"

CLI = [sys.executable, "-m", "quantcli"]
SQUARE = 4096, 4096


class Bench:
    """Files to work on, and what was measured so far. gb: of weights; runs: of which the median counts."""

    def __init__(self, folder: Path, gb: float, runs: int, threads: int) -> None:
        self.folder, self.gb, self.runs, self.threads = folder, gb, runs, threads
        self.native: dict[str, Timed] = {}
        self.floors: dict[str, Timed] = {}
        self.weights: dict[str, int] = {}
        self.lines: list[str] = []
        self.rows: list[dict[str, Any]] = []  # of other programs and of runs beside them, for STORED

    def say(self, line: str = "") -> None:
        """Print a line, and keep it for RESULTS.md."""
        print(line, flush=True)
        self.lines.append(line)

    def model(self, dtype: str) -> Path:
        """A model of so many gigabytes."""
        path = self.folder / f"{dtype}.safetensors"
        if not path.exists():
            count = max(1, round(self.gb * 1e9 / (SQUARE[0] * SQUARE[1] * (4 if dtype == "F32" else 2))))
            self.weights[dtype] = write_model(path, dtype, count, SQUARE)
        return path

    def shards(self) -> Path:
        """The same as a folder of many layers in eight shards."""
        path = self.folder / "shards"
        if not path.exists():
            layers = max(8, round(self.gb * 1e9 / (512 * 2048 * 2)))
            write_folder(path, "BF16", layers, -(-layers // 8), (512, 2048))
        return path

    def quantized(self, model: Path) -> Path:
        """A model quantized by default."""
        path = model.with_name(f"{model.stem}-quantized.safetensors")
        if not path.exists():
            words = [*CLI, "quantize", str(model), "--bits", "4", "-q", "-o", str(path)]
            subprocess.run(words, check=True, env=ENVIRONMENT)
        return path

    def command(self, words: str, model: Path) -> list[str]:
        """A command line on a model."""
        known = {"MODEL": lambda: model, "QUANTIZED": lambda: self.quantized(model), "FOLDER": self.shards}
        found = [str(known[word]()) if word in known else word for word in words.split()]
        return [*CLI, *found, *(["--json"] if found[0] not in ("inspect",) and "-q" not in found else [])]

    def everything(self, kernels: Mapping[str, str], tensors: int, large: float) -> None:
        """All tables of quantcli alone. tensors: how many small ones; large: gigabytes of a file of holes."""
        self.figures(kernels)
        for table in (self.profile, self.planning):
            self.say()
            table()
        for path in self.folder.iterdir():
            if path.is_file():
                path.unlink()
        self.say()
        self.starting()
        if tensors:
            self.say()
            self.many([tensors // 4, tensors // 2, tensors])
        if large:
            self.say()
            self.growth([large / 20, large / 4, large])

    # ---- tables -------------------------------------------------------------------------------------------------

    def figures(self, kernels: Mapping[str, str]) -> None:
        """The runs on a gigabyte of weights, in floors, with every set of kernels, each with its title."""
        self.say(f"| run ({self.gb:g} GB) | goal | {' | '.join(kernels.values())} | M weights/s | CPU s | peak MiB |")
        self.say(f"| --- | --- |{' --- |' * len(kernels)} --- | --- | --- |")
        for figure in FIGURES:
            model = self.model(figure.dtype)
            cells = []
            for number, name in enumerate(kernels):
                if number and not figure.everywhere:
                    cells.append("")
                    continue
                few = number > 0 and name != "v3"
                own, least = alternately(
                    [self.command(figure.words, model), floor(model, figure.share, self.threads)],
                    self.folder,
                    1 if few else self.runs if not number else min(self.runs, 3),
                    {"QUANTCLI_KERNELS": name},
                    warm=not few,
                )
                cells.append(f"{own.seconds / least.seconds:.1f}")
                if not number:
                    self.native[figure.title], self.floors[figure.title] = own, least
            self.say(self._row(figure, cells))
        least, peak = self.floors[FIGURES[0].title], max(own.peak for own in self.native.values())
        self.say(f"\nThe floor of the first row is {least.seconds:.3f} s. Most memory: {peak:.0f} MiB (goal {MIB}).")

    def _row(self, figure: Figure, cells: Sequence[str]) -> str:
        own = self.native[figure.title]
        rate = self.weights[figure.dtype] / own.seconds / 1e6
        goal = "" if figure.goal is None else f"{figure.goal:g}"
        return f"| {figure.title} | {goal} | {' | '.join(cells)} | {rate:.0f} | {own.cpu:.2f} | {own.peak:.0f} |"

    def profile(self) -> None:
        """Where the processor time of the default run goes."""
        title, words = PROFILED
        for _ in range(2):  # the first one warms up
            out = self.folder / "profiled.safetensors"
            command = self.command(words, self.model("BF16"))[len(CLI) :]
            found = stages.measured([str(out) if word.startswith("OUT") else word for word in command])
            out.unlink()
        whole, weights = sum(found.values()), self.weights["BF16"]
        self.say(f"| {title}, 1 thread | s of processor time | share | ns per 1,000 weights |")
        self.say("| --- | --- | --- | --- |")
        for stage, seconds in [*found.items(), ("all", whole)]:
            self.say(f"| {stage} | {seconds:.2f} | {100 * seconds / whole:.0f} % | {seconds / weights * 1e12:.0f} |")

    def planning(self) -> None:
        """Runs that measure many schemes, in default runs."""
        self.say("| run | goal | default runs | CPU, default runs | peak MiB |")
        self.say("| --- | --- | --- | --- | --- |")
        model = self.model("BF16")
        default = next(f for f in FIGURES if f.title == "int4 g128 default")
        for title, words, goal in IN_DEFAULT_RUNS:
            own, one = alternately(
                [self.command(words, model), self.command(default.words, model)], self.folder, min(self.runs, 3)
            )
            ratio, cpu = own.seconds / one.seconds, own.cpu / one.cpu
            self.say(f"| {title} |{'' if goal is None else f' {goal:g}'} | {ratio:.1f} | {cpu:.1f} | {own.peak:.0f} |")

    def many(self, counts: Sequence[int]) -> None:
        """Many tensors of 1,024 weights, and how time and memory grow with them."""
        self.say("| run | " + " | ".join(f"{count:,} tensors" for count in counts) + " | ms a tensor | KiB a tensor |")
        self.say("| --- |" + " --- |" * (len(counts) + 2))
        rows: dict[str, list[Timed]] = {title: [] for title, _ in SMALL}
        for count in counts:
            path = self.folder / "many.safetensors"
            write_model(path, "BF16", count, (8, 128))
            found = alternately([self.command(words, path) for _, words in SMALL], self.folder, 1, warm=False)
            for (title, _), one in zip(SMALL, found):
                rows[title].append(one)
            self.quantized(path).unlink()
            path.unlink()
        goal = "goals for the largest: 6 s, 160 MiB, and no more on 2 threads than on one"
        for title, times in rows.items():
            cells = " | ".join(f"{one.seconds:.2f} s, {one.peak:.0f} MiB" for one in times)
            more = counts[-1] - counts[0]
            slope = (times[-1].seconds - times[0].seconds) / more * 1e3
            room = (times[-1].peak - times[0].peak) / more * 1024
            self.say(f"| {title} | {cells} | {slope:.3f} | {room:.1f} |")
        self.say(f"\nTensors of 1,024 weights; {goal}. Slopes are from the first column to the last.")

    def growth(self, sizes: Sequence[float]) -> None:
        """Files of holes: time and memory by their size."""
        titles = " | ".join(f"{size:g} GB" for size in sizes)
        self.say(f"| int4 g128 min-max, files of holes | {titles} | s a GB |")
        self.say("| --- |" + " --- |" * (len(sizes) + 1))
        times = []
        for size in sizes:
            path = self.folder / "large.safetensors"
            write_model(path, "BF16", max(1, round(size * 1e9 / 2 / (SQUARE[0] * SQUARE[1]))), SQUARE, sparse=True)
            times.append(timed(self.command(GROWTH, path), self.folder, 1, warm=False))
            path.unlink()
        cells = " | ".join(f"{one.seconds:.2f} s, {one.peak:.0f} MiB" for one in times)
        slope = (times[-1].seconds - times[0].seconds) / (sizes[-1] - sizes[0])
        self.say(f"| 4096 x 4096 tensors | {cells} | {slope:.2f} |")
        for title, shape in (("one tensor", (32768, 65536)), ("one row", (1, 1 << 31))):
            if shape[0] * shape[1] * 2e-9 > sizes[-1]:
                continue
            path = self.folder / "large.safetensors"
            write_model(path, "BF16", 1, shape, sparse=True)
            one = timed(self.command(GROWTH, path), self.folder, 1, warm=False)
            path.unlink()
            self.say(f"| {title} of 2^31 weights (4.3 GB) |{' |' * (len(sizes) - 1)} "
                     f"{one.seconds:.2f} s, {one.peak:.0f} MiB | |")  # fmt: skip

    def starting(self) -> None:
        """Start-up beside that of Python."""
        path = self.folder / "tiny.safetensors"
        write_model(path, "F32", 1, (32, 64))
        runs = (
            ("python -c 'import numpy'", [sys.executable, "-c", "import numpy"], ""),
            ("python -c 'import click'", [sys.executable, "-c", "import click"], ""),
            ("--version", [*CLI, "--version"], ""),
            ("--help", [*CLI, "--help"], "3.5"),
            ("smallest job of quantize", self.command("quantize MODEL -o OUT.safetensors", path), "7"),
        )
        nothing, *found = alternately(
            [[sys.executable, "-c", "pass"], *(words for _, words, _ in runs)], self.folder, 9
        )
        self.say(f"| run | goal | times `python -c pass` ({1000 * nothing.seconds:.0f} ms) |")
        self.say("| --- | --- | --- |")
        for (title, _, goal), one in zip(runs, found):
            self.say(f"| `{title}` | {goal} | {one.seconds / nothing.seconds:.1f} |")

    def beside_peers(self, environments: Path) -> None:
        """Other programs in turn with the runs that do the same work: speed and memory, and how many times as fast
        quantcli is."""
        model, llama = self.model("BF16"), self.folder / "llama.gguf"
        pythons = {p.environment: peers.python_of(environments, p.environment) for p in peers.PEERS}
        count = 0
        if python := pythons["llamacpp"]:
            count = peers.write_llama(llama, python, max(1, round(self.gb * 1e9 / 2 / peers.LAYER)))
        own = [figure for figure in FIGURES if figure.peers]
        others = [(peer, python) for peer in peers.PEERS if (python := pythons[peer.environment])]
        commands = [floor(model, 0.258, self.threads), *(self.command(figure.words, model) for figure in own)]
        clocked = range(len(commands), len(commands) + len(others))
        for peer, python in others:
            commands.append(peers.command(peer, python, llama if peer.gguf else model, self.threads))
        least, *found = alternately(commands, self.folder, self.runs, clocked=clocked)
        weights = self.weights["BF16"]
        self.rows = [
            {"program": program, "run": title, "weights": size, "seconds": one.seconds, "peak_mib": one.peak}
            for (program, title, size), one in zip(
                [
                    *(("quantcli", figure.title, weights) for figure in own),
                    *(("peer", peer.title, count if peer.gguf else weights) for peer, _ in others),
                ],
                found,
            )
        ]
        self.rows.insert(0, {"program": "floor", "run": "floor", "weights": weights, "seconds": least.seconds,
                             "peak_mib": least.peak})  # fmt: skip
        self._beside(own)

    def _beside(self, own: Sequence[Figure]) -> None:
        """Tables of the runs of quantcli and of other programs."""
        least, *rows = self.rows
        each = {row["run"]: row["seconds"] / row["weights"] for row in rows}
        self.say("| program | M weights/s | floors | peak MiB |")
        self.say("| --- | --- | --- | --- |")
        for row in rows:
            rate, floors = 1e-6 / each[row["run"]], each[row["run"]] / (least["seconds"] / least["weights"])
            title = f"quantcli, {row['run']}" if row["program"] == "quantcli" else row["run"]
            self.say(f"| {title} | {rate:.0f} | {floors:.1f} | {row['peak_mib']:.0f} |")
        self.say()
        self.say("| run | beside | goal | times as fast |")
        self.say("| --- | --- | --- | --- |")
        for figure in own:
            for title, goal in figure.peers:
                if title in each:
                    self.say(f"| {figure.title} | {title} | {goal:g} | {each[title] / each[figure.title]:.2f} |")


def processor() -> str:
    """The name of the processor."""
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found is not None else platform.processor() or platform.machine()


def usable(asked: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Those of the sets of kernels that run here, each once: as it is asked for, and as it calls itself."""
    seen = set[str]()
    for name in asked:
        done = subprocess.run(
            [*CLI, "--version"], capture_output=True, text=True, env={**ENVIRONMENT, "QUANTCLI_KERNELS": name}
        )
        if done.returncode == 0 and done.stdout not in seen:
            seen.add(done.stdout)
            yield name, done.stdout.partition("(")[2].partition(" ")[0]


def write(lines: Sequence[str], target: str) -> None:
    """Put the tables into RESULTS.md in place of those of the last run. target: of the Makefile."""
    start = f"<!-- generated: make {target} -->"
    before, _, rest = RESULTS.read_text(encoding="utf-8").partition(start)
    _, _, after = rest.partition(END)
    RESULTS.write_text(f"{before}{start}\n" + "\n".join(lines).strip() + f"\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0, help="of weights (1)")
    parser.add_argument("--runs", type=int, default=5, help="of each command, after a warm-up (5)")
    parser.add_argument("--kernels", default="native,v3,base,numpy", help="sets of kernels, the first one everywhere")
    parser.add_argument("--large", type=float, default=20.0, help="GB of the largest file of holes (20); 0: none")
    parser.add_argument("--tensors", type=int, default=100_000, help="how many small tensors (100,000); 0: none")
    parser.add_argument("--peers", type=Path, help="time other programs; the folder of their environments")
    parser.add_argument("--folder", help="where files are made; a file system in memory shows no disk")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    a = parser.parse_args()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    began, version = time.monotonic(), subprocess.run([*CLI, "--version"], capture_output=True, text=True, check=True)
    with tempfile.TemporaryDirectory(dir=a.folder) as name:
        bench = Bench(Path(name), a.gb, a.runs, threads)
        bench.say(f"{version.stdout.strip()}, {processor()}, {threads} threads, Python {platform.python_version()}, "
                  f"{date.today()}: medians of {a.runs} whole processes, in floors.\n")  # fmt: skip
        if a.peers is not None:
            bench.beside_peers(a.peers)
        else:
            bench.everything(dict(usable(a.kernels.split(","))), a.tensors, a.large)
        print(f"\n{(time.monotonic() - began) / 60:.1f} minutes")
        if a.write:
            write(bench.lines, "bench" if a.peers is None else "bench-peers")
            if bench.rows:
                about = {"version": version.stdout.strip(), "processor": processor(), "threads": threads,
                         "date": str(date.today()), "runs": a.runs, "rows": bench.rows}  # fmt: skip
                STORED.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
