"""Names of outputs: an extension that belongs to another format than the one that is written is refused, and what is
left of an output under another name is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from quantcli import registry
from quantcli.errors import UsageError

_SAFETENSORS = "safetensors"
_FORMATS = {
    *("bin", "ckpt", "ggml", "h5", "hdf5", "keras", "mlmodel", "msgpack", "nemo", "npy", "npz", "pb", "pickle", "pkl"),
    *("pt", "pth", "tflite", "7z", "gz", "tar", "xz", "zip", "zst"),
    *("csv", "htm", "html", "json", "jsonl", "log", "md", "pdf", "toml", "tsv", "txt", "xml", "yaml", "yml"),
}
"""Extensions that people expect something else behind; a name may have a dot for other reasons."""


def extension(path: str) -> str:
    """The extension of a name in lower case, without its dot; empty where there is none.

    >>> extension("out/model.GGUF"), extension("qwen2.5"), extension(".hidden")
    ('gguf', '5', '')
    """
    return os.path.splitext(os.path.basename(os.path.normpath(path)))[1][1:].lower()


def check_model(output: str | None, to: str | None, *, private: bool = False) -> None:
    """Raise UsageError for the name of a model, file or folder, that tells another format than that of the target, and
    for one that is to be private and is in no repository of the hub."""
    if private:
        from quantcli.folders.prepare import check_private

        check_private(output or "")
    if output is None or output == "-":
        return
    from quantcli.layouts.writer import named

    targets = registry.names("layouts", "WRITES")
    plain = (to or "").partition(":")[0]
    target = plain if plain in targets else None
    own = named(target).extension[1:] if target is not None else ""
    kind = own or _SAFETENSORS
    found = extension(output)
    if found in (kind, "") or (found == target and not own) or found not in {*_FORMATS, *targets, _SAFETENSORS}:
        return
    hint = f"use --to {found}" if found in targets else f"end the name in .{kind}, or without an extension"
    raise UsageError(f"the name ends in .{found}, and {kind} would be written", place=[output], hint=hint)


def check_recipe(output: str | None) -> None:
    """Raise UsageError for the name of a recipe that tells another format than YAML."""
    found = extension(output) if output is not None else ""
    if found in {*_FORMATS, *registry.names("layouts", "WRITES"), _SAFETENSORS} - {"yaml", "yml"}:
        hint = "end the name in .yaml, or without an extension"
        raise UsageError(f"the name ends in .{found}, and a recipe would be written", place=[str(output)], hint=hint)


def renderings() -> dict[str, str]:
    """The rendering of a document that each extension stands for.

    >>> renderings()["md"]
    'markdown'
    """
    known = {name: registry.get("reports.renderings", name) for name in registry.names("reports.renderings")}
    return {extension: name for name, found in known.items() for extension in found.extensions}


def document(output: str, known: Iterable[str]) -> str:
    """The extension of a document to write. Raises UsageError where it is not one of the known ones."""
    found, wanted = extension(output), sorted(known)
    if found not in wanted:
        problem = f"nothing is written as .{found}" if found else "the name has no extension"
        hint = f"end it in {', '.join(f'.{e}' for e in wanted)}"
        raise UsageError(problem, place=[output], hint=hint)
    return found


def rendering(output: str, kind: type) -> str:
    """The rendering that the name of a file asks for, of documents of a type. Raises UsageError where none can."""
    from quantcli.reports.renderings import able

    known, able_to = renderings(), able(kind)
    return known[document(output, [end for end, name in known.items() if name in able_to])]


def tell_remains(path: str, inform: Callable[[str], object], *, part: bool = False) -> None:
    """Say where the rest of a folder is that was replaced and could not be removed, and where the parts are that a run
    with --part left and nobody needs now. path: the real one; part: whether this run makes a part itself."""
    from quantcli.stores import destinations, places
    from quantcli.stores.workspace import parts_of

    if left := destinations.remains(path):
        inform(f"the folder that was replaced could not be removed: the rest of it is in {left}; remove it")
    hidden = parts_of(path)
    if not part and not places.is_url(path) and os.path.isdir(hidden):
        inform(f"parts that a run with --part left are not in this output; remove {hidden}")
