"""``imgprep fetch`` killed at every change it makes on disk: the same request goes on and ends in the same tree.

Run as a script, this file is the process that is killed: it reads a job a line, forks for each (before any thread of
its own, so that forking is safe and imports cost nothing), and the fork kills itself in front of, or in the middle of,
the change it was told.
"""

from __future__ import annotations

import base64
import functools
import http.client
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.backoff import Backoff
from imgprep.errors import ChangedError, ImgprepError
from imgprep.fetch import fetch, one_by_one, online, part, whole
from imgprep.fetch.online import ARCHIVE_NAME, Online, OnlineSpec
from imgprep.fetch.request import PartRequest
from imgprep.selection import SubsetSpec
from imgprep.sources.adopted import open_adopted
from imgprep.sources.kaggle import COMPETITION, SignedUrl
from imgprep.sources.part import ArchiveRecord
from imgprep.sources.remote_zip import WASTE
from imgprep.testing.kaggle import Fault, KaggleStandIn, Request
from imgprep.testing.kills import WRITES, Kill, Meter, kill_points
from imgprep.testing.toy import ToySpec, write_toy_imagenet
from imgprep.transfer import TransferSpec
from imgprep.workspace import Workspace

PART_BYTES: Final = 8 << 10
NAMING: Final = frozenset({"rename", "unlink", "mkdir"})
MOST_WRITES: Final = 60
"""Kills at writes of one kind in one scenario; every change of another kind is killed at."""

FEW: Final = SubsetSpec(classes=1, per_class=2, val_per_class=1, seed=7)
MANY: Final = SubsetSpec(classes=3, per_class=4, val_per_class=2)
"""Its choice does not hold that of :data:`FEW`: a part that grows must keep what it had."""

