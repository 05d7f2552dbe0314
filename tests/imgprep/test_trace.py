"""trace: what it tells of a picture is what the files hold; what is missing is noted, and the rest told."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from imgprep import trace as module
from imgprep.catalog import catalog
from imgprep.cli.check import trace as command
from imgprep.doctor import DoctorSpec, doctor
from imgprep.errors import DamagedError, MissingInputError, UsageError
from imgprep.fetch import fetch
from imgprep.index import SAMPLE_FIELDS, ClassInfo, ShardIndex, ShardInfo, SplitInfo, open_samples, read_index
from imgprep.selection import SubsetSpec, choose_keys
from imgprep.subset import subset
from imgprep.tables import MANIFEST_COLUMNS
from imgprep.trace import Trace, find_rows, near_keys, trace
from imgprep.workspace import Workspace


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def follow(workspace: Workspace, wanted: str, **options: Any) -> Trace:
    return trace(workspace, wanted, **{"name": "main", **options})


def packed(workspace: Workspace) -> list[tuple[str, str, int, str, int]]:
    """Every sample of the shards: key, split, row, tar, and where its picture starts, by walking the tars."""
    folder = workspace.shards("main")
    index, found = read_index(folder), []
    for split, info in index.splits.items():
        row = 0
        for shard in info.shards:
            with tarfile.open(folder / shard.filename) as archive:
                for member in archive:
                    if member.name.endswith(".jpg"):
                        found.append((member.name[:-4], split, row, shard.filename, member.offset_data))
                        row += 1
    return found


def test_every_sample_is_found_where_it_is(sharded: Workspace, toy_zip: Path) -> None:
    folder = sharded.shards("main")
    index = read_index(folder)
    manifest = {row["key"]: row for row in rows(sharded.catalog / "manifest.csv")}
    with zipfile.ZipFile(toy_zip) as archive:
        infos = {info.filename: info for info in archive.infolist()}
    samples = packed(sharded)
    assert len(samples) > 40
    for key, split, row, tar, offset in samples:
        found = follow(sharded, key)
        sample, path = found.sample, manifest[key]["path"]
        assert sample is not None
        assert found.source is not None
        content = (folder / tar).read_bytes()
        number = int(open_samples(folder / "index.json", index, split)["length"][row])
        picture = content[offset : offset + number]
        document = json.loads(content[sample["json_offset"] :].partition(b"\0")[0])

        assert (sample["split"], sample["row"], sample["shard"], sample["offset"]) == (split, row, tar, offset)
        assert (sample["num_bytes"], sample["sha256"]) == (number, hashlib.sha256(picture).hexdigest())
        assert sample["crc32"] == f"{zlib.crc32(picture):08x}"
        assert sample["intact"] is True
        assert content[sample["cls_offset"] :].partition(b"\0")[0] == str(sample["label"]).encode()
        assert (document["key"], document["width"], document["height"]) == (key, sample["width"], sample["height"])
        assert sample["shard_sha256"] == hashlib.sha256(content).hexdigest()
        assert sample["dataset_digest"] == index.dataset_digest
        assert found.source["member"] == path
        assert found.source["header_offset"] == infos[path].header_offset
        assert found.source["crc32"] == f"{infos[path].CRC:08x}"
        assert found.catalog is not None
        assert found.catalog["wnid"] == sample["wnid"]
        assert found.subset is not None
        assert (found.subset["label"], found.subset["split"]) == (sample["label"], split)
        assert found.subset["spec"].startswith("classes=4 per-class=8")


def test_a_path_or_a_file_name_is_as_good_as_a_key(sharded: Workspace) -> None:
    row = rows(sharded.subset("main") / "manifest.csv")[0]

    for wanted in (row["path"], f"./{row['path']}", row["path"].rpartition("/")[2]):
        assert follow(sharded, wanted).key == row["key"]


def test_a_name_that_several_pictures_have_is_refused(tmp_path: Path) -> None:
    for folder in ("cat", "dog"):
        (tmp_path / "pictures" / folder).mkdir(parents=True)
        (tmp_path / "pictures" / folder / "0.jpg").write_bytes(b"picture")
    workspace = Workspace(tmp_path / "w")
    workspace.root.mkdir()
    fetch(workspace, tmp_path / "pictures")
    catalog(workspace)

    with pytest.raises(UsageError, match=r"2 pictures are called '0.jpg'.*cat/0.jpg, dog/0.jpg"):
        follow(workspace, "0.jpg")
    found = follow(workspace, "dog/0.jpg")
    assert found.source is not None
    assert found.source["file"] == str(tmp_path / "pictures" / "dog" / "0.jpg")


def test_an_unknown_key_names_some_that_are_like_it(sharded: Workspace) -> None:
    key = rows(sharded.subset("main") / "manifest.csv")[0]["key"]

    with pytest.raises(UsageError, match=f"did you mean .*{key}"):
        follow(sharded, f"{key}x")
    with pytest.raises(UsageError, match="give a key, or a path"):
        follow(sharded, "§§§§§§§§")


@pytest.mark.parametrize("wanted", ["", "a\nb", "a\0b", "x" * 5000, "\ud800"])
def test_what_cannot_be_a_name_is_refused(sharded: Workspace, wanted: str) -> None:
    with pytest.raises(UsageError, match="one line of text"):
        follow(sharded, wanted)


def test_a_rejected_picture_has_its_reason(sharded: Workspace) -> None:
    entry = rows(sharded.shards("main") / "rejected.csv")[0]
    found = follow(sharded, entry["key"])

    assert found.rejected == entry["reason"]
    assert found.sample is None
    assert found.subset is not None
    assert found.subset["chosen"] is True


def test_a_picture_beyond_the_subset_has_its_rank(sharded: Workspace) -> None:
    chosen = {row["key"] for row in rows(sharded.subset("main") / "manifest.csv")}
    wnids = {row["wnid"] for row in rows(sharded.subset("main") / "classes.csv")}
    manifest = [row for row in rows(sharded.catalog / "manifest.csv") if row["split"] == "train"]
    beyond = [row for row in manifest if row["key"] not in chosen and row["wnid"] in wnids]
    assert beyond
    for row in beyond:
        subset_of = follow(sharded, row["key"]).subset
        keys = choose_keys([r["key"] for r in manifest if r["wnid"] == row["wnid"]], None, seed=0)
        assert subset_of is not None
        assert subset_of["chosen"] is False
        assert (subset_of["rank"], subset_of["of"]) == (keys.index(row["key"]) + 1, len(keys))
        assert subset_of["rank"] > subset_of["limit"] == 8
    other = next(row for row in manifest if row["wnid"] not in wnids)
    subset_of = follow(sharded, other["key"]).subset
    assert subset_of is not None
    assert subset_of["why"] == "its class is not in the subset"


def test_a_validation_picture_beyond_the_subset_has_its_rank(sharded: Workspace) -> None:
    subset(sharded, SubsetSpec(classes=4, per_class=8, val_per_class=1), name="few")
    chosen = {row["key"] for row in rows(sharded.subset("few") / "manifest.csv")}
    key = next(
        row["key"]
        for row in rows(sharded.subset("main") / "manifest.csv")
        if row["split"] == "val" and row["key"] not in chosen
    )
    subset_of = follow(sharded, key, name="few").subset

    assert subset_of is not None
    assert subset_of["rank"] > subset_of["limit"] == 1
    assert subset_of["of"] == 4


def test_what_doctor_found_is_told_with_its_meaning(sharded: Workspace) -> None:
    key = rows(sharded.shards("main") / "rejected.csv")[0]["key"]
    before = follow(sharded, key)
    doctor(sharded, DoctorSpec())
    table = {row["key"]: row for row in rows(sharded.catalog / "doctor.csv")}
    after = follow(sharded, key)

    assert before.findings is None
    assert "`imgprep doctor` has not run" in before.notes
    assert after.findings
    assert list(after.findings) == table[key]["findings"].split()
    assert not after.notes
    healthy = next(row["key"] for row in table.values() if not row["findings"])
    assert follow(sharded, healthy).findings == {}


# What is missing.


def test_a_source_that_is_gone_is_noted(sharded: Workspace) -> None:
    record = json.loads(sharded.source_record.read_text())
    sharded.source_record.write_text(json.dumps(record | {"path": "/nowhere/at-all.zip"}))
    found = follow(sharded, packed(sharded)[0][0])

    assert found.sample is not None
    assert found.source is not None
    assert found.source["there"] is False
    assert any("is gone" in note for note in found.notes)


def test_a_source_that_changed_is_noted(sharded: Workspace, toy_zip: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(toy_zip) as archive, zipfile.ZipFile(other, "w") as copy:
        for info in archive.infolist()[:-1]:
            copy.writestr(info, archive.read(info))
    record = json.loads(sharded.source_record.read_text())
    sharded.source_record.write_text(json.dumps(record | {"path": str(other)}))
    found = follow(sharded, packed(sharded)[0][0])

    assert found.sample is not None
    assert any("changed since it was adopted" in note for note in found.notes)


def test_a_folder_of_shards_needs_no_workspace(sharded: Workspace, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded.shards("main"), tmp_path / "elsewhere"))
    key, split, row, *_ = packed(sharded)[-1]
    found = follow(Workspace(tmp_path / "nothing"), key, folder=folder)

    assert found.sample is not None
    assert (found.sample["split"], found.sample["row"]) == (split, row)
    assert found.source == {"member": found.sample["path"]}
    assert found.notes == (f"there is no workspace {tmp_path / 'nothing'}",)
    assert found.catalog is None
    with pytest.raises(UsageError, match="no picture is called"):
        follow(Workspace(tmp_path / "nothing"), "nobody", folder=folder)


def test_a_workspace_without_shards_tells_of_the_rest(sharded: Workspace) -> None:
    key = packed(sharded)[0][0]
    shutil.rmtree(sharded.shards("main"))
    found = follow(sharded, key)

    assert found.sample is None
    assert found.subset is not None
    assert any("no shards here" in note for note in found.notes)
    shutil.rmtree(sharded.subset("main"))
    assert follow(sharded, key).subset is None


def test_with_nothing_at_all_the_input_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="there is neither"):
        follow(Workspace(tmp_path / "nothing"), "key")


def test_damaged_tables_are_noted(sharded: Workspace) -> None:
    key = packed(sharded)[0][0]
    (sharded.catalog / "manifest.csv").write_text("a,b\n1,2\n")
    (sharded.subset("main") / "manifest.csv").write_bytes(b"\xff\xfe")
    found = follow(sharded, key)

    assert found.sample is not None
    assert sum("other columns" in note for note in found.notes) == 2


def test_a_subset_that_was_chosen_anew_is_noted(sharded: Workspace) -> None:
    key = packed(sharded)[0][0]
    subset(sharded, SubsetSpec(classes=4, per_class=7), name="main", overwrite=True)

    assert any("chosen anew" in note for note in follow(sharded, key).notes)


def test_damaged_shards_are_noted_and_searched_all_the_same(sharded: Workspace) -> None:
    samples = packed(sharded)
    tars = sorted({tar for _, _, _, tar, _ in samples})
    for tar in tars:
        path = sharded.shards("main") / tar
        content = bytearray(path.read_bytes())
        for _, _, _, other, offset in samples:
            if other == tar:
                content[offset + 20] ^= 1
        # The header of its second picture does not name a key.
        second = [offset for _, _, _, other, offset in samples if other == tar][-1]
        content[second - 512] = 0
        path.write_bytes(content)
    lost = 0
    for key, split, row, tar, _ in samples:
        found = follow(sharded, key)
        if found.sample is None:
            lost += 1
            continue
        assert (found.sample["split"], found.sample["row"]) == (split, row)
        assert found.sample["intact"] is False
        assert any("is damaged" in note for note in found.notes), tar
    assert lost == len(tars)


def test_a_flipped_bit_in_one_key_loses_no_other_picture(sharded: Workspace, tmp_path: Path) -> None:
    samples = [sample for sample in packed(sharded) if sample[1] == "train"]
    middle = samples[len(samples) // 2]
    path = sharded.shards("main") / middle[3]
    content = bytearray(path.read_bytes())
    astray = 0
    for bit in range(4):
        # A digit of the key.
        place = middle[4] - 512 + len(middle[0]) - 1
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        for key, split, row, _, _ in samples:
            for root in (sharded.root, tmp_path):
                if key == middle[0]:
                    continue
                trace = follow(Workspace(root), key, folder=sharded.shards("main"))
                assert trace.sample is not None, (bit, key)
                assert (trace.sample["split"], trace.sample["row"]) == (split, row)
                astray += any("a header is out of order" in note for note in trace.notes)
    assert astray > 0


def test_shards_that_are_gone_are_noted(sharded: Workspace) -> None:
    key = packed(sharded)[0][0]
    for tar in sharded.shards("main").glob("*.tar"):
        tar.unlink()
    found = follow(sharded, key)

    assert found.sample is None
    assert any("No such file" in note for note in found.notes)


# Searching.


def test_half_the_headers_are_never_looked_at(sharded: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    original = module._Shards._key

    def spy(self: module._Shards, row: int) -> str:
        looked.append(row)
        return original(self, row)

    monkeypatch.setattr(module._Shards, "_key", spy)
    for key, _, _, _, _ in packed(sharded):
        looked.clear()
        follow(sharded, key)
        assert len(looked) <= 6  # 30 and 16 samples


def test_samples_of_other_writers_are_found_by_walking(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    members = [(f"{'long/' * 30}s{number}", bytes([number]) * 700) for number in range(9)]
    with tarfile.open(folder / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members:
            for suffix, part in (("cls", b"0"), ("seg.png", b"x"), ("jpg", content)):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(part)
                archive.addfile(info, io.BytesIO(part))
    with tarfile.open(folder / "a.tar") as archive:
        places = [(info.offset_data, info.size) for info in archive if info.name.endswith(".jpg")]
    table = [
        (0, offset, size, 0, zlib.crc32(content)) for (offset, size), (_, content) in zip(places, members, strict=True)
    ]
    np.save(folder / "train.samples.npy", np.array(table, dtype=list(SAMPLE_FIELDS)))
    content = (folder / "a.tar").read_bytes()
    shard = ShardInfo(
        filename="a.tar", num_samples=9, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )
    split = SplitInfo(
        num_samples=9,
        samples_filename="train.samples.npy",
        samples_sha256=hashlib.sha256((folder / "train.samples.npy").read_bytes()).hexdigest(),
        shards=(shard,),
    )
    classes = (ClassInfo(label=0, wnid="a", name="a"),)
    index = ShardIndex(classes=classes, splits={"train": split}, spec={"imported": "webdataset", "seed": 0})
    (folder / "index.json").write_text(index.to_json())

    for row, (name, _) in enumerate(members):
        for wanted in (f"s{row}", name, f"{name}.jpg"):
            found = follow(Workspace(tmp_path / "w"), wanted, folder=folder).sample
            assert found is not None
            assert (found["row"], found["offset"], found["intact"]) == (row, places[row][0], True)


def test_rows_are_found_whatever_their_quotes_and_wherever_they_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.csv"
    paths = ['a/with "quotes".jpg', "b/with, comma.jpg", "c/plain.jpg", "d/Grün.jpg"]
    lines = [[f"k{n}", "train", text, "w", "0", "1", ""] for n, text in enumerate(paths)]
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([list(MANIFEST_COLUMNS), *lines])
    for chunk in (1, 7, 64, 1 << 20):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        for n, text in enumerate(paths):
            assert [row["key"] for row in find_rows(path, MANIFEST_COLUMNS, text)] == [f"k{n}"]
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert [row["key"] for row in find_rows(path, MANIFEST_COLUMNS, "Grün")] == ["k3"]


def test_near_keys_are_looked_for_in_a_bounded_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.csv"
    path.write_text("key,split\n" + "".join(f"n{n:05d}_1,train\n" for n in range(3000)))
    monkeypatch.setattr(module, "_MAX_NEAR", 50)

    assert near_keys(path, "n02999_2")[0] == "n02999_1"


# The command.


@pytest.fixture
def run(sharded: Workspace) -> Callable[..., Result]:
    return lambda *args: CliRunner().invoke(command, ["-w", str(sharded.root), *map(str, args)])


def test_the_command_tells_in_lines_and_in_json(sharded: Workspace, run: Callable[..., Result]) -> None:
    key, split, row, tar, offset = packed(sharded)[3]
    text = run(key).stdout
    document = json.loads(run(key, "--json").stdout)

    assert f"{split} sample {row:,}" in text
    assert f"{tar}: " in text
    assert f"at {offset:,}" in text
    assert "chosen by: classes=4" in text
    assert document["sample"]["row"] == row
    assert document["rejected"] is None


def test_the_command_tells_of_what_was_left_out(sharded: Workspace, run: Callable[..., Result]) -> None:
    doctor(sharded, DoctorSpec())
    entry = rows(sharded.shards("main") / "rejected.csv")[0]
    text = run(entry["key"]).stdout
    assert f"rejected: {entry['reason']}" in text
    assert "doctor:   " in text

    chosen = {row["key"] for row in rows(sharded.subset("main") / "manifest.csv")}
    texts = [run(row["key"]).stdout for row in rows(sharded.catalog / "manifest.csv") if row["key"] not in chosen]
    assert any("of its class by rank; the first 8 are taken" in text for text in texts)
    assert any("its class is not in the subset" in text for text in texts)
    assert all("shards:   not there" in text for text in texts)


def test_the_command_fails_on_names_that_nobody_has(run: Callable[..., Result]) -> None:
    assert isinstance(run("nobody").exception, UsageError)
    assert isinstance(run("nobody", "--name", "../up").exception, UsageError)


def train_run(sharded: Workspace, **changes: Any) -> None:
    """A finished run of two epochs, as far as its files tell."""
    from dataclasses import replace

    from training.recipes import tiny
    from training.runs import RunRecord, find_run, write_json, write_record

    digest = read_index(sharded.shards("main")).dataset_digest
    config = replace(tiny(), epochs=2, data=replace(tiny().data, batch_size=8))
    record = RunRecord(
        config=config,
        **{"dataset_digest": digest, "index_path": "x", "num_classes": 4, "device": "cpu", "versions": {}, **changes},
    )
    run = find_run(sharded.root, "one")
    write_record(run, record)
    measured = {"k": 1, "correct": 1, "total": 4, "share": 0.25, "low": 0.05, "high": 0.7}
    numbers = {"epochs": 2, "seconds": 1.5, "top1": measured, "top5": measured, "checkpoint_sha256": "0" * 64}
    write_json(run.finished, numbers)
    run.checkpoint("last").write_bytes(b"weights")


def test_the_command_names_the_steps_of_a_run(sharded: Workspace, run: Callable[..., Result]) -> None:
    from training.order import batch_samples

    train_run(sharded)
    num_train = read_index(sharded.shards("main")).splits["train"].num_samples
    key, _, row, _, _ = next(sample for sample in packed(sharded) if sample[1] == "train")
    steps = json.loads(run(key, "--run", "one", "--json").stdout)["usage"]["steps"]

    assert [step["epoch"] for step in steps] == [1, 2]
    for step in steps:
        batch = batch_samples(0, step["epoch"] - 1, step["step"] - 1, num_samples=num_train, batch_size=8)
        assert batch[step["position"]] == row
    text = run(key, "--run", "one").stdout
    assert "run:      one, 2 of 2 epochs by finished.json; 2 steps learned from it" in text
    assert f"epoch 2, step {steps[1]['step']}" in text


def test_a_run_that_was_killed_learned_at_least_so_much(sharded: Workspace, run: Callable[..., Result]) -> None:
    train_run(sharded)
    folder = sharded.root / "runs" / "one"
    (folder / "finished.json").unlink()
    (folder / "checkpoints" / "last.pt").unlink()
    key = next(sample for sample in packed(sharded) if sample[1] == "train")[0]

    text = run(key, "--run", "one").stdout
    assert "run:      one, at least 0 of 2 epochs by config.json; at least 0 steps learned from it" in text
    assert json.loads(run(key, "--run", "one", "--json").stdout)["usage"]["finished"] is False


def test_a_run_that_cannot_be_read_takes_nothing_from_the_trace(sharded: Workspace, run: Callable[..., Result]) -> None:
    key, split, row, _, _ = packed(sharded)[0]
    unknown = run(key, "--run", "nobody")
    assert isinstance(unknown.exception, MissingInputError)
    assert f"shards:   {split} sample {row:,}" in unknown.stdout
    train_run(sharded)
    (sharded.root / "runs" / "one" / "finished.json").write_text("{")
    damaged = run(key, "--run", "one", "--json")
    assert isinstance(damaged.exception, DamagedError)
    assert json.loads(damaged.stdout)["sample"]["row"] == row


def test_the_command_says_why_a_run_did_not_learn_from_a_picture(
    sharded: Workspace, run: Callable[..., Result]
) -> None:
    train_run(sharded)
    key = next(sample for sample in packed(sharded) if sample[1] == "val")[0]
    rejected = rows(sharded.shards("main") / "rejected.csv")[0]["key"]

    assert "the run was measured on it after every epoch" in run(key, "--run", "one").stdout
    assert "it is not in the shards" in run(rejected, "--run", "one").stdout
    assert isinstance(run(key, "--run", "two").exception, MissingInputError)
    (sharded.root / "runs" / "one" / "config.json").write_text("{}")
    assert isinstance(run(key, "--run", "one").exception, DamagedError)
    train_run(sharded, dataset_digest="f" * 64)
    assert "the run learned from other shards" in run(key, "--run", "one").stdout
