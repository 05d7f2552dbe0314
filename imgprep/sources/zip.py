"""A zip archive as a source: its directory is read once, its members by range."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from imgprep.errors import MemberError, SourceError
from imgprep.sources import Member
from imgprep.sources.ranges import RangeFile

# APPNOTE.TXT 4.3.7: signature, version, flags, method, time, date, crc, sizes, name length, extra length.
_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")
_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_ENCRYPTED: Final = 0x1
_MAX_MEMBER: Final = 1 << 30
"""Bytes one member may have when it is inflated. No picture or list of ImageNet comes near it."""


class ZipSource:
    """A zip or zip64 archive with stored or deflated members.

    Args:
        path: The archive.

    Raises:
        SourceError: Its end or its directory is missing or damaged.
    """

    kind = "zip"

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, EOFError) as error:
            size = path.stat().st_size
            raise SourceError(
                f"{path} is cut off or damaged: it starts like a zip, but its directory cannot be read"
                f" in {size:,} bytes ({error})",
                "compare its size with the original and download or copy it again",
            ) from None
        self._infos = {info.filename: info for info in infos if not info.is_dir()}
        if len(self._infos) < sum(not info.is_dir() for info in infos):
            raise SourceError(f"{path} lists a member name twice", "download or copy it again")
        self._members = [Member(info.filename, info.file_size, info.CRC) for info in self._infos.values()]
        self._file = RangeFile(path)

    def members(self) -> list[Member]:
        """All files in the order of the archive's directory."""
        return self._members

    def read(self, name: str) -> bytes:
        """The bytes of one member, checked by size and CRC-32.

        Raises:
            MemberError: No such member, an unsupported method, or damaged bytes.
        """
        info = self._infos.get(name)
        if info is None:
            raise MemberError(f"{self.path} has no member {name}")
        where = f"member {name} of {self.path.name}"
        again = "download or copy the archive again"
        if info.flag_bits & _ENCRYPTED:
            raise MemberError(f"{where} is encrypted")
        if info.file_size > _MAX_MEMBER:
            raise MemberError(f"{where} claims {info.file_size:,} bytes, more than the limit of {_MAX_MEMBER:,}")
        header = self._file.read_exactly(_LOCAL_HEADER.size, info.header_offset, what=where)
        fields = _LOCAL_HEADER.unpack(header)
        if fields[0] != _LOCAL_SIGNATURE:
            raise MemberError(f"{where} is damaged: no local header at byte {info.header_offset}", again)
        start = info.header_offset + _LOCAL_HEADER.size + fields[9] + fields[10]
        packed = self._file.read_exactly(info.compress_size, start, what=where)
        if info.compress_type == zipfile.ZIP_STORED:
            content = packed
        elif info.compress_type == zipfile.ZIP_DEFLATED:
            try:
                # One byte over the declared size is enough to notice a member that inflates to more than it says.
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, info.file_size + 1)
            except zlib.error as error:
                raise MemberError(f"{where} is damaged ({error})", again) from None
        else:
            raise MemberError(f"{where} uses compression method {info.compress_type}; stored and deflated can be read")
        if len(content) != info.file_size:
            raise MemberError(f"{where} is damaged: {len(content)} bytes, its directory says {info.file_size}", again)
        found = zlib.crc32(content)
        if found != info.CRC:
            raise MemberError(f"{where} is damaged: CRC-32 {found:08x}, its directory says {info.CRC:08x}", again)
        return content

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the archive."""
        self._file.close()
