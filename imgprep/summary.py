"""What a catalog or subset holds, in numbers: pictures of each class, their sizes in bytes and pixels, their boxes."""

from __future__ import annotations

import heapq
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from imgprep.errors import DamagedError, MissingInputError, SpecError
from imgprep.files import sha256_file
from imgprep.findings import COLUMNS as DOCTOR_COLUMNS
from imgprep.findings import DOCTOR_FILE, codes_of
from imgprep.layouts import open_dataset
from imgprep.receipts import was_made_of
from imgprep.records import SPLITS, Catalog, Synset
from imgprep.selection import rank
from imgprep.sources.adopted import read_source_record
from imgprep.stats import SILENT, Progress
from imgprep.tables import BOXES_COLUMNS, read_catalog, read_labelled, read_pieces
from imgprep.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Numbers: TypeAlias = NDArray[np.float64]
    Hashes: TypeAlias = NDArray[np.uint64]

Basis = Literal["doctor", "boxes", "sample"]
"""Where sizes in pixels come from: ``doctor.csv``, the XML files, or the headers of some pictures."""

BOXES_FILE: Final = "boxes.csv"

SAMPLE: Final = 2000
"""Headers that are read where no table knows the sizes: a share of a half is then known to within 2.2 percent points
(1.96 standard errors)."""

_QUANTILES: Final = {"min": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True, kw_only=True)
class SummarySpec:
    """What to sum up.

    Attributes:
        subset: Name of a subset; None for the whole catalog.
        sizes: Where to take sizes in pixels from; None takes the first of :data:`Basis` that is there.
        sample: How many headers to read for ``sample``.
        seed: Another seed, another sample.
    """

    subset: str | None = None
    sizes: Basis | None = None
    sample: int = SAMPLE
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise SpecError(f"sample must be 1 or more, got {self.sample}")

    @property
    def what(self) -> str:
        """What is summed up, in words."""
        return "catalog" if self.subset is None else f"subset {self.subset}"


def describe(numbers: Numbers) -> dict[str, float]:
    """Count, mean and quantiles of some numbers; the quantiles are those of :func:`numpy.quantile`.

    Returns:
        ``n``, ``min``, ``p5``, ``p25``, ``median``, ``p75``, ``p95``, ``max`` and ``mean``; of no numbers, just ``n``.
    """
    if not len(numbers):
        return {"n": 0}
    quantiles = np.quantile(numbers, list(_QUANTILES.values())).tolist()
    return {"n": len(numbers), **dict(zip(_QUANTILES, quantiles, strict=True)), "mean": float(numbers.mean())}


