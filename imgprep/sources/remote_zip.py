"""A zip behind HTTP: its directory is read as a stream and kept, members are read by ranges and checked by CRC-32."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import numpy as np
from numpy.typing import NDArray

from imgprep.errors import DamagedError, MemberError
from imgprep.sources import Member
from imgprep.sources.zip_directory import (
    TAIL_BYTES,
    DirectoryPlace,
    DirectoryReader,
    TailTooShort,
    ZipDirectory,
    ZipMembers,
    check_readable,
    find_directory,
    find_unreadable,
    member_content,
)
from imgprep.stats import SILENT, Progress
from imgprep.transfer import MIN_RANGE_BYTES, RemoteFile, map_parallel

MAX_READ_BYTES: Final = 8 << 20
"""Most bytes asked for in one request for several members: what is lost, at worst, when it has to be repeated."""

WASTE: Final = 0.03
"""Share of bytes between wanted members that may be read along to save requests."""

ALTERED_READS: Final = 3
"""How often a member is read again when its bytes are not those the directory speaks of."""

_LOCAL_HEADER_BYTES: Final = 30
_MOST_FIELD_BYTES: Final = 65_535
_DESCRIPTOR_BYTES: Final = 24
_DIRECTORY_PIECE: Final = 1 << 20

Members = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Read:
    """One request: the bytes from ``start`` to before ``stop``, which hold these members in this order."""

    start: int
    stop: int
    members: Members


class RemoteZip:
    """The directory and the members of a remote zip.

    Opening it costs one small request when the directory was read before: it is kept by the archive's validator.

    Args:
        remote: The archive.
        cache: Folder where directories are kept; made if need be.
        progress: Told of the bytes of the directory.

    Raises:
        RangesIgnoredError: The server cannot send parts.
        SourceError: It is no zip, or a damaged one.
        NetworkError: The network failed after every retry.
    """

    kind = "remote zip"

    def __init__(self, remote: RemoteFile, *, cache: Path, progress: Progress = SILENT) -> None:
        self.remote = remote
        self.path = Path(remote.what)
        self.tail = remote.open(TAIL_BYTES)
        self.place = self._find()
        self.altered = 0
        self.from_cache = False
        self._cache, self._progress = cache, progress
        self.directory_file, self.directory = self._load()

    def _find(self) -> DirectoryPlace:
        size = self.remote.identity.num_bytes
        try:
            return find_directory(self.tail, archive_bytes=size, where=self.remote.what)
        except TailTooShort as more:
            self.tail = self.remote.read(size - more.num_bytes, size)
            return find_directory(self.tail, archive_bytes=size, where=self.remote.what)

    def _load(self) -> tuple[Path, ZipDirectory]:
        identity, cache, progress = self.remote.identity, self._cache, self._progress
        key = hashlib.sha256(f"{self.remote.what}\0{identity}\0{self.place}".encode()).hexdigest()[:24]
        cache.mkdir(parents=True, exist_ok=True)
        # Without a validator an equal size proves nothing.
        if identity.validator:
            for path in sorted(cache.glob(f"{key}-*.directory")):
                directory = self._read_kept(path)
                if directory is not None:
                    self.from_cache = True
                    return path, directory
        reader = DirectoryReader(self.place, where=self.remote.what)
        progress.begin("directory", self.place.num_bytes, "bytes")
        _remove_leftovers(cache, key)
        temporary = cache / f".{key}.{os.getpid()}.tmp"
        try:
            with temporary.open("wb") as file:
                for piece in self._directory_pieces():
                    reader.feed(piece)
                    file.write(piece)
                    progress.advance(len(piece))
            directory = reader.finish()
            # The name says what the bytes must be, so that a kept directory needs neither a sync nor a file beside it.
            path = cache / f"{key}-{directory.crc32_of_directory:08x}.directory"
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
            progress.finish()
        return path, directory

    def _read_kept(self, path: Path) -> ZipDirectory | None:
        """The directory in a file of the cache, or None when the file is damaged."""
        expected = re.fullmatch(r"[0-9a-f]+-([0-9a-f]{8})\.directory", path.name)
        if expected is None or path.stat().st_size != self.place.num_bytes:
            return None
        reader = DirectoryReader(self.place, where=self.remote.what)
        with contextlib.suppress(DamagedError), path.open("rb", buffering=0) as file:
            while piece := file.read(_DIRECTORY_PIECE):
                reader.feed(piece)
            directory = reader.finish()
            if f"{directory.crc32_of_directory:08x}" == expected[1]:
                return directory
        return None

    def _directory_pieces(self) -> Iterator[bytes]:
        start, stop = self.place.offset, self.place.offset + self.place.num_bytes
        size = self.remote.identity.num_bytes
        tail_start = size - len(self.tail)
        if start >= tail_start:
            yield self.tail[start - tail_start : stop - tail_start]
            return
        yield from read_ahead(self.remote, start, min(stop, tail_start), what="the directory")
        if stop > tail_start:
            yield self.tail[: stop - tail_start]

    def confirm(self) -> None:
        """Read the directory again, until two readings in a row are the same.

        A zip has no checksum of its directory: where every byte of it matters, only another reading tells.

        Raises:
            DamagedError: Each reading is another one.
        """
        size = self.remote.identity.num_bytes
        for _ in range(ALTERED_READS):
            before = self.directory.crc32_of_directory, self.tail
            self.directory_file.unlink(missing_ok=True)
            self.tail = self.remote.read(size - len(self.tail), size, what=f"the end of {self.remote.what}")
            self.place = self._find()
            self.directory_file, self.directory = self._load()
            if (self.directory.crc32_of_directory, self.tail) == before:
                return
            self.note_altered()
        raise self.altered_error(MemberError(f"the directory of {self.remote.what} is another one"))

    def members(self) -> Sequence[Member]:
        """All files in the order of the directory."""
        return ZipMembers(self.directory)

    def read(self, name: str) -> bytes:
        """The bytes of one member, checked by size and CRC-32.

        Raises:
            MemberError: No such member, or damaged bytes.
        """
        return self.content(self.directory.find(name))

    def content(self, member: int) -> bytes:
        """The bytes of a member given by its number; see :meth:`read`.

        Raises:
            DamagedError: It cannot be read, or its bytes are wrong each time they are.
        """
        self._check_readable(np.array([member], dtype=np.int64))
        start, stop = int(self.directory.offset[member]), int(self._stops(np.array([member]))[0])
        for attempt in range(ALTERED_READS + 1):
            block = self.remote.read(start, stop, what=self.directory.name(member))
            try:
                return self._content(block, member)
            except MemberError as error:
                self.note_altered()
                if attempt == ALTERED_READS:
                    raise self.altered_error(error) from None
        raise AssertionError

    def _check_readable(self, members: Members) -> None:
        directory = self.directory
        for member in find_unreadable(directory, members).tolist():
            try:
                check_readable(
                    name=directory.name(member),
                    packed=int(directory.packed[member]),
                    num_bytes=int(directory.num_bytes[member]),
                    method=int(directory.method[member]),
                    flags=int(directory.flags[member]),
                    where=self.remote.what,
                )
            except MemberError as error:
                self.directory_file.unlink(missing_ok=True)
                raise DamagedError(
                    error.what, "if its directory was altered on the way, running the same command again helps"
                ) from None

    def altered_error(self, error: MemberError) -> DamagedError:
        """The error for bytes that stay wrong however often they are read.

        It may as well be the directory that is wrong, so the kept one goes: the next run reads it anew.
        """
        self.directory_file.unlink(missing_ok=True)
        return DamagedError(
            f"{error.what}, and so each of the {ALTERED_READS + 1} times it was read",
            f"either {self.remote.what} is damaged where it is stored, or something on the way alters it:"
            " run the same command again, or try another network",
        )

    def note_altered(self) -> None:
        """Count a member that arrived with other bytes than the directory speaks of."""
        self.altered += 1
        self.remote.wire.count(retries=1)

    def _content(self, block: bytes | memoryview, member: int) -> bytes:
        directory = self.directory
        return member_content(
            block,
            name=directory.name(member),
            packed=int(directory.packed[member]),
            num_bytes=int(directory.num_bytes[member]),
            crc32=int(directory.crc32[member]),
            method=int(directory.method[member]),
            flags=int(directory.flags[member]),
            where=self.remote.what,
        )

    def plan(self, members: Members) -> list[Read]:
        """The requests that read these members, neighbours together.

        Raises:
            DamagedError: One of them could not be read.
        """
        self._check_readable(members)
        return plan_reads(self.directory.offset[members], self._stops(members), members)

    def _stops(self, members: Members) -> NDArray[np.uint64]:
        return member_stops(self.directory, self.place.offset, members)

    def fetch(
        self, reads: Sequence[Read], store: Callable[[int, bytes], None], *, progress: Progress = SILENT
    ) -> Iterator[int]:
        """Read members and hand each to ``store`` once it is checked, from several threads at once.

        Args:
            reads: What :meth:`plan` gave.
            store: Called with the number of a member and its content.
            progress: Told of bytes as they arrive.

        Yields:
            The number of members of each request, as requests are done.

        Raises:
            DamagedError: A member is wrong each time it is read.
            NetworkError: The network failed after every retry.
        """

        def fetch_one(read: Read) -> int:
            buffer = io.BytesIO()
            for piece in self.remote.stream(read.start, read.stop, what=self._called(read)):
                buffer.write(piece)
                progress.advance(len(piece))
            view = buffer.getbuffer()
            starts = self.directory.offset[read.members].astype(np.int64) - read.start
            stops = self._stops(read.members).astype(np.int64) - read.start
            for member, start, stop in zip(read.members.tolist(), starts.tolist(), stops.tolist(), strict=True):
                try:
                    content = self._content(view[start:stop], member)
                except MemberError:
                    self.note_altered()
                    content = self.content(member)
                store(member, content)
            return len(read.members)

        yield from map_parallel(fetch_one, reads, remote=self.remote)

    def _called(self, read: Read) -> str:
        more = f" and {len(read.members) - 1} more" if len(read.members) > 1 else ""
        return f"{self.directory.name(int(read.members[0]))}{more}"

    def write_end(self, file: IO[bytes]) -> None:
        """Write the directory and what follows it to their places in a local copy."""
        file.seek(self.place.offset)
        with self.directory_file.open("rb") as kept:
            while piece := kept.read(_DIRECTORY_PIECE):
                file.write(piece)
        start = self.remote.identity.num_bytes - len(self.tail)
        begin = max(start, self.place.offset + self.place.num_bytes)
        file.seek(begin)
        file.write(self.tail[begin - start :])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.remote.close()


def member_stops(
    directory: ZipDirectory, directory_offset: int, members: Members | slice = slice(None)
) -> NDArray[np.uint64]:
    """Where members, by default all, end at the latest: the next local header, or as far as its own header can reach.

    The local header's name and extra field have at most 65,535 bytes each (APPNOTE 4.4.10, 4.4.11), and a data
    descriptor has at most 24 (4.3.9). The directory does not say how many of them there are.
    """
    slack = np.uint64(_LOCAL_HEADER_BYTES + 2 * _MOST_FIELD_BYTES + _DESCRIPTOR_BYTES)
    reach: NDArray[np.uint64] = directory.offset[members] + directory.packed[members].astype(np.uint64) + slack
    return np.minimum(np.minimum(directory.end[members], reach), np.uint64(directory_offset), dtype=np.uint64)


def plan_reads(starts: NDArray[np.uint64], stops: NDArray[np.uint64], members: Members) -> list[Read]:
    """Merge neighbouring members into requests; pure.

    Members without a gap are always read together, up to :data:`MAX_READ_BYTES`; the smallest gaps are read along as
    long as all of them stay below the share :data:`WASTE`.

    Args:
        starts: First byte of each member.
        stops: Byte after the last of each member.
        members: Their numbers.
    """
    if not len(members):
        return []
    order = np.argsort(starts, kind="stable")
    first, last = starts[order].astype(np.int64), stops[order].astype(np.int64)
    gaps = first[1:] - last[:-1]
    by_size = np.argsort(gaps, kind="stable")
    spent = np.cumsum(gaps[by_size])
    joined = np.zeros(len(gaps), dtype=bool)
    joined[by_size] = (spent <= WASTE * int((last - first).sum())) & (gaps[by_size] <= MIN_RANGE_BYTES)
    reads = []
    begin = 0
    for place in range(1, len(order) + 1):
        if place == len(order) or not joined[place - 1] or last[place] - first[begin] > MAX_READ_BYTES:
            reads.append(Read(int(first[begin]), int(last[place - 1]), members[order[begin:place]]))
            begin = place
    return reads


def read_ahead(remote: RemoteFile, start: int, stop: int, *, what: str) -> Generator[bytes, None, None]:
    """One long range in order, read by several connections that keep a little ahead."""
    bounds = iter(range(start, stop, _DIRECTORY_PIECE))
    pool = ThreadPoolExecutor(remote.spec.jobs, thread_name_prefix="imgprep-ahead")
    waiting: deque[Future[bytes]] = deque()

    def submit() -> None:
        begin = next(bounds, None)
        if begin is not None:
            waiting.append(pool.submit(remote.read, begin, min(stop, begin + _DIRECTORY_PIECE), what=what))

    try:
        for _ in range(remote.spec.jobs):
            submit()
        while waiting:
            piece = waiting.popleft().result()
            submit()
            yield piece
    except BaseException:
        remote.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _remove_leftovers(cache: Path, key: str) -> None:
    """Remove what killed processes left of this directory; several may share the folder."""
    for path in cache.glob(f".{key}.*.tmp"):
        pid = path.name.split(".")[-2]
        try:
            os.kill(int(pid), 0)
        except (ProcessLookupError, ValueError):
            path.unlink(missing_ok=True)
        except PermissionError:
            continue
