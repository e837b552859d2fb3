"""Speed and memory of models in a bucket, beside the same run on a disk, against a server of S3 on loopback.

    python tests/bench/urls.py [--gb 1] [--runs 3] [--folder /dev/shm] [--running]

Four runs in turn: file to file, bucket to file, file to bucket and bucket to bucket; of one file, and of a folder of
eight shards. Medians of wall and processor seconds of quantcli alone (the server is another process), and the largest
memory. --running: the server that AWS_ENDPOINT_URL names, whose bucket `models` has the models already.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from disk_s3 import disk_server
from timing import alternately, write_folder, write_model

SHAPE = 2048, 4096
MODELS = {"file": ".safetensors", "folder": ""}


def make(folder: Path, gb: float) -> None:
    """One file and one folder of eight shards, of so many gigabytes each."""
    count = max(8, round(gb * 1e9 / (SHAPE[0] * SHAPE[1] * 2)))
    folder.mkdir(parents=True)
    write_model(folder / "file.safetensors", "BF16", count, SHAPE)
    write_folder(folder / "folder", "BF16", count, -(-count // 8), SHAPE)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--running", action="store_true")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(dir=given.folder))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        make(folder / "models", given.gb)
        shutil.copytree(folder / "models", folder / "s3" / "models", copy_function=os.link)
        named = os.environ if given.running else stack.enter_context(disk_server(folder / "s3"))
        print("| model | from | to | wall s | CPU s | ratio of CPU | peak MiB |\n|" + " --- |" * 7)
        for model, extension in MODELS.items():
            ways = [(source, target) for source in ("disk", "S3") for target in ("disk", "S3")]
            places = {"disk": str(folder / "models"), "S3": "s3://models"}
            commands = [
                [sys.executable, "-m", "quantcli", "quantize", f"{places[source]}/{model}{extension}", "--bits", "4"]
                + (["-o", f"OUT{extension}"] if target == "disk" else ["--force", "-o", f"s3://models/out{extension}"])
                + ["-q"]
                for source, target in ways
            ]
            found = alternately(commands, folder, given.runs, named)
            for (source, target), one in zip(ways, found):
                ratio = one.cpu / found[0].cpu
                print(
                    f"| {model} | {source} | {target} | {one.seconds:.2f} | {one.cpu:.2f} | {ratio:.2f} |"
                    f" {one.peak:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
