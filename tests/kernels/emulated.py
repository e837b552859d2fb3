"""The kernels on an ARM processor (aarch64, NEON) that qemu emulates: the recorded outputs, which were made on another
processor, and the tests beside this file, native against numpy.

    sudo apt-get install g++-aarch64-linux-gnu qemu-user cmake
    python tests/kernels/emulated.py [FOLDER] [ARGUMENTS OF PYTEST]

It shows the bytes, and nothing of speed. In FOLDER (.aarch64) it puts a Python of Debian's for ARM, wheels, and the
kernels built by the cross compiler with the flags that CMakeLists.txt has for them; all of it is used again. On Debian,
whose packages apt-get downloads; about half an hour on one core.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
PACKAGES = """
    python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 libstdc++6 libgomp1 libexpat1 zlib1g
    libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libncursesw6 libtinfo6 libreadline8 libcrypt1
"""
"""Debian's Python, and the libraries that it and the wheels load."""

WHEELS = "numpy safetensors xxhash pyyaml click rich pytest pytest-xdist hypothesis ml_dtypes"


def run(words: Sequence[object], folder: Path, env: Mapping[str, str] | None = None) -> None:
    """Run a command in a folder; what it says is shown, and where it fails all ends."""
    subprocess.run([str(word) for word in words], cwd=folder, env={**os.environ, **(env or {})}, check=True)


def put_python(home: Path) -> None:
    """Put Debian's Python for ARM, and the wheels that the tests need, into a folder."""
    for part in ("lists/partial", "cache/archives/partial", "packages", "root"):
        (home / part).mkdir(parents=True, exist_ok=True)
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "Dir::State::Lists": home / "lists",
        "Dir::Cache": home / "cache",
    }
    apt = ["apt-get", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]
    run([*apt, "update", "-qq"], home)
    run([*apt, "download", "-qq", *PACKAGES.split()], home / "packages")
    for package in sorted((home / "packages").glob("*.deb")):
        run(["dpkg", "-x", package, home / "root"], home)
    platforms = [word for glibc in (28, 27, 17) for word in ("--platform", f"manylinux_2_{glibc}_aarch64")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", home / "site", *platforms]
    run([*pip, "--python-version", "3.11", "--implementation", "cp", "--only-binary=:all:", *WHEELS.split()], home)


def put_kernels(home: Path) -> None:
    """Put this package, its tests and its kernels for ARM into a folder."""
    tree, built = home / "tree", home / "built"
    shutil.rmtree(tree, ignore_errors=True)
    compiled = shutil.ignore_patterns("__pycache__", "_kernels.*")
    for part in ("quantcli", "tests"):
        shutil.copytree(ROOT / part, tree / part, ignore=compiled)
    shutil.copy(ROOT / "pyproject.toml", tree)
    (tree / "sample_models").symlink_to(ROOT / "sample_models")
    cross = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": COMPILER,
        "CMAKE_BUILD_TYPE": "Release",
    }
    options = [f"-D{key}={value}" for key, value in cross.items()]
    run(["cmake", "-S", ROOT / "quantcli/kernels", "-B", built, *options], home)
    run(["cmake", "--build", built], home)
    shutil.copy(built / "_kernels.so", tree / "quantcli/kernels")


def main(folder: str = ".aarch64", *arguments: str) -> None:
    missing = [name for name in (COMPILER, EMULATOR, "cmake", "apt-get") if shutil.which(name) is None]
    if missing:
        sys.exit(f"not found: {', '.join(missing)}; on Debian: apt-get install g++-aarch64-linux-gnu qemu-user cmake")
    home = Path(folder).resolve()
    if not (home / "site").exists():
        put_python(home)
    put_kernels(home)
    tree, usr = home / "tree", home / "root" / "usr"
    env = {"PYTHONPATH": f"{tree}:{home / 'site'}", "PYTHONHOME": str(usr), "PYTHONDONTWRITEBYTECODE": "1"}
    python = [EMULATOR, "-L", home / "root", usr / "bin" / "python3.11"]
    run([*python, "-m", "quantcli", "--version"], tree, env)
    processes = "tests/test_outputs.py::test_outputs_with_numpy_kernels_and_one_thread"  # which qemu does not start
    tests = ["tests/test_outputs.py", "tests/kernels", "--deselect", processes]
    run([*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, *arguments], tree, env)


if __name__ == "__main__":
    main(*sys.argv[1:])
