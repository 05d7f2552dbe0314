"""The directory of a zip archive, read as a stream into arrays: two million members in a hundred megabytes.

Section numbers are those of PKWARE's APPNOTE.TXT 6.3.10. The order of use is :func:`find_directory` on the last bytes
of the archive, :class:`DirectoryReader` on the directory, :class:`ZipDirectory` for what it says, and
:func:`member_content` or :class:`MemberChecker` on the members themselves.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt

from imgprep.errors import MemberError, SourceError
from imgprep.sources import Member

_END: Final = struct.Struct("<4s4H2LH")
"""4.3.16: signature, this disk, disk of the directory, entries here, entries, bytes, offset, length of the comment."""
_END_SIGNATURE: Final = b"PK\x05\x06"
_LOCATOR: Final = struct.Struct("<4sLQL")
"""4.3.15: signature, disk of the zip64 end record, its offset, number of disks."""
_LOCATOR_SIGNATURE: Final = b"PK\x06\x07"
_END64: Final = struct.Struct("<4sQ2H2L4Q")
"""4.3.14: signature, bytes that follow, two versions, this disk, disk of the directory, entries here, entries, bytes,
offset."""
_END64_SIGNATURE: Final = b"PK\x06\x06"
_MAX_END64: Final = 1 << 20
"""The extensible sector of the zip64 end record may be of any size (4.3.14.2); nobody writes one this large."""

TAIL_BYTES: Final = _END.size + 0xFFFF + _LOCATOR.size + _END64.size
"""From the end of an archive, enough to hold its end records whatever the length of the comment between."""

_HEADER: Final = np.dtype(
    [
        ("signature", "<u4"),
        ("versions", "<u4"),
        ("flags", "<u2"),
        ("method", "<u2"),
        ("time", "<u4"),
        ("crc32", "<u4"),
        ("packed", "<u4"),
        ("num_bytes", "<u4"),
        ("name_length", "<u2"),
        ("extra_length", "<u2"),
        ("comment_length", "<u2"),
        ("disk", "<u2"),
        ("attributes", "V6"),
        ("offset", "<u4"),
    ]
)
"""One entry of the directory, 46 bytes (4.3.12); name, extra fields and comment follow."""
_HEADER_SIGNATURE: Final = b"PK\x01\x02"
_LENGTHS: Final = struct.Struct("<3H")
_LENGTHS_AT: Final = 28
_ZIP64_TAG: Final = 1
_SATURATED: Final = 0xFFFF_FFFF
_SLASH: Final = ord("/")
_UTF8: Final = 1 << 11
ENCRYPTED: Final = 1

_LOCAL: Final = struct.Struct("<4s5H3L2H")
"""4.3.7: signature, version, flags, method, time, date, CRC-32, two sizes, length of the name, of the extra fields."""
LOCAL_SIGNATURE: Final = b"PK\x03\x04"
STORED: Final = 0
DEFLATED: Final = 8
MAX_MEMBER: Final = 1 << 30
"""Bytes one member may have when it is inflated. No picture or list of ImageNet comes near it."""

_MAX_MEMBERS: Final = 1 << 27
"""Members a directory may list: sixty times ImageNet. The arrays for them are allocated before they are read."""
_BATCH: Final = 1 << 19
"""Bytes of directory parsed at once: more than the longest entry (46 + 3 * 65,535), and small beside the arrays."""
_BLOCK: Final = 256
"""Names deflated together: the fewer, the quicker one is found; the more, the smaller they get."""
_FOLDER_FACTOR: Final = 0x9E37_79B9_7F4A_7C15
"""An odd number, 2**64 over the golden ratio: it spreads the numbers of folders over the keys of names.

