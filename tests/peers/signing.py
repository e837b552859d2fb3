"""Folders and statements of quantcli, signed and checked by the tools that do that, without a network."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from models import answered, command, quantcli, script
from words import MODEL


def run(pythons: dict[str, Any], work: Path) -> tuple[list[str], int]:
    """The table, and how many of its rows are not as they should be."""
    python = pythons["signing"]
    work.mkdir(parents=True)
    answered(script(python, "signing_client.py", "keys", work))
    key, public, folder = work / "key.pem", work / "public.pem", work / "w4"
    statement, envelope, signature = work / "w4.intoto.json", work / "w4.sigstore.json", work / "w4.sig"
    quantcli("quantize", MODEL, "--bits", "4", "--group-size", "64", "-o", folder, "-q")
    quantcli("attest", folder, "--source", MODEL, "-o", statement, "-q")
    shutil.copy(statement, folder / "model.intoto.json")
    tool = python.parent / "model_signing"
    signing = [tool, "sign", "key", folder, "--private_key", key, "--signature", signature]
    checking = [tool, "verify", "key", folder, "--public_key", public, "--signature", signature]
    answered(subprocess.run(signing, capture_output=True, text=True, check=False))
    answered(script(python, "signing_client.py", "sign", key, statement, envelope))

    def outcomes() -> list[int]:
        """Whether each check finds a fault: model-signing, securesystemslib, and quantcli with both statements."""
        own = [["--statement", envelope, "--source", MODEL], ["--statement", folder / "model.intoto.json"]]
        return [
            subprocess.run(checking, capture_output=True, check=False).returncode,
            script(python, "signing_client.py", "check", public, envelope).returncode,
            *(command("verify", folder, *words, "-q").returncode for words in own),
        ]

    rows = {"as signed": (outcomes(), [0, 0, 0, 0])}
    weights = next(iter(sorted(folder.glob("*.safetensors"))))
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    rows["a bit of a weight changed"] = (outcomes(), [1, 0, 1, 1])
    raw[-1] ^= 1
    weights.write_bytes(raw)
    text = envelope.read_text()
    at = text.index('"payload"') + 40
    envelope.write_text(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :])
    rows["the envelope changed"] = (outcomes()[:2], [0, 1])
    lines = ["| | model-signing | securesystemslib | quantcli |", "| --- | --- | --- | --- |"]
    for what, (found, _) in rows.items():
        said = ["no" if code else "yes" for code in found]
        lines.append(f"| {what} | {said[0]} | {said[1]} | {said[2] if len(set(said[2:])) == 1 else '-'} |")
    return lines, sum([bool(code) for code in found] != [bool(c) for c in wanted] for found, wanted in rows.values())
