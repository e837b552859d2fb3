"""Scales of one byte and of blocks: against casts of ml_dtypes, all scales there are, and definitions."""

from __future__ import annotations

import subprocess
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from making import command, environment, load, run, run_process, save
from strategies import gaussian

import quantcli
from quantcli import Scheme, scales
from quantcli.scales import Store, e4m3, e8m0

CASTS = {"fp4": ml_dtypes.float4_e2m1fn, "fp8-e4m3": ml_dtypes.float8_e4m3fn, "fp8-e5m2": ml_dtypes.float8_e5m2}
TOPS = {"fp4": 6.0, "fp8-e4m3": 448.0, "fp8-e5m2": 57344.0}
NVFP4: dict[str, Any] = {"format": "fp4", "group_size": 16, "scale_dtype": "float8_e4m3"}
MXFP4: dict[str, Any] = {"format": "fp4", "group_size": 32, "scale_dtype": "float8_e8m0"}
MXFP8: dict[str, Any] = {"format": "fp8-e4m3", "group_size": 32, "scale_dtype": "float8_e8m0"}
FP8: dict[str, Any] = {"format": "fp8-e4m3", "granularity": "channel", "calibration": "mse"}


def weights(kind: str, rows: int = 96, cols: int = 512) -> np.ndarray:
    rng = np.random.default_rng(5)
    shape = rows, cols
    found: np.ndarray = rng.standard_t(4, shape) if kind == "t4" else rng.standard_normal(shape)
    if kind == "laplace":
        found = rng.laplace(size=shape)
    return np.asarray((found * 0.02).astype(ml_dtypes.bfloat16))


def errors(groups: np.ndarray, scale: np.ndarray, form: str) -> np.ndarray:
    """Squared errors of groups (count, n) cast to small floats under scales (count, trials)."""
    quotients = groups[:, None, :].astype(np.float32) / scale[..., None].astype(np.float32)
    cast = np.clip(quotients, -TOPS[form], TOPS[form]).astype(CASTS[form]).astype(np.float64)
    found: np.ndarray = ((groups[:, None, :] - cast * scale[..., None].astype(np.float64)) ** 2).sum(axis=2)
    return found


# ---- powers of two -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "largest"), [("fp4", 2), ("fp8-e4m3", 8), ("fp8-e5m2", 15)])
def test_min_max_follows_the_rule_of_the_ocp(form: str, largest: int) -> None:
    """The exponent of the largest weight less that of the largest number of the format."""
    x = gaussian(64, 96, seed=3, scale=3.0).astype(np.float32)
    x[0, :32], x[1, :32] = 0, 2.0**-140
    found = quantcli.quantize(x, format=form, group_size=32, scale_dtype="float8_e8m0", calibration="minmax")
    most = np.abs(x.reshape(64, 3, 32)).max(axis=2)
    wanted = 2.0 ** np.maximum(np.floor(np.log2(np.where(most > 0, most, 1))) - largest, -126)
    wanted[most == 0] = 1
    np.testing.assert_array_equal(found.scale, wanted)


def test_bytes_are_those_of_the_float_type() -> None:
    raw = np.arange(256, dtype=np.uint8)
    wanted = raw.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    store = Store("F8_E8M0")
    np.testing.assert_array_equal(e8m0.effective(raw, store), wanted)
    np.testing.assert_array_equal(e8m0.stored(wanted[1:255], store), raw[1:255])


@pytest.mark.parametrize("fields", [NVFP4, MXFP4, MXFP8], ids=lambda f: Scheme(**f).name)
def test_what_is_settled_is_stored_exactly_and_stays(fields: dict[str, Any]) -> None:
    scheme = Scheme(**fields)
    storage, store = scales.of(scheme), Store(scheme.scale_dtype, 2.0**-9)
    wanted = np.geomspace(1e-30, 1e30, 4000).reshape(4, 1000)
    settled = storage.settle(wanted, scheme, store)
    raw = np.ascontiguousarray(storage.stored(settled, store)).view(np.uint8)
    np.testing.assert_array_equal(storage.effective(raw.reshape(-1), store).reshape(settled.shape), settled)
    np.testing.assert_array_equal(storage.settle(settled.astype(np.float64), scheme, store), settled)


@pytest.mark.parametrize("fields", [
    NVFP4, MXFP4, MXFP8, {"format": "iq4", "scale_dtype": "super-blocks"}, {"format": "codebook"},
    {"format": "codebook", "scale_dtype": "float8_e4m3"}, {"format": "int", "scale_dtype": "bfloat16"},
], ids=str)  # fmt: skip
def test_the_scheme_of_an_array_makes_itself_again(fields: dict[str, Any]) -> None:
    """Super-blocks became float16, which is the dtype of the scales above those of their groups."""
    scheme = Scheme(**fields)
    found = quantcli.quantize(gaussian(2, 512, seed=7).astype(np.float32), scheme).scheme
    again = Scheme(**found.as_dict())
    assert (again.name, again.storage, again.scale_dtype) == (scheme.name, scheme.storage, found.scale_dtype)


