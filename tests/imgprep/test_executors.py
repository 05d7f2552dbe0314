"""Making executors. What they do is the contract of all engines: ``tests/contracts/test_executor_contract.py``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from imgprep.errors import SpecError
from imgprep.executors import ProcessExecutor, SerialExecutor, ThreadExecutor, make_executor


def test_the_number_and_the_engine_decide() -> None:
    assert isinstance(make_executor(1), SerialExecutor)
    assert isinstance(make_executor(3), ThreadExecutor)
    assert isinstance(make_executor(3, "auto"), ThreadExecutor)
    assert isinstance(make_executor(1, "processes"), ProcessExecutor)
    assert [make_executor(3, engine).workers for engine in ("threads", "processes")] == [3, 3]


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_none_is_one_a_processor_that_may_be_used(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 5})

    assert make_executor(0, engine).workers == 3


@pytest.mark.parametrize("workers", [-1, -100])
@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_fewer_than_one_worker_is_refused(workers: int, engine: str) -> None:
    with pytest.raises(SpecError, match=f"workers must be 1 or more, got {workers}"):
        make_executor(workers, engine)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(SpecError, match="one of auto, threads, processes, got 'ray'"):
        make_executor(1, "ray")


def test_a_worker_process_loads_what_its_function_needs_and_no_more() -> None:
    code = "import imgprep.executors, sys; print({'numpy', 'click', 'pandas'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout == "set()\n"
