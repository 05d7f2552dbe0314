"""Small sources for tests: the same files as a folder, a zip or a tar; and MAT files."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Container = Literal["directory", "zip", "tar"]

_TYPES: Final = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 9, "i8": 12, "u8": 13}
_CLASSES: Final = {"f8": 6, "f4": 7, "i1": 8, "u1": 9, "i2": 10, "u2": 11, "i4": 12, "u4": 13, "i8": 14, "u8": 15}


def write_source(path: Path, files: Mapping[str, bytes], container: Container) -> Path:
    """Write files into a container.

    Args:
        path: Where to write it, without an extension.
        files: Name to content, in order.
        container: What to write.

    Returns:
        Where it is.
    """
    if container == "directory":
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        return path
    target = path.with_name(f"{path.name}.{container}")
    if container == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        target.write_bytes(tar_file(files))
    return target


def tar_file(files: Mapping[str, bytes], *, packed: bool = False) -> bytes:
    """A tar of files; ``packed`` with gzip."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if packed else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def mat_file(variables: Mapping[str, Any], *, compressed: bool = True) -> bytes:
    """A MAT file of version 5, or with ``compressed`` of version 7.

    Args:
        variables: Name to numbers, text, or a list of dicts with the same keys, which becomes an array of structs;
            None in one of them is an empty array.
        compressed: Whether each variable is a zlib stream.
    """
    parts = [b"MATLAB 5.0 MAT-file, made for a test".ljust(124) + b"\0\1IM"]
    for name, value in variables.items():
        element = _matrix(name, value)
        parts.append(_tagged(15, zlib.compress(element), padded=False) if compressed else element)
    return b"".join(parts)


def _tagged(kind: int, content: bytes, *, padded: bool = True) -> bytes:
    padding = -len(content) % 8 if padded else 0
    return struct.pack("<II", kind, len(content)) + content + bytes(padding)


def _matrix(name: str, value: Any) -> bytes:
    if value is None:
        return _tagged(14, b"")
    if isinstance(value, str):
        return _array(4, (1, len(value)), name, _tagged(4, value.encode("utf-16-le")))
    if isinstance(value, list):
        return _array(2, (len(value), 1), name, _structs(value))
    numbers: NDArray[Any] = np.asarray(value)
    code = numbers.dtype.str[1:]
    shape = numbers.shape if numbers.ndim > 1 else (numbers.size, 1)
    return _array(_CLASSES[code], shape, name, _tagged(_TYPES[code], numbers.tobytes("F")))


def _array(kind: int, shape: Sequence[int], name: str, content: bytes) -> bytes:
    head = _tagged(6, struct.pack("<II", kind, 0)) + _tagged(5, struct.pack(f"<{len(shape)}i", *shape))
    return _tagged(14, head + _tagged(1, name.encode()) + content)


def _structs(rows: Sequence[Mapping[str, Any]]) -> bytes:
    width = 32
    names = b"".join(field.encode().ljust(width, b"\0") for field in rows[0])
    # The length of a name is in the small form: type and size in four bytes, content in the next four.
    length = struct.pack("<HHI", 5, 4, width)
    return length + _tagged(1, names) + b"".join(_matrix("", value) for row in rows for value in row.values())
