"""An uncompressed tar as a source: its headers are walked once, its members read by range."""

from __future__ import annotations

import tarfile
from pathlib import Path
from types import TracebackType
from typing import Self

from imgprep.errors import MemberError, SourceError
from imgprep.sources import Member
from imgprep.sources.ranges import RangeFile


class TarSource:
    """A plain tar. Only regular files count; links and devices are passed over.

    Args:
        path: The archive.

    Raises:
        SourceError: It is cut off or damaged.
    """

    kind = "tar"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets: dict[str, tuple[int, int]] = {}
        size = path.stat().st_size
        try:
            with tarfile.open(path, "r:", errorlevel=2) as archive:
                for info in archive:
                    if not info.isreg() or info.issparse():
                        continue
                    name = info.name.removeprefix("./")
                    if info.size < 0:
                        raise SourceError(f"{path} is a damaged tar: member {name} has a negative size")
                    if info.offset_data + info.size > size:
                        raise SourceError(
                            f"{path} is cut off: member {name} ends at byte {info.offset_data + info.size:,},"
                            f" the file has {size:,}",
                            "download or copy it again",
                        )
                    if name in self._offsets:
                        raise SourceError(f"{path} lists {name} twice", "make the archive again")
                    self._offsets[name] = (info.offset_data, info.size)
                end = archive.offset
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            raise SourceError(f"{path} is a damaged tar ({error})", "download or copy it again") from None
        self._file = RangeFile(path)
        self._check_end(end, size)

    def _check_end(self, end: int, size: int) -> None:
        """Tarfile stops at the end of the file, and at a damaged header, without a word.

        A whole tar ends in blocks of zeros and nothing else.
        """
        again = "download or copy it again"
        if size - end < tarfile.BLOCKSIZE:
            raise SourceError(f"{self.path} is cut off: its end mark is missing", again)
        # Writers pad to 10 kB or so; where zeros go on for longer, the first mebibyte speaks for them.
        if self._file.pread(1 << 20, end).strip(b"\0"):
            raise SourceError(f"{self.path} is damaged: the header at byte {end:,} is none", again)

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
        return self._file.read_exactly(size, offset, what=f"member {name} of {self.path.name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the archive."""
        self._file.close()
