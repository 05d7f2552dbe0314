"""verify: whole folders pass, and no damage of any kind does; it is found where it is."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import simplejpeg
from click.testing import CliRunner, Result

from imgprep.cli.check import verify as command
from imgprep.errors import DamagedError, MissingInputError, SpecError, UsageError
from imgprep.executors import ThreadExecutor
from imgprep.index import SAMPLE_FIELDS, ClassInfo, ShardIndex, ShardInfo, SplitInfo
from imgprep.packing import tar_header
from imgprep.receipts import Receipt
from imgprep.records import Rejected, Synset
from imgprep.shard_check import Problem
from imgprep.stats import SilentProgress
from imgprep.tables import catalog_table, table_bytes, write_rejected
from imgprep.verify import RECEIPT, REJECTED, SUMS, Verdict, VerifySpec, verify
from imgprep.workspace import Workspace

WNIDS = ("n00000001", "n00000002", "n00000003")
SPEC = {"images": "resize", "size": 48, "quality": 90, "samples_per_shard": 4, "seed": 0, "shard_version": 1}
COUNTS = {"train": (4, 4), "val": (3,)}


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


@dataclass
class Sample:
    """What a tar of a test is made of; each part can be replaced before it is packed."""

    key: str
    label: int
    jpeg: bytes
    document: dict[str, Any]

    @property
    def json(self) -> bytes:
        return json.dumps(self.document, ensure_ascii=False, separators=(",", ":")).encode()

    def members(self) -> list[tuple[str, bytes]]:
        return [("jpg", self.jpeg), ("cls", str(self.label).encode()), ("json", self.json)]


def make_samples() -> dict[str, list[list[Sample]]]:
    """Samples of each shard of each split."""
    generator = np.random.default_rng(5)
    samples: dict[str, list[list[Sample]]] = {}
    for split, counts in COUNTS.items():
        samples[split] = []
        for count in counts:
            shard: list[Sample] = []
            for _ in range(count):
                number = sum(len(one) for some in samples.values() for one in some) + len(shard)
                width, height, label = 8 + number, 9, number % 3
                pixels = generator.integers(0, 255, (height, width, 3), np.uint8)
                document: dict[str, Any] = {"key": f"k_{number}", "split": split, "wnid": WNIDS[label], "label": label}
                document |= {"path": f'{split}/Grün "{number}".JPEG', "width": width, "height": height}
                if number % 2:
                    document["boxes"] = [{"wnid": WNIDS[label], "xmin": 0, "ymin": 1.25, "xmax": 7, "ymax": 8}]
                shard.append(Sample(f"k_{number}", label, simplejpeg.encode_jpeg(pixels), document))
            samples[split].append(shard)
    return samples


def write_folder(folder: Path, samples: dict[str, list[list[Sample]]], *, spec: dict[str, Any] | None = None) -> None:
    """Write tars, tables, index, receipt and sums by the rules of the format, not by the code of the stage."""
    folder.mkdir(exist_ok=True)
    splits = {}
    for split, shards in samples.items():
        rows, infos = [], []
        for number, shard in enumerate(shards):
            content = b""
            for sample in shard:
                jpeg = sample.jpeg
                rows.append((number, len(content) + 512, len(jpeg), sample.label, zlib.crc32(jpeg)))
                for suffix, part in sample.members():
                    content += tar_header(f"{sample.key}.{suffix}", len(part)) + padded(part)
            content += bytes(1024)
            name = f"imgprep-{split}-{number:06d}.tar"
            (folder / name).write_bytes(content)
            infos.append(
                ShardInfo(filename=name, num_samples=len(shard), num_bytes=len(content), sha256=sha256(content))
            )
        np.save(folder / f"{split}.samples.npy", np.array(rows, dtype=list(SAMPLE_FIELDS)))
        table = sha256((folder / f"{split}.samples.npy").read_bytes())
        splits[split] = SplitInfo(
            num_samples=len(rows),
            samples_filename=f"{split}.samples.npy",
            samples_sha256=table,
            shards=tuple(infos),
        )
    classes = tuple(ClassInfo(label=n, wnid=wnid, name=f"name {n}") for n, wnid in enumerate(WNIDS))
    write_witnesses(folder, ShardIndex(classes=classes, splits=splits, spec=SPEC if spec is None else spec))


def write_witnesses(folder: Path, index: ShardIndex) -> None:
    """Write what vouches for tars and tables, in agreement with itself."""
    (folder / "index.json").write_text(index.to_json(), encoding="utf-8")
    write_rejected(folder / REJECTED, [Rejected("bad", "train", "p/bad.JPEG", "an empty file")])
    synsets = [Synset(info.wnid, info.label, info.name) for info in index.classes]
    inputs = {"source": "0" * 64, "subset": "1" * 64, "classes": sha256(table_bytes(catalog_table(synsets)))}
    numbers = {name: split.num_samples for name, split in index.splits.items()}
    out = sum(numbers.values())
    counts = numbers | {"in": out + 1, "out": out, "rejected": 1, "unchanged": 3}
    counts["shards"] = sum(len(split.shards) for split in index.splits.values())
    counts["num_bytes"] = sum(split.num_bytes for split in index.splits.values())
    outputs = sorted(path.name for path in folder.iterdir() if path.name not in (RECEIPT, SUMS))
    Receipt(stage="shard", inputs=inputs, options=index.spec).write(folder, outputs, counts)
    write_sums(folder)


def write_sums(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.name != SUMS)
    (folder / SUMS).write_text("".join(f"{sha256((folder / n).read_bytes())}  {n}\n" for n in names), encoding="utf-8")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def problems(folder: Path, level: str = "bytes") -> tuple[Problem, ...]:
    return verify(folder, VerifySpec(level=level)).problems  # type: ignore[arg-type]


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    """Another content for the length of the block."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards that nobody changes for good."""
    folder = tmp_path_factory.mktemp("verify") / "main"
    write_folder(folder, make_samples())
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def remake(folder: Path, change: Callable[[dict[str, list[list[Sample]]]], None]) -> None:
    """Write the folder with other samples, and every witness in agreement with it."""
    samples = make_samples()
    change(samples)
    shutil.rmtree(folder)
    write_folder(folder, samples)


