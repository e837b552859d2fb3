"""A short run of every target of `make fuzz`, the same one every time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzz import mutate, targets

TRIES = 25


@pytest.mark.parametrize("name", targets.TARGETS)
def test_inputs_are_read_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a user can cause is an internal error, and what exits with 0 loads."""
    monkeypatch.chdir(tmp_path)
    target, chance = targets.TARGETS[name], random.Random(name)
    target.beside()
    seeds = [seed for seed in target.seeds() if seed]
    assert seeds
    for _ in range(TRIES):
        data = mutate.mutated(chance.choice(seeds), target.how, chance, seeds)
        found = targets.trial(target, data)
        assert found is None, (found, data)
