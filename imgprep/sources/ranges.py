"""Reading byte ranges of an archive from several threads."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from imgprep.errors import MemberError


class RangeFile:
    """A file read by offset with ``pread``: no shared position, so threads need no lock.

    Args:
        path: The file to open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = -1
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._handle).st_size

    def pread(self, num_bytes: int, offset: int) -> bytes:
        """Read up to ``num_bytes`` at ``offset``; fewer at the end of the file."""
        # A damaged directory may ask for exabytes: never allocate more than there is.
        num_bytes = min(num_bytes, self._size - offset)
        if num_bytes <= 0:
            return b""
        part = os.pread(self._handle, num_bytes, offset)
        if len(part) == num_bytes:
            return part
        parts = [part]
        while part:
            num_bytes -= len(part)
            offset += len(part)
            part = os.pread(self._handle, num_bytes, offset)
            parts.append(part)
        return b"".join(parts)

    def read_exactly(self, num_bytes: int, offset: int, *, what: str) -> bytes:
        """Read ``num_bytes`` at ``offset``.

        Raises:
            MemberError: The file ends before; ``what`` names the member.
        """
        content = self.pread(num_bytes, offset)
        if len(content) != num_bytes:
            raise MemberError(
                f"{what} is cut off: {self.path.name} holds {len(content)} of its {num_bytes} bytes",
                "download or copy the archive again",
            )
        return content

    def close(self) -> None:
        """Let go of the file; closing twice is fine."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
