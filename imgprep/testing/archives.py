"""ImageNet's archive at full scale, made up on demand: two million members and 167 GB that take no disk.

:class:`VirtualImagenet` answers positioned reads as a real zip64 archive of the Kaggle layout would. Everything in it
follows from a :class:`VirtualSpec`, so any byte can be computed when it is asked for: offsets, sizes and CRCs are kept
in arrays, pictures come from a small pool, and the directory is written once to an unnamed temporary file.

Three shortcuts make it quick, all of them within the formats. Pictures are a few drawings, each padded by JPEG comments
to several sizes. An annotation starts with a stored deflate block for the words that differ from picture to picture,
and goes on with a compressed one for those that a class and a drawing share. In a folder, members stand in the order of
their numbers, so neighbours have names of one length and their directory records fit an array.
"""

from __future__ import annotations

import math
import os
import struct
import tempfile
import threading
import weakref
import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from imgprep.errors import SpecError
from imgprep.files import atomic_write
from imgprep.testing.drawing import SHAPES, draw

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from imgprep.testing.drawing import Box

_Ints: TypeAlias = NDArray[np.int64]

_DATA: Final = "ILSVRC/Data/CLS-LOC"
_ANNOTATIONS: Final = "ILSVRC/Annotations/CLS-LOC"
_SETS: Final = "ILSVRC/ImageSets/CLS-LOC"

_SHAPES: Final = tuple(SHAPES)
_DRAWINGS: Final = 2
_SIZES: Final = (0.5, 0.62, 0.74, 0.86, 0.98, 1.12, 1.3, 1.88)
"""Sizes of the pictures as multiples of the mean; they average 1."""
_VARIANTS: Final = _DRAWINGS * len(_SIZES)
"""Files a shape has: each drawing of it in each size."""
_QUALITY: Final = 75
_JFIF_END: Final = 20
"""Where the JFIF segment ends that follows the start of image; comments may begin there (ITU-T T.81, B.2.4.5)."""
_MAX_COMMENT: Final = 65_000

_LARGEST_CLASS: Final = 1300
_SMALLEST_CLASS: Final = 732
_TAIL: Final = 29.7
"""Class sizes fall from the largest to the smallest with this power of the rank. It gives 1000 classes ImageNet's
1,281,167 pictures: most have 1300, a few far less."""
_STRIDE: Final = 13
"""Step between the numbers of a class's pictures. They have gaps, and 1 to 5 digits, as ImageNet's."""

_LABELS, _ROWS, _FILES, _COUNTS, _PIXELS = range(5)

# APPNOTE.TXT 4.3: 4.3.7 local header, 4.3.12 directory record, 4.3.14 to 4.3.16 end records, 4.5.3 zip64 field.
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_END64: Final = struct.Struct("<4sQ2H2I4Q")
_LOCATOR: Final = struct.Struct("<4sIQI")
_END: Final = struct.Struct("<4s4H2IH")
_RECORD: Final = (
    ("signature", "S4"),
    ("made_by", "<u2"),
    ("needed", "<u2"),
    ("flags", "<u2"),
    ("method", "<u2"),
    ("time", "<u2"),
    ("date", "<u2"),
    ("crc", "<u4"),
    ("packed", "<u4"),
    ("size", "<u4"),
    ("name_length", "<u2"),
    ("extra_length", "<u2"),
    ("comment_length", "<u2"),
    ("disk", "<u2"),
    ("internal", "<u2"),
    ("external", "<u4"),
    ("offset", "<u4"),
)
_EXTRA64: Final = (("tag", "<u2"), ("tag_length", "<u2"), ("true_offset", "<u8"))
_EXTRA64_BYTES: Final = 12
_RECORD_BYTES: Final = 46
_STORED, _DEFLATED = 0, 8
_VERSION, _VERSION64 = 20, 45
_MADE_BY: Final = 3 << 8 | _VERSION64
_DATE: Final = (2012 - 1980) << 9 | 1 << 5 | 1
_FILE_MODE: Final = 0o100644
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF

