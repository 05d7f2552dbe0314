"""Stage ``annotations``: PASCAL VOC XML to ``val.csv`` (labels of the validation split) and ``boxes.csv``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imgprep.errors import (
    AnnotationError,
    ContradictionError,
    MemberError,
    SpecError,
    TooManyRejectsError,
)
from imgprep.layouts import AnnotationMember, LabelList, Listing, open_dataset
from imgprep.receipts import Action, Receipt, read_receipt
from imgprep.records import Annotation, Catalog, Rejected
from imgprep.sources import Source
from imgprep.sources.adopted import read_source_record
from imgprep.stats import SILENT, Progress, Stats
from imgprep.tables import BOXES_COLUMNS, VAL_COLUMNS, write_rejected, write_table
from imgprep.voc import parse_annotation, val_label
from imgprep.workspace import Workspace

VAL: Final = "val.csv"
BOXES: Final = "boxes.csv"
REJECTED: Final = "annotations.rejected.csv"

NO_OBJECT: Final = "no object"
"""Reason of XML without an object. Real training annotations have such files, so it is listed but never an error."""


@dataclass(frozen=True, kw_only=True)
class AnnotationsSpec:
    """Options of the stage.

    Attributes:
        max_rejects: How many XML files may be unusable, and validation pictures without a label, before it fails.
    """

    max_rejects: int = 0

    def __post_init__(self) -> None:
        if self.max_rejects < 0:
            raise SpecError(f"max_rejects must be 0 or more, got {self.max_rejects}")


@dataclass(frozen=True, kw_only=True)
class AnnotationsResult:
    """What ``annotations`` did. ``stats`` counts files, boxes, labels and rejects; empty when skipped."""

    action: Action
    stats: Stats


def plan_annotations(workspace: Workspace) -> tuple[Action, Receipt]:
    """Decide whether the annotations have to be read: skipped when that was done for this very source.

    Raises:
        MissingInputError: No source was adopted.
    """
    record = read_source_record(workspace)
    receipt = Receipt(stage="annotations", inputs={"source": record.listing_sha256}, options={"layout": record.layout})
    return receipt.decide(workspace.catalog, overwrite=True), receipt


def annotations(
    workspace: Workspace, spec: AnnotationsSpec | None = None, *, progress: Progress = SILENT
) -> AnnotationsResult:
    """Write ``catalog/val.csv`` and ``catalog/boxes.csv`` for the adopted source.

    The label of a validation picture is the class of the objects in its XML; where ``LOC_val_solution.csv`` is there,
    both must agree, and it serves alone where the XML is missing or unusable.

    Args:
        workspace: A workspace with an adopted source.
        spec: Options.
        progress: Told of each file.

    Raises:
        ContradictionError: XML and list name different classes for one picture.
        TooManyRejectsError: More files than allowed cannot be used; they are listed in the message's file.
        DamagedError: The source is damaged.
    """
    spec = spec or AnnotationsSpec()
    action, receipt = plan_annotations(workspace)
    # A run that was allowed more rejects does not answer a stricter request.
    if action == "skip" and _rejected_before(workspace) <= spec.max_rejects:
        return AnnotationsResult(action=action, stats=Stats())
    action = "run"
    source, layout = open_dataset(workspace)
    with source:
        listing = layout.scan(source)
        found, rejected, stats = _read_all(source, listing, progress)
    labels = _val_labels(listing, found)
    for image in listing.images:
        if image.split == "val" and image.key not in labels:
            rejected.append(
                Rejected(image.key, "val", image.member.name, "no label: neither XML nor list names its class")
            )
    stats.count("labels", len(labels))
    folder = workspace.catalog
    folder.mkdir(parents=True, exist_ok=True)
    # Written also when the stage fails right after: the message points to it.
    write_rejected(folder / REJECTED, rejected)
    counted = [entry for entry in rejected if entry.reason != NO_OBJECT]
    if len(counted) > spec.max_rejects:
        first = counted[0]
        raise TooManyRejectsError(
            f"unusable annotations: {len(counted)}, allowed: {spec.max_rejects}; first {first.path}: {first.reason}",
            f"all are listed in {folder / REJECTED}; to go on without them:"
            f" `imgprep annotations --max-rejects {len(counted)}`",
        )
    stats.count("rejected", len(counted))
    stats.count("without_object", len(rejected) - len(counted))
    _write_val(folder, listing.catalog, labels)
    _write_boxes(folder, found)
    receipt.write(folder, [VAL, BOXES, REJECTED], stats.to_dict())
    return AnnotationsResult(action=action, stats=stats)


def _rejected_before(workspace: Workspace) -> int:
    counts = read_receipt(workspace.catalog, "annotations")["counts"]
    rejected = counts.get("rejected", 0)
    return rejected if isinstance(rejected, int) else 0


def _read_all(
    source: Source, listing: Listing, progress: Progress
) -> tuple[list[tuple[AnnotationMember, Annotation]], list[Rejected], Stats]:
    found = []
    rejected = []
    stats = Stats({"files": len(listing.annotations)})
    progress.begin("annotations", len(listing.annotations), "files")
    try:
        for entry in listing.annotations:
            try:
                annotation = parse_annotation(source.read(entry.member.name), key=entry.key, catalog=listing.catalog)
            except (AnnotationError, MemberError) as error:
                rejected.append(Rejected(entry.key, entry.split, entry.member.name, error.what))
            else:
                found.append((entry, annotation))
                stats.count("boxes", len(annotation.boxes))
                if not annotation.boxes:
                    rejected.append(Rejected(entry.key, entry.split, entry.member.name, NO_OBJECT))
            progress.advance()
    finally:
        progress.finish()
    return found, rejected, stats


def _val_labels(listing: Listing, found: list[tuple[AnnotationMember, Annotation]]) -> dict[str, str]:
    """Key to wnid for the validation pictures of the listing, from XML and lists, which must agree."""
    listed, named = _listed_labels(listing)
    by_key = {entry.key: annotation for entry, annotation in found if entry.split == "val"}
    labels: dict[str, str] = {}
    contradictions = []
    # Also those whose pictures are not here, as in a part of the archive: the lists are about the whole of it.
    pictures = {image.key for image in listing.images if image.split == "val"}
    for key in sorted(pictures | by_key.keys()):
        classes = by_key[key].classes if key in by_key else ()
        choice = val_label(listed.get(key), classes)
        # Objects of several classes are fine as long as one of them is what the list says.
        if choice is not None and classes and choice not in classes:
            xml = " and ".join(listing.catalog.by_wnid(wnid).label for wnid in classes)
            contradictions.append(
                f"{key}: its XML says {xml}, {named[key]} says {listing.catalog.by_wnid(choice).label}"
            )
        elif choice is not None:
            labels[key] = choice
    if contradictions:
        more = f" (and {len(contradictions) - 1} more such pictures)" if len(contradictions) > 1 else ""
        raise ContradictionError(
            f"two labels for {contradictions[0]}{more}", "one of the two was edited or belongs to another archive"
        )
    return labels


def _listed_labels(listing: Listing) -> tuple[dict[str, str], dict[str, str]]:
    """What the lists say, and which of them says it; key to wnid, and key to the name of the list.

    Raises:
        ContradictionError: Two lists say different things, or one names a class that is not in the catalog.
    """
    labels: dict[str, str] = {}
    named: dict[str, str] = {}
    for found in listing.label_lists:
        strangers = sorted({wnid for wnid in found.labels.values() if not listing.catalog.has(wnid)})
        if strangers:
            raise ContradictionError(
                f"{found.name} names classes the mapping does not have: {', '.join(strangers[:5])}",
                "use the lists that belong to this archive",
            )
        others = [key for key, wnid in found.labels.items() if labels.get(key, wnid) != wnid]
        if others:
            raise _two_labels(listing.catalog, others, labels, named, found)
        labels |= found.labels
        named |= dict.fromkeys(found.labels, found.name)
    return labels, named


def _two_labels(
    catalog: Catalog, keys: list[str], labels: dict[str, str], named: dict[str, str], found: LabelList
) -> ContradictionError:
    key = min(keys)
    more = f" (and {len(keys) - 1} more such pictures)" if len(keys) > 1 else ""
    return ContradictionError(
        f"two labels for {key}: {named[key]} says {catalog.by_wnid(labels[key]).label},"
        f" {found.name} says {catalog.by_wnid(found.labels[key]).label}{more}",
        "one of the two was edited or belongs to another archive",
    )


def _write_val(folder: Path, catalog: Catalog, labels: dict[str, str]) -> None:
    import pandas as pd

    rows = [(key, wnid, catalog.by_wnid(wnid).index) for key, wnid in sorted(labels.items())]
    write_table(folder / VAL, pd.DataFrame(rows, columns=list(VAL_COLUMNS)))


def _write_boxes(folder: Path, found: list[tuple[AnnotationMember, Annotation]]) -> None:
    import pandas as pd

    rows = [
        (entry.key, entry.split, box.wnid, box.xmin, box.ymin, box.xmax, box.ymax, annotation.width, annotation.height)
        for entry, annotation in sorted(found, key=lambda pair: (pair[0].split != "train", pair[0].wnid, pair[0].key))
        for box in annotation.boxes
    ]
    write_table(folder / BOXES, pd.DataFrame(rows, columns=list(BOXES_COLUMNS)).astype(BOXES_COLUMNS))
