"""The log of a run, for --log-file: JSON lines of what was asked, decided and found, and how the run ended.

A command holds one log at a time, which messages, passes and documents reach by `current`. Without --log-file that is
a log that writes nothing.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from typing import Any

import click
from click.core import ParameterSource

from quantcli.errors import QuantcliError, UsageError, os_error

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FLAGS |= sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOINHERIT"))
"""How the file of a log is opened: each line is appended whole, also where two runs write to one file."""

ONE_OF = {"tensors": "tensor", "findings": "finding", "gates": "gate", "points": "point", "files": "file"}
"""Lists of documents whose entries get a line each, and what such a line is about."""


class Log:
    """The lines of a run, each with the seconds since it began. file: where they go, None for nowhere. ended_by: why
    the file takes no more."""

    def __init__(self, file: FileIO | None) -> None:
        self._file, self._began = file, time.perf_counter()
        self.ended_by: OSError | None = None

    @property
    def is_kept(self) -> bool:
        """Whether it is written anywhere."""
        return self._file is not None

    def line(self, event: str, **facts: Any) -> None:
        """Add a line. Once the file takes no more, the run goes on without, and says so at its end."""
        if self._file is None:
            return
        import json  # here, so that no page of help waits for it

        at = round(time.perf_counter() - self._began, 3)
        try:
            self._file.write((json.dumps({"event": event, "at": at, **facts}, default=str) + "\n").encode())
        except OSError as error:
            self._file, self.ended_by = None, error
        except ValueError:  # it is closed: a thread came late
            self._file = None

    def document(self, document: Any) -> None:
        """Add the result of a command: a line for each tensor, finding, gate or file, and one for the rest."""
        if self._file is not None:
            self._add(document.as_dict())

    def _add(self, values: Mapping[str, Any]) -> None:
        for report in values.get("reports", ()):
            self._add(report)
        for key, event in ONE_OF.items():
            for entry in values.get(key) or ():
                self.line(event, **(entry if isinstance(entry, dict) else {"value": entry}))
        self.line("result", **{k: v for k, v in values.items() if k not in (*ONE_OF, "reports", "schema_version")})


NOTHING = Log(None)
_current = [NOTHING]


def current() -> Log:
    """The log of the command that runs."""
    return _current[-1]


@contextmanager
def logging(path: str | None, ctx: click.Context) -> Iterator[None]:
    """Log a command to a file while it runs. Raises UsageError for a file that the command reads or writes."""
    if path is None:
        yield
        return
    _check(path, ctx)
    with _opened(path) as file:
        log = Log(file)
        _current.append(log)
        try:
            log.line("start", **_asked(ctx))
            yield
            log.line("end", exit_code=0)
        except BaseException as error:
            log.line("end", **_ending(error))
            raise
        finally:
            _current.remove(log)
            if log.ended_by is not None:
                why = os_error(log.ended_by, path).within("--log-file")
                with suppress(OSError, ValueError):
                    click.echo(f"quantcli: warning: {why}; the log is incomplete", err=True)


def _opened(path: str) -> FileIO:
    """The file of a log, empty, and unbuffered: what was decided before a run is killed is in it. Raises QuantcliError
    for one that cannot be written, and a pipe that nothing reads, which would keep the run waiting."""
    try:
        fd = os.open(path, _FLAGS, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:
            hint = "start what reads it first"
            raise QuantcliError("a pipe that nothing reads", place=["--log-file", path], hint=hint) from None
        raise os_error(error, path).within("--log-file") from None
    if hasattr(os, "set_blocking"):
        os.set_blocking(fd, True)
    return FileIO(fd, "w")


def _check(path: str, ctx: click.Context) -> None:
    """Raise UsageError for a log that would be one of the files of a command, or lie in a folder that it reads."""
    if path in ("", "-"):
        problem = "standard output is for results" if path else "an empty file name"
        raise UsageError(problem, place=["--log-file"], hint="name a file")
    own = os.path.realpath(path)
    given = [v for key, values in ctx.params.items() if key != "log_file" for v in _texts(values)]
    for name in given:
        other = os.path.realpath(name)
        if own == other or (os.path.isdir(other) and own.startswith(os.path.join(other, ""))):
            hint = "name another file"
            raise UsageError(f"{name} is read or written by this command", place=["--log-file", path], hint=hint)


def _texts(values: Any) -> Iterator[str]:
    """Texts among the values of a parameter, which may be names of files."""
    if isinstance(values, str) and values:
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _texts(value)


def _asked(ctx: click.Context) -> dict[str, Any]:
    """What was asked: the command, and the parameters that were given."""
    from quantcli import __version__, library

    given = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    asked = {k: v for k, v in ctx.params.items() if ctx.get_parameter_source(k) in given}
    kernels = "unusable"
    with suppress(UsageError):
        kernels = library.name()
    return {"version": __version__, "kernels": kernels, "command": ctx.info_name, "asked": asked}


def _ending(error: BaseException) -> dict[str, Any]:
    """How a command ended that did not end well."""
    if isinstance(error, click.exceptions.Exit):
        return {"exit_code": error.exit_code}
    if isinstance(error, (QuantcliError, click.ClickException)):
        return {"exit_code": error.exit_code, "error": str(error)}
    return {"error": f"{type(error).__name__}: {error}"}
