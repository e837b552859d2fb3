"""Audits: every figure is the one its definition gives, and limits lie where they are said to lie."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_parts import Arrays, as_gptq, audited, base, problems, quantized
from hypothesis import given
from hypothesis import strategies as st
from layout_parts import values
from making import BF16, GOLDEN_FILES, change_header, one_line, run, save
from onnx_parts import f32, op, tensor, written
from strategies import gaussian

from quantcli.models import View
from quantcli.passes import audit_kept
from quantcli.passes.audit_path import audit_path
from quantcli.passes.audit_sample import spans_of

NAME, STEP = "layers.0.up.weight", 0.125
Coded = tuple[np.ndarray, np.ndarray]


def on_grid(rows: int = 128, cols: int = 320, off: float = 0.45, seed: int = 0) -> tuple[np.ndarray, Coded]:
    """Weights that are a part of a step away from codes of 4 bits, and these codes and their scales."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(1, 15, (rows, cols))
    weights = (codes - 8 + rng.uniform(-off, off, codes.shape)) * STEP
    return weights.astype(np.float32), (codes, np.full((rows, cols // 64), STEP))


def moved(codes: np.ndarray, columns: Sequence[int], by: int = 1) -> np.ndarray:
    """The same codes, in some columns others that are not the nearest ones."""
    found: np.ndarray = codes.copy()
    found[:, columns] += np.where(found[:, columns] < 8, by, -by)
    return found


def told(folder: Path, weights: np.ndarray, coded: Coded) -> dict[str, Any]:
    """What an audit tells of one tensor in GPTQ's layout."""
    folder.mkdir()
    path = as_gptq(folder / "q", {NAME: coded}, {"bias": np.ones(3, np.float32)})
    source = save(folder / "base.safetensors", {NAME: weights, "bias": np.ones(3, np.float32)})
    found: dict[str, Any] = audited(path, source)[1]["by_name"][NAME]
    return found


def decibels(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return float(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()))


def test_figures_by_their_definitions(tmp_path: Path) -> None:
    """Of a tensor that is its own sample: two columns of codes are one step off, one is two."""
    weights, (codes, scales) = on_grid()
    found = told(tmp_path / "a", weights, (moved(moved(codes, [5, 70]), [200], by=2), scales))
    nearest = ((codes - 8) * STEP).astype(np.float32)
    stored = ((moved(moved(codes, [5, 70]), [200], by=2) - 8) * STEP).astype(np.float32)
    assert found["nearest_share"] == 317 / 320 and found["cleanest_column_share"] is None  # most columns have no other
    assert found["beyond_share"] == pytest.approx(np.mean(np.abs(weights - stored) > 1.05 * STEP), abs=1e-9)
    assert 1 / 320 <= found["beyond_share"] < 3 / 320
    assert found["sqnr_db"] == pytest.approx(decibels(weights, stored), abs=1e-6)
    assert found["nearest_sqnr_db"] == pytest.approx(decibels(weights, nearest), abs=1e-6)
    x, y = weights.ravel().astype(np.float64), stored.ravel().astype(np.float64)
    assert found["cosine"] == pytest.approx(x @ y / math.sqrt((x @ x) * (y @ y)), abs=1e-9)
    assert found["max_abs_error"] == pytest.approx(np.abs(x - y).max())
    assert (found["codes_used"], found["codes"], found["bits"], found["group_size"]) == (14, 16, 4, 64)
    assert found["symmetric"] is True and found["granularity"] == "group"
    assert found["shortfall_db"] == pytest.approx(
        min(found["minmax_sqnr_db"], found["best_sqnr_db"]) - found["sqnr_db"]
    )
    groups = weights.reshape(128, 5, 64)
    by = []  # the largest weight on the last code, half a step beyond it, or with its sign on the first
    for ends, top in ((7, 7), (7.5, 7), (-8, 7)):
        largest = np.abs(groups).max(2, keepdims=True)
        if ends < 0:
            largest = np.take_along_axis(groups, np.abs(groups).argmax(2)[..., None], 2)
        scale = (largest / np.float32(ends)).astype(np.float16).astype(np.float32)
        rounded = np.clip(np.rint(groups / scale), -8, top) * scale
        by.append(decibels(groups, rounded))
    assert min(abs(v - found["minmax_sqnr_db"]) for v in by) < 0.05
    assert found["best_sqnr_db"] > found["minmax_sqnr_db"] - 0.05


def test_ninety_five_percent_of_nearest_codes_are_rounding(tmp_path: Path) -> None:
    """And fewer are not: 16 columns of 320, and 17. A weight that lies far off shows where all others are rounded."""
    weights, (codes, scales) = on_grid()
    for columns, rounded in ((16, True), (17, False)):
        own = moved(codes, range(columns))
        found = told(tmp_path / f"{columns}", weights, (own, scales))
        assert found["nearest_share"] == (320 - columns) / 320 and not found["problems"]
        assert found["method"] == ("searched scales" if rounded else "error feedback (GPTQ) or other rounding")
        at = int(np.flatnonzero(codes[7] == 1)[-1]) if rounded else 3
        own[7, 3] += 4 if codes[7, 3] < 8 else -4  # in a column whose codes are not the nearest ones anyway
        found = told(tmp_path / f"{columns}-stray", weights, (own, scales))
        assert at >= 0 and found["nearest_share"] == (320 - columns) / 320
        line = "one weight of the sample changed by more than 3 steps, where the other codes are the nearest ones"
        assert found["problems"] == ([line] if rounded else [])


def test_weights_that_are_zero_are_as_near_as_can_be(tmp_path: Path) -> None:
    """Half of the base's weights are 0 already, and stay so: nobody pruned it."""
    weights, (codes, scales) = on_grid()
    weights[:, ::2], codes[:, ::2] = 0, 8
    found = told(tmp_path / "a", weights, (codes, scales))
    assert found["nearest_share"] == 1 and found["problems"] == []


@pytest.mark.parametrize(("part", "named"), [(4, True), (5, False)])
def test_a_quarter_of_weights_left_out_is_pruning(part: int, named: bool, tmp_path: Path) -> None:
    """More than every fourth weight is 0 in the file, though not near it in the base."""
    weights, (codes, scales) = on_grid()
    weights[codes == 8] += STEP
    codes[codes == 8] = 9
    codes[np.add.outer(np.arange(128), np.arange(320)) % part == 0] = 8
    codes[0, :64] = 8
    found = told(tmp_path / "a", weights, (codes, scales))
    assert any("it was pruned" in line for line in found["problems"]) == named, found["problems"]


def with_scales(
    folder: Path, weights: Arrays, codes: Arrays, scales: Arrays, bits: int = 8
) -> tuple[int, dict[str, Any]]:
    """An audit of codes in bytes with a scale for each row, as compressed-tensors stores them."""
    folder.mkdir()
    arguments = {"num_bits": bits, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
    groups = {"group_0": {"targets": ["Linear"], "weights": arguments}}
    method = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": groups}
    (folder / "config.json").write_text(json.dumps({"quantization_config": method}))
    made = {n: c.astype(np.int8) for n, c in codes.items()} | {f"{n}_scale": s for n, s in scales.items()}
    save(folder / "model.safetensors", made)
    return audited(folder, save(folder.with_suffix(".safetensors"), weights))


def test_few_codes_are_half_of_those_that_rounding_gives(tmp_path: Path) -> None:
    """128 of 256 codes are few, 129 are not; nor are those of a base that has few values itself."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (128, 512))
    weights = ((codes + rng.uniform(-0.4, 0.4, codes.shape)) * 0.01).astype(np.float32)
    scales = {NAME: np.full((128, 1), 0.01, np.float32)}
    even = codes // 2 * 2
    for odd, few in ((0, True), (1, False)):
        own = even.copy()
        own[3, 5] += odd
        _, found = with_scales(tmp_path / f"{odd}", {NAME: weights}, {NAME: own}, scales)
        line = f"only {128 + odd} of 256 codes occur, and 256 would by rounding the base"
        assert (line in found["by_name"][NAME]["problems"]) == few and found["by_name"][NAME]["codes_used"] == 128 + odd
    codes = rng.integers(-2, 2, (128, 512))
    weights = ((codes + rng.uniform(-0.4, 0.4, codes.shape)) * 0.01).astype(np.float32)
    _, found = with_scales(tmp_path / "two", {NAME: weights}, {NAME: codes // 2 * 2}, scales, bits=2)
    assert "only 2 of 4 codes occur, and 4 would by rounding the base" in found["by_name"][NAME]["problems"]
    ternary = {n: np.sign(a.astype(np.float32)).astype(BF16) if a.ndim == 2 else a for n, a in base().items()}
    for bits in ("2", "4", "8"):
        code, found = audited(
            quantized(tmp_path, ternary, f"t{bits}", "--bits", bits), tmp_path / f"t{bits}-of.safetensors"
        )
        assert code == 0, problems(found)


@pytest.mark.parametrize(("factor", "named"), [(1.04, False), (1.06, True), (0.96, False), (0.94, True), (-1, True)])
def test_weights_times_a_factor(factor: float, named: bool, tmp_path: Path) -> None:
    """Within 5 % they are only worse than the format; beyond it the factor is told; turned round they are others."""
    weights = {NAME: gaussian(128, 256, seed=1)}
    out = quantized(tmp_path, {NAME: weights[NAME] * np.float32(factor)}, "q", "--bits", "8")
    _, found = audited(out, save(tmp_path / "base.safetensors", weights))
    [line] = found["by_name"][NAME]["problems"]
    told = f"its weights are {factor:.3f} times those of the base"
    if factor < 0:
        assert line == "these are other weights: the cosine to those of the base is -1.000"
    else:
        assert line == told if named else line.endswith("dB below what this format leaves of the base")


@pytest.mark.parametrize(("count", "named"), [(3, False), (4, True)])
def test_four_tensors_of_a_kind_show_which_lies_apart(count: int, named: bool, tmp_path: Path) -> None:
    """Here for a search that was made for other weights: twice its scales in one tensor lose 4 to 6 dB."""
    made, weights = {}, {}
    for i in range(count):
        weights[f"layers.{i}.up.weight"] = w = gaussian(128, 256, seed=i)
        groups = w.reshape(128, 4, 64)
        scale = (np.abs(groups).max(2) / (7.5 if i else 4.5)).astype(np.float16)
        codes = np.clip(np.rint(groups / scale[..., None].astype(np.float32)) + 8, 0, 15)
        made[f"layers.{i}.up.weight"] = codes.reshape(128, 256).astype(np.int64), scale
    path = as_gptq(tmp_path / "q", made, {})
    code, found = audited(path, save(tmp_path / "base.safetensors", weights))
    assert code == named and set(problems(found)) == ({NAME} if named else set())
    assert not named or "dB below the other tensors of w4g64" in problems(found)[NAME]
    assert (found["by_name"][NAME]["score"] is not None) == named


# ---- samples ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9000), st.integers(1, 40000), st.sampled_from([1, 2, 128]))
def test_samples_are_rows_of_all_parts(rows: int, cols: int, height: int) -> None:
    """No row twice, whole blocks of rows, from the first to the last sixteenth; all of a small tensor, and of a large
    one about as many weights as are said."""
    spans = spans_of(rows, cols, height)
    taken = [row for span in spans for row in range(span.row, span.row + span.rows)]
    assert taken == sorted(set(taken)) and taken[0] >= 0 and taken[-1] < rows
    assert all(span.row % height == 0 and (span.rows % height == 0 or span.row + span.rows == rows) for span in spans)
    assert all((span.col, span.cols) == (0, cols) for span in spans)
    if rows * cols <= 1 << 18:
        assert taken == list(range(rows))
    elif height == 1:
        assert len(taken) * cols <= max(1 << 19, cols * 16) and len(taken) * cols > min(1 << 17, rows * cols // 2)
        assert len(spans) == 1 or taken[-1] >= rows - -(-rows // len(spans)) - len(spans)


def of_convolution(folder: Path, weights: np.ndarray, each: bool) -> tuple[int, dict[str, Any]]:
    """An audit of a convolution in ONNX with a scale for each output channel, or one for all."""
    largest = np.abs(weights).max(axis=(1, 2, 3) if each else None)
    scale = (largest / np.float32(127)).astype(np.float32)
    codes = np.rint(weights / (scale[:, None, None, None] if each else scale)).astype(np.int8)
    parts = [
        op("DequantizeLinear", ["k_quantized", "k_scale", "k_zero"], ["k_d"], axis=0),
        op("Conv", ["x", "k_d"], ["y"]),
        tensor("k_quantized", 3, codes.shape, codes.tobytes()),
        f32("k_scale", scale),
        tensor("k_zero", 3, scale.shape, bytes(scale.size)),
    ]
    path = written(folder / "q.onnx", *parts)
    return audited(path, written(folder / "base.onnx", op("Conv", ["x", "k"], ["y"]), f32("k", weights)))


@pytest.mark.parametrize(("each", "sign"), [(True, 1), (False, 1), (False, -1)])
def test_convolutions_larger_than_a_sample(each: bool, sign: int, tmp_path: Path) -> None:
    """Scales of the sampled channels, which differ; with one scale for all the largest weights count, in channels that
    are not sampled: the last but one of a run of channels, and the last of all."""
    weights = gaussian(1200, 32, 3, 3, seed=4) * (1 + np.arange(1200, dtype=np.float32)[:, None, None, None] % 7)
    if not each:
        weights[73, 5, 1, 1], weights[1199, 31, 2, 2] = 60 * sign, -95 * sign
    code, document = of_convolution(tmp_path, weights.astype(np.float32), each)
    assert code == 0, problems(document)
    found = document["by_name"]["k"]
    assert found["method"] == "min-max" and found["nearest_share"] == 1
    assert found["granularity"] == ("channel" if each else "tensor")
    if each:
        assert found["minmax_scales_share"] == 1
    else:
        assert found["nearest_sqnr_db"] == pytest.approx(found["minmax_sqnr_db"], abs=0.1)


def test_experts_in_three_dimensions(tmp_path: Path) -> None:
    """All rows of all experts, with offsets of their own: figures are those of the whole tensor."""
    weights = {"experts.weight": gaussian(3, 40, 128, seed=2) + np.float32(0.5)}
    for options in (["--asymmetric", "--calibration", "minmax"], ["--type", "codebook"]):
        out = quantized(tmp_path, weights, "q", "--bits", "4", *options, "--force")
        code, document = audited(out, tmp_path / "q-of.safetensors")
        assert code == 0, problems(document)
        found = document["by_name"]["experts.weight"]
        x, y = (v["experts.weight"].astype(np.float64).ravel() for v in (weights, values(out)))
        assert found["cosine"] == pytest.approx(x @ y / math.sqrt((x @ x) * (y @ y)), abs=1e-7)
        assert found["method"] == ("" if "codebook" in options else "min-max")


def test_experts_of_mlx(tmp_path: Path) -> None:
    """Three dimensions in MLX's layout, written here: eight codes in a word, a scale and an offset for each 64."""
    weights = gaussian(3, 40, 128, seed=2).astype(np.float32)
    groups = weights.reshape(3, 40, 2, 64)
    offset, scale = groups.min(-1), (groups.max(-1) - groups.min(-1)) / np.float32(15)
    codes = np.clip(np.rint((groups - offset[..., None]) / scale[..., None]), 0, 15).astype(np.uint32)
    packed = (codes.reshape(3, 40, 16, 8) << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32)
    name = "switch_mlp.up_proj"
    folder, parts = tmp_path / "q", {f"{name}.weight": packed, f"{name}.scales": scale, f"{name}.biases": offset}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"quantization": {"bits": 4, "group_size": 64}}))
    save(folder / "model.safetensors", parts)
    code, document = audited(folder, save(tmp_path / "base.safetensors", {f"{name}.weight": weights}))
    assert code == 0, problems(document)
    found = document["by_name"][f"{name}.weight"]
    assert (found["method"], found["nearest_share"], found["minmax_scales_share"]) == ("min-max", 1, 1)


def test_a_quantized_base(tmp_path: Path) -> None:
    """Quantized again from what its library makes of its codes, floats of 16 bits: each code is the nearest one."""
    golden = GOLDEN_FILES / "audits" / "gptq"
    ran = run(
        "quantize",
        golden,
        "--requantize",
        "--bits",
        "8",
        "--rounding",
        "nearest",
        "--to",
        "native",
        "-o",
        tmp_path / "q",
        "-q",
    )
    assert ran.code == 0, ran
    code, found = audited(tmp_path / "q", golden)
    shares = [t["nearest_share"] for t in found["tensors"] if t["became"] == "quantized"]
    assert code == 0 and shares == [1] * len(shares) and len(shares) >= 14, problems(found)


@pytest.mark.parametrize(("dtypes", "named"), [
    ((np.float32,), True), ((np.float16,), False), ((BF16,), False), ((BF16, np.float32), False),
])  # fmt: skip
def test_scales_in_float32_tell_smaller_changes(dtypes: Sequence[type], named: bool, tmp_path: Path) -> None:
    """The largest weights are 0.1 % off, within what rounding to 16 bits explains, also of scales that are stored in
    float32 after it."""
    rng = np.random.default_rng(99)
    weights = {f"layers.{i}.up.weight": gaussian(128, 512, seed=i).astype(BF16) for i in range(3)}
    codes, scales = {}, {}
    for name, w in weights.items():
        other = w.astype(np.float32) * (1 + np.float32(0.001) * rng.normal(size=w.shape).astype(np.float32))
        scales[name] = np.abs(other).max(1, keepdims=True) / np.float32(7)
        for dtype in dtypes:
            scales[name] = scales[name].astype(dtype)
        codes[name] = np.clip(np.rint(other / scales[name].astype(np.float32)), -8, 7)
    code, found = with_scales(tmp_path / "q", weights, codes, scales, bits=4)
    assert code == named and all("min-max scales, but" in line for line in problems(found).values()), problems(found)


@pytest.mark.parametrize("inner", [True, False])
def test_ranges_of_positive_weights(inner: bool, tmp_path: Path) -> None:
    """Float offsets are the lowest weight itself; a zero point is a code, so that ranges begin at 0."""
    weights = {n: (np.abs(a.astype(np.float32)) + 1).astype(BF16) if a.ndim == 2 else a for n, a in base().items()}
    options = ["--zero-point", "float"] if inner else []
    out = quantized(tmp_path, weights, "q", "--bits", "4", "--asymmetric", "--calibration", "minmax", *options)
    code, found = audited(out, tmp_path / "q-of.safetensors")
    assert code == 0, problems(found)
    shares = [t["minmax_scales_share"] for t in found["tensors"] if t["became"] == "quantized"]
    assert shares == [1] * 8 and {m["method"] for m in found["methods"]} == {"min-max"}


# ---- kept tensors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "became", "note"), [
    (lambda a: a.copy(), "equal", ""),
    (lambda a: a.astype(np.float16), "cast", "rounded from F32 to F16"),
    (lambda a: a.astype(BF16), "cast", "rounded from F32 to BF16"),
    (lambda a: a.astype(np.float16).astype(np.float32), "cast", "rounded from F32 to F16, stored as F32"),
    (lambda a: a.astype(BF16).astype(np.float32), "cast", "rounded from F32 to BF16, stored as F32"),
    (lambda a: a.astype(BF16).astype(np.float16), "cast", "rounded from F32 to BF16, stored as F16"),
    (lambda a: np.where(a == 0, np.float32(-0.0), a), "cast", "the same values, zeros of another sign or other NaN"),
    (lambda a: a.astype(np.float64), "cast", "F32 to F64, no value changed"),
    (lambda a: np.nextafter(a, np.float32(9)), "changed", ""),
])  # fmt: skip
def test_how_a_kept_tensor_was_rounded(
    change: Callable[[np.ndarray], np.ndarray], became: str, note: str, tmp_path: Path
) -> None:
    norm = np.append(gaussian(63, seed=3), np.float32(0))
    out = quantized(tmp_path, {NAME: gaussian(64, 128, seed=1)}, "q")
    source = save(tmp_path / "base.safetensors", {NAME: gaussian(64, 128, seed=1), "norm.weight": norm})
    parts = as_gptq(tmp_path / "g", {NAME: on_grid(64, 128)[1]}, {"norm.weight": change(norm)})
    save(tmp_path / "base.safetensors", {NAME: on_grid(64, 128)[0], "norm.weight": norm})
    code, found = audited(parts, source)
    told = found["by_name"]["norm.weight"]
    assert out.exists() and (told["became"], told["note"]) == (became, note) and code == (became == "changed")


