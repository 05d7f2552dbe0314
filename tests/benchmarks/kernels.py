"""Benchmark of what `imgprep shard` does to a picture, on one processor: photographs of a zip, in memory.

- resize: pixels to a short side of 256 with one kernel after another; how close each comes to Pillow's LANCZOS (peak
  signal to noise ratio, before encoding).
- scaled: the same from the JPEG, where libjpeg may leave out detail while it decodes: never, or while two or one times
  the wanted pixels are left.
- chain: decode, resize and encode, as one bare loop and as `prepare_image` does it.
- header: reading the markers of a JPEG.

Contenders take turns, round after round; times are the medians of the rounds, in processor seconds for 1000 pictures.

python tests/benchmarks/kernels.py photos.zip --repeats 3
"""

from __future__ import annotations

import functools
import io
import json
import os
import platform
import statistics
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import click
import cv2
import numpy as np
import PIL
import simplejpeg
from PIL import Image

from imgprep.images import ImageSpec, prepare_image, read_jpeg_header, shrink

Array = np.ndarray[Any, Any]
Size = tuple[int, int]
T = TypeVar("T")

SIDE: Final = 256
QUALITY: Final = 90


def scaled_size(width: int, height: int) -> Size:
    """The size at a short side of 256."""
    short = min(width, height)
    return max(SIDE, round(width * SIDE / short)), max(SIDE, round(height * SIDE / short))


def opencv(interpolation: int) -> Callable[[Array, Size], Array]:
    """One call of ``cv2.resize``."""
    return lambda pixels, size: cv2.resize(pixels, size, interpolation=interpolation)


def prefiltered(interpolation: int) -> Callable[[Array, Size], Array]:
    """A small Gaussian whose width grows with the scale, then interpolation."""

    def resize(pixels: Array, size: Size) -> Array:
        sigma = 0.5 * (pixels.shape[1] / size[0] - 1) + 0.2
        return cv2.resize(cv2.GaussianBlur(pixels, (0, 0), sigma), size, interpolation=interpolation)

    return resize


def doubled(interpolation: int) -> Callable[[Array, Size], Array]:
    """Interpolation to twice the size, then the average of each four pixels."""

    def resize(pixels: Array, size: Size) -> Array:
        double = cv2.resize(pixels, (2 * size[0], 2 * size[1]), interpolation=interpolation)
        return cv2.resize(double, size, interpolation=cv2.INTER_AREA)

    return resize


def pillow(resample: Image.Resampling, gap: float | None = None) -> Callable[[Array, Size], Array]:
    """Pillow's resampler, from an array and back to one."""
    return lambda pixels, size: np.asarray(Image.fromarray(pixels).resize(size, resample, reducing_gap=gap))


KERNELS: Final[Mapping[str, Callable[[Array, Size], Array]]] = {
    "imgprep: Lanczos low-pass, INTER_CUBIC": shrink,
    "cv2 INTER_AREA": opencv(cv2.INTER_AREA),
    "cv2 INTER_LINEAR (aliases)": opencv(cv2.INTER_LINEAR),
    "cv2 INTER_LINEAR_EXACT (aliases)": opencv(cv2.INTER_LINEAR_EXACT),
    "cv2 INTER_CUBIC (aliases)": opencv(cv2.INTER_CUBIC),
    "cv2 Gaussian, INTER_LINEAR": prefiltered(cv2.INTER_LINEAR),
    "cv2 Gaussian, INTER_CUBIC": prefiltered(cv2.INTER_CUBIC),
    "cv2 INTER_LINEAR to twice, INTER_AREA": doubled(cv2.INTER_LINEAR),
    "cv2 INTER_CUBIC to twice, INTER_AREA": doubled(cv2.INTER_CUBIC),
    "Pillow BILINEAR": pillow(Image.Resampling.BILINEAR),
    "Pillow BICUBIC": pillow(Image.Resampling.BICUBIC),
    "Pillow BICUBIC, reducing_gap 2": pillow(Image.Resampling.BICUBIC, 2.0),
    "Pillow LANCZOS": pillow(Image.Resampling.LANCZOS),
}


