"""What is fitted into the width of a terminal."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from quantcli.terminal import shortened

PARTS = ("attention.self.query", "attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense")


def test_rows_of_layers_stay_apart_at_80_columns() -> None:
    """A table of 80 columns has 34 for names: of BERT's weights no two are shown alike, as those of all layers were."""
    names = [f"bert.encoder.layer.{layer}.{part}.weight" for layer in range(24) for part in PARTS]
    assert len({shortened(name, 34) for name in names}) == len(names)


@given(st.from_regex(r"[a-z_0-9.]{1,80}", fullmatch=True), st.integers(1, 60))
def test_a_shortened_name_is_both_ends_of_it(name: str, width: int) -> None:
    found = shortened(name, width)
    assert found == name if len(name) <= width or width < 8 else len(found) == width
    head, _, tail = found.rpartition("...") if found != name else (name, "", "")
    assert name.startswith(head) and name.endswith(tail)


@given(st.integers(0, 999), st.text("ab_.", max_size=40), st.text("ab_.", max_size=20))
def test_a_number_is_kept_where_the_end_behind_it_fits(number: int, front: str, end: str) -> None:
    name = f"{front}{number}{end}"
    assert str(number) in re.findall(r"\d+", shortened(name, 34))
