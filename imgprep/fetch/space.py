"""Whether there is room, asked before the first byte."""

from __future__ import annotations

import shutil
from pathlib import Path

from imgprep.errors import NoSpaceError


def free_bytes(folder: Path) -> int:
    """Bytes free on the filesystem of a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_space(folder: Path, needed: int, *, what: str) -> None:
    """Refuse before the first byte what cannot fit.

    Raises:
        NoSpaceError: Less than ``needed`` bytes are free.
    """
    free = free_bytes(folder)
    if needed > free:
        raise NoSpaceError(
            f"{what}: {needed:,} bytes are needed, {free:,} are free at {folder}",
            "free some space, ask for less, or choose another --workspace",
        )
