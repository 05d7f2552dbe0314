"""Grids show the pictures that their ranks choose, with boxes where they belong, and mark what cannot be drawn."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imgprep.annotations import annotations
from imgprep.catalog import catalog
from imgprep.errors import ImageError, SpecError, UnknownClassError, UsageError
from imgprep.grid import GridSpec, Tile, choose_rows, draw_grid, draw_tile
from imgprep.records import BoundingBox
from imgprep.selection import choose_keys
from imgprep.tables import BOXES_COLUMNS, MANIFEST_COLUMNS, read_table
from imgprep.workspace import Workspace

YELLOW = (240, 228, 66)


@pytest.fixture
def listed(fetched: Workspace) -> Workspace:
    """A workspace with catalog and annotations."""
    catalog(fetched)
    annotations(fetched)
    return fetched


def jpeg(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (0, 0, 200)).save(stream, "JPEG")
    return stream.getvalue()


def test_pictures_are_those_of_lowest_rank_in_label_order(listed: Workspace) -> None:
    rows = choose_rows(listed, GridSpec(classes=None, per_class=3, seed=5))
    table = read_table(listed.catalog / "manifest.csv", MANIFEST_COLUMNS, made_by="")
    train = table[table["split"] == "train"]

    assert [row.synset.index for row in rows] == sorted({*train["label"]})
    for row in rows:
        keys = train.loc[train["wnid"] == row.synset.wnid, "key"]
        assert [tile.key for tile in row.tiles] == choose_keys(keys, 3, seed=5)
        assert row.pictures == len(keys)


def test_classes_by_number_and_name(listed: Workspace) -> None:
    by_number = choose_rows(listed, GridSpec(classes=2))
    more = choose_rows(listed, GridSpec(classes=4))
    by_name = choose_rows(listed, GridSpec(classes=("ring", "n90000001"), split="val", per_class=2))

    assert {row.synset.wnid for row in by_number} < {row.synset.wnid for row in more}
    assert [row.synset.wnid for row in by_name] == ["n90000001", "n90000002"]
    assert all(tile.key.startswith("ILSVRC2012_val_") for row in by_name for tile in row.tiles)
    with pytest.raises(UnknownClassError):
        choose_rows(listed, GridSpec(classes=("nobody",)))
    with pytest.raises(UsageError, match="no train picture of these classes"):
        choose_rows(listed, GridSpec(classes=("cone",)))


def test_boxes_come_with_the_size_of_their_picture(listed: Workspace) -> None:
    rows = choose_rows(listed, GridSpec(classes=None, split="val", per_class=50, boxes=True))
    table = read_table(listed.catalog / "boxes.csv", BOXES_COLUMNS, made_by="")
    val = table[table["split"] == "val"]

    drawn = {
        (tile.key, box.wnid, box.xmin, box.ymin, box.xmax, box.ymax, tile.width, tile.height)
        for row in rows
        for tile in row.tiles
        for box in tile.boxes
    }
    assert drawn == set(val.drop(columns="split").itertuples(index=False, name=None))


def test_pages_and_odd_files(listed: Workspace, tmp_path: Path) -> None:
    spec = GridSpec(classes=None, per_class=50, tile=32, rows=2)

    result = draw_grid(listed, spec, tmp_path / "new" / "grid.png")

    assert [page.name for page in result.pages] == ["grid-1.png", "grid-2.png", "grid-3.png"]
    assert (result.classes, result.boxes) == (5, 0)
    # The one that is cut and the one of zero bytes.
    assert len(result.odd) == 2
    assert all(reason for _, reason in result.odd)
    for page in result.pages:
        with Image.open(page) as image:
            image.load()
    again = draw_grid(listed, spec, tmp_path / "again.png")
    assert [page.read_bytes() for page in again.pages] == [page.read_bytes() for page in result.pages]


def test_one_page_takes_the_name_as_it_is(sharded: Workspace, tmp_path: Path) -> None:
    result = draw_grid(sharded, GridSpec(subset="main", per_class=2, tile=40), tmp_path / "a.png")

    assert result.pages == (tmp_path / "a.png",)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (6 + 150 + 2 * 46, 6 + 4 * 46)


@pytest.mark.parametrize(("width", "height"), [(80, 40), (40, 80), (10, 5), (640, 320)])
def test_a_box_is_scaled_with_its_picture(width: int, height: int) -> None:
    # In the XML's own pixels, which are not those of the file: the right half.
    tile = Tile("a", "a.JPEG", (BoundingBox("n", 500, 0, 1000, 1000),), 1000, 1000)

    pixels = np.asarray(draw_tile(jpeg(width, height), tile, 64))

    ys, xs = np.nonzero((pixels == YELLOW).all(axis=2))
    shown_width, shown_height = min(64, 64 * width // height), min(64, 64 * height // width)
    left, top = (64 - shown_width) // 2, (64 - shown_height) // 2
    assert abs(xs.min() - (left + shown_width // 2)) <= 2
    assert abs(xs.max() - (left + shown_width)) <= 3
    assert abs(ys.min() - top) <= 3
    assert abs(ys.max() - (top + shown_height)) <= 3


corner = st.integers(-(10**9), 10**9)


@given(corners=st.tuples(corner, corner, corner, corner), width=st.integers(-5, 10**9), height=st.integers(-5, 10**9))
def test_any_box_can_be_drawn(corners: tuple[int, int, int, int], width: int, height: int) -> None:
    tile = Tile("a", "a.JPEG", (BoundingBox("n", *corners),), width, height)

    drawn = np.asarray(draw_tile(PICTURE, tile, 32))

    # Nothing but the picture's own 32 x 16 pixels is touched.
    assert (drawn[:8] == 0xF2).all()
    assert (drawn[24:] == 0xF2).all()


PICTURE = jpeg(40, 20)


def test_what_is_no_picture_is_an_error_for_the_page_to_mark() -> None:
    with pytest.raises(ImageError):
        draw_tile(b"GIF89a", Tile("a", "a"), 32)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": 0}, "classes must be 1 or more"),
        ({"per_class": 0}, "per_class must be from 1 to 50"),
        ({"tile": 10_000}, "tile must be from 32 to 512"),
        ({"rows": 61}, "rows must be from 1 to 60"),
    ],
)
def test_spec_bounds(options: dict[str, int], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        GridSpec(**options)  # type: ignore[arg-type]


def test_awkward_files_are_drawn_or_refused(real_data: Path) -> None:
    drawn, refused = 0, set()
    with zipfile.ZipFile(real_data / "awkward.zip") as archive:
        for name in archive.namelist():
            try:
                assert draw_tile(archive.read(name), Tile("a", name), 48).size == (48, 48)
                drawn += 1
            except ImageError as error:
                refused.add(error.what)

    assert drawn > 50
    assert refused
    assert all(refused)
