"""Workers of Dask: connecting to a scheduler, or starting one on this machine, and what its errors mean.

The passes know nothing of Dask: they take a `Crew`, whose executor is the one of Dask's client. A worker that is killed
is started again by its nanny where it has one, and the scheduler gives what it was at to others.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import re
import signal
import time
import traceback
import warnings
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError as Cancelled
from concurrent.futures import Executor
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, NamedTuple

from quantcli import __version__
from quantcli.errors import QuantcliError, UsageError, listed, printable
from quantcli.passes import performing
from quantcli.passes.batches import Crew
from quantcli.waiting import interruptible

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

OPTION = "--dask"

LOCAL = re.compile(r"local(?::([1-9][0-9]{0,2}))?")
"""Workers on this machine, and how many."""

PATIENCE = 15
"""Seconds to wait for a scheduler, and for its first worker."""

CONNECTIONS = 5
"""How often a scheduler is asked for a connection: Dask's client asserts that the first message it is sent comes alone,
and gives up where one that the scheduler sends to all clients, for another run's sake, comes with it."""

RETRIES = 2
"""How often work is tried again whose worker met an error that quantcli does not know, such as one of the system."""

NEED, NEED_THREAD = 192 << 20, 64 << 20
"""Bytes that a worker needs, and for every thread of it: Python with Dask and numpy takes 140 MB, a pass 20 to 60 MB a
thread whatever the model's size."""


class Facts(NamedTuple):
    """What a worker runs."""

    quantcli: str
    python: str
    kernels: str


def facts() -> Facts:
    """Those of this process."""
    from quantcli import library

    return Facts(__version__, ".".join(platform.python_version_tuple()[:2]), library.name())


@contextlib.contextmanager
def crew(
    where: str,
    *,
    threads: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Crew]:
    """The workers of a scheduler at an address, or with `local:N` N processes on this machine, one thread each.
    threads: of a worker for each piece of work. say: called with what slows the work down. Raises UsageError where the
    extra is not installed or the address is none, QuantcliError where nothing answers there, or a worker has another
    version."""
    local = LOCAL.fullmatch(where)
    need = NEED + NEED_THREAD * (threads or 1)
    with contextlib.ExitStack() as stack:
        _quiet()
        client = _started(stack, local) if local is not None else _connected(stack, where)
        found = client.scheduler_info(n_workers=-1)["workers"]
        _check_memory(found, need)
        _check_facts(_everywhere(client, facts), say)
        executor = client.get_executor(retries=RETRIES)  # type: ignore[no-untyped-call]
        stack.callback(_shut_down, executor)
        try:
            yield Crew(
                executor=executor,
                size=sum(worker["nthreads"] for worker in found.values()),
                threads=threads or 1,
                everywhere=lambda function: list(_everywhere(client, function).values()),
                explained=_explained,
                missed=_missed,
                lost=lambda: None if client.status == "running" else _lost(),
            )
        finally:
            if client.status == "running":
                with contextlib.suppress(Exception):
                    client.run(performing.forget, on_error="ignore")


def _quiet() -> None:
    """Import Dask, with its logs and warnings kept off standard error. Raises UsageError where it is not installed."""
    try:
        import distributed  # noqa: F401
    except ImportError:
        problem, hint = "the package distributed is not installed", "pip install 'quantcli[dask]'"
        raise UsageError(problem, place=[OPTION], hint=hint) from None
    packages = ("distributed", "tornado", "asyncio")
    own = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in packages]
    for name in {*packages, *own}:  # distributed gives some of its own a level
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"distributed(\..*)?")


def _started(stack: contextlib.ExitStack, local: re.Match[str]) -> Client:
    """A client of a scheduler in this process, with workers in others."""
    from distributed import Client, LocalCluster
    from distributed.system import MEMORY_LIMIT

    from quantcli.passes.tiles import default_threads

    count = int(local[1] or default_threads())
    resource_tracker.ensure_running()  # else it is in the thread that starts workers, and unblocks SIGINT there
    try:
        # Ctrl-C reaches every process of a terminal. Workers leave it to this one to end them: it is blocked in the
        # thread that starts them, which takes that from this one, and in the workers, which take it from that thread.
        with _blocked(signal.SIGINT):
            cluster = stack.enter_context(
                LocalCluster(  # type: ignore[no-untyped-call]
                    n_workers=0,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    scheduler_kwargs={"dashboard": False},
                    dashboard_address="127.0.0.1:0",
                    memory_limit=MEMORY_LIMIT // count,
                    silence_logs=logging.CRITICAL + 1,
                )
            )
        client: Client = stack.enter_context(Client(cluster, set_as_default=False))  # type: ignore[no-untyped-call]
        cluster.scale(count)
        _all_start(client, cluster, count)
    except (OSError, RuntimeError) as error:
        raise QuantcliError(f"no workers could be started: {_line(error)}", place=[OPTION]) from None
    return client


def _all_start(client: Client, cluster: LocalCluster, count: int) -> None:
    """Wait until all workers of a cluster have started. Raises QuantcliError as soon as one has ended before that,
    which Dask neither starts again nor tells, and OSError where they take too long."""
    until = time.monotonic() + 4 * PATIENCE
    while True:
        try:
            return client.wait_for_workers(count, timeout=0.5)
        except OSError:
            ended = sum(worker.status.name == "failed" for worker in cluster.workers.values())
            if ended:
                problem = f"{ended} of {count} processes ended while they started, as they do where memory runs out"
                raise QuantcliError(problem, place=[OPTION], hint="start fewer") from None
            if time.monotonic() > until:
                raise


