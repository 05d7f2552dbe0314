"""Stage ``index``: list the samples of WebDataset tars that others wrote, so that they can be trained on as they lie.

Each tar is read once, forward: its headers are walked, its pictures are summed, all of it is hashed. Nothing is
unpacked and no tar is changed. What is written is what :mod:`imgprep.index` describes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, get_args

import numpy as np

from imgprep.errors import (
    DamagedError,
    MissingInputError,
    OutputExistsError,
    SourceError,
    SpecError,
    TooManyRejectsError,
    UsageError,
)
from imgprep.executors import Executor, SerialExecutor, Tick
from imgprep.files import atomic_write, locked, sha256_file, write_bytes
from imgprep.index import INDEX_FILENAME, SAMPLE_FIELDS, ClassInfo, ShardIndex, ShardInfo, SplitInfo, read_index
from imgprep.receipts import Action, Receipt, read_receipt
from imgprep.records import Rejected, Split, is_wnid
from imgprep.sources.tar import walk_tar
from imgprep.stats import SILENT, Progress, Stats
from imgprep.tables import read_catalog, write_rejected

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGE_EXTENSIONS: Final = ("jpg", "jpeg", "png", "webp")
"""Members that are taken for the picture of a sample, the first that there is."""

CLASSES: Final = "classes.csv"
REJECTED: Final = "rejected.csv"

_STAGE: Final = "index"
_LOCK: Final = ".index.lock"
_CHUNK: Final = 1 << 20
_MAX_LABEL_MEMBER: Final = 1 << 20
"""Bytes of a member that holds a label: a JSON with a caption and a thousand tags has some ten thousand."""
_MAX_LABEL: Final = 200
_MAX_CLASSES: Final = 100_000
"""More different labels than that are captions or numbers of samples. ImageNet-21k has 21,841 classes."""
_MAX_MEMBERS: Final = 1000
"""Members of one sample: those of a hostile tar would fill the memory."""
_SHOWN: Final = 200
"""Characters of a key in messages and tables; a tar may hold keys of a mebibyte."""
_MAX_PICTURE: Final = (1 << 32) - 1
"""What the column ``length`` of a sample table can say."""

_SPLIT_WORDS: Final[Mapping[str, Split]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_PACKED: Final = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""How files packed with gzip, bzip2, xz and zstd begin."""
_PACKED_SUFFIXES: Final = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_FORMATS: Final = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "webp": b"RIFF"}
_HEAD_BYTES: Final = 8

_MEMBER: Final = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
"""Key and extension of a member, by WebDataset's rule: the base name is cut at its first dot."""
_META: Final = re.compile(r"(?:^|/)__[^/]*__(?:/|$)")
"""Members that WebDataset passes over."""
_INTEGER: Final = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_ROW: Final = struct.Struct("<IQIiI")
"""One row of a sample table; see :data:`imgprep.index.SAMPLE_FIELDS`."""

_AGAIN: Final = "copy or download it again"


@dataclass(frozen=True, kw_only=True)
class ForeignSpec:
    """How to read tars of others.

    Attributes:
        image: Extension of the picture; None takes the first of :data:`IMAGE_EXTENSIONS` that a sample has.
        label: Where the label is: an extension, and for JSON a field after a colon, such as ``json:label``.
        split: The split all tars belong to; None reads it from their names.
        classes: A list of the classes: a CSV such as ``classes.csv``, or a text with one name a line. None takes the
            ``classes.csv`` beside the tars where there is one.
        max_rejects: How many samples may lack a picture or a label before the stage fails.
    """

    image: str | None = None
    label: str = "cls"
    split: Split | None = None
    classes: Path | None = None
    max_rejects: int = 0

    def __post_init__(self) -> None:
        for name, value in (("image", self.image or "jpg"), ("label", self.label.partition(":")[0])):
            if not re.fullmatch(r"[a-z0-9_.-]{1,40}", value) or value.startswith("."):
                raise SpecError(f"{name} must be an extension in lower case, such as jpg or cls, got {value[:60]!r}")
        if self.label.endswith(":"):
            raise SpecError(f"label names no field after the colon: {self.label!r}")
        if self.split is not None and self.split not in get_args(Split):
            raise SpecError(f"split must be one of {', '.join(get_args(Split))}, got {self.split!r}")
        if self.max_rejects < 0:
            raise SpecError(f"max_rejects must be 0 or more, got {self.max_rejects}")

    def to_options(self) -> dict[str, Any]:
        """What decides the index, as JSON values."""
        return {"image": self.image, "label": self.label, "split": self.split}


