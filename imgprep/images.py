"""Pictures: what a file becomes in a shard, and where its boxes go. What is odd is found by looking, not in a list.

A plain JPEG is known by its markers and never meets Pillow: libjpeg-turbo decodes it, OpenCV shrinks and encodes it.
Everything else (other formats, CMYK, JPEGs with stray bytes in them) goes through Pillow, slower and more patient.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import re
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageCms, UnidentifiedImageError

from imgprep.errors import ImageError, SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    """uint8 of shape (height, width, 3), blue first, as OpenCV has it."""

MAX_PIXELS: Final = 100_000_000
"""Pixels a picture may have. The largest in ImageNet's validation has 18 million; 100 million take 300 MB as RGB; while
a picture with transparency is made one of these, up to 1.6 GB."""

_ORIENTATION: Final = 0x0112
"""EXIF tag of the orientation; 1 is upright (CIPA DC-008, 4.6.5)."""

_MAX_JPEG_SIDE: Final = 65_500
"""Pixels a side may have for libjpeg to write it (JPEG_MAX_DIMENSION)."""

_MCU: Final = 16
"""Pixels a side of what 4:2:0 codes at once: two 8 x 8 blocks of luma each way (ITU-T T.81, A.2.4)."""

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


class _Turn(NamedTuple):
    """How to turn a picture upright: swap x and y, then mirror left to right, then top to bottom."""

    swap: bool
    mirror_x: bool
    mirror_y: bool


_TURNS: Final = {
    1: _Turn(False, False, False),
    2: _Turn(False, True, False),
    3: _Turn(False, True, True),
    4: _Turn(False, False, True),
    5: _Turn(True, False, False),
    6: _Turn(True, True, False),
    7: _Turn(True, True, True),
    8: _Turn(True, False, True),
}
_BACK: Final = {6: 8, 8: 6}
"""The orientation whose turn undoes another's; the others undo themselves."""

FORMATS: Final = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "AVIF")
"""The formats that are read, by Pillow's names. Others that Pillow knows are documents and icons; one of them (EPS)
would start another program."""

_MODES: Final = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LA", "PA", "RGBA", "RGBa"})
_DEEP_MODES: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
"""Grey of more than 8 bits."""
_COLOUR_MODES: Final = frozenset({"L", "RGB", "CMYK"})
"""Those that a colour profile can be about."""

MAX_PROFILE_BYTES: Final = 4 << 20
"""Bytes of a colour profile that is looked at. Profiles of printing presses have up to about 3 MB."""

_SAME_COLOUR: Final = 4
"""Levels of 255 by which a profile may differ from sRGB and still count as sRGB. In 5,445 pictures of ImageNet, those
that cameras call sRGB differ by 0 or 1; by 9 where dark colours have a gamma of 2.2 too; all others by 54 or more."""

_CONTRAST: Final = 128
"""Levels that a profile must leave between its black and its white. One that does not is broken, whatever it says."""

ImageMode = Literal["resize", "original"]
Crop = Literal["none", "center"]


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """What becomes of a picture.

    Attributes:
        images: ``resize`` shrinks pictures to ``size``; ``original`` keeps the bytes of every JPEG.
        size: Pixels of the short side; smaller pictures are never enlarged. Only for ``resize``.
        crop: ``center`` keeps the square in the middle. Only for ``resize``.
        quality: JPEG quality of pictures that are written anew.
        restart_markers: Whether those get a restart marker after each row of blocks, so that a decoder can begin at
            any of them.
    """

    images: ImageMode = "resize"
    size: int = 256
    crop: Crop = "none"
    quality: int = 90
    restart_markers: bool = False

    def __post_init__(self) -> None:
        if self.images not in get_args(ImageMode):
            raise SpecError(f"images must be one of {', '.join(get_args(ImageMode))}, got {self.images!r}")
        if not 8 <= self.size <= 1 << 14:  # from one DCT block to more than any photograph
            raise SpecError(f"size must be from 8 to 16384 pixels, got {self.size}")
        if self.crop not in get_args(Crop):
            raise SpecError(f"crop must be one of {', '.join(get_args(Crop))}, got {self.crop!r}")
        if self.crop != "none" and self.images == "original":
            raise SpecError("crop must be none where pictures keep their bytes", "use images resize")
        if not 1 <= self.quality <= 100:  # the scale of libjpeg
            raise SpecError(f"quality must be from 1 to 100, got {self.quality}")