# What is whole.


@pytest.mark.parametrize("level", ["index", "bytes", "decode"])
def test_a_whole_folder_passes(whole: Path, level: str) -> None:
    verdict = verify(whole, VerifySpec(level=level))  # type: ignore[arg-type]

    assert verdict.problems == ()
    assert (verdict.num_shards, verdict.num_samples) == (3, 11)
    assert verdict.num_read == (0 if level == "index" else verdict.num_bytes)
    assert verdict.to_json()["verified"] is True


def test_shards_that_the_stage_writes_pass(sharded: Workspace) -> None:
    for level in ("index", "bytes", "decode"):
        assert problems(sharded.shards("main"), level) == ()


def test_without_sums_and_side_files_a_whole_folder_passes(copied: Path) -> None:
    (copied / SUMS).unlink()

    assert problems(copied) == ()


def test_lost_sums_are_missing_where_the_stage_wrote_some(sharded: Workspace) -> None:
    (sharded.shards("main") / SUMS).unlink()

    for level in ("index", "bytes"):
        assert [(p.kind, p.file) for p in problems(sharded.shards("main"), level)] == [("missing", SUMS)]


def test_time_grows_with_the_lines_of_the_sums_and_not_with_their_square(copied: Path) -> None:
    sums = (copied / SUMS).read_text(encoding="utf-8")

    def seconds(count: int) -> float:
        # Every twentieth is there, and is another file than it should be.
        for number in range(0, count, 20):
            (copied / f"f{number}").write_bytes(b"x")
        (copied / SUMS).write_text(sums + "".join(f"{number:064x}  f{number}\n" for number in range(count)))
        start = time.process_time()
        assert len(problems(copied, "index")) >= count
        return time.process_time() - start

    seconds(100)
    # Ten times as many lines: a hundred times as long it would take if each were compared with each. The cache of the
    # processor and the collector of garbage make it some more than ten.
    assert min(seconds(20_000) for _ in range(2)) < 40 * min(seconds(2000) for _ in range(3))


def test_a_shard_of_no_samples_passes(copied: Path) -> None:
    remake(copied, lambda samples: samples["train"][1].clear())

    assert problems(copied, "decode") == ()


def test_other_files_do_not_matter(copied: Path) -> None:
    (copied / "notes.txt").write_text("mine")
    (copied / ".nv-meta").mkdir()
    (copied / ".nv-meta" / "split.yaml").write_text("a: b\n")

    assert problems(copied) == ()


def test_threads_find_the_same_and_tell_of_every_byte(copied: Path) -> None:
    class Counted(SilentProgress):
        total = read = 0

        def begin(self, what: str, total: int, unit: str) -> None:
            assert (what, unit) == ("verify", "bytes")
            self.total = total

        def advance(self, n: int = 1) -> None:
            self.read += n

    tar = copied / "imgprep-train-000001.tar"
    tar.write_bytes(flipped(tar.read_bytes(), 700, 1))
    progress = Counted()
    verdict = verify(copied, VerifySpec(), executor=ThreadExecutor(3), progress=progress)

    assert verdict.problems == problems(copied)
    assert progress.read == progress.total == verdict.num_bytes


