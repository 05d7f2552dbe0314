"""Pictures: what keeps its bytes, what is written anew, what is refused, where boxes go; real and awkward files."""

from __future__ import annotations

import io
import itertools
import os
import re
import struct
import subprocess
import sys
import threading
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.JpegImagePlugin import JpegImageFile

from imgprep import images
from imgprep.errors import ImageError, SpecError
from imgprep.images import (
    Box,
    Geometry,
    ImageSpec,
    PreparedImage,
    orientation_of,
    prepare_image,
    quiet,
    read_jpeg_header,
    shrink,
    turn_upright,
)

ORIGINAL = ImageSpec(images="original")
SQUARE = ImageSpec(crop="center")
RESTARTS = re.compile(rb"\xff[\xd0-\xd7]")


def picture(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    """A smooth picture whose corners differ, so that a turn or a swap of channels shows."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} | options))
    return buffer.getvalue()


def turned(image: Image.Image, orientation: int, kind: str = "JPEG") -> bytes:
    """Save with an EXIF orientation, the pixels as they are."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, kind, exif=exif)


def prepare(content: bytes, **options: Any) -> PreparedImage:
    return prepare_image(content, ImageSpec(**options))


def jpeg(content: bytes) -> JpegImageFile:
    image = Image.open(io.BytesIO(content))
    assert isinstance(image, JpegImageFile)
    image.load()
    return image


def pixels_of(prepared: PreparedImage) -> JpegImageFile:
    return jpeg(prepared.jpeg)


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of samples."""
    return float(np.abs(np.asarray(one, int) - np.asarray(other, int)).mean())


def psnr(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Peak signal to noise ratio in dB."""
    return float(10 * np.log10(255**2 / ((one.astype(float) - other.astype(float)) ** 2).mean()))


# The spec


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images": "raw"}, "images must be one of resize, original, got 'raw'"),
        ({"size": 7}, "size must be from 8 to 16384"),
        ({"size": 16385}, "size must be from 8 to 16384"),
        ({"crop": "random"}, "crop must be one of none, center"),
        ({"crop": "center", "images": "original"}, "crop must be none"),
        ({"quality": 0}, "quality must be from 1 to 100"),
        ({"quality": 101}, "quality must be from 1 to 100"),
    ],
)
def test_a_spec_that_breaks_a_rule_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=re.escape(said)):
        ImageSpec(**options)


# What keeps its bytes, and what does not


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_small_baseline_jpeg_keeps_its_bytes(mode: str) -> None:
    content = encode(picture(mode=mode))
    prepared = prepare(content)

    assert (prepared.jpeg, prepared.unchanged, prepared.width, prepared.height) == (content, True, 60, 40)
    assert prepared.geometry.is_identity


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
        encode(picture(mode="YCbCr"), "TIFF", quality=None),
    ],
    ids=["progressive", "CMYK", "PNG", "RGBA", "palette", "WebP", "BMP", "YCbCr"],
)
def test_anything_else_becomes_a_baseline_rgb_jpeg(content: bytes) -> None:
    prepared = prepare(content)
    image = pixels_of(prepared)

    assert (prepared.unchanged, image.format, image.mode, image.size) == (False, "JPEG", "RGB", (60, 40))
    assert b"\xff\xc0\x00\x11\x08" in prepared.jpeg  # SOF0, 8 bits
    assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]  # 4:2:0
    assert image.info.keys() <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    assert difference(image, picture()) < 12


def test_pictures_that_are_written_anew_carry_no_metadata() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    prepared = prepare(encode(picture(600, 400), exif=exif, icc_profile=profile(SRGB), comment=b"a comment"))

    assert not pixels_of(prepared).info.keys() & {"exif", "icc_profile", "comment", "xmp"}


def test_quality_is_that_of_the_spec() -> None:
    content = encode(picture(300, 300), "PNG")
    tables = pixels_of(prepare(content, quality=35)).quantization

    assert tables == jpeg(encode(picture(), quality=35)).quantization
    assert len(prepare(content, quality=35).jpeg) < len(prepare(content, quality=95).jpeg)


