"""``imgprep shard`` killed at every change it makes on disk: the same command goes on and ends in the same bytes.

Run as a script, this file is the process that is killed: it reads a job a line, forks for each (before any thread of
its own, so that forking is safe and imports cost nothing), and the fork, or a worker process of it, kills itself in
front of, or in the middle of, the change it was told.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import pandas  # noqa: F401, ICN001  # here, so that no fork has to import it
import pytest

from imgprep.annotations import annotations as read_annotations
from imgprep.catalog import catalog
from imgprep.errors import WorkerDiedError
from imgprep.executors import Executor, ProcessExecutor, SerialExecutor, ThreadExecutor, Tick
from imgprep.fetch import fetch
from imgprep.index import read_index
from imgprep.selection import SubsetSpec
from imgprep.shard import plan_job, shard
from imgprep.shard_plan import ShardSpec
from imgprep.subset import subset
from imgprep.testing.kills import Kill, Meter, Metered, kill_points
from imgprep.testing.toy import ToySpec, write_toy_imagenet
from imgprep.workspace import Workspace

SPECS: Final = {
    "first": ShardSpec(size=32, samples_per_shard=4),
    "other": ShardSpec(size=24, samples_per_shard=5, seed=1),
    "original": ShardSpec(images="original", samples_per_shard=6),
}
WORKER_DIED: Final = 17
MOST_WRITES: Final = 60


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of ``shard``: a name in :data:`SPECS`, an executor, and who dies where."""

    request: str
    root: str
    executor: str = "serial"
    kill: Kill | None = None
    kill_worker: Kill | None = None


class MeteredProcesses(ProcessExecutor):
    """Worker processes that die at a change they make."""

    def __init__(self, workers: int, kill: Kill) -> None:
        super().__init__(workers)
        self._kill = kill

    def map(self, function: Callable[..., Any], plans: Iterable[Any], *, tick: Tick) -> Generator[Any, None, None]:
        """As the other, with a meter in each worker."""
        return super().map(Metered(function, self._kill), plans, tick=tick)


def make_executor(job: Job) -> Executor:
    if job.kill_worker is not None:
        return MeteredProcesses(2, job.kill_worker)
    made: dict[str, Executor] = {
        "serial": SerialExecutor(), "threads": ThreadExecutor(2), "processes": ProcessExecutor(2),
    }  # fmt: skip
    return made[job.executor]


def run_job(job: Job) -> Counter[str]:
    """Shard as the command does, in place of whatever is there; returns the changes that took, by kind."""
    meter = Meter(job.kill)
    meter.install()
    workspace, spec = Workspace(Path(job.root)), SPECS[job.request]
    with workspace.locked("imgprep shard"):
        # An unfinished job of this request is gone on with, one of another is dropped.
        planned = plan_job(workspace, spec, subset="main", overwrite=True)
        try:
            shard(workspace, planned, spec, executor=make_executor(job))
        except WorkerDiedError:
            os._exit(WORKER_DIED)
    return meter.counts


def serve() -> None:
    """Fork for each job on stdin; say on stdout what those changed that end, and how each ended."""
    for line in sys.stdin:
        fields = json.loads(line)
        kills = {name: fields[name] and Kill(**fields[name]) for name in ("kill", "kill_worker")}
        job = Job(**{**fields, **kills})
        child = os.fork()
        if child == 0:
            _say(run_job(job))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        _say({"exit": os.waitstatus_to_exitcode(status)})


def _say(counts: dict[str, int]) -> None:
    sys.stdout.write(json.dumps(counts) + "\n")
    sys.stdout.flush()


