"""Fetch a whole remote zip: parts that begin and end between members, each checked while it arrives, any order.

``NAME.zip.part`` has the archive's size from the start and fills up; ``NAME.zip.state`` says which parts of it are
done: every member in them has its CRC-32. After a kill they count. After a power cut only those count that were synced.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from imgprep.errors import ChangedError, MemberError, OutputExistsError
from imgprep.fetch.part import describe_archive
from imgprep.fetch.space import check_space
from imgprep.files import fsync_folder, write_bytes
from imgprep.sources.part import ArchiveRecord
from imgprep.sources.remote_zip import ALTERED_READS, RemoteZip, member_stops
from imgprep.sources.zip_directory import (
    MemberChecker,
    ZipDirectory,
)
from imgprep.stats import SILENT, Progress
from imgprep.transfer import MIN_RANGE_BYTES, map_parallel
from imgprep.workspace import Workspace

PART_BYTES: Final = 32 << 20
"""Most bytes of a part: a second or so on a fast line, and what each connection loses at most in a kill."""

_PARTS: Final = 64
"""Parts that even a small archive has, as many as there can be connections, unless they fell below a megabyte."""

SYNC_SECONDS: Final = 2.0
"""How often what has arrived is synced to the disk and noted as done."""

STATE_VERSION: Final = 1
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes from ``start`` to before ``stop``, and the members that lie wholly in them, by offset."""

    number: int
    start: int
    stop: int
    members: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class WholePlan:
    """What fetching the whole archive comes to.

    Attributes:
        path: Where the archive will lie.
        archive: What it is.
        parts: All of it up to its directory, in order.
        done: Numbers of the parts that are here already.
        spanning: Members that lie in several parts and are checked in the end.
        part_bytes: Size of the parts.
    """

    path: Path
    archive: ArchiveRecord
    parts: Sequence[Part]
    done: frozenset[int] = field(default_factory=frozenset)
    spanning: NDArray[np.int64]
    part_bytes: int = PART_BYTES

    @property
    def missing(self) -> list[Part]:
        """The parts to fetch."""
        return [part for part in self.parts if part.number not in self.done]

    @property
    def read_bytes(self) -> int:
        """Bytes that will go over the network."""
        return sum(part.stop - part.start for part in self.missing)


def whole_path(workspace: Workspace, archive: str) -> Path:
    """Where a whole fetched archive lies."""
    return workspace.root / "raw" / archive


def check_ours(path: Path, *, overwrite: bool) -> None:
    """Refuse to write over what no fetch made.

    Raises:
        OutputExistsError: There is something of that name, and no notes on it.
    """
    if path.is_dir() or (path.exists() and not overwrite and not _beside(path, ".state").exists()):
        raise OutputExistsError(
            f"{path} is there already, and not by an earlier fetch of the whole archive",
            f"adopt it with `imgprep fetch --from {path}`, or move it away",
        )


