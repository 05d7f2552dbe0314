"""Tars inside a source, shown as folders: members of ``outer.tar`` are ``outer.tar/inner``, and so on one level down.

Nothing is unpacked. A tar is listed by its headers when something in it is first asked for, so that of the thousand
tars in ImageNet's training tar only those of the wanted classes are.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from imgprep.errors import MemberError, SourceError
from imgprep.sources import Member, Source
from imgprep.sources.places import MemberPlaces, Place
from imgprep.sources.ranges import RangeFile
from imgprep.sources.tar import FileRange, walk_tar
from imgprep.sources.tar_gz import Listing, TarGzSource

_AGAIN: Final = "download or copy it again"
_MAX_DEPTH: Final = 1
"""Tars inside a tar that are opened as well."""


class _Tar:
    """A tar at a place of a file, listed when it is first asked for; its own tars are opened likewise."""

    def __init__(self, file: RangeFile, place: Place, name: str, depth: int = 0) -> None:
        self._file = file
        self._place = place
        self._name = name
        self._depth = depth
        self._lock = threading.Lock()
        self._listed: tuple[Listing, Mapping[str, _Tar]] | None = None

    def _listing(self) -> tuple[Listing, Mapping[str, _Tar]]:
        with self._lock:
            if self._listed is None:
                self._listed = self._walk()
            return self._listed

    def _walk(self) -> tuple[Listing, Mapping[str, _Tar]]:
        place, listing = self._place, Listing()
        inner: dict[str, _Tar] = {}
        where = Path(self._name)  # for messages alone
        for name, offset, num_bytes in walk_tar(FileRange(self._file, place.start, place.num_bytes), where):
            if offset + num_bytes > place.num_bytes:
                raise SourceError(f"{where} is cut off in member {name}", _AGAIN)
            listing.append(name, place.start + offset, num_bytes, 0)
            if name.endswith(".tar") and self._depth < _MAX_DEPTH:
                at = Place(place.path, place.start + offset, num_bytes)
                inner[name] = _Tar(self._file, at, f"{self._name}/{name}", self._depth + 1)
        if (twice := listing.sort()) is not None:
            raise SourceError(f"{where} lists {twice} twice", "make the archive again")
        return listing, inner

    def members(self) -> Iterator[Member]:
        listing, inner = self._listing()
        for member in listing:
            if member.name in inner:
                yield from inner[member.name].members()
            else:
                # A tar has no checksums of its members.
                yield Member(f"{self._name}/{member.name}", member.num_bytes)

    def read(self, name: str) -> bytes:
        listing, inner = self._listing()
        head, mark, rest = name.partition(".tar/")
        if mark and (tar := inner.get(f"{head}.tar")) is not None:
            return tar.read(rest)
        number = listing.find(name)
        if number is None or name in inner:
            raise MemberError(f"{self._name} has no member {name}")
        member = listing[number]
        return self._file.read_exactly(member.num_bytes, listing.offsets[number], what=f"member {name} of {self._name}")


class NestedSource:
    """A source with some of its tars shown as folders of their members.

    Args:
        source: The source; closed with this one.
        is_opened: Tells by its name whether a tar is shown so: ``.tar``, or packed ``.tar.gz`` or ``.tgz``. Other
            members stay as they are.
        cache: Folder to keep the indices of packed tars in; see :class:`imgprep.sources.tar_gz.TarGzSource`.

    Raises:
        SourceError: A large tar is packed once more by the source, or a tar is cut off or damaged.
    """

    def __init__(self, source: Source, is_opened: Callable[[str], bool], *, cache: Path | None = None) -> None:
        self.kind = source.kind
        self.path = source.path
        self._outer = source
        names = [member.name for member in source.members() if is_opened(member.name)]
        self._beside = [member for member in source.members() if not is_opened(member.name)]
        self._places = MemberPlaces(source, names)
        self._files: dict[Path, RangeFile] = {}
        self._tars: dict[str, _Tar] = {}
        self._packed: dict[str, TarGzSource] = {}
        try:
            for name in names:
                self._open(name, self._places.places[name], cache)
        except BaseException:
            self._close()
            raise

    def _open(self, name: str, place: Place, cache: Path | None) -> None:
        if name.endswith(".tar"):
            if place.path not in self._files:
                self._files[place.path] = RangeFile(place.path)
            self._tars[name] = _Tar(self._files[place.path], place, name)
            return
        # An index is named after the file it is of: those of several tars in one archive need folders of their own.
        own = hashlib.sha256(f"{self.path.name}/{name}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
        try:
            self._packed[name] = TarGzSource(
                place.path, cache=cache and cache / own, start=place.start, num_bytes=place.num_bytes
            )
        except SourceError as error:
            raise SourceError(f"{name} in {self.path}: {error.what}", error.advice) from None

    def members(self) -> Sequence[Member]:
        """The members that stay, then those of the tars.

        Raises:
            SourceError: A tar is cut off or damaged.
        """
        found = list(self._beside)
        for tar in self._tars.values():
            found += tar.members()
        for name, packed in self._packed.items():
            found += (Member(f"{name}/{inner.name}", inner.num_bytes, inner.crc32) for inner in packed.members())
        return found

    def read(self, name: str) -> bytes:
        """The bytes of one member.

        Raises:
            MemberError: No such member, or damaged bytes.
            SourceError: The tar it is in is cut off or damaged.
        """
        place = name.find("/")
        while place >= 0:
            opened = self._tars.get(name[:place]) or self._packed.get(name[:place])
            if opened is not None:
                return opened.read(name[place + 1 :])
            place = name.find("/", place + 1)
        if name in self._places.places:
            raise MemberError(f"{self.path}: {name} is a folder here")
        return self._outer.read(name)

    def _close(self) -> None:
        for packed in self._packed.values():
            packed.__exit__(None, None, None)
        for file in self._files.values():
            file.close()
        self._places.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the source and all that was opened in it."""
        self._close()
        self._outer.__exit__(kind, error, trace)
