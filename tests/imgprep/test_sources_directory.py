"""A folder as a source: what is listed, which links are followed, what of a change is noticed while it is read."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from imgprep.errors import MemberError, SourceError
from imgprep.sources import listing_digest
from imgprep.sources.directory import DirectorySource


def names(source: DirectorySource) -> list[str]:
    return [member.name for member in source.members()]


def write(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with a file, and links to a file and a folder outside, to nowhere, to itself and to a folder above."""
    write(tmp_path / "outside" / "b.JPEG", b"outside")
    write(tmp_path / "outside" / "deep" / "c.JPEG", b"deeper")
    root = tmp_path / "root"
    write(root / "a.JPEG", b"inside")
    (root / "file.JPEG").symlink_to(tmp_path / "outside" / "b.JPEG")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "nowhere").symlink_to(tmp_path / "missing" / "d.JPEG")
    (root / "through-a-file").symlink_to(root / "a.JPEG" / "d.JPEG")
    (root / "itself").symlink_to("itself")
    (tmp_path / "outside" / "deep" / "back").symlink_to(root)
    return root


def test_links_are_passed_over_and_named(linked: Path) -> None:
    source = DirectorySource(linked)

    assert names(source) == ["a.JPEG"]
    assert sorted(source.links.not_followed) == ["file.JPEG", "folder", "itself", "nowhere", "through-a-file"]
    assert source.links.broken == source.links.circular == []
    with pytest.raises(MemberError, match=r"has no file file\.JPEG"):
        source.read("file.JPEG")


def test_links_are_followed_wherever_they_lead(linked: Path) -> None:
    source = DirectorySource(linked, follow_links=True)
    outside = linked.parent / "outside" / "b.JPEG"

    assert names(source) == ["a.JPEG", "file.JPEG", "folder/b.JPEG", "folder/deep/c.JPEG"]
    assert source.read("file.JPEG") == source.read("folder/b.JPEG") == b"outside"
    assert {member.mtime_ns for member in source.members()[1:3]} == {outside.stat().st_mtime_ns}
    assert source.links.not_followed == []
    assert sorted(source.links.broken) == ["itself", "nowhere", "through-a-file"]
    assert source.links.circular == ["folder/deep/back"]


def test_a_folder_that_is_linked_to_twice_is_there_twice(tmp_path: Path) -> None:
    """Two names for one folder are no loop."""
    write(tmp_path / "pictures" / "a.JPEG")
    for name in ("one", "two"):
        (tmp_path / name).symlink_to("pictures")

    assert names(DirectorySource(tmp_path, follow_links=True)) == ["one/a.JPEG", "pictures/a.JPEG", "two/a.JPEG"]


def test_a_tree_that_links_make_out_of_nothing_is_refused(tmp_path: Path) -> None:
    """Thirty folders, each with two links to the next, would be a tree of a thousand million files."""
    for depth in range(30):
        (tmp_path / str(depth)).mkdir()
        for name in "ab":
            (tmp_path / str(depth) / name).symlink_to(tmp_path / str(depth + 1))
    write(tmp_path / "30" / "a.JPEG")
    with pytest.raises(SourceError, match="in more than 100 ways"):
        DirectorySource(tmp_path / "0", follow_links=True).members()


def test_a_link_to_something_else_than_a_file_is_no_member(tmp_path: Path) -> None:
    (tmp_path / "null.JPEG").symlink_to(os.devnull)
    source = DirectorySource(tmp_path, follow_links=True)

    assert names(source) == source.links.broken == []


def test_a_tree_deeper_than_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = 1500
    monkeypatch.chdir(tmp_path)
    for _ in range(depth):
        Path("d").mkdir()
        os.chdir("d")
    Path("a").touch()
    os.chdir(tmp_path)

    try:
        assert names(DirectorySource(tmp_path)) == ["d/" * depth + "a"]
    finally:
        # Python's own rmtree, by which pytest cleans up, is not up to it.
        subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)


def test_where_links_lead_to(linked: Path, tmp_path: Path) -> None:
    """A workspace there would change the source it reads."""
    source, following = DirectorySource(linked), DirectorySource(linked, follow_links=True)

    assert following.reaches(linked / "new")
    assert following.reaches(tmp_path / "outside" / "new" / "workspace")
    assert not following.reaches(tmp_path / "new")
    assert source.reaches(linked / "new")
    assert not source.reaches(tmp_path / "outside" / "new")


def test_a_file_that_was_written_again_after_listing_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"12345")
    source = DirectorySource(tmp_path)
    source.members()
    write(path, b"54321")
    os.utime(path, ns=(1, 1))
    with pytest.raises(MemberError, match="was written again since it was listed"):
        source.read("a")


def test_times_count_only_in_the_digest_that_asks_for_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"12345")
    before = DirectorySource(tmp_path).members()
    os.utime(path, ns=(1, 1))
    after = DirectorySource(tmp_path).members()

    assert before == after
    assert listing_digest(before) == listing_digest(after)
    assert listing_digest(before, with_times=True) != listing_digest(after, with_times=True)