TRANSFER: Final = TransferSpec(jobs=3, timeout=20.0)
SPECS: Final = {
    "few": OnlineSpec(request=PartRequest(subset=FEW), transfer=TRANSFER),
    "few again": OnlineSpec(request=PartRequest(subset=replace(FEW, allow_short=True)), transfer=TRANSFER),
    "many": OnlineSpec(request=PartRequest(subset=MANY), transfer=TRANSFER),
    "many instead": OnlineSpec(request=PartRequest(subset=MANY), transfer=TRANSFER, overwrite=True),
    "whole": OnlineSpec(transfer=TRANSFER, part_bytes=PART_BYTES),
    "whole instead": OnlineSpec(transfer=TRANSFER, part_bytes=PART_BYTES, overwrite=True),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of ``fetch``: a name in :data:`SPECS`, or ``adopt`` for a copy that is there."""

    request: str
    root: str
    url: str
    archive: str
    kill: Kill | None = None


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
    meter.install(syncing=(part, one_by_one))
    root = Path(job.root)
    workspace = Workspace(root / "workspace")
    workspace.root.mkdir(parents=True, exist_ok=True)
    if job.request == "adopt":
        with workspace.locked("imgprep fetch"):
            fetch(workspace, Path(job.archive), overwrite=True)
        return meter.counts
    online.fetch_whole = functools.partial(whole.fetch_whole, sync_seconds=0.0)  # type: ignore[attr-defined]
    one_by_one.SECONDS_A_FILE = 0.0  # type: ignore[misc]
    with Online(
        workspace,
        SPECS[job.request],
        cache=root / "cache",
        kaggle=StandInKaggle(job.url),  # type: ignore[arg-type]
        backoff=Backoff(retries=4, base=0.01, longest=0.05),
    ) as fetching:
        plan = fetching.plan()
        with workspace.locked("imgprep fetch"):
            fetching.run(plan)
    return meter.counts


def serve() -> None:
    """Fork for each job on stdin; say on stdout what those changed that end, and how each ended."""
    for line in sys.stdin:
        fields = json.loads(line)
        job = Job(**{**fields, "kill": fields["kill"] and Kill(**fields["kill"])})
        child = os.fork()
        if child == 0:
            _say(run_job(job))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        _say({"exit": os.waitstatus_to_exitcode(status)})


def _say(counts: Mapping[str, int]) -> None:
    sys.stdout.write(json.dumps(counts) + "\n")
    sys.stdout.flush()


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

    def serve_ranges(self, ranges: bool) -> None:
        """Answer with the part that was asked for, or always with the whole object."""
        self.stand_in.clear_faults()
        if not ranges:
            self.stand_in.add_fault(Fault(kind="no-range", times=None))

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
        if not error.advice:
            raise


def done_spans(root: Path, archive: Archive, request: str) -> list[tuple[int, int]]:
    """The bytes of the archive that need not come again: noted parts, or members under their names."""
    raw = root / "workspace" / "raw"
    if SPECS[request].request is not None:
        folder = raw / ARCHIVE_NAME.removesuffix(".zip")
        return [span for name, span in archive.spans.items() if (folder / name).is_file()]
    state = raw / f"{ARCHIVE_NAME}.state"
    if not state.is_file():
        return []
    noted = {int(line.split()[1]) for line in state.read_text().split("\n")[:-1] if line.startswith("part ")}
    return [span for number, span in enumerate(part_spans(archive)) if number in noted]


def recorded_files(root: Path) -> set[str]:
    """The files that a record says are here, and are: without ranges they are known by nothing else."""
    folder = root / "workspace" / "raw" / ARCHIVE_NAME.removesuffix(".zip")
    record, _ = part.find_record(folder)
    names = record.members if record is not None else ()
    return {name for name in names if (folder / name).is_file()}


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


@dataclass(frozen=True)
class Scenario:
    """A request in a workspace in which others were met before."""

    request: str
    before: tuple[str, ...] = ()
    ranges: bool = True
    only: frozenset[str] = frozenset()
    """Kinds of changes to kill at, where others are those of another scenario; empty for all."""
    least: Mapping[str, int] = field(default_factory=dict)
    """How often changes of a kind happen at least: what is not seen is not tested."""


SCENARIOS: Final = {
    "whole": Scenario("whole", least={"pwrite": 6, "rename": 3, "unlink": 1, "fdatasync": 6, "truncate": 2}),
    "part": Scenario("few", least={"write": 15, "rename": 15, "syncfs": 1}),
    "a part that grows": Scenario("many", before=("few",), least={"write": 20, "rename": 15}),
    "another request for the same part": Scenario("few again", before=("few",), least={"rename": 2, "unlink": 1}),
    "whole after a part": Scenario("whole", before=("few",), only=NAMING, least={"rename": 3, "unlink": 1}),
    "adopted in place of a part": Scenario("adopt", before=("few",), least={"rename": 1, "fsync": 2}),
    "a part in place of another": Scenario(
        "many instead", before=("few",), only=NAMING, least={"rename": 15, "unlink": 2}
    ),
    "whole without ranges": Scenario("whole", ranges=False, least={"write": 2}),
    "part without ranges": Scenario("few", ranges=False, least={"write": 10}),
    "a part without ranges that grows": Scenario(
        "many", before=("few",), ranges=False, only=NAMING, least={"rename": 20}
    ),
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
        undisturbed = self.copy("undisturbed")
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
        root = self.copy(f"{kill.kind}-{kill.number}-{kill.half}")
        code, _ = bench.run(request, root, kill)
        assert code in (-signal.SIGKILL, 0)
        check_names(root, self.archive)
        self.finish(bench, root)
        shutil.rmtree(root)
        return code == -signal.SIGKILL

    def finish(self, bench: Bench, root: Path) -> None:
        """Run undisturbed what was killed before: nothing comes twice, and all ends as if there had been no kill."""
        request = self.scenario.request
        done = done_spans(root, self.archive, request) if request in SPECS else []
        recorded = recorded_files(root)
        bench.forget_requests()
        bench.finish(request, root)
        if self.scenario.ranges:
            twice, asked = bytes_read_twice(bench.stand_in.requests, done)
            # Between members that are missing, a few small ones may be read along to save requests.
            assert twice <= (0 if request == "whole" else WASTE * asked), f"{twice} of {asked} bytes again"
        elif SPECS[request].request is not None:
            asked_for = {asked.path.removeprefix(f"/storage/{COMPETITION}/") for asked in bench.stand_in.requests}
            assert {name for name in recorded & asked_for if name.endswith(".JPEG")} == set()
        found = tree(root)
        assert found.keys() == self.expected.keys()
        assert [name for name in found if found[name] != self.expected[name]] == []
        check_names(root, self.archive)

    def copy(self, name: str) -> Path:
        """The workspace that all runs start from, with its times: they say that a source is the adopted one."""
        return Path(shutil.copytree(self._start, self._folder / name))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_anywhere_the_same_request_goes_on_and_ends_in_the_same_tree(
    name: str, archive: Archive, benches: list[Bench], tmp_path: Path
) -> None:
    scenario = SCENARIOS[name]
    for bench in benches:
        bench.serve_ranges(scenario.ranges)
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

    points = [
        kill for kill in kill_points(counts, most_writes=MOST_WRITES) if not scenario.only or kill.kind in scenario.only
    ]
    with ThreadPoolExecutor(len(benches)) as pool:
        killed = sum(pool.map(try_one, points))
    assert not broken, f"{len(broken)} of {len(points)} kills:\n" + "\n".join(broken[:20])
    # How the network cuts a transfer into writes differs a little from run to run.
    assert killed >= 0.9 * len(points)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("whole", "pwrite"), ("whole", "rename"), ("a part that grows", "write")])
def test_killed_again_and_again(name: str, kind: str, archive: Archive, benches: list[Bench], tmp_path: Path) -> None:
    bench, trial = benches[0], Trial(SCENARIOS[name], archive, tmp_path)
    bench.serve_ranges(True)
    trial.prepare(bench)
    root = trial.copy("again")
    for number in (4, 2, 3, 5, 1, 6):
        bench.run(trial.scenario.request, root, Kill(kind=kind, number=number, half=kind in WRITES))
        check_names(root, archive)
    trial.finish(bench, root)


@pytest.mark.slow
def test_after_a_power_cut_only_what_was_synced_counts(archive: Archive, benches: list[Bench], tmp_path: Path) -> None:
    bench, trial = benches[0], Trial(SCENARIOS["whole"], archive, tmp_path)
    bench.serve_ranges(True)
    counts = trial.prepare(bench)
    root = trial.copy("cut")
    bench.run("whole", root, Kill(kind="pwrite", number=counts["pwrite"]))
    raw = root / "workspace" / "raw"
    state = raw / f"{ARCHIVE_NAME}.state"
    lines = state.read_text().splitlines()
    noted = [int(line.split()[1]) for line in lines if line.startswith("part ")]
    synced, lost = noted[: len(noted) // 2], noted[len(noted) // 2 :]
    assert synced
    assert lost
    notes = [*(f"part {number}" for number in synced), "sync", *(f"part {number}" for number in lost)]
    state.write_text("\n".join([lines[0], "boot an-earlier-one", *notes, ""]))
    with (raw / f"{ARCHIVE_NAME}.part").open("r+b") as file:
        for number in lost:
            start, stop = part_spans(archive)[number]
            file.seek(start)
            file.write(bytes(stop - start))
    bench.forget_requests()
    bench.finish("whole", root)
    assert tree(root) == trial.expected
    spans = part_spans(archive)
    twice, asked = bytes_read_twice(bench.stand_in.requests, [spans[number] for number in synced])
    assert twice == 0
    assert asked >= sum(stop - start for start, stop in (spans[number] for number in lost))


@pytest.mark.slow
def test_parts_that_came_by_ranges_do_not_count_once_they_are_written_over(
    archive: Archive, benches: list[Bench], tmp_path: Path
) -> None:
    bench, trial = benches[0], Trial(SCENARIOS["whole"], archive, tmp_path)
    bench.serve_ranges(True)
    counts = trial.prepare(bench)
    root = trial.copy("mixed")
    bench.run("whole", root, Kill(kind="pwrite", number=counts["pwrite"]))
    assert done_spans(root, archive, "whole")
    # Then a server without ranges, whose bytes nothing has checked when the next kill comes.
    bench.serve_ranges(False)
    bench.stand_in.add_fault(Fault(kind="flip", times=None, percent=1))
    assert bench.run("whole", root)[0] == 1
    assert done_spans(root, archive, "whole")
    # Asked to, it writes over them; the third sync is that of the bytes, after those of the notes that nothing counts.
    code, _ = bench.run("whole instead", root, Kill(kind="fsync", number=3))
    assert code == -signal.SIGKILL
    assert done_spans(root, archive, "whole") == []
    bench.serve_ranges(True)
    trial.finish(bench, root)


RECORD: Final = ArchiveRecord(name=ARCHIVE_NAME, num_bytes=1000, etag='"a"', num_members=3, directory_crc32="00000001")


def state_file(folder: Path, *lines: str, record: ArchiveRecord = RECORD, part_bytes: int = 100) -> Path:
    """A state as it is on disk; every line ends in a line feed."""
    path = folder / "it.state"
    header = json.dumps({"version": whole.STATE_VERSION, "archive": asdict(record), "part_bytes": part_bytes})
    path.write_text("".join(f"{line}\n" for line in [header, *lines]))
    return path


def read_state(path: Path, *, overwrite: bool = False) -> set[int]:
    return whole._read_state(path, RECORD, 100, overwrite=overwrite)


def test_parts_count_after_a_kill_and_unsynced_ones_not_after_a_power_cut(tmp_path: Path) -> None:
    lines = ("part 0", "sync", "part 2", "part 1", "sync", "part 7")
    assert read_state(state_file(tmp_path, f"boot {whole._boot_id()}", *lines)) == {0, 1, 2, 7}
    assert read_state(state_file(tmp_path, "boot another", *lines)) == {0, 1, 2}
    assert read_state(state_file(tmp_path, *lines)) == {0, 1, 2}
    assert read_state(state_file(tmp_path, "boot another", "part 3")) == set()


@given(notes=st.lists(st.one_of(st.integers(0, 30), st.none()), max_size=12), cut=st.integers(0, 200), up=st.booleans())
def test_a_state_that_was_cut_off_anywhere_says_nothing_that_was_not_noted(
    notes: list[int | None], cut: int, up: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # None stands for a sync.
    boot = whole._boot_id() if up else "another"
    path = state_file(tmp_path_factory.getbasetemp(), f"boot {boot}")
    first = path.read_bytes()
    rest = "".join("sync\n" if note is None else f"part {note}\n" for note in notes).encode()[:cut]
    # A power cut may leave zeros where bytes were to be.
    path.write_bytes(first + rest + bytes(0 if up else 5))
    whole_lines = notes[: rest.count(b"\n")]
    if not up:
        last_sync = max((place for place, note in enumerate(whole_lines) if note is None), default=0)
        whole_lines = whole_lines[:last_sync]
    assert read_state(path) == {note for note in whole_lines if note is not None}


def test_a_state_of_another_archive_or_other_parts_or_none_says_nothing(tmp_path: Path) -> None:
    boot = f"boot {whole._boot_id()}"
    assert read_state(tmp_path / "absent") == set()
    assert read_state(state_file(tmp_path, boot, "part 1", part_bytes=101)) == set()
    other = state_file(tmp_path, boot, "part 1", record=replace(RECORD, directory_crc32="00000002", etag='"b"'))
    assert read_state(other, overwrite=True) == set()
    with pytest.raises(ChangedError, match=r"was replaced .* --overwrite"):
        read_state(other)
    for content in (b"", b"\0" * 90, b"[]\n", b"{}\npart 1\n", b'{"archive": null}\npart 1\n', b"\xff\xfe\npart 1\n"):
        other.write_bytes(content)
        assert read_state(other) == set()
    state_file(tmp_path, boot, "part", "part x", "part -1", "part 1.0", "part 4", "PART 5", "part 6 ")
    assert read_state(other) == {4}


END_BYTES: Final = 60_000
"""Less than the end of the archive that is read to plan, and more than is read for a part at once."""

STALLED_PART: Final = Fault(kind="stall", times=None, percent=40, min_bytes=100_000)
"""Hits what is larger than the end of the archive: all that comes before its directory, which is one part."""


class Commands:
    """The real command, against a stand-in of its own, in an empty folder."""

    def __init__(self, stand_in: KaggleStandIn, folder: Path) -> None:
        self.stand_in = stand_in
        self.root = folder
        self.stderr = folder / "stderr.txt"
        self._environment = {
            **stand_in.child_environment(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "IMGPREP_CACHE": "",
        }

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Start ``imgprep fetch``, with its stderr in a file."""
        command = [sys.executable, "-m", "imgprep", "fetch", "--workspace", str(self.root / "workspace"), *options]
        with self.stderr.open("wb") as stderr:
            return subprocess.Popen(command, env=self._environment, stdout=subprocess.DEVNULL, stderr=stderr)

    def run(self, *options: str) -> tuple[int, str]:
        """Run it to its end; returns its exit code and what it said on stderr."""
        return self.start(*options).wait(timeout=60), self.stderr.read_text()

    def wait_for_bytes(self, kind: str) -> None:
        """Wait until the body of an answer with a fault is on its way."""
        deadline = time.monotonic() + 60
        while not any(request.fault == kind and request.num_bytes for request in self.stand_in.requests):
            assert time.monotonic() < deadline, self.stderr.read_text()
            time.sleep(0.01)
        # The client has to see some of it.
        time.sleep(0.1)


@pytest.fixture
def commands(archive: Archive, tmp_path: Path) -> Iterator[Commands]:
    with KaggleStandIn(archive.path) as stand_in:
        yield Commands(stand_in, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--yes",), STALLED_PART),
        (
            ("--classes", "3", "--per-class", "4"),
            Fault(kind="slow", after=2, times=None, max_bytes=END_BYTES, rate=300),
        ),
        (("--yes",), Fault(kind="stall", times=None, percent=40)),
    ],
    ids=["whole", "part", "plan"],
)
def test_a_signal_ends_it_at_once_and_the_next_run_completes(
    number: signal.Signals, options: tuple[str, ...], fault: Fault, archive: Archive, commands: Commands
) -> None:
    commands.stand_in.add_fault(fault)
    running = commands.start(*options)
    commands.wait_for_bytes(fault.kind)
    before = commands.stderr.stat().st_size
    start = time.monotonic()
    running.send_signal(number)
    code = running.wait(timeout=30)
    seconds = time.monotonic() - start
    assert code == 130
    # click goes to a line of its own first, as a terminal shows ^C.
    assert commands.stderr.read_bytes()[before:].lstrip(b"\n") == b"interrupted\n"
    assert seconds < 2
    check_names(commands.root, archive)
    commands.stand_in.clear_faults()
    code, said = commands.run(*options)
    assert code == 0, said
    check_names(commands.root, archive)
    source, _ = open_adopted(Workspace(commands.root / "workspace"))
    with source:
        assert len(source.members()) >= 3 * 4
    assert [name for name in tree(commands.root) if name.endswith((".part", ".state", ".tmp"))] == []


@pytest.mark.slow
def test_of_two_at_once_the_second_says_who_is_at_work(archive: Archive, commands: Commands) -> None:
    commands.stand_in.add_fault(STALLED_PART)
    first = commands.start("--yes")
    commands.wait_for_bytes("stall")
    commands.stand_in.clear_faults()
    code, said = commands.run("--yes")
    assert code == 1
    assert said.splitlines()[-1].startswith("Error: ")
    assert f"is in use by `imgprep fetch` (process {first.pid})" in said.splitlines()[-1]
    assert first.poll() is None
    first.kill()
    assert first.wait(timeout=30) == -signal.SIGKILL
    code, said = commands.run("--yes")
    assert code == 0, said
    check_names(commands.root, archive)


if __name__ == "__main__":
    serve()
