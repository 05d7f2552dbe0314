"""Pictures of each class side by side, as PNG pages: a row or more a class, boxes where they are asked for."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageDraw, ImageFont, ImageOps

from imgprep.errors import DamagedError, SpecError, UsageError
from imgprep.files import atomic_write
from imgprep.images import ImageSpec, prepare_image
from imgprep.layouts import open_dataset
from imgprep.records import BoundingBox, Catalog, Synset
from imgprep.selection import choose_keys, rank
from imgprep.sources import Source
from imgprep.stats import SILENT, Progress
from imgprep.tables import BOXES_COLUMNS, read_catalog, read_labelled, read_pieces
from imgprep.workspace import Workspace

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

MAX_PER_CLASS: Final = 50
MAX_TILE: Final = 512
MAX_ROWS: Final = 60
"""With the two above, a page has at most 26,000 by 31,000 pixels."""

_GAP: Final = 6
_LINE: Final = 15
_FONT: Final = 12
_CAPTION: Final = 150
_BACKGROUND: Final = "#ffffff"
_EMPTY: Final = "#f2f2f2"
_TEXT: Final = "#000000"
_MUTED: Final = "#555555"
_ODD: Final = "#D55E00"
_BOX_COLOURS: Final = ("#F0E442", "#000000")
"""Yellow of Okabe and Ito's palette on a black rim: one of the two stands out on any picture."""
_QUALITY: Final = 92


@dataclass(frozen=True, kw_only=True)
class GridSpec:
    """What to draw.

    Attributes:
        subset: Name of a subset; None for the whole catalog.
        classes: How many classes, or which: wnids or names. None takes all that have a picture.
        per_class: Pictures a class.
        split: Of which split.
        boxes: Draw the boxes of the XML annotations.
        tile: Pixels of the square that a picture lies in.
        rows: Classes on a page.
        seed: Another seed chooses other classes and pictures.
    """

    subset: str | None = None
    classes: int | tuple[str, ...] | None = 20
    per_class: int = 8
    split: str = "train"
    boxes: bool = False
    tile: int = 128
    rows: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.classes, int) and self.classes < 1:
            raise SpecError(f"classes must be 1 or more, got {self.classes}")
        for name, low, high in (("per_class", 1, MAX_PER_CLASS), ("tile", 32, MAX_TILE), ("rows", 1, MAX_ROWS)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise SpecError(f"{name} must be from {low} to {high}, got {value}")


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture to draw: its key, its member, and its boxes with the size that the XML gives the picture, or 0."""

    key: str
    path: str
    boxes: tuple[BoundingBox, ...] = ()
    width: int = 0
    height: int = 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One class to draw: how many pictures it has, and those that were chosen."""

    synset: Synset
    pictures: int
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, kw_only=True)
class GridResult:
    """What was drawn.

    Attributes:
        pages: The files.
        classes: Classes on them.
        pictures: Pictures on them, odd ones included.
        boxes: Boxes on them.
        odd: Key and reason of each picture that could not be drawn.
    """

    pages: tuple[Path, ...]
    classes: int
    pictures: int
    boxes: int
    odd: tuple[tuple[str, str], ...]


def choose_rows(workspace: Workspace, spec: GridSpec) -> list[Row]:
    """Choose classes and pictures by the ranks of :mod:`imgprep.selection`, in the order of the labels.

    Raises:
        UnknownClassError: A named class is not in the catalog.
        UsageError: There is no picture to choose from.
        MissingInputError: There is no such table.
        DamagedError: A table is damaged.
    """
    folder = workspace.catalog if spec.subset is None else workspace.subset(spec.subset)
    made_by = "imgprep catalog" if spec.subset is None else f"imgprep subset --name {spec.subset}"
    catalog = read_catalog(folder / "classes.csv", made_by=made_by)
    named = None
    if isinstance(spec.classes, tuple):
        named = {synset.wnid for synset in map(catalog.resolve, spec.classes)}
    paths: dict[str, dict[str, str]] = {}
    for piece in read_labelled(folder, made_by=made_by):
        rows = piece[(piece["split"] == spec.split) & (piece["wnid"] != "")]
        for wnid, part in rows.groupby("wnid", sort=False):
            if named is None or wnid in named:
                paths.setdefault(str(wnid), {}).update(zip(part["key"], part["path"], strict=True))
    found = _choose_classes(catalog, paths, spec)
    chosen = {s.wnid: choose_keys(paths[s.wnid], spec.per_class, seed=spec.seed) for s in found}
    tiles = {key: Tile(key, paths[wnid][key]) for wnid, keys in chosen.items() for key in keys}
    if spec.boxes:
        tiles |= _with_boxes(workspace.catalog / "boxes.csv", tiles)
    return [
        Row(synset=s, pictures=len(paths[s.wnid]), tiles=tuple(tiles[key] for key in chosen[s.wnid])) for s in found
    ]


