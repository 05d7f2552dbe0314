"""A tar packed with gzip, alone or inside a zip, as a source that is never unpacked.

Gzip has no random access. One pass over the archive checks it, lists the tar, and notes *access points*: places
between two deflate blocks, each with the 32 KiB before it, from which unpacking can start. Both are kept in a file, the
*index*, so that the pass happens once.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import sys
import tempfile
import threading
import zipfile
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from heapq import merge
from itertools import accumulate, chain, pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self, overload

from imgprep.errors import DamagedError, MemberError, SourceError
from imgprep.files import atomic_write, locked
from imgprep.sources import Member
from imgprep.sources.ranges import RangeFile
from imgprep.sources.tar import FileRange, TarSource, walk_tar
from imgprep.sources.zip import ZipSource
from imgprep.sources.zip_directory import ZipMembers
from imgprep.stats import SILENT, Progress

_AGAIN: Final = "download or copy it again"
_MAGIC: Final = b"\x1f\x8b"
_TRAILER: Final = 8
"""Bytes after the deflate stream: CRC-32 and length (RFC 1952, section 2.3)."""
_WINDOW: Final = 1 << 15
"""How far back deflate refers (RFC 1951, section 2)."""
_CHUNK: Final = 1 << 18
_MAX_MEMBER: Final = 1 << 30
"""Bytes one member may have. No picture or list of ImageNet comes near it."""
_MIN_SPACING: Final = 4 << 20
_MAX_SPACING: Final = 1 << 28
"""Unpacked bytes between access points; indexed_gzip holds four times as many in a 32-bit size."""
_POINTS: Final = 6000
"""Access points of a large archive: 6000 windows are 197 MB, and 155 GB get one every 26 MB."""
_STEP: Final = 1 << 28
"""Unpacked bytes from one search for access points to the next; each starts again at the last point found."""
_MAX_STREAMS: Final = 4_000_000
"""Gzip streams one after another in a file. 155 GB in blocks of 64 KiB, as bgzip writes them, are 2.4 million."""
_MAX_MEMBERS: Final = 20_000_000
_MAX_NAMES: Final = 1 << 31
"""Members of a tar and bytes of all their names. ImageNet has 1.4 million; the whole of ImageNet-21K 14 million."""
_RUN: Final = 1 << 17
_MAX_IDLE: Final = 16
"""Inflaters kept where they stopped, so that each of up to 16 threads goes on from there when reading in order."""


def _align(num_bits: int) -> tuple[int, int]:
    """Deflate blocks that unpack to nothing and end ``num_bits`` (0 to 7) short of a whole byte.

    An access point may lie inside a byte, but zlib starts at whole bytes. These blocks fill the bits before it. An
    empty block of fixed codes has 10 bits; an odd number takes one of 93 bits with dynamic codes (RFC 1951, section
    3.2).

    Returns:
        The bits, first bit lowest, and how many they are.
    """
    value = length = 0

    def put(number: int, width: int) -> None:
        nonlocal value, length
        value |= number << length
        length += width

    if num_bits % 2:
        put(0b10 << 1, 3)  # not the last block, dynamic codes
        put(15 << 10, 14)  # 257 literal codes, 1 distance code, all 19 code lengths follow
        for symbol in (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15):
            put(symbol in (1, 18), 3)  # two codes of one bit: 0 is "length 1", 1 is "zeros"
        for zeros in (138, 118):  # the 256 literals have no code
            put(1 | (zeros - 11) << 1, 8)
        put(0, 2)  # end of block and the distance have one of one bit
        put(0, 1)  # end of block
    while (length + num_bits) % 8:
        put(0b01 << 1, 10)  # not the last block, fixed codes, end of block
    return value, length


class Inflater:
    """Unpacks gzip forward. Streams one after another in one file are one stream.

    Every stream's CRC-32 and length are checked, but for one that was entered at an access point.

    Args:
        packed: The gzip file.
        progress: Told of each packed byte read.
    """

    def __init__(self, packed: FileRange, *, progress: Progress = SILENT) -> None:
        self._num_streams = 1
        self._packed = packed
        self._progress = progress
        self._offset = 0
        self._pending = b""
        self._decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._entered = False
        self._ended = False
        self._buffer = b""
        self._start = 0
        self._position = 0

    @classmethod
    def enter(cls, packed: FileRange, *, offset: int, num_bits: int, window: bytes, position: int) -> Self:
        """Start at an access point.

        Args:
            packed: The gzip file.
            offset: First whole byte of the block.
            num_bits: Bits of the block in the byte before.
            window: The 32 KiB that were unpacked before it; empty at the start of a stream.
            position: Where the block starts in the unpacked stream.
        """
        inflater = cls(packed)
        inflater._offset = offset
        inflater._decoder = zlib.decompressobj(-zlib.MAX_WBITS, zdict=window)
        inflater._entered = True
        inflater._start = inflater._position = position
        if num_bits:
            value, length = _align(num_bits)
            shared = packed.pread(1, offset - 1)[0] >> (8 - num_bits)
            blocks = value | shared << length
            inflater._decoder.decompress(blocks.to_bytes((length + num_bits) // 8, "little"))
        return inflater

    def tell(self) -> int:
        """Offset of the next byte in the unpacked stream."""
        return self._position

    def seek(self, offset: int) -> int:
        """Skip ahead to ``offset``, or to the end where that comes first."""
        if offset < self._position:
            raise ValueError("gzip unpacks forward only")
        while offset > self._start + len(self._buffer) and self._refill():
            pass
        self._position = min(offset, self._start + len(self._buffer))
        return self._position

    def read(self, num_bytes: int) -> bytes:
        """Up to ``num_bytes``, fewer at the end.

        Raises:
            zlib.error: The file is cut off or damaged.
        """
        parts = []
        while num_bytes:
            begin = self._position - self._start
            part = self._buffer[begin : begin + num_bytes]
            if not part and not self._refill():
                break
            parts.append(part)
            self._position += len(part)
            num_bytes -= len(part)
        return b"".join(parts)

    def _refill(self) -> bool:
        """Replace the buffer by what comes next; False at the end."""
        self._start += len(self._buffer)
        self._buffer = b""
        while not self._buffer:
            if self._decoder.eof:
                self._ended = self._ended or not self._next_stream()
            if self._ended:
                return False
            self._pending = self._pending or self._fetch()
            if not self._pending:
                raise zlib.error("the gzip stream is cut off")
            self._buffer = self._decoder.decompress(self._pending, _CHUNK)
            self._pending = self._decoder.unconsumed_tail
        self._position = max(self._position, self._start)
        return True

    def _next_stream(self) -> bool:
        """Step over the end of a stream; False if the file ends there."""
        rest = self._decoder.unused_data
        if self._entered:
            rest = (rest if len(rest) >= _TRAILER else rest + self._fetch())[_TRAILER:]
            self._entered = False
        rest = rest.lstrip(b"\0")  # tapes pad with zeros
        while not rest:
            if not (chunk := self._fetch()):
                return False
            rest = chunk.lstrip(b"\0")
        if len(rest) == 1:
            rest += self._fetch()
        if not rest.startswith(_MAGIC):
            raise zlib.error("other bytes follow the gzip stream")
        self._num_streams += 1
        if self._num_streams > _MAX_STREAMS:
            raise zlib.error(f"more than {_MAX_STREAMS:,} gzip streams")
        self._decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._pending = rest
        return True

    def _fetch(self) -> bytes:
        chunk = self._packed.pread(_CHUNK, self._offset)
        self._offset += len(chunk)
        self._progress.advance(len(chunk))
        return chunk


class Listing(Sequence[Member]):
    """Members of a tar in arrays: some 90 bytes each with a name of 60, where objects take 300."""

    def __init__(self) -> None:
        self._names = bytearray()
        self._ends = array("Q", [0])
        self._sizes = array("Q")
        self._crcs = array("I")
        self._order = array("I")
        self.offsets = array("Q")

    def append(self, name: str, offset: int, num_bytes: int, crc32: int) -> None:
        """Add a member.

        Raises:
            SourceError: There are too many.
        """
        if len(self) >= _MAX_MEMBERS or len(self._names) > _MAX_NAMES:
            raise SourceError(f"the tar has more than {len(self):,} members", "split it")
        self._names += name.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._names))
        self.offsets.append(offset)
        self._sizes.append(num_bytes)
        self._crcs.append(crc32)

    def _name(self, number: int) -> bytes:
        return bytes(self._names[self._ends[number] : self._ends[number + 1]])

    def sort(self) -> str | None:
        """Make members findable by name.

        Returns:
            A name that is there twice, if there is one.
        """
        # In runs, so that not all names are objects at once.
        starts = range(0, len(self), _RUN)
        runs = [array("I", sorted(range(len(self))[start : start + _RUN], key=self._name)) for start in starts]
        self._order = array("I", merge(*runs, key=self._name))
        for one, other in pairwise(self._order):
            if self._name(one) == self._name(other):
                return self[one].name
        return None

    def find(self, name: str) -> int | None:
        """Number of a member, None if there is none of that name."""
        wanted = name.encode("utf-8", "surrogateescape")
        place = bisect_left(self._order, wanted, key=self._name)
        if place == len(self._order) or self._name(self._order[place]) != wanted:
            return None
        return self._order[place]

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, index: int) -> Member: ...
    @overload
    def __getitem__(self, index: slice) -> list[Member]: ...
    def __getitem__(self, index: int | slice) -> Member | list[Member]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        name = self._name(number).decode("utf-8", "surrogateescape")
        return Member(name, self._sizes[number], self._crcs[number])

    def dump(self) -> list[memoryview]:
        """All there is, as bytes."""
        return [memoryview(self._names), *(memoryview(column).cast("B") for column in self._arrays())]

    @classmethod
    def load(cls, columns: Iterable[bytes]) -> Self:
        """What was dumped."""
        listing = cls()
        names, *rest = columns
        listing._names += names
        for column, content in zip(listing._arrays(), rest, strict=True):
            del column[:]
            column.frombytes(content)
        return listing

    def _arrays(self) -> tuple[array[int], ...]:
        return (self._ends, self.offsets, self._sizes, self._crcs, self._order)


class AccessPointFinder:
    """Finds access points with indexed_gzip, in a thread, in what was unpacked and checked before.

    It inflates on its own: on two cores that costs no time.

    Args:
        packed: The gzip file, with a position of its own.
    """

    def __init__(self, packed: FileRange) -> None:
        self._packed = packed
        self._spacing = max(_MIN_SPACING, packed.num_bytes // _POINTS)
        self._goal = 0
        self._pool = ThreadPoolExecutor(1)
        self._open()
        self._step: Future[None] = self._pool.submit(self._find, 0)

    def _open(self) -> None:
        from indexed_gzip import IndexedGzipFile  # type: ignore[import-untyped]

        # No buffer and no second check: nothing is read through it.
        self._file = IndexedGzipFile(
            fileobj=self._packed, spacing=self._spacing, skip_crc_check=True, readbuf_size=_CHUNK, buffer_size=1
        )

    def _find(self, num_bytes: int) -> None:
        if num_bytes // self._spacing > 2 * _POINTS and self._spacing < _MAX_SPACING:
            # It unpacks to far more than it has: fewer points, or their windows fill the memory.
            self._spacing = min(8 * self._spacing, _MAX_SPACING)
            self._open()
        try:
            self._file.seek(max(num_bytes - 1, 0))
        except (OSError, ValueError, RuntimeError) as error:
            raise zlib.error(f"no access points: {error}") from None

    def follow(self, num_bytes: int) -> None:
        """The first ``num_bytes`` unpacked bytes are checked: go on with the next step if the last is done."""
        if num_bytes >= self._goal + _STEP and self._step.done():
            self._step.result()
            self._goal += _STEP
            self._step = self._pool.submit(self._find, self._goal)

    def finish(self, num_bytes: int) -> None:
        """Find the rest; ``num_bytes`` is all there is."""
        self._step.result()
        while self._goal < num_bytes:
            self._goal = min(self._goal + _STEP, num_bytes)
            self._find(self._goal)

    def export(self, file: _Digested) -> None:
        """Write the points in the format of indexed_gzip."""
        try:
            self._file.export_index(fileobj=file)
        except OSError as error:
            # The reason, such as a full disk, is what the write raised.
            raise error.__cause__ or error from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the step under way, some seconds."""
        self._pool.shutdown()


