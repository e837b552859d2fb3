"""The progress bar of every command."""

from __future__ import annotations

import sys
from typing import Any

from quantcli.errors import printable


class Bar:
    """A progress bar on standard error with bytes, rate and time left; nothing when that is not a terminal.

    It appears only once there is enough to do to be worth waiting for.
    """

    WORTH = 64 << 20

    def __init__(self, title: str, *, quiet: bool) -> None:
        self.title, self.quiet = title, quiet
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, total: int) -> None:
        """A pass over so many bytes begins."""
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
