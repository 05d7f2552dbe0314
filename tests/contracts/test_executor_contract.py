"""What every engine must keep to, so that a stage need not know which one runs its plans.

Run as a script, this file is a command that works until it is stopped, for the tests that stop it.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing.resource_tracker
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from imgprep import errors
from imgprep.errors import INTERRUPTED, ChangedError, ImgprepError, NoSpaceError, WorkerDiedError
from imgprep.executors import Executor, ProcessExecutor, SerialExecutor, ThreadExecutor, Tick

ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Engine:
    """An engine under test.

    Attributes:
        make: Makes it.
        away: Whether plans leave this process.
    """

    make: Callable[[], Executor]
    away: bool = False


# Another engine is one line here.
ENGINES: Final = {
    "serial": Engine(SerialExecutor),
    "1 thread": Engine(lambda: ThreadExecutor(1)),
    "4 threads": Engine(lambda: ThreadExecutor(4)),
    "2 processes": Engine(lambda: ProcessExecutor(2), away=True),
}
AWAY: Final = [name for name, engine in ENGINES.items() if engine.away]
AHEAD: Final = 2
"""Plans a worker that may be taken before their results are wanted."""


# What is done with plans. Engines that send it away find it by its name.


def square(plan: int, tick: Tick) -> int:
    """Later plans are done sooner."""
    time.sleep((7 - plan % 8) / 2000)
    for _ in range(plan):
        tick()
    return plan * plan


def fail(plan: BaseException | None, tick: Tick) -> None:
    if plan is not None:
        raise plan
    tick()


@dataclass(frozen=True)
class Traced:
    """Leaves a file for each tick, so that one sees from outside what is going on.

    Attributes:
        folder: Where.
        failing: The plan that fails.
        ticks: How many times a plan ticks: each of them takes 10 ms.
    """

    folder: Path
    failing: int = -1
    ticks: int = 200

    def __call__(self, plan: int, tick: Tick) -> int:
        for number in range(self.ticks if plan > max(self.failing, 0) else 1):
            (self.folder / f"{plan}-{number}-{os.getpid()}").touch()
            time.sleep(0.01)
            tick()
        if plan == self.failing:
            raise ValueError(f"plan {plan}")
        return plan

    def seen(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}

    def pids(self) -> set[int]:
        return {int(name.rsplit("-", 1)[1]) for name in self.seen()}


@dataclass(frozen=True)
class Stuck:
    """Like :class:`Traced`, in the middle of a sample that takes long."""

    folder: Path

    def __call__(self, plan: int, tick: Tick) -> None:
        (self.folder / f"{plan}-0-{os.getpid()}").touch()
        time.sleep(60)
        tick()


def die(plan: int, tick: Tick) -> int:
    tick()
    if plan == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return plan


def make_function(plan: int, tick: Tick) -> Callable[[], int]:
    return lambda: plan


class OnceError(Exception):
    """Can be pickled, and not be made again from that."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} and {right}")


def fail_once(plan: int, tick: Tick) -> None:
    raise OnceError("this", "that")


def ignore() -> None:
    """The tick of those who do not count."""


# What is there before a test is there after it, and no more.


