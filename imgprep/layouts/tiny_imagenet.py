"""Tiny-ImageNet-200: 200 classes of ImageNet at 64 x 64 pixels, with boxes in lists instead of XML."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from imgprep.errors import MemberError, SourceError
from imgprep.layouts import ImageMember, LabelList, Listing
from imgprep.layouts.ilsvrc import is_plain
from imgprep.layouts.naming import check_unique, is_junk, make_catalog, parse_names, read_text
from imgprep.records import Annotation, BoundingBox, Split, is_key, is_wnid
from imgprep.sources import Member, Source

_TRAIN: Final = re.compile(r"(|.*/)train/(n\d{8})/images/([^/]+)\.JPEG")
_FLAT: Final = re.compile(r"(|.*/)(val|test)/images/([^/]+)\.JPEG")
_SORTED: Final = re.compile(r"(|.*/)val/(n\d{8})/(?:images/)?([^/]+)\.JPEG")
"""Validation pictures that someone sorted into class folders, as many loaders want them."""
_LIST: Final = re.compile(r"(|.*/)(wnids\.txt|words\.txt|val/val_annotations\.txt|train/(n\d{8})/\3_boxes\.txt)")
_SIDE: Final = 64
"""Pixels of every picture on either side."""


@dataclass(slots=True)
class _Tree:
    """Pictures and lists below one folder."""

    images: list[ImageMember] = field(default_factory=list)
    lists: dict[str, Member] = field(default_factory=dict)


class TinyImagenetLayout:
    """``train/<wnid>/images``, ``val/images`` and ``test/images`` below one folder, with the lists beside them."""

    name = "tiny-imagenet"
    tree = "folders train/<wnid>/images/*.JPEG"

    def matches(self, members: Sequence[Member]) -> bool:
        """Whether a training folder has its pictures in a folder ``images``."""
        return any(_TRAIN.fullmatch(member.name) and not is_junk(member.name) for member in members)

    def mount(self, source: Source) -> Source:
        """Nothing to do."""
        return source

    def scan(self, source: Source) -> Listing:
        """List classes in the order of ``wnids.txt``, pictures, and the classes and boxes of the lists.

        Raises:
            SourceError: There is no picture, or two trees of them, or two pictures have one key.
            MemberError: A list is damaged, or names a class that ``wnids.txt`` does not have.
        """
        prefix, tree, ignored = _find_tree(source)
        check_unique(tree.images, source.path)
        wnids = _wnids(tree, source)
        strangers = sorted({image.wnid for image in tree.images if image.wnid} - wnids.keys())
        if strangers:
            raise MemberError(f"{prefix}wnids.txt lacks the training folders {', '.join(strangers[:5])}")
        words = tree.lists.get("words.txt")
        boxes: list[tuple[Split, Annotation]] = []
        for name, member in tree.lists.items():
            if name.startswith("train/"):
                wnid = name.split("/")[1]
                boxes += (("train", box) for box, _ in _boxes(read_text(source, member), member.name, {wnid}, wnid))
        listed = tree.lists.get("val/val_annotations.txt")
        val = [] if listed is None else list(_boxes(read_text(source, listed), listed.name, wnids))
        boxes += (("val", box) for box, _ in val)
        lists = [] if listed is None else [LabelList(name=listed.name, labels={box.key: wnid for box, wnid in val})]
        folders = {image.key: image.wnid for image in tree.images if image.split == "val" and image.wnid}
        lists += [LabelList(name=f"{prefix}val", labels=folders)] if folders else []
        return Listing(
            catalog=make_catalog(wnids, {} if words is None else parse_names(read_text(source, words), wnids)),
            images=tree.images,
            annotations=(),
            label_lists=tuple(lists),
            boxes=boxes,
            ignored=ignored,
        )


def _find_tree(source: Source) -> tuple[str, _Tree, list[str]]:
    """What stands before the folders, what is in them, and the names of what is not."""
    trees: dict[str, _Tree] = {}
    lists: list[tuple[str, str, Member]] = []
    ignored: list[str] = []
    for member in source.members():
        name = member.name
        image = None if is_junk(name) or not is_plain(name) else _image(member)
        if image is not None:
            trees.setdefault(image[0], _Tree()).images.append(image[1])
        elif (match := _LIST.fullmatch(name)) and not is_junk(name):
            lists.append((match[1], match[2], member))
        else:
            ignored.append(name)
    if not trees:
        raise SourceError(f"{source.path} has no picture train/<wnid>/images/*.JPEG", "check the archive")
    if len(trees) > 1:
        listed = ", ".join(f"{prefix or './'} ({len(tree.images):,} pictures)" for prefix, tree in trees.items())
        raise SourceError(f"{source.path} holds {len(trees)} trees: {listed}", "adopt one of these folders")
    ((prefix, tree),) = trees.items()
    for before, name, member in lists:
        if before == prefix:
            tree.lists[name] = member
    return prefix, tree, ignored


def _image(member: Member) -> tuple[str, ImageMember] | None:
    if (match := _TRAIN.fullmatch(member.name)) and is_key(match[3]):
        return match[1], ImageMember(match[3], "train", member, match[2])
    if (match := _FLAT.fullmatch(member.name)) and is_key(match[3]):
        split: Split = "val" if match[2] == "val" else "test"
        return match[1], ImageMember(match[3], split, member)
    if (match := _SORTED.fullmatch(member.name)) and is_key(match[3]):
        return match[1], ImageMember(match[3], "val", member, match[2])
    return None


def _wnids(tree: _Tree, source: Source) -> Mapping[str, int]:
    """The classes in order: ``wnids.txt``, or without it the training folders; wnid to place.

    Raises:
        MemberError: A line is no wnid, or comes twice.
    """
    member = tree.lists.get("wnids.txt")
    if member is None:
        return {wnid: place for place, wnid in enumerate(sorted({image.wnid for image in tree.images if image.wnid}))}
    wnids: dict[str, int] = {}
    for number, line in enumerate(read_text(source, member).split(), start=1):
        if not is_wnid(line) or line in wnids:
            raise MemberError(f"{member.name}, line {number}: expected a new wnid, got {line[:60]!r}")
        wnids[line] = len(wnids)
    return wnids


def _boxes(text: str, where: str, wnids: Collection[str], wnid: str = "") -> Iterator[tuple[Annotation, str]]:
    """Read lines ``<file> [<wnid>] <x0> <y0> <x1> <y1>``, one picture each.

    Args:
        text: The list.
        where: Its name.
        wnids: The classes there are.
        wnid: The class of all lines, where they do not say it.

    Yields:
        The annotation and its class.

    Raises:
        MemberError: A line has another form, or a picture comes twice.
    """
    seen: set[str] = set()
    expected = f"<file> {'' if wnid else '<wnid> '}<x0> <y0> <x1> <y1>"
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        words = line.split()
        if wnid:
            words.insert(1, wnid)
        key = words[0].removesuffix(".JPEG")
        if len(words) != 6 or words[1] not in wnids or not all(re.fullmatch(r"\d{1,4}", word) for word in words[2:]):
            raise MemberError(f"{where}, line {number}: expected `{expected}` of a known class, got {line[:80]!r}")
        if key in seen or not is_key(key):
            raise MemberError(f"{where}, line {number}: expected a new picture, got {words[0][:80]!r}")
        seen.add(key)
        box = BoundingBox(words[1], *map(int, words[2:]))
        yield Annotation(key, _SIDE, _SIDE, (box,)), words[1]
