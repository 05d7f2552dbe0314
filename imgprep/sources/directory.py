"""A folder as a source."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from imgprep.errors import MemberError
from imgprep.sources import Member


class DirectorySource:
    """All regular files below a folder. Links are not followed out of it.

    Args:
        path: The folder.
    """

    kind = "directory"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members: dict[str, Member] | None = None

    def _listing(self) -> dict[str, Member]:
        if self._members is None:
            found = sorted(_walk(self.path, ""), key=lambda member: member.name)
            self._members = {member.name: member for member in found}
        return self._members

    def members(self) -> list[Member]:
        """All regular files in name order; names are relative to the folder, with ``/``."""
        return list(self._listing().values())

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            MemberError: It was not listed, is gone, or has another size than when it was listed.
        """
        member = self._listing().get(name)
        if member is None:
            raise MemberError(f"{self.path} has no file {name}")
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise MemberError(f"{self.path / name} cannot be read: {error.strerror}") from None
        if len(content) != member.num_bytes:
            raise MemberError(f"{self.path / name} changed: {len(content)} bytes, listed with {member.num_bytes}")
        return content

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held open."""


def _walk(folder: Path, prefix: str) -> Iterator[Member]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(folder / entry.name, name + "/")
            elif entry.is_file(follow_symlinks=False):
                yield Member(name, entry.stat(follow_symlinks=False).st_size)
