"""One tar of samples against what is said of it: hashed, and every byte compared that follows from others, in one pass.

Of a tar that imgprep wrote, nothing is free but the bytes of the pictures, which have a CRC-32 in the sample table, and
some values in ``KEY.json``: headers are made from a template, padding is zeros, labels stand three times, and JSON has
one spelling. So damage is not only noticed but found.
"""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from PIL import Image

from imgprep.errors import SourceError
from imgprep.images import MAX_PIXELS, picture_formats, quiet
from imgprep.index import ShardInfo
from imgprep.packing import BLOCK, END, padding, tar_header
from imgprep.records import is_key
from imgprep.sources.ranges import RangeFile
from imgprep.sources.tar import FileRange, walk_tar

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal[
    "missing",
    "extra",
    "link",
    "unreadable",
    "size",
    "sha256",
    "other-file",
    "index",
    "table",
    "receipt",
    "sums",
    "header",
    "jpg",
    "cls",
    "json",
    "padding",
    "end",
    "cut-off",
    "decode",
]
"""What is wrong: with a file as a whole, up to ``sums``, else with a place in a tar."""

_WINDOW: Final = 1 << 17
"""Bytes read at once: what was hashed is still in the processor's cache when it is summed."""
_TELL_BYTES: Final = 1 << 23
_MAX_BESIDE: Final = 1 << 22
"""Bytes a sample may have beside its picture. Boxes and names take some hundreds."""
_MIN_BESIDE: Final = 4 * BLOCK
"""Headers of KEY.cls and KEY.json, and a block for the content of each."""
_MAX_PICTURE: Final = 1 << 28
"""Bytes of a picture that is decoded; to sum it, its size does not matter."""
_MAX_OFFSET: Final = 1 << 62

_FIELDS: Final[dict[str, type]] = {
    "key": str,
    "split": str,
    "wnid": str,
    "label": int,
    "path": str,
    "width": int,
    "height": int,
}
_BOX_FIELDS: Final = ("wnid", "xmin", "ymin", "xmax", "ymax")
_HEADER_FIELDS: Final = (
    *(("name", 0), ("mode", 100), ("uid", 108), ("gid", 116), ("size", 124), ("mtime", 136), ("chksum", 148)),
    *(("typeflag", 156), ("linkname", 157), ("magic", 257), ("version", 263), ("uname", 265), ("gname", 297)),
    *(("devmajor", 329), ("devminor", 337), ("prefix", 345), ("filling", 500), ("", BLOCK)),
)
"""Fields of a header and where they start (POSIX 1003.1, ustar)."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is not as it should be.

    Attributes:
        kind: See :data:`Kind`.
        file: Name of the file in the folder.
        what: What is wrong, in words.
        expected: What should be there, where that can be said.
        found: What is there.
        member: The member of the tar, such as ``KEY.json``.
        key: The sample, as far as it can be told.
        split: Its split.
        row: Its row in the sample table of the split.
    """

    kind: Kind
    file: str
    what: str
    expected: str = ""
    found: str = ""
    member: str = ""
    key: str = ""
    split: str = ""
    row: int | None = None

    @property
    def line(self) -> str:
        """The problem in one line, for people."""
        place = f"{self.file}: {self.member}" if self.member else self.file
        row = "" if self.row is None else f" (row {self.row:,} of {self.split})"
        values = f"; expected {self.expected}, found {self.found}" if self.expected or self.found else ""
        return f"{place}{row}: {self.what}{values}"


