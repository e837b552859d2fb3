"""Write the frozen native files: one of every kind the format knows, with the digests of what they decode to.

`make golden` runs this, and nothing else writes them. The files of a version lie in `native/VERSION/`. Files of other
versions are never touched, and files of a version that CHANGELOG.md has a section for (it is released) are never
replaced: who changes the bytes of native files raises the version first, and lists the change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).resolve().parent
NATIVE = GOLDEN / "native"
sys.path.append(str(GOLDEN.parent))

from golden import models  # noqa: E402
from making import ROOT, header_of, run  # noqa: E402

import quantcli  # noqa: E402


@dataclass(frozen=True)
class Case:
    """A file or folder and how it is made. commands: command lines without output, the second of which takes what the
    first one wrote as its source. unsealed: whether the digest of the header is taken out, as early versions had none.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    unsealed: bool = False

    @property
    def source(self) -> str:
        return self.commands[0][1]

    @property
    def importance(self) -> list[str]:
        """What verify must know too."""
        words = self.commands[0]
        return ["--importance", words[words.index("--importance") + 1]] if "--importance" in words else []


WHERE = {
    "g1": "--group-size 1", "g16": "--group-size 16", "g32": "--group-size 32", "g128": "--group-size 128",
    "channel": "--group-size -1", "tensor": "--group-size 0", "axis1": "--granularity channel --axis 1",
    "last-axis": "--granularity channel --axis -1",
}  # fmt: skip
"""What shares a scale, by the word for it in the names of cases; rows of 70 make the last groups short."""

ZERO = {"": "", "-asymmetric": "--asymmetric", "-offset": "--asymmetric --zero-point float"}
"""Kinds of zero point in the same way."""


def cases() -> Iterator[Case]:
    """Every kind of native file."""
    yield from integers()
    yield from calibrations()
    yield from formats()
    yield from codebooks()
    yield from others()
    yield from folders()


def case(name: str, source: str, options: str, *, keep: bool = False, then: str = "", unseal: bool = False) -> Case:
    """A case whose every tensor of two or more dimensions is quantized, unless the default keep-list applies."""
    first = ("quantize", source, *options.split(), *([] if keep else ["--no-default-keep"]))
    return Case(name, (first, tuple(then.split())) if then else (first,), unseal)


def integers() -> Iterator[Case]:
    """Integers: bits, what shares a scale, zero points, dtypes of scales and weights, grids."""
    for bits in range(1, 17):
        for kind, zero in ZERO.items():
            if kind != "-offset" or bits in (1, 2, 4, 7, 9, 16):
                yield case(f"int{bits}-g32{kind}", "block.safetensors", f"--bits {bits} --group-size 32 {zero}")
    for kind, zero in ZERO.items():
        for where in ("g1", "g16", "g128", "channel", "tensor", "axis1"):
            yield case(f"shapes-int4-{where}{kind}", "shapes.safetensors", f"--bits 4 {WHERE[where]} {zero}")
        for bits in (3, 8):
            for where in ("channel", "tensor", "axis1"):
                yield case(f"int{bits}-{where}{kind}", "block.safetensors", f"--bits {bits} {WHERE[where]} {zero}")
        for dtype in ("float32", "float16", "bfloat16"):
            options = f"--bits 4 --group-size 32 --scale-dtype {dtype} {zero}"
            yield case(f"int4-scale-{dtype}{kind}", "block.safetensors", options)
        yield case(f"special-int4-g16{kind}", "special.safetensors", f"--bits 4 --group-size 16 {zero}")
        yield case(f"int5-of-bf16{kind}", "block-bf16.safetensors", f"--bits 5 --group-size 32 {zero}")
    yield case("shapes-int4-last-axis", "shapes.safetensors", f"--bits 4 {WHERE['last-axis']}")
    yield case("special-int8-tensor", "special.safetensors", "--bits 8 --group-size 0")
    for dtype in ("f16", "f64", "f8_e4m3", "f8_e5m2"):
        plain = "--source-layout plain" if dtype.startswith("f8") else ""
        yield case(f"int5-of-{dtype}", f"block-{dtype}.safetensors", f"--bits 5 --group-size 32 {plain}")
    yield case("int4-scales-beyond-float16", "large.safetensors", "--bits 4 --group-size 32")
    for grid in ("restricted", "full"):
        yield case(f"int3-{grid}", "block.safetensors", f"--bits 3 --group-size 32 --grid {grid}")


