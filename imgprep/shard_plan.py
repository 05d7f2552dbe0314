"""What goes into which tar, decided before a byte is written: the request, the order of samples, and the cuts."""

from __future__ import annotations

import csv
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from imgprep.errors import ContradictionError, DamagedError, LockedError, SpecError, UsageError
from imgprep.images import Crop, ImageMode, ImageSpec
from imgprep.records import Catalog, Record
from imgprep.sources import Source
from imgprep.tables import BOXES_COLUMNS, hash_keys, read_manifest_pieces, read_pieces

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TARGET_BYTES: Final = 256 << 20
_MIN_SHARDS: Final = 8
"""Shards a split has at least when it has enough samples, so that eight readers can share them out."""
_ENOUGH: Final = 8
"""Samples a shard should hold before a split is cut into more of them."""
_BYTES_PER_PIXEL: Final = 0.40
"""Estimated size of a photograph as JPEG of quality 90, 4:2:0, in bytes a pixel; for the number of shards only."""
BESIDE_PICTURE: Final = 3 * 512 + 256 + 512 + 512
"""Bytes of a sample beside its picture: three headers, half a block of padding, the label, and the JSON."""
_CHUNK: Final = 1 << 20
_LINE_FEED: Final = 0x0A


@dataclass(frozen=True, kw_only=True)
class ShardSpec:
    """A request for shards.

    Attributes:
        images: ``resize`` shrinks pictures to ``size``; ``original`` keeps the bytes of whatever is a JPEG.
        size: Pixels of the short side; smaller pictures are never enlarged.
        crop: ``center`` keeps the square in the middle.
        quality: JPEG quality of pictures that are written anew.
        restart_markers: Whether those get restart markers, so that a decoder can begin in the middle.
        samples_per_shard: Samples of a tar; the last one of a split may hold fewer.
        bytes_per_shard: About how large a tar shall be; from the sizes of the pictures, before they are shrunk by
            estimate. Without either a tar has about 256 MiB, and a split at least 8 of them.
        seed: Seed of the order of samples.
        side_files: Whether the files that other readers look for are written beside the tars.
        max_rejects: How many pictures may be unusable before the stage fails.
    """

    images: ImageMode = "resize"
    size: int = 256
    crop: Crop = "none"
    quality: int = 90
    restart_markers: bool = False
    samples_per_shard: int | None = None
    bytes_per_shard: int | None = None
    seed: int = 0
    side_files: bool = True
    max_rejects: int = 100

    def __post_init__(self) -> None:
        _ = self.image  # It checks its own values; not an assertion, which Python leaves out with -O.
        if self.samples_per_shard is not None and self.samples_per_shard < 1:
            raise SpecError(f"samples_per_shard must be 1 or more, got {self.samples_per_shard}")
        if self.bytes_per_shard is not None and self.bytes_per_shard < 1:
            raise SpecError(f"bytes_per_shard must be 1 or more, got {self.bytes_per_shard}")
        if self.samples_per_shard is not None and self.bytes_per_shard is not None:
            raise SpecError("samples_per_shard and bytes_per_shard both say where to cut", "give one of them")
        if not 0 <= self.seed < 1 << 63:
            raise SpecError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")
        if self.max_rejects < 0:
            raise SpecError(f"max_rejects must be 0 or more, got {self.max_rejects}")

    @property
    def image(self) -> ImageSpec:
        """What becomes of each picture."""
        return ImageSpec(
            images=self.images,
            size=self.size,
            crop=self.crop,
            quality=self.quality,
            restart_markers=self.restart_markers,
        )

    def to_options(self) -> dict[str, Any]:
        """What decides the bytes, as JSON values."""
        options = asdict(self)
        del options["max_rejects"]
        if self.images == "original":
            del options["size"], options["crop"]
        return options


@dataclass(frozen=True, slots=True)
class ToldBox:
    """One box as the XML tells it, in pixels of a picture of ``width`` x ``height``; 0 where it tells no size."""

    wnid: str
    xmin: int
    ymin: int
    xmax: int
    ymax: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One tar to be written.

    Attributes:
        split: Its split.
        number: Its place among the tars of the split, from 0.
        filename: Its file name.
        records: What goes into it, in order.
        boxes: Bounding boxes by key.
        source: Where its pictures are, if that can be sent along with it.
    """

    split: str
    number: int
    filename: str
    records: tuple[Record, ...]
    boxes: Mapping[str, tuple[ToldBox, ...]] = field(default_factory=dict)
    source: Source | None = field(default=None, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process as plain tuples: that takes a fifth of the time that thousands of records take."""
        rows = [(r.key, r.split, r.path, r.wnid, r.label, r.num_bytes, r.crc32) for r in self.records]
        return _rebuild_plan, (self.split, self.number, self.filename, rows, self.boxes, self.source)


