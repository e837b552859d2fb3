"""The driver of passes: all is done once, results are in order, the first error is told, nobody waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from quantcli.passes.tiles import Visit, begun, default_threads, walk

THREADS = [1, 2, 7]


def one_round(tasks: list[Callable[[], object]], found: list[object] | None = None) -> Visit:
    results = yield tasks
    if found is not None:
        found += results


def wait_and_give(number: int) -> int:
    time.sleep(0.001 * (number % 3))
    return number


@pytest.mark.parametrize("threads", THREADS)
def test_every_look_is_done_once_and_answered_in_order(threads: int) -> None:
    found: list[list[object]] = [[] for _ in range(20)]
    walk((one_round([partial(wait_and_give, i) for i in range(25)], f) for f in found), threads=threads)
    assert found == [list(range(25))] * 20
    walk([], threads=threads)
    walk([one_round([])], threads=threads)


@pytest.mark.parametrize("threads", THREADS)
def test_a_round_follows_when_all_of_the_one_before_is_done(threads: int) -> None:
    done: list[tuple[str, int]] = []
    sums: dict[str, int] = {}

    def visit(name: str) -> Visit:
        first: list[int] = yield [partial(wait_and_give, i) for i in range(9)]
        nothing: list[int] = yield []
        assert nothing == []
        before = len([d for d in done if d[0] == name])
        assert before == 0
        yield [partial(done.append, (name, i)) for i in first]
        sums[name] = sum(first)

    walk((visit(name) for name in "abcdef"), threads=threads)
    assert sums == dict.fromkeys("abcdef", 36)
    assert sorted(done) == [(name, i) for name in "abcdef" for i in range(9)]
    if threads == 1:
        assert done == sorted(done)


@pytest.mark.parametrize("threads", THREADS)
def test_visits_are_begun_when_their_time_has_come(threads: int) -> None:
    """what they hold is bounded by the threads, not by the model"""
    open_now, most = 0, 0
    lock = threading.Lock()

    def visit() -> Visit:
        nonlocal open_now, most
        with lock:
            open_now += 1
            most = max(most, open_now)
        yield [partial(time.sleep, 0.0005)] * 2
        yield [partial(time.sleep, 0.0005)] * 2
        with lock:
            open_now -= 1

    walk((visit() for _ in range(200)), threads=threads)
    assert open_now == 0
    assert most <= 2 * threads


def fail(number: int, *, first: int = 3) -> None:
    time.sleep(0.02 if number == first else 0)  # the later error comes first
    if number >= first:
        raise ValueError(number)


@pytest.mark.parametrize("threads", THREADS)
def test_the_earliest_error_is_raised(threads: int) -> None:
    for _ in range(5):
        with pytest.raises(ValueError, match=r"^3$"):
            walk([one_round([partial(fail, i) for i in range(50)])], threads=threads)
        with pytest.raises(ValueError, match=r"^3$"):
            walk((one_round([partial(fail, i)]) for i in range(50)), threads=threads)


@pytest.mark.parametrize("threads", THREADS)
def test_a_visit_may_catch_an_error_and_go_on(threads: int) -> None:
    """an error in a round is raised at its yield; of several the first in the round's order"""
    caught: list[str] = []
    after: list[list[int]] = []

    def visit() -> Visit:
        try:
            yield [partial(fail, i) for i in range(10)]
        except ValueError as error:
            caught.append(str(error))
            after.append((yield [partial(wait_and_give, i) for i in range(4)]))

    walk((visit() for _ in range(6)), threads=threads)
    assert caught == ["3"] * 6
    assert after == [[0, 1, 2, 3]] * 6


@pytest.mark.parametrize("threads", THREADS)
def test_an_error_between_rounds_ends_the_work(threads: int) -> None:
    def visit(number: int) -> Visit:
        yield [partial(wait_and_give, number)]
        raise KeyError(number)

    with pytest.raises(KeyError, match="0"):
        walk((visit(number) for number in range(1000)), threads=threads)


@pytest.mark.parametrize("threads", THREADS)
def test_an_error_ends_the_work(threads: int) -> None:
    begun_at: list[int] = []
    stopped: list[bool] = []

    def visit(number: int) -> Visit:
        begun_at.append(number)
        yield [partial(fail, number, first=5) if number <= 5 else partial(time.sleep, 0.0005)]

    with pytest.raises(ValueError, match=r"^5$"):
        walk((visit(i) for i in range(10_000)), threads=threads, stopped=lambda: stopped.append(True))
    assert len(begun_at) < 1000
    assert stopped


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_errors_where_visits_are_made(error: type[BaseException], threads: int) -> None:
    def visits() -> Iterator[Visit]:
        yield one_round([lambda: None])
        raise error

    with pytest.raises(error):
        walk(visits(), threads=threads)


@pytest.mark.parametrize("threads", THREADS)
def test_an_interrupt_is_not_for_visits(threads: int) -> None:
    """KeyboardInterrupt ends it"""

    def interrupt() -> None:
        raise KeyboardInterrupt

    def visit() -> Visit:
        try:
            yield [interrupt]
        except BaseException:
            return

    with pytest.raises(KeyboardInterrupt):
        walk([visit()], threads=threads)


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            walk([one_round([lambda: time.sleep(0.01), lambda: 1 / 0] * 5)], threads=4)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_progress_is_begun_with_its_total_and_advanced() -> None:
    told: list[int] = []

    class Bar:
        start = advance = staticmethod(told.append)

    advance = begun(Bar(), 10)
    advance(4)
    assert told == [10, 4]
    begun(None, 10)(4)


def test_the_default_is_what_this_process_may_use() -> None:
    assert default_threads() >= 1
