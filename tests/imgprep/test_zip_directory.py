"""The directory of a zip as arrays: equal to what zipfile reads; hostile bytes are refused; ImageNet's is small."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from imgprep.errors import MemberError, SourceError
from imgprep.sources.zip_directory import (
    TAIL_BYTES,
    DirectoryPlace,
    DirectoryReader,
    MemberChecker,
    TailTooShort,
    ZipDirectory,
    ZipMembers,
    check_readable,
    find_directory,
    find_unreadable,
    is_safe_name,
    member_content,
)

SIGNATURES = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x07")


@dataclass(frozen=True, kw_only=True)
class Entry:
    name: str
    content: bytes = b""
    method: int = zipfile.ZIP_STORED
    extra: bytes = b""
    comment: bytes = b""
    zip64: bool = False


class Pipe(io.RawIOBase):
    """A file that cannot seek, so that zipfile writes data descriptors."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def writable(self) -> bool:
        return True

    def write(self, content: bytes) -> int:  # type: ignore[override]
        return self.file.write(content)


def write(entries: list[Entry], *, comment: bytes = b"", seekable: bool = True) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file if seekable else Pipe(file), "w") as archive:  # type: ignore[arg-type]
        archive.comment = comment
        for entry in entries:
            info = zipfile.ZipInfo(entry.name)
            info.compress_type, info.extra, info.comment = entry.method, entry.extra, entry.comment
            with archive.open(info, "w", force_zip64=entry.zip64) as member:
                member.write(entry.content)
    return file.getvalue()


def read(archive: bytes, *, cuts: list[int] | None = None) -> ZipDirectory:
    tail = archive[-TAIL_BYTES:]
    try:
        place = find_directory(tail, archive_bytes=len(archive), where="a.zip")
    except TailTooShort as short:
        place = find_directory(archive[-short.num_bytes :], archive_bytes=len(archive), where="a.zip")
    reader = DirectoryReader(place, where="a.zip")
    content = archive[place.offset : place.offset + place.num_bytes]
    ends = sorted(cut % (len(content) + 1) for cut in cuts or [])
    for start, end in zip([0, *ends], [*ends, len(content)], strict=True):
        reader.feed(memoryview(content)[start:end])
    return reader.finish()


def rows(directory: ZipDirectory) -> list[tuple[object, ...]]:
    columns = (
        directory.names(slice(None)),
        directory.offset.tolist(),
        directory.packed.tolist(),
        directory.num_bytes.tolist(),
        directory.crc32.tolist(),
        directory.method.tolist(),
        directory.flags.tolist(),
        directory.end.tolist(),
    )
    return list(zip(*columns, strict=True))


def content_of(archive: bytes, directory: ZipDirectory, index: int) -> bytes:
    return member_content(
        memoryview(archive)[int(directory.offset[index]) : int(directory.end[index])],
        name=directory.name(index),
        packed=int(directory.packed[index]),
        num_bytes=int(directory.num_bytes[index]),
        crc32=int(directory.crc32[index]),
        method=int(directory.method[index]),
        flags=int(directory.flags[index]),
        where="a.zip",
    )


def check_all(archive: bytes, directory: ZipDirectory, *, piece: int) -> MemberChecker:
    order = np.argsort(directory.offset)
    checker = MemberChecker(directory, order, where="a.zip")
    start = int(directory.offset.min()) if len(directory) else 0
    for at in range(start, len(archive), piece):
        checker.feed(memoryview(archive)[at : at + piece])
    checker.finish()
    return checker


def assert_as_zipfile(archive: bytes, directory: ZipDirectory) -> None:
    try:
        opened = zipfile.ZipFile(io.BytesIO(archive))
    except zipfile.BadZipFile:
        # It takes the end of a member's comment for a zip64 locator: see the test of that name.
        reject()
    with opened as other:
        infos = [info for info in other.infolist() if not info.is_dir()]
        starts = sorted([*(info.header_offset for info in other.infolist()), other.start_dir])
        assert rows(directory) == [
            (
                info.filename,
                info.header_offset,
                info.compress_size,
                info.file_size,
                info.CRC,
                info.compress_type,
                info.flag_bits,
                next(start for start in starts if start > info.header_offset),
            )
            for info in infos
        ]
        for index, info in enumerate(infos):
            assert directory.find(info.filename) == index
            assert content_of(archive, directory, index) == other.read(info)
    folders = directory.folders()
    for name, folder in zip(directory.names(slice(None)), directory.folder, strict=True):
        assert folders[folder] == name[: name.rfind("/") + 1]