class Bench:
    """The process that forks."""

    def __init__(self, errors: Path) -> None:
        self._errors = errors
        self._stderr = errors.open("w+b")
        # The threads of numpy and OpenCV would make forking unsafe.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._forking = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )

    def run(self, job: Job) -> tuple[int, Counter[str]]:
        """Run a job; returns its exit code (negative for a signal) and the changes it made, by kind."""
        assert self._forking.stdin is not None
        assert self._forking.stdout is not None
        self._forking.stdin.write(json.dumps(asdict(job)) + "\n")
        self._forking.stdin.flush()
        counts: Counter[str] = Counter()
        while line := self._forking.stdout.readline():
            answer = json.loads(line)
            if "exit" in answer:
                return int(answer["exit"]), counts
            counts.update(answer)
        raise AssertionError(self._errors.read_text())

    def finish(self, job: Job) -> Counter[str]:
        """Run a job to its end; returns the changes it made."""
        code, counts = self.run(replace(job, kill=None, kill_worker=None))
        assert code == 0, self._errors.read_text()
        return counts

    def close(self) -> None:
        self._forking.communicate()
        self._stderr.close()


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Bench]]:
    errors = tmp_path_factory.mktemp("errors")
    made = [Bench(errors / f"{number}.txt") for number in range(2)]
    yield made
    for bench in made:
        bench.close()


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a subset, ready to be sharded."""
    folder = tmp_path_factory.mktemp("chosen")
    toy = ToySpec(classes=3, per_class=5, short_classes=0, val_per_class=2, test=1, min_side=40, max_side=60)
    write_toy_imagenet(folder / "toy.zip", toy)
    workspace = Workspace(folder / "workspace")
    workspace.root.mkdir()
    fetch(workspace, folder / "toy.zip")
    catalog(workspace)
    read_annotations(workspace)
    subset(workspace, SubsetSpec(per_class=4), name="main")
    return workspace.root


def tree(root: Path) -> dict[str, bytes | None]:
    """Every file and folder of the shards, hidden ones too."""
    shards = root / "shards"
    paths = sorted(shards.rglob("*")) if shards.exists() else []
    return {str(path.relative_to(shards)): None if path.is_dir() else path.read_bytes() for path in paths}


@dataclass(frozen=True)
class Scenario:
    """A request in a workspace in which others were met before."""

    job: Job
    before: str | None = None
    least: int = 0
    """Changes that happen at least: what is not seen is not tested."""


SCENARIOS: Final = {
    "one after another": Scenario(Job(request="first", root=""), least=100),
    "on threads": Scenario(Job(request="first", root="", executor="threads"), least=100),
    "in place of others": Scenario(Job(request="other", root=""), before="first", least=100),
    "copies": Scenario(Job(request="original", root=""), least=60),
}


class Trial:
    """One scenario: its undisturbed end, and what is left after a kill."""

    def __init__(self, scenario: Scenario, start: Path, folder: Path) -> None:
        self.scenario, self._start, self._folder = scenario, start, folder
        self.old: dict[str, bytes | None] = {}

    def prepare(self, bench: Bench) -> Counter[str]:
        """Run undisturbed; returns the changes that made."""
        root = self.copy("undisturbed")
        if self.scenario.before is not None:
            bench.finish(Job(request=self.scenario.before, root=str(root)))
            self._start = Path(shutil.copytree(root, self._folder / "start"))
            self.old = tree(root)
        counts = bench.finish(replace(self.scenario.job, root=str(root)))
        self.expected = tree(root)
        assert {name.partition("/")[0] for name in self.expected} == {"main"}
        read_index(root / "shards" / "main")
        bench.finish(replace(self.scenario.job, root=str(root)))
        assert tree(root) == self.expected
        return counts

    def kill(self, bench: Bench, job: Job, name: str) -> int:
        """Kill a run and finish it; returns how the first ended."""
        root = self.copy(name)
        job = replace(job, root=str(root))
        code, _ = bench.run(job)
        self.check(root)
        bench.finish(job)
        found = tree(root)
        assert sorted(found) == sorted(self.expected)
        assert [path for path in found if found[path] != self.expected[path]] == []
        shutil.rmtree(root)
        return code

    def check(self, root: Path) -> None:
        """What has its name is whole: the shards of before, or the new ones, or none."""
        named = {path: content for path, content in tree(root).items() if not path.startswith(".")}
        assert named in ({}, self.old, self.expected), sorted(named)

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self._start, self._folder / name))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_anywhere_the_same_command_goes_on_and_ends_in_the_same_bytes(
    name: str, chosen: Path, benches: list[Bench], tmp_path: Path
) -> None:
    trial = Trial(SCENARIOS[name], chosen, tmp_path)
    counts = trial.prepare(benches[0])
    assert counts.total() >= SCENARIOS[name].least, counts
    assert {"open", "writev", "write", "fsync", "rename", "unlink", "mkdir", "rmdir"} <= counts.keys()
    free: SimpleQueue[Bench] = SimpleQueue()
    for bench in benches:
        free.put(bench)
    broken: list[str] = []

    def try_one(kill: Kill) -> bool:
        bench = free.get()
        try:
            job = replace(trial.scenario.job, kill=kill)
            return trial.kill(bench, job, f"{kill.kind}-{kill.number}-{kill.half}") == -signal.SIGKILL
        except AssertionError as error:
            broken.append(f"{kill}: {error}")
            return True
        finally:
            free.put(bench)

    points = kill_points(counts, most_writes=MOST_WRITES)
    with ThreadPoolExecutor(len(benches)) as pool:
        killed = list(pool.map(try_one, points))
    assert not broken, f"{len(broken)} of {len(points)} kills:\n" + "\n".join(broken[:20])
    assert all(killed)


@pytest.mark.slow
def test_killed_again_and_again(chosen: Path, benches: list[Bench], tmp_path: Path) -> None:
    trial = Trial(SCENARIOS["in place of others"], chosen, tmp_path)
    trial.prepare(benches[0])
    root = trial.copy("again")
    job = replace(trial.scenario.job, root=str(root))
    for kind, number in (("writev", 9), ("rename", 3), ("write", 2), ("writev", 4), ("unlink", 1), ("rename", 5)):
        code, _ = benches[0].run(replace(job, kill=Kill(kind=kind, number=number)))
        assert code in (-signal.SIGKILL, 0)
        trial.check(root)
    benches[0].finish(job)
    assert tree(root) == trial.expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "kill",
    [
        Kill(kind="open", number=1),
        Kill(kind="writev", number=3, half=True),
        Kill(kind="fsync", number=1),
        Kill(kind="rename", number=1),
        Kill(kind="rename", number=2),
    ],
    ids=lambda kill: f"{kill.kind}-{kill.number}",
)
def test_a_worker_process_that_is_killed_loses_nothing(
    kill: Kill, chosen: Path, benches: list[Bench], tmp_path: Path
) -> None:
    trial = Trial(SCENARIOS["one after another"], chosen, tmp_path)
    trial.prepare(benches[0])

    assert trial.kill(benches[0], Job(request="first", root="", kill_worker=kill), "killed") == WORKER_DIED


@pytest.mark.slow
def test_processes_write_the_same_bytes(chosen: Path, benches: list[Bench], tmp_path: Path) -> None:
    trial = Trial(SCENARIOS["one after another"], chosen, tmp_path)
    trial.prepare(benches[0])
    root = trial.copy("processes")
    benches[0].finish(Job(request="first", root=str(root), executor="processes"))

    assert tree(root) == trial.expected


if __name__ == "__main__":
    serve()
