"""Every cell of the table in imgprep/testing/faults.py: how a fetch ends, what lies on disk then, and the run after it.

Most cells call Online in this process, with waits of milliseconds. Where Kaggle is asked, its own client does it, in a
process that is kept from cell to cell. Some cells are played by the real command.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, get_args

import pytest
import urllib3
from _pytest.mark.structures import ParameterSet

from imgprep import transfer
from imgprep.backoff import Backoff
from imgprep.errors import ImgprepError
from imgprep.fetch import one_by_one
from imgprep.fetch.online import ARCHIVE_NAME, Online, OnlineSpec
from imgprep.fetch.part import part_folder
from imgprep.fetch.request import PartRequest
from imgprep.fetch.whole import whole_path
from imgprep.layouts.ilsvrc import MAPPING, VAL_SOLUTION
from imgprep.selection import SubsetSpec
from imgprep.sources.kaggle import KaggleCompetition, SignedUrl
from imgprep.sources.part import MEMBERS, RECORD
from imgprep.sources.zip_directory import TAIL_BYTES
from imgprep.testing.archives import VirtualImagenet, VirtualSpec
from imgprep.testing.faults import ROWS, WAYS, Outcome, Row, Way
from imgprep.testing.kaggle import Credentials, Fault, FaultKind, FileArchive, KaggleStandIn
from imgprep.transfer import TransferSpec
from imgprep.workspace import Workspace

ARCHIVE: Final = VirtualSpec(classes=4, train=120, val=24, test=600, train_xml=60, val_xml=24, picture_bytes=5_000)
"""4 MB in 836 members: enough names for a directory that is not read along with the end of the archive."""

PART_BYTES: Final = 1 << 19
PART: Final = SubsetSpec(classes=2, per_class=6, val_per_class=2)
LESS: Final = SubsetSpec(classes=1, per_class=2, val_per_class=1)
"""What was fetched before the fetch that is run again was begun."""

RECORDS: Final = (RECORD, MEMBERS, "source.json")

Tree = dict[str, str]
"""Names of files and digests of their bytes."""


class Direct(KaggleCompetition):
    """Addresses without Kaggle's client, for the cells that are about storage alone."""

    def __init__(self, stand_in: KaggleStandIn) -> None:
        super().__init__()
        self._stand_in = stand_in

    def _resolve(self, call: str, **asked: str) -> SignedUrl:
        response = urllib3.request(
            "POST",
            f"{self._stand_in.url}/api/v1/competitions.CompetitionApiService/{call}",
            json={"competitionName": self.competition, **asked},
            headers={"Authorization": f"Bearer {self._stand_in.token}"},
            redirect=False,
        )
        url = response.headers["Location"]
        return SignedUrl(url, url.partition("?")[0].rpartition("/")[2])

    def archive_url(self) -> SignedUrl:
        return self._resolve("DownloadDataFiles")

    def file_url(self, name: str) -> SignedUrl:
        return self._resolve("DownloadDataFile", fileName=name)


class Kept(KaggleCompetition):
    """Kaggle's client, in a process that goes on to the next cell with the same credentials: a start takes a second."""

    running: dict[Credentials, Any] = {}  # noqa: RUF012  # shared on purpose

    def __init__(self, credentials: Credentials, backoff: Backoff) -> None:
        super().__init__(backoff=backoff, timeout=4.0)
        self._credentials_kind = credentials
        self._child = self.running.pop(credentials, None)

    def close(self) -> None:
        if self._child is not None:
            self.running[self._credentials_kind] = self._child
            self._child = None


@dataclass(frozen=True)
class End:
    """How a fetch ended: exit code and message, and how many requests to storage planning took."""

    code: int
    message: str = ""
    planning: int = 0


def to_spec(way: Way, *, request: SubsetSpec = PART, overwrite: bool = False) -> OnlineSpec:
    return OnlineSpec(
        request=None if way.startswith("whole") else PartRequest(subset=request),
        transfer=TransferSpec(jobs=2, timeout=0.25),
        part_bytes=PART_BYTES,
        overwrite=overwrite,
    )