NAMES = st.one_of(
    st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=30),
    st.text("ab/é€" + SIGNATURES[0].decode(), min_size=1, max_size=30),
    st.builds("train/n{:08d}/n_{}.JPEG".format, st.integers(0, 3), st.integers(0, 99_999)),
).filter(lambda name: "\0" not in name)
EXTRAS = st.lists(
    st.tuples(st.integers(2, 0x7000), st.binary(max_size=12) | st.sampled_from(SIGNATURES)), max_size=3
).map(lambda fields: b"".join(struct.pack("<HH", tag, len(content)) + content for tag, content in fields))
ENTRIES = st.lists(
    st.builds(
        Entry,
        name=NAMES,
        content=st.binary(max_size=300) | st.just(b"x" * 2000),
        method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
        extra=EXTRAS,
        comment=st.binary(max_size=20) | st.sampled_from(SIGNATURES),
        zip64=st.booleans(),
    ),
    max_size=12,
    unique_by=lambda entry: entry.name,
).map(lambda entries: [e if not e.name.endswith("/") else Entry(name=e.name) for e in entries])


@settings(max_examples=150)
@given(
    entries=ENTRIES,
    comment=st.binary(max_size=40) | st.sampled_from(SIGNATURES).map(lambda signature: signature + bytes(30)),
    seekable=st.booleans(),
    cuts=st.lists(st.integers(0, 5000), max_size=8),
    piece=st.sampled_from([1, 7, 100, 10_000]),
)
def test_what_zipfile_wrote_is_read_as_zipfile_reads_it(
    entries: list[Entry], comment: bytes, seekable: bool, cuts: list[int], piece: int
) -> None:
    archive = write(entries, comment=comment, seekable=seekable)
    directory = read(archive, cuts=cuts)

    # A comment with a signature in it misleads zipfile.
    assert_as_zipfile(write(entries, seekable=seekable), directory)
    assert rows(read(archive)) == rows(directory)
    checker = check_all(archive, directory, piece=piece)
    assert (checker.damaged, checker.num_checked) == ([], len(directory))


def test_one_byte_at_a_time_gives_the_same_arrays() -> None:
    archive = write([Entry(name=f"a/{number}", content=bytes(number)) for number in range(50)])
    size = len(archive)
    assert rows(read(archive, cuts=list(range(size)))) == rows(read(archive))


def test_an_archive_of_nothing_and_one_of_folders() -> None:
    for entries in ([], [Entry(name="a/"), Entry(name="a/b/")]):
        directory = read(write(entries))
        assert len(directory) == len(directory.end) == len(ZipMembers(directory)) == 0
        assert directory.folders() == []
        with pytest.raises(MemberError, match="no member a/"):
            directory.find("a/")


def test_several_batches_blocks_and_names_of_every_kind() -> None:
    draw = random.Random(0)
    entries = [
        Entry(
            name=f"{'ordner' if number % 7 else 'größe'}{number // 900}/{'x' * draw.randrange(300)}{number}",
            extra=b"PK\x01\x02" if number == 3000 else b"",
            comment=b"PK\x01\x02" * (number % 5 == 0),
        )
        for number in range(5000)
    ]
    archive = write(entries)
    directory = read(archive, cuts=[500_000])
    names = [entry.name for entry in entries]
    picks = draw.sample(range(5000), 300)

    assert directory.names(slice(None)) == names
    assert directory.names(picks) == [directory.name(pick) for pick in picks] == [names[pick] for pick in picks]
    assert [directory.find(names[pick]) for pick in picks] == picks
    assert [member.name for member in ZipMembers(directory)] == names
    assert set(directory.folders()) == {name[: name.rfind("/") + 1] for name in names}


