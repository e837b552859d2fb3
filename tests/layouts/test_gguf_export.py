"""GGUFs as quantize --to and export write them: byte for byte those of the gguf package, read back by their names, as
models and as containers; what GGUF and llama.cpp do not take is refused before anything is written."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import (
    BF16,
    GOLDEN_FILES,
    NUMPY_OF,
    ROOT,
    command,
    digest,
    environment,
    left_behind,
    load,
    one_line,
    raw_tensors,
    run,
    save,
    to,
)
from strategies import gaussian

import quantcli
from quantcli.layouts import pieces
from quantcli.layouts.gguf import write as gguf
from quantcli.passes import outputs
from quantcli.stores import open_source
from quantcli.stores.gguf import GgufFile
from quantcli.stores.gguf_writer import GgufTensor, lay_out

GOLDEN = GOLDEN_FILES / "gguf"
"""Written by peers/write_layouts_gguf.py."""
TINY = ROOT / "sample_models" / "tiny-llama"
LIKE_GGUF = ["--calibration", "signed-extreme", "--override", "*.o_proj:bits=5",
             "--override", "*.gate_proj:symmetric=false,calibration=minmax",
             "--override", "*.up_proj:bits=5,symmetric=false,calibration=minmax",
             "--override", "*.down_proj:bits=8,calibration=minmax"]  # fmt: skip
"""What the gguf package's quantizers do, for weights they store without an error."""


class Gguf:
    """A file as our reader, which golden bytes of the gguf package prove, has it."""

    def __init__(self, path: Path) -> None:
        source = open_source(str(path))
        assert isinstance(source, GgufFile)
        self.keys = dict(source.keys)
        self.types = {
            i.name: source.blocks[i.name].type.name if i.name in source.blocks else i.dtype for i in source.infos()
        }
        self.shapes = {
            i.name: source.blocks[i.name].shape if i.name in source.blocks else i.shape for i in source.infos()
        }
        self.raw = {}
        for info in source.infos():
            held = bytearray(info.nbytes)
            source.read(info.name, 0, memoryview(held))
            self.raw[info.name] = bytes(held)
        source.close()

    def array(self, name: str) -> np.ndarray:
        return np.frombuffer(self.raw[name], NUMPY_OF[self.types[name]]).reshape(self.shapes[name])


