"""The contract between preparation and training: ``index.json`` and ``SPLIT.samples.npy``.

A folder of shards holds plain WebDataset tars, one ``index.json`` that says what must be in them, and for each split a
sample table that says where each picture lies. With the table a plain tar is random-access.

Nothing here imports more than the standard library at import time; numpy is loaded when a sample table is opened.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, Final

from imgprep.errors import DamagedError, MissingInputError, SpecError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INDEX_FORMAT: Final = "imgprep-index"
INDEX_VERSION: Final = 2
INDEX_FILENAME: Final = "index.json"

DEFAULT_WORKSPACE: Final = "imgprep-data"
WORKSPACE_VARIABLE: Final = "IMGPREP_WORKSPACE"
DEFAULT_NAME: Final = "main"
"""Name of a subset and of its shards when none is given."""

SAMPLE_FIELDS: Final = (
    ("shard", "<u4"),
    ("offset", "<u8"),
    ("length", "<u4"),
    ("label", "<i4"),
    ("crc32", "<u4"),
)
"""Columns of a sample table, packed, 24 bytes a row: number of the shard in its split, where the picture's bytes start
in that tar, how many there are, the class label, and their CRC-32 (as in ZIP and gzip)."""


@dataclass(frozen=True, kw_only=True)
class ClassInfo:
    """One class as the trainer sees it: its label, WordNet id and name."""

    label: int
    wnid: str
    name: str

    @property
    def short_name(self) -> str:
        """The first of the synonyms, e.g. ``tench`` of ``tench, Tinca tinca``."""
        return self.name.split(",", 1)[0].strip()


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One tar: its file name, number of samples, size in bytes and SHA-256 in hex."""

    filename: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """One split: its shards in order, and the sample table that covers them."""

    num_samples: int
    samples_filename: str
    samples_sha256: str
    shards: tuple[ShardInfo, ...]

    @property
    def num_bytes(self) -> int:
        """Size of all shards of the split, in bytes."""
        return sum(shard.num_bytes for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """What ``index.json`` says.

    Attributes:
        classes: In label order; ``classes[i].label == i``.
        splits: By name, e.g. ``train`` and ``val``.
        spec: The ``ShardSpec`` the shards were written with, as JSON values.
        provenance: Where the samples come from: source, subset spec and digests, as JSON values.
    """

    classes: tuple[ClassInfo, ...]
    splits: dict[str, SplitInfo]
    spec: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        labels = [info.label for info in self.classes]
        if labels != list(range(len(labels))):
            raise SpecError(f"labels of an index must be 0, 1, 2, ... in order, got {labels[:5]}")
        for name, split in self.splits.items():
            total = sum(shard.num_samples for shard in split.shards)
            if total != split.num_samples:
                raise SpecError(
                    f"split {name!r}: its shards hold {total} samples, num_samples says {split.num_samples}"
                )

    @property
    def dataset_digest(self) -> str:
        """SHA-256 over classes, sample tables and shards: equal digests mean equal bytes in equal order."""
        content = {
            "classes": [asdict(info) for info in self.classes],
            "splits": {name: asdict(split) for name, split in sorted(self.splits.items())},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Serialise, indented so that a person can read it; ends in a line feed."""
        document = {
            "format": INDEX_FORMAT,
            "version": INDEX_VERSION,
            "dataset_digest": self.dataset_digest,
            "classes": [asdict(info) for info in self.classes],
            "splits": {name: asdict(split) for name, split in sorted(self.splits.items())},
            "spec": self.spec,
            "provenance": self.provenance,
        }
        document["index_sha256"] = _document_digest(document)
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _document_digest(document: dict[str, Any]) -> str:
    """SHA-256 over all that an index says, its own digest aside, however it is indented."""
    said = {name: value for name, value in document.items() if name != "index_sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def parse_index(text: str, *, where: str = INDEX_FILENAME) -> ShardIndex:
    """Read the text of an ``index.json`` and check that it agrees with itself.

    Args:
        text: The JSON document.
        where: What to call it in errors.

    Raises:
        DamagedError: Not JSON, another format or version, missing fields, file names that leave the folder, or a
            digest that does not fit the content.
    """
    rerun = "run `imgprep shard --overwrite` to write it again"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} is not valid JSON ({error})", rerun) from None
    if not isinstance(document, dict) or document.get("format") != INDEX_FORMAT:
        raise DamagedError(
            f"{where} is not an {INDEX_FORMAT} file", "point to an index.json written by `imgprep shard`"
        )
    if document.get("version") != INDEX_VERSION:
        raise DamagedError(
            f"{where} has version {document.get('version')!r}, this imgprep reads {INDEX_VERSION}", rerun
        )
    try:
        splits = {
            str(name): SplitInfo(
                num_samples=int(split["num_samples"]),
                samples_filename=_plain_filename(split["samples_filename"]),
                samples_sha256=str(split["samples_sha256"]),
                shards=tuple(
                    ShardInfo(
                        filename=_plain_filename(shard["filename"]),
                        num_samples=int(shard["num_samples"]),
                        num_bytes=int(shard["num_bytes"]),
                        sha256=str(shard["sha256"]),
                    )
                    for shard in split["shards"]
                ),
            )
            for name, split in document["splits"].items()
        }
        index = ShardIndex(
            classes=tuple(
                ClassInfo(label=int(c["label"]), wnid=str(c["wnid"]), name=str(c["name"])) for c in document["classes"]
            ),
            splits=splits,
            spec=dict(document["spec"]),
            provenance=dict(document["provenance"]),
        )
        # Half a pair of surrogates can be written in JSON, and in no file of text.
        json.dumps(document, ensure_ascii=False).encode()
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, SpecError) as error:
        raise DamagedError(f"{where} is incomplete or inconsistent ({error})", rerun) from None
    if document.get("dataset_digest") != index.dataset_digest:
        raise DamagedError(f"{where} was edited: its dataset digest does not fit its content", rerun)
    if document.get("index_sha256") != _document_digest(document):
        raise DamagedError(f"{where} was edited: its own digest does not fit its content", rerun)
    return index


def _plain_filename(value: object) -> str:
    """A file name without folders: an index must not reach outside its folder."""
    if (
        not isinstance(value, str)
        or not value
        or value in (".", "..")
        or "/" in value
        or "\\" in value
        or "\0" in value
    ):
        raise ValueError(f"bad file name {value!r}")
    return value


def read_index(path: Path) -> ShardIndex:
    """Read ``index.json``.

    Args:
        path: The file, or the folder that holds it.

    Raises:
        MissingInputError: It is not there.
        DamagedError: It cannot be used; see :func:`parse_index`.
    """
    file = path / INDEX_FILENAME if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingInputError(f"no shards here: {file} does not exist", "run `imgprep shard` first") from None
    except UnicodeDecodeError:
        raise DamagedError(f"{file} is not UTF-8 text", "run `imgprep shard --overwrite` to write it again") from None
    return parse_index(text, where=str(file))


def find_index(workspace: Path, name: str = DEFAULT_NAME) -> Path:
    """Where a workspace keeps the index of the shards called ``name``; the file need not exist."""
    return workspace / "shards" / name / INDEX_FILENAME


def open_samples(index_path: Path, index: ShardIndex, split: str) -> NDArray[np.void]:
    """Map the sample table of a split into memory, read-only.

    Args:
        index_path: The ``index.json`` that ``index`` was read from; the table lies beside it.
        index: Its content.
        split: Name of the split.

    Returns:
        A structured array of shape ``(num_samples,)`` with the columns of :data:`SAMPLE_FIELDS`.

    Raises:
        MissingInputError: The index has no such split.
        DamagedError: The table is missing or was edited, is of another shape, or points outside shards and classes.
        OSError: It cannot be read for another reason, such as permissions.
    """
    import numpy as np

    if split not in index.splits:
        known = ", ".join(sorted(index.splits)) or "none"
        raise MissingInputError(
            f"these shards have no split {split!r}; they have: {known}",
            "choose a subset with images of that split (--per-class, --val-per-class) and shard it",
        )
    info = index.splits[split]
    path = index_path.parent / info.samples_filename
    rerun = "run `imgprep shard --overwrite` to write the shards again"
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        # First, as NumPy reads the header of an array as an expression of Python.
        if sha256 != info.samples_sha256:
            raise DamagedError(f"the sample table {path} was changed: its SHA-256 is not that of index.json", rerun)
        table: NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError, SyntaxError, TokenError) as error:
        raise DamagedError(f"the sample table {path} cannot be read ({error})", rerun) from None
    # A zip under that name loads, too, as something else.
    if not isinstance(table, np.ndarray):
        raise DamagedError(f"the sample table {path} is no array", rerun)
    if table.dtype != np.dtype(list(SAMPLE_FIELDS)) or table.shape != (info.num_samples,):
        raise DamagedError(f"the sample table {path} does not fit index.json: {table.shape}, {table.dtype}", rerun)
    if len(table):
        sizes = np.array([shard.num_bytes for shard in info.shards], dtype=np.uint64)
        if (
            int(table["shard"].max()) >= len(sizes)
            or int(table["label"].min()) < 0
            or int(table["label"].max()) >= len(index.classes)
            # Compared without adding, so that a hostile offset cannot wrap around.
            or bool((table["offset"] > sizes[table["shard"]]).any())
            or bool((table["length"] > sizes[table["shard"]] - table["offset"]).any())
        ):
            raise DamagedError(f"the sample table {path} points outside its shards or classes", rerun)
    return table