# Random damage.


def region(folder: Path, name: str, place: int) -> tuple[int | None, str]:
    """The row of the sample a byte of a tar belongs to, and the member and part of it."""
    with tarfile.open(folder / name) as archive:
        members = [(info.offset_data, info.size, info.name) for info in archive]
    first = 4 if name == "imgprep-train-000001.tar" else 0
    for number, (start, size, member) in enumerate(members):
        suffix = member.partition(".")[2]
        for part, end in (("header", start), (suffix, start + size), ("padding", start + size + -size % 512)):
            if place < end:
                return first + number // 3, part
    return None, "end"


def test_no_flipped_bit_in_a_tar_goes_unnoticed_and_each_is_found(copied: Path) -> None:
    random_numbers = random.Random(1)
    for tar in sorted(copied.glob("*.tar")):
        content = tar.read_bytes()
        for _ in range(300):
            place, bit = random_numbers.randrange(len(content)), random_numbers.randrange(8)
            with changed(tar, flipped(content, place, bit)):
                found = problems(copied)
            row, part = region(copied, tar.name, place)
            assert found[0].kind == "sha256", (tar.name, place, bit)
            assert {one.file for one in found} == {tar.name}
            if part == "json" and len(found) == 1:
                # A path, a size or a box: nothing else knows it.
                assert "KEY.json members" in found[0].what
            else:
                assert {(one.row, one.kind) for one in found[1:]} == {(row, part)}, (tar.name, place, bit, found)


@pytest.mark.parametrize("name", ["index.json", "train.samples.npy", REJECTED, RECEIPT, SUMS])
@pytest.mark.parametrize("level", ["index", "bytes"])
def test_no_flipped_bit_in_another_file_goes_unnoticed(copied: Path, name: str, level: str) -> None:
    random_numbers = random.Random(2)
    content = (copied / name).read_bytes()
    for _ in range(120):
        place, bit = random_numbers.randrange(len(content)), random_numbers.randrange(8)
        with changed(copied / name, flipped(content, place, bit)):
            assert problems(copied, level), (place, bit)


def test_without_sums_only_three_values_of_the_receipt_have_no_witness(copied: Path) -> None:
    (copied / SUMS).unlink()
    content = (copied / RECEIPT).read_bytes()
    document = json.loads(content)
    free = {"source": "0" * 64, "subset": "1" * 64, "unchanged": "3"}
    assert document["inputs"]["source"] == free["source"]
    random_numbers = random.Random(3)
    unnoticed = 0
    for _ in range(250):
        place, bit = random_numbers.randrange(len(content)), random_numbers.randrange(8)
        with changed(copied / RECEIPT, flipped(content, place, bit)):
            if problems(copied, "index"):
                continue
        unnoticed += 1
        line = content[content.rindex(b"\n", 0, place) + 1 : content.index(b"\n", place)].decode()
        assert line.strip().split('"')[1] in free, line
    assert unnoticed < 40


@pytest.mark.parametrize("level", ["index", "bytes"])
def test_no_truncation_goes_unnoticed(copied: Path, level: str) -> None:
    random_numbers = random.Random(4)
    for path in sorted(copied.iterdir()):
        content = path.read_bytes()
        cuts = {0, 1, len(content) - 1, *(random_numbers.randrange(len(content)) for _ in range(15))}
        for cut in cuts:
            with changed(path, content[:cut]):
                assert path.name in {one.file for one in problems(copied, level)}, (path.name, cut)


@pytest.mark.parametrize("level", ["index", "bytes"])
def test_nothing_appended_goes_unnoticed(copied: Path, level: str) -> None:
    for path in sorted(copied.iterdir()):
        for more in (b"\0", b"\n", b"\0" * 512):
            with changed(path, path.read_bytes() + more):
                assert problems(copied, level), (path.name, more)


def test_random_runs_of_bytes_are_noticed(copied: Path) -> None:
    random_numbers = random.Random(5)
    paths = sorted(copied.iterdir())
    for _ in range(200):
        path = random_numbers.choice(paths)
        content = path.read_bytes()
        start = random_numbers.randrange(len(content))
        length = random_numbers.choice((1, 16, 512, 5000))
        filling = random_numbers.choice((bytes(length), random_numbers.randbytes(length)))
        other = (content[:start] + filling + content[start + length :])[: len(content)]
        if other != content:
            with changed(path, other):
                assert problems(copied), (path.name, start, length)


