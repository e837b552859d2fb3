"""The other files of a checkpoint folder, and what happens to each in a folder made from it.

Every file is copied, converted, or left out for a reason that the report has. Tokenizers, pooling, images, licences are
copied. So are weights in subfolders that the model's loader may read, as they are: sentence-transformers lists its
modules in modules.json, others keep adapters or codecs there. Copies of the same weights for other loaders stay behind,
because they would double the folder and be loaded instead of the quantized ones. All is decided, and every file to copy
opened once, before the first weight is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quantcli.errors import DataError, QuantcliError, os_error, printable
from quantcli.layouts.evidence import CONFIGS
from quantcli.layouts.native.document import KEY
from quantcli.reports.records import FileReport
from quantcli.stores import Source, pipelines, places
from quantcli.stores.checkpoint import INDEX, TRAINING
from quantcli.stores.files import InputFile
from quantcli.stores.places import leads_outside
from quantcli.stores.safetensors import SafetensorsFile
from quantcli.terminal import size as shown_size

if TYPE_CHECKING:
    from quantcli.stores.destinations import OutputFolder

CONFIG, CARD = "config.json", "README.md"

_SHOWN = 5
"""Files that a warning names; the model card names all."""

_SAFETENSORS = re.compile(r"\.safetensors(?:\.index\.json)?$")
_PICKLED = re.compile(r"\.bin(?:\.index\.json)?$")
_OTHER_FORMATS = re.compile(
    r"\.(?:pt|pth|ckpt|gguf|ggml|h5|keras|msgpack|ot|pb|tflite|mlmodel|nemo|onnx(?:[._]data\w*)?)$", re.IGNORECASE
)
_RUNTIMES = {"onnx", "openvino", "original", "coreml", "tflite", "tf", "flax", "gguf", "ggml", "mlx", "metal"}
"""Folders in which publishers keep the same weights for other loaders."""
_CHECKPOINT = re.compile(r"checkpoint-\d+")
"""Where trainers leave what they had after so many steps."""

_FORMAT = "weights in another format"
_RUNTIME = "weights for another loader"
_TRAINED = "state of a training run"
_OUTSIDE = "links to files outside the folder"
_HIDDEN = "hidden"
_LINKED = "links to folders"
_SPECIAL = "not a regular file"
_OWN = "already quantized"
_ANOTHER = "it describes another quantization"


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFile:
    """A file beside the weights. file: open to be copied, None for one that is left out. reason: why it is left out, or
    for weights that they are copied as they are; empty for any other copy. new: its name in the output. whole: whether
    it belongs to a component that is kept whole, of which the report tells."""

    name: str
    size: int
    file: InputFile | None
    reason: str = ""
    new: str = ""
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The weight files of one or several models, as they are known before the other files are looked at, by name.

    converted: files that are quantized. written: names of files that are written anew. aside: files that are not taken,
    and why. copied: files that are taken as they are, their names in the output and why; of folders, files below them.
    """

    converted: Collection[str] = ()
    written: Collection[str] = ()
    aside: Mapping[str, str] = field(default_factory=dict)
    copied: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SideFiles:
    """All files beside the weights of a folder, in order of their names. converted: names and bytes of files that are
    quantized or written anew."""

    files: tuple[SideFile, ...] = ()
    converted: tuple[tuple[str, int], ...] = ()

    @property
    def copied(self) -> list[SideFile]:
        """Those that are copied."""
        return [f for f in self.files if f.file is not None]

    @property
    def size(self) -> int:
        """Bytes to copy."""
        return sum(f.size for f in self.copied)

    def copy_to(self, out: OutputFolder) -> None:
        """Copy what is copied into a folder."""
        for side in self.files:
            if side.file is not None:
                out.copy(side.new or side.name, side.file)

    def report(self) -> list[FileReport]:
        """What becomes of every file of the folder, in order of their names."""
        found = [FileReport(name=n, bytes=size, disposition="converted", reason="") for n, size in self.converted]
        for f in self.files:
            disposition = "copied" if f.file is not None else "left out"
            found.append(FileReport(name=f.name, bytes=f.size, disposition=disposition, reason=f.reason))
        return sorted(found, key=lambda f: f.name)

    def leaves_out(self, name: str) -> bool:
        """Whether a file is left out."""
        return any(f.name == name and f.file is None for f in self.files)

    def groups(self) -> list[tuple[str, list[SideFile]]]:
        """Files there is something to say of, by what that is; hidden ones are only in the report."""
        found: dict[str, list[SideFile]] = {}
        for file in self.files:
            if file.reason and file.reason != _HIDDEN:
                what = file.reason if file.file is not None else f"left out, {file.reason}"
                found.setdefault(what, []).append(file)
        return list(found.items())

    def warnings(self) -> list[str]:
        """A line for each reason, with files and bytes."""
        shown = ((what, [f for f in files if not f.whole]) for what, files in self.groups())
        return [_line(what, files) for what, files in shown if files]


