"""Stage ``annotations``: PASCAL VOC XML to ``val.csv`` (labels of the validation split) and ``boxes.csv``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from imgprep.records import SPLITS, Annotation, Catalog, Rejected, Split
from imgprep.sources import Source
from imgprep.sources.adopted import check_adopted, read_source_record
from imgprep.stats import SILENT, Progress, Stats
from imgprep.tables import BOXES_COLUMNS, VAL_COLUMNS, write_rejected, write_table
from imgprep.voc import MAX_XML_BYTES, Oddity, read_annotation, straighten, val_label
from imgprep.workspace import Workspace

VAL: Final = "val.csv"
BOXES: Final = "boxes.csv"
REJECTED: Final = "annotations.rejected.csv"
ODD: Final = "annotations.odd.csv"
"""What a rule settled: the columns of the rejected, but everything on it is used."""

NO_OBJECT: Final = "no object"
"""What is odd about XML without an object. Real training annotations have such files, so it is never an error."""

_RULES: Final = 2
"""Version of the rules, in the receipt: tables made by other rules are made again."""


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
    """What ``annotations`` did. ``stats`` counts files, boxes, labels, rejects, and what each rule settled (see
    :mod:`imgprep.voc`); empty when skipped.
    """

    action: Action
    stats: Stats


def plan_annotations(workspace: Workspace) -> tuple[Action, Receipt]:
    """Decide whether the annotations have to be read: skipped when that was done for this very source.

    Raises:
        MissingInputError: No source was adopted.
    """
    record = read_source_record(workspace)
    receipt = Receipt(
        stage="annotations",
        inputs={"source": record.fingerprint},
        options={"layout": record.layout, "rules": _RULES},
    )
    return receipt.decide(workspace.catalog, overwrite=True), receipt


def annotations(
    workspace: Workspace, spec: AnnotationsSpec | None = None, *, progress: Progress = SILENT
) -> AnnotationsResult:
    """Write ``catalog/val.csv`` and ``catalog/boxes.csv`` for the adopted source.

    The label of a validation picture is the class of the objects in its XML. Where lists of labels are there, all of
    them must agree, and they serve alone where the XML is missing, unusable or of several classes.

    Args:
        workspace: A workspace with an adopted source.
        spec: Options.
        progress: Told of each file.

    Raises:
        ContradictionError: Two of XML and lists name different classes for one picture.
        TooManyRejectsError: More files than allowed cannot be used; they are listed in the message's file.
        DamagedError: The source is damaged.
    """
    spec = spec or AnnotationsSpec()
    action, receipt = plan_annotations(workspace)
    # A run that was allowed more rejects does not answer a stricter request.
    if action == "skip" and _rejected_before(workspace) <= spec.max_rejects:
        check_adopted(workspace)
        return AnnotationsResult(action=action, stats=Stats())
    action = "run"
    source, layout = open_dataset(workspace)
    with source:
        listing = layout.scan(source)
        reading = _read_all(source, listing, progress)
    labels = _val_labels(listing, reading.found)
    rejected = [*reading.rejected, *_unlabelled(listing, reading.found, labels)]
    reading.stats.count("labels", len(labels))
    reading.stats.count("rejected", len(rejected))
    folder = workspace.catalog
    folder.mkdir(parents=True, exist_ok=True)
    # Written also when the stage fails right after: the message points to it.
    write_rejected(folder / REJECTED, rejected)
    if len(rejected) > spec.max_rejects:
        first = rejected[0]
        raise TooManyRejectsError(
            f"unusable annotations: {len(rejected)}, allowed: {spec.max_rejects}; first {first.path}: {first.reason}",
            f"all are listed in {folder / REJECTED}; to go on without them:"
            f" `imgprep annotations --max-rejects {len(rejected)}`",
        )
    write_rejected(folder / ODD, reading.odd)
    _write_val(folder, listing.catalog, labels)
    _write_boxes(folder, reading.found)
    receipt.write(folder, [VAL, BOXES, REJECTED, ODD], reading.stats.to_dict())
    return AnnotationsResult(action=action, stats=reading.stats)


def _rejected_before(workspace: Workspace) -> int:
    counts = read_receipt(workspace.catalog, "annotations")["counts"]
    rejected = counts.get("rejected", 0)
    return rejected if isinstance(rejected, int) else 0


@dataclass(frozen=True, slots=True)
class _Found:
    """One annotation: its split, the class of its folder if any, what it came from, and its member's name if any."""

    annotation: Annotation
    split: Split
    wnid: str
    origin: str
    path: str = ""

    @property
    def size(self) -> tuple[int | None, int | None]:
        """Width and height."""
        return self.annotation.width, self.annotation.height

    @property
    def place(self) -> tuple[int, str, str]:
        """Where it stands in boxes.csv."""
        return SPLITS.index(self.split), self.wnid, self.annotation.key


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """Annotations that were found, files that were left out, and oddities of those that were not."""

    found: list[_Found] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    odd: list[Rejected] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)

    def add(self, found: _Found, oddities: Sequence[Oddity]) -> None:
        """Add an annotation."""
        annotation = found.annotation
        self.found.append(found)
        self.stats.count("boxes", len(annotation.boxes))
        if not annotation.boxes:
            oddities = (*oddities, Oddity("without_object", NO_OBJECT))
        elif found.wnid and found.wnid not in annotation.classes:
            what = f"its objects are {' and '.join(annotation.classes)}, its folder is {found.wnid}"
            oddities = (*oddities, Oddity("other_class", what))
        for rule, what in oddities:
            self.note(rule, Rejected(annotation.key, found.split, found.path, what))

    def note(self, rule: str, row: Rejected) -> None:
        """Count and list an oddity."""
        self.stats.count(rule)
        self.odd.append(row)


