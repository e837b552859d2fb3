"""Speed and memory of models in a bucket, beside the same run on a disk, against a server of S3 on loopback.

    python tests/bench/urls.py [--gb 1] [--runs 3] [--folder /dev/shm] [--running] [--link-gb 1,4]

Four runs in turn: file to file, bucket to file, file to bucket and bucket to bucket; of one file, and of a folder of
eight shards. Medians of wall and processor seconds of quantcli alone (the server is another process), and the largest
memory. --running: the server that AWS_ENDPOINT_URL names, whose bucket `models` has the models already.

Before them the same from a bucket behind a link of 100 MB/s and 50 ms (see link.py), of models of each size of
--link-gb: the share of the link that the whole process used, from its start to its end, beside that of a client that
does nothing but read; and how long `inspect` of 300 shards takes there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from disk_s3 import disk_server
from link import link
from timing import Command, alternately, make_model, write_folder, write_model

RATE, LATENCY = 100.0, 50.0
"""Megabytes a second, and milliseconds of a round trip."""
PLAIN = """
import http.client, sys, threading
from urllib.parse import urlsplit
server, path, count, piece = sys.argv[1:3] + [int(word) for word in sys.argv[3:]]
def asked(connection, method, first=0):
    last = first + piece - 1
    connection.request(method, path, headers={"Range": f"bytes={first}-{last}"} if method == "GET" else {})
    return connection.getresponse()
size = int(asked(http.client.HTTPConnection(urlsplit(server).netloc), "HEAD").headers["Content-Length"])
starts, lock = iter(range(0, size, piece)), threading.Lock()
def work():
    connection, buffer = http.client.HTTPConnection(urlsplit(server).netloc), memoryview(bytearray(piece))
    while True:
        with lock:
            first = next(starts, None)
        if first is None:
            return
        answer = asked(connection, "GET", first)
        while answer.readinto(buffer):
            pass
crew = [threading.Thread(target=work) for _ in range(count)]
[t.start() for t in crew], [t.join() for t in crew]
"""
"""Reads a file over so many connections, in pieces of so many bytes, and does nothing with it."""

SHAPE = 2048, 4096
MODELS = {"file": ".safetensors", "folder": ""}


def make(folder: Path, gb: float) -> None:
    """One file and one folder of eight shards, of so many gigabytes each."""
    count = max(8, round(gb * 1e9 / (SHAPE[0] * SHAPE[1] * 2)))
    folder.mkdir(parents=True)
    write_model(folder / "file.safetensors", "BF16", count, SHAPE)
    write_folder(folder / "folder", "BF16", count, -(-count // 8), SHAPE)


def make_shards(folder: Path) -> None:
    """A folder of 300 shards, whose weights are holes."""
    folder.mkdir()
    home = {}
    for shard in range(300):
        name, first = f"model-{shard + 1:05d}-of-00300.safetensors", shard * 8
        make_model(str(folder / name), "BF16", 8, (256, 256), sparse=True, first=first)
        home |= {f"layers.{first + i}.weight": name for i in range(8)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": home}))


def quantized(source: str, target: str) -> Command:
    """The command that quantizes a model into a bucket, or to a disk: OUT."""
    return [sys.executable, "-m", "quantcli", "quantize", source, "--bits", "4", "--force", "-q", "-o", target]


def measure_link(folder: Path, gb: float, runs: int) -> None:
    """Measure models of one size over a link, and print a table."""
    room = folder / "link"
    make(room / "models", gb)
    make_shards(room / "models" / "shards")
    sizes = {
        name: sum(path.stat().st_size for path in (room / "models").rglob(pattern))
        for name, pattern in (("file", "file.safetensors"), ("folder", "folder/*.safetensors"))
    }
    with disk_server(room) as named, link(named["AWS_ENDPOINT_URL"], rate=RATE, latency=LATENCY) as address:
        env = {**named, "AWS_ENDPOINT_URL": address}
        plain = [sys.executable, "-c", PLAIN, address, "/models/file.safetensors", "8", str(4 << 20)]
        rows: dict[str, tuple[Command, int]] = {"a client that only reads, 8 connections": (plain, sizes["file"])}
        for name, extension in MODELS.items():
            source, size = f"s3://models/{name}{extension}", sizes[name]
            rows[f"{name}, S3 to disk"] = quantized(source, f"OUT{extension}"), size
            rows[f"{name}, S3 to S3"] = quantized(source, f"s3://models/out{extension}"), size
        rows["inspect of 300 shards"] = [sys.executable, "-m", "quantcli", "inspect", "s3://models/shards"], 0
        found = alternately([command for command, _ in rows.values()], folder, runs, env, warm=False)
    titles = f"{RATE:g} MB/s, {LATENCY:g} ms, {gb:g} GB | wall s | share of the link | CPU s | peak MiB"
    print(f"| {titles} |\n|" + " --- |" * 5)
    for (title, (_, size)), one in zip(rows.items(), found):
        share = f"{size / 1e4 / RATE / one.seconds:.0f} %" if size else ""
        print(f"| {title} | {one.seconds:.2f} | {share} | {one.cpu:.2f} | {one.peak:.0f} |", flush=True)
    shutil.rmtree(room)


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--running", action="store_true")
    parser.add_argument("--link-gb", default="1", help="sizes, with commas between them; empty: none")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(dir=given.folder))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for gb in map(float, filter(None, given.link_gb.split(","))):
            measure_link(folder, gb, given.runs)
        if not given.gb:
            return
        make(folder / "models", given.gb)
        shutil.copytree(folder / "models", folder / "s3" / "models", copy_function=os.link)
        named = os.environ if given.running else stack.enter_context(disk_server(folder / "s3"))
        print("| model | from | to | wall s | CPU s | ratio of CPU | peak MiB |\n|" + " --- |" * 7)
        for model, extension in MODELS.items():
            ways = [(source, target) for source in ("disk", "S3") for target in ("disk", "S3")]
            places = {"disk": str(folder / "models"), "S3": "s3://models"}
            commands = [
                quantized(
                    f"{places[source]}/{model}{extension}",
                    f"OUT{extension}" if target == "disk" else f"s3://models/out{extension}",
                )
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
