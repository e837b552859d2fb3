"""Files of torch.save: read as torch reads them, and nothing in them is executed."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import io
import itertools
import json
import os
import pickle
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import NUMPY_OF, environment, one_line, run, save, zip_bytes
from torch_parts import GOLDEN, ORDERED, SIX, Call, Made, Name, Outside, Raw, archive, legacy, pickled, storage, tensor

from quantcli.errors import QuantcliError
from quantcli.stores import open_source, pickles, strided, torch_file
from quantcli.stores.files import InputFile
from quantcli.stores.strided import Strided, merged

EXPECTED: dict[str, dict[str, Any]] = json.loads((GOLDEN / "expected.json").read_text())


def everything(path: Path) -> dict[str, list[Any]]:
    """dtype, shape and bytes of every tensor of a file."""
    source = open_source(str(path))
    try:
        found = {}
        for info in source.infos():
            buffer = bytearray(info.nbytes)
            source.read(info.name, 0, memoryview(buffer))
            found[info.name] = [info.dtype, list(info.shape), buffer.hex()]
        return found
    finally:
        source.close()


def refusal(content: bytes, tmp_path: Path, name: str = "a.pt") -> str:
    """The line of the error for a file."""
    path = tmp_path / name
    path.write_bytes(content)
    return one_line(run("inspect", path), 1)


# ---- what torch.save writes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *(f"{kind}{end}" for kind in ("dtypes", "views") for end in (".pt", ".protocol4.pt", ".legacy.pt")),
        "model.pt",
        "alone.pt",
    ],
)
def test_tensors_are_what_torch_makes_of_them(name: str) -> None:
    assert everything(GOLDEN / name) == EXPECTED[name.partition(".")[0]]


def test_models_that_python_2_saved(tmp_path: Path) -> None:
    """It pickled an OrderedDict as a call with a list of lists; the weights in the package lpips are such files."""
    path = tmp_path / "m.pth"
    path.write_bytes(legacy(Call(ORDERED.function, ([["b", tensor()], ["a", tensor((3,), (2,), 1)]],))))
    numbers = np.arange(6, dtype="<f4")
    assert everything(path) == {
        "b": ["F32", [2, 3], numbers.tobytes().hex()],
        "a": ["F32", [3], numbers[1::2].tobytes().hex()],
    }


def test_any_part_of_a_view_can_be_read() -> None:
    source = open_source(str(GOLDEN / "views.pt"))
    for name, (dtype, _, text) in EXPECTED["views"].items():
        whole, size = bytes.fromhex(text), NUMPY_OF[dtype].itemsize
        for start, length in itertools.product(range(0, len(whole), 7 * size), (size, 10 * size, 100 * size)):
            buffer = bytearray(min(length, len(whole) - start))
            source.read(name, start, memoryview(buffer))
            assert bytes(buffer) == whole[start : start + length], (name, start, length)
        source.release(name)
    source.close()


def test_the_endings_do_not_matter(tmp_path: Path) -> None:
    for ending in ("pt", "pth", "bin", "ckpt", "weights", "tar"):
        path = tmp_path / f"m.{ending}"
        path.write_bytes((GOLDEN / "model.pt").read_bytes())
        assert everything(path) == EXPECTED["model"]


def test_a_safetensors_name_promises_no_pickle(tmp_path: Path) -> None:
    for name in ("model.pt", "dtypes.legacy.pt"):
        line = refusal((GOLDEN / name).read_bytes(), tmp_path, "m.safetensors")
        assert "not safetensors" in line and "such as .pt or .bin" in line


def test_big_endian_archives(tmp_path: Path) -> None:
    """torch writes the byte order of the machine that saved, and swaps when another loads."""
    swapped = []
    with zipfile.ZipFile(GOLDEN / "dtypes.pt") as found:
        kinds = list(EXPECTED["dtypes"])
        for info in found.infolist():
            data, name = found.read(info), info.filename
            if name.endswith("/byteorder"):
                data = b"big"
            if "/data/" in name:
                dtype = kinds[int(name.rpartition("/")[2])]
                size = 4 if dtype == "C64" else NUMPY_OF[dtype].itemsize
                data = np.frombuffer(data, f">u{size}").astype(f"<u{size}").tobytes()
            swapped.append((name, data))
    path = tmp_path / "big.pt"
    path.write_bytes(zip_bytes(swapped))
    assert everything(path) == EXPECTED["dtypes"]
    line = refusal(zip_bytes([("a/data.pkl", pickled({"w": tensor()})), ("a/byteorder", b"middle")]), tmp_path)
    assert "unknown byte order b'middle'" in line
    assert "big-endian machine" in refusal(legacy({"w": tensor()}, little=False), tmp_path)


def test_the_model_of_a_training_run_is_found(tmp_path: Path) -> None:
    assert everything(GOLDEN / "training.ckpt") == EXPECTED["model"]
    ran = run("inspect", GOLDEN / "training.ckpt")
    assert "quantcli: the tensors are those under state_dict\n" in ran.err
    assert "left out, not tensors: epoch (a number), args (a dict)\n" in ran.err
    assert "left out, beside the model: step (a single number)\n" in ran.err
    assert "left out, state of a training run: optimizer\n" in ran.err
    assert everything(GOLDEN / "namespace.ckpt") == EXPECTED["model"]
    ran = run("inspect", GOLDEN / "namespace.ckpt")
    assert "left out, not read: args (an object of argparse.Namespace)\n" in ran.err
    report = run("quantize", GOLDEN / "training.ckpt", "-o", tmp_path / "out.safetensors", "--json").json
    assert "left out, state of a training run: optimizer" in report["warnings"]
    ran = run("verify", tmp_path / "out.safetensors", "--source", GOLDEN / "training.ckpt")
    assert ran.code == 0
    assert f"quantcli: {GOLDEN / 'training.ckpt'}: left out, state of a training run: optimizer\n" in ran.err


def test_tied_weights_are_told_and_written_twice(tmp_path: Path) -> None:
    ran = run("inspect", GOLDEN / "views.pt")
    assert "stored once in the source, and written under each name: whole = same\n" in ran.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "module",
            "it holds an object of torch.nn.modules.container.Sequential, not tensors by name; save its tensors with "
            "torch.save(model.state_dict(), FILE)",
        ),
        ("two", "there are tensors under 'model', 'ema', and each may be the model"),
        ("list", "it holds a list, not tensors by name"),
        ("sparse", "sparse tensors are not supported (torch._utils._rebuild_sparse_tensor)"),
        ("quantized", "quantized tensors of torch are not supported (torch._utils._rebuild_qtensor)"),
        ("conjugate", "a tensor is stored in a lazy form (conj); save it after resolve_conj().resolve_neg()"),
        ("meta", "tensors without data, as on the meta device, are not supported"),
        ("numbers", "it holds no tensors"),
        ("script", "this is a TorchScript program"),
    ],
)
def test_what_torch_saves_that_is_no_state_dict(name: str, words: str) -> None:
    assert words in one_line(run("inspect", GOLDEN / f"refused-{name}.pt"), 1)


def test_every_command_takes_them(tmp_path: Path) -> None:
    """and gives what it gives for the same tensors in a safetensors file"""
    arrays = {
        name: np.frombuffer(bytes.fromhex(text), NUMPY_OF[dtype]).reshape(shape)
        for name, (dtype, shape, text) in EXPECTED["model"].items()
    }
    same, model = save(tmp_path / "same.safetensors", arrays), GOLDEN / "model.pt"
    outs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for source, out in zip((same, model), outs):
        assert run("quantize", source, "--bits", 4, "-o", out, "-q").code == 0
    found = run("compare", *outs, "--json").json
    assert all(tensor["mse"] in (0, None) for tensor in found["tensors"]) and len(found["tensors"]) == 3
    for command in (
        ["compare", model, outs[1]], ["report", outs[1], "--against", model], ["verify", outs[1], "--source", model],
        ["sweep", model, "--bits", "4"], ["plan", model, "--target-bpw", "8"], ["inspect", model, "--stats"],
    ):  # fmt: skip
        ran = run(*command)
        assert ran.code == 0, ran
    assert "0.weight" in run("inspect", model, "--names").out
    assert "it holds no quantized tensor" in one_line(run("dequantize", model, "-o", tmp_path / "d"), 1)


# ---- hostile pickles --------------------------------------------------------------------------------------------


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.args


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "thing",
    [
        Runs(os.system, "touch canary"),
        Runs(eval, "open('canary', 'w')"),
        Runs(exec, "open('canary', 'w')"),
        Runs(subprocess.call, ["touch", "canary"]),
        {"w": Runs(os.mkdir, "canary")},
        [Runs(__import__, "antigravity")],
    ],
)
def test_nothing_is_executed(thing: Any, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = pickle.dumps(thing, protocol)
    for content in (archive(code), legacy(code), code):
        line = refusal(content, tmp_path)
        assert not (tmp_path / "canary").exists()
    if protocol >= 2:
        assert "which is not part of a state dict" in refusal(archive(code), tmp_path)
        assert "torch.save did not write" in line or "not a safetensors" in line or "pickle" in line


SYSTEM = Name("os", "system")
W = {"w": tensor()}
HOSTILE: dict[str, tuple[Any, str]] = {
    "os.system": (Call(SYSTEM, ("true",)), "it calls os.system, which is not part of a state dict; save its tensors"),
    "os.system beside a model": ({"model": W, "x": [Call(SYSTEM, ("true",))]}, "it calls os.system, which is not"),
    "a function that is not called": ({"model": {"w": SYSTEM}}, "it holds no tensors"),
    "a class that is called": (Call(Name("subprocess", "Popen"), ("true",)), "it calls subprocess.Popen, which"),
    "a name with an escape": (Call(Name("\x1b[2J", "x"), ()), "it calls \\x1b[2J.x, which"),
    "an object with an escape": (Made(Name("\x1b[2J", "x"), {}), "it holds an object of \\x1b[2J.x, not tensors"),
    "getattr": (Call(Name("builtins", "getattr"), (ORDERED, "fromkeys")), "builtins.getattr"),
    "an attribute of an allowed name": (Call(Name("collections", "OrderedDict.get"), ()), "OrderedDict.get, which"),
    "a name of the module of an allowed one": (Call(Name("torch._utils", "sys"), ()), "it calls torch._utils.sys"),
    "torch.load": (Call(Name("torch.serialization", "load"), ("x",)), "torch.serialization.load"),
    "a storage in bytes": (Call(Name("torch.storage", "_load_from_bytes"), (b"",)), "torch.storage._load_from_bytes"),
    "a call of an object": (Call(Made(Name("a", "b"), {}), ()), "it calls something that is not a function"),
    "a tensor of an object": ({"w": tensor(held=Made(Name("a", "b"), {}))}, "a tensor has no storage"),
    "tensors in an object": ({"net": Made(Name("a", "Net"), W)}, "inside of 'net', an object of a.Net, which is not"),
    "an array of numpy": ({"w": np.zeros(3)}, "inside of 'w', an object of numpy.ndarray, which is not read"),
    "an odd number of items of an object": (Raw(b"ca\nb\n)\x81(K\x01u"), "it holds an object of a.b"),
    "a stack that is empty": (Raw(b"s"), "an instruction has nothing to work on"),
    "a mark that is none": (Raw(b"t"), "an instruction has nothing to work on"),
    "a value of the memo that is none": (Raw(b"h\x07"), "an instruction has nothing to work on"),
    "two values": (Raw(b"NN"), "damaged or cut short"),
    "no value": (Raw(), "damaged or cut short"),
    "a call of a number": (Raw(b"K\x01)R"), "it calls something that is not a function"),
    "a call of a dtype": (Call(Name("torch", "float32"), ()), "it calls something that is not a function"),
    "a call with too much": (Call(ORDERED.function, (1, 2, 3)), "it calls collections.OrderedDict with 3 arguments"),
    "an OrderedDict of a number": (Call(ORDERED.function, (1,)), "an OrderedDict is made of a number"),
    "an OrderedDict of three": (Call(ORDERED.function, ([["a", 1, 2]],)), "a list with a list in it, not of pairs alone"),
    "an OrderedDict of odd keys": (Call(ORDERED.function, ([[(1, 2), 3]],)), "a key is a tuple, not text"),
    "attributes of a function": (Raw(b"ccollections\nOrderedDict\nN}b"), "it sets attributes of something"),
    "items of a tuple": (Raw(b")K\x01K\x02s"), "it sets items of something that is not a dict"),
    "an odd number of items": (Raw(b"}(K\x01u"), "it sets items of something that is not a dict"),
    "an instruction to make an object": (Raw(b"ccollections\nOrderedDict\n)\x81"), "it makes an object of something"),
    "the registry of extensions": (Raw(b"\x82\x01"), "EXT1 at byte"),
    "a key that is a tuple": ({(1, 2): 3}, "a key is a tuple, not text or a whole number"),
    "a key of many digits": ({1 << 70: 3}, "a key is a number of more than 64 bits"),
    "an unknown instruction": (Raw(b"\xff"), "damaged or cut short"),
    "a name that is a number": (Raw(b"K\x01K\x01\x93"), "it refers to something that is not a name"),
    "a dict of itself": (Raw(b"}q\x00X\x01\x00\x00\x00ah\x00s"), "it holds no tensors"),
    "a text of 4 GB": (Raw(b"X\xff\xff\xff\xffaa"), "damaged or cut short"),
    "a text of an exabyte": (Raw(b"\x8d" + b"\xff" * 7 + b"\x0faa"), "damaged or cut short"),
    "bytes of an exabyte": (Raw(b"\x96" + b"\xff" * 7 + b"\x0faa"), ""),
    "a frame of an exabyte": (Raw(b"\x95" + b"\xff" * 7 + b"\x0fN"), "it holds None, not tensors by name"),
    "an id that is text": (Outside("storage"), "it refers to something outside that is not a storage"),
    "an id of a module": (Outside(("module", "a", "b", "c", "d")), "it refers to something outside"),
    "an id with a name for a class": (Outside(("storage", "FloatStorage", "0", "cpu", 6)), "a storage has no class"),
    "an id with a function for a class": (Outside(("storage", ORDERED.function, "0", "cpu", 6)), "has no class"),
    "an id with a number for a key": (Outside(("storage", Name("torch", "FloatStorage"), 0, "cpu", 6)), "no key"),
    "a storage that is not there": ({"w": tensor(held=storage("1"))}, "storage 1: there is no such member"),
    "a storage in the folder above": ({"w": tensor(held=storage("../data.pkl"))}, "there is no such member"),
    "a storage that is larger": ({"w": tensor(held=storage(numel=7))}, "its pickle says 28 bytes, and it has 24"),
    "a storage that is smaller": ({"w": tensor(held=storage(numel=5))}, "its pickle says 20 bytes, and it has 24"),
    "a storage of -1 elements": ({"w": tensor(held=storage(numel=-1))}, "not a whole number of 0 or more"),
    "a storage of True elements": ({"w": tensor(held=Outside((*storage().id[:4], True)))}, "not a whole number"),
    "a storage of 2^80 elements": ({"w": tensor(held=storage(numel=1 << 80))}, "not a whole number"),
    "a storage of two sizes": ({"w": tensor(), "v": tensor(held=storage(kind="Double"))}, "said to have two sizes"),
    "a storage of float128": ({"w": tensor(held=storage(kind="Quad"))}, "of torch.QuadStorage, which is not supported"),
    "a tensor without a storage": ({"w": tensor(held="0")}, "a tensor has no storage"),
    "a tensor beyond its storage": ({"w": tensor((2, 4), (3, 1))}, "needs 28 bytes of a storage of 24"),
    "a tensor that begins too late": ({"w": tensor(offset=1)}, "needs 28 bytes of a storage of 24"),
    "a tensor of 10^18 elements": ({"w": tensor((10**9, 10**9), (10**9, 1))}, "bytes of a storage of 24"),
    "a negative stride": ({"w": tensor((2, 3), (3, -1))}, "not of whole numbers of 0 or more"),
    "a negative offset": ({"w": tensor(offset=-1)}, "not of whole numbers of 0 or more"),
    "a stride that is text": ({"w": tensor((2,), ("1",))}, "not of whole numbers of 0 or more"),  # type: ignore[arg-type]
    "a shape that is a number": ({"w": tensor(6, (1,))}, "a tensor has a number as its shape"),  # type: ignore[arg-type]
    "a stride too few": ({"w": tensor((2, 3), (1,))}, "a tensor of 2 axes has 1 strides"),
    "a tensor of 65 axes": ({"w": tensor((1,) * 65, (1,) * 65)}, "a tensor has a tuple as its shape"),
    "hooks": ({"w": Call(tensor().function, (storage(), 0, (6,), (1,), False, {1: 2}))}, "a tensor has hooks"),
    "one number 10^15 times": ({"w": tensor((10**15,), (0,))}, "its tensors repeat the same bytes"),
    "no tensors": ({}, "it holds no tensors"),
    "a name that is a number, of a tensor": ({1: tensor()}, "the key of a tensor is a number, not a name"),
    "tensors and more of them": ({"w": tensor(), "more": W}, "it holds tensors, and more under 'more'"),
    "tensors twelve dicts deep": (
        {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": W}}}}}}}}}}},
        "its tensors are nested too deeply",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles(case: str, tmp_path: Path) -> None:
    value, words = HOSTILE[case]
    assert words in refusal(archive(value), tmp_path)
    line = refusal(legacy(value), tmp_path)
    assert words in line or "storage" in line


BOMBS: dict[str, Callable[[], bytes]] = {
    "a place in the memo of 2^30": lambda: Raw(b"Nr\xff\xff\xff\x3f").code,
    "a billion laughs": lambda: b"]q\x00" + b"".join(b"](" + b"h%c" % n * 10 + b"eq%c" % (n + 1) for n in range(60)),
    "ten million instructions": lambda: b"N0" * 5_000_000 + b"N",
    "tuples in tuples": lambda: b"N" + b"\x85" * 4_000_000,
    "dicts": lambda: b"(" + b"}" * 4_000_000 + b"l",
    "lists in lists": lambda: b"](" * 1_000_000,
    "OrderedDicts of one list": lambda: (
        b"](" + b"X\x01\x00\x00\x00aN\x86q\x01" + b"h\x01" * 400_000 + b"eq\x02("
        + b"ccollections\nOrderedDict\nh\x02\x85R" * 50_000 + b"l"
    ),
    "tuples as keys": lambda: b"}(" + b"K\x01\x85N" * 1_000_000 + b"u",
    "a number of a million digits": lambda: b"\x8b" + (1 << 20).to_bytes(4, "little") + b"\x7f" * (1 << 20),
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_take_little(case: str, tmp_path: Path) -> None:
    """Half a minute and 16 GB of Python's own unpickler, for the first of them"""
    path = tmp_path / "bomb.pt"
    code = b"\x80\x02" + BOMBS[case]() + b"."
    for content in (archive(code), legacy(code)):
        path.write_bytes(content)
        program = (
            "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30));"
            "resource.setrlimit(resource.RLIMIT_CPU, (25, 25)); from quantcli.cli import main; main(sys.argv[1:])"
        )
        ran = subprocess.run(
            [sys.executable, "-c", program, "inspect", str(path)], capture_output=True, text=True, env=environment()
        )
        assert ran.returncode == 1 and ran.stderr.count("\n") == 1, ran
        assert ran.stderr.startswith(f"quantcli: {path}: ") and "memory" not in ran.stderr, ran


