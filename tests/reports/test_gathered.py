"""What is gathered from one tensor after another is what a look at all of them gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import ROOT, run

from quantcli.planning.reasons import REASONS
from quantcli.reports import build
from quantcli.reports.gathered import Equal, named, told_of
from quantcli.reports.records import TensorReport, tensor_report
from quantcli.tensors.info import TensorInfo

DIGESTS = [None, "00" * 16, "00" * 15 + "01", "ff" * 32, "not hexadecimal"]
drawn = st.tuples(
    st.sampled_from(["F32", "I32", "BF16"]), st.sampled_from([(0,), (4,), (2, 2), (2,)]), st.sampled_from(DIGESTS)
)


def report(number: int, dtype: str, shape: tuple[int, ...], digest: str | None) -> TensorReport:
    """The report of a kept tensor."""
    return tensor_report(
        TensorInfo(f"w{number}", dtype, shape), None, reason=next(iter(REASONS)), note="", scale_dtype="", bytes_out=0,
        metrics=None, minmax_sse=None, digest=digest,
    )  # fmt: skip


@given(st.lists(drawn, max_size=40))
def test_equal_tensors(tensors: list[tuple[str, tuple[int, ...], str | None]]) -> None:
    """Nothing happens silently: all that have one dtype, shape and digest, the largest first, each set and all sets in
    the order of the tensors."""
    reports = [report(number, *one) for number, one in enumerate(tensors)]
    sets: dict[object, list[str]] = {}
    for r, one in zip(reports, tensors):
        if one[2] is not None and r.bytes_in:
            sets.setdefault((-r.bytes_in, one), []).append(r.name)
    wanted = sorted((key[0], int(names[0][1:]), names) for key, names in sets.items() if len(names) > 1)  # type: ignore[index]
    gathered = Equal()
    for r in reports:
        gathered.add(r)
    assert [list(names) for names in gathered.found(*told_of(reports))] == [names for *_, names in wanted]


def test_a_warning_names_three() -> None:
    """Of a million tensors too."""
    assert named("odd", []) == [] and named("odd", ["a"]) == ["odd: a"]
    assert named("odd", map(str, range(1_000))) == ["odd: 0, 1, 2 and 997 more"]


def test_rows_that_are_made_again_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of few tensors, whose rows are held, is said of many too."""
    command = "quantize", ROOT / "sample_models" / "tiny-llama", "-o", tmp_path / "w4", "--group-size", "32", "--force"
    found = []
    for held in (build.HELD, 0):
        monkeypatch.setattr(build, "HELD", held)
        document = json.loads(run(*command, "--json").out)
        document["summary"]["seconds"] = None
        found.append((document, (tmp_path / "w4" / "README.md").read_text()))
    assert found[0] == found[1] and found[0][0]["tensors"]
