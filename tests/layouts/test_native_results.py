"""Results of tensors as bytes: nothing is lost of what was measured."""

from __future__ import annotations

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import one_line, run, save
from strategies import gaussian

from quantcli import Scheme
from quantcli.layouts.native.document import Result
from quantcli.layouts.native.results import NamedResults, Results
from quantcli.metrics import Metrics
from quantcli.stores.compact import Joined
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
    held = NamedResults()
    held.update(given)
    assert list(held.items()) == list(given.items())
    for name in given:
        assert name in held
        assert held[name].scheme is given[name].scheme
    for name in list(given):
        del held[name]
    assert len(held) == 0


@given(st.lists(st.lists(st.none() | results, max_size=6), max_size=4))
def test_results_of_files_one_after_another(files: list[list[Result | None]]) -> None:
    """What is reported is measured on the stored codes: in the order of the tensors, over all files."""
    parts = [Results() for _ in files]
    for own, file in zip(parts, files):
        for result in file:
            own.append(result)
        assert list(own) == file
    given = [result for file in files for result in file]
    held = Joined(parts)
    assert list(held) == given and held[: len(given)] == given
    assert [held[n] for n in range(-len(given), 0)] == given


@given(st.dictionaries(st.sampled_from("abcdef"), results), st.permutations("abcdefg"))
def test_results_in_the_order_of_tensors(given: dict[str, Result], names: list[str]) -> None:
    """Threads end in any order; reports have the order of the source."""
    held = NamedResults()
    held.update(given)
    assert list(held.in_order(names)) == [given.get(name) for name in names]
    assert list(held.in_order(given)) == list(given.values())


def test_a_sum_that_is_no_number_is_not_taken_for_one_that_was_not_made() -> None:
    """Files refuse it (`is not JSON`), which a sum that is missing would pass."""
    held = NamedResults()
    held["w"] = Result(Metrics(1.0, 1.0, 1, 1.0, 0), None, minmax_sse=math.nan)
    assert held["w"].minmax_sse is not None
    with pytest.raises(KeyError):
        held["v"]


def test_results_of_several_threads() -> None:
    """Each tensor has its own result, whichever threads end theirs at the same time: of 150 runs on 32 tensors one
    recorded the errors and the digest of another."""
    found, each = NamedResults(), 3000
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def end(first: int) -> None:
        for number in range(first, first + each):
            found[f"{number}"] = Result(None, f"{number:032x}")

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(end, range(0, 4 * each, each)))
    finally:
        sys.setswitchinterval(before)
    assert len(found) == 4 * each and all(result.digest == f"{int(name):032x}" for name, result in found.items())


def test_two_files_with_a_tensor_of_one_name(tmp_path: Path) -> None:
    """One file keeps what the other one quantized: neither is taken for the other without a word."""
    folder = tmp_path / "m"
    folder.mkdir()
    quantized = save(tmp_path / "a.safetensors", {"w.weight": gaussian(8, 64)})
    kept = save(tmp_path / "b.safetensors", {"w.weight": gaussian(8, 64), "v.weight": gaussian(8, 64)})
    for source, number, option in ((quantized, 1, "--include"), (kept, 2, "--exclude")):
        out = folder / f"model-{number:05d}-of-00002.safetensors"
        assert run("quantize", source, option, "w.weight", "-q", "-o", out).code == 0
    assert "w.weight: two tensors have this name" in one_line(run("inspect", folder), 1)