class _Digested(io.RawIOBase):
    """A file and the SHA-256 of what was written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, content: bytes | memoryview, /) -> int:  # type: ignore[override]
        self.sha256.update(content)
        return self._file.write(content)


class Index:
    """Listing and access points of a packed tar, and the file that holds them.

    The file is: the points as indexed_gzip exports them (header, table, windows), the columns of the listing, a JSON
    object with the key and the columns' sizes, that object's size, and the SHA-256 of all before.

    Args:
        path: The file.
        key: What it has to be an index of.

    Raises:
        DamagedError: It is damaged, or an index of something else.
    """

    _HEADER: Final = struct.Struct("<5sBB2Q3I")  # "GZIDX", version, flags, two sizes, spacing, window, points
    _POINT: Final = struct.Struct("<2Q2B")  # packed and unpacked offset, bits, whether there is a window
    _END: Final = struct.Struct("<Q32s")

    def __init__(self, path: Path, key: dict[str, Any]) -> None:
        self._file = RangeFile(path)
        try:
            self.listing = self._load(path.stat().st_size, key)
        except (ValueError, KeyError, TypeError, RecursionError, struct.error, MemberError) as error:
            raise DamagedError(f"{path} is no index of this archive ({error})", "delete it") from None

    @classmethod
    def write(cls, file: IO[bytes], key: dict[str, Any], listing: Listing, points: AccessPointFinder) -> None:
        """Write an index file."""
        digested = _Digested(file)
        points.export(digested)
        columns = listing.dump()
        for column in columns:
            digested.write(column)
        about = json.dumps({"key": key, "columns": [column.nbytes for column in columns]}).encode()
        digested.write(about)
        digested.write(struct.pack("<Q", len(about)))
        file.write(digested.sha256.digest())

    def _load(self, size: int, key: dict[str, Any]) -> Listing:
        end = size - self._END.size
        if end < 0:
            raise ValueError("cut off")
        about_size, sha256 = self._END.unpack(self._file.read_exactly(self._END.size, end, what="its end"))
        if about_size > min(end, 4096):
            raise ValueError("damaged")
        about_start = end - about_size
        about = json.loads(self._file.read_exactly(about_size, about_start, what="its description"))
        if about["key"] != key:
            raise ValueError("another archive, or it changed")
        digest = hashlib.sha256()
        for offset in range(0, end + 8, 1 << 20):
            digest.update(self._file.pread(min(1 << 20, end + 8 - offset), offset))
        if digest.digest() != sha256:
            raise ValueError("damaged")
        *_, num_points = self._HEADER.unpack(self._file.read_exactly(self._HEADER.size, 0, what="its header"))
        table = self._file.read_exactly(num_points * self._POINT.size, self._HEADER.size, what="the table")
        self._windows = self._HEADER.size + len(table)
        packed, unpacked, bits, has_window = zip(*self._POINT.iter_unpack(table), strict=True)
        self._packed: array[int] = array("Q", packed)
        self._unpacked: array[int] = array("Q", unpacked)
        self._bits = bytes(bits)
        self._windows_before = array("I", accumulate(has_window, initial=0))
        starts = accumulate(about["columns"], initial=about_start - sum(about["columns"]))
        return Listing.load(
            self._file.read_exactly(num_bytes, start, what="a column")
            for num_bytes, start in zip(about["columns"], starts, strict=False)
        )

    def point_before(self, offset: int) -> int:
        """Number of the last access point at or before an offset in the unpacked stream."""
        return bisect_right(self._unpacked, offset) - 1

    def position(self, point: int) -> int:
        """Where a point lies in the unpacked stream."""
        return self._unpacked[point]

    def enter(self, packed: FileRange, point: int) -> Inflater:
        """An inflater that starts at a point."""
        before, after = self._windows_before[point : point + 2]
        window = self._file.pread((after - before) * _WINDOW, self._windows + before * _WINDOW)
        return Inflater.enter(
            packed,
            offset=self._packed[point],
            num_bits=self._bits[point],
            window=window,
            position=self._unpacked[point],
        )

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class TarGzSource:
    """A tar packed with gzip. The first time it is opened it is read once from end to end.

    Every byte is checked then, by the CRC-32 of gzip. A tar has none of its own for its members, so those noted in that
    pass are what ``read`` checks against later. Reading in archive order unpacks each byte once; a member elsewhere
    costs unpacking from the access point before it.

    Args:
        path: The archive, or the file that holds it.
        cache: Folder to keep the index in; None: it is made anew each time.
        progress: Told of the pass, in bytes of the archive.
        start: Where the archive starts in the file.
        num_bytes: Length of the archive; None: to the end of the file.

    Raises:
        SourceError: It is cut off or damaged, or holds something else than a tar.
        LockedError: Another process is making the index.
    """

    kind = "tar.gz"

    def __init__(
        self,
        path: Path,
        *,
        cache: Path | None = None,
        progress: Progress = SILENT,
        start: int = 0,
        num_bytes: int | None = None,
    ) -> None:
        self.path = path
        self._file = RangeFile(path)
        self._packed = FileRange(self._file, start, path.stat().st_size - start if num_bytes is None else num_bytes)
        self._idle: list[Inflater] = []
        self._lock = threading.Lock()
        key = self._key(start)
        if cache is None:
            with tempfile.TemporaryDirectory(prefix="imgprep-") as folder:
                self._index = self._make_index(Path(folder) / "index", key, progress)
            return
        index = cache / f"{path.name}.index"
        try:
            self._index = Index(index, key)
        except (FileNotFoundError, DamagedError):
            cache.mkdir(parents=True, exist_ok=True)
            with locked(cache / f"{path.name}.index.lock", holder="imgprep"):
                self._index = self._make_index(index, key, progress)

    def _key(self, start: int) -> dict[str, Any]:
        """What tells this archive from another, or from itself before a change."""
        status = self.path.stat()
        ends = hashlib.sha256(self._file.pread(1 << 20, 0))
        ends.update(self._file.pread(1 << 20, max(status.st_size - (1 << 20), 0)))
        return {
            "format": f"imgprep tar.gz index 1, {sys.byteorder}-endian",
            "num_bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "ends_sha256": ends.hexdigest(),
            "range": [start, self._packed.num_bytes],
        }

    def _make_index(self, path: Path, key: dict[str, Any], progress: Progress) -> Index:
        progress.begin(f"index {self.path.name}", self._packed.num_bytes, "bytes")
        try:
            listing, points = self._pass(progress)
        except zlib.error as error:
            raise SourceError(f"{self.path} is a gzip file cut off or damaged ({error})", _AGAIN) from None
        finally:
            progress.finish()
        if (twice := listing.sort()) is not None:
            raise SourceError(f"{self.path} lists {twice} twice", "make the archive again")
        if self._key(key["range"][0]) != key:
            raise SourceError(f"{self.path} changed while it was read", "wait until it is whole, then try again")
        with atomic_write(path) as file:
            Index.write(file, key, listing, points)
        return Index(path, key)

    def _pass(self, progress: Progress) -> tuple[Listing, AccessPointFinder]:
        """Unpack everything once: check it, list the tar, find access points."""
        if Inflater(self._packed).read(512)[257:262] != b"ustar":
            raise SourceError(f"{self.path} is a gzip file with something else than a tar inside", "check the path")
        inflater = Inflater(self._packed, progress=progress)
        listing = Listing()
        with AccessPointFinder(self._packed) as points:
            for name, offset, num_bytes in walk_tar(inflater, self.path):
                listing.append(name, offset, num_bytes, _crc32(inflater, num_bytes, what=f"{self.path}: member {name}"))
                points.follow(inflater.tell())
            while inflater.read(_CHUNK):
                pass
            points.finish(inflater.tell())
        return listing, points

    def members(self) -> Listing:
        """All regular files in the order of the archive."""
        return self._index.listing

    def read(self, name: str) -> bytes:
        """The bytes of one member, checked by size and CRC-32.

        Raises:
            MemberError: No such member, or damaged bytes.
        """
        listing = self._index.listing
        number = listing.find(name)
        if number is None:
            raise MemberError(f"{self.path} has no member {name}")
        member = listing[number]
        where = f"member {name} of {self.path.name}"
        if member.num_bytes > _MAX_MEMBER:
            raise MemberError(f"{where} claims {member.num_bytes:,} bytes, more than the limit of {_MAX_MEMBER:,}")
        try:
            inflater = self._take(listing.offsets[number])
            inflater.seek(listing.offsets[number])
            content = inflater.read(member.num_bytes)
        except (zlib.error, IndexError) as error:
            raise MemberError(f"{where} is damaged ({error})", "download or copy the archive again") from None
        if (found := zlib.crc32(content)) != member.crc32:
            raise MemberError(
                f"{where} is damaged: CRC-32 {found:08x}, {member.crc32:08x} when it was listed",
                "download or copy the archive again",
            )
        # Only now: damage may have moved the inflater to another place than it believes.
        self._put_back(inflater)
        return content

    def _take(self, offset: int) -> Inflater:
        """The inflater nearest before an offset: one that stopped there, or a new one at an access point."""
        point = self._index.point_before(offset)
        with self._lock:
            near = [idle for idle in self._idle if self._index.position(point) <= idle.tell() <= offset]
            if near:
                best = max(near, key=Inflater.tell)
                self._idle.remove(best)
                return best
        return self._index.enter(self._packed, point)

    def _put_back(self, inflater: Inflater) -> None:
        with self._lock:
            self._idle.append(inflater)
            del self._idle[:-_MAX_IDLE]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the archive and its index."""
        self._file.close()
        self._index.close()