def reorder(archive: bytes) -> bytes:
    """List the members of an archive backwards; they stay where they lie."""
    place = find_directory(archive[-TAIL_BYTES:], archive_bytes=len(archive), where="a.zip")
    end = place.offset + place.num_bytes
    parts = archive[place.offset : end].split(b"PK\x01\x02")[1:]
    return archive[: place.offset] + b"".join(b"PK\x01\x02" + part for part in reversed(parts)) + archive[end:]


def test_members_listed_in_another_order_than_they_lie() -> None:
    archive = reorder(write([Entry(name=name, content=name.encode() * 50) for name in ("a", "b/", "b/c", "d")]))
    directory = read(archive)

    assert directory.names(slice(None)) == ["d", "b/c", "a"]
    assert_as_zipfile(archive, directory)
    assert check_all(archive, directory, piece=33).damaged == []


def patched(archive: bytes, *fields: tuple[int, int], entry: int = 0) -> bytes:
    """An archive with 32-bit fields of an entry of its directory set to other values."""
    content = bytearray(archive)
    place = find_directory(archive[-TAIL_BYTES:], archive_bytes=len(archive), where="a.zip")
    at = place.offset
    for _ in range(entry):
        at = content.index(b"PK\x01\x02", at + 1)
    for field, value in fields:
        struct.pack_into("<L", content, at + field, value)
    return bytes(content)


@pytest.mark.parametrize("is_listed_backwards", [False, True])
def test_members_that_overlap_are_refused(is_listed_backwards: bool) -> None:
    archive = write([Entry(name="a", content=bytes(500)), Entry(name="b", content=b"1234")])
    archive = patched(archive, (42, 100), entry=1)
    with pytest.raises(SourceError, match="two of its members overlap at byte 100"):
        read(reorder(archive) if is_listed_backwards else archive)


def test_two_entries_for_one_local_header_are_refused() -> None:
    archive = patched(write([Entry(name="a"), Entry(name="b")]), (42, 0), entry=1)
    with pytest.raises(SourceError, match="overlap at byte 0"):
        read(archive)


def test_a_name_that_comes_twice_is_named() -> None:
    entries = [Entry(name=f"folder/{number}") for number in range(3000)]
    archive = write(entries).replace(b"folder/2718", b"folder/1618")
    with pytest.raises(SourceError, match="twice: folder/1618"):
        read(archive)


def test_names_whose_keys_collide_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two bits of hash are left beside the number of the member.
    monkeypatch.setattr(DirectoryReader, "_key_shift", 62)
    archive = write([Entry(name=f"folder{number % 2}/{number}") for number in range(300)])
    directory = read(archive)

    assert [directory.find(name) for name in directory.names(slice(None))] == list(range(300))
    for name in ("folder0/1", "folder1/0", "other/0", "folder0/"):
        with pytest.raises(MemberError, match="no member"):
            directory.find(name)
    with pytest.raises(SourceError, match="twice: folder1/181"):
        read(archive.replace(b"folder1/191", b"folder1/181"))


def test_a_name_in_two_encodings_is_one_name() -> None:
    archive = write([Entry(name="é"), Entry(name="xx")]).replace(b"xx", b"\xc3\xa9")
    assert read(archive).names(slice(None)) == ["é", "├⌐"]
    archive = write([Entry(name="é"), Entry(name="x")]).replace(b"x", b"\x82")
    with pytest.raises(SourceError, match="twice: é"):
        read(archive)


def test_a_name_that_is_not_utf8_is_refused() -> None:
    archive = write([Entry(name="aé")]).replace("é".encode(), b"\xc3\xc3")
    with pytest.raises(SourceError, match="is not UTF-8"):
        read(archive)


def zip64_entry(*values: int, marks: tuple[int, int, int], before: bytes = b"", length: int | None = None) -> bytes:
    """An archive of one stored member of 10 bytes, whose directory has a zip64 field and saturated 32-bit fields."""
    field = struct.pack("<HH", 1, 8 * len(values) if length is None else length) + struct.pack(
        f"<{len(values)}Q", *values
    )
    archive = write([Entry(name="m", content=b"0123456789", extra=before + field)])
    content = bytearray(archive)
    at = content.rindex(b"PK\x01\x02")
    for place, mark, value in zip((24, 20, 42), marks, (10, 10, 0), strict=True):
        struct.pack_into("<L", content, at + place, 0xFFFF_FFFF if mark else value)
    return bytes(content)