def claim(path: Path) -> None:
    """Note that the archive of this name is being fetched, and that nothing of it counts yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(_beside(path, ".state"), b"")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def plan_whole(
    workspace: Workspace,
    remote: RemoteZip,
    *,
    overwrite: bool = False,
    part_bytes: int | None = None,
) -> WholePlan:
    """Decide what to fetch; writes nothing.

    Args:
        workspace: Where the archive is to lie.
        remote: The archive.
        overwrite: Go over to the archive as it is now, dropping what was fetched of another.
        part_bytes: Size of the parts; None to choose it by the size of the archive.

    Raises:
        ChangedError: What is here came from another archive.
        OutputExistsError: There is something of that name that no fetch made.
    """
    path = whole_path(workspace, remote.remote.what)
    check_ours(path, overwrite=overwrite)
    noted = _read_notes(_beside(path, ".state"))
    if noted is None or noted[1].directory_crc32 != describe_archive(remote).directory_crc32:
        # What the members are checked by, and a part of what is fetched, without a checksum of its own.
        remote.confirm()
    archive = describe_archive(remote)
    part_bytes = part_bytes or min(PART_BYTES, max(MIN_RANGE_BYTES, archive.num_bytes // _PARTS))
    parts, spanning = plan_parts(remote.directory, remote.place.offset, part_bytes=part_bytes)
    here = _beside(path, ".part") if _beside(path, ".part").exists() else path
    done: set[int] = set()
    if here.is_file():
        done = _read_state(_beside(path, ".state"), archive, part_bytes, overwrite=overwrite)
        if here.stat().st_size != archive.num_bytes:
            done = set()
    return WholePlan(
        path=path,
        archive=archive,
        parts=parts,
        done=frozenset(done & {part.number for part in parts}),
        spanning=spanning,
        part_bytes=part_bytes,
    )


def plan_parts(
    directory: ZipDirectory, directory_offset: int, *, part_bytes: int
) -> tuple[list[Part], NDArray[np.int64]]:
    """Cut everything before the directory into parts, between members where that is possible; pure.

    Returns:
        The parts, and the members that lie in none of them as a whole.
    """
    order = np.argsort(directory.offset, kind="stable")
    starts = directory.offset[order].astype(np.int64)
    stops = member_stops(directory, directory_offset)[order].astype(np.int64)
    cuts = [0]
    while cuts[-1] < directory_offset:
        least = cuts[-1] + part_bytes
        place = int(np.searchsorted(starts, least))
        cut = int(starts[place]) if place < len(starts) else directory_offset
        # A member larger than a part is cut through, and checked when all of it is here.
        cuts.append(min(cut if cut - least <= part_bytes else least, directory_offset))
    parts = []
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        first, last = np.searchsorted(starts, [start, stop])
        inside = np.arange(first, last)
        parts.append(Part(number, start, stop, order[inside[stops[inside] <= stop]].astype(np.int64)))
    contained = np.concatenate([np.zeros(0, dtype=np.int64), *(part.members for part in parts)])
    return parts, np.setdiff1d(order, contained).astype(np.int64)


def _header(archive: ArchiveRecord, part_bytes: int) -> dict[str, Any]:
    return {"version": STATE_VERSION, "archive": asdict(archive), "part_bytes": part_bytes}


def _read_notes(path: Path) -> tuple[Mapping[str, Any], ArchiveRecord, list[str]] | None:
    """The header of a state, the archive it names and the lines after it; None where there is no usable state."""
    try:
        first, *lines = path.read_text(encoding="ascii", errors="replace").split("\n")
        header = json.loads(first)
        # The last element is what follows the last line feed: nothing, or a line that a kill cut off.
        return header, ArchiveRecord(**header["archive"]), lines[:-1]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _read_state(path: Path, archive: ArchiveRecord, part_bytes: int, *, overwrite: bool) -> set[int]:
    """Numbers of the parts that are done.

    Raises:
        ChangedError: The state is that of another archive, and it may not be dropped.
    """
    notes = _read_notes(path)
    if notes is None:
        return set()
    header, was, lines = notes
    if (was.directory_crc32, was.num_bytes) != (archive.directory_crc32, archive.num_bytes):
        if overwrite or was.is_same_object(archive):
            # In the second case the directory came altered then: the parts were checked by a wrong one.
            return set()
        raise ChangedError(
            f"{archive.name} was replaced since its transfer began: it was {was.etag or was.directory_crc32},"
            f" now it is {archive.etag or archive.directory_crc32}",
            "what is here stays as it is; run the same command with --overwrite to begin with the new one",
        )
    if header.get("version") != STATE_VERSION or header.get("part_bytes") != part_bytes:
        return set()
    synced: set[int] = set()
    written: set[int] = set()
    still_up = False
    for line in lines:
        word, _, value = line.partition(" ")
        if word == "part" and value.isdigit():
            written.add(int(value))
        elif word == "sync":
            synced |= written
        elif word == "boot":
            still_up = value == _boot_id()
    # What was written but not synced before the computer went down may be lost.
    return written if still_up else synced


def _boot_id() -> str:
    """Tells one start of this computer from another."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"unknown-{os.getpid()}"


class _Journal:
    """Notes parts as done: at once for a kill to find, and synced every few seconds for a power cut to find."""

    def __init__(self, path: Path, handle: int, plan: WholePlan, *, sync_seconds: float) -> None:
        self._handle = handle
        self._sync_seconds = sync_seconds
        # What earlier runs wrote becomes certain before the old notes go.
        os.fdatasync(handle)
        lines = [json.dumps(_header(plan.archive, plan.part_bytes)), f"boot {_boot_id()}"]
        lines += [f"part {number}" for number in sorted(plan.done)]
        write_bytes(path, "".join(f"{line}\n" for line in [*lines, "sync"]).encode())
        self._file = path.open("ab", buffering=0)
        self._synced_at = time.monotonic()

    def note(self, part: Part) -> None:
        self._file.write(f"part {part.number}\n".encode())
        if time.monotonic() - self._synced_at >= self._sync_seconds:
            os.fdatasync(self._handle)
            self._file.write(b"sync\n")
            os.fsync(self._file.fileno())
            self._synced_at = time.monotonic()

    def close(self) -> None:
        self._file.close()


