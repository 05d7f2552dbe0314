"""An uncompressed tar as a source: its headers are walked once, its members read by range."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Protocol, Self, cast

from imgprep.errors import MemberError, SourceError
from imgprep.sources import Member
from imgprep.sources.ranges import RangeFile

_AGAIN: Final = "download or copy it again"
_MAX_HEADER: Final = 1 << 20
"""Bytes of one extended header. Names and times take some hundreds; the size written in it may be anything."""


class TarStream(Protocol):
    """Bytes of a tar, read forward; ``seek`` skips ahead and never goes back."""

    def read(self, num_bytes: int, /) -> bytes:
        """Up to ``num_bytes``, fewer at the end."""

    def seek(self, offset: int, /) -> int:
        """Skip ahead to ``offset``, or to the end where that comes first."""

    def tell(self) -> int:
        """Offset of the next byte."""


class FileRange(io.RawIOBase):
    """A byte range of a file as a file of its own.

    Args:
        file: The file; it stays open when the range is closed.
        start: First byte of the range.
        num_bytes: Length of the range.
    """

    def __init__(self, file: RangeFile, start: int, num_bytes: int) -> None:
        self._file = file
        self._start = start
        self._position = 0
        self.num_bytes = num_bytes

    def pread(self, num_bytes: int, offset: int) -> bytes:
        """Read up to ``num_bytes`` at ``offset`` without moving the position."""
        return self._file.pread(min(num_bytes, self.num_bytes - offset), self._start + offset)

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """Fill ``buffer`` as far as the range goes."""
        content = self.pread(len(buffer), self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.num_bytes}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True


class _Headers:
    """What :mod:`tarfile` reads from: no read is larger than a header may be, and the last one is remembered."""

    def __init__(self, stream: TarStream) -> None:
        self._stream = stream
        self.last = b""
        self.seek = stream.seek
        self.tell = stream.tell

    def read(self, num_bytes: int) -> bytes:
        if not 0 <= num_bytes <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {num_bytes:,} bytes")
        self.last = self._stream.read(num_bytes)
        return self.last


def walk_tar(
    stream: TarStream, path: Path, *, passed_over: Callable[[str], object] | None = None
) -> Iterator[tuple[str, int, int]]:
    """List the regular files of a tar by walking its headers forward.

    Between two steps the caller may read the content of the file just listed from ``stream``.

    Args:
        stream: The tar, at its start.
        path: What messages call it.
        passed_over: Told the names of links and sparse files, in the order of the tar.

    Yields:
        Name, offset of the content and size. Links, devices and sparse files are passed over.

    Raises:
        SourceError: It is cut off or damaged.
    """
    headers = _Headers(stream)
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", headers), mode="r:", errorlevel=2) as archive:
            while (info := archive.next()) is not None:
                # Tarfile remembers every header, a kilobyte each; millions of them are a lot.
                archive.members.clear()  # type: ignore[attr-defined]
                if info.size < 0:
                    raise SourceError(f"{path} is a damaged tar: member {info.name} has a negative size", _AGAIN)
                name = info.name.removeprefix("./")
                if info.isreg() and not info.issparse():
                    yield name, info.offset_data, info.size
                elif passed_over is not None and (info.isreg() or info.islnk() or info.issym()):
                    passed_over(name)
            end = archive.offset
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise SourceError(f"{path} is a damaged tar ({error})", _AGAIN) from None
    # Tarfile stops at the end of the file, and at a damaged header, without a word: a whole tar ends in blocks of
    # zeros and nothing else. Writers pad to 10 kB or so; where zeros go on, the first mebibyte speaks for them.
    rest = (headers.last if stream.tell() > end else b"") + stream.read(1 << 20)
    if len(rest) < tarfile.BLOCKSIZE:
        raise SourceError(f"{path} is cut off: its end mark is missing", _AGAIN)
    if rest.strip(b"\0"):
        raise SourceError(f"{path} is damaged: the header at byte {end:,} is none", _AGAIN)


class TarSource:
    """A plain tar. Only regular files count; links and devices are passed over.

    Args:
        path: The archive, or the file that holds it.
        start: Where the tar starts in the file.
        num_bytes: Length of the tar; None: to the end of the file.

    Raises:
        SourceError: It is cut off or damaged.
    """

    kind = "tar"

    def __init__(self, path: Path, *, start: int = 0, num_bytes: int | None = None) -> None:
        self.path = path
        self._offsets: dict[str, tuple[int, int]] = {}
        self._start = start
        self._file = RangeFile(path)
        size = path.stat().st_size - start if num_bytes is None else num_bytes
        for name, offset, length in walk_tar(FileRange(self._file, start, size), path):
            if offset + length > size:
                raise SourceError(
                    f"{path} is cut off: member {name} ends at byte {offset + length:,}, the tar has {size:,}", _AGAIN
                )
            if name in self._offsets:
                raise SourceError(f"{path} lists {name} twice", "make the archive again")
            self._offsets[name] = (offset, length)

    def members(self) -> list[Member]:
        """All regular files in the order of the archive."""
        return [Member(name, size) for name, (_, size) in self._offsets.items()]

    def read(self, name: str) -> bytes:
        """The bytes of one member.

        Raises:
            MemberError: No such member, or the archive was cut since it was opened.
        """
        if name not in self._offsets:
            raise MemberError(f"{self.path} has no member {name}")
        offset, size = self._offsets[name]
        return self._file.read_exactly(size, self._start + offset, what=f"member {name} of {self.path.name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the archive."""
        self._file.close()