def test_a_cut_tar_names_the_samples_that_are_gone(copied: Path) -> None:
    tar = copied / "imgprep-train-000001.tar"
    rows = np.load(copied / "train.samples.npy")
    tar.write_bytes(tar.read_bytes()[: int(rows["offset"][6]) + 5])
    found = problems(copied)

    assert found[0].kind == "size"
    assert [(one.kind, one.row) for one in found[1:]] == [("cut-off", 6), ("cut-off", 7)]


# Files that are missing, extra, or others.


def test_every_missing_file_is_named(copied: Path) -> None:
    for path in sorted(copied.iterdir()):
        if path.name == SUMS:
            continue
        content = path.read_bytes()
        path.unlink()
        for level in ("index", "bytes"):
            found = problems(copied, level)
            assert ("missing", path.name) in {(one.kind, one.file) for one in found}
        path.write_bytes(content)


def test_swapped_shards_are_told_by_name(copied: Path) -> None:
    one, other = copied / "imgprep-train-000000.tar", copied / "imgprep-val-000000.tar"
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])

    assert {(p.kind, p.file, p.what) for p in problems(copied)} == {
        ("other-file", one.name, f"holds the bytes of {other.name}"),
        ("other-file", other.name, f"holds the bytes of {one.name}"),
    }
    assert {p.file for p in problems(copied, "index")} == {one.name, other.name}


def test_a_copied_over_shard_is_told_by_name(copied: Path) -> None:
    shutil.copy(copied / "imgprep-train-000000.tar", copied / "imgprep-train-000001.tar")

    assert [(p.kind, p.file) for p in problems(copied)] == [("other-file", "imgprep-train-000001.tar")]


def test_swapped_tables_are_told_by_name(copied: Path) -> None:
    shutil.copy(copied / "val.samples.npy", copied / "train.samples.npy")

    assert any(p.file == "train.samples.npy" for p in problems(copied, "index"))


def test_a_renamed_shard_is_told_by_name(copied: Path) -> None:
    (copied / "imgprep-train-000001.tar").rename(copied / "imgprep-train-000007.tar")
    found = problems(copied)

    assert [(p.kind, p.file) for p in found] == [
        ("missing", "imgprep-train-000001.tar"),
        ("extra", "imgprep-train-000007.tar"),
    ]
    assert "it is imgprep-train-000001.tar under another name" in found[1].what


@pytest.mark.parametrize("name", ["imgprep-train-000009.tar", "test.samples.npy"])
def test_extra_files_that_readers_would_take_are_named(copied: Path, name: str) -> None:
    (copied / name).write_bytes(bytes(1024))

    for level in ("index", "bytes"):
        assert [(p.kind, p.file) for p in problems(copied, level)] == [("extra", name)]


# Edits that keep every hash in agreement.


def edit_table(folder: Path, split: str, change: Callable[[Any], Any]) -> None:
    """Change a sample table, and make index, receipt and sums agree with it."""
    path = folder / f"{split}.samples.npy"
    table = change(np.load(path).copy())
    np.save(path, table)
    index = json.loads((folder / "index.json").read_text())
    parsed = ShardIndex(
        classes=tuple(ClassInfo(**one) for one in index["classes"]),
        splits={
            name: SplitInfo(
                num_samples=one["num_samples"],
                samples_filename=one["samples_filename"],
                samples_sha256=sha256((folder / one["samples_filename"]).read_bytes()),
                shards=tuple(ShardInfo(**shard) for shard in one["shards"]),
            )
            for name, one in index["splits"].items()
        },
        spec=index["spec"],
    )
    (folder / RECEIPT).unlink()
    (folder / SUMS).unlink()
    write_witnesses(folder, parsed)


@pytest.mark.parametrize("row", range(8))
@pytest.mark.parametrize(
    ("column", "change"),
    [(name, change) for name, _ in SAMPLE_FIELDS for change in (1, -1, 512, -512) if name != "shard" or change > 0],
)
def test_a_table_that_disagrees_with_its_tars_is_found_row_by_row(
    whole: Path, copied: Path, row: int, column: str, change: int
) -> None:
    def edit(table: Any) -> Any:
        table[column][row] = (int(table[column][row]) + change) % (1 << 31)
        return table

    edit_table(copied, "train", edit)
    found = problems(copied)

    assert {(one.kind, one.file) for one in found} == {("table", "train.samples.npy")}
    assert row in {one.row for one in found} or f"the first is {row}" in found[0].what


