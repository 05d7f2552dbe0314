"""Stage ``catalog``: list the classes and pictures of the source in ``classes.csv`` and ``manifest.csv``."""

from __future__ import annotations

from dataclasses import dataclass

from imgprep.layouts import ImageMember, open_dataset
from imgprep.receipts import Action, Receipt
from imgprep.records import SPLITS, UNLABELLED, Record
from imgprep.sources.adopted import read_source_record
from imgprep.stats import Stats
from imgprep.tables import catalog_table, manifest_table, write_table
from imgprep.workspace import Workspace

CLASSES = "classes.csv"
MANIFEST = "manifest.csv"


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
    """
    record = read_source_record(workspace)
    receipt = Receipt(stage="catalog", inputs={"source": record.listing_sha256}, options={"layout": record.layout})
    return receipt.decide(workspace.catalog, overwrite=True), receipt


def catalog(workspace: Workspace) -> CatalogResult:
    """Write ``catalog/classes.csv`` and ``catalog/manifest.csv`` for the adopted source.

    The manifest has one row a picture, in catalog order: train by class and key, then val, then test by key. Validation
    and test pictures have no class yet: it comes with the annotations.

    Raises:
        MissingInputError: No source was adopted, or it is gone.
        DamagedError: The source or one of its lists is damaged, or they contradict each other.
    """
    action, receipt = plan_catalog(workspace)
    if action == "skip":
        return CatalogResult(action=action, stats=Stats())
    source, layout = open_dataset(workspace)
    with source:
        listing = layout.scan(source)
    stats = Stats({"classes": len(listing.catalog), "ignored": len(listing.ignored)})

    def place(image: ImageMember) -> tuple[int, int, str]:
        label = listing.catalog.by_wnid(image.wnid).index if image.wnid else UNLABELLED
        return SPLITS.index(image.split), label, image.key

    records = []
    for image in sorted(listing.images, key=place):
        stats.count(image.split)
        records.append(
            Record(
                key=image.key,
                split=image.split,
                path=image.member.name,
                wnid=image.wnid,
                label=listing.catalog.by_wnid(image.wnid).index if image.wnid else UNLABELLED,
                num_bytes=image.member.num_bytes,
                crc32=image.member.crc32,
            )
        )
    folder = workspace.catalog
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / CLASSES, catalog_table(listing.catalog))
    write_table(folder / MANIFEST, manifest_table(records))
    receipt.write(folder, [CLASSES, MANIFEST], stats.to_dict())
    return CatalogResult(action=action, stats=stats)
