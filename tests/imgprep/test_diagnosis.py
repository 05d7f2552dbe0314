"""Diagnoses: every awkward file as its manifest expects, real photographs without a finding, the hash to the bit."""

from __future__ import annotations

import csv
import io
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from imgprep import diagnosis, images
from imgprep.diagnosis import Diagnosis, diagnose, perceptual_hash, read_jpeg
from imgprep.findings import ODD_CODES

UNUSABLE = {"breaks-decoder", "not-an-image", "too-large", "undecodable", "truncated"}
"""Findings of pictures that nobody should train on."""


def picture(width: int = 96, height: int = 80, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth blobs: a picture with structure at low frequencies, as photographs have."""
    rng = np.random.Generator(np.random.PCG64(seed))
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def codes(content: bytes, name: str = "a.jpg", **options: Any) -> set[str]:
    return set(diagnose(content, name=name, **options).codes)


JPEG = encode(picture())


def test_a_plain_photograph_has_no_finding() -> None:
    found = diagnose(JPEG, name="train/x/a.JPEG")

    assert found.phash is not None
    assert found == Diagnosis(
        format="JPEG",
        mode="RGB",
        width=96,
        height=80,
        orientation=1,
        bits=8,
        progressive=False,
        complete=True,
        pillow=True,
        opencv=True,
        phash=found.phash,
    )


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (encode(picture(), progressive=True), "a.jpg", set()),
        (encode(picture(mode="L")), "a.jpeg", set()),
        (encode(picture(), "PNG"), "a.png", set()),
        (encode(picture(), "PNG"), "a.JPEG", {"wrong-extension"}),
        (encode(picture(), "PNG"), "folder.jpg/a", set()),
        (encode(picture(), "PNG"), ".jpg", set()),
        (encode(picture(), "PNG"), "a.tar", set()),
        (encode(picture(mode="CMYK")), "a.jpg", {"cmyk"}),
        (encode(picture(), exif=exif(6)), "a.jpg", {"rotated"}),
        (encode(picture(), exif=exif(1)), "a.jpg", set()),
        (encode(picture(), exif=exif(9)), "a.jpg", set()),
        (
            encode(picture(), "GIF", save_all=True, append_images=[picture(seed=1)]),
            "a.gif",
            {"animated"},
        ),
        (encode(picture(), "TIFF", save_all=True, append_images=[picture(seed=1)]), "a.tif", {"animated"}),
        (encode(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)), "PNG"), "a.png", {"deep"}),
        (encode(picture(401, 100)), "a.jpg", {"extreme-aspect"}),
        (encode(picture(100, 400)), "a.jpg", set()),
        (b"", "a.jpg", {"not-an-image"}),
        (b"<html></html>", "a.jpg", {"not-an-image"}),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", "a.eps", {"not-an-image"}),
        (JPEG[:-2], "a.jpg", {"truncated"}),
        (JPEG[: len(JPEG) // 2], "a.jpg", {"truncated", "undecodable"}),
        (encode(picture(), "PNG")[:-40], "a.png", {"truncated", "undecodable"}),
        (encode(picture(), "WEBP")[:-40], "a.webp", {"not-an-image"}),
        (JPEG + b"\0" * 512, "a.jpg", set()),
    ],
)
def test_findings(content: bytes, name: str, expected: set[str]) -> None:
    # A JPEG without its end marker alone is decoded by some versions of the decoders, refused by others.
    assert codes(content, name) - {"undecodable", "decoders-differ"} == expected - {"undecodable"}
    if "undecodable" in expected:
        assert diagnose(content, name=name).pillow is not True


def test_a_hole_in_the_coded_bytes_is_noticed_though_the_picture_decodes() -> None:
    content = encode(picture(640, 480, seed=3), quality=95)
    hole = content.index(b"\xff\xda") + 2000
    found = diagnose(content[:hole] + content[hole + 2000 :], name="a.jpg")

    assert (found.pillow, found.codes) == (True, ("damaged",))


@pytest.mark.parametrize(("limit", "expected"), [(96 * 80, set()), (96 * 80 - 1, {"too-large"})])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_the_pixel_limit_is_kept_before_anything_decodes(
    kind: str, limit: int, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encode(picture(), kind)
    if expected:
        monkeypatch.setattr(diagnosis, "_ask_decoders", None)  # would be called, and fail
    found = diagnose(content, name="a", max_pixels=limit)

    assert (set(found.codes), found.width, found.height) == (expected, 96, 80)
    assert (found.pillow is None) == bool(expected)


def test_a_header_that_claims_billions_of_pixels_is_refused() -> None:
    start = JPEG.index(b"\xff\xc0") + 5
    huge = JPEG[:start] + struct.pack(">HH", 65500, 65500) + JPEG[start + 4 :]

    assert codes(huge) == {"too-large"}


def test_the_larger_of_two_frames_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two frame headers: whichever a decoder believes, the picture is refused."""
    start = JPEG.index(b"\xff\xc0")
    frame = JPEG[start : start + 19]
    larger = frame[:5] + struct.pack(">HH", 20_000, 20_000) + frame[9:]
    monkeypatch.setattr(diagnosis, "_ask_decoders", None)

    assert "too-large" in codes(JPEG[:start] + larger + frame + JPEG[start + 19 :])


def test_endless_scans_are_refused() -> None:
    content = encode(picture(), progressive=True)
    last, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    many = content[:end] + content[last:end] * diagnosis.MAX_SCANS + content[end:]

    assert codes(many) == {"too-large"}


def test_a_chunk_that_claims_gigabytes_reaches_no_decoder_that_believes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(picture(), "PNG")
    place = content.index(b"IDAT") - 4
    monkeypatch.setattr(diagnosis, "_opencv_decodes", None)  # would be called, and fail
    found = diagnose(content[:place] + b"\xfe\0\0\0" + content[place + 4 :], name="a.png")

    assert (found.opencv, found.complete, "truncated" in found.codes) == (False, False, True)


def test_a_preview_in_the_header_is_not_taken_for_the_end() -> None:
    preview = encode(picture(16, 16))
    content = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(preview) + 2) + preview + JPEG[2:]
    whole, cut = read_jpeg(content), read_jpeg(content[:-200])

    assert whole is not None
    assert cut is not None
    assert (whole.width, whole.complete, cut.complete) == (96, True, False)


