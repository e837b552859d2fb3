"""A folder of several models, quantized into another one: each component by itself, all files around them copied.

Everything is planned before the first weight is read, and the folder appears when all components are complete. See
`components` for which of them are quantized.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace

from quantcli.errors import UsageError
from quantcli.floats import Reading
from quantcli.folders import components, job, sidefiles
from quantcli.folders.job import Job, Say
from quantcli.folders.write import prefixed
from quantcli.layouts.writer import named
from quantcli.passes import export
from quantcli.planning import recipe_writing
from quantcli.planning.order import Order
from quantcli.planning.recipe import NATIVE
from quantcli.planning.request import Request, Rule
from quantcli.planning.scopes import scope
from quantcli.stores import pipelines


@contextlib.contextmanager
def prepared(
    src: str,
    order: Order,
    name: str | None,
    *,
    recipe_name: str | None,
    reading: Reading,
    force: bool,
    resume: bool,
    dry_run: bool,
    say: Say,
) -> Iterator[Job]:
    """A run on the pipeline that `src` names, ready to begin. name: of the output, None to make one up. reading: as for
    `float_source`. Raises UsageError, DataError and QuantcliError for all that can be known before the first weight is
    read."""
    folder = pipelines.folder_of(src)
    _check_order(order, name)
    job.check_folder_options(True, order, resume=resume)
    if reading.loras or reading.adapter:
        option, hint = "--lora" if reading.loras else "--adapter", "name the folder of a component"
        raise UsageError("this is for one model, and a pipeline has several", place=[option], hint=hint)
    with contextlib.ExitStack() as stack:
        chosen = components.choose(stack, folder, order, reading, say)
        request = next(iter(chosen.parts.values())).request
        told = None if order.to == NATIVE else order.to
        target = name or job.default_name(folder, job.label(request, recipe_name), told)
        real = target if dry_run else export.check_output_folder(folder, target, [folder], force=force)
        real = os.path.realpath(real)
        yield Job(
            order=order,
            parts=chosen.parts,
            kept=chosen.kept,
            side=sidefiles.of_folder(folder, real, components.weights(chosen)),
            src=src,
            home=folder,
            shown=target,
            path=real,
            folder=True,
            notes=tuple(prefixed(n, line) for n, part in chosen.parts.items() for line in part.notes),
            force=force,
            resume=resume,
        )


def spelt_out(ready: Job) -> Request:
    """The request that names every tensor's scheme in the components of a pipeline, as a recipe that is saved says
    it."""
    usual = {c.name: not components.why_kept(c) for c in pipelines.components(ready.home or "")}
    parts = ready.parts
    wanted = {n: {t.info.name: t.scheme for t in part.plan.tensors} for n, part in parts.items()}
    default = recipe_writing.commonest(scheme for own in wanted.values() for scheme in own.values())
    rules = list[Rule]()
    for name, part in parts.items():
        found = recipe_writing.resolved(
            part.source.infos(), wanted[name], part.request, default=default, named=not usual[name]
        )
        rules += [replace(rule, pattern=scope(rule.pattern, name)) for rule in found.rules]
    rules += [Rule(f"{name}/*", None, optional=True) for name in ready.kept if usual[name]]
    to = None if ready.order.to == NATIVE else ready.order.to
    first = next(iter(parts.values())).request
    asked = replace(first, scheme=default, rules=tuple(rules), preset="", to=to, ties=(), include=(), exclude=())
    return replace(asked, keep_defaults=True, from_recipe=frozenset())


def _check_order(order: Order, name: str | None) -> None:
    """Raise UsageError for what several models do not have."""
    if order.container or (order.to is not None and order.to != NATIVE and named(order.to).extension):
        hint = "name the folder of a component"
        raise UsageError(
            "this writes one file, and a pipeline is a folder of models", place=[f"--to {order.to}"], hint=hint
        )
    if name is not None and name.lower().endswith(".safetensors"):
        raise UsageError("a pipeline is written as a folder", place=[name], hint="end the name without an extension")
    if order.importance is not None or order.recipe.importance is not None:
        hint = "name the folder of a component"
        raise UsageError("importances are those of one model", place=["--importance"], hint=hint)
