"""``imgprep demo``: runs the other commands one after another."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import click


@click.command()
@click.option(
    "-w",
    "--workspace",
    "root",
    type=click.Path(file_okay=False, path_type=Path),
    default="imgprep-demo",
    show_default=True,
    help="Folder for everything the demo makes.",
)
@click.pass_context
def demo(ctx: click.Context, root: Path) -> None:
    """Walk the whole street offline: draw a small ImageNet-shaped archive, then fetch, subset, shard, train, evaluate.

    Takes about a minute on two processors and needs no network and no account. Run it twice: nothing is done again.

    \b
    Examples:
      imgprep demo
      imgprep demo --workspace /tmp/imgprep-demo
    """
    from imgprep.demo import RUN, archive_path, demo_steps, draw_archive
    from imgprep.workspace import Workspace

    group = ctx.find_root().command
    workspace = Workspace(root)
    root.mkdir(parents=True, exist_ok=True)
    steps = demo_steps(workspace)
    start = time.monotonic()
    click.echo(f"[1/{len(steps) + 1}] draw an archive laid out like ImageNet on Kaggle")
    with workspace.locked("imgprep demo"):
        action = draw_archive(workspace)
    click.echo(f"{'up to date' if action == 'skip' else 'drawn'}: {archive_path(workspace)}")
    for number, step in enumerate(steps, start=2):
        click.echo(f"\n[{number}/{len(steps) + 1}] {step.purpose}")
        click.echo(f"$ imgprep {shlex.join(step.arguments)}")
        before = time.monotonic()
        group.main(list(step.arguments), prog_name="imgprep", standalone_mode=False)
        click.echo(f"({time.monotonic() - before:.1f} s)")
    folder = root / "runs" / RUN
    click.echo(f"\ndone in {time.monotonic() - start:.0f} s")
    click.echo(f"report:      {folder / 'report.md'}")
    click.echo(f"sample grid: {folder / 'samples.png'}")
