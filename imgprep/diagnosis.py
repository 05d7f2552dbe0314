"""One picture's bytes to a diagnosis: what it truly is, whether it decodes, how it looks, and what is odd about it.

Nothing is believed but the bytes, and nothing is decoded before its header was found to claim no more pixels and passes
than the limits allow. Decoding goes through all coded bytes, at a reduced scale where the format has one.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np
import simplejpeg
from PIL import Image, TiffImagePlugin

from imgprep.images import MAX_PIXELS, orientation_of, picture_formats, quiet, turn_upright

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

DIAGNOSIS_VERSION: Final = 1
"""Raised when the same bytes would get another diagnosis or another hash."""

MAX_PIXEL_LIMIT: Final = 150_000_000
"""The largest pixel limit one may ask for: Pillow itself refuses 179 million, twice its ``MAX_IMAGE_PIXELS``."""

MAX_SCANS: Final = 100
"""Scans a JPEG may have. Encoders write about 10, and each is a pass over all blocks that costs the author of a hostile
file a few bytes; the fuzzers of libjpeg-turbo stop at 500 for the same reason."""

EXTREME_ASPECT: Final = 4.0
"""Long side over short side beyond which a picture is odd: a square crop then keeps less than a quarter of it. It is 5
of the 50,000 validation pictures of ILSVRC 2012."""

LARGE: Final = 12_500_000
"""Pixels from which a picture is large: whoever diagnoses several at once decodes the large ones one after another."""

_EXTENSIONS: Final = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "MPO": ("mpo", "jpg", "jpeg"),
    "PNG": ("png", "apng"),
    "GIF": ("gif",),
    "WEBP": ("webp",),
    "BMP": ("bmp", "dib"),
    "DIB": ("dib", "bmp"),
    "TIFF": ("tif", "tiff"),
    "JPEG2000": ("jp2", "j2k", "j2c", "jpc", "jpx", "jpf"),
    "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"),
    "AVIF": ("avif", "avifs"),
}
"""Extensions of the formats that are looked at: those of :data:`imgprep.images.FORMATS`."""

_KNOWN_EXTENSIONS: Final = frozenset(name for names in _EXTENSIONS.values() for name in names)

_BITS_OF_MODE: Final = {"1": 1, "I": 32, "F": 32}
_BITS_PER_SAMPLE: Final = 258
"""TIFF tag (TIFF 6.0, section 4)."""

HASH_SIDE: Final = 32
"""Cells a side that the perceptual hash averages a picture to."""
_KEPT: Final = 8
"""Frequencies a direction that go into the hash: 8 x 8 signs are 64 bits."""
_MIN_ONES: Final = 16
"""Ones a hash must have. Half of the bits are one unless many coefficients are equal, which means a plain picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What is known about one file; None and the empty string where it could not be found out.

    Attributes:
        format: Pillow's name of the format, by content.
        mode: Pillow's name of the pixel format.
        width: Pixels, as stored, before the orientation is applied.
        height: Likewise.
        orientation: EXIF orientation, 1 to 8.
        bits: Bits a channel.
        progressive: Whether a JPEG is progressive.
        complete: Whether the mark that ends the picture is there.
        pillow: Whether Pillow decodes it; None where that was not tried.
        opencv: Whether OpenCV decodes it; likewise.
        phash: See :func:`perceptual_hash`.
        codes: Keys of :data:`imgprep.findings.ODD_CODES`, all but those that need the XML.
    """

    format: str = ""
    mode: str = ""
    width: int | None = None
    height: int | None = None
    orientation: int | None = None
    bits: int | None = None
    progressive: bool | None = None
    complete: bool | None = None
    pillow: bool | None = None
    opencv: bool | None = None
    phash: int | None = None
    codes: tuple[str, ...] = ()

    @property
    def upright_size(self) -> tuple[int, int] | None:
        """Width and height after the orientation is applied."""
        if self.width is None or self.height is None:
            return None
        turned = self.orientation is not None and self.orientation >= 5  # 5 to 8 swap the sides
        return (self.height, self.width) if turned else (self.width, self.height)


def diagnose(
    content: bytes, *, name: str, max_pixels: int = MAX_PIXELS, large: AbstractContextManager[object] | None = None
) -> Diagnosis:
    """Examine one picture.

    Args:
        content: The bytes of the file.
        name: Its name, for the extension only.
        max_pixels: Pictures whose header claims more are not decoded.
        large: Entered to decode a picture of more than :data:`LARGE` pixels.
    """
    outline = read_jpeg(content)
    image, bomb = open_picture(content)
    if image is None and outline is None:
        return Diagnosis(codes=("too-large",) if bomb else ("not-an-image",))
    sizes = [(outline.width, outline.height)] if outline else []
    # Two decoders may read two sizes out of one hostile header: the larger counts.
    sizes += [image.size] if image else []
    pixels = max(width * height for width, height in sizes)
    allowed = not bomb and pixels <= max_pixels and (outline is None or outline.scans <= MAX_SCANS)
    # Before decoding, which may change the mode and the frame of the picture.
    header = _read_header(content, image, outline)
    codes = _header_codes(header, name, animated=allowed and _is_animated(image))
    if not allowed:
        return replace(header, codes=("too-large", *codes))
    with large if large is not None and pixels > LARGE else contextlib.nullcontext():
        found = _ask_decoders(content, image, header)
    codes = _decoding_codes(header, found) + codes
    return replace(header, pillow=found.pillow, opencv=found.opencv, phash=found.phash, codes=tuple(codes))


@dataclass(frozen=True, slots=True)
class JpegOutline:
    """What the markers of a JPEG say, read without a decoder (ITU-T T.81, annex B)."""

    width: int
    height: int
    bits: int
    progressive: bool
    scans: int
    complete: bool


_STANDALONE: Final = frozenset({0x01, *range(0xD0, 0xD9)})
"""Second bytes of markers without a segment: TEM, RST0 to RST7, SOI."""
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Second bytes of SOF0 to SOF15; the three left out are DHT, JPG and DAC."""
_START_OF_SCAN: Final = 0xDA
_PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_MAX_SEGMENTS: Final = 10_000
"""Segments the header of a JPEG may have; a profile of colours takes 255, a preview of 4 MB 64."""


