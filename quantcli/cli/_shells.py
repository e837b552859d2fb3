"""How shells ask for completions, and what they do with the answers, where click's own scripts fall short.

A value may stand behind its option and `=`, as in `--to=gguf:Q4_K`. bash takes it for several words, and replaces
only what follows the last `=` or `:`; zsh and fish take it for one word, which they replace as a whole.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from click.shell_completion import BashComplete, FishComplete, ZshComplete, add_completion_class, split_arg_string

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_BASH = r"""%(complete_func)s() {
    local IFS=$'\n' response completion type value

    response=$(env COMP_WORDS="${COMP_LINE:0:COMP_POINT}" COMP_CWORD="$2" %(complete_var)s=bash_complete "$1")

    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        if [[ $type == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            COMPREPLY+=("$value")
        fi
    done
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_FISH = r"""function %(complete_func)s;
    set -l word (commandline -ct);
    set -l option (string match -r '^--[^=]*=' -- $word);
    test -n "$option"; or set option "";
    set -l response (env %(complete_var)s=fish_complete COMP_WORDS=(commandline -cp) COMP_CWORD=$word %(prog_name)s);

    for completion in $response;
        set -l found (string split -m 1 "," -- $completion);

        if test $found[1] = "dir";
            for path in (__fish_complete_directories $found[2]); echo $option$path; end;
        else if test $found[1] = "file";
            for path in (__fish_complete_path $found[2]); echo $option$path; end;
        else if test $found[1] = "plain";
            echo $option$found[2];
        end;
    end;
end;

complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)";
"""

_VALUE_ALONE = "compset -P 1 '--*='; _path_files"
"""zsh, told to look for files by what stands behind an option and `=`."""


def _whole(word: str, value: str) -> str:
    """The word that a value completes, with the option before it.

    >>> _whole("--to=g", "gguf"), _whole("g", "gguf")
    ('--to=gguf', 'gguf')
    """
    option, is_value, _ = word.partition("=")
    return f"{option}={value}" if is_value and option.startswith("--") else value


class _Bash(BashComplete):
    """bash, which tells the line up to the cursor, and how much of its last word it will replace."""

    source_template = _BASH
    _word, _stays = "", 0

    def get_completion_args(self) -> tuple[list[str], str]:
        words = split_arg_string(f"{os.environ['COMP_WORDS']}x")  # the last word may be empty, or in open quotes
        replaced = os.environ["COMP_CWORD"].lstrip("\"'")
        self._word = words[-1][:-1]
        self._stays = len(self._word) - len(replaced) if self._word.endswith(replaced) else 0
        return words[1:-1], self._word

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{_whole(self._word, item.value)[self._stays :] if item.type == 'plain' else item.value}"


class _Zsh(ZshComplete):
    """zsh, which replaces a word as a whole, and only for files leaves an option before `=` alone."""

    # zsh loads the function `_quantcli` from a file of that name; click defines another one there, so that every second
    # Tab found nothing.
    source_template = ZshComplete.source_template.replace("%(complete_func)s", "_%(prog_name)s").replace(
        "_path_files", _VALUE_ALONE
    )
    _word = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, self._word = super().get_completion_args()
        return args, self._word

    def format_completion(self, item: CompletionItem) -> str:
        if item.type == "plain":
            item.value = _whole(self._word, item.value)
        return super().format_completion(item)


class _Fish(FishComplete):
    """fish, which replaces a word as a whole."""

    source_template = _FISH


def register() -> None:
    """Have click take these for what it has for the shells."""
    for shell in (_Bash, _Zsh, _Fish):
        add_completion_class(shell)
