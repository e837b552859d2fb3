"""sweep: every figure is what quantize reports, from one look at the weights; front, slopes and drawings."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import BF16, one_line, run, save
from strategies import gaussian

from quantcli import Scheme
from quantcli.passes import sweep
from quantcli.planning.plan import make
from quantcli.planning.request import Request
from quantcli.stores import open_source


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    wide = gaussian(64, 96, seed=5)
    wide[3] *= 1e7  # float16 does not hold its scales
    return save(tmp_path / "model.safetensors", {
        "a.up": gaussian(300, 1000, seed=1), "a.down": (gaussian(64, 128, seed=2) ** 3).astype(BF16), "wide": wide,
        "conv": gaussian(32, 16, 3, 3, seed=6), "norm": gaussian(64, seed=4)})  # fmt: skip


def swept(*arguments: Any) -> dict[str, Any]:
    ran = run("sweep", *arguments, "--json")
    assert ran.code == 0, ran
    found: dict[str, Any] = json.loads(ran.out)
    return found


@pytest.mark.parametrize("threads", [1, 3])
def test_every_point_is_what_quantize_reports(threads: int, model: Path) -> None:
    """a table with bytes, bits per weight, SQNR, worst tensor"""
    calibrations = ["minmax", "mse", "percentile", "entropy", "auto"]
    found = swept(model, "--bits", "3,4,8", "--group-size", "48,-1,0", "--calibration", ",".join(calibrations),
                  "--threads", threads)  # fmt: skip
    assert len(found["points"]) == 3 * 3 * 5
    for i, point in enumerate(found["points"]):
        calibration, size, bits = calibrations[i // 9], [48, -1, 0][i // 3 % 3], [3, 4, 8][i % 3]
        ran = run("quantize", model, "-o", "q.safetensors", "--force", "--bits", bits, "--group-size", size,
                  "--calibration", calibration, "--json")  # fmt: skip
        expected = json.loads(ran.out)
        assert point["bits"] == bits and point["sqnr_db"] == pytest.approx(expected["summary"]["sqnr_db"], abs=1e-9)
        assert point["bytes_out"] == Path("q.safetensors").stat().st_size
        assert point["bits_per_weight"] == pytest.approx(expected["summary"]["bits_per_weight"])
        tensors = {t["name"]: t["sqnr_db"] for t in expected["tensors"] if t["sqnr_db"] is not None}
        assert point["worst_tensor"] == min(tensors, key=tensors.__getitem__)
        assert point["worst_sqnr_db"] == pytest.approx(min(tensors.values()), abs=1e-9)


def test_schemes_by_name(model: Path) -> None:
    """Each as quantize makes it; groups and calibrations apply to them too, widths add others."""
    found = swept(model, "--scheme", "FP8_DYNAMIC,NVFP4A16,w4a16,W8A8,MXFP4", "--bits", "3,4")
    names = ["FP8_DYNAMIC", "NVFP4A16", "W4A16", "W8A8", "MXFP4"]
    assert [p["scheme"] for p in found["points"]] == [*names, "w3g128"]  # 4 bits in groups of 128 are W4A16
    for point, name in zip(found["points"], names):
        ran = run("quantize", model, "-o", "q.safetensors", "--force", "--scheme", name, "--json")
        assert point["sqnr_db"] == pytest.approx(ran.json["summary"]["sqnr_db"], abs=1e-9)
        assert point["bytes_out"] == Path("q.safetensors").stat().st_size
    found = swept(model, "--scheme", "W4A16,W4A16_ASYM", "--group-size", "32,64", "--calibration", "minmax,mse")
    shown = ["w4g32", "w4g64", "w4g32-asym", "w4g64-asym"]
    assert [(p["scheme"], p["calibration"]) for p in found["points"]] == [
        (name, how) for how in ("minmax", "mse") for name in shown
    ]


def test_defaults_and_learned_levels(model: Path) -> None:
    assert [p["scheme"] for p in swept(model)["points"]] == ["w2g128", "w3g128", "w4g128", "w8g128"]
    (point,) = swept(model, "--bits", "4", "--group-size", "32", "--calibration", "lloyd-max")["points"]
    expected = json.loads(
        run("quantize", model, "-o", "q.safetensors", "--group-size", "32", "--calibration", "lloyd-max", "--json").out
    )
    assert point["sqnr_db"] == pytest.approx(expected["summary"]["sqnr_db"], abs=1e-9)


def test_the_weights_are_read_once(model: Path) -> None:
    """one pass over the weights per tile for all settings"""
    schemes = [
        Scheme(bits=b, group_size=g, calibration=c) for b in (2, 3, 4, 8) for g in (32, 128) for c in ("minmax", "mse")
    ]
    source = open_source(str(model))
    read: Counter[str] = Counter()
    real = source.read

    def counted(name: str, start: int, buffer: memoryview) -> None:
        read[name] += len(buffer)
        real(name, start, buffer)

    source.read = counted  # type: ignore[method-assign]
    plans = [make(source.infos(), Request(scheme=s, exclude=("wide", "conv"))) for s in schemes]
    sweep.measure(source, plans, threads=2)
    source.close()
    assert read == {"a.up": 300 * 1000 * 4, "a.down": 64 * 128 * 2}


def test_the_front_and_the_slopes(model: Path) -> None:
    found = swept(model, "--bits", "2,3,4,8", "--group-size", "32,128", "--calibration", "minmax,mse")
    points = found["points"]
    for p in points:
        better = [q for q in points if q["bytes_data"] <= p["bytes_data"] and q["sqnr_db"] >= p["sqnr_db"]
                  and (q["bytes_data"], q["sqnr_db"]) != (p["bytes_data"], p["sqnr_db"])]  # fmt: skip
        assert p["pareto"] == (not better)
    assert found["law_db_per_bit"] == pytest.approx(6.0206, abs=1e-4) == 20 * math.log10(2)
    for slope in found["slopes"]:
        calibration, where = slope["series"].split(", groups of ")
        series = [
            (p["bits"], p["sqnr_db"])
            for p in points
            if p["calibration"] == calibration and p["group_size"] == int(where)
        ]
        bits, sqnr = zip(*series)
        expected = np.polyfit(bits, sqnr, 1)[0]
        assert slope["db_per_bit"] == pytest.approx(expected) and (slope["low_bits"], slope["high_bits"]) == (2, 8)
    assert len(found["slopes"]) == 4


def test_the_front_is_of_data_not_of_header_text(model: Path) -> None:
    """min-max at 2 bits is several dB worse in the same groups; its header, which names no options, is shorter"""
    points = swept(model, "--bits", "2", "--calibration", "minmax,mse,auto")["points"]
    minmax, mse, auto = points
    assert minmax["bytes_out"] < mse["bytes_out"] and minmax["sqnr_db"] < mse["sqnr_db"] - 3
    assert minmax["bytes_data"] == mse["bytes_data"] == auto["bytes_data"]
    made = json.loads(
        run("quantize", model, "-o", "q.safetensors", "--bits", "2", "--calibration", "mse", "--json").out
    )
    assert mse["bytes_data"] == sum(t["bytes_out"] for t in made["tensors"])
    best = max(points, key=lambda p: (p["sqnr_db"], -p["bytes_out"]))
    assert [p["pareto"] for p in points] == [p is best for p in points]


def test_what_is_printed(model: Path) -> None:
    """the Pareto front marked, the 6 dB-per-bit law beside the measured slope; --plot draws it"""
    ran = run("sweep", model, "--plot", "-o", "page.html")
    assert ran.code == 0 and "a bit is worth 6.02 dB by the law; measured:" in ran.out
    assert sum(" *" in line for line in ran.out.splitlines() if line.startswith("w")) == 4
    drawing = ran.out.split("measured:\n")[1].split("\n\n")[1]
    assert drawing.count("*") == 4 and "bits per weight" in drawing and drawing.isascii()
    page = Path("page.html").read_text()
    assert (
        page.count("<tr>") == 1 + 1 + 1 + 4
        and "Pareto front" in page
        and "http" not in page.replace("http-equiv", "").replace("www.w3.org", "")
    )


@pytest.mark.parametrize(("arguments", "words"), [
    (["--bits", "four"], "not a whole number"), (["--bits", "0"], "bits"), (["--bits", "40"], "bits"),
    (["--calibration", "magic"], "is not one of"), (["--group-size", "-7"], "--group-size"),
    (["--calibration", "mean-abs"], "one symmetric bit"), (["--include", "nothing"], "matches no tensor"),
    (["-o", "found.safetensors"], "nothing is written as .safetensors"),
    (["--scheme", "W4A17"], "--scheme: 'W4A17' is not a scheme; did you mean W4A16?"),
    (["--scheme", "W4A16,Q4_K"], "Q4_K is stored in GGUF only"), (["--scheme", "FP8"], "FP8_DYNAMIC, which needs none"),
    (["--scheme", "W4A16,NVFP4A16", "--asymmetric"], "--asymmetric: fp4 is symmetric"),
    (["--scheme", "INT8_CONVROT"], "ComfyUI's layout only, and sweep counts native bytes; use plan --to comfyui"),
], ids=lambda v: " ".join(v) if isinstance(v, list) else "")  # fmt: skip
def test_what_cannot_be_swept(arguments: list[str], words: str, model: Path) -> None:
    before = model.read_bytes()
    assert words in one_line(run("sweep", "model.safetensors", *arguments), 2)
    assert model.read_bytes() == before


def test_damaged_weights_and_quantized_files(model: Path) -> None:
    bad = gaussian(64, 64)
    bad[3, 4] = np.nan
    save(Path("bad.safetensors"), {"w": bad})
    assert "w: 1 NaN" in one_line(run("sweep", "bad.safetensors"), 1)
    assert run("quantize", model, "-o", "q.safetensors", "-q").code == 0
    assert "quantized already" in one_line(run("sweep", "q.safetensors"), 1)