def _choose_classes(catalog: Catalog, paths: Mapping[str, object], spec: GridSpec) -> list[Synset]:
    """The classes that have a picture; of these the first by rank where a number was asked for."""
    found = [synset for synset in catalog if synset.wnid in paths]
    if not found:
        what = "of these classes " if isinstance(spec.classes, tuple) else ""
        raise UsageError(
            f"there is no {spec.split} picture {what}to show", "`imgprep stats --per-class` tells how many there are"
        )
    if isinstance(spec.classes, int):
        first = sorted(found, key=lambda synset: rank(spec.seed, "class", synset.wnid))[: spec.classes]
        found = sorted(first, key=lambda synset: synset.index)
    return found


def _with_boxes(path: Path, tiles: Mapping[str, Tile]) -> dict[str, Tile]:
    """Those of the tiles that have boxes, with them."""
    boxed: dict[str, Tile] = {}
    for piece in read_pieces(path, BOXES_COLUMNS, made_by="imgprep annotations"):
        rows = piece[piece["ImageId"].isin(list(tiles))]
        sides = [rows[name].astype("float64").fillna(0).astype("int64") for name in ("width", "height")]
        corners = [rows[name].tolist() for name in ("wnid", "xmin", "ymin", "xmax", "ymax")]
        for key, box, width, height in zip(rows["ImageId"], map(BoundingBox, *corners), *sides, strict=True):
            before = boxed.get(key, tiles[key])
            boxed[key] = Tile(key, before.path, (*before.boxes, box), width, height)
    return boxed