def test_missing_tensors_are_looked_for_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whole tensors are read for those that begin alike, and a copy of a missing one is found among them; 200 missing
    beside 200 others of their shape were compared 40,000 times."""
    weights, coded = on_grid(64, 128)
    lost = {f"lost.{i}": gaussian(16, 16, seed=i) for i in range(200)}
    kept = {f"kept.{i}": gaussian(16, 16, seed=200 + i) for i in range(198)}
    late = lost["lost.7"].copy()
    late[-1, -1] += 1
    kept |= {"copy": lost["lost.5"], "late": late}
    source = save(tmp_path / "base.safetensors", {NAME: weights, **lost, **kept})
    seen: list[str] = []
    same = audit_kept.same

    def counted(a: View, b: View, first: int, last: int) -> tuple[str, ...]:
        seen.append(a.info.name)
        return same(a, b, first, last)

    monkeypatch.setattr(audit_kept, "same", counted)
    code, found = audited(as_gptq(tmp_path / "q", {NAME: coded}, kept), source)
    told = {n: t["note"] for n, t in found["by_name"].items() if t["became"] == "shared"}
    assert code == 1 and told == {"lost.5": "the base has the same values in copy"}
    assert len(problems(found)) == 199 and seen == ["lost.5", "lost.7"]


def test_what_holds_no_weights_may_come_and_go(tmp_path: Path) -> None:
    """Position numbers are in the document alone; a copy of a tensor that the file has is stored once."""
    weights, coded = on_grid(64, 128)
    ids, embedding = np.arange(9, dtype=np.int64), gaussian(8, 4, seed=2)
    source = save(tmp_path / "base.safetensors", {
        NAME: weights, "position_ids": ids, "embedding": embedding, "head": embedding, "other": embedding + 1,
    })  # fmt: skip
    kept = {"embedding": embedding, "other": embedding + 1, "inv_ids": ids}
    code, found = audited(as_gptq(tmp_path / "q", {NAME: coded}, kept), source)
    became = {
        n: (t["became"], t["note"]) for n, t in found["by_name"].items() if t["became"] not in ("equal", "quantized")
    }
    assert code == 0 and became == {
        "inv_ids": ("extra", "it holds no weights"),
        "position_ids": ("missing", "it holds no weights"),
        "head": ("shared", "the base has the same values in embedding"),
    }
    kept |= {"embedding": embedding.reshape(4, 8)}
    code, found = audited(as_gptq(tmp_path / "shape", {NAME: coded}, kept), source)
    assert code == 1 and problems(found) == {
        "embedding": "it is [4, 8], and [8, 4] in the base"
    }  # fmt: skip


# ---- norms with gains of columns ----------------------------------------------------------------------------------


def scaled_by_awq(gain: float, seed: int = 2) -> tuple[Arrays, Arrays, np.ndarray]:
    """A base, the same with columns of its matrices times gains and its norm over them, and the gains."""
    arrays, rng = base(), np.random.default_rng(seed)
    arrays["norm.weight"][7] = 0
    s = np.exp(gain * rng.normal(size=256)).astype(np.float32)
    scaled = {n: (a * s).astype(BF16) if a.ndim == 2 else a for n, a in arrays.items()}
    scaled["norm.weight"] = (arrays["norm.weight"].astype(np.float32) / s).astype(BF16)
    return arrays, scaled, s


@pytest.mark.parametrize("change", ["none", "zero", "sign", "matrix"])
def test_a_norm_is_explained_only_as_a_whole(change: str, tmp_path: Path) -> None:
    """One weight that was 0 and is not, or that has another sign, is no gain of a column; nor is any matrix."""
    arrays, scaled, s = scaled_by_awq(0.5)
    arrays["table"] = gaussian(256, 2, seed=8).astype(BF16)
    scaled["table"] = arrays["table"].copy()
    if change == "zero":
        scaled["norm.weight"][7] = 0.25
    elif change == "sign":
        scaled["norm.weight"][9] *= -1
    elif change == "matrix":
        scaled["table"].reshape(-1)[:256] = (arrays["table"].reshape(-1)[:256].astype(np.float32) / s).astype(BF16)
    out = quantized(tmp_path, scaled, "q", "--bits", "4", "--exclude", "table")
    code, found = audited(out, save(tmp_path / "base.safetensors", arrays))
    named = {"none": set(), "matrix": {"table"}}.get(change, {"norm.weight"})
    wrong = {n for n, line in problems(found).items() if "values are not those" in line}
    assert wrong == named and code == bool(named)
    assert found["by_name"]["norm.weight"]["became"] == ("scaled" if change in ("none", "matrix") else "changed")


# ---- the pass -----------------------------------------------------------------------------------------------------


class Bar:
    """What a progress bar would show."""

    total = done = 0

    def start(self, total: int) -> None:
        self.total += total

    def advance(self, nbytes: int) -> None:
        self.done += nbytes


def test_progress_reaches_its_end(tmp_path: Path) -> None:
    arrays = base() | {"conv": gaussian(1, 5, 7, seed=1), "large": gaussian(1100, 1024, seed=2)}
    out = quantized(tmp_path, arrays, "q", "--bits", "4")
    arrays["bias"] = arrays["bias"] + np.float32(1)
    bar = Bar()
    audit_path(str(out), str(save(tmp_path / "base.safetensors", arrays)), variant=None, threads=2, progress=bar)
    assert 0 < bar.done == bar.total


def test_a_changed_header_is_refused(tmp_path: Path) -> None:
    """Of quantcli's own files: records that were changed after they were written are no evidence."""
    out = quantized(tmp_path, base(), "q", "--bits", "4")
    change_header(out, lambda document: document["tensors"][NAME].update(sse=0.5), seal=False)
    line = one_line(run("audit", out, "--source", tmp_path / "q-of.safetensors"), 2)
    assert "its quantcli header was changed after it was written" in line


