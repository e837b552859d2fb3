"""The command line: one module per command, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from functools import partial
from typing import NoReturn

import click

from quantcli import front, interrupts, registry
from quantcli.cli import _help
from quantcli.errors import QuantcliError, printable
from quantcli.front import COMPLETE

BUG = 70
"""Exit code for an error that is quantcli's own (EX_SOFTWARE)."""

JUDGES = ("report", "compare", "verify", "audit")
"""Commands that follow diff and grep: 1 is a failed gate or check, 2 whatever kept them from measuring."""

EXIT_CODES = {
    0: ("done", "done, and every gate and check passed"),
    1: ("it could not be done: data, files or memory", "a gate or check failed"),
    2: ("a wrong request", "a wrong request, or nothing could be measured"),
    BUG: ("a bug in quantcli", "a bug in quantcli"),
}
"""What an exit code means of most commands, and of those that judge. A signal ends the process as it ends others."""


class _Commands(click.Group):
    """The commands are the modules of this package that provide one; each is imported when it is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(registry.commands())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        command = registry.get("cli", name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"commands: {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"no command {printable(args[0], 60)!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        ctx.color = front.wants_colour(sys.stdout, "auto")  # click asks for a terminal alone
        front.program(formatter)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from quantcli import __version__, library

        click.echo(f"quantcli {__version__} ({library.name()} kernels)")
        ctx.exit()


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": list(front.NAMES), "max_content_width": front.MOST},
    no_args_is_help=False,
    invoke_without_command=True,
)
@_help.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help=front.VERSION,
    group="Run",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """The commands, and their first page of help where none is named."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _fill_closed_streams() -> None:
    """Open /dev/null where a standard stream was closed at the start: otherwise the next file opened would get its
    number, and a message would end up in it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                fd = os.open(os.devnull, os.O_RDWR)
                if fd != number:
                    os.dup2(fd, number)
                    os.close(fd)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _print_error(message: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"quantcli: {message}\n")
        sys.stderr.flush()


def _silence_stdout() -> None:
    """Nothing more goes out, and the interpreter has nothing to complain about at its end."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)


def _usage(error: click.ClickException) -> str:
    # click puts every choice on a line of its own, behind a tab
    text = printable(re.sub(r"\s*\n\s*", " ", error.format_message()).strip(), 2000)
    text = text[:1].lower() + text[1:]
    ctx = getattr(error, "ctx", None)
    if ctx is None:
        return text.rstrip(".")
    # The path of a subcommand is in its own context; the group's is just the program.
    return f"{text.rstrip('.')} (see '{ctx.command_path} --help')"


def _complete() -> NoReturn:
    """Answer a shell that asks for completions; whatever goes wrong, it gets none."""
    from click.shell_completion import shell_complete

    from quantcli.cli import _shells

    _shells.register()
    try:
        code = shell_complete(cli, {}, "quantcli", COMPLETE, os.environ[COMPLETE])
        sys.stdout.flush()
    except Exception:
        code = 1
    sys.exit(code)


def _run(arguments: list[str] | None) -> None:
    # Not through click's own main: it answers a closed pipe and Ctrl-C itself, with other codes and an empty line.
    with cli.make_context("quantcli", list(sys.argv[1:] if arguments is None else arguments)) as ctx:
        cli.invoke(ctx)
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 not possible, 2 usage, 70 a bug of ours."""
    _fill_closed_streams()
    interrupts.run(partial(_main, arguments))


def _main(arguments: list[str] | None) -> NoReturn:
    debug = "--debug" in (arguments if arguments is not None else sys.argv)
    try:
        if hasattr(signal, "SIGXFSZ"):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if arguments is None and COMPLETE in os.environ:
            _complete()
        _run(arguments)
        sys.exit(0)
    except click.Abort:
        raise KeyboardInterrupt from None
    except QuantcliError as error:
        if debug:
            raise
        _print_error(str(error))
        sys.exit(_exit_code(error.exit_code, arguments))
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        _print_error(_usage(error))
        sys.exit(2)
    except BrokenPipeError:
        _silence_stdout()
        if hasattr(signal, "SIGPIPE"):
            interrupts.die_by(signal.SIGPIPE)
        sys.exit(1)
    except OSError as error:
        if debug:
            raise
        _silence_stdout()
        where = f"{printable(os.fsdecode(error.filename))}: " if error.filename else "standard output: "
        _print_error(where + (error.strerror or str(error)).lower())
        sys.exit(_exit_code(1, arguments))
    except MemoryError:
        _print_error("not enough memory; use fewer --threads")
        sys.exit(_exit_code(1, arguments))
    except Exception as error:
        if debug:
            raise
        what = f"{type(error).__name__}: {printable(str(error), 300)}"
        _print_error(f"internal error, please report it: {what}; --debug shows where")
        sys.exit(BUG)


def _exit_code(code: int, arguments: list[str] | None) -> int:
    """The code of an error for the command that was asked for (see JUDGES)."""
    words = arguments if arguments is not None else sys.argv[1:]
    return 2 if code == 1 and words[:1] and words[0] in JUDGES else code
