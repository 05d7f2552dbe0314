"""Ways to map a function over plans: one after another, on threads, or in processes. Results come in their order.

Threads are enough on one machine: reading, decoding, resizing, encoding and hashing all let go of the interpreter lock
(ADR 0004). Processes show that a plan and what is done with it can be sent away, as an engine on a cluster will.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar, get_args

from imgprep.errors import SpecError, WorkerDiedError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Event

P = TypeVar("P")
R = TypeVar("R")
Tick = Callable[[], None]

Engine = Literal["threads", "processes"]

_AHEAD: Final = 2
"""Plans a worker that are handed out at once: one that it works on, one that waits, so that it never does."""


class Executor(Protocol):
    """Maps a function over plans."""

    def map(self, function: Callable[[P, Tick], R], plans: Iterable[P], *, tick: Tick) -> Generator[R, None, None]:
        """Apply ``function`` to each plan and yield the results in the order of the plans.

        Plans are taken from the iterable as workers become free, so that it may make them one by one.

        Args:
            function: Called with a plan and a tick. It calls the tick once for each sample that is done, which reports
                progress and is where it may be stopped. An engine that sends it away needs one that can be pickled,
                and so the plans and the results.
            plans: What to do.
            tick: Told of each sample, maybe from another thread.

        Yields:
            The results. When a call raises, the others are called off and the error is raised. Close the generator to
            leave early: the work has stopped when closing returns.
        """


class SerialExecutor:
    """One plan after another, in this thread."""

    def map(self, function: Callable[[P, Tick], R], plans: Iterable[P], *, tick: Tick) -> Generator[R, None, None]:
        """See :class:`Executor`."""
        for plan in plans:
            yield function(plan, tick)


class ThreadExecutor:
    """Several plans at once, on threads of this process.

    Args:
        workers: Number of threads, 1 or more.
    """

    def __init__(self, workers: int) -> None:
        self.workers = _at_least_one(workers)

    def map(self, function: Callable[[P, Tick], R], plans: Iterable[P], *, tick: Tick) -> Generator[R, None, None]:
        """See :class:`Executor`."""
        stop = threading.Event()

        def stoppable_tick() -> None:
            if stop.is_set():
                raise CancelledError
            tick()

        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="imgprep")
        try:
            yield from _in_order(plans, lambda plan: pool.submit(function, plan, stoppable_tick), self.workers)
        finally:
            # Also reached by Ctrl-C: running plans stop at their next tick, so leaving takes one sample's time.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


class ProcessExecutor:
    """Several plans at once, in processes of their own, which die with this one.

    Args:
        workers: Number of processes, 1 or more.
    """

    def __init__(self, workers: int) -> None:
        self.workers = _at_least_one(workers)

    def map(self, function: Callable[[P, Tick], R], plans: Iterable[P], *, tick: Tick) -> Generator[R, None, None]:
        """See :class:`Executor`.

        Raises:
            WorkerDiedError: A process was killed.
        """
        # A fork would take over locks that threads of this process hold.
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        ticks, told = context.Pipe(duplex=False)
        lock = context.Lock()
        pool = ProcessPoolExecutor(
            self.workers, mp_context=context, initializer=_begin_worker, initargs=(stop, told, lock, os.getpid())
        )
        counter = threading.Thread(target=_count_ticks, args=(ticks, tick), name="imgprep-ticks", daemon=True)
        counter.start()
        try:
            yield from _in_order(plans, lambda plan: pool.submit(_work, function, plan), self.workers)
        except BrokenProcessPool:
            raise WorkerDiedError(
                "a worker process died, maybe killed for want of memory",
                "run the same command again, what was finished is kept; fewer --workers take less memory",
            ) from None
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            with contextlib.suppress(OSError):
                told.send_bytes(b"")
            counter.join()
            ticks.close()
            told.close()


def _at_least_one(workers: int) -> int:
    if workers < 1:
        raise SpecError(f"workers must be 1 or more, got {workers}")
    return workers


def _in_order(plans: Iterable[P], submit: Callable[[P], Future[R]], workers: int) -> Iterator[R]:
    """Hand out plans as workers become free; the results in the order of the plans."""
    waiting: deque[Future[R]] = deque()
    for plan in plans:
        waiting.append(submit(plan))
        if len(waiting) >= workers * _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


# In a worker process.

_PR_SET_PDEATHSIG: Final = 1
"""From linux/prctl.h: the signal a process gets when its parent ends."""

_worker: dict[str, Any] = {}


def _begin_worker(stop: Event, told: Connection, lock: Any, parent: int) -> None:
    # Ctrl-C reaches the whole group: the parent is the one to act on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    _worker.update(stop=stop, told=told, lock=lock)


def _work(function: Callable[[P, Tick], R], plan: P) -> R:
    stop, told, lock = _worker["stop"], _worker["told"], _worker["lock"]

    def tick() -> None:
        if stop.is_set():
            raise CancelledError
        with lock:
            told.send_bytes(b".")

    return function(plan, tick)


def _count_ticks(ticks: Connection, tick: Tick) -> None:
    with contextlib.suppress(EOFError, OSError):
        while ticks.recv_bytes():
            tick()


def make_executor(workers: int, engine: Engine = "threads") -> Executor:
    """An executor with so many workers; 0 means one for each processor this process may use.

    Raises:
        SpecError: The number is negative, or there is no such engine.
    """
    if engine not in get_args(Engine):
        raise SpecError(f"the engine must be one of {', '.join(get_args(Engine))}, got {engine!r}")
    if workers == 0:
        workers = len(os.sched_getaffinity(0))
    if engine == "processes":
        return ProcessExecutor(workers)
    return SerialExecutor() if workers == 1 else ThreadExecutor(workers)