@pytest.mark.parametrize("marks", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
@pytest.mark.parametrize("before", [b"", struct.pack("<HHL", 0x5455, 4, 1)], ids=["first", "after another"])
def test_the_zip64_field_has_only_what_is_saturated_in_its_order(marks: tuple[int, int, int], before: bytes) -> None:
    values = [value for value, mark in zip((10, 10, 0), marks, strict=True) if mark]
    archive = zip64_entry(*values, marks=marks, before=before)
    directory = read(archive)

    assert (directory.num_bytes[0], directory.packed[0], directory.offset[0]) == (10, 10, 0)
    assert content_of(archive, directory, 0) == b"0123456789"


def test_sizes_beyond_32_bits_are_kept_and_offsets_cannot_wrap() -> None:
    directory = read(zip64_entry(2**40, marks=(1, 0, 0)))
    assert directory.num_bytes.tolist() == [2**40]
    for marks in ((0, 1, 0), (0, 0, 1)):
        for value in (2**40, 2**63, 2**64 - 1, 2**64 - 20):
            with pytest.raises(SourceError, match="beyond the directory"):
                read(zip64_entry(value, marks=marks))


def test_a_zip64_field_that_is_too_short_is_refused() -> None:
    with pytest.raises(SourceError, match="zip64 field of entry 1 of its directory is too short"):
        read(zip64_entry(10, marks=(1, 1, 0)))


def test_packed_sizes_beyond_32_bits_widen_the_column() -> None:
    archive = write([Entry(name="a"), Entry(name="b"), Entry(name="c")])
    place = find_directory(archive, archive_bytes=len(archive), where="a.zip")
    large = zip64_entry(2**40, 2**40, 2**41, marks=(1, 1, 1))
    entry = large[find_directory(large, archive_bytes=len(large), where="a.zip").offset :][: 46 + 1 + 28]
    reader = DirectoryReader(
        DirectoryPlace(offset=2**50, num_bytes=place.num_bytes + len(entry), num_members=4), where="a.zip"
    )
    reader.feed(archive[place.offset : place.offset + place.num_bytes])
    reader.feed(entry)
    directory = reader.finish()

    assert directory.packed.tolist() == directory.num_bytes.tolist() == [0, 0, 0, 2**40]
    assert directory.offset.tolist()[-1] == 2**41
    assert directory.end.tolist() == [31, 62, 2**41, 2**50]
    assert directory.crc32_of_directory == zlib.crc32(archive[place.offset :][: place.num_bytes] + entry)


SMALL = write(
    [
        Entry(name="a/b", content=b"0123456789" * 3, method=zipfile.ZIP_DEFLATED, extra=b"\x02\0\x01\0x"),
        Entry(name="é", content=b"12", comment=b"PK\x01\x02"),
        Entry(name="c/"),
    ],
    comment=b"PK\x05\x06 and more",
)


def try_to_read(archive: bytes) -> None:
    try:
        directory = read(archive)
    except SourceError:
        return
    assert len(directory.names(slice(None))) == len(directory) <= 3
    assert (directory.end <= len(archive)).all()
    for index in range(len(directory)):
        try:
            assert zlib.crc32(content_of(archive, directory, index)) == directory.crc32[index]
        except MemberError:
            continue
    check_all(archive, directory, piece=50)


@pytest.mark.parametrize("change", [1, 0x80, 0xFF])
def test_no_changed_byte_ends_in_another_error(change: int) -> None:
    for at in range(len(SMALL)):
        archive = bytearray(SMALL)
        archive[at] ^= change
        try_to_read(bytes(archive))


def test_no_cut_ends_in_another_error() -> None:
    for at in range(len(SMALL)):
        with pytest.raises(SourceError, match="cut off or damaged"):
            read(SMALL[:at])
        with pytest.raises(SourceError, match="cut off or damaged"):
            read(SMALL[at + 1 :])


@settings(max_examples=200)
@given(st.dictionaries(st.integers(0, len(SMALL) - 1), st.integers(0, 255), max_size=6))
def test_no_changed_bytes_end_in_another_error(changes: dict[int, int]) -> None:
    archive = bytearray(SMALL)
    for at, value in changes.items():
        archive[at] = value
    try_to_read(bytes(archive))


def test_missing_surplus_and_wrong_bytes_are_told_apart() -> None:
    archive = write([Entry(name="a"), Entry(name="b"), Entry(name="c")])
    place = find_directory(archive, archive_bytes=len(archive), where="a.zip")
    content = archive[place.offset : place.offset + place.num_bytes]

    reader = DirectoryReader(place, where="a.zip")
    reader.feed(content[:-1])
    with pytest.raises(SourceError, match="140 bytes and should have 141; 46 of them follow"):
        reader.finish()
    reader = DirectoryReader(place, where="a.zip")
    with pytest.raises(SourceError, match="more than 141 bytes"):
        reader.feed(content + b"x")
    reader = DirectoryReader(place, where="a.zip")
    reader.feed(content.replace(b"PK\x01\x02", b"PK\x01\x03").replace(b"PK\x01\x03", b"PK\x01\x02", 1))
    with pytest.raises(SourceError, match=f"entry 2 of its directory, at byte {place.offset + 47}, has no signature"):
        reader.finish()


@pytest.mark.parametrize("number", [2, 4])
def test_another_count_than_announced_is_refused(number: int) -> None:
    archive = bytearray(write([Entry(name=name * 60) for name in "abc"]))
    struct.pack_into("<HH", archive, len(archive) - 14, number, number)
    with pytest.raises(SourceError, match=r"lists (more than the 2|3) members"):
        read(bytes(archive))


def test_bytes_before_or_after_the_archive_are_refused() -> None:
    archive = write([Entry(name="a", content=b"123")])
    with pytest.raises(SourceError, match="its directory should end at byte"):
        read(b"#!/bin/sh\n" + archive)
    with pytest.raises(SourceError, match="no end record"):
        read(archive + b"x")


def as_zip64(archive: bytes, *, sector: int = 0, **changes: int) -> bytes:
    """Give an archive a zip64 end record, whose fields may lie."""
    place = find_directory(archive[-TAIL_BYTES:], archive_bytes=len(archive), where="a.zip")
    end = place.offset + place.num_bytes
    fields = {
        "disk": 0,
        "count": place.num_members,
        "bytes": place.num_bytes,
        "offset": place.offset,
        "at": end,
    } | changes
    record = struct.pack(
        "<4sQ2H2L4Q",
        b"PK\x06\x06",
        44 + sector,
        45,
        45,
        fields["disk"],
        0,
        fields["count"],
        fields["count"],
        fields["bytes"],
        fields["offset"],
    )
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, fields["at"], 1)
    plain = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF, 0)
    return archive[:end] + record + bytes(sector) + locator + plain


