"""How a dataset lies in its source: one module a layout, all telling the same things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from imgprep.errors import SourceError
from imgprep.records import Catalog, Split
from imgprep.sources import Member, Source


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
class Listing:
    """What a layout finds in a source.

    Attributes:
        catalog: All classes, in label order, also those without an image here.
        images: The pictures, in the source's order.
        annotations: The XML files, in the source's order.
        val_labels: Key to wnid for validation images, from a list that lies beside the XML; may be empty.
        val_labels_name: Name of the member that list came from.
        ignored: Names of members that look like pictures but do not fit the layout.
    """

    catalog: Catalog
    images: Sequence[ImageMember]
    annotations: Sequence[AnnotationMember]
    val_labels: dict[str, str] = field(default_factory=dict)
    val_labels_name: str = ""
    ignored: Sequence[str] = ()


class Layout(Protocol):
    """Recognises a source by its member names and lists what is in it."""

    name: str

    def matches(self, members: Sequence[Member]) -> bool:
        """Whether the names are those of this layout."""

    def scan(self, source: Source) -> Listing:
        """List classes, pictures and annotations.

        Raises:
            DamagedError: A list of the layout is missing, damaged, or contradicts another.
        """


def find_layout(source: Source) -> Layout:
    """The layout of a source.

    Raises:
        SourceError: No known layout fits.
    """
    from imgprep.layouts.ilsvrc import IlsvrcLayout

    layouts: tuple[Layout, ...] = (IlsvrcLayout(),)
    members = source.members()
    for layout in layouts:
        if layout.matches(members):
            return layout
    sample = ", ".join(member.name for member in members[:3]) or "nothing"
    raise SourceError(
        f"{source.path} holds no dataset of a known layout; it holds {len(members):,} files, such as {sample}",
        f"known layouts: {', '.join(layout.name for layout in layouts)} (a folder Data/CLS-LOC/train/<wnid>/*.JPEG)",
    )