def open_plain(path: Path, *, follow_links: bool = False) -> tuple[int, int]:
    """Open a regular file that lies in its folder itself.

    Args:
        path: The file.
        follow_links: It may be a symbolic link to one elsewhere.

    Returns:
        Its handle and its size in bytes.

    Raises:
        OSError: It is missing or cannot be read, or is a link, a folder or a device.
        ValueError: No file can have that name.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    handle = os.open(path, flags if follow_links else flags | os.O_NOFOLLOW)
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file")
    return handle, status.st_size


def file_problem(name: str, error: OSError | ValueError) -> Problem:
    """What to say of a file that cannot be opened or read."""
    number = error.errno if isinstance(error, OSError) else errno.EINVAL
    if number == errno.ENOENT:
        return Problem(kind="missing", file=name, what="is missing")
    if number == errno.ELOOP:
        return Problem(kind="link", file=name, what="is a symbolic link: its bytes are not in this folder")
    reason = error.strerror if isinstance(error, OSError) else "no file can have that name"
    return Problem(kind="unreadable", file=name, what=f"cannot be read: {reason}")


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One tar and what is said of it.

    Attributes:
        path: The tar.
        info: Its entry in the index.
        split: Its split.
        table: Name of the split's sample table.
        first_row: Number of its first row in that table.
        rows: Its rows; None where the table cannot be used: then only the hash is checked.
        wnids: The classes of the index by label.
        imported: Whether others wrote it: then only hash and CRC-32 are checked.
        decode: Decode every picture.
        sizes: Sizes of all tars of the folder: one of these sizes is read whole, whatever its name is.
    """

    path: Path
    info: ShardInfo
    split: str
    table: str
    first_row: int
    rows: NDArray[np.void] | None
    wnids: Sequence[str]
    imported: bool
    decode: bool
    sizes: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What was found in one tar: the SHA-256 of all its bytes (empty when it was not read whole), and problems."""

    name: str
    sha256: str
    num_bytes: int
    problems: Sequence[Problem]


def check_shard(task: ShardTask, tick: Callable[[], None], advance: Callable[[int], None]) -> ShardReport:
    """Read a tar from end to end.

    Args:
        task: What to compare with.
        tick: Called after each sample; may raise to stop.
        advance: Told of bytes read.
    """
    name = task.info.filename
    try:
        # `imgprep index --out` leaves tars of others where they are.
        handle, num_bytes = open_plain(task.path, follow_links=task.imported)
    except (OSError, ValueError) as error:
        return ShardReport(name=name, sha256="", num_bytes=0, problems=[file_problem(name, error)])
    try:
        return _ShardCheck(task, handle, num_bytes, advance).report(tick)
    except OSError as error:
        return ShardReport(name=name, sha256="", num_bytes=0, problems=[file_problem(name, error)])
    finally:
        os.close(handle)


class _Stream:
    """A file read forward in one reused buffer, hashed on the way."""

    def __init__(self, handle: int, num_bytes: int, advance: Callable[[int], None]) -> None:
        self._handle, self._left, self._advance = handle, num_bytes, advance
        self._buffer = memoryview(bytearray(_WINDOW))
        self._start = self._stop = self._untold = 0
        self.position = 0
        self.sha256 = hashlib.sha256()

    def _next(self, most: int) -> memoryview:
        """Up to so many of the next bytes, valid until the next call; none at the end."""
        if self._start == self._stop and self._left:
            count = os.readv(self._handle, [self._buffer[: min(self._left, _WINDOW)]])
            self.sha256.update(self._buffer[:count])
            self._left = self._left - count if count else 0
            self._start, self._stop = 0, count
            self._tell(count)
        part = self._buffer[self._start : min(self._stop, self._start + most)]
        self._start += len(part)
        self.position += len(part)
        return part

    def _tell(self, count: int) -> None:
        self._untold += count
        if self._untold >= _TELL_BYTES or not self._left:
            self._advance(self._untold)
            self._untold = 0

    def take(self, num_bytes: int) -> bytes:
        """The next bytes; fewer at the end."""
        part = self._next(num_bytes)
        if len(part) == num_bytes:
            return bytes(part)
        parts = [bytes(part)]
        num_bytes -= len(part)
        while num_bytes > 0 and (part := self._next(num_bytes)):
            parts.append(bytes(part))
            num_bytes -= len(part)
        return b"".join(parts)

    def sum_up(self, num_bytes: int) -> int:
        """CRC-32 of the next bytes."""
        checksum = 0
        while num_bytes > 0 and (part := self._next(num_bytes)):
            checksum = zlib.crc32(part, checksum)
            num_bytes -= len(part)
        return checksum

    def skip_to(self, position: int) -> None:
        """Only hash what lies before ``position``."""
        while self.position < position and self._next(position - self.position):
            pass


class _ShardCheck:
    """The check of one tar.

    Args:
        task: What to compare with.
        handle: The open tar.
        num_bytes: Its size.
        advance: Told of bytes read.
    """

    def __init__(self, task: ShardTask, handle: int, num_bytes: int, advance: Callable[[int], None]) -> None:
        self._task, self._num_bytes = task, num_bytes
        # A tar of no known size is another file, or a bomb: what goes beyond the index is not read.
        self._limit = num_bytes if num_bytes in task.sizes else min(num_bytes, max(task.info.num_bytes, 0))
        self._stream = _Stream(handle, self._limit, advance)
        self._problems: list[Problem] = []

    def report(self, tick: Callable[[], None]) -> ShardReport:
        """Do it."""
        task, info = self._task, self._task.info
        rows, moved = self._rows()
        if rows is not None:
            for first, row, after in _with_next(rows):
                if task.imported:
                    self._check_picture(first, row)
                else:
                    self._check_sample(first, row, info.num_bytes - len(END) if after is None else after - BLOCK)
                tick()
            if not task.imported and self._limit == info.num_bytes:
                self._check_end()
        self._stream.skip_to(self._limit)
        whole = self._limit == self._num_bytes
        sha256 = self._stream.sha256.hexdigest() if whole else ""
        if sha256 == info.sha256 and self._problems:
            self._blame_table(rows)
        self._problems = moved + self._problems
        return ShardReport(
            name=info.filename, sha256=sha256, num_bytes=self._stream.position, problems=self._whole(sha256)
        )

    def _whole(self, sha256: str) -> list[Problem]:
        """The problems, that of the file as a whole first."""
        info = self._task.info
        if self._num_bytes != info.num_bytes:
            expected, found = f"{info.num_bytes:,} bytes", f"{self._num_bytes:,}"
            other = Problem(kind="size", file=info.filename, what="has another size", expected=expected, found=found)
            return [other, *self._problems]
        if sha256 == info.sha256:
            return self._problems
        what = "has another SHA-256"
        if self._task.rows is None:
            what += "; which samples are hit cannot be told without a sample table"
        elif not self._problems and self._task.imported:
            what += "; the damage is not in a picture, but in what lies between them"
        elif not self._problems:
            count = len(self._task.rows)
            what += f"; the damage is in the path, width, height or boxes of one of the {count:,} KEY.json members"
        changed = Problem(kind="sha256", file=info.filename, what=what, expected=info.sha256, found=sha256)
        return [changed, *self._problems]

    # Where the samples lie.

    def _rows(self) -> tuple[NDArray[np.void] | None, list[Problem]]:
        """The rows to go by, and what is wrong with those of the table."""
        task = self._task
        if task.rows is None or task.imported:
            return None if task.rows is None else np.sort(task.rows, order="offset"), []
        if _could_be(task.rows, task.info.num_bytes):
            return task.rows, []
        members = self._members()
        if members is None or len(members) != len(task.rows):
            return None, [self._row_problem(None, "the rows do not lie one after another in the tar")]
        rows = task.rows.copy()
        rows["offset"], rows["length"] = [offset for offset, _ in members], [length for _, length in members]
        return rows if _could_be(rows, task.info.num_bytes) else None, self._moved(members)

    def _members(self) -> list[tuple[int, int]] | None:
        """Where the pictures lie by the headers of the tar; None where these are damaged."""
        try:
            with RangeFile(self._task.path) as file:
                walked = list(walk_tar(FileRange(file, 0, self._limit), self._task.path))
        except SourceError:
            return None
        return [(offset, length) for name, offset, length in walked if name.endswith(".jpg")]

    def _moved(self, members: Sequence[tuple[int, int]]) -> list[Problem]:
        """The rows that say another place than the headers."""
        assert self._task.rows is not None
        told = zip(self._task.rows["offset"].tolist(), self._task.rows["length"].tolist(), strict=True)
        return [
            self._row_problem(number, "says another place than the tar", str(found), str(said))
            for number, (said, found) in enumerate(zip(told, members, strict=False))
            if said != found
        ]

    def _blame_table(self, rows: NDArray[np.void] | None) -> None:
        """The tar is as it was packed, so what does not fit the table is the table's fault."""
        members = self._members() if rows is self._task.rows and not self._task.imported else None
        if members and (moved := self._moved(members)):
            self._problems = moved
            return
        self._problems = [
            replace(one, kind="table", file=self._task.table, what=f"{one.what}; the tar is whole")
            if one.kind in ("jpg", "cls")
            else one
            for one in self._problems
        ]

    def _row_problem(self, number: int | None, what: str, expected: str = "", found: str = "") -> Problem:
        task = self._task
        row = None if number is None else task.first_row + number
        what = f"{what} ({task.info.filename})"
        return Problem(
            kind="table", file=task.table, what=what, expected=expected, found=found, split=task.split, row=row
        )

    # One sample.

    def _add(self, kind: Kind, number: int, key: str, suffix: str, what: str, *values: object) -> None:
        """Note a problem; ``values`` are what was expected and what was found."""
        expected, found = (_shown(value) for value in values) if values else ("", "")
        self._problems.append(
            Problem(
                kind=kind,
                file=self._task.info.filename,
                what=what,
                expected=expected,
                found=found,
                member=f"{key}.{suffix}" if key else "",
                key=key,
                split=self._task.split,
                row=self._task.first_row + number,
            )
        )

    def _check_picture(self, number: int, row: _Row) -> None:
        """A picture in a tar of others."""
        _, offset, length, _, checksum = row
        if offset + length > self._limit:
            self._add("cut-off", number, "", "picture", "lies beyond the end of the tar")
        elif offset < self._stream.position:
            self._problems.append(self._row_problem(number, "lies inside the one before it"))
        else:
            self._stream.skip_to(offset)
            self._check_content(number, "", length, checksum, "picture")

    def _check_content(self, number: int, key: str, length: int, checksum: int, suffix: str) -> tuple[int, int] | None:
        """Sum up a picture; returns its width and height where it was decoded."""
        if not self._task.decode or length > _MAX_PICTURE:
            found, size = self._stream.sum_up(length), None
            if self._task.decode:
                self._add("decode", number, key, suffix, f"has {length:,} bytes, which is more than is decoded")
        else:
            content = self._stream.take(length)
            found, size = zlib.crc32(content), _decoded(content)
            if isinstance(size, str):
                self._add("decode", number, key, suffix, f"cannot be decoded: {size}")
        if found != checksum:
            self._add("jpg", number, key, suffix, "the picture has another CRC-32", f"{checksum:08x}", f"{found:08x}")
        return size if isinstance(size, tuple) else None

    def _check_sample(self, number: int, row: _Row, stop: int) -> None:
        """One sample of a tar that imgprep wrote: three headers, three contents, and what fills the blocks."""
        _, offset, length, label, checksum = row
        if stop > self._limit:
            self._add("cut-off", number, "", "jpg", "the tar ends before the end of this sample")
            return
        stream, before = self._stream, len(self._problems)
        stream.skip_to(offset - BLOCK)
        jpg_header = stream.take(BLOCK)
        key = _name(jpg_header)
        size = self._check_content(number, key, length, checksum, "jpg")
        rest = stream.take(stop - stream.position)
        begin = -length % BLOCK
        jpg_fill, beside = rest[:begin], rest[begin:]
        cls_header, cls, json_header = (beside[start : start + BLOCK] for start in (0, BLOCK, 2 * BLOCK))
        text, json_fill = _split_json(json_header, beside[3 * BLOCK :])
        document = _parse(text)
        told = {} if isinstance(document, str) else document
        if len(self._problems) == before and self._is_right(key, row, jpg_header, rest, text, told, size):
            return

        key = _agreed([key, _name(cls_header), _name(json_header), told.get("key")])
        label = _agreed_label(label, cls.rstrip(b"\0"), told.get("label"))
        digits = str(label).encode()
        # The key is known only now.
        self._problems[before:] = [
            replace(one, key=key, member=f"{key}.jpg" if key else one.member) for one in self._problems[before:]
        ]
        for suffix, header, num_bytes in (
            ("jpg", jpg_header, length),
            ("cls", cls_header, len(digits)),
            ("json", json_header, len(text)),
        ):
            self._check_header(number, key, suffix, header, num_bytes)
        self._check_label(number, key, row[3], label, cls[: len(digits)])
        self._check_json(number, key, label, document, size)
        for suffix, fill in (("jpg", jpg_fill), ("cls", cls[len(digits) :]), ("json", json_fill)):
            if fill.strip(b"\0"):
                at = len(fill) - len(fill.lstrip(b"\0"))
                self._add("padding", number, key, suffix, "what fills its last block is not zero", 0, fill[at])

    def _is_right(
        self,
        key: str,
        row: _Row,
        header: bytes,
        rest: bytes,
        text: bytes,
        told: dict[str, Any],
        size: tuple[int, int] | None,
    ) -> bool:
        """Whether all but the picture is, byte for byte, what it should be: most samples need no closer look."""
        label, wnids = row[3], self._task.wnids
        digits = b"%d" % label
        return (
            bool(key and told)
            and 0 <= label < len(wnids)
            and (told["key"], told["split"], told["wnid"], told["label"])
            == (key, self._task.split, wnids[label], label)
            and size in (None, (told["width"], told["height"]))
            and header == tar_header(f"{key}.jpg", row[2])
            and rest
            == b"".join(
                (
                    padding(row[2]),
                    tar_header(f"{key}.cls", len(digits)),
                    digits,
                    padding(len(digits)),
                    tar_header(f"{key}.json", len(text)),
                    text,
                    padding(len(text)),
                )
            )
        )

    def _check_header(self, number: int, key: str, suffix: str, header: bytes, num_bytes: int) -> None:
        if not key:
            self._add("header", number, key, suffix, "the headers of the sample do not name it")
            return
        expected = tar_header(f"{key}.{suffix}", num_bytes)
        if header == expected:
            return
        for (field, start), (_, stop) in itertools.pairwise(_HEADER_FIELDS):
            if header[start:stop] != expected[start:stop]:
                values = expected[start:stop].rstrip(b"\0"), header[start:stop].rstrip(b"\0")
                self._add("header", number, key, suffix, f"field {field} of its header", *values)

    def _check_label(self, number: int, key: str, told: int, label: int, found: bytes) -> None:
        digits = str(label).encode()
        if found != digits:
            self._add("cls", number, key, "cls", "is another label", digits, found)
        if told != label:
            self._add("cls", number, key, "cls", "the sample table has another label", told, label)
        if not 0 <= label < len(self._task.wnids):
            self._add(
                "cls", number, key, "cls", "there is no class of that label", f"below {len(self._task.wnids)}", label
            )

    def _check_json(
        self, number: int, key: str, label: int, document: dict[str, Any] | str, size: tuple[int, int] | None
    ) -> None:
        if isinstance(document, str):
            self._add("json", number, key, "json", document)
            return
        wnids = self._task.wnids
        wnid = wnids[label] if 0 <= label < len(wnids) else document["wnid"]
        for name, value in (("key", key), ("split", self._task.split), ("wnid", wnid), ("label", label)):
            if document[name] != value:
                self._add("json", number, key, "json", f"has another {name}", value, document[name])
        told = document["width"], document["height"]
        if size is not None and size != told:
            self._add("decode", number, key, "jpg", "has another size than KEY.json says", told, size)

    def _check_end(self) -> None:
        self._stream.skip_to(self._limit - len(END))
        if self._stream.take(len(END)) != END:
            name = self._task.info.filename
            self._problems.append(Problem(kind="end", file=name, what="does not end in two blocks of zeros"))