@dataclass(frozen=True, slots=True)
class TarPlan:
    """One tar to be read: its split, its number in it, and where it lies."""

    split: Split
    number: int
    path: Path


@dataclass(frozen=True, kw_only=True)
class ForeignJob:
    """All that ``index`` will do.

    Attributes:
        action: ``skip`` when it was done before.
        folder: Where the index goes.
        plans: The tars, by split and name.
        classes: The given classes; None when labels say what classes there are.
        receipt: What is asked for.
    """

    action: Action
    folder: Path
    plans: Sequence[TarPlan]
    classes: tuple[ClassInfo, ...] | None
    receipt: Receipt

    @property
    def num_bytes(self) -> int:
        """Size of all tars."""
        return sum(plan.path.stat().st_size for plan in self.plans)


@dataclass(frozen=True, kw_only=True)
class ForeignResult:
    """What ``index`` did. ``index`` is None when it was there before."""

    action: Action
    folder: Path
    stats: Stats
    index: ShardIndex | None
    rejected: Sequence[Rejected] = ()


def plan_index(folder: Path, spec: ForeignSpec, *, out: Path | None = None, overwrite: bool = False) -> ForeignJob:
    """Decide everything about an index over the tars of a folder; writes nothing.

    Args:
        folder: The folder with the tars.
        spec: Options.
        out: Where the index goes, with links to the tars; beside the tars when None.
        overwrite: Replace an index that was made with other options or by another command.

    Raises:
        MissingInputError: There is no tar.
        UsageError: A tar is packed, or its name does not tell its split or cannot stand in an index.
        OutputExistsError: There is another index, and it may not be replaced.
        DamagedError: The list of classes cannot be read.
    """
    plans = _plan_tars(folder, spec)
    listed = spec.classes or next((p for p in [folder / CLASSES] if p.is_file()), None)
    stated = [(plan.path.name, plan.split, *_state(plan.path)) for plan in plans]
    inputs = {"tars": hashlib.sha256(json.dumps(stated).encode()).hexdigest()}
    if listed is not None:
        inputs["classes"] = sha256_file(listed) if listed.is_file() else ""
    receipt = Receipt(stage=_STAGE, inputs=inputs, options=spec.to_options())
    target = out or folder
    return ForeignJob(
        action=_decide(receipt, target, spec, overwrite=overwrite),
        folder=target,
        plans=plans,
        classes=None if listed is None else _read_classes(listed),
        receipt=receipt,
    )


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _decide(receipt: Receipt, target: Path, spec: ForeignSpec, *, overwrite: bool) -> Action:
    made_here = receipt.path(target).exists()
    if (target / INDEX_FILENAME).exists() and not made_here and not overwrite:
        raise OutputExistsError(
            f"{target / INDEX_FILENAME} was not written by `imgprep index`",
            "use --overwrite to replace it, or --out for one elsewhere",
        )
    try:
        action = receipt.decide(target, overwrite=overwrite)
    except OutputExistsError as error:
        raise OutputExistsError(error.what, "use --overwrite to replace it, or --out for another one") from None
    if action == "skip" and int(read_receipt(target, _STAGE)["counts"].get("rejected", 0)) > spec.max_rejects:
        return "run"
    return action


def _plan_tars(folder: Path, spec: ForeignSpec) -> list[TarPlan]:
    if not folder.is_dir():
        raise MissingInputError(f"{folder} is no folder", "name the folder that holds the tars")
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    packed = [name for name in names if name.lower().endswith(_PACKED_SUFFIXES) and not (folder / name).is_dir()]
    if packed:
        raise UsageError(
            f"{folder / packed[0]} is packed: pictures in it have no place of their own",
            "unpack it first, with `gunzip` or the like; pictures hardly shrink, so the tar is about as large",
        )
    tars = [name for name in names if name.lower().endswith(".tar")]
    if not tars:
        raise MissingInputError(
            f"there is no tar in {folder}", "name the folder that holds the tars; those of folders in it do not count"
        )
    plans: list[TarPlan] = []
    counts: Counter[str] = Counter()
    for name in tars:
        if "\\" in name or not name.isprintable():
            raise UsageError(f"{folder / name}: an index cannot hold such a name", "rename the tar")
        _require_file(folder / name)
        split = spec.split or _split_of(name)
        plans.append(TarPlan(split, counts[split], folder / name))
        counts[split] += 1
    return sorted(plans, key=lambda plan: (plan.split, plan.number))


