"""The nouns: synsets and their catalog, annotations, and the record that says all about one image."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from imgprep.errors import SpecError, UnknownClassError

Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)

UNLABELLED: Final = -1
"""Label of an image whose class is not known (the test split, or validation before its XML was read)."""

KEY_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,89}")
_WNID = re.compile(r"n\d{8}")


def is_key(text: str) -> bool:
    """Whether ``text`` can be a WebDataset key: no dot (it would
    split the extension), slash, blank or control byte, and short enough for a tar header.
    """
    return KEY_PATTERN.fullmatch(text) is not None


def is_wnid(text: str) -> bool:
    """Whether ``text`` is a WordNet id as ImageNet writes it: ``n`` and eight digits."""
    return _WNID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Synset:
    """One class: its WordNet id, its place in the catalog (0-based), and its name with synonyms."""

    wnid: str
    index: int
    name: str

    @property
    def synonyms(self) -> tuple[str, ...]:
        """The names between commas: ``("tench", "Tinca tinca")``."""
        return tuple(part.strip() for part in self.name.split(",") if part.strip())

    @property
    def label(self) -> str:
        """How messages name the class: ``n01440764 (tench)``."""
        return f"{self.wnid} ({self.synonyms[0]})" if self.synonyms and self.synonyms[0] != self.wnid else self.wnid


def _folded(text: str) -> str:
    return " ".join(text.replace("_", " ").split()).casefold()


class Catalog(Sequence[Synset]):
    """The ordered synsets of a dataset; resolves what people write to one of them.

    Args:
        synsets: In order; ``synsets[i].index`` must be ``i`` and no wnid may come twice.

    Raises:
        SpecError: The order or the wnids break that rule.
    """

    def __init__(self, synsets: Iterable[Synset]) -> None:
        self._synsets = tuple(synsets)
        self._by_wnid: dict[str, Synset] = {}
        self._by_name: dict[str, list[Synset]] = {}
        for place, synset in enumerate(self._synsets):
            if synset.index != place:
                raise SpecError(f"class {synset.wnid} has index {synset.index} at place {place} of the catalog")
            if synset.wnid in self._by_wnid:
                raise SpecError(f"class {synset.wnid} stands twice in the catalog")
            self._by_wnid[synset.wnid] = synset
            for name in {_folded(name) for name in (*synset.synonyms, synset.name)}:
                self._by_name.setdefault(name, []).append(synset)

    def __len__(self) -> int:
        return len(self._synsets)

    def __iter__(self) -> Iterator[Synset]:
        return iter(self._synsets)

    def __getitem__(self, place: int) -> Synset:  # type: ignore[override]  # slices of a catalog would break its indices
        return self._synsets[place]

    def has(self, wnid: str) -> bool:
        """Whether a class of that wnid is in the catalog."""
        return wnid in self._by_wnid

    def by_wnid(self, wnid: str) -> Synset:
        """The synset of a wnid.

        Raises:
            UnknownClassError: It is not in the catalog.
        """
        try:
            return self._by_wnid[wnid]
        except KeyError:
            raise UnknownClassError(f"class {wnid!r} is not in the catalog") from None

    def find(self, text: str) -> Sequence[Synset]:
        """All synsets that go by a wnid or name; case and ``_`` for blanks do not matter."""
        if text in self._by_wnid:
            return [self._by_wnid[text]]
        return self._by_name.get(_folded(text), [])

    def resolve(self, text: str) -> Synset:
        """Find the synset for a wnid or a name; case and ``_`` for blanks do not matter.

        Raises:
            UnknownClassError: No class, or more than one class, goes by that name. The message gives near matches.
        """
        found = self.find(text)
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(synset.wnid for synset in found)
            raise UnknownClassError(f"{len(found)} classes are named {text!r}: {ids}", "give the wnid")
        raise UnknownClassError(f"no class is named {text!r}", self._near(text))

    def _near(self, text: str) -> str:
        if is_wnid(text):
            near = difflib.get_close_matches(text, self._by_wnid, n=3, cutoff=0.8)
            matches = [self._by_wnid[wnid] for wnid in near]
        else:
            folded = _folded(text)
            names = difflib.get_close_matches(folded, self._by_name, n=3, cutoff=0.6)
            names += [name for name in self._by_name if folded and folded in name.split()][:3]
            matches = [synset for name in dict.fromkeys(names) for synset in self._by_name[name]]
        if not matches:
            return "`imgprep catalog` writes classes.csv, which lists them all"
        shown = ", ".join(dict.fromkeys(synset.label for synset in matches[:4]))
        return f"did you mean {shown}?"


@dataclass(frozen=True, slots=True)
class BoundingBox:
    """One object of an annotation, in pixels of the annotated picture, as the XML says (PASCAL VOC field names)."""

    wnid: str
    xmin: int
    ymin: int
    xmax: int
    ymax: int


@dataclass(frozen=True, slots=True)
class Annotation:
    """What one XML file says; ``width`` and ``height`` in pixels, None where it has no ``<size>``."""

    key: str
    width: int | None
    height: int | None
    boxes: tuple[BoundingBox, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Wnids of the objects, each once, in the order of the file."""
        return tuple(dict.fromkeys(box.wnid for box in self.boxes))


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a manifest: one image.

    Attributes:
        key: The file stem; unique over all splits.
        split: ``train``, ``val`` or ``test``.
        path: Name of the member in the source.
        wnid: Its class, or empty when not known.
        label: The class's number in the manifest's own ``classes.csv``, or :data:`UNLABELLED`.
        num_bytes: Size of the member.
        crc32: CRC-32 of its bytes, where the source knows it without reading (a zip does).
    """

    key: str
    split: str
    path: str
    wnid: str
    label: int
    num_bytes: int
    crc32: int | None


@dataclass(frozen=True, slots=True)
class Rejected:
    """One sample or file that was left out, and why."""

    key: str
    split: str
    path: str
    reason: str
