"""What layouts share: which files are pictures, the keys of pictures, and lists of names beside them."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from imgprep.errors import SourceError
from imgprep.layouts import ImageMember
from imgprep.layouts.ilsvrc import MAPPING, is_plain
from imgprep.layouts.label_lists import decode, read_list
from imgprep.records import Catalog, Split, Synset, is_key
from imgprep.sources import Member, Source

NAME_LISTS: Final = (MAPPING, "words.txt", "classes.txt")
"""Files that may give classes names, the first that is there: ``<class> <names>``, one a line."""

EXTENSIONS: Final = ("jpg", "jpeg", "png", "bmp", "webp", "gif", "tif", "tiff")
"""Extensions of pictures, in any case."""

_PICTURE: Final = re.compile(rf".+\.(?:{'|'.join(EXTENSIONS)})", re.IGNORECASE | re.DOTALL)
_IMAGENET: Final = re.compile(r"n\d{8}_\d+|ILSVRC\d{4}_(?:val|test)_\d{8}")
_UNFIT: Final = re.compile(r"[^A-Za-z0-9_-]+")
_MAX_KEY: Final = 90
"""See :data:`imgprep.records.KEY_PATTERN`."""


def is_junk(name: str) -> bool:
    """Whether a file is hidden, or one of those a Mac puts beside every file it packs."""
    return any(step.startswith(".") or step == "__MACOSX" for step in name.split("/"))


def has_extension(name: str) -> bool:
    """Whether a name ends with one of :data:`EXTENSIONS`."""
    return _PICTURE.fullmatch(name) is not None


def is_picture(name: str) -> bool:
    """Whether a file is meant as a picture, by its extension."""
    return is_plain(name) and not is_junk(name) and has_extension(name)


def stem(name: str) -> str:
    """A member's name without folders and extension."""
    return name.rsplit("/", 1)[-1].rpartition(".")[0]


def is_imagenet_name(file_stem: str) -> bool:
    """Whether ImageNet itself calls a picture so: ``n01440764_10026``, ``ILSVRC2012_val_00000293``."""
    return _IMAGENET.fullmatch(file_stem) is not None