def test_swapped_rows_of_a_table_are_found(copied: Path) -> None:
    edit_table(copied, "train", lambda table: table[[1, 0, 2, 3, 4, 5, 6, 7]])

    assert {one.file for one in problems(copied)} == {"train.samples.npy"}


def test_swapped_labels_of_a_table_are_found(copied: Path) -> None:
    def edit(table: Any) -> Any:
        table["label"] = table["label"][[1, 0, 2, 3, 4, 5, 6, 7]]
        return table

    edit_table(copied, "train", edit)
    found = problems(copied)

    assert [(one.kind, one.row, one.key) for one in found] == [("table", 0, "k_0"), ("table", 1, "k_1")]


@pytest.mark.parametrize(
    ("name", "value"), [("key", "k_7"), ("split", "val"), ("wnid", WNIDS[2]), ("label", 2), ("extra", 1)]
)
def test_json_that_contradicts_the_rest_is_found_in_tars_whose_hashes_agree(
    copied: Path, name: str, value: object
) -> None:
    remake(copied, lambda samples: samples["train"][0][1].document.update({name: value}))
    found = problems(copied)

    assert [(one.kind, one.member, one.row) for one in found] == [("json", "k_1.json", 1)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 0),
        ("height", "9"),
        ("label", True),
        ("boxes", [{"wnid": "n00000001", "xmin": 0, "ymin": 0, "xmax": 99, "ymax": 8}]),
        ("boxes", [{"wnid": "n00000001"}]),
        ("boxes", {}),
    ],
)
def test_json_with_impossible_values_is_found(copied: Path, name: str, value: object) -> None:
    remake(copied, lambda samples: samples["train"][0][1].document.update({name: value}))

    assert [(one.kind, one.what) for one in problems(copied)] == [("json", f"has no usable {name}")]


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b'{"key": "k_1"}', b"[" * 100_000, b'{"key":"\\ud800"}'])
def test_json_that_is_none_is_found(copied: Path, text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sample, "json", property(lambda self: text if self.key == "k_1" else _text(self)))
    remake(copied, lambda _: None)

    assert {(one.kind, one.member) for one in problems(copied)} == {("json", "k_1.json")}


def _text(sample: Sample) -> bytes:
    return json.dumps(sample.document, ensure_ascii=False, separators=(",", ":")).encode()


def test_decode_finds_a_wrong_size_and_a_picture_that_is_none(copied: Path) -> None:
    def change(samples: dict[str, list[list[Sample]]]) -> None:
        samples["train"][0][1].document["width"] += 1
        samples["train"][1][0].jpeg = samples["train"][1][0].jpeg[:-40]
        samples["val"][0][2].jpeg = b"no picture"

    remake(copied, change)
    found = problems(copied, "decode")

    assert problems(copied) == ()
    assert [(one.kind, one.key, one.row) for one in found] == [
        ("decode", "k_1", 1),
        ("decode", "k_4", 4),
        ("decode", "k_10", 2),
    ]
    assert (found[0].expected, found[0].found) == ("10 x 9", "9 x 9")


def test_an_index_that_was_edited_in_agreement_with_itself_is_found_by_others(copied: Path) -> None:
    index = json.loads((copied / "index.json").read_text())
    classes = tuple(ClassInfo(**one | {"name": "another name"}) for one in index["classes"])
    splits = {
        name: SplitInfo(**one | {"shards": tuple(ShardInfo(**shard) for shard in one["shards"])})
        for name, one in index["splits"].items()
    }
    (copied / "index.json").write_text(ShardIndex(classes=classes, splits=splits, spec=index["spec"]).to_json())

    assert "index.json" in {one.file for one in problems(copied, "index")}
    (copied / RECEIPT).unlink()
    assert "index.json" in {one.file for one in problems(copied)}


def test_an_index_with_another_hash_than_all_others_is_the_one_to_blame(copied: Path) -> None:
    index = json.loads((copied / "index.json").read_text())
    index["splits"]["val"]["shards"][0]["sha256"] = "0" * 64
    classes = tuple(ClassInfo(**one) for one in index["classes"])
    splits = {
        name: SplitInfo(**one | {"shards": tuple(ShardInfo(**shard) for shard in one["shards"])})
        for name, one in index["splits"].items()
    }
    (copied / "index.json").write_text(ShardIndex(classes=classes, splits=splits, spec=index["spec"]).to_json())

    assert [(one.kind, one.file) for one in problems(copied)] == [("sha256", "index.json"), ("index", "index.json")]


