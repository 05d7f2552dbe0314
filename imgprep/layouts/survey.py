"""What an ILSVRC tree in a zip holds, told from its directory alone, without one Python object a member.

The names are judged as :class:`imgprep.layouts.ilsvrc.IlsvrcLayout` judges them, so that a choice made here is the one
that is made later from the pictures themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from imgprep.errors import SourceError, UsageError
from imgprep.layouts.ilsvrc import MAPPING, VAL_SOLUTION, is_plain
from imgprep.records import KEY_PATTERN
from imgprep.sources.zip_directory import ZipDirectory, is_safe_name

Members = NDArray[np.int64]
"""Numbers of members in a directory."""

_FOLDER: Final = re.compile(r"(|.*/)(Data|Annotations)/CLS-LOC/(?:(train)/(n\d{8})|(val|test))")
_SETS: Final = "ImageSets/CLS-LOC"
# A key has printable characters only, so a file that fits needs no further look.
_FILE: Final = {
    top: re.compile(f"(?:{KEY_PATTERN.pattern})" + re.escape(extension))
    for top, extension in (("Data", ".JPEG"), ("Annotations", ".xml"))
}
LOC_LISTS: Final = (MAPPING, VAL_SOLUTION, "LOC_train_solution.csv", "LOC_sample_submission.csv")
SET_LISTS: Final = ("train_cls.txt", "train_loc.txt", "val.txt", "test.txt")
_LIST: Final = re.compile("|".join(map(re.escape, (*LOC_LISTS, *SET_LISTS))))


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Where the members of an ILSVRC tree stand in the directory.

    Attributes:
        directory: The directory.
        prefix: What stands before ``Data/CLS-LOC/``.
        train: Wnid to pictures of the class.
        val: Validation pictures.
        test: Test pictures.
        train_xml: Wnid to annotations of the class.
        val_xml: Annotations of validation pictures.
        lists: Name of a list, without folders, to its member.
    """

    directory: ZipDirectory
    prefix: str
    train: dict[str, Members] = field(default_factory=dict)
    val: Members
    test: Members
    train_xml: dict[str, Members] = field(default_factory=dict)
    val_xml: Members
    lists: dict[str, int] = field(default_factory=dict)

    def keys(self, members: Members) -> list[str]:
        """Keys of pictures or annotations: their names without folders and extension."""
        return [stem(name) for name in self.directory.names(members)]


def stem(name: str) -> str:
    """The key in a member's name."""
    return name.rsplit("/", 1)[-1].rpartition(".")[0]


def survey(directory: ZipDirectory, *, where: str) -> Survey:
    """Sort the members of a directory.

    Args:
        directory: The directory of a zip.
        where: Its name, for messages.

    Raises:
        SourceError: It holds no ILSVRC tree, or more than one, or names that would leave a folder.
        UsageError: The tree is packed once more, so that no part of it can be read.
    """
    folders = [folder.rstrip("/") for folder in directory.folders()]
    matches = [_FOLDER.fullmatch(folder) for folder in folders]
    order = np.argsort(directory.folder, kind="stable")
    bounds = np.searchsorted(directory.folder[order], np.arange(len(folders) + 1))

    def inside(number: int, pattern: re.Pattern[str]) -> Members:
        """The members right in a folder whose own names fit."""
        members: Members = order[bounds[number] : bounds[number + 1]].astype(np.int64)
        cut, fits = len(directory.folders()[number]), pattern.fullmatch
        return np.compress([fits(name, cut) is not None for name in directory.names(members)], members)

    found: dict[str, dict[tuple[str, str], Members]] = {}
    for number, match in enumerate(matches):
        if match is None or match[1].startswith("__MACOSX/") or not is_plain(folders[number]):
            continue
        members = inside(number, _FILE[match[2]])
        if len(members):
            split = match[3] or match[5]
            found.setdefault(match[1], {})[match[2], match[4] or split] = members
    if not found:
        _refuse_packed(directory, where)
    prefix = _one_prefix(found, where)
    # What comes after it is short: see the patterns above.
    if not is_safe_name(f"{prefix}x"):
        raise SourceError(f"{where} holds a tree at {prefix[:200]!r}, which cannot be written below a folder")
    tree = found[prefix]
    none = np.zeros(0, dtype=np.int64)
    return Survey(
        directory=directory,
        prefix=prefix,
        train={name: members for (top, name), members in tree.items() if top == "Data" and name[0] == "n"},
        val=tree.get(("Data", "val"), none),
        test=tree.get(("Data", "test"), none),
        train_xml={name: members for (top, name), members in tree.items() if top == "Annotations" and name[0] == "n"},
        val_xml=tree.get(("Annotations", "val"), none),
        lists=_lists(directory, folders, prefix, inside),
    )


def _refuse_packed(directory: ZipDirectory, where: str) -> None:
    """Say so when the archive is the older bundle: a zip around a compressed tar of everything."""
    for number in range(len(directory.folders())):
        for name in directory.names(np.flatnonzero(directory.folder == number)):
            if name.endswith((".tar.gz", ".tgz", ".tar")):
                raise UsageError(
                    f"{where} holds the pictures in {name}, of which no part can be read by itself",
                    "fetch all of it with `imgprep fetch --yes`, then choose with `imgprep subset`",
                )


def _one_prefix(found: dict[str, dict[tuple[str, str], Members]], where: str) -> str:
    """The prefix of the one tree that has pictures."""
    pictures = {
        prefix: sum(len(members) for (top, _), members in tree.items() if top == "Data")
        for prefix, tree in found.items()
    }
    with_pictures = [prefix for prefix, number in pictures.items() if number]
    if not with_pictures:
        raise SourceError(f"{where} holds no tree Data/CLS-LOC/train/<wnid>/*.JPEG", "check the name of the archive")
    if len(with_pictures) > 1:
        listed = ", ".join(f"{prefix or '.'} ({pictures[prefix]:,} pictures)" for prefix in with_pictures[:3])
        raise SourceError(f"{where} holds {len(with_pictures)} trees: {listed}", "adopt an archive with one of them")
    return with_pictures[0]


def _lists(
    directory: ZipDirectory,
    folders: Sequence[str],
    prefix: str,
    inside: Callable[[int, re.Pattern[str]], Members],
) -> dict[str, int]:
    """The LOC lists, which lie beside the tree or above it, and those of its ImageSets folder."""
    lists: dict[str, int] = {}
    for number, folder in enumerate(folders):
        if folder == f"{prefix}{_SETS}":
            wanted: Sequence[str] = SET_LISTS
        elif prefix.startswith(f"{folder}/" if folder else ""):
            wanted = LOC_LISTS
        else:
            continue
        members = inside(number, _LIST)
        for member, name in zip(members, directory.names(members), strict=True):
            basename = name.rsplit("/", 1)[-1]
            if basename in wanted:
                lists.setdefault(basename, int(member))
    return lists
