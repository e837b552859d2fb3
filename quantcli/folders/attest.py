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
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from quantcli import __version__
from quantcli.errors import DataError, UsageError, os_error, printable
from quantcli.folders import card
from quantcli.folders.sidefiles import CARD
from quantcli.models import open_model
from quantcli.passes.tiles import Progress, begun, once, walk
from quantcli.planning import stored_recipe
from quantcli.stores import open_source, places
from quantcli.stores.places import read_small
from quantcli.strict import LIMIT, plain

if TYPE_CHECKING:
    from quantcli.stores.files import InputFile

STATEMENT, PROVENANCE, BUILD = (
    "https://in-toto.io/Statement/v1",
    "https://slsa.dev/provenance/v1",
    "urn:quantcli:quantize:1",
)
"""Types of the statement, of its predicate, and of how models are made: with `quantcli quantize --recipe`."""

SIGNATURES = (".sig", ".sigstore", ".sigstore.json", ".intoto.json", ".intoto.jsonl")
"""How names of signatures and statements end, which may lie beside a model and are no part of it."""

BLOCK, SMALL = 1 << 22, 1 << 20
"""Bytes of a file that are read at a time, and up to which a file behind a URL is read beside many others."""


def files_of(path: str, left_out: Sequence[str] = ()) -> dict[str, str]:
    """Paths of the files of a model by their names in it: all of a folder that are not hidden, signatures and
    statements but for those, or the file or numbered files that a path names. left_out: paths that are no part of it.

    Raises QuantcliError where it cannot be read, UsageError for a folder of a web server, which lists none, DataError
    for a folder without files.
    """
    if path == "-":
        raise UsageError("statements are about files, not standard input", place=["-"], hint="name the file")
    if not places.is_folder(path):
        source = open_source(path)
        try:
            return {places.name(file.path): file.path for file in source.files()}
        finally:
            source.close()
    if places.unlisted(path):
        problem = "a web server does not list its folders, and a statement names all files of one"
        raise UsageError(problem, place=[path], hint="name a single file, or download the folder and name the copy")
    found, others = dict[str, str](), {places.real(p) for p in left_out}
    for folder, folders, names in places.walk(path, _stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            full = os.path.join(folder, name)
            if name.startswith(".") or name.endswith(SIGNATURES) or places.real(full) in others:
                continue
            found[places.relative(full, path).replace(os.sep, "/")] = full
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
    """SHA-256 of every file, by name. Raises QuantcliError for one that cannot be read or is changed meanwhile."""
    opened = dict(zip(files, places.each(partial(places.opened, hold=False), list(files.values()))))
    advance = begun(progress, sum(file.size for file in opened.values()))
    found = dict[str, str]()

    def digest(name: str) -> None:
        total, file, at = hashlib.sha256(), opened[name], 0
        buffer = memoryview(bytearray(min(file.size, BLOCK)))
        while at < file.size:
            part = buffer[: file.size - at]
            file.read_into(at, part)
            total.update(part)
            at += len(part)
            advance(len(part))
        file.check_unchanged()
        file.close()
        found[name] = total.hexdigest()

    def stop() -> None:
        for file in opened.values():
            file.interrupt()

    for names, count in _rounds(opened, threads):
        walk((once([partial(digest, name)]) for name in names), threads=count, stopped=stop)
    return {name: found[name] for name in files}


def _rounds(opened: Mapping[str, InputFile], threads: int) -> list[tuple[list[str], int]]:
    """Which files are read side by side, and how many at a time.

    Of a network small files wait for their answers together. Large ones come one after another, for each is read ahead
    in eight requests, and on into the next: four at a time made each other drop a tenth of what was read ahead, and
    were no faster (512 MiB in 8 files at 50 ms).
    """
    if not any(places.is_url(file.path) for file in opened.values()):
        return [(list(opened), threads)]
    large = [name for name, file in opened.items() if file.size > SMALL]
    small = [name for name, file in opened.items() if file.size <= SMALL]
    for name, following in pairwise(large):
        opened[name].precedes(opened[following])
    return [(small, places.AT_ONCE), (large, 1)]


def recipe_in(path: str, given: str | None) -> str | None:
    """The recipe that a model was made by: that of a file, or the one that its model card or its headers hold; None
    where none does. Raises UsageError for a file that is no recipe."""
    if given is not None:
        text = read_small(given, LIMIT)
        plain(text, given)
        return text.decode()
    known = os.path.join(path, CARD)
    if places.is_folder(path) and places.is_file(known):
        found = card.recipe_in(read_small(known, 1 << 24).decode("utf-8", "replace"))
        if found is not None:
            return found
    with open_model(path) as model:
        return stored_recipe.text_of(model, path) if model.is_native else None


_SNAPSHOT = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})(?:/|$)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def revision_of(path: str) -> tuple[str, str]:
    """The repository of the Hugging Face hub and the commit that a source is from, as a package URL and a digest: by
    its URL, by the folder's name in the hub's cache, or by what .cache keeps of a download, which is the commit alone.
    Both are empty where none of these tells."""
    if places.is_url(path):
        return _pinned(path)
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


def _pinned(url: str) -> tuple[str, str]:
    """The same of a URL; both empty for one that is not of the hub: addresses of buckets and web servers are often
    private, and statements are published."""
    if not url.startswith("hf://"):
        return "", ""
    from quantcli.stores.remote.hub import parsed

    named = parsed(places.pinned(url))
    return f"pkg:huggingface/{named.repo}@{named.revision}", named.revision


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
