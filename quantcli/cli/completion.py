"""`quantcli completion`."""

from __future__ import annotations

import sys

import click

SHELLS = ("bash", "zsh", "fish")


@click.command("completion", short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.option("--debug", is_flag=True, hidden=True, help="Show the traceback of an error.")
def command(shell: str, debug: bool) -> None:
    """Print what a shell needs to complete commands, options, files and tensor names.

    \b
    bash: put into ~/.bashrc                            eval "$(quantcli completion bash)"
    zsh:  put into ~/.zshrc, after compinit             eval "$(quantcli completion zsh)"
    fish: run once    quantcli completion fish > ~/.config/fish/completions/quantcli.fish
    """
    from click.shell_completion import get_completion_class

    from quantcli.cli import COMPLETE, cli

    found = get_completion_class(shell)
    assert found is not None
    sys.stdout.write(found(cli, {}, "quantcli", COMPLETE).source() + "\n")
    sys.stdout.flush()


PROVIDES = command
