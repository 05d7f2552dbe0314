"""The commands that prepare a dataset that is there, choosing aside: catalog, annotations, shard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from imgprep.cli.options import (
    dry_run_option,
    json_option,
    overwrite_option,
    print_lines,
    print_result,
    size_text,
    workspace_option,
)
from imgprep.index import DEFAULT_NAME

if TYPE_CHECKING:
    from imgprep.shard import ShardJob, ShardResult, ShardSpec
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


@click.command()
@click.option("--subset", "subset_name", default=DEFAULT_NAME, show_default=True, help="Name of the subset to pack.")
@click.option("--name", help="Name of the shards.  [default: that of the subset]")
@click.option(
    "--images",
    type=click.Choice(["resize", "original"]),
    default="resize",
    show_default=True,
    help="Shrink pictures, or keep their bytes where they are plain JPEG.",
)
@click.option(
    "--size",
    type=click.IntRange(8, 1 << 14),
    default=256,
    show_default=True,
    help="Pixels of the short side; smaller pictures are never enlarged.",
)
@click.option("--quality", type=click.IntRange(1, 100), default=90, show_default=True, help="JPEG quality.")
@click.option(
    "--samples-per-shard",
    type=click.IntRange(min=1),
    help="[default: about 256 MiB a shard, at least 8 shards a split]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the order of samples.")
@click.option(
    "--max-rejects",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="How many pictures may be unusable before the stage fails.",
)
@click.option(
    "-j", "--workers", type=click.IntRange(min=0), default=0, help="Threads; 0 is one a processor.  [default: 0]"
)
@workspace_option
@overwrite_option
@dry_run_option
@json_option
def shard(
    root: Path,
    subset_name: str,
    name: str | None,
    workers: int,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the pictures of a subset into WebDataset tars, with an index that makes them random-access.

    Same input and options, same bytes, whatever the number of workers. A picture that cannot be decoded goes to
    rejected.csv with its reason.

    \b
    Examples:
      imgprep shard
      imgprep shard --size 128 --quality 85 --name small
      imgprep shard --images original --samples-per-shard 1000 --name full
    """
    from imgprep.cli.progress import make_progress
    from imgprep.errors import UsageError
    from imgprep.executors import make_executor
    from imgprep.shard import ShardSpec, plan_job, shard
    from imgprep.workspace import Workspace

    given = click.get_current_context().get_parameter_source("size")
    if options["images"] == "original" and given is not click.core.ParameterSource.DEFAULT:
        raise UsageError("--size means nothing with --images original, which shrinks nothing", "leave one of them out")
    spec = ShardSpec(**options)
    workspace = Workspace(root)
    workspace.require()
    if dry_run:
        job = plan_job(workspace, spec, subset=subset_name, name=name, overwrite=overwrite)
        print_result(*_plan_output(workspace, job), as_json=as_json)
        return
    with workspace.locked("imgprep shard"):
        job = plan_job(workspace, spec, subset=subset_name, name=name, overwrite=overwrite)
        result = shard(workspace, job, spec, executor=make_executor(workers), progress=make_progress())
    print_result(*_shard_output(workspace, result, spec), as_json=as_json)


def _skip_output(workspace: Workspace, folder: Path) -> tuple[list[str], dict[str, Any]]:
    from imgprep.sources.adopted import gone_note

    document = {"action": "skip", "folder": str(folder), **source_field(workspace)}
    return [f"up to date: {folder}{gone_note(workspace)}"], document


def _plan_output(workspace: Workspace, job: ShardJob) -> tuple[list[str], dict[str, Any]]:
    if job.action == "skip":
        return _skip_output(workspace, job.folder)
    lines = [f"would write {len(job.plans)} shards with {job.num_records:,} samples to {job.folder}"]
    lines += [f"{plan.filename}  {len(plan.records):,} samples" for plan in job.plans]
    shards = {plan.filename: len(plan.records) for plan in job.plans}
    return lines, {"action": "run", "folder": str(job.folder), "shards": shards}


def _shard_output(workspace: Workspace, result: ShardResult, spec: ShardSpec) -> tuple[list[str], dict[str, Any]]:
    if result.index is None:
        return _skip_output(workspace, result.folder)
    stats = result.stats
    lines = [
        f"shard: {stats['in']:,} images in = {stats['out']:,} in shards + {stats['rejected']:,} rejected"
        f" (kept their bytes: {stats['unchanged']:,}, written anew: {stats['out'] - stats['unchanged']:,}"
        + (f" at short side {spec.size} or less)" if spec.images == "resize" else ")")
    ]
    lines += [f"rejected {entry.path}: {entry.reason}" for entry in result.rejected[:5]]
    if result.rejected:
        lines.append(f"all rejected: {result.folder / 'rejected.csv'}")
    splits = ", ".join(
        f"{name} {split.num_samples:,} in {len(split.shards)}" for name, split in result.index.splits.items()
    )
    lines.append(
        f"{stats['shards']} shards, {size_text(stats['num_bytes'])} ({splits}) -> {result.folder / 'index.json'}"
    )
    lines.append(f"dataset digest {result.index.dataset_digest[:16]}")
    document = {
        "action": "run",
        "folder": str(result.folder),
        "dataset_digest": result.index.dataset_digest,
        "counts": stats.to_dict(),
    }
    return lines, document
