"""Benchmark of fetching on loopback, against the stand-in server: time, processor time, peak memory, bytes, requests.

- directory: open an archive of ImageNet's full scale (2,025,721 members) and read 100 of them; against remotezip and
  fsspec's http file system under zipfile, both of which parse with Python's zipfile.
- members: read the 1000 training pictures that ``--classes 10 --per-class 100`` chooses, once the archive is open. The
  directory plays no part in it, so the archive is a tenth of ImageNet's. In the first round also with 20 ms before
  every answer, as on a real network.
- whole: fetch a zip of 2 GiB and check all of it; against curl alone, curl and sync, and curl and a check.

Every contender runs in a fresh process, in turn, as does the server. Times begin when its libraries are imported. A
peer that is not installed is left out: ``pip install remotezip fsspec aiohttp`` brings them.

python tests/benchmarks/fetch.py
python tests/benchmarks/fetch.py directory --repeats 5 --json numbers.json
"""

from __future__ import annotations

import contextlib
import http.client
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import select
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Literal, Self

import click

from imgprep.testing.archives import VirtualSpec

Steps = Iterator[dict[str, Any]]
"""What a contender does: it stops wherever a step ends that is measured by itself, and yields what it has to say."""

STEPS: Final = {"directory": ("open", "read"), "members": ("read",), "whole": ("whole",)}
"""The steps of each part that count."""

LATENCIES: Final = {"directory": (0.0,), "members": (0.0, 0.02), "whole": (0.0,)}
"""Seconds that the server waits before every answer."""

PEERS: Final = ("remotezip", "requests", "fsspec", "aiohttp")
MB: Final = 1_000_000
_CHECK: Final = "unzip -tq" if shutil.which("unzip") else f"{shlex.quote(sys.executable)} -m zipfile -t"