def draw_grid(workspace: Workspace, spec: GridSpec, path: Path, *, progress: Progress = SILENT) -> GridResult:
    """Draw the pages.

    Args:
        workspace: A workspace with a source and a catalog.
        spec: What to draw.
        path: The PNG; where one page is not enough, ``-1``, ``-2`` and so on go before its extension.
        progress: Told of each picture.

    Raises:
        ImgprepError: As :func:`choose_rows`; or the source is gone or another one.
    """
    rows = choose_rows(workspace, spec)
    pages = [rows[start : start + spec.rows] for start in range(0, len(rows), spec.rows)]
    names = [path]
    if len(pages) > 1:
        digits = len(str(len(pages)))
        names = [path.with_stem(f"{path.stem}-{number:0{digits}d}") for number in range(1, len(pages) + 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    odd: list[tuple[str, str]] = []
    pictures = sum(len(row.tiles) for row in rows)
    source, _ = open_dataset(workspace)
    progress.begin("grid", pictures, "pictures")
    try:
        with source:
            for name, page in zip(names, pages, strict=True):
                drawn = _draw_page(page, source, spec, odd, progress)
                with atomic_write(name) as file:
                    drawn.save(file, "PNG")
    finally:
        progress.finish()
    return GridResult(
        pages=tuple(names),
        classes=len(rows),
        pictures=pictures,
        boxes=sum(len(tile.boxes) for row in rows for tile in row.tiles),
        odd=tuple(odd),
    )


def _draw_page(
    rows: Sequence[Row], source: Source, spec: GridSpec, odd: list[tuple[str, str]], progress: Progress
) -> Image.Image:
    step = spec.tile + _GAP
    columns = max(len(row.tiles) for row in rows)
    page = Image.new("RGB", (_GAP + _CAPTION + columns * step, _GAP + len(rows) * step), _BACKGROUND)
    font = ImageFont.load_default(_FONT)
    for place, row in enumerate(rows):
        top = _GAP + place * step
        _write_caption(page, row, top, spec, font)
        for column, tile in enumerate(row.tiles):
            try:
                drawn = draw_tile(source.read(tile.path), tile, spec.tile)
            except DamagedError as error:
                odd.append((tile.key, error.what))
                drawn = _mark(error.what, spec.tile, font)
            page.paste(drawn, (_GAP + _CAPTION + column * step, top))
            progress.advance()
    return page


def _write_caption(page: Image.Image, row: Row, top: int, spec: GridSpec, font: FreeTypeFont | BitmapFont) -> None:
    synset = row.synset
    name = synset.synonyms[0] if synset.synonyms else synset.wnid
    lines = [(line, _TEXT) for line in _wrapped(name, _CAPTION - _GAP, font)[: max(1, spec.tile // _LINE - 2)]]
    small = [synset.wnid] if synset.wnid != name else []
    small.append(f"{row.pictures:,} {spec.split}")
    lines += [(line, _MUTED) for text in small for line in _wrapped(text, _CAPTION - _GAP, font)[:1]]
    canvas = ImageDraw.Draw(page)
    for place, (line, colour) in enumerate(lines[: spec.tile // _LINE]):
        canvas.text((_GAP, top + place * _LINE), line, fill=colour, font=font)


def _wrapped(text: str, width: int, font: FreeTypeFont | BitmapFont) -> list[str]:
    """A text in lines that fit; words are cut where they have to be."""
    lines = [""]
    for word in _pieces("".join(c if c.isprintable() else " " for c in text), width, font):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _pieces(text: str, width: int, font: FreeTypeFont | BitmapFont) -> Iterator[str]:
    for word in text.split():
        rest = word[:200]
        while rest:
            cut = len(rest)
            while cut > 1 and font.getlength(rest[:cut]) > width:
                cut -= 1
            yield rest[:cut]
            rest = rest[cut:]


def draw_tile(content: bytes, tile: Tile, side: int) -> Image.Image:
    """A picture upright and whole in a square, with its boxes.

    Args:
        content: The file's bytes.
        tile: Its boxes.
        side: Pixels of the square; pictures are made smaller or larger until they touch two sides of it.

    Raises:
        ImageError: It cannot be decoded.
    """
    prepared = prepare_image(content, ImageSpec(size=side, quality=_QUALITY))
    square = Image.new("RGB", (side, side), _EMPTY)
    with Image.open(io.BytesIO(prepared.jpeg)) as picture:
        shown = ImageOps.contain(picture.convert("RGB"), (side, side))
    if tile.width > 0 and tile.height > 0:
        for box in tile.boxes:
            _draw_box(shown, box, shown.width / tile.width, shown.height / tile.height)
    square.paste(shown, ((side - shown.width) // 2, (side - shown.height) // 2))
    return square


def _draw_box(shown: Image.Image, box: BoundingBox, across: float, down: float) -> None:
    """A box, scaled from the picture of the XML to the one that is shown, and kept inside it."""
    left, right = (min(max(round(x * across), 0), shown.width - 1) for x in sorted((box.xmin, box.xmax)))
    top, bottom = (min(max(round(y * down), 0), shown.height - 1) for y in sorted((box.ymin, box.ymax)))
    canvas = ImageDraw.Draw(shown)
    bright, dark = _BOX_COLOURS
    canvas.rectangle((left, top, right, bottom), outline=dark, width=4)
    if right - left > 1 and bottom - top > 1:
        canvas.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=bright, width=2)


def _mark(reason: str, side: int, font: FreeTypeFont | BitmapFont) -> Image.Image:
    """What stands in the place of a picture that cannot be drawn: a cross, and why."""
    square = Image.new("RGB", (side, side), _EMPTY)
    canvas = ImageDraw.Draw(square)
    canvas.rectangle((0, 0, side - 1, side - 1), outline=_ODD, width=2)
    canvas.line((0, 0, side, side), fill=_ODD)
    canvas.line((0, side, side, 0), fill=_ODD)
    for place, line in enumerate(_wrapped(reason, side - 12, font)[: max(1, side // _LINE - 1)]):
        at = (6, 6 + place * _LINE)
        canvas.rectangle(canvas.textbbox(at, line, font=font), fill=_EMPTY)
        canvas.text(at, line, fill=_TEXT, font=font)
    return square
