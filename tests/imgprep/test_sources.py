"""Sources: the same members from directory, zip and tar; damage is named; nothing is taken on trust."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgprep.errors import MemberError, MissingInputError, SourceError
from imgprep.sources import listing_digest, open_source
from imgprep.sources.ranges import RangeFile
from imgprep.sources.zip import ZipSource

FILES = {"a/one.JPEG": b"\xff\xd8" + bytes(range(256)) * 9, "b/two.txt": b"x" * 5000, "empty": b""}


def write_zip(path: Path, files: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("a")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    (path / "link").symlink_to("/etc/passwd")
    return path


@pytest.fixture(params=["stored zip", "deflated zip", "tar", "directory"])
def source_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "tar":
        return write_tar(tmp_path / "source.tar", FILES)
    if request.param == "directory":
        return write_folder(tmp_path / "source", FILES)
    method = zipfile.ZIP_STORED if request.param == "stored zip" else zipfile.ZIP_DEFLATED
    return write_zip(tmp_path / "source.zip", FILES, method=method)


def test_members_and_bytes_are_those_that_were_written(source_path: Path) -> None:
    with open_source(source_path) as source:
        listed = {member.name: member.num_bytes for member in source.members()}

        assert listed == {name: len(content) for name, content in FILES.items()}
        assert {name: source.read(name) for name in FILES} == FILES


def test_reading_from_threads_at_once_mixes_nothing_up(source_path: Path) -> None:
    with open_source(source_path) as source, ThreadPoolExecutor(8) as pool:
        names = list(FILES) * 50

        assert list(pool.map(source.read, names)) == [FILES[name] for name in names]


def test_a_member_that_is_not_there_is_named(source_path: Path) -> None:
    with open_source(source_path) as source, pytest.raises(MemberError, match="nothing/here"):
        source.read("nothing/here")


@settings(max_examples=30, deadline=None)
@given(
    files=st.dictionaries(
        st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12), st.binary(max_size=300)
    ),
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
)
def test_zip_round_trip(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], method: int) -> None:
    path = write_zip(tmp_path_factory.mktemp("zip") / "z.zip", files, method=method)
    with open_source(path) as source:
        assert {member.name: source.read(member.name) for member in source.members()} == files
        assert isinstance(source, ZipSource)
        wanted = sorted(files, reverse=True)[::2]
        assert source.directory.find_all(wanted) == [source.directory.find(name) for name in wanted]
        with pickle.loads(pickle.dumps(source.excerpt(wanted))) as excerpt:
            assert {member.name: excerpt.read(member.name) for member in excerpt.members()} == {
                name: files[name] for name in wanted
            }
            assert {name: bytes(excerpt.view(name)) for name in wanted} == {name: files[name] for name in wanted}


def test_an_excerpt_knows_its_members_only_and_opens_again(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "z.zip", {"a/m": b"one", "a/n": b"two", "n": b"three"})
    with ZipSource(path) as source:
        excerpt = source.excerpt(["a/n"])
        with pytest.raises(MemberError, match="no member a/x"):
            source.excerpt(["a/m", "a/x"])
    for _ in range(2):
        with excerpt:
            assert excerpt.read("a/n") == b"two"
    with excerpt, pytest.raises(MemberError, match="no member a/m"):
        excerpt.read("a/m")
    with ZipSource(write_zip(tmp_path / "empty.zip", {})) as empty:
        assert empty.excerpt([]).members() == []
        with pytest.raises(MemberError, match="no member x"):
            empty.excerpt(["x"])


def test_members_whose_names_have_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "z.zip", {"a": b"one", "b": b"two", "c": b"three"})
    with ZipSource(path) as source:
        directory = source.directory
        # As if all names had the hash of the first.
        key = next(key for key in map(int, directory._keys) if directory.name(key & 3) == "a")
        directory._keys = np.sort(np.array([key & ~3 | index for index in range(3)], np.uint64))
        monkeypatch.setattr(directory, "_hash", lambda _: key >> int(directory._key_shift))
        assert directory.find_all(["c", "a", "b"]) == [2, 0, 1]
        assert [source.read(name) for name in "abc"] == [b"one", b"two", b"three"]
        assert source.excerpt("b").read("b") == b"two"


def test_the_listing_digest_depends_on_content_not_on_order(tmp_path: Path) -> None:
    forward = write_zip(tmp_path / "1.zip", FILES)
    backward = write_zip(tmp_path / "2.zip", dict(reversed(FILES.items())))
    changed = write_zip(tmp_path / "3.zip", FILES | {"empty": b"no"})
    digests = []
    for path in (forward, backward, changed):
        with open_source(path) as source:
            digests.append(listing_digest(source.members()))

    assert digests[0] == digests[1] != digests[2]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="does not exist"):
        open_source(tmp_path / "missing.zip")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "neither a zip nor a tar"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        (b"PK\x03\x04" + bytes(500), "cut off or damaged"),
    ],
)
def test_not_an_archive(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(SourceError, match=said):
        open_source(tmp_path / "a.zip")


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_truncated_archive_is_said_at_once(tmp_path: Path, share: float) -> None:
    for path in (write_zip(tmp_path / "z.zip", FILES), write_tar(tmp_path / "t.tar", {"a": bytes(20000)})):
        content = path.read_bytes()
        path.write_bytes(
            content[: int(len(content) * share)] if path.suffix == ".zip" else content[: int(20000 * share)]
        )
        with pytest.raises(SourceError, match="cut off"):
            open_source(path)


def test_every_flipped_byte_of_a_stored_member_is_noticed(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "z.zip", {"m": b"0123456789"})
    content = bytearray(path.read_bytes())
    start = content.index(b"0123456789")
    for place in range(10):
        damaged = bytearray(content)
        damaged[start + place] ^= 1
        path.write_bytes(damaged)
        with ZipSource(path) as source, source.excerpt(["m"]) as excerpt:
            for reading in (source.read, source.view, excerpt.read, excerpt.view):
                with pytest.raises(MemberError, match="CRC-32"):
                    reading("m")


def test_a_member_that_inflates_to_more_than_it_says_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "z.zip", {"bomb": bytes(1_000_000)}, method=zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<I", 1_000_000), struct.pack("<I", 10)))
    with open_source(path) as source, pytest.raises(MemberError, match="11 bytes, its directory says 10"):
        source.read("bomb")


def test_a_member_that_claims_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "z.zip", {"bomb": bytes(1_000_000)}, method=zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<I", 1_000_000), struct.pack("<I", 3 << 30)))
    with open_source(path) as source, pytest.raises(MemberError, match="more than the limit"):
        source.read("bomb")


def test_an_encrypted_member_is_said(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "z.zip", {"m": b"secret"})
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 8] |= 1
    path.write_bytes(content)
    with open_source(path) as source, pytest.raises(MemberError, match="encrypted"):
        source.read("m")


def test_a_name_listed_twice_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("m", b"2")
    with pytest.raises(SourceError, match="twice"):
        open_source(path)


def test_a_file_that_changed_size_after_listing_is_noticed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", FILES)
    with open_source(folder) as source:
        source.members()
        (folder / "empty").write_bytes(b"grown")
        with pytest.raises(MemberError, match="changed"):
            source.read("empty")


@pytest.mark.parametrize("damage", [b"x" * 10, bytes(512)], ids=["garbage", "zeros"])
def test_a_tar_damaged_in_the_middle_is_not_taken_for_a_shorter_one(tmp_path: Path, damage: bytes) -> None:
    path = write_tar(tmp_path / "t.tar", {f"m{number}": bytes([number]) * 600 for number in range(1, 9)})
    content = bytearray(path.read_bytes())
    header = content.index(b"m4\0")
    content[header : header + len(damage)] = damage
    path.write_bytes(content)
    with pytest.raises(SourceError, match="damaged"):
        open_source(path)


@pytest.mark.parametrize(
    ("field", "value"), [(20, 2**31), (20, 2**32 - 2), (42, 2**32 - 2)], ids=["size", "end", "place"]
)
def test_a_member_that_claims_to_lie_outside_is_refused_without_allocating(
    tmp_path: Path, field: int, value: int
) -> None:
    path = write_zip(tmp_path / "z.zip", {"m": b"0123456789"})
    content = bytearray(path.read_bytes())
    struct.pack_into("<L", content, content.rindex(b"PK\x01\x02") + field, value)
    path.write_bytes(content)
    with pytest.raises(SourceError, match="beyond the directory"):
        ZipSource(path)


def test_a_local_header_that_names_another_member_is_noticed(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "z.zip", {"abc": b"0123456789"})
    path.write_bytes(path.read_bytes().replace(b"abc", b"abd", 1))
    with ZipSource(path) as source, source.excerpt(["abc"]) as excerpt:
        for reading in (source.read, excerpt.read):
            with pytest.raises(MemberError, match="its local header calls it abd"):
                reading("abc")


def test_an_archive_that_shrank_since_it_was_opened_is_noticed(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "z.zip", {"m": bytes(5000)})
    with open_source(path) as source:
        os.truncate(path, 1000)
        with pytest.raises(MemberError, match="cut off"):
            source.read("m")


def test_a_local_header_that_reaches_into_the_next_member_is_noticed(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "z.zip", {"m": b"0123456789", "n": bytes(100)})
    content = bytearray(path.read_bytes())
    at = content.index(b"m0123456789")
    content[at - 2] = 60
    path.write_bytes(content)
    with ZipSource(path) as source, source.excerpt(["m"]) as excerpt:
        for reading in (source.read, excerpt.read):
            with pytest.raises(MemberError, match="run into the next member"):
                reading("m")


def test_a_zip_that_shrinks_while_it_is_opened_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "z.zip", FILES)
    monkeypatch.setattr(RangeFile, "pread", lambda *_: b"")
    with pytest.raises(SourceError, match="changed while it was read"):
        ZipSource(path)


def test_members_of_a_zip_are_a_sequence(tmp_path: Path) -> None:
    files = {f"folder{number % 3}/{number}": b"x" * number for number in range(600)}
    with ZipSource(write_zip(tmp_path / "z.zip", files)) as source:
        members = source.members()
        listed = list(members)

        assert [member.name for member in listed] == list(files)
        assert [member.num_bytes for member in listed] == list(range(600))
        assert members[-1] == listed[-1]
        assert members[5:300:7] == listed[5:300:7]
        with pytest.raises(IndexError):
            members[600]


def test_a_path_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.zip"))
    write_zip(path, FILES)
    with pytest.raises(SourceError, match="not UTF-8"):
        open_source(path)


def test_a_device_is_no_source() -> None:
    with pytest.raises(SourceError, match="neither a file nor a directory"):
        open_source(Path("/dev/null"))
