"""Stage ``verify``: compare a folder of shards, byte by byte, with everything that is known of it.

Several files witness each other: ``index.json`` has the hashes of tars and sample tables and a digest of itself, the
receipt has the hashes of all that the stage wrote, ``SHA256SUMS`` those of every file. Where two disagree, the bytes
decide who is wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from imgprep.errors import DamagedError, MissingInputError, SpecError
from imgprep.executors import Executor, SerialExecutor, Tick
from imgprep.files import sha256_file
from imgprep.index import INDEX_FILENAME, SAMPLE_FIELDS, ShardIndex, SplitInfo, parse_index
from imgprep.receipts import RECEIPT_VERSION
from imgprep.records import Synset
from imgprep.shard_check import (
    Kind,
    Problem,
    ShardReport,
    ShardTask,
    check_shard,
    file_problem,
    open_plain,
)
from imgprep.stats import SILENT, Progress
from imgprep.tables import catalog_table, table_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

Level = Literal["index", "bytes", "decode"]

SUMS: Final = "SHA256SUMS"
RECEIPT: Final = "shard.receipt.json"
REJECTED: Final = "rejected.csv"

_MAX_TEXT: Final = 1 << 26
"""Bytes of an index, a receipt or a list of sums: an index of 300,000 shards would fit."""
_MAX_HEADER: Final = 1 << 12
"""Bytes in front of the rows of a sample table; NumPy writes some hundreds."""
_SUM_LINE: Final = re.compile(r"([0-9a-f]{64})  ([^\0\n]+)\n")
_SUM_LINE_OF_OTHERS: Final = re.compile(r"([0-9A-Fa-f]{64}) [ *]([^\0\n]+)\n?")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_MAX_SIZE: Final = 1 << 62
_READ_BY_OTHERS: Final = (".tar", ".npy")


@dataclass(frozen=True, kw_only=True)
class VerifySpec:
    """How closely to look.

    Attributes:
        level: ``index`` reads all files but the tars, and of those the sizes; ``bytes`` reads every byte; ``decode``
            also decodes every picture.
    """

    level: Level = "bytes"

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise SpecError(f"the level must be one of {', '.join(get_args(Level))}, got {self.level!r}")


@dataclass(frozen=True, slots=True)
class Claim:
    """What one file (``by``) says of another."""

    by: str
    sha256: str
    num_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found.

    Attributes:
        folder: The folder of shards.
        level: How closely it was looked at.
        num_shards: Shards that the index lists.
        num_samples: Samples that the index lists.
        num_bytes: Bytes of these shards by the index.
        num_read: Bytes of them that were read.
        seconds: How long that took.
        dataset_digest: That of the index; empty where there is none to be used.
        problems: All that is wrong; empty when all is well.
        index: What ``index.json`` says, where it can be used.
        claims: What the files say of each other, by the name of the file spoken of.
    """

    folder: Path
    level: Level
    num_shards: int
    num_samples: int
    num_bytes: int
    num_read: int
    seconds: float
    dataset_digest: str
    problems: tuple[Problem, ...]
    index: ShardIndex | None = None
    claims: Mapping[str, Sequence[Claim]] = field(default_factory=dict)

    @property
    def damaged_files(self) -> dict[str, int]:
        """How many problems each file has that has any, in the order they were found."""
        return dict(Counter(problem.file for problem in self.problems))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "verified": not self.problems,
            "folder": str(self.folder),
            "level": self.level,
            "shards": self.num_shards,
            "samples": self.num_samples,
            "num_bytes": self.num_bytes,
            "seconds": round(self.seconds, 3),
            "dataset_digest": self.dataset_digest,
            "damaged": self.damaged_files,
            "problems": [asdict(problem) for problem in self.problems],
        }