def test_zip64_end_records_of_any_length() -> None:
    archive = write([Entry(name="a", content=bytes(100_000)), Entry(name="b")])
    expected = rows(read(archive))
    for sector in (0, 10, 70_000):
        assert rows(read(as_zip64(archive, sector=sector))) == expected
    wide = as_zip64(archive, sector=70_000)
    with pytest.raises(TailTooShort) as short:
        find_directory(wide[-TAIL_BYTES:], archive_bytes=len(wide), where="a.zip")
    assert short.value.num_bytes == 56 + 70_000 + 20 + 22


def test_a_short_tail_is_asked_for_again() -> None:
    archive = as_zip64(write([Entry(name="a", content=bytes(100_000))]))
    for size in range(98):
        with pytest.raises(TailTooShort) as short:
            find_directory(archive[len(archive) - size :], archive_bytes=len(archive), where="a.zip")
        assert size < short.value.num_bytes <= TAIL_BYTES
    assert find_directory(archive[-98:], archive_bytes=len(archive), where="a.zip").num_members == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"disk": 1},
        {"count": 2**60},
        {"count": 0},
        {"bytes": 2**63},
        {"offset": 2**64 - 1},
        {"at": 0},
        {"at": 2**64 - 1},
        {"at": 139},
    ],
    ids=str,
)
def test_zip64_end_records_that_lie_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(SourceError):
        read(as_zip64(write([Entry(name="a", content=bytes(100))]), **changes))


