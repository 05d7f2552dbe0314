"""Lists of validation labels: that of Kaggle, and those of Caffe and the development kit that people lay beside a tree.

ImageNet's classes are numbered in two ways. Caffe's labels count the lines of its ``synsets.txt`` from 0; identifiers
of the development kit are those of its ``meta.mat``, from 1 and in another order. Each list is read through the classes
it came with. The numbers in ``ImageSets/CLS-LOC/val.txt`` and ``train_cls.txt`` count lines: they are no labels.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from imgprep.errors import MemberError
from imgprep.layouts import LabelList
from imgprep.records import is_wnid
from imgprep.sources import Member, Source
from imgprep.sources.mat import MemoryBytes, read_variables

MAX_LIST_BYTES: Final = 1 << 26
"""Bytes one list may have; the largest that is read, ``LOC_val_solution.csv`` with all boxes, has 3.2 MB."""

CAFFE_LIST: Final = "val.txt"
CAFFE_CLASSES: Final = "synsets.txt"
DEVKIT_LIST: Final = "ILSVRC2012_validation_ground_truth.txt"
DEVKIT_CLASSES: Final = "meta.mat"
LIST_NAMES: Final = frozenset({CAFFE_LIST, CAFFE_CLASSES, DEVKIT_LIST, DEVKIT_CLASSES})

_MAX_DEPTH: Final = 2
"""Folders between the folder that holds the tree and a list: ``ILSVRC2012_devkit_t12/data/`` is two."""

_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_PREDICTION: Final = re.compile(r"\s*(n\d{8})(?:(?:\s+-?\d+(?:\.\d+)?){4}(?:\s+n\d{8}(?:\s+-?\d+(?:\.\d+)?){4})*)?\s*")
"""``<wnid> <xmin> <ymin> <xmax> <ymax>`` once or more, or a wnid alone as in a shorter copy of the list."""


def read_list(source: Source, member: Member) -> bytes:
    """The bytes of a list.

    Raises:
        MemberError: It is larger than any such list, or damaged.
    """
    if member.num_bytes > MAX_LIST_BYTES:
        raise MemberError(f"{member.name} has {member.num_bytes:,} bytes, more than the limit of {MAX_LIST_BYTES:,}")
    return source.read(member.name)


def decode(content: bytes, where: str) -> str:
    """The text of a list, which may begin with a byte-order mark.

    Raises:
        MemberError: It is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MemberError(f"{where} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def find_label_lists(members: Iterable[Member], prefix: str, source: Source) -> list[LabelList]:
    """Read the lists of Caffe and of the development kit that lie beside a tree, each with its classes beside it.

    Args:
        members: Those whose names, without folders, are in :data:`LIST_NAMES`.
        prefix: What stands before the tree in the names of its members.
        source: Where to read them.

    Raises:
        MemberError: A list or its classes are damaged.
    """
    folders: dict[str, dict[str, Member]] = {}
    for member in members:
        folder, basename = _split(member.name)
        if _is_beside(folder, prefix):
            folders.setdefault(folder, {})[basename] = member
    lists = []
    for _, found in sorted(folders.items()):
        if {CAFFE_LIST, CAFFE_CLASSES} <= found.keys():
            classes, labels = found[CAFFE_CLASSES], found[CAFFE_LIST]
            wnids = parse_synsets(read_list(source, classes), where=classes.name)
            lists.append(parse_caffe(read_list(source, labels), wnids, where=labels.name))
        if {DEVKIT_LIST, DEVKIT_CLASSES} <= found.keys():
            classes, labels = found[DEVKIT_CLASSES], found[DEVKIT_LIST]
            synsets = parse_meta(read_list(source, classes), where=classes.name)
            numbers = {number: synset.wnid for number, synset in synsets.items()}
            lists.append(parse_ground_truth(read_list(source, labels), numbers, where=labels.name))
    return lists


def _split(name: str) -> tuple[str, str]:
    folder, slash, basename = name.rpartition("/")
    return folder + slash, basename


def _is_beside(folder: str, prefix: str) -> bool:
    """Whether a folder holds the tree, or lies little below one that does."""
    parts = folder.split("/")[:-1]
    above = range(max(0, len(parts) - _MAX_DEPTH), len(parts) + 1)
    return any(prefix.startswith("".join(f"{part}/" for part in parts[:depth])) for depth in above)


def collect(rows: Iterable[tuple[int, str, str]], *, where: str) -> LabelList:
    """Make a list of rows; a row may come twice as long as it says the same.

    Args:
        rows: Number of the line, key of the picture, and its wnid.
        where: Name of the list.

    Raises:
        MemberError: It gives one picture two classes.
    """
    labels: dict[str, str] = {}
    repeated = []
    for line, key, wnid in rows:
        if key not in labels:
            labels[key] = wnid
        elif labels[key] == wnid:
            repeated.append(key)
        else:
            raise MemberError(f"{where}, line {line}: {key} is {wnid} here and {labels[key]} on a line before")
    return LabelList(name=where, labels=labels, repeated=repeated)


def parse_solution_list(content: bytes, *, where: str) -> LabelList:
    """Read ``LOC_val_solution.csv``: the first word of ``PredictionString`` is the class.

    Raises:
        MemberError: The header or a row has another form, or an image has two classes.
    """
    return collect(_solution_rows(decode(content, where), where), where=where)


def _solution_rows(text: str, where: str) -> Iterator[tuple[int, str, str]]:
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        header = next(rows, None)
        if header is None or [name.strip() for name in header[:2]] != ["ImageId", "PredictionString"]:
            raise MemberError(f"{where}: expected the header ImageId,PredictionString, got {str(header)[:120]}")
        for row in rows:
            match = _PREDICTION.fullmatch(row[1]) if len(row) == 2 else None
            if match is not None and row[0].strip():
                yield rows.line_num, row[0].strip(), match[1]
            elif row:
                raise MemberError(
                    f"{where}, line {rows.line_num}: expected an ImageId and `<wnid> <xmin> <ymin> <xmax> <ymax> ...`,"
                    f" got {str(row)[:120]}"
                )
    except csv.Error as error:
        raise MemberError(f"{where}, line {rows.line_num}: no CSV ({error})") from None


def parse_synsets(content: bytes, *, where: str) -> Sequence[str]:
    """Read Caffe's ``synsets.txt``: one wnid a line; the line number, from 0, is the label.

    Raises:
        MemberError: A line is no wnid, or comes twice.
    """
    wnids: dict[str, None] = {}
    for number, line in _lines(content, where):
        if not is_wnid(line) or line in wnids:
            raise MemberError(f"{where}, line {number}: expected a new wnid, got {line[:60]!r}")
        wnids[line] = None
    return tuple(wnids)


def parse_caffe(content: bytes, wnids: Sequence[str], *, where: str) -> LabelList:
    """Read Caffe's ``val.txt``: ``<file name> <label>``, one picture a line.

    Args:
        content: The bytes of the list.
        wnids: Its classes, by label.
        where: Its name.

    Raises:
        MemberError: A line has another form or a label that is none, or a picture has two classes. The list of the same
            name in ``ImageSets`` is refused here, as its names have no extension.
    """

    def rows() -> Iterator[tuple[int, str, str]]:
        for number, line in _lines(content, where):
            name, _, label = line.rpartition(" ")
            key = name.strip().rpartition("/")[2].rpartition(".")[0]
            if not key or not _NUMBER.fullmatch(label) or int(label) >= len(wnids):
                raise MemberError(
                    f"{where}, line {number}: expected `<file name> <label below {len(wnids)}>`, got {line[:60]!r}"
                )
            yield number, key, wnids[int(label)]

    return collect(rows(), where=where)


@dataclass(frozen=True, slots=True)
class MetaSynset:
    """A class of ``meta.mat``: its wnid and its names."""

    wnid: str
    words: str


def parse_meta(content: bytes, *, where: str) -> dict[int, MetaSynset]:
    """Read the classes from ``meta.mat`` of the development kit.

    Its 1860 synsets are those of the 1000 classes, numbered 1 to 1000 in an order of its own, and of what is above them
    in WordNet, which have children.

    Returns:
        ``ILSVRC2012_ID`` to class, for synsets without children.

    Raises:
        MemberError: It is damaged or has other fields.
    """
    variables = read_variables(MemoryBytes(content), where=where)
    synsets = variables["synsets"].value() if "synsets" in variables else None
    if not isinstance(synsets, list) or not synsets:
        raise MemberError(f"{where} has no structs `synsets`", "use data/meta.mat of ILSVRC2012_devkit_t12")
    found: dict[int, MetaSynset] = {}
    seen: set[str] = set()
    for place, synset in enumerate(synsets, start=1):
        number, children = _number(synset, "ILSVRC2012_ID"), _number(synset, "num_children")
        wnid, words = synset.get("WNID"), synset.get("words")
        if number is None or children is None or not isinstance(wnid, str) or not isinstance(words, str):
            raise MemberError(f"{where}: synset {place} lacks ILSVRC2012_ID, WNID, words or num_children")
        if children:
            continue
        if number in found or wnid in seen or not is_wnid(wnid) or not words.isprintable():
            raise MemberError(
                f"{where}: synset {place} must have a new ILSVRC2012_ID and a new wnid, got {wnid[:60]!r}"
            )
        found[number] = MetaSynset(wnid, words.strip() or wnid)
        seen.add(wnid)
    return found


def _number(synset: Mapping[str, Any], name: str) -> int | None:
    """A field that is one whole number."""
    value = synset.get(name)
    if isinstance(value, np.ndarray) and value.shape == (1,) and np.isfinite(value[0]) and value[0] == int(value[0]):
        return int(value[0])
    return None


def parse_ground_truth(content: bytes, wnids: Mapping[int, str], *, where: str) -> LabelList:
    """Read ``ILSVRC2012_validation_ground_truth.txt``: line N is the identifier of the class of validation picture N.

    Args:
        content: The bytes of the list.
        wnids: Wnid by identifier, from the development kit's ``meta.mat``.
        where: Its name.

    Raises:
        MemberError: A line is no identifier.
    """

    def rows() -> Iterator[tuple[int, str, str]]:
        for number, line in _lines(content, where):
            wnid = wnids.get(int(line)) if _NUMBER.fullmatch(line) else None
            if wnid is None:
                raise MemberError(f"{where}, line {number}: expected an ILSVRC2012_ID of meta.mat, got {line[:60]!r}")
            yield number, f"ILSVRC2012_val_{number:08d}", wnid

    return collect(rows(), where=where)


def _lines(content: bytes, where: str) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are not blank, stripped."""
    for number, line in enumerate(decode(content, where).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()
