"""``imgprep demo``: the whole street, offline, on drawn pictures laid out like the Kaggle archive."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from imgprep.receipts import Action, Receipt
from imgprep.testing.toy import ToySpec, write_toy_imagenet
from imgprep.workspace import Workspace

RUN: Final = "demo"
"""Name of the demo's run."""

_ARCHIVE: Final = "toy-imagenet.zip"
_TOY: Final = ToySpec(classes=12, per_class=80, val_per_class=20)
_LARGER_TOY: Final = ToySpec(classes=16, per_class=150, val_per_class=20)
"""What the stand-in for Kaggle serves: large enough that a part of it is much less than all of it."""

_CLASSES, _PER_CLASS, _SIZE, _EPOCHS = 10, 60, 96, 12


@dataclass(frozen=True, slots=True)
class DemoStep:
    """One command of the demo, and what it is there for."""

    purpose: str
    arguments: tuple[str, ...]


def archive_path(workspace: Workspace) -> Path:
    """Where the demo's archive lies."""
    return workspace.root / "archive" / _ARCHIVE


def draw_archive(workspace: Workspace, *, online_like: bool = False) -> Action:
    """Draw the archive, unless it is there already.

    Args:
        workspace: The workspace of the demo.
        online_like: Draw a larger one, to be served.

    Returns:
        ``skip`` when it was there.
    """
    path = archive_path(workspace)
    toy = _LARGER_TOY if online_like else _TOY
    receipt = Receipt(stage="draw", inputs={}, options=asdict(toy))
    action = receipt.decide(path.parent, overwrite=True)
    if action == "run":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_toy_imagenet(path, toy)
        receipt.write(path.parent, [path.name], {})
    return action


def demo_steps(workspace: Workspace, *, online_like: bool = False) -> list[DemoStep]:
    """The commands that follow the drawing, as a user would type them; the first one fetches."""
    place = ("--workspace", str(workspace.root))
    part = ("--classes", str(_CLASSES), "--per-class", str(_PER_CLASS))
    fetch = (
        DemoStep("fetch a part of the archive from the stand-in, by byte ranges", ("fetch", *part, *place))
        if online_like
        else DemoStep("adopt the archive where it lies", ("fetch", "--from", str(archive_path(workspace)), *place))
    )
    return [
        fetch,
        DemoStep("choose classes and images by keyed hash", ("subset", *part, *place)),
        DemoStep("pack them into WebDataset shards", ("shard", "--size", str(_SIZE), *place)),
        DemoStep("train a small AlexNet on them", ("train", "--name", RUN, "--epochs", str(_EPOCHS), *place)),
        DemoStep("count what it gets right", ("evaluate", RUN, *place)),
        DemoStep("write it up", ("report", RUN, *place)),
    ]


@contextlib.contextmanager
def like_online(workspace: Workspace) -> Iterator[str]:
    """For the length of the block, Kaggle is a server on this computer that has the demo's archive.

    Everything else is real: Kaggle's own client asks it for an address, and the transfer reads it by byte ranges.

    Yields:
        The address of the server.
    """
    from imgprep.testing.kaggle import KaggleStandIn

    with KaggleStandIn(archive_path(workspace)) as stand_in:
        settings = stand_in.environment(workspace.root / "home") | {"IMGPREP_CACHE": str(workspace.root / "cache")}
        before = {name: os.environ.get(name) for name in settings}
        try:
            _set_environment(settings)
            yield stand_in.url
        finally:
            _set_environment(before)


def _set_environment(settings: Mapping[str, str | None]) -> None:
    for name, value in settings.items():
        if value:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)
