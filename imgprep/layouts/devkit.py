"""ImageNet as image-net.org hands it out: a tar of tars, the development kit with its own numbers, boxes in tars."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from imgprep.errors import ContradictionError, SourceError
from imgprep.layouts import AnnotationMember, ImageMember, LabelList, Listing
from imgprep.layouts.ilsvrc import is_plain
from imgprep.layouts.label_lists import parse_ground_truth, parse_meta, read_list
from imgprep.layouts.naming import check_unique, is_junk, is_picture, make_catalog
from imgprep.records import Catalog, Split, is_key
from imgprep.sources import Member, Source
from imgprep.sources.nested import NestedSource
from imgprep.workspace import default_cache

_PACKED: Final = r"\.(?:tar\.gz|tgz|tar)"
_PICTURE_TAR: Final = re.compile(r"(?:|.*/)(?:ILSVRC2012_img_(?:train|val)\.tar|n\d{8}\.tar)")
_OPENED: Final = re.compile(
    rf"{_PICTURE_TAR.pattern}|(?:|.*/)(?:ILSVRC2012_img_test[^/]*\.tar|ILSVRC2012_devkit_t12{_PACKED}"
    rf"|ILSVRC2012_bbox_(?:train|val)_v\d{_PACKED})"
)
_TRAIN: Final = re.compile(r"(?:|.*/)(n\d{8})\.tar/(?:\1/)?([^/]+)\.JPEG")
_FLAT: Final = re.compile(r"(?:|.*/)ILSVRC2012_img_(val|test)[^/]*\.tar/(?:[^/]+/)?([^/]+)\.JPEG")
_XML: Final = re.compile(
    rf"(?:|.*/)ILSVRC2012_bbox_(?:train_v\d{_PACKED}/(?:.*/)?(n\d{{8}})|val_v\d{_PACKED}(?:/[^/]+)?)/([^/]+)\.xml"
)
_META: Final = "meta.mat"
_TRUTH: Final = "ILSVRC2012_validation_ground_truth.txt"


class DevkitLayout:
    """``ILSVRC2012_img_train.tar`` and its siblings, as far as they are there, or the tars of single classes.

    The development kit may be there as an archive or unpacked.
    """

    name = "devkit"
    tree = "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz"

    def matches(self, members: Sequence[Member]) -> bool:
        """Whether there is a tar of pictures by one of its names."""
        return any(_PICTURE_TAR.fullmatch(member.name) and not is_junk(member.name) for member in members)

    def mount(self, source: Source) -> Source:
        """Show the tars, and those in the training tar, as folders.

        Raises:
            SourceError: A large tar is packed once more, or a packed one is damaged.
        """
        return NestedSource(
            source, lambda name: _OPENED.fullmatch(name) is not None and not is_junk(name), cache=default_cache()
        )

    def scan(self, source: Source) -> Listing:
        """List the classes of ``meta.mat`` in wnid order, pictures, XML files, and labels from the ground truth.

        Raises:
            SourceError: There is no picture, or ``meta.mat`` is there twice, or two pictures have one key.
            ContradictionError: A training tar is of a class that ``meta.mat`` does not have.
            MemberError: A list is damaged.
        """
        images: list[ImageMember] = []
        annotations: list[AnnotationMember] = []
        lists: dict[str, Member] = {}
        ignored: list[str] = []
        for member in source.members():
            basename = member.name.rsplit("/", 1)[-1]
            if is_junk(member.name) or not is_plain(member.name):
                ignored.append(member.name)
            elif (image := _image(member)) is not None:
                images.append(image)
            elif (xml := _annotation(member)) is not None:
                annotations.append(xml)
            elif basename in (_META, _TRUTH):
                if basename in lists:
                    raise SourceError(
                        f"{source.path} has {basename} twice: {lists[basename].name} and {member.name}",
                        "keep one of them",
                    )
                lists[basename] = member
            elif is_picture(member.name):
                ignored.append(member.name)
        if not images:
            raise SourceError(f"{source.path} has no picture in its tars", "check the archives")
        check_unique(images, source.path)
        wnids = {image.wnid for image in images if image.wnid}
        catalog, label_lists = _classes(source, lists, wnids)
        return Listing(
            catalog=catalog, images=images, annotations=annotations, label_lists=label_lists, ignored=ignored
        )


def _image(member: Member) -> ImageMember | None:
    if (match := _TRAIN.fullmatch(member.name)) and is_key(match[2]):
        return ImageMember(match[2], "train", member, match[1])
    if (match := _FLAT.fullmatch(member.name)) and is_key(match[2]):
        split: Split = "val" if match[1] == "val" else "test"
        return ImageMember(match[2], split, member)
    return None


def _annotation(member: Member) -> AnnotationMember | None:
    match = _XML.fullmatch(member.name)
    if match is None or not is_key(match[2]):
        return None
    return AnnotationMember(match[2], "train" if match[1] else "val", member, match[1] or "")


def _classes(source: Source, lists: Mapping[str, Member], wnids: set[str]) -> tuple[Catalog, Sequence[LabelList]]:
    """The classes in wnid order and the validation labels; without the kit the tars are the classes."""
    if _META not in lists:
        return make_catalog(sorted(wnids), {}), ()
    meta = lists[_META]
    synsets = parse_meta(read_list(source, meta), where=meta.name)
    names = {synset.wnid: synset.words for synset in synsets.values()}
    strangers = sorted(wnids - names.keys())
    if strangers:
        raise ContradictionError(
            f"{len(strangers)} training tars are of no class in {meta.name}: {', '.join(strangers[:5])}",
            "use the development kit that belongs to them",
        )
    catalog = make_catalog(sorted(names), names)
    if _TRUTH not in lists:
        return catalog, ()
    truth = lists[_TRUTH]
    numbered = {number: synset.wnid for number, synset in synsets.items()}
    return catalog, [parse_ground_truth(read_list(source, truth), numbered, where=truth.name)]
