"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer: the tests beside this file, for every variant that
this processor runs, three times each, with arrays directly behind and directly before a page that cannot be
touched, and with all arrays at the worst addresses that they may have (guards.py).

    make sanitize, or python tests/kernels/sanitized.py [FOLDER] [ARGUMENTS OF PYTEST]

FOLDER (.sanitized) gets the library of such kernels. GCC and cmake are needed. What a sanitizer finds ends the run, and
is shown.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(words: Sequence[object], env: Mapping[str, str]) -> str:
    """What a command prints, which is shown too; where it fails all ends."""
    done = subprocess.run(
        [str(w) for w in words], env={**os.environ, **env}, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(f"failed with {done.returncode}: {' '.join(map(str, words))}")
    return done.stdout


def main(folder: str = ".sanitized", *arguments: str) -> None:
    missing = [name for name in ("g++", "cmake") if shutil.which(name) is None]
    if missing:
        sys.exit(f"not found: {', '.join(missing)}")
    home = Path(folder).resolve()
    flags = "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
    options = ["-DCMAKE_BUILD_TYPE=Debug", f"-DCMAKE_CXX_FLAGS_DEBUG={flags}", "-DCMAKE_CXX_COMPILER=g++"]
    run(["cmake", "-S", ROOT / "quantcli/kernels", "-B", home, *options], {})
    run(["cmake", "--build", home, "--parallel", os.cpu_count() or 1], {})
    preloaded = [run(["g++", f"-print-file-name=lib{name}.so"], {}).strip() for name in ("asan", "ubsan")]
    env = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")])),
        "QUANTCLI_LIBRARY": str(home / "_kernels.so"),
        "LD_PRELOAD": " ".join(preloaded),  # before Python, which was built without them
        "PYTHONMALLOC": "malloc",
        # Python keeps to its end what it needs.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    listing = (
        "import kernels.guards; kernels.guards.pytest_configure(); "
        "from quantcli import library; print(*library.runnable(library.opened()))"
    )
    checked = "tests/kernels/test_kernels.py::test_a_library_of_another_version_is_refused"  # guards.py opens without
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--capture=sys",  # what a sanitizer says on standard error is not held back with what a test prints
        "-p",
        "kernels.guards",
        "--deselect",
        checked,
        *(arguments or ["tests/kernels"]),
    ]
    for variant in run([sys.executable, "-c", listing], env).split():
        for place in ("behind", "before", "odd"):
            print(f"{variant}: {place}", flush=True)
            run(pytest, {**env, "QUANTCLI_KERNELS": variant, "QUANTCLI_GUARDS": place})


if __name__ == "__main__":
    main(*sys.argv[1:])