def in_turns(array: np.ndarray, heads: int) -> np.ndarray:
    """Row 2i of a head is its row i, row 2i + 1 the one half a head later."""
    size = len(array) // heads
    order = [h * size + lane * size // 2 + i for h in range(heads) for i in range(size // 2) for lane in range(2)]
    return array[order]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A copy of the sample checkpoint."""
    shutil.copytree(TINY, tmp_path / "llama")
    return tmp_path / "llama"


def changed(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; None takes one away."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def as_one_file(folder: Path, **tensors: np.ndarray | None) -> dict[str, np.ndarray]:
    """Make a checkpoint one file, with these tensors in it (None: without it); its tensors."""
    arrays = {n: t.array for path in sorted(folder.glob("*.safetensors")) for n, t in load(path).items()}
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    found = {n: a for n, a in {**arrays, **tensors}.items() if a is not None}
    save(folder / "model.safetensors", found)
    return found


# ---- the bytes --------------------------------------------------------------------------------------------------


def test_the_bytes_of_the_gguf_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights both quantizers store without an error: keys, words, order of rows, frequencies, blocks of every type,
    kept F32, F16 and BF16, at any number of threads and from any cut."""
    monkeypatch.setattr(gguf, "__version__", "any")
    monkeypatch.setattr(outputs, "_said", lambda *_: "any")
    expected = (GOLDEN / "model.gguf").read_bytes()
    out = tmp_path / "out.gguf"
    for threads, limit in ((1, None), (3, 300), (7, 16)):
        with monkeypatch.context() as patched:
            if limit is not None:
                patched.setattr(pieces, "BAND", limit)
            ran = run("quantize", GOLDEN / "model", "--to", "gguf", "-o", out, "--force", "--threads", threads,
                      *LIKE_GGUF, "--json")  # fmt: skip
        assert ran.code == 0 and ran.json["summary"]["exact"], ran.err
        assert out.read_bytes() == expected


def test_export_gives_what_quantize_gives(tmp_path: Path, llama: Path) -> None:
    """From shards, from one file, and from a native folder: the same bytes, with a table and a document that say so."""
    out = tmp_path / "a.gguf"
    ran = run("quantize", llama, "--bits", 5, "--asymmetric", "--keep-embeddings", "--to", "gguf", "-o", out)
    assert ran.code == 0, ran.err
    native = tmp_path / "native"
    options = ["--bits", 5, "--asymmetric", "--group-size", 32, "--scale-dtype", "float16"]
    assert run("quantize", llama, *options, "-o", native).code == 0
    ran = run("export", native, "--to", "gguf", "-o", tmp_path / "b.gguf", "--threads", 3)
    assert ran.code == 0 and "dB where it was not lossless" in ran.out
    as_one_file(llama)
    options += ["--keep-embeddings", "--to", "gguf"]
    assert run("quantize", llama, *options, "-o", tmp_path / "c.gguf").code == 0
    assert len({digest(tmp_path / f"{n}.gguf") for n in "abc"}) == 1
    found = run("export", native, "--to", "gguf", "-o", out, "--force", "--json").json
    stored = {t["name"]: t["stored"] for t in found["tensors"]}
    assert stored["model.layers.1.mlp.up_proj.weight"] == "blk.1.ffn_up.weight Q5_1"
    assert stored["model.norm.weight"] == "output_norm.weight F32"
    assert found["bytes_out"] == out.stat().st_size > sum(t["bytes_out"] for t in found["tensors"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
def test_what_is_kept_keeps_its_numbers(dtype: Any, llama: Path, tmp_path: Path) -> None:
    """Matrices in their dtype, q and k in llama.cpp's order of rows, vectors as F32."""
    arrays = {n: a.astype(dtype) for n, a in as_one_file(llama).items()}
    bias = gaussian(64, seed=3).astype(dtype)
    as_one_file(llama, **arrays, **{"model.layers.0.self_attn.q_proj.bias": bias})
    out = tmp_path / "out.gguf"
    assert run("quantize", llama, "--include", "*.0.mlp.up_proj", "--to", "gguf", "-o", out).code == 0
    made = Gguf(out)
    kind = next(n for n, d in NUMPY_OF.items() if d == np.dtype(dtype))
    assert {made.types[n] for n in made.types if len(made.shapes[n]) == 2 and n != "blk.0.ffn_up.weight"} == {kind}
    assert {made.types[n] for n in made.types if len(made.shapes[n]) == 1} == {"F32"}
    for layer in range(2):
        own = f"model.layers.{layer}."
        for name, short, heads in (("self_attn.q_proj", "attn_q", 4), ("self_attn.k_proj", "attn_k", 2)):
            expected = in_turns(arrays[f"{own}{name}.weight"], heads)
            assert made.raw[f"blk.{layer}.{short}.weight"] == expected.tobytes()
        assert made.raw[f"blk.{layer}.attn_v.weight"] == arrays[f"{own}self_attn.v_proj.weight"].tobytes()
        norm = arrays[f"{own}input_layernorm.weight"].astype(np.float32)
        assert made.raw[f"blk.{layer}.attn_norm.weight"] == norm.tobytes()
    assert made.raw["token_embd.weight"] == arrays["model.embed_tokens.weight"].tobytes()
    assert made.raw["blk.0.attn_q.bias"] == in_turns(bias, 4).astype(np.float32).tobytes()
    compared = run("compare", llama, out, "--json").json
    assert {t["name"]: t["exact"] for t in compared["tensors"]} == {
        n: n != "model.layers.0.mlp.up_proj.weight" for n in [*arrays, "model.layers.0.self_attn.q_proj.bias"]
    }


def test_tensors_are_in_the_order_llama_cpp_uses_them(llama: Path, tmp_path: Path) -> None:
    """Whatever the order of the shards: a reader that maps the file goes from one end to the other."""
    out = tmp_path / "out.gguf"
    run("quantize", llama, "--to", "gguf", "-o", out)
    names = list(Gguf(out).types)
    assert names[0] == "token_embd.weight" and names[-2:] == ["output.weight", "output_norm.weight"]
    assert [n.split(".")[1] for n in names[1:-2]] == ["0"] * 9 + ["1"] * 9


# ---- what is reported -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    ["--bits", 4], ["--bits", 4, "--asymmetric"], ["--bits", 5], ["--bits", 5, "--asymmetric"], ["--bits", 8],
    ["--bits", 8, "--group-size", -1], ["--bits", 4, "--group-size", 64, "--asymmetric", "--zero-point", "float"],
    ["--bits", 5, "--no-default-keep", "--override", "*.down_proj:bits=8,group-size=64"],
])  # fmt: skip
def test_compare_sees_what_is_reported(options: list[Any], tmp_path: Path) -> None:
    """What is reported is what a reader of the file gets: SQNR by the checkpoint's names, q and k put back."""
    out = tmp_path / "out.gguf"
    ran = run("quantize", TINY, *options, "--to", "gguf", "-o", out, "--json")
    assert ran.code == 0, ran.err
    told = {t["name"]: t["sqnr_db"] for t in ran.json["tensors"]}
    seen = {t["name"]: t["sqnr_db"] for t in run("compare", TINY, out, "--json").json["tensors"]}
    assert told.keys() == seen.keys() and sum(v is not None for v in told.values()) >= 14
    for name, value in told.items():
        assert seen[name] == (None if value is None else pytest.approx(value, abs=1e-7)), name


def test_rounded_scales_are_measured(tmp_path: Path) -> None:
    """Scales that were float32: what the export cost is what compare sees between the native file and the GGUF."""
    native, out = tmp_path / "native", tmp_path / "out.gguf"
    run("quantize", TINY, "--group-size", 32, "--scale-dtype", "float32", "-o", native)
    ran = run("export", native, "--to", "gguf", "-o", out, "--json")
    assert ran.code == 0 and not ran.json["lossless"]
    told = {t["name"]: t["sqnr_db"] for t in ran.json["tensors"] if not t["lossless"]}
    seen = {t["name"]: t["sqnr_db"] for t in run("compare", native, out, "--json").json["tensors"]}
    assert len(told) == 14 and all(60 < v < 90 for v in told.values())
    assert {n: seen[n] for n in told} == pytest.approx(told, abs=1e-7)
    run("quantize", TINY, "--group-size", 32, "-o", native, "--force")  # bfloat16: float16 holds what they are
    ran = run("export", native, "--to", "gguf", "-o", out, "--force", "--json")
    assert ran.json["lossless"] and ran.json["sqnr_db"] is None


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_scales_that_float16_does_not_hold(scale: float, tmp_path: Path) -> None:
    source = save(tmp_path / "model.safetensors", {"a.weight": gaussian(64, 64, scale=scale)})
    native = tmp_path / "native.safetensors"
    options = ["--scale-dtype", "float32", "--group-size", 64]
    run("quantize", source, *options, "-o", native)
    line = one_line(run("export", native, *to("gguf"), "-q"), 1)
    assert line.startswith(f"{native}: a.weight: float16 cannot hold the scale ")
    assert "--scale-dtype float16, or keep the tensor" in line
    line = one_line(run("quantize", source, *options, *to("gguf"), "-q"), 1)
    assert line.startswith(f"{source}: a.weight: float16 cannot hold the scale")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "native.safetensors"]


