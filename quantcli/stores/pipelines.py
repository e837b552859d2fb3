"""Folders of several models: pipelines of diffusers, and sentence-transformers whose modules lie in subfolders.

    model_index.json   diffusers: "unet": ["diffusers", "UNet2DConditionModel"], a subfolder of that name
    modules.json       sentence-transformers: [{"path": "0_Transformer", "type": "...models.Transformer"}, ..]

A component is a subfolder with weights. Tokenizers, schedulers and the like are files beside them. Every command takes
the models that a path names one after another, be it one or several, and tells of them together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from quantcli.errors import DataError, UsageError, printable
from quantcli.stores import places
from quantcli.stores.checkpoint import elsewhere, has_variant, has_weights, variants
from quantcli.stores.places import leads_outside, read_small
from quantcli.strict import strict_json

DIFFUSERS, SENTENCES = "model_index.json", "modules.json"

_LIMIT = 1 << 24
_NAME = re.compile(r"[\w-][\w. -]*")
"""Names of components: subfolders, one step down."""

_AUTOENCODER = re.compile(r"\w*(?:Autoencoder|VAE|Vae|VQ)\w*")
_DENOISES = re.compile(r"\w*(?:UNet|Transformer|ControlNet|Prior)\w*")
_READS_TEXT = re.compile(r"\w*(?:text|language|llm)\w*")


@dataclass(frozen=True, slots=True)
class Component:
    """A model of a folder of several: the subfolder it is in, and the library and class that load it."""

    name: str
    library: str
    kind: str


@dataclass(frozen=True, slots=True)
class Member:
    """One of the models that a path names: a component of a pipeline, or under an empty name the only one. path: of the
    model itself; variant: which of its weights to take."""

    name: str
    path: str
    variant: str | None = None
    component: Component | None = None

    @property
    def why_kept(self) -> str:
        """Why it is kept whole where its pipeline is quantized; empty where it is quantized."""
        return why_kept(self.component) if self.component is not None else ""


def within(name: str, tensor: str) -> str:
    """The name that a tensor of a model has among those of all models of a path.

    >>> within("unet", "conv_in.weight"), within("", "conv_in.weight")
    ('unet/conv_in.weight', 'conv_in.weight')
    """
    return f"{name}/{tensor}" if name else tensor


def prefixed(name: str, line: str) -> str:
    """A line about one of the models of a path, which names it where there are several."""
    return f"{name}: {line}" if name else line


def prefixing(name: str, say: Callable[[str], None]) -> Callable[[str], None]:
    """A function that says lines about one of the models of a path, which then name it where there are several."""
    return lambda line: say(prefixed(name, line))


def why_kept(component: Component) -> str:
    """Why a component is kept whole; empty where it is quantized.

    Quantized is what denoises and what reads text, by the class and library that load it. The others (autoencoders,
    safety checkers, encoders of images) are small and their errors show.

    >>> why_kept(Component("unet", "diffusers", "UNet2DConditionModel"))
    ''
    >>> why_kept(Component("vae", "diffusers", "AutoencoderKL"))
    'an autoencoder: small, and its errors are in every image'
    """
    if component.library == "sentence-transformers":
        is_model = component.kind in ("Transformer", "MLMTransformer", "StaticEmbedding", "SparseStaticEmbedding")
        return "" if is_model else f"sentence-transformers loads {component.kind} in floating point"
    if _AUTOENCODER.fullmatch(component.kind):
        return "an autoencoder: small, and its errors are in every image"
    if component.library == "transformers":
        return "" if _READS_TEXT.fullmatch(component.name) else f"{component.kind}: no text encoder"
    if component.library == "diffusers" and _DENOISES.fullmatch(component.kind):
        return ""
    return f"{printable(component.kind, 80)}: neither denoises nor reads text"


def members(path: str, variant: str | None = None) -> list[Member]:
    """The models that a path names. variant: the weights to take, of each component of a pipeline that has it. Raises
    UsageError where no component does, DataError as `components` does."""
    folder = folder_of(path)
    if not folder:
        return [Member("", path, variant)]
    found = {os.path.join(folder, c.name): c for c in components(folder)}
    if variant is not None and not any(has_variant(place, variant) for place in found):
        there = ", ".join(sorted({v for place in found for v in variants(place)}))
        hint = f"there is {there}" if there else "leave it out: there are no variants"
        raise UsageError("no component has this variant", place=[folder, f"--variant {printable(variant)}"], hint=hint)
    return [
        Member(c.name, place, variant if variant is not None and has_variant(place, variant) else None, c)
        for place, c in found.items()
    ]


def folder_of(path: str) -> str:
    """The folder of a pipeline that a path names; empty where it names none."""
    folder = os.path.dirname(path) or "." if os.path.basename(path) == DIFFUSERS else path
    places.look_up(folder)
    if places.is_file(os.path.join(folder, DIFFUSERS)):
        return folder
    is_one = places.is_file(os.path.join(folder, SENTENCES)) and not has_weights(folder)
    return folder if is_one and any(_sentences(folder)) else ""


def components(folder: str) -> list[Component]:
    """The components of a pipeline that have weights. Raises DataError where there are none, or one is a link that
    leads out of the folder."""
    source = _diffusers if places.is_file(os.path.join(folder, DIFFUSERS)) else _sentences
    found = []
    for component in source(folder):
        place = os.path.join(folder, component.name)
        if not places.is_folder(place) or not has_weights(place):
            continue
        if places.is_link(place) or leads_outside(folder, component.name):
            raise DataError("a component that is a link to a folder", place=[place], hint="put the folder there")
        found.append(component)
    if not found:
        listed = os.path.basename(DIFFUSERS if source is _diffusers else SENTENCES)
        raise DataError(f"{listed} names no folder with weights", place=[folder], hint=elsewhere(folder))
    return found


def others(path: str) -> list[str]:
    """The lines about modules of sentence-transformers with weights of their own beside a model, which are not part of
    it."""
    if not places.is_folder(path) or folder_of(path):
        return []
    return [
        f"{os.path.join(path, place)} is not looked at: sentence-transformers loads {printable(kind, 60)} in floating "
        "point; name its folder"
        for place, kind in modules(path)
        if os.path.normpath(place) != "." and places.is_folder(os.path.join(path, place))
        if not leads_outside(path, place) and has_weights(os.path.join(path, place))
    ]


def lacking(folder: str) -> list[str]:
    """What a pipeline of diffusers does not have though its list of components names it: folders, and the weights of
    models."""
    if not places.is_file(os.path.join(folder, DIFFUSERS)):
        return []
    found = []
    for component in _diffusers(folder):
        place = os.path.join(folder, component.name)
        if not places.is_folder(place):
            found.append(f"{DIFFUSERS} names {component.name}, and there is no such folder")
        elif places.is_file(os.path.join(place, "config.json")) and not has_weights(place):
            found.append(f"{component.name}: it has a config.json, and no weights")
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
    if not places.is_file(path):
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
