"""SVHN, house numbers from street views: the cropped digits, in MAT files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from imgprep.errors import SourceError
from imgprep.layouts import ImageMember, LabelList, Listing
from imgprep.layouts.ilsvrc import is_plain
from imgprep.layouts.naming import check_unique, is_junk, make_catalog
from imgprep.records import Split
from imgprep.sources import Member, Source
from imgprep.sources.arrays import DigitArraySource

_FILE: Final = re.compile(r"((?:|.*/)(train|test|extra))_32x32\.mat")
_PICTURE: Final = re.compile(r"(?:|.*/)(train|test|extra)/([0-9])/([0-9]+)\.png")
_SPLITS: Final[Mapping[str, Split]] = {"train": "train", "extra": "train", "test": "val"}
"""SVHN has no validation part: its test part, labelled like the others, is what results are reported on."""

_WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS: Final = {str(digit): word for digit, word in enumerate(_WORDS)}


class SvhnLayout:
    """``train_32x32.mat``, ``test_32x32.mat`` and ``extra_32x32.mat``, as far as they are there.

    The picture number 1 of a file is the member ``train/<digit>/000001.png`` with the key ``train_000001``.
    """

    name = "svhn"
    tree = "train_32x32.mat, test_32x32.mat, extra_32x32.mat"

    def matches(self, members: Sequence[Member]) -> bool:
        """Whether one of the files is there."""
        return bool(_files(members))

    def mount(self, source: Source) -> Source:
        """Show the arrays as folders of PNG files.

        Raises:
            SourceError: None of the files is there, or they hold something else.
            MemberError: One is damaged.
        """
        files = _files(source.members())
        if not files:
            raise SourceError(f"{source.path} holds no *_32x32.mat", "SVHN calls these files its cropped digits")
        return DigitArraySource(source, files)

    def scan(self, source: Source) -> Listing:
        """List the ten digits and the pictures of a mounted source.

        Raises:
            SourceError: A file is there twice.
        """
        images: list[ImageMember] = []
        ignored: list[str] = []
        for member in source.members():
            match = _PICTURE.fullmatch(member.name)
            if match is None:
                ignored.append(member.name)
            else:
                images.append(ImageMember(f"{match[1]}_{match[3]}", _SPLITS[match[1]], member, match[2]))
        check_unique(images, source.path)
        val = {image.key: image.wnid for image in images if image.split == "val"}
        return Listing(
            catalog=make_catalog(_DIGITS, _DIGITS),
            images=images,
            annotations=(),
            label_lists=[LabelList(name="test_32x32.mat", labels=val)] if val else (),
            ignored=ignored,
        )


def _files(members: Sequence[Member]) -> dict[str, str]:
    """The MAT files, each with the name of the folder it is shown as."""
    names = [member.name for member in members if is_plain(member.name) and not is_junk(member.name)]
    return {name: match[1] for name in names if (match := _FILE.fullmatch(name))}