def test_every_edited_value_of_the_index_is_found(copied: Path) -> None:
    text = (copied / "index.json").read_text()
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        for other in (line.replace("1", "2"), line.replace("train", "val"), line.replace("a", "b"), line + line, ""):
            if other != line:
                with changed(copied / "index.json", "".join([*lines[:number], other, *lines[number + 1 :]]).encode()):
                    assert {one.kind for one in problems(copied, "index")} >= {"index"}, (number, other)


def test_without_a_usable_index_the_others_say_which_tar_is_damaged(copied: Path) -> None:
    (copied / "index.json").write_text("{}")
    tar = copied / "imgprep-train-000001.tar"
    tar.write_bytes(flipped(tar.read_bytes(), 600, 0))
    found = problems(copied)

    assert [(one.kind, one.file) for one in found if one.file.endswith(".tar")] == [("sha256", tar.name)]
    assert "index.json" in {one.file for one in found}


def test_sums_and_receipt_must_list_everything(copied: Path) -> None:
    for name in (SUMS, RECEIPT):
        content = (copied / name).read_bytes()
        lines = content.splitlines(keepends=True)
        for number in range(len(lines)):
            with changed(copied / name, b"".join([*lines[:number], *lines[number + 1 :]])):
                assert name in {one.file for one in problems(copied, "index")}, (name, number)


