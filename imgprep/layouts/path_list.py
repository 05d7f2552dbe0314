"""A CSV beside the pictures that says for each where it lies, what it shows, and which split it is in."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Final

from imgprep.errors import DamagedError, MemberError, SourceError
from imgprep.layouts import ImageMember, LabelList, Listing
from imgprep.layouts.ilsvrc import is_plain
from imgprep.layouts.imagefolder import SPLIT_FOLDERS, ImageFolderLayout
from imgprep.layouts.naming import (
    EXTENSIONS,
    class_id,
    has_extension,
    is_imagenet_name,
    is_junk,
    is_picture,
    make_catalog,
    make_key,
    read_names,
    read_text,
    tell_apart,
)
from imgprep.records import Split
from imgprep.sources import Member, Source

LABELS: Final = "labels.csv"
"""The name that makes a CSV the list whatever else is there."""

_OTHER_CSVS: Final = frozenset({"noisy_imagenette.csv", "noisy_imagewoof.csv"})


class PathListLayout:
    """``labels.csv`` with the columns ``path`` (or ``filename``), ``label`` and, if wanted, ``split``."""

    name = "path-list"
    tree = f"pictures and a CSV path,label[,split], called {LABELS} or the only one there"

    def matches(self, members: Sequence[Member]) -> bool:
        """Whether there is a ``labels.csv``, or one CSV beside pictures that do not lie in class folders."""
        lists = _lists(members)
        if not lists or not any(is_picture(member.name) for member in members):
            return False
        named = any(_basename(member) == LABELS for member in lists)
        return named or (len(lists) == 1 and not ImageFolderLayout().matches(members))

    def mount(self, source: Source) -> Source:
        """Nothing to do."""
        return source

    def scan(self, source: Source) -> Listing:
        """List what the CSV names; paths are relative to it. Classes are its labels in the order of their characters.

        The key of a picture is its path without the extension; see :func:`imgprep.layouts.naming.make_key` for what is
        no key then, and :func:`imgprep.layouts.naming.tell_apart` for keys that are the same. ImageNet's own file names
        stay.

        Raises:
            SourceError: There is no CSV, or several, or two pictures have one key all the same.
            MemberError: A row has another form; the message names its line.
        """
        members = source.members()
        chosen = _choose(members, source)
        folder = chosen.name.removesuffix(_basename(chosen))
        by_path = {
            _composed(m.name.removeprefix(folder)): m for m in members if m.name.startswith(folder) and is_plain(m.name)
        }
        found = _read_rows(read_text(source, chosen), chosen.name, by_path, source)
        images, path_keys = tell_apart(found, folder, source.path)
        wnids = sorted({image.wnid for image in images if image.wnid})
        listed = {image.member.name for image in images}
        val = {image.key: image.wnid for image in images if image.split == "val"}
        return Listing(
            catalog=make_catalog(wnids, read_names(source, members, folder, wnids)),
            images=images,
            annotations=(),
            label_lists=[LabelList(name=chosen.name, labels=val)] if val else (),
            ignored=[m.name for m in members if m.name not in listed and is_picture(m.name)],
            path_keys=path_keys,
        )


def _basename(member: Member) -> str:
    return member.name.rsplit("/", 1)[-1]


def _lists(members: Sequence[Member]) -> list[Member]:
    """The CSV files that may be the list."""
    return [
        member
        for member in members
        if member.name.lower().endswith(".csv") and not is_junk(member.name) and _basename(member) not in _OTHER_CSVS
    ]


def _choose(members: Sequence[Member], source: Source) -> Member:
    lists = _lists(members)
    named = [member for member in lists if _basename(member) == LABELS]
    chosen = named or lists
    if not chosen:
        raise SourceError(f"{source.path} holds no CSV with the columns path,label", f"write one, called {LABELS}")
    if len(chosen) > 1:
        shown = ", ".join(member.name for member in chosen[:3])
        raise SourceError(
            f"{source.path} holds {len(chosen)} CSV files that may be the list: {shown}",
            _or_folders("keep one of them" if named else f"call the one with the columns path,label {LABELS}", members),
        )
    return chosen[0]


def _or_folders(advice: str, members: Sequence[Member]) -> str:
    """The advice, and where there are class folders, that these can be taken instead."""
    folders = "`--layout imagefolder` takes the folders for classes" if ImageFolderLayout().matches(members) else ""
    return ", or: ".join(filter(None, (advice, folders)))


def _read_rows(text: str, where: str, by_path: Mapping[str, Member], source: Source) -> list[ImageMember]:
    """The pictures a list names.

    Args:
        text: The list.
        where: Its name.
        by_path: What lies beside it, by path.
        source: What it lies in, for advice.
    """
    images: list[ImageMember] = []
    lines: dict[str, int] = {}
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = _columns(next(rows, []), where, source)
        for row in rows:
            if not row:
                continue
            line = rows.line_num
            try:
                image = _row(row, columns, by_path, source)
            except DamagedError as error:
                raise MemberError(f"{where}, line {line}: {error.what}", error.advice) from None
            if (before := lines.setdefault(image.member.name, line)) != line:
                raise MemberError(f"{where}, line {line}: {image.member.name} was on line {before} already")
            images.append(image)
    except csv.Error as error:
        raise MemberError(f"{where}, line {rows.line_num}: no CSV ({error})") from None
    if not images:
        raise MemberError(f"{where} lists no picture")
    return images


def _columns(header: Sequence[str], where: str, source: Source) -> Mapping[str, int]:
    """Places of the columns ``path``, ``label`` and, where it is there, ``split``."""
    found: dict[str, int] = {}
    for place, title in enumerate(header):
        name = title.strip().casefold()
        name = "path" if name == "filename" else name
        if name in ("path", "label", "split"):
            if name in found:
                raise MemberError(f"{where}, line 1: two columns {name}, in {','.join(header)[:120]!r}")
            found[name] = place
    if not {"path", "label"} <= found.keys():
        raise MemberError(
            f"{where}, line 1: expected the columns path (or filename) and label, got {','.join(header)[:120]!r}",
            _or_folders("", source.members()),
        )
    return found


def _row(row: Sequence[str], columns: Mapping[str, int], by_path: Mapping[str, Member], source: Source) -> ImageMember:
    if len(row) <= max(columns.values()):
        raise MemberError(f"{len(row)} fields, expected {max(columns.values()) + 1} or more")
    path = _composed(row[columns["path"]].removeprefix("./"))
    split = _split(row[columns["split"]].strip() if "split" in columns else "")
    if not path:
        raise MemberError("the path is empty")
    if path.startswith("/") or ".." in path.split("/") or "\\" in path:
        raise MemberError(
            f"the path {path[:120]!r} is not one below the folder of the list",
            "give it relative to the list, with / between folders",
        )
    member = by_path.get(path)
    if member is None:
        links = "; symbolic links are followed only with `imgprep fetch --from PATH --follow-links`"
        raise MemberError(
            f"there is no file {path[:120]!r} beside the list",
            "paths are relative to the list" + (links if source.kind == "directory" else ""),
        )
    if not has_extension(path):
        raise MemberError(f"{path[:120]!r} is no picture: known extensions are {', '.join(EXTENSIONS)}")
    label = row[columns["label"]].strip()
    if not label and split != "test":
        raise MemberError(f"the label of {path[:120]!r} is empty", "only pictures of the split test may be without")
    wnid = class_id(label, where=path)
    folder, slash, basename = path.rpartition("/")
    stem = basename.rpartition(".")[0] or basename
    return ImageMember(stem if is_imagenet_name(stem) else make_key(folder + slash + stem), split, member, wnid)


def _composed(text: str) -> str:
    """The same text with composed accents: a Mac lists names with other bytes than people type."""
    return unicodedata.normalize("NFC", text)


def _split(text: str) -> Split:
    split = SPLIT_FOLDERS.get(text.casefold() or "train")
    if split is None:
        raise MemberError(f"the split {text[:60]!r} is none of {', '.join(SPLIT_FOLDERS)}")
    return split