def _crc32(inflater: Inflater, num_bytes: int, *, what: str) -> int:
    """CRC-32 of the next bytes."""
    found = 0
    while num_bytes:
        part = inflater.read(min(num_bytes, _CHUNK))
        if not part:
            raise SourceError(f"{what} is cut off: {num_bytes:,} bytes are missing", _AGAIN)
        found = zlib.crc32(part, found)
        num_bytes -= len(part)
    return found


_LOCAL_HEADER: Final = struct.Struct("<4s22x2H")
"""Signature and lengths of name and extra field, with what the directory says as well left out (APPNOTE.TXT 4.3.7)."""


def inner_tar(members: Sequence[Member]) -> Member | None:
    """The tar that is what a zip is about: the only one, larger than all else, and no pictures beside it."""
    if isinstance(members, ZipMembers) and 2 * int(members.sizes.max(initial=0)) <= int(members.sizes.sum()):
        # Nothing is larger than all else. Of millions of members the sizes tell that at once, their names do not.
        return None
    tars = [member for member in members if member.name.lower().endswith((".tar.gz", ".tgz", ".tar"))]
    if len(tars) != 1 or 2 * tars[0].num_bytes <= sum(member.num_bytes for member in members):
        return None
    return None if any("Data/CLS-LOC/" in member.name for member in members) else tars[0]