def _require_file(path: Path) -> None:
    """An index that passes over what is called a tar would silently lack its samples."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else "no regular file"
        raise UsageError(f"{path} is called a tar and is {what}", "mend it, move it away or give it another name")


def _split_of(filename: str) -> Split:
    """The split that a file name tells."""
    found = {_SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", filename.lower()) if word in _SPLIT_WORDS}
    if len(found) != 1:
        told = f"tells {len(found)} splits" if found else "does not tell its split"
        raise UsageError(f"the name of {filename} {told}", "say it for all tars with --split train, val or test")
    return found.pop()


def _read_classes(path: Path) -> tuple[ClassInfo, ...]:
    """The classes of a CSV with label, wnid and name, or of a text with one name a line."""
    if path.suffix.lower() == ".csv":
        catalog = read_catalog(path, made_by="imgprep catalog")
        return tuple(ClassInfo(label=s.index, wnid=s.wnid, name=s.name) for s in catalog)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise MissingInputError(f"{path} does not exist", "name a list of classes with --classes") from None
    except UnicodeDecodeError:
        raise DamagedError(f"{path} is not UTF-8 text", "write one class a line") from None
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if not names or not all(names) or len(names) > _MAX_CLASSES:
        raise DamagedError(
            f"{path} is no list of 1 to {_MAX_CLASSES:,} classes: {len(names):,} lines, {names.count('')} empty",
            "write one class a line, in the order of the labels",
        )
    return tuple(
        ClassInfo(label=label, wnid=name if is_wnid(name) else str(label), name=name)
        for label, name in enumerate(names)
    )


class HashedStream:
    """A file read forward and hashed on the way: what is skipped is read, too.

    Args:
        file: The file, at its start.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._position = 0

    def read(self, num_bytes: int, /) -> bytes:
        """Up to ``num_bytes``, fewer at the end."""
        content = self._file.read(num_bytes)
        self._hash.update(content)
        self._position += len(content)
        return content

    def chunks(self, num_bytes: int) -> Iterator[bytes]:
        """The next ``num_bytes``, a mebibyte at a time; fewer where the file ends."""
        while num_bytes > 0 and (chunk := self.read(min(num_bytes, _CHUNK))):
            yield chunk
            num_bytes -= len(chunk)

    def seek(self, offset: int, /) -> int:
        """Skip ahead to ``offset``, or to the end where that comes first."""
        for _ in self.chunks(offset - self._position):
            pass
        return self._position

    def tell(self) -> int:
        """Offset of the next byte."""
        return self._position

    def finish(self) -> str:
        """Skip to the end; SHA-256 of the whole file, in hex."""
        while self.read(_CHUNK):
            pass
        return self._hash.hexdigest()


def split_member(name: str) -> tuple[str, str] | None:
    """Key and extension of a member as WebDataset tells them; None for members that are of no sample."""
    match = _MEMBER.fullmatch(name)
    return None if match is None or _META.search(name) else (match[1], match[2].lower())


def _key_digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _listed(extensions: Iterable[str]) -> str:
    return ", ".join(islice(sorted(extensions), 8))


@dataclass(slots=True)
class _Sample:
    """The members of one key that lie together: where they are, and what was read of them."""

    key: str
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    checksums: dict[str, int] = field(default_factory=dict)
    heads: dict[str, bytes] = field(default_factory=dict)
    label: bytes | None = None
    passed_over: set[str] = field(default_factory=set)

    def why_not(self) -> str:
        """Why a member that is looked for is none of those read."""
        if self.passed_over:
            return f"its members {_listed(self.passed_over)} are links or sparse, and have no bytes of their own"
        return f"its members are {_listed(self.places)}"


