"""Stage ``fetch``: make a dataset available to the stages after it.

A copy that is already there is *adopted*: its place, size, listing and times are recorded, nothing is copied or
unpacked, and later stages read its members straight from it. What is not there yet is fetched from Kaggle: a part of
the archive (:mod:`imgprep.fetch.part`) or all of it (:mod:`imgprep.fetch.whole`), both started by
:mod:`imgprep.fetch.online`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from imgprep.errors import DamagedError, LockedError, MissingInputError, OutputExistsError, SourceError, UsageError
from imgprep.layouts import Layout, find_layout, get_layout
from imgprep.receipts import Action
from imgprep.sources import Source, open_source
from imgprep.sources.adopted import (
    SourceRecord,
    describe_rewriting,
    describe_source,
    read_source_record,
    write_source_record,
)
from imgprep.sources.directory import DirectorySource, Links
from imgprep.stats import SILENT, Progress
from imgprep.workspace import Workspace, default_cache


@dataclass(frozen=True, kw_only=True)
class FetchResult:
    """What ``fetch`` will do or did.

    Attributes:
        action: ``skip`` when this very source was adopted before.
        record: What to record of it.
        found: What was recorded before.
        links: The symbolic links in it that were not followed or could not be.
    """

    action: Action
    record: SourceRecord
    found: SourceRecord | None = None
    links: Links = field(default_factory=Links)


def plan_fetch(
    workspace: Workspace,
    path: Path,
    *,
    layout: str | None = None,
    follow_links: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> FetchResult:
    """Look at a source and decide whether it is to be adopted; writes nothing.

    Args:
        workspace: Where to record it. It need not exist yet.
        path: A directory, zip or tar.
        layout: Name of the layout it has; None to find out.
        follow_links: Follow the symbolic links in a directory, now and whenever it is read.
        overwrite: Adopt it also in place of another source, or of what it was before it changed.
        progress: Told of the pass that a compressed tar needs.

    Raises:
        MissingInputError: Nothing is at ``path``.
        SourceError: It cannot be read, or holds no dataset of a known layout.
        OutputExistsError: The workspace holds another source, or this one as it was before it changed.
        UsageError: The workspace lies inside the source, or links are to be followed in an archive.
    """
    if path.is_dir() and workspace.root.resolve().is_relative_to(path.resolve()):
        raise _inside_error(workspace, path)
    with open_source(path, cache=default_cache(), progress=progress, follow_links=follow_links) as source:
        links = _check_links(workspace, source, follow_links=follow_links)
        found_layout = _find_layout(source, links) if layout is None else get_layout(layout)
        record = describe_source(workspace, source, layout=found_layout.name, follow_links=follow_links)
        try:
            found = read_source_record(workspace)
        except (MissingInputError, DamagedError):
            return FetchResult(action="run", record=record, links=links)
        if _identity(found) == _identity(record):
            return FetchResult(action="skip", record=record, found=found, links=links)
        if not overwrite:
            raise _another_source_error(workspace, source, found, record)
    return FetchResult(action="run", record=record, found=found, links=links)


def _inside_error(workspace: Workspace, path: Path) -> UsageError:
    return UsageError(
        f"the workspace {workspace.root} lies inside the source {path}, which it would change",
        "choose another --workspace",
    )


def _check_links(workspace: Workspace, source: Source, *, follow_links: bool) -> Links:
    """The links that are not followed.

    Raises:
        UsageError: Links lead from the source to the workspace, or there can be none to follow.
    """
    if isinstance(source, DirectorySource):
        if follow_links and source.reaches(workspace.root):
            raise _inside_error(workspace, source.path)
        return source.links
    if follow_links:
        raise UsageError(
            f"--follow-links goes with a folder, and {source.path} is a source of kind {source.kind}", "leave it out"
        )
    return Links()


def _find_layout(source: Source, links: Links) -> Layout:
    try:
        return find_layout(source)
    except SourceError as error:
        if not links.not_followed:
            raise
        raise SourceError(
            f"{error.what}; {len(links.not_followed):,} symbolic links were not followed",
            f"follow them with --follow-links; {error.advice}",
        ) from None


def _identity(record: SourceRecord) -> tuple[str, str, str, str]:
    """What makes a source the same: an archive with another time, or one drawn again, still is, if checksums say so."""
    return record.path, record.kind, record.layout, record.fingerprint


def _another_source_error(
    workspace: Workspace, source: Source, found: SourceRecord, record: SourceRecord
) -> OutputExistsError:
    """Says what is different about the source that is recorded and the one that would be."""
    was, now = asdict(found), asdict(record)
    named = [name for name in was if was[name] != now[name] and name != "state_sha256"]
    if not {"path", "kind", "layout", "listing_sha256"} & set(named):
        change = describe_rewriting(workspace, source.members())
        return OutputExistsError(
            f"{source.path} changed since it was adopted: {change}", "use --overwrite to adopt it as it is now"
        )
    differences = "; ".join(f"{name} was {was[name]}, now {now[name]}" for name in named)
    return OutputExistsError(
        f"{workspace.root} has another source: {differences}",
        "use --overwrite to adopt this one in its place, or another --workspace",
    )


def adopt(workspace: Workspace, plan: FetchResult) -> None:
    """Do what :func:`plan_fetch` decided: record the source, unless it was recorded before.

    Raises:
        LockedError: Another process recorded a source since the plan was made.
    """
    try:
        found = read_source_record(workspace)
    except (MissingInputError, DamagedError):
        found = None
    if found != plan.found:
        raise LockedError(f"another source was recorded in {workspace.root} meanwhile", "run the command again")
    if plan.record != found:
        write_source_record(workspace, plan.record)


def fetch(
    workspace: Workspace,
    path: Path,
    *,
    layout: str | None = None,
    follow_links: bool = False,
    overwrite: bool = False,
) -> FetchResult:
    """Adopt a dataset where it lies. Arguments and errors are those of :func:`plan_fetch`."""
    plan = plan_fetch(workspace, path, layout=layout, follow_links=follow_links, overwrite=overwrite)
    adopt(workspace, plan)
    return plan
