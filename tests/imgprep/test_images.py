"""Pictures: what keeps its bytes, what is written anew, what is refused; real and awkward files."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imgprep.errors import ImageError
from imgprep.images import PreparedImage, prepare_image, quiet, shrink


def picture(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    """A smooth picture whose corners differ, so that a turn or a swap of channels shows."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} | options))
    return buffer.getvalue()


def prepare(content: bytes, *, short_side: int | None = 256) -> PreparedImage:
    return prepare_image(content, short_side=short_side, quality=90)


def pixels_of(prepared: PreparedImage) -> Image.Image:
    image = Image.open(io.BytesIO(prepared.jpeg))
    image.load()
    return image


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_small_baseline_jpeg_keeps_its_bytes(mode: str) -> None:
    content = encode(picture(mode=mode))
    prepared = prepare(content)

    assert (prepared.jpeg, prepared.unchanged, prepared.width, prepared.height) == (content, True, 60, 40)


@pytest.mark.parametrize(
    "content",
    [
        encode(picture(), progressive=True),
        encode(picture(mode="CMYK")),
        encode(picture(), "PNG"),
        encode(picture(mode="RGBA"), "PNG"),
        encode(picture(mode="P"), "PNG"),
        encode(picture(), "WEBP"),
        encode(picture(), "BMP"),
    ],
    ids=["progressive", "CMYK", "PNG", "RGBA", "palette", "WebP", "BMP"],
)
def test_anything_else_becomes_a_baseline_rgb_jpeg(content: bytes) -> None:
    prepared = prepare(content)
    image = pixels_of(prepared)

    assert (prepared.unchanged, image.format, image.mode, image.size) == (False, "JPEG", "RGB", (60, 40))
    assert "progressive" not in image.info
    assert np.abs(np.asarray(image, int) - np.asarray(picture(), int)).mean() < 12


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    prepared = prepare(encode(picture(), exif=exif))
    expected = picture().transpose(Image.Transpose.ROTATE_270)

    assert (prepared.width, prepared.height) == (40, 60)
    assert np.abs(np.asarray(pixels_of(prepared), int) - np.asarray(expected, int)).mean() < 4


def test_broken_exif_does_not_reject_a_picture() -> None:
    content = encode(picture())
    broken = content[:2] + b"\xff\xe1\x00\x10Exif\0\0MM\0*\xff\xff\xff\xff" + content[2:]

    assert prepare(broken).width == 60


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(600, 400, (384, 256)), (400, 600, (256, 384)), (2000, 300, (1707, 256)), (256, 256, (256, 256)), (4000, 8, None)],
)
def test_the_short_side_is_shrunk_never_enlarged(width: int, height: int, expected: tuple[int, int] | None) -> None:
    prepared = prepare(encode(picture(width, height)))

    assert (prepared.width, prepared.height) == (expected or (width, height))
    assert pixels_of(prepared).size == (prepared.width, prepared.height)


def test_original_keeps_the_bytes_of_large_pictures() -> None:
    content = encode(picture(600, 400))

    assert prepare(content, short_side=None).jpeg == content


def test_shrinking_is_close_to_lanczos() -> None:
    """Peak signal to noise ratio against Pillow's LANCZOS on a smooth picture with fine texture."""
    rng = np.random.Generator(np.random.PCG64(0))
    noisy = np.asarray(picture(600, 400), int) + rng.integers(-20, 21, (400, 600, 3))
    large = np.clip(noisy, 0, 255).astype(np.uint8)
    ours = shrink(large, 200).astype(float)
    theirs = np.asarray(Image.fromarray(large).resize((300, 200), Image.Resampling.LANCZOS), float)
    nearest = np.asarray(Image.fromarray(large).resize((300, 200), Image.Resampling.NEAREST), float)

    def psnr(pixels: np.ndarray[Any, Any]) -> float:
        return float(10 * np.log10(255**2 / ((pixels - theirs) ** 2).mean()))

    assert psnr(ours) > 35
    # The bound means something: sampling without antialiasing does not meet it.
    assert psnr(nearest) < 30