@pytest.mark.parametrize(
    "content",
    [
        encode(picture(600, 400)),
        encode(picture(600, 400), progressive=True),
        encode(picture(mode="CMYK")),
        turned(picture(), 6),
        encode(picture(), quality=20) + bytes(512),
        encode(picture(mode="CMYK")) + b"\n",
    ],
    ids=["large", "progressive", "CMYK", "turned", "zeros after the end", "CMYK, a byte after the end"],
)
def test_original_keeps_the_bytes_of_every_jpeg(content: bytes) -> None:
    prepared = prepare_image(content, ORIGINAL)
    width, height = Image.open(io.BytesIO(content)).size

    assert (prepared.jpeg, prepared.unchanged) == (content, True)
    assert (prepared.width, prepared.height) == (width, height)


def test_original_does_not_decode_a_jpeg_that_has_its_end() -> None:
    content = bytearray(encode(picture(300, 200)))
    content[-200:-20] = bytes(180)

    assert prepare_image(bytes(content), ORIGINAL).unchanged


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_original_refuses_a_jpeg_that_is_cut_off(mode: str) -> None:
    content = encode(picture(300, 200, mode))

    with pytest.raises(ImageError, match=r"it cannot be decoded .*truncated"):
        prepare_image(content[: len(content) // 2], ORIGINAL)


def test_original_makes_jpegs_of_other_formats_at_full_size() -> None:
    prepared = prepare_image(turned(picture(600, 400), 8, "WEBP"), ORIGINAL)

    assert (prepared.unchanged, prepared.width, prepared.height) == (False, 400, 600)
    assert pixels_of(prepared).format == "JPEG"
    assert difference(pixels_of(prepared), picture(600, 400).transpose(Image.Transpose.ROTATE_90)) < 4


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(600, 400, (384, 256)), (400, 600, (256, 384)), (2000, 300, (1707, 256)), (256, 256, (256, 256)), (4000, 8, None)],
)
def test_the_short_side_is_shrunk_never_enlarged(width: int, height: int, expected: tuple[int, int] | None) -> None:
    prepared = prepare(encode(picture(width, height)))

    assert (prepared.width, prepared.height) == (expected or (width, height))
    assert pixels_of(prepared).size == (prepared.width, prepared.height)


@pytest.mark.parametrize(
    ("size", "side", "left", "top"), [((600, 400), 256, 64, 0), ((300, 501), 256, 0, 86), ((90, 70), 70, 10, 0)]
)
def test_center_keeps_the_square_in_the_middle(size: tuple[int, int], side: int, left: int, top: int) -> None:
    prepared = prepare(encode(picture(*size)), crop="center")
    geometry = prepared.geometry
    whole = picture(*size).resize(geometry.scaled, Image.Resampling.BICUBIC)

    assert (prepared.width, prepared.height, geometry.offset) == (side, side, (left, top))
    assert difference(pixels_of(prepared), whole.crop((left, top, left + side, top + side))) < 2


def test_a_small_square_keeps_its_bytes_when_cropped() -> None:
    assert prepare(encode(picture(64, 64)), crop="center").unchanged


def test_broken_exif_does_not_reject_a_picture() -> None:
    content = encode(picture())
    broken = content[:2] + b"\xff\xe1\x00\x12Exif\0\0MM\0*\xff\xff\x01\x12\xff\xff" + content[2:]

    assert prepare(broken).unchanged


@pytest.mark.parametrize("spec", [ImageSpec(size=64), ImageSpec(size=64, crop="center")])
def test_the_same_bytes_come_out_of_many_threads(spec: ImageSpec) -> None:
    kinds = [
        encode(picture(300, 200)),
        turned(picture(200, 300), 6),
        encode(picture(200, 200, "CMYK"), icc_profile=ink_profile()),
        encode(picture(300, 200), icc_profile=profile(ADOBE_RGB)),
        encode(picture(300, 200, "LA"), "PNG"),
    ]
    alone = [prepare_image(content, spec) for content in kinds]
    images._conversion.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda content: prepare_image(content, spec), kinds * 20))

    assert together == alone * 20


def test_restart_markers_begin_each_row_of_blocks() -> None:
    content = encode(picture(333, 250), "PNG")
    plain, marked = prepare(content, size=100), prepare(content, size=100, restart_markers=True)

    # 100 rows of pixels are 7 rows of blocks of 16, with 6 markers between them; 0 to 7 in turn.
    assert [found[1] - 0xD0 for found in RESTARTS.findall(marked.jpeg)] == [0, 1, 2, 3, 4, 5]
    assert not RESTARTS.findall(plain.jpeg)
    assert np.array_equal(np.asarray(pixels_of(marked)), np.asarray(pixels_of(plain)))


