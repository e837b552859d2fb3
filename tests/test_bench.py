"""The plot of what is lost in how many bits: it shows the figures that are stored, below limits that hold."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from bench import plot
from bench.link import link
from disk_s3 import disk_server
from making import ROOT
from numpy.typing import NDArray
from safetensors.numpy import save_file

FOLDER = ROOT / "tests" / "bench"

DENSITIES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "normal": lambda x: np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi),
    "laplace": lambda x: np.exp(-np.abs(x)) / 2,
    "student": lambda x: 3 / 8 * (1 + x**2 / 4) ** -2.5,
}


@pytest.mark.parametrize("source", DENSITIES)
def test_limits_are_those_of_the_densities(source: str) -> None:
    """Shannon's lower bound, from the entropy and the variance of the density by integration."""
    x = np.sinh(np.linspace(-12, 12, 400_001))
    p = DENSITIES[source](x)

    def integral(y: NDArray[np.float64]) -> float:
        return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum())

    entropy = integral(-p * np.log(np.where(p > 0, p, 1)))
    lift = 10 * math.log10(2 * math.pi * math.e * integral(p * x * x) / math.exp(2 * entropy))
    assert plot.LIFT[source] == pytest.approx(lift, abs=2e-3)


def test_no_method_is_above_the_limit() -> None:
    rows = json.loads((FOLDER / "quality.json").read_text(encoding="utf-8"))["rows"]
    assert {row["program"] for row in rows} == set(plot.SHAPES)
    for row in rows:
        assert 0 < row["db"]["normal"] < plot.limit("normal", row["bits"]["normal"]), row["method"]


def test_the_plot_shows_the_stored_figures() -> None:
    stored = (FOLDER / "quality.svg").read_text(encoding="utf-8")
    assert stored == plot.svg(json.loads((FOLDER / "quality.json").read_text(encoding="utf-8"))["rows"])
    ET.fromstring(stored)


def test_the_table_of_language_models_has_the_stored_figures() -> None:
    rows = json.loads((FOLDER / "perplexity.json").read_text(encoding="utf-8"))
    results = (FOLDER / "RESULTS.md").read_text(encoding="utf-8")
    table = results.split("make bench-quality, language models -->\n")[1].split("<!-- end -->")[0]
    assert len({(r["model"], r["program"], r["method"], r["given"]) for r in rows}) == len(rows)
    assert len(re.findall(r"\d \(\**\d", table)) == len(rows)
    for row in rows:
        said = f"{row['perplexity']:.5g} ({1000 * row['figure']:.4g})"
        lines = [line for line in table.splitlines() if line.startswith(f"| {row['model']} | {row['program']} | ")]
        assert any(said in line.replace("**", "") for line in lines if f" | {row['method'] or '-'} | " in line), row


def test_every_stage_of_a_run_is_timed(tmp_path: Path) -> None:
    """Its methods are found by their names, so that a method which moves would stop `make bench` in its middle."""
    model = tmp_path / "w.safetensors"
    save_file({f"layer{n}.weight": np.full((512, 2048), 0.5, np.float32) for n in range(4)}, model)
    command = ["quantize", str(model), "--bits", "4", "-o", str(tmp_path / "w4.safetensors"), "-q", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "stages.py"), *command], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 5
    assert [stage for stage, seconds in found.items() if seconds <= 0] == []


def test_other_programs_are_timed_by_their_own_clock(tmp_path: Path) -> None:
    """Programs that say that they took 2 seconds for the 2^24 weights of the smallest model."""
    python = tmp_path / "current" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 2.0\n")
    python.chmod(0o755)
    command = [sys.executable, str(FOLDER / "bench.py"), "--peers", str(tmp_path), "--gb", "0.01", "--runs", "1"]
    done = subprocess.run([*command, "--folder", str(tmp_path)], check=True, capture_output=True, text=True)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    figures = {row[0]: row[1:] for row in rows if len(row) == 4}
    assert figures["MLX, affine int4 g128"][0] == "8" and not any("libllama" in title for title in figures)
    own = figures["quantcli, int4 g128 min-max"]
    assert float(own[0]) > 0 and 20 < float(own[2]) < 100  # MiB


def test_a_link_has_its_rate_and_latency(tmp_path: Path) -> None:
    """4 MB at 20 MB/s take 0.2 s, whoever shares them, and a request half a round trip each way: none is faster."""
    (tmp_path / "s3" / "models").mkdir(parents=True)
    content = np.random.default_rng(0).bytes(4_000_000)
    (tmp_path / "s3" / "models" / "x").write_bytes(content)
    with disk_server(tmp_path / "s3") as named, link(named["AWS_ENDPOINT_URL"], rate=20, latency=60) as address:

        def read(part: str) -> tuple[bytes, float]:
            began = time.perf_counter()
            request = Request(f"{address}/models/x", headers={"Range": f"bytes={part}"})
            with urlopen(request) as answer:
                return answer.read(), time.perf_counter() - began

        assert read("0-0")[1] > 0.12, "a connection, and a request"
        with ThreadPoolExecutor(2) as pool:
            halves = list(pool.map(read, ["0-1999999", "2000000-3999999"]))
    assert b"".join(half for half, _ in halves) == content
    assert max(seconds for _, seconds in halves) > 0.2 + 0.12