Content = bytes | memoryview
"""The bytes of a file, or a view of them within those of an archive."""

Box = tuple[float, float, float, float]
"""xmin, ymin, xmax, ymax in pixels, counted from the left and the top edge of a picture."""


class Geometry(NamedTuple):
    """Where the pixels of a source lie in its sample. All pairs are width and height, or x and y.

    Attributes:
        stored: Size of the source, as its pixels are stored.
        orientation: Its EXIF orientation, 1 to 8.
        turned: Whether the sample is upright; False where it keeps the bytes of the source, and its orientation.
        scaled: Size of the whole picture at the scale of the sample.
        offset: Upper left corner of the sample in it.
        size: Size of the sample.
    """

    stored: tuple[int, int]
    orientation: int
    turned: bool
    scaled: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]

    @property
    def upright(self) -> tuple[int, int]:
        """Size of the source after its orientation is applied."""
        width, height = self.stored
        return (height, width) if _TURNS[self.orientation].swap else (width, height)

    @property
    def is_identity(self) -> bool:
        """Whether every pixel stays where it is."""
        untouched = self.orientation == 1 or not self.turned
        return untouched and self.stored == self.scaled == self.size

    def scale_box(self, box: Box, told: tuple[int, int]) -> Box | None:
        """Map a box of an annotation into the sample.

        A box is about the picture whose size the annotation says: where that is the size of the stored pixels it is
        turned with them; a box of any other size is taken as upright and scaled from it.

        Args:
            box: In the pixels of the annotation.
            told: Width and height in the annotation, zeros where it has none: then the source, upright, is meant.

        Returns:
            The part of the box that is inside the sample, rounded to hundredths of a pixel, whole numbers as int; None
            when nothing of it is.
        """
        is_stored = told == self.stored or self._has_stored_shape(told)
        width, height = told if min(told) > 0 else self.upright
        if is_stored and self.turned:
            box, (width, height) = _turn_box(box, (width, height), self.orientation)
        elif not is_stored and not self.turned:
            box, (width, height) = _turn_box(box, (width, height), _BACK.get(self.orientation, self.orientation))
        xmin, xmax = (self._place(x, 0, width) for x in (box[0], box[2]))
        ymin, ymax = (self._place(y, 1, height) for y in (box[1], box[3]))
        return (xmin, ymin, xmax, ymax) if xmin < xmax and ymin < ymax else None

    def _has_stored_shape(self, told: tuple[int, int]) -> bool:
        """Whether a size is upright where the stored picture is, or lies where that lies, unlike the turned one."""
        turned = _TURNS[self.orientation].swap and self.stored[0] != self.stored[1]
        return (
            turned and min(told) > 0 and (told[0] > told[1]) == (self.stored[0] > self.stored[1]) and told[0] != told[1]
        )

    def _place(self, value: float, axis: int, length: int) -> float:
        # Multiplied first: the far edge then comes out exact.
        place = value * self.scaled[axis] / length - self.offset[axis]
        rounded = round(min(max(place, 0), self.size[axis]), 2)
        return int(rounded) if rounded == int(rounded) else rounded


def _turn_box(box: Box, size: tuple[int, int], orientation: int) -> tuple[Box, tuple[int, int]]:
    turn = _TURNS[orientation]
    (xmin, ymin, xmax, ymax), (width, height) = box, size
    if turn.swap:
        xmin, ymin, xmax, ymax, width, height = ymin, xmin, ymax, xmax, height, width
    if turn.mirror_x:
        xmin, xmax = width - xmax, width - xmin
    if turn.mirror_y:
        ymin, ymax = height - ymax, height - ymin
    return (xmin, ymin, xmax, ymax), (width, height)


class PreparedImage(NamedTuple):
    """A JPEG for a shard.

    Attributes:
        jpeg: Its bytes.
        width: Its width in pixels, as stored.
        height: Likewise.
        unchanged: Whether these are the source's own bytes.
        geometry: Where the pixels of the source went.
    """

    jpeg: Content
    width: int
    height: int
    unchanged: bool
    geometry: Geometry