# Colours


ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
"""XYZ of red, green and blue under D50, as in the profiles of these names."""
GAMMA = 2.2


def fixed(*values: float) -> bytes:
    """The number type s15Fixed16 (ICC.1:2022, 4.6)."""
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def icc(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2: the header, the table of tags, the tags (ICC.1:2001-04, 6)."""
    body, table, place = b"", struct.pack(">I", len(tags)), 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", place + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    header = struct.pack(">I4sI4s4s4s", place + len(body), b"\0\0\0\0", 0x02100000, kind, space, connection)
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249)
    return header.ljust(128, b"\0") + table + body


def profile(primaries: tuple[tuple[float, ...], ...]) -> bytes:
    """A profile of a monitor, with a gamma of 2.2."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249)}
    for name, xyz in zip((b"r", b"g", b"b"), primaries, strict=True):
        tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*xyz)
        tags[name + b"TRC"] = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(GAMMA * 256))
    return icc(b"mntr", b"RGB ", b"XYZ ", tags)


def ink_profile() -> bytes:
    """A profile of a press whose cyan, magenta and yellow are three greys: what it says, nobody else would."""
    ramp = bytes(range(256))
    corners = itertools.product((0, 1), repeat=4)
    light = [round(255 * (1 - k) * (1 - (c + m + y) / 3)) for c, m, y, k in corners]
    grid = b"".join(bytes((level, 128, 128)) for level in light)
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + ramp * 4 + grid + ramp * 3
    return icc(b"prtr", b"CMYK", b"Lab ", {b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249), b"A2B0": table})


def adobe_to_srgb(colour: tuple[int, int, int]) -> list[float]:
    """The formula, without a colour engine."""
    light = (np.array(colour) / 255) ** GAMMA
    linear = np.linalg.solve(np.array(SRGB).T, np.array(ADOBE_RGB).T @ light)
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    return [float(level) for level in 255 * coded]


def middle(prepared: PreparedImage) -> list[int]:
    """The pixel in the middle."""
    image = pixels_of(prepared).convert("RGB")
    return [int(level) for level in np.asarray(image)[image.height // 2, image.width // 2]]


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"subsampling": 0}), ("PNG", {}), ("TIFF", {"quality": None})])
def test_a_profile_that_is_not_srgb_is_applied(kind: str, options: dict[str, Any]) -> None:
    colour = (100, 150, 90)
    content = encode(Image.new("RGB", (32, 32), colour), kind, icc_profile=profile(ADOBE_RGB), **options)
    prepared = prepare(content)
    expected = adobe_to_srgb(colour)

    assert not prepared.unchanged
    assert middle(prepared) == pytest.approx(expected, abs=3)
    # The formula moves this colour by more than the bound.
    assert max(abs(one - other) for one, other in zip(expected, colour, strict=True)) > 15


def test_a_large_picture_is_shrunk_and_converted() -> None:
    content = encode(Image.new("RGB", (600, 400), (100, 150, 90)), icc_profile=profile(ADOBE_RGB))
    prepared = prepare(content)

    assert (prepared.width, prepared.height) == (384, 256)
    assert middle(prepared) == pytest.approx(adobe_to_srgb((100, 150, 90)), abs=3)


def test_profiles_of_ink_are_applied() -> None:
    ink = Image.new("CMYK", (32, 32), (255, 0, 0, 0))
    plain, managed = middle(prepare(encode(ink))), middle(prepare(encode(ink, icc_profile=ink_profile())))

    assert plain == pytest.approx([0, 255, 255], abs=4)
    # L* of 66.7 is the grey of 162 in sRGB (CIE 15, and IEC 61966-2-1).
    assert managed == pytest.approx([162, 162, 162], abs=6)


def test_grey_with_a_profile_of_its_own_is_converted() -> None:
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249), b"kTRC": b"curv\0\0\0\0" + struct.pack(">IH", 1, 256)}
    linear = icc(b"mntr", b"GRAY", b"XYZ ", tags)
    prepared = prepare(encode(Image.new("L", (32, 32), 128), icc_profile=linear))

    # Half the light is 188 in sRGB.
    assert middle(prepared) == pytest.approx([188, 188, 188], abs=2)


