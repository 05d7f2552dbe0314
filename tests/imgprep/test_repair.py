"""repair: whatever was damaged is what it was, to the byte; only what is damaged is made again; nothing is guessed."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from imgprep.annotations import annotations as read_annotations
from imgprep.catalog import catalog
from imgprep.cli.check import repair as command
from imgprep.errors import (
    ContradictionError,
    DamagedError,
    LockedError,
    MissingInputError,
    SourceError,
    UsageError,
)
from imgprep.executors import ThreadExecutor
from imgprep.fetch import fetch
from imgprep.index import ClassInfo, ShardIndex, ShardInfo, SplitInfo, read_index
from imgprep.interop import side_names
from imgprep.repair import Repaired, RepairSpec, repair
from imgprep.selection import SubsetSpec
from imgprep.shard import make_prepare, plan_job, shard
from imgprep.shard_plan import ShardSpec
from imgprep.sources.zip import ZipSource
from imgprep.subset import subset
from imgprep.verify import RECEIPT, REJECTED, SUMS, VerifySpec, verify
from imgprep.workspace import Workspace

TRAIN, OTHER, VAL = "imgprep-train-000001.tar", "imgprep-train-000003.tar", "imgprep-val-000000.tar"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def mend(workspace: Workspace, **spec: bool) -> Repaired:
    return repair(workspace, "main", RepairSpec(**spec))


def flipped(content: bytes, place: int, bit: int = 0) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def flip(path: Path, place: int, bit: int = 0) -> None:
    path.write_bytes(flipped(path.read_bytes(), place, bit))


def rows(folder: Path, name: str) -> Any:
    """The rows of the sample table that are about a tar."""
    _, split, number = name.removesuffix(".tar").split("-")
    table = np.load(folder / f"{split}.samples.npy")
    return table[table["shard"] == int(number)]


def documents(path: Path) -> list[dict[str, Any]]:
    """The ``KEY.json`` of a tar, in order."""
    with tarfile.open(path) as archive:
        return [json.loads(archive.extractfile(m).read()) for m in archive if m.name.endswith(".json")]  # type: ignore[union-attr]


def documents_of(content: bytes, folder: Path) -> list[dict[str, Any]]:
    """The ``KEY.json`` of a tar that is whole."""
    (folder / "whole.tar").write_bytes(content)
    return documents(folder / "whole.tar")


@contextmanager
def counted_reads() -> Iterator[list[str]]:
    """What is read from the source, in order."""
    names: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for method in ("read", "view"):
            if hasattr(ZipSource, method):
                patch.setattr(ZipSource, method, _counting(getattr(ZipSource, method), names))
        yield names


def _counting(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    def counted(self: ZipSource, name: str) -> Any:
        names.append(name)
        return function(self, name)

    return counted


@pytest.fixture
def plain(sharded: Workspace) -> Workspace:
    """Shards without side files: their receipt has no witness but the index, and the index none but the receipt."""
    shutil.rmtree(sharded.shards("main"))
    spec = ShardSpec(size=48, samples_per_shard=5, side_files=False)
    shard(sharded, plan_job(sharded, spec, subset="main"), spec)
    return sharded


@pytest.fixture
def movable(sharded: Workspace, toy_zip: Path, tmp_path: Path) -> Workspace:
    """A workspace whose source is its own, to be changed or taken away."""
    copy = tmp_path / "own.zip"
    shutil.copy(toy_zip, copy)
    fetch(sharded, copy, overwrite=True)
    return sharded


# What is whole.


def test_nothing_is_touched_where_nothing_is_wrong(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with counted_reads() as names:
        repaired = mend(sharded)

    assert (repaired.action, repaired.whole, names) == ("skip", True, [])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_of_tars_that_are_known_to_be_whole_verify_looks_at_the_size_alone(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    size = (folder / TRAIN).stat().st_size
    flip(folder / TRAIN, 300)
    verdict = verify(folder, VerifySpec(), known=[TRAIN])
    assert (verdict.problems, verdict.num_read) == ((), verdict.num_bytes - size)

    os.truncate(folder / TRAIN, size - 1)
    assert [(one.kind, one.file) for one in verify(folder, VerifySpec(), known=[TRAIN]).problems] == [("size", TRAIN)]


# Any damage.


def damage(folder: Path, names: list[str], generator: random.Random) -> str:
    """Do something to a file; returns what."""
    name = generator.choice(names)
    path = folder / name
    content = path.read_bytes() if path.is_file() else b""
    kind = generator.choice(
        ["flip", "flip", "cut", "missing", "zero", "append", "swap", "rename", "run", "link", "folder"]
    )
    if path.is_dir():
        return f"nothing {name}"
    if kind == "missing" or not content:
        path.unlink(missing_ok=True)
    elif kind == "flip":
        path.write_bytes(flipped(content, generator.randrange(len(content)), generator.randrange(8)))
    elif kind == "cut":
        path.write_bytes(content[: generator.randrange(len(content))])
    elif kind == "zero":
        path.write_bytes(bytes(len(content)))
    elif kind == "append":
        path.write_bytes(content + bytes(512))
    elif kind == "run":
        start, length = generator.randrange(len(content)), generator.choice((16, 512, 5000))
        path.write_bytes((content[:start] + generator.randbytes(length) + content[start + length :])[: len(content)])
    elif kind == "swap":
        other = folder / generator.choice([one for one in names if one.endswith((".tar", ".npy"))])
        path.write_bytes(other.read_bytes() if other.is_file() else b"")
        if not other.is_dir():
            other.write_bytes(content)
    elif kind == "rename":
        path.rename(path.with_name(f"other-{path.name}"))
    else:
        path.unlink()
        path.mkdir() if kind == "folder" else path.symlink_to(folder.parent / "elsewhere")
    return f"{kind} {name}"


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_damaged_comes_out_as_it_was(sharded: Workspace, tmp_path: Path, seed: int) -> None:
    folder, whole = sharded.shards("main"), tmp_path / "whole"
    shutil.copytree(folder, whole)
    before = contents(whole)
    names, generator = sorted(before), random.Random(seed)
    for number in range(40):
        done = [damage(folder, names, generator) for _ in range(generator.choice((1, 1, 1, 2, 3)))]
        witnesses = {one.split(" ", 1)[1] for one in done} & {"index.json", RECEIPT}
        if len(witnesses) < 2:
            repaired = mend(sharded, delete_extra=True)
            after = contents(folder)
            assert {name: after.get(name) for name in before} == before, (seed, number, done, repaired.failures)
            # Renamed side files are nobody's business.
            assert all(Path(name).name.startswith("other-") for name in after.keys() - before.keys()), (number, done)
            assert repaired.whole, (seed, number, done)
            assert verify(folder, VerifySpec()).problems == ()
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)


def test_without_side_files_too_whatever_is_damaged_comes_out_as_it_was(plain: Workspace, tmp_path: Path) -> None:
    folder, whole = plain.shards("main"), tmp_path / "whole"
    shutil.copytree(folder, whole)
    before = contents(whole)
    names, generator = sorted(before), random.Random(7)
    for number in range(60):
        done = damage(folder, names, generator)
        if verify(folder, VerifySpec()).problems:
            repaired = mend(plain, delete_extra=True)
            after = contents(folder)
            assert {name: after.get(name) for name in before} == before, (number, done, repaired.failures)
            assert repaired.whole
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)


@pytest.mark.parametrize(
    "name", ["index.json", RECEIPT, SUMS, REJECTED, "train.samples.npy", "README.md", ".nv-meta/split.yaml"]
)
@pytest.mark.parametrize("kind", ["missing", "empty", "flip"])
def test_every_file_is_made_again_from_the_others(sharded: Workspace, name: str, kind: str) -> None:
    folder = sharded.shards("main")
    before = contents(folder)
    if kind == "missing":
        (folder / name).unlink()
    elif kind == "empty":
        (folder / name).write_bytes(b"")
    else:
        flip(folder / name, len(before[name]) // 2)
    repaired = mend(sharded)

    assert contents(folder) == before
    assert (repaired.whole, repaired.shards, repaired.files) == (True, [], [name])


def test_all_of_the_files_beside_the_tars_but_one_witness_may_be_gone(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    before = contents(folder)
    for kept in ("index.json", RECEIPT):
        for name in before:
            if not name.endswith(".tar") and name != kept:
                (folder / name).unlink()
        shutil.rmtree(folder / ".nv-meta")
        repaired = mend(sharded)
        assert contents(folder) == before
        assert repaired.whole
        # The reasons of the rejected are seen in the source.
        assert repaired.num_read == len(before[REJECTED].splitlines()) - 1


def test_tars_and_tables_and_the_list_of_rejects_may_be_gone_all_at_once(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    before = contents(folder)
    for name in before:
        if name.endswith((".tar", ".npy")) or name == REJECTED:
            (folder / name).unlink()
    repaired = repair(sharded, "main", RepairSpec(), executor=ThreadExecutor(3))

    assert contents(folder) == before
    assert repaired.num_taken == 0
    assert repaired.num_read == json.loads(before[RECEIPT])["counts"]["in"]


def test_without_index_and_receipt_nothing_says_what_the_shards_were(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    (folder / "index.json").write_text("{}")
    (folder / RECEIPT).unlink()
    before = contents(folder)
    with pytest.raises(DamagedError, match=r"neither index.json nor shard.receipt.json .*`imgprep shard --overwrite`"):
        mend(sharded)
    assert contents(folder) == before


# What is read again, and what is taken over.


def test_only_damaged_pictures_are_read_from_the_source(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    before, table = contents(folder), rows(folder, TRAIN)
    hit = [documents(folder / TRAIN)[number]["path"] for number in (1, 3)]
    for number in (1, 3):
        flip(folder / TRAIN, int(table["offset"][number]) + 9)
    with counted_reads() as names:
        repaired = mend(sharded)

    assert contents(folder) == before
    assert sorted(names) == sorted(hit)
    assert (repaired.num_read, repaired.num_taken) == (2, len(table) - 2)
    assert repaired.shards == [TRAIN]


@pytest.mark.parametrize("part", ["header", "cls", "padding", "end", "json"])
def test_damage_beside_the_pictures_needs_no_source(movable: Workspace, tmp_path: Path, part: str) -> None:
    folder = movable.shards("main")
    before, table = contents(folder), rows(folder, TRAIN)
    after = int(table["offset"][1] + table["length"][1])
    cls = after + -after % 512
    # A digit of the width: JSON stays valid.
    width = before[TRAIN].index(b'"width":', cls) + len(b'"width":')
    place = {"header": int(table["offset"][1]) - 512, "cls": cls + 512, "padding": cls + 600, "end": -1, "json": width}
    flip(folder / TRAIN, place[part] % len(before[TRAIN]))
    (tmp_path / "own.zip").unlink()
    boxed = "boxes" in documents_of(before[TRAIN], tmp_path)[1]
    repaired = mend(movable)

    # Of a damaged KEY.json the boxes are not taken over, where it has any.
    assert repaired.whole is not (boxed and part == "json")
    if repaired.whole:
        assert (contents(folder), repaired.num_read, repaired.num_taken) == (before, 0, len(table))


def test_a_box_that_became_another_box_is_found_by_the_hash_of_all(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    before = contents(folder)
    boxed = sum("boxes" in one for one in documents(folder / VAL))
    place = before[VAL].index(b'"xmax":') + len(b'"xmax":')
    changed = bytearray(before[VAL])
    changed[place] = ord("1") if changed[place] != ord("1") else ord("2")
    (folder / VAL).write_bytes(changed)
    with counted_reads() as names:
        repaired = mend(sharded)

    assert boxed
    assert contents(folder) == before
    assert repaired.num_read == len(names) == boxed
    assert repaired.num_taken == len(rows(folder, VAL)) - boxed


def test_a_cut_tar_is_read_from_where_it_was_cut(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    before, table = contents(folder), rows(folder, OTHER)
    (folder / OTHER).write_bytes(before[OTHER][: int(table["offset"][2]) + 5])
    lost = [one["path"] for one in documents_of(before[OTHER], folder.parent)[2:]]
    with counted_reads() as names:
        repaired = mend(sharded)

    assert contents(folder) == before
    # Of the second, KEY.json is whole: only what follows is gone.
    assert names == lost
    assert (repaired.num_read, repaired.num_taken) == (len(lost), 2)


def test_what_a_damaged_table_still_tells_is_used(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    before, table = contents(folder), rows(folder, TRAIN)
    flip(folder / TRAIN, int(table["offset"][0]) + 9)
    flip(folder / "train.samples.npy", len(before["train.samples.npy"]) - 1)
    repaired = mend(sharded)

    assert contents(folder) == before
    assert (repaired.num_read, repaired.num_taken) == (1, len(table) - 1)


def test_swapped_rows_of_a_table_do_not_swap_pictures(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    before = contents(folder)
    table = np.load(folder / "train.samples.npy")
    own = np.flatnonzero(table["shard"] == 1)
    table[own] = table[own[::-1]]
    np.save(folder / "train.samples.npy", table)
    flip(folder / TRAIN, 300)
    repaired = mend(sharded)

    assert contents(folder) == before
    assert repaired.whole


def test_rejected_pictures_are_known_again_without_their_list(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    before = contents(folder)
    listed = list(csv.DictReader(before[REJECTED].decode().splitlines()))
    assert listed
    (folder / REJECTED).unlink()
    for path in folder.glob("*.tar"):
        flip(path, 300)
    with counted_reads() as names:
        repaired = mend(sharded)

    assert contents(folder) == before
    assert {one["path"] for one in listed} <= set(names)
    assert len(names) == repaired.num_read < json.loads(before[RECEIPT])["counts"]["in"]


# Names.


def test_renamed_and_swapped_shards_get_their_names_back_without_a_copy(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    before = contents(folder)
    inodes = {hashlib.sha256(before[name]).hexdigest(): (folder / name).stat().st_ino for name in (TRAIN, OTHER, VAL)}
    (folder / TRAIN).rename(folder / "a.tar")
    (folder / OTHER).rename(folder / TRAIN)
    (folder / VAL).rename(folder / OTHER)
    (folder / "a.tar").rename(folder / VAL)
    (folder / "train.samples.npy").rename(folder / "b.npy")
    with counted_reads() as names:
        repaired = mend(sharded)

    assert contents(folder) == before
    assert names == []
    assert {hashlib.sha256(before[n]).hexdigest(): (folder / n).stat().st_ino for n in (TRAIN, OTHER, VAL)} == inodes
    assert repaired.renamed == {TRAIN: VAL, OTHER: TRAIN, VAL: OTHER, "train.samples.npy": "b.npy"}
    assert (repaired.shards, repaired.files) == ([], [])


def test_a_shard_copied_over_another_is_written_anew(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    before = contents(folder)
    shutil.copy(folder / TRAIN, folder / OTHER)
    repaired = mend(sharded)

    assert contents(folder) == before
    assert (repaired.shards, repaired.renamed) == ([OTHER], {})


def test_a_linked_folder_of_side_files_is_made_a_folder(sharded: Workspace, tmp_path: Path) -> None:
    folder = sharded.shards("main")
    before = contents(folder)
    (folder / ".nv-meta").rename(tmp_path / "elsewhere")
    (folder / ".nv-meta").symlink_to(tmp_path / "elsewhere")
    elsewhere = contents(tmp_path / "elsewhere")
    repaired = mend(sharded)

    assert repaired.whole
    assert not (folder / ".nv-meta").is_symlink()
    assert contents(folder) == before
    assert contents(tmp_path / "elsewhere") == elsewhere


def test_a_folder_of_others_is_not_said_to_be_deleted(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    (folder / "x.tar").mkdir()
    (folder / "old.tar").write_bytes(b"old")
    result = run("-w", sharded.root, "--delete-extra")
    assert isinstance(result.exception, DamagedError)
    assert "old.tar: does not belong to the shards, deleted" in result.stdout
    assert "not repaired: x.tar: is a folder" in result.stdout
    assert "x.tar: does not belong to the shards, deleted" not in result.stdout
    assert (folder / "x.tar").is_dir()


def test_temporary_files_of_others_are_left_and_our_own_deleted(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    before = contents(folder)
    foreign = {".mine.tmp": b"mine", f".{TRAIN}.part.tmp": b"x"}
    own = [f".{TRAIN}.tmp", f"..{TRAIN}.tmp.tmp", f".{SUMS}.tmp", ".nv-meta/.split.yaml.tmp"]
    for name in (*foreign, *own):
        (folder / name).write_bytes(foreign.get(name, b"left"))
    (folder / SUMS).unlink()
    assert mend(sharded, delete_extra=True).whole
    assert contents(folder) == before | foreign


@pytest.mark.parametrize(
    "name", ["index.json", RECEIPT, SUMS, REJECTED, TRAIN, "train.samples.npy", "README.md", ".nv-meta/split.yaml"]
)
def test_a_folder_with_files_of_others_in_the_place_of_a_file_fails_for_that_file(
    sharded: Workspace, name: str
) -> None:
    folder = sharded.shards("main")
    before = contents(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    (folder / name / "mine").write_bytes(b"mine")
    (folder / VAL).rename(folder / "v.tar")
    repaired = mend(sharded)
    assert "move it away" in repaired.failures[name]
    assert (folder / VAL).read_bytes() == before[VAL]
    assert (folder / name / "mine").read_bytes() == b"mine"

    shutil.rmtree(folder / name)
    assert mend(sharded).whole
    assert contents(folder) == before


def test_of_a_damaged_box_without_source_it_is_said_that_the_source_is_gone(movable: Workspace, tmp_path: Path) -> None:
    folder = movable.shards("main")
    content = (folder / VAL).read_bytes()
    place = content.index(b'"xmax":') + len(b'"xmax":')
    (folder / VAL).write_bytes(content[:place] + (b"1" if content[place] != ord("1") else b"2") + content[place + 1 :])
    (tmp_path / "own.zip").unlink()
    assert re.search(r"a box of it is damaged.* but the source .* gone", mend(movable).failures[VAL])


FIRST = "imgprep-train-000000.tar"


def swap(folder: Path, one: str, other: str) -> None:
    (folder / one).rename(folder / "away")
    (folder / other).rename(folder / one)
    (folder / "away").rename(folder / other)


@pytest.mark.parametrize("both", [False, True])
def test_a_damaged_tar_under_the_name_of_another_is_not_overwritten(
    movable: Workspace, tmp_path: Path, both: bool
) -> None:
    folder = movable.shards("main")
    before, table = contents(folder), rows(folder, TRAIN)
    flip(folder / TRAIN, int(table["offset"][1]) + 9)
    damaged = (folder / TRAIN).read_bytes()
    if both:
        flip(folder / FIRST, int(rows(folder, FIRST)["offset"][0]) + 9)
    swap(folder, FIRST, TRAIN)
    (tmp_path / "own.zip").rename(tmp_path / "away.zip")
    assert set(mend(movable).failures) == ({FIRST, TRAIN} if both else {TRAIN})
    assert (folder / TRAIN).read_bytes() == damaged
    assert both or (folder / FIRST).read_bytes() == before[FIRST]

    (tmp_path / "away.zip").rename(tmp_path / "own.zip")
    assert mend(movable).num_read == 1 + both
    assert contents(folder) == before


def test_killed_between_the_names_a_damaged_tar_is_found_again(movable: Workspace, tmp_path: Path) -> None:
    folder, start = movable.shards("main"), tmp_path / "start"
    flip(folder / TRAIN, int(rows(folder, TRAIN)["offset"][1]) + 9)
    damaged = (folder / TRAIN).read_bytes()
    swap(folder, FIRST, TRAIN)
    shutil.copytree(folder, start)
    (tmp_path / "own.zip").unlink()
    with killed_at(1 << 30) as asked:
        mend(movable)
    assert asked[0] >= 4
    for number in range(1, asked[0] + 1):
        shutil.rmtree(folder)
        shutil.copytree(start, folder)
        with killed_at(number), pytest.raises(KilledError):
            mend(movable)
        mend(movable)
        assert (folder / TRAIN).read_bytes() == damaged, number


def test_extra_files_are_named_and_deleted_only_when_asked(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    before = contents(folder)
    (folder / "old.tar").write_bytes(b"old")
    (folder / "mine.tar").mkdir()
    (folder / "mine.tar" / "a").write_text("a")
    left = mend(sharded)
    assert (left.extra, left.whole, (folder / "old.tar").exists()) == (["mine.tar", "old.tar"], False, True)

    mend(sharded, delete_extra=True)
    assert not (folder / "old.tar").exists()
    assert (folder / "mine.tar" / "a").read_text() == "a"
    shutil.rmtree(folder / "mine.tar")
    assert contents(folder) == before


# Edits that agree with themselves.


def edited(index: ShardIndex) -> str:
    classes = (ClassInfo(label=0, wnid=index.classes[0].wnid, name="another"), *index.classes[1:])
    return ShardIndex(classes=classes, splits=index.splits, spec=index.spec, provenance=index.provenance).to_json()


def test_an_index_that_was_edited_with_all_its_digests_is_outvoted(plain: Workspace) -> None:
    folder = plain.shards("main")
    before = contents(folder)
    (folder / "index.json").write_text(edited(read_index(folder)), encoding="utf-8")
    repaired = mend(plain)

    assert contents(folder) == before
    assert repaired.files == ["index.json"]


def test_a_tar_that_was_replaced_together_with_its_index_is_found(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    before = contents(folder)
    other = flipped(before[TRAIN], int(rows(folder, TRAIN)["offset"][0]) + 9)
    old, new = (hashlib.sha256(one).hexdigest() for one in (before[TRAIN], other))
    document = json.loads(before["index.json"].decode().replace(old, new))
    (folder / TRAIN).write_bytes(other)
    (folder / "index.json").write_text(index_of(document).to_json(), encoding="utf-8")
    repaired = mend(sharded)

    assert contents(folder) == before
    assert (repaired.shards, repaired.num_read) == ([TRAIN], 1)


def index_of(document: dict[str, Any]) -> ShardIndex:
    """An index that says this, whatever its digests."""
    splits = {
        name: SplitInfo(**{**one, "shards": tuple(ShardInfo(**shard) for shard in one["shards"])})
        for name, one in document["splits"].items()
    }
    classes = tuple(ClassInfo(**one) for one in document["classes"])
    return ShardIndex(classes=classes, splits=splits, spec=document["spec"], provenance=document["provenance"])


@pytest.mark.parametrize("wrong", ["index.json", REJECTED, TRAIN, "train.samples.npy"])
def test_a_receipt_that_says_otherwise_is_the_one_to_be_made_again(plain: Workspace, wrong: str) -> None:
    folder = plain.shards("main")
    before = contents(folder)
    document = json.loads(before[RECEIPT])
    document["outputs"][wrong]["sha256"] = "0" * 64
    (folder / RECEIPT).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    repaired = mend(plain)

    assert contents(folder) == before
    assert repaired.files == [RECEIPT]


def forge(folder: Path, **options: Any) -> None:
    """Change options in the index, and refit its digest."""
    document = json.loads((folder / "index.json").read_text())
    document["spec"] |= options
    (folder / "index.json").write_text(index_of(document).to_json(), encoding="utf-8")


FORGED: list[dict[str, Any]] = [{"seed": 1}, {"samples_per_shard": 4}, {"samples_per_shard": 6}, {"quality": 50}]


@pytest.mark.parametrize("options", FORGED)
@pytest.mark.parametrize("kind", ["sharded", "plain"])
def test_forged_options_in_the_index_do_not_become_true(
    request: pytest.FixtureRequest, kind: str, options: dict[str, Any]
) -> None:
    workspace = request.getfixturevalue(kind)
    folder = workspace.shards("main")
    before = contents(folder)
    forge(folder, **options)
    planned, repaired = mend(workspace, dry_run=True), mend(workspace)

    assert contents(folder) == before
    assert (repaired.whole, repaired.files) == (True, ["index.json"])
    assert kind == "plain" or planned.files == repaired.files


def test_a_forged_index_that_cannot_be_made_again_fails_alone(
    sharded: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sharded.shards("main")
    forge(folder, seed=1)
    before = contents(folder)
    # No provenance is the one of then.
    other = {"source": {"listing_sha256": "0"}, "subset": {}, "libraries": {}}
    monkeypatch.setattr("imgprep.repair._read_provenance", lambda _: other)
    monkeypatch.setattr("imgprep.repair._read_card", lambda *_: other)
    monkeypatch.setattr("imgprep.shard.libraries", lambda: {"opencv": "9", "pillow": "9", "simplejpeg": "9"})
    repaired = mend(sharded)

    assert contents(folder) == before
    assert set(repaired.failures) >= {"index.json"}
    assert not repaired.whole


@pytest.mark.parametrize("options", FORGED)
def test_a_forged_index_without_receipt_is_not_made_true_by_rewriting_the_sums(
    sharded: Workspace, options: dict[str, Any]
) -> None:
    folder = sharded.shards("main")
    forge(folder, **options)
    (folder / RECEIPT).unlink()
    sums = (folder / SUMS).read_bytes()
    try:
        is_whole = mend(sharded).whole
    except (ContradictionError, DamagedError):
        is_whole = False
    assert (is_whole, (folder / SUMS).read_bytes()) == (False, sums)


def test_options_forged_in_index_and_receipt_alike_do_not_fit_the_tars(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    old = (folder / "index.json").read_bytes()
    forge(folder, seed=1)
    receipt = json.loads((folder / RECEIPT).read_text())
    receipt["options"]["seed"] = 1
    text = json.dumps(receipt, indent=1, ensure_ascii=False) + "\n"
    new = hashlib.sha256((folder / "index.json").read_bytes()).hexdigest()
    (folder / RECEIPT).write_text(text.replace(hashlib.sha256(old).hexdigest(), new), encoding="utf-8")
    before = contents(folder)
    with pytest.raises(DamagedError, match="holds other samples than the options"):
        mend(sharded)
    assert contents(folder) == before


# The source and the other inputs.


def test_without_its_source_what_needs_none_is_repaired_and_the_rest_is_told(
    movable: Workspace, tmp_path: Path
) -> None:
    folder = movable.shards("main")
    before = contents(folder)
    (tmp_path / "own.zip").unlink()
    flip(folder / TRAIN, int(rows(folder, TRAIN)["offset"][0]) + 9)
    (folder / OTHER).unlink()
    (folder / VAL).rename(folder / "v.tar")
    (folder / "index.json").unlink()
    (folder / "val.samples.npy").write_bytes(b"")
    repaired = mend(movable)

    assert (folder / VAL).read_bytes() == before[VAL]
    assert (folder / "val.samples.npy").read_bytes() == before["val.samples.npy"]
    assert set(repaired.failures) == {TRAIN, OTHER, "index.json"}
    assert "1 of its pictures have to be read from the source, but the source" in repaired.failures[TRAIN]
    assert not repaired.whole


def test_when_its_source_is_back_the_rest_is_repaired(movable: Workspace, tmp_path: Path) -> None:
    folder = movable.shards("main")
    before = contents(folder)
    (tmp_path / "own.zip").rename(tmp_path / "away.zip")
    (folder / OTHER).unlink()
    (folder / "index.json").unlink()
    assert not mend(movable).whole
    (tmp_path / "away.zip").rename(tmp_path / "own.zip")

    assert mend(movable).whole
    assert contents(folder) == before


def test_from_a_folder_without_checksums_copies_are_repaired_too(toy_zip: Path, tmp_path: Path) -> None:
    workspace, unpacked = Workspace(tmp_path / "w"), tmp_path / "unpacked"
    with zipfile.ZipFile(toy_zip) as archive:
        archive.extractall(unpacked)
    fetch(workspace, unpacked)
    catalog(workspace)
    read_annotations(workspace)
    subset(workspace, SubsetSpec(classes=4, per_class=8), name="main")
    spec = ShardSpec(images="original", bytes_per_shard=20_000)
    shard(workspace, plan_job(workspace, spec, subset="main"), spec)
    folder = workspace.shards("main")
    before = contents(folder)
    # Without sums the receipt has no witness, and without both the list of rejects: all is found again.
    (folder / RECEIPT).unlink()
    (folder / SUMS).unlink()
    flip(folder / TRAIN, int(rows(folder, TRAIN)["offset"][2]) + 9)
    repaired = mend(workspace)
    assert contents(folder) == before
    listed = len(before[REJECTED].splitlines()) - 1
    assert (repaired.num_read, repaired.files) == (1 + listed, [SUMS, RECEIPT])

    flip(folder / TRAIN, int(rows(folder, TRAIN)["offset"][2]) + 9)
    picture = unpacked / documents(folder / VAL)[0]["path"]
    os.utime(picture, ns=(1, 1))
    with pytest.raises(SourceError, match="changed since it was adopted"):
        mend(workspace)


def test_a_source_that_changed_is_refused_before_anything_is_written(movable: Workspace, tmp_path: Path) -> None:
    folder = movable.shards("main")
    (folder / TRAIN).unlink()
    (folder / VAL).rename(folder / "v.tar")
    before = contents(folder)
    with zipfile.ZipFile(tmp_path / "own.zip", "a") as archive:
        archive.writestr("another.txt", "another")
    with pytest.raises(SourceError, match="changed since it was adopted"):
        mend(movable)
    assert contents(folder) == before


def test_another_subset_is_refused_and_one_under_another_name_is_found(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    whole = contents(folder)
    (folder / TRAIN).unlink()
    before = contents(folder)
    subset(sharded, SubsetSpec(classes=4, per_class=8), name="kept")
    subset(sharded, SubsetSpec(classes=3, per_class=8), name="main", overwrite=True)
    shutil.move(sharded.subset("kept"), sharded.root / "kept")
    with pytest.raises(ContradictionError, match=r"another subset than main - choose that one again: classes=4"):
        mend(sharded)
    assert contents(folder) == before

    shutil.move(sharded.root / "kept", sharded.subset("kept"))
    assert mend(sharded).whole
    assert contents(folder) == whole
    shutil.rmtree(sharded.root / "subsets")
    (folder / TRAIN).unlink()
    with pytest.raises(MissingInputError, match="has no subset"):
        mend(sharded)


@pytest.mark.parametrize("table", ["classes.csv", "boxes.csv"])
def test_other_classes_and_boxes_are_refused(sharded: Workspace, table: str) -> None:
    folder = sharded.shards("main")
    (folder / TRAIN).unlink()
    before = contents(folder)
    path = (sharded.subset("main") if table == "classes.csv" else sharded.catalog) / table
    lines = path.read_text().splitlines(keepends=True)
    keys = {record["key"] for name in folder.glob("*.tar") for record in documents(name)}
    number = next(n for n, line in enumerate(lines[1:], 1) if table == "classes.csv" or line.split(",")[0] in keys)
    lines[number] = lines[number].replace("\n", "x\n") if table == "classes.csv" else lines[number] * 2
    path.write_text("".join(lines))
    with pytest.raises(ContradictionError, match=f"others are: {table.removesuffix('.csv')}"):
        mend(sharded)
    assert contents(folder) == before


def test_other_bytes_replace_nothing_and_the_libraries_are_named(
    sharded: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sharded.shards("main")
    flip(folder / TRAIN, int(rows(folder, TRAIN)["offset"][0]) + 9)
    damaged = (folder / TRAIN).read_bytes()
    # Another version of an encoder: it makes other bytes, and says so.
    make = make_prepare

    def other(spec: ShardSpec) -> Any:
        def prepare(content: Any) -> Any:
            image = make(spec)(content)
            return image._replace(jpeg=bytes(image.jpeg[:-2]) + b"\0\xff\xd9")

        return prepare

    monkeypatch.setattr("imgprep.repair.make_prepare", other)
    monkeypatch.setattr("imgprep.repair.libraries", lambda: {"opencv": "99.0"})
    repaired = mend(sharded)

    assert (folder / TRAIN).read_bytes() == damaged
    assert "comes out with other bytes" in repaired.failures[TRAIN]
    assert [warning.endswith("now 99.0") for warning in repaired.warnings] == [True]
    assert not list(folder.glob(".*.tmp"))
    result = run("-w", sharded.root)
    assert isinstance(result.exception, DamagedError)
    assert "now 99.0" in str(result.exception)


def test_an_index_that_was_made_with_other_libraries_is_made_again_as_the_card_tells(
    sharded: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sharded.shards("main")
    before = contents(folder)
    (folder / "index.json").unlink()
    monkeypatch.setattr("imgprep.shard.libraries", lambda: {"opencv": "9", "pillow": "9", "simplejpeg": "9"})
    repaired = mend(sharded)
    assert contents(folder) == before
    assert repaired.files == ["index.json"]

    (folder / "index.json").unlink()
    (folder / "README.md").unlink()
    assert "the libraries of then" in mend(sharded).failures["index.json"]


def test_tars_of_others_cannot_be_repaired(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    index = read_index(folder)
    for name in (*side_names(index), SUMS, RECEIPT):
        (folder / name).unlink()
    text = ShardIndex(classes=index.classes, splits=index.splits, spec={"imported": "webdataset"}).to_json()
    (folder / "index.json").write_text(text, encoding="utf-8")
    (folder / TRAIN).unlink()
    with pytest.raises(UsageError, match="tars of others"):
        mend(sharded)
    (folder / "index.json").write_text("{}")
    (folder / "index.receipt.json").write_text("{}")
    with pytest.raises(UsageError, match="tars of others"):
        mend(sharded)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"shard_version": 1}, "another version of imgprep"),
        ({"size": 0}, "options of the shards are damaged"),
        ({"size": "48"}, "options of the shards are damaged"),
        ({"size": 48.0}, "must be whole"),
        ({"colour": True}, "options of the shards are damaged"),
    ],
)
def test_options_that_are_none_are_one_line(plain: Workspace, options: dict[str, Any], reason: str) -> None:
    folder = plain.shards("main")
    (folder / "index.json").unlink()
    document = json.loads((folder / RECEIPT).read_text())
    document["options"] |= options
    (folder / RECEIPT).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    with pytest.raises(DamagedError, match=reason):
        mend(plain)


# Kills.


class KilledError(BaseException):
    """Stands for the end of the process: nothing is written after it."""


@contextmanager
def killed_at(number: int) -> Iterator[list[int]]:
    """From the ``number``-th change on, no file is changed; yields a list with how many were asked for."""
    asked = [0]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "writev"):
            patch.setattr(os, name, _dying(getattr(os, name), number, asked))
        yield asked


def _dying(function: Callable[..., Any], number: int, asked: list[int]) -> Callable[..., Any]:
    def change(*args: Any, **options: Any) -> Any:
        asked[0] += 1
        if asked[0] >= number:
            raise KilledError
        return function(*args, **options)

    return change


def test_killed_at_any_change_the_same_command_goes_on_and_ends_in_the_same_bytes(
    sharded: Workspace, tmp_path: Path
) -> None:
    folder, damaged = sharded.shards("main"), tmp_path / "damaged"
    before = contents(folder)
    flip(folder / TRAIN, int(rows(folder, TRAIN)["offset"][0]) + 9)
    (folder / OTHER).rename(folder / "o.tar")
    (folder / VAL).rename(folder / OTHER)
    (folder / "o.tar").rename(folder / VAL)
    (folder / "index.json").unlink()
    (folder / SUMS).unlink()
    shutil.copytree(folder, damaged)
    with killed_at(1 << 30) as asked:
        assert mend(sharded).whole
    changes = asked[0]
    assert contents(folder) == before

    assert changes > 12
    for number in range(1, changes + 1):
        shutil.rmtree(folder)
        shutil.copytree(damaged, folder)
        with killed_at(number), pytest.raises(KilledError):
            mend(sharded)
        assert mend(sharded).whole, number
        assert contents(folder) == before, number


# The command.


def run(*args: object) -> Result:
    return CliRunner().invoke(command, [str(arg) for arg in args])


def test_the_command_says_what_it_did(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    digest = read_index(folder).dataset_digest[:16]
    verdict = verify(folder, VerifySpec())
    assert run("-w", sharded.root).stdout == (
        f"nothing to repair: {verdict.num_shards} shards, {verdict.num_samples} samples, dataset digest {digest}\n"
    )
    whole = len(rows(folder, TRAIN)) - 1
    listed = len((folder / REJECTED).read_text().splitlines()) - 1
    flip(folder / TRAIN, int(rows(folder, TRAIN)["offset"][0]) + 9)
    (folder / VAL).rename(folder / "v.tar")
    (folder / REJECTED).unlink()
    (folder / REJECTED).mkdir()
    result = run("-w", sharded.root)

    assert result.exit_code == 0, result.exception
    assert result.stdout.splitlines()[0] == (
        f"repaired: 1 shards ({1 + listed} pictures read again from the source, {whole} taken over), 1 names,"
        f" rejected.csv; dataset digest {digest} as before"
    )
    assert f"{VAL}: found as v.tar" in result.stdout
    assert f"{TRAIN}: written anew" in result.stdout


def test_a_dry_run_says_the_same_and_writes_nothing(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    flip(folder / TRAIN, int(rows(folder, TRAIN)["offset"][0]) + 9)
    (folder / VAL).rename(folder / "v.tar")
    (folder / "x.tar").write_bytes(b"x")
    (folder / "README.md").unlink()
    before = contents(folder)
    result = run("-w", sharded.root, "--dry-run", "--json")
    planned = json.loads(result.stdout)
    text = run("-w", sharded.root, "-n", "--delete-extra").stdout

    assert contents(folder) == before
    assert result.exit_code == 0
    assert text.startswith("would repair: 1 shards (1 pictures read again")
    assert "x.tar: does not belong to the shards, to be deleted" in text
    done = json.loads(run("-w", sharded.root, "--delete-extra", "--json").stdout)
    for name in ("renamed", "shards", "files", "extra", "pictures_read", "pictures_taken_over"):
        assert planned[name] == done[name], name
    assert (planned["action"], done["action"], done["whole"], done["deleted"]) == ("plan", "run", True, True)


def test_the_command_fails_while_something_is_left(sharded: Workspace) -> None:
    (sharded.shards("main") / "x.tar").write_bytes(b"x")
    result = run("-w", sharded.root)
    assert isinstance(result.exception, DamagedError)
    assert "--delete-extra" in str(result.exception)

    with sharded.locked("another"):
        assert isinstance(run("-w", sharded.root).exception, LockedError)
    assert isinstance(run("-w", sharded.root / "nowhere").exception, MissingInputError)
    assert isinstance(run("-w", sharded.root, "--name", "nowhere").exception, MissingInputError)
