"""What was decided for many tensors takes a few bytes for each, and nothing of it is lost."""

from __future__ import annotations

import itertools
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quantcli import Scheme
from quantcli.planning.entry import quantized
from quantcli.tensors.decided import Columns, Decided, Kept
from quantcli.tensors.decisions import Decisions, by_name
from quantcli.tensors.info import TensorInfo

SCHEMES = [Scheme(bits=4, group_size=32), Scheme(bits=8, granularity="channel"), Scheme(format="nf4", group_size=64)]
COLUMNS = [None, Columns(np.ones(64), "a"), Columns(np.ones(64), "b")]
kinds = st.one_of(
    st.tuples(st.none(), st.sampled_from(["bias", "norm"]), st.sampled_from(["", "a note"])),
    st.tuples(st.sampled_from(SCHEMES), st.sampled_from(["default", "rule"]), st.sampled_from(COLUMNS)),
)
decisions = st.lists(st.tuples(st.sampled_from(["F32", "BF16"]), st.sampled_from([(8, 64), (4, 64)]), kinds))


def records(drawn: list[tuple[str, tuple[int, ...], tuple[object, str, object]]]) -> list[Decided]:
    """The records that were drawn, with a name for each."""
    found: list[Decided] = []
    for number, (dtype, shape, (scheme, reason, more)) in enumerate(drawn):
        info = TensorInfo(f"layers.{number}", dtype, shape)
        if isinstance(scheme, Scheme):
            assert more is None or isinstance(more, Columns)
            found.append(quantized(info, scheme, reason, columns=more))
        else:
            found.append(Kept(info=info, reason=reason, note=str(more)))
    return found


@given(decisions, st.data())
def test_what_was_decided_comes_back(
    drawn: list[tuple[str, tuple[int, ...], tuple[object, str, object]]], data: st.DataObject
) -> None:
    """Every tensor has a disposition and a reason: the ones that were given."""
    given_ones = records(drawn)
    held = Decisions.of(given_ones)
    assert list(held) == given_ones and [held[n] for n in range(len(held))] == given_ones
    assert dict(by_name(held)) == {tensor.info.name: tensor for tensor in given_ones}
    first, last = (data.draw(st.integers(0, len(held))) for _ in range(2))
    assert held[first:last] == given_ones[first:last]
    counted = list(held.alike())
    assert sum(count for _, count in counted) == len(held)
    assert sum(count * first.info.nbytes for first, count in counted) == sum(t.info.nbytes for t in given_ones)
    if given_ones:
        other = Kept(info=data.draw(st.sampled_from(given_ones)).info, reason="nonfinite")
        wanted = [other if tensor.info == other.info else tensor for tensor in given_ones]
        assert list(held.amended({other.info.name: other})) == wanted


def test_a_few_bytes_for_each() -> None:
    """A plan for a million tensors takes 4 MB beside their names, dtypes and shapes."""
    info = TensorInfo("w", "BF16", (8, 64))
    held = Decisions([info] * 10_000, (quantized(info, SCHEMES[0], "default") for _ in range(10_000)))
    assert sys.getsizeof(held._numbers) < 50_000 and len(list(held.alike())) == 1


@given(decisions, st.lists(st.integers(0, 20), unique=True))
def test_order_within_runs(
    drawn: list[tuple[str, tuple[int, ...], tuple[object, str, object]]], ends: list[int]
) -> None:
    """ "those from each of some numbers to the next are in the order of a key": as sorting each run by itself, which
    leaves those of one key in their order."""
    given_ones = records(drawn)
    held, count = Decisions.of(given_ones), len(given_ones)
    places = [*sorted(end for end in ends if end < count), count]
    wanted = [
        tensor
        for first, last in itertools.pairwise([0, *places])
        for tensor in sorted(given_ones[first:last], key=lambda t: t.scheme is None)
    ]
    found = held.sorted_within(places, lambda t: t.scheme is None)
    assert list(found) == wanted == [found[number] for number in range(count)] and found[1:3] == wanted[1:3]
    assert sum(number for _, number in found.alike()) == count
