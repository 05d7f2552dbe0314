"""Fetch a whole archive from a server that ignores ranges: from its first byte to its last, each attempt anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import numpy as np

from imgprep.backoff import Backoff
from imgprep.errors import DamagedError, SourceError
from imgprep.fetch.space import check_space
from imgprep.files import fsync_folder
from imgprep.sources.part import ArchiveRecord
from imgprep.sources.ranges import RangeFile
from imgprep.sources.zip_directory import (
    TAIL_BYTES,
    DirectoryReader,
    MemberChecker,
    TailTooShort,
    ZipDirectory,
    find_directory,
)
from imgprep.stats import SILENT, Progress
from imgprep.transfer import BrokenOffError, RemoteFile

ALTERED_ATTEMPTS: Final = 2
"""How often an archive that arrives damaged is fetched again."""

_PIECE: Final = 1 << 20


def fetch_sequentially(
    remote: RemoteFile, path: Path, *, backoff: Backoff, progress: Progress = SILENT
) -> ArchiveRecord:
    """Fetch and check an archive in one go.

    Args:
        remote: The archive, which was asked for once, so that its size is known.
        path: Where it is to lie; it appears there only when it is whole and every member was checked.
        backoff: How long to wait between attempts.
        progress: Told of bytes.

    Raises:
        NoSpaceError: There is not room for it.
        NetworkError: No attempt got through to the end.
        DamagedError: It arrives damaged each time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    failures = damages = 0
    while True:
        try:
            _fetch_once(remote, temporary, progress)
        except BrokenOffError as error:
            failures += 1
            remote.wire.count(retries=1)
            backoff.pause(failures, what=remote.what, why=error.why, retry_after=error.retry_after)
            continue
        try:
            directory = check_archive(temporary, remote.what, progress=progress)
            break
        except DamagedError as error:
            damages += 1
            remote.wire.count(retries=1)
            if damages > ALTERED_ATTEMPTS:
                temporary.unlink()
                raise DamagedError(
                    f"{error.what}, and so each of the {damages} times it was fetched",
                    f"either {remote.what} is damaged where it is stored, or something on the way alters it",
                ) from None
    temporary.rename(path)
    fsync_folder(path.parent)
    identity = remote.identity
    return ArchiveRecord(
        name=remote.what,
        num_bytes=identity.num_bytes,
        etag=identity.etag,
        last_modified=identity.last_modified,
        num_members=len(directory),
        directory_crc32=f"{directory.crc32_of_directory:08x}",
    )


def _fetch_once(remote: RemoteFile, path: Path, progress: Progress) -> None:
    size = remote.identity.num_bytes
    # An earlier attempt lies where this one goes.
    held = path.lstat().st_blocks * 512 if path.exists() else 0
    check_space(path.parent, size - held, what=remote.what)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(handle, "wb", buffering=0) as file:
        progress.begin("fetch", size, "bytes")
        try:
            for piece in remote.stream_whole():
                view = memoryview(piece)
                while view:
                    view = view[file.write(view) :]
                progress.advance(len(piece))
        finally:
            progress.finish()
        os.fsync(file.fileno())


def read_directory(file: RangeFile, size: int, where: str) -> ZipDirectory:
    """The directory of a local zip.

    Raises:
        SourceError: It is cut off or damaged.
    """
    tail_bytes = min(size, TAIL_BYTES)
    try:
        place = find_directory(file.pread(tail_bytes, size - tail_bytes), archive_bytes=size, where=where)
    except TailTooShort as more:
        place = find_directory(file.pread(more.num_bytes, size - more.num_bytes), archive_bytes=size, where=where)
    reader = DirectoryReader(place, where=where)
    stop = place.offset + place.num_bytes
    for offset in range(place.offset, stop, _PIECE):
        reader.feed(file.pread(min(_PIECE, stop - offset), offset))
    return reader.finish()


def check_archive(path: Path, where: str, *, progress: Progress = SILENT) -> ZipDirectory:
    """Check every member of a local zip against its directory.

    Raises:
        DamagedError: The directory or a member is damaged; the first is named.
    """
    size = path.stat().st_size
    with RangeFile(path) as file:
        directory = read_directory(file, size, where)
        order = np.argsort(directory.offset, kind="stable")
        checker = MemberChecker(directory, order, where=where)
        start = int(directory.offset[order[0]]) if len(order) else size
        progress.begin("check", size - start, "bytes")
        try:
            for offset in range(start, size, _PIECE):
                checker.feed(file.pread(_PIECE, offset))
                progress.advance(min(_PIECE, size - offset))
        finally:
            progress.finish()
        checker.finish()
    if checker.damaged:
        raise SourceError(f"{len(checker.damaged)} damaged members of {where}: {checker.damaged[0][1]}")
    return directory
