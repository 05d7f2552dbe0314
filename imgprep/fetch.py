"""Stage ``fetch``: make a dataset available to the stages after it.

A copy that is already there is *adopted*: its place, size and listing are recorded, nothing is copied or unpacked, and
later stages read its members straight from it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from imgprep.errors import DamagedError, MissingInputError, OutputExistsError
from imgprep.layouts import find_layout
from imgprep.receipts import Action
from imgprep.sources import open_source
from imgprep.sources.adopted import SourceRecord, describe_source, read_source_record, write_source_record
from imgprep.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class FetchResult:
    """What ``fetch`` did: ``skip`` when this very source was adopted before."""

    action: Action
    record: SourceRecord


def plan_fetch(workspace: Workspace, path: Path, *, overwrite: bool = False) -> FetchResult:
    """Look at a source and decide whether it is to be adopted; writes nothing.

    Args:
        workspace: Where to record it. It need not exist yet.
        path: A directory, zip or tar.
        overwrite: Adopt it also in place of another source.

    Raises:
        MissingInputError: Nothing is at ``path``.
        SourceError: It cannot be read, or holds no dataset of a known layout.
        OutputExistsError: The workspace holds another source.
    """
    with open_source(path) as source:
        record = describe_source(source, layout=find_layout(source).name)
    try:
        found = read_source_record(workspace)
    except (MissingInputError, DamagedError):
        return FetchResult(action="run", record=record)
    if found == record:
        return FetchResult(action="skip", record=record)
    if overwrite:
        return FetchResult(action="run", record=record)
    was, now = asdict(found), asdict(record)
    differences = "; ".join(f"{name} was {was[name]}, now {now[name]}" for name in was if was[name] != now[name])
    raise OutputExistsError(
        f"{workspace.root} has another source: {differences}",
        "use --overwrite to adopt this one in its place, or another --workspace",
    )


def adopt(workspace: Workspace, plan: FetchResult) -> None:
    """Do what :func:`plan_fetch` decided: record the source, unless it was recorded before."""
    if plan.action == "run":
        write_source_record(workspace, plan.record)


def fetch(workspace: Workspace, path: Path, *, overwrite: bool = False) -> FetchResult:
    """Adopt a dataset where it lies. Arguments and errors are those of :func:`plan_fetch`."""
    plan = plan_fetch(workspace, path, overwrite=overwrite)
    adopt(workspace, plan)
    return plan
