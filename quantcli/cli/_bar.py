"""The progress bar of every command, and the line about slow kernels after it."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import click

from quantcli import library, memory
from quantcli.cli import _log
from quantcli.errors import printable


class Bar:
    """A progress bar on standard error with bytes, rate and time left; nothing when that is not a terminal.

    It appears only once there is enough to do to be worth waiting for. Where numpy does the work of the native kernels
    and that took long, a line says so at the end.
    """

    WORTH = 64 << 20

    LONG = 1.0
    """Seconds from which a job is long."""

    def __init__(self, title: str, *, quiet: bool) -> None:
        self.title, self.quiet = title, quiet
        self._bar: Any = None
        self._task: Any = None
        self._began = 0.0

    def __enter__(self) -> Bar:
        self._began = time.perf_counter()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if failure[0] is None and not self.quiet and time.perf_counter() - self._began > self.LONG:
            self._say_if_slow()

    @staticmethod
    def _say_if_slow() -> None:
        """A line where kernels were at work, and they are numpy's."""
        if "quantcli.kernels.numpy_kernels" in sys.modules and library.name() == "numpy":
            why = "no native kernels" if not os.environ.get(library.FORCE) else f"{library.FORCE}=numpy"
            click.echo(f"quantcli: {why}: about 5 times slower; see 'quantcli help install'", err=True)

    def start(self, total: int) -> None:
        """A pass over so many bytes begins."""
        _log.current().line("pass", title=self.title, bytes=total)
        if total >= self.WORTH:
            memory.keep_freed()
        if self.quiet or total < self.WORTH or not sys.stderr.isatty():
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._bar = Progress(
                TextColumn(printable(self.title, 60), markup=False),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=total)
            self._bar.start()
        else:
            self._bar.reset(self._task, total=total)

    def advance(self, nbytes: int) -> None:
        """So many bytes are done."""
        if self._bar is not None:
            self._bar.advance(self._task, nbytes)