def test_scaled_decoding_gives_the_same_picture() -> None:
    content = encode(picture(1600, 1200), subsampling=0)
    scaled = np.asarray(pixels_of(prepare(content, short_side=100)), int)
    plain = np.asarray(picture(1600, 1200).resize((133, 100), Image.Resampling.BOX), int)

    assert np.abs(scaled - plain).mean() < 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"<html></html>", "not a picture"),
        (encode(picture(300, 200))[:2000], "cannot be decoded"),
        (encode(picture())[:4], "not a picture|header"),
        (encode(Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG"), "pixel format I;16"),
    ],
    ids=["empty", "html", "truncated", "four bytes", "16 bit"],
)
def test_what_cannot_be_used_is_refused_with_a_reason(content: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        prepare(content)


def test_a_picture_that_claims_to_be_huge_is_refused_before_it_is_decoded() -> None:
    """The header says 60,000 x 60,000; a decoder that believed it would ask for 10 GB."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + header, b"IDAT" + zlib.compress(bytes(100))):
        content += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(ImageError, match="pixels"):
        prepare(content)


@settings(max_examples=150)
@given(place=st.integers(0, 10_000), flip=st.integers(1, 255), cut=st.integers(0, 10_000))
def test_damaged_jpegs_are_decoded_or_refused_never_worse(place: int, flip: int, cut: int) -> None:
    content = bytearray(encode(picture(80, 60)))
    content[place % len(content)] ^= flip
    try:
        prepared = prepare(bytes(content[: max(cut, 20)]))
    except ImageError:
        return

    assert pixels_of(prepared).size == (prepared.width, prepared.height)


REFUSED = {"reject", "guard"}
ACCEPTED = {"accept", "accept_orient"}


def test_the_awkward_pictures_meet_their_expectations(real_data: Path) -> None:
    manifest = pd.read_csv(real_data / "awkward.manifest.csv", keep_default_na=False)
    manifest = manifest[~manifest["category"].isin(["xml", "csv", "archive"])]
    wrong = []
    with zipfile.ZipFile(real_data / "awkward.zip") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in manifest.to_dict("records"):
            name = str(row[manifest.columns[0]])
            try:
                prepared = prepare(archive.read(f"awkward/{name}"), short_side=None)
                outcome = f"{prepared.width}x{prepared.height}"
            except ImageError as error:
                outcome = f"refused: {error.what}"
            expected = str(row["expected"])
            size = f"{row['expect_w']}x{row['expect_h']}"
            refused = outcome.startswith("refused")
            if (expected in REFUSED and not refused) or (
                expected in ACCEPTED and (refused or (row["expect_w"] != "" and outcome != size))
            ):
                wrong.append((name, expected, size, outcome))

    assert wrong == []


def test_a_picture_wider_than_a_jpeg_can_be_is_refused() -> None:
    with pytest.raises(ImageError, match="70000 x 10 pixels, more than a JPEG"):
        prepare(encode(Image.new("RGB", (70_000, 10)), "PNG"))


def test_warnings_are_silenced_until_the_last_thread_leaves() -> None:
    """Blocks of two threads that overlap: neither brings the filters back while the other is inside."""
    before = list(warnings.filters)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with quiet:
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with quiet:
        thread.start()
        assert entered.wait(10)
    try:
        warnings.warn("an error in this suite, were it not silenced", stacklevel=1)
    finally:
        leave.set()
        thread.join()

    assert list(warnings.filters) == before
    with pytest.raises(UserWarning, match="loud again"):
        warnings.warn("loud again", stacklevel=1)


def test_formats_that_are_no_pictures_are_refused_before_they_are_opened() -> None:
    """Pillow would hand PostScript to another program."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n"
    with pytest.raises(ImageError, match="not a picture"):
        prepare_image(eps, short_side=None, quality=90)
