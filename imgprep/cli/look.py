"""The commands that look at a dataset: stats in numbers and plots, grid in pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from imgprep.cli.options import CLASSES, json_option, print_result, size_text, workspace_option

if TYPE_CHECKING:
    from imgprep.grid import GridResult
    from imgprep.summary import SplitSummary, Summary
    from imgprep.workspace import Workspace

_COLUMNS: Final = {
    "min": "min",
    "p5": "5 %",
    "p25": "25 %",
    "median": "median",
    "p75": "75 %",
    "p95": "95 %",
    "max": "max",
}
_PNG: Final = click.Path(dir_okay=False, path_type=Path)
_subset_option = click.option("--subset", "subset_name", help="Look at this subset instead of the whole catalog.")
_seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**63 - 1),
    default=0,
    show_default=True,
    help="Another seed, other pictures.",
)


@click.command()
@_subset_option
@click.option("--per-class", is_flag=True, help="Add a table of all classes.")
@click.option(
    "--plot", type=_PNG, help="Draw the distributions to this PNG; needs matplotlib, which comes with [train]."
)
@click.option(
    "--sizes",
    type=click.Choice(["doctor", "boxes", "sample"]),
    help="Where to take widths and heights from: doctor.csv, the XML annotations, or the headers of some pictures."
    "  [default: the first of them that is there]",
)
@click.option(
    "--sample", type=click.IntRange(min=1), default=2000, show_default=True, help="How many headers to read at most."
)
@_seed_option
@workspace_option
@json_option
def stats(
    root: Path, subset_name: str | None, per_class: bool, plot: Path | None, as_json: bool, **options: Any
) -> None:
    """Tell how many pictures each class has, how large they are, and how much of them the boxes cover.

    Runs catalog and annotations first where they are missing or out of date.

    \b
    Examples:
      imgprep stats
      imgprep stats --per-class --plot stats.png
      imgprep stats --subset main --json
    """
    from imgprep.cli.progress import make_progress
    from imgprep.summary import SummarySpec, summarise
    from imgprep.workspace import Workspace

    spec = SummarySpec(subset=subset_name, **options)
    workspace = Workspace(root)
    _catch_up(workspace, "imgprep stats")
    summary = summarise(workspace, spec, progress=make_progress())
    document = summary.to_json()
    lines = _summary_lines(summary, document)
    if per_class:
        lines += ["", *_class_lines(summary)]
    if plot is not None:
        from imgprep.plots import draw_summary

        plot.parent.mkdir(parents=True, exist_ok=True)
        draw_summary(summary, plot)
        lines.append(f"plots -> {plot}")
        document["plot"] = str(plot)
    print_result(lines, document, as_json=as_json)


def _catch_up(workspace: Workspace, command: str) -> None:
    from imgprep.cli.prepare import catch_up

    workspace.require()
    with workspace.locked(command):
        catch_up(workspace)


def _summary_lines(summary: Summary, document: Mapping[str, Any]) -> list[str]:
    classes = sum(bool(each.pictures) for each in summary.classes)
    pictures = sum(split.pictures for split in summary.splits.values())
    without = len(summary.classes) - classes
    lines = [
        f"{summary.what}: {classes:,} classes, {pictures:,} pictures, {size_text(float(summary.num_bytes.sum()))}"
        + (f"; {without:,} more classes have no picture" if without else "")
    ]
    lines += [f"{name}: {_split_text(split)}" for name, split in summary.splits.items()]
    sizes, boxes = document["sizes"], document["boxes"]
    rows = {f"{name} pictures a class": split["per_class"] for name, split in document["splits"].items()}
    rows |= {"kB a picture": _scaled(document["num_bytes"], 1e-3), "width": sizes["width"], "height": sizes["height"]}
    rows |= {"width / height": sizes["aspect"]}
    if boxes:
        rows |= {"boxes a picture": boxes["per_picture"], "% of picture a box": _scaled(boxes["share"], 100)}
    table = [["", *_COLUMNS.values()]]
    table += [[name, *_numbers([row[key] for key in _COLUMNS])] for name, row in rows.items() if row["n"]]
    lines += ["", *_aligned(table), ""]
    lines.append(f"sizes in pixels: {_basis_text(summary)}")
    if boxes:
        lines.append(f"boxes: {boxes['share']['n']:,} with a known share, of {boxes['per_picture']['n']:,} pictures")
    if summary.findings is not None:
        listed = ", ".join(f"{code} {n:,}" for code, n in summary.findings.items())
        lines.append(f"findings of doctor: {listed or 'none'}")
    return lines


def _split_text(split: SplitSummary) -> str:
    if not split.labelled:
        return f"{split.pictures:,} pictures without a class, {size_text(split.num_bytes)}"
    without = split.pictures - split.labelled
    more = f"; {without:,} of them without a class" if without else ""
    return f"{split.pictures:,} pictures of {split.classes:,} classes, {size_text(split.num_bytes)}{more}"


def _basis_text(summary: Summary) -> str:
    sizes = summary.sizes
    known = f"{len(sizes.width):,} pictures"
    odd = f" ({sizes.unknown:,} more have no size that is known)" if sizes.unknown else ""
    return {
        "doctor": f"{known} in doctor.csv{odd}",
        "boxes": f"{known} with XML annotations, as these say{odd}; `imgprep doctor` looks at all pictures",
        "sample": f"headers of a sample of {known}, chosen by keyed hash{odd}; `imgprep doctor` looks at all pictures",
    }[sizes.basis]


def _scaled(row: Mapping[str, float], factor: float) -> dict[str, float]:
    return {key: value if key == "n" else value * factor for key, value in row.items()}


def _numbers(values: Sequence[float]) -> list[str]:
    """Numbers of one kind, with as many decimals as their median needs for three digits; none where all are whole."""
    middle = abs(values[len(values) // 2])
    decimals = 0 if all(value == round(value) for value in values) or middle >= 100 else 1 if middle >= 10 else 2
    return [f"{value:,.{decimals}f}" for value in values]


def _class_lines(summary: Summary) -> list[str]:
    splits = list(summary.splits)
    table = [["label", "wnid", *splits, "MB", "name"]]
    table += [
        [
            str(each.synset.index),
            each.synset.wnid,
            *(f"{each.pictures.get(split, 0):,}" for split in splits),
            f"{each.num_bytes / 1e6:.2f}",
            each.synset.name,
        ]
        for each in summary.classes
    ]
    return _aligned(table, left=(1, len(splits) + 3))


def _aligned(table: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> list[str]:
    """Rows of a table with columns under each other, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


