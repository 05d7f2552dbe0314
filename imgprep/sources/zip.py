"""A zip archive as a source: its directory is read once into arrays, its members by range."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Final, Self

from imgprep.errors import MemberError, SourceError
from imgprep.sources.ranges import RangeFile
from imgprep.sources.zip_directory import (
    LOCAL_HEADER_BYTES,
    TAIL_BYTES,
    DirectoryPlace,
    DirectoryReader,
    TailTooShort,
    ZipDirectory,
    ZipMembers,
    check_readable,
    find_directory,
    local_header_bytes,
    member_content,
)

_PIECE: Final = 1 << 20


class ZipSource:
    """A zip or zip64 archive with stored or deflated members.

    Args:
        path: The archive.

    Raises:
        SourceError: Its end or its directory is missing or damaged.

    Attributes:
        directory: What the archive lists.
    """

    kind = "zip"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = RangeFile(path)
        try:
            self.directory = self._read_directory()
        except BaseException:
            self._file.close()
            raise

    def _read_directory(self) -> ZipDirectory:
        place = self._find_directory()
        reader = DirectoryReader(place, where=str(self.path))
        end = place.offset + place.num_bytes
        for offset in range(place.offset, end, _PIECE):
            reader.feed(self._file.pread(min(_PIECE, end - offset), offset))
        return reader.finish()

    def _find_directory(self) -> DirectoryPlace:
        size = self.path.stat().st_size
        wanted = min(TAIL_BYTES, size)
        while True:
            tail = self._file.pread(wanted, size - wanted)
            if len(tail) < wanted:
                raise SourceError(f"{self.path} changed while it was read", "run the command again")
            try:
                return find_directory(tail, archive_bytes=size, where=str(self.path))
            except TailTooShort as short:
                wanted = short.num_bytes

    def members(self) -> ZipMembers:
        """All files in the order of the archive's directory."""
        return ZipMembers(self.directory)

    def read(self, name: str) -> bytes:
        """The bytes of one member, checked by size and CRC-32.

        Raises:
            MemberError: No such member, an unsupported method, or damaged bytes.
        """
        directory = self.directory
        index = directory.find(name)
        packed, num_bytes = int(directory.packed[index]), int(directory.num_bytes[index])
        method, flags = int(directory.method[index]), int(directory.flags[index])
        check_readable(name=name, packed=packed, num_bytes=num_bytes, method=method, flags=flags, where=self.path.name)
        what = f"member {name} of {self.path.name}"
        offset = int(directory.offset[index])
        header = self._file.read_exactly(LOCAL_HEADER_BYTES, offset, what=what)
        size = local_header_bytes(header, what=what) + packed
        if offset + size > directory.end[index]:
            raise MemberError(
                f"{what} is damaged: its {size:,} bytes run into the next member", "download or copy the archive again"
            )
        return member_content(
            self._file.read_exactly(size, offset, what=what),
            name=name,
            packed=packed,
            num_bytes=num_bytes,
            crc32=int(directory.crc32[index]),
            method=method,
            flags=flags,
            where=self.path.name,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the archive."""
        self._file.close()
