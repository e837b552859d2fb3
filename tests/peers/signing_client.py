"""Runs in a peers' environment: keys, and a statement signed and checked in a DSSE envelope by securesystemslib.

python signing_client.py keys FOLDER
python signing_client.py sign KEY STATEMENT ENVELOPE
python signing_client.py check KEY ENVELOPE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

KIND = "application/vnd.in-toto+json"


def keys(folder: Path) -> None:
    """A pair of keys, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    plain = serialization.NoEncryption()
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, form, plain))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(public)


def sign(key: Path, statement: Path, envelope: Path) -> None:
    """The statement in a signed envelope."""
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    found = Envelope(statement.read_bytes(), KIND, {})
    found.sign(CryptoSigner(private))
    envelope.write_text(json.dumps(found.to_dict()))


def check(key: Path, envelope: Path) -> None:
    """Fail unless the envelope is signed with the key."""
    public = SSlibKey.from_crypto(serialization.load_pem_public_key(key.read_bytes()))
    Envelope.from_dict(json.loads(envelope.read_text())).verify([public], 1)


if __name__ == "__main__":
    {"keys": keys, "sign": sign, "check": check}[sys.argv[1]](*map(Path, sys.argv[2:]))