def play(home: Path, spec: OnlineSpec, stand_in: KaggleStandIn, kaggle: KaggleCompetition, backoff: Backoff) -> End:
    """What the command does, without the command line."""
    workspace = Workspace(home / "workspace")
    try:
        with Online(workspace, spec, cache=home / "cache", kaggle=kaggle, backoff=backoff) as online:
            plan = online.plan()
            planning = sum(request.path.startswith("/storage/") for request in stand_in.requests)
            workspace.root.mkdir(parents=True, exist_ok=True)
            online.run(plan)
    except ImgprepError as error:
        return End(error.exit_code, str(error))
    return End(0, planning=planning)


def quick(retries: int = 2) -> Backoff:
    return Backoff(retries=retries, base=0.004, longest=0.016)


def read_tree(home: Path) -> Tree:
    """Every file of a workspace, without times, without what the server calls the archive, and without the CRC-32 of
    its directory: a byte altered in there changes it even where no chosen member is concerned."""
    tree = {}
    root = home / "workspace"
    for path in sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".lock"):
        content = path.read_bytes()
        if path.name in ("source.json", RECORD):
            document = json.loads(content)
            document.pop("mtime_ns", None)
            if "archive" in document:
                document["archive"] |= {"etag": "", "last_modified": "", "directory_crc32": ""}
            content = json.dumps(document).encode()
        tree[str(path.relative_to(root))] = hashlib.sha256(content).hexdigest()
    return tree


class Lab:
    """An archive, its replacement, and for each way a place to start from and what an undisturbed fetch makes of it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers = itertools.count()
        self.archive, self.other = root / "archive.zip", root / "other.zip"
        VirtualImagenet(ARCHIVE).write(self.archive)
        VirtualImagenet(replace(ARCHIVE, seed=1)).write(self.other)
        self.members = {path: self._members(path) for path in (self.archive, self.other)}
        self._starts = {way: self._start(way) for way in WAYS}
        self._planning: dict[Way, int] = {}
        self._undisturbed: dict[tuple[Way, Path], Tree] = {}
        for way in WAYS:
            for archive in (self.archive, self.other):
                home = self.home(way)
                with KaggleStandIn(archive) as stand_in:
                    end = play(home, to_spec(way, overwrite=archive is self.other), stand_in, Direct(stand_in), quick())
                assert end.code == 0, end.message
                if archive is self.archive:
                    self._planning[way] = end.planning
                self._undisturbed[way, archive] = read_tree(home)
                shutil.rmtree(home)

    @staticmethod
    def _members(path: Path) -> Mapping[str, tuple[int, int]]:
        with zipfile.ZipFile(path) as archive:
            return {info.filename: (info.file_size, info.CRC) for info in archive.infolist()}

    def _start(self, way: Way) -> Path:
        home = self._root / way.replace(" ", "-")
        home.mkdir()
        if way.endswith("again"):
            with KaggleStandIn(self.archive) as stand_in:
                assert play(home, to_spec("part", request=LESS), stand_in, Direct(stand_in), quick()).code == 0
                stand_in.add_fault(Fault(kind="close", after=4, times=None))
                assert play(home, to_spec(way), stand_in, Direct(stand_in), quick(0)).code == 5
        return home

    def home(self, way: Way, *, without_cache: bool = False) -> Path:
        """A folder of its own, as it is before the fetch."""
        home = self._root / f"home-{next(self._numbers)}"
        shutil.copytree(self._starts[way], home)
        if without_cache:
            shutil.rmtree(home / "cache", ignore_errors=True)
        return home

    def undisturbed(self, way: Way, archive: Path) -> Tree:
        return self._undisturbed[way, archive]

    def aim(self, row: Row, way: Way) -> list[Fault]:
        """The faults of a row, with the requests counted that come before its place."""
        first = {"directory": 1, "files": self._planning[way] + 1}.get(row.place, 0)
        if row.place == "new address":
            expired, refusal = row.faults
            return [replace(expired, after=self._planning[way] + 1), replace(refusal, after=1)]
        other = FileArchive(self.other) if row.other_content else None
        faults = [replace(fault, after=fault.after + first, replacement=other) for fault in row.faults]
        return [replace(fault, percent=self._wanted_entry()) for fault in faults] if row.wanted_entry else faults

    def _wanted_entry(self) -> float:
        """Where the directory gives the CRC-32 of the class list (APPNOTE 4.3.12), as a share of the first request."""
        tail = self.archive.read_bytes()[-TAIL_BYTES:]
        return (tail.rindex(MAPPING.encode()) - 46 + 16 + 0.5) / len(tail) * 100

    def check_disk(self, home: Path) -> None:
        """Nothing is there under a name that it does not deserve."""
        workspace = Workspace(home / "workspace")
        folder, whole = part_folder(workspace, ARCHIVE_NAME), whole_path(workspace, ARCHIVE_NAME)
        for path in (path for path in folder.rglob("*") if path.is_file() and path.name not in RECORDS):
            name, content = str(path.relative_to(folder)), path.read_bytes()
            found = len(content), zlib.crc32(content)
            assert found in [members.get(name) for members in self.members.values()], path
        if whole.exists():
            assert whole.read_bytes() in [path.read_bytes() for path in self.members]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def shared(lab: Lab) -> Iterator[KaggleStandIn]:
    """A stand-in for all cells that leave it as it is: Kaggle's client stays with the address it was started for."""
    with KaggleStandIn(lab.archive) as stand_in:
        yield stand_in
        for child in Kept.running.values():
            child.close()
        Kept.running.clear()


