"""A contact sheet: many pictures on one PNG, each with a caption, to see at a glance what a table says."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageDraw, ImageFont, ImageOps

from imgprep.diagnosis import open_picture, to_eight_bits
from imgprep.images import quiet

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

SIDE: Final = 144
"""Pixels a side of the square a picture is fitted into."""

ROW: Final = 6
"""Tiles in a row."""

_GAP: Final = 8
_LINE: Final = 13
_FONT: Final = 11
_PAPER: Final = "#ffffff"
_FRAME: Final = "#f0f0f0"
_TEXT: Final = "#222222"
_FIRST_LINE: Final = "#b03000"
_NOTHING: Final = "#999999"


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of a sheet; None where there is nothing to show. The first line of the caption stands out."""

    picture: Image.Image | None
    caption: tuple[str, ...]


def thumbnail(content: bytes) -> Image.Image | None:
    """A small RGB picture, upright and whole, at most :data:`SIDE` pixels a side; None where it cannot be decoded.

    Args:
        content: The bytes of a file that was diagnosed: its size is not checked again.
    """
    try:
        with quiet:
            image, _ = open_picture(content)
            if image is None:
                return None
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            upright = to_eight_bits(ImageOps.exif_transpose(image))
            if upright.mode == "P":
                upright = upright.convert("RGBA")
            upright.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
            return upright.convert("RGB")
    except Exception:  # noqa: BLE001  # damaged pixels can raise anything in a decoder plug-in
        return None


def draw_sheet(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Lay out tiles.

    Args:
        rows: At least one, each with at least one tile.
    """
    font = ImageFont.load_default(_FONT)
    lines = max(len(tile.caption) for row in rows for tile in row)
    step = SIDE + _GAP
    rise = SIDE + lines * _LINE + 2 * _GAP
    sheet = Image.new("RGB", (_GAP + max(map(len, rows)) * step, _GAP + len(rows) * rise), _PAPER)
    for number, row in enumerate(rows):
        for place, tile in enumerate(row):
            _draw_tile(sheet, tile, _GAP + place * step, _GAP + number * rise, font)
    return sheet


def _draw_tile(sheet: Image.Image, tile: Tile, left: int, top: int, font: FreeTypeFont | BitmapFont) -> None:
    canvas = ImageDraw.Draw(sheet)
    canvas.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), fill=_FRAME)
    if tile.picture is None:
        canvas.text((left + SIDE // 2, top + SIDE // 2), "not decoded", fill=_NOTHING, font=font, anchor="mm")
    else:
        width, height = tile.picture.size
        sheet.paste(tile.picture, (left + (SIDE - width) // 2, top + (SIDE - height) // 2))
    for number, line in enumerate(tile.caption):
        colour = _TEXT if number else _FIRST_LINE
        canvas.text((left, top + SIDE + 2 + number * _LINE), _fitted(line, font), fill=colour, font=font)


def encode_sheet(sheet: Image.Image) -> bytes:
    """The sheet as PNG."""
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _fitted(text: str, font: FreeTypeFont | BitmapFont) -> str:
    """The text, its middle left out where it is too long: the ends of names tell more."""
    text = "".join(c if c.isprintable() else " " for c in text[:200])
    shown, left_out = text, 0
    while font.getlength(shown) > SIDE and left_out < len(text):
        left_out += 1
        middle = (len(text) - left_out) // 2
        shown = f"{text[:middle]}…{text[middle + left_out :]}"
    return shown