@dataclass(frozen=True, kw_only=True)
class ClassSummary:
    """One class: how many pictures it has in each split, and their bytes."""

    synset: Synset
    pictures: Mapping[str, int]
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """One split: pictures, how many of them have a class, of how many classes, and their bytes."""

    pictures: int = 0
    labelled: int = 0
    classes: int = 0
    num_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Widths and heights of pictures, in pixels.

    Attributes:
        basis: Where they come from.
        width: One a picture.
        height: One a picture.
        unknown: Pictures that were looked at and have no size: odd ones.
    """

    basis: Basis
    width: Numbers
    height: Numbers
    unknown: int = 0

    @property
    def aspect(self) -> Numbers:
        """Width over height."""
        ratio: Numbers = self.width / self.height
        return ratio


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Bounding boxes.

    Attributes:
        per_picture: How many there are of each picture that has some.
        share: Area of each box over that of its picture, 0 to 1: ``|xmax - xmin| * |ymax - ymin| / (width * height)``,
            both from the XML, so it holds for a picture that was resized later, too.
    """

    per_picture: Numbers
    share: Numbers


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a catalog or subset holds.

    Attributes:
        what: ``catalog`` or ``subset NAME``.
        classes: All classes, in label order, also those without a picture.
        splits: By name; only those that have a picture.
        num_bytes: Size of each file.
        sizes: In pixels.
        boxes: None where there are no annotations.
        findings: How many pictures have each code of ``doctor.csv``; None where there is none.
    """

    what: str
    classes: tuple[ClassSummary, ...]
    splits: Mapping[str, SplitSummary]
    num_bytes: Numbers
    sizes: Sizes
    boxes: Boxes | None = None
    findings: Mapping[str, int] | None = None

    def counts(self, split: str) -> Numbers:
        """Pictures of each class in a split; classes without any are left out."""
        counts = np.array([each.pictures.get(split, 0) for each in self.classes], np.float64)
        return counts[counts > 0]

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        sizes, boxes = self.sizes, self.boxes
        return {
            "what": self.what,
            "splits": {
                name: asdict(split) | {"per_class": describe(self.counts(name))} for name, split in self.splits.items()
            },
            "num_bytes": describe(self.num_bytes),
            "sizes": {
                "from": sizes.basis,
                "pictures": len(sizes.width),
                "unknown": sizes.unknown,
                "width": describe(sizes.width),
                "height": describe(sizes.height),
                "aspect": describe(sizes.aspect),
            },
            "boxes": boxes and {"per_picture": describe(boxes.per_picture), "share": describe(boxes.share)},
            "findings": self.findings,
            "classes": [
                {
                    "label": each.synset.index,
                    "wnid": each.synset.wnid,
                    "name": each.synset.name,
                    **{split: each.pictures.get(split, 0) for split in self.splits},
                    "num_bytes": each.num_bytes,
                }
                for each in self.classes
            ],
        }


def summarise(workspace: Workspace, spec: SummarySpec, *, progress: Progress = SILENT) -> Summary:
    """Sum up the catalog, or a subset, of a workspace. Tables are read in pieces; some 50 bytes a picture are kept.

    Args:
        workspace: A workspace with a catalog.
        spec: What to sum up.
        progress: Told of the headers that are read.

    Raises:
        MissingInputError: There is no such table.
        DamagedError: A table is damaged.
    """
    folder = workspace.catalog if spec.subset is None else workspace.subset(spec.subset)
    made_by = "imgprep catalog" if spec.subset is None else f"imgprep subset --name {spec.subset}"
    tally = _Tally(read_catalog(folder / "classes.csv", made_by=made_by))
    for piece in read_labelled(folder, made_by=made_by):
        tally.add(piece)
    pictures = np.sort(np.concatenate(tally.hashes))
    # A table of another source or catalog says nothing of these pictures.
    now = {
        "source": read_source_record(workspace).fingerprint,
        "manifest": sha256_file(workspace.catalog / "manifest.csv"),
    }
    looked = was_made_of(workspace.catalog, "doctor", now)
    sized, findings = _from_doctor(workspace.catalog / DOCTOR_FILE, pictures) if looked else (None, None)
    boxed, boxes = _from_boxes(workspace.catalog / BOXES_FILE, pictures)
    known = {sizes.basis: sizes for sizes in (sized, boxed) if sizes and len(sizes.width)}
    basis = spec.sizes or next(iter(known), "sample")
    if basis not in known and basis != "sample":
        name, command = (DOCTOR_FILE, "doctor") if basis == "doctor" else (BOXES_FILE, "annotations")
        raise MissingInputError(f"{name} has no size of a picture of the {spec.what}", f"run `imgprep {command}` first")
    sizes = known[basis] if basis in known else _from_sample(workspace, folder, made_by, spec, progress)
    return Summary(
        what=spec.what,
        classes=tally.classes(),
        splits=tally.splits(),
        num_bytes=np.concatenate(tally.num_bytes).astype(np.float64),
        sizes=sizes,
        boxes=boxes,
        findings=findings,
    )


class _Tally:
    """Counts the rows of a manifest, piece by piece.

    Args:
        catalog: Its classes.

    Attributes:
        hashes: Of the keys, an array a piece.
        num_bytes: Sizes of the files, an array a piece.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._pictures: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[tuple[str, str]] = Counter()
        self.hashes: list[Hashes] = []
        self.num_bytes: list[NDArray[np.int64]] = []

    def add(self, piece: pd.DataFrame) -> None:
        """Count some rows."""
        self.hashes.append(_hashed(piece["key"]))
        self.num_bytes.append(piece["num_bytes"].to_numpy())
        for pair, sizes in piece.groupby(["split", "wnid"], sort=False)["num_bytes"]:
            split, wnid = map(str, pair)
            if split not in SPLITS or (wnid and not self._catalog.has(wnid)):
                what = f"the split {split!r}" if split not in SPLITS else f"the class {wnid!r}"
                raise DamagedError(f"a manifest has {what[:100]}, which its classes.csv does not", "make both again")
            self._pictures[split, wnid] += len(sizes)
            self._bytes[split, wnid] += int(sizes.sum())

    def classes(self) -> tuple[ClassSummary, ...]:
        """What was counted, by class."""
        return tuple(
            ClassSummary(
                synset=synset,
                pictures={s: n for s in SPLITS if (n := self._pictures[s, synset.wnid])},
                num_bytes=sum(self._bytes[split, synset.wnid] for split in SPLITS),
            )
            for synset in self._catalog
        )

    def splits(self) -> dict[str, SplitSummary]:
        """What was counted, by split."""
        found: dict[str, SplitSummary] = {}
        for split in SPLITS:
            wnids = {wnid: n for (of, wnid), n in self._pictures.items() if of == split and n}
            if wnids:
                found[split] = SplitSummary(
                    pictures=sum(wnids.values()),
                    labelled=sum(n for wnid, n in wnids.items() if wnid),
                    classes=sum(bool(wnid) for wnid in wnids),
                    num_bytes=sum(n for (of, _), n in self._bytes.items() if of == split),
                )
        return found


