"""What is asked for of an archive, and which of its members that is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from imgprep.errors import AnnotationError, ContradictionError, DamagedError, MissingInputError, SpecError, UsageError
from imgprep.files import sha256_file
from imgprep.layouts.ilsvrc import MAPPING, VAL_SOLUTION, parse_mapping, parse_solution
from imgprep.layouts.survey import Members, Survey, stem
from imgprep.records import Catalog, Record, Synset
from imgprep.selection import ClassChoice, SubsetSpec, choose_classes, choose_keys
from imgprep.voc import parse_annotation, val_label

_FOLDER: Final = re.compile(r"(?:^|/)(?:train/([^/]+)|(val|test))/[^/]+$")


@dataclass(frozen=True, kw_only=True)
class PartRequest:
    """A part of an archive: a subset of its pictures, or those of a manifest, or no picture at all.

    Every part comes with the class list, the validation labels, all validation annotations and the annotations of
    the chosen training pictures; a part without pictures comes with every list and annotation there is.

    Attributes:
        subset: What to choose, with the meaning it has for ``imgprep subset``.
        manifest: A ``manifest.csv`` whose pictures to fetch.
    """

    subset: SubsetSpec | None = None
    manifest: Path | None = None

    def __post_init__(self) -> None:
        if self.subset is not None and self.manifest is not None:
            raise SpecError("a part is given by options or by a manifest, not by both")

    def to_options(self) -> dict[str, Any]:
        """The request as JSON values: equal requests have equal options.

        Raises:
            MissingInputError: The manifest is not there.
        """
        if self.manifest is not None:
            if not self.manifest.is_file():
                raise MissingInputError(f"{self.manifest} does not exist", "name a manifest.csv made by imgprep subset")
            return {"manifest_sha256": sha256_file(self.manifest)}
        return self.subset.to_options() if self.subset is not None else {"metadata_only": True}

    @property
    def line(self) -> str:
        """The request on one line, for people."""
        if self.manifest is not None:
            return f"the pictures of {self.manifest.name}"
        return self.subset.line if self.subset is not None else "lists and annotations"


@dataclass(frozen=True, kw_only=True)
class PartChoice:
    """The members that a request comes to.

    Attributes:
        members: Their numbers in the directory, each once.
        pictures: How many of them are pictures, by split.
        classes: The chosen classes; None where no class was chosen.
    """

    members: Members
    pictures: Mapping[str, int]
    classes: ClassChoice | None = None


Content = Callable[[int], bytes]
"""Gives the bytes of a member by its number."""


def choose(found: Survey, request: PartRequest, content: Content) -> PartChoice:
    """Choose the members of a part: for the same archive the same that ``imgprep subset`` chooses from the whole.

    Args:
        found: What the archive holds.
        request: What is asked for.
        content: Reads a list or an annotation; called for few of them.

    Raises:
        UsageError: The request cannot be met; see :func:`imgprep.selection.choose_classes`.
        MissingInputError: A picture of the manifest is not in the archive.
        DamagedError: A list is damaged or contradicts the archive.
    """
    if request.manifest is not None:
        return _of_manifest(found, request.manifest)
    if request.subset is None:
        everything = [*found.train_xml.values(), found.val_xml, np.array([*found.lists.values()], dtype=np.int64)]
        return PartChoice(members=_union(everything), pictures={})
    catalog = read_classes(found, content)
    counts = {wnid: len(members) for wnid, members in found.train.items()}
    classes = choose_classes(counts, catalog, request.subset)
    seed = request.subset.seed
    quotas = classes.quotas(counts, request.subset.per_class, seed=seed)
    wnids = [wnid for wnid in quotas if wnid in found.train]
    train = [_first(found, found.train[wnid], quotas[wnid], seed) for wnid in wnids]
    labels = val_labels(found, catalog, content)
    by_class: dict[str, list[int]] = {wnid: [] for wnid in quotas}
    for member, key in zip(found.val.tolist(), found.keys(found.val), strict=True):
        if labels.get(key) in by_class:
            by_class[labels[key]].append(member)
    counts = {wnid: len(members) for wnid, members in by_class.items()}
    quotas = classes.quotas(counts, request.subset.val_per_class, seed=seed)
    val = [_first(found, np.array(members, dtype=np.int64), quotas[wnid], seed) for wnid, members in by_class.items()]
    pictures = {"train": sum(map(len, train)), "val": sum(map(len, val))}
    xml = _annotations_of(found, {stem(name) for some in train for name in found.directory.names(some)}, wnids)
    return PartChoice(
        members=_union([*train, *val, xml, *_always(found)]),
        pictures=pictures,
        classes=classes,
    )


def _of_manifest(found: Survey, manifest: Path) -> PartChoice:
    from imgprep.tables import manifest_records, read_manifest

    by_place: dict[tuple[str, str], int] = {}
    members: list[int] = []
    absent: list[str] = []
    keys: dict[str, set[str]] = {}
    pictures: dict[str, int] = {}
    rows = list(manifest_records(read_manifest(manifest, made_by="imgprep subset")))
    asked = {folder_of(row) for row in rows}
    wanted = asked - {"val", "test"}
    groups = [*((wnid, found.train[wnid]) for wnid in wanted & found.train.keys()), ("val", found.val)]
    if "test" in asked:
        groups.append(("test", found.test))
    for group, numbers in groups:
        by_place.update(((group, key), int(m)) for key, m in zip(found.keys(numbers), numbers, strict=True))
    for row in rows:
        group = folder_of(row)
        member = by_place.get((group, row.key))
        if member is None:
            absent.append(row.path)
            continue
        crc32 = int(found.directory.crc32[member])
        if row.crc32 is not None and row.crc32 != crc32:
            raise ContradictionError(
                f"{row.path}: the manifest says CRC-32 {row.crc32:08x}, the archive {crc32:08x}",
                "the manifest was made from another archive",
            )
        members.append(member)
        pictures[row.split] = pictures.get(row.split, 0) + 1
        keys.setdefault(group, set()).add(row.key)
    if absent:
        raise MissingInputError(
            f"pictures of {manifest} that are not in the archive: {len(absent)}, such as {absent[0]}",
            "the manifest was made from another archive",
        )
    if not rows:
        raise UsageError(f"{manifest} lists no picture", "name a manifest.csv made by imgprep subset")
    train_keys = {key for group, some in keys.items() if group not in ("val", "test") for key in some}
    xml = _annotations_of(found, train_keys, sorted(wanted))
    chosen = np.array(members, dtype=np.int64)
    return PartChoice(members=_union([chosen, xml, *_always(found)]), pictures=pictures)


def folder_of(row: Record) -> str:
    """Where the picture of a row lies in the archive: the wnid of its folder in ``train``, else ``val`` or ``test``.

    Its path says so, also where a subset divided the training pictures or made one class of several; a path of another
    form says nothing, then class and split do.
    """
    match = _FOLDER.search(row.path)
    if match is None:
        return row.wnid if row.split == "train" else row.split
    return match[1] or match[2]


def read_classes(found: Survey, content: Content) -> Catalog:
    """All classes of the archive, from its mapping, or from its folders where it has none.

    Raises:
        ContradictionError: A training folder is not in the mapping.
    """
    if MAPPING not in found.lists:
        return Catalog(Synset(wnid, place, wnid) for place, wnid in enumerate(sorted(found.train)))
    catalog = parse_mapping(content(found.lists[MAPPING]), where=MAPPING)
    strangers = sorted(wnid for wnid in found.train if not catalog.has(wnid))
    if strangers:
        raise ContradictionError(
            f"{len(strangers)} training folders are not in {MAPPING}: {', '.join(strangers[:5])}",
            "use the mapping that belongs to this archive",
        )
    return catalog


def val_labels(found: Survey, catalog: Catalog, content: Content) -> dict[str, str]:
    """Key to wnid of the validation pictures, from their list, and from the annotations of those that are not on it."""
    listed: dict[str, str] = {}
    if VAL_SOLUTION in found.lists:
        listed = parse_solution(content(found.lists[VAL_SOLUTION]), where=VAL_SOLUTION)
    labels: dict[str, str] = {}
    keys = set(found.keys(found.val))
    unlisted = keys - listed.keys()
    for member, key in zip(found.val_xml.tolist(), found.keys(found.val_xml) if unlisted else (), strict=False):
        if key in unlisted:
            try:
                classes: Sequence[str] = parse_annotation(content(member), key=key, catalog=catalog).classes
            except AnnotationError:
                # The stage that reads all annotations says what is wrong with it; there is no label to choose by.
                continue
            label = val_label(None, classes)
            if label is not None:
                labels[key] = label
    return labels | {key: wnid for key, wnid in listed.items() if key in keys}


def _first(found: Survey, members: Members, limit: int, seed: int) -> Members:
    """The pictures of one class that are chosen."""
    by_key = dict(zip(found.keys(members), members.tolist(), strict=True))
    if len(by_key) < len(members):
        raise DamagedError("the archive lists a picture twice in one folder")
    return np.array([by_key[key] for key in choose_keys(by_key, limit, seed=seed)], dtype=np.int64)


def _annotations_of(found: Survey, keys: set[str], wnids: Sequence[str]) -> Members:
    chosen = [
        members[[key in keys for key in found.keys(members)]]
        for members in (found.train_xml.get(wnid) for wnid in wnids)
        if members is not None
    ]
    return _union(chosen)


def _always(found: Survey) -> list[Members]:
    """What every part comes with."""
    lists = [member for name, member in found.lists.items() if name in (MAPPING, VAL_SOLUTION)]
    return [found.val_xml, np.array(lists, dtype=np.int64)]


def _union(parts: Sequence[Members]) -> Members:
    return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *parts])).astype(np.int64)