_Row = tuple[int, int, int, int, int]
"""Shard, offset, length, label, CRC-32."""


def _with_next(rows: NDArray[np.void]) -> Iterator[tuple[int, _Row, int | None]]:
    """Each row with its number and the offset of the next one, None after the last."""
    step = 1 << 12
    for start in range(0, len(rows), step):
        some: list[_Row] = rows[start : start + step + 1].tolist()
        for place, row in enumerate(some[:step]):
            yield start + place, row, some[place + 1][1] if place + 1 < len(some) else None


def _could_be(rows: NDArray[np.void], num_bytes: int) -> bool:
    """Whether samples that imgprep writes can lie at these places of a tar of that size."""
    num_bytes = min(num_bytes, _MAX_OFFSET)
    if not len(rows):
        return num_bytes == len(END)
    if num_bytes < len(END) or int(rows["offset"].max()) > num_bytes:
        return False
    offsets = rows["offset"].astype(np.int64)
    lengths = rows["length"].astype(np.int64)
    beside = np.append(offsets[1:] - BLOCK, num_bytes - len(END)) - offsets - lengths - -lengths % BLOCK
    return bool(
        offsets[0] == BLOCK
        and not (offsets % BLOCK).any()
        and (beside >= _MIN_BESIDE).all()
        and (beside <= _MAX_BESIDE).all()
    )


