"""Stage ``doctor``: look at every picture and write what is odd about it, and what it is a duplicate of."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np
import PIL

from imgprep.contact_sheet import ROW, Tile, draw_sheet, encode_sheet, thumbnail
from imgprep.decoder_process import Decoders
from imgprep.diagnosis import DIAGNOSIS_VERSION, MAX_PIXEL_LIMIT, Diagnosis
from imgprep.errors import DamagedError, MemberError, MissingInputError, SpecError
from imgprep.executors import Executor, SerialExecutor, Tick
from imgprep.files import sha256_file, write_bytes
from imgprep.findings import CODES, COLUMNS, DOCTOR_FILE, PAIR_CODES, codes_of, is_odd, other_column, read_doctor
from imgprep.images import MAX_PIXELS
from imgprep.layouts import open_dataset
from imgprep.receipts import Action, Receipt, read_receipt
from imgprep.records import SPLITS
from imgprep.sources import Source
from imgprep.sources.adopted import check_adopted, read_source_record
from imgprep.stats import SILENT, Progress, Stats
from imgprep.tables import BOXES_COLUMNS, read_labelled, read_pieces, write_table
from imgprep.twins import MAX_DISTANCE, NONE, Twins, find_copies, find_twins
from imgprep.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

DOCTOR_VERSION: Final = 2
"""Raised when the same diagnoses would give other rows."""

SHEET: Final = "doctor.png"

_BATCH: Final = 32
"""Pictures that one worker takes at a time: enough to keep order cheap, few enough to stop soon after Ctrl-C."""


@dataclass(frozen=True, kw_only=True)
class DoctorSpec:
    """Options of the stage.

    Attributes:
        max_pixels: Pictures whose header claims more are reported and not decoded.
        near_distance: Bits in which the hashes of two pictures that look alike may differ.
    """

    max_pixels: int = MAX_PIXELS
    near_distance: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= MAX_PIXEL_LIMIT:
            raise SpecError(f"max_pixels must be from 1 to {MAX_PIXEL_LIMIT:,}, got {self.max_pixels:,}")
        if not 0 <= self.near_distance <= MAX_DISTANCE:
            raise SpecError(f"near_distance must be from 0 to {MAX_DISTANCE}, got {self.near_distance}")

    def to_options(self) -> dict[str, Any]:
        """What decides the rows, as JSON values; another version of a decoder may decide otherwise."""
        versions = {"doctor_version": DOCTOR_VERSION, "diagnosis_version": DIAGNOSIS_VERSION}
        return asdict(self) | versions | {"pillow": PIL.__version__, "opencv": cv2.__version__}


@dataclass(frozen=True, kw_only=True)
class DoctorResult:
    """What was found, now or by the run before.

    Attributes:
        action: Whether the pictures were looked at now.
        table: The rows of ``doctor.csv``.
        stats: Pictures by finding, and ``pictures``, ``odd``, ``in_pairs`` and ``crowded``.
        with_boxes: Whether sizes and boxes of the XML were compared.
    """

    action: Action
    table: pd.DataFrame
    stats: Stats
    with_boxes: bool

    def examples(self) -> dict[str, str]:
        """For each code that was found, the path of its first picture."""
        found: dict[str, str] = {}
        odd = self.table[self.table["findings"] != ""]
        for path, findings in zip(odd["path"], odd["findings"], strict=True):
            for code in codes_of(findings):
                found.setdefault(code, path)
        return {code: found[code] for code in CODES if code in found}


def plan_doctor(workspace: Workspace, spec: DoctorSpec) -> tuple[Action, Receipt]:
    """Decide whether the pictures have to be looked at: not when that was done with these inputs and options.

    Like a catalog, the table is replaced when it is out of date.

    Raises:
        MissingInputError: No source was adopted, or there is no catalog.
    """
    record = read_source_record(workspace)
    folder = workspace.catalog
    inputs = {"source": record.fingerprint, "manifest": _digest(folder / "manifest.csv", "imgprep catalog")}
    if _has_boxes(workspace):
        inputs |= {name: _digest(folder / f"{name}.csv", "imgprep annotations") for name in ("boxes", "val")}
    receipt = Receipt(stage="doctor", inputs=inputs, options=spec.to_options())
    return receipt.decide(folder, overwrite=True), receipt


def _digest(path: Path, made_by: str) -> str:
    try:
        return sha256_file(path)
    except FileNotFoundError:
        raise MissingInputError(f"{path} does not exist", f"run `{made_by}` first") from None


def _has_boxes(workspace: Workspace) -> bool:
    """Whether the annotations were read, of this very source."""
    try:
        read = read_receipt(workspace.catalog, "annotations")["inputs"]
    except (MissingInputError, DamagedError):
        return False
    return bool(read.get("source") == read_source_record(workspace).fingerprint)


def doctor(
    workspace: Workspace,
    spec: DoctorSpec | None = None,
    *,
    executor: Executor | None = None,
    progress: Progress = SILENT,
) -> DoctorResult:
    """Write ``catalog/doctor.csv``, one row a picture, and ``catalog/doctor.png``, some pictures of each finding.

    Args:
        workspace: A workspace with a catalog. Sizes and boxes are compared where its annotations were read.
        spec: Options.
        executor: How many pictures are looked at at once; one when None. The rows do not depend on it.
        progress: Told of each picture.

    Raises:
        MissingInputError: No source was adopted, it is gone, or there is no catalog.
        DamagedError: The source as a whole or a table is damaged. A damaged picture is a finding, not an error.
    """
    spec = spec or DoctorSpec()
    action, receipt = plan_doctor(workspace, spec)
    folder = workspace.catalog
    with_boxes = _has_boxes(workspace)
    if action == "skip":
        check_adopted(workspace)
        table = read_doctor(folder / DOCTOR_FILE)
        crowded = int(read_receipt(folder, "doctor")["counts"].get("crowded", 0))
        return DoctorResult(action=action, table=table, stats=_count(table, crowded), with_boxes=with_boxes)
    source, _ = open_dataset(workspace)
    with source:
        rows = _read_rows(folder)
        seen = _examine(source, rows, spec, executor or SerialExecutor(), progress)
        boxes = _box_codes(folder / "boxes.csv", rows, seen) if with_boxes else {}
        table, crowded = _compose(rows, seen, boxes, spec)
        tiles = _choose_tiles(source, table)
    write_table(folder / DOCTOR_FILE, table)
    (folder / SHEET).unlink(missing_ok=True)
    if tiles:
        write_bytes(folder / SHEET, encode_sheet(draw_sheet(tiles)))
    stats = _count(table, crowded)
    receipt.write(folder, [DOCTOR_FILE, *([SHEET] if tiles else [])], stats.to_dict())
    return DoctorResult(action=action, table=table, stats=stats, with_boxes=with_boxes)


def _count(table: pd.DataFrame, crowded: int) -> Stats:
    stats = Stats({"pictures": len(table), "crowded": crowded})
    for findings, count in table["findings"].value_counts().items():
        codes = codes_of(str(findings))
        for code in codes:
            stats.count(code, count)
        stats.count("odd", count if is_odd(str(findings)) else 0)
        stats.count("in_pairs", count if PAIR_CODES.keys() & set(codes) else 0)
    return stats


def _read_rows(folder: Path) -> pd.DataFrame:
    import pandas as pd

    pieces = read_labelled(folder, made_by="imgprep catalog")
    rows = pd.concat([piece[["key", "split", "path", "wnid"]] for piece in pieces], ignore_index=True)
    unknown = set(rows["split"]) - set(SPLITS)
    if unknown:
        raise DamagedError(
            f"{folder / 'manifest.csv'}: {min(unknown)[:100]!r} is no split", "run `imgprep catalog` again"
        )
    return rows


@dataclass(frozen=True, slots=True)
class _Seen:
    """One picture: its diagnosis, and 128 bits of the SHA-256 of its bytes; None without any."""

    diagnosis: Diagnosis
    digest: bytes | None


def _examine(
    source: Source, rows: pd.DataFrame, spec: DoctorSpec, executor: Executor, progress: Progress
) -> list[_Seen]:
    paths: list[str] = rows["path"].tolist()
    seen: list[_Seen] = []
    progress.begin("doctor", len(paths), "pictures")
    try:
        with Decoders(max_pixels=spec.max_pixels) as decoders:

            def examine(places: range, tick: Tick) -> list[_Seen]:
                return [_examine_one(source, paths[place], decoders.diagnose, tick) for place in places]

            plans = [range(start, min(start + _BATCH, len(paths))) for start in range(0, len(paths), _BATCH)]
            results = executor.map(examine, plans, tick=progress.advance)
            # Closed before the decoders and the source are: no thread may still use them then.
            with contextlib.closing(results):
                for batch in results:
                    seen += batch
    finally:
        progress.finish()
    return seen


def _examine_one(source: Source, path: str, diagnose: Callable[[bytes, str], Diagnosis], tick: Tick) -> _Seen:
    try:
        content = source.read(path)
    except MemberError:
        seen = _Seen(Diagnosis(codes=("unreadable",)), None)
    else:
        digest = hashlib.sha256(content).digest()[:16] if content else None
        seen = _Seen(diagnose(content, path), digest)
    tick()
    return seen


def _box_codes(path: Path, rows: pd.DataFrame, seen: Sequence[_Seen]) -> dict[int, set[str]]:
    """Codes of the pictures whose XML does not fit them, by place."""
    places = {key: place for place, key in enumerate(rows["key"])}
    found: dict[int, set[str]] = {}
    for piece in read_pieces(path, BOXES_COLUMNS, made_by="imgprep annotations"):
        sizes = [piece[name].astype("float64").fillna(0).astype("int64").tolist() for name in ("width", "height")]
        corners = [piece[name].tolist() for name in ("xmin", "ymin", "xmax", "ymax")]
        for key, box, told in zip(piece["ImageId"], zip(*corners, strict=True), zip(*sizes, strict=True), strict=True):
            # The annotations may know pictures that are not here, as in a part of the archive.
            place = places.get(key)
            codes = compare_box(seen[place].diagnosis, box, told) if place is not None else set()
            if place is not None and codes:
                found.setdefault(place, set()).update(codes)
    return found


def compare_box(diagnosis: Diagnosis, box: tuple[int, int, int, int], told: tuple[int, int]) -> set[str]:
    """Compare one box of the XML, and the size it gives, with the picture.

    The size may be that of the picture as it is stored or after its EXIF orientation is applied. A box is compared with
    the size in the XML, as both are about the same pixels; with that of the picture where the XML has none.

    Args:
        diagnosis: Of the picture.
        box: ``xmin``, ``ymin``, ``xmax``, ``ymax``.
        told: Width and height in the XML, zeros where it has none.
    """
    stored, upright = (diagnosis.width, diagnosis.height), diagnosis.upright_size
    codes = set()
    if min(told) > 0 and upright is not None and told not in (stored, upright):
        codes.add("size-differs")
    within = told if min(told) > 0 else upright
    if within is not None:
        xmin, ymin, xmax, ymax = box
        if not (0 <= xmin < xmax <= within[0] and 0 <= ymin < ymax <= within[1]):
            codes.add("box-outside")
    return codes


def _compose(
    rows: pd.DataFrame, seen: Sequence[_Seen], boxes: dict[int, set[str]], spec: DoctorSpec
) -> tuple[pd.DataFrame, int]:
    """The table, and the number of crowded hashes."""
    import pandas as pd

    splits = pd.Categorical(rows["split"], categories=SPLITS).codes
    classes, _ = pd.factorize(rows["wnid"].where(rows["wnid"] != ""))
    digests = [one.digest or b"" for one in seen]
    copies = _among(
        np.array([bool(digest) for digest in digests], bool),
        np.frombuffer(b"".join(digests), np.dtype(">u8")).reshape(-1, 2).astype(np.uint64),
        lambda values, some: find_copies(values, splits[some], classes[some]),
    )
    hashes = [one.diagnosis.phash for one in seen]
    alike = _among(
        np.array([value is not None for value in hashes], bool),
        np.array([value for value in hashes if value is not None], np.uint64),
        lambda values, some: find_twins(values, splits[some], classes[some], distance=spec.near_distance),
    )
    pairs = {
        "leak": np.where(copies.leak != NONE, copies.leak, alike.leak),
        "label-conflict": np.where(copies.conflict != NONE, copies.conflict, alike.conflict),
        "duplicate": copies.earlier,
        "near-duplicate": np.where(copies.earlier != NONE, NONE, alike.earlier),
    }
    # A leak is the graver finding: where a picture has two twins, the one of the other split is named.
    twin = np.where(
        pairs["leak"] != NONE, pairs["leak"], np.where(copies.earlier != NONE, copies.earlier, alike.earlier)
    )
    keys = rows["key"].to_numpy()
    columns: dict[str, Any] = {name: rows[name] for name in ("key", "split", "path", "wnid")}
    for name in ("format", "mode", "width", "height", "orientation", "bits"):
        columns[name] = [getattr(one.diagnosis, name) for one in seen]
    for name in ("progressive", "complete", "pillow", "opencv"):
        columns[name] = [_ANSWERS[getattr(one.diagnosis, name)] for one in seen]
    columns["phash"] = ["" if value is None else f"{value:016x}" for value in hashes]
    columns["findings"] = [
        " ".join(
            code
            for code in CODES
            if code in one.diagnosis.codes
            or code in boxes.get(place, ())
            or (code in pairs and pairs[code][place] != NONE)
        )
        for place, one in enumerate(seen)
    ]
    for name, others in (("twin", twin), ("conflict", pairs["label-conflict"])):
        columns[name] = ["" if place == NONE else keys[place] for place in others]
    return pd.DataFrame(columns, columns=list(COLUMNS)).astype(COLUMNS), alike.crowded


_ANSWERS: Final = {True: "yes", False: "no", None: ""}


def _among(
    some: NDArray[np.bool_],
    values: NDArray[np.uint64],
    find: Callable[[NDArray[np.uint64], NDArray[np.bool_]], Twins],
) -> Twins:
    """Search among some of the pictures; places are those among all."""
    found = find(values, some)
    places = np.append(np.flatnonzero(some), NONE)  # the place -1 stays -1
    earlier, leak, conflict = (np.full(len(some), NONE) for _ in range(3))
    earlier[some], leak[some], conflict[some] = places[found.earlier], places[found.leak], places[found.conflict]
    return Twins(earlier=earlier, leak=leak, conflict=conflict, crowded=found.crowded)


def _choose_tiles(source: Source, table: pd.DataFrame) -> list[list[Tile]]:
    """Rows of the contact sheet: a row a code, pictures from all over the table, each followed by its twin if any."""
    places = np.flatnonzero(table["findings"] != "")
    codes = [codes_of(findings) for findings in table["findings"].iloc[places]]
    by_key = {key: place for place, key in enumerate(table["key"])} if len(places) else {}
    sheet = []
    for code in CODES:
        having = [int(place) for place, found in zip(places, codes, strict=True) if code in found]
        others = {}
        if code in PAIR_CODES:
            keys = table[other_column(code)]
            others = {place: by_key[keys.iloc[place]] for place in having}
            # Two that contradict each other are one pair: it is shown once.
            having = [place for place in having if others.get(others[place]) != place or place < others[place]]
        wanted = ROW // 2 if code in PAIR_CODES else ROW
        spread = sorted({having[len(having) * number // wanted] for number in range(wanted)}) if having else []
        row = []
        for place in spread:
            row.append(_tile(source, table.iloc[place], code))
            if place in others:
                row.append(_tile(source, table.iloc[others[place]], f"twin of {table['key'].iloc[place]}"))
        sheet += [row] if row else []
    return sheet


def _tile(source: Source, row: pd.Series[Any], title: str) -> Tile:
    size = f"{row['format']} {row['width']} x {row['height']}" if row["format"] else "unknown format"
    # Only what a process of its own has decoded before is decoded here.
    picture = thumbnail(source.read(row["path"])) if row["pillow"] == "yes" else None
    return Tile(picture, (title, row["key"], f"{row['split']} {row['wnid']}", size))