def test_more_members_than_anyone_has_are_refused_before_they_are_allocated() -> None:
    count = 1 << 33
    num_bytes = 46 * count
    tail = bytes(TAIL_BYTES) + as_zip64(write([]), count=count, bytes=num_bytes, at=num_bytes)
    with pytest.raises(SourceError, match="more than the limit"):
        find_directory(tail, archive_bytes=num_bytes + len(tail) - TAIL_BYTES, where="a.zip")


@pytest.mark.parametrize("name", ["a", "a/b.JPEG", "...", "a..b/c", "é"])
def test_safe_names(name: str) -> None:
    assert is_safe_name(name)


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../b", "a/..", "./a", "a//b", "a\\b", "a\0b", "..", "a/"])
def test_unsafe_names(name: str) -> None:
    assert not is_safe_name(name)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/root", "back\\slash", "nul?byte"])
def test_hostile_names_are_listed_as_they_are(name: str) -> None:
    directory = read(write([Entry(name=name)]).replace(b"?", b"\0"))
    name = name.replace("?", "\0")
    assert directory.names(slice(None)) == [name]
    assert directory.find(name) == 0


def test_an_empty_name_is_listed() -> None:
    directory = read(write([Entry(name=""), Entry(name="x")]))
    assert (directory.names(slice(None)), directory.find("")) == (["", "x"], 0)


def test_a_name_with_lone_surrogates_is_not_there() -> None:
    with pytest.raises(MemberError, match="no member"):
        read(write([Entry(name="a")])).find("\ud800")


def test_a_block_that_ends_too_early_is_said() -> None:
    archive = write([Entry(name="m", content=b"0123456789")])
    listed = {"name": "m", "packed": 10, "num_bytes": 10, "crc32": zlib.crc32(b"0123456789"), "method": 0, "flags": 0}
    for size in range(41):
        with pytest.raises(MemberError, match=f"member m of a.zip is cut off: {size} "):
            member_content(archive[:size], **listed, where="a.zip")  # type: ignore[arg-type]
    assert member_content(archive[:41], **listed, where="a.zip") == b"0123456789"  # type: ignore[arg-type]


def damage(entry: Entry, *, at: int, by: bytes) -> tuple[bytes, ZipDirectory]:
    """Three members, of which bytes are overwritten in the one in the middle, counted from its local header."""
    archive = write([Entry(name="first", content=b"1" * 100), entry, Entry(name="last", content=b"3" * 100)])
    directory = read(archive)
    start = int(directory.offset[1]) + at
    return archive[:start] + by + archive[start + len(by) :], directory


