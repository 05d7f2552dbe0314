"""The commands ``train``, ``evaluate`` and ``report``: options -> configuration -> function -> exit.

Importing this module loads click only; torch and the rest are imported inside the commands.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from imgprep.index import DEFAULT_NAME, DEFAULT_WORKSPACE, WORKSPACE_VARIABLE, find_index

if TYPE_CHECKING:
    from imgprep.index import ShardIndex
    from training.config import TrainConfig
    from training.runs import Run

F = TypeVar("F", bound=Callable[..., Any])
DeviceName = Literal["auto", "cpu", "cuda"]


def workspace_option(command: F) -> F:
    """Add ``-w/--workspace``."""
    return click.option(
        "-w",
        "--workspace",
        type=click.Path(file_okay=False, path_type=Path),
        envvar=WORKSPACE_VARIABLE,
        default=DEFAULT_WORKSPACE,
        show_default=True,
        show_envvar=True,
        help="Folder that holds shards and runs.",
    )(command)


def device_options(command: F) -> F:
    """Add ``--device`` and ``--threads``."""
    command = click.option(
        "--threads", type=click.IntRange(1, 1024), help="Threads for arithmetic and decoding.  [default: all cores]"
    )(command)
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to compute; auto takes a GPU when there is one.",
    )(command)


def index_option(command: F) -> F:
    """Add ``--index``."""
    return click.option(
        "--index",
        "index_path",
        type=click.Path(path_type=Path),
        help="The index.json of the shards, or its folder, wherever it lies.",
    )(command)


@click.command()
@workspace_option
@click.option(
    "--shards",
    default=DEFAULT_NAME,
    show_default=True,
    metavar="NAME",
    help="Which shards of the workspace to learn from.",
)
@index_option
@click.option(
    "--recipe",
    "recipe_name",
    type=click.Choice(["tiny", "imagenet"]),
    help="Configuration to start from.  [default: tiny for training splits under 20,000 samples, else imagenet]",
)
@click.option(
    "--name",
    metavar="RUN",
    help="Name of the run.  [default: the newest run with the same options and shards; without one, the next free of"
    " RECIPE-1, RECIPE-2, ...]",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the named run, with the options it has, or with the newest unfinished one.",
)
@click.option(
    "--overwrite", is_flag=True, help="Replace the named run if there is one; without --name, start a new one."
)
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the training split.  [default: the recipe's]")
@click.option("--batch-size", type=click.IntRange(min=1), help="Largest batch.  [default: the recipe's]")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Peak learning rate.  [default: the recipe's]")
@click.option("--seed", type=click.IntRange(min=0), help="Decides weights, order and every draw.  [default: 0]")
@device_options
@click.option("--log-every", type=click.IntRange(min=1), help="Steps between two lines of metrics.  [default: 50]")
@click.option("-n", "--dry-run", is_flag=True, help="Print the configuration and the plan as JSON; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def train(
    *,
    workspace: Path,
    shards: str,
    index_path: Path | None,
    recipe_name: str | None,
    name: str | None,
    resume: bool,
    overwrite: bool,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    seed: int | None,
    device: DeviceName,
    threads: int | None,
    log_every: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a network on shards and keep everything about it in a run.

    A run is a folder, WORKSPACE/runs/NAME, with its configuration, metrics.jsonl, checkpoints and learning curves.
    Ctrl-C saves a checkpoint and says how to go on. The same command given again goes on with an unfinished run, too,
    and does nothing when the run is finished.

    \b
    Examples:
      imgprep train
      imgprep train --name first --epochs 20 --seed 1
      imgprep train --resume --name first
      imgprep train --dry-run
    """
    from imgprep.errors import UsageError
    from imgprep.index import read_index
    from training import recipes, runs
    from training.console import Console

    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other", "give one of them")
    runs.require_name(shards, "the name of shards")
    console = Console()
    changes = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed, "log_every": log_every}
    found = False
    if resume:
        run = runs.newest_run(workspace, unfinished=True) if name is None else runs.find_run(workspace, name)
        record = runs.read_record(run)
        config = resumed_config(run, record.config, recipe_name, changes)
        index_file = runs.index_of(run, record, index_path)
        index = read_index(index_file)
        num_train = samples_in(index, config.data.train_split)
    else:
        index_file = find_index(workspace, shards) if index_path is None else runs.locate_index(index_path)
        index = read_index(index_file)
        num_train = samples_in(index, recipes.tiny().data.train_split)
        config = recipes.recipe(recipe_name or recipes.default_recipe(num_train))
        config = with_options(config, changes)
        console.say(recipes.describe(config, num_train, chosen=recipe_name is not None))
        run, found = choose_run(workspace, name, config, index.dataset_digest, anew=overwrite)
    if dry_run:
        click.echo(json.dumps(plan(config, run, index_file, num_train, device=device), indent=1))
        return
    if found and not run.is_finished:
        console.say(f"run {run.name} has these options and is not finished; this goes on with it")

    from training.extras import require_matplotlib, require_torch

    require_torch()
    require_matplotlib()
    from training.train import train as train_run

    result = train_run(
        config,
        run,
        index_path=index_file,
        console=console,
        device=device,
        threads=threads,
        resume=resume,
        overwrite=overwrite,
        found=found,
    )
    click.echo(json.dumps(result) if as_json else f"run {run.name}: {accuracy_line(result)}")


