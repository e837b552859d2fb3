"""Text from files as Markdown that GitHub shows as it is, in tables and lists too: nothing in it is markup."""

from __future__ import annotations

import re

from quantcli.errors import printable

_PLAIN_CODE = re.compile(r"[^`|\\]*[^`|\\ ][^`|\\]*")
"""What a code span shows as it is. In a table bars would end the cell, and a backslash before one cannot be written."""


def code(name: str) -> str:
    """A name as code.

    A code span holds neither every run of backticks nor, in a table, a backslash before a bar; such names are HTML,
    where each character that is not a letter or digit is a reference, which never is markup.

    References: CommonMark 0.31.2, 6.1 Code spans and 2.5 Entity references; GitHub Flavored Markdown, Tables.

    >>> code("layers.0.weight"), code("a`b")
    ('`layers.0.weight`', '<code>a&#96;b</code>')
    """
    shown = printable(name, 300)
    if _PLAIN_CODE.fullmatch(shown):
        return f"`{shown}`"
    return f"<code>{re.sub(r'[^0-9A-Za-z]', lambda c: f'&#{ord(c[0])};', shown)}</code>"


def text(sentence: str, limit: int = 1000) -> str:
    """A sentence, in which GitHub sees no mention and no link either.

    >>> text("*a* | @b https://c")
    '\\\\*a\\\\* \\\\| `@`b https:\\\\//c'
    """
    shown = re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", printable(sentence, limit))
    shown = re.sub(r"://", r":\\//", shown)
    shown = re.sub(r"(?i)\bwww\.", lambda found: found[0][:-1] + "\\.", shown)
    return re.sub("@+", r"`\g<0>`", shown)
