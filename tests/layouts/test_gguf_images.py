"""GGUFs of models of pictures beside what ComfyUI-GGUF's own converter makes of the same checkpoints, and components of
diffusers beside the rows that ComfyUI and diffusers have for them."""

from __future__ import annotations

import json
import math
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import GOLDEN_FILES, one_line, raw_tensors, run, save

from quantcli.dtypes import from_float32, to_float32
from quantcli.layouts.gguf.images.mixes import image_mix
from quantcli.layouts.gguf.images.models import IMAGE_MODELS, image_model
from quantcli.models import open_model
from quantcli.stores import open_source
from quantcli.stores.gguf_types import TYPES
from quantcli.tensors.info import TensorInfo

GOLDEN: dict[str, Any] = json.loads((GOLDEN_FILES / "gguf" / "images.json").read_text())
"""Written by peers/write_images.py."""
CONVERTED = GOLDEN["converted"]


class Stored:
    """The keys of a file, and its tensors as they are stored: their types and shapes."""

    def __init__(self, path: Path) -> None:
        with closing(open_source(str(path))) as source:
            self.keys = dict(source.keys)
        self.raw, self.tensors = path.read_bytes(), dict[str, tuple[str, list[int]]]()
        at = self.raw.index(b"quantcli_export")
        at = self.raw.index(b"{", at)
        at += int.from_bytes(self.raw[at - 8 : at], "little")  # behind the last key
        for _ in range(int.from_bytes(self.raw[8:16], "little")):
            size = int.from_bytes(self.raw[at : at + 8], "little")
            name, at = self.raw[at + 8 : at + 8 + size].decode(), at + 8 + size
            count, at = int.from_bytes(self.raw[at : at + 4], "little"), at + 4
            dims = struct.unpack_from(f"<{count}Q", self.raw, at)
            kind = TYPES[int.from_bytes(self.raw[at + 8 * count : at + 8 * count + 4], "little")].name
            self.tensors[name] = (kind, list(dims[::-1]))
            at += 8 * count + 12


def checkpoint(path: Path, name: str, prefix: str = "") -> dict[str, np.ndarray]:
    """The checkpoint of a case, and its values; behind a prefix beside a tensor of another part."""
    rng, case = np.random.default_rng(0), CONVERTED[name]
    values = {n: (rng.standard_normal(s) * 0.1).astype(np.float32) for n, s in case["shapes"].items()}
    raw = {n: np.ascontiguousarray(from_float32(v, case["dtype"])) for n, v in values.items()}
    stored = {f"{prefix}{n}": (case["dtype"], values[n].shape, v.tobytes()) for n, v in raw.items()}
    if prefix:
        stored["first_stage_model.encoder.weight"] = ("F32", (64, 64), bytes(4 * 64 * 64))
    path.write_bytes(raw_tensors(stored))
    return {n: to_float32(v.view(np.uint8).ravel(), case["dtype"]).reshape(values[n].shape) for n, v in raw.items()}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", list(CONVERTED))
def test_the_file_has_the_types_shapes_and_keys_of_comfyui(name: str, prefix: str, tmp_path: Path) -> None:
    source, out, case = tmp_path / "model.safetensors", tmp_path / "out.gguf", CONVERTED[name]
    values = checkpoint(source, name, prefix)
    ran = run("quantize", source, "--to", "gguf:Q4_K_M", "-o", out)
    assert ran.code == 0, ran.err
    made = Stored(out)
    assert made.keys["general.architecture"] == name and made.keys["general.file_type"] == 15
    assert {k: v for k, v in made.keys.items() if k.startswith("comfy.")} == case["keys"]
    for tensor, (kind, shape) in case["tensors"].items():
        own, stored = made.tensors[tensor]
        assert stored == shape, tensor
        assert own == kind or (own in ("Q4_K", "Q5_K", "Q6_K") and shape[-1] % 256 == 0), (tensor, own, kind)
    left = set(case["shapes"]) - set(case["tensors"])
    assert set(made.tensors) == set(case["tensors"]) | left
    with open_model(str(out)) as model:  # in the shapes that the model has
        for tensor, view in model.items():
            before = values[tensor].ravel()
            assert view.info.shape == values[tensor].shape
            assert np.abs(view.read(0, before.size) - before).max() <= (0.06 if view.scheme else 0), tensor