def _hashed(keys: pd.Series[str]) -> Hashes:
    """A number for each key: eight bytes in place of some seventy. Two keys in 2**32 share one, which counts do not
    notice.
    """
    from pandas.util import hash_array

    return hash_array(keys.to_numpy(dtype=object), categorize=False)


def _are_in(keys: pd.Series[str], pictures: Hashes) -> NDArray[np.bool_]:
    hashes = _hashed(keys)
    places = np.minimum(np.searchsorted(pictures, hashes), max(len(pictures) - 1, 0))
    return pictures[places] == hashes if len(pictures) else np.zeros(len(hashes), np.bool_)


def _numbers(column: pd.Series[Any]) -> Numbers:
    """A column as floats; what is missing is not a number."""
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _from_doctor(path: Path, pictures: Hashes) -> tuple[Sizes, dict[str, int]]:
    """Sizes and findings of the pictures in ``doctor.csv``."""
    widths, heights, findings = [], [], Counter[str]()
    for piece in read_pieces(path, DOCTOR_COLUMNS, made_by="imgprep doctor"):
        kept = piece[_are_in(piece["key"], pictures)]
        widths.append(_numbers(kept["width"]))
        heights.append(_numbers(kept["height"]))
        for cell, n in kept["findings"].value_counts().items():
            findings.update(dict.fromkeys(codes_of(str(cell)), int(n)))
    return _sizes("doctor", np.concatenate(widths), np.concatenate(heights)), dict(sorted(findings.items()))


def _sizes(basis: Basis, width: Numbers, height: Numbers) -> Sizes:
    known = (width > 0) & (height > 0)
    return Sizes(basis=basis, width=width[known], height=height[known], unknown=int((~known).sum()))


def _from_boxes(path: Path, pictures: Hashes) -> tuple[Sizes | None, Boxes | None]:
    """Sizes and boxes of the pictures in ``boxes.csv``, which has a row a box."""
    if not path.is_file():
        return None, None
    hashes, columns = [], []
    for piece in read_pieces(path, BOXES_COLUMNS, made_by="imgprep annotations"):
        kept = piece[_are_in(piece["ImageId"], pictures)]
        hashes.append(_hashed(kept["ImageId"]))
        width, height = _numbers(kept["width"]), _numbers(kept["height"])
        sides = [_numbers(kept[f"{axis}max"]) - _numbers(kept[f"{axis}min"]) for axis in "xy"]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.abs(sides[0] * sides[1]) / (width * height)
        columns.append(np.stack([width, height, share]))
    width, height, share = np.concatenate(columns, axis=1)
    _, first, counts = np.unique(np.concatenate(hashes), return_index=True, return_counts=True)
    if not len(first):
        return None, None
    boxes = Boxes(per_picture=counts.astype(np.float64), share=np.minimum(share[np.isfinite(share)], 1.0))
    return _sizes("boxes", width[first], height[first]), boxes


def _from_sample(workspace: Workspace, folder: Path, made_by: str, spec: SummarySpec, progress: Progress) -> Sizes:
    """Sizes in the headers of those pictures whose keys have the lowest ranks."""
    rows = (
        (rank(spec.seed, "image", key), path)
        for piece in read_labelled(folder, made_by=made_by)
        for key, path in zip(piece["key"], piece["path"], strict=True)
    )
    chosen = [path for _, path in heapq.nsmallest(spec.sample, rows)]
    width, height = np.zeros((2, len(chosen)))
    for place, size in enumerate(_read_sizes(workspace, chosen, progress)):
        width[place], height[place] = size
    return _sizes("sample", width, height)


def _read_sizes(workspace: Workspace, paths: Iterable[str], progress: Progress) -> Iterator[tuple[int, int]]:
    """Width and height of each picture; zero by zero where it has none that can be read."""
    paths = list(paths)
    source, _ = open_dataset(workspace)
    progress.begin("headers", len(paths), "pictures")
    try:
        with source:
            for path in paths:
                try:
                    yield size_in_header(source.read(path)) or (0, 0)
                except DamagedError:
                    yield 0, 0
                progress.advance()
    finally:
        progress.finish()


def size_in_header(content: bytes) -> tuple[int, int] | None:
    """Width and height that a picture's header claims, in pixels as they are stored; None where there is none."""
    from PIL import Image

    from imgprep.images import quiet

    try:
        with quiet, Image.open(io.BytesIO(content)) as image:
            return image.size
    except Exception:  # noqa: BLE001  # a hostile header can raise anything in a decoder plug-in
        return None
