"""The commands that list a dataset that is there: catalog, annotations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from imgprep.cli.options import (
    json_option,
    print_lines,
    print_result,
    workspace_option,
)

if TYPE_CHECKING:
    from imgprep.stats import Stats
    from imgprep.workspace import Workspace


@click.command()
@workspace_option
@json_option
def catalog(root: Path, as_json: bool) -> None:
    """List the classes and pictures of the source in classes.csv and manifest.csv.

    `imgprep subset` runs this by itself when it is missing or out of date.

    \b
    Examples:
      imgprep catalog
    """
    from imgprep.catalog import catalog
    from imgprep.workspace import Workspace

    workspace = Workspace(root)
    workspace.require()
    with workspace.locked("imgprep catalog"):
        result = catalog(workspace)
    lines = _catalog_lines(workspace, result.action, result.stats)
    document = {"action": result.action, **result.stats.to_dict(), **source_field(workspace)}
    print_result(lines, document, as_json=as_json)


def source_field(workspace: Workspace) -> dict[str, str]:
    """What ``--json`` says of a source that is gone: all that was made of it stays up to date."""
    from imgprep.sources.adopted import gone_note

    return {"source": "gone"} if gone_note(workspace) else {}


def _catalog_lines(workspace: Workspace, action: str, stats: Stats) -> list[str]:
    from imgprep.sources.adopted import gone_note

    if action == "skip":
        return [f"up to date: {workspace.catalog / 'manifest.csv'}{gone_note(workspace)}"]
    ignored = f"; {stats['ignored']:,} files beside them do not fit the layout" if stats["ignored"] else ""
    hashed = f"; {stats['path_keys']:,} have a hash of their path as key" if stats["path_keys"] else ""
    return [
        f"catalog: {stats['classes']:,} classes, {stats['train']:,} train, {stats['val']:,} val and"
        f" {stats['test']:,} test pictures{hashed}{ignored} -> {workspace.catalog / 'manifest.csv'}"
    ]


@click.command("annotations")
@click.option(
    "--max-rejects",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="How many XML files may be unusable before the stage fails.",
)
@workspace_option
@json_option
def read_annotations(max_rejects: int, root: Path, as_json: bool) -> None:
    """Read the XML annotations: labels of the validation split to val.csv, bounding boxes to boxes.csv.

    Labels are checked against every list of labels that the source has. `imgprep subset` runs this by itself when
    it is missing or out of date.

    \b
    Examples:
      imgprep annotations
      imgprep annotations --max-rejects 10
    """
    from imgprep.annotations import AnnotationsSpec, annotations
    from imgprep.cli.progress import make_progress
    from imgprep.workspace import Workspace

    workspace = Workspace(root)
    workspace.require()
    with workspace.locked("imgprep annotations"):
        result = annotations(workspace, AnnotationsSpec(max_rejects=max_rejects), progress=make_progress())
    lines = _annotations_lines(workspace, result.action, result.stats)
    document = {"action": result.action, **result.stats.to_dict(), **source_field(workspace)}
    print_result(lines, document, as_json=as_json)


_ODD: Final = {
    "without_object": "files without an object",
    "boxes_sorted": "boxes with corners the wrong way round",
    "boxes_outside": "boxes that reach outside",
    "boxes_flat": "boxes without an area",
    "other_filename": "files that name another picture",
    "other_class": "objects of another class than their folder",
    "labels_repeated": "labels listed twice",
}


def _annotations_lines(workspace: Workspace, action: str, stats: Stats) -> list[str]:
    from imgprep.sources.adopted import gone_note

    if action == "skip":
        return [f"up to date: {workspace.catalog / 'val.csv'} and boxes.csv{gone_note(workspace)}"]
    lines = [
        f"annotations: {stats['files']:,} XML files, {stats['boxes']:,} boxes, {stats['labels']:,} validation"
        f" labels -> {workspace.catalog / 'val.csv'}"
    ]
    odd = [f"{stats[name]:,} {words}" for name, words in _ODD.items() if stats[name]]
    if odd:
        lines.append(f"odd but used: {', '.join(odd)} -> {workspace.catalog / 'annotations.odd.csv'}")
    if stats["rejected"]:
        lines.append(f"rejected: {stats['rejected']:,} -> {workspace.catalog / 'annotations.rejected.csv'}")
    return lines


def catch_up(workspace: Workspace) -> None:
    """Run catalog and annotations where they are missing or out of date.

    That is told at once, on stderr: it stays done when the command itself fails, and is not what was asked for.
    """
    from imgprep.annotations import annotations, plan_annotations
    from imgprep.catalog import catalog, plan_catalog
    from imgprep.cli.progress import make_progress

    if plan_catalog(workspace)[0] == "run":
        listed = catalog(workspace)
        print_lines(_catalog_lines(workspace, listed.action, listed.stats), err=True)
    if plan_annotations(workspace)[0] == "run":
        read = annotations(workspace, progress=make_progress())
        print_lines(_annotations_lines(workspace, read.action, read.stats), err=True)
