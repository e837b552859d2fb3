"""What quantcli finds on this machine: kernels and why these, processor, memory, extras, space, and runtimes."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata

from quantcli import __version__, library, memory, registry
from quantcli.errors import UsageError
from quantcli.layouts.writer import named
from quantcli.passes.tiles import default_threads

INSTRUCTIONS = {
    "base": "what every processor of its kind has",
    "v2": "SSE4.2",
    "v3": "AVX2, FMA and F16C",
    "v4": "AVX-512 with VNNI",
}
"""What the variants of the native kernels are built for."""

EXTRAS = {
    "onnx": "quantcli observe runs ONNX models",
    "gguf": "GGUF files, for which no packages are needed",
    "hub": "models of the Hugging Face hub by hf:// addresses",
    "cloud": "models in buckets by s3://, gs:// and az:// addresses",
    "dask": "a model quantized on several machines of a Dask cluster",
    "dev": "the tests",
}
"""What extras are for; others that are declared are listed too."""

PACKAGES = {
    "awq": ("gptqmodel", "vllm"),
    "bnb-nf4": ("bitsandbytes", "transformers", "diffusers"),
    "compressed-tensors": ("compressed-tensors", "transformers", "vllm", "sglang"),
    "fp8-blocks": ("transformers", "vllm", "sglang"),
    "gguf": ("llama-cpp-python",),
    "gptq": ("gptqmodel", "vllm"),
    "mlx": ("mlx", "mlx-lm"),
    "modelopt": ("vllm", "sglang", "tensorrt-llm"),
    "onnx": ("onnxruntime",),
}
"""Packages of Python whose programs load a target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A variant of the kernels: whether it is used, whether it could be, and why."""

    name: str
    used: bool
    runs: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A folder where files are written; free: bytes, None where they are not known. problem: why nothing can be written
    there, or why it is another one than was asked for; empty where there is none."""

    name: str
    path: str
    free: int | None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """Packages that are installed only when asked for: what for, and the version of each, None for a missing one."""

    name: str
    purpose: str
    packages: dict[str, str | None]

    @property
    def installed(self) -> bool:
        """Whether all of it is there."""
        return None not in self.packages.values()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What loads a target, what that needs or does not take, and the packages of it that are installed here."""

    name: str
    runtime: str
    needs: str
    installed: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All of it. kernels: of the library; problem: why it is not used, empty where it is. memory, available: bytes,
    None where they are not known. limit: bytes that the process may have, where a limit is set."""

    version: str
    python: str
    system: str
    package: str
    kernels: str
    problem: str
    forced: str
    variants: list[Variant]
    processor: str
    processors: int
    threads: int
    memory: int | None
    available: int | None
    limit: int | None
    places: list[Place]
    extras: list[Extra]
    targets: list[Target]


def diagnose() -> Diagnosis:
    """What there is on this machine. Nothing that is found, or is missing, is an error."""
    try:
        name, problem = library.name(), ""
    except UsageError as error:
        name, problem = "none", str(error)
    if name == "numpy" and not problem:
        problem = _why_numpy()
    total, available = memory.of_machine()
    return Diagnosis(
        version=__version__,
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        package=os.path.dirname(os.path.dirname(os.path.abspath(library.__file__))),
        kernels=name,
        problem=problem,
        forced=os.environ.get(library.FORCE, ""),
        variants=_variants(name),
        processor=_processor(),
        processors=os.cpu_count() or 1,
        threads=default_threads(),
        memory=total,
        available=available,
        limit=memory.of_container(),
        places=[_temporary(), _current()],
        extras=_extras(),
        targets=[_target(target) for target in registry.names("layouts", "WRITES")],
    )


def _why_numpy() -> str:
    """Why there are no native kernels in use."""
    if os.environ.get(library.FORCE) == "numpy":
        return f"{library.FORCE} asks for numpy"
    compiler = next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
    built = "the native kernels were not built, or for another machine"
    if compiler is None:
        return f"{built}, and there is no C++ compiler: install one, and quantcli again"
    return f"{built}; there is a compiler ({compiler}): install quantcli again"


