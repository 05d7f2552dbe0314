"""Packing: headers as the standard has them, tars that others read, and no name before a tar is whole."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgprep.errors import DamagedError, ImageError
from imgprep.images import Geometry, PreparedImage
from imgprep.packing import BLOCK, ShardFile, finished, keep, pack, parse_packed, record_path, sample_json, tar_header
from imgprep.records import KEY_PATTERN, Record
from imgprep.shard_plan import ShardPlan, ToldBox

KEYS = st.from_regex(KEY_PATTERN, fullmatch=True)


def picture(content: bytes, *, unchanged: bool = True) -> PreparedImage:
    size = (100, 50)
    geometry = Geometry(stored=size, orientation=1, turned=True, scaled=size, offset=(0, 0), size=size)
    return PreparedImage(content, *size, unchanged=unchanged, geometry=geometry)


def records(number: int, *, crc32: int | None = None) -> tuple[Record, ...]:
    return tuple(Record(f"k{n}", "train", f"p/{n}", "n00000001", n, 9, crc32) for n in range(number))


@given(name=st.from_regex(r"[A-Za-z0-9_.-]{1,100}", fullmatch=True), num_bytes=st.integers(0, 8**11 - 1))
def test_a_header_is_that_of_the_standard_library(name: str, num_bytes: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = num_bytes
    info.mode = 0o444

    assert tar_header(name, num_bytes) == info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


@pytest.mark.parametrize(("name", "num_bytes"), [("x" * 101, 1), ("x", 8**11), ("x", -1), ("é", 1)])
def test_what_does_not_fit_a_header_has_none(name: str, num_bytes: int) -> None:
    with pytest.raises(ValueError, match=r"header|ascii"):
        tar_header(name, num_bytes)


@given(st.lists(st.tuples(KEYS, st.binary(max_size=1500)), max_size=8, unique_by=lambda pair: pair[0]))
def test_a_foreign_reader_finds_what_was_packed(
    tmp_path_factory: pytest.TempPathFactory, samples: list[tuple[str, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    entries = [Record(key, "val", "ä/,", "n1", place, 1, None) for place, (key, _) in enumerate(samples)]
    with ShardFile(path) as file:
        offsets = [
            file.add(entry, picture(content), None) for entry, (_, content) in zip(entries, samples, strict=True)
        ]
        assert not path.exists()
        info = file.publish(len(samples))
    content = path.read_bytes()

    assert (info.num_bytes, info.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        found = [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    wanted = []
    for entry, (key, jpeg) in zip(entries, samples, strict=True):
        wanted += [(f"{key}.jpg", jpeg), (f"{key}.cls", str(entry.label).encode())]
        wanted += [(f"{key}.json", sample_json(entry, 100, 50))]
    assert found == wanted
    assert [content[at : at + len(jpeg)] for at, (_, jpeg) in zip(offsets, samples, strict=True)] == [
        jpeg for _, jpeg in samples
    ]
    assert [path.name for path in path.parent.iterdir()] == ["a.tar"]


def test_a_tar_that_is_not_published_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), ShardFile(tmp_path / "a.tar") as file:
        file.add(records(1)[0], picture(b"x"), None)
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []


def test_short_writes_are_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk or a signal may take fewer bytes than offered."""
    import os

    whole = pack(ShardPlan("train", 0, "a.tar", records(3)), tmp_path / "a.tar", **sources(b"q" * 9000))
    real_write = os.write
    monkeypatch.setattr(os, "writev", lambda handle, parts: real_write(handle, b"".join(parts)[:700]))
    monkeypatch.setattr(os, "write", lambda handle, rest: real_write(handle, bytes(rest[:333])))
    again = pack(ShardPlan("train", 0, "b.tar", records(3)), tmp_path / "b.tar", **sources(b"q" * 9000))

    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert whole.info.sha256 == again.info.sha256


def sources(content: bytes) -> dict[str, object]:
    return {"read": lambda _: content, "prepare": picture, "tick": lambda: None}


