"""Work that is handed out: the figures of one machine whoever does it, however it is cut, and in whatever order."""

from __future__ import annotations

import os
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import BF16, run, save
from strategies import gaussian

from quantcli import DataError, QuantcliError, api
from quantcli.passes import batches, performing, verify_path
from quantcli.passes.batches import Crew, hand_out
from quantcli.passes.performing import Failed, Item, Opened, identity
from quantcli.passes.tiles import Visit
from quantcli.reports import measured
from quantcli.stores import open_source


class Shuffled(Executor):
    """Does the calls that wait in a random order, each as it arrives elsewhere: pickled."""

    def __init__(self, seed: int) -> None:
        self._random, self._waiting = random.Random(seed), list[tuple[Future[Any], bytes]]()
        self._new = threading.Condition()
        self.most = 0
        self.done = list[int]()
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """A call that waits."""
        future = Future[Any]()
        with self._new:
            self._waiting.append((future, pickle.dumps((function, arguments, named))))
            self.most = max(self.most, len(self._waiting))
            self._new.notify()
        return future

    def _work(self) -> None:
        while True:
            with self._new:
                while not self._waiting:
                    self._new.wait()
                at = self._random.randrange(len(self._waiting))
                future, call = self._waiting.pop(at)
            if not future.set_running_or_notify_cancel():
                continue
            function, arguments, named = pickle.loads(call)
            try:
                result = function(*arguments, **named)
                future.set_result(pickle.loads(pickle.dumps(result)))
            except Exception as error:
                future.set_exception(error)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A model, with tensors of several tiles among small ones, and what quantize makes of it."""
    folder = tmp_path_factory.mktemp("models")
    path = save(folder / "a.safetensors", {
        **{f"layers.{i}.weight": gaussian(64, 128, seed=i) for i in range(12)},
        "large": gaussian(2100, 1024, seed=50).astype(BF16), "norm": gaussian(64, seed=51),
        "ids": np.arange(100, dtype=np.int64)})  # fmt: skip
    made = folder / "b.safetensors"
    assert run("quantize", path, "-o", made, "--bits", 3, "-q").code == 0
    return str(path), str(made)


def compared(models: tuple[str, str], crew: Crew | None) -> Any:
    report = api.compare(*models, crew=crew)
    return replace(report, summary=replace(report.summary, seconds=0))


@pytest.fixture(scope="module")
def expected(models: tuple[str, str]) -> Any:
    return compared(models, None)


@given(seed=st.integers(0, 1000), size=st.integers(1, 9), most=st.sampled_from([1, 1 << 15, 1 << 17, 1 << 21, 1 << 28]))
def test_figures_do_not_depend_on_who_did_what(
    models: tuple[str, str], expected: Any, seed: int, size: int, most: int
) -> None:
    """results are put together in the order of the tensors, and those of a tensor's tasks in their own"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "LEAST", most)
        patch.setattr(batches, "MOST", most)
        executor = Shuffled(seed)
        assert compared(models, Crew(executor=executor, size=size)) == expected
        assert executor.most <= batches.AHEAD * size, "what waits is bounded"


def test_every_pass_in_processes(models: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """any concurrent.futures.Executor: here processes of the standard library"""
    monkeypatch.setattr(batches, "LEAST", 1 << 16)
    monkeypatch.setattr(batches, "MOST", 1 << 16)
    monkeypatch.chdir(tmp_path)  # paths must not depend on where a worker is
    before, after = (os.path.relpath(path) for path in models)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=os.chdir, initargs=("/",)) as executor:
        crew = Crew(executor=executor, size=2)
        assert compared((before, after), crew).tensors == compared((before, after), None).tensors
        for original in (None, before):
            found, alone = (
                verify_path.verify_path(after, original, statistics=None, threads=1, progress=None, crew=one)
                for one in (crew, None)
            )
            assert found[0] == alone[0] and [*found[1]] == [*alone[1]] and found[0].passed
        how = measured.Measuring(
            in_detail=True,
            theory=True,
            check_digests=True,
            as_float=False,
            threads=1,
            crew=crew,
            bar=_no_bar,
            say=print,
        )
        reports = [measured.report(after, before, None, replace(how, crew=one)) for one in (crew, None)]
        assert repr(reports[0].tensors) == repr(reports[1].tensors)  # theory has NaN
        assert any(t.theory for t in reports[0].tensors)


