"""The lock of outputs in buckets, over a bucket in memory: one holder at a time, whatever the others and the network
do."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from quantcli.errors import QuantcliError
from quantcli.stores.remote import lock
from quantcli.stores.remote.lock import ExistsError, Lock, Small

URL = "s3://models/.w4.quantcli-partial/lock"


@dataclass
class Bucket:
    """Small objects with conditions, as S3 has them. failing: requests that get no answer from now on; losing: those
    that take place, and whose answers are lost."""

    held: dict[str, tuple[bytes, str, float]] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    failing: int = 0
    losing: int = 0
    puts: int = 0
    turn: threading.Lock = field(default_factory=threading.Lock)

    def put(self, url: str, content: bytes, *, create: bool = False, match: str | None = None) -> str:
        if self.losing:
            self.losing -= 1
            self._put(url, content, create=create, match=match)  # and again, as botocore does
        return self._put(url, content, create=create, match=match)

    def _put(self, url: str, content: bytes, *, create: bool, match: str | None) -> str:
        with self.turn:
            self.puts += 1
            if self.failing:
                self.failing -= 1
                raise QuantcliError("no answer", place=[url])
            found = self.held.get(url)
            if (create and found is not None) or (match is not None and (found is None or found[1] != match)):
                raise ExistsError
            tag = str(next(self.numbers))
            self.held[url] = content, tag, time.monotonic()
            return tag

    def get(self, url: str) -> Small | None:
        with self.turn:
            found = self.held.get(url)
            return None if found is None else Small(found[0], found[1], time.monotonic() - found[2])

    def delete(self, urls: Sequence[str]) -> None:
        with self.turn:
            for url in urls:
                self.held.pop(url, None)


def until(true: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_one_holds_it_at_a_time() -> None:
    bucket = Bucket()
    first = Lock(URL, "s3://models/w4", bucket)
    first.check()
    with pytest.raises(QuantcliError, match="s3://models/w4: another run is writing it; wait until it has ended"):
        Lock(URL, "s3://models/w4", bucket)
    first.end()
    second = Lock(URL, "s3://models/w4", bucket)
    second.end()
    assert bucket.held == {}


def test_one_that_was_not_renewed_is_taken_over_and_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket()
    first = Lock(URL, "s3://models/w4", bucket)
    monkeypatch.setattr(lock, "DEAD", -1.0)
    second = Lock(URL, "s3://models/w4", bucket)
    with pytest.raises(QuantcliError, match="another run has taken over"):
        first.check()
    first.end()
    second.check()
    assert URL in bucket.held, "the lock is the second one's"
    second.end()


def test_it_is_renewed_over_failed_requests_until_another_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.01)
    bucket = Bucket()
    first = Lock(URL, "s3://models/w4", bucket)
    until(lambda: bucket.puts > 3)
    bucket.failing = 2
    until(lambda: bucket.failing == 0 and bucket.puts > 8)
    first.check()
    bucket.put(URL, b"{}")
    until(lambda: first.lost)
    with pytest.raises(QuantcliError, match="another run has taken over"):
        first.check()
    first.end()
    assert bucket.held[URL][0] == b"{}"


def test_of_two_that_take_over_one_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have read the lock of a dead run; the other one was faster. And one that ended in between is none."""
    bucket = Bucket()
    bucket.put(URL, b"not JSON")
    monkeypatch.setattr(lock, "DEAD", -1.0)
    read = bucket.get

    def slower(url: str) -> Small | None:
        found = read(url)
        bucket.put(url, b"{}")
        return found

    monkeypatch.setattr(bucket, "get", slower)
    with pytest.raises(QuantcliError, match="another run is writing it; wait until it ends"):
        Lock(URL, "s3://models/w4", bucket)

    def ended(url: str) -> Small | None:
        bucket.delete([url])
        return read(url)

    monkeypatch.setattr(bucket, "get", ended)
    Lock(URL, "s3://models/w4", bucket).end()
    assert bucket.held == {}


def test_answers_that_are_lost_do_not_make_the_lock_another_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is made again finds the lock that its first try has written: when it is taken, when it is taken
    over, and when it is renewed."""
    bucket = Bucket(losing=1)
    first = Lock(URL, "s3://models/w4", bucket)
    first.check()
    first.end()
    bucket.put(URL, b"left by a dead run")
    monkeypatch.setattr(lock, "DEAD", -1.0)
    monkeypatch.setattr(lock, "BEAT", 0.01)
    bucket.losing = 1
    second = Lock(URL, "s3://models/w4", bucket)
    second.check()
    bucket.losing, before = 1, bucket.puts
    until(lambda: bucket.puts > before + 4)
    second.check()
    second.end()
    assert bucket.held == {}
