"""Fetch a part of a remote zip: chosen members at their own paths, each checked, what is there already kept."""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from imgprep.errors import ChangedError, DamagedError, MemberError, MissingInputError, SourceError
from imgprep.fetch.request import PartChoice, PartRequest, choose
from imgprep.fetch.space import check_space
from imgprep.files import sync_filesystem
from imgprep.layouts.survey import Members, survey
from imgprep.receipts import Action
from imgprep.sources import Member, listing_digest
from imgprep.sources.adopted import read_source_record
from imgprep.sources.part import (
    ArchiveRecord,
    ForeignRecordError,
    PartRecord,
    is_reserved,
    read_part_record,
    write_part_record,
)
from imgprep.sources.remote_zip import Read, RemoteZip
from imgprep.sources.zip_directory import is_safe_name
from imgprep.stats import SILENT, Progress
from imgprep.workspace import Workspace

_BLOCK: Final = 4096
"""Bytes that even the smallest file takes on common filesystems."""

_CHECKERS: Final = 8
_LOT: Final = 256


@dataclass(frozen=True, kw_only=True)
class PartPlan:
    """What a part comes to; made without writing anything.

    Attributes:
        action: ``skip`` when it is all here.
        folder: Where the members lie.
        record: What is to be recorded in the end.
        choice: The members of this request; None when it was not looked at because all is here.
        missing: Numbers of the members to fetch, of this and earlier requests.
        held: Those of them that were read already, to choose by.
        reads: The requests that fetch the others.
        removed: Names of members of earlier requests that are to go.
        dropped: Why the record of earlier requests cannot be used; empty when it can, or there is none.
    """

    action: Action
    folder: Path
    record: PartRecord
    choice: PartChoice | None = None
    missing: Members
    held: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    reads: tuple[Read, ...] = ()
    removed: tuple[str, ...] = ()
    dropped: str = ""

    @property
    def read_bytes(self) -> int:
        """Bytes that will go over the network."""
        return sum(read.stop - read.start for read in self.reads)


def part_folder(workspace: Workspace, archive: str) -> Path:
    """Where the members of a partly fetched archive lie."""
    return workspace.root / "raw" / archive.removesuffix(".zip")


def find_record(folder: Path, *, overwrite: bool = False) -> tuple[PartRecord | None, str]:
    """The record of what was fetched before, or None where nothing usable is.

    Everything on disk is compared with the archive anyway: a lost record costs a look, not a transfer.

    Args:
        folder: Where the part lies.
        overwrite: Begin anew also where another version of imgprep wrote the record.

    Returns:
        The record, and why one that is there cannot be used.

    Raises:
        ForeignRecordError: Another version of imgprep wrote it.
    """
    try:
        return read_part_record(folder), ""
    except FileNotFoundError:
        return None, ""
    except ForeignRecordError:
        if not overwrite:
            raise
        return None, ""
    except DamagedError as error:
        return None, error.what


def find_met(
    workspace: Workspace, request: PartRequest, archive: str, *, progress: Progress = SILENT
) -> PartPlan | None:
    """The plan that has nothing to do, when this very request was met before and all of it is still whole.

    Needs no network: a script that fetches may run where there is none.

    Args:
        workspace: Where to look.
        request: What is asked for.
        archive: Name of the archive.
        progress: Told of the files that are checked.
    """
    folder = part_folder(workspace, archive)
    try:
        record, source = read_part_record(folder), read_source_record(workspace)
    except (FileNotFoundError, MissingInputError, DamagedError):
        return None
    members = list(record.members.values())
    adopted = workspace.root / source.path == folder and source.listing_sha256 == listing_digest(members)
    if not adopted or request.to_options() not in record.requests:
        return None
    if not all(whole_files(folder, members, progress=progress)):
        return None
    return PartPlan(action="skip", folder=folder, record=record, missing=np.zeros(0, dtype=np.int64))