def test_groups_of_32_where_nothing_is_said(tmp_path: Path) -> None:
    """A block stores a scale for 32 weights in any case: the file is as large with groups of 128, and worse."""
    sqnr, sizes = [], []
    for options in ([], ["--group-size", 128]):
        out = tmp_path / "out.gguf"
        found = run("quantize", TINY, *options, "--to", "gguf", "-o", out, "--force", "--json").json
        sqnr.append(found["summary"]["sqnr_db"])
        sizes.append(out.stat().st_size)
        schemes = {t["scheme"] for t in found["tensors"] if t["scheme"]}
        assert schemes == {"w4g128" if options else "w4g32", "w8g32"}  # 8 bits: the output head
    assert sqnr[0] > sqnr[1] + 0.9 and sizes[0] == sizes[1]
    (tmp_path / "r.yaml").write_text("default: {bits: 8, group_size: 64}\n")
    found = run("quantize", TINY, "--recipe", tmp_path / "r.yaml", "--to", "gguf", "--dry-run", "--json").json
    assert {t["scheme"] for t in found["tensors"] if t["scheme"]} == {"w8g64"}
    for words, scheme in ((["--group-size", "-1"], "w4c"), (["--granularity", "tensor"], "w4t")):
        words += ["--keep-embeddings"]
        found = run("quantize", TINY, *words, "--to", "gguf", "--dry-run", "--json").json
        assert {t["scheme"] for t in found["tensors"] if t["scheme"]} == {scheme}


