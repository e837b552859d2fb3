"""Errors are one line for a terminal: the place, outermost first, the problem, and the way out."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantcli import DataError, QuantcliError, UsageError
from quantcli.errors import os_error, printable


@given(st.text(st.characters(), max_size=700))
def test_whatever_is_printed_is_printable(text: str) -> None:
    """Names in model files are data; they must not be able to clear a screen or fake a second message."""
    shown = printable(text)
    assert shown.isprintable()
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown)
    if text.isprintable() and len(text) <= 512:
        assert shown == text


def test_long_names_are_cut() -> None:
    assert printable("x" * 512) == "x" * 512
    assert len(printable("x" * 100_000)) <= 512
    assert "100000 characters" in printable("x" * 100_000)


@pytest.mark.parametrize(("text", "shown"), [
    ("\x1b[2J", "\\x1b[2J"), ("a\nb", "a\\nb"), ("\u202e", "\\u202e"), ("\ud800", "\\ud800"), ("\x9b", "\\x9b"),
    ("größe 重量", "größe 重量"), ("\U000e0041", "\\U000e0041"), ("\u2028", "\\u2028"), ("", ""),
])  # fmt: skip
def test_what_is_hidden_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_each_layer_adds_what_it_knows() -> None:
    error = DataError("row length 100", place=["w"], hint="use 20").within("model.safetensors", "layer")
    assert str(error) == "model.safetensors: layer: w: row length 100; use 20"
    assert str(DataError("nothing")) == "nothing"
    assert str(DataError("two\nlines", place=["a\x1b"])) == "a\\x1b: two\\nlines"


def test_exit_codes() -> None:
    assert (QuantcliError("x").exit_code, DataError("x").exit_code, UsageError("x").exit_code) == (1, 1, 2)
    assert issubclass(DataError, QuantcliError) and issubclass(UsageError, QuantcliError)


def test_the_system_s_words() -> None:
    missing = FileNotFoundError(2, "No such file or directory")
    assert str(os_error(missing, "a.npy")) == "a.npy: no such file or directory"
    assert str(os_error(OSError("odd"), "a")) == "a: odd"
