from __future__ import annotations

import numpy as np
import pytest
import simplejpeg

from imgprep.errors import ImageError
from training.decode import decode_square


def encode(pixels: np.ndarray, colorspace: str = "RGB") -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels, dtype=np.uint8), 95, colorspace)


def square(jpeg: bytes, size: int) -> np.ndarray:
    out = np.full((size, size, 3), 7, dtype=np.uint8)
    decode_square(jpeg, out)
    return out


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 90), (300, 210), (9, 11), (65, 64)])
def test_the_centre_square_in_red_green_blue(height: int, width: int) -> None:
    pixels = np.zeros((height, width, 3))
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    # Only the centre square is red: nothing else may be seen, and red comes first.
    pixels[top : top + side, left : left + side] = (250, 20, 20)
    middle = square(encode(pixels), 32)[6:-6, 6:-6].astype(int)
    assert abs(middle - (250, 20, 20)).max() < 12


def test_orientation_is_kept() -> None:
    pixels = np.zeros((128, 128, 3))
    pixels[:64, :64] = 255
    out = square(encode(pixels), 32)
    assert out[4:12, 4:12].min() > 240
    assert out[20:28, 4:12].max() < 15
    assert out[4:12, 20:28].max() < 15


def test_grey_becomes_grey_rgb() -> None:
    out = square(encode(np.full((40, 40, 1), 99), "GRAY"), 16)
    assert abs(out.astype(int) - 99).max() <= 1


def test_shrinking_in_the_decoder_is_close_to_shrinking_afterwards() -> None:
    ramp = np.linspace(0, 255, 256)
    pixels = np.stack([np.tile(ramp, (256, 1)), np.tile(ramp[:, None], (1, 256)), np.full((256, 256), 128)], axis=-1)
    out = square(encode(pixels), 32).astype(int)
    expected = pixels.reshape(32, 8, 32, 8, 3).mean(axis=(1, 3))
    assert abs(out - expected).max() < 8


@pytest.mark.parametrize("content", [b"", b"not a JPEG", encode(np.zeros((64, 64, 3)))[:-200]])
def test_broken_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ImageError):
        square(content, 16)


def test_absurd_sizes_are_refused_before_memory_is_taken() -> None:
    jpeg = bytearray(encode(np.zeros((16, 16, 3))))
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = b"\x7f\xff\x7f\xff"
    with pytest.raises(ImageError, match="32767 x 32767"):
        square(bytes(jpeg), 16)