@pytest.fixture
def stand_in(lab: Lab, shared: KaggleStandIn, row: Row, way: Way) -> Iterator[KaggleStandIn]:
    """A stand-in with the faults of a row."""
    with contextlib.ExitStack() as stack:
        if row.zipped or any(fault.kind == "replaced" for fault in row.faults):
            zipped = (MAPPING, VAL_SOLUTION) if row.zipped else ()
            shared = stack.enter_context(KaggleStandIn(lab.archive, zipped_files=zipped))
        shared.forget()
        for fault in lab.aim(row, way):
            shared.add_fault(fault)
        yield shared
        shared.clear_faults()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_SLOW_SECONDS", 0.25)
    monkeypatch.setattr(one_by_one, "SECONDS_A_FILE", 0)


def check(lab: Lab, row: Row, way: Way, home: Path, before: Tree, end: End) -> None:
    """Compare an end with the table: the code, the disk, and what was recorded before."""
    outcome: Outcome = row.outcomes[way]
    after = read_tree(home)
    if outcome.startswith("exit"):
        assert f"exit {end.code}" == outcome, end.message
        records = [name for name in before if name.rpartition("/")[2] in RECORDS]
        assert {name: after.get(name) for name in records} == {name: before[name] for name in records}
        assert [name for name in after if name.endswith(".tmp")] == []
        lab.check_disk(home)
        return
    assert end.code == 0, end.message
    expected = lab.undisturbed(way, lab.archive)
    if outcome == "recovered":
        assert after == expected
    else:
        lab.check_disk(home)
        pictures = {name for name in expected if name.endswith((".JPEG", MAPPING, VAL_SOLUTION))}
        assert {name: after[name] for name in pictures} == {name: expected[name] for name in pictures}
        assert {Path(name).name for name in after.keys() - pictures} == set(RECORDS)


def check_next_run(lab: Lab, row: Row, way: Way, home: Path, stand_in: KaggleStandIn) -> None:
    """Without the fault the same request succeeds, and what it leaves is what an undisturbed fetch leaves."""
    overwrite = row.other_content or row.outcomes[way] == "fewer files"
    stand_in.clear_faults()
    stand_in.forget()

    end = play(home, to_spec(way, overwrite=overwrite), stand_in, Direct(stand_in), quick())

    assert end.code == 0, end.message
    after, expected = read_tree(home), lab.undisturbed(way, lab.other if row.other_content else lab.archive)
    if row.other_content:
        # What came of the old archive and was not recorded yet may stay: it is nobody's.
        lab.check_disk(home)
        after = {name: after[name] for name in expected}
    assert after == expected
    if row.outcomes[way] == "recovered":
        assert stand_in.requests == []


def cells(*, asking: bool) -> list[ParameterSet]:
    """Row and way of each outcome in the table, about storage or about asking Kaggle."""
    rows = [row for row in ROWS if (row.place in ("question", "new address", "login")) is asking]
    return [pytest.param(row, way, id=f"{row.name}-{way.replace(' ', '-')}") for row in rows for way in row.outcomes]