TENTH: Final = VirtualSpec(classes=100, train=128_117, val=5_000, test=10_000, train_xml=54_455, val_xml=5_000)
"""A tenth of ImageNet's classes, each as large as there."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is.

    Attributes:
        directory: The archive whose directory is read.
        members: The archive whose members are read.
        whole_bytes: Size of the archive that is fetched whole, about.
        classes: Of how many classes members are read.
        per_class: How many of each.
        given: How many of them are read after the directory.
    """

    directory: VirtualSpec = field(default_factory=VirtualSpec)
    members: VirtualSpec = TENTH
    whole_bytes: int = 2 << 30
    classes: int = 10
    per_class: int = 100
    given: int = 100


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a contender is told.

    Attributes:
        url: Where the archive is.
        names: Members to read, in the order of the archive.
        cache: Folder for kept directories.
        output: Folder for what is fetched whole.
        jobs: Connections.
    """

    url: str
    names: list[str] = field(default_factory=list)
    cache: str = ""
    output: str = ""
    jobs: int = 8


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a step took; costs add up.

    Attributes:
        seconds: Wall time.
        cpu_seconds: Processor time, user and system, of the contender with its children.
        peak_bytes: Largest resident set of any process of the contender since that process began.
        wire_bytes: Bytes of bodies that the server sent.
        requests: Requests that it answered.
        server_seconds: Processor time of the server.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    wire_bytes: int
    requests: int
    server_seconds: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            seconds=self.seconds + other.seconds,
            cpu_seconds=self.cpu_seconds + other.cpu_seconds,
            peak_bytes=max(self.peak_bytes, other.peak_bytes),
            wire_bytes=self.wire_bytes + other.wire_bytes,
            requests=self.requests + other.requests,
            server_seconds=self.server_seconds + other.server_seconds,
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """One contender, measured once in one round of one part: the sum of the steps that count, and each by itself."""

    part: str
    contender: str
    latency: float
    round: int
    total: Cost
    steps: dict[str, Cost]


# Contenders


def imgprep_members(job: Job) -> Steps:
    """Ours: the directory by ranges or from the cache, then the members, all checked."""
    import numpy as np

    from imgprep.sources.remote_zip import RemoteZip
    from imgprep.transfer import RemoteFile, TransferSpec

    remote = RemoteFile(lambda: job.url, what="archive.zip", spec=TransferSpec(jobs=job.jobs))
    yield {}
    with RemoteZip(remote, cache=Path(job.cache)) as archive:
        yield {"members": len(archive.directory)}
        read: list[int] = []
        numbers = np.array([archive.directory.find(name) for name in job.names], dtype=np.int64)
        for _ in archive.fetch(archive.plan(numbers), lambda _, content: read.append(len(content))):
            pass
        yield {"members": len(read), "bytes": sum(read)}


def _read_all(archive: zipfile.ZipFile, job: Job) -> Steps:
    """Members one after the other through the interface of zipfile, which checks them too."""
    yield {"members": len(archive.infolist())}
    read = [len(archive.read(name)) for name in job.names]
    yield {"members": len(read), "bytes": sum(read)}


def remotezip_members(job: Job) -> Steps:
    """The package remotezip, with a session, so that it keeps its connection."""
    remotezip, requests = importlib.import_module("remotezip"), importlib.import_module("requests")
    yield {}
    with requests.Session() as session, remotezip.RemoteZip(job.url, session=session) as archive:
        yield from _read_all(archive, job)


def fsspec_members(job: Job) -> Steps:
    """The package fsspec: a remote file with its default cache, opened by zipfile."""
    remote = importlib.import_module("fsspec").filesystem("http")
    importlib.import_module("aiohttp")
    yield {}
    with remote.open(job.url) as file, zipfile.ZipFile(file) as archive:
        yield from _read_all(archive, job)


def fsspec_ranges(job: Job) -> Steps:
    """The package fsspec, all ranges at once: what comes is cut and checked by hand, for stored members."""
    remote = importlib.import_module("fsspec").filesystem("http")
    importlib.import_module("aiohttp")
    yield {}
    with remote.open(job.url) as file, zipfile.ZipFile(file) as archive:
        yield {"members": len(archive.infolist())}
        infos = [archive.getinfo(name) for name in job.names]
        starts = [info.header_offset for info in infos]
        # Right only where local headers have no extra fields, as here.
        stops = [info.header_offset + 30 + len(info.filename) + info.compress_size for info in infos]
        blocks = remote.cat_ranges([job.url] * len(infos), starts, stops)
        contents = [memoryview(block)[-info.file_size :] for block, info in zip(blocks, infos, strict=True)]
        assert [zlib.crc32(content) for content in contents] == [info.CRC for info in infos]
        yield {"members": len(contents), "bytes": sum(map(len, contents))}


def imgprep_whole(job: Job) -> Steps:
    """Ours: in parts, every member checked, synced to the disk."""
    from imgprep.fetch.whole import fetch_whole, plan_whole
    from imgprep.sources.remote_zip import RemoteZip
    from imgprep.transfer import RemoteFile, TransferSpec
    from imgprep.workspace import Workspace

    remote = RemoteFile(lambda: job.url, what="archive.zip", spec=TransferSpec(jobs=job.jobs))
    yield {}
    with RemoteZip(remote, cache=Path(job.cache)) as archive:
        plan = plan_whole(Workspace(Path(job.output)), archive)
        fetch_whole(plan, archive)
        yield {"members": len(archive.directory), "bytes": plan.path.stat().st_size}


def _curl(job: Job, *after: str) -> Steps:
    target = Path(job.output) / "archive.zip"
    commands = [["curl", "-sS", "-o", str(target), job.url], *([*shlex.split(text), str(target)] for text in after)]
    yield {}
    peak = max(map(run_measured, commands))
    yield {"bytes": target.stat().st_size, "peak_bytes": peak}


def curl_whole(job: Job) -> Steps:
    """Curl alone: nothing is checked, nothing is synced."""
    return _curl(job)


def curl_sync(job: Job) -> Steps:
    """Curl, then the file synced to the disk."""
    return _curl(job, "sync")


def curl_check(job: Job) -> Steps:
    """Curl, then every member checked."""
    return _curl(job, _CHECK)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to do a part.

    Attributes:
        part: Which.
        name: What the tables call it.
        steps: What it does.
        jobs: Connections, for ours.
        kept: Whether it finds the directory in the cache.
        needs: Modules without which it is left out; ``curl`` is a program.
    """

    part: str
    name: str
    steps: Callable[[Job], Steps]
    jobs: int = 8
    kept: bool = False
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """What it needs and is not installed."""
        return [need for need in self.needs if not (importlib.util.find_spec(need) or shutil.which(need))]


