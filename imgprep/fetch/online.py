"""Fetch from Kaggle: open the archive once, plan, do, and tell what it took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from imgprep.backoff import Backoff
from imgprep.errors import DamagedError, LockedError, MissingInputError, NetworkError, OutputExistsError, SourceError
from imgprep.fetch.one_by_one import FileFetcher, FilesPlan, fetch_files, plan_files
from imgprep.fetch.part import PartPlan, fetch_part, find_met, find_record, part_folder, plan_part
from imgprep.fetch.request import PartRequest, choose
from imgprep.fetch.sequential import fetch_sequentially
from imgprep.fetch.whole import (
    WholePlan,
    bytes_by_ranges,
    check_ours,
    claim,
    fetch_whole,
    forget_state,
    plan_whole,
    whole_path,
)
from imgprep.layouts import find_layout
from imgprep.layouts.survey import survey
from imgprep.receipts import Action
from imgprep.sources import open_source
from imgprep.sources.adopted import (
    SourceRecord,
    describe_source,
    open_adopted,
    read_source_record,
    write_source_record,
)
from imgprep.sources.kaggle import COMPETITION, KaggleCompetition
from imgprep.sources.part import PartRecord
from imgprep.sources.remote_zip import RemoteZip
from imgprep.sources.zip import ZipSource
from imgprep.stats import SILENT, Progress
from imgprep.transfer import RangesIgnoredError, RemoteFile, TransferSpec, Wire
from imgprep.workspace import Workspace, default_cache

ARCHIVE_NAME = f"{COMPETITION}.zip"
"""What the archive is called, whatever name the server gives it."""

Way = Literal["part", "whole", "sequential", "one by one"]


@dataclass(frozen=True, kw_only=True)
class OnlineSpec:
    """A request to Kaggle.

    Attributes:
        request: The part to fetch; None for the whole archive.
        transfer: How to treat the network.
        retries: Failures in a row after which to give up.
        overwrite: Go over to the archive as it is now, and to what is asked for now.
        part_bytes: Bytes of the parts in which a whole archive is fetched; None to choose them by its size.
    """

    request: PartRequest | None = None
    transfer: TransferSpec = field(default_factory=TransferSpec)
    retries: int = 8
    overwrite: bool = False
    part_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class OnlinePlan:
    """What a request comes to.

    Attributes:
        action: ``skip`` when all of it is here.
        way: How it is fetched.
        path: Where it will lie.
        archive_bytes: Size of the archive; 0 where it is not known.
        num_files: Files to fetch.
        num_held: Files of the part, or of the archive, when it is done.
        read_bytes: Bytes to fetch; 0 where that is not known.
        num_requests: Requests that takes.
        pictures: Pictures of this request by split; empty for a whole archive.
        detail: The plan itself.
        source: What the workspace says of its source, as it was when this was planned.
        before: The record of the part, as it was when this was planned.
    """

    action: Action
    way: Way
    path: Path
    archive_bytes: int
    num_files: int = 0
    num_held: int = 0
    read_bytes: int = 0
    num_requests: int = 0
    pictures: Mapping[str, int] = field(default_factory=dict)
    detail: PartPlan | WholePlan | FilesPlan | None = None
    source: SourceRecord | None = None
    before: PartRecord | None = None


@dataclass(frozen=True, kw_only=True)
class OnlineReport:
    """What fetching took.

    Attributes:
        plan: What was planned.
        record: What the workspace now says of its source.
        wire_bytes: Bytes of bodies that came over the network, the directory and repetitions included.
        requests: HTTP requests to storage.
        retries: Requests, members or questions that had to be repeated.
        checked: Members whose CRC-32 was checked.
        seconds: Time from the first question to the end.
        unneeded: A part that was fetched before and that nothing reads any more; None when there is none.
    """

    plan: OnlinePlan
    record: SourceRecord | None
    wire_bytes: int
    requests: int
    retries: int
    checked: int
    seconds: float
    unneeded: Path | None = None


class Online:
    """One conversation with Kaggle about one request.

    Args:
        workspace: Where to fetch to. It need not exist yet.
        spec: The request.
        cache: Where directories are kept.
        progress: Told of everything that takes long.
        kaggle: What gives addresses; by default Kaggle itself.
        backoff: How long to wait; by default from the spec.
    """

    def __init__(
        self,
        workspace: Workspace,
        spec: OnlineSpec,
        *,
        cache: Path | None = None,
        progress: Progress = SILENT,
        kaggle: KaggleCompetition | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self.workspace = workspace
        self.spec = spec
        self.wire = Wire()
        self.warnings: list[str] = []
        self._cache = cache or default_cache()
        self._progress = progress
        self._backoff = backoff or Backoff(retries=spec.retries)
        self._kaggle = kaggle or KaggleCompetition(backoff=self._backoff, timeout=spec.transfer.timeout)
        self._remote: RemoteZip | None = None
        self._file: RemoteFile | None = None
        self._fetcher: FileFetcher | None = None
        self._start = time.monotonic()

    def plan(self) -> OnlinePlan:
        """Find out what there is to do; writes nothing to the workspace.

        Raises:
            OutputExistsError: The workspace holds another source.
            ChangedError: What is here came from another archive.
            AccessError: No credentials, or the rules are not accepted.
            NetworkError: The network failed after every retry.
            UsageError: The request cannot be met.
        """
        if self.spec.request is not None:
            # A manifest that is not there is said whatever the workspace has.
            self.spec.request.to_options()
        source = self._check_source()
        met = self._find_met(source)
        if met is not None:
            return met
        try:
            remote = self._open()
        except RangesIgnoredError:
            return replace(self._plan_without_ranges(), source=source)
        if self.spec.request is None:
            whole = plan_whole(self.workspace, remote, overwrite=self.spec.overwrite, part_bytes=self.spec.part_bytes)
            members = sum(len(part.members) for part in whole.missing)
            return OnlinePlan(
                action="run",
                way="whole",
                path=whole.path,
                archive_bytes=whole.archive.num_bytes,
                num_files=members + len(whole.spanning),
                num_held=whole.archive.num_members,
                read_bytes=whole.read_bytes,
                num_requests=len(whole.missing),
                detail=whole,
                source=source,
            )
        part = plan_part(
            self.workspace, self.spec.request, remote, overwrite=self.spec.overwrite, progress=self._progress
        )
        if part.dropped:
            self.warnings.append(
                f"{part.dropped}: what was asked for before is forgotten, and asking again fetches what is missing"
            )
        return OnlinePlan(
            action="run",
            way="part",
            path=part.folder,
            archive_bytes=part.record.archive.num_bytes,
            num_files=len(part.missing),
            num_held=len(part.record.members),
            read_bytes=part.read_bytes,
            num_requests=len(part.reads),
            pictures=part.choice.pictures if part.choice else {},
            detail=part,
            source=source,
            before=self._find_record(part.folder),
        )

    def _find_record(self, folder: Path) -> PartRecord | None:
        return find_record(folder, overwrite=self.spec.overwrite)[0]

    def run(self, plan: OnlinePlan) -> OnlineReport:
        """Do what :meth:`plan` decided, and make it the source of the workspace, whose lock the caller holds.

        Raises:
            LockedError: Another process changed the workspace since the plan was made.
            NoSpaceError: There is not room for it.
            DamagedError: Something is wrong each time it is read.
            NetworkError: The network failed after every retry.
        """
        if plan.action == "skip":
            if plan.way == "whole":
                # A kill between the last two steps below.
                forget_state(plan.path)
            return self._report(plan, plan.source, checked=plan.num_held if plan.way == "part" else 0)
        if _source_of(self.workspace) != plan.source or (plan.before and self._find_record(plan.path) != plan.before):
            raise LockedError(
                f"another process fetched to {self.workspace.root} meanwhile", "run the same command again"
            )
        with self._unwinding():
            checked = self._fetch(plan)
        if plan.way == "sequential":
            plan = replace(plan, num_files=checked, num_held=checked)
        record = self._adopt(plan.path)
        if plan.way in ("whole", "sequential"):
            forget_state(plan.path)
        return self._report(plan, record, checked=checked)

    def _fetch(self, plan: OnlinePlan) -> int:
        """Fetch what is missing; returns how many members were checked."""
        match plan.detail:
            case PartPlan() as part if self._remote is not None:
                fetch_part(part, self._remote, progress=self._progress)
                return plan.num_held
            case WholePlan() as whole if self._remote is not None:
                fetch_whole(whole, self._remote, progress=self._progress)
                return plan.num_held
            case FilesPlan() as files if self._fetcher is not None and self.spec.request is not None:
                before = self._find_record(plan.path)
                fetch_files(
                    files,
                    plan.path,
                    self.spec.request,
                    before,
                    self._fetcher.read,
                    archive=ARCHIVE_NAME,
                    progress=self._progress,
                )
                return 0
        if self._file is None:
            message = "plan() comes before run()"
            raise RuntimeError(message)
        claim(plan.path)
        archive = fetch_sequentially(self._file, plan.path, backoff=self._backoff, progress=self._progress)
        return archive.num_members

    def _check_source(self) -> SourceRecord | None:
        """What the workspace has adopted.

        Raises:
            OutputExistsError: It is something that was not fetched from Kaggle.
        """
        source = _source_of(self.workspace)
        if source is None or self.spec.overwrite:
            return source
        path = self.workspace.root / source.path
        # A folder of that name may also be an archive that someone unpacked and adopted.
        is_part = path == part_folder(self.workspace, ARCHIVE_NAME) and source.kind == "part"
        if not is_part and path != whole_path(self.workspace, ARCHIVE_NAME):
            raise OutputExistsError(
                f"{self.workspace.root} has another source: {source.kind} {source.path}",
                "use --overwrite to fetch in its place, or another --workspace",
            )
        return source

    def _find_met(self, source: SourceRecord | None) -> OnlinePlan | None:
        """A plan with nothing to do, made without the network, when everything asked for is here."""
        if self.spec.overwrite or source is None:
            return None
        if self.workspace.root / source.path == whole_path(self.workspace, ARCHIVE_NAME):
            try:
                return self._plan_from_whole(source)
            except MissingInputError:
                # It was deleted; whoever asks for a part now means to do without it.
                pass
            except SourceError as error:
                raise SourceError(error.what, "run the same command with --overwrite to fetch it anew") from None
        if self.spec.request is None:
            return None
        part = find_met(self.workspace, self.spec.request, ARCHIVE_NAME, progress=self._progress)
        if part is None:
            return None
        if not part.record.archive.num_bytes:
            self.warnings.append(
                "this part was fetched one by one, without annotations and the archive's checksums; where ranges work,"
                " --overwrite completes it"
            )
        return OnlinePlan(
            action="skip",
            way="part",
            path=part.folder,
            archive_bytes=part.record.archive.num_bytes,
            num_held=len(part.record.members),
            source=source,
        )

    def _plan_from_whole(self, source: SourceRecord) -> OnlinePlan:
        """The plan where the whole archive is here: nothing to do, if what is asked for can be chosen from it.

        Raises:
            MissingInputError: It is gone.
            SourceError: It is another one than was fetched.
            UsageError: The request cannot be met.
        """
        pictures: Mapping[str, int] = {}
        # Also where it was copied, which gives it another time: then its listing is compared.
        archive, _ = open_adopted(self.workspace)
        with archive:
            if self.spec.request is not None and isinstance(archive, ZipSource):
                found, names = survey(archive.directory, where=ARCHIVE_NAME), archive.directory.name
                pictures = choose(found, self.spec.request, lambda member: archive.read(names(member))).pictures
        return OnlinePlan(
            action="skip",
            way="whole",
            path=self.workspace.root / source.path,
            archive_bytes=source.num_bytes,
            num_held=source.num_members,
            pictures=pictures,
            source=source,
        )

    def _open(self) -> RemoteZip:
        self._file = RemoteFile(
            lambda: self._kaggle.archive_url().url,
            what=ARCHIVE_NAME,
            spec=self.spec.transfer,
            backoff=self._backoff,
            wire=self.wire,
        )
        with self._unwinding():
            self._remote = RemoteZip(self._file, cache=self._cache, progress=self._progress)
        return self._remote

    def _plan_without_ranges(self) -> OnlinePlan:
        """The slow ways, for a server or a proxy that cannot send a part of a file."""
        if self._file is None:
            message = "the archive was not opened"
            raise RuntimeError(message)
        size = self._file.identity.num_bytes
        if self.spec.request is None:
            path = whole_path(self.workspace, ARCHIVE_NAME)
            check_ours(path, overwrite=self.spec.overwrite)
            held = bytes_by_ranges(path)
            if held and not self.spec.overwrite:
                raise NetworkError(
                    f"the server ignores ranges now, and {held:,} bytes of {path.name} came by ranges before",
                    "try again later or from another network; --overwrite drops them and begins anew, without ranges",
                )
            self.warnings.append("the server ignores ranges: one connection, and a broken one begins from the start")
            return OnlinePlan(
                action="run", way="sequential", path=path, archive_bytes=size, read_bytes=size, num_requests=1
            )
        self.warnings.append(
            "the server ignores ranges: fetching one by one, slowly, without the archive's checksums and without"
            " annotations"
        )
        self._fetcher = FileFetcher(self._kaggle, self.spec.transfer, self._backoff, self.wire)
        files = plan_files(self.spec.request, self._fetcher.read)
        path = part_folder(self.workspace, ARCHIVE_NAME)
        before = self._find_record(path)
        here = set() if before is None else set(before.members)
        missing = [name for name in files.names if name not in here]
        return OnlinePlan(
            action="run",
            way="one by one",
            path=path,
            archive_bytes=size,
            num_files=len(missing),
            num_held=len(here | set(files.names)),
            num_requests=len(missing),
            pictures=files.pictures,
            detail=files,
            before=before,
        )

    def _adopt(self, path: Path) -> SourceRecord:
        with open_source(path, cache=self._cache, progress=self._progress) as source:
            record = describe_source(self.workspace, source, layout=find_layout(source).name)
        # An equal record is not written again: a kill in that would be taken for up to date.
        if record != _source_of(self.workspace):
            write_source_record(self.workspace, record)
        return record

    def _report(self, plan: OnlinePlan, record: SourceRecord | None, *, checked: int) -> OnlineReport:
        part = part_folder(self.workspace, ARCHIVE_NAME)
        return OnlineReport(
            plan=plan,
            record=record,
            wire_bytes=self.wire.num_bytes,
            requests=self.wire.requests,
            retries=self.wire.retries + self._kaggle.retries,
            checked=checked,
            seconds=time.monotonic() - self._start,
            unneeded=part if plan.path == whole_path(self.workspace, ARCHIVE_NAME) and part.exists() else None,
        )

    @contextlib.contextmanager
    def _unwinding(self) -> Iterator[None]:
        """Wake up every thread that waits for the network when the block is left early."""
        try:
            yield
        except RangesIgnoredError:
            # There are other ways, and the same threads go them.
            raise
        except BaseException:
            self._backoff.stop.set()
            raise

    @property
    def bytes_per_second(self) -> float | None:
        """How fast bytes have come so far; None when too few have come to tell."""
        seconds = time.monotonic() - self._start
        return self.wire.num_bytes / seconds if self.wire.num_bytes > _TELLING_BYTES else None

    def close(self) -> None:
        """Close all connections."""
        if self._file is not None:
            self._file.close()
        self._kaggle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_TELLING_BYTES = 16 << 20


def _source_of(workspace: Workspace) -> SourceRecord | None:
    try:
        return read_source_record(workspace)
    except (MissingInputError, DamagedError):
        return None


def report_document(report: OnlineReport) -> dict[str, Any]:
    """The report as JSON values."""
    plan = report.plan
    return {
        "action": plan.action,
        "way": plan.way,
        "path": str(plan.path),
        "archive_bytes": plan.archive_bytes,
        "files_fetched": plan.num_files,
        "files_held": plan.num_held,
        "pictures": dict(plan.pictures),
        "wire_bytes": report.wire_bytes,
        "requests": report.requests,
        "retries": report.retries,
        "members_checked": report.checked,
        "seconds": round(report.seconds, 3),
    }
