"""A small archive laid out exactly like Kaggle's ImageNet CLS-LOC archive, drawn instead of photographed.

A :class:`ToySpec` decides everything in it: equal specs give equal bytes under equal versions of the drawing and JPEG
libraries. Each picture takes its random numbers from (seed, split, class, number), so a toy with more pictures a class
holds those of a toy with fewer, byte for byte. Another number of classes moves the odd files and the val names.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np
from PIL import Image

from imgprep.errors import OutputExistsError, SpecError
from imgprep.files import atomic_write, staged_folder
from imgprep.testing.drawing import draw

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from imgprep.testing.drawing import Box, Pixels

_SYNSETS: Final = (
    ("disc", "disc, filled circle"),
    ("ring", "ring, annulus"),
    (None, "cone"),
    ("square", "square"),
    ("triangle", "triangle, trigon"),
    ("cross", "cross, plus sign"),
    (None, "knot, trefoil knot"),
    ("star", "star, pentagram"),
    ("stripes", "stripes, bars"),
    ("checkerboard", "checkerboard, chequerboard, chess board"),
    ("crescent", "crescent, half-moon"),
    ("arrow", "arrow"),
    ("ellipse", "ellipse, oval"),
    ("hexagon", "hexagon"),
    ("zigzag", "zigzag, zig-zag line"),
    ("grid", "grid, lattice"),
    ("spiral", "spiral, coil"),
    ("heart", "heart"),
)
"""Shape (None where the class has no picture) and names; the wnid is n90000001 onwards, by place."""

_DRAWN: Final = tuple((f"n{90000001 + place}", shape) for place, (shape, _) in enumerate(_SYNSETS) if shape is not None)

TRUNCATED: Final = "JPEG cut at 60 % of its bytes"
EMPTY: Final = "file of zero bytes"
GREYSCALE: Final = "greyscale JPEG"
CMYK: Final = "CMYK JPEG"
PNG: Final = "PNG named .JPEG"
PROGRESSIVE: Final = "progressive JPEG"
ORIENTED: Final = "JPEG with EXIF orientation 6"

ODD_KINDS: Final = (TRUNCATED, EMPTY, GREYSCALE, CMYK, PNG, PROGRESSIVE, ORIENTED)
"""What odd files there are; the j-th goes to class j modulo the number of classes: the first two never share one."""

UNDECODABLE: Final = frozenset({TRUNCATED, EMPTY})
"""The odd kinds that no decoder can make a whole picture of."""

SHORT_SHARE: Final = 0.6
"""Share of ``per_class`` that a short class gets."""

_DATA: Final = "ILSVRC/Data/CLS-LOC"
_ANNOTATIONS: Final = "ILSVRC/Annotations/CLS-LOC"
_SETS: Final = "ILSVRC/ImageSets/CLS-LOC"
_TRAIN, _VAL, _TEST, _ROWS = range(4)
_QUALITY: Final = 90
_LARGEST_SIDE: Final = 1024
_SMALLEST_SIDE: Final = 32
_STAMP: Final = (2012, 1, 1, 0, 0, 0)
_STAMP_SECONDS: Final = 1325376000
_FILE_MODE: Final = 0o644


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SpecError(f"{name} must be from {low} to {high}, not {value}")


@dataclass(frozen=True, kw_only=True)
class ToySpec:
    """What a toy archive should hold.

    Args:
        classes: Classes that have pictures, 1 to 16. The class list names two more that have none.
        per_class: Train pictures in each class.
        short_classes: How many of the last classes get only 60 % of ``per_class``.
        val_per_class: Val pictures of each class.
        test: Test pictures, without labels.
        seed: Where all random numbers start.
        min_side: Smallest width and height of a picture, in pixels.
        max_side: Largest width and height of a picture, in pixels.
        boxed_fraction: Share of the train pictures that have an XML file, 0 to 1. All val pictures have one.
        odd_files: Make seven train pictures odd, each in its own way, as a few in ImageNet are.

    Raises:
        SpecError: A value breaks its rule.
    """

    classes: int = 12
    per_class: int = 80
    short_classes: int = 1
    val_per_class: int = 20
    test: int = 10
    seed: int = 0
    min_side: int = 80
    max_side: int = 160
    boxed_fraction: float = 0.5
    odd_files: bool = True

    def __post_init__(self) -> None:
        _between("classes", self.classes, 1, len(_DRAWN))
        _between("per_class", self.per_class, 1, 100_000)
        _between("short_classes", self.short_classes, 0, self.classes)
        _between("val_per_class", self.val_per_class, 0, 100_000)
        _between("test", self.test, 0, 1_000_000)
        _between("seed", self.seed, 0, 2**63 - 1)
        _between("min_side", self.min_side, _SMALLEST_SIDE, _LARGEST_SIDE)
        _between("max_side", self.max_side, self.min_side, _LARGEST_SIDE)
        _between("boxed_fraction", self.boxed_fraction, 0, 1)
        if self.odd_files:
            if self.classes < 2:
                raise SpecError(
                    f"odd_files needs classes of at least 2, not {self.classes}", "raise classes or set odd_files=False"
                )
            for place, count in enumerate(self.train_counts):
                odd = len(range(place, len(ODD_KINDS), self.classes))
                if count < odd + 1:
                    raise SpecError(
                        f"odd_files needs {odd + 1} or more train pictures in class number {place + 1}, not {count}",
                        "raise per_class or classes, or set odd_files=False",
                    )

    @property
    def train_counts(self) -> tuple[int, ...]:
        """Train pictures of each class that has any, in class order."""
        short = max(1, round(self.per_class * SHORT_SHARE))
        return (self.per_class,) * (self.classes - self.short_classes) + (short,) * self.short_classes


@dataclass(frozen=True, kw_only=True)
class ToyListing:
    """What a toy archive holds.

    Args:
        members: Files in the archive.
        train: Train pictures, odd ones included.
        boxed: Train pictures that have an XML file.
        val: Val pictures.
        test: Test pictures.
        odd: Key of each odd train picture and what is odd about it, one of :data:`ODD_KINDS`.
        wnids: The classes that have pictures, in class order.
        short_wnids: Those of them with fewer train pictures than asked for.
        seed: The spec's seed.
    """

    members: int
    train: int
    boxed: int
    val: int
    test: int
    odd: dict[str, str]
    wnids: tuple[str, ...]
    short_wnids: tuple[str, ...]
    seed: int

    @property
    def undecodable(self) -> tuple[str, ...]:
        """Keys of the odd pictures that cannot be decoded whole, sorted."""
        return tuple(sorted(key for key, kind in self.odd.items() if kind in UNDECODABLE))


def write_toy_imagenet(path: Path, spec: ToySpec = ToySpec()) -> ToyListing:
    """Write a toy archive laid out like Kaggle's ImageNet CLS-LOC archive.

    Args:
        path: ``*.zip`` (pictures stored, text deflated), ``*.tar`` (plain ustar) or, without a suffix, a folder. Its
            parents are made. It appears only when whole; a zip or tar that is there is replaced.
        spec: What it should hold.

    Returns:
        What it holds.

    Raises:
        SpecError: ``path`` has another suffix.
        OutputExistsError: ``path`` is a folder that is not empty.
    """
    is_folder = path.is_dir() or not path.suffix
    if not is_folder and path.suffix not in {".zip", ".tar"}:
        raise SpecError(f"a toy archive ends in .zip, in .tar or in no suffix (a folder), not in {path.suffix}")
    if is_folder and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputExistsError(f"{path} exists and is not an empty folder", "choose another path or empty it")
    archive = _Archive(spec)
    archive.fill()
    members = sorted(archive.members.items())
    if is_folder:
        _write_folder(path, members)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        (_write_zip if path.suffix == ".zip" else _write_tar)(path, members)
    return archive.listing()


@dataclass
class _Archive:
    spec: ToySpec
    members: dict[str, bytes] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)
    train: list[str] = field(default_factory=list)
    boxed: dict[str, str] = field(default_factory=dict)
    val: dict[str, str] = field(default_factory=dict)
    test: list[str] = field(default_factory=list)

    def fill(self) -> None:
        for place, count in enumerate(self.spec.train_counts):
            for number in range(count):
                self._add_train(place, number)
        for number in range(self.spec.val_per_class):
            # Each round holds every class once, in its own order: more rounds leave earlier names alone.
            order = self._rng(_VAL, self.spec.classes, number).permutation(self.spec.classes)
            for at, place in enumerate(order):
                self._add_val(int(place), number, number * self.spec.classes + at + 1)
        for number in range(self.spec.test):
            rng = self._rng(_TEST, 0, number)
            pixels, _ = self._draw(int(rng.integers(self.spec.classes)), rng)
            key = f"ILSVRC2012_test_{number + 1:08d}"
            self.members[f"{_DATA}/test/{key}.JPEG"] = _encode(pixels, None)
            self.test.append(key)
        self._add_text()

    def listing(self) -> ToyListing:
        wnids = tuple(wnid for wnid, _ in _DRAWN[: self.spec.classes])
        return ToyListing(
            members=len(self.members),
            train=len(self.train),
            boxed=len(self.boxed),
            val=len(self.val),
            test=len(self.test),
            odd=self.odd,
            wnids=wnids,
            short_wnids=wnids[self.spec.classes - self.spec.short_classes :],
            seed=self.spec.seed,
        )

    def _rng(self, split: int, place: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.spec.seed, split, place, number]))

    def _draw(self, place: int, rng: np.random.Generator) -> tuple[Pixels, list[Box]]:
        return draw(_DRAWN[place][1], rng, min_side=self.spec.min_side, max_side=self.spec.max_side)

    def _add_train(self, place: int, number: int) -> None:
        wnid = _DRAWN[place][0]
        # Numbers have gaps and no padding, as real ones: their order as text is not their order as numbers.
        key = f"{wnid}_{7 * number + place + 2}"
        kind = None
        if self.spec.odd_files and number and (number - 1) * self.spec.classes + place < len(ODD_KINDS):
            kind = self.odd[key] = ODD_KINDS[(number - 1) * self.spec.classes + place]
        pixels, boxes = self._draw(place, self._rng(_TRAIN, place, number))
        self.members[f"{_DATA}/train/{wnid}/{key}.JPEG"] = _encode(pixels, kind)
        self.train.append(key)
        # Multiples of the golden ratio spread evenly over 0..1, few or many: any toy comes close to the share.
        if (number * 0.6180339887498949 + place * 0.37) % 1 < self.spec.boxed_fraction:
            self.members[f"{_ANNOTATIONS}/train/{wnid}/{key}.xml"] = _xml(wnid, key, wnid, pixels, boxes)
            self.boxed[key] = _prediction(wnid, boxes)

    def _add_val(self, place: int, number: int, name: int) -> None:
        wnid = _DRAWN[place][0]
        key = f"ILSVRC2012_val_{name:08d}"
        pixels, boxes = self._draw(place, self._rng(_VAL, place, number))
        self.members[f"{_DATA}/val/{key}.JPEG"] = _encode(pixels, None)
        self.members[f"{_ANNOTATIONS}/val/{key}.xml"] = _xml("val", key, wnid, pixels, boxes)
        self.val[key] = _prediction(wnid, boxes)

    def _add_text(self) -> None:
        drawn = {wnid for wnid, _ in _DRAWN[: self.spec.classes]}
        named = [(f"n{90000001 + place}", shape, names) for place, (shape, names) in enumerate(_SYNSETS)]
        train, boxed = sorted(self.train), sorted(self.boxed)
        first = _DRAWN[0][0]
        text = {
            f"{_SETS}/train_cls.txt": _numbered(f"{key[:9]}/{key}" for key in train),
            f"{_SETS}/train_loc.txt": _numbered(f"{key[:9]}/{key}" for key in boxed),
            f"{_SETS}/val.txt": _numbered(self.val),
            f"{_SETS}/test.txt": _numbered(self.test),
            "LOC_synset_mapping.txt": "".join(
                f"{wnid} {names}\n" for wnid, shape, names in named if shape is None or wnid in drawn
            ),
            "LOC_train_solution.csv": self._solution(self.boxed, _TRAIN),
            "LOC_val_solution.csv": self._solution(self.val, _VAL),
            "LOC_sample_submission.csv": _csv((key, f"{first} 0 0 100 100") for key in self.test),
        }
        self.members.update((name, content.encode()) for name, content in text.items())

    def _solution(self, predictions: Mapping[str, str], split: int) -> str:
        rows = sorted(predictions.items())
        order = self._rng(_ROWS, split, 0).permutation(len(rows))
        return _csv(rows[int(at)] for at in order)


def _numbered(names: Iterable[str]) -> str:
    return "".join(f"{name} {line}\n" for line, name in enumerate(names, start=1))


def _csv(rows: Iterable[tuple[str, str]]) -> str:
    return "ImageId,PredictionString\n" + "".join(f"{key},{prediction}\n" for key, prediction in rows)


def _prediction(wnid: str, boxes: list[Box]) -> str:
    # The real file ends every prediction with a blank.
    return "".join(f"{wnid} {' '.join(str(edge) for edge in box)} " for box in boxes)


def _xml(folder: str, key: str, wnid: str, pixels: Pixels, boxes: list[Box]) -> bytes:
    height, width, depth = pixels.shape
    objects = "".join(
        f"\t<object>\n\t\t<name>{wnid}</name>\n\t\t<pose>Unspecified</pose>\n\t\t<truncated>0</truncated>\n"
        f"\t\t<difficult>0</difficult>\n\t\t<bndbox>\n\t\t\t<xmin>{xmin}</xmin>\n\t\t\t<ymin>{ymin}</ymin>\n"
        f"\t\t\t<xmax>{xmax}</xmax>\n\t\t\t<ymax>{ymax}</ymax>\n\t\t</bndbox>\n\t</object>\n"
        for xmin, ymin, xmax, ymax in boxes
    )
    return (
        f"<annotation>\n\t<folder>{folder}</folder>\n\t<filename>{key}</filename>\n"
        "\t<source>\n\t\t<database>ILSVRC_2012</database>\n\t</source>\n"
        f"\t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n\t\t<depth>{depth}</depth>\n\t</size>\n"
        f"\t<segmented>0</segmented>\n{objects}</annotation>"
    ).encode()


def _encode(pixels: Pixels, kind: str | None) -> bytes:
    """A picture file, plain (``None``) or odd as :data:`ODD_KINDS` says. Boxes always count stored pixels."""
    if kind == EMPTY:
        return b""
    if kind in {None, TRUNCATED}:
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
        return content if kind is None else content[: len(content) * 6 // 10]
    image, sink = Image.fromarray(pixels), io.BytesIO()
    if kind == PNG:
        image.save(sink, "PNG")
        return sink.getvalue()
    exif = Image.Exif()
    if kind == ORIENTED:
        exif[0x0112] = 6
    mode = {GREYSCALE: "L", CMYK: "CMYK"}.get(kind or "", "RGB")
    image.convert(mode).save(sink, "JPEG", quality=_QUALITY, progressive=kind == PROGRESSIVE, exif=exif)
    return sink.getvalue()


def _write_zip(path: Path, members: list[tuple[str, bytes]]) -> None:
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name, _STAMP)
            info.create_system = 3
            info.external_attr = _FILE_MODE << 16
            info.compress_type = zipfile.ZIP_STORED if name.endswith(".JPEG") else zipfile.ZIP_DEFLATED
            archive.writestr(info, content)


def _write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with atomic_write(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(content), _STAMP_SECONDS, _FILE_MODE
            archive.addfile(info, io.BytesIO(content))


def _write_folder(path: Path, members: list[tuple[str, bytes]]) -> None:
    with staged_folder(path) as staging:
        for name, content in members:
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