class NestedZipSource:
    """A zip that holds a tar with the pictures, and lists beside it, as Kaggle's older bundle does.

    Members of the tar and members of the zip lie side by side, each under its own name.

    Args:
        path: The zip.
        cache: Folder to keep the index of the tar in; see :class:`TarGzSource`.
        progress: Told of the pass over the tar.

    Raises:
        SourceError: The tar is not stored as it is, or zip or tar are damaged.
    """

    def __init__(self, path: Path, *, cache: Path | None = None, progress: Progress = SILENT) -> None:
        self.path = path
        self._outer = ZipSource(path)
        inner = inner_tar(self._outer.members())
        if inner is None:
            raise SourceError(f"{path} does not hold one tar with the pictures", "check the path")
        start = _start_of_stored(path, inner.name)
        self._inner: TarSource | TarGzSource
        if inner.name.lower().endswith(".tar"):
            self._inner = TarSource(path, start=start, num_bytes=inner.num_bytes)
        else:
            self._inner = TarGzSource(path, cache=cache, progress=progress, start=start, num_bytes=inner.num_bytes)
        self.kind = f"zip+{self._inner.kind}"
        beside = [member for member in self._outer.members() if member.name != inner.name]
        self._beside = {member.name for member in beside}
        self._members = _Joined(self._inner.members(), beside)
        for member in self._inner.members():
            if member.name in self._beside:
                raise SourceError(f"{path} lists {member.name} twice, inside and beside {inner.name}", _AGAIN)

    def members(self) -> Sequence[Member]:
        """The files of the tar, then those of the zip."""
        return self._members

    def read(self, name: str) -> bytes:
        """The bytes of one member.

        Raises:
            MemberError: No such member, or damaged bytes.
        """
        return self._outer.read(name) if name in self._beside else self._inner.read(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the archive."""
        self._outer.__exit__(kind, error, trace)
        self._inner.__exit__(kind, error, trace)


class _Joined(Sequence[Member]):
    """Two sequences one after the other, without a copy of the long one."""

    def __init__(self, first: Sequence[Member], second: Sequence[Member]) -> None:
        self._first = first
        self._second = second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    @overload
    def __getitem__(self, index: int) -> Member: ...
    @overload
    def __getitem__(self, index: slice) -> list[Member]: ...
    def __getitem__(self, index: int | slice) -> Member | list[Member]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        beyond = number - len(self._first)
        return self._first[number] if beyond < 0 else self._second[beyond]

    def __iter__(self) -> Iterator[Member]:
        return chain(self._first, self._second)


def _start_of_stored(path: Path, name: str) -> int:
    """Where the bytes of a stored member of a zip start."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    if info.flag_bits & 1:
        raise SourceError(f"{path}: member {name} is encrypted", f"decrypt it, then run `imgprep fetch --from {name}`")
    if info.compress_type != zipfile.ZIP_STORED:
        raise SourceError(
            f"{path}: member {name} is compressed once more by the zip, so no part of it can be read alone",
            f"run `unzip {path.name} {name}`, then `imgprep fetch --from {Path(name).name}`",
        )
    with RangeFile(path) as file:
        header = file.pread(_LOCAL_HEADER.size, info.header_offset)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
        raise SourceError(f"{path} is damaged: no local header at byte {info.header_offset:,}", _AGAIN)
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if info.compress_size != info.file_size or start + info.file_size > path.stat().st_size:
        raise SourceError(f"{path} is cut off or damaged: member {name} does not lie inside it", _AGAIN)
    return int(start)