SAME = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("RGB", SAME),
        ("RGB", b"no profile"),
        ("RGB", profile(ADOBE_RGB)[:200]),
        ("RGB", profile(((0, 0, 0),) * 3)),
        ("RGB", ink_profile()),
        ("L", profile(ADOBE_RGB)),
        ("RGB", profile(ADOBE_RGB) + bytes(images.MAX_PROFILE_BYTES)),
    ],
    ids=["sRGB", "noise", "cut off", "all colours black", "of ink", "colour for grey", "larger than any"],
)
def test_profiles_that_say_srgb_or_nothing_of_use_are_ignored(mode: str, told: bytes) -> None:
    content = encode(picture(mode=mode), icc_profile=told)

    assert prepare(content).jpeg == content


def test_a_profile_that_is_nearly_srgb_is_applied() -> None:
    """Its colours are those of sRGB, but dark ones have a gamma of 2.2: up to 9 levels of difference."""
    assert not prepare(encode(picture(), icc_profile=profile(SRGB))).unchanged


def test_a_profile_of_which_a_part_is_missing_is_ignored() -> None:
    image = Image.new("RGB", (32, 32), (100, 150, 90))
    content = encode(image, icc_profile=profile(ADOBE_RGB) + bytes(70_000))
    first = content.index(b"ICC_PROFILE\0\x01\x02") - 4
    second = content.index(b"ICC_PROFILE\0\x02\x02") - 4

    assert middle(prepare(content[:first] + content[second:])) == pytest.approx([100, 150, 90], abs=3)
    assert middle(prepare(content)) == pytest.approx(adobe_to_srgb((100, 150, 90)), abs=3)


@pytest.mark.parametrize(("kind", "order"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("PPM", "<i4")])
def test_grey_of_16_bits_is_scaled_not_cut_off(kind: str, order: str) -> None:
    levels = np.repeat(np.linspace(0, 0xFFFF, 64)[None], 48, axis=0).astype(order)
    image = Image.frombytes({"<u2": "I;16", ">u2": "I;16B", "<i4": "I"}[order], (64, 48), levels.tobytes())
    found = np.asarray(pixels_of(prepare(encode(image, kind, quality=None))), int)[24, :, 0]

    assert np.abs(found - np.linspace(0, 255, 64)).max() <= 3


@pytest.mark.parametrize(
    ("mode", "dtype", "level", "said"),
    [
        ("I", np.int32, 70_000, "grey levels from 70000 to 70000, more than 16 bits hold"),
        ("I", np.int32, -1, "grey levels from -1"),
        ("F", np.float32, 0.5, r"pixel format F \(TIFF\) is not handled"),
    ],
)
def test_samples_without_a_rule_are_refused(mode: str, dtype: type, level: float, said: str) -> None:
    image = Image.frombytes(mode, (8, 8), np.full((8, 8), level, dtype).tobytes())
    with pytest.raises(ImageError, match=said):
        prepare(encode(image, "TIFF", quality=None))


def seen_through(mode: str) -> Image.Image:
    """A red square, half of which is to be seen."""
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 128))
    image.paste((255, 0, 0, 0), (0, 0, 32, 64))
    return image.convert(mode)