def test_names_of_outputs_and_standard_output(llama: Path, tmp_path: Path) -> None:
    assert run("quantize", llama, "--to", "gguf", "-q").code == 0
    out = tmp_path / "llama-w4g32.gguf"
    assert run("quantize", llama, "--group-size", 32, "-o", tmp_path / "native", "-q").code == 0
    assert run("export", tmp_path / "native", "--to", "gguf", "-q").code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["llama", "llama-w4g32.gguf", "native", "native.gguf"]
    for words in (
        ("export", tmp_path / "native"),
        ("quantize", llama, "--scale-dtype", "bfloat16", "--keep-embeddings"),
    ):
        done = subprocess.run(command(*words, "--to", "gguf", "-o", "-", "-q"), capture_output=True, env=environment(),
                              check=True)  # fmt: skip
        assert done.stderr == b"" and done.stdout == (tmp_path / "native.gguf").read_bytes()
    assert one_line(run("quantize", llama, "--to", "gguf", "-o", out, "-q"), 2).startswith(f"{out}: the output exists")


# ---- models -----------------------------------------------------------------------------------------------------


def test_a_tied_head_is_left_out_and_named(llama: Path, tmp_path: Path) -> None:
    out, native = tmp_path / "out.gguf", tmp_path / "native"
    run("quantize", llama, "--no-default-keep", "--group-size", 32, "-o", native)
    for folder in (llama, native):  # a head that is tied is kept, as transformers reads it
        changed(folder, tie_word_embeddings=True)
    ran = run("quantize", llama, "--no-default-keep", "--to", "gguf", "-o", out)
    assert ran.code == 0 and "quantcli: lm_head.weight left out: llama.cpp does not use it\n" in ran.err
    made = Gguf(out)
    assert "output.weight" not in made.types and made.types["token_embd.weight"] == "Q4_0"
    found = run("export", native, "--to", "gguf", "-o", out, "--force", "--json").json
    head = next(t for t in found["tensors"] if t["name"] == "lm_head.weight")
    assert (head["disposition"], head["stored"], head["bytes_out"]) == ("left out", "", 0)
    table = run("export", native, "--to", "gguf", "-o", out, "--force", "--all").out
    assert "1 left out" in table and "w4g32, left out" in table
    assert run("quantize", llama, "--include", "lm_head", "--no-default-keep", "--to", "gguf", "-o", out, "--force"
               ).code == 0  # fmt: skip
    assert "general.file_type" not in Gguf(out).keys