def children() -> set[int]:
    """Processes that this one started."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


def descriptors() -> Counter[str]:
    """What this process has open, by what it is; pipes have numbers of their own."""
    found = Counter[str]()
    for link in Path("/proc/self/fd").iterdir():
        # The folder itself is open while it is listed.
        with contextlib.suppress(FileNotFoundError):
            found[str(link.readlink())] += 1
    return found


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    multiprocessing.resource_tracker.ensure_running()  # lives as long as this process
    before = descriptors(), children(), set(threading.enumerate())
    yield
    gc.collect()
    assert (descriptors(), children(), set(threading.enumerate())) == before


@pytest.fixture(autouse=True)
def _found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture(params=ENGINES)
def executor(request: pytest.FixtureRequest) -> Executor:
    return ENGINES[request.param].make()


@pytest.fixture(params=AWAY)
def away(request: pytest.FixtureRequest) -> Executor:
    return ENGINES[request.param].make()


# The contract.


def test_results_come_in_the_order_of_the_plans_and_every_tick_before_the_last(executor: Executor) -> None:
    ticks: list[int] = []
    results = executor.map(square, iter(range(40)), tick=lambda: ticks.append(1))

    assert [next(results) for _ in range(40)] == [plan * plan for plan in range(40)]
    assert len(ticks) == sum(range(40))
    assert list(results) == []


def test_no_plans_no_results(executor: Executor) -> None:
    assert list(executor.map(square, [], tick=ignore)) == []


def test_plans_are_taken_as_they_are_needed(executor: Executor) -> None:
    taken = 0

    def count() -> Iterator[int]:
        nonlocal taken
        for plan in range(10_000):
            taken += 1
            yield plan % 3

    results = executor.map(square, count(), tick=ignore)
    assert taken == 0
    for wanted in range(1, 6):
        next(results)
        time.sleep(0.05)
        assert taken < wanted + AHEAD * executor.workers
    results.close()


def test_more_ticks_than_a_pipe_holds_need_nobody_who_takes_results(executor: Executor) -> None:
    ticks: list[int] = []
    results = executor.map(square, [1, 30_000], tick=lambda: ticks.append(1))
    assert next(results) == 1
    time.sleep(0.2)

    assert next(results) == 900_000_000
    assert len(ticks) == 30_001


def test_results_may_be_taken_by_another_thread_than_the_first(executor: Executor) -> None:
    results = executor.map(square, range(20), tick=ignore)
    first = threading.Thread(target=next, args=(results,))
    first.start()
    first.join()

    assert list(results) == [plan * plan for plan in range(1, 20)]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a value", 7),
        FileNotFoundError(2, "No such file", "x.tar"),
        NoSpaceError("the disk is full", "free some space"),
        ChangedError("the archive was replaced"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_out_as_itself(error: Exception, executor: Executor) -> None:
    results = executor.map(fail, [None, error, None], tick=ignore)
    next(results)
    with pytest.raises(type(error)) as caught:
        next(results)

    assert caught.value.args == error.args
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "advice", "") == getattr(error, "advice", "")
    assert list(results) == []


def test_every_error_of_the_tree_can_be_sent() -> None:
    tree = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ImgprepError)]
    for kind in tree:
        found = pickle.loads(pickle.dumps(kind("what happened", "what to do")))

        assert (type(found), found.what, found.advice) == (kind, "what happened", "what to do")
    assert len(tree) > 15


def test_after_an_error_nothing_goes_on(executor: Executor, tmp_path: Path) -> None:
    traced = Traced(tmp_path, failing=3)
    start = time.monotonic()
    with pytest.raises(ValueError, match="plan 3"):
        list(executor.map(traced, range(50), tick=ignore))

    # Each plan after it takes 2 s: they were called off.
    assert time.monotonic() - start < 10
    stopped(traced)


def test_leaving_early_stops_the_work(executor: Executor, tmp_path: Path) -> None:
    traced = Traced(tmp_path)
    results = executor.map(traced, range(1000), tick=ignore)
    assert next(results) == 0
    results.close()

    stopped(traced)


def stopped(traced: Traced) -> None:
    """Nothing happens any more, and what was begun is not done."""
    before = traced.seen()
    time.sleep(0.05)
    assert traced.seen() == before
    assert [name for name in before if f"-{traced.ticks - 1}-" in name] == []


def test_an_error_of_the_tick_comes_out_as_itself(executor: Executor, tmp_path: Path) -> None:
    left = 3

    def stumble() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            raise BrokenPipeError("of the progress bar")

    traced = Traced(tmp_path)
    with pytest.raises(BrokenPipeError, match="of the progress bar"):
        list(executor.map(traced, range(50), tick=stumble))

    assert max(Counter(name.split("-")[0] for name in traced.seen()).values()) < traced.ticks


def test_an_error_of_whoever_makes_the_plans_comes_out(executor: Executor) -> None:
    def plans() -> Iterator[int]:
        yield from range(3)
        raise LookupError("no fourth plan")

    with pytest.raises(LookupError, match="no fourth plan"):
        list(executor.map(square, plans(), tick=ignore))


def test_shards_are_the_same_to_the_byte(executor: Executor, sharded: Any) -> None:
    from imgprep.shard import plan_job, shard
    from imgprep.shard_plan import ShardSpec

    spec = ShardSpec(size=48, samples_per_shard=5)
    job = plan_job(sharded, spec, subset="main", name="again")
    result = shard(sharded, job, spec, executor=executor)

    main, again = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (sharded.shards("main"), sharded.shards("again"))
    )
    assert result.stats["shards"] > 4
    assert again == main


# Engines that send plans away.


def test_plans_are_worked_on_elsewhere(away: Executor, tmp_path: Path) -> None:
    traced = Traced(tmp_path, ticks=3)
    list(away.map(traced, range(6), tick=ignore))

    assert os.getpid() not in traced.pids()
    assert 1 <= len(traced.pids()) <= away.workers


def test_what_cannot_be_sent_is_an_error(away: Executor) -> None:
    unsendable: list[Any] = [1, lambda: 2, 3]
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError), match="lambda"):
        list(away.map(square, unsendable, tick=ignore))
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError), match="lambda"):
        list(away.map(lambda plan, _: plan, range(3), tick=ignore))
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError), match="lambda"):
        list(away.map(make_function, range(3), tick=ignore))
    with pytest.raises(RuntimeError, match="OnceError: this and that"):
        list(away.map(fail_once, range(3), tick=ignore))


def test_an_error_says_where_it_came_from(away: Executor) -> None:
    with pytest.raises(ValueError, match="a value") as caught:
        list(away.map(fail, [ValueError("a value")], tick=ignore))

    assert "in fail" in caught.value.__notes__[0]


def test_a_worker_that_is_killed_is_an_error_with_advice(away: Executor) -> None:
    results = away.map(die, range(1000), tick=ignore)
    with pytest.raises(WorkerDiedError, match="maybe killed for want of memory - run the same command again"):
        list(results)


# Stopped from outside.


@dataclass(frozen=True)
class Command:
    """This file as a command, in a process group of its own."""

    running: subprocess.Popen[str]
    traced: Traced

    def wait_for(self, pids: int) -> None:
        """Wait until so many processes work."""
        until = time.monotonic() + 30
        while len(self.traced.pids()) < pids:
            assert self.running.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)

    def alive(self) -> set[int]:
        """Processes of the group that have not ended."""
        found = set()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == self.running.pid and fields[0] != "Z":
                found.add(int(stat.parent.name))
        return found

    def ends(self, seconds: float) -> bool:
        """Whether all processes of the group have ended after so many seconds."""
        until = time.monotonic() + seconds
        while self.alive() and time.monotonic() < until:
            time.sleep(0.01)
        return not self.alive()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Start the command."""
    started: list[subprocess.Popen[str]] = []
    folder = tmp_path / "traces"
    folder.mkdir()

    def start(engine: str, *, work: str = "traced") -> Command:
        running = subprocess.Popen(
            [sys.executable, __file__, engine, work, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(running)
        assert running.stdout is not None
        assert running.stdout.readline() == "begun\n"
        return Command(running, Traced(folder))

    yield start
    for running in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()


def workers_of(engine: str) -> int:
    return ENGINES[engine].make().workers if ENGINES[engine].away else 1


@pytest.mark.parametrize("to_all", [False, True], ids=["the parent", "the group"])
@pytest.mark.parametrize("early", [False, True], ids=["at work", "at the start"])
def test_ctrl_c_ends_everything_with_one_word(
    engine: str, to_all: bool, early: bool, begin: Callable[..., Command]
) -> None:
    command = begin(engine)
    if early:
        time.sleep(0.03)
    else:
        command.wait_for(workers_of(engine))
    (os.killpg if to_all else os.kill)(command.running.pid, signal.SIGINT)
    _, said = command.running.communicate(timeout=20)

    assert (command.running.returncode, said.strip()) == (INTERRUPTED, "interrupted")
    assert command.ends(1)


@pytest.mark.parametrize("engine", AWAY)
def test_a_second_ctrl_c_does_not_wait_for_a_sample_that_takes_long(engine: str, begin: Callable[..., Command]) -> None:
    command = begin(engine, work="stuck")
    command.wait_for(workers_of(engine))
    command.running.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert command.running.poll() is None
    command.running.send_signal(signal.SIGINT)
    _, said = command.running.communicate(timeout=20)

    assert (command.running.returncode, said.strip()) == (INTERRUPTED, "interrupted")
    assert command.ends(1)


@pytest.mark.parametrize("work", ["traced", "stuck"])
def test_nothing_outlives_a_parent_that_is_killed(engine: str, work: str, begin: Callable[..., Command]) -> None:
    command = begin(engine, work=work)
    command.wait_for(workers_of(engine))
    assert len(command.alive()) >= workers_of(engine)
    command.running.kill()

    assert command.ends(5)


@pytest.mark.parametrize("engine", AWAY)
def test_a_worker_that_is_killed_from_outside_ends_the_others(engine: str, begin: Callable[..., Command]) -> None:
    command = begin(engine)
    command.wait_for(workers_of(engine))
    os.kill(max(command.traced.pids()), signal.SIGKILL)
    _, said = command.running.communicate(timeout=20)

    assert command.running.returncode == WorkerDiedError.exit_code
    assert said.startswith("Error: a worker process died, maybe killed for want of memory - run the same command again")
    assert command.ends(1)


def work_until_stopped() -> None:
    """The command: plans without end."""
    import click

    from imgprep.cli import main

    @click.command()
    @click.argument("engine")
    @click.argument("work", type=click.Choice(["traced", "stuck"]))
    @click.argument("folder", type=click.Path(path_type=Path))
    def work(engine: str, work: str, folder: Path) -> None:
        function: Any = Traced(folder, ticks=100) if work == "traced" else Stuck(folder)
        click.echo("begun")
        for _ in ENGINES[engine].make().map(function, range(1, 1000), tick=ignore):
            pass

    main.add_command(work)
    main(["work", *sys.argv[1:]])


if __name__ == "__main__":
    work_until_stopped()
