"""Who does the work of a command: threads of this process, or workers of Dask."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import click

from quantcli.cli import _help, options
from quantcli.cli._help import F
from quantcli.errors import UsageError

if TYPE_CHECKING:
    from quantcli.passes.batches import Crew


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Who does the work, as it was asked for. dask: where workers are, None for this process alone."""

    threads: int | None
    dask: str | None

    @property
    def count(self) -> int:
        """Threads of this process."""
        return options.thread_count(self.threads)

    def check(self, *paths: str | None) -> None:
        """Raise UsageError for options that contradict each other, and where workers are to read standard input, which
        they do not have. paths: what is read."""
        if self.dask is not None and "-" in paths:
            raise UsageError("workers cannot read standard input", place=["--dask"], hint="name a file")

    def check_writing(self, src: str, part: str | None, output: str | None, asked: Mapping[str, Any]) -> None:
        """Raise UsageError for what of quantize's options workers, and parts, cannot do."""
        self.check(src)
        if self.dask is None:
            return
        if output is not None:
            from quantcli.stores import destinations

            destinations.check_parts(output, "--dask")
        if part is not None:
            raise UsageError("one process does a part", place=["--dask"], hint="leave out --part or --dask")
        if output == "-":
            raise UsageError("workers cannot write to standard output", place=["--dask"], hint="name a file with -o")
        for name, option in (("target_size", "--target-size"), ("target_bpw", "--target-bpw")):
            if asked[name] is not None:
                problem = "every worker would choose the schemes anew"
                hint = "plan once with quantcli plan -o recipe.yaml, which takes --dask too, and give --recipe"
                raise UsageError(problem, place=[option], hint=hint)

    @contextlib.contextmanager
    def crew(self, say: Callable[[str], None]) -> Iterator[Crew | None]:
        """The workers; None where this process does everything. say: called with what slows them down."""
        if self.dask is None:
            yield None
            return
        from quantcli import dasked

        with dasked.crew(self.dask, threads=self.threads, say=say) as found:
            yield found


def workers(command: F) -> F:
    """--threads and --dask, as `workers`."""

    @functools.wraps(command)
    def with_workers(*arguments: Any, threads: int | None, dask: str | None, **others: Any) -> Any:
        return command(*arguments, workers=Workers(threads=threads, dask=dask), **others)

    return cast(F, _OPTIONS(with_workers))


_OPTIONS = _help.options(
    _help.option(
        "--threads",
        type=click.IntRange(1, 256),
        metavar="N",
        help="Threads to use; the output does not depend on it.",
        show_default="all processors; with --dask one for each piece of work",
        group="Run",
    ),
    _help.option(
        "--dask",
        metavar="ADDRESS",
        help="Let workers of Dask do the work: of the scheduler at this address, such as tcp://host:8786, or with "
        "local:4 four processes on this machine. The output does not depend on it; see quantcli help scale.",
        group="Run",
    ),
)