def calibrations() -> Iterator[Case]:
    """Every calibration with its options, and both ways of rounding."""
    efforts = {f"mse-{effort}": f"--calibration mse --effort {effort}" for effort in ("fast", "best", "exact")}
    methods = {name: f"--calibration {name}" for name in ("minmax", "mse", "signed-extreme", "auto")} | efforts
    methods |= {"mse-norm": "--mse-norm 2.4", "percentile": "--percentile 99", "entropy": "--calibration entropy"}
    for name, options in methods.items():
        for where in ("channel", "tensor") if name == "entropy" else ("g16", "tensor"):
            yield case(f"int4-{where}-{name}", "block.safetensors", f"--bits 4 {WHERE[where]} {options}")
        if name in ("minmax", "mse", "percentile", "auto"):
            yield case(f"int4-g32-asymmetric-{name}", "block.safetensors", f"--asymmetric {WHERE['g32']} {options}")
    for rounding in ("nearest", "sum-preserving"):
        options = f"--bits 2 --group-size 32 --rounding {rounding} --calibration minmax"
        yield case(f"int2-{rounding}", "block.safetensors", options)
    yield case("int1-mean-abs", "block.safetensors", "--bits 1 --calibration mean-abs --group-size 16")


def formats() -> Iterator[Case]:
    """Every format but integers and codebooks."""
    for name in ("nf4", "fp4", "fp8-e4m3", "fp8-e5m2", "mu-law", "a-law", "midrise"):
        for where in ("g32" if name != "nf4" else "g16", "channel", "tensor", "axis1"):
            yield case(f"{name}-{where}", "shapes.safetensors", f"--type {name} {WHERE[where]}")
    for name in ("mu-law", "a-law", "midrise"):
        for bits in (2, 5, 7):
            yield case(f"{name}{bits}-g32", "block.safetensors", f"--type {name} --bits {bits} --group-size 32")
    for bits in (1, 3, 12, 16):
        yield case(f"midrise{bits}-channel", "block.safetensors", f"--type midrise --bits {bits} --group-size -1")
    yield case("midrise4-offset", "block.safetensors", f"--type midrise --bits 4 --group-size 32 {ZERO['-offset']}")
    for method in ("mse", "auto"):
        for name in ("nf4", "midrise --bits 4"):
            options = f"--type {name} --group-size 32 --calibration {method}"
            yield case(f"{name.replace(' --bits ', '')}-{method}", "block.safetensors", options)


def codebooks() -> Iterator[Case]:
    """Codebooks: learned ones per tensor, per channel and for groups, and given ones."""
    for bits in range(1, 9):
        yield case(f"codebook{bits}-tensor", "block.safetensors", f"--type codebook --bits {bits} --group-size 0")
    for where in ("g16", "channel"):
        yield case(f"codebook3-{where}", "shapes.safetensors", f"--type codebook --bits 3 {WHERE[where]}")
    for where in ("g16", "channel", "tensor"):
        yield case(f"codebook-5-levels-{where}", "block.safetensors", f"--levels 5 {WHERE[where]}")
    for dtype in ("float32", "float16", "bfloat16", "float8_e4m3"):
        options = f"--type codebook --bits 4 --group-size 16 --scale-dtype {dtype}"
        yield case(f"codebook4-scale-{dtype}", "block.safetensors", options)
    for dtype in ("f16", "bf16"):
        options = "--type codebook --bits 4 --group-size -1"
        yield case(f"codebook4-channel-of-{dtype}", f"block-{dtype}.safetensors", options)
    for where in ("g16", "channel", "tensor", "axis1"):
        yield case(f"codebook-given-{where}", "shapes.safetensors", f"--codebook levels.txt {WHERE[where]}")
    yield case("codebook-given-mse", "block.safetensors", "--codebook levels.txt --calibration mse")