_STORED_BLOCK: Final = struct.Struct("<BHH")
_BATCH: Final = 50_000
_CHUNK: Final = 1 << 20


def _between(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise SpecError(f"{name} must be from {low} to {high}, not {value}")


@dataclass(frozen=True, kw_only=True)
class VirtualSpec:
    """What a virtual archive should hold. The defaults are ImageNet's own numbers, as Kaggle hands it out.

    Args:
        classes: Classes, ``n00000001`` onwards.
        train: Train pictures of all classes together; spread so that 1000 classes get ImageNet's 732 to 1300 each.
        val: Val pictures; classes take equal turns.
        test: Test pictures.
        train_xml: Train pictures that have an XML file, spread evenly.
        val_xml: The first so many val pictures have an XML file.
        picture_bytes: Bytes of a picture, on average; there are eight sizes from half to almost twice of it.
        deflate_text: Deflate XML files and lists; else they are stored.
        deflate_pictures: Deflate pictures too; else they are stored.
        seed: Where all random numbers start.

    Raises:
        SpecError: A value breaks its rule.
    """

    classes: int = 1000
    train: int = 1_281_167
    val: int = 50_000
    test: int = 100_000
    train_xml: int = 544_546
    val_xml: int = 50_000
    picture_bytes: int = 116_500
    deflate_text: bool = True
    deflate_pictures: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _between("classes", self.classes, 1, 10_000)
        _between("train", self.train, self.classes, 5_000_000)
        _between("val", self.val, 0, 5_000_000)
        _between("test", self.test, 0, 5_000_000)
        _between("train_xml", self.train_xml, 0, self.train)
        _between("val_xml", self.val_xml, 0, self.val)
        # The pool of pictures is kept in memory: 256 times this.
        _between("picture_bytes", self.picture_bytes, 5_000, 500_000)
        _between("seed", self.seed, 0, 2**63 - 1)

    @property
    def members(self) -> int:
        """Files in the archive: pictures, XML, four lists of image sets and four ``LOC_*`` lists."""
        return self.train + self.val + self.test + self.train_xml + self.val_xml + 8

    @cached_property
    def train_counts(self) -> tuple[int, ...]:
        """Train pictures of each class, in class order; every class has some."""
        rank = np.arange(1, self.classes + 1) / self.classes
        share = _LARGEST_CLASS - (_LARGEST_CLASS - _SMALLEST_CLASS) * rank**_TAIL
        ideal = self.train * share / share.sum()
        counts = np.floor(ideal).astype(np.int64)
        # Largest remainder: the pictures that rounding down left over go to the classes it cut most.
        counts[np.argsort(counts - ideal, kind="stable")[: self.train - int(counts.sum())]] += 1
        return tuple(_rng(self.seed, _COUNTS).permutation(counts).tolist())


class _File(NamedTuple):
    """The content of a member: its size and CRC-32 and the bytes that stand in the archive."""

    size: int
    crc: int
    packed: bytes


class _Body(NamedTuple):
    """What the XML files of one class and drawing share, plain and as it stands in the archive."""

    text: bytes
    packed: bytes


class _Drawing(NamedTuple):
    """A picture of the pool: width, height, the boxes around its shape, and the file in each size."""

    width: int
    height: int
    boxes: list[Box]
    files: list[_File]


class _Split(NamedTuple):
    """The pictures of a split in archive order: number in the name, class, and which file of its shape each is."""

    numbers: _Ints
    places: _Ints
    variants: _Ints

    def take(self, which: slice | _Ints | NDArray[np.bool_]) -> _Split:
        return _Split(self.numbers[which], self.places[which], self.variants[which])


class _Run(NamedTuple):
    """Neighbouring members whose headers are of one length: their names differ in a number of fixed width only."""

    first: int
    members: int
    prefix: str
    width: int
    suffix: str
    method: int
    is_wide: bool = False

    @property
    def name_length(self) -> int:
        return len(self.prefix) + self.width + len(self.suffix)

    @property
    def record_bytes(self) -> int:
        return _RECORD_BYTES + self.name_length + _EXTRA64_BYTES * self.is_wide

    def name(self, number: int) -> str:
        return f"{self.prefix}{number:0{self.width}d}{self.suffix}" if self.width else self.prefix


class _Section(NamedTuple):
    """Members that follow each other: runs, and for each member its number, content, size, packed size and CRC-32."""

    runs: list[_Run]
    numbers: _Ints
    contents: _Ints
    sizes: _Ints
    packed: _Ints
    crcs: _Ints


class VirtualImagenet:
    """An archive laid out as Kaggle's ImageNet bundle that exists only where it is read.

    ``pread`` may be called from several threads at once. Members stand as ``zip -r`` would put them: folder by folder,
    ``Data`` before ``Annotations`` and ``ImageSets``, and the ``LOC_*`` lists last. Equal specs give equal bytes under
    equal versions of the drawing, JPEG and compression libraries.

    Args:
        spec: What it should hold.

    Attributes:
        spec: What it holds.
        size: Bytes of the archive.
        members: Files in it.
        directory_offset: Where its central directory begins.
        directory_bytes: Bytes of its central directory.
    """

    def __init__(self, spec: VirtualSpec = VirtualSpec()) -> None:
        self.spec = spec
        self._text_method = _DEFLATED if spec.deflate_text else _STORED
        pool = _draw_pool(spec)
        self._files = [file for drawing in pool for file in drawing.files]
        self._bodies = [
            _body(spec, pool, place, number) for place in range(spec.classes) for number in range(_DRAWINGS)
        ]
        sections = self._sections(pool)

        starts = np.cumsum([0, *(len(section.numbers) for section in sections)]).tolist()
        runs = [
            run._replace(first=start + run.first)
            for start, section in zip(starts, sections, strict=False)
            for run in section.runs
        ]
        self._numbers, self._contents, self._sizes, self._packed, self._crcs = (
            np.concatenate(column).astype(np.uint32)
            for column in zip(*(section[1:] for section in sections), strict=True)
        )
        name_lengths = np.repeat([run.name_length for run in runs], [run.members for run in runs])
        ends = np.cumsum(_LOCAL.size + name_lengths + self._packed)
        self._offsets = np.concatenate([[0], ends[:-1]])
        self._runs = _split_wide(runs, int(np.searchsorted(self._offsets, _FULL32)))
        self._firsts = np.array([run.first for run in self._runs])

        self.members = spec.members
        self.directory_offset = int(ends[-1])
        self.directory_bytes = sum(run.members * run.record_bytes for run in self._runs)
        self._end_offset = self.directory_offset + self.directory_bytes
        self._end = self._end_records()
        self.size = self._end_offset + len(self._end)
        self._lock = threading.Lock()
        self._directory = -1

    def pread(self, num_bytes: int, offset: int) -> bytes:
        """Read at a position, as :func:`os.pread` would from a file. The first read in the directory writes it all.

        Args:
            num_bytes: How many bytes to read at most.
            offset: Where to begin.

        Returns:
            The bytes; fewer than asked for only where the archive ends.

        Raises:
            SpecError: A number is negative.
        """
        if num_bytes < 0 or offset < 0:
            raise SpecError(f"a read needs a size and an offset of at least 0, not {num_bytes} and {offset}")
        end = min(offset + num_bytes, self.size)
        pieces: list[bytes | memoryview] = []
        while offset < end:
            piece = self._piece(offset, end - offset)
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)

    def write(self, path: Path) -> None:
        """Write the archive to a file, which appears only when whole. Meant for small specs.

        Args:
            path: The file; its folder must exist.
        """
        with atomic_write(path) as file:
            for offset in range(0, self.size, _CHUNK):
                file.write(self.pread(_CHUNK, offset))

    def _piece(self, offset: int, num_bytes: int) -> bytes | memoryview:
        """Bytes from an offset within the archive on, at least one: as many as come from one place."""
        if offset >= self._end_offset:
            return self._end[offset - self._end_offset :][:num_bytes]
        if offset >= self.directory_offset:
            room = min(num_bytes, self._end_offset - offset)
            return os.pread(self._directory_handle(), room, offset - self.directory_offset)
        index = int(np.searchsorted(self._offsets, offset, side="right")) - 1
        run = self._runs[int(np.searchsorted(self._firsts, index, side="right")) - 1]
        name = run.name(int(self._numbers[index]))
        within = offset - int(self._offsets[index])
        header_bytes = _LOCAL.size + len(name)
        if within < header_bytes:
            return (self._local_header(run, index) + name.encode())[within:][:num_bytes]
        return memoryview(self._stored(run, index, name))[within - header_bytes :][:num_bytes]

    def _local_header(self, run: _Run, index: int) -> bytes:
        crc, packed, size = (int(column[index]) for column in (self._crcs, self._packed, self._sizes))
        return _LOCAL.pack(b"PK\3\4", _VERSION, 0, run.method, 0, _DATE, crc, packed, size, run.name_length, 0)

    def _stored(self, run: _Run, index: int, name: str) -> bytes:
        """What stands in the archive for a member, behind its header."""
        content = int(self._contents[index])
        if run.suffix != ".xml":
            return self._files[content].packed
        head = _head(name)
        if run.method == _DEFLATED:
            head = _STORED_BLOCK.pack(0, len(head), len(head) ^ _FULL16) + head
        return head + self._bodies[content].packed

    def _directory_handle(self) -> int:
        with self._lock:
            if self._directory < 0:
                file = tempfile.TemporaryFile(buffering=_CHUNK)  # noqa: SIM115 - it lives as long as the archive
                weakref.finalize(self, file.close)
                for run in self._runs:
                    file.write(self._records(run))
                file.flush()
                self._directory = file.fileno()
            return self._directory

    def _records(self, run: _Run) -> bytes:
        """The directory records of a run."""
        span = slice(run.first, run.first + run.members)
        rows = np.zeros(run.members, dtype=_record_type(run.name_length, is_wide=run.is_wide))
        rows["signature"] = b"PK\1\2"
        rows["made_by"], rows["needed"] = _MADE_BY, _VERSION64 if run.is_wide else _VERSION
        rows["method"], rows["date"], rows["external"] = run.method, _DATE, _FILE_MODE << 16
        rows["crc"], rows["packed"], rows["size"] = self._crcs[span], self._packed[span], self._sizes[span]
        rows["name_length"] = run.name_length
        rows["name"] = np.frombuffer(run.name(0).encode(), dtype=np.uint8)
        digits = self._numbers[span, None] // 10 ** np.arange(run.width)[::-1] % 10
        rows["name"][:, len(run.prefix) : len(run.prefix) + run.width] += digits.astype(np.uint8)
        if run.is_wide:
            rows["offset"] = _FULL32
            rows["extra_length"], rows["tag"], rows["tag_length"] = _EXTRA64_BYTES, 1, _EXTRA64_BYTES - 4
            rows["true_offset"] = self._offsets[span]
        else:
            rows["offset"] = self._offsets[span]
        return rows.tobytes()

    def _end_records(self) -> bytes:
        """The end of the archive. It is a zip64 whatever its size: the plain record points to the other throughout."""
        counts = (self.members, self.members, self.directory_bytes, self.directory_offset)
        return (
            _END64.pack(b"PK\6\6", _END64.size - 12, _MADE_BY, _VERSION64, 0, 0, *counts)
            + _LOCATOR.pack(b"PK\6\7", 0, self._end_offset, 1)
            + _END.pack(b"PK\5\6", 0, 0, _FULL16, _FULL16, _FULL32, _FULL32, 0)
        )

    def _sections(self, pool: list[_Drawing]) -> list[_Section]:
        spec = self.spec
        train, val, test = _train(spec), _flat(spec, spec.val, 1), _flat(spec, spec.test, 2)
        # A picture has an XML file where the running share of those that have one passes a whole number.
        boxed = train.take(np.diff(np.arange(spec.train + 1) * spec.train_xml // spec.train) > 0)
        return [
            self._pictures("train", train),
            self._pictures("val", val),
            self._pictures("test", test),
            self._annotations("train", boxed),
            self._annotations("val", val.take(slice(spec.val_xml))),
            self._lists(_lists(spec, pool, train, boxed, val)),
        ]

    def _pictures(self, split: str, pictures: _Split) -> _Section:
        method = _DEFLATED if self.spec.deflate_pictures else _STORED
        runs = _runs(f"{_DATA}/{split}", pictures, ".JPEG", method)
        contents = pictures.places % len(_SHAPES) * _VARIANTS + pictures.variants
        sizes, packed, crcs = (
            np.array(column)[contents]
            for column in zip(*((file.size, len(file.packed), file.crc) for file in self._files), strict=True)
        )
        return _Section(runs, pictures.numbers, contents, sizes, packed, crcs)

    def _annotations(self, split: str, pictures: _Split) -> _Section:
        runs = _runs(f"{_ANNOTATIONS}/{split}", pictures, ".xml", self._text_method)
        contents = pictures.places * _DRAWINGS + pictures.variants // len(_SIZES)
        heads, crcs = np.empty_like(contents), np.empty_like(contents)
        for run in runs:
            span = slice(run.first, run.first + run.members)
            texts = [_head(run.name(number)) for number in pictures.numbers[span].tolist()]
            bodies = (self._bodies[content].text for content in contents[span].tolist())
            heads[span] = [len(text) for text in texts]
            crcs[span] = [zlib.crc32(body, zlib.crc32(text)) for text, body in zip(texts, bodies, strict=True)]
        bodies_plain, bodies_packed = (
            np.array([len(part) for part in column])[contents] for column in zip(*self._bodies, strict=True)
        )
        lead = _STORED_BLOCK.size if self._text_method == _DEFLATED else 0
        return _Section(runs, pictures.numbers, contents, heads + bodies_plain, lead + heads + bodies_packed, crcs)

    def _lists(self, lists: Iterable[tuple[str, Iterable[str]]]) -> _Section:
        runs: list[_Run] = []
        first = len(self._files)
        for at, (name, lines) in enumerate(lists):
            runs.append(_Run(at, 1, name, 0, "", self._text_method))
            self._files.append(_pack_lines(lines, deflate=self.spec.deflate_text))
        files = self._files[first:]
        return _Section(
            runs,
            np.zeros(len(files), dtype=np.int64),
            first + np.arange(len(files)),
            *(np.array(column) for column in zip(*((f.size, len(f.packed), f.crc) for f in files), strict=True)),
        )


def _rng(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, *stream]))


