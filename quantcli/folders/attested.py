"""Whether a model is the one that a statement is about, and whether it can be made again from its source."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from quantcli import __version__
from quantcli.errors import DataError, QuantcliError, printable
from quantcli.folders import attest
from quantcli.passes.findings import Finding, Verified
from quantcli.passes.tiles import Progress
from quantcli.stores import places
from quantcli.stores.places import read_small
from quantcli.stores.temporary import TemporaryFolder
from quantcli.strict import strict_json

MOST = 1 << 26
"""Bytes that a statement may have: half a million files."""

Remake = Callable[[str, str, str], None]
"""Makes a model again: given the paths of its source, of the model to write, and of its recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a statement says: SHA-256 of the files of a model and of those it was made from, by name; its recipe, None
    where it has none; the version of quantcli. signed: whether it was in an envelope with signatures."""

    files: Mapping[str, str]
    source: Mapping[str, str]
    recipe: str | None
    version: str
    signed: bool


def load(path: str) -> Statement:
    """A statement from a file: itself, in a DSSE envelope, or in a bundle of Sigstore. Signatures are not checked.

    Raises DataError for what is none of these, or a statement of another kind.
    """
    value = strict_json(read_small(path, MOST), path)
    envelope = value.get("dsseEnvelope", value) if isinstance(value, dict) else None
    signed = isinstance(envelope, dict) and isinstance(envelope.get("payload"), str)
    if signed:
        assert isinstance(envelope, dict)
        try:
            value = strict_json(base64.b64decode(envelope["payload"], validate=True), path)
        except ValueError:
            raise DataError("the payload of its envelope is not valid base64", place=[path]) from None
    try:
        build = value["predicate"]["buildDefinition"]
        kinds = (value["_type"], value["predicateType"], build["buildType"])
        recipe = build["externalParameters"].get("recipe")
        found = Statement(
            files=_digests(value["subject"]),
            source=_digests(d for d in build["resolvedDependencies"] if "sha256" in d.get("digest", {})),
            recipe=recipe,
            version=value["predicate"]["runDetails"]["builder"]["version"]["quantcli"],
            signed=signed,
        )
    except (KeyError, TypeError, AttributeError):
        found = None
    if found is None or kinds != (attest.STATEMENT, attest.PROVENANCE, attest.BUILD):
        raise DataError("it is not a statement of quantcli attest", place=[path])
    if not isinstance(found.recipe, str | None) or not isinstance(found.version, str):
        raise DataError("its recipe or version is not a text", place=[path])
    return found


def _digests(resources: Any) -> dict[str, str]:
    """SHA-256 by name. Raises TypeError or KeyError for what is no list of such."""
    found = {}
    for one in resources:
        name, digest = one["name"], one["digest"]["sha256"]
        if not isinstance(name, str) or not isinstance(digest, str) or name in found:
            raise TypeError
        found[name] = digest
    return found


def check(
    path: str,
    known: Statement,
    source: str | None,
    remake: Remake,
    *,
    place: str,
    threads: int,
    progress: Progress | None = None,
) -> Verified:
    """What is wrong with a model beside a statement: files that are missing, not in it or changed. source: what it was
    made from, whose files are compared too, and from which the model is made again and compared byte by byte. place:
    of the statement.

    Raises QuantcliError for what cannot be read, DataError where the statement says nothing of a source or a recipe.
    """
    sums = partial(attest.digests, threads=threads, progress=progress)
    here = sums(attest.files_of(path, [place]))
    findings = _differences(known.files, here, "statement")
    unchecked = ["signatures: a tool that knows the keys checks them"] if known.signed else []
    made_again = False
    if source is not None:
        if not known.source:
            raise DataError("the statement says nothing of a source", place=[place], hint="leave out --source")
        if known.recipe is None:
            hint = "leave out --source, or attest again with --recipe"
            raise DataError("the statement has no recipe to make the model again with", place=[place], hint=hint)
        findings += _differences(known.source, sums(attest.files_of(source)), "source", "of the source")
        if any(f.check == "source" for f in findings):
            unchecked.append("the model was not made again, because its source is another one")
        else:
            findings += _made_again(path, known, known.recipe, here, source, remake, sums)
            made_again = True
    return Verified(
        tensors=0,
        quantized=0,
        against=source,
        findings=tuple(findings),
        unchecked=tuple(unchecked),
        checks=("statement", *(["source"] if source is not None else []), *(["bytes"] if made_again else [])),
    )


def _differences(known: Mapping[str, str], here: Mapping[str, str], check: str, of: str = "") -> list[Finding]:
    """Files of which a statement says something else."""
    found = []
    for name in dict.fromkeys([*known, *here]):
        where = " ".join(filter(None, ("the file", of)))
        if name not in here:
            found.append(Finding(tensor=name, check=check, problem=f"{where} is missing"))
        elif name not in known:
            found.append(Finding(tensor=name, check=check, problem=f"{where} is not in the statement"))
        elif known[name] != here[name]:
            found.append(
                Finding(tensor=name, check=check, problem=f"{where} has another SHA-256 than in the statement")
            )
    return found


def _made_again(
    path: str,
    known: Statement,
    recipe: str,
    here: Mapping[str, str],
    source: str,
    remake: Remake,
    sums: Callable[[Mapping[str, str]], dict[str, str]],
) -> list[Finding]:
    """Files that come out otherwise when the model is made again."""
    with TemporaryFolder() as folder:
        place, out = (
            os.path.join(folder, "recipe.yaml"),
            os.path.join(folder, "again", os.path.basename(places.to_write(path).rstrip("/"))),
        )
        os.mkdir(os.path.dirname(out))
        with open(place, "w", encoding="utf-8") as file:
            file.write(recipe)
        try:
            remake(source, out, place)
        except QuantcliError as error:
            return [Finding(tensor="", check="bytes", problem=f"it cannot be made again: {error}")]
        again = sums(attest.files_of(out))
    other = f", with quantcli {__version__} instead of {printable(known.version, 40)}"
    why = other if known.version != __version__ else ""
    names = [name for name in dict.fromkeys([*here, *again]) if again.get(name) != here.get(name)]
    found = [(name, _otherwise(made=name in again, held=name in here)) for name in names]
    return [Finding(tensor=name, check="bytes", problem=f"{problem}{why}") for name, problem in found]


def _otherwise(*, made: bool, held: bool) -> str:
    """How a file is not as the source gives it. made: whether it is made of the source; held: whether it is there."""
    if not made:
        return "no such file is made from the source"
    return "made again from the source, it is another file" if held else "it is made from the source, and is missing"
