"""The other files of a checkpoint folder, and what happens to each in a folder made from it.

Tokenizers, pooling, images, licences are copied. So are weights in subfolders that the model's loader may read, as they
are: sentence-transformers lists its modules in modules.json, others keep adapters or codecs there. Copies of the same
weights for other loaders stay behind, because they would double the folder and be loaded instead of the quantized
ones. All is decided, and every file to copy opened once, before the first weight is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from quantcli.errors import DataError, QuantcliError, printable
from quantcli.layouts.evidence import CONFIGS
from quantcli.layouts.native.document import KEY
from quantcli.stores import Source
from quantcli.stores.checkpoint import INDEX, TRAINING, Checkpoint
from quantcli.stores.files import InputFile, leads_outside, read_small
from quantcli.stores.folder import OutputFolder
from quantcli.stores.safetensors import SafetensorsFile
from quantcli.strict import strict_json
from quantcli.terminal import size as shown_size

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
_LINKED = "links to folders"
_SPECIAL = "not a regular file"
_OWN = "already quantized"
_ANOTHER = "it describes another quantization"


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFile:
    """A file beside the weights. file: open to be copied, None for one that is left out. reason: why it is left out, or
    for weights that they are copied as they are; empty for any other copy."""

    name: str
    size: int
    file: InputFile | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SideFiles:
    """All files beside the weights of a folder, in order of their names."""

    files: tuple[SideFile, ...] = ()

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
                out.copy(side.name, side.file)

    def leaves_out(self, name: str) -> bool:
        """Whether a file is left out."""
        return any(f.name == name and f.file is None for f in self.files)

    def groups(self) -> list[tuple[str, list[SideFile]]]:
        """Files there is something to say of, by what that is."""
        found: dict[str, list[SideFile]] = {}
        for file in self.files:
            if file.reason:
                what = file.reason if file.file is not None else f"left out, {file.reason}"
                found.setdefault(what, []).append(file)
        return list(found.items())

    def warnings(self) -> list[str]:
        """A line for each reason, with files and bytes."""
        return [_line(what, files) for what, files in self.groups()]


def _line(what: str, files: Sequence[SideFile]) -> str:
    shown = ", ".join(f"{printable(f.name, 120)} ({shown_size(f.size)})" for f in files[:_SHOWN])
    rest = files[_SHOWN:]
    more = f" and {len(rest)} more ({shown_size(sum(f.size for f in rest))})" if rest else ""
    return f"{what}: {shown}{more}"


def set_aside(source: Checkpoint) -> SideFiles:
    """The weight files of a folder that are not part of the model as it was opened."""
    return SideFiles(
        tuple(
            SideFile(name=name, size=_size(os.path.join(source.folder, name)), file=None, reason=reason)
            for name, reason in sorted(source.aside.items())
        )
    )


def of(source: Source, output: str, *, folder: bool) -> SideFiles:
    """What becomes of the files of a checkpoint folder where the output is a folder, or one file; beside a file nothing
    is looked for. output: its real path."""
    if not isinstance(source, Checkpoint):
        return SideFiles()
    return survey(source, output) if folder else set_aside(source)


def survey(source: Checkpoint, output: str) -> SideFiles:
    """The files beside the weights of a folder; `output`, the real path of what is made, is not one of them.

    Raises QuantcliError for a file that cannot be read, and DataError for a part of the model that is a link out of the
    folder. Hidden files are not part of a model, and what is written again is not listed: the index, config.json and
    the model card.
    """
    written = {CONFIG, CARD, INDEX, os.path.basename(source.index or INDEX)}
    if os.path.lexists(os.path.join(source.folder, CONFIG)) and leads_outside(source.folder, CONFIG):
        raise DataError("this is a link to a file outside its folder", place=[os.path.join(source.folder, CONFIG)])
    modules = _modules(source.folder)
    found = list(set_aside(source).files)
    for path, folders, names in os.walk(source.folder):
        below = os.path.relpath(path, source.folder)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in folders:
            if os.path.islink(os.path.join(path, name)):
                found.append(_linked(source.folder, os.path.normpath(os.path.join(below, name)), modules))
        folders[:] = [f for f in folders if os.path.realpath(os.path.join(path, f)) != output]
        for name in sorted(n for n in names if not n.startswith(".")):
            relative = os.path.normpath(os.path.join(below, name))
            if relative in source.shards or relative in source.aside:
                continue
            if relative not in written or (relative == CARD and leads_outside(source.folder, CARD)):
                found.append(_decided(source.folder, relative, names, modules))
    return SideFiles(tuple(sorted(found, key=lambda f: f.name)))


def _decided(folder: str, relative: str, names: Sequence[str], modules: Collection[str]) -> SideFile:
    """What becomes of a file; names: of all files in its folder."""
    path = os.path.join(folder, relative)
    reason = _why_left(path, relative, names, modules)
    weights = _SAFETENSORS.search(relative) or _PICKLED.search(relative)
    if not reason and os.path.lexists(path) and leads_outside(folder, relative):
        if weights:
            hint = "put the file itself there"
            raise DataError("part of the model, and a link to a file outside the folder", place=[path], hint=hint)
        reason = _OUTSIDE
    if not reason and not os.path.isfile(path):
        reason = _SPECIAL
    if reason:
        return SideFile(name=relative, size=_size(path), file=None, reason=reason)
    file = InputFile(path, hold=False)
    return SideFile(name=relative, size=file.size, file=file, reason="copied unquantized" if weights else "")


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
    if not os.path.isfile(path):
        return False
    try:
        file = SafetensorsFile(InputFile(path, hold=False))
    except QuantcliError:
        return False
    return KEY in file.metadata


def _linked(folder: str, relative: str, modules: Collection[str]) -> SideFile:
    """A link to a folder, which is not followed. Raises DataError where the model needs it."""
    if any(m == relative or m.startswith(relative + os.sep) for m in modules):
        place = [os.path.join(folder, relative)]
        raise DataError("modules.json names it, and it is a link to a folder", place=place, hint="put the folder there")
    return SideFile(name=relative, size=0, file=None, reason=_LINKED)


def _modules(folder: str) -> list[str]:
    """The subfolders of sentence-transformers' modules, in which parts of the model lie."""
    path = os.path.join(folder, "modules.json")
    if not os.path.isfile(path):
        return []
    found = strict_json(read_small(path, 1 << 24), path)
    paths = [m.get("path") for m in found if isinstance(m, dict)] if isinstance(found, list) else []
    return [os.path.normpath(p) for p in paths if isinstance(p, str) and p and os.path.normpath(p) != "."]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