def test_wholes_are_compared_under_their_own_names(tmp_path: Path) -> None:
    source, out = tmp_path / "model.safetensors", tmp_path / "out.gguf"
    checkpoint(source, "sdxl", "model.diffusion_model.")
    run("quantize", source, "--to", "gguf:Q8_0", "-o", out)
    found = run("compare", source, out, "--json").json
    assert {t["name"] for t in found["tensors"]} >= set(CONVERTED["sdxl"]["shapes"])
    assert found["summary"]["sqnr_db"] > 40


def test_convolutions_over_time_are_floats(tmp_path: Path) -> None:
    source, out = tmp_path / "model.safetensors", tmp_path / "out.gguf"
    shapes = {**CONVERTED["wan"]["shapes"], "patch_embedding.weight": [256, 16, 1, 2, 2]}
    save(source, {n: np.full(s, 0.5, np.float16) for n, s in shapes.items()})
    assert run("quantize", source, "--to", "gguf", "-o", out).code == 0
    assert Stored(out).tensors["patch_embedding.weight"] == ("F32", [256, 16, 1, 2, 2])
    assert run("verify", out).code == 0


# ---- diffusers --------------------------------------------------------------------------------------------------


def component(folder: Path, kind: str, tensors: dict[str, np.ndarray]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": kind}))
    save(folder / "diffusion_pytorch_model.safetensors", tensors)


def test_the_parts_of_a_flux_are_put_together_as_comfyui_does(tmp_path: Path) -> None:
    """Every row of diffusers has a number of its own; ComfyUI's own table says where it goes."""
    width, wanted, stored = 4, dict[str, np.ndarray](), dict[str, np.ndarray]()
    for ours, parts in GOLDEN["flux"].items():
        cols = () if ours.endswith((".bias", ".scale")) else (64,)
        held = []
        for name, at in parts:
            rows = 256 if "linear2" in ours else 4 * width if name.split(".")[-2] == "proj_mlp" else width
            values = np.arange(rows)[:, None] + np.full((rows, math.prod(cols)), 7.0 * len(stored))
            stored[name] = values.reshape(rows, *cols).astype(np.float32)
            if at == "swapped":
                held += [stored[name][rows // 2 :], stored[name][: rows // 2]]
            else:
                held.append(stored[name])
        wanted[ours] = np.concatenate(held)
    component(tmp_path / "flux", "FluxTransformer2DModel", stored)
    out = tmp_path / "out.gguf"
    ran = run("quantize", tmp_path / "flux", "--to", "gguf:Q8_0", "-o", out)
    assert ran.code == 0, ran.err
    with open_model(str(out)) as model:
        assert set(model) == set(wanted)
        assert {n for n, view in model.items() if view.scheme} <= {f"single_blocks.0.linear{n}.weight" for n in "12"}
        for name, view in model.items():
            error = np.abs(view.read(0, wanted[name].size) - wanted[name].ravel()).max()
            assert error == 0 or (view.scheme and error < 3), name


def test_a_wan_of_diffusers_gets_its_own_names(tmp_path: Path) -> None:
    names = GOLDEN["wan"].values()
    stored: dict[str, Any] = {theirs: np.full((2, 3), i, np.float32) for i, theirs in enumerate(names)}
    stored["blocks.0.attn1.norm_q.weight"] = np.ones(2, np.float32)
    stored["blocks.0.attn1.to_q.weight"] = np.ones((256, 256), np.float32)
    component(tmp_path / "wan", "WanTransformer3DModel", stored)
    out = tmp_path / "out.gguf"
    ran = run("quantize", tmp_path / "wan", "--to", "gguf:Q4_K_M", "-o", out)
    assert ran.code == 0, ran.err
    with open_model(str(out)) as model:
        assert set(model) == set(GOLDEN["wan"])
        for i, ours in enumerate(GOLDEN["wan"]):
            if ours not in ("blocks.0.self_attn.norm_q.weight", "blocks.0.self_attn.q.weight"):
                assert model[ours].read(0, 6).tolist() == [i] * 6, ours


@pytest.mark.parametrize(
    ("kind", "tensors", "expected"),
    [
        ("SD3Transformer2DModel", {"a.weight": (64, 64)}, "SD3Transformer2DModel of diffusers is not mapped"),
        ("FluxTransformer2DModel", {"a.weight": (64, 64)},
         "a.weight: the model of ComfyUI has no such tensor; pass the single file"),
        ("FluxTransformer2DModel", {"transformer_blocks.0.attn.to_q.weight": (64, 64)},
         "double_blocks.0.img_attn.qkv.weight: transformer_blocks.0.attn.to_q.weight is there, but not all"),
        ("FluxTransformer2DModel",
         {f"transformer_blocks.0.attn.to_{n}.weight": (64, k) for n, k in zip("qkv", (64, 64, 32))},
         "it does not fit transformer_blocks.0.attn.to_q.weight"),
        ("FluxTransformer2DModel", {"norm_out.linear.weight": (3, 64)}, "its rows have no halves"),
    ],
)  # fmt: skip
def test_what_is_not_certain_is_refused(
    kind: str, tensors: dict[str, tuple[int, ...]], expected: str, tmp_path: Path
) -> None:
    component(tmp_path / "m", kind, {n: np.ones(s, np.float32) for n, s in tensors.items()})
    ran = run("quantize", tmp_path / "m", "--to", "gguf", "-o", tmp_path / "out.gguf")
    assert expected in one_line(ran, ran.code) and ran.code in (1, 2)


def test_names_of_diffusers_in_a_file(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    names = ("transformer_blocks.0.attn.norm_added_k.weight", "transformer_blocks.0.attn.to_q.weight")
    save(source, {name: np.ones((64, 64), np.float32) for name in names})
    line = one_line(run("quantize", source, "--to", "gguf", "-o", tmp_path / "out.gguf"), 2)
    assert "these are the names of diffusers" in line and "FluxTransformer2DModel" in line


# ---- which model, which types -----------------------------------------------------------------------------------


def test_every_model_is_told_by_each_of_its_marks() -> None:
    for model in IMAGE_MODELS:
        for row in model.marks:
            found = image_model({f"net.{name}" for name in row})
            assert found == (model, "net."), row


def test_types_by_file_type() -> None:
    """As the patch for llama-quantize that ComfyUI-GGUF comes with gives them."""
    names = ["a.to_v.weight", "b.attn.qkv.weight", "c.ffn.2.weight", "d.experts.0.w2.weight", "e.to_q.weight"]
    infos = [TensorInfo(name, "F32", (256, 256)) for name in names]
    bases = {"Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q3_K_M": "Q3_K", "Q2_K": "Q2_K", "Q4_0": "Q4_0"}
    found = {kind: list(image_mix(kind, base, infos).values()) for kind, base in bases.items()}
    assert found == {
        "Q4_K_M": ["Q6_K", "Q5_K", "Q6_K", "Q6_K", "Q4_K"], "Q4_K_S": ["Q5_K", "Q4_K", "Q5_K", "Q5_K", "Q4_K"],
        "Q3_K_M": ["Q5_K", "Q4_K", "Q4_K", "Q4_K", "Q3_K"], "Q2_K": ["Q3_K", "Q2_K", "Q2_K", "Q2_K", "Q2_K"],
        "Q4_0": ["Q4_0", "Q4_0", "Q4_1", "Q4_1", "Q4_0"],
    }  # fmt: skip
    many = [TensorInfo(f"{i}.to_v.weight", "F32", (256, 256)) for i in range(5)]
    assert list(image_mix("Q3_K_M", "Q3_K", many).values()) == ["Q5_K"] * 2 + ["Q4_K"] * 3