The rest of a key is hash() of the basename, which is keyed afresh in every process: nobody can make names for an
archive that all collide."""
_MAX_NAME_LENGTH: Final = 2000
_MAX_STEP_BYTES: Final = 240
"""Of names that are written: POSIX systems take 255 bytes a folder or file and 4096 in all, workspace included."""
_INFLATE_STEP: Final = 1 << 18
_MAX_OVERHEAD: Final = 1 << 16
"""Bytes that a member may take in the archive beyond its content, encryption and odd packers included."""
_COPY_AGAIN: Final = "compare its size with the original and download or copy it again"
_AGAIN: Final = "download or copy the archive again"

_U8 = npt.NDArray[np.uint64]
_Places = npt.NDArray[np.int64]
_Sizes = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]


def _damaged(where: str, what: str) -> SourceError:
    return SourceError(f"{where} is cut off or damaged: {what}", _COPY_AGAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryPlace:
    """Where the directory lies in the archive.

    Attributes:
        offset: Its first byte.
        num_bytes: Its length.
        num_members: How many entries it has, folders counted.
    """

    offset: int
    num_bytes: int
    num_members: int


class TailTooShort(Exception):  # noqa: N818 - a request, not an error: the caller reads more and asks again
    """The end records begin before the bytes at hand.

    Args:
        num_bytes: How many of the last bytes are needed; at most about a mebibyte.
    """

    def __init__(self, num_bytes: int) -> None:
        super().__init__(f"the last {num_bytes} bytes are needed")
        self.num_bytes = num_bytes


def find_directory(tail: bytes, *, archive_bytes: int, where: str) -> DirectoryPlace:
    """Find the directory from the end records of an archive.

    The directory has to end where they begin, so an archive with something put before it (a self-extractor whose
    offsets were not adjusted) or after it is refused. An end record that a comment happens to hold breaks that rule.

    Args:
        tail: The last bytes of the archive: :data:`TAIL_BYTES`, or all of a smaller one.
        archive_bytes: Size of the archive.
        where: What to call it in messages.

    Raises:
        TailTooShort: The records are longer than ``tail``; call again with more.
        SourceError: There are none, or they are damaged, of several disks, or contradict the size of the archive.
    """
    start = archive_bytes - len(tail)
    error = _damaged(where, f"it has no end record in the last of its {archive_bytes:,} bytes")
    at = len(tail)
    while (at := tail.rfind(_END_SIGNATURE, 0, max(at + len(_END_SIGNATURE) - 1, 0))) >= 0:
        if at + _END.size > len(tail) or at + _END.size + _END.unpack_from(tail, at)[-1] != len(tail):
            continue
        try:
            return _read_end(tail, at, start=start, where=where)
        except SourceError as refused:
            error = refused
    if len(tail) < min(archive_bytes, TAIL_BYTES):
        raise TailTooShort(min(archive_bytes, TAIL_BYTES))
    raise error


def _read_end(tail: bytes, at: int, *, start: int, where: str) -> DirectoryPlace:
    """What the end record at ``tail[at]`` says, with its zip64 counterpart where there is one."""
    _, disk, directory_disk, here, count, num_bytes, offset, _ = _END.unpack_from(tail, at)
    disks, end = 1, start + at
    locator_at = at - _LOCATOR.size
    if locator_at < 0 and start:
        raise TailTooShort(min(start + len(tail), TAIL_BYTES))
    # Where the directory reaches up to the end record, nothing stands between: what looks like a locator is part of it.
    if offset + num_bytes != end and locator_at >= 0 and tail.startswith(_LOCATOR_SIGNATURE, locator_at):
        _, _, end, disks = _LOCATOR.unpack_from(tail, locator_at)
        record_at = end - start
        record_bytes = locator_at - record_at
        if not _END64.size <= record_bytes <= _MAX_END64:
            raise _damaged(where, f"its zip64 end record cannot be at byte {end:,}")
        if record_at < 0:
            raise TailTooShort(len(tail) - record_at)
        signature, follows, _, _, disk, directory_disk, here, count, num_bytes, offset = _END64.unpack_from(
            tail, record_at
        )
        if signature != _END64_SIGNATURE or follows + 12 != record_bytes:
            raise _damaged(where, f"its zip64 end record at byte {end:,} is none")
    if disk or directory_disk or here != count or disks > 1:
        raise SourceError(f"{where} is one part of an archive on several disks", "join the parts into one archive")
    if offset + num_bytes != end:
        raise _damaged(
            where, f"its directory should end at byte {offset + num_bytes:,}, and its end records begin at {end:,}"
        )
    if count * _HEADER.itemsize > num_bytes or (num_bytes and not count):
        raise _damaged(where, f"{count:,} members cannot be listed in {num_bytes:,} bytes")
    if count > _MAX_MEMBERS:
        raise SourceError(f"{where} lists {count:,} members, more than the limit of {_MAX_MEMBERS:,}")
    return DirectoryPlace(offset=offset, num_bytes=num_bytes, num_members=count)


class _Numbers(dict[bytes, int]):
    """Numbers for byte strings, in the order in which they are first asked for."""

    def __missing__(self, key: bytes) -> int:
        self[key] = number = len(self)
        return number


class DirectoryReader:
    """Parses a directory from pieces of any size; what it has parsed already is in arrays of the final size.

    Args:
        place: What :func:`find_directory` returned.
        where: What to call the archive in messages.
    """

    def __init__(self, place: DirectoryPlace, *, where: str) -> None:
        self._place = place
        self._where = where
        self._rest = bytearray()
        self._fed = self._parsed = self._crc = 0
        self._num_entries = self._num_members = 0
        size = place.num_members
        # Pages of an empty array cost nothing until they are written to.
        self._offset: _U8 = np.empty(size + 1, np.uint64)
        self._packed: _Sizes = np.empty(size, np.uint32)
        self._num_bytes: _Sizes = np.empty(size, np.uint32)
        self._crc32 = np.empty(size, np.uint32)
        self._method = np.empty(size, np.uint16)
        self._flags = np.empty(size, np.uint16)
        self._folder = np.empty(size, np.uint32)
        self._keys: _U8 = np.empty(size, np.uint64)
        self._folders = _Numbers()
        self._names: list[bytes] = []
        self._blocks: list[bytes] = []
        self._folder_entries: list[_U8] = []
        self._in_order, self._stop = True, 0

    def feed(self, piece: bytes | memoryview) -> None:
        """Take the next bytes of the directory.

        Raises:
            SourceError: They are no entries, or more than were announced.
        """
        view = memoryview(piece)
        self._crc = zlib.crc32(view, self._crc)
        self._fed += len(view)
        if self._fed > self._place.num_bytes:
            raise _damaged(self._where, f"its directory has more than {self._place.num_bytes:,} bytes")
        for start in range(0, len(view), _BATCH):
            self._rest += view[start : start + _BATCH]
            if len(self._rest) >= _BATCH:
                self._parse()

    def finish(self) -> ZipDirectory:
        """The directory, when all of its bytes were fed.

        Raises:
            SourceError: Bytes are missing or left over, there are more or fewer entries than announced, a name comes
                twice, or members overlap.
        """
        self._parse()
        if self._fed != self._place.num_bytes or self._rest:
            raise _damaged(
                self._where,
                f"its directory has {self._fed:,} bytes and should have {self._place.num_bytes:,};"
                f" {len(self._rest):,} of them follow the last whole entry",
            )
        if self._num_entries != self._place.num_members:
            raise _damaged(
                self._where, f"it lists {self._num_entries:,} members and should list {self._place.num_members:,}"
            )
        self._deflate_names(1)
        count = self._num_members
        self._offset[count] = self._place.offset
        directory = ZipDirectory(
            where=self._where,
            offset=self._offset[: count + 1],
            packed=self._packed[:count],
            num_bytes=self._num_bytes[:count],
            crc32=self._crc32[:count],
            method=self._method[:count],
            flags=self._flags[:count],
            folder=self._folder[:count],
            folders=[folder.decode() for folder in self._folders],
            blocks=self._blocks,
            keys=self._keys[:count],
            key_shift=self._key_shift,
            folder_entries=np.concatenate([np.empty(0, np.uint64), *self._folder_entries]),
            in_order=self._in_order,
            crc32_of_directory=self._crc,
        )
        directory.check()
        return directory

    @property
    def _key_shift(self) -> int:
        return self._place.num_members.bit_length()

    def _parse(self) -> None:
        """Move the whole entries of ``_rest`` to the arrays."""
        if len(self._rest) < _HEADER.itemsize:
            return
        raw = bytes(self._rest)
        starts, end = self._find_entries(raw)
        if not len(starts):
            return
        if self._num_entries + len(starts) > self._place.num_members:
            raise _damaged(self._where, f"it lists more than the {self._place.num_members:,} members it should")
        # A window of 46 bytes at every byte, of which those at the entries are copied.
        windows = np.ndarray((len(raw) - _HEADER.itemsize + 1, _HEADER.itemsize), np.uint8, raw, strides=(1, 1))
        header = windows[starts].view(_HEADER)[:, 0]
        name_at = starts + _HEADER.itemsize
        name_end = name_at + header["name_length"]
        num_bytes, packed, offset = self._sizes(raw, header, name_end)
        self._check_places(offset, packed)
        is_folder = (np.frombuffer(raw, np.uint8)[name_end - 1] == _SLASH) & (name_end > name_at)
        if is_folder.any():
            self._folder_entries.append(offset[is_folder])
        kept = ~is_folder
        place = slice(self._num_members, self._num_members + int(kept.sum()))
        self._offset[place] = offset[kept]
        self._packed = _put(self._packed, place, packed[kept])
        self._num_bytes = _put(self._num_bytes, place, num_bytes[kept])
        for column, field in ((self._crc32, "crc32"), (self._method, "method"), (self._flags, "flags")):
            column[place] = header[field][kept]
        self._put_names(raw, name_at[kept], name_end[kept], place)
        self._num_members = place.stop
        self._num_entries += len(starts)
        self._parsed += end
        del self._rest[:end]

    def _find_entries(self, raw: bytes) -> tuple[_Places, int]:
        """Where the whole entries begin, and where the last of them ends.

        Signatures are searched for all at once. Where each entry ends at the next signature, they are the entries;
        otherwise a signature stands in a name or is damaged, and the entries are walked one by one.
        """
        content = np.frombuffer(raw, np.uint8)
        marks = np.flatnonzero(content[: len(raw) - _HEADER.itemsize + 1] == _HEADER_SIGNATURE[0])
        for place, byte in enumerate(_HEADER_SIGNATURE):
            marks = marks[content[marks + place] == byte]
        if not len(marks) or marks[0]:
            return self._walk_entries(raw)
        halves = np.ndarray(len(raw) - 1, "<u2", raw, strides=(1,))
        ends = marks + _HEADER.itemsize
        for place in range(_LENGTHS_AT, _LENGTHS_AT + _LENGTHS.size, 2):
            ends += halves[marks + place]
        # Where there is room for another entry after the last, it has none of the signatures.
        if ends[-1] + _HEADER.itemsize <= len(raw) or not np.array_equal(ends[:-1], marks[1:]):
            return self._walk_entries(raw)
        return (marks, int(ends[-1])) if ends[-1] <= len(raw) else (marks[:-1], int(marks[-1]))

    def _walk_entries(self, raw: bytes) -> tuple[_Places, int]:
        starts: list[int] = []
        start = 0
        while start + _HEADER.itemsize <= len(raw):
            if not raw.startswith(_HEADER_SIGNATURE, start):
                raise _damaged(
                    self._where,
                    f"entry {self._num_entries + len(starts) + 1:,} of its directory, at byte"
                    f" {self._place.offset + self._parsed + start:,}, has no signature",
                )
            end = start + _HEADER.itemsize + sum(_LENGTHS.unpack_from(raw, start + _LENGTHS_AT))
            if end > len(raw):
                break
            starts.append(start)
            start = end
        return np.array(starts, np.int64), start

    def _sizes(self, raw: bytes, header: npt.NDArray[Any], extra_at: _Places) -> tuple[_U8, _U8, _U8]:
        """Sizes and offsets, from the zip64 field where the 32 bits of one are saturated (4.5.3)."""
        columns = [header[field].astype(np.uint64) for field in ("num_bytes", "packed", "offset")]
        saturated = [column == _SATURATED for column in columns]
        pending = np.flatnonzero(saturated[0] | saturated[1] | saturated[2])
        halves = np.ndarray(len(raw) - 1, "<u2", raw, strides=(1,))
        at = extra_at[pending]
        end = at + header["extra_length"][pending]
        # One step goes over one extra field of every member that has not come to its zip64 field yet.
        while len(pending):
            inside = at + 4 <= end
            pending, at, end = pending[inside], at[inside], end[inside]
            stop = at + 4 + halves[at + 2]
            here = (halves[at] == _ZIP64_TAG) & (stop <= end)
            self._read_zip64(raw, columns, saturated, pending[here], at[here] + 4, stop[here])
            pending, at, end = pending[~here], stop[~here], end[~here]
        return columns[0], columns[1], columns[2]

    def _read_zip64(
        self,
        raw: bytes,
        columns: Sequence[_U8],
        saturated: Sequence[npt.NDArray[np.bool_]],
        members: _Places,
        at: _Places,
        stop: _Places,
    ) -> None:
        """Put the values of the zip64 fields from ``at`` to ``stop`` in the place of the saturated ones."""
        if not len(members):
            return
        words = np.ndarray(len(raw) - 7, "<u8", raw, strides=(1,))
        for column, is_saturated in zip(columns, saturated, strict=True):
            wanted = is_saturated[members]
            if (at[wanted] + 8 > stop[wanted]).any():
                number = self._num_entries + int(members[wanted][np.argmax(at[wanted] + 8 > stop[wanted])]) + 1
                raise _damaged(self._where, f"the zip64 field of entry {number:,} of its directory is too short")
            column[members[wanted]] = words[at[wanted]]
            at = at + 8 * wanted

    def _check_places(self, offset: _U8, packed: _U8) -> None:
        """Members lie before the directory; whether one starts in another is known at once while they are in order."""
        limit = np.uint64(self._place.offset)
        # Each is bounded before they are added: a sum of two 64-bit numbers wraps round.
        far = (offset > limit) | (packed > limit)
        stops = offset + packed + np.uint64(_LOCAL.size)
        far |= stops > limit
        if far.any():
            number = int(np.argmax(far))
            raise _damaged(
                self._where,
                f"entry {self._num_entries + number + 1:,} of its directory puts {packed[number]:,} bytes at byte"
                f" {offset[number]:,}, beyond the directory at {limit:,}",
            )
        self._in_order &= int(offset[0]) >= self._stop and bool((offset[1:] >= stops[:-1]).all())
        self._stop = int(stops[-1])

    def _put_names(self, text: bytes, starts: _Places, ends: _Places, place: slice) -> None:
        folders, counts, basenames = _split_names(text, starts, ends)
        if not b"".join([*folders, *basenames]).isascii():
            folders, counts, basenames = _split_names(*self._as_utf8(text, starts, ends, self._flags[place]))
        folder = np.repeat([self._folders[name] for name in folders], counts).astype(np.uint32)
        self._folder[place] = folder
        hashes = np.fromiter(map(hash, basenames), np.int64, len(basenames)).view(np.uint64)
        keys = (hashes + folder * np.uint64(_FOLDER_FACTOR)) << np.uint64(self._key_shift)
        self._keys[place] = keys | np.arange(place.start, place.stop, dtype=np.uint64)
        self._names += basenames
        self._deflate_names(_BLOCK)

    def _as_utf8(
        self, text: bytes, starts: _Places, ends: _Places, flags: npt.NDArray[np.uint16]
    ) -> tuple[bytes, _Places, _Places]:
        """The same names in UTF-8, and where each begins and ends."""
        try:
            names = [
                _decode(text[start:end], flag).encode()
                for start, end, flag in zip(starts.tolist(), ends.tolist(), flags.tolist(), strict=True)
            ]
        except UnicodeDecodeError as error:
            name = error.object.decode("utf-8", "replace")
            raise _damaged(self._where, f"the name {name} is not UTF-8, as it should be") from None
        lengths = np.fromiter(map(len, names), np.int64, len(names))
        return b"".join(names), lengths.cumsum() - lengths, lengths.cumsum()

    def _deflate_names(self, least: int) -> None:
        """Move names to blocks, for :func:`_inflate_names`, until fewer than ``least`` are left."""
        while len(self._names) >= least:
            names = self._names[:_BLOCK]
            del self._names[:_BLOCK]
            lengths = np.fromiter(map(len, names), "<u4", len(names))
            self._blocks.append(zlib.compress(lengths.tobytes() + b"".join(names), 1))


def _put(column: _Sizes, place: slice, sizes: _U8) -> _Sizes:
    """Write sizes to a column, which gets 64 bits when one of them needs more than 32."""
    wide = column.astype(np.uint64) if column.itemsize < 8 and sizes.max(initial=0) > _SATURATED else column
    wide[place] = sizes
    return wide


def _split_names(text: bytes, starts: _Places, ends: _Places) -> tuple[list[bytes], _Places, list[bytes]]:
    """Names as runs of one folder each, how many names each run has, and what stands after the last slash of each."""
    slashes = np.append(np.flatnonzero(np.frombuffer(text, np.uint8) == _SLASH), -1)
    cuts = np.maximum(slashes[np.searchsorted(slashes[:-1], ends) - 1] + 1, starts)
    first = np.flatnonzero(~_repeats(text, starts, cuts))
    folders = [text[start:cut] for start, cut in zip(starts[first].tolist(), cuts[first].tolist(), strict=True)]
    basenames = [text[cut:end] for cut, end in zip(cuts.tolist(), ends.tolist(), strict=True)]
    return folders, np.diff(first, append=len(starts)), basenames


def _repeats(text: bytes, starts: _Places, stops: _Places) -> npt.NDArray[np.bool_]:
    """Which of the strings at ``starts`` equal the one before; short ones may be reported as others."""
    lengths = stops - starts
    width = 8
    repeats: npt.NDArray[np.bool_] = (lengths == np.concatenate([[-1], lengths[:-1]])) & (lengths >= width)
    pending = np.flatnonzero(repeats)
    words = np.ndarray(max(len(text) - width + 1, 0), "<u8", text, strides=(1,))
    at = 0
    # Word by word, the last of them aligned to the end.
    while len(pending):
        here = np.minimum(at, lengths[pending] - width)
        equal = words[starts[pending] + here] == words[starts[pending - 1] + here]
        repeats[pending[~equal]] = False
        at += width
        pending = pending[equal & (lengths[pending] > at)]
    return repeats


def _decode(name: bytes, flags: int, errors: str = "strict") -> str:
    """A name as text: in UTF-8 where flag 11 is set, else in code page 437 (appendix D.1)."""
    return name.decode("utf-8" if flags & _UTF8 else "cp437", errors)


def _inflate_names(blocks: Sequence[bytes], count: int, number: int) -> list[str]:
    """The basenames in one of the blocks that hold ``count``: their lengths come first, then their text."""
    content = zlib.decompress(blocks[number])
    here = min(_BLOCK, count - number * _BLOCK)
    stops = (np.frombuffer(content, "<u4", here).cumsum(dtype=np.int64) + 4 * here).tolist()
    return [content[start:stop].decode() for start, stop in zip([4 * here, *stops[:-1]], stops, strict=True)]


def is_safe_name(name: str) -> bool:
    """Whether a member may be written below a folder under its own name.

    Such a name is relative, has no ``.``, ``..`` or backslash in it, and is short enough for a file system.
    """
    steps = name.split("/")
    if {"", ".", ".."} & set(steps) or "\\" in name or "\0" in name:
        return False
    return len(name) <= _MAX_NAME_LENGTH and max(map(len, map(str.encode, steps))) <= _MAX_STEP_BYTES


class ZipDirectory:
    """The members of an archive, folders left out, in the order of its directory: one row of every array a member.

    Names are kept as the archive lists them, hostile ones too (see :func:`is_safe_name`), and every name once.

    Attributes:
        where: What to call the archive in messages.
        offset: Where the local header of the member begins in the archive.
        packed: Its bytes in the archive; 64 bits only where one needs them.
        num_bytes: Its bytes when inflated; 64 bits only where one needs them.
        crc32: CRC-32 of these.
        method: How they are compressed (4.4.5): :data:`STORED`, :data:`DEFLATED` or another.
        flags: General purpose bits (4.4.4).
        folder: Which of :meth:`folders` the member is in.
        crc32_of_directory: CRC-32 of the bytes of the directory itself.
    """

    def __init__(
        self,
        *,
        where: str,
        offset: _U8,
        packed: _Sizes,
        num_bytes: _Sizes,
        crc32: npt.NDArray[np.uint32],
        method: npt.NDArray[np.uint16],
        flags: npt.NDArray[np.uint16],
        folder: npt.NDArray[np.uint32],
        folders: list[str],
        blocks: list[bytes],
        keys: _U8,
        key_shift: int,
        folder_entries: _U8,
        in_order: bool,
        crc32_of_directory: int,
    ) -> None:
        self.where = where
        self.offset = offset[:-1]
        self.packed = packed
        self.num_bytes = num_bytes
        self.crc32 = crc32
        self.method = method
        self.flags = flags
        self.folder = folder
        self.crc32_of_directory = crc32_of_directory
        self._offset_and_end = offset
        self._folders = folders
        self._blocks = blocks
        self._keys = keys
        self._key_shift = np.uint64(key_shift)
        self._folder_entries = folder_entries
        self._in_order = in_order
        self._basenames = lru_cache(maxsize=64)(partial(_inflate_names, blocks, len(packed)))

    def __len__(self) -> int:
        return len(self.offset)

    def folders(self) -> list[str]:
        """Folders with members right in them, each with its final ``/``; ``""`` is the root."""
        return self._folders

    def name(self, index: int) -> str:
        """The name of a member as the archive lists it."""
        folder = self._folders[int(self.folder[index])]
        return folder + self._basenames(index // _BLOCK)[index % _BLOCK]

    def names(self, which: slice | Sequence[int] | npt.NDArray[np.integer[Any]]) -> list[str]:
        """The names of several members; the quicker the nearer these are to each other."""
        if isinstance(which, slice):
            which = range(*which.indices(len(self)))
        folders, basenames = self._folders, self._basenames
        numbers = np.asarray(which, np.int64)
        return [
            folders[folder] + basenames(index // _BLOCK)[index % _BLOCK]
            for index, folder in zip(numbers.tolist(), self.folder[numbers].tolist(), strict=True)
        ]

    def find(self, name: str) -> int:
        """The index of a member.

        Raises:
            MemberError: There is none of that name.
        """
        for index in self.candidates(name):
            if self.name(index) == name:
                return index
        raise MemberError(f"{self.where} has no member {name}")

    def find_all(self, names: Sequence[str]) -> list[int]:
        """The indices of several members, found together; see :meth:`find`.

        A name that is in the archive no more than its hash is gets the index of another: whoever reads the member
        finds its name there.
        """
        if not len(self):
            return [self.find(name) for name in names]
        shift = int(self._key_shift)
        wanted = [self._hash(name) << shift & 0xFFFF_FFFF_FFFF_FFFF for name in names]
        places = np.searchsorted(self._keys, np.array(wanted, np.uint64))
        found = []
        # The keys at a place and after it tell whether one member alone may have the name: as a rule it is so.
        last = len(self._keys) - 1
        keys = [self._keys[np.minimum(places + step, last)].tolist() for step in (0, 1)]
        for name, hashed, key, following in zip(names, wanted, *keys, strict=True):
            is_one = key >> shift == hashed >> shift and (following == key or following >> shift != hashed >> shift)
            found.append(key & (1 << shift) - 1 if is_one else self.find(name))
        return found

    def _hash(self, name: str) -> int:
        cut = name.rfind("/") + 1
        # A folder that is not there gets the number of another: the names are compared in any case.
        folder = self._folder_numbers.get(name[:cut], 0)
        return hash(name[cut:].encode("utf-8", "surrogatepass")) + folder * _FOLDER_FACTOR

    def candidates(self, name: str) -> Iterator[int]:
        """Indices of members that may have a name: as a rule one, or none. What is there must be compared.

        Names are kept packed, and looking at one unpacks those around it: whoever reads the member in any case finds
        its name there as well.
        """
        shift = int(self._key_shift)
        wanted = self._hash(name) << shift & 0xFFFF_FFFF_FFFF_FFFF
        mask = (1 << shift) - 1
        for place in range(int(np.searchsorted(self._keys, np.uint64(wanted))), len(self._keys)):
            key = int(self._keys[place])
            if key & ~mask != wanted:
                break
            yield key & mask

    @cached_property
    def _folder_numbers(self) -> dict[str, int]:
        return {folder: number for number, folder in enumerate(self._folders)}

    @cached_property
    def end(self) -> _U8:
        """Where the next local header begins after each member, or the directory: the member lies before."""
        if self._in_order and not len(self._folder_entries):
            return self._offset_and_end[1:]
        starts = np.concatenate([self._offset_and_end, self._folder_entries])
        starts.sort()
        return starts[np.searchsorted(starts, self.offset, side="right")]

    def check(self) -> None:
        """Refuse names that come twice and members that begin inside another.

        Raises:
            SourceError: There are some.
        """
        self._keys.sort()
        seen: dict[str, int] = {}
        for start in range(0, len(self), 1 << 16):
            hashes = self._keys[start : start + (1 << 16) + 1] >> self._key_shift
            for twin in np.flatnonzero(hashes[1:] == hashes[:-1]) + start:
                for key in self._keys[twin : twin + 2]:
                    index = int(key & ((np.uint64(1) << self._key_shift) - np.uint64(1)))
                    name = self.name(index)
                    if seen.setdefault(name, index) != index:
                        raise SourceError(f"{self.where} lists a member name twice: {name}", _COPY_AGAIN)
        if not self._in_order:
            self._check_overlaps()

    def _check_overlaps(self) -> None:
        starts = np.concatenate([self.offset, self._folder_entries])
        stops = starts + np.uint64(_LOCAL.size)
        stops[: len(self)] += self.packed
        # Sorted each by itself: where the next start is never before a stop, no place lies in two members.
        starts.sort()
        stops.sort()
        overlaps = starts[1:] < stops[:-1]
        if overlaps.any():
            raise _damaged(self.where, f"two of its members overlap at byte {starts[1:][np.argmax(overlaps)]:,}")


class ZipMembers(Sequence[Member]):
    """The members of a directory as a sequence that makes each when it is asked for.

    Args:
        directory: Where they are listed.

    Attributes:
        sizes: Bytes of each member, unpacked.
    """

    def __init__(self, directory: ZipDirectory) -> None:
        self._directory = directory
        self.sizes = directory.num_bytes

    def __len__(self) -> int:
        return len(self._directory)

    @overload
    def __getitem__(self, which: int) -> Member: ...
    @overload
    def __getitem__(self, which: slice) -> list[Member]: ...
    def __getitem__(self, which: int | slice) -> Member | list[Member]:
        if isinstance(which, slice):
            directory = self._directory
            columns = directory.names(which), directory.num_bytes[which].tolist(), directory.crc32[which].tolist()
            return list(map(Member, *columns))
        index = range(len(self))[which]
        return self[index : index + 1][0]

    def __iter__(self) -> Iterator[Member]:
        for start in range(0, len(self), _BLOCK):
            yield from self[start : start + _BLOCK]


def check_readable(*, name: str, packed: int, num_bytes: int, method: int, flags: int, where: str) -> None:
    """Refuse a member that could not be read, before its bytes are fetched.

    Raises:
        MemberError: It is encrypted, too large, compressed by another method than deflate, or takes more bytes in the
            archive than its content can.
    """
    if num_bytes > MAX_MEMBER:
        raise MemberError(f"member {name} of {where} claims {num_bytes:,} bytes, more than the limit of {MAX_MEMBER:,}")
    # What cannot be compressed is stored in blocks, 5 bytes for each (RFC 1951, 3.2.4); the rest is generosity.
    if packed > num_bytes + num_bytes // 50 + _MAX_OVERHEAD:
        raise MemberError(f"member {name} of {where} claims {packed:,} bytes for a content of {num_bytes:,}")
    _check_method(f"member {name} of {where}", method, flags)


def find_unreadable(directory: ZipDirectory, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Those of the members that :func:`check_readable` refuses."""
    packed, num_bytes = (sizes[indices].astype(np.int64) for sizes in (directory.packed, directory.num_bytes))
    large = (num_bytes > MAX_MEMBER) | (packed > num_bytes + num_bytes // 50 + _MAX_OVERHEAD)
    odd = ~np.isin(directory.method[indices], (STORED, DEFLATED)) | ((directory.flags[indices] & ENCRYPTED) != 0)
    found: npt.NDArray[np.int64] = indices[large | odd]
    return found


def _check_method(what: str, method: int, flags: int) -> None:
    if flags & ENCRYPTED:
        raise MemberError(f"{what} is encrypted")
    if method not in {STORED, DEFLATED}:
        raise MemberError(f"{what} uses compression method {method}; stored and deflated can be read")


def _check_sum(what: str, *, size: int, crc32: int, listed_size: int, listed_crc32: int) -> None:
    if size != listed_size:
        raise MemberError(f"{what} is damaged: {size} bytes, its directory says {listed_size}", _AGAIN)
    if crc32 != listed_crc32:
        raise MemberError(f"{what} is damaged: CRC-32 {crc32:08x}, its directory says {listed_crc32:08x}", _AGAIN)


LOCAL_HEADER_BYTES: Final = _LOCAL.size
"""Of a local header, what comes before name and extra fields; enough for :func:`local_header_bytes`."""


def local_header_bytes(header: bytes | bytearray | memoryview, *, what: str) -> int:
    """The length of a local header with its name and extra fields: where the content of the member begins.

    Args:
        header: Its first bytes, :data:`LOCAL_HEADER_BYTES` at least.
        what: What to call the member in messages.

    Raises:
        MemberError: It is no local header.
    """
    if len(header) < _LOCAL.size:
        raise MemberError(f"{what} is cut off: {len(header)} bytes of its local header of {_LOCAL.size}", _AGAIN)
    signature, *_, name_length, extra_length = _LOCAL.unpack_from(header)
    if signature != LOCAL_SIGNATURE:
        raise MemberError(f"{what} is damaged: no local header where its directory says", _AGAIN)
    return _LOCAL.size + int(name_length) + int(extra_length)


def _check_local_name(header: bytes | bytearray | memoryview, *, name: str, flags: int, what: str) -> None:
    *_, length, _ = _LOCAL.unpack_from(header)
    found = _decode(bytes(header[_LOCAL.size : _LOCAL.size + length]), flags, "replace")
    if found != name:
        raise MemberError(f"{what} is damaged: its local header calls it {found}", _AGAIN)


def member_content(
    block: bytes | memoryview,
    *,
    name: str,
    packed: int,
    num_bytes: int,
    crc32: int,
    method: int,
    flags: int,
    where: str,
) -> bytes:
    """The content of a member, checked against what the directory says of it.

    Args:
        block: The archive from the local header of the member on, to the end of its packed bytes or beyond.
        name: As the directory lists it.
        packed: Bytes in the archive.
        num_bytes: Bytes when inflated.
        crc32: CRC-32 of these.
        method: How they are compressed.
        flags: General purpose bits of the directory.
        where: What to call the archive in messages.

    Raises:
        MemberError: It cannot be read (see :func:`check_readable`), is cut off, or is another than listed.
    """
    what = f"member {name} of {where}"
    check_readable(name=name, packed=packed, num_bytes=num_bytes, method=method, flags=flags, where=where)
    start = local_header_bytes(block, what=what)
    if start + packed > len(block):
        raise MemberError(f"{what} is cut off: {len(block)} of its {start + packed} bytes", _AGAIN)
    _check_local_name(block, name=name, flags=flags, what=what)
    content: bytes | memoryview = memoryview(block)[start : start + packed]
    if method == DEFLATED:
        try:
            # One byte over the declared size is enough to notice a member that inflates to more than it says.
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, num_bytes + 1)
        except zlib.error as error:
            raise MemberError(f"{what} is damaged ({error})", _AGAIN) from None
    _check_sum(what, size=len(content), crc32=zlib.crc32(content), listed_size=num_bytes, listed_crc32=crc32)
    return bytes(content)