def plan_part(
    workspace: Workspace,
    request: PartRequest,
    remote: RemoteZip,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> PartPlan:
    """Decide what to fetch; reads the directory and a few lists, writes nothing to the workspace.

    Args:
        workspace: Where the part is to lie. It need not exist yet.
        request: What is asked for.
        remote: The archive.
        overwrite: Go over to the archive as it is now, and keep only what this request asks for.
        progress: Told of local files that are checked.

    Raises:
        ChangedError: What is here came from another archive.
        UsageError: The request cannot be met.
        DamagedError: The archive or a list in it is damaged.
    """
    archive = remote.remote.what
    folder = part_folder(workspace, archive)
    before, dropped = find_record(folder, overwrite=overwrite)
    if before is not None and not overwrite:
        _check_same(before.archive, remote)
    content = Contents(remote, folder)
    found = survey(remote.directory, where=archive)
    if is_reserved(found.prefix):
        raise SourceError(f"{archive} holds a tree at {found.prefix!r}, where the record of a part lies")
    choice = choose(found, request, content)
    kept = {} if before is None or overwrite else before.members
    wanted = np.union1d(choice.members, _numbers(remote, kept)).astype(np.int64)
    members = _members(remote, wanted)
    present = np.fromiter(whole_files(folder, members, progress=progress), dtype=bool, count=len(members))
    missing = wanted[~present]
    held = {int(number): content.read[int(number)] for number in missing if int(number) in content.read}
    options = request.to_options()
    earlier = () if before is None or overwrite else before.requests
    record = PartRecord(
        archive=replace(
            describe_archive(remote), smallest_class=min((len(some) for some in found.train.values()), default=0)
        ),
        requests=(*earlier, options) if options not in earlier else earlier,
        members={member.name: member for member in members},
    )
    removed = tuple(sorted(before.members.keys() - record.members.keys())) if before is not None else ()
    return PartPlan(
        action="run",
        folder=folder,
        record=record,
        choice=choice,
        missing=missing,
        held=held,
        reads=tuple(remote.plan(np.setdiff1d(missing, list(held)).astype(np.int64))),
        removed=removed,
        dropped=dropped,
    )


def fetch_part(plan: PartPlan, remote: RemoteZip, *, progress: Progress = SILENT) -> None:
    """Do what :func:`plan_part` decided.

    Each member appears under its name only when it is whole and checked; the record is written last. Whatever ends
    this early, the members that are there are found and kept by the next run.

    Raises:
        NoSpaceError: There is not room for it.
        DamagedError: A member is wrong each time it is read.
        NetworkError: The network failed after every retry.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    needed = sum(-(-int(n) // _BLOCK) * _BLOCK for n in remote.directory.num_bytes[plan.missing])
    check_space(plan.folder, needed, what=f"{len(plan.missing):,} files")
    writer = MemberWriter(plan.folder)
    for number, content in plan.held.items():
        writer.write(remote.directory.name(number), content)
    done = len(plan.held)
    progress.begin("fetch", plan.read_bytes, "bytes")
    try:
        for number in remote.fetch(
            plan.reads, lambda member, content: writer.write(remote.directory.name(member), content), progress=progress
        ):
            done += number
            progress.note(f"{done:,} of {len(plan.missing):,} files")
    finally:
        progress.finish()
    for name in plan.removed:
        with contextlib.suppress(FileNotFoundError):
            (plan.folder / name).unlink()
    # One sync for all, before the record says that they are there.
    sync_filesystem(plan.folder)
    write_part_record(plan.folder, plan.record)


class MemberWriter:
    """Writes members below a folder, each atomically, from several threads.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: set[Path] = set()
        self._lock = threading.Lock()

    def write(self, name: str, content: bytes) -> None:
        """Write one member.

        Raises:
            SourceError: Its name would leave the folder.
        """
        if not is_safe_name(name):
            raise SourceError(f"the archive holds a member {name[:200]!r}, which cannot be written under this name")
        path = self._folder / name
        with self._lock:
            if path.parent not in self._made:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._made.add(path.parent)
        # Not synced here: the record that makes it count is written after a sync of the whole filesystem.
        temporary = path.with_name(f".{path.name}.tmp")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(handle, view) :]
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        finally:
            os.close(handle)
        temporary.rename(path)


