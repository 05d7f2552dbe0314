"""MAT files of version 5 to 7: what they hold is listed by headers alone, large arrays are read by range.

Read here and not through SciPy: that is a large package for two kinds of files, it puts the whole of an array into
memory, and it takes sizes in a file on trust. The format is that of "MAT-File Format" (The MathWorks), chapter 1.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from imgprep.errors import MemberError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HEADER_BYTES: Final = 128
_TAG: Final = struct.Struct("<II")
_MATRIX: Final = 14
_COMPRESSED: Final = 15
_NUMBERS: Final[Mapping[int, str]] = {
    1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8",
}  # fmt: skip
"""Types of data elements that are numbers (table 1-1)."""
_TEXTS: Final[Mapping[int, str]] = {
    1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le",
}  # fmt: skip
_STRUCT, _CHAR = 2, 4
_NUMERIC: Final = range(6, 16)
"""Classes of arrays (table 1-3)."""

_MAX_VARIABLES: Final = 64
_MAX_VALUE: Final = 1 << 26
"""Bytes of a variable that is read as a whole; ``meta.mat`` of ILSVRC2012 has 1 MB."""
_MAX_DEPTH: Final = 8
_MAX_DIMENSIONS: Final = 16
_HEAD: Final = 4096
"""Bytes that hold the headers of any array with so many dimensions and a name of some hundreds of characters."""

_CHUNK: Final = 1 << 16
_MIN_SPACING: Final = 1 << 18
_POINTS: Final = 4096
"""States of zlib kept of one array at most, of some 50 KB each."""
_CACHE_BYTES: Final = 1 << 28
"""Unpacked bytes of one array that are remembered: the training part of SVHN has 225 MB."""


class Bytes(Protocol):
    """Bytes read by offset."""

    num_bytes: int

    def pread(self, num_bytes: int, offset: int, /) -> bytes:
        """Up to ``num_bytes`` at ``offset``, fewer at the end."""


class MemoryBytes:
    """Bytes in memory, read by offset.

    Args:
        content: The bytes.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.num_bytes = len(content)

    def pread(self, num_bytes: int, offset: int) -> bytes:
        """Up to ``num_bytes`` at ``offset``, fewer at the end."""
        return self._content[offset : offset + max(num_bytes, 0)]


class _Slice:
    """A part of other bytes."""

    def __init__(self, whole: Bytes, start: int, num_bytes: int) -> None:
        self._whole = whole
        self._start = start
        self.num_bytes = num_bytes

    def pread(self, num_bytes: int, offset: int) -> bytes:
        return self._whole.pread(min(num_bytes, self.num_bytes - offset), self._start + offset)