def test_sums_may_be_vouched_for_by_the_receipt(copied: Path) -> None:
    (copied / SUMS).write_text(
        "".join(x for x in (copied / SUMS).read_text().splitlines(keepends=True) if RECEIPT not in x)
    )
    assert [one.what for one in problems(copied)] == [f"does not list {RECEIPT}"]
    receipt = json.loads((copied / RECEIPT).read_text())
    sums = (copied / SUMS).read_bytes()
    receipt["outputs"][SUMS] = {"num_bytes": len(sums), "sha256": sha256(sums)}
    (copied / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n")

    assert problems(copied) == ()


# Hostile folders.


def test_an_index_of_absurd_numbers_is_one_line(copied: Path) -> None:
    def edit(**shard: Any) -> str:
        index = json.loads((copied / "index.json").read_text())
        infos = index["splits"]["train"]["shards"]
        infos[0] = infos[0] | shard
        first = infos[0]["num_samples"] + infos[1]["num_samples"]
        split = SplitInfo(
            num_samples=first,
            samples_filename="train.samples.npy",
            samples_sha256="0" * 64,
            shards=tuple(ShardInfo(**one) for one in infos),
        )
        return ShardIndex(classes=(), splits={"train": split}, spec=SPEC).to_json()

    huge = edit(num_samples=10**9)
    for text, expected in [
        (huge, "does not begin like a table of"),
        (edit(num_bytes=10**30), "impossible size"),
        (edit(num_samples=-9), "impossible size"),
        (edit(filename="imgprep-train-000001.tar"), "more than once"),
        (edit(filename="train.samples.npy"), "more than once"),
        (huge.replace('"num_samples": 1000000000', '"num_samples": 1e999'), "inconsistent"),
        (huge.replace("imgprep-train-000000.tar", "../../etc/passwd"), "inconsistent"),
    ]:
        (copied / "index.json").write_text(text)
        assert any(expected in one.what for one in problems(copied)), expected


def test_an_index_larger_than_any_is_not_read(copied: Path) -> None:
    os.truncate(copied / "index.json", 1 << 40)

    assert any(one.file == "index.json" and one.kind == "size" for one in problems(copied, "index"))


def test_a_tar_that_grew_beyond_measure_is_not_read_beyond_the_index(copied: Path) -> None:
    tar = copied / "imgprep-train-000000.tar"
    before = tar.stat().st_size
    os.truncate(tar, 1 << 42)
    verdict = verify(copied, VerifySpec())

    assert ("size", tar.name) in {(one.kind, one.file) for one in verdict.problems}
    assert verdict.num_read <= verdict.num_bytes
    assert before < 1 << 20


@pytest.mark.parametrize("name", ["imgprep-train-000000.tar", "train.samples.npy", "index.json", REJECTED, SUMS])
@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_what_is_no_file_is_one_line(copied: Path, tmp_path: Path, name: str, kind: str) -> None:
    path = copied / name
    path.rename(tmp_path / "elsewhere")
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    for level in ("index", "bytes"):
        found = [one for one in problems(copied, level) if one.file == name]
        assert [one.kind for one in found] == ["link" if kind == "link" else "unreadable"]


def test_files_that_may_not_be_read_are_one_line_each(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("imgprep.shard_check.os.open", refuse)
    found = problems(copied)

    assert {one.what for one in found} == {"cannot be read: Permission denied"}
    assert len(found) == len({one.file for one in found})


def test_a_disk_that_fails_in_the_middle_is_one_line(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int, buffers: list[memoryview]) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("imgprep.shard_check.os.readv", fail)

    assert {one.what for one in problems(copied)} == {"cannot be read: Input/output error"}


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a//b", ".", "\\a", "a\0b", "SHA256SUMS"])
def test_sums_that_lead_outside_are_refused(copied: Path, name: str) -> None:
    with (copied / SUMS).open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")

    assert [one.kind for one in problems(copied)] == ["sums"]


def test_sums_cover_files_in_folders_but_not_through_links(copied: Path, tmp_path: Path) -> None:
    (copied / "meta").mkdir()
    (copied / "meta" / "a.txt").write_text("a")
    with (copied / SUMS).open("a") as file:
        file.write(f"{sha256(b'a')}  meta/a.txt\n")
    assert problems(copied) == ()

    (copied / "meta" / "a.txt").write_text("b")
    assert [(one.kind, one.file) for one in problems(copied)] == [("sha256", "meta/a.txt")]

    shutil.move(copied / "meta", tmp_path / "meta")
    (tmp_path / "meta" / "a.txt").write_text("a")
    (copied / "meta").symlink_to(tmp_path / "meta")
    assert [(one.kind, one.file) for one in problems(copied)] == [("unreadable", "meta/a.txt")]


def test_tables_of_garbage_are_one_line(copied: Path) -> None:
    table = np.load(copied / "train.samples.npy")
    stream = io.BytesIO()
    np.save(stream, table["offset"])
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<u8', 'fortran_order': False, 'shape': (%s,), }" % (b"9" * 30)
    for content in (b"", b"PK\x03\x04" + bytes(50), stream.getvalue(), objects.getvalue(), header.ljust(200) + b"\n"):
        (copied / "train.samples.npy").write_bytes(content)
        assert "train.samples.npy" in {one.file for one in problems(copied)}


def test_a_table_that_points_outside_is_found_at_every_level(copied: Path) -> None:
    def edit(table: Any) -> Any:
        table["offset"][2] = 2**64 - 1
        table["length"][3] = 2**32 - 1
        return table

    edit_table(copied, "train", edit)
    for level in ("index", "bytes"):
        found = problems(copied, level)
        assert {one.file for one in found} == {"train.samples.npy"}
        assert "2 rows" in found[0].what


def test_a_folder_without_shards_is_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no shards here"):
        verify(tmp_path, VerifySpec())
    with pytest.raises(MissingInputError, match="no shards here"):
        verify(tmp_path / "nothing", VerifySpec())


def test_levels_have_names() -> None:
    with pytest.raises(SpecError, match="index, bytes, decode"):
        VerifySpec(level="all")  # type: ignore[arg-type]


# Tars of others.


def write_foreign(folder: Path) -> None:
    """Tars with long names and other headers, as other tools write them."""
    folder.mkdir()
    samples = make_samples()["train"][0]
    with tarfile.open(folder / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for sample in samples:
            for suffix, content in sample.members():
                info = tarfile.TarInfo(f"{'ü' * 120}/{sample.key}.{suffix}")
                info.size, info.mtime = len(content), 1.5
                archive.addfile(info, io.BytesIO(content))
    with tarfile.open(folder / "a.tar") as archive:
        places = [(info.offset_data, info.size) for info in archive if info.name.endswith(".jpg")]
    rows = [
        (0, offset, size, sample.label, zlib.crc32(sample.jpeg))
        for (offset, size), sample in zip(places, samples, strict=True)
    ]
    np.save(folder / "train.samples.npy", np.array(rows, dtype=list(SAMPLE_FIELDS)))
    content = (folder / "a.tar").read_bytes()
    split = SplitInfo(
        num_samples=4,
        samples_filename="train.samples.npy",
        samples_sha256=sha256((folder / "train.samples.npy").read_bytes()),
        shards=(ShardInfo(filename="a.tar", num_samples=4, num_bytes=len(content), sha256=sha256(content)),),
    )
    classes = tuple(ClassInfo(label=n, wnid=wnid, name="") for n, wnid in enumerate(WNIDS))
    index = ShardIndex(classes=classes, splits={"train": split}, spec={"imported": "webdataset"})
    (folder / "index.json").write_text(index.to_json())


def test_tars_of_others_are_checked_by_hash_and_by_picture(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    write_foreign(folder)
    tar, rows = folder / "a.tar", np.load(folder / "train.samples.npy")
    content = tar.read_bytes()
    for level in ("index", "bytes", "decode"):
        assert problems(folder, level) == ()

    with changed(tar, flipped(content, int(rows["offset"][2]) + 9, 4)):
        assert [(one.kind, one.row) for one in problems(folder)] == [("sha256", None), ("jpg", 2)]
    with changed(tar, flipped(content, 5, 4)):
        assert [one.kind for one in problems(folder)] == ["sha256"]
    with changed(tar, content[: int(rows["offset"][3]) + 1]):
        assert [(one.kind, one.row) for one in problems(folder)] == [("size", None), ("cut-off", 3)]


def test_tars_of_others_may_be_links_and_have_sums_of_others(tmp_path: Path) -> None:
    folder, target = tmp_path / "foreign", tmp_path / "elsewhere.tar"
    write_foreign(folder)
    (folder / "a.tar").rename(target)
    (folder / "a.tar").symlink_to(target)
    content = target.read_bytes()
    (folder / SUMS).write_text(f"{sha256(content).upper()} *a.tar\n")
    for level in ("index", "bytes", "decode"):
        assert problems(folder, level) == ()

    (folder / SUMS).write_text(f"{'0' * 64} *a.tar\n")
    assert [(one.kind, one.file) for one in problems(folder)] == [("sums", SUMS)]
    target.unlink()
    assert [(one.kind, one.file) for one in problems(folder)] == [("missing", "a.tar")]


# The command.


def run(*args: object) -> Result:
    return CliRunner().invoke(command, [str(arg) for arg in args])


def test_the_command_says_in_one_line_that_all_is_well(whole: Path) -> None:
    result = run("--shards", whole)

    assert result.exit_code == 0
    assert result.stdout.startswith("verified: 3 shards, 11 samples, ")
    assert len(result.stdout.splitlines()) == 1
    assert json.loads(run("--shards", whole, "--json").stdout)["problems"] == []


def test_the_command_lists_what_is_damaged_and_fails(copied: Path) -> None:
    tar = copied / "imgprep-val-000000.tar"
    tar.write_bytes(flipped(tar.read_bytes(), 700, 0))
    result = run("--shards", copied)

    assert isinstance(result.exception, DamagedError)
    assert "k_8.jpg (row 0 of val): the picture has another CRC-32" in result.stdout
    document = json.loads(run("--shards", copied, "--json").stdout)
    assert document["damaged"] == {tar.name: 2}
    assert document["problems"][1]["key"] == "k_8"
    assert document["verified"] is False


def test_the_command_finds_the_shards_of_a_workspace(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "shards" / "small")

    assert run("-w", tmp_path, "--name", "small").stdout.startswith("verified")
    assert isinstance(run("-w", tmp_path, "--name", "small", "--shards", whole).exception, UsageError)
    assert isinstance(run("-w", tmp_path).exception, MissingInputError)


def test_many_problems_are_cut_short_for_people_only(copied: Path) -> None:
    for tar in copied.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    result = run("--shards", copied)

    assert "more; --json lists all" in result.stdout
    assert len(json.loads(run("--shards", copied, "--json").stdout)["problems"]) > 20


def test_the_line_of_a_problem_says_where_and_what() -> None:
    problem = Problem(
        kind="jpg", file="a.tar", what="differs", expected="1", found="2", member="k.jpg", row=1, split="x"
    )

    assert problem.line == "a.tar: k.jpg (row 1 of x): differs; expected 1, found 2"
    assert replace(problem, member="", row=None, expected="", found="").line == "a.tar: differs"


def test_a_verdict_counts_files(whole: Path) -> None:
    one = Problem(kind="missing", file="a", what="is missing")
    verdict = Verdict(
        folder=whole,
        level="bytes",
        num_shards=1,
        num_samples=1,
        num_bytes=1,
        num_read=1,
        seconds=1.0,
        dataset_digest="",
        problems=(one, replace(one, file="b"), one),
    )

    assert verdict.damaged_files == {"a": 2, "b": 1}


def test_the_command_is_a_click_command() -> None:
    assert isinstance(command, click.Command)


def test_the_advice_for_tars_of_others_is_not_to_repair_them(tmp_path: Path) -> None:
    write_foreign(tmp_path / "foreign")
    (tmp_path / "foreign" / "a.tar").unlink()
    error = CliRunner().invoke(command, ["--shards", str(tmp_path / "foreign")]).exception

    assert isinstance(error, DamagedError)
    assert "repair" not in str(error)
    assert "`imgprep index --overwrite`" in str(error)
