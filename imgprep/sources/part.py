"""A part of an archive on disk: chosen members at their own paths, and a record of what they are and where from."""

from __future__ import annotations

import csv
import hashlib
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from imgprep.errors import DamagedError, MemberError
from imgprep.files import fsync_folder, read_json, write_bytes, write_json
from imgprep.sources import Member
from imgprep.sources.zip_directory import is_safe_name

RECORD: Final = "fetch.json"
MEMBERS: Final = "fetch.members.csv"
PART_VERSION: Final = 1
_NEXT_MEMBERS: Final = f".{MEMBERS}.next"

_COLUMNS: Final = "name,num_bytes,crc32"
_AGAIN: Final = "run the same `imgprep fetch` again: what is whole is kept"


@dataclass(frozen=True, kw_only=True)
class ArchiveRecord:
    """The archive that members were taken from.

    Attributes:
        name: Its file name.
        num_bytes: Its size; 0 where it was never seen as a whole.
        etag: Its ETag, or empty.
        last_modified: Its Last-Modified header, or empty.
        num_members: Files in it.
        directory_crc32: CRC-32 of its directory, in hex, which itself holds that of every member; or empty.
        smallest_class: Training pictures in the smallest of its classes; 0 where that is not known.
    """

    name: str
    num_bytes: int = 0
    etag: str = ""
    last_modified: str = ""
    num_members: int = 0
    directory_crc32: str = ""
    smallest_class: int = 0

    def __post_init__(self) -> None:
        for name, default in ArchiveRecord.__annotations__.items():
            if type(getattr(self, name)).__name__ != default:
                message = f"{name} of an archive must be {default}, got {getattr(self, name)!r}"
                raise TypeError(message)

    def is_same_object(self, other: ArchiveRecord) -> bool:
        """Whether the server called both by one ETag: then they differ only if one of them was read wrongly."""
        return self.num_bytes == other.num_bytes and self.etag == other.etag != ""


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What ``fetch.json`` says.

    Attributes:
        archive: Where the members come from.
        requests: What was asked for, oldest first, as options.
        members: Name to member, each with its CRC-32.
    """

    archive: ArchiveRecord
    requests: tuple[Mapping[str, Any], ...]
    members: Mapping[str, Member]

    def answers(self, options: Mapping[str, Any]) -> bool:
        """Whether a choice from this part is sure to be the one from the whole archive.

        It is when an earlier request chose in the same way, and at least as many of everything.

        Args:
            options: Of a subset, as :meth:`imgprep.selection.SubsetSpec.to_options` gives them.
        """
        return any(self._covers(request, options) for request in self.requests)

    def _covers(self, had: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        if "classes" not in had or had["seed"] != wanted["seed"]:
            return False
        # What is dropped or excluded is made up for by pictures that were not asked for then.
        if wanted.get("drop") or wanted.get("exclude") or had.get("superclasses") != wanted.get("superclasses"):
            return False
        return _holds_as_many(had, wanted) and self._has_classes(had, wanted)

    def _has_classes(self, had: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        if isinstance(wanted["classes"], list):
            return isinstance(had["classes"], list) and set(wanted["classes"]) <= set(had["classes"])
        if isinstance(had["classes"], list):
            return False
        # A number of classes is counted among those with enough pictures: the same ones for both requests?
        least = max(had["per_class"] or 1, wanted["per_class"] or 1)
        same = had["per_class"] == wanted["per_class"] or least <= self.archive.smallest_class
        return same and _at_least(had["classes"], wanted["classes"])


def _holds_as_many(had: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    if "split" in wanted or "folds" in wanted:
        # Each part is filled from its own pictures: any of a class may be chosen, and no given validation picture.
        return had["per_class"] is None
    return all(_at_least(had[name], wanted[name]) for name in ("per_class", "val_per_class"))


def _at_least(had: int | None, wanted: int | None) -> bool:
    return had is None or (wanted is not None and had >= wanted)


class ForeignRecordError(DamagedError):
    """A record that another version of imgprep wrote."""


def is_reserved(name: str) -> bool:
    """Whether a member would lie where the record of its part lies, or what is written on the way to it."""
    return name.split("/", 1)[0].removeprefix(".").startswith((RECORD, MEMBERS))


def write_part_record(folder: Path, record: PartRecord) -> None:
    """Write ``fetch.members.csv`` and ``fetch.json``, which holds its hash: with it the members count as there.

    The list takes its name last. A kill leaves the old list with the old hash, or the new one with the new hash.
    """
    rows = (f"{_quoted(m.name)},{m.num_bytes},{m.crc32 or 0:08x}\n" for _, m in sorted(record.members.items()))
    table = "".join([f"{_COLUMNS}\n", *rows]).encode()
    members, following = folder / MEMBERS, folder / _NEXT_MEMBERS
    is_listed = members.is_file() and members.read_bytes() == table
    if not is_listed:
        write_bytes(following, table)
    document = {
        "version": PART_VERSION,
        "archive": asdict(record.archive),
        "requests": [dict(request) for request in record.requests],
        "num_members": len(record.members),
        "num_bytes": sum(member.num_bytes for member in record.members.values()),
        "members_sha256": hashlib.sha256(table).hexdigest(),
    }
    write_json(folder / RECORD, document)
    if is_listed:
        following.unlink(missing_ok=True)
    else:
        following.replace(members)
    fsync_folder(folder)


def read_part_record(folder: Path) -> PartRecord:
    """Read both files.

    Raises:
        FileNotFoundError: There is no record: nothing was fetched to this folder, or not to the end.
        ForeignRecordError: Another version wrote it.
        DamagedError: They are damaged or do not belong together.
    """
    document = read_json(folder / RECORD)
    if document.get("version") != PART_VERSION:
        raise ForeignRecordError(
            f"{folder / RECORD} has version {document.get('version')}, this imgprep reads {PART_VERSION}",
            "use the version of imgprep that wrote it, fetch into another --workspace, or begin anew with --overwrite",
        )
    tables = [path.read_bytes() for path in (folder / MEMBERS, folder / _NEXT_MEMBERS) if path.is_file()]
    digest = document.get("members_sha256")
    table = next((table for table in tables if hashlib.sha256(table).hexdigest() == digest), None)
    if table is None:
        raise DamagedError(f"{folder / MEMBERS} is not the one that {RECORD} was written with", _AGAIN)
    try:
        archive = ArchiveRecord(**document["archive"])
        requests = tuple(dict(request) for request in document["requests"])
        members = {member.name: member for member in _parse_members(table.decode())}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DamagedError(f"{folder / RECORD} cannot be read ({error})", _AGAIN) from None
    return PartRecord(archive=archive, requests=requests, members=members)


def _parse_members(text: str) -> Iterable[Member]:
    rows = csv.reader(text.splitlines())
    next(rows, None)
    for name, num_bytes, crc32 in rows:
        # Files are read, compared and removed by these names.
        if not is_safe_name(name) or int(num_bytes) < 0:
            message = f"{name[:60]!r} of {num_bytes[:20]} bytes"
            raise ValueError(message)
        yield Member(name, int(num_bytes), int(crc32, 16))


def _quoted(name: str) -> str:
    # RFC 4180; names with line breaks are refused long before.
    return f'"{name.replace(chr(34), chr(34) * 2)}"' if "," in name or '"' in name else name


class PartSource:
    """A folder that ``imgprep fetch`` filled: its record lists the members, whatever else lies there.

    Args:
        path: The folder.

    Raises:
        DamagedError: Its record cannot be used.
    """

    kind = "part"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = read_part_record(path)

    def members(self) -> list[Member]:
        """The members that were fetched, in name order."""
        return list(self.record.members.values())

    def read(self, name: str) -> bytes:
        """The bytes of one member, checked by size and CRC-32.

        Raises:
            MemberError: It was not fetched, is gone, or was changed since.
        """
        member = self.record.members.get(name)
        if member is None:
            raise MemberError(f"{self.path} has no member {name}")
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise MemberError(f"{self.path / name} cannot be read: {error.strerror}", _AGAIN) from None
        if len(content) != member.num_bytes:
            raise MemberError(f"{self.path / name} has {len(content)} bytes, was {member.num_bytes}", _AGAIN)
        if zlib.crc32(content) != member.crc32:
            raise MemberError(f"{self.path / name} is not what was fetched: its CRC-32 is another one", _AGAIN)
        return content

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held open."""