# ---- the search --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["normal", "laplace", "t4"])
@pytest.mark.parametrize("fields", [NVFP4, MXFP4, MXFP8], ids=lambda f: Scheme(**f).name)
def test_no_scale_that_can_be_stored_is_better_by_much(fields: dict[str, Any], kind: str) -> None:
    """Every scale a byte can be, tried by casts: the search leaves at most 0.1 % more error, and never more than
    min-max, group by group."""
    x, scheme = weights(kind), Scheme(**fields)
    found = quantcli.quantize(x, scheme)
    size = scheme.group_size
    groups = x.astype(np.float64).reshape(-1, size)
    unit = e4m3.overall(float(np.abs(groups).max()), scheme) if scheme.storage == "e4m3" else 1.0
    held = np.arange(1, 127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64) * unit
    if scheme.storage == "e8m0":
        held = 2.0 ** np.arange(-30.0, 10.0)
    own = found.scale.reshape(-1, 1)
    assert np.isin(own, held).all()
    least = np.concatenate([errors(part, np.broadcast_to(held, (len(part), len(held))), scheme.format).min(axis=1)
                            for part in np.array_split(groups, 8)])  # fmt: skip
    got = errors(groups, own, scheme.format)[:, 0]
    assert got.sum() <= least.sum() * 1.001
    plain = quantcli.quantize(x, **{**fields, "calibration": "minmax"}).scale.reshape(-1, 1)
    assert (got <= errors(groups, plain, scheme.format)[:, 0] * (1 + 1e-6)).all()


@pytest.mark.parametrize(("fields", "least"), [
    (NVFP4, (21.7, 21.6, 21.55)), (MXFP4, (19.03, 18.2, 17.8)), (MXFP8, (31.4, 31.4, 31.4)),
    (FP8, (31.65, 31.7, 31.8)),
], ids=["nvfp4", "mxfp4", "mxfp8", "fp8c"])  # fmt: skip
def test_quality(fields: dict[str, Any], least: tuple[float, ...]) -> None:
    """Above the rules of the formats: 20.4, 18.9, 30.7 and 31.5 dB of normal weights in bfloat16."""
    for kind, bound in zip(("normal", "laplace", "t4"), least):
        x = weights(kind, 256, 2048)
        found = quantcli.quantize(x, **fields).metrics(x).sqnr_db
        assert found is not None and found >= bound
        assert found > (quantcli.quantize(x, **{**fields, "calibration": "minmax"}).metrics(x).sqnr_db or 0)


def test_importance_counts() -> None:
    """Errors of columns that count much are smaller than without."""
    from quantcli.kernels import F32, Tile, load

    x = gaussian(64, 64, seed=9).astype(np.float32)
    counts = np.where(np.arange(64) % 8 == 0, 2000.0, 1.0)
    table, scheme = load(), Scheme(**NVFP4)
    from quantcli.calibrators import mse

    plain = mse.local(table, Tile(x.ravel(), F32, 64, 64, 16), scheme, Store("F8_E4M3", 2.0**-6))
    own = mse.local(table, Tile(x.ravel(), F32, 64, 64, 16, counts), scheme, Store("F8_E4M3", 2.0**-6))
    assert plain is not None and own is not None
    sums = []
    for ideal in (plain, own):
        scale = np.repeat(ideal.scale, 16, axis=1)
        cast = np.clip(x / scale, -6, 6).astype(CASTS["fp4"]).astype(np.float64) * scale
        sums.append(float(((x - cast) ** 2 * counts).sum()))
    assert sums[1] < sums[0]


# ---- blocks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 72), (32, 64), (7, 5), (33, 31), (200,), (3, 16, 40), (3, 5, 40), (8, 4, 3, 3)])
@pytest.mark.parametrize("fields", [
    {"format": "fp8-e4m3", "calibration": "minmax", "scale_dtype": "float32"},
    {"format": "int", "bits": 8, "calibration": "minmax", "scale_dtype": "float32"},
    {"format": "fp8-e4m3", "scale_dtype": "float8_e8m0", "calibration": "minmax"},
], ids=["fp8", "int8", "fp8-e8m0"])  # fmt: skip
def test_a_block_has_the_scale_of_its_largest_weight(fields: dict[str, Any], shape: tuple[int, ...]) -> None:
    x = gaussian(*shape, seed=2).astype(np.float32)
    found = quantcli.quantize(x, **fields, granularity="block", group_size=16)
    stack = x.reshape(-1, *x.shape[-2:]) if len(shape) == 3 else x.reshape(1, x.shape[0] if x.ndim > 1 else 1, -1)
    top = TOPS.get(found.scheme.format, 127.0)
    wanted = []
    for matrix in stack:
        blocks = [[np.abs(matrix[i : i + 16, j : j + 16]).max() for j in range(0, matrix.shape[1], 16)]
                  for i in range(0, matrix.shape[0], 16)]  # fmt: skip
        scale = np.array(blocks, np.float64)
        wanted.append(2.0 ** (np.floor(np.log2(scale)) - 8) if found.scheme.storage == "e8m0" else scale / top)
    np.testing.assert_allclose(found.scale, np.array(wanted).reshape(found.scale.shape), rtol=1e-6)
    error = found.metrics(x)
    assert error.sse == pytest.approx(float(((found.dequantize().astype(np.float64) - x) ** 2).sum()), rel=1e-6)


