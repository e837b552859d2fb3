"""A network link for measurements: a proxy of TCP with a rate and a latency, which all connections share.

    python tests/bench/link.py http://127.0.0.1:9000 [--latency 50] [--rate 100]

It prints the address where it listens. Each way carries so many megabytes a second in all, and half the latency passes
until bytes arrive. A connection takes a round trip to be made, and begins slowly, as TCP does: with 10 segments in
flight, twice as many after each round trip, half as many for each quarter of a second in which it is idle. Nothing is
lost, so that this is the best a link of that rate and latency can be. It takes 0.9 s of processor time for 1 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from urllib.parse import urlsplit

CHUNK = 1 << 18
"""Bytes of a connection that pass before it is another's turn."""
FIRST, MOST = 10 * 1460, 4 << 20
"""Bytes in flight of a new connection, and of one that has been busy, as Linux has them by default."""
IDLE = 0.25
QUEUE, BURST = 0.004, 0.03
"""Seconds that bytes wait for their turn at most, and seconds of unused rate that may be used later: so much too late
the proxy is woken on a machine that is busy."""


class _Lane:
    """One direction of the link. free: when the bytes before have passed."""

    def __init__(self, rate: float, delay: float) -> None:
        self.rate, self.delay, self.free = rate, delay, 0.0

    def passed(self, size: int, now: float) -> float:
        """When bytes that are sent now arrive."""
        self.free = max(self.free, now - BURST) + size / self.rate
        return max(self.free, now) + self.delay


class _Way:
    """One direction of a connection, from a socket to another. flying: what is on its way, and when it arrives; acks:
    how much was delivered, and when its sender knows."""

    def __init__(self, source: socket.socket, sink: socket.socket, lane: _Lane, opens: float) -> None:
        self.source, self.sink, self.lane, self.opens = source, sink, lane, opens
        self.flying = deque[tuple[float, memoryview]]()
        self.acks = deque[tuple[float, int]]()
        self.window, self.inside, self.last = FIRST, 0, opens
        self.readable = self.ended = self.closed = False

    def take(self, now: float) -> bool:
        """Send a chunk, where there is one and it may be sent; whether there was one."""
        while self.acks and self.acks[0][0] <= now:
            size = self.acks.popleft()[1]
            self.inside -= size
            self.window = min(self.window + size, MOST)
        if not self.readable or self.ended or now < self.opens or self.inside >= self.window:
            return False
        if not self.inside and now - self.last > IDLE:
            self.window = max(FIRST, self.window >> min(30, int((now - self.last) / IDLE)))
        try:
            got = self.source.recv(min(CHUNK, self.window - self.inside))
        except BlockingIOError:
            self.readable = False
            return False
        except OSError:
            got = b""
        self.ended = not got
        self.inside, self.last = self.inside + len(got), now
        self.flying.append((self.lane.passed(len(got), now), memoryview(got)))
        return True

    def deliver(self, now: float) -> None:
        """Hand over what has arrived."""
        while self.flying and self.flying[0][0] <= now:
            content = self.flying.popleft()[1]
            try:
                sent = self.sink.send(content) if len(content) else 0
                if not len(content):
                    self.closed = True
                    self.sink.shutdown(socket.SHUT_WR)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.closed = self.ended = True
                return
            if sent:
                self.acks.append((now + self.lane.delay, sent))
            if sent < len(content):
                self.flying.appendleft((now + 0.001, content[sent:]))
                return

    def next(self, now: float) -> float:
        """When it has something to do, beside what its sockets tell."""
        times = [self.flying[0][0]] if self.flying else []
        if self.readable and not self.ended:
            waits = self.acks[0][0] if self.acks and self.inside >= self.window else max(self.opens, now)
            if self.acks or self.inside < self.window:
                times.append(max(waits, self.lane.free - QUEUE))
        return min(times, default=now + 60)


class Link:
    """The proxy. target: host and port of the server behind it."""

    def __init__(self, target: tuple[str, int], rate: float, latency: float) -> None:
        self._target, self._latency = target, latency
        self._lanes = _Lane(rate, latency / 2), _Lane(rate, latency / 2)
        self._ways: list[_Way] = []
        self._selector = selectors.DefaultSelector()
        self._listening = _small(socket.socket())
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen(256)
        self._selector.register(self._listening, selectors.EVENT_READ)
        self.port: int = self._listening.getsockname()[1]

    def serve(self) -> None:
        """Carry bytes for as long as the process lives."""
        while True:
            now = time.monotonic()
            wait = min((way.next(now) for way in self._ways), default=now + 60) - now
            for key, _ in self._selector.select(max(0.0, wait)):
                if key.fileobj is self._listening:
                    self._accept()
                else:
                    key.data.readable = True
                    self._selector.unregister(key.fileobj)
            now = time.monotonic()
            for way in self._ways:
                way.deliver(now)
            for lane in self._lanes:
                self._send(lane, now)
            self._watch()

    def _send(self, lane: _Lane, now: float) -> None:
        """Chunks of each connection in turn, until the link is busy."""
        busy = [way for way in self._ways if way.lane is lane]
        while busy and lane.free < now + QUEUE:
            busy = [way for way in busy if lane.free < now + QUEUE and way.take(now)]
        if busy:  # the next turn begins with another
            self._ways.append(self._ways.pop(self._ways.index(busy[0])))

    def _accept(self) -> None:
        near, _ = self._listening.accept()
        far = socket.create_connection(self._target)
        for one in (near, far):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opens = time.monotonic() + self._latency
        self._ways += [_Way(near, far, self._lanes[0], opens), _Way(far, near, self._lanes[1], opens)]

    def _watch(self) -> None:
        """Wait for bytes where there were none, and forget connections that have ended."""
        watched = self._selector.get_map()
        for way in self._ways:
            if not way.readable and not way.ended and way.source not in watched:
                self._selector.register(way.source, selectors.EVENT_READ, way)
        done = {way.source for way in self._ways if way.closed}
        for way in [w for w in self._ways if w.source in done and w.sink in done]:
            if way.source in watched:
                self._selector.unregister(way.source)
            way.source.close()
            self._ways.remove(way)


def _small(listening: socket.socket) -> socket.socket:
    """A socket whose connections hold little: what they hold has not passed the link yet."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return listening


@contextlib.contextmanager
def link(address: str, *, rate: float, latency: float) -> Iterator[str]:
    """The address of a server behind a link, of so many megabytes and milliseconds; it is a process of its own."""
    words = [sys.executable, __file__, address, "--rate", str(rate), "--latency", str(latency)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    """Carry bytes until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--rate", type=float, default=100.0, help="megabytes a second, each way")
    parser.add_argument("--latency", type=float, default=50.0, help="milliseconds of a round trip")
    given = parser.parse_args()
    behind = urlsplit(given.address)
    carrying = Link((behind.hostname or "", behind.port or 80), given.rate * 1e6, given.latency / 1e3)
    print(f"http://127.0.0.1:{carrying.port}", flush=True)
    carrying.serve()


if __name__ == "__main__":
    main()