def _name(header: bytes) -> str:
    """The key in the name of a header; empty where it is none."""
    key = header[:100].partition(b"\0")[0].rpartition(b".")[0].decode("ascii", "replace")
    return key if is_key(key) else ""


def _agreed(keys: Sequence[object]) -> str:
    """What most say, the first of them where they all differ."""
    valid = [key for key in keys if isinstance(key, str) and is_key(key)]
    return max(valid, key=valid.count, default="")


def _agreed_label(table: int, digits: bytes, told: object) -> int:
    """The label that two of table, KEY.cls and KEY.json have, else that of the table."""
    packed = int(digits) if len(digits) <= 10 and digits.isdigit() else None
    return packed if packed is not None and packed == told and type(told) is int else table


def _split_json(header: bytes, rest: bytes) -> tuple[bytes, bytes]:
    """The content of a ``KEY.json`` and what fills its last block, by its header where that is sound."""
    digits = header[124:135]
    size = int(digits, 8) if digits.isdigit() and not digits.strip(b"01234567") else -1
    if not (0 < size <= len(rest) and size + -size % BLOCK == len(rest) and rest[size - 1] == ord("}")):
        size = len(rest.rstrip(b"\0"))
    return rest[:size], rest[size:]


def _parse(text: bytes) -> dict[str, Any] | str:
    """What a ``KEY.json`` says, or what is wrong with it."""
    try:
        document = json.loads(text.decode("utf-8"))
        canonical = _encode(document).encode("utf-8") == text
    except (ValueError, RecursionError) as error:
        return f"is not valid JSON ({' '.join(str(error).split())[:200]})"
    if not isinstance(document, dict) or tuple(document) not in (tuple(_FIELDS), (*_FIELDS, "boxes")):
        return f"has other fields than {', '.join(_FIELDS)} and maybe boxes"
    wrong = _wrong_field(document)
    if wrong:
        return f"has no usable {wrong}"
    return document if canonical else "is spelled otherwise than imgprep writes it"


