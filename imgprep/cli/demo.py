"""``imgprep demo``: runs the other commands one after another."""

from __future__ import annotations

import contextlib
import shlex
import time
from pathlib import Path

import click


@click.command()
@click.option(
    "--online-like",
    is_flag=True,
    help="Fetch a part of the archive from a stand-in for Kaggle on this computer instead of adopting all of it.",
)
@click.option(
    "-w",
    "--workspace",
    "root",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for everything the demo makes.  [default: imgprep-demo, or imgprep-demo-online]",
)
@click.pass_context
def demo(ctx: click.Context, root: Path | None, online_like: bool) -> None:
    """Walk the whole street offline: draw a small ImageNet-shaped archive, then fetch, subset, shard, train, evaluate.

    Takes about a minute on two processors and needs no network and no account. Run it twice: nothing is done again.
    With --online-like the archive is served on this computer, Kaggle's own client and the real transfer fetch a part of
    it, and the bytes on the wire are compared with those of the archive.

    \b
    Examples:
      imgprep demo
      imgprep demo --online-like
      imgprep demo --workspace /tmp/imgprep-demo
    """
    from imgprep.demo import RUN, archive_path, demo_steps, draw_archive, like_online
    from imgprep.workspace import Workspace

    group = ctx.find_root().command
    root = root or Path("imgprep-demo-online" if online_like else "imgprep-demo")
    workspace = Workspace(root)
    root.mkdir(parents=True, exist_ok=True)
    steps = demo_steps(workspace, online_like=online_like)
    start = time.monotonic()
    click.echo(f"[1/{len(steps) + 1}] draw an archive laid out like ImageNet on Kaggle")
    with workspace.locked("imgprep demo"):
        action = draw_archive(workspace, online_like=online_like)
    click.echo(f"{'up to date' if action == 'skip' else 'drawn'}: {archive_path(workspace)}")
    for number, step in enumerate(steps, start=2):
        click.echo(f"\n[{number}/{len(steps) + 1}] {step.purpose}")
        click.echo(f"$ imgprep {shlex.join(step.arguments)}")
        before = time.monotonic()
        with contextlib.ExitStack() as stack:
            if online_like and number == 2:
                click.echo(
                    f"(a stand-in for Kaggle serves the archive at {stack.enter_context(like_online(workspace))})"
                )
            group.main(list(step.arguments), prog_name="imgprep", standalone_mode=False)
        click.echo(f"({time.monotonic() - before:.1f} s)")
    folder = root / "runs" / RUN
    click.echo(f"\ndone in {time.monotonic() - start:.0f} s")
    click.echo(f"report:      {folder / 'report.md'}")
    click.echo(f"sample grid: {folder / 'samples.png'}")