def _line(what: str, files: Sequence[SideFile]) -> str:
    shown = ", ".join(f"{printable(f.name, 120)} ({shown_size(f.size)})" for f in files[:_SHOWN])
    rest = files[_SHOWN:]
    more = f" and {len(rest)} more ({shown_size(sum(f.size for f in rest))})" if rest else ""
    return f"{what}: {shown}{more}"


def set_aside(source: Source) -> SideFiles:
    """The weight files of a folder that are not part of the model as it was opened."""
    folder = source.folder or ""
    return SideFiles(
        tuple(
            SideFile(name=name, size=places.size(os.path.join(folder, name)), file=None, reason=reason)
            for name, reason in sorted(source.aside.items())
        )
    )


def of(source: Source, output: str, *, folder: bool) -> SideFiles:
    """What becomes of the files of a checkpoint folder where the output is a folder, or one file; beside a file nothing
    is looked for. output: its real path."""
    if source.folder is None:
        return SideFiles()
    return survey(source, source.folder, output) if folder else set_aside(source)


def survey(source: Source, folder: str, output: str) -> SideFiles:
    """The files beside the weights of a source in a folder; `output`, the real path of what is made, is not one of
    them. Written again are the index, config.json and the model card. Raises as `of_folder` does."""
    index = os.path.basename(source.index or INDEX)
    known = Weights(converted=source.shards, written={CONFIG, CARD, INDEX, index}, aside=source.aside)
    return of_folder(folder, output, known)


def of_folder(folder: str, output: str, known: Weights) -> SideFiles:
    """What becomes of all files of a folder. output: the real path of what is made, which is not one of them.

    Raises QuantcliError for a file or folder that cannot be read, and DataError for a part of the model that is a link
    out of the folder.
    """
    for name in known.written:
        if os.path.basename(name) == CONFIG and leads_outside(folder, name):
            raise DataError("this is a link to a file outside its folder", place=[os.path.join(folder, name)])
    steps = [(os.path.normpath(place), kind) for place, kind in pipelines.modules(folder)]
    modules = {place: printable(kind, 60) for place, kind in steps if place != "."}
    found, converted = list[SideFile](), list[tuple[str, int]]()
    for path, folders, names in places.walk(folder, _unreadable):
        below = places.relative(path, folder)
        folders[:] = sorted(f for f in folders if places.real(os.path.join(path, f)) != output)
        for name in folders:
            relative = os.path.normpath(os.path.join(below, name))
            linked = places.is_link(os.path.join(path, name))
            if name.startswith("."):
                found.append(SideFile(name=relative + ("" if linked else os.sep), size=0, file=None, reason=_HIDDEN))
            elif linked:
                found.append(_linked(folder, relative, modules))
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in sorted(names):
            relative = os.path.normpath(os.path.join(below, name))
            size = places.size(os.path.join(path, name))
            if relative in known.aside:
                found.append(SideFile(name=relative, size=size, file=None, reason=known.aside[relative]))
            elif relative in known.converted or (relative in known.written and not _is_foreign_card(folder, relative)):
                converted.append((relative, size))
            elif name.startswith("."):
                found.append(SideFile(name=relative, size=size, file=None, reason=_HIDDEN))
            else:
                found.append(_decided(folder, relative, names, modules, known.copied))
    return SideFiles(tuple(sorted(found, key=lambda f: f.name)), tuple(converted))