def read_jpeg(content: bytes) -> JpegOutline | None:
    """Read the markers of a JPEG.

    ``complete`` says whether the marker of the end (EOI) follows the first scan: within coded pixels FF is always
    followed by 00 or a restart, so it cannot stand there by chance, and a preview in the header does not count.

    Returns:
        None when it is no JPEG, or its first scan is not preceded by a frame of at least one pixel.
    """
    if not content.startswith(b"\xff\xd8"):
        return None
    place, frames = 2, []
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(content, place)
        if marker is None:
            return None
        code, place = marker[1][0], marker.end()
        if code == _START_OF_SCAN:
            break
        if code in _FRAMES:
            segment = content[place : place + 7].ljust(7, b"\0")
            height, width = int.from_bytes(segment[3:5], "big"), int.from_bytes(segment[5:7], "big")
            frames.append((width, height, segment[2], code in _PROGRESSIVE))
        if code not in _STANDALONE:
            place += max(2, int.from_bytes(content[place : place + 2], "big"))
    else:
        return None
    if not frames:
        return None
    width, height, bits, progressive = max(frames, key=lambda frame: frame[0] * frame[1])
    if not width * height:
        return None
    return JpegOutline(
        width=width,
        height=height,
        bits=bits,
        progressive=progressive,
        scans=1 + content.count(b"\xff\xda", place),
        complete=content.find(b"\xff\xd9", place) >= 0,
    )


def open_picture(content: bytes) -> tuple[Image.Image | None, bool]:
    """The picture, header read and no more, if it has a format that is looked at; and whether it is far too large."""
    try:
        with quiet:
            return Image.open(io.BytesIO(content), formats=picture_formats()), False
    except Image.DecompressionBombError:
        return None, True
    except Exception:  # noqa: BLE001  # a hostile header can raise anything in a decoder plug-in
        return None, False