def test_a_value_that_is_referred_to_often_is_looked_at_once(tmp_path: Path) -> None:
    """a list that holds a list twice, which holds a list twice, and so on: 2^60 paths to one tensor"""
    lists = b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(60))
    code = b"\x80\x02" + pickled(tensor())[2:-1] + b"q\x000" + lists
    whole = b"}(X\x01\x00\x00\x00ah\x3cX\x01\x00\x00\x00bh\x3bu"
    line = refusal(archive(code + b"0" * 60 + whole + b"."), tmp_path)
    assert "there are tensors under 'a', 'b'" in line


def test_limits_of_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_file, "PICKLE_LIMIT", 100)
    assert "data.pkl: it has" in refusal(archive(W), tmp_path)
    monkeypatch.setattr(torch_file, "PICKLE_LIMIT", 1 << 25)
    monkeypatch.setattr(pickles, "STEPS", 20)
    assert "it has more than 20 instructions" in refusal(archive(W), tmp_path)


# ---- hostile containers -----------------------------------------------------------------------------------------


def rezipped(change: Callable[[zipfile.ZipInfo], None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive of W with members changed in the list of them."""
    stream = io.BytesIO(archive(W))
    out = io.BytesIO()
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(out, "w", compression) as new:
        for member in old.infolist():
            new.writestr(zipfile.ZipInfo(member.filename), old.read(member), compression)
        for info in new.infolist():
            change(info)
    return out.getvalue()


def lies(offset: int | None = None, size: int | None = None, flags: int = 0) -> Callable[[zipfile.ZipInfo], None]:
    """Lets the list of members say something else of the storage."""

    def change(info: zipfile.ZipInfo) -> None:
        if info.filename == "a/data/0":
            info.flag_bits |= flags
            info.header_offset = info.header_offset if offset is None else offset
            if size is not None:
                info.file_size = info.compress_size = size

    return change


TWICE = [("a/data.pkl", pickled(W)), ("a/data/0", SIX), ("a/data/1", SIX)]
CONTAINERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "compressed": (lambda: rezipped(lambda i: None, zipfile.ZIP_DEFLATED), "this member is compressed"),
    "encrypted": (lambda: rezipped(lies(flags=1)), "this member is encrypted"),
    "overlapping": (lambda: rezipped(lies(offset=0)), "its bytes overlap another member's"),
    "beyond the end": (lambda: rezipped(lies(size=1 << 40)), "it claims 1099511627776 bytes, beyond the end"),
    "at another place": (lambda: rezipped(lies(offset=250)), "where the list of members puts it"),
    "of another size": (lambda: rezipped(lies(size=20)), "its pickle says 24 bytes, and it has 20"),
    "twice": (lambda: zip_bytes(TWICE).replace(b"data/1", b"data/0"), "there are two members of this name"),
    "two pickles": (lambda: zip_bytes([("a/data.pkl", b""), ("b/data.pkl", b"")]), "no data.pkl of its own"),
    "no pickle": (lambda: zip_bytes([("a/data/0", SIX)]), "this is a zip archive, but none that torch.save wrote"),
    "nothing": (lambda: b"PK\x03\x04" + bytes(30), "a zip archive that is damaged or cut short"),
    "cut short": (lambda: archive(W)[:-30], "a zip archive that is damaged or cut short"),
    "an old file cut short": (lambda: legacy(W)[:-1], "the file is cut short"),
    "an old file cut in its sizes": (lambda: legacy(W)[:-30], "the file is cut short"),
    "an old file with more": (lambda: legacy(W) + b"x", "followed by bytes that belong to no tensor"),
    "an old file with another size": (lambda: legacy(W, {"0": SIX[:-4]}), "says 6 elements, and it has 5"),
    "an old file with another key": (lambda: legacy(W, {"1": SIX}), "its list of storages is not that of its tensors"),
    "an old storage in parts": (
        lambda: legacy({"w": tensor(held=storage("0", 6, "Float", ("0", 0, 6)))}),
        "a storage is a part of another",
    ),
    "another version": (lambda: legacy(W).replace(pickled(1001), pickled(1002), 1), "unknown version 1002"),
    "a pickle of another": (lambda: pickle.dumps({"w": [1.0]}, 4), "a Python pickle that torch.save did not write"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTAINERS)
def test_hostile_containers(case: str, tmp_path: Path) -> None:
    content, words = CONTAINERS[case]
    assert words in refusal(content(), tmp_path)


def test_files_made_here_are_read(tmp_path: Path) -> None:
    """else the tests above would show nothing"""
    for content in (archive(W), legacy(W), legacy({"w": tensor(held=storage("0", 6, "Float", None))})):
        (tmp_path / "a.pt").write_bytes(content)
        assert everything(tmp_path / "a.pt") == {"w": ["F32", [2, 3], SIX.hex()]}


class Colour(enum.Enum):
    RED = 1


KEPT_BY_TRAINING: dict[str, tuple[Any, str]] = {
    "Namespace": (argparse.Namespace(lr=1e-3, path=Path("a")), "an object of argparse.Namespace"),
    "set": ({"a", "b"}, "an object of set"),
    "array": (np.arange(6.0), "an object of numpy.ndarray"),
    "scalar": (np.float64(3), "an object of a number of numpy"),
    "path": (PurePosixPath("a/b"), "an object of pathlib.PurePosixPath"),
    "time": (datetime.datetime(2026, 1, 1), "an object of datetime.datetime"),
    "defaults": (collections.defaultdict(list, {"a": [1]}), "a dict"),
    "a class": (Colour, f"{__name__}.Colour"),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("case", KEPT_BY_TRAINING)
def test_objects_beside_a_model_are_left_out_and_told(case: str, protocol: int, tmp_path: Path) -> None:
    """Pickles of Python's own pickler, of what training runs keep"""
    value, words = KEPT_BY_TRAINING[case]
    path = tmp_path / "a.ckpt"
    path.write_bytes(archive({"kept": Raw(pickle.dumps(value, protocol)[2:-1]), "state_dict": W}))
    assert everything(path) == {"w": ["F32", [2, 3], SIX.hex()]}
    ran = run("inspect", path)
    assert re.search(rf"left out, not (read|tensors): kept \({re.escape(words)}\)\n", ran.err), ran.err


def test_checkpoints_of_lightning(tmp_path: Path) -> None:
    """as Lightning 1 and 2 write them: settings in a class of theirs, and callbacks by their classes"""
    settings = Made(Name("lightning.fabric.utilities.data", "AttributeDict"), {"net": Made(Name("chem", "Net"), W)})
    callback = Name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    path = tmp_path / "a.ckpt"
    path.write_bytes(
        archive({"state_dict": W, "hyper_parameters": settings, "callbacks": {callback: {"best": tensor()}}})
    )
    assert everything(path) == {"w": ["F32", [2, 3], SIX.hex()]}
    ran = run("inspect", path)
    assert (
        "left out, not read: hyper_parameters (an object of lightning.fabric.utilities.data.AttributeDict)\n" in ran.err
    )
    assert "left out, state of a training run: callbacks\n" in ran.err


def test_settings_are_not_the_model(tmp_path: Path) -> None:
    """a tensor among them, as in a checkpoint of SevenNet; where there is nothing else they may be"""
    path = tmp_path / "a.pth"
    path.write_bytes(archive({"model_state_dict": W, "config": {"shift": tensor()}}))
    assert "the tensors are those under model_state_dict\n" in run("inspect", path).err
    assert "left out, settings: config (a dict)\n" in run("inspect", path).err
    path.write_bytes(archive({"config": {"shift": tensor()}}))
    assert "the tensors are those under config\n" in run("inspect", path).err


def test_a_class_as_a_key_is_shown_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(archive({Name("nets", "Small"): W}))
    assert "quantcli: the tensors are those under nets.Small\n" in run("inspect", path).err
    line = refusal(archive({Name("nets", "Small"): W, "other": W}), tmp_path)
    assert "there are tensors under nets.Small, 'other', and each may be the model" in line


def test_an_enumeration_is_refused(tmp_path: Path) -> None:
    """The pickle calls its class, and what a call does is not known"""
    line = refusal(archive({"state_dict": W, "kept": Raw(pickle.dumps(Colour.RED, 2)[2:-1])}), tmp_path)
    assert (
        "Colour, which is not part of a state dict; save its tensors with torch.save(model.state_dict(), FILE)" in line
    )


@pytest.mark.parametrize("name", ["views.pt", "dtypes.legacy.pt", "training.ckpt", "dtypes.protocol4.pt"])
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    """Bytes changed, removed and doubled: whatever comes of it, it is numbers or one line."""
    original = (GOLDEN / name).read_bytes()
    chance = random.Random(name)
    path = tmp_path / "a.pt"
    refused = 0
    rounds = int(os.environ.get("QUANTCLI_FUZZ", "400"))
    for _ in range(rounds):
        content = bytearray(original)
        for _ in range(chance.choice((1, 1, 2, 5))):
            at, much = chance.randrange(len(content)), chance.choice((1, 1, 1, 4, 50))
            match chance.randrange(4):
                case 0:
                    content[at] = chance.randrange(256)
                case 1:
                    content[at] ^= 1 << chance.randrange(8)
                case 2:
                    del content[at : at + much]
                case _:
                    content[at:at] = content[at : at + much]
        path.write_bytes(content)
        try:
            everything(path)
        except QuantcliError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > rounds // 4


# ---- strides ----------------------------------------------------------------------------------------------------


@given(st.data())
def test_any_strides_are_read_as_numpy_reads_them(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    dtype = data.draw(st.sampled_from(["<u1", "<u2", "<u4", "<u8"]))
    whole = np.arange(int(np.prod(shape))).astype(dtype).reshape(shape)
    path = tmp_path_factory.getbasetemp() / "strided.bin"
    path.write_bytes(whole.tobytes())
    cut = tuple(slice(data.draw(st.integers(0, n - 1)), None, data.draw(st.integers(1, 3))) for n in shape)
    view = whole[cut].transpose(data.draw(st.permutations(range(len(shape)))))
    offset = sum(c.start * s for c, s in zip(cut, whole.strides))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strided, "SLAB", data.draw(st.sampled_from([8, 50, 300, 1 << 23])))
        patch.setattr(strided, "_CALL", data.draw(st.sampled_from([1, 16, 64])))
        strides = [n // whole.itemsize for n in view.strides]
        file = InputFile(str(path))
        found = Strided(file, offset, whole.itemsize, merged(view.shape, strides))
        expected = np.ascontiguousarray(view).tobytes()
        first, last = sorted(data.draw(st.tuples(st.integers(0, view.size), st.integers(0, view.size))))
        for low, high in ((0, view.size), (first, last)):
            buffer = bytearray((high - low) * whole.itemsize)
            found.read(low * whole.itemsize, memoryview(buffer))
            assert bytes(buffer) == expected[low * whole.itemsize : high * whole.itemsize]
        file.close()
