"""Command ``shard``: pictures into WebDataset tars."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from imgprep.cli.options import (
    Size,
    dry_run_option,
    json_option,
    overwrite_option,
    print_result,
    size_text,
    workers_option,
    workspace_option,
)
from imgprep.cli.prepare import source_field
from imgprep.index import DEFAULT_NAME

if TYPE_CHECKING:
    from imgprep.shard import Estimate, ShardJob, ShardResult
    from imgprep.shard_plan import ShardSpec
    from imgprep.workspace import Workspace

_FEW: Final = 100
"""Of so many images one may be rejected without a remark."""

_SHOWN_SHARDS: Final = 20
"""Tars a dry run lists by name."""


@click.command()
@click.option("--subset", "subset_name", default=DEFAULT_NAME, show_default=True, help="Name of the subset to pack.")
@click.option("--name", help="Name of the shards.  [default: that of the subset]")
@click.option(
    "--images",
    type=click.Choice(["resize", "original"]),
    default="resize",
    show_default=True,
    help="Shrink pictures, or copy the bytes of every JPEG.",
)
@click.option(
    "--size",
    type=click.IntRange(8, 1 << 14),
    default=256,
    show_default=True,
    help="Pixels of the short side; smaller pictures are never enlarged.",
)
@click.option(
    "--crop",
    type=click.Choice(["none", "center"]),
    default="none",
    show_default=True,
    help="Keep the whole picture, or the square in its middle.",
)
@click.option("--quality", type=click.IntRange(1, 100), default=90, show_default=True, help="JPEG quality.")
@click.option("--restart-markers", is_flag=True, help="Write JPEGs that can be decoded from the middle on.")
@click.option(
    "--samples-per-shard",
    type=click.IntRange(min=1),
    help="[default: about 256 MiB a shard, at least 8 shards a split]",
)
@click.option("--bytes-per-shard", type=Size(), help="About how large a shard shall be, such as 500MB.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the order of samples.")
@click.option(
    "--max-rejects",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="How many pictures may be unusable before the stage fails.",
)
@click.option(
    "--side-files/--no-side-files",
    default=True,
    show_default=True,
    help="Files for other readers, a dataset card and checksums beside the shards.",
)
@workers_option
@workspace_option
@overwrite_option
@dry_run_option
@json_option
def shard(
    root: Path,
    subset_name: str,
    name: str | None,
    workers: int,
    engine: str,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write the pictures of a subset into WebDataset tars, with an index that makes them random-access.

    Same input and options, same bytes, whatever the number of workers. When it is killed, the same command goes on. A
    picture that cannot be used goes to rejected.csv with its reason.

    \b
    Examples:
      imgprep shard
      imgprep shard --size 128 --quality 85 --name small
      imgprep shard --images original --samples-per-shard 1000 --name full
      imgprep shard --crop center --dry-run
    """
    from imgprep.cli.progress import make_progress
    from imgprep.executors import make_executor
    from imgprep.shard import best_engine, estimate, plan_job, shard
    from imgprep.shard_plan import ShardSpec
    from imgprep.workspace import Workspace

    _refuse_idle_options(options["images"])
    if options["bytes_per_shard"] is not None:
        options["bytes_per_shard"] = int(options["bytes_per_shard"])
    spec = ShardSpec(**options)
    workspace = Workspace(root)
    workspace.require()
    if dry_run:
        job = plan_job(workspace, spec, subset=subset_name, name=name, overwrite=overwrite)
        output = _plan_output(workspace, job, estimate(workspace, job, spec), make_executor(workers).workers)
        print_result(*output, as_json=as_json)
        return
    with workspace.locked("imgprep shard"):
        job = plan_job(workspace, spec, subset=subset_name, name=name, overwrite=overwrite)
        executor = make_executor(workers, best_engine(job, spec) if engine == "auto" else engine)
        result = shard(workspace, job, spec, executor=executor, progress=make_progress())
    print_result(*_shard_output(workspace, result, spec), as_json=as_json)