def samples_in(index: ShardIndex, split: str) -> int:
    """Samples in a split; none when there is no such split."""
    return index.splits[split].num_samples if split in index.splits else 0


def choose_run(
    workspace: Path, name: str | None, config: TrainConfig, dataset_digest: str, *, anew: bool
) -> tuple[Run, bool]:
    """The run that a command without ``--resume`` means.

    Args:
        workspace: Where runs are.
        name: What the user called it, if anything.
        config: What is to be trained.
        dataset_digest: Of the shards to learn from.
        anew: Without a name, do not look for a run that is there.

    Returns:
        The run, which need not exist, and whether it was found by what it does rather than by its name.
    """
    from training import runs

    if name is not None:
        return runs.find_run(workspace, name), False
    known = None if anew else runs.same_run(workspace, config, dataset_digest)
    return known or runs.find_run(workspace, runs.free_name(workspace, config.recipe)), known is not None


def resumed_config(
    run: Run, started: TrainConfig, recipe_name: str | None, changes: dict[str, int | float | None]
) -> TrainConfig:
    """The configuration of a run that goes on.

    Raises:
        UsageError: The options given are not those it was started with.
    """
    from imgprep.errors import UsageError
    from training.config import differences

    if recipe_name not in (None, started.recipe):
        raise UsageError(f"run {run.name} has recipe {started.recipe}, not {recipe_name}", "leave out --recipe")
    if found := differences(started, with_options(started, changes)):
        raise UsageError(
            f"run {run.name} was started with other options ({'; '.join(found)})", "go on without them, or use --name"
        )
    return started


def with_options(config: TrainConfig, changes: dict[str, int | float | None]) -> TrainConfig:
    """Replace those settings of a configuration that were given.

    Args:
        config: What to start from.
        changes: Values of ``epochs``, ``seed``, ``log_every``, ``batch_size`` and ``lr``; None leaves one as it is.
    """
    given: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    data = {key: given.pop(key) for key in ("batch_size",) if key in given}
    optim = {key: given.pop(key) for key in ("lr",) if key in given}
    return replace(config, **given, data=replace(config.data, **data), optim=replace(config.optim, **optim))


def plan(config: TrainConfig, run: Run, index_path: Path, num_train: int, *, device: str) -> dict[str, Any]:
    """What a run will do, as JSON values."""
    steps = -(-num_train // config.data.batch_size)
    return {
        "run": run.name,
        "folder": str(run.folder),
        "index": str(index_path),
        "device": device,
        "train_samples": num_train,
        "steps_per_epoch": steps,
        "steps": steps * config.epochs,
        "config": json.loads(config.to_json()),
    }


def accuracy_line(document: dict[str, Any]) -> str:
    """Top-1 and top-5 with their intervals, in one line."""
    parts = []
    for key in ("top1", "top5"):
        value = document[key]
        parts.append(
            f"top-{value['k']} {100 * value['share']:.1f} % ({value['correct']} of {value['total']},"
            f" 95 % interval {100 * value['low']:.1f} to {100 * value['high']:.1f} %)"
        )
    if document["top5"]["k"] < 5:
        parts.append(f"top-{document['top5']['k']} because there are no more classes")
    return "; ".join(parts)


@click.command()
@click.argument("name", metavar="[RUN]", required=False)
@workspace_option
@index_option
@click.option("--split", help="Split to measure on.  [default: the run's validation split]")
@click.option(
    "--checkpoint",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="Which weights; best was chosen on the validation split, so its figures there flatter it.",
)
@device_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def evaluate(
    *,
    name: str | None,
    workspace: Path,
    index_path: Path | None,
    split: str | None,
    checkpoint: str,
    device: DeviceName,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure a run's accuracy: top-1, top-5, per class, confusions.

    RUN is the newest run when not given. Writes eval.json and pictures beside the run.

    \b
    Examples:
      imgprep evaluate
      imgprep evaluate tiny-1 --checkpoint best
      imgprep evaluate tiny-1 --json
    """
    from training import runs
    from training.console import Console, printable
    from training.extras import require_matplotlib, require_torch

    run = runs.newest_run(workspace) if name is None else runs.find_run(workspace, name)
    runs.read_record(run)
    require_torch()
    require_matplotlib()
    from training.evaluate import evaluate as evaluate_run

    console = Console()
    document, measured_now = evaluate_run(
        run,
        console=console,
        split=split,
        checkpoint=checkpoint,
        device=device,
        threads=threads,
        index_path=index_path,
    )
    if not measured_now:
        console.say(f"run {run.name}: this checkpoint was measured before; nothing to do")
    if as_json:
        click.echo(json.dumps(document))
    else:
        measured = printable(f"{document['checkpoint']} on {document['split']}")
        click.echo(f"run {run.name}, {measured}: {accuracy_line(document)}")


@click.command()
@click.argument("name", metavar="[RUN]", required=False)
@workspace_option
@index_option
def report(*, name: str | None, workspace: Path, index_path: Path | None) -> None:
    """Write report.md beside a run: what was trained on what, the numbers, the pictures.

    RUN is the newest run when not given. Prints the path of the report.

    \b
    Examples:
      imgprep report
      imgprep report tiny-1
    """
    from training import runs
    from training.console import Console
    from training.report import report as report_run

    run = runs.newest_run(workspace) if name is None else runs.find_run(workspace, name)
    path, written_now = report_run(run, index_path=index_path)
    if not written_now:
        Console().say(f"run {run.name}: nothing changed since this report; nothing to do")
    click.echo(path)
