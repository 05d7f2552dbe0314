"""JPEG bytes to a square of pixels: one function, the same for every input mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import cv2
import simplejpeg

from imgprep.errors import ImageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_PIXELS: Final = 1 << 28
"""Largest declared width times height that is decoded: memory is bounded before it is allocated."""

_SCALES: Final = (8, 4, 2, 1)


def decode_square(jpeg: bytes, out: NDArray[np.uint8]) -> None:
    """Decode the centre square of a photograph into a given array, with the same result on every call.

    Large pictures are shrunk by 2, 4 or 8 inside the decoder, never below the wanted size; the rest is done by area
    averaging when shrinking, linearly when enlarging. Grey pictures become grey RGB.

    Args:
        jpeg: A JPEG file.
        out: Written: shape ``(size, size, 3)``, uint8, contiguous, red first.

    Raises:
        ImageError: The bytes are not a whole JPEG, or declare an absurd size.
    """
    size = out.shape[0]
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
        if not 0 < height * width <= MAX_PIXELS:
            raise ImageError(f"a JPEG of {width} x {height} pixels is refused: more than {MAX_PIXELS} pixels")
        scale = next((k for k in _SCALES if min(height, width) // k >= size), 1)
        picture = simplejpeg.decode_jpeg(
            jpeg, colorspace="RGB", min_height=-(-height // scale), min_width=-(-width // scale)
        )
    except ValueError as error:
        raise ImageError(f"a JPEG cannot be decoded ({error})") from None
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    square = picture[top : top + side, left : left + side]
    if side == size:
        out[:] = square
    else:
        cv2.resize(square, (size, size), dst=out, interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)
