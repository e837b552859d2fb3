"""Results of tensors as bytes: nothing is lost of what was measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantcli import Scheme
from quantcli.layouts.native.document import Result
from quantcli.layouts.native.results import PackedResults
from quantcli.metrics import Metrics
from quantcli.tensors.second_order import Output

SCHEMES = [None, Scheme(bits=4), Scheme(bits=8, granularity="channel"), Scheme(format="nf4", group_size=64)]
sums = st.floats(allow_nan=False)
counts = st.integers(0, 2**62)
results = st.builds(
    Result,
    st.none() | st.builds(Metrics, sums, sums, counts, sums, counts),
    st.none() | st.binary(min_size=16, max_size=32).map(bytes.hex),
    st.sampled_from(SCHEMES),
    st.none() | sums,
    st.none() | st.builds(Output, sums, sums, sums),
)


@given(st.dictionaries(st.text(), results))
def test_results_come_back_as_they_were_given(given: dict[str, Result]) -> None:
    """What is reported is measured on the stored codes: to the last digit, and in the order of the tensors."""
    held = PackedResults()
    held.update(given)
    assert list(held.items()) == list(given.items())
    for name in given:
        assert name in held
        assert held[name].scheme is given[name].scheme
    for name in list(given):
        del held[name]
    assert len(held) == 0


def test_a_sum_that_is_no_number_is_not_taken_for_one_that_was_not_made() -> None:
    """Files refuse it (`is not JSON`), which a sum that is missing would pass."""
    held = PackedResults()
    held["w"] = Result(Metrics(1.0, 1.0, 1, 1.0, 0), None, minmax_sse=math.nan)
    assert held["w"].minmax_sse is not None
    with pytest.raises(KeyError):
        held["v"]
