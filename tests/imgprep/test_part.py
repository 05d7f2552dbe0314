"""part: a folder of members and a record that says what they are; nothing else there counts."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.errors import DamagedError, ImgprepError, MemberError
from imgprep.layouts.ilsvrc import is_plain
from imgprep.sources import Member, open_source
from imgprep.sources.part import (
    MEMBERS,
    RECORD,
    ArchiveRecord,
    PartRecord,
    PartSource,
    read_part_record,
    write_part_record,
)
from imgprep.sources.zip_directory import is_safe_name

ARCHIVE = ArchiveRecord(name="a.zip", num_bytes=99, etag='"x"', num_members=3, directory_crc32="0badcafe")
FILES = {"a/one.JPEG": b"one", 'a/t "w", o.xml': b"<two/>", "three.csv": b"\x00" * 100}

NAMES = st.text(min_size=1, max_size=30).filter(lambda name: is_plain(name) and is_safe_name(name))
MEMBERS_BY_NAME = st.dictionaries(NAMES, st.tuples(st.integers(0, 1 << 40), st.integers(0, (1 << 32) - 1)), max_size=20)


def write_part(folder: Path, files: dict[str, bytes] = FILES) -> PartRecord:
    members = {name: Member(name, len(content), zlib.crc32(content)) for name, content in files.items()}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    record = PartRecord(archive=ARCHIVE, requests=({"metadata_only": True},), members=members)
    write_part_record(folder, record)
    return record


@given(members=MEMBERS_BY_NAME)
def test_a_record_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, members: dict[str, tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("part")
    requests: tuple[dict[str, Any], ...] = ({"classes": ["a", "b"], "seed": 3}, {"metadata_only": True})
    listed = {name: Member(name, *numbers) for name, numbers in members.items()}
    record = PartRecord(archive=ARCHIVE, requests=requests, members=listed)
    write_part_record(folder, record)

    assert read_part_record(folder) == record


def test_the_same_record_has_the_same_bytes(tmp_path: Path) -> None:
    record = write_part(tmp_path)
    before = [(tmp_path / name).read_bytes() for name in (RECORD, MEMBERS)]
    members = dict(sorted(record.members.items(), reverse=True))
    write_part_record(tmp_path, PartRecord(archive=ARCHIVE, requests=record.requests, members=members))

    assert [(tmp_path / name).read_bytes() for name in (RECORD, MEMBERS)] == before


def test_a_part_is_a_source_like_any_other(tmp_path: Path) -> None:
    write_part(tmp_path)
    (tmp_path / "a" / "not fetched.JPEG").write_bytes(b"x")
    with open_source(tmp_path) as source:
        assert isinstance(source, PartSource)
        assert {member.name: source.read(member.name) for member in source.members()} == FILES
        with pytest.raises(MemberError, match="has no member a/not fetched"):
            source.read("a/not fetched.JPEG")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"oNe", "its CRC-32 is another one"), (b"one!", "has 4 bytes, was 3"), (None, "No such file")],
)
def test_a_file_that_was_changed_is_noticed(tmp_path: Path, content: bytes | None, said: str) -> None:
    write_part(tmp_path)
    path = tmp_path / "a/one.JPEG"
    path.unlink() if content is None else path.write_bytes(content)
    with open_source(tmp_path) as source, pytest.raises(MemberError, match=f"{said}.*run the same `imgprep fetch`"):
        source.read("a/one.JPEG")


def test_a_folder_without_a_record_has_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_part_record(tmp_path)


def rewrite(folder: Path, table: bytes, **changes: Any) -> None:
    """Another table, and a record that says it is the right one."""
    document = json.loads((folder / RECORD).read_text())
    (folder / MEMBERS).write_bytes(table)
    (folder / RECORD).write_text(
        json.dumps({**document, "members_sha256": hashlib.sha256(table).hexdigest(), **changes})
    )


def test_a_table_that_belongs_to_another_record_is_refused(tmp_path: Path) -> None:
    write_part(tmp_path)
    with (tmp_path / MEMBERS).open("ab") as file:
        file.write(b"x,1,00000000\n")
    with pytest.raises(DamagedError, match=r"fetch\.members\.csv is not the one that fetch\.json was written with"):
        PartSource(tmp_path)


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    write_part(tmp_path)
    rewrite(tmp_path, b"name,num_bytes,crc32\n", version=2)
    with pytest.raises(DamagedError, match="has version 2, this imgprep reads 1"):
        PartSource(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"archive": {"nom": 1}},
        {"archive": []},
        {"requests": 3},
        {"requests": ["x"]},
        {"archive": None},
    ],
)
def test_a_record_that_says_something_else_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_part(tmp_path)
    rewrite(tmp_path, b"name,num_bytes,crc32\n", **changes)
    with pytest.raises(DamagedError, match=r"fetch\.json cannot be read"):
        PartSource(tmp_path)


@pytest.mark.parametrize(
    "table",
    [b"name\nx\n", b"h\nx,one,00000000\n", b"h\nx,1,zz\n", b"h\n\xff,1,0\n", b"h\n" + b"x" * 200_000 + b",1,0\n"],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path, table: bytes) -> None:
    write_part(tmp_path)
    rewrite(tmp_path, table)
    with pytest.raises(DamagedError, match="cannot be read"):
        PartSource(tmp_path)


@given(table=st.binary(max_size=60) | st.text(alphabet='x,"\n0\r', max_size=40).map(str.encode))
def test_no_table_breaks_it(tmp_path_factory: pytest.TempPathFactory, table: bytes) -> None:
    folder = tmp_path_factory.mktemp("part")
    write_part(folder)
    rewrite(folder, table)
    try:
        members = read_part_record(folder).members
    except ImgprepError:
        return
    assert all(name == member.name for name, member in members.items())


@pytest.mark.parametrize("name", ["../../precious.txt", "/etc/hostname", "a/../../b", "a" * 300])
def test_a_table_cannot_name_files_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    write_part(tmp_path)
    rewrite(tmp_path, f"name,num_bytes,crc32\n{name},1,00000000\n".encode())
    with pytest.raises(DamagedError, match="cannot be read"):
        read_part_record(tmp_path)


@pytest.mark.parametrize("wrong", [{"etag": [3]}, {"num_bytes": "9"}, {"num_members": True}, {"name": None}])
def test_an_archive_of_other_types_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    write_part(tmp_path)
    document = json.loads((tmp_path / RECORD).read_text())
    document["archive"] |= wrong
    (tmp_path / RECORD).write_text(json.dumps(document))
    with pytest.raises(DamagedError, match="cannot be read"):
        read_part_record(tmp_path)