CONTENDERS: Final = (
    Contender(part="directory", name="imgprep", steps=imgprep_members),
    Contender(part="directory", name="imgprep, directory kept", steps=imgprep_members, kept=True),
    Contender(part="directory", name="remotezip", steps=remotezip_members, needs=("remotezip",)),
    Contender(part="directory", name="fsspec, zipfile", steps=fsspec_members, needs=("fsspec", "aiohttp")),
    Contender(part="members", name="imgprep, 8 jobs", steps=imgprep_members, kept=True),
    Contender(part="members", name="imgprep, 64 jobs", steps=imgprep_members, jobs=64, kept=True),
    Contender(part="members", name="imgprep, 1 job", steps=imgprep_members, jobs=1, kept=True),
    Contender(part="members", name="remotezip", steps=remotezip_members, needs=("remotezip",)),
    Contender(part="members", name="fsspec, zipfile", steps=fsspec_members, needs=("fsspec", "aiohttp")),
    Contender(part="members", name="fsspec, cat_ranges", steps=fsspec_ranges, needs=("fsspec", "aiohttp")),
    Contender(part="whole", name="imgprep", steps=imgprep_whole),
    Contender(part="whole", name="curl", steps=curl_whole, needs=("curl",)),
    Contender(part="whole", name="curl && sync", steps=curl_sync, needs=("curl",)),
    Contender(part="whole", name="curl && check", steps=curl_check, needs=("curl",)),
)


# Processes


def say(answer: dict[str, Any]) -> None:
    """Answer the parent."""
    print(json.dumps(answer), flush=True)  # noqa: T201  # it is what the pipe is for


