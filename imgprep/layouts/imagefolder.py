"""A folder a class: Imagenette, Caltech, or one's own pictures; also with train, val and test folders on top."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from imgprep.errors import SourceError
from imgprep.layouts import ImageMember, LabelList, Listing
from imgprep.layouts.naming import (
    NAME_LISTS,
    class_id,
    find_beside,
    is_picture,
    make_catalog,
    picture_key,
    read_names,
    stem,
    tell_apart,
)
from imgprep.records import Split
from imgprep.sources import Member, Source

SPLIT_FOLDERS: Final[Mapping[str, Split]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Names of folders, in any case, that say which split lies below."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a picture lies: what stands before the tree, its split (empty without split folders), its class folder."""

    prefix: str
    split: Split | None
    folder: str


class ImageFolderLayout:
    """``<class>/*.jpg`` or ``{train,val,test}/<class>/*.jpg``, below folders of any name.

    Without split folders every picture is for training.
    """

    name = "imagefolder"
    tree = "a folder for each of two or more classes, with pictures in it; train, val and test folders may lie on top"

    def matches(self, members: Sequence[Member]) -> bool:
        """Whether pictures lie in folders of two or more classes."""
        return len({place.folder for place in _class_folders(members)}) > 1

    def mount(self, source: Source) -> Source:
        """Nothing to do."""
        return source

    def scan(self, source: Source) -> Listing:
        """List classes from the folders, and the pictures in them. Pictures right in a ``test`` folder have no class.

        Keys are those of :func:`imgprep.layouts.naming.picture_key`, told apart by the path below the tree.

        Raises:
            SourceError: There is no picture in a folder, or two trees of them; a class has a name that cannot be used;
                or two pictures have one key all the same.
            MemberError: A list of names is damaged.
        """
        members = source.members()
        prefix, split_folders = _find_tree(members, source)
        found: list[ImageMember] = []
        ignored: list[str] = []
        for member in members:
            image = _image(member, prefix, split_folders=split_folders, source=source)
            if image is not None:
                found.append(image)
            else:
                ignored.append(member.name)
        images, path_keys = tell_apart(found, prefix, source.path)
        wnids = sorted({image.wnid for image in images if image.wnid})
        names = read_names(source, members, prefix, wnids)
        beside = {member.name for member in find_beside(members, prefix, NAME_LISTS).values()}
        val = {image.key: image.wnid for image in images if image.split == "val"}
        return Listing(
            catalog=make_catalog(wnids, names),
            images=images,
            annotations=(),
            label_lists=[LabelList(name=f"{prefix}val", labels=val)] if val else (),
            ignored=[name for name in ignored if name not in beside],
            path_keys=path_keys,
        )


def _place(name: str) -> _Place | None:
    """Where a picture lies; None for what is no picture in a folder."""
    if not is_picture(name):
        return None
    *folders, _ = name.split("/")
    if len(folders) > 1 and (split := SPLIT_FOLDERS.get(folders[-2].casefold())):
        return _Place("".join(f"{folder}/" for folder in folders[:-2]), split, folders[-1])
    return _Place("".join(f"{folder}/" for folder in folders[:-1]), None, folders[-1]) if folders else None


def _class_folders(members: Sequence[Member]) -> Counter[_Place]:
    """The class folders, each with how many pictures it has; those below split folders alone where there are some."""
    found = Counter(place for member in members if (place := _place(member.name)) is not None)
    split = Counter({place: number for place, number in found.items() if place.split is not None})
    return split or found


def _find_tree(members: Sequence[Member], source: Source) -> tuple[str, bool]:
    """What stands before the class folders, and whether split folders come first.

    Raises:
        SourceError: There is no picture in a folder, or the folders are not in one place.
    """
    folders = _class_folders(members)
    _check_held_out(folders, source)
    prefixes: Counter[str] = Counter()
    for place, number in folders.items():
        prefixes[place.prefix] += number
    if not prefixes:
        raise SourceError(f"{source.path} has no picture in a folder", "put the pictures of each class into a folder")
    if len(prefixes) > 1:
        listed = ", ".join(f"{prefix or './'} ({number:,} pictures)" for prefix, number in prefixes.most_common(3))
        raise SourceError(
            f"{source.path} holds class folders in {len(prefixes)} places: {listed}", "adopt one of these folders"
        )
    return next(iter(prefixes)), any(place.split is not None for place in folders)


def _check_held_out(folders: Counter[_Place], source: Source) -> None:
    """Refuse to take held-out pictures for a class of their own.

    Raises:
        SourceError: Pictures lie right in a folder for validation or test, beside class folders.
    """
    if any(place.split is not None for place in folders):
        return
    flat = sorted({place.folder for place in folders if SPLIT_FOLDERS.get(place.folder.casefold(), "train") != "train"})
    if flat:
        raise SourceError(
            f"{source.path} has pictures right in {', '.join(flat)}, which is no class, beside class folders",
            "move them out, or sort them into class folders below it",
        )


def _image(member: Member, prefix: str, *, split_folders: bool, source: Source) -> ImageMember | None:
    """A member as a picture of the tree; None where it is none."""
    place = _place(member.name)
    if place is None:
        return None
    if place.prefix == prefix and (place.split is not None) == split_folders:
        split = place.split or "train"
        wnid = class_id(place.folder, where=str(source.path))
        return ImageMember(picture_key(stem(member.name), wnid, split), split, member, wnid)
    if split_folders and place.prefix == prefix and place.folder.casefold() == "test":
        return ImageMember(picture_key(stem(member.name), "", "test"), "test", member)
    return None
