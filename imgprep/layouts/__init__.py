"""How a dataset lies in its source: one module a layout, all telling the same things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from imgprep.errors import SourceError, SpecError
from imgprep.records import Annotation, Catalog, Split
from imgprep.sources import Member, Source
from imgprep.sources.adopted import open_adopted
from imgprep.workspace import Workspace


@dataclass(frozen=True, slots=True)
class ImageMember:
    """One picture of a layout: its key, split, member, and class where the layout shows it (else empty)."""

    key: str
    split: Split
    member: Member
    wnid: str = ""


@dataclass(frozen=True, slots=True)
class AnnotationMember:
    """One XML file of a layout: the key of its picture, its split, its member, and the class of its folder if any."""

    key: str
    split: Split
    member: Member
    wnid: str = ""


@dataclass(frozen=True, kw_only=True)
class LabelList:
    """Labels of validation pictures from one list of the source.

    Attributes:
        name: Name of the member it came from.
        labels: Key to wnid.
        repeated: Keys that stand on it more than once, always with the same class.
    """

    name: str
    labels: Mapping[str, str]
    repeated: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a layout finds in a source.

    Attributes:
        catalog: All classes, in label order, also those without an image here.
        images: The pictures, in the source's order.
        annotations: The XML files, in the source's order.
        label_lists: Lists of validation labels that lie beside the pictures; they must agree with each other.
        boxes: Boxes that the layout has from lists of its own instead of XML, each picture with its split.
        ignored: Names of members that look like pictures but do not fit the layout.
        path_keys: How many pictures have a hash of their path for a key, as they would share one otherwise.
    """

    catalog: Catalog
    images: Sequence[ImageMember]
    annotations: Sequence[AnnotationMember]
    label_lists: Sequence[LabelList] = ()
    boxes: Sequence[tuple[Split, Annotation]] = ()
    ignored: Sequence[str] = ()
    path_keys: int = 0


class Layout(Protocol):
    """Recognises a source by its member names and lists what is in it."""

    name: str
    tree: str
    """What it looks like, in a few words for messages."""

    def matches(self, members: Sequence[Member]) -> bool:
        """Whether the names are those of this layout."""

    def mount(self, source: Source) -> Source:
        """The source with everything in it as a member of its own: most layouts have nothing to do here.

        One whose pictures lie in an archive inside the source, or in an array, wraps it. Closing what is returned
        closes ``source``.
        """

    def scan(self, source: Source) -> Listing:
        """List classes, pictures and annotations of a mounted source.

        Raises:
            DamagedError: A list of the layout is missing, damaged, or contradicts another.
        """


def layouts() -> Mapping[str, Layout]:
    """All layouts by name, in the order in which they are tried."""
    from imgprep.layouts.devkit import DevkitLayout
    from imgprep.layouts.ilsvrc import IlsvrcLayout
    from imgprep.layouts.imagefolder import ImageFolderLayout
    from imgprep.layouts.path_list import PathListLayout
    from imgprep.layouts.svhn import SvhnLayout
    from imgprep.layouts.tiny_imagenet import TinyImagenetLayout

    # From the most particular names to the least: folders with pictures in them are part of most layouts.
    known: tuple[Layout, ...] = (
        IlsvrcLayout(),
        DevkitLayout(),
        TinyImagenetLayout(),
        SvhnLayout(),
        PathListLayout(),
        ImageFolderLayout(),
    )
    return {layout.name: layout for layout in known}


def get_layout(name: str) -> Layout:
    """A layout by its name.

    Raises:
        SpecError: There is none of that name.
    """
    known = layouts()
    if name not in known:
        raise SpecError(f"there is no layout {name!r}", f"known layouts: {', '.join(known)}")
    return known[name]


def find_layout(source: Source) -> Layout:
    """The layout of a source.

    Raises:
        SourceError: No known layout fits.
    """
    known = layouts().values()
    members = source.members()
    for layout in known:
        if layout.matches(members):
            return layout
    sample = ", ".join(member.name for member in members[:3]) or "nothing"
    raise SourceError(
        f"{source.path} holds no dataset of a known layout; it holds {len(members):,} files, such as {sample}",
        f"known layouts: {'; '.join(f'{layout.name} ({layout.tree})' for layout in known)}",
    )


def open_dataset(workspace: Workspace) -> tuple[Source, Layout]:
    """Open the adopted source, mounted by the layout that was recorded with it.

    Raises:
        MissingInputError: No source was adopted, or it is gone.
        SourceError: It changed since.
    """
    source, record = open_adopted(workspace)
    try:
        layout = get_layout(record.layout)
        return layout.mount(source), layout
    except BaseException:
        source.__exit__(None, None, None)
        raise
