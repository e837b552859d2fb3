"""Load quantcli's files with real clients, and compare what they make of them with what quantcli reports.

    python tests/peers/run.py [--fast] [--only PART] [--write] [--environments .venv-peers]

The parts are the targets of cells.py, whose weights every client decodes, and `text`, a model that generates. --write
puts their tables into RESULTS.md, when everything is as it should be. Environments that are missing are made.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import decoding
import text
from cells import CASES, CLIENTS
from environments import FOLDER, make
from models import HERE, with_words

RESULTS = HERE / "RESULTS.md"
PARTS = [*CLIENTS, "text"]


def run(parts: list[str], fast: bool, folder: Path, work: Path) -> tuple[list[str], int]:
    """The tables of some parts, and how many of their cells are not as they should be."""
    clients = [c for part in parts for c in CLIENTS.get(part, []) if c.fast or not fast]
    needed = {c.environment for c in clients} | ({"current", "llamacpp"} if "text" in parts else set())
    pythons = {name: make(name, folder) for name in sorted(needed)}
    model = with_words(work / "tiny-llama")
    lines, failed = decoding.run([c for c in CASES if c.target in parts], fast, pythons, model, work)
    if "text" in parts:
        found, wrong = text.run(pythons, model, work / "text")
        lines, failed = [*lines, "", *found], failed + wrong
    return lines, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=FOLDER)
    parser.add_argument("--fast", action="store_true", help="only clients that start in no time")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; may be given again")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    asked = parser.parse_args()
    if asked.write and (asked.fast or asked.only):
        parser.error("--write needs all parts")
    parts = asked.only or [p for p in PARTS if not asked.fast or any(c.fast for c in CLIENTS.get(p, []))]
    with tempfile.TemporaryDirectory() as place:
        lines, failed = run(parts, asked.fast, asked.environments, Path(place))
    found = "\n".join(lines).strip() + "\n"
    print(found)
    if asked.write and not failed:
        RESULTS.write_text(found)
    print(f"{failed} cells are not as they should be" if failed else "all cells are as they should be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
