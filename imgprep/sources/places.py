"""Where a member of a source lies on disk, so that it can be read by range like a file of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imgprep.errors import SourceError
from imgprep.sources import Member, Source
from imgprep.sources.ranges import RangeFile
from imgprep.sources.tar import FileRange, walk_tar
from imgprep.sources.zip import ZipSource
from imgprep.sources.zip_directory import LOCAL_HEADER_BYTES, local_header_bytes

_MAX_COPY: Final = 1 << 28
"""Bytes of all members that are copied because the source has packed them; the development kit has 2.5 MB."""
_STORED: Final = 0
"""Compression method "stored" (APPNOTE.TXT, 4.4.5)."""


@dataclass(frozen=True, slots=True)
class Place:
    """A range of a file."""

    path: Path
    start: int
    num_bytes: int


class MemberPlaces:
    """Finds members on disk. Small ones that the source has packed are copied into a temporary folder.

    Args:
        source: The source.
        names: The members to find.

    Raises:
        SourceError: A large member is packed.

    Attributes:
        places: Name to place.
    """

    def __init__(self, source: Source, names: Collection[str]) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        wanted = {member.name: member for member in source.members() if member.name in names}
        self.places: dict[str, Place] = dict(_stored(source, wanted))
        packed = [member for name, member in wanted.items() if name not in self.places]
        if sum(member.num_bytes for member in packed) > _MAX_COPY:
            name = max(packed, key=lambda member: member.num_bytes).name
            raise SourceError(
                f"{source.path}: {name} is packed once more, so no part of it can be read alone",
                f"unpack {source.path.name}, then `imgprep fetch --from` the folder it came to",
            )
        if packed:
            self._folder = tempfile.TemporaryDirectory(prefix="imgprep-")
            for number, member in enumerate(packed):
                path = Path(self._folder.name) / str(number)
                path.write_bytes(source.read(member.name))
                self.places[member.name] = Place(path, 0, member.num_bytes)

    def close(self) -> None:
        """Remove what was copied."""
        if self._folder is not None:
            self._folder.cleanup()


def _stored(source: Source, wanted: Mapping[str, Member]) -> Mapping[str, Place]:
    """Places of members whose bytes lie in the source as they are."""
    path = source.path
    if source.kind == "directory":
        return {name: Place(path / name, 0, member.num_bytes) for name, member in wanted.items()}
    if source.kind == "tar":
        with RangeFile(path) as file:
            walked = walk_tar(FileRange(file, 0, path.stat().st_size), path)
            return {name: Place(path, start, num_bytes) for name, start, num_bytes in walked if name in wanted}
    return _stored_in_zip(source, wanted) if isinstance(source, ZipSource) else {}


def _stored_in_zip(source: ZipSource, wanted: Mapping[str, Member]) -> Mapping[str, Place]:
    directory = source.directory
    found: dict[str, Place] = {}
    with RangeFile(source.path) as file:
        for name, member in wanted.items():
            number = directory.find(name)
            if directory.method[number] != _STORED or directory.flags[number] & 1:
                continue
            what = f"member {name} of {source.path.name}"
            offset = int(directory.offset[number])
            start = offset + local_header_bytes(file.read_exactly(LOCAL_HEADER_BYTES, offset, what=what), what=what)
            if int(directory.packed[number]) != member.num_bytes or start + member.num_bytes > directory.end[number]:
                raise SourceError(f"{what} is damaged: it runs into the next member", "download or copy it again")
            found[name] = Place(source.path, start, member.num_bytes)
    return found
