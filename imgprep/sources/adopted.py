"""The adopted source of a workspace: a record of where it lies and what it listed, not a copy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from imgprep.errors import DamagedError, MissingInputError, SourceError
from imgprep.files import read_json, write_json
from imgprep.sources import Source, listing_digest, open_source
from imgprep.workspace import Workspace, default_cache

_FOLDERS: Final = frozenset({"directory", "part"})
"""Kinds of sources that have no size and time of their own."""


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
    """

    path: str
    kind: str
    layout: str
    num_bytes: int
    mtime_ns: int
    num_members: int
    listing_sha256: str

    @property
    def name(self) -> str:
        """The last part of the path: what can be told to others, who have other folders."""
        return Path(self.path).name


def describe_source(workspace: Workspace, source: Source, *, layout: str) -> SourceRecord:
    """Make the record of an open source."""
    members = source.members()
    status = source.path.stat()
    directory = source.kind in _FOLDERS
    path, root = source.path.resolve(), workspace.root.resolve()
    return SourceRecord(
        # A workspace that holds what it fetched can be moved.
        path=str(path.relative_to(root) if path.is_relative_to(root) else path),
        kind=source.kind,
        layout=layout,
        num_bytes=sum(member.num_bytes for member in members) if directory else status.st_size,
        mtime_ns=0 if directory else status.st_mtime_ns,
        num_members=len(members),
        listing_sha256=listing_digest(members),
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
    try:
        return SourceRecord(**read_json(workspace.source_record))
    except FileNotFoundError:
        raise MissingInputError(
            f"{workspace.root} has no source yet",
            "run `imgprep fetch` first, or `imgprep fetch --from PATH` with a copy",
        ) from None
    except TypeError as error:
        raise DamagedError(f"{workspace.source_record}: {error}", "run `imgprep fetch` again") from None


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
    source = open_source(path, cache=default_cache())
    if source.kind not in _FOLDERS:
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) == (record.num_bytes, record.mtime_ns):
            return source, record
    if listing_digest(source.members()) != record.listing_sha256:
        raise SourceError(
            f"{path} changed since it was adopted: its listing is another one",
            "run the same `imgprep fetch` again"
            if fetched
            else f"run `imgprep fetch --from {path} --overwrite` if that is intended",
        )
    return source, record
