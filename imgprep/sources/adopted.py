"""The adopted source of a workspace: a record of where it lies and what it listed, not a copy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from imgprep.errors import DamagedError, MissingInputError, SourceError
from imgprep.files import read_json, write_json
from imgprep.sources import Member, Source, listing_digest, open_source
from imgprep.sources.zip import ZipSource
from imgprep.workspace import Workspace, default_cache

_FOLDERS: Final = frozenset({"directory", "part"})
"""Kinds of sources that have no size and time of their own."""

_UNCHECKED: Final = frozenset({"directory", "tar", "zip+tar"})
"""Kinds of sources whose members have no CRC: their listing stays the same when bytes are changed in place."""


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """What ``raw/source.json`` says of a source.

    Attributes:
        path: Where it lies: absolute, or relative to the workspace when it lies in there.
        kind: What it is: ``zip``, ``tar``, ``tar.gz``, ``zip+tar.gz``, ``directory``, or ``part`` of a remote archive.
        layout: How the dataset lies in it, e.g. ``ilsvrc``.
        num_bytes: Size of the archive; for a directory, of all its files.
        mtime_ns: Time of the last change of the archive, in nanoseconds since 1970; 0 for a directory.
        num_members: Number of files in it.
        listing_sha256: Digest of names, sizes and CRCs; see :func:`imgprep.sources.listing_digest`.
        state_sha256: Digest of what tells of a change where members have no CRC, besides the listing: the times of the
            files in a directory, the time of a tar, the CRCs of the zip around a tar; else empty.
        follow_links: Whether symbolic links in a directory were followed.
    """

    path: str
    kind: str
    layout: str
    num_bytes: int
    mtime_ns: int
    num_members: int
    listing_sha256: str
    state_sha256: str = ""
    follow_links: bool = False

    def __post_init__(self) -> None:
        for name, expected in SourceRecord.__annotations__.items():
            if type(getattr(self, name)).__name__ != expected:
                message = f"{name} of a source must be {expected}, got {getattr(self, name)!r}"
                raise TypeError(message)

    @property
    def name(self) -> str:
        """The last part of the path: what can be told to others, who have other folders."""
        return Path(self.path).name

    @property
    def fingerprint(self) -> str:
        """What stages note as their input: another one where bytes may be others.

        It may depend on times, so it belongs in receipts, not in what is published.
        """
        return self.state_sha256 or self.listing_sha256


def describe_source(workspace: Workspace, source: Source, *, layout: str, follow_links: bool = False) -> SourceRecord:
    """Make the record of an open source.

    Args:
        workspace: Where it is to be recorded.
        source: The source, as it was opened.
        layout: How the dataset lies in it.
        follow_links: Whether it was opened so.
    """
    members = source.members()
    status = source.path.stat()
    is_folder = source.kind in _FOLDERS
    path, root = source.path.resolve(), workspace.root.resolve()
    return SourceRecord(
        # A workspace that holds what it fetched can be moved.
        path=str(path.relative_to(root) if path.is_relative_to(root) else path),
        kind=source.kind,
        layout=layout,
        num_bytes=sum(member.num_bytes for member in members) if is_folder else status.st_size,
        mtime_ns=0 if is_folder else status.st_mtime_ns,
        num_members=len(members),
        listing_sha256=listing_digest(members),
        state_sha256=_state_digest(source, members) if source.kind in _UNCHECKED else "",
        follow_links=follow_links,
    )


def write_source_record(workspace: Workspace, record: SourceRecord) -> None:
    """Write ``raw/source.json``."""
    workspace.source_record.parent.mkdir(parents=True, exist_ok=True)
    write_json(workspace.source_record, asdict(record))


def read_source_record(workspace: Workspace) -> SourceRecord:
    """Read ``raw/source.json``.

    Raises:
        MissingInputError: No workspace, or no source was adopted in it.
        DamagedError: The record cannot be used.
    """
    workspace.require()
    again = "run the same `imgprep fetch` again"
    try:
        record = SourceRecord(**read_json(workspace.source_record))
    except FileNotFoundError:
        raise MissingInputError(
            f"{workspace.root} has no source yet",
            "run `imgprep fetch` first, or `imgprep fetch --from PATH` with a copy",
        ) from None
    except TypeError as error:
        raise DamagedError(f"{workspace.source_record}: {error}", again) from None
    if record.kind in _UNCHECKED and not record.state_sha256:
        raise DamagedError(f"{workspace.source_record} has no state_sha256, which a {record.kind} needs", again)
    return record


def open_adopted(workspace: Workspace) -> tuple[Source, SourceRecord]:
    """Open the adopted source, if it is still the one that was adopted.

    Raises:
        MissingInputError: No source was adopted, or it is gone.
        SourceError: It changed since.
    """
    record = read_source_record(workspace)
    path = workspace.root / record.path
    fetched = not Path(record.path).is_absolute()
    if not path.exists():
        raise MissingInputError(
            f"the source {path} is gone",
            "run the same `imgprep fetch` again"
            if fetched
            else "bring it back, or run `imgprep fetch --from PATH --overwrite` with its new place",
        )
    source = open_source(path, cache=default_cache(), follow_links=record.follow_links)
    try:
        change = _find_change(workspace, record, source)
    except BaseException:
        source.__exit__(None, None, None)
        raise
    if change:
        source.__exit__(None, None, None)
        option = " --follow-links" if record.follow_links else ""
        raise SourceError(
            f"{path} changed since it was adopted: {change}",
            "run the same `imgprep fetch` again"
            if fetched
            else f"run `imgprep fetch --from {path}{option} --overwrite` if that is intended",
        )
    return source, record


def check_adopted(workspace: Workspace) -> None:
    """Refuse to call anything up to date that was made of a source which changed since.

    A source that is gone is no change: what was made of it can be used without it. Of an archive, one ``stat`` is
    enough; a folder is walked.

    Raises:
        SourceError: It changed.
        DamagedError: Its record cannot be used.
    """
    try:
        record = read_source_record(workspace)
    except MissingInputError:
        return
    path = workspace.root / record.path
    if path.exists() and not _is_same_archive(record, path):
        open_adopted(workspace)[0].__exit__(None, None, None)


def gone_note(workspace: Workspace) -> str:
    """What to add where something is called up to date whose source is gone; else nothing."""
    try:
        path = workspace.root / read_source_record(workspace).path
    except (MissingInputError, DamagedError):
        return ""
    return "" if path.exists() else f"; its source {path} is gone"


def describe_rewriting(workspace: Workspace, members: Sequence[Member]) -> str:
    """How to tell of a source that lists the same names and sizes as when it was adopted, but with other times."""
    adopted_ns = workspace.source_record.stat().st_mtime_ns
    later = [member.name for member in members if (member.mtime_ns or 0) > adopted_ns]
    which = f": {len(later):,} since then, such as {later[0]}" if later else ""
    return f"names and sizes are the same, but files were changed in place, or touched{which}"


def _state_digest(source: Source, members: Sequence[Member]) -> str:
    """See :attr:`SourceRecord.state_sha256`."""
    if source.kind == "directory":
        return listing_digest(members, with_times=True)
    state = str(source.path.stat().st_mtime_ns)
    if source.kind != "tar":
        with ZipSource(source.path) as outer:
            state = listing_digest(outer.members())
    return hashlib.sha256(f"{listing_digest(members)}\0{state}".encode()).hexdigest()


def _is_same_archive(record: SourceRecord, path: Path) -> bool:
    if record.kind in _FOLDERS:
        return False
    status = path.stat()
    return path.is_file() and (status.st_size, status.st_mtime_ns) == (record.num_bytes, record.mtime_ns)


def _find_change(workspace: Workspace, record: SourceRecord, source: Source) -> str:
    """What is different about a source; nothing where its bytes are sure to be the same."""
    if _is_same_archive(record, source.path):
        return ""
    members = source.members()
    unchecked = record.kind in _UNCHECKED
    if unchecked and source.kind == record.kind and _state_digest(source, members) == record.state_sha256:
        return ""
    if listing_digest(members) != record.listing_sha256:
        return "its listing is another one"
    return describe_rewriting(workspace, members) if unchecked else ""