class MemberChecker:
    """Checks members while the archive streams by, and goes on after a damaged one.

    Args:
        directory: Where they are listed.
        indices: Which to check, by growing offset. What lies between them is passed over.
        where: What to call the archive in messages.

    Attributes:
        damaged: Index and reason of every member that is not what the directory says.
        num_checked: Members gone by, damaged ones included.
    """

    def __init__(self, directory: ZipDirectory, indices: npt.NDArray[np.integer[Any]], *, where: str) -> None:
        self.damaged: list[tuple[int, str]] = []
        self.num_checked = 0
        self._directory = directory
        self._where = where
        self._view = memoryview(b"")
        self._position = int(directory.offset[indices[0]]) if len(indices) else 0
        self._ended = False
        self._checks = self._check_all(indices)
        next(self._checks, None)

    def feed(self, piece: bytes | memoryview) -> None:
        """Take the next bytes of the archive; the first are those at the local header of the first member."""
        self._view = memoryview(piece)
        next(self._checks, None)

    def finish(self) -> None:
        """No more bytes will come: members that are not whole by now are damaged."""
        self._ended = True
        next(self._checks, None)

    # The checks are one generator, which waits in _take() for the next piece: its place in the code is the state.

    def _check_all(self, indices: npt.NDArray[np.integer[Any]]) -> Iterator[None]:
        for index in map(int, indices):
            what = f"member {self._directory.name(index)} of {self._where}"
            try:
                yield from self._check(index, what)
            except MemberError as error:
                self.damaged.append((index, error.what))
            self.num_checked += 1

    def _take(self, num_bytes: int, what: str) -> Generator[None, None, memoryview]:
        """At least one and at most ``num_bytes`` of what comes next."""
        while not len(self._view):
            if self._ended:
                raise MemberError(f"{what} is cut off: the archive ends at byte {self._position:,}", _AGAIN)
            yield
        part, self._view = self._view[:num_bytes], self._view[num_bytes:]
        self._position += len(part)
        return part

    def _check(self, index: int, what: str) -> Iterator[None]:
        directory = self._directory
        offset, room = int(directory.offset[index]), int(directory.end[index] - directory.offset[index])
        packed, num_bytes = int(directory.packed[index]), int(directory.num_bytes[index])
        method, flags = int(directory.method[index]), int(directory.flags[index])
        while self._position < offset:
            yield from self._take(offset - self._position, what)
        _check_method(what, method, flags)
        header = bytearray()
        size = _LOCAL.size
        while len(header) < size:
            header += yield from self._take(size - len(header), what)
            if len(header) == _LOCAL.size:
                size = local_header_bytes(header, what=what)
                if size + packed > room:
                    raise MemberError(
                        f"{what} is damaged: {size + packed} bytes do not fit before the next member", _AGAIN
                    )
        _check_local_name(header, name=directory.name(index), flags=flags, what=what)
        check = self._check_stored if method == STORED else self._check_deflated
        found = yield from check(packed, num_bytes, what)
        _check_sum(what, size=found[0], crc32=found[1], listed_size=num_bytes, listed_crc32=int(directory.crc32[index]))

    def _check_stored(self, packed: int, _: int, what: str) -> Generator[None, None, tuple[int, int]]:
        crc32, left = 0, packed
        while left:
            part = yield from self._take(left, what)
            crc32 = zlib.crc32(part, crc32)
            left -= len(part)
        return packed, crc32

    def _check_deflated(self, packed: int, num_bytes: int, what: str) -> Generator[None, None, tuple[int, int]]:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        crc32 = size = 0
        left = packed
        while left and size <= num_bytes:
            part: bytes | memoryview = yield from self._take(left, what)
            left -= len(part)
            full = False
            # A full step may leave more behind, also when it took all of its input.
            while (len(part) or full) and not inflater.eof and size <= num_bytes:
                try:
                    text = inflater.decompress(part, _INFLATE_STEP)
                except zlib.error as error:
                    raise MemberError(f"{what} is damaged ({error})", _AGAIN) from None
                crc32, size = zlib.crc32(text, crc32), size + len(text)
                part, full = inflater.unconsumed_tail, len(text) == _INFLATE_STEP
        return size, crc32