@contextlib.contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    """A signal that arrives inside is raised at the end, and never in threads and processes that begin inside."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _connected(stack: contextlib.ExitStack, address: str) -> Client:
    """A client of a scheduler that is running."""
    from distributed import Client

    place, hint = [f"{OPTION} {printable(address, 200)}"], "name one such as tcp://host:8786, or local:4"
    if address.startswith("local:"):
        raise UsageError("not a number of workers from 1 to 999", place=place, hint=hint)

    def connected() -> Client:
        for _ in range(CONNECTIONS):
            # One that fails is held and closed: garbage is closed at any moment, and if that is the start of the next
            # one, in the same thread, both wait for the same lock of Dask without end.
            client: Client = Client.__new__(Client)
            try:
                client.__init__(address, timeout=PATIENCE, set_as_default=False)  # type: ignore[misc]
            except AssertionError:
                client.close()  # type: ignore[no-untyped-call]
            else:
                return client
        raise QuantcliError("the scheduler is busy with other runs", place=place, hint="try again later")

    try:  # where something else than a scheduler answers, Dask waits without end, whatever time it is given
        client: Client = stack.enter_context(interruptible(connected, seconds=PATIENCE + 5))
    except ValueError as error:
        raise UsageError(f"not an address of a scheduler: {_line(error)}", place=place, hint=hint) from None
    except OSError:
        raise QuantcliError("no scheduler of Dask answers", place=place, hint="start one with dask scheduler") from None
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except OSError:
        raise QuantcliError("the scheduler has no workers", place=place, hint="start some with dask worker") from None
    return client


def _everywhere(client: Client, function: Callable[[], Any]) -> Mapping[str, Any]:
    """What a function returns on every worker, by address. Raises QuantcliError where it cannot be called there."""
    try:
        found: dict[str, Any] = client.run(function, on_error="return")
    except Exception as error:
        raise _explained(error) or error from None
    for address, result in found.items():
        if isinstance(result, Exception):
            if isinstance(result, ImportError) or "quantcli" in str(result):
                raise QuantcliError(
                    f"it has no quantcli {__version__}: {_line(result)}",
                    place=[f"worker {address}"],
                    hint="install the same version everywhere",
                )
            raise _explained(result) or result
    return found


def _here() -> Facts:
    """What this process runs."""
    return facts()


def _check_facts(found: Mapping[str, Facts], say: Callable[[str], None]) -> None:
    """Raise QuantcliError where a worker has another version of quantcli or Python than this process, and say which
    have no native kernels: their results are the same, later."""
    here = _here()
    for address, there in found.items():
        for what, own, other in (("quantcli", here.quantcli, there.quantcli), ("Python", here.python, there.python)):
            if own != other:
                raise QuantcliError(
                    f"it has {what} {other}, and this process {own}",
                    place=[f"worker {address}"],
                    hint="install the same version everywhere",
                )
    slow = [address for address, there in found.items() if there.kernels == "numpy" != here.kernels]
    if slow:
        say(f"no native kernels on {listed(slow)}: about 5 times slower; see 'quantcli help install'")


def _check_memory(workers: Mapping[str, Any], need: int) -> None:
    """Raise QuantcliError where a worker may not take the memory that its work needs."""
    for address, worker in workers.items():
        limit, wanted = worker["memory_limit"], need + NEED_THREAD * (worker["nthreads"] - 1)
        if limit and limit < wanted:
            problem = f"it may take {limit} bytes of memory, and its work needs {wanted}"
            raise QuantcliError(problem, place=[f"worker {address}"], hint="start it with a larger --memory-limit")


def _explained(error: BaseException) -> QuantcliError | None:
    """What an error of Dask means; None for another one."""
    from distributed import CancelledError as Lost
    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError

    if isinstance(error, KilledWorker):
        problem = f"workers ended {RETRIES + 2} times during the same work, as they do when they run out of memory"
        return QuantcliError(problem, place=[OPTION], hint="allow them more memory, or use fewer at a time")
    if isinstance(error, (Lost, CancelledError, Cancelled, CommClosedError, TimeoutError)):
        return _lost()
    return None


def _missed(error: BaseException) -> bool:
    """Whether a result did not arrive: where the worker that holds it ends in the moment in which it is fetched, Dask's
    executor takes it for the three parts of an exception, and fails at that itself."""
    frames = list(traceback.walk_tb(error.__traceback__))
    inner = frames[-1][0].f_globals.get("__name__") if frames else None
    return isinstance(error, ValueError | TypeError | AttributeError) and inner == "distributed.cfexecutor"


def _lost() -> QuantcliError:
    return QuantcliError("the connection to the scheduler was lost", place=[OPTION], hint="run it again")


def _shut_down(executor: Executor) -> None:
    """Cancel what an executor was given, where its scheduler is still there."""
    with contextlib.suppress(Exception):
        executor.shutdown(wait=False)


def _line(error: BaseException) -> str:
    """An error in one line."""
    return printable(str(error).partition("\n")[0] or type(error).__name__, 200)
