"""Threads: everything is done once, the first error is told, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from quantcli.passes.tiles import Crew, Task, default_threads

THREADS = [1, 2, 7]


@pytest.mark.parametrize("threads", THREADS)
def test_every_task_is_done_once(threads: int) -> None:
    done: list[int] = []
    Crew([lambda i=i: done.append(i) for i in range(500)], threads).run()  # type: ignore[misc]
    assert sorted(done) == list(range(500))
    Crew([], threads).run()


@pytest.mark.parametrize("threads", THREADS)
def test_tasks_may_lead_to_tasks(threads: int) -> None:
    """it may return further tasks, which are done before those that wait"""
    done: list[str] = []

    def parent(name: str) -> list[Task]:
        time.sleep(0.001)
        return [lambda i=i: done.append(f"{name}{i}") for i in range(3)]  # type: ignore[misc]

    tasks: list[Task] = [lambda n=name: parent(n) for name in "abcdef"]  # type: ignore[misc]
    Crew(tasks, threads).run()
    assert sorted(done) == [f"{name}{i}" for name in "abcdef" for i in range(3)]
    if threads == 1:
        assert done == sorted(done)


@pytest.mark.parametrize("threads", THREADS)
def test_the_earliest_error_is_raised(threads: int) -> None:
    """the earliest task's error is the one that is raised"""
    def fail(number: int) -> None:
        time.sleep(0.02 if number == 3 else 0)  # the later error comes first
        if number >= 3:
            raise ValueError(number)

    for _ in range(5):
        with pytest.raises(ValueError, match=r"^3$"):
            Crew([lambda i=i: fail(i) for i in range(50)], threads).run()  # type: ignore[misc]


@pytest.mark.parametrize("threads", THREADS)
def test_an_error_ends_the_work(threads: int) -> None:
    taken: list[int] = []

    def tasks() -> Iterator[Task]:
        for i in range(10_000):
            taken.append(i)
            yield lambda i=i: 1 / 0 if i == 5 else time.sleep(0.0005)  # type: ignore[misc,return-value]

    with pytest.raises(ZeroDivisionError):
        Crew(tasks(), threads).run()
    assert len(taken) < 100


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_errors_where_tasks_are_made(error: type[BaseException], threads: int) -> None:
    def tasks() -> Iterator[Task]:
        yield lambda: None
        raise error

    with pytest.raises(error):
        Crew(tasks(), threads).run()


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            Crew([lambda: time.sleep(0.01), lambda: 1 / 0] * 5, 4).run()  # type: ignore[list-item]
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_the_default_is_what_this_process_may_use() -> None:
    assert default_threads() >= 1
