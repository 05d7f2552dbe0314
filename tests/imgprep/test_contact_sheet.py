"""The contact sheet: where tiles lie, what a thumbnail is, and captions of any length."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgprep.contact_sheet import ROW, SIDE, Tile, draw_sheet, encode_sheet, thumbnail


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_tiles_lie_in_their_rows() -> None:
    red, blue = (Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue"))
    sheet = draw_sheet([[Tile(red, ("a",)), Tile(None, ("b",))], [Tile(blue, ("c", "d"))]])
    pixels = np.asarray(sheet, int)
    places = {name: np.argwhere((pixels == colour).all(axis=-1)) for name, colour in RGB.items()}

    assert places["red"].max(axis=0).tolist() == [place + SIDE - 1 for place in places["red"].min(axis=0)]
    assert places["blue"].min(axis=0)[1] == places["red"].min(axis=0)[1]
    assert places["blue"].min(axis=0)[0] > places["red"].max(axis=0)[0]
    assert sheet.width < 2 * (SIDE + 20)
    # Something is written into the tile that has no picture.
    assert len(np.unique(pixels[8 : SIDE - 8, SIDE + 24 : 2 * SIDE].reshape(-1, 3), axis=0)) > 1


RGB = {"red": (255, 0, 0), "blue": (0, 0, 255)}


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (encode(Image.new("RGB", (600, 300))), (SIDE, SIDE // 2)),
        (encode(Image.new("RGB", (40, 30))), (40, 30)),
        (encode(Image.new("RGB", (30_000, 10)), "PNG"), (SIDE, 1)),
        (encode(Image.new("CMYK", (300, 300))), (SIDE, SIDE)),
        (encode(Image.new("P", (300, 300)), "PNG", transparency=0), (SIDE, SIDE)),
    ],
    ids=["large", "small", "long", "CMYK", "palette"],
)
def test_a_thumbnail_is_small_and_whole(content: bytes, size: tuple[int, int]) -> None:
    picture = thumbnail(content)

    assert picture is not None
    assert (picture.mode, picture.size) == ("RGB", size)


def test_a_thumbnail_is_upright_and_sixteen_bits_are_not_cut_off() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = thumbnail(encode(Image.new("RGB", (300, 200)), exif=exif))
    deep = thumbnail(encode(Image.fromarray(np.full((20, 20), 0x8000, np.uint16)), "PNG"))

    assert turned is not None
    assert deep is not None
    assert turned.size == (96, SIDE)
    assert deep.getpixel((3, 3)) == (128, 128, 128)


@pytest.mark.parametrize("content", [b"", b"no picture", encode(Image.new("RGB", (300, 200)))[:400]])
def test_what_cannot_be_decoded_has_no_thumbnail(content: bytes) -> None:
    assert thumbnail(content) is None


def test_captions_stay_in_their_column() -> None:
    """A caption of any length leaves the neighbour's as it is, and control characters are not drawn."""
    short = Tile(None, ("x",))
    lone = np.asarray(draw_sheet([[short] * ROW]))
    beside = np.asarray(draw_sheet([[Tile(None, ("W\x1b[2J" * 300,)), *[short] * (ROW - 1)]]))
    start = SIDE + 14

    assert lone.shape == beside.shape
    assert np.array_equal(lone[:, start:], beside[:, start:])
    assert not np.array_equal(lone, beside)


def test_equal_tiles_give_equal_bytes() -> None:
    tiles = [[Tile(Image.new("RGB", (50, 60), "green"), ("one", "two"))]]

    assert encode_sheet(draw_sheet(tiles)) == encode_sheet(draw_sheet(tiles))
    assert Image.open(io.BytesIO(encode_sheet(draw_sheet(tiles)))).format == "PNG"
