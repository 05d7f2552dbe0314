"""Side files: what they say is what the tars hold, in the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from imgprep.errors import DamagedError
from imgprep.index import ClassInfo, ShardIndex, read_index
from imgprep.interop import class_names, side_files, side_names, write_side_files, write_sums
from imgprep.workspace import Workspace


@pytest.fixture
def shards(sharded: Workspace) -> Path:
    """A folder of shards without side files."""
    folder = sharded.shards("main")
    for name in side_names(read_index(folder)):
        (folder / name).unlink(missing_ok=True)
    return folder


def named(*classes: tuple[str, str], layout: str = "imagefolder") -> ShardIndex:
    infos = (ClassInfo(label=n, wnid=wnid, name=name) for n, (wnid, name) in enumerate(classes))
    return ShardIndex(classes=tuple(infos), splits={}, provenance={"source": {"layout": layout}})


def card(folder: Path, index: ShardIndex) -> str:
    return dict(side_files(folder, index))["README.md"].decode()


def test_what_is_planned_is_made_and_written_in_that_order(shards: Path) -> None:
    index = read_index(shards)
    made = dict(side_files(shards, index))
    written = write_side_files(shards, index)

    assert written == side_names(index) == [*made]
    assert all((shards / name).read_bytes() == content for name, content in made.items())


def test_side_files_have_the_same_bytes_in_another_folder(shards: Path, tmp_path: Path) -> None:
    index = read_index(shards)
    first = {name: (shards / name).read_bytes() for name in write_side_files(shards, index)}
    other = shards.rename(tmp_path / "elsewhere")

    assert {name: (other / name).read_bytes() for name in write_side_files(other, index)} == first
    assert not [name for name, content in first.items() if str(tmp_path).encode() in content]


def test_coreutils_accept_the_sums_and_notice_a_flipped_bit(shards: Path) -> None:
    files = {str(path.relative_to(shards)) for path in shards.rglob("*") if path.is_file()} - {"SHA256SUMS"}
    write_sums(shards, files, hashes={"index.json": hashlib.sha256((shards / "index.json").read_bytes()).hexdigest()})
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    covered = {line.split("  ", 1)[1] for line in (shards / "SHA256SUMS").read_text().splitlines()}

    assert subprocess.run(check, cwd=shards, check=False).returncode == 0
    assert files == covered
    tar = next(shards.glob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    assert subprocess.run(check, cwd=shards, check=False, capture_output=True).returncode == 1


def test_the_indexes_of_dali_and_energon_point_at_members_and_samples(shards: Path) -> None:
    index = read_index(shards)
    write_side_files(shards, index)
    for split in index.splits.values():
        for shard in split.shards:
            path = shards / shard.filename
            with tarfile.open(path) as archive:
                members = [(m.name, m.offset, m.offset_data, m.size) for m in archive]
            version, *lines = path.with_suffix(".idx").read_text().splitlines()
            words = " ".join(lines).split()
            table = path.with_name(f"{path.name}.idx").read_bytes()

            assert version == f"v1.2 {shard.num_samples}"
            assert [len(line.split()) for line in lines] == [12] * shard.num_samples
            assert [(words[i + 3], int(words[i + 1]), int(words[i + 2])) for i in range(0, len(words), 4)] == [
                (name, offset, size) for name, _, offset, size in members
            ]
            assert words[::4] == ["jpg", "cls", "json"] * shard.num_samples
            starts = [offset for _, offset, _, _ in members[::3]]
            assert struct.unpack(f"<{len(starts) + 1}Q", table) == (*starts, shard.num_bytes - 1024)


def test_splits_have_the_names_each_reader_knows(shards: Path) -> None:
    index = read_index(shards)
    write_side_files(shards, index)
    timm = json.loads((shards / "_info.json").read_text())["splits"]
    wids = json.loads((shards / "val.wids.json").read_text())

    assert list(timm) == ["train", "validation"]
    assert timm["validation"]["shard_lengths"] == [s.num_samples for s in index.splits["val"].shards]
    assert [s["url"] for s in wids["shardlist"]] == timm["validation"]["filenames"]
    assert "  test: []\n" in (shards / ".nv-meta" / "split.yaml").read_text()
    assert "  - split: validation\n    path:\n    - imgprep-val-000000.tar\n" in (shards / "README.md").read_text()


def test_a_tar_that_is_not_as_the_index_says_gets_no_side_files(shards: Path) -> None:
    index = read_index(shards)
    tar = shards / index.splits["train"].shards[0].filename
    whole = tar.read_bytes()
    for damaged in (b"\xff" * 512 + whole[512:], whole[:512], whole[:124] + b"77777777777\0" + whole[136:]):
        tar.write_bytes(damaged)

        with pytest.raises(DamagedError, match="the header at byte"):
            write_side_files(shards, index)
    first = replace(index.splits["train"].shards[0], num_samples=9)
    tar.write_bytes(whole)
    train = replace(index.splits["train"], shards=(first, *index.splits["train"].shards[1:]), num_samples=35)
    with pytest.raises(DamagedError, match="9 samples expected, got"):
        write_side_files(shards, replace(index, splits={"train": train}))


def test_class_names_are_unique(tmp_path: Path) -> None:
    cranes = named(("n1", "crane, bird"), ("n2", "crane"), ("n3", "tench, Tinca"))
    forged = named(("n1", "crane"), ("n2", "crane"), ("n3", "crane (n1)"))

    assert class_names(cranes) == ["crane (n1)", "crane (n2)", "tench"]
    assert len(set(class_names(forged))) == 3
    assert class_names(named(("n1", ""))) == ["n1"]


def test_names_from_an_archive_cannot_break_the_card(tmp_path: Path) -> None:
    text = card(tmp_path, named(("n|1", 'a"\n---\n<script>: `x`|y')))

    assert '\n          \'0\': "a\\"\\n---\\n<script>: `x`|y"\n' in text
    assert '| 0 | n\\|1 | a" --- \\<script>: \\`x\\`\\|y |' in text


def test_terms_are_told_of_imagenet_alone(tmp_path: Path) -> None:
    other, imagenet = named(("a", "a")), named(("a", "a"), layout="ilsvrc")

    assert "ImageNet" not in card(tmp_path, other)
    assert "non-commercial" in card(tmp_path, imagenet)
    assert "license" not in json.loads(dict(side_files(tmp_path, other))["croissant.json"])
    assert json.loads(dict(side_files(tmp_path, imagenet))["croissant.json"])["license"].startswith("https://")


def test_the_card_of_many_classes_shows_some(tmp_path: Path) -> None:
    text = card(tmp_path, named(*((f"n{number}", f"class {number}") for number in range(1000))))

    assert "The other 980 classes are in `index.json`." in text
    assert "          '999': \"class 999\"\n" in text
    assert len(text) < 64_000


def test_names_of_classes_are_read_from_the_card_as_they_are(tmp_path: Path) -> None:
    """Characters outside the basic plane became two halves that no encoder takes."""
    yaml = pytest.importorskip("yaml")
    names = ["\U0001f41f fish", 'a "b": \\c', "tab\there", "\u2028 line", "\x85 next", "\ufeff mark", "'", "ß, ü"]
    text = card(tmp_path, named(*((f"n{n}", name) for n, name in enumerate(names))))
    features = yaml.safe_load(text.split("---\n")[1])["dataset_info"]["features"]
    found = next(one for one in features if one["name"] == "cls")["dtype"]["class_label"]["names"]

    assert list(found.values()) == class_names(named(*((f"n{n}", name) for n, name in enumerate(names))))
    assert text.encode()
