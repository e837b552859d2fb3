"""Statements of what a model is and what it was made from, in the form that tools for signing take.

A statement names every file of a model by its SHA-256 and says which files, recipe and version it was made from. It
holds no time and nothing of the machine, so that the same model and source give the same bytes. Signing it is left to
tools that hold keys.

References: in-toto Attestation Framework, Statement v1; SLSA, Provenance v1.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from quantcli import __version__
from quantcli.errors import DataError, UsageError, os_error, printable
from quantcli.folders import card
from quantcli.models import open_model
from quantcli.passes.tiles import Progress, begun, once, walk
from quantcli.planning import stored_recipe
from quantcli.stores import open_source, places
from quantcli.stores.places import read_small
from quantcli.strict import LIMIT, plain

STATEMENT, PROVENANCE, BUILD = (
    "https://in-toto.io/Statement/v1",
    "https://slsa.dev/provenance/v1",
    "urn:quantcli:quantize:1",
)
"""Types of the statement, of its predicate, and of how models are made: with `quantcli quantize --recipe`."""

SIGNATURES = (".sig", ".sigstore", ".sigstore.json", ".intoto.json", ".intoto.jsonl")
"""How names of signatures and statements end, which may lie beside a model and are no part of it."""

BLOCK = 1 << 22


def files_of(path: str, left_out: Sequence[str] = ()) -> dict[str, str]:
    """Paths of the files of a model by their names in it: all of a folder that are not hidden, signatures and
    statements but for those, or the file or numbered files that a path names. left_out: paths that are no part of it.

    Raises QuantcliError where it cannot be read, UsageError for a URL, DataError for a folder without files.
    """
    if path == "-":
        raise UsageError("statements are about files, not standard input", place=["-"], hint="name the file")
    if places.is_url(path):
        raise UsageError("statements are about files at hand", place=[path], hint="download it, and name the copy")
    if not os.path.isdir(path):
        source = open_source(path)
        try:
            return {os.path.basename(file.path): file.path for file in source.files()}
        finally:
            source.close()
    found, others = dict[str, str](), {os.path.realpath(p) for p in left_out}
    for folder, folders, names in os.walk(path, onerror=_stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            full = os.path.join(folder, name)
            if name.startswith(".") or name.endswith(SIGNATURES) or os.path.realpath(full) in others:
                continue
            found[os.path.relpath(full, path).replace(os.sep, "/")] = full
    if not found:
        raise DataError("the folder holds no files", place=[path])
    return dict(sorted(found.items()))


def check_place(output: str, models: Sequence[str]) -> None:
    """Raise UsageError where a statement would be one of the files of a model: in a folder that it is about, under a
    name that is not one of statements."""
    target = os.path.realpath(output)
    for path in models:
        inside = os.path.isdir(path) and target.startswith(os.path.join(os.path.realpath(path), ""))
        if inside and not target.endswith(SIGNATURES):
            hint = "write it beside the folder, or under a name that ends in .intoto.json"
            raise UsageError("it would be one of the files that the statement is about", place=[output], hint=hint)


def _stop(error: OSError) -> None:
    raise os_error(error, error.filename or "")


def digests(files: Mapping[str, str], *, threads: int, progress: Progress | None = None) -> dict[str, str]:
    """SHA-256 of every file, by name."""
    try:
        advance = begun(progress, sum(os.path.getsize(path) for path in files.values()))
    except OSError as error:
        raise os_error(error, error.filename) from None
    found = dict[str, str]()

    def digest(name: str) -> None:
        total, buffer = hashlib.sha256(), bytearray(BLOCK)
        try:
            with open(files[name], "rb", buffering=0) as file:
                while size := file.readinto(buffer):
                    total.update(memoryview(buffer)[:size])
                    advance(size)
        except OSError as error:
            raise os_error(error, files[name]) from None
        found[name] = total.hexdigest()

    walk((once([partial(digest, name)]) for name in files), threads=threads)
    return {name: found[name] for name in files}


def recipe_in(path: str, given: str | None) -> str | None:
    """The recipe that a model was made by: that of a file, or the one that its model card or its headers hold; None
    where none does. Raises UsageError for a file that is no recipe."""
    if given is not None:
        text = read_small(given, LIMIT)
        plain(text, given)
        return text.decode()
    known = os.path.join(path, "README.md") if os.path.isdir(path) else ""
    if os.path.isfile(known):
        found = card.recipe_in(read_small(known, 1 << 24).decode("utf-8", "replace"))
        if found is not None:
            return found
    with open_model(path) as model:
        return stored_recipe.text_of(model, path) if model.is_native else None


_SNAPSHOT = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})(?:/|$)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def revision_of(path: str) -> tuple[str, str]:
    """The repository and commit that a source was downloaded from, as a package URL and a digest; both empty where
    neither the folder's name in the cache of the Hugging Face hub nor what it keeps of a download in .cache tells."""
    found = _SNAPSHOT.search(os.path.abspath(path).replace(os.sep, "/"))
    if found is not None:
        return f"pkg:huggingface/{found['owner']}/{found['name']}@{found['revision']}", found["revision"]
    folder = os.path.join(path if os.path.isdir(path) else os.path.dirname(path), ".cache", "huggingface", "download")
    commits = set[str]()
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        if name.endswith(".metadata"):
            first = read_small(os.path.join(folder, name), LIMIT).partition(b"\n")[0].decode("ascii", "replace").strip()
            commits.add(first if _COMMIT.fullmatch(first) else "")
    [commit] = commits if len(commits) == 1 else [""]
    return "", commit


