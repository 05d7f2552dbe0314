"""Tars inside sources: shown as folders, listed when asked, read in place, damage named."""

from __future__ import annotations

import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.errors import DamagedError, MemberError, SourceError
from imgprep.sources import open_source, places
from imgprep.sources.nested import NestedSource
from imgprep.sources.places import MemberPlaces
from imgprep.testing.containers import Container, tar_file, write_source

CATS = tar_file({"cat_1.JPEG": b"cat one", "cat_2.JPEG": b"cat two"})
DOGS = tar_file({"./dog_1.JPEG": b"dog"})
XML = {"n1/a.xml": b"<a/>", "n1/b.xml": b"<b/>"}
FILES = {
    "set/outer.tar": tar_file({"cat.tar": CATS, "dog.tar": DOGS, "readme": b"hello"}),
    "set/boxes.tar.gz": tar_file(XML, packed=True),
    "set/other.tar": tar_file({"x": b"x"}),
    "set/list.txt": b"list",
}
SHOWN = {
    "set/outer.tar/cat.tar/cat_1.JPEG": b"cat one",
    "set/outer.tar/cat.tar/cat_2.JPEG": b"cat two",
    "set/outer.tar/dog.tar/dog_1.JPEG": b"dog",
    "set/outer.tar/readme": b"hello",
    "set/boxes.tar.gz/n1/a.xml": b"<a/>",
    "set/boxes.tar.gz/n1/b.xml": b"<b/>",
    "set/other.tar": FILES["set/other.tar"],
    "set/list.txt": b"list",
}


def is_opened(name: str) -> bool:
    return name.endswith(("outer.tar", "boxes.tar.gz"))


@pytest.mark.parametrize("container", [*get_args(Container), "deflated zip"])
@pytest.mark.parametrize("cached", [True, False])
def test_members_of_tars_are_members_of_the_source(tmp_path: Path, container: str, cached: bool) -> None:
    path = tmp_path / "deflated.zip"
    if container == "deflated zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in FILES.items():
                archive.writestr(name, content)
    else:
        path = write_source(tmp_path / "a", FILES, container)  # type: ignore[arg-type]
    for _ in range(2):
        with NestedSource(open_source(path), is_opened, cache=tmp_path / "cache" if cached else None) as source:
            listed = {member.name: member.num_bytes for member in source.members()}

            assert listed == {name: len(content) for name, content in SHOWN.items()}
            assert {name: source.read(name) for name in listed} == SHOWN


def test_only_the_tar_that_is_asked_for_is_listed(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a", FILES, "tar")
    with NestedSource(open_source(path), is_opened) as source:
        assert source.read("set/outer.tar/cat.tar/cat_1.JPEG") == b"cat one"
        listed = source._tars["set/outer.tar"]._listed

        assert listed is not None
        assert [name for name, tar in listed[1].items() if tar._listed is not None] == ["cat.tar"]


def test_threads_may_read_at_once(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a", FILES, "zip")
    with NestedSource(open_source(path), is_opened) as source, ThreadPoolExecutor(8) as pool:
        names = list(SHOWN) * 20

        assert list(pool.map(source.read, names)) == [SHOWN[name] for name in names]


@pytest.mark.parametrize(
    "name", ["set/outer.tar/cat.tar", "set/outer.tar/cow.tar/1", "set/outer.tar/cat.tar/no", "set/outer.tar", "no"]
)
def test_a_member_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    path = write_source(tmp_path / "a", FILES, "directory")
    with NestedSource(open_source(path), is_opened) as source, pytest.raises(MemberError) as failure:
        source.read(name)
    assert name.rsplit("/", maxsplit=1)[-1] in str(failure.value)


def test_tars_two_levels_down_stay_files(tmp_path: Path) -> None:
    deep = tar_file({"b.tar": tar_file({"c.tar": tar_file({"d": b""})})})
    path = write_source(tmp_path / "a", {"outer.tar": deep}, "directory")
    with NestedSource(open_source(path), is_opened) as source:
        assert [member.name for member in source.members()] == ["outer.tar/b.tar/c.tar"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (FILES["set/outer.tar"][:3000], "outer.tar.*cut off"),
        (b"\1" * 2048, "outer.tar is a damaged tar"),
        (tar_file({"cat.tar": CATS[:700]}), "outer.tar/cat.tar is a damaged tar"),
        (tar_file({"a": b"1"})[:1024] + tar_file({"a": b"2"}), "outer.tar lists a twice"),
    ],
)
def test_a_damaged_tar_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = write_source(tmp_path / "a", {"outer.tar": content}, "directory")
    with NestedSource(open_source(path), is_opened) as source, pytest.raises(SourceError, match=message):
        source.members()


def test_a_damaged_packed_tar_is_named(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a", {"boxes.tar.gz": FILES["set/boxes.tar.gz"][:-9]}, "directory")
    with open_source(path) as source, pytest.raises(SourceError, match=r"boxes\.tar\.gz in .*cut off"):
        NestedSource(source, is_opened)


def test_a_large_tar_packed_by_a_zip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_MAX_COPY", 1000)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    with (
        open_source(path) as source,
        pytest.raises(SourceError, match=r"outer\.tar is packed once more.*unpack a\.zip"),
    ):
        NestedSource(source, is_opened)


@given(st.dictionaries(st.text("ab/", min_size=1, max_size=6), st.binary(max_size=60), min_size=1, max_size=5))
def test_places_hold_the_bytes_of_members(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    named = {f"{number}/{name.replace('/', '_')}": content for number, (name, content) in enumerate(files.items())}
    folder = tmp_path_factory.mktemp("places")
    for container in ("zip", "tar"):
        path = write_source(folder / "a", named, container)
        with open_source(path) as source:
            found = MemberPlaces(source, named).places
        content = path.read_bytes()

        assert {name: content[at.start : at.start + at.num_bytes] for name, at in found.items()} == named


@pytest.mark.parametrize(("place", "value", "message"), [(0, b"XX", "no local header"), (28, b"\xff\x7f", "runs into")])
def test_a_damaged_local_header_is_named(tmp_path: Path, place: int, value: bytes, message: str) -> None:
    path = write_source(tmp_path / "a", {"a.tar": CATS, "b.tar": DOGS}, "zip")
    content = bytearray(path.read_bytes())
    header = content.index(b"PK\3\4", 4)  # that of the second member
    content[header + place : header + place + len(value)] = value
    path.write_bytes(content)
    with open_source(path) as source, pytest.raises(DamagedError, match=rf"b\.tar.*{message}"):
        MemberPlaces(source, ["b.tar"])
