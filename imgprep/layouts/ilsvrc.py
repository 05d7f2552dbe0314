"""ImageNet as Kaggle hands it out (ILSVRC CLS-LOC): ``ILSVRC/Data``, ``ILSVRC/Annotations`` and the ``LOC_*`` lists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from imgprep.errors import ContradictionError, MemberError, SourceError
from imgprep.layouts import AnnotationMember, ImageMember, Listing
from imgprep.layouts.label_lists import LIST_NAMES, decode, find_label_lists, parse_solution_list, read_list
from imgprep.records import Catalog, Split, Synset, is_key, is_wnid
from imgprep.sources import Member, Source

_MARK: Final = "Data/CLS-LOC/"
_XML_MARK: Final = "Annotations/CLS-LOC/"
_TRAIN: Final = re.compile(r"Data/CLS-LOC/train/(n\d{8})/([^/]+)\.JPEG")
_FLAT: Final = re.compile(r"Data/CLS-LOC/(val|test)/([^/]+)\.JPEG")
_TRAIN_XML: Final = re.compile(r"Annotations/CLS-LOC/train/(n\d{8})/([^/]+)\.xml")
_VAL_XML: Final = re.compile(r"Annotations/CLS-LOC/val/([^/]+)\.xml")

MAPPING: Final = "LOC_synset_mapping.txt"
VAL_SOLUTION: Final = "LOC_val_solution.csv"


class IlsvrcLayout:
    """The tree of the Kaggle competition, at the top of the source or below one folder of any name."""

    name = "ilsvrc"
    tree = "a folder Data/CLS-LOC/train/<wnid>/*.JPEG"

    def matches(self, members: Sequence[Member]) -> bool:
        """Whether a ``Data/CLS-LOC/`` folder is there, or at least its annotations."""
        return any(_before(mark, member.name) is not None for member in members for mark in (_MARK, _XML_MARK))

    def mount(self, source: Source) -> Source:
        """Nothing to do."""
        return source

    def scan(self, source: Source) -> Listing:
        """List classes from the synset mapping, pictures, XML files and the validation labels of every list there is.

        Raises:
            SourceError: There is no picture at all, or two pictures have one key.
            ContradictionError: A training folder is not in the mapping.
            MemberError: A list is damaged.
        """
        members = source.members()
        prefix = _find_prefix(members, source)
        images: list[ImageMember] = []
        annotations: list[AnnotationMember] = []
        ignored: list[str] = []
        lists: dict[str, Member] = {}
        others: list[Member] = []
        for member in members:
            if not is_plain(member.name):
                ignored.append(member.name)
                continue
            if member.name.startswith(prefix):
                name = member.name[len(prefix) :]
                found = _image(name, member)
                if found is not None:
                    images.append(found)
                    continue
                xml = _annotation(name, member)
                if xml is not None:
                    annotations.append(xml)
                    continue
                if name.startswith(_MARK):
                    ignored.append(member.name)
                    continue
            basename = member.name.rsplit("/", 1)[-1]
            if basename in (MAPPING, VAL_SOLUTION) and prefix.startswith(member.name.removesuffix(basename)):
                lists.setdefault(basename, member)
            elif basename in LIST_NAMES:
                others.append(member)
        _check_unique(images, source)
        label_lists = find_label_lists(others, prefix, source)
        if VAL_SOLUTION in lists:
            where = lists[VAL_SOLUTION].name
            label_lists.insert(0, parse_solution_list(read_list(source, lists[VAL_SOLUTION]), where=where))
        return Listing(
            catalog=_catalog(lists.get(MAPPING), {image.wnid for image in images if image.split == "train"}, source),
            images=images,
            annotations=annotations,
            label_lists=label_lists,
            ignored=ignored,
        )


def _catalog(mapping: Member | None, train_wnids: set[str], source: Source) -> Catalog:
    """The classes of the mapping; without one the training folders.

    Raises:
        ContradictionError: A training folder is not in the mapping.
    """
    if mapping is None:
        # A part of the archive without its lists is still usable; the wnids must serve as names.
        return Catalog(Synset(wnid, place, wnid) for place, wnid in enumerate(sorted(train_wnids)))
    catalog = parse_mapping(read_list(source, mapping), where=mapping.name)
    strangers = sorted(wnid for wnid in train_wnids if not catalog.has(wnid))
    if strangers:
        raise ContradictionError(
            f"{len(strangers)} training folders are not in {mapping.name}: {', '.join(strangers[:5])}",
            "use the mapping that belongs to this archive",
        )
    return catalog


def is_plain(name: str) -> bool:
    """Whether a name can be written to a table and shown on a terminal."""
    return name.isprintable() and "\ufffd" not in name


def _before(mark: str, name: str) -> str | None:
    """What stands before the folders of ``mark`` in a name; None where they are not in it."""
    before, found, _ = name.partition(mark)
    return before if found and (not before or before.endswith("/")) else None


def _find_prefix(members: Sequence[Member], source: Source) -> str:
    """What stands before ``Data/CLS-LOC/`` in the names of the pictures; where only annotations were fetched, of those.

    Raises:
        SourceError: There is no picture, or there are two trees of them.
    """
    prefixes: dict[str, int] = {}
    for member in members:
        before = _before(_MARK, member.name)
        if before is not None and is_plain(member.name) and _image(member.name[len(before) :], member) is not None:
            prefixes[before] = prefixes.get(before, 0) + 1
    # What a Mac puts beside every file it packs.
    found = [prefix for prefix in prefixes if not prefix.startswith("__MACOSX/")]
    if not found and not any(_before(_MARK, member.name) is not None for member in members):
        found = sorted({before for member in members if (before := _before(_XML_MARK, member.name)) is not None})
    if not found:
        raise SourceError(f"{source.path} has a {_MARK} folder, but not one .JPEG in it", "check the archive")
    if len(found) > 1:
        listed = ", ".join(f"{prefix or '.'} ({prefixes.get(prefix, 0):,} pictures)" for prefix in found[:3])
        raise SourceError(f"{source.path} holds {len(found)} trees: {listed}", "adopt an archive with one of them")
    return found[0]


def _image(name: str, member: Member) -> ImageMember | None:
    if match := _TRAIN.fullmatch(name):
        return ImageMember(match[2], "train", member, match[1]) if is_key(match[2]) else None
    if match := _FLAT.fullmatch(name):
        split: Split = "val" if match[1] == "val" else "test"
        return ImageMember(match[2], split, member) if is_key(match[2]) else None
    return None


def _annotation(name: str, member: Member) -> AnnotationMember | None:
    if (match := _TRAIN_XML.fullmatch(name)) and is_key(match[2]):
        return AnnotationMember(match[2], "train", member, match[1])
    if (match := _VAL_XML.fullmatch(name)) and is_key(match[1]):
        return AnnotationMember(match[1], "val", member)
    return None


def _check_unique(images: Sequence[ImageMember], source: Source) -> None:
    first: dict[str, ImageMember] = {}
    for image in images:
        other = first.setdefault(image.key, image)
        if other is not image:
            raise SourceError(
                f"{source.path} has two pictures with the key {image.key}: {other.member.name} and {image.member.name}",
                "remove one of them",
            )


def parse_mapping(content: bytes, *, where: str) -> Catalog:
    """Read ``LOC_synset_mapping.txt``: ``<wnid> <name>, <name>, ...``, one class a line; the line number is the index.

    Raises:
        MemberError: It is not UTF-8, or a line has no wnid or comes twice.
    """
    synsets: dict[str, Synset] = {}
    for number, line in enumerate(decode(content, where).splitlines(), start=1):
        if not line.strip():
            continue
        wnid, _, name = line.strip().partition(" ")
        if not is_wnid(wnid) or wnid in synsets:
            raise MemberError(f"{where}, line {number}: expected `<wnid> <names>` with a new wnid, got {line[:60]!r}")
        # Some copies have a colon between the two.
        synsets[wnid] = Synset(wnid, len(synsets), name.strip().removeprefix(":").strip() or wnid)
    if not synsets:
        raise MemberError(f"{where} lists no class")
    return Catalog(synsets.values())


def parse_solution(content: bytes, *, where: str) -> dict[str, str]:
    """Read the labels of ``LOC_val_solution.csv``, key to wnid; see :func:`parse_solution_list`.

    Raises:
        MemberError: The header or a row has another form, or an image has two classes.
    """
    return dict(parse_solution_list(content, where=where).labels)
