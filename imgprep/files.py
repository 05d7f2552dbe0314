"""Files that are either whole or absent: atomic writes, staged folders, hashes and locks."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from imgprep.errors import DamagedError, LockedError

_CHUNK: Final = 1 << 20


def fsync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that appears under its name only when it is whole.

    The bytes go to a temporary sibling, which is synced and renamed when the block ends; when it raises, the sibling is
    removed and whatever stood at ``path`` stays.

    Args:
        path: The file to write; its folder must exist.

    Yields:
        A binary file to write to.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        # The disk may be full or gone: the first error is the one to report.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_write(path) as file:
        file.write(content)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document atomically, indented, in UTF-8, with a final line feed."""
    write_bytes(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: It is not there.
        DamagedError: It is not a JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is not valid JSON ({error})", "delete it and run the stage that wrote it") from None
    if not isinstance(document, dict):
        raise DamagedError(f"{path} does not hold a JSON object", "delete it and run the stage that wrote it")
    return document


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Write a folder that appears under its name only when it is whole, in place of what stood there.

    Args:
        folder: The folder to publish. Its parents are made.

    Yields:
        An empty sibling folder to write to. It is renamed when the block ends and removed when the block raises.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(folder)
    staging = folder.with_name(f".{folder.name}.tmp")
    remove(staging)
    staging.mkdir()
    try:
        yield staging
        publish_folder(staging, folder)
    except BaseException:
        remove(staging)
        raise


def publish_folder(staging: Path, folder: Path) -> None:
    """Give a folder its name, in place of what stood there.

    Args:
        staging: The folder, whole; a sibling of the other.
        folder: Its name.
    """
    retired = _retired(folder)
    fsync_folder(staging)
    try:
        # Two renames: a reader finds the old folder, none, or the new one, never a mixture.
        if folder.exists():
            folder.rename(retired)
        staging.rename(folder)
    except BaseException:
        recover_folder(folder)
        raise
    fsync_folder(folder.parent)
    remove(retired)


def recover_folder(folder: Path) -> None:
    """Bring back what stood at ``folder``, if a kill came between the two renames of :func:`publish_folder`."""
    retired = _retired(folder)
    if retired.exists() and not folder.exists():
        retired.rename(folder)
    remove(retired)


def _retired(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def remove(path: Path) -> None:
    """Remove a folder or a file, as far as that is possible."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def sync_filesystem(folder: Path) -> None:
    """Make everything written so far to the filesystem of ``folder`` survive a power cut.

    One ``syncfs`` for many thousands of small files takes as long as a few dozen single ``fsync``.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(handle) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(handle)


def sha256_bytes(content: bytes) -> str:
    """SHA-256 of some bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(path: Path, *, holder: str) -> Iterator[None]:
    """Hold a lock file for the length of the block. The kernel lets go of it when the process dies, however it dies.

    Args:
        path: The lock file; made when missing, left in place.
        holder: What to tell others who find it held, e.g. ``imgprep shard``.

    Raises:
        LockedError: Another process holds it.
    """
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            other = file.read(200).strip() or "another imgprep"
            raise LockedError(
                f"{path.parent} is in use by {other}", "wait for it to end, or choose another --workspace"
            ) from None
        file.truncate(0)
        file.write(f"`{holder}` (process {os.getpid()})\n")
        file.flush()
        yield
