"""Allocation against golden cases, enumeration and its own bound."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import GOLDEN_FILES

from quantcli.planning import allocate as module
from quantcli.planning.allocate import Allocation, _item, _relaxed, allocate, smallest

GOLDEN = json.loads((GOLDEN_FILES / "allocation.json").read_text())


BUDGETS = [case for case in GOLDEN["cases"] if "exact" in case]


@pytest.mark.parametrize("case", BUDGETS, ids=lambda c: c["id"])
def test_golden_cases_are_solved_to_the_optimum(case: dict[str, Any]) -> None:
    options = [[(int(b), float(d)) for b, d in item] for item in GOLDEN[f"options_{case['weighting']}"]]
    found = allocate(options, case["budget_bytes"])
    assert found is not None and found.optimal and found.gap == 0
    exact = case["exact"]
    assert found.cost == pytest.approx(exact["distortion"], rel=1e-9)
    assert found.size <= case["budget_bytes"]


OPTIONS = st.lists(st.tuples(st.integers(1, 60), st.floats(0, 100)), min_size=1, max_size=5)
ITEMS = st.lists(OPTIONS, min_size=1, max_size=5)


@given(ITEMS, st.integers(0, 300))
def test_no_choice_is_better(options: list[list[tuple[int, float]]], budget: int) -> None:
    """Exactly one option each, sizes within the budget, least cost: by enumeration."""
    found = allocate(options, budget)
    fitting = [
        c
        for c in itertools.product(*(range(len(o)) for o in options))
        if sum(o[i][0] for o, i in zip(options, c)) <= budget
    ]
    assert (found is None) == (not fitting) == (budget < smallest(options))
    if found is None:
        return
    best = min(sum(o[i][1] for o, i in zip(options, c)) for c in fitting)
    assert found.size == sum(o[i][0] for o, i in zip(options, found.choice)) <= budget
    assert found.cost == pytest.approx(best, rel=1e-9, abs=1e-12) and found.optimal


def many(items: int, seed: int) -> list[list[tuple[int, float]]]:
    """Tensors of a model as they are: sizes in octaves, 13 options of roughly 6 dB a bit."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(items):
        numel, variance = int(2 ** rng.uniform(12, 22)) // 128 * 128, float(np.exp(rng.normal()))
        jitter = np.exp(rng.normal(size=12) / 20)
        options = [
            (numel * b // 8 + numel // g * 2, numel * variance * 4.0**-b * (1.2 if g == 128 else 1.0))
            for g in (32, 128)
            for b in (2, 3, 4, 5, 6, 8)
        ]
        found.append([(s, d * j) for (s, d), j in zip(options, jitter)] + [(numel * 2, 0.0)])
    return found


@pytest.mark.parametrize("items", [1, 20, 200])
@pytest.mark.parametrize("bits", [2.5, 4.25, 7.0])
def test_the_certified_gap_is_small(items: int, bits: float) -> None:
    """the certified gap to the lower bound is at most 0.5 % on a 200-tensor synthetic model"""
    options = many(items, seed=items)
    budget = int(sum(o[-1][0] for o in options) / 16 * bits)
    found = allocate(options, budget)
    assert found is not None and found.size <= budget and found.bound <= found.cost
    if items >= 20:
        assert found.gap <= 0.005
    if items == 200:
        assert found.size >= budget * 0.999


def test_more_room_never_costs_more() -> None:
    options = many(12, seed=3)
    costs = [
        found.cost
        for b in range(30, 160, 7)
        if (found := allocate(options, int(sum(o[-1][0] for o in options) * b / 160))) is not None
    ]
    assert len(costs) > 10 and costs == sorted(costs, reverse=True)


def test_a_budget_that_is_met_exactly() -> None:
    """The best step, 6 bytes, leaves no room for another one; the two others cost less together and take all 10."""
    options = [[(0, 10.0), (6, 0.0)], [(0, 8.0), (5, 0.0)], [(0, 8.0), (5, 0.0)]]
    found = allocate(options, 10)
    assert found is not None and found.optimal
    assert (found.choice, found.size, found.cost) == ((0, 1, 1), 10, 10.0)


def test_the_bound_takes_the_last_step_in_part() -> None:
    """By hand: of 10 bytes the step of 6 saves 10, and 4 of the 5 of the next one save 6.4 of its 8: 26 - 16.4."""
    whole = _relaxed([_item(o) for o in ([(0, 10.0), (6, 0.0)], [(0, 8.0), (5, 0.0)], [(0, 8.0), (5, 0.0)])])
    assert whole.bound(np.array([10, 0, -1, 16, 99])).tolist() == pytest.approx([9.6, 26.0, np.inf, 0.0, 0.0])


def test_how_far_from_the_optimum() -> None:
    def gap(cost: float, bound: float, optimal: bool = False) -> float:
        return Allocation(choice=(), size=0, cost=cost, bound=bound, optimal=optimal).gap

    assert (gap(3.0, 2.0), gap(2.0, 2.0), gap(3.0, 2.0, True), gap(3.0, 0.0), gap(0.0, 0.0)) == (0.5, 0, 0, np.inf, 0)
    assert gap(0.75, 0.5) == 0.5


def test_options_on_a_line_between_two_others_are_no_corners() -> None:
    """Of equal slopes the whole step is one: (0, 8), (1, 6), (2, 4) lie on a line, and (3, 3.5) is a corner of its
    own."""
    found = _item([(0, 8.0), (1, 6.0), (2, 4.0), (3, 3.5), (4, 4.0), (5, 0.5)])
    assert found.index == (0, 1, 2, 3, 5) and found.hull == (0, 2, 4)


def test_an_answer_with_pairs_left_out_claims_no_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """where more pairs are left than are kept, the answer may not be the optimum: with every pair kept it is found,
    and lies between the bound and the cost"""
    rng = np.random.default_rng(0)
    options = [[(int(s), float(c)) for s, c in zip(np.cumsum(rng.integers(900, 1100, 9)), np.sort(rng.random(9))[::-1])]
               for _ in range(14)]  # fmt: skip
    budget = int(sum(o[4][0] for o in options)) + 321
    whole = allocate(options, budget)
    assert whole is not None and whole.optimal
    monkeypatch.setattr(module, "PAIRS", 0)
    found = allocate(options, budget)
    assert found is not None and not found.optimal and found.bound <= whole.cost <= found.cost
