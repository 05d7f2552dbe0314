"""shard: plans before it writes, same bytes always, readable by others, nothing vanishes."""

from __future__ import annotations

import csv
import gc
import hashlib
import io
import json
import os
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imgprep.shard as stage
from imgprep.annotations import annotations
from imgprep.catalog import catalog
from imgprep.errors import (
    ContradictionError,
    DamagedError,
    ImageError,
    MemberError,
    MissingInputError,
    OutputExistsError,
    SourceError,
    TooManyRejectsError,
)
from imgprep.executors import ThreadExecutor
from imgprep.fetch import fetch
from imgprep.index import open_samples, read_index
from imgprep.selection import SubsetSpec
from imgprep.shard import plan_job, shard
from imgprep.shard_plan import ShardSpec
from imgprep.sources.adopted import read_source_record
from imgprep.stats import SilentProgress
from imgprep.subset import subset
from imgprep.tables import manifest_records, read_manifest
from imgprep.testing.toy import ToyListing
from imgprep.workspace import Workspace

SPEC = ShardSpec(size=48, samples_per_shard=5)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rewrite(workspace: Workspace, spec: ShardSpec, **options: int) -> dict[str, str]:
    job = plan_job(workspace, spec, subset="main", name="again", overwrite=True)
    executor = ThreadExecutor(options["workers"]) if "workers" in options else None
    result = shard(workspace, job, spec, executor=executor)
    return digests(result.folder)


def test_classes_are_mixed_in_every_shard(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    index = read_index(folder)
    table = open_samples(folder / "index.json", index, "train")
    first = table["label"][: len(table) // 2]

    assert len(set(first.tolist())) > 2
    assert table["label"].tolist() != sorted(table["label"].tolist())


def test_a_foreign_tar_reader_finds_jpg_cls_json_of_every_record(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    wanted = {r.key: r for r in manifest_records(read_manifest(sharded.subset("main") / "manifest.csv", made_by=""))}
    rejected = {row["key"] for row in csv.DictReader((folder / "rejected.csv").read_text().splitlines())}
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            members = archive.getmembers()
            assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o444, "")}
            for jpg, cls, meta in zip(members[0::3], members[1::3], members[2::3], strict=True):
                key = jpg.name.removesuffix(".jpg")
                assert (cls.name, meta.name) == (f"{key}.cls", f"{key}.json")
                document = json.loads(archive.extractfile(meta).read())  # type: ignore[union-attr]
                image = Image.open(io.BytesIO(archive.extractfile(jpg).read()))  # type: ignore[union-attr]
                assert archive.extractfile(cls).read() == str(wanted[key].label).encode()  # type: ignore[union-attr]
                assert (document["key"], document["wnid"], document["label"], document["split"]) == (
                    key,
                    wanted[key].wnid,
                    wanted[key].label,
                    wanted[key].split,
                )
                assert image.size == (document["width"], document["height"])
                assert min(image.size) <= 48
                found.append(key)

    assert len(found) == len(set(found))
    assert set(found) | rejected == set(wanted)
    assert not set(found) & rejected


# webdataset leaves the files of its last shards to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_shards_as_they_lie(sharded: Workspace) -> None:
    import webdataset as wds

    folder = sharded.shards("main")
    index = read_index(folder)
    for name, split in index.splits.items():
        urls = [str(folder / info.filename) for info in split.shards]
        samples = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode("pil"))
        table = open_samples(folder / "index.json", index, name)

        assert [sample["cls"] for sample in samples] == table["label"].tolist()
        assert {sample["json"]["split"] for sample in samples} == {name}
        assert all(sample["jpg"].mode in ("RGB", "L") for sample in samples)
    del samples
    gc.collect()