def of_rows_apart(seed: int) -> np.ndarray:
    """A convolution whose filters and inputs have powers far apart, as those of Silero VAD."""
    spread = np.exp(1.3 * gaussian(64, 1, 1, seed=seed)) * np.exp(0.7 * gaussian(1, 96, 1, seed=seed + 1))
    found: np.ndarray = (0.02 * gaussian(64, 96, 3, seed=seed + 2) * spread).astype(np.float32)
    return found


@pytest.mark.parametrize("options", [
    ("--bits", "2", "--group-size", "0", "--calibration", "minmax"),
    ("--bits", "2", "--group-size", "0"),
    ("--bits", "2", "--group-size", "32", "--calibration", "percentile"),
    ("--bits", "3", "--group-size", "0"),
    ("--bits", "3", "--group-size", "0", "--calibration", "percentile"),
    ("--bits", "5", "--group-size", "-1", "--calibration", "percentile"),
    ("--bits", "6", "--group-size", "128", "--calibration", "percentile"),
], ids=" ".join)  # fmt: skip
def test_scales_that_cost_much_are_no_fault(options: Sequence[str], tmp_path: Path) -> None:
    """One scale for filters of which most become 0, scales that clip, and sums that are preserved; but other weights
    are named with each of them."""
    weights = {f"layers.{i}.conv.weight": of_rows_apart(seed=10 * i) for i in range(5)}
    out = quantized(tmp_path, weights, "q", *options)
    code, found = audited(out, save(tmp_path / "base.safetensors", weights))
    assert (code, problems(found)) == (0, {})
    others = {name: np.roll(w, (7, 5), (0, 1)) for name, w in weights.items()}
    code, found = audited(out, save(tmp_path / "others.safetensors", others))
    assert code == 1 and set(problems(found)) == set(weights)


def test_rounding_for_sums_has_a_name(tmp_path: Path) -> None:
    """At 2 bits it moves more than a twentieth of the codes, none by more than a step."""
    weights = gaussian(64, 96, 9, seed=3)
    out = quantized(tmp_path, {NAME: weights}, "q", "--bits", "2", "--group-size", "0", "--rounding", "sum-preserving")
    code, found = audited(out, save(tmp_path / "base.safetensors", {NAME: weights}))
    assert code == 0 and found["by_name"][NAME]["method"] == "rounding that preserves the sums of rows"