def fetch_whole(
    plan: WholePlan, remote: RemoteZip, *, sync_seconds: float = SYNC_SECONDS, progress: Progress = SILENT
) -> None:
    """Do what :func:`plan_whole` decided.

    Raises:
        NoSpaceError: There is not room for it.
        DamagedError: A member is wrong each time it is read.
        NetworkError: The network failed after every retry.
    """
    path, part_path, state_path = plan.path, _beside(plan.path, ".part"), _beside(plan.path, ".state")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not plan.done:
        # Before anything is written: notes of another file must never speak of this one, whatever ends it.
        claim(path)
    if plan.done and not part_path.exists():
        # It was whole and had its name already when a kill came before it was recorded.
        path.rename(part_path)
    size = plan.archive.num_bytes
    handle = os.open(part_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(handle, "r+b", buffering=0) as file:
        if not plan.done:
            # What is there belongs to nothing that is known.
            file.truncate(0)
        check_space(path.parent, size - os.fstat(handle).st_blocks * 512, what=f"the missing bytes of {path.name}")
        file.truncate(size)
        remote.write_end(file)
        journal = _Journal(state_path, handle, plan, sync_seconds=sync_seconds)
        try:
            _fetch_parts(plan, remote, handle, journal, progress)
            _check_spanning(plan, remote, handle, progress)
        finally:
            journal.close()
        os.fsync(handle)
    part_path.rename(path)
    fsync_folder(path.parent)


def _fetch_parts(plan: WholePlan, remote: RemoteZip, handle: int, journal: _Journal, progress: Progress) -> None:
    directory = remote.directory

    def fetch_one(part: Part) -> Part:
        checker = MemberChecker(directory, part.members, where=plan.archive.name)
        first = int(directory.offset[part.members[0]]) if len(part.members) else part.stop
        position = part.start
        for piece in remote.remote.stream(part.start, part.stop, what=f"bytes from {part.start:,}"):
            _write_all(handle, piece, position)
            if position + len(piece) > first:
                checker.feed(memoryview(piece)[max(0, first - position) :])
            position += len(piece)
            progress.advance(len(piece))
        checker.finish()
        for member, _ in checker.damaged:
            mend(remote, handle, member)
        return part

    checked = sum(len(part.members) for part in plan.parts if part.number in plan.done)
    progress.begin("fetch", plan.read_bytes, "bytes")
    try:
        for part in map_parallel(fetch_one, plan.missing, remote=remote.remote):
            journal.note(part)
            checked += len(part.members)
            progress.note(f"{checked:,} of {len(directory):,} files")
    finally:
        progress.finish()


def mend(remote: RemoteZip, handle: int, member: int) -> None:
    """Read one member again, in a local copy whose bytes of it are not what the directory says.

    Raises:
        DamagedError: They are wrong each time.
    """
    only = np.array([member], dtype=np.int64)
    start = int(remote.directory.offset[member])
    stop = int(member_stops(remote.directory, remote.place.offset, only)[0])
    for _ in range(ALTERED_READS):
        remote.note_altered()
        checker = MemberChecker(remote.directory, only, where=remote.remote.what)
        position = start
        for piece in remote.remote.stream(start, stop, what=remote.directory.name(member)):
            _write_all(handle, piece, position)
            checker.feed(memoryview(piece))
            position += len(piece)
        checker.finish()
        if not checker.damaged:
            return
    raise remote.altered_error(MemberError(checker.damaged[0][1]))


def _write_all(handle: int, piece: bytes, position: int) -> None:
    view = memoryview(piece)
    while view:
        written = os.pwrite(handle, view, position)
        position += written
        view = view[written:]


def _check_spanning(plan: WholePlan, remote: RemoteZip, handle: int, progress: Progress) -> None:
    """Check the members that are larger than a part, now that all of each is here."""
    directory = remote.directory
    if not len(plan.spanning):
        return
    progress.begin("check large files", int(directory.packed[plan.spanning].sum()), "bytes")
    try:
        for member in plan.spanning.tolist():
            if check_member(directory, member, handle, plan.archive.name, progress):
                mend(remote, handle, member)
    finally:
        progress.finish()


def check_member(directory: ZipDirectory, member: int, handle: int, where: str, progress: Progress = SILENT) -> str:
    """What is wrong with one member of a local copy; empty when nothing is."""
    checker = MemberChecker(directory, np.array([member], dtype=np.int64), where=where)
    position = int(directory.offset[member])
    while not checker.num_checked and (piece := os.pread(handle, _PIECE, position)):
        checker.feed(memoryview(piece))
        position += len(piece)
        progress.advance(len(piece))
    checker.finish()
    return checker.damaged[0][1] if checker.damaged else ""


def bytes_by_ranges(path: Path) -> int:
    """Bytes of an unfinished archive that came by ranges, as far as its notes say; 0 where there is none."""
    part_path = _beside(path, ".part")
    if _read_notes(_beside(path, ".state")) is None or not part_path.is_file():
        return 0
    return min(part_path.stat().st_blocks * 512, part_path.stat().st_size)


def forget_state(path: Path) -> None:
    """Remove the state of an archive that is whole and recorded."""
    _beside(path, ".state").unlink(missing_ok=True)