def prepare_image(content: Content, spec: ImageSpec) -> PreparedImage:
    """Make the JPEG that goes into a shard. Safe to call from many threads; what takes time lets go of the lock.

    ``original`` copies a JPEG as it is, if its header can be read and it ends where a JPEG ends; other formats become
    JPEGs of full size. ``resize`` keeps the bytes of a baseline JPEG in grey or RGB that is upright, small enough and
    in sRGB, when all of it can be decoded. Anything else is decoded, shrunk so that its short side is ``size`` (never
    enlarged), turned upright, cropped, brought to sRGB and written as baseline 4:2:0 JPEG without metadata.

    Args:
        content: The file's bytes, of any of :data:`FORMATS`.
        spec: What to make of it.

    Raises:
        ImageError: It is no picture, it is cut off or damaged, it is larger than :data:`MAX_PIXELS`, or it has a
            pixel format that has no rule.
    """
    header = read_jpeg_header(content)
    if header is None:
        return _prepare_any(content, spec)
    _check_size(header.width, header.height)
    orientation = orientation_of(_open(content)) if header.may_be_turned else 1
    if spec.images == "original":
        if content[-len(_END) :] != _END:
            _check_complete(content, header)
        size = (header.width, header.height)
        return _keep(
            content,
            Geometry(stored=size, orientation=orientation, turned=False, scaled=size, offset=(0, 0), size=size),
        )
    if header.components == _CMYK_COMPONENTS:
        return _prepare_any(content, spec)
    geometry = _plan(header.width, header.height, orientation, spec)
    conversion = _find_conversion(header.profile, "L" if header.components == 1 else "RGB")
    plain = geometry.is_identity and conversion is None and not header.progressive
    if plain and _decodes_strictly(content, header):
        return _keep(content, geometry)
    # Grey with a profile of its own is for Pillow: there are few.
    pixels = None if conversion and header.components == 1 else _decode_jpeg(content, header, geometry)
    if pixels is None:
        return _prepare_any(content, spec)
    return _write(pixels, geometry, conversion, spec)


def _keep(content: Content, geometry: Geometry) -> PreparedImage:
    return PreparedImage(content, *geometry.size, unchanged=True, geometry=geometry)


def _check_size(width: int, height: int) -> None:
    if not width * height:
        raise ImageError(f"{width} x {height} pixels are no picture")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} pixels, more than the limit of {MAX_PIXELS:,}")