def make_key(text: str) -> str:
    """A text as a key.

    What is a key already stays. Else accents are dropped, every run of other characters becomes ``_``, and a hash of
    the whole text is put at the end (BLAKE2b, 8 bytes), so that texts that differ in those characters alone, or after
    the length of a key, have keys of their own.

    Args:
        text: Any text, in any Unicode normal form.
    """
    if is_key(text):
        return text
    composed = unicodedata.normalize("NFC", text)
    bare = "".join(c for c in unicodedata.normalize("NFKD", composed) if not unicodedata.combining(c))
    digest = hashlib.blake2b(composed.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    shown = _UNFIT.sub("_", bare).lstrip("-")[: _MAX_KEY - len(digest) - 1]
    return f"{shown or '_'}-{digest}"


def picture_key(file_stem: str, wnid: str, split: Split) -> str:
    """The key of a picture in a class folder, as long as no other has the same; see :func:`tell_apart`.

    ImageNet's own names, such as ``n01440764_10026`` and ``ILSVRC2012_val_00000293``, stay. Any other becomes
    ``CLASS_STEM``, unless it begins so, and in validation and test ``val_CLASS_STEM`` and ``test_CLASS_STEM``, as
    numbering often starts anew there; see :func:`make_key` for what is no key then.

    Args:
        file_stem: The file's name without its extension.
        wnid: Its class; empty where that is not known.
        split: Its split.
    """
    if is_imagenet_name(file_stem):
        return file_stem
    file_stem, wnid = (unicodedata.normalize("NFC", text) for text in (file_stem, wnid))
    text = file_stem if not wnid or file_stem.startswith(f"{wnid}_") else f"{wnid}_{file_stem}"
    return make_key(text if split == "train" else f"{split}_{text}")


def class_id(text: str, *, where: str) -> str:
    """What a folder or label is called as a class: itself, with composed accents however they were written.

    Raises:
        SourceError: It cannot stand in a list of classes.
    """
    composed = unicodedata.normalize("NFC", text)
    if "," in composed or not is_plain(composed):
        raise SourceError(
            f"{where}: the class {composed[:80]!r} has a comma or an unprintable character in its name",
            "rename it: `--classes` takes names with commas between them",
        )
    return composed


def tell_apart(images: Sequence[ImageMember], prefix: str, path: Path) -> tuple[Sequence[ImageMember], int]:
    """Give pictures whose keys are the same keys of their own; the others keep theirs.

    A key depends on nothing else that is there, except that pictures whose keys would be the same get a hash of their
    path: :func:`make_key` of the path below ``prefix``, extension and all. Every picture of such a group does, so the
    order of the listing does not count. Where two of the paths differ in nothing but how accents are written, their
    escaped form is hashed instead.

    Args:
        images: The pictures, with the keys of their layout.
        prefix: What stands before the tree in the names of all of them.
        path: The source, for messages.

    Returns:
        The pictures in the same order, and how many of them have a hash of their path.

    Raises:
        SourceError: Such a key is that of another picture too.
    """
    numbers = Counter(image.key for image in images)
    if len(numbers) == len(images):
        return images, 0
    alike = {
        place: image.member.name.removeprefix(prefix) for place, image in enumerate(images) if numbers[image.key] > 1
    }
    spellings = Counter(unicodedata.normalize("NFC", name) for name in alike.values())
    told = list(images)
    for place, name in alike.items():
        text = name if spellings[unicodedata.normalize("NFC", name)] == 1 else ascii(name)
        told[place] = replace(images[place], key=make_key(text))
    check_unique(told, path)
    return told, len(alike)


def check_unique(images: Sequence[ImageMember], path: Path) -> None:
    """Check that no two pictures have one key.

    Raises:
        SourceError: Some have; the message counts the keys and names two pictures.
    """
    first: dict[str, ImageMember] = {}
    second: dict[str, ImageMember] = {}
    for image in images:
        if first.setdefault(image.key, image) is not image:
            second.setdefault(image.key, image)
    if second:
        key, image = next(iter(second.items()))
        pair = f"{key}: {first[key].member.name} and {image.member.name}"
        raise SourceError(
            f"{path} has two pictures with the key {pair}"
            if len(second) == 1
            else f"{path}: {len(second):,} keys stand for more than one picture, e.g. {pair}",
            "remove or rename one of them",
        )


def read_text(source: Source, member: Member) -> str:
    """Read a list from a source; a byte order mark is dropped.

    Raises:
        MemberError: It is too large, damaged, or not UTF-8.
    """
    return decode(read_list(source, member), member.name)


def find_beside(members: Iterable[Member], prefix: str, basenames: Collection[str]) -> Mapping[str, Member]:
    """Files of some names in the folder ``prefix`` (empty, or ending with ``/``), or else in the nearest above."""
    found: dict[str, Member] = {}
    for member in members:
        folder, _, basename = member.name.rpartition("/")
        folder += "/" if folder else ""
        if basename in basenames and prefix.startswith(folder):
            before = found.get(basename)
            if before is None or len(before.name) < len(member.name):
                found[basename] = member
    return found


def parse_names(text: str, wnids: Collection[str]) -> dict[str, str]:
    """Names of classes from a list whose lines are a class and its names, with a tab, comma, colon or blank between.

    Other lines are passed over: ``words.txt`` of Tiny-ImageNet lists all of WordNet.

    Args:
        text: The list.
        wnids: The classes that are wanted.
    """
    names: dict[str, str] = {}
    for line in text.splitlines():
        for separator in "\t,: ":
            wnid, _, name = (part.strip(" \t:,") for part in line.partition(separator))
            if wnid in wnids and name and is_plain(name):
                names.setdefault(wnid, name)
                break
    return names


def make_catalog(wnids: Iterable[str], names: Mapping[str, str]) -> Catalog:
    """Classes in the given order, each under its name, or its own id where it has none."""
    return Catalog(Synset(wnid, place, names.get(wnid, wnid)) for place, wnid in enumerate(wnids))


def read_names(source: Source, members: Iterable[Member], prefix: str, wnids: Collection[str]) -> dict[str, str]:
    """Names of classes from the first of :data:`NAME_LISTS` that lies at ``prefix`` or above it."""
    beside = find_beside(members, prefix, NAME_LISTS)
    chosen = next((beside[name] for name in NAME_LISTS if name in beside), None)
    return {} if chosen is None else parse_names(read_text(source, chosen), wnids)