class InflatedBytes:
    """A zlib stream read by offset, from several threads at once.

    The first pass keeps the state of zlib every :data:`_MIN_SPACING` bytes, or fewer states of a long stream; a read
    goes on from the one before it. Blocks between two states are remembered, up to :data:`_CACHE_BYTES` of them.

    Args:
        packed: The stream.
        num_bytes: How much it unpacks to; what comes after is never unpacked.
        where: What messages call it.
    """

    def __init__(self, packed: Bytes, num_bytes: int, *, where: str) -> None:
        self.num_bytes = num_bytes
        self._packed = packed
        self._where = where
        self._spacing = max(_MIN_SPACING, -(-num_bytes // _POINTS))
        # What zlib has taken in at the start of each block, and its state there.
        self._points = [(0, zlib.decompressobj())]
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def pread(self, num_bytes: int, offset: int) -> bytes:
        """Up to ``num_bytes`` at ``offset``, fewer at the end.

        Raises:
            MemberError: The stream is cut off or damaged.
        """
        stop = min(offset + num_bytes, self.num_bytes)
        parts = []
        while offset < stop:
            number, begin = divmod(offset, self._spacing)
            part = self._block(number)[begin : begin + stop - offset]
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        with self._lock:
            while len(self._points) <= number + 1 and len(self._points) * self._spacing < self.num_bytes:
                last = len(self._points) - 1
                block, place, state = self._inflate(last)
                self._points.append((place, state))
                self._remember(last, block)
            if number in self._blocks:
                self._blocks.move_to_end(number)
                return self._blocks[number]
        block, _, _ = self._inflate(number)
        with self._lock:
            self._remember(number, block)
        return block

    def _remember(self, number: int, block: bytes) -> None:
        self._blocks[number] = block
        while len(self._blocks) * self._spacing > _CACHE_BYTES and len(self._blocks) > 1:
            self._blocks.popitem(last=False)

    def _inflate(self, number: int) -> tuple[bytes, int, zlib._Decompress]:
        """Unpack a block; also how much zlib has taken in at its end, and its state there."""
        place, state = self._points[number]
        decoder = state.copy()
        wanted = min(self._spacing, self.num_bytes - number * self._spacing)
        parts: list[bytes] = []
        pending = b""
        try:
            while wanted:
                if not pending:
                    pending = self._packed.pread(_CHUNK, place)
                    place += len(pending)
                part = decoder.decompress(pending, wanted)
                if not part and (decoder.eof or not pending):
                    raise MemberError(f"{self._where} is cut off", "download or copy it again")
                pending = decoder.unconsumed_tail
                parts.append(part)
                wanted -= len(part)
        except zlib.error as error:
            raise MemberError(f"{self._where} is damaged ({error})", "download or copy it again") from None
        return b"".join(parts), place - len(pending), decoder


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One array of a MAT file.

    Attributes:
        name: Its name.
        kind: Class of the array, as the format numbers them.
        shape: Its dimensions.
        body: All of its data element but the tag.
        where: What messages call it.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    body: Bytes
    where: str

    def value(self) -> Any:
        """All of it: text as str, numbers as a flat array in the file's order (first dimension fastest), structs as a
        list of dicts, what is empty as None.

        Raises:
            MemberError: It is damaged, larger than :data:`_MAX_VALUE`, or of a class that is not handled.
        """
        if self.body.num_bytes > _MAX_VALUE:
            raise MemberError(f"{self.where} has {self.body.num_bytes:,} bytes, more than the limit of {_MAX_VALUE:,}")
        return _Parser(self.body.pread(self.body.num_bytes, 0), self.where).array(0)[1]

    def elements(self, dtype: str) -> Bytes:
        """The bytes of an array of numbers, in the file's order, to be read by range.

        Args:
            dtype: How each number must be stored, e.g. ``<u1``.

        Raises:
            MemberError: It is stored in another way, or is not as long as its dimensions say.
        """
        head = _Parser(self.body.pread(_HEAD, 0), self.where)
        _, _, _, start = head.header()
        kind, num_bytes, begin, _ = head.tag(start)
        expected = prod(self.shape) * np.dtype(dtype).itemsize
        if self.kind not in _NUMERIC or _NUMBERS.get(kind) != dtype or num_bytes != expected:
            raise MemberError(
                f"{self.where} has {num_bytes:,} bytes of type {kind} for the shape {self.shape}, expected"
                f" {expected:,} of {dtype}"
            )
        if begin + num_bytes > self.body.num_bytes:
            raise MemberError(f"{self.where} is cut off", "download or copy it again")
        return _Slice(self.body, begin, num_bytes)


def read_variables(file: Bytes, *, where: str) -> dict[str, Variable]:
    """List the arrays of a MAT file.

    Args:
        file: The file.
        where: What messages call it.

    Raises:
        MemberError: It is no MAT file of version 5 to 7, or it is cut off or damaged.
    """
    head = file.pread(_HEADER_BYTES, 0)
    if head.startswith((b"MATLAB 7.3", b"\x89HDF")):
        raise MemberError(f"{where} is a MAT file of version 7.3, expected 5 to 7", "save it with the option -v7")
    if len(head) < _HEADER_BYTES or head[124:128] != b"\x00\x01IM":
        raise MemberError(f"{where} is no MAT file of version 5 to 7 (little-endian)", "download or copy it again")
    found: dict[str, Variable] = {}
    offset = _HEADER_BYTES
    while offset < file.num_bytes:
        tag = file.pread(_TAG.size, offset)
        if len(tag) < _TAG.size:
            raise MemberError(f"{where} is cut off at byte {offset:,}", "download or copy it again")
        kind, num_bytes = _TAG.unpack(tag)
        offset += _TAG.size
        if offset + num_bytes > file.num_bytes:
            raise MemberError(f"{where} is cut off: an array ends at byte {offset + num_bytes:,}", "copy it again")
        body: Bytes = _Slice(file, offset, num_bytes)
        offset += num_bytes
        if kind == _COMPRESSED:
            kind, unpacked = _TAG.unpack(_exactly(InflatedBytes(body, _TAG.size, where=where), _TAG.size, where))
            whole = InflatedBytes(body, _TAG.size + unpacked, where=where)
            body = _Slice(whole, _TAG.size, unpacked)
        if kind == _MATRIX:
            parser = _Parser(body.pread(_HEAD, 0), where)
            array_kind, shape, name, _ = parser.header()
            found[name] = Variable(
                name=name, kind=array_kind, shape=shape, body=body, where=f"the array {name[:60]!r} of {where}"
            )
        if len(found) > _MAX_VARIABLES:
            raise MemberError(f"{where} has more than {_MAX_VARIABLES:,} arrays")
    return found


def _exactly(source: Bytes, num_bytes: int, where: str) -> bytes:
    content = source.pread(num_bytes, 0)
    if len(content) != num_bytes:
        raise MemberError(f"{where} is cut off", "download or copy it again")
    return content


class _Parser:
    """Data elements in memory; offsets are checked before anything is made of them."""

    def __init__(self, content: bytes, where: str) -> None:
        self._content = content
        self._where = where

    def _damaged(self, what: str) -> MemberError:
        return MemberError(f"{self._where} is damaged: {what}", "download or copy it again")

    def tag(self, offset: int) -> tuple[int, int, int, int]:
        """Type and size of an element, and where its content and the next element start."""
        if offset + _TAG.size > len(self._content):
            raise self._damaged(f"no element at byte {offset:,}")
        kind, num_bytes = _TAG.unpack_from(self._content, offset)
        if kind >> 16:  # the small form: both in four bytes, content in the next four
            if kind >> 16 > 4:
                raise self._damaged(f"a small element of {kind >> 16:,} bytes")
            return kind & 0xFFFF, kind >> 16, offset + 4, offset + _TAG.size
        begin = offset + _TAG.size
        return kind, num_bytes, begin, begin + -(-num_bytes // 8) * 8

    def _element(self, offset: int) -> tuple[int, bytes, int]:
        """Type and content of an element, and where the next starts."""
        kind, num_bytes, begin, after = self.tag(offset)
        if begin + num_bytes > len(self._content):
            raise self._damaged(f"an element of {num_bytes:,} bytes at byte {offset:,}")
        return kind, self._content[begin : begin + num_bytes], after

    def header(self, offset: int = 0) -> tuple[int, tuple[int, ...], str, int]:
        """Class, shape and name of an array, and where what it holds starts."""
        _, flags, offset = self._element(offset)
        _, dimensions, offset = self._element(offset)
        _, name, offset = self._element(offset)
        if len(flags) != 8 or not 0 < len(dimensions) <= 4 * _MAX_DIMENSIONS or len(dimensions) % 4:
            raise self._damaged("an array without flags or dimensions")
        shape = tuple(np.frombuffer(dimensions, "<i4").tolist())
        if min(shape) < 0:
            raise self._damaged(f"an array of shape {shape}")
        return flags[0], shape, name.decode("latin-1"), offset

    def array(self, offset: int, depth: int = 0) -> tuple[str, Any]:
        """Name and value of an array."""
        if depth > _MAX_DEPTH:
            raise self._damaged("arrays inside arrays without end")
        if offset == len(self._content):
            return "", None
        kind, shape, name, offset = self.header(offset)
        if kind == _STRUCT:
            return name, self._structs(prod(shape), offset, depth)
        stored, content, _ = self._element(offset)
        if kind == _CHAR and stored in _TEXTS:
            return name, content.decode(_TEXTS[stored], "replace")
        if kind in _NUMERIC and stored in _NUMBERS:
            return name, self._numbers(stored, content, shape)
        raise MemberError(f"{self._where} holds an array of class {kind}, which is not handled")

    def _numbers(self, stored: int, content: bytes, shape: Sequence[int]) -> NDArray[Any]:
        dtype = np.dtype(_NUMBERS[stored])
        if len(content) != prod(shape) * dtype.itemsize:
            raise self._damaged(f"{len(content):,} bytes for the shape {tuple(shape)}")
        return np.frombuffer(content, dtype)

    def _arrays(self, number: int, offset: int, depth: int) -> Iterator[Any]:
        """Values of arrays one after another."""
        for _ in range(number):
            kind, num_bytes, begin, after = self.tag(offset)
            if kind != _MATRIX or begin + num_bytes > len(self._content):
                raise self._damaged(f"no array at byte {offset:,}")
            yield _Parser(self._content[begin : begin + num_bytes], self._where).array(0, depth + 1)[1]
            offset = after

    def _structs(self, number: int, offset: int, depth: int) -> list[dict[str, Any]]:
        _, length, offset = self._element(offset)
        _, names, offset = self._element(offset)
        width = int.from_bytes(length, "little")
        if not width or len(names) % width:
            raise self._damaged("a struct without names of its fields")
        fields = [
            names[begin : begin + width].split(b"\0")[0].decode("latin-1") for begin in range(0, len(names), width)
        ]
        values = list(self._arrays(number * len(fields), offset, depth))
        return [
            dict(zip(fields, values[begin : begin + len(fields)], strict=True))
            for begin in range(0, len(values), max(len(fields), 1))
        ]
