"""Files and command lines for the tests. Files are written and read by other people's code, or byte by byte here."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pty
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import xxhash
from safetensors import numpy as st_numpy

ROOT = Path(__file__).resolve().parent.parent
GOLDEN_FILES = ROOT / "tests" / "golden"

BF16 = ml_dtypes.bfloat16

NUMPY_OF = {
    "BOOL": np.dtype("?"), "U8": np.dtype("u1"), "I8": np.dtype("i1"), "U16": np.dtype("<u2"), "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"), "I32": np.dtype("<i4"), "U64": np.dtype("<u8"), "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "BF16": np.dtype(BF16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2), "C64": np.dtype("<c8"),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz), "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}  # fmt: skip
"""safetensors dtype -> the numpy (or ml_dtypes) one."""


# ---- safetensors ----------------------------------------------------------------------------------------------


def save(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    """Write tensors with the safetensors library."""
    contiguous = {name: np.array(array, order="C", copy=True) for name, array in tensors.items()}
    path.write_bytes(st_numpy.save(contiguous, metadata))
    return path


def raw_file(header: bytes | dict[str, Any], data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file byte by byte: any header, any claimed length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def raw_tensors(
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]], metadata: dict[str, str] | None = None
) -> bytes:
    """A well-formed safetensors file of tensors the library cannot write."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, payload) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(payload)]}
        data += payload
    return raw_file(header, data)


@dataclass(frozen=True)
class Stored:
    """A tensor as the safetensors library found it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.data, NUMPY_OF[self.dtype]).reshape(self.shape)


def load(path: Path | str) -> dict[str, Stored]:
    """Every tensor of a file, read by the safetensors library."""
    found = safetensors.deserialize(Path(path).read_bytes())
    return {name: Stored(entry["dtype"], tuple(entry["shape"]), bytes(entry["data"])) for name, entry in found}


def header_of(path: Path | str) -> dict[str, Any]:
    """The JSON header of a file."""
    data = Path(path).read_bytes()
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


def metadata_of(path: Path | str) -> dict[str, str]:
    """The metadata of a file, read by the safetensors library."""
    with safetensors.safe_open(str(path), framework="np") as file:
        return dict(file.metadata() or {})


# ---- .npy and .npz --------------------------------------------------------------------------------------------


def npy_bytes(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    """A .npy file as numpy writes it."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()


def raw_npy(
    header: str | bytes, data: bytes = b"", *, version: tuple[int, int] = (1, 0), length: int | None = None
) -> bytes:
    """A .npy file with any header."""
    text = header.encode("latin-1") if isinstance(header, str) else header
    width = 2 if version == (1, 0) else 4
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes(version) + size.to_bytes(width, "little") + text + data


def zip_bytes(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive with any member names, twice the same one too."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return stream.getvalue()


# ---- running the command --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return strict_json(self.out)


def strict_json(text: str) -> Any:
    """JSON that any reader takes: no NaN, no infinity, no duplicate keys."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} in JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({k for k, _ in pairs}) == len(pairs)
        return dict(pairs)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)


def to(target: str) -> list[str]:
    """The options that write any model for a target: files of single tensors where it has such."""
    from quantcli.layouts.writer import named

    return ["--to", target, *(["--container"] if named(target).container is not None else [])]


def run(*arguments: object) -> Ran:
    """Run the command line in this process: a tenth of a second less than a new one."""
    from quantcli.cli import main

    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(a) for a in arguments])
        except SystemExit as done:
            code = done.code
    return Ran(code or 0, out.getvalue(), err.getvalue())


def environment(**changes: str) -> dict[str, str]:
    """The environment of a subprocess that imports the package this process imports."""
    import quantcli

    found = {k: v for k, v in os.environ.items() if k not in ("QUANTCLI_KERNELS", "PYTHONWARNINGS")}
    package = str(Path(quantcli.__file__).parent.parent)
    found["PYTHONPATH"] = os.pathsep.join([package, *([found["PYTHONPATH"]] if found.get("PYTHONPATH") else [])])
    return {**found, **changes}


def command(*arguments: object) -> list[str]:
    """The command line of a subprocess."""
    return [sys.executable, "-m", "quantcli", *map(str, arguments)]


def run_process(*arguments: object, cwd: Path | None = None, **changes: str) -> Ran:
    """Run the command line in a process of its own."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment(**changes), timeout=120,
                          cwd=cwd, check=False)  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def on_a_terminal(*arguments: str, columns: int = 80, **more: str) -> str:
    """What a command prints where standard output is a terminal."""
    ours, theirs = pty.openpty()
    found = environment(TERM="xterm-256color", COLUMNS=str(columns), **more)
    with subprocess.Popen(command(*arguments), stdout=theirs, env=found):
        os.close(theirs)
        printed = b""
        while True:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # how Linux says that the other side is closed
                break
            if not piece:
                break
            printed += piece
    os.close(ours)
    return printed.decode().replace("\r\n", "\n")