def test_requantized_models_are_models(tmp_path: Path) -> None:
    """What GGUF cannot store is quantized again, and the report has both errors, as compare sees them."""
    native, out = tmp_path / "native", tmp_path / "out.gguf"
    run("quantize", TINY, "--bits", 3, "--group-size", 64, "-o", native)
    line = one_line(run("export", native, "--to", "gguf", "-o", out), 2)
    assert "gguf cannot store it: 3 bits (w3g64)" in line
    assert line.endswith("--requantize makes it w4g64")
    ran = run("export", native, "--to", "gguf", "--requantize", "-o", out, "--json")
    assert ran.code == 0, ran.err
    told = {t["name"]: t["sqnr_db"] for t in ran.json["tensors"] if t["disposition"] == "requantized"}
    seen = {t["name"]: t["sqnr_db"] for t in run("compare", native, out, "--json").json["tensors"]}
    assert len(told) == 14 and {n: seen[n] for n in told} == pytest.approx(told, abs=1e-7)
    run("quantize", TINY, "--bits", 8, "--group-size", 32, "--asymmetric", "-o", native, "--force")
    line = one_line(run("export", native, "--to", "gguf", "-o", out, "--force"), 2)
    assert "8 bits with zero points (w8g32-asym)" in line and line.endswith("--requantize makes it w8g32")
    changed(native, num_hidden_layers=3)
    line = one_line(run("export", native, "--to", "gguf", "--requantize", "-o", out, "--force"), 1)
    assert line.startswith(f"{native}: model.layers.2.input_layernorm.weight is missing") and not left_behind(tmp_path)


def test_keys_words_and_frequencies(tmp_path: Path) -> None:
    """The keys that say what the file is, and no words where there is no tokenizer."""
    out = tmp_path / "out.gguf"
    ran = run("quantize", TINY, "--bits", 8, "--to", "gguf", "-o", out, "--json")
    why = "the file has no vocabulary, so llama.cpp runs it on token ids only: there is no tokenizer.json"
    way = "for a model that reads text, put that of the original beside config.json"
    assert ran.err == f"quantcli: {why}; {way}\n" and f"{why}; {way}" in ran.json["warnings"]
    keys = Gguf(out).keys
    assert list(keys)[:3] == ["general.architecture", "general.file_type", "general.quantization_version"]
    assert (keys["general.architecture"], keys["general.file_type"], keys["general.quantization_version"]) == (
        "llama", 7, 2)  # fmt: skip
    assert keys["tokenizer.ggml.model"] == "no_vocab" and keys["quantcli.version"] == quantcli.__version__


def test_norms_and_biases_stay_as_they_are(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    line = one_line(run("quantize", TINY, "--override", "model.norm.weight:bits=8", "--to", "gguf", "-o", out), 2)
    assert line == (f"{TINY}: model.norm.weight: llama.cpp takes it as F32 only, and it is w8g32; keep norms and "
                    "biases as they are")  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_float64_is_rounded_and_told(llama: Path, tmp_path: Path) -> None:
    """llama.cpp does not run F64; an export says that it was not lossless, which float32 does not show."""
    arrays = as_one_file(llama)
    norm = arrays["model.norm.weight"].astype(np.float64) * np.pi
    as_one_file(llama, **{"model.norm.weight": norm, "lm_head.weight": arrays["lm_head.weight"].astype(np.float64)})
    native, out = tmp_path / "native", tmp_path / "out.gguf"
    run("quantize", llama, "--group-size", 32, "-o", native)
    ran = run("export", native, "--to", "gguf", "-o", out, "--json")
    assert ran.code == 0
    assert "llama.cpp cannot run F64: lm_head.weight and 1 more are rounded to F32" in ran.err
    found = {t["name"]: t for t in ran.json["tensors"]}
    assert found["lm_head.weight"]["lossless"] and not found["model.norm.weight"]["lossless"]
    assert run("export", native, "--to", "gguf", "-o", out, "--force").out.splitlines()[1] == (
        "gguf: 14 exported, 7 kept; not lossless"
    )
    assert Gguf(out).raw["output_norm.weight"] == norm.astype(np.float32).tobytes()
    as_one_file(llama, **{"model.norm.weight": norm * 1e300})
    line = one_line(run("quantize", llama, "--to", "gguf", "-q", "-o", out, "--force"), 1)
    assert line == f"{llama}: model.norm.weight: a weight does not fit F32"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "config.json: rope_scaling: 'dynamic' is not supported"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"hidden_size": "wide"}, "config.json: hidden_size: 'wide' is not a whole number of 1 or more"),
        ({"vocab_size": 1 << 40}, "config.json: vocab_size: 1099511627776 is not a whole number of 1 or more"),
    ],
)
def test_models_of_the_family_that_llama_cpp_would_run_otherwise(change: dict[str, Any], words: str, llama: Path,
                                                                 tmp_path: Path) -> None:  # fmt: skip
    """Refused before a weight is read, with the way to a container."""
    native = tmp_path / "native"
    assert run("quantize", llama, "--group-size", 32, "-o", native, "-q").code == 0
    for folder in (llama, native):
        changed(folder, **change)
        line = one_line(run("quantize" if folder == llama else "export", folder, "--to", "gguf", "-q"), 1)
        assert line.startswith(f"{folder}: ") and words in line
        assert "--container writes a GGUF of the tensors alone" in line or "known: linear" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["llama", "native"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", "[]", "config.json: it is not an object"),
        ("config.json", "{", "config.json: it is not valid JSON"),
        ("tokenizer.json", '{"model": 7}', "tokenizer.json: model: it is not an object"),
        ("tokenizer.json", "nonsense", "tokenizer.json: it is not valid JSON"),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}, "pre_tokenizer": {"type": '
            '"ByteLevel", "add_prefix_space": false}}',
            "tokenizer.json: merges: it is not a list of pairs",
        ),
    ],
)
def test_damaged_files_beside_the_weights(name: str, content: str, words: str, llama: Path, tmp_path: Path) -> None:
    (llama / name).write_text(content)
    line = one_line(run("quantize", llama, "--to", "gguf", "-q"), 1)
    assert line.startswith((f"{llama}: {words}", f"{llama}/{words}"))
    assert [p.name for p in tmp_path.iterdir()] == ["llama"]