@contextmanager
def _no_bar(title: str) -> Iterator[Any]:
    class Bar:
        def start(self, total: int) -> None: ...
        def advance(self, nbytes: int) -> None: ...

    yield Bar()


def test_what_is_wrong_is_found_by_workers_too(models: tuple[str, str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    data = bytearray(Path(models[1]).read_bytes())
    data[-40] ^= 0x55
    broken.write_bytes(data)
    alone, found = (
        verify_path.verify_path(str(broken), models[0], statistics=None, threads=2, progress=None, crew=crew)[0]
        for crew in (None, Crew(executor=Shuffled(1), size=2))
    )
    assert alone.findings and alone == found


# ---- errors -----------------------------------------------------------------------------------------------------


def _fails(number: int) -> int | Failed:
    return Failed(DataError(f"tensor {number}")) if number in (7, 11, 30) else number


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_the_error_of_the_earliest_is_raised(seed: int, size: int) -> None:
    calls = ((n, partial(_fails, n)) for n in range(40))
    done = list[int]()
    with pytest.raises(DataError, match=r"tensor 7$"):
        for number, result in hand_out(calls, Crew(executor=Shuffled(seed), size=size)):
            assert number == result
            done.append(number)
    assert {0, 1, 2, 3, 4, 5, 6} <= set(done)


def test_what_a_lost_executor_means(models: tuple[str, str]) -> None:
    class Lost(Executor):
        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            future = Future[Any]()
            future.set_exception(BrokenExecutor("a process ended"))
            return future

    crew = Crew(executor=Lost(), size=1, explained=lambda error: QuantcliError(f"lost: {error}"))
    with pytest.raises(QuantcliError, match="lost: a process ended"):
        compared(models, crew)
    with pytest.raises(BrokenExecutor):
        compared(models, Crew(executor=Lost(), size=1))


class Nothing:
    """A pass that reads one file."""

    def __init__(self, path: str) -> None:
        self.sources = [open_source(path)]

    def visit(self, item: Item, advance: Callable[[int], None]) -> Visit:
        [found] = yield [lambda: 1]
        return found


@contextmanager
def _nothing(path: str) -> Iterator[Nothing]:
    yield Nothing(path)


class Silent(Executor):
    """Takes calls, and never does them: workers that went away without a word."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """A call that is never done."""
        return Future[Any]()


def test_workers_that_are_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked for where nothing comes back; what they were at is not waited for."""
    monkeypatch.setattr(batches, "PATIENCE", 0.01)
    asked = list[int]()

    def lost() -> QuantcliError | None:
        asked.append(len(asked))
        return QuantcliError("gone") if len(asked) == 3 else None

    crew = Crew(executor=Silent(), size=2, lost=lost)
    with pytest.raises(QuantcliError, match="gone"):
        list(hand_out(((n, partial(int, n)) for n in range(9)), crew))
    assert len(asked) == 3


def test_a_worker_with_another_file_or_none(tmp_path: Path) -> None:
    """the worker sees the file with the same identity and size"""
    here = save(tmp_path / "here.safetensors", {"a": gaussian(64, 64, seed=1)})
    there = tmp_path / "there" / "here.safetensors"
    there.parent.mkdir()
    opened = Opened(opening=partial(_nothing, str(there)), run="1", files=identity([open_source(str(here))]))

    def why() -> str:
        found = performing.ready(replace(opened, run=str(random.random())))
        return "" if found is None else str(found.error)

    missing = "there/here.safetensors: no such file or directory; every worker must find the same files under the same"
    assert "process" in why() and missing in why()
    save(there, {"a": gaussian(64, 64, seed=2)})
    assert "this is another file than the one asked for; every worker must find the same files" in why()
    save(there, {"a": gaussian(64, 65, seed=1)})
    assert "another file than the one asked for (" in why()
    there.write_bytes(here.read_bytes())
    assert why() == ""
    other = replace(opened, version="0.0.1", run="2")
    found = performing.ready(other)
    assert found is not None and "and 0.0.1 hands out the work; install the same version" in str(found.error)


def test_a_model_is_opened_once_for_a_run(models: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """one worker opens a source once and keeps it"""
    monkeypatch.setattr(batches, "LEAST", 1)
    monkeypatch.setattr(batches, "MOST", 1)
    performing.forget()
    compared(models, Crew(executor=Shuffled(3), size=1))
    assert len(performing._HELD) == 1
    compared(models, Crew(executor=Shuffled(4), size=1))
    assert len(performing._HELD) == 1
    performing.forget()
    assert not performing._HELD
