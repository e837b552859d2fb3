"""The number that stands for the interface of the kernels: a library of other sources is refused, it crashes no one."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import quantcli
from quantcli import library

SOURCES = Path(quantcli.__file__).parent / "kernels"

STRUCTURES = ["Limits", "Tile", "Grid", "Small", "Codebook", "Params", "Rule", "BlockType", "BlockField", "Feedback"]
"""What Python passes by address (records.py, library.py)."""


def interface() -> int:
    """31 bits of the SHA-256 of the exported functions and these structures, without comments and blanks."""
    text = {
        p.name: re.sub(r"//.*", "", p.read_text()) for p in sorted(SOURCES.glob("*.*")) if p.suffix in (".h", ".cpp")
    }
    functions = [
        f for name, t in text.items() if name != "shared.h" for f in re.findall(r"QK_EXPORT ([^{;]*\))\s*\{", t)
    ]
    structures = [re.search(rf"^struct {s} \{{.*?^\}};", "\n".join(text.values()), re.S | re.M) for s in STRUCTURES]
    assert len(functions) > 20 and all(structures)
    parts = sorted(functions) + [s[0] for s in structures if s is not None]
    whole = re.sub(r"\s+", " ", "\n".join(parts))
    return int.from_bytes(hashlib.sha256(whole.encode()).digest()[:4], "big") & 0x7FFFFFFF


def test_the_interface_has_its_number_in_cpp_and_python() -> None:
    """Put this number into common.h and library.py when a function or structure changes, and build again."""
    found = re.search(r"INTERFACE = (0x[0-9a-f]+);", (SOURCES / "common.h").read_text())
    assert found is not None
    assert (f"0x{interface():x}", hex(library.INTERFACE)) == (found[1], f"0x{interface():x}")