def _refuse_idle_options(images: str) -> None:
    from imgprep.errors import UsageError

    context = click.get_current_context()
    for option in ("size", "crop") if images == "original" else ():
        if context.get_parameter_source(option) is not click.core.ParameterSource.DEFAULT:
            raise UsageError(
                f"--{option} means nothing with --images original, which shrinks nothing", "leave one of them out"
            )


def _skip_output(workspace: Workspace, folder: Path) -> tuple[list[str], dict[str, Any]]:
    from imgprep.sources.adopted import gone_note

    document = {"action": "skip", "folder": str(folder), **source_field(workspace)}
    return [f"up to date: {folder}{gone_note(workspace)}"], document


def _plan_output(
    workspace: Workspace, job: ShardJob, estimate: Estimate, workers: int
) -> tuple[list[str], dict[str, Any]]:
    if job.plans is None:
        return _skip_output(workspace, job.folder)
    cuts = job.plans.cuts
    seconds = estimate.seconds / workers
    lines = [
        f"would write {len(cuts):,} shards with {job.num_records:,} samples to {job.folder}",
        f"about {size_text(estimate.num_bytes)} in about {_time_text(seconds)} with {workers} at once,"
        f" measured on {estimate.measured:,} pictures",
    ]
    lines += [f"{cut.filename}  {cut.num_samples:,} samples" for cut in cuts[:_SHOWN_SHARDS]]
    if len(cuts) > _SHOWN_SHARDS:
        lines.append(f"and {len(cuts) - _SHOWN_SHARDS:,} more")
    document = {
        "action": "run",
        "folder": str(job.folder),
        "shards": {cut.filename: cut.num_samples for cut in cuts},
        "estimate": {"num_bytes": estimate.num_bytes, "seconds": round(seconds, 3), "measured": estimate.measured},
    }
    return lines, document


def _time_text(seconds: float) -> str:
    if seconds < 1:
        return "a second"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _shard_output(workspace: Workspace, result: ShardResult, spec: ShardSpec) -> tuple[list[str], dict[str, Any]]:
    if result.index is None:
        return _skip_output(workspace, result.folder)
    stats = result.stats
    lines = [
        f"shard: {stats['in']:,} images in = {stats['out']:,} in shards + {stats['rejected']:,} rejected"
        f" (kept their bytes: {stats['unchanged']:,}, written anew: {stats['out'] - stats['unchanged']:,}"
        + (f" at short side {spec.size} or less)" if spec.images == "resize" else ")")
    ]
    if stats["resumed"]:
        lines.append(f"went on with an earlier run: {stats['resumed']:,} shards were there")
    if stats["rejected"] * _FEW > stats["in"]:
        lines.append(f"note: {100 * stats['rejected'] / stats['in']:.0f} % of the images were rejected")
    lines += [f"rejected {entry.path}: {entry.reason}" for entry in result.rejected[:5]]
    if result.rejected:
        lines.append(f"all rejected: {result.folder / 'rejected.csv'}")
    splits = ", ".join(
        f"{name} {split.num_samples:,} in {len(split.shards)}" for name, split in result.index.splits.items()
    )
    rate = f"{stats['in'] / result.seconds:,.0f} images/s, {size_text(stats['num_bytes'] / result.seconds)}/s"
    size = size_text(stats["num_bytes"])
    lines.append(f"{stats['shards']} shards, {size} ({splits}), {rate} -> {result.folder / 'index.json'}")
    lines.append(f"dataset digest {result.index.dataset_digest[:16]}")
    document = {
        "action": "run",
        "folder": str(result.folder),
        "dataset_digest": result.index.dataset_digest,
        "counts": {**stats.to_dict(), "in": stats["in"]},
        "seconds": round(result.seconds, 3),
    }
    return lines, document
