"""A zip archive as a source: its directory is read once into arrays, its members by range."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np

from imgprep.errors import MemberError, SourceError
from imgprep.sources import Member
from imgprep.sources.ranges import RangeFile
from imgprep.sources.zip_directory import (
    ENCRYPTED,
    LOCAL_HEADER_BYTES,
    LOCAL_SIGNATURE,
    MAX_MEMBER,
    STORED,
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
_LENGTHS: Final = struct.Struct("<HH")


class _Place(NamedTuple):
    """What the directory says of one member; see :class:`imgprep.sources.zip_directory.ZipDirectory`."""

    offset: int
    end: int
    packed: int
    num_bytes: int
    crc32: int
    method: int
    flags: int


class _Reading:
    """Reads members whose places are known.

    Args:
        path: The archive.
        file: The same, open.
    """

    def __init__(self, path: Path, file: RangeFile) -> None:
        self._path, self._file = path, file
        self._extra = 0

    def try_view(self, name: str, place: _Place) -> memoryview | None:
        """A stored member without another copy; None where anything is odd, which :meth:`read` tells of."""
        packed = place.packed
        if place.method != STORED or place.flags & ENCRYPTED or packed > MAX_MEMBER or packed != place.num_bytes:
            return None
        encoded = name.encode("utf-8", "surrogatepass")
        # Extra fields have one length throughout an archive, as a rule.
        name_end = LOCAL_HEADER_BYTES + len(encoded)
        block = self._file.pread(name_end + self._extra + packed, place.offset)
        if block[LOCAL_HEADER_BYTES:name_end] != encoded or block[:4] != LOCAL_SIGNATURE:
            return None
        # The last two fields before the name are its length, and that of what follows it.
        name_bytes, self._extra = _LENGTHS.unpack_from(block, LOCAL_HEADER_BYTES - _LENGTHS.size)
        start = LOCAL_HEADER_BYTES + name_bytes + self._extra
        content = memoryview(block)[start : start + packed]
        fits = name_bytes == len(encoded) and len(content) == packed and place.offset + start + packed <= place.end
        return content if fits and zlib.crc32(content) == place.crc32 else None

    def read(self, name: str, place: _Place) -> bytes:
        """The bytes of a member; see :meth:`ZipSource.read`."""
        offset, end, packed, num_bytes, crc32, method, flags = place
        where = self._path.name
        check_readable(name=name, packed=packed, num_bytes=num_bytes, method=method, flags=flags, where=where)
        what = f"member {name} of {where}"
        header = self._file.read_exactly(LOCAL_HEADER_BYTES, offset, what=what)
        size = local_header_bytes(header, what=what) + packed
        if offset + size > end:
            raise MemberError(
                f"{what} is damaged: its {size:,} bytes run into the next member", "download or copy the archive again"
            )
        return member_content(
            self._file.read_exactly(size, offset, what=what),
            name=name,
            packed=packed,
            num_bytes=num_bytes,
            crc32=crc32,
            method=method,
            flags=flags,
            where=where,
        )


class ZipExcerpt:
    """Some members of a zip, whose places are known. It opens the archive when it is first read from.

    Args:
        path: The archive.
        places: What its directory says of them, by name.
    """

    kind = "zip"

    def __init__(self, path: Path, places: Mapping[str, _Place]) -> None:
        self.path = path
        self._places = places
        self._file: RangeFile | None = None
        self._reading: _Reading | None = None

    def members(self) -> list[Member]:
        """The members of the excerpt."""
        return [Member(name, place.num_bytes, place.crc32) for name, place in self._places.items()]

    def read(self, name: str) -> bytes:
        """See :meth:`ZipSource.read`."""
        return bytes(self.view(name))

    def view(self, name: str) -> bytes | memoryview:
        """See :meth:`ZipSource.view`."""
        place = self._places.get(name)
        if place is None:
            raise MemberError(f"{self.path} has no member {name}")
        if self._reading is None:
            self._file = RangeFile(self.path)
            self._reading = _Reading(self.path, self._file)
        content = self._reading.try_view(name, place)
        return content if content is not None else self._reading.read(name, place)

    def __getstate__(self) -> dict[str, Any]:
        """What is open here is not open elsewhere."""
        places = {name: tuple(place) for name, place in self._places.items()}
        return {"path": self.path, "_places": places, "_file": None, "_reading": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make places of what was sent as plain tuples, which takes less time."""
        places = {name: _Place._make(place) for name, place in state["_places"].items()}
        self.__dict__.update(state, _places=places)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the archive; reading opens it again."""
        if self._file is not None:
            self._file.close()
        self._file = self._reading = None


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
        self._reading = _Reading(path, self._file)
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
        return bytes(self.view(name))

    def view(self, name: str) -> bytes | memoryview:
        """As :meth:`read`, but a stored member is not copied once more; one read of the archive as a rule."""
        index = next(self.directory.candidates(name), -1)
        content = self._reading.try_view(name, self._place(index)) if index >= 0 else None
        if content is not None:
            return content
        return self._reading.read(name, self._place(self.directory.find(name)))

    def excerpt(self, names: Iterable[str]) -> ZipExcerpt:
        """The same archive for whoever needs these members only: small, and it can be sent to another process.

        Raises:
            MemberError: There is no such member.
        """
        names = list(names)
        directory = self.directory
        indices = np.array(directory.find_all(names), np.int64)
        rows = zip(*(getattr(directory, column)[indices].tolist() for column in _Place._fields), strict=True)
        return ZipExcerpt(self.path, dict(zip(names, map(_Place._make, rows), strict=True)))

    def _place(self, index: int) -> _Place:
        directory = self.directory
        return _Place(
            offset=int(directory.offset[index]),
            end=int(directory.end[index]),
            packed=int(directory.packed[index]),
            num_bytes=int(directory.num_bytes[index]),
            crc32=int(directory.crc32[index]),
            method=int(directory.method[index]),
            flags=int(directory.flags[index]),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the archive."""
        self._file.close()