LARGE = Entry(name="m", content=bytes(1_000_000), method=zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize(
    ("entry", "at", "by", "reason"),
    [
        (Entry(name="m", content=b"2" * 100), 50, b"x", "CRC-32"),
        (Entry(name="m", content=b"2" * 100), 0, b"x", "no local header"),
        (Entry(name="m", content=b"2" * 100), 30, b"x", "calls it x"),
        (Entry(name="m", content=b"2" * 100), 28, b"\xff\xff", "do not fit"),
        (LARGE, 31, b"\xff", "is damaged"),
        (LARGE, 31, zlib.compress(b"", wbits=-15), "0 bytes, its directory says 1000000"),
    ],
)
@pytest.mark.parametrize("piece", [1, 64, 10_000])
def test_a_damaged_member_is_noted_and_the_next_is_checked(
    entry: Entry, at: int, by: bytes, reason: str, piece: int
) -> None:
    archive, directory = damage(entry, at=at, by=by)
    checker = check_all(archive, directory, piece=piece)

    assert [index for index, _ in checker.damaged] == [1]
    assert checker.num_checked == 3
    assert reason in checker.damaged[0][1]


@pytest.mark.parametrize(("size", "said"), [(999_999, "1000000|1048576"), (1_000_001, "1000000 bytes")])
def test_a_stream_that_inflates_to_another_size_is_noted(size: int, said: str) -> None:
    archive = patched(write([LARGE]), (24, size))
    checker = check_all(archive, read(archive), piece=100)
    assert [index for index, _ in checker.damaged] == [0]
    assert f"its directory says {size}" in checker.damaged[0][1]


def test_a_bomb_is_left_at_the_size_that_it_claims() -> None:
    archive = patched(write([Entry(name="bomb", content=bytes(50_000_000), method=zipfile.ZIP_DEFLATED)]), (24, 10))
    directory = read(archive)
    checker = check_all(archive, directory, piece=1 << 20)
    assert checker.damaged == [(0, "member bomb of a.zip is damaged: 262144 bytes, its directory says 10")]
    with pytest.raises(MemberError, match="11 bytes, its directory says 10"):
        content_of(archive, directory, 0)


def test_members_that_cannot_be_read_are_noted() -> None:
    archive = patched(write([Entry(name="a"), Entry(name="b"), Entry(name="c")]), (8, 1))
    archive = patched(archive, (8, 12 << 16), entry=1)
    checker = check_all(archive, read(archive), piece=20)
    assert [reason for _, reason in checker.damaged] == [
        "member a of a.zip is encrypted",
        "member b of a.zip uses compression method 12; stored and deflated can be read",
    ]


def test_some_members_are_checked_and_others_passed_over() -> None:
    archive = write([Entry(name=name, content=name.encode() * 100) for name in "abcde"])
    directory = read(archive)
    damaged = archive.replace(b"c" * 100, b"x" * 100)
    start, end = int(directory.offset[1]), int(directory.end[3])
    checker = MemberChecker(directory, np.array([1, 3]), where="a.zip")
    checker.feed(damaged[start:end])
    checker.finish()
    assert (checker.damaged, checker.num_checked) == ([], 2)


def test_a_stream_that_ends_too_early_leaves_the_rest_damaged() -> None:
    archive = write([Entry(name=name, content=name.encode() * 100) for name in "abc"])
    directory = read(archive)
    checker = MemberChecker(directory, np.arange(3), where="a.zip")
    checker.feed(archive[:200])
    assert (checker.damaged, checker.num_checked) == ([], 1)
    checker.finish()
    assert [index for index, _ in checker.damaged] == [1, 2]
    assert all("the archive ends at byte 200" in reason for _, reason in checker.damaged)


FULL_SCALE = """
import os, re, sys, time
import numpy as np
from imgprep.sources.zip_directory import DirectoryPlace, DirectoryReader

FOLDERS, TRAIN, XML, VAL, TEST = 1000, 1281, 545, 50_000, 100_000
ENTRY = [("fixed", "V10"), ("method", "<u2"), ("time", "<u4"), ("crc32", "<u4"), ("packed", "<u4"),
    ("num_bytes", "<u4"), ("lengths", "<u2", 3), ("rest", "V8"), ("offset", "<u4")]


def entries(prefix, numbers, digits, suffix, offset):
    names = np.char.add(np.char.add(prefix, np.char.zfill(numbers.astype("S8"), digits)), suffix)
    width, count = names.dtype.itemsize, len(names)
    rows = np.zeros(count, [*ENTRY, ("name", f"S{width}"), ("tag", "<u2", 2), ("wide", "<u8")])
    rows["fixed"] = b"PK\\1\\2" + bytes(6)
    rows["packed"] = rows["num_bytes"] = 80_000
    rows["crc32"] = numbers * 2_654_435_761 % 2**32
    rows["lengths"] = width, 12, 0
    rows["offset"] = 0xFFFF_FFFF
    rows["name"], rows["tag"] = names, (1, 8)
    rows["wide"] = offset + np.arange(count) * np.int64(80_030 + width)
    return rows.tobytes(), offset + count * (80_030 + width)


def pieces():
    offset = 0
    for kind, count, suffix in (("Annotations", XML, b".xml"), ("Data", TRAIN, b".JPEG")):
        for folder in range(FOLDERS):
            wnid = b"n%08d" % (1_440_764 + 13 * folder)
            prefix = b"ILSVRC/%s/CLS-LOC/train/%s/%s_" % (kind.encode(), wnid, wnid)
            row, offset = entries(prefix, 10_000 + 7 * np.arange(count), 5, suffix, offset)
            yield row
    for split, kind, count, suffix in (
        (b"val", b"Annotations", VAL, b".xml"),
        (b"test", b"Data", TEST, b".JPEG"),
        (b"val", b"Data", VAL - 279, b".JPEG"),
    ):
        prefix = b"ILSVRC/%s/CLS-LOC/%s/ILSVRC2012_%s_" % (kind, split, split)
        row, offset = entries(prefix, np.arange(1, count + 1), 8, suffix, offset)
        yield row


def peak():
    # Of this program alone: ru_maxrss begins with that of the process that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024


if os.fork() == 0:
    # What makes the directory takes memory of its own: in a child, so that the parent's peak is the parser's.
    with open(sys.argv[1], "wb") as file:
        file.writelines(pieces())
    os._exit(0)
assert os.wait()[1] == 0
size = os.path.getsize(sys.argv[1])
place = DirectoryPlace(offset=10**12, num_bytes=size, num_members=2_025_721)
start = time.process_time()
reader = DirectoryReader(place, where="imagenet.zip")
with open(sys.argv[1], "rb") as file:
    while piece := file.read(1 << 20):
        reader.feed(piece)
directory = reader.finish()
seconds = time.process_time() - start
assert len(directory) == 2_025_721 and len(directory.folders()) == 2003
assert directory.name(directory.find("ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00040000.JPEG")).endswith("40000.JPEG")
assert directory.end[0] == directory.offset[1]
assert "pandas" not in sys.modules
print(size, seconds, peak())
"""


@pytest.mark.slow
def test_the_directory_of_imagenet_takes_seconds_and_little_memory(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("directory") / "directory.bin"
    run = subprocess.run([sys.executable, "-c", FULL_SCALE, path], check=False, capture_output=True, text=True)
    path.unlink(missing_ok=True)
    assert run.returncode == 0, run.stderr
    size, seconds, mebibytes = map(float, run.stdout.split())

    assert size > 225_000_000
    assert seconds <= 10
    assert mebibytes <= 150


@pytest.mark.parametrize(
    ("packed", "num_bytes", "method", "said"),
    [
        (3_000_000_000, 10, zipfile.ZIP_STORED, "claims 3,000,000,000 bytes for a content of 10"),
        (70_000, 10, zipfile.ZIP_DEFLATED, "claims 70,000 bytes for a content of 10"),
        (1 << 31, 1 << 31, zipfile.ZIP_STORED, "more than the limit"),
        (10, 10, zipfile.ZIP_BZIP2, "compression method"),
    ],
)
def test_what_could_not_be_read_is_found_before_it_is_fetched(
    packed: int, num_bytes: int, method: int, said: str
) -> None:
    directory = ZipDirectory.__new__(ZipDirectory)
    directory.packed, directory.num_bytes = np.array([5, packed, 9]), np.array([5, num_bytes, 9])
    directory.method, directory.flags = np.array([0, method, 8], dtype=np.uint16), np.zeros(3, dtype=np.uint16)

    assert find_unreadable(directory, np.array([0, 1, 2])).tolist() == [1]
    with pytest.raises(MemberError, match=said):
        check_readable(name="m", packed=packed, num_bytes=num_bytes, method=method, flags=0, where="a.zip")


@pytest.mark.parametrize("disks", [1, 7])
def test_what_looks_like_a_zip64_locator_at_the_end_of_the_directory_is_none(disks: int) -> None:
    comment = b"PK\x06\x07" + bytes(4) + (0).to_bytes(8, "little") + disks.to_bytes(4, "little")
    archive = write([Entry(name="a", content=b"x" * 600, comment=comment)], seekable=True)

    assert archive[-22 - 20 :].startswith(b"PK\x06\x07")
    assert read(archive).names(np.array([0])) == ["a"]
