"""A layout is one file: where it lies in a folder of the package, every command reads it and writes it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from making import environment, load, save

LAYOUT = '''"""Signed bytes under X.q, and a float32 for every row under X.s."""

from functools import partial

import numpy as np

from quantcli.layouts.accepts import Accepts
from quantcli.layouts.pieces import bands, facts, not_a_matrix, params, plain, words
from quantcli.layouts.reader import Found, Reader
from quantcli.layouts.stored import floats, part
from quantcli.layouts.writer import Conversion, Job, Writer
from quantcli.tensors.info import TensorInfo


def decode(codes, scales, read, first, last):
    cols = codes.shape[1]
    signed = read(codes.name, first * cols, (last - first) * cols).view(np.int8).astype(np.float32)
    return signed.reshape(-1, cols) * floats(read, scales, codes.name, first, last - first)[:, None]


def find(infos, config, read=None):
    found = []
    for stem in [name.removesuffix(".q") for name in infos if name.endswith(".q")]:
        codes, scales = part(infos, f"{stem}.q", stem, ("I8",)), part(infos, f"{stem}.s", stem, ("F32",))
        found.append(Found(name=f"{stem}.weight", shape=codes.shape, scheme="w8c", bits=8, parts=(codes, scales),
                           unit=1, decode=partial(decode, codes, scales)))
    return found


def job(weight):
    scheme, plan = facts(weight)
    stem = weight.info.name.removesuffix(".weight")

    def piece(span, codes, write):
        write(0, span.row * plan.cols, np.ascontiguousarray(words(codes, span, plan, 8)[:, : plan.cols] ^ 128))
        write(1, span.row * 4, np.ascontiguousarray(params(codes, span, plan, scheme)[0], "<f4"))
        return True

    outputs = TensorInfo(f"{stem}.q", "I8", weight.info.shape), TensorInfo(f"{stem}.s", "F32", (plan.rows,))
    return Job(outputs=outputs, pieces=lambda: (partial(piece, span) for span in bands(plan, 8, plan.cols)))


def convert(tensors, beside):
    return Conversion(job=lambda t: job(t) if t.scheme is not None else plain(t.info))


READS = Reader(summary="Rows of bytes: bytes and scales", find=find)

WRITES = Writer(
    summary="Rows of bytes: bytes and scales, for this test",
    keeps="nothing",
    accepts=Accepts(bits=(8,), granularities=("channel",), symmetric=(True,)),
    shape=not_a_matrix,
    convert=convert,
    usual={"bits": 8, "granularity": "channel"},
)
'''


@pytest.fixture
def quantcli(tmp_path: Path) -> Callable[..., str]:
    """Runs a command of a quantcli that has the layout `row-bytes`; what it prints."""
    (tmp_path / "layouts").mkdir()
    (tmp_path / "layouts" / "row_bytes.py").write_text(LAYOUT)
    program = (
        f"import quantcli.layouts\nquantcli.layouts.__path__.append({str(tmp_path / 'layouts')!r})\n"
        "from quantcli.__main__ import main\nmain()"
    )

    def run(*arguments: object) -> str:
        done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], cwd=tmp_path, text=True,
                              env=environment(), capture_output=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_layout_is_one_file(quantcli: Callable[..., str], tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((32, 128)).astype(np.float32)
    save(tmp_path / "model.safetensors", {"up.weight": weights, "norm.weight": np.ones(128, np.float32)})
    assert "row-bytes" in quantcli("quantize", "--help")
    assert "for this test" in quantcli("export", "--list")
    quantcli("quantize", "model.safetensors", "--to", "row-bytes", "-o", "a.safetensors", "-q")
    assert set(load(tmp_path / "a.safetensors")) == {"up.q", "up.s", "norm.weight"}
    told = json.loads(quantcli("report", "a.safetensors", "--against", "model.safetensors", "--json"))
    assert {t["name"]: t["scheme"] for t in told["tensors"]} == {"up.weight": "w8c", "norm.weight": None}
    assert "w8c" in quantcli("inspect", "a.safetensors")
    assert "ok" in quantcli("verify", "a.safetensors")
    quantcli("dequantize", "a.safetensors", "-o", "b.safetensors", "-q")
    found = load(tmp_path / "b.safetensors")["up.weight"].array.reshape(weights.shape)
    np.testing.assert_allclose(found, weights, atol=np.abs(weights).max() / 127)
    quantcli("quantize", "model.safetensors", "--bits", 8, "--group-size", -1, "-o", "native.safetensors", "-q")
    quantcli("export", "native.safetensors", "--to", "row-bytes", "-o", "c.safetensors", "-q")
    assert load(tmp_path / "c.safetensors") == load(tmp_path / "a.safetensors")