def peak_bytes(process: int | Literal["self"] = "self") -> int:
    """The largest resident set of a process so far; 0 when it has ended.

    VmHWM begins anew with a program, unlike ru_maxrss, which starts from what the parent had.
    """
    with contextlib.suppress(FileNotFoundError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def run_measured(command: Sequence[str]) -> int:
    """Run a command and tell the largest resident set that was seen; the end is noticed at once.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        ended = os.pidfd_open(process.pid)
        over = False
        while not over:
            peak = max(peak, peak_bytes(process.pid))
            over = bool(select.select([ended], [], [], 0.02)[0])
        os.close(ended)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak


def contend() -> None:
    """A process that runs one contender, a step for each line of its input."""
    order = json.loads(sys.stdin.readline())
    contender = next(c for c in CONTENDERS if (c.part, c.name) == (order["part"], order["name"]))
    steps = contender.steps(Job(**order["job"]))
    say(next(steps))
    for _ in sys.stdin:
        cpu, start = cpu_seconds(), time.perf_counter()
        facts = next(steps)
        seconds = time.perf_counter() - start
        say({"peak_bytes": peak_bytes(), **facts, "seconds": seconds, "cpu_seconds": cpu_seconds() - cpu})


def serve() -> None:
    """A process that serves one archive, once for each latency, and tells for each line what it sent since the last."""
    from imgprep.testing.archives import VirtualImagenet
    from imgprep.testing.kaggle import FileArchive, KaggleStandIn

    order = json.loads(sys.stdin.readline())
    archive = VirtualImagenet(VirtualSpec(**order["spec"])) if "spec" in order else FileArchive(Path(order["path"]))
    for offset in range(0, archive.size, 1 << 24) if "path" in order else (archive.size - 1000,):
        # Warm: the file is in the page cache, the directory is made.
        archive.pread(1 << 24, offset)
    with contextlib.ExitStack() as stack:
        stand_ins = [stack.enter_context(KaggleStandIn(archive, latency=seconds)) for seconds in order["latencies"]]
        say({"urls": [_sign(stand_in) for stand_in in stand_ins]})
        for _ in sys.stdin:
            log = [request for stand_in in stand_ins for request in stand_in.requests]
            for stand_in in stand_ins:
                stand_in.forget()
            wire_bytes = sum(request.num_bytes for request in log)
            say({"wire_bytes": wire_bytes, "requests": len(log), "server_seconds": cpu_seconds()})


def _sign(stand_in: Any) -> str:
    """The signed URL of the archive, as the API gives it."""
    connection = http.client.HTTPConnection("127.0.0.1", stand_in.port)
    with contextlib.closing(connection):
        connection.request(
            "POST",
            "/api/v1/competitions.CompetitionApiService/DownloadDataFiles",
            json.dumps({"competitionName": stand_in.competition}),
            {"Authorization": f"Bearer {stand_in.token}"},
        )
        return connection.getresponse().headers["Location"]


def choose() -> None:
    """A process that tells which training pictures a request chooses, and leaves the directory in the cache."""
    from imgprep.fetch.request import PartRequest
    from imgprep.fetch.request import choose as choose_members
    from imgprep.layouts.survey import survey
    from imgprep.selection import SubsetSpec
    from imgprep.sources.remote_zip import RemoteZip
    from imgprep.transfer import RemoteFile

    order = json.loads(sys.stdin.readline())
    request = PartRequest(subset=SubsetSpec(**order["subset"], val_per_class=0))
    with RemoteZip(RemoteFile(lambda: order["url"], what="archive.zip"), cache=Path(order["cache"])) as archive:
        found = survey(archive.directory, where="archive.zip")
        names = archive.directory.names(choose_members(found, request, archive.content).members)
        say({"names": [name for name in names if name.endswith(".JPEG")]})


ROLES: Final = {"serve": serve, "choose": choose, "contend": contend}


class Child:
    """A process of this script in a role, which answers each line with one.

    Args:
        role: Which.
        order: Its first line.

    Raises:
        RuntimeError: It ended without an answer; why stands on stderr.
    """

    def __init__(self, role: str, order: dict[str, Any]) -> None:
        command = [sys.executable, __file__, role]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._role = role
        self.ready = self.ask(order)

    def ask(self, order: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a line and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{json.dumps(order or {})}\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self.__exit__()
            message = f"the process in role {self._role} ended with status {self._process.returncode}"
            raise RuntimeError(message)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for its end: it leaves by itself where its input ends."""
        self._process.communicate()


# Measuring


def measure(part: str, scale: Scale, scratch: Path, *, repeats: int, tell: Callable[[str], None]) -> list[Run]:
    """Measure every contender of a part, in turn.

    Args:
        part: Which.
        scale: How large.
        scratch: Folder for archives and what is fetched; two and a half times the whole archive goes there.
        repeats: How many rounds.
        tell: Told of every run.
    """
    contenders = [contender for contender in CONTENDERS if contender.part == part]
    for contender in contenders:
        if contender.missing:
            tell(f"{part}: {contender.name} is left out: {', '.join(contender.missing)} is not installed")
    runs = []
    with (
        Child("serve", _served(part, scale, scratch)) as server,
        tempfile.TemporaryDirectory(prefix="kept-", dir=scratch) as cache,
    ):
        names = [] if part == "whole" else _chosen(part, scale, server.ready["urls"][0], cache)
        for round_ in range(repeats):
            for latency, url in zip(LATENCIES[part], server.ready["urls"], strict=True):
                if latency and round_:
                    # Mostly waiting, which does not vary: one round says it.
                    continue
                # The first after a pause may find the memory of the machine cold: each takes its turn at being first.
                first = round_ % len(contenders)
                for contender in [*contenders[first:], *contenders[:first]]:
                    if contender.missing:
                        continue
                    with tempfile.TemporaryDirectory(prefix="run-", dir=scratch) as folder:
                        kept = cache if contender.kept else folder
                        job = Job(url=url, names=names, cache=kept, output=folder, jobs=contender.jobs)
                        steps = _measure_one(contender, job, server)
                    total = sum((steps[step] for step in STEPS[part][1:]), start=steps[STEPS[part][0]])
                    run = Run(
                        part=part, contender=contender.name, latency=latency, round=round_, total=total, steps=steps
                    )
                    runs.append(run)
                    tell(f"{part}, {latency * 1000:.0f} ms, round {round_ + 1}: {contender.name} {total.seconds:.2f} s")
    return runs


def _measure_one(contender: Contender, job: Job, server: Child) -> dict[str, Cost]:
    # What earlier runs wrote is not this one's to wait for.
    os.sync()
    names = ("whole",) if contender.part == "whole" else ("open", "read")
    costs = {}
    with Child("contend", {"part": contender.part, "name": contender.name, "job": asdict(job)}) as child:
        for step in names:
            before = server.ask()
            took = child.ask()
            sent = server.ask()
            _check_work(step, took, job)
            costs[step] = Cost(
                seconds=took["seconds"],
                cpu_seconds=took["cpu_seconds"],
                peak_bytes=took["peak_bytes"],
                wire_bytes=sent["wire_bytes"],
                requests=sent["requests"],
                server_seconds=sent["server_seconds"] - before["server_seconds"],
            )
    return costs


def _check_work(step: str, took: dict[str, Any], job: Job) -> None:
    """A contender that did not do the work has no time."""
    if step == "read" and took["members"] != len(job.names):
        message = f"{took['members']} of {len(job.names)} members were read"
        raise RuntimeError(message)


def _served(part: str, scale: Scale, scratch: Path) -> dict[str, Any]:
    latencies = LATENCIES[part]
    if part == "whole":
        return {"path": str(make_zip(scratch, scale.whole_bytes)), "latencies": latencies}
    return {"spec": asdict(scale.directory if part == "directory" else scale.members), "latencies": latencies}


def _chosen(part: str, scale: Scale, url: str, cache: str) -> list[str]:
    subset = {"classes": scale.classes, "per_class": scale.per_class}
    with Child("choose", {"url": url, "cache": cache, "subset": subset}) as child:
        names: list[str] = child.ready["names"]
    assert len(names) == scale.classes * scale.per_class
    return names if part == "members" else names[:: max(1, len(names) // scale.given)]


def make_zip(folder: Path, num_bytes: int) -> Path:
    """A zip of about that size, of stored members of 110 kB that nothing can compress; made once."""
    import numpy as np

    path = folder / f"whole-{num_bytes}.zip"
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    unfinished = path.with_suffix(".unfinished")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
        for number in range(-(-num_bytes // 110_000)):
            wnid = f"n{number // 1300 + 1:08d}"
            name = f"ILSVRC/Data/CLS-LOC/train/{wnid}/{wnid}_{number}.JPEG"
            archive.writestr(zipfile.ZipInfo(name, (2012, 1, 1, 0, 0, 0)), rng.bytes(110_000))
    unfinished.rename(path)
    return path


# Reporting


def medians(runs: Sequence[Run]) -> dict[str, Cost]:
    """For every contender the median of each cost."""
    return {
        name: Cost(
            **{
                what: statistics.median(getattr(run.total, what) for run in runs if run.contender == name)
                for what in Cost.__dataclass_fields__
            }
        )
        for name in dict.fromkeys(map(attrgetter("contender"), runs))
    }


def table(runs: Sequence[Run]) -> list[str]:
    """One part at one latency as a table in Markdown."""
    lines = [
        "| contender | seconds: median (each) | CPU s | peak MB | MB on the wire | requests | CPU s of the server |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, cost in medians(runs).items():
        each = ", ".join(f"{run.total.seconds:.2f}" for run in runs if run.contender == name)
        lines.append(
            f"| {name} | {cost.seconds:.2f} ({each}) | {cost.cpu_seconds:.2f} | {cost.peak_bytes / MB:.0f} |"
            f" {cost.wire_bytes / MB:.1f} | {cost.requests:,.0f} | {cost.server_seconds:.2f} |"
        )
    return lines


def ratios(part: str, runs: Sequence[Run]) -> list[str]:
    """How the first contender, ours, compares with every peer, and whether the goals are met."""
    costs = medians(runs)
    name, ours = next(iter(costs.items()))
    peers = {peer: cost for peer, cost in costs.items() if not peer.startswith("imgprep")}
    lines = [
        f"{name} against {peer}: {cost.seconds / ours.seconds:.2f} x as fast,"
        f" {ours.peak_bytes / max(cost.peak_bytes, 1):.2f} x the memory,"
        f" {ours.cpu_seconds / max(cost.cpu_seconds, 1e-3):.2f} x the processor time"
        for peer, cost in peers.items()
    ]
    if part == "directory" and peers:
        fast = min(cost.seconds for cost in peers.values()) / ours.seconds
        small = min(cost.peak_bytes for cost in peers.values()) / ours.peak_bytes
        lines.append(f"goal: 5 x as fast as the best peer: {_verdict(fast, 5)}")
        lines.append(f"goal: 10 x less memory than the best peer: {_verdict(small, 10)}")
        lines.append(f"goal: at most 5 s and 250 MB: {ours.seconds:.2f} s, {ours.peak_bytes / MB:.0f} MB")
    if part == "whole":
        lines += [
            f"goal: 0.8 x as fast as {peer}: {_verdict(peers[peer].seconds / ours.seconds, 0.8)}"
            for peer in ("curl", "curl && sync")
            if peer in peers
        ]
    return lines


def _verdict(ratio: float, goal: float) -> str:
    return f"{ratio:.2f} x, {'met' if ratio >= goal else 'MISSED'}"


def machine() -> dict[str, str]:
    """The hardware and the versions of everything that takes part."""
    cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    model = next((line.partition(": ")[2] for line in cpus if line.startswith("model name")), platform.processor())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    curl = ["unknown", "not installed"]
    if shutil.which("curl"):
        curl = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()
    return {
        "processor": f"{model}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("imgprep", "numpy", "urllib3", *PEERS)},
        "curl": curl[1],
        "check": _CHECK.rpartition("/")[2],
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def report(machine_: dict[str, str], runs: Sequence[Run]) -> list[str]:
    """Everything for people."""
    lines = [f"{name}: {value}" for name, value in machine_.items()]
    for part in dict.fromkeys(map(attrgetter("part"), runs)):
        for latency in LATENCIES[part]:
            some = [run for run in runs if (run.part, run.latency) == (part, latency)]
            repeats = len({run.round for run in some})
            waiting = f", {latency * 1000:.0f} ms before every answer" if latency else ""
            lines += ["", f"{part}{waiting}, n={repeats}", "", *table(some), ""]
            lines += ratios(part, some)
    return lines


@click.command()
@click.argument("part", type=click.Choice([*STEPS, "all"]), default="all")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Rounds over all contenders.")
@click.option("--json", "numbers", type=click.Path(dir_okay=False, path_type=Path), help="Also write all raw numbers.")
@click.option(
    "--scratch",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder for the archive of 2 GiB, which stays there for the next time; by default a temporary one.",
)
def main(part: str, repeats: int, numbers: Path | None, scratch: Path | None) -> None:
    """Measure fetching against its peers on loopback."""
    found = machine()
    with contextlib.ExitStack() as stack:
        folder = scratch or stack.enter_context(tempfile.TemporaryDirectory(prefix="imgprep-benchmark-"))
        runs = [
            run
            for each in (STEPS if part == "all" else [part])
            for run in measure(
                each, Scale(), Path(folder), repeats=repeats, tell=lambda text: click.echo(text, err=True)
            )
        ]
    click.echo("\n".join([f"command: {shlex.join(['python', *sys.argv])}", *report(found, runs)]))
    if numbers is not None:
        document = {"command": sys.argv, "machine": found, "repeats": repeats, "runs": [asdict(run) for run in runs]}
        numbers.write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    ROLES.get(sys.argv[1] if len(sys.argv) > 1 else "", main)()
