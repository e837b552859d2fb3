"""Load our files with other projects' readers and compare what they decode with what we report.

    python tests/peers/run.py --environment .venv-peers

`make peers` makes the environment (torch, compressed-tensors, transformers: several minutes). Prints a line per
scheme and exits with 1 when a reader fails or sees another SQNR than the report.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent.parent / "sample_models" / "tiny-llama"
BFLOAT16 = 53.0
"""dB: what rounding to bfloat16 alone costs at the most. The converter multiplies in the scale's dtype, so with
bfloat16 scales its values are rounded once more."""

SCHEMES = [
    ["--bits", "2", "--group-size", "32", "--calibration", "signed-extreme"],
    ["--bits", "3", "--group-size", "64"],
    ["--bits", "4", "--group-size", "64"],
    ["--bits", "4", "--group-size", "32", "--asymmetric"],
    ["--bits", "5", "--group-size", "64"],
    ["--bits", "6", "--group-size", "-1", "--asymmetric"],
    ["--bits", "7", "--group-size", "-1"],
    ["--bits", "8", "--group-size", "-1", "--scale-dtype", "float32"],
    ["--bits", "8", "--group-size", "0", "--scale-dtype", "float32"],
]


def tolerance(sqnr: float, flags: list[str]) -> float:
    """How far apart the SQNR of reader and report may be, in dB."""
    return 0.01 if "float32" in flags else 0.01 + 10 * math.log10(1 + 10 ** ((sqnr - BFLOAT16) / 10))


def compare(python: Path, flags: list[str], folder: Path) -> tuple[bool, float, float]:
    """Whether reader and report agree, the largest difference of a tensor in dB, and the model's SQNR."""
    out = folder / "-".join(flags).replace("--", "")
    command = [sys.executable, "-m", "quantcli", "quantize", str(MODEL), *flags, "-o", str(out), "--json"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    reader = [str(python), str(HERE / "read_compressed_tensors.py"), str(out), str(MODEL)]
    lines = subprocess.run(reader, capture_output=True, text=True, check=True).stdout.splitlines()
    seen = json.loads(lines[-1])
    ours = {t["name"]: t["sqnr_db"] for t in report["tensors"] if t["disposition"] == "quantized"}
    assert ours and all(seen[t["name"]] is None for t in report["tensors"] if t["disposition"] == "kept")
    apart = {name: abs(seen[name] - value) for name, value in ours.items()}
    agree = all(gap <= tolerance(ours[name], flags) for name, gap in apart.items())
    return agree, max(apart.values()), report["summary"]["sqnr_db"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, default=Path(".venv-peers"))
    python = parser.parse_args().environment / "bin" / "python"
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for flags in SCHEMES:
            agree, apart, sqnr = compare(python, flags, Path(folder))
            failed += not agree
            verdict = "ok" if agree else "FAILED"
            print(f"{verdict:6s} compressed-tensors, {' '.join(flags)}: {sqnr:.2f} dB, apart {apart:.4f} dB")
    print(f"{len(SCHEMES) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
