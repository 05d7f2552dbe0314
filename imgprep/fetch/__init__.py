"""Stage ``fetch``: make a dataset available to the stages after it.

A copy that is already there is *adopted*: its place, size and listing are recorded, nothing is copied or unpacked, and
later stages read its members straight from it. What is not there yet is fetched from Kaggle: a part of the archive
(:mod:`imgprep.fetch.part`) or all of it (:mod:`imgprep.fetch.whole`), both started by :mod:`imgprep.fetch.online`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from imgprep.errors import DamagedError, LockedError, MissingInputError, OutputExistsError, UsageError
from imgprep.layouts import find_layout, get_layout
from imgprep.receipts import Action
from imgprep.sources import open_source
from imgprep.sources.adopted import SourceRecord, describe_source, read_source_record, write_source_record
from imgprep.stats import SILENT, Progress
from imgprep.workspace import Workspace, default_cache


@dataclass(frozen=True, kw_only=True)
class FetchResult:
    """What ``fetch`` will do or did.

    Attributes:
        action: ``skip`` when this very source was adopted before.
        record: What to record of it.
        found: What was recorded before.
    """

    action: Action
    record: SourceRecord
    found: SourceRecord | None = None


def plan_fetch(
    workspace: Workspace,
    path: Path,
    *,
    layout: str | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> FetchResult:
    """Look at a source and decide whether it is to be adopted; writes nothing.

    Args:
        workspace: Where to record it. It need not exist yet.
        path: A directory, zip or tar.
        layout: Name of the layout it has; None to find out.
        overwrite: Adopt it also in place of another source.
        progress: Told of the pass that a compressed tar needs.

    Raises:
        MissingInputError: Nothing is at ``path``.
        SourceError: It cannot be read, or holds no dataset of a known layout.
        OutputExistsError: The workspace holds another source.
        UsageError: The workspace lies inside the source.
    """
    if path.is_dir() and workspace.root.resolve().is_relative_to(path.resolve()):
        raise UsageError(
            f"the workspace {workspace.root} lies inside the source {path}, which it would change",
            "choose another --workspace",
        )
    with open_source(path, cache=default_cache(), progress=progress) as source:
        found_layout = find_layout(source) if layout is None else get_layout(layout)
        record = describe_source(workspace, source, layout=found_layout.name)
    try:
        found = read_source_record(workspace)
    except (MissingInputError, DamagedError):
        return FetchResult(action="run", record=record)
    if _identity(found) == _identity(record):
        return FetchResult(action="skip", record=record, found=found)
    if overwrite:
        return FetchResult(action="run", record=record, found=found)
    was, now = asdict(found), asdict(record)
    differences = "; ".join(f"{name} was {was[name]}, now {now[name]}" for name in was if was[name] != now[name])
    raise OutputExistsError(
        f"{workspace.root} has another source: {differences}",
        "use --overwrite to adopt this one in its place, or another --workspace",
    )


def _identity(record: SourceRecord) -> tuple[str, str, str, str]:
    """What makes a source the same: a copy with another time, or one drawn again, still is."""
    return record.path, record.kind, record.layout, record.listing_sha256


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


def fetch(workspace: Workspace, path: Path, *, layout: str | None = None, overwrite: bool = False) -> FetchResult:
    """Adopt a dataset where it lies. Arguments and errors are those of :func:`plan_fetch`."""
    plan = plan_fetch(workspace, path, layout=layout, overwrite=overwrite)
    adopt(workspace, plan)
    return plan
