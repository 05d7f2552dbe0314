"""``imgprep fetch`` killed at every kind of change it makes on disk: the same request goes on and ends in the same tree.

Run as a script, this file is the process that is killed: it reads a job a line, forks for each (before any thread of
its own, so that forking is safe and imports cost nothing), and the fork kills itself in front of, or in the middle of,
the change it was told.
"""

from __future__ import annotations

import base64
import functools
import http.client
import io
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn, Self
from urllib.parse import urlsplit

import pytest

from imgprep.backoff import Backoff
from imgprep.errors import ImgprepError
from imgprep.fetch import fetch, one_by_one, online, part, whole
from imgprep.fetch.online import ARCHIVE_NAME, Online, OnlineSpec
from imgprep.fetch.request import PartRequest
from imgprep.selection import SubsetSpec
from imgprep.sources.adopted import open_adopted
from imgprep.sources.kaggle import COMPETITION, SignedUrl
from imgprep.sources.part import ArchiveRecord
from imgprep.sources.remote_zip import WASTE
from imgprep.testing.kaggle import Fault, KaggleStandIn, Request
from imgprep.testing.toy import ToySpec, write_toy_imagenet
from imgprep.transfer import TransferSpec
from imgprep.workspace import Workspace

PART_BYTES: Final = 8 << 10
WRITES: Final = frozenset({"write", "pwrite"})
MOST_WRITES: Final = 60
"""Writes of one kind that are killed at, of one scenario; every change of another kind is killed at."""

FEW: Final = SubsetSpec(classes=1, per_class=2, val_per_class=1, seed=7)
MANY: Final = SubsetSpec(classes=3, per_class=4, val_per_class=2)
"""Its choice does not hold that of :data:`FEW`: a part that grows must keep what it had."""

REQUESTS: Final = {
    "few": PartRequest(subset=FEW),
    "many": PartRequest(subset=MANY),
    "lists": PartRequest(),
    "whole": None,
}