def statement(
    path: str,
    source: str | None,
    *,
    recipe: str | None,
    uri: str | None = None,
    revision: str | None = None,
    threads: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The statement about a model. source: what it was made from. recipe: by which, in YAML. uri, revision: where the
    source is from, in place of what it tells itself.

    Raises QuantcliError for what cannot be read, UsageError for a URI of no source.
    """
    if source is None and (uri is not None or revision is not None):
        option = "--source-uri" if uri is not None else "--revision"
        raise UsageError("the source is needed", place=[option], hint="name it with --source")
    made, known = digests(files_of(path), threads=threads, progress=progress), dict[str, str]()
    if source is not None:
        known = digests(files_of(source), threads=threads, progress=progress)
    found = revision_of(source) if source is not None else ("", "")
    where, commit = uri if uri is not None else found[0], revision if revision is not None else found[1]
    external = {"recipe": recipe, "source": where or None}
    dependencies = [_resource(name, digest) for name, digest in known.items()]
    if where or commit:
        origin = {"uri": where or None, "digest": {"gitCommit": commit} if commit else None, "name": "source"}
        dependencies = [{k: v for k, v in origin.items() if v}, *dependencies]
    return {
        "_type": STATEMENT,
        "subject": [_resource(name, digest) for name, digest in made.items()],
        "predicateType": PROVENANCE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD,
                "externalParameters": {k: v for k, v in external.items() if v is not None},
                "resolvedDependencies": dependencies,
            },
            "runDetails": {"builder": {"id": "urn:quantcli", "version": {"quantcli": __version__}}},
        },
    }


def _resource(name: str, digest: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": digest}}


def text_of(found: Mapping[str, Any]) -> str:
    """A statement as it is stored: the same text for the same statement.

    >>> text_of({"b": 1, "a": "é"})
    '{\\n  "a": "é",\\n  "b": 1\\n}\\n'
    """
    return json.dumps(found, ensure_ascii=False, indent=2, sort_keys=True) + "\n"


def summary(found: Mapping[str, Any]) -> str:
    """What a statement says, in a line."""
    build = found["predicate"]["buildDefinition"]
    files = [d for d in build["resolvedDependencies"] if "sha256" in d.get("digest", {})]
    recipe = "with its recipe" if "recipe" in build["externalParameters"] else "without a recipe"
    origin = build["externalParameters"].get("source", "")
    of = f" of {printable(origin, 200)}" if origin else ""
    return f"{_count(found['subject'])}, made from {_count(files)}{of}, {recipe}"


def _count(files: Sequence[object]) -> str:
    return "1 file" if len(files) == 1 else f"{len(files):,} files"
