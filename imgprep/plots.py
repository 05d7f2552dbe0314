"""A summary as one picture: pictures of each class, widths and heights, aspect ratios, bytes.

Colours are those of Okabe and Ito, and cividis, which colour-blind readers can tell apart; splits also differ in style.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from imgprep.errors import MissingExtraError
from imgprep.files import write_bytes
from imgprep.summary import Basis, ClassSummary, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from numpy.typing import NDArray

BLUE: Final = "#0072B2"
ORANGE: Final = "#D55E00"
GREEN: Final = "#009E73"
STYLES: Final = {"train": (BLUE, "-"), "val": (ORANGE, "--"), "test": (GREEN, ":")}
"""Colour and line of each split."""

BASIS_TEXT: Final[dict[Basis, str]] = {
    "doctor": "doctor.csv",
    "boxes": "XML annotations",
    "sample": "headers of a sample",
}
"""Where sizes come from, in words."""

_DPI: Final = 110
_NAMED: Final = 40
"""Classes that are drawn as bars with their names; more are one line a split."""
_FEWEST: Final = 8
"""Rows that there is room for, so that few bars are not thick."""
_LONGEST: Final = 22
"""Characters of a name that are shown."""
_DOTS: Final = 3000
"""Pictures that are drawn as dots; more are counted in hexagons."""
_WIDE: Final = 8.0
"""Where the largest of some numbers is so many times the smallest, their axis is logarithmic."""
_LONG: Final = 100.0
"""From so many times on, only the powers of ten are labelled."""
_BINS: Final = 40
_RATIOS: Final = {
    "1:8": 1 / 8,
    "1:4": 1 / 4,
    "1:3": 1 / 3,
    "1:2": 1 / 2,
    "3:4": 3 / 4,
    "1:1": 1,
    "4:3": 4 / 3,
    "2:1": 2,
    "3:1": 3,
    "4:1": 4,
    "8:1": 8,
}


def draw_summary(summary: Summary, path: Path) -> None:
    """Draw a summary; equal summaries give equal bytes under one version of matplotlib.

    Args:
        summary: What to draw.
        path: The PNG; its folder must exist.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        raise MissingExtraError(
            "plots need matplotlib, which is not installed", "pip install 'imgprep[train]'"
        ) from None
    shown = [each for each in summary.classes if each.pictures]
    rows = len(shown) if len(shown) <= _NAMED else 0
    figure = Figure(figsize=(14, max(7.0, 0.2 * rows + 2)), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    total = sum(split.pictures for split in summary.splits.values())
    figure.suptitle(f"{summary.what}: {len(shown):,} classes, {total:,} pictures", parse_math=False)
    grid = figure.add_gridspec(2, 3, width_ratios=(1.2, 1, 1))
    if rows:
        _draw_bars(figure.add_subplot(grid[:, 0]), summary, shown)
    else:
        _draw_counts(figure.add_subplot(grid[:, 0]), summary)
    _draw_sizes(figure.add_subplot(grid[0, 1]), summary)
    _draw_aspects(figure.add_subplot(grid[0, 2]), summary)
    axes = figure.add_subplot(grid[1, 1])
    _draw_histogram(axes, summary.num_bytes / 1000, unit="pictures")
    axes.set(title="Bytes of a picture", xlabel="kB")
    axes = figure.add_subplot(grid[1, 2])
    if summary.boxes is None:
        axes.set_axis_off()
    else:
        _draw_histogram(axes, summary.boxes.share * 100, unit="boxes", limits=(0, 100))
        per_picture = summary.boxes.per_picture
        axes.set(
            title=f"Area of a box\n({len(summary.boxes.share):,} boxes of {len(per_picture):,} pictures)",
            xlabel="% of its picture",
        )
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # Names in scripts that the font lacks are drawn as boxes: that is no concern of the user's terminal.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(stream, format="png", metadata={"Software": None})
    write_bytes(path, stream.getvalue())


def _draw_bars(axes: Axes, summary: Summary, shown: Sequence[ClassSummary]) -> None:
    """A bar for each class and split, the largest class on top."""
    ordered = sorted(shown, key=lambda each: (-sum(each.pictures.values()), each.synset.index))
    splits = [split for split in summary.splits if any(split in each.pictures for each in ordered)]
    height = 0.8 / len(splits)
    for place, split in enumerate(splits):
        ys = np.arange(len(ordered)) + (place - (len(splits) - 1) / 2) * height
        counts = [each.pictures.get(split, 0) for each in ordered]
        bars = axes.barh(ys, counts, height, color=STYLES[split][0], label=split)
        axes.bar_label(bars, [f"{n:,}" if n else "" for n in counts], padding=2, fontsize=6)
    names = [shortened(each.synset.synonyms[0] if each.synset.synonyms else each.synset.wnid) for each in ordered]
    axes.set_yticks(np.arange(len(ordered)), names, fontsize=8, parse_math=False)
    axes.set(title="Pictures of each class", xlabel="pictures", ylim=(max(len(ordered), _FEWEST) - 0.4, -0.6))
    axes.margins(x=0.1)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(fontsize="small", loc="lower right")


def shortened(name: str) -> str:
    """A name in one short printable line."""
    text = "".join(c if c.isprintable() else " " for c in name)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def _draw_counts(axes: Axes, summary: Summary) -> None:
    """A line for each split: pictures of its classes, the largest first."""
    for split in summary.splits:
        counts = np.sort(summary.counts(split))[::-1]
        if len(counts):
            colour, style = STYLES[split]
            places = np.arange(len(counts) + 1) + 0.5
            axes.stairs(counts, places, color=colour, linestyle=style, linewidth=2, label=split, baseline=None)
    axes.set(title="Pictures of each class, largest first", xlabel="place of the class", ylabel="pictures")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=True, alpha=0.3)
    if axes.has_data():
        axes.legend(fontsize="small")