@dataclass(frozen=True, kw_only=True)
class Kill:
    """Where a process dies: at the ``number``-th change of a kind, before it or when half of its bytes are written."""

    kind: str
    number: int
    half: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of ``fetch``: a request, or ``adopt`` for a copy that is there."""

    request: str
    root: str
    url: str
    archive: str
    kill: Kill | None = None


class Meter:
    """Counts the changes a process makes on disk, and kills it at one of them."""

    def __init__(self, kill: Kill | None) -> None:
        self.counts: Counter[str] = Counter()
        self._kill = kill
        self._lock = threading.Lock()

    def __call__(self, kind: str, write_half: Callable[[], object] = lambda: None) -> None:
        """Count one change that is about to happen."""
        with self._lock:
            self.counts[kind] += 1
            if self._kill is not None and (kind, self.counts[kind]) == (self._kill.kind, self._kill.number):
                if self._kill.half:
                    write_half()
                os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Put this meter before every function that changes something; for a process that ends soon."""
        for name, kind in {"rename": "rename", "replace": "rename", "unlink": "unlink", "mkdir": "mkdir"}.items():
            setattr(os, name, self._counted(kind, getattr(os, name)))
        # A kill leaves what was written whether it was synced or not: counting is enough, and quick.
        for name in ("fsync", "fdatasync"):
            setattr(os, name, self._counted(name, lambda handle: None))
        for module in (part, one_by_one):
            module.sync_filesystem = self._counted("syncfs", lambda folder: None)  # type: ignore[attr-defined]
        os.write = self._writing("write", os.write)
        os.pwrite = self._writing("pwrite", os.pwrite)
        os_open = os.open

        def open_counted(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR):
                self("open")
            return os_open(path, flags, mode, **options)

        os.open = open_counted
        io.open = self._opening(io.open)  # type: ignore[assignment]

    def _counted(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*args: Any, **options: Any) -> Any:
            self(kind)
            return function(*args, **options)

        return counted

    def _writing(self, kind: str, function: Callable[..., int]) -> Callable[..., int]:
        def write(handle: int, content: Any, *place: int) -> int:
            self(kind, lambda: function(handle, memoryview(content)[: len(content) // 2], *place))
            return function(handle, content, *place)

        return write

    def _opening(self, function: Callable[..., Any]) -> Callable[..., Any]:
        meter = self

        class CountedFile(io.FileIO):
            def write(self, content: Any) -> int:
                meter("write", lambda: io.FileIO.write(self, memoryview(content)[: len(content) // 2]))
                return super().write(content)

            def truncate(self, size: int | None = None) -> int:
                meter("truncate")
                return super().truncate(size)

        def open_counted(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
            if not set(mode) & set("wxa+"):
                return function(file, mode, buffering, *rest, **options)
            meter("open")
            if "b" not in mode:
                return function(file, mode, buffering, *rest, **options)
            raw = CountedFile(file, mode)
            return raw if buffering == 0 else io.BufferedWriter(raw)

        return open_counted


class StandInKaggle:
    """Asks the stand-in for addresses without Kaggle's client, which takes a second to start."""

    retries = 0

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc

    def archive_url(self) -> SignedUrl:
        return self._ask("DownloadDataFiles", "archive.zip")

    def file_url(self, name: str) -> SignedUrl:
        return self._ask("DownloadDataFile", name.rpartition("/")[2], fileName=name)

    def close(self) -> None:
        """Nothing is held open."""

    def _ask(self, call: str, shown: str, **more: str) -> SignedUrl:
        key = base64.b64encode(f"someone:{'0' * 32}".encode()).decode()
        connection = http.client.HTTPConnection(self._host, timeout=20)
        asked = json.dumps({"competitionName": COMPETITION, **more})
        connection.request(
            "POST", f"/api/v1/competitions.CompetitionApiService/{call}", asked, {"Authorization": f"Basic {key}"}
        )
        location = connection.getresponse().headers["Location"]
        connection.close()
        return SignedUrl(location, shown)


def run_job(job: Job) -> Counter[str]:
    """Fetch as the command does; returns the changes that took, by kind."""
    meter = Meter(job.kill)
    meter.install()
    root = Path(job.root)
    workspace = Workspace(root / "workspace")
    workspace.root.mkdir(parents=True, exist_ok=True)
    if job.request == "adopt":
        with workspace.locked("imgprep fetch"):
            fetch(workspace, Path(job.archive), overwrite=True)
        return meter.counts
    online.fetch_whole = functools.partial(whole.fetch_whole, sync_seconds=0.0)  # type: ignore[attr-defined]
    one_by_one.SECONDS_A_FILE = 0.0  # type: ignore[misc]
    spec = OnlineSpec(request=REQUESTS[job.request], transfer=TransferSpec(jobs=3, timeout=20.0), part_bytes=PART_BYTES)
    with Online(
        workspace,
        spec,
        cache=root / "cache",
        kaggle=StandInKaggle(job.url),  # type: ignore[arg-type]
        backoff=Backoff(retries=4, base=0.01, longest=0.05),
    ) as fetching:
        plan = fetching.plan()
        with workspace.locked("imgprep fetch"):
            fetching.run(plan)
    return meter.counts


def serve() -> None:
    """Fork for each job on stdin; print the counts of those that end, and how each ended."""
    for line in sys.stdin:
        fields = json.loads(line)
        kill = Kill(**fields.pop("kill")) if fields["kill"] else fields.pop("kill")
        child = os.fork()
        if child == 0:
            _leave_with(Job(**fields, kill=kill))
        _, status = os.waitpid(child, 0)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status)}), flush=True)


def _leave_with(job: Job) -> NoReturn:
    try:
        print(json.dumps(run_job(job)), flush=True)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


class Bench:
    """A stand-in for Kaggle with a log of its own, and the process that forks."""

    def __init__(self, archive: Path, errors: Path) -> None:
        self.archive = archive
        self.stand_in = KaggleStandIn(archive)
        self._errors = errors
        self._stderr = errors.open("w+b")
        # numpy's threads would make forking unsafe.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._forking = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )

    def run(self, request: str, root: Path, kill: Kill | None = None) -> tuple[int, Counter[str]]:
        """Run a job; returns its exit code (negative for a signal) and the changes it made, by kind."""
        assert self._forking.stdin is not None
        assert self._forking.stdout is not None
        job = Job(request=request, root=str(root), url=self.stand_in.url, archive=str(self.archive), kill=kill)
        self._forking.stdin.write(json.dumps(asdict(job)) + "\n")
        self._forking.stdin.flush()
        counts: Counter[str] = Counter()
        while line := self._forking.stdout.readline():
            answer = json.loads(line)
            if "exit" in answer:
                return int(answer["exit"]), counts
            counts.update(answer)
        raise AssertionError(self._errors.read_text())

    def finish(self, request: str, root: Path) -> Counter[str]:
        """Run a job to its end; returns the changes it made."""
        code, counts = self.run(request, root)
        assert code == 0, self._errors.read_text()
        return counts

    def forget_requests(self) -> None:
        """Empty the log, once what killed processes had sent off is in it."""
        deadline = time.monotonic() + 20
        while self.stand_in._server._connections and time.monotonic() < deadline:
            time.sleep(0.001)
        self.stand_in.forget()

    def close(self) -> None:
        self._forking.communicate()
        self._stderr.close()
        self.stand_in.close()


@dataclass(frozen=True)
class Archive:
    """The archive that is fetched, and what is in it."""

    path: Path
    contents: Mapping[str, bytes]
    spans: Mapping[str, tuple[int, int]]
    """First byte of each member, and first byte of what follows it."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    path = tmp_path_factory.mktemp("served") / ARCHIVE_NAME
    toy = ToySpec(
        classes=3, per_class=6, short_classes=0, val_per_class=3, test=2, min_side=40, max_side=72, odd_files=False
    )
    write_toy_imagenet(path, toy)
    with zipfile.ZipFile(path, "a") as packed:
        # Too large for a part, so that it is checked at the end; and the end of the archive is not all of it.
        noise = b"".join(zlib.crc32(bytes([n % 251, n // 251])).to_bytes(4, "big") for n in range(25_000))
        packed.writestr("ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000999.JPEG", noise)
    with zipfile.ZipFile(path) as packed:
        infos = sorted((info for info in packed.infolist() if not info.is_dir()), key=lambda info: info.header_offset)
        starts = [*(info.header_offset for info in infos), packed.start_dir]
        spans = {info.filename: span for info, span in zip(infos, itertools.pairwise(starts), strict=True)}
        return Archive(path, {info.filename: packed.read(info) for info in infos}, spans)


@pytest.fixture(scope="module")
def benches(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Bench]]:
    errors = tmp_path_factory.mktemp("errors")
    made = [Bench(archive.path, errors / f"{number}.txt") for number in range(2)]
    yield made
    for bench in made:
        bench.close()


def tree(root: Path) -> dict[str, bytes | None]:
    """Every file and folder below a folder; without the lock, and without the time of a file that is written anew."""
    found: dict[str, bytes | None] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name == "workspace/raw/source.json":
            record = json.loads(path.read_bytes())
            found[name] = json.dumps({**record, "mtime_ns": None}).encode()
        elif path.name != ".lock":
            found[name] = None if path.is_dir() else path.read_bytes()
    return found


def check_names(root: Path, archive: Archive) -> None:
    """Nothing that has its final name is wrong, and what can be opened reads right."""
    raw = root / "workspace" / "raw"
    folder = raw / ARCHIVE_NAME.removesuffix(".zip")
    for name, content in archive.contents.items():
        if (folder / name).exists():
            assert (folder / name).read_bytes() == content, name
    if (raw / ARCHIVE_NAME).exists():
        assert (raw / ARCHIVE_NAME).read_bytes() == archive.path.read_bytes()
    try:
        source, record = open_adopted(Workspace(root / "workspace"))
        with source:
            assert len(source.members()) == record.num_members > 0
            for member in source.members():
                assert source.read(member.name) == archive.contents[member.name]
    except ImgprepError as error:
        assert error.advice


def done_spans(root: Path, archive: Archive, request: str) -> list[tuple[int, int]]:
    """The bytes of the archive that need not come again: noted parts, or members under their names."""
    raw = root / "workspace" / "raw"
    if REQUESTS[request] is not None:
        folder = raw / ARCHIVE_NAME.removesuffix(".zip")
        return [span for name, span in archive.spans.items() if (folder / name).is_file()]
    state = raw / f"{ARCHIVE_NAME}.state"
    if not state.is_file():
        return []
    noted = {int(line.split()[1]) for line in state.read_text().split("\n")[:-1] if line.startswith("part ")}
    return [span for number, span in enumerate(part_spans(archive)) if number in noted]


def part_spans(archive: Archive) -> list[tuple[int, int]]:
    """The parts of the whole archive, as :func:`imgprep.fetch.whole.plan_parts` cuts it."""
    from imgprep.fetch.sequential import read_directory
    from imgprep.sources.ranges import RangeFile

    with RangeFile(archive.path) as file:
        directory = read_directory(file, archive.path.stat().st_size, "it")
    parts, _ = whole.plan_parts(directory, max(stop for _, stop in archive.spans.values()), part_bytes=PART_BYTES)
    return [(part.start, part.stop) for part in parts]


def bytes_read_twice(requests: list[Request], done: list[tuple[int, int]]) -> tuple[int, int]:
    """How many of the done bytes were asked for, and how many bytes in all.

    The look at the end of the archive, to see if it is the same, does not count.
    """
    asked = [request.range for request in requests if request.range and not request.range_header.startswith("bytes=-")]
    twice = sum(max(0, min(stop, last + 1) - max(start, first)) for start, stop in done for first, last in asked)
    return twice, sum(last + 1 - first for first, last in asked)


def archive_spans(a, d):
    return [x for x in a.spans.items() if x[1] in d]


def kills(counts: Counter[str]) -> list[Kill]:
    """Every change, but of many writes no more than a spread of them; writes are killed at before and in the middle."""
    chosen = []
    for kind, count in sorted(counts.items()):
        step = max(1.0, 2 * count / MOST_WRITES) if kind in WRITES else 1.0
        numbers = sorted({int(place * step) + 1 for place in range(count) if place * step < count})
        chosen += [Kill(kind=kind, number=n, half=half) for n in numbers for half in (False, True)[: 1 + (kind in WRITES)]]
    return chosen


@dataclass(frozen=True)
class Scenario:
    """A request in a workspace in which others were met before."""

    request: str
    before: tuple[str, ...] = ()
    ranges: bool = True
    least: Mapping[str, int] = field(default_factory=dict)
    """How often changes of a kind happen at least: what is not seen is not tested."""


SCENARIOS: Final = {
    "whole": Scenario("whole", least={"pwrite": 6, "rename": 3, "unlink": 1, "fdatasync": 6, "truncate": 2}),
    "part": Scenario("few", least={"write": 15, "rename": 15, "syncfs": 1}),
    "a part that grows": Scenario("many", before=("few",), least={"write": 20, "rename": 15}),
    "whole after a part": Scenario("whole", before=("few",), least={"pwrite": 6}),
    "adopted in place of a part": Scenario("adopt", before=("few",), least={"rename": 1, "fsync": 2}),
    "whole without ranges": Scenario("whole", ranges=False, least={"write": 2}),
    "part without ranges": Scenario("few", ranges=False, least={"write": 10}),
    "a part without ranges that grows": Scenario("many", before=("few",), ranges=False, least={"write": 10}),
}


class Trial:
    """One scenario: its undisturbed end, and what is left after a kill."""

    def __init__(self, scenario: Scenario, archive: Archive, folder: Path) -> None:
        self.scenario = scenario
        self.archive = archive
        self._folder = folder
        self._start = folder / "start"

    def prepare(self, bench: Bench) -> Counter[str]:
        """Make the workspace that all runs start from, and run undisturbed; returns the changes that made."""
        self._start.mkdir()
        for request in self.scenario.before:
            bench.finish(request, self._start)
        # Each run reads the directory itself.
        shutil.rmtree(self._start / "cache", ignore_errors=True)
        undisturbed = self._copy("undisturbed")
        counts = bench.finish(self.scenario.request, undisturbed)
        self.expected = tree(undisturbed)
        assert not [name for name in self.expected if name.endswith((".part", ".state", ".tmp"))]
        check_names(undisturbed, self.archive)
        bench.finish(self.scenario.request, undisturbed)
        assert tree(undisturbed) == self.expected
        return counts

    def kill(self, bench: Bench, kill: Kill) -> bool:
        """Kill a run and finish it; tells whether it got as far as the kill."""
        request = self.scenario.request
        root = self._copy(f"{kill.kind}-{kill.number}-{kill.half}")
        code, _ = bench.run(request, root, kill)
        assert code in (-signal.SIGKILL, 0)
        check_names(root, self.archive)
        done = done_spans(root, self.archive, request) if self.scenario.ranges and request in REQUESTS else []
        bench.forget_requests()
        bench.finish(request, root)
        twice, asked = bytes_read_twice(bench.stand_in.requests, done)
        # Between members that are missing, a few small ones may be read along to save requests.
        assert twice <= (0 if REQUESTS.get(request) is None else WASTE * asked), f"{twice} of {asked} bytes again {[r.range for r in bench.stand_in.requests]} {[n for n, p in archive_spans(self.archive, done)]}"
        found = tree(root)
        assert found.keys() == self.expected.keys()
        assert [name for name in found if found[name] != self.expected[name]] == []
        check_names(root, self.archive)
        shutil.rmtree(root)
        return code == -signal.SIGKILL

    def _copy(self, name: str) -> Path:
        root = self._folder / name
        # With its times: they say that a source is the one that was adopted.
        return Path(shutil.copytree(self._start, root))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_anywhere_the_same_request_goes_on_and_ends_in_the_same_tree(
    name: str, archive: Archive, benches: list[Bench], tmp_path: Path
) -> None:
    scenario = SCENARIOS[name]
    for bench in benches:
        bench.stand_in.clear_faults()
        if not scenario.ranges:
            bench.stand_in.add_fault(Fault(kind="no-range", times=None))
    trial = Trial(scenario, archive, tmp_path)
    counts = trial.prepare(benches[0])
    assert {kind: counts[kind] for kind, least in scenario.least.items() if counts[kind] < least} == {}
    free: queue.SimpleQueue[Bench] = queue.SimpleQueue()
    for bench in benches:
        free.put(bench)
    broken: list[str] = []

    def try_one(kill: Kill) -> bool:
        bench = free.get()
        try:
            return trial.kill(bench, kill)
        except AssertionError as error:
            broken.append(f"{kill}: {error}")
            return True
        finally:
            free.put(bench)

    points = kills(counts)
    with ThreadPoolExecutor(len(benches)) as pool:
        killed = sum(pool.map(try_one, points))
    assert not broken, f"{len(broken)} of {len(points)} kills:\n" + "\n".join(broken[:20])
    # How the network cuts a transfer into writes differs a little from run to run.
    assert killed >= 0.8 * len(points)


if __name__ == "__main__":
    serve()