def assert_struck(row: Row, stand_in: KaggleStandIn) -> None:
    assert {fault.kind for fault in row.faults} <= {request.fault for request in stand_in.requests}


@pytest.mark.parametrize(("row", "way"), cells(asking=False))
def test_storage(lab: Lab, stand_in: KaggleStandIn, row: Row, way: Way) -> None:
    home = lab.home(way, without_cache=row.place == "directory" or row.wanted_entry)
    before = read_tree(home)

    end = play(home, to_spec(way), stand_in, Direct(stand_in), quick())

    assert_struck(row, stand_in)
    check(lab, row, way, home, before, end)
    check_next_run(lab, row, way, home, stand_in)
    shutil.rmtree(home)


@pytest.mark.parametrize(("row", "way"), cells(asking=True))
def test_asking(lab: Lab, stand_in: KaggleStandIn, monkeypatch: pytest.MonkeyPatch, row: Row, way: Way) -> None:
    home = lab.home(way)
    before = read_tree(home)
    for name, value in stand_in.environment(home, credentials=row.credentials).items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    backoff = quick(1 if row.faults and row.faults[-1].kind == "stall" else 2)

    end = play(home, to_spec(way), stand_in, Kept(row.credentials, backoff), backoff)

    assert_struck(row, stand_in)
    check(lab, row, way, home, before, end)
    check_next_run(lab, row, way, home, stand_in)
    shutil.rmtree(home)


REAL: Final[Mapping[str, Way]] = {
    "cut-files-once": "part",
    "close-files-ever": "part again",
    "expired-files-once": "whole",
    "wrong-range-directory-once": "whole again",
    "flip-files-ever": "part",
    "flip-no-ranges-once": "whole",
    "replaced-files-once": "whole",
    "close-question-once": "part",
    "close-question-ever": "whole",
    "stall-question-once": "part",
    "status-429-after-1-question-once": "part",
    "status-429-after-3600-question-ever": "whole again",
    "status-500-question-ever": "part",
    "status-503-question-once": "whole",
    "status-404-question-ever": "part",
    "status-403-question-ever": "part again",
    "status-400-question-ever": "part",
    "rules-question-ever": "whole",
    "html-question-ever": "part",
    "json-error-question-once": "part",
    "status-429-new-address-once": "whole",
    "rules-new-address-ever": "part",
    "wrong-key-login-ever": "part",
    "wrong-token-login-ever": "part",
    "none-login-ever": "part",
}
"""Cells for the real command with Kaggle's own client."""


@pytest.mark.parametrize(
    ("row", "way"), [pytest.param(row, REAL[row.name], id=row.name) for row in ROWS if row.name in REAL]
)
def test_command(lab: Lab, stand_in: KaggleStandIn, row: Row, way: Way) -> None:
    home = lab.home(way, without_cache=row.place == "directory")
    before = read_tree(home)
    request = ["--yes"] if way.startswith("whole") else ["--classes", "2", "--per-class", "6", "--val-per-class", "2"]

    done = subprocess.run(
        [sys.executable, "-m", "imgprep", "fetch", *request, "--jobs", "2", "--retries", "1", "--timeout", "4"],
        cwd=home,
        env=stand_in.child_environment(home, credentials=row.credentials)
        | {"IMGPREP_WORKSPACE": str(home / "workspace"), "IMGPREP_CACHE": str(home / "cache")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    last = (done.stderr.splitlines() or [""])[-1]
    assert last.startswith("Error: ") is bool(done.returncode)
    assert "bug in imgprep" not in last
    assert not re.search(rf"Traceback|Signature=|{stand_in.key}|{stand_in.token}", done.stdout + done.stderr)
    assert_struck(row, stand_in)
    check(lab, row, way, home, before, End(done.returncode, done.stderr))
    check_next_run(lab, row, way, home, stand_in)
    shutil.rmtree(home)


def test_table_covers_every_fault_of_the_stand_in() -> None:
    assert {fault.kind for row in ROWS for fault in row.faults} == set(get_args(FaultKind))
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert REAL.keys() <= {row.name for row in ROWS}