@pytest.mark.parametrize("filler", [b"\xff" * 200_000, b"\xff\x01" * 100_000, b"\xff\xe0\0\x02" * 50_000, b"\xff\xd8"])
def test_headers_without_an_end_are_no_picture(filler: bytes) -> None:
    assert read_jpeg(b"\xff\xd8" + filler) is None


@settings(max_examples=150)
@given(
    st.sampled_from([encode(picture(40, 30), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.integers(0, 5000),
)
def test_any_bytes_get_a_diagnosis(content: bytes, changes: list[tuple[int, int]], length: int) -> None:
    changed = bytearray(content)
    for place, value in changes:
        changed[place % len(changed)] = value
    found = diagnose(bytes(changed[:length]), name="a.jpg", max_pixels=100_000)

    assert set(found.codes) <= ODD_CODES.keys()
    assert found.pillow or found.codes


def hash_by_definition(grey: NDArray[np.uint8]) -> int | None:
    """The hash as its documentation says it, number by number, without NumPy's help."""
    height, width = grey.shape

    def shares(length: int, cell: int) -> list[tuple[int, int]]:
        """Each sample that the cell covers, and how much of it, in 32nds."""
        spans = [(at, min((cell + 1) * length, (at + 1) * 32) - max(cell * length, at * 32)) for at in range(length)]
        return [(at, share) for at, share in spans if share > 0]

    def cell(row: int, column: int) -> int:
        total = sum(
            int(grey[y, x]) * down * across for y, down in shares(height, row) for x, across in shares(width, column)
        )
        return (2 * total + height * width) // (2 * height * width)

    cells = [[cell(row, column) for column in range(32)] for row in range(32)]
    wave = [[round(4096 * math.cos((2 * x + 1) * u * math.pi / 64)) for x in range(32)] for u in range(8)]
    coefficients = [
        sum(cells[y][x] * wave[u][y] * wave[v][x] for y in range(32) for x in range(32))
        for u in range(8)
        for v in range(8)
    ]
    ordered = sorted(coefficients)
    bits = "".join("1" if 2 * value > ordered[31] + ordered[32] else "0" for value in coefficients)
    return int(bits, 2) if bits.count("1") >= 16 else None


@pytest.mark.parametrize(("width", "height"), [(64, 64), (97, 71), (32, 32), (5, 9), (1, 40), (33, 127)])
def test_the_hash_is_what_its_definition_says(width: int, height: int) -> None:
    for seed in range(2):
        grey = np.asarray(picture(width, height, "L", seed))
        assert perceptual_hash(grey) == hash_by_definition(grey)


@pytest.mark.parametrize(
    "grey", [np.zeros((64, 64), np.uint8), np.full((3, 500), 255, np.uint8), np.arange(4096).reshape(64, 64) // 2048]
)
def test_plain_pictures_have_no_hash(grey: NDArray[Any]) -> None:
    assert perceptual_hash((grey * 100).astype(np.uint8)) is None


def distance(one: bytes, other: bytes) -> int:
    hashes = [diagnose(content, name="a").phash for content in (one, other)]
    assert None not in hashes
    return (hashes[0] ^ hashes[1]).bit_count()  # type: ignore[operator]


@pytest.mark.parametrize(
    "change",
    [
        lambda image: encode(image, quality=30),
        lambda image: encode(image, "PNG"),
        lambda image: encode(image.resize((300, 200))),
        lambda image: encode(image.convert("L")),
        lambda image: encode(ImageEnhance.Contrast(image).enhance(0.8)),
        lambda image: encode(image.transpose(Image.Transpose.ROTATE_90), exif=exif(6)),
    ],
    ids=["quality", "format", "size", "grey", "contrast", "turned"],
)
def test_what_looks_the_same_has_nearly_the_same_hash(change: Callable[[Image.Image], bytes]) -> None:
    image = picture(600, 400, seed=5)

    assert distance(encode(image, quality=92), change(image)) <= 4
    assert distance(encode(image), encode(picture(600, 400, seed=6))) > 12


def is_usable(found: Diagnosis, row: dict[str, str]) -> bool:
    expected = (int(row["expect_w"]), int(row["expect_h"])) if row["expect_w"] else found.upright_size
    return found.pillow is True and found.upright_size == expected and not UNUSABLE & set(found.codes)


def is_odd_by_kind(found: Diagnosis, row: dict[str, str]) -> bool:
    """What has to be converted is told by its mode, its depth or its code."""
    by_category = {"cmyk": "cmyk" in found.codes, "grayscale": found.mode == "L"}
    is_png = found.format == "PNG" and (found.mode != "RGB" or "deep" in found.codes)
    return is_usable(found, row) and by_category.get(row["category"], is_png)


def is_documented(found: Diagnosis, row: dict[str, str]) -> bool:
    """A matter of policy: several frames are told, HEIC is no picture, other formats decode."""
    if row["frames"] not in ("", "1"):
        return found.pillow is True and "animated" in found.codes
    return found.codes == ("not-an-image",) if not row["content_format"] else found.pillow is True


EXPECTED: dict[str, Callable[[Diagnosis, dict[str, str]], bool]] = {
    "accept": is_usable,
    "accept_convert": is_odd_by_kind,
    "accept_orient": lambda found, row: (
        is_usable(found, row)
        and str(found.orientation) == row["exif_orientation"]
        and ("rotated" in found.codes) == (row["exif_orientation"] != "1")
    ),
    "guard": lambda found, _: "too-large" in found.codes and found.pillow is None and found.opencv is None,
    "no_crash": lambda found, row: bool(found.codes) or is_usable(found, row),
    "not_jpeg": lambda found, row: "wrong-extension" in found.codes and found.format == row["content_format"],
    "policy": is_documented,
    "reject": lambda found, _: bool(UNUSABLE & set(found.codes)) and found.pillow is not True,
    "reject_or_decode": lambda found, _: (
        "deep" in found.codes and (found.pillow is True or "undecodable" in found.codes)
    ),
    "report": is_usable,
}
"""What the manifest of the awkward files expects, and what a diagnosis has to say then."""


def test_every_awkward_picture_meets_its_expectation(real_data: Path) -> None:
    with (real_data / "awkward.manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["category"] not in ("archive", "csv", "xml")]
    wrong = []
    with zipfile.ZipFile(real_data / "awkward.zip") as archive:
        for row in rows:
            found = diagnose(archive.read(f"awkward/{row['file']}"), name=row["file"])
            if not EXPECTED[row["expected"]](found, row):
                wrong.append((row["file"], row["expected"], found))

    assert wrong == []
    assert len(rows) == 170


def test_real_photographs_have_no_finding(real_data: Path) -> None:
    """60 full-size photographs and the 77 of the small archive: no rule is trigger-happy."""
    found = {}
    for name, limit in (("fullsize.zip", 60), ("ilsvrc-nano.zip", 77)):
        with zipfile.ZipFile(real_data / name) as archive:
            members = [member for member in archive.namelist() if member.endswith(".JPEG")][:limit]
            found |= {member: diagnose(archive.read(member), name=member) for member in members}

    assert {name: one.codes for name, one in found.items() if one.codes} == {}
    assert len({one.phash for one in found.values()}) == len(found) == 137


def test_every_format_that_is_read_has_its_extensions() -> None:
    assert tuple(diagnosis._EXTENSIONS) == images.FORMATS