class Contents:
    """Reads members for the planner: from disk when they are there and whole, else from the archive, each once.

    Args:
        remote: The archive.
        folder: Where members lie that were fetched before.
    """

    def __init__(self, remote: RemoteZip, folder: Path) -> None:
        self._remote = remote
        self._folder = folder
        self.read: dict[int, bytes] = {}
        """What was read from the archive so far."""

    def __call__(self, member: int) -> bytes:
        """The bytes of a member, checked."""
        if member not in self.read:
            name = self._remote.directory.name(member)
            path = self._folder / name
            if is_safe_name(name) and is_whole(path, _member(self._remote, member)):
                return path.read_bytes()
            self.read[member] = self._remote.content(member)
        return self.read[member]


def is_whole(path: Path, member: Member) -> bool:
    """Whether a file has the size and CRC-32 of a member."""
    try:
        if path.stat().st_size != member.num_bytes:
            return False
        return zlib.crc32(path.read_bytes()) == member.crc32
    except OSError:
        return False


def whole_files(folder: Path, members: Iterable[Member], *, progress: Progress = SILENT) -> Iterator[bool]:
    """For each member, whether its file below ``folder`` is whole, in order."""
    members = list(members)
    if not folder.is_dir():
        yield from (False for _ in members)
        return
    progress.begin("check files", len(members), "files")
    try:
        with ThreadPoolExecutor(_CHECKERS) as pool:
            lots = [members[start : start + _LOT] for start in range(0, len(members), _LOT)]
            for whole in pool.map(lambda lot: [is_whole(folder / m.name, m) for m in lot], lots):
                progress.advance(len(whole))
                yield from whole
    finally:
        progress.finish()


def describe_archive(remote: RemoteZip) -> ArchiveRecord:
    """The record of a remote archive."""
    identity = remote.remote.identity
    return ArchiveRecord(
        name=remote.remote.what,
        num_bytes=identity.num_bytes,
        etag=identity.etag,
        last_modified=identity.last_modified,
        num_members=len(remote.directory),
        directory_crc32=f"{remote.directory.crc32_of_directory:08x}",
    )


def _check_same(was: ArchiveRecord, remote: RemoteZip) -> None:
    now = describe_archive(remote)
    if was.directory_crc32 != now.directory_crc32 and was.is_same_object(now):
        # One of the two readings of its directory was altered on the way.
        remote.confirm()
    elif was.directory_crc32 and (was.directory_crc32, was.num_bytes) != (now.directory_crc32, now.num_bytes):
        raise ChangedError(
            f"{was.name} was replaced since a part of it was fetched:"
            f" it was {was.etag or was.last_modified or was.directory_crc32},"
            f" now it is {now.etag or now.last_modified or now.directory_crc32}",
            "what is here stays as it is; run the same command with --overwrite to go over to the new one",
        )


def _numbers(remote: RemoteZip, kept: Mapping[str, Member]) -> Members:
    """The numbers of members that were fetched before."""
    found = []
    for name in kept:
        # Files that came one by one may be none of the archive's.
        with contextlib.suppress(MemberError):
            found.append(remote.directory.find(name))
    return np.array(found, dtype=np.int64)


def _member(remote: RemoteZip, number: int) -> Member:
    directory = remote.directory
    return Member(directory.name(number), int(directory.num_bytes[number]), int(directory.crc32[number]))


def _members(remote: RemoteZip, numbers: Members) -> list[Member]:
    directory = remote.directory
    rows = zip(
        directory.names(numbers),
        directory.num_bytes[numbers].tolist(),
        directory.crc32[numbers].tolist(),
        strict=True,
    )
    return [Member(*row) for row in rows]