def _draw_sizes(axes: Axes, summary: Summary) -> None:
    width, height = summary.sizes.width, summary.sizes.height
    axes.set(
        title=f"Width and height\n({BASIS_TEXT[summary.sizes.basis]}, {len(width):,} pictures)",
        xlabel="width, pixels",
        ylabel="height, pixels",
    )
    if not len(width):
        return
    scale: Literal["log", "linear"] = "log" if _is_wide(np.concatenate([width, height])) else "linear"
    if len(width) <= _DOTS:
        axes.scatter(width, height, s=9, color=BLUE, alpha=0.35, linewidths=0)
        axes.set(xscale=scale, yscale=scale)
    else:
        cells = axes.hexbin(
            width, height, gridsize=32, bins="log", xscale=scale, yscale=scale, mincnt=1, cmap="cividis"
        )
        cells.set_clim(1, max(10.0, float(np.asarray(cells.get_array()).max())))
        axes.figure.colorbar(cells, ax=axes, label="pictures", shrink=0.85)
    for axis in (axes.xaxis, axes.yaxis):
        _label(axis, scale)
    axes.grid(visible=True, alpha=0.3)


def _draw_aspects(axes: Axes, summary: Summary) -> None:
    aspects = summary.sizes.aspect
    low, high = 1 / 8, 8.0
    # As many bins on either side of the square, which lies in the middle of one.
    edges = np.geomspace(low, high, 2 * _BINS)
    _draw_histogram(axes, np.clip(aspects, low, high), unit="pictures", edges=edges)
    kept = {name: ratio for name, ratio in _RATIOS.items() if _near(aspects, ratio)}
    axes.set(title="Width over height", xscale="log", xlim=_span(aspects, low, high))
    axes.set_xticks(list(kept.values()), list(kept), fontsize=8)
    axes.set_xticks([], minor=True)


def _span(aspects: NDArray[np.float64], low: float, high: float) -> tuple[float, float]:
    """Limits of the axis of aspect ratios: the square is in the middle, 1:2 and 2:1 are on it."""
    reach = 1.1 * float(np.abs(np.log2(np.clip(aspects, low, high))).max(initial=1.0))
    return 2**-reach, 2**reach


def _near(aspects: NDArray[np.float64], ratio: float) -> bool:
    low, high = _span(aspects, min(_RATIOS.values()), max(_RATIOS.values()))
    return low <= ratio <= high


def _draw_histogram(
    axes: Axes,
    numbers: NDArray[np.float64],
    *,
    unit: str,
    limits: tuple[float, float] | None = None,
    edges: NDArray[np.float64] | None = None,
) -> None:
    """How many percent of the numbers lie in each bin."""
    if len(numbers):
        low, high = limits or (float(numbers.min()), float(numbers.max()))
        if edges is None and _is_wide(numbers) and not limits:
            edges = np.geomspace(low, high, _BINS + 1)
            axes.set_xscale("log")
        if edges is None:
            edges = np.linspace(low, high, _BINS + 1) if high > low else np.linspace(low - 0.5, low + 0.5, _BINS + 2)
        axes.hist(numbers, edges.tolist(), weights=np.full(len(numbers), 100 / len(numbers)), color=BLUE)
        _label(axes.xaxis, axes.get_xscale())
    axes.set(ylabel=f"% of {unit}")
    axes.grid(visible=True, alpha=0.3)


def _is_wide(numbers: NDArray[np.float64]) -> bool:
    return bool(numbers.min() > 0 and numbers.max() >= _WIDE * numbers.min())


def _label(axis: Axis, scale: str) -> None:
    """Plain numbers on a logarithmic axis: 20, 50, 100, not powers of ten; fewer where it is long."""
    if scale == "log":
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        low, high = axis.get_data_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < _LONG * low else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.7g}"))
        axis.set_minor_formatter(NullFormatter())
