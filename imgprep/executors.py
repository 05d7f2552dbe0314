"""Ways to map a function over plans: one after another, or on threads. Results come in the order of the plans.

Threads are enough on one machine: reading, decoding, resizing and encoding all let go of the interpreter lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from imgprep.errors import SpecError

P = TypeVar("P")
R = TypeVar("R")
Tick = Callable[[], None]


class Executor(Protocol):
    """Maps a function over plans."""

    def map(self, function: Callable[[P, Tick], R], plans: Iterable[P], *, tick: Tick) -> Generator[R, None, None]:
        """Apply ``function`` to each plan and yield the results in the order of the plans.

        Args:
            function: Called with a plan and a tick. It calls the tick once for each sample that is done, which reports
                progress and is where it may be stopped.
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
        if workers < 1:
            raise SpecError(f"workers must be 1 or more, got {workers}")
        self.workers = workers

    def map(self, function: Callable[[P, Tick], R], plans: Iterable[P], *, tick: Tick) -> Generator[R, None, None]:
        """See :class:`Executor`."""
        stop = threading.Event()

        def stoppable_tick() -> None:
            if stop.is_set():
                raise CancelledError
            tick()

        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="imgprep")
        try:
            futures: list[Future[R]] = [pool.submit(function, plan, stoppable_tick) for plan in plans]
            for future in futures:
                yield future.result()
        finally:
            # Also reached by Ctrl-C: running plans stop at their next tick, so leaving takes one sample's time.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def make_executor(workers: int) -> Executor:
    """An executor with so many workers; 0 means one for each processor this process may use.

    Raises:
        SpecError: The number is negative.
    """
    if workers == 0:
        workers = len(os.sched_getaffinity(0))
    return SerialExecutor() if workers == 1 else ThreadExecutor(workers)
