"""Stage ``trace``: where one picture came from, and where it is.

Tables are searched for the few lines that matter, and a shard for one header, so that it takes no longer on ImageNet
than on a toy. Whatever is missing is noted, and the rest is told.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, SupportsInt, TypeVar

from imgprep.errors import ImgprepError, MissingInputError, UsageError, as_imgprep_error
from imgprep.findings import CODES, DOCTOR_FILE, codes_of
from imgprep.findings import COLUMNS as DOCTOR_COLUMNS
from imgprep.index import INDEX_FILENAME, ShardIndex, open_samples, read_index
from imgprep.packing import BLOCK
from imgprep.receipts import read_receipt
from imgprep.selection import SubsetSpec, parse_line, rank
from imgprep.sources.adopted import open_adopted, read_source_record
from imgprep.sources.ranges import RangeFile
from imgprep.sources.tar import FileRange, walk_tar
from imgprep.sources.zip import ZipSource
from imgprep.tables import CLASSES_COLUMNS, MANIFEST_COLUMNS, REJECTED_COLUMNS, VAL_COLUMNS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from imgprep.workspace import Workspace

_CHUNK: Final = 1 << 20
_MAX_LINE: Final = 1 << 16
_MAX_NEAR: Final = 20_000
"""Keys that are compared with one that is unknown: those that begin like it come first."""
_MAX_NAME: Final = 4096
_MAX_JSON: Final = 1 << 22
_SHOWN: Final = 5

T = TypeVar("T")
Row = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """All that is known of one picture; what is None is not known, and ``notes`` say why.

    Attributes:
        key: Its key.
        source: Where its bytes came from: the path and kind of the source, the name of the member, and what the source
            says of it.
        catalog: Its row in the manifest of the catalog, with its class.
        findings: What ``imgprep doctor`` found, code to meaning; empty when it found nothing.
        twins: Keys of other pictures that it looks like.
        subset: Its row in the subset, with the line that chose it; or why it is not in there.
        sample: Where it lies in the shards.
        rejected: Why it was left out of the shards; empty when it was not.
        notes: What could not be found out, and what does not fit.
    """

    key: str
    source: dict[str, Any] | None
    catalog: dict[str, Any] | None
    findings: dict[str, str] | None
    twins: tuple[str, ...]
    subset: dict[str, Any] | None
    sample: dict[str, Any] | None
    rejected: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "key": self.key,
            "source": self.source,
            "catalog": self.catalog,
            "findings": self.findings,
            "twins": list(self.twins),
            "subset": self.subset,
            "sample": self.sample,
            "rejected": self.rejected or None,
            "notes": list(self.notes),
        }


def trace(workspace: Workspace, wanted: str, *, name: str, folder: Path | None = None) -> Trace:
    """Follow one picture; nothing is written.

    Args:
        workspace: Where to look; may lack anything.
        wanted: A key, or the path or file name of a picture in the source.
        name: Name of the shards, and of the subset they were packed from.
        folder: The folder of shards when it lies elsewhere.

    Raises:
        MissingInputError: There is neither a catalog nor are there shards.
        UsageError: No picture goes by that name, or several do. The message names some that are like it.
    """
    if not 0 < len(wanted) <= _MAX_NAME or not wanted.isprintable():
        raise UsageError("a key or a path is one line of text", "imgprep trace KEY")
    search = _Search(workspace, name, folder or workspace.shards(name))
    return search.run(wanted)


@dataclass
class _Search:
    """The search for one picture: what fails becomes a note."""

    workspace: Workspace
    name: str
    folder: Path
    notes: list[str] = field(default_factory=list)

    def run(self, wanted: str) -> Trace:
        there = self.workspace.root.is_dir()
        if not there:
            self.notes.append(f"there is no workspace {self.workspace.root}")
        catalog = self.try_to(lambda: self.find_row(wanted)) if there else None
        index = self.try_to(lambda: read_index(self.folder))
        key = catalog["key"] if catalog is not None else wanted
        rejected = self.try_to(lambda: self.find_rejected(key)) or ""
        sample = None if index is None or rejected else self.find_sample(index, key, catalog)
        if sample is None and index is not None and not rejected:
            sample = self.find_misplaced(index, key, catalog)
        if catalog is None and sample is None and not rejected:
            raise self.unknown(wanted, index)
        if catalog is not None:
            self.add_class(catalog)
        doctor = self.try_to(lambda: self.find_findings(key)) if catalog is not None else None
        subset = self.try_to(lambda: self.find_subset(key, catalog, index)) if there else None
        if sample is not None:
            self.compare(sample, subset, catalog)
        return Trace(
            key=key,
            source=self.find_source(sample, catalog),
            catalog=catalog,
            findings=None if doctor is None else {code: CODES[code] for code in codes_of(doctor["findings"])},
            twins=() if doctor is None else tuple(dict.fromkeys(filter(None, (doctor["twin"], doctor["conflict"])))),
            subset=subset,
            sample=sample,
            rejected=rejected,
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def try_to(self, find: Callable[[], T]) -> T | None:
        """What ``find`` returns, or None and a note."""
        try:
            return find()
        except _AmbiguousError:
            raise
        except ImgprepError as error:
            self.notes.append(error.what)
        except OSError as error:
            self.notes.append(as_imgprep_error(error).what)
        return None

    def find_sample(
        self, index: ShardIndex, key: str, catalog: dict[str, Any] | None, *, halve: bool = True
    ) -> dict[str, Any] | None:
        """Look into each split of the shards, its own first."""
        for split in sorted(index.splits, key=lambda split: catalog is None or split != catalog["split"]):
            if (found := self.try_to(partial(find_sample, self.folder, index, split, key, halve=halve))) is not None:
                return found
        return None

    def find_misplaced(self, index: ShardIndex, key: str, catalog: dict[str, Any] | None) -> dict[str, Any] | None:
        """Look at every header: one with a changed key leads the halving astray, for pictures that are whole, too."""
        if _has_no_order(index) or not self.may_be_packed(index, key):
            return None
        found = self.find_sample(index, key, catalog, halve=False)
        if found is not None:
            self.notes.append("a header is out of order: a key in the shards is damaged; run `imgprep verify`")
        return found

    def may_be_packed(self, index: ShardIndex, key: str) -> bool:
        """Whether the subset the shards were packed from has a key, as far as it can still be asked."""
        folder, packed = self.workspace.subset(self.name), index.provenance.get("subset")
        try:
            if (
                not isinstance(packed, dict)
                or read_receipt(folder, "subset")["counts"].get("digest") != packed["digest"]
            ):
                return True
            return any(row["key"] == key for row in find_rows(folder / "manifest.csv", MANIFEST_COLUMNS, key))
        except (ImgprepError, OSError, KeyError):
            return True

    # Tables.

    def find_row(self, wanted: str) -> dict[str, Any] | None:
        """The row of the catalog; prefers a key over a path over a file name."""
        path = wanted.removeprefix("./")
        rows = list(find_rows(self.workspace.catalog / "manifest.csv", MANIFEST_COLUMNS, path))
        for matches in (
            [row for row in rows if row["key"] == wanted],
            [row for row in rows if row["path"] == path],
            [row for row in rows if row["path"].endswith(f"/{path}")],
        ):
            if len(matches) > 1:
                shown = ", ".join(row["path"] for row in matches[:_SHOWN])
                raise _AmbiguousError(
                    f"{len(matches):,} pictures are called {wanted!r}", f"give the key or path of one: {shown}"
                )
            if matches:
                row = matches[0]
                crc32 = _hex(row["crc32"]) if row["crc32"] else None
                return row | {"label": int(row["label"]), "num_bytes": int(row["num_bytes"]), "crc32": crc32}
        return None

    def add_class(self, catalog: dict[str, Any]) -> None:
        """The class of a validation picture, which only its annotation knows, and the name of the class."""
        folder = self.workspace.catalog
        if catalog["split"] == "val" and not catalog["wnid"]:
            rows = self.try_to(lambda: list(find_rows(folder / "val.csv", VAL_COLUMNS, catalog["key"])))
            catalog["wnid"] = next((row["wnid"] for row in rows or () if row["ImageId"] == catalog["key"]), "")
        if catalog["wnid"]:
            rows = self.try_to(lambda: list(find_rows(folder / "classes.csv", CLASSES_COLUMNS, catalog["wnid"])))
            catalog["class"] = next((row["name"] for row in rows or () if row["wnid"] == catalog["wnid"]), "")

    def find_findings(self, key: str) -> Row | None:
        """The row of doctor.csv."""
        path = self.workspace.catalog / DOCTOR_FILE
        if not path.is_file():
            self.notes.append("`imgprep doctor` has not run")
            return None
        found = next((row for row in find_rows(path, DOCTOR_COLUMNS, key) if row["key"] == key), None)
        if found is None:
            self.notes.append(f"{path} does not list it")
        elif not set(codes_of(found["findings"])) <= CODES.keys():
            self.notes.append(f"{path} has codes that are unknown")
            return None
        return found

    def find_rejected(self, key: str) -> str:
        """Why a picture was left out of the shards."""
        path = self.folder / "rejected.csv"
        if not path.is_file():
            return ""
        return next((row["reason"] for row in find_rows(path, REJECTED_COLUMNS, key) if row["key"] == key), "")

    def find_subset(self, key: str, catalog: dict[str, Any] | None, index: ShardIndex | None) -> dict[str, Any] | None:
        """Its row in the subset, or why it has none."""
        folder = self.workspace.subset(self.name)
        counts = read_receipt(folder, "subset")["counts"]
        row = next((r for r in find_rows(folder / "manifest.csv", MANIFEST_COLUMNS, key) if r["key"] == key), None)
        packed = index.provenance.get("subset") if index is not None else None
        if isinstance(packed, dict) and packed.get("digest") != counts.get("digest"):
            self.notes.append(f"the subset {self.name} was chosen anew since these shards were packed")
        found: dict[str, Any] = {"name": self.name, "spec": counts.get("spec", ""), "chosen": row is not None}
        if row is not None:
            return found | {"label": int(row["label"]), "split": row["split"]}
        if catalog is not None:
            found |= self.why_not(str(counts.get("spec", "")), folder, catalog)
        return found

    def why_not(self, line: str, folder: Path, catalog: dict[str, Any]) -> dict[str, Any]:
        """Why a picture of the catalog is not in a subset, as far as a few lines of the tables tell."""
        wnid = catalog["wnid"]
        classes = list(find_rows(folder / "classes.csv", CLASSES_COLUMNS, wnid)) if wnid else []
        if not any(row["wnid"] == wnid for row in classes):
            return {"why": "its class is not in the subset" if wnid else "it has no class"}
        try:
            spec = parse_line(line)
        except ImgprepError:
            return {}
        if not isinstance(spec, SubsetSpec):
            return {}
        keys = self.keys_of_class(catalog["split"], wnid)
        own = rank(spec.seed, "image", catalog["key"])
        place = 1 + sum(rank(spec.seed, "image", other) < own for other in keys)
        limit = spec.val_per_class if catalog["split"] == "val" else spec.per_class
        return {"rank": place, "of": len(keys), "limit": limit}

    def keys_of_class(self, split: str, wnid: str) -> list[str]:
        """All keys of a class in a split of the catalog."""
        folder = self.workspace.catalog
        rows = find_rows(folder / "manifest.csv", MANIFEST_COLUMNS, wnid)
        keys = [row["key"] for row in rows if row["wnid"] == wnid and row["split"] == split]
        if split == "val" and not keys:
            keys = [row["ImageId"] for row in find_rows(folder / "val.csv", VAL_COLUMNS, wnid) if row["wnid"] == wnid]
        return keys

    # The source.

    def find_source(self, sample: dict[str, Any] | None, catalog: dict[str, Any] | None) -> dict[str, Any] | None:
        """Where the bytes came from."""
        there = self.workspace.root.is_dir()
        record = self.try_to(lambda: read_source_record(self.workspace)) if there else None
        member = catalog["path"] if catalog is not None else (sample or {}).get("path")
        if record is None:
            return {"member": member} if member else None
        path = self.workspace.root / record.path
        found: dict[str, Any] = {"path": str(path), "kind": record.kind, "layout": record.layout, "member": member}
        found["there"] = path.exists()
        if not found["there"]:
            self.notes.append(f"the source {path} is gone")
        elif record.kind in ("directory", "part") and member:
            found["file"] = str(path / member)
            if not (path / member).is_file():
                self.notes.append(f"{path / member} is gone")
        elif record.kind == "zip" and member:
            found |= self.try_to(lambda: self.find_member(member)) or {}
        if catalog is not None and catalog["crc32"] and found.get("crc32", catalog["crc32"]) != catalog["crc32"]:
            self.notes.append("the source has another CRC-32 of it than the catalog")
        return found

    def find_member(self, member: str) -> dict[str, Any]:
        """What the directory of the archive says of a member."""
        source, _ = open_adopted(self.workspace)
        with source:
            if not isinstance(source, ZipSource):
                return {}
            directory = source.directory
            number = directory.find(member)
            return {
                "crc32": _hex(directory.crc32[number]),
                "header_offset": int(directory.offset[number]),
                "packed_bytes": int(directory.packed[number]),
                "compression": {0: "stored", 8: "deflated"}.get(int(directory.method[number]), "other"),
            }

    # What fits together, and what does not.

    def compare(self, sample: dict[str, Any], subset: dict[str, Any] | None, catalog: dict[str, Any] | None) -> None:
        """Note where the sample contradicts the tables, and where it is damaged."""
        if not sample["intact"]:
            self.notes.append(
                f"its picture in {sample['shard']} is damaged: the CRC-32 is another; run `imgprep verify`"
            )
        if (
            subset is not None
            and subset["chosen"]
            and (subset["label"], subset["split"]) != (sample["label"], sample["split"])
        ):
            self.notes.append("the subset has another label or split for it than the shards")
        if catalog is not None and sample.get("path") not in (None, catalog["path"]):
            self.notes.append(f"the shards have it from another path, {sample['path']}")

    def unknown(self, wanted: str, index: ShardIndex | None) -> ImgprepError:
        """The error for a name that nothing goes by."""
        manifest = self.workspace.catalog / "manifest.csv"
        if not manifest.is_file() and index is None:
            return MissingInputError(
                f"there is neither {manifest} nor {self.folder / INDEX_FILENAME}", "run `imgprep fetch` and so on first"
            )
        advice = "give a key, or a path or file name in the source"
        near = near_keys(manifest, PurePosixPath(wanted).stem or wanted) if manifest.is_file() else []
        return UsageError(f"no picture is called {wanted!r}", f"did you mean {', '.join(near)}?" if near else advice)


class _AmbiguousError(UsageError):
    """A name that several pictures have: the rest must not be guessed."""


def find_rows(path: Path, columns: dict[str, str], text: str) -> Iterator[Row]:
    """The rows of a CSV with a text somewhere in them; what else is in the table is not parsed.

    Args:
        path: The table.
        columns: Its columns.
        text: What to look for, as it is in the field.

    Raises:
        MissingInputError: It is not there.
        UsageError: It has other columns.
    """
    needle = text.replace('"', '""').encode()
    try:
        with path.open("rb") as file:
            if file.readline(_MAX_LINE).rstrip(b"\r\n") != ",".join(columns).encode():
                raise UsageError(f"{path} has other columns than {','.join(columns)}", "run its stage again")
            for line in _lines_with(file.read, needle):
                fields = next(csv.reader([line.decode("utf-8", "replace")]), [])
                if len(fields) == len(columns):
                    yield dict(zip(columns, fields, strict=True))
    except FileNotFoundError:
        raise MissingInputError(f"{path} does not exist") from None


def _lines_with(read: Callable[[int], bytes], needle: bytes) -> Iterator[bytes]:
    rest = b""
    while chunk := read(_CHUNK):
        # Lines are at most some hundred bytes; what has none is no table.
        head, feed, tail = (rest[-_MAX_LINE:] + chunk).rpartition(b"\n")
        if needle in head:
            yield from (line for line in head.split(b"\n") if needle in line)
        rest = tail if feed else head + tail
    if needle in rest:
        yield rest


def near_keys(manifest: Path, wanted: str) -> list[str]:
    """Some keys of a manifest that are written like another one; looks at a bounded number of them."""
    start = wanted[: max(4, len(wanted) * 2 // 3)].encode()
    like: list[str] = []
    some: list[str] = []
    with manifest.open("rb") as file:
        for line in file:
            # Of a long table, those that begin alike are the ones to look at.
            pile = like if line.startswith(start) else some
            if len(pile) < _MAX_NEAR:
                pile.append(line.partition(b",")[0].decode("utf-8", "replace"))
            if len(like) == _MAX_NEAR:
                break
    return difflib.get_close_matches(wanted, like or some[1:], n=3, cutoff=0.6)


def _hex(checksum: SupportsInt | str) -> str:
    """A CRC-32 as it is written."""
    return f"{int(checksum):08x}"


def order_rank(key: str, seed: int) -> bytes:
    """What samples of a split are ordered by; see :mod:`imgprep.shard`."""
    return hashlib.blake2b(key.encode(), digest_size=16, key=seed.to_bytes(8, "big")).digest()


def _has_no_order(index: ShardIndex) -> bool:
    """Whether the samples lie in an order that the index does not tell, so that all are looked at anyway."""
    seed = index.spec.get("seed")
    return "imported" in index.spec or type(seed) is not int or not 0 <= seed < 1 << 63


def find_sample(folder: Path, index: ShardIndex, split: str, key: str, *, halve: bool = True) -> dict[str, Any] | None:
    """Find a sample in a split by its key.

    Args:
        folder: Where the shards lie.
        index: Their index.
        split: The split.
        key: The key.
        halve: Trust in the order of the samples; else look at one after another.

    Returns:
        Where it is and what it is, as JSON values; None when it is not there.

    Raises:
        DamagedError: The sample table cannot be used.
        OSError: A shard cannot be read.
    """
    table = open_samples(folder / INDEX_FILENAME, index, split)
    shards = _Shards(folder, index, split, table)
    try:
        row = shards.search(key, halve=halve)
        return None if row is None else shards.describe(row, key)
    finally:
        shards.close()


class _Shards:
    """The tars of one split, opened as they are needed."""

    def __init__(self, folder: Path, index: ShardIndex, split: str, table: NDArray[np.void]) -> None:
        self._folder, self._index, self._split, self._table = folder, index, split, table
        self._paths = [folder / shard.filename for shard in index.splits[split].shards]
        self._open: dict[int, RangeFile] = {}

    def close(self) -> None:
        """Let go of the tars."""
        for file in self._open.values():
            file.close()

    def _pread(self, shard: int, offset: int, num_bytes: int) -> bytes:
        if shard not in self._open:
            # A binary search needs twenty at most; a scan goes through them one after another.
            for other in [*self._open]:
                if len(self._open) > len(self._table).bit_length():
                    self._open.pop(other).close()
            self._open[shard] = RangeFile(self._paths[shard])
        return self._open[shard].pread(num_bytes, offset)

    def _key(self, row: int) -> str:
        """The key in the header in front of a picture."""
        shard, offset = int(self._table["shard"][row]), int(self._table["offset"][row])
        name = self._pread(shard, offset - BLOCK, 100).partition(b"\0")[0] if offset >= BLOCK else b""
        return name.decode("ascii", "replace").partition(".")[0]

    def search(self, key: str, *, halve: bool) -> int | None:
        """The row of a key: by halves where imgprep ordered the samples, else one after another."""
        if "imported" in self._index.spec:
            return self._search_others(key)
        if not halve or _has_no_order(self._index):
            return self._search_all(key)
        seed: int = self._index.spec["seed"]
        wanted = order_rank(key, seed)
        low, high = 0, len(self._table)
        while low < high:
            middle = (low + high) // 2
            found = self._key(middle)
            if found == key:
                return middle
            if not found.isprintable() or not found:
                # A damaged header says nothing of where to go on.
                return self._search_all(key)
            if order_rank(found, seed) < wanted:
                low = middle + 1
            else:
                high = middle
        return None

    def _search_all(self, key: str) -> int | None:
        return next((row for row in range(len(self._table)) if self._key(row) == key), None)

    def _search_others(self, key: str) -> int | None:
        """Tars of others may have long names, which take more than one header."""
        for number, path in enumerate(self._paths):
            with RangeFile(path) as file:
                for name, offset, _ in walk_tar(FileRange(file, 0, path.stat().st_size), path):
                    # WebDataset's key: the path up to the first dot of the file name.
                    parent, slash, base = name.rpartition("/")
                    stem = base.partition(".")[0]
                    if key in (stem, f"{parent}{slash}{stem}", name):
                        rows = (self._table["shard"] == number) & (self._table["offset"] == offset)
                        if rows.any():
                            return int(rows.argmax())
        return None

    def describe(self, row: int, key: str) -> dict[str, Any]:
        """Where a sample is, and what its members say."""
        shard, offset, length, label, checksum = (int(value) for value in self._table[row].tolist())
        info = self._index.splits[self._split].shards[shard]
        picture = self._pread(shard, offset, length)
        synset = self._index.classes[label]
        found: dict[str, Any] = {
            "split": self._split,
            "row": row,
            "label": label,
            "wnid": synset.wnid,
            "class": synset.name,
            "shard": info.filename,
            "offset": offset,
            "num_bytes": length,
            "crc32": _hex(checksum),
            "sha256": hashlib.sha256(picture).hexdigest(),
            "intact": len(picture) == length and zlib.crc32(picture) == checksum,
            "shard_sha256": info.sha256,
            "dataset_digest": self._index.dataset_digest,
        }
        if "imported" in self._index.spec:
            return found
        cls = offset + length + -length % BLOCK + BLOCK
        found |= {"cls_offset": cls, "json_offset": cls + 2 * BLOCK}
        content = self._pread(shard, cls + 2 * BLOCK, _MAX_JSON).partition(b"\0")[0]
        try:
            document = json.loads(content)
            told = {name: document[name] for name in ("path", "width", "height")}
            if document["key"] == key:
                found |= told | {"boxes": document.get("boxes", [])}
        except (ValueError, RecursionError, KeyError, TypeError):
            found["json"] = "damaged"
        return found