def _plan(width: int, height: int, orientation: int, spec: ImageSpec) -> Geometry:
    """Decide where the pixels of a picture that is written anew go."""
    stored = (width, height)
    if _TURNS[orientation].swap:
        width, height = height, width
    short = min(width, height)
    limit = min(short, spec.size) if spec.images == "resize" else short
    # Equal sides stay equal, and no side vanishes, whatever the rounding.
    scaled = size = (max(limit, round(width * limit / short)), max(limit, round(height * limit / short)))
    offset = (0, 0)
    if spec.crop == "center":
        size = (limit, limit)
        offset = ((scaled[0] - limit) // 2, (scaled[1] - limit) // 2)
    if max(scaled) > _MAX_JPEG_SIDE:
        raise ImageError(f"{scaled[0]} x {scaled[1]} pixels, more than a JPEG can have on one side")
    return Geometry(stored=stored, orientation=orientation, turned=True, scaled=scaled, offset=offset, size=size)


_START: Final = b"\xff\xd8\xff"
_END: Final = b"\xff\xd9"
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_SCAN = re.compile(rb"\xff\xda")
_MAX_SCANS: Final = 1_000
"""Scans a picture may have, each of which is as long a loop over its pixels; programs write about ten."""

_MAX_SEGMENTS: Final = 1_000
"""Segments the header of a JPEG may have: a profile of 4 MB takes 65, and each is a step of a loop."""

_FRAME_8_BIT: Final = frozenset({0xC0, 0xC1, 0xC2})
"""Second bytes of the markers of frames that every reader knows: baseline, extended and progressive, Huffman coding."""
_PROGRESSIVE: Final = 0xC2
_TABLES: Final = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
"""Second bytes of the other markers a header may have: DHT, DQT, DRI, COM, APP0 to APP15."""
_APP1: Final = 0xE1
_APP2: Final = 0xE2
_ICC: Final = b"ICC_PROFILE\0"
_CMYK_COMPONENTS: Final = 4
_ORIENTATION_HINT = re.compile(rb"\x01\x12|\x12\x01|Orientation")
"""The tag in either order of bytes, or its name in XMP."""


class JpegHeader(NamedTuple):
    """What the markers of a JPEG say.

    Attributes:
        width: Pixels, as stored.
        height: Likewise.
        components: 1 is grey, 3 is colour, 4 is CMYK.
        progressive: Whether it is coded in several scans.
        may_be_turned: Whether its metadata may hold an orientation other than upright.
        profile: Its ICC profile; empty when it has none or not all of it.
    """

    width: int
    height: int
    components: int
    progressive: bool
    may_be_turned: bool
    profile: bytes


def read_jpeg_header(content: Content) -> JpegHeader | None:
    """Read the markers of a JPEG up to the one that tells its size (ITU-T T.81, annex B), without a decoder.

    What is about the whole picture comes before it: Exif 2.32, 4.5.4, and ICC.1:2022, B.4, put theirs at the beginning.

    Returns:
        None when it is no JPEG, or one that has to be looked at by a decoder: lossless, of 12 bits, with arithmetic
        coding, or with a damaged header.
    """
    if content[: len(_START)] != _START:
        return None
    place = 2
    turned = False
    chunks: list[bytes] = []
    for _ in range(_MAX_SEGMENTS):
        # Stray bytes may stand before a marker, or fill bytes.
        marker = _MARKER.search(content, place)
        if marker is None or marker.end() + 2 > len(content):
            return None
        place = marker.end()
        code, length = content[place - 1], content[place] << 8 | content[place + 1]
        if length < 2:
            return None
        if code in _FRAME_8_BIT:
            # Without a scan there is nothing to decode.
            if code == _PROGRESSIVE and len(_SCAN.findall(content, place)) > _MAX_SCANS:
                raise ImageError(f"more than {_MAX_SCANS} scans")
            frame = bytes(content[place : place + 8]) if _SCAN.search(content, place) else b""
            return _summarise(frame, progressive=code == _PROGRESSIVE, turned=turned, chunks=chunks)
        if code == _APP1:
            turned = turned or _ORIENTATION_HINT.search(content, place, place + length) is not None
        elif code == _APP2 and content[place + 2 : place + 2 + len(_ICC)] == _ICC:
            chunks.append(bytes(content[place + 2 + len(_ICC) : place + length]))
        elif code not in _TABLES:
            return None
        place += length
    return None


def _summarise(frame: bytes, *, progressive: bool, turned: bool, chunks: list[bytes]) -> JpegHeader | None:
    if len(frame) < 8:
        return None
    height, width = int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[5:7], "big")
    bits, components = frame[2], frame[7]
    if bits != 8 or components not in (1, 3, _CMYK_COMPONENTS) or not width * height:
        return None
    return JpegHeader(width, height, components, progressive, turned, _join_profile(chunks))


def _join_profile(chunks: list[bytes]) -> bytes:
    """The parts of an ICC profile in their order; each begins with its number and their count (ICC.1:2022, B.4)."""
    chunks = sorted(chunks)
    count = len(chunks)
    complete = count < 256 and [chunk[:2] for chunk in chunks] == [bytes((n, count)) for n in range(1, count + 1)]
    return b"".join(chunk[2:] for chunk in chunks) if complete else b""


def _decodes_strictly(content: Content, header: JpegHeader) -> bool:
    """Whether libjpeg-turbo reads all coded bytes without a warning; it leaves out what follows them."""
    colours = "CMYK" if header.components == _CMYK_COMPONENTS else "GRAY"
    try:
        # The smallest scale has one pixel for each block, for which the whole block is read.
        simplejpeg.decode_jpeg(content, colorspace=colours, min_height=1, min_width=1, min_factor=8)
    except ValueError:
        return False
    return True


def _check_complete(content: Content, header: JpegHeader) -> None:
    """Raise unless all of it can be decoded, if need be by the more patient decoder."""
    if not _decodes_strictly(content, header):
        _load(_open(content))