@click.command()
@_subset_option
@click.option(
    "--classes",
    type=CLASSES,
    default="20",
    show_default=True,
    help="How many classes, or which: wnids or names between commas; or all.",
)
@click.option("--per-class", type=click.IntRange(1, 50), default=8, show_default=True, help="Pictures a class.")
@click.option(
    "--split", type=click.Choice(["train", "val"]), default="train", show_default=True, help="Of which split."
)
@click.option("--boxes", is_flag=True, help="Draw the boxes of the XML annotations.")
@click.option("--tile", type=click.IntRange(32, 512), default=128, show_default=True, help="Pixels a picture gets.")
@click.option("--rows", type=click.IntRange(1, 60), default=20, show_default=True, help="Classes on a page.")
@click.option("--out", type=_PNG, help="The PNG.  [default: grid.png in the workspace, or grid-SUBSET.png]")
@_seed_option
@workspace_option
@json_option
def grid(root: Path, subset_name: str | None, out: Path | None, as_json: bool, **options: Any) -> None:
    """Draw some pictures of each class side by side, with their boxes if asked.

    Classes and pictures are chosen by keyed hash: the same ones each time. A picture that cannot be decoded is drawn as
    a crossed tile with the reason.

    \b
    Examples:
      imgprep grid
      imgprep grid --classes "tench,English springer" --per-class 12 --boxes
      imgprep grid --subset main --split val --out val.png
    """
    from imgprep.cli.progress import make_progress
    from imgprep.grid import GridSpec, draw_grid
    from imgprep.workspace import Workspace

    spec = GridSpec(subset=subset_name, **options)
    workspace = Workspace(root)
    _catch_up(workspace, "imgprep grid")
    out = out or root / (f"grid-{subset_name}.png" if subset_name else "grid.png")
    result = draw_grid(workspace, spec, out, progress=make_progress())
    lines = _grid_lines(result, boxes=spec.boxes)
    document = {
        "pages": [str(page) for page in result.pages],
        "classes": result.classes,
        "pictures": result.pictures,
        "boxes": result.boxes,
        "odd": dict(result.odd),
    }
    print_result(lines, document, as_json=as_json)


def _grid_lines(result: GridResult, *, boxes: bool) -> list[str]:
    lines = [f"not drawn {key}: {reason}" for key, reason in result.odd[:5]]
    if len(result.odd) > 5:
        lines.append(f"and {len(result.odd) - 5:,} more")
    pages = result.pages
    where = str(pages[0]) if len(pages) == 1 else f"{pages[0]} to {pages[-1].name} ({len(pages)} pages)"
    boxed = f", {result.boxes:,} boxes" if boxes else ""
    lines.append(f"grid: {result.classes:,} classes, {result.pictures:,} pictures{boxed} -> {where}")
    return lines
