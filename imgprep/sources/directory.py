"""A folder as a source."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from imgprep.errors import AccessError, MemberError, SourceError
from imgprep.sources import Member

_MAX_WAYS: Final = 100
"""Ways on which one folder may be reached. Links can make a tree of any size out of a handful of folders."""

_NOWHERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""What the target of a broken link is said to be; a link to itself is a loop for the system (ELOOP)."""

_Identity = tuple[int, int]
"""Device and inode: what a folder is called whatever leads to it."""


@dataclass(frozen=True, slots=True)
class Links:
    """Names of the symbolic links that a walk did not go on from.

    Attributes:
        not_followed: Those that were not looked into.
        broken: Those that lead nowhere.
        circular: Those that lead to a folder they lie in.
    """

    not_followed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    circular: list[str] = field(default_factory=list)


class DirectorySource:
    """All regular files below a folder.

    Args:
        path: The folder.
        follow_links: Follow symbolic links, wherever they lead; else they are passed over.
    """

    kind = "directory"

    def __init__(self, path: Path, *, follow_links: bool = False) -> None:
        self.path = path
        self._follow_links = follow_links
        self._walked: _Walk | None = None
        self._members: dict[str, Member] = {}

    def _walk(self) -> _Walk:
        if self._walked is None:
            walk = _Walk(self.path, follow_links=self._follow_links)
            self._members = {member.name: member for member in sorted(walk.members, key=attrgetter("name"))}
            walk.members.clear()
            self._walked = walk
        return self._walked

    @property
    def links(self) -> Links:
        """The links that were not followed or could not be.

        Raises:
            SourceError: Links lead to one folder in too many ways.
        """
        return self._walk().links

    def members(self) -> list[Member]:
        """All regular files in name order; names are relative to the folder, with ``/``.

        Raises:
            SourceError: Links lead to one folder in too many ways.
        """
        self._walk()
        return list(self._members.values())

    def reaches(self, path: Path) -> bool:
        """Whether a file below ``path``, which need not exist yet, is or would be a member of this source."""
        resolved = path.resolve()
        if resolved.is_relative_to(self.path.resolve()):
            return True
        ways = self._walk().ways
        return any(_identity(folder.stat()) in ways for folder in (resolved, *resolved.parents) if folder.is_dir())

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            MemberError: It was not listed, is gone, or was changed since it was listed.
            AccessError: It may not be read.
        """
        self._walk()
        member = self._members.get(name)
        if member is None:
            raise MemberError(f"{self.path} has no file {name}")
        try:
            with (self.path / name).open("rb") as file:
                mtime_ns = os.fstat(file.fileno()).st_mtime_ns
                content = file.read()
        except PermissionError:
            raise AccessError(f"{self.path / name} cannot be read: permission denied", "make it readable") from None
        except OSError as error:
            raise MemberError(f"{self.path / name} cannot be read: {error.strerror}") from None
        if len(content) != member.num_bytes:
            raise MemberError(f"{self.path / name} changed: {len(content)} bytes, listed with {member.num_bytes}")
        if mtime_ns != member.mtime_ns:
            raise MemberError(f"{self.path / name} changed: it was written again since it was listed")
        return content

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held open."""


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


class _Folder(NamedTuple):
    """A folder still to be listed: where it is, the start of the names in it, and the folders it lies in."""

    path: str
    prefix: str
    lineage: frozenset[_Identity]


class _Walk:
    """Lists what is below a folder, with one ``stat`` a file.

    Attributes:
        members: The regular files, in no order.
        links: The links that were not followed or could not be.
        ways: How often each folder was entered, where links are followed.
    """

    def __init__(self, root: Path, *, follow_links: bool) -> None:
        self.members: list[Member] = []
        self.links = Links()
        self.ways: Counter[_Identity] = Counter()
        self._follow_links = follow_links
        # Not by recursion: a tree may be deeper than Python's stack.
        self._pending: list[_Folder] = []
        self._enter(str(root), "", frozenset())
        while self._pending:
            self._list(self._pending.pop())

    def _list(self, folder: _Folder) -> None:
        with os.scandir(folder.path) as entries:
            for entry in entries:
                name = folder.prefix + entry.name
                if entry.is_symlink():
                    self._meet_link(entry, name, folder)
                elif entry.is_dir(follow_symlinks=False):
                    self._enter(entry.path, name, folder.lineage)
                elif entry.is_file(follow_symlinks=False):
                    self._add(name, entry.stat(follow_symlinks=False))

    def _add(self, name: str, status: os.stat_result) -> None:
        self.members.append(Member(name, status.st_size, None, status.st_mtime_ns))

    def _meet_link(self, entry: os.DirEntry[str], name: str, folder: _Folder) -> None:
        if not self._follow_links:
            self.links.not_followed.append(name)
            return
        try:
            status = entry.stat()
        except OSError as error:
            if error.errno not in _NOWHERE:
                raise
            self.links.broken.append(name)
            return
        if stat.S_ISDIR(status.st_mode):
            self._enter(entry.path, name, folder.lineage)
        elif stat.S_ISREG(status.st_mode):
            self._add(name, status)

    def _enter(self, path: str, name: str, lineage: frozenset[_Identity]) -> None:
        if self._follow_links:
            identity = _identity(Path(path).stat())
            if identity in lineage:
                self.links.circular.append(name)
                return
            self.ways[identity] += 1
            if self.ways[identity] > _MAX_WAYS:
                raise SourceError(
                    f"symbolic links lead to {path} in more than {_MAX_WAYS} ways",
                    "remove links until fewer lead there",
                )
            lineage |= {identity}
        self._pending.append(_Folder(path, f"{name}/" if name else "", lineage))
