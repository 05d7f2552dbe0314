"""``imgprep demo``: the whole street, offline, on drawn pictures laid out like the Kaggle archive."""

from __future__ import annotations

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
_CLASSES, _PER_CLASS, _SIZE, _EPOCHS = 10, 60, 96, 12


@dataclass(frozen=True, slots=True)
class DemoStep:
    """One command of the demo, and what it is there for."""

    purpose: str
    arguments: tuple[str, ...]


def archive_path(workspace: Workspace) -> Path:
    """Where the demo's archive lies."""
    return workspace.root / "archive" / _ARCHIVE


def draw_archive(workspace: Workspace) -> Action:
    """Draw the archive, unless it is there already.

    Returns:
        ``skip`` when it was there.
    """
    path = archive_path(workspace)
    receipt = Receipt(stage="draw", inputs={}, options=asdict(_TOY))
    action = receipt.decide(path.parent, overwrite=True)
    if action == "run":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_toy_imagenet(path, _TOY)
        receipt.write(path.parent, [path.name], {})
    return action


def demo_steps(workspace: Workspace) -> list[DemoStep]:
    """The commands that follow the drawing, as a user would type them."""
    place = ("--workspace", str(workspace.root))
    return [
        DemoStep("adopt the archive where it lies", ("fetch", "--from", str(archive_path(workspace)), *place)),
        DemoStep(
            "choose classes and images by keyed hash",
            ("subset", "--classes", str(_CLASSES), "--per-class", str(_PER_CLASS), *place),
        ),
        DemoStep("pack them into WebDataset shards", ("shard", "--size", str(_SIZE), *place)),
        DemoStep("train a small AlexNet on them", ("train", "--name", RUN, "--epochs", str(_EPOCHS), *place)),
        DemoStep("count what it gets right", ("evaluate", RUN, *place)),
        DemoStep("write it up", ("report", RUN, *place)),
    ]