def verify(
    folder: Path,
    spec: VerifySpec,
    *,
    executor: Executor | None = None,
    progress: Progress = SILENT,
    known: Collection[str] = (),
) -> Verdict:
    """Check a folder of shards; nothing is written.

    Args:
        folder: Holds ``index.json``; need not lie in a workspace.
        spec: How closely to look.
        executor: How to read the tars; one after another when None. Threads only: they share what was found.
        progress: Told of bytes read.
        known: Tars that were found whole a moment ago: of these, only the size is looked at.

    Returns:
        The verdict, also when everything is damaged.

    Raises:
        MissingInputError: There are no shards.
        OSError: The folder cannot be listed.
    """
    start = time.perf_counter()
    try:
        names = {path.name for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        raise MissingInputError(f"no shards here: {folder} is no folder", "run `imgprep shard` first") from None
    if not names & {INDEX_FILENAME, SUMS, RECEIPT} and not any(name.endswith(".tar") for name in names):
        raise MissingInputError(
            f"no shards here: {folder} has no {INDEX_FILENAME}", "run `imgprep shard` first, or check the path"
        )
    check = _FolderCheck(folder, names, known)
    reports = check.run(spec, executor or SerialExecutor(), progress)
    splits = check.index.splits.values() if check.index is not None else ()
    return Verdict(
        folder=folder,
        level=spec.level,
        num_shards=sum(len(split.shards) for split in splits),
        num_samples=sum(split.num_samples for split in splits),
        num_bytes=sum(split.num_bytes for split in splits),
        num_read=sum(report.num_bytes for report in reports),
        seconds=time.perf_counter() - start,
        dataset_digest=check.index.dataset_digest if check.index is not None else "",
        problems=tuple(check.problems),
        index=check.index,
        claims=check.claims,
    )


class _FolderCheck:
    """The check of one folder: collects claims, then compares each file with what is claimed of it.

    Args:
        folder: The folder.
        names: What is in it.
        known: Tars that are not read.
    """

    def __init__(self, folder: Path, names: set[str], known: Collection[str]) -> None:
        self.folder, self.names, self._known = folder, names, known
        self.problems: list[Problem] = []
        self.claims: dict[str, list[Claim]] = {}
        self.tars: set[str] = set()
        self.index: ShardIndex | None = None
        self.rejected: int | None = None
        self._imported = False
        self._unread: set[str] = set()

    def run(self, spec: VerifySpec, executor: Executor, progress: Progress) -> list[ShardReport]:
        """Do it; returns what was found in the tars."""
        self.index = self._read_index()
        self._imported = self.index is not None and "imported" in self.index.spec
        own = self.index is not None and not self._imported
        if self.index is not None:
            self._claim_index(self.index)
        receipts = {name for name in self.names if name.endswith(".receipt.json")} | ({RECEIPT} if own else set())
        for name in sorted(receipts):
            self._claim_receipt(name)
        if SUMS in self.names:
            self._claim_sums()
        if own:
            for name in (RECEIPT, REJECTED):
                self.claims.setdefault(name, [])
            if self.index is not None and self.index.spec.get("side_files"):
                self.claims.setdefault(SUMS, [])
        tables = {} if self.index is None else {name: self._table(name) for name in self.index.splits}
        self.tars |= {name for name in self.claims if name.endswith(".tar")}
        for name in sorted(self.claims.keys() - self.tars):
            self._compare(name)
        tasks = list(self._tasks(tables, decode=spec.level == "decode"))
        reports = self._read_tars(tasks, executor, progress) if spec.level != "index" else []
        for name in sorted(self.tars if spec.level == "index" else self.tars.intersection(self._known)):
            self._compare_size(name)
        self._find_extra()
        return reports

    def _add(self, kind: Kind, file: str, what: str, expected: object = "", found: object = "") -> None:
        self.problems.append(
            Problem(kind=kind, file=file, what=what, expected=str(expected)[:200], found=str(found)[:200])
        )

    # What the files say of each other.

    def _read(self, name: str) -> bytes | None:
        """The bytes of a small file, or None and a problem."""
        try:
            handle, num_bytes = open_plain(self.folder / name)
            with open(handle, "rb") as file:  # noqa: PTH123  # a handle, not a path
                if num_bytes <= _MAX_TEXT:
                    return file.read(_MAX_TEXT)
            self._add("size", name, f"has {num_bytes:,} bytes, which is more than such a file may have")
        except (OSError, ValueError) as error:
            self.problems.append(file_problem(name, error))
        self._unread.add(name)
        return None

    def _read_text(self, name: str, kind: Kind) -> str | None:
        content = self._read(name)
        try:
            return None if content is None else content.decode("utf-8")
        except UnicodeDecodeError:
            self._add(kind, name, "is not UTF-8 text")
            return None

    def _read_index(self) -> ShardIndex | None:
        text = self._read_text(INDEX_FILENAME, "index")
        if text is None:
            return None
        try:
            index = parse_index(text)
            same = index.to_json() == text
        except (DamagedError, RecursionError) as error:
            # Messages begin with the name of the file.
            what = error.what if isinstance(error, DamagedError) else f"cannot be used ({error})"
            self._add("index", INDEX_FILENAME, what.removeprefix(f"{INDEX_FILENAME} "))
            return None
        if not same:
            self._add("index", INDEX_FILENAME, "is not, byte for byte, what imgprep writes for its content")
        shards = [shard for split in index.splits.values() for shard in split.shards]
        if any(shard.num_samples < 0 or not 0 <= shard.num_bytes < _MAX_SIZE for shard in shards):
            self._add("index", INDEX_FILENAME, "says that a shard has an impossible size")
            return None
        files = Counter(shard.filename for shard in shards)
        files.update(split.samples_filename for split in index.splits.values())
        twice = [name for name, count in files.items() if count > 1]
        if twice:
            self._add("index", INDEX_FILENAME, f"names the file {twice[0]} more than once")
            return None
        return index

    def _claim_index(self, index: ShardIndex) -> None:
        # Of itself it says nothing that was not checked; others may.
        self.claims.setdefault(INDEX_FILENAME, [])
        for split in index.splits.values():
            self.claims[split.samples_filename] = [Claim(INDEX_FILENAME, split.samples_sha256)]
            for shard in split.shards:
                self.tars.add(shard.filename)
                self.claims[shard.filename] = [Claim(INDEX_FILENAME, shard.sha256, shard.num_bytes)]

    def _claim_sums(self) -> None:
        text = self._read_text(SUMS, "sums")
        if text is None:
            return
        listed: set[str] = set()
        for number, line in enumerate(text.splitlines(keepends=True), start=1):
            match = (_SUM_LINE_OF_OTHERS if self._imported else _SUM_LINE).fullmatch(line)
            if match is None or not _stays_inside(match[2]) or match[2] == SUMS or match[2] in listed:
                self._add("sums", SUMS, f"line {number} is not the SHA-256, two blanks and the name of another file")
                continue
            listed.add(match[2])
            self.claims.setdefault(match[2], []).append(Claim(SUMS, match[1].lower()))
        if self._imported:
            return
        # A receipt that vouches for the sums cannot be in them.
        vouching = {claim.by for claim in self.claims.get(SUMS, ())}
        for name in sorted(self.claims.keys() - listed - vouching - {SUMS}):
            self._add("sums", SUMS, f"does not list {name}")

    def _claim_receipt(self, name: str) -> None:
        self.claims.setdefault(name, [])
        text = self._read_text(name, "receipt") if name in self.names else None
        if text is None:
            return
        try:
            document = json.loads(text)
            same = isinstance(document, dict) and json.dumps(document, indent=1, ensure_ascii=False) + "\n" == text
        except (ValueError, RecursionError) as error:
            self._add("receipt", name, f"is not valid JSON ({' '.join(str(error).split())})")
            return
        parts = {part: document.get(part) for part in ("inputs", "options", "outputs", "counts")} if same else {}
        if (
            not same
            or document.get("version") != RECEIPT_VERSION
            or not all(isinstance(p, dict) for p in parts.values())
        ):
            self._add("receipt", name, "is not, byte for byte, what imgprep writes")
            return
        for file, output in parts["outputs"].items():
            claim = _claim_of(name, output)
            if claim is None or not _stays_inside(file) or file == name:
                self._add("receipt", name, f"says nothing usable of {file}")
            else:
                self.claims.setdefault(file, []).append(claim)
        if name == RECEIPT and self.index is not None:
            self._compare_receipt(document, self.index)

    def _compare_receipt(self, receipt: Mapping[str, Any], index: ShardIndex) -> None:
        """What the receipt repeats of the index, and what follows from it."""
        said: dict[str, tuple[object, object]] = {"stage": ("shard", receipt.get("stage"))}
        options, inputs, counts = receipt["options"], receipt["inputs"], receipt["counts"]
        said |= {f"options.{name}": (value, options.get(name)) for name, value in index.spec.items()}
        synsets = [Synset(info.wnid, info.label, info.name) for info in index.classes]
        classes = hashlib.sha256(table_bytes(catalog_table(synsets))).hexdigest()
        said["inputs.classes"] = (classes, inputs.get("classes"))
        for name in ("source", "subset"):
            if not (isinstance(inputs.get(name), str) and _HASH.fullmatch(inputs[name])):
                said[f"inputs.{name}"] = ("a SHA-256", inputs.get(name))
        out = sum(split.num_samples for split in index.splits.values())
        rejected = counts.get("rejected", 0)
        numbers = {name: split.num_samples for name, split in index.splits.items()} | {
            "out": out,
            "shards": sum(len(split.shards) for split in index.splits.values()),
            "num_bytes": sum(split.num_bytes for split in index.splits.values()),
        }
        if isinstance(rejected, int):
            numbers["in"] = out + rejected
        said |= {f"counts.{name}": (number, counts.get(name, 0)) for name, number in numbers.items()}
        for name, (expected, found) in said.items():
            if expected != found:
                self._add("receipt", RECEIPT, f"{name} is not what follows from {INDEX_FILENAME}", expected, found)
        self.rejected = rejected if isinstance(rejected, int) else None

    # Files against what is said of them.

    def _compare(self, name: str) -> None:
        """Hash a small file and compare it with all that is said of it."""
        if name in self._unread:
            return
        try:
            handle, num_bytes = open_plain(self.folder / name)
            with open(handle, "rb") as file:  # noqa: PTH123  # a handle, not a path
                _refuse_linked_parents(self.folder, name)
                sizes = {claim.num_bytes for claim in self.claims[name]} - {None}
                if sizes and num_bytes not in sizes:
                    self._add("size", name, "has another size", f"{min(sizes, key=str):,} bytes", f"{num_bytes:,}")
                    return
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError) as error:
            self.problems.append(file_problem(name, error))
            return
        self._judge(name, sha256)
        if name == REJECTED and self.rejected is not None:
            self._count_rejected(self.rejected)

    def _judge(self, name: str, sha256: str) -> None:
        """Say of a file, or of those that speak of it, that they are wrong."""
        claims = self.claims[name]
        wrong = [claim for claim in claims if claim.sha256 != sha256]
        if wrong and len(wrong) == len(claims):
            if sha256 in self._owners:
                self._add("other-file", name, f"holds the bytes of {self._owners[sha256]}")
            else:
                self._add("sha256", name, "has another SHA-256", wrong[0].sha256, sha256)
            return
        for claim in wrong:
            kind: Kind = "sums" if claim.by == SUMS else "index" if claim.by == INDEX_FILENAME else "receipt"
            self._add(kind, claim.by, f"has another SHA-256 of {name} than others", sha256, claim.sha256)

    @cached_property
    def _owners(self) -> dict[str, str]:
        """Files by the hashes that are claimed of them; asked for when all claims are known."""
        return {claim.sha256: name for name, claims in self.claims.items() for claim in claims}

    def _count_rejected(self, expected: int) -> None:
        content = self._read(REJECTED) or b""
        # Reasons are one line each.
        found = max(content.count(b"\n") - 1, 0)
        if found != expected:
            self._add("receipt", RECEIPT, f"counts.rejected is not the number of rows in {REJECTED}", found, expected)

    def _compare_size(self, name: str) -> None:
        """What can be told of a tar without reading it."""
        try:
            handle, num_bytes = open_plain(self.folder / name, follow_links=self._imported)
        except (OSError, ValueError) as error:
            self.problems.append(file_problem(name, error))
            return
        os.close(handle)
        first = self.claims[name][0]
        if first.num_bytes is not None and num_bytes != first.num_bytes:
            self._add("size", name, "has another size", f"{first.num_bytes:,} bytes", f"{num_bytes:,}")
        for claim in self.claims[name][1:]:
            if claim.sha256 != first.sha256 or claim.num_bytes not in (None, first.num_bytes):
                self._add("sums", claim.by, f"says otherwise of {name} than {first.by}", first.sha256, claim.sha256)

    # Sample tables.

    def _table(self, split: str) -> NDArray[np.void] | None:
        """The rows of a split, also of a table whose hash is wrong, as long as it has the right size."""
        assert self.index is not None
        info = self.index.splits[split]
        name, dtype = info.samples_filename, np.dtype(list(SAMPLE_FIELDS))
        try:
            handle, num_bytes = open_plain(self.folder / name)
            with open(handle, "rb") as file:  # noqa: PTH123  # a handle, not a path
                start = num_bytes - info.num_samples * dtype.itemsize
                # NumPy's own parser evaluates what it finds there, and forgives much.
                header = file.read(start) if 0 < start <= _MAX_HEADER else b""
                if not _is_header(header, info.num_samples, dtype):
                    what = f"does not begin like a table of {info.num_samples:,} rows of {dtype.itemsize} bytes"
                    self._add("table", name, what)
                if not header:
                    return None
                rows = np.memmap(file, dtype, "r", start, info.num_samples) if info.num_samples else np.empty(0, dtype)
        except (OSError, ValueError):
            # Said where its hash is compared.
            return None
        self._check_rows(name, rows, info)
        return rows

    def _check_rows(self, name: str, table: NDArray[np.void], info: SplitInfo) -> None:
        """Every row names its shard, a class, and a place inside the shard."""
        assert self.index is not None
        start = 0
        bad = np.empty(0, np.int64)
        for number, shard in enumerate(info.shards):
            rows = table[start : start + shard.num_samples]
            size = np.uint64(shard.num_bytes)
            outside = (
                (rows["shard"] != number)
                | (rows["label"] < 0)
                | (rows["label"] >= len(self.index.classes))
                # Compared without adding, so that a hostile offset cannot wrap around.
                | (rows["offset"] > size)
            )
            outside |= rows["length"] > size - np.minimum(rows["offset"], size)
            if outside.any():
                bad = np.append(bad, np.flatnonzero(outside) + start)
            start += shard.num_samples
        if len(bad):
            first = int(bad[0])
            what = f"{len(bad):,} rows name another shard, no class, or a place outside the shard; the first is {first}"
            self._add("table", name, what, found=tuple(table[first].tolist()))

    # Tars.

    def _tasks(self, tables: Mapping[str, NDArray[np.void] | None], *, decode: bool) -> Iterator[ShardTask]:
        if self.index is None:
            return
        wnids = tuple(info.wnid for info in self.index.classes)
        sizes = frozenset(shard.num_bytes for split in self.index.splits.values() for shard in split.shards)
        for split, info in self.index.splits.items():
            table, start = tables[split], 0
            for shard in info.shards:
                yield ShardTask(
                    path=self.folder / shard.filename,
                    info=shard,
                    split=split,
                    table=info.samples_filename,
                    first_row=start,
                    rows=None if table is None else table[start : start + shard.num_samples],
                    wnids=wnids,
                    imported=self._imported,
                    decode=decode,
                    sizes=sizes,
                )
                start += shard.num_samples

    def _read_tars(self, tasks: list[ShardTask], executor: Executor, progress: Progress) -> list[ShardReport]:
        if self.index is None:
            # Without an index there is nothing to say of samples, but the others may know the hashes.
            for name in sorted(self.tars.difference(self._known)):
                self._compare(name)
            return []

        tasks = [task for task in tasks if task.info.filename not in self._known]

        def read(task: ShardTask, tick: Tick) -> ShardReport:
            return check_shard(task, tick, progress.advance)

        progress.begin("verify", sum(task.info.num_bytes for task in tasks), "bytes")
        try:
            with contextlib.closing(executor.map(read, tasks, tick=lambda: None)) as results:
                reports = list(results)
        finally:
            progress.finish()
        names = {claims[0].sha256: name for name, claims in self.claims.items() if claims}
        for report in reports:
            first, *others = self.claims[report.name]
            if report.sha256 == first.sha256:
                self.problems += report.problems
                self._judge(report.name, report.sha256)
            elif any(claim.sha256 == report.sha256 for claim in others):
                self.problems += [problem for problem in report.problems if problem.kind != "sha256"]
                self._judge(report.name, report.sha256)
            elif report.sha256 in names:
                self._add("other-file", report.name, f"holds the bytes of {names[report.sha256]}")
            else:
                self.problems += report.problems
        for name in sorted(self.tars.difference(self._known, (report.name for report in reports))):
            self._compare(name)
        return reports

    def _find_extra(self) -> None:
        """Tars and tables that nobody speaks of: a reader that takes all files would read them."""
        if self.index is None:
            return
        absent = {problem.file for problem in self.problems if problem.kind == "missing"}
        wanted = {claim.sha256: name for name in absent for claim in self.claims.get(name, ())}
        sizes = {claim.num_bytes for name in absent for claim in self.claims.get(name, ())}
        for name in sorted(self.names - self.claims.keys()):
            if not name.endswith(_READ_BY_OTHERS) or name.startswith("."):
                continue
            what = f"is not in {INDEX_FILENAME}"
            try:
                handle, num_bytes = open_plain(self.folder / name)
                os.close(handle)
                if num_bytes in sizes or (name.endswith(".npy") and None in sizes and num_bytes <= _MAX_TEXT):
                    own = wanted.get(sha256_file(self.folder / name))
                    what += f"; it is {own} under another name" if own else ""
            except (OSError, ValueError) as error:
                what = f"{what}, and {file_problem(name, error).what}"
            self._add("extra", name, what)