def _read_all(source: Source, listing: Listing, progress: Progress) -> _Reading:
    reading = _Reading(stats=Stats({"files": len(listing.annotations)}))
    progress.begin("annotations", len(listing.annotations), "files")
    # One after another: a file takes so little time that threads only wait for the interpreter.
    try:
        for entry in listing.annotations:
            _read_one(source, entry, listing.catalog, reading)
            progress.advance()
    finally:
        progress.finish()
    for split, listed in listing.boxes:
        annotation, odd = straighten(listed)
        wnid = annotation.classes[0] if split == "train" and annotation.boxes else ""
        reading.add(_Found(annotation, split, wnid, "list of boxes"), odd)
    for labels in listing.label_lists:
        for key in labels.repeated:
            reading.note("labels_repeated", Rejected(key, "val", labels.name, "stands on the list more than once"))
    return reading


def _read_one(source: Source, entry: AnnotationMember, catalog: Catalog, reading: _Reading) -> None:
    member = entry.member
    try:
        # Before it is read: a hostile archive may say any size.
        if member.num_bytes > MAX_XML_BYTES:
            raise AnnotationError(f"{member.num_bytes:,} bytes, more than the limit of {MAX_XML_BYTES:,}")
        annotation, odd = read_annotation(source.read(member.name), key=entry.key, catalog=catalog)
    except (AnnotationError, MemberError) as error:
        reading.rejected.append(Rejected(entry.key, entry.split, member.name, error.what))
    else:
        reading.add(_Found(annotation, entry.split, entry.wnid, "XML", member.name), odd)


def _val_labels(listing: Listing, found: Sequence[_Found]) -> dict[str, str]:
    """Key to wnid for the validation pictures of the listing, from annotations and lists, which must agree."""
    listed, named = _listed_labels(listing)
    by_key = {each.annotation.key: each for each in found if each.split == "val" and each.annotation.boxes}
    labels: dict[str, str] = {}
    contradictions = []
    # Also those whose pictures are not here, as in a part of the archive: the lists are about the whole of it.
    pictures = {image.key for image in listing.images if image.split == "val"}
    for key in sorted(pictures | by_key.keys()):
        classes = by_key[key].annotation.classes if key in by_key else ()
        choice = val_label(listed.get(key), classes)
        # Objects of several classes are fine as long as one of them is what the list says.
        if choice is not None and classes and choice not in classes:
            contradictions.append(
                f"{key}: its {by_key[key].origin} says {_named(listing.catalog, classes)},"
                f" {named[key]} says {listing.catalog.by_wnid(choice).label}"
            )
        elif choice is not None:
            labels[key] = choice
    if contradictions:
        more = f" (and {len(contradictions) - 1} more such pictures)" if len(contradictions) > 1 else ""
        raise ContradictionError(
            f"two labels for {contradictions[0]}{more}", "one of the two was edited or belongs to another archive"
        )
    return labels


def _unlabelled(listing: Listing, found: Sequence[_Found], labels: Mapping[str, str]) -> Iterator[Rejected]:
    """The validation pictures of the listing that have no label, and why."""
    by_key = {each.annotation.key: each.annotation.classes for each in found if each.split == "val"}
    for image in listing.images:
        if image.split == "val" and image.key not in labels:
            classes = by_key.get(image.key, ())
            reason = "no label: neither XML nor list names its class"
            if classes:
                reason = f"no label: its objects are {_named(listing.catalog, classes)}, and no list says which it is"
            yield Rejected(image.key, "val", image.member.name, reason)


def _named(catalog: Catalog, wnids: Sequence[str]) -> str:
    return " and ".join(catalog.by_wnid(wnid).label for wnid in wnids)


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


def _write_boxes(folder: Path, found: Sequence[_Found]) -> None:
    import pandas as pd

    rows = [
        (each.annotation.key, each.split, box.wnid, box.xmin, box.ymin, box.xmax, box.ymax, *each.size)
        for each in sorted(found, key=lambda each: each.place)
        for box in each.annotation.boxes
    ]
    write_table(folder / BOXES, pd.DataFrame(rows, columns=list(BOXES_COLUMNS)).astype(BOXES_COLUMNS))
