"""Pictures of a run as PNG files, drawn without a display.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; lines also differ in style.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from training.atomic import publish
from training.console import printable
from training.extras import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

BLUE: Final = "#0072B2"
ORANGE: Final = "#D55E00"
GREEN: Final = "#009E73"

DPI: Final = 110

MAX_CELL_LABELS: Final = 20
"""Confusion matrices of more classes show no numbers in their cells, and no names."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that is drawn in memory.

    Args:
        width: Inches.
        height: Inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically; equal pictures have equal bytes."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # Names in scripts that the font lacks are drawn as boxes: that is no concern of the user's terminal.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        # Tight: the layout engine forgets labels beside pictures of a fixed aspect.
        figure.savefig(stream, format="png", metadata={"Software": None}, bbox_inches="tight", pad_inches=0.12)
    publish(path, stream.getvalue())


def draw_curves(records: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """Loss and accuracy of both splits over the epochs.

    Args:
        records: Lines of ``metrics.jsonl``; those of kind ``epoch`` are drawn.
        path: The PNG.
        title: Above the picture.
    """
    epochs = [record for record in records if record.get("kind") == "epoch"]
    figure = new_figure(10, 4)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    _line(left, epochs, "loss", "training (with augmentation)", BLUE, "--")
    _line(left, epochs, "val_loss", "validation", ORANGE, "-")
    left.set(xlabel="epoch", ylabel="loss")
    _line(right, epochs, "top1", "training top-1 (with augmentation)", BLUE, "--", percent=True)
    _line(right, epochs, "val_top1", "validation top-1", ORANGE, "-", percent=True)
    _line(right, epochs, "val_top5", "validation top-5", GREEN, ":", percent=True)
    right.set(xlabel="epoch", ylabel="right, %", ylim=(0, 101))
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
        if epochs:
            axes.legend(fontsize="small")
        axes.xaxis.get_major_locator().set_params(integer=True)
    save_figure(figure, path)


def _line(
    axes: Axes,
    epochs: Sequence[dict[str, Any]],
    key: str,
    label: str,
    colour: str,
    style: str,
    *,
    percent: bool = False,
) -> None:
    xs = [record["epoch"] for record in epochs]
    # A null stands for a number that was not finite: the line has a gap there.
    ys = [np.nan if record.get(key) is None else record[key] * (100 if percent else 1) for record in epochs]
    marker = "o" if len(xs) == 1 else None
    axes.plot(xs, ys, style, color=colour, label=label, linewidth=1.8, marker=marker)


def draw_photos(
    pixels: NDArray[np.uint8],
    titles: Sequence[str],
    path: Path,
    *,
    heading: str,
    right: Sequence[bool] | None = None,
    columns: int = 5,
) -> None:
    """A grid of photos with a title each.

    Args:
        pixels: Shape ``(n, size, size, 3)``, uint8.
        titles: One a photo.
        path: The PNG.
        heading: Above the grid.
        right: Photos marked False get a frame.
        columns: Photos in a row.
    """
    rows = max(1, -(-len(titles) // columns))
    figure = new_figure(1.7 * columns, 2.1 * rows + 0.4)
    figure.suptitle(heading)
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set(xticks=[], yticks=[])
        framed = right is not None and number < len(titles) and not right[number]
        for spine in axes.spines.values():
            spine.set(visible=framed, color=ORANGE, linewidth=3)
        if number < len(titles):
            axes.imshow(pixels[number], interpolation="nearest")
            title = "\n".join(printable(line) for line in titles[number].split("\n"))
            axes.set_title(title, fontsize=8, color=ORANGE if framed else "black", parse_math=False)
    save_figure(figure, path)


def draw_confusion(confusion: NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    """Which class was taken for which, in percent of the true class.

    Args:
        confusion: Shape ``(classes, classes)``; row is the true class, column the predicted one.
        names: Of the classes in label order.
        path: The PNG.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1) * 100
    labelled = len(names) <= MAX_CELL_LABELS
    side = 2.5 + 0.5 * len(names) if labelled else 8.0
    figure = new_figure(side + 1.2, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true")
    if labelled:
        places, names = np.arange(len(names)), [printable(name) for name in names]
        axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8, parse_math=False)
        axes.set_yticks(places, names, fontsize=8, parse_math=False)
        for row, column in np.argwhere(confusion > 0):
            colour = "black" if shares[row, column] > 50 else "white"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour, fontsize=8)
    save_figure(figure, path)