def test_the_sample_table_points_to_every_jpeg(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    index = read_index(folder)
    for name, split in index.splits.items():
        for row in open_samples(folder / "index.json", index, name):
            content = (folder / split.shards[row["shard"]].filename).read_bytes()
            jpeg = content[int(row["offset"]) : int(row["offset"]) + int(row["length"])]
            assert jpeg.startswith(b"\xff\xd8")
            assert zlib.crc32(jpeg) == row["crc32"]


def test_the_index_says_what_is_there(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    index = read_index(folder)
    for split in index.splits.values():
        for info in split.shards:
            path = folder / info.filename
            assert path.stat().st_size == info.num_bytes
            assert hashlib.sha256(path.read_bytes()).hexdigest() == info.sha256
            with tarfile.open(path) as archive:
                assert len(archive.getmembers()) == 3 * info.num_samples
    assert [info.label for info in index.classes] == [0, 1, 2, 3]
    assert index.provenance["subset"]["spec"] == "classes=4 per-class=8 val-per-class=all seed=0"


def test_the_bytes_do_not_depend_on_workers_or_time(sharded: Workspace) -> None:
    first = digests(sharded.shards("main"))

    assert rewrite(sharded, SPEC, workers=3) == first
    assert rewrite(sharded, SPEC) == first


def test_another_seed_mixes_otherwise_with_the_same_pictures(sharded: Workspace) -> None:
    folder = sharded.shards("main")
    index = read_index(folder)
    before = open_samples(folder / "index.json", index, "train")["crc32"].tolist()
    rewrite(sharded, ShardSpec(size=48, samples_per_shard=5, seed=1))
    again = sharded.shards("again")
    after = open_samples(again / "index.json", read_index(again), "train")["crc32"].tolist()

    assert before != after
    assert sorted(before) == sorted(after)


def test_a_second_run_does_nothing_and_another_spec_is_refused(sharded: Workspace) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in sharded.shards("main").iterdir()}
    job = plan_job(sharded, SPEC, subset="main")

    assert shard(sharded, job, SPEC).action == "skip"
    assert {path.name: path.stat().st_mtime_ns for path in sharded.shards("main").iterdir()} == before
    with pytest.raises(OutputExistsError, match=r"size was 48, now 64.*--overwrite.*--name"):
        plan_job(sharded, ShardSpec(size=64, samples_per_shard=5), subset="main")


@pytest.mark.parametrize("name", ["imgprep-train-000001.tar", "index.json", "val.samples.npy"])
def test_a_missing_file_makes_the_shards_be_written_again(sharded: Workspace, name: str) -> None:
    before = digests(sharded.shards("main"))
    (sharded.shards("main") / name).unlink()
    job = plan_job(sharded, SPEC, subset="main")
    shard(sharded, job, SPEC)

    assert digests(sharded.shards("main")) == before


def test_every_undecodable_picture_is_listed_with_its_reason(sharded: Workspace, toy: tuple[Path, ToyListing]) -> None:
    subset_keys = {r.key for r in manifest_records(read_manifest(sharded.subset("main") / "manifest.csv", made_by=""))}
    rows = list(csv.DictReader((sharded.shards("main") / "rejected.csv").read_text().splitlines()))

    assert {row["key"] for row in rows} == set(toy[1].undecodable) & subset_keys
    assert all(row["reason"] for row in rows)
    counts = json.loads((sharded.shards("main") / "shard.receipt.json").read_text())["counts"]
    assert counts["in"] == counts["out"] + counts.get("rejected", 0)


def damaged(sharded: Workspace, toy_zip: Path, tmp_path: Path, how_many: int) -> Workspace:
    """Another workspace, over an archive in which some of the chosen pictures are cut off."""
    chosen = [
        r.path
        for r in manifest_records(read_manifest(sharded.subset("main") / "manifest.csv", made_by=""))
        if r.num_bytes > 400
    ][:how_many]
    with zipfile.ZipFile(toy_zip) as old, zipfile.ZipFile(tmp_path / "damaged.zip", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content[: len(content) // 2] if name in chosen else content)
    workspace = Workspace(tmp_path / "damaged")
    fetch(workspace, tmp_path / "damaged.zip")
    catalog(workspace)
    annotations(workspace)
    subset(workspace, SubsetSpec(classes=4, per_class=8), name="main")
    return workspace


def test_more_rejects_than_allowed_publish_nothing(sharded: Workspace, toy_zip: Path, tmp_path: Path) -> None:
    workspace = damaged(sharded, toy_zip, tmp_path, 6)
    spec = ShardSpec(size=48, samples_per_shard=5, max_rejects=3)
    job = plan_job(workspace, spec, subset="main", name="bad")
    with pytest.raises(
        TooManyRejectsError, match=r"unusable pictures: .*allowed: 3.*bad\.rejected\.csv.*--max-rejects"
    ):
        shard(workspace, job, spec, executor=ThreadExecutor(2))

    left = sorted(path.name for path in (workspace.root / "shards").iterdir())
    assert left == [".bad.job", ".bad.tmp", "bad.rejected.csv"]
    assert len((workspace.root / "shards" / "bad.rejected.csv").read_text().splitlines()) > 4


def test_rejects_within_the_limit_leave_the_rest_whole(sharded: Workspace, toy_zip: Path, tmp_path: Path) -> None:
    workspace = damaged(sharded, toy_zip, tmp_path, 6)
    job = plan_job(workspace, SPEC, subset="main", name="bad")
    (workspace.root / "shards").mkdir()
    (workspace.root / "shards" / "bad.rejected.csv").write_text("of an earlier run that failed")
    result = shard(workspace, job, SPEC)

    assert [path.name for path in (workspace.root / "shards").iterdir()] == ["bad"]
    assert result.stats["rejected"] >= 6
    assert result.stats["in"] == result.stats["out"] + result.stats["rejected"]


def test_a_split_without_one_usable_picture_is_an_error(sharded: Workspace, toy_zip: Path, tmp_path: Path) -> None:
    workspace = damaged(sharded, toy_zip, tmp_path, 1000)
    with pytest.raises(ImageError, match="not one picture of the split train can be used"):
        shard(workspace, plan_job(workspace, SPEC, subset="main"), SPEC)
    assert not workspace.shards("main").exists()


def test_a_subset_of_another_source_is_refused(sharded: Workspace, toy_zip: Path, tmp_path: Path) -> None:
    """Members would be looked for in the wrong archive, and be missing or, worse, be others."""
    other = damaged(sharded, toy_zip, tmp_path, 1)
    fetch(sharded, Path(read_source_record(other).path), overwrite=True)
    with pytest.raises(ContradictionError, match="chosen from another source"):
        plan_job(sharded, SPEC, subset="main", name="new")


def test_an_interruption_leaves_nothing_that_looks_done(sharded: Workspace) -> None:
    class Interrupting:
        def __init__(self) -> None:
            self.left = 9

        def begin(self, what: str, total: int, unit: str) -> None: ...

        def finish(self) -> None: ...

        def note(self, text: str) -> None: ...

        def advance(self, n: int = 1) -> None:
            self.left -= n
            if self.left < 0:
                raise KeyboardInterrupt

    job = plan_job(sharded, SPEC, subset="main", name="new")
    with pytest.raises(KeyboardInterrupt):
        shard(sharded, job, SPEC, progress=Interrupting())

    # What is finished is kept for the next run, under names that nobody takes for shards.
    left = {path.name: path for path in (sharded.root / "shards").iterdir()}
    assert sorted(left) == [".new.job", ".new.tmp", "main"]
    assert not [path.name for path in left[".new.tmp"].iterdir() if path.name.startswith(".")]
    assert shard(sharded, job, SPEC).stats["resumed"] == 1
    assert sorted(path.name for path in (sharded.root / "shards").iterdir()) == ["main", "new"]
    assert digests(sharded.shards("new")) == digests(sharded.shards("main"))


class Stopping(SilentProgress):
    """Interrupts a stage after some pictures."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, n: int = 1) -> None:
        self.left -= n
        if self.left < 0:
            raise KeyboardInterrupt


def stop_in_the_middle(workspace: Workspace) -> None:
    with pytest.raises(KeyboardInterrupt):
        shard(workspace, plan_job(workspace, SPEC, subset="main", name="new"), SPEC, progress=Stopping(9))


def test_an_unfinished_job_is_not_mixed_with_another_request(
    sharded: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_the_middle(sharded)
    other = ShardSpec(size=40, samples_per_shard=5)
    with pytest.raises(OutputExistsError, match=r"unfinished job.*size was 48, now 40.*--overwrite"):
        shard(sharded, plan_job(sharded, other, subset="main", name="new"), other)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "libraries", lambda: {"opencv": "0.1"})
        with pytest.raises(OutputExistsError, match=r"version of opencv was [\d.]+, now 0\.1"):
            shard(sharded, plan_job(sharded, SPEC, subset="main", name="new"), SPEC)

    subset(sharded, SubsetSpec(classes=3, per_class=8), name="main", overwrite=True)
    with pytest.raises(OutputExistsError, match="the subset is another one"):
        shard(sharded, plan_job(sharded, SPEC, subset="main", name="new"), SPEC)

    job = plan_job(sharded, other, subset="main", name="new", overwrite=True)
    assert shard(sharded, job, other).stats["resumed"] == 0
    assert sorted(path.name for path in (sharded.root / "shards").iterdir()) == ["main", "new"]


def test_a_damaged_unfinished_tar_is_written_again(sharded: Workspace) -> None:
    stop_in_the_middle(sharded)
    staging = sharded.root / "shards" / ".new.tmp"
    finished = next(staging.glob("*.tar"))
    content = bytearray(finished.read_bytes())
    content[len(content) // 2] ^= 1
    finished.write_bytes(content)
    (staging / ".imgprep-train-000003.tar.tmp").write_bytes(b"half")
    (staging / "imgprep-train-000099.tar").write_bytes(b"of nobody")
    result = shard(sharded, plan_job(sharded, SPEC, subset="main", name="new"), SPEC)

    assert result.stats["resumed"] == 0
    assert digests(sharded.shards("new")) == digests(sharded.shards("main"))


def test_a_damaged_record_of_an_unfinished_job_begins_anew(sharded: Workspace) -> None:
    stop_in_the_middle(sharded)
    (sharded.root / "shards" / ".new.job" / "shard.receipt.json").write_text("{")

    assert shard(sharded, plan_job(sharded, SPEC, subset="main", name="new"), SPEC).stats["resumed"] == 0
    assert digests(sharded.shards("new")) == digests(sharded.shards("main"))


def test_what_an_unfinished_job_left_goes_when_the_shards_are_there(sharded: Workspace) -> None:
    """A kill right after the shards got their name."""
    for path in stage._unfinished(sharded.shards("main")):
        path.mkdir()

    assert shard(sharded, plan_job(sharded, SPEC, subset="main"), SPEC).action == "skip"
    assert [path.name for path in (sharded.root / "shards").iterdir()] == ["main"]


def test_a_source_that_cannot_be_read_is_no_reason_to_leave_pictures_out(
    sharded: Workspace, toy_zip: Path, tmp_path: Path
) -> None:
    """Bit rot in the archive became rejects, and those stayed when the archive was whole again."""
    archive = tmp_path / "rotten.zip"
    shutil.copy2(toy_zip, archive)
    workspace = Workspace(tmp_path / "rotten")
    fetch(workspace, archive)
    catalog(workspace)
    annotations(workspace)
    subset(workspace, SubsetSpec(classes=4, per_class=8), name="main")
    good = archive.read_bytes()
    with zipfile.ZipFile(archive) as packed:
        chosen = [
            r.path for r in manifest_records(read_manifest(workspace.subset("main") / "manifest.csv", made_by=""))
        ]
        info = next(info for info in packed.infolist() if info.filename == chosen[9])
    status = archive.stat()
    at = info.header_offset + 30 + len(info.filename) + 20
    archive.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    os.utime(archive, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(MemberError, match=r"CRC-32.*run the same command again; or leave.*subset --drop odd"):
        shard(workspace, plan_job(workspace, SPEC, subset="main"), SPEC)
    assert not workspace.shards("main").exists()

    archive.write_bytes(good)
    os.utime(archive, ns=(status.st_atime_ns, status.st_mtime_ns))
    result = shard(workspace, plan_job(workspace, SPEC, subset="main"), SPEC)
    assert result.index is not None
    assert result.index.dataset_digest == read_index(sharded.shards("main")).dataset_digest


def test_a_source_that_changes_while_it_is_read_is_not_published(
    sharded: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(workspace: Workspace) -> None:
        raise SourceError(f"{workspace.root} changed since it was adopted")

    job = plan_job(sharded, SPEC, subset="main", name="new")
    monkeypatch.setattr(stage, "check_adopted", change)
    with pytest.raises(SourceError, match="changed"):
        shard(sharded, job, SPEC)
    assert not sharded.shards("new").exists()


def test_what_the_stage_did_not_write_is_not_replaced(sharded: Workspace) -> None:
    """A folder without a receipt was taken for nothing, and went."""
    mine = sharded.shards("mine")
    mine.mkdir()
    plan_job(sharded, SPEC, subset="main", name="mine")
    (mine / "notes.txt").write_text("precious")
    with pytest.raises(OutputExistsError, match=r"holds what `imgprep shard` did not write.*--overwrite"):
        plan_job(sharded, SPEC, subset="main", name="mine")
    assert plan_job(sharded, SPEC, subset="main", name="mine", overwrite=True).action == "run"


def test_another_request_does_not_replace_damaged_shards(sharded: Workspace) -> None:
    """One touched side file, and other options replaced all without being asked."""
    (sharded.shards("main") / "README.md").write_text("touched")
    other = ShardSpec(size=40, samples_per_shard=5)
    with pytest.raises(OutputExistsError, match="size was 48, now 40"):
        plan_job(sharded, other, subset="main")
    assert plan_job(sharded, SPEC, subset="main").action == "run"


def test_shards_called_as_a_list_of_rejects_are_kept(sharded: Workspace) -> None:
    shard(sharded, plan_job(sharded, SPEC, subset="main", name="main.rejected.csv"), SPEC)
    shard(sharded, plan_job(sharded, SPEC, subset="main"), SPEC)

    assert read_index(sharded.shards("main.rejected.csv"))


def test_boxes_are_not_lost_with_a_damaged_receipt(sharded: Workspace) -> None:
    (sharded.catalog / "annotations.receipt.json").write_text("{")
    with pytest.raises(DamagedError, match=r"annotations\.receipt\.json"):
        plan_job(sharded, SPEC, subset="main", name="new")


def test_an_unfinished_job_of_another_request_is_kept_and_told_before_it_is_run(sharded: Workspace) -> None:
    other = ShardSpec(size=40, samples_per_shard=5)
    with pytest.raises(KeyboardInterrupt):
        shard(sharded, plan_job(sharded, other, subset="main", overwrite=True), other, progress=Stopping(9))

    assert shard(sharded, plan_job(sharded, SPEC, subset="main"), SPEC).action == "skip"
    assert (sharded.root / "shards" / ".main.job").is_dir()
    assert shard(sharded, plan_job(sharded, other, subset="main", overwrite=True), other).stats["resumed"] == 1

    stop_in_the_middle(sharded)
    with pytest.raises(OutputExistsError, match="unfinished job of another request"):
        plan_job(sharded, other, subset="main", name="new")


@pytest.mark.parametrize("count", [None, "x", 1.5, []])
def test_a_damaged_count_in_a_receipt_is_damage(sharded: Workspace, count: object) -> None:
    path = sharded.shards("main") / "shard.receipt.json"
    document = json.loads(path.read_text())
    document["counts"]["rejected"] = count
    path.write_text(json.dumps(document))
    with pytest.raises(DamagedError, match="damaged"):
        plan_job(sharded, SPEC, subset="main")


def test_shards_behind_a_link_stay_there(sharded: Workspace, tmp_path: Path) -> None:
    elsewhere = tmp_path / "large disk"
    elsewhere.mkdir()
    (elsewhere / "main").mkdir()
    (sharded.root / "shards" / "linked").symlink_to(elsewhere / "main")
    shard(sharded, plan_job(sharded, SPEC, subset="main", name="linked"), SPEC)

    assert (sharded.root / "shards" / "linked").is_symlink()
    assert digests(elsewhere / "main") == digests(sharded.shards("main"))


def test_boxes_are_scaled_with_their_pictures(sharded: Workspace) -> None:
    """Every box of the toy archive, in every sample, against the table of boxes."""
    told: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader((sharded.catalog / "boxes.csv").read_text().splitlines()):
        told.setdefault(row["ImageId"], []).append(row)
    seen = 0
    for path in sorted(sharded.shards("main").glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.name.endswith(".json"):
                    continue
                document = json.loads(archive.extractfile(member).read())  # type: ignore[union-attr]
                rows = told.get(document["key"], [])
                assert [box["wnid"] for box in document.get("boxes", [])] == [row["wnid"] for row in rows]
                for box, row in zip(document.get("boxes", []), rows, strict=True):
                    scale = document["width"] / int(row["width"]), document["height"] / int(row["height"])
                    for name, place in (("xmin", 0), ("ymin", 1), ("xmax", 0), ("ymax", 1)):
                        expected = min(int(row[name]) * scale[place], document[("width", "height")[place]])
                        assert box[name] == pytest.approx(expected, abs=0.006)
                    seen += 1
    assert seen > 10


def test_an_estimate_reads_some_pictures_and_is_near(sharded: Workspace) -> None:
    job = plan_job(sharded, SPEC, subset="main", name="new")
    found = stage.estimate(sharded, job, SPEC)
    size = sum(path.stat().st_size for path in sharded.shards("main").glob("*.tar"))

    assert found.measured == job.num_records
    assert found.num_bytes == pytest.approx(size, rel=0.1)
    assert found.seconds > 0
    assert not (sharded.root / "shards" / "new").exists()
    assert stage.estimate(sharded, plan_job(sharded, SPEC, subset="main"), SPEC).measured == 0


def test_processes_pay_for_many_copies_only(sharded: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = ShardSpec(images="original")
    job = plan_job(sharded, copies, subset="main", name="new")

    assert stage.best_engine(job, copies) == "threads"
    monkeypatch.setattr(stage, "_WORTH_PROCESSES", 10)
    assert stage.best_engine(job, copies) == "processes"
    assert stage.best_engine(job, SPEC) == "threads"


def test_a_subset_that_is_missing_is_a_missing_input(sharded: Workspace) -> None:
    with pytest.raises(MissingInputError, match="imgprep subset --name nowhere"):
        plan_job(sharded, SPEC, subset="nowhere")


def cite_anew(workspace: Workspace) -> None:
    """Make the receipt of a subset agree with a manifest that was changed."""
    path = workspace.subset("main") / "manifest.csv"
    receipt = path.with_name("subset.receipt.json")
    document = json.loads(receipt.read_text())
    document["outputs"]["manifest.csv"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    receipt.write_text(json.dumps(document))


def test_a_manifest_whose_labels_do_not_fit_is_refused(sharded: Workspace) -> None:
    path = sharded.subset("main") / "manifest.csv"
    path.write_text(path.read_text().replace(",0,", ",9,", 1))
    with pytest.raises(ContradictionError, match=r"was changed since it was chosen"):
        plan_job(sharded, SPEC, subset="main", name="new")
    cite_anew(sharded)
    with pytest.raises(DamagedError, match=r"label 9"):
        plan_job(sharded, SPEC, subset="main", name="new")


@pytest.mark.parametrize("name", ["imgprep-train-000001.tar", "index.json", "train.samples.npy"])
def test_overwrite_writes_again_what_was_changed_at_the_same_size(sharded: Workspace, name: str) -> None:
    """The remedy that messages about damage give must work."""
    before = digests(sharded.shards("main"))
    path = sharded.shards("main") / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    job = plan_job(sharded, SPEC, subset="main", overwrite=True)
    shard(sharded, job, SPEC)

    assert job.action == "run"
    assert digests(sharded.shards("main")) == before
    assert plan_job(sharded, SPEC, subset="main", overwrite=True).action == "skip"


@pytest.mark.parametrize(("old", "new"), [("n90000001_", "../../n90000001_"), ("n90000001_", "é"), ("train,", "../x,")])
def test_keys_and_splits_that_could_leave_a_tar_are_refused(sharded: Workspace, old: str, new: str) -> None:
    path = sharded.subset("main") / "manifest.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    cite_anew(sharded)
    with pytest.raises(DamagedError, match=r"is no (key|split)"):
        plan_job(sharded, SPEC, subset="main", name="new")


def test_the_sample_table_is_a_plain_npy_file(sharded: Workspace) -> None:
    table = np.load(sharded.shards("main") / "train.samples.npy", allow_pickle=False)

    assert table.dtype.names == ("shard", "offset", "length", "label", "crc32")
