"""The demo's plan: what it would type."""

from __future__ import annotations

from pathlib import Path

import click

from imgprep.cli import main
from imgprep.demo import archive_path, demo_steps, draw_archive
from imgprep.workspace import Workspace


def test_every_step_is_a_command_line_that_parses(tmp_path: Path) -> None:
    steps = demo_steps(Workspace(tmp_path))

    assert [step.arguments[0] for step in steps] == ["fetch", "subset", "shard", "train", "evaluate", "report"]
    for step in steps:
        command = main.commands[step.arguments[0]]
        context = command.make_context(command.name, list(step.arguments[1:]), parent=click.Context(main))
        assert str(tmp_path) in map(str, context.params.values())


def test_the_archive_is_drawn_once(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)

    assert draw_archive(workspace) == "run"
    content = archive_path(workspace).read_bytes()
    assert draw_archive(workspace) == "skip"
    archive_path(workspace).write_bytes(content[:100])
    assert draw_archive(workspace) == "run"
    assert archive_path(workspace).read_bytes() == content