# ---- containers -------------------------------------------------------------------------------------------------

NOT_A_MODEL = "the file is a container of these tensors, not a model that llama.cpp runs"
SUPPORTED = "quantcli help targets lists all that are supported"


def test_a_container_of_anything(tmp_path: Path) -> None:
    """Dtypes GGUF has are kept bit for bit, others are widened and named; a reader finds all numbers."""
    kept = {"f64": gaussian(3, 5).astype(np.float64), "bf": gaussian(2, 3, 4, 5).astype(BF16),
            "i8": np.arange(-3, 3, dtype=np.int8),
            "i16": np.arange(5, dtype=np.int16), "i32": np.arange(5, dtype=np.int32), "i64": np.arange(5)[None],
            "none": np.zeros((0, 4), np.float32), "scalar": np.array(2.5, np.float32)}  # fmt: skip
    wide = {
        "flags": np.array([True, False, True]),
        "u8": np.array([0, 200, 255], np.uint8),
        "u16": np.array([65535], np.uint16),
        "u32": np.array([2**32 - 1, 7], np.uint32),
    }
    source = save(tmp_path / "m.safetensors", {"w": gaussian(64, 64), **kept, **wide})
    eighths = {"e4": ("F8_E4M3", (256,), bytes(range(256))), "e5": ("F8_E5M2", (256,), bytes(range(256)))}
    both = {n: (t.dtype, t.shape, t.data) for n, t in load(source).items()} | eighths
    source.write_bytes(raw_tensors(both))
    out = tmp_path / "out.gguf"
    ran = run("quantize", source, *to("gguf"), "-o", out, "--exclude", "bf", "--exclude", "f64")
    assert ran.code == 0, ran.err
    first, *lines = ran.err.splitlines()
    assert first == f"quantcli: {NOT_A_MODEL}"
    assert sorted(lines) == [
        f"quantcli: {line}"
        for line in (
            "GGUF has no BOOL: flags is written as I8",
            "GGUF has no F8_E4M3: e4 is written as F16",
            "GGUF has no F8_E5M2: e5 is written as F16",
            "GGUF has no U16: u16 is written as I32",
            "GGUF has no U32: u32 is written as I64",
            "GGUF has no U8: u8 is written as I16",
        )
    ]
    made = Gguf(out)
    assert made.types["w"] == "Q4_0" and made.keys["general.architecture"] == "quantcli"
    for name, array in kept.items():
        assert made.raw[name] == array.tobytes() and made.shapes[name] == array.shape
    for name, array in wide.items():
        assert made.array(name).tolist() == array.astype(np.int64).tolist()
    for name, (dtype, _, data) in eighths.items():
        values = np.frombuffer(data, NUMPY_OF[dtype]).astype(np.float32)
        np.testing.assert_array_equal(made.array(name).astype(np.float32), values)
    compared = run("compare", source, out, "--json").json
    assert {t["name"] for t in compared["tensors"] if not t["exact"]} == {"w"}


