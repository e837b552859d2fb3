"""A quantized model back to floats at a path, and the figure that a command of the user's own gives for that."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from quantcli.errors import DataError, UsageError, os_error, printable
from quantcli.floats import left_out
from quantcli.folders import components, dequantize, prepare
from quantcli.folders.command import ran
from quantcli.folders.components import Quantized
from quantcli.passes import decode
from quantcli.passes.tiles import Progress
from quantcli.stores.pipelines import prefixed
from quantcli.stores.temporary import TemporaryFolder

PLACE = "{}"
"""What stands for the path of the model in a command."""

NUMBER = re.compile(r"(?:^|(?<=[\s=:,(\[]))([-+]?(?:\d+(?:,\d+)*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?=$|[\s,;%)\]}])")
"""A number that stands alone, and is no part of a name or a path. Digits on both sides of a comma are one, which is no
valid number: it may be a decimal comma, one of thousands, or of a list."""


def write_floats(
    found: Quantized,
    target: str,
    *,
    folder: bool,
    force: bool,
    private: bool = False,
    dtype: str | None,
    threads: int,
    bar: Callable[[], AbstractContextManager[Progress]],
    say: Callable[[str], None],
) -> tuple[int, list[str]]:
    """Write the floats of a quantized model to a file or a folder: their bytes, and what there is to say of them, which
    `say` is told before. bar(): shows progress. Raises QuantcliError."""
    home = home_of(found)
    real, side = prepare.destination(
        found.home, found.sources, found.kept, target, folder=folder, force=force, private=private
    )
    others = {name: model for name, model in found.models.items() if model.own is None}
    left = [prefixed(name, line) for name, model in others.items() for line in left_out(model.values())]
    loading = dequantize.notes(found.models) if folder else []
    warnings = [*found.warnings, *left, *loading, *side.warnings()]
    for line in warnings:
        say(line)
    with bar() as progress:
        if folder:
            write = partial(dequantize.write, found.models, real, home=home, side=side)
        else:
            write = partial(decode.write, found.models[""], real)
        return write(dtype=dtype, force=force, threads=threads, progress=progress), warnings


def home_of(found: Quantized) -> str | None:
    """The folder that a model is in; None for a file."""
    return found.home or found.models[""].source.folder


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a model is evaluated. words: of the command, {} among them for the path of its floats. pattern: what the
    figure is found by in what the command prints, the group of it; None for the last number of the last line."""

    words: tuple[str, ...]
    pattern: re.Pattern[str] | None


def asked(command: str, pattern: str | None) -> Evaluation:
    """How a model is evaluated, as it was asked for. Raises UsageError for what is no command or no such pattern."""
    words = _words_of(command)
    if pattern is None:
        return Evaluation(tuple(words), None)
    try:
        compiled = re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise UsageError(f"it is not a regular expression: {error}", place=["--eval-pattern"]) from None
    if compiled.groups != 1:
        hint = "put the number in parentheses, and nothing else"
        raise UsageError(f"it has {compiled.groups} groups instead of one", place=["--eval-pattern"], hint=hint)
    return Evaluation(tuple(words), compiled)


def _words_of(command: str) -> list[str]:
    """The words of a command as a shell divides them. Raises UsageError where it has none or does not end, and where
    there is no such program."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"it is not a command: {error}", place=["--eval-command"]) from None
    if not words:
        raise UsageError("an empty command", place=["--eval-command"])
    if PLACE not in words[0] and shutil.which(words[0]) is None:
        hint = "name one that is in PATH, or the path of one; no shell takes part"
        raise UsageError("no such program", place=["--eval-command", printable(words[0], 200)], hint=hint)
    return words if any(PLACE in word for word in words) else [*words, PLACE]


def evaluate(
    path: str,
    how: Evaluation,
    *,
    variant: str | None,
    threads: int,
    bar: Callable[[str], AbstractContextManager[Progress]],
) -> float:
    """The figure that a command prints for a quantized model that was decoded to floats in a temporary folder.

    Raises QuantcliError where there is nothing to decode, the command cannot be run or fails, and where it prints no
    figure.
    """
    with TemporaryFolder() as folder:
        with components.quantized(path, variant, "evaluating") as found:
            whole = home_of(found) is not None
            name = os.path.basename(os.path.normpath(path))
            target = os.path.join(folder, name if whole else f"{os.path.splitext(name)[0]}.safetensors")
            write_floats(
                found, target, folder=whole, force=False, dtype=None, threads=threads,
                bar=partial(bar, "decoding"), say=lambda line: None,
            )  # fmt: skip
        return _figure([word.replace(PLACE, target) for word in how.words], how.pattern)


def _figure(words: Sequence[str], pattern: re.Pattern[str] | None) -> float:
    """The number that a command prints: the last that a pattern finds, or the last one of its last line."""
    place = ["--eval-command", printable(words[0], 200)]
    try:
        code, text = ran(words)
    except OSError as error:
        raise os_error(error, words[0]).within("--eval-command") from None
    if code:
        how = f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}"
        raise DataError(f"it {how}", place=place)
    last = text.rpartition("\n")[2]
    found = pattern.findall(text) if pattern is not None else NUMBER.findall(last)
    figure = math.nan
    with contextlib.suppress(ValueError):
        figure = float(found[-1]) if found else math.nan
    if not math.isfinite(figure):
        what = "nothing" if not text else f"no such number, and last: {printable(last, 200)}"
        hint = "have its last line end in the figure, or give --eval-pattern"
        raise DataError(f"it printed {what}", place=place, hint=hint)
    return figure
