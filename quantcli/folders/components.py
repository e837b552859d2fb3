"""The components of a pipeline: which are quantized and which are kept whole, each opened and planned by itself.

Quantized is what denoises and what reads text, by the class and library that load it. The others (autoencoders, safety
checkers, encoders of images) are small and their errors show, so they are kept whole unless a pattern names them, as in
`--include 'vae/*'`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from quantcli.errors import DataError, QuantcliError, UsageError, printable
from quantcli.floats import Reading, float_source
from quantcli.folders import job
from quantcli.folders.job import Say
from quantcli.folders.sidefiles import CARD, CONFIG, Weights
from quantcli.folders.write import Planned
from quantcli.layouts.compressed_tensors.write import SENTENCES
from quantcli.planning.order import USUAL, Order, aimed
from quantcli.planning.plan import NothingToQuantizeError
from quantcli.planning.scopes import names_one, of_components
from quantcli.stores import Source, open_source, pipelines
from quantcli.stores.checkpoint import INDEX, variants, without_variant
from quantcli.stores.pipelines import Component

_AUTOENCODER = re.compile(r"\w*(?:Autoencoder|VAE|Vae|VQ)\w*")
_DENOISES = re.compile(r"\w*(?:UNet|Transformer|ControlNet|Prior)\w*")
_READS_TEXT = re.compile(r"\w*(?:text|language|llm)\w*")

LOADERS: Mapping[str, tuple[str, ...]] = {"diffusers": ("bnb-nf4",), "transformers": ("bnb-nf4", "compressed-tensors")}
"""Targets that a library loads as a component of a pipeline."""


def why_kept(component: Component) -> str:
    """Why a component is kept whole; empty where it is quantized.

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


@dataclass(frozen=True, slots=True)
class Chosen:
    """The components of a pipeline. parts: those that are quantized. kept: those that are not, and why, as far as their
    tensors are read: files of others are copied unread."""

    parts: Mapping[str, Planned]
    kept: Mapping[str, tuple[Source, str]]


def choose(stack: contextlib.ExitStack, folder: str, order: Order, reading: Reading, say: Say) -> Chosen:
    """All components of a pipeline, which are closed with `stack`. Raises QuantcliError for what cannot be read,
    UsageError and DataError for what cannot be done."""
    found = {c.name: c for c in pipelines.components(folder)}
    chosen = _variants(folder, found, reading.variant)
    asked = set(order.include) | {r.pattern for r in order.recipe.rules if r.scheme is not None}
    why = {n: reason for n, c in found.items() if (reason := why_kept(c)) and not any(names_one(p, n) for p in asked)}
    sources = {n: _opened(stack, folder, n, replace(reading, variant=chosen[n]), say) for n in found if n not in why}
    orders = of_components(order, {n: [info.name for info in s.infos()] for n, s in sources.items()})
    why |= {n: "matched no --include" for n in sources if n not in orders}
    parts = {}
    for name, own in orders.items():
        try:
            parts[name] = _part(sources[name], own, found[name], say)
        except NothingToQuantizeError as error:
            if len(found) == 1:
                raise
            why[name] = "; ".join(words for words in (error.problem, error.hint) if words)
    if not parts:
        problem = f"every component of this pipeline is kept: {', '.join(found)}"
        raise DataError(problem, place=[folder], hint=f"--include '{next(iter(found))}/*' quantizes one")
    whole = {n: _opened_whole(stack, folder, n, chosen[n]) for n in found if n in why}
    return Chosen(parts, {n: (source, why[n]) for n, source in whole.items() if source is not None})


def _variants(folder: str, found: Mapping[str, Component], variant: str | None) -> dict[str, str | None]:
    """The variant to take of each component: the one that is asked for, where there is one."""
    known = {name: variants(os.path.join(folder, name)) for name in found}
    if variant is not None and not any(variant in names for names in known.values()):
        there = ", ".join(sorted({v for names in known.values() for v in names}))
        hint = f"there is {there}" if there else "leave it out: there are no variants"
        raise UsageError("no component has this variant", place=[folder, f"--variant {printable(variant)}"], hint=hint)
    return {name: variant if variant in names else None for name, names in known.items()}


def _opened(stack: contextlib.ExitStack, folder: str, name: str, reading: Reading, say: Say) -> Source:
    """The source of a component to quantize."""
    return stack.enter_context(float_source(os.path.join(folder, name), reading, say=say))


def _opened_whole(stack: contextlib.ExitStack, folder: str, name: str, variant: str | None) -> Source | None:
    """The source of a component that is kept; None where it cannot be read, and its files are copied unread."""
    try:
        source = open_source(os.path.join(folder, name), variant)
    except DataError:
        return None
    return stack.enter_context(contextlib.closing(source))


def _part(source: Source, order: Order, component: Component, say: Say) -> Planned:
    """What is planned for a component."""
    source, to, why = aimed(source, order, folder=True)
    try:
        if to is not None:
            _check_target(component, to)
        request = job.request(source, order, to, warn=say)
        planned = job.planned(source, order, request, folder=True)
    except QuantcliError as error:
        raise error if error.place[:1] == [source.path] else error.within(source.path) from None
    said = [SENTENCES] if to == USUAL and component.library == "sentence-transformers" else []
    return replace(planned, notes=(*([why] if why else []), *said, *planned.notes))


def _check_target(component: Component, to: str) -> None:
    """Raise UsageError for a target that the loader of a component does not take."""
    taken = LOADERS.get(component.library, ("bnb-nf4", "compressed-tensors"))
    if to not in taken:
        hint = f"use --to {' or '.join(taken)}, or leave out --to: each component is then written for its own loader"
        raise UsageError(f"{component.library} does not load {to}", place=[f"--to {to}"], hint=hint)


# ---- their files ---------------------------------------------------------------------------------------------------


def weights(chosen: Chosen) -> Weights:
    """The weight files of all components by their names in the pipeline."""
    converted, written, aside = list[str](), [CARD], dict[str, str]()
    copied: dict[str, tuple[str, str]] = {}
    for name, part in chosen.parts.items():
        converted += [os.path.join(name, file) for file in part.source.shards]
        written += [os.path.join(name, file) for file in (CONFIG, INDEX, os.path.basename(part.source.index or INDEX))]
        aside |= {os.path.join(name, file): why for file, why in part.source.aside.items()}
    for name, (source, why) in chosen.kept.items():
        index = os.path.basename(source.index)
        for file in [*source.shards, *([index] if index else [])]:
            # Shards keep their names, which the index has.
            new = without_variant(file) if file == index or not index else file
            copied[os.path.join(name, file)] = os.path.join(name, new), f"kept whole, {why}"
        aside |= {os.path.join(name, file): reason for file, reason in source.aside.items()}
    return Weights(converted=converted, written=written, aside=aside, copied=copied)