def test_blocks_that_would_cross_matrices_are_refused() -> None:
    with pytest.raises(quantcli.UsageError, match="would cross matrices of 20 rows"):
        quantcli.quantize(np.ones((3, 20, 32), np.float32), format="fp8-e4m3", granularity="block", group_size=16)


# ---- files -------------------------------------------------------------------------------------------------------

OPTIONS = {
    "nvfp4": "--type fp4 --group-size 16 --scale-dtype float8_e4m3",
    "mxfp4": "--type fp4 --group-size 32 --scale-dtype float8_e8m0",
    "mxfp8": "--type fp8-e4m3 --group-size 32 --scale-dtype float8_e8m0",
    "fp8-e4m3b128x128": "--type fp8-e4m3 --granularity block",
    "fp8-e4m3b16x16-e8m0": "--type fp8-e4m3 --granularity block --group-size 16 --scale-dtype float8_e8m0",
    "w8b32x32": "--bits 8 --granularity block --group-size 32",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_native_files_hold_them(name: str, tmp_path: Any) -> None:
    """Written, verified against the original, and decoded to the numbers of the array interface."""
    x = {"a.weight": gaussian(160, 96, seed=1), "b.weight": gaussian(33, 300, seed=2)}
    x["c"] = gaussian(8, 16, 3, 3, seed=3)
    save(tmp_path / "m.safetensors", x)
    words = ["quantize", tmp_path / "m.safetensors", "--to", "native", "--no-default-keep", *OPTIONS[name].split()]
    for threads, kernels in ((1, ""), (2, ""), (2, "numpy")):
        out = tmp_path / f"q{threads}{kernels}.safetensors"
        if kernels:
            ran = run_process(*words, "--threads", threads, "-o", out, QUANTCLI_KERNELS=kernels)
        else:
            ran = run(*words, "--threads", threads, "-o", out)
        assert ran.code == 0, ran
    made = {(tmp_path / f"q{n}.safetensors").read_bytes() for n in ("1", "2", "2numpy")}
    assert len(made) == 1
    ran = run("verify", tmp_path / "q1.safetensors", "--source", tmp_path / "m.safetensors", "-q")
    assert ran.code == 0, ran
    with quantcli.open(str(tmp_path / "q1.safetensors")) as model:
        for key, array in x.items():
            tensor = model[key]
            assert tensor.scheme is not None and tensor.scheme.name == name
            np.testing.assert_array_equal(tensor.numpy(), quantcli.quantize(array, tensor.scheme).dequantize())
    assert run("dequantize", tmp_path / "q1.safetensors", "-o", tmp_path / "d.safetensors", "-q").code == 0
    assert set(load(tmp_path / "d.safetensors")) == set(x)


def test_weights_that_are_joined_share_the_scale_of_the_tensor(tmp_path: Any) -> None:
    sizes = {"q_proj": 1.0, "k_proj": 40.0, "v_proj": 0.01, "o_proj": 0.01}
    x = {f"l.{name}.weight": gaussian(64, 64, seed=4) * size for name, size in sizes.items()}
    save(tmp_path / "m.safetensors", x)
    ran = run("quantize", tmp_path / "m.safetensors", *OPTIONS["nvfp4"].split(), "-o", tmp_path / "q.safetensors")
    assert ran.code == 0, ran
    assert run("verify", tmp_path / "q.safetensors", "--source", tmp_path / "m.safetensors", "-q").code == 0
    with quantcli.open(str(tmp_path / "q.safetensors")) as model:
        found = {name: model[f"l.{name}.weight"].overall() for name in sizes}
    largest = max(float(np.abs(x[f"l.{name}.weight"]).max()) for name in ("q_proj", "k_proj", "v_proj"))
    assert found["q_proj"] == found["k_proj"] == found["v_proj"] == e4m3.overall(largest, Scheme(**NVFP4))
    assert found["o_proj"] < found["q_proj"]
    words = command("quantize", "-", *OPTIONS["nvfp4"].split(), "-o", tmp_path / "p.safetensors")
    raw = (tmp_path / "m.safetensors").read_bytes()
    piped = subprocess.run(words, input=raw, capture_output=True, env=environment(), check=False)
    assert piped.returncode == 1 and b"is shared with" in piped.stderr and b"name a file" in piped.stderr


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e30, 3e38])
@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "mxfp8"])
def test_weights_of_any_size(name: str, size: float) -> None:
    fields = {"nvfp4": NVFP4, "mxfp4": MXFP4, "mxfp8": MXFP8}[name]
    x = gaussian(32, 64, seed=6).astype(np.float64)
    x = (x / np.abs(x).max() * size).astype(np.float32)
    found = quantcli.quantize(x, **fields)
    assert np.isfinite(found.dequantize()).all()
    assert (found.metrics(x).sqnr_db or 0) > 12 if size > 1e-37 else True