def decode(content: bytes, gap: float | None = None) -> Array:
    """Decode, by a power of two smaller while ``gap`` times the wanted pixels are left; in full when it is None."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(content, strict=False)
    factor = 1
    while gap is not None and factor < 8 and min(width, height) // (factor * 2) >= gap * SIDE:
        factor *= 2
    limits = {"min_width": -(-width // factor), "min_height": -(-height // factor), "min_factor": factor}
    pixels: Array = simplejpeg.decode_jpeg(content, colorspace="BGR", strict=False, **limits)
    return pixels


def encode(pixels: Array) -> bytes:
    """Write as the kernel does."""
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def area_chain(content: bytes) -> bytes:
    """The chain that the kernel replaced."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(content, strict=False)
    pixels = cv2.resize(decode(content, 1), scaled_size(width, height), interpolation=cv2.INTER_AREA)
    jpeg: bytes = simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorspace="BGR", colorsubsampling="420")
    return jpeg


def bare_chain(content: bytes) -> bytes:
    """The calls of the kernel, and nothing around them."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(content, strict=False)
    return encode(shrink(decode(content, 2), scaled_size(width, height)))


def pillow_chain(content: bytes) -> bytes:
    """The usual way: draft, convert, resize, save."""
    image = Image.open(io.BytesIO(content))
    size = scaled_size(*image.size)
    image.draft("RGB", size)
    buffer = io.BytesIO()
    image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def prepare(content: bytes) -> bytes:
    """The kernel."""
    return prepare_image(content, ImageSpec(size=SIDE, quality=QUALITY)).jpeg


def psnr(pixels: Array, reference: Array) -> float:
    """Peak signal to noise ratio in dB."""
    error = float(((pixels.astype(np.float64) - reference) ** 2).mean())
    return float("inf") if not error else 10 * float(np.log10(255**2 / error))


class Bench:
    """Photographs in memory, and the measurements on them.

    Args:
        path: A zip of JPEGs.
        count: How many of them to take, in the order of their names.
        repeats: Rounds.
    """

    def __init__(self, path: str, count: int, repeats: int) -> None:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpeg", ".jpg")))[:count]
            everything = [archive.read(name) for name in names]
        self.repeats = repeats
        self.sides = [simplejpeg.decode_jpeg_header(content, strict=False)[1::-1] for content in everything]
        self.mean_bytes = round(statistics.mean(map(len, everything)))
        # The others are never shrunk.
        chosen = [place for place, sides in enumerate(self.sides) if min(sides) > SIDE]
        self.contents = [everything[place] for place in chosen]
        self.sizes = [scaled_size(*self.sides[place]) for place in chosen]
        self.pictures = [decode(content) for content in self.contents]

    def describe(self) -> dict[str, Any]:
        """The photographs and the machine."""
        short = [min(sides) for sides in self.sides]
        return {
            "pictures": len(self.sides),
            "above_256": len(self.contents),
            "from_512": sum(side >= 512 for side in short),
            "mean_bytes": self.mean_bytes,
            "mean": [round(statistics.mean(sides)) for sides in zip(*self.sides, strict=True)],
            "median": [round(statistics.median(sides)) for sides in zip(*self.sides, strict=True)],
            "repeats": self.repeats,
            "load": round(os.getloadavg()[0], 2),
            "python": platform.python_version(),
            "opencv": cv2.__version__,
            "pillow": PIL.__version__,
            "simplejpeg": simplejpeg.__version__,
        }

    def resize(self) -> None:
        """One kernel after another."""
        lanczos = KERNELS["Pillow LANCZOS"]
        references = [
            lanczos(one, size).astype(np.float32) for one, size in zip(self.pictures, self.sizes, strict=True)
        ]
        pairs = list(zip(self.pictures, self.sizes, strict=True))
        close = {
            name: quality((kernel(*pair) for pair in pairs), references)
            for name, kernel in KERNELS.items()
            if kernel is not lanczos
        }
        report("resize", self._measure(pairs, {name: _spread(kernel) for name, kernel in KERNELS.items()}), psnr=close)
        gaps = {"in full": None, "2 times are left": 2.0, "1 time is left": 1.0}
        decoders = {name: functools.partial(_decode_and_shrink, gap=gap) for name, gap in gaps.items()}
        coded = list(zip(self.contents, self.sizes, strict=True))
        close = {name: quality(map(decoder, coded), references) for name, decoder in decoders.items()}
        report("scaled", self._measure(coded, decoders), psnr=close)

    def chain(self) -> None:
        """From one JPEG to the next."""
        chains = {"bare loop": bare_chain, "prepare_image": prepare, "INTER_AREA, simplejpeg": area_chain}
        chains["Pillow BICUBIC with draft"] = pillow_chain
        size = {name: round(statistics.mean(map(len, map(chain, self.contents)))) for name, chain in chains.items()}
        report("chain", self._measure(self.contents, chains), mean_bytes=size)
        headers = map(read_jpeg_header, self.contents)
        plain = [one for one, header in zip(self.contents, headers, strict=True) if header and not header.profile]
        del chains["INTER_AREA, simplejpeg"], chains["Pillow BICUBIC with draft"]
        report("chain without colour profiles", self._measure(plain, chains))
        readers: dict[str, Callable[[bytes], object]] = {"read_jpeg_header": read_jpeg_header}
        readers["simplejpeg.decode_jpeg_header"] = simplejpeg.decode_jpeg_header
        readers["PIL.Image.open"] = lambda content: Image.open(io.BytesIO(content))
        report("header", self._measure(self.contents, readers))

    def _measure(self, items: Sequence[T], contenders: Mapping[str, Callable[[T], object]]) -> dict[str, list[float]]:
        """Processor seconds for 1000 items, round by round; the first round warms up and does not count."""
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(1 + self.repeats):
            for name, contender in contenders.items():
                started = time.process_time()
                for item in items:
                    contender(item)
                times[name].append((time.process_time() - started) * 1000 / len(items))
        return {name: rounds[1:] for name, rounds in times.items()}


def _spread(kernel: Callable[[Array, Size], Array]) -> Callable[[tuple[Array, Size]], Array]:
    return lambda pair: kernel(*pair)


def _decode_and_shrink(pair: tuple[bytes, Size], gap: float | None) -> Array:
    return shrink(decode(pair[0], gap), pair[1])


def quality(resized: Iterable[Array], references: Sequence[Array]) -> list[float]:
    """Median and worst PSNR over the pictures."""
    found = [psnr(one, other) for one, other in zip(resized, references, strict=True)]
    return [round(statistics.median(found), 2), round(min(found), 2)]


def report(part: str, times: Mapping[str, Sequence[float]], **more: Mapping[str, Any]) -> None:
    """One line for each contender; ``speed`` is relative to the first one of the same round."""
    first = next(iter(times.values()))
    for name, rounds in times.items():
        speeds = [one / other for one, other in zip(first, rounds, strict=True)]
        line = {"part": part, "name": name, "cpu_s_per_1000": round(statistics.median(rounds), 4)}
        line |= {"range": [round(min(rounds), 4), round(max(rounds), 4)], "speed": round(statistics.median(speeds), 3)}
        click.echo(json.dumps(line | {key: values[name] for key, values in more.items() if name in values}))


@click.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False))
@click.option("--count", type=click.IntRange(min=1), default=300, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
def main(path: str, count: int, repeats: int) -> None:
    """Measure; one JSON object a line."""
    cv2.setNumThreads(1)
    bench = Bench(path, count, repeats)
    click.echo(json.dumps(bench.describe()))
    bench.resize()
    bench.chain()


if __name__ == "__main__":
    main()