def _is_foreign_card(folder: str, relative: str) -> bool:
    return relative == CARD and leads_outside(folder, relative)


def _unreadable(error: OSError) -> None:
    raise os_error(error, str(error.filename))


def _decided(
    folder: str,
    relative: str,
    names: Sequence[str],
    modules: Mapping[str, str],
    copied: Mapping[str, tuple[str, str]],
) -> SideFile:
    """What becomes of a file; names: of all files in its folder."""
    path = os.path.join(folder, relative)
    new, why = copied.get(relative, ("", ""))
    whole = bool(why)
    reason = "" if why else _why_left(path, relative, names, modules)
    weights = why or _SAFETENSORS.search(relative) or _PICKLED.search(relative)
    if not reason and places.exists(path) and leads_outside(folder, relative):
        if weights:
            hint = "put the file itself there"
            raise DataError("part of the model, and a link to a file outside the folder", place=[path], hint=hint)
        reason = _OUTSIDE
    if not reason and not places.is_file(path):
        reason = _SPECIAL
    if reason:
        return SideFile(name=relative, size=places.size(path), file=None, reason=reason)
    file = places.opened(path, hold=False)
    if weights and not why:
        kind = modules.get(os.path.dirname(relative))
        of_kind = f", sentence-transformers loads {kind} in floating point" if kind else ""
        why = f"copied unquantized{of_kind}"
    return SideFile(name=relative, size=file.size, file=file, reason=why, new=new, whole=whole)


def _why_left(path: str, relative: str, names: Sequence[str], modules: Collection[str]) -> str:
    """Why a file is left out by what it is called; empty where it is to be copied."""
    if relative in CONFIGS:
        return _ANOTHER
    folder, name = os.path.split(relative)
    part = any(folder == m or folder.startswith(m + os.sep) for m in modules)
    safetensors, pickled = bool(_SAFETENSORS.search(name)), bool(_PICKLED.search(name))
    other = bool(_OTHER_FORMATS.search(name) or (name.endswith(".xml") and f"{name[:-4]}.bin" in names))
    if not (safetensors or pickled or other):
        return ""
    steps = folder.lower().split(os.sep)
    if TRAINING.fullmatch(name) or any(_CHECKPOINT.fullmatch(step) for step in steps):
        return _TRAINED
    if _RUNTIMES & set(steps):
        return _RUNTIME
    if other:
        return _FORMAT
    if not folder:
        return _FORMAT
    if safetensors:
        return _OWN if name.endswith(".safetensors") and not part and _is_native(path) else ""
    alone = not any(n.endswith(".safetensors") for n in names)
    return "" if alone and (part or {CONFIG, "adapter_config.json"} & set(names)) else _FORMAT


def _is_native(path: str) -> bool:
    """Whether quantcli wrote a file: an earlier output in a subfolder is not part of the model."""
    if not places.is_file(path):
        return False
    try:
        file = SafetensorsFile(places.opened(path, hold=False))
    except QuantcliError:
        return False
    return KEY in file.metadata


def _linked(folder: str, relative: str, modules: Collection[str]) -> SideFile:
    """A link to a folder, which is not followed. Raises DataError where the model needs it."""
    if any(m == relative or m.startswith(relative + os.sep) for m in modules):
        place = [os.path.join(folder, relative)]
        raise DataError("modules.json names it, and it is a link to a folder", place=place, hint="put the folder there")
    return SideFile(name=relative, size=0, file=None, reason=_LINKED)