def _wnid(place: int) -> str:
    return f"n{place + 1:08d}"


def _train(spec: VirtualSpec) -> _Split:
    counts = np.array(spec.train_counts)
    places = np.repeat(np.arange(spec.classes), counts)
    ordinals = np.arange(spec.train) - np.repeat(np.cumsum(counts) - counts, counts)
    variants = _rng(spec.seed, _FILES, 0).integers(_VARIANTS, size=spec.train)
    return _Split(_STRIDE * ordinals + places % _STRIDE + 2, places, variants)


def _flat(spec: VirtualSpec, count: int, split: int) -> _Split:
    """Val (1) or test (2): numbered from 1, classes in shuffled equal turns."""
    places = _rng(spec.seed, _LABELS, split).permutation(np.arange(count) % spec.classes)
    return _Split(np.arange(1, count + 1), places, _rng(spec.seed, _FILES, split).integers(_VARIANTS, size=count))


def _runs(folder: str, pictures: _Split, suffix: str, method: int) -> list[_Run]:
    split = folder.rpartition("/")[2]
    if split == "train":
        widths = 1 + np.searchsorted(10 ** np.arange(1, 9), pictures.numbers, side="right")
        changes = np.flatnonzero(np.diff(pictures.places) | np.diff(widths)) + 1
        firsts = [0, *changes.tolist()]
    else:
        widths, firsts = np.full(len(pictures.numbers), 8), [0]
    runs = []
    for first, end in pairwise([*firsts, len(pictures.numbers)]):
        if first < end:
            wnid = _wnid(int(pictures.places[first]))
            prefix = f"{folder}/{wnid}/{wnid}_" if split == "train" else f"{folder}/ILSVRC2012_{split}_"
            runs.append(_Run(first, end - first, prefix, int(widths[first]), suffix, method))
    return runs


