"""Folders of several models: pipelines of diffusers, and sentence-transformers whose modules lie in subfolders.

    model_index.json   diffusers: "unet": ["diffusers", "UNet2DConditionModel"], a subfolder of that name
    modules.json       sentence-transformers: [{"path": "0_Transformer", "type": "...models.Transformer"}, ..]

A component is a subfolder with weights. Tokenizers, schedulers and the like are files beside them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from quantcli.errors import DataError, printable
from quantcli.stores.checkpoint import elsewhere, has_weights
from quantcli.stores.files import leads_outside, read_small
from quantcli.strict import strict_json

DIFFUSERS, SENTENCES = "model_index.json", "modules.json"

_LIMIT = 1 << 24
_NAME = re.compile(r"[\w-][\w. -]*")
"""Names of components: subfolders, one step down."""


@dataclass(frozen=True, slots=True)
class Component:
    """A model of a folder of several: the subfolder it is in, and the library and class that load it."""

    name: str
    library: str
    kind: str


def folder_of(path: str) -> str:
    """The folder of a pipeline that a path names; empty where it names none."""
    folder = os.path.dirname(path) or "." if os.path.basename(path) == DIFFUSERS else path
    if os.path.isfile(os.path.join(folder, DIFFUSERS)):
        return folder
    is_one = os.path.isfile(os.path.join(folder, SENTENCES)) and not has_weights(folder)
    return folder if is_one and any(_sentences(folder)) else ""


def components(folder: str) -> list[Component]:
    """The components of a pipeline that have weights. Raises DataError where there are none, or one is a link that
    leads out of the folder."""
    source = _diffusers if os.path.isfile(os.path.join(folder, DIFFUSERS)) else _sentences
    found = []
    for component in source(folder):
        place = os.path.join(folder, component.name)
        if not os.path.isdir(place) or not has_weights(place):
            continue
        if os.path.islink(place) or leads_outside(folder, component.name):
            raise DataError("a component that is a link to a folder", place=[place], hint="put the folder there")
        found.append(component)
    if not found:
        listed = os.path.basename(DIFFUSERS if source is _diffusers else SENTENCES)
        raise DataError(f"{listed} names no folder with weights", place=[folder], hint=elsewhere(folder))
    return found


def _diffusers(folder: str) -> Iterator[Component]:
    path = os.path.join(folder, DIFFUSERS)
    listed = strict_json(read_small(path, _LIMIT), path)
    if not isinstance(listed, dict):
        raise DataError("it is not an object", place=[path])
    for name, value in listed.items():
        if isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value):
            yield Component(_checked(name, path), *value)


def _sentences(folder: str) -> Iterator[Component]:
    path = os.path.join(folder, SENTENCES)
    for place, kind in modules(folder):
        if kind:
            yield Component(_checked(place, path), "sentence-transformers", kind)


def modules(folder: str) -> Iterator[tuple[str, str]]:
    """The modules of sentence-transformers in a folder: path and class of each, empty where none is named. Raises
    DataError where their list is not JSON."""
    path = os.path.join(folder, SENTENCES)
    if not os.path.isfile(path):
        return
    listed = strict_json(read_small(path, _LIMIT), path)
    for module in listed if isinstance(listed, list) else []:
        place, kind = (module.get("path"), module.get("type")) if isinstance(module, dict) else (None, None)
        if isinstance(place, str) and place:
            yield place, kind.rpartition(".")[2] if isinstance(kind, str) else ""


def _checked(name: str, path: str) -> str:
    if not _NAME.fullmatch(name):
        raise DataError(f"{printable(repr(name), 120)} is not the name of a subfolder", place=[path])
    return name