def others() -> Iterator[Case]:
    """Digests, what is kept, sources of other kinds, rules, importances, files as early versions wrote them."""
    for digest in ("xxh3", "sha256", "none"):
        yield case(f"digest-{digest}", "block.safetensors", f"--digest {digest} --group-size 32")
    yield case("kept", "kept.safetensors", "--group-size 32 --source-layout plain --include mlp.weight")
    yield case("kept-nonfinite", "nonfinite.safetensors", "--on-nonfinite keep --group-size 32")
    options = "--group-size 32 --exclude conv.weight --override deep.weight:keep"
    yield case("kept-by-name", "shapes.safetensors", options)
    yield case("vectors", "vectors.safetensors", "--group-size 32", keep=True)
    yield case("embedding", "embedding.safetensors", "--group-size 32 --bits 8", keep=True)
    yield case("of-npy", "array.npy", "--group-size 32", keep=True)
    yield case("of-npz", "arrays.npz", "--group-size 32")
    yield case("weighed", "block.safetensors", "--importance importance.safetensors --bits 3 --group-size 32")
    yield case("recipe", "shapes.safetensors", "--recipe recipe.yaml")
    options = "--override conv.weight:bits=2,group-size=9 --override *.weight:bits=6,group-size=32"
    yield case("override", "shapes.safetensors", options)
    yield case("unsealed", "block.safetensors", "--bits 4 --group-size 32", unseal=True)
    yield case("unsealed-asymmetric", "shapes.safetensors", "--asymmetric --group-size 16", unseal=True)
    options = "--to compressed-tensors --group-size 16 --override *_proj:bits=8"
    yield case("as-compressed-tensors", "plain/model-00001-of-00002.safetensors", options)


def folders() -> Iterator[Case]:
    """Checkpoint folders: as they are cut, cut anew, joined, exported; with and without a transformers config.json."""
    yield case("folder", "plain", "--group-size 16 --include *_proj", keep=True)
    yield case("folder-target-bpw", "plain", "--target-bpw 17")
    yield case("folder-compressed-tensors", "llama", "--group-size 16")
    yield case("folder-native", "llama", "--to native --type codebook --bits 2 --group-size 24")
    options = "--asymmetric --bits 3 --group-size -1 --max-shard-size 7kB --digest sha256"
    yield case("folder-cut-anew", "plain", options, keep=True)
    yield case("folder-joined", "plain", "--bits 2 --group-size 0")
    options = "--to native --bits 8 --group-size -1 --include *_proj"
    yield case("folder-exported", "llama", options, then="export --to compressed-tensors")


FOLDERS = {"plain", "llama"}
"""Sources that are folders: what is made of them is one too, but for `folder-joined`."""


def output(case: Case) -> str:
    """The name of what a case makes."""
    folder = case.source in FOLDERS and case.name != "folder-joined"
    return case.name if folder else f"{case.name}.safetensors"


def make(case: Case, folder: Path) -> Path:
    """What a case makes, in a folder of the working directory, which holds the models. Raises RuntimeError where a
    command ends in an error."""
    target = folder / output(case)
    made = [target.with_name(f"between-{target.name}") for _ in case.commands[1:]] + [target]
    for step, (words, path) in enumerate(zip(case.commands, made)):
        given = words if step == 0 else (words[0], str(made[step - 1]), *words[1:])
        ran = run(*given, "-o", path, "-q")
        if ran.code:
            raise RuntimeError(f"{case.name}: quantcli {' '.join(given)}: exit {ran.code}: {ran.err.strip()}")
    for path in made[:-1]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if case.unsealed:
        unseal(target)
    if target.is_dir():
        (target / "README.md").unlink()  # the model card is no part of the format
    return target


