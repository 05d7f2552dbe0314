from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imgprep.errors import DamagedError, MemberError, MissingInputError
from imgprep.index import ShardIndex
from training import reader as reader_module
from training.reader import ShardReader

PhotoOf = Callable[[int], bytes]


def open_tars() -> int:
    handles = [handle for handle in Path("/proc/self/fd").iterdir() if handle.is_symlink()]
    return sum(handle.readlink().suffix == ".tar" for handle in handles)


def test_every_sample_comes_back_as_written(index_path: Path, index: ShardIndex, photo_of: PhotoOf) -> None:
    with ShardReader(index_path, index, "train") as reader:
        assert len(reader) == 40
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(reader.read, range(40)))
        assert found == [photo_of(sample) for sample in range(40)]
        assert reader.labels.tolist() == [sample % 6 for sample in range(40)]


def test_many_shards_are_read_without_holding_them_open(
    index_path: Path, index: ShardIndex, photo_of: PhotoOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "MAX_OPEN_SHARDS", 1)
    before = open_tars()
    with ShardReader(index_path, index, "train") as reader:
        assert reader.read(39) == photo_of(39)
        assert open_tars() == before


def test_shards_are_closed(index_path: Path, index: ShardIndex) -> None:
    before = open_tars()
    with ShardReader(index_path, index, "train"):
        assert open_tars() == before + 2
    assert open_tars() == before


def test_a_damaged_sample_is_named(index_path: Path, index: ShardIndex, photo_of: PhotoOf) -> None:
    shard = index_path.parent / "imgprep-train-000001.tar"
    content = bytearray(shard.read_bytes())
    content[512 + 30] ^= 1
    shard.write_bytes(content)
    with ShardReader(index_path, index, "train") as reader:
        assert reader.read(19) == photo_of(19)
        with pytest.raises(MemberError, match=r"offset 512 of .*imgprep-train-000001\.tar.*imgprep shard --overwrite"):
            reader.read(20)


def test_a_shard_of_another_size_is_refused_at_once(index_path: Path, index: ShardIndex) -> None:
    with (index_path.parent / "imgprep-val-000000.tar").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(DamagedError, match=r"imgprep-val-000000\.tar has"):
        ShardReader(index_path, index, "val")


def test_a_missing_shard_is_named(index_path: Path, index: ShardIndex) -> None:
    (index_path.parent / "imgprep-val-000001.tar").unlink()
    with pytest.raises(MissingInputError, match=r"imgprep-val-000001.tar is missing - run `imgprep shard --overwrite`"):
        ShardReader(index_path, index, "val")


def test_an_unknown_split_is_refused(index_path: Path, index: ShardIndex) -> None:
    with pytest.raises(MissingInputError, match="no split 'test'; they have: train, val"):
        ShardReader(index_path, index, "test")
