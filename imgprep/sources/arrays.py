"""Pictures that lie in the arrays of MAT files, shown as files: each is a PNG made when it is read."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

import numpy as np

from imgprep.errors import MemberError, SourceError
from imgprep.sources import Member, Source
from imgprep.sources.mat import Bytes, Variable, read_variables
from imgprep.sources.places import MemberPlaces
from imgprep.sources.ranges import RangeFile
from imgprep.sources.tar import FileRange

SIDE: Final = 32
"""Pixels of every picture on either side."""
_CHANNELS: Final = 3
_PICTURE_BYTES: Final = SIDE * SIDE * _CHANNELS
_MAX_PICTURES: Final = 1 << 21
"""The largest part of SVHN has 531,131."""
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_NAME: Final = re.compile(r"(.+)/([0-9])/([0-9]{6,7})\.png")


def _chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(pixels: bytes) -> bytes:
    """A PNG of 32 x 32 RGB pixels, in rows, that is not compressed: always the same bytes, and the same number of them.

    The pixels go into one stored block (RFC 1950, 2.2; RFC 1951, 3.2.4; PNG, second edition, 11.2).
    """
    row = SIDE * _CHANNELS
    raw = b"".join(b"\0" + pixels[begin : begin + row] for begin in range(0, len(pixels), row))
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(raw), len(raw) ^ 0xFFFF) + raw
    header = struct.pack(">2I5B", SIDE, SIDE, 8, 2, 0, 0, 0)
    packed = stored + struct.pack(">I", zlib.adler32(raw))
    return _PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


PNG_BYTES: Final = len(png(bytes(_PICTURE_BYTES)))


class _Part:
    """The pictures ``X`` and labels ``y`` of one file."""

    def __init__(self, pixels: Bytes, labels: Sequence[int]) -> None:
        self.pixels = pixels
        self.labels = labels


class DigitArraySource:
    """A source with some MAT files of SVHN shown as folders.

    Picture number N, from 1, of the file shown as ``train`` is ``train/5/00000N.png`` where 5 is its label; the file's
    label 10 is the digit 0. Arrays are unpacked by and by, as far as they are read; see
    :class:`imgprep.sources.mat.InflatedBytes`.

    Args:
        source: The source; closed with this one.
        folders: Name of a MAT file to the name it is shown under. Other members stay as they are.

    Raises:
        MemberError: A file is no MAT file, or is damaged.
        SourceError: A file has other arrays than ``X`` of 32 x 32 x 3 x N bytes and ``y`` of N labels from 1 to 10; or
            it is large and packed once more by the source.
    """

    def __init__(self, source: Source, folders: Mapping[str, str]) -> None:
        self.kind = source.kind
        self.path = source.path
        self._outer = source
        self._beside = [member for member in source.members() if member.name not in folders]
        self._places = MemberPlaces(source, folders)
        self._files: list[RangeFile] = []
        self._parts: dict[str, _Part] = {}
        try:
            for name, folder in folders.items():
                place = self._places.places[name]
                self._files.append(RangeFile(place.path))
                self._parts[folder] = _open(FileRange(self._files[-1], place.start, place.num_bytes), name)
        except BaseException:
            self._close()
            raise

    def members(self) -> Sequence[Member]:
        """The members that stay, then the pictures."""
        return self._beside + [
            Member(f"{folder}/{label}/{number:06d}.png", PNG_BYTES)
            for folder, part in self._parts.items()
            for number, label in enumerate(part.labels, start=1)
        ]

    def read(self, name: str) -> bytes:
        """The bytes of one member; those of a picture are made here.

        Raises:
            MemberError: No such member, or damaged bytes.
        """
        match = _NAME.fullmatch(name)
        part = self._parts.get(match[1]) if match else None
        if match is None or part is None:
            return self._outer.read(name)
        number = int(match[3])
        if not 0 < number <= len(part.labels) or part.labels[number - 1] != int(match[2]):
            raise MemberError(f"{self.path} has no picture {name}")
        content = part.pixels.pread(_PICTURE_BYTES, (number - 1) * _PICTURE_BYTES)
        if len(content) != _PICTURE_BYTES:
            raise MemberError(f"{name} is cut off: {self.path} changed", "download or copy it again")
        # In the file rows change fastest, then columns, then channels.
        planes = np.frombuffer(content, np.uint8).reshape(_CHANNELS, SIDE, SIDE)
        return png(planes.transpose(2, 1, 0).tobytes())

    def _close(self) -> None:
        for file in self._files:
            file.close()
        self._places.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the source and the arrays."""
        self._close()
        self._outer.__exit__(kind, error, trace)


def _open(file: FileRange, name: str) -> _Part:
    variables = read_variables(file, where=name)
    if not {"X", "y"} <= variables.keys():
        raise SourceError(f"{name} has the arrays {', '.join(variables) or 'none'}, expected X and y")
    pictures = variables["X"]
    *sides, number = (*pictures.shape, 1)[:4]
    if len(pictures.shape) > 4 or sides != [SIDE, SIDE, _CHANNELS] or number > _MAX_PICTURES:
        raise SourceError(f"{name}: X has the shape {pictures.shape}, expected ({SIDE}, {SIDE}, {_CHANNELS}, N)")
    return _Part(pictures.elements("<u1"), _digits(variables["y"], number, name))


def _digits(variable: Variable, number: int, name: str) -> Sequence[int]:
    labels = np.asarray(variable.value() if np.prod(variable.shape, dtype=object) == number else ())
    if labels.shape != (number,) or labels.dtype.kind not in "iuf" or not np.isin(labels, np.arange(1, 11)).all():
        raise SourceError(
            f"{name}: y must be {number:,} labels from 1 to 10, one a picture; its shape is {variable.shape}"
        )
    digits: list[int] = (labels.astype(np.int64) % 10).tolist()
    return digits
