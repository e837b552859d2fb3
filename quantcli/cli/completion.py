"""`quantcli completion`: Print the completion script of a shell."""

from __future__ import annotations

import sys

import click

from quantcli.cli import _help

SHELLS = ("bash", "zsh", "fish")


@_help.command(
    "completion",
    examples=(
        ('eval "$(quantcli completion bash)"', "for ~/.bashrc"),
        ('eval "$(quantcli completion zsh)"', "for ~/.zshrc, after compinit"),
        ("quantcli completion fish > ~/.config/fish/completions/quantcli.fish", "once"),
    ),
)
@click.argument("shell", type=click.Choice(SHELLS))
@_help.option("--debug", is_flag=True, hidden=True, help="Show the traceback of an error.", group="Run")
def command(shell: str, debug: bool) -> None:
    """Print what a shell needs to complete commands, options, files and tensor names."""
    sys.stdout.write(script(shell))
    sys.stdout.flush()


def script(shell: str) -> str:
    """The completion script of a shell."""
    from click.shell_completion import get_completion_class

    from quantcli.cli import _shells, cli
    from quantcli.front import COMPLETE

    _shells.register()
    found = get_completion_class(shell)
    assert found is not None
    return found(cli, {}, "quantcli", COMPLETE).source() + "\n"


PROVIDES = command
