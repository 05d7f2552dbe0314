"""Ways to map a function over plans: one after another, on threads, or in processes. Results come in their order.

Threads do for what shrinks pictures: decoding, resizing, encoding and hashing let go of the interpreter lock. Processes
are for what copies many small ones, and show that a plan can be sent away, as an engine on a cluster will (ADR 0004).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Final, Generic, Literal, Protocol, TypeVar, get_args

from imgprep.errors import SpecError, WorkerDiedError

P = TypeVar("P")
R = TypeVar("R")
Tick = Callable[[], None]

Engine = Literal["auto", "threads", "processes"]

_AHEAD: Final = 2
"""Plans a worker that are handed out at once: one that it works on, one that waits, so that it never does."""

_PATIENCE: Final = 2.0
"""Seconds that worker processes have to come to their next tick when they are called off; then they are killed."""

_TICKS_EVERY: Final = 0.05
"""Seconds for which a worker process keeps its ticks to itself."""


class Executor(Protocol):
    """Maps a function over plans; ``workers`` of them at once."""

    workers: int

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

    workers = 1

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
        own = threading.local()
        crew: list[_Worker[P, R]] = []

        def work(plan: P, tick: Tick) -> R:
            worker: _Worker[P, R] | None = getattr(own, "worker", None)
            if worker is None:
                worker = _Worker(function)
                crew.append(worker)
            # Left in the middle of a plan, it is not asked again: what it has to say would be about that plan.
            own.worker = None
            result, error = worker.ask(plan, tick)
            own.worker = worker
            if error is not None:
                raise error
            return result

        try:
            # Each thread has a process, and waits for it.
            yield from ThreadExecutor(self.workers).map(work, plans, tick=tick)
        finally:
            for worker in crew:
                worker.call_off()
            until = time.monotonic() + _PATIENCE
            for worker in crew:
                worker.close(until)


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


class _Worker(Generic[P, R]):
    """A process that works on one plan after another."""

    def __init__(self, function: Callable[[P, Tick], R]) -> None:
        # A fork would take over locks that threads of this process hold.
        context = multiprocessing.get_context("spawn")
        plans, self._plans = context.Pipe(duplex=False)
        self._answers, answers = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(function, plans, answers), daemon=True)
        # Ctrl-C reaches the whole group, but is for this process to act on. A process inherits the mask of the thread
        # that starts it; starting the tracker, which multiprocessing wants to be there, would take it off again.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            plans.close()
            answers.close()

    def ask(self, plan: P, tick: Tick) -> tuple[R, BaseException | None]:
        """Have a plan worked on; gives its result, or the error that came of it."""
        # That nobody is there to take it shows below.
        with contextlib.suppress(BrokenPipeError):
            self._plans.send(plan)
        while isinstance(message := self._receive(), int):
            for _ in range(message):
                tick()
        return message

    def _receive(self) -> int | tuple[R, BaseException | None]:
        try:
            message: int | tuple[R, BaseException | None] = self._answers.recv()
            return message
        except (EOFError, OSError):
            raise WorkerDiedError(
                "a worker process died, maybe killed for want of memory",
                "run the same command again, what was finished is kept; fewer --workers take less memory",
            ) from None

    def call_off(self) -> None:
        """Have it end: at once when it is idle, else at its next tick."""
        self._plans.close()
        self._answers.close()

    def close(self, until: float) -> None:
        """Wait for its end, at most until some time of the monotonic clock, then bring it about."""
        self._process.join(max(until - time.monotonic(), 0))
        self._process.kill()
        self._process.join()
        self._process.close()


# In a worker process.


def _serve(function: Callable[[P, Tick], R], plans: Connection, answers: Connection) -> None:
    """Work on plans until there are no more; send the number of ticks now and then, and what came of each plan."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    ticks = _Ticks(answers)
    with contextlib.suppress(EOFError, BrokenPipeError, CancelledError):
        while True:
            outcome = _outcome(function, plans.recv_bytes(), ticks)
            ticks.tell()
            answers.send_bytes(outcome)


class _Ticks:
    """The tick of a worker process. A message for each would take as long as to copy a small picture."""

    def __init__(self, answers: Connection) -> None:
        self._answers = answers
        self._count, self._told = 0, 0.0

    def __call__(self) -> None:
        self._count += 1
        if time.monotonic() - self._told > _TICKS_EVERY:
            self.tell()

    def tell(self) -> None:
        try:
            self._answers.send(self._count)
        except BrokenPipeError:
            raise CancelledError from None
        self._count, self._told = 0, time.monotonic()


def _outcome(function: Callable[[P, Tick], R], plan: bytes, tick: Tick) -> bytes:
    """Result and error of a pickled plan, pickled; one of them is None."""
    try:
        return bytes(ForkingPickler.dumps((function(ForkingPickler.loads(plan), tick), None)))
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is for the other process
        error.add_note("".join(["In a worker process:\n", *traceback.format_exception(error)]))
        return _pickled_error(error)


def _pickled_error(error: BaseException) -> bytes:
    try:
        pickled = bytes(ForkingPickler.dumps((None, error)))
        # Many an error can be pickled and not be made again from it.
        ForkingPickler.loads(pickled)
    except Exception:  # noqa: BLE001  # the code of whoever wrote that class
        return bytes(ForkingPickler.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"))))
    return pickled


def _die_with_parent() -> None:
    # Not prctl(PR_SET_PDEATHSIG), which speaks of the end of the thread that started this process.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def make_executor(workers: int, engine: str = "threads") -> Executor:
    """An executor with so many workers; 0 means one for each processor this process may use.

    Args:
        workers: How many.
        engine: What they are; ``auto`` stands for threads, where the stage does not know better.

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