def _split_wide(runs: list[_Run], first_wide: int) -> list[_Run]:
    """Mark the runs from a member on as beyond the reach of 32-bit offsets; the run that it stands in becomes two."""
    marked = []
    for run in runs:
        near = min(max(first_wide - run.first, 0), run.members)
        parts = (
            run._replace(members=near),
            run._replace(first=run.first + near, members=run.members - near, is_wide=True),
        )
        marked += [part for part in parts if part.members]
    return marked


@lru_cache(maxsize=256)
def _record_type(name_length: int, *, is_wide: bool) -> np.dtype[np.void]:
    """A directory record with a name of that length."""
    name = ("name", np.uint8, (name_length,))
    return np.dtype([*_RECORD, name, *(_EXTRA64 if is_wide else ())])


def _draw_pool(spec: VirtualSpec) -> list[_Drawing]:
    """The drawings of all shapes, in the order of shapes."""
    # At the quality used, a drawing of this side is smaller than the smallest size it is padded to, but for a few.
    side = min(500, int(1.3 * math.sqrt(spec.picture_bytes)))
    pool = []
    for place in range(len(_SHAPES) * _DRAWINGS):
        rng = _rng(spec.seed, _PIXELS, place)
        pixels, boxes = draw(_SHAPES[place // _DRAWINGS], rng, min_side=side * 2 // 3, max_side=side)
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
        files = []
        for share in _SIZES:
            content = _padded(jpeg, int(spec.picture_bytes * share) + place, rng)
            packed = _deflated(content) if spec.deflate_pictures else content
            files.append(_File(len(content), zlib.crc32(content), packed))
        pool.append(_Drawing(pixels.shape[1], pixels.shape[0], boxes, files))
    return pool


def _padded(jpeg: bytes, num_bytes: int, rng: np.random.Generator) -> bytes:
    """A JPEG brought to a size by comments of noise: two bytes of marker and two of length go before each."""
    room = max(num_bytes - len(jpeg), 4)
    count = -(-room // _MAX_COMMENT)
    lengths = [room * (at + 1) // count - room * at // count for at in range(count)]
    comments = (b"\xff\xfe" + struct.pack(">H", length - 2) + rng.bytes(length - 4) for length in lengths)
    return jpeg[:_JFIF_END] + b"".join(comments) + jpeg[_JFIF_END:]


def _deflated(content: bytes) -> bytes:
    return zlib.compress(content, wbits=-zlib.MAX_WBITS)


def _head(name: str) -> bytes:
    """How the XML file of that name begins: what differs from picture to picture."""
    _, folder, basename = name.rsplit("/", 2)
    key = basename.removesuffix(".xml")
    return f"<annotation>\n\t<folder>{folder}</folder>\n\t<filename>{key}</filename>\n".encode()


def _body(spec: VirtualSpec, pool: list[_Drawing], place: int, number: int) -> _Body:
    """How the XML files of a class go on that show a drawing of its shape."""
    drawing = pool[place % len(_SHAPES) * _DRAWINGS + number]
    objects = "".join(
        f"\t<object>\n\t\t<name>{_wnid(place)}</name>\n\t\t<pose>Unspecified</pose>\n\t\t<truncated>0</truncated>\n"
        f"\t\t<difficult>0</difficult>\n\t\t<bndbox>\n\t\t\t<xmin>{xmin}</xmin>\n\t\t\t<ymin>{ymin}</ymin>\n"
        f"\t\t\t<xmax>{xmax}</xmax>\n\t\t\t<ymax>{ymax}</ymax>\n\t\t</bndbox>\n\t</object>\n"
        for xmin, ymin, xmax, ymax in drawing.boxes
    )
    text = (
        "\t<source>\n\t\t<database>ILSVRC_2012</database>\n\t</source>\n"
        f"\t<size>\n\t\t<width>{drawing.width}</width>\n\t\t<height>{drawing.height}</height>\n\t\t<depth>3</depth>\n"
        f"\t</size>\n\t<segmented>0</segmented>\n{objects}</annotation>\n"
    ).encode()
    return _Body(text, _deflated(text) if spec.deflate_text else text)


def _lists(
    spec: VirtualSpec, pool: list[_Drawing], train: _Split, boxed: _Split, val: _Split
) -> Iterator[tuple[str, Iterable[str]]]:
    """Name and lines of each list, in archive order."""
    # Boxes by class and drawing, with the blank that the real lists have after the last one.
    predictions = [
        "".join(
            f"{_wnid(place)} {' '.join(map(str, box))} "
            for box in pool[place % len(_SHAPES) * _DRAWINGS + number].boxes
        )
        for place in range(spec.classes)
        for number in range(_DRAWINGS)
    ]
    test_keys = [f"ILSVRC2012_test_{number:08d}" for number in range(1, spec.test + 1)]
    yield f"{_SETS}/test.txt", _numbered(test_keys)
    yield f"{_SETS}/train_cls.txt", _numbered(_train_keys(train))
    yield f"{_SETS}/train_loc.txt", _numbered(_train_keys(boxed))
    yield f"{_SETS}/val.txt", _numbered(f"ILSVRC2012_val_{number:08d}" for number in range(1, spec.val + 1))
    yield "LOC_sample_submission.csv", _table((key, f"{_wnid(0)} 0 0 100 100") for key in test_keys)
    yield (
        "LOC_synset_mapping.txt",
        (f"{_wnid(place)} {_SHAPES[place % len(_SHAPES)]}, class {place + 1}\n" for place in range(spec.classes)),
    )
    rows = _shuffled(spec, boxed, predictions, 0)
    yield "LOC_train_solution.csv", _table((f"{_wnid(place)}_{number}", text) for place, number, text in rows)
    rows = _shuffled(spec, val, predictions, 1)
    yield "LOC_val_solution.csv", _table((f"ILSVRC2012_val_{number:08d}", text) for _, number, text in rows)


def _train_keys(pictures: _Split) -> Iterator[str]:
    """``<wnid>/<wnid>_<n>`` of each picture, sorted as text, as the real lists are."""
    changes = np.flatnonzero(np.diff(pictures.places)) + 1
    for places, numbers in zip(np.split(pictures.places, changes), np.split(pictures.numbers, changes), strict=True):
        if len(places):
            wnid = _wnid(int(places[0]))
            yield from sorted(f"{wnid}/{wnid}_{number}" for number in numbers.tolist())


def _shuffled(
    spec: VirtualSpec, pictures: _Split, predictions: Sequence[str], split: int
) -> Iterator[tuple[int, int, str]]:
    """Class, number and boxes of each picture, in no order."""
    order = _rng(spec.seed, _ROWS, split).permutation(len(pictures.numbers))
    for at in range(0, len(order), _BATCH):
        batch = pictures.take(order[at : at + _BATCH])
        which = batch.places * _DRAWINGS + batch.variants // len(_SIZES)
        for place, number, prediction in zip(
            batch.places.tolist(), batch.numbers.tolist(), which.tolist(), strict=True
        ):
            yield place, number, predictions[prediction]


def _numbered(keys: Iterable[str]) -> Iterator[str]:
    return (f"{key} {line}\n" for line, key in enumerate(keys, start=1))


def _table(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield "ImageId,PredictionString\n"
    for key, prediction in rows:
        yield f"{key},{prediction}\n"


def _pack_lines(lines: Iterable[str], *, deflate: bool) -> _File:
    """Pack a text without ever holding all its lines."""
    lines = iter(lines)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    size = crc = 0
    packed = []
    while batch := "".join(islice(lines, _BATCH)).encode():
        size, crc = size + len(batch), zlib.crc32(batch, crc)
        packed.append(packer.compress(batch) if deflate else batch)
    if deflate:
        packed.append(packer.flush())
    return _File(size, crc, b"".join(packed))