@pytest.mark.parametrize(("name", "near"), [
    ("RwkvForCausalLM", ""), ("T5Model", "near it: T5EncoderModel, T5ForConditionalGeneration; "),
    ("GPT2Model", "near it: GPT2LMHeadModel; "), (None, ""),
])  # fmt: skip
def test_other_architectures_are_refused(name: str | None, near: str, llama: Path, tmp_path: Path) -> None:
    """llama.cpp would not load the file, so there is none, and no weight is read; --container insists."""
    native, out = tmp_path / "native", tmp_path / "out.gguf"
    assert run("quantize", llama, "--group-size", 32, "-o", native, "-q").code == 0
    for folder, words in ((llama, ("quantize", "--dry-run")), (llama, ("quantize",)), (native, ("export",))):
        changed(folder, architectures=[name] if name else None)
        line = one_line(run(*words, folder, "--to", "gguf", "-o", out, "-q"), 2)
        assert line == (f"{folder}: config.json: {f'{name} is' if name else 'models without architectures are'} not "
                        f"supported by --to gguf; {near}{SUPPORTED}; --container writes a GGUF of the tensors "
                        "alone, which llama.cpp does not run")  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["llama", "native"]


def test_a_file_without_its_config_is_refused(tmp_path: Path) -> None:
    source, native = save(tmp_path / "m.safetensors", {"w": gaussian(64, 64)}), tmp_path / "n.safetensors"
    assert run("quantize", source, "--group-size", 32, "-o", native, "-q").code == 0
    for words in (("quantize", source), ("quantize", source, "--dry-run"), ("export", native)):
        line = one_line(run(*words, "--to", "gguf", "-q"), 2)
        assert "--to gguf: it needs the model's config.json" in line and SUPPORTED in line and "--container" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "n.safetensors"]


def test_a_folder_of_another_architecture_as_a_container(llama: Path, tmp_path: Path) -> None:
    changed(llama, architectures=["MambaForCausalLM"])
    out = tmp_path / "out.gguf"
    ran = run("quantize", llama, *to("gguf"), "-o", out)
    assert ran.code == 0 and ran.err == f"quantcli: {NOT_A_MODEL}\n"
    made = Gguf(out)
    assert made.types["model.layers.0.self_attn.q_proj.weight"] == "Q4_0"
    assert not any(key.startswith(("llama.", "tokenizer.")) for key in made.keys)
    assert run("compare", llama, out, "--min-sqnr", 15).code == 0


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"five": ("F32", (1, 1, 1, 1, 4), bytes(16))}, "five: 5 dimensions, and llama.cpp has up to 4"),
        ({"e": ("F8_E8M0", (4,), b"\1\2\3\4")}, "e: GGUF has no F8_E8M0"),
        ({"u": ("U64", (1,), bytes(8))}, "u: GGUF has no U64"),
        ({"c": ("C64", (1,), bytes(8))}, "c: GGUF has no C64"),
    ],
)
def test_what_gguf_has_no_room_for(tensors: dict[str, Any], words: str, tmp_path: Path) -> None:
    source, native = tmp_path / "m.safetensors", tmp_path / "n.safetensors"
    source.write_bytes(raw_tensors({"w": ("F32", (64, 64), gaussian(64, 64).tobytes()), **tensors}))
    line = one_line(run("quantize", source, *to("gguf"), "-q"), 1)
    assert line.startswith(f"{source}: ") and words in line
    assert run("quantize", source, "--group-size", 32, "-o", native, "-q").code == 0
    line = one_line(run("export", native, *to("gguf"), "-q"), 1)
    assert line.startswith(f"{native}: ") and words in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "n.safetensors"]


