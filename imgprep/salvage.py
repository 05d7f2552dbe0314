"""What is whole in a damaged tar, and how the tar is written anew around it: for :mod:`imgprep.repair`.

A picture is taken over when it has the CRC-32 of its row in the sample table. All else follows from the plan, and the
hash of the whole tells whether it came out as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from imgprep.errors import ContradictionError, ImageError, ImgprepError, MemberError
from imgprep.executors import Tick
from imgprep.files import fsync_folder, remove
from imgprep.images import Geometry, PreparedImage, read_jpeg_header
from imgprep.index import SAMPLE_FIELDS, ShardInfo
from imgprep.packing import BLOCK, Prepare, Read, ShardFile, place_boxes, sample_json
from imgprep.records import Record, Rejected
from imgprep.shard_check import open_plain
from imgprep.shard_plan import ShardPlan
from imgprep.sources.ranges import RangeFile
from imgprep.sources.tar import FileRange, walk_tar

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_JSON: Final = 1 << 16
"""Bytes of a ``KEY.json`` whose boxes are taken over; they have some hundreds."""
_SCAN: Final = 1 << 20
"""Bytes that are searched for headers at a time, a multiple of a block."""
_MAX_NAME: Final = 100
"""Bytes of the name in a header of a tar (POSIX.1-1988, ustar)."""
_EMPTY: Final = np.empty(0, dtype=list(SAMPLE_FIELDS))


class Target(NamedTuple):
    """What a file must be: its SHA-256, and its size where that is known."""

    sha256: str
    num_bytes: int | None = None

    def is_met(self, path: Path) -> bool:
        """Whether a file has the bytes it must have."""
        return self.num_bytes in (None, size_of(path)) and sha256_of(path) == self.sha256


@dataclass(frozen=True)
class Kept:
    """A picture of a damaged tar that is whole: where it lies, what it is, and its boxes as ``KEY.json`` tells them."""

    offset: int
    length: int
    crc32: int
    width: int
    height: int
    boxes: list[dict[str, Any]] | None


@dataclass(frozen=True, kw_only=True)
class TarTask:
    """One tar to be written anew.

    Attributes:
        plan: What goes into it.
        target: Hash and size it must have.
        kept: Pictures to be taken over, by key.
        rejected: Which of its records were left out, by key; None where that is to be found out.
    """

    plan: ShardPlan
    target: Target
    kept: Mapping[str, Kept]
    rejected: Mapping[str, Rejected] | None

    @property
    def kept_boxes(self) -> Collection[str]:
        """Keys of pictures that are taken over with boxes."""
        return self.kept.keys() & self.plan.boxes.keys()

    @property
    def num_read(self) -> int:
        """Pictures to be read from the source."""
        return sum(r.key not in self.kept and r.key not in (self.rejected or ()) for r in self.plan.records)


@dataclass(frozen=True, kw_only=True)
class MadeTar:
    """What became of a task; ``failure`` says why its tar could not be written."""

    filename: str
    rows: NDArray[np.void]
    rejected: Sequence[Rejected]
    num_read: int = 0
    num_taken: int = 0
    failure: str = ""


def find_whole(
    path: Path,
    plan: ShardPlan,
    rows: NDArray[np.void],
    target: Target,
    rejected: Mapping[str, Rejected] | None,
    *,
    is_trusted: bool,
) -> dict[str, Kept]:
    """The pictures of a damaged tar that have their CRC-32, by key.

    A row is that of the record at its place where the table is what it was and it is known who was rejected; else the
    header in front of the picture says whose it is.

    Args:
        path: The tar.
        plan: What it held.
        rows: What the sample table says of it.
        target: What it must be.
        rejected: The records that were left out, where that is known.
        is_trusted: Whether the table is what it was.
    """
    records = [record for record in plan.records if rejected is None or record.key not in rejected]
    by_place = is_trusted and rejected is not None and len(rows) == len(records)
    by_key = {record.key: record for record in records}
    kept: dict[str, Kept] = {}
    try:
        handle, num_bytes = open_plain(path)
    except (OSError, ValueError):
        return kept
    with open(handle, "rb", buffering=0) as file:  # noqa: PTH123  # a handle, not a path
        limit = num_bytes if target.num_bytes is None else min(num_bytes, target.num_bytes)
        for place, (_, offset, length, _, checksum) in enumerate(rows.tolist()):
            if not BLOCK <= offset <= offset + length <= limit:
                continue
            content = _pread(file.fileno(), BLOCK + length, offset - BLOCK)
            header, jpeg = content[:BLOCK], content[BLOCK:]
            key = header[:100].partition(b"\0")[0].decode("ascii", "replace").removesuffix(".jpg")
            record = records[place] if by_place else by_key.get(key)
            if record is None or zlib.crc32(jpeg) != checksum or (size := read_jpeg_header(jpeg)) is None:
                continue
            boxes = None
            if record.key in plan.boxes:
                text = _pread(file.fileno(), _MAX_JSON, offset + length + -length % BLOCK + 3 * BLOCK)
                found = _told_boxes(text.partition(b"\0")[0], record, size.width, size.height)
                if found is None:
                    continue
                boxes = found or None
            kept[record.key] = Kept(offset, length, checksum, size.width, size.height, boxes)
    return kept


def owner_of(path: Path, owners: Mapping[str, str]) -> str:
    """Whose pictures a damaged tar holds by the first header in it that names one; empty where none does.

    Args:
        path: The tar.
        owners: The tar of each picture, by key.
    """
    try:
        handle, num_bytes = open_plain(path)
    except (OSError, ValueError):
        return ""
    with open(handle, "rb", buffering=0) as file:  # noqa: PTH123  # a handle, not a path
        for start in range(0, num_bytes, _SCAN):
            content = _pread(file.fileno(), _SCAN, start)
            for place in range(0, len(content), BLOCK):
                name, dot, _ = content[place : place + _MAX_NAME].partition(b".jpg\0")
                if dot and (owner := owners.get(name.decode("ascii", "replace"))):
                    return owner
    return ""


def _told_boxes(text: bytes, record: Record, width: int, height: int) -> list[dict[str, Any]] | None:
    """The boxes in a ``KEY.json`` in which all else is as it must be, maybe none; None where it is damaged."""
    try:
        document = json.loads(text)
        boxes = document.get("boxes") if isinstance(document, dict) else None
        is_right = sample_json(record, width, height, boxes) == text
    except (ValueError, RecursionError):
        return None
    return (boxes or []) if is_right and isinstance(boxes, list | None) else None


def _pread(handle: int, num_bytes: int, offset: int) -> bytes:
    """The bytes at a place, as far as the disk gives them."""
    parts = []
    with contextlib.suppress(OSError):
        while num_bytes > 0 and (part := os.pread(handle, num_bytes, offset)):
            parts.append(part)
            num_bytes, offset = num_bytes - len(part), offset + len(part)
    return b"".join(parts)


def needs(task: TarTask, gone: str) -> str:
    """Why a tar cannot be written without the source."""
    return f"{task.num_read:,} of its pictures have to be read from the source, but {gone}"


def make_tar(task: TarTask, tick: Tick, *, folder: Path, read: Read | None, gone: str, prepare: Prepare) -> MadeTar:
    """Write a tar anew beside the old one, and put it in its place if it has the hash it had.

    Args:
        task: What to write.
        tick: Called after each record.
        folder: Where the tar lies.
        read: Reads from the source; None where it is not needed, or is gone.
        gone: Why it is gone.
        prepare: Makes the picture of a sample.
    """
    name = task.plan.filename
    failed = MadeTar(filename=name, rows=_EMPTY, rejected=())
    if read is None and task.num_read:
        return replace(failed, failure=needs(task, gone))
    attempts = [task]
    if read is not None and task.kept_boxes:
        # A box may have been changed into another one, which only the hash of all knows.
        plain = {key: one for key, one in task.kept.items() if key not in task.kept_boxes}
        attempts.append(replace(task, kept=plain))
    for attempt in attempts:
        try:
            info, made = _write_tar(attempt, folder, read, prepare, tick)
        except (ImageError, MemberError, ContradictionError) as error:
            return replace(failed, num_read=attempt.num_read, failure=error.what)
        if info.sha256 == task.target.sha256:
            place_file(folder / staged_name(name), folder / name)
            return made
        remove(folder / staged_name(name))
    if gone and task.kept_boxes:
        what = f"a box of it is damaged, and its pictures with boxes have to be read from the source, but {gone}"
        return replace(failed, failure=what)
    what = f"comes out with other bytes than it had (SHA-256 {info.sha256}), so it was not replaced"
    return replace(failed, num_read=attempts[-1].num_read, failure=what)


def _write_tar(
    task: TarTask, folder: Path, read: Read | None, prepare: Prepare, tick: Tick
) -> tuple[ShardInfo, MadeTar]:
    """Write a tar under its staged name."""
    plan = task.plan
    rows: list[tuple[int, int, int, int, int]] = []
    rejected: list[Rejected] = []
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(contextlib.closing(RangeFile(folder / plan.filename))) if task.kept else None
        file = stack.enter_context(ShardFile(folder / staged_name(plan.filename)))
        for record in plan.records:
            if task.rejected is not None and record.key in task.rejected:
                rejected.append(task.rejected[record.key])
                tick()
                continue
            kept = task.kept.get(record.key)
            try:
                if kept is not None and old is not None:
                    image, boxes = _take(old, kept), kept.boxes
                else:
                    assert read is not None
                    image = prepare(read(record.path))
                    boxes = place_boxes(plan.boxes.get(record.key, ()), image)
            except (ImageError, MemberError) as error:
                if task.rejected is not None:
                    raise MemberError(f"{record.path} could be used then, and now cannot: {error.what}") from None
                rejected.append(rejection(record, error))
                tick()
                continue
            checksum = kept.crc32 if kept is not None else zlib.crc32(image.jpeg)
            rows.append((plan.number, file.add(record, image, boxes), len(image.jpeg), record.label, checksum))
            tick()
        info = file.publish(len(rows))
    table = np.array(rows, dtype=list(SAMPLE_FIELDS))
    taken = len(task.kept)
    made = MadeTar(filename=plan.filename, rows=table, rejected=rejected, num_read=task.num_read, num_taken=taken)
    return info, made


def _take(old: RangeFile, kept: Kept) -> PreparedImage:
    """A picture of the damaged tar, as it is."""
    jpeg = old.pread(kept.length, kept.offset)
    if zlib.crc32(jpeg) != kept.crc32:
        raise ContradictionError(f"{old.path} changed while it was read")
    size = (kept.width, kept.height)
    geometry = Geometry(stored=size, orientation=1, turned=False, scaled=size, offset=(0, 0), size=size)
    return PreparedImage(jpeg, *size, unchanged=True, geometry=geometry)


def rejection(record: Record, error: ImgprepError) -> Rejected:
    """A row of ``rejected.csv``."""
    return Rejected(record.key, record.split, record.path, error.what)


def pictures(path: Path) -> Iterator[tuple[str, int, int]]:
    """Key, offset and length of every picture of a tar that is whole."""
    with contextlib.closing(RangeFile(path)) as file:
        for name, offset, length in walk_tar(FileRange(file, 0, path.stat().st_size), path):
            if name.endswith(".jpg"):
                yield name.removesuffix(".jpg"), offset, length


def read_rows(folder: Path, plan: ShardPlan) -> NDArray[np.void]:
    """The rows of a tar that is whole."""
    path = folder / plan.filename
    labels = {record.key: record.label for record in plan.records}
    with contextlib.closing(RangeFile(path)) as file:
        rows = [
            (plan.number, offset, length, labels.get(key, -1), zlib.crc32(file.pread(length, offset)))
            for key, offset, length in pictures(path)
        ]
    return np.array(rows, dtype=list(SAMPLE_FIELDS))


def load_rows(path: Path, most: int) -> NDArray[np.void]:
    """What can be read as rows of a sample table, up to ``most`` of them, whatever its header says."""
    header = io.BytesIO()
    # The header has as many bytes whatever the number of rows.
    np.save(header, _EMPTY, allow_pickle=False)
    start = header.tell()
    try:
        handle, _ = open_plain(path)
        with open(handle, "rb") as file:  # noqa: PTH123  # a handle, not a path
            content = file.read(start + most * _EMPTY.itemsize)[start:]
    except (OSError, ValueError):
        return _EMPTY
    return np.frombuffer(content, _EMPTY.dtype, len(content) // _EMPTY.itemsize)


# Files.


def staged_name(name: str) -> str:
    """Where a file lies that is whole and has not got its name yet; after a kill, the next run finds it there."""
    return f".{name}.tmp"


def place_file(staged: Path, path: Path) -> None:
    """Give a file its name, in place of what bears it."""
    make_way(path)
    staged.replace(path)
    fsync_folder(path.parent)


def make_way(path: Path) -> None:
    """Remove an empty folder that lies where a file must be."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()


def size_of(path: Path) -> int:
    """Size of a file; -1 where there is none."""
    try:
        return path.lstat().st_size
    except (OSError, ValueError):
        return -1


def sha256_of(path: Path) -> str:
    """SHA-256 of a regular file; empty where there is none or it cannot be read."""
    try:
        handle, _ = open_plain(path)
        with open(handle, "rb") as file:  # noqa: PTH123  # a handle, not a path
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return ""
