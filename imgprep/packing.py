"""Samples into tars: plain USTAR with fixed times and owners, hashed while they are written, whole or not there.

The tar writers of the field take their time for members of any kind and date; see ADR 0003.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from imgprep.errors import DamagedError, ImageError, MemberError
from imgprep.executors import Tick
from imgprep.files import fsync_folder, read_json, sha256_file, write_json
from imgprep.images import Content, PreparedImage
from imgprep.index import SAMPLE_FIELDS, ShardInfo
from imgprep.records import Record, Rejected
from imgprep.shard_plan import ShardPlan, ToldBox

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

BLOCK: Final = 512
"""POSIX 1003.1, ustar: headers have one block, contents are filled up to whole blocks."""

END: Final = bytes(2 * BLOCK)
"""The archive ends with two blocks of zeros."""

_NAME: Final = 100
"""Bytes of the field ``name`` of a header, which comes first."""
_AFTER_NAME: Final = b"0000444\0" + b"0000000\0" * 2
"""``mode``, ``uid`` and ``gid``."""
_MTIME: Final = b"00000000000\0"
_AFTER_SUM: Final = b"0" + bytes(100) + b"ustar\x00" + b"00" + bytes(32 + 32 + 8 + 8 + 155 + 12)
"""``typeflag`` of a regular file, ``linkname``, ``magic``, ``version``, names of user and group, device numbers,
``prefix``, and what fills the block."""
_HEADER: Final = b"%b%b" + _AFTER_NAME + b"%b\0" + _MTIME + b"%06o\0 " + _AFTER_SUM
"""Name, what fills its field, size, and checksum go in here."""
_FIXED_SUM: Final = sum(_AFTER_NAME) + sum(_MTIME) + sum(b" " * 8) + sum(_AFTER_SUM)
"""The checksum is the sum of all bytes, its own field taken as blanks."""
_MAX_MEMBER: Final = 8**11 - 1

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Prepare = Callable[[Content], PreparedImage]
Read = Callable[[str], Content]


def tar_header(name: str, num_bytes: int) -> bytes:
    """A USTAR header of 512 bytes with fixed time, owner and mode, so that equal content makes equal bytes.

    Args:
        name: ASCII, at most 100 characters.
        num_bytes: Size of the member.

    Raises:
        ValueError: The name or the size does not fit.
    """
    encoded = name.encode("ascii")
    if len(encoded) > _NAME or not 0 <= num_bytes <= _MAX_MEMBER:
        raise ValueError(f"no header for {name!r} with {num_bytes} bytes")
    size = b"%011o" % num_bytes
    checksum = _FIXED_SUM + sum(encoded) + sum(size)
    return _HEADER % (encoded, bytes(_NAME - len(encoded)), size, checksum)


def padding(num_bytes: int) -> bytes:
    """What fills a content of so many bytes up to whole blocks."""
    return bytes(-num_bytes % BLOCK)


def sample_json(record: Record, width: int, height: int, boxes: list[dict[str, Any]] | None = None) -> bytes:
    """The content of ``KEY.json``: what is known of a sample; sizes and boxes are those of its picture in the tar."""
    document = {
        "key": record.key,
        "split": record.split,
        "wnid": record.wnid,
        "label": record.label,
        "path": record.path,
        "width": width,
        "height": height,
    }
    if boxes is not None:
        document["boxes"] = boxes
    return _encode(document).encode()


class ShardFile:
    """A tar while it is written. It appears under its name when :meth:`publish` is called, and never if that is not.

    Args:
        path: Where it will lie.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._hash = hashlib.sha256()
        self._num_bytes = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._handle = os.open(self._temporary, flags, 0o666)

    def add(self, record: Record, image: PreparedImage, boxes: list[dict[str, Any]] | None) -> int:
        """Append the three members of a sample.

        Returns:
            Where the bytes of its picture start.
        """
        key, jpeg = record.key, image.jpeg
        label = str(record.label).encode()
        document = sample_json(record, image.width, image.height, boxes)
        before = tar_header(f"{key}.jpg", len(jpeg))
        after = b"".join((padding(len(jpeg)), tar_header(f"{key}.cls", len(label)), label, padding(len(label))))
        last = b"".join((tar_header(f"{key}.json", len(document)), document, padding(len(document))))
        offset = self._num_bytes + BLOCK
        # Short parts are hashed without letting go of the interpreter lock, which takes longer than hashing them.
        self._write([before, jpeg, after, last])
        return offset

    def _write(self, parts: list[Content]) -> None:
        total = sum(map(len, parts))
        written = os.writev(self._handle, parts)
        if written < total:
            rest = memoryview(b"".join(parts))[written:]
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        for part in parts:
            self._hash.update(part)
        self._num_bytes += total

    def publish(self, num_samples: int) -> ShardInfo:
        """End the tar, make it last, and give it its name."""
        self._write([END])
        os.fsync(self._handle)
        self._close()
        self._temporary.replace(self._path)
        fsync_folder(self._path.parent)
        return ShardInfo(
            filename=self._path.name,
            num_samples=num_samples,
            num_bytes=self._num_bytes,
            sha256=self._hash.hexdigest(),
        )

    def _close(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was not published."""
        self._close()
        # The disk may be full or gone: the first error is the one to report.
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class PackedShard:
    """One tar that was written.

    Attributes:
        info: What the index says of it.
        rows: Its rows of the sample table, with the columns of :data:`imgprep.index.SAMPLE_FIELDS`.
        rejected: What was left out.
        unchanged: How many pictures kept their bytes.
        resumed: Whether an earlier run wrote it.
    """

    info: ShardInfo
    rows: NDArray[np.void]
    rejected: tuple[Rejected, ...]
    unchanged: int
    resumed: bool = False

    def to_json(self) -> dict[str, Any]:
        """As JSON values, with a digest of their own."""
        content = {
            "info": asdict(self.info),
            "rows": base64.b64encode(self.rows.tobytes()).decode(),
            "rejected": [asdict(one) for one in self.rejected],
            "unchanged": self.unchanged,
        }
        return content | {"sha256": _digest(content)}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def parse_packed(document: dict[str, Any]) -> PackedShard:
    """Read what :meth:`PackedShard.to_json` wrote.

    Raises:
        DamagedError: It is something else, or was changed.
    """
    try:
        content = {name: document[name] for name in ("info", "rows", "rejected", "unchanged")}
        if document["sha256"] != _digest(content):
            raise ValueError("another digest")
        return PackedShard(
            info=ShardInfo(**content["info"]),
            rows=np.frombuffer(base64.b64decode(content["rows"], validate=True), dtype=list(SAMPLE_FIELDS)),
            rejected=tuple(Rejected(**one) for one in content["rejected"]),
            unchanged=int(content["unchanged"]),
        )
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise DamagedError(f"the record of a finished tar is damaged ({error})") from None


def pack(plan: ShardPlan, path: Path, *, read: Read, prepare: Prepare, tick: Tick) -> PackedShard:
    """Read, prepare and pack the records of one plan.

    Args:
        plan: What goes into the tar.
        path: The tar.
        read: Gives the bytes of a member of the source; called with :attr:`imgprep.records.Record.path`.
        prepare: Makes the picture of a sample of them.
        tick: Called after each record.

    Raises:
        MemberError: The source does not give the bytes that it lists. That says nothing about the picture: the source
            may be whole again tomorrow, and the same request would give another tar then.
    """
    rows: list[tuple[int, int, int, int, int]] = []
    rejected: list[Rejected] = []
    unchanged = 0
    with ShardFile(path) as file:
        for record in plan.records:
            content = _read(read, record)
            try:
                image = prepare(content)
            except ImageError as error:
                rejected.append(Rejected(record.key, record.split, record.path, error.what))
                tick()
                continue
            # What the source checked already is not summed again.
            kept = image.unchanged and record.crc32 is not None
            checksum = record.crc32 if kept else zlib.crc32(image.jpeg)
            unchanged += image.unchanged
            boxes = plan.boxes.get(record.key)
            offset = file.add(record, image, place_boxes(boxes, image) if boxes else None)
            rows.append((plan.number, offset, len(image.jpeg), record.label, checksum or 0))
            tick()
        info = file.publish(len(rows))
    table = np.array(rows, dtype=list(SAMPLE_FIELDS))
    return PackedShard(info=info, rows=table, rejected=tuple(rejected), unchanged=unchanged)


def _read(read: Read, record: Record) -> Content:
    try:
        return read(record.path)
    except MemberError as error:
        raise MemberError(
            error.what,
            f"{error.advice or 'mend the source'}, then run the same command again; or leave such pictures out:"
            " `imgprep doctor`, then `imgprep subset --drop odd`",
        ) from None


def place_boxes(boxes: tuple[ToldBox, ...], image: PreparedImage) -> list[dict[str, Any]] | None:
    """The boxes of a sample in pixels of its picture in the tar, None where there are none."""
    placed = []
    for box in boxes:
        corners = image.geometry.scale_box((box.xmin, box.ymin, box.xmax, box.ymax), (box.width, box.height))
        # A crop may leave nothing of it.
        if corners is not None:
            placed.append({"wnid": box.wnid, **dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))})
    return placed or None


def record_path(folder: Path, filename: str) -> Path:
    """Where the record of a finished tar lies in the folder of a job."""
    return folder / f"{filename}.json"


def finished(plan: ShardPlan, folder: Path, records: Path) -> PackedShard | None:
    """What was written of a plan by an earlier run, if it is there to the byte.

    Args:
        plan: The plan.
        folder: Folder of the tars.
        records: Folder of the job.
    """
    try:
        packed = parse_packed(read_json(record_path(records, plan.filename)))
    except (FileNotFoundError, DamagedError):
        return None
    path = folder / plan.filename
    if packed.info.filename != plan.filename or not path.is_file() or path.stat().st_size != packed.info.num_bytes:
        return None
    if packed.info.num_samples + len(packed.rejected) != len(plan.records):
        return None
    return replace(packed, resumed=True) if sha256_file(path) == packed.info.sha256 else None


def keep(packed: PackedShard, records: Path) -> None:
    """Write the record of a finished tar: with it, the tar counts as done."""
    write_json(record_path(records, packed.info.filename), packed.to_json())
