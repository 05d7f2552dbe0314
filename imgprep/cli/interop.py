"""Command index: make tars of others readable for training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from imgprep.cli.options import dry_run_option, json_option, overwrite_option, print_result, size_text

if TYPE_CHECKING:
    from imgprep.foreign import ForeignJob, ForeignResult


@click.command("index")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the index, with links to the tars.  [default: beside the tars]",
)
@click.option(
    "--split", type=click.Choice(["train", "val", "test"]), help="Split of all tars.  [default: what their names say]"
)
@click.option(
    "--image", metavar="EXT", help="Extension of the pictures.  [default: the first of jpg, jpeg, png, webp there is]"
)
@click.option(
    "--label",
    metavar="EXT[:FIELD]",
    default="cls",
    show_default=True,
    help="Extension of the labels, and which field of it if it is JSON, as in json:label.",
)
@click.option(
    "--classes",
    type=click.Path(dir_okay=False, path_type=Path),
    help="List of the classes: CSV with label,wnid,name, or a name a line.  [default: classes.csv beside the tars]",
)
@click.option(
    "--max-rejects",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="How many samples may lack a picture or a label before the stage fails.",
)
@click.option(
    "-j", "--workers", type=click.IntRange(min=0), default=0, help="Threads; 0 is one a processor.  [default: 0]"
)
@overwrite_option
@dry_run_option
@json_option
def index(
    folder: Path,
    out: Path | None,
    split: Literal["train", "val", "test"] | None,
    image: str | None,
    label: str,
    classes: Path | None,
    max_rejects: int,
    workers: int,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write an index over WebDataset tars that others wrote, so that they can be trained on as they lie.

    The tars may be from WebDataset, img2dataset, timm or GNU tar. They are read once and never changed. `imgprep train
    --index FOLDER` then learns from them.

    \b
    Examples:
      imgprep index their-tars
      imgprep index their-tars --label json:label --classes names.txt
      imgprep index their-tars --out imgprep-data/shards/theirs
    """
    from imgprep.cli.progress import make_progress
    from imgprep.executors import make_executor
    from imgprep.foreign import ForeignSpec, index_tars, plan_index

    spec = ForeignSpec(image=image, label=label, split=split, classes=classes, max_rejects=max_rejects)
    job = plan_index(folder, spec, out=out, overwrite=overwrite)
    if dry_run:
        print_result(*_plan_output(job), as_json=as_json)
        return
    result = index_tars(job, spec, executor=make_executor(workers), progress=make_progress())
    print_result(*_result_output(result), as_json=as_json)


def _plan_output(job: ForeignJob) -> tuple[list[str], dict[str, Any]]:
    if job.action == "skip":
        return _skip_output(job.folder)
    lines = [f"would read {len(job.plans):,} tars, {size_text(job.num_bytes)}, and write {job.folder / 'index.json'}"]
    lines += [f"{plan.path.name}  {plan.split}" for plan in job.plans]
    tars = {plan.path.name: plan.split for plan in job.plans}
    return lines, {"action": "run", "folder": str(job.folder), "tars": tars}


def _skip_output(folder: Path) -> tuple[list[str], dict[str, Any]]:
    return [f"up to date: {folder / 'index.json'}"], {"action": "skip", "folder": str(folder)}


def _result_output(result: ForeignResult) -> tuple[list[str], dict[str, Any]]:
    if result.index is None:
        return _skip_output(result.folder)
    stats, index = result.stats, result.index
    splits = ", ".join(f"{name} {part.num_samples:,} in {len(part.shards)}" for name, part in index.splits.items())
    ignored = f"; {stats['ignored']:,} members belong to no sample" if stats["ignored"] else ""
    lines = [
        f"index: {stats['out']:,} samples of {len(index.classes):,} classes ({splits}),"
        f" {stats['rejected']:,} rejected{ignored} -> {result.folder / 'index.json'}"
    ]
    lines += [f"rejected {entry.key} in {entry.path}: {entry.reason}" for entry in result.rejected[:5]]
    if result.rejected:
        lines.append(f"all rejected: {result.folder / 'rejected.csv'}")
    others = stats["out"] - stats["jpeg"]
    if others:
        lines.append(f"{others:,} pictures are no JPEG: `imgprep train` cannot read them, other readers can")
    lines.append(f"dataset digest {index.dataset_digest[:16]}")
    document = {
        "action": "run",
        "folder": str(result.folder),
        "dataset_digest": index.dataset_digest,
        "counts": stats.to_dict(),
    }
    return lines, document