def sparse_model(path: Path, gigabytes: float) -> Path:
    """A model of holes: as much work as a full one, without the disk."""
    rows = int(gigabytes * 1e9 / 4 / 4096)
    header = raw_file({"w": {"dtype": "F32", "shape": [rows, 4096], "data_offsets": [0, rows * 4096 * 4]}})
    path.write_bytes(header)
    os.truncate(path, len(header) + rows * 4096 * 4)
    return path


def one_line(ran: Ran, code: int) -> str:
    """The one line of an error. Asserts the contract of every refusal: exit code, one line, no traceback."""
    assert ran.code == code, ran
    assert ran.out == "", ran
    assert ran.err.startswith("quantcli: "), ran
    assert ran.err.count("\n") == 1 and ran.err.endswith("\n"), ran
    assert "Traceback" not in ran.err and "internal error" not in ran.err, ran
    assert ran.err.rstrip("\n").isprintable(), ran
    return ran.err[len("quantcli: ") :].rstrip("\n")


def digest(path: Path) -> str:
    """What a file holds, short enough for a failed assertion."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


CHUNK = 256 * 1024
"""Bytes that are digested at once."""


def digest_by_definition(data: bytes) -> str:
    """XXH3-128 of the concatenated XXH3-128 digests of consecutive chunks of 256 KiB."""
    whole = b"".join(xxhash.xxh3_128_digest(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK))
    return xxhash.xxh3_128_hexdigest(whole)


def left_behind(folder: Path) -> list[str]:
    """Names of temporary files and folders in a folder."""
    return sorted(n for n in os.listdir(folder) if n.startswith(".") and ".quantcli-" in n)


def change_header(path: Path | str, change: Callable[[dict[str, Any]], object], *, seal: bool = True) -> None:
    """Change the quantcli document in the header of a file, with a new digest of the header or with the old one."""
    from quantcli.stores import seal as seals

    raw = Path(path).read_bytes()
    length = 8 + int.from_bytes(raw[:8], "little")
    header = header_of(path)
    document = json.loads(header["__metadata__"]["quantcli"])
    change(document)
    header["__metadata__"]["quantcli"] = json.dumps(document, sort_keys=True, separators=(",", ":"))
    text = json.dumps(header, separators=(",", ":")).encode()
    whole = len(text).to_bytes(8, "little") + text
    if seal:
        whole = next(piece for _, piece in seals.seal([(0, whole)]))
    Path(path).write_bytes(whole + raw[length:])


MEASURED = """
import resource, sys
from quantcli.cli import main
try:
    main(sys.argv[1:])
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    # Not ru_maxrss, which begins with what the process that started this one took.
    (most,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")]
    print(used.ru_utime + used.ru_stime, most, file=sys.stderr)
"""


def measured(*arguments: object, timeout: float = 1200) -> tuple[float, float]:
    """Seconds of the processor and MiB at most of a run that must succeed."""
    words = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=timeout)
    assert done.returncode == 0, done.stderr
    seconds, most = map(float, done.stderr.splitlines()[-1].split())
    return seconds, most / 1024