def _rebuild_plan(
    split: str, number: int, filename: str, rows: list[tuple[Any, ...]], boxes: Any, source: Source | None
) -> ShardPlan:
    return ShardPlan(split, number, filename, tuple(Record(*row) for row in rows), boxes, source)


@dataclass(frozen=True, slots=True)
class Cut:
    """One tar before its records are read: the rows of the order that go into it, and an estimate of its bytes."""

    split: str
    number: int
    start: int
    stop: int
    num_bytes: int

    @property
    def filename(self) -> str:
        """Name of the tar."""
        return f"imgprep-{self.split}-{self.number:06d}.tar"

    @property
    def num_samples(self) -> int:
        """Number of records."""
        return self.stop - self.start


def order_ranks(keys: Iterable[str], seed: int) -> NDArray[np.uint64]:
    """The ranks that samples are ordered by: BLAKE2b of the key, keyed by the seed, so that classes are mixed.

    Args:
        keys: Names of the samples.
        seed: The spec's seed.

    Returns:
        Shape (samples, 2): 128 bits each, the more significant half first.
    """
    secret = seed.to_bytes(8, "big")
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=16, key=secret).digest() for key in keys)
    return np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)


def cut(num_bytes: NDArray[np.int64], spec: ShardSpec) -> Iterator[tuple[int, int]]:
    """Cut a split into tars of consecutive samples; pure.

    Args:
        num_bytes: Estimated bytes of each sample in the tar, in order.
        spec: Options.

    Yields:
        First sample of each tar, and the one after its last.
    """
    total = len(num_bytes)
    if spec.samples_per_shard is not None:
        for start in range(0, total, spec.samples_per_shard):
            yield start, min(start + spec.samples_per_shard, total)
        return
    size = int(num_bytes.sum())
    if spec.bytes_per_shard is not None:
        number = min(max(math.ceil(size / spec.bytes_per_shard), 1), total)
    else:
        number = max(math.ceil(size / _TARGET_BYTES), min(_MIN_SHARDS, total // _ENOUGH), 1)
    # Sizes differ by one sample at most.
    yield from ((total * i // number, total * (i + 1) // number) for i in range(number))


def estimate_bytes(num_bytes: NDArray[np.int64], spec: ShardSpec) -> NDArray[np.int64]:
    """About how many bytes samples will take in a tar, from the sizes of their files."""
    pictures = num_bytes.astype(np.float64)
    if spec.images == "resize":
        # Photographs are 4:3, more or less.
        pixels = spec.size * spec.size * (1 if spec.crop == "center" else 4 / 3)
        pictures = np.minimum(pictures, pixels * _BYTES_PER_PIXEL)
    return pictures.astype(np.int64) + BESIDE_PICTURE


class TableRows:
    """Rows of a CSV by number, read where they lie: a table of any length takes 8 bytes a row.

    Names in imgprep's tables have no line breaks in them, so that a line is a row.

    Args:
        path: The table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        breaks = []
        with path.open("rb", buffering=0) as file:
            start = 0
            while chunk := file.read(_CHUNK):
                breaks.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == _LINE_FEED) + start)
                start += len(chunk)
        self._ends = np.concatenate(breaks) if breaks else np.empty(0, np.int64)

    def __len__(self) -> int:
        return max(len(self._ends) - 1, 0)

    def lines(self, numbers: Sequence[int] | NDArray[np.int64]) -> Iterator[bytes]:
        """The bytes of some rows, each with its line feed, in the order asked for."""
        chosen = np.asarray(numbers, np.int64)
        starts, stops = (self._ends[chosen] + 1).tolist(), (self._ends[chosen + 1] + 1).tolist()
        handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start, stop in zip(starts, stops, strict=True):
                yield os.pread(handle, stop - start, start)
        finally:
            os.close(handle)

    def read(self, numbers: Sequence[int] | NDArray[np.int64]) -> Iterator[list[str]]:
        """The fields of some rows.

        Raises:
            LockedError: The table was replaced meanwhile.
        """
        try:
            yield from csv.reader(line.decode() for line in self.lines(numbers))
        except (UnicodeDecodeError, csv.Error):
            raise _changed(self.path) from None


def _changed(path: Path) -> LockedError:
    return LockedError(f"another process changed {path} while it was read", "run the same command again")


class Boxes:
    """The bounding boxes of the samples of a manifest: 16 bytes a box are held.

    Args:
        path: ``boxes.csv``.
        keys: 64-bit hashes of the keys that matter; see :func:`imgprep.tables.hash_keys`.
    """

    def __init__(self, path: Path, keys: NDArray[np.uint64]) -> None:
        wanted = np.sort(keys)
        hashes, numbers = [], []
        first = 0
        for piece in read_pieces(path, BOXES_COLUMNS, made_by="imgprep annotations"):
            these = hash_keys(piece["ImageId"])
            at = np.minimum(np.searchsorted(wanted, these), max(len(wanted) - 1, 0))
            here = np.flatnonzero(wanted[at] == these) if len(wanted) else np.empty(0, np.int64)
            hashes.append(these[here])
            numbers.append(here + first)
            first += len(piece)
        self._rows = TableRows(path)
        if len(self._rows) != first:
            raise DamagedError(f"{path} has line breaks in its fields", "run `imgprep annotations` again")
        order = np.argsort(np.concatenate(hashes), kind="stable")
        self._hashes, self._numbers = np.concatenate(hashes)[order], np.concatenate(numbers)[order]

    def __len__(self) -> int:
        return len(self._numbers)

    def digest(self) -> str:
        """SHA-256 over the rows of these samples, in the order of the table: what else it holds does not matter."""
        digest = hashlib.sha256()
        for line in self._rows.lines(np.sort(self._numbers)):
            digest.update(line)
        return digest.hexdigest()

    def of(self, keys: Sequence[str]) -> dict[str, tuple[ToldBox, ...]]:
        """The boxes of some samples, by key; those without any are not in it."""
        import pandas as pd

        hashes = hash_keys(pd.Series(keys, dtype=object))
        starts = np.searchsorted(self._hashes, hashes, side="left")
        stops = np.searchsorted(self._hashes, hashes, side="right")
        found: dict[str, tuple[ToldBox, ...]] = {}
        for key, start, stop in zip(keys, starts.tolist(), stops.tolist(), strict=True):
            if start < stop:
                rows = list(self._rows.read(self._numbers[start:stop]))
                # Two keys may have one hash.
                boxes = tuple(ToldBox(r[2], *(int(value or 0) for value in r[3:9])) for r in rows if r[0] == key)
                if boxes:
                    found[key] = boxes
        return found


class ShardPlans(Sequence[ShardPlan]):
    """All tars to be written. Only the order is held, 12 bytes a sample: records are read when a plan is asked for.

    Args:
        manifest: The rows.
        order: Numbers of the rows, in the order in which they are packed, split after split.
        cuts: The tars.
        boxes: Bounding boxes, where there are any.
    """

    def __init__(
        self, manifest: TableRows, order: NDArray[np.integer[Any]], cuts: Sequence[Cut], boxes: Boxes | None
    ) -> None:
        self._manifest, self._order, self.cuts, self._boxes = manifest, order, cuts, boxes

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, place: int) -> ShardPlan:  # type: ignore[override]  # a slice would read all at once
        one = self.cuts[place]
        rows = self._manifest.read(self._order[one.start : one.stop].astype(np.int64))
        try:
            records = tuple(
                Record(key, split, path, wnid, int(label), int(num_bytes), int(crc32) if crc32 else None)
                for key, split, path, wnid, label, num_bytes, crc32 in rows
            )
        except ValueError:
            raise _changed(self._manifest.path) from None
        boxes = self._boxes.of([record.key for record in records]) if self._boxes is not None else {}
        return ShardPlan(one.split, one.number, one.filename, records, boxes)

    def __iter__(self) -> Iterator[ShardPlan]:
        return (self[place] for place in range(len(self)))

    @property
    def num_records(self) -> int:
        """Records over all tars."""
        return len(self._order)

    @property
    def num_bytes(self) -> int:
        """About how many bytes all tars will have."""
        return sum(one.num_bytes for one in self.cuts)

    def spread(self, number: int) -> list[Record]:
        """Some of the records, evenly from all over the order."""
        number = min(number, len(self._order))
        places = np.arange(number) * len(self._order) // max(number, 1)
        rows = self._manifest.read(self._order[places].astype(np.int64))
        return [Record(r[0], r[1], r[2], r[3], int(r[4]), int(r[5]), int(r[6]) if r[6] else None) for r in rows]


@dataclass(frozen=True, kw_only=True)
class PlanInput:
    """What is known of a manifest before its order is made; arrays with an entry a row.

    Attributes:
        splits: Names of the splits, sorted.
        split: The split of each row, as its place in ``splits``.
        ranks: See :func:`order_ranks`.
        hashes: See :func:`imgprep.tables.hash_keys`.
        num_bytes: Size of each file.
        checked: Whether the CRC-32 of every row is known.
    """

    splits: Sequence[str]
    split: NDArray[np.uint8]
    ranks: NDArray[np.uint64]
    hashes: NDArray[np.uint64]
    num_bytes: NDArray[np.int64]
    checked: bool


def read_plan_input(path: Path, catalog: Catalog, seed: int, *, made_by: str) -> PlanInput:
    """Read a manifest in pieces, and check it.

    Args:
        path: ``manifest.csv`` of a subset.
        catalog: The classes of that subset.
        seed: Seed of the order.
        made_by: The command that writes it, for advice.

    Raises:
        UsageError: It is empty.
        ContradictionError: A label does not fit the classes.
        DamagedError: A table is damaged, or a key stands twice.
    """
    wnids = [synset.wnid for synset in catalog]
    found: dict[str, int] = {}
    split, ranks, hashes, sizes = [], [], [], []
    checked = True
    for piece in read_manifest_pieces(path, made_by=made_by):
        labels, classes, keys = piece["label"].tolist(), piece["wnid"].tolist(), piece["key"].tolist()
        for key, label, wnid in zip(keys, labels, classes, strict=True):
            if not 0 <= label < len(wnids) or wnids[label] != wnid:
                raise ContradictionError(
                    f"{path}: {key} has class {wnid} and label {label}, which classes.csv does not have",
                    "run `imgprep subset --overwrite`",
                )
        split.append(np.array([found.setdefault(name, len(found)) for name in piece["split"].tolist()], np.uint8))
        ranks.append(order_ranks(keys, seed))
        hashes.append(hash_keys(piece["key"]))
        sizes.append(piece["num_bytes"].to_numpy(np.int64))
        checked = checked and bool(piece["crc32"].notna().all())
    if not sum(map(len, sizes)):
        raise UsageError(f"the subset {path.parent} is empty", "choose another one with `imgprep subset`")
    names = sorted(found)
    places = np.array([names.index(name) for name in found], np.uint8)
    return PlanInput(
        splits=names,
        split=places[np.concatenate(split)],
        ranks=np.concatenate(ranks),
        hashes=np.concatenate(hashes),
        num_bytes=np.concatenate(sizes),
        checked=checked,
    )


def plan_shards(path: Path, given: PlanInput, spec: ShardSpec, boxes: Boxes | None = None) -> ShardPlans:
    """Decide which row goes into which tar. Neither the order of the rows nor anything but the spec matters.

    Args:
        path: The manifest.
        given: From :func:`read_plan_input` with the spec's seed.
        spec: Options.
        boxes: Bounding boxes to go with the samples.

    Raises:
        LockedError: The manifest was replaced meanwhile.
        DamagedError: It has line breaks in its fields.
    """
    rows = TableRows(path)
    if len(rows) != len(given.split):
        raise DamagedError(f"{path} has line breaks in its fields, or changed", "run `imgprep subset --overwrite`")
    order = np.lexsort((given.ranks[:, 1], given.ranks[:, 0], given.split))
    # Half the memory, for as long as numbers of rows fit.
    order = order.astype(np.uint32 if len(order) < 1 << 32 else np.int64)
    estimates = estimate_bytes(given.num_bytes, spec)[order]
    bounds = np.searchsorted(given.split[order], np.arange(len(given.splits) + 1))
    cuts = []
    for place, split in enumerate(given.splits):
        first, last = int(bounds[place]), int(bounds[place + 1])
        for number, (start, stop) in enumerate(cut(estimates[first:last], spec)):
            num_bytes = int(estimates[first + start : first + stop].sum())
            cuts.append(Cut(split, number, first + start, first + stop, num_bytes))
    return ShardPlans(rows, order, cuts, boxes)