def _decode_jpeg(content: Content, header: JpegHeader, geometry: Geometry) -> Pixels | None:
    """Decode, by a power of two smaller as long as twice the pixels that are wanted are left.

    Returns:
        None where the strict decoder objects.
    """
    short, wanted = min(geometry.stored), min(geometry.scaled)
    factor = 1
    while factor < 8 and short // (factor * 2) >= 2 * wanted:  # the DCT block has 8 x 8 pixels
        factor *= 2
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            content,
            colorspace="BGR",
            min_width=-(-header.width // factor),
            min_height=-(-header.height // factor),
            min_factor=factor,
        )
    except ValueError:
        return None
    return pixels


def _prepare_any(content: Content, spec: ImageSpec) -> PreparedImage:
    """Prepare what Pillow has to decode."""
    image = _open(content)
    with image:
        _check_size(*image.size)
        if image.mode not in _MODES | _DEEP_MODES:
            raise ImageError(f"pixel format {image.mode} ({image.format}) is not handled")
        orientation = orientation_of(image)
        geometry = _plan(*image.size, orientation, spec)
        _load(image)
        try:
            with quiet:
                image, conversion = _to_rgb(image)
                pixels: Pixels = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR)  # type: ignore[assignment]
        except ImageError:
            raise
        except Exception as error:  # noqa: BLE001  # hostile palettes and metadata can raise anything
            raise ImageError(f"its colours cannot be read ({type(error).__name__}: {error})") from None
    return _write(pixels, geometry, conversion, spec)


def _to_rgb(image: Image.Image) -> tuple[Image.Image, ImageCms.ImageCmsTransform | None]:
    """Eight bits of RGB on white, and what has yet to be done to bring it to sRGB."""
    profile = image.info.get("icc_profile")
    if image.mode in _DEEP_MODES:
        image = _to_eight_bits(image)
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white.convert("RGB")
    elif image.mode not in _COLOUR_MODES:
        image = image.convert("RGB")
    conversion = _find_conversion(profile, image.mode) if isinstance(profile, bytes) else None
    if image.mode != "RGB" and conversion is not None:
        image, conversion = conversion.apply(image), None
    return image.convert("RGB"), conversion


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8, its transparent level white. Pillow itself cuts it off at 255."""
    samples = np.asarray(image)
    if samples.min() < 0 or samples.max() > 0xFFFF:
        raise ImageError(f"grey levels from {samples.min()} to {samples.max()}, more than 16 bits hold")
    levels = samples.astype(np.uint16)
    levels[levels == image.info.get("transparency", -1)] = 0xFFFF
    return Image.fromarray(cv2.convertScaleAbs(levels, alpha=0xFF / 0xFFFF))


def _find_conversion(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What brings pixels with an ICC profile to sRGB; None where nothing does or nothing need be done."""
    return _conversion(profile, mode) if 0 < len(profile) <= MAX_PROFILE_BYTES else None


