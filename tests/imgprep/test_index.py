"""index.json: read back what was written, notice every edit, never leave the folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.errors import DamagedError, MissingInputError, SpecError
from imgprep.index import (
    SAMPLE_FIELDS,
    ClassInfo,
    ShardIndex,
    ShardInfo,
    SplitInfo,
    find_index,
    open_samples,
    parse_index,
    read_index,
)


def make_index(*, num_samples: int = 3, num_bytes: int = 4096, samples_sha256: str = "cd") -> ShardIndex:
    shard = ShardInfo(filename="imgprep-train-000000.tar", num_samples=num_samples, num_bytes=num_bytes, sha256="ab")
    split = SplitInfo(
        num_samples=num_samples, samples_filename="train.samples.npy", samples_sha256=samples_sha256, shards=(shard,)
    )
    classes = (ClassInfo(label=0, wnid="n01440764", name="tench, Tinca tinca"), ClassInfo(label=1, wnid="n2", name="ü"))
    return ShardIndex(classes=classes, splits={"train": split}, spec={"size": 256}, provenance={"source": {}})


names = st.text(min_size=1, max_size=8).filter(lambda text: text not in (".", "..") and not set(text) & set("/\\\0"))


@st.composite
def indexes(draw: st.DrawFn) -> ShardIndex:
    splits = {}
    for name in draw(st.sets(st.sampled_from(["train", "val", "test"]))):
        sizes = draw(st.lists(st.integers(0, 9), max_size=3))
        shards = tuple(
            ShardInfo(
                filename=draw(names), num_samples=n, num_bytes=draw(st.integers(0, 2**40)), sha256=draw(st.text())
            )
            for n in sizes
        )
        splits[name] = SplitInfo(
            num_samples=sum(sizes), samples_filename=draw(names), samples_sha256=draw(st.text()), shards=shards
        )
    classes = tuple(
        ClassInfo(label=i, wnid=draw(st.text()), name=draw(st.text())) for i in range(draw(st.integers(0, 3)))
    )
    return ShardIndex(classes=classes, splits=splits, spec={"seed": draw(st.integers())})


@given(indexes())
def test_an_index_reads_back_as_it_was_written(index: ShardIndex) -> None:
    assert parse_index(index.to_json()) == index


def test_the_digest_does_not_depend_on_spec_or_provenance() -> None:
    index = make_index()
    other = ShardIndex(classes=index.classes, splits=index.splits, spec={}, provenance={"source": {"name": "other"}})

    assert other.dataset_digest == index.dataset_digest
    assert make_index(num_bytes=4097).dataset_digest != index.dataset_digest


def test_a_class_is_called_by_its_first_name() -> None:
    assert make_index().classes[0].short_name == "tench"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("tench", "trench", "was edited"),
        ('"num_samples": 3', '"num_samples": 4', "edited|hold 3 samples"),
        ("imgprep-train-000000.tar", "../../secret", "bad file name"),
        ('"version": 2', '"version": 1', "version 1"),
        ('"format": "imgprep-index"', '"format": "x"', "not an imgprep-index"),
        ('"shards"', '"chards"', "incomplete"),
        ('"label": 1', '"label": 7', "0, 1, 2"),
        ('"num_samples": 3', '"num_samples": 1e999', "incomplete"),
        ("tench, Tinca", "tench, \\ud800", "incomplete"),
        ("{", "", "not valid JSON"),
    ],
)
def test_an_edited_index_is_damage(old: str, new: str, said: str) -> None:
    text = make_index().to_json()
    assert old in text
    with pytest.raises(DamagedError, match=said):
        parse_index(text.replace(old, new, 1))


@given(indexes(), st.data())
def test_any_edit_of_a_value_is_noticed(index: ShardIndex, data: st.DataObject) -> None:
    """The spec and where things come from are told on: they must be what was written, too."""
    document = json.loads(index.to_json())
    part = data.draw(st.sampled_from(["spec", "provenance"]))
    document[part]["edited"] = data.draw(st.integers())
    with pytest.raises(DamagedError, match="edited: its own digest"):
        parse_index(json.dumps(document))
    # However it is indented, it says the same.
    assert parse_index(json.dumps(json.loads(index.to_json()))) == index


def test_an_index_that_contradicts_itself_cannot_be_built() -> None:
    split = SplitInfo(num_samples=1, samples_filename="a", samples_sha256="", shards=())
    with pytest.raises(SpecError, match="0 samples, num_samples says 1"):
        ShardIndex(classes=(), splits={"train": split})


def test_no_index_is_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="imgprep shard"):
        read_index(find_index(tmp_path))


def test_read_index_takes_the_folder_too(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(make_index().to_json(), encoding="utf-8")

    assert read_index(tmp_path) == make_index()


def write_samples(folder: Path, rows: list[tuple[int, int, int, int, int]]) -> ShardIndex:
    np.save(folder / "train.samples.npy", np.array(rows, dtype=list(SAMPLE_FIELDS)))
    return index_of(folder)


def index_of(folder: Path) -> ShardIndex:
    """An index whose digest of the sample table is that of the file."""
    content = (folder / "train.samples.npy").read_bytes()
    return make_index(samples_sha256=hashlib.sha256(content).hexdigest())


def test_samples_are_mapped_with_their_columns(tmp_path: Path) -> None:
    index = write_samples(tmp_path, [(0, 512, 100, 1, 7), (0, 2048, 2048, 0, 8), (0, 4096, 0, 0, 9)])
    table = open_samples(tmp_path / "index.json", index, "train")

    assert (table.dtype.itemsize, table["label"].tolist(), isinstance(table, np.memmap)) == (24, [1, 0, 0], True)


@pytest.mark.parametrize(
    "row",
    [
        (1, 512, 100, 0, 0),
        (0, 4000, 97, 0, 0),
        (0, 2**64 - 1, 100, 0, 0),
        (0, 512, 100, 2, 0),
        (0, 512, 100, -1, 0),
    ],
    ids=["shard", "length", "wrap-around", "label", "negative label"],
)
def test_samples_that_point_outside_are_damage(tmp_path: Path, row: tuple[int, int, int, int, int]) -> None:
    index = write_samples(tmp_path, [(0, 512, 100, 1, 7), row, row])
    with pytest.raises(DamagedError, match="points outside"):
        open_samples(tmp_path / "index.json", index, "train")


def test_a_sample_table_with_one_changed_label_is_damage(tmp_path: Path) -> None:
    rows = [(0, 512, 100, 1, 7), (0, 2048, 100, 0, 8), (0, 3072, 100, 0, 9)]
    index = write_samples(tmp_path, rows)
    write_samples(tmp_path, [*rows[:2], (0, 3072, 100, 1, 9)])
    with pytest.raises(DamagedError, match="was changed"):
        open_samples(tmp_path / "index.json", index, "train")


def test_samples_of_another_number_missing_empty_or_pickled_are_damage(tmp_path: Path) -> None:
    index_path = tmp_path / "index.json"
    with pytest.raises(DamagedError, match="cannot be read"):
        open_samples(index_path, make_index(), "train")
    index = write_samples(tmp_path, [(0, 512, 100, 1, 7)])
    with pytest.raises(DamagedError, match="does not fit"):
        open_samples(index_path, index, "train")
    np.save(tmp_path / "train.samples.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DamagedError, match="cannot be read"):
        open_samples(index_path, index_of(tmp_path), "train")
    (tmp_path / "train.samples.npy").write_bytes(b"")
    with pytest.raises(DamagedError, match="cannot be read"):
        open_samples(index_path, index_of(tmp_path), "train")
    for broken in (b"{'descr': [('a', '<u4'", b"{'descr': (((", b"\0", b"{'descr': 1e999, "):
        # An index may be made for such a table as well: NumPy takes its header for an expression of Python.
        header = broken.ljust(118) + b"\n"
        (tmp_path / "train.samples.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        with pytest.raises(DamagedError, match="cannot be read"):
            open_samples(index_path, index_of(tmp_path), "train")
    with (tmp_path / "train.samples.npy").open("wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(DamagedError, match="no array"):
        open_samples(index_path, index_of(tmp_path), "train")


def test_an_unknown_split_is_said_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="they have: train"):
        open_samples(tmp_path / "index.json", make_index(), "val")


def test_the_document_is_plain_json() -> None:
    document = json.loads(make_index().to_json())

    assert (document["format"], document["splits"]["train"]["shards"][0]["num_bytes"]) == ("imgprep-index", 4096)