@dataclass(frozen=True, kw_only=True)
class IndexedTar:
    """What one tar holds.

    Attributes:
        info: What the index says of it.
        rows: Its rows of the sample table, packed; a label is a place in ``labels``.
        keys: Digest of the key of every sample, also of the rejected.
        labels: The different labels, as they were written.
        rejected: Samples that cannot be used.
        stats: Pictures by format, and members of no sample as ``ignored``.
    """

    info: ShardInfo
    rows: bytes
    keys: NDArray[np.uint64]
    labels: tuple[str, ...]
    rejected: tuple[Rejected, ...]
    stats: Stats


class _Reject(Exception):  # noqa: N818  # never leaves this module: the reason why a sample cannot be used
    """The reason why a sample cannot be used."""


@dataclass(frozen=True, slots=True)
class _GivenClasses:
    """A list of classes: how many there are, and label by name."""

    count: int
    by_name: Mapping[str, int]


class _TarReader:
    """Reads one tar, sample by sample."""

    def __init__(self, plan: TarPlan, spec: ForeignSpec, classes: _GivenClasses | None) -> None:
        self._plan = plan
        self._spec = spec
        self._classes = classes
        self._label_extension, _, self._label_field = spec.label.partition(":")
        self._images = IMAGE_EXTENSIONS if spec.image is None else (spec.image,)
        self._rows = bytearray()
        self._keys = bytearray()
        self._labels: dict[str, int] = {}
        self._rejected: list[Rejected] = []
        self._stats = Stats()
        self._sample = _Sample("")

    def read(self, tick: Tick, progress: Progress) -> IndexedTar:
        """Read all of it.

        Raises:
            SourceError: It is damaged or cut off.
            TooManyRejectsError: It holds more samples that cannot be used than are allowed.
        """
        path = self._plan.path
        with path.open("rb") as file:
            _refuse_packed(file, path)
            size = os.fstat(file.fileno()).st_size
            stream = HashedStream(file)
            told = 0
            for name, offset, length in walk_tar(stream, path, passed_over=self._pass_over):
                if offset + length > size:
                    raise SourceError(
                        f"{path} is cut off: member {name} ends at byte {offset + length:,}, the tar has {size:,}",
                        _AGAIN,
                    )
                parts = split_member(name)
                if parts is None:
                    self._stats.count("ignored")
                    continue
                key, extension = parts
                if key != self._sample.key:
                    self._begin(key)
                    tick()
                    progress.advance(offset - told)
                    told = offset
                self._add(self._sample, extension, stream, offset, length)
            self._begin("")
            sha256 = stream.finish()
            progress.advance(stream.tell() - told)
        if stream.tell() != size:
            raise SourceError(f"{path} changed while it was read", "run the same command again")
        return IndexedTar(
            info=ShardInfo(filename=path.name, num_samples=len(self._rows) // _ROW.size, num_bytes=size, sha256=sha256),
            rows=bytes(self._rows),
            keys=np.frombuffer(bytes(self._keys), dtype="<u8"),
            labels=tuple(self._labels),
            rejected=tuple(self._rejected),
            stats=self._stats,
        )

    def _begin(self, key: str) -> None:
        self._settle(self._sample)
        self._sample = _Sample(key)

    def _pass_over(self, name: str) -> None:
        """A link or a sparse file: a sample that needs it must not be lost without a word."""
        parts = split_member(name)
        if parts is None:
            self._stats.count("ignored")
            return
        if parts[0] != self._sample.key:
            self._begin(parts[0])
        if len(self._sample.passed_over) < _MAX_MEMBERS:
            self._sample.passed_over.add(parts[1])

    def _add(self, sample: _Sample, extension: str, stream: HashedStream, offset: int, length: int) -> None:
        if extension in sample.places:
            raise SourceError(
                f"{self._plan.path}: sample {sample.key[:_SHOWN]} has two members .{extension[:_SHOWN]},"
                f" at bytes {sample.places[extension][0]:,} and {offset:,}",
                "make the tar again",
            )
        sample.places[extension] = (offset, length)
        if len(sample.places) > _MAX_MEMBERS:
            raise SourceError(
                f"{self._plan.path}: sample {sample.key[:_SHOWN]} has more than {_MAX_MEMBERS:,} members",
                "make the tar again, with a key for each sample",
            )
        if extension in self._images:
            checksum, head = 0, b""
            for chunk in stream.chunks(length):
                checksum = zlib.crc32(chunk, checksum)
                head = head or chunk[:_HEAD_BYTES]
            sample.checksums[extension], sample.heads[extension] = checksum, head
        elif extension == self._label_extension and length <= _MAX_LABEL_MEMBER:
            sample.label = stream.read(length)

    def _settle(self, sample: _Sample) -> None:
        """Turn a sample into a row, or into a reason why not."""
        if not sample.key:
            return
        if sample.places:
            self._keys += _key_digest(sample.key).to_bytes(8, "little")
        try:
            extension = self._picture(sample)
            label = self._label(sample)
        except _Reject as reason:
            self._reject(sample.key, str(reason))
            return
        offset, length = sample.places[extension]
        number = self._labels.setdefault(label, len(self._labels))
        if len(self._labels) > _MAX_CLASSES:
            raise DamagedError(
                f"{self._plan.path}: more than {_MAX_CLASSES:,} different labels in .{self._spec.label}",
                "name the member that holds the class with --label",
            )
        self._rows += _ROW.pack(self._plan.number, offset, length, number, sample.checksums[extension])
        head = sample.heads[extension]
        self._stats.count(_format_of(head))

    def _reject(self, key: str, reason: str) -> None:
        self._rejected.append(_reject_of(key, self._plan, reason))
        _check_rejects(self._rejected, self._spec)

    def _picture(self, sample: _Sample) -> str:
        if ".." in sample.key.split("/") or sample.key.startswith("/"):
            raise _Reject("its name leaves the folder it would be unpacked to")
        extension = next((name for name in self._images if name in sample.places), None)
        if extension is None:
            advice = "" if sample.passed_over else "; name that of the picture with --image"
            raise _Reject(f"no picture: {sample.why_not()}{advice}"[:400])
        length = sample.places[extension][1]
        if not 0 < length <= _MAX_PICTURE:
            raise _Reject("its picture is empty" if not length else f"its picture has {length:,} bytes")
        return extension

    def _label(self, sample: _Sample) -> str:
        """The label as text; as a number where the classes are known."""
        if sample.label is None:
            there = sample.places.get(self._label_extension)
            if there:
                raise _Reject(f"its label has {there[1]:,} bytes")
            why = sample.why_not() if sample.passed_over else f"it has no .{self._label_extension}"
            raise _Reject(f"no label: {why}"[:400])
        text = self._label_text(sample.label)
        number = int(text) if _INTEGER.fullmatch(text) else None
        if number is not None and not 0 <= number < _MAX_CLASSES:
            raise _Reject(f"its label is {number}, expected 0 to {_MAX_CLASSES - 1}")
        if self._classes is None:
            return text
        if number is None or number >= self._classes.count:
            number = self._classes.by_name.get(text)
        if number is None:
            raise _Reject(f"its label is {text!r}, which is not in the list of classes")
        return str(number)

    def _label_text(self, content: bytes) -> str:
        try:
            value: Any = content.decode("utf-8")
            if self._label_field:
                document = json.loads(value)
                if not isinstance(document, dict) or self._label_field not in document:
                    raise _Reject(f"its .{self._label_extension} has no field {self._label_field}")
                value = document[self._label_field]
        except (ValueError, RecursionError):
            raise _Reject(f"its .{self._label_extension} cannot be read") from None
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise _Reject(f"its label is a {type(value).__name__}, expected a number or a text")
        text = value.strip() if isinstance(value, str) else f"{value:d}" if abs(value) < 1 << 63 else ""
        if not text or len(text) > _MAX_LABEL or not text.isprintable():
            raise _Reject(f"its label is no printable text of 1 to {_MAX_LABEL} characters")
        return text


def _format_of(head: bytes) -> str:
    return next((name for name, magic in _FORMATS.items() if head.startswith(magic)), "other_format")


def _reject_of(key: str, plan: TarPlan, reason: str) -> Rejected:
    # Bytes of a name that are no UTF-8 cannot go to a table.
    key, reason = (text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in (key, reason))
    return Rejected(key[:_SHOWN], plan.split, plan.path.name, reason)


def _refuse_packed(file: IO[bytes], path: Path) -> None:
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    if head.startswith(_PACKED):
        raise UsageError(f"{path} is packed, whatever its name says", "unpack it first, with `gunzip` or the like")


def _check_rejects(rejected: Sequence[Rejected], spec: ForeignSpec) -> None:
    if len(rejected) > spec.max_rejects:
        first = rejected[0]
        raise TooManyRejectsError(
            f"samples that cannot be used: {len(rejected)} so far, allowed: {spec.max_rejects};"
            f" first {first.key} in {first.path}: {first.reason}",
            f"allow more with --max-rejects; {REJECTED} then lists all of them",
        )


def index_tars(
    job: ForeignJob, spec: ForeignSpec, *, executor: Executor | None = None, progress: Progress = SILENT
) -> ForeignResult:
    """Read the tars of a job and write the index over them.

    Args:
        job: From :func:`plan_index`, with the same spec.
        spec: Options.
        executor: How to read several tars; one after another when None. The result does not depend on it.
        progress: Told of the bytes.

    Raises:
        SourceError: A tar is damaged or cut off.
        DamagedError: Two samples of a split have the same key, or no sample can be used.
        TooManyRejectsError: More samples than allowed cannot be used; nothing is written.
        LockedError: Another process makes an index here.
    """
    if job.action == "skip":
        return ForeignResult(action="skip", folder=job.folder, stats=Stats(), index=None)
    job.folder.mkdir(parents=True, exist_ok=True)
    with locked(job.folder / _LOCK, holder="imgprep index"):
        tars = _read_tars(job, spec, executor or SerialExecutor(), progress)
        for split in sorted({plan.split for plan in job.plans}):
            chosen = [(plan.path, tar) for plan, tar in zip(job.plans, tars, strict=True) if plan.split == split]
            _check_keys(split, [path for path, _ in chosen], [tar.keys for _, tar in chosen])
        tars = _reject_words(job, tars, spec)
        rejected = [entry for tar in tars for entry in tar.rejected]
        classes, numbers = _number_labels(job.classes, {label for tar in tars for label in tar.labels})
        tables = {
            split: np.concatenate([_table(tar, numbers) for tar in _of_split(job, tars, split)])
            for split in sorted({plan.split for plan in job.plans})
        }
        for split, table in tables.items():
            if not len(table):
                raise DamagedError(
                    f"not one sample of the split {split} can be used; {len(rejected)} rejected in all",
                    "look at the members with `tar -tvf` and name picture and label with --image and --label",
                )
        stats = sum((tar.stats for tar in tars), Stats({"rejected": len(rejected), "shards": len(tars)}))
        for split, table in tables.items():
            stats.count(split, len(table))
            stats.count("out", len(table))
        index = _publish(job, spec, tars, tables, classes, rejected, stats)
    return ForeignResult(action="run", folder=job.folder, stats=stats, index=index, rejected=rejected)


def _read_tars(job: ForeignJob, spec: ForeignSpec, executor: Executor, progress: Progress) -> list[IndexedTar]:
    known = None if job.classes is None else _GivenClasses(len(job.classes), _class_lookup(job.classes))
    tars: list[IndexedTar] = []
    rejected: list[Rejected] = []
    progress.begin(_STAGE, job.num_bytes, "bytes")
    try:
        results = executor.map(
            lambda plan, tick: _TarReader(plan, spec, known).read(tick, progress), job.plans, tick=lambda: None
        )
        with contextlib.closing(results):
            for tar in results:
                tars.append(tar)
                rejected += tar.rejected
                _check_rejects(rejected, spec)
    finally:
        progress.finish()
    return tars


def _of_split(job: ForeignJob, tars: Sequence[IndexedTar], split: Split) -> list[IndexedTar]:
    return [tar for plan, tar in zip(job.plans, tars, strict=True) if plan.split == split]


def _class_lookup(classes: Sequence[ClassInfo]) -> dict[str, int]:
    """Label by wnid, name and short name; names that several classes share lead nowhere."""
    found: dict[str, int] = {}
    shared: set[str] = set()
    for info in classes:
        for text in {info.wnid, info.name, info.short_name} - {""}:
            if found.setdefault(text, info.label) != info.label:
                shared.add(text)
    return {text: label for text, label in found.items() if text not in shared}


def _number_labels(
    classes: tuple[ClassInfo, ...] | None, texts: set[str]
) -> tuple[tuple[ClassInfo, ...], dict[str, int]]:
    """The classes, and the number of each label that was found.

    Without a list of classes, labels that are all numbers are these numbers; else each is a class, in the order of its
    name.
    """
    if classes is None and not all(map(_INTEGER.fullmatch, texts)):
        if len(texts) > _MAX_CLASSES:
            raise DamagedError(
                f"{len(texts):,} different labels, expected {_MAX_CLASSES:,} or fewer",
                "name the member that holds the class with --label",
            )
        names = sorted(texts)
        made = tuple(ClassInfo(label=label, wnid=name, name=name) for label, name in enumerate(names))
        return made, {name: label for label, name in enumerate(names)}
    numbers = {text: int(text) for text in texts}
    if classes is None:
        count = max(numbers.values(), default=-1) + 1
        classes = tuple(ClassInfo(label=label, wnid=str(label), name=str(label)) for label in range(count))
    return classes, numbers


def _reject_words(job: ForeignJob, tars: list[IndexedTar], spec: ForeignSpec) -> list[IndexedTar]:
    """Where most samples have a number for a label, a word is a mistake, and must not number all classes anew."""
    total = sum(tar.info.num_samples for tar in tars)
    words = sum(int(np.count_nonzero(_has_word(tar))) for tar in tars)
    if job.classes is not None or not 0 < words < total / 2:
        return tars
    made: list[IndexedTar] = []
    rejected = [entry for tar in tars for entry in tar.rejected]
    for plan, tar in zip(job.plans, tars, strict=True):
        made.append(_without_words(plan, tar, rejected, spec) if _has_word(tar).any() else tar)
    return made


def _rows(tar: IndexedTar) -> NDArray[np.void]:
    return np.frombuffer(tar.rows, dtype=list(SAMPLE_FIELDS))


def _has_word(tar: IndexedTar) -> NDArray[np.bool_]:
    """For each row of a tar, whether its label is no number."""
    words = np.array([_INTEGER.fullmatch(label) is None for label in tar.labels], dtype=bool)
    return words.take(_rows(tar)["label"])


def _without_words(plan: TarPlan, tar: IndexedTar, rejected: list[Rejected], spec: ForeignSpec) -> IndexedTar:
    """A tar less the samples with a word for a label. Rows have no keys: its headers are walked again."""
    table, has_word = _rows(tar), _has_word(tar)
    wanted = dict(zip(table["offset"][has_word].tolist(), table["label"][has_word].tolist(), strict=True))
    mine, formats = [], Counter[str]()
    with plan.path.open("rb") as file:
        for name, offset, _ in walk_tar(file, plan.path):
            if offset not in wanted or (parts := split_member(name)) is None:
                continue
            reason = f"label {tar.labels[wanted[offset]]!r} is no number as the others are; --classes makes it a class"
            mine.append(_reject_of(parts[0], plan, reason))
            rejected.append(mine[-1])
            _check_rejects(rejected, spec)
            formats[_format_of(file.read(_HEAD_BYTES))] -= 1
    kept = [place for place, label in enumerate(tar.labels) if _INTEGER.fullmatch(label)]
    places = np.zeros(len(tar.labels), dtype="<i4")
    places[kept] = np.arange(len(kept))
    rest = table[~has_word]
    rest["label"] = places[rest["label"]]
    return replace(
        tar,
        info=replace(tar.info, num_samples=len(rest)),
        rows=rest.tobytes(),
        labels=tuple(tar.labels[place] for place in kept),
        rejected=(*tar.rejected, *mine),
        stats=tar.stats + Stats(formats),
    )


def _table(tar: IndexedTar, numbers: Mapping[str, int]) -> NDArray[np.void]:
    table = _rows(tar).copy()
    places = np.array([numbers[label] for label in tar.labels], dtype="<i4")
    table["label"] = places[table["label"]] if len(table) else table["label"]
    return table


def _check_keys(split: str, paths: Sequence[Path], digests: Sequence[NDArray[np.uint64]]) -> None:
    """Check that no key comes twice in a split; within one tar that is also a sample whose members lie apart."""
    joined = np.concatenate(digests)
    owners = np.repeat(np.arange(len(paths)), [len(part) for part in digests])
    order = np.argsort(joined, kind="stable")
    twice = np.flatnonzero(joined[order][1:] == joined[order][:-1])
    for place in twice.tolist():
        suspects = [paths[owners[order[place]]], paths[owners[order[place + 1]]]]
        found: dict[str, list[str]] = {}
        for path in dict.fromkeys(suspects):
            for key, offset in _sample_starts(path):
                if _key_digest(key) == int(joined[order[place]]):
                    found.setdefault(key, []).append(f"{path.name} at byte {offset:,}")
        # Digests of different keys may be the same.
        for key, places in found.items():
            if len(places) > 1:
                raise DamagedError(
                    f"sample {key[:_SHOWN]} is twice in the split {split}: in {places[0]} and in {places[1]}",
                    "take one of the tars away or make them again; members of one sample must lie together",
                )


def _sample_starts(path: Path) -> Iterator[tuple[str, int]]:
    """Key of each sample of a tar, and where the content of its first member starts."""
    last = ""
    with path.open("rb") as file:
        for name, offset, _ in walk_tar(file, path):
            parts = split_member(name)
            if parts is not None and parts[0] != last:
                last = parts[0]
                yield last, offset


def _publish(
    job: ForeignJob,
    spec: ForeignSpec,
    tars: Sequence[IndexedTar],
    tables: Mapping[Split, NDArray[np.void]],
    classes: tuple[ClassInfo, ...],
    rejected: Sequence[Rejected],
    stats: Stats,
) -> ShardIndex:
    """Write tables, rejects and, last, the index: without it the rest does not count."""
    folder = job.folder
    _unlink_tars(job)
    _link_tars(job)
    (folder / INDEX_FILENAME).unlink(missing_ok=True)
    with contextlib.suppress(MissingInputError, DamagedError):
        for name in read_receipt(folder, _STAGE)["outputs"]:
            if name.endswith(".samples.npy") and "/" not in name:
                (folder / name).unlink(missing_ok=True)
    splits: dict[str, SplitInfo] = {}
    for split, table in tables.items():
        filename = f"{split}.samples.npy"
        with atomic_write(folder / filename) as file:
            np.save(file, table, allow_pickle=False)
        splits[split] = SplitInfo(
            num_samples=len(table),
            samples_filename=filename,
            samples_sha256=sha256_file(folder / filename),
            shards=tuple(tar.info for tar in _of_split(job, tars, split)),
        )
    index = ShardIndex(
        classes=classes,
        splits=splits,
        spec={"imported": True, **spec.to_options()},
        provenance={"source": {"name": job.plans[0].path.resolve().parent.name, "kind": "webdataset"}},
    )
    write_rejected(folder / REJECTED, rejected)
    write_bytes(folder / INDEX_FILENAME, index.to_json().encode())
    tables_written = [info.samples_filename for info in splits.values()]
    job.receipt.write(folder, [INDEX_FILENAME, REJECTED, *tables_written], stats.to_dict())
    return index


def _unlink_tars(job: ForeignJob) -> None:
    """Remove links that an index of ours made here and this one does not name: readers would take them for shards."""
    if not job.receipt.path(job.folder).exists() or any(_lies_in(plan.path, job.folder) for plan in job.plans):
        return
    with contextlib.suppress(MissingInputError, DamagedError):
        old = read_index(job.folder)
        named = {shard.filename for split in old.splits.values() for shard in split.shards}
        for name in named - {plan.path.name for plan in job.plans}:
            if "imported" in old.spec and (job.folder / name).is_symlink():
                (job.folder / name).unlink()


def _lies_in(path: Path, folder: Path) -> bool:
    return path.parent.samefile(folder)


def _link_tars(job: ForeignJob) -> None:
    """Where the index goes elsewhere, link the tars there: an index names files of its own folder."""
    for plan in job.plans:
        link, target = job.folder / plan.path.name, plan.path.resolve()
        if link.is_symlink() and link.resolve() != target:
            link.unlink()
        if not link.exists():
            link.symlink_to(target)
        elif not link.samefile(target):
            raise OutputExistsError(f"{link} is another file than {target}", "choose another --out")