def test_names_of_63_bytes_and_weights_of_four_dimensions(tmp_path: Path) -> None:
    source, out = tmp_path / "m.safetensors", tmp_path / "out.gguf"
    name = "n" * 56 + ".weight"
    save(source, {name: gaussian(2, 4, 8, 64), "five.weight": gaussian(2, 2, 2, 8, 64), "row": gaussian(4096)})
    ran = run("quantize", source, "--exclude", "five.weight", *to("gguf"), "-o", out)
    assert "five.weight: 5 dimensions" in one_line(ran, 1).replace(f"quantcli: {NOT_A_MODEL}", "")
    save(source, {name: gaussian(2, 4, 8, 64)})
    assert run("quantize", source, *to("gguf"), "-o", out).code == 0
    assert Gguf(out).shapes == {name: (2, 4, 8, 64)} and Gguf(out).types == {name: "Q4_0"}


def test_other_sources(tmp_path: Path) -> None:
    """Arrays of numpy, and a GGUF of floats, whose tensors keep their names."""
    np.savez(tmp_path / "m.npz", w=gaussian(64, 64))
    np.save(tmp_path / "s.npy", gaussian(4096))
    places = lay_out({"general.architecture": "llama"}, [GgufTensor("blk.0.attn_q.weight", "F32", (64, 64))])
    (tmp_path / "f.gguf").write_bytes(places.header + gaussian(64, 64).tobytes())
    for name, held in (("m.npz", "w"), ("s.npy", "s"), ("f.gguf", "blk.0.attn_q.weight")):
        out = tmp_path / f"{name}.out.gguf"
        assert run("quantize", tmp_path / name, *to("gguf"), "-o", out).code == 0
        assert Gguf(out).types == {held: "Q4_0"}
        assert run("compare", tmp_path / name, out, "--min-sqnr", 15).code == 0


def test_an_unwritable_end_leaves_nothing(tmp_path: Path) -> None:
    line = one_line(run("quantize", TINY, "--to", "gguf", "-o", tmp_path / "no" / "out.gguf"), 1)
    assert "no such folder" in line and not left_behind(tmp_path)


# ---- a size target ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "size", "bits"), [
    ("gguf", 100_000, 7), ("mlx", 90_000, 6), ("bnb-nf4", 110_000, 7.5), ("awq", 110_000, 7.5),
    ("compressed-tensors", 90_000, 6),
])  # fmt: skip
def test_a_size_target_counts_the_bytes_of_the_target(target: str, size: int, bits: float, tmp_path: Path) -> None:
    """All of them: header, kept tensors in the dtypes the target has, and the folder's every file of weights."""
    out = tmp_path / f"out{'.gguf' if target == 'gguf' else ''}"
    for option, value in (("--target-size", size), ("--target-bpw", bits)):
        ran = run("quantize", TINY, option, value, "--to", target, "-o", out, "--json", "--force")
        assert ran.code == 0, ran.err
        limit = value if option == "--target-size" else value * ran.json["summary"]["parameters"] / 8
        written = [out] if out.is_file() else list(out.glob("*.safetensors"))
        assert sum(p.stat().st_size for p in written) == ran.json["summary"]["bytes_out"] <= limit
        assert ran.json["summary"]["bytes_out"] > 0.6 * limit


def test_a_plan_is_a_recipe_for_a_target(tmp_path: Path) -> None:
    plan = tmp_path / "r.yaml"
    assert run("plan", TINY, "--target-size", "120kB", "--bits", "4,5,8", "--group-size", "32", "-o", plan).code == 0
    assert run("quantize", TINY, "--recipe", plan, "--to", "gguf", "-o", tmp_path / "out.gguf").code == 0