def test_rows_point_to_pictures_and_rejects_say_why(tmp_path: Path) -> None:
    def prepare(content: bytes) -> PreparedImage:
        if content == b"p/1":
            raise ImageError("no picture", "advice")
        return picture(content, unchanged=content != b"p/2")

    ticks: list[None] = []
    packed = pack(
        ShardPlan("train", 5, "a.tar", records(4, crc32=7)),
        tmp_path / "a.tar",
        read=str.encode,
        prepare=prepare,
        tick=lambda: ticks.append(None),
    )
    content = (tmp_path / "a.tar").read_bytes()

    assert len(ticks) == 4
    assert [(one.key, one.reason) for one in packed.rejected] == [("k1", "no picture")]
    assert packed.rows["shard"].tolist() == [5, 5, 5]
    assert packed.rows["label"].tolist() == [0, 2, 3]
    # What the source has checked keeps its checksum; what was written anew is summed.
    assert packed.rows["crc32"].tolist() == [7, zlib.crc32(b"p/2"), 7]
    assert [content[at : at + 3] for at in packed.rows["offset"].tolist()] == [b"p/0", b"p/2", b"p/3"]
    assert (packed.info.num_samples, packed.unchanged) == (3, 2)


def test_boxes_are_those_of_the_picture_in_the_tar(tmp_path: Path) -> None:
    boxes = {"k0": (ToldBox("n2", 10, 20, 300, 100, 200, 100), ToldBox("n3", 0, 0, 1, 1, 0, 0))}
    pack(ShardPlan("train", 0, "a.tar", records(2), boxes), tmp_path / "a.tar", **sources(b"x"))  # type: ignore[arg-type]
    with tarfile.open(tmp_path / "a.tar") as archive:
        documents = [json.loads(archive.extractfile(f"k{n}.json").read()) for n in range(2)]  # type: ignore[union-attr]

    assert documents[0]["boxes"] == [
        {"wnid": "n2", "xmin": 5, "ymin": 10, "xmax": 100, "ymax": 50},
        {"wnid": "n3", "xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1},
    ]
    assert "boxes" not in documents[1]


def test_a_finished_tar_counts_only_to_the_byte(tmp_path: Path) -> None:
    plan = ShardPlan("train", 0, "a.tar", records(4))
    jobs = tmp_path / "job"
    jobs.mkdir()
    packed = pack(plan, tmp_path / "a.tar", **sources(b"x" * 600))  # type: ignore[arg-type]
    assert finished(plan, tmp_path, jobs) is None
    keep(packed, jobs)
    found = finished(plan, tmp_path, jobs)
    assert found is not None
    assert (found.info, found.rows.tolist(), found.resumed) == (packed.info, packed.rows.tolist(), True)

    assert finished(ShardPlan("train", 0, "a.tar", records(3)), tmp_path, jobs) is None
    assert finished(ShardPlan("train", 0, "b.tar", records(4)), tmp_path, jobs) is None
    good = (tmp_path / "a.tar").read_bytes()
    for place in (0, BLOCK + 5, len(good) - 1):
        (tmp_path / "a.tar").write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        assert finished(plan, tmp_path, jobs) is None
    (tmp_path / "a.tar").write_bytes(good[:-BLOCK])
    assert finished(plan, tmp_path, jobs) is None
    (tmp_path / "a.tar").unlink()
    assert finished(plan, tmp_path, jobs) is None


def test_any_flipped_bit_in_the_record_of_a_tar_is_noticed(tmp_path: Path) -> None:
    keep(pack(ShardPlan("train", 0, "a.tar", records(2)), tmp_path / "a.tar", **sources(b"x")), tmp_path)  # type: ignore[arg-type]
    path = record_path(tmp_path, "a.tar")
    good = path.read_bytes()
    before = parse_packed(json.loads(good))
    for place in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            try:
                document = json.loads(bytes(bad))
            except ValueError:
                continue
            if not isinstance(document, dict):
                continue
            try:
                after = parse_packed(document)
            except DamagedError:
                continue
            assert (after.info, after.rows.tolist(), after.rejected) == (
                before.info,
                before.rows.tolist(),
                before.rejected,
            )
