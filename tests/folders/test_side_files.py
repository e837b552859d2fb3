"""Nothing in a folder disappears: every file is converted, copied, or named in the report with the reason."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoints import contents, made
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import BF16, one_line, run, save
from strategies import gaussian

NAMES = [
    "tokenizer.json", "notes.txt", "LICENSE", "a b.md", "caf\u00e9.txt", "new\nline.txt", "-o", "config.json",
    "README.md", "model.safetensors", "model.fp16.safetensors", "model.safetensors.index.json",
    "consolidated.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json", "flax_model.msgpack",
    "model.onnx", "model.onnx_data",
    "optimizer.pt", "training_args.bin", "rng_state_0.pth", "openvino_model.xml", "openvino_model.bin", "adapter.bin",
    ".gitattributes", ".hidden.safetensors", "hf_quant_config.json", "quantize_config.json", "vocab.bin", "x.gguf",
    "adapter_config.json", "modules.json", "empty",
]  # fmt: skip
FOLDERS = [
    "",
    "",
    "2_Dense",
    "onnx",
    "checkpoint-100",
    "a/b/c",
    ".cache/huggingface",
    "original",
    "codec",
    "x.safetensors.d",
]

WRITTEN = {"README.md", "config.json", "model.safetensors.index.json"}

KINDS = st.sampled_from(["file", "file", "file", "link", "outside", "folder link", "dangling", "empty folder", "fifo"])


def walked(folder: Path) -> set[str]:
    """Every entry below a folder that is not a folder, and links, which are not followed."""
    return {
        os.path.relpath(os.path.join(path, name), folder)
        for path, folders, names in os.walk(folder)
        for name in [*names, *(f for f in folders if os.path.islink(os.path.join(path, f)))]
    }


def content(name: str) -> bytes:
    if name == "modules.json":
        return json.dumps([{"path": "", "type": "x.Transformer"}, {"path": "2_Dense", "type": "x.Dense"}]).encode()
    if name.endswith(".json"):
        return b"{}"
    return f"what is in {name}".encode()


def put(folder: Path, outside: Path, where: str, name: str, kind: str) -> None:
    path = folder / where / name
    if os.path.lexists(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "link":
        path.symlink_to(os.path.relpath(folder / "tokenizer.model", path.parent))
    elif kind == "outside":
        path.symlink_to(outside)
    elif kind == "folder link":
        path.symlink_to(folder, target_is_directory=True)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "empty folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif name.endswith(".safetensors") and not name.startswith("."):
        save(path, {"weight": gaussian(4, 32).astype(BF16)})
    else:
        path.write_bytes(content(name))


@pytest.mark.parametrize("to", [None, "bnb-nf4"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=st.lists(st.tuples(st.sampled_from(FOLDERS), st.sampled_from(NAMES), KINDS), max_size=12))
def test_every_file_is_accounted_for(
    entries: list[tuple[str, str, str]], to: str | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """or the folder is refused, in a line, and nothing is written"""
    base = tmp_path_factory.mktemp("tree")
    source = made(base / "source", count=2)
    (source / "tokenizer.model").write_bytes(b"words")
    outside = base / "outside.txt"
    outside.write_bytes(b"not part of the model")
    for where, name, kind in entries:
        put(source, outside, where, name, kind)
    out = base / "out"
    ran = run("quantize", source, "-o", out, "--json", *(["--to", to] if to else []))
    if ran.code:
        one_line(ran, ran.code)
        assert not out.exists()
        shutil.rmtree(base)
        return
    check(source, out, ran.json)
    shutil.rmtree(base)


def check(source: Path, out: Path, report: dict[str, Any]) -> None:
    files = {f["name"]: f for f in report["files"]}
    assert len(files) == len(report["files"])
    told = {n for n in files if not n.endswith(os.sep)}
    hidden = tuple(n for n in files if n.endswith(os.sep))
    assert all(os.path.basename(n[:-1]).startswith(".") for n in hidden)
    assert told == {n for n in walked(source) if not n.startswith(hidden or ("\0",))}
    found = contents(out)
    for name, file in files.items():
        if file["disposition"] == "copied":
            assert found.pop(name) == (source / name).read_bytes()
        elif file["disposition"] == "left out":
            assert file["reason"] and (name not in found or name in WRITTEN)
        else:
            assert file["disposition"] == "converted" and not (source / name).is_dir()
    converted = {n for n, f in files.items() if f["disposition"] == "converted"}
    made_anew = {n for n in found if n not in converted}
    assert made_anew <= WRITTEN
    assert converted - set(found) == set()


def test_a_tokenizer_that_git_lfs_has_not_fetched_is_refused(tmp_path: Path) -> None:
    """Its pointer would be copied in its place, and no loader would take the output."""
    folder = made(tmp_path / "model")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 12345\n"
    (folder / "tokenizer.json").write_text(pointer)
    line = one_line(run("quantize", folder, "-o", tmp_path / "out"), 1)
    assert "tokenizer.json: this is a Git LFS pointer" in line and not (tmp_path / "out").exists()
