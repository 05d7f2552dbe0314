"""Pictures: probe, decode, shrink and encode. What is odd about a file is found by looking at it, not in a list."""

from __future__ import annotations

import contextlib
import functools
import io
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from imgprep.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PIXELS: Final = 100_000_000
"""Pixels a picture may have. The largest in ImageNet's validation has 18 million; 100 million take 300 MB as RGB."""

_ORIENTATION: Final = 0x0112
"""EXIF tag of the orientation; 1 is upright (CIPA DC-008, 4.6.5)."""

_MAX_JPEG_SIDE: Final = 65_500
"""Pixels a side may have for libjpeg to write it (JPEG_MAX_DIMENSION)."""

_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture of each orientation upright."""

FORMATS: Final = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "AVIF")
"""The formats that are read, by Pillow's names. Others that Pillow knows are documents and icons; one of them (EPS)
would start another program."""

_CONVERTIBLE: Final = frozenset({"RGB", "L", "CMYK", "YCbCr", "P", "RGBA", "LA", "1"})


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """A JPEG for a shard: its bytes, its size in pixels, and whether they are the source's own bytes."""

    jpeg: bytes
    width: int
    height: int
    unchanged: bool


def prepare_image(content: bytes, *, short_side: int | None, quality: int) -> PreparedImage:
    """Make the JPEG that goes into a shard.

    A baseline JPEG in grey or RGB, upright and small enough, keeps its bytes; it is decoded all the same, so that no
    broken picture gets through. Anything else is decoded, turned upright, made RGB, shrunk so that its short side is
    ``short_side`` (never enlarged) and written as baseline 4:2:0 JPEG.

    Args:
        content: The file's bytes, of any format Pillow reads.
        short_side: Pixels the short side may have at most; None for no limit.
        quality: JPEG quality of pictures that are written anew, 1 to 100.

    Raises:
        ImageError: It is no picture, it is cut off or damaged, it is larger than :data:`MAX_PIXELS`, or it has a
            pixel format that has no rule.
    """
    probe, orientation = _open(content)
    with probe:
        width, height = probe.size
        if width * height > MAX_PIXELS:
            raise ImageError(f"{width} x {height} pixels, more than the limit of {MAX_PIXELS:,}")
        if probe.mode not in _CONVERTIBLE:
            raise ImageError(f"pixel format {probe.mode} ({probe.format}) is not handled")
        direct = probe.format == "JPEG" and probe.mode in ("RGB", "L") and orientation == 1
        baseline = direct and "progressive" not in probe.info
        limit = short_side or min(width, height)
        pixels = _decode_jpeg(content, width, height, limit) if direct else None
        if pixels is None:
            # Slower and more patient: other formats, CMYK, turned pictures, and JPEGs with stray bytes in them.
            pixels = _decode_any(probe, orientation)
        elif baseline and min(width, height) <= limit:
            return PreparedImage(content, width, height, unchanged=True)
    pixels = shrink(pixels, limit)
    if max(pixels.shape[:2]) > _MAX_JPEG_SIDE:
        raise ImageError(f"{pixels.shape[1]} x {pixels.shape[0]} pixels, more than a JPEG can have on one side")
    jpeg = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420", fastdct=False)
    return PreparedImage(jpeg, pixels.shape[1], pixels.shape[0], unchanged=False)


class _Quiet:
    """Silences Pillow's warnings on odd headers and pixels, in any number of threads at once.

    All threads share the filters of :mod:`warnings`: whoever comes first sets them, whoever leaves last restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._filters.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.close()


quiet: Final = _Quiet()
"""``with quiet:`` around what opens or decodes a picture with Pillow."""


@functools.cache
def picture_formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open(content: bytes) -> tuple[Image.Image, int]:
    """Read the header only: the picture, not yet decoded, and its EXIF orientation."""
    try:
        with quiet:
            image = Image.open(io.BytesIO(content), formats=picture_formats())
            return image, orientation_of(image)
    except UnidentifiedImageError:
        what = "an empty file" if not content else f"not a picture (it starts with {content[:8]!r})"
        raise ImageError(what) from None
    except Image.DecompressionBombError:
        raise ImageError(f"its header claims more pixels than the limit of {MAX_PIXELS:,}") from None
    except Exception as error:  # noqa: BLE001  # a hostile header can raise anything in a decoder plug-in
        raise ImageError(f"its header cannot be read ({type(error).__name__}: {error})") from None


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of a picture, 1 to 8; 1, which is upright, where it says none or one that does not exist."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  # broken EXIF is common in ImageNet and says nothing about the pixels
        return 1
    return value if value in _UPRIGHT else 1


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as it is to be seen, decoded if it was not; ``orientation`` is as from :func:`orientation_of`."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _decode_jpeg(content: bytes, width: int, height: int, limit: int) -> NDArray[np.uint8] | None:
    """Decode to RGB, by a power of two smaller as long as the short side stays at ``limit`` or more.

    Returns:
        uint8 of shape (height, width, 3), or None where the strict decoder objects.
    """
    factor = 1
    while factor < 8 and min(width, height) // (factor * 2) >= limit:  # the DCT block has 8 x 8 pixels
        factor *= 2
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            content,
            colorspace="RGB",
            min_width=-(-width // factor),
            min_height=-(-height // factor),
            min_factor=factor,
        )
    except ValueError:
        return None
    return pixels


def _decode_any(image: Image.Image, orientation: int) -> NDArray[np.uint8]:
    try:
        if image.mode == "P" and "transparency" in image.info:
            # Straight to RGB would warn: the palette's transparent entries need an alpha channel first.
            image = image.convert("RGBA")
        return np.asarray(turn_upright(image, orientation).convert("RGB"))
    except Exception as error:  # noqa: BLE001  # damaged pixels can raise anything in a decoder plug-in
        raise ImageError(f"it cannot be decoded ({type(error).__name__}: {error})") from None


def shrink(pixels: NDArray[np.uint8], limit: int) -> NDArray[np.uint8]:
    """Shrink so that the short side has ``limit`` pixels, by area averaging; smaller pictures stay as they are.

    Args:
        pixels: uint8 of shape (height, width, 3).
        limit: Pixels the short side may have.

    Returns:
        uint8 of shape (height', width', 3), C-contiguous.
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short <= limit:
        return np.ascontiguousarray(pixels)
    size = (max(1, round(width * limit / short)), max(1, round(height * limit / short)))
    resized: Any = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(resized, dtype=np.uint8)