@pytest.mark.parametrize(
    ("image", "options", "left", "right"),
    [
        (seen_through("RGBA"), {}, (255, 255, 255), (255, 127, 127)),
        (seen_through("LA"), {}, (255, 255, 255), (165, 165, 165)),
        (Image.new("L", (64, 64), 9), {"transparency": 9}, (255, 255, 255), (255, 255, 255)),
        (Image.new("RGB", (64, 64), (1, 2, 3)), {"transparency": (1, 2, 4)}, (1, 2, 3), (1, 2, 3)),
        (Image.new("P", (64, 64), 0), {"transparency": 0}, (255, 255, 255), (255, 255, 255)),
        (Image.new("I;16", (64, 64), 900), {"transparency": 900}, (255, 255, 255), (255, 255, 255)),
    ],
    ids=["RGBA", "LA", "transparent grey", "another colour transparent", "palette", "16 bits"],
)
def test_what_is_transparent_is_laid_over_white(
    image: Image.Image, options: dict[str, Any], left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    found = np.asarray(pixels_of(prepare(encode(image, "PNG", **options))), int)

    assert np.abs(found[32, 8] - left).max() <= 3
    assert np.abs(found[32, 56] - right).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    first, second = Image.new("RGB", (32, 32), (200, 0, 0)), Image.new("RGB", (32, 32), (0, 0, 200))
    content = encode(first, kind, save_all=True, append_images=[second])

    assert middle(prepare(content)) == pytest.approx([200, 0, 0], abs=4)


# Where boxes go


def marked_picture() -> Image.Image:
    """A dark picture with a bright box in it."""
    image = Image.new("L", (240, 160), 16)
    image.paste(240, (30, 20, 102, 80))
    return image


def bright(image: Image.Image) -> Box:
    found = image.convert("L").point(lambda level: 255 * (level > 128)).getbbox()
    assert found is not None
    return found


MARK: Box = (30, 20, 102, 80)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("spec", [ImageSpec(), ImageSpec(size=96), ImageSpec(size=96, crop="center")])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_stays_on_what_it_marks(orientation: int, spec: ImageSpec, kind: str) -> None:
    stored = marked_picture()
    prepared = prepare_image(turned(stored, orientation, kind), spec)
    scale_box, found = prepared.geometry.scale_box, bright(pixels_of(prepared))

    assert scale_box(MARK, (240, 160)) == pytest.approx(found, abs=1)
    half = tuple(edge / 2 for edge in bright(turn_upright(stored, orientation)))
    width, height = prepared.geometry.upright
    assert scale_box((half[0], half[1], half[2], half[3]), (width // 2, height // 2)) == pytest.approx(found, abs=1)
    if orientation >= 5:  # the upright size is another, so an annotation can mean it
        upright = bright(turn_upright(stored, orientation))
        assert scale_box(upright, (width, height)) == pytest.approx(found, abs=1)
        assert scale_box(upright, (0, 0)) == pytest.approx(found, abs=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_kept_bytes_are_about_the_stored_pixels(orientation: int) -> None:
    stored = marked_picture()
    geometry = prepare_image(turned(stored, orientation), ORIGINAL).geometry

    assert geometry.scale_box(MARK, (240, 160)) == MARK
    assert geometry.scale_box(bright(turn_upright(stored, orientation)), (0, 0)) == MARK


def test_an_annotation_may_be_about_a_picture_of_another_size() -> None:
    geometry = prepare(encode(picture(600, 400)), size=100).geometry

    assert geometry.scale_box((10, 10, 1000, 500), (1200, 800)) == (1.25, 1.25, 125, 62.5)
    assert geometry.scale_box((1, 0, 2, 800), (1200, 800)) == (0.12, 0, 0.25, 100)


sides = st.integers(1, 3000)
specs = st.builds(ImageSpec, size=st.integers(8, 400), crop=st.sampled_from(["none", "center"]))
orientations = st.integers(1, 8)
tolds = st.just((0, 0)) | st.tuples(sides, sides)


@given(sides, sides, orientations, specs, tolds)
def test_a_box_around_the_whole_picture_stays_around_it(
    width: int, height: int, orientation: int, spec: ImageSpec, told: tuple[int, int]
) -> None:
    geometry = images._plan(width, height, orientation, spec)
    meant = told if min(told) else geometry.upright

    assert geometry.scale_box((0, 0, *meant), told) == (0, 0, *geometry.size)
    assert geometry.scale_box((-50, -50, meant[0] + 9, meant[1] + 9), told) == (0, 0, *geometry.size)
    assert geometry.scale_box((meant[0], 0, meant[0] + 9, meant[1]), told) is None
    assert geometry.scale_box((0, -9, meant[0], 0), told) is None


def draw_box(draw: st.DrawFn, width: int, height: int) -> Box:
    xmin, ymin = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return xmin, ymin, draw(st.integers(xmin + 1, width)), draw(st.integers(ymin + 1, height))


@given(st.data(), sides, sides, orientations, specs, tolds)
def test_a_box_lies_inside_the_sample_or_is_left_out(
    choose: st.DataObject, width: int, height: int, orientation: int, spec: ImageSpec, told: tuple[int, int]
) -> None:
    geometry = images._plan(width, height, orientation, spec)
    meant = told if min(told) else geometry.upright
    found = geometry.scale_box(choose.draw(st.composite(draw_box)(*meant)), told)

    if found is not None:
        xmin, ymin, xmax, ymax = found
        assert 0 <= xmin < xmax <= geometry.size[0]
        assert 0 <= ymin < ymax <= geometry.size[1]
        assert all(isinstance(edge, int) or (edge != int(edge) and edge == round(edge, 2)) for edge in found)


@given(st.data(), sides, sides, orientations)
def test_boxes_of_unchanged_pictures_keep_their_numbers(
    choose: st.DataObject, width: int, height: int, orientation: int
) -> None:
    size = (width, height)
    kept = Geometry(stored=size, orientation=orientation, turned=False, scaled=size, offset=(0, 0), size=size)
    box = choose.draw(st.composite(draw_box)(width, height))
    found = kept.scale_box(box, size)

    assert found is not None
    assert found == box
    assert all(type(edge) is int for edge in found)
    # Turned there and back again.
    upright = images._plan(width, height, orientation, ORIGINAL)
    there = upright.scale_box(box, size)
    assert there is not None
    if upright.upright != size:
        assert kept.scale_box(there, upright.upright) == box


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them(orientation: int) -> None:
    prepared = prepare(turned(picture(), orientation))
    expected = turn_upright(picture(), orientation)

    assert (prepared.width, prepared.height) == expected.size == prepared.geometry.upright
    assert difference(pixels_of(prepared), expected) < 4


def test_an_orientation_in_xmp_counts() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    prepared = prepare(encode(picture(), xmp=xmp))

    assert (prepared.width, prepared.height, prepared.geometry.orientation) == (40, 60, 6)


# Resampling


def photographs(real_data: Path, count: int) -> list[bytes]:
    """Photographs of ImageNet, full size."""
    with zipfile.ZipFile(real_data / "fullsize.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".JPEG"))
        return [archive.read(name) for name in names[:: len(names) // count][:count]]


def test_shrinking_is_close_to_lanczos(real_data: Path) -> None:
    """On 300 photographs: 48.1 dB, the worst 37.7; INTER_AREA 38.7 and 30.0 (ADR 0009)."""
    ours, areas = [], []
    for content in photographs(real_data, 40):
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        width, height = (side * 192 // min(pixels.shape[:2]) for side in pixels.shape[1::-1])
        expected = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
        ours.append(psnr(shrink(pixels, (width, height)), expected))
        areas.append(psnr(np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)), expected))

    assert np.median(ours) > 46
    assert min(ours) > 37
    # The bounds mean something: averaging, the usual way, meets neither.
    assert np.median(areas) < 42
    assert min(areas) < 35


@pytest.mark.parametrize("scale", [1.7, 2, 2.9, 3.9, 4.1, 20])
def test_shrinking_does_not_alias(scale: float) -> None:
    """Stripes finer than the pixels of the result become grey; stripes much wider stay."""
    x = np.arange(round(100 * scale))
    contrasts = []
    for period in (1.25 * scale, 8 * scale):
        wave = (127.5 + 100 * np.sin(2 * np.pi * x / period)).astype(np.uint8)
        pixels = np.repeat(np.repeat(wave[None], len(x), axis=0)[..., None], 3, axis=2)
        contrasts.append(shrink(pixels, (100, 100))[20:80, 20:80].std())

    assert contrasts[0] < 7
    assert contrasts[1] == pytest.approx(100 / np.sqrt(2), rel=0.05)


@given(st.integers(1, 90), st.integers(1, 90), st.floats(1, 30), st.integers(0, 255))
def test_a_plain_picture_stays_plain(width: int, height: int, scale: float, level: int) -> None:
    pixels = np.full((round(height * scale), round(width * scale), 3), level, np.uint8)

    assert (shrink(pixels, (width, height)) == level).all()


@pytest.mark.parametrize("scale", [1.0001, 1.1, 1.46484375, 2, 2.7, 4])
def test_sums_of_the_kernel_are_exact(scale: float) -> None:
    weights = images._lanczos(scale).astype(float) * 128

    assert (weights == weights.astype(int)).all()
    assert weights.sum() == 128
    assert (weights == weights[::-1]).all()
    # The largest sum, of samples of 255 where both weights have one sign, is a whole number of 1 / 128^2.
    assert 255 * np.abs(weights).sum() ** 2 < 1 << 24


def test_processors_without_wide_vectors_find_the_same_pixels() -> None:
    code = """
import hashlib, numpy, imgprep.images
noise = numpy.random.Generator(numpy.random.PCG64(0)).integers(0, 256, (1200, 1500, 3), numpy.uint8)
sizes = ((1100, 900), (1023, 769), (500, 400), (300, 200))
print(*(hashlib.sha256(imgprep.images.shrink(noise, size).tobytes()).hexdigest() for size in sizes))
"""
    found = set()
    for disabled in ("", "AVX2,FMA3", "AVX,AVX2,FMA3,FP16"):
        environment = os.environ | {"OPENCV_CPU_DISABLE": disabled}
        found.add(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)

    assert len(found) == 1


def test_shrinking_moves_nothing() -> None:
    """The centre of a disc stays where it is, in parts of the width, to a hundredth of a pixel."""
    y, x = np.mgrid[0:375, 0:500]
    disc = (255 * (np.hypot(x - 199.5, y - 149.5) < 60)).astype(np.uint8)
    small = shrink(np.repeat(disc[..., None], 3, axis=2), (341, 256))[..., 0].astype(float)
    y, x = np.mgrid[0:256, 0:341]

    assert (small * (x + 0.5)).sum() / small.sum() / 341 == pytest.approx(200 / 500, abs=0.01 / 341)
    assert (small * (y + 0.5)).sum() / small.sum() / 256 == pytest.approx(150 / 375, abs=0.01 / 256)


@pytest.mark.parametrize(("side", "decoded"), [(1023, 1023), (1024, 512), (2047, 1024), (2048, 512), (8192, 1024)])
def test_decoding_leaves_twice_the_pixels_that_are_wanted(side: int, decoded: int) -> None:
    content = encode(Image.new("L", (side, side)))
    header = read_jpeg_header(content)
    assert header is not None
    pixels = images._decode_jpeg(content, header, images._plan(side, side, 1, ImageSpec()))

    assert pixels is not None
    assert pixels.shape == (decoded, decoded, 3)


def test_scaled_decoding_gives_the_same_picture() -> None:
    content = encode(picture(1600, 1200), subsampling=0)
    scaled = pixels_of(prepare(content, size=100))

    assert difference(scaled, picture(1600, 1200).resize((133, 100), Image.Resampling.LANCZOS)) < 3


# Headers


def test_headers_are_read_as_pillow_reads_them(real_data: Path) -> None:
    for content in photographs(real_data, 60):
        header, image = read_jpeg_header(content), Image.open(io.BytesIO(content))
        assert header is not None
        assert (header.width, header.height, header.components) == (*image.size, len(image.getbands()))
        assert header.profile == (image.info.get("icc_profile") or b"")
        assert header.may_be_turned or orientation_of(image) == 1


@pytest.mark.parametrize(
    ("change", "to"),
    [
        (b"\xff\xc0\x00\x11\x08", b"\xff\xc3\x00\x11\x08"),
        (b"\xff\xc0\x00\x11\x08", b"\xff\xc9\x00\x11\x08"),
        (b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
        (b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x01\x08"),
        (b"\xff\xc0\x00\x11\x08\x00\x28", b"\xff\xc0\x00\x11\x08\x00\x00"),
        (b"\xff\xda", b"\xff\xd9"),
    ],
    ids=["lossless", "arithmetic", "12 bits", "no length", "no height", "no scan"],
)
def test_headers_that_need_a_decoder_are_left_to_it(change: bytes, to: bytes) -> None:
    content = encode(picture())

    assert read_jpeg_header(content) is not None
    assert read_jpeg_header(content.replace(change, to, 1)) is None


@given(st.binary(max_size=200))
def test_hostile_headers_are_read_to_the_end_or_refused(noise: bytes) -> None:
    header = read_jpeg_header(b"\xff\xd8" + noise)

    assert header is None or header.width * header.height > 0


def test_a_header_of_endless_segments_is_given_up() -> None:
    assert read_jpeg_header(b"\xff\xd8" + b"\xff\xfe\x00\x02" * 100_000) is None


def test_more_parts_of_a_profile_than_can_be_counted_are_none() -> None:
    part = b"\xff\xe2\x00\x10ICC_PROFILE\0\x01\x01"
    header = read_jpeg_header(encode(picture()).replace(b"\xff\xdb", part * 300 + b"\xff\xdb", 1))

    assert header is not None
    assert header.profile == b""


# What is refused


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"<html></html>", "not a picture"),
        (encode(picture(300, 200))[:2000], "cannot be decoded"),
        (encode(picture())[:4], "not a picture|header"),
        (encode(picture(300, 200), "PNG")[:2000], "cannot be decoded"),
    ],
    ids=["empty", "html", "truncated", "four bytes", "truncated PNG"],
)
@pytest.mark.parametrize("spec", [ImageSpec(), ORIGINAL, SQUARE])
def test_what_cannot_be_used_is_refused_with_a_reason(content: bytes, said: str, spec: ImageSpec) -> None:
    with pytest.raises(ImageError, match=said):
        prepare_image(content, spec)


@pytest.mark.parametrize("spec", [ImageSpec(), ORIGINAL])
def test_a_picture_that_claims_to_be_huge_is_refused_before_it_is_decoded(spec: ImageSpec) -> None:
    """The header says 60,000 x 60,000; a decoder that believed it would ask for 10 GB."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + header, b"IDAT" + zlib.compress(bytes(100))):
        content += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(ImageError, match="pixels"):
        prepare_image(content, spec)
    frame, huge = struct.pack(">BHH", 8, 40, 60), struct.pack(">BHH", 8, 60_000, 60_000)
    with pytest.raises(ImageError, match="60000 x 60000 pixels, more than the limit"):
        prepare_image(encode(picture()).replace(frame, huge, 1), spec)


@settings(max_examples=150)
@given(
    place=st.integers(0, 10_000),
    flip=st.integers(1, 255),
    cut=st.integers(0, 10_000),
    spec=st.sampled_from([ImageSpec(), ImageSpec(size=32, crop="center")]),
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF"]),
)
def test_damaged_pictures_are_decoded_or_refused_never_worse(
    place: int, flip: int, cut: int, spec: ImageSpec, kind: str
) -> None:
    content = bytearray(encode(picture(80, 60), kind, icc_profile=profile(ADOBE_RGB)))
    content[place % len(content)] ^= flip
    try:
        prepared = prepare_image(bytes(content[: max(cut, 20)]), spec)
    except ImageError:
        return

    assert pixels_of(prepared).size == (prepared.width, prepared.height)


REFUSED = {"reject", "guard"}
ACCEPTED = {"accept", "accept_orient", "accept_convert"}


@pytest.mark.parametrize("spec", [ImageSpec(size=16384), ORIGINAL], ids=["decoded", "original"])
def test_the_awkward_pictures_meet_their_expectations(real_data: Path, spec: ImageSpec) -> None:
    manifest = pd.read_csv(real_data / "awkward.manifest.csv", keep_default_na=False)
    manifest = manifest[~manifest["category"].isin(["xml", "csv", "archive"])]
    wrong = []
    with zipfile.ZipFile(real_data / "awkward.zip") as archive:
        for row in manifest.to_dict("records"):
            expected = str(row["expected"])
            try:
                prepared = prepare_image(archive.read(f"awkward/{row[manifest.columns[0]]}"), spec)
                # Bytes that are kept are measured as they are stored.
                size = prepared.geometry.upright if prepared.unchanged else (prepared.width, prepared.height)
                outcome = f"{size[0]}x{size[1]}"
                assert prepared.jpeg.startswith(b"\xff\xd8\xff")
            except ImageError as error:
                outcome = f"refused: {error.what}"
            refused = outcome.startswith("refused")
            fits = row["expect_w"] == "" or outcome == f"{row['expect_w']}x{row['expect_h']}"
            if (expected in REFUSED and not refused) or (expected in ACCEPTED and (refused or not fits)):
                wrong.append((row["file"], expected, outcome))

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
        prepare_image(eps, ORIGINAL)


def test_a_picture_of_endless_scans_is_refused() -> None:
    """Each is a loop over all pixels, for a hundred bytes of a file."""
    content = bytearray(encode(picture(), progressive=True))
    content[-2:-2] = b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00" * 1001
    for spec in (ImageSpec(), ImageSpec(images="original")):
        with pytest.raises(ImageError, match="more than 1000 scans"):
            prepare_image(bytes(content), spec)


def test_a_box_of_a_shrunk_copy_that_was_not_turned_turns_with_the_picture() -> None:
    size = (448, 336)
    kept = Geometry(stored=size, orientation=6, turned=False, scaled=size, offset=(0, 0), size=size)
    turned = Geometry(stored=size, orientation=6, turned=True, scaled=(336, 448), offset=(0, 0), size=(336, 448))

    assert kept.scale_box((0, 0, 50, 25), (224, 168)) == (0, 0, 100, 50)
    assert turned.scale_box((0, 0, 50, 25), (224, 168)) == (286, 0, 336, 100)