def _read_header(content: bytes, image: Image.Image | None, outline: JpegOutline | None) -> Diagnosis:
    if image is None:
        assert outline is not None
        header = Diagnosis(format="JPEG", width=outline.width, height=outline.height)
    else:
        with quiet:
            header = Diagnosis(
                format=image.format or "",
                mode=image.mode,
                width=image.width,
                height=image.height,
                orientation=orientation_of(image),
                bits=_bits(image, content),
                complete=_is_complete(image, content),
            )
    if outline is None:
        return header
    return replace(header, bits=outline.bits, progressive=outline.progressive, complete=outline.complete)


def _is_animated(image: Image.Image | None) -> bool:
    try:
        with quiet:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # noqa: BLE001  # some plug-ins look for the second frame only now, and find anything
        return False


def _bits(image: Image.Image, content: bytes) -> int:
    if image.format == "PNG":
        return content[24]  # of the chunk IHDR (PNG, 11.2.2), which Pillow has read
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        told = image.tag_v2.get(_BITS_PER_SAMPLE, 1)
        # A hostile tag may hold anything, such as text.
        numbers = [bits for bits in (told if isinstance(told, tuple) else (told,)) if isinstance(bits, int)]
        return max(numbers, default=1)
    return 16 if image.mode.startswith("I;16") else _BITS_OF_MODE.get(image.mode, 8)


def _is_complete(image: Image.Image, content: bytes) -> bool | None:
    kind = image.format
    if kind == "PNG":
        return _png_is_complete(content)
    if kind == "GIF":
        return content.rstrip(b"\0").endswith(b";")  # the trailer (GIF89a, 27)
    if kind == "WEBP":
        return int.from_bytes(content[4:8], "little") + 8 <= len(content)  # the size of the RIFF chunk
    return None