@functools.lru_cache(maxsize=32)
def _conversion(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Compare what a profile says of some colours with what sRGB says of them."""
    try:
        with quiet:
            transform = ImageCms.buildTransform(
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                mode,
                "RGB",
                ImageCms.Intent.RELATIVE_COLORIMETRIC,
                ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
            channels = len(Image.new(mode, (1, 1)).getbands())
            steps = np.linspace(0, 255, 5 if mode == "CMYK" else 17).astype(np.uint8)
            grid = np.stack(np.meshgrid(*[steps] * channels, indexing="ij"), axis=-1).reshape(-1, channels)
            image = Image.frombytes(mode, (len(grid), 1), grid.tobytes())
            seen = np.asarray(transform.apply(image))[0].astype(int)
    except Exception:  # noqa: BLE001  # a profile that is broken, or of another kind of pixels, is none
        return None
    contrast = seen[-1].mean() - seen[0].mean()
    # Of ink, none is white.
    if (-contrast if mode == "CMYK" else contrast) < _CONTRAST:
        return None
    if mode != "CMYK" and np.abs(seen - grid).max() <= _SAME_COLOUR:
        return None
    return transform


def _write(
    pixels: Pixels, geometry: Geometry, conversion: ImageCms.ImageCmsTransform | None, spec: ImageSpec
) -> PreparedImage:
    """Shrink, turn, crop, convert and encode."""
    turn = _TURNS[geometry.orientation]
    width, height = geometry.scaled
    pixels = shrink(pixels, (height, width) if turn.swap else (width, height))
    if turn.swap:
        pixels = pixels.transpose(1, 0, 2)
    pixels = pixels[:: -1 if turn.mirror_y else 1, :: -1 if turn.mirror_x else 1]
    (left, top), (width, height) = geometry.offset, geometry.size
    pixels = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    if conversion is not None:
        image = Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
        pixels = cv2.cvtColor(np.asarray(conversion.apply(image)), cv2.COLOR_RGB2BGR)  # type: ignore[assignment]
    return PreparedImage(_encode(pixels, spec), width, height, unchanged=False, geometry=geometry)


def _encode(pixels: Pixels, spec: ImageSpec) -> bytes:
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        spec.quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    ]
    if spec.restart_markers:
        options += [cv2.IMWRITE_JPEG_RST_INTERVAL, -(-pixels.shape[1] // _MCU)]
    done, jpeg = cv2.imencode(".jpg", pixels, options)
    if not done:
        raise ImageError(f"{pixels.shape[1]} x {pixels.shape[0]} pixels cannot be written as JPEG")
    return jpeg.tobytes()


_LOBES: Final = 3
"""Lobes of the Lanczos kernel on each side."""
_STEPS: Final = 128
"""Weights of the kernel are whole numbers of this part. A sum of products of two of them with a sample then fits into
the 24 bits of a float, so the order of additions does not matter, and every processor finds the same pixels."""
_MAX_SCALE: Final = 4
"""How much a picture is shrunk by Lanczos; what is more than that is averaged before, to twice the size wanted."""


def shrink(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Shrink with antialiasing: a Lanczos low-pass on the pixels of the source, then cubic interpolation between them.

    Sampling the kernel once a source pixel, not once an output pixel, makes it the same for all pixels, so it runs as a
    separable convolution, several times as fast as a resampler of the same quality (ADR 0009).

    Args:
        pixels: To shrink; a picture that has the size is returned as it is.
        size: Width and height to shrink to, neither above those of the picture.
    """
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    if min(width / size[0], height / size[1]) > _MAX_SCALE:
        width, height = 2 * size[0], 2 * size[1]
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    low = cv2.sepFilter2D(
        pixels, -1, _lanczos(width / size[0]), _lanczos(height / size[1]), borderType=cv2.BORDER_REPLICATE
    )
    return cv2.resize(low, size, interpolation=cv2.INTER_CUBIC)  # type: ignore[return-value]


@functools.lru_cache(maxsize=1024)
def _lanczos(scale: float) -> NDArray[np.float32]:
    """Weights of the Lanczos kernel for a scale, at whole pixels: sinc(x) sinc(x / 3) at x = k / scale, sum 1."""
    reach = math.ceil(_LOBES * scale) - 1
    places = np.arange(-reach, reach + 1) / scale
    weights = np.sinc(places) * np.sinc(places / _LOBES)
    weights = np.rint(weights * (_STEPS / weights.sum()))
    weights[reach] += _STEPS - weights.sum()
    exact: NDArray[np.float32] = (weights / _STEPS).astype(np.float32)
    return exact


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


def _open(content: Content) -> Image.Image:
    """Read the header only: the picture, not yet decoded."""
    try:
        with quiet:
            return Image.open(io.BytesIO(content), formats=picture_formats())
    except UnidentifiedImageError:
        what = "an empty file" if not content else f"not a picture (it starts with {content[:8]!r})"
        raise ImageError(what) from None
    except Image.DecompressionBombError:
        raise ImageError(f"its header claims more pixels than the limit of {MAX_PIXELS:,}") from None
    except Exception as error:  # noqa: BLE001  # a hostile header can raise anything in a decoder plug-in
        raise ImageError(f"its header cannot be read ({type(error).__name__}: {error})") from None


def _load(image: Image.Image) -> None:
    """Decode; of an animation, the first frame."""
    try:
        with quiet:
            image.load()
    except Exception as error:  # noqa: BLE001  # damaged pixels can raise anything in a decoder plug-in
        raise ImageError(f"it cannot be decoded ({type(error).__name__}: {error})") from None


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of a picture, 1 to 8; 1, which is upright, where it says none or one that does not exist."""
    try:
        with quiet:
            value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  # broken EXIF is common in ImageNet and says nothing about the pixels
        return 1
    return int(value) if value in _UPRIGHT else 1


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as it is to be seen, decoded if it was not; ``orientation`` is as from :func:`orientation_of`."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