def _variants(used: str) -> list[Variant]:
    """The variants of the library, each with why it is used or not; none where there is no library."""
    try:
        functions = library.opened()
    except UsageError:
        functions = None
    if functions is None:
        return []
    runs, forced = library.runnable(functions), os.environ.get(library.FORCE, "")
    asked = f"{library.FORCE} asks for {forced}" if forced not in ("", "native") else ""
    found = []
    for name in library.VARIANTS:
        mine, built_for = used == f"native-{name}", INSTRUCTIONS.get(name, "")
        if not library.is_built(functions, name):
            why = "not built for this system"
        elif name not in runs:
            why = f"this processor lacks {built_for}"
        elif asked:
            why = asked
        else:
            why = f"{'the fastest that this processor runs' if mine else 'a faster one runs'} ({built_for})"
        found.append(Variant(name=name, used=mine, runs=name in runs, why=why))
    return found


def _processor() -> str:
    """The name of the processor."""
    found = re.search(r"^model name\s*:\s*(.+)$", memory.text("/proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found is not None else platform.processor() or platform.machine()


def _temporary() -> Place:
    """The folder of temporary files, which Python looks for in several places."""
    try:
        path = tempfile.gettempdir()
    except OSError as error:
        return Place(name="temporary folder", path="none", free=None, problem=error.strerror or str(error))
    asked = os.environ.get("TMPDIR", "")
    passed = asked and os.path.realpath(asked) != os.path.realpath(path)
    return _place("temporary folder", path, f"not TMPDIR, {asked}, where nothing can be written" if passed else "")


def _current() -> Place:
    try:
        return _place("current folder", os.getcwd())
    except OSError:
        return Place(name="current folder", path="none", free=None, problem="it was removed")


def _place(name: str, path: str, problem: str = "") -> Place:
    if not os.access(path, os.W_OK | os.X_OK):
        problem = "nothing can be written there"
    try:
        return Place(name=name, path=path, free=shutil.disk_usage(path).free, problem=problem)
    except OSError:
        return Place(name=name, path=path, free=None, problem=problem)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _extras() -> list[Extra]:
    """The extras that quantcli declares, with their packages."""
    try:
        said = metadata.metadata("quantcli")
    except metadata.PackageNotFoundError:  # run from its sources
        return []
    lines = said.get_all("Requires-Dist") or []
    found = []
    for name in said.get_all("Provides-Extra") or []:
        own = [line for line in lines if re.search(rf"extra\s*==\s*['\"]{re.escape(name)}['\"]", line)]
        packages = [match[0] for line in own if (match := re.match(r"[\w.-]+", line)) is not None]
        purpose = EXTRAS.get(name, "")
        found.append(Extra(name=name, purpose=purpose, packages={p: _version(p) for p in packages}))
    return found


def _target(name: str) -> Target:
    """What loads a target, in plain words."""
    writer, packages = named(name), PACKAGES.get(name, ())
    versions = {package: _version(package) for package in packages}
    return Target(
        name=name,
        runtime=registry.purpose("layouts", name, "WRITES"),
        needs="; ".join(_unlinked(f"{runtime.name}: {runtime.limits}") for runtime in writer.runtimes),
        installed={package: version for package, version in versions.items() if version is not None},
    )


_LINKS = re.compile(r"(?:, \[which [^\]]*\]|\. \[[A-Z][^\]]*\])\([^)]*\)")
"""Links that say no more than where more is said."""


def _unlinked(text: str) -> str:
    """Markdown without its links and marks of code.

    >>> _unlinked("`Q4_0`, [others](docs/a.md) too. [More](docs/b.md)")
    'Q4_0, others too'
    """
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", _LINKS.sub("", text)).replace("`", "")