def _wrong_field(document: dict[str, Any]) -> str:
    """The first field with an impossible value; empty where all can be."""
    for name, kind in _FIELDS.items():
        if type(document[name]) is not kind or (name in ("width", "height") and document[name] < 1):
            return name
    boxes = document.get("boxes", [])
    return "" if isinstance(boxes, list) and all(_is_box(box, document) for box in boxes) else "boxes"


def _is_box(box: object, document: dict[str, Any]) -> bool:
    if not isinstance(box, dict) or tuple(box) != _BOX_FIELDS or not isinstance(box["wnid"], str):
        return False
    corners = [box[name] for name in _BOX_FIELDS[1:]]
    if not all(type(corner) in (int, float) for corner in corners):
        return False
    xmin, ymin, xmax, ymax = corners
    return bool(0 <= xmin <= xmax <= document["width"] and 0 <= ymin <= ymax <= document["height"])


def _decoded(content: bytes) -> tuple[int, int] | str:
    """Width and height of a picture that decodes from end to end, as it is stored; else why it does not."""
    try:
        with quiet, Image.open(io.BytesIO(content), formats=picture_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"{image.width} x {image.height} pixels, more than the limit of {MAX_PIXELS:,}"
            image.load()
            return image.size
    except Exception as error:  # noqa: BLE001  # damaged pixels can raise anything in a decoder plug-in
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " x ".join(map(str, value))
    text = value.decode("ascii", "backslashreplace") if isinstance(value, bytes) else str(value)
    return text[:120] or "nothing"
