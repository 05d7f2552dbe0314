"""Every executor keeps the same contract."""

from __future__ import annotations

import threading
import time

import pytest

from imgprep.errors import SpecError
from imgprep.executors import Executor, SerialExecutor, ThreadExecutor, Tick, make_executor

EXECUTORS = [SerialExecutor(), ThreadExecutor(1), ThreadExecutor(4)]


def work(plan: int, tick: Tick) -> int:
    time.sleep((7 - plan % 8) / 2000)
    for _ in range(plan):
        tick()
    return plan * plan


@pytest.mark.parametrize("executor", EXECUTORS)
def test_results_come_in_the_order_of_the_plans_and_every_tick_arrives(executor: Executor) -> None:
    ticks: list[None] = []
    results = list(executor.map(work, range(20), tick=lambda: ticks.append(None)))

    assert results == [plan * plan for plan in range(20)]
    assert len(ticks) == sum(range(20))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_error_comes_out_and_no_plan_goes_on_after_it(executor: Executor) -> None:
    running = threading.Semaphore(0)

    def fail_at_three(plan: int, tick: Tick) -> int:
        if plan == 3:
            raise ValueError("plan 3")
        for _ in range(1000):
            time.sleep(0.001)
            tick()
            if plan < 3:
                break
        else:
            running.release()
        return plan

    start = time.monotonic()
    with pytest.raises(ValueError, match="plan 3"):
        list(executor.map(fail_at_three, range(50), tick=lambda: None))

    # The plans after it would take a second each: they were called off, none ran to its end.
    assert time.monotonic() - start < 5
    assert not running.acquire(blocking=False)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_leaving_early_stops_the_work(executor: Executor) -> None:
    results = executor.map(work, range(1000), tick=lambda: None)
    next(iter(results))
    results.close()

    assert [thread for thread in threading.enumerate() if thread.name.startswith("imgprep")] == []


def test_make_executor() -> None:
    assert isinstance(make_executor(1), SerialExecutor)
    assert isinstance(make_executor(3), ThreadExecutor)
    assert isinstance(make_executor(0), SerialExecutor | ThreadExecutor)
    with pytest.raises(SpecError, match="1 or more, got -1"):
        make_executor(-1)
