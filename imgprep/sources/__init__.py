"""Where images come from: a directory, a zip, a tar or a tar.gz, listed and read member by member, never unpacked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from imgprep.errors import MissingInputError, SourceError
from imgprep.stats import SILENT, Progress


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a source.

    Attributes:
        name: With ``/`` between folders.
        num_bytes: Its size.
        crc32: Its CRC-32, where it is listed.
        mtime_ns: Time of its last change in nanoseconds since 1970, where it is a file of its own and nothing but this
            tells of a change. It says nothing of the bytes, so it does not count in comparisons.
    """

    name: str
    num_bytes: int
    crc32: int | None = None
    mtime_ns: int | None = field(default=None, compare=False)


class Source(Protocol):
    """Lists members and reads one by name. ``read`` may be called from several threads at once."""

    kind: str
    path: Path

    def members(self) -> Sequence[Member]:
        """All regular files, in the source's own order."""

    def read(self, name: str) -> bytes:
        """The bytes of one member, checked against its size and, where listed, its CRC-32.

        Raises:
            MemberError: There is no such member, or its bytes are damaged.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_source(
    path: Path, *, cache: Path | None = None, progress: Progress = SILENT, follow_links: bool = False
) -> Source:
    """Open a directory, zip, tar, packed tar, or zip with a tar in it, told apart by content, not by name.

    Args:
        path: Where it lies.
        cache: Folder to keep the index of a packed tar in; without, it is read once from end to end each time.
        progress: Told of that pass, in bytes of the archive.
        follow_links: Follow the symbolic links in a directory.

    Raises:
        MissingInputError: Nothing is there.
        SourceError: It is none of them, or it is cut off or damaged.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise SourceError(f"the path {str(path)!r} is not UTF-8", "rename it") from None
    if path.is_dir() and (path / "fetch.json").is_file():
        from imgprep.sources.part import PartSource

        return PartSource(path)
    if path.is_dir():
        from imgprep.sources.directory import DirectorySource

        return DirectorySource(path, follow_links=follow_links)
    if path.exists() and not path.is_file():
        raise SourceError(f"{path} is neither a file nor a directory", "check the path after --from")
    if not path.is_file():
        raise MissingInputError(f"{path} does not exist", "check the path after --from")
    with path.open("rb") as file:
        head = file.read(512)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        from imgprep.sources.zip import ZipSource

        zipped = ZipSource(path)
        from imgprep.sources.tar_gz import NestedZipSource, inner_tar

        if inner_tar(zipped.members()) is None:
            return zipped
        with zipped:
            return NestedZipSource(path, cache=cache, progress=progress)
    if head[257:262] == b"ustar":
        from imgprep.sources.tar import TarSource

        return TarSource(path)
    if head[:2] == b"\x1f\x8b":
        from imgprep.sources.tar_gz import TarGzSource

        return TarGzSource(path, cache=cache, progress=progress)
    if not head:
        raise SourceError(f"{path} is empty", "download or copy it again")
    raise SourceError(f"{path} is neither a zip nor a tar nor a directory", "check the path, or download it again")


def listing_digest(members: Sequence[Member], *, with_times: bool = False) -> str:
    """SHA-256 over names, sizes and known CRCs in name order: equal listings have equal digests.

    Args:
        members: What is listed.
        with_times: Digest known times of change too.
    """
    digest = hashlib.sha256()
    # Two million names fit into memory well, two million members less so: they are made one at a time.
    names = [member.name for member in members]
    for place in sorted(range(len(names)), key=names.__getitem__):
        member = members[place]
        crc = "" if member.crc32 is None else f"{member.crc32:08x}"
        time = f"\0{member.mtime_ns}" if with_times else ""
        digest.update(f"{member.name}\0{member.num_bytes}\0{crc}{time}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