def _is_header(header: bytes, num_rows: int, dtype: np.dtype[np.void]) -> bool:
    """Whether a file begins as a one-dimensional table of format 1.0 (NumPy's NEP 1) with such rows."""
    said = {"descr": dtype.descr, "fortran_order": False, "shape": (num_rows,)}
    text = f"{{{''.join(f'{name!r}: {value!r}, ' for name, value in said.items())}}}"
    length = (len(header) - 10).to_bytes(2, "little") if len(header) > 10 else b""
    return header[:10] == b"\x93NUMPY\x01\x00" + length and header[10:].decode("latin-1").strip(" \n") == text


def _stays_inside(name: str) -> bool:
    """Whether a relative name cannot leave the folder, however it is followed."""
    parts = name.split("/")
    return not name.startswith("\\") and all(part not in ("", ".", "..") for part in parts)


def _refuse_linked_parents(folder: Path, name: str) -> None:
    for parent in (folder / name).relative_to(folder).parents:
        if parent != Path() and (folder / parent).is_symlink():
            raise ValueError(parent)


def _claim_of(by: str, output: object) -> Claim | None:
    """What a receipt says of an output."""
    if not isinstance(output, dict) or set(output) != {"num_bytes", "sha256"}:
        return None
    num_bytes, sha256 = output["num_bytes"], output["sha256"]
    if type(num_bytes) is not int or not isinstance(sha256, str) or not _HASH.fullmatch(sha256):
        return None
    return Claim(by, sha256, num_bytes)