def unseal(path: Path) -> None:
    """Take the digest of the header out of a file, and leave the rest of its bytes."""
    raw = path.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    header = header_of(path)
    document = json.loads(header["__metadata__"]["quantcli"])
    del document["check"]
    header["__metadata__"]["quantcli"] = json.dumps(document, sort_keys=True, separators=(",", ":"))
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def digests_of(path: Path) -> dict[str, str]:
    """SHA-256 of a file, or of every file of a folder, by name."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return {p.relative_to(path).as_posix() if path.is_dir() else p.name: sha256(p.read_bytes()) for p in files}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def decoded(path: Path) -> dict[str, str]:
    """What every tensor of a file or folder decodes to: its dtype and shape in the model, its scheme or that it is
    kept, the dtype of its values and the SHA-256 of their bytes, but for kept types that numpy does not have."""
    found = {}
    with quantcli.open(str(path)) as model:
        for name, tensor in model.items():
            try:
                values = tensor.numpy()
                digest = f"{values.dtype.name} {sha256(values.tobytes())}"
            except quantcli.DataError:
                digest = ""
            shape = "x".join(map(str, tensor.shape)) or "scalar"
            found[name] = f"{tensor.dtype} {shape} {tensor.scheme.name if tensor.scheme else 'kept'} {digest}".rstrip()
    return found


def versions() -> list[str]:
    """The versions that files are frozen of."""
    return sorted(path.parent.name for path in NATIVE.glob("*/index.json"))


def index_of(version: str) -> dict[str, Any]:
    """The frozen files and folders of a version by the names of their cases."""
    found: dict[str, Any] = json.loads((NATIVE / version / "index.json").read_text(encoding="utf-8"))["files"]
    return found


def decoded_of(version: str) -> dict[str, dict[str, str]]:
    """What all files of a version decode to."""
    return {name: decoded(NATIVE / version / entry["output"]) for name, entry in index_of(version).items()}


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """A working directory for a while: command lines name files in it."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def is_released(version: str) -> bool:
    """Whether CHANGELOG.md has a section of this version."""
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return re.search(rf"^## {re.escape(version)}(?![\w.])", log, re.MULTILINE) is not None


def refuse_changes(version: str, known: dict[str, Any], index: dict[str, Any]) -> None:
    """End the program where files of a released version would change or go. New ones may come."""
    changed = [name for name, entry in known.items() if index.get(name) != entry]
    if changed and is_released(version):
        sys.exit(
            f"{version} is released, and these files of it would change: {', '.join(changed)}\n"
            "raise the version in quantcli/__init__.py and list the change in CHANGELOG.md, or undo it"
        )


def main() -> None:
    """Write the files of this version, unless they would replace files of a released one."""
    version = quantcli.__version__
    home = NATIVE / version
    known = index_of(version) if home.exists() else {}
    with tempfile.TemporaryDirectory() as folder, inside(Path(folder)):
        models.build(Path(folder))
        out = Path("out")
        out.mkdir()
        index: dict[str, dict[str, Any]] = {}
        for case in cases():
            path = make(case, out)
            words = [" ".join(command) for command in case.commands]
            index[case.name] = {"output": path.name, "commands": words, "source": case.source}
            index[case.name] |= {"unsealed": True} if case.unsealed else {}
            index[case.name] |= {"sha256": digests_of(path), "tensors": decoded(path)}
        refuse_changes(version, known, index)
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(out, home)
    summary = f"Native files written by quantcli {version}; see tests/golden/write_native.py."
    whole = {"summary": summary, "version": version, "files": index}
    (home / "index.json").write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    total = sum(p.stat().st_size for p in home.rglob("*") if p.is_file())
    print(f"{home.relative_to(ROOT)}: {len(index)} files and folders, {total:,} bytes")


if __name__ == "__main__":
    main()