def _png_is_complete(content: bytes) -> bool:
    """Whether every chunk lies inside the file, up to the last one (PNG, 5.3)."""
    place = 8  # after the signature
    for _ in range(len(content) // 12):  # a chunk has 12 bytes and its content
        length = int.from_bytes(content[place : place + 4], "big")
        if place + 12 + length > len(content):
            return False
        if content[place + 4 : place + 8] == b"IEND":
            return True
        place += 12 + length
    return False


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What the decoders say; ``strict`` is None where that one was not asked."""

    pillow: bool
    opencv: bool
    strict: bool | None = None
    phash: int | None = None


def _ask_decoders(content: bytes, image: Image.Image | None, header: Diagnosis) -> _Verdict:
    is_jpeg = header.progressive is not None
    # OpenCV makes room for as much as a chunk of a PNG claims to hold, up to 4 GB, before it reads it.
    cut_png = header.format == "PNG" and not header.complete
    opencv = not cut_png and _opencv_decodes(content, is_jpeg=is_jpeg)
    if image is None:
        return _Verdict(pillow=False, opencv=opencv)
    try:
        with quiet:
            grey = _small_grey(image, header.orientation or 1)
    except Exception:  # noqa: BLE001  # damaged pixels can raise anything in a decoder plug-in
        return _Verdict(pillow=False, opencv=opencv)
    # That one makes no grey of CMYK.
    strict = _strictly_decodes(content) if is_jpeg and header.mode in {"RGB", "L"} else None
    return _Verdict(pillow=True, opencv=opencv, strict=strict, phash=perceptual_hash(grey))


def _opencv_decodes(content: bytes, *, is_jpeg: bool) -> bool:
    # For other formats the reduced modes decode at full size all the same, then shrink.
    mode = cv2.IMREAD_REDUCED_GRAYSCALE_8 if is_jpeg else cv2.IMREAD_GRAYSCALE
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION) is not None
    except (cv2.error, MemoryError):
        return False


def _strictly_decodes(content: bytes) -> bool:
    """Whether libjpeg-turbo decodes it without a warning."""
    try:
        simplejpeg.decode_jpeg(content, colorspace="GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError:
        return False
    return True


def _small_grey(image: Image.Image, orientation: int) -> NDArray[np.uint8]:
    """Decode to grey, upright, with sides of 64 pixels or a little more where the picture has them."""
    least = 2 * HASH_SIDE
    # libjpeg leaves out the high frequencies of each block, but reads every one of them.
    image.draft("L", (least, least))
    image.load()
    grey = to_eight_bits(image).convert("L")
    grey = grey.reduce((max(1, grey.width // least), max(1, grey.height // least)))
    return np.asarray(turn_upright(grey, orientation))


def to_eight_bits(image: Image.Image) -> Image.Image:
    """A decoded picture with 8 bits a channel; Pillow itself cuts 16-bit grey off at 255 when it converts it."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))


def perceptual_hash(grey: NDArray[np.uint8]) -> int | None:
    """The 64-bit perceptual hash of a grey picture: signs of the low frequencies of its discrete cosine transform.

    All arithmetic is in whole numbers, so that the hash is the same everywhere:

    1. Average to 32 x 32 cells: cell (i, j) covers the rows from i h / 32 to (i + 1) h / 32 and likewise the columns, a
       pixel counts by the area that lies inside, and the average is rounded to a whole number, halves up.
    2. Transform: C[u, v] is the sum over the cells of cell[y, x] T[u, y] T[v, x], where T[u, x] is
       4096 cos((2 x + 1) u pi / 64), rounded to a whole number, for u and v from 0 to 7.
    3. Bit 63 - 8 u - v is 1 when C[u, v] is greater than the median of the 64 coefficients (of 64, the mean of the
       32nd and 33rd in order).

    The method is that of C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, 3.2.1.

    Args:
        grey: uint8 of shape (height, width).

    Returns:
        The hash; None when fewer than 16 of its bits are 1: the picture is plain, and would look like any other.
    """
    height, width = grey.shape
    area = height * width
    sums = _area_sums(_area_sums(grey.astype(np.int64)).T).T
    cells = (2 * sums + area) // (2 * area)
    basis = _basis()
    coefficients = (basis @ cells @ basis.T).ravel()
    ones = coefficients > np.median(coefficients)
    if np.count_nonzero(ones) < _MIN_ONES:
        return None
    return int.from_bytes(np.packbits(ones).tobytes(), "big")


def _area_sums(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cut each row into 32 spans of equal length and add up what lies in them, in units of 1/32 of a sample."""
    count = rows.shape[1]
    whole, part = np.divmod(np.arange(HASH_SIDE + 1) * count, HASH_SIDE)
    before = np.zeros((len(rows), count + 2), np.int64)
    np.cumsum(rows, axis=1, out=before[:, 1:-1])
    before[:, -1] = before[:, -2]
    upto = HASH_SIDE * before[:, whole] + part * (before[:, whole + 1] - before[:, whole])
    spans: NDArray[np.int64] = np.diff(upto, axis=1)
    return spans


@functools.cache
def _basis() -> NDArray[np.int64]:
    frequency, place = np.mgrid[0:_KEPT, 0:HASH_SIDE]
    waves = np.cos((2 * place + 1) * frequency * np.pi / (2 * HASH_SIDE))
    rounded: NDArray[np.int64] = np.rint(4096 * waves).astype(np.int64)
    return rounded


def _header_codes(header: Diagnosis, name: str, *, animated: bool) -> list[str]:
    width, height = header.width or 1, header.height or 1
    rules = {
        "truncated": header.complete is False,
        "wrong-extension": _has_wrong_extension(name, header.format),
        "cmyk": header.mode == "CMYK",
        "rotated": (header.orientation or 1) != 1,
        "animated": animated,
        "deep": (header.bits or 8) > 8,
        "extreme-aspect": max(width, height) > EXTREME_ASPECT * min(width, height),
    }
    return [code for code, holds in rules.items() if holds]


def _has_wrong_extension(name: str, kind: str) -> bool:
    stem, dot, extension = name.rsplit("/", 1)[-1].rpartition(".")
    extension = extension.lower()
    return bool(stem and dot) and extension in _KNOWN_EXTENSIONS and extension not in _EXTENSIONS.get(kind, ())


def _decoding_codes(header: Diagnosis, found: _Verdict) -> list[str]:
    rules = {
        "undecodable": not found.pillow and not found.opencv,
        "decoders-differ": found.pillow is not found.opencv,
        "damaged": found.strict is False and header.complete is not False,
    }
    return [code for code, holds in rules.items() if holds]
