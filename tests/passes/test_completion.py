"""Files that are completed while the next one is made: one at a time, in order, and no error is lost."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from quantcli.passes.completion import AT_ONCE, Completion


@pytest.mark.parametrize("beside", [True, False])
def test_files_are_completed_in_order_and_one_at_a_time(beside: bool) -> None:
    done, working = list[int](), threading.Lock()

    def complete(number: int) -> None:
        assert working.acquire(blocking=False), "two at a time"
        time.sleep(0.002)
        done.append(number)
        working.release()

    with Completion(beside=beside) as after:
        for number in range(20):
            after.begin(lambda number=number: complete(number))  # type: ignore[misc]
    assert done == list(range(20))


def test_the_next_file_is_made_meanwhile() -> None:
    made = threading.Event()
    with Completion(beside=True) as after:
        after.begin(lambda: None if made.wait(20) else pytest.fail("it was waited for"))
        made.set()


def test_a_file_that_must_be_complete_is_so_when_it_was_begun() -> None:
    done = list[str]()
    AT_ONCE.begin(lambda: done.append("complete"))
    assert done == ["complete"]


@pytest.mark.parametrize("how", ["check", "wait", "begin", "leave"])
def test_an_error_is_raised_at_the_next_step_and_nothing_is_completed_after_it(how: str) -> None:
    later = list[str]()

    def fail() -> None:
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"), Completion(beside=True) as after:
        after.begin(fail)
        if how == "check":
            while True:  # as a pass does before each tensor
                after.check()
        if how == "wait":
            after.wait()
        if how == "begin":
            after.begin(lambda: later.append("second"))
    assert not later


def test_an_error_of_the_next_file_is_raised_once_the_one_before_is_complete() -> None:
    """A run that goes on later finds all that was finished."""
    recorded = list[str]()

    def complete() -> None:
        time.sleep(0.05)
        recorded.append("first")

    with pytest.raises(ValueError, match="second"), Completion(beside=True) as after:
        after.begin(complete)
        raise ValueError("second")
    assert recorded == ["first"]


def test_after_a_signal_nothing_more_is_recorded_and_no_answer_is_waited_for() -> None:
    answer, ended, given_up, recorded = threading.Event(), threading.Event(), list[str](), list[str]()

    def complete() -> None:
        try:
            answer.wait(20)
            after.raise_if_given_up()
            recorded.append("first")
        finally:
            ended.set()

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Completion(beside=True) as after:
        after.begin(complete, lambda: given_up.append("first"))
        raise KeyboardInterrupt
    assert time.monotonic() - began < 10 and given_up == ["first"]
    answer.set()
    assert ended.wait(20) and not recorded


@pytest.mark.parametrize("ended", [None, ValueError("refused")])
def test_a_signal_while_the_last_file_is_waited_for_gives_it_up(ended: Exception | None) -> None:
    """Whether the run has come to its end or an error has ended it before."""
    begun, answer, given_up, recorded = threading.Event(), threading.Event(), list[str](), list[str]()

    def complete() -> None:
        begun.set()
        answer.wait(20)
        after.raise_if_given_up()
        recorded.append("last")

    def give_up() -> None:
        given_up.append("last")
        answer.set()

    def signalled() -> None:
        begun.wait(20)
        time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), Completion(beside=True) as after:
        after.begin(complete, give_up)
        threading.Thread(target=signalled, daemon=True).start()
        if ended is not None:
            raise ended
    assert given_up == ["last"] and not recorded
