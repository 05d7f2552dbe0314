"""Stage ``catalog``: list the classes and pictures of the source in ``classes.csv`` and ``manifest.csv``.

The manifest is written a class at a time. Of an ILSVRC tree in a zip, the pictures are told from the arrays of its
directory: the memory it takes grows by some 60 bytes a member. Of any other source it grows by what the layout keeps of
each picture, some 500 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import attrgetter
from typing import Final

import numpy as np

from imgprep.errors import ImgprepError, MemberError
from imgprep.layouts import ImageMember, Layout, Listing, open_dataset
from imgprep.layouts.ilsvrc import MAPPING, VAL_SOLUTION, IlsvrcLayout, is_plain, parse_mapping, parse_solution
from imgprep.layouts.survey import Members, Survey, stem, survey
from imgprep.receipts import Action, Receipt
from imgprep.records import SPLITS, UNLABELLED, Catalog, Split, Synset
from imgprep.sources import Source
from imgprep.sources.adopted import check_adopted, read_source_record
from imgprep.sources.zip import ZipSource
from imgprep.sources.zip_directory import ZipDirectory
from imgprep.stats import Stats
from imgprep.tables import ManifestRow, catalog_table, write_manifest, write_table
from imgprep.workspace import Workspace

CLASSES = "classes.csv"
MANIFEST = "manifest.csv"

_BATCH: Final = 1 << 16
"""Names looked at together where no class sets the number."""


@dataclass(frozen=True, kw_only=True)
class CatalogResult:
    """What ``catalog`` did. ``stats`` counts classes and pictures by split; it is empty when nothing was done."""

    action: Action
    stats: Stats


def plan_catalog(workspace: Workspace) -> tuple[Action, Receipt]:
    """Decide whether the catalog has to be made: it is skipped when it was made from this very source.

    A catalog has no options, so one of another source is simply out of date and is replaced.

    Raises:
        MissingInputError: No source was adopted.
        SourceError: It changed since it was adopted.
    """
    record = read_source_record(workspace)
    receipt = Receipt(stage="catalog", inputs={"source": record.fingerprint}, options={"layout": record.layout})
    action = receipt.decide(workspace.catalog, overwrite=True)
    if action == "skip":
        check_adopted(workspace)
    return action, receipt


def catalog(workspace: Workspace) -> CatalogResult:
    """Write ``catalog/classes.csv`` and ``catalog/manifest.csv`` for the adopted source.

    The manifest has one row a picture, in catalog order: train by class and key, then val, then test by key. Pictures
    whose class the layout does not show have none yet: it comes with the annotations.

    Raises:
        MissingInputError: No source was adopted, or it is gone.
        DamagedError: The source or one of its lists is damaged, or they contradict each other.
    """
    action, receipt = plan_catalog(workspace)
    if action == "skip":
        return CatalogResult(action=action, stats=Stats())
    folder = workspace.catalog
    source, layout = open_dataset(workspace)
    with source:
        inventory = _take_from_directory(source, layout) or _take_from_listing(layout.scan(source))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            write_manifest(folder / MANIFEST, inventory.rows)
        except _TwinsError:
            # The layout finds them too and names them.
            inventory = _take_from_listing(layout.scan(source))
            write_manifest(folder / MANIFEST, inventory.rows)
    write_table(folder / CLASSES, catalog_table(inventory.catalog))
    receipt.write(folder, [CLASSES, MANIFEST], inventory.stats.to_dict())
    return CatalogResult(action=action, stats=inventory.stats)


@dataclass(frozen=True, kw_only=True)
class _Inventory:
    """What is in a source: its classes, its counts, and the rows of its manifest, made while they are written."""

    catalog: Catalog
    stats: Stats
    rows: Iterable[ManifestRow]


def _take_from_listing(listing: Listing) -> _Inventory:
    """Tell from what a layout lists, one object a picture."""
    groups: dict[tuple[int, int], list[ImageMember]] = {}
    for image in listing.images:
        label = listing.catalog.by_wnid(image.wnid).index if image.wnid else UNLABELLED
        groups.setdefault((SPLITS.index(image.split), label), []).append(image)
    stats = Stats({"classes": len(listing.catalog), "ignored": len(listing.ignored), "path_keys": listing.path_keys})
    for (split, _), images in groups.items():
        stats.count(SPLITS[split], len(images))
    return _Inventory(catalog=listing.catalog, stats=stats, rows=_listed_rows(groups))


def _listed_rows(groups: dict[tuple[int, int], list[ImageMember]]) -> Iterator[ManifestRow]:
    for split, label in sorted(groups):
        for image in sorted(groups[split, label], key=attrgetter("key")):
            member = image.member
            yield image.key, SPLITS[split], member.name, image.wnid, label, member.num_bytes, member.crc32


class _TwinsError(Exception):
    """Two pictures seem to have one key."""


def _take_from_directory(source: Source, layout: Layout) -> _Inventory | None:
    """Tell from the directory of a zip, in arrays; None where the layout has to look, or has something to object to."""
    if not (isinstance(source, ZipSource) and isinstance(layout, IlsvrcLayout)):
        return None
    directory = source.directory
    try:
        found = survey(directory, where=str(source.path))
    except ImgprepError:
        return None
    lists = {name: _first_list(directory, found.prefix, name) for name in (MAPPING, VAL_SOLUTION)}
    if lists[VAL_SOLUTION]:
        # Of no use here, but a damaged archive is told early.
        parse_solution(source.read(lists[VAL_SOLUTION]), where=lists[VAL_SOLUTION])
    if lists[MAPPING]:
        classes = parse_mapping(source.read(lists[MAPPING]), where=lists[MAPPING])
    else:
        classes = Catalog(Synset(wnid, place, wnid) for place, wnid in enumerate(sorted(found.train)))
    if not all(map(classes.has, found.train)):
        return None
    synsets = sorted(map(classes.by_wnid, found.train), key=attrgetter("index"))
    groups: list[tuple[Split, Synset | None, Members]] = [("train", each, found.train[each.wnid]) for each in synsets]
    groups += [("val", None, found.val), ("test", None, found.test)]
    stats = Stats({"classes": len(classes)})
    for split, _, members in groups:
        stats.count(split, len(members))
    stats.count("ignored", _count_ignored(found, sum(len(members) for *_, members in groups)))
    return _Inventory(catalog=classes, stats=stats, rows=_surveyed_rows(directory, groups))


def _first_list(directory: ZipDirectory, prefix: str, name: str) -> str:
    """The first member of that name beside the tree or above it; empty where there is none."""
    steps = prefix.split("/")[:-1]
    places = []
    for depth in range(len(steps) + 1):
        try:
            places.append(directory.find("/".join([*steps[:depth], name])))
        except MemberError:
            continue
    return directory.name(min(places)) if places else ""


def _count_ignored(found: Survey, num_images: int) -> int:
    """Members among the pictures that are none, and names anywhere that cannot be written to a table."""
    directory = found.directory
    tree = f"{found.prefix}Data/CLS-LOC/"
    is_inside = np.array([folder.startswith(tree) for folder in directory.folders()])[directory.folder]
    outside = np.flatnonzero(~is_inside)
    ignored = int(is_inside.sum()) - num_images
    for start in range(0, len(outside), _BATCH):
        names = directory.names(outside[start : start + _BATCH])
        # Looked at one by one only where there is something to find.
        ignored += 0 if is_plain("".join(names)) else sum(not is_plain(name) for name in names)
    return ignored


def _surveyed_rows(
    directory: ZipDirectory, groups: Sequence[tuple[Split, Synset | None, Members]]
) -> Iterator[ManifestRow]:
    """The rows of the manifest.

    Raises:
        _TwinsError: After the last of them, where two keys have one hash.
    """
    hashes = np.empty(sum(len(members) for *_, members in groups), np.int64)
    start = 0
    for split, synset, members in groups:
        paths = directory.names(members)
        keys = list(map(stem, paths))
        hashes[start : start + len(keys)] = np.fromiter(map(hash, keys), np.int64, len(keys))
        start += len(keys)
        order = sorted(range(len(keys)), key=keys.__getitem__)
        places = members[order]
        yield from zip(
            map(keys.__getitem__, order),
            repeat(split),
            map(paths.__getitem__, order),
            repeat(synset.wnid if synset else ""),
            repeat(synset.index if synset else UNLABELLED),
            directory.num_bytes[places].tolist(),
            directory.crc32[places].tolist(),
            strict=False,  # what is repeated has no end
        )
    hashes.sort()
    if (hashes[1:] == hashes[:-1]).any():
        raise _TwinsError
